//! Restarts, with real processes: this file is run again as a server that is replaced, by itself or by something that
//! fails in one of the ways in which a new version can.
//!
//! `child` is that server. It serves HTTP, and its successors do what the file `mode` in its directory says.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))]

#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use handover::http::{self, Body, Reply, Request, Response};
use handover::{Bind, Handle, Restart, Server};
use load::{Kind, Load, To};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

// ---- the server ----

const DIR: &str = "HANDOVER_TEST_DIR";

/// The server that the tests start; not a test.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let mode = fs::read_to_string(dir.join("mode")).unwrap_or_default();
    misbehave(&dir, &mode, "early ");
    let mut restart = Restart::new();
    misbehave(&dir, &mode, "");
    let generation = restart.generation();
    let state = restart.state().map(String::from_utf8_lossy);
    let state = state.map(std::borrow::Cow::into_owned).unwrap_or_default();
    if let Some(timeout) = option(&dir, "ready-timeout") {
        restart = restart.ready_timeout(Duration::from_millis(timeout.parse().unwrap()));
    }
    if let Some(grace) = option(&dir, "grace") {
        restart = restart.idle_grace(Duration::from_millis(grace.parse().unwrap()));
    }
    if option(&dir, "pid-file").is_some() {
        restart = restart.pid_file(dir.join("pid"));
    }
    let passed = restart
        .inherited("datagrams")
        .map(std::net::UdpSocket::from);
    let datagrams = passed.unwrap_or_else(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let udp = datagrams.local_addr().unwrap().port();
    let own = dir.clone();
    restart = restart
        .pass("datagrams", datagrams)
        .ready_when(move || -> Result<(), String> {
            misbehave(&own, &mode, "late ");
            match mode.as_str() {
                "late error" => Err("the cache is cold".to_owned()),
                _ => Ok(()),
            }
        });
    let export = format!("{state}{generation},");
    let service = http::service(move |request: Request<Body<'_>>| {
        let who = format!("{} {generation} {udp} {state}", std::process::id());
        respond(request, who)
    });
    let mut builder = Server::builder()
        .workers(4)
        .drain_timeout(Duration::from_millis(
            option(&dir, "drain").map_or(20_000, |drain| drain.parse().unwrap()),
        ))
        .restart(restart);
    let listen = option(&dir, "listen").unwrap_or_default();
    for addr in listen.split_whitespace() {
        builder = match addr.split_once('=') {
            Some((name, addr)) => builder.listen(Bind::new(addr).name(name)),
            None => builder.listen(addr),
        };
    }
    let server = builder
        .build(service.export(move || export.clone().into_bytes()))
        .unwrap();
    // The test may listen, or not.
    let addrs: Vec<String> = server
        .local_addrs()
        .iter()
        .map(ToString::to_string)
        .collect();
    let _ = writeln!(std::io::stdout(), "\nlistening on {}", addrs.join(" "));
    let report = if option(&dir, "by-handle").is_some() {
        let handle = server.start().unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(1);
        });
        HANDLE.get_or_init(|| handle.clone());
        handle.join()
    } else {
        server.run().unwrap()
    };
    let _ = writeln!(std::io::stdout(), "\ngeneration {generation}: {report}");
    std::process::exit(0);
}

static HANDLE: OnceLock<Handle> = OnceLock::new();

