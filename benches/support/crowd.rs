//! The server of a line protocol, and the clients around it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Connection, Handle, Listener, Next, Server};
use rustix::process::{Signal, set_parent_process_death_signal};
use socket2::{Domain, Socket, Type};

use super::Result;
use super::descriptors;
use super::process::{Actor, announce};

const SLOW: usize = 200;
const DEAF: usize = 50;
const SPEECH: usize = 64 * 1024;
/// A server that is silent for as long has lost a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the server is watched, once there is nothing left to do.
const REST: Duration = Duration::from_secs(1);

// ---- the server ----

/// `PING` is answered with a line, `SPEECH` with 64 KiB, `PARKED` with the number of parked connections. `HOARD`
/// takes all descriptors until the client says another line.
pub(super) fn serve() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let limit = descriptors::raise_limit()?;
    start(limit as usize - 100)?.join();
    Ok(())
}

/// Starts the server, and announces it.
pub(super) fn start(connections: usize) -> Result<Handle> {
    let handle = Arc::new(OnceLock::<Handle>::new());
    let own = Arc::clone(&handle);
    let speech = [b'.'; SPEECH];
    let server = Server::builder()
        .listener(Listener::from_descriptor(listen()?, "crowd")?)
        .workers(2)
        .max_connections(connections)
        .build(move |conn: &mut Connection| -> io::Result<Next> {
            let Some(line) = conn.take_until(b'\n', 1024)? else {
                return Ok(if conn.at_eof() {
                    Next::Close
                } else {
                    Next::More
                });
            };
            match &line[..] {
                b"PING\n" => conn.write_all(b"PONG\n")?,
                b"SPEECH\n" => conn.write_all(&speech)?,
                b"PARKED\n" => {
                    let parked = own.get().map_or(0, |handle| handle.stats().parked);
                    writeln!(conn, "{parked}")?;
                }
                b"HOARD\n" => {
                    let hoard = hoard();
                    conn.write_all(b"HOARDED\n")?;
                    conn.read_line_limited(64, &mut String::new())?;
                    drop(hoard);
                    conn.write_all(b"RELEASED\n")?;
                }
                // A slow client's.
                other => conn.write_all(other)?,
            }
            Ok(Next::Park)
        })?;
    let address = server.local_addrs()[0].clone();
    let running = server.start()?;
    let _ = handle.set(running.clone());
    announce(address);
    Ok(running)
}

/// With so little room in the kernel that most of a speech to a deaf client stays with the server.
fn listen() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Accepted sockets inherit both.
    socket.set_send_buffer_size(4096)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(1024)?;
    Ok(socket)
}

fn hoard() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

// ---- the clients ----

/// Measures, with so many idle clients.
pub(super) fn run(idle: usize, requests: usize) -> Result<()> {
    let limit = descriptors::raise_limit()?;
    if (limit as usize) < idle + SLOW + DEAF + 200 {
        return Err(format!("{idle} idle clients need more than the {limit} descriptors").into());
    }
    let (server, address) = Actor::server("crowd", None)?;
    let address: SocketAddr = address.parse()?;
    let mut active = Client::connect(address)?;

    let alone = latency(&mut active, requests)?;
    println!("{requests} requests of one client, in microseconds:");
    println!("  alone          {alone}");
    let empty = Memory::of(&server)?;

    let mut parked = Vec::with_capacity(idle);
    for _ in 0..idle {
        let mut client = Client::connect(address)?;
        client.ping()?;
        parked.push(client);
    }
    // All but the one that asks.
    active.wait_until_parked(idle)?;
    let full = Memory::of(&server)?;

    let deaf = (0..DEAF)
        .map(|_| {
            let mut client = Client::deaf(address)?;
            client.say("SPEECH\n")?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    let slow = (0..SLOW)
        .map(|_| Client::connect(address))
        .collect::<Result<Vec<_>>>()?;
    let slow = Slow::start(slow);
    slow.wait_for_first_bytes();

    let crowded = latency(&mut active, requests)?;
    println!("  in the crowd   {crowded}");
    println!("  ({idle} idle, {SLOW} send a byte per second, {DEAF} do not read {SPEECH} bytes)");
    let threads = status(&server, "Threads")?;
    println!("threads of the server: {threads}");
    let unread = Memory::of(&server)?.dirty.saturating_sub(full.dirty);
    println!("unread answers that it keeps, and {SLOW} slow clients: {unread} KiB");
    println!("memory of the server, in KiB:");
    println!("  0 parked       {empty}");
    println!("  {idle} parked    {full}");
    if idle > 0 {
        let each = |full: u64, empty: u64| (full as i64 - empty as i64) * 1024 / idle as i64;
        println!(
            "  bytes each     resident {}, data {}, dirty {}",
            each(full.resident, empty.resident),
            each(full.data, empty.data),
            each(full.dirty, empty.dirty)
        );
    }

    let started = Instant::now();
    for client in &mut parked {
        client.ping()?;
    }
    let took = started.elapsed();
    println!("all {idle} idle clients answered again, one after the other, in {took:.2?}");
    let bytes = slow.finish()?;
    println!("all {SLOW} slow clients got their {bytes} bytes back");
    for mut client in deaf {
        let mut speech = vec![0; SPEECH];
        client.stream.read_exact(&mut speech)?;
        client.ping()?;
    }
    println!("all {DEAF} deaf clients read their {SPEECH} bytes");

    active.wait_until_parked(idle)?;
    println!(
        "with all of them idle, the server used {:.1} ms of CPU time in {REST:?}",
        at_rest(&server)?
    );
    Ok(())
}

/// The milliseconds of CPU time that a server uses while nobody wants anything.
pub(super) fn at_rest(server: &Actor) -> Result<f64> {
    let before = server.usage()?.on_cpu;
    thread::sleep(REST);
    Ok((server.usage()?.on_cpu - before).as_secs_f64() * 1e3)
}

/// A client that waits for its answers.
pub(super) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        Self::with_buffer(address, None)
    }

    /// With so little room that an answer it does not read fills its server's buffers.
    fn deaf(address: SocketAddr) -> Result<Self> {
        Self::with_buffer(address, Some(2048))
    }

    fn with_buffer(address: SocketAddr, bytes: Option<usize>) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(bytes) = bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect_timeout(&address.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(line.as_bytes())
    }

    pub(super) fn ping(&mut self) -> Result<()> {
        self.say("PING\n")?;
        self.expect("PONG")
    }

    pub(super) fn expect(&mut self, answer: &str) -> Result<()> {
        match self.hear()? {
            line if line == answer => Ok(()),
            line => Err(format!("the server said {line:?}").into()),
        }
    }

    /// One line, of which a short one comes in one piece.
    fn hear(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut bytes = [0; 64];
        while line.last() != Some(&b'\n') {
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                return Err("the server closed a connection".into());
            }
            line.extend_from_slice(&bytes[..count]);
        }
        Ok(String::from_utf8(line)?.trim_end().to_owned())
    }

    /// Whether the answer to a `PING` comes in that time.
    pub(super) fn is_answered_within(&mut self, patience: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(patience))?;
        let first = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE))?;
        match first {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            first => first?,
        };
        self.expect("PONG")?;
        Ok(true)
    }

    /// Asks until so many connections are parked: a worker parks after it has answered.
    fn wait_until_parked(&mut self, count: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            self.say("PARKED\n")?;
            let parked: usize = self.hear()?.parse()?;
            if parked >= count {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("of {count} connections {parked} are parked").into());
            }
        }
    }
}

