//! Messages with a delimiter: taken from what has arrived, or read by waiting for the rest.

use std::io::{self, BufRead};

use super::Connection;

impl Connection {
    /// Takes the bytes up to and including `delimiter` from what has arrived, without waiting.
    /// `None`: the delimiter has not arrived. Return [`Next::More`](crate::Next::More) then, or
    /// [`Next::incomplete`](crate::Next::incomplete) if the service is also called without input.
    /// `More` closes the connection at the end of the stream. If a last message without its
    /// delimiter counts: when [`at_eof`](Self::at_eof), it is what is left in the
    /// [`buffer`](Self::buffer).
    ///
    /// # Errors
    ///
    /// `InvalidData` if `limit` bytes have arrived and none of them is the delimiter.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use handover::{Connection, Next};
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     let Some(statement) = conn.take_until(b';', 256)? else {
    ///         return Ok(Next::More);
    ///     };
    ///     conn.write_all(&statement)?;
    ///     Ok(Next::Park)
    /// }
    /// ```
    pub fn take_until(&mut self, delimiter: u8, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.input.bytes();
        let window = &bytes[..bytes.len().min(limit)];
        let Some(at) = window.iter().position(|&byte| byte == delimiter) else {
            return if bytes.len() >= limit {
                Err(self.failed(too_long_error(limit)))
            } else {
                Ok(None)
            };
        };
        let taken = window[..=at].to_vec();
        self.input.consume(taken.len());
        Ok(Some(taken))
    }

    /// As [`take_until`](Self::take_until), but gives a long message in pieces: the bytes up to and
    /// including `delimiter`, or the first `limit` bytes if the delimiter is not among them. At the
    /// end of the stream, the rest is the last piece. A piece without the delimiter at its end is a
    /// part of a message: the service takes the next one, or tells its client that the message is
    /// too long. `limit` is at least 1, and at most [`input_limit`](crate::Builder::input_limit).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use handover::{Connection, Next};
    ///
    /// /// Answers lines of any length, also a last one without its line ending.
    /// fn echo(conn: &mut Connection) -> io::Result<Next> {
    ///     let Some(piece) = conn.take_up_to(b'\n', 4096) else {
    ///         return Ok(Next::More);
    ///     };
    ///     conn.write_all(&piece)?;
    ///     Ok(if piece.ends_with(b"\n") { Next::Park } else { Next::More })
    /// }
    /// # fn is_service(_: impl handover::Service) {}
    /// # is_service(echo);
    /// ```
    pub fn take_up_to(&mut self, delimiter: u8, limit: usize) -> Option<Vec<u8>> {
        let limit = limit.max(1);
        let bytes = self.input.bytes();
        let window = &bytes[..bytes.len().min(limit)];
        let found = window.iter().position(|&byte| byte == delimiter);
        let count = match found {
            Some(at) => at + 1,
            None if window.len() == limit || self.is_input_full() || self.at_eof() => window.len(),
            None => 0,
        };
        let piece = (count > 0).then(|| window[..count].to_vec());
        self.input.consume(count);
        piece
    }

    /// Takes a line from what has arrived, without waiting and without its line ending (`\n` or
    /// `\r\n`). Otherwise as [`take_until`](Self::take_until). `limit` includes the line ending.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the line is too long or not UTF-8.
    pub fn take_line(&mut self, limit: usize) -> io::Result<Option<String>> {
        let Some(line) = self.take_line_bytes(limit)? else {
            return Ok(None);
        };
        let line = String::from_utf8(line).map_err(not_utf8_error);
        line.map(Some).map_err(|error| self.failed(error))
    }

    /// As [`take_line`](Self::take_line), but gives the line's bytes, which may be in any encoding.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the line is too long.
    pub fn take_line_bytes(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(mut line) = self.take_until(b'\n', limit)? else {
            return Ok(None);
        };
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    /// Takes a message with a parser that reads. The parser gets what has arrived, and never waits:
    /// where it would wait for the client, it finds the end of the input. `None` if the parser
    /// fails with `UnexpectedEof`, as `read_exact` does: the message has not arrived completely,
    /// and nothing is taken. Otherwise as [`take_until`](Self::take_until).
    ///
    /// Each call parses the message from its beginning. This costs nothing for a message that
    /// arrives in one piece, and much for a long message in many pieces. The whole message must fit
    /// into [`input_limit`](crate::Builder::input_limit).
    ///
    /// # Errors
    ///
    /// Those of the parser, except `UnexpectedEof`. Nothing is taken then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Read, Write};
    /// use handover::{Connection, Next};
    ///
    /// /// A byte with the length, then the body.
    /// fn read_message(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    ///     let mut length = [0];
    ///     reader.read_exact(&mut length)?;
    ///     let mut body = vec![0; length[0].into()];
    ///     reader.read_exact(&mut body)?;
    ///     Ok(body)
    /// }
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     let Some(body) = conn.take_with(|reader| read_message(reader))? else {
    ///         return Ok(Next::More);
    ///     };
    ///     conn.write_all(&body)?;
    ///     Ok(Next::Park)
    /// }
    /// ```
    pub fn take_with<T>(
        &mut self,
        parse: impl FnOnce(&mut &[u8]) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let mut rest = self.input.bytes();
        let parsed = match parse(&mut rest) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            parsed => parsed,
        };
        let taken = self.input.len().saturating_sub(rest.len());
        let parsed = parsed.map_err(|error| self.failed(error))?;
        self.input.consume(taken);
        Ok(Some(parsed))
    }

    /// Appends the bytes up to and including `delimiter` to `out`, and waits for them: meanwhile
    /// this call holds a worker, and clients that have sent something may wait for one.
    /// [`take_until`](Self::take_until) does not wait. Returns the number of appended bytes. The
    /// delimiter is missing only at the end of the stream; 0 means that the stream has ended
    /// without another byte.
    ///
    /// # Errors
    ///
    /// `InvalidData` if there is no delimiter among the first `limit` bytes; errors of reading.
    pub fn read_until_limited(
        &mut self,
        delimiter: u8,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let mut count = 0;
        loop {
            let bytes = self.fill_buf()?;
            if bytes.is_empty() {
                return Ok(count);
            }
            let window = &bytes[..bytes.len().min(limit - count)];
            let found = window.iter().position(|&byte| byte == delimiter);
            let taken = found.map_or(window.len(), |at| at + 1);
            out.extend_from_slice(&window[..taken]);
            self.consume(taken);
            count += taken;
            if found.is_some() {
                return Ok(count);
            }
            if count == limit {
                return Err(self.failed(too_long_error(limit)));
            }
        }
    }

    /// Appends a line with its line ending to `line`, and waits for it: `BufRead::read_line` with a
    /// limit. The wait holds a worker, see [`read_until_limited`](Self::read_until_limited);
    /// [`take_line`](Self::take_line) does not wait.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the line is longer than `limit` bytes or not UTF-8; errors of reading.
    pub fn read_line_limited(&mut self, limit: usize, line: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let count = self.read_until_limited(b'\n', limit, &mut bytes)?;
        let text = std::str::from_utf8(&bytes).map_err(not_utf8_error);
        line.push_str(text.map_err(|error| self.failed(error))?);
        Ok(count)
    }
}

fn too_long_error(limit: usize) -> io::Error {
    let text = format!("longer than {limit} bytes");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn not_utf8_error(error: impl std::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {error}"))
}
