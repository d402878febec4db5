//! Services that are made of functions: a closure alone, or functions with a session and the state of
//! a worker.

use std::any::{Any, TypeId};
use std::error::Error;
use std::io;

use super::error::into_io_error;
use super::{Next, Service};
use crate::connection::Connection;

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
/// restart; others do with [`pack_sessions`](super::pack_sessions). The functions own what they use, as the service may
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
