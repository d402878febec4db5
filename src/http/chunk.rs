//! Pieces of a body, framed once as chunks.

use std::fmt;

use bytes::Bytes;

/// A piece of a body for a [`BodySender`](super::BodySender): bytes in the frame of a chunk (RFC
/// 9112, section 7.1), so that it can be sent without another copy.
///
/// Making a chunk copies the bytes once. Clones share them: one chunk can go to any number of
/// clients, and HTTP/1.0 clients, which know no chunks, get the same bytes without the frame.
/// Texts, vectors and [`Bytes`] convert into a chunk.
///
/// # Examples
///
/// ```
/// use handover::http::{BodySender, Chunk};
///
/// /// Sends a message to all who can take it, and forgets the others.
/// fn publish(message: &str, subscribers: &mut Vec<BodySender>) {
///     let chunk = Chunk::from(message);
///     subscribers.retain(|subscriber| subscriber.try_send(chunk.clone()).is_ok());
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Chunk {
    framed: Bytes,
    /// Where the bytes without the frame begin.
    start: usize,
}

/// What ends a chunked body, without trailer fields.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

const LINE_END: &[u8] = b"\r\n";

impl Chunk {
    fn new(bytes: &[u8]) -> Self {
        let size = format!("{:x}\r\n", bytes.len());
        let framed = [size.as_bytes(), bytes, LINE_END].concat();
        Self {
            framed: framed.into(),
            start: size.len(),
        }
    }

    /// The bytes, without the frame.
    pub fn bytes(&self) -> Bytes {
        self.framed.slice(self.start..self.start + self.len())
    }

    /// How many bytes there are, without the frame.
    pub fn len(&self) -> usize {
        self.framed.len() - self.start - LINE_END.len()
    }

    /// Whether there are none. Such a chunk is not sent: it would end the body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn framed(&self) -> Bytes {
        self.framed.clone()
    }

    pub(super) fn framed_len(&self) -> usize {
        self.framed.len()
    }
}

impl From<&[u8]> for Chunk {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Chunk {
    fn from(bytes: &[u8; N]) -> Self {
        Self::new(bytes)
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(&bytes)
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::new(&bytes)
    }
}

impl From<&str> for Chunk {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl From<String> for Chunk {
    fn from(text: String) -> Self {
        Self::new(text.as_bytes())
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_its_frame_and_its_bytes() {
        for (text, framed) in [
            ("", "0\r\n\r\n"),
            ("a", "1\r\na\r\n"),
            ("0123456789abcdef", "10\r\n0123456789abcdef\r\n"),
        ] {
            let chunk = Chunk::from(text);
            assert_eq!(chunk.framed(), framed);
            assert_eq!(chunk.bytes(), text);
            assert_eq!(
                (chunk.len(), chunk.is_empty()),
                (text.len(), text.is_empty())
            );
        }
    }
}
