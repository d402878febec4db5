//! What is in flight: whether the server is draining, how many connections live, and word of the last one's end.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::in_millis;

/// One server's drain. It gets from one stage to a later one, and never back.
#[derive(Default)]
pub(crate) struct Drain {
    stage: AtomicU8,
    /// While it is [`LEAVING`]: how long a connection may say nothing, in milliseconds.
    grace: AtomicU64,
    live: AtomicUsize,
    ended: AtomicUsize,
    on_empty: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Clients are told, where their protocol has the words, to ask elsewhere; what they ask here is answered.
const LEAVING: u8 = 1;
/// Nothing more is listened to than what has come.
const CLOSING: u8 = 2;
/// Waits in handlers end with an error.
const FORCED: u8 = 3;

impl Drain {
    /// Another process serves new connections. Those that are open end at their client's pleasure, or when they have
    /// said nothing for so long.
    pub(crate) fn leave(&self, grace: Duration) {
        self.grace.store(in_millis(grace), SeqCst);
        self.stage.fetch_max(LEAVING, SeqCst);
    }

    /// No new work from now on; what is in progress goes on.
    pub(crate) fn begin(&self) {
        self.stage.fetch_max(CLOSING, SeqCst);
    }

    /// The time for finishing is over.
    pub(crate) fn force(&self) {
        self.stage.fetch_max(FORCED, SeqCst);
    }

    /// Whether the server drains, in whatever stage.
    pub(crate) fn is_draining(&self) -> bool {
        self.stage.load(SeqCst) >= LEAVING
    }

    /// Whether connections end after what has come, or at once if nothing has.
    pub(crate) fn is_closing(&self) -> bool {
        self.stage.load(SeqCst) >= CLOSING
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.stage.load(SeqCst) >= FORCED
    }

    /// How long an idle connection may stay, in milliseconds, if that is shorter than usual.
    pub(crate) fn grace(&self) -> Option<u64> {
        (self.stage.load(SeqCst) == LEAVING).then(|| self.grace.load(SeqCst))
    }

    /// Sets what is called each time that the last connection has ended while the server drains. Only the first
    /// call of this has an effect.
    pub(crate) fn on_empty(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_empty.set(Box::new(call));
    }

    /// Counts a connection until the guard is dropped, wherever and however that happens.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.live.fetch_add(1, SeqCst);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    /// How many connections have come and gone.
    pub(crate) fn ended(&self) -> usize {
        self.ended.load(SeqCst)
    }
}

/// A connection in flight.
pub(crate) struct InFlight(Arc<Drain>);

impl InFlight {
    pub(crate) fn drain(&self) -> &Drain {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
        let was = self.0.live.fetch_sub(1, SeqCst);
        if was == 1 && self.0.is_draining() {
            if let Some(call) = self.0.on_empty.get() {
                call();
            }
        }
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
        drop(drain.enter());
        assert!(receiver.is_empty(), "told although nothing drains");
        let (first, second) = (drain.enter(), drain.enter());
        drain.begin();
        drop(first);
        assert!(receiver.is_empty(), "told although one is left");
        let thread = std::thread::spawn(move || {
            let _guard = second;
            panic!("the handler's fault");
        });
        assert!(thread.join().is_err());
        receiver.recv().unwrap();
        assert_eq!(drain.live(), 0);
    }
}
