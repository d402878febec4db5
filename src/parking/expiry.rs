//! Expiry and shedding: connections that have waited for too long, and those that are closed to
//! make room.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::idle_order::Seen;
use super::keeper::KEEPER_INTERVAL_MS;
use super::timer_wheel::Timer;
use super::{
    ANSWERING, ConnectionSlot, Lot, MID_MESSAGE, RoomRequest, STAYS, Token, Turn, WANTS_DRAIN_CALL,
};
use crate::clock;
use crate::log;
use crate::stats::count;
use crate::sys::Poller;

/// A connection that was parked when it was found.
pub(crate) struct IdleConnection {
    /// When the connection was parked, see [`ConnectionSlot`].
    pub(super) since: u64,
    pub(super) token: Token,
}

/// Counts the calls of `Service::expired` that are due or in progress: at most a quarter of the
/// workers, so that a flood of silent clients keeps no others waiting. The connections beyond are
/// closed without a call.
pub(super) struct Expiries {
    most: usize,
    in_progress: AtomicUsize,
}

impl Expiries {
    pub(super) fn new(handles_expiry: bool, workers: usize) -> Self {
        let most = if handles_expiry {
            workers.div_ceil(4)
        } else {
            0
        };
        Self {
            most,
            in_progress: AtomicUsize::new(0),
        }
    }

    /// Counts one more. False if that would be too many.
    pub(super) fn begin(&self) -> bool {
        let count = |count| (count < self.most).then_some(count + 1);
        self.in_progress.fetch_update(SeqCst, SeqCst, count).is_ok()
    }

    pub(super) fn end(&self) {
        self.in_progress.fetch_sub(1, SeqCst);
    }
}

impl<S> Lot<S> {
    /// Makes the keeper check the slot at `due` (in the clock's milliseconds) or earlier.
    pub(super) fn set_timer(&self, index: u32, slot: &ConnectionSlot<S>, due: u64) {
        if slot.timer.load(SeqCst) <= due {
            return;
        }
        let mut wheel = self.wheel.lock();
        // Checked again under the lock: a later timer must not replace an earlier one.
        if slot.timer.load(SeqCst) > due {
            slot.timer.store(due, SeqCst);
            wheel.insert(index, due);
            drop(wheel);
            self.wake_keeper_by(due);
        }
    }

    pub(super) fn wake_keeper_by(&self, due: u64) {
        if self.keeper.wake_by(due) && !Poller::SHARED {
            self.poller.wake();
        }
    }

    /// Closes the connections that have waited for too long.
    pub(super) fn expire(&self, now: u64) {
        let due = self.wheel.lock().take_expired(now);
        for Timer { index, due } in due {
            let Some(slot) = self.slots.get(index) else {
                continue;
            };
            // If an earlier timer has replaced this one, only the earlier one counts.
            let cleared = slot.timer.compare_exchange(due, u64::MAX, SeqCst, SeqCst);
            if cleared.is_ok() {
                self.expire_slot(index, slot, now);
            }
        }
    }

    fn expire_slot(&self, index: u32, slot: &ConnectionSlot<S>, now: u64) {
        let counters = self.keeper_counters();
        let generation = slot.owner.generation();
        let token = Token::new(self.index, index, generation);
        if slot.owner.is_parked(generation) {
            let expires_at = slot.expires_at.load(SeqCst);
            if expires_at > now {
                self.set_timer(index, slot, expires_at);
            } else if !self.has_room_for_batch() {
                // A connection whose input arrived in time needs a place on the queue.
                self.set_timer(index, slot, now + KEEPER_INTERVAL_MS);
            } else if let Some(turn) = self.claim_parked(token, counters) {
                turn.expire(now);
            }
        } else if let (Some(limit), true) = (self.queue_timeout, slot.owner.is_queued(generation)) {
            let due = (slot.ready_at.load(SeqCst) / 1_000_000).saturating_add(limit);
            if due > now {
                self.set_timer(index, slot, due);
            } else if slot.since.load(SeqCst) & ANSWERING != 0 || slot.owner.is_woken(generation) {
                self.set_timer(index, slot, now.saturating_add(limit));
            } else if let Some(turn) = self.claim_queued(token, counters) {
                turn.refuse_late();
                self.remove_queue_entry(token);
            }
        }
    }

