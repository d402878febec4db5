//! HTTP handlers: with the worker's state, with errors, with responses of the application in place of the service's own,
//! and with connections that are given away.
#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::panic::panic_any;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use handover::http::{self, Body, Reply, Request, Response, StatusCode, header};
use handover::{Handle, Next};

use support::{addr, answer, connect, keep_log, server, start, stop, until, wait_logged};
use web::{Answer, Client, get, post, status};

#[test]
fn a_handler_has_the_state_of_its_worker_and_a_new_one_after_a_panic() {
    static BUILT: AtomicUsize = AtomicUsize::new(0);
    let worker = |index| Ok((index, BUILT.fetch_add(1, SeqCst), 0));
    let service = http::service_with(
        worker,
        |request, (index, built, calls): &mut (_, _, usize)| {
            *calls += 1;
            if request.uri().path() == "/panic" {
                panic_any("on purpose");
            }
            Response::new(format!("{index} {built} {calls}"))
        },
    );
    let handle = start(server().workers(1), service);
    let mut client = Client::to(&handle);
    for expected in ["0 0 1", "0 0 2"] {
        assert_eq!(ask(&mut client, get("/")).text(), expected);
    }
    assert_eq!(ask(&mut client, get("/panic")).status, 500);
    let mut client = Client::to(&handle);
    assert_eq!(ask(&mut client, get("/")).text(), "0 1 1");
    stop(&handle);
}

/// The error's text is for the log, and the connection stays open.
#[test]
fn an_error_of_a_handler_is_a_500_and_is_counted_and_logged() {
    keep_log();
    fn half(request: &mut Request<Body<'_>>) -> Result<Response<String>, Box<dyn Error>> {
        let number: i32 = request
            .uri()
            .query()
            .ok_or("no number was given")?
            .parse()?;
        Ok(Response::new(format!("{}", number / 2)))
    }
    let handle = start(server(), http::service(half));
    let mut client = Client::to(&handle);
    assert_eq!(ask(&mut client, get("/?8")).text(), "4");
    for (target, text) in [
        ("/", "no number was given"),
        ("/?x", "invalid digit found in string"),
    ] {
        let got = ask(&mut client, get(target));
        assert_eq!(
            (got.status, got.text()),
            (500, "Internal Server Error: the handler failed\n")
        );
        let record = wait_logged(&format!("the handler failed: {text}"));
        assert_eq!(record.level, log::Level::Warn);
    }
    assert_eq!(ask(&mut client, get("/?10")).text(), "5");
    until(&handle, "both are counted", |stats| {
        stats.service_errors == 2
    });
    stop(&handle);
}

fn ask(client: &mut Client, request: impl AsRef<[u8]>) -> Answer {
    client.send(request);
    client.answer()
}

/// A service whose own responses are JSON, with a field for the request's origin.
fn in_json(
    handle: impl Fn(&mut Request<Body<'_>>) -> Response<Reply> + Send + Sync + 'static,
) -> Handle {
    let service = http::service(handle)
        .max_body(1000)
        .error_response(|rejection, head| {
            let origin = head.and_then(|head| head.headers.get(header::ORIGIN));
            let origin = origin.map_or("none".as_bytes(), |value| value.as_bytes());
            Response::builder()
                .status(rejection.status())
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)
                .body(format!("[\"{}\"]", rejection.detail()))
                .unwrap()
        });
    start(server().read_timeout(Duration::from_millis(300)), service)
}

#[test]
fn the_application_shapes_the_responses_of_the_service() {
    let handle = in_json(|request| match request.uri().path() {
        "/panic" => panic_any("on purpose"),
        "/invalid" => status(103, ()),
        "/late" => {
            let (responder, reply) = Reply::later(Duration::from_millis(1));
            std::mem::forget(responder);
            Response::new(reply)
        }
        "/dropped" => {
            let (responder, reply) = Reply::later(Duration::MAX);
            drop(responder);
            Response::new(reply)
        }
        _ => status(200, "fine"),
    });
    let with_origin =
        |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\nOrigin: me\r\n\r\n");
    let large = "POST / HTTP/1.1\r\nHost: x\r\nOrigin: me\r\nContent-Length: 1001\r\n\r\n";
    for (request, code, origin, detail) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "none", "Host"),
        (large.to_owned(), 413, "me", "the body is too large"),
        (
            format!("GET / HTTP/1.1\r\nHost: {}", "x".repeat(20_000)),
            431,
            "none",
            "head",
        ),
        ("GET / HTTP/1.1\r\nHost:".to_owned(), 408, "none", "in time"),
        (with_origin("/panic"), 500, "none", "the handler panicked"),
        (
            with_origin("/invalid"),
            500,
            "none",
            "the handler's response is not valid here",
        ),
        (with_origin("/late"), 503, "none", "no response in time"),
        (with_origin("/dropped"), 500, "none", "no response"),
    ] {
        let mut client = Client::to(&handle);
        let got = ask(&mut client, &*request);
        assert_eq!(got.status, code, "{request}: {got:?}");
        assert_eq!(
            got.field("content-type"),
            Some("application/json"),
            "{request}"
        );
        assert_eq!(
            got.field("access-control-allow-origin"),
            Some(origin),
            "{request}"
        );
        assert!(got.text().contains(detail), "{request}: {got:?}");
    }
    stop(&handle);
}

