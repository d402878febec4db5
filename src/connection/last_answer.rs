//! The last answer of a connection that a drain ends: the answer, the goodbye and the end of the
//! stream leave together, so that a client that waits for each answer sends no request after it.
//!
//! While the server drains, the kernel holds back the last, partly filled segment of what a call of
//! the service writes, also if the service or its library flushes (TCP_CORK in tcp(7)). After the
//! call, the connection ends behind its answer, or the segment is released. It is released earlier
//! if the call waits for the client, or lasts so long that the keeper writes its output.

use std::io;

use super::{Connection, Filled};
use crate::sys;

/// What a later call is compared with, to know whether it has answered a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerMark {
    /// The count of consumed bytes when the message began.
    consumed: u64,
    /// The count of written bytes when the call began, and how many of them were sent.
    written: u64,
    sent: u64,
}

impl Connection {
    /// Begins a call of the service, which may be the last one if the server drains.
    /// `goes_on` says that the message of the previous call goes on.
    #[inline]
    pub(super) fn begin_answer(&mut self, goes_on: bool) {
        self.has_held_answer = false;
        match self.is_draining() {
            true => self.mark_answer(goes_on),
            false => self.answer_mark = None,
        }
    }

    #[cold]
    fn mark_answer(&mut self, goes_on: bool) {
        self.hold_answer();
        // An error of an earlier write shows in the next one.
        let is_reclaimed = self.reclaim_output().is_ok();
        let before = self.answer_mark.filter(|_| goes_on);
        self.answer_mark = is_reclaimed.then(|| AnswerMark {
            consumed: before.map_or(self.consumed(), |mark| mark.consumed),
            written: self.written(),
            sent: self.bytes_out,
        });
    }

    /// Holds back the end of what follows, if the server drains. Once in each call: what the keeper
    /// has released meanwhile may be waited for.
    #[inline]
    pub(super) fn hold_answer(&mut self) {
        let may_hold = !self.has_held_answer && !self.is_detached();
        if may_hold && self.is_draining() && self.info.peer.as_ip().is_some() {
            self.has_held_answer = true;
            if self.info.early_output.hold(&self.info.socket) {
                // The keeper releases the output of a call that lasts.
                self.early_outputs.note_use();
            }
        }
    }

    /// Lets everything leave that was written.
    #[inline]
    pub(crate) fn release_answer(&mut self) {
        self.info.early_output.release(&self.info.socket);
    }

    /// The call has not said that its message is complete.
    pub(crate) fn forget_answer(&mut self) {
        self.answer_mark = None;
    }

    /// Whether the present call has answered a message, and the end of the answer has not left. What
    /// other threads send to the client is no answer. The output must be
    /// [reclaimed](Self::reclaim_output).
    pub(crate) fn holds_answer(&self) -> bool {
        let Some(mark) = self.answer_mark else {
            return false;
        };
        let is_unsent = self.bytes_out == mark.sent && sys::socket::HOLDS_LAST;
        self.is_draining()
            && self.info.peer.as_ip().is_some()
            && (is_unsent || self.info.early_output.is_held())
            && self.outbox.is_none()
            && self.consumed() > mark.consumed
            && self.written() > mark.written
    }

    /// Looks for more input, or for the client's end, before a drain ends the connection. So a
    /// message that a client has sent before it has the answer to the last one is answered too.
    pub(crate) fn has_more_in_drain(&mut self, is_closing: bool) -> io::Result<bool> {
        if is_closing && self.check_drain_limit(true) {
            return Ok(false);
        }
        Ok(self.try_fill()? != Filled::Nothing)
    }

    /// Whether the present call has written something, as far as can be told. Only in a drain.
    pub(super) fn has_written_in_call(&mut self) -> bool {
        let is_reclaimed = self.reclaim_output().is_ok();
        match self.answer_mark {
            Some(mark) if is_reclaimed => self.written() > mark.written,
            _ => true,
        }
    }

    /// The count of bytes that were written, sent or not. The output must be
    /// [reclaimed](Self::reclaim_output).
    fn written(&self) -> u64 {
        self.bytes_out + self.output.len() as u64
    }
}
