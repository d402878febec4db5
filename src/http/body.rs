//! A request's body: read by a handler, collected or spooled before the handler is called, or
//! discarded.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use ::http::StatusCode;
use ::http::request::Parts;

use super::body_decoder::BodyDecoder;
use super::head::RequestHead;
use super::reader_body::BodySource;
use super::rejection::{BODY_TOO_LARGE, Rejection, RequestLimits, bad_request};
use super::reply::{Reply, ReplyKind};
use super::spool::Spool;
use super::spool_space::SpoolSpace;
use super::spooled_body::SpooledBody;
use crate::connection::{Connection, READ_SIZE};
use crate::log;

const BODY_TOO_SLOW: Rejection =
    Rejection::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");

const BODY_CUT_SHORT: Rejection = bad_request("the body ended early");

const BODY_LOST: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the stored body cannot be read",
);

/// How many bytes of a spooled body are received in one call of the service, before other
/// connections have their turn.
const BYTES_PER_CALL: u64 = 1024 * 1024;

/// The most that is discarded of one body, in bytes of data and framing.
const DISCARD_LIMIT: usize = 64 * 1024;

/// A request's body: `Read` and `BufRead`.
///
/// The body has arrived completely when the handler is called, and reading it never waits for the
/// client: a small body (see [`Http::small_body`](super::Http::small_body)) is in memory, and a
/// larger one in memory or in a temporary file (see
/// [`Http::max_spooled`](super::Http::max_spooled)).
///
/// Only the requests that [`Http::stream_body_if`](super::Http::stream_body_if) selects are an
/// exception. Their body is received from the connection while the handler reads, under the
/// connection's read time-out and minimum rate (see [`Connection`]). If the client waits for
/// `100 Continue` (`Expect: 100-continue`, RFC 9110, section 10.1.1), the first read sends it.
///
/// A handler need not read the body. The service discards the rest that has not arrived, or closes
/// the connection if that is more than 64 KiB.
///
/// # Errors
///
/// A read fails if a temporary file cannot be read. While a body is received, a read also fails if
/// the body is malformed, ends early, is longer than [`Http::max_body`](super::Http::max_body), or
/// is too slow. Every later read fails too, and the service responds with 500, 400, 413 or 408
/// whatever the handler returns, so the handler can just return.
pub struct Body<'a> {
    pub(super) conn: &'a mut Connection,
    pub(super) request: &'a mut RequestHead,
    /// How many more bytes of data the body may have.
    pub(super) allowance: u64,
    /// Set when the body cannot be read to its end.
    pub(super) rejection: &'a mut Option<Rejection>,
    /// The body, if it was spooled. The decoder in `request` is then at the end.
    pub(super) spooled: Option<Box<SpooledBody>>,
    pub(super) space: &'a Arc<SpoolSpace>,
}

