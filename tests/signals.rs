//! Signals, with real processes: each test runs this file again as a server in a process of its own, and signals it.
//!
//! `child` is that server; which one it is to be is said by an environment variable.
#![cfg(all(unix, feature = "signals"))] // signals

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use handover::{Builder, Connection, Next, Server};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts;

const LONG: Duration = Duration::from_secs(60);
const ROLE: &str = "HANDOVER_TEST_ROLE";

#[test]
fn term_and_int_drain() {
    for signal in [Signal::TERM, Signal::INT] {
        assert_drains(signal);
    }
}

#[test]
fn a_second_term_or_int_stops_now() {
    let both = [Signal::TERM, Signal::INT];
    for (first, second) in both.into_iter().flat_map(|first| both.map(|s| (first, s))) {
        let mut server = Running::start("run");
        let mut client = server.client();
        client.hold();
        server.signal(first);
        until_refused(server.addr);
        server.signal(second);
        assert_eq!(client.rest(), "", "{first:?}, {second:?}");
        let (status, output) = server.end();
        assert!(status.success(), "{first:?}, {second:?}: {status}");
        assert!(output.contains("1 forced"), "{output}");
    }
}

#[test]
fn quit_stops_now() {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.signal(Signal::QUIT);
    assert_eq!(client.rest(), "");
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert!(output.contains("1 forced"), "{output}");
}

#[test]
fn usr1_calls_the_hook() {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    for _ in 0..3 {
        server.signal(Signal::USR1);
        server.until("hook");
        client.send("still there\n");
        assert_eq!(client.line(), "still there\n");
    }
    server.signal(Signal::TERM);
    assert!(server.end().0.success());
}

#[test]
fn without_signals_the_programs_own_handling_stays() {
    let mut server = Running::start("own");
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    for _ in 0..3 {
        server.signal(Signal::TERM);
        server.until("the program's own");
        client.send("still there\n");
        assert_eq!(client.line(), "still there\n");
    }
    // What the program does not handle does what it does by default.
    server.signal(Signal::INT);
    let (status, _) = server.end();
    assert_eq!(status.signal(), Some(consts::SIGINT), "{status}");
}

/// Their default action would end the process in the middle of an answer.
#[test]
fn a_signal_for_a_restart_drains_a_server_that_has_none() {
    // A server that starts with SIGHUP ignored, as all do that these tests start under `nohup`, goes on ignoring it.
    let signals = match is_hangup_ignored() {
        true => &[Signal::USR2][..],
        false => &[Signal::HUP, Signal::USR2],
    };
    for &signal in signals {
        assert_drains(signal);
    }
}

/// The signal lets a request in progress end, and then the server.
#[track_caller]
fn assert_drains(signal: Signal) {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.signal(signal);
    until_refused(server.addr);
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let (status, output) = server.end();
    assert!(status.success(), "{signal:?}: {status}");
    assert!(output.contains("0 forced, 0 dropped"), "{output}");
}

/// By the field SigIgn of proc_pid_status(5).
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn after_the_end_signals_have_their_default_actions() {
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let mut server = Running::start("linger");
        server.client().hold();
        server.signal(Signal::TERM);
        server.until("returned");
        server.signal(signal);
        let (status, _) = server.end();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    }
}

#[test]
fn a_later_server_reacts_to_signals_anew() {
    let mut server = Running::start("twice");
    for _ in 0..2 {
        let mut client = server.client();
        client.hold();
        // The first one for each of them, so that it drains.
        server.signal(Signal::INT);
        until_refused(server.addr);
        client.send("go on\n");
        assert_eq!(client.rest(), "go on\n");
        server.until("0 forced, 0 dropped");
        server.addr = server.listening();
    }
    server.client().hold();
    server.signal(Signal::TERM);
    assert!(server.end().0.success());
}

#[test]
fn all_servers_of_a_process_react() {
    let mut server = Running::start("pair");
    let first = server.addr;
    let second = server.listening();
    let mut clients = [first, second].map(|addr| {
        let mut client = Client::new(addr);
        client.hold();
        client
    });
    server.signal(Signal::TERM);
    until_refused(first);
    until_refused(second);
    for client in &mut clients {
        client.send("go on\n");
        assert_eq!(client.rest(), "go on\n");
    }
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert_eq!(output.matches("0 forced, 0 dropped").count(), 2, "{output}");
}

#[test]
fn an_embedded_server_touches_no_signal() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::USR1] {
        let mut server = Running::start("embedded");
        server.client().hold();
        server.signal(signal);
        let (status, _) = server.end();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    }
}

#[test]
fn an_embedded_server_handles_signals_by_choice_until_it_has_stopped() {
    let mut server = Running::start("embedded by choice");
    let mut client = server.client();
    client.hold();
    server.signal(Signal::USR1);
    server.until("hook");
    server.signal(Signal::TERM);
    until_refused(server.addr);
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let line = server.until("stopped in");
    assert!(line.contains("0 forced, 0 dropped"), "{line}");
    // They have their default actions again.
    server.signal(Signal::TERM);
    let (status, _) = server.end();
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
}

#[test]
fn clients_that_disappear_do_not_kill_a_program_that_dies_of_sigpipe() {
    let mut server = Running::start("pipe");
    for what in ["write\n", "vectored\n", "park\n"] {
        let mut client = server.client();
        client.send(what);
        assert_eq!(client.line(), "here it comes\n");
        // With input unread, so that the server is told of it by a reset.
        drop(client);
        server.until("gone");
    }
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    server.signal(Signal::TERM);
    let (status, output) = server.end();
    assert!(status.success(), "{status}: {output}");
}

