//! Servers that are replaced, for the tests of restarts: a test binary is run again as a server, which is replaced by
//! itself, or by something that fails in one of the ways in which a new version can.
//!
//! The server speaks HTTP, and its successors do what the file `mode` in its directory says. Each test binary has a test
//! `child` that calls [`serve_if_child`].

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use handover::http::{self, Body, Reply, Request, Response};
use handover::{Bind, Connection, Handle, Next, Restart, Server, Servers, Supervisor};
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Signal, kill_process};
use tempfile::TempDir;

use super::support::increments::Increments;
pub(crate) use super::support::process::{all_pids, eventually, is_alive, signal, stat};
#[allow(unused_imports)]
pub(crate) use super::support::replaced::{
    HARNESS, end_as, exchange, option, random_below, try_get,
};
use super::support::{self, replaced};

pub(crate) type Who = replaced::Who<i32>;

pub(crate) const DIR: &str = "HANDOVER_TEST_DIR";

/// The server that the tests start, if this process is to be one.
pub(crate) fn serve_if_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    if let Some(limit) = option(&dir, "soft-limit") {
        // For the first process only: the others start with what they are given.
        fs::remove_file(dir.join("soft-limit")).unwrap();
        let limits = rustix::process::Rlimit {
            current: Some(limit.parse().unwrap()),
            ..rustix::process::getrlimit(Resource::Nofile)
        };
        rustix::process::setrlimit(Resource::Nofile, limits).unwrap();
    }
    let descriptors_at_start = descriptor_limit();
    let mode = fs::read_to_string(dir.join("mode")).unwrap_or_default();
    misbehave(&dir, &mode, "early ");
    let wrapper = dir.join("wrapper");
    let is_wrapped = std::env::var_os("WRAPPED").is_some();
    let mut restart = match option(&dir, "supervised") {
        // Another program is supervised, which sets its environment and executes this one.
        Some(settings) if wrapper.exists() && !is_wrapped => {
            let supervisor = supervisor(&dir, &settings).listen("127.0.0.1:0");
            std::process::exit(
                supervisor
                    .run(["/bin/sh".as_ref(), wrapper.as_os_str()])
                    .unwrap(),
            );
        }
        Some(_) if is_wrapped => inherit(),
        Some(settings) => supervisor(&dir, &settings)
            .supervise()
            .unwrap_or_else(|error| {
                eprintln!("{error}");
                std::process::exit(1);
            }),
        None => inherit(),
    };
    if mode == "sidecar with standard error" {
        drop(start_sidecar(
            &dir,
            restart.standard_error().unwrap().into(),
        ));
    }
    misbehave(&dir, &mode, "");
    let generation = restart.generation();
    let state = match mode.as_str() {
        // Of a predecessor without an exact state.
        "import what was passed" => None,
        _ => restart.inherited_state(),
    };
    let state = String::from_utf8(state.unwrap_or_default()).unwrap();
    if option(&dir, "environment").is_some() {
        restart = restart.environment_file(dir.join("environment"));
    }
    if let Some(timeout) = option(&dir, "ready-timeout") {
        restart = restart.ready_timeout(Duration::from_millis(timeout.parse().unwrap()));
    }
    if let Some(grace) = option(&dir, "grace") {
        restart = restart.idle_grace(Duration::from_millis(grace.parse().unwrap()));
    }
    if option(&dir, "stay").is_some() {
        restart = restart.move_connections(false);
    }
    if let Some(generations) = option(&dir, "max-draining") {
        restart = restart.max_draining(generations.parse().unwrap());
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
    let counts = CountedLines::new(&mode);
    let exact_mode = mode.clone();
    restart = restart
        .pass("datagrams", datagrams)
        .ready_when(move || -> Result<(), String> {
            misbehave(&own, &mode, "late ");
            if let Some(left) = mode.strip_prefix("descriptors ") {
                limit_descriptors(left.parse().unwrap());
            }
            match mode.as_str() {
                "late error" => Err("the cache is cold".to_owned()),
                _ => Ok(()),
            }
        });
    let increments = option(&dir, "exact").map(|setting| Increments::new(&setting));
    if let Some(increments) = increments
        .as_ref()
        .filter(|_| exact_mode != "no exact state")
    {
        restart = increments.go_along(restart, &exact_mode);
    }
    let left = format!("{state}{generation},");
    if option(&dir, "stateless").is_none() {
        restart = restart.pass_state(move || left.clone().into_bytes());
    }
    let counter = increments.clone();
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        match (&counter, request.uri().path()) {
            // Once the whole body has come.
            (Some(counter), "/incr") => {
                let is_whole = request.body_mut().read_all(4 << 20).is_ok();
                let count = is_whole.then(|| counter.increment().to_string());
                return Response::new(count.unwrap_or_default().into());
            }
            (Some(counter), "/count") => return Response::new(counter.count().to_string().into()),
            _ => {}
        }
        if request.uri().path() == "/descriptors" {
            let limits = format!("{descriptors_at_start} {}", descriptor_limit());
            return Response::new(limits.into());
        }
        if request.uri().path() == "/wrapped" {
            return Response::new(std::env::var("WRAPPED").unwrap_or_default().into());
        }
        let who = format!("{} {generation} {udp} {state}", std::process::id());
        respond(request, who)
    });
    let mut builder = Server::builder()
        .workers(4)
        .drain_timeout(Duration::from_millis(
            option(&dir, "drain").map_or(20_000, |drain| drain.parse().unwrap()),
        ))
        .restart(restart.clone());
    let listen = option(&dir, "listen").unwrap_or_default();
    for addr in listen.split_whitespace() {
        builder = match addr.split_once('=') {
            Some((name, addr)) => builder.listen(Bind::new(addr).name(name)),
            None => builder.listen(addr),
        };
    }
    let server = builder.build(service).unwrap();
    // A server of another protocol beside it, if the test wants one.
    let lines = option(&dir, "lines").map(|addr| {
        let builder = Server::builder().workers(4).listen(&*addr);
        let builder = builder.drain_timeout(Duration::from_secs(20));
        let worker = |index| Ok::<_, io::Error>(index);
        let service = handover::service_with(worker, |_| Ok(()), |conn, (), _| serve_lines(conn));
        builder.restart(restart.clone()).build(service).unwrap()
    });
    // The same with a session for each connection, which is packed or not.
    let counted = option(&dir, "counted").map(|setting| {
        let (addr, packs) = match setting.split_once(' ') {
            Some((addr, _)) => (addr.to_owned(), false),
            None => (setting, true),
        };
        let builder = Server::builder().workers(4).listen(&*addr);
        let builder = builder.drain_timeout(Duration::from_secs(20));
        let service = Counting { counts, packs };
        builder.restart(restart.clone()).build(service).unwrap()
    });
    let exact = increments.iter().flat_map(|own| own.servers(&restart));
    let exact: Vec<Server<_>> = exact.collect();
    let mut addrs = server.local_addrs();
    addrs.extend(lines.iter().flat_map(Server::local_addrs));
    addrs.extend(counted.iter().flat_map(Server::local_addrs));
    addrs.extend(exact.iter().flat_map(Server::local_addrs));
    // The test may listen, or not.
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let _ = writeln!(std::io::stdout(), "\nlistening on {}", addrs.join(" "));
    let report = if option(&dir, "by-handle").is_some() {
        let started = match lines {
            // The handle of one keeps both alive.
            Some(lines) => Servers::new().with(server).with(lines).start(),
            None => server.start().map(|handle| vec![handle]),
        };
        let started = started.unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(1);
        });
        let handle = started[0].clone();
        HANDLE.get_or_init(|| handle.clone());
        if option(&dir, "stoppable").is_some() {
            let (own, handle) = (dir.clone(), handle.clone());
            let stop = dir.join(format!("stop {}", std::process::id()));
            thread::spawn(move || {
                while own.exists() && !stop.exists() {
                    thread::park_timeout(Duration::from_millis(2));
                }
                handle.stop(support::LIMIT);
            });
        }
        let report = handle.join();
        join_reporters();
        report
    } else if !exact.is_empty() {
        HANDLE.get_or_init(|| server.handle());
        let servers = Servers::new().with(server);
        let servers = exact.into_iter().fold(servers, Servers::with);
        let reports = servers.run().unwrap();
        join_reporters();
        reports[0].clone()
    } else if let Some(counted) = counted {
        let reports = Servers::new().with(server).with(counted).run().unwrap();
        let _ = writeln!(
            std::io::stdout(),
            "\ncounted, generation {generation}: {}",
            reports[1]
        );
        reports[0].clone()
    } else if let Some(lines) = lines {
        let reports = Servers::new().with(server).with(lines).run();
        let reports = reports.unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(1);
        });
        let [http, lines] = &reports[..] else {
            panic!("{reports:?}");
        };
        let _ = writeln!(
            std::io::stdout(),
            "\nlines, generation {generation}: {lines}"
        );
        http.clone()
    } else {
        server.run().unwrap()
    };
    let _ = writeln!(std::io::stdout(), "\ngeneration {generation}: {report}");
    let code = option(&dir, "exit-code").map_or(0, |code| code.parse().unwrap());
    std::process::exit(code);
}

