//! Writes responses: a head as [`ResponsePlan`] says, then the body.
//!
//! Heads and small bodies are collected in the writer until no request is left to serve, so that
//! the responses to pipelined requests leave in one write. Large bodies, and streams, are written
//! to the connection at once, behind what is pending.

use std::io::{self, IoSlice, Read, Write};

use ::http::response::Parts;
use ::http::{HeaderMap, HeaderName, StatusCode, header};

use super::date::Date;
use super::rejection::Rejection;
use super::reply::ReplyKind;
use super::response_plan::{Framing, ResponsePlan};
use crate::connection::Connection;
use crate::log;

/// A body up to this size, in bytes, is copied behind its head. A larger one is not copied.
const COPY_LIMIT: usize = 8 * 1024;

/// How many bytes are read at a time from a body that is a reader. As a chunk, with a size of up to
/// 16 digits and two line ends, they are at most 64 KiB.
const READER_BUFFER_SIZE: usize = 64 * 1024 - 20;

/// A worker's writer of responses.
#[derive(Debug, Default)]
pub(super) struct ResponseWriter {
    /// The bytes that are collected and not written to the connection yet.
    pending: Vec<u8>,
    /// The pending bytes are in the connection's outbox.
    is_lent: bool,
    date: Date,
    reader_buffer: Vec<u8>,
}

impl ResponseWriter {
    /// Starts to write to a connection. An error on another connection may have left responses to
    /// that client.
    pub(super) fn start(&mut self) {
        self.pending.clear();
        self.date.refresh();
    }

    /// How many bytes are pending.
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Writes what is pending.
    pub(super) fn flush(&mut self, conn: &mut Connection) -> io::Result<()> {
        let written = conn.write_all(&self.pending);
        // After an error too: the part that was written must not be written again.
        self.pending.clear();
        written
    }

    /// Lends what is pending to the connection's outbox while a handler is called.
    #[inline]
    pub(super) fn lend(&mut self, conn: &mut Connection) {
        if !self.pending.is_empty() {
            conn.lend_output(&mut self.pending);
            self.is_lent = true;
        }
    }

    /// Takes back the part of the lent bytes that was not sent.
    #[inline]
    pub(super) fn reclaim(&mut self, conn: &mut Connection) -> io::Result<()> {
        match std::mem::take(&mut self.is_lent) {
            true => conn.reclaim_output(&mut self.pending),
            false => Ok(()),
        }
    }

    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Adds an error response, after which the connection is closed. A response to HEAD has the
    /// length of the text, but not the text.
    pub(super) fn reject(&mut self, rejection: Rejection, is_head: bool) {
        let reason = rejection.status.canonical_reason().unwrap_or_default();
        self.add_status_line(rejection.status);
        self.add(b"Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n");
        self.add_content_length((reason.len() + rejection.detail.len() + 3) as u64);
        self.add(b"\r\n");
        if !is_head {
            for part in [reason, ": ", rejection.detail, "\n"] {
                self.add(part.as_bytes());
            }
        }
    }

    /// Adds the head of a response.
    #[inline]
    pub(super) fn add_head(&mut self, head: &Parts, plan: &ResponsePlan, reply: &ReplyKind) {
        self.add_status_line(head.status);
        if matches!(reply, ReplyKind::Text(_))
            && plan.framing != Framing::NoBody
            && !head.headers.contains_key(header::CONTENT_TYPE)
        {
            self.add(b"Content-Type: text/plain; charset=utf-8\r\n");
        }
        self.add_fields(&head.headers);
        self.add(plan.connection_line);
        match plan.framing {
            Framing::Length(length) => self.add_content_length(length),
            Framing::Chunks => self.add(b"Transfer-Encoding: chunked\r\n"),
            Framing::NoBody | Framing::Close => {}
        }
        self.add(b"\r\n");
    }

