//! Serves an HTTP connection: responds to every request that has arrived, then frees the worker.
//!
//! The worker does not wait for heads, small bodies, and bodies that are discarded: the connection
//! is parked ("wait for more"), and the [`Session`] keeps the state. `serve_requests` repeats these
//! steps until one parks or closes the connection:
//!
//! | state | event | action | next state |
//! |---|---|---|---|
//! | all but `Upgraded` | the client does not read its responses | park | the same |
//! | `Head` | the buffer is empty | park | `Head` |
//! | `Head` | the head is incomplete | wait for more | `Head` |
//! | `Head`, `Body` | the small body is incomplete | wait for more | `Body` |
//! | `Head`, `Body` | the stream ends before the request does | 400, close | |
//! | `Head`, `Body` | the request is malformed or over a limit | error response, close | |
//! | `Head`, `Body` | the request can be handled, but its client has left | close | |
//! | `Head`, `Body` | the request can be handled | handler, response | see below |
//! | `Head`, `Discard` | 64 responses or a tick of the clock in this call | others go first | the same |
//! | `Discard` | the body's rest has arrived | discard | `Head` |
//! | `Discard` | the body's rest has not arrived | discard, wait for more | `Discard` |
//! | `Discard` | the rest is malformed or too long | close | |
//! | `Upgraded` | any | call the protocol | `Upgraded` |
//!
//! A request can be handled when its small body is complete, or at its head's end if the body is
//! larger or the client waits for `100 Continue`. The next state depends on the response:
//!
//! | the request's body | the response | action | next state |
//! |---|---|---|---|
//! | is consumed | keeps the connection open | | `Head` |
//! | has not arrived completely | keeps the connection open | | `Discard` |
//! | is malformed, too long, or not sent yet | any | close, and linger | |
//! | any | closes | close; linger unless the body is consumed | |
//! | is consumed | upgrades | | `Upgraded` |
//!
//! When the read time-out expires, the connection is closed: in `Head` and `Body` with 408, in
//! `Discard` without a response, because the client expects no response.

use std::any::Any;
use std::fmt;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use ::http::request::Parts;
use ::http::{Request, Response, StatusCode, response};

use super::body::{Body, CollectedBody, DiscardedBody};
use super::head::{HeadParser, RequestHead, is_worth_parsing};
use super::rejection::{Rejection, bad_request};
use super::reply::{Reply, ReplyKind, UpgradedProtocol};
use super::response_plan::ResponsePlan;
use super::response_writer::ResponseWriter;
use super::settings::Http;
use crate::clock;
use crate::connection::{ClosingNotice, Connection};
use crate::log;
use crate::service::{Next, Service};
use crate::sys::PeerState;

/// Responses are written when this many bytes are pending, even if more requests have arrived. The
/// pending bytes and the next response together should fit into the connection's output buffer.
const FLUSH_THRESHOLD: usize = 16 * 1024;

/// After this many responses, or after a tick of the coarse clock, a call ends: other connections
/// may be waiting for the worker.
const REQUESTS_PER_CALL: u32 = 64;

/// The response to a client whose request does not arrive in time.
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The request is longer than the connection's input limit.
const TOO_LONG: Rejection = Rejection::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head is too long",
);

const HANDLER_PANICKED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");

const INVALID_RESPONSE: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the handler's response is not valid here",
);

/// The state of one HTTP connection, as [`Http`](super::Http) keeps it while the connection waits
/// for its client: the [`Service::Session`](crate::Service::Session) of `Http`. Opaque.
///
/// # Examples
///
/// A service that contains an HTTP service, and has a setting of its own for each connection:
///
/// ```
/// use std::io;
/// use std::time::Duration;
///
/// use handover::http::{Body, Http, Reply, Request, Response, Session, WorkerBuffers};
/// use handover::{Connection, Next, Service};
///
/// struct Patient<H>(Http<H>);
///
/// impl<H> Service for Patient<H>
/// where
///     H: Fn(Request<Body<'_>>) -> Response<Reply> + Send + Sync,
/// {
///     type Session = Session;
///     type Worker = WorkerBuffers;
///
///     fn worker(&self, index: usize) -> io::Result<WorkerBuffers> {
///         self.0.worker(index)
///     }
///
///     fn session(&self, conn: &Connection) -> io::Result<Session> {
///         self.0.session(conn)
///     }
///
///     fn serve(
///         &self,
///         conn: &mut Connection,
///         session: &mut Session,
///         buffers: &mut WorkerBuffers,
///     ) -> io::Result<Next> {
///         if conn.listener_name() == "internal" {
///             conn.set_idle_timeout(Duration::from_secs(600));
///         }
///         self.0.serve(conn, session, buffers)
///     }
/// }
/// ```
pub struct Session(SessionState);

