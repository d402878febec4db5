//! Tests of the parser of heads: what is accepted, what is refused, and with which status.

use super::*;
use ::http::Request;

fn parse_all(input: &[u8]) -> Result<Option<(RequestHead, Parts)>, Rejection> {
    let (mut parts, mut head) = (SpareParts::default(), RequestHead::default());
    let limits = RequestLimits::default();
    let is_complete = HeadParser::default().parse(input, &limits, &mut parts, &mut head)?;
    Ok(is_complete.then(|| (head, parts.take())))
}

/// The status of the rejection; 200 for a valid head, 0 for an incomplete one.
fn status(input: impl AsRef<[u8]>) -> u16 {
    match parse_all(input.as_ref()) {
        Ok(Some(_)) => 200,
        Ok(None) => 0,
        Err(rejection) => rejection.status.as_u16(),
    }
}

fn get(fields: &str) -> u16 {
    status(format!("GET / HTTP/1.1\r\n{fields}\r\n"))
}

fn post(fields: &str) -> u16 {
    status(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"))
}

#[test]
fn a_head_is_parsed_into_its_parts() {
    let input =
        b"PUT /a?b=c HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: 4\r\n\r\nbody";
    let (head, parts) = parse_all(input).unwrap().unwrap();
    assert_eq!((parts.method, head.len), (Method::PUT, input.len() - 4));
    assert_eq!(parts.uri.to_string(), "/a?b=c");
    let values: Vec<_> = parts.headers.get_all("x-a").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(head.body.remaining(), Some(4));
    assert!(head.keep_alive && !head.expects_continue);
}

#[test]
fn ambiguous_fields_are_rejected() {
    for fields in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1, 1",
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 0x1",
        "Content-Length: ",
        "Content-Length: 99999999999999999999",
        "Content-Length : 1",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: Chunked;a=b, chunked",
        "Transfer-Encoding: g zip, chunked",
        "Transfer-Encoding: gzip,, chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: x;a=\"b, chunked\"",
        "Transfer-Encoding: x;a=\"b,c\", chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        " Content-Length: 1",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X: a\rb",
        "X: a\nY: b",
        "X: a\0b",
        "X: a\x01b",
        "X: a\x7fb",
        "X\0: a",
        ": a",
        "X",
        "Host: b",
    ] {
        assert_eq!(post(fields), 400, "{fields:?}");
    }
    for coding in [
        "gzip",
        "GZIP",
        "x-gzip",
        "X-Compress",
        "gzip , br",
        "made-up",
        "x;a=b",
    ] {
        let field = format!("Transfer-Encoding: {coding}, CHUNKED");
        assert_eq!(post(&field), 501, "{field:?}");
    }
    assert_eq!(post("Transfer-Encoding: Chunked"), 200);
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(status(old), 400);
}

