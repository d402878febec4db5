//! A worker's turn with a connection: read what is there, call the service, and do what it says comes next.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crossbeam_channel::Receiver;

use crate::clock;
use crate::connection::{Connection, Filled, READ_SIZE};
use crate::parking::{BATCH, Lot, Occupant, Tended, Token, Turn, Waits, Wants};
use crate::pool::Job;
use crate::service::{Next, Service};
use crate::stats::{WorkerCounters, count};
use crate::sys::Events;

/// How many calls a connection gets in one turn, while nobody else waits in the queue.
const TURN: usize = 64;

/// After so many connections from the queue a worker looks into the poller, even if the queue is never empty.
const LOOK_EVERY: usize = 64;

/// A hook of the user's that is given a worker's index.
pub(crate) type Hook = Box<dyn Fn(usize) + Send + Sync>;

/// What all workers of a server share.
pub(crate) struct Workers<'a, S: Service> {
    pub(crate) service: &'a S,
    pub(crate) lot: &'a Lot<S::Session>,
    pub(crate) on_start: Option<&'a Hook>,
    pub(crate) on_exit: Option<&'a Hook>,
}

/// What one worker has of its own.
pub(crate) struct State<W> {
    own: W,
    index: usize,
    events: Events,
    /// Room to read into, lent to the connection in hand.
    spare: Vec<u8>,
    taken: usize,
}

thread_local! {
    /// Whom the service was called for when it panicked on this thread.
    static WHOM: Cell<Option<String>> = const { Cell::new(None) };
}

impl<S: Service> Job for Workers<'_, S> {
    type Item = Token;
    type State = State<S::Worker>;

    fn started(&self, worker: usize) {
        if let Some(hook) = self.on_start {
            hook(worker);
        }
    }

    fn prepare(&self, worker: usize) -> io::Result<Self::State> {
        Ok(State {
            own: self.service.worker(worker)?,
            index: worker,
            events: Events::with_capacity(BATCH),
            spare: vec![0; READ_SIZE],
            taken: 0,
        })
    }

    fn wait(&self, state: &mut Self::State, queue: &Receiver<Token>) -> Option<Token> {
        state.taken = 0;
        self.lot.wait(&mut state.events, queue)
    }

    fn run(&self, state: &mut Self::State, token: Token) {
        self.lot.pass_on();
        self.lot.made_room();
        state.taken += 1;
        let had_share = self.serve(state, token);
        if had_share || state.taken % LOOK_EVERY == 0 {
            // Those in the poller wait as well, and for them the queue is not empty soon enough.
            if let Some(token) = self.lot.look(&mut state.events) {
                self.serve(state, token);
            }
        }
    }

    fn lost(&self, token: Token) {
        drop(self.lot.start(token));
        self.lot.made_room();
    }

    fn failed(&self, worker: usize, why: &str) {
        match WHOM.take() {
            Some(whom) => {
                count(&self.lot.counters.panics);
                log::error!("{whom}: the service panicked on worker {worker}: {why}");
            }
            None => log::error!("worker {worker}: {why}"),
        }
    }

    fn ended(&self, worker: usize) {
        self.lot.worker_ended();
        if let Some(hook) = self.on_exit {
            hook(worker);
        }
    }
}

/// A call of the service; when it ends in a panic, notes for whom it was.
struct Calling<'a> {
    counters: &'a WorkerCounters,
    conn: &'a mut Connection,
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.counters.end();
        if thread::panicking() {
            WHOM.set(Some(self.conn.info().to_string()));
        }
    }
}

/// What a step of a turn came to.
enum Step {
    /// Another step, if the connection has not had its share.
    Again,
    Park(Waits),
    /// The service is done with it; what is buffered is written before it is closed.
    Close,
    /// It is done for: close it at once.
    Drop,
}

