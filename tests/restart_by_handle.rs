//! Restarts that a program asks for by its handle, with real processes, on every system that has restarts, also where
//! there are no signals.
#![cfg(feature = "http")]

#[path = "support/load.rs"]
mod load;
mod support;
#[path = "support/versions.rs"]
mod versions;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use load::{Kind, Load, To};
use versions::*;

/// Under this name, the clients of [`load`] look for what they need.
mod generations {
    pub(crate) use super::versions::{get as try_get, random_below};
}

/// The server that the tests start; not a test.
#[test]
fn child() {
    versions::serve_if_child();
}

#[test]
fn no_request_is_lost_by_restarts_under_load() {
    restart_under_load(&Versions::start(&[]), |versions| {
        versions.restart();
    });
}

/// The event object of the process that serves is set by another process, as an operator does it.
#[cfg(all(windows, feature = "signals"))]
#[test]
fn no_request_is_lost_by_restarts_that_event_objects_ask_for() {
    restart_under_load(&Versions::start(&[("signals", "")]), |versions| {
        let old = versions.who();
        versions::set_event(&format!(r"Local\a server.{}.restart", old.pid));
        versions.report(old.generation);
        assert_eq!(versions.who().generation, old.generation + 1);
    });
}

fn restart_under_load(versions: &Versions, restart: impl Fn(&Versions)) {
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(20, |n| n.parse().unwrap());
    let addr = To::Tcp(versions.addr());
    let kinds = [
        Kind::KeepAlive,
        Kind::Idle(Duration::from_millis(20)),
        Kind::PerRequest,
        Kind::Echo(16 << 10),
        Kind::Pipelined(8),
    ];
    let kinds: Vec<_> = kinds.iter().map(|kind| (addr.clone(), *kind)).collect();
    let load = Load::start(&kinds, 2);
    let mut times = Vec::new();
    for _ in 0..restarts {
        load.wait_for(100);
        let begin = Instant::now();
        restart(versions);
        times.push(begin.elapsed());
    }
    load.wait_for(100);
    let connections = load
        .seen
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    let answers = load.end();
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{answers} answers on {connections} connections, {restarts} restarts, median {median:?}, \
         longest {longest:?}"
    );
    versions.stop();
    for generation in 1..=restarts + 1 {
        let report = versions.report(generation);
        assert!(
            report.contains("0 forced, 0 dropped"),
            "{generation}: {report}"
        );
    }
    versions.until_port_is_free();
}

#[test]
fn a_successor_that_fails_costs_nothing_and_says_why() {
    let versions = Versions::start(&[("ready-timeout", "60000")]);
    let addr = versions.addr();
    let load = Load::start(
        &[
            (To::Tcp(addr), Kind::KeepAlive),
            (To::Tcp(addr), Kind::PerRequest),
        ],
        2,
    );
    let first = versions.who();
    // What the new version does, the failure, the exit code, and a part of what is said.
    for (mode, kind, code, text) in [
        ("early exit 3", "Ended", "Some(3)", "no configuration"),
        (
            "early exit 0",
            "Ended",
            "Some(0)",
            "exited before it called Restart::inherit",
        ),
        ("early panic", "Ended", "Some(101)", "it is all wrong"),
        (
            "early abort",
            "Ended",
            "",
            "exited before it called Restart::inherit",
        ),
        ("exit 3", "Ended", "Some(3)", "no configuration"),
        ("panic", "Ended", "Some(101)", "it is all wrong"),
        ("abort", "Ended", "", "exited before it was ready"),
        ("late panic", "Ended", "Some(101)", "it is all wrong"),
        ("late error", "Ended", "Some(1)", "the cache is cold"),
    ] {
        load.wait_for(20);
        versions.mode(mode);
        let [found, own, stderr, display] = versions.failed_restart();
        let what = format!("{mode}: {found}|{own}|{stderr}|{display}");
        println!("{what}");
        assert!(found == kind && own.contains(code), "{what}");
        assert!(display.contains(text) || stderr.contains(text), "{what}");
        assert_eq!(versions.who(), first, "{what}");
    }
    versions.mode("");
    load.wait_for(20);
    let second = versions.restart();
    assert_eq!(second.state, "1,");
    load.end();
    versions.stop();
}

