//! The parking lot: connections that wait for their client, or for a worker, on no thread.
//!
//! Every connection has a slot from its accept to its end. Idle workers wait in the lot's poller
//! themselves, where the platform lets many threads wait in one poller. The [`keeper`] does what
//! must happen while every worker is busy. The keeper never calls the service.
//!
//! A server has one lot, or one for each group of workers: see [`lots`].
//!
//! # The parts of a connection
//!
//! | type | what it is |
//! |---|---|
//! | [`Connection`] | the socket's buffers and deadlines: what a service reads and writes |
//! | [`ConnectionInfo`] | the socket and the addresses, which all threads may read |
//! | [`Occupant`] | a connection, its session, and its [`Stage`]: what moves from owner to owner |
//! | [`ConnectionSlot`] | the place of an occupant: its [`Ownership`](ownership::Ownership), its times, its info |
//! | [`Token`] | the name of a connection: its lot, its slot, and the connection's generation |
//! | [`Turn`] | one thread's exclusive hold of a connection |
//!
//! # The state of a connection
//!
//! The state has two parts. [`Ownership`] is one atomic word in the slot and says which thread may
//! touch the connection. [`Stage`] is plain data of the owner and says how far the exchange with
//! the client has come. Everything else follows from these two and from whether output is left to
//! write.
//!
//! | ownership | owner | who ends it, and how |
//! |---|---|---|
//! | FREE | none: the slot has no connection | the acceptor: `occupy` → RUNNING |
//! | RUNNING | the thread that has the [`Turn`] | that thread: `park` → PARKED, `queue` → QUEUED, a drop → FREE |
//! | PARKED | the lot | a poller event, `wake` → QUEUED; `claim_parked` (expiry, shedding, drain), `send` → RUNNING |
//! | QUEUED | the queue entry, on the queue of the workers or of the mover ([`between_processes`]), or nobody during the pause of a restart ([`held`]) | the thread that takes the entry, or finds the connection: `claim_queued` → RUNNING |
//!
//! An event for a connection that is not PARKED is kept as a flag of the word, and then `park`
//! fails: the owner reads again. The same holds for a wake-up and for a message of the outbox, which
//! come from threads of the [`application`]. See [`ownership`] for the proof obligations;
//! `tests/ownership_model.rs` checks them.
//!
//! | stage | parked until | time-out (closes) | at a drain | next stage |
//! |---|---|---|---|---|
//! | New | the first byte | `first_byte_timeout` | closed | a call: Idle, Partial, Waiting, Runnable, Closing |
//! | Idle | the first byte of a message | `idle_timeout` | closed | a call: as above |
//! | Partial | more bytes | `read_timeout`, `min_rate` | goes on | a call: as above |
//! | Waiting | a wake-up, the timer, the client's end | `idle_timeout` | goes on | a call: as above |
//! | Runnable | (never for input) | | goes on | a call: as above |
//! | Closing | (never for input) | | goes on | the output is written: Lingering, or closed |
//! | Lingering | the client's end | 2 s | goes on | closed |
//!
//! In the first four stages, a wake-up and the timer lead to a call as well. So does the beginning of
//! a drain, once, for a connection that has a waker, an outbox or a timer. In Waiting, input is read
//! into the buffer and leads to no call. If the service handles expiries, a time-out of Idle,
//! Waiting or Partial leads to a call of `Service::expired` instead of the close.
//!
//! In every stage output comes first: a connection with output is parked until its client reads,
//! under `write_timeout` and `min_rate`, and only then goes on as the table says. A connection that
//! is parked with output counts as in progress, whatever its stage.
//!
//! # Who wakes whom
//!
//! A thread that puts a connection on the queue wakes one worker in the poller, if a worker waits
//! there and no wake-up is pending ([`Queue::wake_one`]). A worker that takes an entry and sees
//! more entries wakes the next worker ([`Lot::wake_next`]), and so does a worker that is about to
//! rest. A worker increments `sleepers` before it reads the queue for the last time, and a thread
//! that has put an entry on the queue reads `sleepers` afterwards. So no entry waits while every
//! worker sleeps. With several lots, no entry of any lot waits while a worker of any lot sleeps:
//! [`lots`] has the argument.
//!
//! # The order of service
//!
//! Connections are served in the order in which they became ready. A worker whose queue is not
//! empty polls as well ([`Lot::poll_to_queue`]), and puts the reported connections at the end of
//! the queue. The acceptor does the same before it puts a new connection on the queue, while no
//! worker waits in the poller. While the queue is full, ready connections stay in the poller, which
//! keeps their order.

