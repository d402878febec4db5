//! The end of a connection in a drain: it comes together with an answer, so that a client that waits for each answer
//! loses no request.
#![cfg(target_os = "linux")] // Other systems cannot hold the answer back.

mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use handover::{Bind, Builder, Connection, Handle, Next, Restart, Server};
use socket2::Socket;
use tempfile::TempDir;

use support::{LIMIT, answer, door, eventually, settings, start};

const GOODBYE: &str = "421 goodbye\n";

// ---- the server ----

static HANDLE: OnceLock<Handle> = OnceLock::new();

fn handle() -> &'static Handle {
    eventually("the server has a handle", || HANDLE.get().is_some());
    HANDLE.get().unwrap()
}

fn reply(conn: &Connection, line: &str) -> String {
    match line {
        "pid" => std::process::id().to_string(),
        "draining" => conn.is_draining().to_string(),
        "restart" => {
            handle().request_restart();
            "asked".to_owned()
        }
        line => match line.strip_prefix("long ") {
            Some(count) => "x".repeat(count.parse().unwrap()),
            None => line.to_owned(),
        },
    }
}

/// Answers one line in each call.
fn lines(conn: &mut Connection, (): &mut ()) -> io::Result<Next> {
    let Some(line) = conn.take_line(4096)? else {
        return Ok(Next::incomplete(conn));
    };
    let reply = reply(conn, &line);
    match line.starts_with("owned ") {
        true => conn.write_owned(format!("{reply}\n").into_bytes())?,
        false => writeln!(conn, "{reply}")?,
    }
    if conn.listener_name() != "plain" {
        // As a program for a blocking socket does.
        conn.flush()?;
    }
    Ok(Next::Park)
}

/// Answers each line in two calls.
fn pieces(conn: &mut Connection, sent: &mut Vec<u8>) -> io::Result<Next> {
    if !sent.is_empty() {
        sent.clear();
        conn.write_all(b"\n")?;
        return Ok(Next::Park);
    }
    let Some(line) = conn.take_line(4096)? else {
        return Ok(Next::incomplete(conn));
    };
    conn.write_all(line.as_bytes())?;
    sent.push(1);
    Ok(Next::Again)
}

/// Answers blocks of this size.
const BLOCK: usize = 64 * 1024;

fn blocks(conn: &mut Connection) -> io::Result<Next> {
    conn.read_exact(&mut [0; BLOCK])?;
    conn.write_all(b"a block\n")?;
    Ok(Next::Park)
}

/// A library that knows nothing of this crate.
fn loop_over(
    mut stream: impl Read + Write,
    received: &mut Vec<u8>,
    answer: impl Fn(&str) -> String,
) -> io::Result<()> {
    loop {
        while let Some(end) = received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]);
            writeln!(stream, "{}", answer(&line))?;
            stream.flush()?;
        }
        let mut room = [0; 512];
        match stream.read(&mut room)? {
            0 => return Ok(()),
            count => received.extend_from_slice(&room[..count]),
        }
    }
}

/// Answers lines over a view of the connection. The service can tell where a message ends.
fn library(conn: &mut Connection, received: &mut Vec<u8>) -> io::Result<Next> {
    let is_draining = conn.is_draining();
    let answer = |line: &str| match line {
        "draining" => is_draining.to_string(),
        "pid" => std::process::id().to_string(),
        line => line.to_owned(),
    };
    match loop_over(conn.nonblocking(), received, answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock && received.is_empty() => {
            Ok(Next::Park)
        }
        result => result.map(|()| Next::Close),
    }
}

/// As `library`, for a library that keeps parts of messages to itself.
fn handshake(conn: &mut Connection, received: &mut Vec<u8>) -> io::Result<Next> {
    loop_over(conn.nonblocking(), received, str::to_owned)?;
    Ok(Next::Close)
}

fn serve(conn: &mut Connection, received: &mut Vec<u8>) -> io::Result<Next> {
    match conn.listener_name() {
        "library" => library(conn, received),
        "handshake" => handshake(conn, received),
        "pieces" => pieces(conn, received),
        "blocks" => blocks(conn),
        _ => lines(conn, &mut ()),
    }
}

fn begin(conn: &mut Connection) -> io::Result<Vec<u8>> {
    conn.set_goodbye(GOODBYE);
    if conn.listener_name() == "greeting" {
        writeln!(conn, "220 ready")?;
    }
    Ok(Vec::new())
}

const NAMES: [&str; 6] = ["lines", "plain", "pieces", "library", "handshake", "unix"];

/// Those whose connections end behind an answer after a restart.
const ENDING: [&str; 4] = ["lines", "plain", "pieces", "library"];

