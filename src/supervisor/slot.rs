//! Slots, one for each process that is to serve, and the state of the processes in them.
//!
//! A process is in one of four stages. Its one `deadline` has another meaning in each of them:
//!
//! | stage | recognised by | `deadline` | when the deadline has passed |
//! |---|---|---|---|
//! | starting | no other row applies | ready by | abort; with `ready_after`: serving |
//! | serving | `ready_since` | never | |
//! | stopping | `stopping` | exited by | abort |
//! | aborted | `aborted`, whatever else is set | exited by | kill |
//!
//! A starting successor whose predecessor watches over it has no deadline. While the supervisor
//! stops, processes that are not aborted have none either: `Run::shutdown` has one for all.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::listeners::ListenerId;
use crate::clock::Deadline;
use crate::log;
use crate::sys::{PidFd, Signal};

/// A place for one serving process.
#[derive(Debug, Default)]
pub(super) struct ProcessSlot {
    /// The process that serves, or that is being started to serve.
    pub(super) current: Option<SupervisedProcess>,
    /// The process that replaces `current` as soon as it is ready.
    pub(super) successor: Option<SupervisedProcess>,
    /// When a process is to be started here; never, if none is to be.
    pub(super) start_at: Deadline,
    pub(super) backoff: Backoff,
    /// The generation of the process that was started last.
    pub(super) generation: u64,
    /// Number of starts because the process before had exited.
    pub(super) restarts: u64,
    /// Why the slot last lost its process: the process exited or stopped without having been asked
    /// to, or could not be started.
    pub(super) last_failure: Option<String>,
}

impl ProcessSlot {
    pub(super) fn new(start_at: Deadline) -> Self {
        Self {
            start_at,
            ..Self::default()
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.ready_since.is_some())
    }

    /// No process is here, and none is to be started.
    pub(super) fn is_down(&self) -> bool {
        self.current.is_none() && self.successor.is_none() && self.start_at == Deadline::NEVER
    }

    pub(super) fn current_pid(&self) -> Option<u32> {
        self.current.as_ref().map(|current| current.pid)
    }
}

/// A process that the supervisor watches.
#[derive(Debug)]
pub(super) struct SupervisedProcess {
    pub(super) pid: u32,
    pub(super) pidfd: PidFd,
    /// The supervisor started this process. Any other process was started by its predecessor, which
    /// reaps it if it exits while the predecessor lives.
    pub(super) started_here: bool,
    pub(super) generation: u64,
    /// When the supervisor started this process, or first heard of it.
    pub(super) started_at: Instant,
    pub(super) ready_since: Option<Instant>,
    /// The process starts its successors itself: to restart it, the supervisor sends SIGHUP.
    pub(super) starts_successors: bool,
    /// The longest time between two watchdog notifications, as the process was told at its start.
    pub(super) watchdog: Option<Duration>,
    /// When the last watchdog notification came. There is no limit before the first one.
    pub(super) last_watchdog: Option<Instant>,
    /// See the table at the head of this file.
    pub(super) deadline: Deadline,
    /// SIGABRT was sent: the process missed a deadline or made no progress.
    pub(super) aborted: bool,
    /// SIGTERM was sent, or the process has notified us that it stops.
    pub(super) stopping: bool,
    /// This process stopped by itself. In the slot of this index, another process is started
    /// instead.
    pub(super) replaced_in: Option<usize>,
    /// The last `STATUS=` notification.
    pub(super) status: String,
    /// The listeners that this process uses, of those that the supervisor holds.
    pub(super) listeners: Vec<ListenerId>,
}

impl SupervisedProcess {
    pub(super) fn new(pid: u32, generation: u64, deadline: Deadline) -> Self {
        Self {
            pid,
            pidfd: PidFd::open(pid),
            started_here: false,
            generation,
            started_at: Instant::now(),
            ready_since: None,
            starts_successors: false,
            watchdog: None,
            last_watchdog: None,
            deadline,
            aborted: false,
            stopping: false,
            replaced_in: None,
            status: String::new(),
            listeners: Vec::new(),
        }
    }

    pub(super) fn send(&self, signal: Signal) {
        if let Err(error) = self.pidfd.send_signal(signal) {
            log::debug!("cannot send {signal} to process {}: {error}", self.pid);
        }
    }

    /// The process is in the stage "serving".
    pub(super) fn is_serving(&self) -> bool {
        self.ready_since.is_some() && !self.aborted && !self.stopping
    }
}
