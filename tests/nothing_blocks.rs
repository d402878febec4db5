//! Nothing blocks the supervisor, nor a server's main thread: a log that nobody reads, a service manager that is
//! stopped, control clients that are silent or slow, and peers that send anything.
#![cfg(target_os = "linux")] // supervisors and Unix sockets

#[path = "support/generations.rs"]
mod generations;
#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use generations::{Generations, eventually, signal, stat};
use supervised::{Supervised, notify_name};
use support::LIMIT;

/// The server that [`Generations`] starts.
#[test]
fn child() {
    generations::serve_if_child();
}

// ---- the supervisor that is tested ----

/// Supervises a program that does nothing. `prepare` sets standard error, and what else it wants.
fn start(options: &[&str], prepare: impl FnOnce(&mut Command)) -> Supervised {
    let options = [&["--ready-after", "0"], options].concat();
    let program = ["sleep", "1000"];
    let dir = TempDir::new().unwrap();
    Supervised::start_by("exec \"$@\"", dir, &options, &program, |command| {
        command.env_remove("NOTIFY_SOCKET");
        command.env_remove("JOURNAL_STREAM");
        prepare(command);
    })
}

/// Does something while the supervisor is stopped.
fn while_stopped(supervised: &Supervised, act: impl FnOnce()) {
    supervised.signal(Signal::STOP);
    eventually("the supervisor is stopped", || {
        stat(supervised.pid()).is_some_and(|stat| stat.state == 'T')
    });
    act();
    supervised.signal(Signal::CONT);
}

/// A socket that sends to the one where the processes notify the supervisor.
fn notify_socket(supervised: &Supervised) -> UnixDatagram {
    let name = notify_name(supervised.pids()[0]);
    let addr = SocketAddr::from_abstract_name(name).unwrap();
    let notify = UnixDatagram::unbound().unwrap();
    notify.connect_addr(&addr).unwrap();
    notify
}

// ---- peers that do not read ----

/// A pipe that takes no byte more. Returns the reading and the writing end, and how much is in it.
fn full_pipe() -> (fs::File, OwnedFd, usize) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    // Another open file description, so that the one that the supervisor gets stays a blocking one.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut filler = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).unwrap());
    let mut filled = 0;
    for size in [4096, 1] {
        while let Ok(count) = filler.write(&vec![b'-'; size]) {
            filled += count;
        }
    }
    (reader.into(), writer, filled)
}

/// A service manager that reads nothing, and whose queue is full.
struct StoppedManager {
    _dir: TempDir,
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

const FILLER: &str = "X_FILLER=1";

impl StoppedManager {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        // Each socket has its own limit, beside that of the queue.
        loop {
            let filler = UnixDatagram::unbound().unwrap();
            filler.set_nonblocking(true).unwrap();
            if filler.send_to(FILLER.as_bytes(), &path).is_err() {
                break;
            }
            while filler.send_to(FILLER.as_bytes(), &path).is_ok() {}
        }
        let _dir = dir;
        Self { _dir, socket, path }
    }

    /// Reads notifications up to one that contains this text. Returns all but the filling.
    #[track_caller]
    fn until(&self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let mut buffer = [0; 8192];
            let size = self.socket.recv(&mut buffer).expect(text);
            let notification = String::from_utf8_lossy(&buffer[..size]).into_owned();
            if notification != FILLER {
                seen.push(notification);
            }
            if seen.last().is_some_and(|last| last.contains(text)) {
                return seen;
            }
        }
    }
}

// ---- standard error ----

