//! Who owns a connection: one atomic word, and the few ways in which it may change.
//!
//! ```text
//!   FREE ──── occupy ────► RUNNING ────── park ─────► PARKED
//!     ▲                     │ │ ▲ ▲                    │ │
//!     └─────── free ────────┘ │ │ └─── claim_parked ───┘ │
//!                     requeue │ │ start                  │ event
//!                             ▼ │                        │
//!                            QUEUED ◄────────────────────┘
//! ```
//!
//! An event for a connection that is QUEUED or RUNNING sets NOTIFIED beside the state, and parking fails while it is
//! set: its owner reads again. So no event is lost, wherever it falls. The generation in the word grows each time the
//! slot is freed, so that an event or a queue entry of a former connection does nothing.
//!
//! All of it is sequentially consistent, for the word takes part in two more agreements: "parked, then looked whether
//! the server drains" against "drains, then looked who is parked", and the same with the wheel's reminders.
//!
//! The model test in `tests/` includes this file over loom's atomics; that is why it names its atomic by `super`.

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

/// A slot's owner and generation.
pub(crate) struct Ownership(AtomicU64);

/// What had happened on the socket while the connection had another owner than the lot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) readable: bool,
    pub(crate) hangup: bool,
}

impl News {
    fn of(word: u64) -> Self {
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

    /// The generation that the slot is in now.
    pub(crate) fn generation(&self) -> u32 {
        generation(self.0.load(SeqCst))
    }

    /// FREE → RUNNING, by the one who took the slot from the free list.
    pub(crate) fn occupy(&self) {
        let changed = self.change(|word| (word & STATE == FREE).then_some(word | RUNNING));
        debug_assert!(changed.is_ok(), "a free slot has no owner");
    }

    /// The poller reports something. True: it was PARKED, is QUEUED, and the caller brings it to a worker.
    pub(crate) fn event(&self, generation: u32, hangup: bool) -> bool {
        let flags = if hangup { FLAGS } else { NOTIFIED };
        let changed = self.of(generation, |word| match word & STATE {
            PARKED => Some(with_state(word, QUEUED) | flags),
            QUEUED | RUNNING if word & flags != flags => Some(word | flags),
            _ => None,
        });
        changed.is_ok_and(|word| word & STATE == PARKED)
    }

    /// QUEUED → RUNNING, with the news so far; `None` if it is somebody else's by now.
    pub(crate) fn start(&self, generation: u32) -> Option<News> {
        self.take(generation, QUEUED)
    }

    /// PARKED → RUNNING without an event: to close it, to hand it over, or to write to it.
    pub(crate) fn claim_parked(&self, generation: u32) -> Option<News> {
        self.take(generation, PARKED)
    }

    fn take(&self, generation: u32, from: u64) -> Option<News> {
        let changed = self.of(generation, |word| {
            (word & STATE == from).then_some(with_state(word, RUNNING) & !FLAGS)
        });
        changed.ok().map(News::of)
    }

    /// RUNNING → PARKED, or the news that came meanwhile, and then the caller still owns it.
    pub(crate) fn park(&self) -> Result<(), News> {
        let changed = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            (word & FLAGS == 0).then_some(with_state(word, PARKED))
        });
        match changed {
            Ok(_) => Ok(()),
            Err(_) => {
                // More may have come since; what is taken away and what is told must be the same.
                let (Ok(word) | Err(word)) = self.change(|word| Some(word & !FLAGS));
                Err(News::of(word))
            }
        }
    }

    /// RUNNING → QUEUED. News stay for whoever starts it.
    pub(crate) fn requeue(&self) {
        let _ = self.change(|word| {
            debug_assert_eq!(word & STATE, RUNNING);
            Some(with_state(word, QUEUED))
        });
    }

    /// RUNNING → FREE, and to the next generation.
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

    /// As `change`, but only for that generation.
    fn of(&self, of: u32, next: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        self.change(|word| (generation(word) == of).then(|| next(word)).flatten())
    }

    /// Replaces the word by what `next` makes of it, if it makes something of it. Either way: the word before.
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