fn listening(builder: Builder, dir: &Path) -> Builder {
    let builder = NAMES.iter().fold(builder, |builder, &name| {
        let bind = match name == "unix" {
            true => Bind::new(support::unix(&dir.join(name))),
            false => Bind::new("127.0.0.1:0"),
        };
        builder.listen(bind.name(name))
    });
    let greeting = Bind::new("127.0.0.1:0").name("greeting").speaks_first(true);
    let blocks = Bind::new("127.0.0.1:0").name("blocks");
    builder.listen(greeting).listen(blocks)
}

const DIR: &str = "HANDOVER_DRAIN_ENDS_DIR";

/// The server that the tests start and restart; not a test.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let restart = Restart::inherit().unwrap();
    let is_first = restart.generation() == 1;
    let builder = Server::builder().workers(4).drain_timeout(LIMIT);
    let builder = listening(builder, &dir).restart(restart.idle_grace(LIMIT));
    #[cfg(feature = "signals")]
    let builder = builder.signals(false);
    let service = handover::service_with_session(begin, serve);
    let handle = builder.build(service).unwrap().start().unwrap();
    if is_first {
        let addrs = handle.local_addrs();
        let addrs = addrs.iter().filter_map(|addr| addr.as_ip());
        let addrs: Vec<_> = addrs.map(|addr| addr.to_string()).collect();
        fs::write(dir.join("new"), addrs.join(" ")).unwrap();
        fs::rename(dir.join("new"), dir.join("addrs")).unwrap();
    }
    HANDLE.get_or_init(|| handle.clone());
    // The test ends the last process.
    thread::spawn(move || {
        while dir.exists() {
            thread::park_timeout(Duration::from_millis(5));
        }
        self::handle().stop_now();
    });
    handle.join();
    std::process::exit(0);
}

struct Program {
    /// Removed when the program is dropped: the processes end then.
    dir: Option<TempDir>,
    first: Child,
    addrs: Vec<SocketAddr>,
}

impl Program {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let first = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let file = dir.path().join("addrs");
        eventually("the server has started", || file.exists());
        let addrs = fs::read_to_string(file).unwrap();
        let addrs: Vec<_> = addrs.split(' ').map(|addr| addr.parse().unwrap()).collect();
        Self {
            dir: Some(dir),
            first,
            addrs,
        }
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    fn connect(&self, name: &str) -> Client {
        let mut tcp = NAMES.iter().filter(|name| **name != "unix");
        match (name, tcp.position(|it| *it == name)) {
            (_, Some(place)) => Client::tcp(self.addrs[place]),
            ("greeting", _) => Client::tcp(self.addrs[NAMES.len() - 1]),
            ("blocks", _) => Client::tcp(self.addrs[NAMES.len()]),
            (name, None) => Client::unix(&self.dir().join(name)),
        }
    }

    /// Restarts the program. Returns when the process that has served drains.
    fn restart(&self) {
        let mut asking = self.connect("lines");
        asking.ask("pid");
        let before = asking.answer();
        asking.ask("restart");
        assert_eq!(asking.answer(), "asked");
        eventually("the process drains", || {
            thread::sleep(Duration::from_millis(2));
            // The end of the connection may come at any time once it drains.
            asking
                .try_ask("draining")
                .is_none_or(|answer| answer == "true")
        });
        eventually("the successor serves", || {
            let mut client = self.connect("lines");
            client.ask("pid");
            client.answer() != before
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.dir.take());
        let _ = self.first.wait();
    }
}

// ---- the client ----

/// A client that waits for each answer.
struct Client(Socket);

impl Client {
    fn tcp(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, LIMIT).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream.into())
    }

    fn unix(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap().into())
    }

    fn new(socket: Socket) -> Self {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn ask(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn answer(&mut self) -> String {
        answer(&mut self.0)
    }

    /// The answer to a line, or the goodbye. `None`: the connection has ended before.
    fn try_ask(&mut self, line: &str) -> Option<String> {
        let is_end = |error: &io::Error| {
            matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            )
        };
        let mut answer = Vec::new();
        let result = self
            .0
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| {
                let mut byte = [0];
                while answer.last() != Some(&b'\n') && self.0.read(&mut byte)? > 0 {
                    answer.push(byte[0]);
                }
                Ok(())
            });
        if let Err(error) = result {
            assert!(is_end(&error), "{error}");
        }
        let answer = String::from_utf8(answer).unwrap();
        answer.strip_suffix('\n').map(str::to_owned)
    }

    /// What has come behind the last answer by now, and whether the stream has ended.
    fn rest(&mut self) -> (String, bool) {
        self.0.set_nonblocking(true).unwrap();
        let mut rest = Vec::new();
        let result = self.0.read_to_end(&mut rest);
        self.0.set_nonblocking(false).unwrap();
        let is_ended = match result {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        };
        (String::from_utf8(rest).unwrap(), is_ended)
    }

    fn is_ended(&mut self) -> bool {
        self.rest().1
    }

    /// Asserts that the connection ends together with an answer: with the last one, or, if the keeper had to send that on
    /// a busy machine, with a later one.
    #[track_caller]
    fn assert_ends(&mut self, name: &str) {
        let (question, answer) = match name {
            "blocks" => (&[0; BLOCK][..], "a block"),
            _ => (&b"another\n"[..], "another"),
        };
        for _ in 0..1000 {
            match self.rest() {
                (rest, true) => return assert_eq!(rest, GOODBYE, "{name}"),
                (rest, false) => assert_eq!(rest, "", "{name}"),
            }
            self.0.write_all(question).unwrap();
            assert_eq!(self.answer(), answer, "{name}");
        }
        panic!("{name}: the connection does not end");
    }

    /// Asserts that the end follows, and nothing else.
    #[track_caller]
    fn assert_end_follows(&mut self, name: &str) {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, GOODBYE, "{name}");
    }

    #[track_caller]
    fn assert_open(&mut self) {
        assert_eq!(self.rest(), (String::new(), false));
    }
}

