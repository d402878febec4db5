//! Unix: signals, and which of them a thread blocks.

// Without the feature, only a supervisor handles signals.
#![cfg_attr(not(any(feature = "signals", target_os = "linux")), allow(dead_code))]

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use rustix::process::Signal as KernelSignal;

#[cfg(feature = "signals")]
use crate::log;
use crate::sys::Signal;
use crate::sys::native::calls::is_from_kernel;

/// The signals that a program of this crate handles. They are blocked, and then recorded, while it
/// starts, so that none of them ends it before it can handle them.
pub(in crate::sys) const HANDLED: [Signal; 6] = [
    Signal::Hangup,
    Signal::Interrupt,
    Signal::Quit,
    Signal::Terminate,
    Signal::User1,
    Signal::User2,
];

/// The signals that the system names and a program may be told to end by, beside those of
/// [`Signal`]. A signal of the processor (SEGV, FPE) is none of them, nor is one that stops a process.
const OTHERS: [(&str, libc::c_int); 12] = [
    ("ALRM", libc::SIGALRM),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("IO", libc::SIGIO),
    ("PIPE", libc::SIGPIPE),
    ("PROF", libc::SIGPROF),
    ("TRAP", libc::SIGTRAP),
    ("URG", libc::SIGURG),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The signals that have a name in [`Signal`].
const NAMED: [(&str, Signal); 8] = [
    ("ABRT", Signal::Abort),
    ("HUP", Signal::Hangup),
    ("INT", Signal::Interrupt),
    ("KILL", Signal::Kill),
    ("QUIT", Signal::Quit),
    ("TERM", Signal::Terminate),
    ("USR1", Signal::User1),
    ("USR2", Signal::User2),
];

/// What stops a server at once, in a sentence.
#[cfg_attr(not(feature = "signals"), allow(dead_code))]
pub(crate) const STOP_NOW: &str = "SIGQUIT";

/// Signals do what event objects do on Windows.
#[cfg_attr(not(feature = "signals"), allow(dead_code))]
pub(crate) const HAS_EVENT_OBJECTS: bool = false;

/// A process may go on when its terminal has been closed.
pub(crate) const TERMINAL_CLOSE_LIMIT: Option<Duration> = None;

/// Signals have their own names here.
pub(in crate::sys) fn local_name(_signal: Signal) -> Option<&'static str> {
    None
}

/// The signal with this name in capital letters, without `SIG`.
pub(crate) fn from_name(name: &str) -> Option<Signal> {
    let named = NAMED.iter().find(|(known, _)| *known == name);
    let other = OTHERS.iter().find(|(known, _)| *known == name);
    let other = other.map(|(_, number)| Signal::Other(*number));
    named.map(|(_, signal)| *signal).or(other)
}

/// The signal with this number.
pub(crate) fn from_any_number(wanted: i32) -> Option<Signal> {
    let named = NAMED.iter().find(|(_, signal)| number(*signal) == wanted);
    let is_other = OTHERS.iter().any(|(_, number)| *number == wanted);
    let other = is_other.then_some(Signal::Other(wanted));
    named.map(|(_, signal)| *signal).or(other)
}

/// The name of a [`Signal::Other`], without `SIG`.
pub(in crate::sys) fn name_of(wanted: i32) -> Option<&'static str> {
    let other = OTHERS.iter().find(|(_, number)| *number == wanted);
    other.map(|(name, _)| *name)
}

pub(in crate::sys) fn to_kernel(signal: Signal) -> KernelSignal {
    match signal {
        Signal::Abort => KernelSignal::ABORT,
        Signal::Continue => KernelSignal::CONT,
        Signal::Hangup | Signal::TerminalClosed => KernelSignal::HUP,
        Signal::Interrupt => KernelSignal::INT,
        Signal::Kill => KernelSignal::KILL,
        Signal::Quit => KernelSignal::QUIT,
        Signal::Stop => KernelSignal::STOP,
        Signal::Suspend => KernelSignal::TSTP,
        // Only Windows has the others.
        Signal::Terminate | Signal::ServiceStop | Signal::Shutdown(_) => KernelSignal::TERM,
        Signal::User1 => KernelSignal::USR1,
        Signal::User2 => KernelSignal::USR2,
        // The number is one of `OTHERS`, which the kernel names all.
        Signal::Other(number) => KernelSignal::from_named_raw(number).unwrap_or(KernelSignal::TERM),
    }
}

