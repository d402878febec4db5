//! The gate: how other threads control the acceptor.
//!
//! ```text
//! STARTING ──► OPEN ◄──► PAUSED ◄── HELD ◄──► STARTING
//!    │           └────┬────┘          │
//!    │ close          │ close: what   │ close
//!    ▼                ▼ is queued     ▼
//!  CLOSED ◄─────── CLOSING          CLOSED
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::per_client::PerClient;
use crate::sys::Poller;

/// How other threads control the acceptor.
pub(crate) struct AcceptGate {
    pub(super) poller: Arc<Poller>,
    state: AtomicU8,
    /// The indexes of the listeners that another process serves as well.
    pub(super) served_elsewhere: Mutex<Vec<u32>>,
    /// How often the acceptor has run its loop.
    pub(super) loops: AtomicU64,
    /// The connections of each client, also of those that the predecessor has accepted.
    pub(super) per_client: Arc<PerClient>,
}

/// The server is starting: it has never accepted.
const STARTING: u8 = 0;
const OPEN: u8 = 1;
const PAUSED: u8 = 2;
/// The connections that the kernel has queued already are accepted, then the listeners are closed.
pub(super) const CLOSING: u8 = 3;
pub(super) const CLOSED: u8 = 4;
/// The server is starting, and will start paused.
const HELD: u8 = 5;

impl AcceptGate {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Arc::new(Poller::new()?),
            state: AtomicU8::new(STARTING),
            served_elsewhere: Mutex::default(),
            loops: AtomicU64::new(0),
            per_client: Arc::default(),
        })
    }

    /// Begins to accept.
    pub(crate) fn start(&self) {
        self.change(|state| match state {
            STARTING => Some(OPEN),
            HELD => Some(PAUSED),
            _ => None,
        });
    }

    /// Leaves connections in the kernel's queue until `resume`. False if the gate was not open.
    pub(crate) fn pause(&self) -> bool {
        let before = self.change(|state| match state {
            OPEN => Some(PAUSED),
            STARTING => Some(HELD),
            _ => None,
        });
        before == Some(OPEN)
    }

    pub(crate) fn resume(&self) {
        self.change(|state| match state {
            PAUSED => Some(OPEN),
            HELD => Some(STARTING),
            _ => None,
        });
    }

    /// Accepts the connections that the kernel has queued already, then closes the listeners. A
    /// server that has never accepted closes the listeners at once: the queued connections are not
    /// its own.
    pub(crate) fn close(&self) {
        // In one step: a `start`, `pause` or `resume` at the same time must not undo the close.
        self.change(|state| match state {
            STARTING | HELD => Some(CLOSED),
            OPEN | PAUSED => Some(CLOSING),
            _ => None,
        });
    }

    /// Sets the listeners whose queued connections [`close`](Self::close) does not accept: another
    /// process serves them.
    pub(crate) fn set_served_elsewhere(&self, listeners: &[u32]) {
        *self.served_elsewhere.lock() = listeners.to_vec();
    }

    /// Closes the listeners at once.
    pub(crate) fn close_now(&self) {
        self.state.store(CLOSED, SeqCst);
        self.poller.wake();
    }

    /// Makes the acceptor run its loop once.
    pub(crate) fn wake(&self) {
        self.poller.wake();
    }

    /// How often the acceptor has run its loop.
    pub(crate) fn loops(&self) -> u64 {
        self.loops.load(SeqCst)
    }

    /// Changes the state to `next(state)`, unless that is `None`. The state before, if it was
    /// changed.
    fn change(&self, next: impl Fn(u8) -> Option<u8>) -> Option<u8> {
        let before = self.state.fetch_update(SeqCst, SeqCst, next).ok();
        if before.is_some() {
            self.poller.wake();
        }
        before
    }

    /// Whether new connections stay in the kernel's queue for now.
    pub(super) fn leaves_clients_queued(&self) -> bool {
        matches!(self.state.load(SeqCst), PAUSED | STARTING | HELD)
    }

    pub(super) fn is(&self, state: u8) -> bool {
        self.state.load(SeqCst) == state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_wins_over_every_other_change_of_the_gate() {
        let changes: [fn(&AcceptGate); 3] = [
            AcceptGate::start,
            |gate| _ = gate.pause(),
            AcceptGate::resume,
        ];
        for round in 0..2000 {
            let gate = AcceptGate::new().unwrap();
            if round % 2 == 0 {
                gate.start();
            }
            let is_closed = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    // Once more after the close.
                    let mut is_last = false;
                    while !is_last {
                        is_last = is_closed.load(SeqCst);
                        changes.iter().for_each(|change| change(&gate));
                    }
                });
                while gate.is(STARTING) && !other.is_finished() {
                    std::thread::yield_now();
                }
                gate.close();
                is_closed.store(true, SeqCst);
            });
            assert!(gate.is(CLOSING), "round {round}");
        }
    }

    #[test]
    fn a_pause_before_the_start_lasts() {
        let gate = AcceptGate::new().unwrap();
        assert!(!gate.pause());
        gate.start();
        assert!(gate.is(PAUSED));
        gate.resume();
        assert!(gate.is(OPEN));
        let gate = AcceptGate::new().unwrap();
        assert!(!gate.pause());
        gate.resume();
        gate.start();
        assert!(gate.is(OPEN));
    }

    #[test]
    fn a_gate_that_was_never_open_closes_at_once() {
        let gate = AcceptGate::new().unwrap();
        assert!(!gate.pause());
        gate.close();
        gate.start();
        gate.resume();
        assert!(gate.is(CLOSED));
    }
}
