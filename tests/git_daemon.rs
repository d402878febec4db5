//! The example `git_daemon` with the real `git`: a clone in progress is finished when the server is told to stop.
#![cfg(all(unix, feature = "signals"))] // signals

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[path = "support/listening.rs"]
mod listening;

use listening::until_refused;

const LONG: Duration = Duration::from_secs(120);

/// How much of a clone is let through before the test goes on with it in flight.
const IN_FLIGHT: usize = 1 << 20;

#[test]
fn a_clone_in_flight_is_finished_when_term_comes() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 32);
    let mut daemon = Daemon::start(&binary, base.path(), &[]);
    let relay = Relay::to(daemon.addr);
    let mut clone = clone(&base, relay.addr);
    relay.in_flight.recv_timeout(LONG).unwrap();

    #[cfg(target_os = "linux")]
    daemon.assert_that_children_have_no_listener();

    daemon.signal(Signal::TERM);
    until_refused(daemon.addr);
    let begin = Instant::now();
    drop(relay.release);
    let output = end_of(&mut clone);
    assert!(output.status.success(), "{output:?}");
    let (status, report) = daemon.end();
    println!(
        "a clone of 32 MiB went on for {:?} after TERM: {report}",
        begin.elapsed()
    );
    assert!(status.success(), "{status}: {report}");
    assert!(report.contains("0 forced, 0 dropped"), "{report}");
    let mut fsck = git(&base);
    fsck.arg("-C").arg(base.path().join("copy"));
    let fsck = run(fsck.args(["fsck", "--full", "--strict"]));
    assert!(fsck.status.success(), "{fsck:?}");
    let files = fs::read_dir(base.path().join("copy")).unwrap().count();
    assert_eq!(files, 32 + 1, "the files and .git");
}

#[test]
#[cfg(target_os = "linux")]
fn a_clone_in_flight_survives_a_restart() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 32);
    let mut daemon = Daemon::start(&binary, base.path(), &[]);
    let relay = Relay::to(daemon.addr);
    let mut clone = clone(&base, relay.addr);
    relay.in_flight.recv_timeout(LONG).unwrap();
    daemon.assert_that_children_have_no_listener();

    let listener = listening_inode(daemon.addr.port());
    daemon.signal(Signal::HUP);
    let until = Instant::now() + LONG;
    // The old process has none of the listener any more, nor has anybody else but the new one.
    let successor = loop {
        let holders = holders(&listener);
        match holders[..] {
            [holder] if holder != daemon.child.id() => break holder,
            _ => assert!(Instant::now() < until, "{holders:?}"),
        }
    };
    let mut remote = git(&base);
    let url = format!("git://{}/repo", daemon.addr);
    let served = run(remote.args(["ls-remote", &url]));
    assert!(served.status.success(), "{served:?}");

    drop(relay.release);
    let output = end_of(&mut clone);
    assert!(output.status.success(), "{output:?}");
    let successor = Pid::from_raw(successor.try_into().unwrap()).unwrap();
    let mut line = String::new();
    while !line.contains("stopped in") {
        line.clear();
        assert!(daemon.output.read_line(&mut line).unwrap() > 0);
    }
    assert!(line.contains("1 finished, 0 forced, 0 dropped"), "{line}");
    kill_process(successor, Signal::TERM).unwrap();
    let (status, report) = daemon.end();
    assert!(status.success(), "{status}: {report}");
    assert!(report.contains("0 forced, 0 dropped"), "{report}");
}

/// The processes that have this open.
#[cfg(target_os = "linux")]
fn holders(open: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holds = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut links = fds
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link.to_string_lossy() == open)
    };
    pids.filter(holds).collect()
}

