//! Everything that differs by platform or needs `unsafe`, behind one contract.
//!
//! Each platform's modules provide the same names with the same signatures:
//!
//! | name | contract |
//! |---|---|
//! | [`Poller`] | readiness of many sockets, by token (below) |
//! | [`Events`] | the reusable buffer that a wait fills |
//! | [`wait_ready`] | wait until one socket is readable or writable, or a time-out has passed |
//! | [`WAIT_SLICE`] | how long such a wait may last at most before its caller must look around |
//! | [`coarse_millis`] | a monotonic clock in milliseconds that costs next to nothing |
//! | [`accept`] | one connection: non-blocking, not inherited by child processes; with the peer's address unless it is a Unix socket's |
//! | [`keep_from_children`] | child processes do not inherit the socket; for sockets that were not made here |
//! | [`ACCEPT_INHERITS`], [`is_listening_stream`], [`is_of_one_connection`] | what is known of a listener and of its errors |
//! | [`recv`], [`send`], [`send_vectored`] | one system call (more only when interrupted), never a signal |
//! | [`send_file`] | a file's next bytes without a copy; `None` where the system does not do it, or not for this file |
//! | [`unix_socket`] and the `unix_path` functions | Unix stream sockets, or a clear error where there are none |
//! | [`into_stream`] | the std socket inside |
//! | [`watch_signals`] | the process's signals |
//! | [`start`], [`Process`] | a child process with exactly the descriptors that it is given, and its end |
//! | [`adopt`], [`release_signals`], [`set_stderr`] | what such a child does with what it finds |
//! | [`message_pair`], [`receive_message`], [`send_message`], [`receive_descriptor`], [`notify`] | messages between processes |
//! | [`start_child`], [`reap`], [`PidFd`], [`SignalFd`], [`NotifySocket`] and what stands beside them | what a process needs to look after others |
//! | [`RESTARTS`], [`SUPERVISES`] | whether there is any of that; elsewhere all of it is a clear error |
//!
//! # The poller
//!
//! `add` watches a socket for reading, and reports at once what is already there. On platforms where
//! [`Poller::SHARED`] holds, any number of threads may wait at the same time, an event wakes one of them, and
//! a socket stays watched, edge-triggered, until `remove`. Elsewhere only one thread may wait, and an event
//! disarms its socket until `rearm`. So the caller calls `rearm` before it waits again wherever `SHARED` does
//! not hold, and everywhere when the interest changes; a `rearm` reports what is already there. `wake` ends one
//! wait, now or the next one; wake-ups before a wait may merge into one. Closing a socket without `remove` is
//! an error of the caller: another process may hold the same open file description.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    not(handover_one_waiter)
))]
mod epoll;
#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    not(handover_one_waiter)
))]
pub(crate) use epoll::{Events, Poller};

#[cfg(any(
    not(any(target_os = "linux", target_os = "android")),
    handover_one_waiter
))]
mod one_waiter;
#[cfg(any(
    not(any(target_os = "linux", target_os = "android")),
    handover_one_waiter
))]
pub(crate) use one_waiter::{Events, Poller};

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(unix)]
pub use unix::{Descriptor, Stream};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod supervision;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use supervision::*;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod no_supervision;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use no_supervision::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;
#[cfg(windows)]
pub use windows::{Descriptor, Stream};

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
    /// The peer will send no more: a read that came up short may have the end of the stream behind it.
    pub(crate) hangup: bool,
}

/// What [`wait_ready`] found. Errors and hang-ups count as both, so that the next call reports them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

/// A signal that this crate sends or handles. On Windows only [`Interrupt`](Self::Interrupt) occurs: Ctrl-C.
#[cfg_attr(windows, allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Abort,
    Hangup,
    Interrupt,
    Kill,
    Quit,
    Terminate,
    User1,
    User2,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abort => "SIGABRT",
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Kill => "SIGKILL",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        })
    }
}

/// What a process has said to its supervisor (sd_notify(3)).
#[derive(Debug)]
pub(crate) struct Datagram {
    /// Who said it, as the kernel knows.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) text: String,
    pub(crate) descriptors: Vec<Descriptor>,
}

/// What stands at the path of a Unix socket that is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) enum PathState {
    Free,
    /// A socket that nobody listens on any more.
    Stale,
    /// A socket with a live server behind it.
    Live,
    /// Something that is no socket; it is somebody's, and not ours to remove.
    Foreign,
}

/// How a program is to be started.
#[cfg_attr(windows, allow(dead_code))]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    /// The first one is the program's name.
    pub(crate) args: &'a [OsString],
    /// `NAME=value`.
    pub(crate) env: &'a [OsString],
    pub(crate) env_with_pid: &'a [PidVariable],
    pub(crate) dir: &'a Path,
    /// They become its descriptors 3, 4, and so on; it gets no others but standard input and output.
    pub(crate) descriptors: &'a [Descriptor],
    /// Its standard error; the present one if there is none.
    pub(crate) stderr: Option<&'a Descriptor>,
}

/// An environment variable whose value contains the id of the new process: `prefix`, the id in
/// decimal digits, `suffix`. Where `suffix` is not empty, spaces fill the digits up to the longest
/// id, as the place of `suffix` is chosen before the id is known.
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

/// The first descriptor that is passed on, as systemd has it (sd_listen_fds(3)).
pub(crate) const FIRST_PASSED: i32 = 3;

/// A duration as the milliseconds that `poll`-like calls take: rounded up, so that a wait never ends early.
#[cfg_attr(not(unix), allow(dead_code))]
fn millis_up(duration: Duration) -> i32 {
    i32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}
