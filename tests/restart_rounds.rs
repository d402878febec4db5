//! Restarts that are requested while another one runs, or while earlier generations drain, with real processes.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use generations::*;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

impl Generations {
    /// A restart whose successor warms up, and `callers` threads that ask for another one meanwhile.
    fn start_two_rounds(callers: usize) -> (Self, Who, i32) {
        let generations = Self::start(&[("by-handle", ""), ("stoppable", "")]);
        let first = generations.who();
        generations.mode("pause");
        generations.get("/restart-later");
        let at = generations.dir.path().join("at");
        eventually("the successor warms up", || at.exists());
        let successor = wait_for_child(first.pid);
        for _ in 0..callers {
            generations.get("/restart-later");
        }
        eventually("the callers wait", || {
            waiting_reporters(first.pid) == callers + 1
        });
        (generations, first, successor)
    }

    /// Lets the successor that warms up go on.
    fn go(&self) {
        fs::write(self.dir.path().join("go"), "").unwrap();
    }
}

/// How many threads wait for the result of a restart.
fn waiting_reporters(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter(|stat| stat.contains("(reporter) S ")).count()
}

#[test]
fn a_request_that_comes_after_the_exec_starts_another_round() {
    for callers in [1, 3] {
        let (mut generations, first, _) = Generations::start_two_rounds(callers);
        // The next version, which the running restart has not read.
        generations.mode("");
        generations.go();
        let third = generations.until_generation(3);
        let old = format!("old: Generation {{ number: 1, pid: {} }}", first.pid);
        let mut reports = vec![generations.until("report: ")];
        for _ in 0..callers {
            reports.push(generations.until("report: "));
        }
        let to_third = format!("new: Generation {{ number: 3, pid: {} }}", third.pid);
        let late = reports.iter().filter(|report| report.contains(&to_third));
        assert_eq!(late.count(), callers, "{reports:?}");
        let to_second = reports
            .iter()
            .filter(|report| report.contains("new: Generation { number: 2,"));
        assert_eq!(to_second.count(), 1, "{reports:?}");
        assert!(reports.iter().all(|report| report.contains(&old)));
        signal(third.pid, Signal::TERM);
        generations.wait();
    }
}

#[test]
fn the_callers_of_another_round_learn_of_its_failure() {
    let (mut generations, ..) = Generations::start_two_rounds(2);
    generations.mode("exit 3");
    generations.go();
    let mut reports: Vec<String> = (0..3).map(|_| generations.until("report: ")).collect();
    reports.sort();
    for report in &reports[..2] {
        assert!(report.starts_with("no report: "), "{reports:?}");
        // As complete as the reason that the process that has tried it gets.
        assert!(
            report.contains("its last output: first line | no configuration|Ended|"),
            "{reports:?}"
        );
        let status = "|Some(ExitStatus(unix_wait_status(768)))|";
        assert!(report.contains(status), "{reports:?}");
        let lines = r#"|["first line", "no configuration"]|None"#;
        assert!(report.contains(lines), "{reports:?}");
    }
    assert!(reports[2].contains("new: Generation { number: 2,"));
    let second = generations.until_generation(2);
    generations.mode("");
    generations.restart_by_handle(second.generation + 1);
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

#[test]
fn the_callers_of_another_round_learn_why_no_process_was_started() {
    let (mut generations, ..) = Generations::start_two_rounds(1);
    fs::remove_file(&generations.program).unwrap();
    generations.go();
    let mut reports = [generations.until("report: "), generations.until("report: ")];
    reports.sort();
    let cause = r#"|Start|None|[]|Some("No such file or directory (os error 2)")"#;
    assert!(reports[0].contains(cause), "{reports:?}");
    signal(generations.until_generation(2).pid, Signal::TERM);
    generations.wait();
}

#[test]
fn another_round_is_done_here_if_the_running_one_fails() {
    let (mut generations, _, successor) = Generations::start_two_rounds(1);
    generations.mode("");
    signal(successor, Signal::KILL);
    let failed = generations.until("report: ");
    assert!(failed.starts_with("no report: "), "{failed}");
    let report = generations.until("report: ");
    assert!(report.contains("new: Generation { number: 2,"), "{report}");
    let second = generations.until_generation(2);
    signal(second.pid, Signal::TERM);
    generations.wait();
}

#[test]
fn the_callers_of_another_round_learn_of_the_end_of_the_process_that_was_to_do_it() {
    let (mut generations, ..) = Generations::start_two_rounds(1);
    generations.mode("hang");
    generations.go();
    let second = generations.until_generation_beside(2);
    wait_for_child(second.pid);
    signal(second.pid, Signal::QUIT);
    let mut reports = [generations.until("report: "), generations.until("report: ")];
    reports.sort();
    assert!(reports[0].starts_with("no report: "), "{reports:?}");
    assert!(
        reports[1].contains("new: Generation { number: 2,"),
        "{reports:?}"
    );
}

impl Generations {
    /// Waits until this generation answers, with a successor that starts.
    fn until_generation_beside(&self, generation: u64) -> Who {
        let mut who = self.who();
        eventually("the next generation", || {
            who = self.who();
            who.generation == generation
        });
        who
    }

    /// Starts a request that is in progress until the test creates the file of that name.
    fn hold(&self, file: &str) -> TcpStream {
        let mut client = support::connect(self.addr());
        let request =
            format!("GET /hold?{file} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        // The request is in the hands of the process when it has accepted a later one.
        self.who();
        client
    }
}

/// What the processes tell their service manager.
fn notifications(path: &std::path::Path) -> Receiver<String> {
    let socket = UnixDatagram::bind(path).unwrap();
    let (sender, received) = crossbeam_channel::unbounded();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(size) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..size]).into_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    received
}