/// What the connection's next bytes belong to. The table above has the transitions.
enum SessionState {
    /// The head of a request. Its first `examined` bytes have arrived and do not contain its end.
    Head { examined: usize },
    /// A small body that is being collected, behind its head in the buffer.
    Body(CollectedBody),
    /// The rest of a body that no handler wanted.
    Discard(DiscardedBody),
    /// Another protocol, after an upgrade.
    Upgraded(UpgradedProtocol),
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            SessionState::Head { .. } => "Session(Head)",
            SessionState::Body(_) => "Session(Body)",
            SessionState::Discard(_) => "Session(Discard)",
            SessionState::Upgraded(_) => "Session(Upgraded)",
        })
    }
}

/// The buffers that a worker uses for one request after the other: the
/// [`Service::Worker`](crate::Service::Worker) of [`Http`]. Opaque.
#[derive(Debug, Default)]
pub struct WorkerBuffers {
    parser: HeadParser,
    writer: ResponseWriter,
}

impl<H, R> Service for Http<H>
where
    H: Fn(Request<Body<'_>>) -> Response<R> + Send + Sync,
    R: Into<Reply>,
{
    type Session = Session;
    type Worker = WorkerBuffers;

    fn worker(&self, _index: usize) -> io::Result<WorkerBuffers> {
        Ok(WorkerBuffers::default())
    }

    fn session(&self, _conn: &Connection) -> io::Result<Session> {
        Ok(Session(SessionState::Head { examined: 0 }))
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        buffers: &mut WorkerBuffers,
    ) -> io::Result<Next> {
        let Session(state) = session;
        if let SessionState::Upgraded(protocol) = state {
            return protocol(conn);
        }
        let WorkerBuffers { parser, writer } = buffers;
        conn.take_no_message();
        writer.start();
        let mut call = ServeCall {
            http: self,
            conn,
            state,
            parser,
            writer,
            log_entry: None,
            began: clock::millis(),
            responses: 0,
        };
        let next = call.serve_requests();
        // After an error too: the responses before it are complete.
        let flushed = writer.flush(conn);
        let next = next?;
        flushed?;
        match state {
            SessionState::Upgraded(protocol) => protocol(conn),
            SessionState::Head { .. } | SessionState::Body(_)
                if matches!(next, Next::More | Next::Again) =>
            {
                // A request has begun that can be answered.
                conn.set_closing_notice(ClosingNotice::RefusalOrTimeout(TIMED_OUT));
                Ok(next)
            }
            _ => Ok(next),
        }
    }

    fn export(&self) -> Option<Vec<u8>> {
        self.export.as_ref().map(|export| export())
    }
}

/// One call of the service.
struct ServeCall<'a, H> {
    http: &'a Http<H>,
    conn: &'a mut Connection,
    state: &'a mut SessionState,
    parser: &'a mut HeadParser,
    writer: &'a mut ResponseWriter,
    /// The request line and its arrival, for the access log. `None` if the log is off, and for a
    /// request without a valid head.
    log_entry: Option<(String, Instant)>,
    /// When the call began, in the coarse clock's milliseconds.
    began: u64,
    /// How many requests this call has responded to.
    responses: u32,
}

