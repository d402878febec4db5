//! Unix: signals, and which of them a thread blocks.

use std::mem::MaybeUninit;

use rustix::process::Signal as KernelSignal;

#[cfg(feature = "signals")]
use crate::log;
use crate::sys::Signal;

/// The signals that a program of this crate handles. They are blocked while it starts, so that none
/// of them ends it before it can handle them.
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
        Signal::Hangup => KernelSignal::HUP,
        Signal::Interrupt => KernelSignal::INT,
        Signal::Kill => KernelSignal::KILL,
        Signal::Quit => KernelSignal::QUIT,
        Signal::Terminate => KernelSignal::TERM,
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

/// Calls `deliver` for each signal that this process gets, from a thread of its own, until the
/// process ends. Where `deliver` returns false, the signal's default action follows. To be called
/// once.
#[cfg(feature = "signals")]
pub(crate) fn install_handlers(
    deliver: impl Fn(Signal) -> bool + Clone + Send + 'static,
) -> std::io::Result<()> {
    let handle = move |signal| {
        if !deliver(signal) {
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
    let mut signals = signal_hook::iterator::Signals::new(others)?;
    std::thread::Builder::new()
        .name("handover-signal".to_owned())
        .spawn(move || signals.forever().filter_map(from_number).for_each(handle))?;
    Ok(())
}

/// Unblocks the handled signals, which [`spawn`](super::process::spawn) has blocked, on this thread
/// and on those that it starts from now on. True if a signal that means a stop was pending.
#[allow(unsafe_code)]
pub(crate) fn unblock() -> bool {
    let mut pending = set_of([]);
    // SAFETY: the call writes to a live set.
    unsafe { libc::sigpending(&mut pending) };
    change_mask(libc::SIG_UNBLOCK, &handled_set());
    let stops = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
    // SAFETY: the set and the numbers are valid.
    let is_pending = |signal| unsafe { libc::sigismember(&pending, signal) } == 1;
    stops.into_iter().any(is_pending)
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
pub(super) fn block_all() -> libc::sigset_t {
    let mut all = set_of([]);
    // SAFETY: the call writes to a live set.
    unsafe { libc::sigfillset(&mut all) };
    change_mask(libc::SIG_SETMASK, &all)
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
