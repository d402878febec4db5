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

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use ::http::request::Parts;
use ::http::{Request, Response, StatusCode};

use super::access_log::{AccessLine, LoggedRequest};
use super::body::{Body, Collected, CollectedBody, DiscardedBody, SpoolError, SpooledRequest};
use super::handler::Handler;
use super::head::{HeadParser, RequestHead, is_worth_parsing};
use super::reader_body::ReaderBody;
use super::rejection::{Rejection, bad_request};
use super::reply::{Reply, ReplyKind};
use super::response_plan::{Framing, ResponsePlan};
use super::response_writer::{ResponseWriter, write_file};
use super::session::{OpenResponse, ResponseEnd, Session, SessionState};
use super::settings::Http;
use super::spare_parts::SpareParts;
use super::spooled_body::SpooledBody;
use crate::clock;
use crate::connection::{ClosingNotice, Connection};
use crate::log;
use crate::service::{BufferLimits, Next, Service};
use crate::sys::PeerState;

/// Responses are written when this many bytes are gathered, even if more requests have arrived.
const FLUSH_THRESHOLD: usize = 16 * 1024;

/// After this many responses, or after a tick of the coarse clock, a call ends: other connections
/// may be waiting for the worker.
const REQUESTS_PER_CALL: u32 = 64;

/// The request is longer than the connection's input limit.
const TOO_LONG: Rejection = Rejection::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head is too long",
);

const ENDED_EARLY: Rejection = bad_request("the request ended early");

const HANDLER_PANICKED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");

const HANDLER_FAILED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler failed");

