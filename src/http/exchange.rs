//! Serves an HTTP connection: responds to every request that has arrived, then frees the worker.
//!
//! The worker does not wait for heads, bodies, and bodies that are discarded: the connection is
//! parked ("wait for more"), and the [`Session`] keeps the state. `serve_requests` repeats these
//! steps until one parks or closes the connection:
//!
//! | state | event | action | next state |
//! |---|---|---|---|
//! | all but `Upgraded` | the client does not read its responses | park | the same |
//! | `Head` | the buffer is empty | park | `Head` |
//! | `Head` | the head is incomplete | wait for more | `Head` |
//! | `Head`, `Body` | the small body is incomplete | 100 if expected, wait for more | `Body` |
//! | `Head`, `Body` | the body is larger, and does not stream | 100 if expected, spool | `Spool` |
//! | `Spool` | a part of the body has arrived | spool, wait for more | `Spool` |
//! | `Spool` | there is no room for the body | 413 or 503, close | |
//! | `Head`, `Body`, `Spool` | the stream ends before the request does | 400, close | |
//! | `Head`, `Body`, `Spool` | the request is malformed or over a limit | error response, close | |
//! | `Head`, `Body`, `Spool` | the request can be handled, but its client has left | close | |
//! | `Head`, `Body`, `Spool` | the request can be handled | handler, response | see below |
//! | `Head`, `Discard` | 64 responses or a tick of the clock in this call | others go first | the same |
//! | `Discard` | the body's rest has arrived | discard | `Head` |
//! | `Discard` | the body's rest has not arrived | discard, wait for more | `Discard` |
//! | `Discard` | the rest is malformed or too long | close | |
//! | `Response` | the output is written | read on, write | see below |
//! | `Later` | no response yet | wait for a wake-up, with the deadline as timer | `Later` |
//! | `Later` | the response, or the deadline | response | see below |
//! | `Later` | the client leaves | close | |
//! | `Channel` | the body goes on | wait for a wake-up | `Channel` |
//! | `Channel` | the body's end, or the drain if it ends the body | last chunk | see below |
//! | `Channel` | the client leaves, or the body is aborted | close | |
//! | `Upgraded` | any | call the protocol | `Upgraded` |
//!
//! A request can be handled when its body is complete. If the service asks to stream the body, a
//! request can be handled at its head's end if the body is not a small one or the client waits for
//! `100 Continue`. The next state depends on the response:
//!
//! | the request's body | the response | action | next state |
//! |---|---|---|---|
//! | any | comes later | | `Later` |
//! | any | has a body from other threads | open its channel | `Channel` |
//! | any | has a reader, and its client is slow, or others go first | park, or others go first | `Response` |
//! | is consumed | keeps the connection open | | `Head` |
//! | has not arrived completely | keeps the connection open | | `Discard` |
//! | is malformed, too long, or not sent yet | any | close, and linger | |
//! | any | closes | close; linger unless the body is consumed | |
//! | is consumed | upgrades | | `Upgraded` |
//!
//! A call receives into the connection's buffer once, and up to 1 MiB of a body that is spooled, so
//! that a fast client of a large body takes turns with the others.
//!
//! When the read time-out expires, the connection is closed: in `Head`, `Body` and `Spool` with
//! 408, in `Discard` without a response, because the client expects no response.
//!
//! [`receiving`](super::receiving) has the steps up to the handler, and
//! [`responding`](super::responding) those after the handler.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ::http::request::Parts;
use ::http::{Request, Response, StatusCode};

use super::access_log::LoggedRequest;
use super::body::Body;
use super::handler::Handler;
use super::head::{HeadParser, RequestHead};
use super::rejection::Rejection;
use super::reply::Reply;
use super::response_writer::ResponseWriter;
use super::session::{Session, SessionState};
use super::settings::Http;
use super::spare_parts::SpareParts;
use super::spooled_body::SpooledBody;
use crate::clock;
use crate::connection::{ClosingNotice, Connection};
use crate::log;
use crate::service::{BufferLimits, Next, Service, unpack_nothing};
use crate::sys::PeerState;

/// Responses are written when this many bytes are gathered, even if more requests have arrived.
const FLUSH_THRESHOLD: usize = 16 * 1024;

/// After this many responses, or after a tick of the coarse clock, a call ends: other connections
/// may be waiting for the worker.
const REQUESTS_PER_CALL: u32 = 64;

