//! The control socket between a process and its successor: one handshake message in each packet.
//!
//! Packets of another version or of an unknown kind are ignored, so that a later release may send
//! more. The supervisor's lifeline is a link as well, on which nothing is sent: its end counts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::Socket;

use crate::sys::{self, Poller};
use crate::wire::{HandshakeMessage, Record, WirePath};

/// One end of the control socket, watched by a poller.
pub(super) struct Link {
    socket: Socket,
    watched: Option<(Arc<Poller>, u64)>,
}

/// What a link received.
pub(super) enum Incoming {
    Message(HandshakeMessage),
    Nothing,
    /// The other process has ended, or has closed its end.
    End,
}

impl Link {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            watched: None,
        }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn watch(&mut self, poller: &Arc<Poller>, token: u64) -> io::Result<()> {
        poller.add(&self.socket, token)?;
        self.watched = Some((Arc::clone(poller), token));
        Ok(())
    }

    /// Has the poller report later packets too, on platforms where it reports a socket once.
    pub(super) fn rearm(&self) {
        if let (false, Some((poller, token))) = (Poller::SHARED, &self.watched) {
            if let Err(error) = poller.rearm(&self.socket, *token, sys::Interest::Read) {
                log::error!("cannot watch the control socket: {error}");
            }
        }
    }

    /// Sends a message without waiting. The next [`receive`](Self::receive) tells whether the other
    /// process has ended.
    pub(super) fn send(&self, message: &HandshakeMessage) {
        log::debug!("to the other generation: {message:?}");
        let packet = message.encode().map_err(io::Error::from);
        let sent = packet.and_then(|packet| sys::socket::send(&self.socket, packet.as_bytes()));
        if let Err(error) = sent {
            log::debug!("cannot send {message:?}: {error}");
        }
    }

    pub(super) fn receive(&self) -> Incoming {
        let mut buffer = [0; HandshakeMessage::LIMIT];
        loop {
            match sys::message::receive(&self.socket, &mut buffer) {
                Ok((0, _)) => return Incoming::End,
                Ok((size, _)) => match HandshakeMessage::decode(&buffer[..size]) {
                    Ok(message) => {
                        log::debug!("from the other generation: {message:?}");
                        return Incoming::Message(message);
                    }
                    Err(error) => log::debug!("ignoring a packet of {size} bytes: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Incoming::Nothing;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::warn!("ignoring {error}");
                }
                // The other process ended before it had read everything. Its own packets are
                // still to be received.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    log::debug!("the control socket failed: {error}");
                    return Incoming::End;
                }
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some((poller, _)) = &self.watched {
            if let Err(error) = poller.remove(&self.socket) {
                log::error!("cannot remove the control socket from the poller: {error}");
            }
        }
    }
}

/// A path from a message, as the system has it.
pub(super) fn path_of(path: &WirePath) -> PathBuf {
    sys::file::os_string(path.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            sys::socket::send(&own, packet.as_bytes()).unwrap();
        }
        let (own, other) = (Link::new(own), Link::new(other));
        assert!(matches!(other.receive(), Incoming::Nothing));
        let path = PathBuf::from(sys::file::os_string(b"/run/\xff"));
        let paths = WirePath::new(&path).into_iter().collect();
        own.send(&HandshakeMessage::Commit { paths });
        drop(own);
        match other.receive() {
            Incoming::Message(HandshakeMessage::Commit { paths }) => {
                assert_eq!(paths.iter().map(path_of).collect::<Vec<_>>(), [path]);
            }
            _ => panic!("no message"),
        }
        assert!(matches!(other.receive(), Incoming::End));
    }
}
