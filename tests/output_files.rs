//! The files of standard output and standard error of `handover run`, with real processes: programs
//! in Python.
#![cfg(target_os = "linux")] // supervisors

#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use supervised::{Supervised, dir_with, handover};
use support::process::{all_pids, is_alive, signal, stat};

/// Writes lines with its process id and a number to standard error, as many as the file "wanted" in
/// the working directory says, or until SIGTERM. The last line is "PID bye".
const COUNTS: &str = r#"
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
ready()
own, count = os.getpid(), 0
def wanted():
    try: return int(open("wanted").read() or 0)
    except FileNotFoundError: return 0
while not ends:
    limit = wanted()
    while count < limit and not ends:
        os.write(2, b"%d %d %s\n" % (own, count, b"x" * (count % 300)))
        count += 1
    if limit and count == limit: open("reached.%d" % own, "w").write("%d" % limit)
    time.sleep(0.002)
# Slow to end, so that the supervisor may be dead by then.
for _ in range(20):
    time.sleep(0.01)
    os.write(2, b"%d %d \n" % (own, count))
    count += 1
os.write(2, b"%d bye\n" % own)
"#;

/// What each program begins with.
const BEGINNING: &str = r#"
import os, signal, socket, time
def ready():
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
"#;

/// Supervises the program, by a shell that first does `shell`.
fn begin(program: &str, options: &[&str], shell: &str) -> Supervised {
    // One that every user may execute, if there is one.
    let of_system = "/usr/bin/python3";
    let python = match fs::exists(of_system) {
        Ok(true) => of_system,
        _ => "python3",
    };
    let dir = dir_with(&[("program.py", &(BEGINNING.to_owned() + program))]);
    let options = [&["--notify", "--stop-timeout", "20"], options].concat();
    let wrapper = format!("{shell} exec \"$@\"");
    Supervised::start_by(&wrapper, dir, &options, &[python, "program.py"], |_| {})
}

/// As [`begin`], and waits until all processes serve.
fn start_in(program: &str, options: &[&str], shell: &str) -> Supervised {
    let supervised = begin(program, options, shell);
    supervised.until_serving();
    supervised
}

fn start(program: &str, options: &[&str]) -> Supervised {
    start_in(program, options, "")
}

/// How many lines each process is to write in all.
fn want(supervised: &Supervised, lines: usize) {
    fs::write(supervised.path("new"), lines.to_string()).unwrap();
    fs::rename(supervised.path("new"), supervised.path("wanted")).unwrap();
}

/// How many processes have written as many lines as are wanted.
fn count_of_reached(supervised: &Supervised, lines: usize) -> usize {
    let entries = fs::read_dir(supervised.dir.path()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.file_stem().is_some_and(|stem| stem == "reached"))
        .filter(|path| fs::read_to_string(path).unwrap() == lines.to_string())
        .count()
}

/// The processes that write the output to the file.
fn log_writers(supervised: &Supervised) -> Vec<i32> {
    let supervisor = supervised.pid();
    let is_writer = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name == "handover-log\n")
            && stat(*pid).is_some_and(|stat| stat.parent == supervisor)
    };
    all_pids().filter(is_writer).collect()
}

/// How many numbered lines each process has written, which are whole, in their order, and without a
/// gap. A note of lost lines stands for that many.
#[track_caller]
fn counted(text: &str) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for line in text.lines() {
        let (pid, rest) = line.split_once(' ').expect(line);
        let count: &mut usize = counts.entry(pid).or_default();
        if rest == "bye" {
            continue;
        }
        let (number, filler) = rest.split_once(' ').expect(line);
        assert_eq!(number.parse(), Ok(*count), "{line}");
        assert!(filler.is_empty() || filler.len() == *count % 300, "{line}");
        *count += 1;
    }
    assert!(text.is_empty() || text.ends_with('\n'));
    counts
}

