//! What a process and its successor tell each other until the successor serves.

use serde::{Deserialize, Serialize};

use super::{Record, WirePath, shortened};

/// A message. Each comment begins with the sender; the module `restart` has the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum HandshakeMessage {
    /// Successor: it runs, and reads this version of the format.
    Hello,
    /// Successor: it could serve.
    Ready,
    /// Predecessor: start to accept.
    Cutover,
    /// Successor: it accepts.
    Accepting {
        /// The time by the system's monotonic clock, in nanoseconds.
        since: u64,
        /// The inherited descriptors that the successor took: positions in `LISTEN_FDS`.
        taken: Vec<u32>,
    },
    /// Predecessor: it accepts no more. The successor removes the files of these Unix sockets when
    /// it stops.
    Commit { paths: Vec<WirePath> },
    /// Successor: it has taken over. The messages below do not belong to the restart any more.
    Ack,
    /// Predecessor: it goes on serving, and the successor is to end. Or the successor: it was
    /// stopped.
    Abort {
        #[serde(serialize_with = "shortened::<8192, _>")]
        reason: String,
    },
    /// Successor: it drains as well, as the third generation serves.
    Superseded,
    /// Successor: the fourth generation serves. Two generations drain already, so that the oldest
    /// must end.
    Force,
    /// Predecessor: it has ended its drain; its report.
    Drained {
        #[serde(serialize_with = "shortened::<8192, _>")]
        report: String,
    },
}

impl Record for HandshakeMessage {
    const LIMIT: usize = 64 * 1024;
}
