//! A whole server, asked over a socket: the same bytes get the same answers in one piece, and in several.
//!
//! ```sh
//! cargo +nightly fuzz run exchange seeds/exchange -- -dict=http.dict -max_len=4096
//! ```

#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use handover::http::{self, Body, Reply, Request, Response};
use handover::{Handle, Server};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (splits, stream) = input;
    let whole = answers(stream, [stream.len().max(1)].into_iter());
    let sizes = splits.iter().take(20).map(|size| usize::from(*size) + 1);
    let split = answers(stream, sizes.chain(std::iter::repeat(stream.len().max(1))));
    assert!(
        whole == split,
        "in {splits:?}:\n{}\n--- in one piece:\n{}",
        String::from_utf8_lossy(&split),
        String::from_utf8_lossy(&whole)
    );
});

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

static READ_BOTH: AtomicBool = AtomicBool::new(false);

fn server() -> &'static Handle {
    static SERVER: OnceLock<Handle> = OnceLock::new();
    SERVER.get_or_init(|| {
        let service = http::service(answer).small_body(256).max_body(1024);
        let builder = Server::builder().listen("127.0.0.1:0").workers(1);
        builder.build(service).unwrap().start().unwrap()
    })
}

/// Shows what it was asked, so that any other understanding of it shows as well.
fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    let fields = request.headers();
    let both = fields.contains_key("content-length") && fields.contains_key("transfer-encoding");
    READ_BOTH.fetch_or(both, SeqCst);
    let head = format!(
        "{} {} {:?}",
        request.method(),
        request.uri(),
        request.headers()
    );
    if request.uri().path().starts_with("/n") && !request.headers().contains_key("expect") {
        return Response::new(head.into());
    }
    let body = request.body_mut().read_all(4096);
    Response::new(format!("{head} {body:?}").into())
}

/// What comes back for a stream that is sent in pieces of these sizes, without what depends on the time.
fn answers(stream: &[u8], mut sizes: impl Iterator<Item = usize>) -> Vec<u8> {
    let handle = server();
    let addr: SocketAddr = handle.local_addrs()[0].as_ip().unwrap();
    let mut client = TcpStream::connect(addr).unwrap();
    client.set_nodelay(true).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let before = handle.stats().bytes_in;
    let mut at = 0;
    while at < stream.len() {
        let end = stream.len().min(at + sizes.next().unwrap_or(1));
        // A server that has heard enough closes; its answer is there all the same.
        if client.write_all(&stream[at..end]).is_err() {
            break;
        }
        at = end;
        // A piece that is not read by itself is only a split less.
        let start = Instant::now();
        while at < stream.len()
            && handle.stats().bytes_in < before + at as u64
            && start.elapsed() < Duration::from_millis(2)
        {
            std::thread::yield_now();
        }
    }
    let _ = client.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    if let Err(error) = client.read_to_end(&mut all) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    assert!(!READ_BOTH.load(SeqCst), "both framings in one request");
    // Who sends the body at once need not be told to go on.
    while let Some(at) = all
        .windows(CONTINUE.len())
        .position(|window| window == CONTINUE)
    {
        all.drain(at..at + CONTINUE.len());
    }
    // Where the connection ends is seen by when the end came, so it may be said or not.
    let text: Vec<&[u8]> = all
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"Date: ") && *line != b"Connection: close\r\n")
        .filter(|line| *line != b"Connection: keep-alive\r\n")
        .collect();
    text.concat()
}
