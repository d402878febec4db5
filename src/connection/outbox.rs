//! The outbox: messages that other threads send to a connection.
//!
//! A message waits in the outbox until the thread that holds the connection moves it to the
//! connection's output: a thread that sends holds a parked connection itself, and writes at once.
//! Between the outbox and the socket a message is not copied. The bound of the outbox counts its
//! bytes until the kernel has taken them.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::Waker;
use crate::log;

/// The most messages that are moved to the output at once. What is in the output already is not
/// dropped to make room.
const BATCH: usize = 16;

/// What happens to a message that does not fit into an outbox, from
/// [`Outbox::set_when_full`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// `send` returns the message in [`SendError::Full`]. The default.
    #[default]
    Refuse,
    /// The oldest messages that are not being written yet are dropped to make room.
    DropOldest,
    /// The connection is closed at once, and `send` returns the message in [`SendError::Full`].
    CloseConnection,
}

/// Why a message was not sent, from [`Outbox::send`]. Contains the message.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The outbox has no room: its client reads too slowly.
    Full(Bytes),
    /// The connection has ended, or the outbox was closed.
    Closed(Bytes),
}

impl SendError {
    /// The message.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Full(bytes) | Self::Closed(bytes) => bytes,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the outbox is full: the client reads too slowly",
            Self::Closed(_) => "nothing more can be sent: the outbox is closed",
        })
    }
}

/// The text of the error, without the message, as `main` prints it.
impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for SendError {}

/// Sends messages to one connection's client, from any thread. From
/// [`Connection::outbox`](crate::Connection::outbox).
///
/// A message is written without a worker and without a call of the service: by the thread that
/// sends it, as far as the socket takes it at once, and otherwise as the client reads. Messages
/// leave in the order of [`send`](Self::send). What the service writes in one call is not torn
/// apart: a message that is sent meanwhile follows when the call has returned.
///
/// The [write time-out](crate::Builder::write_timeout) and the
/// [minimum rate](crate::Builder::min_rate) hold: a client that does not read is closed.
///
/// An outbox does not keep the connection alive. When the connection ends, messages that were not
/// written are dropped.
#[derive(Clone)]
pub struct Outbox(pub(super) Arc<Messages>);

/// What the senders and the connection share.
pub(super) struct Messages {
    connection: Waker,
    limit: usize,
    state: AtomicU8,
    waiting: Mutex<Waiting>,
    /// Bytes that are waiting or in the output.
    unsent: AtomicUsize,
    dropped: AtomicU64,
    /// How many senders wait for room.
    senders: AtomicUsize,
    /// Signalled when there may be room, while a sender waits.
    room: Condvar,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    /// The length of all messages that wait.
    bytes: usize,
    when_full: WhenFull,
}

// The states of an outbox. They change under the lock of the messages, and only to a larger one.
/// Messages can be sent.
const OPEN: u8 = 0;
/// Nothing more can be sent.
const CLOSED: u8 = 1;
/// As `CLOSED`. The connection is to be closed when its output is written.
const ENDS_CONNECTION: u8 = 2;
/// As `CLOSED`. The connection is to be closed at once.
const BREAKS_CONNECTION: u8 = 3;

impl Outbox {
    pub(super) fn new(connection: Waker, limit: usize) -> Self {
        Self(Arc::new(Messages {
            connection,
            limit,
            state: AtomicU8::new(OPEN),
            waiting: Mutex::default(),
            unsent: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            senders: AtomicUsize::new(0),
            room: Condvar::new(),
        }))
    }

    /// Sends a message. Never blocks. Bytes are not copied, so that the clones of one message may go
    /// to many connections.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if the message does not fit beside those that are not written yet;
    /// [`SendError::Closed`] if the connection has ended.
    pub fn send(&self, message: impl Into<Bytes>) -> Result<(), SendError> {
        let message = message.into();
        let sent = self.0.put(message);
        match &sent {
            Ok(()) => self.0.connection.send(),
            Err(SendError::Full(_)) if self.breaks_connection() => self.0.connection.break_off(),
            Err(_) => {}
        }
        sent
    }

    /// As [`send`](Self::send), but waits for room until `deadline`.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if there was no room in time, or the message is longer than the outbox's
    /// limit; [`SendError::Closed`] if the connection has ended.
    pub fn send_by(&self, message: impl Into<Bytes>, deadline: Instant) -> Result<(), SendError> {
        let mut message = message.into();
        loop {
            message = match self.send(message) {
                Err(SendError::Full(message)) if message.len() <= self.0.limit => message,
                sent => return sent,
            };
            if !self.0.wait_for_room(message.len(), deadline) {
                return Err(SendError::Full(message));
            }
        }
    }

    /// Sets what happens to a message that does not fit. Defaults to [`WhenFull::Refuse`].
    pub fn set_when_full(&self, when_full: WhenFull) {
        self.0.waiting.lock().when_full = when_full;
    }

