//! How many workers are active: as many as the cores carry, and more as far as workers are blocked.
//!
//! A server may have many more workers than cores, for handlers that block. If all of them waited
//! in the poller, each event would wake another worker, which then competes for a CPU with the
//! worker that could have served the event next. So only some workers are *active*: they wait in
//! the poller, or serve. The others *rest* on a stack; the last to rest is the first to come back.
//! The models are the concurrency value of Windows' completion ports and Linux' concurrency-managed
//! workqueues.
//!
//! ```text
//! allowed = cores / (1 - blocked share of the time spent serving) + long calls
//! ```
//!
//! - **The blocked share** comes from samples: a worker times one turn in [`SAMPLE_EVERY`]. The
//!   turn has blocked if the thread has given up its CPU by itself meanwhile; preemption does not
//!   count. This share covers calls that block for less than a tick.
//! - **Long calls** are those that the last two scans have both seen. A worker in a long call is
//!   blocked, or computes; either way it serves no other client.
//!
//! More workers come back only when every active worker is serving: then no thread waits in the
//! poller, and a client may be waiting. The *standby*, the worker on top of the stack, watches for
//! that while the server is busy. It wakes up every [`TICK`], scans the calls, and comes back
//! itself. In a quiet server it sleeps; the last worker that leaves the poller wakes it, at most
//! once in [`QUIET_TICKS`] ticks.
//!
//! Workers rest after a turn, one by one, when more are active than allowed. The number that is
//! allowed falls slowly, since a worker too few costs a client a tick, and a worker too many costs
//! next to nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::stats::ThreadCounters;
use crate::sys::{self, ThreadUsage};

/// One turn in this many is timed.
const SAMPLE_EVERY: u32 = 32;

/// How often the standby scans the calls while the server is busy.
const TICK: Duration = Duration::from_millis(1);

/// After this many ticks in which a worker waited in the poller, the standby sleeps.
const QUIET_TICKS: u32 = 20;

/// How often samples alone lead to an adjustment.
const ADJUST_EVERY: Duration = Duration::from_millis(10);

/// The time in which the weight of a sample falls to 1/e, in seconds.
const MEMORY: f64 = 0.5;

/// See the head of the module.
pub(super) struct Concurrency {
    cores: usize,
    start: Instant,
    /// Workers that wait in the poller, or serve.
    active: AtomicUsize,
    /// How many may be active.
    allowed: AtomicUsize,
    /// Workers that rest.
    resting: AtomicUsize,
    /// The standby scans every tick.
    is_ticking: AtomicBool,
    stack: Mutex<Stack>,
    estimate: Mutex<Estimate>,
    /// When samples may lead to the next adjustment, in nanoseconds since `start`.
    next_adjustment: AtomicU64,
    places: Box<[Place]>,
}

struct Stack {
    /// The workers that rest. The last one is the standby.
    workers: Vec<usize>,
    is_closed: bool,
}

struct Estimate {
    scanned_at: Instant,
    /// Decaying sums over the samples, in nanoseconds.
    blocked: f64,
    served: f64,
}

/// What belongs to one worker.
#[derive(Default)]
#[repr(align(128))]
struct Place {
    called: Condvar,
    /// Sums over the samples since the last scan, in nanoseconds. Only the worker adds to them.
    blocked: AtomicU64,
    served: AtomicU64,
    /// The call that the last scan has seen; 0 for none.
    seen: AtomicU64,
}

/// A turn that is being timed.
pub(crate) struct Sample {
    began: Instant,
    usage: ThreadUsage,
}

impl Concurrency {
    pub(super) fn new(workers: usize, cores: usize) -> Self {
        let now = Instant::now();
        Self {
            cores,
            start: now,
            active: AtomicUsize::new(workers),
            allowed: AtomicUsize::new(cores.min(workers)),
            resting: AtomicUsize::new(0),
            is_ticking: AtomicBool::new(false),
            stack: Mutex::new(Stack {
                workers: Vec::with_capacity(workers),
                is_closed: false,
            }),
            estimate: Mutex::new(Estimate {
                scanned_at: now,
                blocked: 0.0,
                served: 0.0,
            }),
            next_adjustment: AtomicU64::new(0),
            places: (0..workers).map(|_| Place::default()).collect(),
        }
    }

    // ---- the workers' side ----

    /// Rests, if more workers are active than allowed, until the worker is called back or the lot
    /// is shut. True if it rested.
    #[inline]
    pub(super) fn rest_if_surplus(
        &self,
        worker: usize,
        counters: &[ThreadCounters],
        sleepers: &AtomicUsize,
    ) -> bool {
        self.active.load(Relaxed) > self.allowed.load(Relaxed)
            && self.rest(worker, counters, sleepers)
    }

    #[cold]
    fn rest(&self, worker: usize, counters: &[ThreadCounters], sleepers: &AtomicUsize) -> bool {
        let mut stack = self.stack.lock();
        let allowed = self.allowed.load(SeqCst);
        let leave = |active| (active > allowed).then_some(active - 1);
        if stack.is_closed || self.active.fetch_update(SeqCst, SeqCst, leave).is_err() {
            return false;
        }
        stack.workers.push(worker);
        self.resting.store(stack.workers.len(), SeqCst);
        // The last worker may have left the poller just before, and seen no worker to wake.
        if sleepers.load(SeqCst) == 0 {
            self.is_ticking.store(true, SeqCst);
        }
        let mut quiet_ticks = 0;
        while !stack.is_closed && stack.workers.contains(&worker) {
            let is_standby = stack.workers.last() == Some(&worker);
            if !is_standby || !self.is_ticking.load(SeqCst) {
                quiet_ticks = 0;
                self.places[worker].called.wait(&mut stack);
                continue;
            }
            if !self.places[worker]
                .called
                .wait_for(&mut stack, TICK)
                .timed_out()
            {
                continue;
            }
            if sleepers.load(SeqCst) > 0 {
                quiet_ticks += 1;
                if quiet_ticks >= QUIET_TICKS {
                    self.is_ticking.store(false, SeqCst);
                    // A worker that leaves the poller from here on wakes the standby again.
                    self.is_ticking.store(sleepers.load(SeqCst) == 0, SeqCst);
                }
                continue;
            }
            quiet_ticks = 0;
            let wanted = self.adjust(counters, true);
            self.call_back(&mut stack, wanted);
        }
        true
    }

