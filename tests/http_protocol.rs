//! HTTP/1.1 as clients that mean well see it: persistence, framing, and what becomes of bodies that nobody reads.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use handover::http::{self, Body, Method, Reply, Request, Response, StatusCode, header};
use handover::{Handle, Next, Stats};

use support::{
    LIMIT, QUIET, addr, byte_at, bytes_at, connect_narrow, door, keep_log, reset, server, start,
    stop, until, wine_cannot,
};
use web::{Answer, Client, Seen, get, post, post_chunks, serve, serve_streaming, status};

/// The handler of most tests here.
fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match request.uri().path() {
        "/echo" => match request.body_mut().read_all(1 << 24) {
            Ok(body) => Response::new(body.into()),
            Err(error) => status(500, error.to_string()),
        },
        "/noread" => Response::new("not read".into()),
        "/panic" => panic!("as it was asked to"),
        "/stream" => Response::new(Reply::stream(Pieces(vec![
            b"", b"three", b"", b"two", b"one",
        ]))),
        path => Response::new(path.to_owned().into()),
    }
}

/// Gives one of them with each read, from the last to the second; the first is the end.
struct Pieces(Vec<&'static [u8]>);

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.0.pop() {
            if !piece.is_empty() || self.0.is_empty() {
                into[..piece.len()].copy_from_slice(piece);
                return Ok(piece.len());
            }
        }
        Ok(0)
    }
}

/// Gives the bytes of the pattern, in pieces of many sizes.
struct Pattern {
    at: usize,
    end: usize,
}

impl Pattern {
    fn of(count: usize) -> Self {
        Self { at: 0, end: count }
    }
}

impl Read for Pattern {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = (self.at % 9973 + 1).min(self.end - self.at).min(into.len());
        for byte in &mut into[..count] {
            *byte = byte_at(self.at);
            self.at += 1;
        }
        Ok(count)
    }
}

// ---- persistence ----

#[test]
fn connections_persist_as_version_and_client_say() {
    let handle = serve(server(), answer);
    for (version, field, persists, said) in [
        ("1.1", "", true, None),
        ("1.1", "Connection: keep-alive\r\n", true, None),
        ("1.1", "Connection: close\r\n", false, Some("close")),
        ("1.1", "Connection: x-y, CLOSE\r\n", false, Some("close")),
        (
            "1.1",
            "Connection: x\r\nConnection: close\r\n",
            false,
            Some("close"),
        ),
        ("1.0", "", false, Some("close")),
        ("1.0", "Connection: close\r\n", false, Some("close")),
        (
            "1.0",
            "Connection: Keep-Alive\r\n",
            true,
            Some("keep-alive"),
        ),
        (
            "1.0",
            "Connection: keep-alive, close\r\n",
            false,
            Some("close"),
        ),
    ] {
        let mut client = Client::to(&handle);
        client.send(format!(
            "GET /a HTTP/{version}\r\nHost: test\r\n{field}\r\n"
        ));
        let answer = client.answer();
        answer.is(200, "/a");
        assert_eq!(answer.field("connection"), said, "{version} {field:?}");
        if persists {
            client.get("/b").is(200, "/b");
        } else {
            client.ends();
        }
    }
    stop(&handle);
}

#[test]
fn the_handler_can_end_the_connection() {
    let handle = serve(server(), |_| {
        let mut response = Response::new("last");
        let close = header::HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        response
    });
    let mut client = Client::to(&handle);
    let answer = client.get("/");
    answer.is(200, "last");
    assert!(answer.closes());
    client.ends();
    stop(&handle);
}

#[test]
fn pipelined_requests_are_answered_in_order_and_at_once() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    let targets: Vec<String> = (0..16).map(|n| format!("/{n}")).collect();
    let requests: String = targets.iter().map(|target| get(target)).collect();
    // One write of one segment is one read. The answers of a call that lasts longer than a tick of
    // the coarse clock come in parts: on a busy machine it may take several attempts.
    let is_at_once = (0..100).any(|_| {
        client.send(requests.clone());
        let mut text = String::new();
        let mut reads = 0;
        let found = loop {
            text += &String::from_utf8(client.read_once()).unwrap();
            reads += 1;
            let found: Vec<&str> = text.split("\r\n\r\n").skip(1).collect();
            if found.len() == 16 && found[15].starts_with("/15") {
                break found;
            }
        };
        for (target, found) in targets.iter().zip(found) {
            assert!(found.starts_with(target.as_str()), "{target}: {found}");
        }
        reads == 1
    });
    assert!(is_at_once);
    // With bodies in between, and one of another kind.
    let mut mixed = post("/echo", "one");
    mixed.extend(post_chunks("/echo").as_bytes());
    mixed.extend(b"3\r\ntwo\r\n0\r\n\r\n");
    mixed.extend(get("/stream").as_bytes());
    mixed.extend(post("/noread", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
    mixed.extend(get("/end").as_bytes());
    client.send(mixed);
    for text in ["one", "two", "onetwothree", "not read", "/end"] {
        client.answer().is(200, text);
    }
    stop(&handle);
}

#[test]
fn more_requests_than_one_read_takes_are_all_answered() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    let mut sender = client.stream.try_clone().unwrap();
    const COUNT: usize = 5000;
    let sending = thread::spawn(move || {
        let all: String = (0..COUNT).map(|n| get(&format!("/{n}"))).collect();
        sender.write_all(all.as_bytes()).unwrap();
    });
    for n in 0..COUNT {
        client.answer().is(200, &format!("/{n}"));
    }
    sending.join().unwrap();
    stop(&handle);
}

#[test]
fn what_was_answered_leaves_before_a_body_is_waited_for() {
    let handle = serve(server(), answer);
    for length in [5, 100_000] {
        let mut client = Client::to(&handle);
        client.send(get("/first") + &post_head("/echo", length));
        client.answer().is(200, "/first");
        client.send("x".repeat(length));
        client.answer().is(200, &"x".repeat(length));
    }
    stop(&handle);
}

