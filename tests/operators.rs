//! What operators ask of `handover run` at run time, with real processes: programs in Python.
#![cfg(target_os = "linux")] // supervisors and signals

#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use supervised::{Supervised, dir_with, notify_name};
use support::LIMIT;
use support::process::stat;

/// A program that writes a line to the file `usr1` for each SIGUSR1, and ends on SIGTERM.
const REOPENS: &str = r#"
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: open("usr1", "a").write(f"{os.getpid()}\n"))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
open("up", "a").write("up\n")
# A signal just before signal.pause() would be handled after the next one only.
while True: time.sleep(0.05)
"#;

/// A program that handles no signal.
const PLAIN: &str = "import time\nopen('up', 'a').write('up\\n')\ntime.sleep(600)";

/// Supervises the program, which may be wrapped by a shell script.
fn begin(program: &str, options: &[&str], wrapped: bool) -> Supervised {
    let dir = dir_with(&[("program.py", program), ("environment", "")]);
    let options = [&["--stop-timeout", "5"], options].concat();
    let program = match wrapped {
        true => &["sh", "-c", "python3 program.py & wait"][..],
        false => &["python3", "program.py"],
    };
    Supervised::start(dir, &options, program)
}

/// As [`begin`], and waits until all processes serve.
fn start(program: &str, options: &[&str]) -> Supervised {
    let options = [&["--ready-after", "0.1"], options].concat();
    let supervised = begin(program, &options, false);
    supervised.until_serving();
    supervised
}

fn lines(text: &str) -> usize {
    text.lines().count()
}

#[test]
fn sigusr1_reaches_only_a_program_that_survives_it() {
    let supervised = start(REOPENS, &["--processes", "2"]);
    supervised.until("both programs", || lines(&supervised.read("up")) == 2);
    supervised.succeed(&["reopen"]);
    supervised.until("two lines", || lines(&supervised.read("usr1")) == 2);
    supervised.signal(Signal::USR1);
    supervised.until("four lines", || lines(&supervised.read("usr1")) == 4);

    let supervised = start(PLAIN, &[]);
    supervised.until("the program", || lines(&supervised.read("up")) == 1);
    let pids = supervised.pids();
    supervised.succeed(&["reopen"]);
    supervised.signal(Signal::USR1);
    let warning = format!(
        "SIGUSR1 is not sent to process {}, which would die",
        pids[0]
    );
    supervised.until("two warnings", || {
        supervised.read("log").matches(&warning).count() == 2
    });
    assert_eq!(supervised.pids(), pids);
    assert_eq!(supervised.status()["processes"][0]["restarts"], 0);
}

