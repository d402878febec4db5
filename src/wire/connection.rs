//! Open connections that a process gives to its successor, and the answer.

use std::fmt;
use std::net::SocketAddr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Record, VERSION, WireError, WirePath};

/// The version of [`ConnectionRecord`] that this process writes, and the only one that it adopts.
pub(crate) const RECORD_VERSION: u32 = 2;

/// The most connections in a batch: the kernel passes at most 253 descriptors with a message.
pub(crate) const BATCH_LEN: usize = 250;

/// A batch gets no further record when it is longer than this, in bytes.
const BATCH_SIZE: usize = 64 * 1024;

/// What goes over the channel between two processes, of which one moves its connections to the
/// other one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum MoveMessage {
    /// Sender: these connections. Their sockets go with the message, in the same order.
    Connections(Connections),
    /// Receiver: this process owns the connections of the batch with this number, except these. The
    /// sender closes its sockets of the others.
    Ack {
        batch: u64,
        refused: Vec<RefusedConnection>,
    },
}

impl Record for MoveMessage {
    /// A message must fit into the send buffer of a socket, which has 208 KiB by default.
    const LIMIT: usize = 128 * 1024;
}

/// A batch of connections, which [`Batch`] writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Connections {
    /// See [`RECORD_VERSION`].
    version: u32,
    /// The number of this batch. A receiver refuses a message of any kind that has a number, if the
    /// receiver does not understand the message.
    batch: u64,
    records: Vec<ConnectionRecord>,
}

/// A connection that moves: it is between two messages, or the service has consumed nothing of the
/// message, with an exact state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ConnectionRecord {
    pub(crate) listener: ListenerId,
    pub(crate) peer: WireAddr,
    /// The client has sent nothing so far.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) is_new: bool,
    /// How long the client may take until it begins its next message. `None`: the receiver's
    /// time-out begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_left_ms: Option<u64>,
    /// The counts of bytes received and sent since the beginning.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// What the service has set on this connection.
    #[serde(default, skip_serializing_if = "ConnectionSettings::is_default")]
    pub(crate) settings: ConnectionSettings,
    /// Bytes that were received, and that no service has consumed.
    #[serde(default, skip_serializing_if = "WireBytes::is_empty")]
    pub(crate) unread: WireBytes,
    /// What the service has packed. `None` if it was not called for the connection yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<WireBytes>,
}

impl ConnectionRecord {
    /// Whether the counts and lengths agree. A process does its arithmetic with them.
    pub(crate) fn is_consistent(&self) -> bool {
        let highest = self.bytes_in.max(self.bytes_out);
        self.unread.0.len() as u64 <= self.bytes_in && highest <= MOST_BYTES
    }
}

/// No connection carries more bytes: a count that begins here grows for centuries.
const MOST_BYTES: u64 = u64::MAX / 2;

/// The settings of a connection that the service has changed. For the others, those of the
/// receiver's server hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ConnectionSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) write_timeout_ms: Option<u64>,
    /// The time left until a deadline that the service has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_left_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) write_left_ms: Option<u64>,
    /// Bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_rate: Option<u32>,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output_limit: Option<u64>,
    #[serde(default, skip_serializing_if = "WireBytes::is_empty")]
    pub(crate) goodbye: WireBytes,
}

impl ConnectionSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which listener has accepted a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ListenerId {
    pub(crate) name: String,
    pub(crate) addr: WireAddr,
}

impl ListenerId {
    /// The position of this listener among those of another process. That process has the socket if
    /// the address is the same. The name decides between listeners without an address, and between
    /// several with the same address.
    pub(crate) fn position_in(&self, others: &[Self]) -> Option<usize> {
        let has_addr = self.addr != WireAddr::Unix(None);
        let same = others.iter().position(|other| other == self);
        let same_addr = || others.iter().position(|other| other.addr == self.addr);
        same.or_else(|| has_addr.then(same_addr)?)
    }
}

/// The address of a listener or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum WireAddr {
    Tcp(#[cfg_attr(test, arbitrary(with = super::tests::any_socket_addr))] SocketAddr),
    /// Most clients of Unix sockets have no path, and few listeners.
    Unix(Option<WirePath>),
}

/// A connection that stays with the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct RefusedConnection {
    /// The position in the batch.
    pub(crate) index: u32,
    pub(crate) why: Refusal,
}

