//! Responses in place of the handler's: as the application makes them, or else the defaults.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::http::request::Parts;
use ::http::{HeaderValue, Response, StatusCode, header};

use super::rejection::Rejection;
use super::reply::{Reply, ReplyKind};
use crate::log;

/// The application's function that makes such responses.
pub(super) type ErrorResponse = dyn Fn(&Rejection, Option<&Parts>) -> Response<Reply> + Send + Sync;

impl Rejection {
    /// The response of the application, if it makes one that can be sent.
    pub(super) fn shaped(
        &self,
        make: Option<&ErrorResponse>,
        head: Option<&Parts>,
    ) -> Option<Response<Cow<'static, [u8]>>> {
        let make = make?;
        let made = catch_unwind(AssertUnwindSafe(|| make(self, head)));
        let mut response = match made {
            Ok(response) => response,
            Err(panic) => {
                log::error!("the function of Http::error_response panicked");
                log::drop_contained("the payload of a panic", panic);
                return None;
            }
        };
        let status = response.status();
        let has_no_body = [
            StatusCode::NO_CONTENT,
            StatusCode::RESET_CONTENT,
            StatusCode::NOT_MODIFIED,
        ];
        let is_text = matches!(response.body(), Reply(ReplyKind::Text(_)));
        if is_text && !response.headers().contains_key(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
        }
        let (head, Reply(body)) = response.into_parts();
        match body {
            ReplyKind::Text(bytes) | ReplyKind::Bytes(bytes)
                if !status.is_informational() && !has_no_body.contains(&status) =>
            {
                Some(Response::from_parts(head, bytes))
            }
            body => {
                log::error!("Http::error_response must give text or bytes, and no status {status}");
                log::drop_contained("a reply", body);
                None
            }
        }
    }

    /// The response to a request after which the connection may stay open.
    pub(super) fn response(
        &self,
        make: Option<&ErrorResponse>,
        head: Option<&Parts>,
    ) -> Response<Reply> {
        if let Some(response) = self.shaped(make, head) {
            return response.map(|bytes| Reply(ReplyKind::Bytes(bytes)));
        }
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut response = Response::new(format!("{reason}: {}\n", self.detail).into());
        *response.status_mut() = self.status;
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let soon = HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, soon);
        }
        response
    }
}

/// The Content-Type of a text.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

pub(super) const REQUEST_TOO_SLOW: Rejection = Rejection::new(
    StatusCode::REQUEST_TIMEOUT,
    "the request did not come in time",
);

/// The default response to a client whose request does not arrive in time.
pub(super) const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
