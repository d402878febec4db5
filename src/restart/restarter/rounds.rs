//! Rounds: a restart that is requested while another one runs.
//!
//! A request that comes before the running restart has begun to execute its program joins that
//! restart. A later request asks for a program that the running restart may not have read, so it
//! starts another round, and shares that round with all requests that come meanwhile.
//!
//! When the running restart fails, this process does the next round. When it succeeds, the
//! successor does the next round:
//!
//! ```text
//!  generation 1                 generation 2                generation 3
//!
//!  start ─────────────────────► ...
//!  another request comes
//!                            ◄─ Ack
//!  the first callers have their result
//!  RestartAgain ──────────────► start ────────────────────► ...
//!  drain                                                 ◄─ Ack
//!  the other callers have it ◄─ Restarted, or RestartFailed
//! ```
//!
//! A process that has drained stays as long as callers wait for the result of a round that it has
//! passed on.

use std::time::{Duration, Instant};

use super::{
    ACK_TIMEOUT, CompletedRestart, Restarter, ResultSender, ServerStage, reply, stopping_error,
};
use crate::clock::Deadline;
use crate::log;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::wire::{HandshakeMessage, RestartFailure};

/// How much of an unlimited drain the callers of a round that was passed on wait for.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);

/// Where the result of a restart goes.
pub(super) enum Waiter {
    /// A thread of this process.
    Caller(ResultSender),
    /// The predecessor, which has passed the request on.
    Predecessor,
}

/// The result of a restart.
pub(super) type RestartResult = Result<CompletedRestart, RestartError>;

impl Restarter {
    pub(super) fn add_request(&mut self, waiter: Option<Waiter>) {
        self.restart_requested = true;
        self.next_waiters.extend(waiter);
    }

    /// Lets the requests so far wait for the restart that begins.
    pub(super) fn begin_round(&mut self) {
        self.restart_requested = false;
        self.waits_for_drains = false;
        self.waiters.append(&mut self.next_waiters);
    }

    /// Answers the requests of the round that is over.
    pub(super) fn end_round(&mut self, result: &RestartResult) {
        for waiter in std::mem::take(&mut self.waiters) {
            self.answer(&waiter, result.clone());
        }
    }

    /// Refuses the requests for another round.
    pub(super) fn refuse_next_round(&mut self, failure: &RestartError) {
        self.restart_requested = false;
        self.waits_for_drains = false;
        for waiter in std::mem::take(&mut self.next_waiters) {
            self.answer(&waiter, Err(failure.clone()));
        }
    }

    fn answer(&self, waiter: &Waiter, result: RestartResult) {
        match (waiter, result) {
            (Waiter::Caller(caller), result) => reply(caller, result),
            (Waiter::Predecessor, Ok(done)) => {
                self.tell_predecessor(&HandshakeMessage::Restarted {
                    pid: done.pid,
                    generation: done.new_generation,
                    ready_after_nanos: nanos(done.ready_after),
                    accept_gap_nanos: nanos(done.accept_gap),
                });
            }
            (Waiter::Predecessor, Err(error)) => {
                self.tell_predecessor(&HandshakeMessage::RestartFailed {
                    kind: failure_of(error.kind()),
                    reason: error.to_string(),
                });
            }
        }
    }

    /// The successor serves: it does the next round, if one was requested.
    pub(super) fn pass_on_next_round(&mut self) {
        if !self.restart_requested || !matches!(self.stage, ServerStage::Replaced) {
            return;
        }
        let Some(successor) = &self.successor else {
            return;
        };
        log::info!("another restart was requested: passing it on to the successor");
        successor.link.send(&HandshakeMessage::RestartAgain);
        self.begin_round();
        // The successor may have to end a round of its own, and to wait for this process's drain.
        let limit = (self.ready_timeout.saturating_mul(2))
            .saturating_add(self.drain_timeout.min(LONGEST_DRAIN))
            .saturating_add(ACK_TIMEOUT);
        self.passed_on_until = Deadline::after(Instant::now(), limit);
    }

    /// Handles the result of the round that was passed on.
    pub(super) fn finish_passed_on_round(&mut self, result: &RestartResult) {
        self.passed_on_until = Deadline::NEVER;
        if let (Err(error), [_, ..]) = (result, &self.waiters[..]) {
            log::error!("the restart that was passed on failed: {error}");
        }
        self.end_round(result);
    }

    pub(super) fn handle_passed_on_deadline(&mut self, now: Instant) {
        if self.passed_on_until.has_passed(now) {
            let why = "the successor has not reported in time how the next restart went";
            let failure = RestartError::new(RestartErrorKind::TimedOut, why);
            self.finish_passed_on_round(&Err(failure));
        }
    }

    /// The server has stopped. True if the restarter must not end yet, because callers wait for a
    /// round that was passed on.
    pub(super) fn stays_for_callers(&mut self) -> bool {
        let stays = matches!(self.stage, ServerStage::Replaced) && !self.waiters.is_empty();
        if !stays || self.stop_requested {
            self.end_round(&Err(stopping_error()));
            return false;
        }
        true
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn failure_of(kind: RestartErrorKind) -> RestartFailure {
    match kind {
        RestartErrorKind::Start => RestartFailure::Start,
        RestartErrorKind::TimedOut => RestartFailure::TimedOut,
        RestartErrorKind::Stopping => RestartFailure::Stopping,
        RestartErrorKind::Replaced => RestartFailure::Replaced,
        // The last two are answered without a restart.
        RestartErrorKind::Ended | RestartErrorKind::Off | RestartErrorKind::OwnThread => {
            RestartFailure::Ended
        }
    }
}

pub(super) fn kind_of(failure: RestartFailure) -> RestartErrorKind {
    match failure {
        RestartFailure::Start => RestartErrorKind::Start,
        RestartFailure::Ended => RestartErrorKind::Ended,
        RestartFailure::TimedOut => RestartErrorKind::TimedOut,
        RestartFailure::Stopping => RestartErrorKind::Stopping,
        RestartFailure::Replaced => RestartErrorKind::Replaced,
    }
}
