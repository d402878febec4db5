//! Open connections move to the successor, with real processes: their clients notice nothing.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use generations::*;
use load::{Kind, Load, To};

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

fn restarts(default: u64) -> u64 {
    std::env::var("HANDOVER_TEST_RESTARTS").map_or(default, |n| n.parse().unwrap())
}

/// Restarts under load of clients that must not connect again.
fn load_over_restarts(generations: &Generations, kinds: &[(To, Kind)], clients: usize) {
    let load = Load::start(kinds, clients);
    load.wait_for(100);
    for _ in 0..restarts(20) {
        load.wait_for(100);
        generations.restart();
    }
    load.wait_for(100);
    let connections = load.seen.connections.load(SeqCst);
    load.end();
    assert_eq!(connections as usize, kinds.len() * clients);
}

const KEPT: [Kind; 5] = [
    Kind::KeepAlive,
    Kind::Idle(Duration::from_millis(20)),
    Kind::Echo(100),
    Kind::Echo(200 << 10),
    Kind::Pipelined(8),
];

#[test]
fn clients_keep_their_connections_over_restarts() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{} [::1]:0", path.display());
    let generations = Generations::start(&[("listen", &listen)]);
    let delayed = load::delayed(generations.addr(), Duration::from_millis(2));
    let v6: SocketAddr = generations.addrs[2].parse().unwrap();
    let to = [
        To::Tcp(generations.addr()),
        To::Unix(path),
        To::Tcp(v6),
        To::Tcp(delayed),
    ];
    let kinds = to.iter().flat_map(|to| KEPT.map(|kind| (to.clone(), kind)));
    let kinds: Vec<_> = kinds.collect();
    load_over_restarts(&generations, &kinds, 1);
    generations.end();
}

/// A client of the server that counts lines.
struct Lines(BufReader<TcpStream>);

impl Lines {
    fn connect(generations: &Generations) -> Self {
        let addr: SocketAddr = generations.addrs.last().unwrap().parse().unwrap();
        Self(BufReader::new(support::connect(addr)))
    }

    /// The number of the line, and the process that has answered.
    #[track_caller]
    fn ask(&mut self) -> (u64, i32) {
        self.0.get_mut().write_all(b"line\n").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        let words: Vec<&str> = answer.split_whitespace().collect();
        let [number, pid, "line"] = words[..] else {
            panic!("{answer:?}");
        };
        (number.parse().unwrap(), pid.parse().unwrap())
    }

    #[track_caller]
    fn assert_closed(&mut self) {
        assert_eq!(self.0.read(&mut [0; 8]).unwrap(), 0);
    }
}

/// Restarts, and waits until the old process has ended, or has at least moved its connections.
fn restart_until_end(generations: &Generations) -> i32 {
    let old = generations.who().pid;
    let new = generations.restart().pid;
    eventually("the old process ends", || !is_alive(old));
    new
}

#[test]
fn sessions_go_along() {
    let generations = Generations::start(&[("counted", "127.0.0.1:0")]);
    let first = generations.who().pid;
    let mut silent = Lines::connect(&generations);
    let mut clients = [(); 3].map(|()| Lines::connect(&generations));
    for client in &mut clients {
        assert_eq!(client.ask(), (1, first));
    }
    for number in 2..5 {
        let pid = restart_until_end(&generations);
        for client in &mut clients {
            assert_eq!(client.ask(), (number, pid));
        }
    }
    // It has sent nothing so far.
    let pid = restart_until_end(&generations);
    assert_eq!(silent.ask(), (1, pid));
    let report = generations.end();
    assert!(report.contains(" moved within "), "{report}");
}

