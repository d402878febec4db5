//! A request's body: read by a handler, collected before the handler is called, or discarded.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use ::http::StatusCode;

use super::body_decoder::BodyDecoder;
use super::head::RequestHead;
use super::rejection::{Rejection, RequestLimits, bad_request};
use crate::connection::{Connection, READ_SIZE};

const BODY_TOO_LARGE: Rejection =
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");

const BODY_TOO_SLOW: Rejection =
    Rejection::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");

const BODY_CUT_SHORT: Rejection = bad_request("the body ended early");

/// The most that is discarded of one body, in bytes of data and framing.
const DISCARD_LIMIT: usize = 64 * 1024;

/// A request's body: `Read` and `BufRead`.
///
/// A small body (see [`Http::small_body`](super::Http::small_body)) has arrived completely when the
/// handler is called, and reading it never waits. A larger body is received from the connection
/// while the handler reads, under the connection's read time-out and minimum rate (see
/// [`Connection`]). If the client waits for `100 Continue` (`Expect: 100-continue`, RFC 9110,
/// section 10.1.1), the first read sends it.
///
/// A handler need not read the body. The service discards the rest, or closes the connection if
/// the rest is more than 64 KiB.
///
/// # Errors
///
/// A read fails if the body is malformed, ends early, is longer than
/// [`Http::max_body`](super::Http::max_body), or is too slow. Every later read fails too, and the
/// service responds with 400, 413 or 408 whatever the handler returns, so the handler can just
/// return.
pub struct Body<'a> {
    pub(super) conn: &'a mut Connection,
    pub(super) request: &'a mut RequestHead,
    /// How many more bytes of data the body may have.
    pub(super) allowance: u64,
    /// Set when the body cannot be read to its end.
    pub(super) rejection: &'a mut Option<Rejection>,
}

impl Body<'_> {
    /// The request's connection, for example for the client's address.
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// How many bytes are left to read; `None` for a chunked body, until its end.
    pub fn remaining(&self) -> Option<u64> {
        self.request.body.remaining()
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

    fn consume_data(&mut self, count: usize) {
        self.request.body.consume_data(count);
        self.allowance -= count as u64;
    }
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
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
        Ok(&self.conn.buffer()[..count])
    }

    fn consume(&mut self, count: usize) {
        self.conn.consume(count);
        self.consume_data(count);
    }
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

    /// Decodes what has arrived of the body. True when the handler can be called: the body is
    /// complete, or is no longer a small one.
    pub(super) fn collect(&mut self, input: &[u8]) -> Result<bool, Rejection> {
        while !self.decoder.is_done() && self.decoded < self.small_until {
            let (framing_len, data_len) = self.decoder.decode(&input[self.decoded..])?;
            if framing_len + data_len == 0 {
                return Ok(false);
            }
            if data_len as u64 > self.allowance {
                return Err(BODY_TOO_LARGE);
            }
            self.allowance -= data_len as u64;
            self.decoded += framing_len + data_len;
            self.decoder.consume_data(data_len);
        }
        Ok(true)
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
