//! The rest of a body that no handler wanted: it is discarded so that the connection stays usable.

use std::io::BufRead;

use super::body_decoder::BodyDecoder;
use crate::connection::Connection;

/// The most that is discarded of one body, in bytes of data and framing.
const DISCARD_LIMIT: usize = 64 * 1024;

/// A body that is discarded as it arrives.
pub(super) struct DiscardedBody {
    decoder: BodyDecoder,
    /// How many more bytes may be discarded.
    allowance: usize,
}

/// How far a body has been discarded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DiscardProgress {
    Complete,
    /// The rest has not arrived yet.
    Incomplete,
    /// The body is malformed or over the limit: the connection must be closed.
    Abandoned,
}

impl DiscardedBody {
    pub(super) fn new(decoder: BodyDecoder) -> Self {
        Self {
            decoder,
            allowance: DISCARD_LIMIT,
        }
    }

    /// Discards what has arrived, without waiting.
    pub(super) fn discard(&mut self, conn: &mut Connection) -> DiscardProgress {
        while !self.decoder.is_done() {
            if self.decoder.data_left() > self.allowance as u64 {
                return DiscardProgress::Abandoned;
            }
            let Ok((framing_len, data_len)) = self.decoder.decode(conn.buffer()) else {
                return DiscardProgress::Abandoned;
            };
            let count = framing_len + data_len;
            if count > self.allowance {
                return DiscardProgress::Abandoned;
            }
            self.decoder.consume_data(data_len);
            if count == 0 {
                return DiscardProgress::Incomplete;
            }
            conn.consume(count);
            self.allowance -= count;
        }
        DiscardProgress::Complete
    }
}