#[test]
fn a_log_that_nobody_reads_blocks_nothing_and_what_is_dropped_is_counted() {
    let (mut reader, stderr, filled) = full_pipe();
    let mut supervised = start(&[], |command| {
        command.stderr(stderr);
    });
    supervised.until_serving();
    // Each request is a line of the log, and more than there is room for.
    for _ in 0..1500 {
        supervised.request("upgrade now").unwrap();
        supervised.request("restart").unwrap();
    }
    assert_eq!(supervised.request("restart wait").unwrap()["ok"], true);
    let (noted, note) = crossbeam_channel::bounded(1);
    let reading = thread::spawn(move || {
        reader.read_exact(&mut vec![0; filled]).unwrap();
        let (mut reader, mut text) = (io::BufReader::new(reader), String::new());
        while io::BufRead::read_line(&mut reader, &mut text).unwrap() > 0 {
            if text
                .lines()
                .last()
                .is_some_and(|line| line.contains("lines were dropped"))
            {
                let _ = noted.try_send(());
            }
        }
        text
    });
    // From here on, there is room for all lines.
    note.recv_timeout(LIMIT)
        .expect("a note of the lines that were dropped");
    assert_eq!(supervised.stop().code(), Some(0));
    drop(supervised);
    let log = reading.join().unwrap();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let note = log.lines().find(|line| line.contains("lines were dropped"));
    let note = note.expect("a note of the lines that were dropped");
    let words = note.split_whitespace().map(str::parse::<usize>);
    let dropped = words.flatten().next().unwrap();
    let received = count("received \"restart\"");
    assert!(received < 1024 && received + dropped >= 1500, "{note}");
    assert_eq!(count("the supervisor exits"), 1, "{log}");
}

#[test]
fn a_log_that_nobody_reads_delays_neither_an_upgrade_nor_the_stop_for_long() {
    let (reader, stderr, _) = full_pipe();
    let mut supervised = start(&[], |command| {
        command.stderr(stderr);
    });
    supervised.until_serving();
    let before = supervised.pids()[0];
    assert_eq!(supervised.request("upgrade wait").unwrap()["ok"], true);
    assert_eq!(supervised.pids()[0], before);
    assert_eq!(supervised.stop().code(), Some(0));
    drop(reader);
}

// ---- the format of the log ----

/// The log of a supervisor that is upgraded and stopped.
fn log_of(options: &[&str], prepare: impl FnOnce(&mut Command)) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut supervised = start(options, |command| {
        command.stderr(log.reopen().unwrap());
        prepare(command);
    });
    supervised.until_serving();
    assert_eq!(supervised.request("upgrade wait").unwrap()["ok"], true);
    supervised.stop();
    fs::read_to_string(log.path()).unwrap()
}

