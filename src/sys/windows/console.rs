//! Windows: console events.
//!
//! | event | meaning |
//! |---|---|
//! | Ctrl-C, Ctrl-Break | [`Signal::Interrupt`] |
//! | the console is closed | [`Signal::TerminalClosed`] |
//! | logoff | the same; nothing in session 0, where services run |
//! | shutdown | [`Signal::Shutdown`] |
//!
//! Ctrl-Break is no SIGQUIT: it is the only console event that one process can send to the process
//! group of another (GenerateConsoleCtrlEvent), so a parent sends it for a graceful stop, and Go,
//! Python and `ctrlc` treat it as Ctrl-C.
//!
//! `ctrlc` carries Ctrl-C and Ctrl-Break. It cannot carry the others, because the system ends the
//! process as soon as the handler of such an event returns. So a handler here waits for the end of
//! the process.
//!
//! No function of user32.dll may be called: a process that loads it gets no event at a logoff or a
//! shutdown (HandlerRoutine).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT,
    SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::RemoteDesktop::ProcessIdToSessionId;
use windows_sys::core::BOOL;

use crate::sys::Signal;

/// The system ends the process 5 s after these events. The last second is for what follows the
/// drain: to cut off the rest, to join the threads, and to write the report.
pub(super) const TIME_LEFT: Duration = Duration::from_secs(4);

static HANDLER: OnceLock<Handler> = OnceLock::new();

static HAS_DELIVERED: AtomicBool = AtomicBool::new(false);

/// Whether this module has delivered a console event. The system has sent the event to the other
/// processes of the console as well, except for Ctrl-C to those with a process group of their own.
pub(in crate::sys) fn has_delivered() -> bool {
    HAS_DELIVERED.load(SeqCst)
}

/// Forgets earlier console events: a process that starts from now on has not got them.
pub(in crate::sys) fn forget_delivered() {
    HAS_DELIVERED.store(false, SeqCst);
}

struct Handler {
    takes_ctrl_c: bool,
    is_service_session: bool,
    deliver: Box<dyn Fn(Signal) -> bool + Send + Sync>,
}

/// What a console event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The handler that was installed before this one is called.
    Pass,
    /// Nothing happens.
    Ignore,
    Deliver(Signal),
    /// The process ends when the handler returns.
    DeliverAndWait(Signal),
}

fn action(event: u32, takes_ctrl_c: bool, is_service_session: bool) -> Action {
    match event {
        CTRL_C_EVENT | CTRL_BREAK_EVENT if takes_ctrl_c => Action::Deliver(Signal::Interrupt),
        // Some user logs off: no reason for a service to end.
        CTRL_LOGOFF_EVENT if is_service_session => Action::Ignore,
        CTRL_CLOSE_EVENT | CTRL_LOGOFF_EVENT => Action::DeliverAndWait(Signal::TerminalClosed),
        CTRL_SHUTDOWN_EVENT => Action::DeliverAndWait(Signal::Shutdown(TIME_LEFT)),
        _ => Action::Pass,
    }
}

/// Calls `deliver` for each console event, on a thread that the system starts. Where `deliver`
/// returns false, the event has its default action: the end of the process. The handlers of Ctrl-C
/// and Ctrl-Break that the program has installed before go on, unless `takes_ctrl_c`. To be called
/// once.
#[allow(unsafe_code)]
pub(super) fn watch(
    takes_ctrl_c: bool,
    deliver: impl Fn(Signal) -> bool + Send + Sync + 'static,
) -> io::Result<()> {
    HANDLER.get_or_init(|| Handler {
        takes_ctrl_c,
        is_service_session: is_service_session(),
        deliver: Box::new(deliver),
    });
    // SAFETY: the handler is a function of the right type, and reads only what is initialised.
    match unsafe { SetConsoleCtrlHandler(Some(handle), 1) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// True if the event is handled. If not, the system calls the handler that was installed before.
#[allow(unsafe_code)]
unsafe extern "system" fn handle(event: u32) -> BOOL {
    let Some(handler) = HANDLER.get() else {
        return 0;
    };
    let action = action(event, handler.takes_ctrl_c, handler.is_service_session);
    if matches!(action, Action::Deliver(_) | Action::DeliverAndWait(_)) {
        // Before the delivery: the reaction to the signal reads it.
        HAS_DELIVERED.store(true, SeqCst);
    }
    let is_handled = match action {
        Action::Pass => false,
        Action::Ignore => true,
        Action::Deliver(signal) => (handler.deliver)(signal),
        Action::DeliverAndWait(signal) => {
            if (handler.deliver)(signal) {
                loop {
                    thread::park();
                }
            }
            false
        }
    };
    is_handled.into()
}

#[allow(unsafe_code)]
fn is_service_session() -> bool {
    let mut session = 0;
    // SAFETY: the call writes a number to a live value.
    let found = unsafe { ProcessIdToSessionId(std::process::id(), &mut session) };
    found != 0 && session == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_console_event_has_its_meaning() {
        let closed = Action::DeliverAndWait(Signal::TerminalClosed);
        let shutdown = Action::DeliverAndWait(Signal::Shutdown(TIME_LEFT));
        let interrupt = Action::Deliver(Signal::Interrupt);
        for (event, at_desk, in_service, alone) in [
            (CTRL_C_EVENT, Action::Pass, Action::Pass, interrupt),
            (CTRL_BREAK_EVENT, Action::Pass, Action::Pass, interrupt),
            (CTRL_CLOSE_EVENT, closed, closed, closed),
            (CTRL_LOGOFF_EVENT, closed, Action::Ignore, closed),
            (CTRL_SHUTDOWN_EVENT, shutdown, shutdown, shutdown),
            (77, Action::Pass, Action::Pass, Action::Pass),
        ] {
            assert_eq!(action(event, false, false), at_desk, "{event}");
            assert_eq!(action(event, false, true), in_service, "{event}");
            assert_eq!(action(event, true, false), alone, "{event}");
        }
    }
}
