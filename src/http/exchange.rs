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
//! | `Upgraded` | any | call the protocol | `Upgraded` |
//!
//! A request can be handled when its body is complete. If the service asks to stream the body, a
//! request can be handled at its head's end if the body is not a small one or the client waits for
//! `100 Continue`. The next state depends on the response:
//!
//! | the request's body | the response | action | next state |
//! |---|---|---|---|
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
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use ::http::request::Parts;
use ::http::{Request, Response, StatusCode, response};

use super::access_log::{AccessLine, LoggedRequest};
use super::body::{Body, Collected, CollectedBody, DiscardedBody, SpoolError, SpooledRequest};
use super::head::{HeadParser, RequestHead, is_worth_parsing};
use super::reader_body::ReaderBody;
use super::rejection::{Rejection, bad_request};
use super::reply::{Reply, ReplyKind};
use super::response_plan::{Framing, ResponsePlan};
use super::response_writer::{ResponseWriter, write_file};
use super::session::{OpenResponse, ResponseEnd, Session, SessionState};
use super::settings::Http;
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

/// The response to a client whose request does not arrive in time.
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// The request is longer than the connection's input limit.
const TOO_LONG: Rejection = Rejection::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head is too long",
);

const ENDED_EARLY: Rejection = bad_request("the request ended early");

const HANDLER_PANICKED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");

const INVALID_RESPONSE: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the handler's response is not valid here",
);

/// The buffers that a worker uses for one request after the other: the
/// [`Service::Worker`](crate::Service::Worker) of [`Http`]. Opaque.
#[derive(Debug, Default)]
pub struct WorkerBuffers {
    parser: HeadParser,
    writer: ResponseWriter,
    /// Room to read the bodies of responses into.
    body: Vec<u8>,
}

