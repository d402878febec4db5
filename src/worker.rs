//! The workers: a fixed number of threads that serve connections, each in a loop.
//!
//! ```text
//! queue entry, or a ready connection ──► turn ──► parked, queued again, or closed
//!          ▲                                                  │
//!          └──────────── queue empty: wait in the poller ◄────┘
//! ```
//!
//! A turn ends when the connection waits for its client, is closed, or reaches the limit of
//! [`CALLS_PER_TURN`] calls. A panic of the service closes the connection; the worker goes on, and
//! builds its own state again. The workers end when the queue is closed and empty.
//!
//! A worker whose state cannot be built is absent: it puts the connection back on the queue, and
//! takes no other until a later attempt succeeds ([`recovery`]). The other workers replace it as if
//! it were in a long turn. If all are absent, connections wait as while all workers are busy.

mod recovery;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::clock;
use crate::connection::{Blocked, Connection, Expiry, Filled, Flushed, SpareBuffers};
use crate::log;
use crate::panic;
use crate::parking::{BATCH, Lot, Lots, Needs, Occupant, RoomRequest, Stage, Token, Turn};
use crate::service::{self, Next, Service};
use crate::stats::{ThreadCounters, count, count_several};
use crate::sys::{Events, PeerState, Poller};

use recovery::delay;

/// The most calls of the service in one turn. While other connections wait on the queue, a turn
/// has one call.
const CALLS_PER_TURN: usize = 64;

/// After this many connections in a row, a worker polls without waiting, even if the queue is
/// never empty.
const POLL_EVERY: usize = 64;

/// If a connection waited for longer than this many nanoseconds for a worker, the worker checks
/// whether the client has reset the connection. It also checks if the poller has reported the end
/// of the stream.
const CHECK_CLIENT_AFTER: u64 = 10_000_000;

/// A hook of the application. Its argument is the worker's index.
pub(crate) type Hook = Box<dyn Fn(usize) + Send + Sync>;

/// What all workers of a server share.
pub(crate) struct Workers<'a, S: Service> {
    pub(crate) service: &'a S,
    pub(crate) lots: &'a Lots<S::Session>,
    pub(crate) on_start: Option<&'a Hook>,
    pub(crate) on_exit: Option<&'a Hook>,
    /// The warning about a service that makes no progress was logged.
    pub(crate) has_warned: AtomicBool,
}

/// What one worker has of its own. Built, used and dropped on its thread.
struct Worker<'a, S: Service> {
    index: usize,
    /// The lot of the worker's group.
    home: &'a Lot<S::Session>,
    /// The service's state for this worker, built when the worker first serves.
    own: Option<S::Worker>,
    /// The state could not be built: the worker must recover before it takes a connection.
    must_recover: bool,
    counters: &'a ThreadCounters,
    events: Events,
    /// Buffers, lent to the connection in the turn.
    spare: SpareBuffers,
    /// Connections that the worker has served since its last wait.
    entries: usize,
    /// The end of the last call or wait, in the clock's nanoseconds.
    now: u64,
    /// When the connection in the turn became ready, or when its last call ended, in the clock's
    /// nanoseconds.
    ready_at: u64,
    /// The number of turns so far. Some turns are timed, see [`Lot::begin_sample`].
    turns: u32,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TurnEnd {
    /// The connection is parked or closed.
    Over,
    /// The connection is on the queue again, so that other connections are served before its next
    /// call.
    Queued,
    /// The service panicked.
    Panicked,
    /// The worker could not serve the connection, which is on the queue again.
    NotServed,
}

/// What becomes of the connection after one step of a turn.
enum Disposition {
    /// Another step, if the turn has calls left and no other connection waits.
    Continue,
    Park,
    /// The service has finished: the output is written before the close.
    WriteThenClose,
    /// The connection is broken or detached: it is closed without another write.
    CloseNow,
    /// The worker has no state: another worker serves the connection.
    Requeue,
}

