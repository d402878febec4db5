//! Datagram sockets of `handover run`, with real processes: programs in Python, and a server of this
//! crate.
#![cfg(target_os = "linux")] // supervisors and Unix sockets

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A wait of these tests ends at the latest after this.
const LIMIT: Duration = Duration::from_secs(60);

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

/// `handover run`, and a directory of its own. The drop ends both.
struct Supervised {
    dir: TempDir,
    supervisor: Child,
}

impl Supervised {
    fn start(options: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("program.py"), ANSWERS).unwrap();
        fs::write(dir.path().join("go"), "").unwrap();
        let mut command = run(dir.path(), options);
        let supervisor = command.args(["--", "python3", "program.py"]).spawn();
        let supervisor = supervisor.unwrap();
        Self { dir, supervisor }.wait_until_serving()
    }

    fn wait_until_serving(self) -> Self {
        let supervised = self;
        supervised.until("it serves", || supervised.ask(&["status"]).status.success());
        supervised
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn ask(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
        let command = command.args(args).arg("--socket").arg(self.path("control"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        let log = self.read("log");
        assert!(output.status.success(), "{args:?}: {output:?}\n{log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The address of the listener with this name, without its kind.
    fn addr(&self, name: &str) -> String {
        let status: serde_json::Value =
            serde_json::from_str(&self.succeed(&["status", "--json"])).unwrap();
        let listeners = status["listeners"].as_array().unwrap().iter();
        let mut named = listeners.filter(|listener| listener["name"] == name);
        let shown = named.next().unwrap()["address"].as_str().unwrap();
        shown.strip_prefix("udp:").unwrap().to_owned()
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds() {
            let log = self.read("log");
            assert!(Instant::now() < end, "{what} does not come:\n{log}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.supervisor), Signal::QUIT);
        let end = Instant::now() + LIMIT;
        while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn run(dir: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command
        .args(["run", "--control", "control", "--notify"])
        .args(options)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).unwrap());
    command
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
    let supervised = Supervised::start(&["--listen", "dns=udp:127.0.0.1:0"]);
    let addr = supervised.addr("dns");
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
                let pid = Pid::from_raw(pid as i32).unwrap();
                kill_process(pid, Signal::KILL).unwrap();
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
    assert_eq!(supervised.addr("dns"), addr);
}

#[test]
fn restarts_lose_no_datagram() {
    let supervised = Supervised::start(&["--listen", "dns=udp:127.0.0.1:0", "--processes", "2"]);
    let addr = supervised.addr("dns");
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
    let supervised = Supervised::start(&[
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
    let (dir, control) = (supervised.dir.path().to_owned(), supervised.path("control"));
    assert!(control.exists());
    let taken = Command::new(env!("CARGO_BIN_EXE_handover"))
        .args(["run", "--listen", "unixgram:log.sock", "--", "true"])
        .current_dir(&dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1));
    assert!(
        text.contains("cannot listen on unixgram:log.sock"),
        "{text}"
    );
    drop(supervised);
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
        let output = Command::new("timeout")
            .args([
                "60",
                env!("CARGO_BIN_EXE_handover"),
                "run",
                "--listen",
                addr,
            ])
            .args(["--", "true"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
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
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("program.py"), ANSWERS).unwrap();
        fs::write(dir.path().join("go"), "").unwrap();
        let handover = run(dir.path(), options);
        let script = format!(
            "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec \"$0\" \"$@\""
        );
        let supervisor = Command::new("sh")
            .args(["-c", &script])
            .arg(handover.get_program())
            .args(handover.get_args())
            .args(["--", "python3", "program.py"])
            .current_dir(dir.path())
            .stdin(std::os::fd::OwnedFd::from(passed.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let supervised = Supervised { dir, supervisor }.wait_until_serving();
        assert_eq!(supervised.read("names"), name);
        assert_eq!(supervised.addr(name), addr.to_string());
        for _ in 0..2 {
            let client = client();
            client.send_to(b"hello", addr).unwrap();
            assert_eq!(receive(&client).1, "hello");
            supervised.succeed(&["restart", "--wait"]);
        }
    }
}
