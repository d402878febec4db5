//! Linux: a handle of a process.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, kill_process, pidfd_open, pidfd_send_signal, test_kill_process};

use super::kernel_pid;
use crate::sys::{Signal, signal};

/// A process, even when another process has got its id (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    pid: u32,
    /// `None` before Linux 5.3: then the id alone tells the process.
    pub(super) fd: Option<OwnedFd>,
}

impl ProcessWatch {
    /// The process must not be reaped yet.
    pub(crate) fn open(pid: u32) -> Self {
        let fd = kernel_pid(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { pid, fd }
    }

    pub(crate) fn send_signal(&self, signal: Signal) -> io::Result<()> {
        let signal = signal::to_kernel(signal);
        match (&self.fd, kernel_pid(self.pid)) {
            (Some(fd), _) => Ok(pidfd_send_signal(fd, signal)?),
            (None, Some(pid)) => Ok(kill_process(pid, signal)?),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Waits for the end of the process. False if it has not ended in time.
    pub(crate) fn wait_for_end(&self, timeout: Duration) -> bool {
        let Some(fd) = &self.fd else {
            return true;
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        // A time-out too long for the call is none.
        let timeout = Timespec::try_from(timeout).ok();
        // A signal ends the wait early; the caller waits again.
        matches!(poll(&mut fds, timeout.as_ref()), Ok(1))
    }

    /// `None`: the status of a child is known when it is reaped, and that of another process never.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        None
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.fd {
            Some(fd) => {
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
            }
            None => kernel_pid(self.pid).is_none_or(|pid| test_kill_process(pid).is_err()),
        }
    }
}
