//! A request's head: from bytes to the `http` crate's types, and everything that is refused on the way.
//!
//! `httparse` finds the parts. What it lets pass, and what decides where the message ends, is checked here, and on the
//! strict side: two parsers that disagree about one message are how requests are smuggled. What is answered depends
//! on the bytes alone, not on how they were split on their way.

use std::mem::MaybeUninit;

use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use bytes::{Bytes, BytesMut};

use super::framing::{Framing, is_token};

/// The most fields that a head can be allowed to have.
pub(super) const MOST_FIELDS: usize = 256;

/// How much of a request is read at most, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) line: usize,
    pub(super) head: usize,
    pub(super) fields: usize,
    pub(super) small_body: usize,
    pub(super) body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line: 8 * 1024,
            head: 16 * 1024,
            fields: 100,
            small_body: 64 * 1024,
            body: u64::MAX,
        }
    }
}

/// What the client did wrong. The connection is closed after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) why: &'static str,
}

pub(super) const fn bad(why: &'static str) -> Refusal {
    let status = StatusCode::BAD_REQUEST;
    Refusal { status, why }
}

/// How much memory for names and values is taken at a time.
const ARENA: usize = 4 * 1024;

/// What a worker's requests take over from the ones before them.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What the values of one request share; it is used again when they are gone.
    arena: BytesMut,
    /// The last valid Host: nearly always it is the next one too.
    host: Option<HeaderValue>,
}

/// What follows from a request's head, beside its parts.
#[derive(Debug)]
pub(super) struct Head {
    /// How many bytes it took.
    pub(super) len: usize,
    pub(super) framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects: bool,
    /// The client wants to go on with the connection.
    pub(super) persists: bool,
}

/// Parses the head at the front of `input` into `parts`; `None` if it is not all there.
pub(super) fn parse(
    input: &[u8],
    limits: &Limits,
    memory: &mut Memory,
    parts: &mut Parts,
) -> Result<Option<Head>, Refusal> {
    if input.first() == Some(&b'\n') {
        // `httparse` would take it for an empty line.
        return Err(bad("a line ends without a carriage return"));
    }
    if input.len() > limits.line && !input[..limits.line].contains(&b'\n') {
        // Of a line that is both too long and malformed, the part within the limit decides, as it does when no more
        // than that has come yet.
        return parse_within(&input[..limits.line], limits, memory, parts).and(Err(Refusal {
            status: StatusCode::URI_TOO_LONG,
            why: "the request line is too long",
        }));
    }
    let window = &input[..input.len().min(limits.head)];
    match parse_within(window, limits, memory, parts)? {
        None if input.len() >= limits.head => Err(Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            why: "the header fields are too long",
        }),
        head => Ok(head),
    }
}

fn parse_within(
    input: &[u8],
    limits: &Limits,
    memory: &mut Memory,
    parts: &mut Parts,
) -> Result<Option<Head>, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let fields = &mut fields[..limits.fields.min(MOST_FIELDS)];
    let len = match request.parse_with_uninit_headers(input, fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        // Which version it is shows when the line is there.
        Err(httparse::Error::Version) if !input.contains(&b'\n') => return Ok(None),
        Err(error) => return Err(refusal(error, input)),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(bad("the request line is incomplete"));
    };
    // `httparse` takes a lone LF for a line's end.
    let offset = |part: &str| part.as_ptr() as usize - input.as_ptr() as usize;
    let mut blank = input[..offset(method)].chunks(2);
    let mut starts = request.headers.iter().map(|field| offset(field.name));
    if !input[..len].ends_with(b"\r\n\r\n")
        || starts.any(|start| !input[..start].ends_with(b"\r\n"))
        || blank.any(|line| line != b"\r\n")
    {
        return Err(bad("a line ends without a carriage return"));
    }
    parts.version = match minor {
        0 => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let Memory { arena, host } = memory;
    let mut shared = None;
    let mut part = |part: &[u8]| {
        if part.is_empty() {
            return Bytes::new();
        }
        let start = part.as_ptr() as usize - input.as_ptr() as usize;
        let shared = shared.get_or_insert_with(|| {
            if arena.capacity() < len {
                arena.reserve(len.max(ARENA));
            }
            arena.extend_from_slice(&input[..len]);
            arena.split().freeze()
        });
        shared.slice(start..start + part.len())
    };
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("a malformed method"))?;
    if target != "/" || parts.method == Method::CONNECT {
        parts.uri = uri(&parts.method, part(target.as_bytes()))?;
    }
    parts.headers.reserve(request.headers.len());
    let mut found = Found::default();
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| bad("a malformed field name"))?;
        found.look(&name, field.value)?;
        let value = match (name == header::HOST, &*host) {
            (true, Some(host)) if host.as_bytes() == field.value => Ok(host.clone()),
            (true, _) => HeaderValue::from_bytes(valid_host(field.value)?).inspect(|value| {
                *host = Some(value.clone());
            }),
            (false, _) => HeaderValue::from_maybe_shared(part(field.value)),
        };
        let value = value.map_err(|_| bad("a malformed field value"))?;
        parts.headers.append(name, value);
    }
    let framing = found.framing(parts.version)?;
    Ok(Some(Head {
        expects: found.expects && parts.version == Version::HTTP_11 && !framing.is_done(),
        persists: found.persists(parts.version),
        len,
        framing,
    }))
}

