//! The decoder of request bodies: finds a body's end, by its length or by its chunks (RFC 9112,
//! sections 6 and 7.1).
//!
//! The decoder accepts input that is split at any byte, and moves no data. It reports how many
//! bytes of framing come next (chunk sizes, line ends, trailers), and how many bytes of data follow
//! them; the caller then consumes both. So one decoder finds out whether the body of a parked
//! connection is complete, reads a body for a handler, and discards a body that no handler wanted.
//!
//! The chunked coding is decoded byte by byte. Every byte that is not in this table is an error:
//!
//! | state | byte | next state |
//! |---|---|---|
//! | `Size` | hexadecimal digit, up to 15 | `Size` |
//! | `Size` after a digit | CR | `SizeLf` |
//! | `Size` after a digit, `SizeSpace` | space, tab | `SizeSpace` |
//! | `Size` after a digit, `SizeSpace` | `;` | `Extension` |
//! | `Extension` | text | `Extension` |
//! | `Extension` | CR | `SizeLf` |
//! | `SizeLf` | LF | `Data`, or `TrailerLine` after size 0 |
//! | `Data` | (the caller consumes the data) | `DataCr` |
//! | `DataCr` | CR | `DataLf` |
//! | `DataLf` | LF | `Size` |
//! | `TrailerLine`, `TrailerName` | token | `TrailerName` |
//! | `TrailerName` | `:` | `TrailerValue` |
//! | `TrailerValue` | text | `TrailerValue` |
//! | `TrailerValue` | CR | `TrailerLf` |
//! | `TrailerLf` | LF | `TrailerLine` |
//! | `TrailerLine` | CR | `EndLf` |
//! | `EndLf` | LF | `Done` |

use DecoderState::*;

use super::rejection::{Rejection, bad_request};

/// The limit of the chunk extensions and trailers of one body together, in bytes.
const MAX_EXTRA: usize = 16 * 1024;

/// A body's framing, and how far the body has been decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyDecoder {
    state: DecoderState,
    /// A chunk's size as far as it has been read; how many bytes of data are left of the chunk, or
    /// of the Content-Length.
    left: u64,
    /// The bytes of chunk extensions and trailers so far.
    extra: usize,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DecoderState {
    /// The data of a body with a Content-Length.
    Length,
    /// A chunk's size, after this many digits.
    Size(u8),
    /// White space after the size. Only an extension may follow.
    SizeSpace,
    Extension,
    SizeLf,
    /// The data of a chunk.
    Data,
    DataCr,
    DataLf,
    /// The start of a trailer field, or of the empty line that ends the body.
    TrailerLine,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    #[default]
    Done,
}

impl BodyDecoder {
    pub(super) fn chunked() -> Self {
        Self::new(Size(0), 0)
    }

    /// `length` is the Content-Length, or 0 for a request without a body.
    pub(super) fn with_length(length: u64) -> Self {
        Self::new(if length > 0 { Length } else { Done }, length)
    }

    fn new(state: DecoderState, left: u64) -> Self {
        Self {
            state,
            left,
            extra: 0,
        }
    }

    /// Whether the body's last byte has been decoded.
    pub(super) fn is_done(&self) -> bool {
        self.state == Done
    }

    /// How many bytes of data come next, arrived or not; 0 if framing comes next.
    pub(super) fn data_left(&self) -> u64 {
        match self.state {
            Length | Data => self.left,
            _ => 0,
        }
    }

    /// How many bytes of data are left of the body; `None` for a chunked body, until its end.
    pub(super) fn remaining(&self) -> Option<u64> {
        matches!(self.state, Length | Done).then_some(self.left)
    }

