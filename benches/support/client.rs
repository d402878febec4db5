//! The load: a fixed number of connections, each of which sends a message, checks every byte of the answer, and only
//! then sends its next one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::retry_on_intr;

use super::Result;

const MESSAGE: usize = 64;
const WARM_UP: Duration = Duration::from_millis(200);
/// A server that is silent for as long has lost a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects and warms up, says `ready`, and then answers each line with `ROUND_TRIPS NANOSECONDS` of another stretch of
/// load. It stays connected in between and after that, so that the closing of its connections is no part of what its
/// parent measures.
pub(super) fn run(address: SocketAddr, connections: usize, duration: Duration) -> Result<()> {
    let mut client = Client::connect(address, connections)?;
    client.talk(WARM_UP)?;
    println!("ready");

    let mut line = String::new();
    while io::stdin().read_line(&mut line)? > 0 {
        let started = Instant::now();
        let round_trips = client.talk(duration)?;
        println!("{round_trips} {}", started.elapsed().as_nanos());
    }
    Ok(())
}

struct Client {
    epoll: OwnedFd,
    callers: Vec<Caller>,
}

impl Client {
    fn connect(address: SocketAddr, connections: usize) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut callers = Vec::with_capacity(connections);
        for index in 0..connections as u64 {
            let stream = TcpStream::connect_timeout(&address, PATIENCE)
                .map_err(|error| format!("cannot connect to {address}: {error}"))?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll::add(
                &epoll,
                &stream,
                EventData::new_u64(index),
                EventFlags::IN | EventFlags::ET,
            )?;
            callers.push(Caller {
                stream,
                index,
                turn: 0,
                message: [0; MESSAGE],
                answered: 0,
            });
        }
        Ok(Self { epoll, callers })
    }

    /// Keeps every caller busy for the given time, waits for the answers that are still due, and returns how many
    /// came in all. Nothing is under way before or after, so the server's CPU time can be read then.
    fn talk(&mut self, duration: Duration) -> Result<u64> {
        let end = Instant::now() + duration;
        let patience = Timespec::try_from(PATIENCE)?;
        let mut events: Vec<Event> = Vec::with_capacity(1024);
        let mut round_trips = 0;
        let mut waiting = self.callers.len();

        for caller in &mut self.callers {
            caller.send()?;
        }
        while waiting > 0 {
            events.clear();
            retry_on_intr(|| {
                epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&patience))
            })?;
            if events.is_empty() {
                return Err(format!("{waiting} callers had no answer for {PATIENCE:?}").into());
            }
            let over = Instant::now() >= end;
            for event in &events {
                let caller = &mut self.callers[event.data.u64() as usize];
                if !caller.receive()? {
                    continue;
                }
                round_trips += 1;
                if over {
                    waiting -= 1;
                } else {
                    caller.send()?;
                }
            }
        }
        Ok(round_trips)
    }
}

struct Caller {
    stream: TcpStream,
    index: u64,
    turn: u64,
    message: [u8; MESSAGE],
    /// How many bytes of the message have come back.
    answered: usize,
}

impl Caller {
    fn send(&mut self) -> io::Result<()> {
        self.turn += 1;
        self.answered = 0;
        // Each word names the caller, the turn and its own place, so no byte of another answer passes for this one's.
        for (place, word) in self.message.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(self.index << 48 | self.turn << 8 | place as u64).to_le_bytes());
        }
        // Only a server that has stopped reading leaves no room for so few bytes: that it is an error is right.
        self.stream.write_all(&self.message)
    }

    /// True when the answer is complete.
    fn receive(&mut self) -> Result<bool> {
        // With room for more than is due, a read is always short, and no second one is needed to empty the socket.
        let mut bytes = [0; 2 * MESSAGE];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.message[self.answered..].starts_with(&bytes[..count]) {
            return Err(format!(
                "caller {} got a wrong answer in turn {}",
                self.index, self.turn
            )
            .into());
        }
        self.answered += count;
        Ok(self.answered == MESSAGE)
    }
}
