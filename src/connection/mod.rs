//! A connection: `Read`, `BufRead` and `Write` with total deadlines over a socket that never
//! blocks.
//!
//! Every call tries the socket first. Only if the socket would block does the call wait, with
//! `poll(2)`, until the deadline. Input that arrives early stays in a buffer that survives parking.
//! Output that the client has not read yet stays with the connection. So a connection that waits
//! for input, or for its client to read, costs no thread.

mod activity;
mod calls;
mod detached;
mod drain_limit;
mod early_output;
mod halves;
mod info;
mod input;
mod last_answer;
mod messages;
mod nonblocking;
mod outbox;
mod output;
mod pace;
mod receive_state;
mod record;
mod settings;
mod socket;
mod transfer;
mod waiting;
mod waker;
mod watching;

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::clock::in_millis;
use crate::sys::{self, Interest, PeerState, Poller};

pub(crate) use activity::Activity;
use calls::DueCalls;
pub use calls::{Cause, Expiry};
pub use detached::Detached;
use drain_limit::DrainLimit;
use early_output::Lent;
pub(crate) use early_output::{EarlyOutput, EarlyOutputWatch};
pub use halves::{ReadHalf, WriteHalf};
pub(crate) use info::{ClosingNotice, ConnectionInfo, Limits};
use input::Input;
pub(crate) use input::READ_SIZE;
use last_answer::AnswerMark;
pub(crate) use nonblocking::Blocked;
pub use nonblocking::NonBlocking;
pub use outbox::{Outbox, SendError, WhenFull};
pub(crate) use output::Flushed;
use output::Output;
use pace::Pace;
use receive_state::ReceiveState;
pub(crate) use waker::WakeTarget;
pub use waker::Waker;

