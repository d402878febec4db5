//! What is in flight: whether the server is draining, how many connections live, and word of the last one's end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// One server's drain. It begins once, and is never taken back.
#[derive(Default)]
pub(crate) struct Drain {
    draining: AtomicBool,
    forced: AtomicBool,
    live: AtomicUsize,
    ended: AtomicUsize,
    on_empty: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Drain {
    /// No new work from now on; what is in progress goes on.
    pub(crate) fn begin(&self) {
        self.draining.store(true, SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// The time for finishing is over: waits in handlers end with an error from now on.
    pub(crate) fn force(&self) {
        self.begin();
        self.forced.store(true, SeqCst);
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.forced.load(SeqCst)
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
