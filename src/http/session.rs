//! The state of an HTTP connection between two calls of the service.

use std::fmt;

use super::collected_body::CollectedBody;
use super::discarded_body::DiscardedBody;
use super::reply::UpgradedProtocol;

/// The state of one HTTP connection, as [`Http`](super::Http) keeps it while the connection waits
/// for its client: the [`Service::Session`](crate::Service::Session) of `Http`. Opaque.
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