/// A service with the state of a worker, and without sessions.
#[test]
fn connections_without_a_session_move() {
    let generations = Generations::start(&[("lines", "127.0.0.1:0")]);
    let mut client = Lines::connect(&generations).0;
    let mut pid = || {
        client.get_mut().write_all(b"pid\n").unwrap();
        let mut answer = String::new();
        client.read_line(&mut answer).unwrap();
        answer.trim().parse::<i32>().unwrap()
    };
    assert_eq!(pid(), generations.who().pid);
    for _ in 0..2 {
        let new = restart_until_end(&generations);
        assert_eq!(pid(), new);
    }
    generations.end();
}

#[test]
fn a_batch_is_one_of_many() {
    let mut generations = Generations::start(&[("counted", "127.0.0.1:0")]);
    let first = generations.who().pid;
    let mut clients: Vec<Lines> = (0..700).map(|_| Lines::connect(&generations)).collect();
    for client in &mut clients {
        assert_eq!(client.ask(), (1, first));
    }
    let second = restart_until_end(&generations);
    let report = generations.until("counted, generation 1");
    assert!(report.contains("700 moved within"), "{report}");
    for client in &mut clients {
        assert_eq!(client.ask(), (2, second));
    }
    generations.end();
}

#[test]
fn a_busy_connection_follows_when_it_is_between_two_messages() {
    let generations = Generations::start(&[]);
    let first = generations.who();
    let mut busy = support::connect(generations.addr());
    busy.write_all(b"GET /hold?go HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let mut partial = support::connect(generations.addr());
    partial.write_all(b"GET /who HTTP/1.1\r\n").unwrap();
    // What was accepted later is served.
    generations.who();
    let second = generations.restart();
    fs::write(generations.dir.path().join("go"), "").unwrap();
    partial.write_all(b"Host: test\r\n\r\n").unwrap();
    for client in [&mut busy, &mut partial] {
        let answer = one_answer(client);
        let by_first = format!("\r\n\r\n{} 1 ", first.pid);
        assert!(answer.contains(&by_first), "{answer}");
        assert!(!answer.contains("Connection: close"), "{answer}");
    }
    eventually("the old process ends", || !is_alive(first.pid));
    for mut client in [busy, partial] {
        assert_eq!(Who::parse(&get(&mut client, "/who")), second);
    }
    generations.end();
}

#[test]
fn clients_of_a_unix_socket_move_with_what_they_have_sent() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let generations = Generations::start(&[("listen", &listen)]);
    let mut client = UnixStream::connect(&path).unwrap();
    client
        .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    client.read_exact(&mut [0; 64]).unwrap();
    restart_until_end(&generations);
    restart_until_end(&generations);
    let last = restart_until_end(&generations);
    // The rest of the first answer, and the second one.
    let answers = exchange(&mut client, "/who");
    let answers = answers.map_err(|error| error.to_string());
    let text = answers.unwrap_or_else(|text| text);
    assert!(text.contains(&format!("\r\n\r\n{last} 4 ")), "{text}");
    generations.end();
}

#[test]
fn a_service_that_does_not_pack_its_sessions_drains() {
    let options = [("counted", "127.0.0.1:0 unpacked"), ("grace", "100")];
    let generations = Generations::start(&options);
    let mut client = Lines::connect(&generations);
    client.ask();
    restart_until_end(&generations);
    client.assert_closed();
    generations.end();
}

#[test]
fn refused_connections_drain() {
    for mode in ["refuse sessions", "descriptors 20"] {
        let generations = Generations::start(&[("counted", "127.0.0.1:0"), ("grace", "1000")]);
        let first = generations.who().pid;
        let mut clients: Vec<Lines> = (0..40).map(|_| Lines::connect(&generations)).collect();
        for client in &mut clients {
            client.ask();
        }
        generations.mode(mode);
        signal(first, Signal::HUP);
        // They are answered until the grace is over.
        let mut stayed = 0;
        eventually("the old process ends", || !is_alive(first));
        for client in &mut clients {
            client.0.get_mut().write_all(b"line\n").unwrap_or_default();
            let mut answer = String::new();
            match client.0.read_line(&mut answer) {
                Ok(1..) => assert!(answer.starts_with("2 "), "{answer}"),
                _ => stayed += 1,
            }
        }
        match mode {
            "refuse sessions" => assert_eq!(stayed, 40),
            _ => assert!((20..40).contains(&stayed), "{stayed}"),
        }
        drop(clients);
        generations.end();
    }
}

