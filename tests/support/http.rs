//! An HTTP client for the tests. It is strict about what it receives: a response that is not framed exactly as the
//! request asked for fails the test.

#![allow(dead_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use handover::http::{self, Body, Reply, Request, Response, StatusCode};
use handover::{Builder, Handle};
use parking_lot::Mutex;

use super::support::{addr, connect, start};

/// A server for a handler.
pub(crate) fn serve<H, R>(builder: Builder, handler: H) -> Handle
where
    H: Fn(&mut Request<Body<'_>>) -> Response<R> + Send + Sync + 'static,
    R: Into<Reply> + 'static,
{
    start(builder, http::service(handler))
}

/// A server for a handler that receives large bodies itself.
pub(crate) fn serve_streaming<H, R>(builder: Builder, handler: H) -> Handle
where
    H: Fn(&mut Request<Body<'_>>) -> Response<R> + Send + Sync + 'static,
    R: Into<Reply> + 'static,
{
    start(builder, http::service(handler).stream_body_if(|_| true))
}

/// A response with this status.
pub(crate) fn status(code: u16, reply: impl Into<Reply>) -> Response<Reply> {
    let mut response = Response::new(reply.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// The targets of the requests that reached a handler.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn note(&self, request: &Request<Body<'_>>) {
        self.0.lock().push(request.uri().to_string());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// What was answered to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The chunks' sizes, if it came in chunks.
    pub(crate) chunks: Option<Vec<usize>>,
}

impl Answer {
    /// The value of the only field of that name.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|field| field.0 == name);
        let value = found.next().map(|field| field.1.as_str());
        assert!(found.next().is_none(), "several {name} fields: {self:?}");
        value
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, text: &str) {
        assert_eq!((self.status, self.text()), (status, text), "{self:?}");
    }

    /// The server says that the connection ends with this answer.
    #[track_caller]
    pub(crate) fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    held: Vec<u8>,
}

impl Client {
    #[track_caller]
    pub(crate) fn to(handle: &Handle) -> Self {
        Self::on(connect(addr(handle)))
    }

    pub(crate) fn on(stream: TcpStream) -> Self {
        let held = Vec::new();
        Self { stream, held }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Says that no more will be sent.
    #[track_caller]
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Asks for a target and returns the answer.
    #[track_caller]
    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.send(get(target));
        self.answer()
    }

    /// The answer to a GET or a POST.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        self.read_answer(false)
    }

    #[track_caller]
    pub(crate) fn answer_to_head(&mut self) -> Answer {
        self.read_answer(true)
    }

    /// The answer that comes next, or `None` at the end of the stream.
    #[track_caller]
    pub(crate) fn answer_if_any(&mut self, is_head: bool) -> Option<Answer> {
        if self.held.is_empty() && !self.more() {
            return None;
        }
        Some(self.read_answer(is_head))
    }

    #[track_caller]
    fn read_answer(&mut self, is_head: bool) -> Answer {
        let mut answer = self.head();
        let length = answer.field("content-length").map(str::to_owned);
        let coding = answer.field("transfer-encoding").map(str::to_owned);
        assert!(length.is_none() || coding.is_none(), "{answer:?}");
        let never = matches!(answer.status, 100..200 | 204 | 304);
        if never {
            assert!(length.is_none() && coding.is_none(), "{answer:?}");
        }
        if never || is_head {
            return answer;
        }
        match (length, coding) {
            (Some(length), _) => {
                let length = length.parse().unwrap();
                self.want(length);
                answer.body = self.held.drain(..length).collect();
            }
            (None, Some(coding)) => {
                assert_eq!(coding, "chunked");
                let mut sizes = Vec::new();
                loop {
                    let line = self.line();
                    let size = usize::from_str_radix(&line, 16).unwrap();
                    assert_eq!(format!("{size:x}"), line);
                    self.want(size + 2);
                    answer.body.extend(self.held.drain(..size));
                    assert_eq!(self.held.drain(..2).collect::<Vec<_>>(), b"\r\n");
                    if size == 0 {
                        break;
                    }
                    sizes.push(size);
                }
                answer.chunks = Some(sizes);
            }
            (None, None) => {
                assert!(answer.closes(), "where does it end? {answer:?}");
                while self.more() {}
                answer.body = std::mem::take(&mut self.held);
            }
        }
        answer
    }

    /// The next head, be it that of an interim response.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Answer {
        let line = self.line();
        let rest = line.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| {
            panic!("not a status line: {line:?}");
        });
        let (code, _reason) = rest.split_once(' ').expect("a space behind the code");
        assert_eq!(code.len(), 3, "{line:?}");
        let mut answer = Answer {
            status: code.parse().unwrap(),
            fields: Vec::new(),
            body: Vec::new(),
            chunks: None,
        };
        loop {
            let line = self.line();
            if line.is_empty() {
                return answer;
            }
            let (name, value) = line.split_once(": ").expect("a field");
            assert!(!name.contains(' '), "{line:?}");
            let name = name.to_ascii_lowercase();
            answer.fields.push((name, value.to_owned()));
        }
    }

    /// A line without its end, which is CR LF.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut looked = 0;
        loop {
            if let Some(at) = self.held[looked..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=looked + at).collect();
                let line = line.strip_suffix(b"\r\n").expect("CR LF");
                assert!(!line.contains(&b'\r'));
                return String::from_utf8(line.to_vec()).unwrap();
            }
            looked = self.held.len();
            self.want(looked + 1);
        }
    }

    /// The next so many bytes.
    #[track_caller]
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.want(count);
        self.held.drain(..count).collect()
    }

    /// A line of another protocol, with its end.
    #[track_caller]
    pub(crate) fn raw_line(&mut self) -> String {
        loop {
            if let Some(at) = self.held.iter().position(|&byte| byte == b'\n') {
                return String::from_utf8(self.held.drain(..=at).collect()).unwrap();
            }
            self.want(self.held.len() + 1);
        }
    }

    /// Waits until so many bytes are held.
    #[track_caller]
    fn want(&mut self, count: usize) {
        while self.held.len() < count {
            let more = self.more();
            assert!(
                more,
                "the end came where {count} bytes were wanted, after {} of them: {:?}",
                self.held.len(),
                self.shown()
            );
        }
    }

    /// Reads what there is; false at the end of the stream.
    #[track_caller]
    fn more(&mut self) -> bool {
        let mut room = [0; 16 * 1024];
        match self.stream.read(&mut room) {
            Ok(count) => {
                self.held.extend_from_slice(&room[..count]);
                count > 0
            }
            // A machine that is suspended ends a wait with a time-out early, see signal(7).
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => panic!("{error} after {:?}", self.shown()),
        }
    }

    /// The beginning of what is held, for messages.
    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.held);
        text.chars().take(1000).collect()
    }

    /// The answer to a GET or a POST, unless the connection fails before its first byte is there.
    #[track_caller]
    pub(crate) fn answer_or_error(&mut self) -> io::Result<Answer> {
        let mut room = [0; 1024];
        match self.stream.read(&mut room)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                self.held.extend_from_slice(&room[..count]);
                Ok(self.answer())
            }
        }
    }

    /// Takes what one read gives.
    #[track_caller]
    pub(crate) fn read_once(&mut self) -> Vec<u8> {
        assert!(self.more(), "the end");
        std::mem::take(&mut self.held)
    }

    /// All that comes until the end.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.held)
    }

    /// Asserts that nothing has come that was not looked at, and that nothing comes for a moment.
    #[track_caller]
    pub(crate) fn is_silent(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.held), "");
        super::support::assert_silent(&mut self.stream);
    }

    /// Asserts that the server ends the connection in an orderly way, and sends nothing more.
    #[track_caller]
    pub(crate) fn ends(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.held), "");
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Ok(count) => panic!("{count} bytes came instead of the end"),
            Err(error) => panic!("{error} instead of the end"),
        }
    }

    /// Asserts that the connection ends, if need be by a reset, and nothing more comes.
    #[track_caller]
    pub(crate) fn is_over(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.held), "");
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Ok(count) => panic!("{count} bytes came instead of the end"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

/// A GET request without more than it needs.
pub(crate) fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// A POST request whose body has a length.
pub(crate) fn post(target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A POST request in chunks, whose body comes separately.
pub(crate) fn post_chunks(target: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
}
