//! Datagram sockets of `handover run`, with real processes: programs in Python, and a server of this
//! crate.
#![cfg(target_os = "linux")] // supervisors and Unix sockets

#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::fs;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;

use rustix::process::Signal;

use supervised::{Supervised, dir_with, handover};
use support::LIMIT;
use support::process::signal;

/// Answers each datagram with its process id and the same text, on all sockets that were passed. With
/// "die" it exits at once. Waits for the file "go" before it begins. The names of the sockets are in
/// the file "names".
const ANSWERS: &str = r#"
import os, select, signal, socket, time
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
assert os.environ["LISTEN_PID"] == str(os.getpid())
open("names", "w").write(os.environ["LISTEN_FDNAMES"])
count = int(os.environ["LISTEN_FDS"])
sockets = [socket.socket(fileno=3 + number) for number in range(count)]
sockets = [own for own in sockets if own.type == socket.SOCK_DGRAM]
assert all(own.getblocking() for own in sockets)
while not os.path.exists("go"): time.sleep(0.002)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
while not ends:
    for own in select.select(sockets, [], [], 0.05)[0]:
        try: text, peer = own.recvfrom(65536, socket.MSG_DONTWAIT)
        # Its successor or its predecessor was faster.
        except BlockingIOError: continue
        if text == b"die": os._exit(3)
        try: own.sendto(b"%d %s" % (os.getpid(), text), peer)
        except OSError: pass
"#;

const PROGRAM: [&str; 2] = ["python3", "program.py"];

/// Supervises the program, and waits until it serves.
fn start(options: &[&str]) -> Supervised {
    start_by("exec \"$@\"", options, |_| {})
}

/// The same, by a shell (see [`Supervised::start_by`]).
fn start_by(wrapper: &str, options: &[&str], prepare: impl FnOnce(&mut Command)) -> Supervised {
    let dir = dir_with(&[("program.py", ANSWERS), ("go", "")]);
    let options = [&["--notify"], options].concat();
    let supervised = Supervised::start_by(wrapper, dir, &options, &PROGRAM, prepare);
    supervised.until_serving();
    supervised
}

/// The address of the listener with this name, without its kind.
fn addr_of(supervised: &Supervised, name: &str) -> String {
    let status = supervised.status();
    let listeners = status["listeners"].as_array().unwrap().iter();
    let mut named = listeners.filter(|listener| listener["name"] == name);
    let shown = named.next().unwrap()["address"].as_str().unwrap();
    shown.strip_prefix("udp:").unwrap().to_owned()
}

fn client() -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client
}

/// The process that has answered, and what it was sent.
fn receive(client: &UdpSocket) -> (u32, String) {
    let mut buffer = [0; 1024];
    let size = loop {
        match client.recv(&mut buffer) {
            // A receive with a time-out is not repeated by itself.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => break received.unwrap(),
        }
    };
    let text = std::str::from_utf8(&buffer[..size]).unwrap();
    let (pid, text) = text.split_once(' ').unwrap();
    (pid.parse().unwrap(), text.to_owned())
}

#[test]
fn datagrams_wait_while_no_process_serves() {
    let supervised = start(&["--listen", "dns=udp:127.0.0.1:0"]);
    let addr = addr_of(&supervised, "dns");
    let client = client();
    client.send_to(b"first", &addr).unwrap();
    let (before, _) = receive(&client);
    for end in ["crash", "kill", "upgrade and crash"] {
        fs::remove_file(supervised.path("go")).unwrap();
        if end.starts_with("upgrade") {
            supervised.succeed(&["upgrade", "--wait"]);
        }
        match end {
            "kill" => {
                client.send_to(b"who", &addr).unwrap();
                let (pid, _) = receive(&client);
                signal(pid as i32, Signal::KILL);
            }
            _ => drop(client.send_to(b"die", &addr).unwrap()),
        }
        supervised.until("the end of the process", || {
            !supervised.ask(&["status"]).status.success()
        });
        // Fewer than the buffer takes.
        for number in 0..50 {
            client
                .send_to(format!("{number}").as_bytes(), &addr)
                .unwrap();
        }
        fs::write(supervised.path("go"), "").unwrap();
        for number in 0..50 {
            let (pid, text) = receive(&client);
            assert_eq!(text, number.to_string(), "{end}");
            assert_ne!(pid, before);
        }
    }
    assert_eq!(addr_of(&supervised, "dns"), addr);
}