pub(in crate::sys) fn number(signal: Signal) -> libc::c_int {
    to_kernel(signal).as_raw()
}

/// The handled signal with this number. `None` for any other.
#[cfg_attr(not(feature = "signals"), allow(dead_code))]
pub(in crate::sys) fn from_number(wanted: libc::c_int) -> Option<Signal> {
    HANDLED.into_iter().find(|signal| number(*signal) == wanted)
}

/// Calls `deliver` for each signal, from a thread of its own. The bool says whether the process
/// ignored the signal when it started. If `deliver` returns false, the signal has its default
/// action, unless the process ignored it. There are no event objects for a prefix to name. To be
/// called once.
#[cfg(feature = "signals")]
pub(crate) fn install_handlers(
    _event_prefix: Option<&crate::sys::EventPrefix>,
    deliver: impl Fn(Signal, bool) -> bool + Clone + Send + Sync + 'static,
) -> std::io::Result<()> {
    use signal_hook::iterator::SignalsInfo;
    use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;

    // Asked before there are handlers.
    hangup_at_start();
    let ignored = HANDLED.map(is_ignored);
    let handle = move |signal| {
        let was_ignored = HANDLED
            .into_iter()
            .zip(ignored)
            .any(|(handled, is_ignored)| is_ignored && number(handled) == number(signal));
        if !deliver(signal, was_ignored) && !was_ignored {
            let number = number(signal);
            if let Err(error) = signal_hook::low_level::emulate_default_handler(number) {
                log::error!("cannot take the default action of {signal}: {error}");
            }
        }
    };
    let handle_ctrl_c = handle.clone();
    ctrlc::set_handler(move || handle_ctrl_c(Signal::Interrupt)).map_err(std::io::Error::other)?;
    let numbers = HANDLED.into_iter().map(number);
    let others = numbers.filter(|number| *number != libc::SIGINT);
    let mut signals = SignalsInfo::<WithRawSiginfo>::new(others)?;
    std::thread::Builder::new()
        .name("handover-signal".to_owned())
        .spawn(move || {
            let received = signals.forever().filter_map(|info| {
                // SAFETY: a signal that a process has sent has the process's id.
                #[allow(unsafe_code)]
                let sender = unsafe { info.si_pid() };
                signal_of(info.si_signo, info.si_code, sender)
            });
            received.for_each(handle);
        })?;
    Ok(())
}

// ---- SIGHUP ----

/// How a process stood to its terminal when it started.
#[derive(Clone, Copy, Debug)]
struct HangupAtStart {
    /// SIGHUP was ignored, as by `nohup`.
    was_ignored: bool,
    had_terminal: bool,
}

/// To be called before there is a handler.
fn hangup_at_start() -> HangupAtStart {
    static AT_START: OnceLock<HangupAtStart> = OnceLock::new();
    *AT_START.get_or_init(|| HangupAtStart {
        was_ignored: is_ignored(Signal::Hangup),
        had_terminal: has_terminal(),
    })
}

/// Whether SIGHUP was ignored when this process started. To be called before there is a handler.
pub(in crate::sys) fn was_hangup_ignored() -> bool {
    hangup_at_start().was_ignored
}

/// Whether this process has a controlling terminal (tty(4)). It has none any more after the terminal
/// was closed.
pub(super) fn has_terminal() -> bool {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    open("/dev/tty", flags, Mode::empty()).is_ok()
}

/// What a SIGHUP is known to come from.
#[derive(Clone, Copy, Debug)]
struct HangupOrigin {
    from_kernel: bool,
    /// From the first process of the session, such as the terminal's shell, and not from this one.
    from_session_leader: bool,
    /// This process had a terminal when it started, and has none now.
    has_lost_terminal: bool,
    was_ignored: bool,
}

