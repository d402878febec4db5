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
//! | `Head`, `Body` | the request can be handled | handler, response | see below |
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
//! When the time for more is over, the connection is closed: in `Head` and `Body` with 408, in
//! `Discard` without a response, because the client waits for none.

use std::any::Any;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode, response};

use super::access_log::AccessLogEntry;
use super::body::{Body, BodyState};
use super::collected_body::CollectedBody;
use super::discarded_body::{DiscardProgress, DiscardedBody};
use super::head::{HeadParser, RequestHead, is_worth_parsing};
use super::rejection::{Rejection, bad_request};
use super::reply::Reply;
use super::response_form::RequestMetadata;
use super::response_writer::{ConnectionUse, ResponseWriter};
use super::session::{Session, SessionState};
use super::settings::Http;
use crate::connection::{ClosingNotice, Connection};
use crate::service::{Next, Service};

/// Responses are written when this many bytes are pending, even if more requests have arrived. The
/// pending bytes and the next response together should fit into the connection's output buffer.
const FLUSH_THRESHOLD: usize = 16 * 1024;

/// The response to a client whose request does not arrive in time.
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

const HANDLER_PANICKED: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "the handler panicked");

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
        Ok(Session(SessionState::START))
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
        // An error on another connection may have left responses to that client.
        writer.clear();
        writer.date.refresh();
        let mut call = ServeCall {
            http: self,
            conn,
            state,
            parser,
            writer,
        };
        let next = call.serve_requests();
        // After an error too: the responses before it are complete.
        let flushed = writer.flush(conn);
        let next = next?;
        flushed?;
        match state {
            SessionState::Upgraded(protocol) => protocol(conn),
            SessionState::Head { .. } | SessionState::Body(_) if next == Next::More => {
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
}

/// What has arrived on a connection.
enum Received {
    /// A request that can be handled. Its head is still in the buffer.
    Request(RequestHead),
    /// The rest of a discarded body. A request may follow.
    DiscardedBody,
    /// Nothing that can be handled now.
    Nothing(Next),
}

/// A request that is being answered, apart from what its handler gets.
struct Exchange {
    metadata: RequestMetadata,
    body: BodyState,
    log_entry: Option<AccessLogEntry>,
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
            if let Some(next) = self.serve_request()? {
                return Ok(next);
            }
        }
    }

    /// Does one step of the loop; `None` if another one may follow.
    fn serve_request(&mut self) -> io::Result<Option<Next>> {
        // `Parts` is large: it is filled in place, and moved once, into the handler's request.
        let mut parts = None;
        let filled = parts.get_or_insert_with(|| Request::new(()).into_parts().0);
        let head = match self.receive(filled) {
            Ok(Received::Request(head)) => head,
            Ok(Received::DiscardedBody) => return Ok(None),
            Ok(Received::Nothing(next)) => return Ok(Some(next)),
            Err(rejection) => {
                let is_head = self.conn.buffer().starts_with(b"HEAD ");
                let log_entry = self.http.access_log.then(AccessLogEntry::without_request);
                self.reject(rejection, is_head, log_entry.as_ref());
                return Ok(Some(Next::Close));
            }
        };
        self.conn.consume(head.len);
        let mut exchange = Exchange::new(self.http, head, filled);
        if !exchange.body.decoder.is_done() && self.writer.pending_len() > 0 {
            // The client may wait for these responses before it sends the body.
            self.writer.flush(self.conn)?;
        }
        match self.call_handler(&mut exchange, parts) {
            Some((head, reply)) => self.respond(exchange, head, reply),
            None => Ok(Some(Next::Close)),
        }
    }

    /// Finds out what has arrived. A request's head is parsed into `parts`.
    #[inline]
    fn receive(&mut self, parts: &mut Parts) -> Result<Received, Rejection> {
        let Self { conn, state, .. } = self;
        if let SessionState::Discard(body) = state {
            return Ok(match body.discard(conn) {
                DiscardProgress::Complete => {
                    conn.set_closing_notice(ClosingNotice::Refusal);
                    **state = SessionState::START;
                    Received::DiscardedBody
                }
                DiscardProgress::Incomplete => Received::Nothing(Next::More),
                DiscardProgress::Abandoned => {
                    conn.linger_on_close();
                    Received::Nothing(Next::Close)
                }
            });
        }
        // Empty lines before a request are ignored (RFC 9112, section 2.2).
        while matches!(state, SessionState::Head { .. }) && conn.buffer().starts_with(b"\r\n") {
            conn.consume(2);
            **state = SessionState::START;
        }
        if conn.buffer().is_empty() {
            **state = SessionState::START;
            return Ok(Received::Nothing(Next::Park));
        }
        match self.receive_request(parts)? {
            Some(head) => {
                *self.state = SessionState::START;
                Ok(Received::Request(head))
            }
            None if self.conn.at_eof() => Err(bad_request("the request ended early")),
            None => Ok(Received::Nothing(Next::More)),
        }
    }

    /// Parses a request's head, once the request can be handled. Until then, the state records how
    /// much of the request has been examined.
    #[inline]
    fn receive_request(&mut self, parts: &mut Parts) -> Result<Option<RequestHead>, Rejection> {
        let (input, limits) = (self.conn.buffer(), &self.http.limits);
        let mut is_body_collected = false;
        match self.state {
            SessionState::Head { examined }
                if *examined > 0
                    && !self.conn.at_eof()
                    && !is_worth_parsing(input, *examined, limits) =>
            {
                *examined = input.len();
                return Ok(None);
            }
            SessionState::Body(body) => {
                if !body.collect(input, limits)? {
                    return Ok(None);
                }
                is_body_collected = true;
            }
            _ => {}
        }
        let Some(head) = self.parser.parse(input, limits, parts)? else {
            let examined = input.len();
            *self.state = SessionState::Head { examined };
            return Ok(None);
        };
        if !is_body_collected && !head.body.is_done() {
            let mut body = CollectedBody::new(&head, limits, self.conn.input_limit())?;
            // A client that waits for `100 Continue` does not send the body before.
            if !head.expects_continue && !body.collect(input, limits)? {
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
        exchange: &mut Exchange,
        mut parts: Option<Parts>,
    ) -> Option<(response::Parts, Reply)> {
        let mut response = None;
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let body = Body::new(self.conn, &mut exchange.body);
            let request = parts.take().map(|parts| Request::from_parts(parts, body));
            let returned = request.map(|request| (self.http.handler)(request).into_parts());
            response = returned.map(|(head, body)| (head, body.into()));
        }));
        let rejection = match exchange.body.rejection {
            None if response.is_none() => HANDLER_PANICKED,
            None => return response,
            Some(rejection) => rejection,
        };
        let is_head = exchange.metadata.is_head;
        self.reject(rejection, is_head, exchange.log_entry.as_ref());
        if let Err(panic) = caught {
            self.resume_panic(panic);
        }
        None
    }

    /// Discards the rest of the request's body, and writes the response.
    #[inline]
    fn respond(
        &mut self,
        exchange: Exchange,
        head: response::Parts,
        reply: Reply,
    ) -> io::Result<Option<Next>> {
        let (mut metadata, body) = (exchange.metadata, exchange.body);
        // A client that still waits for `100 Continue` may now send the body, or leave it out.
        let is_uncertain = body.expects_continue && !body.decoder.is_done();
        let mut rest = DiscardedBody::new(body.decoder);
        let progress = match is_uncertain {
            true => DiscardProgress::Abandoned,
            false => rest.discard(self.conn),
        };
        let conn = &mut *self.conn;
        metadata.is_body_consumed = progress == DiscardProgress::Complete;
        let is_last = conn.buffer().is_empty() && (conn.at_eof() || conn.is_draining());
        metadata.keep_alive &= progress != DiscardProgress::Abandoned && !is_last;
        // The reader of a body is the handler's code and may panic. Its response is then cut off.
        let respond = || self.writer.respond(conn, &metadata, &head, reply);
        let sent = match catch_unwind(AssertUnwindSafe(respond)) {
            Ok(sent) => sent?,
            Err(panic) => self.resume_panic(panic),
        };
        let conn = &mut *self.conn;
        if let Some(entry) = exchange.log_entry {
            entry.write(conn, sent.status, sent.body_len);
        }
        Ok(match sent.next_use {
            ConnectionUse::Close => {
                if !metadata.is_body_consumed {
                    conn.linger_on_close();
                }
                Some(Next::Close)
            }
            ConnectionUse::Upgrade(protocol) => {
                conn.set_closing_notice(ClosingNotice::Forbidden);
                *self.state = SessionState::Upgraded(protocol);
                Some(Next::Again)
            }
            ConnectionUse::NextRequest => {
                if progress == DiscardProgress::Incomplete {
                    conn.set_closing_notice(ClosingNotice::Forbidden);
                    *self.state = SessionState::Discard(rest);
                }
                None
            }
        })
    }

    /// Responds in place of the handler. The connection must then be closed.
    #[cold]
    fn reject(&mut self, rejection: Rejection, is_head: bool, log_entry: Option<&AccessLogEntry>) {
        self.conn.linger_on_close();
        self.writer.reject(rejection, is_head);
        let info = self.conn.info();
        log::debug!("{info}: request rejected: {}", rejection.detail);
        if let Some(entry) = log_entry {
            entry.write(self.conn, rejection.status, 0);
        }
    }

    /// Continues a panic: the worker counts it, and replaces its buffers. The connection keeps what
    /// is pending and writes it as the client reads, so that the worker does not wait.
    fn resume_panic(&mut self, panic: Box<dyn Any + Send>) -> ! {
        self.conn.linger_on_close();
        // The pending bytes are few, and no more can follow.
        self.conn.set_output_limit(usize::MAX);
        // The panic is reported even if the client has gone.
        let _ = self.writer.flush(self.conn);
        resume_unwind(panic)
    }
}

impl Exchange {
    /// Keeps what the response to a request depends on.
    #[inline]
    fn new<H>(http: &Http<H>, head: RequestHead, parts: &Parts) -> Self {
        Self {
            metadata: RequestMetadata {
                is_head: parts.method == Method::HEAD,
                is_connect: parts.method == Method::CONNECT,
                version: parts.version,
                keep_alive: head.keep_alive,
                is_body_consumed: true,
            },
            body: BodyState {
                decoder: head.body,
                expects_continue: head.expects_continue,
                allowance: http.limits.body,
                rejection: None,
            },
            log_entry: http.access_log.then(|| AccessLogEntry::new(parts)),
        }
    }
}
