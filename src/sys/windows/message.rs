//! Windows: messages between a process and its successor.
//!
//! They go over a connection of the loopback interface, which keeps no messages apart. So a message
//! is a frame: its length in four bytes, and its bytes. A frame is sent by one call, and left in the
//! socket until it has come as a whole, so that a receive needs no memory of the one before.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub(crate) use super::manager::{AnswerChannel, ManagerConnection};
use super::unsupported_error;
use crate::sys::Descriptor;

/// The length in front of a message.
const HEADER: usize = 4;

/// No message is longer than this, in bytes. Every socket has room for one.
const LONGEST: usize = 32 * 1024;

/// How long the rest of a message may take of which a part has come. Then its sender has died.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// More connections of other processes than that are not refused, one after another, in a call of
/// [`create_pair`].
const MOST_OTHERS: u32 = 100;

/// Two connected, non-blocking sockets, which keep messages apart if they are used by [`send`] and
/// [`receive`] only.
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

/// Receives a message. Returns its length; 0 when the peer has closed its end, or has ended. No
/// descriptor comes with it.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer. The message is lost then.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    match receive_frame(socket, buffer) {
        // The peer ended before it had read everything. No more comes then.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok((0, None)),
        received => received.map(|size| (size, None)),
    }
}

fn receive_frame(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    if peek(socket, &mut [0])? == 0 {
        return Ok(0);
    }
    let mut header = [0; HEADER];
    header.copy_from_slice(&peek_all(socket, HEADER)?);
    let size = u32::from_le_bytes(header) as usize;
    if size > LONGEST {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    let mut frame = peek_all(socket, HEADER + size)?;
    // As much has come.
    let mut from = socket;
    from.read_exact(&mut frame)?;
    match buffer.get_mut(..size) {
        Some(buffer) => buffer.copy_from_slice(&frame[HEADER..]),
        None => {
            let text = format!("a message of {size} bytes, which is cut");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    Ok(size)
}

/// The next bytes, which stay in the socket. If only a part of them has come, the rest is under way,
/// because the sender has given the whole frame to the system.
fn peek_all(socket: &Socket, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let began_at = Instant::now();
    while peek(socket, &mut bytes)? < length {
        if began_at.elapsed() >= REST_TIMEOUT {
            return Err(io::Error::other("the end of a message did not come"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(bytes)
}

/// Receives bytes, and leaves them in the socket.
#[allow(unsafe_code)]
fn peek(socket: &Socket, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the length is that of the same memory, and the call writes no uninitialised bytes.
    let into = unsafe { slice::from_raw_parts_mut(into.as_mut_ptr().cast(), into.len()) };
    socket.peek(into)
}

pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(unsupported_error(
        "no descriptors come with a message on Windows",
    ))
}

/// A socket, or what may be one.
pub(crate) trait MessageSocket {
    fn socket(&self) -> io::Result<SockRef<'_>>;
}

impl MessageSocket for Socket {
    fn socket(&self) -> io::Result<SockRef<'_>> {
        Ok(SockRef::from(self))
    }
}

impl MessageSocket for Descriptor {
    fn socket(&self) -> io::Result<SockRef<'_>> {
        self.as_socket()
    }
}

/// Sends a message, without waiting.
///
/// # Errors
///
/// `WouldBlock` if the peer does not read. `InvalidInput` for a message that is too long, or that
/// has descriptors.
pub(crate) fn send(
    to: &impl MessageSocket,
    text: &str,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    let socket = to.socket()?;
    if text.len() > LONGEST || !descriptors.is_empty() {
        let text = "a message that is too long, or has descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut frame = Vec::with_capacity(HEADER + text.len());
    frame.extend((text.len() as u32).to_le_bytes());
    frame.extend(text.as_bytes());
    match socket.send(&frame)? {
        sent if sent == frame.len() => Ok(()),
        sent => {
            // What follows would be taken for the rest of this message.
            socket.shutdown(Shutdown::Both)?;
            let text = format!("only {sent} bytes of {} were sent", frame.len());
            Err(io::Error::new(io::ErrorKind::WriteZero, text))
        }
    }
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use super::*;

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
            send(&own, text, &[]).unwrap();
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

    #[test]
    fn a_send_does_not_wait_for_a_peer_that_does_not_read() {
        let (own, _other) = create_pair().unwrap();
        let text = "x".repeat(4096);
        let error = loop {
            if let Err(error) = send(&own, &text, &[]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
