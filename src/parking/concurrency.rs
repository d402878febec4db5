//! How many workers are active: as many as the cores carry, and more as far as workers are blocked.
//!
//! A server may have many more workers than cores, for handlers that block. If all of them waited
//! in the poller, each event would wake another worker, which then competes for a CPU with the
//! worker that could have served the event next. So only some workers are *active*: they wait in
//! the poller, or serve. The others *rest* on a stack; the last worker to rest is the first to come
//! back. The models are the concurrency value of Windows' completion ports and Linux'
//! concurrency-managed workqueues.
//!
//! ```text
//! allowed = cores / (1 - blocked share of the time spent serving) + long turns
//! ```
//!
//! - **The blocked share** comes from samples: a worker times one turn in [`SAMPLE_EVERY`]. The
//!   turn has blocked if the thread has given up its CPU by itself meanwhile; preemption does not
//!   count. This share covers turns that block for less than [`SCAN_INTERVAL`].
//! - **Long turns** are turns that were in progress at the last two scans. A worker in a long turn
//!   is blocked or computes, in the service or in the build of its state. In either case the worker
//!   serves no other client.
//!
//! More workers come back only when every active worker is serving: then no thread waits in the
//! poller, and a client may be waiting. The *standby*, the worker on top of the stack, checks this
//! while the server is busy. The standby wakes up every [`SCAN_INTERVAL`] and scans the turns. If
//! more workers are allowed, the workers on top of the stack come back, the standby first. After
//! [`QUIET_SCANS`] intervals in which a worker waited in the poller, the standby sleeps until the
//! last worker leaves the poller.
//!
//! Each wake-up of the standby costs as much CPU as some requests. So where turns are short, the
//! standby scans every [`LONG_SCAN_INTERVAL`], as soon as no turn was long for [`NO_LONG_TURN`].
//! The first long turn after that delays clients by up to twice the interval, which is less than
//! one hundredth of the time.
//!
//! A worker rests after a turn if more workers are active than allowed. The allowed number falls
//! slowly: one worker too few delays a client by [`SCAN_INTERVAL`], and one worker too many costs
//! next to nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::stats::ThreadCounters;
use crate::sys::{self, ThreadUsage};

/// One turn in this many is timed.
const SAMPLE_EVERY: u32 = 32;

/// How often the standby scans the turns while the server is busy.
const SCAN_INTERVAL: Duration = Duration::from_millis(1);

/// How often the standby scans while no turn has been long for [`NO_LONG_TURN`].
const LONG_SCAN_INTERVAL: Duration = Duration::from_millis(4);

/// After this time without a long turn, the standby scans less often.
const NO_LONG_TURN: Duration = Duration::from_secs(1);

/// After this many intervals in a row in which a worker waited in the poller, the standby sleeps.
const QUIET_SCANS: u32 = 20;

/// The time between two adjustments that samples cause without the standby.
const ADJUST_EVERY: Duration = Duration::from_millis(10);

/// The time in which the weight of a sample falls to 1/e, in seconds.
const MEMORY: f64 = 0.5;

/// Decides how many workers are active. The head of this file has the rules.
pub(super) struct Concurrency {
    cores: usize,
    start: Instant,
    /// The number of workers that wait in the poller or serve. A worker that cannot serve is
    /// absent, and neither active nor resting.
    active: AtomicUsize,
    /// The number of workers that are allowed to be active.
    allowed: AtomicUsize,
    /// The number of workers that rest.
    resting: AtomicUsize,
    /// The standby scans every [`SCAN_INTERVAL`].
    is_scanning: AtomicBool,
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
    /// When a scan last saw a long turn, or the server's start.
    long_turn_at: Instant,
    /// Decaying sums over the samples, in nanoseconds.
    blocked: f64,
    served: f64,
}