fn option(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

/// What a new version may do instead of serving.
fn misbehave(dir: &Path, mode: &str, prefix: &str) {
    match mode.strip_prefix(prefix).unwrap_or_default() {
        "exit 0" => std::process::exit(0),
        "exit 3" => {
            eprintln!("first line\nno configuration");
            std::process::exit(3);
        }
        "panic" => {
            eprintln!("it is all wrong");
            // As from `main`.
            std::process::exit(101);
        }
        "segv" => {
            // The first one is for the runtime's handler, which thinks that the fault comes again.
            let own = rustix::process::getpid();
            loop {
                kill_process(own, Signal::SEGV).unwrap();
            }
        }
        "hang" => loop {
            thread::park();
        },
        // Until the test says so.
        "pause" => {
            fs::write(dir.join("at"), "").unwrap();
            while !dir.join("go").exists() {
                thread::yield_now();
            }
        }
        // What is not inherited by the new program is closed; the process lives on.
        "sleep" => panic!("{}", Command::new("sleep").arg("1000").exec()),
        _ => {}
    }
}

fn respond(mut request: Request<Body<'_>>, who: String) -> Response<Reply> {
    Response::new(match request.uri().path() {
        "/" => "Hello, World!".into(),
        "/echo" => request
            .body_mut()
            .read_all(4 << 20)
            .unwrap_or_default()
            .into(),
        "/who" => who.into(),
        "/slow" => {
            let millis = request.uri().query().and_then(|millis| millis.parse().ok());
            thread::sleep(Duration::from_millis(millis.unwrap_or(1000)));
            who.into()
        }
        "/restart" => {
            let restart = || HANDLE.wait_for().restart();
            let outcome = thread::spawn(restart).join().unwrap();
            match outcome {
                Ok(report) => format!("{report}").into(),
                Err(error) => {
                    let (kind, status) = (error.kind(), error.status());
                    format!("{kind:?}|{status:?}|{:?}|{error}", error.stderr()).into()
                }
            }
        }
        _ => "?".into(),
    })
}

/// `start` returns the handle a moment after it serves.
trait WaitFor {
    fn wait_for(&self) -> &Handle;
}

impl WaitFor for OnceLock<Handle> {
    fn wait_for(&self) -> &Handle {
        eventually("the handle", || self.get().is_some());
        self.get().unwrap()
    }
}

// ---- the tests' side of it ----

/// The generations of one server: a group of processes.
struct Generations {
    dir: TempDir,
    first: Child,
    output: BufReader<std::process::ChildStdout>,
    addrs: Vec<String>,
    program: PathBuf,
}

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Who {
    pid: i32,
    generation: u64,
    udp: u16,
    state: String,
}

impl Generations {
    fn start(options: &[(&str, &str)]) -> Self {
        Self::start_with(options, |_| {})
    }

    fn start_with(options: &[(&str, &str)], prepare: impl FnOnce(&mut Command)) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("listen"), "127.0.0.1:0").unwrap();
        for (name, value) in options {
            fs::write(dir.path().join(name), value).unwrap();
        }
        let program = dir.path().join("server");
        // A link, so that what it leads to can be another one later.
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new(&program);
        command
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        prepare(&mut command);
        let mut first = command.spawn().unwrap();
        let output = BufReader::new(first.stdout.take().unwrap());
        let mut generations = Self {
            dir,
            first,
            output,
            addrs: Vec::new(),
            program,
        };
        let line = generations.until("listening on ");
        let addrs = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap()
            .split(' ');
        generations.addrs = addrs.map(str::to_owned).collect();
        generations
    }

    /// Reads the processes' output up to a line that contains a text.
    fn until(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let count = self.output.read_line(&mut line).unwrap();
            assert!(
                count > 0,
                "the processes ended without having said {text:?}"
            );
            if line.contains(text) {
                return line;
            }
        }
    }

    fn addr(&self) -> SocketAddr {
        self.addrs[0].parse().unwrap()
    }

    /// What successors are to do from now on.
    fn mode(&self, mode: &str) {
        self.option("mode", mode);
    }

    fn option(&self, name: &str, value: &str) {
        // In one step, so that nobody reads half of it.
        let new = self.dir.path().join("new");
        fs::write(&new, value).unwrap();
        fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    fn get(&self, path: &str) -> String {
        get(&mut support::connect(self.addr()), path)
    }

    fn who(&self) -> Who {
        Who::parse(&self.get("/who"))
    }

    /// Has the serving process replaced, and waits until it is.
    fn restart(&self) -> Who {
        let old = self.who();
        signal(old.pid, Signal::HUP);
        self.until_generation(old.generation + 1)
    }

    /// Waits until this generation serves, and no other one any more: a process that is stopped before it has taken over
    /// leaves the service to its predecessor.
    fn until_generation(&self, generation: u64) -> Who {
        eventually("the next generation", || {
            self.who().generation >= generation
        });
        eventually("the old one has left", || {
            let (live, _) = self.processes();
            let accepts = |pid: &i32| threads(*pid).contains("handover-accept");
            live.iter().filter(|pid| accepts(pid)).count() == 1
        });
        let who = self.who();
        assert_eq!(who.generation, generation);
        who
    }

    /// The processes of the group that have not ended, and those that nobody has waited for.
    fn processes(&self) -> (Vec<i32>, usize) {
        processes_of(self.first.id())
    }

    /// Stops the serving process, and waits until all have ended.
    fn end(mut self) {
        signal(self.who().pid, Signal::TERM);
        self.wait();
    }

    fn wait(&mut self) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.first.wait().unwrap();
        eventually("the end of all processes", || self.processes().0.is_empty());
    }
}

impl Drop for Generations {
    fn drop(&mut self) {
        // For tests that failed; otherwise there is nobody any more.
        let group = Pid::from_child(&self.first);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.first.wait();
    }
}

impl Who {
    #[track_caller]
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut next = || words.next().unwrap_or_else(|| panic!("{text:?}"));
        Self {
            pid: next().parse().unwrap(),
            generation: next().parse().unwrap(),
            udp: next().parse().unwrap(),
            state: next().to_owned(),
        }
    }
}