/// A line protocol: `pid` is answered with the process id, `slow N` after so many milliseconds, and other lines with
/// themselves.
fn serve_lines(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(4096)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    if let Some(millis) = line.strip_prefix("slow ") {
        thread::sleep(Duration::from_millis(millis.parse().unwrap_or_default()));
    }
    match &*line {
        "pid" => writeln!(conn, "{}", std::process::id())?,
        line => writeln!(conn, "{line}")?,
    }
    Ok(Next::Park)
}

/// Counts the lines of each connection, and answers each with its number, the process id, and itself.
struct Counting {
    counts: CountedLines,
    packs: bool,
}

/// What becomes of sessions that come from the predecessor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CountedLines {
    GoOn,
    Refuse,
    KillThisProcess,
    KillPredecessor,
}

impl CountedLines {
    fn new(mode: &str) -> Self {
        match mode {
            "refuse sessions" => Self::Refuse,
            "die of a session" => Self::KillThisProcess,
            "kill the predecessor" => Self::KillPredecessor,
            _ => Self::GoOn,
        }
    }
}

impl handover::Service for Counting {
    type Session = u64;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<u64> {
        Ok(0)
    }

    fn serve(&self, conn: &mut Connection, count: &mut u64, (): &mut ()) -> io::Result<Next> {
        let Some(line) = conn.take_line(4096)? else {
            return Ok(Next::incomplete(conn));
        };
        *count += 1;
        writeln!(conn, "{count} {} {line}", std::process::id())?;
        Ok(Next::Park)
    }