/// The rejection if the handler, or code that it was given, panicked.
pub(super) const HANDLER_PANICKED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");

const HANDLER_FAILED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler failed");

/// The buffers that a worker uses for one request after the other: the
/// [`Service::Worker`](crate::Service::Worker) of [`Http`], with the state `W` that the handler has
/// for each worker. Opaque.
pub struct WorkerBuffers<W = ()> {
    parser: HeadParser,
    parts: SpareParts,
    writer: ResponseWriter,
    /// Room to read the bodies of responses into.
    body: Vec<u8>,
    /// The handler's.
    own: W,
}

impl<W> fmt::Debug for WorkerBuffers<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuffers").finish_non_exhaustive()
    }
}

impl<H: Handler> Service for Http<H> {
    type Session = Session;
    type Worker = WorkerBuffers<H::Worker>;

    fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.check_settings(buffers)?)
    }

    fn worker(&self, index: usize) -> io::Result<Self::Worker> {
        Ok(WorkerBuffers {
            parser: HeadParser::default(),
            parts: SpareParts::default(),
            writer: ResponseWriter::default(),
            body: Vec::new(),
            own: self.handler.worker(index)?,
        })
    }

    fn session(&self, _conn: &mut Connection) -> io::Result<Session> {
        Ok(Session(SessionState::Head { examined: 0 }))
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        buffers: &mut Self::Worker,
    ) -> io::Result<Next> {
        let Session(state) = session;
        if let SessionState::Upgraded(protocol) = state {
            return protocol(conn);
        }
        let WorkerBuffers {
            parser,
            parts,
            writer,
            body,
            own,
        } = buffers;
        conn.take_no_message();
        // A service that contains this one may have written before.
        conn.reclaim_output()?;
        let began = clock::millis();
        writer.start(began);
        let mut call = ServeCall {
            http: self,
            conn,
            state,
            parser,
            parts,
            request: RequestHead::default(),
            writer,
            spooled: None,
            body_buffer: body,
            own,
            has_head: false,
            logged_request: None,
            began,
            responses: 0,
        };
        let next = call.serve_requests()?;
        match state {
            SessionState::Upgraded(protocol) => {
                conn.flush_some()?;
                // What was written is HTTP's answer, and not the protocol's.
                conn.forget_answer();
                protocol(conn)
            }
            SessionState::Head { .. } | SessionState::Body(_) | SessionState::Spool(_)
                if matches!(next, Next::More | Next::Again) =>
            {
                // A request has begun that can be answered.
                conn.note_seen_all();
                conn.set_closing_notice(ClosingNotice::RefusalOrTimeout(self.timed_out.clone()));
                Ok(next)
            }
            _ => Ok(next),
        }
    }

    fn packs_sessions(&self) -> bool {
        true
    }

    /// A session has no state between two requests, nor while all bytes of the next request are in the
    /// buffer. The successor looks at them again.
    fn pack(&self, _conn: &Connection, Session(state): &Session) -> Option<Vec<u8>> {
        matches!(state, SessionState::Head { .. } | SessionState::Body(_)).then(Vec::new)
    }

    fn unpack(&self, conn: &mut Connection, packed: Vec<u8>) -> io::Result<Session> {
        unpack_nothing(&packed)?;
        self.session(conn)
    }
}

impl<H> Http<H> {
    /// The response to an error of the handler.
    #[cold]
    fn failed(&self, head: &Parts) -> Response<Reply> {
        HANDLER_FAILED.response(self.error_response.as_deref(), Some(head))
    }
}

/// One call of the service.
pub(super) struct ServeCall<'a, H: Handler> {
    pub(super) http: &'a Http<H>,
    pub(super) conn: &'a mut Connection,
    pub(super) state: &'a mut SessionState,
    pub(super) parser: &'a mut HeadParser,
    /// The request that was received: its parts, until the handler is called, and its head.
    pub(super) parts: &'a mut SpareParts,
    pub(super) request: RequestHead,
    pub(super) writer: &'a mut ResponseWriter,
    /// The body of the request that was received, if it was spooled.
    pub(super) spooled: Option<Box<SpooledBody>>,
    pub(super) body_buffer: &'a mut Vec<u8>,
    /// The handler's state for this worker.
    own: &'a mut H::Worker,
    /// The request that is rejected has a valid head, which is in `parts`.
    pub(super) has_head: bool,
    /// The request, for the access log. `None` if the log is off, and for a request without a valid
    /// head.
    pub(super) logged_request: Option<LoggedRequest>,
    /// When the call began, in the coarse clock's milliseconds.
    pub(super) began: u64,
    /// How many requests this call has responded to.
    pub(super) responses: u32,
}

