//! The messages between a process and its successor.

use serde::{Deserialize, Serialize, Serializer};

use super::{ListenerId, Record, WirePath, shortened};

/// How many lines of standard error a message has at most, and how many bytes. JSON may make six
/// bytes of each.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 6 * 1024;

/// A message. Each comment begins with the sender; the module `restart` has the order, and
/// `restart/restarter/lane.rs` that of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum HandshakeMessage {
    /// Successor: this process runs, and reads this version of the format.
    Hello,
    /// Successor: this process could serve.
    Ready {
        /// The successor takes open connections over, see `Connections`.
        #[serde(default)]
        adopts: bool,
        /// The successor takes an exact state, see `Cutover`.
        #[serde(default)]
        imports: bool,
    },
    /// Predecessor: start to accept. With a state, whose file goes with this message: import the
    /// state, and accept after `Proceed`.
    Cutover {
        #[serde(default)]
        has_state: bool,
    },
    /// Successor: this process accepts, or will after `Proceed`.
    Accepting {
        /// The inherited descriptors that the successor took: positions in `LISTEN_FDS`.
        taken: Vec<u32>,
    },
    /// Predecessor: this process accepts no more. When the successor stops, it removes the files of
    /// these Unix sockets.
    Commit {
        paths: Vec<WirePath>,
        /// How long the predecessor drains at most, in milliseconds. `None`: there is no limit.
        #[serde(default)]
        drain_millis: Option<u64>,
    },
    /// Successor: this process has taken over, or will after `Proceed`. Of the messages below, only
    /// `Proceed` and `Abort` belong to the restart.
    Ack,
    /// Predecessor, only with an exact state: the `Ack` has come, and this process calls no service any
    /// more. Until this message, a predecessor whose time is over ends the successor, which therefore
    /// must not have answered any client.
    Proceed,
    /// Predecessor, or on a lane a process that leaves: the open connections of this server come over
    /// the socket that goes with this message, as [`MoveMessage`](super::MoveMessage)s.
    Connections(ServerId),
    /// Supervisor, on a lane: the lane of another process goes with this message. That process adopts
    /// the receiver's connections if `Leave` follows.
    Recipient,
    /// Supervisor, on a lane: the receiver moves its connections to the `Recipient`, and ends.
    Leave,
    /// Predecessor: this process goes on serving, and the successor must end. Successor: this
    /// process was stopped.
    Abort {
        #[serde(serialize_with = "shortened::<8192, _>")]
        reason: String,
    },
    /// Predecessor: another restart was requested after the receiver's program was executed. The
    /// receiver starts a successor, and answers with `Restarted` or `RestartFailed`.
    RestartAgain,
    /// Successor: the restart that the receiver has passed on succeeded.
    Restarted {
        /// The process that serves now, and its generation.
        pid: u32,
        generation: u64,
        ready_after_nanos: u64,
        /// How long the clients waited for an exact state.
        #[serde(default)]
        paused_for_nanos: Option<u64>,
    },
    /// Successor: the restart that the receiver has passed on failed.
    RestartFailed {
        kind: RestartFailure,
        #[serde(serialize_with = "shortened::<4096, _>")]
        reason: String,
        /// The number of the system's error, if no process could be started.
        #[serde(default)]
        errno: Option<i32>,
        /// How the process exited, as waitpid(2) has it.
        #[serde(default)]
        status: Option<i32>,
        /// The last lines that the process wrote to standard error.
        #[serde(default, serialize_with = "last_lines")]
        stderr: Vec<String>,
    },
    /// Predecessor: this process has ended its drain, with this report.
    Drained {
        #[serde(serialize_with = "shortened::<8192, _>")]
        report: String,
    },
}

/// Why a restart failed, as a process tells its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum RestartFailure {
    Start,
    Ended,
    TimedOut,
    Stopping,
    Replaced,
}

