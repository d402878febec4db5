//! The lots of a server: one for each group of workers.
//!
//! One lot carries some 30 to 50 cores of the fastest handlers, see the table below. On a machine
//! with more cores the workers are split into groups. Each group has a whole lot: a queue, a
//! poller, slots, timers and a keeper. A connection stays in its lot until it ends, and its
//! [`Token`] says which lot that is.
//!
//! # What the lots share
//!
//! - **New connections** go to the lots in turn, so that all lots have about as many. A lot with a
//!   worker that sleeps comes before the others, and a lot with room on its queue before a full
//!   one: a connection stays in its lot, so it should not begin in one whose workers are all
//!   blocked.
//! - **Workers steal.** A worker that finds its own queue empty takes an entry of another lot, and
//!   serves that connection in its lot. It also does so before its own entries, if the other lot is
//!   *behind*: if the last entry taken there became ready earlier, by more than [`TOLERANCE`], than
//!   the last entry taken here. So connections wait equally long in all lots, also when the workers
//!   of one lot are stuck. It is not known when the first entry of a queue became ready, so a lot
//!   may be ahead of the others by one connection.
//! - **Limits** hold in total. Each lot has its share of the queue, the cores and the workers.
//!
//! # No entry waits while a worker sleeps
//!
//! The agreement of one lot (see "Who wakes whom" in the parent module) holds across the lots:
//!
//! 1. A thread that has put an entry on a queue wakes a worker that sleeps in that lot, or else in
//!    another one. It reads the counts of sleepers after it has pushed.
//! 2. A worker counts itself as a sleeper, and then reads all queues, before it sleeps. So either
//!    the worker sees the entry, or the thread sees the worker.
//! 3. The thread sends no wake-up to a lot where one is pending. The worker that is being woken
//!    ends the pending state, and then reads all queues before it serves: it takes an entry itself,
//!    and wakes the next worker for further ones, in whichever lot they are ([`Lots::wake_next`]).
//!    So does a worker that is about to rest.
//!
//! Resting workers do not sleep in this sense. While a worker of their lot sleeps, that worker
//! takes what other lots leave. When the last one leaves the poller, the standby begins to scan,
//! and calls more workers back if the turns are long ([`concurrency`](super::concurrency)),
//! whichever lot the turns belong to. So an entry waits for at most some milliseconds while any
//! worker rests and all others are blocked.
//!
//! Connections that are ready and still in the poller of a lot whose workers are all busy come to
//! its queue by its keeper: at each tick of the coarse clock, as long as a worker of another lot
//! sleeps.
//!
//! # What a request writes that other threads read
//!
//! Counted in the code, for a request on an open connection whose client waits for the response:
//!
//! | what | when | shared by |
//! |---|---|---|
//! | the client's socket | each request | the worker and the network's interrupt |
//! | `ep->lock` and the poller's ready list | each arriving packet; each `epoll_wait` | the lot |
//! | `ep->mtx` | each `epoll_wait`: one in 64 requests of a worker, or one per wait | the lot |
//! | head of the queue's channel | a compare-and-swap for each entry that is taken | the lot |
//! | tail of the channel | each entry; up to 256 at once, so that the line moves once | the lot |
//! | the count of sleepers, the pending wake-up | four times for a wait | the lot |
//! | the slot's state and times | three compare-and-swaps | a line for each connection |
//! | counters | each request | none: 128-byte lines for each thread |
//! | `served_up_to` | each half millisecond, with several lots | all lots |
//!
//! A request takes no lock of this crate. Fields that change with each connection, but not with
//! each request, are on other cache lines. All other fields of a lot change at most once in a tick.
//!
//! On a large machine, each write to a cache line that all cores write costs 50 to 100 ns. A
//! request writes two to three such lines: the head of the channel, the stamp of the channel's
//! entry, and a part of the poller's lock. For 100 to 200 ns per request, the other cores of the
//! lot wait for these lines. So one lot serves at most 5 to 10 million requests per second. A
//! request takes about 5 us of CPU, most of it in the kernel, plus the handler:
//!
//! | cores | requests of 1 us handlers that the cores carry | one lot | a lot for 32 cores |
//! |---|---|---|---|
//! | 16 | 2.7 million/s | carries them | one lot |
//! | 64 | 11 million/s | is at its limit: 30 to 50 cores' work | two lots, 5.3 million/s each |
//! | 128 | 21 million/s | a quarter to a half of them | four lots, 5.3 million/s each |
//!
//! This is an estimate. It was not measured on such machines.

