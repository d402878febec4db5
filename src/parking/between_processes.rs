//! Connections that move to the successor, and those that come from the predecessor.
//!
//! In the drain's stage MOVING, a connection between two messages is not parked: its owner puts it
//! on the mover's queue ([`MoverQueue`]), as it would put it on the workers' queue. So a client that
//! sends without a pause does not keep its connection in this process. The connections that were
//! parked before are found by a walk over the slots ([`Lots::claim_movable`]).
//!
//! | who has the connection | ownership | in the poller | in `slot.info` |
//! |---|---|---|---|
//! | the mover's queue | QUEUED | perhaps | yes |
//! | the mover, until the successor answers | RUNNING | no | no |
//! | the adopter, until its answer is sent | RUNNING | no | no |
//!
//! Without `slot.info`, no thread of this process shuts the socket down, which would shut the
//! successor's down as well.
//!
//! No connection is left on the mover's queue: see [`mover_queue`](super::mover_queue).

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{
    ANSWERING, ConnectionSlot, Lot, Lots, MID_MESSAGE, MoverQueue, NOT_READY, Occupant, STAYS,
    Stage, Token, Turn, WANTS_DRAIN_CALL,
};
use crate::clock;
use crate::connection::{Connection, ConnectionInfo, Waker};
use crate::stats::ThreadCounters;
use crate::wire::{ConnectionRecord, WireBytes};

/// The place of a walk over all slots.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    lot: usize,
    slot: u32,
}

impl<S> Lots<S> {
    /// Begins to move connections: from now on, connections between two messages go to this queue.
    pub(crate) fn begin_moving(&self, queue: Arc<MoverQueue>, idle_grace: Duration) {
        let _ = self.mover.set(queue);
        self.drain.mark_moving(idle_grace);
    }

    /// Connections go to the mover's queue no more, and those that are on it are parked, or brought
    /// to a worker. Called by the mover.
    pub(crate) fn end_moving(&self, queue: &MoverQueue) {
        queue.close();
        while let Some(turn) = self.take_movable(queue) {
            turn.go_on();
        }
    }

    /// A connection of the mover's queue.
    pub(crate) fn take_movable(&self, queue: &MoverQueue) -> Option<Turn<'_, S>> {
        loop {
            let token = queue.take()?;
            let lot = self.of(token);
            // A connection that is not QUEUED any more was closed by a stop.
            let turn = lot.and_then(|lot| lot.claim_queued(token, &self.counters.mover));
            if turn.is_some() {
                return turn;
            }
        }
    }

    /// The next parked or [held](super::held) connection that may move. Connections that stay, and were parked before the
    /// drain began, are parked again under its rules. `None` at the end of the walk.
    pub(crate) fn claim_movable(&self, walk: &mut Walk) -> Option<Turn<'_, S>> {
        while let Some(lot) = self.lots.get(walk.lot) {
            let used = lot.slots.used();
            while walk.slot < used {
                let index = walk.slot;
                walk.slot += 1;
                let Some(slot) = lot.slots.get(index) else {
                    continue;
                };
                let since = slot.since.load(SeqCst);
                let is_concerned = since & MID_MESSAGE == 0 || since & WANTS_DRAIN_CALL != 0;
                let is_concerned = is_concerned && since & STAYS == 0;
                let token = Token::new(lot.index, index, slot.owner.generation());
                if let Some(turn) = lot.claim_held(token, slot, &self.counters.mover) {
                    match turn.can_move_now() {
                        true => return Some(turn),
                        false => turn.hold(),
                    }
                    continue;
                }
                if !is_concerned || !slot.owner.is_parked(token.generation) {
                    continue;
                }
                match lot.claim_parked(token, &self.counters.mover) {
                    Some(turn) if turn.can_move_now() => return Some(turn),
                    Some(turn) => turn.park_again(),
                    None => {}
                }
            }
            *walk = Walk {
                lot: walk.lot + 1,
                slot: 0,
            };
        }
        None
    }

    /// Makes a connection of a record that the predecessor has sent, in the lot whose turn it is.
    /// The connection is out of reach for other threads until [`Turn::begin_adopted`]. `None` if
    /// there is no slot.
    pub(crate) fn adopt(
        &self,
        info: ConnectionInfo,
        record: ConnectionRecord,
    ) -> Option<Turn<'_, S>> {
        let next = self.next.fetch_add(1, SeqCst);
        let lot = self.lots.get(next % self.lots.len())?;
        lot.adopt(info, record, &self.counters.adopter)
    }
}

impl<S> Lot<S> {
    fn adopt<'a>(
        &'a self,
        info: ConnectionInfo,
        record: ConnectionRecord,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let (index, slot) = self.slots.take(ConnectionSlot::new)?;
        slot.owner.occupy();
        let token = Token::new(self.index, index, slot.owner.generation());
        let mut conn = Connection::new(
            Arc::new(info),
            Waker::new(self.wakers.clone(), token.to_u64()),
            Arc::clone(&self.poller),
            Arc::clone(&self.early_outputs),
            &self.limits,
        );
        let stage = if record.is_new {
            Stage::New
        } else {
            Stage::Idle
        };
        let idle_left = record.idle_left_ms;
        conn.apply_record(record);
        let mut occupant = Occupant::new(conn, stage);
        occupant.is_newcomer = false;
        occupant.idle_until = idle_left.map(|left| clock::millis().saturating_add(left));
        Some(Turn {
            lot: self,
            slot,
            token,
            counters,
            occupant: Some(Box::new(occupant)),
        })
    }
}