// ---- restarts ----

#[test]
fn after_a_restart_a_connection_ends_with_its_next_answer() {
    for _ in 0..3 {
        let program = Program::start();
        let mut clients: Vec<_> = NAMES
            .iter()
            .flat_map(|name| (0..10).map(|_| (*name, program.connect(name))))
            .collect();
        for (_, client) in &mut clients {
            client.ask("first");
            assert_eq!(client.answer(), "first");
        }
        let mut greeted = program.connect("greeting");
        assert_eq!(greeted.answer(), "220 ready");
        program.restart();
        for (name, client) in &mut clients {
            client.assert_open();
            client.ask("hello");
            assert_eq!(client.answer(), "hello");
            match ENDING.contains(name) {
                true => client.assert_ends(name),
                false => client.assert_open(),
            }
        }
        // A greeting answers nothing.
        greeted.assert_open();
        greeted.ask("hello");
        assert_eq!(greeted.answer(), "hello");
        greeted.assert_ends("greeting");
    }
}

/// A read may take exactly what has arrived.
#[test]
fn after_a_restart_the_answer_to_a_large_message_ends_its_connection() {
    let program = Program::start();
    let mut client = program.connect("blocks");
    client.0.write_all(&[0; BLOCK]).unwrap();
    assert_eq!(client.answer(), "a block");
    program.restart();
    client.0.write_all(&[0; BLOCK]).unwrap();
    assert_eq!(client.answer(), "a block");
    client.assert_ends("blocks");
}

#[test]
fn after_a_restart_all_that_a_client_has_sent_is_answered_before_the_end() {
    let program = Program::start();
    let mut clients: Vec<_> = ENDING
        .iter()
        .map(|name| (name, program.connect(name)))
        .collect();
    for (_, client) in &mut clients {
        client.ask("first");
        assert_eq!(client.answer(), "first");
    }
    program.restart();
    for (name, client) in &mut clients {
        let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
        client.0.write_all(lines.as_bytes()).unwrap();
        for number in 0..1000 {
            assert_eq!(client.answer(), number.to_string(), "{name}");
        }
        client.assert_ends(name);
    }
}

/// Longer than what is gathered.
#[test]
fn after_a_restart_a_long_answer_ends_its_connection_too() {
    let program = Program::start();
    for (name, line) in [("lines", "long 100000"), ("lines", "owned long 100000")] {
        let mut client = program.connect(name);
        client.ask("hello");
        assert_eq!(client.answer(), "hello");
        program.restart();
        client.ask(line);
        let answer = client.answer();
        let count = line.rsplit(' ').next().unwrap();
        match line.starts_with("owned ") {
            true => assert_eq!(answer, line),
            false => assert_eq!(answer.len().to_string(), count),
        }
        client.assert_ends(name);
    }
}