mod application;
mod between_processes;
mod closing;
mod concurrency;
mod expiry;
mod held;
mod idle_order;
mod keeper;
mod lots;
mod mover_queue;
mod occupant;
mod ownership;
mod polling;
mod queue;
mod room;
mod slab;
mod slot;
mod timer_wheel;
mod turn;

/// The atomics of [`ownership`]. The model test replaces them by those of loom.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use crate::clock::{self, in_millis};
use crate::connection::{Connection, ConnectionInfo, EarlyOutputWatch, Limits, WakeTarget, Waker};
use crate::drain::Drain;
use crate::log;
use crate::stats::{Counters, ThreadCounters};
use crate::sys::{Events, Poller};

pub(crate) use between_processes::Walk;
use concurrency::Concurrency;
pub(crate) use concurrency::Sample;
use expiry::Expiries;
pub(crate) use expiry::IdleConnection;
pub(crate) use held::HeldConnections;
use idle_order::IdleOrder;
use keeper::KeeperSleep;
pub(crate) use keeper::run_keeper;
pub(crate) use lots::{Lots, LotsOptions, MOST_LOTS};
pub(crate) use mover_queue::MoverQueue;
pub(crate) use occupant::{Needs, Occupant, Stage};
use ownership::Readiness;
use queue::Queue;
use room::Room;
pub(crate) use room::RoomRequest;
use slab::Slab;
pub(crate) use slot::Token;
use slot::{
    ANSWERING, ConnectionSlot, HAS_OUTPUT, HELD, MID_MESSAGE, MOVABLE_PART, NOT_READY, STAYS,
    UNFINISHED, WANTS_DRAIN_CALL,
};
use timer_wheel::TimerWheel;
pub(crate) use turn::Turn;

/// The most ready connections that a thread takes from the poller at once.
pub(crate) const BATCH: usize = 256;