fn post_head(target: &str, length: usize) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

// ---- bodies of requests ----

#[test]
fn chunked_requests_come_without_extensions_and_trailers() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    for (body, text) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("000A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("a\r\n0123456789\r\n00\r\n\r\n", "0123456789"),
        ("1;a\r\nx\r\n1;a=b;c=\"d e\"\r\ny\r\n0;end\r\n\r\n", "xy"),
        ("1 ; a\r\nx\r\n0\r\n\r\n", "x"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        (
            "1\r\nx\r\n0\r\nX-Sum: 1\r\nContent-Length: 99\r\nX:\r\n\r\n",
            "x",
        ),
    ] {
        client.send(post_chunks("/echo") + body);
        client.answer().is(200, text);
    }
    client.get("/next").is(200, "/next");
    stop(&handle);
}

#[test]
fn trailers_are_no_fields() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let all = request.body_mut().read_all(100).unwrap();
        assert_eq!(all, b"x");
        Response::new(format!("{:?}", request.headers().get("x-sum")))
    });
    let mut client = Client::to(&handle);
    client.send(post_chunks("/") + "1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n");
    client.answer().is(200, "None");
    stop(&handle);
}

#[test]
fn the_handler_is_told_to_go_on_only_when_it_reads() {
    let (keeper, guarded) = door();
    let handle = serve_streaming(server(), move |request: &mut Request<Body<'_>>| {
        if request.uri().path() == "/noread" {
            return Response::new("not read".to_owned());
        }
        guarded.pass();
        let body = request.body_mut().read_all(1 << 20).unwrap();
        Response::new(format!("{} bytes", body.len()))
    });
    let head = |target: &str, version: &str, length: usize| {
        format!(
            "POST {target} HTTP/{version}\r\nHost: test\r\nConnection: keep-alive\r\n\
             Expect: 100-Continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for length in [5, 100_000] {
        let mut client = Client::to(&handle);
        client.send(head("/read", "1.1", length));
        keeper.wait();
        client.is_silent();
        keeper.let_one_in();
        assert_eq!(client.head().status, 100);
        client.is_silent();
        client.send("x".repeat(length));
        client.answer().is(200, &format!("{length} bytes"));
        // Not sent when it does not read: then nobody knows whether the body comes.
        client.send(head("/noread", "1.1", length));
        let answer = client.answer();
        answer.is(200, "not read");
        assert!(answer.closes());
        client.ends();
    }
    // An old client does not know it, and a body without bytes need not be waited for.
    let mut client = Client::to(&handle);
    client.send(head("/read", "1.0", 5) + "hello");
    keeper.wait();
    keeper.let_one_in();
    client.answer().is(200, "5 bytes");
    client.send(head("/read", "1.1", 0));
    keeper.wait();
    keeper.let_one_in();
    client.answer().is(200, "0 bytes");
    stop(&handle);
}

/// A client need not wait for it (RFC 9110, section 10.1.1), and loses nothing if it does not.
#[test]
fn a_body_that_comes_unasked_is_one() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    let head =
        "POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    client.send(format!("{head}hello"));
    let answer = client.answer();
    answer.is(200, "hello");
    assert!(!answer.closes(), "all of the body was there and read");
    client.get("/next").is(200, "/next");
    stop(&handle);
}

#[test]
fn other_expectations_are_refused() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    client.send("GET / HTTP/1.1\r\nHost: test\r\nExpect: miracles\r\n\r\n");
    assert_eq!(client.answer().status, 417);
    client.ends();
    stop(&handle);
}

#[test]
fn a_body_that_nobody_reads_is_skipped_or_ends_the_connection() {
    let seen = Seen::default();
    let handle = serve_streaming(server(), {
        let seen = seen.clone();
        move |request: &mut Request<Body<'_>>| {
            seen.note(request);
            Response::new("not read")
        }
    });
    let inner = get("/smuggled");
    // All there, with and without chunks.
    let mut client = Client::to(&handle);
    client.send(post("/small", &inner));
    assert!(!client.answer().closes());
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    client.send(post_chunks("/chunks") + &chunk);
    assert!(!client.answer().closes());
    client.get("/after").is(200, "not read");
    // Larger than what is collected: answered before the rest is there, and closed.
    let mut client = Client::to(&handle);
    client.send(post_head("/large", 10 << 20));
    client.send(inner.repeat(100));
    let answer = client.answer();
    answer.is(200, "not read");
    assert!(answer.closes());
    client.ends();
    // In chunks of which nobody knows how many there are.
    let mut client = Client::to(&handle);
    let chunk = format!("{:x}\r\n{}\r\n", 40_000, &inner.repeat(1100)[..40_000]);
    client.send(post_chunks("/endless") + &chunk + &chunk);
    client.answer().is(200, "not read");
    let _ = client.stream.write_all(chunk.repeat(3).as_bytes());
    client.is_over();
    assert_eq!(
        seen.all(),
        ["/small", "/chunks", "/after", "/large", "/endless"]
    );
    stop(&handle);
}

/// What remains of a body after the answer has left is skipped without a worker.
#[test]
fn the_rest_of_a_body_is_skipped_while_parked() {
    let seen = Seen::default();
    let handle = serve_streaming(server().workers(1), {
        let seen = seen.clone();
        move |request: &mut Request<Body<'_>>| {
            seen.note(request);
            // Of the large one so much that the rest is worth skipping.
            let mut begin = [0; 2000];
            let _ = request.body_mut().read_exact(&mut begin);
            Response::new(String::from_utf8_lossy(&begin[..5]).into_owned())
        }
    });
    // Just more than is collected, so that the handler is called before all of it is there.
    let length = 65 * 1024;
    let inner = get("/smuggled");
    let body = format!("begin{}", inner.repeat(length / inner.len() + 1));
    let (first, rest) = body.as_bytes()[..length].split_at(2500);
    let mut client = Client::to(&handle);
    client.send(post_head("/part", length));
    client.send(first);
    let answer = client.answer();
    answer.is(200, "begin");
    assert!(!answer.closes());
    let mut other = Client::to(&handle);
    other.get("/other").is(200, "\0\0\0\0\0");
    client.send(rest);
    client.send(get("/after"));
    client.answer().is(200, "\0\0\0\0\0");
    assert_eq!(seen.all(), ["/part", "/other", "/after"]);
    stop(&handle);
}

