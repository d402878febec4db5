//! Tests of how many workers are active: the decisions, and what rests and wakes.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::*;

const LIMIT: Duration = Duration::from_secs(120);

const IDLE: Observed = Observed {
    workers: 64,
    cores: 2,
    active: 2,
    allowed: 2,
    blocked_share: 0.0,
    long_turns: 0,
    is_busy: false,
};

#[test]
fn as_many_are_allowed_as_the_cores_carry() {
    let busy = Observed {
        is_busy: true,
        ..IDLE
    };
    let share = |blocked_share| Observed {
        blocked_share,
        ..IDLE
    };
    let long_turns = |long_turns, active| Observed {
        long_turns,
        active,
        ..busy
    };
    let few = Observed { workers: 4, ..IDLE };
    for (what, state, allowed) in [
        ("idle", IDLE, 2),
        ("all turns are fast", busy, 2),
        ("half of the time is blocked", share(0.5), 4),
        ("nine tenths of the time are blocked", share(0.9), 20),
        ("all of the time is blocked", share(1.0), 64),
        ("some turns are long", long_turns(5, 8), 7),
        ("all turns are long", long_turns(2, 2), 4),
        ("all of many turns are long", long_turns(32, 32), 40),
        ("all of very many turns are long", long_turns(60, 60), 64),
        (
            "all turns are long, and a worker waits",
            Observed {
                is_busy: false,
                ..long_turns(2, 2)
            },
            4,
        ),
        ("few workers", few, 2),
        (
            "few workers that block",
            Observed {
                blocked_share: 0.9,
                ..few
            },
            4,
        ),
        (
            "one worker",
            Observed {
                workers: 1,
                active: 1,
                allowed: 1,
                ..IDLE
            },
            1,
        ),
        (
            "as many workers as cores",
            Observed { workers: 2, ..busy },
            2,
        ),
        (
            "more cores than workers",
            Observed {
                workers: 4,
                cores: 16,
                ..busy
            },
            4,
        ),
        (
            "one core",
            Observed {
                cores: 1,
                active: 1,
                allowed: 1,
                ..busy
            },
            1,
        ),
        (
            "one core, one long turn",
            Observed {
                cores: 1,
                active: 1,
                allowed: 1,
                long_turns: 1,
                ..busy
            },
            2,
        ),
    ] {
        assert_eq!(state.allowed_next(), allowed, "{what}: {state:?}");
    }
}

#[test]
fn the_number_that_is_allowed_falls_slowly_and_to_the_end() {
    let mut state = Observed {
        allowed: 64,
        ..IDLE
    };
    let mut steps = 0;
    while state.allowed > 2 {
        let next = state.allowed_next();
        assert!(next < state.allowed && next >= state.allowed * 15 / 16 - 1);
        state.allowed = next;
        steps += 1;
    }
    assert!((20..80).contains(&steps), "{steps}");
    assert_eq!(state.allowed_next(), 2);
}

