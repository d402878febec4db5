//! RESP2, the protocol of Redis: requests are parsed as they arrive, and replies are encoded. Source:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! What a client sends is bounded: each limit below is an error that the client is told before its
//! connection is closed, since the beginning of the next request is not known.

use std::borrow::Cow;
use std::io::{self, Write};

use bytes::Bytes;
use handover::Connection;

/// The longest argument, in bytes.
pub(crate) const BULK_LIMIT: usize = 8 << 20;

/// The longest line, in bytes: an inline request, or the header of an argument.
pub(crate) const LINE_LIMIT: usize = 64 << 10;

/// The most arguments of a request.
const ARGUMENT_LIMIT: usize = 1 << 20;

/// The longest request, in bytes: its arguments, and what keeping each of them costs.
const REQUEST_LIMIT: usize = 64 << 20;

/// Replies from this length on, in bytes, are given to the connection instead of copied: it writes
/// them as the client reads, and no worker waits.
pub(crate) const LONG_REPLY: usize = 16 << 10;

/// Parses requests, and keeps the arguments of a request whose rest has not arrived. So each byte is
/// parsed once, in however many pieces a request arrives.
#[derive(Default)]
pub(crate) struct Parser {
    args: Vec<Bytes>,
    missing: usize,
    /// The bytes that count towards [`REQUEST_LIMIT`].
    size: usize,
}

impl Parser {
    /// Takes the next request out of the connection's buffer: its arguments, of which the first is
    /// the command. `None` if the request is incomplete.
    pub(crate) fn take(&mut self, conn: &mut Connection) -> Result<Option<Vec<Bytes>>, Failure> {
        let mut rest = conn.buffer();
        let request = self.parse(&mut rest);
        let used = conn.buffer().len() - rest.len();
        io::BufRead::consume(conn, used);
        request
    }

    /// Whether arguments of an incomplete request are kept.
    pub(crate) fn is_in_request(&self) -> bool {
        self.missing > 0
    }

    /// Parses from the beginning of `rest`, which is then what follows.
    fn parse(&mut self, rest: &mut &[u8]) -> Result<Option<Vec<Bytes>>, Failure> {
        while self.missing == 0 {
            let Some(line) = take_line(rest)? else {
                return Ok(None);
            };
            let Some(count) = line.strip_prefix(b"*") else {
                match split_inline(line)? {
                    args if args.is_empty() => continue,
                    args => return Ok(Some(args)),
                }
            };
            // As in Redis, a count that is not positive is an empty request, which has no reply.
            let count = integer(count).filter(|&count| count <= ARGUMENT_LIMIT as i64);
            let count = count.ok_or(Failure::protocol("invalid multibulk length"))?;
            self.missing = usize::try_from(count).unwrap_or(0);
            self.size = 0;
        }
        while self.missing > 0 {
            let Some(argument) = take_bulk(rest)? else {
                return Ok(None);
            };
            self.size += argument.len() + size_of::<Bytes>();
            if self.size > REQUEST_LIMIT {
                return Err(Failure::protocol("too big request"));
            }
            self.args.push(argument);
            self.missing -= 1;
        }
        Ok(Some(std::mem::take(&mut self.args)))
    }
}

/// Takes a line, without its ending. `None` if it is incomplete.
fn take_line<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Failure> {
    let begin = &rest[..rest.len().min(LINE_LIMIT)];
    let Some(end) = begin.iter().position(|&byte| byte == b'\n') else {
        return match begin.len() == LINE_LIMIT {
            true => Err(Failure::protocol("too big inline request")),
            false => Ok(None),
        };
    };
    *rest = &rest[end + 1..];
    let line = &begin[..end];
    Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
}

/// Takes an argument: `$LENGTH`, a line ending, so many bytes, and a line ending. `None`, and `rest`
/// is what it was, if the argument is incomplete.
fn take_bulk(rest: &mut &[u8]) -> Result<Option<Bytes>, Failure> {
    let mut after = *rest;
    let Some(line) = take_line(&mut after)? else {
        return Ok(None);
    };
    let Some(length) = line.strip_prefix(b"$") else {
        let got = line.get(..1).unwrap_or(b" ").escape_ascii();
        return Err(Failure::protocol(&format!("expected '$', got '{got}'")));
    };
    let length = integer(length).and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|&length| length <= BULK_LIMIT);
    let length = length.ok_or(Failure::protocol("invalid bulk length"))?;
    let Some((argument, ending)) = after.split_at_checked(length) else {
        return Ok(None);
    };
    let Some((ending, after)) = ending.split_at_checked(2) else {
        return Ok(None);
    };
    if ending != b"\r\n" {
        return Err(Failure::protocol("an argument is longer than its length"));
    }
    *rest = after;
    Ok(Some(Bytes::copy_from_slice(argument)))
}

