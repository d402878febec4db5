//! The HTTP server of the tests, the benchmarks and the README.
//!
//! ```sh
//! cargo run --release --example demo --features http -- --listen 127.0.0.1:8080
//! ```
//!
//! Then run `curl -i http://127.0.0.1:8080/`. Routes: `/`, `/echo`, `/upload`, `/stream`,
//! `/sleep?ms=N`, `/big?n=BYTES`, `/panic`, `/whoami`, `/noread`, `/status?code=N`, `/header?v=PERCENT-ENCODED`,
//! `/hdr?name=N`, `/target/…`.
//!
//! Pages that other threads send, so that a waiting client holds no worker: `/later?ms=N`,
//! `/events?every=MS` (server-sent events), and `/subscribe`, which gets what is sent with
//! `POST /publish`.
//!
//! After `kill -HUP`, a new process of the program that is on disk then takes over. `/whoami` says
//! which process answers. `--ready-timeout SECONDS` limits the start of the new process.
//!
//! `--supervised` starts a supervisor. `POST /crash`, `/wedge` and `/exit?code=N` test it, and
//! `--processes N`, `--control PATH`, `--watchdog SECONDS` and `--user NAME` are its settings.

mod common;
mod push;

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use handover::http::{
    self, Body, Events, HeaderName, HeaderValue, Method, Reply, Request, Response, StatusCode,
    header,
};

/// The generation of this process: 1 for the first process, and one more for each later one.
static GENERATION: AtomicU64 = AtomicU64::new(1);

const ABOUT: common::About = common::About {
    name: "demo",
    purpose: "An HTTP server with pages to test clients, restarts and a supervisor with.",
    listen: "127.0.0.1:8080",
    own_options: "",
    can_restart: true,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = common::Options::parse(&ABOUT);
    let restart = options.restart()?;
    GENERATION.store(restart.generation(), Relaxed);
    let builder = options.builder().restart(restart);
    let server = builder.build(http::service(answer))?;
    common::announce_http(&server.local_addrs());
    let report = server.run()?;
    common::say(report);
    Ok(())
}

/// Calls the handler of the route, or refuses a method that the route does not have.
fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let route: (Route, &[Method]) = match request.uri().path() {
        "/" => (hello, GET),
        "/echo" => (echo, POST),
        "/upload" => (upload, POST),
        "/stream" => (stream, GET),
        "/sleep" => (sleep, GET),
        "/big" => (big, GET),
        "/later" => (later, GET),
        "/events" => (events, GET),
        "/subscribe" => (subscribe, GET),
        "/publish" => (publish, POST),
        "/panic" => (panics, GET),
        "/whoami" => (whoami, GET),
        "/noread" => (no_read, POST),
        "/status" => (status, GET),
        "/crash" => (crash, POST),
        "/wedge" => (wedge, POST),
        "/exit" => (exit, POST),
        "/header" => (header, GET),
        "/hdr" => (hdr, GET),
        path if path.starts_with("/target/") => (target, GET),
        _ => (not_found, ALL),
    };
    let (route, methods) = route;
    let method = request.method();
    if methods.contains(method) {
        return route(request);
    }
    if !ALL.contains(method) {
        return plain(StatusCode::NOT_IMPLEMENTED, "not implemented\n");
    }
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
    let allowed = if methods == GET { "GET, HEAD" } else { "POST" };
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

type Route = fn(&mut Request<Body<'_>>) -> Response<Reply>;

const GET: &[Method] = &[Method::GET, Method::HEAD];

const POST: &[Method] = &[Method::POST];

/// The methods that the server knows: any other is answered with 501.
const ALL: &[Method] = &[
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
    Method::TRACE,
    Method::CONNECT,
];

fn hello(_: &mut Request<Body<'_>>) -> Response<Reply> {
    Response::new("Hello, World!".into())
}

fn echo(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let kind = request.headers_mut().remove(header::CONTENT_TYPE);
    let mut response = match request.body_mut().take_owned() {
        Ok(body) => Response::new(Reply::from(body)),
        // The service responds, and ignores this response.
        Err(_) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "too much to echo\n"),
    };
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn upload(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match io::copy(request.body_mut(), &mut io::sink()) {
        Ok(count) => Response::new(format!("{count} bytes\n").into()),
        // The service responds, and ignores this response.
        Err(_) => bad_request(),
    }
}

fn stream(_: &mut Request<Body<'_>>) -> Response<Reply> {
    Response::new(Reply::stream(Chunks { next: 1 }))
}

/// Returns one line for each read.
struct Chunks {
    next: u8,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.next > 5 {
            return Ok(0);
        }
        let line = format!("chunk {}\n", self.next);
        self.next += 1;
        line.as_bytes().read(into)
    }
}

fn sleep(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let Some(millis) = number(request, "ms", 5) else {
        return bad_request();
    };
    thread::sleep(Duration::from_millis(millis));
    Response::new(format!("slept {millis}").into())
}