// ---- the servers ----

/// Not a test: a server, when one of the tests has started it.
#[test]
fn child() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    match role.to_str().unwrap() {
        "run" => run(builder()),
        "own" => {
            let mut signals = signal_hook::iterator::Signals::new([consts::SIGTERM]).unwrap();
            thread::spawn(move || signals.forever().for_each(|_| say("the program's own")));
            run(builder().signals(false));
        }
        "linger" => {
            run(builder().drain_timeout(Duration::ZERO));
            say("returned");
            loop {
                thread::park();
            }
        }
        "twice" => (0..3).for_each(|_| run(builder())),
        "pair" => {
            let servers = [(); 2].map(|()| thread::spawn(|| run(builder())));
            servers
                .into_iter()
                .for_each(|server| server.join().unwrap());
        }
        "embedded" => {
            let handle = builder().build(serve).unwrap().start().unwrap();
            say(&format!("listening on {}", handle.local_addrs()[0]));
            loop {
                thread::park();
            }
        }
        "embedded by choice" => {
            let server = builder().signals(true).build(serve).unwrap();
            let handle = server.start().unwrap();
            say(&format!("listening on {}", handle.local_addrs()[0]));
            say(&handle.join().to_string());
            loop {
                thread::park();
            }
        }
        "pipe" => {
            let yes = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_default(consts::SIGPIPE, yes).unwrap();
            run(builder());
        }
        other => panic!("there is no server {other}"),
    }
}

fn builder() -> Builder {
    let builder = Server::builder().listen("127.0.0.1:0").workers(2);
    builder.drain_timeout(LONG).on_user_signal(|| say("hook"))
}

fn run(builder: Builder) {
    let server = builder.build(serve).unwrap();
    say(&format!("listening on {}", server.local_addrs()[0]));
    let report = server.run().unwrap();
    say(&report.to_string());
}

/// Begins a line of its own, for the harness leaves its own one unfinished.
fn say(text: &str) {
    let text = format!("\n{text}\n");
    io::stdout().lock().write_all(text.as_bytes()).unwrap();
}

/// Sends each line back. "hold" is answered, and then another line is awaited in the same call.
fn serve(conn: &mut Connection) -> io::Result<Next> {
    let Some(mut line) = conn.take_line(64)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    let bytes = [b'x'; 64 * 1024];
    match line.as_str() {
        "hold" => {
            conn.write_all(b"held\n")?;
            line.clear();
            conn.read_line_limited(64, &mut line)?;
            conn.write_all(line.as_bytes())?;
            return Ok(Next::Park);
        }
        "write" | "vectored" => {
            conn.write_all(b"here it comes\n")?;
            let error = loop {
                let slices = [io::IoSlice::new(&bytes), io::IoSlice::new(&bytes)];
                let written = match line.as_str() {
                    "write" => conn.write_all(&bytes),
                    _ => conn.write_vectored(&slices).map(drop),
                };
                if let Err(error) = written {
                    break error;
                }
            };
            say(&format!("gone: {error}"));
            // A further write finds the pipe broken, if the first error was the reset.
            for _ in 0..2 {
                let _ = conn.write_all(&bytes);
            }
            return Err(error);
        }
        "park" => {
            conn.write_all(b"here it comes\n")?;
            conn.set_output_limit(64 << 20);
            conn.write_all(&vec![b'x'; 32 << 20])?;
            say("gone, or soon");
            return Ok(Next::Park);
        }
        _ => writeln!(conn, "{line}")?,
    }
    Ok(Next::Park)
}

// ---- the tests' side ----

/// A server in a process of its own.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    addr: SocketAddr,
    /// While it is there, a watchdog kills the process after a time.
    leash: Option<Sender<()>>,
}

impl Running {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        // Whatever waits for the process is bounded by its end.
        let pid = Pid::from_child(&child);
        let (leash, watch) = crossbeam_channel::bounded::<()>(0);
        thread::spawn(move || {
            if watch.recv_timeout(2 * LONG) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let mut running = Self {
            child,
            output,
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            leash: Some(leash),
        };
        running.addr = running.listening();
        running
    }

    /// The next address that the server says it listens on.
    fn listening(&mut self) -> SocketAddr {
        let line = self.until("listening on ");
        line.rsplit_once(' ').unwrap().1.trim().parse().unwrap()
    }

    /// Reads the server's output up to a line that contains a text.
    fn until(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let count = self.output.read_line(&mut line).unwrap();
            assert!(count > 0, "the server ended without having said {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// Signals the server. To be called when it has answered a request: then it is known to react to signals.
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the server ends by itself; returns the rest of its output as well.
    fn end(&mut self) -> (ExitStatus, String) {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        self.leash = None;
        (status, output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // For tests that failed; a process that has ended and been waited for is left alone by std.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until_refused(addr: SocketAddr) {
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        match TcpStream::connect(addr) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
            // Not too often: each attempt is a connection that takes a place in the queue.
            _ => thread::park_timeout(Duration::from_millis(1)),
        }
    }
    panic!("{addr} still accepts");
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Occupies a worker until another line is sent.
    fn hold(&mut self) {
        self.send("hold\n");
        assert_eq!(self.line(), "held\n");
    }

    /// Everything up to the end of the stream. A reset is an end as well.
    fn rest(&mut self) -> String {
        let mut text = String::new();
        match self.0.read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            read => drop(read.unwrap()),
        }
        text
    }
}