const INVALID_RESPONSE: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the handler's response is not valid here",
);

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
    parser: &'a mut HeadParser,
    /// The request that was received: its parts, until the handler is called, and its head.
    parts: &'a mut SpareParts,
    pub(super) request: RequestHead,
    writer: &'a mut ResponseWriter,
    /// The body of the request that was received, if it was spooled.
    spooled: Option<Box<SpooledBody>>,
    body_buffer: &'a mut Vec<u8>,
    /// The handler's state for this worker.
    own: &'a mut H::Worker,
    /// The request that is rejected has a valid head, which is in `parts`.
    has_head: bool,
    /// The request, for the access log. `None` if the log is off, and for a request without a valid
    /// head.
    pub(super) logged_request: Option<LoggedRequest>,
    /// When the call began, in the coarse clock's milliseconds.
    began: u64,
    /// How many requests this call has responded to.
    responses: u32,
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

    /// Receives a request that can be handled. Its head is parsed, and is still in the buffer unless
    /// the body was spooled. The error says what comes next if there is no such request.
    #[inline]
    fn receive(&mut self) -> Result<(), Next> {
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
            self.state.expect_head();
        }
        if matches!(self.state, SessionState::Spool(_)) {
            return self.receive_spooled();
        }
        // Empty lines before a request are ignored (RFC 9112, section 2.2).
        let mut has_empty_line = false;
        while matches!(self.state, SessionState::Head { .. })
            && self.conn.buffer().starts_with(b"\r\n")
        {
            self.conn.consume(2);
            self.state.expect_head();
            has_empty_line = true;
        }
        if self.conn.buffer().is_empty() {
            self.state.expect_head();
            if has_empty_line && self.responses == 0 {
                // Otherwise empty lines would keep a connection open for ever.
                self.conn.note_no_message();
            }
            return Err(Next::Park);
        }
        let rejection = match self.receive_request() {
            Ok(true) => {
                self.state.expect_head();
                return Ok(());
            }
            Ok(false) if matches!(self.state, SessionState::Spool(_)) => {
                return self.receive_spooled();
            }
            Ok(false) if self.conn.at_eof() => ENDED_EARLY,
            Ok(false) if self.conn.is_input_full() => {
                self.conn.note_too_long();
                TOO_LONG
            }
            Ok(false) => return Err(Next::More),
            Err(rejection) => rejection,
        };
        let is_head = self.conn.buffer().starts_with(b"HEAD ");
        Err(self.reject(rejection, is_head))
    }

    /// Parses a request's head, once the request can be handled or its body is to be spooled. Until
    /// then, the state records how much of the request has been examined. True if the request can
    /// be handled.
    #[inline]
    fn receive_request(&mut self) -> Result<bool, Rejection> {
        let (input, limits) = (self.conn.buffer(), &self.http.limits);
        let mut collected = None;
        let may_be_complete = match self.state {
            SessionState::Head { examined } => {
                let before = std::mem::replace(examined, input.len());
                before == 0 || self.conn.at_eof() || is_worth_parsing(input, before, limits)
            }
            SessionState::Body(body) => *collected.insert(body.collect(input)?) != Collected::Part,
            SessionState::Spool(_)
            | SessionState::Discard(_)
            | SessionState::Response(_)
            | SessionState::Later(_)
            | SessionState::Channel(_)
            | SessionState::Upgraded(_) => true,
        };
        let (parts, head) = (&mut *self.parts, &mut self.request);
        if !may_be_complete || !self.parser.parse(input, limits, parts, head)? {
            return Ok(false);
        }
        if self.request.body.is_done() {
            return Ok(true);
        }
        let received = self.receive_body(collected);
        if received.is_err() {
            self.has_head = true;
            self.begin_log_entry();
        }
        received
    }

    /// Decides on how the body of a request is received. `collected` says how much of it has been
    /// collected already, if the head has been parsed before. True if the request can be handled.
    fn receive_body(&mut self, collected: Option<Collected>) -> Result<bool, Rejection> {
        let (limits, head) = (&self.http.limits, &mut self.request);
        // If the body was being collected, 100 has been sent.
        head.expects_continue &= collected.is_none();
        let mut body = CollectedBody::new(head, limits, self.conn.input_limit())?;
        let collected = match collected {
            Some(collected) => collected,
            None => body.collect(self.conn.buffer())?,
        };
        if collected == Collected::All {
            head.expects_continue = false;
            return Ok(true);
        }
        let is_small = collected == Collected::Part;
        if (!is_small || head.expects_continue) && self.streams() {
            return Ok(true);
        }
        if !is_small {
            let length = self.request.body.data_left();
            self.http.spool_space.admit(length)?;
        }
        if std::mem::take(&mut self.request.expects_continue) {
            let out = self.conn.gathered();
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        *self.state = match is_small {
            true => SessionState::Body(body),
            false => {
                self.conn.consume(std::mem::take(&mut self.request.len));
                let parts = self.parts.take();
                let (head, space) = (self.request.clone(), &self.http.spool_space);
                SessionState::Spool(Box::new(SpooledRequest::new(parts, head, limits, space)))
            }
        };
        Ok(false)
    }

    /// Whether the service asks to stream the body of a request.
    fn streams(&mut self) -> bool {
        let Some(streams) = &self.http.stream_body_if else {
            return false;
        };
        match catch_unwind(AssertUnwindSafe(|| streams(self.parts.filled()))) {
            Ok(streams) => streams,
            Err(panic) => {
                self.has_head = true;
                self.reject(HANDLER_PANICKED, self.request.is_head);
                self.resume_panic(panic)
            }
        }
    }

    /// Spools what has arrived of a body. The request can be handled when its body is complete.
    fn receive_spooled(&mut self) -> Result<(), Next> {
        let state = std::mem::replace(self.state, SessionState::Head { examined: 0 });
        let SessionState::Spool(mut request) = state else {
            return Err(Next::Again);
        };
        let rejection = match request.receive(self.conn) {
            Ok(true) => {
                let SpooledRequest {
                    parts: received,
                    head,
                    spool,
                    ..
                } = *request;
                self.parts.put(received);
                self.request = head;
                self.spooled = Some(Box::new(spool.into_body()));
                return Ok(());
            }
            Ok(false) if self.conn.at_eof() => ENDED_EARLY,
            Ok(false) => {
                *self.state = SessionState::Spool(request);
                return Err(Next::More);
            }
            Err(SpoolError::Read(error)) => {
                log::debug!("{}: cannot read: {error}", self.conn.info());
                return Err(Next::Close);
            }
            Err(SpoolError::Rejected(rejection)) => rejection,
        };
        self.parts.put(request.parts);
        self.has_head = true;
        self.begin_log_entry();
        Err(self.reject(rejection, request.head.is_head))
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

    /// Discards the rest of the request's body, and writes the response. `waited`: how long the
    /// request waited for a worker.
    #[inline]
    pub(super) fn respond(
        &mut self,
        response: Response<Reply>,
        waited: Duration,
    ) -> io::Result<Option<Next>> {
        if matches!(response.body(), Reply(ReplyKind::Later(_))) {
            return self.begin_waiting(response, waited);
        }
        let (request, status) = (&mut self.request, response.status());
        // A client that still waits for `100 Continue` may now send the body, or leave it out.
        let is_uncertain = request.expects_continue && !request.body.is_done();
        let mut end = ResponseEnd {
            status,
            closes: true,
            rest: DiscardedBody::new(request.body.clone()),
            is_body_consumed: false,
            waited,
        };
        let is_abandoned = is_uncertain || end.rest.discard(self.conn).is_err();
        end.is_body_consumed = !is_abandoned && end.rest.decoder.is_done();
        let is_last =
            self.conn.buffer().is_empty() && (self.conn.at_eof() || self.conn.is_draining());
        if !request.keep_alive {
            self.conn.note_last_message();
        }
        request.keep_alive &= !is_abandoned && !is_last;
        let plan = match ResponsePlan::new(request, end.is_body_consumed, &response) {
            Ok(plan) => plan,
            Err(problem) => {
                let info = self.conn.info();
                log::error!("{info}: the handler's response cannot be sent: {problem}");
                let is_head = request.is_head;
                end.status = self.write_rejection(INVALID_RESPONSE, is_head);
                self.contain(|_| drop(response));
                return Ok(self.end_response(end, 0));
            }
        };
        end.closes = plan.closes;
        self.writer.add_head(self.conn.gathered(), &response, &plan);
        let Reply(reply) = response.into_body();
        let body_len = match (reply, plan.framing) {
            (ReplyKind::Upgrade(protocol), _) if plan.gives_away => {
                self.log_response(status, 0, end.waited);
                self.conn.set_closing_notice(ClosingNotice::Forbidden);
                self.conn.forget_waiting();
                *self.state = SessionState::Upgraded(protocol);
                return Ok(Some(Next::Again));
            }
            (reply, _) if !plan.sends_body => {
                self.contain(|_| drop(reply));
                0
            }
            (ReplyKind::Text(bytes) | ReplyKind::Bytes(bytes), _) => {
                let length = bytes.len() as u64;
                self.conn.take_owned(bytes)?;
                length
            }
            (ReplyKind::File(file), Framing::Length(length)) => {
                write_file(self.conn, file, length)?;
                length
            }
            (ReplyKind::File(_) | ReplyKind::Later(_) | ReplyKind::Upgrade(_), _) => 0,
            (ReplyKind::Channel(body), framing) => {
                return self.begin_channel(body, end, framing == Framing::Chunks);
            }
            (ReplyKind::Reader(source, length), framing) => {
                let body = ReaderBody {
                    source,
                    left: length,
                    is_chunked: framing == Framing::Chunks,
                    len: 0,
                };
                let logged_request = self.logged_request.take();
                return self.write_reader(OpenResponse {
                    body,
                    end,
                    logged_request,
                });
            }
        };
        Ok(self.end_response(end, body_len))
    }

    /// Goes on with a response whose body is read from a reader, if there is one.
    #[inline]
    fn continue_response(&mut self) -> io::Result<Option<Next>> {
        let head = SessionState::Head { examined: 0 };
        match std::mem::replace(self.state, head) {
            SessionState::Response(response) => self.write_reader(*response),
            SessionState::Later(awaited) => self.continue_waiting(awaited),
            SessionState::Channel(open) => Ok(self.continue_channel(open)),
            _ => Ok(None),
        }
    }

    /// Writes the next part of a body that is read from a reader, or the last.
    fn write_reader(&mut self, mut response: OpenResponse) -> io::Result<Option<Next>> {
        let is_complete = self.contain(|call| {
            let (body, began) = (&mut response.body, call.began);
            body.write_some(call.conn, call.body_buffer, began)
        })?;
        if !is_complete {
            self.conn.set_closing_notice(ClosingNotice::Forbidden);
            *self.state = SessionState::Response(Box::new(response));
            return Ok(Some(Next::Again));
        }
        let OpenResponse {
            body,
            end,
            logged_request,
        } = response;
        let body_len = body.len;
        self.contain(|_| drop(body));
        self.conn.set_closing_notice(ClosingNotice::Refusal);
        self.logged_request = logged_request;
        Ok(self.end_response(end, body_len))
    }

    /// Logs a response whose body is handed over to the connection, and does what follows it.
    #[inline]
    fn end_response(&mut self, end: ResponseEnd, body_len: u64) -> Option<Next> {
        self.log_response(end.status, body_len, end.waited);
        self.after_response(end)
    }

    /// Prepares for the rest of the request's body. `None`: the next request may follow.
    #[inline]
    pub(super) fn after_response(&mut self, end: ResponseEnd) -> Option<Next> {
        if end.closes {
            if !end.is_body_consumed {
                self.conn.linger_on_close();
            }
            return Some(Next::Close);
        }
        if !end.is_body_consumed {
            self.conn.set_closing_notice(ClosingNotice::Forbidden);
            *self.state = SessionState::Discard(end.rest);
        }
        None
    }

    /// Runs code that calls a reader of the handler's, or drops it. If it panics, the response is
    /// cut off.
    fn contain<T>(&mut self, code: impl FnOnce(&mut Self) -> T) -> T {
        match catch_unwind(AssertUnwindSafe(|| code(self))) {
            Ok(value) => value,
            Err(panic) => self.resume_panic(panic),
        }
    }

    /// Responds in place of the handler. The connection must then be closed.
    #[cold]
    fn reject(&mut self, rejection: Rejection, is_head: bool) -> Next {
        self.conn.linger_on_close();
        let status = self.write_rejection(rejection, is_head);
        let info = self.conn.info();
        log::debug!("{info}: request rejected: {}", rejection.detail);
        self.log_response(status, 0, self.conn.waited());
        Next::Close
    }

    /// Writes a response in place of the handler's, after which the connection is closed. Returns
    /// its status.
    #[cold]
    fn write_rejection(&mut self, rejection: Rejection, is_head: bool) -> StatusCode {
        let head = self.has_head.then(|| self.parts.filled());
        let made = rejection.shaped(self.http.error_response.as_deref(), head);
        let out = self.conn.gathered();
        match made {
            Some(response) => {
                let status = response.status();
                self.writer.add_last(out, response, is_head);
                status
            }
            None => {
                self.writer.reject(out, rejection, is_head);
                rejection.status
            }
        }
    }

    /// Keeps what the access log says about a request.
    #[inline]
    fn begin_log_entry(&mut self) {
        if self.http.access_log.is_some() {
            self.logged_request = Some(LoggedRequest::new(self.parts.filled()));
        }
    }

    /// Writes a line of the access log. `body_len` is in bytes.
    #[inline]
    fn log_response(&mut self, status: StatusCode, body_len: u64, waited: Duration) {
        if let Some(format) = self.http.access_log {
            let request = self.logged_request.take();
            AccessLine {
                format,
                client: self.conn.peer(),
                listener: self.conn.listener_name(),
                request: request.as_ref(),
                status,
                body_len,
                waited,
            }
            .write();
        }
    }

    /// Continues a panic: the worker counts the panic, and replaces its buffers. What was gathered
    /// is written as the client reads.
    fn resume_panic(&mut self, panic: Box<dyn Any + Send>) -> ! {
        self.conn.linger_on_close();
        resume_unwind(panic)
    }
}
