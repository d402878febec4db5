//! Fewer processes under a supervisor (`handover scale`): the clients of those that are not needed any more move to
//! those that stay, and notice nothing.
#![cfg(target_os = "linux")] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
#[path = "support/load.rs"]
mod load;
#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use generations::*;
use load::{EndOnDrop, Kind, Load, To};
use supervised::{Supervised, dir_with};

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

fn rounds(default: u64) -> u64 {
    std::env::var("HANDOVER_TEST_RESTARTS").map_or(default, |n| n.parse().unwrap())
}

const HTTP: (&str, &str) = ("listen", "http=127.0.0.1:0");
const COUNTED: (&str, &str) = ("counted", "127.0.0.1:0");
const STATELESS: (&str, &str) = ("stateless", "");

/// Supervises servers of this binary.
fn start(processes: usize, options: &[(&str, &str)]) -> Supervised {
    let dir = dir_with(options);
    let dir_path = dir.path().to_owned();
    let output = fs::File::create(dir.path().join("output")).unwrap();
    let own = std::env::current_exe().unwrap();
    let mut program = vec![own.to_str().unwrap()];
    program.extend(HARNESS);
    let processes = processes.to_string();
    let options = ["--notify", "--processes", &*processes];
    let supervised = Supervised::start_by("exec \"$@\"", dir, &options, &program, |command| {
        command.env(DIR, dir_path).stdout(output);
    });
    supervised.until_serving();
    supervised
}