#[test]
fn a_body_that_ends_early_is_a_bad_request() {
    let handle = serve(server(), answer);
    for (length, sent) in [(100, 10), (100_000, 10), (100_000, 70_000)] {
        let mut client = Client::to(&handle);
        client.send(post_head("/echo", length));
        client.send("x".repeat(sent));
        client.finish();
        assert_eq!(client.answer().status, 400, "{sent} of {length}");
        client.ends();
    }
    stop(&handle);
}

/// What goes wrong behind the part that is collected is found while the handler reads, and ends the connection.
#[test]
fn a_malformed_body_is_a_bad_request_wherever_it_is() {
    let seen = Seen::default();
    let handle = serve(server(), {
        let seen = seen.clone();
        move |request: &mut Request<Body<'_>>| {
            seen.note(request);
            answer(request)
        }
    });
    let chunk = format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000));
    for count in [0, 1, 2, 3] {
        let mut client = Client::to(&handle);
        let all = post_chunks("/echo") + &chunk.repeat(count) + "1\r\nxy\r\n0\r\n\r\n";
        client.send(all + &get("/smuggled"));
        assert_eq!(client.answer().status, 400, "{count}");
        client.ends();
    }
    assert!(!seen.all().contains(&"/smuggled".to_owned()));
    stop(&handle);
}

// ---- responses ----

#[test]
fn streams_are_chunked_or_end_with_the_connection() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    let answer = client.get("/stream");
    answer.is(200, "onetwothree");
    assert_eq!(answer.chunks, Some(vec![3, 3, 5]));
    client.get("/next").is(200, "/next");
    for field in ["", "Connection: keep-alive\r\n"] {
        let mut client = Client::to(&handle);
        client.send(format!("GET /stream HTTP/1.0\r\n{field}\r\n"));
        let answer = client.answer();
        answer.is(200, "onetwothree");
        assert!(answer.closes() && answer.chunks.is_none());
        assert_eq!(answer.field("transfer-encoding"), None);
        client.ends();
    }
    stop(&handle);
}

#[test]
fn head_is_get_without_the_body() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    for target in ["/some", "/stream"] {
        let same = |answer: Answer| {
            let fields = answer.fields.into_iter();
            (
                answer.status,
                fields.filter(|field| field.0 != "date").collect::<Vec<_>>(),
            )
        };
        let expected = same(client.get(target));
        client.send(format!("HEAD {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(same(client.answer_to_head()), expected);
        client.get("/next").is(200, "/next");
    }
    stop(&handle);
}

/// Also where the service itself answers.
#[test]
fn what_is_answered_to_head_has_no_body() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        match request.uri().path() {
            "/fault" => status(101, "an answer that cannot be"),
            _ => answer(request),
        }
    });
    let host = "Host: test\r\n";
    for (rest, code) in [
        (format!("/panic HTTP/1.1\r\n{host}\r\n"), 500),
        (format!("/fault HTTP/1.1\r\n{host}\r\n"), 500),
        ("/no-host HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("/bad HTTP/1.1\r\n{host}B@d : x\r\n\r\n"), 400),
        (format!("/ HTTP/3.0\r\n{host}\r\n"), 505),
        (format!("/{} HTTP/1.1\r\n{host}\r\n", "x".repeat(9000)), 414),
        (
            format!("/echo HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
            400,
        ),
    ] {
        let mut client = Client::to(&handle);
        client.send(format!("\r\nHEAD {rest}"));
        let answer = client.answer_to_head();
        assert_eq!(answer.status, code, "{rest:.50}");
        assert_ne!(answer.field("content-length"), Some("0"), "{rest:.50}");
        assert!(answer.closes());
        client.ends();
    }
    stop(&handle);
}

/// Some responses have no body, whatever the handler gave them.
#[test]
fn some_statuses_have_no_body() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let code = request.uri().path()[1..].parse().unwrap();
        match request.uri().query() {
            Some("stream") => status(code, Reply::stream(&b"a body"[..])),
            _ => status(code, "a body"),
        }
    });
    let mut client = Client::to(&handle);
    for code in [200, 204, 205, 304, 404, 500, 599, 999] {
        for query in ["", "?stream"] {
            let answer = client.get(&format!("/{code}{query}"));
            let body = if matches!(code, 204 | 205 | 304) {
                ""
            } else {
                "a body"
            };
            answer.is(code, body);
            if code == 205 {
                assert_eq!(answer.field("content-length"), Some("0"));
            }
        }
    }
    // An interim response is not one to a request.
    for code in [100, 101, 103] {
        let mut client = Client::to(&handle);
        assert_eq!(client.get(&format!("/{code}")).status, 500);
        client.ends();
    }
    stop(&handle);
}

#[test]
fn every_answer_is_dated() {
    let handle = serve(server(), answer);
    let mut client = Client::to(&handle);
    let before = SystemTime::now() - Duration::from_secs(2);
    client.send(get("/good") + "bad\r\n\r\n");
    for _ in 0..2 {
        let answer = client.answer();
        let date = answer.field("date").expect("a date");
        assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
        let date = httpdate::parse_http_date(date).unwrap();
        assert!(date >= before && date <= SystemTime::now() + Duration::from_secs(1));
    }
    stop(&handle);
}

