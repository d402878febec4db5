//! A worker's turn with an HTTP connection: answer every request that is all there, then give the worker back.
//!
//! What a connection is in the middle of is its [`Session`]. It survives parking, so that heads, small bodies, and
//! what no handler wanted of a body are waited for without a thread.

use std::any::Any;
use std::fmt;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode};

use super::body::{Body, Incoming, TOO_LARGE};
use super::framing::Framing;
use super::head::{self, Head, Limits, Memory, Refusal, bad};
use super::reply::{Protocol, Reply};
use super::response::{Asked, Then, Writer};
use super::settings::Http;
use crate::connection::{ClosingNotice, Connection};
use crate::service::{Next, Service};

/// Answers are written when they come to so many bytes, however many requests are left. What waits here comes on top
/// of the next answer, and both together should not have to wait for a slow client.
const FLUSH_AT: usize = 16 * 1024;

/// How much of a body that no handler wanted is thrown away, in bytes and with its framing.
const SKIPPED: usize = 64 * 1024;

/// What the client of a request that does not come in time is told.
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A connection's state between calls.
pub struct Session(State);

enum State {
    /// A head comes next; so many bytes of it are known not to hold its end.
    Head { seen: usize },
    /// A head is there, and its small body is being collected.
    Body(Collected),
    /// The rest of a body that no handler wanted comes next.
    Skip(Skip),
    /// Another protocol took over.
    Upgraded(Protocol),
}

impl State {
    const START: Self = Self::Head { seen: 0 };
}

/// What a worker has for its requests, one after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    writer: Writer,
    memory: Memory,
}

