//! The room that all spooled bodies of a service share: a bound in bytes, the directory of the files,
//! and the buffers.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ::http::StatusCode;

use super::rejection::{BODY_TOO_LARGE, Rejection};
use super::spool_buffer::SpoolBuffers;
use crate::clock;
use crate::log;

/// How many bytes of a body are kept in memory while its connection is parked, and read from the
/// file at a time.
pub(super) const BLOCK_SIZE: usize = 64 * 1024;

/// A failure is logged if none has occurred for this long before it, in milliseconds.
const QUIET_BEFORE_WARNING: u64 = 10_000;

const NO_SPACE: Rejection = Rejection::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "no room for another body at the moment",
);

pub(super) const CANNOT_STORE: Rejection = Rejection::new(
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
    pub(super) buffers: SpoolBuffers,
    /// When a file could last not be written, in the clock's milliseconds; 0: never.
    pub(super) failed_at: AtomicU64,
}

impl SpoolSpace {
    pub(super) fn new(limit: u64, dir: Option<PathBuf>) -> Self {
        Self {
            limit,
            dir,
            used: AtomicU64::new(0),
            buffers: SpoolBuffers::default(),
            failed_at: AtomicU64::new(0),
        }
    }

    /// How many bytes are in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
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

    pub(super) fn open_file(&self) -> io::Result<File> {
        match &self.dir {
            Some(dir) => tempfile::tempfile_in(dir),
            None => tempfile::tempfile(),
        }
    }

    /// Logs that a body cannot be stored, once for a series of failures.
    #[cold]
    pub(super) fn note_failure(&self, error: &io::Error) -> Rejection {
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
pub(super) struct Reservation {
    pub(super) space: Arc<SpoolSpace>,
    pub(super) bytes: u64,
}

impl Reservation {
    pub(super) fn new(space: Arc<SpoolSpace>) -> Self {
        Self { space, bytes: 0 }
    }

    pub(super) fn grow(&mut self, more: u64) -> Result<(), Rejection> {
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