#[test]
fn http_1_1_requires_one_valid_host() {
    assert_eq!(get("Host: a:80\r\n"), 200);
    assert_eq!(get("Host: a:b\r\n"), 400);
    assert_eq!(get(""), 400);
    assert_eq!(get("Host: a\r\nHost: a\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 200);
}

#[test]
fn lines_end_with_cr_and_lf() {
    assert_eq!(status("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\n\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\rHost: a\r\r"), 400);
    assert_eq!(status("GET / HTTP/1.0\n\r\n"), 400);
    assert_eq!(status("\nGET / HTTP/1.0\r\n\r\n"), 400);
    assert_eq!(status("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), 200);
    assert_eq!(status("\r\n\nGET / HTTP/1.0\r\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n"), 400);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"), 200);
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n"), 400);
}

#[test]
fn the_target_fits_the_method() {
    for line in [
        "OPTIONS *",
        "CONNECT a:443",
        "GET http://a/b?c",
        "GET /%20?a=/?",
        "GET //",
    ] {
        assert_eq!(
            status(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")),
            200,
            "{line}"
        );
    }
    for line in [
        "GET *",
        "GET a:443",
        "CONNECT /",
        "CONNECT http://a/",
        "CONNECT a",
        "GET a",
        "GET /#a",
        "GET  /",
        "GET /a b",
        "GET",
        "/ GET /",
        " GET /",
        "G\0T /",
        "GET /\0",
    ] {
        assert_eq!(
            status(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")),
            400,
            "{line}"
        );
    }
}

#[test]
fn a_line_is_split_only_as_httparse_does() {
    let lines = [
        "GET / HTTP/1.1\r\n",
        "PUT /c?d=%20 HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
    ];
    for line in lines.map(str::as_bytes) {
        assert!(RequestLine::split(line).is_some());
        for at in 0..line.len() {
            let (before, after) = (&line[..at], &line[at..]);
            let changed = (0..=u8::MAX).flat_map(|byte| {
                [
                    [before, &[byte], &after[1..]].concat(),
                    [before, &[byte], after].concat(),
                ]
            });
            for line in changed.chain([[before, &after[1..]].concat()]) {
                let Some(split) = RequestLine::split(&line) else {
                    continue;
                };
                let mut request = httparse::Request::new(&mut []);
                let parsed = request.parse(&line);
                assert_eq!(parsed, Ok(httparse::Status::Partial), "{line:?}");
                assert_eq!(RequestLine::of(&request), Some(split));
            }
        }
    }
}

#[test]
fn other_versions_get_505() {
    assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    assert_eq!(status("GET / HTTP/3.0\r\nHost: a\r\n\r\n"), 505);
    assert_eq!(status("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), 400);
    assert_eq!(status("GET / http/1.1\r\nHost: a\r\n\r\n"), 400);
    assert_eq!(status("GET /\r\n"), 400);
}

#[test]
fn heads_are_bounded() {
    let line = |n| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
    assert_eq!(status(line(8 * 1024 - 100)), 200);
    assert_eq!(status(line(8 * 1024)), 414);
    assert_eq!(
        get(&format!("Host: a\r\nX: {}\r\n", "a".repeat(15 * 1024))),
        200
    );
    assert_eq!(
        get(&format!("Host: a\r\nX: {}\r\n", "a".repeat(16 * 1024))),
        431
    );
    assert_eq!(get(&format!("Host: a\r\n{}", "X: a\r\n".repeat(99))), 200);
    assert_eq!(get(&format!("Host: a\r\n{}", "X: a\r\n".repeat(100))), 431);
}

#[test]
fn a_part_of_a_head_is_rejected_only_as_the_whole_head_is() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: some value\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\n".to_owned(),
        format!("GET /{}\0 HTTP/1.1\r\n\r\n", "a".repeat(9000)),
        format!("GET /{}\0 HTTP/1.1\r\n\r\n", "a".repeat(8000)),
        format!("GET / HTTP/1.1\r\nX: {}\0\r\n\r\n", "a".repeat(17_000)),
    ] {
        let whole = status(&head);
        for end in (0..head.len()).step_by(head.len() / 500 + 1) {
            let part = status(&head[..end]);
            assert!(
                part == 0 || part == whole,
                "{part}, not {whole}, after {end} bytes"
            );
        }
    }
}

#[test]
fn a_request_line_that_fills_the_head_is_too_long_however_it_arrives() {
    for (request_line, head) in [(8 * 1024, 100), (100, 100), (usize::MAX, 100), (50, 100)] {
        let limits = RequestLimits {
            request_line,
            head,
            ..RequestLimits::default()
        };
        let (mut parts, mut head) = (SpareParts::default(), RequestHead::default());
        let mut parse = |input: &str| {
            let input = input.as_bytes();
            let parsed = HeadParser::default().parse(input, &limits, &mut parts, &mut head);
            parsed
                .map(drop)
                .map_err(|rejection| rejection.status.as_u16())
        };
        let input = format!("GET /{} HTTP/1.1\r\n\0", "a".repeat(10_000));
        for end in [100, 101, 1000, 8 * 1024, 8 * 1024 + 1, input.len()] {
            assert_eq!(parse(&input[..end]), Err(414), "{request_line} {end}");
        }
    }
}

#[test]
fn keep_alive_depends_on_the_version_and_the_connection_field() {
    for (version, field, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: Close\r\n", false),
        ("1.1", "Connection: x , close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{field}\r\n");
        let (head, _) = parse_all(input.as_bytes()).unwrap().unwrap();
        assert_eq!(head.keep_alive, keep_alive, "{input}");
    }
}

/// A head and its parts, or the status of the rejection.
fn shown(
    parser: &mut HeadParser,
    spare: &mut SpareParts,
    limits: &RequestLimits,
    input: &str,
) -> Result<Option<String>, u16> {
    let mut head = RequestHead::default();
    let is_complete = parser.parse(input.as_bytes(), limits, spare, &mut head);
    let is_complete = is_complete.map_err(|rejection| rejection.status.as_u16())?;
    Ok(is_complete.then(|| format!("{head:?} {:?}", spare.filled())))
}

#[test]
fn a_head_with_the_fields_of_the_last_one_is_parsed_as_any_other() {
    let fields = "Host: a:80\r\nX-A: 1\r\nCookie:\r\nconnection: keep-alive\r\n\r\n";
    let kept = fields;
    let few = "Host: a:80\r\nX-A: 1\r\n\r\n";
    let limits = RequestLimits::default();
    let strict = RequestLimits {
        fields: 3,
        ..RequestLimits::default()
    };
    for (line, fields, limits) in [
        ("GET / HTTP/1.1\r\n", fields, &limits),
        ("GET /a?b HTTP/1.1\r\n", fields, &limits),
        ("GET /a HTTP/1.1\r\n", fields, &limits),
        ("GET http://a/ HTTP/1.0\r\n", fields, &limits),
        ("OPTIONS * HTTP/1.1\r\n", fields, &limits),
        ("GET * HTTP/1.1\r\n", fields, &limits),
        ("GET a:1 HTTP/1.1\r\n", fields, &limits),
        ("HEAD / HTTP/1.1\r\n", fields, &limits),
        ("CONNECT a:1 HTTP/1.1\r\n", fields, &limits),
        ("CONNECT / HTTP/1.1\r\n", fields, &limits),
        ("GET / HTTP/1.1\r\n", fields, &strict),
        ("GET / HTTP/1.1\n", fields, &limits),
        ("\r\nGET / HTTP/1.1\r\n", fields, &limits),
        ("GET / HTTP/1.1\r\n\r\n", fields, &limits),
        ("GET / HTTP/1.1 \r\n", fields, &limits),
        ("GET / HTTP/1.1\r\r\n", fields, &limits),
        ("GET / HTTP/1.1\r\nX: y\r\n", fields, &limits),
        ("GET / HTTP/2.0\r\n", fields, &limits),
        ("GET /", "", &limits),
        ("GET / HTTP/1.1\r\n", few, &limits),
        ("GET / HTTP/1.1\r\n", &fields[..fields.len() - 1], &limits),
        ("GET / HTTP/1.1\r\n", &fields[1..], &limits),
    ] {
        let input = format!("{line}{fields}GET /next HTTP/1.1\r\n");
        let (mut parser, mut spare) = (HeadParser::default(), SpareParts::default());
        let whole = shown(&mut parser, &mut spare, limits, &input);
        for first in [
            "GET /first",
            "POST /",
            "GET /a?b",
            "GET http://a/",
            "OPTIONS *",
            "CONNECT a:1",
        ] {
            let (mut parser, mut spare) = (HeadParser::default(), SpareParts::default());
            let first = format!("{first} HTTP/1.1\r\n{kept}");
            let all = RequestLimits::default();
            // Kept, recorded, used.
            for times in 0..3 {
                let is_used = spare.refill(kept.as_bytes(), 100).is_some();
                assert_eq!(is_used, times == 2);
                assert!(shown(&mut parser, &mut spare, &all, &first).is_ok());
                let parts = spare.take();
                spare.put_back(Request::from_parts(parts, ()));
            }
            for _ in 0..2 {
                let repeated = shown(&mut parser, &mut spare, limits, &input);
                assert_eq!(repeated, whole, "{input:?}");
            }
        }
    }
}

#[test]
fn a_target_that_a_handler_has_changed_is_not_kept() {
    let (mut parser, mut spare) = (HeadParser::default(), SpareParts::default());
    let limits = RequestLimits::default();
    let input = "GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n";
    let first = shown(&mut parser, &mut spare, &limits, input);
    for uri in ["/", "/a", "/a?c", "http://h/a?b", "*", "a:1"] {
        let mut parts = spare.take();
        parts.uri = Uri::from_static(uri);
        spare.put_back(Request::from_parts(parts, ()));
        let next = shown(&mut parser, &mut spare, &limits, input);
        assert_eq!(next, first, "after {uri}");
    }
}

#[test]
fn fields_that_a_handler_has_changed_are_not_kept() {
    let change: [fn(&mut HeaderMap); 6] = [
        |map| map.clear(),
        |map| drop(map.remove("x-a")),
        |map| drop(map.insert("x-a", HeaderValue::from_static("2"))),
        |map| {
            map.append("x-a", HeaderValue::from_static("2"));
        },
        |map| {
            let value = map.remove("x-a").unwrap();
            map.append("x-b", value);
        },
        |map| map.get_mut("x-a").unwrap().set_sensitive(true),
    ];
    let (mut parser, mut spare) = (HeadParser::default(), SpareParts::default());
    let limits = RequestLimits::default();
    let lines = "Host: a\r\nX-A: 1\r\n\r\n";
    let input = format!("GET / HTTP/1.1\r\n{lines}");
    let mut parse = |spare: &mut SpareParts| shown(&mut parser, spare, &limits, &input);
    let first = parse(&mut spare);
    for change in change {
        while spare.refill(lines.as_bytes(), 2).is_none() {
            assert_eq!(parse(&mut spare), first);
        }
        let mut parts = spare.take();
        change(&mut parts.headers);
        spare.put_back(Request::from_parts(parts, ()));
        assert!(spare.refill(lines.as_bytes(), 2).is_none());
        assert_eq!(parse(&mut spare), first);
    }
}
