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
//! - No wake-up is lost, and a thread that wakes never waits. [`wake`](Ownership::wake) is one more
//!   event, with a flag of its own: WOKEN.
//! - No message of an outbox is left behind. A thread that has added one calls
//!   [`send`](Ownership::send), which makes it the owner of a PARKED connection, so that it can
//!   write. For a QUEUED or RUNNING connection it sets SENT, and the owner looks at the outbox again
//!   before it parks.
//! - BLOCKED stands beside PARKED while the client does not read. Then a wake-up and a message
//!   change nothing: the thread that the poller makes the owner finds both.
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
const WOKEN: u64 = 16;
const SENT: u64 = 32;
const BLOCKED: u64 = 64;
const FLAGS: u64 = NOTIFIED | HANGUP | WOKEN | SENT;
const GENERATION: u64 = 1 << 32;

/// The owner and the generation of a slot.
pub(crate) struct Ownership(AtomicU64);

/// What the poller has reported while the connection was not PARKED, or when it became QUEUED.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) hangup: bool,
    /// Another thread has woken the connection.
    pub(crate) woken: bool,
}

/// What [`Ownership::wake`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The connection was PARKED and is QUEUED now: the caller has to bring it to a worker.
    Queued,
    /// The owner, or the next one, finds the wake-up.
    Noted,
    /// The connection has ended.
    Gone,
}

/// What [`Ownership::send`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The connection was PARKED and is RUNNING now: the caller owns it, and has to write.
    Claimed(Readiness),
    /// The owner, or the next one, finds the message.
    Noted,
    /// The connection has ended.
    Gone,
}

impl Readiness {
    fn from_word(word: u64) -> Self {
        Self {
            readable: word & NOTIFIED != 0,
            hangup: word & HANGUP != 0,
            woken: word & WOKEN != 0,
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
        let flags = match hangup {
            true => NOTIFIED | HANGUP,
            false => NOTIFIED,
        };
        let changed = self.change_in(generation, |word| match word & STATE {
            PARKED => Some(with_state(word, QUEUED) | flags),
            QUEUED | RUNNING if word & flags != flags => Some(word | flags),
            _ => None,
        });
        changed.is_ok_and(|word| word & STATE == PARKED)
    }

    /// Wakes the connection for a call of the service.
    pub(crate) fn wake(&self, generation: u32) -> Woken {
        let changed = self.change_in(generation, |word| match word & (STATE | BLOCKED) {
            PARKED => Some(with_state(word, QUEUED) | WOKEN),
            FREE => None,
            _ if word & WOKEN == 0 => Some(word | WOKEN),
            _ => None,
        });
        match changed {
            Ok(word) if word & (STATE | BLOCKED) == PARKED => Woken::Queued,
            Ok(_) => Woken::Noted,
            Err(word) if is_of(word, generation) => Woken::Noted,
            Err(_) => Woken::Gone,
        }
    }

    /// Brings a message, which the caller has put into the connection's outbox, on its way.
    pub(crate) fn send(&self, generation: u32) -> Sent {
        let changed = self.change_in(generation, |word| match word & (STATE | BLOCKED) {
            PARKED => Some(with_state(word, RUNNING) & !FLAGS),
            QUEUED | RUNNING if word & SENT == 0 => Some(word | SENT),
            _ => None,
        });
        match changed {
            Ok(word) if word & STATE == PARKED => Sent::Claimed(Readiness::from_word(word)),
            Ok(_) => Sent::Noted,
            Err(word) if is_of(word, generation) => Sent::Noted,
            Err(_) => Sent::Gone,
        }
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

    /// RUNNING → PARKED. With `blocked`, the connection waits until its client reads. An error:
    /// something has happened that the caller, which still owns the connection, has to look at.
    pub(crate) fn park(&self, blocked: bool) -> Result<(), Readiness> {
        let (flags, parked) = match blocked {
            true => (NOTIFIED | HANGUP | SENT, PARKED | BLOCKED),
            false => (FLAGS, PARKED),
        };
        let changed = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            (word & flags == 0).then_some(with_state(word, parked))
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

    /// Whether the slot has no connection.
    pub(crate) fn is_free(&self) -> bool {
        self.0.load(SeqCst) & STATE == FREE
    }

    pub(crate) fn is_running(&self, generation: u32) -> bool {
        self.is(generation, RUNNING)
    }

    /// Whether a wake-up has not reached the owner yet.
    pub(crate) fn is_woken(&self, of: u32) -> bool {
        let word = self.0.load(SeqCst);
        is_of(word, of) && word & WOKEN != 0
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

/// Whether the word is of a connection with this generation.
fn is_of(word: u64, of: u32) -> bool {
    generation(word) == of && word & STATE != FREE
}

fn with_state(word: u64, state: u64) -> u64 {
    word & !(STATE | BLOCKED) | state
}
