//! Counters and gauges, and the plain snapshot that a user gets of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use crate::addr::Addr;

/// A snapshot of a server's counters and gauges, from [`Handle::stats`](crate::Handle::stats).
///
/// Counters only grow; a gauge is a value at one moment. The values are read one after another
/// while the server runs, so a sum may differ from its parts by what happens in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections taken over from the predecessor, at a restart.
    pub adopted: u64,
    /// Connections moved to the successor, at a restart.
    pub moved: u64,
    /// Connections that are open now (gauge): `active + queued + parked`.
    pub live: u64,
    /// Connections that a worker serves now (gauge).
    pub active: u64,
    /// Connections that wait for a worker now (gauge).
    pub queued: u64,
    /// Connections that wait for their client now, on no thread (gauge).
    pub parked: u64,
    /// Calls of the service.
    pub served: u64,
    /// Connections refused, by reason.
    pub refused: Refused,
    /// Connections whose time-out has expired, by time-out.
    pub expired: Expired,
    /// Parked connections closed to make room.
    pub shed: u64,
    /// Connections closed because the client had left while the connection waited for a worker, or
    /// while a response waited for another thread.
    pub abandoned: u64,
    /// Connections closed because a message was longer than
    /// [`input_limit`](crate::Builder::input_limit).
    pub too_long: u64,
    /// Calls of the service that panicked.
    pub panics: u64,
    /// Errors that the service, or a handler of HTTP, has returned, except those of reading from
    /// and writing to its client.
    pub service_errors: u64,
    /// Errors of `accept(2)`, except those of connections whose client had left already.
    pub accept_errors: u64,
    /// Bytes received from clients.
    pub bytes_in: u64,
    /// Bytes that the kernel took for clients.
    pub bytes_out: u64,
    /// How long connections that were ready waited for a worker, before each call of the service.
    pub waited: Histogram,
    /// How long calls of the service lasted.
    pub served_for: Histogram,
    /// What each worker does now.
    pub workers: Vec<WorkerState>,
}

/// Why connections were refused, in [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// [`max_connections`](crate::Builder::max_connections) was reached.
    pub max_connections: u64,
    /// [`max_per_client`](crate::Builder::max_per_client) was reached.
    pub max_per_client: u64,
    /// The queue was full.
    pub queue_full: u64,
    /// A connection waited longer than [`queue_timeout`](crate::Builder::queue_timeout) for a
    /// worker.
    pub queue_timeout: u64,
}

/// Which time-outs have expired, in [`Stats`]. The connections were closed, or their service was
/// called ([`Service::expired`](crate::Service::expired)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expired {
    /// No first byte within [`first_byte_timeout`](crate::Builder::first_byte_timeout).
    pub first_byte: u64,
    /// No further message within [`idle_timeout`](crate::Builder::idle_timeout).
    pub idle: u64,
    /// A message begun but not ended within [`read_timeout`](crate::Builder::read_timeout).
    pub read: u64,
    /// A response not read within [`write_timeout`](crate::Builder::write_timeout).
    pub write: u64,
}

/// A histogram of durations, in [`Stats`].
///
/// Bucket 0 counts durations below 1 µs. Bucket `i` counts durations from 2<sup>i-1</sup> µs to
/// below 2<sup>i</sup> µs. The last bucket also counts all longer durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; Self::BUCKETS],
}

impl Histogram {
    /// The number of buckets. The last bucket begins at 18 minutes.
    pub const BUCKETS: usize = 32;

    /// How many durations each bucket has counted.
    pub fn buckets(&self) -> &[u64; Self::BUCKETS] {
        &self.buckets
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// An upper bound of a quantile, such as 0.5 for the median or 0.99: the end of the bucket that
    /// contains the quantile, at most twice the quantile or 1 µs. `None` if nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let rank = (quantile.clamp(0.0, 1.0) * self.count() as f64)
            .ceil()
            .max(1.0) as u64;
        let mut counted = 0;
        let bucket = self.buckets.iter().position(|count| {
            counted += count;
            counted >= rank
        })?;
        Some(Duration::from_micros(1 << bucket))
    }
}

/// A histogram that one thread writes and every thread may read.
#[derive(Debug, Default)]
struct AtomicHistogram([AtomicU64; Histogram::BUCKETS]);

impl AtomicHistogram {
    fn add(&self, nanos: u64) {
        let bucket = (nanos / 1000)
            .checked_ilog2()
            .map_or(0, |log| log as usize + 1);
        add(&self.0[bucket.min(Histogram::BUCKETS - 1)], 1);
    }

    fn add_to(&self, sum: &mut Histogram) {
        for (bucket, count) in sum.buckets.iter_mut().zip(&self.0) {
            *bucket += count.load(Relaxed);
        }
    }
}