/// A client's connection, as a [`Service`](crate::Service) gets it.
///
/// It reads and writes as a blocking socket does, but under total deadlines. Reading is buffered
/// already: never wrap a connection in a `BufReader`, which would keep the client's next message to
/// itself.
///
/// # Messages
///
/// Two families of methods read messages with a delimiter:
///
/// | | [`take_until`](Self::take_until), [`take_line`](Self::take_line), [`take_line_bytes`](Self::take_line_bytes) | [`read_until_limited`](Self::read_until_limited), [`read_line_limited`](Self::read_line_limited) |
/// |---|---|---|
/// | the message has not arrived completely | `None`: return [`Next::More`](crate::Next::More) | wait for the rest, and hold a worker |
/// | the stream has ended | `None`, and [`at_eof`](Self::at_eof); what is left stays in the [`buffer`](Self::buffer) | give what is left, then 0 |
/// | the delimiter | a line comes without, `take_until` gives it | is given |
/// | the message is too long | `InvalidData`, nothing is consumed; [`take_up_to`](Self::take_up_to) gives it in pieces | `InvalidData`, `limit` bytes are consumed |
/// | the result | is new | is appended to the caller's buffer |
/// | choose them for | services that are called for each message | loops over blocking reads |
///
/// **A loop over blocking reads holds a worker** until its client has left, also while the client is
/// silent. With as many such clients as there are workers, all other clients wait. So does a service
/// that calls [`read`](std::io::Read::read), `read_line` or `lines` for what has not arrived.
///
/// # Deadlines
///
/// A stretch of reading lasts from its first wait to the next write or the next parking. The
/// stretch must end within the read time-out
/// ([`Builder::read_timeout`](crate::Builder::read_timeout)). Writing has the same rule and the
/// [write time-out](crate::Builder::write_timeout). Bytes that are moved extend the deadline, as
/// far as the minimum rate ([`Builder::min_rate`](crate::Builder::min_rate)) allows. Past the
/// deadline, calls fail with `TimedOut`; a read still gives what has arrived by then. Time in which
/// the handler does not wait for the client does not count. When a stop runs out of time, calls
/// fail with `ConnectionAborted`.
///
/// # Output
///
/// Writes are gathered, and leave together in one system call: when the call of the service
/// returns, when it waits for input, with [`flush`](std::io::Write::flush), and when 16 KiB are
/// gathered. If a client has sent several messages at once, the answers to them leave together too.
/// If a call lasts longer than a few milliseconds, the keeper sends what the call has written so
/// far.
/// An error of writing may therefore show in a later call, or only in the log; the connection is
/// then closed.
///
/// What the socket does not take, up to the output limit (64 KiB unless set), stays with the
/// connection and is written as the client reads: while parked, by later calls, and before the
/// close. Only past that limit does a write wait. [`write_owned`](Self::write_owned) and
/// [`send_file`](Self::send_file) never wait: bytes and files of any size go with the connection
/// while it is parked, under the write time-out and the minimum rate.
///
/// After [`Next::Again`](crate::Next::Again) the service is called when all of its output is
/// written. So a service that writes a piece in each call goes as fast as its client reads, and
/// occupies no worker in between.
// In the order of use: the fields that every message touches come first and close together. With
// many connections, a message waits for memory.
#[repr(C)]
pub struct Connection {
    info: Arc<ConnectionInfo>,
    input: Input,
    output: Output,
    /// The gathered output is lent to the keeper.
    is_lent: bool,
    /// What it is lent in, while that is not used.
    spare_lent: Option<Box<Lent>>,
    /// The socket may be ready without a further edge: the poller has to look at it again.
    must_rearm: bool,
    /// A read or write deadline may be running. If false, the clock is not read.
    may_have_deadline: bool,
    receive: ReceiveState,
    /// Calls of the service that do not wait for the client.
    pub(crate) due: DueCalls,
    /// What other threads send.
    outbox: Option<Outbox>,
    /// An outbox that is closed has ended the connection.
    is_ended_by_outbox: bool,
    /// The client may still be sending input that will not be read: the close waits for the client.
    lingers_on_close: bool,
    /// The client has announced that the present message is its last one.
    is_last_message: bool,
    /// The readiness that the poller watches the socket for. The socket leaves the poller before it
    /// is closed.
    watched: Option<Interest>,
    input_limit: usize,
    /// In the clock's milliseconds.
    idle_timeout: u64,
    /// The idle time-out does not apply.
    is_idle_timeout_suspended: bool,
    /// Bytes received and sent since the beginning, and how many of them are in the counters
    /// already.
    bytes_in: u64,
    bytes_out: u64,
    counted: (u64, u64),
    /// The count of consumed bytes where the present message begins, or the next one.
    message_begin: u64,
    closing_notice: ClosingNotice,
    /// The service has looked at all bytes of the buffer, and lacks more.
    has_seen_all: bool,
    /// How long the connection waited for a worker before the present turn.
    waited: Duration,
    /// Set when the connection notices that the server drains.
    drain_limit: Option<DrainLimit>,
    /// The connection does not move to a successor: its session cannot be packed, or the successor
    /// has refused it.
    stays: bool,
    /// The present call has waited for input: it may be a loop over many messages.
    has_waited_for_input: bool,
    output_limit: usize,
    read: Pace,
    write: Pace,
    waker: Waker,
    /// The service waits for more than its client: it has made a waker, an outbox or a timer.
    wants_drain_call: AtomicBool,
    poller: Arc<Poller>,
    early_outputs: Arc<EarlyOutputWatch>,
    /// The service has found that the client has left: the connection is closed after the call.
    is_abandoned: bool,
    /// The present call has found no part of a message.
    has_no_message: bool,
    /// A message was too long.
    is_too_long: bool,
    /// Reading or writing has failed in the present call of the service.
    has_failed: bool,
    /// How many errors of the service's own the worker has to count.
    errors: u32,
    /// Why a view could not go on in the present call, and the count of received bytes when the
    /// call began.
    blocked_view: Option<Blocked>,
    call_began_at: u64,
    goodbye: Bytes,
    /// Set in a call whose answer may end the connection, as the server drains.
    answer_mark: Option<AnswerMark>,
    /// The present call has asked the kernel to hold its answer back.
    has_held_answer: bool,
}

/// The buffers that a worker lends to one connection after the other.
#[derive(Default)]
pub(crate) struct SpareBuffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// How a read that does not wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    Bytes,
    Nothing,
    Eof,
}

