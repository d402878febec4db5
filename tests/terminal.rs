//! Terminals: Ctrl-C, Ctrl-Z and a terminal that is closed, each on a pseudoterminal.
#![cfg(target_os = "linux")] // terminals and process groups

#[path = "support/generations.rs"]
mod generations;
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

use generations::{DIR, Generations, all_pids, eventually, serve_if_child, signal, stat};
use support::process::processes_in;

/// Not a test: a server, when one of the tests has started it.
#[test]
fn child() {
    serve_if_child();
}

/// A terminal. Its drop closes it. What is written to it is not read, and must be less than 4 KiB.
struct Terminal {
    keyboard: File,
    other_end: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other_end = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let keyboard = File::from(controller);
        Self {
            keyboard,
            other_end,
        }
    }

    fn end(&self) -> Stdio {
        Stdio::from(self.other_end.try_clone().unwrap())
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }
}

/// Arguments of env(1): a command in a session of its own, with the default actions of the signals that terminals send,
/// though whatever has started the tests may ignore them.
const IN_A_SESSION: [&str; 3] = ["--default-signal=HUP,INT,QUIT", "setsid", "-c"];

/// What runs in a terminal: the first process of a session whose terminal this is.
struct Session {
    dir: TempDir,
    first: Child,
}

impl Session {
    fn start(terminal: &Terminal, program: &str, command: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("program"), program).unwrap();
        let mut first = Command::new("env");
        let first = first
            .args(IN_A_SESSION)
            .args(command)
            .current_dir(dir.path())
            .env_remove("HANDOVER_SOCKET")
            .stdin(terminal.end())
            .stdout(terminal.end())
            .stderr(File::create(dir.path().join("log")).unwrap());
        let first = first.spawn().unwrap();
        Self { dir, first }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    #[track_caller]
    fn until_text(&self, name: &str, wanted: &str) {
        let is_there = || self.text(name) == wanted;
        eventually(&format!("{wanted:?} in {name}"), is_there);
    }

    #[track_caller]
    fn pid(&self, name: &str) -> i32 {
        eventually(name, || self.text(name).ends_with('\n'));
        self.text(name).trim().parse().unwrap()
    }

    #[track_caller]
    fn until_exit(&mut self) {
        let deadline = Instant::now() + support::LIMIT;
        while self.first.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the first process does not exit");
            thread::park_timeout(Duration::from_millis(2));
        }
        eventually("the end of all processes", || self.processes().is_empty());
    }

    /// All processes in this directory.
    fn processes(&self) -> Vec<i32> {
        processes_in(self.dir.path())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.text("log"));
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
        for pid in self.processes() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn state(pid: i32) -> Option<char> {
    stat(pid).map(|stat| stat.state)
}

const HANDOVER: &str = env!("CARGO_BIN_EXE_handover");

/// Records the signals that reach it, and ends by SIGQUIT only. Says whether it has the terminal.
const RECORDER: &str = "
trap 'echo INT >> signals' INT
trap 'echo TERM >> signals' TERM
trap 'echo TSTP >> signals' TSTP
trap 'echo QUIT >> signals; exit 0' QUIT
test -t 0 && echo terminal >> signals
read line
echo $$ > pid
while :; do sleep 0.02; done
";

#[test]
fn ctrl_c_stops_once_and_the_second_at_once() {
    let mut terminal = Terminal::open();
    let command = [
        HANDOVER,
        "run",
        "--ready-after",
        "0.05",
        "--",
        "sh",
        "program",
    ];
    let mut session = Session::start(&terminal, RECORDER, &command);
    session.pid("pid");
    terminal.press("\x03");
    session.until_text("signals", "TERM\n");
    terminal.press("\x03");
    session.until_exit();
    assert_eq!(session.text("signals"), "TERM\nQUIT\n");
}

#[test]
fn standard_input_is_at_its_end_though_there_is_no_dev_null() {
    let hide = "mount -t tmpfs none /dev";
    let mut probe = Command::new("unshare");
    let probe = probe
        .args(["--mount", "sh", "-c", hide])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        return eprintln!("not run: this user may not mount");
    }
    let terminal = Terminal::open();
    let script = format!("{hide}; exec \"$@\"");
    let run = ["run", "--ready-after", "0.05", "--", "sh", "program"];
    let command = ["unshare", "--mount", "sh", "-c", &script, "sh", HANDOVER];
    let program = "read line || echo end > input; echo $$ > pid; while :; do sleep 0.02; done";
    let mut session = Session::start(&terminal, program, &[&command[..], &run[..]].concat());
    session.pid("pid");
    assert_eq!(session.text("input"), "end\n");
    signal(session.first.id() as i32, Signal::TERM);
    session.until_exit();
}

