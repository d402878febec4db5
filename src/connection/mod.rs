//! A connection: `Read`, `BufRead` and `Write` with total deadlines over a socket that never blocks.
//!
//! Every call tries the socket first, and waits with `poll` for what is left of a deadline only when the socket has
//! nothing to give. What the client sent too early stays in one buffer that survives parking, and what it does not
//! read in time stays in a bounded one, so that neither costs a thread.

mod input;
mod output;
mod pace;

use std::fmt;
#[cfg(feature = "http")]
use std::fs::File;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::addr::Addr;
use crate::clock::{Deadline, in_millis};
use crate::drain::InFlight;
use crate::listener::About;
use crate::sys::{self, Interest, Poller, Stream};

use input::Input;
pub(crate) use input::READ_SIZE;
use output::Output;
use pace::Pace;

/// How long a wait for writing lasts at most before the socket is tried. A kernel may say that there is room only when a
/// third of the buffer is free, and a slow client can take longer over that than its time-out.
const WRITE_SLICE: Duration = Duration::from_millis(100);

/// The limits that every connection of a server starts with.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) first_byte_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) min_rate: u32,
    pub(crate) input_limit: usize,
    pub(crate) output_limit: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            min_rate: 1024,
            input_limit: 1024 * 1024,
            output_limit: 64 * 1024,
        }
    }
}

/// What is known of a connection without having it in hand. It owns the socket, so that a stop can shut down the
/// socket of a connection that a handler holds.
pub(crate) struct Info {
    pub(crate) socket: Socket,
    pub(crate) peer: Addr,
    pub(crate) about: Arc<About>,
    /// What must end with the connection: its counts.
    pub(crate) in_flight: InFlight,
    pub(crate) _ticket: Option<Box<dyn Send + Sync>>,
}

/// Client and listener, as every record of the log names a connection.
impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.peer, self.about.name)
    }
}

/// A client's connection, as a [`Service`](crate::Service) gets it.
///
/// It reads and writes as a blocking socket does, but under total deadlines, and it is buffered for reading already:
/// never wrap it in a `BufReader`, which would keep the client's next message to itself.
///
/// # Deadlines
///
/// A stretch of reading, from its first wait to the next write or the next parking, must end within the read
/// time-out ([`Builder::read_timeout`](crate::Builder::read_timeout)), and likewise for writing. What is moved extends
/// the time, but only as far as the minimum rate ([`Builder::min_rate`](crate::Builder::min_rate)) allows. Past it, calls
/// fail with `TimedOut`, except that reading still gives what has come by then. The time that passes while nobody waits
/// for the client, since a handler is busy otherwise, does not count. When a stop runs out of time they fail with `ConnectionAborted`.
///
/// # Output
///
/// A write hands the socket what it takes at once. The rest, up to the output limit (64 KiB unless set), stays with
/// the connection and is written as the client reads: while parked, by later calls, and before the close. Only past
/// that limit does a write wait.
// In the order of use: what every message touches comes first and close together, since with many connections it is
// memory that a message waits for.
#[repr(C)]
pub struct Connection {
    info: Arc<Info>,
    input: Input,
    output: Output,
    /// A stretch of reading or writing may have begun.
    paced: bool,
    /// The socket may have something to read. False only after a read that emptied it.
    readable: bool,
    /// The poller saw the end of the stream, perhaps behind data: a short read proves nothing any more.
    hangup: bool,
    eof: bool,
    /// A read since the drain was noticed took all that had come by then.
    emptied: bool,
    detached: bool,
    /// Its client may be sending still what nobody will read.
    lingers: bool,
    /// What the poller watches the socket for, if it does; it leaves the poller before it is closed.
    watched: Option<Interest>,
    input_limit: usize,
    /// In the clock's milliseconds.
    idle_timeout: u64,
    /// Received and sent since the beginning, and how much of it was counted already.
    bytes_in: u64,
    bytes_out: u64,
    counted: (u64, u64),
    /// What the client is told when its message does not get complete in time; `None` while it waits for no answer, and
    /// would take whatever it is told for something else.
    farewell: Option<&'static [u8]>,
    /// The count of received bytes at which nothing more is read, once the server drains.
    last_byte: Option<u64>,
    output_limit: usize,
    read: Pace,
    write: Pace,
    poller: Arc<Poller>,
}