#[test]
fn past_the_deadline_the_subprocess_is_ended() {
    let Some(binary) = example() else { return };
    for (options, signal) in [(&["--drain", "1"][..], Signal::TERM), (&[], Signal::QUIT)] {
        let base = TempDir::new().unwrap();
        make_repository(&base.path().join("repo"), 16);
        let mut daemon = Daemon::start(&binary, base.path(), options);
        let relay = Relay::to(daemon.addr);
        let mut clone = clone(&base, relay.addr);
        relay.in_flight.recv_timeout(LONG).unwrap();
        let children = descendants(&daemon.child);
        assert!(!children.is_empty() || cfg!(not(target_os = "linux")));
        let begin = Instant::now();
        daemon.signal(signal);
        let (status, report) = daemon.end();
        let took = begin.elapsed();
        println!("ended {took:?} after {signal:?}: {report}");
        assert!(status.success(), "{status}: {report}");
        assert!(report.contains("1 forced"), "{report}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        let until = Instant::now() + LONG;
        while children.iter().any(|pid| is_alive(*pid)) {
            assert!(Instant::now() < until, "{children:?} are still there");
            thread::yield_now();
        }
        drop(relay.release);
        assert!(!end_of(&mut clone).status.success());
    }
}

#[test]
fn many_clone_at_the_same_time_with_each_version_of_the_protocol() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 2);
    let mut daemon = Daemon::start(&binary, base.path(), &["--workers", "4"]);
    let clones: Vec<Child> = (0..12)
        .map(|n| {
            let mut git = git(&base);
            git.args(["-c", &format!("protocol.version={}", n % 3), "clone", "-q"]);
            git.arg(format!("git://{}/repo", daemon.addr));
            git.arg(base.path().join(format!("copy-{n}")));
            git.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for mut clone in clones {
        let output = end_of(&mut clone);
        assert!(output.status.success(), "{output:?}");
    }
    daemon.signal(Signal::TERM);
    let (status, report) = daemon.end();
    assert!(status.success(), "{status}: {report}");
    assert!(report.contains("0 forced, 0 dropped"), "{report}");
}

#[test]
fn the_protocol_version_reaches_the_subprocess() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 1);
    let daemon = Daemon::start(&binary, base.path(), &[]);
    let request = "git-upload-pack /repo\0host=localhost\0\0version=2\0";
    let answer = ask(daemon.addr, &(pkt_line(request) + "0000"));
    assert!(answer.starts_with("000eversion 2\n"), "{answer}");
}

#[test]
fn what_a_client_sends_too_early_reaches_the_subprocess() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 1);
    let mut daemon = Daemon::start(&binary, base.path(), &[]);
    let request = pkt_line("git-upload-pack /repo\0host=localhost\0");
    // A flush instead of wants, together with the request or in pieces: the advertisement is all that comes.
    let mut answers = vec![ask(daemon.addr, &(request.clone() + "0000"))];
    let mut stream = TcpStream::connect(daemon.addr).unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in [&request[..3], &request[3..9], &request[9..], "00", "00"] {
        stream.write_all(piece.as_bytes()).unwrap();
        // Bytes that are sent on their own usually arrive on their own; nothing depends on it.
        thread::yield_now();
    }
    answers.push(rest(&mut stream));
    // Only a part of the flush comes early. The client stays connected, and the server closes.
    let mut stream = TcpStream::connect(daemon.addr).unwrap();
    stream.write_all((request + "00").as_bytes()).unwrap();
    let mut begin = [0; 4];
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.read_exact(&mut begin).unwrap();
    stream.write_all(b"00").unwrap();
    answers.push(String::from_utf8_lossy(&begin).into_owned() + &rest(&mut stream));
    for answer in answers {
        assert!(answer.contains("refs/heads/main"), "{answer}");
        assert!(answer.ends_with("0000"), "{answer}");
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.end().0.success());
}

#[test]
fn nothing_outside_the_base_path_is_served() {
    let Some(binary) = example() else { return };
    let root = TempDir::new().unwrap();
    let base = root.path().join("base");
    make_repository(&base.join("repo"), 1);
    make_repository(&base.join("bare-like.git"), 1);
    make_repository(&root.path().join("secret"), 1);
    symlink(root.path().join("secret"), base.join("leads-outside")).unwrap();
    symlink(base.join("repo"), base.join("leads-inside")).unwrap();
    fs::create_dir(base.join("empty")).unwrap();
    // A worktree whose .git is a file that names another place.
    fs::create_dir(base.join("gitfile")).unwrap();
    let gitfile = format!("gitdir: {}/.git\n", root.path().join("secret").display());
    fs::write(base.join("gitfile/.git"), gitfile).unwrap();

    let served = [
        "/repo",
        "/repo/",
        "/repo/.git",
        "//repo",
        "/./repo",
        "/leads-inside",
        "/bare-like",
    ];
    let refused = [
        "/../secret",
        "/repo/../../secret",
        "/leads-outside",
        "/empty",
        "/missing",
        "/gitfile",
        "/",
        "repo",
        "",
    ];
    let strictly = ["/repo/.git", "/leads-inside/.git", "/bare-like.git/.git"];
    let strictly_not = [
        "/repo",
        "/leads-inside",
        "/bare-like",
        "/bare-like.git",
        "/../secret/.git",
    ];
    let all = [
        (&[][..], &served[..], &refused[..]),
        (&["--strict"], &strictly, &strictly_not),
    ];
    for (options, served, refused) in all {
        let daemon = Daemon::start(&binary, &base, options);
        let ask = |path: &str| {
            ask(
                daemon.addr,
                &(pkt_line(&format!("git-upload-pack {path}\0host=h\0")) + "0000"),
            )
        };
        for path in served {
            let answer = ask(path);
            assert!(
                answer.contains("refs/heads/main"),
                "{options:?} {path}: {answer:?}"
            );
        }
        for path in refused {
            let answer = ask(path);
            assert!(
                answer.get(4..).is_some_and(|text| text.starts_with("ERR ")),
                "{options:?} {path}: {answer:?}"
            );
        }
    }
}