use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::expiry::IdleConnection;
use super::mover_queue::MoverQueue;
use super::queue::Queue;
use super::room::Room;
use super::{Lot, LotParts, NOT_READY, Token};
use crate::connection::{ConnectionInfo, Limits, WakeTarget};
use crate::drain::Drain;
use crate::stats::Counters;
use crate::sys::{Events, Poller};

/// The most lots of a server. A token has 8 bits for the number of the lot, so at most 256.
pub(crate) const MOST_LOTS: usize = 128;

/// A lot is behind another one if it serves connections that became ready earlier, by more than
/// this many nanoseconds.
const TOLERANCE: u64 = 1_000_000;

/// All lots of a server.
pub(crate) struct Lots<S> {
    pub(super) lots: Box<[Lot<S>]>,
    /// The lot that the next connection is offered to first, modulo the number of lots.
    pub(super) next: AtomicUsize,
    /// The limit of all queues together.
    queue_limit: usize,
    pub(super) mover: Arc<OnceLock<Arc<MoverQueue>>>,
    pub(crate) room: Arc<Room>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) counters: Arc<Counters>,
}

/// The settings of all lots together.
pub(crate) struct LotsOptions {
    /// The number of lots: at least 1, at most the number of workers and [`MOST_LOTS`].
    pub(crate) lots: usize,
    pub(crate) workers: usize,
    /// The number of CPU cores.
    pub(crate) cores: usize,
    pub(crate) queue_limit: usize,
    pub(crate) queue_timeout: Option<Duration>,
    pub(crate) limits: Limits,
    pub(crate) refusal: Vec<u8>,
    /// The service handles expiries.
    pub(crate) handles_expiry: bool,
}

impl<S: Send + 'static> Lots<S> {
    pub(crate) fn new(options: LotsOptions) -> std::io::Result<Arc<Self>> {
        let count = options.lots;
        let share = |total, index| share(total, index, count);
        let pollers = (0..count).map(|_| Poller::new().map(Arc::new));
        let pollers = pollers.collect::<std::io::Result<Vec<_>>>()?;
        let queues = pollers.iter().enumerate().map(|(index, poller)| {
            let limit = share(options.queue_limit, index).max(1);
            Arc::new(Queue::new(limit, options.workers, Arc::clone(poller)))
        });
        let queues: Vec<_> = queues.collect();
        Ok(Arc::new_cyclic(|lots: &Weak<Self>| {
            let wakers: Weak<dyn WakeTarget> = Weak::<Self>::clone(lots);
            Self::with_queues(options, pollers, &queues, &wakers)
        }))
    }

    fn with_queues(
        options: LotsOptions,
        pollers: Vec<Arc<Poller>>,
        queues: &[Arc<Queue>],
        wakers: &Weak<dyn WakeTarget>,
    ) -> Self {
        let count = options.lots;
        let share = |total, index| share(total, index, count);
        let mover = Arc::default();
        let room = Arc::default();
        let drain = Arc::default();
        let counters = Arc::new(Counters::new(options.workers, count));
        let mut workers = 0..0;
        let lots = pollers.into_iter().enumerate().map(|(index, poller)| {
            workers = workers.end..workers.end + share(options.workers, index);
            let others = (1..count).map(|other| Arc::clone(&queues[(index + other) % count]));
            Lot::new(LotParts {
                index,
                workers: workers.clone(),
                cores: share(options.cores, index).max(1),
                poller,
                queue: Arc::clone(&queues[index]),
                others: others.collect(),
                queue_timeout: options.queue_timeout,
                limits: options.limits.clone(),
                refusal: options.refusal.clone(),
                handles_expiry: options.handles_expiry,
                wakers: wakers.clone(),
                mover: Arc::clone(&mover),
                room: Arc::clone(&room),
                drain: Arc::clone(&drain),
                counters: Arc::clone(&counters),
            })
        });
        Self {
            lots: lots.collect(),
            next: AtomicUsize::new(0),
            queue_limit: options.queue_limit,
            mover,
            room,
            drain,
            counters,
        }
    }
}

