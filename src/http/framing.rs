//! Where a message's body ends: its length, or its chunks (RFC 9112, section 6).
//!
//! The decoder is fed from any buffer, at any boundary, and moves no data: it says how many bytes of framing come
//! next, and how many of data follow them. So the same code finds out whether a body is complete while its connection
//! is parked, hands it to a handler, and throws away what no handler wanted.

/// What chunk extensions and trailers of one body may take together, in bytes.
const EXTRA: usize = 16 * 1024;

/// A body's framing, as far as it has been decoded.
#[derive(Clone, Debug)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunked),
}

/// A body that is not framed as it should be: what follows it in the stream could be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked {
            at: At::Size { digits: 0 },
            left: 0,
            extra: 0,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.at == At::Done,
        }
    }

    /// How many bytes of data come next, whether they have arrived or not; 0 if framing does.
    pub(super) fn due(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(chunked) if chunked.at == At::Data => chunked.left,
            Self::Chunked(_) => 0,
        }
    }

    /// Decodes framing at the front of `input`: how many bytes that is, and how many bytes of data lie behind it.
    /// Without data and unless it is done now, all of `input` was framing.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<(usize, usize), Malformed> {
        let framing = match self {
            Self::Length(_) => 0,
            Self::Chunked(chunked) => chunked.decode(input)?,
        };
        let behind = input.len() - framing;
        let data = usize::try_from(self.due()).map_or(behind, |due| due.min(behind));
        Ok((framing, data))
    }

    /// So many bytes of data were taken.
    pub(super) fn take(&mut self, count: usize) {
        match self {
            Self::Length(left) => *left -= count as u64,
            Self::Chunked(chunked) => {
                chunked.left -= count as u64;
                if chunked.left == 0 {
                    chunked.at = At::DataCr;
                }
            }
        }
    }
}

/// The chunked coding (RFC 9112, section 7.1).
#[derive(Clone, Debug)]
pub(super) struct Chunked {
    at: At,
    /// The size of the chunk so far, then what is left of its data.
    left: u64,
    extra: usize,
}

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size {
        digits: u8,
    },
    /// White space that a `;` must follow.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer field, or the end.
    Line,
    Name,
    Value,
    ValueLf,
    EndLf,
    Done,
}

impl Chunked {
    fn decode(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        for (index, &byte) in input.iter().enumerate() {
            if matches!(self.at, At::Data | At::Done) {
                return Ok(index);
            }
            self.at = self.after(byte)?;
        }
        Ok(input.len())
    }

    fn after(&mut self, byte: u8) -> Result<At, Malformed> {
        let next = match (self.at, byte) {
            (At::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                // 15 digits are more than any disk holds, and far from an overflow.
                if digits == 15 {
                    return Err(Malformed("a chunk size is too large"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                At::Size { digits: digits + 1 }
            }
            (At::Size { digits: 0 }, _) => return Err(Malformed("a chunk has no size")),
            (At::Size { .. }, b'\r') => At::SizeLf,
            (At::Size { .. } | At::Space, b';') => self.extra(At::Extension)?,
            (At::Size { .. } | At::Space, b' ' | b'\t') => self.extra(At::Space)?,
            (At::Extension, b'\r') => At::SizeLf,
            (At::Extension, _) if is_text(byte) => self.extra(At::Extension)?,
            (At::SizeLf, b'\n') if self.left > 0 => At::Data,
            (At::SizeLf, b'\n') => At::Line,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { digits: 0 },
            (At::DataCr | At::DataLf, _) => {
                return Err(Malformed("a chunk is longer than its size says"));
            }
            (At::Line, b'\r') => At::EndLf,
            (At::Line | At::Name, _) if is_token(byte) => self.extra(At::Name)?,
            (At::Name, b':') => self.extra(At::Value)?,
            (At::Value, b'\r') => At::ValueLf,
            (At::Value, _) if is_text(byte) => self.extra(At::Value)?,
            (At::ValueLf, b'\n') => At::Line,
            (At::EndLf, b'\n') => At::Done,
            (At::Line | At::Name | At::Value | At::ValueLf | At::EndLf, _) => {
                return Err(Malformed("a trailer is malformed"));
            }
            _ => return Err(Malformed("a chunk's size line is malformed")),
        };
        Ok(next)
    }

    fn extra(&mut self, next: At) -> Result<At, Malformed> {
        self.extra += 1;
        if self.extra > EXTRA {
            return Err(Malformed("too many chunk extensions or trailers"));
        }
        Ok(next)
    }
}

/// What may be in a field's value: no control characters but the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What may be in a field's name (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input`, given in pieces of `step` bytes: the data, and what is behind the body.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, Option<usize>), Malformed> {
        let mut framing = Framing::chunked();
        let (mut data, mut at, mut end) = (Vec::new(), 0, step);
        while at < input.len() {
            let (skip, count) = framing.decode(&input[at..end.min(input.len())])?;
            at += skip;
            data.extend_from_slice(&input[at..at + count]);
            framing.take_some(count);
            at += count;
            if framing.is_done() {
                return Ok((data, Some(at)));
            }
            end = (at + step).max(end);
        }
        Ok((data, None))
    }

    impl Framing {
        fn take_some(&mut self, count: usize) {
            if count > 0 {
                self.take(count);
            }
        }
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
    fn what_is_not_chunked_is_refused() {
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
        let long = "x".repeat(EXTRA);
        assert!(decode(format!("1;{long}").as_bytes(), 999).is_err());
        assert!(decode(format!("0\r\na:{long}").as_bytes(), 999).is_err());
        let many = "1;xxx\r\na\r\n".repeat(EXTRA);
        assert!(decode(many.as_bytes(), 999).is_err());
    }

    #[test]
    fn a_length_is_all_data() {
        let mut framing = Framing::Length(5);
        assert_eq!(framing.decode(b"hello world"), Ok((0, 5)));
        framing.take(5);
        assert!(framing.is_done());
        assert_eq!(framing.decode(b" world"), Ok((0, 0)));
    }
}