impl Supervised {
    /// The address of the server of HTTP, or that of the other one.
    fn addr_of(&self, is_http: bool) -> SocketAddr {
        let status = self.status();
        let mut listeners = status["listeners"].as_array().unwrap().iter();
        let listener = listeners.find(|listener| (listener["name"] == "http") == is_http);
        listener.unwrap()["address"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    fn addr(&self) -> SocketAddr {
        self.addr_of(true)
    }

    /// Waits until so many processes serve, and returns them.
    #[track_caller]
    fn scale(&self, processes: usize) -> Vec<i32> {
        self.succeed(&["scale", &processes.to_string(), "--wait"]);
        let pids = self.pids();
        assert_eq!(pids.len(), processes);
        pids
    }

    #[track_caller]
    fn until_drained(&self) {
        self.until("no process drains", || {
            self.status()["draining"]
                .as_array()
                .is_some_and(Vec::is_empty)
        });
    }

    /// Waits until this process, which has left its connections, has ended well.
    #[track_caller]
    fn until_exited(&self, pid: i32) {
        let exited = format!("process {pid} exited (exit status: 0)");
        self.until("it exits", || self.read("log").contains(&exited));
    }

    #[track_caller]
    fn end(mut self) {
        assert_eq!(self.stop().code(), Some(0), "{}", self.read("log"));
    }
}

/// The process that answers on this connection, which stays open.
#[track_caller]
fn ask(client: &mut (impl Read + Write)) -> i32 {
    try_ask(client).unwrap()
}

fn try_ask(client: &mut (impl Read + Write)) -> io::Result<i32> {
    client.write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = Vec::new();
    // The answer ends with the state, which is empty, behind three numbers.
    let body = loop {
        let mut chunk = [0; 1024];
        let size = client.read(&mut chunk)?;
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..size]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        match text.split_once("\r\n\r\n") {
            Some((_, body)) if body.matches(' ').count() == 3 => break body.to_owned(),
            _ => {}
        }
    };
    Ok(Who::parse(&body).pid)
}

/// Clients that are idle, and the process of each: so many, or more until each of these processes has one.
fn idle_clients(addr: SocketAddr, count: usize, of: &[i32]) -> Vec<(TcpStream, i32)> {
    let end = Instant::now() + support::LIMIT;
    let mut clients: Vec<(TcpStream, i32)> = Vec::new();
    let has_one =
        |clients: &[(TcpStream, i32)], wanted| clients.iter().any(|(_, pid)| pid == wanted);
    while clients.len() < count || !of.iter().all(|pid| has_one(&clients, pid)) {
        assert!(Instant::now() < end, "one of {of:?} accepts no client");
        let mut client = support::connect(addr);
        let pid = ask(&mut client);
        clients.push((client, pid));
    }
    clients
}

#[test]
fn clients_of_a_surplus_process_move_to_the_one_that_stays() {
    let service = start(2, &[HTTP, STATELESS]);
    let addr = service.addr();
    let surplus = service.pids()[1];
    let mut idle = idle_clients(addr, 500, &[surplus]);
    let of_surplus = idle.iter().filter(|(_, pid)| *pid == surplus).count();
    let load = Load::start(&[(To::Tcp(addr), Kind::KeepAlive)], 32);
    load.wait_for(1000);
    let stays = service.scale(1)[0];
    load.wait_for(1000);
    service.until_exited(surplus);
    for (client, _) in &mut idle {
        assert_eq!(ask(client), stays);
    }
    let connections = load.seen.connections.load(SeqCst);
    let answers = load.end();
    assert_eq!(connections, 32);
    let output = service.read("output");
    assert!(output.contains(" moved within "), "{output}");
    println!("{of_surplus} idle clients and those of {answers} answers moved: {output}");
    service.end();
}

#[test]
fn several_surplus_processes_leave_their_clients_to_different_processes() {
    let service = start(4, &[HTTP, STATELESS]);
    let addr = service.addr();
    let before = service.pids();
    let mut idle = idle_clients(addr, 400, &before[2..]);
    let stay = service.scale(2);
    assert_eq!(stay, before[..2]);
    for surplus in &before[2..] {
        service.until_exited(*surplus);
    }
    let mut moves: HashMap<i32, HashSet<i32>> = HashMap::new();
    for (client, pid) in &mut idle {
        moves.entry(*pid).or_default().insert(ask(client));
    }
    assert_eq!(moves[&before[2]], HashSet::from([stay[0]]));
    assert_eq!(moves[&before[3]], HashSet::from([stay[1]]));
    service.end();
}

#[test]
fn clients_of_a_unix_socket_move_as_well() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("unix:{}", path.display());
    let service = start(2, &[("listen", &listen), STATELESS]);
    let surplus = service.pids()[1];
    let mut idle = Vec::new();
    while !idle.iter().any(|(_, pid)| *pid == surplus) {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(support::LIMIT)).unwrap();
        let pid = ask(&mut client);
        idle.push((client, pid));
    }
    let load = Load::start(&[(To::Unix(path.clone()), Kind::KeepAlive)], 8);
    load.wait_for(100);
    let stays = service.scale(1)[0];
    service.until_exited(surplus);
    for (client, _) in &mut idle {
        assert_eq!(ask(client), stays);
    }
    let connections = load.seen.connections.load(SeqCst);
    load.end();
    assert_eq!(connections, 8);
    // The file is that of the supervisor.
    assert!(path.exists());
    service.end();
}

const KEPT: [Kind; 4] = [
    Kind::KeepAlive,
    Kind::Idle(Duration::from_millis(20)),
    Kind::Echo(100_000),
    Kind::Pipelined(8),
];

/// Clients of each kind, which must not connect again.
fn load_during(addr: SocketAddr, during: impl FnOnce(&Load)) {
    let load = Load::start(&KEPT.map(|kind| (To::Tcp(addr), kind)), 2);
    load.wait_for(100);
    during(&load);
    load.wait_for(100);
    let connections = load.seen.connections.load(SeqCst);
    load.end();
    assert_eq!(connections as usize, 2 * KEPT.len());
}

#[test]
fn clients_keep_their_connections_while_the_number_goes_up_and_down() {
    let service = start(1, &[HTTP, STATELESS]);
    let addr = service.addr();
    let descriptors = || {
        service.until_drained();
        settled(service.pid()).descriptors
    };
    let before = descriptors();
    load_during(addr, |load| {
        for _ in 0..rounds(10) {
            service.scale(2);
            // Some are the clients of the new process, or are again.
            idle_clients(addr, 8, &[]);
            load.wait_for(20);
            service.scale(1);
            load.wait_for(20);
        }
    });
    assert_eq!(descriptors(), before);
    service.end();
}

