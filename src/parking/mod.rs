//! The parking lot: connections that wait for their client, or for a worker, on no thread.
//!
//! Every connection has a slot from its accept to its end. Idle workers wait in the lot's poller
//! themselves, where the platform lets many threads wait in one poller. The [`keeper`] does what
//! must happen while every worker is busy. The keeper never calls the service.
//!
//! # The parts of a connection
//!
//! | type | what it is |
//! |---|---|
//! | [`Connection`] | the socket's buffers and deadlines: what a service reads and writes |
//! | [`ConnectionInfo`] | the socket and the addresses, which all threads may read |
//! | [`Occupant`] | a connection, its session, and its [`Stage`]: what moves from owner to owner |
//! | [`ConnectionSlot`] | the place of an occupant: its [`Ownership`], its times, its info |
//! | [`Token`] | the name of a connection: the slot's index, and the connection's generation |
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
//! | PARKED | the lot | a poller event → QUEUED; `claim_parked` (expiry, shedding, drain) → RUNNING |
//! | QUEUED | the queue entry | the thread that takes the entry: `claim_queued` → RUNNING |
//!
//! An event for a connection that is not PARKED is kept as a flag of the word, and then `park`
//! fails: the owner reads again. See [`ownership`] for the proof obligations;
//! `tests/ownership_model.rs` checks them.
//!
//! | stage | parked until | time-out (closes) | at a drain | next stage |
//! |---|---|---|---|---|
//! | New | the first byte | `first_byte_timeout` | closed | a call: Idle, Partial, Runnable, Closing |
//! | Idle | the first byte of a message | `idle_timeout` | closed | a call: as above |
//! | Partial | more bytes | `read_timeout`, `min_rate` | goes on | a call: as above |
//! | Runnable | (never for input) | | goes on | a call: as above |
//! | Closing | (never for input) | | goes on | the output is written: Lingering, or closed |
//! | Lingering | the client's end | 2 s | goes on | closed |
//!
//! In every stage output comes first: a connection with output is parked until its client reads,
//! under `write_timeout` and `min_rate`, and only then goes on as the table says. A connection that
//! is parked with output counts as in progress, whatever its stage.
//!
//! # Who wakes whom
//!
//! A thread that puts a connection on the queue wakes one worker in the poller, if a worker waits
//! there and no wake-up is pending ([`Lot::push`]). A worker that takes an entry and sees more
//! entries wakes the next worker ([`Lot::wake_next`]), and so does a worker that is about to rest. A worker increments `sleepers` before it
//! reads the queue for the last time, and a thread that has put an entry on the queue reads
//! `sleepers` afterwards. So no entry waits while every worker sleeps.
//!
//! # The order of service
//!
//! Connections are served in the order in which they became ready. A worker whose queue is not
//! empty polls as well ([`Lot::poll_to_queue`]), and puts the reported connections at the end of
//! the queue. The acceptor does the same before it puts a new connection on the queue, while no
//! worker waits in the poller. While the queue is full, ready connections stay in the poller, which
//! keeps their order.

mod concurrency;
mod expiry;
mod idle_order;
mod keeper;
mod occupant;
mod ownership;
mod slab;
mod timer_wheel;
mod turn;

/// The atomics of [`ownership`]. The model test replaces them by those of loom.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::atomic::AtomicCell;
use parking_lot::{Mutex, RwLock};

use crate::clock::{self, in_millis};
use crate::connection::{Connection, ConnectionInfo, Limits, OutboxWatch};
use crate::drain::Drain;
use crate::log;
use crate::stats::{Counters, ThreadCounters};
use crate::sys::{Events, Poller};

use concurrency::Concurrency;
pub(crate) use concurrency::Sample;
pub(crate) use expiry::IdleConnection;
use idle_order::IdleOrder;
use keeper::KeeperSleep;
pub(crate) use keeper::run_keeper;
pub(crate) use occupant::{Needs, Occupant, Stage};
use ownership::{Ownership, Readiness};
use slab::Slab;
use timer_wheel::TimerWheel;
pub(crate) use turn::Turn;

/// The most ready connections that a thread takes from the poller at once.
pub(crate) const BATCH: usize = 256;

/// A flag in `ConnectionSlot::since`: the connection is parked in the middle of a message or a
/// response.
const MID_MESSAGE: u64 = 1 << 63;

/// The value of `ConnectionSlot::ready_at` for a connection that is not ready.
const NOT_READY: u64 = u64::MAX;