fn refusal(error: httparse::Error, input: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            why: "too many header fields",
        },
        httparse::Error::Version if is_other_version(input) => Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            why: "only HTTP/1.0 and HTTP/1.1 are spoken here",
        },
        httparse::Error::HeaderName => bad("a malformed field name"),
        httparse::Error::HeaderValue => bad("a malformed field value"),
        _ => bad("a malformed request line"),
    }
}

/// Is this a request line that is fine but for its version, such as HTTP/2's preface?
fn is_other_version(input: &[u8]) -> bool {
    let line = input.split(|&byte| byte == b'\r').next().unwrap_or(input);
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    matches!((words.next(), words.next()),
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The request's target in one of its four forms (RFC 9112, section 3.2).
fn uri(method: &Method, target: Bytes) -> Result<Uri, Refusal> {
    const WHY: Refusal = bad("a malformed request target");
    if target.contains(&b'#') {
        return Err(bad("a request target cannot have a fragment"));
    }
    let uri = match target.first() {
        Some(b'/') if *method != Method::CONNECT => {
            return Ok(PathAndQuery::from_maybe_shared(target)
                .map_err(|_| WHY)?
                .into());
        }
        _ => Uri::from_maybe_shared(target).map_err(|_| WHY)?,
    };
    let fits = match (uri.scheme(), uri.authority()) {
        (Some(scheme), Some(_)) => !scheme.as_str().is_empty() && *method != Method::CONNECT,
        (None, Some(authority)) => {
            *method == Method::CONNECT && authority.port().is_some() && !authority.host().is_empty()
        }
        _ => *method == Method::OPTIONS && uri.path() == "*",
    };
    if fits { Ok(uri) } else { Err(WHY) }
}

/// What was found of the fields that decide about the message.
#[derive(Default)]
struct Found {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Found {
    fn look(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Refusal> {
        match *name {
            header::HOST => {
                if self.host {
                    return Err(bad("several Host fields"));
                }
                self.host = true;
            }
            header::CONTENT_LENGTH => {
                if self.length.is_some() {
                    return Err(bad("several Content-Length fields"));
                }
                self.length = Some(length(value)?);
            }
            header::TRANSFER_ENCODING => {
                if self.chunked {
                    return Err(bad("several Transfer-Encoding fields"));
                }
                transfer_encoding(value)?;
                self.chunked = true;
            }
            header::CONNECTION => {
                for option in value.split(|&byte| byte == b',') {
                    let option = option.trim_ascii();
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal {
                        status: StatusCode::EXPECTATION_FAILED,
                        why: "only 100-continue can be expected",
                    });
                }
                self.expects = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Framing, Refusal> {
        if !self.host && version == Version::HTTP_11 {
            return Err(bad("no Host field"));
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(bad("both Transfer-Encoding and Content-Length")),
            (true, None) if version == Version::HTTP_10 => {
                Err(bad("Transfer-Encoding in an HTTP/1.0 request"))
            }
            (true, None) => Ok(Framing::chunked()),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

/// Digits only, and no more of them than are certain to fit.
fn length(value: &[u8]) -> Result<u64, Refusal> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    if text.is_empty() || text.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("a malformed Content-Length field"));
    }
    text.parse()
        .map_err(|_| bad("a malformed Content-Length field"))
}

/// Nothing but `chunked` is decoded here; a list that ends with it at least says where the body ends (RFC 9112, section
/// 6.1). `identity` is reserved and means nothing, so it makes no such list.
fn transfer_encoding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_other = |coding: &[u8]| {
        let name = coding.split(|&byte| byte == b';').next();
        let name = name.unwrap_or_default().trim_ascii_end();
        let is_token = !name.is_empty() && name.iter().all(|&byte| is_token(byte));
        is_token && !is_chunked(name) && !name.eq_ignore_ascii_case(b"identity")
    };
    if codings.next().is_some_and(is_chunked) && codings.all(is_other) {
        return Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            why: "of the transfer codings only chunked is implemented",
        });
    }
    Err(bad("a transfer coding that does not end with chunked"))
}

/// What a host's name or IPv4 address is made of (RFC 3986, section 3.2.2).
const IN_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=%";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

fn valid_host(value: &[u8]) -> Result<&[u8], Refusal> {
    if is_host(value) {
        Ok(value)
    } else {
        Err(bad("a malformed Host field"))
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2); it may be empty.
fn is_host(value: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|&byte| byte == b']') else {
            return false;
        };
        let (literal, rest) = (&literal[..end], &literal[end + 1..]);
        let is_literal = |byte: &u8| byte.is_ascii_alphanumeric() || b":.-_~".contains(byte);
        return !literal.is_empty()
            && literal.iter().all(is_literal)
            && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port));
    }
    let end = value.iter().position(|&byte| !IN_HOST[usize::from(byte)]);
    match value.split_at(end.unwrap_or(value.len())).1 {
        [b':', port @ ..] => is_port(port),
        rest => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use ::http::Request;

    use super::*;

    fn parse_all(input: &[u8]) -> Result<Option<(Head, Parts)>, Refusal> {
        let (mut parts, ()) = Request::new(()).into_parts();
        let head = parse(
            input,
            &Limits::default(),
            &mut Memory::default(),
            &mut parts,
        )?;
        Ok(head.map(|head| (head, parts)))
    }

    fn status(input: impl AsRef<[u8]>) -> u16 {
        match parse_all(input.as_ref()) {
            Ok(Some(_)) => 200,
            Ok(None) => 0,
            Err(refusal) => refusal.status.as_u16(),
        }
    }

    fn get(fields: &str) -> u16 {
        status(format!("GET / HTTP/1.1\r\n{fields}\r\n"))
    }

    fn post(fields: &str) -> u16 {
        status(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"))
    }

    #[test]
    fn a_head_is_taken_apart() {
        let input = b"PUT /a?b=c HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: 4\r\n\r\nbody";
        let (head, parts) = parse_all(input).unwrap().unwrap();
        assert_eq!((parts.method, head.len), (Method::PUT, input.len() - 4));
        assert_eq!(parts.uri.to_string(), "/a?b=c");
        let values: Vec<_> = parts.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(matches!(head.framing, Framing::Length(4)));
        assert!(head.persists && !head.expects);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 1",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 0x1",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Content-Length : 1",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: identity, chunked",
            "Transfer-Encoding: Chunked;a=b, chunked",
            "Transfer-Encoding: g zip, chunked",
            "Transfer-Encoding: gzip,, chunked",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: x;a=\"b, chunked\"",
            "Transfer-Encoding: x;a=\"b,c\", chunked",
            "Transfer-Encoding: \x0bchunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding : chunked",
            " Content-Length: 1",
            "X: a\r\n b",
            "X: a\r\n\tb",
            "X: a\rb",
            "X: a\nY: b",
            "X: a\0b",
            "X: a\x01b",
            "X: a\x7fb",
            "X\0: a",
            ": a",
            "X",
            "Host: b",
        ] {
            assert_eq!(post(fields), 400, "{fields:?}");
        }
        for coding in [
            "gzip",
            "GZIP",
            "x-gzip",
            "X-Compress",
            "gzip , br",
            "made-up",
            "x;a=b",
        ] {
            let field = format!("Transfer-Encoding: {coding}, CHUNKED");
            assert_eq!(post(&field), 501, "{field:?}");
        }
        assert_eq!(post("Transfer-Encoding: Chunked"), 200);
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(old), 400);
    }

    #[test]
    fn the_host_is_there_once_and_is_one() {
        for host in ["", "a", "a:80", "a.b-c:", "[::1]", "[::1]:80", "1.2.3.4:5"] {
            assert_eq!(get(&format!("Host: {host}\r\n")), 200, "{host:?}");
        }
        for host in [
            "a b", "a, b", "a/b", "u@a", "a:b", "a:1:2", "[::1", "[]", "[::1]x", "\u{e9}",
        ] {
            assert_eq!(get(&format!("Host: {host}\r\n")), 400, "{host:?}");
        }
        assert_eq!(get(""), 400);
        assert_eq!(get("Host: a\r\nHost: a\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 200);
    }

    #[test]
    fn lines_end_with_cr_and_lf() {
        assert_eq!(status("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\n\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\rHost: a\r\r"), 400);
        assert_eq!(status("GET / HTTP/1.0\n\r\n"), 400);
        assert_eq!(status("\nGET / HTTP/1.0\r\n\r\n"), 400);
        assert_eq!(status("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), 200);
        assert_eq!(status("\r\n\nGET / HTTP/1.0\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"), 200);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n"), 400);
    }

    #[test]
    fn the_target_fits_the_method() {
        for line in [
            "OPTIONS *",
            "CONNECT a:443",
            "GET http://a/b?c",
            "GET /%20?a=/?",
            "GET //",
        ] {
            assert_eq!(
                status(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")),
                200,
                "{line}"
            );
        }
        for line in [
            "GET *",
            "GET a:443",
            "CONNECT /",
            "CONNECT http://a/",
            "CONNECT a",
            "GET a",
            "GET /#a",
            "GET  /",
            "GET /a b",
            "GET",
            "/ GET /",
            " GET /",
            "G\0T /",
            "GET /\0",
        ] {
            assert_eq!(
                status(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")),
                400,
                "{line}"
            );
        }
    }

    #[test]
    fn other_versions_are_named() {
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
        assert_eq!(status("GET / HTTP/3.0\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(status("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET / http/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /\r\n"), 400);
    }

    #[test]
    fn heads_are_bounded() {
        let line = |n| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
        assert_eq!(status(line(8 * 1024 - 100)), 200);
        assert_eq!(status(line(8 * 1024)), 414);
        assert_eq!(
            get(&format!("Host: a\r\nX: {}\r\n", "a".repeat(15 * 1024))),
            200
        );
        assert_eq!(
            get(&format!("Host: a\r\nX: {}\r\n", "a".repeat(16 * 1024))),
            431
        );
        assert_eq!(get(&format!("Host: a\r\n{}", "X: a\r\n".repeat(99))), 200);
        assert_eq!(get(&format!("Host: a\r\n{}", "X: a\r\n".repeat(100))), 431);
    }

    /// Whatever has come of a head, the answer is the one to the whole of it.
    #[test]
    fn a_part_of_a_head_is_refused_only_as_the_whole_is() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\nX-Long: some value\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n".to_owned(),
            "PRI * HTTP/2.0\r\n\r\n".to_owned(),
            format!("GET /{}\0 HTTP/1.1\r\n\r\n", "a".repeat(9000)),
            format!("GET /{}\0 HTTP/1.1\r\n\r\n", "a".repeat(8000)),
            format!("GET / HTTP/1.1\r\nX: {}\0\r\n\r\n", "a".repeat(17_000)),
        ] {
            let whole = status(&head);
            for end in (0..head.len()).step_by(head.len() / 500 + 1) {
                let part = status(&head[..end]);
                assert!(
                    part == 0 || part == whole,
                    "{part}, not {whole}, after {end} bytes"
                );
            }
        }
    }

    #[test]
    fn persistence_is_the_version_s_and_the_client_s() {
        for (version, field, persists) in [
            ("1.1", "", true),
            ("1.1", "Connection: Close\r\n", false),
            ("1.1", "Connection: x , close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: keep-alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{field}\r\n");
            let (head, _) = parse_all(input.as_bytes()).unwrap().unwrap();
            assert_eq!(head.persists, persists, "{input}");
        }
    }
}