/// The process to which the clients move is replaced at the same time.
#[test]
fn clients_keep_their_connections_over_a_restart_beside_a_scale() {
    let service = start(2, &[HTTP, STATELESS]);
    load_during(service.addr(), |load| {
        for round in 0..rounds(4) {
            service.scale(2);
            load.wait_for(50);
            let first = match round % 2 {
                0 => ["restart", "scale 1"],
                _ => ["scale 1", "restart"],
            };
            for request in first {
                let answer = service.request(request).unwrap();
                assert_eq!(answer["ok"], true, "{answer}");
            }
            service.until("a restarted process serves", || {
                let status = service.status();
                status["processes"]
                    .as_array()
                    .is_some_and(|all| all.len() == 1)
                    && status["last_restart"]["ok"] == true
            });
            load.wait_for(50);
            service.until_drained();
        }
    });
    service.end();
}

#[test]
fn a_busy_client_follows_when_it_is_between_two_messages() {
    let service = start(2, &[HTTP, STATELESS]);
    let addr = service.addr();
    let surplus = service.pids()[1];
    // Both clients are of the surplus process.
    let mut clients = Vec::new();
    while clients.len() < 2 {
        let mut client = support::connect(addr);
        if ask(&mut client) == surplus {
            clients.push(client);
        }
    }
    let [busy, partial] = &mut clients[..] else {
        unreachable!();
    };
    busy.write_all(b"GET /hold?go HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    service.until("the request is taken", || service.path("go-taken").exists());
    partial.write_all(b"GET /who HTTP/1.1\r\n").unwrap();
    let stays = service.scale(1)[0];
    fs::write(service.path("go"), "").unwrap();
    let answer = one_answer(busy);
    assert!(answer.contains(&format!("\r\n\r\n{surplus} ")), "{answer}");
    assert!(!answer.contains("Connection: close"), "{answer}");
    partial.write_all(b"Host: test\r\n\r\n").unwrap();
    one_answer(partial);
    service.until_exited(surplus);
    for client in &mut clients {
        assert_eq!(ask(client), stays);
    }
    service.end();
}

/// A client that counts its lines.
struct Lines(BufReader<TcpStream>);

impl Lines {
    /// The number of the line, and the process that has answered.
    fn ask(&mut self) -> io::Result<(u64, i32)> {
        self.0.get_mut().write_all(b"line\n")?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        let words: Vec<&str> = answer.split_whitespace().collect();
        match words[..] {
            [number, pid, "line"] => Ok((number.parse().unwrap(), pid.parse().unwrap())),
            [] => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => panic!("{answer:?}"),
        }
    }
}

/// The process that stays has another state, or the settings say so: the connections are closed as in a stop.
#[test]
fn clients_that_must_not_move_drain() {
    let state: &[(&str, &str)] = &[HTTP];
    let exact: &[(&str, &str)] = &[HTTP, ("exact", "1000 20000 127.0.0.1:0"), STATELESS];
    let stays: &[(&str, &str)] = &[HTTP, ("stay", ""), STATELESS];
    for options in [state, exact, stays] {
        let service = start(2, options);
        let surplus = service.pids()[1];
        let mut idle = idle_clients(service.addr(), 20, &[surplus]);
        idle.retain(|(_, pid)| *pid == surplus);
        service.scale(1);
        for (client, _) in &mut idle {
            assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "{options:?}");
        }
        service.until_exited(surplus);
        let log = service.read("log");
        assert!(!log.contains("leaves its connections"), "{log}");
        service.end();
    }
}

/// A client that the process has answered once.
fn client_of(addr: SocketAddr, pid: i32) -> Lines {
    loop {
        let mut client = Lines(BufReader::new(support::connect(addr)));
        if client.ask().unwrap() == (1, pid) {
            return client;
        }
    }
}

#[test]
fn sessions_go_along() {
    let service = start(2, &[HTTP, COUNTED, STATELESS]);
    let surplus = service.pids()[1];
    let mut client = client_of(service.addr_of(false), surplus);
    let stays = service.scale(1)[0];
    service.until_exited(surplus);
    assert_eq!(client.ask().unwrap(), (2, stays));
    service.end();
}

