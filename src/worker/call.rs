//! A call of the service, and what its result makes of the connection.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use super::{Disposition, Worker, Workers};
use crate::clock;
use crate::connection::{Blocked, Connection, Expiry};
use crate::log;
use crate::parking::{Occupant, Stage, Token};
use crate::service::{self, Next, Service};
use crate::stats::{count, count_several};

impl<'a, S: Service> Workers<'a, S> {
    /// Logs an error that ends a connection. What a client causes by its own doing is no warning.
    #[cold]
    pub(super) fn note_error(&self, conn: &Connection, error: &io::Error) {
        // `read_exact` makes an error of the end of the stream.
        let is_cut_short = conn.at_eof() && error.kind() == io::ErrorKind::UnexpectedEof;
        if conn.has_failed() || conn.is_detached() || is_cut_short {
            log::debug!("{}: {error}", conn.info());
        } else {
            count(&self.lots.counters.service_errors);
            log::warn!("{}: the service failed: {error}", conn.info());
        }
    }

    /// Calls the service once, and counts and times the call.
    pub(super) fn call(
        &self,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
    ) -> io::Result<Next> {
        let Some(own) = &mut worker.own else {
            return Err(io::Error::other("the worker has no state"));
        };
        let counters = worker.counters;
        counters.begin_call(token.to_u64(), worker.ready_at, worker.now);
        // A wake-up that came meanwhile goes before the expiry.
        let due = &mut occupant.conn.due;
        let expiry = due.expiry.take();
        let next = match expiry.filter(|_| !due.is_any()) {
            None => self.call_with(occupant, own),
            Some(expiry) => self.call_expired(occupant, expiry),
        };
        if let Some(lot) = self.lots.of(token) {
            lot.end_expiry(occupant);
        }
        worker.now = clock::nanos();
        counters.end_call(worker.now);
        worker.ready_at = worker.now;
        occupant.conn.end_wait();
        next
    }

    fn call_with(
        &self,
        occupant: &mut Occupant<S::Session>,
        own: &mut S::Worker,
    ) -> io::Result<Next> {
        let goes_on = !matches!(occupant.stage, Stage::New | Stage::Idle);
        occupant.conn.begin_call(goes_on);
        let conn = &mut occupant.conn;
        let session = match &mut occupant.session {
            Some(session) => session,
            none => match self.service.session(conn) {
                Ok(session) => {
                    conn.note_session();
                    none.insert(session)
                }
                Err(error) => {
                    conn.forget_blocked_view();
                    return Err(error);
                }
            },
        };
        if occupant.conn.cause().draining {
            count(&self.lots.counters.drain_calls);
        }
        self.service.serve(&mut occupant.conn, session, own)
    }

    #[cold]
    fn call_expired(
        &self,
        occupant: &mut Occupant<S::Session>,
        expiry: Expiry,
    ) -> io::Result<Next> {
        let Some(session) = &mut occupant.session else {
            return Ok(Next::Close);
        };
        occupant.conn.begin_call(false);
        let next = match self.service.expired(&mut occupant.conn, session, expiry) {
            // The time is over: nothing is waited for.
            Err(error) if next_after(&occupant.conn, &error).is_some() => Ok(Next::Close),
            next => next,
        };
        // If the service goes on, the client has as much time again.
        occupant.idle_until = None;
        occupant.conn.end_read_stretch();
        next
    }

    /// Applies what the service has returned: sets the connection's next stage.
    pub(super) fn apply_next(
        &self,
        occupant: &mut Occupant<S::Session>,
        next: Next,
    ) -> Disposition {
        let conn = &mut occupant.conn;
        // A wake-up is not a sign of the client.
        let is_of_client = !conn.take_no_message() && conn.cause().readable;
        let ends_wait = occupant.stage == Stage::Waiting;
        if next == Next::Wait || ends_wait || is_of_client && next != Next::More {
            occupant.idle_until = None;
        }
        let errors = conn.take_errors();
        if errors > 0 {
            count_several(&self.lots.counters.service_errors, errors.into());
        }
        if conn.is_detached() {
            return Disposition::CloseNow;
        }
        if conn.is_abandoned() {
            count(&self.lots.counters.abandoned);
            return Disposition::CloseNow;
        }
        if conn.is_too_long() {
            count(&self.lots.counters.too_long);
        }
        let stage = match next {
            Next::Park if conn.buffer().is_empty() => {
                conn.end_message();
                Stage::Idle
            }
            Next::Park => {
                let before = occupant.unread_mark.replace(conn.input_mark());
                if before == occupant.unread_mark {
                    // The service would be called again and again for the same bytes.
                    self.warn_of_no_progress(conn);
                    return self.apply_next(occupant, Next::More);
                }
                conn.end_message();
                Stage::Idle
            }
            Next::More if conn.at_eof() => return Disposition::WriteThenClose,
            Next::More if conn.is_input_full() => {
                log::debug!("{}: closed, a message is too long", conn.info());
                count(&self.lots.counters.too_long);
                return Disposition::WriteThenClose;
            }
            Next::More => Stage::Partial,
            Next::Wait => Stage::Waiting,
            Next::Again => Stage::Runnable,
            Next::Close => return Disposition::WriteThenClose,
        };
        occupant.stage = stage;
        let has_more = match stage {
            Stage::Runnable => true,
            Stage::Partial => !conn.is_emptied(),
            Stage::Waiting => {
                must_tell_end(conn) || !conn.is_emptied() && !conn.is_input_full() && !conn.at_eof()
            }
            _ => !conn.buffer().is_empty() || !conn.is_emptied(),
        };
        match has_more {
            true => Disposition::Continue,
            false => Disposition::Park,
        }
    }

    fn warn_of_no_progress(&self, conn: &Connection) {
        if !self.has_warned.swap(true, Relaxed) {
            log::warn!(
                "{}: the service returned Park twice with the same unread bytes; it waits for more \
                 now, as after More (this is logged once)",
                conn.info()
            );
        }
    }
}

/// What a call means that has failed with the `WouldBlock` of its view of the connection: the
/// service has passed it on with `?`. `None` for other errors.
#[cold]
pub(super) fn next_after(conn: &Connection, error: &io::Error) -> Option<Next> {
    match conn.blocked_view()? {
        _ if !service::is_wait(error) => None,
        Blocked::Input => Some(Next::Park),
        Blocked::Output | Blocked::Turn => Some(Next::Again),
    }
}

/// Whether the client has ended its side, and a service that waits was not told.
pub(super) fn must_tell_end(conn: &Connection) -> bool {
    conn.has_client_ended() && !conn.due.was_told_of_end()
}
