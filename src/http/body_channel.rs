//! Bodies that other threads send, while the connection waits on no thread.
//!
//! A piece needs neither a worker nor a call of the service. Until the response's head is written,
//! pieces wait in the channel; from then on they go to the connection's outbox. The switch and the
//! pieces before it are under the lock, so the order is that of the sends. Only the end of the body
//! has the service called.
//!
//! | body | event | action |
//! |---|---|---|
//! | not open | a piece | it waits in the channel |
//! | not open | the head is written | the pieces so far go to the outbox: the body is open |
//! | open | a piece | it goes to the outbox |
//! | any | the sender ends or aborts the body | the service is woken, and ends the body or cuts it |
//! | any | the client leaves, the drain, no body | closed: the callbacks are called, sends fail |

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::chunk::Chunk;
use super::closing::{Callbacks, CloseReason};
use crate::connection::{Outbox, SendError, Waker};

/// Sends the body of a response, from any thread. From [`Reply::channel`](super::Reply::channel).
///
/// Dropping it ends the body. If its thread is panicking then, the body is
/// [cut off](Self::abort) instead.
pub struct BodySender(Arc<Channel>);

/// The service's side. Dropping it closes the channel.
pub(super) struct ChannelBody(Arc<Channel>);

struct Channel {
    /// How many bytes may wait, with their frames.
    capacity: usize,
    /// Set when the head is written.
    open: OnceLock<OpenBody>,
    state: Mutex<State>,
    /// Signalled when the body opens or closes.
    changed: Condvar,
    ends_at_drain: AtomicBool,
    /// How many bytes the sender has sent, without frames.
    len: AtomicU64,
}

struct OpenBody {
    outbox: Outbox,
    waker: Waker,
    is_chunked: bool,
}

#[derive(Default)]
struct State {
    /// What was sent before the body opened, and how many bytes that is.
    pieces: VecDeque<Chunk>,
    waiting: usize,
    end: Option<BodyEnd>,
    closed: Option<CloseReason>,
    callbacks: Callbacks,
}

/// What the sender has made of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEnd {
    Complete,
    Aborted,
}

/// A channel that holds at most `capacity` bytes that are not written yet.
pub(super) fn body_channel(capacity: usize) -> (BodySender, ChannelBody) {
    let channel = Arc::new(Channel {
        capacity,
        open: OnceLock::new(),
        state: Mutex::default(),
        changed: Condvar::new(),
        ends_at_drain: AtomicBool::new(false),
        len: AtomicU64::new(0),
    });
    (BodySender(Arc::clone(&channel)), ChannelBody(channel))
}

impl BodySender {
    /// Sends a piece of the body. Never blocks. The client gets it at once, as one chunk, if it
    /// reads. An empty piece is not sent.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if the piece does not fit beside those that are not written yet;
    /// [`SendError::Closed`] if the body has ended: the client has left, the server drains (see
    /// [`ends_at_drain`](Self::ends_at_drain)), or the response has no body. The error contains the
    /// bytes.
    pub fn try_send(&self, piece: impl Into<Chunk>) -> Result<(), SendError> {
        self.0.send(&piece.into())
    }

    /// As [`try_send`](Self::try_send), but waits for room until `deadline`. A handler must not
    /// wait here for the room that its own response makes: the response begins when the handler has
    /// returned.
    ///
    /// # Errors
    ///
    /// As those of `try_send`. `Full` if there was no room in time, or the piece is longer than the
    /// capacity.
    pub fn send_by(&self, piece: impl Into<Chunk>, deadline: Instant) -> Result<(), SendError> {
        let piece = piece.into();
        loop {
            match self.0.send(&piece) {
                Err(SendError::Full(_)) if self.0.may_fit(&piece) => {}
                sent => return sent,
            }
            let is_in_time = match self.0.open.get() {
                Some(open) => {
                    let sent = open.outbox.send_by(open.framed(&piece), deadline);
                    return self.0.note_sent(&piece, sent);
                }
                None => self.0.wait_for_change(&piece, deadline),
            };
            if !is_in_time {
                return Err(SendError::Full(piece.bytes()));
            }
        }
    }

    /// Cuts the body off: the connection is closed without the end of the body, so that the client
    /// sees that the body is incomplete. (An HTTP/1.0 client cannot see that.) What was sent before
    /// is written.
    pub fn abort(self) {
        self.0.end(BodyEnd::Aborted);
    }

    /// Sets whether the body ends when the server begins to stop or to hand over to a successor: at
    /// a boundary of its pieces, with the last chunk, and the connection is closed. So the client
    /// of an endless stream asks again, and reaches the successor. Defaults to false, which lets
    /// the body go on until the drain time-out.
    pub fn ends_at_drain(&self, ends: bool) {
        self.0.ends_at_drain.store(ends, SeqCst);
        // The drain may have begun already.
        if let (true, Some(open)) = (ends, self.0.open.get()) {
            open.waker.wake();
        }
    }

    /// Whether nothing more can be sent.
    pub fn is_closed(&self) -> bool {
        let is_closed = |open: &OpenBody| open.outbox.is_closed();
        self.0.open.get().is_some_and(is_closed) || self.0.state.lock().closed.is_some()
    }

    /// How many bytes were sent and are not written yet, with their frames.
    pub fn unsent(&self) -> usize {
        match self.0.open.get() {
            Some(open) => open.outbox.unsent(),
            None => self.0.state.lock().waiting,
        }
    }

