//! What a user writes: the service that is called for connections, and what it says comes next.

use std::io;

use crate::connection::Connection;

/// What a service wants to happen with a connection after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The message is done: wait for the client's next one, costing no thread, for at most
    /// [`idle_timeout`](crate::Builder::idle_timeout). Unread bytes in the buffer are taken as the next message:
    /// the service is called again for them, in turn with other connections.
    Park,
    /// The message is incomplete: wait until more bytes follow what is in the buffer, costing no thread, until the
    /// message's [`read_timeout`](crate::Builder::read_timeout) ends. At the end of the stream the service is called
    /// once more, with [`at_eof`](Connection::at_eof) true.
    More,
    /// There is more to do without the client: call again after those that wait in the queue.
    Again,
    /// Write out what is buffered, then close.
    Close,
    /// The socket was taken out with [`detach`](Connection::detach) and the service is done with it.
    Detach,
}

/// A service: called with a connection whenever its client has sent something.
///
/// One value serves all connections from all workers, so that shared state is `&self`; what belongs to a connection
/// goes into its [`Session`](Self::Session), and what belongs to a thread, such as a database handle, into its
/// [`Worker`](Self::Worker). Every `Fn(&mut Connection) -> io::Result<Next>` is a service without the two.
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
///     fn session(&self, _conn: &Connection) -> io::Result<u64> {
///         Ok(0)
///     }
///
///     fn serve(&self, conn: &mut Connection, lines: &mut u64, _: &mut ()) -> io::Result<Next> {
///         let Some(line) = conn.take_line(1024)? else {
///             return Ok(if conn.at_eof() { Next::Close } else { Next::More });
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
    /// What belongs to one connection. It survives parking, and is dropped with the connection: by a worker, or by
    /// the keeper thread when a time has run out, so its `drop` should not block.
    type Session: Send + 'static;

    /// What belongs to one worker. It is built, used and dropped on the worker's own thread, and built anew after a
    /// panic.
    type Worker;

    /// Builds a worker's own state, at its start and after a panic.
    ///
    /// # Errors
    ///
    /// At the start, an error here is that of the server's start. Later it costs the next connection.
    fn worker(&self, index: usize) -> io::Result<Self::Worker>;

    /// Builds a connection's session, before the first call of [`serve`](Self::serve) for it. Nothing has been read.
    ///
    /// # Errors
    ///
    /// An error closes the connection.
    fn session(&self, conn: &Connection) -> io::Result<Self::Session>;

    /// Serves a connection that has something to read, or that is new on a listener whose server speaks first.
    ///
    /// It may do one message and return, or loop until the end of the stream. An error closes the connection at
    /// once; so does a panic, which costs nothing else.
    ///
    /// # Errors
    ///
    /// Whatever its reads and writes return may be passed on; it is logged at debug level.
    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Self::Session,
        worker: &mut Self::Worker,
    ) -> io::Result<Next>;

    /// What a process that is to take over needs to know, such as counts or sessions; it finds this in
    /// [`Restart::state`](crate::Restart::state). Called when a restart begins, while this process serves on: what
    /// changes later is not in it. The application sees to it that its next version understands the bytes. Defaults to
    /// nothing.
    fn export(&self) -> Option<Vec<u8>> {
        None
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

    fn session(&self, _conn: &Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        self(conn)
    }
}