    fn packs_sessions(&self) -> bool {
        self.packs
    }

    fn pack(&self, _: &Connection, count: &u64) -> Option<Vec<u8>> {
        Some(format!("{count} {}", std::process::id()).into_bytes())
    }

    fn unpack(&self, _: &mut Connection, packed: Vec<u8>) -> io::Result<u64> {
        let text = String::from_utf8(packed).unwrap();
        let (count, pid) = text.split_once(' ').unwrap();
        let kill = |pid: u32| signal(pid as i32, Signal::KILL);
        match self.counts {
            CountedLines::GoOn => {}
            CountedLines::Refuse => return Err(io::Error::other("of another version")),
            CountedLines::KillThisProcess => kill(std::process::id()),
            CountedLines::KillPredecessor => {
                let pid = pid.parse().unwrap();
                kill(pid);
                eventually("the end of the predecessor", || !is_alive(pid as i32));
            }
        }
        Ok(count.parse().unwrap())
    }
}

/// Leaves this process so many descriptors beside those that it has.
fn limit_descriptors(left: u64) {
    let used = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = Some(used + left);
    let limits = rustix::process::Rlimit {
        current: limit,
        maximum: limit,
    };
    rustix::process::setrlimit(Resource::Nofile, limits).unwrap();
}

/// What the process was started with, or its end, as from `main`.
fn inherit() -> Restart {
    Restart::inherit().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1);
    })
}

