//! Restarts that do not work, with real processes: bad new versions, kills and stops at every state.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use generations::*;
use load::{Kind, Load, To};

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
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
            "exited before it called Restart::inherit",
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

#[test]
fn a_successor_that_hangs_is_ended_in_time() {
    // A good one has to be ready within this time, also on a busy machine.
    let options = [("by-handle", ""), ("ready-timeout", "3000")];
    let generations = Generations::start(&options);
    let first = generations.who();
    let before = settled(first.pid);
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
        assert!(start.elapsed() >= Duration::from_secs(3), "{way}");
        assert_eq!(generations.who(), first, "{way}");
        assert_eq!(generations.processes(), (vec![first.pid], 0), "{way}");
        eventually("as many descriptors and threads as before", || {
            let now = resources(first.pid);
            (now.descriptors, now.threads) == (before.descriptors, before.threads)
        });
    }
    generations.mode("");
    signal_by_handle(&generations);
    signal(generations.until_generation(2).pid, Signal::KILL);
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
    let mut generations = Generations::start(&[("drain", "3000"), ("pid-file", "")]);
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
    eventually("the killed one is gone", || !is_alive(victim));
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
    let pid_file = generations.dir.path().join("pid");
    eventually("the pid file is the survivor's", || {
        fs::read_to_string(&pid_file).is_ok_and(|pid| pid.trim() == survivor.pid.to_string())
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

/// Whether the signals reach the restarter one by one or at once.
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

/// A release with another format of the launch record has started the process.
#[test]
fn a_launch_record_of_another_version_is_an_error() {
    for (kind, starter) in [("successor", "predecessor"), ("serve", "supervisor")] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("listen"), "127.0.0.1:0").unwrap();
        if starter == "supervisor" {
            fs::write(dir.path().join("supervised"), "").unwrap();
        }
        // The shell knows the id of the process.
        let record = format!(r#"{{"v":9,"type":"{kind}","pid":'$$'}}"#);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("HANDOVER='{record}' exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path());
        let output = support::output_of(&mut shell);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = format!(
            "the {starter} uses version 9 of the protocol, but this process uses version 1"
        );
        assert!(
            !output.status.success() && stderr.contains(&why),
            "{stderr}"
        );
    }
}

#[test]
fn a_successor_that_hangs_ends_though_its_predecessor_was_killed() {
    let check = |way| {
        // A predecessor that lives ends the successor after the same time.
        let mut generations = Generations::start(&[("ready-timeout", "5000")]);
        generations.mode(way);
        let first = generations.who().pid;
        signal(first, Signal::HUP);
        wait_for_child(first);
        signal(first, Signal::KILL);
        generations.wait();
    };
    thread::scope(|scope| {
        for way in ["early hang", "hang", "late hang"] {
            scope.spawn(move || check(way));
        }
    });
}

#[test]
fn a_successor_that_hangs_ends_though_the_process_that_waits_for_it_was_killed() {
    let generations = Generations::start(&[("ready-timeout", "5000")]);
    generations.mode("hang");
    let first = generations.who().pid;
    signal(first, Signal::HUP);
    let child = wait_for_child(first);
    let waiter = stat(child).unwrap().parent;
    assert_ne!(waiter, first);
    signal(waiter, Signal::KILL);
    eventually("the successor has ended", || !is_alive(child));
    generations.mode("");
    generations.restart();
    generations.end();
}

#[test]
fn a_subprocess_of_a_starting_successor_has_its_signals_and_a_standard_error_that_lasts() {
    let mut log = None;
    let mut generations = Generations::start_with(&[], |command| {
        let file = tempfile::NamedTempFile::new().unwrap();
        command.stderr(file.reopen().unwrap());
        log = Some(file);
    });
    generations.mode("sidecar");
    let second = generations.restart();
    let dir = generations.dir.path().to_owned();
    eventually("the sidecar", || dir.join("sidecar").exists());
    let sidecar = fs::read_to_string(dir.join("sidecar")).unwrap();
    let (blocked, pid) = sidecar.trim().split_once('\n').unwrap();
    let blocked = blocked.split_whitespace().nth(1).unwrap();
    assert_eq!(u64::from_str_radix(blocked, 16), Ok(0));
    // The predecessor has ended, which has relayed what the successor wrote.
    fs::write(dir.join("say"), "").unwrap();
    eventually("it has written", || dir.join("said").exists());
    let log = log.unwrap();
    let text = || fs::read_to_string(log.path()).unwrap();
    eventually("what it has written", || {
        text().contains("from the sidecar")
    });
    let pid: i32 = pid.parse().unwrap();
    eventually("the sidecar has ended", || !is_alive(pid));
    generations.mode("");
    signal(second.pid, Signal::TERM);
    generations.wait();
}

/// The process that started it may end before it.
#[test]
fn a_subprocess_that_gets_the_standard_error_has_it_longer_than_its_process() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let generations = Generations::start_with(&[], |command| {
        command.stderr(log.reopen().unwrap());
    });
    let dir = generations.dir.path().to_owned();
    let stderr_of = |pid: i32| fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
    let own = stderr_of(generations.who().pid);
    generations.mode("sidecar with standard error");
    let second = generations.restart();
    eventually("the sidecar", || dir.join("sidecar").exists());
    let sidecar = fs::read_to_string(dir.join("sidecar")).unwrap();
    let pid: i32 = sidecar.lines().nth(1).unwrap().parse().unwrap();
    assert_eq!(stderr_of(pid), own);
    generations.mode("");
    generations.restart();
    eventually("the process that started it has ended", || {
        !is_alive(second.pid)
    });
    fs::write(dir.join("say"), "").unwrap();
    eventually("it has written", || {
        fs::read_to_string(dir.join("said")).is_ok_and(|said| said == "0\n")
    });
    let text = fs::read_to_string(log.path()).unwrap();
    assert!(text.contains("from the sidecar"), "{text}");
    generations.end();
}

/// The subprocess holds the pipe by which the waiter sees that the successor has started.
#[test]
fn a_successor_with_a_subprocess_goes_on_though_its_predecessor_was_killed() {
    let mut generations = Generations::start(&[("ready-timeout", "5000")]);
    let dir = generations.dir.path().to_owned();
    generations.mode("early sidecar pause");
    let first = generations.who().pid;
    signal(first, Signal::HUP);
    let child = wait_for_child(first);
    eventually("the subprocess runs", || dir.join("at").exists());
    signal(first, Signal::KILL);
    generations.mode("");
    fs::write(dir.join("go"), "").unwrap();
    assert_eq!(generations.until_generation(2).pid, child);
    // Longer than the start may last.
    thread::sleep(Duration::from_millis(5500));
    assert_eq!(generations.who().pid, child);
    fs::write(dir.join("say"), "").unwrap();
    signal(child, Signal::TERM);
    generations.wait();
}

/// Recorded, and handled when the server is there.
#[test]
fn a_signal_during_the_start_of_a_successor_is_handled_when_it_serves() {
    let generations = Generations::start(&[]);
    generations.mode("pause");
    let first = generations.who().pid;
    signal(first, Signal::HUP);
    let child = wait_for_child(first);
    let (at, go) = (
        generations.dir.path().join("at"),
        generations.dir.path().join("go"),
    );
    eventually("it has called Restart::inherit", || at.exists());
    for what in [Signal::USR1, Signal::HUP] {
        signal(child, what);
    }
    generations.mode("");
    fs::write(&go, "").unwrap();
    // SIGHUP restarts it once more.
    let third = generations.until_generation(3);
    assert_ne!(third.pid, child);
    generations.end();
}
