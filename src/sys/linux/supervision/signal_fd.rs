//! Linux: the signals of a supervisor, as a descriptor.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::sys::{Signal, signal};

/// The handled signals, blocked, and read from a descriptor (signalfd(2)). SIGCHLD only ends a
/// wait.
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks the signals on this thread, which should be the only one.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if this is not the process's main thread.
    #[allow(unsafe_code)]
    pub(crate) fn open() -> io::Result<Self> {
        if rustix::thread::gettid() != rustix::process::getpid() {
            let text = "a supervisor has to be on the process's main thread";
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let numbers = signal::HANDLED.into_iter().map(signal::number);
        let set = signal::set_of(numbers.chain([libc::SIGCHLD]));
        // SAFETY: the set is alive, the numbers are valid, and the descriptor has no other owner.
        unsafe {
            // The process that started this one may ignore SIGCHLD, which is inherited. Then no
            // child could be reaped.
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(OwnedFd::from_raw_fd(fd))),
            }
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Reads a pending signal, other than SIGCHLD. `None` if there is none.
    #[allow(unsafe_code)]
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        loop {
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the call writes at most `size` bytes, and without an error fills the buffer.
            let number = unsafe {
                if libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) < 0 {
                    match io::Error::last_os_error() {
                        error if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                        error if error.kind() == ErrorKind::Interrupted => continue,
                        error => return Err(error),
                    }
                }
                info.assume_init().ssi_signo
            };
            if let Some(signal) = signal::from_number(number as libc::c_int) {
                return Ok(Some(signal));
            }
        }
    }
}
