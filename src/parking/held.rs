//! Connections that are held: a worker may not call their service, as a restart with an exact state
//! pauses all calls ([`Pause`](crate::drain)).
//!
//! A held connection is QUEUED, and on no queue. A walk over the slots finds it, so that no queue has
//! to have room for all connections:
//!
//! | what comes | what becomes of a held connection |
//! |---|---|
//! | the restart fails | a worker serves it |
//! | a successor serves, and the connection can move | the mover takes it |
//! | a successor serves, and the connection cannot move | it is closed |
//! | a stop | as any connection that is QUEUED |
//!
//! The thread that holds a connection looks afterwards whether the walk may have come before. What
//! the connection has written is on its way meanwhile: the keeper writes it.

use std::sync::atomic::Ordering::SeqCst;

use super::{
    ConnectionSlot, HELD, Lot, Lots, MID_MESSAGE, MOVABLE_PART, NOT_READY, STAYS, Token, Turn,
    UNFINISHED, WANTS_DRAIN_CALL,
};
use crate::clock;
use crate::stats::ThreadCounters;

/// The connections of a server, as the restarter sees them in a pause.
pub(crate) trait HeldConnections: Send + Sync {
    /// The stage SETTLING has begun: closes the connections that cannot move and are between two
    /// messages.
    fn close_unmovable(&self);

    /// Whether no connection needs a call of its service before it can move to the successor, or end.
    fn is_settled(&self) -> bool;

    /// The stage is OPEN again: workers serve the connections that were held.
    fn release(&self);
}

impl<S: Send> HeldConnections for Lots<S> {
    fn close_unmovable(&self) {
        self.lots.iter().for_each(Lot::close_unmovable);
    }

    fn is_settled(&self) -> bool {
        self.lots.iter().all(Lot::is_settled)
    }

    fn release(&self) {
        // The restarter has no counters of its own. These have several writers.
        let counters = &self.counters.adopter;
        self.lots.iter().for_each(|lot| lot.release_held(counters));
    }
}

impl<S> Lots<S> {
    /// A successor serves: held connections go to the mover, or are closed. Called by the main
    /// thread.
    pub(crate) fn end_held(&self) {
        let counters = &self.counters.main_thread;
        self.lots.iter().for_each(|lot| lot.release_held(counters));
    }
}

impl<S> Lot<S> {
    fn close_unmovable(&self) {
        let moves = self.drain.pause.moves();
        for (token, slot) in self.tokens() {
            if !is_to_be_ended(slot.since.load(SeqCst), moves) {
                continue;
            }
            let Some(mut turn) = self.claim_parked(token, &self.counters.adopter) else {
                continue;
            };
            match turn.occupant() {
                Some(occupant) if !occupant.conn.has_output() => {
                    occupant.check_drain();
                    turn.bring_to_worker();
                }
                _ => turn.park_again(),
            }
        }
    }

    fn is_settled(&self) -> bool {
        let moves = self.drain.pause.moves();
        self.tokens().all(|(token, slot)| {
            let is_parked = || slot.owner.is_parked(token.generation);
            if is_parked() {
                let since = slot.since.load(SeqCst);
                // What was read is of the time at which the connection was parked.
                let needs_call = since & UNFINISHED != 0 && !(moves && since & MOVABLE_PART != 0);
                return !needs_call && !is_to_be_ended(since, moves) && is_parked();
            }
            let is_held = slot.since.load(SeqCst) & HELD != 0;
            slot.owner.is_free() || is_held && slot.owner.is_queued(token.generation)
        })
    }

    /// Brings held connections on their way, and closes those that wait for a call that does not come
    /// any more.
    pub(super) fn release_held(&self, counters: &ThreadCounters) {
        for (token, slot) in self.tokens() {
            if let Some(turn) = self.claim_held(token, slot, counters) {
                turn.release();
                continue;
            }
            let waits = slot.since.load(SeqCst) & (UNFINISHED | WANTS_DRAIN_CALL) != 0;
            if waits && self.drain.has_ended_calls() {
                if let Some(turn) = self.claim_parked(token, counters) {
                    turn.park_again();
                }
            }
        }
    }

    pub(super) fn claim_held<'a>(
        &'a self,
        token: Token,
        slot: &ConnectionSlot<S>,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let is_held = slot.since.load(SeqCst) & HELD != 0 && slot.owner.is_queued(token.generation);
        is_held.then(|| self.claim_queued(token, counters))?
    }
}

/// Whether the pause ends a parked connection with these flags.
fn is_to_be_ended(since: u64, moves: bool) -> bool {
    let is_idle = since & MID_MESSAGE == 0;
    is_idle && (since & STAYS != 0 || !moves) || since & WANTS_DRAIN_CALL != 0
}

impl<S> Turn<'_, S> {
    /// Holds the connection until its service may be called. If that will not be in this process,
    /// the connection moves, or is closed.
    #[cold]
    pub(crate) fn hold(mut self) {
        let (lot, slot, token) = (self.lot, self.slot, self.token);
        if lot.drain.has_ended_calls() {
            self = match self.move_or_keep() {
                Ok(()) => return,
                Err(kept) => kept,
            };
            let is_mover_behind = lot.drain.is_moving() && self.can_move_now();
            if !is_mover_behind {
                return self.close_unserved();
            }
        }
        self.count_bytes();
        let occupant = self.occupant.take();
        if (occupant.as_ref()).is_some_and(|occupant| occupant.conn.has_output()) {
            lot.count_unwritten(clock::millis());
        }
        slot.since.store(HELD, SeqCst);
        slot.occupant.store(occupant);
        slot.ready_at.store(NOT_READY, SeqCst);
        slot.owner.queue();
        let has_ended_calls = lot.drain.has_ended_calls();
        if has_ended_calls && lot.drain.is_moving() {
            Self::note_missed(lot);
        } else if has_ended_calls || lot.drain.pause.is_open() || lot.drain.is_forced() {
            if let Some(turn) = lot.claim_queued(token, self.counters) {
                turn.release();
            }
        }
    }

    /// The connection is held no more.
    fn release(self) {
        // A stop closes what it finds; `close_all` may have come before.
        if self.lot.drain.is_forced() {
            return;
        }
        match self.lot.drain.pause.is_open() {
            true => self.bring_to_worker(),
            false => self.hold(),
        }
    }

    /// Closes a connection whose service is not called any more, once its output is written. A close
    /// with unread input would reset the connection, so it lingers.
    fn close_unserved(mut self) {
        let Some(occupant) = self.occupant() else {
            return;
        };
        if occupant.conn.has_output() || occupant.conn.goodbye().is_empty() {
            occupant.begin_closing();
            return self.advance();
        }
        self.close_with_goodbye();
    }
}
