//! Writes responses: a head as [`ResponsePlan`] says, then the body.
//!
//! Heads and small bodies are gathered by the connection until no request is left to serve, so that
//! the responses to pipelined requests leave in one write. Large bodies, and files, are handed over
//! to the connection, which sends them as the client reads.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek};

use ::http::{HeaderMap, HeaderName, Response, StatusCode, header};

use super::date::{Date, TEXT_LINE};
use super::rejection::Rejection;
use super::reply::{Reply, ReplyKind};
use super::response_plan::{Framing, ResponsePlan};
use crate::connection::Connection;

/// A worker's writer of responses.
#[derive(Debug, Default)]
pub(super) struct ResponseWriter {
    date: Date,
}

impl ResponseWriter {
    /// Starts a call. `now` is in the clock's milliseconds.
    #[inline]
    pub(super) fn start(&mut self, now: u64) {
        self.date.refresh(now);
    }

    /// Adds an error response, after which the connection is closed. A response to HEAD has the
    /// length of the text, but not the text.
    pub(super) fn reject(&mut self, out: &mut Vec<u8>, rejection: Rejection, is_head: bool) {
        let reason = rejection.status.canonical_reason().unwrap_or_default();
        self.add_status_line(out, rejection.status);
        if rejection.status == StatusCode::SERVICE_UNAVAILABLE {
            out.extend_from_slice(b"Retry-After: 1\r\n");
        }
        out.extend_from_slice(b"Connection: close\r\n");
        out.extend_from_slice(TEXT_LINE);
        end_with_length(out, (reason.len() + rejection.detail.len() + 3) as u64);
        if !is_head {
            for part in [reason, ": ", rejection.detail, "\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }

    /// As [`reject`](Self::reject), with a response that the application has made.
    pub(super) fn add_last(
        &mut self,
        out: &mut Vec<u8>,
        response: Response<Cow<'static, [u8]>>,
        is_head: bool,
    ) {
        add_last_response(out, self.date.date_line(), response, is_head);
    }

    /// Adds the head of a response.
    #[inline]
    pub(super) fn add_head(
        &mut self,
        out: &mut Vec<u8>,
        response: &Response<Reply>,
        plan: &ResponsePlan,
    ) {
        let (status, fields) = (response.status(), response.headers());
        let has_text_line = matches!(response.body(), Reply(ReplyKind::Text(_)))
            && plan.framing != Framing::NoBody
            && (fields.is_empty() || !fields.contains_key(header::CONTENT_TYPE));
        match (status, has_text_line) {
            (StatusCode::OK, true) => out.extend_from_slice(self.date.ok_date_and_text_lines()),
            (StatusCode::OK, false) => out.extend_from_slice(self.date.ok_and_date_lines()),
            _ => self.add_status_line(out, status),
        }
        if has_text_line && status != StatusCode::OK {
            out.extend_from_slice(TEXT_LINE);
        }
        if !fields.is_empty() {
            add_fields(out, fields);
        }
        if !plan.connection_line.is_empty() {
            out.extend_from_slice(plan.connection_line);
        }
        match plan.framing {
            Framing::Length(length) => end_with_length(out, length),
            Framing::Chunks => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
            Framing::NoBody | Framing::Close => out.extend_from_slice(b"\r\n"),
        }
    }

    /// Adds the status line and the Date line.
    fn add_status_line(&self, out: &mut Vec<u8>, status: StatusCode) {
        add_status_line(out, status);
        out.extend_from_slice(self.date.date_line());
    }
}

/// Adds a response that the application has made, and after which the connection is closed.
/// `date_line` may be empty.
pub(super) fn add_last_response(
    out: &mut Vec<u8>,
    date_line: &[u8],
    response: Response<Cow<'static, [u8]>>,
    is_head: bool,
) {
    add_status_line(out, response.status());
    out.extend_from_slice(date_line);
    add_fields(out, response.headers());
    out.extend_from_slice(b"Connection: close\r\n");
    let bytes = response.body();
    end_with_length(out, bytes.len() as u64);
    if !is_head {
        out.extend_from_slice(bytes);
    }
}

fn add_status_line(out: &mut Vec<u8>, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or_default();
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Hands a file over to the connection: `length` bytes from its present position on.
pub(super) fn write_file(conn: &mut Connection, mut file: File, length: u64) -> io::Result<()> {
    let start = file.stream_position()?;
    conn.send_file(file, start..start.saturating_add(length))
}

/// Ends a head with the Content-Length line. The line is written from its end, and added at once.
#[inline]
fn end_with_length(out: &mut Vec<u8>, length: u64) {
    const NAME: &[u8; 16] = b"Content-Length: ";
    const END: &[u8; 4] = b"\r\n\r\n";
    /// The digits of `u64::MAX`.
    const DIGITS: usize = 20;
    let mut line = [0; NAME.len() + DIGITS + END.len()];
    let mut start = NAME.len() + DIGITS;
    line[start..].copy_from_slice(END);
    let mut left = length;
    while start > NAME.len() {
        start -= 1;
        line[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    start -= NAME.len();
    line[start..start + NAME.len()].copy_from_slice(NAME);
    out.extend_from_slice(&line[start..]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_all_their_digits() {
        for length in [0, 9, 10, 102_400, u64::MAX] {
            let mut out = Vec::new();
            end_with_length(&mut out, length);
            let expected = format!("Content-Length: {length}\r\n\r\n");
            assert_eq!(String::from_utf8(out).as_deref(), Ok(&*expected));
        }
    }
}
