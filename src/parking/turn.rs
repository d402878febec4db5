//! A turn: a connection in somebody's hands, and the three ways in which it leaves them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::expiry::BUSY;
use super::occupant::{Occupant, Waits, Wants};
use super::{Lot, Slot, Token, keeper};
use crate::clock;
use crate::connection::Filled;
use crate::stats::{WorkerCounters, count};
use crate::sys::Interest;

/// A connection in hand. Dropping it closes the connection.
pub(crate) struct Turn<'a, S> {
    pub(super) lot: &'a Lot<S>,
    pub(super) slot: &'a Slot<S>,
    pub(crate) token: Token,
    /// Whose counters what is moved in this turn goes to.
    pub(crate) counters: &'a WorkerCounters,
    /// What it had been parked for.
    pub(super) waited: Waits,
    /// There until the turn ends.
    pub(super) occupant: Option<Box<Occupant<S>>>,
}

impl<S> Turn<'_, S> {
    /// The connection. `None` never happens while the turn lasts.
    pub(crate) fn occupant(&mut self) -> Option<&mut Occupant<S>> {
        self.occupant.as_deref_mut()
    }

    /// Leaves the connection to the poller, or keeps it if something has come meanwhile.
    pub(crate) fn park(mut self, waits: Waits) -> Option<Self> {
        let lot = self.lot;
        self.account();
        let mut occupant = self.occupant.take()?;
        occupant.waits = waits;
        let interest = match waits {
            Waits::Output => Interest::Write,
            Waits::Input | Waits::Linger => Interest::Read,
        };
        if let Err(error) = occupant.conn.watch(self.token.to_u64(), interest) {
            log::warn!(
                "{}: cannot watch the connection: {error}",
                occupant.conn.info()
            );
            self.occupant = Some(occupant);
            return None;
        }
        let now = clock::millis();
        let mut due = occupant.due(now, lot.limits.first_byte_timeout);
        let idle = occupant.is_between_messages();
        let grace = lot.drain.grace();
        if let (true, Some(grace)) = (idle, grace) {
            due = due.min(now.saturating_add(lot.spread(self.token, grace)));
        }
        // Parking publishes both.
        self.slot.deadline.store(due, Relaxed);
        let since = if idle { now } else { now | BUSY };
        self.slot.since.store(since, Relaxed);
        if waits == Waits::Output && lot.unwritten.fetch_add(1, SeqCst) == 0 {
            lot.wake_keeper_by(now + 1);
        }
        self.slot.occupant.store(Some(occupant));
        match self.slot.owner.park() {
            Ok(()) => {
                // From here on it may be anybody's. Its slot is still there to be looked at.
                lot.remind(self.token.index, self.slot, due);
                lot.made_room();
                // The sweep of the drain, or of its end, may have passed while the connection was in hand.
                if lot.drain.is_forced() {
                    drop(lot.claim_parked(self.token));
                } else if idle && (lot.drain.is_closing() || lot.drain.grace() != grace) {
                    return lot.claim_parked(self.token);
                }
                None
            }
            Err(news) => Some(lot.turn(self.slot, self.token, news)),
        }
    }

    /// Puts the connection on the queue.
    pub(crate) fn requeue(mut self) {
        self.account();
        self.slot.occupant.store(self.occupant.take());
        self.lot.stamp(self.slot);
        self.slot.owner.requeue();
        self.lot.push([self.token]);
    }

    pub(super) fn park_again(self) {
        let waits = self.waited;
        if let Some(turn) = self.park(waits) {
            turn.requeue();
        }
    }

    pub(super) fn waits_for_input(&self) -> bool {
        self.waited == Waits::Input
    }

    /// Has the client sent something that nobody has looked at? It is in the buffer then, and all that the service
    /// wants.
    pub(super) fn has_message(&mut self) -> bool {
        let Some(occupant) = &mut self.occupant else {
            return false;
        };
        let has_some = matches!(occupant.conn.try_fill(), Ok(Filled::Bytes));
        if has_some {
            occupant.wants = Wants::Message;
        }
        has_some
    }

    pub(super) fn is_between_messages(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.is_between_messages())
    }

    /// Adds what was moved to the thread's counters.
    fn account(&mut self) {
        if let Some(occupant) = &mut self.occupant {
            // Threads without counters of their own move nothing.
            match occupant.conn.take_moved() {
                (0, 0) => {}
                (bytes_in, bytes_out) => self.counters.moved(bytes_in, bytes_out),
            }
        }
    }

    /// Closes a parked connection whose time has come; it may have got a new one since that was seen.
    pub(super) fn expire(mut self, now: u64) {
        if self.slot.deadline.load(SeqCst) > now {
            return self.park_again();
        }
        // What came in time is served, however late a worker has time for it.
        if self.waits_for_input() && self.has_message() {
            return self.requeue();
        }
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        // The kernel reports room late, see `WRITE_SLICE`: whoever has read something meanwhile gets the time for it.
        if self.waited == Waits::Output && matches!(occupant.conn.has_progressed(), Ok(true)) {
            return keeper::tend(self);
        }
        let counters = &self.lot.counters;
        let (counter, what) = match (self.waited, occupant.wants) {
            (Waits::Linger, _) => return,
            (Waits::Output, _) => (&counters.expired_write, "did not read its answer"),
            (Waits::Input, Wants::FirstByte) => (&counters.expired_first_byte, "sent nothing"),
            (Waits::Input, Wants::More) => (&counters.expired_read, "did not complete a message"),
            (Waits::Input, Wants::Message | Wants::Nothing) => (&counters.expired_idle, "was idle"),
        };
        count(counter);
        log::debug!(
            "{}: closed, the client {what} in time",
            occupant.conn.info()
        );
        if self.waited == Waits::Input && occupant.wants == Wants::More {
            let farewell = occupant.conn.farewell();
            self.close_with(farewell.unwrap_or_default());
        }
    }

    /// Closes a connection that waited for a worker for too long, unless what it waited for was not a worker.
    pub(crate) fn refuse_late(self) {
        let Some(occupant) = &self.occupant else {
            return;
        };
        if occupant.conn.has_output() || !occupant.is_serving() {
            return keeper::tend(self);
        }
        count(&self.lot.counters.refused_queue_timeout);
        log::debug!(
            "{}: refused, no worker had time for it",
            occupant.conn.info()
        );
        let refusal: &[u8] = match occupant.waits_for_an_answer() {
            true => &self.lot.refusal,
            false => &[],
        };
        self.close_with(refusal);
    }

    /// Closes a connection whose service panicked: at once, unless its client was told before.
    pub(crate) fn abandon(mut self) {
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        if occupant.conn.lingers() {
            occupant.close();
            keeper::tend(self);
        }
    }

    /// Tells the client something before the close; without waiting, as there is nothing else in the buffer.
    fn close_with(mut self, bytes: &[u8]) {
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        if bytes.is_empty() || occupant.conn.has_output() {
            return;
        }
        if let Err(error) = occupant.conn.offer(bytes) {
            log::debug!("{}: cannot write: {error}", occupant.conn.info());
            return;
        }
        occupant.conn.linger();
        occupant.close();
        keeper::tend(self);
    }
}

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        self.account();
        let Some(occupant) = self.occupant.take() else {
            return;
        };
        let Occupant { conn, session, .. } = *occupant;
        let peer = conn.peer_addr().clone();
        // In this order: it leaves the poller, then the slot forgets it, and only then the slot is anybody's.
        drop(conn);
        let info = self.slot.info.lock().take();
        drop(info);
        self.slot.owner.free();
        self.lot.slots.give(self.token.index);
        self.lot.made_room();
        // Last, since it is the user's code.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(session))) {
            let why = crate::pool::message(&*panic);
            log::error!("{peer}: dropping the session panicked: {why}");
        }
    }
}
