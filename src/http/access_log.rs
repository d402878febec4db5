//! The access log: one line for each response, in one of two formats.
//!
//! A program that reads the log must not be misled by what a client sends. So every byte outside of
//! printable ASCII, and everything that could end a field early, is escaped. The userinfo of a URI
//! may be a password, and is left out.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::http::request::Parts;
use ::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::body_channel::ChannelBody;
use crate::addr::Addr;
use crate::log;

/// The format of the access log, for [`Http::access_log`](super::Http::access_log).
///
/// Both formats are one line per response, in ASCII. What has no value is `-` or `null`: of a
/// request without a valid head, only the client, the status and the times are known. The userinfo
/// of the target and of Referer (`user:password@`) is left out. The time is UTC: the moment at
/// which the connection had taken the whole response. The client may still be reading the response
/// then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessLog {
    /// The combined log format of Apache and nginx, with two fields behind it:
    ///
    /// ```text
    /// 127.0.0.1 - - [27/Nov/2026:21:31:02 +0000] "GET /a?b HTTP/1.1" 200 14 "-" "curl/8.5.0" 3 0
    /// ```
    ///
    /// These are the client's address (`unix:` for a Unix socket), two fields that are always `-`,
    /// the time, the request line, the status, the length of the response's body in bytes, Referer,
    /// User-Agent, and two times in milliseconds: how long the request was handled, and how long
    /// the connection waited for a worker before. In the fields in quotes, `"`, `\` and every byte
    /// outside of printable ASCII are written as `\x` and two hexadecimal digits, as nginx does.
    Combined,
    /// One JSON object with these fields:
    ///
    /// ```text
    /// {"time":"2026-11-27T21:31:02.123Z","client":"127.0.0.1","port":40714,"listener":"web",
    ///  "method":"GET","target":"/a?b","version":"HTTP/1.1","host":"example.org","status":200,
    ///  "body_bytes":14,"referer":null,"user_agent":"curl/8.5.0","handled_ms":3,"waited_ms":0}
    /// ```
    ///
    /// Every character outside of printable ASCII is written as `\u` and four hexadecimal digits.
    /// Bytes that are not UTF-8 become U+FFFD. Later versions may add fields.
    Json,
}

/// What is logged of a request. Taken before the handler gets the request.
pub(super) struct LoggedRequest {
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    since: Instant,
}

impl LoggedRequest {
    pub(super) fn new(parts: &Parts) -> Self {
        let field = |name: HeaderName| parts.headers.get(name).cloned();
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            host: field(header::HOST),
            referer: field(header::REFERER),
            user_agent: field(header::USER_AGENT),
            since: Instant::now(),
        }
    }

    fn target(&self) -> Vec<u8> {
        without_userinfo(self.uri.to_string().as_bytes()).into_owned()
    }

    fn referer(&self) -> Option<Cow<'_, [u8]>> {
        let value = self.referer.as_ref()?;
        Some(without_userinfo(value.as_bytes()))
    }

    fn user_agent(&self) -> Option<&[u8]> {
        self.user_agent.as_ref().map(HeaderValue::as_bytes)
    }
}

/// One line of the log.
pub(super) struct AccessLine<'a> {
    pub(super) format: AccessLog,
    pub(super) client: &'a Addr,
    pub(super) listener: &'a str,
    /// `None` for a request without a valid head.
    pub(super) request: Option<&'a LoggedRequest>,
    pub(super) status: StatusCode,
    /// In bytes.
    pub(super) body_len: u64,
    /// How long the connection waited for a worker.
    pub(super) waited: Duration,
}

/// A body that other threads send. Its line is written when it ends, however it ends: also when
/// the connection is dropped.
pub(super) struct LoggedBody {
    pub(super) body: ChannelBody,
    pub(super) line: Option<BodyLine>,
}

/// What is known of the line when the body begins.
pub(super) struct BodyLine {
    pub(super) format: AccessLog,
    pub(super) client: Addr,
    pub(super) listener: String,
    pub(super) request: Option<LoggedRequest>,
    pub(super) status: StatusCode,
    pub(super) waited: Duration,
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            AccessLine {
                format: line.format,
                client: &line.client,
                listener: &line.listener,
                request: line.request.as_ref(),
                status: line.status,
                body_len: self.body.len(),
                waited: line.waited,
            }
            .write();
        }
    }
}

impl fmt::Display for AccessLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = SystemTime::now();
        match self.format {
            AccessLog::Combined => self.write_combined(f, now),
            AccessLog::Json => f.write_str(&self.to_json(now).map_err(|_| fmt::Error)?),
        }
    }
}

