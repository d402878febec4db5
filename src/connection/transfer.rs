//! Moving bytes between the socket and the buffers: at once, or waiting under a deadline.

#[cfg(feature = "http")]
use std::fs::File;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{Connection, Filled, READ_SIZE};
use crate::sys::{self, Interest};

/// How long a wait for writing lasts at most before the socket is tried. A kernel may report room
/// only when a third of its buffer is free, and a slow client can need longer for that than its
/// time-out.
const WRITE_SLICE: Duration = Duration::from_millis(100);

impl Connection {
    pub(super) fn wait(&mut self, interest: Interest) -> io::Result<sys::Ready> {
        loop {
            if self.info.open_connection.drain().is_forced() {
                return Err(server_stopped_error());
            }
            let now = Instant::now();
            let deadline = match interest {
                Interest::Read => self.read_deadline(now),
                Interest::Write => self.write_deadline(now),
                Interest::Both => self.read_deadline(now).earlier(self.write_deadline(now)),
            };
            // Input that has arrived by now is in time, however late the service asks for it.
            let late = deadline.has_passed(now);
            if late && (interest == Interest::Write || self.read.hard.has_passed(now)) {
                return Err(client_too_slow_error(interest));
            }
            let slice = match interest {
                Interest::Read => sys::socket::MAX_WAIT,
                Interest::Write | Interest::Both => Some(WRITE_SLICE),
            };
            let slice = match (deadline.time_left(now), slice) {
                (Some(left), Some(slice)) => Some(left.min(slice)),
                (left, slice) => left.or(slice),
            };
            self.info.activity.is_waiting.store(true, Relaxed);
            let ready = sys::socket::wait_ready(&self.info.socket, interest, slice);
            self.info.activity.is_waiting.store(false, Relaxed);
            let ready = ready?;
            let now = Instant::now();
            self.read.pause(now);
            self.write.pause(now);
            if ready.readable || ready.writable {
                return Ok(ready);
            }
            if late {
                return Err(client_too_slow_error(interest));
            }
            if interest != Interest::Read {
                return Ok(sys::Ready {
                    readable: false,
                    writable: true,
                });
            }
        }
    }

    /// Waits until there may be something to read. Writes buffered output meanwhile: the client may
    /// wait for this output before it sends more.
    fn wait_readable(&mut self) -> io::Result<()> {
        loop {
            if self.output.is_empty() {
                self.wait(Interest::Read)?;
                return Ok(());
            }
            let ready = self.wait(Interest::Both)?;
            if ready.writable {
                self.flush_some()?;
            }
            if ready.readable {
                return Ok(());
            }
        }
    }