/// The fields that frame a message are the service's.
#[test]
fn handlers_cannot_misframe_their_answers() {
    let handle = serve(server(), |_| {
        let mut response = Response::new("five!");
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_LENGTH, 99.into());
        let chunked = header::HeaderValue::from_static("chunked");
        fields.insert(header::TRANSFER_ENCODING, chunked);
        response
    });
    let mut client = Client::to(&handle);
    for _ in 0..2 {
        client.get("/").is(200, "five!");
    }
    stop(&handle);
}

#[test]
fn bodies_of_every_kind_arrive_whole() {
    const SIZE: usize = 3 << 20;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes_at(0, SIZE)).unwrap();
    let handle = serve(server(), move |request: &mut Request<Body<'_>>| {
        Response::new(match request.uri().path() {
            "/sized" => Reply::sized(Pattern::of(SIZE), SIZE as u64),
            "/stream" => Reply::stream(Pattern::of(SIZE)),
            "/bytes" => bytes_at(0, SIZE).into(),
            "/file" => {
                // The position is shared by the copies.
                let mut copy = file.try_clone().unwrap();
                copy.seek(SeekFrom::Start(0)).unwrap();
                copy.into()
            }
            "/part" => {
                let mut copy = file.try_clone().unwrap();
                copy.seek(SeekFrom::Start(SIZE as u64 - 7)).unwrap();
                copy.into()
            }
            _ => File::open("/").unwrap().into(),
        })
    });
    for version in ["1.0", "1.1"] {
        for target in ["/sized", "/stream", "/bytes", "/file"] {
            let mut client = Client::to(&handle);
            client.send(format!("GET {target} HTTP/{version}\r\nHost: test\r\n\r\n"));
            let answer = client.answer();
            assert!(
                answer.status == 200 && answer.body == bytes_at(0, SIZE),
                "{target}"
            );
            if version == "1.1" {
                let part = client.get("/part");
                assert_eq!(part.body, bytes_at(SIZE - 7, 7));
            }
        }
    }
    // A directory cannot be sent.
    let mut client = Client::to(&handle);
    assert_eq!(client.get("/directory").status, 500);
    stop(&handle);
}

#[test]
fn large_bodies_arrive_whole() {
    const SIZE: usize = 3 << 20;
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let way = request.uri().path().to_owned();
        let body = request.body_mut();
        let mut place = 0;
        let mut check = |bytes: &[u8]| {
            assert!(bytes == bytes_at(place, bytes.len()), "after {place}");
            place += bytes.len();
            bytes.len()
        };
        match way.as_str() {
            "/read" => {
                // Of many sizes, below and above what goes past the buffer.
                let mut room = vec![0; 100_000];
                for size in (1..).map(|n: usize| n * 7919 % 100_000 + 1) {
                    match body.read(&mut room[..size]).unwrap() {
                        0 => break,
                        count => check(&room[..count]),
                    };
                }
            }
            "/buffer" => loop {
                let bytes = body.fill_buf().unwrap();
                if bytes.is_empty() {
                    break;
                }
                let count = check(bytes);
                body.consume(count);
            },
            _ => {
                let all = body.read_all(SIZE).unwrap();
                check(&all);
            }
        }
        Response::new(place.to_string())
    });
    let body = bytes_at(0, SIZE);
    for way in ["/read", "/buffer", "/all"] {
        let mut client = Client::to(&handle);
        client.send(post(way, &body));
        client.answer().is(200, &SIZE.to_string());
        client.send(post_chunks(way));
        let mut rest = &body[..];
        for size in (1..).map(|n: usize| n * 7919 % 70_000 + 1) {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            rest = behind;
            client.send(format!("{:x}\r\n", piece.len()));
            client.send([piece, b"\r\n"].concat());
            if piece.is_empty() {
                break;
            }
        }
        client.answer().is(200, &SIZE.to_string());
    }
    stop(&handle);
}

/// Both at the same time: what the handler reads is what it answers with, and more than all buffers take.
#[test]
fn a_handler_can_be_answered_while_it_reads() {
    const SIZE: usize = 8 << 20;
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let mut all = Vec::new();
        request.body_mut().read_to_end(&mut all).unwrap();
        Response::new(Reply::sized(io::Cursor::new(all), SIZE as u64))
    });
    let mut client = Client::to(&handle);
    let mut sender = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for _ in 0..2 {
            sender.write_all(&post("/", bytes_at(0, SIZE))).unwrap();
        }
    });
    for _ in 0..2 {
        assert!(client.answer().body == bytes_at(0, SIZE));
    }
    sending.join().unwrap();
    stop(&handle);
}

// ---- ends ----

#[test]
fn clients_that_have_said_all_get_their_answers() {
    let (keeper, guarded) = door();
    let handle = serve(server(), move |request: &mut Request<Body<'_>>| {
        if request.uri().path() == "/door" {
            guarded.pass();
        }
        answer(request)
    });
    let mut client = Client::to(&handle);
    client.send(get("/a") + &get("/b") + &get("/stream"));
    client.finish();
    for text in ["/a", "/b", "onetwothree"] {
        client.answer().is(200, text);
    }
    client.ends();
    // Its end comes with a body, or while the handler runs.
    let mut client = Client::to(&handle);
    client.send(post("/echo", "hello"));
    client.finish();
    client.answer().is(200, "hello");
    client.ends();
    let mut client = Client::to(&handle);
    client.send(get("/door") + &get("/last"));
    keeper.wait();
    client.finish();
    keeper.let_one_in();
    client.answer().is(200, "/door");
    client.answer().is(200, "/last");
    client.ends();
    // Nothing at all is no request, and a part of one is a bad one.
    let mut client = Client::to(&handle);
    client.finish();
    client.ends();
    let mut client = Client::to(&handle);
    client.send("GET / HTTP/1.1\r\nHo");
    client.finish();
    assert_eq!(client.answer().status, 400);
    client.ends();
    stop(&handle);
}

