//! A step of a turn: a read, if the connection asks for input, and a call of the service.

use super::call::{must_tell_end, next_after};
use super::{Disposition, Worker, Workers};
use crate::connection::{Connection, Filled};
use crate::log;
use crate::parking::{Occupant, Stage, Token};
use crate::service::{Next, Service};
use crate::stats::count;
use crate::sys::{PeerState, Poller};

/// If a connection waited for longer than this many nanoseconds for a worker, the worker checks
/// whether the client has reset the connection. It also checks if the poller has reported the end
/// of the stream.
const CHECK_CLIENT_AFTER: u64 = 10_000_000;

impl<'a, S: Service> Workers<'a, S> {
    /// Reads, if the stage asks for input, and calls the service.
    pub(super) fn step(
        &self,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
    ) -> Disposition {
        occupant.check_drain();
        let (stage, conn) = (occupant.stage, &mut occupant.conn);
        let reads = match stage {
            Stage::New | Stage::Idle => conn.buffer().is_empty(),
            Stage::Partial => true,
            Stage::Waiting => !conn.is_input_full(),
            Stage::Runnable | Stage::Closing | Stage::Lingering { .. } => false,
        };
        let mid_message = matches!(stage, Stage::Partial | Stage::Waiting);
        let mut is_due = conn.due.is_any();
        // Before the read: what was read of a message must reach the service.
        if mid_message && !self.ensure_state(worker) {
            return Disposition::Requeue;
        }
        if reads && !conn.at_eof() {
            let is_closing = self.lots.drain.is_closing() && !is_due;
            let is_over = is_closing && conn.check_drain_limit(!mid_message);
            if is_over && stage != Stage::Waiting {
                return end_by_drain(conn);
            }
            // A connection that waits goes on, but reads no more.
            let filled = match is_over {
                true => Ok(Filled::Nothing),
                false => conn.try_fill(),
            };
            match filled {
                Ok(Filled::Bytes) if stage != Stage::Waiting => {
                    // The client has been faster than the call for its expiry.
                    conn.due.expiry = None;
                    is_due = conn.due.is_any();
                }
                Ok(Filled::Bytes | Filled::Eof) => {}
                Ok(Filled::Nothing) if is_due => {}
                Ok(Filled::Nothing) if self.ends_after(stage, conn) => return end_by_drain(conn),
                Ok(Filled::Nothing) => return Disposition::Park,
                Err(error) => {
                    log::debug!("{}: cannot read: {error}", conn.info());
                    return Disposition::CloseNow;
                }
            }
        }
        if reads && !mid_message && !is_due && conn.buffer().is_empty() {
            // The stream has ended where a message might have begun.
            return Disposition::WriteThenClose;
        }
        let has_waited = worker.now - worker.ready_at > CHECK_CLIENT_AFTER;
        // Where only one thread may poll, the poller cannot tell the end of the stream from input.
        let has_hung_up = Poller::SHARED && conn.has_hung_up();
        if (has_waited || has_hung_up) && conn.peer_state() == PeerState::Reset {
            log::debug!("{}: closed, the client has left", conn.info());
            count(&self.lots.counters.abandoned);
            return Disposition::CloseNow;
        }
        if stage == Stage::Waiting && !is_due && !must_tell_end(conn) {
            // What has arrived stays in the buffer.
            let has_more = !conn.is_emptied() && !conn.is_input_full() && !conn.at_eof();
            return match has_more {
                true => Disposition::Continue,
                false => Disposition::Park,
            };
        }
        // The state is built for the first call, not for a connection that has sent nothing yet.
        if !self.ensure_state(worker) {
            return Disposition::Requeue;
        }
        let consumed = conn.consumed();
        let next = self.call(occupant, worker, token);
        if matches!(next, Ok(Next::More)) {
            occupant.conn.note_part(consumed);
        }
        match next {
            // The service has taken one part of a message, and the next part may have arrived.
            Ok(Next::More) if occupant.conn.has_unseen_bytes(consumed) => {
                self.apply_next(occupant, Next::Again)
            }
            Ok(next) => self.apply_next(occupant, next),
            Err(error) => match next_after(&occupant.conn, &error) {
                Some(next) => {
                    // Only the service knows whether its library has answered a message.
                    occupant.conn.forget_answer();
                    self.apply_next(occupant, next)
                }
                None => {
                    self.note_error(&occupant.conn, &error);
                    Disposition::CloseNow
                }
            },
        }
    }

    /// Whether the server stops, or hands its state over, so that a connection at this stage gets no
    /// further message.
    pub(super) fn ends_after(&self, stage: Stage, conn: &Connection) -> bool {
        let drain = &self.lots.drain;
        !matches!(stage, Stage::Partial | Stage::Waiting)
            && (drain.is_closing() || drain.pause.ends_connection(|| conn.is_movable()))
    }
}

/// Ends a connection because the server drains.
pub(super) fn end_by_drain(conn: &mut Connection) -> Disposition {
    match conn.write_goodbye() {
        Ok(()) => Disposition::WriteThenClose,
        Err(error) => {
            log::debug!("{}: cannot write: {error}", conn.info());
            Disposition::CloseNow
        }
    }
}