impl<S: Service> Workers<'_, S> {
    /// Serves a connection that was QUEUED, if it still is. True if it had its share and is QUEUED again.
    fn serve(&self, state: &mut State<S::Worker>, token: Token) -> bool {
        let Some(mut turn) = self.lot.start(token) else {
            return false;
        };
        turn.counters = &self.lot.counters.workers[state.index];
        if self.lot.is_late(&turn) {
            turn.refuse_late();
            return false;
        }
        !self.lot.drain.is_forced() && self.turn(state, turn)
    }

    /// Serves a connection until it waits for its client, is closed, or has had its share.
    fn turn(&self, state: &mut State<S::Worker>, mut turn: Turn<'_, S::Session>) -> bool {
        let mut left = TURN;
        loop {
            let token = turn.token;
            let Some(occupant) = turn.occupant() else {
                return false;
            };
            let step = match occupant.tend() {
                Tended::Ready => {
                    occupant.conn.lend(&mut state.spare);
                    let step = catch_unwind(AssertUnwindSafe(|| self.step(occupant, state, token)));
                    if let Some(occupant) = turn.occupant() {
                        occupant.conn.settle(&mut state.spare);
                    }
                    match step {
                        Ok(step) => step,
                        Err(panic) => {
                            turn.abandon();
                            resume_unwind(panic)
                        }
                    }
                }
                Tended::Wait(waits) => Step::Park(waits),
                Tended::Done => Step::Drop,
            };
            match step {
                Step::Again => {
                    left -= 1;
                    if left == 0 || self.lot.queued() > 0 {
                        turn.requeue();
                        return true;
                    }
                }
                Step::Park(waits) => match turn.park(waits) {
                    Some(kept) => turn = kept,
                    None => return false,
                },
                Step::Close => {
                    if let Some(occupant) = turn.occupant() {
                        occupant.close();
                    }
                }
                Step::Drop => return false,
            }
        }
    }

    /// Reads, if the service wants something to be there, and calls it.
    fn step(
        &self,
        occupant: &mut Occupant<S::Session>,
        state: &mut State<S::Worker>,
        token: Token,
    ) -> Step {
        let wanted = match occupant.wants {
            Wants::Nothing => false,
            Wants::FirstByte | Wants::Message => occupant.conn.buffer().is_empty(),
            Wants::More => true,
        };
        if wanted && !occupant.conn.at_eof() {
            let between = occupant.wants != Wants::More;
            if self.lot.drain.is_closing() && occupant.conn.has_had_its_last(between) {
                return Step::Close;
            }
            match occupant.conn.try_fill() {
                Ok(Filled::Bytes | Filled::Eof) => {}
                Ok(Filled::Nothing) if self.is_over(occupant) => return Step::Close,
                Ok(Filled::Nothing) => return Step::Park(Waits::Input),
                Err(error) => {
                    log::debug!("{}: cannot read: {error}", occupant.conn.info());
                    return Step::Drop;
                }
            }
        }
        if wanted && occupant.wants != Wants::More && occupant.conn.buffer().is_empty() {
            // The end of the stream, where a message might have begun.
            return Step::Close;
        }
        match self.call(occupant, state, token) {
            Ok(next) => self.after(occupant, next),
            Err(error) => {
                log::debug!("{}: {error}", occupant.conn.info());
                Step::Drop
            }
        }
    }

    fn call(
        &self,
        occupant: &mut Occupant<S::Session>,
        state: &mut State<S::Worker>,
        token: Token,
    ) -> io::Result<Next> {
        let session = match &mut occupant.session {
            Some(session) => session,
            none => none.insert(self.service.session(&occupant.conn)?),
        };
        let counters = &self.lot.counters.workers[state.index];
        counters.begin(token.to_u64(), clock::millis());
        let calling = Calling {
            counters,
            conn: &mut occupant.conn,
        };
        self.service.serve(calling.conn, session, &mut state.own)
    }

    fn after(&self, occupant: &mut Occupant<S::Session>, next: Next) -> Step {
        if occupant.conn.is_detached() {
            return Step::Drop;
        }
        let conn = &mut occupant.conn;
        occupant.wants = match next {
            Next::Park => {
                conn.end_message();
                Wants::Message
            }
            Next::More if conn.at_eof() => return Step::Close,
            Next::More => Wants::More,
            Next::Again => Wants::Nothing,
            Next::Close | Next::Detach => return Step::Close,
        };
        if conn.has_output() {
            // The socket has just refused to take more.
            return Step::Park(Waits::Output);
        }
        let more_at_hand = match occupant.wants {
            Wants::Nothing => true,
            Wants::More => !conn.is_drained(),
            Wants::FirstByte | Wants::Message => !conn.buffer().is_empty() || !conn.is_drained(),
        };
        if more_at_hand || self.is_over(occupant) {
            // A drain ends the connection only after one more look for a message that has come already.
            Step::Again
        } else {
            Step::Park(Waits::Input)
        }
    }

    /// No further message is wanted from this connection.
    fn is_over(&self, occupant: &Occupant<S::Session>) -> bool {
        occupant.wants != Wants::More && self.lot.drain.is_closing()
    }
}
