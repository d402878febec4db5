//! Everything that differs by platform or needs `unsafe`, behind one contract.
//!
//! Every platform has these modules, with the same names and signatures:
//!
//! | module | contract |
//! |---|---|
//! | `poller` | [`Poller`] tells which of many sockets are ready (see below) |
//! | `socket` | waits for one socket, accepts, receives, sends, sets options |
//! | `clock` | monotonic time: coarse and cheap, or the same for all processes; what a thread has used |
//! | `signal` | the signals of this process; on Windows, event objects and console events |
//! | `service` | the service control manager of Windows (feature `windows-service`) |
//! | `process` | starts a program with exactly the descriptors that it is given |
//! | `descriptor` | descriptors that cross an exec, pipes, standard error |
//! | `directory` | [`DirectoryEntry`]: a file is changed and removed in the directory where it was found |
//! | `file` | unnamed files, file locks, identity, opens that never wait, the files of Unix sockets |
//! | `limits` | the limit of open descriptors |
//! | `message` | messages between processes, with descriptors or connections, and notifications (sd_notify(3)) |
//! | `scheduling` | whether a wake-up of a thread interrupts others |
//! | `supervision` | for a supervisor: children, [`ProcessWatch`], [`SignalFd`], [`NotifySocket`], control clients, [`Guardian`](supervision::Guardian), [`LogWriter`](supervision::LogWriter), users |
//! | `control_client` | the client's end of a control socket |
//!
//! These rules hold for all of them:
//!
//! - A receive or send is one system call, which is repeated only if a signal interrupts it. A send
//!   raises no SIGPIPE. A message between processes takes several calls on systems whose sockets
//!   do not keep messages apart: see `other/packet.rs`.
//! - A child process inherits no descriptor that is made here. Apple's systems make a descriptor
//!   and set its flag in two steps, and Windows does so with a socket that another process passes;
//!   there this holds for the programs that this crate starts.
//! - What a system lacks is an error of the kind `Unsupported`. [`process::SUPPORTS_RESTARTS`],
//!   [`message::PASSES_CONNECTIONS`] and [`supervision::IS_SUPPORTED`] tell this in advance.
//!
//! # The folders
//!
//! | folder | compiled on | provides |
//! |---|---|---|
//! | `unix/` | Unix | all modules but `poller`, `scheduling` and `supervision` |
//! | `windows/` | Windows | the same, `poller` and `supervision` |
//! | `linux/` | Linux and Android | those three, and calls that only Linux has |
//! | `other/` | every other system | the same names: portable substitutes, or errors |
//!
//! # The poller
//!
//! `add` watches a socket for reading, and reports at once if the socket is readable already.
//!
//! | | if [`Poller::SHARED`] | else |
//! |---|---|---|
//! | threads that may wait | any number; an event wakes one of them | one |
//!
//! | | if [`Poller::REPORTS_ONCE`] | else |
//! |---|---|---|
//! | a socket after an event | disarmed until `rearm` | watched, edge-triggered, until `remove` |
//! | the caller calls `rearm` | also after each event | to change the interest |
//!
//! | | `SHARED` | `REPORTS_ONCE` |
//! |---|---|---|
//! | Linux (epoll) | yes | no |
//! | Windows (a completion port) | yes | yes |
//! | other systems (`polling`) | no | yes |
//!
//! `add_shared` is an `add` for a listener that several processes watch. Where the system can, a
//! connection wakes only one of the threads that wait, and is reported to no other process. The
//! process that gets the report has to accept the connection. Unless the poller reports once, the
//! caller must not call `rearm` for a listener that was added by `add_shared`.
//!
//! A `rearm` reports at once if the socket is ready already. `wake` ends one wait, the present one
//! or the next; several calls before a wait may end only one. The caller calls `remove` before it
//! closes a socket, because another process may hold the same open file description.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

// The platform is chosen here and nowhere else. Where the condition holds, the path replaces the
// folder of the module's name.
#[cfg_attr(
    not(any(target_os = "linux", target_os = "android")),
    path = "other/mod.rs"
)]
mod linux;
#[cfg(test)]
mod tests;
#[cfg_attr(windows, path = "windows/mod.rs")]
mod unix;

use linux as native;

pub(crate) use linux::{poller, scheduling, supervision};
#[cfg(feature = "windows-service")]
pub(crate) use unix::service;
pub(crate) use unix::{
    clock, descriptor, directory, file, limits, message, process, signal, socket,
};

mod event_prefix;