#[test]
fn no_client_that_waits_for_each_answer_loses_a_request_by_restarts() {
    let program = Program::start();
    let (is_over, lost) = (AtomicBool::new(false), AtomicU64::new(0));
    let (asked, connections) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for name in ENDING {
            let (program, is_over, lost) = (&program, &is_over, &lost);
            let (asked, connections) = (&asked, &connections);
            scope.spawn(move || {
                while !is_over.load(SeqCst) {
                    let mut client = program.connect(name);
                    connections.fetch_add(1, SeqCst);
                    while !is_over.load(SeqCst) && !client.is_ended() {
                        // What cannot be sent is not lost.
                        if client.0.write_all(b"request\n").is_err() {
                            break;
                        }
                        asked.fetch_add(1, SeqCst);
                        let mut room = [0; 8];
                        if client.0.read_exact(&mut room).is_err() || room != *b"request\n" {
                            lost.fetch_add(1, SeqCst);
                            eprintln!("{name}: lost");
                            break;
                        }
                    }
                }
            });
        }
        for _ in 0..8 {
            let goal = asked.load(SeqCst) + 500;
            eventually("clients ask", || {
                thread::sleep(Duration::from_millis(1));
                asked.load(SeqCst) >= goal
            });
            program.restart();
        }
        is_over.store(true, SeqCst);
    });
    let (asked, connections) = (asked.into_inner(), connections.into_inner());
    assert_eq!(lost.into_inner(), 0, "of {asked} requests");
    assert!(connections >= 8 * ENDING.len() as u64, "{connections}");
}

// ---- stops ----

/// Calls that are in progress when the stop begins.
#[test]
fn at_a_stop_a_connection_ends_with_the_answer_of_its_call() {
    for name in NAMES.iter().cycle().take(40) {
        let dir = TempDir::new().unwrap();
        let (keeper, door) = door();
        let service = handover::service_with_session(begin, move |conn: &mut Connection, all| {
            pass_until_drain(&door, conn);
            serve(conn, all)
        });
        let handle = start(listening(settings(), dir.path()).workers(4), service);
        let place = NAMES.iter().position(|it| it == name).unwrap();
        let mut clients: Vec<_> = (0..4)
            .map(|_| match handle.local_addrs()[place].as_ip() {
                Some(addr) => Client::tcp(addr),
                None => Client::unix(&dir.path().join(name)),
            })
            .collect();
        for client in &mut clients {
            client.0.write_all(b"one\ntwo\n").unwrap();
            keeper.wait();
        }
        handle.stop(LIMIT);
        // What comes before the answers leave is answered.
        for client in &mut clients {
            client.ask("three");
        }
        drop(keeper);
        for client in &mut clients {
            for line in ["one", "two", "three"] {
                assert_eq!(client.answer(), line);
            }
            client.assert_end_follows(name);
        }
        drop(clients);
        let report = handle.join();
        assert!(report.is_clean(), "{report}");
    }
}

/// A client that gets its answers while the calls last sends one request after the other.
#[test]
fn at_a_stop_a_client_that_goes_on_sending_is_ended() {
    // There, a short read does not say that the socket is empty: the bound is `input_limit`.
    if cfg!(handover_one_waiter) {
        return;
    }
    let (keeper, door) = door();
    let service = handover::service_with_session(begin, move |conn: &mut Connection, _: &mut _| {
        let Some(line) = conn.take_line(4096)? else {
            return Ok(Next::incomplete(conn));
        };
        writeln!(conn, "{line}")?;
        conn.flush_all()?;
        pass_until_drain(&door, conn);
        Ok(Next::Park)
    });
    let handle = start(support::server().workers(1), service);
    let mut client = Client::tcp(support::addr(&handle));
    client.ask("first");
    assert_eq!(client.answer(), "first");
    handle.stop(LIMIT);
    let mut answered = 1;
    loop {
        match client.0.write_all(b"next\n") {
            Ok(()) => {}
            // The end has come behind the last answer, and the server's socket is closed already.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => panic!("{error}"),
        }
        keeper.let_one_in();
        let mut room = [0; 5];
        match client.0.read_exact(&mut room) {
            Ok(()) => answered += 1,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("{error}"),
        }
        assert!(answered < 10, "the stop does not end the connection");
    }
    assert!(handle.join().is_clean());
}

#[test]
fn at_a_stop_a_client_that_has_sent_all_gets_its_answers() {
    let (keeper, door) = door();
    let service = handover::service_with_session(begin, move |conn: &mut Connection, all| {
        pass_until_drain(&door, conn);
        serve(conn, all)
    });
    let handle = start(support::server().workers(1), service);
    let mut client = support::connect(support::addr(&handle));
    client.write_all(b"one\n").unwrap();
    keeper.wait();
    client.write_all(b"two\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    handle.stop(LIMIT);
    drop(keeper);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    // The server may have seen the end of the client's side, or not.
    assert_eq!(all.strip_suffix(GOODBYE).unwrap_or(&all), "one\ntwo\n");
    assert!(handle.join().is_clean());
}

/// A call that lasts until the drain has begun.
fn pass_until_drain(door: &support::Door, conn: &Connection) {
    door.pass();
    eventually("the drain begins", || conn.is_draining());
}