/// Waits until something holds. Other processes need the time more than this one.
#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    support::eventually(what, || {
        let holds = holds();
        if !holds {
            thread::park_timeout(Duration::from_millis(2));
        }
        holds
    });
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The state and the group of a process, and whether it is there at all.
fn stat(pid: i32) -> Option<(char, u32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, fields.next()?.parse().ok()?, parent))
}

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn processes_of(group: u32) -> (Vec<i32>, usize) {
    let (mut live, mut zombies) = (Vec::new(), 0);
    for pid in all_pids() {
        match stat(pid) {
            Some(('Z' | 'X', own, _)) if own == group => zombies += 1,
            Some((_, own, _)) if own == group => live.push(pid),
            _ => {}
        }
    }
    (live, zombies)
}

/// Sends a GET that ends the connection, and returns the answer's body.
#[track_caller]
fn get(stream: &mut (impl Read + Write), path: &str) -> String {
    exchange(stream, path).unwrap()
}

fn try_get(from: SocketAddr, path: &str) -> io::Result<String> {
    exchange(&mut TcpStream::connect(from)?, path)
}

fn exchange(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    match body.filter(|_| answer.starts_with("HTTP/1.1 200 OK\r\n")) {
        Some(body) => Ok(body.to_owned()),
        None => Err(io::Error::other(answer)),
    }
}

/// Clients of every kind, for a TCP and a Unix listener.
fn every_kind(tcp: SocketAddr, unix: &Path, delayed: Option<SocketAddr>) -> Vec<(To, Kind)> {
    let kinds = [
        Kind::KeepAlive,
        Kind::Idle(Duration::from_millis(20)),
        Kind::PerRequest,
        Kind::Echo(0),
        Kind::Echo(16 << 10),
        Kind::Echo(1 << 20),
        Kind::Pipelined(8),
    ];
    let mut all = Vec::new();
    for kind in kinds {
        all.push((To::Tcp(tcp), kind));
        all.push((To::Unix(unix.to_owned()), kind));
        all.extend(delayed.map(|addr| (To::Tcp(addr), kind)));
    }
    all
}

#[test]
fn no_request_is_lost_by_restarts_under_load() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let mut generations = Generations::start(&[("listen", &listen)]);
    let delayed = load::delayed(generations.addr(), Duration::from_millis(2));
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(12, |n| n.parse().unwrap());
    let first = resources(generations.restart().pid);
    let clients = std::env::var("HANDOVER_TEST_CLIENTS").map_or(2, |n| n.parse().unwrap());
    let kinds = every_kind(generations.addr(), &path, Some(delayed));
    let load = Load::start(&kinds, clients);
    let mut times = Vec::new();
    for _ in 1..restarts {
        load.wait_for(200);
        let old = generations.who();
        let start = Instant::now();
        signal(old.pid, Signal::HUP);
        generations.until_generation(old.generation + 1);
        times.push(start.elapsed());
        eventually("the old process ends", || {
            stat(old.pid).is_none_or(|s| s.0 == 'Z')
        });
    }
    load.wait_for(200);
    let connections = load.seen.connections.load(SeqCst);
    let answers = load.end();
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!(
        "{answers} answers on {connections} connections, {restarts} restarts, median {median:?}"
    );

    // One more that has had no clients, as the first one.
    let who = generations.restart();
    assert_eq!(who.generation, restarts + 2);
    let last = resources(who.pid);
    println!("after the first restart {first:?}, after the last one {last:?}");
    assert_eq!(first.descriptors, last.descriptors);
    assert_eq!(first.listening, last.listening);
    assert_eq!(first.threads, last.threads);
    let environment = first.environment.abs_diff(last.environment);
    assert!(environment < 8, "only the digits of numbers may change");
    assert!(last.rss_kib < first.rss_kib * 3 / 2);
    // The first process is a child of this test, which waits for it in the end; init waits for the others.
    eventually("no zombie but the first process", || {
        generations.processes().1 <= 1
    });
    signal(who.pid, Signal::TERM);
    generations.wait();
    assert!(!path.exists(), "the last one removes the file");
}

/// What a process holds.
#[derive(Debug)]
struct Resources {
    descriptors: usize,
    listening: usize,
    environment: usize,
    threads: usize,
    rss_kib: usize,
}

fn resources(pid: i32) -> Resources {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Resources {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        listening: listening(pid),
        environment: fs::read(format!("/proc/{pid}/environ")).unwrap().len(),
        threads: number("Threads:"),
        rss_kib: number("VmRSS:"),
    }
}

