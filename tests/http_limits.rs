//! What a client may not do: take too long, send too much, or put more into an answer than the handler did.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::io::{self, ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use handover::http::{self, Body, HeaderName, HeaderValue, Http, Reply, Request, Response};
use handover::{BuildError, Connection, Next, Overload, Service};

use support::{LIMIT, addr, connect_narrow, door, is_timeout, server, start, stop, until};
use web::{Client, get, post, post_chunks, serve, serve_streaming, status};

const SHORT: Duration = Duration::from_millis(300);

/// Sends a request's body back, if it comes.
fn echo(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match request.body_mut().read_all(1 << 24) {
        Ok(body) => Response::new(body.into()),
        Err(_) => Response::new("the service answers this one".into()),
    }
}

// ---- time ----

/// A request that has begun and does not go on is answered with 408, whatever of it is missing.
#[test]
fn requests_that_stall_are_answered_and_closed() {
    let handle = serve(server().read_timeout(SHORT), echo);
    let parts = [
        "G".to_owned(),
        "GET / HTTP/1.1\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test\r\n".to_owned(),
        post_head(10) + "five!",
        post_head(100_000),
        post_head(100_000) + &"x".repeat(50_000),
        post_chunks("/") + "5\r\nhel",
        post_chunks("/") + "5\r\nhello\r\n0\r\nA: b",
        "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            .to_owned(),
    ];
    for part in &parts {
        for before in [0, 2] {
            let mut client = Client::to(&handle);
            client.send(get("/").repeat(before) + part);
            for _ in 0..before {
                assert_eq!(client.answer().status, 200);
            }
            if part.contains("Expect") {
                assert_eq!(client.head().status, 100);
            }
            let shown = &part[..part.len().min(100)];
            let answer = client.answer_or_error();
            let answer = answer.unwrap_or_else(|error| panic!("{error} after {shown:?}"));
            assert_eq!(answer.status, 408, "{shown:?}");
            assert!(answer.closes());
            client.ends();
        }
    }
    stop(&handle);
}

fn post_head(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

/// A time-out is one for the whole head, or the whole body: single bytes do not extend it.
#[test]
fn dripping_clients_are_cut_off() {
    let handle = serve(server().read_timeout(SHORT).workers(1), echo);
    for start in [
        "GET / HTTP/1.1\r\nHost: ".to_owned(),
        post_head(30_000),
        post_head(100_000),
    ] {
        let mut client = Client::to(&handle);
        client.send(&start);
        client
            .stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let since = Instant::now();
        let answer = loop {
            assert!(since.elapsed() < LIMIT, "a dripping client goes on and on");
            match client.answer_or_error() {
                Ok(answer) => break answer,
                Err(error) => assert!(is_timeout(&error), "{error}"),
            }
            let _ = client.stream.write(b"x");
        };
        assert_eq!(answer.status, 408, "{start:?}");
        assert!(since.elapsed() >= SHORT);
        client.stream.set_read_timeout(Some(LIMIT)).unwrap();
        client.is_over();
        Client::to(&handle).get("/").is(200, "");
    }
    stop(&handle);
}

/// A body that came in time is read, however late the handler asks for it.
#[test]
fn punctual_clients_are_not_told_that_they_are_late() {
    const TIME: Duration = Duration::from_secs(2);
    let in_time = (0..10).any(|_| {
        let (keeper, at_door) = door();
        let handle = serve(server().read_timeout(TIME), move |request| {
            at_door.pass();
            echo(request)
        });
        let start = Instant::now();
        let mut client = Client::to(&handle);
        let (first, rest) = (
            "POST / HT",
            "TP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n",
        );
        client.send(first);
        until(&handle, "its first part is read", |stats| {
            stats.parked == 1 && stats.served == 1
        });
        client.send(rest);
        client.send("x".repeat(100_000));
        if start.elapsed() > TIME / 2 {
            return false;
        }
        keeper.wait();
        while start.elapsed() < TIME * 5 / 4 {
            thread::park_timeout(TIME);
        }
        keeper.let_one_in();
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.len()), (200, 100_000));
        stop(&handle);
        true
    });
    assert!(in_time, "this machine stands still all the time");
}