impl AccessLine<'_> {
    pub(super) fn write(&self) {
        log::info!(target: "handover::access", "{self}");
    }

    fn handled_ms(&self) -> u128 {
        let handled = self.request.map(|request| request.since.elapsed());
        handled.unwrap_or_default().as_millis()
    }

    fn write_combined(&self, f: &mut fmt::Formatter<'_>, now: SystemTime) -> fmt::Result {
        match self.client {
            Addr::Ip(addr) => write!(f, "{}", addr.ip())?,
            Addr::Unix(_) => f.write_str("unix:")?,
        }
        let Time {
            day,
            month,
            year,
            clock,
            ..
        } = &Time::of(now);
        write!(f, " - - [{day}/{month}/{year}:{clock} +0000] \"")?;
        match self.request {
            Some(request) => {
                let (method, version) = (&request.method, request.version);
                write!(f, "{method} {} {version:?}", Escaped(&request.target()))?;
            }
            None => f.write_str("-")?,
        }
        write!(f, "\" {} {}", self.status.as_u16(), self.body_len)?;
        let referer = self.request.and_then(LoggedRequest::referer);
        let user_agent = self.request.and_then(LoggedRequest::user_agent);
        for value in [referer.as_deref(), user_agent] {
            write!(f, " \"{}\"", Escaped(value.unwrap_or(b"-")))?;
        }
        write!(f, " {} {}", self.handled_ms(), self.waited.as_millis())
    }

    fn to_json(&self, now: SystemTime) -> serde_json::Result<String> {
        /// The fields in the order in which they are documented.
        #[derive(Serialize)]
        struct Fields<'a> {
            time: String,
            client: String,
            port: Option<u16>,
            listener: &'a str,
            method: Option<&'a str>,
            target: Option<String>,
            version: Option<String>,
            host: Option<String>,
            status: u16,
            body_bytes: u64,
            referer: Option<String>,
            user_agent: Option<String>,
            handled_ms: u128,
            waited_ms: u128,
        }
        let Time {
            day,
            month_number,
            year,
            clock,
            millis,
            ..
        } = Time::of(now);
        let ip = self.client.as_ip();
        let request = self.request;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let host = request.and_then(|request| request.host.as_ref());
        let referer = request.and_then(LoggedRequest::referer);
        let fields = Fields {
            time: format!("{year}-{month_number:02}-{day}T{clock}.{millis:03}Z"),
            client: ip.map_or_else(|| "unix:".to_owned(), |addr| addr.ip().to_string()),
            port: ip.map(|addr| addr.port()),
            listener: self.listener,
            method: request.map(|request| request.method.as_str()),
            target: request.map(|request| text(&request.target())),
            version: request.map(|request| format!("{:?}", request.version)),
            host: host.map(|host| text(host.as_bytes())),
            status: self.status.as_u16(),
            body_bytes: self.body_len,
            referer: referer.as_deref().map(text),
            user_agent: request.and_then(LoggedRequest::user_agent).map(text),
            handled_ms: self.handled_ms(),
            waited_ms: self.waited.as_millis(),
        };
        let mut json = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut json, AsciiFormatter);
        fields.serialize(&mut serializer)?;
        Ok(String::from_utf8_lossy(&json).into_owned())
    }
}

/// The parts of a time, in UTC. Each text has a fixed length.
struct Time {
    day: String,
    month: String,
    month_number: usize,
    year: String,
    /// Hours, minutes and seconds, with colons.
    clock: String,
    millis: u32,
}

impl Time {
    fn of(time: SystemTime) -> Self {
        // "Fri, 27 Nov 2026 21:31:02 GMT" (RFC 9110, section 5.6.7).
        let date = httpdate::HttpDate::from(time).to_string();
        let part = |range: Range<usize>| date.get(range).unwrap_or_default().to_owned();
        let month = part(8..11);
        let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
        Self {
            day: part(5..7),
            month_number: months.find(&month).unwrap_or_default() / 3 + 1,
            month,
            year: part(12..16),
            clock: part(17..25),
            millis: time
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .subsec_millis(),
        }
    }
}

/// A URI without the userinfo of its authority (RFC 3986, section 3.2.1). A text without a scheme
/// stays as it is: what stands before an `@` there is a part of a path.
fn without_userinfo(uri: &[u8]) -> Cow<'_, [u8]> {
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let scheme_len = uri.iter().take_while(|byte| is_scheme(byte)).count();
    let Some(rest) = uri[scheme_len..]
        .strip_prefix(b"://")
        .filter(|_| scheme_len > 0)
    else {
        return Cow::Borrowed(uri);
    };
    let authority = rest
        .split(|byte| b"/?#".contains(byte))
        .next()
        .unwrap_or(rest);
    match authority.iter().rposition(|&byte| byte == b'@') {
        Some(at) => {
            let (scheme, rest) = (&uri[..uri.len() - rest.len()], &rest[at + 1..]);
            Cow::Owned([scheme, rest].concat())
        }
        None => Cow::Borrowed(uri),
    }
}

/// Bytes of a client, for a field in quotes.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !b"\"\\".contains(byte);
        for run in self.0.chunk_by(|a, b| is_plain(a) == is_plain(b)) {
            match std::str::from_utf8(run) {
                Ok(text) if run.first().is_some_and(is_plain) => f.write_str(text)?,
                _ => run.iter().try_for_each(|byte| write!(f, "\\x{byte:02X}"))?,
            }
        }
        Ok(())
    }
}

