//! Windows: messages between a process and its successor, over a connection of the loopback
//! interface.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use crate::sys::native::peer_packet::{receive, send_packet};

pub(crate) use super::manager::{AnswerChannel, ManagerConnection};
use super::unsupported_error;

/// More connections of other processes than that are not refused, one after another, in a call of
/// [`create_pair`].
const MOST_OTHERS: u32 = 100;

/// Two connected, non-blocking sockets for messages.
pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    super::socket::allow_rebind(&listener)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(8)?;
    let one = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    one.connect(&listener.local_addr()?)?;
    // Any process may connect to the listener, so that the other end is the one with the address of
    // this end.
    let own = one.local_addr()?.as_socket();
    for _ in 0..MOST_OTHERS {
        let (other, peer) = listener.accept()?;
        if peer.as_socket() == own {
            for socket in [&one, &other] {
                socket.set_nonblocking(true)?;
                socket.set_tcp_nodelay(true)?;
            }
            return Ok((one, other));
        }
    }
    Err(io::Error::other(
        "other processes connect to a port that was just bound",
    ))
}

pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(unsupported_error(
        "no descriptors come with a message on Windows",
    ))
}

#[cfg(test)]
pub(crate) fn send<S>(_: &S, _text: &str, _: &[&crate::sys::Descriptor]) -> io::Result<()> {
    Err(unsupported_error(
        "on Windows only a notification takes descriptors along",
    ))
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