impl<H, R> Service for Http<H>
where
    H: Fn(Request<Body<'_>>) -> Response<R> + Send + Sync,
    R: Into<Reply>,
{
    type Session = Session;
    type Worker = Scratch;

    fn worker(&self, _index: usize) -> io::Result<Scratch> {
        Ok(Scratch::default())
    }

    fn session(&self, _conn: &Connection) -> io::Result<Session> {
        Ok(Session(State::START))
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        scratch: &mut Scratch,
    ) -> io::Result<Next> {
        let state = &mut session.0;
        if let State::Upgraded(protocol) = state {
            return protocol(conn);
        }
        // A client that has gone may have left an answer behind.
        scratch.writer.clear();
        scratch.writer.date.renew();
        let next = self.answer_all(conn, state, scratch);
        // The answers before one that failed are whole, and leave all the same.
        let flushed = scratch.writer.flush(conn);
        let next = next?;
        flushed?;
        match state {
            State::Upgraded(protocol) => protocol(conn),
            State::Head { .. } | State::Body(_) if next == Next::More => {
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

impl<H, R> Http<H>
where
    H: Fn(Request<Body<'_>>) -> Response<R>,
    R: Into<Reply>,
{
    /// Answers all that is there. The last answers are left in the writer.
    fn answer_all(
        &self,
        conn: &mut Connection,
        state: &mut State,
        scratch: &mut Scratch,
    ) -> io::Result<Next> {
        loop {
            if scratch.writer.pending() >= FLUSH_AT {
                scratch.writer.flush(conn)?;
            }
            if conn.has_output() {
                // A client that sends requests and does not read the answers gets no further ones for now.
                return Ok(Next::Park);
            }
            if let Some(next) = self.step(conn, state, scratch)? {
                return Ok(next);
            }
        }
    }

    /// Does what comes next, once; `None` if there may be more to do.
    fn step(
        &self,
        conn: &mut Connection,
        state: &mut State,
        scratch: &mut Scratch,
    ) -> io::Result<Option<Next>> {
        // They are large, so they are filled in place and moved once.
        let mut parts = None;
        let empty = parts.get_or_insert_with(|| Request::new(()).into_parts().0);
        match self.take_request(conn, state, scratch, empty) {
            Ok(Taken::Request(head)) => self.exchange(conn, state, scratch, head, parts),
            Ok(Taken::Skipped) => Ok(None),
            Ok(Taken::Wait(next)) => Ok(Some(next)),
            Err(refusal) => {
                conn.linger_on_close();
                let is_head = conn.buffer().starts_with(b"HEAD ");
                scratch.writer.refuse(refusal, is_head);
                log::debug!("{}: refused: {}", conn.info(), refusal.why);
                self.log(conn, None, refusal.status, 0);
                Ok(Some(Next::Close))
            }
        }
    }

    /// Gets hold of a request that is there as far as it is waited for.
    fn take_request(
        &self,
        conn: &mut Connection,
        state: &mut State,
        scratch: &mut Scratch,
        parts: &mut Parts,
    ) -> Result<Taken, Refusal> {
        let limits = &self.limits;
        if let State::Skip(skip) = state {
            return Ok(match skip.advance(conn) {
                Skipped::All => {
                    conn.set_closing_notice(ClosingNotice::Refusal);
                    *state = State::START;
                    Taken::Skipped
                }
                Skipped::Part => Taken::Wait(Next::More),
                Skipped::TooMuch => {
                    conn.linger_on_close();
                    Taken::Wait(Next::Close)
                }
            });
        }
        // Empty lines may stand before a request (RFC 9112, section 2.2).
        while matches!(state, State::Head { .. }) && conn.buffer().starts_with(b"\r\n") {
            conn.consume(2);
            *state = State::START;
        }
        if conn.buffer().is_empty() {
            *state = State::START;
            return Ok(Taken::Wait(Next::Park));
        }
        let (input, ended) = (conn.buffer(), conn.at_eof());
        let wait = |ended: bool| match ended {
            true => Err(bad("the request ended early")),
            false => Ok(Taken::Wait(Next::More)),
        };
        let mut collected = false;
        match state {
            State::Head { seen }
                if *seen > 0 && !ended && !is_worth_parsing(input, *seen, limits) =>
            {
                *seen = input.len();
                return wait(false);
            }
            State::Body(body) => {
                if !body.advance(input, limits)? {
                    return wait(ended);
                }
                collected = true;
            }
            _ => {}
        }
        let Some(head) = head::parse(input, limits, &mut scratch.memory, parts)? else {
            *state = State::Head { seen: input.len() };
            return wait(ended);
        };
        if !collected && !head.framing.is_done() {
            let mut body = Collected::new(&head, limits, conn.input_limit())?;
            // Who waits to be told to go on would wait for ever.
            if !head.expects && !body.advance(input, limits)? {
                *state = State::Body(body);
                return wait(ended);
            }
        }
        *state = State::START;
        Ok(Taken::Request(head))
    }

    /// Has the handler answer a request.
    fn exchange(
        &self,
        conn: &mut Connection,
        state: &mut State,
        scratch: &mut Scratch,
        head: Head,
        mut parts: Option<Parts>,
    ) -> io::Result<Option<Next>> {
        let Some(about) = &parts else { return Ok(None) };
        let entry = self.access_log.then(|| Entry::new(about));
        let mut asked = Asked {
            is_head: about.method == Method::HEAD,
            is_connect: about.method == Method::CONNECT,
            version: about.version,
            persists: head.persists,
            is_whole: true,
        };
        conn.consume(head.len);
        let mut incoming = Incoming {
            framing: head.framing,
            expects: head.expects,
            limit: self.limits.body,
            failed: None,
        };
        if !incoming.framing.is_done() && scratch.writer.pending() > 0 {
            // The client may wait for these before it sends the body.
            scratch.writer.flush(conn)?;
        }
        let mut answer = None;
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let body = Body::new(conn, &mut incoming);
            let request = parts.take().map(|parts| Request::from_parts(parts, body));
            let response = request.map(|request| (self.handler)(request).into_parts());
            answer = response.map(|(fields, body)| (fields, body.into()));
        }));
        let refusal = match answer {
            _ if incoming.failed.is_some() => incoming.failed,
            None => Some(PANICKED),
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            conn.linger_on_close();
            scratch.writer.refuse(refusal, asked.is_head);
            log::debug!("{}: {}", conn.info(), refusal.why);
            self.log(conn, entry.as_ref(), refusal.status, 0);
        }
        if let Err(panic) = panic {
            leave(conn, &mut scratch.writer, panic);
        }
        let Some((fields, reply)) = answer.filter(|_| refusal.is_none()) else {
            return Ok(Some(Next::Close));
        };
        let mut skip = Skip {
            framing: incoming.framing,
            left: SKIPPED,
        };
        let skipped = match incoming.expects && !skip.framing.is_done() {
            // Whether the client sends it now, nobody knows.
            true => Skipped::TooMuch,
            false => skip.advance(conn),
        };
        asked.is_whole = skipped == Skipped::All;
        let is_last = conn.buffer().is_empty() && (conn.at_eof() || conn.is_draining());
        asked.persists &= skipped != Skipped::TooMuch && !is_last;
        // A reader of the handler's may panic as well; what it has not given is cut off.
        let respond = || scratch.writer.respond(conn, &asked, &fields, reply);
        let answered = match catch_unwind(AssertUnwindSafe(respond)) {
            Ok(answered) => answered?,
            Err(panic) => leave(conn, &mut scratch.writer, panic),
        };
        self.log(conn, entry.as_ref(), answered.status, answered.length);
        Ok(match answered.then {
            Then::Close => {
                if !asked.is_whole {
                    conn.linger_on_close();
                }
                Some(Next::Close)
            }
            Then::Upgrade(protocol) => {
                conn.set_closing_notice(ClosingNotice::Forbidden);
                *state = State::Upgraded(protocol);
                Some(Next::Again)
            }
            Then::Continue => {
                if skipped == Skipped::Part {
                    conn.set_closing_notice(ClosingNotice::Forbidden);
                    *state = State::Skip(skip);
                }
                None
            }
        })
    }

    fn log(&self, conn: &Connection, entry: Option<&Entry>, status: StatusCode, length: u64) {
        if self.access_log {
            let (line, millis) = entry.map_or(("-", 0), |entry| {
                (entry.line.as_str(), entry.since.elapsed().as_millis())
            });
            let (peer, status) = (conn.peer_addr(), status.as_u16());
            log::info!(target: "handover::access", "{peer} \"{line}\" {status} {length} {millis}");
        }
    }
}

const PANICKED: Refusal = Refusal {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    why: "the handler panicked",
};

/// What there is to do with a connection.
enum Taken {
    Request(Head),
    /// What was in the way of the next request is gone.
    Skipped,
    Wait(Next),
}

/// What the access log says of a request, kept while the handler has it.
struct Entry {
    line: String,
    since: Instant,
}

impl Entry {
    fn new(head: &Parts) -> Self {
        Self {
            line: format!("{} {} {:?}", head.method, head.uri, head.version),
            since: Instant::now(),
        }
    }
}

/// A small body that is collected in the connection's buffer, behind its head.
struct Collected {
    framing: Framing,
    /// Up to where the buffer is decoded.
    at: usize,
    /// How far that may go before the body is not a small one any more.
    most: usize,
    size: u64,
}

impl Collected {
    fn new(head: &Head, limits: &Limits, input_limit: usize) -> Result<Self, Refusal> {
        let most = head.len.saturating_add(limits.small_body).min(input_limit);
        let is_large = head.framing.due() > most.saturating_sub(head.len) as u64;
        if head.framing.due() > limits.body {
            return Err(TOO_LARGE);
        }
        Ok(Self {
            framing: head.framing.clone(),
            at: head.len,
            most: if is_large { 0 } else { most },
            size: 0,
        })
    }

    /// Is the body all there, or too long to be waited for?
    fn advance(&mut self, input: &[u8], limits: &Limits) -> Result<bool, Refusal> {
        while !self.framing.is_done() && self.at < self.most {
            let (framing, data) = match self.framing.decode(&input[self.at..]) {
                Ok(parts) => parts,
                Err(malformed) => return Err(bad(malformed.0)),
            };
            if framing + data == 0 {
                return Ok(false);
            }
            self.at += framing + data;
            self.size += data as u64;
            if self.size > limits.body {
                return Err(TOO_LARGE);
            }
            if data > 0 {
                self.framing.take(data);
            }
        }
        Ok(true)
    }
}

/// A body that is thrown away as it comes.
struct Skip {
    framing: Framing,
    /// How many bytes more of it are put up with.
    left: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Skipped {
    All,
    /// What has come of it; the rest may follow.
    Part,
    /// It is not worth it, or it is no body.
    TooMuch,
}

impl Skip {
    fn advance(&mut self, conn: &mut Connection) -> Skipped {
        while !self.framing.is_done() {
            if self.framing.due() > self.left as u64 {
                return Skipped::TooMuch;
            }
            let Ok((framing, data)) = self.framing.decode(conn.buffer()) else {
                return Skipped::TooMuch;
            };
            let count = framing + data;
            if count > self.left {
                return Skipped::TooMuch;
            }
            if data > 0 {
                self.framing.take(data);
            }
            if count == 0 {
                return Skipped::Part;
            }
            conn.consume(count);
            self.left -= count;
        }
        Skipped::All
    }
}

/// Is there more to find out about a head than when `seen` bytes of it were there: its end, or that it is too long?
fn is_worth_parsing(input: &[u8], seen: usize, limits: &Limits) -> bool {
    let news = &input[seen.saturating_sub(3).min(input.len())..];
    let ends = || {
        let mut lines = news.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        lines.any(|(at, _)| matches!(news[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
    };
    input.len() >= limits.head || (input.len() > limits.line && seen <= limits.line) || ends()
}

/// Goes on with a panic, which the core counts, and makes a new worker state for. What was answered is left to be
/// written as the client reads, and nothing waits for that here.
fn leave(conn: &mut Connection, writer: &mut Writer, panic: Box<dyn Any + Send>) -> ! {
    conn.linger_on_close();
    // There is not much of it, and nothing can be added any more.
    conn.set_output_limit(usize::MAX);
    // A panic is one even if its client has gone meanwhile.
    let _ = writer.flush(conn);
    resume_unwind(panic)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Head { .. } => "Session(Head)",
            State::Body(_) => "Session(Body)",
            State::Skip(_) => "Session(Skip)",
            State::Upgraded(_) => "Session(Upgraded)",
        })
    }
}
