//! More clients than file descriptors, and first none at all: the service has files open itself. Connections that wait
//! for their client make room for others, so only then the server has no way out.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

use super::Result;
use super::crowd::{self, Client};
use super::process::Actor;

const DESCRIPTORS: u64 = 64;
const CLIENTS: usize = 200;
/// Long enough to be sure that nothing comes.
const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(5);

/// The server of the crowd, with few descriptors; what it logs goes to the standard error.
pub(super) fn serve() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    log::set_logger(&Complaints)?;
    log::set_max_level(LevelFilter::Warn);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(DESCRIPTORS),
            maximum,
        },
    )?;
    crowd::start(100_000)?.join();
    Ok(())
}

struct Complaints;

impl Log for Complaints {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        eprintln!("  the server says: {}", record.args());
    }

    fn flush(&self) {}
}

pub(super) fn run() -> Result<()> {
    println!("{CLIENTS} clients of a server with {DESCRIPTORS} descriptors:");
    let (server, address) = Actor::server("famine", None)?;
    let address: SocketAddr = address.parse()?;
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", server.id()))?.count()) };
    let before = descriptors()?;

    let mut hoarder = Client::connect(address)?;
    hoarder.say("HOARD\n")?;
    hoarder.expect("HOARDED")?;
    let mut clients = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        let mut client = Client::connect(address)?;
        client.say("PING\n")?;
        clients.push(client);
    }
    println!(
        "  while it can take none, the server uses {:.1} ms of CPU time per second",
        crowd::at_rest(&server)?
    );
    if clients[0].is_answered_within(SHORT)? {
        return Err("there was no famine".into());
    }

    let started = Instant::now();
    hoarder.say("RELEASE\n")?;
    hoarder.expect("RELEASED")?;
    for client in &mut clients {
        if !client.is_answered_within(LONG)? {
            return Err("a client was not served although there is room".into());
        }
    }
    println!("  then all were served within {:.2?}", started.elapsed());
    drop((clients, hoarder));

    let started = Instant::now();
    while descriptors()? > before {
        if started.elapsed() > LONG {
            return Err(format!("{} descriptors are open, {before} were", descriptors()?).into());
        }
        std::thread::sleep(SHORT);
    }
    println!(
        "  no descriptor is lost: {before} before, {} now",
        descriptors()?
    );
    Ok(())
}
