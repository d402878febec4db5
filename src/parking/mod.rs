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

mod keeper;
mod ownership;
mod slab;
mod wheel;

/// What [`ownership`] builds on; its model test has another one of this name.
mod atomic {
    pub(super) use std::sync::atomic::AtomicU64;
}

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::atomic::AtomicCell;
use parking_lot::{Mutex, RwLock};

use crate::clock::{self, in_millis};
use crate::connection::{Connection, Filled, Info, Limits};
use crate::drain::Drain;
use crate::stats::{Counters, WorkerCounters, count};
use crate::sys::{Events, Interest, Poller};

use keeper::Nap;
pub(crate) use keeper::keep;
use ownership::{News, Ownership};
use slab::Slab;
use wheel::{Reminder, Wheel};

/// How many ready connections a worker takes at once when no other worker is idle.
pub(crate) const BATCH: usize = 64;

/// How long a closing connection waits for its client to take note, and how much it throws away meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u32 = 256 * 1024;

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

/// What a parked connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Its client to send something, see [`Wants`].
    Input,
    /// Its client to read what is buffered for it.
    Output,
    /// Its client to close, after we did.
    Linger,
}

/// What the service wants before it is called. It decides which time-out applies and what a drain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing: it has more to do.
    Nothing,
    /// The first byte of a new connection.
    FirstByte,
    /// A message: any byte will do, also one that is in the buffer already.
    Message,
    /// More of the message than is in the buffer.
    More,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// It is closed as soon as its output is written.
    Closing,
    /// Its output is written and the client told; so many more bytes from it are ignored, until then.
    Lingering {
        left: u32,
        until: u64,
    },
}

/// A connection that has a place in the lot, with its session.
// What is looked at first comes first, beside what every message touches of the connection; see there.
#[repr(C, align(64))]
pub(crate) struct Held<S> {
    pub(crate) wants: Wants,
    pub(crate) waits: Waits,
    phase: Phase,
    pub(crate) conn: Connection,
    pub(crate) session: Option<S>,
}

/// What is to be done with a connection before, or instead of, serving it.
pub(crate) enum Tended {
    /// It can be served.
    Ready,
    /// It waits for its client.
    Wait(Waits),
    /// It is finished.
    Done,
}

impl<S> Held<S> {
    /// Does what needs no service: writes buffered output, closes, lingers.
    pub(crate) fn tend(&mut self) -> Tended {
        match self.conn.flush_some() {
            Ok(true) => {}
            Ok(false) => return Tended::Wait(Waits::Output),
            Err(error) => {
                log::debug!("{}: cannot write: {error}", self.conn.peer());
                return Tended::Done;
            }
        }
        if self.phase == Phase::Serving {
            return Tended::Ready;
        }
        if self.phase == Phase::Closing {
            // A close with unread input resets the connection, and may take the answer with it.
            if self.conn.at_eof() || (self.conn.buffer().is_empty() && self.conn.is_drained()) {
                return Tended::Done;
            }
            self.conn.half_close();
            self.phase = Phase::Lingering {
                left: LINGER_BYTES,
                until: clock::millis() + in_millis(LINGER),
            };
        }
        self.linger()
    }

    fn linger(&mut self) -> Tended {
        let mut scratch = [0; 4096];
        while let Phase::Lingering { left, until } = self.phase {
            match self.conn.discard(&mut scratch) {
                Ok((_, Filled::Nothing)) => return Tended::Wait(Waits::Linger),
                Ok((count, Filled::Bytes)) if count < left as usize => {
                    let left = left - count as u32;
                    self.phase = Phase::Lingering { left, until };
                }
                Ok(_) | Err(_) => break,
            }
        }
        Tended::Done
    }

    /// It waits for a message, and nothing of one has come as far as is known.
    fn is_between_messages(&self) -> bool {
        self.phase == Phase::Serving
            && !self.conn.has_output()
            && matches!(self.wants, Wants::FirstByte | Wants::Message)
    }

    fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Ends the serving: what follows is writing out what is buffered, and the close.
    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closing;
    }

    /// Until when it may wait, in the clock's milliseconds.
    fn due(&mut self, now: u64, first_byte: Duration) -> u64 {
        if let Phase::Lingering { until, .. } = self.phase {
            return until;
        }
        let deadline = match (self.waits, self.wants) {
            (Waits::Linger, _) => return now,
            (Waits::Input, Wants::FirstByte) => return now.saturating_add(in_millis(first_byte)),
            (Waits::Input, Wants::Message | Wants::Nothing) => {
                return now.saturating_add(in_millis(self.conn.idle_timeout()));
            }
            (Waits::Input, Wants::More) => self.conn.read_deadline(Instant::now()),
            (Waits::Output, _) => self.conn.write_deadline(Instant::now()),
        };
        let left = deadline.left(Instant::now());
        left.map_or(u64::MAX, |left| now.saturating_add(in_millis(left)))
    }
}

