//! HTTP/1.1 (RFC 9110 and 9112) for handlers that take a request and return a response.
//!
//! A worker calls the handler when the request has arrived, and only the handler occupies the
//! worker. The connection is parked while its head and its body arrive, and a response that a slow
//! client has not read is written as the client reads.
//!
//! ```no_run
//! use handover::Server;
//! use handover::http::{self, Response};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = http::service(|request| Response::new(format!("URI: {}", request.uri())));
//! let report = Server::builder().listen("127.0.0.1:8080").build(service)?.run()?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! The types of requests and responses are those of the `http` crate, and are exported here again.
//! The handler borrows the request, `&mut Request<Body>`: the next request is parsed into the same
//! memory, so that a request on a kept-alive connection allocates nothing.
//! The handler's closure captures the state that its calls share, and [`service_with`] adds a state
//! for each worker. A handler whose responses have different kinds of bodies returns
//! `Response<Reply>`, see [`Reply`]. A handler may also return a `Result`: the client gets a 500 for
//! an error. The request's [`Body`] gives access to the connection, for example to the client's
//! address.
//!
//! # Responses that wait for something else than the client
//!
//! A handler that waits holds a worker. Instead, another thread may give the response
//! ([`Reply::later`]), or send its body ([`Reply::channel`], [`Events`] for server-sent events),
//! while the connection waits on no thread. Callbacks and queries tell that thread when its client
//! has left. Requests that the client sends meanwhile are answered in order.
//!
//! # What the service does by itself
//!
//! - It keeps connections open as the client asks (HTTP/1.0 and 1.1), responds to pipelined
//!   requests in order and in one write, and sends `Connection: close` when the server is stopping.
//! - It collects bodies up to 64 KiB ([`Http::small_body`]) in memory, and larger bodies in
//!   temporary files ([`Http::max_spooled`]), unless they stream ([`Http::stream_body_if`]).
//! - It frames bodies in both directions, and sends `100 Continue` when the head is valid and there
//!   is room for the body; for a body that streams, when the handler first reads. Responses to
//!   HEAD, and responses with 204, 205 or 304, are sent without their body.
//! - It adds Date to every response, and Content-Type to texts.
//! - It discards the part of a body that streams and that the handler does not read, up to 64 KiB.
//!   If more is left, it closes the connection.
//! - It responds with 500 when a handler panics or returns an error, and counts it in
//!   [`Stats::panics`](crate::Stats::panics) or
//!   [`Stats::service_errors`](crate::Stats::service_errors).
//! - It does not handle a request whose client has left while the request waited for a worker, see
//!   [`Http::abandoned_after`].
//! - It writes an access log through the `log` crate on request, in the combined log format or as
//!   JSON, see [`AccessLog`].
//!
//! # What it rejects
//!
//! A request that two servers in a chain could read differently is rejected with 400, and the
//! connection is closed: both Content-Length and Transfer-Encoding, several or malformed fields of
//! either, lines that do not end with CR LF, folded lines, control characters, white space before a
//! colon, a missing, repeated or malformed Host field, and a target whose host or port is
//! malformed (a port is at most 65535). The other rejections are:
//!
//! | status | when |
//! |---|---|
//! | 408 | a head or a body that has begun does not arrive in time |
//! | 413 | a body is longer than [`Http::max_body`] or [`Http::max_spooled`] |
//! | 414 | a request line is longer than [`Http::max_request_line`] |
//! | 417 | Expect is not `100-continue` |
//! | 431 | a head is longer than [`Http::max_head`], or has more fields than [`Http::max_fields`] |
//! | 501 | a transfer coding other than `chunked` |
//! | 505 | a version other than 1.0 and 1.1 |
//! | 503 | the server is full, and its policy is to respond with [`OVERLOADED`] |
//! | 503 | there is no room for another spooled body, or the disk is full |
//!
//! [`Http::error_response`] gives these responses another form, such as JSON.
//!
//! The server's time-outs apply: [`read_timeout`](crate::Builder::read_timeout) to a head and its
//! body, extended while a long body arrives at the [`min_rate`](crate::Builder::min_rate);
//! [`idle_timeout`](crate::Builder::idle_timeout) between requests; and
//! [`write_timeout`](crate::Builder::write_timeout) to responses.

// The service, and how it serves a connection.
mod access_log;
mod exchange;
mod handler;
mod session;
mod settings;

// Requests.
mod authority;
mod awaited;
mod body;
mod body_decoder;
mod control_fields;
mod head;
mod reader_body;
mod receiving;
mod rejection;
mod spare_parts;
mod spool;
mod spool_buffer;
mod spool_space;
mod spooled_body;

// Responses.
mod answer_race;
mod body_channel;
mod chunk;
mod closing;
mod date;
mod error_response;
mod events;
mod later;
mod reply;
mod responding;
mod response_plan;
mod response_writer;

pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
pub use ::http::{Uri, Version, header, request, response};

pub use access_log::AccessLog;
pub use body::{Body, OwnedBody};
pub use body_channel::BodySender;
pub use chunk::Chunk;
pub use closing::CloseReason;
pub use events::{Event, Events};
pub use exchange::WorkerBuffers;
pub use handler::{Handler, IntoResponse, WithWorker};
pub use later::{LateResponse, Responder};
pub use rejection::Rejection;
pub use reply::Reply;
pub use session::Session;
pub use settings::{Http, service, service_with};

/// The response to a client that finds the server full: 503 with `Retry-After: 1`, for
/// [`Overload::Refuse`](crate::Overload::Refuse).
///
/// # Examples
///
/// ```
/// use handover::{Overload, Server, http};
///
/// let builder = Server::builder().overload(Overload::Refuse(http::OVERLOADED.to_vec()));
/// ```
pub const OVERLOADED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Length: 0\r\n\r\n";
