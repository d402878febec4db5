//! A complete request body that was spooled. Its beginning may be in a file; the rest is in memory.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;

use super::rejection::Rejection;
use super::spool_buffer::SpoolBuffer;
use super::spool_space::{BLOCK_SIZE, Reservation, SpoolSpace};

/// A part of a body.
#[derive(Debug)]
pub(super) enum Memory {
    Vec(Vec<u8>),
    /// The first bytes of a buffer.
    Buffer(SpoolBuffer, usize),
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Vec(bytes) => bytes,
            Self::Buffer(buffer, len) => &buffer[..*len],
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::Vec(Vec::new())
    }
}

/// A complete body. Reading it never waits for the client.
#[derive(Debug)]
pub(super) struct SpooledBody {
    pub(super) file: Option<File>,
    /// How many bytes of the file have not been read.
    in_file: u64,
    /// What was read from the file, or the tail. The bytes from `start` to `end` are next.
    block: Memory,
    start: usize,
    end: usize,
    tail: Memory,
    reservation: Reservation,
}

impl SpooledBody {
    /// A body whose first `in_file` bytes are in a file, and the others in `tail`. The file is at
    /// its start.
    pub(super) fn new(
        file: Option<File>,
        in_file: u64,
        tail: Memory,
        reservation: Reservation,
    ) -> Self {
        Self {
            file,
            in_file,
            block: Memory::default(),
            start: 0,
            end: 0,
            tail,
            reservation,
        }
    }

    /// How many bytes are left to read.
    pub(super) fn remaining(&self) -> u64 {
        self.in_file + (self.end - self.start + self.tail.bytes().len()) as u64
    }

    /// Whether what is left is all in memory of its own.
    pub(super) fn is_in_memory(&self) -> bool {
        self.in_file == 0 && !self.has_buffer()
    }

    pub(super) fn has_buffer(&self) -> bool {
        matches!(self.block, Memory::Buffer(..)) || matches!(self.tail, Memory::Buffer(..))
    }

    /// Reads the rest at once.
    pub(super) fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        if self.start == self.end && self.is_in_memory() {
            if let Memory::Vec(rest) = std::mem::take(&mut self.tail) {
                return Ok(rest);
            }
        }
        // All of it has arrived: the length is not the client's claim.
        let mut rest = Vec::with_capacity(self.remaining() as usize);
        rest.extend_from_slice(&self.block.bytes()[self.start..self.end]);
        self.start = self.end;
        if let (Some(file), 1..) = (&mut self.file, self.in_file) {
            let count = file.take(self.in_file).read_to_end(&mut rest)? as u64;
            if count < self.in_file {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.in_file = 0;
        }
        rest.extend_from_slice(std::mem::take(&mut self.tail).bytes());
        Ok(rest)
    }

    /// Prepares the body for a time after its request: while buffers are scarce, what is in one is
    /// written to the file.
    pub(super) fn outlive_request(&mut self) -> Result<(), Rejection> {
        let space = &self.reservation.space;
        if !self.has_buffer() || !space.buffers.are_scarce() {
            return Ok(());
        }
        let bytes = match &self.block {
            Memory::Buffer(..) => &self.block.bytes()[self.start..self.end],
            Memory::Vec(_) => self.tail.bytes(),
        };
        let written = append_to_file(&mut self.file, space, bytes);
        written.map_err(|error| space.note_failure(&error))?;
        self.in_file += bytes.len() as u64;
        if let Memory::Buffer(..) = self.block {
            (self.block, self.start, self.end) = (Memory::default(), 0, 0);
        }
        self.tail = Memory::default();
        Ok(())
    }

    /// Takes what is left in the file out, as a range of the file, if that comes next.
    pub(super) fn take_file(&mut self) -> io::Result<Option<(Arc<File>, Range<u64>)>> {
        if self.start < self.end || self.in_file == 0 {
            return Ok(None);
        }
        let Some(mut file) = self.file.take() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let start = file.stream_position()?;
        let end = start + std::mem::take(&mut self.in_file);
        Ok(Some((Arc::new(file), start..end)))
    }

    /// Reads from the file, at most what is left there.
    fn read_file(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.in_file.min(into.len() as u64) as usize;
        let count = loop {
            match self.file.as_mut().map(|file| file.read(&mut into[..len])) {
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(Err(error)) => return Err(error),
                // Another process has truncated the file.
                Some(Ok(0)) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(count)) => break count,
            }
        };
        self.in_file -= count as u64;
        Ok(count)
    }
}

/// Writes behind the end of a file that is being read, or to a new one.
fn append_to_file(file: &mut Option<File>, space: &SpoolSpace, bytes: &[u8]) -> io::Result<()> {
    let file = match file {
        Some(file) => file,
        none => none.insert(space.open_file()?),
    };
    let next = file.stream_position()?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(next)).map(drop)
}

impl Read for SpooledBody {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && self.in_file > 0 && into.len() >= BLOCK_SIZE {
            return self.read_file(into);
        }
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for SpooledBody {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.in_file > 0 {
                let mut block = match std::mem::take(&mut self.block) {
                    Memory::Vec(block) => block,
                    Memory::Buffer(..) => Vec::new(),
                };
                block.resize(BLOCK_SIZE, 0);
                self.end = self.read_file(&mut block)?;
                self.block = Memory::Vec(block);
            } else {
                self.block = std::mem::take(&mut self.tail);
                self.end = self.block.bytes().len();
            }
        }
        Ok(&self.block.bytes()[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
    }
}