/// How many listening TCP and Unix sockets a process holds.
fn listening(pid: i32) -> usize {
    let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
    let tcp = tcp
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("0A"));
    let mut inodes: Vec<String> = tcp
        .filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned))
        .collect();
    let unix = fs::read_to_string("/proc/net/unix").unwrap();
    // SO_ACCEPTCON
    let unix = unix
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("00010000"));
    inodes.extend(unix.filter_map(|line| line.split_whitespace().nth(6).map(str::to_owned)));
    // It may have ended.
    let links = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| {
            let link = link.to_string_lossy();
            inodes
                .iter()
                .any(|inode| *link == format!("socket:[{inode}]"))
        })
        .count()
}

/// Asks the serving process to restart itself, and returns what its handle says.
fn restart_by_handle(generations: &Generations) -> Vec<String> {
    let outcome = generations.get("/restart");
    outcome.splitn(4, '|').map(str::to_owned).collect()
}

#[test]
fn a_successor_that_fails_costs_nothing_and_says_why() {
    let options = [("by-handle", ""), ("ready-timeout", "60000")];
    let generations = Generations::start(&options);
    let addr = generations.addr();
    let load = Load::start(
        &[
            (To::Tcp(addr), Kind::KeepAlive),
            (To::Tcp(addr), Kind::PerRequest),
            (To::Tcp(addr), Kind::Echo(16 << 10)),
        ],
        2,
    );
    let good = generations.program.clone();
    let first = generations.who();
    let descriptors = resources(first.pid).listening;
    let binary = fs::read(&good).unwrap();
    // The mode or the fault of the program, the failure, the status, and a part of what is said.
    let ways = [
        (
            "early exit 3",
            "Ended",
            "Some(ExitStatus(unix_wait_status(768)))",
            "no configuration",
        ),
        (
            "early exit 0",
            "Ended",
            "Some(ExitStatus(unix_wait_status(0)))",
            "before it had begun",
        ),
        ("early segv", "Ended", "unix_wait_status(", "SIGSEGV"),
        (
            "exit 3",
            "Ended",
            "Some(ExitStatus(unix_wait_status(768)))",
            "no configuration",
        ),
        (
            "panic",
            "Ended",
            "Some(ExitStatus(unix_wait_status(25856)))",
            "it is all wrong",
        ),
        ("segv", "Ended", "unix_wait_status(", "SIGSEGV"),
        // The control socket is closed, and the process is there: it is ended.
        (
            "sleep",
            "Ended",
            "Some(ExitStatus(unix_wait_status(9)))",
            "before it was ready",
        ),
        (
            "late panic",
            "Ended",
            "Some(ExitStatus(unix_wait_status(25856)))",
            "it is all wrong",
        ),
        (
            "late error",
            "Ended",
            "Some(ExitStatus(unix_wait_status(256)))",
            "the cache is cold",
        ),
        ("missing", "Start", "None", "No such file"),
        ("not executable", "Start", "None", "ermission denied"),
        ("a directory", "Start", "None", "ermission denied"),
        ("truncated", "", "", ""),
        ("no program", "Start", "None", "Exec format error"),
    ];
    for (way, failure, status, text) in ways {
        load.wait_for(50);
        fs::remove_file(&good).unwrap();
        let spoiled = match way {
            "missing" => false,
            "not executable" => put(&good, &binary, 0o644),
            "a directory" => {
                fs::create_dir(&good).unwrap();
                true
            }
            "truncated" => put(&good, &binary[..64 << 10], 0o755),
            "no program" => put(&good, b"\x7fnothing that runs", 0o755),
            _ => {
                std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &good).unwrap();
                generations.mode(way);
                false
            }
        };
        let outcome = restart_by_handle(&generations);
        println!("{way}: {outcome:?}");
        match (way, &outcome[..]) {
            // What the system makes of it depends on where it was cut.
            ("truncated", [kind, ..]) => assert!(["Start", "Ended"].contains(&&**kind), "{kind}"),
            (_, [kind, own, stderr, display]) => {
                assert_eq!(kind, failure, "{way}: {display}");
                assert!(own.contains(status), "{way}: {own}");
                assert!(
                    display.contains(text) || stderr.contains(text),
                    "{way}: {display}"
                );
            }
            _ => panic!("{way}: {outcome:?}"),
        }
        generations.mode("");
        match (way, spoiled) {
            ("a directory", _) => fs::remove_dir(&good).unwrap(),
            (_, true) => fs::remove_file(&good).unwrap(),
            ("missing", _) => {}
            _ => fs::remove_file(&good).unwrap(),
        }
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &good).unwrap();
        assert_eq!(generations.who(), first, "{way}");
        assert_eq!(
            generations.processes(),
            (vec![first.pid], 0),
            "{way}: nobody is left behind"
        );
        assert_eq!(resources(first.pid).listening, descriptors, "{way}");
    }
    // And the next good one works.
    load.wait_for(50);
    signal_by_handle(&generations);
    assert_eq!(generations.until_generation(2).generation, 2);
    load.end();
    let who = generations.who();
    signal(who.pid, Signal::KILL);
}

