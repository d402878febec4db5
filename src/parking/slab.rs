//! Slots by index, found without a lock, in chunks that double in size and never move.

use std::sync::OnceLock;

use parking_lot::Mutex;

/// The first chunk has 64 slots. Each later one has as many as all before it. An index has at most
/// [`INDEX_BITS`] bits.
const FIRST: usize = 64;
const CHUNKS: usize = 19;

/// The number of bits of the largest index.
pub(crate) const INDEX_BITS: u32 = 24;

const _: () = assert!(FIRST << (CHUNKS - 1) == 1 << INDEX_BITS);

/// A growing array of slots that are reused. It never shrinks.
pub(crate) struct Slab<T> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    returned: Vec<u32>,
    /// Indexes from here on have never been used.
    fresh: u32,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: Mutex::default(),
        }
    }

    /// Takes a free slot. `make` fills a new chunk. `None` if all 16 million slots are taken.
    pub(crate) fn take(&self, make: impl Fn() -> T) -> Option<(u32, &T)> {
        let index = {
            let mut free = self.free.lock();
            match free.returned.pop() {
                Some(index) => index,
                None => {
                    let index = free.fresh;
                    let (chunk, _) = place(index);
                    let slots = self.chunks.get(chunk)?;
                    // Built under the lock: no thread may get an index whose chunk does not exist
                    // yet.
                    slots.get_or_init(|| (0..size(chunk)).map(|_| make()).collect());
                    free.fresh += 1;
                    index
                }
            }
        };
        Some((index, self.get(index)?))
    }

    /// Returns a slot, so that it can be taken again.
    pub(crate) fn return_slot(&self, index: u32) {
        self.free.lock().returned.push(index);
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (chunk, offset) = place(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// How many slots have been used, free ones included.
    pub(crate) fn used(&self) -> u32 {
        self.free.lock().fresh
    }

    /// All slots that have been used, free ones included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.used()).filter_map(|index| Some((index, self.get(index)?)))
    }
}

fn size(chunk: usize) -> usize {
    match chunk {
        0 => FIRST,
        _ => FIRST << (chunk - 1),
    }
}

fn place(index: u32) -> (usize, usize) {
    let index = index as usize;
    if index < FIRST {
        return (0, index);
    }
    let chunk = (index / FIRST).ilog2() as usize + 1;
    (chunk, index - size(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for index in 0..10_000 {
            assert_eq!(place(index), expected, "{index}");
            expected.1 += 1;
            if expected.1 == size(expected.0) {
                expected = (expected.0 + 1, 0);
            }
        }
    }

    #[test]
    fn slots_are_reused_before_new_ones_are_made() {
        let slab = Slab::new();
        let taken: Vec<u32> = (0..200).map(|_| slab.take(|| ()).unwrap().0).collect();
        assert_eq!(taken, (0..200).collect::<Vec<_>>());
        slab.return_slot(7);
        assert_eq!(slab.take(|| ()).unwrap().0, 7);
        assert_eq!(slab.take(|| ()).unwrap().0, 200);
        assert_eq!(slab.iter().count(), 201);
        assert!(slab.get(1 << 20).is_none());
    }
}
