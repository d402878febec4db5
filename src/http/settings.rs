//! The HTTP service as an application makes it, and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};

use super::access_log::AccessLog;
use super::body::Body;
use super::rejection::{MAX_FIELDS, RequestLimits};
use super::reply::Reply;
use crate::service::BufferLimits;

/// Makes a service from a handler: a function from a request to a response. The response's body is
/// of any type that converts into a [`Reply`].
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
        limits: RequestLimits::default(),
        access_log: None,
        abandoned_after: Duration::from_secs(1),
        export: None,
    }
}

/// A service that speaks HTTP/1.1, from [`service`].
#[derive(Clone)]
pub struct Http<H> {
    pub(super) handler: H,
    pub(super) limits: RequestLimits,
    pub(super) access_log: Option<AccessLog>,
    pub(super) abandoned_after: Duration,
    /// The source of the state for the next process.
    pub(super) export: Option<Arc<dyn Fn() -> Vec<u8> + Send + Sync>>,
}

impl<H> Http<H> {
    /// Sets the size in bytes up to which a body is collected before the handler is called; the
    /// connection occupies no thread meanwhile. A chunked body counts with its framing. A body that
    /// does not fit into the connection's [`input_limit`](crate::Builder::input_limit) together
    /// with its head is not collected, whatever is set here. Defaults to 64 KiB.
    pub fn small_body(mut self, bytes: usize) -> Self {
        self.limits.small_body = bytes;
        self
    }

    /// Sets the largest size of a request's body in bytes. A larger body is rejected with 413.
    /// Defaults to no limit.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.limits.body = bytes;
        self
    }

    /// Sets the largest size of a request line in bytes. A longer line is rejected with 414, and so
    /// is a line that is longer than [`max_head`](Self::max_head). At least 1. Defaults to 8 KiB.
    pub fn max_request_line(mut self, bytes: usize) -> Self {
        self.limits.request_line = bytes;
        self
    }

    /// Sets the largest size of a head in bytes, the request line included. A longer head is
    /// rejected with 431. At least 1, and at most the connection's
    /// [`input_limit`](crate::Builder::input_limit): the server is not built otherwise. Defaults to
    /// 16 KiB.
    pub fn max_head(mut self, bytes: usize) -> Self {
        self.limits.head = bytes;
        self
    }

    /// Sets the largest number of fields in a head, at most 256. A head with more is rejected with
    /// 431. Defaults to 100.
    pub fn max_fields(mut self, fields: usize) -> Self {
        self.limits.fields = fields.min(MAX_FIELDS);
        self
    }

    /// Sets the format in which each response is logged, see [`AccessLog`]. The lines go through
    /// the `log` crate, at level info with the target `handover::access`. Defaults to `None`: no
    /// response is logged.
    ///
    /// # Examples
    ///
    /// ```
    /// use handover::http::{self, AccessLog, Response};
    ///
    /// let service = http::service(|_| Response::new("Hello!")).access_log(AccessLog::Combined);
    /// ```
    pub fn access_log(mut self, format: impl Into<Option<AccessLog>>) -> Self {
        self.access_log = format.into();
        self
    }

    /// Sets how long a request may wait for a worker until the service checks its client. If a
    /// request has waited longer, and the client has ended its side of the connection, the request
    /// is not handled, and the connection is closed. Such connections count in
    /// [`Stats::abandoned`](crate::Stats::abandoned). If the client has reset the connection, the
    /// request is not handled after a wait of 10 ms already, whatever is set here.
    ///
    /// A client may end its side and still wait for the response, as `nc -N` does, but most clients
    /// that end their side have left. nginx closes the connection at once then (status 499), and
    /// Go's `net/http` cancels the request's context. `Duration::MAX` handles every request.
    /// Defaults to 1 s.
    pub fn abandoned_after(mut self, waited: Duration) -> Self {
        self.abandoned_after = waited;
        self
    }

    /// Sets the function that exports the state for the next process, see
    /// [`Service::export`](crate::Service::export). Defaults to none.
    pub fn export(mut self, export: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.export = Some(Arc::new(export));
        self
    }
}

impl<H> Http<H> {
    /// Checks the settings that have no meaning alone, or not with those of the server.
    pub(super) fn check_settings(&self, buffers: &BufferLimits) -> Result<(), String> {
        let (line, head) = (self.limits.request_line, self.limits.head);
        for (value, name) in [(line, "max_request_line"), (head, "max_head")] {
            if value == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        let input = buffers.input_limit;
        match head > input {
            true => Err(format!(
                "max_head ({head}) must not be above input_limit ({input})"
            )),
            false => Ok(()),
        }
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
