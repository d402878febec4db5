//! The keeper: the thread that handles parked connections while every worker is busy.
//!
//! The keeper closes connections whose time-out has expired, and writes buffered output, also the
//! output of workers that are in slow handlers ([`EarlyOutput`](crate::connection::EarlyOutput)). Where only
//! one thread may wait in the poller, that thread is the keeper, and it puts ready connections on
//! the queue. The keeper never calls the service.
//!
//! Elsewhere the keeper polls every [`KEEPER_INTERVAL_MS`] while no worker waits in the poller, so
//! that it is known since when each connection waits for a worker. While workers of other lots
//! sleep, it polls at each tick of the coarse clock, since they can serve what it finds. It stops
//! after [`QUIET_LOOPS`] loops in which a worker waited in the poller. The last worker that leaves
//! the poller makes it start again.
//!
//! While the queue has no room, no thread polls. The keeper then writes the output of parked
//! connections without the poller ([`write_output`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{BATCH, HAS_OUTPUT, Lot, RoomRequest, Token};
use crate::clock;
use crate::stats::count;
use crate::sys::{Events, Poller};

/// The time between two polls in place of busy workers, or two checks for room on the queue, in
/// milliseconds. See also [`poll_interval`].
pub(super) const KEEPER_INTERVAL_MS: u64 = 10;

/// After this many milliseconds in which no output was lent, the keeper stops running
/// each millisecond for it. The output of a call that lasts longer has been sent by then.
const IDLE_LOOPS: u32 = 50;

/// After this many loops in a row in which a worker waited in the poller, the keeper stops polling.
const QUIET_LOOPS: u32 = 5;

/// The keeper's sleep, which other threads can shorten or end.
pub(super) struct KeeperSleep {
    state: Mutex<SleepState>,
    changed: Condvar,
    /// The keeper polls every [`KEEPER_INTERVAL_MS`] unless a worker waits in the poller.
    is_polling: AtomicBool,
    /// How often the keeper has run its loop.
    pub(super) loops: AtomicU64,
}

#[derive(Default)]
struct SleepState {
    /// When the keeper wakes up, in the clock's milliseconds; 0 while the keeper is awake.
    wake_at: u64,
    ended: bool,
}

impl KeeperSleep {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            // A worker may get its first connection without having waited in the poller.
            is_polling: AtomicBool::new(true),
            loops: AtomicU64::new(0),
        }
    }

    pub(super) fn is_polling(&self) -> bool {
        self.is_polling.load(SeqCst)
    }

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

    /// Makes the keeper poll. Called by the last worker that leaves the poller.
    #[cold]
    pub(super) fn start_polling(&self) {
        self.is_polling.store(true, SeqCst);
        self.wake_by(clock::millis() + KEEPER_INTERVAL_MS);
    }

    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }
}

/// The keeper's loop, until [`Lot::end_threads`].
pub(crate) fn run_keeper<S>(lot: &Lot<S>) {
    let mut events = Events::with_capacity(BATCH);
    let (mut seen, mut idle_loops, mut quiet_loops) = (Vec::new(), 0, 0);
    let mut next_written = 0;
    while !lot.keeper.state.lock().ended {
        count(&lot.keeper.loops);
        if lot.early_outputs.is_watched() {
            let is_used = lot.early_outputs.take_use();
            idle_loops = match send_early_output(lot, &mut seen) || is_used {
                true => 0,
                false => idle_loops + 1,
            };
            if idle_loops >= IDLE_LOOPS {
                lot.early_outputs.stop_watching();
            }
        }
        lot.expire(clock::millis());
        lot.drop_left_sessions();
        let polls = !Poller::SHARED && lot.has_room_for_batch();
        sleep(lot, polls.then_some(&mut events));
        if Poller::SHARED && must_poll(lot) {
            poll_for_workers(lot, &mut events, Some(Duration::ZERO));
        }
        if lot.unwritten.load(SeqCst) > 0 && !lot.queue.has_sleepers() && !lot.has_room_for_batch()
        {
            next_written = write_output(lot, next_written);
        }
        quiet_loops = match lot.queue.has_sleepers() {
            true => quiet_loops + 1,
            false => 0,
        };
        if quiet_loops >= QUIET_LOOPS && lot.keeper.is_polling() {
            lot.keeper.is_polling.store(false, SeqCst);
            // A worker that leaves the poller from here on makes the keeper poll again.
            if !lot.queue.has_sleepers() {
                lot.keeper.is_polling.store(true, SeqCst);
            }
            quiet_loops = 0;
        }
    }
}