/// Where no request has begun, there is nothing to answer.
#[test]
fn silent_clients_are_closed_without_a_word() {
    let builder = server().first_byte_timeout(SHORT).idle_timeout(SHORT);
    let handle = serve(builder, echo);
    let mut silent = Client::to(&handle);
    let mut idle = Client::to(&handle);
    idle.get("/").is(200, "");
    // Also one that had sent its request in parts, so that a 408 was at hand.
    let mut parts = Client::to(&handle);
    parts.send("GET / HT");
    until(&handle, "its first part is read", |stats| stats.served >= 2);
    parts.send("TP/1.1\r\nHost: test\r\n\r\n");
    parts.answer().is(200, "");
    for client in [&mut silent, &mut idle, &mut parts] {
        client.ends();
    }
    let stats = until(&handle, "all are gone", |stats| stats.live == 0);
    assert_eq!((stats.expired.first_byte, stats.expired.idle), (1, 2));
    stop(&handle);
}

/// An empty line begins no request: it neither prolongs the idle time, nor is it answered.
#[test]
fn empty_lines_prolong_no_wait() {
    let builder = server().first_byte_timeout(SHORT).idle_timeout(SHORT);
    let handle = serve(builder.read_timeout(LIMIT), echo);
    for (requests, parts) in [(0, ["\r\n", "\r\n"]), (1, ["\r\n", ""]), (1, ["\r", "\n"])] {
        let mut client = Client::to(&handle);
        let mut parts = parts.iter().cycle();
        client.send(get("/").repeat(requests));
        for _ in 0..requests {
            client.answer().is(200, "");
        }
        client
            .stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < LIMIT, "empty lines keep a connection");
            let part = parts.next().unwrap();
            let _ = client.stream.write(part.as_bytes());
            match client.stream.read(&mut [0; 100]) {
                Ok(count) => break assert_eq!(count, 0, "empty lines are answered"),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => assert!(is_timeout(&error), "{error}"),
            }
        }
        assert!(since.elapsed() >= SHORT / 2);
    }
    let stats = until(&handle, "all are gone", |stats| stats.live == 0);
    assert_eq!((stats.expired.idle, stats.expired.read), (3, 0));
    stop(&handle);
}

/// A client that ends its request with an empty line too many stays, as long as any idle one.
#[test]
fn an_empty_line_after_a_request_does_not_shorten_the_idle_time() {
    let handle = serve(server().read_timeout(SHORT), echo);
    let mut client = Client::to(&handle);
    client.get("/").is(200, "");
    let served = handle.stats().served;
    client.send("\r\n");
    until(&handle, "the line is read", |stats| {
        stats.served > served && stats.parked == 1
    });
    support::pause(SHORT * 2);
    client.get("/").is(200, "");
    let mut other = Client::to(&handle);
    other.get("/").is(200, "");
    other.send("\r\n");
    until(&handle, "both are parked", |stats| stats.parked == 2);
    // A drain closes both at once: no request has begun.
    stop(&handle);
    client.is_over();
    other.is_over();
    let stats = handle.stats();
    assert_eq!(stats.expired.read, 0);
}

/// A client that does not read its response holds no worker, and is closed after the write time-out.
#[test]
fn clients_that_do_not_read_hold_no_worker_and_are_closed() {
    // Another request is answered meanwhile.
    const TIME: Duration = Duration::from_millis(if cfg!(windows) { 3000 } else { 300 });
    let builder = server().write_timeout(TIME).workers(1);
    let handle = serve(builder, |request: &mut Request<Body<'_>>| {
        Response::new(match request.uri().path() {
            "/stream" => Reply::stream(std::io::repeat(b'x')),
            "/sized" => Reply::sized(std::io::repeat(b'x'), 1 << 40),
            "/bytes" => vec![b'x'; 64 << 20].into(),
            _ => "small".into(),
        })
    });
    for (place, target) in ["/stream", "/sized", "/bytes"].into_iter().enumerate() {
        let mut slow = Client::on(connect_narrow(addr(&handle)));
        let served = handle.stats().served;
        slow.send(get(target));
        until(&handle, "it does not read", |stats| {
            stats.served > served && stats.parked == 1
        });
        Client::to(&handle).get("/").is(200, "small");
        assert_eq!(handle.stats().expired.write, place as u64);
        until(&handle, "it is closed", |stats| {
            stats.expired.write == place as u64 + 1
        });
        // It can read what had left, and sees that it is not all.
        let mut got = Vec::new();
        if let Err(error) = slow.stream.read_to_end(&mut got) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        assert!(!got.ends_with(b"0\r\n\r\n"));
        until(&handle, "it is gone", |stats| stats.live == 0);
    }
    stop(&handle);
}