#[test]
fn what_is_no_request_is_answered_with_an_error() {
    let Some(binary) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo"), 1);
    let mut daemon = Daemon::start(&binary, base.path(), &[]);
    let requests = [
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "0000".to_owned(),
        "0004".to_owned(),
        "+00f".to_owned(),
        "ffff".to_owned(),
        pkt_line("git-upload-pack"),
        pkt_line("git-receive-pack /repo\0host=h\0"),
        pkt_line("git-upload-archive /repo\0host=h\0"),
        pkt_line("\0\0\0\0"),
    ];
    for request in requests {
        let answer = ask(daemon.addr, &request);
        let length = answer
            .get(..4)
            .and_then(|digits| usize::from_str_radix(digits, 16).ok());
        assert_eq!(length, Some(answer.len()), "{request:?}: {answer:?}");
        assert!(answer[4..].starts_with("ERR "), "{request:?}: {answer:?}");
    }
    // As git shows it.
    let url = format!("git://{}/missing", daemon.addr);
    let output = run(git(&base).args(["ls-remote", &url]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("remote error: no such repository"), "{text}");
    // Half a request and the end of the stream: nothing is said.
    let mut stream = TcpStream::connect(daemon.addr).unwrap();
    stream.write_all(b"0030git-upl").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "");
    daemon.signal(Signal::TERM);
    assert!(daemon.end().0.success());
}

/// A subprocess waits for its client in each worker. That is progress, however long it takes.
#[test]
#[cfg(target_os = "linux")]
fn silent_clients_on_every_worker_are_no_hang() {
    let Some(example) = example() else { return };
    let base = TempDir::new().unwrap();
    make_repository(&base.path().join("repo.git"), 3);
    let log = tempfile::NamedTempFile::new().unwrap();
    let options = ["--supervised", "--watchdog", "1", "--workers", "4"];
    let mut daemon = Daemon::start_with(&example, base.path(), &options, |command| {
        command.stderr(log.reopen().unwrap());
    });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(daemon.addr).unwrap();
        let request = pkt_line("git-upload-pack /repo.git\0host=test\0");
        client.write_all(request.as_bytes()).unwrap();
        // The references: the subprocess runs, and waits for what the client wants.
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        clients.push(client);
    }
    // Longer than the watchdog's limit and its second chance.
    thread::sleep(Duration::from_millis(2500));
    for mut client in clients {
        // Nothing is wanted: the subprocess ends as usual.
        client.write_all(b"0000").unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"0000"));
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.end().0.success());
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(!log.contains("aborting"), "{log}");
}

// ---- the daemon ----

/// The example beside this test. `cargo test` builds it; `cargo test --tests` does not, and then there is nothing to
/// test.
fn example() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let binary = profile.join("examples/git_daemon");
    if binary.exists() {
        return Some(binary);
    }
    let path = binary.display();
    eprintln!("SKIPPED: {path} is not there; `cargo build --example git_daemon` makes it");
    None
}

struct Daemon {
    child: Child,
    output: BufReader<ChildStdout>,
    addr: SocketAddr,
    /// While it is there, a watchdog kills the process after a time.
    ends_watch: Option<Sender<()>>,
}

impl Daemon {
    fn start(binary: &Path, base: &Path, options: &[&str]) -> Self {
        Self::start_with(binary, base, options, |_| {})
    }

