//! The parking lot: connections that wait for their client, or for a worker, and cost no thread.
//!
//! Every connection has a slot from its accept to its end. Who may touch it is said by the slot's [`Ownership`]; the
//! rest of the slot is data that the owner leaves there. A worker that owns a connection holds a [`Turn`], and ends
//! it in one of three ways: it parks the connection, it puts it (back) on the queue, or it drops the turn, which
//! closes the connection, also when that happens because a handler panicked.
//!
//! Idle workers wait on the lot's poller themselves, where the platform lets many threads do so. An event then turns
//! PARKED into QUEUED in the hands of the worker that saw it, and nobody else is involved. The [`keeper`] thread
//! does what must happen while every worker is busy.

mod expiry;
mod keeper;
mod occupant;
mod ownership;
mod slab;
mod turn;
mod wheel;

/// What [`ownership`] builds on; its model test has another one of this name.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::atomic::AtomicCell;
use parking_lot::{Mutex, RwLock};

use crate::clock::{self, in_millis};
use crate::connection::{Connection, ConnectionInfo, Limits};
use crate::drain::Drain;
use crate::stats::Counters;
use crate::sys::{Events, Poller};

pub(crate) use expiry::Idle;
use keeper::Nap;
pub(crate) use keeper::keep;
pub(crate) use occupant::{Occupant, Tended, Waits, Wants};
use ownership::{News, Ownership};
use slab::Slab;
pub(crate) use turn::Turn;
use wheel::Wheel;

/// How many ready connections a worker takes at once when no other worker is idle.
pub(crate) const BATCH: usize = 256;

/// A connection's place and the generation of it.
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

// What passes a connection on must cost one instruction, not a lock that spins.
const _: () = assert!(AtomicCell::<Option<Box<Occupant<()>>>>::is_lock_free());

#[repr(align(64))]
struct Slot<S> {
    owner: Ownership,
    /// What the owner leaves here for the next one.
    occupant: AtomicCell<Option<Box<Occupant<S>>>>,
    /// What is known of the connection by others than its owner.
    info: Mutex<Option<Arc<ConnectionInfo>>>,
    /// When a parked connection expires, in the clock's milliseconds; set by the owner before it parks.
    deadline: AtomicU64,
    /// Since when it is parked, or queued; see also [`BUSY`].
    since: AtomicU64,
    /// The wheel has an entry for this slot, at this time or before; `u64::MAX` if it has none.
    reminder: AtomicU64,
}

impl<S> Slot<S> {
    fn new() -> Self {
        Self {
            owner: Ownership::new(),
            occupant: AtomicCell::new(None),
            info: Mutex::new(None),
            deadline: AtomicU64::new(u64::MAX),
            since: AtomicU64::new(0),
            reminder: AtomicU64::new(u64::MAX),
        }
    }
}

/// The lot.
pub(crate) struct Lot<S> {
    slots: Slab<Slot<S>>,
    poller: Arc<Poller>,
    queue: RwLock<Option<Sender<Token>>>,
    /// A second end of the queue, to look at its length and to empty it in the end.
    waiting: Receiver<Token>,
    queue_limit: usize,
    queue_timeout: Option<u64>,
    /// Workers that wait in the poller.
    sleepers: AtomicUsize,
    /// A wake-up is under way to one of them.
    waking: AtomicBool,
    /// Parked connections with output to write.
    unwritten: AtomicUsize,
    wheel: Mutex<Wheel>,
    nap: Nap,
    /// Somebody waits for a connection to end or to leave the queue, and how to tell.
    room_wanted: AtomicBool,
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
    limits: Limits,
    /// What a client is told that no worker has time for.
    refusal: Vec<u8>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

/// What a lot is made with.
pub(crate) struct LotOptions {
    pub(crate) workers: usize,
    pub(crate) queue_limit: usize,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) limits: Limits,
    pub(crate) refusal: Vec<u8>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

impl<S> Lot<S> {
    /// Makes a lot, and the end of its queue that workers receive from.
    pub(crate) fn new(options: LotOptions) -> std::io::Result<(Self, Receiver<Token>)> {
        let now = clock::millis();
        // Whoever puts something on the queue has seen it below its limit before. Each of them may at that moment
        // have had a batch in hand, so with this capacity no `send` ever finds it full.
        let capacity = options.queue_limit + (options.workers + 2) * (BATCH + 1);
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        let lot = Self {
            slots: Slab::new(),
            poller: Arc::new(Poller::new()?),
            queue: RwLock::new(Some(sender)),
            waiting: receiver.clone(),
            queue_limit: options.queue_limit,
            queue_timeout: options.queue_timeout.map(in_millis),
            sleepers: AtomicUsize::new(0),
            waking: AtomicBool::new(false),
            unwritten: AtomicUsize::new(0),
            wheel: Mutex::new(Wheel::new(now)),
            nap: Nap::default(),
            room_wanted: AtomicBool::new(false),
            on_room: OnceLock::new(),
            limits: options.limits,
            refusal: options.refusal,
            drain: options.drain,
            counters: options.counters,
        };
        Ok((lot, receiver))
    }

