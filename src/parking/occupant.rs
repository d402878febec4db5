//! The occupant of a slot: a connection, its session, and its stage. This file has the steps that
//! need no call of the service: writing output, closing, lingering.

use std::time::{Duration, Instant};

use crate::clock::in_millis;
use crate::connection::{ClosingNotice, Connection, Filled, Flushed, READ_SIZE};
use crate::log;
use crate::sys::{Interest, Poller};

/// How long a connection lingers, and how many bytes are discarded meanwhile. A client may send
/// this much before it reads the response.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u32 = 64 * 1024 * 1024;

/// How many bytes a lingering connection discards before other connections have their turn.
const LINGER_TURN: usize = 256 * 1024;

/// The most unread bytes of a connection that moves.
const MOST_UNREAD: usize = 100 * 1024;

/// The most bytes of a message in progress that move with a connection. The pause does not wait for
/// such a message, so the record must fit into a message
/// ([`MoveMessage::LIMIT`](crate::wire::Record::LIMIT)): in hexadecimal the bytes are twice as long.
const MOST_OF_A_PART: usize = 60 * 1024;

/// How far the exchange with the client has come. See the table in the parent module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A new connection: the client has to send its first byte.
    New,
    /// Between two messages: the client has to begin the next one.
    Idle,
    /// In a message: the service needs more bytes than are in the buffer.
    Partial,
    /// The service waits for another thread or a timer. Input is kept in the buffer.
    Waiting,
    /// The service has more to do without the client.
    Runnable,
    /// The service is done. The output is written, then the connection is closed.
    Closing,
    /// The output is written, and the server's side of the connection is shut down. The client's
    /// bytes are discarded, up to `left` bytes more.
    Lingering { left: u32 },
}

/// A connection that has a slot, with its session.
// The first fields share a cache line with the fields of the connection that every message touches.
#[repr(C, align(64))]
pub(crate) struct Occupant<S> {
    pub(crate) stage: Stage,
    pub(crate) session: Option<S>,
    pub(crate) conn: Connection,
    /// The input that was unread when the service last returned `Next::Park`.
    pub(crate) unread_mark: Option<(u64, usize)>,
    /// When the client has to have begun a message, in the clock's milliseconds. `None` until the
    /// connection is parked for it.
    pub(crate) idle_until: Option<u64>,
    /// The connection waits for its first service.
    pub(super) is_newcomer: bool,
    /// The connection counts among those whose expiry is being handled.
    pub(super) is_expiring: bool,
}

/// What a connection needs next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A call of the service.
    Service,
    /// Its client: the connection is to be parked.
    Client,
    /// A turn after other connections: the connection is to be parked, and the poller reports it
    /// again.
    NextTurn,
    /// Nothing more: the connection is to be closed.
    Close,
}

impl<S> Occupant<S> {
    pub(super) fn new(conn: Connection, stage: Stage) -> Self {
        Self {
            stage,
            session: None,
            conn,
            unread_mark: None,
            idle_until: None,
            is_newcomer: true,
            is_expiring: false,
        }
    }

    /// Does what needs no service: writes output, shuts down, lingers.
    pub(crate) fn advance(&mut self) -> Needs {
        match self.conn.flush_all_sources() {
            Ok(Flushed::All) if self.may_call_service() && self.conn.is_ended_by_outbox() => {
                self.begin_closing();
            }
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => return Needs::Client,
            Ok(Flushed::TurnOver) => return Needs::NextTurn,
            Err(error) => {
                log::debug!("{}: cannot write: {error}", self.conn.info());
                return Needs::Close;
            }
        }
        if self.may_call_service() {
            return Needs::Service;
        }
        if self.stage == Stage::Closing {
            self.conn.end_last_output();
            // Closing a socket with unread input resets the connection, and the reset may overtake
            // the response.
            if self.conn.has_read_all() {
                return Needs::Close;
            }
            match self.conn.discard(&mut [0; 512]) {
                Ok((1.., Filled::Nothing | Filled::Bytes)) => {}
                Ok((0, Filled::Nothing)) if self.conn.lingers_on_close() => {}
                _ => return Needs::Close,
            }
            self.conn.half_close(LINGER);
            self.conn.info().open_connection.mark_finished();
            self.stage = Stage::Lingering { left: LINGER_BYTES };
        }
        self.linger(LINGER_TURN)
    }

