//! The tests: a server that runs as another user, and programs that ask the supervisor for what they should not get.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use super::generations::{self, Generations, Who, eventually, random_below, signal};
use super::support;

macro_rules! trials {
    ($($test:ident,)*) => {
        vec![$(Trial::test(stringify!($test), || { $test(); Ok(()) })),*]
    };
}

pub(crate) fn all() -> Vec<Trial> {
    trials![
        a_server_of_another_user_keeps_no_privileges,
        a_new_address_is_bound_by_the_server_itself_or_refused,
        a_program_of_another_user_cannot_get_roots_rights,
        only_listed_addresses_are_bound_for_another_user,
        no_file_is_removed_that_is_not_the_listeners,
        a_dead_socket_of_another_user_is_left_alone,
        so_many_listeners_are_held_for_processes,
        a_user_or_group_that_does_not_exist_is_named,
        nothing_is_overwritten_by_a_pid_file,
        a_pid_file_waits_for_nobody,
        a_full_disk_keeps_the_old_pid_file,
        an_environment_file_waits_for_nobody,
        a_user_cannot_choose_which_file_of_roots_is_read,
        the_control_socket_is_for_its_group,
        the_control_socket_comes_back,
        a_control_socket_that_others_replaced_is_not_removed,
        variables_for_one_process_are_not_inherited,
    ]
}

/// The user and the group of the processes that are not to be trusted. The user database need not have them.
const OTHER: u32 = 65534;

/// Says so if a test cannot run.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: this test needs root");
    }
    is_root
}

/// An address with a port that only root may bind. Its host is one of many, as other tests run at the same time.
fn low_addr() -> SocketAddr {
    let byte = || 2 + random_below(250) as u8;
    (
        [127, byte(), byte(), byte()],
        600 + random_below(400) as u16,
    )
        .into()
}

// ---- a server of this crate ----

/// Starts a supervised server as the other user.
fn start_server(options: &[(&str, &str)]) -> Generations {
    let other = OTHER.to_string();
    let mut all = vec![
        ("supervised", "backoff=1 watchdog=10000"),
        ("user", &other),
        ("group", &other),
    ];
    all.extend(options);
    Generations::start_with(&all, |command| {
        // The other user has to reach the program.
        let program = PathBuf::from(command.get_program());
        fs::remove_file(&program).unwrap();
        copy_program(&std::env::current_exe().unwrap(), &program);
        fs::set_permissions(program.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let log = fs::File::create(program.with_file_name("log")).unwrap();
        // A backtrace would leave no room for the error.
        command.stderr(log).env("RUST_BACKTRACE", "0");
    })
}

/// Copies a program. Not in this process: a child that another test starts meanwhile would have the file open for
/// writing, and such a file cannot be executed.
fn copy_program(from: &Path, to: &Path) {
    let copied = support::output_of(Command::new("cp").args([from, to]));
    assert!(copied.status.success(), "{copied:?}");
}

/// Stops the supervisor, and waits until all processes have ended.
fn end(server: Generations) {
    kill_process(Pid::from_child(&server.first), Signal::TERM).unwrap();
    eventually("the end of all processes", || {
        server.processes().0.is_empty()
    });
}

fn control(server: &Generations, command: &str) -> Output {
    let mut words = command.split(' ');
    let mut handover = handover();
    handover.arg(words.next().unwrap());
    let socket = server.dir.path().join("control");
    handover
        .args(words)
        .args(["--timeout", "100", "--socket"])
        .arg(socket);
    support::output_of(&mut handover)
}

/// A line of /proc/PID/status.
fn status_line(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let words = line.unwrap_or_default().trim_start_matches(':');
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check_no_privileges(pid: i32) {
    let four = [
        OTHER.to_string(),
        OTHER.to_string(),
        OTHER.to_string(),
        OTHER.to_string(),
    ]
    .join(" ");
    assert_eq!(status_line(pid, "Uid"), four);
    assert_eq!(status_line(pid, "Gid"), four);
    assert_eq!(status_line(pid, "Groups"), OTHER.to_string());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_line(pid, set), "0".repeat(16), "{set}");
    }
    assert_eq!(status_line(pid, "NoNewPrivs"), "1");
}