impl<H: Handler> ServeCall<'_, H> {
    /// Responds to every request that has arrived. The connection gathers the last responses.
    fn serve_requests(&mut self) -> io::Result<Next> {
        if self.state.has_open_response() {
            if let Some(next) = self.continue_response()? {
                return Ok(next);
            }
            self.responses += 1;
        }
        loop {
            if self.conn.gathered().len() >= FLUSH_THRESHOLD {
                self.conn.flush_some()?;
            }
            if self.conn.has_output() {
                // The client does not read its responses: its next requests wait until it does. The
                // rest of a body that no handler wanted is not the next message.
                return Ok(match self.state {
                    SessionState::Discard(_) => Next::Again,
                    _ => Next::Park,
                });
            }
            if let Err(next) = self.receive() {
                return Ok(next);
            }
            self.conn.consume(self.request.len);
            self.begin_log_entry();
            if !self.request.body.is_done() {
                // The client may wait for the responses so far before it sends the body.
                self.conn.flush_some()?;
            }
            if self.has_client_left() {
                self.conn.abandon();
                return Ok(Next::Close);
            }
            if let Some(next) = self.handle_request()? {
                return Ok(next);
            }
            self.responses += 1;
            let has_more = !self.conn.buffer().is_empty();
            if has_more
                && (self.responses % REQUESTS_PER_CALL == 0 || clock::millis() != self.began)
            {
                // The responses so far are written, and other connections are served next.
                return Ok(Next::Again);
            }
        }
    }

    /// Calls the handler, and responds. If the handler panicked or the body could not be read, the
    /// service responds instead, and the connection must then be closed.
    #[inline]
    fn handle_request(&mut self) -> io::Result<Option<Next>> {
        self.conn.lend_output();
        let (mut response, mut failure, mut rejection) = (None, None, None);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let body = Body {
                conn: self.conn,
                request: &mut self.request,
                allowance: self.http.limits.body,
                rejection: &mut rejection,
                spooled: self.spooled.take(),
                space: &self.http.spool_space,
            };
            let mut request = Request::from_parts(self.parts.take(), body);
            // A response is large: it goes to its place at once.
            match self.http.handler.handle(&mut request, self.own) {
                Ok(returned) => response = Some(returned),
                Err(error) => failure = Some(error),
            }
            self.parts.put_back(request);
            if failure.is_some() {
                response = Some(self.http.failed(self.parts.filled()));
            }
            // The drop of an extension is the application's code: it may panic too.
            self.parts.clean();
        }));
        let reclaimed = self.conn.reclaim_output();
        if caught.is_ok() && rejection.is_none() {
            if let Some(response) = response {
                reclaimed?;
                if let Some(error) = failure {
                    self.note_failure(error);
                }
                return self.respond(response, self.conn.waited());
            }
        }
        let rejection = rejection.unwrap_or(HANDLER_PANICKED);
        let next = self.reject(rejection, self.request.is_head);
        if let Err(panic) = caught {
            self.resume_panic(panic);
        }
        reclaimed.map(|()| Some(next))
    }

    /// Counts and logs an error of the handler.
    #[cold]
    fn note_failure(&mut self, error: String) {
        log::warn!("{}: the handler failed: {error}", self.conn.info());
        self.conn.note_error();
    }

    /// Whether the client has left: the first request of this call waited for a worker for longer
    /// than [`Http::abandoned_after`], and the client has reset the connection or ended its side.
    #[inline]
    fn has_client_left(&self) -> bool {
        self.responses == 0
            && self.conn.waited() > self.http.abandoned_after
            && self.conn.peer_state() != PeerState::Open
    }

    /// Keeps what the access log says about a request.
    #[inline]
    pub(super) fn begin_log_entry(&mut self) {
        if self.http.access_log.is_some() {
            self.logged_request = Some(LoggedRequest::new(self.parts.filled()));
        }
    }

    /// Continues a panic: the worker counts the panic, and replaces its buffers. What was gathered
    /// is written as the client reads.
    pub(super) fn resume_panic(&mut self, panic: Box<dyn Any + Send>) -> ! {
        self.conn.linger_on_close();
        resume_unwind(panic)
    }
}
