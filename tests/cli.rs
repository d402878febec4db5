//! The command `handover`, with real processes: a server in Python is supervised, and the other commands are sent.
#![cfg(target_os = "linux")] // supervisors and signals

#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use rustix::process::Signal;

use supervised::{Supervised, dir_with, handover};
use support::process::{eventually, signal};

/// A server that takes its listener as systemd passes it, and answers with its process id. Told to end, it accepts no
/// more, and has answered all that it has accepted. It knows nothing of this crate.
const SERVER: &str = r#"
import os, select, signal, socket, sys

assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
name = os.environ["LISTEN_FDNAMES"]
listener = socket.socket(fileno=3)
listener.setblocking(False)
woken, waker = socket.socketpair()
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())
stopping = False

def stop(*_):
    global stopping
    stopping = True

signal.signal(signal.SIGTERM, stop)

if "notify" in sys.argv:
    gate = sys.argv[2]
    open(gate + ".at", "w").close()
    while not os.path.exists(gate):
        select.select([woken], [], [], 0.005)
    to = os.environ["NOTIFY_SOCKET"]
    if to[0] == "@":
        to = "\0" + to[1:]
    speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    speaker.sendto(b"READY=1\nSTATUS=open for all", to)

while not stopping:
    select.select([listener, woken], [], [])
    if stopping:
        break
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        continue
    client.settimeout(60)
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        piece = client.recv(4096)
        if not piece:
            break
        request += piece
    body = f"{os.getpid()} {name}"
    client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    client.close()
"#;

/// Supervises the server.
fn start(options: &[&str], args: &[&str]) -> Supervised {
    let options = [&["--listen", "web=127.0.0.1:0"], options].concat();
    start_program(&options, &[&["python3", "server.py"], args].concat())
}

/// Supervises any program.
fn start_program(options: &[&str], program: &[&str]) -> Supervised {
    Supervised::start(dir_with(&[("server.py", SERVER)]), options, program)
}

fn addr_of(supervised: &Supervised) -> SocketAddr {
    let status = supervised.status();
    let listener = &status["listeners"][0];
    assert_eq!(listener["name"], "web", "{status}");
    listener["address"].as_str().unwrap().parse().unwrap()
}

/// The process that serves, as the supervisor says.
fn serving_pid(supervised: &Supervised) -> i32 {
    supervised.pids()[0]
}

