//! `handover run` as a process, in a directory of its own, and the commands that are sent to it.

#![allow(dead_code)]

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use super::support;
use super::support::process::{PAUSE, processes_in};

/// The command, without what this process has in its environment for others.
pub(crate) fn handover() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.env_remove("HANDOVER_SOCKET").stdin(Stdio::null());
    command
}

/// A supervisor, its programs, and their directory. The drop kills the processes.
pub(crate) struct Supervised {
    pub(crate) dir: TempDir,
    pub(crate) supervisor: Child,
    _group: support::ProcessGroup,
}

impl Supervised {
    /// Runs `handover run` in the directory. Its log is the file `log`, and its control socket is `control`.
    pub(crate) fn start(dir: TempDir, options: &[&str], program: &[&str]) -> Self {
        Self::start_by("exec \"$@\"", dir, options, program, |_| {})
    }

    /// The same, by a shell that runs `wrapper`, with the supervisor's command line as its arguments. `prepare` may
    /// change the command.
    pub(crate) fn start_by(
        wrapper: &str,
        dir: TempDir,
        options: &[&str],
        program: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", wrapper, "sh", env!("CARGO_BIN_EXE_handover")])
            .args(["run", "--control", "control"])
            .args(options)
            .arg("--")
            .args(program)
            .current_dir(dir.path())
            .env_remove("HANDOVER_SOCKET")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap());
        prepare(&mut command);
        let supervisor = command.spawn().unwrap();
        Self {
            dir,
            _group: support::ProcessGroup::of(&supervisor),
            supervisor,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The text of a file in the directory; empty if there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    // ---- commands ----

    /// Runs another command for this supervisor.
    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        let mut command = handover();
        let command = command.args(args).arg("--socket").arg(self.path("control"));
        support::output_of(command)
    }

    /// The same, which must go well. Returns what the command has printed.
    #[track_caller]
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        let log = self.read("log");
        assert!(output.status.success(), "{args:?}: {output:?}\n{log}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let socket = UnixStream::connect(self.path("control"))?;
        socket.set_read_timeout(Some(support::LIMIT))?;
        Ok(socket)
    }

    /// The answer to a request on the control socket, without the command.
    pub(crate) fn request(&self, request: &str) -> io::Result<Value> {
        let mut socket = self.connect()?;
        writeln!(socket, "{request}")?;
        Ok(serde_json::from_str(&io::read_to_string(socket)?)?)
    }

    /// Null while the supervisor does not answer.
    pub(crate) fn status(&self) -> Value {
        let output = self.ask(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// The processes that serve or start, as the supervisor says.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let status = self.status();
        let processes = status["processes"].as_array().into_iter().flatten();
        let pids = processes.filter_map(|process| process["pid"].as_i64());
        pids.map(|pid| i32::try_from(pid).unwrap()).collect()
    }

    // ---- waits ----

    #[track_caller]
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + support::LIMIT;
        while !holds() {
            let log = self.read("log");
            assert!(Instant::now() < end, "never: {what}\n{log}");
            thread::park_timeout(PAUSE);
        }
    }

    #[track_caller]
    pub(crate) fn until_serving(&self) {
        self.until("it serves", || self.ask(&["status"]).status.success());
    }

    /// Waits until the supervisor has exited.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + support::LIMIT;
        loop {
            if let Some(status) = self.supervisor.try_wait().unwrap() {
                return status;
            }
            let log = self.read("log");
            assert!(Instant::now() < end, "the supervisor does not exit\n{log}");
            thread::park_timeout(PAUSE);
        }
    }

    /// Sends SIGTERM, and waits until the supervisor has exited.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    // ---- processes ----

    /// The process id of the supervisor.
    pub(crate) fn pid(&self) -> i32 {
        self.supervisor.id() as i32
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.supervisor), signal).unwrap();
    }

    /// All processes whose working directory is that of this supervisor.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes_in(self.dir.path())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.read("log"));
        }
        // Until it is reaped, the group has its number.
        let _ = kill_process_group(Pid::from_child(&self.supervisor), Signal::KILL);
        let _ = self.supervisor.wait();
        for pid in self.processes() {
            // The process may have ended meanwhile.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

/// The address to which the processes of this supervisor send notifications, without the leading @.
pub(crate) fn notify_name(pid: i32) -> Vec<u8> {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut entries = environ.split(|byte| *byte == 0);
    let name = entries.find_map(|entry| entry.strip_prefix(b"NOTIFY_SOCKET=@"));
    name.unwrap().to_vec()
}

/// A directory with these files.
pub(crate) fn dir_with(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}