// The values of `Lot::room_requested`.
const NEVER: u8 = 0;
/// When a connection has ended.
const AT_END: u8 = 1;
/// When there may be room for another reason as well.
const AT_ROOM: u8 = 2;

/// A slot, and the generation of the slot's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_u64(word: u64) -> Self {
        Self {
            index: word as u32,
            generation: (word >> 32) as u32,
        }
    }
}

// A connection must go from one owner to the next in one instruction, not under a lock that spins.
const _: () = assert!(AtomicCell::<Option<Box<Occupant<()>>>>::is_lock_free());

#[repr(align(64))]
struct ConnectionSlot<S> {
    owner: Ownership,
    /// The connection, between two owners.
    occupant: AtomicCell<Option<Box<Occupant<S>>>>,
    /// The part of the connection that threads other than the owner may read.
    info: Mutex<Option<Arc<ConnectionInfo>>>,
    /// When a parked connection expires, in the clock's milliseconds. The owner sets it before it
    /// parks.
    expires_at: AtomicU64,
    /// When the connection was parked, in the clock's milliseconds, with the flag `MID_MESSAGE`.
    since: AtomicU64,
    /// When the connection became ready for a worker, in the clock's nanoseconds, or `NOT_READY`.
    /// Set when the connection becomes QUEUED, and kept until a worker serves it.
    ready_at: AtomicU64,
    /// The wheel has a timer for this slot at this time (in the clock's milliseconds) or earlier.
    /// `u64::MAX` if the wheel has none.
    timer: AtomicU64,
}

impl<S> ConnectionSlot<S> {
    fn new() -> Self {
        Self {
            owner: Ownership::new(),
            occupant: AtomicCell::new(None),
            info: Mutex::new(None),
            expires_at: AtomicU64::new(u64::MAX),
            since: AtomicU64::new(0),
            ready_at: AtomicU64::new(NOT_READY),
            timer: AtomicU64::new(u64::MAX),
        }
    }
}

impl<S> ConnectionSlot<S> {
    /// Sets the time at which the connection became ready, unless the time is set already: a
    /// connection must not lose its place in the order of service.
    fn set_ready(&self, now: u64) {
        if self.ready_at.load(SeqCst) == NOT_READY {
            self.ready_at.store(now, SeqCst);
        }
    }
}

/// The parking lot: the slots of all open connections, their poller, and the queue to the workers.
pub(crate) struct Lot<S> {
    slots: Slab<ConnectionSlot<S>>,
    poller: Arc<Poller>,
    queue: RwLock<Option<Sender<Token>>>,
    /// A second receiver of the queue, to see its length and to empty it.
    queued: Receiver<Token>,
    queue_limit: usize,
    /// The length of the queue from which on no worker polls past it.
    past_queue_limit: usize,
    /// In milliseconds.
    queue_timeout: Option<u64>,
    concurrency: Concurrency,
    /// The number of workers that wait in the poller.
    sleepers: AtomicUsize,
    /// The wake-up of a worker is under way.
    wake_up_pending: AtomicBool,
    /// When a thread last polled for the queue ([`poll_to_queue`](Self::poll_to_queue)), in the
    /// clock's milliseconds.
    polled_at: AtomicU64,
    /// The number of connections that wait for their first service.
    newcomers: AtomicUsize,
    /// The number of connections with output that are parked or queued.
    unwritten: AtomicUsize,
    wheel: Mutex<TimerWheel>,
    keeper: Arc<KeeperSleep>,
    /// Only the acceptor uses it.
    idle_order: Mutex<IdleOrder>,
    outboxes: Arc<OutboxWatch>,
    /// When `on_room` is to be called, see [`request_room`](Self::request_room): [`NEVER`],
    /// [`AT_END`] or [`AT_ROOM`].
    room_requested: AtomicU8,
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
    limits: Limits,
    /// The bytes for a client whose connection waited too long for a worker.
    refusal: Vec<u8>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

/// The settings of a lot.
pub(crate) struct LotOptions {
    pub(crate) workers: usize,
    /// The number of CPU cores.
    pub(crate) cores: usize,
    pub(crate) queue_limit: usize,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) limits: Limits,
    pub(crate) refusal: Vec<u8>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

impl<S> Lot<S> {
    /// Makes a lot, and the receiver of its queue for the workers.
    pub(crate) fn new(options: LotOptions) -> std::io::Result<(Self, Receiver<Token>)> {
        let now = clock::millis();
        // A thread that sends a batch has seen the queue below `past_queue_limit` / 2. A worker that
        // polls past the queue has seen it below `past_queue_limit`, and adds one connection. With
        // this capacity no send finds the channel full.
        let past_queue_limit = 2 * (options.queue_limit + BATCH);
        let capacity = past_queue_limit + (options.workers + 3) * (BATCH + 1);
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        let lot = Self {
            slots: Slab::new(),
            poller: Arc::new(Poller::new()?),
            queue: RwLock::new(Some(sender)),
            queued: receiver.clone(),
            queue_limit: options.queue_limit,
            past_queue_limit,
            queue_timeout: options.queue_timeout.map(in_millis),
            concurrency: Concurrency::new(options.workers, options.cores),
            sleepers: AtomicUsize::new(0),
            wake_up_pending: AtomicBool::new(false),
            polled_at: AtomicU64::new(0),
            newcomers: AtomicUsize::new(0),
            unwritten: AtomicUsize::new(0),
            wheel: Mutex::new(TimerWheel::new(now)),
            keeper: Arc::new(KeeperSleep::new()),
            idle_order: Mutex::default(),
            outboxes: Arc::default(),
            room_requested: AtomicU8::new(NEVER),
            on_room: OnceLock::new(),
            limits: options.limits,
            refusal: options.refusal,
            drain: options.drain,
            counters: options.counters,
        };
        let (keeper, poller) = (Arc::clone(&lot.keeper), Arc::clone(&lot.poller));
        lot.outboxes.on_use(move || {
            if keeper.wake_by(0) && !Poller::SHARED {
                poller.wake();
            }
        });
        Ok((lot, receiver))
    }

