//! What a service sets on a connection: time-outs, deadlines, limits and the goodbye.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Connection;
use crate::clock::{Deadline, in_millis};

impl Connection {
    /// Sets how long the present stretch of reading, counted from now, and each later one may take
    /// in total.
    pub fn set_read_timeout(&mut self, timeout: Duration) {
        self.read.timeout = timeout;
        self.read.reset();
    }

    /// Sets how long the present stretch of writing, counted from now, and each later one may take
    /// in total.
    pub fn set_write_timeout(&mut self, timeout: Duration) {
        self.write.timeout = timeout;
        self.write.reset();
    }

    /// Sets how long this connection may wait for its client's next message. With zero, the
    /// connection is closed unless the next message has begun to arrive.
    pub fn set_idle_timeout(&mut self, timeout: Duration) {
        self.idle_timeout = in_millis(timeout);
    }

    /// Sets the minimum rate, in bytes per second, at which moved bytes extend the read and the
    /// write time-out. With 0, nothing extends them.
    pub fn set_min_rate(&mut self, bytes_per_second: u32) {
        self.read.min_rate = bytes_per_second;
        self.write.min_rate = bytes_per_second;
    }

    /// Sets a point in time after which reading fails with `TimedOut`, whatever else is set. It
    /// stays until it is changed.
    pub fn set_read_deadline(&mut self, deadline: Option<Instant>) {
        self.read.hard = Deadline::at(deadline);
    }

    /// Sets a point in time after which writing fails with `TimedOut`, whatever else is set. It
    /// stays until it is changed.
    pub fn set_write_deadline(&mut self, deadline: Option<Instant>) {
        self.write.hard = Deadline::at(deadline);
    }

    /// Sets how many bytes of output may be buffered, those that are gathered included. With 0,
    /// every write waits until the kernel has taken it.
    pub fn set_output_limit(&mut self, bytes: usize) {
        self.output_limit = bytes;
    }

    /// Sets the bytes that the client is sent when the server ends the connection of its own
    /// accord: after a time-out, at a stop, or after a restart, behind the next answer or when
    /// [`idle_grace`](crate::Restart::idle_grace) has passed. Examples are SMTP's `421`, and the
    /// close frame of WebSocket. The bytes are not sent if the service ends the connection, also in
    /// [`Service::expired`](crate::Service::expired), nor while other output waits for the client,
    /// nor when a stop runs out of time. Defaults to nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Write};
    ///
    /// use handover::{Connection, Next};
    ///
    /// /// Begins the session of a client, on a listener whose server speaks first.
    /// fn greet(conn: &mut Connection) -> io::Result<()> {
    ///     conn.set_goodbye("421 mail.example.org closes the connection\r\n");
    ///     conn.write_all(b"220 mail.example.org ready\r\n")
    /// }
    /// # fn serve(_: &mut Connection, _: &mut (), _: &mut ()) -> io::Result<Next> { Ok(Next::Close) }
    /// # fn is_service(_: impl handover::Service) {}
    /// # is_service(handover::service_with(|_| Ok(()), greet, serve));
    /// ```
    pub fn set_goodbye(&mut self, bytes: impl Into<Bytes>) {
        self.goodbye = bytes.into();
    }

    /// In the clock's milliseconds.
    pub(crate) fn idle_timeout(&self) -> u64 {
        match self.is_idle_timeout_suspended {
            true => u64::MAX,
            false => self.idle_timeout,
        }
    }

    /// Suspends the idle time-out: the service has a deadline of its own for what it waits for.
    #[cfg(feature = "http")]
    pub(crate) fn suspend_idle_timeout(&mut self, is_suspended: bool) {
        self.is_idle_timeout_suspended = is_suspended;
    }

    pub(crate) fn read_deadline(&mut self, now: Instant) -> Deadline {
        self.may_have_deadline = true;
        self.read.deadline(now, self.bytes_in)
    }

    pub(crate) fn write_deadline(&mut self, now: Instant) -> Deadline {
        self.may_have_deadline = true;
        self.write.deadline(now, self.bytes_out)
    }
}
