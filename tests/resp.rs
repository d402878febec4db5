//! The example `resp`: a Redis server whose clients wait for each other, with the real `redis-cli` and with a small
//! client of this file.
#![cfg(all(unix, feature = "signals"))] // signals and resource limits

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};

use support::{ProcessGroup, assert_closed, connect, connect_narrow, eventually, finish};
#[cfg(target_os = "linux")]
use support::{ServerSide, reset};

const SUBSCRIBERS: usize = 2000;
const WAITING: usize = 1000;

// ---- commands ----

/// Each request, and its reply as [`Client::reply`] writes it.
const COMMANDS: &[(&str, &str)] = &[
    ("PING", "PONG"),
    ("ping hello", "'hello'"),
    ("ECHO hello", "'hello'"),
    ("ECHO", "-ERR wrong number of arguments for 'echo' command"),
    ("NOPE a", "-ERR unknown command 'NOPE'"),
    ("SELECT 0", "OK"),
    ("SELECT 1", "-ERR DB index is out of range"),
    ("SELECT x", "-ERR value is not an integer or out of range"),
    ("COMMAND DOCS", "[]"),
    ("CONFIG GET save", "['save' '']"),
    ("CLIENT SETINFO LIB-NAME x", "OK"),
    ("HELLO 3", "-NOPROTO unsupported protocol version"),
    ("GET a", "nil"),
    ("SET a 1", "OK"),
    ("SET a 2 NX", "nil"),
    ("SET b 2 XX", "nil"),
    ("SET a 2 XX", "OK"),
    ("SET b 2 nx ex 100", "OK"),
    ("SET b 2 EX", "-ERR syntax error"),
    ("SET b 2 NX XX", "-ERR syntax error"),
    ("SET b 2 EX 1 PX 1", "-ERR syntax error"),
    ("SET b 2 EX 0", "-ERR invalid expire time in 'set' command"),
    (
        "SET b 2 EX 99999999999999999",
        "-ERR invalid expire time in 'set' command",
    ),
    ("TTL b", "100"),
    ("TTL a", "-1"),
    ("TTL missing", "-2"),
    ("EXPIRE a 50", "1"),
    ("TTL a", "50"),
    ("SET a 2", "OK"),
    ("TTL a", "-1"),
    ("EXPIRE missing 50", "0"),
    ("EXPIRE b -1", "1"),
    ("GET b", "nil"),
    ("INCR a", "3"),
    ("GET a", "'3'"),
    ("INCR new", "1"),
    ("SET text hello", "OK"),
    ("INCR text", "-ERR value is not an integer or out of range"),
    ("SET big 9223372036854775807", "OK"),
    ("INCR big", "-ERR increment or decrement would overflow"),
    ("EXISTS a a missing", "2"),
    ("DEL a new missing", "2"),
    ("EXISTS a", "0"),
    ("RPUSH l 1 2 3", "3"),
    ("LPUSH l 0", "4"),
    ("LLEN l", "4"),
    ("LPOP l", "'0'"),
    ("RPOP l 2", "['3' '2']"),
    ("LPOP l -1", "-ERR value is out of range, must be positive"),
    ("LPOP l 9", "['1']"),
    ("LPOP l", "nil"),
    ("RPOP l 1", "nil"),
    ("LLEN l", "0"),
    ("EXISTS l", "0"),
    (
        "LPUSH l",
        "-ERR wrong number of arguments for 'lpush' command",
    ),
    (
        "LPUSH text x",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    ),
    (
        "BLPOP text 0",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    ),
    ("RPUSH l x", "1"),
    (
        "GET l",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    ),
    ("BLPOP other l 0", "['l' 'x']"),
    ("BLPOP l 0.01", "nil"),
    (
        "BLPOP l",
        "-ERR wrong number of arguments for 'blpop' command",
    ),
    ("BLPOP l -1", "-ERR timeout is negative"),
    (
        "BLPOP l soon",
        "-ERR timeout is not a float or out of range",
    ),
    ("BLPOP l 1e300", "-ERR timeout is out of range"),
    ("PUBLISH nobody x", "0"),
    ("UNSUBSCRIBE", "['unsubscribe' nil 0]"),
    ("QUIT", "OK"),
];