/// How a read that does not wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Bytes,
    Nothing,
    Eof,
}

impl Connection {
    pub(crate) fn new(info: Arc<Info>, poller: Arc<Poller>, limits: &Limits) -> Self {
        Self {
            info,
            input: Input::default(),
            output: Output::default(),
            watched: None,
            bytes_in: 0,
            bytes_out: 0,
            counted: (0, 0),
            paced: false,
            readable: true,
            hangup: false,
            eof: false,
            emptied: false,
            detached: false,
            lingers: false,
            farewell: Some(&[]),
            last_byte: None,
            idle_timeout: in_millis(limits.idle_timeout),
            input_limit: limits.input_limit,
            output_limit: limits.output_limit,
            read: Pace::new(limits.read_timeout, limits.min_rate),
            write: Pace::new(limits.write_timeout, limits.min_rate),
            poller,
        }
    }

    /// Who it is, for a record in the log.
    pub(crate) fn info(&self) -> &Info {
        &self.info
    }

    /// Who the client is.
    pub fn peer(&self) -> &Addr {
        &self.info.peer
    }

    /// The listener's address, which the client connected to. For a listener on a wildcard address this is the
    /// wildcard.
    pub fn local(&self) -> &Addr {
        &self.info.about.local
    }

    /// The name of the listener that the client connected to.
    pub fn listener(&self) -> &str {
        &self.info.about.name
    }