/// What a worker does, in [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState {
    /// The worker waits for a connection.
    Idle,
    /// The worker is in a call of the service.
    Serving {
        /// The client's address.
        peer: Addr,
        /// How long the call has lasted, to a few milliseconds.
        served_for: Duration,
    },
    /// The worker takes no connection, because [`Service::worker`](crate::Service::worker) has
    /// failed. It tries again.
    Failing {
        /// The time since the first failure, to a few milliseconds.
        failing_for: Duration,
    },
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Serving { peer, served_for } => {
                write!(f, "serving {peer} for {:.1} s", served_for.as_secs_f64())
            }
            Self::Failing { failing_for } => {
                write!(f, "failing for {:.1} s", failing_for.as_secs_f64())
            }
        }
    }
}

/// The live counters. The counters that every message changes are per thread, on cache lines of
/// their own.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) moved: AtomicU64,
    /// The longest time for which a connection that moved was served by no process, in nanoseconds.
    pub(crate) longest_move: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) abandoned: AtomicU64,
    pub(crate) too_long: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) service_errors: AtomicU64,
    /// Connections whose service was told that the server drains.
    pub(crate) drain_calls: AtomicU64,
    pub(crate) refused_max_connections: AtomicU64,
    pub(crate) refused_max_per_client: AtomicU64,
    pub(crate) refused_queue_full: AtomicU64,
    pub(crate) refused_queue_timeout: AtomicU64,
    pub(crate) expired_first_byte: AtomicU64,
    pub(crate) expired_idle: AtomicU64,
    pub(crate) expired_read: AtomicU64,
    pub(crate) expired_write: AtomicU64,
    pub(crate) workers: Box<[ThreadCounters]>,
    pub(crate) acceptor: ThreadCounters,
    /// One for each parking lot.
    pub(crate) keepers: Box<[ThreadCounters]>,
    pub(crate) main_thread: ThreadCounters,
    /// The thread that moves connections to the successor.
    pub(crate) mover: ThreadCounters,
    /// The threads that adopt those of other processes.
    pub(crate) adopter: ThreadCounters,
    /// Threads of the application that wake connections or send to them.
    pub(crate) senders: ThreadCounters,
}

/// One thread's counters. Only that thread writes them, so an addition is a load and a store. Only
/// the bytes of [`Counters::senders`] and [`Counters::adopter`] are written by many threads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ThreadCounters {
    served: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// The token of the connection that is served, plus one; 0 between calls.
    serving: AtomicU64,
    /// When that call began, in the clock's nanoseconds.
    call_began: AtomicU64,
    /// How often the thread has begun or ended a turn: an odd number in a turn.
    turn: AtomicU64,
    /// 1 while the worker may be in a call of the service, for the pause of a restart. Kept only with
    /// an exact state. For the adopters, which share this word: the number of adopters that may be in
    /// a call.
    pub(crate) in_calls: AtomicU64,
    /// Since when the worker's state cannot be built, in the clock's milliseconds, plus one; 0 if
    /// the worker can serve.
    failing_since: AtomicU64,
    is_shared: bool,
    waited: AtomicHistogram,
    served_for: AtomicHistogram,
}

impl ThreadCounters {
    /// A call begins at `now`, in the clock's nanoseconds, for a connection that has been ready
    /// since `ready_at`.
    pub(crate) fn begin_call(&self, token: u64, ready_at: u64, now: u64) {
        self.waited.add(now.saturating_sub(ready_at));
        self.call_began.store(now, Relaxed);
        self.serving.store(token + 1, Relaxed);
        add(&self.served, 1);
    }