/// The lines at the end that a message has room for.
fn last_lines<S: Serializer>(lines: &[String], to: S) -> Result<S::Ok, S::Error> {
    let mut room = LAST_BYTES;
    let mut kept: Vec<&str> = Vec::new();
    for line in lines.iter().rev().take(LAST_LINES) {
        let begin = (line.len().saturating_sub(room)..=line.len())
            .find(|begin| line.is_char_boundary(*begin));
        let end = &line[begin.unwrap_or_default()..];
        if end.is_empty() && !line.is_empty() {
            break;
        }
        room -= end.len();
        kept.push(end);
    }
    kept.reverse();
    kept.serialize(to)
}

/// Identifies a server to another process, which may run another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ServerId {
    pub(crate) listeners: Vec<ListenerId>,
    /// The position among the servers of its process, from 0. 0 if an older version sent the record.
    #[serde(default)]
    pub(crate) position: u32,
}

impl ServerId {
    /// The position of the matching server in another process. `others` has the listeners of each of
    /// its servers. The server with the most listeners of the same name and address matches; if there is
    /// none, the one with the most [matching](ListenerId::position_in) listeners. Of several: the server
    /// at the same position, else the first.
    pub(crate) fn position_in(&self, others: &[&[ListenerId]]) -> Option<usize> {
        let best = |matches: &dyn Fn(&ListenerId, &[ListenerId]) -> bool| {
            let count = |ids: &[ListenerId]| {
                let matching = self.listeners.iter().filter(|own| matches(own, ids));
                matching.count()
            };
            let counts: Vec<_> = others.iter().map(|ids| count(ids)).collect();
            let most = counts.iter().copied().max().filter(|most| *most > 0)?;
            let own = usize::try_from(self.position).ok();
            let same = own.filter(|own| counts.get(*own) == Some(&most));
            same.or_else(|| counts.iter().position(|count| *count == most))
        };
        let exact = best(&|own, ids| ids.contains(own));
        exact.or_else(|| best(&|own, ids| own.position_in(ids).is_some()))
    }
}

impl Record for HandshakeMessage {
    const LIMIT: usize = 64 * 1024;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireAddr;

    /// `a1` is a listener with the name `a` and the address 192.0.2.1:80.
    fn listeners(text: &str) -> Vec<ListenerId> {
        let listener = |text: &str| ListenerId {
            name: text[..1].to_owned(),
            addr: WireAddr::Tcp(format!("192.0.2.{}:80", &text[1..]).parse().unwrap()),
        };
        text.split_whitespace().map(listener).collect()
    }

    #[test]
    fn a_server_is_found_by_its_listeners_and_then_by_its_position() {
        for (own, position, others, expected) in [
            ("a1", 0, &["a1", "b2"][..], Some(0)),
            ("b2", 0, &["a1", "b2"], Some(1)),
            ("a1 b2", 1, &["b2", "a1"], Some(1)),
            ("c3 b2", 0, &["a1", "b2"], Some(1)),
            // Servers that share an address (SO_REUSEPORT).
            ("a1", 1, &["a1", "a1"], Some(1)),
            ("a1", 7, &["b2", "a1", "a1"], Some(1)),
            // Another order of servers that share one of their addresses.
            ("a1 c3", 0, &["b2 c3", "a1 c3"], Some(1)),
            // The name of the listener has changed.
            ("a1", 0, &["b2", "c1"], Some(1)),
            ("a1", 0, &["c1", "a1"], Some(1)),
            ("a1", 0, &["", "a2"], None),
            ("", 0, &["a1"], None),
        ] {
            let id = ServerId {
                listeners: listeners(own),
                position,
            };
            let ids: Vec<_> = others.iter().map(|other| listeners(other)).collect();
            let ids: Vec<&[ListenerId]> = ids.iter().map(|ids| &**ids).collect();
            assert_eq!(
                id.position_in(&ids),
                expected,
                "{own} {position} {others:?}"
            );
        }
    }
}