#[test]
fn a_rotation_under_load_loses_no_line_and_tears_none() {
    const LINES: usize = 20_000;
    let mut supervised = start(COUNTS, &["--stderr", "app.log", "--processes", "2"]);
    want(&supervised, LINES);
    let mut rotated = Vec::new();
    for number in 0..20 {
        let old = supervised.path(&format!("app.log.{number}"));
        fs::rename(supervised.path("app.log"), &old).unwrap();
        supervised.succeed(&["reopen"]);
        // The answer says that nothing more is written to it.
        let size = fs::metadata(&old).unwrap().len();
        rotated.push((old, size));
        // A restart in between: the successors write as well.
        if number == 10 {
            supervised.succeed(&["restart", "--wait"]);
        }
    }
    assert_eq!(
        supervised.stop().code(),
        Some(0),
        "{}",
        supervised.read("log")
    );
    let mut text = String::new();
    for (old, size) in rotated {
        assert_eq!(fs::metadata(&old).unwrap().len(), size, "{old:?}");
        let part = fs::read_to_string(&old).unwrap();
        assert!(part.is_empty() || part.ends_with('\n'), "{old:?}");
        text += &part;
    }
    text += &supervised.read("app.log");
    let counts = counted(&text);
    assert_eq!(counts.len(), 4, "two processes and their successors");
    assert_eq!(text.matches(" bye\n").count(), 4);
    assert!(counts.values().all(|count| *count >= 20), "{counts:?}");
    let log = supervised.read("log");
    assert!(!log.contains("lost"), "{log}");
}

#[test]
fn the_output_survives_the_supervisor() {
    let mut supervised = start(COUNTS, &["--stderr", "app.log"]);
    want(&supervised, usize::MAX >> 1);
    let written = || supervised.read("app.log").lines().count() > 1000;
    supervised.until("many lines", written);
    let [writer] = log_writers(&supervised)[..] else {
        panic!("no log writer");
    };
    supervised.signal(Signal::KILL);
    assert_eq!(supervised.wait().code(), None);
    // The guardian has the program end, and the log writer ends with it.
    supervised.until("the end of the log writer", || !is_alive(writer));
    let text = supervised.read("app.log");
    assert!(text.ends_with(" bye\n"));
    assert_eq!(counted(&text).len(), 1);
}

#[test]
fn a_log_writer_that_is_killed_is_replaced() {
    let mut supervised = start(COUNTS, &["--stderr", "app.log"]);
    for lines in [10, 20, 30] {
        want(&supervised, lines);
        let written = || supervised.read("app.log").lines().count() == lines;
        supervised.until("the lines", written);
        let writers = log_writers(&supervised);
        assert_eq!(writers.len(), 1);
        signal(writers[0], Signal::KILL);
        let replaced = || {
            let now = log_writers(&supervised);
            now.len() == 1 && now != writers
        };
        // The next lines wait in the pipe meanwhile.
        want(&supervised, lines + 10);
        supervised.until("another log writer", replaced);
    }
    supervised.succeed(&["reopen"]);
    assert_eq!(supervised.stop().code(), Some(0));
    assert_eq!(
        counted(&supervised.read("app.log"))
            .into_values()
            .sum::<usize>(),
        60
    );
}

#[test]
fn an_upgrade_keeps_the_pipe_and_the_log_writer() {
    let mut supervised = start(COUNTS, &["--stderr", "app.log", "--log-to-file"]);
    want(&supervised, 1_000_000);
    let written = || supervised.read("app.log").lines().count() > 1000;
    supervised.until("many lines", written);
    let writers = log_writers(&supervised);
    supervised.succeed(&["upgrade", "--wait"]);
    assert_eq!(log_writers(&supervised), writers);
    fs::rename(supervised.path("app.log"), supervised.path("old")).unwrap();
    supervised.succeed(&["reopen"]);
    supervised.succeed(&["restart", "--wait"]);
    assert_eq!(
        supervised.stop().code(),
        Some(0),
        "{}",
        supervised.read("log")
    );
    let text = supervised.read("old") + &supervised.read("app.log");
    let (own, lines): (Vec<_>, Vec<_>) = text
        .split_inclusive('\n')
        .partition(|line| line.contains(" handover::"));
    assert_eq!(counted(&lines.concat()).len(), 2);
    // The log of the supervisor: from before the upgrade to the end.
    let own = own.concat();
    for part in [
        "started process",
        "runs version",
        "opened ",
        "the supervisor exits",
    ] {
        assert!(own.contains(part), "{part}: {own}");
    }
    assert_eq!(supervised.read("log"), "");
}

