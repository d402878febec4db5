//! The deadlines of the last step of a stop: the drain is over, and the threads end.
//!
//! Each deadline is that of the drain, or this time from now, whichever is later:
//!
//! | what is waited for | from now |
//! |---|---|
//! | workers, keepers, the acceptor, periodic calls | 0.5 s |
//! | the restarter, which may be telling the service manager of the successor | 6 s |
//! | a successor that was told to abort, and is then killed | 0.25 s |
//!
//! A drain without a deadline is over when no connection is in progress: then nothing is left for
//! the workers to finish, but the restarter and an aborted successor are not cut off either. They
//! have time-outs of their own. A stop that is to be immediate gives the restarter no more time
//! than the workers.
//!
//! Servers that run together have one restarter, which ends when all of them have stopped. Those
//! that have stopped wait for the others without a limit, as each of these has a deadline of its
//! own. The restarter's time is then counted from the stop of the last one.

use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::server::shared::RequestedStop;

/// How long a stop waits for handlers to return, once their sockets are shut down.
const FORCED_GRACE: Duration = Duration::from_millis(500);

/// A restarter that hands over waits up to 5 s until a slow service manager knows of the successor,
/// and this process may not end before.
const RESTARTER_GRACE: Duration = Duration::from_secs(6);

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FinishDeadlines {
    pub(super) workers: Instant,
    restarter: Deadline,
    restarter_grace: Duration,
    pub(super) aborted_successor: Deadline,
}

impl FinishDeadlines {
    /// `drain`: the deadline of the drain that is over now.
    pub(super) fn new(now: Instant, drain: Deadline, is_immediate: bool) -> Self {
        let latest = |grace| drain.later(Deadline::after(now, grace));
        Self {
            workers: latest(FORCED_GRACE).instant().unwrap_or(now + FORCED_GRACE),
            restarter: latest(restarter_grace(is_immediate)),
            restarter_grace: restarter_grace(is_immediate),
            aborted_successor: latest(FORCED_GRACE / 2),
        }
    }

    /// A further stop is requested, with this deadline.
    pub(super) fn shorten(&mut self, now: Instant, stop: RequestedStop) {
        let latest = |grace| stop.deadline.later(Deadline::after(now, grace));
        let workers = latest(FORCED_GRACE).instant();
        self.workers = workers.map_or(self.workers, |at| self.workers.min(at));
        let grace = restarter_grace(stop.is_immediate);
        self.restarter = self.restarter.earlier(latest(grace));
        self.restarter_grace = self.restarter_grace.min(grace);
    }

    /// The other servers of the process have stopped as well. Only now does the restarter end.
    pub(super) fn begin_restarter_grace(&mut self, now: Instant) {
        let earliest = Deadline::after(now, self.restarter_grace);
        self.restarter = self.restarter.later(earliest);
    }

    /// Until when to wait for all threads.
    pub(super) fn until(&self, restarter_runs: bool) -> Deadline {
        let workers = Deadline::at(Some(self.workers));
        match restarter_runs {
            true => workers.later(self.restarter),
            false => workers,
        }
    }
}

fn restarter_grace(is_immediate: bool) -> Duration {
    match is_immediate {
        true => FORCED_GRACE,
        false => RESTARTER_GRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restarter_has_a_deadline_of_its_own() {
        let now = Instant::now();
        let at = |millis| Deadline::after(now, Duration::from_millis(millis));
        let never = Deadline::NEVER;
        // (drain, is immediate, workers, with the restarter, aborted successor)
        for (drain, is_immediate, workers, restarter, aborted) in [
            (at(0), false, at(500), at(6000), at(250)),
            (at(0), true, at(500), at(500), at(250)),
            (at(300), false, at(500), at(6000), at(300)),
            (at(30_000), false, at(30_000), at(30_000), at(30_000)),
            (never, false, at(500), never, never),
        ] {
            let found = FinishDeadlines::new(now, drain, is_immediate);
            let shown = format!("{drain:?} {is_immediate}");
            assert_eq!(found.until(false), workers, "{shown}");
            assert_eq!(found.until(true), restarter, "{shown}");
            assert_eq!(found.aborted_successor, aborted, "{shown}");
        }
    }

    #[test]
    fn a_further_stop_shortens_and_never_lengthens() {
        let now = Instant::now();
        let at = |millis| Deadline::after(now, Duration::from_millis(millis));
        let never = Deadline::NEVER;
        // (drain, a further stop, it is immediate, workers, with the restarter)
        for (drain, stop, is_immediate, workers, restarter) in [
            (never, at(0), true, at(500), at(500)),
            (never, at(0), false, at(500), at(6000)),
            (never, at(9000), false, at(500), at(9000)),
            (never, never, false, at(500), never),
            (at(30_000), at(9000), false, at(9000), at(9000)),
            (at(30_000), at(0), true, at(500), at(500)),
            (at(0), at(9000), false, at(500), at(6000)),
        ] {
            let mut found = FinishDeadlines::new(now, drain, false);
            let requested = RequestedStop {
                deadline: stop,
                is_immediate,
            };
            found.shorten(now, requested);
            let shown = format!("{drain:?} {stop:?} {is_immediate}");
            assert_eq!(found.until(false), workers, "{shown}");
            assert_eq!(found.until(true), restarter, "{shown}");
        }
    }

    #[test]
    fn the_time_of_the_restarter_begins_when_all_servers_have_stopped() {
        let now = Instant::now();
        let at = |millis| Deadline::after(now, Duration::from_millis(millis));
        let later = now + Duration::from_secs(20);
        // (drain, a further stop is immediate, with the restarter)
        for (drain, stop_now, restarter) in [
            (at(0), false, at(26_000)),
            (at(0), true, at(20_500)),
            (at(30_000), false, at(30_000)),
            (Deadline::NEVER, false, Deadline::NEVER),
            (Deadline::NEVER, true, at(20_500)),
        ] {
            let mut found = FinishDeadlines::new(now, drain, false);
            if stop_now {
                let requested = RequestedStop {
                    deadline: at(0),
                    is_immediate: true,
                };
                found.shorten(now, requested);
            }
            let workers = found.workers;
            found.begin_restarter_grace(later);
            assert_eq!(found.until(true), restarter, "{drain:?} {stop_now}");
            assert_eq!(found.workers, workers);
        }
    }
}
