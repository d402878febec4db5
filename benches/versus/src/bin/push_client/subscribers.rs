//! The subscribers: very many connections in one loop on epoll.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::connection::{PATIENCE, connect_many};
use crate::event_stream::EventStream;
use crate::figures::{Latencies, monotonic_ns};

const REQUEST: &[u8] =
    b"GET /subscribe HTTP/1.1\r\nHost: versus\r\nAccept: text/event-stream\r\n\r\n";
const TICK: Duration = Duration::from_millis(100);
/// How many clients subscribe at once.
const OPENING: usize = 64;

/// What arrived during one part of the run.
#[derive(Debug, Default)]
pub(crate) struct Delivery {
    pub(crate) delivered: u64,
    /// Messages that a client never got.
    pub(crate) lost: u64,
    /// Messages that came once more, or after a later one.
    pub(crate) repeated: u64,
    /// From the publisher's clock reading to the client's, for each message.
    pub(crate) latencies: Latencies,
}

/// All clients.
#[derive(Debug)]
pub(crate) struct Subscribers {
    poller: OwnedFd,
    all: Vec<Option<Subscriber>>,
    /// Clients that never read.
    silent: Vec<TcpStream>,
    /// How many of the streams have ended.
    pub(crate) ended: usize,
    subscribed: usize,
    /// How many have got the last message.
    complete: usize,
    delivery: Delivery,
}

#[derive(Debug)]
struct Subscriber {
    connection: TcpStream,
    stream: EventStream,
    /// The counter of the next message.
    next: u64,
}

impl Subscribers {
    /// Opens `number` clients, of which the first `silent` never read, and waits until each of the others has
    /// the head of its response.
    pub(crate) fn open(
        server: SocketAddr,
        number: usize,
        silent: usize,
    ) -> io::Result<Subscribers> {
        let mut subscribers = Subscribers {
            poller: epoll::create(CreateFlags::CLOEXEC)?,
            all: Vec::with_capacity(number),
            silent: Vec::with_capacity(silent),
            ended: 0,
            subscribed: 0,
            complete: 0,
            delivery: Delivery::default(),
        };
        for index in 0..number {
            let is_silent = index < silent;
            let mut connection = connect_many(server, index, is_silent)
                .map_err(|error| io::Error::other(format!("subscriber {index}: {error}")))?;
            connection.write_all(REQUEST)?;
            if is_silent {
                subscribers.silent.push(connection);
                continue;
            }
            let token = subscribers.all.len() as u64;
            subscribers.watch(&connection, token, EventFlags::IN)?;
            subscribers.all.push(Some(Subscriber {
                connection,
                stream: EventStream::default(),
                next: 0,
            }));
            // The server's queue of connections must not overflow.
            subscribers.wait_for_heads(OPENING)?;
        }
        subscribers.wait_for_heads(1)?;
        Ok(subscribers)
    }

    /// Waits until fewer than so many clients wait for the head of their response.
    fn wait_for_heads(&mut self, limit: usize) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.all.len() - self.subscribed >= limit {
            if Instant::now() > deadline || self.ended > 0 {
                let (heads, all) = (self.subscribed, self.all.len());
                let failure = format!("{heads} of {all} clients could subscribe");
                return Err(io::Error::other(failure));
            }
            self.turn(0, TICK)?;
        }
        Ok(())
    }

    /// Receives the messages before the counter `end`, until all clients have the last one, or until 10 s after the
    /// publisher has ended. `on_tick` is called every 100 ms or a little more.
    pub(crate) fn receive(
        &mut self,
        end: u64,
        publisher_has_ended: impl Fn() -> bool,
        mut on_tick: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Delivery> {
        self.complete = 0;
        let mut deadline = None;
        let mut next_tick = Instant::now();
        while self.complete + self.ended < self.all.len() || !publisher_has_ended() {
            let now = Instant::now();
            if deadline.is_none() && publisher_has_ended() {
                deadline = Some(now + PATIENCE);
            }
            if deadline.is_some_and(|deadline| now > deadline) {
                break;
            }
            if now >= next_tick {
                on_tick()?;
                next_tick = now + TICK;
            }
            self.turn(end, TICK)?;
        }
        for subscriber in self.all.iter_mut().flatten() {
            self.delivery.lost += end - subscriber.next;
            subscriber.next = end;
        }
        Ok(std::mem::take(&mut self.delivery))
    }

    fn watch(&self, connection: &TcpStream, token: u64, flags: EventFlags) -> io::Result<()> {
        let data = EventData::new_u64(token);
        Ok(epoll::add(&self.poller, connection, data, flags)?)
    }

    /// Waits for events, and handles those of one batch.
    fn turn(&mut self, end: u64, time: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        let mut events = Vec::with_capacity(512);
        match epoll::wait(&self.poller, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            self.read(event.data.u64() as usize, end);
        }
        Ok(())
    }

    fn read(&mut self, index: usize, end: u64) {
        let slot = &mut self.all[index];
        let Some(subscriber) = slot else { return };
        let mut input = [0; 16 * 1024];
        let bytes = match subscriber.connection.read(&mut input) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(bytes) if bytes > 0 => bytes,
            _ => {
                self.delivery.lost += end - subscriber.next;
                self.ended += 1;
                *slot = None;
                return;
            }
        };
        let now = monotonic_ns();
        let had_head = subscriber.stream.has_head();
        let Subscriber { stream, next, .. } = subscriber;
        let delivery = &mut self.delivery;
        let outcome = stream.read(&input[..bytes], |data| {
            let Some((counter, sent)) = message(data) else {
                return;
            };
            if counter < *next {
                delivery.repeated += 1;
                return;
            }
            delivery.lost += counter - *next;
            delivery.delivered += 1;
            delivery.latencies.push(now.saturating_sub(sent));
            *next = counter + 1;
            self.complete += usize::from(*next == end);
        });
        self.subscribed += usize::from(!had_head && stream.has_head());
        if outcome.is_err() {
            self.ended += 1;
            *slot = None;
        }
    }
}

/// The counter and the time of a message.
fn message(data: &[u8]) -> Option<(u64, u64)> {
    let mut numbers = std::str::from_utf8(data).ok()?.split(' ');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
