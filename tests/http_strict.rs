//! What two servers in a chain could understand differently is refused, and nothing behind it is ever a request. And
//! what is answered depends on the bytes alone, not on how they were split on their way.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use handover::Handle;
use handover::http::{self, Body, Reply, Request, Response};

use support::{addr, connect, eventually, server, start, stop, wine_cannot};
use web::{Client, Seen, get, serve};

/// What must not become a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";

/// A server that shows its requests, and the targets of them.
fn noting() -> (Handle, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let handle = serve(server(), move |request: &mut Request<Body<'_>>| {
        noted.note(request);
        let Ok(body) = request.body_mut().read_all(1 << 20) else {
            return Response::new(Reply::empty());
        };
        Response::new(Reply::from(body))
    });
    (handle, seen)
}

/// Asserts that this is refused, with each of these requests behind it.
#[track_caller]
fn assert_refused(cases: &[(&[u8], u16)]) {
    let (handle, seen) = noting();
    for (request, status) in cases {
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]).into_owned();
        let mut client = Client::to(&handle);
        client.send([request, SMUGGLED.as_bytes(), SMUGGLED.as_bytes()].concat());
        let answer = client.answer();
        assert_eq!(answer.status, *status, "{shown:?}: {answer:?}");
        assert!(answer.closes(), "{shown:?}");
        assert!(answer.field("date").is_some());
        client.ends();
        // Behind a good request it is the same.
        let mut client = Client::to(&handle);
        client.send([get("/good").as_bytes(), request, SMUGGLED.as_bytes()].concat());
        assert_eq!(client.answer().status, 200, "{shown:?}");
        assert_eq!(client.answer().status, *status, "{shown:?}");
        client.ends();
    }
    let seen = seen.all();
    assert!(seen.iter().all(|target| target == "/good"), "{seen:?}");
    stop(&handle);
}

/// Asserts that this is refused as a bad request.
#[track_caller]
fn assert_bad<T: AsRef<[u8]>>(requests: impl IntoIterator<Item = T>) {
    let requests: Vec<T> = requests.into_iter().collect();
    let cases: Vec<_> = requests
        .iter()
        .map(|request| (request.as_ref(), 400))
        .collect();
    assert_refused(&cases);
}

/// A POST with these fields, and a body that both framings would give an end.
fn post_with(fields: &str) -> String {
    format!("POST /bad HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n")
}

/// A GET with these lines after the request line, each as it is.
fn lines(lines: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET /bad HTTP/1.1\r\n", lines.as_ref(), b"\r\n\r\n"].concat()
}

// ---- where a message ends ----

