//! The processes that are left when a serving process has exited, its stragglers: when they are ended.
//! [`cleanup`](super::cleanup) does what is decided here.
//!
//! A serving process and its children are one process group. When the process has exited, what is
//! left of the group is sent SIGTERM, and SIGKILL after the stop time-out. When no serving process is
//! left, and the supervisor is to exit, the same happens to every process that descends from the
//! supervisor, whatever its group. The children that the supervisor had before it became the
//! supervisor are left alone, and so is what descends from them. SIGKILL is sent until none is left: a
//! straggler may have forked between the look and the signal.
//!
//! The supervisor is told of the ends of stragglers only when they are its children. So it looks at
//! the table of all processes when a child has exited, and each [`CHECK_INTERVAL`] or
//! [`KILL_INTERVAL`].

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use super::ancestry::ProcessTable;
use super::fleet::KILL_TIMEOUT;
use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, Signal};

/// The time between two looks at the stragglers.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The same while stragglers are being killed: one may have forked meanwhile.
const KILL_INTERVAL: Duration = Duration::from_millis(50);

/// The stragglers that are being ended.
#[derive(Debug, Default)]
pub(super) struct Stragglers {
    /// Process groups without a process of the fleet.
    pub(super) groups: Vec<Ending>,
    /// Every process that is left, once no process of the fleet is.
    pub(super) all: Option<Ending>,
    /// `all` was set once.
    pub(super) has_ended_all: bool,
    /// When to look at the processes again. `None` if there are no stragglers.
    pub(super) next_check: Option<Instant>,
    /// The children that this process had before it became the supervisor.
    pub(super) earlier_children: HashSet<u32>,
    /// There were such children, which may leave children of their own to the supervisor.
    pub(super) had_children: bool,
    /// The last look at the processes failed.
    pub(super) is_table_missing: bool,
    /// A straggler had to be killed in a stop.
    pub(super) has_killed: bool,
}

/// Processes that are being ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// The process group. Not used where all processes are meant.
    pub(super) group: u32,
    pub(super) stage: Stage,
    /// When the next stage begins.
    pub(super) deadline: Deadline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    New,
    Terminated,
    Killed,
}

/// What to do with the processes of an [`Ending`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Send(Signal),
    /// None is left, or the kernel does not end them.
    Forget,
}

/// The policy.
fn next_step(stage: Stage, is_any_left: bool, is_late: bool) -> Step {
    match (stage, is_any_left, is_late) {
        (_, false, _) | (Stage::Killed, true, true) => Step::Forget,
        (Stage::New | Stage::Terminated, true, true) => Step::Send(Signal::Kill),
        // Again at each look: for those that were forked since the last one.
        (Stage::Killed, true, false) => Step::Send(Signal::Kill),
        (Stage::New, true, false) => Step::Send(Signal::Terminate),
        (Stage::Terminated, true, false) => Step::Wait,
    }
}

impl Ending {
    pub(super) fn new(group: u32, deadline: Deadline) -> Self {
        let stage = Stage::New;
        Self {
            group,
            stage,
            deadline,
        }
    }

    /// SIGKILL was sent.
    pub(super) fn is_killed(&self) -> bool {
        self.stage == Stage::Killed
    }

    /// `limit` is the deadline of a stop.
    pub(super) fn step(&mut self, is_any_left: bool, limit: Deadline, now: Instant) -> Step {
        let deadline = match self.stage {
            Stage::New | Stage::Terminated => self.deadline.earlier(limit),
            Stage::Killed => self.deadline,
        };
        let step = next_step(self.stage, is_any_left, deadline.has_passed(now));
        match step {
            Step::Send(Signal::Kill) if self.stage != Stage::Killed => {
                self.stage = Stage::Killed;
                self.deadline = Deadline::after(now, KILL_TIMEOUT);
            }
            Step::Send(Signal::Terminate) => self.stage = Stage::Terminated,
            Step::Send(_) => {}
            Step::Wait | Step::Forget => {}
        }
        step
    }
}

impl Stragglers {
    pub(super) fn with_earlier_children() -> Self {
        if !sys::supervision::HAS_PROCESS_GROUPS {
            return Self::default();
        }
        let failed = |error: &io::Error| log::error!("cannot look at the processes: {error}");
        let table = ProcessTable::read().inspect_err(failed).unwrap_or_default();
        let children = table.children(std::process::id());
        Self {
            had_children: !children.is_empty(),
            earlier_children: children.into_iter().collect(),
            ..Self::default()
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        Deadline::at(self.next_check)
    }

    /// Plans the next look.
    pub(super) fn check_later(&mut self, now: Instant) {
        let mut endings = self.groups.iter().chain(&self.all);
        let kills = endings.any(|ending| ending.is_killed());
        let is_any_left = !self.groups.is_empty() || self.all.is_some();
        let interval = if kills { KILL_INTERVAL } else { CHECK_INTERVAL };
        self.next_check = is_any_left.then(|| now + interval);
    }

    /// Has the stragglers looked at in this turn, if there are some.
    pub(super) fn check_now(&mut self, now: Instant) {
        self.next_check = self.next_check.map(|_| now);
    }

    /// The supervisor goes on, since a process was started after all: only a later stop ends every
    /// process that is left.
    pub(super) fn keep_rest(&mut self) {
        self.all = None;
        self.has_ended_all = false;
    }

    /// The groups that are being ended.
    pub(super) fn groups(&self) -> impl Iterator<Item = u32> {
        self.groups.iter().map(|ending| ending.group)
    }

    pub(super) fn end_group(&mut self, group: u32, deadline: Deadline, now: Instant) {
        if !self.groups().any(|ending| ending == group) {
            self.groups.push(Ending::new(group, deadline));
        }
        self.next_check = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stragglers_are_terminated_then_killed_then_forgotten() {
        let (term, kill) = (Step::Send(Signal::Terminate), Step::Send(Signal::Kill));
        for (stage, is_any_left, is_late, wanted) in [
            (Stage::New, false, false, Step::Forget),
            (Stage::New, true, false, term),
            (Stage::New, true, true, kill),
            (Stage::Terminated, true, false, Step::Wait),
            (Stage::Terminated, false, true, Step::Forget),
            (Stage::Terminated, true, true, kill),
            (Stage::Killed, true, false, kill),
            (Stage::Killed, false, false, Step::Forget),
            (Stage::Killed, true, true, Step::Forget),
        ] {
            let step = next_step(stage, is_any_left, is_late);
            assert_eq!(step, wanted, "{stage:?} {is_any_left} {is_late}");
        }
    }

    #[test]
    fn a_stop_shortens_the_time_of_stragglers_but_not_that_of_a_kill() {
        let now = Instant::now();
        let mut ending = Ending::new(7, Deadline::after(now, Duration::from_secs(60)));
        let stop = Deadline::after(now, Duration::from_secs(2));
        assert_eq!(ending.step(true, stop, now), Step::Send(Signal::Terminate));
        assert_eq!(ending.step(true, stop, now), Step::Wait);
        let later = now + Duration::from_secs(2);
        assert_eq!(ending.step(true, stop, later), Step::Send(Signal::Kill));
        assert_eq!(ending.step(true, stop, later), Step::Send(Signal::Kill));
        let later = later + KILL_TIMEOUT;
        assert_eq!(ending.step(true, stop, later), Step::Forget);
    }
}
