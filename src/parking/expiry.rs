//! Time and room: who has waited for too long, and who goes when there are too many.

use std::sync::atomic::Ordering::SeqCst;

use super::keeper::TICK;
use super::wheel::Reminder;
use super::{Lot, Slot, Token, Turn};
use crate::clock;
use crate::stats::count;
use crate::sys::Poller;

/// Marks a time in `since` as that of a connection that is parked in the middle of something.
pub(super) const BUSY: u64 = 1 << 63;

/// A connection that was parked when somebody looked, and since when.
pub(crate) struct Idle {
    pub(super) since: u64,
    pub(super) token: Token,
}

impl<S> Lot<S> {
    /// Makes sure that the keeper looks at the slot at that time, or before.
    pub(super) fn remind(&self, index: u32, slot: &Slot<S>, due: u64) {
        if slot.reminder.load(SeqCst) <= due {
            return;
        }
        let mut wheel = self.wheel.lock();
        // Once more under the lock: a later reminder must not take the place of an earlier one.
        if slot.reminder.load(SeqCst) > due {
            slot.reminder.store(due, SeqCst);
            wheel.insert(index, due);
            drop(wheel);
            self.wake_keeper_by(due);
        }
    }

    pub(super) fn wake_keeper_by(&self, due: u64) {
        if self.nap.no_longer_than(due) && !Poller::SHARED {
            self.poller.wake();
        }
    }

    /// Closes whatever has waited for too long.
    pub(super) fn expire(&self, now: u64) {
        let due = self.wheel.lock().expired(now);
        for Reminder { index, due } in due {
            let Some(slot) = self.slots.get(index) else {
                continue;
            };
            // An earlier reminder may have taken this one's place; then it is the one that counts.
            let cleared = slot
                .reminder
                .compare_exchange(due, u64::MAX, SeqCst, SeqCst);
            if cleared.is_err() {
                continue;
            }
            let generation = slot.owner.generation();
            let token = Token { index, generation };
            if slot.owner.is_parked(generation) {
                let deadline = slot.deadline.load(SeqCst);
                if deadline > now {
                    self.remind(index, slot, deadline);
                } else if !self.takes_a_batch() {
                    // What came in time needs a place there, and whether something came nobody knows yet.
                    self.remind(index, slot, now + TICK);
                } else if let Some(turn) = self.claim_parked(token) {
                    turn.expire(now);
                }
            } else if let (Some(limit), true) =
                (self.queue_timeout, slot.owner.is_queued(generation))
            {
                let due = slot.since.load(SeqCst) + limit;
                if due > now {
                    self.remind(index, slot, due);
                } else if let Some(turn) = self.start(token) {
                    turn.refuse_late();
                    self.forget_queued(token);
                }
            }
        }
    }

    /// Idle connections that are parked already get no more time than those that park from now on, see
    /// [`Drain::leave`](crate::drain::Drain::leave). Called after that.
    pub(crate) fn shorten_idle(&self) {
        for (index, slot) in self.slots.iter() {
            let generation = slot.owner.generation();
            let token = Token { index, generation };
            if slot.since.load(SeqCst) & BUSY != 0 || !slot.owner.is_parked(generation) {
                continue;
            }
            if let Some(mut turn) = self.claim_parked(token) {
                turn.counters = self.counters.main_thread();
                turn.park_again();
            }
        }
    }

    /// A share of the grace, so that not all idle connections are closed at the same time.
    pub(super) fn spread(&self, token: Token, grace: u64) -> u64 {
        grace - grace / 256 * u64::from(token.index % 64)
    }

    /// Takes the entry of a connection that was refused off the queue, where it would take the place of others; if it
    /// was not refused after all, it has a new one. It is the first, or comes after others that are as late.
    fn forget_queued(&self, refused: Token) {
        while let Ok(token) = self.waiting.try_recv() {
            let turn = (token != refused).then(|| self.start(token));
            match turn.flatten() {
                Some(turn) if self.is_late(&turn) => turn.refuse_late(),
                Some(turn) => return turn.requeue(),
                None => return self.made_room(),
            }
        }
    }

    /// Has it waited in the queue for longer than it should?
    pub(crate) fn is_late(&self, turn: &Turn<'_, S>) -> bool {
        self.queue_timeout
            .is_some_and(|limit| turn.slot.since.load(SeqCst) + limit < clock::millis())
    }

    /// The parked connections that have been idle for longest, at most `count` of them. Those in the middle of
    /// something come last, if they are wanted at all.
    pub(crate) fn longest_idle(&self, count: usize, busy_too: bool) -> Vec<Idle> {
        let slots = self.slots.iter();
        let mut idle: Vec<Idle> = slots
            .filter_map(|(index, slot)| {
                let generation = slot.owner.generation();
                let token = Token { index, generation };
                let since = slot.since.load(SeqCst);
                let wanted = busy_too || since < BUSY;
                let parked = wanted && slot.owner.is_parked(generation);
                parked.then_some(Idle { since, token })
            })
            .collect();
        let count = count.min(idle.len());
        if count == 0 {
            return Vec::new();
        }
        idle.select_nth_unstable_by_key(count - 1, |idle| idle.since);
        idle.truncate(count);
        idle.sort_unstable_by_key(|idle| idle.since);
        idle
    }

    /// Is it parked still, and not again?
    pub(crate) fn is_idle(&self, idle: &Idle) -> bool {
        self.slots.get(idle.token.index).is_some_and(|slot| {
            slot.owner.is_parked(idle.token.generation) && slot.since.load(SeqCst) == idle.since
        })
    }

    /// Closes a parked connection to make room; false if it is not parked any more.
    pub(crate) fn shed(&self, idle: &Idle) -> bool {
        let Some(mut turn) = self.claim_parked(idle.token) else {
            return false;
        };
        turn.counters = self.counters.acceptor();
        // It may have asked for something that no worker has seen yet.
        if turn.waits_for_input() && turn.has_message() {
            turn.requeue();
            return false;
        }
        count(&self.counters.shed);
        if let Some(occupant) = &turn.occupant {
            log::debug!("{}: closed to make room", occupant.conn.info());
        }
        true
    }
}
