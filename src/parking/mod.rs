//! The parking lot: connections that wait for their client, or for a worker, on no thread.
//!
//! Every connection has a slot from its accept to its end. Idle workers wait in the lot's poller
//! themselves, where the platform lets many threads do so. The [`keeper`] does what must happen
//! while every worker is busy. It never calls the service.
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
//! | FREE | nobody: the slot has no connection | the acceptor: `occupy` → RUNNING |
//! | RUNNING | the thread that has the [`Turn`] | that thread: `park` → PARKED, `requeue` → QUEUED, a drop → FREE |
//! | PARKED | the lot | a poller event → QUEUED; `claim_parked` (expiry, shedding, drain) → RUNNING |
//! | QUEUED | the queue entry | the thread that takes the entry: `start` → RUNNING |
//!
//! An event for a connection that is not PARKED is kept beside the word, and then `park` fails: the
//! owner reads again. See [`ownership`] for the proof obligations; `tests/ownership_model.rs`
//! checks them.
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
//! under `write_timeout` and `min_rate`, and only then goes on as the table says. Parked with
//! output it counts as in progress, whatever its stage.
//!
//! # Who wakes whom
//!
//! A thread that puts a connection on the queue wakes one worker in the poller, if one waits there
//! and no wake-up is under way ([`Lot::push`]). A worker that takes an entry and sees more of them
//! wakes the next ([`Lot::wake_next`]). `sleepers` is counted up before a worker looks at the queue
//! for the last time, and read after an entry is on the queue, so that no entry waits for a worker
//! that sleeps.

mod concurrency;
mod expiry;
mod keeper;
mod occupant;
mod ownership;
mod slab;
mod timer_wheel;
mod turn;

/// The atomics of [`ownership`]. Its model test puts loom's in this place.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::atomic::AtomicCell;
use parking_lot::{Mutex, RwLock};

use crate::clock::{self, in_millis};
use crate::connection::{Connection, ConnectionInfo, Limits, OutboxWatch};
use crate::drain::Drain;
use crate::stats::{Counters, ThreadCounters};
use crate::sys::{Events, Poller};

use concurrency::Concurrency;
pub(crate) use concurrency::Sample;
pub(crate) use expiry::IdleConnection;
use keeper::KeeperSleep;
pub(crate) use keeper::run_keeper;
pub(crate) use occupant::{Needs, Occupant, Stage};
use ownership::{Ownership, Readiness};
use slab::Slab;
use timer_wheel::TimerWheel;
pub(crate) use turn::Turn;

/// The most ready connections that a worker takes from the poller at once, when no other worker is
/// idle.
pub(crate) const BATCH: usize = 256;

/// Marks a time in `ConnectionSlot::since` as that of a connection that is parked in the middle of a message
/// or answer.
const MID_MESSAGE: u64 = 1 << 63;

/// No time in `ConnectionSlot::ready_at`.
const NOT_READY: u64 = u64::MAX;

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

// A connection must change hands in one instruction, not under a lock that spins.
const _: () = assert!(AtomicCell::<Option<Box<Occupant<()>>>>::is_lock_free());

#[repr(align(64))]
struct ConnectionSlot<S> {
    owner: Ownership,
    /// The connection, left here by one owner for the next.
    occupant: AtomicCell<Option<Box<Occupant<S>>>>,
    /// What threads other than the owner may know of the connection.
    info: Mutex<Option<Arc<ConnectionInfo>>>,
    /// When a parked connection expires, in the clock's milliseconds. The owner sets it before it
    /// parks.
    expires_at: AtomicU64,
    /// Since when the connection is parked, in the clock's milliseconds. See also `MID_MESSAGE`.
    since: AtomicU64,
    /// Since when the connection is ready and waits for a worker, in the clock's nanoseconds;
    /// `NOT_READY` while it does not. Set when it becomes QUEUED, and kept until it is served.
    ready_at: AtomicU64,
    /// The wheel has a timer for this slot at this time or earlier; `u64::MAX` if it has none.
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
    /// Notes that the connection is ready, unless that is noted already: its place in the order of
    /// connections must not get worse.
    fn set_ready(&self, now: u64) {
        if self.ready_at.load(SeqCst) == NOT_READY {
            self.ready_at.store(now, SeqCst);
        }
    }
}

