//! Unix: the client's end of a supervisor's control socket.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// A connection to a supervisor, for the command `handover`.
#[derive(Debug)]
pub struct ControlClient(Socket);

impl ControlClient {
    /// Connects to the control socket at this path. The limit is for this call and for each
    /// [`send`](Self::send); `None` is no limit.
    pub fn connect(path: &Path, limit: Option<Duration>) -> io::Result<Self> {
        let addr = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // This bounds the connect as well, which waits while the queue of the listener is full.
        socket.set_write_timeout(limit)?;
        socket.connect(&addr)?;
        Ok(Self(socket))
    }

    /// Sends all of these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Receives what has come, or waits for at most the limit. 0 is the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` or `TimedOut` if nothing has come.
    pub fn receive(&mut self, into: &mut [u8], limit: Option<Duration>) -> io::Result<usize> {
        // The time-out of the socket is for one read, so that it is set before each.
        self.0.set_read_timeout(limit)?;
        self.0.read(into)
    }
}
