//! Linux: the signals of a supervisor, as a descriptor.

use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};

use crate::sys::unix::check;
use crate::sys::{EventPrefix, Signal, signal};

/// The handled signals, blocked, and read from a descriptor (signalfd(2)). SIGCHLD only ends a
/// wait.
#[derive(Debug)]
pub(crate) struct SignalFd(pub(super) OwnedFd);

impl SignalFd {
    /// Blocks the signals on this thread, which should be the only one. There are no event objects
    /// here.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if this is not the process's main thread.
    #[allow(unsafe_code)]
    pub(crate) fn open(_event_prefix: Option<&EventPrefix>) -> io::Result<Self> {
        if rustix::thread::gettid() != rustix::process::getpid() {
            let text = "a supervisor has to be on the process's main thread";
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        // Asked before the dispositions change.
        signal::was_hangup_ignored();
        let numbers = signal::HANDLED.into_iter().map(signal::number);
        let set = signal::set_of(numbers.chain([libc::SIGCHLD, libc::SIGTSTP]));
        signal::change_mask(libc::SIG_BLOCK, &set);
        // SAFETY: the set is alive, the numbers are valid, and the descriptor has no other owner.
        unsafe {
            // The process that started this one may ignore SIGCHLD, which is inherited. Then no
            // child could be reaped.
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            let fd = check(libc::signalfd(-1, &set, flags))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// How the names of the event objects of this process begin. `None`: it has none.
    pub(crate) fn event_names(&self) -> Option<String> {
        None
    }

    /// Reads a pending signal, other than SIGCHLD. `None` if there is none.
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        loop {
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            match retry_on_intr(|| rustix::io::read(&self.0, &mut info)) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // The first fields are the number of the signal, an error, the code, and the sender.
            let field = |index: usize| {
                let bytes = info[index * 4..].first_chunk();
                bytes.copied().map_or(0, i32::from_ne_bytes)
            };
            let signal = match field(0) {
                libc::SIGTSTP => Some(Signal::Suspend),
                number => signal::signal_of(number, field(2), field(3)),
            };
            if signal.is_some() {
                return Ok(signal);
            }
        }
    }
}
