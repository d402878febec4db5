//! What the watchdog sees of a connection: whether the call makes progress, or waits for the client.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use socket2::Socket;

use crate::sys;

/// The progress of a call, for the watchdog: whether the call moves bytes, or waits for the client.
#[derive(Default)]
pub(crate) struct Activity {
    /// How many reads and writes have moved bytes.
    moves: AtomicU64,
    /// The call waits for the client, for at most its time-out.
    pub(super) is_waiting: AtomicBool,
    /// The service has taken the socket: other code reads and writes.
    pub(super) is_detached: AtomicBool,
}

impl Activity {
    #[inline]
    pub(super) fn count_move(&self) {
        // Only the thread that holds the connection writes it.
        self.moves.store(self.moves.load(Relaxed) + 1, Relaxed);
    }

    /// How many reads and writes have moved bytes. `None` while the call waits for the client. A call
    /// that has detached the connection waits for the client as long as everything that the client has
    /// sent is read. `socket` is the socket of this connection.
    pub(super) fn moves(&self, socket: &Socket) -> Option<u64> {
        let moves = self.moves.load(Relaxed);
        if self.is_waiting.load(Relaxed) {
            None
        } else if self.is_detached.load(Relaxed) {
            // A change of what is unread is progress.
            let unread = sys::socket::unread_len(socket).unwrap_or(0);
            (unread > 0).then(|| moves.wrapping_add(unread))
        } else {
            Some(moves)
        }
    }
}
