//! The clients: one process with one thread, whose connections wait in one epoll instance, so that
//! the load costs little and does not depend on the scheduler.
//!
//! Every client is a closed loop: it sends its next request when it has the answer.
//!
//! | phase | length | clients | latency counts |
//! |---|---|---|---|
//! | 1 | as given | send requests | yes |
//! | 2 | until the requests of phase 1 are answered, at most 5 s | send requests | no |
//! | 3 | until all requests are answered | only wait | no |
//!
//! Without phase 2, the last requests of clients that wait for long would be answered by a server
//! with less load. Clients that pipeline are not waited for. They disconnect after phase 3.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::retry_on_intr;
use socket2::SockRef;

use super::Result;
use super::pages::{BURN, FAST, Page, SLEEP, SLEEP_AND_CLOSE};

/// How many requests a pipelining client sends at once.
pub(crate) const BATCH: usize = 500;
/// After this time without any answer the server counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long phase 3 may be.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long phase 2 may be.
const TAIL: Duration = Duration::from_secs(5);
/// How long a client waits before it tries again, after it was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// How the answer to a refused client begins.
const REFUSAL: &[u8] = b"HTTP/1.1 503 ";
/// One of this many requests of `Kind::Mixed` sleeps.
const MIXED_PERIOD: u64 = 10;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Requests the page that is answered at once.
    Fast,
    /// Requests the page that sleeps.
    Sleep,
    /// Requests nine pages that are answered at once, then one that sleeps. The latency of the nine
    /// counts.
    Mixed,
    /// Requests the page that uses CPU time.
    Burn,
    /// Requests the page that sleeps, on a new connection for each request.
    Fresh,
    /// Sends [`BATCH`] requests for the page that sleeps at once. The latency is that of the batch.
    Batch,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Fast, "fast"),
    (Kind::Sleep, "sleep"),
    (Kind::Mixed, "mixed"),
    (Kind::Burn, "burn"),
    (Kind::Fresh, "fresh"),
    (Kind::Batch, "batch"),
];

/// Clients that behave alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) kind: Kind,
    pub(crate) clients: usize,
}

/// All clients of a measurement. The text is `KIND=CLIENTS,…`.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) groups: Vec<Group>,
}

impl Load {
    pub(crate) fn new(groups: &[(Kind, usize)]) -> Self {
        let group = |&(kind, clients)| Group { kind, clients };
        Self {
            groups: groups.iter().map(group).collect(),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, group) in self.groups.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let name = KINDS.iter().find(|(kind, _)| *kind == group.kind);
            write!(
                f,
                "{comma}{}={}",
                name.map_or("", |(_, name)| name),
                group.clients
            )?;
        }
        Ok(())
    }
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let group = |text: &str| {
            let (name, clients) = text.split_once('=')?;
            let (kind, _) = KINDS.iter().find(|(_, known)| *known == name)?;
            let clients = clients.parse().ok()?;
            Some(Group {
                kind: *kind,
                clients,
            })
        };
        let groups = text.split(',').map(group).collect::<Option<_>>();
        groups
            .map(|groups| Self { groups })
            .ok_or(format!("not a load: {text}"))
    }
}

/// What the clients of one group got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Answered requests.
    pub(crate) requests: u64,
    pub(crate) refused: u64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// The p99 in which each request counts in proportion to its latency. While a server lets a few
    /// clients starve, the others send more requests, so that the starving ones are too few for the
    /// usual p99. They wait as long as the others, so this one shows them.
    pub(crate) p99_by_time: Duration,
    pub(crate) max: Duration,
}

