//! The workers: a fixed number of threads that serve connections, each in a loop.
//!
//! ```text
//! queue entry, or a ready connection ──► turn ──► parked, queued again, or closed
//!          ▲                                                  │
//!          └──────────── queue empty: wait in the poller ◄────┘
//! ```
//!
//! A turn ends when the connection waits for its client, is closed, or reaches the limit of
//! `CALLS_PER_TURN` calls ([`turn`]). A panic of the service closes the connection; the worker goes on, and
//! builds its own state again. The workers end when the queue is closed and empty.
//!
//! A worker whose state cannot be built is absent: it puts the connection back on the queue, and
//! takes no other until a later attempt succeeds ([`recovery`]). The other workers replace it as if
//! it were in a long turn. If all are absent, connections wait as while all workers are busy.

mod call;
mod recovery;
mod state;
mod step;
mod turn;

use std::io;
use std::sync::atomic::AtomicBool;

use crate::clock;
use crate::connection::SpareBuffers;
use crate::log;
use crate::panic;
use crate::parking::{BATCH, Lot, Lots, RoomRequest, Token};
use crate::service::Service;
use crate::stats::ThreadCounters;
use crate::sys::Events;

use state::panic_error;

/// After this many connections in a row, a worker polls without waiting, even if the queue is
/// never empty.
const POLL_EVERY: usize = 64;

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
}