/// The lot.
pub(crate) struct Lot<S> {
    slots: Slab<ConnectionSlot<S>>,
    poller: Arc<Poller>,
    queue: RwLock<Option<Sender<Token>>>,
    /// A second receiver of the queue, to see its length and to empty it.
    queued: Receiver<Token>,
    queue_limit: usize,
    queue_timeout: Option<u64>,
    concurrency: Concurrency,
    /// Workers that wait in the poller.
    sleepers: AtomicUsize,
    /// A wake-up of one of them is under way.
    wake_up_pending: AtomicBool,
    /// When a worker put ready connections on the queue, in the clock's milliseconds.
    polled_at: AtomicU64,
    /// Connections with output that are parked or queued.
    unwritten: AtomicUsize,
    wheel: Mutex<TimerWheel>,
    keeper: Arc<KeeperSleep>,
    outboxes: Arc<OutboxWatch>,
    /// A thread has asked to be called when there may be room, see
    /// [`request_room`](Self::request_room).
    room_requested: AtomicBool,
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
    limits: Limits,
    /// What a client is sent that no worker has time for.
    refusal: Vec<u8>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

/// The settings of a lot.
pub(crate) struct LotOptions {
    pub(crate) workers: usize,
    /// How many workers can run at the same time.
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
        // A thread that sends has seen the queue below its limit before, and each may have had a
        // batch then. With this capacity no `send` ever finds the channel full.
        let capacity = options.queue_limit + (options.workers + 2) * (BATCH + 1);
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        let lot = Self {
            slots: Slab::new(),
            poller: Arc::new(Poller::new()?),
            queue: RwLock::new(Some(sender)),
            queued: receiver.clone(),
            queue_limit: options.queue_limit,
            queue_timeout: options.queue_timeout.map(in_millis),
            concurrency: Concurrency::new(options.workers, options.cores),
            sleepers: AtomicUsize::new(0),
            wake_up_pending: AtomicBool::new(false),
            polled_at: AtomicU64::new(0),
            unwritten: AtomicUsize::new(0),
            wheel: Mutex::new(TimerWheel::new(now)),
            keeper: Arc::default(),
            outboxes: Arc::default(),
            room_requested: AtomicBool::new(false),
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

    // ---- entering, and the queue ----

    /// How many connections wait for a worker.
    pub(crate) fn queue_len(&self) -> usize {
        self.queued.len()
    }

    pub(crate) fn queue_has_room(&self) -> bool {
        self.queue_len() < self.queue_limit
    }

    /// Whether there is room for what the poller reports. A batch has room beyond the queue's
    /// limit: otherwise connections that always have more to do could fill the queue for ever.
    fn has_room_for_batch(&self) -> bool {
        self.queue_len() < self.queue_limit + BATCH
    }

    /// Gives a new connection its slot, and puts it on the queue. While the queue is full, the
    /// connection is parked like any other, so that the poller keeps the order in which connections
    /// become ready. Called by the acceptor.
    pub(crate) fn add_connection(&self, info: ConnectionInfo) {
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
        let turn = Turn {
            lot: self,
            slot,
            token: Token { index, generation },
            counters: &self.counters.acceptor,
            occupant: Some(occupant),
        };
        match stage == Stage::Runnable || self.queue_has_room() {
            true => turn.queue(),
            false => turn.park_again(),
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
                    // The sweep at the end of a stop may have passed, and every worker may be
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
        // The queue is gone: a drain was forced and is over. It is never full, see its capacity.
        for token in unsent {
            log::debug!("closing a connection: no worker is left");
            drop(self.claim_queued(token, counters));
        }
    }

    /// Sets the timer of a QUEUED connection to the queue's time-out.
    fn limit_queue_time(&self, token: Token) {
        if let (Some(limit), Some(slot)) = (self.queue_timeout, self.slots.get(token.index)) {
            self.set_timer(token.index, slot, clock::millis().saturating_add(limit));
        }
    }

    /// Wakes one worker that waits in the poller. While a wake-up is under way there is none: the
    /// worker that it reaches wakes the next.
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

    /// Waits as an idle worker, in the poller or on the queue. Returns a connection to serve, or
    /// `None` if the worker is to look at the queue again.
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
        // The count goes up before this look at the queue. A thread that sends reads the count
        // after that.
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
        let mut ready = self.queue_reported(events);
        let first = ready.next()?;
        self.push(ready, counters);
        Some(first)
    }

    fn leave_poller(&self) {
        if self.sleepers.fetch_sub(1, SeqCst) == 1 {
            self.concurrency.ensure_scanning();
        }
    }

    /// Called by a worker between two turns: it may have to rest, see [`concurrency`]. True if it
    /// did.
    #[inline]
    pub(crate) fn rest_if_surplus(&self, worker: usize) -> bool {
        let counters = &self.counters.workers;
        self.concurrency
            .rest_if_surplus(worker, counters, &self.sleepers)
    }

    /// Begins to time a turn, if it is one of those that are timed.
    #[inline]
    pub(crate) fn begin_sample(&self, turns: &mut u32) -> Option<Sample> {
        self.concurrency.begin_sample(turns)
    }

    pub(crate) fn end_sample(&self, sample: Sample, worker: usize) {
        self.concurrency
            .end_sample(sample, worker, &self.counters.workers);
    }

    /// Called by a worker whose queue is not empty: puts the connections that are ready in the
    /// poller on the queue, behind those that became ready before. At most once in a tick of the
    /// coarse clock, unless `is_due`.
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
        self.push(self.queue_reported(events), counters);
        self.pass_wake_on(events);
    }