#[test]
fn each_command() {
    let Some(server) = Redis::start(&[]) else {
        return;
    };
    let mut client = server.client();
    for (request, reply) in COMMANDS {
        assert_eq!(client.ask(request), *reply, "{request}");
    }
    client.assert_closed();
    let mut client = server.client();
    let hello = client.ask("HELLO");
    assert!(hello.contains("'proto' 2"), "{hello}");
}

#[test]
fn a_key_expires() {
    let Some(server) = Redis::start(&[]) else {
        return;
    };
    let mut client = server.client();
    assert_eq!(client.ask("SET a 1 PX 60000"), "OK");
    assert_eq!(client.ask("GET a"), "'1'");
    assert_eq!(client.ask("SET a 1 PX 20"), "OK");
    client.until("GET a", "nil");
    assert_eq!(client.ask("TTL a"), "-2");
    assert_eq!(client.ask("SET a 1 NX"), "OK");
}

// ---- the protocol ----

#[test]
fn requests_come_inline_in_pieces_and_many_at_once() {
    let Some(server) = Redis::start(&[]) else {
        return;
    };
    let mut client = server.client();
    client.send_raw(b"\r\n*0\r\n  SET 'a b' \"c\\\" d\"  \nGET 'a b'\r\n");
    assert_eq!(client.reply(), "OK");
    assert_eq!(client.reply(), "'c\" d'");
    for byte in encoded("GET missing") {
        client.send_raw(&[byte]);
    }
    assert_eq!(client.reply(), "nil");
    let many: Vec<u8> = (0..10_000)
        .flat_map(|n| encoded(&format!("ECHO {n}")))
        .collect();
    client.send_raw(&many);
    for n in 0..10_000 {
        assert_eq!(client.reply(), format!("'{n}'"));
    }
    // What follows BLPOP waits until it is answered.
    client.send_raw(&[encoded("BLPOP l 0"), encoded("PING")].concat());
    let mut other = server.client();
    other.until_blocked(1);
    assert_eq!(other.ask("RPUSH l x"), "1");
    assert_eq!(client.reply(), "['l' 'x']");
    assert_eq!(client.reply(), "PONG");
}

#[test]
fn what_is_no_request_is_refused() {
    let Some(server) = Redis::start(&[]) else {
        return;
    };
    let long = vec![b'x'; 65 << 10];
    let cases: &[(&[u8], &str)] = &[
        (b"*x\r\n", "invalid multibulk length"),
        (b"*9999999\r\n", "invalid multibulk length"),
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$8388609\r\n", "invalid bulk length"),
        (
            b"*1\r\n$2\r\nPING\r\n",
            "an argument is longer than its length",
        ),
        (b"SET 'a\r\n", "unbalanced quotes in request"),
        (&long, "too big inline request"),
    ];
    for (request, error) in cases {
        let mut client = server.client();
        client.send_raw(&encoded("PING"));
        client.send_raw(request);
        assert_eq!(client.reply(), "PONG");
        assert_eq!(client.reply(), format!("-ERR Protocol error: {error}"));
        client.assert_closed();
    }
    // The end of the stream in the middle of a request.
    let mut client = server.client();
    client.send_raw(b"*2\r\n$4\r\nECHO\r\n");
    finish(client.stream.get_ref());
    client.assert_closed();
}

