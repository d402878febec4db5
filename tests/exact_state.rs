//! State that goes to the successor without a lost change, with real processes: each command that a client was told of
//! is counted once.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use generations::*;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

fn restarts(default: u64) -> u64 {
    std::env::var("HANDOVER_TEST_RESTARTS").map_or(default, |n| n.parse().unwrap())
}

/// Servers of one count, beside that of HTTP. `setting`: see `Increments`.
fn start(setting: &str) -> Generations {
    Generations::start(&[("exact", setting)])
}

/// A client of one of them.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(generations: &Generations, server: usize) -> Self {
        let addr: SocketAddr = generations.addrs[1 + server].parse().unwrap();
        Self(BufReader::new(support::connect(addr)))
    }

    #[track_caller]
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The count, and the process that has answered.
    #[track_caller]
    fn answer(&mut self) -> (u64, i32) {
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        let words: Vec<&str> = answer.split_whitespace().collect();
        let [count, pid] = words[..] else {
            panic!("{answer:?}");
        };
        (count.parse().unwrap(), pid.parse().unwrap())
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> (u64, i32) {
        self.send(&format!("{line}\n"));
        self.answer()
    }

    #[track_caller]
    fn until_end(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }
}

/// Clients that send one command after the other.
struct Load {
    ends: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Duration>>,
    /// The longest time for an answer since the last look, in microseconds.
    slowest: Arc<AtomicU64>,
}

impl Load {
    fn start(generations: &Generations, servers: usize, clients: usize) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let slowest = Arc::new(AtomicU64::new(0));
        let connect = |index| {
            let mut client = Client::connect(generations, index % servers);
            let own = (
                Arc::clone(&ends),
                Arc::clone(&acknowledged),
                Arc::clone(&slowest),
            );
            thread::spawn(move || {
                let (ends, acknowledged, slowest) = own;
                let (mut last, mut longest) = (0, Duration::ZERO);
                while !ends.load(SeqCst) {
                    let began = Instant::now();
                    let (count, _) = client.ask("incr");
                    assert!(count > last, "{count} after {last}");
                    last = count;
                    longest = longest.max(began.elapsed());
                    slowest.fetch_max(began.elapsed().as_micros() as u64, SeqCst);
                    acknowledged.fetch_add(1, SeqCst);
                }
                longest
            })
        };
        let clients = (0..clients).map(connect).collect();
        Self {
            ends,
            acknowledged,
            clients,
            slowest,
        }
    }

    fn wait_for(&self, more: u64) {
        let wanted = self.acknowledged.load(SeqCst) + more;
        eventually("more commands", || self.acknowledged.load(SeqCst) >= wanted);
    }

    /// The number of commands that were acknowledged. Each client has kept its connection.
    fn end(self) -> u64 {
        self.ends.store(true, SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        self.acknowledged.load(SeqCst)
    }
}

/// Restarts under load, and compares the count with what the clients know.
fn count_over_restarts(generations: &mut Generations, clients: usize) {
    let load = Load::start(generations, 2, clients);
    let (mut slowest, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..restarts(20) {
        load.wait_for(100);
        load.slowest.store(0, SeqCst);
        let old = generations.who();
        generations.get("/restart-later");
        let report = generations.until("report: ");
        pauses.push(pause_in(&report));
        assert_eq!(generations.who().generation, old.generation + 1);
        load.wait_for(20);
        slowest.push(Duration::from_micros(load.slowest.load(SeqCst)));
    }
    load.wait_for(100);
    let acknowledged = load.end();
    let (count, _) = Client::connect(generations, 0).ask("get");
    assert_eq!(count, acknowledged);
    println!("{acknowledged} commands");
    print_quantiles("the pause", pauses);
    print_quantiles("the slowest answer", slowest);
}

/// The pause in the report of a restart.
#[track_caller]
fn pause_in(report: &str) -> Duration {
    let (_, rest) = report.split_once("paused_for: Some(").expect(report);
    let (text, _) = rest.split_once(')').unwrap();
    let unit = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().unwrap();
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        _ => 1e-6,
    };
    Duration::from_secs_f64(number * seconds)
}

