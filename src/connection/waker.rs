//! Wakers: other threads that have the service called for a connection.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ptr;
use std::sync::{Arc, Weak};

/// The part of a server that wakers and outboxes call. They refer to it weakly.
pub(crate) trait WakeTarget: Send + Sync {
    /// Has the service called for the connection with this token. False if the connection has
    /// ended.
    fn wake(&self, token: u64) -> bool;

    /// Sends the messages in the outbox of the connection with this token, if no other thread holds
    /// the connection.
    fn send(&self, token: u64);

    /// Closes the connection with this token, whose outbox says so, although its client does not
    /// read.
    fn break_off(&self, token: u64);
}

/// Has the service called for one connection, from any thread. From
/// [`Connection::waker`](crate::Connection::waker).
///
/// A waker is small and weak: it keeps neither the connection nor the server alive. It names one
/// connection for ever. Once that connection has ended, its waker does nothing, whichever
/// connection uses the server's memory next. Two wakers are equal if they are of the same
/// connection. So a `HashSet<Waker>` is a set of connections, and a `HashMap` with wakers as keys
/// has one entry for each connection.
///
/// # Examples
///
/// A service whose answers come from another thread:
///
/// ```
/// use std::io::{self, Write};
/// use std::sync::{Arc, Mutex, mpsc};
///
/// use handover::{Connection, Next, Waker};
///
/// type Answer = Arc<Mutex<Option<String>>>;
///
/// /// Asks another thread for the answer to each line.
/// fn serve(
///     conn: &mut Connection,
///     answer: &mut Option<Answer>,
///     jobs: &mpsc::Sender<(String, Answer, Waker)>,
/// ) -> io::Result<Next> {
///     if let Some(waiting) = answer {
///         let Some(text) = waiting.lock().unwrap().take() else {
///             return Ok(Next::Wait);
///         };
///         *answer = None;
///         writeln!(conn, "{text}")?;
///     }
///     let Some(line) = conn.take_line(1024)? else {
///         return Ok(Next::incomplete(conn));
///     };
///     let waiting = answer.insert(Answer::default());
///     // The other thread stores the answer, then calls `wake`.
///     let job = (line, Arc::clone(waiting), conn.waker());
///     jobs.send(job).map_err(io::Error::other)?;
///     Ok(Next::Wait)
/// }
/// ```
#[derive(Clone)]
pub struct Waker {
    target: Weak<dyn WakeTarget>,
    token: u64,
}

impl Waker {
    pub(crate) fn new(target: Weak<dyn WakeTarget>, token: u64) -> Self {
        Self { target, token }
    }

    /// Has the service called for the connection, in turn with all others, though the client has
    /// sent nothing. [`Connection::cause`](crate::Connection::cause) then says `woken`.
    ///
    /// A wake-up during a call of the service leads to another call; so does one before the
    /// connection is parked. Several wake-ups before a call lead to one call. While output waits
    /// for the client to read, the call waits as well.
    ///
    /// Never blocks. Makes at most one system call, and none if the connection is on the queue
    /// already. False if the connection has ended.
    pub fn wake(&self) -> bool {
        self.target().is_some_and(|target| target.wake(self.token))
    }

    pub(super) fn send(&self) {
        if let Some(target) = self.target() {
            target.send(self.token);
        }
    }

    pub(super) fn break_off(&self) {
        if let Some(target) = self.target() {
            target.break_off(self.token);
        }
    }

    fn target(&self) -> Option<Arc<dyn WakeTarget>> {
        self.target.upgrade()
    }
}

impl PartialEq for Waker {
    fn eq(&self, other: &Self) -> bool {
        // The memory of a server is not used for another one as long as a waker refers to it.
        self.token == other.token && ptr::addr_eq(self.target.as_ptr(), other.target.as_ptr())
    }
}

impl Eq for Waker {}

impl Hash for Waker {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.token.hash(state);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}
