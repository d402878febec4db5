//! The service: the application's code that serves connections, and [`Next`], which says what
//! happens after each call.

mod error;
mod functions;
mod packing;
mod shared;

use std::error::Error;
use std::io;

use crate::connection::{Connection, Expiry};

#[cfg(feature = "http")]
pub(crate) use error::into_io_error;
pub(crate) use error::is_wait;
#[cfg(feature = "http")]
pub(crate) use functions::unpack_nothing;
pub use functions::{service, service_with, service_with_session};
pub use packing::pack_sessions;

/// What becomes of a connection after a call of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The message is done: wait for the client's next message, on no thread, for at most
    /// [`idle_timeout`](crate::Builder::idle_timeout). If bytes are left in the buffer, they are
    /// the next message, and the service is called again. If a call for them consumes nothing and
    /// returns `Park` again, `Park` means [`More`](Self::More), and a warning is logged once.
    ///
    /// Not in the middle of a message: a stop closes a parked connection, a restart closes or moves it,
    /// and the idle time-out applies. A protocol whose message has several lines, as the text of a mail has,
    /// returns [`More`](Self::More) between them, also if it has consumed the lines so far.
    Park,
    /// The message is incomplete: wait for more bytes than those in the buffer, on no thread, until
    /// the message's [`read_timeout`](crate::Builder::read_timeout) expires. A stop or a restart
    /// waits for the message, within its own deadline.
    ///
    /// If this call has consumed bytes and left others, the service is called for those first: they
    /// may be the next part of the message. At the end of the stream the service is called once
    /// more, with [`at_eof`](Connection::at_eof) true; `More` then closes the connection.
    ///
    /// Not between two messages: a service that is also called without input, to greet its client or
    /// by a [`Waker`](crate::Waker), returns [`Next::incomplete`].
    More,
    /// The answer comes from elsewhere: wait on no thread for a [`Waker`](crate::Waker), the timer
    /// ([`Connection::wake_at`]), the end of the client's side, or the beginning of a drain.
    /// What the client sends meanwhile stays in the buffer, up to
    /// [`input_limit`](crate::Builder::input_limit), and leads to no call. If a timer is set, it
    /// ends the wait; otherwise the wait expires after
    /// [`idle_timeout`](crate::Builder::idle_timeout), counted from each call. A service that waits
    /// for both its client and other threads returns [`Park`](Self::Park): wake-ups work there too.
    Wait,
    /// There is more to do without the client: call the service again, after the connections that
    /// are on the queue, and when all output is written. So a service that produces output returns
    /// it after each piece, and goes as fast as its client reads. Nothing is read before that call:
    /// a service that waits for input would be called in a circle, and returns
    /// [`More`](Self::More). While the client does not read, the call waits, under the
    /// [`write_timeout`](crate::Builder::write_timeout).
    Again,
    /// Write the buffered output, then close. Also the end of a connection whose socket was taken
    /// out with [`detach`](Connection::detach): the socket that was taken stays open.
    Close,
}

impl Next {
    /// What to return if the buffer has no complete message: [`Park`](Self::Park) if the buffer is
    /// empty, so that no message has begun, and [`More`](Self::More) otherwise.
    pub fn incomplete(conn: &Connection) -> Self {
        match conn.buffer().is_empty() {
            true => Self::Park,
            false => Self::More,
        }
    }
}

/// The server's settings that limit what a service can do with a connection, for
/// [`Service::check`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BufferLimits {
    /// [`Builder::input_limit`](crate::Builder::input_limit), in bytes.
    pub input_limit: usize,
    /// [`Builder::output_limit`](crate::Builder::output_limit), in bytes.
    pub output_limit: usize,
}

/// A service: called with a connection when there is a [`Cause`](crate::Cause), such as new input.
///
/// One value serves all connections on all workers, so shared state is `&self`. The state of one
/// connection goes into its [`Session`](Self::Session). The state of one thread, such as a database
/// handle, goes into its [`Worker`](Self::Worker). Every `Fn(&mut Connection) -> io::Result<Next>`
/// is a service without the two, and [`service`] makes one of a handler with any other error.
///
/// # Examples
///
/// Counts the lines of each connection:
///
/// ```
/// use std::io::{self, Write};
///
/// use handover::{Connection, Next, Service};
///
/// struct Count;
///
/// impl Service for Count {
///     type Session = u64;
///     type Worker = ();
///
///     fn worker(&self, _index: usize) -> io::Result<()> {
///         Ok(())
///     }
///
///     fn session(&self, _conn: &mut Connection) -> io::Result<u64> {
///         Ok(0)
///     }
///
///     fn serve(&self, conn: &mut Connection, lines: &mut u64, _: &mut ()) -> io::Result<Next> {
///         let Some(line) = conn.take_line(1024)? else {
///             return Ok(Next::More);
///         };
///         *lines += 1;
///         writeln!(conn, "{lines}: {line}")?;
///         Ok(Next::Park)
///     }
/// }
/// # fn is_service(_: impl Service) {}
/// # is_service(Count);
/// ```
pub trait Service: Send + Sync {
    /// The state of one connection. It survives parking, and is dropped with the connection: by a
    /// worker, the keeper thread or the main thread. So its `drop` should not block.
    type Session: Send + 'static;

