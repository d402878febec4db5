//! The drain: its stage, the count of open connections, and a call when the last one has finished.
//!
//! | stage | begins when | idle connections | connections in progress |
//! |---|---|---|---|
//! | (none) | | kept | served |
//! | MOVING | a successor serves, and adopts connections | moved to it | served, then moved |
//! | REPLACED | a successor serves | closed after a grace | served, then closed together with the answer |
//! | CLOSING | a stop | closed | what has arrived is served, then closed together with the answer |
//! | FORCED | the deadline has passed | closed | their waits end with an error |
//!
//! Before a successor serves, there may be a [`pause`], which treats connections that cannot move as
//! the stage REPLACED does, without a grace.
//!
//! The stage never goes back to an earlier one. In the stage MOVING, a connection that cannot move is
//! treated as in the stage REPLACED. That stage follows when the successor adopts no more.

mod pause;

/// The atomic of [`pause`]. The model test replaces it by that of loom.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::clock::in_millis;

pub(crate) use pause::Pause;

/// One server's drain.
#[derive(Default)]
pub(crate) struct Drain {
    stage: AtomicU8,
    pub(crate) pause: Pause,
    has_successor: AtomicBool,
    /// Once a successor serves: how long an idle connection is kept that does not move to it, in
    /// milliseconds.
    idle_grace: AtomicU64,
    /// How many connections were opened, have finished, and were closed, so far. A connection
    /// finishes when it lingers or is closed, whichever comes first. Each count only grows, and a
    /// connection is counted in this order, so a difference is never too small: a stop overlooks no
    /// connection.
    ///
    /// On cache lines of their own: every request reads the fields above.
    opened: CachePadded<AtomicUsize>,
    finished: CachePadded<AtomicUsize>,
    closed: CachePadded<AtomicUsize>,
    on_empty: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

const MOVING: u8 = 1;
const REPLACED: u8 = 2;
const CLOSING: u8 = 3;
const FORCED: u8 = 4;

impl Drain {
    /// A successor serves new connections. An open connection moves to the successor when it is
    /// between two messages. If it cannot move, [`mark_replaced`](Self::mark_replaced) says what
    /// becomes of it.
    pub(crate) fn mark_moving(&self, idle_grace: Duration) {
        self.mark(MOVING, idle_grace);
    }

    /// A successor serves new connections. An open connection ends behind its next answer, or when it
    /// has been idle for `idle_grace`.
    pub(crate) fn mark_replaced(&self, idle_grace: Duration) {
        self.mark(REPLACED, idle_grace);
    }

    fn mark(&self, stage: u8, idle_grace: Duration) {
        self.idle_grace.store(in_millis(idle_grace), SeqCst);
        self.has_successor.store(true, SeqCst);
        self.stage.fetch_max(stage, SeqCst);
    }

    /// Only what has arrived is served from now on.
    pub(crate) fn mark_closing(&self) {
        self.stage.fetch_max(CLOSING, SeqCst);
    }

    /// The deadline has passed.
    pub(crate) fn mark_forced(&self) {
        self.stage.fetch_max(FORCED, SeqCst);
    }

    /// Whether a successor serves. It goes on to hold in the later stages.
    pub(crate) fn has_successor(&self) -> bool {
        self.has_successor.load(SeqCst)
    }

    /// Whether the server drains, in any stage, or closes the connections that cannot move before a
    /// successor serves.
    pub(crate) fn is_draining(&self) -> bool {
        self.stage.load(SeqCst) >= MOVING || self.pause.is_settling()
    }

    /// Whether no service is called any more, because a successor has the state.
    pub(crate) fn has_ended_calls(&self) -> bool {
        self.has_successor() && self.is_draining() && self.pause.is_closed()
    }

    /// Whether open connections move to the successor.
    #[inline]
    pub(crate) fn is_moving(&self) -> bool {
        self.stage.load(SeqCst) == MOVING
    }

