//! The bytes that are written but that the socket has not taken yet.

use std::io;

use socket2::Socket;

use crate::sys;

/// A bounded buffer behind a non-blocking socket; empty, and without memory, nearly all of the time.
#[derive(Debug, Default)]
pub(crate) struct Output {
    buffer: Vec<u8>,
    sent: usize,
}

impl Output {
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len() - self.sent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    /// Keeps as much of `bytes` as fits under the limit, and says how much.
    pub(crate) fn keep(&mut self, bytes: &[u8], limit: usize) -> usize {
        let count = bytes.len().min(limit.saturating_sub(self.pending()));
        if self.sent > 0 && count > 0 {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
        self.buffer.extend_from_slice(&bytes[..count]);
        count
    }

    /// Hands the socket what it takes now; says how much that was.
    pub(crate) fn flush(&mut self, socket: &Socket) -> io::Result<usize> {
        let before = self.sent;
        while self.pending() > 0 {
            match sys::send(socket, &self.buffer[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.sent - before);
                }
                Err(error) => return Err(error),
            }
        }
        let count = self.sent - before;
        *self = Self::default();
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
        output.sent = 2;
        assert_eq!(output.keep(b"lo", 3), 2);
        assert_eq!(output.buffer, b"llo");
    }
}