    /// Has `callback` called once if the body is closed before its sender ends it. If that was
    /// before, the callback is called at once. Otherwise a thread of the server calls it, so it
    /// must not block. A panic in it is logged.
    pub fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) {
        let mut state = self.0.state.lock();
        let Some(reason) = state.closed else {
            return state.callbacks.add(callback);
        };
        drop(state);
        let mut callbacks = Callbacks::default();
        callbacks.add(callback);
        callbacks.call(reason);
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        self.0.end(match thread::panicking() {
            true => BodyEnd::Aborted,
            false => BodyEnd::Complete,
        });
    }
}

impl fmt::Debug for BodySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySender")
            .field("capacity", &self.0.capacity)
            .field("unsent", &self.unsent())
            .finish_non_exhaustive()
    }
}

impl Channel {
    fn send(&self, piece: &Chunk) -> Result<(), SendError> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut state = None;
        if self.open.get().is_none() {
            state = Some(self.state.lock());
        }
        // Checked again: the body may have opened before the lock.
        if let Some(open) = self.open.get() {
            // Sending may write to the socket.
            drop(state);
            return self.note_sent(piece, open.outbox.send(open.framed(piece)));
        }
        let Some(mut state) = state else {
            return Err(SendError::Closed(piece.bytes()));
        };
        let waiting = state.waiting.saturating_add(piece.framed_len());
        let sent = if state.closed.is_some() {
            Err(SendError::Closed(piece.bytes()))
        } else if waiting > self.capacity {
            Err(SendError::Full(piece.bytes()))
        } else {
            state.waiting = waiting;
            state.pieces.push_back(piece.clone());
            Ok(())
        };
        drop(state);
        self.note_sent(piece, sent)
    }

    /// Counts what was sent. An error gets the bytes without their frame.
    fn note_sent(&self, piece: &Chunk, sent: Result<(), SendError>) -> Result<(), SendError> {
        match sent {
            Ok(()) => {
                self.len.fetch_add(piece.len() as u64, Relaxed);
                Ok(())
            }
            Err(SendError::Full(_)) => Err(SendError::Full(piece.bytes())),
            Err(_) => Err(SendError::Closed(piece.bytes())),
        }
    }

    fn may_fit(&self, piece: &Chunk) -> bool {
        piece.framed_len() <= self.capacity
    }

    /// Waits until the body opens or closes. False if neither happens in time.
    fn wait_for_change(&self, piece: &Chunk, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        let mut is_in_time = true;
        while is_in_time
            && self.open.get().is_none()
            && state.closed.is_none()
            && state.waiting.saturating_add(piece.framed_len()) > self.capacity
        {
            is_in_time = !self.changed.wait_until(&mut state, deadline).timed_out();
        }
        is_in_time
    }

    /// Ends the body for its sender. Only the first call has an effect.
    fn end(&self, end: BodyEnd) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return;
        }
        state.end = Some(end);
        let _callbacks = mem::take(&mut state.callbacks);
        let is_closed = state.closed.is_some();
        drop(state);
        if let (Some(open), false) = (self.open.get(), is_closed) {
            open.waker.wake();
        }
    }
}

impl OpenBody {
    fn framed(&self, piece: &Chunk) -> bytes::Bytes {
        match self.is_chunked {
            true => piece.framed(),
            false => piece.bytes(),
        }
    }
}

impl ChannelBody {
    /// In bytes, with the frames.
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The head is written: what was sent so far, and what follows, goes to the outbox. The calling
    /// thread holds the connection, so that nothing is written here.
    pub(super) fn open(&self, outbox: Outbox, waker: Waker, is_chunked: bool) {
        let mut state = self.0.state.lock();
        let open = OpenBody {
            outbox,
            waker,
            is_chunked,
        };
        for piece in mem::take(&mut state.pieces) {
            // They fit, as the limit is the same.
            if open.outbox.send(open.framed(&piece)).is_err() {
                state.end = Some(BodyEnd::Aborted);
            }
        }
        state.waiting = 0;
        // From here on senders do not take the lock: their pieces must not overtake those above.
        let _ = self.0.open.set(open);
        drop(state);
        self.0.changed.notify_all();
    }

    /// What the sender has made of the body. `None`: it goes on.
    pub(super) fn end(&self) -> Option<BodyEnd> {
        self.0.state.lock().end
    }

    pub(super) fn ends_at_drain(&self) -> bool {
        self.0.ends_at_drain.load(SeqCst)
    }

    /// How many bytes were sent, without frames.
    pub(super) fn len(&self) -> u64 {
        self.0.len.load(Relaxed)
    }

    /// Closes the body. Only the first call has an effect.
    pub(super) fn close(&self, reason: CloseReason) {
        let mut state = self.0.state.lock();
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(reason);
        let callbacks = mem::take(&mut state.callbacks);
        let _pieces = mem::take(&mut state.pieces);
        drop(state);
        // Before the callbacks: no send succeeds after them.
        if let Some(open) = self.0.open.get() {
            open.outbox.detach();
        }
        self.0.changed.notify_all();
        callbacks.call(reason);
    }
}

impl Drop for ChannelBody {
    fn drop(&mut self) {
        self.close(match self.0.open.get() {
            Some(_) => CloseReason::ClientLeft,
            None => CloseReason::NotSent,
        });
    }
}
