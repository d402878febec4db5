//! A place for a serving process, and the processes that have one.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::listeners::Id;
use crate::clock::Deadline;
use crate::sys::{PidFd, Signal};

/// A place for a serving process.
#[derive(Debug)]
pub(super) struct Slot {
    /// The one that serves, or is to.
    pub(super) main: Option<SupervisedProcess>,
    /// The one that is to take over from it.
    pub(super) next: Option<SupervisedProcess>,
    /// When one is to be started.
    pub(super) due: Deadline,
    pub(super) backoff: Backoff,
    /// Of the process that was started last.
    pub(super) generation: u64,
    /// How often one was started anew because the one before had ended.
    pub(super) restarts: u64,
    /// How the last one ended that was not asked to.
    pub(super) last_end: Option<String>,
}

impl Slot {
    pub(super) fn new(due: Deadline) -> Self {
        Self {
            main: None,
            next: None,
            due,
            backoff: Backoff::default(),
            generation: 0,
            restarts: 0,
            last_end: None,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.main.as_ref().is_some_and(|main| main.ready.is_some())
    }

    /// Nobody is there, or will be.
    pub(super) fn is_given_up(&self) -> bool {
        self.main.is_none() && self.next.is_none() && self.due == Deadline::NEVER
    }
}

/// A process.
#[derive(Debug)]
pub(super) struct SupervisedProcess {
    pub(super) pid: u32,
    pub(super) handle: PidFd,
    /// The supervisor has started it; else it was another process, which hears of its end as long as it lives.
    pub(super) is_own: bool,
    pub(super) generation: u64,
    pub(super) since: Instant,
    pub(super) ready: Option<Instant>,
    /// It starts its successors itself: SIGHUP is enough.
    pub(super) restarts_itself: bool,
    /// How long it may say nothing of its progress, as it was told when it was started.
    pub(super) watchdog: Option<Duration>,
    /// When it has said for the last time that it makes progress; who never does is not watched.
    pub(super) heard: Option<Instant>,
    /// When it is late: to be ready at first, to end later.
    pub(super) deadline: Deadline,
    /// It has been told to end, for it was late or made no progress.
    pub(super) aborted: bool,
    /// It ends, and has said so.
    pub(super) stopping: bool,
    /// The place in which another one was started when it stopped by itself.
    pub(super) replaced_in: Option<usize>,
    pub(super) status: String,
    /// Those that it listens on, of those that are held here.
    pub(super) listeners: Vec<Id>,
}

impl SupervisedProcess {
    pub(super) fn send(&self, signal: Signal) {
        if let Err(error) = self.handle.send_signal(signal) {
            log::debug!("cannot send {signal} to process {}: {error}", self.pid);
        }
    }

    /// It serves, and nothing says that it will not go on to.
    pub(super) fn is_fine(&self) -> bool {
        self.ready.is_some() && !self.aborted && !self.stopping
    }

    /// Gives it more time, if it has less.
    pub(super) fn extend(&mut self, until: Deadline) {
        self.deadline = self.deadline.later(until);
    }

    pub(super) fn new(pid: u32, generation: u64, deadline: Deadline) -> Self {
        let now = Instant::now();
        Self {
            pid,
            handle: PidFd::open(pid),
            is_own: false,
            generation,
            since: now,
            ready: None,
            restarts_itself: false,
            watchdog: None,
            heard: None,
            deadline,
            aborted: false,
            stopping: false,
            replaced_in: None,
            status: String::new(),
            listeners: Vec::new(),
        }
    }
}