// What passes a connection on must cost one instruction, not a lock that spins.
const _: () = assert!(AtomicCell::<Option<Box<Held<()>>>>::is_lock_free());

#[repr(align(64))]
struct Slot<S> {
    owner: Ownership,
    /// What the owner leaves here for the next one.
    held: AtomicCell<Option<Box<Held<S>>>>,
    /// What is known of the connection by others than its owner.
    info: Mutex<Option<Arc<Info>>>,
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
            held: AtomicCell::new(None),
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

/// Marks a time in `since` as that of a connection that is parked in the middle of something.
const BUSY: u64 = 1 << 63;

/// A connection that was parked when somebody looked, and since when.
pub(crate) struct Idle {
    since: u64,
    token: Token,
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

    /// Gives a new connection its slot, and puts it on the queue.
    pub(crate) fn enter(&self, info: Info) {
        let info = Arc::new(info);
        let Some((index, slot)) = self.slots.take(Slot::new) else {
            log::error!("{}: no slot is left", info.peer);
            return;
        };
        slot.owner.occupy();
        let conn = Connection::new(Arc::clone(&info), Arc::clone(&self.drain), &self.limits);
        let wants = if info.about.speaks_first {
            Wants::Nothing
        } else {
            Wants::FirstByte
        };
        let held = Box::new(Held {
            conn,
            session: None,
            wants,
            waits: Waits::Input,
            phase: Phase::Serving,
        });
        *slot.info.lock() = Some(info);
        let generation = slot.owner.generation();
        let token = Token { index, generation };
        let turn = Turn {
            lot: self,
            slot,
            token,
            counters: self.counters.keeper(),
            waited: Waits::Input,
            held: Some(held),
        };
        turn.requeue();
    }

