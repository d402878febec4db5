//! A slot: the place of one process that is to serve.

use std::collections::VecDeque;
use std::time::Instant;

use super::backoff::Backoff;
use super::process::Process;
use crate::clock::Deadline;

#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// The process that serves, or that is being started to serve.
    pub(crate) current: Option<Process>,
    /// The process that replaces `current` as soon as it is ready.
    pub(crate) successor: Option<Process>,
    /// When a process is to be started here; never, if none is to be.
    pub(crate) start_at: Deadline,
    /// A process is being started: [`Effect::Start`](super::event::Effect::Start) has no answer yet.
    pub(crate) is_start_pending: bool,
    pub(crate) backoff: Backoff,
    /// When a process of this slot was last recycled for its size.
    pub(crate) recycled_for_size: Option<Instant>,
    /// The generation of the process that was started last.
    pub(crate) generation: u64,
    /// Number of starts because the process before had exited.
    pub(crate) restarts: u64,
    /// The last losses of a process, at most [`MAX_DEATHS`], the newest last.
    pub(crate) deaths: VecDeque<Death>,
}

/// The loss of a slot's process: the process exited or stopped without having been asked to, or
/// could not be started.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    pub(crate) at: Instant,
    /// Why, in words.
    pub(crate) why: String,
}

/// How many deaths a slot remembers.
pub(crate) const MAX_DEATHS: usize = 5;

impl Slot {
    pub(crate) fn new(start_at: Deadline) -> Self {
        Self {
            start_at,
            ..Self::default()
        }
    }

    pub(crate) fn record_death(&mut self, at: Instant, why: &str) {
        if self.deaths.len() >= MAX_DEATHS {
            self.deaths.pop_front();
        }
        let why = why.to_owned();
        self.deaths.push_back(Death { at, why });
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.current.as_ref().is_some_and(Process::is_serving)
    }

    /// No process is here, and none is to be started.
    pub(crate) fn is_down(&self) -> bool {
        let has_process = self.current.is_some() || self.successor.is_some();
        !has_process && !self.is_start_pending && self.start_at == Deadline::NEVER
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.current.iter().chain(&self.successor)
    }
}
