//! Spools: request bodies that are kept until they are complete, in memory up to 64 KiB and then in
//! an unnamed temporary file.
//!
//! A client that sends single bytes causes a write to the file only every 64 KiB, since the part
//! behind that in the file stays in memory until it is too large. From a client that is fast, a
//! call of the service receives up to 1 MiB, and writes that at once, unless the body is complete: a
//! body that comes at once needs no file. A [`SpoolSpace`] bounds all spools of a service together.
//! A spool takes bytes of the space as they arrive, since a client that only declares a length must
//! not take room from the others, and returns them when it is dropped.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;

use super::rejection::Rejection;
use super::spool_buffer::{BUFFER_SIZE, SpoolBuffer};
use super::spool_space::{BLOCK_SIZE, Reservation, SpoolSpace};
use super::spooled_body::{Memory, SpooledBody};

/// The buffer is written to the file when it has less room than this, in bytes.
const MIN_ROOM: usize = 16 * 1024;

/// A body that is being received.
///
/// While a call of the service receives, the body may have a buffer. What is in the buffer when the
/// connection is parked is written to the file, if it is too much for the tail.
#[derive(Debug)]
pub(super) struct Spool {
    reservation: Reservation,
    /// The beginning of the body, if the body has been larger than `BLOCK_SIZE`.
    file: Option<File>,
    /// The part behind that in the file.
    tail: Vec<u8>,
    buffer: Option<SpoolBuffer>,
    /// How many bytes of the buffer are a part of the body. If there are any, they are what is
    /// behind the file, and the tail is empty.
    buffered: usize,
}

impl Spool {
    pub(super) fn new(space: Arc<SpoolSpace>) -> Self {
        Self {
            reservation: Reservation::new(space),
            file: None,
            tail: Vec::new(),
            buffer: None,
            buffered: 0,
        }
    }

    /// Takes a buffer, if one is free: a call begins to receive.
    pub(super) fn take_buffer(&mut self) {
        if self.buffer.is_none() {
            self.buffer = self.reservation.space.buffers.take();
        }
    }

    /// Gives the buffer back: the connection is about to be parked.
    pub(super) fn return_buffer(&mut self) -> Result<(), Rejection> {
        if self.buffered > 0 {
            self.spill()?;
        }
        self.buffer = None;
        Ok(())
    }

    /// Whether more of the body is in memory than a parked connection may keep.
    pub(super) fn is_buffered(&self) -> bool {
        self.buffered > 0
    }

    /// Adds data from elsewhere.
    pub(super) fn append(&mut self, mut data: &[u8]) -> Result<(), Rejection> {
        self.reservation.grow(data.len() as u64)?;
        while self.buffered > 0 || self.tail.len() + data.len() > BLOCK_SIZE {
            let start = self.in_memory();
            let most = if self.buffer.is_some() {
                BUFFER_SIZE
            } else {
                BLOCK_SIZE
            };
            let end = most.min(start + data.len());
            let (fitting, rest) = data.split_at(end - start);
            match &mut self.buffer {
                Some(buffer) => {
                    buffer[start..end].copy_from_slice(fitting);
                    self.note_buffered(end);
                }
                None => self.tail.extend_from_slice(fitting),
            }
            if rest.is_empty() {
                return Ok(());
            }
            self.spill()?;
            data = rest;
        }
        self.tail.extend_from_slice(data);
        Ok(())
    }

    /// Room in the buffer to read into, at least `MIN_ROOM`. `None` without a buffer.
    pub(super) fn room(&mut self) -> Result<Option<&mut [u8]>, Rejection> {
        if self.buffered > BUFFER_SIZE - MIN_ROOM {
            self.spill()?;
        }
        // The tail has its place in front.
        let start = self.in_memory();
        Ok(self.buffer.as_mut().map(|buffer| &mut buffer[start..]))
    }

    /// Adds `count` bytes that were read into the room.
    pub(super) fn add_read(&mut self, count: usize) -> Result<(), Rejection> {
        self.reservation.grow(count as u64)?;
        let (start, end) = (self.in_memory(), self.in_memory() + count);
        match &self.buffer {
            Some(buffer) if self.buffered == 0 && end <= BLOCK_SIZE => {
                self.tail.extend_from_slice(&buffer[start..end]);
            }
            _ => self.note_buffered(end),
        }
        Ok(())
    }

    /// How many bytes are behind those in the file.
    fn in_memory(&self) -> usize {
        self.buffered.max(self.tail.len())
    }