    /// Puts QUEUED connections on the queue, and sees to it that a worker looks there.
    fn push(&self, tokens: impl IntoIterator<Item = Token>) {
        let queue = self.queue.read();
        let mut pushed = false;
        let mut refused = Vec::new();
        for token in tokens {
            self.note_queued(token);
            match queue.as_ref().map(|queue| queue.try_send(token)) {
                Some(Ok(())) => pushed = true,
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

    fn note_queued(&self, token: Token) {
        let (Some(timeout), Some(slot)) = (self.queue_timeout, self.slots.get(token.index)) else {
            return;
        };
        let now = clock::millis();
        slot.since.store(now, SeqCst);
        self.remind(token.index, slot, now + timeout);
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
        self.note_queued(first);
        self.push(ready);
        Some(first)
    }

    /// Looks for ready connections without waiting: for a worker whose queue never gets empty.
    pub(crate) fn look(&self, events: &mut Events) {
        if Poller::SHARED && self.queue_has_room() {
            self.fetch(events, self.batch(), Some(Duration::ZERO));
            self.push(self.ready(events));
            self.return_wake(events);
        }
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
            let owner = &self.slots.get(token.index)?.owner;
            let mine = owner.event(token.generation, event.hangup);
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
        let mut held = slot.held.take();
        let mut waited = Waits::Input;
        if let Some(held) = &mut held {
            waited = held.waits;
            if waited == Waits::Output {
                self.unwritten.fetch_sub(1, SeqCst);
                held.waits = Waits::Input;
                // It was not watched for reading meanwhile, so that nothing is known of it.
                held.conn.note_readable(false);
            }
            if news.readable {
                held.conn.note_readable(news.hangup);
            }
        }
        Turn {
            lot: self,
            slot,
            token,
            counters: self.counters.keeper(),
            waited,
            held,
        }
    }

    // ---- expiry and room: the keeper's and the acceptor's side ----

    /// Makes sure that the keeper looks at the slot at that time, or before.
    fn remind(&self, index: u32, slot: &Slot<S>, due: u64) {
        if slot.reminder.load(SeqCst) <= due {
            return;
        }
        let mut wheel = self.wheel.lock();
        // Once more under the lock: a later reminder must not take the place of an earlier one.
        if slot.reminder.load(SeqCst) > due {
            slot.reminder.store(due, SeqCst);
            wheel.insert(index, due);
            drop(wheel);
            self.wake_keeper_by(due);
        }
    }

    fn wake_keeper_by(&self, due: u64) {
        if self.nap.no_longer_than(due) && !Poller::SHARED {
            self.poller.wake();
        }
    }

    /// Closes whatever has waited for too long.
    fn expire(&self, now: u64) {
        let due = self.wheel.lock().expired(now);
        for Reminder { index, due } in due {
            let Some(slot) = self.slots.get(index) else {
                continue;
            };
            // An earlier reminder may have taken this one's place; then it is the one that counts.
            let cleared = slot
                .reminder
                .compare_exchange(due, u64::MAX, SeqCst, SeqCst);
            if cleared.is_err() {
                continue;
            }
            let generation = slot.owner.generation();
            let token = Token { index, generation };
            if slot.owner.is_parked(generation) {
                let deadline = slot.deadline.load(SeqCst);
                if deadline > now {
                    self.remind(index, slot, deadline);
                } else if let Some(turn) = self.claim_parked(token) {
                    turn.expire(now);
                }
            } else if let (Some(limit), true) =
                (self.queue_timeout, slot.owner.is_queued(generation))
            {
                let due = slot.since.load(SeqCst) + limit;
                if due > now {
                    self.remind(index, slot, due);
                } else if let Some(turn) = self.start(token) {
                    turn.refuse_late();
                    self.forget_queued();
                }
            }
        }
    }

    /// Takes the entry of a connection that was refused off the queue, where it would take the place of others. It is
    /// the first, or comes after others that are as late.
    fn forget_queued(&self) {
        while let Ok(token) = self.waiting.try_recv() {
            match self.start(token) {
                Some(turn) if self.is_late(&turn) => turn.refuse_late(),
                Some(turn) => return turn.requeue(),
                None => return self.made_room(),
            }
        }
    }

    /// Has it waited in the queue for longer than it should?
    pub(crate) fn is_late(&self, turn: &Turn<'_, S>) -> bool {
        self.queue_timeout
            .is_some_and(|limit| turn.slot.since.load(SeqCst) + limit < clock::millis())
    }

    /// The parked connections that have been idle for longest, at most `count` of them. Those in the middle of
    /// something come last, if they are wanted at all.
    pub(crate) fn longest_idle(&self, count: usize, busy_too: bool) -> Vec<Idle> {
        let slots = self.slots.iter();
        let mut idle: Vec<Idle> = slots
            .filter_map(|(index, slot)| {
                let generation = slot.owner.generation();
                let token = Token { index, generation };
                let since = slot.since.load(SeqCst);
                let wanted = busy_too || since < BUSY;
                let parked = wanted && slot.owner.is_parked(generation);
                parked.then_some(Idle { since, token })
            })
            .collect();
        let count = count.min(idle.len());
        if count == 0 {
            return Vec::new();
        }
        idle.select_nth_unstable_by_key(count - 1, |idle| idle.since);
        idle.truncate(count);
        idle.sort_unstable_by_key(|idle| idle.since);
        idle
    }

    /// Is it parked still, and not again?
    pub(crate) fn is_idle(&self, idle: &Idle) -> bool {
        self.slots.get(idle.token.index).is_some_and(|slot| {
            slot.owner.is_parked(idle.token.generation) && slot.since.load(SeqCst) == idle.since
        })
    }

    /// Closes a parked connection to make room; false if it is not parked any more.
    pub(crate) fn shed(&self, idle: &Idle) -> bool {
        let Some(turn) = self.claim_parked(idle.token) else {
            return false;
        };
        count(&self.counters.shed);
        if let Some(held) = &turn.held {
            log::debug!("{}: closed to make room", held.conn.peer());
        }
        true
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

    /// What `ask` finds out about a connection, if it still is the one of that token.
    pub(crate) fn about<T>(&self, token: u64, ask: impl FnOnce(&Info) -> T) -> Option<T> {
        let token = Token::from_u64(token);
        let slot = self.slots.get(token.index)?;
        let info = slot.info.lock();
        let info = info.as_deref()?;
        (slot.owner.generation() == token.generation).then(|| ask(info))
    }
}

/// A connection in hand. Dropping it closes the connection.
pub(crate) struct Turn<'a, S> {
    lot: &'a Lot<S>,
    slot: &'a Slot<S>,
    pub(crate) token: Token,
    /// Whose counters what is moved in this turn goes to.
    pub(crate) counters: &'a WorkerCounters,
    /// What it had been parked for.
    waited: Waits,
    /// There until the turn ends.
    held: Option<Box<Held<S>>>,
}

impl<S> Turn<'_, S> {
    /// The connection. `None` never happens while the turn lasts.
    pub(crate) fn held(&mut self) -> Option<&mut Held<S>> {
        self.held.as_deref_mut()
    }

    /// Leaves the connection to the poller, or keeps it if something has come meanwhile.
    pub(crate) fn park(mut self, waits: Waits) -> Option<Self> {
        let lot = self.lot;
        self.account();
        let mut held = self.held.take()?;
        held.waits = waits;
        let interest = match waits {
            Waits::Output => Interest::Write,
            Waits::Input | Waits::Linger => Interest::Read,
        };
        if let Err(error) = held.conn.watch(&lot.poller, self.token.to_u64(), interest) {
            log::warn!("{}: cannot watch the connection: {error}", held.conn.peer());
            self.held = Some(held);
            return None;
        }
        let now = clock::millis();
        let due = held.due(now, lot.limits.first_byte_timeout);
        let idle = held.is_between_messages();
        // Parking publishes both.
        self.slot.deadline.store(due, Relaxed);
        let since = if idle { now } else { now | BUSY };
        self.slot.since.store(since, Relaxed);
        if waits == Waits::Output && lot.unwritten.fetch_add(1, SeqCst) == 0 {
            lot.wake_keeper_by(now + 1);
        }
        self.slot.held.store(Some(held));
        match self.slot.owner.park() {
            Ok(()) => {
                // From here on it may be anybody's. Its slot is still there to be looked at.
                lot.remind(self.token.index, self.slot, due);
                lot.made_room();
                if idle && lot.drain.is_draining() {
                    // The sweep of the drain may have passed while the connection was in hand.
                    return lot.claim_parked(self.token);
                }
                None
            }
            Err(news) => Some(lot.turn(self.slot, self.token, news)),
        }
    }

    /// Puts the connection on the queue.
    pub(crate) fn requeue(mut self) {
        self.account();
        self.slot.held.store(self.held.take());
        self.slot.owner.requeue();
        self.lot.push([self.token]);
    }

    fn park_again(self) {
        let waits = self.waited;
        if let Some(turn) = self.park(waits) {
            turn.requeue();
        }
    }

    /// Has the client sent something of a message that nobody has looked at?
    fn has_message(&mut self) -> bool {
        let filled = self.held.as_mut().map(|held| held.conn.try_fill());
        matches!(filled, Some(Ok(Filled::Bytes)))
    }

    fn is_between_messages(&self) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.is_between_messages())
    }

