//! What a process and its successor say to each other over the control socket.
//!
//! Each message is one packet: the protocol's version, the kind, and what belongs to it. Packets of another version or
//! of an unknown kind are ignored, so that either side may learn new ones.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::Socket;

use crate::sys::{self, Poller};

/// The version of this protocol.
pub(crate) const VERSION: u8 = 1;

/// No message is longer.
const MOST: usize = 16 * 1024;

/// A message. The comment says who sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The successor: it runs, and speaks this version.
    Hello,
    /// The successor: it could serve.
    Ready,
    /// The predecessor: start to accept.
    Cutover,
    /// The successor: it accepts, since this time of the system's monotonic clock in nanoseconds, on these of the
    /// descriptors that were passed to it.
    Accepting { since: u64, kept: Vec<u32> },
    /// The predecessor: it accepts no more, and the files of these Unix sockets are the successor's now.
    Commit(Vec<PathBuf>),
    /// The successor: it has taken over. What follows is no matter of the restart.
    Ack,
    /// The predecessor: it serves on itself, for this reason; the successor is to end. Or the successor: it was stopped.
    Abort(String),
    /// The successor: it drains as well, as the third generation serves.
    Superseded,
    /// The successor: its successor drains as well; two drain already, so that the oldest must end.
    Force,
    /// The predecessor: it has served all that it had, as it says here.
    Drained(String),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (kind, rest): (u8, Vec<u8>) = match self {
            Self::Hello => (0, Vec::new()),
            Self::Ready => (1, Vec::new()),
            Self::Cutover => (2, Vec::new()),
            Self::Accepting { since, kept } => {
                let kept = kept.iter().flat_map(|place| place.to_be_bytes());
                (3, since.to_be_bytes().into_iter().chain(kept).collect())
            }
            Self::Commit(paths) => {
                let paths = paths.iter().map(|path| path.as_os_str().as_encoded_bytes());
                (4, paths.collect::<Vec<_>>().join(&0))
            }
            Self::Ack => (5, Vec::new()),
            Self::Abort(why) => (6, why.as_bytes().to_vec()),
            Self::Superseded => (7, Vec::new()),
            Self::Force => (8, Vec::new()),
            Self::Drained(how) => (9, how.as_bytes().to_vec()),
        };
        let mut packet = vec![VERSION, kind];
        packet.extend(rest);
        packet.truncate(MOST);
        packet
    }

    fn decode(packet: &[u8]) -> Option<Self> {
        let [VERSION, kind, rest @ ..] = packet else {
            return None;
        };
        let text = || String::from_utf8_lossy(rest).into_owned();
        Some(match kind {
            0 => Self::Hello,
            1 => Self::Ready,
            2 => Self::Cutover,
            3 => {
                let (since, kept) = rest.split_first_chunk()?;
                let kept = kept.chunks_exact(4).filter_map(|word| word.try_into().ok());
                Self::Accepting {
                    since: u64::from_be_bytes(*since),
                    kept: kept.map(u32::from_be_bytes).collect(),
                }
            }
            4 => Self::Commit(paths(rest)),
            5 => Self::Ack,
            6 => Self::Abort(text()),
            7 => Self::Superseded,
            8 => Self::Force,
            9 => Self::Drained(text()),
            _ => return None,
        })
    }
}

fn paths(joined: &[u8]) -> Vec<PathBuf> {
    let paths = joined.split(|&byte| byte == 0);
    paths
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(sys::file::os_string(path)))
        .collect()
}

/// One end of the control socket, watched by a poller.
pub(super) struct Link {
    socket: Socket,
    watched: Option<(Arc<Poller>, u64)>,
}

/// What came over a link.
pub(super) enum Incoming {
    Message(Message),
    Nothing,
    /// The other process has ended, or closed its end.
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

    /// Has the poller report again what is there, where it reports once only.
    pub(super) fn rearm(&self) {
        if let (false, Some((poller, token))) = (Poller::SHARED, &self.watched) {
            if let Err(error) = poller.rearm(&self.socket, *token, sys::Interest::Read) {
                log::error!("cannot watch the control socket: {error}");
            }
        }
    }

    /// Sends a message, without waiting. Whether the other side is gone shows at the next receive.
    pub(super) fn send(&self, message: &Message) {
        log::debug!("to the other generation: {message:?}");
        if let Err(error) = sys::socket::send(&self.socket, &message.encode()) {
            log::debug!("cannot send {message:?}: {error}");
        }
    }

    pub(super) fn receive(&self) -> Incoming {
        let mut buffer = [0; MOST];
        loop {
            match sys::message::receive(&self.socket, &mut buffer) {
                Ok(0) => return Incoming::End,
                Ok(size) => match Message::decode(&buffer[..size]) {
                    Some(message) => {
                        log::debug!("from the other generation: {message:?}");
                        return Incoming::Message(message);
                    }
                    None => log::debug!("ignoring a message of {size} bytes"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Incoming::Nothing;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    log::warn!("ignoring {error}");
                }
                // The other side has not read all; what it had said before is there still.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    log::debug!("the control socket is gone: {error}");
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
                log::error!("cannot forget the control socket: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_there_and_back() {
        for message in [
            Message::Hello,
            Message::Ready,
            Message::Cutover,
            Message::Accepting {
                since: u64::MAX - 7,
                kept: vec![0, 70_000],
            },
            Message::Commit(Vec::new()),
            Message::Commit(vec!["/run/a".into(), "b c".into()]),
            Message::Ack,
            Message::Abort("because".to_owned()),
            Message::Superseded,
            Message::Force,
            Message::Drained(String::new()),
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for packet in [
            &[][..],
            &[VERSION],
            &[VERSION + 1, 0],
            &[VERSION, 200],
            &[VERSION, 3, 1, 2, 3],
        ] {
            assert_eq!(Message::decode(packet), None, "{packet:?}");
        }
    }
}
