//! The service as its user makes it, and its settings.

use std::fmt;
use std::sync::Arc;

use ::http::{Request, Response};

use super::body::Body;
use super::head::{Limits, MOST_FIELDS};
use super::reply::Reply;

/// Makes a service of a handler: a function from a request to a response, whose body is anything that turns into a
/// [`Reply`].
///
/// # Examples
///
/// ```
/// use std::io::Read;
/// use handover::http::{self, Method, Reply, Response, StatusCode};
///
/// let service = http::service(|mut request| match (request.method(), request.uri().path()) {
///     (&Method::GET, "/") => Response::new(Reply::from("Hello!")),
///     (&Method::POST, "/length") => match request.body_mut().read_all(1 << 20) {
///         Ok(bytes) => Response::new(Reply::from(bytes.len().to_string())),
///         Err(_) => status(StatusCode::PAYLOAD_TOO_LARGE),
///     },
///     _ => status(StatusCode::NOT_FOUND),
/// });
///
/// fn status(status: StatusCode) -> Response<Reply> {
///     let mut response = Response::new(Reply::empty());
///     *response.status_mut() = status;
///     response
/// }
/// ```
pub fn service<H, R>(handler: H) -> Http<H>
where
    H: Fn(Request<Body<'_>>) -> Response<R> + Send + Sync,
    R: Into<Reply>,
{
    Http {
        handler,
        limits: Limits::default(),
        access_log: false,
        export: None,
    }
}

/// What a process that is to take over gets.
type Export = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A service that speaks HTTP/1.1, from [`service`].
#[derive(Clone)]
pub struct Http<H> {
    pub(super) handler: H,
    pub(super) limits: Limits,
    pub(super) access_log: bool,
    pub(super) export: Option<Export>,
}

impl<H> Http<H> {
    /// The size, in bytes, up to which a body is collected before the handler is called, costing no thread meanwhile.
    /// A body of unknown length counts as it is sent, with its framing. Together with the head it has to fit into the
    /// connection's [`input_limit`](crate::Builder::input_limit). Defaults to 64 KiB.
    pub fn small_body(mut self, bytes: usize) -> Self {
        self.limits.small_body = bytes;
        self
    }

    /// How many bytes a request's body may have; a longer one is answered with 413. Defaults to no limit.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.limits.body = bytes;
        self
    }

    /// How many bytes a request line may have; a longer one is answered with 414. Defaults to 8 KiB.
    pub fn max_request_line(mut self, bytes: usize) -> Self {
        self.limits.line = bytes;
        self
    }

    /// How many bytes a head may have, the request line included; a longer one is answered with 431. Defaults to
    /// 16 KiB.
    pub fn max_head(mut self, bytes: usize) -> Self {
        self.limits.head = bytes;
        self
    }

    /// How many fields a head may have, 256 at most; more are answered with 431. Defaults to 100.
    pub fn max_fields(mut self, fields: usize) -> Self {
        self.limits.fields = fields.min(MOST_FIELDS);
        self
    }

    /// Whether a line is logged for each request, with the `log` crate: at level info, with the target
    /// `handover::access`. Client, request line, status, bytes of body, milliseconds. Defaults to false.
    pub fn access_log(mut self, on: bool) -> Self {
        self.access_log = on;
        self
    }

    /// What a process that is to take over gets of this one, see [`Service::export`](crate::Service::export). Defaults
    /// to nothing.
    pub fn export(mut self, export: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.export = Some(Arc::new(export));
        self
    }
}

impl<H> fmt::Debug for Http<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("limits", &self.limits)
            .field("access_log", &self.access_log)
            .finish_non_exhaustive()
    }
}
