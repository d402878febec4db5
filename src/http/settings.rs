//! The HTTP service as an application makes it, and its settings.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{Request, Response};
use bytes::Bytes;

use super::access_log::AccessLog;
use super::body::Body;
use super::error_response::{ErrorResponse, REQUEST_TOO_SLOW, TIMED_OUT};
use super::handler::{IntoResponse, WithWorker};
use super::rejection::{MAX_FIELDS, Rejection, RequestLimits};
use super::reply::Reply;
use super::response_writer::add_last_response;
use super::spool_space::SpoolSpace;
use crate::service::BufferLimits;

/// The default of [`Http::max_spooled`], in bytes.
const MAX_SPOOLED: u64 = 4 << 30;

/// Makes a service from a handler: a function from a request to a response, or to a `Result` with an
/// error of any type. The response's body is of any type that converts into a [`Reply`]. The client
/// gets a 500 for an error, whose text goes into the log, see [`IntoResponse`].
///
/// A closure that is passed at once needs no types. One in a variable would need
/// `|request: &mut Request<Body<'_>>|`: put the service into the variable instead, or pass a
/// function.
///
/// # Examples
///
/// ```
/// use std::io::Read;
/// use handover::http::{self, Method, Reply, Response, StatusCode};
///
/// let service = http::service(|request| match (request.method(), request.uri().path()) {
///     (&Method::GET, "/") => Response::new(Reply::from("Hello!")),
///     (&Method::POST, "/length") => match request.body_mut().read_all(1 << 20) {
///         Ok(bytes) => Response::new(Reply::from(bytes.len().to_string())),
///         Err(_) => status(StatusCode::PAYLOAD_TOO_LARGE),
///     },
///     _ => status(StatusCode::NOT_FOUND),
/// });
///
/// // With `?`, whatever the error is.
/// let service = http::service(|request| -> Result<_, Box<dyn std::error::Error>> {
///     let number: u32 = request.uri().query().ok_or("a number is missing")?.parse()?;
///     Ok(Response::new(format!("{}\n", number / 2)))
/// });
///
/// fn status(status: StatusCode) -> Response<Reply> {
///     let mut response = Response::new(Reply::empty());
///     *response.status_mut() = status;
///     response
/// }
/// ```
pub fn service<H, T>(handler: H) -> Http<H>
where
    H: Fn(&mut Request<Body<'_>>) -> T + Send + Sync,
    T: IntoResponse,
{
    Http::new(handler)
}

/// As [`service`], for a handler that gets the state of its worker, such as a database handle, as
/// its second argument. `worker` builds this state, as
/// [`Service::worker`](crate::Service::worker) does: on the worker's thread, and again after a
/// panic.
///
/// # Examples
///
/// ```
/// use handover::http::{self, Response};
///
/// let worker = |_index| Ok(Vec::<u8>::with_capacity(1 << 20));
/// let service = http::service_with(worker, |request, scratch| {
///     scratch.clear();
///     scratch.extend_from_slice(request.uri().path().as_bytes());
///     Response::new(format!("{} bytes\n", scratch.len()))
/// });
/// ```
pub fn service_with<B, W, H, T>(worker: B, handler: H) -> Http<WithWorker<B, H>>
where
    B: Fn(usize) -> io::Result<W> + Send + Sync,
    H: Fn(&mut Request<Body<'_>>, &mut W) -> T + Send + Sync,
    T: IntoResponse,
{
    Http::new(WithWorker {
        build: worker,
        handler,
    })
}

impl<H> Http<H> {
    fn new(handler: H) -> Self {
        Self {
            handler,
            limits: RequestLimits::default(),
            spool_space: Arc::new(SpoolSpace::new(MAX_SPOOLED, None)),
            stream_body_if: None,
            access_log: None,
            abandoned_after: Duration::from_secs(1),
            error_response: None,
            timed_out: Bytes::from_static(TIMED_OUT),
        }
    }
}

/// A function that selects requests by their heads.
type HeadFilter = dyn Fn(&Parts) -> bool + Send + Sync;

/// A service that speaks HTTP/1.1, from [`service`].
#[derive(Clone)]
pub struct Http<H> {
    pub(super) handler: H,
    pub(super) limits: RequestLimits,
    pub(super) spool_space: Arc<SpoolSpace>,
    /// Selects the requests whose body the handler receives itself.
    pub(super) stream_body_if: Option<Arc<HeadFilter>>,
    pub(super) access_log: Option<AccessLog>,
    pub(super) abandoned_after: Duration,
    pub(super) error_response: Option<Arc<ErrorResponse>>,
    /// The response to a client whose request does not arrive in time.
    pub(super) timed_out: Bytes,
}

impl<H> Http<H> {
    /// Sets the size in bytes up to which a body is collected in the connection's buffer. A chunked
    /// body counts with its framing. A larger body, or a body that does not fit into the
    /// connection's [`input_limit`](crate::Builder::input_limit) together with its head, is
    /// spooled, see [`max_spooled`](Self::max_spooled). Defaults to 64 KiB.
    pub fn small_body(mut self, bytes: usize) -> Self {
        self.limits.small_body = bytes;
        self
    }

    /// Sets the largest size of a request's body in bytes. A larger body is rejected with 413.
    /// Defaults to no limit; a body that does not stream is then limited by
    /// [`max_spooled`](Self::max_spooled), and one client can take the room of all others.
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.limits.body = bytes;
        self
    }

    /// Sets how many bytes of request bodies are spooled at the same time, on all connections of
    /// this service and its clones together.
    ///
    /// A body larger than [`small_body`](Self::small_body) is spooled: the server stores the body
    /// while the connection is parked, and calls the handler when the body is complete. So a slow
    /// client holds no worker. While the connection is parked, up to 64 KiB of the body are in
    /// memory. A larger body is in an unnamed temporary file in [`spool_dir`](Self::spool_dir),
    /// which the system removes even if the process is killed. A service also has 16 buffers of
    /// 1 MiB: the rest of a body that has come at once stays in one of them, and a body that has
    /// come at once needs no file. The bytes count as they arrive, until the [`Body`], or the
    /// [`OwnedBody`](super::OwnedBody) made from the body, is dropped.
    ///
    /// A single body larger than this is rejected with 413. If there is no room for a body, because
    /// of other bodies or because the file cannot be written, it is rejected with 503, and a
    /// failure of the file is logged at level warn (once for a series of failures). The connection
    /// is closed then.
    ///
    /// Defaults to 4 GiB.
    pub fn max_spooled(mut self, bytes: u64) -> Self {
        let dir = self.spool_space.dir.clone();
        self.spool_space = Arc::new(SpoolSpace::new(bytes, dir));
        self
    }

    /// Sets the directory of the temporary files for [`max_spooled`](Self::max_spooled). Where the
    /// system keeps its temporary files in memory (tmpfs), a directory on a disk such as `/var/tmp`
    /// is the better one for large bodies. Defaults to [`std::env::temp_dir`], which is `$TMPDIR`
    /// or `/tmp` on Unix.
    pub fn spool_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        let limit = self.spool_space.limit;
        self.spool_space = Arc::new(SpoolSpace::new(limit, Some(dir.into())));
        self
    }

    /// Sets which requests stream: the handler is called before the body has arrived, and its reads
    /// of the [`Body`] wait for the client. Such a handler can use a body of any size as it comes,
    /// and can respond without receiving it, but holds a worker as long as the client needs.
    ///
    /// `streams` gets the head of each request whose body is larger than
    /// [`small_body`](Self::small_body), or whose client waits for `100 Continue`. It must return
    /// fast. A panic in it costs the connection, as a panic in the handler does.
    ///
    /// Defaults to no request: no body streams.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    /// use handover::http::{self, Response};
    ///
    /// let service = http::service(|request| {
    ///     let copied = std::io::copy(request.body_mut(), &mut std::io::sink());
    ///     Response::new(format!("{copied:?}"))
    /// });
    /// let service = service.stream_body_if(|head| head.uri.path().starts_with("/live/"));
    /// ```
    pub fn stream_body_if(
        mut self,
        streams: impl Fn(&Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.stream_body_if = Some(Arc::new(streams));
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
    /// A client whose response another thread gives or sends ([`Reply::later`], [`Reply::channel`])
    /// has left as soon as it ends its side, unless this is `Duration::MAX`.
    ///
    /// A client may end its side and still wait for the response, as `nc -N` does, but most clients
    /// that end their side have left. nginx closes the connection at once then (status 499), and
    /// Go's `net/http` cancels the request's context. `Duration::MAX` handles every request.
    /// Defaults to 1 s.
    pub fn abandoned_after(mut self, waited: Duration) -> Self {
        self.abandoned_after = waited;
        self
    }
}

impl<H> Http<H> {
    /// Sets the function that makes the responses that the service gives in place of the handler:
    /// for what [it rejects](super#what-it-rejects), for a panic or an error of the handler, for a
    /// response that cannot be sent, and for a [`Responder`](super::Responder) that is dropped or
    /// too late. The function gets the reason, and the request's head if it is known: not if the
    /// head is malformed, too long, or late, nor after a panic.
    ///
    /// The function chooses the status and the fields. It must return fast, and its reply must be
    /// text or bytes. The service adds Date, and the fields that frame the body, and closes the
    /// connection where it must. If the function panics, or returns what cannot be sent, the client
    /// gets the default.
    ///
    /// The response to a server that is full has a form of its own, see
    /// [`Overload::Refuse`](crate::Overload::Refuse). Defaults to a line of text, such as `Payload
    /// Too Large: the body is too large`; for 408 of a request that did not arrive, to no text.
    ///
    /// # Examples
    ///
    /// ```
    /// use handover::http::{self, Response, header};
    ///
    /// let service = http::service(|_| Response::new("Hello!")).error_response(|rejection, head| {
    ///     let (status, why) = (rejection.status(), rejection.detail());
    ///     let mut response = Response::builder()
    ///         .status(status)
    ///         .header(header::CONTENT_TYPE, "application/json");
    ///     if let Some(origin) = head.and_then(|head| head.headers.get(header::ORIGIN)) {
    ///         response = response.header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    ///     }
    ///     let body = format!("{{\"status\":{},\"error\":\"{why}\"}}", status.as_u16());
    ///     response.body(body).unwrap()
    /// });
    /// ```
    pub fn error_response<R: Into<Reply>>(
        mut self,
        make: impl Fn(&Rejection, Option<&Parts>) -> Response<R> + Send + Sync + 'static,
    ) -> Self {
        let make: Arc<ErrorResponse> =
            Arc::new(move |rejection, head| make(rejection, head).map(Into::into));
        if let Some(response) = REQUEST_TOO_SLOW.shaped(Some(&*make), None) {
            let mut bytes = Vec::new();
            add_last_response(&mut bytes, &[], response, false);
            self.timed_out = bytes.into();
        }
        self.error_response = Some(make);
        self
    }

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
            .field("spool_space", &self.spool_space)
            .field("access_log", &self.access_log)
            .finish_non_exhaustive()
    }
}