/// Sends the output that workers have lent, if the same call was in progress at
/// the last run. `seen` has the calls of the last run. True if a socket has refused some output.
fn send_early_output<S>(lot: &Lot<S>, seen: &mut Vec<Option<u64>>) -> bool {
    let mut has_left = false;
    let workers = &lot.counters.workers;
    seen.resize(workers.len(), None);
    for (worker, seen) in workers.iter().zip(seen) {
        let call = worker.call_number();
        let is_long = call.is_some() && std::mem::replace(seen, call) == call;
        let call = worker.call().filter(|_| is_long);
        let token = call.map(|(token, _)| Token::from_u64(token));
        let token = token.filter(|token| token.lot() == lot.index);
        let slot = token.and_then(|token| lot.slots.get(token.slot()));
        let info = slot.and_then(|slot| slot.info.lock().clone());
        if let Some(info) = info {
            has_left |= !info.early_output.send(&info.socket);
            // The connection may have ended meanwhile, and is counted as open until here.
            drop(info);
            lot.room.notify(RoomRequest::End);
        }
    }
    has_left
}

/// Sleeps until there is something to do. With `events`, sleeps in the poller.
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
                // The clock is coarser than the millisecond of lent output.
                if waited.timed_out() && lot.early_outputs.is_watched() {
                    break;
                }
            }
            None => lot.keeper.changed.wait(&mut state),
        }
    }
    state.wake_at = 0;
}

/// The time between two polls in place of busy workers, in milliseconds.
fn poll_interval<S>(lot: &Lot<S>) -> u64 {
    match lot.others_sleep() {
        // They can serve what the keeper finds.
        true => 1,
        false => KEEPER_INTERVAL_MS,
    }
}

/// How much longer the keeper sleeps. `None`: until another thread ends the sleep.
fn time_left(state: &SleepState) -> Option<Duration> {
    if state.ended {
        return Some(Duration::ZERO);
    }
    let left = state.wake_at.saturating_sub(clock::millis());
    (state.wake_at < u64::MAX).then(|| Duration::from_millis(left))
}

/// When the keeper has to run next, in the clock's milliseconds, as far as is known now.
fn next_wake<S>(lot: &Lot<S>, in_poller: bool) -> u64 {
    let now = clock::millis();
    if lot.has_left_sessions() {
        return now;
    }
    let mut wake_at = lot.wheel.lock().next().unwrap_or(u64::MAX);
    // Where only one thread may poll, no worker polls.
    let unpolled = !Poller::SHARED && !in_poller;
    let is_polling = Poller::SHARED && lot.keeper.is_polling();
    if unpolled || is_polling || lot.unwritten.load(SeqCst) > 0 {
        wake_at = wake_at.min(now + poll_interval(lot));
    }
    if lot.early_outputs.is_watched() {
        wake_at = wake_at.min(now + 1);
    }
    if let Some(limit) = lot.queue_timeout {
        wake_at = wake_at.min(now + (limit / 4).clamp(KEEPER_INTERVAL_MS, 1000));
    }
    wake_at
}

/// Whether the keeper has to poll: no worker waits in the poller, and there is output to write, or
/// no thread has polled for a while.
fn must_poll<S>(lot: &Lot<S>) -> bool {
    let is_due = lot.polled_at.load(SeqCst) + poll_interval(lot) <= clock::millis();
    let has_reason = is_due || lot.unwritten.load(SeqCst) > 0;
    has_reason && !lot.queue.has_sleepers() && lot.has_room_for_batch()
}

/// Writes output without the poller: while the queue has no room, no thread polls, since the poller
/// would report connections that need a worker as well. Begins at the slot `first`, and returns the
/// slot for the next call: one call writes to at most [`BATCH`] connections.
fn write_output<S>(lot: &Lot<S>, first: u32) -> u32 {
    let tokens = lot
        .tokens()
        .filter(|(token, slot)| token.slot() >= first && slot.since.load(SeqCst) & HAS_OUTPUT != 0);
    let mut next = 0;
    for (written, (token, _)) in tokens.enumerate() {
        if written == BATCH {
            return next;
        }
        next = token.slot() + 1;
        if let Some(turn) = lot.claim_parked(token, lot.keeper_counters()) {
            match turn.waits_for_input() {
                true => turn.park_again(),
                false => turn.advance(),
            }
        }
    }
    0
}

/// Takes ready connections from the poller. Writes their output, and queues those that need the
/// service.
fn poll_for_workers<S>(lot: &Lot<S>, events: &mut Events, timeout: Option<Duration>) {
    lot.poll(events, lot.queue.batch(), timeout);
    lot.push_reported(lot.queue_reported(events), lot.keeper_counters());
    lot.pass_wake_on(events);
}