#[test]
fn a_program_that_cannot_be_started_costs_nothing() {
    let versions = Versions::start(&[]);
    let first = versions.who();
    let aside = versions.path("aside");
    fs::rename(&versions.program, &aside).unwrap();
    let executable = fs::metadata(&aside).unwrap().permissions();
    for way in ["missing", "no program", "empty", "a directory"] {
        match way {
            "no program" => fs::write(&versions.program, "\x7fnothing that runs").unwrap(),
            "empty" => fs::write(&versions.program, "").unwrap(),
            "a directory" => fs::create_dir(&versions.program).unwrap(),
            _ => {}
        }
        if versions.program.is_file() {
            fs::set_permissions(&versions.program, executable.clone()).unwrap();
        }
        let [kind, code, _, display] = versions.failed_restart();
        println!("{way}: {display}");
        // A shell of Unix may run an empty file.
        assert!(
            kind == "Start" || way == "empty",
            "{way}: {kind}, {display}"
        );
        assert!(code == "None" || way == "empty", "{way}: {code}");
        assert_eq!(versions.who(), first, "{way}");
        match way {
            "missing" => {}
            "a directory" => fs::remove_dir(&versions.program).unwrap(),
            _ => fs::remove_file(&versions.program).unwrap(),
        }
    }
    fs::rename(&aside, &versions.program).unwrap();
    versions.restart();
    versions.stop();
}

#[test]
fn a_successor_that_hangs_is_ended_in_time() {
    let versions = Versions::start(&[("ready-timeout", "1000")]);
    let first = versions.who();
    for mode in ["early hang", "hang", "late hang"] {
        versions.mode(mode);
        let begin = Instant::now();
        let [kind, ..] = versions.failed_restart();
        assert_eq!(kind, "TimedOut", "{mode}");
        assert!(begin.elapsed() >= Duration::from_millis(1000), "{mode}");
        assert_eq!(versions.who(), first, "{mode}");
    }
    versions.mode("");
    // On a busy machine, a good one may take longer, too.
    eventually("a good one serves", || {
        versions.get("/restart") == "restarted"
    });
    versions.stop();
}

#[test]
fn a_start_does_not_outlive_its_time_after_the_old_process_was_killed() {
    for mode in ["early hang", "hang", "late hang"] {
        let mut versions = Versions::start(&[("ready-timeout", "1000")]);
        versions.mode(mode);
        let addr = versions.addr();
        std::thread::scope(|scope| {
            let (at, ended) = (versions.path("at"), versions.path("alive"));
            // On a busy machine, the time may pass before the successor gets there.
            scope.spawn(
                move || {
                    while !at.exists() && ended.exists() && get(addr, "/restart").is_ok() {}
                },
            );
            eventually("the successor hangs", || versions.path("at").exists());
            versions.first.kill().unwrap();
        });
        versions.first.wait().unwrap();
        println!("{mode}");
        versions.until_port_is_free();
    }
}

#[test]
fn a_successor_serves_if_the_old_process_is_killed() {
    for mode in ["pause", "late pause"] {
        let mut versions = Versions::start(&[]);
        versions.mode(mode);
        let addr = versions.addr();
        std::thread::scope(|scope| {
            scope.spawn(|| get(addr, "/restart"));
            eventually("the successor is there", || versions.path("at").exists());
            versions.first.kill().unwrap();
        });
        versions.first.wait().unwrap();
        // A client that connects now waits in the queue.
        let mut waiting = TcpStream::connect(addr).unwrap();
        ask(&mut waiting, "/who").unwrap();
        put(&versions.path("go"), b"");
        let mut answer = String::new();
        waiting.set_read_timeout(Some(support::LIMIT)).unwrap();
        waiting.read_to_string(&mut answer).unwrap();
        let who = Who::parse(&body_of(&answer).unwrap());
        assert_eq!(who.generation, 2, "{mode}");
        // It can be replaced as well.
        versions.mode("");
        assert_eq!(versions.restart().generation, 3, "{mode}");
        versions.stop();
        versions.until_port_is_free();
    }
}

#[test]
fn a_kill_of_the_old_process_while_it_drains_changes_nothing_for_the_new_one() {
    let mut versions = Versions::start(&[]);
    let mut held = support::connect(versions.addr());
    ask(&mut held, "/hold?go").unwrap();
    eventually("the request is there", || {
        versions.path("go.taken").exists()
    });
    let second = versions.restart();
    versions.first.kill().unwrap();
    versions.first.wait().unwrap();
    assert!(held.read(&mut [0; 8]).is_ok_and(|count| count == 0) || held.take_error().is_ok());
    assert_eq!(versions.who(), second);
    assert_eq!(versions.restart().generation, 3);
    versions.stop();
    versions.until_port_is_free();
}

