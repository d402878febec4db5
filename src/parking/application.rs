//! What threads of the application do with connections: they wake them, and send messages.
//!
//! A thread that calls [`Waker::wake`](crate::connection::Waker::wake) changes the state to QUEUED,
//! and puts the connection on the queue. While the queue has no room, it parks the connection again
//! for writing, so that the poller reports the connection at once and in turn. A thread that calls
//! [`Outbox::send`](crate::connection::Outbox::send) has a turn of its own: it writes the message and
//! parks the connection. Neither calls the service or drops a session: the session of a connection
//! that breaks meanwhile is left to the keeper.

use super::ownership::{Sent, Woken};
use super::{Lot, Token};
use crate::clock;

impl<S> Lot<S> {
    /// See [`WakeTarget::wake`](crate::connection::WakeTarget::wake).
    pub(super) fn wake(&self, token: Token) -> bool {
        let Some(slot) = self.slots.get(token.slot()) else {
            return false;
        };
        match slot.owner.wake(token.generation) {
            Woken::Gone => return false,
            Woken::Noted => {}
            Woken::Queued => {
                slot.set_ready(clock::nanos());
                if self.has_room_for_batch() {
                    self.push([token], &self.counters.senders);
                } else if let Some(turn) = self.claim_queued(token, &self.counters.senders) {
                    turn.bring_to_worker();
                }
            }
        }
        true
    }

    /// See [`WakeTarget::send`](crate::connection::WakeTarget::send).
    pub(super) fn send(&self, token: Token) {
        let Some(slot) = self.slots.get(token.slot()) else {
            return;
        };
        if let Sent::Claimed(readiness) = slot.owner.send(token.generation) {
            let turn = self.begin_turn(slot, token, readiness, &self.counters.senders);
            turn.write_outbox();
        }
    }

    /// See [`WakeTarget::break_off`](crate::connection::WakeTarget::break_off).
    pub(super) fn break_off(&self, token: Token) {
        let Some(slot) = self.slots.get(token.slot()) else {
            return;
        };
        loop {
            if let Some(turn) = self.claim_parked(token, &self.counters.senders) {
                return turn.write_outbox();
            }
            self.send(token);
            // The owner may have parked the connection in between.
            if !slot.owner.is_parked(token.generation) {
                return;
            }
        }
    }
}