/// Why a connection stays with the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum Refusal {
    /// The receiver does not know the version of the records.
    Version,
    /// The record contradicts itself.
    Record,
    /// The receiver has no such listener.
    Listener,
    /// The receiver has no descriptor left for it.
    Descriptors,
    /// The receiver has as many connections as it may have, in total or of this client.
    Limit,
    /// The receiver's service cannot unpack the session.
    Session,
    /// The receiver stops.
    Stopping,
    /// A reason that this process does not know.
    #[serde(other)]
    Other,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "it does not know this version of the record",
            Self::Record => "the record contradicts itself",
            Self::Listener => "it has no such listener",
            Self::Descriptors => "it has no descriptor left",
            Self::Limit => "it has as many connections as it may have",
            Self::Session => "its service cannot unpack the session",
            Self::Stopping => "it stops",
            Self::Other => "of a reason that this process does not know",
        })
    }
}

/// The text of a [`MoveMessage::Connections`], as far as it is collected.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The records, separated by commas.
    records: String,
    len: usize,
}

/// How a [`Batch`] has taken a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The batch may get further records.
    Open,
    /// The batch is full, and contains the record.
    Full,
    /// The record has no place in this batch, and would have one in an empty batch.
    Later,
    /// The record is too long for any batch.
    Never,
}

impl Batch {
    pub(crate) fn push(&mut self, record: &ConnectionRecord) -> Pushed {
        let Ok(text) = serde_json::to_string(record) else {
            return Pushed::Never;
        };
        let longest = MoveMessage::LIMIT - begin(u64::MAX).len() - END.len();
        if text.len() > longest {
            return Pushed::Never;
        }
        if self.len == BATCH_LEN || self.len > 0 && self.records.len() + 1 + text.len() > longest {
            return Pushed::Later;
        }
        if self.len > 0 {
            self.records.push(',');
        }
        self.records.push_str(&text);
        self.len += 1;
        match self.len == BATCH_LEN || self.records.len() > BATCH_SIZE {
            true => Pushed::Full,
            false => Pushed::Open,
        }
    }

    /// The message with all records, and with this number.
    pub(crate) fn into_text(self, number: u64) -> String {
        begin(number) + &self.records + END
    }
}

fn begin(number: u64) -> String {
    format!(
        r#"{{"v":{VERSION},"type":"connections","version":{RECORD_VERSION},"batch":{number},"records":["#
    )
}

const END: &str = "]}";

/// Bytes of any kind: a string in JSON if they are text, or else an object with their hexadecimal
/// digits.
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct WireBytes(pub(crate) Vec<u8>);

impl WireBytes {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for WireBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

impl Serialize for WireBytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // JSON makes six bytes of a control character, and hexadecimal digits two.
        let is_plain = |text: &&str| text.chars().filter(|char| char.is_control()).count() < 8;
        match std::str::from_utf8(&self.0).ok().filter(is_plain) {
            Some(text) => to.serialize_str(text),
            None => Hex { hex: hex(&self.0) }.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for WireBytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextOrHex)
    }
}

struct TextOrHex;

