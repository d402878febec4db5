//! The state of an HTTP connection between two calls of the service.

use std::fmt;

use super::collected_body::CollectedBody;
use super::discarded_body::DiscardedBody;
use super::reply::UpgradedProtocol;

/// The state of one HTTP connection, as [`Http`](super::Http) keeps it while the connection waits
/// for its client: the [`Service::Session`](crate::Service::Session) of `Http`. Opaque.
///
/// # Examples
///
/// A service that contains an HTTP service, and has a setting of its own for each connection:
///
/// ```
/// use std::io;
/// use std::time::Duration;
///
/// use handover::http::{Body, Http, Reply, Request, Response, Session, WorkerBuffers};
/// use handover::{Connection, Next, Service};
///
/// struct Patient<H>(Http<H>);
///
/// impl<H> Service for Patient<H>
/// where
///     H: Fn(Request<Body<'_>>) -> Response<Reply> + Send + Sync,
/// {
///     type Session = Session;
///     type Worker = WorkerBuffers;
///
///     fn worker(&self, index: usize) -> io::Result<WorkerBuffers> {
///         self.0.worker(index)
///     }
///
///     fn session(&self, conn: &Connection) -> io::Result<Session> {
///         self.0.session(conn)
///     }
///
///     fn serve(
///         &self,
///         conn: &mut Connection,
///         session: &mut Session,
///         buffers: &mut WorkerBuffers,
///     ) -> io::Result<Next> {
///         if conn.listener_name() == "internal" {
///             conn.set_idle_timeout(Duration::from_secs(600));
///         }
///         self.0.serve(conn, session, buffers)
///     }
/// }
/// ```
pub struct Session(pub(super) SessionState);

/// What the connection's next bytes belong to. `exchange` has the transitions.
pub(super) enum SessionState {
    /// The head of a request. Its first `examined` bytes have arrived and do not contain its end.
    Head { examined: usize },
    /// A small body that is being collected, behind its head in the buffer.
    Body(CollectedBody),
    /// The rest of a body that no handler wanted.
    Discard(DiscardedBody),
    /// Another protocol, after an upgrade.
    Upgraded(UpgradedProtocol),
}

impl SessionState {
    /// The state between two requests.
    pub(super) const START: Self = Self::Head { examined: 0 };
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            SessionState::Head { .. } => "Session(Head)",
            SessionState::Body(_) => "Session(Body)",
            SessionState::Discard(_) => "Session(Discard)",
            SessionState::Upgraded(_) => "Session(Upgraded)",
        })
    }
}
