//! What all threads may read of a connection, and the limits that it starts with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::Socket;

use super::activity::Activity;
use super::early_output::EarlyOutput;
use crate::addr::Addr;
use crate::drain::OpenConnection;
use crate::listener::ListenerInfo;
use crate::sys;

/// The limits that every connection of a server starts with.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) first_byte_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) min_rate: u32,
    pub(crate) input_limit: usize,
    pub(crate) output_limit: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            min_rate: 1024,
            input_limit: 1024 * 1024,
            output_limit: 64 * 1024,
        }
    }
}

/// The part of a connection that all threads may read. It owns the socket, so that a stop can shut
/// down the socket of a connection that a handler holds.
// The fields are dropped in this order.
pub(crate) struct ConnectionInfo {
    /// Counts the connection for its client until it is dropped: before the client sees the close,
    /// and may connect again.
    pub(crate) _client_place: Option<Box<dyn Send + Sync>>,
    pub(crate) socket: Socket,
    pub(crate) peer: Addr,
    pub(crate) listener: Arc<ListenerInfo>,
    /// Counts the connection as open until it is dropped.
    pub(crate) open_connection: OpenConnection,
    pub(crate) activity: Activity,
    pub(crate) early_output: EarlyOutput,
}

impl ConnectionInfo {
    /// For the watchdog: how many reads and writes of the connection have moved bytes. `None` while
    /// the call waits for the client.
    pub(crate) fn moves(&self) -> Option<u64> {
        self.activity.moves(&self.socket)
    }

    /// Whether a read that did not fill its room has emptied the socket. A read of a Unix socket
    /// may have stopped behind descriptors, see [`receive_state`](super::receive_state).
    #[inline]
    pub(super) fn is_empty_after_short_read(&self) -> bool {
        matches!(self.peer, Addr::Ip(_))
            || sys::socket::unread_len(&self.socket).is_ok_and(|left| left == 0)
    }
}

/// Client and listener, as every log record names a connection.
impl fmt::Display for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.peer, self.listener.name)
    }
}

/// What may be sent to a client that is not served although it has sent a message or a part of one:
/// its time-out has expired, or no worker was free in time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) enum ClosingNotice {
    /// Nothing: the client expects no response now, and would misread one.
    Forbidden,
    /// The server's refusal, if no worker was free in time.
    Refusal,
    /// As `Refusal`; and these bytes, if the message does not arrive in time.
    RefusalOrTimeout(Bytes),
}
