//! A strict load client: it never tries anything twice, checks every byte, and says what went wrong.
//!
//! A connection that is refused, reset, or closed under a request is a failure, and so is an answer that is truncated
//! or wrong. Only an answer with `Connection: close` ends a connection, and then the server has to close it.

#![allow(dead_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use super::generations::{random_below, try_get};

/// Where a client connects to.
#[derive(Clone, Debug)]
pub(crate) enum To {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What a client does, again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// GET on a connection that is kept.
    KeepAlive,
    /// The same, with a pause after each answer, so that the connection is idle most of the time.
    Idle(Duration),
    /// A connection for each GET.
    PerRequest,
    /// POST of so many bytes, which must come back.
    Echo(usize),
    /// So many GETs in one write.
    Pipelined(usize),
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answers: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) failures: Mutex<Vec<String>>,
}

/// Clients at work.
pub(crate) struct Load {
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `count` clients of each of these.
    pub(crate) fn start(kinds: &[(To, Kind)], count: usize) -> Self {
        let (seen, stop) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let clients = kinds
            .iter()
            .flat_map(|kind| (0..count).map(move |_| kind.clone()));
        let threads = clients.map(|(to, kind)| {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            thread::spawn(move || client(&to, kind, &seen, &stop))
        });
        let threads = threads.collect();
        Self {
            seen,
            stop,
            threads,
        }
    }

    pub(crate) fn answers(&self) -> u64 {
        self.seen.answers.load(SeqCst)
    }

    /// Waits until there are so many more answers.
    #[track_caller]
    pub(crate) fn wait_for(&self, more: u64) {
        let goal = self.answers() + more;
        super::support::eventually("more answers", || {
            thread::sleep(Duration::from_millis(1));
            self.answers() >= goal || !self.seen.failures.lock().is_empty()
        });
    }

    /// Stops the clients after the request that each of them is at, and returns how many answers there were.
    #[track_caller]
    pub(crate) fn end(self) -> u64 {
        let (answers, failures) = self.finish();
        let count = failures.len();
        assert!(
            count == 0,
            "{count} failures beside {answers} answers: {failures:#?}"
        );
        answers
    }

    /// The same, for clients that are allowed to fail.
    pub(crate) fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let failures = self.seen.failures.lock().clone();
        (self.seen.answers.load(SeqCst), failures)
    }
}

fn client(to: &To, kind: Kind, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        if let Err(why) = connection(to, kind, seen, stop) {
            let mut failures = seen.failures.lock();
            if failures.len() < 100 {
                failures.push(format!("{kind:?} to {to:?}: {why}"));
            }
        }
    }
}

/// Runs something while clients send requests that take up to two seconds, and returns the number of answers. No request
/// may fail.
pub(crate) fn under_slow_requests(addr: SocketAddr, during: impl FnOnce()) -> u64 {
    let (ends, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !ends.load(SeqCst) {
                    let path = format!("/slow?{}", random_below(2000));
                    try_get(addr, &path).expect("no request fails");
                    answers.fetch_add(1, SeqCst);
                }
            });
        }
        let _ends = EndOnDrop(&ends);
        during();
    });
    answers.into_inner()
}

/// Restarts at random distances of 0.05 to 1 s.
pub(crate) fn restart_in_quick_succession(mut restart: impl FnMut()) {
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(8, |n| n.parse().unwrap());
    for _ in 0..restarts {
        thread::sleep(Duration::from_millis(50 + random_below(950)));
        restart();
    }
}

/// Ends what other threads go on with, also when a test fails.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One connection's life.
fn connection(to: &To, kind: Kind, seen: &Seen, stop: &AtomicBool) -> Result<(), String> {
    let limit = Some(super::support::LIMIT);
    let stream: io::Result<Box<dyn Stream>> = match to {
        To::Tcp(addr) => TcpStream::connect(addr).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(limit)?;
            Ok(Box::new(stream) as _)
        }),
        #[cfg(unix)]
        To::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(limit)?;
            Ok(Box::new(stream) as _)
        }),
        #[cfg(not(unix))]
        To::Unix(_) => Err(ErrorKind::Unsupported.into()),
    };
    let stream = stream.map_err(|error| format!("connect: {error}"))?;
    seen.connections.fetch_add(1, SeqCst);
    let mut client = Client {
        stream,
        buffer: Vec::new(),
        asked: 0,
    };
    while !stop.load(SeqCst) {
        if client.exchange(kind, seen)? {
            return client.end();
        }
        if let Kind::Idle(pause) = kind {
            thread::sleep(pause);
        }
    }
    Ok(())
}

struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    asked: u64,
}

impl Client {
    /// One request, or one batch of them. True if the server wants the connection closed.
    fn exchange(&mut self, kind: Kind, seen: &Seen) -> Result<bool, String> {
        let get = "GET / HTTP/1.1\r\nHost: test\r\n";
        let (request, count, body): (Vec<u8>, usize, Vec<u8>) = match kind {
            Kind::KeepAlive | Kind::Idle(_) => {
                (format!("{get}\r\n").into_bytes(), 1, HELLO.to_vec())
            }
            Kind::PerRequest => {
                let request = format!("{get}Connection: close\r\n\r\n");
                (request.into_bytes(), 1, HELLO.to_vec())
            }
            Kind::Pipelined(count) => {
                let request = format!("{get}\r\n").repeat(count);
                (request.into_bytes(), count, HELLO.to_vec())
            }
            Kind::Echo(size) => {
                let body = super::support::bytes_at(self.asked as usize, size);
                let head =
                    format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n");
                let mut request = head.into_bytes();
                request.extend_from_slice(&body);
                (request, 1, body)
            }
        };
        let nth = self.asked;
        let what = |error: String, answer: usize| {
            format!("request {nth}, answer {answer} of {count}: {error}")
        };
        self.asked += 1;
        let sent = self.stream.write_all(&request);
        sent.map_err(|error| what(format!("send: {error}"), 0))?;
        for answer in 1..=count {
            let closes = self.answer(&body).map_err(|error| what(error, answer))?;
            seen.answers.fetch_add(1, SeqCst);
            if closes && answer < count {
                return Err(what("closed within a batch".to_owned(), answer));
            }
            if closes {
                return Ok(true);
            }
        }
        match kind {
            Kind::PerRequest => Err(what("not closed as was asked".to_owned(), count)),
            _ => Ok(false),
        }
    }

    /// Reads one answer, which must be this. True if it is the last one.
    fn answer(&mut self, body: &[u8]) -> Result<bool, String> {
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.buffer.split_off(at + 4);
                break std::mem::replace(&mut self.buffer, rest);
            }
            self.fill()?;
        };
        let head = String::from_utf8(head).map_err(|_| "a head that is no text")?;
        if !head.starts_with("HTTP/1.1 200 OK\r\n") {
            return Err(format!("wrong: {head:?}"));
        }
        let field = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let mut values = lines.filter(|(own, _)| own.eq_ignore_ascii_case(name));
            values.next().map(|(_, value)| value)
        };
        let length = field("content-length").and_then(|length| length.parse().ok());
        if length != Some(body.len()) {
            return Err(format!("wrong length: {head:?}"));
        }
        while self.buffer.len() < body.len() {
            self.fill()?;
        }
        let rest = self.buffer.split_off(body.len());
        if std::mem::replace(&mut self.buffer, rest) != body {
            return Err("wrong bytes".to_owned());
        }
        Ok(field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")))
    }

    fn fill(&mut self) -> Result<(), String> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) if self.buffer.is_empty() => Err("closed under the request".to_owned()),
            Ok(0) => Err("truncated".to_owned()),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(format!("receive: {error}")),
        }
    }

    /// After the last answer the server closes.
    fn end(mut self) -> Result<(), String> {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) if self.buffer.is_empty() => Ok(()),
            Ok(_) => Err("more than was asked for".to_owned()),
            Err(error) => Err(format!("the end: {error}")),
        }
    }
}

const HELLO: &[u8] = b"Hello, World!";

/// A relay that holds each piece back for a while, each way. It ends with the process.
pub(crate) fn delayed(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            // A refused connection shows as one that is closed before an answer.
            let Ok(server) = TcpStream::connect(to) else {
                continue;
            };
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            for (from, into) in [(client, server), back] {
                thread::spawn(move || pump(from, into, delay));
            }
        }
    });
    addr
}

/// Bytes get there after the delay, and so does the end. What comes meanwhile is not held up by what came before.
fn pump(mut from: TcpStream, mut into: TcpStream, delay: Duration) {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(std::time::Instant, Vec<u8>)>(1024);
    let writer = thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(std::time::Instant::now()));
            if bytes.is_empty() {
                let _ = into.shutdown(std::net::Shutdown::Write);
            } else if into.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut chunk = [0; 64 * 1024];
    loop {
        let count = from.read(&mut chunk).unwrap_or(0);
        let due = std::time::Instant::now() + delay;
        if sender.send((due, chunk[..count].to_vec())).is_err() || count == 0 {
            break;
        }
    }
    drop(sender);
    let _ = writer.join();
}
