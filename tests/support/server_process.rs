//! A server in a process of its own: a test binary runs itself again, and its test `child` is the server that the
//! environment variable [`ROLE`] names.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use handover::{Builder, Connection, Next, Server};
use parking_lot::Mutex;

pub(crate) const LONG: Duration = Duration::from_secs(60);

const ROLE: &str = "HANDOVER_TEST_ROLE";

// ---- the server's side ----

/// The server that this process is to be. `None` in the process of the tests.
pub(crate) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

pub(crate) fn builder() -> Builder {
    let builder = Server::builder().listen("127.0.0.1:0").workers(2);
    let builder = builder.drain_timeout(LONG).read_timeout(LONG);
    builder.on_user_signal(|| say("the hook was called"))
}

/// Runs a server until it has stopped, and says its address, and its report.
pub(crate) fn run(builder: Builder, serve: fn(&mut Connection) -> io::Result<Next>) {
    let server = builder.build(serve).unwrap();
    say(&format!("listening on {}", server.local_addrs()[0]));
    match server.run() {
        Ok(report) => say(&report.to_string()),
        Err(error) => {
            say(&error.to_string());
            panic!("the server did not start");
        }
    }
}

/// Begins a line of its own, for the harness leaves its own one unfinished.
pub(crate) fn say(text: &str) {
    let text = format!("\n{text}\n");
    io::stdout().lock().write_all(text.as_bytes()).unwrap();
}

pub(crate) fn log_to_stdout() {
    struct Logger;
    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            say(&record.args().to_string());
        }
        fn flush(&self) {}
    }
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Info);
}

/// Sends each line back. "hold" is answered, and then another line is awaited in the same call.
pub(crate) fn serve(conn: &mut Connection) -> io::Result<Next> {
    serve_with(conn, |_, _| Ok(false))
}

/// As [`serve`], but `special` gets each line first, and returns whether it has handled the line.
pub(crate) fn serve_with(
    conn: &mut Connection,
    special: fn(&mut Connection, &str) -> io::Result<bool>,
) -> io::Result<Next> {
    let Some(mut line) = conn.take_line(64)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    if line == "hold" {
        conn.write_all(b"held\n")?;
        line.clear();
        conn.read_line_limited(64, &mut line)?;
        conn.write_all(line.as_bytes())?;
    } else if !special(conn, &line)? {
        writeln!(conn, "{line}")?;
    }
    Ok(Next::Park)
}

// ---- the tests' side ----

pub(crate) struct ServerProcess {
    child: Arc<Mutex<Child>>,
    output: BufReader<ChildStdout>,
    pub(crate) addr: SocketAddr,
    pub(crate) pid: u32,
    /// While it is there, a watchdog kills the process after a time.
    ends_watch: Option<Sender<()>>,
}

impl ServerProcess {
    /// Starts a server, and waits until it serves. Then it reacts to signals.
    pub(crate) fn start(role: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut server = Self::spawn(role, prepare);
        server.addr = server.listening();
        let mut client = server.client();
        client.send("ready?\n");
        assert_eq!(client.line(), "ready?\n");
        client.end();
        server
    }

    /// Starts a server. Its address is not known yet.
    pub(crate) fn spawn(role: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(ROLE, role);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let output = BufReader::new(child.stdout.take().unwrap());
        let child = Arc::new(Mutex::new(child));
        // Whatever waits for the process is bounded by its end.
        let watched = Arc::clone(&child);
        let (ends_watch, watch) = crossbeam_channel::bounded::<()>(0);
        thread::spawn(move || {
            if watch.recv_timeout(2 * LONG) == Err(RecvTimeoutError::Timeout) {
                let _ = watched.lock().kill();
            }
        });
        Self {
            child,
            output,
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            pid,
            ends_watch: Some(ends_watch),
        }
    }

    /// The next address that the server says it listens on.
    pub(crate) fn listening(&mut self) -> SocketAddr {
        let line = self.until("listening on ");
        line.rsplit_once(' ').unwrap().1.trim().parse().unwrap()
    }

    /// Reads the server's output up to a line that contains a text.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) -> String {
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

    pub(crate) fn client(&self) -> Client {
        Client::new(self.addr)
    }

    pub(crate) fn kill(&self) {
        self.child.lock().kill().unwrap();
    }

    /// Waits until the server ends by itself; returns the rest of its output as well.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let until = Instant::now() + LONG;
        let status = loop {
            // The watchdog needs the lock.
            if let Some(status) = self.child.lock().try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < until,
                "the server has closed its output, and goes on"
            );
            thread::park_timeout(Duration::from_millis(1));
        };
        self.ends_watch = None;
        (status, output)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // For tests that failed; a process that has ended and been waited for is left alone by std.
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
    }
}

pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Occupies a worker until another line is sent.
    pub(crate) fn hold(&mut self) {
        self.send("hold\n");
        assert_eq!(self.line(), "held\n");
    }

    /// Everything up to the end of the stream. A reset is an end as well.
    pub(crate) fn rest(&mut self) -> String {
        let mut text = String::new();
        match self.0.read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            read => drop(read.unwrap()),
        }
        text
    }

    /// Ends the connection, and waits until the server has closed it.
    fn end(mut self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.rest(), "");
    }
}
