//! Who has started the first process: socket activators and the service manager, with real processes.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // descriptors of an activator, signals

#[path = "support/generations.rs"]
mod generations;
mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use generations::*;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

#[test]
fn listeners_of_an_activator_are_taken_and_others_closed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let surplus = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let surplus_addr = surplus.local_addr().unwrap();
    let listen = addr.to_string();
    let mut generations = Generations::start_with(&[("listen", &listen)], |command| {
        activate(command, vec![surplus.into(), listener.into()], true);
    });
    // Nobody listens there any more, although this process never did. A process that another test starts just now has
    // a copy of the listener until it executes its program.
    eventually("the listener is closed", || {
        TcpStream::connect(surplus_addr).is_err()
    });
    assert_eq!(generations.addr(), addr);
    generations.restart();
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

#[test]
fn a_datagram_socket_of_an_activator_is_not_accepted_from() {
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = datagrams.local_addr().unwrap();
    // The server has a listener of this name.
    let mut generations = Generations::start_with(&[("listen", "web=127.0.0.1:0")], |command| {
        activate(command, vec![datagrams.into()], true);
    });
    eventually("the socket is closed", || {
        std::net::UdpSocket::bind(addr).is_ok()
    });
    assert_eq!(generations.who().generation, 1);
    generations.restart();
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

/// The real one, of systemd: it listens, and becomes the server when the first client comes.
#[test]
fn systemd_socket_activate_starts_the_first_generation() {
    const ACTIVATE: &str = "systemd-socket-activate";
    if Command::new(ACTIVATE).arg("--version").output().is_err() {
        eprintln!("SKIPPED: {ACTIVATE} is not there; it is in Debian's package systemd");
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("unix:{}", path.display());
    let mut command = Command::new(ACTIVATE);
    let state = TempDir::new().unwrap();
    fs::write(state.path().join("listen"), &listen).unwrap();
    let mut activator = command
        .arg(format!("--listen={}", path.display()))
        .arg(format!("--setenv={DIR}={}", state.path().display()))
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let group = support::ProcessGroup::of(&activator);
    let pid = Pid::from_child(&activator).as_raw_nonzero().get();
    // The file is there a moment before that.
    eventually("it listens", || UnixStream::connect(&path).is_ok());
    let who = || Who::parse(&get(&mut UnixStream::connect(&path).unwrap(), "/who"));
    let first = who();
    assert_eq!((first.pid, first.generation), (pid, 1));
    signal(pid, Signal::HUP);
    eventually("the next generation", || who().generation == 2);
    let second = who().pid;
    activator.wait().unwrap();
    group.assert_in_time();
    signal(second, Signal::TERM);
    eventually("the end", || stat(second).is_none());
    assert!(path.exists(), "it is not the server's");
}

/// An activator's configuration says where to listen, the program only how that is called; also in later generations.
#[test]
fn a_listener_of_an_activator_is_known_by_its_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut generations = Generations::start_with(&[("listen", "web=127.0.0.9:1")], |command| {
        activate(command, vec![listener.into()], true);
    });
    for _ in 0..3 {
        assert_eq!(generations.addr(), addr);
        let next = generations.restart();
        assert_eq!(listening(next.pid), 1);
    }
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

#[test]
fn descriptors_for_another_process_are_left_alone() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let generations = Generations::start_with(&[], |command| {
        activate(command, vec![listener.into()], false);
    });
    assert_ne!(generations.addr(), addr);
    let pid = generations.who().pid;
    let link = fs::read_link(format!("/proc/{pid}/fd/3")).unwrap();
    assert!(link.to_string_lossy().starts_with("socket:"), "{link:?}");
    generations.end();
}

/// Has a program started as an activator does it: by a shell, which knows the process's id. It gets them as standard
/// input and error, so that nobody else inherits them.
fn activate(command: &mut Command, descriptors: Vec<std::os::fd::OwnedFd>, for_it: bool) {
    let mut shell = Command::new("sh");
    let count = descriptors.len();
    let pid = if for_it { "$$" } else { "1" };
    let script = format!(
        "exec 3<&0 4<&2 0</dev/null 2>/dev/null; \
        LISTEN_PID={pid} LISTEN_FDS={count} LISTEN_FDNAMES=web exec \"$0\" \"$@\""
    );
    shell
        .args(["-c", &script])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap());
    }
    shell.process_group(0).stdout(Stdio::piped());
    let mut descriptors = descriptors.into_iter();
    shell.stdin(descriptors.next().map_or(Stdio::null(), Stdio::from));
    shell.stderr(descriptors.next().map_or(Stdio::null(), Stdio::from));
    *command = shell;
}

