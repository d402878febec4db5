//! The race for a response between the thread that answers, the deadline, and the client's leaving.
//!
//! One lock decides: the first of the three that changes `Open` has won, and each learns it there.
//!
//! | outcome | event | next | who learns it |
//! |---|---|---|---|
//! | `Open` | an answer, or the responder is dropped | `Answered` | the service, which is woken |
//! | `Open` | the service finds that the client has left | `Closed` | the callbacks |
//! | `Open` | the service finds that the deadline has passed | `Closed` | the callbacks |
//! | `Open` | the connection ends | `Closed` | the callbacks |
//! | `Answered` | the service is called | `Taken` | |
//! | `Closed` | an answer | `Closed` | the thread that answers gets it back |

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::closing::{Callbacks, CloseReason};
use crate::connection::Waker;

/// What the responder and the service share.
pub(super) struct AnswerRace<T> {
    /// `None`: never.
    deadline: Option<Instant>,
    state: Mutex<State<T>>,
}

struct State<T> {
    outcome: Outcome<T>,
    /// The answer at the deadline.
    fallback: Option<T>,
    /// Wakes the service. `None` until the connection waits.
    waker: Option<Waker>,
    callbacks: Callbacks,
}

enum Outcome<T> {
    Open,
    /// `None`: the responder was dropped.
    Answered(Option<T>),
    Taken,
    Closed(CloseReason),
}

/// The service's side: an answer that it waits for. Dropping it closes the race.
pub(super) struct AwaitedAnswer<T>(Arc<AnswerRace<T>>);

/// Who has won.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Winner<T> {
    Answer(T),
    /// The responder was dropped without an answer.
    Nobody,
    /// The deadline, with the answer that was chosen for it.
    Deadline(Option<T>),
    /// The client's leaving.
    Client,
}

impl<T> AnswerRace<T> {
    pub(super) fn new(deadline: Option<Instant>) -> (Arc<Self>, AwaitedAnswer<T>) {
        let race = Arc::new(Self {
            deadline,
            state: Mutex::new(State {
                outcome: Outcome::Open,
                fallback: None,
                waker: None,
                callbacks: Callbacks::default(),
            }),
        });
        (Arc::clone(&race), AwaitedAnswer(race))
    }

    /// Sets the answer at the deadline.
    pub(super) fn set_fallback(&self, fallback: T) {
        // An earlier one is dropped after the lock: its drop may be the application's code.
        let _before = self.state.lock().fallback.replace(fallback);
    }

    /// Answers. `None` stands for a responder that was dropped. The error returns an answer that
    /// has not won.
    pub(super) fn answer(&self, answer: Option<T>) -> Result<(), (Option<T>, CloseReason)> {
        let mut state = self.state.lock();
        match state.outcome {
            Outcome::Open => {}
            Outcome::Closed(reason) => return Err((answer, reason)),
            // Only the drop of a responder that has answered comes here.
            Outcome::Answered(_) | Outcome::Taken => return Ok(()),
        }
        state.outcome = Outcome::Answered(answer);
        let _fallback = state.fallback.take();
        let _callbacks = mem::take(&mut state.callbacks);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        match self.state.lock().outcome {
            Outcome::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Has the callback called when the race is lost: now, if it is lost already.
    pub(super) fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) {
        let mut callbacks = Callbacks::default();
        let mut state = self.state.lock();
        let Outcome::Closed(reason) = state.outcome else {
            return state.callbacks.add(callback);
        };
        drop(state);
        callbacks.add(callback);
        callbacks.call(reason);
    }
}

impl<T> AwaitedAnswer<T> {
    /// `None`: never.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// The connection waits from now on. The waker is used once.
    pub(super) fn attach(&self, waker: Waker) {
        self.0.state.lock().waker = Some(waker);
    }

    /// Decides the race. `None`: it is still open.
    pub(super) fn decide(&self, now: Instant, has_client_left: bool) -> Option<Winner<T>> {
        let mut state = self.0.state.lock();
        match mem::replace(&mut state.outcome, Outcome::Taken) {
            Outcome::Answered(Some(answer)) => return Some(Winner::Answer(answer)),
            Outcome::Answered(None) => return Some(Winner::Nobody),
            Outcome::Open => state.outcome = Outcome::Open,
            Outcome::Taken => return Some(Winner::Client),
            Outcome::Closed(reason) => {
                state.outcome = Outcome::Closed(reason);
                return Some(Winner::Client);
            }
        }
        let (reason, winner) = if has_client_left {
            (CloseReason::ClientLeft, Winner::Client)
        } else if self.0.deadline.is_some_and(|deadline| deadline <= now) {
            let fallback = state.fallback.take();
            (CloseReason::DeadlinePassed, Winner::Deadline(fallback))
        } else {
            return None;
        };
        state.outcome = Outcome::Closed(reason);
        let callbacks = mem::take(&mut state.callbacks);
        drop(state);
        callbacks.call(reason);
        Some(winner)
    }
}

impl<T> Drop for AwaitedAnswer<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        let reason = match state.waker.take() {
            Some(_) => CloseReason::ClientLeft,
            None => CloseReason::NotSent,
        };
        let before = match state.outcome {
            Outcome::Closed(_) => return,
            _ => mem::replace(&mut state.outcome, Outcome::Closed(reason)),
        };
        let _fallback = state.fallback.take();
        let callbacks = mem::take(&mut state.callbacks);
        drop(state);
        callbacks.call(reason);
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use super::*;

