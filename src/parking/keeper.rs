//! The keeper: the one thread that looks after waiting connections while every worker is busy.
//!
//! It closes what has waited for too long and writes out buffered output. Where only one thread may wait in the
//! poller, it is that thread, and brings ready connections to the queue. It never calls a service.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{BATCH, Lot, Tended, Turn};
use crate::clock;
use crate::stats::count;
use crate::sys::{Events, Poller};

/// How often, in milliseconds, the keeper looks around while it stands in for busy workers, or waits for room.
pub(super) const TICK: u64 = 10;

/// The keeper's sleep, which others can shorten or end.
#[derive(Default)]
pub(super) struct Nap {
    state: Mutex<State>,
    changed: Condvar,
    /// How often the keeper has looked around.
    pub(super) turns: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Until when it sleeps; 0 while it does not.
    until: u64,
    ended: bool,
}

impl Nap {
    /// Ends the sleep at that time, if it would last longer; true if so.
    pub(super) fn no_longer_than(&self, due: u64) -> bool {
        let mut state = self.state.lock();
        let shorter = state.until > due;
        if shorter {
            state.until = due;
            self.changed.notify_one();
        }
        shorter
    }

    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }
}

/// The keeper's life: until the lot ends.
pub(crate) fn keep<S>(lot: &Lot<S>) {
    let mut events = Events::with_capacity(BATCH);
    while !lot.nap.state.lock().ended {
        count(&lot.nap.turns);
        lot.expire(clock::millis());
        let asks = !Poller::SHARED && lot.takes_a_batch();
        sleep(lot, asks.then_some(&mut events));
        if Poller::SHARED && is_needed(lot) {
            stand_in(lot, &mut events, Some(Duration::ZERO));
        }
    }
}

/// Sleeps until the next thing to do: in the poller, if events are wanted.
fn sleep<S>(lot: &Lot<S>, events: Option<&mut Events>) {
    // Whoever brings something forward from here on finds `until` at its highest, and lowers it.
    lot.nap.state.lock().until = u64::MAX;
    let wake = next_wake(lot, events.is_some());
    let mut state = lot.nap.state.lock();
    state.until = state.until.min(wake);
    if let Some(events) = events {
        let left = time_left(&state);
        drop(state);
        stand_in(lot, events, left);
        lot.nap.state.lock().until = 0;
        return;
    }
    while !state.ended {
        match time_left(&state) {
            Some(Duration::ZERO) => break,
            Some(left) => {
                lot.nap.changed.wait_for(&mut state, left);
            }
            None => lot.nap.changed.wait(&mut state),
        }
    }
    state.until = 0;
}

/// How much longer to sleep; `None` means until somebody says otherwise.
fn time_left(state: &State) -> Option<Duration> {
    if state.ended {
        return Some(Duration::ZERO);
    }
    let left = state.until.saturating_sub(clock::millis());
    (state.until < u64::MAX).then(|| Duration::from_millis(left))
}

/// The time of the next thing to do, as far as is known now.
fn next_wake<S>(lot: &Lot<S>, in_poller: bool) -> u64 {
    let now = clock::millis();
    let mut wake = lot.wheel.lock().next().unwrap_or(u64::MAX);
    // Nobody else looks into the poller where only one thread may.
    let is_missed = !Poller::SHARED && !in_poller;
    if is_missed || lot.unwritten.load(SeqCst) > 0 {
        wake = wake.min(now + TICK);
    }
    if let Some(limit) = lot.queue_timeout {
        wake = wake.min(now + (limit / 4).clamp(TICK, 1000));
    }
    wake
}

/// Whether there is something for the keeper to do in the poller: no worker looks there, and a client is to get its
/// output, or may be waiting for a worker for too long.
fn is_needed<S>(lot: &Lot<S>) -> bool {
    let wanted = lot.unwritten.load(SeqCst) > 0 || lot.queue_timeout.is_some();
    wanted && lot.sleepers.load(SeqCst) == 0 && lot.queue_has_room()
}

/// Takes ready connections from the poller: writes where output waits, and queues the others.
fn stand_in<S>(lot: &Lot<S>, events: &mut Events, timeout: Option<Duration>) {
    lot.fetch(events, lot.batch(), timeout);
    for token in lot.ready(events) {
        if let Some(turn) = lot.start(token) {
            tend(turn);
        }
    }
    lot.return_wake(events);
}

/// Does what needs no service; a connection that does is put on the queue.
pub(super) fn tend<S>(mut turn: Turn<'_, S>) {
    loop {
        let Some(occupant) = turn.occupant() else {
            return;
        };
        if occupant.is_serving() && !occupant.conn.has_output() {
            return turn.requeue();
        }
        let waits = match occupant.tend() {
            Tended::Ready => return turn.requeue(),
            Tended::Done => return,
            Tended::Wait(waits) => waits,
        };
        match turn.park(waits) {
            Some(kept) => turn = kept,
            None => return,
        }
    }
}
