//! A connection: `Read`, `BufRead` and `Write` with total deadlines over a socket that never blocks.
//!
//! Every call tries the socket first, and waits with `poll` for what is left of a deadline only when the socket has
//! nothing to give. What the client sent too early stays in one buffer that survives parking, and what it does not
//! read in time stays in a bounded one, so that neither costs a thread.

mod input;
mod messages;
mod output;
mod pace;
mod transfer;

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::addr::Addr;
use crate::clock::{Deadline, in_millis};
use crate::drain::InFlight;
use crate::listener::ListenerInfo;
use crate::sys::{self, Interest, Poller, Stream};

use input::Input;
pub(crate) use input::READ_SIZE;
use output::Output;
use pace::Pace;

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
pub(crate) struct ConnectionInfo {
    pub(crate) socket: Socket,
    pub(crate) peer: Addr,
    pub(crate) listener: Arc<ListenerInfo>,
    /// What must end with the connection: its counts.
    pub(crate) in_flight: InFlight,
    pub(crate) activity: Activity,
    pub(crate) _ticket: Option<Box<dyn Send + Sync>>,
}

/// What others can see of what whoever has the connection in hand does with it.
#[derive(Default)]
pub(crate) struct Activity {
    /// How often something was moved.
    moves: AtomicU64,
    /// It waits for the client, for as long as its time-outs allow.
    waits: AtomicBool,
}

impl Activity {
    #[inline]
    fn moved(&self) {
        // Only whoever has the connection in hand writes it.
        self.moves.store(self.moves.load(Relaxed) + 1, Relaxed);
    }

    /// How often something was moved; `None` while it waits for the client.
    pub(crate) fn moves(&self) -> Option<u64> {
        (!self.waits.load(Relaxed)).then(|| self.moves.load(Relaxed))
    }
}

/// Client and listener, as every record of the log names a connection.
impl fmt::Display for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.peer, self.listener.name)
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
    info: Arc<ConnectionInfo>,
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
    pub(crate) fn new(info: Arc<ConnectionInfo>, poller: Arc<Poller>, limits: &Limits) -> Self {
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
    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Who the client is.
    pub fn peer_addr(&self) -> &Addr {
        &self.info.peer
    }

    /// The listener's address, which the client connected to. For a listener on a wildcard address this is the
    /// wildcard.
    pub fn local_addr(&self) -> &Addr {
        &self.info.listener.local
    }

    /// The name of the listener that the client connected to.
    pub fn listener_name(&self) -> &str {
        &self.info.listener.name
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

    /// What has arrived and was not consumed. No system call; see [`consume`](std::io::BufRead::consume).
    #[inline]
    pub fn buffer(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Waits until all that was written is in the kernel's hands; [`flush`](std::io::Write::flush) does not wait.
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
        let stream = sys::socket::duplicate_stream(&self.info.socket)?;
        self.detached = true;
        self.eof = true;
        Ok(Detached {
            stream,
            unread: self.input.take(),
        })
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
                let unread = sys::socket::unread_len(&self.info.socket).unwrap_or(0);
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

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.info.peer)
            .field("listener", &self.info.listener.name)
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