#[test]
fn a_full_disk_is_a_counted_note_and_blocks_nobody() {
    let mut supervised = start(COUNTS, &["--stderr", "/dev/full"]);
    want(&supervised, 20_000);
    let lost =
        |supervised: &Supervised| supervised.read("log").contains("lines of output were lost");
    supervised.until("the note", || lost(&supervised));
    supervised.succeed(&["restart", "--wait"]);
    assert_eq!(supervised.stop().code(), Some(0));
    let log = supervised.read("log");
    assert!(
        log.contains("cannot write to /dev/full: No space left"),
        "{log}"
    );

    // A file that is full, and then one that is not: no file may be longer than 16 blocks.
    let mut supervised = start_in(COUNTS, &["--stderr", "app.log"], "ulimit -f 16;");
    let write = |lines| {
        want(&supervised, lines);
        supervised.until("all lines", || count_of_reached(&supervised, lines) == 1);
    };
    write(1_000);
    supervised.until("the note", || lost(&supervised));
    fs::rename(supervised.path("app.log"), supervised.path("full")).unwrap();
    supervised.succeed(&["reopen"]);
    write(1_010);
    let noted = || supervised.read("app.log").lines().count() >= 10;
    supervised.until("lines in the new file", noted);
    assert_eq!(supervised.stop().code(), Some(0));
    let files = ["full", "app.log"].map(|name| supervised.read(name));
    // A line that was cut at the end of a full file is among the lost ones.
    let whole = files.iter().flat_map(|text| text.split_inclusive('\n'));
    let whole = whole.filter(|line| line.ends_with('\n') && line.trim_end() != "");
    let (notes, whole): (Vec<_>, Vec<_>) = whole.partition(|line| line.starts_with("handover: "));
    let why = "lines were lost: the file was too large\n";
    assert!(!notes.is_empty() && notes.iter().all(|note| note.ends_with(why)));
    // The new file may be full as well, of what was in the pipe.
    let log = supervised.read("log");
    let reports = log
        .lines()
        .filter_map(|line| line.split_once(" lines of output were lost"));
    let lost = reports.map(|(before, _)| before.rsplit(' ').next().unwrap().parse::<usize>());
    let lost: usize = lost.map(Result::unwrap).sum();
    // Those that are numbered, and "bye".
    assert_eq!(whole.len() + lost, 1_031, "{notes:?}\n{log}");
}

#[test]
fn what_is_no_log_file_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(made.success());
    std::os::unix::fs::symlink("/etc/passwd", path("link")).unwrap();
    let shared = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(dir.path(), shared).unwrap();
    for (name, why) in [
        ("fifo", "neither a regular file nor a character device"),
        ("none/app.log", "No such file"),
        (
            "link",
            "a link, in a directory to which other users can write",
        ),
        (".", "directory"),
    ] {
        for option in ["--stderr", "--stdout"] {
            let mut command = handover();
            command.args(["run", option]).arg(path(name));
            let output = support::output_of(command.args(["--", "true"]));
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{name}: {text}");
            assert!(
                text.contains("cannot append to") && text.contains(why),
                "{text}"
            );
        }
    }
}

