//! The state of a connection's incoming side, which says whether a read is worth a system call.
//!
//! | state | event | event with hang-up | short read | would block | end of the stream |
//! |---|---|---|---|---|---|
//! | Ready | Ready | Ending | Emptied | Emptied | Ended |
//! | Ending | Ending | Ending | Ending | Emptied | Ended |
//! | Emptied | Ready | Ending | Emptied | Emptied | Ended |
//!
//! The poller reports edges, so a connection may only be parked after a read has emptied the
//! socket. A short read is one that does not fill its room. It has emptied a TCP socket, except in
//! `Ending`: there the end of the stream may follow without another event, or more bytes behind
//! urgent data, where a read stops (tcp(7)). Urgent data that arrives after the poller's report is
//! another event. A read of a Unix socket also stops behind bytes that came with descriptors
//! (unix(7)): there only the kernel's count of unread bytes tells whether the socket is empty.
//!
//! `tests/ownership_model.rs` includes this file.

/// The state of the incoming side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveState {
    /// The socket may have something to read.
    Ready,
    /// As `Ready`, and the poller has reported the end of the stream, perhaps after data, or
    /// urgent data.
    Ending,
    /// The last read emptied the socket. The poller reports what comes next.
    Emptied,
    /// The client has sent all that it will send.
    Ended,
    /// The application has taken the socket out.
    Detached,
}

impl ReceiveState {
    /// The poller or a wait has reported the socket as readable.
    #[inline]
    pub(crate) fn on_event(&mut self, hangup: bool) {
        match (*self, hangup) {
            (Self::Ready | Self::Emptied, true) => *self = Self::Ending,
            (Self::Emptied, false) => *self = Self::Ready,
            (Self::Ready | Self::Ending | Self::Ended | Self::Detached, _) => {}
        }
    }

    /// A read gave bytes. `may_have_more`: it filled its room, or bytes are left.
    #[inline]
    pub(crate) fn on_bytes(&mut self, may_have_more: bool) {
        match (*self, may_have_more) {
            (Self::Ending, _) => {}
            (_, true) => *self = Self::Ready,
            (_, false) => *self = Self::Emptied,
        }
    }

    /// A read would block.
    #[inline]
    pub(crate) fn on_would_block(&mut self) {
        *self = Self::Emptied;
    }

    /// A read has reached the end of the stream.
    #[inline]
    pub(crate) fn on_end(&mut self) {
        *self = Self::Ended;
    }

    /// Whether no read is worth while before the next event.
    #[inline]
    pub(crate) fn is_emptied(self) -> bool {
        self == Self::Emptied
    }

    #[inline]
    pub(crate) fn is_ended(self) -> bool {
        matches!(self, Self::Ended | Self::Detached)
    }
}
