//! The watchdog: tells a supervisor or systemd that the server makes progress (WATCHDOG=1,
//! sd_notify(3)).
//!
//! The server makes progress if
//!
//! - the acceptor and each keeper have run their loops since they were woken for this check, and
//! - some worker is idle, or has moved bytes, waited for its client, or begun another call within
//!   `stuck_after`.
//!
//! Otherwise WATCHDOG=1 is not sent. With several servers in the process, it is sent when all of them
//! have made progress. When every worker is stuck, WATCHDOG=trigger is sent.

use std::time::{Duration, Instant};

use crate::acceptor::AcceptGate;
use crate::clock;
use crate::log;
use crate::notify;
use crate::parking::{Lot, Lots};
use crate::server::shared::GroupPlace;
use crate::stats::ThreadCounters;

/// How many notifications are sent within the limit. One or two may be late.
const NOTIFICATIONS: u32 = 4;

/// Checks whether a server makes progress.
pub(super) struct Watchdog<'a, T> {
    lots: &'a Lots<T>,
    gate: &'a AcceptGate,
    every: Duration,
    stuck_after: Duration,
    group: Option<&'a GroupPlace>,
    next_check: Instant,
    /// When the acceptor and the keeper were woken.
    woken_at: Instant,
    /// At the last check, the acceptor and the keeper had run their loops.
    threads_react: bool,
    acceptor_loops: u64,
    /// Of each keeper.
    keeper_loops: Vec<u64>,
    workers: Vec<WorkerProgress>,
}

impl<T> Drop for Watchdog<'_, T> {
    fn drop(&mut self) {
        self.group.inspect(|group| group.end_heartbeat());
    }
}

/// The progress of a worker at the last check.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct WorkerProgress {
    /// The connection and the beginning of the call, if there is a call.
    call: Option<(u64, u64)>,
    moves: Option<u64>,
    /// When one of the fields above last changed, in the clock's milliseconds.
    changed_at: u64,
}

impl<'a, T> Watchdog<'a, T> {
    /// `None` if no supervisor and no systemd watches this process.
    pub(super) fn new(
        lots: &'a Lots<T>,
        gate: &'a AcceptGate,
        stuck_after: Option<Duration>,
        group: Option<&'a GroupPlace>,
    ) -> Option<Self> {
        let limit = notify::watchdog_limit()?;
        let workers = lots.counters.workers.len();
        log::debug!("the watchdog expects a notification every {limit:?}");
        Some(Self {
            lots,
            gate,
            every: limit / NOTIFICATIONS,
            stuck_after: stuck_after.unwrap_or(limit),
            group,
            next_check: Instant::now(),
            woken_at: Instant::now(),
            threads_react: true,
            acceptor_loops: u64::MAX,
            keeper_loops: vec![u64::MAX; lots.len()],
            workers: vec![WorkerProgress::default(); workers],
        })
    }

    pub(super) fn next_check(&self) -> Instant {
        self.next_check
    }

    /// If the next check is due, checks and notifies. While the server stops, a lack of progress
    /// has no effect: the stop has its own deadline.
    pub(super) fn check(&mut self, stopping: bool) {
        let now = Instant::now();
        if now < self.next_check {
            return;
        }
        self.next_check = now + self.every;
        // A thread that has just been woken needs time to run its loop.
        if now >= self.woken_at + self.every {
            self.woken_at = now;
            self.check_threads(stopping);
        }
        match self.time_until_stuck() {
            Some(Duration::ZERO) if !stopping => {
                log::error!("no worker makes progress: {}", self.describe_stuck_calls());
                notify::send_watchdog_trigger();
                return;
            }
            Some(left) => self.next_check = self.next_check.min(now + left),
            None => {}
        }
        if let (true, Some(group)) = (self.threads_react, self.group) {
            group.beat();
        }
    }

    /// Checks that the acceptor and the keeper have run their loops since they were woken, and
    /// wakes them again.
    fn check_threads(&mut self, stopping: bool) {
        let loops = self.gate.loops();
        let before = std::mem::replace(&mut self.acceptor_loops, loops);
        let mut threads = vec![("acceptor", before, loops)];
        let keeper_loops = self.lots.iter().map(Lot::keeper_loops);
        for (loops, seen) in keeper_loops.zip(&mut self.keeper_loops) {
            threads.push(("keeper", std::mem::replace(seen, loops), loops));
        }
        self.threads_react = true;
        for (name, before, loops) in threads {
            if before == loops && !stopping {
                log::error!("the {name} does not react");
                self.threads_react = false;
            }
        }
        self.gate.wake();
        self.lots.iter().for_each(Lot::wake_keeper);
    }

    /// The time until every worker counts as stuck, if no worker makes progress until then. `None`
    /// if a worker is idle, or if no worker's state can be built.
    fn time_until_stuck(&mut self) -> Option<Duration> {
        let now = clock::millis();
        // A worker whose state cannot be built is neither stuck nor idle.
        let is_absent = |worker: &ThreadCounters| worker.failing_since().is_some();
        if self.lots.counters.workers.iter().all(is_absent) {
            return None;
        }
        let mut last_change = Some(0);
        for (worker, seen) in self.lots.counters.workers.iter().zip(&mut self.workers) {
            let call = worker.call();
            let moves = call.and_then(|(token, _)| {
                let moves = self.lots.with_info(token, |info| info.moves());
                moves.flatten()
            });
            // A wait for the client has a deadline of its own, so it is progress.
            let has_changed = moves.is_none() || (seen.call, seen.moves) != (call, moves);
            if has_changed {
                let began = call.map_or(now, |(_, began)| began);
                let changed_at = if seen.call == call { now } else { began };
                *seen = WorkerProgress {
                    call,
                    moves,
                    changed_at,
                };
            }
            last_change = last_change
                .filter(|_| call.is_some() || is_absent(worker))
                .map(|last: u64| match is_absent(worker) {
                    true => last,
                    false => last.max(seen.changed_at),
                });
        }
        let stuck_at = last_change?.saturating_add(clock::in_millis(self.stuck_after));
        Some(Duration::from_millis(stuck_at.saturating_sub(now)))
    }

    /// The calls in which the workers are stuck, for the log.
    fn describe_stuck_calls(&self) -> String {
        let now = clock::millis();
        let calls = self.workers.iter().enumerate();
        let calls = calls.filter_map(|(worker, seen)| {
            let (token, began) = seen.call?;
            let client = self.lots.with_info(token, ToString::to_string);
            let client = client.unwrap_or_else(|| "a client that has left".to_owned());
            let seconds = now.saturating_sub(began) as f64 / 1000.0;
            Some(format!(
                "worker {worker} has served {client} for {seconds:.1} s"
            ))
        });
        calls.collect::<Vec<_>>().join(", ")
    }
}
