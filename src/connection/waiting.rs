//! What a connection waits for besides its client: wakers, the timer, the outbox, and the call at a
//! drain.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Cause, Connection, Outbox, Waker};
use crate::log;
use crate::sys::PeerState;

impl Connection {
    /// Why the service is called now.
    pub fn cause(&self) -> Cause {
        self.due.present()
    }

    /// A waker, with which any thread can have the service called for this connection. See
    /// [`Next::Wait`](crate::Next::Wait).
    pub fn waker(&self) -> Waker {
        self.wants_drain_call.store(true, Relaxed);
        self.waker.clone()
    }

    /// Has the service called at this time, once, though the client may have sent nothing. `None`
    /// ends the timer. A connection has one timer: a new time replaces an earlier one. The call
    /// comes a few milliseconds late, and later if no worker is free, if the output waits for the
    /// client to read, or if the service is being called.
    pub fn wake_at(&mut self, at: impl Into<Option<Instant>>) {
        self.wants_drain_call.store(true, Relaxed);
        self.due.set_timer(at.into());
    }

    /// An outbox, with which any thread can send to the client. It holds at most `limit` bytes that
    /// the kernel has not taken yet. A connection has one outbox: an earlier one is closed, and its
    /// messages are written first.
    ///
    /// Messages do not extend the connection's idle time-out, see
    /// [`set_idle_timeout`](Self::set_idle_timeout).
    #[doc(alias = "try_clone")]
    pub fn outbox(&mut self, limit: usize) -> Outbox {
        self.wants_drain_call.store(true, Relaxed);
        self.close_outbox();
        let outbox = Outbox::new(self.waker.clone(), limit);
        self.outbox.insert(outbox).clone()
    }

    /// Closes the outbox, if the connection has one. Messages that were sent before are written,
    /// before all that the service writes from now on.
    pub fn close_outbox(&mut self) {
        if let Some(outbox) = self.outbox.take() {
            self.is_ended_by_outbox |= outbox.detach();
            // What the service has written comes first, also what the keeper has been lent.
            if let Err(error) = self.reclaim_output() {
                // The next write fails as well.
                log::debug!("{}: cannot write: {error}", self.info);
            }
            while outbox.take_batch(|message| self.output.queue_message(message)) > 0 {}
        }
    }

    // ---- for the rest of the crate ----

    /// Whether the call of the service for the drain is to be made now.
    #[inline]
    pub(crate) fn needs_drain_call(&self) -> bool {
        self.expects_drain_call() && self.info.open_connection.drain().is_draining()
    }

    /// Whether the service is called when the server begins to drain.
    #[inline]
    pub(crate) fn expects_drain_call(&self) -> bool {
        self.wants_drain_call.load(Relaxed) && !self.due.had_drain_call()
    }

    /// Whether the outbox ends the connection, once all output is written.
    #[inline]
    pub(crate) fn is_ended_by_outbox(&self) -> bool {
        self.is_ended_by_outbox
            || (self.outbox.as_ref()).is_some_and(|outbox| outbox.ends_connection())
    }

    /// Whether the client has ended its side, also if the buffer is too full to read up to the end.
    pub(crate) fn has_client_ended(&self) -> bool {
        let is_unread = || self.is_input_full() && self.has_hung_up();
        self.at_eof() || is_unread() && self.peer_state() != PeerState::Open
    }

    /// Begins a call of the service. `goes_on` says that the message of the previous call goes on.
    #[inline]
    pub(crate) fn begin_call(&mut self, goes_on: bool) {
        let (readable, ended) = (!self.input.is_empty(), self.has_client_ended());
        self.due.begin(readable, ended);
        self.has_failed = false;
        self.blocked_view = None;
        self.call_began_at = self.bytes_in;
        self.begin_answer(goes_on);
    }

    /// The session, which may have taken input, was begun in this call.
    #[cold]
    pub(crate) fn note_session(&mut self) {
        self.due.set_readable(!self.input.is_empty());
    }

    /// Forgets wakers and the timer: what follows on this connection has not asked for them.
    #[cfg(feature = "http")]
    pub(crate) fn forget_waiting(&mut self) {
        self.wants_drain_call.store(false, Relaxed);
        self.due.woken = false;
        self.due.set_timer(None);
    }
}