    /// Has the standby tick. Called by the last worker that leaves the poller.
    #[inline]
    pub(super) fn watch(&self) {
        if self.resting.load(SeqCst) > 0 && !self.is_ticking.load(SeqCst) {
            self.start_ticking();
        }
    }

    #[cold]
    fn start_ticking(&self) {
        let stack = self.stack.lock();
        self.is_ticking.store(true, SeqCst);
        if let Some(standby) = stack.workers.last() {
            self.places[*standby].called.notify_one();
        }
    }

    /// Begins to time a turn, if it is the turn of this worker to be timed.
    #[inline]
    pub(super) fn begin_sample(&self, turns: &mut u32) -> Option<Sample> {
        *turns = turns.wrapping_add(1);
        if self.places.len() <= self.cores || *turns % SAMPLE_EVERY != 1 {
            return None;
        }
        let usage = sys::clock::thread_usage()?;
        let began = Instant::now();
        Some(Sample { began, usage })
    }

    #[cold]
    pub(super) fn end_sample(&self, sample: Sample, worker: usize, counters: &[ThreadCounters]) {
        let now = Instant::now();
        let Some(usage) = sys::clock::thread_usage() else {
            return;
        };
        let served = nanos(now - sample.began);
        let blocked = match usage.waits > sample.usage.waits {
            true => served.saturating_sub(usage.cpu - sample.usage.cpu),
            false => 0,
        };
        let place = &self.places[worker];
        place.served.fetch_add(served, Relaxed);
        place.blocked.fetch_add(blocked, Relaxed);
        let at = nanos(now - self.start);
        let due = self.next_adjustment.load(Relaxed);
        let next = at + nanos(ADJUST_EVERY);
        let claimed = at >= due
            && self
                .next_adjustment
                .compare_exchange(due, next, Relaxed, Relaxed)
                .is_ok();
        if claimed {
            self.adjust(counters, false);
        }
    }

    /// Wakes every worker that rests, for good.
    pub(super) fn close(&self) {
        let mut stack = self.stack.lock();
        stack.is_closed = true;
        for worker in stack.workers.drain(..) {
            self.places[worker].called.notify_one();
        }
    }

    // ---- the policy ----

    /// Scans the calls, and sets how many workers may be active. Returns that number. `is_busy`:
    /// no worker waits in the poller.
    fn adjust(&self, counters: &[ThreadCounters], is_busy: bool) -> usize {
        let mut estimate = self.estimate.lock();
        let now = Instant::now();
        let passed = now - estimate.scanned_at;
        if passed < TICK / 2 {
            return self.allowed.load(SeqCst);
        }
        estimate.scanned_at = now;
        let decay = (-passed.as_secs_f64() / MEMORY).exp();
        estimate.blocked *= decay;
        estimate.served *= decay;
        let mut long_calls = 0;
        for (place, counters) in self.places.iter().zip(counters) {
            estimate.blocked += place.blocked.swap(0, Relaxed) as f64;
            estimate.served += place.served.swap(0, Relaxed) as f64;
            let call = counters.call_number().unwrap_or_default();
            let before = place.seen.swap(call, Relaxed);
            long_calls += usize::from(call != 0 && call == before);
        }
        let state = Observed {
            workers: self.places.len(),
            cores: self.cores,
            active: self.active.load(SeqCst),
            allowed: self.allowed.load(SeqCst),
            blocked_share: match estimate.served > 0.0 {
                true => estimate.blocked / estimate.served,
                false => 0.0,
            },
            long_calls,
            is_busy,
        };
        let allowed = state.allowed_next();
        self.allowed.store(allowed, SeqCst);
        allowed
    }

    /// Has workers come back from the top of the stack, until `wanted` are active.
    fn call_back(&self, stack: &mut Stack, wanted: usize) {
        while self.active.load(SeqCst) < wanted {
            let Some(worker) = stack.workers.pop() else {
                break;
            };
            self.active.fetch_add(1, SeqCst);
            self.places[worker].called.notify_one();
        }
        self.resting.store(stack.workers.len(), SeqCst);
        if let Some(standby) = stack.workers.last() {
            self.places[*standby].called.notify_one();
        }
    }
}

/// What an adjustment is made from.
#[derive(Clone, Copy, Debug)]
struct Observed {
    workers: usize,
    cores: usize,
    active: usize,
    allowed: usize,
    blocked_share: f64,
    long_calls: usize,
    is_busy: bool,
}

impl Observed {
    /// How many workers may be active from now on.
    fn allowed_next(self) -> usize {
        let running_share = (1.0 - self.blocked_share).max(1.0 / self.workers as f64 / 4.0);
        let carried = (self.cores as f64 / running_share + 0.25) as usize;
        let mut allowed = carried + self.long_calls;
        if self.is_busy && self.long_calls >= self.active {
            // No active worker makes progress, so more may be needed than anybody knows.
            allowed = allowed.max(self.active + (self.active / 4).max(self.cores));
        }
        // It falls by a sixteenth at a time.
        let least = self.allowed - self.allowed.div_ceil(16);
        allowed.max(least).clamp(1, self.workers)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
