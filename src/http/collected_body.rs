//! A small body that is collected in the connection's buffer before the handler is called.

use super::body::BODY_TOO_LARGE;
use super::body_decoder::BodyDecoder;
use super::head::RequestHead;
use super::rejection::{Rejection, RequestLimits};

/// A body that is collected behind its head, and how far the buffer has been decoded.
pub(super) struct CollectedBody {
    decoder: BodyDecoder,
    /// The length of the head and of the part of the body that has been decoded.
    decoded: usize,
    /// The value of `decoded` at which the body is no longer a small one. 0 if the body's length
    /// says so from the start.
    small_until: usize,
    /// The bytes of data so far.
    data_len: u64,
}

impl CollectedBody {
    /// `input_limit` is the size of the connection's buffer, in bytes.
    pub(super) fn new(
        head: &RequestHead,
        limits: &RequestLimits,
        input_limit: usize,
    ) -> Result<Self, Rejection> {
        let length = head.body.data_left();
        if length > limits.body {
            return Err(BODY_TOO_LARGE);
        }
        let small_until = head.len.saturating_add(limits.small_body).min(input_limit);
        let is_large = length > small_until.saturating_sub(head.len) as u64;
        Ok(Self {
            decoder: head.body.clone(),
            decoded: head.len,
            small_until: if is_large { 0 } else { small_until },
            data_len: 0,
        })
    }

    /// Decodes what has arrived of the body. True when the handler can be called: the body is
    /// complete, or is no longer a small one.
    pub(super) fn collect(
        &mut self,
        input: &[u8],
        limits: &RequestLimits,
    ) -> Result<bool, Rejection> {
        while !self.decoder.is_done() && self.decoded < self.small_until {
            let (framing_len, data_len) = self.decoder.decode(&input[self.decoded..])?;
            if framing_len + data_len == 0 {
                return Ok(false);
            }
            self.decoded += framing_len + data_len;
            self.data_len += data_len as u64;
            if self.data_len > limits.body {
                return Err(BODY_TOO_LARGE);
            }
            self.decoder.consume_data(data_len);
        }
        Ok(true)
    }
}