impl<S> Lots<S> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lot<S>> {
        self.lots.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.lots.len()
    }

    /// The lot of a connection.
    #[inline]
    pub(crate) fn of(&self, token: Token) -> Option<&Lot<S>> {
        self.lots.get(token.lot())
    }

    // ---- the workers ----

    /// The lot of a worker's group.
    pub(crate) fn home(&self, worker: usize) -> &Lot<S> {
        let mut lots = self.lots.iter();
        let home = lots.find(|lot| lot.workers.contains(&worker));
        home.unwrap_or(&self.lots[0])
    }

    /// Takes an entry for a worker: of its own lot, or of another one.
    #[inline]
    pub(crate) fn take_entry(&self, home: &Lot<S>) -> Option<Token> {
        match self.lots.len() {
            1 => home.queue.take(),
            _ => self.take_from_any(home),
        }
    }

    fn take_from_any(&self, home: &Lot<S>) -> Option<Token> {
        let served = home.queue.served_up_to();
        let others = (1..self.lots.len()).map(|i| &self.lots[(home.index + i) % self.lots.len()]);
        // The lot that is most behind. Otherwise one lot that is behind would keep the next waiting.
        let behind = others
            .clone()
            .filter(|lot| lot.queue.served_up_to() + TOLERANCE < served && !lot.queue.is_empty())
            .min_by_key(|lot| lot.queue.served_up_to());
        let mut lots = behind.into_iter().chain(iter::once(home)).chain(others);
        let (lot, token) = lots.find_map(|lot| Some((lot, lot.queue.take()?)))?;
        lot.note_served(token);
        Some(token)
    }

    /// Wakes a worker that sleeps for each lot whose queue is not empty. Called by a worker that
    /// was woken, before it serves or rests.
    pub(crate) fn wake_next(&self) {
        self.lots.iter().for_each(Lot::wake_next);
    }

    // ---- the acceptor ----

    /// Gives a new connection to a lot, see [`Lot::add_connection`]. Called by the acceptor, with
    /// room for events.
    pub(crate) fn add_connection(&self, info: ConnectionInfo, may_park: bool, events: &mut Events) {
        let count = self.lots.len();
        let first = match count {
            1 => 0,
            _ => self.next.fetch_add(1, Relaxed),
        };
        let mut lots = (0..count).map(|i| &self.lots[first.wrapping_add(i) % count]);
        let lot = match count {
            1 => None,
            _ => (lots.clone().find(|lot| lot.queue.has_sleepers()))
                .or_else(|| lots.clone().find(|lot| lot.queue.has_room())),
        };
        if let Some(lot) = lot.or_else(|| lots.next()) {
            lot.add_connection(info, may_park, events);
        }
    }

    /// How many connections wait for a worker.
    pub(crate) fn queue_len(&self) -> usize {
        self.lots.iter().map(Lot::queue_len).sum()
    }

    /// Whether the queue's limit allows one more connection to wait for its first service. The
    /// connections that were served before do not count: clients that stay connected must not keep
    /// all others out.
    pub(crate) fn has_room_for_newcomer(&self) -> bool {
        let newcomers = || self.lots.iter().map(Lot::newcomers).sum::<usize>();
        self.queue_len() < self.queue_limit || newcomers() < self.queue_limit
    }

    /// Whether some queue has room for a batch of connections.
    pub(crate) fn has_room_for_batch(&self) -> bool {
        self.lots.iter().any(Lot::has_room_for_batch)
    }

    /// The parked connection that has been idle for longest, see [`Lot::longest_idle`]. `most`
    /// bounds the search in each lot.
    pub(crate) fn longest_idle(
        &self,
        most: usize,
        mid_message_too: bool,
    ) -> Option<IdleConnection> {
        let with_room = self.lots.iter().filter(|lot| lot.has_room_for_batch());
        let idle = with_room.filter_map(|lot| lot.longest_idle(most, mid_message_too));
        idle.min_by_key(|idle| idle.since)
    }

    /// See [`Lot::begin_idle_pass`].
    pub(crate) fn begin_idle_pass(&self) {
        self.lots.iter().for_each(Lot::begin_idle_pass);
    }

    /// Whether the searches since the pass began have looked at all connections that may be shed.
    pub(crate) fn is_idle_pass_over(&self) -> bool {
        let mut with_room = self.lots.iter().filter(|lot| lot.has_room_for_batch());
        with_room.all(Lot::is_idle_pass_over)
    }

    /// Whether the connection has been parked all the time since it was found, and may be shed.
    pub(crate) fn is_still_idle(&self, idle: &IdleConnection) -> bool {
        self.of(idle.token)
            .is_some_and(|lot| lot.has_room_for_batch() && lot.is_still_idle(idle))
    }

    /// See [`Lot::shed`].
    pub(crate) fn shed(&self, idle: &IdleConnection) -> bool {
        self.of(idle.token).is_some_and(|lot| lot.shed(idle))
    }

    // ---- the main thread ----

    /// See [`Lot::shorten_idle`].
    pub(crate) fn shorten_idle(&self) {
        self.lots.iter().for_each(Lot::shorten_idle);
    }

    /// See [`Lot::close_idle`].
    pub(crate) fn close_idle(&self) {
        self.lots.iter().for_each(Lot::close_idle);
    }

    /// See [`Lot::close_lingering`].
    pub(crate) fn close_lingering(&self) {
        self.lots.iter().for_each(Lot::close_lingering);
    }

    /// See [`Lot::close_all`].
    pub(crate) fn close_all(&self) {
        self.lots.iter().for_each(Lot::close_all);
    }

    /// See [`Lot::drop_left_sessions`].
    pub(crate) fn drop_left_sessions(&self) {
        self.lots.iter().for_each(Lot::drop_left_sessions);
    }

    /// See [`Lot::end_threads`].
    pub(crate) fn end_threads(&self) {
        self.lots.iter().for_each(Lot::end_threads);
    }

    /// Calls `read` with the info of the connection with this token, if the connection is still
    /// open.
    pub(crate) fn with_info<T>(
        &self,
        token: u64,
        read: impl FnOnce(&ConnectionInfo) -> T,
    ) -> Option<T> {
        let token = Token::from_u64(token);
        self.of(token)?.with_info(token, read)
    }
}