#[test]
fn a_service_is_scaled_at_run_time() {
    let supervised = start(REOPENS, &["--environment-file", "environment"]);
    let first = supervised.pids();
    let output = supervised.succeed(&["scale", "3", "--wait"]);
    assert_eq!(output, "3 processes serve\n");
    let pids = supervised.pids();
    assert_eq!((pids.len(), pids[0]), (3, first[0]));
    // An upgrade, whose program has the old setting, keeps the number.
    supervised.succeed(&["upgrade", "--wait"]);
    supervised.succeed(&["scale", "3", "--wait"]);
    assert_eq!(supervised.pids(), pids);
    // While a restart is in progress, too.
    supervised.succeed(&["restart"]);
    supervised.succeed(&["scale", "2", "--wait"]);
    supervised.until("the restart's end", || {
        supervised.status()["state"] == "serving"
    });
    assert_eq!(supervised.pids().len(), 2);
    for pid in &pids {
        supervised.until("the end of a process", || stat(*pid).is_none());
    }
    supervised.succeed(&["scale", "1"]);
    assert_eq!(supervised.pids().len(), 1);

    for bad in ["0", "1025", "x", "-1"] {
        assert_eq!(
            supervised.ask(&["scale", bad]).status.code(),
            Some(2),
            "{bad}"
        );
    }
    fs::write(supervised.path("environment"), "NAME=\"no end").unwrap();
    let output = supervised.ask(&["scale", "2", "--wait"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("the scale 2 failed: cannot start"),
        "{error}"
    );
}

/// A program that becomes large when the file `grow` is there.
const GROWS: &str = r#"
import os, time
grown = None
while True:
    if grown is None:
        try:
            os.remove("grow")
            grown = b"x" * (200 << 20)
        except FileNotFoundError:
            pass
    time.sleep(0.02)
"#;

#[test]
fn a_process_that_has_served_for_long_is_replaced() {
    let supervised = start(PLAIN, &["--recycle-after", "0.02"]);
    let first = supervised.pids();
    supervised.until("another process", || {
        let status = supervised.status();
        let pid = status["processes"][0]["pid"].as_i64();
        // A process that serves was never missing.
        assert!(pid.is_some() && status["state"] != "down", "{status}");
        pid != Some(first[0].into())
    });
    assert_eq!(supervised.status()["processes"][0]["restarts"], 0);
}

#[test]
fn a_process_that_has_become_large_is_replaced() {
    let supervised = start(GROWS, &["--recycle-above", "100", "--processes", "2"]);
    let first = supervised.pids();
    fs::write(supervised.path("grow"), "").unwrap();
    supervised.until("another process", || {
        let pids = supervised.pids();
        pids.len() == 2 && pids.iter().any(|pid| !first.contains(pid))
    });
    supervised.until("the end of the recycling", || {
        supervised.status()["state"] == "serving"
    });
    // The other process, which is small, stays.
    let pids = supervised.pids();
    assert_eq!(pids.iter().filter(|pid| first.contains(pid)).count(), 1);
    assert!(
        supervised
            .read("log")
            .contains("recycling the process of slot")
    );
}

/// A program that notifies READY=1 and a status, and ends when its parent, a shell, has ended.
const NOTIFIES: &str = r#"
import os, socket, time
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to = os.environ["NOTIFY_SOCKET"].replace("@", "\0")
speaker.sendto(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=of a descendant".encode(), to)
open("sent", "a").write("sent\n")
parent = os.getppid()
while os.getppid() == parent: time.sleep(0.02)
"#;

#[test]
fn a_descendant_notifies_for_its_wrapper() {
    let wrapped = begin(NOTIFIES, &["--notify"], true);
    wrapped.until_serving();
    let status = wrapped.status();
    assert_eq!(status["processes"][0]["status"], "of a descendant");
    // The process that counts is the wrapper.
    let pid = wrapped.pids()[0];
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(command.trim(), "sh");

    let options = ["--notify", "--notify-access", "main"];
    let refused = begin(NOTIFIES, &options, true);
    refused.until("the notification", || !refused.read("sent").is_empty());
    // The supervisor reads notifications before control requests.
    assert_eq!(refused.status()["state"], "starting");
}

/// A program that changes its user before it notifies.
const CHANGES_USER: &str = r#"
import os, socket, time
sent = open("sent", "a")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to = os.environ["NOTIFY_SOCKET"].replace("@", "\0")
speaker.sendto(b"READY=1\nSTATUS=of another user", to)
sent.write("sent\n"); sent.flush()
parent = os.getppid()
while os.getppid() == parent: time.sleep(0.02)
"#;

#[test]
fn a_descendant_of_another_user_notifies_for_its_wrapper() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: this test needs root");
    }
    let wrapped = begin(CHANGES_USER, &["--notify"], true);
    wrapped.until("the notification", || !wrapped.read("sent").is_empty());
    // The supervisor reads notifications before control requests.
    let status = wrapped.status();
    assert_eq!(status["state"], "serving", "{}", wrapped.read("log"));
    assert_eq!(status["processes"][0]["status"], "of another user");
}

/// A program that sends, with READY=1, a socket whose close waits for ten minutes.
const SENDS_LINGERING: &str = r#"
import os, signal, socket, struct, time
listener = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(listener.getsockname())
receiver = listener.accept()[0]
sender.setblocking(False)
try:
    while True: sender.send(b"x" * 65536)
except BlockingIOError: pass
sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
speaker.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0"))
# The supervisor has the last descriptor of the socket, as it is stopped until this one is closed.
supervisor = os.getppid()
os.kill(supervisor, signal.SIGSTOP)
while open(f"/proc/{supervisor}/stat").read().rsplit(") ")[1][0] != "T": time.sleep(0.001)
socket.send_fds(speaker, [b"READY=1"], [sender.fileno()])
sender.close()
os.kill(supervisor, signal.SIGCONT)
time.sleep(600)
"#;

#[test]
fn a_descriptor_of_the_service_that_cannot_be_closed_delays_nothing() {
    let supervised = begin(SENDS_LINGERING, &["--notify"], false);
    supervised.until_serving();
    supervised.succeed(&["restart", "--wait"]);
    supervised.succeed(&["upgrade", "--wait"]);
}

/// A program that notifies READY=1, and a status when the file `go` is there.
const NOTIFIES_LATER: &str = r#"
import os, socket, time
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
speaker.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0"))
speaker.send(b"READY=1")
while not os.path.exists("go"): time.sleep(0.02)
speaker.send(b"STATUS=heard")
time.sleep(600)
"#;