impl Connection {
    pub(crate) fn new(
        info: Arc<ConnectionInfo>,
        waker: Waker,
        poller: Arc<Poller>,
        early_outputs: Arc<EarlyOutputWatch>,
        limits: &Limits,
    ) -> Self {
        Self {
            info,
            input: Input::default(),
            output: Output::default(),
            is_lent: false,
            spare_lent: None,
            must_rearm: false,
            watched: None,
            bytes_in: 0,
            bytes_out: 0,
            has_seen_all: false,
            counted: (0, 0),
            message_begin: 0,
            may_have_deadline: false,
            receive: ReceiveState::Ready,
            due: DueCalls::default(),
            outbox: None,
            is_ended_by_outbox: false,
            lingers_on_close: false,
            is_last_message: false,
            closing_notice: ClosingNotice::Refusal,
            waited: Duration::ZERO,
            drain_limit: None,
            stays: false,
            has_waited_for_input: false,
            idle_timeout: in_millis(limits.idle_timeout),
            is_idle_timeout_suspended: false,
            input_limit: limits.input_limit,
            output_limit: limits.output_limit,
            read: Pace::new(limits.read_timeout, limits.min_rate),
            write: Pace::new(limits.write_timeout, limits.min_rate),
            waker,
            wants_drain_call: AtomicBool::new(false),
            poller,
            early_outputs,
            is_abandoned: false,
            has_no_message: false,
            is_too_long: false,
            has_failed: false,
            errors: 0,
            blocked_view: None,
            call_began_at: 0,
            goodbye: Bytes::new(),
            answer_mark: None,
            has_held_answer: false,
        }
    }

    /// Client and listener, for log records.
    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// The name of the listener that the client connected to.
    pub fn listener_name(&self) -> &str {
        &self.info.listener.name
    }

    /// Whether the server is stopping: finish this message, and expect no further message. The server
    /// ends the connection behind the answer, with its [goodbye](Self::set_goodbye). False after a
    /// restart if the connection is to move to the successor, see
    /// [`Restart::move_connections`](crate::Restart::move_connections): return from the call then, as
    /// usual. In a call that has waited for input, which may be a loop, the connection is not to move.
    #[inline]
    pub fn is_draining(&self) -> bool {
        let drain = self.info.open_connection.drain();
        drain.ends_connection(|| !self.has_waited_for_input && self.is_movable())
    }

    /// Whether the server drains because a successor has replaced it: a client that connects again
    /// reaches the successor. A protocol may have a code for this, such as the close code 1012 of
    /// WebSocket.
    pub fn has_successor(&self) -> bool {
        let drain = self.info.open_connection.drain();
        drain.has_successor() || self.is_draining() && drain.pause.is_settling()
    }

    /// Whether the client has ended its side of the stream. No bytes follow those in the
    /// [`buffer`](Self::buffer).
    #[inline]
    pub fn at_eof(&self) -> bool {
        self.receive.is_ended()
    }

    /// The bytes that have arrived and were not consumed. No system call. See
    /// [`consume`](std::io::BufRead::consume).
    #[inline]
    pub fn buffer(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Whether the buffer is full: it has as many bytes as
    /// [`Builder::input_limit`](crate::Builder::input_limit) allows. If the service then returns
    /// [`Next::More`](crate::Next::More), the connection is closed. A service that can tell the
    /// client that the message is too long does so before.
    #[inline]
    pub fn is_input_full(&self) -> bool {
        self.input.len() >= self.input_limit
    }

    /// Waits until the kernel has taken all that was written. [`flush`](std::io::Write::flush) does
    /// not wait.
    ///
    /// # Errors
    ///
    /// Errors of writing; `TimedOut` when the write time-out expires.
    pub fn flush_all(&mut self) -> io::Result<()> {
        self.release_answer();
        loop {
            match self.flush_some()? {
                Flushed::All => return Ok(()),
                Flushed::Blocked => drop(self.wait(Interest::Write)?),
                Flushed::TurnOver => {}
            }
        }
    }

    // ---- for the rest of the crate ----

    pub(crate) fn goodbye(&self) -> &Bytes {
        &self.goodbye
    }

    /// Adds the goodbye to the output. The close then waits until the client has read the goodbye.
    pub(crate) fn write_goodbye(&mut self) -> io::Result<()> {
        if self.goodbye.is_empty() {
            return Ok(());
        }
        self.linger_on_close();
        // Nothing follows the goodbye.
        self.close_outbox();
        // From here on the keeper sends nothing: the goodbye and the end leave with the answer.
        self.reclaim_output()?;
        let goodbye = std::mem::take(&mut self.goodbye);
        self.take_owned(Vec::from(goodbye).into())
    }

    /// Whether the last read emptied the socket, and no event has followed.
    #[inline]
    pub(crate) fn is_emptied(&self) -> bool {
        self.receive.is_emptied()
    }

    /// Whether the poller has reported the end of the stream, or a reset, which no read has met
    /// yet.
    #[inline]
    pub(crate) fn has_hung_up(&self) -> bool {
        self.receive == ReceiveState::Ending
    }

    /// Notes an event: there may be input, and with `hangup` the end of the stream after it.
    pub(crate) fn note_readable(&mut self, hangup: bool) {
        self.receive.on_event(hangup);
    }

    /// Whether output is left that the socket has not taken. What a call has gathered does not
    /// count.
    #[inline]
    pub(crate) fn has_output(&self) -> bool {
        self.output.is_queued()
    }

    /// The output that is gathered. Not while it is lent.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn gathered(&mut self) -> &mut Vec<u8> {
        debug_assert!(!self.is_lent);
        self.output.gathered()
    }

