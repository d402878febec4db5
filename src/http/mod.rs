//! HTTP/1.1 (RFC 9110 and 9112) for handlers that take a request and return a response.
//!
//! The handler is called on a worker when the request is there, and is all that ever holds a worker: heads, and
//! bodies up to 64 KiB, are collected while the connection is parked, and what a slow client does not read of its
//! answer is written as it does.
//!
//! ```no_run
//! use handover::Server;
//! use handover::http::{self, Response};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = http::service(|request| Response::new(format!("You asked for {}", request.uri())));
//! let report = Server::builder().listen("127.0.0.1:8080").build(service)?.run()?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! The types of requests and responses are those of the `http` crate, and exported here again. State that
//! handlers share is captured by the closure. A handler with several kinds of answers returns `Response<Reply>`, see
//! [`Reply`]; the request's [`Body`] knows the connection, and so who the client is.
//!
//! # What the service does by itself
//!
//! - It keeps connections open as the client wants them (HTTP/1.0 and 1.1), answers pipelined requests in order and
//!   in one write, and says `Connection: close` when the server is stopping.
//! - It frames bodies, in both directions; `100 Continue` is sent when the handler first reads. Responses to HEAD,
//!   and 204, 205 and 304, go out without the body that the handler may have given them.
//! - It adds `Date`, and Content-Type to texts.
//! - What the handler leaves of a body is thrown away if it is up to 64 KiB; else the connection is closed.
//! - A handler that panics is answered for with a 500, and counted in [`Stats::panics`](crate::Stats::panics).
//! - It writes an access log through the `log` crate if asked to, see [`Http::access_log`].
//!
//! # What it refuses
//!
//! Whatever two servers in a chain could understand differently is answered with 400 and the connection closed: both
//! Content-Length and Transfer-Encoding, several or malformed ones of either, lines that do not end with CR LF, folded
//! lines, control characters, white space before a colon, and a Host field that is missing, repeated or malformed.
//! Besides those:
//!
//! | status | when |
//! |---|---|
//! | 408 | a head or a body that has begun does not come in time |
//! | 413 | a body is longer than [`Http::max_body`] |
//! | 414 | a request line is longer than [`Http::max_request_line`] |
//! | 417 | something else than `100-continue` is expected |
//! | 431 | a head is longer than [`Http::max_head`], or has more fields than [`Http::max_fields`] |
//! | 501 | a transfer coding beside `chunked` |
//! | 505 | a version other than 1.0 and 1.1 |
//! | 503 | the server is full, if its policy is to answer [`OVERLOADED`] |
//!
//! The times are the server's: [`read_timeout`](crate::Builder::read_timeout) for a head and its body, which a body of
//! some length extends at the [`min_rate`](crate::Builder::min_rate); [`idle_timeout`](crate::Builder::idle_timeout)
//! between requests; and [`write_timeout`](crate::Builder::write_timeout) for responses.

mod body;
mod date;
mod exchange;
mod framing;
mod head;
mod reply;
mod response;
mod settings;

pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
pub use ::http::{Uri, Version, header};

pub use body::Body;
pub use reply::Reply;
pub use settings::{Http, service};

/// An answer for clients that find the server full: 503 with Retry-After, for
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
