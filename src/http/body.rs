//! A request's body, as a handler reads it.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use ::http::StatusCode;

use super::body_decoder::BodyDecoder;
use super::rejection::{Rejection, bad_request};
use crate::connection::{Connection, READ_SIZE};

pub(super) const BODY_TOO_LARGE: Rejection =
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");

const BODY_TOO_SLOW: Rejection =
    Rejection::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");

const BODY_CUT_SHORT: Rejection = bad_request("the body ended early");

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
    conn: &'a mut Connection,
    state: &'a mut BodyState,
}

/// How far a body has been read. The state outlives the [`Body`] that the handler gets.
#[derive(Debug)]
pub(super) struct BodyState {
    pub(super) decoder: BodyDecoder,
    /// The client waits for `100 Continue`.
    pub(super) expects_continue: bool,
    /// How many more bytes of data the body may have.
    pub(super) allowance: u64,
    /// Set when the body cannot be read to its end.
    pub(super) rejection: Option<Rejection>,
}

impl BodyState {
    fn reject(&mut self, rejection: Rejection, kind: io::ErrorKind) -> io::Error {
        self.rejection = Some(rejection);
        io::Error::new(kind, rejection.detail)
    }

    fn consume_data(&mut self, count: usize) {
        self.decoder.consume_data(count);
        self.allowance -= count as u64;
    }

    /// Passes on the result of a read from the connection. An error, and the end of the stream, end
    /// the body too.
    fn check_read(&mut self, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Ok(0) => Err(self.reject(BODY_CUT_SHORT, io::ErrorKind::UnexpectedEof)),
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::TimedOut => self.rejection = Some(BODY_TOO_SLOW),
                    io::ErrorKind::Interrupted => {}
                    _ => self.rejection = Some(BODY_CUT_SHORT),
                }
                Err(error)
            }
            read => read,
        }
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(conn: &'a mut Connection, state: &'a mut BodyState) -> Self {
        Self { conn, state }
    }

    /// The request's connection, for example for the client's address.
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// How many bytes are left to read; `None` for a chunked body, until its end.
    pub fn remaining(&self) -> Option<u64> {
        self.state.decoder.remaining()
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

    /// Waits until there is data at the front of the connection's buffer. Returns how much, 0 at
    /// the body's end.
    fn fill_data(&mut self) -> io::Result<usize> {
        let state = &mut *self.state;
        if let Some(rejection) = state.rejection {
            return Err(io::Error::new(io::ErrorKind::InvalidData, rejection.detail));
        }
        while !state.decoder.is_done() {
            let decoded = state.decoder.decode(self.conn.buffer());
            let (framing_len, data_len) =
                decoded.map_err(|rejection| state.reject(rejection, io::ErrorKind::InvalidData))?;
            self.conn.consume(framing_len);
            if data_len > 0 {
                let allowance = usize::try_from(state.allowance).unwrap_or(usize::MAX);
                if allowance == 0 {
                    return Err(state.reject(BODY_TOO_LARGE, io::ErrorKind::FileTooLarge));
                }
                return Ok(data_len.min(allowance));
            }
            if state.decoder.is_done() {
                break;
            }
            if std::mem::take(&mut state.expects_continue) {
                self.conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let filled = self.conn.fill_buf().map(<[u8]>::len);
            state.check_read(filled)?;
        }
        Ok(0)
    }
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state;
        let data_left = state.decoder.data_left().min(state.allowance);
        let data_is_next = data_left > 0 && !state.expects_continue && state.rejection.is_none();
        if data_is_next && into.len() >= READ_SIZE && self.conn.buffer().is_empty() {
            // A large read of a large body does not need the connection's buffer.
            let len = usize::try_from(data_left).map_or(into.len(), |left| left.min(into.len()));
            let read = self.conn.read(&mut into[..len]);
            let count = state.check_read(read)?;
            state.consume_data(count);
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
        let count = self.fill_data()?;
        Ok(&self.conn.buffer()[..count])
    }

    fn consume(&mut self, count: usize) {
        self.conn.consume(count);
        self.state.consume_data(count);
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