/// The recipient refuses the session, so that the client stays with the process that leaves, for the idle grace: a stop
/// of the supervisor does not wait for that.
#[test]
fn a_stop_does_not_wait_for_clients_that_could_not_move() {
    let grace = ("grace", "3600000");
    let refuse = ("mode", "refuse sessions");
    let mut service = start(2, &[HTTP, COUNTED, STATELESS, grace, refuse]);
    let surplus = service.pids()[1];
    let mut client = client_of(service.addr_of(false), surplus);
    service.scale(1);
    assert_eq!(client.ask().unwrap(), (2, surplus));
    let begin = Instant::now();
    assert_eq!(service.stop().code(), Some(0), "{}", service.read("log"));
    // Else the drain time-out would end it.
    assert!(begin.elapsed() < Duration::from_secs(15));
    assert_eq!(client.0.read(&mut [0; 8]).unwrap(), 0);
}

/// The upgraded supervisor still has the lanes.
#[test]
fn clients_move_after_an_upgrade_of_the_supervisor() {
    let service = start(2, &[HTTP, COUNTED, STATELESS]);
    let surplus = service.pids()[1];
    let mut client = client_of(service.addr_of(false), surplus);
    for _ in 0..2 {
        service.succeed(&["upgrade", "--wait"]);
    }
    let stays = service.scale(1)[0];
    service.until_exited(surplus);
    assert_eq!(client.ask().unwrap(), (2, stays));
    service.end();
}

/// Whatever is killed, and when: each client is answered once for each line, or loses its connection with one of the two
/// processes of a move, and new clients are served.
#[test]
fn a_kill_during_a_scale_costs_the_connections_of_that_process() {
    let service = start(2, &[HTTP, COUNTED, STATELESS]);
    let addr = service.addr_of(false);
    let (mut lost, ends) = (0, AtomicBool::new(false));
    // Processes with which a connection may be lost.
    let (answers, killed) = (AtomicU64::new(0), Mutex::new(HashSet::new()));
    let client = || -> io::Result<i32> {
        let mut client = Lines(BufReader::new(TcpStream::connect(addr)?));
        client.0.get_mut().set_read_timeout(Some(support::LIMIT))?;
        let mut last = 0;
        for expected in 1.. {
            match client.ask() {
                Ok((number, pid)) => {
                    assert_eq!(number, expected);
                    last = pid;
                    answers.fetch_add(1, SeqCst);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("no answer, and no end of the connection")
                }
                Err(_) => return Ok(last),
            }
            if ends.load(SeqCst) {
                break;
            }
        }
        Ok(0)
    };
    thread::scope(|scope| {
        let clients = (0..16).map(|_| {
            scope.spawn(|| {
                let mut lost = 0;
                while !ends.load(SeqCst) {
                    let last = client().expect("no client is refused");
                    // 0: it has not been answered, or the test ends.
                    assert!(last == 0 || killed.lock().contains(&last), "{last}");
                    lost += u64::from(last != 0);
                }
                lost
            })
        });
        let clients: Vec<_> = clients.collect();
        let _ends = EndOnDrop(&ends);
        for round in 0..rounds(6) {
            let pids = service.scale(2);
            let goal = answers.load(SeqCst) + 200;
            support::eventually("more answers", || {
                thread::yield_now();
                answers.load(SeqCst) >= goal
            });
            let answer = service.request("scale 1").unwrap();
            assert_eq!(answer["ok"], true, "{answer}");
            thread::park_timeout(Duration::from_micros(random_below(20_000)));
            // The surplus process, or the one to which its connections move.
            let pid = pids[(round % 2) as usize];
            killed.lock().insert(pids[1]);
            killed.lock().insert(pid);
            // The surplus process may have ended already.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            service.until("the process has ended", || !is_alive(pid));
            service.until("one process serves", || {
                let pids = service.pids();
                pids.len() == 1 && !killed.lock().contains(&pids[0])
            });
            service.until_serving();
            service.until_drained();
        }
        ends.store(true, SeqCst);
        for client in clients {
            lost += client.join().unwrap();
        }
    });
    let answers = answers.load(SeqCst);
    println!("{answers} answers, {lost} connections lost");
    service.end();
}