    /// Returns a connection that is ready in the poller if the queue has no room for it: the queue
    /// may be full of connections that always have more to do.
    pub(crate) fn poll_past_queue(&self, events: &mut Events) -> Option<Token> {
        if !Poller::SHARED || self.has_room_for_batch() {
            return None;
        }
        self.poll(events, 1, Some(Duration::ZERO));
        let first = self.queue_reported(events).next();
        self.pass_wake_on(events);
        first
    }

    /// Repeats a wake-up that was meant for a sleeping worker and reached a thread that did not
    /// sleep.
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

    /// The connections that the events turn from PARKED to QUEUED. The caller brings them to a
    /// worker.
    fn queue_reported<'a>(&'a self, events: &'a Events) -> impl Iterator<Item = Token> + 'a {
        let now = clock::nanos();
        events.iter().filter_map(move |event| {
            let token = Token::from_u64(event.token);
            let slot = self.slots.get(token.index)?;
            slot.set_ready(now);
            let is_queued = slot.owner.handle_event(token.generation, event.hangup);
            is_queued.then_some(token)
        })
    }

    /// Begins a turn with a QUEUED connection. `None` if it is not QUEUED any more.
    pub(crate) fn claim_queued<'a>(
        &'a self,
        token: Token,
        counters: &'a ThreadCounters,
    ) -> Option<Turn<'a, S>> {
        let slot = self.slots.get(token.index)?;
        let readiness = slot.owner.claim_queued(token.generation)?;
        Some(self.begin_turn(slot, token, readiness, counters))
    }

    /// Begins a turn with a PARKED connection. `None` if it is not PARKED any more.
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
                // The poller watched for writing, so nothing is known of the input.
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

    /// Closes the connections that wait for a message, once the drain has begun. Those whose
    /// message has arrived are queued; those in the middle of a message stay. False if the queue
    /// had no room for all.
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

    /// Closes the connections that linger, after the client's last bytes are discarded: a close
    /// with unread input would reset the connection.
    pub(crate) fn close_lingering(&self) {
        for (token, _) in self.tokens() {
            let Some(mut turn) = self.claim_parked(token, &self.counters.main_thread) else {
                continue;
            };
            let stage = turn.occupant().map(|occupant| occupant.stage);
            match stage {
                Some(Stage::Lingering { .. }) => drop(turn.occupant().map(Occupant::advance)),
                _ => turn.park_again(),
            }
        }
    }

    fn has_queue(&self) -> bool {
        self.queue.read().is_some()
    }

    /// Drops the queue's sender, which ends the workers, and ends the keeper.
    pub(crate) fn end_threads(&self) {
        drop(self.queue.write().take());
        self.concurrency.close();
        self.keeper.end();
        self.poller.wake();
    }

    /// Called by a worker that ends: wakes the next worker that waits in the poller, so that it
    /// ends as well.
    pub(crate) fn worker_ended(&self) {
        self.poller.wake();
    }

    /// Closes every connection that is left. The socket of a connection in a turn is shut down.
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
                }
            }
        }
    }

    // ---- room for the acceptor ----

    /// Sets what is called when there may be room, after [`request_room`](Self::request_room).
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_room.set(Box::new(call));
    }

    /// Asks for one call of `on_room` when a connection has ended, was parked, or left the queue.
    /// The caller checks for room once more afterwards, since that may have happened just before.
    pub(crate) fn request_room(&self) {
        self.room_requested.store(true, SeqCst);
    }

    /// Whether a requested call of `on_room` is still to come.
    pub(crate) fn is_room_requested(&self) -> bool {
        self.room_requested.load(SeqCst)
    }

    pub(crate) fn notify_room(&self) {
        if self.is_room_requested() && self.room_requested.swap(false, SeqCst) {
            if let Some(call) = self.on_room.get() {
                call();
            }
        }
    }

    // ---- what others ask ----

    /// Has the keeper run its loop once.
    pub(crate) fn wake_keeper(&self) {
        self.wake_keeper_by(0);
    }

    /// How often the keeper has run its loop.
    pub(crate) fn keeper_loops(&self) -> u64 {
        self.keeper.loops.load(SeqCst)
    }

    /// Sends the output that workers have lent and whose calls have lasted since the last tick.
    /// `seen` has the calls of that tick.
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
            }
        }
    }

    /// Calls `ask` with what is known of the connection with this token, if the connection is still
    /// there.
    pub(crate) fn with_info<T>(
        &self,
        token: u64,
        ask: impl FnOnce(&ConnectionInfo) -> T,
    ) -> Option<T> {
        let token = Token::from_u64(token);
        let slot = self.slots.get(token.index)?;
        let info = slot.info.lock();
        let info = info.as_deref()?;
        (slot.owner.generation() == token.generation).then(|| ask(info))
    }
}
