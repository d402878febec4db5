//! The servers, and the pages that they answer.
//!
//! | page | body | handler |
//! |---|---|---|
//! | `GET /` | `Hello, World!` | returns at once |
//! | `GET /sleep?ms=5` | `slept 5` | sleeps for 5 ms |
//! | `GET /burn?ms=20` | `burnt 20` | uses 20 ms of CPU time |
//!
//! `hyper` of `benches/versus` answers the same.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use handover::http::{self, HeaderValue, Reply, Response, header};
use handover::{Bind, Overload, Server};
use rustix::time::{ClockId, clock_gettime};

use super::Result;
use super::process::announce;

/// A request, and the body of its answer.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) request: &'static [u8],
    pub(super) body: &'static [u8],
}

pub(super) const FAST: Page = Page {
    request: b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n",
    body: b"Hello, World!",
};

pub(super) const SLEEP: Page = Page {
    request: b"GET /sleep?ms=5 HTTP/1.1\r\nHost: bench\r\n\r\n",
    body: b"slept 5",
};

/// The same, after which the server closes the connection.
pub(super) const SLEEP_AND_CLOSE: Page = Page {
    request: b"GET /sleep?ms=5 HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
    body: SLEEP.body,
};

pub(super) const BURN: Page = Page {
    request: b"GET /burn?ms=20 HTTP/1.1\r\nHost: bench\r\n\r\n",
    body: b"burnt 20",
};

const SLEEP_TIME: Duration = Duration::from_millis(5);
/// The CPU time of the handler that computes.
pub(crate) const BURN_TIME: Duration = Duration::from_millis(20);

/// Calls the handler of a page. Returns the body, or `None` if there is no such page.
fn answer(target: &str) -> Option<&'static [u8]> {
    match target {
        "/" => Some(FAST.body),
        "/sleep?ms=5" => {
            thread::sleep(SLEEP_TIME);
            Some(SLEEP.body)
        }
        "/burn?ms=20" => {
            burn();
            Some(BURN.body)
        }
        _ => None,
    }
}

/// Uses CPU time of this thread.
fn burn() {
    let cpu_time = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    let end = cpu_time() + BURN_TIME;
    while cpu_time() < end {
        std::hint::spin_loop();
    }
}

/// The answer to a refused client.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Serves with `handover` until the process is killed.
pub(super) fn serve(workers: usize, queue: Option<usize>, refuses: bool) -> Result<()> {
    let service = http::service(|request: &mut http::Request<http::Body<'_>>| {
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let mut response = Response::new(Reply::empty());
        match answer(target) {
            Some(body) => {
                *response.body_mut() = Reply::from(body);
                let text = HeaderValue::from_static("text/plain");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
            }
            None => *response.status_mut() = http::StatusCode::NOT_FOUND,
        }
        response
    });
    let mut builder = Server::builder()
        .listen(Bind::new("127.0.0.1:0").nodelay(true))
        .workers(workers);
    if let Some(queue) = queue {
        builder = builder.queue(queue);
    }
    if refuses {
        builder = builder.overload(Overload::Refuse(REFUSAL.to_vec()));
    }
    let server = builder.build(service)?;
    announce(&server.local_addrs()[0]);
    server.start()?.join();
    Ok(())
}

/// Serves with the standard library and a thread for each connection until the process is killed.
pub(super) fn serve_thread_per_connection() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    announce(listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::Builder::new().spawn(move || serve_stream(stream))?;
    }
    Ok(())
}

fn serve_stream(mut stream: TcpStream) -> io::Result<()> {
    const LINE_START: usize = "GET ".len();

    stream.set_nodelay(true)?;
    let mut input = [0; 4096];
    let mut length = 0;
    let mut output = Vec::new();
    loop {
        let count = stream.read(&mut input[length..])?;
        if count == 0 {
            return Ok(());
        }
        length += count;
        // The clients of these benchmarks send the next request after the answer.
        if !input[..length].ends_with(b"\r\n\r\n") {
            continue;
        }
        let head = String::from_utf8_lossy(&input[LINE_START.min(length)..length]);
        let target = head.split(' ').next().unwrap_or_default();
        let (status, body) = match answer(target) {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", &b""[..]),
        };
        output.clear();
        write!(
            output,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        output.extend_from_slice(body);
        stream.write_all(&output)?;
        length = 0;
    }
}