#[test]
fn a_stop_answers_what_was_asked_and_says_that_it_is_the_last() {
    let (keeper, guarded) = door();
    let handle = serve(server().workers(2), move |_| {
        guarded.pass();
        Response::new("answered")
    });
    let mut idle = Client::to(&handle);
    until(&handle, "one is parked", |stats| stats.parked == 1);
    let mut one = Client::to(&handle);
    one.send(get("/"));
    keeper.wait();
    let mut two = Client::to(&handle);
    two.send(get("/1") + &get("/2"));
    keeper.wait();
    handle.stop(LIMIT);
    idle.ends();
    keeper.let_one_in();
    keeper.let_one_in();
    keeper.wait();
    keeper.let_one_in();
    let answer = one.answer();
    answer.is(200, "answered");
    assert!(answer.closes());
    one.ends();
    assert!(!two.answer().closes());
    assert!(two.answer().closes());
    two.ends();
    assert!(handle.join().is_clean());
}

/// A request that has begun when the stop comes is answered too.
#[test]
fn a_stop_waits_for_a_request_that_has_begun() {
    let handle = serve(server(), answer);
    let mut head = Client::to(&handle);
    head.send("GET /he");
    let mut body = Client::to(&handle);
    body.send(post_head("/echo", 5) + "he");
    until(&handle, "both are parked", |stats| {
        stats.parked == 2 && stats.served >= 2
    });
    let mut idle = Client::to(&handle);
    idle.get("/").is(200, "/");
    handle.stop(LIMIT);
    idle.ends();
    head.send("ad HTTP/1.1\r\nHost: test\r\n\r\n");
    let answer = head.answer();
    answer.is(200, "/head");
    assert!(answer.closes());
    head.ends();
    body.send("llo");
    let answer = body.answer();
    answer.is(200, "hello");
    assert!(answer.closes());
    body.ends();
    assert!(handle.join().is_clean());
}

/// A close with unread input would be a reset, which may take the answer with it.
#[test]
fn the_last_answer_arrives_though_input_is_unread() {
    let seen = Seen::default();
    let handle = serve_streaming(server(), {
        let seen = seen.clone();
        move |request: &mut Request<Body<'_>>| {
            seen.note(request);
            answer(request)
        }
    });
    // A socket call of wine is an exchange with another process, which takes long on a busy machine. The server
    // lingers for 2 s, and under wine a reset takes an answer with it that has arrived.
    let length = match wine_cannot("take 200 kB while the server lingers") {
        true => 20_000,
        false => 200_000,
    };
    let unread = get("/smuggled").repeat(6000);
    let unread = &unread[..length];
    for (head, code) in [
        (
            "GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".to_owned(),
            200,
        ),
        ("GET /bad HTTP/1.1\r\n\r\n".to_owned(), 400),
        (post_head("/noread", 10 << 20), 200),
        (post_head("/panic", length - 10_000), 500),
        (post_head("/panic", 10), 500),
        (get("/panic"), 500),
    ] {
        for _ in 0..10 {
            let mut client = Client::to(&handle);
            // In one write: a server that has read the head of a last message and nothing after it may close at
            // once, because such a client sends nothing more (RFC 9112, section 9.6). What the server does not wait
            // for may be refused, but the answer must come.
            let _ = client.stream.write_all((head.clone() + unread).as_bytes());
            let _ = client.stream.shutdown(Shutdown::Write);
            let answer = client
                .answer_or_error()
                .unwrap_or_else(|error| panic!("{error} instead of the answer to {head:?}"));
            assert_eq!(answer.status, code, "{head}");
            assert!(answer.closes());
            client.is_over();
        }
    }
    assert!(!seen.all().contains(&"/smuggled".to_owned()));
    stop(&handle);
}

/// Nor does the answer get lost when the input comes only after it, however much it is.
#[test]
fn the_last_answer_arrives_though_input_comes_after_it() {
    const BODY: usize = 10 << 20;
    let service = http::service(answer).max_body(BODY as u64);
    let service = service.stream_body_if(|_| true);
    let handle = start(server().read_timeout(Duration::from_millis(50)), service);
    for (head, code) in [
        (post_head("/noread", BODY), 200),
        (post_head("/noread", BODY + 1), 413),
        (post_head("/panic", BODY), 500),
        ("POST /bad HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "POST /noread HTTP/1.1\r\nHost: test\r\nConnection: close\r\nExpect: 100-continue\r\n\
             Content-Length: 10\r\n\r\n"
                .to_owned(),
            200,
        ),
        (post_chunks("/echo") + "what is no chunk", 400),
        (post_head("/echo", BODY), 408),
        ("POST /late HTTP/1.1\r\nHost: te".to_owned(), 408),
    ] {
        let in_time = (0..10).any(|_| {
            let before = handle.stats().bytes_out;
            let mut client = Client::to(&handle);
            client.send(&head);
            until(&handle, "it is answered and parked, or gone", |stats| {
                stats.bytes_out > before && (stats.parked == 1 || stats.live == 0)
            });
            let start = Instant::now();
            let sent = client.stream.write_all(&vec![b'x'; BODY]);
            // The server puts up with it for two seconds.
            if start.elapsed() > Duration::from_secs(1) {
                return false;
            }
            sent.unwrap_or_else(|error| panic!("{error} while sending after {head:?}"));
            client.finish();
            let answer = client.answer();
            assert_eq!(answer.status, code, "{head}");
            assert!(answer.closes());
            client.ends();
            until(&handle, "it is gone", |stats| stats.live == 0);
            true
        });
        assert!(in_time, "this machine stands still all the time");
    }
    stop(&handle);
}

// ---- other protocols ----