#[test]
fn lines_have_a_time_a_level_and_a_target() {
    // The variable names another file than standard error.
    let log = log_of(&[], |command| {
        command.env("JOURNAL_STREAM", "1:1");
    });
    for line in log.lines() {
        let (time, rest) = line.split_once(' ').expect(line);
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{line}");
        assert!(rest.starts_with("INFO  handover::supervisor"), "{line}");
    }
    // What was logged last before the program was replaced, and at the end.
    for text in [": executing ", "runs version", ": the supervisor exits"] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

#[test]
fn lines_for_the_journal_have_its_prefixes() {
    let log = log_of(&["--log-format", "journal"], |_| {});
    for line in log.lines() {
        assert!(line.starts_with("<6>handover::supervisor"), "{line}");
    }
    // Without a setting, when standard error is the journal's socket.
    let (journal, stderr) = UnixStream::pair().unwrap();
    let stderr = fs::File::from(OwnedFd::from(stderr));
    let found = stderr.metadata().unwrap();
    let mut supervised = start(&[], |command| {
        let stream = format!("{}:{}", found.dev(), found.ino());
        command.env("JOURNAL_STREAM", stream).stderr(stderr);
    });
    journal.set_read_timeout(Some(LIMIT)).unwrap();
    let first = support::answer(&mut &journal);
    assert!(
        first.starts_with("<6>handover::supervisor::run: started process"),
        "{first}"
    );
    supervised.until_serving();
    supervised.stop();
}

#[test]
fn lines_in_json_have_the_same_fields() {
    let log = log_of(&["--log-format", "json"], |_| {});
    assert!(log.contains("the supervisor exits"), "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        assert_eq!(line["level"], "info");
        for field in ["time", "target", "message"] {
            assert!(line[field].is_string(), "{line}");
        }
    }
}

// ---- the service manager ----

#[test]
fn a_manager_that_is_stopped_blocks_no_supervisor_and_gets_the_state_later() {
    let manager = StoppedManager::new();
    let mut supervised = start(&[], |command| {
        command.stderr(Stdio::null());
        command.env("NOTIFY_SOCKET", &manager.path);
        command.env("WATCHDOG_USEC", "200000");
    });
    supervised.until_serving();
    assert_eq!(supervised.request("restart wait").unwrap()["ok"], true);
    // In the order in which it happened, and each heartbeat only once.
    let seen = manager.until("WATCHDOG=1");
    let at = |text: &str| seen.iter().position(|one| one.contains(text));
    let (ready, reloading) = (at("READY=1"), at("RELOADING=1"));
    assert!(ready.is_some() && ready < reloading, "{seen:?}");
    let last = seen.iter().rfind(|one| one.contains("READY=1"));
    assert!(last.is_some(), "{seen:?}");
    supervised.request("stop").unwrap();
    manager.until("STOPPING=1");
    assert_eq!(supervised.stop().code(), Some(0));
}

#[test]
fn a_manager_that_stays_stopped_delays_no_stop() {
    let manager = StoppedManager::new();
    let mut supervised = start(&[], |command| {
        command.stderr(Stdio::null());
        command.env("NOTIFY_SOCKET", &manager.path);
    });
    supervised.until_serving();
    assert_eq!(supervised.stop().code(), Some(0));
}

#[test]
fn a_manager_that_is_stopped_blocks_no_servers_main_thread() {
    let manager = StoppedManager::new();
    let mut server = Generations::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", &manager.path);
        command.env("WATCHDOG_USEC", "100000");
        command.stderr(Stdio::null());
    });
    let first = server.who();
    signal(first.pid, Signal::HUP);
    server.until_generation(first.generation + 1);
    let seen = manager.until(&format!("generation {} serves", first.generation + 1));
    let texts = seen.concat();
    for text in ["READY=1", "RELOADING=1", "MAINPID="] {
        assert!(texts.contains(text), "{text}: {seen:?}");
    }
    // A heartbeat that waits is replaced by a later one, perhaps of the successor.
    manager.until("WATCHDOG=1");
    // The queue fills up again with heartbeats.
    signal(server.who().pid, Signal::TERM);
    server.wait();
}

/// Also of a process whose drain is over at once, or has no limit.
#[test]
fn a_manager_that_is_slow_is_told_of_the_successor() {
    for drain in ["0", "18446744073709551615"] {
        let manager = StoppedManager::new();
        let mut server = Generations::start_with(&[("drain", drain)], |command| {
            command.env("NOTIFY_SOCKET", &manager.path);
            command.stderr(Stdio::null());
        });
        let first = server.who();
        signal(first.pid, Signal::HUP);
        let second = server.until_generation(first.generation + 1);
        // The process that was replaced has nothing left to do but this.
        let end = Instant::now() + Duration::from_secs(2);
        let runs = || generations::is_alive(first.pid);
        while Instant::now() < end && runs() {
            thread::park_timeout(Duration::from_millis(2));
        }
        assert!(runs(), "the process has ended without a word");
        manager.until(&format!("MAINPID={}", second.pid));
        // The manager goes on reading, so that the process ends.
        let mut buffer = [0; 8192];
        manager.socket.set_nonblocking(true).unwrap();
        eventually("the process has ended", || {
            while manager.socket.recv(&mut buffer).is_ok() {}
            !runs()
        });
        signal(second.pid, Signal::TERM);
        server.wait();
    }
}

// ---- control clients ----

