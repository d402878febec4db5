//! Room: how the acceptor learns that there may be room for another connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// One requested call, made when a connection has ended, was parked, or left the queue.
#[derive(Default)]
pub(crate) struct Room {
    is_requested: AtomicBool,
    call: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Room {
    /// Sets what is called when there may be room. Only the first call has an effect.
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.call.set(Box::new(call));
    }

    /// Asks for one call. The caller checks for room once more afterwards, since the connection may
    /// have ended just before.
    pub(crate) fn request(&self) {
        self.is_requested.store(true, SeqCst);
    }

    /// Whether a requested call is still to come.
    pub(crate) fn is_requested(&self) -> bool {
        self.is_requested.load(SeqCst)
    }

    /// There may be room: makes the call, if it is requested.
    #[inline]
    pub(crate) fn notify(&self) {
        if self.is_requested() && self.is_requested.swap(false, SeqCst) {
            if let Some(call) = self.call.get() {
                call();
            }
        }
    }
}