/// A parking lot: the slots of its open connections, their poller, and the queue to the workers. A
/// server has one, or one for each group of workers ([`lots`]).
pub(crate) struct Lot<S> {
    /// The number of this lot among the server's lots.
    index: usize,
    /// The workers whose home this lot is.
    workers: Range<usize>,
    slots: Slab<ConnectionSlot<S>>,
    poller: Arc<Poller>,
    queue: Arc<Queue>,
    /// The queues of the other lots.
    others: Box<[Arc<Queue>]>,
    /// In milliseconds.
    queue_timeout: Option<u64>,
    concurrency: Concurrency,
    /// When a thread last polled for the queue ([`poll_to_queue`](Self::poll_to_queue)), in the
    /// clock's milliseconds.
    polled_at: AtomicU64,
    /// The number of connections that wait for their first service.
    newcomers: CachePadded<AtomicUsize>,
    /// The number of connections with output that are parked or queued.
    unwritten: CachePadded<AtomicUsize>,
    /// The expiries that the service handles now.
    expiries: Expiries,
    /// Sessions whose drop is left to the keeper.
    left_sessions: Mutex<Vec<S>>,
    wakers: Weak<dyn WakeTarget>,
    wheel: Mutex<TimerWheel>,
    keeper: Arc<KeeperSleep>,
    /// Only the acceptor uses it.
    idle_order: Mutex<IdleOrder>,
    early_outputs: Arc<EarlyOutputWatch>,
    limits: Limits,
    /// The bytes for a client whose connection waited too long for a worker.
    refusal: Vec<u8>,
    /// Set when connections begin to move to a successor. All lots share it.
    mover: Arc<OnceLock<Arc<MoverQueue>>>,
    pub(crate) room: Arc<Room>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

/// What a lot is made of: its settings, and what it shares with the other lots.
struct LotParts {
    index: usize,
    workers: Range<usize>,
    /// The number of CPU cores for this lot's workers.
    cores: usize,
    poller: Arc<Poller>,
    queue: Arc<Queue>,
    others: Box<[Arc<Queue>]>,
    queue_timeout: Option<Duration>,
    limits: Limits,
    refusal: Vec<u8>,
    handles_expiry: bool,
    wakers: Weak<dyn WakeTarget>,
    mover: Arc<OnceLock<Arc<MoverQueue>>>,
    room: Arc<Room>,
    drain: Arc<Drain>,
    counters: Arc<Counters>,
}

impl<S> Lot<S> {
    fn new(parts: LotParts) -> Self {
        let lot = Self {
            index: parts.index,
            concurrency: Concurrency::new(parts.workers.len(), parts.cores),
            expiries: Expiries::new(parts.handles_expiry, parts.workers.len()),
            left_sessions: Mutex::default(),
            wakers: parts.wakers,
            workers: parts.workers,
            slots: Slab::new(),
            poller: parts.poller,
            queue: parts.queue,
            others: parts.others,
            queue_timeout: parts.queue_timeout.map(in_millis),
            polled_at: AtomicU64::new(0),
            newcomers: CachePadded::default(),
            unwritten: CachePadded::default(),
            wheel: Mutex::new(TimerWheel::new(clock::millis())),
            keeper: Arc::new(KeeperSleep::new()),
            idle_order: Mutex::default(),
            early_outputs: Arc::default(),
            limits: parts.limits,
            refusal: parts.refusal,
            mover: parts.mover,
            room: parts.room,
            drain: parts.drain,
            counters: parts.counters,
        };
        let (keeper, poller) = (Arc::clone(&lot.keeper), Arc::clone(&lot.poller));
        lot.early_outputs.on_use(move || {
            if keeper.wake_by(0) && !Poller::SHARED {
                poller.wake();
            }
        });
        lot
    }

    fn keeper_counters(&self) -> &ThreadCounters {
        &self.counters.keepers[self.index]
    }

    // ---- new connections, and the queue ----

    /// How many connections wait for a worker.
    pub(crate) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// See [`Queue::has_room_for_batch`].
    pub(crate) fn has_room_for_batch(&self) -> bool {
        self.queue.has_room_for_batch()
    }

    /// Takes a slot for a new connection. While a worker is idle, the connection is parked, unless
    /// `may_park` is false. The poller wakes the worker when the client has sent something: mostly
    /// that is a moment later, and a worker that came earlier would only park the connection. While
    /// all workers are busy, the connection is put on the queue: its client has probably sent
    /// something before a worker is free. While the queue is full, the connection is parked, so
    /// that the poller keeps the order in which connections become ready. Called by the acceptor,
    /// with room for events.
    pub(crate) fn add_connection(&self, info: ConnectionInfo, may_park: bool, events: &mut Events) {
        let info = Arc::new(info);
        let Some((index, slot)) = self.slots.take(ConnectionSlot::new) else {
            log::error!("{info}: no slot is left");
            return;
        };
        slot.owner.occupy();
        let (poller, early_outputs) = (Arc::clone(&self.poller), Arc::clone(&self.early_outputs));
        let token = Token::new(self.index, index, slot.owner.generation());
        let waker = Waker::new(self.wakers.clone(), token.to_u64());
        let conn = Connection::new(
            Arc::clone(&info),
            waker,
            poller,
            early_outputs,
            &self.limits,
        );
        let stage = if info.listener.speaks_first {
            Stage::Runnable
        } else {
            Stage::New
        };
        let occupant = Box::new(Occupant::new(conn, stage));
        *slot.info.lock() = Some(info);
        self.newcomers.fetch_add(1, SeqCst);
        let has_idle_worker = self.queue.has_sleepers();
        // While no worker waits in the poller, connections there may have become ready earlier.
        if !has_idle_worker && self.queue.has_room() {
            self.poll_to_queue(events, &self.counters.acceptor, true);
        }
        let mut turn = Turn {
            lot: self,
            slot,
            token,
            counters: &self.counters.acceptor,
            occupant: Some(occupant),
        };
        if has_idle_worker && may_park && stage == Stage::New {
            turn.end_newcomer();
            return turn.park_again();
        }
        match self.queue.has_room() {
            true => turn.queue(),
            false => turn.park_again(),
        }
    }

