//! The channels, and their subscribers.
//!
//! A message is encoded once, and each subscriber's outbox gets the same bytes. The thread that
//! publishes writes to the subscribers whose sockets take the message at once. Nothing is sent under
//! a lock: the publisher takes a shared list of the subscribers, which a later subscription
//! replaces. So the messages of one publisher keep their order, and those of several publishers have
//! none; and a message that is being published while its subscriber unsubscribes may still arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use handover::{Connection, Outbox, WhenFull};
use parking_lot::RwLock;

use crate::protocol::Reply;

/// What a client subscribes to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Channel(Bytes),
    /// All channels whose name matches, see [`matches`].
    Pattern(Bytes),
}

type Subscribers = Arc<BTreeMap<u64, Outbox>>;

#[derive(Default)]
pub(crate) struct Channels {
    topics: RwLock<BTreeMap<Topic, Subscribers>>,
    next_subscriber: AtomicU64,
}

impl Channels {
    /// Sends a message to all subscribers of a channel. Returns how many there were.
    pub(crate) fn publish(&self, channel: &Bytes, message: &Bytes) -> usize {
        let mut deliveries = Vec::new();
        {
            let topics = self.topics.read();
            if let Some(subscribers) = topics.get(&Topic::Channel(channel.clone())) {
                let parts = [&Bytes::from_static(b"message"), channel, message];
                deliveries.push((encode(parts), Arc::clone(subscribers)));
            }
            // Patterns come after all channels in the order of topics.
            for (topic, subscribers) in topics.range(Topic::Pattern(Bytes::new())..) {
                if let Some(pattern) = topic.pattern().filter(|it| matches(it, channel)) {
                    let parts = [&Bytes::from_static(b"pmessage"), pattern, channel, message];
                    deliveries.push((encode(parts), Arc::clone(subscribers)));
                }
            }
        }
        let mut sent = 0;
        for (message, subscribers) in deliveries {
            for outbox in subscribers.values() {
                // An error: the subscriber has left, or reads too slowly and is being dropped.
                sent += usize::from(outbox.send(message.clone()).is_ok());
            }
        }
        sent
    }
}

impl Topic {
    pub(crate) fn pattern(&self) -> Option<&Bytes> {
        match self {
            Self::Channel(_) => None,
            Self::Pattern(pattern) => Some(pattern),
        }
    }

    pub(crate) fn name(&self) -> &Bytes {
        let (Self::Channel(name) | Self::Pattern(name)) = self;
        name
    }
}

/// The subscriptions of one client. The session of its connection has them, so that they end with
/// the connection.
pub(crate) struct Subscriber {
    channels: Arc<Channels>,
    id: u64,
    outbox: Outbox,
    topics: BTreeSet<Topic>,
}

impl Subscriber {
    /// A client that lets more than `limit` bytes wait is disconnected, as in Redis
    /// (`client-output-buffer-limit`).
    pub(crate) fn new(channels: &Arc<Channels>, conn: &mut Connection, limit: usize) -> Self {
        let outbox = conn.outbox(limit);
        outbox.set_when_full(WhenFull::CloseConnection);
        Self {
            channels: Arc::clone(channels),
            id: channels.next_subscriber.fetch_add(1, Relaxed),
            outbox,
            topics: BTreeSet::new(),
        }
    }

    pub(crate) fn subscribe(&mut self, topic: Topic) {
        let mut topics = self.channels.topics.write();
        let subscribers = topics.entry(topic.clone()).or_default();
        // Copies the list only while a message is being sent to it.
        Arc::make_mut(subscribers).insert(self.id, self.outbox.clone());
        self.topics.insert(topic);
    }

    pub(crate) fn unsubscribe(&mut self, topic: &Topic) {
        let mut topics = self.channels.topics.write();
        self.topics.remove(topic);
        if let Some(subscribers) = topics.get_mut(topic) {
            Arc::make_mut(subscribers).remove(&self.id);
            if subscribers.is_empty() {
                topics.remove(topic);
            }
        }
    }

    pub(crate) fn topics(&self) -> &BTreeSet<Topic> {
        &self.topics
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        for topic in std::mem::take(&mut self.topics) {
            self.unsubscribe(&topic);
        }
    }
}

fn encode<const N: usize>(parts: [&Bytes; N]) -> Bytes {
    let parts = parts.map(|part| Reply::Bulk(part.clone()));
    let mut encoded = Vec::new();
    Reply::Array(parts.into()).encode(&mut encoded);
    encoded.into()
}

/// Whether a name matches a pattern: `?` is any byte, `*` any bytes, `\` takes the next byte as it
/// is.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // Where to go on if what follows the last `*` does not match: it then stands for a byte more.
    let mut retry = None;
    loop {
        (pattern, name) = match (pattern, name) {
            ([], []) => return true,
            ([b'*', pattern @ ..], _) => {
                retry = Some((pattern, name));
                (pattern, name)
            }
            ([b'?', pattern @ ..], [_, name @ ..]) => (pattern, name),
            ([b'\\', wanted, pattern @ ..] | [wanted, pattern @ ..], [byte, name @ ..])
                if wanted == byte =>
            {
                (pattern, name)
            }
            _ => match retry {
                Some((pattern, [_, name @ ..])) => {
                    retry = Some((pattern, name));
                    (pattern, name)
                }
                _ => return false,
            },
        };
    }
}