#[test]
fn a_client_that_does_not_read_a_long_reply_holds_no_worker() {
    let Some(server) = Redis::start(&["--workers", "1"]) else {
        return;
    };
    // One reply that is long, and many that are long together.
    for (length, count) in [(7 << 20, 3), (10_000, 2000)] {
        let value = vec![b'v'; length];
        let mut slow = Client::new(connect_narrow(server.addr));
        let header = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${length}\r\n");
        slow.send_raw(&[header.as_bytes(), &value, b"\r\n"].concat());
        assert_eq!(slow.reply(), "OK");
        slow.send_raw(&encoded("GET k").repeat(count));
        let mut other = server.client();
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(other.ask("PING"), "PONG");
        }
        // A worker that waited would do so for the time-out of 30 s.
        assert!(start.elapsed() < Duration::from_secs(15));
        for _ in 0..count {
            assert_eq!(slow.reply().len(), length + 2);
        }
    }
}

// ---- clients that wait for each other ----

#[test]
fn thousands_subscribe_and_wait_on_two_workers() {
    let Some(mut server) = Redis::start(&["--workers", "2"]) else {
        return;
    };
    let mut subscribers: Vec<Client> = (0..SUBSCRIBERS)
        .map(|_| {
            let mut client = server.client();
            assert_eq!(client.ask("SUBSCRIBE news"), "['subscribe' 'news' 1]");
            client
        })
        .collect();
    let mut active = server.client();
    let mut waiting: Vec<Client> = (0..WAITING)
        .map(|n| {
            let mut client = server.client();
            client.send("BLPOP jobs 0");
            // The order of waiting is that of this loop.
            active.until_blocked(n + 1);
            client
        })
        .collect();

    let start = Instant::now();
    for n in 0..20 {
        let sent = active.ask(&format!("PUBLISH news {n}"));
        assert_eq!(sent, SUBSCRIBERS.to_string());
    }
    println!(
        "20 messages to {SUBSCRIBERS} clients: {:?}",
        start.elapsed()
    );
    for client in &mut subscribers {
        for n in 0..20 {
            assert_eq!(client.reply(), format!("['message' 'news' '{n}']"));
        }
    }

    let numbers: Vec<String> = (0..WAITING).map(|n| n.to_string()).collect();
    let start = Instant::now();
    let pushed = active.ask(&format!("RPUSH jobs {}", numbers.join(" ")));
    assert_eq!(pushed, WAITING.to_string());
    for (client, number) in waiting.iter_mut().zip(numbers) {
        assert_eq!(client.reply(), format!("['jobs' '{number}']"));
    }
    println!("an element to {WAITING} clients: {:?}", start.elapsed());
    assert_eq!(active.ask("LLEN jobs"), "0");

    // The server stops while they wait: those in BLPOP are told, and all are closed.
    for client in &mut waiting {
        client.send("BLPOP jobs 0");
    }
    active.until_blocked(WAITING);
    server.signal(Signal::TERM);
    let start = Instant::now();
    for client in &mut waiting {
        let reply = client.reply();
        assert!(reply.starts_with("-UNBLOCKED "), "{reply}");
        client.assert_closed();
    }
    for client in &mut subscribers {
        client.assert_closed();
    }
    let report = server.end();
    println!("stopped after {:?}: {report}", start.elapsed());
    assert!(report.contains("0 forced, 0 dropped"), "{report}");
    // Its time-out is 30 s.
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_was_published_before_the_stop_is_sent() {
    let Some(mut server) = Redis::start(&[]) else {
        return;
    };
    let mut subscriber = server.client();
    subscriber.ask("SUBSCRIBE news");
    let mut active = server.client();
    active.send_raw(&encoded("PUBLISH news x").repeat(1000));
    for _ in 0..1000 {
        assert_eq!(active.reply(), "1");
    }
    server.signal(Signal::TERM);
    for _ in 0..1000 {
        assert_eq!(subscriber.reply(), "['message' 'news' 'x']");
    }
    subscriber.assert_closed();
    server.end();
}

/// The client has left before the element comes. The server may find out about the two in any order.
#[test]
#[cfg(target_os = "linux")]
fn an_element_is_not_lost_with_a_client_that_has_left() {
    let Some(server) = Redis::start(&["--workers", "2"]) else {
        return;
    };
    let mut active = server.client();
    for round in 0..300 {
        let mut leaving = server.client();
        leaving.send("BLPOP k other 0");
        active.until_blocked(1);
        let mut next = server.client();
        // Some rounds have a client that waits already, some one that comes later.
        let waits = round % 3 > 0;
        if waits {
            next.send("BLPOP k 0");
            active.until_blocked(2);
        }
        // A process that another test starts may have a copy of the socket for a moment, so that a close alone may come
        // late.
        let leaving = leaving.stream.into_inner();
        match round % 2 {
            0 => finish(&leaving),
            _ => {
                let at_server = ServerSide::of(&leaving);
                reset(leaving);
                at_server.until_reset();
            }
        }
        assert_eq!(active.ask(&format!("RPUSH k {round}")), "1");
        if !waits {
            next.send("BLPOP k 0");
        }
        assert_eq!(next.reply(), format!("['k' '{round}']"));
        active.until_blocked(0);
        assert_eq!(active.ask("LLEN k"), "0");
    }
}

/// Time-outs that pass while elements come: each element goes to a client, or stays.
#[test]
fn an_element_or_nil_but_not_both() {
    let Some(server) = Redis::start(&["--workers", "2"]) else {
        return;
    };
    let mut active = server.client();
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for round in 0..10 {
        for client in &mut clients {
            client.send("BLPOP k 0.02");
        }
        let mut pushed = 0;
        while pushed < 50 {
            pushed += 1;
            active.ask(&format!("RPUSH k {round}"));
        }
        let served = clients.iter_mut().filter_map(|client| {
            let reply = client.reply();
            (reply != "nil").then(|| assert_eq!(reply, format!("['k' '{round}']")))
        });
        let served = served.count();
        active.until_blocked(0);
        let left = active.ask("LLEN k").parse::<usize>().unwrap();
        assert_eq!(served + left, pushed, "round {round}");
        active.ask("DEL k");
    }
}

#[test]
fn what_a_subscriber_may_do() {
    let Some(server) = Redis::start(&[]) else {
        return;
    };
    let mut client = server.client();
    client.send("SUBSCRIBE a b a");
    assert_eq!(client.reply(), "['subscribe' 'a' 1]");
    assert_eq!(client.reply(), "['subscribe' 'b' 2]");
    assert_eq!(client.reply(), "['subscribe' 'a' 2]");
    assert_eq!(
        client.ask("PSUBSCRIBE n?w*\\?"),
        "['psubscribe' 'n?w*\\?' 3]"
    );
    assert_eq!(client.ask("PING"), "['pong' '']");
    let refused = client.ask("GET a");
    assert!(refused.starts_with("-ERR Can't execute 'get'"), "{refused}");
    let refused = client.ask("BLPOP a 0");
    assert!(refused.starts_with("-ERR Can't"), "{refused}");

    let mut active = server.client();
    for (channel, sent) in [("a", 1), ("new", 0), ("news of today?", 1), ("c", 0)] {
        let request = format!(
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n$1\r\nx\r\n",
            channel.len()
        );
        active.send_raw(request.as_bytes());
        assert_eq!(active.reply(), sent.to_string(), "{channel}");
    }
    assert_eq!(client.reply(), "['message' 'a' 'x']");
    assert_eq!(
        client.reply(),
        "['pmessage' 'n?w*\\?' 'news of today?' 'x']"
    );
    assert_eq!(client.ask("UNSUBSCRIBE b"), "['unsubscribe' 'b' 2]");
    assert_eq!(client.ask("UNSUBSCRIBE"), "['unsubscribe' 'a' 1]");
    assert_eq!(active.ask("PUBLISH a x"), "0");
    assert_eq!(client.ask("PUNSUBSCRIBE"), "['punsubscribe' 'n?w*\\?' 0]");
    // From here on it is a client like any other.
    assert_eq!(client.ask("PING"), "PONG");
    assert_eq!(client.ask("SUBSCRIBE a"), "['subscribe' 'a' 1]");
    assert_eq!(active.ask("PUBLISH a y"), "1");
    assert_eq!(client.reply(), "['message' 'a' 'y']");
    drop(client);
    active.until("PUBLISH a x", "0");
}

#[test]
fn a_subscriber_that_does_not_read_is_dropped() {
    let Some(server) = Redis::start(&["--outbox-limit", "200000"]) else {
        return;
    };
    let mut slow = Client::new(connect_narrow(server.addr));
    let mut good = server.client();
    slow.ask("SUBSCRIBE news");
    good.ask("SUBSCRIBE news");
    let mut active = server.client();
    let message = "x".repeat(50_000);
    let expected = format!("['message' 'news' '{message}']");
    let request = format!("PUBLISH news {message}");
    let mut sent = active.ask(&request);
    assert_eq!(sent, "2");
    let deadline = Instant::now() + support::LIMIT;
    while sent == "2" {
        assert!(Instant::now() < deadline, "the subscriber is never dropped");
        assert_eq!(good.reply(), expected);
        sent = active.ask(&request);
    }
    assert_eq!(sent, "1");
    assert_eq!(good.reply(), expected);
    // What the kernel had taken may still be read, or the reset is.
    let _ = slow.stream.read_to_end(&mut Vec::new());
}

/// Clients that are idle are closed, if the server is told so, and clients that wait are not.
#[test]
fn only_idle_clients_are_idle() {
    let Some(server) = Redis::start(&["--timeout", "0.3"]) else {
        return;
    };
    let mut subscriber = server.client();
    subscriber.ask("SUBSCRIBE news");
    let mut waiting = server.client();
    waiting.send("BLPOP k 0");
    // It has to be closed after each of these.
    for requests in [
        &["PING"][..],
        &["BLPOP none 0.5"],
        &["SUBSCRIBE a", "UNSUBSCRIBE a"],
    ] {
        let mut idle = server.client();
        for request in requests {
            idle.ask(request);
        }
        idle.assert_closed();
    }
    let mut active = server.client();
    assert_eq!(active.ask("PUBLISH news x"), "1");
    assert_eq!(active.ask("RPUSH k x"), "1");
    assert_eq!(subscriber.reply(), "['message' 'news' 'x']");
    assert_eq!(waiting.reply(), "['k' 'x']");
    waiting.assert_closed();
}

// ---- the real clients ----

#[test]
fn the_tools_of_redis() {
    let Some(server) = Redis::start(&["--workers", "2"]) else {
        return;
    };
    let Some(_) = server.tool("redis-cli", &["PING"]) else {
        return;
    };
    let run = |args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        server.tool("redis-cli", &args).unwrap()
    };
    assert_eq!(run("SET colour green EX 60"), "OK\n");
    assert_eq!(run("GET colour"), "green\n");
    let left: u64 = run("TTL colour").trim().parse().unwrap();
    assert!((1..=60).contains(&left), "{left}");
    assert_eq!(run("RPUSH list 1 2 3"), "3\n");
    assert_eq!(run("BLPOP list 1"), "list\n1\n");
    assert_eq!(run("BLPOP nothing 0.05"), "\n");
    assert_eq!(run("-r 3 INCR n"), "1\n2\n3\n");
    let Some(lines) = server.tool(
        "redis-benchmark",
        &[
            "-t",
            "ping,set,get,incr,lpush",
            "-c",
            "20",
            "-n",
            "2000",
            "-P",
            "4",
            "--csv",
        ],
    ) else {
        return;
    };
    // A header, and a line for each test; PING is two.
    assert_eq!(lines.lines().count(), 7, "{lines}");
}