    pub(crate) fn end_call(&self, now: u64) {
        self.served_for
            .add(now.saturating_sub(self.call_began.load(Relaxed)));
        self.serving.store(0, Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes_in: u64, bytes_out: u64) {
        if self.is_shared {
            self.bytes_in.fetch_add(bytes_in, Relaxed);
            self.bytes_out.fetch_add(bytes_out, Relaxed);
            return;
        }
        add(&self.bytes_in, bytes_in);
        add(&self.bytes_out, bytes_out);
    }

    /// The bytes that this thread has sent.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    /// A turn begins or ends.
    pub(crate) fn toggle_turn(&self) {
        add(&self.turn, 1);
    }

    /// In the clock's milliseconds. `None`: the worker can serve.
    pub(crate) fn set_failing_since(&self, since: Option<u64>) {
        self.failing_since
            .store(since.map_or(0, |since| since + 1), Relaxed);
    }

    pub(crate) fn failing_since(&self) -> Option<u64> {
        self.failing_since.load(Relaxed).checked_sub(1)
    }

    /// A number that no other turn of the thread has; `None` between turns.
    pub(crate) fn turn_number(&self) -> Option<u64> {
        let turn = self.turn.load(Relaxed);
        (turn % 2 == 1).then_some(turn)
    }

    /// The number of the call in progress; `None` between calls. The first call of the thread has
    /// the number 1.
    pub(crate) fn call_number(&self) -> Option<u64> {
        (self.serving.load(Relaxed) != 0).then(|| self.served.load(Relaxed))
    }

    /// The token of the connection that is served, and when the call began, in the clock's
    /// milliseconds.
    pub(crate) fn call(&self) -> Option<(u64, u64)> {
        let token = self.serving.load(Relaxed).checked_sub(1)?;
        Some((token, self.call_began.load(Relaxed) / 1_000_000))
    }
}

impl Counters {
    pub(crate) fn new(workers: usize, keepers: usize) -> Self {
        let threads = |count| (0..count).map(|_| ThreadCounters::default()).collect();
        let shared = || ThreadCounters {
            is_shared: true,
            ..ThreadCounters::default()
        };
        Self {
            workers: threads(workers),
            keepers: threads(keepers),
            adopter: shared(),
            senders: shared(),
            ..Self::default()
        }
    }

    /// Whether a worker or an adopter may be in a call of the service, see `Pause`.
    pub(crate) fn has_calls(&self) -> bool {
        let threads = self.workers.iter().chain([&self.adopter]);
        let mut words = threads.map(|thread| &thread.in_calls);
        words.any(|word| word.load(SeqCst) != 0)
    }

    /// Calls of the service.
    pub(crate) fn served(&self) -> u64 {
        let served = self
            .workers
            .iter()
            .map(|worker| worker.served.load(Relaxed));
        served.sum()
    }

    /// The counters' part of a snapshot. The caller adds the gauges and what the workers do.
    pub(crate) fn snapshot(&self) -> Stats {
        let sum = |counter: fn(&ThreadCounters) -> &AtomicU64| {
            let others = [
                &self.acceptor,
                &self.main_thread,
                &self.mover,
                &self.adopter,
                &self.senders,
            ];
            let threads = self.workers.iter().chain(&self.keepers).chain(others);
            threads.map(|thread| counter(thread).load(Relaxed)).sum()
        };
        let (mut waited, mut served_for) = (Histogram::default(), Histogram::default());
        for worker in &self.workers {
            worker.waited.add_to(&mut waited);
            worker.served_for.add_to(&mut served_for);
        }
        Stats {
            accepted: self.accepted.load(Relaxed),
            adopted: self.adopted.load(Relaxed),
            moved: self.moved.load(Relaxed),
            accept_errors: self.accept_errors.load(Relaxed),
            shed: self.shed.load(Relaxed),
            abandoned: self.abandoned.load(Relaxed),
            too_long: self.too_long.load(Relaxed),
            panics: self.panics.load(Relaxed),
            service_errors: self.service_errors.load(Relaxed),
            served: sum(|thread| &thread.served),
            bytes_in: sum(|thread| &thread.bytes_in),
            bytes_out: sum(|thread| &thread.bytes_out),
            refused: Refused {
                max_connections: self.refused_max_connections.load(Relaxed),
                max_per_client: self.refused_max_per_client.load(Relaxed),
                queue_full: self.refused_queue_full.load(Relaxed),
                queue_timeout: self.refused_queue_timeout.load(Relaxed),
            },
            expired: Expired {
                first_byte: self.expired_first_byte.load(Relaxed),
                idle: self.expired_idle.load(Relaxed),
                read: self.expired_read.load(Relaxed),
                write: self.expired_write.load(Relaxed),
            },
            waited,
            served_for,
            ..Stats::default()
        }
    }
}

/// Adds to a counter that one thread writes.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
}

/// Adds 1 to a counter that many threads write.
pub(crate) fn count(counter: &AtomicU64) {
    count_several(counter, 1);
}

/// Adds to a counter that many threads write.
pub(crate) fn count_several(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_by_powers_of_two() {
        let live = AtomicHistogram::default();
        for nanos in [0, 999, 1000, 1999, 2000, 4_000_000_000, u64::MAX] {
            live.add(nanos);
        }
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        live.add_to(&mut histogram);
        assert_eq!(histogram.buckets()[..3], [2, 2, 1]);
        assert_eq!(histogram.buckets()[Histogram::BUCKETS - 1], 1);
        assert_eq!(histogram.count(), 7);
        assert_eq!(histogram.quantile(0.0), Some(Duration::from_micros(1)));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(2)));
        let four_seconds = histogram.quantile(0.8).unwrap();
        assert!(
            (4..=8).contains(&four_seconds.as_secs()),
            "{four_seconds:?}"
        );
    }
}
