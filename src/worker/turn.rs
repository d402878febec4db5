//! A turn: a connection is served until it waits for its client, is closed, or lets others go first.

use std::io;

use super::step::end_by_drain;
use super::{Disposition, TurnEnd, Worker, Workers};
use crate::clock;
use crate::connection::Flushed;
use crate::log;
use crate::panic;
use crate::parking::{Lot, Needs, Occupant, Stage, Token, Turn};
use crate::service::Service;
use crate::stats::count;

/// The most calls of the service in one turn. While other connections wait on the queue, a turn
/// has one call.
const CALLS_PER_TURN: usize = 64;

impl<'a, S: Service> Workers<'a, S> {
    /// Serves a connection until the connection waits for its client, is closed, or has to let
    /// other connections go first.
    pub(super) fn run_turn(
        &self,
        worker: &mut Worker<'a, S>,
        mut turn: Turn<'_, S::Session>,
    ) -> TurnEnd {
        let mut calls_left = CALLS_PER_TURN;
        let lot = turn.lot;
        loop {
            let token = turn.token;
            let Some(occupant) = turn.occupant() else {
                return TurnEnd::Over;
            };
            let disposition = match occupant.advance() {
                Needs::Service => {
                    let (pause, counters) = (&self.lots.drain.pause, worker.counters);
                    let word = &counters.in_calls;
                    if !pause.begin_calls(word, || occupant.can_settle()) {
                        turn.hold();
                        return TurnEnd::Over;
                    }
                    occupant.conn.lend_buffers(&mut worker.spare);
                    let steps = || self.steps(lot, occupant, worker, token, &mut calls_left);
                    let disposition = panic::contain(steps);
                    pause.end_calls(word);
                    // After an error and a panic too: what was written before is sent.
                    if matches!(disposition, Ok(Disposition::WriteThenClose)) {
                        occupant.conn.note_last_output();
                    }
                    let flushed = occupant.conn.flush_all_sources();
                    if !matches!(disposition, Ok(Disposition::WriteThenClose)) {
                        occupant.conn.release_answer();
                    }
                    occupant.conn.return_buffers(&mut worker.spare);
                    match disposition {
                        Ok(disposition) => after_flush(occupant, disposition, flushed),
                        Err(why) => {
                            self.log_panic(worker, occupant, &why);
                            turn.close_after_panic();
                            return TurnEnd::Panicked;
                        }
                    }
                }
                Needs::Client => Disposition::Park,
                Needs::NextTurn => {
                    turn.park_again();
                    return TurnEnd::Over;
                }
                Needs::Close => Disposition::CloseNow,
            };
            match disposition {
                Disposition::Continue => {
                    // Between two messages, also of a client that never pauses.
                    turn = match turn.move_or_keep() {
                        Ok(()) => return TurnEnd::Over,
                        Err(kept) => kept,
                    };
                    if self.must_let_others_go_first(lot, worker, &mut calls_left) {
                        turn.queue();
                        return TurnEnd::Queued;
                    }
                }
                Disposition::Park => {
                    turn = match turn.park() {
                        Some(kept) => kept,
                        None => return TurnEnd::Over,
                    };
                    // Wake-ups, messages and input may come faster than the connection is parked.
                    if self.must_let_others_go_first(lot, worker, &mut calls_left) {
                        turn.queue();
                        return TurnEnd::Queued;
                    }
                }
                Disposition::WriteThenClose => {
                    if let Some(occupant) = turn.occupant() {
                        occupant.begin_closing();
                    }
                }
                Disposition::CloseNow => return TurnEnd::Over,
                Disposition::Requeue => {
                    turn.requeue(worker.ready_at);
                    return TurnEnd::NotServed;
                }
            }
        }
    }

