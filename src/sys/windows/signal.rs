//! Windows: what stands for signals: event objects, console events, and requests of the service
//! control manager.

use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use super::console;
use super::events::NamedEvents;
use super::supervised_events;
use crate::log;
use crate::sys::{EventPrefix, Signal};

/// STATUS_CONTROL_C_EXIT, the exit code of a program that a console event has ended.
const CONTROL_C_EXIT: i32 = 0xC000_013A_u32 as i32;

/// What stops a server at once, in a sentence.
#[cfg_attr(not(feature = "signals"), allow(dead_code))]
pub(crate) const STOP_NOW: &str = "the stop-now event";

/// Event objects have names, which two servers of a process cannot give both.
#[cfg_attr(not(feature = "signals"), allow(dead_code))]
pub(crate) const HAS_EVENT_OBJECTS: bool = true;

/// The system ends a process whose console was closed.
pub(crate) const TERMINAL_CLOSE_LIMIT: Option<Duration> = Some(console::TIME_LEFT);

static DELIVER: OnceLock<Box<dyn Fn(Signal) -> bool + Send + Sync>> = OnceLock::new();

/// What stands for a signal here.
pub(in crate::sys) fn local_name(signal: Signal) -> Option<&'static str> {
    Some(match signal {
        Signal::Hangup => "restart event",
        Signal::Interrupt => "Ctrl-C or Ctrl-Break",
        Signal::Kill => "TerminateProcess",
        Signal::Quit => "stop-now event",
        Signal::TerminalClosed => "console closed",
        Signal::Terminate => "stop event",
        Signal::User1 => "user1 event",
        _ => return None,
    })
}

/// Calls `deliver` for each signal, from threads of its own, until the process ends. The bool that
/// `deliver` gets is false, as no process ignores a signal here. Where `deliver` returns false,
/// what would stop a server ends the process, and the rest has no effect. `event_prefix` is the
/// prefix of the names of the event objects, by default `Local\` and the name of the program. To be
/// called once.
#[cfg(feature = "signals")]
pub(crate) fn install_handlers(
    event_prefix: Option<&EventPrefix>,
    deliver: impl Fn(Signal, bool) -> bool + Clone + Send + Sync + 'static,
) -> io::Result<()> {
    let deliver = move |signal| deliver(signal, false);
    let handle_ctrl_c = deliver.clone();
    let install = move || {
        let handler = move || end_unless(handle_ctrl_c(Signal::Interrupt));
        ctrlc::set_handler(handler).map_err(io::Error::other)
    };
    let names = watch(event_prefix, Some(install), deliver)?;
    log::info!("the event objects of this process are {names}.stop, stop-now, restart, user1");
    Ok(())
}

/// As `install_handlers`. `ctrl_c` installs the handler of Ctrl-C and Ctrl-Break, if there is to be
/// another one than that of this module. Returns how the names of the event objects begin.
fn watch(
    event_prefix: Option<&EventPrefix>,
    ctrl_c: Option<impl FnOnce() -> io::Result<()>>,
    deliver: impl Fn(Signal) -> bool + Clone + Send + Sync + 'static,
) -> io::Result<String> {
    let prefix = event_prefix.map_or_else(default_prefix, |prefix| prefix.text().to_owned());
    let own = NamedEvents::create(&prefix)?;
    let manager = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let of_supervisor = supervised_events::prefix_of(&manager);
    let of_supervisor = of_supervisor
        .map(|prefix| NamedEvents::create(&prefix))
        .transpose()?;
    let takes_ctrl_c = ctrl_c.is_none();
    // Before the handler of this module: the last one that is installed is called first.
    ctrl_c.map_or(Ok(()), |install| install())?;
    console::watch(takes_ctrl_c, deliver.clone())?;
    let _ = DELIVER.set(Box::new(deliver.clone()));
    for events in [Some(own), of_supervisor].into_iter().flatten() {
        let deliver = deliver.clone();
        thread::Builder::new()
            .name("handover-signal".to_owned())
            .spawn(move || deliver_events(&events, deliver))?;
    }
    Ok(format!("{prefix}.{}", std::process::id()))
}

fn deliver_events(events: &NamedEvents, deliver: impl Fn(Signal) -> bool) {
    loop {
        match events.wait() {
            Ok(signal @ (Signal::Terminate | Signal::Quit)) => end_unless(deliver(signal)),
            Ok(signal) => drop(deliver(signal)),
            Err(error) => return log::error!("cannot wait for event objects: {error}"),
        }
    }
}

/// Calls `deliver` for each signal, as `install_handlers`, and returns how the names of the event
/// objects begin. For a supervisor, which handles Ctrl-C also without the feature `signals`.
pub(in crate::sys) fn watch_for_supervisor(
    event_prefix: Option<&EventPrefix>,
    deliver: fn(Signal) -> bool,
) -> io::Result<String> {
    watch(event_prefix, None::<fn() -> io::Result<()>>, deliver)
}

/// Delivers a signal that comes neither from an event object nor from a console. False if nothing
/// handles it.
#[cfg_attr(not(feature = "windows-service"), allow(dead_code))]
pub(super) fn raise(signal: Signal) -> bool {
    DELIVER.get().is_some_and(|deliver| deliver(signal))
}

fn end_unless(is_handled: bool) {
    if !is_handled {
        std::process::exit(CONTROL_C_EXIT);
    }
}

/// `Local\` and the name of the program's file, without its extension.
fn default_prefix() -> String {
    let program = std::env::current_exe().ok();
    let stem = program.as_deref().and_then(|program| program.file_stem());
    let stem = stem.map_or("handover".into(), |stem| stem.to_string_lossy());
    format!(r"Local\{stem}")
}

/// No program is told to end by a signal.
pub(crate) fn from_name(_name: &str) -> Option<Signal> {
    None
}

/// No program is told to end by a signal.
pub(crate) fn from_any_number(_number: i32) -> Option<Signal> {
    None
}

pub(in crate::sys) fn name_of(_number: i32) -> Option<&'static str> {
    None
}

/// No program starts with blocked signals.
pub(crate) fn record() {}

pub(crate) fn release() -> bool {
    false
}