#[test]
fn silent_clients_delay_no_other_client() {
    let mut supervised = start(&[], |command| {
        command.stderr(Stdio::null());
    });
    supervised.until_serving();
    let silent: Vec<_> = (0..40).map(|_| supervised.connect().unwrap()).collect();
    supervised.request("status").unwrap();
    // The answer was not held back until the time-out of the silent clients.
    for (number, client) in silent.iter().enumerate() {
        client.set_nonblocking(true).unwrap();
        let read = (&*client).read(&mut [0; 1]);
        let error = read.expect_err(&format!("client {number} was closed"));
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    // More than are kept: the oldest of them make room.
    let more: Vec<_> = (0..100).map(|_| supervised.connect().unwrap()).collect();
    supervised.request("status").unwrap();
    silent[0].set_nonblocking(false).unwrap();
    support::assert_closed(&mut &silent[0]);
    more[99].set_nonblocking(true).unwrap();
    let read = (&more[99]).read(&mut [0; 1]);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(supervised.stop().code(), Some(0));
}

// ---- descriptors that cannot be closed ----

/// A socket whose close waits for ten minutes, and its peer, which does not read.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    sender.set_nonblocking(true).unwrap();
    while (&sender).write(&[0; 65536]).is_ok() {}
    let ages = Some(Duration::from_secs(600));
    rustix::net::sockopt::set_socket_linger(&sender, ages).unwrap();
    (sender.into(), receiver)
}

/// Sends a text with a descriptor, or without it if the receiver refuses descriptors.
fn send_descriptor(to: impl AsFd, text: &str, descriptor: OwnedFd) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 64];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    let rights = rustix::net::SendAncillaryMessage::ScmRights(&descriptors);
    assert!(control.push(rights));
    let bytes = [io::IoSlice::new(text.as_bytes())];
    let flags = rustix::net::SendFlags::NOSIGNAL;
    if let Err(error) = rustix::net::sendmsg(&to, &bytes, &mut control, flags) {
        assert_eq!(error, rustix::io::Errno::PERM);
        rustix::net::send(to, text.as_bytes(), flags).unwrap();
        // The close is this test's then.
        rustix::net::sockopt::set_socket_linger(descriptor, None).unwrap();
    }
}

#[test]
fn a_descriptor_that_cannot_be_closed_delays_nobody() {
    let mut supervised = start(&[], |command| {
        command.stderr(Stdio::null());
    });
    supervised.until_serving();
    let mut receivers = Vec::new();
    // It is received with the request, or is left when the request was answered.
    for texts in [["sta", "tus\n"], ["status\n", "more"], ["x\n", "more"]] {
        let client = supervised.connect().unwrap();
        // So that the last descriptor of the socket is the supervisor's.
        while_stopped(&supervised, || {
            for text in texts {
                let (descriptor, receiver) = lingering();
                receivers.push(receiver);
                send_descriptor(&client, text, descriptor);
            }
        });
        supervised.request("status").unwrap();
        drop(client);
        supervised.request("status").unwrap();
    }
    assert_eq!(supervised.stop().code(), Some(0));
}

/// The notifications of processes that have nothing to do with the service.
#[test]
fn a_flood_of_notifications_is_counted_once() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut supervised = start(&[], |command| {
        command.stderr(log.reopen().unwrap());
    });
    supervised.until_serving();
    let notify = notify_socket(&supervised);
    for _ in 0..500 {
        // In blocking mode: the supervisor reads all of them.
        notify.send(b"READY=1\nSTATUS=not of the service").unwrap();
    }
    let lines = |text: &str| {
        let log = fs::read_to_string(log.path()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    };
    eventually("the flood is over", || {
        supervised.request("status").is_ok() && lines("notifications of processes that are not") > 0
    });
    assert_eq!(lines("and sends many"), 1);
    assert_eq!(lines("ignored "), 1);
    assert_ne!(
        supervised.request("status").unwrap()["processes"][0]["status"],
        "not of the service"
    );
    assert_eq!(supervised.stop().code(), Some(0));
}