// ---- size ----

#[test]
fn bodies_have_a_limit_if_one_is_set() {
    const MOST: usize = 100;
    for small in [0, 50, 1000] {
        let service = http::service(echo).max_body(MOST as u64).small_body(small);
        let handle = start(server(), service);
        let chunks = |sizes: &[usize]| {
            let mut all = post_chunks("/");
            for size in sizes {
                all += &format!("{size:x}\r\n{}\r\n", "x".repeat(*size));
            }
            all + "0\r\n\r\n"
        };
        let mut client = Client::to(&handle);
        client.send(post("/", "x".repeat(MOST)));
        client.answer().is(200, &"x".repeat(MOST));
        client.send(chunks(&[MOST - 1, 1]));
        client.answer().is(200, &"x".repeat(MOST));
        let expect = "Expect: 100-continue\r\nContent-Length: 101\r\n\r\n";
        for request in [
            post("/", "x".repeat(MOST + 1)),
            post_head(usize::MAX >> 8).into_bytes(),
            chunks(&[MOST + 1]).into_bytes(),
            chunks(&[MOST, 1]).into_bytes(),
            chunks(&[1; MOST + 1]).into_bytes(),
            // No 100 comes before it.
            format!("POST / HTTP/1.1\r\nHost: test\r\n{expect}").into_bytes(),
        ] {
            let mut client = Client::to(&handle);
            client.send(&request);
            client.send(get("/smuggled"));
            let shown = String::from_utf8_lossy(&request).into_owned();
            let answer = client.answer();
            assert_eq!(answer.status, 413, "{small} {shown:?}");
            assert!(answer.closes());
            client.ends();
        }
        stop(&handle);
    }
}

#[test]
fn the_limits_of_heads_can_be_set() {
    let service = http::service(echo)
        .max_request_line(40)
        .max_head(100)
        .max_fields(3);
    let handle = start(server(), service);
    let host = "Host: test\r\n";
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(24)),
            200,
        ),
        (
            format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(25)),
            414,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(65)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(66)),
            431,
        ),
        (format!("GET / HTTP/1.1\r\n{host}A: b\r\nC: d\r\n\r\n"), 200),
        (
            format!("GET / HTTP/1.1\r\n{host}A: b\r\nC: d\r\nE: f\r\n\r\n"),
            431,
        ),
    ] {
        let mut client = Client::to(&handle);
        client.send(&request);
        assert_eq!(client.answer().status, status, "{request:?}");
    }
    stop(&handle);
    // And be higher than by default, as far as there is an end to it.
    let service = http::service(echo)
        .max_request_line(60_000)
        .max_head(100_000);
    let handle = start(server(), service.max_fields(1000));
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(50_000)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(90_000)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}{}\r\n", "A: b\r\n".repeat(255)),
            200,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}{}\r\n", "A: b\r\n".repeat(256)),
            431,
        ),
    ] {
        let mut client = Client::to(&handle);
        client.send(&request);
        assert_eq!(client.answer().status, status);
    }
    stop(&handle);
}

/// Whatever the limit of input is, what does not fit is spooled or streamed.
#[test]
fn bodies_that_do_not_fit_into_the_buffer_arrive_whole() {
    let server = || server().input_limit(20_000);
    for handle in [serve(server(), echo), serve_streaming(server(), echo)] {
        let mut client = Client::to(&handle);
        for size in [19_000, 20_000, 21_000, 100_000] {
            client.send(post("/", "x".repeat(size)));
            assert_eq!(client.answer().body.len(), size);
            let chunk = format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
            client.send(post_chunks("/") + &chunk);
            assert_eq!(client.answer().body.len(), size);
        }
        stop(&handle);
    }
}