impl Body<'_> {
    /// The request's connection, for example for the client's address.
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// How many bytes are left to read. `None` for a chunked body that was not spooled, until its
    /// end.
    pub fn remaining(&self) -> Option<u64> {
        match &self.spooled {
            Some(spooled) => Some(spooled.remaining()),
            None => self.request.body.remaining(),
        }
    }

    /// Reads the rest of the body, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// `FileTooLarge` if there are more than `limit` bytes; the response is then the handler's
    /// choice. All errors of reading.
    pub fn read_all(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the body is too large");
        let expected = self.remaining().unwrap_or(0);
        if expected > limit as u64 {
            return Err(too_large());
        }
        if let Some(spooled) = &mut self.spooled {
            return note_lost(spooled.read_rest(), self.rejection);
        }
        let mut all = Vec::with_capacity((expected as usize).min(READ_SIZE));
        loop {
            let bytes = self.fill_buf()?;
            let count = bytes.len();
            if count == 0 {
                return Ok(all);
            }
            if count > limit - all.len() {
                return Err(too_large());
            }
            all.extend_from_slice(bytes);
            self.consume(count);
        }
    }

    /// Takes the rest of the body out of the request, as a reader that may outlive it: for the
    /// response's body, or for another thread. This body is at its end then. A body that was
    /// spooled is not copied. A body that streams is received first, and spooled meanwhile.
    ///
    /// # Errors
    ///
    /// All errors of reading; `StorageFull` if there is no room for another spooled body, and then
    /// the service responds with 413 or 503.
    ///
    /// # Examples
    ///
    /// ```
    /// use handover::http::{self, Body, Reply, Request, Response};
    ///
    /// let echo = http::service(|request: &mut Request<Body<'_>>| {
    ///     let body = request.body_mut().take_owned();
    ///     Response::new(body.map_or_else(|_| Reply::empty(), Reply::from))
    /// });
    /// ```
    pub fn take_owned(&mut self) -> io::Result<OwnedBody> {
        if let Some(mut spooled) = self.spooled.take() {
            let stored = spooled.outlive_request();
            stored.map_err(|rejection| self.reject(rejection, io::ErrorKind::StorageFull))?;
            return Ok(OwnedBody(spooled));
        }
        let mut spool = Spool::new(Arc::clone(self.space));
        loop {
            let bytes = self.fill_buf()?;
            let (count, stored) = match bytes.len() {
                0 => (0, spool.end()),
                count => (count, spool.append(bytes)),
            };
            stored.map_err(|rejection| self.reject(rejection, io::ErrorKind::StorageFull))?;
            if count == 0 {
                return Ok(OwnedBody(Box::new(spool.into_body())));
            }
            self.consume(count);
        }
    }

    fn reject(&mut self, rejection: Rejection, kind: io::ErrorKind) -> io::Error {
        *self.rejection = Some(rejection);
        io::Error::new(kind, rejection.detail)
    }

    /// Passes on the result of a read from the connection. An error, and the end of the stream, end
    /// the body too.
    fn check_read(&mut self, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Ok(0) => Err(self.reject(BODY_CUT_SHORT, io::ErrorKind::UnexpectedEof)),
            Err(error) => {
                *self.rejection = match error.kind() {
                    io::ErrorKind::TimedOut => Some(BODY_TOO_SLOW),
                    io::ErrorKind::Interrupted => None,
                    _ => Some(BODY_CUT_SHORT),
                };
                Err(error)
            }
            read => read,
        }
    }

    /// Receives until data is at the front of the connection's buffer. Returns how much; 0 at the
    /// body's end.
    fn receive_data(&mut self) -> io::Result<usize> {
        if let Some(rejection) = self.rejection {
            return Err(io::Error::new(io::ErrorKind::InvalidData, rejection.detail));
        }
        let mut count = 0;
        while count == 0 && !self.request.body.is_done() {
            let decoded = self.request.body.decode(self.conn.buffer());
            let (framing_len, data_len) =
                decoded.map_err(|rejection| self.reject(rejection, io::ErrorKind::InvalidData))?;
            self.conn.consume(framing_len);
            if data_len > 0 && self.allowance == 0 {
                return Err(self.reject(BODY_TOO_LARGE, io::ErrorKind::FileTooLarge));
            }
            count = self.allowance.min(data_len as u64) as usize;
            if count == 0 && !self.request.body.is_done() {
                if std::mem::take(&mut self.request.expects_continue) {
                    self.conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                let filled = self.conn.fill_buf().map(<[u8]>::len);
                self.check_read(filled)?;
            }
        }
        Ok(count)
    }

    fn consume_data(&mut self, count: usize) {
        self.request.body.consume_data(count);
        self.allowance -= count as u64;
    }
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(spooled) = &mut self.spooled {
            return note_lost(spooled.read(into), self.rejection);
        }
        let data_left = self.request.body.data_left().min(self.allowance);
        let data_is_next =
            data_left > 0 && !self.request.expects_continue && self.rejection.is_none();
        if data_is_next && into.len() >= READ_SIZE && self.conn.buffer().is_empty() {
            // A large read of a large body does not need the connection's buffer.
            let len = data_left.min(into.len() as u64) as usize;
            let read = self.conn.read(&mut into[..len]);
            let count = self.check_read(read)?;
            self.consume_data(count);
            return Ok(count);
        }
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Body<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.spooled.is_none() {
            let count = self.receive_data()?;
            return Ok(&self.conn.buffer()[..count]);
        }
        match &mut self.spooled {
            Some(spooled) => note_lost(spooled.fill_buf(), self.rejection),
            None => Ok(&[]),
        }
    }

    fn consume(&mut self, count: usize) {
        if let Some(spooled) = &mut self.spooled {
            return spooled.consume(count);
        }
        self.conn.consume(count);
        self.consume_data(count);
    }
}