// ---- the server ----

struct Redis {
    child: Child,
    output: BufReader<ChildStdout>,
    addr: SocketAddr,
    _group: ProcessGroup,
}

impl Redis {
    /// Starts the example beside this test. `cargo test` builds it; `cargo test --test resp` does not, and then there
    /// may be nothing to test.
    fn start(options: &[&str]) -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let binary = profile.join("examples/resp");
        if !binary.exists() {
            let path = binary.display();
            eprintln!("SKIPPED: {path} is not there; `cargo build --example resp` makes it");
            return None;
        }
        // For the clients, and for the server, which inherits it.
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        setrlimit(Resource::Nofile, files).unwrap();
        let mut command = Command::new(binary);
        command.args(["--listen", "127.0.0.1:0"]).args(options);
        command.process_group(0);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let group = ProcessGroup::of(&child);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ");
        let addr = addr.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        Some(Self {
            child,
            output,
            addr,
            _group: group,
        })
    }

    fn client(&self) -> Client {
        Client::new(connect(self.addr))
    }

    /// To be called when the server has served: then it is known to react to signals.
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the server ends by itself, and returns its report.
    fn end(&mut self) -> String {
        let mut report = String::new();
        self.output.read_to_string(&mut report).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {report}");
        report.trim().to_owned()
    }

    /// Runs a program of Redis against the server, and returns what it prints. `None` if it is not installed.
    fn tool(&self, name: &str, args: &[&str]) -> Option<String> {
        let port = self.addr.port().to_string();
        let mut command = Command::new(name);
        command.args(["-h", "127.0.0.1", "-p", &port]).args(args);
        match support::try_output_of(&mut command) {
            Ok(output) => {
                assert!(output.status.success(), "{args:?}: {output:?}");
                Some(String::from_utf8(output.stdout).unwrap())
            }
            Err(error) => {
                eprintln!("SKIPPED: {name}: {error}; the package redis-tools has it");
                None
            }
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A process that has ended and been waited for is left alone by std.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- its clients ----

struct Client {
    stream: BufReader<TcpStream>,
}

fn encoded(request: &str) -> Vec<u8> {
    let words: Vec<&str> = request.split(' ').collect();
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes += &format!("${}\r\n{word}\r\n", word.len());
    }
    bytes.into_bytes()
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, request: &str) {
        self.send_raw(&encoded(request));
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    #[track_caller]
    fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.reply()
    }

    /// The next reply: `OK`, `-ERR …`, `7`, `'bytes'`, `nil`, or `[… …]`.
    #[track_caller]
    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let line = line.strip_suffix("\r\n").expect("a whole line");
        let (kind, rest) = line.split_at(1);
        match (kind, rest) {
            ("$" | "*", "-1") => "nil".to_owned(),
            ("+" | ":", rest) => rest.to_owned(),
            ("-", _) => line.to_owned(),
            ("$", length) => {
                let mut bytes = vec![0; length.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                let text = String::from_utf8(bytes).unwrap();
                format!("'{}'", text.strip_suffix("\r\n").unwrap())
            }
            ("*", count) => {
                let count: usize = count.parse().unwrap();
                let replies: Vec<String> = (0..count).map(|_| self.reply()).collect();
                format!("[{}]", replies.join(" "))
            }
            _ => panic!("not a reply: {line:?}"),
        }
    }

    /// Asks until this is the reply.
    #[track_caller]
    fn until(&mut self, request: &str, reply: &str) {
        let client = std::cell::RefCell::new(self);
        eventually(request, || client.borrow_mut().ask(request) == reply);
    }

    /// Waits until so many clients wait in BLPOP.
    #[track_caller]
    fn until_blocked(&mut self, clients: usize) {
        let info = format!("'# Clients\r\nblocked_clients:{clients}\r\n'");
        self.until("INFO", &info);
    }

    #[track_caller]
    fn assert_closed(&mut self) {
        assert_closed(&mut self.stream);
    }
}
