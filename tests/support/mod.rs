//! What the integration tests share. Nothing here orders anything by time: waits are for events, and `LIMIT` only
//! bounds them.

// Each test binary uses a part of it.
#![allow(dead_code)]

#[cfg(unix)]
pub(crate) mod increments;
#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod os;
#[cfg(unix)]
pub(crate) mod process;
pub(crate) mod replaced;

use std::any::Any;
#[cfg(unix)]
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use handover::{Addr, Builder, Connection, Handle, Next, Server, Service, Stats};
use parking_lot::{Condvar, Mutex};
use socket2::{Domain, Socket, Type};

#[cfg(windows)]
#[allow(unused_imports)]
pub(crate) use os::sockets;
#[allow(unused_imports)]
pub(crate) use os::{
    ServerSide, cpu_time, descriptors, raise_descriptor_limit, threads, wine_cannot,
};

/// How long anything may take that should happen at once, on a machine that is busy with other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Long enough to see that something does not happen, if it would otherwise happen at once. A test never fails
/// because this is too short.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

// ---- servers ----

/// Settings for a server that does not wait long for handlers that a failed test has left stuck. Its time-outs are those
/// that a test is about and sets itself: on a machine that is busy enough, any other may pass in the middle of it.
pub(crate) fn settings() -> Builder {
    const AGES: Duration = Duration::from_secs(3600);
    Server::builder()
        .drain_timeout(Duration::from_secs(2))
        .first_byte_timeout(AGES)
        .idle_timeout(AGES)
        .read_timeout(AGES)
        .write_timeout(AGES)
}

/// The same, on a free port.
pub(crate) fn server() -> Builder {
    settings().listen("127.0.0.1:0")
}

/// Keeps a value as long as the process lives, in a place where no one takes it for a leak.
pub(crate) fn forever<T: Any + Send + Sync>(value: T) -> &'static T {
    static KEPT: Mutex<Vec<&(dyn Any + Send + Sync)>> = Mutex::new(Vec::new());
    let value: &'static T = Box::leak(Box::new(value));
    KEPT.lock().push(value);
    value
}

/// Starts a server.
pub(crate) fn start<S: Service + 'static>(builder: Builder, service: S) -> Handle {
    builder.build(service).unwrap().start().unwrap()
}

/// Where the server's first listener is.
pub(crate) fn addr(handle: &Handle) -> SocketAddr {
    handle.local_addrs()[0]
        .as_ip()
        .expect("the first listener is a TCP one")
}

/// Answers each line with itself.
pub(crate) fn lines(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(4096)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    writeln!(conn, "{line}")?;
    Ok(Next::Park)
}

/// Sends back whatever comes.
pub(crate) fn echo(conn: &mut Connection) -> io::Result<Next> {
    let bytes = conn.buffer().to_vec();
    conn.write_all(&bytes)?;
    conn.consume(bytes.len());
    Ok(Next::Park)
}

/// Waits until the server's counters satisfy `holds`, and returns them.
#[track_caller]
pub(crate) fn until(handle: &Handle, what: &str, holds: impl Fn(&Stats) -> bool) -> Stats {
    let deadline = Instant::now() + LIMIT;
    loop {
        let stats = handle.stats();
        if holds(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "never: {what}; {stats:#?}");
        thread::yield_now();
    }
}

/// Waits until something holds that no server counts.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// Waits until the server's coarse clock must have moved on.
pub(crate) fn tick() {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(25) {
        thread::yield_now();
    }
}

/// Stops the server, and asserts that it ended without cutting anything off.
#[track_caller]
pub(crate) fn stop(handle: &Handle) {
    handle.stop(LIMIT);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

// ---- doors: handlers that wait for the test ----

/// A door that handlers wait at until the test opens it.
#[derive(Clone)]
pub(crate) struct Door {
    came: Sender<()>,
    opened: Receiver<()>,
}

/// The test's side of a [`Door`]; dropping it opens the door for good.
pub(crate) struct Keeper {
    coming: Receiver<()>,
    open: Sender<()>,
}

pub(crate) fn door() -> (Keeper, Door) {
    let (came, coming) = crossbeam_channel::unbounded();
    let (open, opened) = crossbeam_channel::unbounded();
    (Keeper { coming, open }, Door { came, opened })
}

impl Door {
    /// Waits until the door is opened for one, or for all.
    pub(crate) fn pass(&self) {
        let _ = self.came.send(());
        let _ = self.opened.recv();
    }
}

impl Keeper {
    /// Waits until one more stands at the door.
    #[track_caller]
    pub(crate) fn wait(&self) {
        let came = self.coming.recv_timeout(LIMIT);
        came.expect("nobody comes to the door");
    }

    /// Lets one through.
    pub(crate) fn let_one_in(&self) {
        let _ = self.open.send(());
    }
}

// ---- clients ----

/// A client with bounded reads and writes.
#[track_caller]
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    bounded(TcpStream::connect_timeout(&to, LIMIT).unwrap())
}