#[test]
fn an_upgrade_gives_the_connection_away() {
    let handle = serve_streaming(server().workers(1), |request: &mut Request<Body<'_>>| {
        if *request.method() == Method::CONNECT {
            return Response::new(Reply::upgrade(lines));
        }
        let mut response = status(101, Reply::upgrade(lines));
        let protocol = header::HeaderValue::from_static("lines");
        response.headers_mut().insert(header::UPGRADE, protocol);
        response
    });
    let upgrade = "GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n";
    let connect = "CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n";
    for (head, code) in [(upgrade, 101), (connect, 200)] {
        let mut client = Client::to(&handle);
        client.send(format!("{head}early\n"));
        let answer = client.head();
        assert_eq!(answer.status, code);
        if code == 101 {
            assert_eq!(answer.field("connection"), Some("Upgrade"));
            assert_eq!(answer.field("upgrade"), Some("lines"));
        }
        assert_eq!(answer.field("content-length"), None);
        assert_eq!(answer.field("transfer-encoding"), None);
        assert_eq!(client.stream_line(), "early");
        client.send("la");
        // It holds no worker while it waits.
        let mut other = Client::to(&handle);
        other.send(connect);
        assert_eq!(other.head().status, 200);
        client.send("te\n");
        assert_eq!(client.stream_line(), "late");
        // What looks like a request is none any more.
        client.send("GET / HTTP/1.1\r\n");
        assert_eq!(client.stream_line(), "GET / HTTP/1.1");
        client.finish();
        client.ends();
    }
    // It is not for those whose HTTP knows none, or before the body.
    for bad in [
        "GET / HTTP/1.0\r\nUpgrade: lines\r\n\r\n".to_owned(),
        format!("{}x", post_head("/", 80_000)),
    ] {
        let mut client = Client::to(&handle);
        client.send(bad);
        assert_eq!(client.answer().status, 500);
        client.is_over();
    }
    stop(&handle);
}

/// A response that is no upgrade may say what can be upgraded to (RFC 9110, section 15.5.22).
#[test]
fn an_upgrade_can_be_offered() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        let mut response = status(426, "not without an upgrade");
        let fields = response.headers_mut();
        fields.insert(header::UPGRADE, header::HeaderValue::from_static("lines"));
        if request.uri().path() == "/last" {
            let close = header::HeaderValue::from_static("close");
            fields.insert(header::CONNECTION, close);
        }
        response
    });
    for (request, said) in [
        ("GET / HTTP/1.1\r\nHost: test", "Upgrade"),
        ("GET /last HTTP/1.1\r\nHost: test", "Upgrade, close"),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive",
            "Upgrade, keep-alive",
        ),
        ("GET / HTTP/1.0", "Upgrade, close"),
    ] {
        let mut client = Client::to(&handle);
        client.send(format!("{request}\r\n\r\n"));
        let answer = client.answer();
        answer.is(426, "not without an upgrade");
        assert_eq!(answer.field("upgrade"), Some("lines"));
        assert_eq!(answer.field("connection"), Some(said), "{request}");
        if said.ends_with("close") {
            client.ends();
        } else {
            client.get("/next").is(426, "not without an upgrade");
        }
    }
    stop(&handle);
}

/// A protocol of lines.
fn lines(conn: &mut handover::Connection) -> io::Result<Next> {
    support::lines(conn)
}

impl Client {
    #[track_caller]
    fn stream_line(&mut self) -> String {
        let line = self.raw_line();
        line.trim_end().to_owned()
    }
}

// ---- what holds no worker ----

/// The only worker is free for others while a client does not read its answer.
#[test]
fn slow_readers_hold_no_worker() {
    let handle = serve(server().workers(1), |request: &mut Request<Body<'_>>| {
        let size = request.uri().path()[1..].parse().unwrap();
        Response::new(bytes_at(0, size))
    });
    let mixed = [8000, 8000, 8000, 8000, 8000, 8000, 8000, 60_000];
    for sizes in [&[100][..], &[2000], &[8000], &[8193], &[60_000], &mixed] {
        let size: usize = sizes.iter().sum();
        let mut slow = Client::on(connect_narrow(addr(&handle)));
        let count = (8 << 20) / size;
        let mut sender = slow.stream.try_clone().unwrap();
        // It has to stop in the middle when the server takes no more requests, so it goes on beside.
        let requests: String = sizes.iter().map(|size| get(&format!("/{size}"))).collect();
        let sending = thread::spawn(move || {
            sender.write_all(requests.repeat(count).as_bytes()).unwrap();
        });
        // All the while, and when the server can do no more for it.
        let mut is_last = false;
        loop {
            let mut good = Client::to(&handle);
            let soon = Some(Duration::from_secs(10));
            good.stream.set_read_timeout(soon).unwrap();
            for _ in 0..20 {
                good.send(get("/10"));
                match good.answer_or_error() {
                    Ok(answer) => assert_eq!(answer.body, bytes_at(0, 10)),
                    Err(error) => panic!("{error} beside {sizes:?}: {:#?}", handle.stats()),
                }
            }
            drop(good);
            let before = until(&handle, "the good one is gone", |stats| stats.live == 1);
            if is_last {
                break;
            }
            is_last = before.bytes_out > 0 && stays(&handle, &before);
        }
        // And nothing is lost.
        for _ in 0..count {
            for size in sizes {
                assert!(slow.answer().body == bytes_at(0, *size));
            }
        }
        sending.join().unwrap();
        drop(slow);
        until(&handle, "all are gone", |stats| stats.live == 0);
    }
    stop(&handle);
}

