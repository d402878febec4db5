//! The pause: no handler runs in this process while the state goes to a successor
//! ([`Restart::exact_state`](crate::Restart::exact_state)).
//!
//! | stage | a connection that can move | in a message | one that cannot move |
//! |---|---|---|---|
//! | UNUSED, OPEN | is served | is served | is served |
//! | SETTLING | is held | is served up to the message's end | is served, and closed between two messages |
//! | CLOSED | is held | is held | is held |
//!
//! A connection can move between two messages, and in a message of which nothing is consumed.
//!
//! After a failed restart, the stage is OPEN again. After a successful one, the stage stays CLOSED.
//!
//! No call overlaps with the export. A worker sets its word, and an adopter adds one to the word that
//! the adopters of the server share. Each then reads the stage. The restarter sets the stage to CLOSED,
//! and then reads all these words. As every operation is sequentially consistent, the thread sees the
//! stage, or the restarter sees the word, and waits. A worker that holds a connection publishes that,
//! and then reads the stage again; the restarter sets the stage to OPEN, and then looks for connections
//! that are held. So no connection stays held.
//!
//! `tests/ownership_model.rs` includes this file over loom's atomics, so the atomic is named by
//! `super`.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::atomic::AtomicU64;

/// The setting is off. The atomic's default.
const UNUSED: u64 = 0;
const OPEN: u64 = 1;
const SETTLING: u64 = 2;
const CLOSED: u64 = 3;
const STAGE: u64 = 3;
/// A flag beside the stage: connections move to the successor.
const MOVES: u64 = 4;

/// One server's part in the pause.
pub(crate) struct Pause(AtomicU64);

impl Default for Pause {
    fn default() -> Self {
        Self::new()
    }
}

impl Pause {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(UNUSED))
    }

    /// The setting is on. Called before the threads of the server start.
    pub(crate) fn enable(&self) {
        self.0.store(OPEN, SeqCst);
    }

    pub(crate) fn is_used(&self) -> bool {
        self.0.load(Relaxed) != UNUSED
    }

    // ---- the restarter ----

    /// UNUSED, OPEN → SETTLING. `moves`: connections can move to the successor.
    pub(crate) fn settle(&self, moves: bool) {
        let moves = if moves { MOVES } else { 0 };
        self.0.store(SETTLING | moves, SeqCst);
    }

    /// SETTLING → CLOSED. Calls that have begun go on.
    pub(crate) fn close(&self) {
        let moves = self.0.load(SeqCst) & MOVES;
        self.0.store(CLOSED | moves, SeqCst);
    }

    /// SETTLING, CLOSED → OPEN.
    pub(crate) fn open(&self) {
        self.0.store(OPEN, SeqCst);
    }

    // ---- workers and adopters ----

    /// Begins calls of the service, unless the connection has to be held. `word` is the worker's.
    /// `can_settle` says whether the connection can move without a call of its service.
    #[inline]
    pub(crate) fn begin_calls(&self, word: &AtomicU64, can_settle: impl FnOnce() -> bool) -> bool {
        if !self.is_used() {
            return true;
        }
        word.swap(1, SeqCst);
        let begins = !self.holds(can_settle);
        if !begins {
            self.end_calls(word);
        }
        begins
    }

    /// The calls have ended. What they have changed is seen by the thread that finds the word clear.
    #[inline]
    pub(crate) fn end_calls(&self, word: &AtomicU64) {
        if self.is_used() {
            word.store(0, SeqCst);
        }
    }

    /// Begins calls of an adopter. False in SETTLING and in CLOSED. Several adopters share `word`, which
    /// counts those in calls.
    pub(crate) fn begin_shared_calls(&self, word: &AtomicU64) -> bool {
        if !self.is_used() {
            return true;
        }
        word.fetch_add(1, SeqCst);
        let begins = self.is_open();
        if !begins {
            self.end_shared_calls(word);
        }
        begins
    }

    /// Ends what [`begin_shared_calls`](Self::begin_shared_calls) has begun.
    pub(crate) fn end_shared_calls(&self, word: &AtomicU64) {
        if self.is_used() {
            word.fetch_sub(1, SeqCst);
        }
    }

    /// Whether a connection has to be held now.
    pub(crate) fn holds(&self, can_settle: impl FnOnce() -> bool) -> bool {
        let word = self.0.load(SeqCst);
        match word & STAGE {
            SETTLING => word & MOVES != 0 && can_settle(),
            stage => stage == CLOSED,
        }
    }

    // ---- all threads ----

    /// Whether the pause closes a connection between two messages. `is_movable` says whether the
    /// connection may move to the successor.
    #[inline]
    pub(crate) fn ends_connection(&self, is_movable: impl FnOnce() -> bool) -> bool {
        let word = self.0.load(SeqCst);
        word & STAGE == SETTLING && !(word & MOVES != 0 && is_movable())
    }

    /// Whether the connections that cannot move are being closed.
    pub(crate) fn is_settling(&self) -> bool {
        self.0.load(SeqCst) & STAGE == SETTLING
    }

    /// Whether connections can move to the successor.
    pub(crate) fn moves(&self) -> bool {
        self.0.load(SeqCst) & MOVES != 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.load(SeqCst) & STAGE == CLOSED
    }

    /// Whether calls begin without a restriction.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.0.load(SeqCst) & STAGE <= OPEN
    }
}