/// The rest of a request's body, from [`Body::take_owned`]: `Read` and `BufRead`, in memory or in a
/// temporary file. It counts towards [`Http::max_spooled`](super::Http::max_spooled) until it is
/// dropped.
#[derive(Debug)]
pub struct OwnedBody(Box<SpooledBody>);

impl OwnedBody {
    /// How many bytes are left to read.
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }
}

impl Read for OwnedBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl BufRead for OwnedBody {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

/// The rest of a request's body as a response's body.
impl From<OwnedBody> for Reply {
    fn from(mut body: OwnedBody) -> Self {
        let length = body.remaining();
        match body.0.is_in_memory() {
            true => body
                .0
                .read_rest()
                .map_or_else(|_| Self::empty(), Self::from),
            false => Self(ReplyKind::Reader(BodySource::Spooled(body.0), Some(length))),
        }
    }
}

/// Passes on the result of a read of the stored body. After an error, the service responds.
fn note_lost<T>(read: io::Result<T>, rejection: &mut Option<Rejection>) -> io::Result<T> {
    read.inspect_err(|error| {
        log::error!("cannot read a stored request body: {error}");
        *rejection = Some(BODY_LOST);
    })
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// A small body that is collected in the connection's buffer, behind its head.
pub(super) struct CollectedBody {
    decoder: BodyDecoder,
    /// The length of the head and of the part of the body that has been decoded.
    decoded: usize,
    /// Collecting stops when `decoded` reaches this. 0 if the body is too large to collect.
    small_until: usize,
    /// How many more bytes of data the body may have.
    allowance: u64,
}

impl CollectedBody {
    /// `input_limit` is the size of the connection's buffer, in bytes.
    pub(super) fn new(
        head: &RequestHead,
        limits: &RequestLimits,
        input_limit: usize,
    ) -> Result<Self, Rejection> {
        let length = head.body.data_left();
        if length > limits.body {
            return Err(BODY_TOO_LARGE);
        }
        let small_until = head.len.saturating_add(limits.small_body).min(input_limit);
        let is_large = length > small_until.saturating_sub(head.len) as u64;
        Ok(Self {
            decoder: head.body.clone(),
            decoded: head.len,
            small_until: if is_large { 0 } else { small_until },
            allowance: limits.body,
        })
    }

    /// Decodes what has arrived of the body.
    pub(super) fn collect(&mut self, input: &[u8]) -> Result<Collected, Rejection> {
        while !self.decoder.is_done() && self.decoded < self.small_until {
            let (framing_len, data_len) = self.decoder.decode(&input[self.decoded..])?;
            if framing_len + data_len == 0 {
                return Ok(Collected::Part);
            }
            if data_len as u64 > self.allowance {
                return Err(BODY_TOO_LARGE);
            }
            self.allowance -= data_len as u64;
            self.decoded += framing_len + data_len;
            self.decoder.consume_data(data_len);
        }
        Ok(match self.decoder.is_done() {
            true => Collected::All,
            false => Collected::TooLarge,
        })
    }
}

/// How far a small body has been collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collected {
    /// The body is complete.
    All,
    /// More has to arrive.
    Part,
    /// The body is not a small one.
    TooLarge,
}

/// A request whose body is spooled. Its head has left the connection's buffer.
pub(super) struct SpooledRequest {
    pub(super) parts: Parts,
    pub(super) head: RequestHead,
    pub(super) spool: Spool,
    /// How many more bytes of data the body may have.
    allowance: u64,
}

impl SpooledRequest {
    pub(super) fn new(
        parts: Parts,
        head: RequestHead,
        limits: &RequestLimits,
        space: &Arc<SpoolSpace>,
    ) -> Self {
        Self {
            parts,
            head,
            spool: Spool::new(Arc::clone(space)),
            allowance: limits.body,
        }
    }