/// The supervisor with the settings that stand in a file: words with a number behind, of milliseconds where it is a time.
fn supervisor(dir: &Path, settings: &str) -> Supervisor {
    let mut supervisor = Supervisor::new().control_socket(dir.join("control"));
    if option(dir, "supervisor-pid-file").is_some() {
        supervisor = supervisor.pid_file(dir.join("pid"));
    }
    if let Some(addr) = option(dir, "supervisor-listen") {
        supervisor = supervisor.listen(addr);
    }
    if let Some(user) = option(dir, "user") {
        supervisor = supervisor.user(user);
    }
    if let Some(group) = option(dir, "group") {
        supervisor = supervisor.group(group);
    }
    if let Some(addr) = option(dir, "allow-bind") {
        supervisor = supervisor.allow_bind(addr);
    }
    for setting in settings.split_whitespace() {
        let (name, number) = setting.split_once('=').unwrap();
        let number: u64 = match number {
            "max" => u64::MAX,
            number => number.parse().unwrap(),
        };
        let time = match number {
            u64::MAX => Duration::MAX,
            millis => Duration::from_millis(millis),
        };
        supervisor = match name {
            "processes" => supervisor.processes(number as usize),
            "watchdog" => supervisor.watchdog(time),
            "abort" => supervisor.abort_timeout(time),
            "ready" => supervisor.ready_timeout(time),
            "stop" => supervisor.stop_timeout(time),
            "draining" => supervisor.max_draining(number as usize),
            "longest" => supervisor.backoff(Duration::from_millis(100), time),
            "backoff" => supervisor.backoff(time, time),
            "recycle-after" => supervisor.recycle_after(time),
            "recycle-requests" => supervisor.recycle_after_requests(number),
            "recycle-above" => supervisor.recycle_above(number),
            "ready-after" => supervisor.ready_after(time),
            "give-up" => supervisor.give_up_after(number as u32),
            "no-restart" => supervisor.no_restart(number as i32),
            "environment" => supervisor.environment_file(dir.join("environment")),
            "stderr" => supervisor.stderr_file(dir.join("errors")),
            "control-mode" => supervisor.control_mode(number as u32),
            "success" => supervisor.restart_after_success(number != 0),
            other => panic!("there is no setting {other:?}"),
        };
    }
    supervisor
}

/// The soft limit of descriptors that this process has.
fn descriptor_limit() -> u64 {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    limits.current.unwrap_or(u64::MAX)
}

pub(crate) static HANDLE: OnceLock<Handle> = OnceLock::new();

/// Who waits for a restart, and says what it came to.
static REPORTERS: Mutex<Vec<thread::JoinHandle<()>>> = Mutex::new(Vec::new());

fn join_reporters() {
    let reporters = std::mem::take(&mut *REPORTERS.lock());
    for reporter in reporters {
        reporter.join().unwrap();
    }
}

/// What a new version may do instead of serving.
// The sidecar outlives this call.
#[allow(clippy::zombie_processes)]
pub(crate) fn misbehave(dir: &Path, mode: &str, prefix: &str) {
    let how = mode.strip_prefix(prefix).unwrap_or_default();
    end_as(how);
    match how {
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
        // A subprocess that the service starts before its server is there.
        "sidecar" | "sidecar pause" => {
            drop(start_sidecar(dir, Stdio::inherit()));
            if mode.ends_with("pause") {
                misbehave(dir, "pause", "");
            }
        }
        // What is not inherited by the new program is closed; the process lives on.
        "sleep" => panic!("{}", Command::new("sleep").arg("1000").exec()),
        "half takeover" => take_over_by_half(),
        _ => {}
    }
}

