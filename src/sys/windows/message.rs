//! Windows: messages between a process and its successor, and notifications.

use std::io;

use socket2::Socket;

pub(crate) use super::loopback_pair::create_pair;
pub(crate) use super::notify_client::{AnswerChannel, ManagerConnection};
pub(crate) use crate::sys::native::packet::{
    PASSES_CONNECTIONS, create_channel, receive_sockets, send_sockets,
};
pub(crate) use crate::sys::native::peer_packet::{receive, send_packet};

use super::unsupported_error;

pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(unsupported_error(
        "no descriptors come with a message on Windows",
    ))
}

/// Sends bytes as they are, without waiting, for the tests of what is sent to other sockets.
#[cfg(test)]
pub(crate) fn send(
    socket: &Socket,
    text: &str,
    descriptors: &[&crate::sys::Descriptor],
) -> io::Result<()> {
    super::ancillary::send(socket, text.as_bytes(), descriptors).map(drop)
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