/// What the function cannot make, the service does.
#[test]
fn a_shape_that_fails_is_replaced_by_the_default() {
    let service = http::service(|_| Response::new("fine")).error_response(|rejection, _| {
        match rejection.status().as_u16() {
            400 => panic_any("on purpose"),
            413 => status(204, "x"),
            _ => Response::new(Reply::stream(std::io::empty())),
        }
    });
    let handle = start(server(), service.max_body(10).max_fields(1));
    let two = "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n"
        .as_bytes()
        .to_vec();
    for (request, code) in [(b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400), (two, 431)] {
        let got = ask(&mut Client::to(&handle), request);
        assert_eq!(
            (got.status, got.field("content-type")),
            (code, Some("text/plain; charset=utf-8"))
        );
    }
    stop(&handle);
    let service = http::service(|_| Response::new("fine"))
        .max_body(3)
        .error_response(|_, _| status(204, "x"));
    let handle = start(server(), service);
    assert_eq!(ask(&mut Client::to(&handle), post("/", "four")).status, 413);
    stop(&handle);
}

/// An answer of any status may give its connection away: what the protocol writes is the body, up to the close.
#[test]
fn a_connection_is_given_away_with_any_status() {
    let handle = start(
        server(),
        http::service(|request| {
            let code = request.uri().path()[1..].parse().unwrap();
            let mut response = Response::new(Reply::upgrade(|conn| {
                if conn.buffer().is_empty() && !conn.at_eof() {
                    writeln!(conn, "hello")?;
                    return Ok(Next::Park);
                }
                let bytes = conn.buffer().to_vec();
                conn.write_all(&bytes)?;
                conn.consume(bytes.len());
                Ok(if bytes.ends_with(b"end\n") {
                    Next::Close
                } else {
                    Next::Park
                })
            }));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        }),
    );
    for (code, version) in [(200, "1.1"), (200, "1.0"), (404, "1.1"), (426, "1.1")] {
        let mut client = connect(addr(&handle));
        write!(client, "GET /{code} HTTP/{version}\r\nHost: x\r\n\r\n").unwrap();
        let status_line = answer(&mut client);
        assert!(
            status_line.starts_with(&format!("HTTP/1.1 {code} ")),
            "{status_line}"
        );
        let mut fields = Vec::new();
        loop {
            match answer(&mut client).trim_end() {
                "" => break,
                field => fields.push(field.to_owned()),
            }
        }
        assert!(
            fields.contains(&"Connection: close".to_owned()),
            "{fields:?}"
        );
        assert!(
            !fields
                .iter()
                .any(|field| field.contains("Length") || field.contains("Encoding"))
        );
        assert_eq!(answer(&mut client), "hello");
        client.write_all(b"one\n").unwrap();
        assert_eq!(answer(&mut client), "one");
        client.write_all(b"end\n").unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "end\n");
    }
    // To HEAD, there is the head only. A status without a body has no room for a protocol.
    for (method, code, expected) in [("HEAD", 200, 200), ("GET", 204, 500), ("GET", 100, 500)] {
        let mut client = connect(addr(&handle));
        write!(client, "{method} /{code} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap_or_default();
        assert!(all.starts_with(&format!("HTTP/1.1 {expected} ")), "{all}");
        assert!(!all.contains("hello"), "{all}");
        if expected == 500 {
            continue;
        }
        assert!(all.ends_with("Connection: close\r\n\r\n"), "{all}");
    }
    stop(&handle);
}