/// A service manager that listens.
struct Manager {
    socket: std::os::unix::net::UnixDatagram,
    _dir: TempDir,
}

impl Manager {
    fn of(command: &mut Command) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
        socket.set_read_timeout(Some(support::LIMIT)).unwrap();
        command.env("NOTIFY_SOCKET", path);
        Self { socket, _dir: dir }
    }

    /// The next message: who sent it, and its lines. A descriptor that comes with it is closed.
    #[track_caller]
    fn hear(&self) -> (i32, Vec<String>) {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let mut space = [std::mem::MaybeUninit::uninit(); 256];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 4096];
        let slices = &mut [std::io::IoSliceMut::new(&mut text)];
        let got = recvmsg(&self.socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let mut sender = None;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(from) => sender = Some(from.pid),
                RecvAncillaryMessage::ScmRights(descriptors) => {
                    drop(descriptors.collect::<Vec<_>>())
                }
                _ => {}
            }
        }
        let text = String::from_utf8(text[..got.bytes].to_vec()).unwrap();
        let lines = text.lines().map(str::to_owned).collect();
        (sender.unwrap().as_raw_nonzero().get(), lines)
    }

    /// The next message must be from this process and begin with these lines.
    #[track_caller]
    fn expect(&self, from: i32, expected: &[&str]) {
        let (sender, lines) = self.hear();
        assert_eq!(sender, from, "{lines:?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{expected:?}: {lines:?}");
        }
        assert!(lines.len() >= expected.len(), "{lines:?}");
    }
}

#[test]
fn the_service_manager_hears_all_in_order_and_from_the_main_process_only() {
    let mut manager = None;
    let mut generations = Generations::start_with(&[], |command| {
        manager = Some(Manager::of(command));
    });
    let manager = manager.unwrap();
    let first = generations.who().pid;
    manager.expect(first, &["READY=1", "STATUS=generation 1 serves"]);

    // One that works.
    let before = monotonic_micros();
    let second = generations.restart().pid;
    let (sender, lines) = manager.hear();
    assert_eq!((sender, &*lines[0]), (first, "RELOADING=1"));
    let stamp: u64 = lines[1]
        .strip_prefix("MONOTONIC_USEC=")
        .unwrap()
        .parse()
        .unwrap();
    assert!((before..=monotonic_micros()).contains(&stamp));
    let main = format!("MAINPID={second}");
    manager.expect(first, &["READY=1", &main, "STATUS=generation 2 serves"]);
    manager.expect(first, &["BARRIER=1"]);

    // One that fails: READY has to come all the same, or systemd waits for ever.
    generations.mode("exit 3");
    signal(second, Signal::HUP);
    manager.expect(second, &["RELOADING=1", "MONOTONIC_USEC="]);
    let (sender, lines) = manager.hear();
    assert_eq!((sender, &*lines[0]), (second, "READY=1"));
    assert!(lines[1].contains("the last restart failed") && lines[1].contains("no configuration"));

    // One that takes a while: the manager is asked for patience.
    generations.mode("late pause");
    signal(second, Signal::HUP);
    manager.expect(second, &["RELOADING=1"]);
    manager.expect(second, &["EXTEND_TIMEOUT_USEC=20000000"]);
    fs::write(generations.dir.path().join("go"), "").unwrap();
    let third = generations.until_generation(3).pid;
    let main = format!("MAINPID={third}");
    manager.expect(second, &["READY=1", &main]);
    manager.expect(second, &["BARRIER=1"]);

    // And so it is while a stop takes a while.
    let mut slow = support::connect(generations.addr());
    let request = b"GET /hold?held HTTP/1.1\r\nHost: test\r\n\r\n";
    slow.write_all(request).unwrap();
    let taken = generations.dir.path().join("held-taken");
    eventually("the request is taken", || taken.exists());
    signal(third, Signal::TERM);
    manager.expect(third, &["STOPPING=1"]);
    let (sender, lines) = loop {
        // How many connections are left is told as well.
        let (sender, lines) = manager.hear();
        if !lines[0].starts_with("STATUS=generation 3 is stopping: ") {
            break (sender, lines);
        }
    };
    assert_eq!(
        (sender, &*lines[0]),
        (third, "EXTEND_TIMEOUT_USEC=20000000")
    );
    generations.option("held", "");
    generations.wait();
}

fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}
