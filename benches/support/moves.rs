//! The server of a line protocol that is replaced, and its clients.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Connection, Next, Restart, Server};
use rustix::process::{Pid, Signal, kill_process};

use super::Result;
use super::descriptors;
use super::process::{Actor, announce};

/// How long the active clients are watched without a restart, and how long between two restarts.
pub(super) const QUIET: Duration = Duration::from_secs(2);
pub(super) const BETWEEN: Duration = Duration::from_millis(200);
/// A server that is silent for as long has lost a request.
const PATIENCE: Duration = Duration::from_secs(20);

// ---- the server ----

/// Answers each line with the process id.
pub(super) fn serve() -> Result<()> {
    descriptors::raise_limit()?;
    let restart = Restart::inherit()?;
    let is_first = restart.generation() == 1;
    serve_with(restart, is_first)
}

/// The same, with a `Restart`. `announces`: the benchmark reads the address.
pub(super) fn serve_with(restart: Restart, announces: bool) -> Result<()> {
    let server = Server::builder()
        .listen("127.0.0.1:0")
        .max_connections(usize::MAX)
        .restart(restart)
        .build(answer)?;
    if announces {
        announce(&server.local_addrs()[0]);
    }
    let handle = server.handle();
    // The end of the benchmark is the end of its input, which each generation has.
    let watch = move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        handle.stop_now();
    };
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(watch)?;
    let report = server.run()?;
    let (moved, took) = (report.moved, report.took.as_nanos());
    // The benchmark that reads it may have ended.
    let longest = report.longest_move.as_nanos();
    let _ = writeln!(io::stdout(), "{moved} {took} {longest}");
    Ok(())
}

fn answer(conn: &mut Connection) -> io::Result<Next> {
    while conn.take_line(64)?.is_some() {
        writeln!(conn, "{}", std::process::id())?;
    }
    Ok(Next::incomplete(conn))
}

// ---- the clients ----

pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    pub(super) fn connect(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::with_capacity(64, stream)))
    }

    /// The process that answers.
    pub(super) fn ask(&mut self) -> Result<i32> {
        self.0.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

/// How long answers took, sorted.
pub(super) struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    pub(super) fn show(&self, when: &str) {
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            let found = self.0.get(index.min(self.0.len().saturating_sub(1)));
            found.map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
        };
        println!(
            "  {when:<18} {:>9} answers   p50 {:.3}   p99 {:.3}   p99.9 {:.3}   max {:.3}",
            self.0.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
}

pub(super) const MOVES_HEAD: &str =
    "moved, in milliseconds until the old process has stopped, the longest without an owner:";

/// What a process has moved.
pub(super) struct Moves {
    count: u64,
    took: Duration,
    longest: Duration,
}

impl Moves {
    /// Reads what [`serve`] writes at its end.
    pub(super) fn of(line: &str) -> Result<Self> {
        let numbers: std::result::Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        let [count, took, longest] = numbers?[..] else {
            return Err(format!("a server said {line:?}").into());
        };
        Ok(Self {
            count,
            took: Duration::from_nanos(took),
            longest: Duration::from_nanos(longest),
        })
    }

    pub(super) fn show(&self) {
        println!(
            "  {:>6}   {:>8.3}   {:>8.3}   {:>9.0} per second",
            self.count,
            self.took.as_secs_f64() * 1000.0,
            self.longest.as_secs_f64() * 1000.0,
            self.count as f64 / self.took.as_secs_f64()
        );
    }
}

/// Measures.
pub(super) fn run(idle: usize, active: usize, think: Duration, restarts: usize) -> Result<()> {
    let limit = descriptors::raise_limit()?;
    if (limit as usize) < idle + active + 100 {
        return Err(format!("{idle} idle clients need more than the {limit} descriptors").into());
    }
    let (mut server, address) = Actor::server("moves", None)?;
    let address: SocketAddr = address.parse()?;
    let mut idle_clients = Vec::with_capacity(idle);
    for _ in 0..idle {
        let mut client = Client::connect(address)?;
        client.ask()?;
        idle_clients.push(client);
    }
    println!("latencies of {active} active clients beside {idle} idle ones, in milliseconds:");
    under_load(address, active, think, || {
        thread::sleep(QUIET);
        Ok(())
    })?
    .show("without a restart");
    let mut moves = Vec::new();
    let mut over_restarts = || {
        for _ in 0..restarts {
            let old = Client::connect(address)?.ask()?;
            let pid = Pid::from_raw(old).ok_or("no process id")?;
            kill_process(pid, Signal::HUP)?;
            moves.push(Moves::of(&server.hear()?)?);
            thread::sleep(BETWEEN);
        }
        Ok(())
    };
    under_load(address, active, think, &mut over_restarts)?.show("over the restarts");
    println!("{MOVES_HEAD}");
    moves.iter().for_each(Moves::show);
    let serving = Client::connect(address)?.ask()?;
    for client in &mut idle_clients {
        if client.ask()? != serving {
            return Err("an idle client was answered by an old process".into());
        }
    }
    println!("all {idle} idle clients were answered on their first connection");
    Ok(())
}

/// The latencies that active clients see meanwhile. Each has one connection.
pub(super) fn under_load(
    address: SocketAddr,
    active: usize,
    think: Duration,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Latencies> {
    let ends = AtomicBool::new(false);
    let mut all = Vec::new();
    thread::scope(|scope| {
        let clients = (0..active).map(|_| {
            scope.spawn(|| {
                let mut latencies = Vec::new();
                let mut client = Client::connect(address)?;
                while !ends.load(Relaxed) {
                    let asked = Instant::now();
                    client.ask()?;
                    latencies.push(asked.elapsed());
                    if !think.is_zero() {
                        thread::sleep(think);
                    }
                }
                Ok(latencies)
            })
        });
        let clients: Vec<_> = clients.collect();
        let done = meanwhile();
        ends.store(true, Relaxed);
        for client in clients {
            let latencies: Result<Vec<Duration>> =
                client.join().map_err(|_| "a client panicked")?;
            all.extend(latencies?);
        }
        done
    })?;
    Ok(Latencies::of(all))
}
