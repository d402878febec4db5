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

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use super::unsupported_error;
use crate::sys::{Credentials, Descriptor, Identity, Interest, LogReport, Signal};

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
pub(crate) const SUPPORTS_UPGRADES: bool = false;
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

// ---- what this system does not have ----

pub(crate) fn find_identity(
    _user: Option<&str>,
    _group: Option<&str>,
    _no_new_privileges: bool,
) -> io::Result<Identity> {
    Err(unsupported_error("no program gets another user on Windows"))
}

pub(crate) fn find_group(_group: &str) -> io::Result<u32> {
    Err(unsupported_error(
        "there are no numbers of groups on Windows",
    ))
}

pub(crate) fn has_group(_group: u32) -> bool {
    false
}

pub(crate) fn group_of(_pid: u32) -> Option<u32> {
    None
}

pub(crate) fn signal_group(_group: u32, _signal: Signal) -> io::Result<()> {
    Err(unsupported_error("there are no process groups on Windows"))
}

pub(crate) fn may_signal(_pid: u32) -> bool {
    false
}

pub(crate) fn page_size() -> u64 {
    1
}

pub(crate) fn mask_bit(_signal: Signal) -> u64 {
    0
}

pub(crate) fn time_since_tick(_ticks: u64) -> Duration {
    Duration::ZERO
}

pub(crate) fn suspend() {}

pub(crate) fn allow_interrupts() {}

pub(crate) fn interrupt(_thread: &JoinHandle<()>) {}

pub(crate) fn open_log_file(_path: &Path) -> io::Result<File> {
    Err(no_log_writer_error())
}

pub(crate) fn prepare_log_pipe(
    _writer: &Descriptor,
    _owner: Option<&Credentials>,
) -> io::Result<()> {
    Err(no_log_writer_error())
}

fn no_log_writer_error() -> io::Error {
    unsupported_error("the output of processes cannot be written to files on Windows")
}

#[derive(Debug)]
pub(crate) enum LogWriter {}

impl LogWriter {
    pub(crate) fn start(_input: &Descriptor, _file: Option<&File>) -> io::Result<Self> {
        Err(no_log_writer_error())
    }

    pub(crate) fn resume(_pid: u32, _socket: i32) -> io::Result<Self> {
        Err(no_log_writer_error())
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn socket(&self) -> &Socket {
        match *self {}
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match *self {}
    }

    pub(crate) fn reopen(&self, _path: &Path) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn drain(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn receive(&self) -> Option<LogReport> {
        match *self {}
    }
}
