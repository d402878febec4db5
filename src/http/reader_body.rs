//! A response body that is read from a reader of the handler's, or from a request's body.
//!
//! Reading needs a worker, but a slow client does not hold it: as soon as the socket takes no more,
//! the connection is parked with its output, and the reader waits in the session until the output
//! is written. A body of any size takes turns with other connections.

use std::io::{self, BufRead, IoSlice, Read};

use super::spooled_body::SpooledBody;
use crate::clock;
use crate::connection::Connection;
use crate::log;

/// How many bytes are read at a time. As a chunk, with a size of up to 16 digits and two line ends,
/// they are at most 64 KiB.
const BUFFER_SIZE: usize = 64 * 1024 - 20;

/// How many bytes of a spooled body in memory are written at a time.
const SPOOLED_SIZE: usize = 256 * 1024;

/// How many bytes are written in one call of the service.
const BYTES_PER_CALL: u64 = 1024 * 1024;

/// What a response body is read from.
pub(super) enum BodySource {
    /// A reader of the handler's.
    Reader(Box<dyn Read + Send>),
    /// The body of a request.
    Spooled(Box<SpooledBody>),
}

pub(super) struct ReaderBody {
    pub(super) source: BodySource,
    /// How many bytes are left to read. `None`: all until the reader's end.
    pub(super) left: Option<u64>,
    pub(super) is_chunked: bool,
    /// How many bytes were read so far.
    pub(super) len: u64,
}

impl ReaderBody {
    /// Reads and writes until the body ends, the socket takes no more, or other connections are to
    /// be served: `began` is when the call began, in the coarse clock's milliseconds. True when the
    /// body is complete. After an error the connection must be closed.
    pub(super) fn write_some(
        &mut self,
        conn: &mut Connection,
        buffer: &mut Vec<u8>,
        began: u64,
    ) -> io::Result<bool> {
        buffer.resize(BUFFER_SIZE, 0);
        let end = self.len.saturating_add(BYTES_PER_CALL);
        loop {
            if self.left.is_none() {
                // The reader may need long for the next bytes. The client gets those before.
                conn.flush_some()?;
            }
            // The space of a spooled body is in use until the body is sent.
            let is_spooled = matches!(self.source, BodySource::Spooled(_));
            if self.left == Some(0) && !(is_spooled && conn.has_output()) {
                return Ok(true);
            }
            if conn.has_output() {
                return Ok(false);
            }
            let count = match is_spooled {
                true => self.write_spooled(conn)?,
                false => {
                    let count = self.read(conn, buffer)?;
                    self.write(conn, &buffer[..count])?;
                    count as u64
                }
            };
            if count == 0 {
                return Ok(true);
            }
            let is_over = self.len >= end || clock::millis() != began;
            if is_over && self.left != Some(0) {
                return Ok(false);
            }
        }
    }

    /// Writes the next part of a spooled body, and returns its length. A part that is in a file is
    /// handed over to the connection: the system sends it without a copy.
    fn write_spooled(&mut self, conn: &mut Connection) -> io::Result<u64> {
        let BodySource::Spooled(body) = &mut self.source else {
            return Ok(0);
        };
        let in_file = body.take_file().inspect_err(|error| {
            log::error!("{}: cannot read a stored body: {error}", conn.info());
        })?;
        let count = match in_file {
            Some((file, range)) => {
                let count = range.end - range.start;
                conn.send_file(file, range)?;
                count
            }
            None => {
                let bytes = body.fill_buf()?;
                let count = bytes.len().min(SPOOLED_SIZE);
                conn.write_whole(&[IoSlice::new(&bytes[..count])])?;
                body.consume(count);
                count as u64
            }
        };
        self.add_read(count);
        Ok(count)
    }

    fn add_read(&mut self, count: u64) {
        self.len += count;
        self.left = self.left.map(|left| left.saturating_sub(count));
    }

    /// Reads once. 0: the body has ended.
    fn read(&mut self, conn: &mut Connection, buffer: &mut [u8]) -> io::Result<usize> {
        let most = match self.left {
            Some(left) => usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len())),
            None => buffer.len(),
        };
        let BodySource::Reader(reader) = &mut self.source else {
            return Ok(0);
        };
        // The reader may take long: the keeper may send what is gathered meanwhile.
        conn.lend_output();
        let read = loop {
            match reader.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        conn.reclaim_output()?;
        let count = read.inspect_err(|error| {
            log::error!(
                "{}: cannot read the reader of a response body: {error}",
                conn.info()
            );
        })?;
        if let (0, Some(left @ 1..)) = (count, self.left) {
            log::error!("{}: a response body ended {left} bytes early", conn.info());
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.add_read(count as u64);
        Ok(count)
    }

    /// Writes what was read, as a chunk or as it is. An empty chunk ends the body.
    fn write(&self, conn: &mut Connection, bytes: &[u8]) -> io::Result<()> {
        if !self.is_chunked {
            return conn.write_whole(&[IoSlice::new(bytes)]);
        }
        let size = format!("{:x}\r\n", bytes.len());
        conn.write_whole(&[size.as_bytes(), bytes, b"\r\n"].map(IoSlice::new))
    }
}
