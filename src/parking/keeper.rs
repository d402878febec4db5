//! The keeper: the one thread that looks after parked connections while every worker is busy.
//!
//! It closes connections whose time-out has expired, and writes buffered output, also that of
//! workers in slow handlers ([`Outbox`](crate::connection::Outbox)). Where only one
//! thread may wait in the poller, the keeper is that thread, and puts ready connections on the
//! queue. It never calls the service.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{BATCH, Lot};
use crate::clock;
use crate::stats::count;
use crate::sys::{Events, Poller};

/// How often, in milliseconds, the keeper polls in place of busy workers, or checks for room.
pub(super) const TICK: u64 = 10;

/// After this many ticks of a millisecond in which no output was lent to an outbox, the keeper stops
/// ticking for them. A call that lasts longer has its output sent by then.
const QUIET_TICKS: u32 = 50;

/// The keeper's sleep, which other threads can shorten or end.
#[derive(Default)]
pub(super) struct KeeperSleep {
    state: Mutex<SleepState>,
    changed: Condvar,
    /// How often the keeper has run its loop.
    pub(super) loops: AtomicU64,
}

#[derive(Default)]
struct SleepState {
    /// When the keeper wakes up; 0 while it is awake.
    wake_at: u64,
    ended: bool,
}

impl KeeperSleep {
    /// Ends the sleep at `due`. False if it ends earlier anyway.
    pub(super) fn wake_by(&self, due: u64) -> bool {
        let mut state = self.state.lock();
        let is_earlier = state.wake_at > due;
        if is_earlier {
            state.wake_at = due;
            self.changed.notify_one();
        }
        is_earlier
    }

    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }
}

/// The keeper's loop, until the lot is shut.
pub(crate) fn run_keeper<S>(lot: &Lot<S>) {
    let mut events = Events::with_capacity(BATCH);
    let (mut seen, mut quiet_ticks) = (Vec::new(), 0);
    while !lot.keeper.state.lock().ended {
        count(&lot.keeper.loops);
        if lot.outboxes.is_watched() {
            quiet_ticks = if lot.outboxes.take_use() {
                0
            } else {
                quiet_ticks + 1
            };
            lot.send_outboxes(&mut seen);
            if quiet_ticks >= QUIET_TICKS {
                lot.outboxes.stop_watching();
            }
        }
        lot.expire(clock::millis());
        let polls = !Poller::SHARED && lot.has_room_for_batch();
        sleep(lot, polls.then_some(&mut events));
        if Poller::SHARED && must_poll(lot) {
            poll_for_workers(lot, &mut events, Some(Duration::ZERO));
        }
    }
}

/// Sleeps until there is something to do: in the poller if there are `events`.
fn sleep<S>(lot: &Lot<S>, events: Option<&mut Events>) {
    // A thread that needs the keeper earlier finds the latest time from here on, and lowers it.
    lot.keeper.state.lock().wake_at = u64::MAX;
    let wake_at = next_wake(lot, events.is_some());
    let mut state = lot.keeper.state.lock();
    state.wake_at = state.wake_at.min(wake_at);
    if let Some(events) = events {
        let left = time_left(&state);
        drop(state);
        poll_for_workers(lot, events, left);
        lot.keeper.state.lock().wake_at = 0;
        return;
    }
    while !state.ended {
        match time_left(&state) {
            Some(Duration::ZERO) => break,
            Some(left) => {
                let waited = lot.keeper.changed.wait_for(&mut state, left);
                // The clock is coarser than a tick for the outboxes.
                if waited.timed_out() && lot.outboxes.is_watched() {
                    break;
                }
            }
            None => lot.keeper.changed.wait(&mut state),
        }
    }
    state.wake_at = 0;
}

/// How much longer to sleep. `None`: until another thread ends the sleep.
fn time_left(state: &SleepState) -> Option<Duration> {
    if state.ended {
        return Some(Duration::ZERO);
    }
    let left = state.wake_at.saturating_sub(clock::millis());
    (state.wake_at < u64::MAX).then(|| Duration::from_millis(left))
}

/// When there is something to do, as far as is known now.
fn next_wake<S>(lot: &Lot<S>, in_poller: bool) -> u64 {
    let now = clock::millis();
    let mut wake_at = lot.wheel.lock().next().unwrap_or(u64::MAX);
    // No other thread polls where only one may.
    let unpolled = !Poller::SHARED && !in_poller;
    if unpolled || lot.unwritten.load(SeqCst) > 0 {
        wake_at = wake_at.min(now + TICK);
    }
    if lot.outboxes.is_watched() {
        wake_at = wake_at.min(now + 1);
    }
    if let Some(limit) = lot.queue_timeout {
        wake_at = wake_at.min(now + (limit / 4).clamp(TICK, 1000));
    }
    wake_at
}

/// Whether the keeper has to poll: no worker does, and there is output to write, or a connection
/// may be waiting for a worker for too long.
fn must_poll<S>(lot: &Lot<S>) -> bool {
    let has_reason = lot.unwritten.load(SeqCst) > 0 || lot.queue_timeout.is_some();
    has_reason && lot.sleepers.load(SeqCst) == 0 && lot.queue_has_room()
}

/// Takes ready connections from the poller. Writes their output, and queues those that need the
/// service.
fn poll_for_workers<S>(lot: &Lot<S>, events: &mut Events, timeout: Option<Duration>) {
    lot.poll(events, lot.batch(), timeout);
    for token in lot.ready(events) {
        if let Some(turn) = lot.start(token, &lot.counters.keeper) {
            turn.advance();
        }
    }
    lot.pass_wake_on(events);
}