impl<S> Turn<'_, S> {
    /// See [`Occupant::can_move_now`].
    pub(crate) fn can_move_now(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.can_move_now())
    }

    /// Puts the connection on the mover's queue, if connections move now and this one can.
    ///
    /// # Errors
    ///
    /// The turn, if the connection stays with this thread.
    #[inline]
    pub(crate) fn move_or_keep(self) -> Result<(), Self> {
        match self.lot.drain.is_moving() {
            true => self.put_on_mover_queue(),
            false => Err(self),
        }
    }

    #[cold]
    fn put_on_mover_queue(mut self) -> Result<(), Self> {
        let (lot, token) = (self.lot, self.token);
        let queue = lot.mover.get().filter(|queue| queue.has_room());
        let Some(queue) = queue.filter(|_| self.can_move_now()) else {
            return Err(self);
        };
        self.count_bytes();
        // The time-out of the workers' queue does not apply.
        self.slot.since.store(ANSWERING, SeqCst);
        self.slot.occupant.store(self.occupant.take());
        self.slot.set_ready(clock::nanos());
        self.slot.owner.queue();
        let is_pushed = queue.push(token);
        if is_pushed && queue.is_open() {
            return Ok(());
        }
        // The queue is full, blocked or closed by now. The mover may have taken the connection all
        // the same, or a stop may have closed it.
        if let Some(turn) = lot.claim_queued(token, self.counters) {
            turn.go_on();
        }
        Ok(())
    }

    /// Since when this process does not serve the connection, in the clock's nanoseconds: since the
    /// connection was put on the mover's queue, or else from now on.
    pub(crate) fn unserved_since(&self) -> u64 {
        let now = clock::nanos();
        now.min(self.slot.ready_at.load(SeqCst))
    }

    /// The connection is served in this process as before. What has come meanwhile is looked at.
    pub(crate) fn go_on(self) {
        if self.lot.drain.has_ended_calls() {
            return self.hold();
        }
        self.slot.ready_at.store(NOT_READY, SeqCst);
        let is_parkable = self.occupant.as_ref().is_some_and(|occupant| {
            occupant.conn.buffer().is_empty() && occupant.conn.is_emptied()
        });
        match is_parkable {
            true => self.park_again(),
            false => self.bring_to_worker(),
        }
    }

    /// The connection is parked although it can move: the mover walks over the slots again.
    pub(super) fn note_missed(lot: &Lot<S>) {
        if let Some(queue) = lot.mover.get() {
            queue.note_missed();
        }
    }

    /// Takes the connection out of the reach of all other threads, and returns its record. `pack`
    /// returns the packed session. `None` if the connection stays.
    pub(crate) fn pack(
        &mut self,
        pack: impl FnOnce(&Connection, &S) -> Option<Vec<u8>>,
    ) -> Option<ConnectionRecord> {
        self.count_bytes();
        let (lot, slot) = (self.lot, self.slot);
        slot.ready_at.store(NOT_READY, SeqCst);
        let occupant = self.occupant()?;
        let info = slot.info.lock().take();
        // A stop that has been forced meanwhile may have seen the info, and shut the socket down.
        let packed = match &occupant.session {
            _ if lot.drain.is_closing() => None,
            Some(session) => pack(&occupant.conn, session).map(Some),
            None => Some(None),
        };
        let Some(session) = packed else {
            *slot.info.lock() = info;
            return None;
        };
        drop(info);
        occupant.conn.unwatch();
        let mut record = occupant.conn.to_record(&lot.limits);
        record.is_new = occupant.stage == Stage::New;
        let now = clock::millis();
        let left = occupant.idle_until.map(|until| until.saturating_sub(now));
        record.idle_left_ms = left;
        record.session = session.map(WireBytes);
        Some(record)
    }

    /// The connection stays in this process for good.
    pub(crate) fn stay(mut self) {
        if let Some(occupant) = &mut self.occupant {
            occupant.conn.note_stay();
        }
        self.take_back();
    }

    /// The connection was [packed](Self::pack), and is served in this process until it is packed again.
    pub(crate) fn take_back(self) {
        if let Some(occupant) = &self.occupant {
            let info = Arc::clone(occupant.conn.shared_info());
            *self.slot.info.lock() = Some(info);
        }
        self.go_on();
    }

    /// Begins to serve a connection that this process has adopted.
    pub(crate) fn begin_adopted(self) {
        let Some(occupant) = &self.occupant else {
            return;
        };
        let has_message = !occupant.conn.buffer().is_empty();
        *self.slot.info.lock() = Some(Arc::clone(occupant.conn.shared_info()));
        // A successor of this process may serve already.
        if let Err(turn) = self.move_or_keep() {
            match has_message {
                true => turn.bring_to_worker(),
                false => turn.park_again(),
            }
        }
    }
}