/// Writes JSON on one line, in printable ASCII. `serde_json` itself escapes quotes, backslashes and
/// the controls below 0x20.
struct AsciiFormatter;

impl Formatter for AsciiFormatter {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        for char in fragment.chars() {
            match char {
                ' '..='~' => writer.write_all(&[char as u8])?,
                _ => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: AccessLog, request: Option<&LoggedRequest>) -> String {
        let line = AccessLine {
            format,
            client: &Addr::Ip("[::1]:40714".parse().unwrap()),
            listener: "w\u{7f}\u{85}",
            request,
            status: StatusCode::OK,
            body_len: 14,
            waited: Duration::from_millis(5),
        };
        line.to_string()
    }

    fn request(target: &str, referer: &[u8], user_agent: &[u8]) -> LoggedRequest {
        let builder = ::http::Request::builder().uri(target);
        let builder = builder.header("host", "example.org");
        let builder = builder
            .header("referer", referer)
            .header("user-agent", user_agent);
        LoggedRequest::new(&builder.body(()).unwrap().into_parts().0)
    }

    /// What the fields in quotes contain.
    fn quoted(line: &str) -> Vec<&str> {
        line.split('"').skip(1).step_by(2).collect()
    }

    #[test]
    fn userinfo_is_left_out() {
        for (uri, wanted) in [
            ("http://user:pass@host/a@b", "http://host/a@b"),
            ("http://user@host", "http://host"),
            ("ftp://a@b@host:21/?c@d", "ftp://host:21/?c@d"),
            ("http://host/a:b@c", "http://host/a:b@c"),
            ("http://host?a@b", "http://host?a@b"),
            ("http://@/", "http:///"),
            ("/a?b=http://user:pass@host/", "/a?b=http://user:pass@host/"),
            ("//a@b/", "//a@b/"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(without_userinfo(uri.as_bytes()), wanted.as_bytes(), "{uri}");
        }
    }

    #[test]
    fn no_byte_ends_a_field_or_reaches_a_terminal() {
        for byte in (0..=255).filter(|byte| HeaderValue::from_bytes(&[*byte]).is_ok()) {
            let request = request("/", &[b'a', byte, b'b'], b"agent");
            let combined = line(AccessLog::Combined, Some(&request));
            assert!(
                combined.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                "{combined}"
            );
            let fields = quoted(&combined);
            let shown = match byte {
                b' '..=b'~' if !b"\"\\".contains(&byte) => format!("a{}b", byte as char),
                _ => format!("a\\x{byte:02X}b"),
            };
            assert_eq!(fields, ["GET / HTTP/1.1", &*shown, "agent"], "{combined}");
            let json = line(AccessLog::Json, Some(&request));
            assert!(
                json.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                "{json}"
            );
        }
    }

    #[test]
    fn json_is_read_back() {
        let agent = "\u{85}\u{9b}31m\u{2028}\u{1f600}\"\\ä\t";
        let logged = request("http://u:p@host/\"", b"http://u:p@a/\xff", agent.as_bytes());
        let json: serde_json::Value =
            serde_json::from_str(&line(AccessLog::Json, Some(&logged))).unwrap();
        for (name, wanted) in [
            ("client", "::1"),
            ("listener", "w\u{7f}\u{85}"),
            ("method", "GET"),
            ("target", "http://host/\""),
            ("version", "HTTP/1.1"),
            ("host", "example.org"),
            ("referer", "http://a/\u{fffd}"),
            ("user_agent", agent),
        ] {
            assert_eq!(json[name], wanted, "{name}");
        }
        for (name, wanted) in [("port", 40714), ("status", 200), ("body_bytes", 14)] {
            assert_eq!(json[name], wanted, "{name}");
        }
        assert_eq!(json["waited_ms"], 5);
        let none: serde_json::Value = serde_json::from_str(&line(AccessLog::Json, None)).unwrap();
        for name in [
            "method",
            "target",
            "version",
            "host",
            "referer",
            "user_agent",
        ] {
            assert!(none[name].is_null(), "{name}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, combined, json) in [
            (0, "01/Jan/1970:00:00:00", "1970-01-01T00:00:00"),
            (951_782_399, "28/Feb/2000:23:59:59", "2000-02-28T23:59:59"),
            (1_798_761_599, "31/Dec/2026:23:59:59", "2026-12-31T23:59:59"),
        ] {
            let time = UNIX_EPOCH + Duration::new(seconds, 7_999_999);
            let Time {
                day,
                month,
                month_number,
                year,
                clock,
                millis,
            } = Time::of(time);
            assert_eq!(format!("{day}/{month}/{year}:{clock}"), combined);
            assert_eq!(format!("{year}-{month_number:02}-{day}T{clock}"), json);
            assert_eq!(millis, 7);
        }
    }
}