    type Race = AnswerRace<u32>;

    #[test]
    fn the_first_wins_and_the_others_hear_it() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let race = || Race::new(Some(later));

        let (responder, awaited) = race();
        assert_eq!(awaited.decide(now, false), None);
        assert_eq!(responder.answer(Some(1)), Ok(()));
        // Neither the deadline nor the client's leaving comes before an answer that was given.
        assert_eq!(awaited.decide(later, true), Some(Winner::Answer(1)));

        let (responder, awaited) = race();
        responder.set_fallback(2);
        assert_eq!(
            awaited.decide(later, false),
            Some(Winner::Deadline(Some(2)))
        );
        let late = Err((Some(1), CloseReason::DeadlinePassed));
        assert_eq!(responder.answer(Some(1)), late);

        let (responder, awaited) = race();
        assert_eq!(awaited.decide(later, true), Some(Winner::Client));
        let late = Err((Some(1), CloseReason::ClientLeft));
        assert_eq!(responder.answer(Some(1)), late);

        let (responder, awaited) = race();
        assert_eq!(responder.answer(None), Ok(()));
        assert_eq!(awaited.decide(now, false), Some(Winner::Nobody));

        let (responder, awaited) = race();
        drop(awaited);
        assert_eq!(responder.close_reason(), Some(CloseReason::NotSent));
    }

    #[test]
    fn a_callback_is_called_once_and_its_panic_ends_there() {
        let (responder, awaited) = Race::new(None);
        let calls = Arc::new(AtomicU32::new(0));
        let count = |reason| {
            let calls = Arc::clone(&calls);
            move |why| {
                assert_eq!(why, reason);
                calls.fetch_add(1, SeqCst);
            }
        };
        responder.on_close(|_| panic!("as it was asked to"));
        responder.on_close(count(CloseReason::ClientLeft));
        assert_eq!(awaited.decide(Instant::now(), true), Some(Winner::Client));
        assert_eq!(calls.load(SeqCst), 1);
        // After the end, at once.
        responder.on_close(count(CloseReason::ClientLeft));
        drop(awaited);
        assert_eq!(calls.load(SeqCst), 2);
    }

    /// More rounds: `HANDOVER_RACE_ROUNDS=1000000 cargo test --features http --release race`.
    #[test]
    fn exactly_one_of_answer_deadline_and_leaving_wins_each_race() {
        let rounds = std::env::var("HANDOVER_RACE_ROUNDS");
        let rounds: u32 = rounds.map_or(20_000, |text| text.parse().unwrap());
        let now = Instant::now();
        let barrier = Barrier::new(2);
        let (responders, incoming) = crossbeam_channel::bounded(1);
        let (results, outgoing) = crossbeam_channel::bounded(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                for (round, responder) in incoming.iter().enumerate() {
                    let responder: Arc<Race> = responder;
                    barrier.wait();
                    let result = responder.answer(Some(round as u32));
                    results.send(result).unwrap();
                }
            });
            let mut wins = [0; 4];
            for round in 0..rounds {
                let (responder, awaited) = Race::new(Some(now));
                let callback = Arc::new(AtomicU32::new(0));
                let called = Arc::clone(&callback);
                responder.on_close(move |_| {
                    called.fetch_add(1, SeqCst);
                });
                responders.send(responder).unwrap();
                barrier.wait();
                // The service's side is one thread at a time: it notes the end of the stream, the
                // deadline, or that the connection is dropped.
                let winner = match round % 3 {
                    0 => awaited.decide(now, true),
                    1 => awaited.decide(now, false),
                    _ => None,
                };
                drop(awaited);
                let result = outgoing.recv().unwrap();
                let closes = callback.load(SeqCst);
                match (winner, &result) {
                    (Some(Winner::Answer(answer)), Ok(())) if answer == round => wins[0] += 1,
                    (Some(Winner::Client), Err((_, CloseReason::ClientLeft))) => wins[1] += 1,
                    (Some(Winner::Deadline(None)), Err((_, CloseReason::DeadlinePassed))) => {
                        wins[2] += 1;
                    }
                    (None, _) => wins[3] += 1,
                    odd => panic!("round {round}: {odd:?}"),
                }
                assert_eq!(closes, u32::from(result.is_err()), "round {round}");
            }
            drop(responders);
            println!("{rounds} races, won by answer, client, deadline, drop: {wins:?}");
        });
    }
}
