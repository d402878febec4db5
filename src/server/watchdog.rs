//! The watchdog's beat: whoever watches over the process is told that it makes progress, as long as it does.
//!
//! Progress is that the acceptor and the keeper look around when they are asked to, and that some worker is idle, or has
//! done something since the last time.

use std::time::{Duration, Instant};

use crate::acceptor::AcceptGate;
use crate::clock;
use crate::notify;
use crate::parking::Lot;

/// How often the beat is, in a limit. A late one or two do no harm.
const BEATS: u32 = 4;

/// Looks whether a server makes progress.
pub(super) struct Watchdog<'a, T> {
    lot: &'a Lot<T>,
    gate: &'a AcceptGate,
    every: Duration,
    stuck_after: Duration,
    next: Instant,
    /// When the others were asked to look around.
    asked: Instant,
    /// They have, since they were asked for the last time but one.
    react: bool,
    acceptor: u64,
    keeper: u64,
    workers: Vec<Seen>,
}

/// What a worker was seen at.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// The connection and the beginning of the call, if there is one.
    call: Option<(u64, u64)>,
    moves: Option<u64>,
    /// When that was something new, by the clock.
    since: u64,
}

impl<'a, T> Watchdog<'a, T> {
    /// `None` if nobody watches.
    pub(super) fn new(
        lot: &'a Lot<T>,
        gate: &'a AcceptGate,
        stuck_after: Option<Duration>,
    ) -> Option<Self> {
        let limit = notify::watchdog_limit()?;
        let workers = lot.counters.of_workers().count();
        log::debug!("the watchdog wants to hear of progress every {limit:?}");
        Some(Self {
            lot,
            gate,
            every: limit / BEATS,
            stuck_after: stuck_after.unwrap_or(limit),
            next: Instant::now(),
            asked: Instant::now(),
            react: true,
            acceptor: u64::MAX,
            keeper: u64::MAX,
            workers: vec![Seen::default(); workers],
        })
    }

    /// When to look again.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time to, and tells. A server that stops has its own deadline for that.
    pub(super) fn look(&mut self, stops: bool) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        let turns = [
            ("acceptor", &mut self.acceptor, self.gate.turns()),
            ("keeper", &mut self.keeper, self.lot.keeper_turns()),
        ];
        // Sooner would be too soon for a thread that has to be woken.
        if now >= self.asked + self.every {
            self.asked = now;
            self.react = true;
            for (who, seen, turns) in turns {
                if std::mem::replace(seen, turns) == turns && !stops {
                    log::error!("the {who} does not react");
                    self.react = false;
                }
            }
            self.gate.wake();
            self.lot.wake_keeper();
        }
        match self.stuck() {
            Some(Duration::ZERO) if !stops => {
                log::error!("no worker makes progress: {}", self.calls());
                notify::watchdog_trigger();
                return;
            }
            Some(left) => self.next = self.next.min(now + left),
            None => {}
        }
        if self.react {
            notify::watchdog_alive();
        }
    }

    /// In how long the whole pool is stuck if nothing happens; `None` if some worker is idle.
    fn stuck(&mut self) -> Option<Duration> {
        let now = clock::millis();
        let mut last = Some(0);
        for (worker, seen) in self.lot.counters.of_workers().zip(&mut self.workers) {
            let call = worker.serving();
            let moves = call.and_then(|(token, _)| {
                let moves = self.lot.with_info(token, |info| info.activity.moves());
                moves.flatten()
            });
            // A wait for the client has an end, and is no standstill.
            let is_new = moves.is_none() || (seen.call, seen.moves) != (call, moves);
            if is_new {
                let begun = call.map_or(now, |(_, since)| since);
                let same = seen.call == call;
                let since = if same { now } else { begun };
                *seen = Seen { call, moves, since };
            }
            last = last
                .filter(|_| call.is_some())
                .map(|last: u64| last.max(seen.since));
        }
        let at = last?.saturating_add(clock::in_millis(self.stuck_after));
        Some(Duration::from_millis(at.saturating_sub(now)))
    }

    fn calls(&self) -> String {
        let now = clock::millis();
        let calls = self
            .workers
            .iter()
            .enumerate()
            .filter_map(|(worker, seen)| {
                let (token, since) = seen.call?;
                let client = self.lot.with_info(token, ToString::to_string);
                let seconds = now.saturating_sub(since) as f64 / 1000.0;
                let client = client.unwrap_or_else(|| "a client that has gone".to_owned());
                Some(format!(
                    "worker {worker} has served {client} for {seconds:.1} s"
                ))
            });
        calls.collect::<Vec<_>>().join(", ")
    }
}