#[test]
fn the_number_that_is_allowed_is_always_possible() {
    for workers in [1, 2, 3, 16, 256] {
        for cores in [1, 2, 64] {
            for blocked_share in [0.0, 0.5, 0.99, 1.0] {
                for (active, allowed) in [(1, 1), (workers, workers), (workers, 1)] {
                    for (long_turns, is_busy) in [(0, false), (0, true), (active, true)] {
                        let state = Observed {
                            workers,
                            cores,
                            active,
                            allowed,
                            blocked_share,
                            long_turns,
                            is_busy,
                        };
                        let next = state.allowed_next();
                        assert!((1..=workers).contains(&next), "{next}: {state:?}");
                        // Enough for the cores, and for one more if no worker makes progress.
                        assert!(next >= cores.min(workers), "{next}: {state:?}");
                        let is_stuck = is_busy && long_turns == active;
                        assert!(
                            !is_stuck || next > active.min(workers - 1),
                            "{next}: {state:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Workers that rest, without anything else of a server.
struct Pool {
    concurrency: Concurrency,
    counters: Box<[ThreadCounters]>,
    sleepers: AtomicUsize,
}

impl Pool {
    fn new(workers: usize, cores: usize) -> Arc<Self> {
        Arc::new(Self {
            concurrency: Concurrency::new(workers, cores),
            counters: (0..workers).map(|_| ThreadCounters::default()).collect(),
            sleepers: AtomicUsize::new(1),
        })
    }

    fn rest_if_surplus(&self, worker: usize) -> bool {
        self.concurrency.has_surplus()
            && (self.concurrency).rest(worker, &self.counters, &self.sleepers)
    }

    /// Makes these workers rest, one after another.
    fn rest(self: &Arc<Self>, workers: impl Iterator<Item = usize>) -> Vec<JoinHandle<bool>> {
        let threads = workers.map(|worker| {
            let resting = self.concurrency.resting.load(SeqCst);
            let pool = Arc::clone(self);
            let thread = thread::spawn(move || pool.rest_if_surplus(worker));
            until("the worker rests", || {
                self.concurrency.resting.load(SeqCst) == resting + 1
            });
            thread
        });
        threads.collect()
    }

    /// The last worker has left the poller, and is in a turn.
    fn block(&self, worker: usize) {
        self.counters[worker].toggle_turn();
        self.sleepers.store(0, SeqCst);
        self.concurrency.ensure_scanning();
    }
}

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn surplus_workers_rest_until_the_end() {
    let pool = Pool::new(8, 2);
    let threads = pool.rest(2..8);
    assert_eq!(pool.concurrency.active.load(SeqCst), 2);
    assert!(!pool.rest_if_surplus(0) && !pool.rest_if_surplus(1));
    assert!(threads.iter().all(|thread| !thread.is_finished()));
    pool.concurrency.close();
    for thread in threads {
        assert!(thread.join().unwrap());
    }
    assert!(!pool.rest_if_surplus(0));
}

#[test]
fn when_all_are_blocked_the_last_that_rested_come_back_first() {
    let pool = Pool::new(4, 1);
    let mut threads = pool.rest(1..4);
    pool.block(0);
    // Each worker that comes back blocks as well.
    for (worker, thread) in (1..4).zip(threads.drain(..)).rev() {
        until("the worker comes back", || thread.is_finished());
        assert!(thread.join().unwrap());
        let (active, resting) = (&pool.concurrency.active, &pool.concurrency.resting);
        assert_eq!(active.load(SeqCst), 5 - worker);
        until("it is counted", || resting.load(SeqCst) == worker - 1);
        pool.block(worker);
    }
}

#[test]
fn no_worker_comes_back_while_turns_are_short() {
    let pool = Pool::new(4, 1);
    let scanned_at = || pool.concurrency.estimate.lock().scanned_at;
    let scan = || {
        let before = scanned_at();
        until("the turns are scanned", || {
            pool.concurrency.adjust(&pool.counters, true);
            scanned_at() != before
        });
        pool.concurrency.allowed.load(SeqCst)
    };
    for _ in 0..20 {
        pool.counters[0].toggle_turn();
        assert_eq!(scan(), 1);
        pool.counters[0].toggle_turn();
    }
    let long_turn_at = || pool.concurrency.estimate.lock().long_turn_at;
    assert_eq!(long_turn_at(), pool.concurrency.start);
    // The same turn at two scans is a long one.
    pool.counters[0].toggle_turn();
    assert_eq!([scan(), scan()], [1, 2]);
    assert_eq!(long_turn_at(), scanned_at());
}

#[test]
fn the_standby_scans_less_often_when_no_turn_has_been_long_for_a_while() {
    for (millis, interval) in [(0, 1), (999, 1), (1000, 4), (100_000, 4)] {
        let since_long_turn = Duration::from_millis(millis);
        assert_eq!(scan_interval(since_long_turn).as_millis(), interval);
    }
}

#[test]
fn the_standby_sleeps_while_a_worker_waits_in_the_poller() {
    let pool = Pool::new(4, 1);
    let threads = pool.rest(1..4);
    let is_scanning = || pool.concurrency.is_scanning.load(SeqCst);
    for _ in 0..3 {
        until("the standby sleeps", || !is_scanning());
        pool.sleepers.store(0, SeqCst);
        pool.concurrency.ensure_scanning();
        assert!(is_scanning());
        pool.sleepers.store(1, SeqCst);
    }
    assert_eq!(pool.concurrency.active.load(SeqCst), 1);
    pool.concurrency.close();
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

#[test]
fn one_turn_in_many_is_timed_and_blocked_time_allows_more_workers() {
    let pool = Pool::new(64, 2);
    let mut turns = 0;
    let mut sample = || pool.concurrency.begin_sample(&mut turns);
    if sys::clock::thread_usage().is_none() {
        return;
    }
    let timed = (0..2 * SAMPLE_EVERY).filter(|_| sample().is_some()).count();
    assert_eq!(timed, 2);
    let sample = sample().unwrap();
    // The turn waits for another thread.
    let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
    assert!(receiver.recv_timeout(ADJUST_EVERY).is_err());
    drop(sender);
    pool.concurrency.end_sample(sample, 0, &pool.counters);
    let allowed = pool.concurrency.allowed.load(SeqCst);
    assert!(allowed > 8, "{allowed}");
    // With as many cores as workers there is nothing to find out.
    let pool = Pool::new(2, 2);
    assert!(pool.concurrency.begin_sample(&mut 0).is_none());
}