pub use descriptor::Descriptor;
pub(crate) use directory::{DirectoryEntry, FoundFile};
pub(crate) use event_prefix::EventPrefix;
pub(crate) use poller::{Events, Poller};
pub(crate) use process::Process;
pub use socket::Stream;
pub(crate) use supervision::{NotifySocket, ProcessWatch, SignalFd};
pub use unix::control_client::ControlClient;

/// What a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    Both,
}

/// One report of a [`Poller`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) token: u64,
    /// The peer will send no more, or has sent urgent data: behind a short read, there may be the
    /// end of the stream, or more bytes.
    pub(crate) hangup: bool,
}

/// What an error of [`socket::accept`] concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptErrorKind {
    /// No connection waits.
    Empty,
    /// One connection, which has left the queue. The next one may be accepted.
    Connection,
    /// The process or the system: descriptors or memory are lacking.
    Shortage,
    /// The listener.
    Listener,
}

/// What the peer has done to a connection.
#[cfg_attr(not(unix), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerState {
    Open,
    /// The peer has ended its side: it sends no more, but may still read.
    Ended,
    /// The connection was reset.
    Reset,
}

/// What to do if another process has locked a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IfLocked {
    /// Wait for up to a second, and then go on without the lock. For the start of a process.
    #[default]
    Wait,
    /// Go on without the lock.
    Ignore,
    /// Give up, with an error of the kind `WouldBlock`.
    Fail,
}

/// What a thread has used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ThreadUsage {
    /// CPU time, in nanoseconds.
    pub(crate) cpu: u64,
    /// How often the thread has given up its CPU by itself: to sleep, to wait, to lock.
    pub(crate) waits: u64,
}

/// The result of [`socket::wait_ready`]. Errors and hang-ups count as both, so that the next call
/// reports them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// A signal that this crate sends or handles. On Windows, event objects and console events stand
/// for signals.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Abort,
    Continue,
    Hangup,
    Interrupt,
    Kill,
    Quit,
    /// The service control manager of Windows stops the service. Not on other systems.
    ServiceStop,
    /// The system shuts down, and ends this process after this time. On Windows only.
    Shutdown(Duration),
    Stop,
    Suspend,
    /// SIGHUP as [`Hangup`](Self::Hangup), but because the terminal of this process was closed.
    TerminalClosed,
    Terminate,
    User1,
    User2,
    /// Any other signal that the system names, for a program of another kind. Only
    /// [`signal::from_name`] and [`signal::from_any_number`] make it.
    Other(i32),
}

impl Signal {
    /// How long the process may go on after this signal, where the system ends it by itself.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    pub(crate) fn time_left(self) -> Option<Duration> {
        match self {
            Self::Shutdown(limit) => Some(limit),
            Self::TerminalClosed => signal::TERMINAL_CLOSE_LIMIT,
            _ => None,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = signal::local_name(*self) {
            return f.write_str(name);
        }
        f.write_str(match self {
            Self::Other(number) => {
                let name = signal::name_of(*number).unwrap_or("?");
                return write!(f, "SIG{name}");
            }
            Self::Abort => "SIGABRT",
            Self::Continue => "SIGCONT",
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Kill => "SIGKILL",
            Self::Quit => "SIGQUIT",
            Self::ServiceStop => "service stop",
            Self::Shutdown(_) => "system shutdown",
            Self::Stop => "SIGSTOP",
            Self::Suspend => "SIGTSTP",
            Self::TerminalClosed => "SIGHUP, as the terminal was closed",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        })
    }
}

/// A datagram in the queue of a [`NotifySocket`]: a notification (sd_notify(3)) and its sender.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The process that sent it, as the kernel reports; 0 for one outside of this process's pid
    /// namespace.
    pub(crate) pid: u32,
    /// The user of that process.
    pub(crate) uid: u32,
    pub(crate) text: String,
    pub(crate) has_descriptors: bool,
}

/// What a [`LogWriter`](supervision::LogWriter) reports.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
#[derive(Debug)]
pub(crate) enum LogReport {
    /// The file was opened again, or could not be: then the log goes to the file before.
    Reopened(io::Result<()>),
    /// The file has not taken this many lines since the last report.
    Lost { lines: u64, error: io::Error },
    /// What was in the pipe is written.
    Drained,
}

