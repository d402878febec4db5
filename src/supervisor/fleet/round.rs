//! A round of restarts: the processes are replaced slot by slot.

use std::time::{Duration, Instant};

use crate::clock::Deadline;

/// A round in progress.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// The processes that are started for this round have its number.
    pub(crate) number: u64,
    /// The index of the slot whose process is being replaced.
    pub(crate) index: usize,
    /// The round ends after the slot at `index`: its process is recycled.
    pub(crate) is_recycling: bool,
    pub(crate) step: Step,
    pub(crate) started_at: Instant,
    /// The control clients that wait for the result.
    pub(crate) clients: Vec<u64>,
}

/// How far the replacement in the slot at `index` is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing was done yet.
    Next,
    /// The process is replacing itself already, for another reason. That has to end first, by this
    /// deadline.
    WaitingForOther { deadline: Deadline },
    /// Too many processes of this slot drain. One of them has to end first.
    WaitingForDrain,
    /// Complete when the slot serves with a process of this round, which it must by this deadline.
    /// If the slot serves with any process but `old` and those of this round, that one is replaced
    /// too: perhaps it was started before the restart was asked for.
    Replacing {
        old: Option<u32>,
        deadline: Deadline,
    },
}

impl Round {
    pub(crate) fn deadline(&self) -> Deadline {
        match self.step {
            Step::Next | Step::WaitingForDrain => Deadline::NEVER,
            Step::WaitingForOther { deadline } | Step::Replacing { deadline, .. } => deadline,
        }
    }

    /// Lets the step take until then, if its deadline is earlier.
    pub(crate) fn extend(&mut self, until: Deadline) {
        match &mut self.step {
            Step::Next | Step::WaitingForDrain => {}
            Step::WaitingForOther { deadline } | Step::Replacing { deadline, .. } => {
                *deadline = deadline.later(until);
            }
        }
    }

    /// The supervisor has not run for `stall`, and perhaps the processes have not run either.
    pub(crate) fn forgive(&mut self, stall: Duration) {
        self.extend(self.deadline().postponed(stall));
    }

    /// The process in this slot is being replaced.
    pub(crate) fn replaces(&self, index: usize) -> bool {
        self.index == index && matches!(self.step, Step::Replacing { .. })
    }
}
