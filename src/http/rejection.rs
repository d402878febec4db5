//! Rejections: the reasons why the service answers a request itself, with an error status, and the
//! limits of requests.

use ::http::StatusCode;

/// Why the service responds in place of the handler, for
/// [`Http::error_response`](super::Http::error_response).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub(super) status: StatusCode,
    /// What is wrong, for the client and for the log.
    pub(super) detail: &'static str,
}

impl Rejection {
    pub(super) const fn new(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail }
    }

    /// The status that the service gives.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, in words that the client may see.
    pub fn detail(&self) -> &'static str {
        self.detail
    }
}

pub(super) const BODY_TOO_LARGE: Rejection =
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");

/// 400 (Bad Request).
pub(super) const fn bad_request(detail: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST, detail)
}

/// The highest value of [`RequestLimits::fields`].
pub(super) const MAX_FIELDS: usize = 256;

/// The longest request that is accepted. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(super) struct RequestLimits {
    pub(super) request_line: usize,
    /// The request line and the field lines together.
    pub(super) head: usize,
    /// The number of fields in a head, at most [`MAX_FIELDS`].
    pub(super) fields: usize,
    /// A body up to this size is collected before the handler is called.
    pub(super) small_body: usize,
    pub(super) body: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            request_line: 8 * 1024,
            head: 16 * 1024,
            fields: 100,
            small_body: 64 * 1024,
            body: u64::MAX,
        }
    }
}
