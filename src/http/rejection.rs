//! A rejection: the reason why the service answers a request itself, with an error status.

use ::http::StatusCode;

/// An error response in place of the handler's. The connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) status: StatusCode,
    /// What is wrong, for the client and for the log.
    pub(super) detail: &'static str,
}

impl Rejection {
    pub(super) const fn new(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail }
    }
}

/// 400 (Bad Request).
pub(super) const fn bad_request(detail: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, detail)
}