impl Figures {
    /// Reads what `Display` has written.
    pub(super) fn parse(next: &mut impl FnMut() -> Result<u64>) -> Result<Self> {
        Ok(Self {
            requests: next()?,
            refused: next()?,
            p50: Duration::from_nanos(next()?),
            p99: Duration::from_nanos(next()?),
            p99_by_time: Duration::from_nanos(next()?),
            max: Duration::from_nanos(next()?),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = [self.p50, self.p99, self.p99_by_time, self.max];
        let [p50, p99, p99_by_time, max] = times.map(|time| time.as_nanos());
        let Self {
            requests, refused, ..
        } = self;
        write!(f, "{requests} {refused} {p50} {p99} {p99_by_time} {max}")
    }
}

/// Connects, warms up, prints a line, and waits for one. Then applies the load, prints its time in
/// nanoseconds and the figures of its groups, and stays connected until the input ends, so that the
/// measurement does not contain the end of the connections.
pub(super) fn run(
    address: SocketAddr,
    load: &Load,
    duration: Duration,
    warm_up: Duration,
) -> Result<()> {
    let mut clients = Clients::connect(address, load)?;
    clients.apply_load(warm_up, |kind| kind != Kind::Batch)?;
    println!("ready");

    let mut line = String::new();
    while io::stdin().read_line(&mut line)? > 0 {
        let (groups, took) = clients.apply_load(duration, |_| true)?;
        let groups = groups.iter().map(|group| format!(" {group}"));
        println!("{}{}", took.as_nanos(), groups.collect::<String>());
    }
    Ok(())
}

struct Clients {
    epoll: OwnedFd,
    address: SocketAddr,
    groups: Vec<Group>,
    clients: Vec<Client>,
}

impl Clients {
    fn connect(address: SocketAddr, load: &Load) -> Result<Self> {
        wait_until_listening(address)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut clients = Vec::new();
        for (index, group) in load.groups.iter().enumerate() {
            for _ in 0..group.clients {
                let mut client = Client::new(clients.len() as u64, index, group.kind);
                if client.kind != Kind::Fresh {
                    client.connect(address, &epoll)?;
                }
                clients.push(client);
            }
        }
        Ok(Self {
            epoll,
            address,
            groups: load.groups.clone(),
            clients,
        })
    }

    /// Has the clients of some kinds send requests: phase 1 has the given length.
    fn apply_load(
        &mut self,
        duration: Duration,
        takes_part: impl Fn(Kind) -> bool,
    ) -> Result<(Vec<Figures>, Duration)> {
        let started = Instant::now();
        let mut run = Run {
            epoll: &self.epoll,
            address: self.address,
            clients: &mut self.clients,
            records: self.groups.iter().map(|_| Record::default()).collect(),
            buffer: vec![0; 64 * 1024],
            refused: VecDeque::new(),
            due: 0,
            counted_due: 0,
            end: started + duration,
            answered_at: started,
        };
        for index in 0..run.clients.len() {
            if takes_part(run.clients[index].kind) {
                run.send(index)?;
            }
        }
        run.run()?;
        let took = started.elapsed();
        let figures = run.records.into_iter().map(Record::figures).collect();
        for client in &mut self.clients {
            if client.kind == Kind::Batch {
                client.disconnect();
                client.unanswered = 0;
            }
        }
        Ok((figures, took))
    }
}

/// One load, from its first request to its last answer.
struct Run<'a> {
    epoll: &'a OwnedFd,
    address: SocketAddr,
    clients: &'a mut [Client],
    /// One for each group.
    records: Vec<Record>,
    buffer: Vec<u8>,
    /// Clients that were refused, with the time of their next attempt.
    refused: VecDeque<(Instant, usize)>,
    /// Clients that wait for an answer, without those that pipeline.
    due: usize,
    /// Those of them that sent their request in phase 1.
    counted_due: usize,
    /// The end of phase 1.
    end: Instant,
    /// The time of the last answer, or refusal.
    answered_at: Instant,
}

impl Run<'_> {
    fn run(&mut self) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(1024);
        loop {
            let now = Instant::now();
            let sends = self.sends(now);
            if !sends && self.due == 0 {
                return Ok(());
            }
            let last_sign = self.answered_at.max(self.end);
            let give_up_at = (last_sign + PATIENCE).min(self.end + TAIL + LONGEST_WAIT);
            if now >= give_up_at {
                let silence = self.answered_at.elapsed();
                return Err(format!(
                    "{} clients wait, the last answer was {silence:?} ago",
                    self.due
                )
                .into());
            }
            let mut until = give_up_at;
            if sends {
                self.retry_refused(now)?;
                let phase_end = if now < self.end {
                    self.end
                } else {
                    self.end + TAIL
                };
                let retry = self.refused.front().map(|(at, _)| *at);
                until = retry.map_or(phase_end, |at| at.min(phase_end));
            }
            let timeout = Timespec::try_from(until.saturating_duration_since(now))?;
            events.clear();
            retry_on_intr(|| epoll::wait(self.epoll, spare_capacity(&mut events), Some(&timeout)))?;
            for event in &events {
                self.receive(event.data.u64() as usize)?;
            }
        }
    }

    /// Whether this is phase 1 or 2.
    fn sends(&self, now: Instant) -> bool {
        now < self.end || (self.counted_due > 0 && now < self.end + TAIL)
    }

    fn retry_refused(&mut self, now: Instant) -> Result<()> {
        while let Some(&(at, index)) = self.refused.front() {
            if at > now {
                break;
            }
            self.refused.pop_front();
            self.send(index)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> Result<()> {
        let client = &mut self.clients[index];
        client.send(self.address, self.epoll)?;
        if client.kind != Kind::Batch {
            self.due += 1;
            self.counted_due += usize::from(client.sent_at < self.end);
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<()> {
        let client = &mut self.clients[index];
        if client.unanswered == 0 {
            // The server has closed an idle connection.
            client.stream = None;
            return Ok(());
        }
        let record = &mut self.records[client.group];
        let is_counted = client.sent_at < self.end;
        let received = client.receive(&mut self.buffer)?;
        let now = Instant::now();
        self.answered_at = now;
        let is_refused = match received {
            Received::Answers(answers) => {
                record.requests += answers as u64;
                let unanswered = client.unanswered.checked_sub(answers);
                client.unanswered = unanswered.ok_or("more answers than requests")?;
                if client.unanswered > 0 {
                    return Ok(());
                }
                if is_counted && client.latency_counts() {
                    record.latencies.push(now - client.sent_at);
                }
                false
            }
            Received::Refusal => {
                record.refused += u64::from(is_counted);
                client.unanswered = 0;
                self.refused.push_back((now + REFUSED_PAUSE, index));
                true
            }
        };
        if client.kind != Kind::Batch {
            self.due -= 1;
            self.counted_due -= usize::from(is_counted);
        }
        if is_refused || client.kind == Kind::Fresh {
            client.disconnect();
        }
        match !is_refused && self.sends(now) {
            true => self.send(index),
            false => Ok(()),
        }
    }
}

/// What the clients of one group got, request by request.
#[derive(Default)]
struct Record {
    requests: u64,
    refused: u64,
    latencies: Vec<Duration>,
}

impl Record {
    fn figures(mut self) -> Figures {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        let at = |share: f64| {
            let index = (self.latencies.len() as f64 * share) as usize;
            self.latencies
                .get(index.min(last))
                .copied()
                .unwrap_or_default()
        };
        let hundredth = self.latencies.iter().sum::<Duration>() / 100;
        let mut longer = Duration::ZERO;
        let p99_by_time = self.latencies.iter().rev().find(|latency| {
            longer += **latency;
            longer > hundredth
        });
        Figures {
            requests: self.requests,
            refused: self.refused,
            p50: at(0.5),
            p99: at(0.99),
            p99_by_time: p99_by_time.copied().unwrap_or_default(),
            max: at(1.0),
        }
    }
}

struct Client {
    index: u64,
    /// The index of its group.
    group: usize,
    kind: Kind,
    /// `None`: the client has to connect before its next request.
    stream: Option<TcpStream>,
    /// How often it has sent a request or a batch.
    sent: u64,
    /// The page of the last request.
    page: Page,
    sent_at: Instant,
    unanswered: usize,
    /// What has arrived of the next answer. Of a batch: what may be a part of it.
    input: Vec<u8>,
}

enum Received {
    /// So many answers are complete now.
    Answers(usize),
    /// The server sent an answer 503, or closed the connection without an answer.
    Refusal,
}

impl Client {
    fn new(index: u64, group: usize, kind: Kind) -> Self {
        Self {
            index,
            group,
            kind,
            stream: None,
            sent: 0,
            page: FAST,
            sent_at: Instant::now(),
            unanswered: 0,
            input: Vec::with_capacity(1024),
        }
    }

    fn connect(&mut self, address: SocketAddr, epoll: &OwnedFd) -> Result<&TcpStream> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .map_err(|error| format!("cannot connect to {address}: {error}"))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        if self.kind == Kind::Batch {
            // Room for a batch, so that no write of one would block.
            SockRef::from(&stream).set_send_buffer_size(1 << 20)?;
        }
        let interest = EventFlags::IN | EventFlags::ET;
        epoll::add(epoll, &stream, EventData::new_u64(self.index), interest)?;
        Ok(self.stream.insert(stream))
    }

    /// Disconnects by a reset, which leaves no socket in TIME_WAIT: there would be thousands.
    fn disconnect(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    fn send(&mut self, address: SocketAddr, epoll: &OwnedFd) -> Result<()> {
        self.sent_at = Instant::now();
        self.input.clear();
        self.sent += 1;
        self.page = match self.kind {
            Kind::Fast => FAST,
            // Not all clients sleep at the same time.
            Kind::Mixed if (self.sent + self.index) % MIXED_PERIOD != 0 => FAST,
            Kind::Mixed | Kind::Sleep | Kind::Batch => SLEEP,
            Kind::Fresh => SLEEP_AND_CLOSE,
            Kind::Burn => BURN,
        };
        self.unanswered = if self.kind == Kind::Batch { BATCH } else { 1 };
        if self.stream.is_none() {
            self.connect(address, epoll)?;
        }
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let sent = match self.kind {
            Kind::Batch => stream.write_all(&self.page.request.repeat(BATCH)),
            _ => stream.write_all(self.page.request),
        };
        match sent {
            // The server has refused the connection already: the next read says so.
            Err(error) if is_disconnect(&error) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Whether the latency of the last request is one that counts.
    fn latency_counts(&self) -> bool {
        self.kind != Kind::Mixed || self.page.body == FAST.body
    }

    /// Reads all that has arrived.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received> {
        let Some(stream) = &mut self.stream else {
            return Ok(Received::Answers(0));
        };
        let mut has_ended = false;
        loop {
            match stream.read(buffer) {
                Ok(0) => has_ended = true,
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    // A short read has emptied the socket, see epoll(7).
                    if count == buffer.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_disconnect(&error) => has_ended = true,
                Err(error) => return Err(error.into()),
            }
            break;
        }
        let answers = match self.kind {
            Kind::Batch => self.take_batch_answers(),
            _ => usize::from(self.is_answered()?),
        };
        let is_refusal = self.input.starts_with(REFUSAL);
        match answers == 0 && (has_ended || is_refusal) {
            true => Ok(Received::Refusal),
            false => Ok(Received::Answers(answers)),
        }
    }

    /// Whether the answer is complete. An error: the answer is wrong.
    fn is_answered(&self) -> Result<bool> {
        const LONGEST: usize = 1024;

        let is_ok = self.input.starts_with(b"HTTP/1.1 200 ");
        if is_ok && self.input.ends_with(self.page.body) {
            return Ok(true);
        }
        let is_refusal = self.input.starts_with(REFUSAL);
        let is_wrong = self.input.len() >= REFUSAL.len() && !is_ok && !is_refusal;
        match is_wrong || self.input.len() > LONGEST {
            true => Err(format!("wrong answer: {}", String::from_utf8_lossy(&self.input)).into()),
            false => Ok(false),
        }
    }

    /// Counts the complete answers, and removes them from the input.
    fn take_batch_answers(&mut self) -> usize {
        let body = self.page.body;
        let ends = self
            .input
            .windows(body.len())
            .filter(|window| *window == body);
        let answers = ends.count();
        // What is left is shorter than a body, so no body is counted twice.
        let seen = self.input.len().saturating_sub(body.len() - 1);
        self.input.drain(..seen);
        answers
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// A server that is another program does not say when it listens.
fn wait_until_listening(address: SocketAddr) -> Result<()> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > give_up_at => {
                return Err(format!("cannot connect to {address}: {error}").into());
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
