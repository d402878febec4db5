//! Who owns a connection: one atomic word, and the ways in which it may change.
//!
//! ```text
//!   FREE ──── occupy ────► RUNNING ────── park ─────► PARKED
//!     ▲                     │ │ ▲ ▲                    │ │
//!     └─────── free ────────┘ │ │ └─── claim_parked ───┘ │
//!                       queue │ │ claim_queued           │ handle_event
//!                             ▼ │                        │
//!                            QUEUED ◄────────────────────┘
//! ```
//!
//! Invariants:
//!
//! - No event is lost. An event for a QUEUED or RUNNING connection sets NOTIFIED beside the state,
//!   and `park` fails while NOTIFIED is set: the owner reads again.
//! - A former connection of the slot is out of reach. The word carries a generation, which grows
//!   each time the slot is freed, so a stale event or queue entry changes nothing.
//! - A drain overlooks no connection. "Park, then check whether the server drains" is paired with
//!   "drain, then check which connections are parked"; the same holds for the timers of the wheel.
//!   Both need one order of all operations, so every operation is sequentially consistent.
//!
//! `tests/ownership_model.rs` includes this file over loom's atomics, so the atomic is named by
//! `super`.

use std::sync::atomic::Ordering::SeqCst;

use super::atomic::AtomicU64;

const FREE: u64 = 0;
const PARKED: u64 = 1;
const QUEUED: u64 = 2;
const RUNNING: u64 = 3;
const STATE: u64 = 3;
const NOTIFIED: u64 = 4;
const HANGUP: u64 = 8;
const FLAGS: u64 = NOTIFIED | HANGUP;
const GENERATION: u64 = 1 << 32;

/// The owner and the generation of a slot.
pub(crate) struct Ownership(AtomicU64);

/// What the poller has reported while the connection was not PARKED, or when it became QUEUED.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) hangup: bool,
}

impl Readiness {
    fn from_word(word: u64) -> Self {
        Self {
            readable: word & NOTIFIED != 0,
            hangup: word & HANGUP != 0,
        }
    }
}

impl Ownership {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(FREE))
    }

    /// The slot's present generation.
    pub(crate) fn generation(&self) -> u32 {
        generation(self.0.load(SeqCst))
    }

    /// FREE → RUNNING, by the thread that took the slot from the free list.
    pub(crate) fn occupy(&self) {
        let changed = self.change(|word| (word & STATE == FREE).then_some(word | RUNNING));
        debug_assert!(changed.is_ok(), "a free slot has no owner");
    }

    /// Handles an event of the poller. True: the connection was PARKED and is QUEUED now, and the
    /// caller has to bring it to a worker.
    pub(crate) fn handle_event(&self, generation: u32, hangup: bool) -> bool {
        let flags = if hangup { FLAGS } else { NOTIFIED };
        let changed = self.change_in(generation, |word| match word & STATE {
            PARKED => Some(with_state(word, QUEUED) | flags),
            QUEUED | RUNNING if word & flags != flags => Some(word | flags),
            _ => None,
        });
        changed.is_ok_and(|word| word & STATE == PARKED)
    }

    /// QUEUED → RUNNING, with the events so far. `None` if the connection is not QUEUED any more.
    pub(crate) fn claim_queued(&self, generation: u32) -> Option<Readiness> {
        self.take(generation, QUEUED)
    }

    /// PARKED → RUNNING without an event: to close the connection or to write to it. `None` if it
    /// is not PARKED any more.
    pub(crate) fn claim_parked(&self, generation: u32) -> Option<Readiness> {
        self.take(generation, PARKED)
    }

    fn take(&self, generation: u32, from: u64) -> Option<Readiness> {
        let changed = self.change_in(generation, |word| {
            (word & STATE == from).then_some(with_state(word, RUNNING) & !FLAGS)
        });
        changed.ok().map(Readiness::from_word)
    }

    /// RUNNING → PARKED. An error: the poller has reported something, and the caller still owns the
    /// connection.
    pub(crate) fn park(&self) -> Result<(), Readiness> {
        let changed = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            (word & FLAGS == 0).then_some(with_state(word, PARKED))
        });
        match changed {
            Ok(_) => Ok(()),
            Err(_) => {
                // Another event may follow. The flags that are cleared and those that are returned
                // must be the same.
                let (Ok(word) | Err(word)) = self.change(|word| Some(word & !FLAGS));
                Err(Readiness::from_word(word))
            }
        }
    }

    /// RUNNING → QUEUED. Events are kept for the thread that claims the connection.
    pub(crate) fn queue(&self) {
        let _ = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            Some(with_state(word, QUEUED))
        });
    }

    /// RUNNING → FREE, and the next generation.
    pub(crate) fn free(&self) {
        let _ = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            Some((word & !(GENERATION - 1)).wrapping_add(GENERATION))
        });
    }

    pub(crate) fn is_parked(&self, generation: u32) -> bool {
        self.is(generation, PARKED)
    }

    pub(crate) fn is_queued(&self, generation: u32) -> bool {
        self.is(generation, QUEUED)
    }

    pub(crate) fn is_running(&self, generation: u32) -> bool {
        self.is(generation, RUNNING)
    }

    fn is(&self, of: u32, state: u64) -> bool {
        let word = self.0.load(SeqCst);
        generation(word) == of && word & STATE == state
    }

    /// As `change`, for one generation only.
    fn change_in(&self, of: u32, next: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        self.change(|word| (generation(word) == of).then(|| next(word)).flatten())
    }

    /// Replaces the word by `next` of it, unless that is `None`. Returns the word before in either
    /// case.
    fn change(&self, next: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut word = self.0.load(SeqCst);
        loop {
            let Some(new) = next(word) else {
                return Err(word);
            };
            match self.0.compare_exchange(word, new, SeqCst, SeqCst) {
                Ok(_) => return Ok(word),
                Err(now) => word = now,
            }
        }
    }
}

fn generation(word: u64) -> u32 {
    (word >> 32) as u32
}

fn with_state(word: u64, state: u64) -> u64 {
    word & !STATE | state
}