impl<'a, S: Service> Workers<'a, S> {
    /// One worker's loop. Calls `started` once, with whether the worker could start. A worker that
    /// could not start ends.
    pub(crate) fn run(&'a self, index: usize, started: impl FnOnce(io::Result<()>)) {
        let mut worker = match self.start(index) {
            Ok(worker) => worker,
            Err(error) => return started(Err(error)),
        };
        started(Ok(()));
        let home = worker.home;
        loop {
            if home.has_surplus() {
                // A wake-up for an entry on a queue may have reached this worker.
                self.lots.wake_next();
                if home.rest(index) {
                    worker.entries = 0;
                }
            }
            // Read first: entries from before the close are served.
            let is_closed = home.is_closed();
            let token = match self.lots.take_entry(home) {
                Some(token) => Some(token),
                None if is_closed => break,
                None => {
                    worker.entries = 0;
                    home.wait_for_connection(&mut worker.events, worker.counters)
                }
            };
            let Some(token) = token else { continue };
            worker.counters.toggle_turn();
            let end = panic::contain(|| self.serve_entry(&mut worker, token));
            if let Err(why) = &end {
                log::error!("worker {index}: {why}");
            }
            if matches!(end, Err(_) | Ok(TurnEnd::Panicked)) {
                self.discard_state(&mut worker);
            }
            worker.counters.toggle_turn();
            if worker.must_recover {
                self.recover(&mut worker);
            }
        }
        self.discard_state(&mut worker);
        self.end(index);
    }