/// The restart itself has the process end that answers, so that nobody waits for the answer.
fn signal_by_handle(generations: &Generations) {
    let mut client = support::connect(generations.addr());
    write!(client, "GET /restart HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    thread::spawn(move || client.read_to_end(&mut Vec::new()));
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    true
}

#[test]
fn a_successor_that_hangs_is_ended_in_time() {
    let options = [("by-handle", ""), ("ready-timeout", "700")];
    let generations = Generations::start(&options);
    let first = generations.who();
    // Before it greets, while it builds the server, and after that.
    for way in ["early hang", "hang", "late hang", "early sleep"] {
        generations.mode(way);
        let start = Instant::now();
        let outcome = restart_by_handle(&generations);
        assert_eq!(outcome[0], "TimedOut", "{way}: {outcome:?}");
        assert!(
            outcome[1].contains("unix_wait_status(9)"),
            "{way}: {outcome:?}"
        );
        assert!(start.elapsed() >= Duration::from_millis(700), "{way}");
        assert_eq!(generations.who(), first, "{way}");
        assert_eq!(generations.processes(), (vec![first.pid], 0), "{way}");
    }
    generations.mode("");
    signal_by_handle(&generations);
    generations.until_generation(2);
    signal(generations.who().pid, Signal::KILL);
}

#[test]
fn whoever_survives_a_kill_serves() {
    // The stage that the successor waits in, and how long after that, in microseconds, one of the two is killed.
    let stages = [("early pause", None), ("pause", None), ("late pause", None)];
    // From there on it goes from hand to hand within a millisecond or two.
    let steps = (0..10).map(|step| ("late pause", Some(step * 200)));
    let (mut olds, mut news, mut late) = (0, 0, 0);
    for (stage, micros) in stages.into_iter().chain(steps) {
        for kills_old in [true, false] {
            match survive(stage, micros, kills_old) {
                None => late += 1,
                Some(()) if kills_old => olds += 1,
                Some(()) => news += 1,
            }
        }
    }
    println!("killed {olds} old ones, {news} new ones, and {late} new ones that had taken over");
    assert!(olds >= 3 && news >= 3);
}

/// Kills one process in the middle of a restart. `None` if the successor had taken over: then nobody is left, and it
/// is a matter for a supervisor.
fn survive(stage: &str, micros: Option<u64>, kills_old: bool) -> Option<()> {
    let what = format!("{stage}, {micros:?}, the old one: {kills_old}");
    println!("{what}");
    let mut generations = Generations::start(&[("drain", "3000")]);
    generations.mode(stage);
    let first = generations.who().pid;
    let addr = generations.addr();
    let load = Load::start(&[(To::Tcp(addr), Kind::PerRequest)], 2);
    load.wait_for(20);
    signal(first, Signal::HUP);
    let child = wait_for_child(first);
    let (at, go) = (
        generations.dir.path().join("at"),
        generations.dir.path().join("go"),
    );
    eventually("the stage", || at.exists());
    let victim = if kills_old { first } else { child };
    if let Some(micros) = micros {
        fs::write(&go, "").unwrap();
        let until = Instant::now() + Duration::from_micros(micros);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
    // It may have ended by itself.
    let _ = kill_process(Pid::from_raw(victim).unwrap(), Signal::KILL);
    fs::write(&go, "").unwrap();
    eventually("the killed one is gone", || {
        stat(victim).is_none_or(|s| s.0 == 'Z')
    });
    let has_left = || !threads(first).contains("handover-accept");
    let answer = try_get(generations.addr(), "/who");
    if !kills_old && (answer.is_err() || has_left()) {
        // It must have been about to leave already.
        eventually("the old one leaves", has_left);
        load.finish();
        return None;
    }
    let survivor = Who::parse(&answer.unwrap());
    // A restart that is asked for before it knows would be the one that has failed.
    eventually("the survivor knows", || {
        generations.processes().0 == [survivor.pid]
    });
    let (_, failures) = load.finish();
    // At worst what the killed process had in hand.
    for failure in &failures {
        assert!(!failure.contains("refused"), "{what}: {failure}");
    }
    assert!(failures.len() <= 2 * 2, "{what}: {failures:?}");
    assert_ne!(survivor.pid, victim, "{what}");
    // Whoever it is can be restarted.
    generations.mode("");
    let next = generations.restart();
    assert_eq!(next.generation, survivor.generation + 1, "{what}");
    signal(next.pid, Signal::TERM);
    generations.wait();
    Some(())
}

/// The one child of a process that waits for it.
#[track_caller]
fn wait_for_child(parent: i32) -> i32 {
    child_of(parent).expect("it has ended without a child")
}

/// The same; `None` if the process ends meanwhile.
fn child_of(parent: i32) -> Option<i32> {
    let deadline = Instant::now() + support::LIMIT;
    while stat(parent).is_some_and(|s| s.0 != 'Z') {
        // Between the two is one that only waits.
        let is_child = |pid: i32| {
            stat(pid)
                .and_then(|s| stat(s.2))
                .is_some_and(|s| s.2 == parent)
        };
        if let Some(child) = all_pids().find(|pid| is_child(*pid)) {
            return Some(child);
        }
        assert!(Instant::now() < deadline, "there is no child");
    }
    None
}

#[test]
fn many_triggers_are_one_restart() {
    let generations = Generations::start(&[]);
    let first = generations.who().pid;
    let load = Load::start(&[(To::Tcp(generations.addr()), Kind::KeepAlive)], 4);
    load.wait_for(20);
    for _ in 0..20 {
        // Those that come when it has been replaced, and has ended, reach nobody.
        let _ = kill_process(Pid::from_raw(first).unwrap(), Signal::HUP);
        let _ = kill_process(Pid::from_raw(first).unwrap(), Signal::USR2);
        let (live, _) = generations.processes();
        assert!(live.len() <= 3, "a storm: {live:?}");
    }
    let who = generations.until_generation(2);
    eventually("the old process ends", || {
        stat(first).is_none_or(|s| s.0 == 'Z')
    });
    assert_eq!(generations.who(), who);
    load.end();
    generations.end();
}

#[test]
fn a_stop_ends_a_restart_in_progress() {
    for way in ["early hang", "hang", "late hang"] {
        // With a request in hand, with nothing, and without waiting for anything.
        for (stop, slow) in [
            (Signal::TERM, true),
            (Signal::TERM, false),
            (Signal::QUIT, true),
        ] {
            let mut generations = Generations::start(&[]);
            generations.mode(way);
            let first = generations.who().pid;
            let mut client = support::connect(generations.addr());
            if slow {
                let request = b"GET /slow?300 HTTP/1.1\r\nHost: test\r\n\r\n";
                client.write_all(request).unwrap();
            }
            signal(first, Signal::HUP);
            let child = wait_for_child(first);
            signal(first, stop);
            let mut answer = String::new();
            let read = client.read_to_string(&mut answer);
            if stop == Signal::TERM && slow {
                assert!(
                    answer.starts_with("HTTP/1.1 200 OK"),
                    "{way}: {answer} {read:?}"
                );
            }
            generations.wait();
            assert!(stat(child).is_none(), "{way}, {stop:?}, {slow}");
        }
    }
}

/// Whether the signals reach the upgrader one by one or at once.
#[test]
fn a_stop_right_behind_a_restart_leaves_nobody_who_serves() {
    for stop in [Signal::TERM, Signal::QUIT] {
        for _ in 0..8 {
            let mut generations = Generations::start(&[]);
            let first = generations.who().pid;
            signal(first, Signal::HUP);
            signal(first, stop);
            let status = generations.wait_for_first();
            assert!(status.success(), "{status}");
            // Either it has been replaced before it was stopped, or there is nobody.
            match generations.processes().0[..] {
                [] => {}
                [pid] => {
                    signal(pid, Signal::TERM);
                    eventually("the end", || generations.processes().0.is_empty());
                }
                ref more => panic!("{more:?}"),
            }
        }
    }
}

#[test]
fn a_stop_does_not_wait_for_what_is_not_ready() {
    let mut generations = Generations::start(&[]);
    generations.mode("late hang");
    let first = generations.who().pid;
    signal(first, Signal::HUP);
    let child = wait_for_child(first);
    // It is in the hands of `ready_when`, and hangs there.
    eventually("it has come so far", || {
        threads(child).contains("handover-ready")
    });
    signal(child, Signal::TERM);
    eventually("the successor ends", || stat(child).is_none());
    assert_eq!(generations.who().pid, first);
    generations.mode("");
    generations.restart();
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

fn threads(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .collect()
}

impl Generations {
    fn wait_for_first(&mut self) -> std::process::ExitStatus {
        self.first.wait().unwrap()
    }
}

/// One that a new version does not listen on any more.
#[test]
fn what_is_queued_for_a_listener_that_is_given_up_is_served() {
    let mut generations = Generations::start(&[("listen", "127.0.0.1:0 127.0.0.1:0")]);
    let first = generations.who();
    let kept = generations.addrs[0].clone();
    let given_up: SocketAddr = generations.addrs[1].parse().unwrap();
    generations.option("listen", &kept);
    let load = Load::start(&[(To::Tcp(given_up), Kind::PerRequest)], 8);
    load.wait_for(100);
    signal(first.pid, Signal::HUP);
    generations.until_generation(2);
    eventually("nobody listens there", || {
        TcpStream::connect(given_up).is_err()
    });
    let (_, failures) = load.finish();
    let reset = failures.iter().find(|failure| !failure.contains("refused"));
    assert!(reset.is_none(), "{reset:?}");
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

#[test]
fn an_early_signal_does_not_kill_a_successor() {
    for early in [Signal::HUP, Signal::USR1, Signal::USR2] {
        let generations = Generations::start(&[]);
        generations.signal_early(early);
        // A restart that is asked for so early comes as soon as it can.
        let last = if early == Signal::USR1 { 2 } else { 3 };
        generations.until_generation(last);
        generations.end();
    }
}

#[test]
fn a_successor_that_is_stopped_early_lets_its_predecessor_serve_on() {
    for early in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let generations = Generations::start(&[]);
        let first = generations.who();
        let child = generations.signal_early(early);
        eventually("the successor ends", || stat(child).is_none());
        assert_eq!(generations.who(), first, "{early:?}");
        assert_eq!(generations.restart().generation, 2, "{early:?}");
        generations.end();
    }
}

impl Generations {
    /// Signals a successor before it has done anything.
    fn signal_early(&self, early: Signal) -> i32 {
        self.mode("early pause");
        let first = self.who().pid;
        signal(first, Signal::HUP);
        let child = wait_for_child(first);
        eventually("the successor starts", || {
            self.dir.path().join("at").exists()
        });
        signal(child, early);
        self.mode("");
        fs::write(self.dir.path().join("go"), "").unwrap();
        child
    }
}

#[test]
fn state_and_descriptors_are_passed_on() {
    let generations = Generations::start(&[]);
    let first = generations.who();
    assert_eq!(first.state, "");
    let second = generations.restart();
    let third = generations.restart();
    assert_eq!((&*second.state, &*third.state), ("1,", "1,2,"));
    assert_eq!((second.udp, third.udp), (first.udp, first.udp));
    generations.end();
}

#[test]
fn a_unix_socket_and_the_pid_file_go_from_hand_to_hand() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let mut generations = Generations::start(&[("listen", &listen), ("pid-file", "")]);
    let pid_file = generations.dir.path().join("pid");
    let pid = || {
        fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
    };
    let first = generations.who();
    assert_eq!(pid(), first.pid);
    // Nobody else may take it.
    let other = Generations::start_expecting_failure(&pid_file);
    assert!(
        other.contains(&format!("is that of process {}", first.pid)),
        "{other}"
    );
    let second = generations.restart();
    assert_eq!(pid(), second.pid);
    eventually("the old process ends", || {
        stat(first.pid).is_none_or(|s| s.0 == 'Z')
    });
    assert_eq!(pid(), second.pid);
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(Who::parse(&get(&mut client, "/who")), second);
    signal(second.pid, Signal::TERM);
    generations.wait();
    assert!(!path.exists() && !pid_file.exists());
}

impl Generations {
    /// Starts a server that cannot have its pid file, and returns what it says.
    fn start_expecting_failure(pid_file: &Path) -> String {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("listen"), "127.0.0.1:0").unwrap();
        fs::write(dir.path().join("pid-file"), "").unwrap();
        std::os::unix::fs::symlink(pid_file, dir.path().join("pid")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
        let output = command.env(DIR, dir.path()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[test]
fn idle_clients_have_their_grace_and_then_the_end() {
    let generations = Generations::start(&[("grace", "3000")]);
    let first = generations.who();
    let mut asking = support::connect(generations.addr());
    let mut silent = support::connect(generations.addr());
    for client in [&mut asking, &mut silent] {
        client
            .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        let answer = one_answer(client);
        assert!(!answer.contains("Connection: close"), "{answer}");
    }
    let restarted = Instant::now();
    generations.restart();
    // Who asks within the grace is answered, by the old process, and told not to ask again.
    asking
        .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let answer = one_answer(&mut asking);
    let in_time = restarted.elapsed() < Duration::from_millis(2000);
    if in_time {
        assert!(answer.contains("Connection: close"), "{answer}");
        assert!(
            answer.contains(&format!("\r\n\r\n{} 1 ", first.pid)),
            "{answer}"
        );
        assert_eq!(asking.read(&mut [0; 8]).unwrap(), 0);
    }
    assert_eq!(
        silent.read(&mut [0; 8]).unwrap(),
        0,
        "closed without a word"
    );
    assert!(restarted.elapsed() >= Duration::from_millis(2000));
    eventually("the old process ends", || {
        stat(first.pid).is_none_or(|s| s.0 == 'Z')
    });
    generations.end();
}

/// Reads an answer that has a length.
fn one_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

#[test]
fn the_oldest_of_three_generations_is_forced_to_end() {
    let mut generations = Generations::start(&[("drain", "600000")]);
    let mut slow = Vec::new();
    let mut pids = Vec::new();
    for _ in 0..3 {
        let who = generations.who();
        let mut client = support::connect(generations.addr());
        client
            .write_all(b"GET /slow?600000 HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        // It is in the handler's hands when the process has accepted it, and a later one.
        generations.who();
        slow.push(client);
        pids.push(who.pid);
        generations.restart();
    }
    // The first one had to go, with what it had in hand; the others drain.
    assert!(matches!(slow[0].read(&mut [0; 8]), Ok(0) | Err(_)));
    eventually("the oldest ends", || {
        stat(pids[0]).is_none_or(|s| s.0 == 'Z')
    });
    support::assert_silent(&mut slow[1]);
    support::assert_silent(&mut slow[2]);
    let (live, _) = generations.processes();
    assert!(live.contains(&pids[1]) && live.contains(&pids[2]));
    for pid in live {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::QUIT);
    }
    generations.wait();
}

#[test]
fn standard_error_comes_back_to_the_successor() {
    let mut generations = Generations::start_with(&[], |command| {
        command.stderr(Stdio::piped());
    });
    let mut stderr = BufReader::new(generations.first.stderr.take().unwrap());
    let first = generations.who();
    let own = fs::read_link(format!("/proc/{}/fd/2", first.pid)).unwrap();
    let second = generations.restart();
    assert_eq!(
        fs::read_link(format!("/proc/{}/fd/2", second.pid)).unwrap(),
        own
    );
    // What a failing one says is passed on.
    generations.mode("exit 3");
    signal(second.pid, Signal::HUP);
    let mut line = String::new();
    while !line.contains("no configuration") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
    }
    generations.mode("");
    generations.end();
}

// ---- socket activation ----

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
    // Nobody listens there any more, although this process never did.
    assert!(TcpStream::connect(surplus_addr).is_err());
    assert_eq!(generations.addr(), addr);
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
    let pid = Pid::from_child(&activator).as_raw_nonzero().get();
    eventually("it listens", || path.exists());
    let who = || Who::parse(&get(&mut UnixStream::connect(&path).unwrap(), "/who"));
    let first = who();
    assert_eq!((first.pid, first.generation), (pid, 1));
    signal(pid, Signal::HUP);
    eventually("the next generation", || who().generation == 2);
    let second = who().pid;
    activator.wait().unwrap();
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

// ---- the service manager ----

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

    signal(third, Signal::TERM);
    generations.wait();
    manager.expect(third, &["STOPPING=1"]);
}

fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// The example, as a user has it: replaced by another build of it.
#[test]
fn the_demo_is_replaced_by_what_is_on_disk() {
    let test = std::env::current_exe().unwrap();
    let demo = test
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/demo");
    if !demo.exists() {
        let path = demo.display();
        eprintln!("SKIPPED: {path} is not there; `cargo build --examples --all-features` makes it");
        return;
    }
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("demo");
    fs::copy(&demo, &program).unwrap();
    let mut first = Command::new(&program)
        .args(["--listen", "127.0.0.1:0", "--ready-timeout", "50"])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let addr: SocketAddr = line.trim().rsplit_once('/').unwrap().1.parse().unwrap();
    let whoami = || get(&mut support::connect(addr), "/whoami");
    let said = whoami();
    let version = |version: &str| format!(r#""version":"{version}"}}"#);
    assert!(
        said.contains(r#""generation":1,"#) && said.ends_with(&version(env!("CARGO_PKG_VERSION"))),
        "{said}"
    );
    // Another build is one with another version in it.
    let mut bytes = fs::read(&demo).unwrap();
    let (own, other) = (env!("CARGO_PKG_VERSION").as_bytes(), b"9.8.7");
    assert_eq!(own.len(), other.len());
    let places: Vec<usize> = (0..bytes.len() - own.len())
        .filter(|&at| bytes[at..].starts_with(own))
        .collect();
    for at in places {
        bytes[at..at + other.len()].copy_from_slice(other);
    }
    let new = dir.path().join("demo.new");
    put(&new, &bytes, 0o755);
    fs::rename(new, &program).unwrap();
    signal(Pid::from_child(&first).as_raw_nonzero().get(), Signal::HUP);
    eventually("the next generation", || {
        whoami().contains(r#""generation":2,"#)
    });
    let said = whoami();
    assert!(said.ends_with(&version("9.8.7")), "{said}");
    let pid = said
        .trim_start_matches(r#"{"pid":"#)
        .split(',')
        .next()
        .unwrap();
    first.wait().unwrap();
    signal(pid.parse().unwrap(), Signal::TERM);
    output.read_to_string(&mut line).unwrap();
    assert_eq!(line.matches("0 forced, 0 dropped").count(), 2, "{line}");
}