impl<'de> Visitor<'de> for TextOrHex {
    type Value = WireBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with hexadecimal digits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<WireBytes, E> {
        Ok(WireBytes(text.as_bytes().to_vec()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WireBytes, A::Error> {
        let Hex { hex } = Hex::deserialize(MapAccessDeserializer::new(map))?;
        let bytes = from_hex(&hex);
        bytes.map_or_else(
            || Err(A::Error::custom("not pairs of hexadecimal digits")),
            |bytes| Ok(WireBytes(bytes)),
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|char| char.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    let bytes = digits.chunks_exact(2).map(|pair| match pair {
        [high, low] => u8::try_from(high << 4 | low).ok(),
        _ => None,
    });
    bytes.collect()
}

/// A message to the receiver of connections that the receiver does not understand.
#[derive(Debug)]
pub(crate) struct UnknownBatch {
    /// If the message has a number, then all connections of the batch are refused, and else the
    /// message is ignored.
    pub(crate) number: Option<u64>,
    pub(crate) why: WireError,
}

impl MoveMessage {
    /// The number and the records of a batch.
    ///
    /// # Errors
    ///
    /// What this process does not understand.
    pub(crate) fn decode_batch(bytes: &[u8]) -> Result<(u64, Vec<ConnectionRecord>), UnknownBatch> {
        // Not by `decode`: the decoder of an enum copies each value before it knows the kind.
        #[derive(Deserialize)]
        struct Head {
            v: u32,
            #[serde(rename = "type")]
            kind: String,
            version: Option<u32>,
            batch: Option<u64>,
        }
        let custom = |why| WireError::Malformed(serde_json::Error::custom(why));
        let unknown = |number, why| Err(UnknownBatch { number, why });
        let head: Head = match serde_json::from_slice(bytes) {
            Ok(head) => head,
            Err(why) => return unknown(None, WireError::Malformed(why)),
        };
        let why = match (&*head.kind, head.v, head.version) {
            ("connections", VERSION, Some(RECORD_VERSION)) => match serde_json::from_slice(bytes) {
                Ok(Connections { batch, records, .. }) => return Ok((batch, records)),
                Err(why) => WireError::Malformed(why),
            },
            ("connections", VERSION, Some(other)) => WireError::Version(other),
            ("ack", ..) => return unknown(None, custom("not a batch")),
            (_, VERSION, _) => custom("an unknown kind"),
            (_, other, _) => WireError::Version(other),
        };
        unknown(head.batch, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener with this address, or of a Unix socket without one.
    fn listener(name: &str, addr: &str) -> ListenerId {
        let addr = addr.parse().map_or(WireAddr::Unix(None), WireAddr::Tcp);
        let name = name.to_owned();
        ListenerId { name, addr }
    }

    fn record(unread: Vec<u8>) -> ConnectionRecord {
        ConnectionRecord {
            listener: listener("web", "127.0.0.1:80"),
            peer: WireAddr::Tcp("127.0.0.1:4711".parse().unwrap()),
            is_new: false,
            idle_left_ms: Some(75_000),
            bytes_in: 1,
            bytes_out: 2,
            settings: ConnectionSettings::default(),
            unread: WireBytes(unread),
            session: None,
        }
    }

    #[test]
    fn a_listener_is_found_by_its_address_and_its_name() {
        let [a, b] = ["127.0.0.1:1", "127.0.0.1:2"];
        for (own, others, found) in [
            (("x", a), &[][..], None),
            (("x", a), &[("x", a)], Some(0)),
            // Equal names.
            (("x", b), &[("x", a), ("x", b)], Some(1)),
            (("x", b), &[("x", a)], None),
            // Equal addresses.
            (("y", a), &[("x", a), ("y", a)], Some(1)),
            // Another name.
            (("y", a), &[("x", b), ("x", a)], Some(1)),
            // Without an address.
            (("x", "-"), &[("y", "-"), ("x", "-")], Some(1)),
            (("x", "-"), &[("y", "-"), ("x", a)], None),
        ] {
            let id = |(name, addr): &(&str, &str)| listener(name, addr);
            let ids: Vec<_> = others.iter().map(id).collect();
            assert_eq!(id(&own).position_in(&ids), found, "{own:?} in {others:?}");
        }
    }

    #[test]
    fn a_record_that_contradicts_itself_is_found() {
        for (bytes_in, bytes_out, unread, is_consistent) in [
            (0, 0, 0, true),
            (9, 0, 9, true),
            (8, 99, 9, false),
            (MOST_BYTES, MOST_BYTES, 9, true),
            (MOST_BYTES + 1, 0, 0, false),
            (0, u64::MAX, 0, false),
        ] {
            let record = ConnectionRecord {
                bytes_in,
                bytes_out,
                ..record(vec![b'x'; unread])
            };
            assert_eq!(record.is_consistent(), is_consistent, "{record:?}");
        }
    }

    #[test]
    fn bytes_are_text_or_digits() {
        for (bytes, json) in [
            (&b""[..], r#""""#),
            (b"GET /\r\n", r#""GET /\r\n""#),
            ("ä\"".as_bytes(), r#""ä\"""#),
            (b"\xff\0", r#"{"hex":"ff00"}"#),
            (&[0; 8], r#"{"hex":"0000000000000000"}"#),
        ] {
            let written = serde_json::to_string(&WireBytes(bytes.to_vec())).unwrap();
            assert_eq!(written, json);
            let read: WireBytes = serde_json::from_str(json).unwrap();
            assert_eq!(read.0, bytes);
        }
        for json in [
            r#"{"hex":"f"}"#,
            r#"{"hex":"fg"}"#,
            r#"{"hex":1}"#,
            "1",
            "{}",
        ] {
            assert!(serde_json::from_str::<WireBytes>(json).is_err(), "{json}");
        }
    }

    /// How a batch that has `before` records of this many unread bytes takes one more.
    #[test]
    fn a_batch_is_bounded_by_its_records_and_by_its_bytes() {
        const LONG: usize = MoveMessage::LIMIT - 1024;
        for (before, each, more, pushed) in [
            (0, 0, 0, Pushed::Open),
            (BATCH_LEN - 2, 0, 0, Pushed::Open),
            (BATCH_LEN - 1, 0, 0, Pushed::Full),
            (BATCH_LEN, 0, 0, Pushed::Later),
            (0, 0, BATCH_SIZE, Pushed::Full),
            (1, BATCH_SIZE / 2, BATCH_SIZE / 4, Pushed::Open),
            (1, BATCH_SIZE / 2, BATCH_SIZE / 2, Pushed::Full),
            (1, BATCH_SIZE, LONG, Pushed::Later),
            (0, 0, LONG, Pushed::Full),
            (0, 0, MoveMessage::LIMIT, Pushed::Never),
            (1, BATCH_SIZE, MoveMessage::LIMIT, Pushed::Never),
        ] {
            let mut batch = Batch::default();
            for _ in 0..before {
                batch.push(&record(vec![b'x'; each]));
            }
            let case = (before, each, more);
            let last = record(vec![b'x'; more]);
            assert_eq!(batch.push(&last), pushed, "{case:?}");
            let is_in = matches!(pushed, Pushed::Open | Pushed::Full);
            let len = before + usize::from(is_in);
            assert_eq!(batch.len, len, "{case:?}");
            let text = batch.into_text(7);
            let (number, records) = MoveMessage::decode_batch(text.as_bytes()).unwrap();
            assert_eq!(number, 7);
            assert_eq!(records.len(), len, "{case:?}");
            assert!(!is_in || records.last() == Some(&last), "{case:?}");
        }
    }

    #[test]
    fn a_batch_is_the_encoding_of_its_message() {
        let mut batch = Batch::default();
        let records = vec![record(Vec::new()), record(vec![255])];
        for record in &records {
            batch.push(record);
        }
        let version = RECORD_VERSION;
        let message = MoveMessage::Connections(Connections {
            version,
            batch: u64::MAX,
            records,
        });
        assert_eq!(batch.into_text(u64::MAX), message.encode().unwrap());
    }

    #[test]
    fn what_a_later_version_sends_is_refused_by_its_number_or_ignored() {
        for (text, is_version, refused) in [
            (
                r#"{"v":1,"type":"connections","version":9,"batch":3,"records":[]}"#,
                true,
                Some(3),
            ),
            (
                r#"{"v":9,"type":"connections","version":2,"batch":3,"records":[]}"#,
                true,
                Some(3),
            ),
            (
                r#"{"v":1,"type":"connections","version":2,"batch":3,"records":[{}]}"#,
                false,
                Some(3),
            ),
            (r#"{"v":1,"type":"later","batch":3}"#, false, Some(3)),
            (r#"{"v":1,"type":"later","batch":"3"}"#, false, None),
            (r#"{"v":1,"type":"later"}"#, false, None),
            (
                r#"{"v":1,"type":"ack","batch":3,"refused":[]}"#,
                false,
                None,
            ),
        ] {
            let unknown = MoveMessage::decode_batch(text.as_bytes()).unwrap_err();
            let why = unknown.why;
            assert_eq!(matches!(why, WireError::Version(9)), is_version, "{text}");
            assert_eq!(unknown.number, refused, "{text}");
        }
        let later = r#"{"v":1,"type":"ack","batch":0,"refused":[{"index":0,"why":"mood"}]}"#;
        let MoveMessage::Ack { refused, .. } = MoveMessage::decode(later.as_bytes()).unwrap()
        else {
            panic!("no ack");
        };
        assert_eq!(refused[0].why, Refusal::Other);
    }
}
