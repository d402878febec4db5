//! Writes responses: a head as [`ResponsePlan`] says, then the body.
//!
//! Heads and small bodies are gathered by the connection until no request is left to serve, so that
//! the responses to pipelined requests leave in one write. Large bodies, and files, are handed over
//! to the connection, which sends them as the client reads.

use std::fs::File;
use std::io::{self, Seek};

use ::http::response::Parts;
use ::http::{HeaderMap, HeaderName, StatusCode, header};

use super::date::Date;
use super::rejection::Rejection;
use super::reply::ReplyKind;
use super::response_plan::{Framing, ResponsePlan};
use crate::connection::Connection;

/// A worker's writer of responses.
#[derive(Debug, Default)]
pub(super) struct ResponseWriter {
    date: Date,
}

impl ResponseWriter {
    /// Starts a call.
    pub(super) fn start(&mut self) {
        self.date.refresh();
    }

    /// Adds an error response, after which the connection is closed. A response to HEAD has the
    /// length of the text, but not the text.
    pub(super) fn reject(&mut self, out: &mut Vec<u8>, rejection: Rejection, is_head: bool) {
        let reason = rejection.status.canonical_reason().unwrap_or_default();
        self.add_status_line(out, rejection.status);
        if rejection.status == StatusCode::SERVICE_UNAVAILABLE {
            out.extend_from_slice(b"Retry-After: 1\r\n");
        }
        out.extend_from_slice(b"Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n");
        add_content_length(out, (reason.len() + rejection.detail.len() + 3) as u64);
        out.extend_from_slice(b"\r\n");
        if !is_head {
            for part in [reason, ": ", rejection.detail, "\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }

    /// Adds the head of a response.
    #[inline]
    pub(super) fn add_head(
        &mut self,
        out: &mut Vec<u8>,
        head: &Parts,
        plan: &ResponsePlan,
        reply: &ReplyKind,
    ) {
        self.add_status_line(out, head.status);
        if matches!(reply, ReplyKind::Text(_))
            && plan.framing != Framing::NoBody
            && !head.headers.contains_key(header::CONTENT_TYPE)
        {
            out.extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\n");
        }
        add_fields(out, &head.headers);
        out.extend_from_slice(plan.connection_line);
        match plan.framing {
            Framing::Length(length) => add_content_length(out, length),
            Framing::Chunks => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Framing::NoBody | Framing::Close => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    fn add_status_line(&mut self, out: &mut Vec<u8>, status: StatusCode) {
        if status == StatusCode::OK {
            out.extend_from_slice(self.date.ok_and_date_lines());
        } else {
            let reason = status.canonical_reason().unwrap_or_default();
            for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
            out.extend_from_slice(self.date.date_line());
        }
    }
}

/// Hands a file over to the connection: `length` bytes from its present position on.
pub(super) fn write_file(conn: &mut Connection, mut file: File, length: u64) -> io::Result<()> {
    let start = file.stream_position()?;
    conn.send_file(file, start..start.saturating_add(length))
}

fn add_content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(digits.format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Adds the handler's fields, except those that the service writes.
fn add_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        if !is_service_field(name) {
            add_field_name(out, name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
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