    /// Closes the connection when the messages so far, and what the service has written, are
    /// written. Nothing more can be sent. The service is not called again.
    pub fn close_connection(&self) {
        if self.0.set_state(ENDS_CONNECTION) == OPEN {
            self.0.connection.send();
        }
    }

    /// Whether nothing more can be sent: the connection has ended, or the outbox was closed.
    pub fn is_closed(&self) -> bool {
        self.0.state.load(SeqCst) != OPEN
    }

    /// How many bytes were sent and are not written yet.
    pub fn unsent(&self) -> usize {
        self.0.unsent.load(SeqCst)
    }

    /// How many messages were dropped by [`WhenFull::DropOldest`].
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    // ---- for the connection ----

    /// Moves the next messages to the connection's output.
    pub(super) fn take_batch(&self, mut queue: impl FnMut(Message)) -> usize {
        let mut waiting = self.0.waiting.lock();
        let count = waiting.messages.len().min(BATCH);
        let mut waiting_bytes = waiting.bytes;
        for bytes in waiting.messages.drain(..count) {
            waiting_bytes -= bytes.len();
            let messages = Arc::clone(&self.0);
            queue(Message { bytes, messages });
        }
        waiting.bytes = waiting_bytes;
        count
    }

    /// Whether the connection is to be closed when its output is written.
    pub(super) fn ends_connection(&self) -> bool {
        self.0.state.load(SeqCst) == ENDS_CONNECTION
    }

    /// Whether the connection is to be closed at once.
    pub(super) fn breaks_connection(&self) -> bool {
        self.0.state.load(SeqCst) == BREAKS_CONNECTION
    }

    /// Closes the outbox without closing the connection. The messages that wait stay. True if a
    /// sender has ended the connection before.
    pub(crate) fn detach(&self) -> bool {
        self.0.set_state(CLOSED) > CLOSED
    }

    /// The connection has ended. Messages that wait are dropped.
    pub(super) fn end(&self) {
        self.0.set_state(CLOSED);
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        self.0.note_gone(waiting.bytes);
    }
}

impl Messages {
    fn put(&self, message: Bytes) -> Result<(), SendError> {
        let mut dropped = Vec::new();
        let mut waiting = self.waiting.lock();
        if self.state.load(SeqCst) != OPEN {
            return Err(SendError::Closed(message));
        }
        // Nothing is dropped for a message that does not fit beside those that are being written.
        let in_output = self.unsent.load(SeqCst) - waiting.bytes;
        let can_fit = in_output.saturating_add(message.len()) <= self.limit;
        while self.unsent.load(SeqCst).saturating_add(message.len()) > self.limit {
            let oldest = match waiting.when_full {
                WhenFull::DropOldest if can_fit => waiting.messages.pop_front(),
                WhenFull::DropOldest | WhenFull::Refuse => None,
                WhenFull::CloseConnection => {
                    self.state.store(BREAKS_CONNECTION, SeqCst);
                    self.room.notify_all();
                    None
                }
            };
            let Some(oldest) = oldest else {
                return Err(SendError::Full(message));
            };
            waiting.bytes -= oldest.len();
            self.unsent.fetch_sub(oldest.len(), SeqCst);
            self.dropped.fetch_add(1, Relaxed);
            // Dropped after the lock: the drop may be the application's code.
            dropped.push(oldest);
        }
        self.unsent.fetch_add(message.len(), SeqCst);
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        Ok(())
    }

    /// Sets the state, unless it is a larger one. Returns the state before.
    fn set_state(&self, state: u8) -> u8 {
        let before = {
            let _waiting = self.waiting.lock();
            self.state.fetch_max(state, SeqCst)
        };
        self.room.notify_all();
        before
    }

    /// Waits for room. False if there was none in time.
    fn wait_for_room(&self, length: usize, deadline: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        // Counted before the check: a thread that makes room reads the count afterwards.
        self.senders.fetch_add(1, SeqCst);
        let mut is_in_time = true;
        while is_in_time
            && self.state.load(SeqCst) == OPEN
            && self.unsent.load(SeqCst).saturating_add(length) > self.limit
        {
            is_in_time = !self.room.wait_until(&mut waiting, deadline).timed_out();
        }
        self.senders.fetch_sub(1, SeqCst);
        is_in_time
    }

    /// Bytes were written or dropped.
    fn note_gone(&self, bytes: usize) {
        self.unsent.fetch_sub(bytes, SeqCst);
        if self.senders.load(SeqCst) > 0 {
            // A sender that has not found room holds the lock until it waits.
            drop(self.waiting.lock());
            self.room.notify_all();
        }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("limit", &self.0.limit)
            .field("unsent", &self.unsent())
            .finish_non_exhaustive()
    }
}

/// A message in the output of its connection.
pub(super) struct Message {
    bytes: Bytes,
    messages: Arc<Messages>,
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.messages.note_gone(bytes.len());
        log::drop_contained("a message", bytes);
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.bytes.len())
    }
}