/// Whether a process is stopped. One that waits until its child executes another program (vfork(2)) is not marked as
/// stopped while its child is.
fn is_stopped(pid: i32) -> bool {
    let children =
        || all_pids().filter(|child| stat(*child).is_some_and(|stat| stat.parent == pid));
    match state(pid) {
        Some('T') => true,
        Some('D') => children().any(is_stopped),
        _ => false,
    }
}

/// A supervisor, as a job of a shell with job control, as a user has one.
struct Job {
    terminal: Terminal,
    session: Session,
    /// The program's process.
    pid: i32,
    supervisor: i32,
}

impl Job {
    /// The program writes its process id to the file "pid".
    fn start(options: &str, program: &str) -> Self {
        let mut terminal = Terminal::open();
        let shell = ["bash", "--norc", "--noprofile", "-i"];
        let session = Session::start(&terminal, program, &shell);
        terminal.press(&format!(
            "exec 2> shell; {HANDOVER} run {options} --pid-file supervisor -- sh program\n"
        ));
        let (pid, supervisor) = (session.pid("pid"), session.pid("supervisor"));
        Self {
            terminal,
            session,
            pid,
            supervisor,
        }
    }

    #[track_caller]
    fn stop(&mut self) {
        self.terminal.press("\x1a");
        eventually("both are stopped", || {
            is_stopped(self.pid) && is_stopped(self.supervisor)
        });
    }

    #[track_caller]
    fn go_on(&mut self) {
        self.terminal.press("fg\n");
        eventually("both go on", || {
            !is_stopped(self.pid) && !is_stopped(self.supervisor)
        });
    }

    #[track_caller]
    fn end(mut self) {
        self.terminal.press("\x03");
        eventually("the supervisor has exited", || {
            state(self.supervisor).is_none()
        });
        self.terminal.press("exit\n");
        self.session.until_exit();
    }
}

/// With `stty tostop`, a terminal stops processes that are not in its foreground when they write to it.
#[test]
fn a_program_may_write_to_a_terminal_and_a_stop_ends_one_that_is_stopped() {
    let terminal = Terminal::open();
    let wrapper = "stty tostop; exec \"$@\"";
    let program = "echo output; echo $$ > pid; exec sleep 1000";
    let command = [
        "sh",
        "-c",
        wrapper,
        "sh",
        HANDOVER,
        "run",
        "--pid-file",
        "supervisor",
        "--",
        "sh",
        "program",
    ];
    let mut session = Session::start(&terminal, program, &command);
    let (pid, supervisor) = (session.pid("pid"), session.pid("supervisor"));
    signal(pid, Signal::STOP);
    eventually("it is stopped", || state(pid) == Some('T'));
    signal(supervisor, Signal::TERM);
    session.until_exit();
    assert!(!session.text("log").contains("SIGKILL"));
}

/// The program is in the terminal's foreground, which gets a SIGHUP.
#[test]
fn a_program_under_nohup_without_a_group_of_its_own_outlives_the_terminal() {
    let terminal = Terminal::open();
    // The supervisor leads the session, whose terminal is closed.
    let wrapper = "trap '' HUP; exec \"$@\"";
    let program = "echo $$ > pid; while :; do date +%N > new; mv new time; sleep 0.02; done";
    let command = [
        "sh",
        "-c",
        wrapper,
        "sh",
        HANDOVER,
        "run",
        "--no-process-groups",
        "--pid-file",
        "supervisor",
        "--",
        "sh",
        "program",
    ];
    let mut session = Session::start(&terminal, program, &command);
    let (pid, supervisor) = (session.pid("pid"), session.pid("supervisor"));
    drop(terminal);
    eventually("the terminal is closed", || !has_terminal(supervisor));
    let time = session.text("time");
    eventually("the program runs", || session.text("time") != time);
    assert_eq!(session.pid("pid"), pid, "it is the same process");
    signal(supervisor, Signal::TERM);
    session.until_exit();
}

#[test]
fn ctrl_z_stops_all_and_fg_continues_all() {
    let program = "echo $$ > pid; while :; do date +%N > new; mv new time; sleep 0.02; done";
    let mut job = Job::start("", program);
    for _ in 0..2 {
        job.stop();
        job.go_on();
        let time = job.session.text("time");
        eventually("the program runs", || job.session.text("time") != time);
    }
    assert_eq!(job.session.pid("pid"), job.pid, "it is the same process");
    job.end();
}

