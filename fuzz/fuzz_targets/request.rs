//! The parser of heads and the decoder of bodies, compiled from the crate's own files, with any bytes.
//!
//! They never panic; the same bytes give the same requests however they are split; and what is accepted can be read in
//! one way only.
//!
//! ```sh
//! cargo +nightly fuzz run request seeds/request -- -dict=http.dict -max_len=24576
//! ```

#![no_main]
#![allow(dead_code)]

#[path = "../../src/http/authority.rs"]
mod authority;
#[path = "../../src/http/body_decoder.rs"]
mod body_decoder;
#[path = "../../src/http/control_fields.rs"]
mod control_fields;
#[path = "../../src/http/head.rs"]
mod head;
#[path = "../../src/http/rejection.rs"]
mod rejection;
#[path = "../../src/http/spare_parts.rs"]
mod spare_parts;

use http::request::Parts;
use http::{Version, header};
use libfuzzer_sys::fuzz_target;

use body_decoder::BodyDecoder;
use head::{HeadParser, RequestHead};
use rejection::RequestLimits;
use spare_parts::SpareParts;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (splits, stream) = input;
    let whole = read(stream, [stream.len()].into_iter());
    let sizes = splits.iter().map(|size| usize::from(*size) + 1);
    let end = std::iter::repeat(stream.len());
    assert_eq!(whole, read(stream, sizes.chain(end)), "in {splits:?}");
    if stream.len() < 1024 {
        assert_eq!(whole, read(stream, std::iter::repeat(1)), "byte by byte");
    }
});

/// What became of a part of the stream.
#[derive(Debug, PartialEq)]
enum Event {
    /// A request line and fields, as they were accepted, and where the body begins.
    Head(String, usize),
    /// A body's data, and where the next request begins.
    Body(Vec<u8>, usize),
    BadHead(u16),
    BadBody(&'static str),
    /// There should be more.
    Cut,
}

/// Reads all of the stream in pieces of these sizes, with small limits so that they are reached.
fn read(stream: &[u8], mut sizes: impl Iterator<Item = usize>) -> Vec<Event> {
    let limits = RequestLimits {
        request_line: 256,
        head: 512,
        fields: 8,
        ..RequestLimits::default()
    };
    let mut parser = HeadParser::default();
    let mut spare = SpareParts::default();
    let (mut events, mut at, mut end) = (Vec::new(), 0, 0);
    let mut body: Option<(BodyDecoder, Vec<u8>)> = None;
    loop {
        // As the exchange does before each head.
        while body.is_none() && stream[at..end].starts_with(b"\r\n") {
            at += 2;
        }
        let input = &stream[at..end];
        let mut wants_more = input.is_empty();
        if let Some((decoder, data)) = &mut body {
            match decoder.decode(input) {
                Ok((skip, count)) => {
                    assert!(skip + count <= input.len());
                    data.extend_from_slice(&input[skip..skip + count]);
                    at += skip + count;
                    decoder.consume_data(count);
                    if decoder.is_done() {
                        events.push(Event::Body(std::mem::take(data), at));
                        body = None;
                        continue;
                    }
                    assert!(count > 0 || skip == input.len());
                    wants_more = at == end;
                }
                Err(rejection) => {
                    events.push(Event::BadBody(rejection.detail));
                    return events;
                }
            }
        } else if !input.is_empty() {
            let mut head = RequestHead::default();
            match parser.parse(input, &limits, &mut spare, &mut head) {
                Ok(true) => {
                    let parts = spare.take();
                    check(&head, &parts, &input[..head.len]);
                    at += head.len;
                    events.push(Event::Head(format!("{parts:?} {head:?}"), at));
                    spare.reuse(parts);
                    body = Some((head.body, Vec::new()));
                    if body.as_ref().is_some_and(|(decoder, _)| decoder.is_done()) {
                        events.push(Event::Body(Vec::new(), at));
                        body = None;
                    }
                }
                Ok(false) => wants_more = true,
                Err(rejection) => {
                    let status = rejection.status;
                    assert!(status.is_client_error() || status.is_server_error());
                    events.push(Event::BadHead(status.as_u16()));
                    return events;
                }
            }
        }
        if wants_more {
            if end == stream.len() {
                if at < end || body.is_some() {
                    events.push(Event::Cut);
                }
                return events;
            }
            end = stream.len().min(end + sizes.next().unwrap_or(1).max(1));
        }
    }
}

/// What is accepted can be understood in one way only, by whoever looks at the same bytes.
fn check(head: &RequestHead, parts: &Parts, raw: &[u8]) {
    assert!(raw.ends_with(b"\r\n\r\n"));
    let raw = raw.strip_suffix(b"\r\n\r\n").unwrap();
    let text = String::from_utf8_lossy(raw).to_ascii_lowercase();
    for (at, byte) in raw.iter().enumerate() {
        match byte {
            b'\n' => assert!(at > 0 && raw[at - 1] == b'\r', "a bare LF"),
            b'\r' => assert!(raw.get(at + 1) == Some(&b'\n'), "a bare CR"),
            b'\t' => {}
            _ => assert!(*byte >= b' ' && *byte != 0x7f, "a control character"),
        }
    }
    let lines = text
        .split("\r\n")
        .skip_while(|line| line.is_empty())
        .skip(1);
    let mut names = Vec::new();
    for line in lines {
        let (name, _) = line.split_once(':').expect("a colon in each field");
        assert!(!name.is_empty() && !name.contains([' ', '\t']), "{name:?}");
        names.push(name);
    }
    assert_eq!(names.len(), parts.headers.len());
    let count = |wanted: &str| names.iter().filter(|name| **name == wanted).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + codings <= 1);
    match head.body.remaining() {
        None => assert_eq!((codings, parts.version), (1, Version::HTTP_11)),
        Some(length) => {
            assert_eq!(codings, 0);
            let field = parts.headers.get(header::CONTENT_LENGTH);
            let said = field.map_or(0, |value| value.to_str().unwrap().parse().unwrap());
            assert_eq!(said, length);
        }
    }
    assert!(count("host") == 1 || (count("host") == 0 && parts.version == Version::HTTP_10));
    assert!(parts.headers.len() <= 8 && raw.len() <= 512);
}
