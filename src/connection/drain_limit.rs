//! How much is read of a client once the server drains.
//!
//! Input that had arrived is read, and so is the rest of a message that had begun to arrive. Between two
//! messages, nothing more is read once the socket was empty. From a client that never pauses, at most
//! `input_limit` further bytes are read, not counting messages that are consumed in parts
//! ([`note_part`](Connection::note_part)).

use super::Connection;
use crate::sys;

/// The limit of one connection. Positions are counts of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DrainLimit {
    /// Where nothing more is read.
    last_byte: u64,
    /// A read has emptied the socket since the limit was set.
    is_emptied: bool,
    /// All bytes before this position are within the limit already, or exempt from it.
    counted_until: u64,
}

impl DrainLimit {
    /// `arrived` bytes have been received, or wait in the socket.
    fn new(arrived: u64, input_limit: usize) -> Self {
        Self {
            last_byte: arrived.saturating_add(input_limit as u64),
            is_emptied: false,
            counted_until: arrived,
        }
    }

    pub(super) fn note_emptied(&mut self) {
        self.is_emptied = true;
    }

    /// These bytes are part of a long message. Bytes that are exempt already are not counted again.
    /// In the order of the positions.
    fn exempt(&mut self, from: u64, to: u64) {
        let from = from.max(self.counted_until);
        self.last_byte = self.last_byte.saturating_add(to.saturating_sub(from));
        self.counted_until = self.counted_until.max(to);
    }

    fn is_reached(&self, received: u64, between_messages: bool) -> bool {
        received >= self.last_byte || between_messages && self.is_emptied
    }
}

impl Connection {
    /// Checks before each read of a drain whether no more input is read. The first call sets the
    /// limit.
    pub(crate) fn check_drain_limit(&mut self, between_messages: bool) -> bool {
        match &self.drain_limit {
            None => {
                let unread = sys::socket::unread_len(&self.info.socket).unwrap_or(0);
                let arrived = self.bytes_in + unread;
                self.drain_limit = Some(DrainLimit::new(arrived, self.input_limit));
                self.receive.on_event(false);
                false
            }
            Some(limit) => limit.is_reached(self.bytes_in, between_messages),
        }
    }

    /// Consumes `count` bytes of a message that may be longer than the input limit. Such bytes do
    /// not count towards the limit of a drain: a message in progress is read to its end.
    #[cfg(feature = "http")]
    pub(crate) fn consume_spooled(&mut self, count: usize) {
        let before = self.consumed();
        self.input.consume(count);
        self.exempt_from_drain_limit(before);
    }

    /// Notes that a call of the service has returned `More`. If the call has not answered, what it has
    /// consumed since `consumed` is a part of a message, and does not count towards the limit of a
    /// drain.
    #[inline]
    pub(crate) fn note_part(&mut self, consumed: u64) {
        if self.drain_limit.is_some() && !self.has_written_in_call() {
            self.exempt_from_drain_limit(consumed);
        }
    }

    /// What was consumed since this count does not count towards the limit of a drain.
    pub(super) fn exempt_from_drain_limit(&mut self, since: u64) {
        let consumed = self.consumed();
        if let Some(limit) = &mut self.drain_limit {
            limit.exempt(since, consumed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_of_a_long_message_is_exempt_once() {
        let mut limit = DrainLimit::new(100, 50);
        assert!(!limit.is_reached(149, true) && limit.is_reached(150, false));
        // These had arrived.
        limit.exempt(80, 100);
        assert!(!limit.is_reached(149, true) && limit.is_reached(150, false));
        // A head and a body are consumed in pieces, and then the call returns `More`.
        limit.exempt(110, 120);
        limit.exempt(120, 140);
        limit.exempt(110, 140);
        assert!(!limit.is_reached(179, true) && limit.is_reached(180, false));
        limit.exempt(130, 150);
        assert!(!limit.is_reached(189, true) && limit.is_reached(190, false));
        limit.note_emptied();
        assert!(limit.is_reached(110, true) && !limit.is_reached(110, false));
        limit.exempt(0, u64::MAX);
        limit.exempt(0, u64::MAX);
        assert!(limit.is_reached(u64::MAX, false));
    }
}