/// What a process that does not belong to the service sends, with descriptors: of sockets whose close waits for ten
/// minutes, of which the supervisor gets the last descriptor.
const FOREIGN_LINGERING: &str = r#"
import os, signal, socket, struct, sys
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
speaker.connect(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
peers, senders = [], []
for _ in range(5):
    sender = socket.create_connection(listener.getsockname())
    peers.append(listener.accept()[0])
    sender.setblocking(False)
    try:
        while True: sender.send(b"x" * 65536)
    except BlockingIOError: pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    senders.append(sender)
supervisor = int(sys.argv[2])
os.kill(supervisor, signal.SIGSTOP)
while open(f"/proc/{supervisor}/stat").read().rsplit(") ")[1][0] != "T": pass
for sender in senders:
    socket.send_fds(speaker, [b"READY=1"], [sender.fileno()])
    sender.close()
os.kill(supervisor, signal.SIGCONT)
print("sent", flush=True)
signal.pause()
"#;

/// The same with a file of a file system (FUSE, in the protocol of fuse(4)) that never answers a close.
const FOREIGN_FUSE: &str = r#"
import ctypes, os, signal, socket, struct, sys
os.makedirs("mount")
ready, begin = os.pipe()
if os.fork() == 0:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if ctypes.CDLL(None).mount(b"test", b"mount", b"fuse", 6, options): os._exit(1)
    os.write(begin, b"x")
    def attributes(node, mode):
        return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
    while True:
        request = os.read(device, 1 << 17)
        _, code, unique, node = struct.unpack_from("<IIQQ", request)
        error, answer = 0, b""
        # INIT, LOOKUP, GETATTR, OPEN, RELEASE; FORGET and FLUSH get no answer.
        if code == 26: answer = struct.pack("<4I2H2I32x", 7, 31, 0, 0, 1, 1, 4096, 1)
        elif code == 1: answer = struct.pack("<4Q2I", 2, 0, 60, 60, 0, 0) + attributes(2, 0o100644)
        elif code == 3: answer = struct.pack("<Q2I", 60, 0, 0) + attributes(node, 0o40755 if node == 1 else 0o100644)
        elif code == 14: answer = struct.pack("<Q2I", 1, 0, 0)
        elif code in (2, 25, 42): continue
        elif code != 18: error = -38
        os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
os.close(begin)
if not os.read(ready, 1):
    sys.exit("cannot mount")
file = os.open("mount/file", os.O_RDONLY)
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
speaker.settimeout(30)
speaker.connect(sys.argv[1])
try:
    for _ in range(300): socket.send_fds(speaker, [b"READY=1"], [file])
    print("sent", flush=True)
except OSError:
    print("fail", flush=True)
signal.pause()
"#;

/// A process in a mount namespace of its own. Its drop ends it, and what it has started.
struct Foreign {
    process: Child,
    group: support::ProcessGroup,
}

impl Foreign {
    fn start(supervised: &Supervised, program: &str) -> Option<Self> {
        let name = notify_name(supervised.pids()[0]);
        let name = format!("'\\0{}'", std::str::from_utf8(&name).unwrap());
        let program = program.replace("sys.argv[1]", &name);
        let mut command = match program.contains("fuse") {
            true => Command::new("unshare"),
            false => Command::new("env"),
        };
        let command = command
            .args(["--mount"].iter().filter(|_| program.contains("fuse")))
            .args(["python3", "-c", &program, "", &supervised.pid().to_string()])
            .current_dir(supervised.dir.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let process = command.spawn().unwrap();
        let group = support::ProcessGroup::killed_after(&process, LIMIT);
        let mut foreign = Self { process, group };
        let mut said = [0; 4];
        let output = foreign.process.stdout.as_mut().unwrap();
        let is_sent = output.read_exact(&mut said).is_ok();
        assert!(said != *b"fail", "nothing is received any more");
        is_sent.then_some(foreign)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.group.kill_all();
        let _ = self.process.wait();
    }
}

#[test]
fn descriptors_of_foreign_processes_that_cannot_be_closed_delay_nothing() {
    for program in [FOREIGN_LINGERING, FOREIGN_FUSE] {
        let mut supervised = begin(NOTIFIES_LATER, &["--notify"], false);
        supervised.until_serving();
        let Some(_foreign) = Foreign::start(&supervised, program) else {
            assert_eq!(program, FOREIGN_FUSE);
            eprintln!("SKIPPED: this user may not mount a file system");
            continue;
        };
        fs::write(supervised.path("go"), "").unwrap();
        supervised.until("the notification of the service", || {
            supervised.status()["processes"][0]["status"] == "heard"
        });
        supervised.succeed(&["upgrade", "--wait"]);
        supervised.succeed(&["stop", "--wait"]);
        supervised.wait();
    }
}
