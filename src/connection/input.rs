//! The bytes that have arrived and were not consumed.

use std::io;

/// What a connection reads at a time while a worker has it.
pub(crate) const READ_SIZE: usize = 16 * 1024;

/// A buffer that is there only while there is something to hold: a parked connection keeps just its bytes, and the
/// room to read into is lent by the worker.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// All of it is initialised; the bytes are those from `start` to `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Consumes `count` bytes.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[inline]
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(
            count <= self.len(),
            "consume({count}) of {} bytes",
            self.len()
        );
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room to read into; never empty. `limit` bounds the bytes that are there together with it.
    pub(crate) fn room(&mut self, limit: usize) -> io::Result<&mut [u8]> {
        if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            if self.len() >= limit {
                let text = format!("a message is longer than the input limit of {limit} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let size = (self.buffer.len() * 2).clamp(READ_SIZE, limit.max(READ_SIZE));
            self.buffer.resize(size, 0);
        }
        Ok(&mut self.buffer[self.end..])
    }

    /// Says that `count` bytes were read into the room.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.buffer.len());
    }

    /// Takes a worker's spare buffer as room, if there is none.
    #[inline]
    pub(crate) fn lend(&mut self, spare: &mut Vec<u8>) {
        if self.buffer.len() < spare.len() {
            let len = self.len();
            spare[..len].copy_from_slice(&self.buffer[self.start..self.end]);
            std::mem::swap(&mut self.buffer, spare);
            (self.start, self.end) = (0, len);
        }
    }

    /// Gives the room back, and keeps only the bytes.
    #[inline]
    pub(crate) fn settle(&mut self, spare: &mut Vec<u8>) {
        let kept = self.bytes().to_vec();
        let buffer = std::mem::replace(&mut self.buffer, kept);
        (self.start, self.end) = (0, self.buffer.len());
        // A buffer that one long message made grow is not worth keeping.
        if buffer.len() == READ_SIZE {
            *spare = buffer;
        }
    }

    /// Takes all that is there.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let bytes = self.bytes().to_vec();
        *self = Self::default();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(input: &mut Input, bytes: &[u8]) {
        input.room(1 << 20).unwrap()[..bytes.len()].copy_from_slice(bytes);
        input.filled(bytes.len());
    }

    #[test]
    fn bytes_survive_parking_and_take_only_their_own_room() {
        let mut spare = vec![0; READ_SIZE];
        let mut input = Input::default();
        input.lend(&mut spare);
        put(&mut input, b"one\ntwo");
        input.consume(4);
        input.settle(&mut spare);
        assert_eq!(input.bytes(), b"two");
        assert_eq!(input.buffer.capacity(), 3);
        assert_eq!(spare.len(), READ_SIZE);
        input.lend(&mut spare);
        put(&mut input, b"!");
        assert_eq!(input.bytes(), b"two!");
        input.consume(4);
        input.settle(&mut spare);
        assert_eq!(input.buffer.capacity(), 0);
    }

    #[test]
    fn room_is_made_by_moving_before_growing_and_ends_at_the_limit() {
        let mut input = Input::default();
        let room = input.room(READ_SIZE).unwrap().len();
        assert_eq!(room, READ_SIZE);
        input.filled(room);
        assert!(input.room(READ_SIZE).is_err());
        input.consume(10);
        assert_eq!(input.room(READ_SIZE).unwrap().len(), 10);
        input.filled(10);
        assert_eq!(input.room(2 * READ_SIZE).unwrap().len(), READ_SIZE);
    }
}