fn big(request: &mut Request<Body<'_>>) -> Response<Reply> {
    /// A body up to this size is sent from memory.
    static BYTES: [u8; 1 << 20] = [b'x'; 1 << 20];
    let Some(count) = number(request, "n", 102_400) else {
        return bad_request();
    };
    Response::new(match usize::try_from(count) {
        Ok(count) if count <= BYTES.len() => Reply::from(&BYTES[..count]),
        _ => Reply::sized(io::repeat(b'x'), count),
    })
}

/// The longest wait that `/later` takes, an hour.
const MOST_MILLIS: u64 = 3_600_000;

fn later(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let millis = number(request, "ms", 5).filter(|millis| *millis <= MOST_MILLIS);
    millis.map_or_else(bad_request, push::later)
}

fn events(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match number(request, "every", 1000) {
        None | Some(0) => bad_request(),
        Some(millis) => {
            let every = Duration::from_millis(millis);
            push::events(every, last_id(request).unwrap_or(0))
        }
    }
}

fn subscribe(request: &mut Request<Body<'_>>) -> Response<Reply> {
    push::subscribe(last_id(request))
}

fn publish(request: &mut Request<Body<'_>>) -> Response<Reply> {
    const TOO_MUCH: &str = "too much to publish\n";
    if request.body().connection().is_draining() {
        return push::not_published();
    }
    match request
        .body_mut()
        .read_all(16 * 1024)
        .map(String::from_utf8)
    {
        Ok(Ok(text)) => {
            push::publish(&text).unwrap_or_else(|| plain(StatusCode::PAYLOAD_TOO_LARGE, TOO_MUCH))
        }
        Ok(Err(_)) => bad_request(),
        Err(_) => plain(StatusCode::PAYLOAD_TOO_LARGE, TOO_MUCH),
    }
}

/// The number of the last event that the client has got.
fn last_id(request: &Request<Body<'_>>) -> Option<u64> {
    Events::last_id(request.headers())?.parse().ok()
}

fn panics(_: &mut Request<Body<'_>>) -> Response<Reply> {
    panic!("as it was asked to");
}

fn whoami(_: &mut Request<Body<'_>>) -> Response<Reply> {
    let (pid, generation) = (std::process::id(), GENERATION.load(Relaxed));
    let version = option_env!("DEMO_VERSION").unwrap_or(env!("CARGO_PKG_VERSION"));
    let json = format!(r#"{{"pid":{pid},"generation":{generation},"version":"{version}"}}"#);
    let mut response = Response::new(json.into());
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn crash(_: &mut Request<Body<'_>>) -> Response<Reply> {
    std::process::abort();
}

fn wedge(_: &mut Request<Body<'_>>) -> Response<Reply> {
    loop {
        thread::park();
    }
}

fn exit(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match number(request, "code", 0).map(i32::try_from) {
        Some(Ok(code)) => std::process::exit(code),
        _ => bad_request(),
    }
}

fn no_read(_: &mut Request<Body<'_>>) -> Response<Reply> {
    Response::new("not read\n".into())
}

fn status(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let code = number(request, "code", 200).and_then(|code| u16::try_from(code).ok());
    match code.map(StatusCode::from_u16) {
        Some(Ok(code)) => plain(code, "status body"),
        _ => bad_request(),
    }
}

fn header(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let value = query(request, "v").unwrap_or_default();
    let Ok(value) = HeaderValue::from_bytes(&percent_decoded(value)) else {
        return plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "there is no such header\n",
        );
    };
    let mut response = Response::new(Reply::from("see X-Echo\n"));
    let name = HeaderName::from_static("x-echo");
    response.headers_mut().insert(name, value);
    response
}

fn hdr(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let name = percent_decoded(query(request, "name").unwrap_or_default());
    let Ok(name) = HeaderName::from_bytes(&name) else {
        return bad_request();
    };
    let mut lines = Vec::new();
    for value in request.headers().get_all(name) {
        lines.extend_from_slice(value.as_bytes());
        lines.push(b'\n');
    }
    let mut response = Response::new(Reply::from(lines));
    let kind = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn target(request: &mut Request<Body<'_>>) -> Response<Reply> {
    Response::new(request.uri().to_string().into())
}

fn not_found(_: &mut Request<Body<'_>>) -> Response<Reply> {
    plain(StatusCode::NOT_FOUND, "not found\n")
}

fn bad_request() -> Response<Reply> {
    plain(StatusCode::BAD_REQUEST, "a query makes no sense\n")
}

fn plain(status: StatusCode, text: &'static str) -> Response<Reply> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

/// The value of `name` in the request's query, as it was sent.
fn query<'a>(request: &'a Request<Body<'_>>, name: &str) -> Option<&'a str> {
    let mut pairs = request.uri().query()?.split('&');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The value of `name` in the request's query as a number, or `default` if there is no such name.
/// `None` if the value is not a number.
fn number(request: &Request<Body<'_>>, name: &str, default: u64) -> Option<u64> {
    query(request, name).map_or(Some(default), |text| text.parse().ok())
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let code = behind
            .get(..2)
            .and_then(|code| std::str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        (bytes, rest) = match (byte, code) {
            (b'%', Some(code)) => (pushed(bytes, code), &behind[2..]),
            _ => (pushed(bytes, byte), behind),
        };
    }
    bytes
}

fn pushed(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}