    fn add_status_line(&mut self, status: StatusCode) {
        if status == StatusCode::OK {
            self.pending
                .extend_from_slice(self.date.ok_and_date_lines());
        } else {
            let reason = status.canonical_reason().unwrap_or_default();
            for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
                self.add(part.as_bytes());
            }
            self.pending.extend_from_slice(self.date.date_line());
        }
    }

    fn add_content_length(&mut self, length: u64) {
        self.add(b"Content-Length: ");
        let mut digits = itoa::Buffer::new();
        self.add(digits.format(length).as_bytes());
        self.add(b"\r\n");
    }

    /// Adds the handler's fields, except those that the service writes.
    fn add_fields(&mut self, fields: &HeaderMap) {
        for (name, value) in fields {
            if !is_service_field(name) {
                add_field_name(&mut self.pending, name);
                self.add(b": ");
                self.add(value.as_bytes());
                self.add(b"\r\n");
            }
        }
    }

    /// Writes a body, of which a part may stay pending. Returns its length in bytes. After an error
    /// the connection must be closed.
    #[inline]
    pub(super) fn write_body(
        &mut self,
        conn: &mut Connection,
        reply: ReplyKind,
        plan: &ResponsePlan,
    ) -> io::Result<u64> {
        match (reply, plan.framing) {
            _ if !plan.sends_body => Ok(0),
            (ReplyKind::Text(bytes) | ReplyKind::Bytes(bytes), _) => self.write_bytes(conn, &bytes),
            (ReplyKind::Reader(mut reader, length), framing) => {
                self.write_reader(conn, &mut reader, length, framing == Framing::Chunks)
            }
            (ReplyKind::File(mut file), Framing::Length(length)) => {
                self.flush(conn)?;
                let sent = conn.send_file(&file, length)?;
                // The rest is copied, from the file's present position: what the system cannot
                // send by itself, and what fits into the connection's output buffer when the
                // client does not read, so that no worker waits for the client.
                Ok(sent + self.write_reader(conn, &mut file, Some(length - sent), false)?)
            }
            (ReplyKind::File(_) | ReplyKind::Upgrade(_), _) => Ok(0),
        }
    }

    fn write_bytes(&mut self, conn: &mut Connection, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() <= COPY_LIMIT {
            self.add(bytes);
        } else {
            let written = write_all_vectored(conn, [&self.pending, bytes]);
            self.pending.clear();
            written?;
        }
        Ok(bytes.len() as u64)
    }

    /// Writes the next `length` bytes of `reader`; all if there is no length.
    fn write_reader(
        &mut self,
        conn: &mut Connection,
        reader: &mut dyn Read,
        length: Option<u64>,
        is_chunked: bool,
    ) -> io::Result<u64> {
        if length.is_none() {
            // The reader may need long for the first bytes. The client gets the head before.
            self.flush(conn)?;
        }
        let mut buffer = std::mem::take(&mut self.reader_buffer);
        buffer.resize(READER_BUFFER_SIZE, 0);
        let mut reader = reader.take(length.unwrap_or(u64::MAX));
        let mut body_len = 0;
        loop {
            let count = read_body(conn, &mut reader, &mut buffer)?;
            if count == 0 {
                break;
            }
            body_len += count as u64;
            if is_chunked {
                let size = format!("{count:x}\r\n");
                write_all_vectored(conn, [size.as_bytes(), &buffer[..count], b"\r\n"])?;
                continue;
            }
            self.write_bytes(conn, &buffer[..count])?;
            if length.is_none() || self.pending.len() > COPY_LIMIT {
                self.flush(conn)?;
            }
        }
        self.reader_buffer = buffer;
        if is_chunked {
            self.add(b"0\r\n\r\n");
        }
        match length.map(|length| length - body_len) {
            None | Some(0) => Ok(body_len),
            Some(left) => {
                log::error!("{}: a response body ended {left} bytes early", conn.info());
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

/// Writes `parts` in order, in as few system calls as possible.
fn write_all_vectored<const N: usize>(conn: &mut Connection, parts: [&[u8]; N]) -> io::Result<()> {
    let mut parts = parts.map(IoSlice::new);
    let mut left = &mut parts[..];
    while !left.is_empty() {
        let count = conn.write_vectored(left)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, count);
    }
    Ok(())
}

/// Reads once from the reader of a response body.
fn read_body(conn: &Connection, reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::error!("{}: a response body failed: {error}", conn.info());
                return Err(error);
            }
            read => return read,
        }
    }
}

/// Whether only the service writes this field: it frames the message, concerns the connection, or
/// is Date.
fn is_service_field(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION | header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::DATE
    )
}

/// Adds a field name with the usual capitals (`Content-Type`): old clients compare the case.
fn add_field_name(out: &mut Vec<u8>, name: &HeaderName) {
    let start = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    let mut is_word_start = true;
    for byte in &mut out[start..] {
        if is_word_start {
            byte.make_ascii_uppercase();
        }
        is_word_start = *byte == b'-';
    }
}