    fn note_buffered(&mut self, end: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer[..self.tail.len()].copy_from_slice(&self.tail);
            self.tail.clear();
            self.buffered = end;
        }
    }

    /// Writes what is in memory to the file.
    fn spill(&mut self) -> Result<(), Rejection> {
        let bytes = match &self.buffer {
            Some(buffer) if self.buffered > 0 => &buffer[..self.buffered],
            _ => &self.tail,
        };
        let space = &self.reservation.space;
        let file = match &mut self.file {
            Some(file) => Ok(file),
            none => space.open_file().map(|file| none.insert(file)),
        };
        let written = file.and_then(|file| file.write_all(bytes));
        written.map_err(|error| space.note_failure(&error))?;
        self.tail.clear();
        self.buffered = 0;
        Ok(())
    }

    /// Ends the body: it is complete. What is in the buffer stays there.
    pub(super) fn end(&mut self) -> Result<(), Rejection> {
        let rewound = self.file.as_mut().map_or(Ok(()), File::rewind);
        rewound.map_err(|error| self.reservation.space.note_failure(&error))
    }

    /// Makes an ended body readable.
    pub(super) fn into_body(self) -> SpooledBody {
        let in_file = self.reservation.bytes - self.in_memory() as u64;
        let tail = match self.buffer {
            Some(buffer) if self.buffered > 0 => Memory::Buffer(buffer, self.buffered),
            _ => Memory::Vec(self.tail),
        };
        SpooledBody::new(self.file, in_file, tail, self.reservation)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::http::spool_space::CANNOT_STORE;

    fn space(limit: u64) -> Arc<SpoolSpace> {
        Arc::new(SpoolSpace::new(limit, None))
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at ^ (at >> 8)) as u8).collect()
    }

    /// A body of these pieces, which are copied, or with a buffer also read into it in turn. It is
    /// parked between them, or not.
    fn body(
        space: &Arc<SpoolSpace>,
        pieces: &[&[u8]],
        (has_buffer, parks): (bool, bool),
    ) -> Result<SpooledBody, Rejection> {
        let mut spool = Spool::new(Arc::clone(space));
        for (at, piece) in pieces.iter().enumerate() {
            if has_buffer {
                spool.take_buffer();
            }
            match spool.room()? {
                Some(room) if at % 2 == 1 && room.len() >= piece.len() => {
                    room[..piece.len()].copy_from_slice(piece);
                    spool.add_read(piece.len())?;
                }
                _ => spool.append(piece)?,
            }
            if parks {
                spool.return_buffer()?;
                assert!(spool.tail.len() <= BLOCK_SIZE);
            }
        }
        spool.end()?;
        Ok(spool.into_body())
    }

    #[test]
    fn a_body_comes_back_whole_from_memory_and_file() {
        let space = space(4 << 20);
        for size in [
            0,
            1,
            65_535,
            65_536,
            65_537,
            131_073,
            300_000,
            900_000,
            3 << 20,
        ] {
            let all = bytes(size);
            for step in [1000, 65_536, 65_537, 200_000] {
                for how in [(false, false), (true, false), (true, true)] {
                    check(&all, &space, step, how);
                }
            }
        }
        assert_eq!(space.used(), 0);
    }

    #[track_caller]
    fn check(all: &[u8], space: &Arc<SpoolSpace>, step: usize, how: (bool, bool)) {
        let size = all.len();
        let pieces: Vec<&[u8]> = all.chunks(step).collect();
        let again = || body(space, &pieces, how).unwrap();
        let what = format!("{size} in steps of {step}, {how:?}");
        assert_eq!(again().remaining(), size as u64);
        let most = if how == (true, false) {
            BUFFER_SIZE
        } else {
            BLOCK_SIZE
        };
        assert_eq!(again().file.is_some(), size > most, "{what}");
        assert!(again().read_rest().unwrap() == all, "{what}");
        let mut read = Vec::new();
        again().read_to_end(&mut read).unwrap();
        assert!(read == all, "{what}");
        // In small pieces first, then the rest.
        let mut body = again();
        let mut begin = vec![0; size.min(777)];
        body.read_exact(&mut begin).unwrap();
        assert_eq!(body.remaining(), (size - begin.len()) as u64);
        if how.1 {
            // As if another thread had taken most buffers.
            let others: Vec<_> = std::iter::from_fn(|| space.buffers.take()).collect();
            body.outlive_request().unwrap();
            assert!(!body.has_buffer() && others.len() > 8);
            assert_eq!(body.remaining(), (size - begin.len()) as u64);
        }
        begin.extend(body.read_rest().unwrap());
        assert!(begin == all, "{what}");
        assert_eq!(body.remaining(), 0);
        assert_eq!(body.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn all_bodies_together_have_a_limit() {
        let space = space(1000);
        let status = |result: Result<(), Rejection>| result.err().map(|why| why.status.as_u16());
        assert_eq!(status(space.admit(1000)), None);
        assert_eq!(status(space.admit(1001)), Some(413));
        assert_eq!(status(space.admit(u64::MAX)), Some(413));
        let first = body(&space, &[&[0; 600]], (true, true)).unwrap();
        assert_eq!(status(space.admit(400)), None);
        assert_eq!(status(space.admit(401)), Some(503));
        assert_eq!(
            status(body(&space, &[&[0; 400], &[0; 1]], (true, true)).map(drop)),
            Some(503)
        );
        assert_eq!(space.used(), 600);
        // A body that would not fit into an empty space either.
        let mut large = Spool::new(Arc::clone(&space));
        assert_eq!(status(large.append(&[0; 1001])), Some(413));
        drop(first);
        assert_eq!(status(large.append(&[0; 1000])), None);
        assert_eq!(status(large.append(&[0; 1])), Some(413));
        drop(large);
        assert_eq!(space.used(), 0);
    }

    #[test]
    fn a_full_disk_is_no_room() {
        // The device that is always full; not every system has it.
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            return;
        };
        let space = space(1 << 20);
        let mut spool = Spool::new(Arc::clone(&space));
        spool.file = Some(full);
        spool.append(&[0; BLOCK_SIZE]).unwrap();
        assert_eq!(spool.append(&[0; 1]), Err(CANNOT_STORE));
        spool.take_buffer();
        spool.append(&[0; 1]).unwrap();
        assert_eq!(spool.return_buffer(), Err(CANNOT_STORE));
        drop(spool);
        assert_eq!(space.used(), 0);
        assert_ne!(
            space.failed_at.load(std::sync::atomic::Ordering::Relaxed),
            0
        );
    }
}
