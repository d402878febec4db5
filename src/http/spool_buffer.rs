//! Buffers that large request bodies are received into, so that the bytes are not copied and one
//! write to a file has many of them.
//!
//! All connections of a service share [`MAX_BUFFERS`] of them. While a body is received, its
//! connection has a buffer only in a turn. A complete body may be in a buffer until its handler, or
//! its response, is done; a body that outlives its request gets none while they are scarce. A
//! buffer goes back when it is dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// The size of a buffer, in bytes.
pub(super) const BUFFER_SIZE: usize = 1024 * 1024;

/// How many buffers a service has at most.
const MAX_BUFFERS: usize = 16;

/// The buffers of a service.
#[derive(Clone, Debug, Default)]
pub(super) struct SpoolBuffers(Arc<Mutex<Pool>>);

#[derive(Default)]
struct Pool {
    /// The buffer that was used last is the next, since it is in the CPU's cache.
    free: Vec<Box<[u8]>>,
    /// How many buffers there are, free or in use.
    count: usize,
}

impl SpoolBuffers {
    /// `None` while all buffers are in use.
    pub(super) fn take(&self) -> Option<SpoolBuffer> {
        let mut pool = self.0.lock();
        let free = pool.free.pop();
        if free.is_none() {
            if pool.count == MAX_BUFFERS {
                return None;
            }
            pool.count += 1;
        }
        drop(pool);
        Some(SpoolBuffer {
            // The system gives zeroed memory without touching it.
            bytes: free.unwrap_or_else(|| vec![0; BUFFER_SIZE].into()),
            pool: self.clone(),
        })
    }

    /// Whether more than half of the buffers are in use.
    pub(super) fn are_scarce(&self) -> bool {
        let pool = self.0.lock();
        pool.count - pool.free.len() > MAX_BUFFERS / 2
    }
}

/// A buffer in use.
pub(super) struct SpoolBuffer {
    bytes: Box<[u8]>,
    pool: SpoolBuffers,
}

impl Deref for SpoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for SpoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for SpoolBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.0.lock().free.push(bytes);
    }
}

impl fmt::Debug for SpoolBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpoolBuffer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("free", &self.free.len())
            .field("count", &self.count)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_have_a_limit() {
        let buffers = SpoolBuffers::default();
        let mut taken: Vec<SpoolBuffer> = std::iter::from_fn(|| buffers.take()).collect();
        assert_eq!(taken.len(), MAX_BUFFERS);
        taken[3][0] = 7;
        drop(taken.remove(3));
        let again = buffers.take().unwrap();
        assert_eq!((again[0], again.len()), (7, BUFFER_SIZE));
        assert!(buffers.take().is_none());
    }
}