impl<S: Send> WakeTarget for Lots<S> {
    fn wake(&self, token: u64) -> bool {
        let token = Token::from_u64(token);
        self.of(token).is_some_and(|lot| lot.wake(token))
    }

    fn send(&self, token: u64) {
        let token = Token::from_u64(token);
        if let Some(lot) = self.of(token) {
            lot.send(token);
        }
    }

    fn break_off(&self, token: u64) {
        let token = Token::from_u64(token);
        if let Some(lot) = self.of(token) {
            lot.break_off(token);
        }
    }
}

impl<S> Lot<S> {
    /// Wakes a worker that sleeps: one of this lot, or else one of another lot.
    #[inline]
    pub(super) fn wake_worker(&self) {
        if !self.queue.wake_one() && !self.others.is_empty() {
            let _ = self.others.iter().any(|queue| queue.wake_for_another());
        }
    }

    /// The entries that became ready before this one are taken.
    fn note_served(&self, token: Token) {
        let slot = self.slots.get(token.slot());
        let ready_at = slot.map_or(NOT_READY, |slot| slot.ready_at.load(Relaxed));
        if ready_at != NOT_READY {
            self.queue.note_served(ready_at);
        }
    }

    /// Whether a connection waits on the queue of this or of another lot.
    #[inline]
    pub(crate) fn has_entries(&self) -> bool {
        !self.queue.is_empty() || self.others_have_entries()
    }

    #[inline]
    pub(super) fn others_have_entries(&self) -> bool {
        self.others.iter().any(|queue| !queue.is_empty())
    }

    /// Whether a worker of another lot sleeps, who could serve what this lot's keeper polls.
    pub(super) fn others_sleep(&self) -> bool {
        self.others.iter().any(|queue| queue.has_sleepers())
    }
}

/// The share of one of `count` lots in a total. The shares differ by at most 1.
fn share(total: usize, index: usize, count: usize) -> usize {
    total / count + usize::from(index < total % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (total, count, shares) in [
            (8, 1, &[8][..]),
            (8, 3, &[3, 3, 2]),
            (2, 3, &[1, 1, 0]),
            (usize::MAX, 2, &[usize::MAX / 2 + 1, usize::MAX / 2]),
        ] {
            let found: Vec<_> = (0..count).map(|index| share(total, index, count)).collect();
            assert_eq!(found, shares, "{total} in {count}");
        }
    }
}