#[test]
fn a_pause_by_ctrl_z_is_no_hang() {
    // A process of a busy machine is not late.
    const LIMIT: Duration = Duration::from_secs(5);
    let test = std::env::current_exe().unwrap();
    let program = format!(
        "export {DIR}=\"$PWD\"; echo 127.0.0.1:0 > listen; echo $$ > pid; \
         exec {} child --exact --nocapture",
        test.display()
    );
    let mut job = Job::start(
        "--control control --watchdog 5 --abort-timeout 0.1",
        &program,
    );
    let status = || {
        let mut status = Command::new(HANDOVER);
        let status = status.args(["status", "--json", "--socket", "control"]);
        let output = support::output_of(status.current_dir(job.session.dir.path()));
        String::from_utf8(output.stdout).unwrap()
    };
    eventually("the program serves", || status().contains("\"serving\""));
    job.stop();
    thread::sleep(LIMIT + LIMIT / 4);
    job.go_on();
    // Longer than the limit and what follows it: a process that is late is aborted in this time.
    thread::sleep(LIMIT * 2);
    assert!(!job.session.text("shell").contains("aborting"));
    assert_eq!(job.session.pid("pid"), job.pid, "it is the same process");
    // The watchdog was on.
    signal(job.pid, Signal::STOP);
    eventually("the process that hangs is aborted", || {
        job.session.text("shell").contains("aborting")
    });
    eventually("another process", || job.session.pid("pid") != job.pid);
    job.end();
}

#[test]
fn a_terminal_that_is_closed_stops_the_supervisor() {
    // The supervisor is the first process of the session, or a shell is.
    for wrapper in ["exec \"$@\"", "\"$@\"; exit"] {
        let terminal = Terminal::open();
        let program =
            "trap 'echo TERM >> signals; exit 0' TERM; echo $$ > pid; while :; do sleep 0.02; done";
        let command = [
            "sh", "-c", wrapper, "sh", HANDOVER, "run", "--", "sh", "program",
        ];
        let mut session = Session::start(&terminal, program, &command);
        session.pid("pid");
        drop(terminal);
        session.until_exit();
        assert_eq!(session.text("signals"), "TERM\n");
    }
}

#[test]
fn a_supervisor_under_nohup_outlives_its_terminal_and_is_restarted_by_hup() {
    let terminal = Terminal::open();
    let wrapper = "trap '' HUP; \"$@\"; exit";
    let program = "echo $$ > new; mv new pid; while :; do sleep 0.02; done";
    let command = [
        "sh",
        "-c",
        wrapper,
        "sh",
        HANDOVER,
        "run",
        "--ready-after",
        "0.05",
        "--pid-file",
        "supervisor",
        "--",
        "sh",
        "program",
    ];
    let mut session = Session::start(&terminal, program, &command);
    let (pid, supervisor) = (session.pid("pid"), session.pid("supervisor"));
    drop(terminal);
    eventually("the terminal is closed", || !has_terminal(supervisor));
    let supervisor_pid = Pid::from_raw(supervisor).unwrap();
    kill_process(supervisor_pid, Signal::HUP).unwrap();
    eventually("another process", || session.pid("pid") != pid);
    kill_process(supervisor_pid, Signal::TERM).unwrap();
    session.until_exit();
}

/// Whether a process has a controlling terminal (the field tty_nr, proc(5)).
fn has_terminal(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
    fields.and_then(|mut fields| fields.nth(4)) != Some("0")
}

/// Whether a process has not taken a SIGHUP yet (the field ShdPnd, proc(5)).
fn is_hangup_pending(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    pending.is_some_and(|set| u64::from_str_radix(set.trim(), 16).unwrap() & 1 != 0)
}

/// A server of this crate without a supervisor, in the foreground of a terminal. The shell stays when it is restarted:
/// its end would be that of the session.
fn server_in(terminal: &Terminal, prefix: &str) -> Generations {
    Generations::start_with(&[], |command| {
        let mut first = Command::new("env");
        first
            .args(IN_A_SESSION)
            .args(["sh", "-c", &format!("{prefix}\"$@\"; read line"), "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(terminal.end())
            .stdout(Stdio::piped());
        for (name, value) in command.get_envs() {
            first.env(name, value.unwrap());
        }
        *command = first;
    })
}

#[test]
fn a_terminal_that_is_closed_ends_a_server_and_kill_restarts_it() {
    for restarts in [0, 1] {
        let terminal = Terminal::open();
        let mut server = server_in(&terminal, "");
        for _ in 0..restarts {
            server.restart();
        }
        assert_eq!(server.who().generation, restarts + 1);
        drop(terminal);
        let line = server.until(&format!("generation {}: ", restarts + 1));
        assert!(line.contains("0 forced"), "{line}");
        server.wait();
    }
}

#[test]
fn a_server_under_nohup_outlives_its_terminal_and_is_restarted_by_hup() {
    let terminal = Terminal::open();
    let mut server = server_in(&terminal, "trap '' HUP; ");
    // What a successor does is the same.
    server.restart();
    let pid = server.who().pid;
    drop(terminal);
    eventually("the terminal is closed", || !has_terminal(pid));
    // The shell reads an end-of-file, and at its exit the kernel sends SIGHUP to the foreground. While that is pending,
    // another SIGHUP would be lost: signals do not queue (signal(7)).
    let shell = server.first.id() as i32;
    eventually("the shell has exited", || state(shell) == Some('Z'));
    eventually("its signal was taken", || !is_hangup_pending(pid));
    let next = server.restart();
    signal(next.pid, Signal::TERM);
    server.wait();
}
