//! The state of an HTTP connection between two calls of the service.

use std::fmt;
use std::time::Duration;

use ::http::{Response, StatusCode};

use super::access_log::{LoggedBody, LoggedRequest};
use super::answer_race::AwaitedAnswer;
use super::body::{CollectedBody, DiscardedBody, SpooledRequest};
use super::head::RequestHead;
use super::reader_body::ReaderBody;
use super::reply::{Reply, UpgradedProtocol};

/// The state of one HTTP connection, as [`Http`](super::Http) keeps it while the connection waits
/// for its client: the [`Service::Session`](crate::Service::Session) of `Http`. Opaque.
///
/// # Examples
///
/// A service that contains an HTTP service, and has a setting of its own for each connection:
///
/// ```
/// use std::error::Error;
/// use std::io;
/// use std::time::Duration;
///
/// use handover::http::{Body, Http, Reply, Request, Response, Session, WorkerBuffers};
/// use handover::{BufferLimits, Connection, Next, Service};
///
/// struct Patient<H>(Http<H>);
///
/// impl<H> Service for Patient<H>
/// where
///     H: Fn(&mut Request<Body<'_>>) -> Response<Reply> + Send + Sync,
/// {
///     type Session = Session;
///     type Worker = WorkerBuffers;
///
///     fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
///         self.0.check(buffers)
///     }
///
///     fn worker(&self, index: usize) -> io::Result<WorkerBuffers> {
///         self.0.worker(index)
///     }
///
///     fn session(&self, conn: &mut Connection) -> io::Result<Session> {
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

/// What the connection's next bytes belong to. The table in [`exchange`](super::exchange) has the
/// transitions.
pub(super) enum SessionState {
    /// The head of a request. Its first `examined` bytes have arrived and do not contain its end.
    Head { examined: usize },
    /// A small body that is being collected, behind its head in the buffer.
    Body(CollectedBody),
    /// A larger body that is being spooled.
    Spool(Box<SpooledRequest>),
    /// The rest of a body that no handler wanted.
    Discard(DiscardedBody),
    /// A response whose body is read from a reader, which has not ended.
    Response(Box<OpenResponse>),
    /// A response that another thread gives.
    Later(Box<AwaitedResponse>),
    /// A response whose body other threads send.
    Channel(Box<OpenChannel>),
    /// Another protocol, after an upgrade.
    Upgraded(UpgradedProtocol),
}

impl SessionState {
    /// Whether a response has begun, or is awaited, and has not ended.
    #[inline]
    pub(super) fn has_open_response(&self) -> bool {
        matches!(self, Self::Response(_) | Self::Later(_) | Self::Channel(_))
    }

    /// The next bytes are a new request's.
    #[inline]
    pub(super) fn expect_head(&mut self) {
        match self {
            // Nothing is to be dropped.
            Self::Head { examined } => *examined = 0,
            _ => *self = Self::Head { examined: 0 },
        }
    }
}

/// A response whose body is read from a reader.
pub(super) struct OpenResponse {
    pub(super) body: ReaderBody,
    pub(super) end: ResponseEnd,
    pub(super) logged_request: Option<LoggedRequest>,
}

/// A request whose response another thread gives.
pub(super) struct AwaitedResponse {
    pub(super) answer: AwaitedAnswer<Response<Reply>>,
    pub(super) request: RequestHead,
    pub(super) logged_request: Option<LoggedRequest>,
    /// How long the request waited for a worker.
    pub(super) waited: Duration,
}

/// A response whose body other threads send.
pub(super) struct OpenChannel {
    pub(super) body: LoggedBody,
    pub(super) end: ResponseEnd,
    pub(super) is_chunked: bool,
}

/// What is to be done after a response.
pub(super) struct ResponseEnd {
    pub(super) status: StatusCode,
    pub(super) closes: bool,
    /// The rest of the request's body.
    pub(super) rest: DiscardedBody,
    pub(super) is_body_consumed: bool,
    /// How long the request waited for a worker.
    pub(super) waited: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            SessionState::Head { .. } => "Session(Head)",
            SessionState::Body(_) => "Session(Body)",
            SessionState::Spool(_) => "Session(Spool)",
            SessionState::Discard(_) => "Session(Discard)",
            SessionState::Response(_) => "Session(Response)",
            SessionState::Later(_) => "Session(Later)",
            SessionState::Channel(_) => "Session(Channel)",
            SessionState::Upgraded(_) => "Session(Upgraded)",
        })
    }
}
