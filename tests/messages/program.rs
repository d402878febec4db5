//! A program in a process of its own, and what it writes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::support::{LIMIT, ProcessGroup};
use super::transcript::{Output, Transcript};

/// How a program is started.
pub(crate) struct Start {
    name: &'static str,
    program: PathBuf,
    listen: Option<String>,
    args: Vec<String>,
    /// The options of `handover run`, under which the program runs.
    under: Option<Vec<String>>,
    is_nobody: bool,
    dir: TempDir,
}

impl Start {
    /// An example, on any free port.
    pub(crate) fn example(name: &'static str) -> Self {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let program = profile.join("examples").join(name);
        assert!(
            program.exists(),
            "{} is not there: build it with `cargo build --examples --all-features`",
            program.display()
        );
        Self {
            name,
            program,
            listen: None,
            args: Vec::new(),
            under: None,
            is_nobody: false,
            dir: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn listen(mut self, addr: &str) -> Self {
        self.listen = Some(addr.to_owned());
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Under `handover run`, with these options.
    pub(crate) fn under(mut self, options: &[&str]) -> Self {
        self.under = Some(options.iter().map(|&option| option.to_owned()).collect());
        self
    }

    /// A copy of the program in a directory of its own, which everybody may read.
    pub(crate) fn copied(mut self) -> Self {
        let copy = self.dir.path().join(self.name);
        // Not by this process: a child that another test starts meanwhile would have the copy open for writing, and
        // a program that is open for writing cannot be executed (ETXTBSY).
        let copied = Command::new("cp").arg(self.program).arg(&copy).status();
        assert!(copied.unwrap().success());
        self.program = copy;
        fs::set_permissions(self.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// As a user without privileges, if this one has them.
    pub(crate) fn without_privileges(self) -> Self {
        let is_nobody = rustix::process::geteuid().is_root();
        Self {
            is_nobody,
            ..self.copied()
        }
    }

    /// Replaces the copy of the program by one that fails.
    pub(crate) fn break_program(&self) {
        break_program(self.dir(), self.name);
    }

    /// Starts the program.
    pub(crate) fn run(self) -> Program {
        let program = self.program;
        let listen = self.listen.unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let mut args = vec!["--listen".to_owned(), listen];
        // A command line that is about other options.
        if self.args.iter().any(|arg| arg == "--help" || arg == "7000") {
            args.clear();
        }
        args.extend(self.args);
        let mut shown = format!("{} {}", self.name, args.join(" "));
        // Default signal actions, whatever the test runner ignores. No core files.
        let script = "ulimit -c 0; exec env --default-signal=HUP,INT,QUIT,TERM,USR1,USR2 \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        if let Some(options) = self.under {
            command.arg(env!("CARGO_BIN_EXE_handover")).arg("run");
            command.args(&options).arg("--");
            shown = format!("handover run {} -- {shown}", options.join(" "));
        }
        command
            .arg(&program)
            .args(&args)
            .env("RUST_BACKTRACE", "0")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .current_dir(self.dir.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.is_nobody {
            command.uid(65534).gid(65534);
        }
        let mut child = command.spawn().unwrap();
        let group = ProcessGroup::of(&child);
        Program {
            name: self.name,
            program,
            shown,
            stdout: Lines::of(child.stdout.take().unwrap()),
            stderr: Lines::of(child.stderr.take().unwrap()),
            pid: child.id(),
            child,
            exit_code: None,
            dir: self.dir,
            _group: group,
        }
    }
}

/// A program that was started.
pub(crate) struct Program {
    name: &'static str,
    program: PathBuf,
    shown: String,
    stdout: Lines,
    stderr: Lines,
    pid: u32,
    child: Child,
    exit_code: Option<i32>,
    dir: TempDir,
    _group: ProcessGroup,
}

impl Program {
    /// Where it listens.
    pub(crate) fn addr(&mut self) -> SocketAddr {
        self.stdout.until_count("listening on ", 1);
        let mut lines = self.stdout.seen.iter();
        let line = lines.find_map(|line| line.strip_prefix("listening on "));
        let addr = line.unwrap();
        addr.strip_prefix("http://")
            .unwrap_or(addr)
            .parse()
            .unwrap()
    }

    pub(crate) fn signal(&self, wanted: Signal) {
        signal(self.pid, wanted);
    }

    /// Waits until a line on standard error contains a text.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) {
        self.until_count(text, 1);
    }

    /// Waits until so many lines on standard error contain a text.
    #[track_caller]
    pub(crate) fn until_count(&mut self, text: &str, count: usize) {
        self.stderr.until_count(text, count);
    }

    /// Ends the program here: what follows is not what the test is about.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until this process exits, with this code.
    #[track_caller]
    pub(crate) fn end(&mut self, code: i32) {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not exit\n{}",
                self.said()
            );
            thread::park_timeout(std::time::Duration::from_millis(2));
        };
        assert_eq!(status.code(), Some(code), "{status}\n{}", self.said());
        self.exit_code = status.code();
    }

    /// The process that has replaced this one.
    #[track_caller]
    pub(crate) fn successor(&mut self) -> u32 {
        self.until("generation 2, process ");
        let mut lines = self.stderr.seen.iter();
        let after = lines.find_map(|line| line.split_once("generation 2, process "));
        let (_, after) = after.unwrap();
        after.split(',').next().unwrap().parse().unwrap()
    }

    /// Replaces the copy of the program by one that fails.
    pub(crate) fn break_program(&self) {
        break_program(self.dir.path(), self.name);
    }

    /// Waits until all processes have closed their output.
    #[track_caller]
    pub(crate) fn until_closed(&mut self) {
        self.stdout.until_closed();
        self.stderr.until_closed();
    }

    fn said(&mut self) -> String {
        self.stdout.seen.extend(self.stdout.coming.try_iter());
        self.stderr.seen.extend(self.stderr.coming.try_iter());
        format!("{:#?}\n{:#?}", self.stdout.seen, self.stderr.seen)
    }

    /// All that was written. To be called when the process has ended.
    #[track_caller]
    pub(crate) fn transcript(&mut self) -> Transcript {
        self.until_closed();
        let profile = Path::new(env!("CARGO_BIN_EXE_handover")).parent().unwrap();
        let path = |path: &Path| path.display().to_string();
        Transcript::of(&Output {
            command: self.shown.clone(),
            stdout: &self.stdout.seen,
            stderr: &self.stderr.seen,
            replaced: vec![
                (path(&self.program), self.name.to_owned()),
                (path(self.dir.path()), "DIR".to_owned()),
                (path(profile), "BIN".to_owned()),
            ],
            pid: self.pid,
            exit_code: self.exit_code,
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.said());
        }
        // A supervisor's death ends its processes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(pid: u32, wanted: Signal) {
    let pid = Pid::from_raw(pid as i32).unwrap();
    kill_process(pid, wanted).unwrap();
}

fn break_program(dir: &Path, name: &str) {
    let script = "#!/bin/sh\necho 'cannot read demo.toml: no such file' >&2\nexit 3\n";
    // Not by this process, as above.
    let write = "printf %s \"$1\" > new && chmod 755 new && mv new \"$0\"";
    let written = Command::new("sh")
        .args(["-c", write, name, script])
        .current_dir(dir)
        .status();
    assert!(written.unwrap().success());
}

/// The lines of a pipe, as they come.
struct Lines {
    coming: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, coming) = crossbeam_channel::unbounded();
        // It ends when all writers have ended, or have closed the pipe.
        thread::spawn(move || {
            let lines = BufReader::new(pipe).lines();
            lines
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let seen = Vec::new();
        Self { coming, seen }
    }

    #[track_caller]
    fn until_count(&mut self, text: &str, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.seen.iter().filter(|line| line.contains(text)).count() < count {
            match self.coming.recv_deadline(deadline) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("never said: {text:?} ({error}) in {:#?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn until_closed(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.coming.recv_deadline(deadline) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the output does not end: {:#?}", self.seen)
                }
            }
        }
    }
}
