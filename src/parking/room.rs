//! Room: how the acceptor learns that there may be room for another connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

// What is requested.
const NOTHING: u8 = 0;
/// The call when a connection has ended.
const AT_END: u8 = 1;
/// The call when there may be room for another reason as well.
const AT_ROOM: u8 = 2;

/// One requested call, made when a connection has ended, has become idle, or left the queue.
#[derive(Default)]
pub(crate) struct Room {
    requested: AtomicU8,
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
        self.requested.store(AT_ROOM, SeqCst);
    }

    /// Asks for one call when a connection has ended, and its descriptor is free. A request for room
    /// stays one. The caller checks afterwards, as after [`request`](Self::request).
    pub(crate) fn request_end(&self) {
        self.requested.fetch_max(AT_END, SeqCst);
    }

    /// Whether a requested call is still to come.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(SeqCst) != NOTHING
    }

    /// A connection has become idle, or has left the queue.
    #[inline]
    pub(crate) fn notify(&self) {
        if self.requested.load(SeqCst) == AT_ROOM {
            self.make_call();
        }
    }

    /// A connection has ended.
    #[inline]
    pub(crate) fn notify_end(&self) {
        if self.is_requested() {
            self.make_call();
        }
    }

    #[cold]
    fn make_call(&self) {
        if self.requested.swap(NOTHING, SeqCst) != NOTHING {
            if let Some(call) = self.call.get() {
                call();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_request_for_room_is_not_lost_to_a_request_for_an_end() {
        let calls = Arc::new(AtomicUsize::new(0));
        let (room, counted) = (Room::default(), Arc::clone(&calls));
        room.on_room(move || {
            counted.fetch_add(1, SeqCst);
        });
        room.request();
        room.request_end();
        room.notify();
        assert_eq!(calls.load(SeqCst), 1);
        room.request_end();
        room.notify();
        assert_eq!(calls.load(SeqCst), 1);
        room.notify_end();
        assert_eq!((calls.load(SeqCst), room.is_requested()), (2, false));
    }
}
