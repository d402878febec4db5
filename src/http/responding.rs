//! Responds to a request: with the handler's response, or in its place.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ::http::{Response, StatusCode};

use super::access_log::AccessLine;
use super::body::DiscardedBody;
use super::exchange::ServeCall;
use super::handler::Handler;
use super::reader_body::ReaderBody;
use super::rejection::Rejection;
use super::reply::{Reply, ReplyKind};
use super::response_plan::{Framing, ResponsePlan};
use super::response_writer::write_file;
use super::session::{OpenResponse, ResponseEnd, SessionState};
use crate::connection::ClosingNotice;
use crate::log;
use crate::service::Next;

const INVALID_RESPONSE: Rejection = Rejection::new(
    StatusCode::INTERNAL_SERVER_ERROR,
    "the handler's response is not valid here",
);

impl<H: Handler> ServeCall<'_, H> {
    /// Discards the rest of the request's body, and writes the response. `waited`: how long the
    /// request waited for a worker.
    #[inline]
    pub(super) fn respond(
        &mut self,
        response: Response<Reply>,
        waited: Duration,
    ) -> io::Result<Option<Next>> {
        if matches!(response.body(), Reply(ReplyKind::Later(_))) {
            return self.begin_waiting(response, waited);
        }
        let (request, status) = (&mut self.request, response.status());
        // A client that still waits for `100 Continue` may now send the body, or leave it out.
        let is_uncertain = request.expects_continue && !request.body.is_done();
        let mut end = ResponseEnd {
            status,
            closes: true,
            rest: DiscardedBody::new(request.body.clone()),
            is_body_consumed: false,
            waited,
        };
        let is_abandoned = is_uncertain || end.rest.discard(self.conn).is_err();
        end.is_body_consumed = !is_abandoned && end.rest.decoder.is_done();
        self.conn.note_one_message();
        let is_last =
            self.conn.buffer().is_empty() && (self.conn.at_eof() || self.conn.is_draining());
        if !request.keep_alive {
            self.conn.note_last_message();
        }
        request.keep_alive &= !is_abandoned && !is_last;
        let plan = match ResponsePlan::new(request, end.is_body_consumed, &response) {
            Ok(plan) => plan,
            Err(problem) => {
                let info = self.conn.info();
                log::error!("{info}: the handler's response cannot be sent: {problem}");
                let is_head = request.is_head;
                end.status = self.write_rejection(INVALID_RESPONSE, is_head);
                self.contain(|_| drop(response));
                return Ok(self.end_response(end, 0));
            }
        };
        end.closes = plan.closes;
        self.writer.add_head(self.conn.gathered(), &response, &plan);
        let Reply(reply) = response.into_body();
        let body_len = match (reply, plan.framing) {
            (ReplyKind::Upgrade(protocol), _) if plan.gives_away => {
                self.log_response(status, 0, end.waited);
                self.conn.set_closing_notice(ClosingNotice::Forbidden);
                self.conn.forget_waiting();
                // The state of another protocol cannot be packed.
                self.conn.note_stay();
                *self.state = SessionState::Upgraded(protocol);
                return Ok(Some(Next::Again));
            }
            (reply, _) if !plan.sends_body => {
                self.contain(|_| drop(reply));
                0
            }
            (ReplyKind::Text(bytes) | ReplyKind::Bytes(bytes), _) => {
                let length = bytes.len() as u64;
                self.conn.take_owned(bytes)?;
                length
            }
            (ReplyKind::File(file), Framing::Length(length)) => {
                write_file(self.conn, file, length)?;
                length
            }
            (ReplyKind::File(_) | ReplyKind::Later(_) | ReplyKind::Upgrade(_), _) => 0,
            (ReplyKind::Channel(body), framing) => {
                return self.begin_channel(body, end, framing == Framing::Chunks);
            }
            (ReplyKind::Reader(source, length), framing) => {
                let body = ReaderBody {
                    source,
                    left: length,
                    is_chunked: framing == Framing::Chunks,
                    len: 0,
                };
                let logged_request = self.logged_request.take();
                return self.write_reader(OpenResponse {
                    body,
                    end,
                    logged_request,
                });
            }
        };
        Ok(self.end_response(end, body_len))
    }

    /// Goes on with a response whose body is read from a reader, if there is one.
    #[inline]
    pub(super) fn continue_response(&mut self) -> io::Result<Option<Next>> {
        let head = SessionState::Head { examined: 0 };
        match std::mem::replace(self.state, head) {
            SessionState::Response(response) => self.write_reader(*response),
            SessionState::Later(awaited) => self.continue_waiting(awaited),
            SessionState::Channel(open) => Ok(self.continue_channel(open)),
            _ => Ok(None),
        }
    }

    /// Writes the next part of a body that is read from a reader, or the last.
    fn write_reader(&mut self, mut response: OpenResponse) -> io::Result<Option<Next>> {
        let is_complete = self.contain(|call| {
            let (body, began) = (&mut response.body, call.began);
            body.write_some(call.conn, call.body_buffer, began)
        })?;
        if !is_complete {
            self.conn.set_closing_notice(ClosingNotice::Forbidden);
            *self.state = SessionState::Response(Box::new(response));
            return Ok(Some(Next::Again));
        }
        let OpenResponse {
            body,
            end,
            logged_request,
        } = response;
        let body_len = body.len;
        self.contain(|_| drop(body));
        self.conn.set_closing_notice(ClosingNotice::Refusal);
        self.logged_request = logged_request;
        Ok(self.end_response(end, body_len))
    }

    /// Logs a response whose body is handed over to the connection, and does what follows it.
    #[inline]
    fn end_response(&mut self, end: ResponseEnd, body_len: u64) -> Option<Next> {
        self.log_response(end.status, body_len, end.waited);
        self.after_response(end)
    }

    /// Prepares for the rest of the request's body. `None`: the next request may follow.
    #[inline]
    pub(super) fn after_response(&mut self, end: ResponseEnd) -> Option<Next> {
        if end.closes {
            if !end.is_body_consumed {
                self.conn.linger_on_close();
            }
            return Some(Next::Close);
        }
        if !end.is_body_consumed {
            self.conn.set_closing_notice(ClosingNotice::Forbidden);
            *self.state = SessionState::Discard(end.rest);
        }
        None
    }

    /// Runs code that calls a reader of the handler's, or drops it. If it panics, the response is
    /// cut off.
    fn contain<T>(&mut self, code: impl FnOnce(&mut Self) -> T) -> T {
        match catch_unwind(AssertUnwindSafe(|| code(self))) {
            Ok(value) => value,
            Err(panic) => self.resume_panic(panic),
        }
    }

    /// Responds in place of the handler. The connection must then be closed.
    #[cold]
    pub(super) fn reject(&mut self, rejection: Rejection, is_head: bool) -> Next {
        self.conn.linger_on_close();
        let status = self.write_rejection(rejection, is_head);
        let info = self.conn.info();
        log::debug!("{info}: request rejected: {}", rejection.detail);
        self.log_response(status, 0, self.conn.waited());
        Next::Close
    }

    /// Writes a response in place of the handler's, after which the connection is closed. Returns
    /// its status.
    #[cold]
    pub(super) fn write_rejection(&mut self, rejection: Rejection, is_head: bool) -> StatusCode {
        let head = self.has_head.then(|| self.parts.filled());
        let made = rejection.shaped(self.http.error_response.as_deref(), head);
        let out = self.conn.gathered();
        match made {
            Some(response) => {
                let status = response.status();
                self.writer.add_last(out, response, is_head);
                status
            }
            None => {
                self.writer.reject(out, rejection, is_head);
                rejection.status
            }
        }
    }

    /// Writes a line of the access log. `body_len` is in bytes.
    #[inline]
    fn log_response(&mut self, status: StatusCode, body_len: u64, waited: Duration) {
        if let Some(format) = self.http.access_log {
            let request = self.logged_request.take();
            AccessLine {
                format,
                client: self.conn.peer(),
                listener: self.conn.listener_name(),
                request: request.as_ref(),
                status,
                body_len,
                waited,
            }
            .write();
        }
    }
}