/// Splits an inline request at white space. `"…"`, with `\` before a byte that has no meaning of its
/// own, and `'…'` are one argument.
fn split_inline(line: &[u8]) -> Result<Vec<Bytes>, Failure> {
    let mut args = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        if bytes.peek().is_none() {
            return Ok(args);
        }
        let quote = bytes.next_if(|byte| b"\"'".contains(byte));
        let mut argument = Vec::new();
        loop {
            match (bytes.next(), quote) {
                (None, None) => break,
                (None, Some(_)) => return Err(Failure::protocol("unbalanced quotes in request")),
                (Some(byte), None) if byte.is_ascii_whitespace() => break,
                (byte, Some(_)) if byte == quote => break,
                (Some(b'\\'), Some(b'"')) => argument.extend(bytes.next()),
                (Some(byte), _) => argument.push(byte),
            }
        }
        args.push(argument.into());
    }
}

/// A decimal integer. As in Redis, `+1` is none.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// An error that the client is told: a code in capital letters, and a text.
#[derive(Debug)]
pub(crate) struct Failure(Cow<'static, str>);

impl Failure {
    pub(crate) const SYNTAX: Self = Self(Cow::Borrowed("ERR syntax error"));
    pub(crate) const NOT_AN_INTEGER: Self =
        Self(Cow::Borrowed("ERR value is not an integer or out of range"));
    pub(crate) const WRONG_TYPE: Self = Self(Cow::Borrowed(
        "WRONGTYPE Operation against a key holding the wrong kind of value",
    ));

    pub(crate) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }

    fn protocol(text: &str) -> Self {
        Self::new(format!("ERR Protocol error: {text}"))
    }
}

/// A reply.
#[derive(Debug)]
pub(crate) enum Reply {
    Simple(&'static str),
    Error(Failure),
    Integer(i64),
    Bulk(Bytes),
    Nil,
    NilArray,
    Array(Vec<Reply>),
    /// One reply after the other: a command about several channels has a reply for each.
    Each(Vec<Reply>),
}

impl Reply {
    pub(crate) const OK: Self = Self::Simple("OK");

    pub(crate) fn text(text: &'static str) -> Self {
        Self::Bulk(Bytes::from_static(text.as_bytes()))
    }

    pub(crate) fn count(count: usize) -> Self {
        Self::Integer(count.try_into().unwrap_or(i64::MAX))
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Simple(text) => encode_line(out, '+', text),
            Self::Error(Failure(text)) => encode_line(out, '-', text),
            Self::Integer(number) => encode_line(out, ':', number),
            Self::Bulk(bytes) => {
                encode_line(out, '$', bytes.len());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Nil => out.extend_from_slice(b"$-1\r\n"),
            Self::NilArray => out.extend_from_slice(b"*-1\r\n"),
            Self::Array(replies) => {
                encode_line(out, '*', replies.len());
                replies.iter().for_each(|reply| reply.encode(out));
            }
            Self::Each(replies) => replies.iter().for_each(|reply| reply.encode(out)),
        }
    }

    /// Sends the reply, and returns its length in bytes. `scratch` is the worker's, so that a short
    /// reply needs no memory of its own.
    pub(crate) fn send(&self, conn: &mut Connection, scratch: &mut Vec<u8>) -> io::Result<usize> {
        scratch.clear();
        self.encode(scratch);
        let length = scratch.len();
        match length < LONG_REPLY {
            true => conn.write_all(scratch)?,
            false => conn.write_owned(std::mem::take(scratch))?,
        }
        Ok(length)
    }
}

impl From<Result<Reply, Failure>> for Reply {
    fn from(result: Result<Reply, Failure>) -> Self {
        result.unwrap_or_else(Self::Error)
    }
}

fn encode_line(out: &mut Vec<u8>, kind: char, content: impl std::fmt::Display) {
    // Writing to a `Vec` does not fail.
    let _ = write!(out, "{kind}{content}\r\n");
}
