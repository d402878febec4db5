//! Input: the bytes that have arrived and were not consumed.

use std::io;

/// How many bytes a connection reads at a time, and the size of a worker's spare buffer.
pub(crate) const READ_SIZE: usize = 16 * 1024;

/// The input buffer. A parked connection keeps only its unconsumed bytes. The room to read into is
/// a buffer that the worker lends.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// Initialised throughout. The unconsumed bytes are those from `start` to `end`.
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
    /// If there are fewer bytes.
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

    /// Room to read into; never empty. `limit` bounds the unconsumed bytes and the room together.
    pub(crate) fn room(&mut self, limit: usize) -> io::Result<&mut [u8]> {
        let left = limit.saturating_sub(self.len());
        if left == 0 {
            let text = format!("a message is longer than the input limit of {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if self.end == self.buffer.len() && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            let size = (self.buffer.len() * 2).clamp(READ_SIZE, limit.max(READ_SIZE));
            self.buffer.resize(size, 0);
        }
        let end = self.buffer.len().min(self.end.saturating_add(left));
        Ok(&mut self.buffer[self.end..end])
    }

    /// Adds the `count` bytes that were read into the room.
    pub(crate) fn add_filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.buffer.len());
    }

    /// Swaps the worker's spare buffer in, if it is larger.
    #[inline]
    pub(crate) fn lend_buffer(&mut self, spare: &mut Vec<u8>) {
        if self.buffer.len() < spare.len() {
            let len = self.len();
            spare[..len].copy_from_slice(&self.buffer[self.start..self.end]);
            std::mem::swap(&mut self.buffer, spare);
            (self.start, self.end) = (0, len);
        }
    }

    /// Gives the buffer back, and keeps only the unconsumed bytes.
    #[inline]
    pub(crate) fn return_buffer(&mut self, spare: &mut Vec<u8>) {
        let kept = self.bytes().to_vec();
        let buffer = std::mem::replace(&mut self.buffer, kept);
        (self.start, self.end) = (0, self.buffer.len());
        // A buffer that has grown for one long message is freed.
        if buffer.len() == READ_SIZE {
            *spare = buffer;
        }
    }

    /// Moves all bytes to the end of `to`.
    pub(super) fn move_to(&mut self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.bytes());
        self.consume(self.len());
    }

    /// Puts bytes back that were taken out: they come before those that are here.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let all = [bytes, self.bytes()].concat();
        if self.buffer.len() < all.len() {
            self.buffer.resize(all.len(), 0);
        }
        self.buffer[..all.len()].copy_from_slice(&all);
        (self.start, self.end) = (0, all.len());
    }

    /// Takes all bytes out.
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
        input.add_filled(bytes.len());
    }

    #[test]
    fn bytes_survive_parking_and_take_only_their_own_room() {
        let mut spare = vec![0; READ_SIZE];
        let mut input = Input::default();
        input.lend_buffer(&mut spare);
        put(&mut input, b"one\ntwo");
        input.consume(4);
        input.return_buffer(&mut spare);
        assert_eq!(input.bytes(), b"two");
        assert_eq!(input.buffer.capacity(), 3);
        assert_eq!(spare.len(), READ_SIZE);
        input.lend_buffer(&mut spare);
        put(&mut input, b"!");
        assert_eq!(input.bytes(), b"two!");
        input.consume(4);
        input.return_buffer(&mut spare);
        assert_eq!(input.buffer.capacity(), 0);
    }

    #[test]
    fn bytes_that_are_put_back_come_first() {
        let mut input = Input::default();
        put(&mut input, b"one two");
        let mut taken = Vec::new();
        input.move_to(&mut taken);
        assert!(input.is_empty());
        put(&mut input, b" three");
        input.put_back(&taken[4..]);
        assert_eq!(input.bytes(), b"two three");
        input.put_back(&vec![b'x'; 2 * READ_SIZE]);
        assert_eq!(input.len(), 2 * READ_SIZE + 9);
    }

    #[test]
    fn room_is_made_by_moving_before_growing_and_ends_at_the_limit() {
        let mut input = Input::default();
        let room = input.room(READ_SIZE).unwrap().len();
        assert_eq!(room, READ_SIZE);
        input.add_filled(room);
        assert!(input.room(READ_SIZE).is_err());
        input.consume(10);
        assert_eq!(input.room(READ_SIZE).unwrap().len(), 10);
        input.add_filled(10);
        assert_eq!(input.room(2 * READ_SIZE).unwrap().len(), READ_SIZE);
    }
}
