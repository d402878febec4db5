//! What the supervisor is tried with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use handover::Supervisor;
use libtest_mimic::Trial;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::generations::*;
use super::load::{self, EndOnDrop, Kind, Load, To};
use super::releases::Releases;
use super::support;

macro_rules! trials {
    ($($test:ident,)*) => {
        vec![$(Trial::test(stringify!($test), || { $test(); Ok(()) })),*]
    };
}

pub(crate) fn all() -> Vec<Trial> {
    trials![
        a_crash_costs_what_was_in_flight_and_nobody_is_refused,
        however_a_process_ends_another_one_is_started,
        clients_wait_while_nobody_serves,
        an_exit_code_says_that_it_is_of_no_use,
        success_may_mean_the_end,
        a_program_that_does_not_come_up_is_tried_ever_more_seldom,
        a_process_that_does_not_become_ready_is_ended,
        a_wedged_pool_is_ended_and_its_neighbours_serve_on,
        a_pool_that_waits_for_its_clients_is_not_wedged,
        a_process_that_stands_still_is_aborted,
        no_request_is_lost_by_restarts_and_upgrades,
        upgrades_lose_nothing_and_a_bad_one_changes_nothing,
        an_upgrade_in_the_middle_of_a_move_changes_nothing_of_it,
        a_process_that_dies_during_an_upgrade_is_replaced,
        an_upgrade_goes_by_the_new_settings,
        a_restart_during_the_start_ends_with_ready,
        an_exit_code_counts_also_behind_a_stop,
        a_bad_version_costs_nothing_and_says_why,
        several_processes_are_replaced_one_after_another,
        clients_keep_their_connections_over_restarts,
        each_acknowledged_command_is_counted_once_over_restarts,
        a_listener_that_a_new_version_does_not_want_is_closed,
        the_longest_and_the_shortest_times_are_no_overflow,
        a_process_that_has_served_many_requests_is_replaced,
        settings_that_mean_nothing_are_refused_by_name,
        every_process_starts_with_the_old_limit_of_descriptors,
        a_stop_finishes_what_is_in_progress,
        a_stop_that_arrives_twice_finishes_what_is_in_progress,
        a_stop_at_any_other_time_leaves_nobody,
        a_process_that_is_stopped_during_its_restart_is_replaced_all_the_same,
        a_process_that_stops_by_itself_is_replaced_before_it_has_finished,
        the_status_says_how_many_connections_a_replaced_process_has,
        a_kill_at_any_time_leaves_no_orphan,
        strangers_are_buried,
        process_1_of_a_container_is_a_good_init,
        a_successor_has_a_group_of_its_own_and_what_its_predecessor_leaves_is_ended,
        what_the_supervisor_was_told_is_not_for_those_that_serve,
        the_control_socket_is_for_its_owner,
        the_pid_file_is_the_supervisors,
        an_upgrade_leaves_nothing_of_settings_that_are_gone,
        an_upgrade_stores_the_listeners_of_the_settings_again,
        many_signals_at_once_are_one_restart_and_one_upgrade,
        a_restart_during_a_restart_starts_another_round,
        a_restart_replaces_a_process_that_is_starting,
        no_restart_cuts_the_requests_of_an_earlier_generation,
        a_stall_of_all_processes_aborts_nobody,
        a_restart_runs_the_wrapper_of_a_server_again,
        restarts_in_quick_succession_cut_no_request,
        a_process_is_started_in_the_release_that_is_current_then,
        the_environment_file_is_read_at_each_start,
    ]
}

/// A supervised server.
struct Supervised {
    generations: Generations,
}

impl Supervised {
    fn start(settings: &str) -> Self {
        Self::start_with(settings, &[])
    }

    fn start_with(settings: &str, options: &[(&str, &str)]) -> Self {
        Self::start_by(settings, options, |_| {})
    }

    fn start_by(
        settings: &str,
        options: &[(&str, &str)],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut options = options.to_vec();
        options.push(("supervised", settings));
        let mut log = None;
        let generations = Generations::start_with(&options, |command| {
            prepare(command);
            let file = tempfile::NamedTempFile::new().unwrap();
            command.stderr(file.reopen().unwrap());
            log = Some(file);
        });
        let path = generations.dir.path().join("log");
        log.unwrap().persist(path).unwrap();
        let supervised = Self { generations };
        supervised.until_state("serving");
        supervised
    }

    fn pid(&self) -> i32 {
        self.generations.first.id() as i32
    }

    fn addr(&self) -> SocketAddr {
        self.generations.addr()
    }