    fn start(&'a self, index: usize) -> io::Result<Worker<'a, S>> {
        if let Some(hook) = self.on_start {
            panic::contain(|| hook(index)).map_err(panic_error)?;
        }
        let mut worker = Worker {
            index,
            home: self.lots.home(index),
            own: None,
            must_recover: false,
            counters: &self.lots.counters.workers[index],
            events: Events::with_capacity(BATCH),
            spare: SpareBuffers::default(),
            entries: 0,
            now: clock::nanos(),
            ready_at: 0,
            turns: 0,
        };
        // If the state cannot be built, the start of the server must fail.
        if index == 0 {
            worker.own = Some(self.build_state(index)?);
        }
        Ok(worker)
    }

    fn build_state(&self, index: usize) -> io::Result<S::Worker> {
        panic::contain(|| self.service.worker(index)).map_err(panic_error)?
    }

    /// Builds the worker's state, if the worker has none. False if the build fails: the worker must
    /// then recover.
    #[inline]
    fn ensure_state(&self, worker: &mut Worker<'a, S>) -> bool {
        if worker.own.is_none() && !worker.must_recover {
            match self.build_state(worker.index) {
                Ok(state) => worker.own = Some(state),
                Err(error) => {
                    worker.must_recover = true;
                    log::error!(
                        "worker {}: cannot build its state: {error}; trying again, other workers \
                         serve meanwhile",
                        worker.index
                    );
                    log::drop_contained("an error", error);
                }
            }
            worker.now = clock::nanos();
        }
        worker.own.is_some()
    }

    /// Tries to build the worker's state, with a back-off, until that succeeds or the server ends.
    /// The worker takes no connection meanwhile.
    #[cold]
    fn recover(&self, worker: &mut Worker<'a, S>) {
        let index = worker.index;
        // A wake-up for an entry on a queue may have reached this worker.
        self.lots.wake_next();
        worker.home.begin_absence(index);
        let mut failures = 1;
        while worker.own.is_none() && worker.home.wait_absent(index, delay(failures, index)) {
            match self.build_state(index) {
                Ok(state) => {
                    log::info!("worker {index}: serves again, after {failures} failed attempts");
                    worker.own = Some(state);
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    log::debug!("worker {index}: still cannot build its state: {error}");
                    log::drop_contained("an error", error);
                }
            }
        }
        worker.must_recover = false;
        worker.entries = 0;
        worker.home.end_absence(index);
    }

    /// Drops a worker's state. The drop is the application's code.
    fn discard_state(&self, worker: &mut Worker<'a, S>) {
        let state = worker.own.take();
        log::drop_contained(format_args!("the state of worker {}", worker.index), state);
    }

    fn end(&self, index: usize) {
        self.lots.home(index).worker_ended();
        if let Some(hook) = self.on_exit {
            if let Err(why) = panic::contain(|| hook(index)) {
                log::error!("worker {index}: the exit hook panicked: {why}");
            }
        }
    }

    /// Serves a connection from a queue or the poller. While the queue is not empty, the
    /// connections that the poller reports are put at its end, so that connections are served in
    /// the order in which they became ready.
    fn serve_entry(&self, worker: &mut Worker<'a, S>, token: Token) -> TurnEnd {
        let Some(lot) = self.lots.of(token) else {
            return TurnEnd::Over;
        };
        let home = worker.home;
        let is_stolen = !std::ptr::eq(lot, home);
        worker.entries += 1;
        let is_first = worker.entries == 1;
        if is_first || is_stolen {
            self.lots.wake_next();
            worker.now = clock::nanos();
        } else {
            lot.wake_next();
        }
        lot.room.notify(RoomRequest::Queue);
        if !is_first {
            let is_due = worker.entries % POLL_EVERY == 0;
            home.poll_to_queue(&mut worker.events, worker.counters, is_due);
        }
        if is_stolen {
            lot.poll_to_queue(&mut worker.events, worker.counters, false);
        }
        let sample = home.begin_sample(&mut worker.turns);
        let mut end = self.serve(worker, lot, token);
        if let Some(sample) = sample {
            home.end_sample(sample, worker.index);
        }
        if end == TurnEnd::Queued {
            if let Some(token) = lot.poll_past_queue(&mut worker.events) {
                end = self.serve(worker, lot, token);
            }
        }
        end
    }

    /// Serves a connection that was QUEUED, if the connection is still QUEUED.
    fn serve(&self, worker: &mut Worker<'a, S>, lot: &'a Lot<S::Session>, token: Token) -> TurnEnd {
        let Some(mut turn) = lot.claim_queued(token, worker.counters) else {
            return TurnEnd::Over;
        };
        if lot.is_late(&turn) {
            turn.refuse_late();
            return TurnEnd::Over;
        }
        worker.ready_at = turn.begin_service(worker.now);
        match self.lots.drain.is_forced() {
            true => TurnEnd::Over,
            false => self.run_turn(worker, turn),
        }
    }

    /// Serves a connection until the connection waits for its client, is closed, or has to let
    /// other connections go first.
    fn run_turn(&self, worker: &mut Worker<'a, S>, mut turn: Turn<'_, S::Session>) -> TurnEnd {
        let mut calls_left = CALLS_PER_TURN;
        let lot = turn.lot;
        loop {
            let token = turn.token;
            let Some(occupant) = turn.occupant() else {
                return TurnEnd::Over;
            };
            let disposition = match occupant.advance() {
                Needs::Service => {
                    let (pause, counters) = (&self.lots.drain.pause, worker.counters);
                    let word = &counters.in_calls;
                    if !pause.begin_calls(word, || occupant.can_move_now()) {
                        turn.hold();
                        return TurnEnd::Over;
                    }
                    occupant.conn.lend_buffers(&mut worker.spare);
                    let steps = || self.steps(lot, occupant, worker, token, &mut calls_left);
                    let disposition = panic::contain(steps);
                    pause.end_calls(word);
                    // After an error and a panic too: what was written before is sent.
                    if matches!(disposition, Ok(Disposition::WriteThenClose)) {
                        occupant.conn.note_last_output();
                    }
                    let flushed = occupant.conn.flush_all_sources();
                    if !matches!(disposition, Ok(Disposition::WriteThenClose)) {
                        occupant.conn.release_answer();
                    }
                    occupant.conn.return_buffers(&mut worker.spare);
                    match disposition {
                        Ok(disposition) => after_flush(occupant, disposition, flushed),
                        Err(why) => {
                            self.log_panic(worker, occupant, &why);
                            turn.close_after_panic();
                            return TurnEnd::Panicked;
                        }
                    }
                }
                Needs::Client => Disposition::Park,
                Needs::NextTurn => {
                    turn.park_again();
                    return TurnEnd::Over;
                }
                Needs::Close => Disposition::CloseNow,
            };
            match disposition {
                Disposition::Continue => {
                    // Between two messages, also of a client that never pauses.
                    turn = match turn.move_or_keep() {
                        Ok(()) => return TurnEnd::Over,
                        Err(kept) => kept,
                    };
                    if self.must_let_others_go_first(lot, worker, &mut calls_left) {
                        turn.queue();
                        return TurnEnd::Queued;
                    }
                }
                Disposition::Park => {
                    turn = match turn.park() {
                        Some(kept) => kept,
                        None => return TurnEnd::Over,
                    };
                    // Wake-ups, messages and input may come faster than the connection is parked.
                    if self.must_let_others_go_first(lot, worker, &mut calls_left) {
                        turn.queue();
                        return TurnEnd::Queued;
                    }
                }
                Disposition::WriteThenClose => {
                    if let Some(occupant) = turn.occupant() {
                        occupant.begin_closing();
                    }
                }
                Disposition::CloseNow => return TurnEnd::Over,
                Disposition::Requeue => {
                    turn.requeue(worker.ready_at);
                    return TurnEnd::NotServed;
                }
            }
        }
    }

    /// Whether this connection has used up its turn, or others wait.
    fn must_let_others_go_first(
        &self,
        lot: &Lot<S::Session>,
        worker: &mut Worker<'a, S>,
        calls_left: &mut usize,
    ) -> bool {
        *calls_left = calls_left.saturating_sub(1);
        let is_over = *calls_left == 0;
        lot.poll_to_queue(&mut worker.events, worker.counters, is_over);
        is_over || lot.has_entries()
    }

    fn log_panic(&self, worker: &mut Worker<'a, S>, occupant: &Occupant<S::Session>, why: &str) {
        worker.now = clock::nanos();
        worker.counters.end_call(worker.now);
        count(&self.lots.counters.panics);
        let (client, index) = (occupant.conn.info(), worker.index);
        log::error!("{client}: the service panicked on worker {index}: {why}");
    }

    /// Takes steps as long as the next message is in the buffer, so that the answers leave
    /// together. But no answer waits for other connections, or for longer than a tick of the coarse
    /// clock: if a call takes longer, the keeper writes the answers before it.
    fn steps(
        &self,
        lot: &Lot<S::Session>,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
        calls_left: &mut usize,
    ) -> Disposition {
        let mut began = None;
        loop {
            let mut disposition = self.step(occupant, worker, token);
            if self.lots.drain.is_draining() && occupant.is_silent() {
                disposition = self.end_by_answer(occupant, disposition);
            }
            let goes_on = matches!(disposition, Disposition::Continue)
                && occupant.stage == Stage::Idle
                && !occupant.conn.buffer().is_empty()
                && !occupant.conn.has_output()
                && *calls_left > 1
                && !lot.has_entries()
                && self.lots.drain.pause.is_open();
            if !goes_on {
                return disposition;
            }
            let now = clock::millis();
            if now != *began.get_or_insert(now) {
                return disposition;
            }
            *calls_left -= 1;
        }
    }

    /// Ends a connection that waits for its client in a drain, together with its answer, which has
    /// not left. `disposition` is what becomes of the connection otherwise.
    #[cold]
    fn end_by_answer(
        &self,
        occupant: &mut Occupant<S::Session>,
        disposition: Disposition,
    ) -> Disposition {
        if !matches!(disposition, Disposition::Park | Disposition::Continue) {
            return disposition;
        }
        occupant.check_drain();
        let conn = &mut occupant.conn;
        if conn.due.is_any() {
            return Disposition::Continue;
        }
        let is_closing = self.lots.drain.is_closing();
        let ends = self.ends_after(occupant.stage, conn);
        // From here on the keeper sends nothing.
        let has_more = conn.reclaim_output().and_then(|()| {
            // The client has much to read before it sees the end: it may send more until then.
            let may_end = !conn.has_output() && (ends || conn.holds_answer());
            may_end
                .then(|| conn.has_more_in_drain(is_closing))
                .transpose()
        });
        match has_more {
            Ok(None) => disposition,
            Ok(Some(true)) => Disposition::Continue,
            Ok(Some(false)) => {
                // A reset because of unread input must not overtake the answer.
                conn.linger_on_close();
                end_by_drain(conn)
            }
            Err(error) => {
                log::debug!("{}: {error}", conn.info());
                Disposition::CloseNow
            }
        }
    }

    /// Reads, if the stage asks for input, and calls the service.
    fn step(
        &self,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
    ) -> Disposition {
        occupant.check_drain();
        let (stage, conn) = (occupant.stage, &mut occupant.conn);
        let reads = match stage {
            Stage::New | Stage::Idle => conn.buffer().is_empty(),
            Stage::Partial => true,
            Stage::Waiting => !conn.is_input_full(),
            Stage::Runnable | Stage::Closing | Stage::Lingering { .. } => false,
        };
        let mid_message = matches!(stage, Stage::Partial | Stage::Waiting);
        let mut is_due = conn.due.is_any();
        // Before the read: what was read of a message must reach the service.
        if mid_message && !self.ensure_state(worker) {
            return Disposition::Requeue;
        }
        if reads && !conn.at_eof() {
            let is_closing = self.lots.drain.is_closing() && !is_due;
            let is_over = is_closing && conn.check_drain_limit(!mid_message);
            if is_over && stage != Stage::Waiting {
                return end_by_drain(conn);
            }
            // A connection that waits goes on, but reads no more.
            let filled = match is_over {
                true => Ok(Filled::Nothing),
                false => conn.try_fill(),
            };
            match filled {
                Ok(Filled::Bytes) if stage != Stage::Waiting => {
                    // The client has been faster than the call for its expiry.
                    conn.due.expiry = None;
                    is_due = conn.due.is_any();
                }
                Ok(Filled::Bytes | Filled::Eof) => {}
                Ok(Filled::Nothing) if is_due => {}
                Ok(Filled::Nothing) if self.ends_after(stage, conn) => return end_by_drain(conn),
                Ok(Filled::Nothing) => return Disposition::Park,
                Err(error) => {
                    log::debug!("{}: cannot read: {error}", conn.info());
                    return Disposition::CloseNow;
                }
            }
        }
        if reads && !mid_message && !is_due && conn.buffer().is_empty() {
            // The stream has ended where a message might have begun.
            return Disposition::WriteThenClose;
        }
        let has_waited = worker.now - worker.ready_at > CHECK_CLIENT_AFTER;
        // Where only one thread may poll, the poller cannot tell the end of the stream from input.
        let has_hung_up = Poller::SHARED && conn.has_hung_up();
        if (has_waited || has_hung_up) && conn.peer_state() == PeerState::Reset {
            log::debug!("{}: closed, the client has left", conn.info());
            count(&self.lots.counters.abandoned);
            return Disposition::CloseNow;
        }
        if stage == Stage::Waiting && !is_due && !must_tell_end(conn) {
            // What has arrived stays in the buffer.
            let has_more = !conn.is_emptied() && !conn.is_input_full() && !conn.at_eof();
            return match has_more {
                true => Disposition::Continue,
                false => Disposition::Park,
            };
        }
        // The state is built for the first call, not for a connection that has sent nothing yet.
        if !self.ensure_state(worker) {
            return Disposition::Requeue;
        }
        let consumed = conn.consumed();
        let next = self.call(occupant, worker, token);
        if matches!(next, Ok(Next::More)) {
            occupant.conn.note_part(consumed);
        }
        match next {
            // The service has taken one part of a message, and the next part may have arrived.
            Ok(Next::More) if occupant.conn.has_unseen_bytes(consumed) => {
                self.apply_next(occupant, Next::Again)
            }
            Ok(next) => self.apply_next(occupant, next),
            Err(error) => match next_after(&occupant.conn, &error) {
                Some(next) => {
                    // Only the service knows whether its library has answered a message.
                    occupant.conn.forget_answer();
                    self.apply_next(occupant, next)
                }
                None => {
                    self.note_error(&occupant.conn, &error);
                    Disposition::CloseNow
                }
            },
        }
    }

    /// Logs an error that ends a connection. What a client causes by its own doing is no warning.
    #[cold]
    fn note_error(&self, conn: &Connection, error: &io::Error) {
        // `read_exact` makes an error of the end of the stream.
        let is_cut_short = conn.at_eof() && error.kind() == io::ErrorKind::UnexpectedEof;
        if conn.has_failed() || conn.is_detached() || is_cut_short {
            log::debug!("{}: {error}", conn.info());
        } else {
            count(&self.lots.counters.service_errors);
            log::warn!("{}: the service failed: {error}", conn.info());
        }
    }

    /// Calls the service once, and counts and times the call.
    fn call(
        &self,
        occupant: &mut Occupant<S::Session>,
        worker: &mut Worker<'a, S>,
        token: Token,
    ) -> io::Result<Next> {
        let Some(own) = &mut worker.own else {
            return Err(io::Error::other("the worker has no state"));
        };
        let counters = worker.counters;
        counters.begin_call(token.to_u64(), worker.ready_at, worker.now);
        // A wake-up that came meanwhile goes before the expiry.
        let due = &mut occupant.conn.due;
        let expiry = due.expiry.take();
        let next = match expiry.filter(|_| !due.is_any()) {
            None => self.call_with(occupant, own),
            Some(expiry) => self.call_expired(occupant, expiry),
        };
        if let Some(lot) = self.lots.of(token) {
            lot.end_expiry(occupant);
        }
        worker.now = clock::nanos();
        counters.end_call(worker.now);
        worker.ready_at = worker.now;
        occupant.conn.end_wait();
        next
    }

    fn call_with(
        &self,
        occupant: &mut Occupant<S::Session>,
        own: &mut S::Worker,
    ) -> io::Result<Next> {
        let goes_on = !matches!(occupant.stage, Stage::New | Stage::Idle);
        occupant.conn.begin_call(goes_on);
        let conn = &mut occupant.conn;
        let session = match &mut occupant.session {
            Some(session) => session,
            none => match self.service.session(conn) {
                Ok(session) => {
                    conn.note_session();
                    none.insert(session)
                }
                Err(error) => {
                    conn.forget_blocked_view();
                    return Err(error);
                }
            },
        };
        if occupant.conn.cause().draining {
            count(&self.lots.counters.drain_calls);
        }
        self.service.serve(&mut occupant.conn, session, own)
    }

    #[cold]
    fn call_expired(
        &self,
        occupant: &mut Occupant<S::Session>,
        expiry: Expiry,
    ) -> io::Result<Next> {
        let Some(session) = &mut occupant.session else {
            return Ok(Next::Close);
        };
        occupant.conn.begin_call(false);
        let next = match self.service.expired(&mut occupant.conn, session, expiry) {
            // The time is over: nothing is waited for.
            Err(error) if next_after(&occupant.conn, &error).is_some() => Ok(Next::Close),
            next => next,
        };
        // If the service goes on, the client has as much time again.
        occupant.idle_until = None;
        occupant.conn.end_message();
        next
    }

    /// Applies what the service has returned: sets the connection's next stage.
    fn apply_next(&self, occupant: &mut Occupant<S::Session>, next: Next) -> Disposition {
        let conn = &mut occupant.conn;
        // A wake-up is not a sign of the client.
        let is_of_client = !conn.take_no_message() && conn.cause().readable;
        let ends_wait = occupant.stage == Stage::Waiting;
        if next == Next::Wait || ends_wait || is_of_client && next != Next::More {
            occupant.idle_until = None;
        }
        let errors = conn.take_errors();
        if errors > 0 {
            count_several(&self.lots.counters.service_errors, errors.into());
        }
        if conn.is_detached() {
            return Disposition::CloseNow;
        }
        if conn.is_abandoned() {
            count(&self.lots.counters.abandoned);
            return Disposition::CloseNow;
        }
        if conn.is_too_long() {
            count(&self.lots.counters.too_long);
        }
        let stage = match next {
            Next::Park if conn.buffer().is_empty() => {
                conn.end_message();
                Stage::Idle
            }
            Next::Park => {
                let before = occupant.unread_mark.replace(conn.input_mark());
                if before == occupant.unread_mark {
                    // The service would be called again and again for the same bytes.
                    self.warn_of_no_progress(conn);
                    return self.apply_next(occupant, Next::More);
                }
                conn.end_message();
                Stage::Idle
            }
            Next::More if conn.at_eof() => return Disposition::WriteThenClose,
            Next::More if conn.is_input_full() => {
                log::debug!("{}: closed, a message is too long", conn.info());
                count(&self.lots.counters.too_long);
                return Disposition::WriteThenClose;
            }
            Next::More => Stage::Partial,
            Next::Wait => Stage::Waiting,
            Next::Again => Stage::Runnable,
            Next::Close => return Disposition::WriteThenClose,
        };
        occupant.stage = stage;
        let has_more = match stage {
            Stage::Runnable => true,
            Stage::Partial => !conn.is_emptied(),
            Stage::Waiting => {
                must_tell_end(conn) || !conn.is_emptied() && !conn.is_input_full() && !conn.at_eof()
            }
            _ => !conn.buffer().is_empty() || !conn.is_emptied(),
        };
        match has_more {
            true => Disposition::Continue,
            false => Disposition::Park,
        }
    }

    fn warn_of_no_progress(&self, conn: &Connection) {
        if !self.has_warned.swap(true, Relaxed) {
            log::warn!(
                "{}: the service returned Park twice with the same unread bytes; it waits for more \
                 now, as after More (this is logged once)",
                conn.info()
            );
        }
    }

    /// Whether the server stops, or hands its state over, so that a connection at this stage gets no
    /// further message.
    fn ends_after(&self, stage: Stage, conn: &Connection) -> bool {
        let drain = &self.lots.drain;
        !matches!(stage, Stage::Partial | Stage::Waiting)
            && (drain.is_closing() || drain.pause.ends_connection(|| conn.is_movable()))
    }
}

/// What a call means that has failed with the `WouldBlock` of its view of the connection: the
/// service has passed it on with `?`. `None` for other errors.
#[cold]
fn next_after(conn: &Connection, error: &io::Error) -> Option<Next> {
    match conn.blocked_view()? {
        _ if !service::is_wait(error) => None,
        Blocked::Input => Some(Next::Park),
        Blocked::Output | Blocked::Turn => Some(Next::Again),
    }
}

/// Ends a connection because the server drains.
fn end_by_drain(conn: &mut Connection) -> Disposition {
    match conn.write_goodbye() {
        Ok(()) => Disposition::WriteThenClose,
        Err(error) => {
            log::debug!("{}: cannot write: {error}", conn.info());
            Disposition::CloseNow
        }
    }
}

/// Whether the client has ended its side, and a service that waits was not told.
fn must_tell_end(conn: &Connection) -> bool {
    conn.has_client_ended() && !conn.due.was_told_of_end()
}

/// What becomes of the connection after a step, once its output was flushed.
fn after_flush<S>(
    occupant: &Occupant<S>,
    disposition: Disposition,
    flushed: io::Result<Flushed>,
) -> Disposition {
    match (flushed, disposition) {
        (_, Disposition::CloseNow) => Disposition::CloseNow,
        (Err(error), _) => {
            log::debug!("{}: cannot write: {error}", occupant.conn.info());
            Disposition::CloseNow
        }
        (Ok(_), _) if occupant.conn.is_ended_by_outbox() => Disposition::WriteThenClose,
        // The socket has just refused to take more.
        (Ok(_), Disposition::Continue) if occupant.conn.has_output() => Disposition::Park,
        (Ok(_), disposition) => disposition,
    }
}

fn panic_error(why: String) -> io::Error {
    io::Error::other(format!("panicked: {why}"))
}
