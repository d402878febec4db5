//! The gate: how other threads control the acceptor.
//!
//! ```text
//! STARTING ──► OPEN ◄──► PAUSED ◄── HELD ◄──► STARTING
//!    │           └────┬────┘          │
//!    │ close          │ close: what   │ close
//!    ▼                ▼ is queued     ▼
//!  CLOSED ◄─────── CLOSING          CLOSED
//! ```
//!
//! During a [hand-over](AcceptGate::begin_handover), no connection is accepted in any of these states,
//! except one that the poller has reported before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use super::per_client::PerClient;
use crate::sys::Poller;

/// How other threads control the acceptor.
pub(crate) struct AcceptGate {
    pub(super) poller: Arc<Poller>,
    state: AtomicU8,
    /// It is not decided which process serves the connections that the kernel has queued.
    is_in_handover: AtomicBool,
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
const CLOSING: u8 = 3;
pub(super) const CLOSED: u8 = 4;
/// The server is starting, and will start paused.
const HELD: u8 = 5;

impl AcceptGate {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Arc::new(Poller::new()?),
            state: AtomicU8::new(STARTING),
            is_in_handover: AtomicBool::new(false),
            served_elsewhere: Mutex::default(),
            loops: AtomicU64::new(0),
            per_client: Arc::default(),
        })
    }

    /// Begins to accept. False if the gate was closed before.
    pub(crate) fn start(&self) -> bool {
        self.change(|state| match state {
            STARTING => Some(OPEN),
            HELD => Some(PAUSED),
            _ => None,
        });
        !self.is(CLOSED)
    }

    /// Leaves connections in the kernel's queue until `resume`.
    pub(crate) fn pause(&self) {
        self.change(|state| match state {
            OPEN => Some(PAUSED),
            STARTING => Some(HELD),
            _ => None,
        });
    }

    pub(crate) fn resume(&self) {
        self.change(|state| match state {
            PAUSED => Some(OPEN),
            HELD => Some(STARTING),
            _ => None,
        });
    }

    /// Leaves connections in the kernel's queue until `end_handover`, whatever the gate's state is: this
    /// process or another one will serve them. A `close` waits, too.
    pub(crate) fn begin_handover(&self) {
        self.is_in_handover.store(true, SeqCst);
        self.poller.wake();
    }

    /// The connections in the kernel's queue are this server's, but for those that are
    /// [served elsewhere](Self::set_served_elsewhere).
    pub(crate) fn end_handover(&self) {
        self.is_in_handover.store(false, SeqCst);
        self.poller.wake();
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

    /// Changes the state to `next(state)`, unless that is `None`.
    fn change(&self, next: impl Fn(u8) -> Option<u8>) {
        if self.state.fetch_update(SeqCst, SeqCst, next).is_ok() {
            self.poller.wake();
        }
    }

    /// Whether new connections stay in the kernel's queue for now.
    pub(super) fn leaves_clients_queued(&self) -> bool {
        self.is_in_handover.load(SeqCst)
            || matches!(self.state.load(SeqCst), PAUSED | STARTING | HELD)
    }

    /// Whether the connections that the kernel has queued are to be accepted as the last ones.
    pub(super) fn accepts_last(&self) -> bool {
        self.is(CLOSING) && !self.is_in_handover.load(SeqCst)
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
            |gate| _ = gate.start(),
            AcceptGate::pause,
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
        gate.pause();
        assert!(gate.start());
        assert!(gate.is(PAUSED));
        gate.resume();
        assert!(gate.is(OPEN));
        let gate = AcceptGate::new().unwrap();
        gate.pause();
        gate.resume();
        gate.start();
        assert!(gate.is(OPEN));
    }

    #[test]
    fn a_gate_that_was_never_open_closes_at_once() {
        let gate = AcceptGate::new().unwrap();
        gate.pause();
        gate.close();
        assert!(!gate.start());
        gate.resume();
        assert!(gate.is(CLOSED));
    }

    #[test]
    fn nothing_is_accepted_before_a_handover_is_decided() {
        let gate = AcceptGate::new().unwrap();
        gate.start();
        gate.begin_handover();
        assert!(gate.leaves_clients_queued());
        // A pause of the application outlasts it.
        gate.pause();
        gate.end_handover();
        assert!(gate.leaves_clients_queued());
        gate.resume();
        assert!(!gate.leaves_clients_queued());
        gate.begin_handover();
        gate.close();
        assert!(!gate.accepts_last() && !gate.is(CLOSED));
        gate.end_handover();
        assert!(gate.accepts_last());
    }
}