/// Nor does one that sends a file, as far as the buffer takes it.
#[test]
fn files_for_slow_readers_hold_no_worker() {
    const SIZE: usize = 8 << 20;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes_at(0, SIZE)).unwrap();
    let builder = server().workers(1).output_limit(SIZE);
    let handle = serve(builder, move |request: &mut Request<Body<'_>>| {
        if request.uri().path() == "/small" {
            return Response::new("small".into());
        }
        let mut copy = file.try_clone().unwrap();
        copy.seek(SeekFrom::Start(0)).unwrap();
        Response::new(Reply::from(copy))
    });
    let mut slow = Client::on(connect_narrow(addr(&handle)));
    slow.send(get("/file"));
    until(&handle, "it is being answered", |stats| stats.served > 0);
    let mut good = Client::to(&handle);
    let soon = Some(Duration::from_secs(10));
    good.stream.set_read_timeout(soon).unwrap();
    good.get("/small").is(200, "small");
    assert!(slow.answer().body == bytes_at(0, SIZE));
    slow.get("/small").is(200, "small");
    stop(&handle);
}

/// Is nothing moved for a moment?
fn stays(handle: &Handle, before: &Stats) -> bool {
    let start = Instant::now();
    while start.elapsed() < QUIET {
        let now = handle.stats();
        if (now.bytes_in, now.bytes_out) != (before.bytes_in, before.bytes_out) {
            return false;
        }
        thread::yield_now();
    }
    true
}

#[test]
fn parts_of_requests_hold_no_worker() {
    const CLIENTS: usize = 100;
    let handle = serve(server().workers(1), answer);
    let mut good = Client::to(&handle);
    let mut slow: Vec<Client> = (0..CLIENTS).map(|_| Client::to(&handle)).collect();
    let requests: Vec<Vec<u8>> = (0..CLIENTS)
        .map(|n| match n % 4 {
            0 => get("/slow").into_bytes(),
            1 => post("/echo", "/slow"),
            2 => {
                (post_chunks("/echo") + "2;x=y\r\n/s\r\n3\r\nlow\r\n0\r\nA: b\r\n\r\n").into_bytes()
            }
            _ => post("/slow", "unread"),
        })
        .collect();
    let longest = requests.iter().map(Vec::len).max().unwrap();
    for at in 0..longest {
        for (client, request) in slow.iter_mut().zip(&requests) {
            if let Some(byte) = request.get(at) {
                client.send([*byte]);
            }
        }
        good.get("/good").is(200, "/good");
    }
    for client in &mut slow {
        client.answer().is(200, "/slow");
    }
    stop(&handle);
}

// ---- what goes wrong ----

#[test]
fn a_panic_costs_one_connection() {
    keep_log();
    let handle = serve(server().workers(1), answer);
    for round in 1..=5 {
        let mut client = Client::to(&handle);
        client.send(get("/before") + &get("/panic") + &get("/after"));
        client.answer().is(200, "/before");
        let answer = client.answer();
        assert_eq!(answer.status, 500);
        assert!(answer.closes());
        client.ends();
        until(&handle, "the panic is counted", |stats| {
            stats.panics == round
        });
        let mut other = Client::to(&handle);
        other.get("/other").is(200, "/other");
    }
    stop(&handle);
}

/// A client that does not read has no worker for itself after a panic either. Somewhere among these the panic meets a
/// socket that takes no more: one of the system's, for it takes little, and always the same.
#[cfg(unix)]
#[test]
fn a_panic_waits_for_no_client() {
    let (_dir, path) = support::socket_path();
    let handle = serve(
        server().listen(support::unix(&path)).workers(1),
        |request: &mut Request<Body<'_>>| match request.uri().path() {
            "/long" => Response::new(Reply::from(vec![b'x'; 8000])),
            _ => answer(request),
        },
    );
    let deaf: Vec<_> = (0..80)
        .map(|count| {
            let mut deaf = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let requests = get("/long").repeat(count) + &get("/panic");
            deaf.write_all(requests.as_bytes()).unwrap();
            let mut other = Client::to(&handle);
            let soon = Some(Duration::from_secs(10));
            other.stream.set_read_timeout(soon).unwrap();
            other.get("/other").is(200, "/other");
            deaf
        })
        .collect();
    assert!((1..80).contains(&handle.stats().panics));
    drop(deaf);
    stop(&handle);
}

/// It is counted even if there is nobody any more who could be told.
#[test]
fn a_panic_counts_though_its_client_has_gone() {
    keep_log();
    let (keeper, guarded) = door();
    let handle = serve(server().workers(1), move |_| -> Response<Reply> {
        guarded.pass();
        panic!("after the client has gone");
    });
    let mut client = Client::to(&handle);
    client.send(get("/"));
    keeper.wait();
    reset(client.stream);
    keeper.let_one_in();
    until(&handle, "it is counted", |stats| stats.panics == 1);
    stop(&handle);
}

/// A body that cannot be sent whole shows as such, and no part of it gets to anybody else.
#[test]
fn a_body_that_fails_is_cut_off() {
    struct Fails(usize);
    impl Read for Fails {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = into.len().min(self.0);
            self.0 -= count;
            into[..count].fill(b'f');
            match count {
                0 => Err(io::Error::other("as it should")),
                _ => Ok(count),
            }
        }
    }
    struct Panics;
    impl Read for Panics {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("while the answer is written");
        }
    }
    let handle = serve(server().workers(1), |request: &mut Request<Body<'_>>| {
        Response::new(match request.uri().path() {
            "/short" => Reply::sized(&b"short"[..], 100),
            "/fails" => Reply::sized(Fails(10), 100),
            "/fails-later" => Reply::sized(Fails(100_000), 200_000),
            "/stream" => Reply::stream(Fails(10)),
            "/panics" => Reply::stream(Panics),
            "/panics-sized" => Reply::sized(Panics, 100),
            _ => "fine".into(),
        })
    });
    for target in [
        "/short",
        "/fails",
        "/fails-later",
        "/stream",
        "/panics",
        "/panics-sized",
    ] {
        let mut client = Client::to(&handle);
        client.send(get("/fine") + &get(target) + &get("/after"));
        let mut got = Vec::new();
        if let Err(error) = client.stream.read_to_end(&mut got) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(
            !got.contains("0\r\n\r\n") || target != "/stream",
            "{target} looks whole"
        );
        // An answer that was complete before is not lost, and there is none for what came behind.
        assert_eq!(got.matches("fine").count(), 1, "{target}: {got}");
        let mut other = Client::to(&handle);
        let answer = other.get("/other");
        answer.is(200, "fine");
        other.finish();
        other.ends();
    }
    assert_eq!(handle.stats().panics, 2);
    stop(&handle);
}

