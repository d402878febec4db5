//! A small Redis server: keys that expire, lists that clients wait for, and channels.
//!
//! ```sh
//! cargo run --release --example resp -- --listen 127.0.0.1:6379 --workers 2
//! ```
//!
//! Then run `redis-cli`, `redis-benchmark -t ping,set,get,incr,lpush`, or any client library:
//!
//! ```text
//! redis-cli SET colour green EX 60          OK
//! redis-cli BLPOP jobs 0                    waits, until another client runs: RPUSH jobs one
//! redis-cli SUBSCRIBE news                  gets what another client sends: PUBLISH news hello
//! ```
//!
//! It speaks RESP2 (redis-py: `protocol=2`), and keeps everything in memory, without a bound.
//! Clients that wait, in BLPOP or for the messages of a channel, occupy no thread: two workers serve
//! thousands of them. The idioms:
//!
//! - A message that arrives in pieces: `protocol::Parser` parses what has arrived and keeps it, and
//!   [`Next::More`] waits for the rest. Several messages at once (pipelining): `serve` takes a
//!   bounded number, and [`Next::Park`] has it called again for what is left.
//! - A buffer of each worker's own ([`Service::worker`]), and replies of any length with which no
//!   worker waits for the client: `protocol::Reply::send`.
//! - A client waits for another client (BLPOP), or for a time ([`Next::Wait`], `Waker`,
//!   [`Connection::wake_at`]): `begin_pop`, `resume_pop`. If the client leaves while it waits,
//!   nothing is lost: the drop of `store::BlockedPop`, which is a part of the session.
//! - State that all workers share, under a plain lock and without a system call under it: `store`.
//! - Push to many clients (PUBLISH): `channels` sends the same bytes to an `Outbox` for each. A
//!   subscriber that reads too slowly is dropped (`WhenFull`): `channels::Subscriber`.
//! - A time-out that depends on what the client does: `set_idle_timeout`.
//! - The server stops ([`handover::Cause::draining`]): `resume_pop` tells the clients that wait. The
//!   server itself ends the others, behind their answers and what was published.
//!
//! The other options: `--outbox-limit BYTES` is how much may wait for a subscriber before it is
//! disconnected (8 MiB); `--timeout SECONDS` is how long a client may be idle (for ever, as in
//! Redis; clients that wait or subscribe may always).

#[path = "../common/mod.rs"]
mod common;

mod channels;
mod commands;
mod protocol;
mod store;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use handover::{Connection, Next, Service};
use lexopt::ValueExt;

use channels::{Channels, Subscriber, Topic};
use protocol::{BULK_LIMIT, Failure, LINE_LIMIT, LONG_REPLY, Parser, Reply, integer};
use store::{BlockedPop, Element, Store};

/// How many requests of one client are served before other clients have their turn.
const REQUESTS_PER_CALL: usize = 64;

/// What all connections share.
struct Redis {
    store: Arc<Store>,
    channels: Arc<Channels>,
    idle_timeout: Duration,
    outbox_limit: usize,
    next_client: AtomicI64,
}

/// What belongs to one connection.
struct Session {
    client: i64,
    parser: Parser,
    /// The client waits in BLPOP.
    blocked: Option<BlockedPop>,
    /// The client has subscribed to channels or patterns.
    subscriber: Option<Subscriber>,
}

impl Service for Redis {
    type Session = Session;
    /// Replies are encoded here.
    type Worker = Vec<u8>;

    fn worker(&self, _index: usize) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn session(&self, _conn: &mut Connection) -> io::Result<Session> {
        Ok(Session {
            client: self.next_client.fetch_add(1, Relaxed),
            parser: Parser::default(),
            blocked: None,
            subscriber: None,
        })
    }

    /// Serves the requests that have arrived. A client that sends many at once (pipelining) gets
    /// their replies together, and other clients have their turn in between.
    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        scratch: &mut Vec<u8>,
    ) -> io::Result<Next> {
        let mut sent = 0;
        for _ in 0..REQUESTS_PER_CALL {
            let (reply, next) = self.answer(conn, session);
            if let Some(reply) = reply {
                sent += reply.send(conn, scratch)?;
            }
            // After long replies, the next call comes when the client has read them.
            if next != Next::Park || sent >= LONG_REPLY || conn.buffer().is_empty() {
                return Ok(next);
            }
        }
        Ok(Next::Park)
    }
}

