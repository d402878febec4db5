//! The service: the application's code that serves connections, and [`Next`], which says what
//! happens after each call.

use std::any::{Any, TypeId};
use std::error::Error;
use std::io;
use std::sync::Arc;

use crate::connection::{Connection, Expiry};

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
    /// [`packs_sessions`](Self::packs_sessions) returns true**, between two messages, on a thread of
    /// the server. The session is dropped when the successor has adopted the connection. `None` if
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

/// Makes a service of a handler that returns errors of any type that `Box<dyn Error>` can be made of:
/// `Box<dyn Error>` itself, a `String`, or the error of a library. See [`Service::serve`] for what
/// becomes of errors. A handler that returns `io::Result` is a service already.
///
/// # Examples
///
/// ```
/// use std::error::Error;
/// use std::io::Write;
///
/// use handover::{Connection, Next, Server};
///
/// fn square(conn: &mut Connection) -> Result<Next, Box<dyn Error>> {
///     let Some(line) = conn.take_line(100)? else {
///         return Ok(Next::More);
///     };
///     let number: i64 = line.trim().parse()?;
///     writeln!(conn, "{}", number.checked_mul(number).ok_or("too large")?)?;
///     Ok(Next::Park)
/// }
///
/// let server = Server::builder().listen("localhost:0").build(handover::service(square))?;
/// # Ok::<(), Box<dyn Error>>(())
/// ```
pub fn service<F, E>(handler: F) -> impl Service<Session = (), Worker = ()>
where
    F: Fn(&mut Connection) -> Result<Next, E> + Send + Sync,
    E: Into<Box<dyn Error>>,
{
    move |conn: &mut Connection| handler(conn).map_err(into_io_error)
}

/// Makes a service of functions: one that builds the state of a worker, one that begins the session
/// of a connection, and the handler, which gets both. They may return errors of any type, as with
/// [`service`], the same for all three. Connections with the session `()` move to the successor at a
/// restart; others do with [`pack_sessions`]. The functions own what they use, as the service may
/// outlive its caller: an `Arc`, a clone, or `move`.
///
/// # Examples
///
/// ```
/// use std::io::{self, Write};
///
/// use handover::{Connection, Next, Server};
///
/// fn count(conn: &mut Connection, lines: &mut u64, (): &mut ()) -> io::Result<Next> {
///     let Some(line) = conn.take_line(1024)? else {
///         return Ok(Next::More);
///     };
///     *lines += 1;
///     writeln!(conn, "{lines}: {line}")?;
///     Ok(Next::Park)
/// }
///
/// let service = handover::service_with(|_index| Ok(()), |_conn| Ok(0), count);
/// let server = Server::builder().listen("localhost:0").build(service)?;
/// # Ok::<(), handover::BuildError>(())
/// ```
pub fn service_with<W, S, E>(
    worker: impl Fn(usize) -> Result<W, E> + Send + Sync,
    session: impl Fn(&mut Connection) -> Result<S, E> + Send + Sync,
    handler: impl Fn(&mut Connection, &mut S, &mut W) -> Result<Next, E> + Send + Sync,
) -> impl Service<Session = S, Worker = W>
where
    S: Send + 'static,
    E: Into<Box<dyn Error>>,
{
    Functions {
        worker: move |index| worker(index).map_err(into_io_error),
        session: move |conn: &mut Connection| session(conn).map_err(into_io_error),
        handler: move |conn: &mut Connection, session: &mut S, worker: &mut W| {
            handler(conn, session, worker).map_err(into_io_error)
        },
    }
}

