//! A request's body, as a handler reads it.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use ::http::StatusCode;

use super::framing::Framing;
use super::head::{Refusal, bad};
use crate::connection::{Connection, READ_SIZE};

/// A request's body: `Read` and `BufRead`.
///
/// A small one has arrived when the handler is called, and reading it never waits. A larger one comes from the
/// connection while it is read, under its read time-out and minimum rate (see [`Connection`]). A client that asked to
/// be told to go on (`Expect: 100-continue`) is told so by the first read.
///
/// What a handler leaves unread costs nothing but the connection, if it is much.
///
/// # Errors
///
/// When the client sends what is no body, less or more than it may, or is too slow, reading fails for good. The client
/// is then answered 400, 413 or 408 by the service itself, whatever the handler returns: so a handler may just give up.
pub struct Body<'a> {
    conn: &'a mut Connection,
    incoming: &'a mut Incoming,
}

/// How far a body has been read. It outlives the [`Body`], to tell what became of it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) framing: Framing,
    /// `100 Continue` is still to be sent.
    pub(super) expects: bool,
    /// How many bytes more it may have.
    pub(super) limit: u64,
    /// What the client did wrong.
    pub(super) failed: Option<Refusal>,
}

impl Incoming {
    fn fail(&mut self, refusal: Refusal, kind: io::ErrorKind) -> io::Error {
        self.failed = Some(refusal);
        io::Error::new(kind, refusal.why)
    }

    fn took(&mut self, count: usize) {
        self.framing.take(count);
        self.limit -= count as u64;
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(conn: &'a mut Connection, incoming: &'a mut Incoming) -> Self {
        Self { conn, incoming }
    }

    /// The connection that the request came on: who the client is, whether the server is stopping.
    pub fn connection(&self) -> &Connection {
        self.conn
    }

    /// How many bytes are left to be read; `None` if the client has not said how many there are.
    pub fn remaining(&self) -> Option<u64> {
        match self.incoming.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) if self.incoming.framing.is_done() => Some(0),
            Framing::Chunked(_) => None,
        }
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// `FileTooLarge` if that is more than `limit` bytes; the handler then answers what it likes. Errors of reading.
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

    /// Gets data to the front of the connection's buffer; how much of it there is, 0 at the body's end.
    fn available(&mut self) -> io::Result<usize> {
        if let Some(refusal) = self.incoming.failed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, refusal.why));
        }
        let incoming = &mut *self.incoming;
        while !incoming.framing.is_done() {
            match incoming.framing.decode(self.conn.buffer()) {
                Ok((framing, data)) => {
                    self.conn.consume(framing);
                    if data > 0 {
                        let allowed = usize::try_from(incoming.limit).unwrap_or(usize::MAX);
                        if allowed == 0 {
                            return Err(incoming.fail(TOO_LARGE, io::ErrorKind::FileTooLarge));
                        }
                        return Ok(data.min(allowed));
                    }
                    if incoming.framing.is_done() {
                        break;
                    }
                }
                Err(malformed) => {
                    return Err(incoming.fail(bad(malformed.0), io::ErrorKind::InvalidData));
                }
            }
            if std::mem::take(&mut incoming.expects) {
                self.conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let filled = self.conn.fill_buf().map(<[u8]>::len);
            Self::check(incoming, filled)?;
        }
        Ok(0)
    }

    /// Looks at what came of reading from the connection, where the body goes on.
    fn check(incoming: &mut Incoming, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Ok(0) => Err(incoming.fail(CUT_SHORT, io::ErrorKind::UnexpectedEof)),
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    incoming.failed = Some(TOO_SLOW);
                } else if error.kind() != io::ErrorKind::Interrupted {
                    incoming.failed = Some(CUT_SHORT);
                }
                Err(error)
            }
            read => read,
        }
    }
}

const CUT_SHORT: Refusal = bad("the body ended early");

pub(super) const TOO_SLOW: Refusal = Refusal {
    status: StatusCode::REQUEST_TIMEOUT,
    why: "the body did not come in time",
};

pub(super) const TOO_LARGE: Refusal = Refusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    why: "the body is too large",
};

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let incoming = &mut *self.incoming;
        let due = incoming.framing.due().min(incoming.limit);
        let direct = due > 0 && !incoming.expects && incoming.failed.is_none();
        if direct && into.len() >= READ_SIZE && self.conn.buffer().is_empty() {
            // Large pieces of a large body go past the connection's buffer.
            let most = usize::try_from(due).map_or(into.len(), |due| due.min(into.len()));
            let read = self.conn.read(&mut into[..most]);
            let count = Self::check(incoming, read)?;
            incoming.took(count);
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
        let count = self.available()?;
        Ok(&self.conn.buffer()[..count])
    }

    fn consume(&mut self, count: usize) {
        if count > 0 {
            self.conn.consume(count);
            self.incoming.took(count);
        }
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
