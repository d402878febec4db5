//! A process of the fleet, and its stages.
//!
//! ```text
//!            ready              told to stop, or stops by itself
//! Starting ─────────► Serving ─────────────────────────────────► Stopping
//!     │                  │                                          │
//!     │ not ready        │ no progress                              │ has not exited
//!     ▼ in time          ▼                                          ▼ in time
//!     └──────────────► Aborted, killed after `abort_timeout` ◄──────┘
//! ```
//!
//! A process leaves the fleet when it has exited, whatever its stage.

use std::time::{Duration, Instant};

use super::event::ListenerId;
use crate::clock::Deadline;

/// A process that the supervisor watches.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The slot that the process is in, or has left. `None`: nobody has announced the process.
    pub(crate) slot: Option<usize>,
    pub(crate) generation: u64,
    /// When the supervisor started this process, or first heard of it.
    pub(crate) started_at: Instant,
    pub(crate) ready_since: Option<Instant>,
    pub(crate) stage: Stage,
    /// The process was started by its predecessor, which watches over its start.
    pub(crate) is_adopted: bool,
    /// The process starts its successors itself: to restart it, the supervisor sends SIGHUP.
    pub(crate) starts_successors: bool,
    /// The longest time between two watchdog notifications, as the process was told at its start.
    pub(crate) watchdog: Option<Duration>,
    /// The process has sent a watchdog notification.
    pub(crate) sends_watchdog: bool,
    /// The round of restarts that this process was started for.
    pub(crate) round: Option<u64>,
    /// How many requests the process has served. `None`: it has not told.
    pub(crate) requests: Option<u64>,
    /// `None`: not measured yet.
    pub(crate) size: Option<Size>,
    /// The last `STATUS=` notification. That of a process that serves is empty once another one has
    /// replaced the process.
    pub(crate) status: String,
    /// The listeners that this process uses, of those that the supervisor holds.
    pub(crate) listeners: Vec<ListenerId>,
    /// The supervisor has a lane of this process, which can give its connections to another process, and
    /// adopt those of others.
    pub(crate) has_lane: bool,
    /// The process was told to leave its connections to another one, and was sent no signal.
    pub(crate) has_left: bool,
}

/// The size of a process in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// When the process began to serve.
    pub(crate) first: u64,
    pub(crate) now: u64,
}

/// What a process does, and by when it must have done that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    /// The process is to become ready. `NEVER`: its predecessor sees to that.
    Starting {
        ready_by: Deadline,
    },
    Serving {
        watch: Watch,
    },
    /// The process finishes its requests and exits. `NEVER`: the stop of the supervisor has a
    /// deadline for all.
    Stopping {
        exit_by: Deadline,
        /// The process was not asked to stop.
        by_itself: bool,
    },
    /// The process was sent SIGABRT.
    Aborted {
        kill_at: Deadline,
    },
}

/// The watchdog of a process that serves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Watch {
    /// There is no limit, or none before the first notification.
    Off,
    /// A notification must come by then.
    OnTime { until: Deadline },
    /// No notification has come in time. The process has a little longer: it, or the supervisor,
    /// may have been stopped meanwhile.
    Late { until: Deadline },
}

impl Process {
    pub(crate) fn new(pid: u32, ready_by: Deadline, now: Instant) -> Self {
        Self {
            pid,
            slot: None,
            generation: 0,
            started_at: now,
            ready_since: None,
            stage: Stage::Starting { ready_by },
            is_adopted: false,
            starts_successors: false,
            watchdog: None,
            sends_watchdog: false,
            round: None,
            requests: None,
            size: None,
            status: String::new(),
            listeners: Vec::new(),
            has_lane: false,
            has_left: false,
        }
    }

    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Starting { .. })
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving { .. })
    }

    pub(crate) fn is_aborted(&self) -> bool {
        matches!(self.stage, Stage::Aborted { .. })
    }

    /// The process can leave its connections to another one.
    pub(crate) fn can_leave(&self) -> bool {
        self.is_serving() && self.has_lane
    }

    /// The process can adopt the connections of another one, as far as the supervisor knows.
    pub(crate) fn can_adopt(&self) -> bool {
        let is_late = matches!(
            self.stage,
            Stage::Serving {
                watch: Watch::Late { .. }
            }
        );
        self.can_leave() && !is_late
    }

    /// The process was told to stop, stops by itself, or is aborted.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. } | Stage::Aborted { .. })
    }

    /// How long the process has been ready, if it has been.
    pub(crate) fn served(&self, now: Instant) -> Option<Duration> {
        self.ready_since
            .map(|since| now.saturating_duration_since(since))
    }

    /// The process has sent a watchdog notification, or is watched from now on.
    pub(crate) fn renew_watchdog(&mut self, now: Instant) {
        if let (Stage::Serving { watch }, Some(limit)) = (&mut self.stage, self.watchdog) {
            let until = Deadline::after(now, limit);
            *watch = Watch::OnTime { until };
        }
    }

    /// When something is to be done about this process.
    pub(crate) fn deadline(&self) -> Deadline {
        match self.stage {
            Stage::Starting { ready_by } => ready_by,
            Stage::Serving { watch: Watch::Off } => Deadline::NEVER,
            Stage::Serving {
                watch: Watch::OnTime { until } | Watch::Late { until },
            } => until,
            Stage::Stopping { exit_by, .. } => exit_by,
            Stage::Aborted { kill_at } => kill_at,
        }
    }

    /// Lets the process take until then, if its deadline is earlier.
    pub(crate) fn extend(&mut self, until: Deadline) {
        match &mut self.stage {
            Stage::Starting { ready_by: deadline }
            | Stage::Stopping {
                exit_by: deadline, ..
            } => *deadline = deadline.later(until),
            Stage::Serving { .. } | Stage::Aborted { .. } => {}
        }
    }

    /// The supervisor has not run for `stall`, and perhaps the process has not run either: what it
    /// had to do in this time it may do later.
    pub(crate) fn forgive(&mut self, stall: Duration, now: Instant) {
        match &mut self.stage {
            Stage::Serving { watch: Watch::Off } | Stage::Aborted { .. } => {}
            Stage::Serving { .. } => self.renew_watchdog(now),
            Stage::Starting { ready_by: deadline }
            | Stage::Stopping {
                exit_by: deadline, ..
            } => *deadline = deadline.postponed(stall),
        }
    }
}