    /// The state of one worker. The state is built, used and dropped on the worker's own thread.
    type Worker;

    /// Checks the settings of the service, alone and together with those of the server.
    /// [`Builder::build`](crate::Builder::build) calls it before it binds a listener. A service
    /// that contains another service calls the `check` of that one. Defaults to success.
    ///
    /// # Errors
    ///
    /// What is wrong, with the name of the setting. The server is then not built, see
    /// [`BuildError::Service`](crate::BuildError::Service).
    fn check(&self, _buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    /// Builds a worker's state: for the first worker when the server starts, for every other worker
    /// before its first call of [`serve`](Self::serve), and again after a panic.
    ///
    /// # Errors
    ///
    /// An error for the first worker is an error of the server's start. A later error is logged,
    /// and the worker leaves its connections to the other workers. It tries again after 100 ms,
    /// then after twice as long each time, up to 10 s. While all workers fail, connections wait as
    /// while all workers are busy. A panic is the same as an error.
    fn worker(&self, index: usize) -> io::Result<Self::Worker>;

    /// Begins a connection's session, just before the first call of [`serve`](Self::serve) for it,
    /// on the same worker. On a listener whose server speaks first
    /// ([`Bind::speaks_first`](crate::Bind::speaks_first)) the client has sent nothing yet: this is
    /// the place to greet it.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn session(&self, conn: &mut Connection) -> io::Result<Self::Session>;

    /// Serves a connection that has something to read, or that is new on a listener whose server
    /// speaks first.
    ///
    /// A call may serve one message and return, or loop until the end of the stream. A loop holds its
    /// worker until the client has left, also while the client is silent: with as many such clients
    /// as workers, all others wait. A panic closes this connection and no other.
    ///
    /// # Errors
    ///
    /// An error closes the connection at once. What was written before is sent as far as the socket
    /// takes it, and unread input may reset the connection: a service that answers what is wrong returns
    /// [`Next::Close`] in place of the error. Errors of reading and writing, and of the `take_…` methods,
    /// may be passed on: they are logged at debug level. Any other error is a warning in the log, and
    /// counts in
    /// [`Stats::service_errors`](crate::Stats::service_errors). `io::Error::other` makes one of any
    /// other type.
    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Self::Session,
        worker: &mut Self::Worker,
    ) -> io::Result<Next>;

    /// Whether [`expired`](Self::expired) is called. Asked once, when the server starts. Defaults to
    /// false: connections are closed when their time-out expires.
    fn handles_expiry(&self) -> bool {
        false
    }

    /// A time-out of the connection has expired: the service may say so to the client before the
    /// connection is closed, or may go on with the connection. **Called only if
    /// [`handles_expiry`](Self::handles_expiry) returns true**, which is not the default, and only
    /// for a connection that was served before and whose output is written. Also called, with
    /// [`Expiry::Idle`], when [`idle_grace`](crate::Restart::idle_grace) ends an idle connection
    /// after a restart. A stop does not call it, see [`Cause::draining`](crate::Cause::draining).
    /// At most a quarter of the workers is in such calls, and at least one: connections beyond that
    /// are closed without a call. Defaults to [`Next::Close`].
    ///
    /// # Errors
    ///
    /// As those of [`serve`](Self::serve).
    fn expired(
        &self,
        _conn: &mut Connection,
        _session: &mut Self::Session,
        _expiry: Expiry,
    ) -> io::Result<Next> {
        Ok(Next::Close)
    }

    /// Whether connections move to the successor at a restart, with what [`pack`](Self::pack) makes
    /// of their sessions, see [`Restart::move_connections`](crate::Restart::move_connections). Asked
    /// once, when the server is built. Defaults to false: each connection stays with the process
    /// that has accepted it. A service that contains another service passes this call on to it, with
    /// `pack` and [`unpack`](Self::unpack).
    fn packs_sessions(&self) -> bool {
        false
    }

    /// Makes bytes of a session, from which [`unpack`](Self::unpack) makes an equal one in the
    /// successor: a later version of the program, or an earlier one. **Called only if
    /// [`packs_sessions`](Self::packs_sessions) returns true**, on a thread of the server, between two
    /// messages; with [`Restart::exact_state`](crate::Restart::exact_state), also in a message of which
    /// the service has consumed nothing, and which the successor gets from its beginning. The session
    /// is dropped when the successor has adopted the connection. `None` if
    /// the connection must stay in this process. It also stays if bytes and unread input are longer
    /// than about 100 KiB together, and after a panic. Defaults to `None`.
    fn pack(&self, _conn: &Connection, _session: &Self::Session) -> Option<Vec<u8>> {
        None
    }

    /// Begins the session of a connection that the predecessor has moved to this process, in place
    /// of [`session`](Self::session). The connection has the time-outs and limits that its service
    /// has set in the predecessor. Called on a thread of the server, before the predecessor gives
    /// the connection up: **do not read or write**.
    ///
    /// # Errors
    ///
    /// With an error, or after a panic, the connection stays with the predecessor, which drains.
    /// Defaults to `Unsupported`.
    fn unpack(&self, _conn: &mut Connection, _packed: Vec<u8>) -> io::Result<Self::Session> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