/// A client whose source address is this one of the loopback network.
#[track_caller]
pub(crate) fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from = IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect_timeout(&to.into(), LIMIT).unwrap();
    bounded(socket.into())
}

/// A client that takes little from a server unless it reads.
#[track_caller]
pub(crate) fn connect_narrow(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect_timeout(&to.into(), LIMIT).unwrap();
    bounded(socket.into())
}

fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a line, and asserts that it comes back.
#[track_caller]
pub(crate) fn ask(client: &mut (impl Read + Write), line: &str) {
    client.write_all(format!("{line}\n").as_bytes()).unwrap();
    assert_eq!(answer(client), line);
}

/// Reads one line, byte by byte so that nothing after it is lost.
#[track_caller]
pub(crate) fn answer(client: &mut impl Read) -> String {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(0) => panic!("the end came after {:?}", String::from_utf8_lossy(&line)),
            Ok(_) if byte == *b"\n" => return String::from_utf8(line).unwrap(),
            Ok(_) => line.push(byte[0]),
            // A machine that is suspended ends a wait with a time-out early, see signal(7).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&line)),
        }
    }
}

/// Asserts that the server closes the connection without sending anything more.
#[track_caller]
pub(crate) fn assert_closed(client: &mut impl Read) {
    match client.read(&mut [0; 64]) {
        Ok(0) => {}
        Ok(count) => panic!("{count} bytes came instead of the end"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} instead of the end"),
    }
}

/// Asserts that nothing comes for a moment, neither bytes nor the end.
#[track_caller]
pub(crate) fn assert_silent(client: &mut TcpStream) {
    client.set_read_timeout(Some(QUIET)).unwrap();
    match client.read(&mut [0; 64]) {
        Ok(count) => panic!("{count} bytes came"),
        Err(error) => assert!(is_timeout(&error), "{error}"),
    }
    client.set_read_timeout(Some(LIMIT)).unwrap();
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Closes with a reset instead of an end.
pub(crate) fn reset(client: TcpStream) {
    let socket = Socket::from(client);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Says that no more will be sent.
pub(crate) fn finish(client: &TcpStream) {
    client.shutdown(Shutdown::Write).unwrap();
}

impl ServerSide {
    /// Waits until so many bytes have arrived that the server has not read.
    #[track_caller]
    pub(crate) fn until_unread(&self, bytes: usize) {
        eventually("the bytes have arrived", || self.unread() == Some(bytes));
    }

    /// Waits until the kernel has handled the client's reset.
    #[track_caller]
    pub(crate) fn until_reset(&self) {
        eventually("the reset has arrived", || self.unread().is_none());
    }
}

/// Lets time pass, where the time itself is what a test is about.
pub(crate) fn pause(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        thread::park_timeout(duration);
    }
}

/// The byte at this place of a long answer, so that any loss or repetition shows.
pub(crate) fn byte_at(place: usize) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16).wrapping_mul(31)) as u8
}

pub(crate) fn bytes_at(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(byte_at).collect()
}

/// Reads so many bytes and checks each.
#[track_caller]
pub(crate) fn read_pattern(client: &mut impl Read, count: usize) {
    read_pattern_from(client, 0, count);
}

/// The same, after so many bytes that were read before.
#[track_caller]
pub(crate) fn read_pattern_from(client: &mut impl Read, mut place: usize, count: usize) {
    let mut room = vec![0; 64 * 1024];
    while place < count {
        let most = room.len().min(count - place);
        match client.read(&mut room[..most]) {
            Ok(0) => panic!("the end came after {place} of {count} bytes"),
            Ok(got) => {
                let expected = bytes_at(place, got);
                assert!(room[..got] == expected[..], "wrong bytes after {place}");
                place += got;
            }
            Err(error) => panic!("{error} after {place} of {count} bytes"),
        }
    }
}

// ---- this process ----

/// A path in a directory of its own.
pub(crate) fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    (dir, path)
}

pub(crate) fn unix(path: &std::path::Path) -> String {
    Addr::Unix(Some(path.to_owned())).to_string()
}

// ---- what is logged ----

/// One record.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) level: log::Level,
    pub(crate) target: String,
    pub(crate) text: String,
}

