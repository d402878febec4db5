//! A service whose sessions two functions pack and unpack.

use std::error::Error;
use std::io;

use super::error::into_io_error;
use super::{BufferLimits, Next, Service};
use crate::connection::{Connection, Expiry};

/// Makes connections of a service move to the successor at a restart, with their sessions: `pack`
/// makes bytes of a session, and `unpack` makes a session of such bytes. See [`Service::pack`] and
/// [`Service::unpack`]. `unpack` may return errors of any type, as with
/// [`service`](super::service).
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