fn a_server_of_another_user_keeps_no_privileges() {
    if !is_root() {
        return;
    }
    let listen = low_addr().to_string();
    let server = start_server(&[("listen", &listen)]);
    let supervisor = server.first.id() as i32;
    let until = |generation| {
        let who = || generations::try_get(server.addr(), "/who").map(|text| Who::parse(&text));
        eventually("the next generation", || {
            who().is_ok_and(|who| who.generation == generation)
        });
        let who = server.who();
        check_no_privileges(who.pid);
        assert_eq!(status_line(supervisor, "Uid"), "0 0 0 0");
        who
    };
    until(1);
    // A crash: the supervisor starts the next one.
    let _ = generations::try_get(server.addr(), "/crash");
    until(2);
    // A restart: the predecessor does.
    let output = control(&server, "restart --wait");
    assert!(output.status.success(), "{output:?}");
    let who = until(3);
    // One that stands still is aborted.
    signal(who.pid, Signal::STOP);
    until(4);
    let output = control(&server, "upgrade --wait");
    assert!(output.status.success(), "{output:?}");
    let _ = generations::try_get(server.addr(), "/crash");
    until(5);
    let output = control(&server, "restart --wait");
    assert!(output.status.success(), "{output:?}");
    until(6);
    end(server);
}

fn a_new_address_is_bound_by_the_server_itself_or_refused() {
    if !is_root() {
        return;
    }
    let listen = low_addr().to_string();
    let (named, refused) = (low_addr().to_string(), low_addr().to_string());
    let server = start_server(&[("listen", &listen), ("allow-bind", &named)]);
    // Such as the process may bind itself. The supervisor holds it from then on.
    server.option("listen", &format!("{listen} {named} 127.0.0.1:0"));
    let output = control(&server, "restart --wait");
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&control(&server, "status --json").stdout).unwrap();
    assert_eq!(status["listeners"].as_array().unwrap().len(), 3, "{status}");
    if TcpListener::bind(&refused).is_ok() && !may_bind_low_ports() {
        server.option("listen", &format!("{listen} {refused}"));
        let output = control(&server, "restart --wait");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("Supervisor::allow_bind"),
            "{text}"
        );
    }
    assert_eq!(server.who().generation, 2);
    end(server);
}

/// In some containers, everybody may bind low ports.
fn may_bind_low_ports() -> bool {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    first.is_ok_and(|first| first.trim().parse().unwrap_or(1024) < 600)
}

// ---- programs that know nothing of this crate ----

fn handover() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.stdin(Stdio::null());
    command
}

/// The system's Python, rather than one in the home directory of a user, where other users cannot go.
fn python() -> &'static str {
    let system = "/usr/bin/python3";
    if Path::new(system).exists() {
        system
    } else {
        "python3"
    }
}

/// What the programs share: notifications, with descriptors.
const PRELUDE: &str = r#"
import array, os, socket, stat, subprocess, sys, time

def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)

to = os.environ.get("NOTIFY_SOCKET", "")
to = "\0" + to[1:] if to[:1] == "@" else to
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def notify(text, descriptors=()):
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    speaker.sendmsg([text.encode()], [rights] if descriptors else [], 0, to)

def ask_for(addr):
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.settimeout(60)
    notify('X_HANDOVER={"v":1,"generation":1,"listeners":[],"bind":{"addr":' + addr + ',"name":null,"backlog":8,'
        '"fast_open":null,"unix_mode":438,"defer_accept":false,"reuse_port":false,"only_v6":false,"nodelay":true},'
        '"successor":null,"failed":null}', [other.fileno()])
    other.close()
    answer = own.recv(1024).decode()
    print("given" if '"given"' in answer else "refused", flush=True)

