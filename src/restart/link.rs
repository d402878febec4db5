//! The handshake socket between a process and its successor: one handshake message in each packet.
//!
//! Packets of another version or of an unknown kind are ignored, so that a later release may send
//! more. The supervisor's lifeline is a link as well, on which nothing is sent: only its
//! end-of-file matters.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::Socket;

use crate::log;
use crate::sys::{self, Descriptor, Poller};
use crate::wire::{HandshakeMessage, Record, WirePath};

/// One end of the handshake socket, watched by a poller.
pub(super) struct Link {
    socket: Socket,
    poller: Arc<Poller>,
    token: u64,
}

/// What a link received.
pub(super) enum Incoming {
    /// A message, and the descriptor that came with it.
    Message(HandshakeMessage, Option<Descriptor>),
    /// The other process has ended, or has closed its end.
    End,
}

impl Link {
    pub(super) fn new(socket: Socket, poller: &Arc<Poller>, token: u64) -> io::Result<Self> {
        poller.add(&socket, token)?;
        let poller = Arc::clone(poller);
        Ok(Self {
            socket,
            poller,
            token,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends a message without waiting. The next [`receive`](Self::receive) tells whether the other
    /// process has ended.
    pub(super) fn send(&self, message: &HandshakeMessage) {
        send_message(&self.socket, message);
    }

    /// Receives without waiting. `None`: nothing has come, and the poller reports when it has.
    pub(super) fn receive(&self) -> Option<Incoming> {
        let mut buffer = [0; HandshakeMessage::LIMIT];
        loop {
            match sys::message::receive(&self.socket, &mut buffer) {
                Ok((0, _)) => return Some(Incoming::End),
                Ok((size, descriptor)) => match HandshakeMessage::decode(&buffer[..size]) {
                    Ok(message) => {
                        log::debug!("from the other generation: {message:?}");
                        return Some(Incoming::Message(message, descriptor));
                    }
                    Err(error) => log::debug!("ignoring a packet of {size} bytes: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.rearm();
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::warn!("ignoring {error}");
                }
                // The other process ended before it had read everything. Its own packets are
                // still to be received.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    log::debug!("the handshake socket failed: {error}");
                    return Some(Incoming::End);
                }
            }
        }
    }

    /// Makes the poller report later packets too, on platforms where it reports a socket once.
    fn rearm(&self) {
        if Poller::REPORTS_ONCE {
            let interest = sys::Interest::Read;
            if let Err(error) = self.poller.rearm(&self.socket, self.token, interest) {
                log::error!("cannot watch the handshake socket: {error}");
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.poller.remove(&self.socket) {
            log::error!("cannot remove the handshake socket from the poller: {error}");
        }
    }
}

/// Sends a message without waiting. A failure is only logged.
pub(super) fn send_message(socket: &Socket, message: &HandshakeMessage) {
    match send(socket, message, &[]) {
        Ok(()) => {}
        Err(error) if is_end(&error) => log::debug!("cannot send {message:?}: {error}"),
        Err(error) => log::warn!("cannot send {message:?}: {error}"),
    }
}

/// Whether a message cannot be sent because the other process has ended, which is no fault.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected
    )
}

/// Sends a message with a descriptor, without waiting.
///
/// # Errors
///
/// Why the message could not be sent.
pub(super) fn send_with(
    socket: &Socket,
    message: &HandshakeMessage,
    descriptor: &Descriptor,
) -> io::Result<()> {
    send(socket, message, &[descriptor])
}

fn send(
    socket: &Socket,
    message: &HandshakeMessage,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    log::debug!("to the other generation: {message:?}");
    let packet = message.encode()?;
    sys::message::send_packet(socket, &packet, descriptors)
}

/// A path from a message, as the system has it.
pub(super) fn path_of(path: &WirePath) -> PathBuf {
    sys::file::os_string(path.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_cannot_be_sent_is_a_fault_unless_the_other_process_has_ended() {
        let Ok((own, other)) = sys::message::create_pair() else {
            return;
        };
        let addr = crate::wire::WireAddr::Unix(None);
        let name = "x".repeat(HandshakeMessage::LIMIT);
        let listeners = vec![crate::wire::ListenerId { name, addr }];
        let server = crate::wire::ServerId {
            listeners,
            position: 0,
        };
        let too_long = send(&own, &HandshakeMessage::Connections(server), &[]);
        assert!(!is_end(&too_long.unwrap_err()));
        // EMSGSIZE.
        let long = "x".repeat(16 << 20);
        assert!(!is_end(
            &sys::message::send_packet(&own, &long, &[]).unwrap_err()
        ));
        drop(other);
        assert!(is_end(
            &send(&own, &HandshakeMessage::Hello, &[]).unwrap_err()
        ));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        let Ok((own, other)) = sys::message::create_pair() else {
            return;
        };
        for packet in [
            "1",
            r#"{"v":2,"type":"hello"}"#,
            r#"{"v":1,"type":"x"}"#,
            "{",
        ] {
            sys::message::send_packet(&own, packet, &[]).unwrap();
        }
        let poller = Arc::new(Poller::new().unwrap());
        let own = Link::new(own, &poller, 0).unwrap();
        let other = Link::new(other, &poller, 1).unwrap();
        assert!(other.receive().is_none());
        let path = PathBuf::from(sys::file::os_string(b"/run/\xff"));
        let paths = WirePath::new(&path).into_iter().collect();
        own.send(&HandshakeMessage::Commit {
            paths,
            drain_millis: None,
        });
        drop(own);
        match other.receive() {
            Some(Incoming::Message(HandshakeMessage::Commit { paths, .. }, _)) => {
                assert_eq!(paths.iter().map(path_of).collect::<Vec<_>>(), [path]);
            }
            _ => panic!("no message"),
        }
        assert!(matches!(other.receive(), Some(Incoming::End)));
    }
}