impl Redis {
    /// Takes and executes the next request, or goes on with one that waits. Returns the reply, if
    /// there is one now, and what becomes of the connection.
    fn answer(&self, conn: &mut Connection, session: &mut Session) -> (Option<Reply>, Next) {
        if session.blocked.is_some() {
            return self.resume_pop(conn, session);
        }
        let request = match session.parser.take(conn) {
            Ok(Some(request)) => request,
            Ok(None) if conn.at_eof() => return (None, Next::Close),
            // A wake-up or a timer that came late: the client is between two requests.
            Ok(None) if conn.buffer().is_empty() && !session.parser.is_in_request() => {
                return (None, Next::Park);
            }
            Ok(None) => return (None, Next::More),
            Err(failure) => return (Some(Reply::Error(failure)), Next::Close),
        };
        let [name, args @ ..] = request.as_slice() else {
            return (None, Next::Park);
        };
        let name = name.to_ascii_uppercase();
        let reply = match (name.as_slice(), args) {
            (b"QUIT", _) => return (Some(Reply::OK), Next::Close),
            (b"BLPOP", [lists @ .., seconds]) if !lists.is_empty() && !session.is_subscribed() => {
                match self.begin_pop(conn, session, lists, seconds) {
                    Ok(Some(element)) => element_reply(element),
                    // The service was told of the end of the client's side, and is not told again.
                    Ok(None) if conn.at_eof() => return (None, Next::Close),
                    Ok(None) => return (None, Next::Wait),
                    Err(failure) => Reply::Error(failure),
                }
            }
            _ => self.execute(conn, session, &name, args).into(),
        };
        (Some(reply), Next::Park)
    }

    fn execute(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        name: &[u8],
        args: &[Bytes],
    ) -> Result<Reply, Failure> {
        match (name, args) {
            (b"SUBSCRIBE", [_, ..]) => Ok(self.subscribe(conn, session, args, Topic::Channel)),
            (b"PSUBSCRIBE", [_, ..]) => Ok(self.subscribe(conn, session, args, Topic::Pattern)),
            (b"UNSUBSCRIBE", _) => Ok(self.unsubscribe(conn, session, args, Topic::Channel)),
            (b"PUNSUBSCRIBE", _) => Ok(self.unsubscribe(conn, session, args, Topic::Pattern)),
            // A subscriber's replies have the form of messages.
            (b"PING", [] | [_]) if session.is_subscribed() => {
                let text = args.first().cloned().unwrap_or_default();
                Ok(Reply::Array(vec![Reply::text("pong"), Reply::Bulk(text)]))
            }
            _ if session.is_subscribed() => {
                let name = name.to_ascii_lowercase();
                Err(Failure::new(format!(
                    "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
                     RESET are allowed in this context",
                    name[..name.len().min(128)].escape_ascii()
                )))
            }
            (b"PUBLISH", [channel, message]) => {
                Ok(Reply::count(self.channels.publish(channel, message)))
            }
            (b"HELLO", _) => hello(session.client, args),
            (b"CLIENT", [id]) if id.eq_ignore_ascii_case(b"id") => {
                Ok(Reply::Integer(session.client))
            }
            _ => commands::execute(&self.store, name, args),
        }
    }

    // ---- waiting for another client ----

    /// Takes an element, or makes the client wait for one.
    fn begin_pop(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        lists: &[Bytes],
        seconds: &[u8],
    ) -> Result<Option<Element>, Failure> {
        let until = commands::wait_limit(seconds)?;
        match self.store.pop_or_wait(lists, conn.waker())? {
            Ok(element) => Ok(Some(element)),
            Err(blocked) => {
                session.blocked = Some(blocked);
                conn.wake_at(until);
                self.set_idle_timeout(conn, session);
                Ok(None)
            }
        }
    }

    /// The connection of a client that waits is called: an element has come, the time is over, the
    /// client has left, or the server stops.
    fn resume_pop(&self, conn: &mut Connection, session: &mut Session) -> (Option<Reply>, Next) {
        let cause = conn.cause();
        if cause.ended {
            return (None, Next::Close);
        }
        let element = session.blocked.as_ref().and_then(BlockedPop::take);
        let reply = match element {
            Some(element) => element_reply(element),
            None if cause.timer => Reply::NilArray,
            None if cause.draining => Reply::Error(Failure::new(
                "UNBLOCKED force unblock from blocking operation, the server stops",
            )),
            None => return (None, Next::Wait),
        };
        session.blocked = None;
        conn.wake_at(None);
        self.set_idle_timeout(conn, session);
        (Some(reply), Next::Park)
    }

    // ---- subscribing ----

    /// Messages follow when the call has returned, so the confirmation comes before them.
    fn subscribe(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        names: &[Bytes],
        topic: fn(Bytes) -> Topic,
    ) -> Reply {
        let new = || Subscriber::new(&self.channels, conn, self.outbox_limit);
        let subscriber = session.subscriber.get_or_insert_with(new);
        let replies = names.iter().map(|name| {
            let topic = topic(name.clone());
            subscriber.subscribe(topic.clone());
            let count = subscriber.topics().len();
            confirmation("subscribe", &topic, count)
        });
        let replies = Reply::Each(replies.collect());
        self.set_idle_timeout(conn, session);
        replies
    }