#[test]
fn a_file_that_cannot_be_opened_again_is_an_answer_and_the_old_one_is_used() {
    let mut supervised = begin(COUNTS, &["--stderr", "logs/app.log"], "mkdir logs;");
    want(&supervised, 10);
    let first = || supervised.read("logs/app.log").lines().count() == 10;
    supervised.until("lines", first);
    fs::rename(supervised.path("logs"), supervised.path("moved")).unwrap();
    let output = supervised.ask(&["reopen"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("logs/app.log again: No such file"), "{text}");
    want(&supervised, 20);
    supervised.until("more lines", || {
        supervised.read("moved/app.log").lines().count() == 20
    });
    fs::create_dir(supervised.path("logs")).unwrap();
    supervised.succeed(&["reopen"]);
    assert_eq!(supervised.stop().code(), Some(0));
    assert!(supervised.read("logs/app.log").ends_with(" bye\n"));
}

#[test]
fn a_line_without_an_end_is_not_divided_unless_it_takes_long() {
    let program = r#"
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.write(2, b"begun")
ready()
while not os.path.exists("go"): time.sleep(0.002)
os.write(2, b" and ended\nnext\n")
while True: time.sleep(0.05)
"#;
    let mut supervised = start(program, &["--stderr", "app.log"]);
    supervised.until("the beginning", || supervised.read("app.log") == "begun");
    fs::rename(supervised.path("app.log"), supervised.path("old")).unwrap();
    supervised.signal(Signal::USR1);
    supervised.until("the new file", || supervised.path("app.log").exists());
    fs::write(supervised.path("go"), "").unwrap();
    supervised.until("the next line", || {
        supervised.read("app.log").ends_with("next\n")
    });
    // On a machine that is busy, the rest may have taken too long.
    let both = (supervised.read("old"), supervised.read("app.log"));
    let late = ("begun".to_owned(), " and ended\nnext\n".to_owned());
    let whole = ("begun and ended\n".to_owned(), "next\n".to_owned());
    assert!(both == whole || both == late, "{both:?}");
    assert_eq!(supervised.stop().code(), Some(0));
}

#[test]
fn standard_output_and_standard_error_may_have_one_file() {
    let program = r#"
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for number in range(100):
    os.write(1, b"out %d\n" % number)
    os.write(2, b"err %d\n" % number)
ready()
while True: time.sleep(0.05)
"#;
    let lines = |names: &[&str]| -> String {
        let line = |number: usize| {
            let lines = names.iter().map(|name| format!("{name} {number}\n"));
            lines.collect::<String>()
        };
        (0..100).map(line).collect()
    };
    for (options, out, err) in [
        (
            ["--stdout", "out", "--stderr", "err"],
            vec!["out"],
            vec!["err"],
        ),
        (
            ["--stdout", "out", "--stderr", "out"],
            vec!["out", "err"],
            vec![],
        ),
    ] {
        let mut supervised = start(program, &options);
        assert_eq!(supervised.stop().code(), Some(0));
        assert_eq!(supervised.read("out"), lines(&out));
        assert_eq!(supervised.read("err"), lines(&err));
    }
}

#[test]
fn a_program_of_another_user_writes_to_a_file_of_root() {
    if !geteuid().is_root() {
        return;
    }
    let program = r#"
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.write(2, b"%d\n" % os.geteuid())
with open("/dev/stderr", "w") as again: again.write("again\n")
try: open("logs/app.log", "a")
except PermissionError: os.write(2, b"refused\n")
ready()
while True: time.sleep(0.05)
"#;
    let shell = "chmod 755 . && mkdir -m 750 logs &&";
    let options = ["--stderr", "logs/app.log", "--user", "nobody"];
    let mut supervised = start_in(program, &options, shell);
    let whole = || supervised.read("logs/app.log").ends_with("refused\n");
    supervised.until("the lines", whole);
    fs::rename(supervised.path("logs/app.log"), supervised.path("old")).unwrap();
    supervised.succeed(&["reopen"]);
    supervised.succeed(&["restart", "--wait"]);
    supervised.until("the lines", whole);
    assert_eq!(
        supervised.stop().code(),
        Some(0),
        "{}",
        supervised.read("log")
    );
    let found = fs::metadata(supervised.path("logs/app.log")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o640));
    assert_eq!(supervised.read("old"), supervised.read("logs/app.log"));
    assert!(supervised.read("old").ends_with("\nagain\nrefused\n"));
}

#[test]
fn a_disk_that_hangs_delays_neither_the_supervisor_nor_a_restart() {
    let mut supervised = start(COUNTS, &["--stderr", "app.log"]);
    want(&supervised, 100);
    let lines = || supervised.read("app.log").lines().count();
    supervised.until("the lines", || lines() == 100);
    // As a process that waits for a disk.
    let writers = log_writers(&supervised);
    signal(writers[0], Signal::STOP);
    want(&supervised, 200);
    supervised.until("the lines of the first", || {
        count_of_reached(&supervised, 200) == 1
    });
    let output = supervised.ask(&["reopen"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("app.log is not open yet"), "{text}");
    supervised.succeed(&["restart", "--wait"]);
    supervised.until("the lines of the second", || {
        count_of_reached(&supervised, 200) == 2
    });
    assert_eq!(lines(), 100);
    signal(writers[0], Signal::CONT);
    supervised.succeed(&["reopen"]);
    assert_eq!(supervised.stop().code(), Some(0));
    let text = supervised.read("app.log");
    let counts = counted(&text);
    assert!(counts.len() == 2 && counts.values().all(|count| *count >= 200));
}
