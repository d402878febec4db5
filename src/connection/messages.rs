//! Taking messages out of a connection: by their delimiter, as far as they have come, or waiting for the rest.

use std::io::{self, BufRead};

use super::Connection;

impl Connection {
    /// Takes everything up to and including `delimiter` out of what has arrived, without waiting. `None` means that
    /// the delimiter is not there yet: return [`Next::More`](crate::Next::More), or, when [`at_eof`](Self::at_eof),
    /// give up.
    ///
    /// # Errors
    ///
    /// `InvalidData` if there is no delimiter among the first `limit` bytes and more than those have come.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use handover::{Connection, Next};
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     match conn.take_until(b';', 256)? {
    ///         Some(statement) => conn.write_all(&statement)?,
    ///         None if conn.at_eof() => return Ok(Next::Close),
    ///         None => return Ok(Next::More),
    ///     }
    ///     Ok(Next::Park)
    /// }
    /// ```
    pub fn take_until(&mut self, delimiter: u8, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.input.bytes();
        let window = &bytes[..bytes.len().min(limit)];
        let Some(at) = window.iter().position(|&byte| byte == delimiter) else {
            return if bytes.len() >= limit {
                Err(too_long(limit))
            } else {
                Ok(None)
            };
        };
        let taken = window[..=at].to_vec();
        self.input.consume(taken.len());
        Ok(Some(taken))
    }

    /// Takes a line out of what has arrived, without waiting and without its line ending (`\n` or `\r\n`). As
    /// [`take_until`](Self::take_until) otherwise; `limit` counts the line ending.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the line is too long or not UTF-8.
    pub fn take_line(&mut self, limit: usize) -> io::Result<Option<String>> {
        let Some(mut line) = self.take_until(b'\n', limit)? else {
            return Ok(None);
        };
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map(Some).map_err(not_utf8)
    }

    /// Appends everything up to and including `delimiter` to `out`, waiting for it. Returns how many bytes that
    /// were; fewer than a whole message, without the delimiter at their end, only at the end of the stream, and 0
    /// for nothing at all.
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
                return Err(too_long(limit));
            }
        }
    }

    /// Appends a line with its line ending to `line`, waiting for it, as `BufRead::read_line` does but with a limit.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the line is longer than `limit` bytes or not UTF-8; errors of reading.
    pub fn read_line_limited(&mut self, limit: usize, line: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let count = self.read_until_limited(b'\n', limit, &mut bytes)?;
        line.push_str(std::str::from_utf8(&bytes).map_err(not_utf8)?);
        Ok(count)
    }
}

fn too_long(limit: usize) -> io::Error {
    let text = format!("no delimiter among the first {limit} bytes");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn not_utf8(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