impl<H, R> Service for Http<H>
where
    H: Fn(Request<Body<'_>>) -> Response<R> + Send + Sync,
    R: Into<Reply>,
{
    type Session = Session;
    type Worker = WorkerBuffers;

    fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.check_settings(buffers)?)
    }

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
        let WorkerBuffers {
            parser,
            writer,
            body,
        } = buffers;
        conn.take_no_message();
        // A service that contains this one may have written before.
        conn.reclaim_output()?;
        writer.start();
        let mut call = ServeCall {
            http: self,
            conn,
            state,
            parser,
            writer,
            spooled: None,
            body_buffer: body,
            logged_request: None,
            began: clock::millis(),
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
    /// The body of the request that was received, if it was spooled.
    spooled: Option<Box<SpooledBody>>,
    body_buffer: &'a mut Vec<u8>,
    /// The request, for the access log. `None` if the log is off, and for a request without a valid
    /// head.
    logged_request: Option<LoggedRequest>,
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
    /// Responds to every request that has arrived. The connection gathers the last responses.
    fn serve_requests(&mut self) -> io::Result<Next> {
        if matches!(self.state, SessionState::Response(_)) {
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
            // `Parts` is large: it is filled in place, and moved once, into the handler's request.
            let mut parts = None;
            let filled = parts.get_or_insert_with(|| Request::new(()).into_parts().0);
            let mut request = match self.receive(filled) {
                Ok(request) => request,
                Err(next) => return Ok(next),
            };
            self.conn.consume(request.len);
            self.begin_log_entry(filled);
            if !request.body.is_done() {
                // The client may wait for the responses so far before it sends the body.
                self.conn.flush_some()?;
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
                // The responses so far are written, and other connections are served next.
                return Ok(Next::Again);
            }
        }
    }

    /// Receives a request that can be handled. Its head is parsed into `parts`, and is still in the
    /// buffer unless the body was spooled. The error says what comes next if there is no such
    /// request.
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
        if matches!(self.state, SessionState::Spool(_)) {
            return self.receive_spooled(parts);
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
            Ok(None) if matches!(self.state, SessionState::Spool(_)) => {
                return self.receive_spooled(parts);
            }
            Ok(None) if self.conn.at_eof() => ENDED_EARLY,
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

    /// Parses a request's head, once the request can be handled or its body is to be spooled. Until
    /// then, the state records how much of the request has been examined.
    #[inline]
    fn receive_request(&mut self, parts: &mut Parts) -> Result<Option<RequestHead>, Rejection> {
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
            | SessionState::Upgraded(_) => true,
        };
        if !may_be_complete {
            return Ok(None);
        }
        let Some(head) = self.parser.parse(input, limits, parts)? else {
            return Ok(None);
        };
        match head.body.is_done() {
            true => Ok(Some(head)),
            false => {
                let received = self.receive_body(head, parts, collected);
                if received.is_err() {
                    self.begin_log_entry(parts);
                }
                received
            }
        }
    }

    /// Decides on how the body of a request is received. `collected` says how much of it has been
    /// collected already, if the head has been parsed before. Returns the head if the request can
    /// be handled.
    fn receive_body(
        &mut self,
        mut head: RequestHead,
        parts: &mut Parts,
        collected: Option<Collected>,
    ) -> Result<Option<RequestHead>, Rejection> {
        let limits = &self.http.limits;
        // If the body was being collected, 100 has been sent.
        head.expects_continue &= collected.is_none();
        let mut body = CollectedBody::new(&head, limits, self.conn.input_limit())?;
        let collected = match collected {
            Some(collected) => collected,
            None => body.collect(self.conn.buffer())?,
        };
        if collected == Collected::All {
            head.expects_continue = false;
            return Ok(Some(head));
        }
        let is_small = collected == Collected::Part;
        if (!is_small || head.expects_continue) && self.streams(parts, head.is_head) {
            return Ok(Some(head));
        }
        if !is_small {
            self.http.spool_space.admit(head.body.data_left())?;
        }
        if std::mem::take(&mut head.expects_continue) {
            let out = self.conn.gathered();
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        *self.state = match is_small {
            true => SessionState::Body(body),
            false => {
                self.conn.consume(std::mem::take(&mut head.len));
                let parts = std::mem::replace(parts, Request::new(()).into_parts().0);
                let space = &self.http.spool_space;
                SessionState::Spool(Box::new(SpooledRequest::new(parts, head, limits, space)))
            }
        };
        Ok(None)
    }

    /// Whether the service asks to stream the body of a request.
    fn streams(&mut self, parts: &Parts, is_head: bool) -> bool {
        let Some(streams) = &self.http.stream_body_if else {
            return false;
        };
        match catch_unwind(AssertUnwindSafe(|| streams(parts))) {
            Ok(streams) => streams,
            Err(panic) => {
                self.reject(HANDLER_PANICKED, is_head);
                self.resume_panic(panic)
            }
        }
    }

    /// Spools what has arrived of a body. Returns the request when its body is complete, with its
    /// head in `parts`.
    fn receive_spooled(&mut self, parts: &mut Parts) -> Result<RequestHead, Next> {
        let state = std::mem::replace(self.state, SessionState::Head { examined: 0 });
        let SessionState::Spool(mut request) = state else {
            return Err(Next::Again);
        };
        let received = request.receive(self.conn);
        let is_over = !matches!(received, Ok(false));
        let data_left = request.head.body.data_left();
        self.conn.expect_input(if is_over { 1 } else { data_left });
        let rejection = match received {
            Ok(true) => {
                let SpooledRequest {
                    parts: received,
                    head,
                    spool,
                    ..
                } = *request;
                *parts = received;
                self.spooled = Some(Box::new(spool.into_body()));
                return Ok(head);
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
        self.begin_log_entry(&request.parts);
        Err(self.reject(rejection, request.head.is_head))
    }

    /// Calls the handler. `None` if the service has responded instead, because the handler panicked
    /// or the body could not be read; the connection must then be closed.
    #[inline]
    fn call_handler(
        &mut self,
        request: &mut RequestHead,
        mut parts: Option<Parts>,
    ) -> io::Result<Option<(response::Parts, Reply)>> {
        self.conn.lend_output();
        let (mut response, mut rejection) = (None, None);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let body = Body {
                conn: self.conn,
                request,
                allowance: self.http.limits.body,
                rejection: &mut rejection,
                spooled: self.spooled.take(),
                space: &self.http.spool_space,
            };
            let request = parts.take().map(|parts| Request::from_parts(parts, body));
            let returned = request.map(|request| (self.http.handler)(request).into_parts());
            response = returned.map(|(head, body)| (head, body.into()));
        }));
        let reclaimed = self.conn.reclaim_output();
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
        let mut end = ResponseEnd {
            status: head.status,
            closes: true,
            rest,
            is_body_consumed: is_consumed,
            waited: self.conn.waited(),
        };
        let plan = match ResponsePlan::new(&request, is_consumed, &head, &reply) {
            Ok(plan) => plan,
            Err(problem) => {
                let info = self.conn.info();
                log::error!("{info}: the handler's response cannot be sent: {problem}");
                end.status = INVALID_RESPONSE.status;
                let out = self.conn.gathered();
                self.writer.reject(out, INVALID_RESPONSE, request.is_head);
                self.contain(|_| drop(reply));
                return Ok(self.end_response(end, 0));
            }
        };
        end.closes = plan.closes;
        self.writer
            .add_head(self.conn.gathered(), &head, &plan, &reply);
        let body_len = match (reply, plan.framing) {
            (ReplyKind::Upgrade(protocol), _) => {
                self.log_response(head.status, 0, end.waited);
                self.conn.set_closing_notice(ClosingNotice::Forbidden);
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
            (ReplyKind::File(_), _) => 0,
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

    /// Logs a response whose body is handed over to the connection, and prepares for the rest of
    /// the request's body. `None`: the next request may follow.
    #[inline]
    fn end_response(&mut self, end: ResponseEnd, body_len: u64) -> Option<Next> {
        self.log_response(end.status, body_len, end.waited);
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
        self.writer.reject(self.conn.gathered(), rejection, is_head);
        let info = self.conn.info();
        log::debug!("{info}: request rejected: {}", rejection.detail);
        self.log_response(rejection.status, 0, self.conn.waited());
        Next::Close
    }

    /// Keeps what the access log says about a request.
    #[inline]
    fn begin_log_entry(&mut self, parts: &Parts) {
        if self.http.access_log.is_some() {
            self.logged_request = Some(LoggedRequest::new(parts));
        }
    }

    /// Writes a line of the access log. `body_len` is in bytes.
    fn log_response(&mut self, status: StatusCode, body_len: u64, waited: Duration) {
        if let Some(format) = self.http.access_log {
            let request = self.logged_request.take();
            let line = AccessLine {
                format,
                client: self.conn.peer_addr(),
                listener: self.conn.listener_name(),
                request: request.as_ref(),
                status,
                body_len,
                waited,
            };
            log::info!(target: "handover::access", "{line}");
        }
    }

    /// Continues a panic: the worker counts the panic, and replaces its buffers. What was gathered
    /// is written as the client reads.
    fn resume_panic(&mut self, panic: Box<dyn Any + Send>) -> ! {
        self.conn.linger_on_close();
        resume_unwind(panic)
    }
}
