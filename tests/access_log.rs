//! The access log: a line for each answer, that nothing a client sends can be mistaken for.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use handover::http::{self, AccessLog, Body, Request, Response};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;

use support::{keep_log, logged, server, start, stop};
use web::Client;

/// The log is that of the process: one test at a time has it.
fn only_test() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    keep_log();
    ONE.lock()
}

/// What is logged of these requests, of one connection each, with their status.
fn lines(format: Option<AccessLog>, requests: &[(&[u8], u16)]) -> Vec<String> {
    let access_lines = || {
        let lines = logged("").into_iter();
        let lines = lines.filter(|line| line.target == "handover::access");
        lines.map(|line| line.text).collect::<Vec<_>>()
    };
    let before = access_lines().len();
    let answer = |request: &mut Request<Body<'_>>| Response::new(request.uri().path().to_owned());
    let handle = start(server(), http::service(answer).access_log(format));
    for (request, status) in requests {
        let mut client = Client::to(&handle);
        client.send(request);
        assert_eq!(client.answer().status, *status);
    }
    stop(&handle);
    access_lines().split_off(before)
}

/// A line without what differs from run to run: the time, and the two numbers of milliseconds.
fn without_times(line: &str) -> String {
    let (before, rest) = line.split_once('[').unwrap();
    let (time, rest) = rest.split_once(']').unwrap();
    let time: Vec<_> = time.split(['/', ':', ' ']).collect();
    assert!(time.len() == 7 && time[6] == "+0000", "{line}");
    let (rest, waited) = rest.rsplit_once(' ').unwrap();
    let (rest, handled) = rest.rsplit_once(' ').unwrap();
    assert!(
        waited.parse::<u64>().is_ok() && handled.parse::<u64>().is_ok(),
        "{line}"
    );
    format!("{before}[]{rest}")
}

const GOOD: &[u8] =
    b"GET /a?b=c HTTP/1.1\r\nHost: test\r\nReferer: http://from/\r\nUser-Agent: curl/8.5.0\r\n\r\n";

/// What could end a field or a line early, write to a terminal, or is a secret.
const BAD: &[u8] = b"GET http://user:secret@test/%0a\" HTTP/1.1\r\nHost: test\r\n\
    Referer: http://me:secret@from/\r\n\
    User-Agent: a\" 200 1 \\\" \x1b[31m \xc2\x9b \xff\r\n\r\n";

#[test]
fn a_line_of_the_combined_format_has_its_fields() {
    let _guard = only_test();
    let plain = b"GET / HTTP/1.0\r\n\r\n";
    let requests = [(GOOD, 200), (plain, 200), (b"nonsense \"\r\n\r\n", 400)];
    let found = lines(Some(AccessLog::Combined), &requests);
    let found: Vec<_> = found.iter().map(|line| without_times(line)).collect();
    assert_eq!(
        found,
        [
            r#"127.0.0.1 - - [] "GET /a?b=c HTTP/1.1" 200 2 "http://from/" "curl/8.5.0""#,
            r#"127.0.0.1 - - [] "GET / HTTP/1.0" 200 1 "-" "-""#,
            r#"127.0.0.1 - - [] "-" 400 0 "-" "-""#,
        ]
    );
}

#[test]
fn what_a_client_sends_is_escaped() {
    let _guard = only_test();
    // The parser takes no escape character, wherever it stands, and neither CR nor LF in a value.
    let without_escape: Vec<u8> = BAD.iter().copied().filter(|byte| *byte != 0x1b).collect();
    let split = b"GET / HTTP/1.1\r\nHost: test\r\nUser-Agent: a\rb\r\n\r\n";
    let found = lines(
        Some(AccessLog::Combined),
        &[(BAD, 400), (&without_escape, 200), (split, 400)],
    );
    let found: Vec<_> = found.iter().map(|line| without_times(line)).collect();
    assert_eq!(
        found,
        [
            r#"127.0.0.1 - - [] "-" 400 0 "-" "-""#,
            concat!(
                r#"127.0.0.1 - - [] "GET http://test/%0a\x22 HTTP/1.1" 200 5 "http://from/" "#,
                r#""a\x22 200 1 \x5C\x22 [31m \xC2\x9B \xFF""#
            ),
            r#"127.0.0.1 - - [] "-" 400 0 "-" "-""#,
        ]
    );
}

#[test]
fn a_line_of_json_is_one_object() {
    let _guard = only_test();
    let bad: Vec<u8> = BAD.iter().copied().filter(|byte| *byte != 0x1b).collect();
    let requests = [(GOOD, 200), (&*bad, 200), (b"nonsense\r\n\r\n", 400)];
    let found = lines(Some(AccessLog::Json), &requests);
    assert!(
        found
            .iter()
            .all(|line| line.bytes().all(|byte| matches!(byte, b' '..=b'~')))
    );
    let found: Vec<Value> = found
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [good, bad, none] = &found[..] else {
        panic!("{found:?}");
    };
    for (name, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("target", "/a?b=c"),
        ("version", "HTTP/1.1"),
        ("host", "test"),
        ("referer", "http://from/"),
        ("user_agent", "curl/8.5.0"),
    ] {
        assert_eq!(good[name], value, "{good}");
    }
    assert_eq!(
        (&good["status"], &good["body_bytes"]),
        (&200.into(), &2.into())
    );
    for name in ["port", "handled_ms", "waited_ms"] {
        assert!(good[name].is_u64(), "{name}: {good}");
    }
    assert_eq!(bad["target"], "http://test/%0a\"");
    assert_eq!(bad["referer"], "http://from/");
    assert_eq!(bad["user_agent"], "a\" 200 1 \\\" [31m \u{9b} \u{fffd}");
    assert!(
        none["method"].is_null() && none["target"].is_null(),
        "{none}"
    );
    assert_eq!(none["status"], 400);
}

#[test]
fn nothing_is_logged_without_a_format() {
    let _guard = only_test();
    assert_eq!(lines(None, &[(GOOD, 200)]), [""; 0]);
}