#[derive(Default)]
struct Log {
    records: Mutex<Vec<Logged>>,
    more: Condvar,
}

static LOG: Log = Log {
    records: Mutex::new(Vec::new()),
    more: Condvar::new(),
};

impl log::Log for &Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.records.lock().push(Logged {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
        });
        self.more.notify_all();
    }

    fn flush(&self) {}
}

/// Keeps what the whole process logs from now on.
pub(crate) fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        static LOGGER: &Log = &LOG;
        log::set_logger(&LOGGER).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
    });
}

/// The records that contain this text, so far.
pub(crate) fn logged(text: &str) -> Vec<Logged> {
    let records = LOG.records.lock();
    let found = records.iter().filter(|record| record.text.contains(text));
    found.cloned().collect()
}

/// Waits until a record that contains this text has been written.
#[track_caller]
pub(crate) fn wait_logged(text: &str) -> Logged {
    let deadline = Instant::now() + LIMIT;
    let mut records = LOG.records.lock();
    loop {
        if let Some(found) = records.iter().find(|record| record.text.contains(text)) {
            return found.clone();
        }
        let late = LOG.more.wait_until(&mut records, deadline).timed_out();
        assert!(!late, "never logged: {text}");
    }
}

// ---- tests that need a process of their own ----

const CHILD: &str = "HANDOVER_TEST_CHILD";

/// In a child made by [`Child::of`] for this test, the line-wise conversation with its parent.
pub(crate) fn as_child(test: &str) -> Option<Parent> {
    (std::env::var(CHILD).ok().as_deref() == Some(test)).then_some(Parent)
}

/// The child's view of the conversation.
pub(crate) struct Parent;

impl Parent {
    /// Tells the parent something.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        // The test harness may have left a line open.
        let mut out = io::stdout().lock();
        writeln!(out, "\n{MARK}{text}").unwrap();
        out.flush().unwrap();
    }

    /// What the parent wants next; `None` when it wants no more.
    pub(crate) fn hear(&self) -> Option<String> {
        let mut line = String::new();
        match io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }
}

const MARK: &str = "@@ ";

/// What starts a process of this very binary that runs one test, which finds [`as_child`] to be there.
pub(crate) fn child_command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD, test);
    command
}

/// A process of this very binary that runs one test, under a watchdog.
pub(crate) struct Child {
    stdin: Option<ChildStdin>,
    said: Receiver<String>,
    other: Arc<Mutex<String>>,
    process: Arc<Mutex<std::process::Child>>,
    watchdog: Sender<()>,
}

/// A child may take so long in all.
const CHILD_LIMIT: Duration = Duration::from_secs(300);

impl Child {
    /// Starts the test of this name, which finds [`as_child`] to be there.
    pub(crate) fn of(test: &str) -> Self {
        let mut process = child_command(test)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let other = Arc::new(Mutex::new(String::new()));
        let (say, said) = crossbeam_channel::unbounded();
        let keep = |reader: Box<dyn BufRead + Send>, say: Option<Sender<String>>| {
            let other = Arc::clone(&other);
            thread::spawn(move || {
                for line in reader.lines().map_while(Result::ok) {
                    match (line.strip_prefix(MARK), &say) {
                        (Some(text), Some(say)) => drop(say.send(text.to_owned())),
                        _ => *other.lock() += &format!("{line}\n"),
                    }
                }
            });
        };
        keep(Box::new(stdout), Some(say));
        keep(Box::new(stderr), None);
        let process = Arc::new(Mutex::new(process));
        let (watchdog, bark) = crossbeam_channel::bounded::<()>(0);
        let watched = Arc::clone(&process);
        thread::spawn(move || {
            if bark.recv_timeout(CHILD_LIMIT) == Err(RecvTimeoutError::Timeout) {
                let _ = watched.lock().kill();
            }
        });
        Self {
            stdin,
            said,
            other,
            process,
            watchdog,
        }
    }

    /// The next thing that the child says.
    #[track_caller]
    pub(crate) fn hear(&self) -> String {
        self.said
            .recv_timeout(LIMIT)
            .unwrap_or_else(|_| panic!("the child says nothing\n{}", self.other.lock()))
    }

    /// Asks the child something, and returns its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, text: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{text}").unwrap();
        self.hear()
    }

    /// Has the child end, and asserts that it does so without complaint.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.stdin = None;
        // Not `wait`: the watchdog needs the process as well.
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.process.lock().try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the child does not end");
            thread::yield_now();
        };
        assert!(status.success(), "{status}\n{}", self.other.lock());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.watchdog.try_send(());
        let mut process = self.process.lock();
        // It has ended already, unless the test failed.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A process that leads a group, and the processes that it starts. They are killed when this is dropped, and after