#[test]
fn connections_drain() {
    let versions = Versions::start(&[("grace", "1000"), ("stay", "")]);
    let first = versions.who();
    let mut held = support::connect(versions.addr());
    ask(&mut held, "/hold?go").unwrap();
    let mut idle = support::connect(versions.addr());
    idle.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let mut head = [0; 15];
    idle.read_exact(&mut head).unwrap();
    eventually("the request is there", || {
        versions.path("go.taken").exists()
    });
    let second = versions.restart();
    assert_eq!((&*second.state, second.udp), ("1,", first.udp));
    // It is closed when its grace is over, though another request is in progress.
    idle.read_to_end(&mut Vec::new()).unwrap();
    assert!(!versions.path("report 1").exists());
    put(&versions.path("go"), b"");
    let mut answer = String::new();
    held.read_to_string(&mut answer).unwrap();
    assert_eq!(Who::parse(&body_of(&answer).unwrap()), first);
    let report = versions.report(1);
    assert!(report.contains("0 forced, 0 dropped"), "{report}");
    versions.stop();
}

#[test]
fn the_program_is_replaced_on_disk_under_its_name() {
    let versions = Versions::start(&[]);
    assert_eq!(versions.get("/version"), "1");
    // Where a running program cannot be overwritten, it can be renamed.
    let overwritten = fs::File::options().write(true).open(&versions.program);
    assert!(overwritten.is_err());
    for version in *b"23" {
        let old = versions.path(&format!("old {version}"));
        fs::rename(&versions.program, &old).unwrap();
        install(&versions.program, version);
        let who = versions.restart();
        versions.report(who.generation - 1);
        assert_eq!(versions.get("/version"), char::from(version).to_string());
        // Nobody runs it any more.
        eventually("the old program can be removed", || {
            fs::remove_file(&old).is_ok()
        });
    }
    versions.stop();
}

#[test]
fn a_subprocess_of_a_service_inherits_no_socket() {
    let versions = Versions::start(&[]);
    let mut others = Vec::new();
    // The first one has bound the listener, the second one has inherited it.
    for generation in [1, 2] {
        let other = support::connect(versions.addr());
        versions.get("/linger");
        eventually("the subprocess runs", || {
            fs::remove_file(versions.path("lingers")).is_ok()
        });
        others.push(other);
        if generation == 1 {
            versions.restart();
        }
    }
    let udp = versions.who().udp;
    versions.stop();
    versions.until_port_is_free();
    eventually("the port of the datagrams is free", || {
        UdpSocket::bind(("127.0.0.1", udp)).is_ok()
    });
    for mut other in others {
        // No process has the other end.
        support::assert_closed(&mut other);
    }
}

#[test]
fn arguments_and_environment_are_those_of_the_first_process() {
    let versions = Versions::start_with(
        &[("environment", "Handover_Told=by a file\nADDED=1\n")],
        |command| {
            command.args(awkward_arguments());
            command.env("HANDOVER_KEPT", "ä \"€\" 𝄞");
            command.env("HANDOVER_TOLD", "by the first environment");
        },
    );
    let shown = format!("{:?}", awkward_arguments());
    assert_eq!(versions.get("/args"), shown);
    let place = versions.get("/place");
    for _ in 0..2 {
        versions.restart();
        assert_eq!(versions.get("/args"), shown);
        assert_eq!(versions.get("/place"), place);
        assert_eq!(
            versions.get("/variable?HANDOVER_KEPT"),
            r#"Some("ä \"€\" 𝄞")"#
        );
        assert_eq!(versions.get("/variable?ADDED"), r#"Some("1")"#);
        assert_eq!(
            versions.get("/variable?Handover_Told"),
            r#"Some("by a file")"#
        );
        // Windows does not tell names by the case of their letters.
        let other_case = versions.get("/variable?HANDOVER_TOLD");
        let expected = match cfg!(windows) {
            true => "by a file",
            false => "by the first environment",
        };
        assert_eq!(other_case, format!("Some({expected:?})"));
    }
    versions.stop();
}

#[test]
fn what_a_successor_writes_to_standard_error_is_relayed_until_it_serves() {
    let mut versions = Versions::start_with(&[], |command| {
        command.stderr(Stdio::piped());
    });
    let mut stderr = versions.first.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    versions.mode("exit 3");
    let [_, _, tail, _] = versions.failed_restart();
    assert_eq!(tail, r#"["first line", "no configuration"]"#);
    versions.mode("");
    versions.restart();
    versions.restart();
    versions.stop();
    // All processes have closed it.
    let text = reader.join().unwrap().unwrap();
    assert!(
        text.contains("first line") && text.contains("no configuration"),
        "{text}"
    );
}

#[test]
fn a_port_that_a_server_has_is_refused_to_others() {
    let versions = Versions::start(&[]);
    assert!(TcpListener::bind(versions.addr()).is_err());
    versions.restart();
    assert!(TcpListener::bind(versions.addr()).is_err());
    versions.stop();
}
