//! A request's head: from bytes to the types of the `http` crate, or to a rejection.
//!
//! `httparse` splits the head into the request line and the field lines. Two parsers that read the
//! same message differently make request smuggling possible (RFC 9112, section 11.2). Therefore two
//! rules hold here.
//!
//! First: what `httparse` tolerates, and another parser may read differently, is rejected.
//!
//! | `httparse` accepts | here |
//! |---|---|
//! | a line that ends with LF alone | 400 |
//! | empty lines before the request line | accepted if they end with CR LF |
//! | any target | one of the four forms, and fitting the method, else 400 |
//! | any value of Host | 400 if malformed, see `authority` |
//! | any number of framing fields, with any value | see `control_fields` |
//! | a line or a head of any length | 414, 431 |
//!
//! The request line in front of repeated field lines is split here, but only if `httparse` would
//! split it in the same way. A test compares the two. Otherwise `httparse` has the whole head.
//!
//! Second: the response depends on the bytes, and not on how the network has split them. While a
//! head is incomplete, it is parsed again from its start, and an early rejection must be the same
//! as that of the whole head.
//!
//! | the part that has arrived | result |
//! |---|---|
//! | no error, within the limits | wait for more |
//! | an error of the version, and no LF yet | wait: the rest of the line decides on 400 or 505 |
//! | another error | rejected |
//! | a request line over its limit | the error of the part within the limit, else 414 |
//! | a head over its limit | the error of the part within the limit, else 431 |

use std::mem::MaybeUninit;
use std::ops::Range;

use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use bytes::{Bytes, BytesMut};
use httparse::Header;

use super::authority::{is_absolute_authority, is_host_field, is_tunnel_authority};
use super::body_decoder::BodyDecoder;
use super::control_fields::ControlFields;
use super::rejection::{MAX_FIELDS, Rejection, RequestLimits, bad_request};
use super::spare_parts::SpareParts;

/// The size of the memory that is allocated at a time for targets and field values, in bytes.
const ARENA_SIZE: usize = 4 * 1024;

const BARE_LF: Rejection = bad_request("a line ends without a carriage return");

const LINE_TOO_LONG: Rejection =
    Rejection::new(StatusCode::URI_TOO_LONG, "the request line is too long");

/// The result of parsing a head, in addition to [`Parts`].
#[derive(Clone, Debug, Default)]
pub(super) struct RequestHead {
    /// The head's length in bytes, with the empty lines before and after it.
    pub(super) len: usize,
    pub(super) version: Version,
    pub(super) is_head: bool,
    pub(super) is_connect: bool,
    pub(super) body: BodyDecoder,
    /// The client waits for `100 Continue` before it sends the body, if there is one.
    pub(super) expects_continue: bool,
    /// The client keeps the connection open after this request.
    pub(super) keep_alive: bool,
}

/// A worker's parser, with the memory that one request leaves to the next.
#[derive(Debug, Default)]
pub(super) struct HeadParser {
    /// The memory of the targets, and that of the field lines, which may be kept for longer. It is
    /// used again when the requests have been dropped.
    targets: BytesMut,
    lines: BytesMut,
}