/// [`CHILD_LIMIT`]: then a test that reads their output or waits for their end fails, and does not hang. They are killed
/// as well when this process is killed: what is left behind keeps the pipes of the whole run open.
#[cfg(unix)]
pub(crate) struct ProcessGroup {
    leader: rustix::process::Pid,
    is_late: Arc<AtomicBool>,
    /// A shell that kills the group when it sees the end of this process.
    guard: std::process::Child,
    _watchdog: Sender<()>,
}

#[cfg(unix)]
impl ProcessGroup {
    /// The process was started with `process_group(0)`.
    pub(crate) fn of(leader: &std::process::Child) -> Self {
        Self::killed_after(leader, CHILD_LIMIT)
    }

    pub(crate) fn killed_after(leader: &std::process::Child, limit: Duration) -> Self {
        let leader = rustix::process::Pid::from_child(leader);
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let (watchdog, bark) = crossbeam_channel::bounded::<()>(0);
        let is_late = Arc::<AtomicBool>::default();
        let set_late = Arc::clone(&is_late);
        thread::spawn(move || {
            if bark.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!(
                    "killed: in {limit:?} the processes have not done what {test} waits for; if it starts an example \
                     that is an old build, `cargo build --examples --all-features` makes a new one\n{}",
                    describe_group(leader.as_raw_nonzero().get())
                );
                set_late.store(true, SeqCst);
                // Some are in groups of their own.
                let left = descendants_of(leader.as_raw_nonzero().get());
                Self::kill(leader);
                for pid in left.into_iter().filter_map(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        });
        let script = format!("read line; kill -9 -{}", leader.as_raw_nonzero());
        let guard = Command::new("sh")
            .args(["-c", &script])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            leader,
            is_late,
            guard,
            _watchdog: watchdog,
        }
    }

    /// For a test that would take the end of the processes for a success.
    #[track_caller]
    pub(crate) fn assert_in_time(&self) {
        assert!(!self.is_late.load(SeqCst), "killed, as they were too late");
    }

    pub(crate) fn kill_all(&self) {
        Self::kill(self.leader);
    }

    fn kill(leader: rustix::process::Pid) {
        // An error says that all of them have ended.
        let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
    }
}

/// The descendants of a process, by /proc (proc(5)).
#[cfg(unix)]
fn descendants_of(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let child = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((child, parent))
        })
        .collect();
    let mut found = vec![pid];
    for index in 0.. {
        let Some(parent) = found.get(index).copied() else {
            break;
        };
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(child, _)| *child));
    }
    found.split_off(1)
}

#[cfg(unix)]
impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill_all();
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// The processes of a group, their signals, and what their threads wait for in the kernel, from /proc (proc(5)).
#[cfg(unix)]
fn describe_group(leader: i32) -> String {
    let mut text = String::new();
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let names = |dir: String| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    };
    for pid in names("/proc".to_owned()) {
        let stat = read(format!("/proc/{pid}/stat"));
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, parent, group) = (fields.next(), fields.next(), fields.next());
        if group != Some(&leader.to_string()) {
            continue;
        }
        let command = read(format!("/proc/{pid}/cmdline")).replace('\0', " ");
        let status = read(format!("/proc/{pid}/status"));
        let signals = status
            .lines()
            .filter(|line| line.starts_with("Sig") || line.starts_with("ShdPnd"));
        let signals: Vec<_> = signals.collect();
        text += &format!(
            "process {pid}, state {state:?}, parent {parent:?}: {command}\n  {signals:?}\n"
        );
        for thread in names(format!("/proc/{pid}/task")) {
            let name = read(format!("/proc/{pid}/task/{thread}/comm"));
            let place = read(format!("/proc/{pid}/task/{thread}/wchan"));
            text += &format!("  {}: {place}\n", name.trim_end());
        }
    }
    text
}

/// Runs a command that is to end by itself, and returns what it says. It and its children are killed if it is late.
#[cfg(unix)]
#[track_caller]
pub(crate) fn output_of(command: &mut Command) -> std::process::Output {
    try_output_of(command).unwrap()
}

/// As [`output_of`], for a command that may not be there.
#[cfg(unix)]
#[track_caller]
pub(crate) fn try_output_of(command: &mut Command) -> io::Result<std::process::Output> {
    let child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = ProcessGroup::killed_after(&child, LIMIT);
    let output = child.wait_with_output().unwrap();
    group.assert_in_time();
    Ok(output)
}
