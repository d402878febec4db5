//! Spools: request bodies that are kept until they are complete, in memory up to 64 KiB and then in
//! an unnamed temporary file.
//!
//! The last part of a body always stays in memory, so that a client that sends single bytes causes
//! a write to the file only every 64 KiB. A [`SpoolSpace`] bounds all spools of a service together.
//! A spool takes bytes of the space as they arrive, since a client that only declares a length must
//! not take room from the others, and returns them when it is dropped.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ::http::StatusCode;

use super::rejection::{BODY_TOO_LARGE, Rejection};
use crate::clock;
use crate::log;

/// How many bytes of a body are kept in memory, and written to the file or read from it at a time.
const BLOCK_SIZE: usize = 64 * 1024;

/// A failure is logged if none has occurred for this long before it, in milliseconds.
const QUIET_BEFORE_WARNING: u64 = 10_000;

const NO_SPACE: Rejection = Rejection::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "no room for another body at the moment",
);

const CANNOT_STORE: Rejection = Rejection::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "the body cannot be stored at the moment",
);

/// The room that all spools of a service share.
#[derive(Debug)]
pub(super) struct SpoolSpace {
    /// In bytes.
    pub(super) limit: u64,
    /// The directory of the temporary files. `None`: the system's.
    pub(super) dir: Option<PathBuf>,
    used: AtomicU64,
    /// When a file could last not be written, in the clock's milliseconds; 0: never.
    failed_at: AtomicU64,
}

impl SpoolSpace {
    pub(super) fn new(limit: u64, dir: Option<PathBuf>) -> Self {
        Self {
            limit,
            dir,
            used: AtomicU64::new(0),
            failed_at: AtomicU64::new(0),
        }
    }

    /// Refuses a body of `length` bytes that cannot be stored now, before it is received.
    pub(super) fn admit(&self, length: u64) -> Result<(), Rejection> {
        self.check(length, self.used.load(Relaxed)).map(|_| ())
    }

    /// The bytes in use with `more` of them. A body larger than the whole space will never fit.
    fn check(&self, more: u64, used: u64) -> Result<u64, Rejection> {
        match used.checked_add(more) {
            _ if more > self.limit => Err(BODY_TOO_LARGE),
            Some(total) if total <= self.limit => Ok(total),
            _ => Err(NO_SPACE),
        }
    }

    fn open_file(&self) -> io::Result<File> {
        match &self.dir {
            Some(dir) => tempfile::tempfile_in(dir),
            None => tempfile::tempfile(),
        }
    }

    /// Logs that a body cannot be stored, once for a series of failures.
    #[cold]
    fn note_failure(&self, error: &io::Error) -> Rejection {
        let now = clock::millis().max(1);
        let before = self.failed_at.swap(now, Relaxed);
        if before == 0 || now.saturating_sub(before) > QUIET_BEFORE_WARNING {
            let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
            log::warn!(
                "cannot store request bodies in {}, responding with 503: {error}",
                dir.display()
            );
        }
        CANNOT_STORE
    }
}

/// A part of the space, which is returned on drop.
#[derive(Debug)]
struct Reservation {
    space: Arc<SpoolSpace>,
    bytes: u64,
}

impl Reservation {
    fn grow(&mut self, more: u64) -> Result<(), Rejection> {
        if self.bytes.saturating_add(more) > self.space.limit {
            return Err(BODY_TOO_LARGE);
        }
        let (space, mut result) = (&self.space, Ok(0));
        let updated = space.used.fetch_update(Relaxed, Relaxed, |used| {
            result = space.check(more, used);
            result.ok()
        });
        if updated.is_ok() {
            self.bytes += more;
        }
        result.map(|_| ())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Spool {
    reservation: Reservation,
    /// The beginning of the body, if the body is larger than `BLOCK_SIZE`.
    file: Option<File>,
    /// The part behind that in the file.
    tail: Vec<u8>,
}

impl Spool {
    pub(super) fn new(space: Arc<SpoolSpace>) -> Self {
        Self {
            reservation: Reservation { space, bytes: 0 },
            file: None,
            tail: Vec::new(),
        }
    }

    pub(super) fn append(&mut self, mut data: &[u8]) -> Result<(), Rejection> {
        self.reservation.grow(data.len() as u64)?;
        while data.len() > BLOCK_SIZE - self.tail.len() {
            let (fitting, rest) = data.split_at(BLOCK_SIZE - self.tail.len());
            self.tail.extend_from_slice(fitting);
            let written = self.write_tail();
            written.map_err(|error| self.reservation.space.note_failure(&error))?;
            data = rest;
        }
        self.tail.extend_from_slice(data);
        Ok(())
    }

    fn write_tail(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.reservation.space.open_file()?),
        };
        file.write_all(&self.tail)?;
        self.tail.clear();
        Ok(())
    }

    /// Ends the body: it is complete.
    pub(super) fn end(&mut self) -> Result<(), Rejection> {
        let rewound = self.file.as_mut().map_or(Ok(()), File::rewind);
        rewound.map_err(|error| self.reservation.space.note_failure(&error))
    }