    /// Shortens the time of the idle connections that are parked already to the drain's grace, and
    /// brings the connections whose service is called at a drain to a worker. Called after
    /// [`Drain::mark_replaced`](crate::drain::Drain::mark_replaced).
    pub(crate) fn shorten_idle(&self) {
        self.release_held(&self.counters.main_thread);
        for (token, slot) in self.tokens() {
            let since = slot.since.load(SeqCst);
            let is_concerned = since & MID_MESSAGE == 0 || since & WANTS_DRAIN_CALL != 0;
            if !is_concerned || !slot.owner.is_parked(token.generation) {
                continue;
            }
            if let Some(turn) = self.claim_parked(token, &self.counters.main_thread) {
                turn.park_again();
            }
        }
    }

    /// Shortens `grace` (in milliseconds) by up to a quarter, by the slot's index, so that idle
    /// connections do not all close at once.
    pub(super) fn stagger(&self, token: Token, grace: u64) -> u64 {
        grace - grace / 256 * u64::from(token.slot() % 64)
    }

    /// Takes the entry of a refused connection off the queue, where the entry would occupy the
    /// place of another connection. The entry is the first one, or the entries before it are late
    /// as well. If a connection at the front is not late, it is queued again.
    fn remove_queue_entry(&self, refused: Token) {
        while let Some(token) = self.queue.take() {
            match self.claim_queued(token, self.keeper_counters()) {
                Some(turn) if self.is_late(&turn) => turn.refuse_late(),
                Some(turn) => return turn.queue(),
                None if token == refused => return self.room.notify(RoomRequest::Queue),
                None => {}
            }
        }
    }

    /// Whether the connection has waited for a worker for longer than the queue's time-out, which
    /// does not count in the middle of an answer.
    pub(crate) fn is_late(&self, turn: &Turn<'_, S>) -> bool {
        let ready_at = turn.slot.ready_at.load(SeqCst) / 1_000_000;
        self.queue_timeout.is_some_and(|limit| {
            ready_at.saturating_add(limit) < clock::millis() && !turn.is_answering()
        })
    }

    /// The parked connection that has been idle for longest, as far as a search in `most` slots
    /// finds it, see [`idle_order`](super::idle_order). With `mid_message_too`, a connection in the
    /// middle of a message if none is idle.
    pub(crate) fn longest_idle(
        &self,
        most: usize,
        mid_message_too: bool,
    ) -> Option<IdleConnection> {
        let look = |index| {
            let slot = self.slots.get(index);
            let since = slot.and_then(|slot| {
                let since = slot.since.load(SeqCst);
                slot.owner
                    .is_parked(slot.owner.generation())
                    .then_some(since)
            });
            match since {
                Some(since) if since & MID_MESSAGE == 0 => Seen::Idle(since & !STAYS),
                Some(since) => Seen::MidMessage(since),
                None => Seen::Other,
            }
        };
        let mut order = self.idle_order.lock();
        let (idle, mid_message) = order.search(self.slots.used(), 4 * clock::millis(), most, look);
        let (since, index) = idle.or(mid_message.filter(|_| mid_message_too))?;
        let generation = self.slots.get(index)?.owner.generation();
        let token = Token::new(self.index, index, generation);
        Some(IdleConnection { since, token })
    }

    /// Begins a pass of searches over all connections.
    pub(crate) fn begin_idle_pass(&self) {
        self.idle_order.lock().begin_pass();
    }

    /// Whether the searches since the pass began have looked at all connections.
    pub(crate) fn is_idle_pass_over(&self) -> bool {
        self.idle_order.lock().is_pass_over()
    }

    /// Whether the connection has been parked all the time since it was found.
    pub(crate) fn is_still_idle(&self, idle: &IdleConnection) -> bool {
        self.slots.get(idle.token.slot()).is_some_and(|slot| {
            slot.owner.is_parked(idle.token.generation) && slot.since.load(SeqCst) == idle.since
        })
    }

    /// Closes a parked connection to make room. False if the connection is not parked any more, or
    /// if its client has sent something that no worker has read yet. Called by the acceptor.
    pub(crate) fn shed(&self, idle: &IdleConnection) -> bool {
        let Some(mut turn) = self.claim_parked(idle.token, &self.counters.acceptor) else {
            return false;
        };
        if turn.waits_for_input() && turn.read_new_input() {
            turn.queue();
            return false;
        }
        count(&self.counters.shed);
        if let Some(occupant) = turn.occupant() {
            log::debug!("{}: closed to make room", occupant.conn.info());
        }
        true
    }
}