    fn start_with(
        binary: &Path,
        base: &Path,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new(binary);
        isolate(&mut command, base);
        command
            .args(["--listen", "127.0.0.1:0", "--base-path"])
            .arg(base)
            .args(options);
        prepare(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let ends_watch = watch(&child);
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ");
        let addr = addr.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        Self {
            child,
            output,
            addr,
            ends_watch: Some(ends_watch),
        }
    }

    /// Signals the server. To be called when it has served: then it is known to react to signals.
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it ends by itself; returns the rest of its output as well.
    fn end(&mut self) -> (ExitStatus, String) {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        self.ends_watch = None;
        (status, output.trim().to_owned())
    }

    /// A subprocess with a copy of the listener would keep the port when the server has gone.
    #[cfg(target_os = "linux")]
    fn assert_that_children_have_no_listener(&self) {
        let listener = listening_inode(self.addr.port());
        let sockets = |pid: u32| -> Vec<String> {
            let fds = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten();
            let targets = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
            targets
                .map(|path| path.to_string_lossy().into_owned())
                .collect()
        };
        assert!(sockets(self.child.id()).contains(&listener), "{listener}");
        let children = descendants(&self.child);
        let command =
            |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let upload_pack = children
            .iter()
            .find(|pid| command(**pid).contains("upload-pack"));
        let upload_pack = *upload_pack.expect("a clone is in progress");
        assert!(
            sockets(upload_pack)
                .iter()
                .any(|target| target.starts_with("socket:"))
        );
        for child in children {
            let sockets = sockets(child);
            assert!(
                !sockets.contains(&listener),
                "{child} {:?}: {sockets:?}",
                command(child)
            );
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A process that has ended and been waited for is left alone by std.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills a process after a time, unless what is returned has been dropped by then.
fn watch(child: &Child) -> Sender<()> {
    let pid = Pid::from_child(child);
    let (ends_watch, watched) = bounded::<()>(0);
    thread::spawn(move || {
        if watched.recv_timeout(2 * LONG) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    ends_watch
}

/// `socket:[inode]` of the listener on a port, as proc(5) has it in /proc/net/tcp.
#[cfg(target_os = "linux")]
fn listening_inode(port: u16) -> String {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let mut rows = table
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&local) && row[3] == "0A");
    format!("socket:[{}]", row.expect("somebody listens")[9])
}

/// The children of a process, theirs, and so on.
fn descendants(of: &Child) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // PID (COMMAND) STATE PPID …, and the command may contain anything.
        let fields = stat
            .rsplit_once(')')
            .map(|(_, fields)| fields.split_whitespace());
        let parent = fields.and_then(|mut fields| fields.nth(1)?.parse::<u32>().ok());
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        parents.extend(pid.zip(parent));
    }
    let mut found = vec![of.id()];
    let mut next = 0;
    while next < found.len() {
        let children = parents.iter().filter(|(_, parent)| *parent == found[next]);
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        next += 1;
    }
    found.split_off(1)
}

/// Whether a process is there and is no zombie; whoever inherits one may take its time.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.trim_start());
    fields.is_some_and(|fields| !fields.starts_with(['Z', 'X']))
}

// ---- its clients ----

/// Passes one connection on, and holds back what the server sends after the first [`IN_FLIGHT`] bytes.
struct Relay {
    addr: SocketAddr,
    /// Told when so much has been passed on.
    in_flight: Receiver<()>,
    /// Dropped to let the rest go.
    release: Sender<()>,
}

impl Relay {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (reached, in_flight) = bounded(1);
        let (release, released) = bounded::<()>(0);
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut server = TcpStream::connect(server).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let limit = IN_FLIGHT as u64;
            let passed = io::copy(&mut Read::by_ref(&mut server).take(limit), &mut client).unwrap();
            assert_eq!(passed, limit, "that was all of it");
            reached.send(()).unwrap();
            let _ = released.recv();
            let _ = io::copy(&mut server, &mut client);
            let _ = client.shutdown(Shutdown::Both);
        });
        Self {
            addr,
            in_flight,
            release,
        }
    }
}

fn clone(base: &TempDir, from: SocketAddr) -> Child {
    let mut git = git(base);
    git.args(["clone", "-q"]).arg(format!("git://{from}/repo"));
    git.arg(base.path().join("copy"));
    git.stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a command that says little, and returns what it says of errors.
fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    end_of(&mut command.stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for a process that says little.
fn end_of(child: &mut Child) -> Output {
    let ends_watch = watch(child);
    let mut stderr = Vec::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut stderr)
        .unwrap();
    let status = child.wait().unwrap();
    drop(ends_watch);
    Output {
        status,
        stdout: Vec::new(),
        stderr,
    }
}

fn pkt_line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// Sends a request, and returns everything up to the end of the stream.
fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    rest(&mut stream)
}

fn rest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

// ---- git ----

/// A repository with so many files of 1 MiB that do not compress.
fn make_repository(path: &Path, files: u64) {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        isolate(&mut command, path);
        command.args(["-c", "core.compression=0", "-c", "core.bigFileThreshold=1k"]);
        let output = command.arg("-C").arg(path).args(arguments).output();
        let output = output.expect("git is installed");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    fs::create_dir_all(path).unwrap();
    git(&["init", "-q", "-b", "main"]);
    for file in 0..files {
        fs::write(path.join(format!("file-{file}")), noise(file, 1 << 20)).unwrap();
    }
    git(&["add", "."]);
    git(&[
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.org",
        "commit",
        "-q",
        "-m",
        "Files",
    ]);
}

/// Bytes that do not compress: xorshift64.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn git(base: &TempDir) -> Command {
    let mut command = Command::new("git");
    isolate(&mut command, base.path());
    command
}

/// Nobody's own configuration.
fn isolate(command: &mut Command, home: &Path) {
    command
        .env("HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("GIT_DIR")
        .env_remove("GIT_CONFIG_GLOBAL")
        .env_remove("XDG_CONFIG_HOME");
}