    /// Makes an ended body readable.
    pub(super) fn into_body(self) -> SpooledBody {
        SpooledBody {
            file: self.file,
            in_file: self.reservation.bytes - self.tail.len() as u64,
            block: Vec::new(),
            start: 0,
            end: 0,
            tail: self.tail,
            _reservation: self.reservation,
        }
    }
}

/// A complete body. Reading it never waits for the client.
#[derive(Debug)]
pub(super) struct SpooledBody {
    file: Option<File>,
    /// How many bytes of the file have not been read.
    in_file: u64,
    /// What was read from the file, or the tail. The bytes from `start` to `end` are next.
    block: Vec<u8>,
    start: usize,
    end: usize,
    tail: Vec<u8>,
    _reservation: Reservation,
}

impl SpooledBody {
    /// How many bytes are left to read.
    pub(super) fn remaining(&self) -> u64 {
        self.in_file + (self.end - self.start + self.tail.len()) as u64
    }

    /// Whether a part of what is left is in the file.
    pub(super) fn is_in_file(&self) -> bool {
        self.in_file > 0
    }

    /// Reads the rest at once.
    pub(super) fn read_rest(&mut self) -> io::Result<Vec<u8>> {
        if self.start == self.end && self.in_file == 0 {
            return Ok(std::mem::take(&mut self.tail));
        }
        // All of it has arrived: the length is not the client's claim.
        let mut rest = Vec::with_capacity(self.remaining() as usize);
        rest.extend_from_slice(&self.block[self.start..self.end]);
        self.start = self.end;
        if let (Some(file), 1..) = (&mut self.file, self.in_file) {
            let count = file.take(self.in_file).read_to_end(&mut rest)? as u64;
            if count < self.in_file {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.in_file = 0;
        }
        rest.append(&mut self.tail);
        Ok(rest)
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
                let mut block = std::mem::take(&mut self.block);
                block.resize(BLOCK_SIZE, 0);
                self.end = self.read_file(&mut block)?;
                self.block = block;
            } else {
                self.block = std::mem::take(&mut self.tail);
                self.end = self.block.len();
            }
        }
        Ok(&self.block[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(limit: u64) -> Arc<SpoolSpace> {
        Arc::new(SpoolSpace::new(limit, None))
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at ^ (at >> 8)) as u8).collect()
    }

    /// A body of these pieces.
    fn body(space: &Arc<SpoolSpace>, pieces: &[&[u8]]) -> Result<SpooledBody, Rejection> {
        let mut spool = Spool::new(Arc::clone(space));
        for piece in pieces {
            spool.append(piece)?;
        }
        spool.end()?;
        Ok(spool.into_body())
    }

    #[test]
    fn a_body_comes_back_whole_from_memory_and_file() {
        let space = space(1 << 20);
        for size in [0, 1, 65_535, 65_536, 65_537, 131_072, 131_073, 300_000] {
            let all = bytes(size);
            for step in [1000, 65_536, 65_537, size.max(1)] {
                let pieces: Vec<&[u8]> = all.chunks(step).collect();
                let again = || body(&space, &pieces).unwrap();
                assert_eq!(again().remaining(), size as u64);
                assert_eq!(again().is_in_file(), size > BLOCK_SIZE);
                assert!(
                    again().read_rest().unwrap() == all,
                    "{size} in steps of {step}"
                );
                let mut read = Vec::new();
                again().read_to_end(&mut read).unwrap();
                assert!(read == all, "{size} in steps of {step}");
                // In small pieces first, then the rest.
                let mut body = again();
                let mut begin = vec![0; size.min(777)];
                body.read_exact(&mut begin).unwrap();
                assert_eq!(body.remaining(), (size - begin.len()) as u64);
                begin.extend(body.read_rest().unwrap());
                assert!(begin == all, "{size} in steps of {step}");
                assert_eq!(body.remaining(), 0);
                assert_eq!(body.read(&mut [0; 8]).unwrap(), 0);
            }
        }
        assert_eq!(space.used.load(Relaxed), 0);
    }

    #[test]
    fn all_bodies_together_have_a_limit() {
        let space = space(1000);
        let status = |result: Result<(), Rejection>| result.err().map(|why| why.status.as_u16());
        assert_eq!(status(space.admit(1000)), None);
        assert_eq!(status(space.admit(1001)), Some(413));
        assert_eq!(status(space.admit(u64::MAX)), Some(413));
        let first = body(&space, &[&[0; 600]]).unwrap();
        assert_eq!(status(space.admit(400)), None);
        assert_eq!(status(space.admit(401)), Some(503));
        assert_eq!(
            status(body(&space, &[&[0; 400], &[0; 1]]).map(drop)),
            Some(503)
        );
        assert_eq!(space.used.load(Relaxed), 600);
        // A body that would not fit into an empty space either.
        let mut large = Spool::new(Arc::clone(&space));
        assert_eq!(status(large.append(&[0; 1001])), Some(413));
        drop(first);
        assert_eq!(status(large.append(&[0; 1000])), None);
        assert_eq!(status(large.append(&[0; 1])), Some(413));
        drop(large);
        assert_eq!(space.used.load(Relaxed), 0);
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
        drop(spool);
        assert_eq!(space.used.load(Relaxed), 0);
        assert_ne!(space.failed_at.load(Relaxed), 0);
    }
}