    // ---- new connections, and the queue ----

    /// How many connections wait for a worker.
    pub(crate) fn queue_len(&self) -> usize {
        self.queued.len()
    }

    pub(crate) fn queue_has_room(&self) -> bool {
        self.queue_len() < self.queue_limit
    }

    /// Whether the queue has room for connections that the poller reports. A batch has room beyond
    /// the queue's limit: otherwise connections that always have more to do could fill the queue
    /// for ever.
    pub(crate) fn has_room_for_batch(&self) -> bool {
        self.queue_len() < self.queue_limit + BATCH
    }

    /// Takes a slot for a new connection, and puts the connection on the queue. While the queue is
    /// full, the connection is parked, so that the poller keeps the order in which connections
    /// become ready. Called by the acceptor, with room for events.
    pub(crate) fn add_connection(&self, info: ConnectionInfo, events: &mut Events) {
        let info = Arc::new(info);
        let Some((index, slot)) = self.slots.take(ConnectionSlot::new) else {
            log::error!("{info}: no slot is left");
            return;
        };
        slot.owner.occupy();
        let (poller, outboxes) = (Arc::clone(&self.poller), Arc::clone(&self.outboxes));
        let conn = Connection::new(Arc::clone(&info), poller, outboxes, &self.limits);
        let stage = if info.listener.speaks_first {
            Stage::Runnable
        } else {
            Stage::New
        };
        let occupant = Box::new(Occupant::new(conn, stage));
        *slot.info.lock() = Some(info);
        let generation = slot.owner.generation();
        self.newcomers.fetch_add(1, SeqCst);
        // While no worker waits in the poller, connections there may have become ready earlier.
        if self.sleepers.load(SeqCst) == 0 && self.queue_has_room() {
            self.poll_to_queue(events, &self.counters.acceptor, true);
        }
        let turn = Turn {
            lot: self,
            slot,
            token: Token { index, generation },
            counters: &self.counters.acceptor,
            occupant: Some(occupant),
        };
        match self.queue_has_room() {
            true => turn.queue(),
            false => turn.park_again(),
        }
    }

    /// Whether the queue's limit allows one more connection to wait for its first service. The
    /// connections that were served before do not count: clients that stay connected must not keep
    /// all others out.
    pub(crate) fn has_room_for_newcomer(&self) -> bool {
        self.queue_has_room() || self.newcomers.load(SeqCst) < self.queue_limit
    }

    fn end_newcomer(&self, occupant: &mut Occupant<S>) {
        if std::mem::take(&mut occupant.is_newcomer) {
            self.newcomers.fetch_sub(1, SeqCst);
        }
    }