fn print_quantiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let last = times.len() - 1;
    let [p50, p90, p99, max] = [50, 90, 99, 100].map(|share| times[last * share / 100]);
    println!("{what}: p50 {p50:?}, p90 {p90:?}, p99 {p99:?}, max {max:?}");
}

#[test]
fn each_acknowledged_command_is_counted_once() {
    let mut generations = start("1000 20000 127.0.0.1:0 127.0.0.1:0");
    count_over_restarts(&mut generations, 8);
    generations.end();
}

/// Each group has a queue and a poller of its own, all of which come to rest.
#[test]
fn the_workers_of_all_groups_pause() {
    let mut generations = start("1000 20000 groups=3 127.0.0.1:0 127.0.0.1:0");
    count_over_restarts(&mut generations, 8);
    generations.end();
}

#[test]
fn a_large_state_goes_along() {
    let mut generations = start("0 20000 ballast=67108864 127.0.0.1:0");
    let load = Load::start(&generations, 1, 4);
    let mut pauses = Vec::new();
    for _ in 0..2 {
        load.wait_for(100);
        generations.get("/restart-later");
        pauses.push(pause_in(&generations.until("report: ")));
    }
    load.wait_for(100);
    let acknowledged = load.end();
    let (count, _) = Client::connect(&generations, 0).ask("get");
    assert_eq!(count, acknowledged);
    print_quantiles("the pause for 64 MiB", pauses);
    generations.end();
}

#[test]
fn a_restart_whose_state_takes_longer_than_the_pause_may_last_changes_nothing() {
    let mut generations = start("0 5 ballast=67108864 127.0.0.1:0");
    let first = generations.who().pid;
    let load = Load::start(&generations, 1, 4);
    load.wait_for(100);
    let outcome = fail(&mut generations);
    let why = "the export and the import of the state took longer";
    assert!(
        outcome.contains(why) && outcome.contains("|State|"),
        "{outcome}"
    );
    load.wait_for(100);
    let acknowledged = load.end();
    assert_eq!(
        Client::connect(&generations, 0).ask("get"),
        (acknowledged, first)
    );
    generations.end();
}

/// Asks for a restart that fails, and returns its outcome.
fn fail(generations: &mut Generations) -> String {
    generations.get("/restart-later");
    generations.until("no report: ")
}

#[test]
fn the_old_process_goes_on_with_all_changes_if_the_successor_fails() {
    for (mode, limit, why) in [
        (
            "import error",
            20_000,
            "cannot import the state: of another version|Ended",
        ),
        (
            "import panic",
            20_000,
            "the import of the state panicked: of another version|Ended",
        ),
        (
            "import kill",
            20_000,
            "the successor exited before it had taken over",
        ),
        (
            "import hang",
            500,
            "the import of the state took longer than the limit of the pause, 0.5 s",
        ),
        (
            "no exact state",
            20_000,
            "the successor does not take an exact state",
        ),
    ] {
        let mut generations = start(&format!("0 {limit} 127.0.0.1:0 127.0.0.1:0"));
        let first = generations.who().pid;
        let load = Load::start(&generations, 2, 4);
        load.wait_for(100);
        generations.mode(mode);
        let outcome = fail(&mut generations);
        assert!(outcome.contains(why), "{mode}: {outcome}");
        load.wait_for(100);
        generations.mode("");
        generations.restart();
        load.wait_for(100);
        let acknowledged = load.end();
        let (count, pid) = Client::connect(&generations, 1).ask("get");
        assert_eq!(count, acknowledged, "{mode}");
        assert_ne!(pid, first, "{mode}");
        generations.end();
    }
}

