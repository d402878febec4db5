//! The drain: its stage, the count of open connections, and a call when the last one has ended.
//!
//! | stage | begins when | idle connections | connections in progress |
//! |---|---|---|---|
//! | (none) | | kept | served |
//! | REPLACED | a successor serves | closed after a grace | served; the response announces the close |
//! | CLOSING | a stop | closed | what has arrived is served, then closed |
//! | FORCED | the deadline has passed | closed | their waits end with an error |
//!
//! The stage never goes back to an earlier one.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::in_millis;

/// One server's drain.
#[derive(Default)]
pub(crate) struct Drain {
    stage: AtomicU8,
    /// In the stage [`REPLACED`]: how long an idle connection is kept, in milliseconds.
    idle_grace: AtomicU64,
    /// The number of open connections.
    open: AtomicUsize,
    /// The open connections that linger: they are finished, except for their close.
    lingering: AtomicUsize,
    /// The number of connections that have been closed so far.
    closed: AtomicUsize,
    on_empty: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

const REPLACED: u8 = 1;
const CLOSING: u8 = 2;
const FORCED: u8 = 3;

impl Drain {
    /// A successor serves new connections. An open connection ends when its client closes it, or
    /// when it has been idle for `idle_grace`.
    pub(crate) fn mark_replaced(&self, idle_grace: Duration) {
        self.idle_grace.store(in_millis(idle_grace), SeqCst);
        self.stage.fetch_max(REPLACED, SeqCst);
    }

    /// Only what has arrived is served from now on.
    pub(crate) fn mark_closing(&self) {
        self.stage.fetch_max(CLOSING, SeqCst);
    }

    /// The deadline has passed.
    pub(crate) fn mark_forced(&self) {
        self.stage.fetch_max(FORCED, SeqCst);
    }

    /// Whether the server drains, in any stage.
    pub(crate) fn is_draining(&self) -> bool {
        self.stage.load(SeqCst) >= REPLACED
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.stage.load(SeqCst) >= CLOSING
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.stage.load(SeqCst) >= FORCED
    }

    /// How long an idle connection is kept, in milliseconds, in the stage [`REPLACED`].
    pub(crate) fn idle_grace(&self) -> Option<u64> {
        (self.stage.load(SeqCst) == REPLACED).then(|| self.idle_grace.load(SeqCst))
    }

    /// Sets the function that is called when no connection is in progress any more, while the
    /// server drains. Only the first call has an effect.
    pub(crate) fn on_empty(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_empty.set(Box::new(call));
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn count_connection(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, SeqCst);
        OpenConnection {
            drain: Arc::clone(self),
            is_lingering: AtomicBool::new(false),
        }
    }

    /// How many connections are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// How many connections are open and not finished. A connection that lingers is finished.
    pub(crate) fn in_progress(&self) -> usize {
        self.open_connections()
            .saturating_sub(self.lingering.load(SeqCst))
    }

    fn check_empty(&self) {
        if self.is_draining() && self.in_progress() == 0 {
            if let Some(call) = self.on_empty.get() {
                call();
            }
        }
    }

    /// How many connections have finished so far.
    pub(crate) fn finished_connections(&self) -> usize {
        self.closed.load(SeqCst) + self.lingering.load(SeqCst)
    }
}

/// Counts a connection as open until it is dropped.
pub(crate) struct OpenConnection {
    drain: Arc<Drain>,
    is_lingering: AtomicBool,
}

impl OpenConnection {
    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// The connection is finished: a stop does not wait for its close.
    pub(crate) fn mark_lingering(&self) {
        if !self.is_lingering.swap(true, SeqCst) {
            self.drain.lingering.fetch_add(1, SeqCst);
            self.drain.check_empty();
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.drain.closed.fetch_add(1, SeqCst);
        self.drain.open.fetch_sub(1, SeqCst);
        if *self.is_lingering.get_mut() {
            self.drain.lingering.fetch_sub(1, SeqCst);
        }
        self.drain.check_empty();
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
}