def leave(listeners):
    records = ",".join('{"name":"l","matches_by_name":true,"removes_file":true}' for _ in listeners)
    notify('X_HANDOVER={"v":1,"generation":1,"listeners":[' + records + '],"bind":null,"successor":null,"failed":null}',
        [listener.fileno() for listener in listeners])

def stay():
    notify("READY=1\nSTATUS=done")
    print("done", flush=True)
    time.sleep(300)
"#;

/// `handover run` with a program in Python, in a directory that everybody may read.
struct Supervised {
    supervisor: Supervisor,
    dir: TempDir,
}

/// A process group that is killed when the test has ended, whatever came of it.
struct Supervisor(Child);

impl Supervisor {
    fn spawn(command: &mut Command) -> Self {
        let command = command.process_group(0).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + support::LIMIT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Supervised {
    fn start(options: &[&str], program: &str) -> Self {
        Self::start_in(public_dir(), options, program, |_| {})
    }

    fn start_in(
        dir: TempDir,
        options: &[&str],
        program: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        fs::write(dir.path().join("program.py"), format!("{PRELUDE}{program}")).unwrap();
        let file = |name| fs::File::create(dir.path().join(name)).unwrap();
        let mut command = handover();
        command
            .args(["run", "--notify", "--control", "control"])
            .args(options)
            .args(["--", python(), "program.py"])
            .current_dir(dir.path())
            .stdout(file("out"))
            .stderr(file("log"));
        prepare(&mut command);
        let supervisor = Supervisor::spawn(&mut command);
        Self { supervisor, dir }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Waits until the program has done what it does, and returns the lines that it has written.
    #[track_caller]
    fn until_done(&self) -> Vec<String> {
        let is_done = || self.read("out").lines().any(|line| line == "done");
        // A program that fails is started again and again.
        let has_failed = || self.read("log").contains("exited");
        eventually("the program is done", || is_done() || has_failed());
        assert!(is_done(), "{}\n{}", self.read("out"), self.read("log"));
        eventually("the supervisor knows", || {
            self.status()["processes"][0]["status"] == "done"
        });
        self.read("out").lines().map(str::to_owned).collect()
    }

    fn status(&self) -> Value {
        let socket = self.dir.path().join("control");
        let mut handover = handover();
        handover.args(["status", "--json", "--socket"]).arg(socket);
        serde_json::from_slice(&support::output_of(&mut handover).stdout).unwrap_or_default()
    }

    #[track_caller]
    fn stop(&mut self) -> ExitStatus {
        self.supervisor.stop()
    }
}

fn public_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn a_program_of_another_user_cannot_get_roots_rights() {
    if !is_root() {
        return;
    }
    let dir = public_dir();
    // A program that makes its user root, unless that is forbidden.
    let id = ["/usr/bin/id", "/bin/id"]
        .iter()
        .find(|id| Path::new(id).exists());
    copy_program(id.unwrap().as_ref(), &dir.path().join("id"));
    fs::set_permissions(dir.path().join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let other = OTHER.to_string();
    let program = r#"
def attempt(what):
    try:
        what()
        print("allowed", flush=True)
    except OSError:
        print("refused", flush=True)

for what in [lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot("/"),
        lambda: os.kill(os.getppid(), 0)]:
    attempt(what)
print(subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout.strip(), flush=True)
for name in ["USER", "LOGNAME", "HOME", "SHELL"]:
    print(name, os.environ[name], flush=True)
stay()
"#;
    let mut supervised =
        Supervised::start_in(dir, &["--user", &other, "--group", &other], program, |_| {});
    let lines = supervised.until_done();
    assert_eq!(lines[..5], ["refused"; 5], "{lines:?}");
    assert_eq!(lines[5], other);
    let entries = fs::read_to_string("/etc/passwd").unwrap();
    let entry = entries
        .lines()
        .find(|entry| entry.split(':').nth(2) == Some(&other));
    let (name, home, shell) = match entry {
        Some(entry) => {
            let fields: Vec<_> = entry.split(':').collect();
            (fields[0], fields[5], fields[6])
        }
        None => (&*other, "/", "/bin/sh"),
    };
    let expected = [
        ("USER", name),
        ("LOGNAME", name),
        ("HOME", home),
        ("SHELL", shell),
    ];
    assert_eq!(
        lines[6..10],
        expected.map(|(name, value)| format!("{name} {value}"))
    );
    assert!(supervised.stop().success());
}

fn only_listed_addresses_are_bound_for_another_user() {
    if !is_root() {
        return;
    }
    let dir = public_dir();
    let root_only = dir.path().join("root");
    fs::create_dir(&root_only).unwrap();
    fs::set_permissions(&root_only, fs::Permissions::from_mode(0o755)).unwrap();
    let addrs = [low_addr(), low_addr(), low_addr(), low_addr()];
    let [before, named, after, as_root] = addrs.map(|addr| format!(r#"'{{"tcp":"{addr}"}}'"#));
    let path = format!(r#"'{{"unix":"{}"}}'"#, root_only.join("new").display());
    let program = format!(
        r#"
ask_for({as_root})
become({OTHER})
ask_for({before})
notify("READY=1")
for addr in [{named}, {before}, {as_root}, {after}, {path}, '{{"tcp":"127.0.0.1:0"}}']:
    ask_for(addr)
stay()
"#
    );
    let named = addrs[1].to_string();
    let mut supervised = Supervised::start_in(dir, &["--allow-bind", &named], &program, |_| {});
    let lines = supervised.until_done();
    let (given, refused) = ("given", "refused");
    let expected = [
        given, given, given, given, given, refused, refused, refused, "done",
    ];
    assert_eq!(lines, expected, "{}", supervised.read("log"));
    assert!(!root_only.join("new").exists());
    assert!(
        supervised
            .read("log")
            .contains("see Supervisor::allow_bind")
    );
    supervised.stop();
}

/// The path of a listener leads to files of root's later.
fn no_file_is_removed_that_is_not_the_listeners() {
    if !is_root() {
        return;
    }
    let dir = public_dir();
    let (own, victims) = (dir.path().join("own"), dir.path().join("victims"));
    for dir in [&own, &victims] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(&own, Some(OTHER), Some(OTHER)).unwrap();
    fs::write(victims.join("file"), "precious").unwrap();
    let _listener = UnixListener::bind(victims.join("socket")).unwrap();
    let program = format!(
        r#"
become({OTHER})
os.chdir("own")
def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.abspath(path))
    listener.listen()
    return listener
os.mkdir("a")
listeners = [listen("a/file"), listen("a/socket"), listen("kept"), listen("replaced")]
os.rename("a", "b")
os.symlink("../victims", "a")
leave(listeners)
stay()
"#
    );
    let mut supervised = Supervised::start_in(dir, &[], &program, |_| {});
    supervised.until_done();
    // A file that takes the place while the listener is held.
    fs::remove_file(own.join("replaced")).unwrap();
    fs::write(own.join("replaced"), "").unwrap();
    assert!(own.join("kept").exists());
    supervised.stop();
    assert!(victims.join("file").exists() && victims.join("socket").exists());
    assert!(own.join("replaced").exists());
    // What is the sender's own goes as ever.
    assert!(!own.join("kept").exists());
}

/// Root's supervisor replaces a dead socket of its own, and one of the user that its processes run as.
fn a_dead_socket_of_another_user_is_left_alone() {
    if !is_root() {
        return;
    }
    let user = format!("--user {OTHER} --group {OTHER}");
    for (owner, options, is_replaced) in [
        (0, "", true),
        (0, &*user, true),
        (OTHER, &*user, true),
        (OTHER, "", false),
        (1, &*user, false),
    ] {
        let dir = public_dir();
        let path = dir.path().join("socket");
        // The standard library leaves the file behind.
        drop(UnixListener::bind(&path).unwrap());
        chown(&path, Some(owner), Some(owner)).unwrap();
        let options = format!("--listen unix:socket {options}");
        let mut supervisor = start_by_shell(dir.path(), "true", &options);
        let case = format!("{owner} {options}");
        if is_replaced {
            let is_listening = || UnixStream::connect(&path).is_ok();
            eventually("the supervisor listens", is_listening);
            assert_eq!(fs::metadata(&path).unwrap().uid(), 0, "{case}");
            supervisor.stop();
            assert!(!path.exists(), "{case}");
        } else {
            assert!(!supervisor.wait().success(), "{case}");
            assert_eq!(fs::metadata(&path).unwrap().uid(), owner, "{case}");
            let log = fs::read_to_string(dir.path().join("log")).unwrap();
            let reason = format!("its file belongs to user {owner}");
            assert!(log.contains(&reason), "{case}: {log}");
        }
    }
}

fn so_many_listeners_are_held_for_processes() {
    if !is_root() {
        return;
    }
    let program = format!(
        r#"
become({OTHER})
for _ in range(10):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(30)]
    leave(listeners)
    leave(listeners)
stay()
"#
    );
    let mut supervised = Supervised::start(&["--listen", "127.0.0.1:0"], &program);
    supervised.until_done();
    let listeners = supervised.status()["listeners"].as_array().unwrap().len();
    assert_eq!(listeners, 1 + 256);
    supervised.stop();
}

fn a_user_or_group_that_does_not_exist_is_named() {
    let dir = public_dir();
    for (option, error) in [
        (
            ["--user", "no-such-user"],
            "there is no user \"no-such-user\"",
        ),
        (
            ["--group", "no-such-group"],
            "there is no group \"no-such-group\"",
        ),
        (
            ["--control-group", "no-such-group"],
            "there is no group \"no-such-group\"",
        ),
    ] {
        let options = format!("--control control {}", option.join(" "));
        let mut supervisor = start_by_shell(dir.path(), "true", &options);
        assert!(!supervisor.wait().success());
        let text = fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(text.contains(error), "{text}");
    }
}

// ---- pid files, and other files that the supervisor reads ----

/// Starts a supervisor by a shell, which knows its process id, in a directory. `prepare` is run by the shell before.
fn start_by_shell(dir: &Path, prepare: &str, options: &str) -> Supervisor {
    let script = format!(r#"{prepare}; exec "$0" run {options} -- sleep 300"#);
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_handover")]);
    shell.current_dir(dir).stdout(Stdio::null()).stderr(log);
    Supervisor::spawn(&mut shell)
}

fn nothing_is_overwritten_by_a_pid_file() {
    let dir = public_dir();
    let victim = dir.path().join("victim");
    let pid_file = dir.path().join("pid");
    for (prepare, is_replaced) in [
        // The name of the temporary file is one that others can foresee.
        ("ln -s victim pid.$$", true),
        ("ln victim pid", true),
        ("ln -s victim pid", false),
        ("mkdir pid", false),
    ] {
        fs::write(&victim, "precious").unwrap();
        let mut supervisor = start_by_shell(dir.path(), prepare, "--pid-file pid");
        let pid = supervisor.0.id().to_string();
        let is_written = || fs::read_to_string(&pid_file).is_ok_and(|text| text.trim() == pid);
        if is_replaced {
            eventually("the pid file", is_written);
            assert!(!pid_file.is_symlink() && fs::metadata(&pid_file).unwrap().nlink() == 1);
            supervisor.stop();
            assert!(!pid_file.exists(), "{prepare}");
        } else {
            assert!(!supervisor.wait().success());
            let log = fs::read_to_string(dir.path().join("log")).unwrap();
            assert!(log.contains("pid: not a regular file"), "{log}");
        }
        assert_eq!(
            fs::read_to_string(&victim).unwrap(),
            "precious",
            "{prepare}"
        );
        drop(supervisor);
        for entry in fs::read_dir(dir.path()).unwrap().flatten() {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
    }
}

fn a_pid_file_waits_for_nobody() {
    let dir = public_dir();
    let mut supervisor = start_by_shell(dir.path(), "mkfifo pid", "--pid-file pid");
    assert!(!supervisor.wait().success());
    let file = fs::symlink_metadata(dir.path().join("pid")).unwrap();
    assert!(file.file_type().is_fifo(), "it is not the supervisor's");
}

fn a_full_disk_keeps_the_old_pid_file() {
    if !is_root() {
        return;
    }
    let dir = public_dir();
    let log = tempfile::NamedTempFile::new().unwrap();
    let script = r#"mount -t tmpfs -o size=4k,nr_inodes=20 none . || exit 99
        cd "$PWD" || exit 98
        echo 4711 >old && dd if=/dev/zero of=fill bs=4k count=2 2>/dev/null
        ln old pid
        "$0" run --pid-file pid -- true 2>/dev/null
        echo "$? $(cat pid) $(ls)"
        rm old pid fill
        "$0" run --pid-file pid -- sleep 100 2>"$1" &
        until [ -e pid ]; do sleep 0.01; done
        dd if=/dev/zero of=fill bs=4k count=2 2>/dev/null
        kill -USR2 $!
        until grep -q "runs version" "$1"; do sleep 0.01; done
        kill -TERM $!
        wait
        echo "$(ls)""#;
    // All processes end with the namespace.
    let mut command = Command::new("timeout");
    command.args([
        "60",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    command.args(["--mount-proc", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_handover")).arg(log.path());
    command.current_dir(dir.path()).stdin(Stdio::null());
    let output = match support::try_output_of(&mut command) {
        Ok(output) if !matches!(output.status.code(), Some(1 | 98 | 99 | 127)) => output,
        other => return eprintln!("SKIPPED: no file system can be mounted: {other:?}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<_> = text.split_whitespace().collect();
    // The last word is what is left after an upgrade and a stop of a supervisor.
    let expected = ["1", "4711", "fill", "old", "pid", "fill"];
    assert_eq!(words, expected, "{output:?}");
}

fn an_environment_file_waits_for_nobody() {
    let dir = public_dir();
    let options = "--control control --environment-file fifo";
    let mut supervisor = start_by_shell(dir.path(), "mkfifo fifo", options);
    let control = dir.path().join("control");
    let said = || {
        let mut handover = handover();
        handover.args(["status", "--socket"]).arg(&control);
        let output = support::output_of(&mut handover);
        String::from_utf8_lossy(&output.stdout).contains("environment file")
    };
    eventually("the supervisor says why", said);
    supervisor.stop();
}

/// The directory is the user's, who may put a link in place of the environment file.
fn a_user_cannot_choose_which_file_of_roots_is_read() {
    if !is_root() {
        return;
    }
    for (link_of, is_read) in [(0, true), (OTHER, false)] {
        let (dir, private) = (public_dir(), TempDir::new().unwrap());
        let secret = private.path().join("secret");
        fs::write(&secret, "SECRET=precious\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&secret, dir.path().join("link")).unwrap();
        lchown(dir.path().join("link"), Some(link_of), Some(link_of)).unwrap();
        chown(dir.path(), Some(OTHER), Some(OTHER)).unwrap();
        let other = OTHER.to_string();
        let user = ["--user", &other, "--group", &other];
        let options = [&["--environment-file", "link"], &user[..]].concat();
        let program = "print(os.environ['SECRET'], flush=True)\nstay()";
        let mut supervised = Supervised::start_in(dir, &options, program, |_| {});
        if is_read {
            assert_eq!(supervised.until_done(), ["precious", "done"]);
        } else {
            let reason = "a symbolic link of the user leads to a file of another user";
            eventually("the supervisor says why", || {
                supervised.read("log").contains(reason)
            });
            assert_eq!(supervised.read("out"), "");
        }
        supervised.stop();
    }
}

// ---- the control socket ----

fn ask_as(uid: u32, gid: u32, socket: &Path) -> Output {
    // The program may be where the user cannot go.
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1]); \
                  s.sendall(b'status\\n'); print(s.recv(100000).decode())";
    let mut python = Command::new(python());
    python
        .args(["-c", script])
        .arg(socket)
        .current_dir("/")
        .stdin(Stdio::null());
    support::output_of(python.uid(uid).gid(gid))
}

fn the_control_socket_is_for_its_group() {
    if !is_root() {
        return;
    }
    let group = "64321";
    for (options, mode) in [
        (&["--control-group", group][..], 0o660),
        (&["--control-group", group, "--control-mode", "620"], 0o620),
    ] {
        let mut supervised = Supervised::start(options, "stay()");
        supervised.until_done();
        let socket = supervised.dir.path().join("control");
        let file = fs::metadata(&socket).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (mode, 64321));
        let output = ask_as(OTHER, 64321, &socket);
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("\"serving\""),
            "{output:?}"
        );
        let output = ask_as(OTHER, OTHER, &socket);
        assert!(!output.status.success(), "{output:?}");
        supervised.stop();
        assert!(!socket.exists());
    }
}

fn the_control_socket_comes_back() {
    let mut supervised = Supervised::start(&["--control-mode", "640"], "stay()");
    supervised.until_done();
    let socket = supervised.dir.path().join("control");
    fs::remove_file(&socket).unwrap();
    eventually("it is there again", || {
        supervised.status()["state"] == "serving"
    });
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o640);
    // In another directory of the same name too.
    let dir = supervised.dir.path().to_owned();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::rename(&socket, dir.join("sub/moved")).unwrap();
    eventually("it is there again", || {
        supervised.status()["state"] == "serving"
    });
    supervised.stop();
    assert!(!socket.exists());
}

fn a_control_socket_that_others_replaced_is_not_removed() {
    if !is_root() {
        return;
    }
    let mut supervised = Supervised::start(&[], "stay()");
    supervised.until_done();
    let socket = supervised.dir.path().join("control");
    for has_program in [false, true] {
        // A socket of another user's, with a program that listens or without.
        let new = supervised.dir.path().join("new");
        let other = UnixListener::bind(&new).unwrap();
        chown(&new, Some(OTHER), Some(OTHER)).unwrap();
        fs::rename(&new, &socket).unwrap();
        let other = Some(other).filter(|_| has_program);
        let count = if has_program { 2 } else { 1 };
        eventually("it says so", || {
            let log = supervised.read("log");
            log.matches("a file of user 65534 has its place").count() >= count
        });
        assert_eq!(fs::metadata(&socket).unwrap().uid(), OTHER);
        // An upgrade does not take it for its own.
        supervised.supervisor.signal(Signal::USR2);
        eventually("the upgrade", || {
            supervised
                .read("log")
                .matches("the supervisor runs version")
                .count()
                == count
        });
        drop(other);
        fs::remove_file(&socket).unwrap();
        eventually("it is there again", || {
            supervised.status()["state"] == "serving"
        });
    }
    let new = supervised.dir.path().join("new");
    fs::write(&new, "").unwrap();
    chown(&new, Some(OTHER), Some(OTHER)).unwrap();
    fs::rename(&new, &socket).unwrap();
    supervised.stop();
    assert!(socket.exists());
}

// ---- the environment ----

fn variables_for_one_process_are_not_inherited() {
    let program = r#"
for name in sorted(os.environ):
    if "PID" in name or name.startswith("LISTEN_"):
        print(name, flush=True)
stay()
"#;
    let variables = [
        "LISTEN_PIDFDID",
        "LISTEN_FDNAMES",
        "MAINPID",
        "MAINPIDFDID",
        "SYSTEMD_EXEC_PID",
        "WATCHDOG_PID",
        "WATCHDOG_PIDFDID",
        "LISTEN_ADDR",
    ];
    let mut supervised = Supervised::start_in(public_dir(), &[], program, |command| {
        command.envs(variables.map(|name| (name, "1")));
    });
    let lines = supervised.until_done();
    let own = [
        "LISTEN_ADDR",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "done",
    ];
    assert_eq!(lines, own);
    supervised.stop();
}