    /// Adds what was moved to the thread's counters.
    fn account(&mut self) {
        if let Some(held) = &mut self.held {
            // Threads without counters of their own move nothing.
            match held.conn.take_moved() {
                (0, 0) => {}
                (bytes_in, bytes_out) => self.counters.moved(bytes_in, bytes_out),
            }
        }
    }

    /// Closes a parked connection whose time has come; it may have got a new one since that was seen.
    fn expire(mut self, now: u64) {
        if self.slot.deadline.load(SeqCst) > now {
            return self.park_again();
        }
        let Some(held) = &mut self.held else { return };
        // The kernel reports room late, see `WRITE_SLICE`: whoever has read something meanwhile gets the time for it.
        if self.waited == Waits::Output && matches!(held.conn.has_progressed(), Ok(true)) {
            return keeper::tend(self);
        }
        let counters = &self.lot.counters;
        let (counter, what) = match (self.waited, held.wants) {
            (Waits::Linger, _) => return,
            (Waits::Output, _) => (&counters.expired_write, "did not read its answer"),
            (Waits::Input, Wants::FirstByte) => (&counters.expired_first_byte, "sent nothing"),
            (Waits::Input, Wants::More) => (&counters.expired_read, "did not complete a message"),
            (Waits::Input, Wants::Message | Wants::Nothing) => (&counters.expired_idle, "was idle"),
        };
        count(counter);
        log::debug!("{}: closed, the client {what} in time", held.conn.peer());
        if self.waited == Waits::Input && held.wants == Wants::More {
            let farewell = held.conn.farewell();
            self.close_with(farewell);
        }
    }

    /// Closes a connection that waited for a worker for too long.
    pub(crate) fn refuse_late(self) {
        count(&self.lot.counters.refused_queue_timeout);
        if let Some(held) = &self.held {
            log::debug!("{}: refused, no worker had time for it", held.conn.peer());
        }
        let refusal = &self.lot.refusal;
        self.close_with(refusal);
    }

    /// Tells the client something before the close; without waiting, as there is nothing else in the buffer.
    fn close_with(mut self, bytes: &[u8]) {
        let Some(held) = &mut self.held else { return };
        if bytes.is_empty() || held.conn.has_output() {
            return;
        }
        if let Err(error) = held.conn.write(bytes) {
            log::debug!("{}: cannot write: {error}", held.conn.peer());
            return;
        }
        held.close();
        keeper::tend(self);
    }
}

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        self.account();
        let Some(held) = self.held.take() else { return };
        let Held { conn, session, .. } = *held;
        let peer = conn.peer().clone();
        // In this order: it leaves the poller, then the slot forgets it, and only then the slot is anybody's.
        drop(conn);
        drop(self.slot.info.lock().take());
        self.slot.owner.free();
        self.lot.slots.give(self.token.index);
        self.lot.made_room();
        // Last, since it is the user's code.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(session))) {
            let why = crate::pool::message(&*panic);
            log::error!("{peer}: dropping the session panicked: {why}");
        }
    }
}
