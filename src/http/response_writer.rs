//! Writes responses: a head in the form that `response_form` has decided on, then the body.
//!
//! Heads and small bodies are collected in the writer until no request is left to serve, so that
//! the responses to pipelined requests leave in one write. Large bodies, and streams, are written
//! to the connection at once, behind what is pending.

use std::io::{self, IoSlice, Read, Write};

use ::http::response::Parts;
use ::http::{HeaderMap, HeaderName, StatusCode, header};

use super::date::Date;
use super::rejection::Rejection;
use super::reply::{Reply, ReplyKind, UpgradedProtocol};
use super::response_form::{Framing, RequestMetadata, ResponseForm};
use crate::connection::Connection;

/// A body up to this size, in bytes, is copied behind its head. A larger one is not copied.
const COPY_LIMIT: usize = 8 * 1024;

/// How many bytes are read at a time from a body that is a reader.
const READER_BUFFER_SIZE: usize = 64 * 1024;

/// The room before a chunk's data for its size, in bytes: up to 16 digits and a line end.
const CHUNK_SIZE_ROOM: usize = 18;

const IMPOSSIBLE_RESPONSE: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the answer was impossible",
);

/// A worker's writer of responses.
#[derive(Debug, Default)]
pub(super) struct ResponseWriter {
    /// What is collected, and not yet written to the connection.
    pending: Vec<u8>,
    pub(super) date: Date,
    reader_buffer: Vec<u8>,
}

/// A response that has been written, or is pending.
pub(super) struct SentResponse {
    pub(super) status: StatusCode,
    /// The length of the body in bytes, without its framing.
    pub(super) body_len: u64,
    pub(super) next_use: ConnectionUse,
}

/// The use of a connection after a response.
pub(super) enum ConnectionUse {
    NextRequest,
    Close,
    Upgrade(UpgradedProtocol),
}

impl ResponseWriter {
    /// Drops what is pending for a client that has gone.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }

