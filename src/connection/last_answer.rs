//! The last answer of a connection that a drain ends: the answer, the goodbye and the end of the
//! stream leave together, so that a client that waits for each answer sends no request after it.
//!
//! While the server drains, the kernel holds back the last, partly filled segment of what a call of
//! the service writes, also if the service or its library flushes (TCP_CORK in tcp(7)). After the
//! call, the connection ends behind its answer, or the segment is released. It is released earlier
//! if the call waits for the client, or lasts so long that the keeper writes its output.

use std::io;

use super::{Connection, Filled};

/// Counts of bytes at the beginning of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerMark {
    consumed: u64,
    written: u64,
}

impl Connection {
    /// Begins a call of the service, which may be the last one if the server drains.
    #[inline]
    pub(super) fn begin_answer(&mut self) {
        self.answer_mark = None;
        if self.hold_answer() {
            self.answer_mark = Some(AnswerMark {
                consumed: self.consumed(),
                written: self.written(),
            });
        }
    }

    /// Holds back the end of what follows, if the server drains. False if nothing is held back.
    #[inline]
    pub(super) fn hold_answer(&self) -> bool {
        self.is_draining()
            && self.info.peer.as_ip().is_some()
            && self.info.early_output.hold(&self.info.socket)
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

    /// Whether the present call has answered a message, and the end of the answer is held back. What
    /// other threads send to the client is no answer.
    pub(crate) fn holds_answer(&self) -> bool {
        let Some(mark) = self.answer_mark else {
            return false;
        };
        self.info.early_output.is_held()
            && self.outbox.is_none()
            && self.consumed() > mark.consumed
            && self.written() > mark.written
    }

    /// Looks for more input, or for the client's end, before a drain ends the connection. So a
    /// message that a client has sent before it has the answer to the last one is answered too.
    pub(crate) fn has_more_in_drain(&mut self, is_closing: bool) -> io::Result<bool> {
        if is_closing && self.check_drain_limit(false) {
            return Ok(false);
        }
        Ok(self.try_fill()? != Filled::Nothing)
    }

    /// The count of bytes that were written, sent or not.
    fn written(&self) -> u64 {
        self.bytes_out + self.output.len() as u64
    }
}