// ---- overload ----

#[test]
fn a_full_server_says_when_to_come_again() {
    let overload = Overload::Refuse(http::OVERLOADED.to_vec());
    let handle = serve(server().max_connections(1).overload(overload), echo);
    let mut first = Client::to(&handle);
    first.get("/").is(200, "");
    for _ in 0..3 {
        let mut second = Client::to(&handle);
        let answer = second.answer();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert!(answer.closes());
        second.is_over();
    }
    first.get("/").is(200, "");
    drop(first);
    until(&handle, "there is room again", |stats| stats.live == 0);
    Client::to(&handle).get("/").is(200, "");
    stop(&handle);
}

/// Between two requests of a pipeline, a refusal is the response to the next one.
#[test]
fn a_pipeline_that_waits_too_long_for_its_next_turn_is_refused() {
    let (keeper, at_door) = door();
    let builder = server()
        .workers(1)
        .queue_timeout(SHORT)
        .overload(Overload::Refuse(http::OVERLOADED.to_vec()));
    let handle = serve(builder, move |request: &mut Request<Body<'_>>| {
        if request.uri().path() == "/wait" {
            at_door.pass();
            // A slow handler: a pipeline whose handlers are fast goes on in its turn.
            support::pause(Duration::from_millis(20));
        }
        Response::new("served")
    });
    let mut pipeline = Client::to(&handle);
    pipeline.send(get("/wait") + &get("/"));
    keeper.wait();
    let mut other = Client::to(&handle);
    other.send(get("/wait"));
    until(&handle, "the other one is queued", |stats| {
        stats.queued == 1
    });
    keeper.let_one_in();
    pipeline.answer().is(200, "served");
    keeper.wait();
    let refusal = pipeline.answer();
    assert_eq!(refusal.status, 503);
    pipeline.is_over();
    drop(keeper);
    other.answer().is(200, "served");
    stop(&handle);
}

/// The server says that it is full only where that can be taken for an answer.
#[test]
fn a_refusal_is_no_part_of_another_protocol_or_answer() {
    const LENGTH: usize = 65 * 1024;
    let (keeper, at_door) = door();
    let builder = server()
        .workers(1)
        .queue_timeout(Duration::from_secs(1))
        .overload(Overload::Refuse(http::OVERLOADED.to_vec()));
    let handle = serve_streaming(builder, move |request: &mut Request<Body<'_>>| {
        match request.uri().path() {
            "/upgrade" => return status(101, Reply::upgrade(support::lines)),
            "/part" => {
                let mut begin = [0; 2000];
                request.body_mut().read_exact(&mut begin).unwrap();
            }
            "/wait" => at_door.pass(),
            _ => {}
        }
        Response::new("served".into())
    });
    let mut upgraded = Client::to(&handle);
    upgraded.send(get("/upgrade"));
    assert_eq!(upgraded.head().status, 101);
    let mut skipped = Client::to(&handle);
    skipped.send(format!(
        "POST /part HTTP/1.1\r\nHost: test\r\nContent-Length: {LENGTH}\r\n\r\n"
    ));
    skipped.send("x".repeat(3000));
    assert!(!skipped.answer().closes());
    let mut idle = Client::to(&handle);
    idle.get("/").is(200, "served");
    until(&handle, "all are parked", |stats| stats.parked == 3);
    let mut busy = Client::to(&handle);
    busy.send(get("/wait"));
    keeper.wait();
    upgraded.send("late\n");
    skipped.send("xxx");
    idle.send(get("/"));
    assert_eq!(idle.answer().status, 503);
    upgraded.is_over();
    skipped.is_over();
    drop(keeper);
    busy.answer().is(200, "served");
    stop(&handle);
}

// ---- answers ----