    /// Puts QUEUED connections on the queue, and wakes a worker for them.
    fn push(&self, tokens: impl IntoIterator<Item = Token>, counters: &ThreadCounters) {
        let queue = self.queue.read();
        let mut pushed = false;
        let mut unsent = Vec::new();
        for token in tokens {
            self.limit_queue_time(token);
            match queue.as_ref().map(|queue| queue.try_send(token)) {
                Some(Ok(())) => {
                    pushed = true;
                    // `close_all` may have passed over this connection, and every worker may be
                    // stuck.
                    if self.drain.is_forced() {
                        drop(self.claim_queued(token, counters));
                    }
                }
                Some(Err(_)) | None => unsent.push(token),
            }
        }
        drop(queue);
        if pushed {
            self.wake_one();
        }
        // The queue's sender is dropped: the stop is over. The channel is never full, see its
        // capacity.
        for token in unsent {
            log::debug!("closing a connection: no worker is left");
            drop(self.claim_queued(token, counters));
        }
    }

    /// Sets a timer for the queue's time-out of a QUEUED connection.
    fn limit_queue_time(&self, token: Token) {
        if let (Some(limit), Some(slot)) = (self.queue_timeout, self.slots.get(token.index)) {
            self.set_timer(token.index, slot, clock::millis().saturating_add(limit));
        }
    }

    /// Wakes one worker that waits in the poller, unless a wake-up is pending: the worker that is
    /// being woken wakes the next one.
    fn wake_one(&self) {
        if Poller::SHARED
            && self.sleepers.load(SeqCst) > 0
            && !self.wake_up_pending.swap(true, SeqCst)
        {
            self.poller.wake();
        }
    }

    // ---- the workers' side ----

    /// Called by a worker that has taken an entry off the queue: wakes another worker if there are
    /// more.
    pub(crate) fn wake_next(&self) {
        if !self.queued.is_empty() {
            self.wake_one();
        }
    }

    /// Waits as an idle worker, in the poller or on the queue. Returns a connection to serve.
    /// `None`: the worker has to check the queue again.
    pub(crate) fn wait_for_connection(
        &self,
        events: &mut Events,
        queue: &Receiver<Token>,
        counters: &ThreadCounters,
    ) -> Option<Token> {
        if !Poller::SHARED {
            self.sleepers.fetch_add(1, SeqCst);
            let received = queue.recv();
            self.leave_poller();
            return received.ok();
        }
        let sleepers = self.sleepers.fetch_add(1, SeqCst) + 1;
        // The count is incremented before this check of the queue. A thread that sends reads the
        // count after it has sent.
        let slept = self.queued.is_empty() && self.has_queue();
        if slept {
            let limit = if sleepers == 1 { self.batch() } else { 1 };
            self.poll(events, limit, None);
        }
        self.leave_poller();
        self.wake_up_pending.store(false, SeqCst);
        if !slept {
            return None;
        }
        let mut reported = self.queue_reported(events);
        let first = reported.next()?;
        self.push_reported(reported, counters);
        Some(first)
    }

    /// Puts reported connections on the queue, if they need a worker. Their output is written at
    /// once, since every worker may be in a slow handler.
    fn push_reported(&self, tokens: impl Iterator<Item = Token>, counters: &ThreadCounters) {
        if self.unwritten.load(SeqCst) == 0 {
            return self.push(tokens, counters);
        }
        for token in tokens {
            if let Some(turn) = self.claim_queued(token, counters) {
                turn.advance();
            }
        }
    }

    fn leave_poller(&self) {
        if self.sleepers.fetch_sub(1, SeqCst) == 1 {
            self.concurrency.ensure_scanning();
            if Poller::SHARED && !self.keeper.is_polling() {
                self.keeper.start_polling();
            }
        }
    }

    /// Called by a worker between two turns: if too many workers are active, the worker rests (see
    /// [`concurrency`]). True if it rested.
    #[inline]
    pub(crate) fn rest_if_surplus(&self, worker: usize) -> bool {
        if !self.concurrency.has_surplus() {
            return false;
        }
        // A wake-up for an entry on the queue may have reached this worker.
        self.wake_next();
        let counters = &self.counters.workers;
        self.concurrency.rest(worker, counters, &self.sleepers)
    }

    /// A worker cannot serve. It takes no connection until [`end_absence`](Self::end_absence).
    pub(crate) fn begin_absence(&self, worker: usize) {
        self.counters.workers[worker].set_failing_since(Some(clock::millis()));
        // A wake-up for an entry on the queue may have reached this worker.
        self.wake_next();
        self.concurrency.begin_absence(&self.sleepers);
    }