    /// How many connections wait for their first service.
    fn newcomers(&self) -> usize {
        self.newcomers.load(SeqCst)
    }

    fn end_newcomer(&self, occupant: &mut Occupant<S>) {
        if std::mem::take(&mut occupant.is_newcomer) {
            self.newcomers.fetch_sub(1, SeqCst);
        }
    }

    /// Puts QUEUED connections on the queue, and wakes a worker for them.
    fn push(&self, tokens: impl IntoIterator<Item = Token>, counters: &ThreadCounters) {
        let mut has_pushed = false;
        for token in tokens {
            self.limit_queue_time(token);
            let is_pushed = self.queue.push(token);
            has_pushed |= is_pushed;
            if !is_pushed {
                log::error!("closing a connection: the queue is full");
            }
            // `close_all` may have passed over this connection, and every worker may be stuck or
            // have ended.
            if !is_pushed || self.drain.is_forced() {
                drop(self.claim_queued(token, counters));
            }
        }
        if has_pushed {
            self.wake_worker();
        }
    }

    /// Sets a timer for the queue's time-out of a QUEUED connection.
    fn limit_queue_time(&self, token: Token) {
        if let (Some(limit), Some(slot)) = (self.queue_timeout, self.slots.get(token.slot())) {
            self.set_timer(token.slot(), slot, clock::millis().saturating_add(limit));
        }
    }

    // ---- the workers' side ----

    /// Called by a worker that has taken an entry off the queue: wakes another worker if there are
    /// more.
    pub(crate) fn wake_next(&self) {
        if !self.queue.is_empty() {
            self.wake_worker();
        }
    }

    /// Whether a worker has to call [`rest`](Self::rest) between two turns.
    #[inline]
    pub(crate) fn has_surplus(&self) -> bool {
        self.concurrency.has_surplus()
    }

    /// If too many workers are active, the worker rests (see [`concurrency`]). True if it rested.
    pub(crate) fn rest(&self, worker: usize) -> bool {
        let (place, counters) = (worker - self.workers.start, self.worker_counters());
        let sleepers = self.queue.sleepers();
        self.concurrency.rest(place, counters, sleepers)
    }

    /// The counters of the workers whose home this lot is.
    fn worker_counters(&self) -> &[ThreadCounters] {
        &self.counters.workers[self.workers.clone()]
    }

    /// A worker cannot serve. It takes no connection until [`end_absence`](Self::end_absence).
    pub(crate) fn begin_absence(&self, worker: usize) {
        self.counters.workers[worker].set_failing_since(Some(clock::millis()));
        self.concurrency.begin_absence(self.queue.sleepers());
    }

    /// Waits. False if the server ends.
    pub(crate) fn wait_absent(&self, worker: usize, duration: Duration) -> bool {
        self.concurrency
            .wait_absent(worker - self.workers.start, duration)
    }

    pub(crate) fn end_absence(&self, worker: usize) {
        self.concurrency.end_absence();
        self.counters.workers[worker].set_failing_since(None);
    }

    /// Begins to time a turn, if this turn is a sample.
    #[inline]
    pub(crate) fn begin_sample(&self, turns: &mut u32) -> Option<Sample> {
        self.concurrency.begin_sample(turns)
    }

