//! A slot: the place of one process that is to serve.

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
    /// The generation of the process that was started last.
    pub(crate) generation: u64,
    /// Number of starts because the process before had exited.
    pub(crate) restarts: u64,
    /// Why the slot last lost its process: the process exited or stopped without having been asked
    /// to, or could not be started.
    pub(crate) last_failure: Option<String>,
}

impl Slot {
    pub(crate) fn new(start_at: Deadline) -> Self {
        Self {
            start_at,
            ..Self::default()
        }
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
