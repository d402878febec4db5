//! The queue: connections that are ready, on their way to the workers, and the workers that sleep
//! until there are some.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use crossbeam_channel::{Receiver, Sender};
use crossbeam_utils::CachePadded;

use super::{BATCH, Token};
use crate::sys::Poller;

/// The resolution of `Queue::served_up_to`, in nanoseconds.
const RESOLUTION: u64 = 500_000;

/// A lot's queue, and the wake-up of the workers that sleep. Workers sleep in the poller. Where
/// only one thread may wait in the poller, they sleep on the queue.
pub(super) struct Queue {
    sender: Sender<Token>,
    receiver: Receiver<Token>,
    /// Wake-ups without an entry, where workers sleep on the queue.
    wake_ups: (Sender<()>, Receiver<()>),
    limit: usize,
    /// The length from which on no worker polls past the queue.
    past_limit: usize,
    poller: Arc<Poller>,
    is_closed: AtomicBool,
    /// The connections that became ready before this time are taken, to about half a millisecond.
    /// In the clock's nanoseconds. Kept only where there are several lots.
    served_up_to: AtomicU64,
    /// On cache lines of their own: they change with each sleep.
    sleep: CachePadded<Sleep>,
}

struct Sleep {
    /// The number of workers that sleep.
    sleepers: AtomicUsize,
    /// The wake-up of a worker is under way.
    wake_up_pending: AtomicBool,
}

impl Queue {
    /// Makes a queue for `limit` connections. `workers` is the number of the server's workers: each
    /// may serve a connection of this queue.
    pub(super) fn new(limit: usize, workers: usize, poller: Arc<Poller>) -> Self {
        // A thread that sends a batch has seen the queue below `past_limit` / 2. A worker that
        // polls past the queue has seen it below `past_limit`, and adds one connection. With this
        // capacity no send finds the channel full.
        let past_limit = 2 * (limit + BATCH);
        let capacity = past_limit + (workers + 3) * (BATCH + 1);
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        Self {
            sender,
            receiver,
            wake_ups: crossbeam_channel::bounded(1),
            limit,
            past_limit,
            poller,
            is_closed: AtomicBool::new(false),
            served_up_to: AtomicU64::new(0),
            sleep: CachePadded::new(Sleep {
                sleepers: AtomicUsize::new(0),
                wake_up_pending: AtomicBool::new(false),
            }),
        }
    }

    // ---- the length ----

    pub(super) fn len(&self) -> usize {
        self.receiver.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.len() < self.limit
    }

    /// Whether the queue has room for connections that the poller reports. A batch has room beyond
    /// the queue's limit: otherwise connections that always have more to do could fill the queue
    /// for ever.
    pub(super) fn has_room_for_batch(&self) -> bool {
        self.len() < self.limit + BATCH
    }

    /// How many connections the poller may report at once.
    pub(super) fn batch(&self) -> usize {
        let room = (self.limit + BATCH).saturating_sub(self.len());
        room.clamp(1, BATCH)
    }

    /// Whether the queue has no room for a batch, and a worker may poll past it.
    pub(super) fn may_poll_past(&self) -> bool {
        (self.limit + BATCH..self.past_limit).contains(&self.len())
    }

    // ---- entries ----

    /// Puts an entry on the queue. The caller wakes a worker afterwards. False if the channel is
    /// full, which its capacity excludes.
    pub(super) fn push(&self, token: Token) -> bool {
        self.sender.try_send(token).is_ok()
    }

    /// Takes the first entry off the queue.
    #[inline]
    pub(super) fn take(&self) -> Option<Token> {
        self.receiver.try_recv().ok()
    }

    /// Waits for an entry, where workers sleep on the queue. `None`: the worker was woken without
    /// one.
    pub(super) fn receive(&self) -> Option<Token> {
        crossbeam_channel::select! {
            recv(self.receiver) -> token => token.ok(),
            recv(self.wake_ups.1) -> _ => None,
        }
    }

    pub(super) fn served_up_to(&self) -> u64 {
        self.served_up_to.load(Relaxed)
    }

    /// An entry was taken that became ready at `ready_at`. Seldom a write, since all lots read
    /// this.
    pub(super) fn note_served(&self, ready_at: u64) {
        if ready_at > self.served_up_to() + RESOLUTION {
            self.served_up_to.store(ready_at, Relaxed);
        }
    }

    // ---- sleep ----

    pub(super) fn sleepers(&self) -> &AtomicUsize {
        &self.sleep.sleepers
    }

    pub(super) fn has_sleepers(&self) -> bool {
        self.sleep.sleepers.load(SeqCst) > 0
    }

    /// A worker is about to sleep. Returns the number of workers that sleep, with this one.
    pub(super) fn begin_sleep(&self) -> usize {
        self.sleep.sleepers.fetch_add(1, SeqCst) + 1
    }

    /// A worker sleeps no more. Returns the number of workers that still do.
    pub(super) fn end_sleep(&self) -> usize {
        self.sleep.sleepers.fetch_sub(1, SeqCst) - 1
    }

    /// The worker that was being woken is awake: the next wake-up wakes another one.
    pub(super) fn end_wake_up(&self) {
        self.sleep.wake_up_pending.store(false, SeqCst);
    }

    /// Wakes one worker that sleeps here for an entry of this queue. Where workers sleep on the
    /// queue, the entry itself wakes them. False if no worker sleeps here.
    #[inline]
    pub(super) fn wake_one(&self) -> bool {
        match Poller::SHARED {
            true => self.wake_for_another(),
            false => self.has_sleepers(),
        }
    }

    /// Wakes one worker that sleeps here for an entry of any queue, unless a wake-up is pending:
    /// the worker that is being woken wakes the next one. False if no worker sleeps here.
    #[inline]
    pub(super) fn wake_for_another(&self) -> bool {
        let has_sleepers = self.has_sleepers();
        if has_sleepers && !self.sleep.wake_up_pending.swap(true, SeqCst) {
            self.wake();
        }
        has_sleepers
    }

    /// Repeats a wake-up for a sleeping worker that has reached a thread which polls without
    /// sleeping.
    pub(super) fn repeat_wake_up(&self) {
        self.end_wake_up();
        if self.has_sleepers() {
            self.wake();
        }
    }

    fn wake(&self) {
        match Poller::SHARED {
            true => self.poller.wake(),
            // If the channel is full, a wake-up is under way.
            false => _ = self.wake_ups.0.try_send(()),
        }
    }

    // ---- the end ----

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(SeqCst)
    }

    /// Ends the workers: each one ends when it finds the queue empty. The drain is forced before,
    /// so that a thread that pushes an entry from here on closes the connection itself.
    pub(super) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        self.wake();
    }

    /// Called by a worker that ends: wakes the next one, so that it ends as well.
    pub(super) fn worker_ended(&self) {
        self.wake();
    }
}