/// The policy for SIGHUP: the kernel sends it when a terminal is closed, and then the terminal's
/// shell does. From anything else, it is a request. A terminal that is closed does nothing to a
/// process that ignored SIGHUP when it started.
fn classify_hangup(origin: HangupOrigin) -> Option<Signal> {
    let from_shell = origin.from_session_leader && origin.has_lost_terminal;
    match (origin.from_kernel || from_shell, origin.was_ignored) {
        (true, true) => None,
        (true, false) => Some(Signal::TerminalClosed),
        (false, _) => Some(Signal::Hangup),
    }
}

/// The handled signal that was received. `None` if it means nothing. `code` and `sender` are fields
/// of siginfo_t (sigaction(2)).
#[allow(unsafe_code)]
pub(in crate::sys) fn signal_of(
    number: libc::c_int,
    code: libc::c_int,
    sender: libc::pid_t,
) -> Option<Signal> {
    let signal = from_number(number)?;
    if signal != Signal::Hangup {
        return Some(signal);
    }
    // SAFETY: the calls take numbers only.
    let (leader, own) = unsafe { (libc::getsid(0), libc::getpid()) };
    let at_start = hangup_at_start();
    classify_hangup(HangupOrigin {
        from_kernel: is_from_kernel(code),
        from_session_leader: sender == leader && sender != own && sender != 0,
        has_lost_terminal: at_start.had_terminal && !has_terminal(),
        was_ignored: at_start.was_ignored,
    })
}

/// Whether this process ignores a signal.
#[allow(unsafe_code)]
fn is_ignored(signal: Signal) -> bool {
    disposition(number(signal)) == libc::SIG_IGN
}

// ---- the start of a process ----

/// The signals that [`record_signal`] has recorded, a bit for each number.
static RECORDED: AtomicU32 = AtomicU32::new(0);

/// Records the handled signals from now on, which [`spawn`](super::process::spawn) has blocked until
/// now, and unblocks them on this thread. Child processes neither block nor ignore them: an exec
/// gives a signal that has a handler its default action.
#[allow(unsafe_code)]
pub(crate) fn record() {
    hangup_at_start();
    // SAFETY: the structure is valid when it is zeroed, and the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = record_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        for number in HANDLED.map(number) {
            libc::sigaction(number, &action, std::ptr::null_mut());
        }
    }
    change_mask(libc::SIG_UNBLOCK, &handled_set());
}

/// Ends [`record`]. What was recorded happens now: its handler is called, or its default action
/// follows. True if a signal that means a stop was recorded.
#[allow(unsafe_code)]
pub(crate) fn release() -> bool {
    let own = record_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in HANDLED {
        let is_nohup = signal == Signal::Hangup && was_hangup_ignored();
        if disposition(number(signal)) == own {
            let action = if is_nohup {
                libc::SIG_IGN
            } else {
                libc::SIG_DFL
            };
            // SAFETY: the call takes numbers only.
            unsafe { libc::signal(number(signal), action) };
        }
    }
    let recorded = RECORDED.swap(0, SeqCst);
    let is_recorded = |signal: &Signal| recorded & (1 << number(*signal)) != 0;
    let signals: Vec<Signal> = HANDLED.into_iter().filter(is_recorded).collect();
    for signal in &signals {
        // SAFETY: the calls take numbers only.
        unsafe { libc::kill(libc::getpid(), number(*signal)) };
    }
    let is_stop = |signal| matches!(signal, Signal::Terminate | Signal::Interrupt | Signal::Quit);
    signals.into_iter().any(is_stop)
}

/// A handler. Async-signal-safe.
extern "C" fn record_signal(number: libc::c_int) {
    let own = record_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // A handler that was installed later may call this one too.
    if disposition(number) == own {
        RECORDED.fetch_or(1 << number, SeqCst);
    }
}

/// The action that a signal has: a handler, SIG_DFL or SIG_IGN. Async-signal-safe.
#[allow(unsafe_code)]
fn disposition(number: libc::c_int) -> libc::sighandler_t {
    // SAFETY: the call fills the structure, which is valid when it is zeroed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(number, std::ptr::null(), &mut action);
        action.sa_sigaction
    }
}

