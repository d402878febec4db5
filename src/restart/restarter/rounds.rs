//! Rounds: which restart answers which request.
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
//! A process that was replaced before the request came sends `RestartAgain` as well. The successor
//! answers each `RestartAgain` once, in the order of the messages: a request joins the next round
//! of the successor, and rounds end in the order in which they began.
//!
//! A process that has drained stays as long as callers wait for the result of a round that it has
//! passed on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{
    ACK_TIMEOUT, CompletedRestart, LONGEST_DRAIN, Restarter, ResultSender, ServerStage, reply,
    stopping_error,
};
use crate::clock::Deadline;
use crate::log;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::sys;
use crate::wire::{HandshakeMessage, RestartFailure};

/// The successor is asked for at most this many rounds that it has not answered. Requests beyond
/// that wait until the successor answers.
const MAX_PASSED_ON: usize = 16;

/// Where the result of a restart goes.
pub(super) enum Waiter {
    /// A thread of this process.
    Caller(ResultSender),
    /// The predecessor, which has passed the request on.
    Predecessor,
}

/// The result of a restart.
pub(super) type RestartResult = Result<CompletedRestart, RestartError>;

/// The requests and their waiters, separate from processes and from the clock. A call that decides
/// the result of waiters returns these waiters. Each waiter is returned exactly once.
pub(super) struct Rounds<W> {
    /// A restart was requested, and has not begun.
    is_requested: bool,
    /// The waiters of the next round.
    next: Vec<W>,
    /// The waiters of the round that runs in this process.
    running: Vec<W>,
    /// The rounds that the successor was asked for, and has not answered. The first one is answered
    /// first.
    passed_on: VecDeque<PassedOn<W>>,
}

/// A round that was passed on.
struct PassedOn<W> {
    waiters: Vec<W>,
    /// When the successor must have answered.
    until: Deadline,
    /// The successor has not answered in time, and the waiters were told.
    is_late: bool,
}

/// What becomes of the next round in a process that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    /// The successor is to be asked for it.
    Passed,
    /// It waits until the successor answers another one.
    Waits,
    /// The successor answers none.
    Refused,
}

impl<W> Default for Rounds<W> {
    fn default() -> Self {
        Self {
            is_requested: false,
            next: Vec::new(),
            running: Vec::new(),
            passed_on: VecDeque::new(),
        }
    }
}

impl<W> Rounds<W> {
    /// A request for a restart of a program that is executed from now on.
    fn request(&mut self, waiter: Option<W>) {
        self.is_requested = true;
        self.next.extend(waiter);
    }

    pub(super) fn is_requested(&self) -> bool {
        self.is_requested
    }

    /// A restart begins in this process: the requests so far wait for it.
    fn begin(&mut self) {
        self.is_requested = false;
        self.running.append(&mut self.next);
    }

    /// The restart in this process is over.
    fn end(&mut self) -> Vec<W> {
        std::mem::take(&mut self.running)
    }

    /// There is no next round.
    fn refuse_next(&mut self) -> Vec<W> {
        self.is_requested = false;
        std::mem::take(&mut self.next)
    }

    /// The next round is to be that of the successor.
    fn pass_on(&mut self, until: Deadline) -> Passing {
        if self.passed_on.len() >= MAX_PASSED_ON {
            return match self.passed_on.iter().all(|round| round.is_late) {
                true => Passing::Refused,
                false => Passing::Waits,
            };
        }
        self.is_requested = false;
        self.passed_on.push_back(PassedOn {
            waiters: std::mem::take(&mut self.next),
            until,
            is_late: false,
        });
        Passing::Passed
    }

    /// The successor has answered once.
    fn end_passed_on(&mut self) -> Vec<W> {
        let first = self.passed_on.pop_front();
        first.map_or(Vec::new(), |round| round.waiters)
    }

    /// The successor has ended: it answers no more.
    fn fail_passed_on(&mut self) -> Vec<W> {
        let rounds = self.passed_on.drain(..);
        rounds.flat_map(|round| round.waiters).collect()
    }

    /// The waiters that the successor has not answered in time. The round stays, as a late answer
    /// belongs to it.
    fn expire(&mut self, now: Instant) -> Vec<W> {
        let late = self.passed_on.iter_mut();
        let late = late.filter(|round| round.until.has_passed(now));
        let late = late.flat_map(|round| {
            round.is_late = true;
            std::mem::take(&mut round.waiters)
        });
        late.collect()
    }

    /// When the successor must have answered the next round that was passed on.
    fn deadline(&self) -> Deadline {
        let in_time = self.passed_on.iter().filter(|round| !round.is_late);
        let deadlines = in_time.map(|round| round.until);
        deadlines.fold(Deadline::NEVER, Deadline::earlier)
    }

