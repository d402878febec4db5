//! Other systems: messages between processes over a stream, because not every system has sockets
//! that keep messages apart.
//!
//! A message is a frame of the stream: its length in bytes as a number of four bytes, the lowest
//! first, and then its bytes. Descriptors come with the first byte of the frame.
//!
//! A sender writes a frame without a pause, and the buffers of a pair have room for several frames.
//! So the rest of a frame follows its beginning without delay, and both functions wait for the
//! rest, for 1 s at most. If a frame is not complete by then, the beginning of the next frame
//! cannot be found. The stream is shut down then, and both processes see its end.

use std::io::{self, Error, ErrorKind};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::sys::unix::ancillary::{self, receive_all};
use crate::sys::{Descriptor, Interest, socket};

/// How long the rest of a frame may take.
const LIMIT: Duration = Duration::from_secs(1);

/// The bytes of the length.
const HEADER: usize = 4;

/// The longest message, in bytes. This crate sends no longer one.
const LONGEST: usize = 16 << 20;

/// Two connected, non-blocking sockets for messages.
#[cfg(unix)]
pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    /// In bytes: several of the longest messages in use. The default of some systems is 8 KiB.
    const BUFFER: usize = 256 * 1024;
    let pair = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    for end in [&pair.0, &pair.1] {
        end.set_nonblocking(true)?;
        end.set_send_buffer_size(BUFFER)?;
        end.set_recv_buffer_size(BUFFER)?;
    }
    Ok(pair)
}

/// Sends a message to the other end of a pair, and the descriptors with it. Does not wait for room
/// for the first byte.
///
/// # Errors
///
/// `WouldBlock` if there is no room: nothing was sent.
pub(crate) fn send_packet(
    socket: &Socket,
    message: &str,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    // A message without bytes would be taken for the end.
    if message.is_empty() || message.len() > LONGEST {
        let text = format!("a message of {} bytes", message.len());
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(message.as_bytes());
    let sent = ancillary::send(socket, &frame, descriptors)?;
    Rest::within(LIMIT, socket).write(&frame[sent..])
}

/// Receives a message from the other end of a pair, and the descriptor that came with it. Returns
/// the message's length; 0 when the peer has closed its end. Does not wait for the first byte if
/// the socket is non-blocking.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer, or has more than one descriptor. The
/// message is lost then.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    receive_within(LIMIT, socket, buffer)
}

fn receive_within(
    limit: Duration,
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    let mut header = [0; HEADER];
    let is_reset = |error: &Error| error.kind() == ErrorKind::ConnectionReset;
    // The first reset says that the peer has ended before it had read everything. On systems where
    // the reset discards what the peer has sent, the second receive fails too.
    let first = match receive_all(socket, &mut header) {
        Err(error) if is_reset(&error) => receive_all(socket, &mut header),
        first => first,
    };
    let (received, descriptors) = match first {
        Err(error) if is_reset(&error) => return Ok((0, None)),
        Ok((0, _)) => return Ok((0, None)),
        first => first?,
    };
    let rest = Rest::within(limit, socket);
    rest.read(&mut header[received..])?;
    let length = u32::from_le_bytes(header) as usize;
    let is_whole = (1..=buffer.len()).contains(&length) && descriptors.len() <= 1;
    if is_whole {
        rest.read(&mut buffer[..length])?;
        return Ok((length, descriptors.into_iter().next()));
    }
    rest.skip(length)?;
    let text = format!("a message of {length} bytes, which is cut");
    Err(Error::new(ErrorKind::InvalidData, text))
}

/// The rest of a frame that has begun.
struct Rest<'a> {
    socket: &'a Socket,
    complete_by: Instant,
}

impl<'a> Rest<'a> {
    fn within(limit: Duration, socket: &'a Socket) -> Self {
        let complete_by = Instant::now() + limit;
        Self {
            socket,
            complete_by,
        }
    }

    /// Reads as many bytes as there is room for.
    fn read(&self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.attempt(Interest::Read, || {
                socket::recv(self.socket, &mut into[done..])
            })? {
                0 => return Err(self.give_up(ErrorKind::UnexpectedEof.into())),
                received => done += received,
            }
        }
        Ok(())
    }

    /// Reads bytes and discards them.
    fn skip(&self, mut length: usize) -> io::Result<()> {
        if length > LONGEST {
            return Err(self.give_up(ErrorKind::InvalidData.into()));
        }
        let mut piece = [0; 4096];
        while length > 0 {
            let count = length.min(piece.len());
            self.read(&mut piece[..count])?;
            length -= count;
        }
        Ok(())
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent =
                self.attempt(Interest::Write, || ancillary::send(self.socket, bytes, &[]))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Repeats a call until the socket is ready for it.
    fn attempt(
        &self,
        interest: Interest,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result.map_err(|error| self.give_up(error)),
            }
            let left = self.complete_by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.give_up(ErrorKind::TimedOut.into()));
            }
            let waited = socket::wait_ready(self.socket, interest, Some(left));
            waited.map_err(|error| self.give_up(error))?;
        }
    }

    /// Ends the stream, in which no later frame can be found.
    fn give_up(&self, error: Error) -> Error {
        // It may have ended already.
        let _ = self.socket.shutdown(Shutdown::Both);
        Error::new(
            error.kind(),
            format!("a message that is not complete: {error}"),
        )
    }
}

/// Whether [`create_channel`], [`send_sockets`] and [`receive_sockets`] work.
pub(crate) const PASSES_CONNECTIONS: bool = false;

/// Not supported.
pub(crate) fn create_channel() -> io::Result<(Socket, Socket)> {
    Err(unsupported_error())
}

/// Not supported.
pub(crate) fn send_sockets(_: &Socket, _message: &str, _: &[&Socket]) -> io::Result<()> {
    Err(unsupported_error())
}