    /// Makes the next parking look at the socket again: the socket was left before it would block.
    pub(crate) fn rearm(&mut self) {
        self.must_rearm = true;
    }

    #[inline]
    pub(crate) fn is_detached(&self) -> bool {
        self.receive == ReceiveState::Detached
    }

    #[cfg(feature = "http")]
    pub(crate) fn input_limit(&self) -> usize {
        self.input_limit
    }

    /// Sets what the client may be sent if it is not served.
    #[cfg(feature = "http")]
    pub(crate) fn set_closing_notice(&mut self, notice: ClosingNotice) {
        self.closing_notice = notice;
    }

    pub(crate) fn closing_notice(&self) -> &ClosingNotice {
        &self.closing_notice
    }

    /// Makes the close wait until the client has read the response. The client may still be
    /// sending: bytes that arrive after a close reset the connection, and the reset may overtake
    /// the response.
    pub(crate) fn linger_on_close(&mut self) {
        self.lingers_on_close = true;
    }

    pub(crate) fn lingers_on_close(&self) -> bool {
        self.lingers_on_close
    }

    /// Notes that the client has announced that the present message is its last one.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn note_last_message(&mut self) {
        self.is_last_message = true;
    }

    /// Whether a close finds no unread input, as far as can be told without a read. A client that
    /// has announced the close sends nothing after that message (RFC 9112, section 9.6).
    pub(crate) fn has_read_all(&self) -> bool {
        let has_last = self.is_last_message && !self.lingers_on_close;
        self.at_eof() || (has_last && self.input.is_empty() && self.receive.is_emptied())
    }

    /// Notes how long the connection waited for a worker. The client's deadlines do not count this
    /// time.
    #[inline]
    pub(crate) fn note_wait(&mut self, waited: Duration) {
        self.waited = waited;
        if self.may_have_deadline {
            let now = Instant::now();
            let since = now.checked_sub(waited).unwrap_or(now);
            self.read.pause(since);
            self.write.pause(since);
        }
    }

    /// The connection's next call follows without a wait.
    #[inline]
    pub(crate) fn end_wait(&mut self) {
        self.waited = Duration::ZERO;
        self.has_waited_for_input = false;
    }

    /// The present call ends with the present message, also if it has waited for input.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn note_one_message(&mut self) {
        self.has_waited_for_input = false;
    }

    /// Says that this call has found no part of a message: the time in which the client has to
    /// begin one goes on.
    #[cfg(feature = "http")]
    pub(crate) fn note_no_message(&mut self) {
        self.has_no_message = true;
    }

    #[inline]
    pub(crate) fn take_no_message(&mut self) -> bool {
        std::mem::take(&mut self.has_no_message)
    }

    /// Makes the worker count a message that was too long.
    #[cfg(feature = "http")]
    pub(crate) fn note_too_long(&mut self) {
        self.is_too_long = true;
    }

    pub(crate) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    /// Whether reading or writing has failed in the present call of the service.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Makes the worker count an error of the application's code.
    #[cfg(feature = "http")]
    pub(crate) fn note_error(&mut self) {
        self.errors += 1;
    }

    /// How many such errors there were since the last look.
    #[inline]
    pub(crate) fn take_errors(&mut self) -> u32 {
        std::mem::take(&mut self.errors)
    }

    /// Lends the gathered output: if the call takes long, the keeper writes it
    /// meanwhile.
    #[inline]
    pub(crate) fn lend_output(&mut self) {
        if !self.has_output() && !self.output.is_empty() {
            let (bytes, spare) = (self.output.gathered(), &mut self.spare_lent);
            self.info.early_output.lend(bytes, spare);
            self.is_lent = true;
            self.early_outputs.note_use();
        }
    }

    /// Takes back what is left of the output that was lent, if any was.
    ///
    /// # Errors
    ///
    /// Errors of writing.
    #[inline]
    pub(crate) fn reclaim_output(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_lent) {
            let (bytes, spare) = (self.output.gathered(), &mut self.spare_lent);
            let sent = self.info.early_output.reclaim(bytes, spare);
            let sent = sent.map_err(|error| self.failed(error))?;
            self.note_sent(sent);
        }
        Ok(())
    }

    /// Makes the worker close the connection after this call, because the client has left.
    #[cfg(feature = "http")]
    pub(crate) fn abandon(&mut self) {
        self.is_abandoned = true;
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned
    }

    /// How long the connection waited for a worker before the present turn.
    #[cfg(feature = "http")]
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether the client has reset the connection or ended its side, as far as the kernel knows.
    /// One system call.
    pub(crate) fn peer_state(&self) -> PeerState {
        sys::socket::peer_state(&self.info.socket)
    }

    /// The count of bytes received.
    #[cfg(feature = "http")]
    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// The count of bytes that the service has taken, or that were discarded.
    #[inline]
    pub(crate) fn consumed(&self) -> u64 {
        self.bytes_in - self.input.len() as u64
    }

    /// Whether the buffer has all that has come of the present message: the service has consumed
    /// nothing of it.
    pub(crate) fn has_whole_message(&self) -> bool {
        !self.input.is_empty() && self.consumed() == self.message_begin
    }

    /// Whether a call of the service has left bytes that it may not have looked at: the call has
    /// consumed others. `consumed` is the count before the call.
    pub(crate) fn has_unseen_bytes(&mut self, consumed: u64) -> bool {
        let has_seen_all = std::mem::take(&mut self.has_seen_all);
        !has_seen_all && !self.input.is_empty() && self.consumed() != consumed
    }

    /// The service has looked at all bytes of the buffer.
    #[cfg(feature = "http")]
    pub(crate) fn note_seen_all(&mut self) {
        self.has_seen_all = true;
    }

    /// The count of bytes received, and the count of unread bytes. Equal marks mean the same input.
    pub(crate) fn input_mark(&self) -> (u64, usize) {
        (self.bytes_in, self.input.len())
    }

    /// The next message begins at the first byte that is not consumed.
    #[inline]
    pub(crate) fn begin_message(&mut self) {
        self.message_begin = self.consumed();
    }

    /// A message has ended: the next one begins, and the client has the whole read time-out again.
    #[inline]
    pub(crate) fn end_message(&mut self) {
        self.begin_message();
        self.end_read_stretch();
    }

    /// Ends the stretch of reading: the client has the whole read time-out again.
    #[inline]
    pub(crate) fn end_read_stretch(&mut self) {
        if self.may_have_deadline {
            self.read.reset();
        }
    }

    /// Lends the worker's spare buffers: room to read into, and room to gather output.
    #[inline]
    pub(crate) fn lend_buffers(&mut self, spare: &mut SpareBuffers) {
        self.input.lend_buffer(&mut spare.input);
        self.output.lend_buffer(&mut spare.output);
    }

    /// Takes the spare buffers back. The connection keeps only the bytes that were not consumed,
    /// and the output that was not written.
    #[inline]
    pub(crate) fn return_buffers(&mut self, spare: &mut SpareBuffers) {
        self.input.return_buffer(&mut spare.input);
        self.output.return_buffer(&mut spare.output);
    }

    /// Records that no output follows the present one: the connection is closed next.
    pub(crate) fn note_last_output(&mut self) {
        self.output.note_last();
    }

    /// Shuts down the sending side, if the last output waits in the kernel for this.
    pub(crate) fn end_last_output(&mut self) {
        if self.output.needs_end() || self.info.early_output.is_held() {
            // If this fails, the client has left.
            let _ = self.info.socket.shutdown(Shutdown::Write);
        }
    }

    /// Shuts the server's side down, so that the client sees the end of the response. The client
    /// has `linger` in total to close its own side.
    pub(crate) fn half_close(&mut self, linger: Duration) {
        // If this fails, the client has left, which the next read reports.
        let _ = self.info.socket.shutdown(Shutdown::Write);
        self.read = Pace::new(linger, 0);
    }

    /// The bytes received and sent since the last call.
    #[inline]
    pub(crate) fn take_moved(&mut self) -> (u64, u64) {
        let before = std::mem::replace(&mut self.counted, (self.bytes_in, self.bytes_out));
        (self.bytes_in - before.0, self.bytes_out - before.1)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.unwatch();
        if let Some(outbox) = &self.outbox {
            outbox.end();
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.info.peer)
            .field("listener", &self.info.listener.name)
            .field("buffered", &self.input.len())
            .field("unwritten", &self.output.len())
            .field("receive", &self.receive)
            .finish_non_exhaustive()
    }
}