    /// Waits. False if the server ends.
    pub(crate) fn wait_absent(&self, worker: usize, duration: Duration) -> bool {
        self.concurrency.wait_absent(worker, duration)
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
        self.concurrency
            .end_sample(sample, worker, &self.counters.workers);
    }

    /// Puts the connections that the poller reports at the end of the queue, behind the connections
    /// that became ready earlier. Polls at most once in a tick of the coarse clock, unless `is_due`.
    /// Called by a worker while the queue is not empty, and by the acceptor.
    pub(crate) fn poll_to_queue(
        &self,
        events: &mut Events,
        counters: &ThreadCounters,
        is_due: bool,
    ) {
        let now = clock::millis();
        let is_due = is_due || self.polled_at.load(Relaxed) != now;
        if !Poller::SHARED || !is_due || !self.has_room_for_batch() {
            return;
        }
        self.polled_at.store(now, Relaxed);
        self.poll(events, self.batch(), Some(Duration::ZERO));
        self.push_reported(self.queue_reported(events), counters);
        self.pass_wake_on(events);
    }

    /// Returns one connection that the poller reports, if the queue has no room: the queue may be
    /// full of connections that always have more to do.
    pub(crate) fn poll_past_queue(&self, events: &mut Events) -> Option<Token> {
        let is_past = (self.queue_limit + BATCH..self.past_queue_limit).contains(&self.queue_len());
        if !Poller::SHARED || !is_past {
            return None;
        }
        self.poll(events, 1, Some(Duration::ZERO));
        let first = self.queue_reported(events).next();
        self.pass_wake_on(events);
        first
    }

    /// Repeats a wake-up for a sleeping worker that has reached a thread which polls without
    /// sleeping.
    fn pass_wake_on(&self, events: &Events) {
        if Poller::SHARED && events.was_woken() {
            self.wake_up_pending.store(false, SeqCst);
            if self.sleepers.load(SeqCst) > 0 {
                self.poller.wake();
            }
        }
    }

    fn batch(&self) -> usize {
        let room = (self.queue_limit + BATCH).saturating_sub(self.queue_len());
        room.clamp(1, BATCH)
    }

    fn poll(&self, events: &mut Events, limit: usize, timeout: Option<Duration>) {
        if let Err(error) = self.poller.wait(events, limit, timeout) {
            log::error!("cannot wait in the poller: {error}");
        }
    }

    /// Changes the reported connections from PARKED to QUEUED, and returns them. The caller has to
    /// bring them to a worker.
    fn queue_reported<'a>(&'a self, events: &'a Events) -> impl Iterator<Item = Token> + 'a {
        let now = clock::nanos();
        events.iter().filter_map(move |event| {
            let token = Token::from_u64(event.token);
            let slot = self.slots.get(token.index)?;
            let is_queued = slot.owner.handle_event(token.generation, event.hangup);
            is_queued.then(|| {
                slot.set_ready(now);
                token
            })
        })
    }

    /// Begins a turn with a QUEUED connection. `None` if the connection is not QUEUED any more.
    pub(crate) fn claim_queued<'a>(
        &'a self,
        token: Token,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let slot = self.slots.get(token.index)?;
        let readiness = slot.owner.claim_queued(token.generation)?;
        Some(self.begin_turn(slot, token, readiness, counters))
    }