/// Makes a service of two functions: one that begins the session of a connection, and the handler.
/// The variables of a loop that served one connection become the session. What both functions write
/// in the first call leaves together. The functions may return errors of any type, as with
/// [`service`]. Write a closure directly as the argument: in a variable, the types of its arguments are
/// not inferred.
///
/// # Examples
///
/// Adds up the numbers of each client:
///
/// ```
/// use std::error::Error;
/// use std::io::{self, Write};
///
/// use handover::{Bind, Connection, Next, Server};
///
/// fn greet(conn: &mut Connection) -> Result<i64, Box<dyn Error>> {
///     writeln!(conn, "numbers, please")?;
///     Ok(0)
/// }
///
/// fn add(conn: &mut Connection, sum: &mut i64) -> Result<Next, Box<dyn Error>> {
///     while let Some(line) = conn.take_line(100)? {
///         *sum += line.trim().parse::<i64>()?;
///         writeln!(conn, "{sum}")?;
///     }
///     Ok(Next::incomplete(conn))
/// }
///
/// let service = handover::service_with_session(greet, add);
/// let listen = Bind::new("localhost:0").speaks_first(true);
/// let server = Server::builder().listen(listen).build(service)?;
/// # Ok::<(), handover::BuildError>(())
/// ```
pub fn service_with_session<S, E>(
    session: impl Fn(&mut Connection) -> Result<S, E> + Send + Sync,
    handler: impl Fn(&mut Connection, &mut S) -> Result<Next, E> + Send + Sync,
) -> impl Service<Session = S, Worker = ()>
where
    S: Send + 'static,
    E: Into<Box<dyn Error>>,
{
    service_with(
        |_worker| Ok(()),
        session,
        move |conn: &mut Connection, session: &mut S, (): &mut ()| handler(conn, session),
    )
}

/// Makes connections of a service move to the successor at a restart, with their sessions: `pack`
/// makes bytes of a session, and `unpack` makes a session of such bytes. See [`Service::pack`] and
/// [`Service::unpack`]. `unpack` may return errors of any type, as with [`service`].
///
/// # Examples
///
/// ```
/// use std::io::{self, Write};
///
/// use handover::{Connection, Next, Server};
///
/// fn count(conn: &mut Connection, lines: &mut u64) -> io::Result<Next> {
///     let Some(line) = conn.take_line(1024)? else {
///         return Ok(Next::incomplete(conn));
///     };
///     *lines += 1;
///     writeln!(conn, "{lines}: {line}")?;
///     Ok(Next::Park)
/// }
///
/// let service = handover::service_with_session(|_conn| Ok(0), count);
/// let service = handover::pack_sessions(
///     service,
///     |lines: &u64| Some(lines.to_le_bytes().into()),
///     |packed| match packed.try_into() {
///         Ok(lines) => Ok(u64::from_le_bytes(lines)),
///         Err(_) => Err("not a number of lines"),
///     },
/// );
/// let server = Server::builder().listen("localhost:0").build(service)?;
/// # Ok::<(), handover::BuildError>(())
/// ```
pub fn pack_sessions<S, E>(
    service: S,
    pack: impl Fn(&S::Session) -> Option<Vec<u8>> + Send + Sync,
    unpack: impl Fn(Vec<u8>) -> Result<S::Session, E> + Send + Sync,
) -> impl Service<Session = S::Session, Worker = S::Worker>
where
    S: Service,
    E: Into<Box<dyn Error>>,
{
    PackingService {
        service,
        pack,
        unpack: move |packed| unpack(packed).map_err(into_io_error),
    }
}

struct PackingService<S, P, U> {
    service: S,
    pack: P,
    unpack: U,
}