/// The set of the [`HANDLED`] signals.
pub(super) fn handled_set() -> libc::sigset_t {
    set_of(HANDLED.into_iter().map(number))
}

#[allow(unsafe_code)]
pub(in crate::sys) fn set_of(numbers: impl IntoIterator<Item = libc::c_int>) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the first call initialises the set, to which the second adds signals that exist.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for number in numbers {
            libc::sigaddset(set.as_mut_ptr(), number);
        }
        set.assume_init()
    }
}

/// Blocks every signal on this thread. Returns the signals that were blocked before.
#[allow(unsafe_code)]
pub(in crate::sys) fn block_all() -> libc::sigset_t {
    let mut all = set_of([]);
    // SAFETY: the call writes to a live set.
    unsafe { libc::sigfillset(&mut all) };
    change_mask(libc::SIG_SETMASK, &all)
}

/// The numbers of all signals. Where a system has fewer, calls for the others fail.
const NUMBERS: std::ops::RangeInclusive<libc::c_int> = 1..=64;

/// Gives each signal its default action, also those that this process, or the process that started
/// it, ignores: a Rust program ignores SIGPIPE, `nohup` SIGHUP, and a shell SIGINT and SIGQUIT in a
/// program that it starts in the background. A program would inherit this (execve(2)). A successor
/// of a program that `nohup` has started ignores SIGHUP too: what the program is to ignore is listed.
/// Async-signal-safe.
#[allow(unsafe_code)]
pub(super) fn reset_dispositions(ignored: &[libc::c_int]) {
    for number in NUMBERS {
        let action = match ignored.contains(&number) {
            true => libc::SIG_IGN,
            false => libc::SIG_DFL,
        };
        // SAFETY: the call takes numbers only. It fails for SIGKILL and SIGSTOP.
        unsafe { libc::signal(number, action) };
    }
}

/// Lets SIGCHLD interrupt a wait that unblocks it. Async-signal-safe.
pub(super) fn interrupt_waits_by_sigchld() {
    interrupt_waits_by(libc::SIGCHLD);
}

/// Lets a signal interrupt a wait, and do nothing else. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn interrupt_waits_by(number: libc::c_int) {
    extern "C" fn ignore(_number: libc::c_int) {}
    // SAFETY: the structure is valid when it is zeroed, and the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(number, &action, std::ptr::null_mut());
    }
}

/// The set of all signals but SIGCHLD. Async-signal-safe.
#[allow(unsafe_code)]
pub(super) fn all_but_sigchld() -> libc::sigset_t {
    let mut set = set_of([]);
    // SAFETY: the calls write to a live set.
    unsafe {
        libc::sigfillset(&mut set);
        libc::sigdelset(&mut set, libc::SIGCHLD);
    }
    set
}

/// Changes which signals this thread blocks (pthread_sigmask(3)). Returns the set before the
/// change. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn change_mask(how: libc::c_int, set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = set_of([]);
    // SAFETY: both sets are alive. With a valid `how`, the call succeeds.
    unsafe { libc::pthread_sigmask(how, set, &mut before) };
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_is_a_request_unless_the_terminal_was_closed() {
        let closed = Some(Signal::TerminalClosed);
        for (from_kernel, from_session_leader, has_lost_terminal, was_ignored, wanted) in [
            // `kill -HUP`, from anywhere.
            (false, false, false, false, Some(Signal::Hangup)),
            (false, false, false, true, Some(Signal::Hangup)),
            // The same after a logout which left the process alone (`disown`).
            (false, false, true, false, Some(Signal::Hangup)),
            // `kill -HUP %1` in the shell, or in a script that is the container's first process.
            (false, true, false, false, Some(Signal::Hangup)),
            // The terminal was closed.
            (true, false, false, false, closed),
            (true, false, true, false, closed),
            (false, true, true, false, closed),
            // The same, under `nohup`.
            (true, false, true, true, None),
            (false, true, true, true, None),
        ] {
            let origin = HangupOrigin {
                from_kernel,
                from_session_leader,
                has_lost_terminal,
                was_ignored,
            };
            assert_eq!(classify_hangup(origin), wanted, "{origin:?}");
        }
    }
}