/// What a reader gave before it panicked is written as the client reads, and no worker waits for it:
/// neither before the panic nor after it.
#[test]
fn a_slow_reader_gets_what_was_there_before_a_panic() {
    const SIZE: usize = 8 << 20;
    struct Panics;
    impl Read for Panics {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("behind the body");
        }
    }
    let handle = serve(server().workers(1), |request: &mut Request<Body<'_>>| {
        Response::new(match request.uri().path() {
            "/panics" => Reply::sized(Pattern::of(SIZE).chain(Panics), SIZE as u64 + 1),
            _ => "fine".into(),
        })
    });
    let mut slow = Client::on(connect_narrow(addr(&handle)));
    slow.send(get("/fine") + &get("/panics") + &get("/after"));
    until(&handle, "it does not read", |stats| {
        stats.served > 0 && stats.parked == 1
    });
    let mut other = Client::to(&handle);
    let soon = Some(Duration::from_secs(10));
    other.stream.set_read_timeout(soon).unwrap();
    other.get("/other").is(200, "fine");
    slow.answer().is(200, "fine");
    assert_eq!(slow.head().status, 200);
    assert!(slow.rest() == bytes_at(0, SIZE));
    assert_eq!(handle.stats().panics, 1);
    stop(&handle);
}

/// One worker: clients that do not read leave it to others, whatever their responses are. They get
/// every byte when they read, also those of responses that they have pipelined, and also while the
/// server drains.
#[test]
fn slow_readers_of_any_body_hold_no_worker_and_miss_nothing() {
    const SIZE: usize = 6 << 20;
    const TARGETS: [&str; 4] = ["/bytes", "/file", "/sized", "/stream"];
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes_at(0, SIZE)).unwrap();
    let handle = serve(
        server().workers(1),
        move |request: &mut Request<Body<'_>>| {
            Response::new(match request.uri().path() {
                "/bytes" => bytes_at(0, SIZE).into(),
                "/file" => {
                    let mut copy = file.try_clone().unwrap();
                    copy.rewind().unwrap();
                    copy.into()
                }
                "/sized" => Reply::sized(Pattern::of(SIZE), SIZE as u64),
                "/stream" => Reply::stream(Pattern::of(SIZE)),
                _ => "small".into(),
            })
        },
    );
    let mut slow: Vec<Client> = (0..TARGETS.len())
        .map(|first| {
            let mut client = Client::on(connect_narrow(addr(&handle)));
            // A body that no handler wants comes after the first response.
            client.send(post(TARGETS[first], vec![b'x'; 1000]));
            for place in [first + 1, first + 2] {
                client.send(get("/small") + &get(TARGETS[place % TARGETS.len()]));
            }
            client
        })
        .collect();
    let others = TARGETS.len() as u64;
    until(&handle, "they do not read", |stats| {
        stats.served >= others && stats.parked == others
    });
    let mut other = Client::to(&handle);
    other.stream.set_read_timeout(Some(LIMIT / 2)).unwrap();
    other.get("/").is(200, "small");
    drop(other);
    let check = |first: usize, client: &mut Client| {
        assert!(client.answer().body == bytes_at(0, SIZE));
        for place in [first + 1, first + 2] {
            client.answer().is(200, "small");
            let target = TARGETS[place % TARGETS.len()];
            assert!(client.answer().body == bytes_at(0, SIZE), "{target}");
        }
    };
    let mut last = slow.pop().unwrap();
    for (first, mut client) in slow.into_iter().enumerate() {
        check(first, &mut client);
    }
    // A drain lets the responses to what has arrived go on.
    handle.stop(LIMIT);
    check(TARGETS.len() - 1, &mut last);
    last.ends();
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

/// Nothing that was meant for a client that went away gets to the next one.
#[test]
fn answers_never_reach_another_client() {
    let (keeper, guarded) = door();
    let handle = serve(
        server().workers(1),
        move |request: &mut Request<Body<'_>>| {
            if request.uri().path().starts_with("/secret") {
                guarded.pass();
            }
            Response::new(request.uri().path().to_owned())
        },
    );
    for round in 0..20 {
        let mut gone = Client::to(&handle);
        gone.send(get(&format!("/secret{round}")));
        keeper.wait();
        reset(gone.stream);
        keeper.let_one_in();
        let mut other = Client::to(&handle);
        other.get("/other").is(200, "/other");
        other.finish();
        other.ends();
    }
    stop(&handle);
}

#[test]
fn a_handler_that_reads_too_much_gets_an_error_and_answers() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        match request.body_mut().read_all(10) {
            Ok(body) => Response::new(body.into()),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
                status(StatusCode::PAYLOAD_TOO_LARGE.as_u16(), "too much")
            }
        }
    });
    let mut client = Client::to(&handle);
    client.send(post("/", "0123456789"));
    client.answer().is(200, "0123456789");
    client.send(post("/", "0123456789a"));
    client.answer().is(413, "too much");
    client.send(post_chunks("/") + "9\r\n012345678\r\n2\r\n9a\r\n0\r\n\r\n");
    client.answer().is(413, "too much");
    client.send(post("/", "next"));
    client.answer().is(200, "next");
    client.stream.shutdown(Shutdown::Both).unwrap();
    stop(&handle);
}
