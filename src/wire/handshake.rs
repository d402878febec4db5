//! The messages between a process and its successor.

use serde::{Deserialize, Serialize};

use super::{Record, WirePath, shortened};

/// A message. Each comment begins with the sender; the module `restart` has the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum HandshakeMessage {
    /// Successor: this process runs, and reads this version of the format.
    Hello,
    /// Successor: this process could serve.
    Ready,
    /// Predecessor: start to accept.
    Cutover,
    /// Successor: this process accepts.
    Accepting {
        /// When the successor began, by the system's monotonic clock, in nanoseconds.
        since: u64,
        /// The inherited descriptors that the successor took: positions in `LISTEN_FDS`.
        taken: Vec<u32>,
    },
    /// Predecessor: this process accepts no more. When the successor stops, it removes the files of
    /// these Unix sockets.
    Commit { paths: Vec<WirePath> },
    /// Successor: this process has taken over. Of the messages below, only `Abort` belongs to the
    /// restart.
    Ack,
    /// Predecessor: this process goes on serving, and the successor must end. Successor: this
    /// process was stopped.
    Abort {
        #[serde(serialize_with = "shortened::<8192, _>")]
        reason: String,
    },
    /// Successor: the sender's own successor serves, and the sender drains.
    Superseded,
    /// Successor: the sender and its successor drain already. The receiver, which is older, must
    /// stop now.
    Force,
    /// Predecessor: this process has ended its drain, with this report.
    Drained {
        #[serde(serialize_with = "shortened::<8192, _>")]
        report: String,
    },
}

impl Record for HandshakeMessage {
    const LIMIT: usize = 64 * 1024;
}