    /// Moves what has arrived of the body to the spool: what is in the connection's buffer, then
    /// what the socket has, until the socket is empty or other connections go first. True when the
    /// body is complete.
    pub(super) fn receive(&mut self, conn: &mut Connection) -> Result<bool, SpoolError> {
        let end = conn.bytes_in().saturating_add(BYTES_PER_CALL);
        let mut is_blocked = false;
        self.spool.take_buffer();
        while !self.take_buffered(conn)? {
            // Before a write to the file, one more read costs little, and often finds more.
            let goes_on = !conn.is_emptied() || self.spool.is_buffered() && !is_blocked;
            if !goes_on || conn.at_eof() || conn.bytes_in() >= end {
                self.spool.return_buffer()?;
                return Ok(false);
            }
            let before = conn.bytes_in();
            self.read(conn)?;
            is_blocked = conn.bytes_in() == before;
        }
        self.spool.end()?;
        Ok(true)
    }

    /// Moves what is in the connection's buffer to the spool. True when the body is complete.
    fn take_buffered(&mut self, conn: &mut Connection) -> Result<bool, Rejection> {
        while !self.head.body.is_done() {
            let (framing_len, data_len) = self.head.body.decode(conn.buffer())?;
            let count = framing_len + data_len;
            if count == 0 {
                return Ok(false);
            }
            self.allow(data_len)?;
            self.spool.append(&conn.buffer()[framing_len..count])?;
            conn.consume_spooled(count);
            self.head.body.consume_data(data_len);
        }
        Ok(true)
    }

    /// Reads once, without waiting: large data straight into the spool, all else into the
    /// connection's buffer, which is empty.
    fn read(&mut self, conn: &mut Connection) -> Result<(), SpoolError> {
        let data_left = self.head.body.data_left();
        let room = match data_left < READ_SIZE as u64 {
            true => None,
            false => self.spool.room()?,
        };
        let Some(room) = room else {
            conn.try_fill()?;
            return Ok(());
        };
        let len = data_left.min(room.len() as u64) as usize;
        let count = conn.receive_spooled(&mut room[..len])?;
        self.allow(count)?;
        self.spool.add_read(count)?;
        self.head.body.consume_data(count);
        Ok(())
    }

    fn allow(&mut self, count: usize) -> Result<(), Rejection> {
        let left = self.allowance.checked_sub(count as u64);
        self.allowance = left.ok_or(BODY_TOO_LARGE)?;
        Ok(())
    }
}

/// Why a body cannot be spooled.
#[derive(Debug)]
pub(super) enum SpoolError {
    Rejected(Rejection),
    /// The connection is broken.
    Read(io::Error),
}

impl From<Rejection> for SpoolError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// The rest of a body that no handler wanted. It is discarded as it arrives, so that the connection
/// stays usable.
pub(super) struct DiscardedBody {
    pub(super) decoder: BodyDecoder,
    /// How many more bytes may be discarded.
    allowance: usize,
}

impl DiscardedBody {
    pub(super) fn new(decoder: BodyDecoder) -> Self {
        Self {
            decoder,
            allowance: DISCARD_LIMIT,
        }
    }

    /// Discards what has arrived, without waiting. True when the body is complete. The error says
    /// that the body is malformed or over the limit: the connection must be closed.
    pub(super) fn discard(&mut self, conn: &mut Connection) -> Result<bool, Rejection> {
        while !self.decoder.is_done() {
            let (framing_len, data_len) = self.decoder.decode(conn.buffer())?;
            let count = framing_len + data_len;
            if self.decoder.data_left().max(count as u64) > self.allowance as u64 {
                return Err(BODY_TOO_LARGE);
            }
            if count == 0 {
                return Ok(false);
            }
            self.decoder.consume_data(data_len);
            conn.consume(count);
            self.allowance -= count;
        }
        Ok(true)
    }
}
