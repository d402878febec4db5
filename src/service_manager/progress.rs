//! The states of a service from its start to its end, and what the service control manager is told.
//!
//! ```text
//! starting ──► running ──► stopping ──► stopped
//!     └────────────┴───────────┴───────────▲     (the program may end at any time)
//! ```

use std::time::Duration;

use crate::sys::{ServiceState, ServiceStatus};

/// What happens to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The servers accept connections.
    Ready,
    /// A stop was requested, or has begun.
    Stopping,
    /// Another [`TICK`] has passed.
    Tick,
    /// The program has ended, with this exit code.
    Ended(u32),
    /// Nothing handles a request to stop: the program is to end.
    Unhandled,
}

/// The interval at which a stopping service reports its progress.
pub(super) const TICK: Duration = Duration::from_secs(2);
/// The longest time between two reports of a stopping service.
const STOP_HINT: Duration = Duration::from_secs(10);
/// The longest start: the default of [`Restart::ready_timeout`](crate::Restart::ready_timeout).
const START_HINT: Duration = Duration::from_secs(60);

/// The state of a service.
#[derive(Debug)]
pub(super) struct Progress {
    status: ServiceStatus,
}

impl Progress {
    pub(super) fn new() -> Self {
        let status = ServiceStatus {
            state: ServiceState::Starting,
            checkpoint: 1,
            wait_hint: START_HINT,
            exit_code: 0,
        };
        Self { status }
    }

    pub(super) fn status(&self) -> ServiceStatus {
        self.status
    }

    /// Whether ticks are reported. A start reports none, since its progress is not known. A drain
    /// does, since it has a deadline.
    pub(super) fn ticks(&self) -> bool {
        self.status.state == ServiceState::Stopping
    }

    /// The new status, if the manager has to be told one.
    pub(super) fn apply(&mut self, event: Event) -> Option<ServiceStatus> {
        use ServiceState::{Running, Starting, Stopped, Stopping};
        let (state, checkpoint, wait_hint, exit_code) = match (self.status.state, event) {
            (Stopped, _) => return None,
            (_, Event::Ended(code)) => (Stopped, 0, Duration::ZERO, code),
            (_, Event::Unhandled) => (Stopped, 0, Duration::ZERO, 0),
            (Starting, Event::Ready) => (Running, 0, Duration::ZERO, 0),
            (Starting | Running, Event::Stopping) => (Stopping, 1, STOP_HINT, 0),
            (Stopping, Event::Tick) => (Stopping, self.status.checkpoint + 1, STOP_HINT, 0),
            (Starting | Running, Event::Tick)
            | (Running | Stopping, Event::Ready)
            | (Stopping, Event::Stopping) => return None,
        };
        self.status = ServiceStatus {
            state,
            checkpoint,
            wait_hint,
            exit_code,
        };
        Some(self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceState::{Running, Starting, Stopped, Stopping};

    /// Each event, and the state and the checkpoint that are told then.
    #[test]
    fn the_manager_is_told_of_each_step_once() {
        type Step = (Event, Option<(ServiceState, u32)>);
        let stop = (Event::Stopping, Some((Stopping, 1)));
        let ready = (Event::Ready, Some((Running, 0)));
        let paths: [&[Step]; 6] = [
            &[
                (Event::Tick, None),
                ready,
                (Event::Ready, None),
                (Event::Tick, None),
                stop,
                (Event::Stopping, None),
                (Event::Tick, Some((Stopping, 2))),
                (Event::Ready, None),
                (Event::Tick, Some((Stopping, 3))),
                (Event::Ended(0), Some((Stopped, 0))),
                (Event::Tick, None),
                (Event::Ended(1), None),
            ],
            // A stop during the start.
            &[
                stop,
                (Event::Ready, None),
                (Event::Ended(0), Some((Stopped, 0))),
            ],
            &[ready, stop, (Event::Unhandled, Some((Stopped, 0)))],
            // The program ends by itself.
            &[ready, (Event::Ended(0), Some((Stopped, 0)))],
            &[(Event::Ended(1), Some((Stopped, 0))), (Event::Ready, None)],
            &[
                (Event::Ended(1), Some((Stopped, 0))),
                (Event::Stopping, None),
            ],
        ];
        for path in paths {
            let mut progress = Progress::new();
            assert_eq!(progress.status().state, Starting);
            for (event, wanted) in path {
                let told = progress.apply(*event);
                let told = told.map(|status| (status.state, status.checkpoint));
                assert_eq!(told, *wanted, "{event:?} of {path:?}");
                assert_eq!(progress.ticks(), progress.status().state == Stopping);
            }
        }
    }

    #[test]
    fn only_a_stopped_service_has_an_exit_code_and_only_a_pending_one_a_hint() {
        let mut progress = Progress::new();
        assert_eq!(progress.status().wait_hint, START_HINT);
        for (event, hint, code) in [
            (Event::Ready, Duration::ZERO, 0),
            (Event::Stopping, STOP_HINT, 0),
            (Event::Tick, STOP_HINT, 0),
            (Event::Ended(78), Duration::ZERO, 78),
        ] {
            let status = progress.apply(event).unwrap();
            assert_eq!(
                (status.wait_hint, status.exit_code),
                (hint, code),
                "{event:?}"
            );
        }
    }
}
