//! What the tests of servers that are replaced share on every system: what such a server says of itself, how its new
//! versions fail, and one request to it.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::str::FromStr;

/// The arguments that make a test binary run the test `child` only.
pub(crate) const HARNESS: [&str; 4] = ["child", "--exact", "--nocapture", "--test-threads=1"];

/// What a process says of itself. `P` is the type of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who<P> {
    pub(crate) pid: P,
    pub(crate) generation: u64,
    pub(crate) udp: u16,
    pub(crate) state: String,
}

impl<P: FromStr> Who<P> {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let parsed = Self::try_parse(text);
        parsed.unwrap_or_else(|| panic!("{text:?}"))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        Some(Self {
            pid: words.next()?.parse().ok()?,
            generation: words.next()?.parse().ok()?,
            udp: words.next()?.parse().ok()?,
            state: words.next()?.to_owned(),
        })
    }
}

/// What the test has written to this file for the server.
pub(crate) fn option(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

/// Ends the process in one of the ways in which a new version ends instead of serving, if this is one of them.
pub(crate) fn end_as(how: &str) {
    match how {
        "exit 0" => std::process::exit(0),
        "exit 3" => {
            eprintln!("first line\nno configuration");
            std::process::exit(3);
        }
        "panic" => {
            eprintln!("it is all wrong");
            // As from `main`.
            std::process::exit(101);
        }
        _ => {}
    }
}

/// Sends a GET that ends the connection, and returns the answer's body.
pub(crate) fn try_get(from: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(from)?;
    stream.set_read_timeout(Some(super::LIMIT))?;
    exchange(&mut stream, path)
}

/// The same on this connection.
pub(crate) fn exchange(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    ask(stream, path)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    body_of(&answer).ok_or_else(|| io::Error::other(answer))
}

pub(crate) fn ask(stream: &mut impl Write, path: &str) -> io::Result<()> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
}

pub(crate) fn body_of(answer: &str) -> Option<String> {
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let body = body.filter(|_| answer.starts_with("HTTP/1.1 200 OK\r\n"));
    body.map(str::to_owned)
}

/// A random number below this.
pub(crate) fn random_below(limit: u64) -> u64 {
    RandomState::new().build_hasher().finish() % limit
}