#[test]
fn two_framings_are_refused() {
    assert_bad([
        post_with("Content-Length: 5\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        post_with("Transfer-Encoding: chunked\r\nContent-Length: 5") + "0\r\n\r\n",
        post_with("Content-Length: 0\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        post_with("content-length: 5\r\nX: y\r\ntransfer-encoding: CHUNKED") + "0\r\n\r\n",
        post_with("Content-Length: 5\r\nTransfer-Encoding: identity") + "hello",
        "POST /bad HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_owned(),
        "POST /bad HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
    ]);
}

#[test]
fn malformed_lengths_are_refused() {
    assert_bad(
        [
            "+5",
            "-1",
            "-0",
            "0x5",
            "5 5",
            "5,5",
            "5, 5",
            "5, 6",
            ",5",
            "5,",
            "",
            " ",
            "five",
            "5.0",
            "5e0",
            "1_0",
            "5;",
            "\"5\"",
            "٥",
            "5\u{a0}",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709551621",
            "99999999999999999999999999",
            "00000000000000000000000000000000005",
        ]
        .map(|length| post_with(&format!("Content-Length: {length}")) + "hello"),
    );
    assert_bad([
        post_with("Content-Length: 5\r\nContent-Length: 6") + "hello",
        post_with("Content-Length: 5\r\nContent-Length: 5") + "hello",
        post_with("Content-Length: 5\r\ncontent-length: 0") + "hello",
        post_with("Content-Length: \r\nContent-Length: 5") + "hello",
        post_with("Content-Length : 5") + "hello",
        post_with("Content-Length\t: 5") + "hello",
        post_with("Content-Length:\u{b}5") + "hello",
        post_with("Content-Length: 5\u{c}") + "hello",
        post_with("Content-Length: \r\n 5") + "hello",
    ]);
}

#[test]
fn codings_other_than_a_last_chunked_are_refused() {
    assert_bad(
        [
            "identity",
            "gzip",
            "chunked, gzip",
            "chunked, identity",
            "chunked, chunked",
            "identity, chunked",
            "",
            ",",
            "chunked,",
            ",chunked",
            "xchunked",
            "chunkedx",
            "chunked;q=1",
            "\"chunked\"",
            "'chunked'",
            "chunked x",
            "x chunked",
            "cHuNkEd\u{b}",
            "\u{b}chunked",
            "chunked\0",
            "\u{212a}chunked",
            "chun\tked",
        ]
        .map(|coding| post_with(&format!("Transfer-Encoding: {coding}")) + "0\r\n\r\n"),
    );
    assert_bad([
        post_with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        post_with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity") + "0\r\n\r\n",
        post_with("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        post_with("Transfer-Encoding : chunked") + "0\r\n\r\n",
        post_with("Transfer-Encoding:\r\n chunked") + "0\r\n\r\n",
        post_with("X: a\nTransfer-Encoding: chunked") + "0\r\n\r\n",
    ]);
    // What is a coding, or may be one, and no other than those here.
    let others = [
        "gzip, chunked",
        "GZIP, chunked",
        "x-gzip,chunked",
        "deflate, X-Compress, Chunked",
        "made-up;a=b, chunked",
    ]
    .map(|coding| post_with(&format!("Transfer-Encoding: {coding}")) + "0\r\n\r\n");
    assert_refused(&others.each_ref().map(|request| (request.as_bytes(), 501)));
}

#[test]
fn chunked_in_any_case_is_chunked() {
    let (handle, _) = noting();
    let mut client = Client::to(&handle);
    for coding in ["chunked", "Chunked", "CHUNKED", " chunked\t"] {
        client.send(post_with(&format!("Transfer-Encoding:{coding}")) + "5\r\nhello\r\n0\r\n\r\n");
        client.answer().is(200, "hello");
    }
    stop(&handle);
}

#[test]
fn malformed_chunks_are_refused() {
    let zeros = "0".repeat(40);
    let long = "x".repeat(70_000);
    let chunks = [
        "\r\n",
        "x\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        // More than fits, or than anybody has.
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "8000000000000000\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        // The end, and trailers.
        "0\r\n\n",
        "0\r\n\r\r\n",
        "0\r\nA\r\n\r\n",
        "0\r\nA b: c\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n: b\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA: b\rc\r\n\r\n",
        "0\r\nA: \0\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\r\n c\r\n\r\n",
    ]
    .map(str::to_owned);
    let more = [
        format!("{zeros}5\r\nhello\r\n0\r\n\r\n"),
        format!("5;{long}\r\nhello\r\n0\r\n\r\n"),
        format!("{}0\r\n\r\n", "1;xxxxxxxxx\r\na\r\n".repeat(3000)),
        format!("0\r\nA: {long}\r\n\r\n"),
        format!("0\r\n{}\r\n", "A: b\r\n".repeat(5000)),
    ];
    let chunks = chunks.into_iter().chain(more);
    assert_bad(chunks.map(|chunks| post_with("Transfer-Encoding: chunked") + &chunks));
}

// ---- lines ----

#[test]
fn lines_that_do_not_end_with_cr_lf_are_refused() {
    assert_bad([
        "GET /bad HTTP/1.1\nHost: test\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\n\n",
        "GET /bad HTTP/1.1\r\nHost: test\n\n",
        "GET /bad HTTP/1.1\nHost: test\n\n",
        "GET /bad HTTP/1.1\rHost: test\r\n\r\n",
        "GET /bad HTTP/1.1\r\r\nHost: test\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\rX: y\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\n\r\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\nX: a\rb\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\nX: a\nb: c\r\n\r\n",
        "GET /bad\r HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /bad\n HTTP/1.1\r\nHost: test\r\n\r\n",
        "\nGET /bad HTTP/1.1\r\nHost: test\r\n\r\n",
        "\rGET /bad HTTP/1.1\r\nHost: test\r\n\r\n",
        "\r\rGET /bad HTTP/1.1\r\nHost: test\r\n\r\n",
        "\n\nGET /bad HTTP/1.1\r\nHost: test\r\n\r\n",
        "\r\n\nGET /bad HTTP/1.1\r\nHost: test\r\n\r\n",
    ]);
}

#[test]
fn folded_lines_are_refused() {
    assert_bad([
        lines("Host: test\r\nX: a\r\n b"),
        lines("Host: test\r\nX: a\r\n\tb"),
        lines("Host: test\r\nX: a\r\n \r\nY: b"),
        lines("Host:\r\n test"),
        lines("Host: test\r\n Content-Length: 5"),
        // A first line that begins with a space is not the rest of anything.
        lines(" Host: test"),
        lines("\tHost: test"),
        lines(" \r\nHost: test"),
    ]);
}

#[test]
fn control_characters_are_refused() {
    let controls = (0..32).chain([127]).filter(|byte| !b"\t".contains(byte));
    let mut requests = Vec::new();
    for byte in controls {
        let char = [byte];
        let c = &char[..];
        requests.push([b"G", c, b"T /bad HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
        requests.push([b"GET /b", c, b"d HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
        requests.push([b"GET /bad?", c, b" HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
        requests.push([b"GET /bad HTTP/1.1", c, b"x\r\nHost: test\r\n\r\n"].concat());
        requests.push(lines([b"Host: test\r\nX", c, b"Y: a"].concat()));
        requests.push(lines([b"Host: test\r\nX: a", c, b"b"].concat()));
        requests.push(lines([b"Host: te", c, b"st"].concat()));
    }
    // What is left of the tab.
    requests.push(b"GET\t/bad HTTP/1.1\r\nHost: test\r\n\r\n".to_vec());
    requests.push(b"GET /b\td HTTP/1.1\r\nHost: test\r\n\r\n".to_vec());
    requests.push(lines("Host: test\r\nX\tY: a"));
    assert_bad(requests);
}

#[test]
fn malformed_fields_are_refused() {
    assert_bad(
        [
            "X : a",
            "X\t: a",
            " X: a",
            "X",
            "X Y: a",
            ": a",
            ":",
            "X(: a",
            "X\u{e9}: a",
            "X/: a",
            "X[]: a",
            "X\"Y\": a",
            "X@Y: a",
            "X,Y: a",
            "X;: a",
            "{X}: a",
        ]
        .map(|field| lines(format!("Host: test\r\n{field}"))),
    );
}

#[test]
fn request_lines_of_other_shapes_are_refused() {
    assert_bad(
        [
            "GET",
            "GET /bad",
            "GET /bad ",
            "GET  /bad HTTP/1.1",
            "GET /bad  HTTP/1.1",
            "GET /bad HTTP/1.1 ",
            " GET /bad HTTP/1.1",
            "/bad GET HTTP/1.1",
            "GET /b ad HTTP/1.1",
            "GET /bad HTTP/1.1 x",
            "GET /bad http/1.1",
            "GET /bad HTTP/1",
            "GET /bad HTTP/11",
            "GET /bad HTTP/1.10",
            "GET /bad HTTP/01.1",
            "GET /bad HTTP /1.1",
            "GET /bad HTTPS/1.1",
            "GET /bad XTTP/1.1",
            "GET /bad HTTP/1,1",
            "G(T /bad HTTP/1.1",
            "GET:/bad HTTP/1.1",
            "{} /bad HTTP/1.1",
            "GET /bad\u{b}HTTP/1.1",
        ]
        .map(|line| format!("{line}\r\nHost: test\r\n\r\n")),
    );
}

#[test]
fn garbage_is_refused() {
    let mut requests: Vec<Vec<u8>> = vec![
        // A TLS client hello, SSH, SOCKS, and so on.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(),
        b"\x05\x01\x00\r\n\r\n".to_vec(),
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"\xff\xfe\xfd\r\n\r\n".to_vec(),
        b"{\"method\": \"GET\"}\r\n\r\n".to_vec(),
        b"<policy-file-request/>\0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b" \r\n\r\n".to_vec(),
        b"\xef\xbb\xbfGET /bad HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(),
    ];
    // All bytes there are.
    requests.push((0..=255).chain(*b"\r\n\r\n").collect());
    assert_bad(requests);
}

#[test]
fn other_versions_are_refused() {
    let cases = [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET /bad HTTP/2.0\r\nHost: test\r\n\r\n", 505),
        ("GET /bad HTTP/3.0\r\nHost: test\r\n\r\n", 505),
        ("GET /bad HTTP/0.9\r\nHost: test\r\n\r\n", 505),
        ("GET /bad HTTP/1.2\r\nHost: test\r\n\r\n", 505),
        ("\r\nGET /bad HTTP/2.0\r\nHost: test\r\n\r\n", 505),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|case| (case.0.as_bytes(), case.1))
        .collect();
    assert_refused(&cases);
}

// ---- Host and target ----

#[test]
fn missing_repeated_and_invalid_hosts_are_refused() {
    assert_bad([
        "GET /bad HTTP/1.1\r\n\r\n",
        "GET http://test/bad HTTP/1.1\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n",
        "GET /bad HTTP/1.1\r\nHost: test\r\nhost: other\r\n\r\n",
        "GET /bad HTTP/1.0\r\nHost: test\r\nHost: other\r\n\r\n",
    ]);
    assert_bad(
        [
            "te st",
            "test, other",
            "test/",
            "/",
            "user@test",
            "http://test",
            "test:port",
            "test:80:80",
            ":80:",
            "test:-1",
            "test:65536",
            "test:99999",
            "test:4294967376",
            "[::1",
            "::1",
            "[]",
            "[::1]x",
            "[::1]:x",
            "[::1]:65536",
            "[:::1]",
            "[::g]",
            "[1.2.3.4]",
            "te\"st",
            "te<st",
            "te?st",
            "te#st",
            "te\\st",
            "test\u{e9}",
            "te[s]t",
        ]
        .map(|host| lines(format!("Host: {host}"))),
    );
}

#[test]
fn valid_hosts_and_old_clients_are_served() {
    let (handle, _) = noting();
    let mut client = Client::to(&handle);
    for host in [
        "test",
        "",
        "test:80",
        "a-b.c_d~e",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8080",
        "[v1.x]",
        "test:",
        "%41",
    ] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().status, 200, "{host}");
    }
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    stop(&handle);
}

#[test]
fn targets_are_of_one_of_the_four_forms() {
    let (handle, seen) = noting();
    for (line, target) in [
        ("GET /", "/"),
        ("GET /a/../b//c?d=/?e&f", "/a/../b//c?d=/?e&f"),
        ("GET /%00%0d%0a%ff", "/%00%0d%0a%ff"),
        ("GET //double", "//double"),
        ("GET http://other/a?b", "http://other/a?b"),
        ("GET http://other:8080/", "http://other:8080/"),
        ("GET http://other:/", "http://other:/"),
        ("GET http://other:65535/", "http://other:65535/"),
        ("GET http://[::1]:80/", "http://[::1]:80/"),
        ("OPTIONS *", "*"),
        ("OPTIONS /a", "/a"),
        ("get /lower", "/lower"),
        ("X-METHOD! /own", "/own"),
    ] {
        let mut client = Client::to(&handle);
        client.send(format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(client.answer().status, 200, "{line}");
        assert_eq!(seen.all().last().unwrap(), target);
    }
    // What a tunnel would go to is known, but the connection ends with an answer that opens none.
    let mut client = Client::to(&handle);
    client.send("CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n");
    assert_eq!(client.head().status, 200);
    client.ends();
    assert_eq!(seen.all().last().unwrap(), "test:443");
    stop(&handle);
    assert_bad(
        [
            "GET *",
            "GET bad",
            "GET test:80",
            "GET /bad#fragment",
            "OPTIONS **",
            "CONNECT /bad",
            "CONNECT test",
            "CONNECT :443",
            "CONNECT http://test/",
            "CONNECT test:",
            "CONNECT test:0x50",
            "CONNECT test:99999",
            "CONNECT user@test:443",
            "CONNECT [:::1]:443",
            "GET http://test:99999/",
            "GET http://test:65536/",
            "GET http://test:abc/",
            "GET http://test:-1/",
            "GET http://test:80:80/",
            "GET http://:80/",
            "GET http://user@/",
            "GET http://[::1/",
            "GET http://[::g]/",
            "GET http://[::1]x/",
            "GET http://",
            "GET http:///bad",
            "GET ://bad",
            "GET /bad\u{7f}",
            "GET /\u{fffd}\0",
            "GET ?bad",
            "GET #",
        ]
        .map(|line| format!("{line} HTTP/1.1\r\nHost: test\r\n\r\n")),
    );
    assert_bad([b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n"]);
}

#[test]
fn methods_are_told_apart_by_case() {
    let handle = serve(server(), |request: &mut Request<Body<'_>>| {
        Response::new(request.method().to_string())
    });
    let mut client = Client::to(&handle);
    for method in [
        "GET",
        "get",
        "Get",
        "PATCH",
        "BREW",
        "M-SEARCH",
        "A!#$%&'*+-.^_`|~9",
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: test\r\n\r\n"));
        client.answer().is(200, method);
    }
    stop(&handle);
}

#[test]
fn some_empty_lines_may_come_first() {
    let (handle, _) = noting();
    let mut client = Client::to(&handle);
    for empty in ["", "\r\n", "\r\n\r\n"] {
        client.send(empty.to_owned() + &get("/"));
        assert_eq!(client.answer().status, 200);
        client.send(empty);
    }
    client.send(get("/"));
    assert_eq!(client.answer().status, 200);
    stop(&handle);
}

// ---- limits ----

#[test]
fn heads_have_limits() {
    // Lengths are those of the whole line, and of the whole head, with their ends.
    let line = |length: usize| {
        let target = "a".repeat(length - "GET / HTTP/1.1\r\n".len());
        format!("GET /{target} HTTP/1.1\r\nHost: test\r\n\r\n")
    };
    let head = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: test\r\n";
        let value = "a".repeat(length - start.len() - "X: \r\n\r\n".len());
        format!("{start}X: {value}\r\n\r\n")
    };
    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: test\r\n{}\r\n",
            "X: y\r\n".repeat(count - 1)
        )
    };
    let (handle, _) = noting();
    let mut client = Client::to(&handle);
    for fits in [
        line(8 * 1024),
        head(16 * 1024),
        fields(100),
        "\r\n".to_owned() + &line(8 * 1024),
    ] {
        client.send(&fits);
        assert_eq!(client.answer().status, 200, "{} bytes", fits.len());
    }
    stop(&handle);
    let long = [
        (line(8 * 1024 + 1), 414),
        (line(16 * 1024), 414),
        (line(100_000), 414),
        ("\r\n".to_owned() + &line(8 * 1024 + 1), 414),
        (
            format!("{} / HTTP/1.1\r\nHost: test\r\n\r\n", "X".repeat(9000)),
            414,
        ),
        (head(16 * 1024 + 1), 431),
        (head(100_000), 431),
        (fields(101), 431),
        (fields(1000), 431),
        (
            lines(format!("Host: test\r\n{}: y", "X".repeat(20_000)))
                .iter()
                .map(|byte| *byte as char)
                .collect(),
            431,
        ),
    ];
    let long: Vec<_> = long
        .iter()
        .map(|case| (case.0.as_bytes(), case.1))
        .collect();
    assert_refused(&long);
}

// ---- splits ----

/// Streams of requests, good and bad.
fn corpus() -> Vec<Vec<u8>> {
    let get = get("/a?b=c");
    let length = post_with("Content-Length: 5") + "hello";
    let chunked = post_with("Transfer-Encoding: chunked")
        + "3;x=\"y\"\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n";
    let old = "GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned();
    let close = "GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".to_owned();
    let expect = post_with("Expect: 100-continue\r\nContent-Length: 5") + "hello";
    let unread = length.replace("/bad", "/noread") + &chunked.replace("/bad", "/noread");
    let line =
        |length: usize| format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "a".repeat(length));
    let mut corpus = vec![
        get.clone() + &length + &chunked + &old + &close + SMUGGLED,
        unread + &get,
        length.clone() + "\r\n" + &get + "\r\n\r\n" + &chunked,
        "\r\n".to_owned() + &get,
        "\r\n\r\n".to_owned() + &get + "\r\n",
        "\r\n\r\n".to_owned(),
        "\r".to_owned(),
        "\r\n\r".to_owned() + &get,
        "\n".to_owned() + &get,
        "\r\n\n".to_owned() + &get,
        "\n\nGET / HTTP/2.0\r\n\r\n".to_owned(),
        get.clone() + "\n" + &get,
        get.clone() + "GET /cut HTTP/1.1\r\nHost",
        get.clone() + &post_with("Content-Length: 50") + "cut",
        post_with("Transfer-Encoding: chunked") + "5\r\nhel",
        post_with("Transfer-Encoding: chunked") + "5\r\nhelloo\r\n0\r\n\r\n" + SMUGGLED,
        get.clone()
            + &post_with("Content-Length: 5\r\nTransfer-Encoding: chunked")
            + "0\r\n\r\n"
            + SMUGGLED,
        get.clone() + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\r\nGET / HTTP/1.10\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\nHost: test\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test\r\nX : y\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: test\r\nX: a\r\n b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n\r\n".to_owned() + SMUGGLED,
        "\u{16}\u{3}\u{1}\u{2}\0garbage".to_owned(),
        "garbage\r\n\r\n".to_owned() + SMUGGLED,
        "HEAD /a HTTP/1.1\r\nHost: test\r\n\r\n".to_owned() + &get,
        expect + &get,
        "GET / HTTP/1.1\r\nHost: test\r\nExpect: x\r\n\r\n".to_owned(),
        // With the limits that the test sets: 256 bytes of line, 512 of head, 8 fields, 300 of small body.
        line(300),
        "\r\n".to_owned() + &line(300),
        "\r\n".to_owned() + &line(238),
        "\r\n".repeat(200) + &get,
        "\r\n".repeat(300) + &get,
        line(300).replace("HTTP/1.1", "HTTP/1.1\0"),
        line(200).replace("Host: test", &("X: y\r\n".repeat(9) + "Host: test")),
        line(200).replace(
            "Host: test",
            &format!("Host: test\r\nX: {}", "x".repeat(400)),
        ),
        line(200).replace(
            "Host: test",
            &format!("Host: test\r\nX: \0{}", "x".repeat(400)),
        ),
        post_with("Content-Length: 400") + &"x".repeat(400) + &get,
        post_with("Transfer-Encoding: chunked")
            + "190\r\n"
            + &"x".repeat(400)
            + "\r\n0\r\n\r\n"
            + &get,
        post_with("Transfer-Encoding: chunked")
            + "190\r\n"
            + &"x".repeat(400)
            + "y\r\n0\r\n\r\n"
            + &get,
        post_with("Content-Length: 1100") + &"x".repeat(1100) + &get,
        post_with("Transfer-Encoding: chunked")
            + "44c\r\n"
            + &"x".repeat(1100)
            + "\r\n0\r\n\r\n"
            + &get,
    ];
    // Large enough for the limits that hold by default.
    corpus.push("\r\n".to_owned() + &get + &length.repeat(3));
    corpus.into_iter().map(String::into_bytes).collect()
}

/// Cut anywhere, or to single bytes, a stream gets the same answers.
#[test]
fn answers_do_not_depend_on_how_requests_are_split() {
    let service = http::service(|request: &mut Request<Body<'_>>| {
        let mut text = format!("{} {}\n", request.method(), request.uri()).into_bytes();
        if request.uri().path() != "/noread" {
            READING.store(true, SeqCst);
            match request.body_mut().read_all(2000) {
                Ok(body) => text.extend(body),
                Err(error) => text.extend(error.to_string().into_bytes()),
            }
            READING.store(false, SeqCst);
        }
        Response::new(Reply::from(text))
    });
    let service = service.max_request_line(256).max_head(512).max_fields(8);
    let service = service.max_body(1000);
    // One worker: it takes what has come in the order in which it came.
    let start = |service| start(server().workers(1), service);
    let handle = start(service.clone().small_body(300));
    // Nor do the answers depend on whether bodies are collected, or spooled.
    let spooling = start(service.small_body(0));
    assert_same_answers(&handle, &handle);
    assert_same_answers(&handle, &spooling);
    stop(&handle);
    stop(&spooling);
}

/// Asserts that the second server answers to parts what the first one answers to the whole.
fn assert_same_answers(handle: &Handle, split: &Handle) {
    let (whole_server, handle) = (handle, split);
    let mut faults = String::new();
    let is_slow = wine_cannot("send a few hundred bytes one by one while the server lingers");
    for stream in corpus() {
        let whole = answers(whole_server, &[&stream]);
        let shown = String::from_utf8_lossy(&stream[..stream.len().min(200)]).into_owned();
        assert!(!whole.contains("/smuggled"), "{shown:?}: {whole}");
        // Every place of short ones; around what decides in longer ones.
        let places: Vec<usize> = match stream.len() {
            ..=160 => (1..stream.len()).collect(),
            len => (1..len)
                .filter(|at| b"\r\n".contains(&stream[*at]) || at % 61 == 0)
                .collect(),
        };
        for at in places {
            let (one, two) = stream.split_at(at);
            let split = answers(handle, &[one, two]);
            if split != whole {
                faults += &format!("\n{shown:?} cut at {at}:\n{split}--- whole:\n{whole}");
                break;
            }
        }
        if is_slow {
            continue;
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        let split = answers(handle, &bytes);
        if split != whole {
            faults += &format!("\n{shown:?} byte by byte:\n{split}--- whole:\n{whole}");
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

/// The handler of the split test is reading.
static READING: AtomicBool = AtomicBool::new(false);

/// All that is answered to these pieces, each sent when the server has read the one before, without what depends on
/// the time.
fn answers(handle: &Handle, pieces: &[&[u8]]) -> String {
    let mut client = connect(addr(handle));
    let mut received = handle.stats().bytes_in;
    for piece in pieces {
        // It may have heard enough.
        if client.write_all(piece).is_err() {
            break;
        }
        received += piece.len() as u64;
        // What a handler reads is counted only when it is done, so then there is nothing to wait for.
        eventually("the piece is read, or the connection gone", || {
            let stats = handle.stats();
            stats.bytes_in >= received || stats.live == 0 || READING.load(SeqCst)
        });
    }
    let _ = client.shutdown(std::net::Shutdown::Write);
    let mut all = Vec::new();
    if let Err(error) = client.read_to_end(&mut all) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    drop(client);
    eventually("the connection is gone", || handle.stats().live == 0);
    // Who sends the body at once need not be told to go on.
    let text = String::from_utf8_lossy(&all).replace("HTTP/1.1 100 Continue\r\n\r\n", "");
    let lines = text.lines();
    // Whether an answer is the last may be known, or show only later.
    let lines =
        lines.filter(|line| !line.starts_with("Date: ") && !line.starts_with("Connection: "));
    lines.map(|line| line.to_owned() + "\n").collect()
}
