//! Services of Windows, with the real service control manager: each trial installs this program as a service by sc.exe,
//! which needs an administrator. A service has no output, so it writes what it logs to a file.

// Only Windows has such services.
#[cfg(windows)]
fn main() -> std::process::ExitCode {
    let args: Vec<_> = std::env::args().collect();
    if let [_, command, role, name, log] = &*args {
        if command == "--service" {
            return service::run(role, name, log);
        }
    }
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, trials::all()).exit_code()
}

#[cfg(not(windows))]
fn main() {}

/// The services.
#[cfg(windows)]
mod service {
    use std::error::Error;
    use std::fs::{File, OpenOptions};
    use std::io::{self, Write};
    use std::path::Path;
    use std::process::ExitCode;
    use std::thread;
    use std::time::{Duration, Instant};

    use handover::{Builder, Connection, Next, Restart, Server, WindowsService};

    const LONG: Duration = Duration::from_secs(60);

    pub(crate) fn run(role: &str, name: &str, log: &str) -> ExitCode {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)
            .unwrap();
        log::set_logger(Box::leak(Box::new(Logger(file)))).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        WindowsService::new(name).run(|| {
            // Wine answers `sc.exe start` with an error if the service has ended by then.
            let until = Instant::now() + LONG;
            while !Path::new(log).with_file_name("log.go").exists() && Instant::now() < until {
                thread::yield_now();
            }
            let code = serve_as(role).unwrap_or_else(|error| {
                log::error!("{error}");
                ExitCode::FAILURE
            });
            log::info!("the end");
            code
        })
    }

    struct Logger(File);

    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let line = format!("{}\n", record.args());
            (&self.0).write_all(line.as_bytes()).unwrap();
        }
        fn flush(&self) {}
    }

    fn serve_as(role: &str) -> Result<ExitCode, Box<dyn Error>> {
        match role {
            "serve" => run_server(builder())?,
            "restart" => run_server(builder().restart(Restart::inherit()?))?,
            "wrong" => return Ok(ExitCode::from(78)),
            // It handles no signals.
            "embedded" => {
                let handle = builder().build(serve)?.start()?;
                log::info!("listening on {}", handle.local_addrs()[0]);
                handle.join();
            }
            other => return Err(format!("there is no service {other}").into()),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn builder() -> Builder {
        let builder = Server::builder().listen("127.0.0.1:0").workers(2);
        builder.drain_timeout(LONG)
    }

    fn run_server(builder: Builder) -> Result<(), Box<dyn Error>> {
        let server = builder.build(serve)?;
        log::info!("listening on {}", server.local_addrs()[0]);
        let report = server.run()?;
        log::info!("{report}");
        Ok(())
    }

    /// Answers each line with "held", and awaits another line in the same call, which is sent back.
    fn serve(conn: &mut Connection) -> io::Result<Next> {
        if conn.take_line(64)?.is_none() {
            return Ok(if conn.at_eof() {
                Next::Close
            } else {
                Next::More
            });
        }
        conn.write_all(b"held\n")?;
        let mut line = String::new();
        conn.read_line_limited(64, &mut line)?;
        conn.write_all(line.as_bytes())?;
        Ok(Next::Park)
    }
}

#[cfg(windows)]
mod trials {
    use std::fs;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread;
    use std::time::{Duration, Instant};

    use libtest_mimic::Trial;
    use tempfile::TempDir;

    const LONG: Duration = Duration::from_secs(60);

    const STOPPED: u32 = 1;
    const STOP_PENDING: u32 = 3;
    const RUNNING: u32 = 4;
    /// ERROR_SERVICE_SPECIFIC_ERROR.
    const SPECIFIC: u32 = 1066;

    pub(crate) fn all() -> Vec<Trial> {
        let trials: [(&str, fn()); 5] = [
            (
                "a_stop_drains_and_tells_of_its_progress",
                a_stop_drains_and_tells_of_its_progress,
            ),
            (
                "a_service_can_be_started_again",
                a_service_can_be_started_again,
            ),
            (
                "the_exit_code_is_that_of_the_service",
                the_exit_code_is_that_of_the_service,
            ),
            (
                "a_restart_without_a_supervisor_is_refused",
                a_restart_without_a_supervisor_is_refused,
            ),
            (
                "a_stop_that_nothing_handles_ends_the_process",
                a_stop_that_nothing_handles_ends_the_process,
            ),
        ];
        let (can_install, skipped) = (
            Service::can_install(),
            "SKIPPED: only an administrator installs services",
        );
        if !can_install {
            eprintln!("{skipped}");
        }
        let trials = trials.into_iter().map(|(name, run)| {
            Trial::test(name, move || {
                run();
                Ok(())
            })
        });
        trials
            .map(|trial| trial.with_ignored_flag(!can_install))
            .collect()
    }

    fn a_stop_drains_and_tells_of_its_progress() {
        let service = Service::install("serve");
        service.start();
        service.until(RUNNING);
        let mut client = service.client();
        client.get_mut().write_all(b"hold\n").unwrap();
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        service.sc(&["stop"]);
        let first = service.until(STOP_PENDING);
        assert!(first.checkpoint >= 1 && first.wait_hint > 0, "{first:?}");
        // The drain goes on, and tells so.
        service.until_status(|status| status.checkpoint > first.checkpoint + 1);
        service.until_logged("service stop: draining, at most 60 s; the stop-now event stops now");
        client.get_mut().write_all(b"go on\n").unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "go on\n");
        let last = service.until(STOPPED);
        assert_eq!((last.exit_code, last.specific_code), (0, 0), "{last:?}");
        let log = service.until_logged("the end");
        assert!(log.contains("0 forced, 0 dropped"), "{log}");
    }

    fn a_service_can_be_started_again() {
        let service = Service::install("serve");
        for _ in 0..2 {
            service.start();
            service.until(RUNNING);
            service.sc(&["stop"]);
            service.until(STOPPED);
        }
        let log = service.log();
        assert_eq!(log.matches("the end").count(), 2, "{log}");
    }

    fn the_exit_code_is_that_of_the_service() {
        let service = Service::install("wrong");
        service.start();
        service.until_logged("the end");
        let last = service.until(STOPPED);
        assert_eq!(
            (last.exit_code, last.specific_code),
            (SPECIFIC, 78),
            "{last:?}"
        );
    }

    fn a_restart_without_a_supervisor_is_refused() {
        let service = Service::install("restart");
        service.start();
        let log = service.until_logged("the end");
        let sentence = "a service of Windows cannot be replaced by a successor";
        assert!(log.contains(sentence), "{log}");
        let last = service.until(STOPPED);
        assert_eq!(
            (last.exit_code, last.specific_code),
            (SPECIFIC, 1),
            "{last:?}"
        );
    }

    fn a_stop_that_nothing_handles_ends_the_process() {
        let service = Service::install("embedded");
        service.start();
        service.until(RUNNING);
        let mut client = service.client();
        service.sc(&["stop"]);
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        let last = service.until(STOPPED);
        assert_eq!((last.exit_code, last.specific_code), (0, 0), "{last:?}");
        let log = service.log();
        assert!(
            log.contains("nothing handles the stop of the service"),
            "{log}"
        );
    }

    /// What `sc.exe query` says.
    #[derive(Clone, Copy, Debug)]
    struct Status {
        state: u32,
        exit_code: u32,
        specific_code: u32,
        checkpoint: u32,
        wait_hint: u32,
    }

    /// A service that is installed. Its drop removes it.
    struct Service {
        name: String,
        dir: TempDir,
    }

    impl Service {
        fn can_install() -> bool {
            let name = format!("handover-test-{}", std::process::id());
            let can = sc(&["create", &name, "binPath=", "none.exe"]).is_ok();
            let _ = sc(&["delete", &name]);
            can
        }

        fn install(role: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            static INSTALLED: AtomicUsize = AtomicUsize::new(0);
            let number = INSTALLED.fetch_add(1, SeqCst);
            let name = format!("handover-test-{}-{number}", std::process::id());
            let program = std::env::current_exe().unwrap();
            let log = dir.path().join("log");
            let command = format!(
                "\"{}\" --service {role} {name} \"{}\"",
                program.display(),
                log.display()
            );
            sc(&["create", &name, "binPath=", &command, "start=", "demand"]).unwrap();
            Self { name, dir }
        }

        #[track_caller]
        fn sc(&self, command: &[&str]) -> String {
            let (command, rest) = command.split_first().unwrap();
            let args: Vec<_> = [*command, &self.name]
                .into_iter()
                .chain(rest.iter().copied())
                .collect();
            sc(&args).unwrap_or_else(|output| panic!("{args:?}: {output}"))
        }

        #[track_caller]
        fn start(&self) {
            let until = Instant::now() + LONG;
            // ERROR_SERVICE_DATABASE_LOCKED: another service starts.
            while let Err(error) = sc(&["start", &self.name]) {
                let is_locked = error.contains("exit code: 1055");
                assert!(is_locked && Instant::now() < until, "{error}");
            }
            fs::write(self.dir.path().join("log.go"), "").unwrap();
        }

        fn status(&self) -> Status {
            let text = self.sc(&["query"]);
            let field = |name: &str| {
                let line = text
                    .lines()
                    .find(|line| line.trim_start().starts_with(name));
                let value = line
                    .and_then(|line| line.split_once(':'))
                    .map(|(_, value)| value.trim());
                let value = value.unwrap_or_else(|| panic!("no {name}: {text}"));
                let value = value.split_whitespace().next().unwrap();
                let number = match value.strip_prefix("0x") {
                    Some(digits) => u32::from_str_radix(digits, 16),
                    None => value.parse(),
                };
                number.unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
            };
            Status {
                state: field("STATE"),
                exit_code: field("WIN32_EXIT_CODE"),
                specific_code: field("SERVICE_EXIT_CODE"),
                checkpoint: field("CHECKPOINT"),
                wait_hint: field("WAIT_HINT"),
            }
        }

        #[track_caller]
        fn until_status(&self, holds: impl Fn(&Status) -> bool) -> Status {
            let until = Instant::now() + LONG;
            loop {
                let status = self.status();
                if holds(&status) {
                    return status;
                }
                assert!(Instant::now() < until, "{status:?}; {}", self.log());
            }
        }

        #[track_caller]
        fn until(&self, state: u32) -> Status {
            self.until_status(|status| status.state == state)
        }

        fn log(&self) -> String {
            fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
        }

        #[track_caller]
        fn until_logged(&self, text: &str) -> String {
            let until = Instant::now() + LONG;
            loop {
                let log = self.log();
                if log.contains(text) {
                    return log;
                }
                assert!(Instant::now() < until, "not logged: {text}: {log}");
                thread::yield_now();
            }
        }

        fn client(&self) -> BufReader<TcpStream> {
            let log = self.until_logged("listening on ");
            let (_, addr) = log.rsplit_once("listening on ").unwrap();
            let client = TcpStream::connect(addr.lines().next().unwrap()).unwrap();
            client.set_read_timeout(Some(LONG)).unwrap();
            BufReader::new(client)
        }
    }

    impl Drop for Service {
        fn drop(&mut self) {
            // Most trials have stopped it.
            let _ = sc(&["stop", &self.name]);
            let _ = sc(&["delete", &self.name]);
        }
    }

    /// The output of sc.exe, as an error if it has failed.
    fn sc(args: &[&str]) -> Result<String, String> {
        let output = Command::new("sc.exe")
            .args(args)
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("{}: {text}", output.status)),
        }
    }
}
