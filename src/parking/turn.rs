//! A turn: one thread's exclusive hold of a connection. It ends in one of three ways: the thread
//! parks the connection, puts it on the queue, or drops the turn, which closes the connection.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::occupant::{Needs, Occupant, Stage};
use super::{
    ANSWERING, ConnectionSlot, HAS_OUTPUT, Lot, MID_MESSAGE, MOVABLE_PART, NOT_READY, RoomRequest,
    STAYS, Token, UNFINISHED, WANTS_DRAIN_CALL,
};
use crate::clock;
use crate::connection::{ClosingNotice, ConnectionInfo, Expiry, Filled, Flushed};
use crate::log;
use crate::stats::{ThreadCounters, count};
use crate::sys::Interest;

/// A connection that this thread holds. Dropping the turn closes the connection.
pub(crate) struct Turn<'a, S> {
    pub(crate) lot: &'a Lot<S>,
    pub(super) slot: &'a ConnectionSlot<S>,
    pub(crate) token: Token,
    /// The counters of the thread that holds the connection.
    pub(super) counters: &'a ThreadCounters,
    /// `Some` until the turn ends.
    pub(super) occupant: Option<Box<Occupant<S>>>,
}

impl<S> Turn<'_, S> {
    /// The connection. It is `Some` as long as the turn lasts.
    pub(crate) fn occupant(&mut self) -> Option<&mut Occupant<S>> {
        self.occupant.as_deref_mut()
    }

    /// The part of the connection that all threads may read.
    pub(crate) fn info(&self) -> Option<&ConnectionInfo> {
        Some(self.occupant.as_ref()?.conn.info())
    }

    /// Parks the connection, or gives it to the mover if it moves to the successor. Returns the turn
    /// if the poller has reported something meanwhile.
    pub(crate) fn park(self) -> Option<Self> {
        match self.move_or_keep() {
            Ok(()) => None,
            Err(kept) => kept.park_here(),
        }
    }

    fn park_here(mut self) -> Option<Self> {
        let lot = self.lot;
        self.count_bytes();
        let can_move_now = self.can_move_now();
        let mut occupant = self.occupant.take()?;
        let interest = occupant.interest();
        if !occupant.needs_watch(interest) {
            // The poller, which reports once, is not asked again.
        } else if let Err(error) = occupant.conn.watch(self.token.to_u64(), interest) {
            log::warn!(
                "{}: cannot watch the connection: {error}",
                occupant.conn.info()
            );
            self.occupant = Some(occupant);
            return None;
        }
        let now = clock::millis();
        let mut expiry = occupant.next_check(now, lot.limits.first_byte_timeout);
        let idle = occupant.is_between_messages();
        let is_movable = occupant.conn.is_movable();
        let grace = lot.drain.idle_grace(is_movable);
        if let (true, Some(grace)) = (idle, grace) {
            expiry = expiry.min(now.saturating_add(lot.stagger(self.token, grace)));
        }
        // The compare-and-swap in `Ownership::park` publishes these stores.
        self.slot.ready_at.store(NOT_READY, Relaxed);
        self.slot.expires_at.store(expiry, Relaxed);
        let mut since = 4 * now;
        if !idle {
            since |= MID_MESSAGE;
        }
        if occupant.conn.has_output() {
            lot.count_unwritten(now);
            since |= HAS_OUTPUT;
        }
        if occupant.is_answering() {
            since |= ANSWERING;
        }
        let wants_drain_call = occupant.may_call_service() && occupant.conn.expects_drain_call();
        if wants_drain_call {
            since |= WANTS_DRAIN_CALL;
        }
        if idle && !is_movable && (lot.drain.is_draining() || lot.drain.pause.is_used()) {
            since |= STAYS;
        }
        let is_unfinished = occupant.is_unfinished();
        if is_unfinished {
            since |= UNFINISHED;
        }
        if occupant.has_movable_part() {
            since |= MOVABLE_PART;
        }
        self.slot.since.store(since, Relaxed);
        let is_blocked = interest == Interest::Write;
        self.slot.occupant.store(Some(occupant));
        match self.slot.owner.park(is_blocked) {
            Ok(()) => {
                // Another thread may own the connection from here on. The slot itself stays.
                lot.set_timer(self.token.slot(), self.slot, expiry);
                // A connection in the middle of a message makes room for no other.
                if idle {
                    lot.room.notify(RoomRequest::Idle);
                }
                // `close_idle` or `close_all` may have skipped this connection, which was in a
                // turn.
                let wants_drain_call = wants_drain_call && !is_blocked && lot.drain.is_draining();
                let drains = lot.drain.is_closing()
                    || lot.drain.idle_grace(is_movable) != grace
                    || lot.drain.pause.ends_connection(|| is_movable);
                // The mover's walk may have passed over it in the same way.
                if can_move_now && lot.drain.is_moving() {
                    Self::note_missed(lot);
                }
                if lot.drain.is_forced() {
                    lot.claim_parked(self.token, self.counters)?.close();
                } else if wants_drain_call
                    || idle && drains
                    || is_unfinished && !is_blocked && lot.drain.has_ended_calls()
                {
                    let mut turn = lot.claim_parked(self.token, self.counters)?;
                    if let Some(occupant) = turn.occupant() {
                        occupant.check_drain();
                    }
                    return Some(turn);
                }
                None
            }
            Err(events) => Some(lot.begin_turn(self.slot, self.token, events, self.counters)),
        }
    }

    /// Puts the connection on the queue.
    pub(crate) fn queue(mut self) {
        self.count_bytes();
        let occupant = self.occupant.take();
        if occupant
            .as_ref()
            .is_some_and(|occupant| occupant.conn.has_output())
        {
            self.lot.count_unwritten(clock::millis());
        }
        let is_answering = occupant.as_ref().is_some_and(|it| it.is_answering());
        let since = if is_answering { ANSWERING } else { 0 };
        self.slot.since.store(since, Relaxed);
        self.slot.occupant.store(occupant);
        self.slot.set_ready(clock::nanos());
        self.slot.owner.queue();
        self.lot.push([self.token], self.counters);
    }

    /// Puts the connection on the queue again, unchanged: this worker cannot serve it. The
    /// connection has been ready since `ready_at`, in the clock's nanoseconds.
    #[cold]
    pub(crate) fn requeue(mut self, ready_at: u64) {
        if let Some(occupant) = self.occupant.as_deref_mut() {
            // A connection without a session has not been served yet.
            if occupant.session.is_none() && !occupant.is_newcomer {
                occupant.is_newcomer = true;
                self.lot.newcomers.fetch_add(1, SeqCst);
            }
        }
        self.slot.ready_at.store(ready_at, SeqCst);
        self.queue();
    }

    /// Parks a connection that was parked before. If something has happened meanwhile, brings it to
    /// a worker instead.
    pub(crate) fn park_again(self) {
        if let Some(turn) = self.park() {
            turn.bring_to_worker();
        }
    }

    /// Brings the connection to a worker: over the queue, or over the poller while the queue has no
    /// room.
    pub(super) fn bring_to_worker(mut self) {
        while !self.lot.has_room_for_batch() {
            // As `close_idle` does, which may have come before, or has just read a message.
            let has_message = self.has_unread_input() || self.needs_drain_call();
            let may_close = self.is_between_messages() && !has_message && self.is_ended_by_drain();
            if may_close && !self.read_new_input() {
                return self.close_with_goodbye();
            }
            if let Some(occupant) = self.occupant() {
                occupant.wait_for_room();
            }
            match self.park() {
                Some(kept) => self = kept,
                None => return,
            }
        }
        self.queue();
    }

    /// Writes the outbox, on the thread that has put a message there.
    pub(super) fn write_outbox(mut self) {
        let Some(occupant) = self.occupant() else {
            return;
        };
        match occupant.conn.flush_all_sources() {
            Ok(_) if occupant.conn.is_ended_by_outbox() => return self.advance(),
            Ok(_) => {}
            Err(error) => {
                log::debug!("{}: cannot write: {error}", occupant.conn.info());
                return;
            }
        }
        if let Some(turn) = self.park() {
            turn.bring_to_worker();
        }
    }

    /// Begins to serve the connection at `now`, in the clock's nanoseconds. Returns when the
    /// connection became ready, in the same unit. The client's deadlines do not count the time in
    /// between.
    pub(crate) fn begin_service(&mut self, now: u64) -> u64 {
        let ready_at = self.slot.ready_at.load(Relaxed).min(now);
        self.slot.ready_at.store(NOT_READY, Relaxed);
        if let Some(occupant) = &mut self.occupant {
            self.lot.end_newcomer(occupant);
            occupant
                .conn
                .note_wait(Duration::from_nanos(now - ready_at));
        }
        ready_at
    }

    /// Notes that the connection waits for its client now, and not for its first service.
    pub(super) fn end_newcomer(&mut self) {
        if let Some(occupant) = &mut self.occupant {
            self.lot.end_newcomer(occupant);
        }
    }

    pub(super) fn waits_for_input(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.waits_for_input())
    }

    pub(super) fn is_answering(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.is_answering())
    }

    pub(super) fn needs_drain_call(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.conn.needs_drain_call())
    }

    pub(super) fn is_between_messages(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| occupant.is_between_messages())
    }

    /// Whether the buffer has input that the service has not consumed.
    fn has_unread_input(&self) -> bool {
        let occupant = self.occupant.as_ref();
        occupant.is_some_and(|occupant| !occupant.conn.buffer().is_empty())
    }

    /// Whether the drain closes the connection between two messages.
    fn is_ended_by_drain(&self) -> bool {
        let drain = &self.lot.drain;
        let is_movable = || (self.occupant.as_ref()).is_some_and(|it| it.conn.is_movable());
        drain.is_closing() || drain.pause.ends_connection(is_movable)
    }

    /// Reads what the client has sent and no thread has read yet. True if the service is to be
    /// called for the input.
    pub(super) fn read_new_input(&mut self) -> bool {
        let Some(occupant) = &mut self.occupant else {
            return false;
        };
        match (occupant.conn.try_fill(), occupant.stage) {
            // What is being answered is finished first.
            (Ok(Filled::Bytes), Stage::Runnable) => true,
            // The message goes on: the connection is not between two.
            (Ok(Filled::Bytes), Stage::Partial) => {
                occupant.stage = Stage::Runnable;
                true
            }
            (Ok(Filled::Bytes), Stage::Waiting) => false,
            (Ok(Filled::Bytes), _) => {
                occupant.stage = Stage::Idle;
                true
            }
            // The end of the stream may complete a message.
            (Ok(Filled::Eof), Stage::Partial) => true,
            // The service may go on waiting after the client's end, and is told once.
            (Ok(Filled::Eof), Stage::Waiting) => !occupant.conn.due.was_told_of_end(),
            _ => false,
        }
    }

    /// Adds the bytes that this turn moved to the thread's counters.
    pub(super) fn count_bytes(&mut self) {
        if let Some(occupant) = &mut self.occupant {
            match occupant.conn.take_moved() {
                (0, 0) => {}
                (bytes_in, bytes_out) => self.counters.add_bytes(bytes_in, bytes_out),
            }
        }
    }

    /// Does the steps that need no call of the service. Queues a connection that needs a worker.
    /// While the queue has no room, parks the connection so that the poller reports it again.
    pub(super) fn advance(mut self) {
        let lot = self.lot;
        loop {
            let Some(occupant) = self.occupant() else {
                return;
            };
            if occupant.waits_for_input() {
                return self.queue();
            }
            match occupant.advance() {
                Needs::Service if !lot.has_room_for_batch() => occupant.wait_for_room(),
                // Without a message there is nothing to wait for a worker for.
                Needs::Service => {
                    if !occupant.is_without_message() || occupant.read_ahead() {
                        return self.queue();
                    }
                }
                Needs::Close => return,
                Needs::NextTurn => return self.park_again(),
                Needs::Client => {}
            }
            match self.park() {
                Some(kept) => self = kept,
                None => return,
            }
        }
    }

    /// Closes a parked connection whose time-out has expired, unless its deadline has moved
    /// meanwhile, or brings it to a worker if its timer is due.
    pub(super) fn expire(mut self, now: u64) {
        if self.slot.expires_at.load(SeqCst) > now {
            return self.park_again();
        }
        if let Some(occupant) = &mut self.occupant {
            let is_timer = occupant.may_call_service() && occupant.conn.due.check_timer(now);
            match is_timer {
                // The call comes when the output is written.
                true if occupant.conn.has_output() => return self.park_again(),
                true => return self.queue(),
                false => {}
            }
        }
        // Input that arrived in time is served, however late a worker is free.
        if self.waits_for_input() && self.read_new_input() {
            return self.queue();
        }
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        // The kernel reports room late, see `WRITE_SLICE`. A client that has read meanwhile gets a
        // later deadline.
        let has_output = occupant.conn.has_output();
        if has_output && matches!(occupant.conn.flush_made_progress(), Ok(true)) {
            return self.advance();
        }
        let counters = &self.lot.counters;
        let (counter, what) = match occupant.stage {
            _ if has_output => (&counters.expired_write, "did not read its response in time"),
            Stage::New => (&counters.expired_first_byte, "sent nothing in time"),
            Stage::Partial => (&counters.expired_read, "did not complete a message in time"),
            Stage::Idle => (&counters.expired_idle, "was idle for too long"),
            Stage::Waiting => (&counters.expired_idle, "got no answer in time"),
            Stage::Runnable => return self.park_again(),
            Stage::Closing | Stage::Lingering { .. } => return,
        };
        count(counter);
        if self.is_expiry_handled(has_output) {
            return self.queue();
        }
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        log::debug!("{}: closed, the client {what}", occupant.conn.info());
        match (occupant.stage, occupant.conn.closing_notice()) {
            (Stage::Partial, ClosingNotice::RefusalOrTimeout(notice)) => {
                let notice = notice.clone();
                self.close_with(&notice);
            }
            _ => self.close_with_goodbye(),
        }
    }

    /// Closes the connection of the server's own accord.
    pub(super) fn close_with_goodbye(mut self) {
        let goodbye = self.occupant().map(|it| it.conn.goodbye().clone());
        if let Some(goodbye) = goodbye.filter(|goodbye| !goodbye.is_empty()) {
            self.close_with(&goodbye);
        }
    }

    /// Whether the service handles the expiry of this connection, in a call that is then due. Only
    /// a share of the workers handles expiries at once.
    fn is_expiry_handled(&mut self, has_output: bool) -> bool {
        let (lot, Some(occupant)) = (self.lot, &mut self.occupant) else {
            return false;
        };
        let notice = occupant.conn.closing_notice();
        let expiry = match occupant.stage {
            Stage::Idle | Stage::Waiting => Expiry::Idle,
            Stage::Partial if !matches!(notice, ClosingNotice::RefusalOrTimeout(_)) => Expiry::Read,
            _ => return false,
        };
        if has_output || occupant.session.is_none() || !lot.expiries.begin() {
            return false;
        }
        occupant.is_expiring = true;
        occupant.conn.due.expiry = Some(expiry);
        true
    }

    /// Closes a connection that has waited for a worker for longer than the queue's time-out. A
    /// connection that was queued to write output, or to linger, goes on.
    pub(crate) fn refuse_late(mut self) {
        if self.is_answering() {
            return self.queue();
        }
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        self.lot.end_newcomer(occupant);
        if !occupant.waits_for_input() {
            self.slot.ready_at.store(NOT_READY, Relaxed);
            return self.advance();
        }
        count(&self.lot.counters.refused_queue_timeout);
        log::debug!(
            "{}: refused, no worker was free in time",
            occupant.conn.info()
        );
        let refusal: &[u8] = match occupant.may_be_refused() {
            true => &self.lot.refusal,
            false => &[],
        };
        self.close_with(refusal);
    }

    /// Closes a connection whose service panicked. If the connection lingers on close, its output
    /// is written first.
    pub(crate) fn close_after_panic(mut self) {
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        if occupant.conn.lingers_on_close() {
            occupant.begin_closing();
            self.advance();
        }
    }

    /// Closes the connection. If it lingers, its unread input is discarded first: a close with
    /// unread input would reset the connection.
    pub(super) fn close(mut self) {
        if let Some(occupant) = &mut self.occupant {
            if matches!(occupant.stage, Stage::Lingering { .. }) {
                occupant.advance();
            }
        }
    }

    /// Sends `notice`, as much as the socket takes at once, and closes the connection. Lingers if
    /// there was a notice, or unread input.
    fn close_with(mut self, notice: &[u8]) {
        let Some(occupant) = &mut self.occupant else {
            return;
        };
        if occupant.conn.has_output() {
            return;
        }
        if !notice.is_empty() {
            // Nothing follows the notice.
            occupant.conn.close_outbox();
            if !matches!(occupant.conn.flush_some(), Ok(Flushed::All)) {
                return;
            }
            if let Err(error) = occupant.conn.send_unbuffered(notice) {
                log::debug!("{}: cannot write: {error}", occupant.conn.info());
                return;
            }
            occupant.conn.linger_on_close();
        }
        occupant.begin_closing();
        // What the session holds, such as the space of a body, is given back before the connection
        // lingers.
        let session = occupant.session.take();
        log::drop_contained("a session", session);
        self.advance();
    }
}

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        self.count_bytes();
        let Some(mut occupant) = self.occupant.take() else {
            return;
        };
        self.lot.end_newcomer(&mut occupant);
        self.lot.end_expiry(&mut occupant);
        let Occupant { conn, session, .. } = *occupant;
        let peer = conn.peer().clone();
        // The order matters: the connection leaves the poller, the slot forgets it, then the slot
        // is free.
        drop(conn);
        let info = self.slot.info.lock().take();
        drop(info);
        self.slot.ready_at.store(NOT_READY, Relaxed);
        self.slot.owner.free();
        self.lot.slots.return_slot(self.token.slot());
        self.lot.room.notify(RoomRequest::End);
        // The session comes last: its drop is the application's code. A thread of the application
        // that sends may hold a lock that the drop needs.
        if std::ptr::eq(self.counters, &self.lot.counters.senders) {
            return self.lot.leave_to_keeper(session);
        }
        log::drop_contained(format_args!("the session of {peer}"), session);
    }
}
