//! Windows: what a supervisor needs. One wait reports the ends of processes, what stands for
//! signals, notifications and the requests of control clients: see [`port`].
//!
//! | Unix | here |
//! |---|---|
//! | the guardian | a [job object](guardian), which ends all processes with the supervisor |
//! | process groups | none: what a process leaves behind ends with the supervisor |
//! | the notification socket, the control socket | [named pipes](crate::sys::unix::pipe) |
//! | signals to processes | [event objects](send_signal), and TerminateProcess |
//! | users, output files, upgrades | none |

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use socket2::Socket;

use crate::sys::Interest;
pub(crate) use crate::sys::native::linux_only::*;

mod control;
mod guardian;
mod notify_socket;
mod port;
mod process_facts;
mod process_watch;
mod signal_fd;

pub(crate) use control::{ControlPipe, ControlStream};
pub(crate) use guardian::Guardian;
pub(crate) use notify_socket::{NotifySocket, TakenNotification};
pub(crate) use process_facts::{age_of, is_descendant, parent_of, resident_size};
pub(crate) use process_watch::ProcessWatch;
pub(crate) use signal_fd::SignalFd;

pub(crate) const IS_SUPPORTED: bool = true;
pub(crate) const HAS_PROCESS_GROUPS: bool = false;
pub(crate) const SIGNALS_ARE_FATAL: bool = false;
pub(crate) const UNSUPPORTED_SETTINGS: &[&str] = &[
    "user",
    "group",
    "control_mode",
    "control_group",
    "stderr_file",
    "stdout_file",
];

/// Something that [`wait_for_any`] waits for. What makes it ready also [wakes](port::wake) the
/// wait.
pub(crate) trait IsReady {
    fn is_ready(&self, interest: Interest) -> bool;
}

pub(crate) type Source<'a> = &'a dyn IsReady;

/// No socket is waited for here.
impl IsReady for Socket {
    fn is_ready(&self, _interest: Interest) -> bool {
        false
    }
}

pub(crate) fn source_of(socket: &Socket) -> Source<'_> {
    socket
}

/// Children that lose their parent stay in the job of the supervisor: nothing is to be done.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(())
}

/// Waits for a signal, for a source that is ready, for the end of a process, or for the time-out.
pub(crate) fn wait_for_any<'a>(
    signals: &SignalFd,
    sources: &[(Source<'_>, Interest)],
    processes: impl Iterator<Item = &'a ProcessWatch>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let processes: Vec<_> = processes.collect();
    processes.iter().for_each(|process| process.report_end());
    // The port reports an end once, and may have done so while the caller was busy.
    port::deliver()?;
    let is_over = processes
        .iter()
        .any(|process| process.is_known_to_have_ended());
    let is_ready = |(source, interest): &(Source<'_>, Interest)| source.is_ready(*interest);
    match is_over || signals.is_ready() || sources.iter().any(is_ready) {
        true => Ok(()),
        false => port::wait(timeout).map(drop),
    }
}

/// Reaps a child that has ended. `None` if there is none.
pub(crate) fn reap_child() -> io::Result<Option<(u32, ExitStatus)>> {
    super::process::reap_child()
}

/// Whether the process is a child of this one, running or not reaped yet.
pub(crate) fn is_child(pid: u32) -> bool {
    super::process::is_child(pid)
}