    // ---- the way in ----

    /// How many connections wait for a worker.
    pub(crate) fn queued(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn queue_has_room(&self) -> bool {
        self.queued() < self.queue_limit
    }

    /// Is there a place for what the poller reports? A batch has one beyond the limit, or connections that always have
    /// more to do would fill the queue for ever.
    fn takes_a_batch(&self) -> bool {
        self.queued() < self.queue_limit + BATCH
    }

    /// Gives a new connection its slot, and puts it on the queue.
    pub(crate) fn enter(&self, info: ConnectionInfo) {
        let info = Arc::new(info);
        let Some((index, slot)) = self.slots.take(Slot::new) else {
            log::error!("{info}: no slot is left");
            return;
        };
        slot.owner.occupy();
        let conn = Connection::new(Arc::clone(&info), Arc::clone(&self.poller), &self.limits);
        let wants = if info.listener.speaks_first {
            Wants::Nothing
        } else {
            Wants::FirstByte
        };
        let occupant = Box::new(Occupant::new(conn, wants));
        *slot.info.lock() = Some(info);
        let generation = slot.owner.generation();
        let token = Token { index, generation };
        let turn = Turn {
            lot: self,
            slot,
            token,
            counters: self.counters.keeper(),
            waited: Waits::Input,
            occupant: Some(occupant),
        };
        turn.requeue();
    }

    /// Puts QUEUED connections on the queue, and sees to it that a worker looks there.
    fn push(&self, tokens: impl IntoIterator<Item = Token>) {
        let queue = self.queue.read();
        let mut pushed = false;
        let mut refused = Vec::new();
        for token in tokens {
            self.limit_wait(token);
            match queue.as_ref().map(|queue| queue.try_send(token)) {
                Some(Ok(())) => {
                    pushed = true;
                    // The sweep at the end of a stop may have passed, and every worker be stuck.
                    if self.drain.is_forced() {
                        drop(self.start(token));
                    }
                }
                Some(Err(_)) | None => refused.push(token),
            }
        }
        drop(queue);
        if pushed {
            self.wake_one();
        }
        // The queue is gone, at the end of a drain that was forced; it is never full, see its capacity.
        for token in refused {
            log::debug!("a connection found no worker any more");
            drop(self.start(token));
        }
    }

    /// Notes when a connection begins to wait for a worker. To be called before it is QUEUED: from then on the keeper
    /// looks at the time.
    fn stamp(&self, slot: &Slot<S>) {
        if self.queue_timeout.is_some() {
            slot.since.store(clock::millis(), SeqCst);
        }
    }

    /// Has the keeper look at a QUEUED connection when it has waited for too long.
    fn limit_wait(&self, token: Token) {
        if let (Some(limit), Some(slot)) = (self.queue_timeout, self.slots.get(token.index)) {
            self.remind(token.index, slot, clock::millis() + limit);
        }
    }

    /// Wakes one worker that waits in the poller, unless one is being woken already: that one will pass it on.
    fn wake_one(&self) {
        if Poller::SHARED && self.sleepers.load(SeqCst) > 0 && !self.waking.swap(true, SeqCst) {
            self.poller.wake();
        }
    }

    // ---- the workers' side ----

    /// A worker has taken something off the queue: if there is more, another worker may help.
    pub(crate) fn pass_on(&self) {
        if !self.waiting.is_empty() {
            self.wake_one();
        }
    }

    /// Waits until there is something to do, as an idle worker: with luck, returns a connection to serve.
    pub(crate) fn wait(&self, events: &mut Events, queue: &Receiver<Token>) -> Option<Token> {
        if !Poller::SHARED {
            return queue.recv().ok();
        }
        let sleepers = self.sleepers.fetch_add(1, SeqCst) + 1;
        // The count is up before the queue is looked at, and whoever fills the queue looks at the count after that.
        let slept = self.waiting.is_empty() && self.is_open();
        if slept {
            let most = if sleepers == 1 { self.batch() } else { 1 };
            self.fetch(events, most, None);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        self.waking.store(false, SeqCst);
        if !slept {
            return None;
        }
        let mut ready = self.ready(events);
        let first = ready.next()?;
        self.push(ready);
        Some(first)
    }

    /// Looks for ready connections without waiting, for a worker whose queue never gets empty. The first is for that
    /// worker, so that it has its turn also when the queue is full.
    pub(crate) fn look(&self, events: &mut Events) -> Option<Token> {
        if !Poller::SHARED || !self.takes_a_batch() {
            return None;
        }
        self.fetch(events, self.batch(), Some(Duration::ZERO));
        let mut ready = self.ready(events);
        let first = ready.next();
        self.push(ready);
        self.return_wake(events);
        first
    }

    /// Somebody who did not sleep may have got a wake-up that was meant for a sleeper.
    fn return_wake(&self, events: &Events) {
        if Poller::SHARED && events.was_woken() {
            self.waking.store(false, SeqCst);
            if self.sleepers.load(SeqCst) > 0 {
                self.poller.wake();
            }
        }
    }

    fn batch(&self) -> usize {
        let room = self.queue_limit.saturating_sub(self.queued());
        room.clamp(1, BATCH)
    }

    fn fetch(&self, events: &mut Events, most: usize, timeout: Option<Duration>) {
        if let Err(error) = self.poller.wait(events, most, timeout) {
            log::error!("cannot wait in the poller: {error}");
        }
    }

    /// The connections that the events bring from PARKED to QUEUED, for the caller to take care of.
    fn ready<'a>(&'a self, events: &'a Events) -> impl Iterator<Item = Token> + 'a {
        events.iter().filter_map(|event| {
            let token = Token::from_u64(event.token);
            let slot = self.slots.get(token.index)?;
            if self.queue_timeout.is_some() && slot.owner.is_parked(token.generation) {
                self.stamp(slot);
            }
            let mine = slot.owner.event(token.generation, event.hangup);
            mine.then_some(token)
        })
    }

    /// Takes a QUEUED connection in hand; `None` if it is gone by now.
    pub(crate) fn start(&self, token: Token) -> Option<Turn<'_, S>> {
        let slot = self.slots.get(token.index)?;
        let news = slot.owner.start(token.generation)?;
        Some(self.turn(slot, token, news))
    }

    fn claim_parked(&self, token: Token) -> Option<Turn<'_, S>> {
        let slot = self.slots.get(token.index)?;
        let news = slot.owner.claim_parked(token.generation)?;
        Some(self.turn(slot, token, news))
    }

