//! A connection with its session, and what can be done for it without a service: writing out, closing, lingering.

use std::time::{Duration, Instant};

use crate::clock::in_millis;
use crate::connection::{Connection, Filled, READ_SIZE};

/// How long a closing connection waits for its client to take note, and how much it throws away meanwhile: so much as a
/// client may send that looks for an answer only when all of its request has left.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u32 = 64 * 1024 * 1024;

/// What a parked connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Its client to send something, see [`Wants`].
    Input,
    /// Its client to read what is buffered for it.
    Output,
    /// Its client to close, after we did.
    Linger,
}

/// What the service wants before it is called. It decides which time-out applies and what a drain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing: it has more to do.
    Nothing,
    /// The first byte of a new connection.
    FirstByte,
    /// A message: any byte will do, also one that is in the buffer already.
    Message,
    /// More of the message than is in the buffer.
    More,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// It is closed as soon as its output is written.
    Closing,
    /// Its output is written and the client told; so many more bytes from it are ignored.
    Lingering {
        left: u32,
    },
}

/// A connection that has a place in the lot, with its session.
// What is looked at first comes first, beside what every message touches of the connection; see there.
#[repr(C, align(64))]
pub(crate) struct Occupant<S> {
    pub(crate) wants: Wants,
    pub(crate) waits: Waits,
    phase: Phase,
    pub(crate) session: Option<S>,
    pub(crate) conn: Connection,
}

/// What is to be done with a connection before, or instead of, serving it.
pub(crate) enum Tended {
    /// It can be served.
    Ready,
    /// It waits for its client.
    Wait(Waits),
    /// It is finished.
    Done,
}

impl<S> Occupant<S> {
    pub(super) fn new(conn: Connection, wants: Wants) -> Self {
        Self {
            wants,
            waits: Waits::Input,
            phase: Phase::Serving,
            session: None,
            conn,
        }
    }

    /// Does what needs no service: writes buffered output, closes, lingers.
    pub(crate) fn tend(&mut self) -> Tended {
        match self.conn.flush_some() {
            Ok(true) => {}
            Ok(false) => return Tended::Wait(Waits::Output),
            Err(error) => {
                log::debug!("{}: cannot write: {error}", self.conn.info());
                return Tended::Done;
            }
        }
        if self.phase == Phase::Serving {
            return Tended::Ready;
        }
        if self.phase == Phase::Closing {
            // A close with unread input resets the connection, and may take the answer with it.
            if self.conn.at_eof() {
                return Tended::Done;
            }
            match self.conn.discard(&mut [0; 512]) {
                Ok((1.., Filled::Nothing | Filled::Bytes)) => {}
                Ok((0, Filled::Nothing)) if self.conn.lingers() => {}
                _ => return Tended::Done,
            }
            self.conn.half_close(LINGER);
            self.phase = Phase::Lingering { left: LINGER_BYTES };
        }
        self.linger()
    }

    fn linger(&mut self) -> Tended {
        let mut scratch = [0; READ_SIZE];
        while let Phase::Lingering { left } = self.phase {
            match self.conn.discard(&mut scratch) {
                Ok((_, Filled::Nothing)) => return Tended::Wait(Waits::Linger),
                Ok((count, Filled::Bytes)) if count < left as usize => {
                    let left = left - count as u32;
                    self.phase = Phase::Lingering { left };
                }
                Ok(_) | Err(_) => break,
            }
        }
        Tended::Done
    }

    /// It waits for a message, and nothing of one has come as far as is known.
    pub(super) fn is_between_messages(&self) -> bool {
        self.phase == Phase::Serving
            && !self.conn.has_output()
            && matches!(self.wants, Wants::FirstByte | Wants::Message)
    }

    /// Would its client take what it is told now for the answer to what it asked? Not in the middle of one.
    pub(super) fn waits_for_an_answer(&self) -> bool {
        let has_begun = self.wants == Wants::Nothing && self.session.is_some();
        !has_begun && self.conn.farewell().is_some()
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Ends the serving: what follows is writing out what is buffered, and the close.
    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closing;
    }

    /// Until when it may wait, in the clock's milliseconds.
    pub(super) fn due(&mut self, now: u64, first_byte: Duration) -> u64 {
        let deadline = match (self.waits, self.wants) {
            (Waits::Input, Wants::FirstByte) => return now.saturating_add(in_millis(first_byte)),
            (Waits::Input, Wants::Message | Wants::Nothing) => {
                return now.saturating_add(self.conn.idle_timeout());
            }
            (Waits::Input, Wants::More) | (Waits::Linger, _) => {
                self.conn.read_deadline(Instant::now())
            }
            (Waits::Output, _) => self.conn.write_deadline(Instant::now()),
        };
        let left = deadline.left(Instant::now());
        left.map_or(u64::MAX, |left| now.saturating_add(in_millis(left)))
    }
}