#[test]
fn a_restart_waits_for_the_generations_that_drain_and_cuts_off_none() {
    let dir = TempDir::new().unwrap();
    let notify = dir.path().join("notify");
    let notified = notifications(&notify);
    let options = [
        ("drain", "600000"),
        ("max-draining", "2"),
        ("by-handle", ""),
    ];
    let mut generations = Generations::start_with(&options, |command| {
        command.env("NOTIFY_SOCKET", &notify);
    });
    let mut held = Vec::new();
    for generation in 1..=2 {
        let who = generations.who();
        assert_eq!(who.generation, generation);
        held.push((generations.hold(&generation.to_string()), who));
        generations.restart_by_handle(generation + 1);
    }
    let third = generations.who();
    held.push((generations.hold("3"), third.clone()));
    generations.get("/restart-later");
    loop {
        let text = notified.recv_timeout(Duration::from_secs(60)).unwrap();
        if text.contains("a restart waits until one of the generations") {
            assert!(text.contains("1, 2 has drained"), "{text}");
            break;
        }
    }
    // This request joins: no program has been executed.
    generations.get("/restart-later");
    eventually("both callers wait", || waiting_reporters(third.pid) == 2);
    assert_eq!(generations.who().generation, 3);
    let finish = |file: &str, client: &mut TcpStream, who: &Who| {
        fs::write(generations.dir.path().join(file), "").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(
            answer.contains(&format!("\r\n\r\n{} ", who.pid)),
            "{answer}"
        );
    };
    let (client, who) = &mut held[0];
    finish("1", client, who);
    let fourth = generations.until_generation(4);
    let (live, _) = generations.processes();
    assert!(live.contains(&held[1].1.pid) && live.contains(&third.pid));
    for (file, (client, who)) in ["2", "3"].into_iter().zip(&mut held[1..]) {
        finish(file, client, who);
    }
    for _ in 0..4 {
        let report = generations.until("report: ");
        assert!(report.contains("forced: [], dropped: 0"), "{report}");
    }
    assert_eq!(generations.who(), fourth);
    signal(fourth.pid, Signal::TERM);
    generations.wait();
}

impl Generations {
    fn restart_by_handle(&self, generation: u64) {
        self.get("/restart-later");
        self.until_generation(generation);
    }
}

#[test]
fn restarts_in_quick_succession_cut_no_request() {
    let generations = Generations::start(&[]);
    let answers = load::under_slow_requests(generations.addr(), || {
        load::restart_in_quick_succession(|| {
            let pid = Pid::from_raw(generations.who().pid).unwrap();
            // The process may have been replaced, and have ended, since it answered.
            let _ = kill_process(pid, Signal::HUP);
        });
    });
    let last = generations.who().generation;
    println!("generation {last}, {answers} answers, none failed");
    assert!(last > 1);
    generations.end();
}

/// A drained process that stays only for the callers of a round that was passed on.
#[test]
fn a_stop_ends_a_process_that_waits_for_a_round_that_it_has_passed_on() {
    let (mut generations, first, _) = Generations::start_two_rounds(1);
    generations.mode("hang");
    generations.go();
    let second = generations.until_generation_beside(2);
    wait_for_child(second.pid);
    eventually("the first process has drained", || {
        !threads(first.pid).contains("handover-0")
    });
    generations.option(&format!("stop {}", first.pid), "");
    let mut reports = [generations.until("report: "), generations.until("report: ")];
    reports.sort();
    assert!(
        reports[0].contains("the server is being stopped|Stopping|"),
        "{reports:?}"
    );
    assert!(
        reports[1].contains("new: Generation { number: 2,"),
        "{reports:?}"
    );
    assert!(generations.wait_for_first().success());
    assert_eq!(generations.who(), second);
}

