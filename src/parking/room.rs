//! Room: how the acceptor learns that there may be room for another connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// What the acceptor waits for. Each request includes the events of the requests before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomRequest {
    /// A connection ends: its descriptor is free.
    End = 1,
    /// A connection becomes idle.
    Idle,
    /// A connection leaves the queue.
    Queue,
}

/// One requested call, made when the requested event has happened.
#[derive(Default)]
pub(crate) struct Room {
    /// A [`RoomRequest`], or 0.
    requested: AtomicU8,
    call: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Room {
    /// Sets what is called when there may be room. Only the first call has an effect.
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.call.set(Box::new(call));
    }

    /// Asks for one call. The caller checks for room once more afterwards, since the event may have
    /// happened just before.
    pub(crate) fn request(&self, request: RoomRequest) {
        self.requested.store(request as u8, SeqCst);
    }

    /// Whether a requested call is still to come, for this event or more.
    pub(crate) fn is_requested(&self, request: RoomRequest) -> bool {
        self.requested.load(SeqCst) >= request as u8
    }

    /// An event has happened that may be requested.
    #[inline]
    pub(crate) fn notify(&self, event: RoomRequest) {
        if self.is_requested(event) {
            self.make_call();
        }
    }

    #[cold]
    fn make_call(&self) {
        if self.requested.swap(0, SeqCst) != 0 {
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
    use RoomRequest::{End, Idle, Queue};

    #[test]
    fn a_request_is_met_once_by_its_own_events() {
        let calls = Arc::new(AtomicUsize::new(0));
        let (room, counted) = (Room::default(), Arc::clone(&calls));
        room.on_room(move || {
            counted.fetch_add(1, SeqCst);
        });
        for (request, events) in [
            (End, [true, false, false]),
            (Idle, [true, true, false]),
            (Queue, [true, true, true]),
        ] {
            for (event, is_met) in [End, Idle, Queue].into_iter().zip(events) {
                let before = calls.load(SeqCst);
                room.request(request);
                room.notify(event);
                room.notify(event);
                let made = calls.load(SeqCst) - before;
                assert_eq!(made, usize::from(is_met), "{request:?} {event:?}");
            }
        }
    }
}