// ---- peers that send anything ----

/// A generator of bytes, by a number that a failing test shows (xorshift64).
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("HANDOVER_TEST_SEED").ok();
        let seed = seed.and_then(|seed| seed.parse::<u64>().ok());
        let seed = seed.unwrap_or_else(|| std::process::id().into());
        println!("HANDOVER_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.next(most)).map(|_| self.next(256) as u8).collect()
    }

    /// A text that was cut, doubled, or has a few other bytes.
    fn mutated(&mut self, texts: &[&str]) -> Vec<u8> {
        let mut text = texts[self.next(texts.len())].as_bytes().to_vec();
        match self.next(4) {
            0 => text.truncate(self.next(text.len() + 1)),
            1 => text.extend(self.bytes(4000)),
            2 => {
                for _ in 0..self.next(8) {
                    let at = self.next(text.len());
                    text[at] = self.next(256) as u8;
                }
            }
            _ => {}
        }
        text
    }
}

/// How long the supervisor is sent anything.
fn hostile_for() -> Duration {
    let seconds = std::env::var("HANDOVER_TEST_HOSTILE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(2, |seconds| seconds.parse().unwrap()))
}

/// None of these ends or restarts the supervisor's process in earnest.
const REQUESTS: [&str; 6] = [
    "status\n",
    "status",
    "stoq now\n",
    "re___rt wait\n",
    "up___de\0\n",
    "\n",
];

const NOTIFICATIONS: [&str; 7] = [
    "READY=1\nSTATUS=x\n",
    "MAINPID=1\nX_HANDOVER={\"v\":1,\"generation\":1,\"successor\":1}\n",
    "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=18446744073709551615\n",
    "X_HANDOVER={\"v\":1,\"generation\":1,\"listeners\":[{\"name\":\"a\",\"matches_by_name\":false,\
     \"removes_file\":true}]}\n",
    "X_HANDOVER={\"v\":1,\"generation\":1,\"bind\":{\"addr\":{\"tcp\":\"127.0.0.1:0\"},\"name\":null,\
     \"backlog\":1,\"fast_open\":null,\"unix_mode\":null,\"defer_accept\":false,\"reuse_port\":false,\
     \"only_v6\":false,\"nodelay\":true}}\n",
    "X_HANDOVER={\"v\":1,\"generation\":1,\"lane\":true}\n",
    "FDSTORE=1\nFDNAME=x\nBARRIER=1\n",
];

/// Sends a datagram with up to this many descriptors: files, pipes, sockets.
fn send_with_descriptors(to: &UnixDatagram, text: &[u8], count: usize) {
    let file = fs::File::open("/proc/self/exe").unwrap();
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let kinds = [
        file.as_fd(),
        reader.as_fd(),
        writer.as_fd(),
        one.as_fd(),
        other.as_fd(),
    ];
    let descriptors: Vec<_> = (0..count).map(|at| kinds[at % kinds.len()]).collect();
    let mut space = vec![std::mem::MaybeUninit::uninit(); 2048];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        let rights = rustix::net::SendAncillaryMessage::ScmRights(&descriptors);
        assert!(control.push(rights));
    }
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    // It may be full.
    let _ = rustix::net::sendmsg(to, &[io::IoSlice::new(text)], &mut control, flags);
}

