//! Why the service is called, besides the input: wake-ups, the timer, the drain, an expiry.

use std::time::Instant;

use crate::clock;

/// Why the service is called, from [`Connection::cause`](crate::Connection::cause). Several may be
/// true at once. All are false if none applies, as after [`Next::Again`](crate::Next::Again).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cause {
    /// The [`buffer`](crate::Connection::buffer) has bytes, perhaps left from an earlier call.
    pub readable: bool,
    /// A [`Waker`](crate::Waker) has woken the connection.
    pub woken: bool,
    /// The time of [`wake_at`](crate::Connection::wake_at) has come.
    pub timer: bool,
    /// The client has ended its side of the stream, as
    /// [`at_eof`](crate::Connection::at_eof) says, or with bytes that the buffer had no room for.
    pub ended: bool,
    /// The server has begun to stop, or was replaced by a successor. True in one call only, unlike
    /// [`is_draining`](crate::Connection::is_draining), and only if the connection has ever had a
    /// waker, an outbox or a timer. Other connections are not told: a stop closes those that are
    /// idle without a call, and after a restart
    /// [`Service::expired`](crate::Service::expired) is called when
    /// [`idle_grace`](crate::Restart::idle_grace) ends.
    pub draining: bool,
}

/// Which time-out has expired, for [`Service::expired`](crate::Service::expired).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// The client has not begun a message within
    /// [`idle_timeout`](crate::Builder::idle_timeout), or nothing has happened after
    /// [`Next::Wait`](crate::Next::Wait) for that long. After a restart, the client has not begun
    /// a message within [`idle_grace`](crate::Restart::idle_grace).
    Idle,
    /// The client has begun a message, and not ended it within
    /// [`read_timeout`](crate::Builder::read_timeout).
    Read,
}

/// The calls of the service that are due although the client may have sent nothing.
#[derive(Debug, Default)]
pub(crate) struct DueCalls {
    pub(crate) woken: bool,
    pub(crate) timer: bool,
    pub(crate) draining: bool,
    pub(crate) expiry: Option<Expiry>,
    /// When the timer is due, in the clock's milliseconds.
    pub(crate) timer_at: Option<u64>,
    /// The service was told of the drain, or of the client's end.
    had_drain_call: bool,
    was_told_of_end: bool,
    /// What the present call was told.
    present: Cause,
}

impl DueCalls {
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.woken || self.timer || self.draining || self.expiry.is_some()
    }

    /// Begins a call of the service.
    #[inline]
    pub(crate) fn begin(&mut self, readable: bool, ended: bool) {
        self.was_told_of_end |= ended;
        self.present = Cause {
            readable,
            woken: std::mem::take(&mut self.woken),
            timer: std::mem::take(&mut self.timer),
            ended,
            draining: std::mem::take(&mut self.draining),
        };
    }

    pub(crate) fn set_readable(&mut self, readable: bool) {
        self.present.readable = readable;
    }

    pub(crate) fn present(&self) -> Cause {
        self.present
    }

    pub(crate) fn was_told_of_end(&self) -> bool {
        self.was_told_of_end
    }

    pub(crate) fn had_drain_call(&self) -> bool {
        self.had_drain_call
    }

    pub(crate) fn note_drain(&mut self) {
        self.draining = true;
        self.had_drain_call = true;
    }

    /// Sets the timer. A timer that is due already leads to a call after the present one.
    pub(crate) fn set_timer(&mut self, at: Option<Instant>) {
        self.timer_at = at.map(clock::millis_at);
        self.timer = false;
    }

    /// Whether the timer is due. If so, the timer is taken, and leads to a call.
    pub(crate) fn check_timer(&mut self, now: u64) -> bool {
        let is_due = self.timer_at.is_some_and(|at| at <= now);
        if is_due {
            self.timer_at = None;
            self.timer = true;
        }
        is_due
    }
}