    /// One read from the socket: into `into`, or into the buffer.
    fn receive(&mut self, into: Option<&mut [u8]>) -> io::Result<(Filled, usize)> {
        if self.receive.is_ended() {
            return Ok((Filled::Eof, 0));
        }
        let buffered = into.is_none();
        let room = match into {
            Some(into) => into,
            None => self.input.room(self.input_limit)?,
        };
        match sys::socket::recv(&self.info.socket, room) {
            Ok(0) if self.info.open_connection.drain().is_forced() => Err(server_stopped_error()),
            Ok(0) => {
                self.receive.on_end();
                Ok((Filled::Eof, 0))
            }
            Ok(count) => {
                // A second read after a short one would mostly find nothing.
                let may_have_more = count == room.len() || !self.info.is_empty_after_short_read();
                self.receive.on_bytes(may_have_more);
                if self.receive.is_emptied() {
                    self.note_emptied();
                }
                if buffered {
                    self.input.add_filled(count);
                }
                self.bytes_in += count as u64;
                self.info.activity.count_move();
                self.end_write_stretch();
                Ok((Filled::Bytes, count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.receive.on_would_block();
                self.note_emptied();
                Ok((Filled::Nothing, 0))
            }
            Err(error) => Err(error),
        }
    }

    fn note_emptied(&mut self) {
        if let Some(limit) = &mut self.drain_limit {
            limit.emptied = true;
        }
    }

    /// Reads more into the buffer without waiting.
    pub(crate) fn try_fill(&mut self) -> io::Result<Filled> {
        Ok(self.receive(None)?.0)
    }

    /// Reads and discards, without waiting. Returns how many bytes, and how the read ended.
    pub(crate) fn discard(&mut self, scratch: &mut [u8]) -> io::Result<(usize, Filled)> {
        let buffered = self.input.len();
        self.input.consume(buffered);
        let (filled, count) = self.receive(Some(scratch))?;
        Ok((buffered + count, filled))
    }

    /// Writes what the socket takes now. True when no output is left.
    #[inline]
    pub(crate) fn flush_some(&mut self) -> io::Result<bool> {
        if !self.output.is_empty() {
            let count = self.output.flush(&self.info.socket)?;
            self.note_sent(count);
            if self.may_have_deadline && self.output.is_empty() {
                self.write.pause(Instant::now());
            }
        }
        Ok(self.output.is_empty())
    }

    /// Writes what the socket takes now. True if the socket took anything.
    pub(crate) fn flush_made_progress(&mut self) -> io::Result<bool> {
        let before = self.bytes_out;
        self.flush_some()?;
        Ok(self.bytes_out > before)
    }

    pub(super) fn note_sent(&mut self, count: usize) {
        // Written bytes end a stretch of reading. An attempt that writes nothing does not.
        if count > 0 {
            self.bytes_out += count as u64;
            self.info.activity.count_move();
            self.end_message();
        }
    }

    fn end_write_stretch(&mut self) {
        if self.may_have_deadline {
            self.write.reset();
        }
    }

    /// Sends the parts in one call, and buffers what the socket does not take. Returns how many
    /// bytes were sent or buffered. Waits only if that would be 0.
    fn write_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_detached() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        loop {
            let mut count = 0;
            if self.flush_some()? {
                let sent = match parts {
                    [part] => sys::socket::send(&self.info.socket, part),
                    parts => sys::socket::send_vectored(&self.info.socket, parts),
                };
                count = match sent {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    sent => sent?,
                };
                self.note_sent(count);
                if count == total {
                    return Ok(count);
                }
            }
            let mut skip = count;
            for part in parts {
                let Some(rest) = part.get(skip..) else {
                    skip -= part.len();
                    continue;
                };
                skip = 0;
                let kept = self.output.keep(rest, self.output_limit);
                count += kept;
                if kept < rest.len() {
                    break;
                }
            }
            if count > 0 {
                return Ok(count);
            }
            self.wait(Interest::Write)?;
        }
    }

    /// Sends what the socket takes at once, and forgets the rest.
    pub(crate) fn send_unbuffered(&mut self, bytes: &[u8]) -> io::Result<()> {
        match sys::socket::send(&self.info.socket, bytes) {
            Ok(count) => self.note_sent(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Sends up to `length` bytes of a file, from its position on, without copying them. Waits for
    /// the client to read as long as more is left than the output buffer takes. Returns fewer bytes
    /// where the system cannot do this, or where the file ends.
    #[cfg(feature = "http")]
    pub(crate) fn send_file(&mut self, file: &File, length: u64) -> io::Result<u64> {
        let mut sent = 0;
        while sent < length {
            let left = usize::try_from(length - sent).unwrap_or(usize::MAX);
            let moved = match self.flush_some()? {
                true => sys::socket::send_file(&self.info.socket, file, left),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
            match moved {
                Ok(None | Some(0)) => break,
                Ok(Some(count)) => {
                    sent += count as u64;
                    self.note_sent(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if left <= self.output_limit.saturating_sub(self.output.len()) {
                        break;
                    }
                    self.wait(Interest::Write)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // A large read goes past the buffer, unless there is something in it.
        if self.input.is_empty() && into.len() >= READ_SIZE {
            loop {
                if !self.receive.is_emptied() {
                    let (filled, count) = self.receive(Some(into))?;
                    if filled != Filled::Nothing {
                        return Ok(count);
                    }
                }
                self.wait_readable()?;
                self.receive.on_event(false);
            }
        }
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.input.consume(count);
        Ok(count)
    }
}

impl BufRead for Connection {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.input.is_empty() && !self.receive.is_ended() {
            if !self.receive.is_emptied() && self.try_fill()? != Filled::Nothing {
                break;
            }
            self.wait_readable()?;
            self.receive.on_event(false);
        }
        Ok(self.input.bytes())
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.input.consume(count);
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_parts(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_parts(parts)
    }

    /// Writes what the kernel takes now, without waiting. The rest is written as the client reads.
    /// See [`flush_all`](Connection::flush_all).
    fn flush(&mut self) -> io::Result<()> {
        self.flush_some().map(drop)
    }
}

fn client_too_slow_error(interest: Interest) -> io::Error {
    let text = match interest {
        Interest::Write => "the client did not read in time",
        Interest::Read | Interest::Both => "the client did not send in time",
    };
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn server_stopped_error() -> io::Error {
    let text = "the server is stopped: the drain time-out has passed";
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}