    /// Decodes the framing at the front of `input`. Returns its length, and the length of the data
    /// that follows it in `input`. If there is no data and the body is not done, all of `input` was
    /// framing.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<(usize, usize), Rejection> {
        let mut framing_len = 0;
        while framing_len < input.len() && !matches!(self.state, Length | Data | Done) {
            self.state = self.state_after(input[framing_len])?;
            framing_len += 1;
        }
        let rest = (input.len() - framing_len) as u64;
        Ok((framing_len, self.data_left().min(rest) as usize))
    }

    /// Notes that the caller has consumed `count` bytes of data.
    pub(super) fn consume_data(&mut self, count: usize) {
        self.left -= count as u64;
        match self.state {
            Length if self.left == 0 => self.state = Done,
            Data if self.left == 0 => self.state = DataCr,
            _ => {}
        }
    }

    fn state_after(&mut self, byte: u8) -> Result<DecoderState, Rejection> {
        let next = match (self.state, byte) {
            (Size(digits), _) if byte.is_ascii_hexdigit() => {
                // 15 digits are more than any disk holds, and cannot overflow.
                if digits == 15 {
                    return Err(bad_request("a chunk size is too large"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                Size(digits + 1)
            }
            (Size(0), _) => return Err(bad_request("a chunk has no size")),
            (Size(_) | Extension, b'\r') => SizeLf,
            (Size(_) | SizeSpace, b';') => Extension,
            (Size(_) | SizeSpace, b' ' | b'\t') => SizeSpace,
            (Extension, _) if is_text(byte) => Extension,
            (SizeLf, b'\n') if self.left > 0 => Data,
            (SizeLf | TrailerLf, b'\n') => TrailerLine,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => Size(0),
            (DataCr | DataLf, _) => {
                return Err(bad_request("a chunk is longer than its size says"));
            }
            (TrailerLine, b'\r') => EndLf,
            (TrailerLine | TrailerName, _) if is_token(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\r') => TrailerLf,
            (TrailerValue, _) if is_text(byte) => TrailerValue,
            (EndLf, b'\n') => Done,
            (TrailerLine | TrailerName | TrailerValue | TrailerLf | EndLf, _) => {
                return Err(bad_request("a trailer is malformed"));
            }
            _ => return Err(bad_request("a chunk's size line is malformed")),
        };
        if matches!(next, SizeSpace | Extension | TrailerName | TrailerValue) {
            self.extra += 1;
            if self.extra > MAX_EXTRA {
                return Err(bad_request("too many chunk extensions or trailers"));
            }
        }
        Ok(next)
    }
}

/// Whether a field's value may contain `byte`: no control characters except the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether a token, such as a field's name, may contain `byte` (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in steps of `step` bytes. Returns the data, and the position of the body's
    /// end, if it was reached.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, Option<usize>), Rejection> {
        let mut decoder = BodyDecoder::chunked();
        let (mut data, mut start, mut end) = (Vec::new(), 0, step);
        while start < input.len() {
            let (framing_len, data_len) = decoder.decode(&input[start..end.min(input.len())])?;
            start += framing_len;
            data.extend_from_slice(&input[start..start + data_len]);
            decoder.consume_data(data_len);
            start += data_len;
            if decoder.is_done() {
                return Ok((data, Some(start)));
            }
            end = (start + step).max(end);
        }
        Ok((data, None))
    }

    #[test]
    fn chunks_extensions_and_trailers_come_out_the_same_at_any_boundary() {
        let input =
            b"5\r\nhello\r\n00006 ; a=\"b\"\r\n world\r\n0;last\r\nX-Sum: 1\r\nY:\r\n\r\nGET ";
        for step in 1..=input.len() {
            let (data, end) = decode(input, step).unwrap();
            assert_eq!(data, b"hello world");
            assert_eq!(end, Some(input.len() - 4), "in steps of {step}");
        }
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        for input in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\na",
            b"1\na",
            b"1\rx",
            b"1;\x00\r\n",
            b"1;a\nb\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1000000000000000\r\n",
            b"ffffffffffffffffffff\r\n",
            b"0\r\n bad: 1\r\n",
            b"0\r\nbad : 1\r\n",
            b"0\r\n: 1\r\n",
            b"0\r\nbad: 1\n\r\n",
            b"0\r\nbad: \x00\r\n",
            b"0\r\nbad\r\n",
            b"0\r\n\n",
        ] {
            for step in [1, input.len()] {
                let text = String::from_utf8_lossy(input);
                assert!(decode(input, step).is_err(), "{text:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "x".repeat(MAX_EXTRA);
        assert!(decode(format!("1;{long}").as_bytes(), 999).is_err());
        assert!(decode(format!("0\r\na:{long}").as_bytes(), 999).is_err());
        let many = "1;xxx\r\na\r\n".repeat(MAX_EXTRA);
        assert!(decode(many.as_bytes(), 999).is_err());
    }

    #[test]
    fn a_body_with_a_length_has_no_framing() {
        let mut decoder = BodyDecoder::with_length(5);
        assert_eq!(decoder.decode(b"hello world"), Ok((0, 5)));
        decoder.consume_data(5);
        assert!(decoder.is_done());
        assert_eq!(decoder.decode(b" world"), Ok((0, 0)));
    }
}