/// Starts a subprocess, which writes its id to the file `sidecar`, and waits for the file `say` before it writes to
/// its standard error.
fn start_sidecar(dir: &Path, stderr: Stdio) -> Child {
    let script = "grep SigBlk /proc/self/status > new; echo $$ >> new; mv new sidecar; \
        while ! test -e say; do sleep 0.01; done; echo from the sidecar >&2; echo $? > said";
    Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// Accepts, as far as the predecessor knows, gives up, and stays. The handshake socket becomes standard input first.
fn take_over_by_half() {
    if std::env::var_os("HALF").is_none() {
        let record = std::env::var("HANDOVER").unwrap();
        let (_, number) = record.split_once(r#""handshake":"#).unwrap();
        let number = number.split(',').next().unwrap();
        let mut shell = Command::new("sh");
        let error = shell
            .args(["-c", &format!("exec \"$0\" \"$@\" <&{number}")])
            .arg(std::env::current_exe().unwrap())
            .args(HARNESS)
            .env("HALF", "")
            .exec();
        panic!("{error}");
    }
    let handshake = io::stdin();
    let say = |message: &str| {
        let packet = format!(r#"{{"v":1,"type":{message}}}"#);
        // The messages of other systems follow their length.
        let length = match cfg!(handover_one_waiter) {
            true => &(packet.len() as u32).to_le_bytes()[..],
            false => &[],
        };
        let packet = [length, packet.as_bytes()].concat();
        rustix::net::send(&handshake, &packet, rustix::net::SendFlags::empty()).unwrap();
    };
    let hear = || {
        let mut packet = [0; 4096];
        while let Err(error) =
            rustix::net::recv(&handshake, &mut packet, rustix::net::RecvFlags::empty())
        {
            assert_eq!(error, rustix::io::Errno::AGAIN);
            thread::park_timeout(Duration::from_millis(2));
        }
    };
    say(r#""hello""#);
    say(r#""ready""#);
    hear();
    say(r#""accepting","since":0,"taken":[]"#);
    hear();
    say(r#""abort","reason":"half a takeover""#);
    loop {
        thread::park();
    }
}

pub(crate) fn respond(request: &mut Request<Body<'_>>, who: String) -> Response<Reply> {
    Response::new(match request.uri().path() {
        "/" => "Hello, World!".into(),
        "/echo" => request
            .body_mut()
            .read_all(4 << 20)
            .unwrap_or_default()
            .into(),
        "/who" => who.into(),
        // Where this process runs, and what it was told.
        "/place" => {
            let dir = std::env::current_dir().unwrap_or_default();
            let told = std::env::var("TOLD").unwrap_or_default();
            format!("{} {told}", dir.display()).into()
        }
        "/crash" => std::process::abort(),
        "/wedge" => loop {
            thread::park();
        },
        "/exit" => std::process::exit(request.uri().query().unwrap_or_default().parse().unwrap()),
        // A process that loses its parent at once, and ends a little later.
        "/orphan" => {
            let mut shell = Command::new("sh");
            let shell = shell
                .args(["-c", "sleep 0.2 >/dev/null & echo $!"])
                .output();
            String::from_utf8(shell.unwrap().stdout).unwrap().into()
        }
        "/slow" => {
            let millis = request.uri().query().and_then(|millis| millis.parse().ok());
            thread::sleep(Duration::from_millis(millis.unwrap_or(1000)));
            who.into()
        }
        // Until the test says so.
        "/hold" => {
            let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
            let go = dir.join(request.uri().query().unwrap_or_default());
            let taken = go.with_extension("new");
            fs::write(&taken, std::process::id().to_string()).unwrap();
            fs::rename(taken, format!("{}-taken", go.display())).unwrap();
            while !go.exists() {
                thread::park_timeout(Duration::from_millis(2));
            }
            who.into()
        }
        "/stop" => {
            HANDLE.wait_for().stop(Duration::from_secs(20));
            "".into()
        }
        // Nobody waits for it, as it ends when all have been served.
        "/restart-later" => {
            let report = || match HANDLE.wait_for().restart() {
                Ok(report) => println!("\nreport: {report:?}"),
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    let (kind, status) = (error.kind(), error.status());
                    let stderr = error.stderr();
                    println!("\nno report: {error}|{kind:?}|{status:?}|{stderr:?}|{source:?}");
                }
            };
            let reporter = thread::Builder::new().name("reporter".to_owned());
            REPORTERS.lock().push(reporter.spawn(report).unwrap());
            "".into()
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
pub(crate) trait WaitFor {
    fn wait_for(&self) -> &Handle;
}

impl WaitFor for OnceLock<Handle> {
    fn wait_for(&self) -> &Handle {
        eventually("the handle", || self.get().is_some());
        self.get().unwrap()
    }
}

/// The generations of one server: a group of processes.
pub(crate) struct Generations {
    pub(crate) dir: TempDir,
    /// Bounds every wait for what the processes say, and for their ends.
    group: support::ProcessGroup,
    pub(crate) first: Child,
    pub(crate) output: BufReader<std::process::ChildStdout>,
    pub(crate) addrs: Vec<String>,
    pub(crate) program: PathBuf,
}

impl Generations {
    pub(crate) fn start(options: &[(&str, &str)]) -> Self {
        Self::start_with(options, |_| {})
    }

    pub(crate) fn start_with(options: &[(&str, &str)], prepare: impl FnOnce(&mut Command)) -> Self {
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
            .args(HARNESS)
            .env(DIR, dir.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        prepare(&mut command);
        let mut first = command.spawn().unwrap();
        let output = BufReader::new(first.stdout.take().unwrap());
        let mut generations = Self {
            dir,
            group: support::ProcessGroup::killed_after(&first, time_limit()),
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
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let count = self.output.read_line(&mut line).unwrap();
            assert!(
                count > 0,
                "the processes ended without having said {text:?}"
            );
            if line.contains(text) {
                // The harness of a process that starts writes to the same line.
                let harness = "test child ... ";
                return line.strip_prefix(harness).unwrap_or(&line).to_owned();
            }
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addrs[0].parse().unwrap()
    }

    /// What successors are to do from now on.
    pub(crate) fn mode(&self, mode: &str) {
        self.option("mode", mode);
    }

    pub(crate) fn option(&self, name: &str, value: &str) {
        // In one step, so that nobody reads half of it.
        let new = self.dir.path().join("new");
        fs::write(&new, value).unwrap();
        fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> String {
        get(&mut support::connect(self.addr()), path)
    }

    pub(crate) fn who(&self) -> Who {
        Who::parse(&self.get("/who"))
    }

    /// Has the serving process replaced, and waits until it is.
    pub(crate) fn restart(&self) -> Who {
        let old = self.who();
        signal(old.pid, Signal::HUP);
        self.until_generation(old.generation + 1)
    }

    /// Waits until this generation serves, and no other one any more: a process that is stopped before it has taken over
    /// leaves the service to its predecessor.
    pub(crate) fn until_generation(&self, generation: u64) -> Who {
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

    /// The processes of this test's directory that have not ended, without the guardian, and the number of those that
    /// nobody has waited for.
    pub(crate) fn processes(&self) -> (Vec<i32>, usize) {
        let (all, zombies) = self.all_processes();
        let is_guardian = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "handover-guard")
        };
        (
            all.into_iter().filter(|pid| !is_guardian(pid)).collect(),
            zombies,
        )
    }

    fn all_processes(&self) -> (Vec<i32>, usize) {
        // Each process of a supervisor has a group of its own.
        let entry = format!("{DIR}={}", self.dir.path().display());
        let is_own = |pid: &i32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|byte| *byte == 0)
                .any(|own| own == entry.as_bytes())
        };
        let (live, mut zombies) = processes_of(self.first.id());
        let mut all: Vec<i32> = all_pids().filter(is_own).collect();
        all.retain(|pid| is_alive(*pid));
        all.extend(
            live.into_iter()
                .filter(|pid| !all.contains(pid))
                .collect::<Vec<_>>(),
        );
        let group = self.first.id();
        zombies += all_pids()
            .filter_map(stat)
            .filter(|stat| {
                matches!(stat.state, 'Z' | 'X')
                    && stat.group as u32 != group
                    && all.contains(&stat.parent)
            })
            .count();
        (all, zombies)
    }

    /// Stops the serving process, waits until all have ended, and returns the rest of their output. Where a restart is in
    /// progress, the successor may have taken over from a process that was told to stop, and is told as well.
    pub(crate) fn end(mut self) -> String {
        let told = Mutex::new(Vec::new());
        eventually("the end of all processes", || {
            let mut told = told.lock();
            if let Ok(text) = try_get(self.addr(), "/who") {
                let who = Who::parse(&text);
                // Another test's server may have got the port meanwhile.
                if !told.contains(&who.pid) && self.processes().0.contains(&who.pid) {
                    // It may have ended since it answered.
                    let _ = kill_process(Pid::from_raw(who.pid).unwrap(), Signal::TERM);
                    told.push(who.pid);
                }
            }
            self.processes().0.is_empty()
        });
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.wait_for_first();
        eventually("the end of all processes", || {
            self.all_processes().0.is_empty()
        });
        rest
    }
}

impl Drop for Generations {
    fn drop(&mut self) {
        // For tests that failed; otherwise there is nobody any more.
        self.group.kill_all();
        for pid in self.all_processes().0 {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        let _ = self.first.wait();
    }
}

pub(crate) fn processes_of(group: u32) -> (Vec<i32>, usize) {
    let (mut live, mut zombies) = (Vec::new(), 0);
    for pid in all_pids() {
        match stat(pid) {
            Some(stat) if stat.group as u32 != group => {}
            Some(stat) if matches!(stat.state, 'Z' | 'X') => zombies += 1,
            Some(_) => live.push(pid),
            None => {}
        }
    }
    (live, zombies)
}

/// Sends a GET that ends the connection, and returns the answer's body.
#[track_caller]
pub(crate) fn get(stream: &mut (impl Read + Write), path: &str) -> String {
    exchange(stream, path).unwrap()
}

/// Reads an answer that has a length.
pub(crate) fn one_answer(stream: &mut TcpStream) -> String {
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

/// What a process holds.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) descriptors: usize,
    pub(crate) listening: usize,
    pub(crate) environment: usize,
    pub(crate) threads: usize,
    pub(crate) rss_kib: usize,
}

pub(crate) fn resources(pid: i32) -> Resources {
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

/// What a process holds when the last clients and the predecessor have gone.
pub(crate) fn settled(pid: i32) -> Resources {
    let mut before = resources(pid);
    loop {
        thread::park_timeout(Duration::from_millis(100));
        let now = resources(pid);
        if now.descriptors == before.descriptors {
            return now;
        }
        before = now;
    }
}

/// How many listening TCP and Unix sockets a process holds.
pub(crate) fn listening(pid: i32) -> usize {
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

/// The restart itself has the process end that answers, so that nobody waits for the answer.
pub(crate) fn signal_by_handle(generations: &Generations) {
    let mut client = support::connect(generations.addr());
    write!(client, "GET /restart HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    thread::spawn(move || client.read_to_end(&mut Vec::new()));
}

pub(crate) fn put(path: &Path, bytes: &[u8], mode: u32) -> bool {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    true
}

/// The one child of a process that waits for it.
#[track_caller]
pub(crate) fn wait_for_child(parent: i32) -> i32 {
    child_of(parent).expect("it has ended without a child")
}

/// The same; `None` if the process ends meanwhile.
pub(crate) fn child_of(parent: i32) -> Option<i32> {
    let deadline = Instant::now() + support::LIMIT;
    while is_alive(parent) {
        // Between the two is one that only waits.
        let is_child = |pid: i32| {
            let waiter = stat(pid).and_then(|child| stat(child.parent));
            waiter.is_some_and(|waiter| waiter.parent == parent)
        };
        if let Some(child) = all_pids().find(|pid| is_child(*pid)) {
            return Some(child);
        }
        assert!(Instant::now() < deadline, "there is no child");
    }
    None
}

pub(crate) fn threads(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .collect()
}

impl Generations {
    #[track_caller]
    pub(crate) fn wait_for_first(&mut self) -> std::process::ExitStatus {
        let status = self.first.wait().unwrap();
        self.group.assert_in_time();
        status
    }
}

/// How long the processes of a test may live.
fn time_limit() -> Duration {
    let longer = ["HANDOVER_TEST_RESTARTS", "HANDOVER_TEST_CRASHES"];
    match longer.iter().any(|name| std::env::var_os(name).is_some()) {
        true => Duration::from_secs(3600),
        false => Duration::from_secs(300),
    }
}