#[test]
fn whatever_the_sockets_of_a_supervisor_are_sent_it_answers_and_keeps_nothing() {
    let mut random = Random::new();
    let mut supervised = start(&[], |command| {
        command.stderr(Stdio::null());
    });
    supervised.until_serving();
    let serving = supervised.pids()[0];
    let notify = notify_socket(&supervised);
    notify.set_nonblocking(true).unwrap();
    let mut silent = Vec::new();
    let mut attack = |random: &mut Random| {
        for _ in 0..20 {
            let text = match random.next(2) {
                0 => random.bytes(40_000),
                _ => random.mutated(&NOTIFICATIONS),
            };
            let count = [0, 0, 1, 2, 40, 253][random.next(6)];
            send_with_descriptors(&notify, &text, count);
        }
        let Ok(mut client) = supervised.connect() else {
            return;
        };
        let request = match random.next(2) {
            0 => random.bytes(600),
            _ => random.mutated(&REQUESTS),
        };
        let _ = client.write(&request);
        match random.next(3) {
            0 => drop(client.shutdown(std::net::Shutdown::Write)),
            1 => silent.push(client),
            _ => {}
        }
        silent.drain(..silent.len().saturating_sub(100));
    };
    // What is allocated once is allocated.
    for _ in 0..50 {
        attack(&mut random);
    }
    supervised.request("status").unwrap();
    let before = generations::resources(supervised.pid());
    let end = Instant::now() + hostile_for();
    let (mut rounds, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < end {
        attack(&mut random);
        let asked = Instant::now();
        let status = supervised.request("status").unwrap();
        slowest = slowest.max(asked.elapsed());
        rounds += 1;
        assert_eq!(status["processes"][0]["pid"], serving, "{status}");
    }
    drop(silent);
    eventually("the descriptors are closed", || {
        let now = generations::resources(supervised.pid());
        supervised.request("status").is_ok() && now.descriptors <= before.descriptors
    });
    let after = generations::resources(supervised.pid());
    println!("{rounds} rounds, slowest answer {slowest:?}\n{before:?}\n{after:?}");
    assert!(
        after.rss_kib < before.rss_kib + 4096,
        "{before:?} {after:?}"
    );
    assert_eq!(supervised.stop().code(), Some(0));
}

/// A successor that sends anything over the handshake socket.
const HOSTILE_SUCCESSOR: &str = r#"#!/usr/bin/env python3
import json, os, random, socket
launch = json.loads(os.environ["HANDOVER"])
handshake = socket.socket(fileno=launch["handshake"])
handshake.setblocking(False)
texts = ['hello', 'ready', 'ack', 'restarted', 'accepting', 'drained', 'abort', 'x']
try:
    for _ in range(200):
        text = json.dumps({"v": random.choice([1, 1, 1, 2]), "type": random.choice(texts), "reason": "r" * 40})
        packet = bytearray(text.encode())
        for _ in range(random.randrange(4)):
            packet[random.randrange(len(packet))] = random.randrange(256)
        if random.randrange(4) == 0:
            packet = os.urandom(random.randrange(1, 70000))
        files = [0, 1] if random.randrange(8) == 0 else []
        socket.send_fds(handshake, [bytes(packet)], files)
except OSError:
    pass
"#;

#[test]
fn whatever_a_successor_says_the_old_process_serves_on_and_keeps_nothing() {
    let server =
        Generations::start_with(&[("ready-timeout", "2000"), ("by-handle", "")], |command| {
            command.stderr(Stdio::null());
        });
    let who = server.who();
    let script = server.dir.path().join("hostile");
    fs::write(&script, HOSTILE_SUCCESSOR).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, executable).unwrap();
    fs::rename(&script, &server.program).unwrap();
    let restart = || {
        let answer = server.get("/restart");
        assert!(answer.contains('|'), "the restart went well: {answer}");
        assert_eq!(server.who(), who);
    };
    restart();
    let before = generations::settled(who.pid);
    let end = Instant::now() + hostile_for();
    let mut rounds = 0;
    while Instant::now() < end {
        restart();
        rounds += 1;
    }
    let after = generations::settled(who.pid);
    println!("{rounds} rounds\n{before:?}\n{after:?}");
    assert!(
        after.descriptors <= before.descriptors,
        "{before:?} {after:?}"
    );
    assert!(
        after.rss_kib < before.rss_kib + 4096,
        "{before:?} {after:?}"
    );
    server.end();
}