#[test]
fn a_signal_to_a_process_that_was_replaced_reaches_the_process_that_serves() {
    let mut generations = Generations::start(&[]);
    let first = generations.who();
    // The first two processes drain as long as these requests are in progress.
    let _first_held = generations.hold("first");
    generations.restart();
    let _second_held = generations.hold("second");
    for (signals, last) in [(Signal::HUP, 3), (Signal::USR2, 4)] {
        signal(first.pid, signals);
        generations.until_generation(last);
    }
    for file in ["first", "second"] {
        generations.option(file, "");
    }
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

/// Calls of a process that was replaced, a moment apart: each gets the result of its round.
#[test]
fn callers_in_a_process_that_was_replaced_get_the_result_of_their_round() {
    let mut generations =
        Generations::start(&[("by-handle", ""), ("grace", "60000"), ("stay", "")]);
    let first = generations.who();
    // The first process drains as long as this request is in progress, so that no caller comes too late.
    let _held = generations.hold("held");
    let mut clients = [(); 2].map(|()| support::connect(generations.addr()));
    for client in &mut clients {
        // The connections are those of the first process.
        client
            .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        assert!(one_answer(client).contains(&format!("\r\n\r\n{} 1 ", first.pid)));
    }
    generations.restart_by_handle(2);
    generations.mode("exit 3");
    get(&mut clients[0], "/restart-later");
    let failed = |report: &str| report.contains("no configuration");
    // The first process reports when it has drained, so that the failure comes first.
    let first_report = generations.until("report: ");
    assert!(failed(&first_report), "{first_report}");
    generations.mode("");
    get(&mut clients[1], "/restart-later");
    let third = generations.until_generation(3);
    generations.option("held", "");
    let reports = [generations.until("report: "), generations.until("report: ")];
    let new = |number: u64| format!("new: Generation {{ number: {number},");
    for number in [2, 3] {
        let own = reports
            .iter()
            .filter(|report| report.contains(&new(number)));
        assert_eq!(own.count(), 1, "{reports:?}");
    }
    let old = format!("old: Generation {{ number: 1, pid: {} }}", first.pid);
    assert!(
        reports.iter().all(|report| report.contains(&old)),
        "{reports:?}"
    );
    signal(third.pid, Signal::TERM);
    generations.wait();
}

/// The successor has accepted, so that it may have requests in progress, and has not taken over.
#[test]
fn a_restart_waits_for_a_successor_that_failed_but_not_for_ever() {
    let dir = TempDir::new().unwrap();
    let notify = dir.path().join("notify");
    let notified = notifications(&notify);
    let unlimited = u64::MAX.to_string();
    let options = [
        ("drain", &*unlimited),
        ("ready-timeout", "10000"),
        ("by-handle", ""),
    ];
    let generations = Generations::start_with(&options, |command| {
        command.env("NOTIFY_SOCKET", &notify);
    });
    generations.mode("early half takeover");
    let report = generations.get("/restart");
    assert!(report.starts_with("Ended|None|"), "{report}");
    assert!(report.ends_with("half a takeover"), "{report}");
    generations.mode("");
    generations.get("/restart-later");
    let waits = "a restart waits until the successor that failed, process ";
    let told = loop {
        let text = notified.recv_timeout(support::LIMIT).unwrap();
        if let Some((_, told)) = text.split_once(waits) {
            break told.to_owned();
        }
    };
    let pid: i32 = told.split(',').next().unwrap().parse().unwrap();
    assert!(stat(pid).is_some(), "it was not waited for");
    generations.until_generation(2);
    assert!(stat(pid).is_none(), "it was not killed");
}

/// The process that has aborted its successor is the only one that can end a successor that hangs.
#[test]
fn a_stop_ends_a_successor_that_was_aborted() {
    let options = [("by-handle", ""), ("ready-timeout", "3000")];
    let mut generations = Generations::start(&options);
    let first = generations.who().pid;
    generations.mode("early half takeover");
    let report = generations.get("/restart");
    assert!(report.ends_with("half a takeover"), "{report}");
    let (live, _) = generations.processes();
    assert!(live.iter().any(|pid| *pid != first), "it hangs: {live:?}");
    generations.get("/stop");
    generations.wait();
    assert!(TcpStream::connect(generations.addr()).is_err());
}