    /// Begins a turn with a PARKED connection. `None` if the connection is not PARKED any more.
    fn claim_parked<'a>(
        &'a self,
        token: Token,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let slot = self.slots.get(token.index)?;
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
        }
        Turn {
            lot: self,
            slot,
            token,
            counters,
            occupant,
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
            (Token { index, generation }, slot)
        })
    }

    // ---- the drain ----

    /// Closes the connections that wait for a message, once the drain has begun. A connection whose
    /// message has arrived is queued. A connection in the middle of a message stays. False if the
    /// queue had no room for all.
    pub(crate) fn close_idle(&self) -> bool {
        let counters = &self.counters.main_thread;
        for (token, _) in self.tokens() {
            if !self.queue_has_room() {
                return false;
            }
            let Some(mut turn) = self.claim_parked(token, counters) else {
                continue;
            };
            if !turn.is_between_messages() {
                turn.park_again();
            } else if turn.read_new_input() {
                turn.queue();
            }
        }
        true
    }

    /// Closes the connections that linger.
    pub(crate) fn close_lingering(&self) {
        for (token, _) in self.tokens() {
            let Some(mut turn) = self.claim_parked(token, &self.counters.main_thread) else {
                continue;
            };
            let stage = turn.occupant().map(|occupant| occupant.stage);
            match stage {
                Some(Stage::Lingering { .. }) => turn.close(),
                _ => turn.park_again(),
            }
        }
    }

    fn has_queue(&self) -> bool {
        self.queue.read().is_some()
    }

    /// Ends the workers, by dropping the queue's sender, and ends the keeper.
    pub(crate) fn end_threads(&self) {
        drop(self.queue.write().take());
        self.concurrency.close();
        self.keeper.end();
        self.poller.wake();
    }

    /// Called by a worker that ends: wakes the next worker in the poller, so that the next worker
    /// ends as well.
    pub(crate) fn worker_ended(&self) {
        self.poller.wake();
    }

    /// Closes every connection that is left. If a connection is in a turn, its socket is shut down.
    pub(crate) fn close_all(&self) {
        let counters = &self.counters.main_thread;
        for (token, slot) in self.tokens() {
            let claimed = self.claim_parked(token, counters).is_some();
            if claimed || self.claim_queued(token, counters).is_some() {
                continue;
            }
            if slot.owner.is_running(token.generation) {
                let info = slot.info.lock().clone();
                if let Some(info) = info {
                    // An error means that the connection is closed by now.
                    let _ = info.socket.shutdown(std::net::Shutdown::Both);
                    drop(info);
                    self.notify_end();
                }
            }
        }
    }

    // ---- room for the acceptor ----

    /// Sets what is called when there may be room, after [`request_room`](Self::request_room).
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_room.set(Box::new(call));
    }

    /// Asks for one call of `on_room` when a connection has ended, has become idle, or left the
    /// queue. The caller checks for room once more afterwards, since the connection may have ended
    /// just before.
    pub(crate) fn request_room(&self) {
        self.room_requested.store(AT_ROOM, SeqCst);
    }

    /// Asks for one call of `on_room` when a connection has ended, and its descriptor is free. The
    /// caller checks afterwards, as after [`request_room`](Self::request_room).
    pub(crate) fn request_end(&self) {
        self.room_requested.store(AT_END, SeqCst);
    }

    /// Whether a requested call is still to come.
    pub(crate) fn is_room_requested(&self) -> bool {
        self.room_requested.load(SeqCst) != NEVER
    }

    /// A connection has become idle, or has left the queue.
    #[inline]
    pub(crate) fn notify_room(&self) {
        if self.room_requested.load(SeqCst) == AT_ROOM {
            self.call_on_room();
        }
    }

    /// A connection has ended.
    #[inline]
    pub(crate) fn notify_end(&self) {
        if self.room_requested.load(SeqCst) != NEVER {
            self.call_on_room();
        }
    }

    #[cold]
    fn call_on_room(&self) {
        if self.room_requested.swap(NEVER, SeqCst) != NEVER {
            if let Some(call) = self.on_room.get() {
                call();
            }
        }
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

    /// Sends the output that workers have lent to an outbox, if the same call was in progress at
    /// the last run. `seen` has the calls of the last run.
    fn send_outboxes(&self, seen: &mut Vec<Option<u64>>) {
        let workers = &self.counters.workers;
        seen.resize(workers.len(), None);
        for (worker, seen) in workers.iter().zip(seen) {
            let call = worker.call_number();
            let is_long = call.is_some() && std::mem::replace(seen, call) == call;
            let token = worker.call().filter(|_| is_long).map(|(token, _)| token);
            let slot = token.and_then(|token| self.slots.get(Token::from_u64(token).index));
            let info = slot.and_then(|slot| slot.info.lock().clone());
            if let Some(info) = info {
                info.outbox.send(&info.socket);
                // The connection may have ended meanwhile, and is counted as open until here.
                drop(info);
                self.notify_end();
            }
        }
    }

    /// Calls `read` with the info of the connection with this token, if the connection is still
    /// open.
    pub(crate) fn with_info<T>(
        &self,
        token: u64,
        read: impl FnOnce(&ConnectionInfo) -> T,
    ) -> Option<T> {
        let token = Token::from_u64(token);
        let slot = self.slots.get(token.index)?;
        let info = slot.info.lock();
        let info = info.as_deref()?;
        (slot.owner.generation() == token.generation).then(|| read(info))
    }
}
