//! The bytes that are written but that the socket has not taken yet.

use std::io;

use socket2::Socket;

use crate::sys;

/// A bounded buffer behind a non-blocking socket; nearly always there is none.
#[derive(Debug, Default)]
pub(crate) struct Output(Option<Box<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    pub(crate) fn len(&self) -> usize {
        let pending = self.0.as_deref();
        pending.map_or(0, |pending| pending.bytes.len() - pending.sent)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Keeps as much of `bytes` as fits under the limit, and says how much.
    pub(crate) fn keep(&mut self, bytes: &[u8], limit: usize) -> usize {
        let count = bytes.len().min(limit.saturating_sub(self.len()));
        if count > 0 {
            let pending = self.0.get_or_insert_default();
            pending.bytes.drain(..pending.sent);
            pending.sent = 0;
            pending.bytes.extend_from_slice(&bytes[..count]);
        }
        count
    }

    /// Hands the socket what it takes now; says how much that was.
    pub(crate) fn flush(&mut self, socket: &Socket) -> io::Result<usize> {
        let Some(pending) = &mut self.0 else {
            return Ok(0);
        };
        let before = pending.sent;
        while pending.sent < pending.bytes.len() {
            match sys::socket::send(socket, &pending.bytes[pending.sent..]) {
                Ok(count) => pending.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(pending.sent - before);
                }
                Err(error) => return Err(error),
            }
        }
        let count = pending.sent - before;
        self.0 = None;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let mut output = Output::default();
        assert_eq!(output.keep(b"hello", 3), 3);
        assert_eq!(output.keep(b"lo", 3), 0);
        output.0.as_mut().unwrap().sent = 2;
        assert_eq!(output.keep(b"lo", 3), 2);
        assert_eq!(output.len(), 3);
        assert_eq!(output.0.unwrap().bytes, b"llo");
    }
}