    /// The server is stopping: finish this message, tell the client if the protocol can, and expect no further one.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.info.in_flight.drain().is_draining()
    }

    /// The client has sent all that it will send; what is in the [`buffer`](Self::buffer) is the last of it.
    #[inline]
    pub fn at_eof(&self) -> bool {
        self.eof
    }

    /// What has arrived and was not consumed. No system call; see [`consume`](BufRead::consume).
    #[inline]
    pub fn buffer(&self) -> &[u8] {
        self.input.bytes()
    }

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

    /// Waits until all that was written is in the kernel's hands; [`flush`](Write::flush) does not wait.
    ///
    /// # Errors
    ///
    /// Errors of writing; `TimedOut` when the write time-out has passed.
    pub fn flush_all(&mut self) -> io::Result<()> {
        while !self.flush_some()? {
            self.wait(Interest::Write)?;
        }
        Ok(())
    }

    /// How long the present stretch of reading, from now on, and each later one may take in total.
    pub fn set_read_timeout(&mut self, timeout: Duration) {
        self.read.timeout = timeout;
        self.read.reset();
    }

    /// How long the present stretch of writing, from now on, and each later one may take in total.
    pub fn set_write_timeout(&mut self, timeout: Duration) {
        self.write.timeout = timeout;
        self.write.reset();
    }

    /// How long this connection may wait for its client's next message.
    pub fn set_idle_timeout(&mut self, timeout: Duration) {
        self.idle_timeout = in_millis(timeout);
    }

    /// The bytes per second that extend the read and the write time-out as they are moved. 0: nothing extends them.
    pub fn set_min_rate(&mut self, bytes_per_second: u32) {
        self.read.min_rate = bytes_per_second;
        self.write.min_rate = bytes_per_second;
    }

    /// A point in time after which reading fails with `TimedOut`, whatever else is set. It stays until it is changed.
    pub fn set_read_deadline(&mut self, deadline: Option<Instant>) {
        self.read.hard = Deadline::at(deadline);
    }

    /// A point in time after which writing fails with `TimedOut`, whatever else is set. It stays until it is changed.
    pub fn set_write_deadline(&mut self, deadline: Option<Instant>) {
        self.write.hard = Deadline::at(deadline);
    }

    /// How many bytes the output buffer may hold. 0 makes every write wait until the kernel has it all.
    pub fn set_output_limit(&mut self, bytes: usize) {
        self.output_limit = bytes;
    }

    /// Shuts down one or both directions, after what was written is in the kernel's hands.
    ///
    /// # Errors
    ///
    /// Errors of writing, and what the system says to the shutdown.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.flush_all()?;
        }
        self.info.socket.shutdown(how)
    }

    /// Takes the standard library's socket out, in blocking mode, with the bytes that had been read ahead; what was
    /// written is handed to the kernel first. Afterwards this connection gives the end of the stream, and the service
    /// returns [`Next::Detach`](crate::Next::Detach) when it is done with the socket, or at once if somebody else
    /// goes on with it. Until it returns, a stop counts the connection as in progress.
    ///
    /// # Errors
    ///
    /// Errors of writing, and what the system says to the duplication of the descriptor.
    pub fn detach(&mut self) -> io::Result<Detached> {
        self.flush_all()?;
        self.unwatch();
        let stream = sys::into_stream(&self.info.socket)?;
        self.detached = true;
        self.eof = true;
        Ok(Detached {
            stream,
            unread: self.input.take(),
        })
    }

    fn wait(&mut self, interest: Interest) -> io::Result<sys::Ready> {
        loop {
            if self.info.in_flight.drain().is_forced() {
                return Err(stopped());
            }
            let now = Instant::now();
            let deadline = match interest {
                Interest::Read => self.read_deadline(now),
                Interest::Write => self.write_deadline(now),
                Interest::Both => self.read_deadline(now).earlier(self.write_deadline(now)),
            };
            // What has come by now has come in time, however late it is asked for.
            let late = deadline.passed(now);
            if late && (interest == Interest::Write || self.read.hard.passed(now)) {
                return Err(too_slow(interest));
            }
            let slice = match interest {
                Interest::Read => sys::WAIT_SLICE,
                Interest::Write | Interest::Both => Some(WRITE_SLICE),
            };
            let slice = match (deadline.left(now), slice) {
                (Some(left), Some(slice)) => Some(left.min(slice)),
                (left, slice) => left.or(slice),
            };
            let ready = sys::wait_ready(&self.info.socket, interest, slice)?;
            let now = Instant::now();
            self.read.pause(now);
            self.write.pause(now);
            if ready.readable || ready.writable {
                return Ok(ready);
            }
            if late {
                return Err(too_slow(interest));
            }
            if interest != Interest::Read {
                return Ok(sys::Ready {
                    readable: false,
                    writable: true,
                });
            }
        }
    }

    /// Waits until there may be something to read, and writes buffered output meanwhile: the client may well wait
    /// for that before it sends more.
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
        if self.eof {
            return Ok((Filled::Eof, 0));
        }
        let buffered = into.is_none();
        let room = match into {
            Some(into) => into,
            None => self.input.room(self.input_limit)?,
        };
        match sys::recv(&self.info.socket, room) {
            Ok(0) if self.info.in_flight.drain().is_forced() => Err(stopped()),
            Ok(0) => {
                self.eof = true;
                Ok((Filled::Eof, 0))
            }
            Ok(count) => {
                // What did not fill the room has emptied the socket, so there is no need to ask again.
                self.emptied |= count < room.len();
                self.readable = count == room.len() || self.hangup;
                if buffered {
                    self.input.filled(count);
                }
                self.bytes_in += count as u64;
                self.end_writing();
                Ok((Filled::Bytes, count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.emptied = true;
                Ok((Filled::Nothing, 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads more into the buffer without waiting.
    pub(crate) fn try_fill(&mut self) -> io::Result<Filled> {
        Ok(self.receive(None)?.0)
    }

    /// Hands the socket what it takes; true when nothing is left.
    #[inline]
    pub(crate) fn flush_some(&mut self) -> io::Result<bool> {
        if !self.output.is_empty() {
            let count = self.output.flush(&self.info.socket)?;
            self.sent(count);
            if self.paced && self.output.is_empty() {
                self.write.pause(Instant::now());
            }
        }
        Ok(self.output.is_empty())
    }

    /// Writes, and says whether anything could be written.
    pub(crate) fn has_progressed(&mut self) -> io::Result<bool> {
        let before = self.bytes_out;
        self.flush_some()?;
        Ok(self.bytes_out > before)
    }

    fn sent(&mut self, count: usize) {
        // A stretch of reading ends with something written, not with an attempt.
        if count > 0 {
            self.bytes_out += count as u64;
            self.end_message();
        }
    }

    fn end_writing(&mut self) {
        if self.paced {
            self.write.reset();
        }
    }

    /// Sends the parts in one call and buffers what the socket left of them; returns how much of it was accepted, and
    /// waits only if that is nothing.
    fn write_parts(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.detached {
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
                    [part] => sys::send(&self.info.socket, part),
                    parts => sys::send_vectored(&self.info.socket, parts),
                };
                count = match sent {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    sent => sent?,
                };
                self.sent(count);
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

    /// Sends what the socket takes of it at once, past the buffer.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> io::Result<()> {
        match sys::send(&self.info.socket, bytes) {
            Ok(count) => self.sent(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Hands the kernel up to `length` bytes of a file, from its position on, waiting for the client to read as long as
    /// there is more than the buffer takes; fewer where the system does not do that, or the file ends.
    #[cfg(feature = "http")]
    pub(crate) fn send_file(&mut self, file: &File, length: u64) -> io::Result<u64> {
        let mut sent = 0;
        while sent < length {
            let left = usize::try_from(length - sent).unwrap_or(usize::MAX);
            let moved = match self.flush_some()? {
                true => sys::send_file(&self.info.socket, file, left),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
            match moved {
                Ok(None | Some(0)) => break,
                Ok(Some(count)) => {
                    sent += count as u64;
                    self.sent(count);
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

    // What the rest of the crate needs of a connection that is not the service's business.

    /// Nothing has come that was not read, as far as is known.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        !self.readable
    }

    /// The socket has news: there may be something to read, and behind it perhaps the end.
    pub(crate) fn note_readable(&mut self, hangup: bool) {
        self.readable = true;
        self.hangup |= hangup;
    }

    #[inline]
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    #[inline]
    pub(crate) fn is_detached(&self) -> bool {
        self.detached
    }

    #[cfg(feature = "http")]
    pub(crate) fn input_limit(&self) -> usize {
        self.input_limit
    }

    /// In the clock's milliseconds.
    pub(crate) fn idle_timeout(&self) -> u64 {
        self.idle_timeout
    }

    pub(crate) fn read_deadline(&mut self, now: Instant) -> Deadline {
        self.paced = true;
        self.read.deadline(now, self.bytes_in)
    }

    pub(crate) fn write_deadline(&mut self, now: Instant) -> Deadline {
        self.paced = true;
        self.write.deadline(now, self.bytes_out)
    }

    /// Sets what the client is told, as far as the socket takes it, when the rest of its message does not come in
    /// time while the connection is parked. With `None` it is not told either that no worker has time for it.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    pub(crate) fn set_farewell(&mut self, bytes: Option<&'static [u8]>) {
        self.farewell = bytes;
    }

    pub(crate) fn farewell(&self) -> Option<&'static [u8]> {
        self.farewell
    }

    /// Has the close wait for the client to take note: it may be sending still what nobody will read, and whatever comes
    /// after a close resets the connection, and may take the answer with it.
    pub(crate) fn linger(&mut self) {
        self.lingers = true;
    }

    pub(crate) fn lingers(&self) -> bool {
        self.lingers
    }

    /// Asked before each reading while the server drains. What had come before is read, and a message that had begun
    /// to come; so nothing more between two messages once the socket was empty, whatever came after that. A client that
    /// never pauses is not listened to for ever: what has come, and behind it the longest message that may be buffered.
    pub(crate) fn has_had_its_last(&mut self, between_messages: bool) -> bool {
        match self.last_byte {
            None => {
                let unread = sys::unread(&self.info.socket).unwrap_or(0);
                self.last_byte = Some(self.bytes_in + unread + self.input_limit as u64);
                self.readable = true;
                self.emptied = false;
                false
            }
            Some(last) => self.bytes_in >= last || (between_messages && self.emptied),
        }
    }

    /// A new message begins: the stretch of reading ends here.
    #[inline]
    pub(crate) fn end_message(&mut self) {
        if self.paced {
            self.read.reset();
        }
    }

    #[inline]
    pub(crate) fn lend(&mut self, spare: &mut Vec<u8>) {
        self.input.lend(spare);
    }

    #[inline]
    pub(crate) fn settle(&mut self, spare: &mut Vec<u8>) {
        self.input.settle(spare);
    }

    /// Reads and forgets, without waiting: how much it was, and whether that was the end.
    pub(crate) fn discard(&mut self, scratch: &mut [u8]) -> io::Result<(usize, Filled)> {
        let held = self.input.len();
        self.input.consume(held);
        let (filled, count) = self.receive(Some(scratch))?;
        Ok((held + count, filled))
    }

    /// Shuts the writing side down, so that the client sees the end of the answer; no error matters any more. What it
    /// still sends may take so long in total.
    pub(crate) fn half_close(&mut self, linger: Duration) {
        let _ = self.info.socket.shutdown(Shutdown::Write);
        self.read = Pace::new(linger, 0);
    }

    /// What was received and sent since the last call.
    #[inline]
    pub(crate) fn take_moved(&mut self) -> (u64, u64) {
        let before = std::mem::replace(&mut self.counted, (self.bytes_in, self.bytes_out));
        (self.bytes_in - before.0, self.bytes_out - before.1)
    }

    /// Has the poller watch the socket. Once is enough where the poller keeps its sockets and the interest is the
    /// same. What is there already will be reported.
    #[inline]
    pub(crate) fn watch(&mut self, token: u64, interest: Interest) -> io::Result<()> {
        let (poller, socket) = (&self.poller, &self.info.socket);
        match self.watched {
            Some(watched) if Poller::SHARED && watched == interest => return Ok(()),
            Some(_) => poller.rearm(socket, token, interest)?,
            None => {
                poller.add(socket, token)?;
                // It has to leave again, also if the next call fails.
                self.watched = Some(Interest::Read);
                if interest != Interest::Read {
                    poller.rearm(socket, token, interest)?;
                }
            }
        }
        self.watched = Some(interest);
        Ok(())
    }

    pub(crate) fn unwatch(&mut self) {
        if self.watched.take().is_some() {
            if let Err(error) = self.poller.remove(&self.info.socket) {
                log::warn!("{}: cannot leave the poller: {error}", self.info);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.unwatch();
    }
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // A large read goes past the buffer, unless there is something in it.
        if self.input.is_empty() && into.len() >= READ_SIZE {
            loop {
                if self.readable || self.eof {
                    let (filled, count) = self.receive(Some(into))?;
                    if filled != Filled::Nothing {
                        return Ok(count);
                    }
                }
                self.wait_readable()?;
                self.readable = true;
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
        while self.input.is_empty() && !self.eof {
            if self.readable && self.try_fill()? != Filled::Nothing {
                break;
            }
            self.wait_readable()?;
            self.readable = true;
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

    /// Hands the kernel what it takes now, without waiting: the rest is written as the client reads. See
    /// [`flush_all`](Connection::flush_all).
    fn flush(&mut self) -> io::Result<()> {
        self.flush_some().map(drop)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.info.peer)
            .field("listener", &self.info.about.name)
            .field("buffered", &self.input.len())
            .field("unwritten", &self.output.len())
            .field("eof", &self.eof)
            .finish_non_exhaustive()
    }
}

/// What [`Connection::detach`] takes out.
#[derive(Debug)]
#[non_exhaustive]
pub struct Detached {
    /// The socket.
    pub stream: Stream,
    /// What had been received and not consumed; it comes before what the socket gives.
    pub unread: Vec<u8>,
}

fn too_long(limit: usize) -> io::Error {
    let text = format!("no delimiter among the first {limit} bytes");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn not_utf8(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn too_slow(interest: Interest) -> io::Error {
    let text = match interest {
        Interest::Write => "the client did not read in time",
        Interest::Read | Interest::Both => "the client did not send in time",
    };
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn stopped() -> io::Error {
    let text = "the server stopped, and the time for finishing is over";
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}