impl HeadParser {
    /// Parses the head at the front of `input` into `parts` and `head`. False if the head is
    /// incomplete.
    pub(super) fn parse(
        &mut self,
        input: &[u8],
        limits: &RequestLimits,
        parts: &mut SpareParts,
        head: &mut RequestHead,
    ) -> Result<bool, Rejection> {
        if input.first() == Some(&b'\n') {
            // `httparse` would accept an empty line.
            return Err(BARE_LF);
        }
        // The request line is a part of the head.
        let line_limit = limits.request_line.min(limits.head);
        if input.len() > line_limit && memchr::memchr(b'\n', &input[..line_limit]).is_none() {
            self.parse_within(&input[..line_limit], limits, parts, head)?;
            return Err(LINE_TOO_LONG);
        }
        let window = &input[..input.len().min(limits.head)];
        match self.parse_within(window, limits, parts, head)? {
            false if input.len() >= limits.head && !window.contains(&b'\n') => Err(LINE_TOO_LONG),
            false if input.len() >= limits.head => Err(Rejection::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the header fields are too long",
            )),
            is_complete => Ok(is_complete),
        }
    }

    /// As [`parse`](Self::parse), without the limits of the request line and the head.
    #[inline]
    fn parse_within(
        &mut self,
        input: &[u8],
        limits: &RequestLimits,
        parts: &mut SpareParts,
        head: &mut RequestHead,
    ) -> Result<bool, Rejection> {
        match self.parse_repeated(input, limits, parts, head)? {
            true => Ok(true),
            false => self.parse_any(input, limits, parts, head),
        }
    }

    /// Parses any head. It is a function of its own because of the room for the fields, 8 KiB on the
    /// stack.
    #[inline(never)]
    fn parse_any(
        &mut self,
        input: &[u8],
        limits: &RequestLimits,
        parts: &mut SpareParts,
        head: &mut RequestHead,
    ) -> Result<bool, Rejection> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let fields = &mut fields[..limits.fields.min(MAX_FIELDS)];
        let len = match request.parse_with_uninit_headers(input, fields) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::Version) if !input.contains(&b'\n') => return Ok(false),
            Err(error) => return Err(rejection_of(error, input)),
        };
        let Some(line) = RequestLine::of(&request) else {
            return Err(bad_request("the request line is incomplete"));
        };
        check_line_ends(&input[..len], line.method, request.headers)?;
        let filled = parts.fill();
        self.set_request_line(filled, &line)?;
        let control = match request.headers {
            [] => ControlFields::default(),
            [first, ..] => {
                let received = &input[position(first.name.as_bytes(), input)..len];
                let lines = copy(&mut self.lines, received);
                let control = add_fields(&mut filled.headers, request.headers, |value| {
                    lines.slice(range(value, received))
                })?;
                let values = request.headers.iter();
                let values = values.map(|field| range(field.value, received));
                parts.keep(lines, values, control);
                control
            }
        };
        head.set(len, &line, control).map(|()| true)
    }

    /// Parses a head whose field lines are those of the last head. False if they are not, or the
    /// request line is not one that [`RequestLine::split`] knows.
    #[inline]
    fn parse_repeated(
        &mut self,
        input: &[u8],
        limits: &RequestLimits,
        parts: &mut SpareParts,
        head: &mut RequestHead,
    ) -> Result<bool, Rejection> {
        let Some(line_feed) = memchr::memchr(b'\n', input) else {
            return Ok(false);
        };
        let (line, lines) = input.split_at(line_feed + 1);
        let Some((filled, kept)) = parts.refill(lines, limits.fields) else {
            return Ok(false);
        };
        let Some(parsed) = RequestLine::split(line) else {
            return Ok(false);
        };
        self.set_request_line(filled, &parsed)?;
        let len = line.len() + kept.lines.len();
        head.set(len, &parsed, kept.control).map(|()| true)
    }

    /// Sets the parts of the request line.
    #[inline]
    fn set_request_line(
        &mut self,
        parts: &mut Parts,
        line: &RequestLine<'_>,
    ) -> Result<(), Rejection> {
        let method = Method::from_bytes(line.method);
        parts.method = method.map_err(|_| bad_request("a malformed method"))?;
        parts.version = line.version;
        if !line.has_target_of(&parts.uri) {
            // The memory of the last target can be used again if nothing else refers to it.
            parts.uri = Uri::default();
            let target = copy(&mut self.targets, line.target);
            parts.uri = parse_target(&parts.method, target)?;
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: Version,
}

impl<'a> RequestLine<'a> {
    /// The request line of a request that has been parsed that far.
    #[inline]
    fn of(request: &httparse::Request<'_, 'a>) -> Option<Self> {
        Some(Self {
            method: request.method?.as_bytes(),
            target: request.path?.as_bytes(),
            version: match request.version? {
                0 => Version::HTTP_10,
                _ => Version::HTTP_11,
            },
        })
    }

    /// Splits a whole line at its spaces, which costs less than `httparse` does. `None` for a line
    /// that `httparse` might reject, and for a method that is not in capitals.
    #[inline]
    fn split(line: &'a [u8]) -> Option<Self> {
        let (words, version) = match line.strip_suffix(b" HTTP/1.1\r\n") {
            Some(words) => (words, Version::HTTP_11),
            None => (line.strip_suffix(b" HTTP/1.0\r\n")?, Version::HTTP_10),
        };
        let space = words.iter().position(|byte| !byte.is_ascii_uppercase())?;
        let (method, target) = (&words[..space], words[space..].strip_prefix(b" ")?);
        // Without an early end, the compiler checks many bytes at once.
        let is_graphic = target
            .iter()
            .fold(true, |all, byte| all & byte.is_ascii_graphic());
        (is_graphic && !method.is_empty() && !target.is_empty()).then_some(Self {
            method,
            target,
            version,
        })
    }

    /// Whether the target is a path, and [`parse_target`] would make this URI of it.
    #[inline]
    fn has_target_of(&self, uri: &Uri) -> bool {
        let path = uri.path_and_query().map(PathAndQuery::as_str);
        path.map(str::as_bytes) == Some(self.target)
            && self.target.starts_with(b"/")
            && self.method != b"CONNECT"
            && uri.scheme().is_none()
            && uri.authority().is_none()
    }
}

impl RequestHead {
    #[inline]
    fn set(
        &mut self,
        len: usize,
        line: &RequestLine<'_>,
        control: ControlFields,
    ) -> Result<(), Rejection> {
        self.body = control.body_decoder(line.version)?;
        self.len = len;
        self.version = line.version;
        self.is_head = line.method == b"HEAD";
        self.is_connect = line.method == b"CONNECT";
        self.expects_continue = control.expects_continue && line.version == Version::HTTP_11;
        self.keep_alive = control.keep_alive(line.version);
        Ok(())
    }
}

/// A copy of `bytes` in the arena.
#[inline]
fn copy(arena: &mut BytesMut, bytes: &[u8]) -> Bytes {
    if arena.capacity() < bytes.len() {
        arena.reserve(bytes.len().max(ARENA_SIZE));
    }
    arena.extend_from_slice(bytes);
    arena.split().freeze()
}

/// Whether parsing can find out more than when only the first `examined` bytes of `input` had
/// arrived: the head's end, or a line or a head over its limit.
pub(super) fn is_worth_parsing(input: &[u8], examined: usize, limits: &RequestLimits) -> bool {
    // The empty line at the end may have begun among the bytes that were examined.
    let tail = &input[examined.saturating_sub(3).min(input.len())..];
    let has_end = || {
        let mut line_feeds = tail.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        line_feeds.any(|(at, _)| matches!(tail[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
    };
    input.len() >= limits.head
        || (input.len() > limits.request_line && examined <= limits.request_line)
        || has_end()
}

/// The position of `part` in `whole`, which contains it in memory.
fn position(part: &[u8], whole: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// Where `part` is in `whole`, which contains it in memory unless it is empty.
fn range(part: &[u8], whole: &[u8]) -> Range<usize> {
    match part {
        [] => 0..0,
        _ => position(part, whole)..position(part, whole) + part.len(),
    }
}

/// Rejects a head with a line that ends with LF alone.
#[inline]
fn check_line_ends(head: &[u8], method: &[u8], fields: &[Header<'_>]) -> Result<(), Rejection> {
    let mut empty_lines = head[..position(method, head)].chunks(2);
    let mut line_starts = fields
        .iter()
        .map(|field| position(field.name.as_bytes(), head));
    if !head.ends_with(b"\r\n\r\n")
        || line_starts.any(|start| !head[..start].ends_with(b"\r\n"))
        || empty_lines.any(|line| line != b"\r\n")
    {
        return Err(BARE_LF);
    }
    Ok(())
}

/// Adds the fields to `headers`, and returns the control fields among them. `share` gives the bytes
/// of a value as shared bytes.
#[inline]
fn add_fields(
    headers: &mut HeaderMap,
    fields: &[Header<'_>],
    share: impl Fn(&[u8]) -> Bytes,
) -> Result<ControlFields, Rejection> {
    headers.reserve(fields.len());
    let mut control = ControlFields::default();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| bad_request("a malformed field name"))?;
        control.read_field(&name, field.value)?;
        if name == header::HOST && !is_host_field(field.value) {
            return Err(bad_request("a malformed Host field"));
        }
        let value = HeaderValue::from_maybe_shared(share(field.value));
        let value = value.map_err(|_| bad_request("a malformed field value"))?;
        headers.append(name, value);
    }
    Ok(control)
}

/// The rejection of a head in which `httparse` has found an error.
fn rejection_of(error: httparse::Error, input: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too many header fields",
        ),
        httparse::Error::Version if has_other_version(input) => Rejection::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "only HTTP/1.0 and HTTP/1.1 are supported",
        ),
        httparse::Error::HeaderName => bad_request("a malformed field name"),
        httparse::Error::HeaderValue => bad_request("a malformed field value"),
        _ => bad_request("a malformed request line"),
    }
}

/// Whether the request line is well-formed and has a version that is not supported, as in the
/// connection preface of HTTP/2.
fn has_other_version(input: &[u8]) -> bool {
    let line = input.split(|&byte| byte == b'\r').next().unwrap_or(input);
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    matches!((words.next(), words.next()),
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Parses a target in one of its four forms (RFC 9112, section 3.2).
fn parse_target(method: &Method, target: Bytes) -> Result<Uri, Rejection> {
    const MALFORMED: Rejection = bad_request("a malformed request target");
    if target.contains(&b'#') {
        return Err(bad_request("a request target cannot have a fragment"));
    }
    if target.first() == Some(&b'/') && *method != Method::CONNECT {
        let path = PathAndQuery::from_maybe_shared(target).map_err(|_| MALFORMED)?;
        return Ok(path.into());
    }
    let uri = Uri::from_maybe_shared(target).map_err(|_| MALFORMED)?;
    let fits_method = match (uri.scheme(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            !scheme.as_str().is_empty()
                && *method != Method::CONNECT
                && is_absolute_authority(authority.as_str().as_bytes())
        }
        (None, Some(authority)) => {
            *method == Method::CONNECT && is_tunnel_authority(authority.as_str().as_bytes())
        }
        _ => *method == Method::OPTIONS && uri.path() == "*",
    };
    if fits_method { Ok(uri) } else { Err(MALFORMED) }
}

#[cfg(test)]
mod tests;