/// Not supported.
pub(crate) fn receive_sockets(
    _: &Socket,
    _: &mut [u8],
    _most: u64,
) -> io::Result<(usize, Vec<Socket>)> {
    Err(unsupported_error())
}

fn unsupported_error() -> Error {
    let text = "connections cannot be passed to another process on this system";
    Error::new(ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    const AGES: Duration = Duration::from_secs(600);

    /// Connected streams of each kind.
    fn pairs() -> Vec<(Socket, Socket)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let tcp = (Socket::from(client), Socket::from(server));
        tcp.0.set_nonblocking(true).unwrap();
        tcp.1.set_nonblocking(true).unwrap();
        #[cfg(unix)]
        return vec![tcp, create_pair().unwrap()];
        #[cfg(not(unix))]
        return vec![tcp];
    }

    /// The kind of the error, or the message.
    fn received(from: &Socket, room: usize) -> Result<String, ErrorKind> {
        let mut buffer = vec![0; room];
        loop {
            match receive_within(AGES, from, &mut buffer) {
                // TCP may take a while.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    socket::wait_ready(from, Interest::Read, Some(AGES)).unwrap();
                }
                result => {
                    let (size, _) = result.map_err(|error| error.kind())?;
                    return Ok(String::from_utf8(buffer[..size].to_vec()).unwrap());
                }
            }
        }
    }

    fn frame(text: &str) -> Vec<u8> {
        let mut frame = (text.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    #[test]
    fn messages_are_kept_apart() {
        for (own, other) in pairs() {
            let long = "x".repeat(64 * 1024);
            let texts = ["a", "bc", long.as_str(), "d"];
            thread::scope(|scope| {
                scope.spawn(|| texts.map(|text| send_packet(&own, text, &[]).unwrap()));
                for text in texts {
                    assert_eq!(received(&other, long.len()).as_deref(), Ok(text));
                }
            });
            let error = receive(&other, &mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            drop(own);
            assert_eq!(received(&other, 8), Ok(String::new()));
        }
    }

    #[test]
    fn a_message_may_come_byte_by_byte() {
        for (own, other) in pairs() {
            own.set_tcp_nodelay(true).ok();
            thread::scope(|scope| {
                let bytes = [frame("first"), frame("second")].concat();
                let own = &own;
                scope.spawn(move || {
                    for byte in bytes {
                        assert_eq!(socket::send(own, &[byte]).unwrap(), 1);
                        thread::yield_now();
                    }
                });
                assert_eq!(received(&other, 6).as_deref(), Ok("first"));
                assert_eq!(received(&other, 6).as_deref(), Ok("second"));
            });
        }
    }

    #[test]
    fn a_message_without_its_end_is_an_error_and_then_the_end() {
        let whole = frame("text");
        for cut in [1, HEADER, HEADER + 3] {
            for (own, other) in pairs() {
                socket::send(&own, &whole[..cut]).unwrap();
                drop(own);
                assert_eq!(received(&other, 4), Err(ErrorKind::UnexpectedEof), "{cut}");
                assert_eq!(received(&other, 4), Ok(String::new()), "{cut}");
            }
            for (own, other) in pairs() {
                socket::send(&own, &whole[..cut]).unwrap();
                socket::wait_ready(&other, Interest::Read, Some(AGES)).unwrap();
                let error = receive_within(Duration::ZERO, &other, &mut [0; 4]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{cut}");
                assert_eq!(received(&other, 4), Ok(String::new()), "{cut}");
                // The sender finds the end as well.
                assert_eq!(received(&own, 4), Ok(String::new()), "{cut}");
            }
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_lost_and_the_next_one_is_not() {
        for (own, other) in pairs() {
            for text in ["12345", &"x".repeat(10_000), "1234"] {
                send_packet(&own, text, &[]).unwrap();
            }
            assert_eq!(received(&other, 4), Err(ErrorKind::InvalidData));
            assert_eq!(received(&other, 4), Err(ErrorKind::InvalidData));
            assert_eq!(received(&other, 4).as_deref(), Ok("1234"));
        }
    }

    #[test]
    fn what_is_no_message_ends_the_stream() {
        for length in [u32::MAX, LONGEST as u32 + 1] {
            for (own, other) in pairs() {
                socket::send(&own, &length.to_le_bytes()).unwrap();
                assert_eq!(received(&other, 4), Err(ErrorKind::InvalidData));
                assert_eq!(received(&other, 4), Ok(String::new()));
            }
        }
        for (own, other) in pairs() {
            assert!(send_packet(&own, "", &[]).is_err());
            socket::send(&own, &[0; HEADER]).unwrap();
            assert_eq!(received(&other, 4), Err(ErrorKind::InvalidData));
            send_packet(&own, "next", &[]).unwrap();
            assert_eq!(received(&other, 4).as_deref(), Ok("next"));
        }
    }

    #[test]
    fn a_peer_that_does_not_read_ends_the_stream_only_if_it_has_begun_a_message() {
        for (own, other) in pairs() {
            let text = "x".repeat(64 * 1024);
            let mut sent = 0;
            let error = loop {
                match send_packet(&own, &text, &[]) {
                    Ok(()) => sent += 1,
                    Err(error) => break error.kind(),
                }
            };
            for _ in 0..sent {
                assert_eq!(received(&other, text.len()).as_deref(), Ok(text.as_str()));
            }
            if error == ErrorKind::WouldBlock {
                send_packet(&own, "next", &[]).unwrap();
                assert_eq!(received(&other, 4).as_deref(), Ok("next"));
            } else {
                assert_eq!(error, ErrorKind::TimedOut);
                assert_eq!(received(&other, text.len()), Err(ErrorKind::UnexpectedEof));
            }
        }
    }
}