/// How a program is started.
#[cfg_attr(windows, allow(dead_code))]
pub(crate) struct SpawnOptions<'a> {
    pub(crate) program: &'a Path,
    /// The arguments; the first is the program's name.
    pub(crate) args: &'a [OsString],
    /// The environment, as entries `NAME=value`.
    pub(crate) env: &'a [OsString],
    /// Further entries of the environment.
    pub(crate) env_with_pid: &'a [PidVariable],
    /// The working directory. Defaults to that of this process.
    pub(crate) dir: Option<&'a Path>,
    /// The program gets them as its descriptors 3, 4, and so on. Beside them it gets standard
    /// input, output and error only.
    pub(crate) descriptors: &'a [Descriptor],
    /// Standard input. Defaults to that of this process.
    pub(crate) stdin: Option<&'a Descriptor>,
    /// Standard output. Defaults to that of this process.
    pub(crate) stdout: Option<&'a Descriptor>,
    /// Standard error. Defaults to that of this process.
    pub(crate) stderr: Option<&'a Descriptor>,
    /// The user and the groups. Defaults to those of this process.
    pub(crate) identity: Option<&'a Identity>,
    /// The program is in a process group of its own, which has its process id.
    pub(crate) own_group: bool,
    /// Where the new process says that it is there: see [`Guardian`](supervision::Guardian). Then it
    /// gets no signal when its parent ends.
    pub(crate) guardian: Option<&'a supervision::Guardian>,
    /// Ends the program if it is still starting when its parent has died.
    pub(crate) start_guard: Option<StartGuard<'a>>,
}

/// Bounds the start of a program whose parent dies meanwhile. The program calls
/// [`process::begin_start`] as soon as it can, and [`process::end_start`] when it has started.
#[cfg_attr(windows, allow(dead_code))]
#[derive(Clone, Copy)]
pub(crate) struct StartGuard<'a> {
    /// The reading end of a pipe. The program holds the writing end, and passes it to
    /// [`process::end_start`].
    pub(crate) pipe: &'a Descriptor,
    /// How long the start may take.
    pub(crate) limit: Duration,
}

/// What is to be ended when the supervisor has died: a process and its group, or a group alone.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded {
    pub(crate) process: Option<u32>,
    pub(crate) group: Option<u32>,
    /// The supervisor has started the process, so that the kernel sends the process SIGTERM.
    pub(crate) is_own_child: bool,
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
impl Guarded {
    pub(crate) fn group(group: u32) -> Self {
        Self {
            process: None,
            group: Some(group),
            is_own_child: false,
        }
    }
}

/// The user and the groups that a program is started as.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// `None` if the program keeps those of this process.
    pub(crate) credentials: Option<Credentials>,
    /// What the user database says of the user. `None` if the user stays.
    pub(crate) login: Option<Login>,
    /// No program that the process starts gets other privileges than the process has.
    pub(crate) no_new_privileges: bool,
}

/// See credentials(7).
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The supplementary groups.
    pub(crate) groups: Vec<u32>,
}

/// What the environment says of a user (environ(7)).
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// An environment variable whose value contains the id of the new process: `prefix`, the id in
/// decimal digits, `suffix`. Where `suffix` is not empty, spaces fill the digits up to the longest
/// id, because the place of `suffix` is chosen before the id is known.
#[cfg_attr(windows, allow(dead_code))]
pub(crate) struct PidVariable {
    /// `NAME=` and the beginning of the value.
    prefix: OsString,
    suffix: OsString,
}

impl PidVariable {
    pub(crate) fn new(prefix: impl Into<OsString>, suffix: impl Into<OsString>) -> Self {
        let (prefix, suffix) = (prefix.into(), suffix.into());
        Self { prefix, suffix }
    }
}

/// The entry `NAME=value` of an environment.
pub(crate) fn env_entry(name: &OsStr, value: &OsStr) -> OsString {
    let mut entry = name.to_owned();
    entry.push("=");
    entry.push(value);
    entry
}

/// What is known of a [`Process`].
#[cfg_attr(windows, allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum ProcessState {
    Running,
    Ended(ExitStatus),
    /// Nothing is left that could tell whether and how the process has ended.
    Unknown,
}

impl ProcessState {
    pub(crate) fn exit_status(self) -> Option<ExitStatus> {
        match self {
            Self::Ended(status) => Some(status),
            Self::Running | Self::Unknown => None,
        }
    }
}

/// The status of this process for the service control manager (SERVICE_STATUS).
#[cfg(feature = "windows-service")]
#[cfg_attr(not(windows), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServiceStatus {
    pub(crate) state: ServiceState,
    /// Grows while the service makes progress with its start or stop.
    pub(crate) checkpoint: u32,
    /// How long it may take until the next checkpoint or state.
    pub(crate) wait_hint: Duration,
    /// The exit code of a service that has stopped; 0 before.
    pub(crate) exit_code: u32,
}

/// The state of a service. Only a running one accepts a request to stop.
#[cfg(feature = "windows-service")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceState {
    Starting,
    Running,
    Stopping,
    Stopped,
}

/// The number of the first descriptor that is passed to a program (sd_listen_fds(3)).
pub(crate) const FIRST_PASSED: i32 = 3;