    /// Without names, ends all subscriptions to channels, or to patterns.
    fn unsubscribe(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        names: &[Bytes],
        topic: fn(Bytes) -> Topic,
    ) -> Reply {
        let is_pattern = topic(Bytes::new()).pattern().is_some();
        let subscribed = session.subscriber.iter().flat_map(Subscriber::topics);
        let topics: Vec<Topic> = match names {
            [] => subscribed
                .filter(|topic| topic.pattern().is_some() == is_pattern)
                .cloned()
                .collect(),
            names => names.iter().cloned().map(topic).collect(),
        };
        let mut count = session.topic_count();
        let mut replies = Vec::new();
        for topic in &topics {
            if let Some(subscriber) = &mut session.subscriber {
                subscriber.unsubscribe(topic);
                count = subscriber.topics().len();
            }
            replies.push(confirmation("unsubscribe", topic, count));
        }
        if topics.is_empty() {
            let kind = if is_pattern {
                "punsubscribe"
            } else {
                "unsubscribe"
            };
            let count = Reply::count(count);
            replies.push(Reply::Array(vec![Reply::text(kind), Reply::Nil, count]));
        }
        if count == 0 && session.subscriber.take().is_some() {
            // Messages that are in the outbox are written before the confirmation, and none after.
            conn.close_outbox();
            self.set_idle_timeout(conn, session);
        }
        Reply::Each(replies)
    }

    /// A client that waits or subscribes is not idle, although it sends nothing.
    fn set_idle_timeout(&self, conn: &mut Connection, session: &Session) {
        let is_waiting = session.blocked.is_some() || session.is_subscribed();
        conn.set_idle_timeout(match is_waiting {
            true => Duration::MAX,
            false => self.idle_timeout,
        });
    }
}

impl Session {
    fn is_subscribed(&self) -> bool {
        self.subscriber.is_some()
    }

    fn topic_count(&self) -> usize {
        let topics = self.subscriber.as_ref().map(Subscriber::topics);
        topics.map_or(0, |topics| topics.len())
    }
}

fn element_reply(element: Element) -> Reply {
    Reply::Array(vec![Reply::Bulk(element.key), Reply::Bulk(element.value)])
}

/// `topic` is subscribed to, or no longer; the client has `count` subscriptions.
fn confirmation(kind: &'static str, topic: &Topic, count: usize) -> Reply {
    let kind = match (kind, topic) {
        ("subscribe", Topic::Pattern(_)) => "psubscribe",
        ("unsubscribe", Topic::Pattern(_)) => "punsubscribe",
        _ => kind,
    };
    let name = Reply::Bulk(topic.name().clone());
    Reply::Array(vec![Reply::text(kind), name, Reply::count(count)])
}

/// `HELLO [version …]`: which protocol is spoken, and by which server.
fn hello(client: i64, args: &[Bytes]) -> Result<Reply, Failure> {
    match args.first().map(|version| integer(version)) {
        None | Some(Some(2)) => Ok(Reply::Array(vec![
            Reply::text("server"),
            Reply::text("redis"),
            Reply::text("version"),
            Reply::text(env!("CARGO_PKG_VERSION")),
            Reply::text("proto"),
            Reply::Integer(2),
            Reply::text("id"),
            Reply::Integer(client),
            Reply::text("mode"),
            Reply::text("standalone"),
            Reply::text("role"),
            Reply::text("master"),
            Reply::text("modules"),
            Reply::Array(Vec::new()),
        ])),
        _ => Err(Failure::new("NOPROTO unsupported protocol version")),
    }
}

const ABOUT: common::About = common::About {
    name: "resp",
    purpose: "A small Redis server: keys that expire, lists that clients wait for, and channels.",
    listen: "127.0.0.1:6379",
    own_options:
        "  --outbox-limit BYTES      how much may wait for a subscriber before it is disconnected
",
    can_restart: false,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut outbox_limit = 8 << 20;
    let options = common::Options::parse_with(&ABOUT, |name, parser| {
        if name == "outbox-limit" {
            outbox_limit = parser.value()?.parse_with(common::number)?;
        }
        Ok(name == "outbox-limit")
    });
    let idle_timeout = options.timeout.unwrap_or(Duration::MAX);
    let redis = Redis {
        store: Arc::default(),
        channels: Arc::default(),
        idle_timeout,
        outbox_limit,
        next_client: AtomicI64::new(1),
    };
    let builder = options.builder().idle_timeout(idle_timeout);
    // An argument is parsed when it is complete.
    let server = builder.input_limit(BULK_LIMIT + LINE_LIMIT).build(redis)?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    println!("{report}");
    Ok(())
}