/// The samples of one worker, and the condition on which the worker rests.
#[derive(Default)]
#[repr(align(128))]
struct Place {
    called_back: Condvar,
    /// Sums over the samples since the last scan, in nanoseconds. Only the worker adds to them.
    blocked: AtomicU64,
    served: AtomicU64,
    /// The number of the turn that was in progress at the last scan; 0 for none.
    seen_turn: AtomicU64,
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
            // The last active worker may leave the poller before the others rest.
            is_scanning: AtomicBool::new(true),
            stack: Mutex::new(Stack {
                workers: Vec::with_capacity(workers),
                is_closed: false,
            }),
            estimate: Mutex::new(Estimate {
                scanned_at: now,
                long_turn_at: now,
                blocked: 0.0,
                served: 0.0,
            }),
            next_adjustment: AtomicU64::new(0),
            places: (0..workers).map(|_| Place::default()).collect(),
        }
    }

    // ---- the workers' side ----

    /// Whether more workers are active than allowed.
    #[inline]
    pub(super) fn has_surplus(&self) -> bool {
        self.active.load(Relaxed) > self.allowed.load(Relaxed)
    }

    /// If more workers are active than allowed, rests until the worker is called back or
    /// [`close`](Self::close) is called. True if the worker rested.
    #[cold]
    pub(super) fn rest(
        &self,
        worker: usize,
        counters: &[ThreadCounters],
        sleepers: &AtomicUsize,
    ) -> bool {
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
            self.is_scanning.store(true, SeqCst);
        }
        let mut quiet_scans = 0;
        while !stack.is_closed && stack.workers.contains(&worker) {
            let is_standby = stack.workers.last() == Some(&worker);
            if !is_standby || !self.is_scanning.load(SeqCst) {
                quiet_scans = 0;
                self.places[worker].called_back.wait(&mut stack);
                continue;
            }
            let since_long_turn = self.estimate.lock().long_turn_at.elapsed();
            if !self.places[worker]
                .called_back
                .wait_for(&mut stack, scan_interval(since_long_turn))
                .timed_out()
            {
                continue;
            }
            if sleepers.load(SeqCst) > 0 {
                quiet_scans += 1;
                if quiet_scans >= QUIET_SCANS {
                    self.is_scanning.store(false, SeqCst);
                    // A worker that leaves the poller from here on wakes the standby again.
                    self.is_scanning.store(sleepers.load(SeqCst) == 0, SeqCst);
                }
                continue;
            }
            quiet_scans = 0;
            let wanted = self.adjust(counters, true);
            self.call_back(&mut stack, wanted);
        }
        true
    }

    /// A worker cannot serve, and is not active: the standby may call another one back.
    pub(super) fn begin_absence(&self, sleepers: &AtomicUsize) {
        self.active.fetch_sub(1, SeqCst);
        if sleepers.load(SeqCst) == 0 {
            self.start_scanning();
        }
    }

    /// Waits for `duration`. False if [`close`](Self::close) was called.
    pub(super) fn wait_absent(&self, worker: usize, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        let mut stack = self.stack.lock();
        while !stack.is_closed {
            let called_back = &self.places[worker].called_back;
            if called_back.wait_until(&mut stack, until).timed_out() {
                return !stack.is_closed;
            }
        }
        false
    }

    /// The worker can serve again.
    pub(super) fn end_absence(&self) {
        self.active.fetch_add(1, SeqCst);
    }

    /// Makes the standby scan. Called by the last worker that leaves the poller.
    #[inline]
    pub(super) fn ensure_scanning(&self) {
        if self.resting.load(SeqCst) > 0 && !self.is_scanning.load(SeqCst) {
            self.start_scanning();
        }
    }

    #[cold]
    fn start_scanning(&self) {
        let stack = self.stack.lock();
        self.is_scanning.store(true, SeqCst);
        if let Some(standby) = stack.workers.last() {
            self.places[*standby].called_back.notify_one();
        }
    }

    /// Begins to time a turn: one in [`SAMPLE_EVERY`], and none if there are no more workers than
    /// cores. `turns` counts the worker's turns.
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

    /// Wakes every worker that rests or is absent. No worker rests after this.
    pub(super) fn close(&self) {
        let mut stack = self.stack.lock();
        stack.is_closed = true;
        stack.workers.clear();
        for place in &self.places {
            place.called_back.notify_one();
        }
    }

    // ---- the policy ----

    /// Scans the turns, and sets how many workers are allowed to be active. Returns the number.
    /// `is_busy`: no worker waits in the poller.
    fn adjust(&self, counters: &[ThreadCounters], is_busy: bool) -> usize {
        let mut estimate = self.estimate.lock();
        let now = Instant::now();
        let passed = now - estimate.scanned_at;
        if passed < SCAN_INTERVAL / 2 {
            return self.allowed.load(SeqCst);
        }
        estimate.scanned_at = now;
        let decay = (-passed.as_secs_f64() / MEMORY).exp();
        estimate.blocked *= decay;
        estimate.served *= decay;
        let mut long_turns = 0;
        for (place, counters) in self.places.iter().zip(counters) {
            estimate.blocked += place.blocked.swap(0, Relaxed) as f64;
            estimate.served += place.served.swap(0, Relaxed) as f64;
            let turn = counters.turn_number().unwrap_or_default();
            let before = place.seen_turn.swap(turn, Relaxed);
            long_turns += usize::from(turn != 0 && turn == before);
        }
        if long_turns > 0 {
            estimate.long_turn_at = now;
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
            long_turns,
            is_busy,
        };
        let allowed = state.allowed_next();
        self.allowed.store(allowed, SeqCst);
        allowed
    }

    /// Calls workers back from the top of the stack, until `wanted` workers are active.
    fn call_back(&self, stack: &mut Stack, wanted: usize) {
        while self.active.load(SeqCst) < wanted {
            let Some(worker) = stack.workers.pop() else {
                break;
            };
            self.active.fetch_add(1, SeqCst);
            self.places[worker].called_back.notify_one();
        }
        self.resting.store(stack.workers.len(), SeqCst);
        if let Some(standby) = stack.workers.last() {
            self.places[*standby].called_back.notify_one();
        }
    }
}

/// What the number of allowed workers is computed from.
#[derive(Clone, Copy, Debug)]
struct Observed {
    workers: usize,
    cores: usize,
    active: usize,
    allowed: usize,
    blocked_share: f64,
    long_turns: usize,
    is_busy: bool,
}

impl Observed {
    /// How many workers may be active from now on.
    fn allowed_next(self) -> usize {
        let running_share = (1.0 - self.blocked_share).max(1.0 / self.workers as f64 / 4.0);
        let carried = (self.cores as f64 / running_share + 0.25) as usize;
        let mut allowed = carried + self.long_turns;
        if self.is_busy && self.long_turns >= self.active {
            // All active workers are in long turns, so the estimate says nothing about the clients
            // that wait: add workers step by step.
            allowed = allowed.max(self.active + (self.active / 4).max(self.cores));
        }
        // The number falls by at most a sixteenth at a time.
        let least = self.allowed - self.allowed.div_ceil(16);
        allowed.max(least).clamp(1, self.workers)
    }
}

/// How long the standby waits until the next scan.
fn scan_interval(since_long_turn: Duration) -> Duration {
    match since_long_turn < NO_LONG_TURN {
        true => SCAN_INTERVAL,
        false => LONG_SCAN_INTERVAL,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
