//! Which server a thread belongs to.

use std::cell::Cell;

thread_local! {
    /// The id of the server that this thread belongs to; 0 for no server.
    static SERVER_ID: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as one of the server's.
pub(super) fn mark_thread(server_id: usize) {
    SERVER_ID.set(server_id);
}

/// Whether this thread is one of the server's.
pub(super) fn is_thread_of(server_id: usize) -> bool {
    SERVER_ID.get() == server_id
}