#[test]
fn restarts_lose_no_datagram() {
    let supervised = start(&["--listen", "dns=udp:127.0.0.1:0", "--processes", "2"]);
    let addr = addr_of(&supervised, "dns");
    let client = client();
    let (mut asked, mut pids) = (0, std::collections::BTreeSet::new());
    thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            for _ in 0..3 {
                supervised.succeed(&["restart", "--wait"]);
            }
        });
        // At most a few datagrams are under way, which the buffer takes.
        while !restarts.is_finished() || asked < 1000 {
            for number in asked..asked + 8 {
                client
                    .send_to(format!("{number}").as_bytes(), &addr)
                    .unwrap();
            }
            let mut texts: Vec<usize> = Vec::new();
            for _ in 0..8 {
                let (pid, text) = receive(&client);
                pids.insert(pid);
                texts.push(text.parse().unwrap());
            }
            texts.sort_unstable();
            assert_eq!(texts, (asked..asked + 8).collect::<Vec<_>>());
            asked += 8;
        }
    });
    assert!(pids.len() > 2, "{pids:?}");
}

#[test]
fn sockets_come_in_their_order_and_with_their_names() {
    let mut supervised = start(&[
        "--listen",
        "dns=udp:127.0.0.1:0",
        "--listen",
        "web=127.0.0.1:0",
        "--listen",
        "log=unixgram:log.sock",
    ]);
    assert_eq!(supervised.read("names"), "dns:web:log");
    let path = supervised.path("log.sock");
    let client = UnixDatagram::bind(supervised.path("client.sock")).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.send_to(b"hello", &path).unwrap();
    let mut buffer = [0; 64];
    let size = client.recv(&mut buffer).unwrap();
    assert!(buffer[..size].ends_with(b" hello"));
    let status = supervised.succeed(&["status", "--json"]);
    assert!(status.contains("\"unixgram:log.sock\""), "{status}");
    // The file of a dead process is replaced, and that of a live one is not.
    let mut second = handover();
    second.args(["run", "--listen", "unixgram:log.sock", "--", "true"]);
    let taken = support::output_of(second.current_dir(supervised.dir.path()));
    let text = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        text.contains("cannot listen on unixgram:log.sock"),
        "{text}"
    );
    assert_eq!(supervised.stop().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_bad_or_taken_address_is_a_clear_error() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = format!("udp:{}", taken.local_addr().unwrap());
    for (addr, code, why) in [
        ("udp:127.0.0.1:99999", 2, "the port must be 0 to 65535"),
        ("udp:127.0.0.1", 2, "a port is missing"),
        ("unixgram:", 2, "a path must follow unixgram:"),
        (&*addr, 1, "in use"),
    ] {
        let mut command = handover();
        command.args(["run", "--listen", addr, "--", "true"]);
        let output = support::output_of(&mut command);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{addr}: {text}");
        assert!(text.contains(addr) && text.contains(why), "{text}");
    }
}

#[test]
fn a_socket_of_an_activator_is_passed_on() {
    let passed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = passed.local_addr().unwrap();
    for (name, options) in [
        ("dns", &["--listen", "dns=udp:127.0.0.9:1"][..]),
        ("other", &[]),
    ] {
        let wrapper = format!(
            "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec \"$@\""
        );
        let supervised = start_by(&wrapper, options, |command| {
            command.stdin(OwnedFd::from(passed.try_clone().unwrap()));
        });
        assert_eq!(supervised.read("names"), name);
        assert_eq!(addr_of(&supervised, name), addr.to_string());
        for _ in 0..2 {
            let client = client();
            client.send_to(b"hello", addr).unwrap();
            assert_eq!(receive(&client).1, "hello");
            supervised.succeed(&["restart", "--wait"]);
        }
    }
}