    fn turn<'a>(&'a self, slot: &'a Slot<S>, token: Token, news: News) -> Turn<'a, S> {
        let mut occupant = slot.occupant.take();
        let mut waited = Waits::Input;
        if let Some(occupant) = &mut occupant {
            waited = occupant.waits;
            if waited == Waits::Output {
                self.unwritten.fetch_sub(1, SeqCst);
                occupant.waits = Waits::Input;
                // It was not watched for reading meanwhile, so that nothing is known of it.
                occupant.conn.note_readable(false);
            }
            if news.readable {
                occupant.conn.note_readable(news.hangup);
            }
        }
        Turn {
            lot: self,
            slot,
            token,
            counters: self.counters.keeper(),
            waited,
            occupant,
        }
    }

    // ---- the end ----

    /// Closes the connections that wait for a message, once the drain has begun; those whose message is there already
    /// are put on the queue. What is in the middle of something stays. False if the queue had no room for all.
    pub(crate) fn clear(&self) -> bool {
        for (index, slot) in self.slots.iter() {
            if !self.queue_has_room() {
                return false;
            }
            let generation = slot.owner.generation();
            let token = Token { index, generation };
            let Some(mut turn) = self.claim_parked(token) else {
                continue;
            };
            turn.counters = self.counters.main_thread();
            if !turn.is_between_messages() {
                turn.park_again();
            } else if turn.has_message() {
                turn.requeue();
            }
        }
        true
    }

    // ---- word of room ----

    /// Sets what is called when there may be room, after [`want_room`](Self::want_room).
    pub(crate) fn on_room(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_room.set(Box::new(call));
    }

    /// Asks to be called once when a connection has ended, was parked, or left the queue. Whoever asks looks for room once more
    /// afterwards, since that may have happened just before.
    pub(crate) fn want_room(&self) {
        self.room_wanted.store(true, SeqCst);
    }

    /// Nobody has been told of room since it was wanted.
    pub(crate) fn wants_room(&self) -> bool {
        self.room_wanted.load(SeqCst)
    }

    pub(crate) fn made_room(&self) {
        if self.room_wanted.load(SeqCst) && self.room_wanted.swap(false, SeqCst) {
            if let Some(call) = self.on_room.get() {
                call();
            }
        }
    }

    fn is_open(&self) -> bool {
        self.queue.read().is_some()
    }

    /// Drops the queue's sender, which ends the workers, and ends the keeper.
    pub(crate) fn end(&self) {
        drop(self.queue.write().take());
        self.nap.end();
        self.poller.wake();
    }

    /// A worker has ended: the next one may still wait in the poller.
    pub(crate) fn worker_ended(&self) {
        self.poller.wake();
    }

    /// What is still there: shuts down the sockets of the connections that somebody holds, and closes the others.
    pub(crate) fn force(&self) {
        for (index, slot) in self.slots.iter() {
            let generation = slot.owner.generation();
            let token = Token { index, generation };
            if self.claim_parked(token).is_some() || self.start(token).is_some() {
                continue;
            }
            if slot.owner.is_running(generation) {
                let info = slot.info.lock().clone();
                if let Some(info) = info {
                    // It may be closed by now; then there is nothing to do.
                    let _ = info.socket.shutdown(std::net::Shutdown::Both);
                }
            }
        }
    }

    /// Has the keeper look around.
    pub(crate) fn wake_keeper(&self) {
        if self.nap.no_longer_than(0) && !Poller::SHARED {
            self.poller.wake();
        }
    }

    /// How often the keeper has looked around.
    pub(crate) fn keeper_turns(&self) -> u64 {
        self.nap.turns.load(SeqCst)
    }

    /// What `ask` finds out about a connection, if it still is the one of that token.
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