/// The limit of heads is one that a head can come up to, with the status that the limit is documented to have.
#[test]
fn a_limit_of_heads_above_that_of_input_is_refused() {
    let build = |input: usize, line: usize, head: usize| {
        let service = http::service(echo).max_request_line(line).max_head(head);
        let built = server().input_limit(input).build(service);
        built.map(drop).map_err(|error| {
            assert!(matches!(error, BuildError::Service(_)), "{error:?}");
            error.to_string()
        })
    };
    for (input, head, text) in [
        (
            16_383,
            16_384,
            "max_head (16384) must not be above input_limit (16383)",
        ),
        (
            1 << 20,
            2 << 20,
            "max_head (2097152) must not be above input_limit (1048576)",
        ),
        (1 << 20, 0, "max_head must be at least 1"),
    ] {
        assert_eq!(build(input, 100, head), Err(text.to_owned()));
    }
    assert_eq!(
        build(1000, 0, 1000),
        Err("max_request_line must be at least 1".to_owned())
    );
    assert_eq!(build(usize::MAX, usize::MAX, usize::MAX), Ok(()));
    assert_eq!(build(1000, 8192, 1000), Ok(()));
    // The statuses at the limit, with both limits equal and a request line that has none of its own.
    let service = http::service(echo)
        .max_request_line(usize::MAX)
        .max_head(1000);
    let handle = start(server().input_limit(1000), service);
    for (request, status) in [
        (
            format!("GET / HTTP/1.1\r\nHost: test\r\nX: {}", "x".repeat(2000)),
            431,
        ),
        (format!("GET /{}", "x".repeat(2000)), 414),
    ] {
        let mut client = Client::to(&handle);
        client.send(request);
        assert_eq!(client.answer().status, status);
        client.is_over();
    }
    stop(&handle);
}

/// A service that does not pass the check of its settings on.
struct Unchecked<H>(Http<H>);

impl<H> Service for Unchecked<H>
where
    H: Fn(&mut Request<Body<'_>>) -> Response<Reply> + Send + Sync,
{
    type Session = http::Session;
    type Worker = http::WorkerBuffers;

    fn worker(&self, index: usize) -> io::Result<http::WorkerBuffers> {
        self.0.worker(index)
    }

    fn session(&self, conn: &Connection) -> io::Result<http::Session> {
        self.0.session(conn)
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut http::Session,
        buffers: &mut http::WorkerBuffers,
    ) -> io::Result<Next> {
        self.0.serve(conn, session, buffers)
    }
}

/// A head that does not fit into the input limit is counted.
#[test]
fn heads_that_are_too_long_are_counted() {
    let handle = start(server().input_limit(1000), Unchecked(http::service(echo)));
    let mut client = Client::to(&handle);
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: test\r\nX: {}",
        "x".repeat(1000)
    ));
    let answer = client.answer();
    assert_eq!(answer.status, 431);
    client.is_over();
    assert_eq!(handle.stats().too_long, 1);
    stop(&handle);
}

/// There is no byte with which a value or a name could end early, and begin something else.
#[test]
fn answers_cannot_be_split() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let hex = request.uri().path().trim_start_matches('/').to_owned();
        let bytes: Vec<u8> = hex
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let mut response = Response::new(Reply::empty());
        let fields = response.headers_mut();
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            fields.insert("x-value", value);
        }
        if let Ok(name) = HeaderName::from_bytes(&bytes) {
            fields.insert(name, HeaderValue::from_static("x-name"));
        }
        response
    });
    let mut client = Client::to(&handle);
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    // Bytes beyond ASCII are allowed in values, but the client here takes only text.
    for byte in 0..=127u8 {
        let answer = client.get(&format!("/{}", hex(&[b'a', byte, b'b'])));
        let is_value = byte == b'\t' || (b' '..127).contains(&byte);
        assert_eq!(answer.field("x-value").is_some(), is_value, "{byte:#x}");
        assert!(answer.fields.len() <= 4, "{answer:?}");
    }
    for bytes in [
        &b"a\r\nX-Evil: 1"[..],
        b"a\nX-Evil: 1",
        b"a\rX-Evil: 1",
        b"a\r\n\r\nHTTP/1.1 200 OK\r\n",
    ] {
        let answer = client.get(&format!("/{}", hex(bytes)));
        assert_eq!((answer.status, answer.field("x-evil")), (200, None));
        assert_eq!(answer.field("x-value"), None);
    }
    stop(&handle);
}