    /// Discards input until the client's end, or about `most` bytes.
    fn linger(&mut self, most: usize) -> Needs {
        let mut scratch = [0; READ_SIZE];
        let mut discarded = 0;
        while let Stage::Lingering { left } = self.stage {
            if discarded >= most {
                self.conn.rearm();
                return Needs::NextTurn;
            }
            match self.conn.discard(&mut scratch) {
                Ok((_, Filled::Nothing)) => return Needs::Client,
                Ok((count, Filled::Bytes)) if count < left as usize => {
                    let left = left - count as u32;
                    self.stage = Stage::Lingering { left };
                    discarded += count;
                }
                Ok(_) | Err(_) => break,
            }
        }
        Needs::Close
    }

    /// Whether the service may still be called.
    pub(super) fn may_call_service(&self) -> bool {
        !matches!(self.stage, Stage::Closing | Stage::Lingering { .. })
    }

    /// Whether the service is called when the client has sent something.
    pub(super) fn waits_for_input(&self) -> bool {
        self.may_call_service() && !self.conn.has_output()
    }

    /// Whether the connection is between two messages. The service has not seen what the buffer has
    /// of the next one.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Idle)
            && !self.conn.has_output()
            && !self.conn.due.is_any()
    }

    /// Whether the service has to be called before the connection is between two messages.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(
            self.stage,
            Stage::Partial | Stage::Waiting | Stage::Runnable
        ) || self.conn.due.is_any() && self.may_call_service()
    }

    /// Whether the connection is in a message of which the service has seen a part, and has consumed
    /// nothing. Once no service is called here any more, the successor gets this message from its
    /// beginning.
    pub(super) fn has_movable_part(&self) -> bool {
        self.stage == Stage::Partial
            && self.conn.has_whole_message()
            && !self.conn.has_output()
            && !self.conn.due.is_any()
            && self.conn.buffer().len() <= MOST_OF_A_PART
            && self.conn.is_movable()
    }

    /// Whether the connection needs no call of the service before it can move to the successor.
    pub(crate) fn can_settle(&self) -> bool {
        self.can_move_now() || self.has_movable_part()
    }

    /// Whether the connection can move to the successor now: it is between two messages, or
    /// [has a part](Self::has_movable_part) of one for which no service is called here any more. Input
    /// that has arrived moves with it.
    pub(crate) fn can_move_now(&self) -> bool {
        match self.is_between_messages() {
            true => self.conn.buffer().len() <= MOST_UNREAD && self.conn.is_movable(),
            false => self.conn.has_ended_calls() && self.has_movable_part(),
        }
    }

    /// Makes a call of the service due if the server drains, and the service expects to be told.
    #[inline]
    pub(crate) fn check_drain(&mut self) {
        if self.conn.needs_drain_call() && self.may_call_service() {
            self.conn.due.note_drain();
        }
    }

    /// Whether the connection is between two messages, and no byte of the next one was read.
    #[inline]
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Idle) && self.conn.buffer().is_empty()
    }

    /// Whether nothing but the client's input leads to a call of the service, and none has arrived.
    pub(super) fn is_without_message(&self) -> bool {
        let waits = match self.stage {
            Stage::Idle => self.conn.buffer().is_empty(),
            Stage::Waiting => true,
            _ => false,
        };
        waits && !self.conn.due.is_any() && !self.conn.needs_drain_call()
    }

    /// Reads what has arrived, for a connection [without a message](Self::is_without_message). True
    /// if the service has to be called.
    pub(super) fn read_ahead(&mut self) -> bool {
        loop {
            if self.stage == Stage::Waiting && self.conn.is_input_full() {
                return self.conn.has_hung_up();
            }
            match self.conn.try_fill() {
                Ok(Filled::Nothing) => return false,
                Ok(Filled::Bytes) if self.stage == Stage::Waiting => {}
                Ok(Filled::Eof) if self.stage == Stage::Waiting => {
                    return !self.conn.due.was_told_of_end();
                }
                _ => return true,
            }
        }
    }

    /// Whether the client would read a refusal as the response to its request, and not as a part of
    /// another response.
    pub(super) fn may_be_refused(&self) -> bool {
        match self.conn.closing_notice() {
            ClosingNotice::Forbidden => false,
            ClosingNotice::Refusal => self.stage != Stage::Runnable || self.session.is_none(),
            ClosingNotice::RefusalOrTimeout(_) => true,
        }
    }

    /// Whether the service has begun to answer a message, and has not finished. The queue's
    /// time-out does not apply to such a connection.
    pub(super) fn is_answering(&self) -> bool {
        let notice = self.conn.closing_notice();
        let is_answering = match self.stage {
            Stage::Runnable => !matches!(notice, ClosingNotice::RefusalOrTimeout(_)),
            Stage::Waiting => true,
            _ => self.conn.due.is_any(),
        };
        is_answering && self.session.is_some()
    }

    /// No further call of the service follows. [`advance`](Self::advance) writes the output and
    /// closes.
    pub(crate) fn begin_closing(&mut self) {
        self.stage = Stage::Closing;
        self.conn.close_outbox();
        self.conn.note_last_output();
    }

    /// The service has to be called, and the queue has no room. The poller reports the connection
    /// once it is parked: a change of the interest reports input that has arrived already.
    pub(super) fn wait_for_room(&mut self) {
        let has_message = match self.stage {
            Stage::New | Stage::Idle => !self.conn.buffer().is_empty(),
            Stage::Partial => self.conn.at_eof(),
            Stage::Runnable => true,
            Stage::Waiting | Stage::Closing | Stage::Lingering { .. } => false,
        };
        if has_message {
            self.stage = Stage::Runnable;
        }
        if has_message || !self.conn.is_emptied() {
            self.conn.report_again();
        }
    }

    /// The readiness that the poller has to report while the connection is parked. A connection
    /// that needs no input, and is parked because the queue is full, is reported at once.
    pub(super) fn interest(&self) -> Interest {
        match self.conn.has_output() || self.needs_worker() {
            true => Interest::Write,
            false => Interest::Read,
        }
    }

    /// Whether the poller has to watch the socket while the connection is parked. A poller that
    /// reports once would report at once, and again and again, what a service that waits does not
    /// read.
    pub(super) fn needs_watch(&self, interest: Interest) -> bool {
        !Poller::REPORTS_ONCE
            || self.stage != Stage::Waiting
            || interest != Interest::Read
            || !(self.conn.at_eof() || self.conn.is_input_full())
    }

    /// Whether the service has to be called, whatever the client does.
    pub(super) fn needs_worker(&self) -> bool {
        self.stage == Stage::Runnable || self.conn.due.is_any() && self.may_call_service()
    }

    /// When a parked connection has to be looked at, because it expires or its timer is due, in the
    /// clock's milliseconds.
    pub(super) fn next_check(&mut self, now: u64, first_byte_timeout: Duration) -> u64 {
        let timer_at = self.conn.due.timer_at.unwrap_or(u64::MAX);
        self.expiry(now, first_byte_timeout).min(timer_at)
    }

    /// When a connection that is parked now expires, in the clock's milliseconds.
    fn expiry(&mut self, now: u64, first_byte_timeout: Duration) -> u64 {
        let deadline = match self.stage {
            _ if self.conn.has_output() => self.conn.write_deadline(Instant::now()),
            // The connection waits for a worker, and not for its client.
            _ if self.needs_worker() => return u64::MAX,
            Stage::Runnable => return u64::MAX,
            // The timer ends the wait.
            Stage::Waiting if self.conn.due.timer_at.is_some() => return u64::MAX,
            Stage::New | Stage::Idle | Stage::Waiting => {
                let timeout = match self.stage {
                    Stage::New => in_millis(first_byte_timeout),
                    _ => self.conn.idle_timeout(),
                };
                return *self.idle_until.get_or_insert(now.saturating_add(timeout));
            }
            Stage::Partial | Stage::Closing | Stage::Lingering { .. } => {
                self.conn.read_deadline(Instant::now())
            }
        };
        let left = deadline.time_left(Instant::now());
        left.map_or(u64::MAX, |left| now.saturating_add(in_millis(left)))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "http")]
    use std::io::BufRead;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Weak};

    use super::*;
    use crate::connection::{ConnectionInfo, EarlyOutput, Limits, Waker};
    use crate::drain::Drain;
    use crate::listener::Listener;
    use crate::sys::Poller;

    /// An occupant, and its client.
    fn occupant() -> (Occupant<()>, TcpStream) {
        let acceptor = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
        let (stream, peer) = acceptor.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let info = ConnectionInfo {
            socket: stream.into(),
            peer: peer.into(),
            listener: Listener::bind("127.0.0.1:0").unwrap().info,
            open_connection: Arc::new(Drain::default()).count_connection(),
            activity: Default::default(),
            early_output: EarlyOutput::default(),
            _client_place: None,
        };
        let poller = Arc::new(Poller::new().unwrap());
        let conn = Connection::new(
            Arc::new(info),
            Waker::new(Weak::<crate::parking::Lots<()>>::new(), 0),
            poller,
            Default::default(),
            &Limits::default(),
        );
        (Occupant::new(conn, Stage::Closing), client)
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_close_looks_for_more_input_unless_the_client_has_sent_all() {
        for (is_last, is_read, is_reported, lingers, expected) in [
            // Nothing is read before the close: `unread` stays in the socket.
            (true, true, false, false, Needs::Close),
            // Input is left in the buffer, or was reported, or may follow.
            (true, false, false, false, Needs::Client),
            (true, true, true, false, Needs::Client),
            (true, true, false, true, Needs::Client),
            (false, true, false, false, Needs::Client),
        ] {
            let (mut occupant, mut client) = occupant();
            client.write_all(b"last").unwrap();
            let conn = &mut occupant.conn;
            while conn.buffer().len() < 4 {
                conn.try_fill().unwrap();
            }
            if is_last {
                conn.note_last_message();
            }
            if is_read {
                conn.consume(4);
            }
            if lingers {
                conn.linger_on_close();
            }
            client.write_all(b"unread").unwrap();
            if is_reported {
                conn.note_readable(false);
            }
            let case = (is_last, is_read, is_reported, lingers);
            assert_eq!(occupant.advance(), expected, "{case:?}");
        }
    }

    #[test]
    fn lingering_takes_turns() {
        let (mut occupant, mut client) = occupant();
        client.write_all(&[b'x'; 5 * READ_SIZE]).unwrap();
        occupant.stage = Stage::Lingering { left: LINGER_BYTES };
        let mut turns = 0;
        drop(client);
        loop {
            let before = occupant.conn.take_moved().0;
            assert_eq!(before, 0);
            let needs = occupant.linger(2 * READ_SIZE);
            let discarded = occupant.conn.take_moved().0;
            assert!(discarded <= 3 * READ_SIZE as u64);
            match needs {
                Needs::NextTurn => turns += 1,
                Needs::Client => std::thread::yield_now(),
                needs => break assert_eq!(needs, Needs::Close),
            }
        }
        assert!(turns >= 1);
    }
}
