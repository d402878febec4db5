//! The client's side of an event stream: the response's head, its chunks if it has chunks, and its events.

/// Longer lines are cut: the counter and the time, which are all that is read, stand at the start.
const LINE_LIMIT: usize = 64;
/// How much of a response's head is kept to be read.
const HEAD_LIMIT: usize = 4096;

/// A response that is read as it arrives.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    framing: Framing,
    /// What has been read of the head or of the present line.
    line: Vec<u8>,
}

#[derive(Debug, Default, PartialEq)]
enum Framing {
    #[default]
    Head,
    /// Everything up to the end of the connection is the body.
    UntilClose,
    /// In the line that says how long the next chunk is.
    ChunkSize(usize),
    /// In a chunk, of which so many bytes are to come, or in the line end after it.
    Chunk(usize),
    Ended,
}

/// What the server did that is no event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAnEventStream;

impl EventStream {
    /// Whether the response's head is complete.
    pub(crate) fn has_head(&self) -> bool {
        self.framing != Framing::Head
    }

    /// Reads what has arrived, and calls `on_data` with the first bytes of each line of data.
    pub(crate) fn read(
        &mut self,
        mut input: &[u8],
        mut on_data: impl FnMut(&[u8]),
    ) -> Result<(), NotAnEventStream> {
        while let Some(&byte) = input.first() {
            match self.framing {
                Framing::Head => {
                    self.line.push(byte);
                    input = &input[1..];
                    if self.line.ends_with(b"\r\n\r\n") {
                        self.framing = framing(&self.line)?;
                        self.line.clear();
                    } else if self.line.len() > HEAD_LIMIT {
                        return Err(NotAnEventStream);
                    }
                }
                Framing::UntilClose => {
                    self.read_lines(input, &mut on_data);
                    return Ok(());
                }
                Framing::ChunkSize(size) => {
                    input = &input[1..];
                    self.framing = match (byte, char::from(byte).to_digit(16)) {
                        (_, Some(digit)) => Framing::ChunkSize(size * 16 + digit as usize),
                        (b'\r', _) => Framing::ChunkSize(size),
                        (b'\n', _) if size == 0 => Framing::Ended,
                        // The chunk is followed by a line end of two bytes.
                        (b'\n', _) => Framing::Chunk(size + 2),
                        _ => return Err(NotAnEventStream),
                    };
                }
                Framing::Chunk(left) => {
                    let here = input.len().min(left);
                    let data = here.min(left.saturating_sub(2));
                    self.read_lines(&input[..data], &mut on_data);
                    input = &input[here..];
                    self.framing = match left - here {
                        0 => Framing::ChunkSize(0),
                        left => Framing::Chunk(left),
                    };
                }
                // The last chunk's trailer.
                Framing::Ended => return Ok(()),
            }
        }
        Ok(())
    }

    fn read_lines(&mut self, mut input: &[u8], on_data: &mut impl FnMut(&[u8])) {
        while !input.is_empty() {
            let end = input.iter().position(|&byte| byte == b'\n');
            let part = &input[..end.unwrap_or(input.len())];
            let room = LINE_LIMIT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let Some(end) = end else { return };
            if let Some(data) = self.line.strip_prefix(b"data:") {
                on_data(data.strip_prefix(b" ").unwrap_or(data));
            }
            self.line.clear();
            input = &input[end + 1..];
        }
    }
}

fn framing(head: &[u8]) -> Result<Framing, NotAnEventStream> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let is_ok = head.starts_with("http/1.1 200 ");
    if !is_ok || !head.contains("\r\ncontent-type: text/event-stream") {
        return Err(NotAnEventStream);
    }
    let chunked = head.contains("\r\ntransfer-encoding: chunked");
    Ok(if chunked {
        Framing::ChunkSize(0)
    } else {
        Framing::UntilClose
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";

    /// The data of a response that arrives in pieces of so many bytes.
    fn data(response: &str, piece: usize) -> Vec<String> {
        let mut stream = EventStream::default();
        let mut found = Vec::new();
        for piece in response.as_bytes().chunks(piece) {
            let outcome = stream.read(piece, |data| {
                found.push(String::from_utf8_lossy(data).into_owned());
            });
            assert_eq!(outcome, Ok(()));
        }
        found
    }

    #[test]
    fn events_are_found_wherever_the_reads_cut_them() {
        let chunked = format!(
            "{HEAD}Transfer-Encoding: chunked\r\n\r\n\
             B\r\ndata: 1 2\n\n\r\n6\r\n: beat\r\nc\r\n\n\ndata: 3\nda\r\n6\r\nta:4\n\n\r\n0\r\n\r\n"
        );
        let plain = format!("{HEAD}\r\n:\n\nid: 7\ndata: 1 2\n\ndata:4\n\ndata: cut");
        for piece in 1..60 {
            assert_eq!(data(&chunked, piece), ["1 2", "3", "4"]);
            assert_eq!(data(&plain, piece), ["1 2", "4"]);
        }
    }

    #[test]
    fn another_response_is_refused() {
        for head in ["HTTP/1.1 503 Busy\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            let outcome = EventStream::default().read(head.as_bytes(), |_| {});
            assert_eq!(outcome, Err(NotAnEventStream));
        }
    }
}