impl<H, R> ServeCall<'_, H>
where
    H: Fn(Request<Body<'_>>) -> Response<R>,
    R: Into<Reply>,
{
    /// Responds to every request that has arrived. The last responses stay pending in the writer.
    fn serve_requests(&mut self) -> io::Result<Next> {
        loop {
            if self.writer.pending_len() >= FLUSH_THRESHOLD {
                self.writer.flush(self.conn)?;
            }
            if self.conn.has_output() {
                // The client does not read its responses: its next requests wait until it does.
                return Ok(Next::Park);
            }
            // `Parts` is large: it is filled in place, and moved once, into the handler's request.
            let mut parts = None;
            let filled = parts.get_or_insert_with(|| Request::new(()).into_parts().0);
            let mut request = match self.receive(filled) {
                Ok(request) => request,
                Err(next) => return Ok(next),
            };
            self.conn.consume(request.len);
            self.log_entry = self.http.access_log.then(|| {
                let (method, uri, version) = (&filled.method, &filled.uri, filled.version);
                (format!("{method} {uri} {version:?}"), Instant::now())
            });
            if !request.body.is_done() && self.writer.pending_len() > 0 {
                // The client may wait for these responses before it sends the body.
                self.writer.flush(self.conn)?;
            }
            if self.has_client_left() {
                self.conn.abandon();
                return Ok(Next::Close);
            }
            let Some((head, reply)) = self.call_handler(&mut request, parts)? else {
                return Ok(Next::Close);
            };
            if let Some(next) = self.respond(request, head, reply)? {
                return Ok(next);
            }
            self.responses += 1;
            let must_yield =
                self.responses % REQUESTS_PER_CALL == 0 || clock::millis() != self.began;
            if must_yield && !self.conn.buffer().is_empty() {
                // The pending responses are written, and other connections are served next.
                return Ok(Next::Again);
            }
        }
    }

    /// Receives a request that can be handled. Its head is parsed into `parts`, and is still in the
    /// buffer. The error says what comes next if there is no such request.
    #[inline]
    fn receive(&mut self, parts: &mut Parts) -> Result<RequestHead, Next> {
        if let SessionState::Discard(body) = self.state {
            match body.discard(self.conn) {
                Ok(true) => {}
                Ok(false) => return Err(Next::More),
                Err(_) => {
                    self.conn.linger_on_close();
                    return Err(Next::Close);
                }
            }
            self.conn.set_closing_notice(ClosingNotice::Refusal);
            *self.state = SessionState::Head { examined: 0 };
        }
        // Empty lines before a request are ignored (RFC 9112, section 2.2).
        let mut has_empty_line = false;
        while matches!(self.state, SessionState::Head { .. })
            && self.conn.buffer().starts_with(b"\r\n")
        {
            self.conn.consume(2);
            *self.state = SessionState::Head { examined: 0 };
            has_empty_line = true;
        }
        if self.conn.buffer().is_empty() {
            *self.state = SessionState::Head { examined: 0 };
            if has_empty_line && self.responses == 0 {
                // Otherwise empty lines would keep a connection open for ever.
                self.conn.note_no_message();
            }
            return Err(Next::Park);
        }
        let rejection = match self.receive_request(parts) {
            Ok(Some(request)) => {
                *self.state = SessionState::Head { examined: 0 };
                return Ok(request);
            }
            Ok(None) if self.conn.at_eof() => bad_request("the request ended early"),
            Ok(None) if self.conn.is_input_full() => {
                self.conn.note_too_long();
                TOO_LONG
            }
            Ok(None) => return Err(Next::More),
            Err(rejection) => rejection,
        };
        let is_head = self.conn.buffer().starts_with(b"HEAD ");
        Err(self.reject(rejection, is_head))
    }

    /// Parses a request's head, once the request can be handled. Until then, the state records how
    /// much of the request has been examined.
    #[inline]
    fn receive_request(&mut self, parts: &mut Parts) -> Result<Option<RequestHead>, Rejection> {
        let (input, limits) = (self.conn.buffer(), &self.http.limits);
        let may_be_complete = match self.state {
            SessionState::Head { examined } => {
                let before = std::mem::replace(examined, input.len());
                before == 0 || self.conn.at_eof() || is_worth_parsing(input, before, limits)
            }
            SessionState::Body(body) => body.collect(input)?,
            SessionState::Discard(_) | SessionState::Upgraded(_) => true,
        };
        if !may_be_complete {
            return Ok(None);
        }
        let Some(head) = self.parser.parse(input, limits, parts)? else {
            return Ok(None);
        };
        if !head.body.is_done() && !matches!(self.state, SessionState::Body(_)) {
            let mut body = CollectedBody::new(&head, limits, self.conn.input_limit())?;
            // A client that waits for `100 Continue` does not send the body before.
            if !head.expects_continue && !body.collect(input)? {
                *self.state = SessionState::Body(body);
                return Ok(None);
            }
        }
        Ok(Some(head))
    }

    /// Calls the handler. `None` if the service has responded instead, because the handler panicked
    /// or the body could not be read; the connection must then be closed.
    #[inline]
    fn call_handler(
        &mut self,
        request: &mut RequestHead,
        mut parts: Option<Parts>,
    ) -> io::Result<Option<(response::Parts, Reply)>> {
        self.writer.lend(self.conn);
        let (mut response, mut rejection) = (None, None);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let body = Body {
                conn: self.conn,
                request,
                allowance: self.http.limits.body,
                rejection: &mut rejection,
            };
            let request = parts.take().map(|parts| Request::from_parts(parts, body));
            let returned = request.map(|request| (self.http.handler)(request).into_parts());
            response = returned.map(|(head, body)| (head, body.into()));
        }));
        let reclaimed = self.writer.reclaim(self.conn);
        let rejection = match rejection {
            None if response.is_none() => HANDLER_PANICKED,
            None => return reclaimed.map(|()| response),
            Some(rejection) => rejection,
        };
        self.reject(rejection, request.is_head);
        if let Err(panic) = caught {
            self.resume_panic(panic);
        }
        reclaimed.map(|()| None)
    }

    /// Whether the client has left: the first request of this call waited for a worker for longer
    /// than [`Http::abandoned_after`], and the client has reset the connection or ended its side.
    #[inline]
    fn has_client_left(&self) -> bool {
        self.responses == 0
            && self.conn.waited() > self.http.abandoned_after
            && self.conn.peer_state() != PeerState::Open
    }

    /// Discards the rest of the request's body, and writes the response.
    #[inline]
    fn respond(
        &mut self,
        mut request: RequestHead,
        head: response::Parts,
        Reply(reply): Reply,
    ) -> io::Result<Option<Next>> {
        // A client that still waits for `100 Continue` may now send the body, or leave it out.
        let is_uncertain = request.expects_continue && !request.body.is_done();
        let mut rest = DiscardedBody::new(request.body.clone());
        let is_abandoned = is_uncertain || rest.discard(self.conn).is_err();
        let is_consumed = !is_abandoned && rest.decoder.is_done();
        let is_last =
            self.conn.buffer().is_empty() && (self.conn.at_eof() || self.conn.is_draining());
        request.keep_alive &= !is_abandoned && !is_last;
        let plan = ResponsePlan::new(&request, is_consumed, &head, &reply);
        let (status, body_len, closes) = match plan {
            Ok(plan) => {
                self.writer.add_head(&head, &plan, &reply);
                if let ReplyKind::Upgrade(protocol) = reply {
                    self.log_response(head.status, 0);
                    self.conn.set_closing_notice(ClosingNotice::Forbidden);
                    *self.state = SessionState::Upgraded(protocol);
                    return Ok(Some(Next::Again));
                }
                let body_len = self.write_body(reply, &plan)?;
                (head.status, body_len, plan.closes)
            }
            Err(problem) => {
                let info = self.conn.info();
                log::error!("{info}: the handler's response cannot be sent: {problem}");
                self.writer.reject(INVALID_RESPONSE, request.is_head);
                // The drop of a reader is the handler's code and may panic.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(reply))) {
                    self.resume_panic(panic);
                }
                (INVALID_RESPONSE.status, 0, true)
            }
        };
        self.log_response(status, body_len);
        if closes {
            if !is_consumed {
                self.conn.linger_on_close();
            }
            return Ok(Some(Next::Close));
        }
        if !is_consumed {
            self.conn.set_closing_notice(ClosingNotice::Forbidden);
            *self.state = SessionState::Discard(rest);
        }
        Ok(None)
    }

    fn write_body(&mut self, reply: ReplyKind, plan: &ResponsePlan) -> io::Result<u64> {
        // The reader of a body is the handler's code and may panic. Its response is then cut off.
        let write = || self.writer.write_body(self.conn, reply, plan);
        match catch_unwind(AssertUnwindSafe(write)) {
            Ok(written) => written,
            Err(panic) => self.resume_panic(panic),
        }
    }

    /// Responds in place of the handler. The connection must then be closed.
    #[cold]
    fn reject(&mut self, rejection: Rejection, is_head: bool) -> Next {
        self.conn.linger_on_close();
        self.writer.reject(rejection, is_head);
        let info = self.conn.info();
        log::debug!("{info}: request rejected: {}", rejection.detail);
        self.log_response(rejection.status, 0);
        Next::Close
    }

    /// Writes a line of the access log. `body_len` is in bytes.
    fn log_response(&mut self, status: StatusCode, body_len: u64) {
        if self.http.access_log {
            let (peer, status) = (self.conn.peer_addr(), status.as_u16());
            let (line, millis) = match self.log_entry.take() {
                Some((line, since)) => (line, since.elapsed().as_millis()),
                None => ("-".to_owned(), 0),
            };
            let waited = self.conn.waited().as_millis();
            log::info!(
                target: "handover::access",
                "{peer} \"{line}\" {status} {body_len} {millis} {waited}"
            );
        }
    }

    /// Continues a panic: the worker counts the panic, and replaces its buffers. The connection
    /// keeps the pending bytes and writes them as the client reads, so that the worker does not
    /// wait.
    fn resume_panic(&mut self, panic: Box<dyn Any + Send>) -> ! {
        self.conn.linger_on_close();
        // The pending bytes are few, and no more can follow.
        self.conn.set_output_limit(usize::MAX);
        // The panic is reported even if the client has gone.
        let _ = self.writer.flush(self.conn);
        resume_unwind(panic)
    }
}