    /// How many bytes are pending.
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Writes what is pending.
    pub(super) fn flush(&mut self, conn: &mut Connection) -> io::Result<()> {
        if !self.pending.is_empty() {
            let written = conn.write_all(&self.pending);
            // After an error too: the part that was written must not be written again.
            self.pending.clear();
            return written;
        }
        Ok(())
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

    /// Writes a response, of which a part may stay pending. After an error the connection must be
    /// closed.
    pub(super) fn respond(
        &mut self,
        conn: &mut Connection,
        request: &RequestMetadata,
        head: &Parts,
        mut reply: Reply,
    ) -> io::Result<SentResponse> {
        let form = match ResponseForm::new(request, head, &mut reply) {
            Ok(form) => form,
            Err(problem) => {
                let info = conn.info();
                log::error!("{info}: the handler's response cannot be sent: {problem}");
                self.reject(IMPOSSIBLE_RESPONSE, request.is_head);
                return Ok(SentResponse {
                    status: IMPOSSIBLE_RESPONSE.status,
                    body_len: 0,
                    next_use: ConnectionUse::Close,
                });
            }
        };
        self.add_head(head, &form, reply.is_text);
        let (mut body_len, mut next_use) = (0, ConnectionUse::NextRequest);
        match reply.kind {
            ReplyKind::Upgrade(protocol) => next_use = ConnectionUse::Upgrade(protocol),
            kind if form.sends_body => body_len = self.write_body(conn, kind, form.framing)?,
            _ => {}
        }
        if form.closes {
            next_use = ConnectionUse::Close;
        }
        Ok(SentResponse {
            status: head.status,
            body_len,
            next_use,
        })
    }

    #[inline]
    fn add_head(&mut self, head: &Parts, form: &ResponseForm, is_text: bool) {
        self.add_status_line(head.status);
        if is_text
            && form.framing != Framing::NoBody
            && !head.headers.contains_key(header::CONTENT_TYPE)
        {
            self.add(b"Content-Type: text/plain; charset=utf-8\r\n");
        }
        self.add_fields(&head.headers);
        self.add(form.connection_line);
        match form.framing {
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
        let digits = digits.format(length);
        self.add(digits.as_bytes());
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

    /// Returns the body's length in bytes.
    fn write_body(
        &mut self,
        conn: &mut Connection,
        kind: ReplyKind,
        framing: Framing,
    ) -> io::Result<u64> {
        match (kind, framing) {
            (ReplyKind::Static(bytes), _) => self.write_bytes(conn, bytes),
            (ReplyKind::Bytes(bytes), _) => self.write_bytes(conn, &bytes),
            (ReplyKind::Sized(reader, length), _) => self.write_sized(conn, reader, length),
            (ReplyKind::Stream(reader), _) => {
                self.write_stream(conn, reader, framing == Framing::Chunks)
            }
            (ReplyKind::File(file), Framing::Length(length)) => {
                self.flush(conn)?;
                let sent = conn.send_file(&file, length)?;
                // The rest is copied, from the file's present position: what the system cannot
                // send by itself, and what fits into the connection's output buffer when the
                // client does not read, so that no worker waits for the client.
                Ok(sent + self.write_sized(conn, Box::new(file), length - sent)?)
            }
            (ReplyKind::File(_) | ReplyKind::Upgrade(_), _) => Ok(0),
        }
    }

    fn write_bytes(&mut self, conn: &mut Connection, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() <= COPY_LIMIT {
            self.add(bytes);
        } else {
            let written = write_all_vectored(conn, &self.pending, bytes);
            self.pending.clear();
            written?;
        }
        Ok(bytes.len() as u64)
    }

    fn write_sized(
        &mut self,
        conn: &mut Connection,
        mut reader: Box<dyn Read>,
        length: u64,
    ) -> io::Result<u64> {
        let mut buffer = self.take_reader_buffer();
        let mut left = length;
        while left > 0 {
            let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = read_body(conn, &mut reader, &mut buffer[..len])?;
            if count == 0 {
                log::error!("{}: a response body ended {left} bytes early", conn.info());
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.write_bytes(conn, &buffer[..count])?;
            if self.pending.len() > COPY_LIMIT {
                self.flush(conn)?;
            }
            left -= count as u64;
        }
        self.reader_buffer = buffer;
        Ok(length)
    }

    fn write_stream(
        &mut self,
        conn: &mut Connection,
        mut reader: Box<dyn Read>,
        is_chunked: bool,
    ) -> io::Result<u64> {
        // The reader may need long for the first chunk. The client gets the head before.
        self.flush(conn)?;
        let mut buffer = self.take_reader_buffer();
        let mut body_len = 0;
        loop {
            // The last two bytes of the buffer are for the line end behind the data.
            let data_limit = buffer.len() - 2;
            let count = read_body(conn, &mut reader, &mut buffer[CHUNK_SIZE_ROOM..data_limit])?;
            if count == 0 {
                break;
            }
            body_len += count as u64;
            let (mut start, mut end) = (CHUNK_SIZE_ROOM, CHUNK_SIZE_ROOM + count);
            if is_chunked {
                let size = format!("{count:x}\r\n");
                start -= size.len();
                buffer[start..CHUNK_SIZE_ROOM].copy_from_slice(size.as_bytes());
                buffer[end..end + 2].copy_from_slice(b"\r\n");
                end += 2;
            }
            conn.write_all(&buffer[start..end])?;
        }
        if is_chunked {
            self.add(b"0\r\n\r\n");
        }
        self.reader_buffer = buffer;
        Ok(body_len)
    }

    fn take_reader_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.reader_buffer);
        buffer.resize(READER_BUFFER_SIZE, 0);
        buffer
    }
}

/// Writes `first` and then `second`, in as few system calls as possible.
fn write_all_vectored(conn: &mut Connection, first: &[u8], second: &[u8]) -> io::Result<()> {
    let mut parts = [IoSlice::new(first), IoSlice::new(second)];
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
