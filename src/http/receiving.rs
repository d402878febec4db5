//! Receives a request: its head, and its body into memory or a spool.

use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::http::StatusCode;

use super::body::{Collected, CollectedBody, SpoolError, SpooledRequest};
use super::exchange::{HANDLER_PANICKED, ServeCall};
use super::handler::Handler;
use super::head::is_worth_parsing;
use super::rejection::{Rejection, bad_request};
use super::session::SessionState;
use crate::connection::ClosingNotice;
use crate::log;
use crate::service::Next;

/// The request is longer than the connection's input limit.
const TOO_LONG: Rejection = Rejection::new(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the head is too long",
);

const ENDED_EARLY: Rejection = bad_request("the request ended early");

impl<H: Handler> ServeCall<'_, H> {
    /// Receives a request that can be handled. Its head is parsed, and is still in the buffer
    /// unless the body was spooled. The error says what comes next if there is no such request.
    #[inline]
    pub(super) fn receive(&mut self) -> Result<(), Next> {
        if let SessionState::Discard(body) = self.state {
            match body.discard(self.conn) {
                Ok(true) => {}
                Ok(false) => return Err(Next::More),
                Err(_) => {
                    self.conn.linger_on_close();
                    return Err(Next::Close);
                }
            }
            self.conn.set_closing_notice(ClosingNotice::Refusal);
            self.state.expect_head();
        }
        if matches!(self.state, SessionState::Spool(_)) {
            return self.receive_spooled();
        }
        // Empty lines before a request are ignored (RFC 9112, section 2.2).
        let mut has_empty_line = false;
        while matches!(self.state, SessionState::Head { .. })
            && self.conn.buffer().starts_with(b"\r\n")
        {
            self.conn.consume(2);
            self.state.expect_head();
            has_empty_line = true;
        }
        if matches!(self.state, SessionState::Head { examined: 0 }) {
            // Also behind an answer in the same call.
            self.conn.begin_message();
        }
        if self.conn.buffer().is_empty() {
            self.state.expect_head();
            if has_empty_line && self.responses == 0 {
                // Otherwise empty lines would keep a connection open for ever.
                self.conn.note_no_message();
            }
            return Err(Next::Park);
        }
        let rejection = match self.receive_request() {
            Ok(true) => {
                self.state.expect_head();
                return Ok(());
            }
            Ok(false) if matches!(self.state, SessionState::Spool(_)) => {
                return self.receive_spooled();
            }
            Ok(false) if self.conn.at_eof() => ENDED_EARLY,
            Ok(false) if self.conn.is_input_full() => {
                self.conn.note_too_long();
                TOO_LONG
            }
            Ok(false) => return Err(Next::More),
            Err(rejection) => rejection,
        };
        let is_head = self.conn.buffer().starts_with(b"HEAD ");
        Err(self.reject(rejection, is_head))
    }

    /// Parses a request's head, once the request can be handled or its body is to be spooled. Until
    /// then, the state records how much of the request has been examined. True if the request can
    /// be handled.
    #[inline]
    fn receive_request(&mut self) -> Result<bool, Rejection> {
        let (input, limits) = (self.conn.buffer(), &self.http.limits);
        let mut collected = None;
        let may_be_complete = match self.state {
            SessionState::Head { examined } => {
                let before = std::mem::replace(examined, input.len());
                before == 0 || self.conn.at_eof() || is_worth_parsing(input, before, limits)
            }
            SessionState::Body(body) => *collected.insert(body.collect(input)?) != Collected::Part,
            SessionState::Spool(_)
            | SessionState::Discard(_)
            | SessionState::Response(_)
            | SessionState::Later(_)
            | SessionState::Channel(_)
            | SessionState::Upgraded(_) => true,
        };
        let (parts, head) = (&mut *self.parts, &mut self.request);
        if !may_be_complete || !self.parser.parse(input, limits, parts, head)? {
            return Ok(false);
        }
        if self.request.body.is_done() {
            return Ok(true);
        }
        let received = self.receive_body(collected);
        if received.is_err() {
            self.has_head = true;
            self.begin_log_entry();
        }
        received
    }

    /// Decides on how the body of a request is received. `collected` says how much of it has been
    /// collected already, if the head has been parsed before. True if the request can be handled.
    fn receive_body(&mut self, collected: Option<Collected>) -> Result<bool, Rejection> {
        let (limits, head) = (&self.http.limits, &mut self.request);
        // If the body was being collected, 100 has been sent.
        head.expects_continue &= collected.is_none();
        let mut body = CollectedBody::new(head, limits, self.conn.input_limit())?;
        let collected = match collected {
            Some(collected) => collected,
            None => body.collect(self.conn.buffer())?,
        };
        if collected == Collected::All {
            head.expects_continue = false;
            return Ok(true);
        }
        let is_small = collected == Collected::Part;
        if (!is_small || head.expects_continue) && self.streams() {
            return Ok(true);
        }
        if !is_small {
            let length = self.request.body.data_left();
            self.http.spool_space.admit(length)?;
        }
        if std::mem::take(&mut self.request.expects_continue) {
            let out = self.conn.gathered();
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        *self.state = match is_small {
            true => SessionState::Body(body),
            false => {
                // The head is a part of the long message.
                self.conn
                    .consume_spooled(std::mem::take(&mut self.request.len));
                let parts = self.parts.take();
                let (head, space) = (self.request.clone(), &self.http.spool_space);
                SessionState::Spool(Box::new(SpooledRequest::new(parts, head, limits, space)))
            }
        };
        Ok(false)
    }

    /// Whether the service asks to stream the body of a request.
    fn streams(&mut self) -> bool {
        let Some(streams) = &self.http.stream_body_if else {
            return false;
        };
        match catch_unwind(AssertUnwindSafe(|| streams(self.parts.filled()))) {
            Ok(streams) => streams,
            Err(panic) => {
                self.has_head = true;
                self.reject(HANDLER_PANICKED, self.request.is_head);
                self.resume_panic(panic)
            }
        }
    }

    /// Spools what has arrived of a body. The request can be handled when its body is complete.
    fn receive_spooled(&mut self) -> Result<(), Next> {
        let state = std::mem::replace(self.state, SessionState::Head { examined: 0 });
        let SessionState::Spool(mut request) = state else {
            return Err(Next::Again);
        };
        let rejection = match request.receive(self.conn) {
            Ok(true) => {
                let SpooledRequest {
                    parts: received,
                    head,
                    spool,
                    ..
                } = *request;
                self.parts.put(received);
                self.request = head;
                self.spooled = Some(Box::new(spool.into_body()));
                return Ok(());
            }
            Ok(false) if self.conn.at_eof() => ENDED_EARLY,
            Ok(false) => {
                *self.state = SessionState::Spool(request);
                return Err(Next::More);
            }
            Err(SpoolError::Read(error)) => {
                log::debug!("{}: cannot read: {error}", self.conn.info());
                return Err(Next::Close);
            }
            Err(SpoolError::Rejected(rejection)) => rejection,
        };
        self.parts.put(request.parts);
        self.has_head = true;
        self.begin_log_entry();
        Err(self.reject(rejection, request.head.is_head))
    }
}
