//! Clients of a server that pushes: very many subscribers to a stream of events, a publisher, and, beside them, clients
//! that make usual requests.
//!
//! Prints one line of JSON. The parts of a run, each of so many seconds: the usual clients alone; the subscribers alone
//! (the part that the server's CPU time is taken from); both together; and, without the subscribers, very many
//! requests for `/later` together with the usual clients.

mod askers;
mod connection;
mod event_stream;
mod figures;
mod later;
mod publisher;
mod subscribers;

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use versus::Arguments;

use crate::askers::Askers;
use crate::figures::Server;
use crate::later::Waiting;
use crate::publisher::Plan;
use crate::subscribers::Subscribers;

/// What is left to do after the last client has subscribed.
const SETTLE: Duration = Duration::from_millis(500);

struct Run {
    server: SocketAddr,
    process: Server,
    seconds: u64,
    interval: Duration,
    body_bytes: usize,
    askers: u32,
    /// How long after the last message the silent clients are to be dropped.
    drop_time: Duration,
    /// The counter of the next message.
    next: u64,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&[
        "--connect",
        "--server-pid",
        "--seconds",
        "--subscribers",
        "--silent",
        "--drop-seconds",
        "--rate",
        "--body-bytes",
        "--askers",
        "--later",
        "--later-ms",
    ]);
    let number = |name, usual| arguments.value::<u32>(name).unwrap_or(usual);
    let mut run = Run {
        server: arguments.required("--connect"),
        process: Server::new(arguments.required("--server-pid")),
        seconds: number("--seconds", 5).into(),
        interval: Duration::from_secs(1) / number("--rate", 10).max(1),
        body_bytes: number("--body-bytes", 32) as usize,
        askers: number("--askers", 0),
        drop_time: Duration::from_secs(number("--drop-seconds", 90).into()),
        next: 0,
    };
    raise_descriptor_limit();
    let mut parts = Vec::new();
    if run.askers > 0 {
        parts.push(format!(r#""asks_alone": {}"#, run.asks_alone()?));
    }
    let subscribers = number("--subscribers", 0) as usize;
    if subscribers > 0 {
        parts.push(run.push(subscribers, number("--silent", 0) as usize)?);
    }
    let later = number("--later", 0) as usize;
    if later > 0 {
        parts.push(run.later(later, number("--later-ms", 1000))?);
    }
    println!("{{{}}}", parts.join(", "));
    Ok(())
}

impl Run {
    fn asks_alone(&self) -> io::Result<String> {
        let askers = Askers::start(self.server, self.askers)?;
        thread::sleep(Duration::from_secs(self.seconds));
        Ok(askers.stop()?.json())
    }

    fn push(&mut self, number: usize, silent: usize) -> io::Result<String> {
        let (began, cpu_before) = (Instant::now(), self.process.cpu_time()?);
        let mut subscribers = Subscribers::open(self.server, number, silent)?;
        let opened = began.elapsed();
        thread::sleep(SETTLE);
        let open_us = (self.process.cpu_time()? - cpu_before).as_secs_f64() * 1e6 / number as f64;
        let rss = self.process.rss_bytes()?;
        let descriptors = self.process.descriptors()?;

        let alone = self.messages(&mut subscribers)?;
        let mut parts = vec![
            format!(r#""subscribers": {number}, "silent": {silent}"#),
            format!(r#""open_seconds": {:.3}"#, opened.as_secs_f64()),
            format!(r#""cpu_us_per_subscriber": {open_us:.2}, "rss_bytes_idle": {rss}"#),
            format!(r#""push": {{{alone}}}"#),
        ];
        if self.askers > 0 {
            let askers = Askers::start(self.server, self.askers)?;
            let both = self.messages(&mut subscribers)?;
            let asks = askers.stop()?.json();
            parts.push(format!(r#""push_and_asks": {{{both}, "asks": {asks}}}"#));
        }
        // A client that does not read cannot hear that it was dropped.
        let closed = || io::Result::Ok(descriptors.saturating_sub(self.process.descriptors()?));
        let last_message = Instant::now();
        while closed()? < silent && last_message.elapsed() < self.drop_time {
            thread::sleep(Duration::from_millis(100));
        }
        parts.push(format!(
            r#""ended": {}, "dropped": {}, "dropped_seconds": {:.1}, "rss_bytes_end": {}"#,
            subscribers.ended,
            closed()?,
            last_message.elapsed().as_secs_f64(),
            self.process.rss_bytes()?
        ));
        Ok(parts.join(", "))
    }

    /// Publishes for so many seconds.
    fn messages(&mut self, subscribers: &mut Subscribers) -> io::Result<String> {
        let messages = (self.seconds * 1_000_000_000).div_ceil(self.interval.as_nanos() as u64);
        let plan = Plan {
            first: self.next,
            messages,
            interval: self.interval,
            body_bytes: self.body_bytes,
        };
        self.next += messages;
        let (began, cpu_before) = (Instant::now(), self.process.cpu_time()?);
        let publisher = publisher::start(self.server, plan)?;
        let mut rss = 0;
        let on_tick = || {
            rss = self.process.rss_bytes()?.max(rss);
            Ok(())
        };
        let end = self.next;
        let delivery =
            with_low_priority(|| subscribers.receive(end, || publisher.is_finished(), on_tick))?;
        let publish = publisher.join().expect("the publisher panicked")?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu = (self.process.cpu_time()? - cpu_before).as_secs_f64();
        let per_delivery = cpu * 1e6 / delivery.delivered.max(1) as f64;
        Ok([
            format!(
                r#""messages": {messages}, "delivered": {}"#,
                delivery.delivered
            ),
            format!(
                r#""lost": {}, "repeated": {}"#,
                delivery.lost, delivery.repeated
            ),
            format!(r#""seconds": {seconds:.3}, "cpu_seconds": {cpu:.2}"#),
            format!(r#""cpu_us_per_delivery": {per_delivery:.3}, "rss_bytes": {rss}"#),
            format!(r#""threads": {}"#, self.process.threads()?),
            format!(r#""delivery": {}"#, delivery.latencies.json()),
            format!(r#""publish": {}"#, publish.json()),
        ]
        .join(", "))
    }

    fn later(&self, number: usize, ms: u32) -> io::Result<String> {
        let mut waiting = Waiting::open(self.server, number)?;
        thread::sleep(SETTLE);
        let askers = Askers::start(self.server, self.askers)?;
        let cpu_before = self.process.cpu_time()?;
        let answers = with_low_priority(|| waiting.ask(ms))?.json();
        let cpu = (self.process.cpu_time()? - cpu_before).as_secs_f64();
        let rss = self.process.rss_bytes()?;
        let asks = askers.stop()?.json();
        // Not before: that very many clients leave at once is another burst, which is not measured here.
        drop(waiting);
        Ok(format!(
            r#""later": {{"ms": {ms}, "answers": {answers}, "asks": {asks}, "cpu_seconds": {cpu:.2}, "rss_bytes": {rss}}}"#
        ))
    }
}

/// Runs the part of the client that has the most to do, so that the publisher and the usual clients, which have threads
/// of their own, need not wait for it.
fn with_low_priority<T: Send>(part: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let lowered = || {
        // On Linux, the priority of the calling thread. It stays above that of background work.
        setpriority_process(None, 5)?;
        part()
    };
    thread::scope(|scope| scope.spawn(lowered).join().expect("a part panicked"))
}

fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        eprintln!(
            "the limit of descriptors stays at {:?}: {error}",
            limit.current
        );
    }
}
