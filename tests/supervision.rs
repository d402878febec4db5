//! The supervisor and the command `handover`, on every system that has them: this binary is run again as the program
//! that is supervised.
//!
//! A supervisor has to be on a process's main thread, which the usual harness keeps for itself; this one does not.

#[cfg(any(target_os = "linux", windows))]
fn main() {
    trials::serve_if_child();
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, trials::all()).exit();
}

#[cfg(not(any(target_os = "linux", windows)))]
fn main() {}

#[cfg(any(target_os = "linux", windows))]
mod trials {
    use std::env;
    use std::fs;
    use std::io::{self, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::{self, Child, Command, Output, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
    use std::thread;
    use std::time::{Duration, Instant};

    use handover::http::{self, Body, Reply, Request, Response};
    use handover::{Restart, Server, Supervisor};
    use libtest_mimic::Trial;
    use serde_json::Value;
    use tempfile::TempDir;

    /// The longest wait for an event.
    const LIMIT: Duration = Duration::from_secs(60);

    /// The directory of the test, if this process is the program.
    const DIR: &str = "HANDOVER_SUPERVISION_DIR";

    /// The control socket, if this process is to be its own supervisor.
    const CONTROL: &str = "HANDOVER_SUPERVISION_CONTROL";

    /// The file of standard error, if the supervisor is to have one.
    const OUTPUT: &str = "HANDOVER_SUPERVISION_OUTPUT";

    macro_rules! trials {
        ($($test:ident,)*) => {
            vec![$(Trial::test(stringify!($test), || { $test(); Ok(()) })),*]
        };
    }

    pub(super) fn all() -> Vec<Trial> {
        trials![
            another_process_follows_a_crash,
            the_end_of_the_supervisor_is_that_of_its_processes,
            restarts_under_load_lose_nothing,
            a_bad_successor_leaves_the_old_one,
            a_stop_finishes_what_is_in_progress,
            a_process_that_hangs_is_ended,
            the_number_of_processes_changes,
            the_command_supervises_a_program,
            the_status_has_the_names_of_the_event_objects,
            a_control_name_is_for_one_supervisor,
            what_a_system_lacks_is_refused_by_name,
        ]
    }

    // ---- the program ----

    pub(super) fn serve_if_child() {
        let Some(dir) = env::var_os(DIR).map(PathBuf::from) else {
            return;
        };
        let restart = match env::var_os(CONTROL) {
            Some(control) => supervisor(control.into()).supervise(),
            None => Restart::inherit(),
        };
        let restart = restart.unwrap_or_else(|error| {
            eprintln!("{error}");
            process::exit(1);
        });
        if fs::exists(dir.join("bad")).unwrap() {
            process::exit(3);
        }
        let service = http::service(move |request: &mut Request<Body<'_>>| respond(request, &dir));
        let server = Server::builder()
            .workers(2)
            .listen("127.0.0.1:0")
            .drain_timeout(Duration::from_secs(20))
            .restart(restart)
            .build(service)
            .unwrap();
        server.run().unwrap();
        process::exit(0);
    }

    fn supervisor(control: PathBuf) -> Supervisor {
        let supervisor = Supervisor::new()
            .control_socket(control)
            .watchdog(Duration::from_secs(2))
            .stop_timeout(Duration::from_secs(30));
        match env::var(OUTPUT) {
            Ok(path) => supervisor.stderr_file(path),
            Err(_) => supervisor,
        }
    }

    fn respond(request: &mut Request<Body<'_>>, dir: &Path) -> Response<Reply> {
        match request.uri().path() {
            "/exit" => process::exit(9),
            "/hang" => loop {
                thread::park();
            },
            "/hold" => {
                fs::write(dir.join("taken"), "").unwrap();
                eventually("the request may end", || {
                    fs::exists(dir.join("go")).unwrap()
                });
            }
            _ => {}
        }
        Response::new(process::id().to_string().into())
    }

    // ---- the supervisor ----

    /// A supervisor of this binary. A drop kills it, and with it what it has started.
    struct Supervised {
        child: Child,
        control: PathBuf,
        dir: TempDir,
    }

    impl Supervised {
        /// This binary is its own supervisor.
        fn start() -> Self {
            let dir = TempDir::new().unwrap();
            let control = control_name(&dir);
            let mut command = Command::new(env::current_exe().unwrap());
            command.env(CONTROL, &control);
            Self::start_by(command, control, dir)
        }

        fn start_by(mut command: Command, control: PathBuf, dir: TempDir) -> Self {
            let log = fs::File::create(dir.path().join("log")).unwrap();
            let command = command.env(DIR, dir.path()).env("RUST_BACKTRACE", "0");
            let command = command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = command.stderr(log).spawn().unwrap();
            let mut supervised = Self {
                child,
                control,
                dir,
            };
            supervised.until_state("serving");
            supervised
        }

        fn log(&self) -> String {
            fs::read_to_string(self.dir.path().join("log")).unwrap()
        }

        /// Asks by the command `handover`.
        fn ask(&self, args: &[&str]) -> Output {
            let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
            let command = command.args(args).arg("--socket").arg(&self.control);
            let command = command.args(["--timeout", "60"]).stdin(Stdio::null());
            command.output().unwrap()
        }

        #[track_caller]
        fn succeed(&self, args: &[&str]) -> String {
            let output = self.ask(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}{error}\n{}", self.log());
            text
        }

        fn status(&self) -> Option<Value> {
            let output = self.ask(&["status", "--json"]);
            serde_json::from_slice(&output.stdout).ok()
        }

        fn until_state(&mut self, state: &str) -> Value {
            let end = Instant::now() + LIMIT;
            loop {
                let status = self.status().unwrap_or_default();
                if status["state"] == state {
                    return status;
                }
                let ended = self.child.try_wait().unwrap();
                let is_late = Instant::now() > end;
                assert!(
                    ended.is_none() && !is_late,
                    "{ended:?} {status}\n{}",
                    self.log()
                );
                pause();
            }
        }

        fn addr(&self) -> SocketAddr {
            let status = self.status().unwrap();
            let address = status["listeners"][0]["address"].as_str().unwrap();
            address.parse().unwrap()
        }

        fn wait(&mut self) -> process::ExitStatus {
            let end = Instant::now() + LIMIT;
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                assert!(
                    Instant::now() < end,
                    "the supervisor runs on\n{}",
                    self.log()
                );
                pause();
            }
        }
    }

    impl Drop for Supervised {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// On Windows the name of a pipe, and elsewhere a path.
    fn control_name(dir: &TempDir) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        match cfg!(windows) {
            true => format!("handover-test-{}-{number}", process::id()).into(),
            false => dir.path().join("control"),
        }
    }

    fn pause() {
        thread::park_timeout(Duration::from_millis(5));
    }

    #[track_caller]
    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds() {
            assert!(Instant::now() < end, "not in time: {what}");
            pause();
        }
    }

    /// The body of an answer, on a connection of its own.
    fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
        let mut client = TcpStream::connect_timeout(&addr, LIMIT)?;
        client.set_read_timeout(Some(LIMIT))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes())?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
            _ => Err(io::Error::other(format!("the answer {answer:?}"))),
        }
    }

    /// Waits until a process other than this one answers. Connections wait meanwhile.
    fn until_other(addr: SocketAddr, than: &str) -> String {
        let mut other = String::new();
        eventually("another process serves", || {
            other = get(addr, "/").unwrap_or_default();
            !other.is_empty() && other != than
        });
        other
    }

    // ---- the tests ----

    fn another_process_follows_a_crash() {
        let supervised = Supervised::start();
        let addr = supervised.addr();
        let old = get(addr, "/").unwrap();
        assert!(get(addr, "/exit").is_err());
        let crashed_at = Instant::now();
        until_other(addr, &old);
        println!("from the crash to an answer: {:?}", crashed_at.elapsed());
        let log = supervised.log();
        assert!(
            log.contains("exit code: 9") || log.contains("exit status: 9"),
            "{log}"
        );
    }

    fn the_end_of_the_supervisor_is_that_of_its_processes() {
        let mut supervised = Supervised::start();
        let addr = supervised.addr();
        let old = get(addr, "/").unwrap();
        // The process that serves then is no child of the supervisor.
        supervised.succeed(&["restart", "--wait"]);
        until_other(addr, &old);
        supervised.child.kill().unwrap();
        supervised.child.wait().unwrap();
        let killed_at = Instant::now();
        eventually("nobody holds the port", || {
            TcpStream::connect_timeout(&addr, LIMIT).is_err()
        });
        println!("from the kill to a free port: {:?}", killed_at.elapsed());
    }

    fn restarts_under_load_lose_nothing() {
        let restarts = env::var("HANDOVER_TEST_RESTARTS").map_or(5, |count| count.parse().unwrap());
        let supervised = Supervised::start();
        let addr = supervised.addr();
        let (ends, answers) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !ends.load(SeqCst) {
                        let answer = get(addr, "/");
                        answer.unwrap_or_else(|error| panic!("{error}\n{}", supervised.log()));
                        answers.fetch_add(1, SeqCst);
                    }
                });
            }
            let ends = EndOnDrop(&ends);
            let mut pid = get(addr, "/").unwrap();
            for _ in 0..restarts {
                supervised.succeed(&["restart", "--wait"]);
                pid = until_other(addr, &pid);
            }
            drop(ends);
        });
        // Each process has started its successor, and the supervisor none.
        let log = supervised.log();
        assert!(!log.contains("starting another process"), "{log}");
        println!("{restarts} restarts, {} answers", answers.into_inner());
    }

    /// Ends the clients, also after a panic.
    struct EndOnDrop<'a>(&'a AtomicBool);

    impl Drop for EndOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    fn a_bad_successor_leaves_the_old_one() {
        let supervised = Supervised::start();
        let addr = supervised.addr();
        let old = get(addr, "/").unwrap();
        fs::write(supervised.dir.path().join("bad"), "").unwrap();
        let output = supervised.ask(&["restart", "--wait"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("the restart failed"), "{error}");
        assert_eq!(get(addr, "/").unwrap(), old);
    }

    fn a_stop_finishes_what_is_in_progress() {
        let mut supervised = Supervised::start();
        let addr = supervised.addr();
        let held = thread::spawn(move || get(addr, "/hold"));
        let taken = supervised.dir.path().join("taken");
        eventually("the request is taken", || fs::exists(&taken).unwrap());
        supervised.succeed(&["stop"]);
        supervised.until_state("stopping");
        fs::write(supervised.dir.path().join("go"), "").unwrap();
        held.join().unwrap().unwrap();
        let status = supervised.wait();
        assert_eq!(status.code(), Some(0), "{}", supervised.log());
        assert!(TcpStream::connect_timeout(&addr, LIMIT).is_err());
    }

    fn a_process_that_hangs_is_ended() {
        let supervised = Supervised::start();
        let addr = supervised.addr();
        let old = get(addr, "/").unwrap();
        let hanging: Vec<_> = (0..2)
            .map(|_| thread::spawn(move || get(addr, "/hang")))
            .collect();
        for client in hanging {
            assert!(client.join().unwrap().is_err());
        }
        until_other(addr, &old);
        let log = supervised.log();
        assert!(log.contains("makes no progress"), "{log}");
    }

    fn the_number_of_processes_changes() {
        let mut supervised = Supervised::start();
        supervised.succeed(&["scale", "2", "--wait"]);
        let status = supervised.until_state("serving");
        assert_eq!(status["processes"].as_array().unwrap().len(), 2);
        supervised.succeed(&["scale", "1", "--wait"]);
        let mut left = 0;
        eventually("one process is left", || {
            let status = supervised.status().unwrap();
            left = status["draining"].as_array().unwrap().len();
            status["processes"].as_array().unwrap().len() == 1 && left == 0
        });
        supervised.succeed(&["stop", "--wait"]);
        assert_eq!(supervised.wait().code(), Some(0));
    }

    fn the_command_supervises_a_program() {
        let dir = TempDir::new().unwrap();
        let control = control_name(&dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
        command
            .args(["run", "--notify", "--listen", "127.0.0.1:0", "--control"])
            .arg(&control)
            .arg("--")
            .arg(env::current_exe().unwrap());
        let mut supervised = Supervised::start_by(command, control, dir);
        let addr = supervised.addr();
        let old = get(addr, "/").unwrap();
        let text = supervised.succeed(&["restart", "--wait"]);
        assert!(text.contains("restarted in"), "{text}");
        let old = until_other(addr, &old);
        assert!(get(addr, "/exit").is_err());
        until_other(addr, &old);
        let text = supervised.succeed(&["status"]);
        assert!(text.contains("serving"), "{text}");
        let text = supervised.succeed(&["stop", "--wait"]);
        assert!(text.contains("stopped"), "{text}");
        assert_eq!(supervised.wait().code(), Some(0), "{}", supervised.log());
        let output = supervised.ask(&["status"]);
        assert_eq!(output.status.code(), Some(1));
    }

    fn the_status_has_the_names_of_the_event_objects() {
        let dir = TempDir::new().unwrap();
        let control = control_name(&dir);
        let run = |prefix: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
            command
                .args(["run", "--notify", "--event-prefix", prefix, "--control"])
                .arg(&control)
                .arg("--")
                .arg(env::current_exe().unwrap());
            command
        };
        let refused = run(r"no\prefix").output().unwrap();
        assert!(!refused.status.success());
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(
            text.contains("event_prefix must be a name without a backslash"),
            "{text}"
        );
        let mut supervised = Supervised::start_by(run("supervision test"), control.clone(), dir);
        let status = supervised.until_state("serving");
        let names = format!(r"Local\supervision test.{}", supervised.child.id());
        let expected = cfg!(windows).then_some(&*names);
        assert_eq!(status["event_objects"].as_str(), expected);
        let text = supervised.succeed(&["status"]);
        assert_eq!(text.contains(&names), cfg!(windows), "{text}");
        supervised.succeed(&["stop", "--wait"]);
        assert_eq!(supervised.wait().code(), Some(0));
    }

    /// What a supervisor says that does not start.
    fn failed_start(control: &Path, output: Option<PathBuf>) -> String {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new(env::current_exe().unwrap());
        let command = command.env(DIR, dir.path()).env(CONTROL, control);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let command = command.stderr(fs::File::create(&log).unwrap());
        let command = command.envs(output.map(|path| (OUTPUT, path)));
        let mut supervised = Supervised {
            child: command.spawn().unwrap(),
            control: control.to_owned(),
            dir,
        };
        let status = supervised.wait();
        let text = fs::read_to_string(log).unwrap();
        assert_eq!(status.code(), Some(1), "{text}");
        text
    }

    fn a_control_name_is_for_one_supervisor() {
        let mut supervised = Supervised::start();
        let error = failed_start(&supervised.control, None);
        let name = supervised.control.to_str().unwrap();
        assert!(error.contains(name), "{error}");
        supervised.until_state("serving");
    }

    fn what_a_system_lacks_is_refused_by_name() {
        if cfg!(unix) {
            return;
        }
        let dir = TempDir::new().unwrap();
        let output = Some(dir.path().join("output"));
        let error = failed_start(&control_name(&dir), output);
        assert!(
            error.contains("the setting stderr_file is not supported"),
            "{error}"
        );
    }
}