    fn who(&self) -> Who {
        self.generations.who()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.generations.dir.path().join("log")).unwrap()
    }

    fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Asks over the control socket; nothing if the supervisor does not answer.
    fn ask(&self, line: &str) -> Option<String> {
        let path = self.generations.dir.path().join("control");
        let mut socket = UnixStream::connect(path).ok()?;
        socket.set_read_timeout(Some(support::LIMIT)).unwrap();
        socket.write_all(format!("{line}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Asks for something that is to go well.
    #[track_caller]
    fn succeed(&self, line: &str) {
        let outcome = self.ask(line).unwrap();
        assert!(
            outcome.contains(r#""ok":true"#),
            "{outcome}: {}",
            self.log()
        );
    }

    fn until_status(&self, what: &str) -> String {
        let seen = Mutex::new(String::new());
        eventually(what, || {
            let status = self.ask("status").unwrap_or_default();
            let holds = status.contains(what);
            *seen.lock() = status;
            holds
        });
        seen.into_inner()
    }

    fn until_state(&self, state: &str) -> String {
        self.until_status(&format!(r#""state":"{state}","uptime"#))
    }

    /// The processes that serve, as the supervisor has them.
    fn pids(&self) -> Vec<i32> {
        let status = self.ask("status").unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let processes = status["processes"].as_array().unwrap().iter();
        let pids = processes.filter_map(|process| process["pid"].as_i64());
        pids.map(|pid| pid.try_into().unwrap()).collect()
    }

    /// Sends a request that the process that serves answers when there is a file of this name. Returns
    /// the client and the process.
    fn hold_request(&self, name: &str) -> (TcpStream, i32) {
        let dir = self.generations.dir.path();
        let taken = dir.join(format!("{name}-taken"));
        loop {
            let mut client = support::connect(self.addr());
            let head = format!("GET /hold?{name} HTTP/1.1\r\nHost: test\r\n");
            write!(client, "{head}Connection: close\r\n\r\n").unwrap();
            eventually("the request is taken", || taken.exists());
            let pid = fs::read_to_string(&taken).unwrap().parse().unwrap();
            fs::remove_file(&taken).unwrap();
            if self.pids() == [pid] {
                return (client, pid);
            }
            // A process that was replaced a moment ago has accepted the connection.
            self.generations.option(name, "");
            client.read_to_string(&mut String::new()).unwrap();
            fs::remove_file(dir.join(name)).unwrap();
        }
    }

    /// Stops it, and looks whether anybody is left.
    fn end(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(
            self.generations.wait_for_first().code(),
            Some(0),
            "{}",
            self.log()
        );
        self.generations.wait();
        assert!(!self.generations.dir.path().join("control").exists());
    }

    /// Waits until a process other than this one serves.
    fn until_other(&self, than: i32) -> Who {
        let other = Mutex::new(None);
        eventually("another process serves", || {
            let text = try_get(self.addr(), "/who");
            let who = text.ok().map(|text| Who::parse(&text));
            *other.lock() = who.filter(|who| who.pid != than);
            other.lock().is_some()
        });
        other.into_inner().unwrap()
    }
}

/// CPU time of a process so far.
fn cpu(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn refused(supervised: &Supervised) -> bool {
    std::net::TcpStream::connect(supervised.addr()).is_err()
}

/// Says the signal, and waits until the process has ended.
fn kill(pid: i32, what: Signal) {
    signal(pid, what);
    eventually("the end of a process", || !is_alive(pid));
}

fn a_crash_costs_what_was_in_flight_and_nobody_is_refused() {
    let crashes = std::env::var("HANDOVER_TEST_CRASHES").map_or(5, |n| n.parse().unwrap());
    let supervised = Supervised::start("");
    let (first, addr) = (supervised.pid(), supervised.addr());
    let ends = AtomicBool::new(false);
    let (answers, connections) = (AtomicU64::new(0), AtomicU64::new(0));
    // When the processes died: what was asked for before, and is not answered after.
    let (crashed, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let mut times = Vec::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ends.load(SeqCst) {
                    // The process that dies may have accepted the connection at once.
                    let start = Instant::now();
                    let mut client = std::net::TcpStream::connect(addr).expect("nobody is refused");
                    connections.fetch_add(1, SeqCst);
                    match exchange(&mut client, "/") {
                        Ok(_) => drop(answers.fetch_add(1, SeqCst)),
                        Err(error) => {
                            failed
                                .lock()
                                .push((start, Instant::now(), error.to_string()))
                        }
                    }
                }
            });
        }
        let _ends = EndOnDrop(&ends);
        for crash in 0..crashes {
            // Once a second, and so that the process has been healthy.
            thread::sleep(Duration::from_millis(1000));
            let old = supervised.who().pid;
            let before = Instant::now();
            let _ = try_get(addr, "/crash");
            let dead = Instant::now();
            crashed.lock().push((before, dead));
            let new = supervised.until_other(old);
            times.push(dead.elapsed());
            assert_eq!(new.generation, crash + 2);
        }
    });
    times.sort_unstable();
    let (crashed, failed) = (crashed.into_inner(), failed.into_inner());
    println!(
        "{crashes} crashes: {} answers on {} connections, {} failed, from death to an answer {:?}, {:?} at most",
        answers.load(SeqCst),
        connections.load(SeqCst),
        failed.len(),
        times[times.len() / 2],
        times[times.len() - 1],
    );
    for (start, end, error) in failed {
        let in_flight = |(before, dead): &(Instant, Instant)| start <= *dead && *before <= end;
        assert!(
            crashed.iter().any(in_flight),
            "a request failed at another time: {error} after {:?}; since the crashes {:?}",
            end - start,
            crashed
                .iter()
                .map(|(_, dead)| start.saturating_duration_since(*dead))
                .collect::<Vec<_>>()
        );
    }
    assert_eq!(supervised.pid(), first);
    eventually("no zombies", || supervised.generations.processes().1 == 0);
    supervised.end();
}

fn however_a_process_ends_another_one_is_started() {
    let supervised = Supervised::start("");
    let mut old = supervised.who().pid;
    for what in [Signal::KILL, Signal::ABORT, Signal::TERM] {
        signal(old, what);
        old = supervised.until_other(old).pid;
    }
    for path in ["/exit?0", "/exit?3", "/crash"] {
        assert!(try_get(supervised.addr(), path).is_err());
        old = supervised.until_other(old).pid;
    }
    let log = supervised.log();
    for why in ["signal: 9", "exit status: 0", "exit status: 3", "signal: 6"] {
        assert!(log.contains(why), "{why}: {log}");
    }
    supervised.end();
}

fn clients_wait_while_nobody_serves() {
    let supervised = Supervised::start("");
    let old = supervised.who().pid;
    supervised.generations.mode("early pause");
    signal(old, Signal::KILL);
    supervised.until_state("starting");
    let mut waiting = support::connect(supervised.addr());
    assert!(!refused(&supervised));
    fs::write(supervised.generations.dir.path().join("go"), "").unwrap();
    let who = Who::parse(&get(&mut waiting, "/who"));
    assert_ne!(who.pid, old);
    supervised.end();
}

fn an_exit_code_says_that_it_is_of_no_use() {
    let mut supervised = Supervised::start("");
    assert!(try_get(supervised.addr(), "/exit?78").is_err());
    let status = supervised.generations.wait_for_first();
    assert_eq!(status.code(), Some(78));
    supervised.generations.wait();
    assert!(refused(&supervised));
}

fn success_may_mean_the_end() {
    let mut supervised = Supervised::start("success=0");
    let old = supervised.who().pid;
    assert!(try_get(supervised.addr(), "/exit?3").is_err());
    supervised.until_other(old);
    assert!(try_get(supervised.addr(), "/exit?0").is_err());
    assert!(supervised.generations.wait_for_first().success());
}

fn a_program_that_does_not_come_up_is_tried_ever_more_seldom() {
    let supervised = Supervised::start("longest=1000");
    supervised.generations.mode("early exit 3");
    let (start, before) = (Instant::now(), cpu(supervised.pid()));
    signal(supervised.who().pid, Signal::KILL);
    eventually("the breaker opens", || {
        supervised.log().matches("in a row").count() >= 3
    });
    let share = (cpu(supervised.pid()) - before).as_secs_f64() / start.elapsed().as_secs_f64();
    println!(
        "CPU of the supervisor in a crash loop: {:.2} %",
        share * 100.0
    );
    assert!(!refused(&supervised));
    let status = supervised.ask("status").unwrap();
    assert!(status.contains(r#""state":"down","uptime"#), "{status}");
    assert!(status.contains("starts_in_seconds"), "{status}");
    // It comes back by itself as soon as it can.
    supervised.generations.mode("");
    let good = Instant::now();
    supervised.until_state("serving");
    assert!(good.elapsed() < Duration::from_secs(5));
    let log = supervised.log();
    assert!(log.contains("(the limit is 5)"), "{log}");
    let pauses = log.split("starting another process in ").skip(1);
    let pauses = pauses.map(|rest| rest.split(' ').next().unwrap().parse::<f64>().unwrap());
    let pauses: Vec<f64> = pauses.collect();
    // At most as long as the process had served.
    assert!(pauses[0] < 0.1, "{pauses:?}");
    assert!((0.08..=0.1).contains(&pauses[1]), "{pauses:?}");
    assert!(
        pauses[1..].windows(2).all(|two| two[0] < two[1]),
        "{pauses:?}"
    );
    // Whoever asks does not have to wait.
    supervised.generations.mode("early exit 3");
    signal(supervised.who().pid, Signal::KILL);
    eventually("it waits", || {
        supervised.log().matches("in a row").count() >= 4
    });
    supervised.generations.mode("");
    supervised.succeed("restart wait");
    supervised.end();
}

fn a_process_that_does_not_become_ready_is_ended() {
    let supervised = Supervised::start("ready=300 abort=300");
    supervised.generations.mode("late pause");
    signal(supervised.who().pid, Signal::KILL);
    eventually("it was late", || {
        supervised.log().contains("was not ready in time")
    });
    supervised.generations.mode("");
    supervised.until_state("serving");
    supervised.end();
}

/// Connections to each of two processes.
fn connections_to(supervised: &Supervised, pid: i32, count: usize) -> Vec<std::net::TcpStream> {
    let mut found = Vec::new();
    while found.len() < count {
        let mut client = support::connect(supervised.addr());
        write!(client, "GET /who HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let size = client.read(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer[..size]).into_owned();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        if Who::parse(body).pid == pid {
            found.push(client);
        }
    }
    found
}

fn a_wedged_pool_is_ended_and_its_neighbours_serve_on() {
    // Long enough for the other process on a busy machine.
    let supervised = Supervised::start("processes=2 watchdog=4000");
    let pids = supervised.pids();
    assert_eq!(pids.len(), 2);
    // Four workers each.
    let wedged = connections_to(&supervised, pids[0], 4);
    let start = Instant::now();
    for mut client in &wedged {
        write!(client, "GET /wedge HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    }
    eventually("it is aborted", || stat(pids[0]).is_none());
    supervised.until_state("serving");
    let took = start.elapsed();
    println!("a wedged pool serves again after {took:?}");
    assert!(
        took >= Duration::from_secs(4),
        "not before the limit: {took:?}"
    );
    let after = supervised.pids();
    assert!(
        !after.contains(&pids[0]) && after.contains(&pids[1]),
        "{pids:?} {after:?}"
    );
    let log = supervised.log();
    assert!(log.contains("makes no progress"), "{log}");
    assert!(log.contains("thread handover-0"), "{log}");
    assert!(log.contains("signal: 6"), "{log}");
    supervised.end();
}

fn a_pool_that_waits_for_its_clients_is_not_wedged() {
    let supervised = Supervised::start("watchdog=2000");
    let pid = supervised.who().pid;
    // Bodies that come slowly, to every worker.
    let mut clients: Vec<_> = (0..4)
        .map(|_| support::connect(supervised.addr()))
        .collect();
    for client in &mut clients {
        write!(
            client,
            "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\n"
        )
        .unwrap();
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(4500) {
        for client in &mut clients {
            client.write_all(&[b'x'; 1024]).unwrap();
        }
        thread::park_timeout(Duration::from_millis(50));
    }
    drop(clients);
    assert_eq!(supervised.who().pid, pid);
    supervised.end();
}

fn a_process_that_stands_still_is_aborted() {
    let supervised = Supervised::start("watchdog=500 abort=300");
    let old = supervised.who().pid;
    signal(old, Signal::STOP);
    supervised.until_other(old);
    let log = supervised.log();
    assert!(log.contains("has not sent WATCHDOG=1 in time"), "{log}");
    assert!(log.contains("(signal: 6 (SIGABRT)"), "{log}");
    supervised.end();
}

fn no_request_is_lost_by_restarts_and_upgrades() {
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(8, |n| n.parse().unwrap());
    let clients = std::env::var("HANDOVER_TEST_CLIENTS").map_or(2, |n| n.parse().unwrap());
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let supervised = Supervised::start_with("", &[("listen", &listen)]);
    let restart = |name: &str| supervised.succeed(&format!("{name} wait"));
    restart("restart");
    restart("upgrade");
    let both = || {
        eventually("only two are left", || {
            supervised.generations.processes().0.len() == 2
        });
        supervised.until_status(r#""draining":[]"#);
        (settled(supervised.pid()), settled(supervised.who().pid))
    };
    let before = both();
    let tcp = To::Tcp(supervised.addr());
    let delayed = To::Tcp(load::delayed(supervised.addr(), Duration::from_millis(2)));
    let mut kinds = Vec::new();
    for to in [tcp, delayed, To::Unix(path.clone())] {
        for kind in [
            Kind::KeepAlive,
            Kind::Idle(Duration::from_millis(20)),
            Kind::PerRequest,
            Kind::Echo(16 << 10),
            Kind::Pipelined(8),
        ] {
            kinds.push((to.clone(), kind));
        }
    }
    let load = Load::start(&kinds, clients);
    for round in 0..restarts {
        load.wait_for(200);
        let old = supervised.who();
        match round % 2 {
            0 => restart("restart"),
            _ => {
                supervised.signal(Signal::HUP);
                supervised.generations.until_generation(old.generation + 1);
            }
        }
        assert_eq!(supervised.who().generation, old.generation + 1);
        if round % 5 == 4 {
            let who = supervised.who();
            restart("upgrade");
            assert_eq!(supervised.who(), who);
        }
    }
    load.wait_for(200);
    let answers = load.end();
    restart("restart");
    let after = both();
    println!("{answers} answers, {restarts} restarts; before {before:?}, after {after:?}");
    for (who, before, after) in [
        ("supervisor", &before.0, &after.0),
        ("serving", &before.1, &after.1),
    ] {
        assert_eq!(before.descriptors, after.descriptors, "{who}");
        assert_eq!(before.listening, after.listening, "{who}");
        assert_eq!(before.threads, after.threads, "{who}");
        assert!(before.environment.abs_diff(after.environment) < 16);
    }
    assert!(
        after.0.rss_kib <= 4096 || cfg!(debug_assertions),
        "{after:?}"
    );
    assert_eq!(supervised.generations.processes().1, 0);
    assert!(path.exists());
    supervised.end();
    assert!(!path.exists(), "the supervisor removes the file");
}

fn upgrades_lose_nothing_and_a_bad_one_changes_nothing() {
    let upgrades = std::env::var("HANDOVER_TEST_UPGRADES").map_or(4, |n| n.parse().unwrap());
    let supervised = Supervised::start("");
    let to = To::Tcp(supervised.addr());
    let load = Load::start(&[(to.clone(), Kind::KeepAlive), (to, Kind::PerRequest)], 4);
    let who = supervised.who();
    let upgrade = || supervised.ask("upgrade wait").unwrap();
    let outcome = upgrade();
    assert!(outcome.contains(r#""ok":true"#), "{outcome}");
    let before = settled(supervised.pid());
    for mode in ["early exit 3", "early segv", "early hang"] {
        supervised.generations.mode(mode);
        let outcome = upgrade();
        assert!(
            outcome.contains(r#""ok":false"#) && outcome.contains("dry run"),
            "{outcome}"
        );
    }
    let good = supervised.generations.program.clone();
    let aside = good.with_extension("aside");
    fs::rename(&good, &aside).unwrap();
    let outcome = upgrade();
    assert!(outcome.contains("cannot start"), "{outcome}");
    // One that knows nothing of supervisors.
    std::os::unix::fs::symlink("/bin/true", &good).unwrap();
    let outcome = upgrade();
    assert!(
        outcome.contains("the dry run failed (exit status: 0)"),
        "{outcome}"
    );
    fs::rename(&aside, &good).unwrap();
    supervised.generations.mode("");
    for _ in 0..upgrades {
        load.wait_for(50);
        assert!(upgrade().contains(r#""ok":true"#));
        supervised.signal(Signal::USR2);
    }
    eventually("the last one", || {
        supervised
            .log()
            .matches("the supervisor runs version")
            .count()
            > upgrades
    });
    load.end();
    assert_eq!(supervised.who(), who);
    // It is supervised as before.
    signal(who.pid, Signal::KILL);
    supervised.until_other(who.pid);
    supervised.until_state("serving");
    eventually("no more descriptors", || {
        resources(supervised.pid()).descriptors == before.descriptors
    });
    supervised.end();
}

/// A process that drains moves its connections to the newest process, also if the supervisor was upgraded meanwhile, and
/// the processes in between have ended.
fn an_upgrade_in_the_middle_of_a_move_changes_nothing_of_it() {
    let supervised = Supervised::start("");
    let first = supervised.who();
    let mut idle = support::connect(supervised.addr());
    let mut assert_served_by = |pid: i32| {
        idle.write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        let answer = one_answer(&mut idle);
        assert!(answer.contains(&format!("\r\n\r\n{pid} ")), "{answer}");
    };
    assert_served_by(first.pid);
    let mut busy = support::connect(supervised.addr());
    busy.write_all(b"GET /hold?go HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    // What was accepted later is served.
    supervised.who();
    supervised.succeed("restart wait");
    let mut last = supervised.who();
    for command in [
        "restart wait",
        "upgrade wait",
        "restart wait",
        "upgrade wait",
    ] {
        supervised.succeed(command);
        let old = std::mem::replace(&mut last, supervised.who());
        if old != last {
            eventually("the process in between ends", || !is_alive(old.pid));
        }
        assert_served_by(last.pid);
    }
    assert!(is_alive(first.pid));
    fs::write(supervised.generations.dir.path().join("go"), "").unwrap();
    let answer = one_answer(&mut busy);
    assert!(
        answer.contains(&format!("\r\n\r\n{} 1 ", first.pid)),
        "{answer}"
    );
    assert_eq!(Who::parse(&get(&mut busy, "/who")), last);
    eventually("the first process ends", || !is_alive(first.pid));
    assert_eq!(last.generation, first.generation + 3);
    supervised.end();
}

fn a_process_that_dies_during_an_upgrade_is_replaced() {
    let supervised = Supervised::start("processes=2");
    for round in 0..20 {
        let old = supervised.pids()[round % 2];
        let done = supervised.log().matches(" in this process").count();
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| supervised.ask("upgrade wait"));
            // Before the dry run, during it, or about the exec.
            match round % 3 {
                0 => {}
                1 => eventually("the dry run", || {
                    supervised
                        .log()
                        .matches("checking the new supervisor program")
                        .count()
                        > done
                }),
                _ => eventually("the exec", || {
                    supervised.log().matches(" in this process").count() > done
                }),
            }
            signal(old, Signal::KILL);
            let outcome = upgrade.join().unwrap().unwrap();
            assert!(outcome.contains(r#""ok":true"#), "{outcome}");
        });
        eventually("two others serve", || {
            let pids = supervised.pids();
            pids.len() == 2 && !pids.contains(&old)
        });
        supervised.until_state("serving");
    }
    supervised.end();
}

fn an_upgrade_goes_by_the_new_settings() {
    let supervised = Supervised::start("watchdog=60000");
    let old = supervised.who();
    // Those that serve do not know of the new limit, and are not ended by it.
    supervised
        .generations
        .option("supervised", "processes=3 watchdog=4000 abort=300");
    supervised.succeed("upgrade wait");
    eventually("three processes", || supervised.pids().len() == 3);
    supervised.until_state("serving");
    let pids = supervised.pids();
    assert_eq!(pids[0], old.pid);
    let since = Instant::now();
    eventually("the limit has passed", || {
        since.elapsed() > Duration::from_millis(6000)
    });
    assert_eq!(supervised.pids(), pids);
    signal(pids[1], Signal::STOP);
    eventually("it is ended by it", || {
        !supervised.pids().contains(&pids[1])
    });
    supervised.generations.option("supervised", "processes=1");
    supervised.succeed("upgrade wait");
    eventually("one process", || {
        supervised.generations.processes().0.len() == 2
    });
    assert_eq!(supervised.who(), old);
    supervised.end();
}

fn a_restart_during_the_start_ends_with_ready() {
    let dir = tempfile::TempDir::new().unwrap();
    let (path, at) = (dir.path().join("notify"), dir.path().join("at"));
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(support::LIMIT)).unwrap();
    for (name, text) in [
        ("listen", "127.0.0.1:0"),
        ("mode", "late pause"),
        ("supervised", ""),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let _group = support::ProcessGroup::of(&supervisor);
    eventually("it is starting", || at.exists());
    let mut control = UnixStream::connect(dir.path().join("control")).unwrap();
    control.write_all(b"restart\n").unwrap();
    control.read_to_string(&mut String::new()).unwrap();
    fs::write(dir.path().join("go"), "").unwrap();
    let mut text = [0; 4096];
    loop {
        let size = socket.recv(&mut text).unwrap();
        let said = String::from_utf8_lossy(&text[..size]);
        assert!(!said.contains("RELOADING"), "{said}");
        if said.contains("READY=1") {
            break;
        }
    }
    signal(supervisor.id() as i32, Signal::TERM);
    assert!(supervisor.wait().unwrap().success());
}

fn an_exit_code_counts_also_behind_a_stop() {
    let mut supervised = Supervised::start_with("", &[("exit-code", "78")]);
    let serving = supervised.who().pid;
    // If the next process served before this one exits, its exit code would no longer count.
    supervised.generations.mode("exit 3");
    signal(serving, Signal::TERM);
    assert_eq!(supervised.generations.wait_for_first().code(), Some(78));
    supervised.generations.wait();
}

fn a_bad_version_costs_nothing_and_says_why() {
    check_bad_versions("").end();
    // The last lines reach the client as well as the file. The log writer, another process, writes it.
    let supervised = check_bad_versions("stderr=1");
    let file = supervised.generations.dir.path().join("errors");
    eventually("the file has the lines of the successor", || {
        let errors = fs::read_to_string(&file).unwrap();
        errors.contains("first line\nno configuration\n")
    });
    supervised.end();
}

fn check_bad_versions(settings: &str) -> Supervised {
    let supervised = Supervised::start(settings);
    let old = supervised.who();
    for (mode, why) in [
        ("early exit 3", "no configuration"),
        ("panic", "it is all wrong"),
        ("late error", "exited before it was ready"),
        ("segv", "signal: 11"),
        ("exit 0", "before"),
    ] {
        supervised.generations.mode(mode);
        let outcome = supervised.ask("restart wait").unwrap();
        assert!(
            outcome.contains(r#""ok":false"#) && outcome.contains(why),
            "{mode}: {outcome}"
        );
        assert_eq!(supervised.who(), old);
        supervised.until_status(r#""draining":[]"#);
    }
    supervised.generations.mode("");
    supervised.succeed("restart wait");
    let status = supervised.ask("status").unwrap();
    assert!(status.contains(r#""restarts":0"#), "{status}");
    supervised
}

fn several_processes_are_replaced_one_after_another() {
    let supervised = Supervised::start("processes=3");
    let before = supervised.pids();
    assert_eq!(before.len(), 3);
    let to = To::Tcp(supervised.addr());
    let load = Load::start(&[(to.clone(), Kind::KeepAlive), (to, Kind::PerRequest)], 4);
    load.wait_for(50);
    let accepting = || {
        let (live, _) = supervised.generations.processes();
        live.iter()
            .filter(|pid| threads(**pid).contains("handover-accept"))
            .count()
    };
    let done = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !done.load(SeqCst) {
                most = most.max(accepting());
            }
            most
        });
        let done = EndOnDrop(&done);
        supervised.succeed("restart wait");
        drop(done);
        most.join().unwrap()
    });
    // One more, and those that have not taken note yet that they are replaced.
    assert!(most <= 5, "{most} at once");
    let after = supervised.pids();
    assert!(after.len() == 3 && before.iter().all(|pid| !after.contains(pid)));
    load.end();
    // A crash costs one of them.
    signal(after[1], Signal::KILL);
    eventually("it is back", || {
        let pids = supervised.pids();
        pids.len() == 3 && pids[0] == after[0] && pids[2] == after[2] && pids[1] != after[1]
    });
    supervised.end();
}

fn clients_keep_their_connections_over_restarts() {
    for settings in ["", "processes=2"] {
        let supervised = Supervised::start(settings);
        let kinds = [
            Kind::KeepAlive,
            Kind::Idle(Duration::from_millis(20)),
            Kind::Echo(200 << 10),
            Kind::Pipelined(8),
        ];
        let kinds = kinds.map(|kind| (To::Tcp(supervised.addr()), kind));
        let load = Load::start(&kinds, 2);
        for _ in 0..5 {
            load.wait_for(50);
            supervised.succeed("restart");
        }
        load.wait_for(50);
        let connections = load.seen.connections.load(SeqCst);
        load.end();
        assert_eq!(connections as usize, 2 * kinds.len(), "{settings}");
        supervised.end();
    }
}

/// Each process has a state of its own, which goes to its own successor.
fn each_acknowledged_command_is_counted_once_over_restarts() {
    for (settings, processes) in [("", 1), ("processes=2", 2)] {
        let supervised = Supervised::start_with(settings, &[("exact", "1000 20000 127.0.0.1:0")]);
        let addr: SocketAddr = supervised.generations.addrs[1].parse().unwrap();
        let ends = AtomicBool::new(false);
        // The count, and the process that has answered.
        let ask = |client: &mut BufReader<TcpStream>, line: &str| -> (u64, i32) {
            client.get_mut().write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_line(&mut answer).unwrap();
            let (count, pid) = answer.trim_end().split_once(' ').expect(&answer);
            (count.parse().unwrap(), pid.parse().unwrap())
        };
        thread::scope(|scope| {
            let clients = (0..8).map(|_| {
                let mut client = BufReader::new(support::connect(addr));
                let (ends, ask) = (&ends, &ask);
                scope.spawn(move || {
                    let mut acknowledged = 0;
                    while !ends.load(SeqCst) {
                        ask(&mut client, "incr\n");
                        acknowledged += 1;
                    }
                    acknowledged
                })
            });
            let clients: Vec<_> = clients.collect();
            let _ends = EndOnDrop(&ends);
            for _ in 0..5 {
                supervised.succeed("restart wait");
            }
            ends.store(true, SeqCst);
            let acknowledged = clients.into_iter().map(|client| client.join().unwrap());
            let acknowledged: u64 = acknowledged.sum();
            let mut counts = BTreeMap::new();
            eventually("each process has answered", || {
                let mut client = BufReader::new(support::connect(addr));
                let (count, pid) = ask(&mut client, "get\n");
                counts.insert(pid, count);
                counts.len() == processes
            });
            let pids: BTreeSet<i32> = supervised.pids().into_iter().collect();
            assert!(counts.keys().eq(&pids), "{counts:?} {pids:?}");
            assert_eq!(counts.values().sum::<u64>(), acknowledged, "{counts:?}");
        });
        supervised.end();
    }
}

fn a_listener_that_a_new_version_does_not_want_is_closed() {
    let listen = "127.0.0.1:0 web=127.0.0.1:0";
    let supervised = Supervised::start_with("", &[("listen", listen)]);
    let web: SocketAddr = supervised.generations.addrs[1].parse().unwrap();
    supervised.generations.option("listen", "127.0.0.1:0");
    supervised.succeed("restart wait");
    eventually("it is closed", || {
        std::net::TcpStream::connect(web).is_err()
    });
    assert_eq!(supervised.who().generation, 2);
    // And one that comes later is held, and the same for all processes.
    supervised.generations.option("listen", listen);
    supervised.succeed("restart wait");
    let status = supervised.ask("status").unwrap();
    assert_eq!(status.matches(r#""name":"web""#).count(), 1, "{status}");
    supervised.end();

    let supervised = Supervised::start("processes=2");
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listen = format!("127.0.0.1:0 {free} late=127.0.0.1:0");
    supervised.generations.option("listen", &listen);
    supervised.succeed("restart wait");
    let status = supervised.ask("status").unwrap();
    assert_eq!(status.matches(r#""address""#).count(), 3, "{status}");
    // The supervisor says why it cannot.
    supervised
        .generations
        .option("listen", "127.0.0.1:0 203.0.113.1:1");
    let outcome = supervised.ask("restart wait").unwrap();
    assert!(outcome.contains(r#""ok":false"#), "{outcome}");
    let log = supervised.log();
    assert!(log.contains("Cannot assign requested address"), "{log}");
    supervised.end();
}

/// The process tells its supervisor how many requests it has served. So does its successor, which
/// it has started itself.
fn a_process_that_has_served_many_requests_is_replaced() {
    let supervised = Supervised::start("recycle-requests=100");
    let mut before = supervised.who().pid;
    supervised.until_status(r#""requests":"#);
    for _ in 0..2 {
        // Each look is a request.
        before = supervised.until_other(before).pid;
    }
    let log = supervised.log();
    assert!(
        log.contains("recycling the process of slot 0: it has served"),
        "{log}"
    );
    supervised.end();
}

fn the_longest_and_the_shortest_times_are_no_overflow() {
    for settings in [
        "watchdog=max abort=max ready=max stop=max backoff=max no-restart=max give-up=max \
         recycle-after=max recycle-requests=max",
        "watchdog=max abort=max ready-after=max stop=max backoff=max processes=2 recycle-above=max",
        "watchdog=0 abort=0 ready=10000 ready-after=0 stop=5000 backoff=0 processes=0 \
         recycle-after=0 recycle-above=0 recycle-requests=0",
    ] {
        let mut supervised = Supervised::start(settings);
        let before = supervised.who().pid;
        supervised.succeed("restart wait");
        supervised.until_other(before);
        supervised.succeed("upgrade wait");
        // Only the first process that takes the place of a crashed one comes at once.
        let crashed = supervised.who().pid;
        signal(crashed, Signal::KILL);
        supervised.until_other(crashed);
        supervised.signal(Signal::TERM);
        let status = supervised.generations.wait_for_first();
        let log = supervised.log();
        assert!(status.success(), "{settings}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        supervised.generations.wait();
    }
}

fn every_process_starts_with_the_old_limit_of_descriptors() {
    let supervised = Supervised::start_with("", &[("soft-limit", "300")]);
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let expected = format!("300 {}", hard.unwrap());
    let check = || assert_eq!(supervised.generations.get("/descriptors"), expected);
    check();
    // The first one is started by the supervisor, the second one by the first one, which has raised
    // its limit, and the third one by a supervisor that was replaced.
    supervised.succeed("restart wait");
    check();
    supervised.succeed("upgrade wait");
    let old = supervised.who().pid;
    signal(old, Signal::KILL);
    supervised.until_other(old);
    check();
    supervised.end();
}

fn settings_that_mean_nothing_are_refused_by_name() {
    let max = "processes must be at most 1024";
    for (supervisor, text) in [
        (Supervisor::new().processes(usize::MAX), max),
        (
            Supervisor::new().ready_timeout(Duration::ZERO),
            "ready_timeout must be more than zero (Duration::MAX is no limit)",
        ),
    ] {
        let error = supervisor.run(["true"]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), text);
    }
}

fn a_stop_finishes_what_is_in_progress() {
    let mut supervised = Supervised::start("");
    let mut slow = support::connect(supervised.addr());
    write!(slow, "GET /slow?500 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    supervised.who();
    supervised.signal(Signal::TERM);
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(supervised.generations.wait_for_first().success());
    supervised.generations.wait();

    // Whoever does not end in time is killed.
    let mut supervised = Supervised::start("stop=300");
    let mut slow = support::connect(supervised.addr());
    write!(slow, "GET /wedge HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    supervised.who();
    supervised.signal(Signal::TERM);
    assert_eq!(supervised.generations.wait_for_first().code(), Some(1));
    supervised.generations.wait();

    // A second Ctrl-C does not wait.
    let mut supervised = Supervised::start("");
    let mut slow = support::connect(supervised.addr());
    write!(slow, "GET /slow?20000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    supervised.who();
    supervised.signal(Signal::INT);
    supervised.until_status("stopping");
    let start = Instant::now();
    supervised.signal(Signal::INT);
    supervised.generations.wait();
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// A terminal and systemd may signal a supervised process as well as its supervisor does.
fn a_stop_that_arrives_twice_finishes_what_is_in_progress() {
    let mut supervised = Supervised::start("");
    let mut slow = support::connect(supervised.addr());
    write!(slow, "GET /slow?3000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let serving = supervised.who().pid;
    supervised.signal(Signal::TERM);
    supervised.until_status("generation 1 is stopping");
    for what in [Signal::TERM, Signal::INT] {
        signal(serving, what);
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(supervised.generations.wait_for_first().success());
    supervised.generations.wait();
}

fn a_stop_at_any_other_time_leaves_nobody() {
    for mode in ["early pause", "pause", "late pause"] {
        for restarts in [true, false] {
            let mut supervised = Supervised::start("stop=10000 abort=500");
            supervised.generations.mode(mode);
            match restarts {
                true => supervised.signal(Signal::HUP),
                false => signal(supervised.who().pid, Signal::KILL),
            }
            let at = supervised.generations.dir.path().join("at");
            eventually("it is under way", || at.exists());
            supervised.signal(Signal::TERM);
            let status = supervised.generations.wait_for_first();
            assert!(status.success(), "{mode}, {restarts}: {}", supervised.log());
            supervised.generations.wait();
            assert!(refused(&supervised), "{mode}, {restarts}");
        }
    }
    // While it waits for the next attempt.
    let mut supervised = Supervised::start("");
    supervised.generations.mode("early exit 3");
    signal(supervised.who().pid, Signal::KILL);
    eventually("the breaker opens", || {
        supervised.log().contains("in a row")
    });
    let start = Instant::now();
    supervised.signal(Signal::TERM);
    assert!(supervised.generations.wait_for_first().success());
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn a_process_that_is_stopped_during_its_restart_is_replaced_all_the_same() {
    for mode in ["early pause", "pause", "late pause"] {
        let supervised = Supervised::start("");
        let old = supervised.who().pid;
        let at = supervised.generations.dir.path().join("at");
        supervised.generations.mode(mode);
        supervised.signal(Signal::HUP);
        eventually("it is under way", || at.exists());
        supervised.generations.mode("");
        signal(old, Signal::TERM);
        supervised.until_other(old);
        supervised.until_state("serving");
        eventually("only two are left", || {
            supervised.generations.processes().0.len() == 2
        });
        supervised.until_status(r#""draining":[]"#);
        supervised.succeed("upgrade wait");
        supervised.end();
    }
}

fn a_process_that_stops_by_itself_is_replaced_before_it_has_finished() {
    let supervised = Supervised::start("");
    let (mut slow, old) = supervised.hold_request("held");
    signal(old, Signal::TERM);
    supervised.until_other(old);
    supervised.until_status(&format!(r#""draining":[{{"pid":{old},"#));
    supervised.generations.option("held", "");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    supervised.end();
}

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Serving,
    Both,
}

fn a_kill_at_any_time_leaves_no_orphan() {
    for mode in ["", "early pause", "pause", "late pause"] {
        for victim in [Victim::Supervisor, Victim::Serving, Victim::Both] {
            for restarts in [true, false] {
                // There is nobody else to be killed who starts.
                if mode.is_empty() && restarts
                    || !restarts && !mode.is_empty() && victim != Victim::Supervisor
                {
                    continue;
                }
                println!("{mode:?}, {victim:?}, {restarts}");
                survive(mode, victim, restarts);
            }
        }
    }
}

fn survive(mode: &str, victim: Victim, restarts: bool) {
    let mut supervised = Supervised::start_with("abort=500", &[("drain", "2000")]);
    let serving = supervised.who().pid;
    if !mode.is_empty() {
        supervised.generations.mode(mode);
        match restarts {
            true => supervised.signal(Signal::HUP),
            false => signal(serving, Signal::KILL),
        }
        let at = supervised.generations.dir.path().join("at");
        eventually("it is under way", || at.exists());
    }
    if victim != Victim::Serving {
        supervised.signal(Signal::KILL);
    }
    if victim != Victim::Supervisor {
        signal(serving, Signal::KILL);
    }
    // Not before the killed ones are dead: whoever goes on finds out by itself.
    fs::write(supervised.generations.dir.path().join("go"), "").unwrap();
    if victim == Victim::Serving {
        supervised.until_other(serving);
        // If the predecessor died before it announced its successor, the restart replaces the
        // successor, too: the supervisor cannot know which program that runs.
        supervised.until_state("serving");
        eventually("the process that the supervisor names serves", || {
            supervised.pids() == [supervised.who().pid]
        });
        eventually("only two are left", || {
            supervised.generations.processes().0.len() == 2
        });
        return supervised.end();
    }
    supervised.generations.wait_for_first();
    supervised.generations.wait();
    assert!(refused(&supervised), "the port is free");
}

fn strangers_are_buried() {
    let supervised = Supervised::start("");
    let orphan: i32 = supervised
        .generations
        .get("/orphan")
        .trim()
        .parse()
        .unwrap();
    let is_ours = || stat(orphan).is_some_and(|s| s.parent == supervised.pid());
    assert!(is_ours() || stat(orphan).is_none());
    eventually("it is buried", || stat(orphan).is_none());
    supervised.end();
}

fn a_successor_has_a_group_of_its_own_and_what_its_predecessor_leaves_is_ended() {
    let supervised = Supervised::start("");
    let group = |pid: i32| stat(pid).map(|stat| stat.group);
    let first = supervised.who().pid;
    assert_eq!(group(first), Some(first));
    supervised.generations.mode("sidecar");
    supervised.signal(Signal::HUP);
    let second = supervised.until_other(first).pid;
    assert_eq!(group(second), Some(second));
    let file = supervised.generations.dir.path().join("sidecar");
    eventually("its subprocess", || file.exists());
    let sidecar = fs::read_to_string(file).unwrap();
    let sidecar: i32 = sidecar.lines().last().unwrap().parse().unwrap();
    assert_eq!(group(sidecar), Some(second));
    supervised.until_state("serving");
    // The first one has ended, and its group with it: that of its successor is another one.
    eventually("the first one has ended", || stat(first).is_none());
    assert!(stat(sidecar).is_some());
    supervised.generations.mode("");
    supervised.signal(Signal::HUP);
    let third = supervised.until_other(second).pid;
    eventually("the second one has ended", || stat(second).is_none());
    eventually("its subprocess has ended", || stat(sidecar).is_none());
    assert_eq!(supervised.who().pid, third);
    supervised.end();
}

fn process_1_of_a_container_is_a_good_init() {
    let mut unshare = Command::new("unshare");
    let may = support::try_output_of(unshare.args(["-fp", "--mount-proc", "true"]));
    if !may.is_ok_and(|output| output.status.success()) {
        return println!("skipped: no namespace of processes can be made here");
    }
    let supervised = Supervised::start_by("", &[], |command| {
        let mut unshare = Command::new("unshare");
        unshare
            .args(["-fp", "--mount-proc", "--kill-child"])
            .arg(command.get_program())
            .args(command.get_args())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for (name, value) in command.get_envs() {
            unshare.env(name, value.unwrap());
        }
        *command = unshare;
    });
    let status = supervised.ask("status").unwrap();
    assert!(status.contains(r#""pid":1,"#), "{status}");
    // As others see it.
    let init = all_pids()
        .find(|pid| stat(*pid).is_some_and(|s| s.parent == supervised.pid()))
        .unwrap();
    let first = supervised.who().pid;
    assert!(try_get(supervised.addr(), "/crash").is_err());
    let second = supervised.until_other(first);
    supervised.generations.get("/orphan");
    let children = || {
        all_pids()
            .filter(|pid| stat(*pid).is_some_and(|s| s.parent == init))
            .count()
    };
    eventually("the orphan is buried", || children() == 1);
    signal(init, Signal::HUP);
    supervised.until_other(second.pid);
    eventually("the old one is buried", || children() == 1);
    supervised.succeed("upgrade wait");
    signal(init, Signal::TERM);
    let mut supervised = supervised;
    assert_eq!(supervised.generations.wait_for_first().code(), Some(0));
}

fn what_the_supervisor_was_told_is_not_for_those_that_serve() {
    let manager = tempfile::TempDir::new().unwrap();
    let path = manager.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(support::LIMIT)).unwrap();
    let mut generations = Generations::start_with(&[("supervised", "")], |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000")
            .env("FDSTORE", "10");
    });
    let who = generations.who();
    let environment = fs::read(format!("/proc/{}/environ", who.pid)).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(
        environment.contains("NOTIFY_SOCKET=@handover/"),
        "{environment}"
    );
    assert!(
        environment.contains("WATCHDOG_USEC=60000000"),
        "{environment}"
    );
    assert!(!environment.contains("FDSTORE="), "{environment}");
    let mut heard = Vec::new();
    let mut until = |what: &str| {
        let mut text = [0; 4096];
        loop {
            let size = socket.recv(&mut text).unwrap();
            let said = String::from_utf8_lossy(&text[..size]).into_owned();
            heard.push(said.clone());
            if said.contains(what) {
                return heard.join("---");
            }
        }
    };
    let heard = until("READY=1");
    assert!(
        heard.contains("FDSTORE=1\nFDNAME=handover--127.0.0.1_"),
        "{heard}"
    );
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    signal(generations.first.id() as i32, Signal::HUP);
    until("RELOADING=1\nMONOTONIC_USEC=");
    until("READY=1");
    signal(generations.first.id() as i32, Signal::TERM);
    until("STOPPING=1");
    generations.wait();
}

fn the_control_socket_is_for_its_owner() {
    let supervised = Supervised::start("");
    let path = supervised.generations.dir.path().join("control");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for line in ["", "status status", &"x".repeat(300), "\u{1}"] {
        let answer = supervised.ask(line).unwrap();
        assert!(answer.contains("unknown request"), "{answer}");
    }
    // Those that say nothing hold up nobody.
    let silent: Vec<_> = (0..8)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    supervised.until_state("serving");
    drop(silent);
    if rustix::process::geteuid().is_root() {
        // Whatever the file's mode is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let dir = path.parent().unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        // It is refused before it has asked.
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                      print(s.recv(1000).decode())";
        let mut python = Command::new("python3");
        python
            .args(["-c", script, path.to_str().unwrap()])
            .uid(65534);
        let output = support::output_of(&mut python);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(answer.contains("permission denied"), "{output:?}");
        assert_eq!(supervised.who().generation, 1);
    }
    supervised.end();
}

fn the_pid_file_is_the_supervisors() {
    let supervised = Supervised::start_with("", &[("supervisor-pid-file", "")]);
    let path = supervised.generations.dir.path().join("pid");
    let pid = || {
        fs::read_to_string(&path)
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
    };
    assert_eq!(pid(), supervised.pid());
    supervised.succeed("upgrade wait");
    assert_eq!(pid(), supervised.pid());
    let mut second = Command::new(std::env::current_exe().unwrap());
    second
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, supervised.generations.dir.path());
    let second = support::output_of(&mut second);
    assert!(!second.status.success());
    supervised.end();
    assert!(!path.exists());
}

fn an_upgrade_leaves_nothing_of_settings_that_are_gone() {
    let options = [("supervisor-pid-file", "")];
    let supervised = Supervised::start_with("control-mode=438", &options);
    let dir = supervised.generations.dir.path();
    let mode = || fs::metadata(dir.join("control")).unwrap().mode() & 0o777;
    assert!(dir.join("pid").exists() && mode() == 438);
    fs::remove_file(dir.join("supervisor-pid-file")).unwrap();
    supervised.generations.option("supervised", "");
    supervised.succeed("upgrade wait");
    assert_eq!(mode(), 0o600);
    assert!(!dir.join("pid").exists());
    supervised.end();
}

/// The service manager may not have read what the program before has sent.
fn an_upgrade_stores_the_listeners_of_the_settings_again() {
    let manager = tempfile::TempDir::new().unwrap();
    let path = manager.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(support::LIMIT)).unwrap();
    let options = [("supervised", ""), ("supervisor-listen", "127.0.0.1:0")];
    let mut generations = Generations::start_with(&options, |command| {
        command.env("NOTIFY_SOCKET", &path).env("FDSTORE", "10");
    });
    let until = |what: &str| {
        let mut text = [0; 4096];
        loop {
            let size = socket.recv(&mut text).unwrap();
            if String::from_utf8_lossy(&text[..size]).contains(what) {
                return;
            }
        }
    };
    let stored = "FDSTORE=1\nFDNAME=handover-n-127.0.0.1_";
    until(stored);
    until("READY=1");
    signal(generations.first.id() as i32, Signal::USR2);
    until("replacing the supervisor");
    until(stored);
    signal(generations.first.id() as i32, Signal::TERM);
    until("STOPPING=1");
    generations.wait();
}

/// Everything that a signal storm can do wrong.
fn many_signals_at_once_are_one_restart_and_one_upgrade() {
    let supervised = Supervised::start("");
    let to = To::Tcp(supervised.addr());
    let load = Load::start(&[(to.clone(), Kind::KeepAlive), (to, Kind::PerRequest)], 2);
    let generation = Arc::new(AtomicU64::new(1));
    for _ in 0..20 {
        for what in [Signal::HUP, Signal::USR2, Signal::USR1, Signal::HUP] {
            let _ = kill_process(Pid::from_raw(supervised.pid()).unwrap(), what);
        }
        generation.store(supervised.who().generation, SeqCst);
    }
    supervised.succeed("restart wait");
    supervised.succeed("upgrade wait");
    load.end();
    kill(supervised.who().pid, Signal::KILL);
    supervised.until_state("serving");
    supervised.end();
}

/// A version that is installed while the version before warms up is started, and whoever asked for it waits for it.
fn a_restart_during_a_restart_starts_another_round() {
    for processes in [1, 2] {
        let supervised = Supervised::start(&format!("processes={processes}"));
        let dir = supervised.generations.dir.path().to_owned();
        let old = supervised.pids();
        supervised.generations.mode("late pause");
        thread::scope(|scope| {
            let second = scope.spawn(|| supervised.ask("restart wait").unwrap());
            eventually("the second version warms up", || dir.join("at").exists());
            // The third version fails, so that its answer is told from that of the second.
            supervised.generations.mode("late error");
            let third = scope.spawn(|| supervised.ask("restart wait").unwrap());
            let fourth = scope.spawn(|| supervised.ask("restart wait").unwrap());
            eventually("both have asked", || {
                supervised
                    .log()
                    .matches("received \"restart wait\"")
                    .count()
                    == 3
            });
            assert!(!third.is_finished() && !fourth.is_finished());
            fs::write(dir.join("go"), "").unwrap();
            let second = second.join().unwrap();
            if processes == 1 {
                assert!(second.contains(r#""ok":true"#), "{second}");
            }
            for answer in [third.join().unwrap(), fourth.join().unwrap()] {
                assert!(answer.contains("exited before it was ready"), "{answer}");
            }
        });
        supervised.generations.mode("");
        supervised.succeed("restart wait");
        assert!(supervised.pids().iter().all(|pid| !old.contains(pid)));
        supervised.end();
    }
}

/// A process that is starting may run the program from before.
fn a_restart_replaces_a_process_that_is_starting() {
    let supervised = Supervised::start("");
    let dir = supervised.generations.dir.path().to_owned();
    supervised.generations.mode("late pause");
    signal(supervised.who().pid, Signal::KILL);
    eventually("another process is starting", || dir.join("at").exists());
    let starting = supervised.pids();
    supervised.generations.mode("");
    supervised.succeed("restart wait");
    let new = supervised.who();
    assert!(!starting.contains(&new.pid), "{starting:?} {new:?}");
    supervised.until_status(r#""draining":[]"#);
    supervised.end();
}

/// What an operator sees of a replaced process: how much it has left to do.
fn the_status_says_how_many_connections_a_replaced_process_has() {
    let supervised = Supervised::start("");
    let (mut slow, old) = supervised.hold_request("held");
    supervised.succeed("restart wait");
    let status = supervised.until_status(" left\"");
    assert!(
        status.contains(&format!(
            r#""draining":[{{"pid":{old},"generation":1,"state":"draining""#
        )),
        "{status}"
    );
    supervised.generations.option("held", "");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    supervised.until_status(r#""draining":[]"#);
    supervised.end();
}

/// Each of three generations has a request in progress. The fourth has to wait for the first.
fn no_restart_cuts_the_requests_of_an_earlier_generation() {
    let supervised = Supervised::start("draining=2");
    let mut held = Vec::new();
    for name in ["first", "second", "third"] {
        if !held.is_empty() {
            supervised.succeed("restart wait");
        }
        held.push((name, supervised.hold_request(name)));
    }
    let first = held[0].1.1;
    thread::scope(|scope| {
        let restart = scope.spawn(|| supervised.succeed("restart wait"));
        eventually("the restart waits", || {
            supervised.log().contains("the restart waits: 2 processes")
        });
        assert!(is_alive(first), "the first generation drains");
        supervised.generations.option("first", "");
        restart.join().unwrap();
    });
    assert!(!is_alive(first));
    for (name, (mut client, pid)) in held {
        supervised.generations.option(name, "");
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(&format!("{pid} ")), "{answer}");
    }
    supervised.end();
}

/// A frozen container, or a terminal's stop of the whole group, is nobody's hang.
fn a_stall_of_all_processes_aborts_nobody() {
    let supervised = Supervised::start("processes=6 watchdog=4000");
    eventually("all serve", || supervised.pids().len() == 6);
    let pids = supervised.pids();
    for stall in [5000, 9000] {
        // The supervisor goes on first: all of them are late then.
        let all = || [supervised.pid()].into_iter().chain(pids.iter().copied());
        all().for_each(|pid| signal(pid, Signal::STOP));
        thread::sleep(Duration::from_millis(stall));
        all().for_each(|pid| signal(pid, Signal::CONT));
        // Longer than the limit: whoever is late is aborted in this time.
        thread::sleep(Duration::from_millis(6000));
        assert_eq!(supervised.pids(), pids, "{}", supervised.log());
    }
    assert!(
        !supervised.log().contains("aborting"),
        "{}",
        supervised.log()
    );
    supervised.end();
}

/// A wrapper that sets the environment of a server is the program that is supervised.
fn a_restart_runs_the_wrapper_of_a_server_again() {
    let wrapper =
        "WRAPPED=$(cat \"$HANDOVER_TEST_DIR/version\") exec \"$HANDOVER_TEST_DIR/server\" child";
    let wrapper = wrapper.replace("HANDOVER_TEST_DIR", DIR);
    let options = [("wrapper", wrapper.as_str()), ("version", "1")];
    let supervised = Supervised::start_with("", &options);
    let dir = supervised.generations.dir.path();
    for version in ["1", "2", "3"] {
        if version != "1" {
            fs::write(dir.join("version"), version).unwrap();
            supervised.succeed("restart wait");
        }
        // The process before accepts until it has seen its SIGTERM.
        eventually("the wrapper's environment", || {
            try_get(supervised.addr(), "/wrapped").is_ok_and(|found| found == version)
        });
    }
    supervised.end();
}

fn restarts_in_quick_succession_cut_no_request() {
    for processes in [1, 2] {
        let supervised = Supervised::start(&format!("processes={processes}"));
        let answers = load::under_slow_requests(supervised.addr(), || {
            load::restart_in_quick_succession(|| supervised.signal(Signal::HUP));
            supervised.succeed("restart wait");
        });
        println!("{answers} answers, none failed");
        supervised.end();
    }
}

/// After a crash and at a restart, and also if there is no such directory any more.
fn a_process_is_started_in_the_release_that_is_current_then() {
    let releases = Releases::new();
    let supervised = Supervised::start_by("", &[], |command| {
        let program = command.get_program().to_owned();
        releases.prepare(command, program);
    });
    let place = || try_get(supervised.addr(), "/place").map(|place| place.trim().to_owned());
    for number in 2..=4 {
        releases.install(number);
        let old = supervised.who().pid;
        match number % 2 {
            0 => signal(old, Signal::KILL),
            _ => supervised.signal(Signal::HUP),
        }
        supervised.succeed("upgrade wait");
        let expected = releases.release(number).display().to_string();
        eventually("the new release", || {
            place().is_ok_and(|place| place == expected)
        });
    }
    fs::remove_file(releases.path("current")).unwrap();
    let old = supervised.who().pid;
    signal(old, Signal::KILL);
    supervised.until_other(old);
    let gone = format!("{} is gone", releases.path("current").display());
    assert!(supervised.log().contains(&gone), "{}", supervised.log());
    supervised.end();
}

fn the_environment_file_is_read_at_each_start() {
    let supervised = Supervised::start_with("environment=1", &[("environment", "TOLD=1")]);
    let told = || {
        let place = try_get(supervised.addr(), "/place");
        place.map(|place| place.rsplit_once(' ').unwrap().1.to_owned())
    };
    assert_eq!(told().unwrap(), "1");
    for number in 2..=3 {
        supervised
            .generations
            .option("environment", &format!("TOLD={number}"));
        match number {
            2 => signal(supervised.who().pid, Signal::KILL),
            _ => supervised.signal(Signal::HUP),
        }
        let expected = number.to_string();
        eventually("the new environment", || {
            told().is_ok_and(|told| told == expected)
        });
    }
    // A line that systemd ignores.
    let text = "export TOLD=x\nTOLD=4\n";
    supervised.generations.option("environment", text);
    // The supervisor starts this process, and has a log.
    signal(supervised.who().pid, Signal::KILL);
    eventually("the new environment", || {
        told().is_ok_and(|told| told == "4")
    });
    let warning = "environment: ignoring line 1: ";
    // The log is written by another thread.
    eventually("the warning", || supervised.log().contains(warning));
    supervised.generations.option("environment", "TOLD='5");
    let answer = supervised.ask("restart wait").unwrap();
    assert!(answer.contains("environment: line 1: "), "{answer}");
    assert_eq!(told().unwrap(), "4");
    supervised.end();
}