/// A process that took all descriptors for connections could not accept, and would close others to do so.
#[test]
fn adopted_connections_leave_descriptors_free() {
    let generations = Generations::start(&[("counted", "127.0.0.1:0"), ("grace", "100")]);
    let first = generations.who().pid;
    let mut clients: Vec<Lines> = (0..300).map(|_| Lines::connect(&generations)).collect();
    for client in &mut clients {
        client.ask();
    }
    generations.mode("descriptors 100");
    let second = restart_until_end(&generations);
    assert_ne!(first, second);
    let mut newcomers = [(); 8].map(|()| Lines::connect(&generations));
    for client in &mut newcomers {
        assert_eq!(client.ask(), (1, second));
    }
    let limits = fs::read_to_string(format!("/proc/{second}/limits")).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = limit.and_then(|line| line.split_whitespace().nth(3));
    let limit: usize = limit.unwrap().parse().unwrap();
    // The one by which a process is asked who it is may still be open.
    let used = fs::read_dir(format!("/proc/{second}/fd")).unwrap().count();
    assert!(used - 9 <= limit - limit / 8, "{used} of {limit}");
    let mut moved = 0;
    for client in &mut clients {
        client.0.get_mut().write_all(b"line\n").unwrap_or_default();
        let mut answer = String::new();
        if let Ok(1..) = client.0.read_line(&mut answer) {
            assert_eq!(answer, format!("2 {second} line\n"));
            moved += 1;
        }
    }
    assert!((50..100).contains(&moved), "{moved}");
    drop((clients, newcomers));
    generations.end();
}

