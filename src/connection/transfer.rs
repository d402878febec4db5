//! Moving bytes between the socket and the buffers: at once, or waiting under a deadline.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::output::{FileError, FileRange, Flushed, TURN_SIZE};
use super::{Connection, Filled, READ_SIZE};
use crate::log;
use crate::sys::{self, Interest};

/// How long a wait for writing lasts at most before the socket is tried. A kernel may report room
/// only when a third of its buffer is free, and a slow client can need longer for that than its
/// time-out.
const WRITE_SLICE: Duration = Duration::from_millis(100);

/// Owned bytes up to this size are copied behind what is gathered, so that they leave together.
const COPY_LIMIT: usize = 8 * 1024;

impl Connection {
    pub(super) fn wait(&mut self, interest: Interest) -> io::Result<sys::Ready> {
        self.has_waited_for_input |= interest != Interest::Write;
        let ready = self.wait_for_client(interest);
        ready.map_err(|error| self.failed(error))
    }

    fn wait_for_client(&mut self, interest: Interest) -> io::Result<sys::Ready> {
        self.release_answer();
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

    /// Waits until there may be something to read. Writes the output before and meanwhile: the
    /// client may wait for this output before it sends more.
    fn wait_readable(&mut self) -> io::Result<()> {
        let mut flushed = self.flush_some()?;
        loop {
            if flushed == Flushed::All {
                self.wait(Interest::Read)?;
                return Ok(());
            }
            let ready = self.wait(Interest::Both)?;
            if ready.writable {
                flushed = self.flush_some()?;
            }
            if ready.readable {
                return Ok(());
            }
        }
    }

    /// One read from the socket: into `into`, or into the buffer.
    pub(super) fn receive(&mut self, into: Option<&mut [u8]>) -> io::Result<(Filled, usize)> {
        if self.receive.is_ended() {
            return Ok((Filled::Eof, 0));
        }
        let buffered = into.is_none();
        let room = match into {
            Some(into) => into,
            None => match self.input.room(self.input_limit) {
                Ok(room) => room,
                Err(error) => return Err(self.failed(error)),
            },
        };
        match sys::socket::recv(&self.info.socket, room) {
            Ok(0) if self.info.open_connection.drain().is_forced() => {
                Err(self.failed(server_stopped_error()))
            }
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
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Notes that reading or writing has failed. If the service passes the error on, it is not one
    /// of its own.
    #[cold]
    pub(super) fn failed(&mut self, error: io::Error) -> io::Error {
        self.has_failed = true;
        error
    }

    fn note_emptied(&mut self) {
        if let Some(limit) = &mut self.drain_limit {
            limit.note_emptied();
        }
    }

    /// Reads more into the buffer without waiting.
    pub(crate) fn try_fill(&mut self) -> io::Result<Filled> {
        Ok(self.receive(None)?.0)
    }

    /// Reads a part of a message that may be longer than the input limit, past the buffer, which
    /// must be empty. Does not wait. The bytes count as those of `consume_spooled` do.
    #[cfg(feature = "http")]
    pub(crate) fn receive_spooled(&mut self, into: &mut [u8]) -> io::Result<usize> {
        debug_assert!(self.input.is_empty());
        let before = self.consumed();
        let (_, count) = self.receive(Some(into))?;
        self.exempt_from_drain_limit(before);
        Ok(count)
    }

    /// Reads and discards, without waiting. Returns how many bytes, and how the read ended.
    pub(crate) fn discard(&mut self, scratch: &mut [u8]) -> io::Result<(usize, Filled)> {
        let buffered = self.input.len();
        self.input.consume(buffered);
        let (filled, count) = self.receive(Some(scratch))?;
        Ok((buffered + count, filled))
    }

    /// Writes what the socket takes now, at most what one turn allows.
    #[inline]
    pub(crate) fn flush_some(&mut self) -> io::Result<Flushed> {
        self.reclaim_output()?;
        if self.output.is_empty() {
            return Ok(Flushed::All);
        }
        let flushed = self.output.flush(&self.info.socket);
        self.note_flushed(flushed)
    }

    /// As [`flush_some`](Self::flush_some), between two calls of the service: writes the outbox as
    /// well.
    #[inline]
    pub(crate) fn flush_all_sources(&mut self) -> io::Result<Flushed> {
        match &self.outbox {
            None => self.flush_some(),
            Some(outbox) if outbox.breaks_connection() => {
                let text = "the outbox is full: the client reads too slowly";
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Some(_) => match self.flush_some()? {
                Flushed::All => self.flush_outbox(),
                flushed => Ok(flushed),
            },
        }
    }

    /// Writes the messages of the outbox. All other output is written.
    fn flush_outbox(&mut self) -> io::Result<Flushed> {
        let before = self.bytes_out;
        loop {
            let Some(outbox) = &self.outbox else {
                return Ok(Flushed::All);
            };
            if outbox.take_batch(|message| self.output.queue_message(message)) == 0 {
                return Ok(Flushed::All);
            }
            // With output in the queue, the poller reports the connection for the next turn.
            if self.bytes_out - before > TURN_SIZE as u64 {
                self.must_rearm = true;
                return Ok(Flushed::TurnOver);
            }
            let flushed = self.flush_some()?;
            if flushed != Flushed::All {
                return Ok(flushed);
            }
        }
    }

    /// As `flush_some`, but leaves what is gathered.
    fn flush_queue(&mut self) -> io::Result<Flushed> {
        let flushed = self.output.send_queue(&self.info.socket);
        self.note_flushed(flushed)
    }

    fn note_flushed(&mut self, flushed: io::Result<(usize, Flushed)>) -> io::Result<Flushed> {
        let (count, flushed) = flushed.inspect_err(|error| match FileError::is_in(error) {
            true => log::error!("{}: {error}", self.info),
            false => self.has_failed = true,
        })?;
        self.note_sent(count);
        self.must_rearm = flushed == Flushed::TurnOver;
        if self.may_have_deadline && flushed == Flushed::All {
            self.write.pause(Instant::now());
        }
        Ok(flushed)
    }

    /// Writes what the socket takes now. True if the socket took anything.
    pub(crate) fn flush_made_progress(&mut self) -> io::Result<bool> {
        let before = self.bytes_out;
        self.flush_all_sources()?;
        Ok(self.bytes_out > before)
    }

    pub(super) fn note_sent(&mut self, count: usize) {
        if count > 0 {
            self.bytes_out += count as u64;
            self.info.activity.count_move();
            // What the service has written ends a stretch of reading. Messages of other threads do
            // not: they may come while the client is in the middle of its own message.
            if count > self.output.take_message_bytes() {
                self.end_read_stretch();
            }
        }
    }

    fn end_write_stretch(&mut self) {
        if self.may_have_deadline {
            self.write.reset();
        }
    }

    /// Gathers the parts. If they are too long for that, sends them together with what is gathered,
    /// and buffers what the socket does not take, up to `limit`. Returns how many bytes were taken.
    /// Waits only if that would be 0.
    fn write_parts(&mut self, parts: &[IoSlice<'_>], limit: usize) -> io::Result<usize> {
        loop {
            if let Some(count) = self.try_write_parts(parts, limit)? {
                return Ok(count);
            }
            self.wait(Interest::Write)?;
        }
    }

    /// As `write_parts`, but never waits: `None` if it would have to.
    fn try_write_parts(
        &mut self,
        parts: &[IoSlice<'_>],
        limit: usize,
    ) -> io::Result<Option<usize>> {
        if self.is_detached() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total <= self.output.gather_room(limit) {
            for part in parts {
                self.output.gathered().extend_from_slice(part);
            }
            return Ok(Some(total));
        }
        let mut count = self.send_at_once(parts)?;
        if count < total {
            count += self.output.queue_parts(parts, count, limit);
        }
        Ok((count > 0).then_some(count))
    }

    /// Sends the queue, then what is gathered and the parts in one call, as far as the socket takes
    /// them. Returns how many bytes of the parts were sent.
    fn send_at_once(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.flush_queue()? != Flushed::All {
            return Ok(0);
        }
        let sent = self.output.send_gathered(&self.info.socket, parts);
        let (count, of_parts) = sent.map_err(|error| self.failed(error))?;
        self.note_sent(count);
        Ok(of_parts)
    }

    /// As `write` with several parts, but takes all of them, without waiting.
    #[cfg(feature = "http")]
    pub(crate) fn write_whole(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.reclaim_output()?;
        self.write_parts(parts, usize::MAX).map(drop)
    }

    /// A write of the service. While the service goes on, the keeper may send what is gathered.
    fn write_shared(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(count) = self.add_to_lent(parts) {
            return Ok(count);
        }
        self.reclaim_output()?;
        let count = self.write_parts(parts, self.output_limit)?;
        self.lend_output();
        Ok(count)
    }

    /// As `write_shared`, but takes all parts or none, and never waits: `None` if the output that
    /// waits for the client has reached the limit.
    pub(super) fn try_write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if let Some(count) = self.add_to_lent(parts) {
            return Ok(Some(count));
        }
        self.reclaim_output()?;
        if !self.has_output_room()? {
            return Ok(None);
        }
        let count = self.try_write_parts(parts, usize::MAX)?;
        self.lend_output();
        Ok(count)
    }

    /// Whether less output than the limit waits for the client. Tries to send it before.
    pub(super) fn has_output_room(&mut self) -> io::Result<bool> {
        if self.has_output() {
            self.flush_some()?;
        }
        Ok(!self.has_output() || self.output.len() < self.output_limit)
    }

    /// Adds the parts to the output that is lent to the keeper, if it is, and has room.
    #[inline]
    fn add_to_lent(&mut self, parts: &[IoSlice<'_>]) -> Option<usize> {
        if !self.is_lent {
            return None;
        }
        let room = self.output.gather_room(self.output_limit);
        let count = self.info.early_output.add(parts, room)?;
        self.early_outputs.note_use();
        Some(count)
    }

    /// Writes bytes that the connection then owns: takes all of them, whatever the output limit is,
    /// and never waits. What the client does not read at once is not copied, and is sent as the
    /// client reads, also while the connection is parked. So bytes of any size occupy no worker.
    ///
    /// A service that writes more and more of them returns [`Next::Again`](crate::Next::Again)
    /// after each: it is called again when they are sent.
    ///
    /// # Errors
    ///
    /// Errors of writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io;
    /// use handover::{Connection, Next};
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     conn.write_owned(vec![b'x'; 20 << 20])?;
    ///     conn.write_owned("\nend\n".as_bytes())?;
    ///     Ok(Next::Close)
    /// }
    /// ```
    pub fn write_owned(&mut self, bytes: impl Into<Cow<'static, [u8]>>) -> io::Result<()> {
        self.reclaim_output()?;
        self.take_owned(bytes.into())?;
        self.lend_output();
        Ok(())
    }

    /// As [`write_owned`](Self::write_owned), but lends no output.
    #[inline]
    pub(crate) fn take_owned(&mut self, bytes: Cow<'static, [u8]>) -> io::Result<()> {
        if self.is_detached() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if bytes.len() <= COPY_LIMIT && bytes.len() <= self.output.gather_room(usize::MAX) {
            self.output.gathered().extend_from_slice(&bytes);
            return Ok(());
        }
        let sent = self.send_at_once(&[IoSlice::new(&bytes)])?;
        if sent < bytes.len() {
            self.output.queue_owned(bytes, sent);
        }
        Ok(())
    }

    /// Sends the bytes of a file at the offsets in `range`, as
    /// [`write_owned`](Self::write_owned) sends bytes: it never waits, and the connection owns the
    /// file until it is sent. Where the system can send files (`sendfile(2)`), they are not copied
    /// through this process. The file's own position is neither used nor moved, so that an `Arc` of
    /// one file can serve many connections.
    ///
    /// If the file turns out to be shorter, the connection is closed, and an error is logged.
    ///
    /// # Errors
    ///
    /// Errors of reading a regular file, and of writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs::File;
    /// use std::io::{self, Write};
    /// use handover::{Connection, Next};
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     let file = File::open("big.iso")?;
    ///     let length = file.metadata()?.len();
    ///     writeln!(conn, "{length}")?;
    ///     conn.send_file(file, 0..length)?;
    ///     Ok(Next::Close)
    /// }
    /// ```
    pub fn send_file(&mut self, file: impl Into<Arc<File>>, range: Range<u64>) -> io::Result<()> {
        self.reclaim_output()?;
        if self.is_detached() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let (file, position) = (file.into(), range.start);
        let left = range.end.saturating_sub(position);
        if left == 0 {
            return Ok(());
        }
        self.output.queue_file(FileRange {
            file,
            position,
            left,
        });
        self.flush_some().map(drop)
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
}

/// Reads as a blocking socket does: waits until something has arrived, and holds a worker meanwhile.
/// In a call for input, the first read finds this input and does not wait.
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

/// `fill_buf`, and what calls it (`read_line`, `lines`), waits for the client and holds a worker
/// meanwhile. [`buffer`](Connection::buffer) does not wait. `read_line` and `lines` accept a line of
/// any length: see [`read_line_limited`](Connection::read_line_limited).
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
        self.write_shared(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_shared(parts)
    }

    /// Writes what the kernel takes now, without waiting. The rest is written as the client reads.
    /// See [`flush_all`](Connection::flush_all).
    ///
    /// While the server drains, the last segment leaves when the call of the service ends, or after
    /// 0.2 s, so that the end of the stream can leave with it.
    fn flush(&mut self) -> io::Result<()> {
        self.hold_answer();
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
