//! The queue of connections that are on their way to the mover, see
//! [`between_processes`](super::between_processes).
//!
//! No connection is left on it: a thread that pushes looks afterwards whether the queue is open, and
//! the mover closes or blocks the queue before it empties it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crossbeam_channel::{Receiver, Sender};

use super::Token;
use crate::sys::Poller;

/// The most connections on the mover's queue. Those beyond are parked, and found by another walk.
const MOST_QUEUED: usize = 1024;

/// Connections that are between two messages, on their way to the mover.
pub(crate) struct MoverQueue {
    tokens: (Sender<Token>, Receiver<Token>),
    is_closed: AtomicBool,
    /// The mover waits for the successor: connections are served here meanwhile.
    is_blocked: AtomicBool,
    /// A connection was parked because the queue was full.
    has_missed: AtomicBool,
    is_sleeping: AtomicBool,
    /// The mover waits in it.
    pub(crate) poller: Arc<Poller>,
}

impl MoverQueue {
    pub(crate) fn new(poller: Arc<Poller>) -> Self {
        Self {
            tokens: crossbeam_channel::bounded(MOST_QUEUED),
            is_closed: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            has_missed: AtomicBool::new(false),
            is_sleeping: AtomicBool::new(false),
            poller,
        }
    }

    /// Whether a connection may be put on the queue. Other threads may be faster.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && !self.tokens.0.is_full()
    }

    /// Says whether the mover waits for the successor. A connection that comes meanwhile is parked,
    /// and found by another walk.
    pub(crate) fn set_blocked(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, SeqCst);
    }

    /// Puts a QUEUED connection on the queue. False if the queue is full.
    pub(super) fn push(&self, token: Token) -> bool {
        let is_pushed = self.tokens.0.try_send(token).is_ok();
        if is_pushed {
            self.wake();
        }
        is_pushed
    }

    pub(crate) fn note_missed(&self) {
        self.has_missed.store(true, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if self.is_sleeping.swap(false, SeqCst) {
            self.poller.wake();
        }
    }

    /// Whether the mover has to walk over the slots again.
    pub(crate) fn take_missed(&self) -> bool {
        self.has_missed.swap(false, SeqCst)
    }

    /// Called by the mover before it waits. False if there is something to do.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.is_sleeping.store(true, SeqCst);
        let may_sleep = self.tokens.1.is_empty() && !self.has_missed.load(SeqCst);
        if !may_sleep {
            self.end_sleep();
        }
        may_sleep
    }

    pub(crate) fn end_sleep(&self) {
        self.is_sleeping.store(false, SeqCst);
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
    }

    /// Whether the mover takes connections off the queue.
    pub(super) fn is_open(&self) -> bool {
        !self.is_blocked.load(SeqCst) && !self.is_closed.load(SeqCst)
    }

    pub(super) fn take(&self) -> Option<Token> {
        self.tokens.1.try_recv().ok()
    }
}