#[test]
fn connections_of_a_listener_that_is_given_up_drain() {
    // A name alone does not say which listener a connection is of.
    for listen in ["a=127.0.0.1:0 b=127.0.0.1:0", "a=127.0.0.1:0 a=127.0.0.1:0"] {
        let generations = Generations::start(&[("listen", listen), ("grace", "100")]);
        let mut clients = generations.addrs.clone().into_iter().map(|addr| {
            let mut client = support::connect(addr.parse().unwrap());
            client
                .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
                .unwrap();
            one_answer(&mut client);
            client
        });
        let (mut kept, mut given_up) = (clients.next().unwrap(), clients.next().unwrap());
        generations.option("listen", &format!("a={}", generations.addrs[0]));
        let new = restart_until_end(&generations);
        assert_eq!(given_up.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(Who::parse(&get(&mut kept, "/who")).pid, new);
        generations.end();
    }
}

#[test]
fn the_old_process_serves_on_what_a_successor_has_not_taken_when_it_is_killed() {
    let generations = Generations::start(&[("counted", "127.0.0.1:0"), ("grace", "3600000")]);
    let first = generations.who().pid;
    let mut clients: Vec<Lines> = (0..300).map(|_| Lines::connect(&generations)).collect();
    for client in &mut clients {
        client.ask();
    }
    generations.mode("die of a session");
    signal(first, Signal::HUP);
    eventually("the successor has come and gone", || {
        let accepts = |pid: &i32| threads(*pid).contains("handover-accept");
        let (live, _) = generations.processes();
        live == [first] && !accepts(&first)
    });
    for client in &mut clients {
        assert_eq!(client.ask(), (2, first));
    }
    signal(first, Signal::TERM);
    for client in &mut clients {
        client.assert_closed();
    }
}

#[test]
fn the_successor_serves_what_has_come_when_the_old_process_is_killed() {
    let generations = Generations::start(&[("counted", "127.0.0.1:0")]);
    let first = generations.who().pid;
    let mut clients: Vec<Lines> = (0..200).map(|_| Lines::connect(&generations)).collect();
    for client in &mut clients {
        client.ask();
    }
    generations.mode("kill the predecessor");
    signal(first, Signal::HUP);
    eventually("the old process ends", || !is_alive(first));
    let second = generations.who().pid;
    for client in &mut clients {
        assert_eq!(client.ask(), (2, second));
    }
    generations.mode("");
    generations.end();
}

/// A process that was replaced, and has no connection left, ends although its predecessor drains: what the predecessor
/// still serves moves to the newest process.
#[test]
fn connections_of_a_process_that_drains_move_to_the_newest_process() {
    let options = [("counted", "127.0.0.1:0"), ("max-draining", "3")];
    let generations = Generations::start(&options);
    let first = generations.who();
    let mut kept = Lines::connect(&generations);
    assert_eq!(kept.ask(), (1, first.pid));
    let files = ["one", "two"];
    let busy = files.map(|file| {
        let mut client = support::connect(generations.addr());
        write!(client, "GET /hold?{file} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        client
    });
    // What was accepted later is served.
    generations.who();
    let mut last = generations.restart();
    for (file, mut client) in files.into_iter().zip(busy) {
        // Both rounds together are more generations than may drain at once.
        for _ in 0..3 {
            let old = last.pid;
            last = generations.restart();
            eventually("the process in between ends", || !is_alive(old));
        }
        fs::write(generations.dir.path().join(file), "").unwrap();
        let answer = one_answer(&mut client);
        let by_first = format!("\r\n\r\n{} 1 ", first.pid);
        assert!(answer.contains(&by_first), "{answer}");
        let next = get(&mut client, "/who");
        assert_eq!(Who::parse(&next).pid, last.pid);
    }
    eventually("the first process ends", || !is_alive(first.pid));
    assert_eq!(kept.ask(), (2, last.pid));
    generations.end();
}

/// The connections of a process that drains stay there when the newest process is killed, to which the channel leads.
#[test]
fn connections_of_a_process_that_drains_outlive_the_newest_process() {
    let generations = Generations::start(&[("grace", "3600000")]);
    let first = generations.who();
    let mut busy = support::connect(generations.addr());
    busy.write_all(b"GET /hold?go HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    // What was accepted later is served.
    generations.who();
    let second = generations.restart();
    let third = generations.restart();
    eventually("the process in between ends", || !is_alive(second.pid));
    signal(third.pid, Signal::KILL);
    eventually("the newest process ends", || !is_alive(third.pid));
    fs::write(generations.dir.path().join("go"), "").unwrap();
    let answer = one_answer(&mut busy);
    let by_first = format!("\r\n\r\n{} 1 ", first.pid);
    assert!(answer.contains(&by_first), "{answer}");
    assert_eq!(busy.read(&mut [0; 8]).unwrap(), 0);
    eventually("the first process ends", || !is_alive(first.pid));
}

/// What comes while a process is replaced goes on to the next one.
#[test]
fn clients_keep_their_connections_over_restarts_in_quick_succession() {
    let generations = Generations::start(&[]);
    let kinds = KEPT.map(|kind| (To::Tcp(generations.addr()), kind));
    let load = Load::start(&kinds, 2);
    let mut slow = support::connect(generations.addr());
    for _ in 0..3 {
        load.wait_for(100);
        slow.write_all(b"GET /slow?500 HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        let old = generations.who();
        for _ in 0..5 {
            // It may be replaced by the time at which the signal comes, and passes it on.
            signal(generations.who().pid, Signal::HUP);
        }
        one_answer(&mut slow);
        eventually("another process serves", || {
            generations.who().generation > old.generation
        });
    }
    let connections = load.seen.connections.load(SeqCst);
    load.end();
    assert_eq!(connections as usize, 2 * kinds.len());
    drop(slow);
    generations.end();
}