    pub(crate) fn end_sample(&self, sample: Sample, worker: usize) {
        let (place, counters) = (worker - self.workers.start, self.worker_counters());
        self.concurrency.end_sample(sample, place, counters);
    }

    /// Begins a turn with a QUEUED connection. `None` if the connection is not QUEUED any more.
    pub(crate) fn claim_queued<'a>(
        &'a self,
        token: Token,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let slot = self.slots.get(token.slot())?;
        let readiness = slot.owner.claim_queued(token.generation)?;
        Some(self.begin_turn(slot, token, readiness, counters))
    }

    /// Begins a turn with a PARKED connection. `None` if the connection is not PARKED any more.
    fn claim_parked<'a>(
        &'a self,
        token: Token,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let slot = self.slots.get(token.slot())?;
        let readiness = slot.owner.claim_parked(token.generation)?;
        Some(self.begin_turn(slot, token, readiness, counters))
    }

    fn begin_turn<'a>(
        &'a self,
        slot: &'a ConnectionSlot<S>,
        token: Token,
        readiness: Readiness,
        counters: &'a ThreadCounters,
    ) -> Turn<'a, S> {
        let mut occupant = slot.occupant.take();
        if let Some(Occupant { conn, .. }) = occupant.as_deref_mut() {
            if conn.has_output() {
                self.unwritten.fetch_sub(1, SeqCst);
                // The poller watched for writing, so the state of the input is unknown.
                conn.note_readable(false);
            }
            if readiness.readable {
                conn.note_readable(readiness.hangup);
            }
            if readiness.woken {
                conn.due.woken = true;
            }
        }
        Turn {
            lot: self,
            slot,
            token,
            counters,
            occupant,
        }
    }

    // ---- other threads ----

    /// Leaves the drop of a session to the keeper: the drop is the application's code.
    #[cold]
    fn leave_to_keeper(&self, session: Option<S>) {
        if let Some(session) = session {
            self.left_sessions.lock().push(session);
            self.wake_keeper();
        }
    }

    fn has_left_sessions(&self) -> bool {
        !self.left_sessions.lock().is_empty()
    }

    /// Drops the sessions that were left to the keeper.
    fn drop_left_sessions(&self) {
        let sessions = std::mem::take(&mut *self.left_sessions.lock());
        for session in sessions {
            log::drop_contained("a session", session);
        }
    }

    /// The service has handled the expiry of a connection.
    pub(crate) fn end_expiry(&self, occupant: &mut Occupant<S>) {
        if std::mem::take(&mut occupant.is_expiring) {
            self.expiries.end();
        }
    }

    /// Counts a connection with output that is about to be parked or queued. The keeper writes the
    /// output if no worker does.
    fn count_unwritten(&self, now: u64) {
        if self.unwritten.fetch_add(1, SeqCst) == 0 {
            self.wake_keeper_by(now + 1);
        }
    }

    /// The tokens of all slots in use.
    fn tokens(&self) -> impl Iterator<Item = (Token, &ConnectionSlot<S>)> {
        self.slots.iter().map(|(index, slot)| {
            let generation = slot.owner.generation();
            (Token::new(self.index, index, generation), slot)
        })
    }

    // ---- for the watchdog and the keeper ----

    /// Makes the keeper run its loop once.
    pub(crate) fn wake_keeper(&self) {
        self.wake_keeper_by(0);
    }

    /// How often the keeper has run its loop.
    pub(crate) fn keeper_loops(&self) -> u64 {
        self.keeper.loops.load(SeqCst)
    }

    /// See [`Lots::with_info`].
    fn with_info<T>(&self, token: Token, read: impl FnOnce(&ConnectionInfo) -> T) -> Option<T> {
        let slot = self.slots.get(token.slot())?;
        let info = slot.info.lock();
        let info = info.as_deref()?;
        (slot.owner.generation() == token.generation).then(|| read(info))
    }
}