    /// Whether there are waiters for the round that runs in this process.
    pub(super) fn has_running_waiters(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether there are waiters for a round that was passed on.
    fn has_passed_on_waiters(&self) -> bool {
        self.passed_on.iter().any(|round| !round.waiters.is_empty())
    }
}

impl Restarter {
    pub(super) fn add_request(&mut self, waiter: Option<Waiter>) {
        self.rounds.request(waiter);
    }

    /// Lets the requests so far wait for the restart that begins.
    pub(super) fn begin_round(&mut self) {
        self.waits_for_drains = false;
        self.rounds.begin();
    }

    /// Answers the requests of the round that is over.
    pub(super) fn end_round(&mut self, result: &RestartResult) {
        let waiters = self.rounds.end();
        self.answer_all(waiters, result);
    }

    /// Refuses the requests for another round.
    pub(super) fn refuse_next_round(&mut self, failure: &RestartError) {
        self.waits_for_drains = false;
        let waiters = self.rounds.refuse_next();
        self.answer_all(waiters, &Err(failure.clone()));
    }

    fn answer_all(&self, waiters: Vec<Waiter>, result: &RestartResult) {
        for waiter in waiters {
            self.answer(&waiter, result.clone());
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
                    paused_for_nanos: done.paused_for.map(nanos),
                });
            }
            (Waiter::Predecessor, Err(error)) => {
                self.tell_predecessor(&HandshakeMessage::RestartFailed {
                    kind: failure_of(error.kind()),
                    reason: error.why().to_owned(),
                    errno: error.errno(),
                    status: error.status().and_then(sys::process::raw_exit_status),
                    stderr: error.stderr().to_vec(),
                });
            }
        }
    }

    /// The successor serves: it does the next round, if one was requested.
    pub(super) fn pass_on_next_round(&mut self) {
        if !self.rounds.is_requested() || !matches!(self.stage, ServerStage::Replaced) {
            return;
        }
        // The successor may have to end a round of its own, and to wait for a drain.
        let limit = (self.ready_timeout.saturating_mul(2))
            .saturating_add(self.drain_timeout.min(LONGEST_DRAIN))
            .saturating_add(ACK_TIMEOUT);
        let until = Deadline::after(Instant::now(), limit);
        let why = match self.successor.as_ref() {
            None if self.recipient.is_some() => {
                "the supervisor has told this process to leave its connections to another one"
            }
            None => "the process that has taken over has ended, or was replaced as well",
            Some(successor) => match self.rounds.pass_on(until) {
                Passing::Passed => {
                    log::info!("a restart was requested: passing it on to the successor");
                    return successor.link.send(&HandshakeMessage::RestartAgain);
                }
                Passing::Waits => return,
                Passing::Refused => "the process that has taken over does not answer",
            },
        };
        let failure = RestartError::new(RestartErrorKind::Replaced, why);
        log::warn!("a restart was requested of a process that was replaced: {failure}");
        self.refuse_next_round(&failure);
    }

    /// Handles the result of the first round that was passed on and not answered.
    pub(super) fn finish_passed_on_round(&mut self, result: &RestartResult) {
        let waiters = self.rounds.end_passed_on();
        self.answer_passed_on(waiters, result);
    }

    /// The successor has ended, so that it answers no more.
    pub(super) fn fail_passed_on_rounds(&mut self, failure: RestartError) {
        let waiters = self.rounds.fail_passed_on();
        self.answer_passed_on(waiters, &Err(failure));
    }

    pub(super) fn handle_passed_on_deadline(&mut self, now: Instant) {
        let waiters = self.rounds.expire(now);
        let why = "the successor has not reported in time how the next restart went";
        let failure = RestartError::new(RestartErrorKind::TimedOut, why);
        self.answer_passed_on(waiters, &Err(failure));
    }

    fn answer_passed_on(&self, waiters: Vec<Waiter>, result: &RestartResult) {
        if let (Err(error), [_, ..]) = (result, &waiters[..]) {
            log::error!("the restart that was passed on failed: {error}");
        }
        self.answer_all(waiters, result);
    }

    /// When the successor must have answered a round that was passed on.
    pub(super) fn passed_on_deadline(&self) -> Deadline {
        self.rounds.deadline()
    }

    /// The server has stopped. True if the restarter must not end yet, because callers wait for a
    /// round that was passed on.
    pub(super) fn stays_for_callers(&mut self) -> bool {
        let is_replaced = matches!(self.stage, ServerStage::Replaced);
        if is_replaced && self.rounds.has_passed_on_waiters() && !self.stop_requested {
            return true;
        }
        let failure = stopping_error();
        self.refuse_next_round(&failure);
        let waiters = self.rounds.end().into_iter();
        let waiters = waiters.chain(self.rounds.fail_passed_on()).collect();
        self.answer_all(waiters, &Err(failure));
        false
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
        // A process of an earlier version ignores a kind that it does not know. The last two are
        // answered without a restart.
        RestartErrorKind::Ended
        | RestartErrorKind::State
        | RestartErrorKind::Off
        | RestartErrorKind::OwnThread => RestartFailure::Ended,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to the rounds of a process.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A request with this waiter; 0: without.
        Request(u32),
        Begin,
        End,
        PassOn,
        Answer,
        SuccessorEnds,
        Refuse,
        /// The successor is too late for what was passed on before.
        TooLate,
    }
    use Step::*;

    /// Plays the steps, and returns the waiters that each step answers, and whether a request is
    /// left.
    fn play(steps: &[Step]) -> (Vec<Vec<u32>>, bool) {
        let mut rounds = Rounds::default();
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let mut now = begin;
        let answers = steps.iter().map(|step| {
            now += second;
            match step {
                Request(waiter) => {
                    rounds.request((*waiter > 0).then_some(*waiter));
                    Vec::new()
                }
                Begin => {
                    rounds.begin();
                    Vec::new()
                }
                PassOn => {
                    rounds.pass_on(Deadline::after(now, second * 1000));
                    Vec::new()
                }
                End => rounds.end(),
                Answer => rounds.end_passed_on(),
                SuccessorEnds => rounds.fail_passed_on(),
                Refuse => rounds.refuse_next(),
                TooLate => rounds.expire(now + second * 1000),
            }
        });
        (answers.collect(), rounds.is_requested)
    }

    #[test]
    fn each_waiter_is_answered_once_and_by_its_round() {
        for (steps, answers, is_requested) in [
            // One that comes before the execution joins, and a later one waits for another round.
            (
                &[Request(1), Request(2), Begin, Request(3), End, Begin, End][..],
                &[&[][..], &[], &[], &[], &[1, 2], &[], &[3]][..],
                false,
            ),
            // A caller and a signal at the same time are one round, in both orders.
            (
                &[Request(1), Request(0), Begin, End],
                &[&[], &[], &[], &[1]],
                false,
            ),
            (
                &[Request(0), Request(1), Begin, End],
                &[&[], &[], &[], &[1]],
                false,
            ),
            // A signal behind the caller that began the restart is another round.
            (
                &[Request(1), Begin, Request(0), End],
                &[&[], &[], &[], &[1]],
                true,
            ),
            (
                &[Request(0), Begin, Request(1), End, PassOn, Answer],
                &[&[], &[], &[], &[], &[], &[1]],
                false,
            ),
            // The successor answers what was passed on in this order, also without waiters.
            (
                &[
                    Request(1),
                    PassOn,
                    Request(0),
                    PassOn,
                    Request(2),
                    PassOn,
                    Answer,
                    Answer,
                    Answer,
                ],
                &[&[], &[], &[], &[], &[], &[], &[1], &[], &[2]],
                false,
            ),
            // Its end answers the rest, and what comes later is refused.
            (
                &[
                    Request(1),
                    PassOn,
                    Request(2),
                    PassOn,
                    Answer,
                    Request(3),
                    SuccessorEnds,
                    Refuse,
                ],
                &[&[], &[], &[], &[], &[1], &[], &[2], &[3]],
                false,
            ),
            // An answer that is too late is not taken for that of a later request.
            (
                &[
                    Request(1),
                    PassOn,
                    TooLate,
                    Request(2),
                    PassOn,
                    Answer,
                    Answer,
                ],
                &[&[], &[], &[1], &[], &[], &[], &[2]],
                false,
            ),
            (
                &[Answer, SuccessorEnds, End, Refuse],
                &[&[], &[], &[], &[]],
                false,
            ),
        ] {
            let (found, left) = play(steps);
            assert_eq!(found, answers, "{steps:?}");
            assert_eq!(left, is_requested, "{steps:?}");
        }
    }

    #[test]
    fn a_successor_that_does_not_answer_is_asked_for_a_limited_number_of_rounds() {
        let mut rounds = Rounds::default();
        let until = Deadline::after(Instant::now(), Duration::from_secs(1));
        for waiter in 0..MAX_PASSED_ON {
            rounds.request(Some(waiter));
            assert_eq!(rounds.pass_on(until), Passing::Passed);
        }
        rounds.request(Some(99));
        assert_eq!(rounds.pass_on(until), Passing::Waits);
        assert_eq!(rounds.end_passed_on(), [0]);
        assert_eq!(rounds.pass_on(until), Passing::Passed);
        rounds.request(Some(100));
        assert_eq!(rounds.deadline(), until);
        let late = rounds.expire(until.instant().unwrap());
        assert_eq!(late.len(), MAX_PASSED_ON);
        assert_eq!(rounds.deadline(), Deadline::NEVER);
        assert_eq!(rounds.pass_on(until), Passing::Refused);
        assert_eq!(rounds.refuse_next(), [100]);
    }
}
