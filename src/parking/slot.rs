//! The place of a connection in its lot, and the name of the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crossbeam_utils::atomic::AtomicCell;
use parking_lot::Mutex;

use super::occupant::Occupant;
use super::ownership::Ownership;
use super::slab::INDEX_BITS;
use crate::connection::ConnectionInfo;

/// A flag in `ConnectionSlot::since`: the connection is parked in the middle of a message or a
/// response.
pub(super) const MID_MESSAGE: u64 = 1 << 63;

/// A flag in `ConnectionSlot::since`: the connection is between two messages, and does not move to a
/// successor. Kept while the server drains, and with an exact state.
pub(super) const STAYS: u64 = 1 << 61;

/// A flag in `ConnectionSlot::since`: the service has to be called before the connection is between
/// two messages.
pub(super) const UNFINISHED: u64 = 1 << 60;

/// A flag in `ConnectionSlot::since`, beside `UNFINISHED`: the message can move to a successor that has
/// an exact state.
pub(super) const MOVABLE_PART: u64 = 1 << 58;

/// A flag in `ConnectionSlot::since`: the connection is QUEUED, and on no queue, see [`held`](super::held).
pub(super) const HELD: u64 = 1 << 59;

/// A flag in `ConnectionSlot::since`: the connection is parked with output.
pub(super) const HAS_OUTPUT: u64 = 1;

/// A flag in `ConnectionSlot::since`: the service has begun to answer a message, and goes on without
/// the client.
pub(super) const ANSWERING: u64 = 1 << 62;

/// A flag in `ConnectionSlot::since`: the service is called when the server begins to drain.
pub(super) const WANTS_DRAIN_CALL: u64 = 2;

/// The value of `ConnectionSlot::ready_at` for a connection that is not ready.
pub(super) const NOT_READY: u64 = u64::MAX;

/// The name of a connection: its lot, its slot there, and the generation of the slot's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The number of the lot, and in the lower [`INDEX_BITS`] bits the index of the slot.
    place: u32,
    pub(super) generation: u32,
}

impl Token {
    pub(super) fn new(lot: usize, slot: u32, generation: u32) -> Self {
        let place = (lot as u32) << INDEX_BITS | slot;
        Self { place, generation }
    }

    pub(super) fn lot(self) -> usize {
        (self.place >> INDEX_BITS) as usize
    }

    pub(super) fn slot(self) -> u32 {
        self.place & ((1 << INDEX_BITS) - 1)
    }

    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.place)
    }

    pub(super) fn from_u64(word: u64) -> Self {
        Self {
            place: word as u32,
            generation: (word >> 32) as u32,
        }
    }
}

// A connection must go from one owner to the next in one instruction, not under a lock that spins.
const _: () = assert!(AtomicCell::<Option<Box<Occupant<()>>>>::is_lock_free());

#[repr(align(64))]
pub(super) struct ConnectionSlot<S> {
    pub(super) owner: Ownership,
    /// The connection, between two owners.
    pub(super) occupant: AtomicCell<Option<Box<Occupant<S>>>>,
    /// The part of the connection that threads other than the owner may read.
    pub(super) info: Mutex<Option<Arc<ConnectionInfo>>>,
    /// When a parked connection expires, in the clock's milliseconds. The owner sets it before it
    /// parks.
    pub(super) expires_at: AtomicU64,
    /// When the connection was parked, as four times the clock's milliseconds, with the flags
    /// `MID_MESSAGE`, `HAS_OUTPUT`, `ANSWERING`, `STAYS`, `UNFINISHED`, `MOVABLE_PART` and
    /// `WANTS_DRAIN_CALL`. `HELD` stands here while the connection is QUEUED.
    pub(super) since: AtomicU64,
    /// When the connection became ready for a worker, in the clock's nanoseconds, or `NOT_READY`.
    /// Set when the connection becomes QUEUED, and kept until a worker serves it.
    pub(super) ready_at: AtomicU64,
    /// The wheel has a timer for this slot at this time (in the clock's milliseconds) or earlier.
    /// `u64::MAX` if the wheel has none.
    pub(super) timer: AtomicU64,
}

impl<S> ConnectionSlot<S> {
    pub(super) fn new() -> Self {
        Self {
            owner: Ownership::new(),
            occupant: AtomicCell::new(None),
            info: Mutex::new(None),
            expires_at: AtomicU64::new(u64::MAX),
            since: AtomicU64::new(0),
            ready_at: AtomicU64::new(NOT_READY),
            timer: AtomicU64::new(u64::MAX),
        }
    }

    /// Sets the time at which the connection became ready, unless the time is set already: a
    /// connection must not lose its place in the order of service.
    pub(super) fn set_ready(&self, now: u64) {
        if self.ready_at.load(SeqCst) == NOT_READY {
            self.ready_at.store(now, SeqCst);
        }
    }
}