#[test]
fn a_handler_that_runs_for_too_long_makes_the_restart_fail() {
    let mut generations = start("0 300 127.0.0.1:0");
    let first = generations.who().pid;
    let mut slow = Client::connect(&generations, 0);
    let mut other = Client::connect(&generations, 0);
    assert_eq!(other.ask("incr"), (1, first));
    slow.send("slow 3000\n");
    let mut begun = String::new();
    slow.0.read_line(&mut begun).unwrap();
    let outcome = fail(&mut generations);
    let why = "a handler ran for longer than the limit of the pause, 0.3 s";
    assert!(
        outcome.contains(why) && outcome.contains("|State|"),
        "{outcome}"
    );
    assert_eq!(other.ask("incr"), (2, first));
    assert_eq!(slow.answer(), (3, first));
    let second = generations.restart().pid;
    assert_eq!(other.ask("incr"), (4, second));
    assert_eq!(slow.ask("incr"), (5, second));
    generations.end();
}

#[test]
fn a_connection_that_cannot_move_is_closed_before_the_export() {
    let mut generations = start("0 20000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut other = Client::connect(&generations, 0);
    assert_eq!(other.ask("incr"), (1, first));
    let mut bound = Client::connect(&generations, 0);
    assert_eq!(bound.ask("wake"), (1, first));
    // The export comes before the import.
    generations.mode("import error");
    fail(&mut generations);
    assert_eq!(bound.until_end(), "bye\n");
    assert_eq!(other.ask("incr"), (2, first));
    generations.mode("");
    generations.restart();
    generations.end();
}

/// The service has consumed nothing of the message. Nobody waits for the rest.
#[test]
fn a_part_of_a_message_moves_with_its_connection() {
    let mut generations = start("0 60000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut partial = Client::connect(&generations, 0);
    partial.send("in");
    let mut other = Client::connect(&generations, 0);
    assert_eq!(other.ask("incr"), (1, first));
    generations.mode("import error");
    fail(&mut generations);
    partial.send("cr\nin");
    assert_eq!(partial.answer(), (2, first));
    generations.mode("");
    generations.get("/restart-later");
    let pause = pause_in(&generations.until("report: "));
    assert!(pause < Duration::from_secs(30), "{pause:?}");
    let second = generations.until_generation(2).pid;
    partial.send("cr\n");
    assert_eq!(partial.answer(), (3, second));
    assert_eq!(other.ask("incr"), (4, second));
    generations.end();
}

/// The message has come to its end, and all workers are in calls that outlast the time for messages in progress.
#[test]
fn a_message_that_waits_for_a_worker_moves_with_its_connection() {
    let mut generations = start("0 4000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut partial = Client::connect(&generations, 0);
    partial.send("in");
    let connect = |_| Client::connect(&generations, 0);
    let mut slow: Vec<Client> = (0..4).map(connect).collect();
    let (at, go) = (
        generations.dir.path().join("at"),
        generations.dir.path().join("go"),
    );
    generations.mode("late pause");
    generations.get("/restart-later");
    eventually("the successor is almost ready", || at.exists());
    for client in &mut slow {
        client.send("slow 3000\n");
        let mut begun = String::new();
        client.0.read_line(&mut begun).unwrap();
    }
    partial.send("cr\n");
    std::fs::write(go, "").unwrap();
    let pause = pause_in(&generations.until("report: "));
    assert!(pause > Duration::from_secs(2), "{pause:?}");
    for (client, count) in slow.iter_mut().zip(1..) {
        let (_, pid) = client.answer();
        assert_eq!(pid, first, "{count}");
    }
    let second = generations.until_generation(2).pid;
    assert_eq!(partial.answer(), (5, second));
    generations.end();
}

#[test]
fn a_message_that_was_consumed_in_part_waits_for_a_restart_that_fails_and_ends_with_one_that_succeeds()
 {
    let mut generations = start("0 1000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut partial = Client::connect(&generations, 0);
    let begin = |partial: &mut Client| {
        partial.send("part\n");
        let mut more = String::new();
        partial.0.read_line(&mut more).unwrap();
        assert_eq!(more, "more\n");
    };
    begin(&mut partial);
    let mut other = Client::connect(&generations, 0);
    assert_eq!(other.ask("incr"), (1, first));
    generations.mode("import error");
    fail(&mut generations);
    assert_eq!(partial.ask("incr"), (2, first));
    begin(&mut partial);
    generations.mode("");
    let second = generations.restart().pid;
    assert_eq!(partial.until_end(), "");
    assert_eq!(other.ask("incr"), (3, second));
    eventually("the old process ends", || !is_alive(first));
    generations.end();
}

#[test]
fn connections_of_processes_that_move_none_are_closed_before_the_export() {
    let options = [("exact", "0 20000 127.0.0.1:0"), ("stay", "")];
    let mut generations = Generations::start(&options);
    let first = generations.who().pid;
    let mut client = Client::connect(&generations, 0);
    assert_eq!(client.ask("incr"), (1, first));
    generations.mode("import error");
    fail(&mut generations);
    assert_eq!(client.until_end(), "");
    generations.mode("");
    let mut client = Client::connect(&generations, 0);
    assert_eq!(client.ask("incr"), (2, first));
    let second = generations.restart().pid;
    assert_eq!(client.until_end(), "");
    let mut client = Client::connect(&generations, 0);
    assert_eq!(client.ask("incr"), (3, second));
    generations.end();
}

#[test]
fn connections_that_the_successor_refuses_are_closed() {
    let generations = start("0 20000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(&generations, 0)).collect();
    for (client, count) in clients.iter_mut().zip(1..) {
        assert_eq!(client.ask("incr"), (count, first));
    }
    generations.mode("descriptors 12");
    signal(first, Signal::HUP);
    eventually("the old process ends", || !is_alive(first));
    let mut count = 40;
    for client in &mut clients {
        let mut answer = String::new();
        client.0.get_mut().write_all(b"incr\n").unwrap_or_default();
        if let Ok(1..) = client.0.read_line(&mut answer) {
            count += 1;
            assert!(answer.starts_with(&format!("{count} ")), "{answer}");
        }
    }
    assert!((41..80).contains(&count), "{count}");
    drop(clients);
    generations.end();
}

#[test]
fn the_successor_serves_with_the_state_if_the_old_process_dies_after_the_export() {
    let generations = start("0 20000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut client = Client::connect(&generations, 0);
    for count in 1..10 {
        assert_eq!(client.ask("incr"), (count, first));
    }
    generations.mode("import and kill the predecessor");
    signal(first, Signal::HUP);
    eventually("the old process ends", || !is_alive(first));
    let second = generations.who().pid;
    let mut client = Client::connect(&generations, 0);
    assert_eq!(client.ask("incr"), (10, second));
    generations.mode("");
    generations.end();
}

/// The count of the old process is what it passes, its generation.
#[test]
fn a_snapshot_of_a_predecessor_without_exact_state_is_imported() {
    let options = [("exact", "0 20000 127.0.0.1:0"), ("mode", "no exact state")];
    let generations = Generations::start(&options);
    let mut client = Client::connect(&generations, 0);
    client.ask("incr");
    generations.mode("import what was passed");
    let second = generations.restart().pid;
    // The first connection may not have moved yet, and is answered by either process.
    let mut new_client = Client::connect(&generations, 0);
    assert_eq!(new_client.ask("incr"), (2, second));
    assert_eq!(new_client.ask("incr"), (3, second));
    drop(client);
    generations.end();
}

/// What comes in the pause is answered once, by whichever process serves.
#[test]
fn a_stop_in_the_pause_ends_it() {
    let mut generations = start("0 20000 127.0.0.1:0");
    let first = generations.who().pid;
    let mut client = Client::connect(&generations, 0);
    assert_eq!(client.ask("incr"), (1, first));
    generations.mode("import hang");
    generations.get("/restart-later");
    let child = wait_for_child(first);
    client.send("incr\n");
    signal(first, Signal::TERM);
    let outcome = generations.until("no report: ");
    assert!(outcome.contains("Stopping"), "{outcome}");
    assert_eq!(client.answer(), (2, first));
    assert_eq!(client.until_end(), "");
    assert!(!is_alive(child));
    generations.wait();
}