impl<S, P, U> Service for PackingService<S, P, U>
where
    S: Service,
    P: Fn(&S::Session) -> Option<Vec<u8>> + Send + Sync,
    U: Fn(Vec<u8>) -> io::Result<S::Session> + Send + Sync,
{
    type Session = S::Session;
    type Worker = S::Worker;

    fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.service.check(buffers)
    }

    fn worker(&self, index: usize) -> io::Result<S::Worker> {
        self.service.worker(index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<S::Session> {
        self.service.session(conn)
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        worker: &mut S::Worker,
    ) -> io::Result<Next> {
        self.service.serve(conn, session, worker)
    }

    fn handles_expiry(&self) -> bool {
        self.service.handles_expiry()
    }

    fn expired(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        expiry: Expiry,
    ) -> io::Result<Next> {
        self.service.expired(conn, session, expiry)
    }

    fn packs_sessions(&self) -> bool {
        true
    }

    fn pack(&self, _conn: &Connection, session: &S::Session) -> Option<Vec<u8>> {
        (self.pack)(session)
    }

    fn unpack(&self, _conn: &mut Connection, packed: Vec<u8>) -> io::Result<S::Session> {
        (self.unpack)(packed)
    }
}

struct Functions<B, N, H> {
    worker: B,
    session: N,
    handler: H,
}

impl<W, S, B, N, H> Service for Functions<B, N, H>
where
    S: Send + 'static,
    B: Fn(usize) -> io::Result<W> + Send + Sync,
    N: Fn(&mut Connection) -> io::Result<S> + Send + Sync,
    H: Fn(&mut Connection, &mut S, &mut W) -> io::Result<Next> + Send + Sync,
{
    type Session = S;
    type Worker = W;

    fn worker(&self, index: usize) -> io::Result<W> {
        (self.worker)(index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<S> {
        (self.session)(conn)
    }

    fn serve(&self, conn: &mut Connection, session: &mut S, worker: &mut W) -> io::Result<Next> {
        (self.handler)(conn, session, worker)
    }

    /// A session of the type `()` has nothing to pack.
    fn packs_sessions(&self) -> bool {
        TypeId::of::<S>() == TypeId::of::<()>()
    }

    fn pack(&self, _conn: &Connection, _session: &S) -> Option<Vec<u8>> {
        self.packs_sessions().then(Vec::new)
    }

    fn unpack(&self, _conn: &mut Connection, packed: Vec<u8>) -> io::Result<S> {
        unpack_nothing(&packed)?;
        let session = (Box::new(()) as Box<dyn Any>).downcast();
        session.map_or(Err(io::ErrorKind::Unsupported.into()), |session| {
            Ok(*session)
        })
    }
}

/// A service without sessions must not take over a connection that has one: the client would notice.
pub(crate) fn unpack_nothing(packed: &[u8]) -> io::Result<()> {
    match packed {
        [] => Ok(()),
        _ => Err(io::Error::other("this version has no sessions")),
    }
}

/// The error itself if it is an `io::Error`. Otherwise an error with its text, which need not be
/// `Send`, and the kind of the `io::Error` in it.
pub(crate) fn into_io_error(error: impl Into<Box<dyn Error>>) -> io::Error {
    let error = match error.into().downcast::<io::Error>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let kind = match io_error_in(&*error) {
        Some(found) if found.kind() != io::ErrorKind::WouldBlock || is_wait(found) => found.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{error:#}"))
}

/// Whether an error may be the `WouldBlock` of a view of the connection, which a library may have
/// passed on in an error of its own, or made anew. An error of another socket has a code of the
/// system.
pub(crate) fn is_wait(error: &(dyn Error + 'static)) -> bool {
    let found = io_error_in(error);
    found.is_some_and(|it| it.kind() == io::ErrorKind::WouldBlock && it.raw_os_error().is_none())
}

/// The first `io::Error` among an error and its causes. An error that contains another one, as that
/// of [`io::Error::other`], has no kind of its own.
fn io_error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        next = match error.downcast_ref::<io::Error>() {
            // The `source` of an `io::Error` is that of the error in it.
            Some(error) => match error.get_ref() {
                Some(inner) if error.kind() == io::ErrorKind::Other => Some(inner as _),
                _ => return Some(error),
            },
            None => error.source(),
        };
    }
    None
}

impl<F> Service for F
where
    F: Fn(&mut Connection) -> io::Result<Next> + Send + Sync,
{
    type Session = ();
    type Worker = ();

    fn worker(&self, _index: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _conn: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        self(conn)
    }

    fn packs_sessions(&self) -> bool {
        true
    }

    fn pack(&self, _conn: &Connection, (): &()) -> Option<Vec<u8>> {
        Some(Vec::new())
    }

    fn unpack(&self, _conn: &mut Connection, packed: Vec<u8>) -> io::Result<()> {
        unpack_nothing(&packed)
    }
}

/// A service that is shared: by two servers, or with the application.
impl<S: Service> Service for Arc<S> {
    type Session = S::Session;
    type Worker = S::Worker;

    fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        S::check(self, buffers)
    }

    fn worker(&self, index: usize) -> io::Result<S::Worker> {
        S::worker(self, index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<S::Session> {
        S::session(self, conn)
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        worker: &mut S::Worker,
    ) -> io::Result<Next> {
        S::serve(self, conn, session, worker)
    }

    fn handles_expiry(&self) -> bool {
        S::handles_expiry(self)
    }

    fn expired(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        expiry: Expiry,
    ) -> io::Result<Next> {
        S::expired(self, conn, session, expiry)
    }
    fn packs_sessions(&self) -> bool {
        S::packs_sessions(self)
    }

    fn pack(&self, conn: &Connection, session: &S::Session) -> Option<Vec<u8>> {
        S::pack(self, conn, session)
    }

    fn unpack(&self, conn: &mut Connection, packed: Vec<u8>) -> io::Result<S::Session> {
        S::unpack(self, conn, packed)
    }
}
