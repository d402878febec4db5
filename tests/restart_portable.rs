//! Restarts, with nothing that only Linux has: the other tests of restarts look into /proc (proc(5)).
#![cfg(unix)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Connection, Handle, Next, Restart, Server};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

/// Set for a process that is to be a server.
const IS_SERVER: &str = "HANDOVER_TEST_SERVER";

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// The server that the tests start; not a test.
#[test]
fn child() {
    if std::env::var_os(IS_SERVER).is_none() {
        return;
    }
    let restart = Restart::inherit().unwrap();
    let generation = restart.generation();
    let is_bad = std::env::var_os(IS_SERVER).is_some_and(|value| value == "bad") && generation > 1;
    let restart = restart.ready_when(move || match is_bad {
        true => Err("the cache is cold"),
        false => Ok(()),
    });
    let server = Server::builder()
        .listen("127.0.0.1:0")
        .workers(4)
        .drain_timeout(LIMIT)
        .restart(restart)
        .build(move |conn: &mut Connection| answer(conn, generation))
        .unwrap();
    let addr = server.local_addrs()[0].to_string();
    HANDLE.get_or_init(|| server.handle());
    let handle = server.start().unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1);
    });
    // The test may have ended.
    let _ = writeln!(io::stdout(), "\nlistening on {addr}");
    handle.join();
    std::process::exit(0);
}

/// One line is a request, and its answer ends the connection.
fn answer(conn: &mut Connection, generation: u64) -> io::Result<Next> {
    let Some(line) = conn.take_line(64)? else {
        return Ok(match conn.at_eof() {
            true => Next::Close,
            false => Next::More,
        });
    };
    let handle = HANDLE.get().cloned();
    let answer = match (line.as_str(), handle) {
        ("restart", Some(handle)) => {
            handle.request_restart();
            "restarting".to_owned()
        }
        // Not a thread of the server. A restart that succeeds would wait for the end of this connection.
        ("fail to restart", Some(handle)) => {
            let restart = thread::spawn(move || match handle.restart() {
                Ok(report) => report.to_string(),
                Err(error) => error.to_string(),
            });
            restart.join().map_err(|_| io::Error::other("a panic"))?
        }
        ("stop", Some(handle)) => {
            handle.stop(LIMIT);
            "stopping".to_owned()
        }
        _ => format!("{generation} {}", std::process::id()),
    };
    conn.write_all(answer.as_bytes())?;
    Ok(Next::Close)
}

/// The first generation, whose successors have the same address. The one that serves is ended with this.
struct Service {
    first: Child,
    addr: SocketAddr,
    last_pid: i32,
}

impl Service {
    fn start(kind: &str) -> Self {
        let mut first = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(IS_SERVER, kind)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
        let addr = lines.find_map(|line| {
            let line = line.unwrap();
            line.strip_prefix("listening on ")?.parse().ok()
        });
        let last_pid = first.id() as i32;
        // Until the last generation has ended.
        thread::spawn(move || lines.for_each(drop));
        Self {
            first,
            addr: addr.expect("the server has ended"),
            last_pid,
        }
    }

    /// The generation and the process that serve.
    fn who(&mut self) -> (u64, i32) {
        let answer = ask(self.addr, "who").unwrap();
        let (generation, pid) = answer.split_once(' ').unwrap();
        self.last_pid = pid.parse().unwrap();
        (generation.parse().unwrap(), self.last_pid)
    }

    fn until_generation(&mut self, generation: u64) {
        let give_up_at = Instant::now() + LIMIT;
        while self.who().0 < generation {
            assert!(Instant::now() < give_up_at, "no generation {generation}");
            thread::yield_now();
        }
    }

    fn wait_for_first(&mut self) -> bool {
        let give_up_at = Instant::now() + LIMIT;
        while Instant::now() < give_up_at {
            if let Some(status) = self.first.try_wait().unwrap() {
                return status.success();
            }
            thread::park_timeout(Duration::from_millis(2));
        }
        false
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = ask(self.addr, "stop");
        if thread::panicking() {
            for pid in [self.first.id() as i32, self.last_pid] {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
            let _ = self.first.wait();
        }
    }
}

fn ask(addr: SocketAddr, request: &str) -> io::Result<String> {
    let mut client = TcpStream::connect_timeout(&addr, LIMIT)?;
    client.set_read_timeout(Some(LIMIT))?;
    client.write_all(format!("{request}\n").as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    match answer.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(answer),
    }
}

#[test]
fn no_client_is_refused_while_a_server_is_replaced() {
    let mut service = Service::start("good");
    let addr = service.addr;
    let is_done = AtomicBool::new(false);
    let (asked, failures) = thread::scope(|scope| {
        let client = || {
            let (mut asked, mut failures) = (0, Vec::new());
            while !is_done.load(SeqCst) {
                asked += 1;
                failures.extend(ask(addr, "who").err());
            }
            (asked, failures)
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for generation in 2..=6 {
                assert_eq!(ask(addr, "restart").unwrap(), "restarting");
                service.until_generation(generation);
            }
        }));
        is_done.store(true, SeqCst);
        let results = clients.map(|client| client.join().unwrap());
        replaced.unwrap();
        let asked: u64 = results.iter().map(|(asked, _)| asked).sum();
        let failures = results.into_iter().flat_map(|(_, failures)| failures);
        (asked, failures.collect::<Vec<_>>())
    });
    assert!(asked > 0 && failures.is_empty(), "{failures:?} of {asked}");
    assert!(service.wait_for_first(), "the first process has not ended");
    let (generation, pid) = service.who();
    assert_eq!(generation, 6);
    assert_ne!(pid, service.first.id() as i32);
}

#[test]
fn a_successor_that_fails_leaves_the_old_process_serving() {
    let mut service = Service::start("bad");
    let (_, pid) = service.who();
    for _ in 0..2 {
        let why = ask(service.addr, "fail to restart").unwrap();
        assert!(why.contains("the cache is cold"), "{why}");
        assert_eq!(service.who(), (1, pid));
    }
    assert_eq!(ask(service.addr, "stop").unwrap(), "stopping");
    assert!(service.wait_for_first(), "the process has not ended");
}
