//! Responses that come from another thread, while the connection waits on no thread.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{Response, StatusCode};

use super::answer_race::AnswerRace;
use super::closing::CloseReason;
use super::rejection::Rejection;
use super::reply::{Reply, ReplyKind};

/// Sends the response to one request, from any thread. From [`Reply::later`].
///
/// Exactly one of three comes first: the response, the deadline, or the client's leaving. The
/// responder learns which. If it is dropped unused, the client gets 500 and an error is logged.
pub struct Responder(Arc<AnswerRace<Response<Reply>>>);

impl Reply {
    /// A reply that another thread gives, with a [`Responder`]. Until then the connection waits on
    /// no thread, at most for `within`, counted from now. The head that the handler returns with
    /// this reply is not used: the responder sends a whole response. The response may have any kind
    /// of body, also a later one again.
    ///
    /// At the deadline the client gets 503, or the response of [`Responder::or_else`]. With
    /// `Duration::MAX` there is no deadline. The server's idle time-out does not apply meanwhile.
    ///
    /// What the client sends meanwhile stays in the connection's buffer, up to
    /// [`input_limit`](crate::Builder::input_limit), and pipelined requests are answered in order.
    /// A client that resets the connection or ends its side has left. With
    /// [`Http::abandoned_after`](super::Http::abandoned_after) set to `Duration::MAX`, a client
    /// that ends its side still gets the response. A stop or a restart waits for the response until the
    /// end of the server's [`drain_timeout`](crate::Builder::drain_timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// use handover::http::{self, Reply, Responder, Response};
    ///
    /// let (jobs, queue) = mpsc::channel::<(String, Responder)>();
    /// thread::spawn(move || {
    ///     for (job, responder) in queue {
    ///         // The client may have given up.
    ///         if !responder.is_closed() {
    ///             let _ = responder.send(Response::new(format!("done: {job}")));
    ///         }
    ///     }
    /// });
    /// let service = http::service(move |request| {
    ///     let (responder, reply) = Reply::later(Duration::from_secs(30));
    ///     // If the thread has ended, the responder is dropped: the client gets 500.
    ///     let _ = jobs.send((request.uri().path().to_owned(), responder));
    ///     Response::new(reply)
    /// });
    /// ```
    pub fn later(within: Duration) -> (Responder, Self) {
        let (race, awaited) = AnswerRace::new(Instant::now().checked_add(within));
        (Responder(race), Self(ReplyKind::Later(awaited)))
    }
}

impl Responder {
    /// Sends the response. Never blocks. It is written by a worker, after the responses to earlier
    /// requests. A response that comes after the deadline, but before a worker has noted the
    /// deadline, is sent.
    ///
    /// # Errors
    ///
    /// The response, if the deadline or the client's leaving was first, or the reply was not sent.
    pub fn send(self, response: Response<impl Into<Reply>>) -> Result<(), LateResponse> {
        let (head, body) = response.into_parts();
        let response = Response::from_parts(head, body.into());
        match self.0.answer(Some(response)) {
            Ok(()) | Err((None, _)) => Ok(()),
            Err((Some(response), reason)) => Err(LateResponse {
                response: Box::new(response),
                reason,
            }),
        }
    }

    /// Sets the response that the client gets at the deadline. Defaults to 503 with
    /// `Retry-After: 1`.
    pub fn or_else(self, response: Response<impl Into<Reply>>) -> Self {
        let (head, body) = response.into_parts();
        self.0.set_fallback(Response::from_parts(head, body.into()));
        self
    }

    /// Whether [`send`](Self::send) would fail. The deadline counts when a worker has noted it.
    pub fn is_closed(&self) -> bool {
        self.0.close_reason().is_some()
    }

    /// Has `callback` called once when the deadline passes or the client leaves before the
    /// response: the work on the response can be given up. If that was before, the callback is
    /// called at once. Otherwise a thread of the server calls it, so it must not block. A panic in
    /// it is logged. After [`send`](Self::send) it is not called.
    pub fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) {
        self.0.on_close(callback);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Nothing happens if it has answered, or if it is too late.
        let _ = self.0.answer(None);
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("closed", &self.0.close_reason())
            .finish_non_exhaustive()
    }
}

/// A response that came too late, from [`Responder::send`].
pub struct LateResponse {
    response: Box<Response<Reply>>,
    reason: CloseReason,
}

impl LateResponse {
    /// What was first.
    pub fn reason(&self) -> CloseReason {
        self.reason
    }

    /// The response.
    pub fn into_response(self) -> Response<Reply> {
        *self.response
    }
}

impl fmt::Display for LateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            CloseReason::DeadlinePassed => "the response came after its deadline",
            CloseReason::NotSent => "the reply for the response was not sent",
            _ => "the client left before the response",
        })
    }
}

/// The text of the error, as `main` prints it.
impl fmt::Debug for LateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for LateResponse {}

/// No response at the deadline, and the application has chosen none for it.
pub(super) const NOT_IN_TIME: Rejection =
    Rejection::new(StatusCode::SERVICE_UNAVAILABLE, "no response in time");

/// The responder was dropped.
pub(super) const NO_RESPONSE: Rejection =
    Rejection::new(StatusCode::INTERNAL_SERVER_ERROR, "no response");
