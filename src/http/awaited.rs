//! Responses and bodies that other threads give: the states `Later` and `Channel` of an exchange.

use std::io;
use std::time::{Duration, Instant};

use ::http::Response;

use super::access_log::{BodyLine, LoggedBody};
use super::answer_race::Winner;
use super::body_channel::{BodyEnd, ChannelBody};
use super::chunk::LAST_CHUNK;
use super::closing::CloseReason;
use super::exchange::ServeCall;
use super::handler::Handler;
use super::later::{NO_RESPONSE, NOT_IN_TIME};
use super::reply::{Reply, ReplyKind};
use super::session::{AwaitedResponse, OpenChannel, ResponseEnd, SessionState};
use crate::connection::ClosingNotice;
use crate::log;
use crate::service::Next;

impl<H: Handler> ServeCall<'_, H> {
    /// Begins to wait for a response from another thread.
    #[cold]
    pub(super) fn begin_waiting(
        &mut self,
        response: Response<Reply>,
        waited: Duration,
    ) -> io::Result<Option<Next>> {
        let Reply(ReplyKind::Later(answer)) = response.into_body() else {
            return Ok(None);
        };
        answer.attach(self.conn.waker());
        let awaited = AwaitedResponse {
            answer,
            request: std::mem::take(&mut self.request),
            logged_request: self.logged_request.take(),
            waited,
        };
        self.continue_waiting(Box::new(awaited))
    }

    /// Writes the response of another thread, or that of the deadline, if one of them is there.
    pub(super) fn continue_waiting(
        &mut self,
        awaited: Box<AwaitedResponse>,
    ) -> io::Result<Option<Next>> {
        let has_left = self.has_client_ended();
        let response = match awaited.answer.decide(Instant::now(), has_left) {
            None => {
                self.conn.suspend_idle_timeout(true);
                self.conn.wake_at(awaited.answer.deadline());
                *self.state = SessionState::Later(awaited);
                return Ok(Some(Next::Wait));
            }
            Some(Winner::Client) => {
                self.conn.abandon();
                return Ok(Some(Next::Close));
            }
            Some(Winner::Answer(response)) => response,
            Some(Winner::Deadline(fallback)) => fallback
                .unwrap_or_else(|| NOT_IN_TIME.response(self.http.error_response.as_deref(), None)),
            Some(Winner::Nobody) => {
                let info = self.conn.info();
                log::error!("{info}: a responder was dropped without a response");
                NO_RESPONSE.response(self.http.error_response.as_deref(), None)
            }
        };
        self.conn.suspend_idle_timeout(false);
        // The next requests need none of these, and the connection may move to a successor again.
        self.conn.forget_waiting();
        let AwaitedResponse {
            request,
            logged_request,
            waited,
            ..
        } = *awaited;
        (self.request, self.logged_request) = (request, logged_request);
        self.respond(response, waited)
    }

    /// Opens the channel of a body, whose head is gathered: its pieces go to the outbox from now
    /// on.
    #[cold]
    pub(super) fn begin_channel(
        &mut self,
        body: ChannelBody,
        end: ResponseEnd,
        is_chunked: bool,
    ) -> io::Result<Option<Next>> {
        let request = self.logged_request.take();
        let line = self.http.access_log.map(|format| BodyLine {
            format,
            client: self.conn.peer().clone(),
            listener: self.conn.listener_name().to_owned(),
            request,
            status: end.status,
            waited: end.waited,
        });
        let outbox = self.conn.outbox(body.capacity());
        body.open(outbox, self.conn.waker(), is_chunked);
        let body = LoggedBody { body, line };
        Ok(self.continue_channel(Box::new(OpenChannel {
            body,
            end,
            is_chunked,
        })))
    }

    /// Ends a body that other threads send, if it has ended.
    pub(super) fn continue_channel(&mut self, open: Box<OpenChannel>) -> Option<Next> {
        let body = &open.body.body;
        let is_drained = self.conn.is_draining() && body.ends_at_drain();
        let (is_complete, reason) = match body.end() {
            Some(end) => (end == BodyEnd::Complete, None),
            None if self.has_client_ended() => (false, Some(CloseReason::ClientLeft)),
            None if is_drained => (true, Some(CloseReason::Draining)),
            None => {
                self.conn.suspend_idle_timeout(true);
                self.conn.set_closing_notice(ClosingNotice::Forbidden);
                *self.state = SessionState::Channel(open);
                return Some(Next::Wait);
            }
        };
        // The reason comes first: a thread whose send fails because of a drain can know that.
        if let Some(reason) = reason {
            body.close(reason);
        }
        self.conn.close_outbox();
        self.conn.forget_waiting();
        self.conn.suspend_idle_timeout(false);
        let OpenChannel {
            body,
            mut end,
            is_chunked,
        } = *open;
        // Writes the line of the access log.
        drop(body);
        if !is_complete {
            return Some(Next::Close);
        }
        self.conn.set_closing_notice(ClosingNotice::Refusal);
        if is_chunked {
            self.conn.gathered().extend_from_slice(LAST_CHUNK);
        }
        end.closes |= self.conn.is_draining() && self.conn.buffer().is_empty();
        self.after_response(end)
    }

    /// Whether a client that waits for another thread has ended its side, and has left thereby.
    fn has_client_ended(&self) -> bool {
        self.conn.has_client_ended() && self.http.abandoned_after != Duration::MAX
    }
}