    /// Whether this connection has used up its turn, or others wait.
    fn must_let_others_go_first(
        &self,
        lot: &Lot<S::Session>,
        worker: &mut Worker<'a, S>,
        calls_left: &mut usize,
    ) -> bool {
        *calls_left = calls_left.saturating_sub(1);
        let is_over = *calls_left == 0;
        lot.poll_to_queue(&mut worker.events, worker.counters, is_over);
        is_over || lot.has_entries()
    }

    fn log_panic(&self, worker: &mut Worker<'a, S>, occupant: &Occupant<S::Session>, why: &str) {
        worker.now = clock::nanos();
        worker.counters.end_call(worker.now);
        count(&self.lots.counters.panics);
        let (client, index) = (occupant.conn.info(), worker.index);
        log::error!("{client}: the service panicked on worker {index}: {why}");
    }

    /// Takes steps as long as the next message is in the buffer, so that the answers leave
    /// together. But no answer waits for other connections, or for longer than a tick of the coarse
    /// clock: if a call takes longer, the keeper writes the answers before it.
    fn steps(
        &self,
        lot: &Lot<S::Session>,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
        calls_left: &mut usize,
    ) -> Disposition {
        let mut began = None;
        loop {
            let mut disposition = self.step(occupant, worker, token);
            if self.lots.drain.is_draining() && occupant.is_silent() {
                disposition = self.end_by_answer(occupant, disposition);
            }
            let goes_on = matches!(disposition, Disposition::Continue)
                && occupant.stage == Stage::Idle
                && !occupant.conn.buffer().is_empty()
                && !occupant.conn.has_output()
                && *calls_left > 1
                && !lot.has_entries()
                && self.lots.drain.pause.is_open();
            if !goes_on {
                return disposition;
            }
            let now = clock::millis();
            if now != *began.get_or_insert(now) {
                return disposition;
            }
            *calls_left -= 1;
        }
    }

    /// Ends a connection that waits for its client in a drain, together with its answer, which has
    /// not left. `disposition` is what becomes of the connection otherwise.
    #[cold]
    fn end_by_answer(
        &self,
        occupant: &mut Occupant<S::Session>,
        disposition: Disposition,
    ) -> Disposition {
        if !matches!(disposition, Disposition::Park | Disposition::Continue) {
            return disposition;
        }
        occupant.check_drain();
        let conn = &mut occupant.conn;
        if conn.due.is_any() {
            return Disposition::Continue;
        }
        let is_closing = self.lots.drain.is_closing();
        let ends = self.ends_after(occupant.stage, conn);
        // From here on the keeper sends nothing.
        let has_more = conn.reclaim_output().and_then(|()| {
            // The client has much to read before it sees the end: it may send more until then.
            let may_end = !conn.has_output() && (ends || conn.holds_answer());
            may_end
                .then(|| conn.has_more_in_drain(is_closing))
                .transpose()
        });
        match has_more {
            Ok(None) => disposition,
            Ok(Some(true)) => Disposition::Continue,
            Ok(Some(false)) => {
                // A reset because of unread input must not overtake the answer.
                conn.linger_on_close();
                end_by_drain(conn)
            }
            Err(error) => {
                log::debug!("{}: {error}", conn.info());
                Disposition::CloseNow
            }
        }
    }
}

/// What becomes of the connection after a step, once its output was flushed.
fn after_flush<S>(
    occupant: &Occupant<S>,
    disposition: Disposition,
    flushed: io::Result<Flushed>,
) -> Disposition {
    match (flushed, disposition) {
        (_, Disposition::CloseNow) => Disposition::CloseNow,
        (Err(error), _) => {
            log::debug!("{}: cannot write: {error}", occupant.conn.info());
            Disposition::CloseNow
        }
        (Ok(_), _) if occupant.conn.is_ended_by_outbox() => Disposition::WriteThenClose,
        // The socket has just refused to take more.
        (Ok(_), Disposition::Continue) if occupant.conn.has_output() => Disposition::Park,
        (Ok(_), disposition) => disposition,
    }
}
