//! Unix: the clients of the control socket.

use std::io;
use std::net::Shutdown;
use std::path::Path;

use socket2::Socket;

use super::{descriptor, message, socket};
use crate::sys::Descriptor;

/// What a supervisor waits for, beside signals and processes.
pub(crate) type Source<'a> = &'a Socket;

/// The source that tells when a socket is ready.
pub(crate) fn source_of(socket: &Socket) -> Source<'_> {
    socket
}

/// A control channel that is no socket. There is none on this system.
#[derive(Debug)]
pub(crate) enum ControlPipe {}

impl ControlPipe {
    /// `None`: the channel is a Unix socket.
    pub(crate) fn bind(_path: &Path) -> io::Result<Option<Self>> {
        Ok(None)
    }

    pub(crate) fn accept(&self) -> io::Result<ControlStream> {
        match *self {}
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match *self {}
    }
}

/// The connection of a control client. No call waits.
#[derive(Debug)]
pub(crate) struct ControlStream(Socket);

impl ControlStream {
    /// Does not fail on Unix.
    pub(crate) fn from_socket(socket: Socket) -> io::Result<Self> {
        Ok(Self(socket))
    }

    pub(crate) fn source(&self) -> Source<'_> {
        &self.0
    }

    /// A second descriptor of the socket.
    pub(crate) fn duplicate(&self) -> io::Result<Descriptor> {
        descriptor::duplicate(&self.0)
    }

    /// The user of the client.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        socket::peer_uid(&self.0)
    }

    pub(crate) fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Vec<Descriptor>)> {
        message::receive_all(&self.0, into)
    }

    /// Sends a part of `bytes`, and returns its length. After `WouldBlock`, the next call must have
    /// the same bytes.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(&self.0, bytes)
    }

    /// Ends the connection: the client can still read what was sent. Returns the descriptor of a
    /// socket that holds what was not received, whose close could wait.
    pub(crate) fn end(self) -> Option<Descriptor> {
        // From here on, the client can send no more.
        let _ = self.0.shutdown(Shutdown::Both);
        let has_rest = socket::unread_len(&self.0).unwrap_or(1) > 0;
        has_rest
            .then(|| descriptor::from_socket(self.0).ok())
            .flatten()
    }
}
