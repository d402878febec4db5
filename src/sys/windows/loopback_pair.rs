//! Windows: a connection of the loopback interface between a process and its successor. See
//! `other/packet.rs` for what goes over it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::socket::accept_error_kind;
use crate::sys::AcceptErrorKind;

/// The most connections that one call of [`create_pair`] accepts. It closes those of other
/// processes.
const MOST_OTHERS: u32 = 100;

/// Two connected, non-blocking sockets, for [messages](super::message).
pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    super::socket::allow_rebind(&listener)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(8)?;
    let one = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    one.connect(&listener.local_addr()?)?;
    // Any process may connect to the listener: the other end is the connection whose peer address
    // is the address of this end.
    let own = one.local_addr()?.as_socket();
    for _ in 0..MOST_OTHERS {
        let (other, peer) = match listener.accept() {
            // Another process has connected, and left.
            Err(error) if accept_error_kind(&error) == AcceptErrorKind::Connection => continue,
            accepted => accepted?,
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::message::{receive, send_packet};

    fn received(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match receive(socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    crate::sys::socket::wait_ready(socket, crate::sys::Interest::Read, None)?;
                }
                received => return received.map(|(size, _)| size),
            }
        }
    }

    #[test]
    fn messages_are_kept_apart() {
        let (own, other) = create_pair().unwrap();
        let nothing = receive(&other, &mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        for text in ["ab", "c", "def", "too long by far", "g"] {
            send_packet(&own, text, &[]).unwrap();
        }
        // The beginning of a message that never ends.
        own.send(&[3, 0, 0, 0, b'x']).unwrap();
        drop(own);
        let mut buffer = [0; 8];
        for expected in ["ab", "c", "def"] {
            let size = received(&other, &mut buffer).unwrap();
            assert_eq!(&buffer[..size], expected.as_bytes());
        }
        let cut = received(&other, &mut buffer).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::InvalidData);
        assert_eq!(received(&other, &mut buffer).unwrap(), 1);
        received(&other, &mut buffer).unwrap_err();
    }
}