    /// Whether the drain ends a connection. `is_movable` says whether the connection may move to the
    /// successor.
    #[inline]
    pub(crate) fn ends_connection(&self, is_movable: impl FnOnce() -> bool) -> bool {
        match self.stage.load(SeqCst) {
            0 => self.pause.ends_connection(is_movable),
            MOVING => !is_movable(),
            _ => true,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.stage.load(SeqCst) >= CLOSING
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.stage.load(SeqCst) >= FORCED
    }

    /// How long an idle connection is kept, in milliseconds, once a successor serves. `None` if that
    /// is not limited, or the drain closes the connection. `is_movable`: as in
    /// [`ends_connection`](Self::ends_connection).
    pub(crate) fn idle_grace(&self, is_movable: bool) -> Option<u64> {
        let has_grace = match self.stage.load(SeqCst) {
            MOVING => !is_movable,
            stage => stage == REPLACED,
        };
        has_grace.then(|| self.idle_grace.load(SeqCst))
    }

    /// Sets the function that is called when no connection is in progress any more, while the
    /// server drains. Only the first call has an effect.
    pub(crate) fn on_empty(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_empty.set(Box::new(call));
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn count_connection(self: &Arc<Self>) -> OpenConnection {
        self.opened.fetch_add(1, SeqCst);
        OpenConnection {
            drain: Arc::clone(self),
            is_finished: AtomicBool::new(false),
        }
    }

    /// How many connections are open.
    pub(crate) fn open_connections(&self) -> usize {
        let closed = self.closed_connections();
        self.opened.load(SeqCst) - closed
    }

    /// How many connections are open and not finished. A connection that lingers is finished.
    pub(crate) fn in_progress(&self) -> usize {
        let finished = self.finished_connections();
        self.opened.load(SeqCst) - finished
    }

    fn check_empty(&self) {
        if self.is_draining() && self.in_progress() == 0 {
            if let Some(call) = self.on_empty.get() {
                call();
            }
        }
    }

    /// How many connections have finished so far, including those that linger.
    pub(crate) fn finished_connections(&self) -> usize {
        self.finished.load(SeqCst)
    }

    /// How many connections were closed so far.
    pub(crate) fn closed_connections(&self) -> usize {
        self.closed.load(SeqCst)
    }
}

/// Counts a connection as open until it is dropped.
pub(crate) struct OpenConnection {
    drain: Arc<Drain>,
    is_finished: AtomicBool,
}

impl OpenConnection {
    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// The connection is finished: a stop does not wait for its close.
    pub(crate) fn mark_finished(&self) {
        if !self.is_finished.swap(true, SeqCst) {
            self.drain.finished.fetch_add(1, SeqCst);
            self.drain.check_empty();
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.mark_finished();
        self.drain.closed.fetch_add(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_end_is_told_while_draining_even_after_a_panic() {
        let (sender, receiver) = crossbeam_channel::bounded(8);
        let drain = Arc::new(Drain::default());
        drain.on_empty(move || sender.send(()).unwrap());
        drop(drain.count_connection());
        assert!(receiver.is_empty(), "told although nothing drains");
        let (first, second) = (drain.count_connection(), drain.count_connection());
        drain.mark_closing();
        drop(first);
        assert!(receiver.is_empty(), "told although one is left");
        let thread = std::thread::spawn(move || {
            let _guard = second;
            panic!("the handler's fault");
        });
        assert!(thread.join().is_err());
        receiver.recv().unwrap();
        assert_eq!(drain.open_connections(), 0);
    }

    #[test]
    fn a_connection_that_may_move_is_kept_while_connections_move() {
        let drain = Drain::default();
        let grace = Duration::from_millis(7);
        let ends =
            |drain: &Drain| [true, false].map(|is_movable| drain.ends_connection(|| is_movable));
        let graces = |drain: &Drain| [true, false].map(|is_movable| drain.idle_grace(is_movable));
        assert_eq!((ends(&drain), graces(&drain)), ([false; 2], [None; 2]));
        drain.mark_moving(grace);
        assert!(drain.is_draining() && drain.has_successor() && drain.is_moving());
        assert_eq!(ends(&drain), [false, true]);
        assert_eq!(graces(&drain), [None, Some(7)]);
        drain.mark_replaced(grace);
        assert_eq!((ends(&drain), graces(&drain)), ([true; 2], [Some(7); 2]));
        drain.mark_moving(grace);
        assert!(!drain.is_moving());
        drain.mark_closing();
        assert_eq!((ends(&drain), graces(&drain)), ([true; 2], [None; 2]));
    }

    #[test]
    fn a_connection_that_lingers_is_finished_and_open() {
        let (sender, receiver) = crossbeam_channel::bounded(8);
        let drain = Arc::new(Drain::default());
        drain.on_empty(move || sender.send(()).unwrap());
        drain.mark_closing();
        let (lingering, other) = (drain.count_connection(), drain.count_connection());
        lingering.mark_finished();
        lingering.mark_finished();
        assert_eq!((drain.open_connections(), drain.in_progress()), (2, 1));
        assert_eq!(
            (drain.finished_connections(), drain.closed_connections()),
            (1, 0)
        );
        drop(other);
        receiver.try_recv().unwrap();
        assert_eq!((drain.open_connections(), drain.in_progress()), (1, 0));
        drop(lingering);
        assert_eq!((drain.open_connections(), drain.in_progress()), (0, 0));
        assert_eq!(
            (drain.finished_connections(), drain.closed_connections()),
            (2, 2)
        );
    }

    #[test]
    fn no_connection_is_overlooked_while_another_one_is_closed() {
        let drain = Arc::new(Drain::default());
        let _in_progress = drain.count_connection();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| {
                for _ in 0..100_000 {
                    drain.count_connection().mark_finished();
                }
            });
            let mut finished = 0;
            while !closing.is_finished() {
                let before = std::mem::replace(&mut finished, drain.finished_connections());
                assert!(before <= finished && drain.in_progress() >= 1);
                let closed = drain.closed_connections();
                assert!(closed <= drain.finished_connections());
            }
        });
        assert_eq!((drain.open_connections(), drain.in_progress()), (1, 1));
    }
}