/// Ends it all by the command, and asserts that nothing is left.
#[track_caller]
fn stop(mut supervised: Supervised) {
    assert_eq!(supervised.succeed(&["stop", "--wait"]), "stopped\n");
    assert!(!supervised.path("control").exists());
    assert_eq!(supervised.wait().code(), Some(0));
    let output = supervised.ask(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// Asks the server who answers.
fn ask_server(addr: SocketAddr) -> io::Result<i32> {
    let mut client = TcpStream::connect(addr)?;
    client.set_read_timeout(Some(support::LIMIT))?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    let pid = answer
        .rsplit_once("\r\n\r\n")
        .and_then(|(_, body)| body.strip_suffix(" web"))
        .and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| io::Error::other(answer))
}

/// Runs a command to its end, which must come. A process that it leaves behind keeps nobody waiting.
#[track_caller]
fn finish(command: &mut Command) -> (Option<i32>, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let both = || log.as_file().try_clone().unwrap();
    let child = command.stdout(both()).stderr(both()).process_group(0);
    let mut child = child.spawn().unwrap();
    let group = support::ProcessGroup::of(&child);
    let code = child.wait().unwrap().code();
    group.assert_in_time();
    (code, fs::read_to_string(log.path()).unwrap())
}

/// Sets the flag in the end, whatever the end is.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_program_comes_back_is_restarted_and_stopped() {
    let service = start(&["--ready-after", "0.05"], &[]);
    service.until_serving();
    let addr = addr_of(&service);
    let first = ask_server(addr).unwrap();
    assert_eq!(first, serving_pid(&service));

    // Nobody is refused while there is no process: the next one answers.
    signal(first, Signal::KILL);
    let second = ask_server(addr).unwrap();
    assert_ne!(second, first);
    service.until_serving();
    let table = service.succeed(&["status"]);
    assert!(table.contains("SIGKILL"), "{table}");
    assert!(table.contains(&format!("\n{second} ")), "{table}");

    // Nobody is lost by a restart either.
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for its threads.
        let _done = SetOnDrop(&done);
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    ask_server(addr).expect("a request was lost");
                    answers.fetch_add(1, SeqCst);
                }
            });
        }
        eventually("some answers", || answers.load(SeqCst) > 50);
        let said = service.succeed(&["restart", "--wait"]);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("restarted in "), "{said}");
        assert!(!said.contains('\x1b'), "{said}");
        // The old one may have ended before the next look.
        let old = format!("process {second}");
        let drains = said.contains(&format!("{old}, generation 2: draining"));
        assert!(drains || said.contains(&format!("{old}: exited")), "{said}");
        eventually("the old one has ended", || {
            service.status()["draining"] == serde_json::json!([])
        });
        let so_far = answers.load(SeqCst);
        eventually("more answers", || answers.load(SeqCst) > so_far + 50);
    });
    let third = ask_server(addr).unwrap();
    assert_ne!(third, second);
    assert_eq!(third, serving_pid(&service));

    stop(service);
    let error = ask_server(addr).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_program_may_say_itself_when_it_is_ready() {
    let service = start(&["--notify"], &["notify", "gate"]);
    let at_gate = service.path("gate.at");
    eventually("it is nearly ready", || at_gate.exists());
    let output = service.ask(&["status"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(service.status()["state"], "starting");
    fs::write(service.path("gate"), "").unwrap();
    service.until_serving();
    let table = service.succeed(&["status"]);
    assert!(table.contains("open for all"), "{table}");
    let first = ask_server(addr_of(&service)).unwrap();
    service.succeed(&["restart", "--wait"]);
    assert_ne!(serving_pid(&service), first);
    stop(service);
}

#[test]
fn a_version_that_does_not_come_up_leaves_the_old_one_serving() {
    // The gate is there already.
    let service = start(&["--notify"], &["notify", "server.py"]);
    service.until_serving();
    let addr = addr_of(&service);
    let first = ask_server(addr).unwrap();
    fs::write(service.path("server.py"), "import sys; sys.exit(3)").unwrap();
    let output = service.ask(&["restart", "--wait"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("handover: the restart failed: "), "{said}");
    assert!(said.contains("before it was ready"), "{said}");
    assert!(said.contains("exit status: 3"), "{said}");
    assert_eq!(ask_server(addr).unwrap(), first);
    let table = service.succeed(&["status"]);
    assert!(table.contains("last restart  failed after"), "{table}");
    stop(service);
}

#[test]
fn a_supervisor_replaces_itself_and_nothing_else() {
    let options = [
        "--processes",
        "2",
        "--pid-file",
        "pid",
        "--ready-after",
        "0",
    ];
    let service = start(&options, &[]);
    eventually("both serve", || {
        let status = service.status();
        let slots = status["processes"].as_array();
        status["state"] == "serving" && slots.is_some_and(|slots| slots.len() == 2)
    });
    let pids = || {
        let status = service.status();
        let pid = |place: usize| status["processes"][place]["pid"].clone();
        [status["pid"].clone(), pid(0), pid(1)]
    };
    let (before, addr) = (pids(), addr_of(&service));
    assert_eq!(before[0], service.supervisor.id());
    let file = service.path("pid");
    let said = fs::read_to_string(&file).unwrap();
    assert_eq!(said.trim(), service.supervisor.id().to_string());
    let said = service.succeed(&["upgrade", "--wait"]);
    assert_eq!(said, "the supervisor has been replaced\n");
    assert_eq!(pids(), before);
    let answer = i64::from(ask_server(addr).unwrap());
    assert!(before[1..].contains(&answer.into()));
    stop(service);
    assert!(!file.exists());
}

#[test]
fn a_stop_and_a_restart_need_not_be_waited_for() {
    let mut service = start(&["--ready-after", "0.05"], &[]);
    service.until_serving();
    let first = serving_pid(&service);
    assert_eq!(service.succeed(&["restart"]), "");
    eventually("another one serves", || {
        let status = service.status();
        let pid = &status["processes"][0]["pid"];
        status["state"] == "serving" && pid.is_i64() && *pid != first
    });
    assert_eq!(service.succeed(&["stop"]), "");
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_program_is_started_again_as_the_options_say() {
    for (options, script, expected) in [
        (&[][..], "exit 78", 78),
        (&["--no-restart-code", "3"], "exit 3", 3),
        (&["--restart", "on-failure"], "exit 0", 0),
        (&["--give-up-after", "1"], "exit 5", 69),
        (
            &[
                "--no-restart-code",
                "none",
                "--give-up-after",
                "3",
                "--backoff",
                "0..0.01",
            ],
            "exit 78",
            69,
        ),
    ] {
        let mut run = handover();
        run.arg("run").args(options).args(["--", "sh", "-c"]);
        let (code, log) = finish(run.arg(format!("echo started; {script}")));
        assert_eq!(code, Some(expected), "{options:?}: {log}");
        let starts = log.lines().filter(|line| *line == "started").count();
        let wanted = if options.contains(&"3") && expected == 69 {
            3
        } else {
            1
        };
        assert_eq!(starts, wanted, "{options:?}: {log}");
    }
}

/// A program that writes the signals down that it ends by.
const SIGNALLED: &str = r#"
import os, signal, socket

signals = {signal.SIGTERM, signal.SIGQUIT, signal.SIGWINCH}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
to = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", to)
number = signal.sigwait(signals)
with open("signals", "a") as file:
    file.write(signal.Signals(number).name + "\n")
"#;

#[test]
fn a_program_has_signals_of_its_own_for_a_stop_and_a_restart() {
    let options = [
        "--notify",
        "--stop-signal",
        "quit",
        "--restart-signal",
        "SIGWINCH",
    ];
    let mut service = start_program(&options, &["python3", "-c", SIGNALLED]);
    service.until_serving();
    let signals = service.path("signals");
    let has = |path: &PathBuf, text: &str| fs::read_to_string(path).is_ok_and(|read| read == text);
    service.succeed(&["restart", "--wait"]);
    eventually("the old one ends", || has(&signals, "SIGWINCH\n"));
    service.succeed(&["stop"]);
    assert_eq!(service.wait().code(), Some(0));
    assert!(has(&signals, "SIGWINCH\nSIGQUIT\n"));
}

#[test]
fn the_status_remembers_deaths_and_the_last_restart_also_over_an_upgrade() {
    let service = start(&["--ready-after", "0"], &[]);
    for _ in 0..6 {
        service.until_serving();
        let pid = serving_pid(&service);
        signal(pid, Signal::KILL);
        eventually("the death is known", || {
            let status = service.status();
            let deaths = status["processes"][0]["last_deaths"].as_array();
            let last = deaths.and_then(|deaths| deaths.last()?["reason"].as_str());
            last.is_some_and(|reason| reason.starts_with(&format!("process {pid} exited")))
        });
    }
    service.until_serving();
    service.succeed(&["restart", "--wait"]);
    let before = service.status();
    let reasons = |status: &serde_json::Value| {
        let deaths = status["processes"][0]["last_deaths"].as_array().unwrap();
        let reasons = deaths.iter().map(|death| {
            assert!(death["seconds_ago"].is_f64(), "{death}");
            death["reason"].as_str().unwrap().to_owned()
        });
        reasons.collect::<Vec<_>>()
    };
    assert_eq!(before["schema"], 1);
    assert_eq!(before["processes"][0]["restarts"], 6, "{before}");
    assert_eq!(reasons(&before).len(), 5, "{before}");
    assert!(
        reasons(&before)
            .iter()
            .all(|reason| reason.contains("SIGKILL"))
    );
    assert_all_documented(&before);
    service.succeed(&["upgrade", "--wait"]);
    let after = service.status();
    assert_eq!(reasons(&after), reasons(&before));
    assert_eq!(after["processes"][0]["restarts"], 6, "{after}");
    let (last, earlier) = (&after["last_restart"], &before["last_restart"]);
    assert_eq!(last["ok"], true, "{after}");
    assert_eq!(last["took_seconds"], earlier["took_seconds"], "{after}");
    assert!(last["seconds_ago"].as_f64() >= earlier["seconds_ago"].as_f64());
    let table = service.succeed(&["status"]);
    assert!(table.contains("last restart  succeeded in "), "{table}");
    assert!(table.contains("\nLAST DEATHS\n"), "{table}");
    stop(service);
}

/// Each field of the status is in a table of the guide.
fn assert_all_documented(status: &serde_json::Value) {
    let guide = include_str!("../src/guide/operating.md");
    let (_, section) = guide.split_once("\n# Status\n").unwrap();
    let (section, _) = section.split_once("\n# ").unwrap();
    match status {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                assert!(
                    section.contains(&format!("`{name}`")),
                    "{name} is not in the guide"
                );
                assert_all_documented(value);
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(assert_all_documented),
        _ => {}
    }
}

/// Python runs the command on a terminal of its own.
const ON_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

#[test]
fn a_restart_on_a_terminal_shows_each_process_as_it_goes() {
    let service = start(&["--ready-after", "2"], &[]);
    service.until_serving();
    let old = serving_pid(&service);
    let mut python = Command::new("python3");
    python.args(["-c", ON_TERMINAL, env!("CARGO_BIN_EXE_handover")]);
    python
        .args(["restart", "--wait", "--socket"])
        .arg(service.path("control"));
    let (code, shown) = finish(python.stdin(Stdio::null()));
    assert_eq!(code, Some(0), "{shown:?}");
    let new = serving_pid(&service);
    for line in [
        format!("process {old}, generation 1: serving\r\n"),
        format!("process {new}, generation 2: starting\r\n"),
        format!("process {new}, generation 2: serving\r\n"),
        "\x1b[?7h".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line:?} is not in {shown:?}");
    }
    assert!(shown.contains("restarted in "), "{shown:?}");
    stop(service);
}

#[test]
fn a_supervisor_that_is_not_there_is_named() {
    let (_dir, path) = support::socket_path();
    for command in ["status", "restart", "stop", "upgrade"] {
        for wait in [&[][..], &["--wait"]] {
            let wait = if command == "status" {
                &["--json"]
            } else {
                wait
            };
            let mut handover = handover();
            let output = handover
                .arg(command)
                .args(wait)
                .env("HANDOVER_SOCKET", &path);
            let output = support::output_of(output);
            assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
            assert!(output.stdout.is_empty(), "{output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            let start = format!(
                "handover: cannot reach a supervisor at {}: ",
                path.display()
            );
            assert!(said.starts_with(&start), "{said}");
            assert!(said.contains("No such file"), "{said}");
        }
    }
}

/// Whoever listens there, it is no supervisor.
#[test]
fn one_that_does_not_answer_is_not_waited_for_forever() {
    let (_dir, path) = support::socket_path();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let status = || {
        let mut command = handover();
        command
            .args(["status", "--timeout", "0.1", "--socket"])
            .arg(&path);
        let output = support::output_of(&mut command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(status().ends_with("has not answered in time\n"));
    drop(listener);
    // A process that another test starts has a copy of the listener until it executes its program.
    eventually("the connection is refused", || {
        status().contains("Connection refused")
    });
}

#[test]
fn bad_arguments_are_told_apart() {
    let runs = ["--", "true"];
    for args in [
        &["status"][..],
        &["restart", "--socket", "x", "--timeout", "-1"],
        &["run"],
        &["run", "true"],
        &[&["run", "--processes", "0"][..], &runs].concat(),
        &[&["run", "--listen", "localhost"][..], &runs].concat(),
        &[&["run", "--notify", "--ready-after", "2"][..], &runs].concat(),
        &[&["run", "--stop-signal", "SEGV"][..], &runs].concat(),
        &[&["run", "--backoff", "2..1"][..], &runs].concat(),
        &[&["run", "--give-up-after", "0"][..], &runs].concat(),
        &["completions", "dash"],
        &["nonsense"],
        &[],
    ] {
        let output = support::output_of(handover().args(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = support::output_of(handover().args(args));
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}