/// Clients that send a byte per second each, and no end of a line. The pace is what they are, so this sleeps.
struct Slow {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicBool>,
    thread: thread::JoinHandle<io::Result<(Vec<Client>, usize)>>,
}

impl Slow {
    fn start(mut clients: Vec<Client>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicBool::new(false));
        let (ending, first) = (Arc::clone(&over), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            let pause = Duration::from_secs(1) / clients.len() as u32;
            let mut bytes = 0;
            while !ending.load(Ordering::SeqCst) || bytes == 0 {
                for client in &mut clients {
                    client.say("z")?;
                    thread::sleep(pause);
                }
                bytes += 1;
                first.store(true, Ordering::SeqCst);
            }
            Ok((clients, bytes))
        });
        Self {
            over,
            rounds,
            thread,
        }
    }

    fn wait_for_first_bytes(&self) {
        while !self.rounds.load(Ordering::SeqCst) && !self.thread.is_finished() {
            thread::yield_now();
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has each end its line, and checks the answer; returns how many bytes those are.
    fn finish(self) -> Result<usize> {
        self.over.store(true, Ordering::SeqCst);
        let (mut clients, bytes) = self
            .thread
            .join()
            .map_err(|_| "the slow clients panicked")??;
        for client in &mut clients {
            client.say("\n")?;
        }
        for client in &mut clients {
            if client.hear()? != "z".repeat(bytes) {
                return Err("a slow client got a wrong answer".into());
            }
        }
        Ok(bytes)
    }
}

// ---- the measurements ----

/// How long requests took, sorted.
struct Latency(Vec<Duration>);

fn latency(client: &mut Client, requests: usize) -> Result<Latency> {
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let started = Instant::now();
        client.ping()?;
        times.push(started.elapsed());
        // As a client that has something else to do in between, so that slow clients' bytes come in between too.
        thread::sleep(Duration::from_micros(500));
    }
    times.sort_unstable();
    Ok(Latency(times))
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            let time = self.0.get(index.min(self.0.len().saturating_sub(1)));
            time.map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        write!(
            f,
            "p50 {:.0}, p99 {:.0}, max {:.0}",
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}

/// A process's memory, in KiB.
struct Memory {
    resident: u64,
    /// What it has asked for, be it touched or not.
    data: u64,
    /// What is its own and was written to.
    dirty: u64,
}

impl Memory {
    fn of(server: &Actor) -> Result<Self> {
        Ok(Self {
            resident: status(server, "VmRSS")?,
            data: status(server, "VmData")?,
            dirty: field(server, "smaps_rollup", "Private_Dirty")?,
        })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            resident,
            data,
            dirty,
        } = self;
        write!(f, "resident {resident}, data {data}, dirty {dirty}")
    }
}

fn status(server: &Actor, name: &str) -> Result<u64> {
    field(server, "status", name)
}

/// A number from one of the tables that `/proc` has on a process.
fn field(server: &Actor, table: &str, name: &str) -> Result<u64> {
    let table = fs::read_to_string(format!("/proc/{}/{table}", server.id()))?;
    let line = table.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number
        .ok_or_else(|| format!("/proc has no {name}"))?
        .parse()?)
}
