//! Every interleaving of the parking lot's agreements, played through by loom.
//!
//! What is modelled, each with the fewest threads that can disagree:
//!
//! * **ownership**: the state machine itself, `src/parking/ownership.rs`, included here over loom's atomics, together
//!   with what the owner knows of its input, `src/connection/receive_state.rs`. Against an edge-triggered socket no byte
//!   and no end of the stream is lost, two threads never have the connection at once, and an event or entry of a former
//!   connection of the slot changes nothing.
//! * **other threads**: a thread that wakes a connection or sends to it (`Lot::wake`, `Lot::send`, `Turn::write_outbox`),
//!   against the owner, the poller, the keeper, and the slot's next connection. Each wake-up is followed by a call, each
//!   message is written, also when the client did not read before.
//! * **drain**: "parked, then looked whether the server drains" against "drains, then looked who is parked".
//! * **pause**: the pause of a restart with an exact state, `src/drain/pause.rs`, included here as well. No call overlaps
//!   with the export, which sees all changes, and no connection stays held (`Turn::hold`, `Lot::release_held`).
//! * **timers**: the same with a parked connection's deadline and the wheel (`Turn::park`, `Lot::set_timer`,
//!   `Lot::expire_slot`). Each parked connection is remembered in time, and by one entry of the wheel, however often its
//!   deadline moves.
//! * **waking**: the count of sleepers and the one pending wake-up of each lot (`Lot::wait_for_connection`, `push`,
//!   `wake_worker`, `poll_to_queue`, `pass_wake_on`, `end_threads`, `Lots::take_entry`, `wake_next`, and a worker's loop).
//!   Nothing stays on any queue while a worker of any lot sleeps, whichever other thread polls.
//!
//! The last two, and those of the drain and of held connections, are transcripts, since the lot they are taken from is
//! full of sockets: whoever changes one of those
//! methods changes its transcript here. Not modelled are the sockets and the poller (a counter of bytes; a list of
//! events from which each is taken once, and which wakes one waiter for each), the slot's other contents, and the free
//! list.
//!
//! loom takes `SeqCst` for acquire and release, and leaves the order of two plain stores open. The lot relies on more,
//! the one order of all operations. A read-modify-write always meets the newest value, so the atomics of this file make
//! every operation one. With that the models check the order of the steps, and not whether a weaker ordering would do.

use std::sync::atomic::Ordering::SeqCst;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Arc, Condvar, Mutex, Notify};
use loom::thread;

use atomic::AtomicU64;
use ownership::{Ownership, Readiness, Sent, Woken};
use pause::Pause;
use receive_state::ReceiveState;

#[path = "../src/parking/ownership.rs"]
#[allow(dead_code)] // The model has no queue time-out.
mod ownership;
#[path = "../src/drain/pause.rs"]
#[allow(dead_code)] // The model closes no connection.
mod pause;
#[path = "../src/connection/receive_state.rs"]
#[allow(dead_code)] // The model takes no socket out.
mod receive_state;

/// What `ownership` builds on.
mod atomic {
    use std::sync::atomic::Ordering;

    use loom::sync::atomic;

    /// loom's atomic in the one order of all `SeqCst` operations.
    pub(crate) struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.0.fetch_add(0, order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, order);
        }

        pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
            self.0.swap(value, order)
        }

        pub(crate) fn fetch_add(&self, count: u64, order: Ordering) -> u64 {
            self.0.fetch_add(count, order)
        }

        pub(crate) fn fetch_sub(&self, count: u64, order: Ordering) -> u64 {
            self.0.fetch_sub(count, order)
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(current, new, success, failure)
        }
    }
}

/// Plays every interleaving with at most so many preemptions. Threads that block or end may be followed by any other,
/// whatever the bound.
fn play(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

// ---- ownership ----

/// A connection in its slot, with a socket whose client only sends.
struct Slot {
    owner: Ownership,
    /// How many bytes have arrived, and whether the end of the stream is behind them.
    arrived: AtomicU64,
    has_ended: AtomicU64,
    /// Stands for all that only the owner may touch: loom reports two threads in it at once.
    exclusive: UnsafeCell<()>,
    /// How many bytes the owner has read. Atomic only so that safe code can change it.
    read: AtomicU64,
    /// What the owner knows of its input. Only the owner locks it.
    receive: std::sync::Mutex<ReceiveState>,
}

impl Slot {
    /// With a connection in hand, which has been read to the end.
    fn running() -> Self {
        let slot = Self {
            owner: Ownership::new(),
            arrived: AtomicU64::new(0),
            has_ended: AtomicU64::new(0),
            exclusive: UnsafeCell::new(()),
            read: AtomicU64::new(0),
            receive: std::sync::Mutex::new(ReceiveState::Emptied),
        };
        slot.owner.occupy();
        slot
    }

    fn parked() -> Self {
        let slot = Self::running();
        slot.touch();
        assert_eq!(slot.owner.park(false), Ok(()));
        slot
    }

    fn touch(&self) {
        self.exclusive.with_mut(|_| ());
    }

    /// `Lot::begin_turn`: the thread that begins a turn learns of the events.
    fn take(&self, readiness: Readiness) {
        self.touch();
        if readiness.readable {
            self.receive.lock().unwrap().on_event(readiness.hangup);
        }
    }

    /// `Connection::receive`, again and again: a read that does not fill its room is not followed by another, unless the
    /// end of the stream may be behind it.
    fn read(&self) {
        self.touch();
        let mut receive = self.receive.lock().unwrap();
        while !receive.is_emptied() && !receive.is_ended() {
            let ended = self.has_ended.load(SeqCst) == 1;
            let arrived = self.arrived.load(SeqCst);
            if self.read.swap(arrived, SeqCst) < arrived {
                receive.on_bytes(false);
            } else if ended {
                receive.on_end();
            } else {
                receive.on_would_block();
            }
        }
    }

    /// A worker's turn, which ends by parking.
    fn serve(&self) {
        loop {
            self.read();
            match self.owner.park(false) {
                Ok(()) => return,
                Err(readiness) => self.take(readiness),
            }
        }
    }

    /// A byte arrives, perhaps with the end of the stream, and a thread that waits in the poller sees the edge.
    fn arrive(&self, generation: u32, hangup: bool) {
        self.put(hangup);
        self.report(generation, hangup);
    }

    fn put(&self, ends: bool) {
        self.arrived.fetch_add(1, SeqCst);
        if ends {
            self.has_ended.store(1, SeqCst);
        }
    }

    fn report(&self, generation: u32, hangup: bool) {
        if self.owner.handle_event(generation, hangup) {
            self.start(generation);
        }
    }

    /// A worker takes the connection from the queue.
    fn start(&self, generation: u32) {
        let readiness = self.owner.claim_queued(generation);
        self.take(readiness.expect("what is on the queue has no other owner"));
        self.serve();
    }

    fn assert_all_read(&self) {
        assert!(self.owner.is_parked(self.owner.generation()));
        self.touch();
        let (read, arrived) = (self.read.load(SeqCst), self.arrived.load(SeqCst));
        assert_eq!(read, arrived, "an event was lost");
        let ended = self.receive.lock().unwrap().is_ended();
        assert_eq!(ended, self.has_ended.load(SeqCst) == 1, "the end was lost");
    }
}

/// One worker waits in the poller and another has the connection in hand when two bytes come, the second with the end
/// of the stream.
#[test]
fn no_event_is_lost() {
    play(4, || {
        let slot = Arc::new(Slot::running());
        let generation = slot.owner.generation();
        let poller = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                slot.arrive(generation, false);
                slot.arrive(generation, true);
            }
        });
        slot.serve();
        poller.join().unwrap();
        slot.assert_all_read();
    });
}

/// As above, with two workers in the poller that see one edge each, in any order.
#[test]
fn no_event_is_lost_by_two_leaders() {
    play(3, || {
        let slot = Arc::new(Slot::running());
        let generation = slot.owner.generation();
        let first = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                slot.put(false);
                let second = thread::spawn({
                    let slot = Arc::clone(&slot);
                    move || slot.arrive(generation, true)
                });
                slot.report(generation, false);
                second.join().unwrap();
            }
        });
        slot.serve();
        first.join().unwrap();
        slot.assert_all_read();
    });
}

/// The connection goes to the back of the queue while a byte comes.
#[test]
fn events_are_kept_in_the_queue() {
    play(4, || {
        let slot = Arc::new(Slot::running());
        let generation = slot.owner.generation();
        let poller = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.arrive(generation, false)
        });
        slot.read();
        slot.owner.queue();
        slot.start(generation);
        poller.join().unwrap();
        slot.assert_all_read();
    });
}

/// The keeper claims a parked connection to close it, and a byte comes: one of them has it.
#[test]
fn expiry_and_an_event_exclude_each_other() {
    play(4, || {
        let slot = Arc::new(Slot::parked());
        let generation = slot.owner.generation();
        let keeper = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                let claimed = slot.owner.claim_parked(generation);
                if claimed.is_some() {
                    slot.touch();
                    slot.owner.free();
                }
                claimed.is_some()
            }
        });
        slot.arrive(generation, false);
        let expired = keeper.join().unwrap();
        let closed = slot.owner.generation() != generation;
        // Closed when it was parked before the byte came, or again after that.
        assert_eq!(expired, closed);
        if !closed {
            slot.assert_all_read();
        }
    });
}

/// As above, but the keeper finds that the connection has got more time, and parks it again.
#[test]
fn no_event_is_lost_to_the_keeper() {
    play(4, || {
        let slot = Arc::new(Slot::parked());
        let generation = slot.owner.generation();
        let keeper = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                let Some(readiness) = slot.owner.claim_parked(generation) else {
                    return;
                };
                slot.take(readiness);
                if let Err(readiness) = slot.owner.park(false) {
                    slot.take(readiness);
                    slot.owner.queue();
                    slot.start(generation);
                }
            }
        });
        slot.arrive(generation, false);
        keeper.join().unwrap();
        slot.assert_all_read();
    });
}

/// An event of a connection that is closed, and whose slot is another's by now, does not even leave a trace.
#[test]
fn an_event_of_a_former_generation_does_nothing() {
    play(4, || {
        let slot = Arc::new(Slot::running());
        let former = slot.owner.generation();
        let poller = thread::spawn({
            let slot = Arc::clone(&slot);
            move || assert!(!slot.owner.handle_event(former, true), "nothing was parked")
        });
        slot.touch();
        slot.owner.free();
        slot.owner.occupy();
        slot.touch();
        assert_eq!(
            slot.owner.park(false),
            Ok(()),
            "an event of another connection"
        );
        poller.join().unwrap();
        assert!(slot.owner.is_parked(slot.owner.generation()));
    });
}

/// A connection is refused while it waits on the queue; its entry is still there when the slot's next one joins it.
#[test]
fn an_entry_of_a_former_generation_does_nothing() {
    play(4, || {
        let slot = Arc::new(Slot::running());
        let former = slot.owner.generation();
        slot.owner.queue();
        let keeper = thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                let refused = slot.owner.claim_queued(former).is_some();
                if refused {
                    slot.touch();
                    slot.owner.free();
                    slot.owner.occupy();
                    slot.owner.queue();
                }
                refused
            }
        });
        let served = slot.owner.claim_queued(former).is_some();
        if served {
            slot.touch();
        }
        let refused = keeper.join().unwrap();
        assert_ne!(served, refused, "one of them has the connection");
        let generation = slot.owner.generation();
        assert_eq!(refused, slot.owner.is_queued(generation));
        assert_eq!(served, slot.owner.is_running(generation));
    });
}

// ---- other threads ----

/// A connection that other threads wake, and send to.
struct Pushed {
    owner: Ownership,
    /// Stands for all that only the owner may touch.
    exclusive: UnsafeCell<()>,
    /// What a thread stores before it wakes the connection, and what the last call of the service has seen of it.
    stored: AtomicU64,
    seen: AtomicU64,
    /// How many messages were sent, and how many of them are written.
    sent: AtomicU64,
    written: AtomicU64,
    /// The client reads: the socket takes more.
    reads: AtomicU64,
}

impl Pushed {
    fn running() -> Self {
        let pushed = Self {
            owner: Ownership::new(),
            exclusive: UnsafeCell::new(()),
            stored: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            written: AtomicU64::new(0),
            reads: AtomicU64::new(1),
        };
        pushed.owner.occupy();
        pushed
    }

    fn touch(&self) {
        self.exclusive.with_mut(|_| ());
    }

    /// Writes the outbox. True if something is left that the socket does not take.
    fn flush(&self) -> bool {
        self.touch();
        let sent = self.sent.load(SeqCst);
        let is_blocked = self.reads.load(SeqCst) == 0 && sent > self.written.load(SeqCst);
        if !is_blocked {
            self.written.store(sent, SeqCst);
        }
        is_blocked
    }

    /// A worker's turn, or that of the thread that sends: a call of the service if one is due, then the output, then
    /// parking.
    fn serve(&self, mut is_woken: bool) {
        loop {
            let is_blocked = self.flush();
            if is_woken && !is_blocked {
                self.seen.store(self.stored.load(SeqCst), SeqCst);
                is_woken = false;
            }
            match self.owner.park(is_blocked) {
                Ok(()) if is_woken => {
                    // The owner keeps in mind that a call is due.
                    self.seen.store(u64::MAX, SeqCst);
                    return;
                }
                Ok(()) => return,
                Err(readiness) => is_woken |= readiness.woken,
            }
        }
    }

    fn wake(&self, generation: u32) -> Woken {
        self.stored.store(1, SeqCst);
        let woken = self.owner.wake(generation);
        if woken == Woken::Queued {
            self.start(generation);
        }
        woken
    }

    fn start(&self, generation: u32) {
        let readiness = self.owner.claim_queued(generation);
        let readiness = readiness.expect("what is on the queue has no other owner");
        // A call that was due before the connection was parked is still due.
        let was_due = self.seen.load(SeqCst) == u64::MAX;
        self.serve(readiness.woken || was_due);
    }

    fn send(&self, generation: u32) -> Sent {
        self.sent.fetch_add(1, SeqCst);
        let sent = self.owner.send(generation);
        if let Sent::Claimed(readiness) = sent {
            self.serve(readiness.woken);
        }
        sent
    }

    /// The client reads, and the poller reports it.
    fn read(&self, generation: u32) {
        self.reads.store(1, SeqCst);
        if self.owner.handle_event(generation, false) {
            self.start(generation);
        }
    }

    fn assert_done(&self) {
        assert!(self.owner.is_parked(self.owner.generation()));
        self.touch();
        assert_eq!(
            self.seen.load(SeqCst),
            self.stored.load(SeqCst),
            "a wake-up was lost"
        );
        assert_eq!(
            self.written.load(SeqCst),
            self.sent.load(SeqCst),
            "a message was lost"
        );
    }
}

#[test]
fn no_wake_up_is_lost() {
    play(4, || {
        let pushed = Arc::new(Pushed::running());
        let generation = pushed.owner.generation();
        let waker = thread::spawn({
            let pushed = Arc::clone(&pushed);
            move || assert_ne!(pushed.wake(generation), Woken::Gone)
        });
        pushed.serve(false);
        waker.join().unwrap();
        pushed.assert_done();
    });
}

#[test]
fn two_wake_ups_and_an_event_are_not_lost() {
    play(3, || {
        let pushed = Arc::new(Pushed::running());
        let generation = pushed.owner.generation();
        let threads = [(); 2].map(|()| {
            let pushed = Arc::clone(&pushed);
            thread::spawn(move || pushed.wake(generation))
        });
        pushed.serve(false);
        pushed.read(generation);
        for thread in threads {
            assert_ne!(thread.join().unwrap(), Woken::Gone);
        }
        pushed.assert_done();
    });
}

/// The client does not read at first. It reads while another thread wakes the connection and sends to it.
#[test]
fn nothing_is_lost_while_the_client_does_not_read() {
    play(3, || {
        let pushed = Arc::new(Pushed::running());
        let generation = pushed.owner.generation();
        pushed.reads.store(0, SeqCst);
        pushed.sent.store(1, SeqCst);
        pushed.serve(false);
        let other = thread::spawn({
            let pushed = Arc::clone(&pushed);
            move || {
                pushed.send(generation);
                pushed.wake(generation);
            }
        });
        pushed.read(generation);
        other.join().unwrap();
        pushed.assert_done();
    });
}

#[test]
fn no_message_is_lost() {
    play(3, || {
        let pushed = Arc::new(Pushed::running());
        let generation = pushed.owner.generation();
        let threads = [(); 2].map(|()| {
            let pushed = Arc::clone(&pushed);
            thread::spawn(move || pushed.send(generation))
        });
        pushed.serve(false);
        for thread in threads {
            assert_ne!(thread.join().unwrap(), Sent::Gone);
        }
        pushed.assert_done();
    });
}

/// A thread wakes the connection, or sends to it, while the keeper closes it and the slot gets another connection. The
/// other connection notices nothing.
#[test]
fn a_former_connection_cannot_be_woken() {
    for wakes in [true, false] {
        play(4, move || {
            let pushed = Arc::new(Pushed::running());
            let former = pushed.owner.generation();
            pushed.serve(false);
            let keeper = thread::spawn({
                let pushed = Arc::clone(&pushed);
                move || {
                    let is_closed = pushed.owner.claim_parked(former).is_some();
                    if is_closed {
                        pushed.touch();
                        pushed.owner.free();
                        pushed.owner.occupy();
                        pushed.touch();
                        assert_eq!(pushed.owner.park(false), Ok(()), "of the former connection");
                    }
                    is_closed
                }
            });
            let is_gone = match wakes {
                true => pushed.wake(former) == Woken::Gone,
                false => pushed.send(former) == Sent::Gone,
            };
            let is_closed = keeper.join().unwrap();
            assert!(is_closed || !is_gone);
            let generation = pushed.owner.generation();
            assert!(pushed.owner.is_parked(generation));
            assert_eq!(is_closed, generation != former);
            assert_eq!(
                pushed.owner.claim_parked(generation),
                Some(Readiness::default())
            );
        });
    }
}

// ---- drain ----

/// `Turn::park` against `Drain::close` and `Lot::close_idle`, while a byte comes in: nobody is left in the lot.
#[test]
fn a_drain_overlooks_nobody() {
    play(3, || {
        let slot = Arc::new(Slot::running());
        let draining = Arc::new(AtomicU64::new(0));
        let generation = slot.owner.generation();

        /// A worker that parks the connection, and looks whether somebody else might have overlooked it.
        fn work(slot: &Slot, draining: &AtomicU64) {
            loop {
                slot.read();
                match slot.owner.park(false) {
                    Ok(()) if draining.load(SeqCst) == 0 => return,
                    Ok(()) => return close(slot),
                    Err(readiness) => slot.take(readiness),
                }
            }
        }

        fn close(slot: &Slot) {
            // The model's slot is never used again, so that this generation is the connection's.
            if slot.owner.claim_parked(0).is_some() {
                slot.touch();
                slot.owner.free();
            }
        }

        let sweep = thread::spawn({
            let (slot, draining) = (Arc::clone(&slot), Arc::clone(&draining));
            move || {
                draining.store(1, SeqCst);
                close(&slot);
            }
        });
        let poller = thread::spawn({
            let (slot, draining) = (Arc::clone(&slot), Arc::clone(&draining));
            move || {
                slot.arrived.fetch_add(1, SeqCst);
                if slot.owner.handle_event(generation, false) {
                    slot.take(slot.owner.claim_queued(generation).expect("it is queued"));
                    work(&slot, &draining);
                }
            }
        });
        work(&slot, &draining);
        sweep.join().unwrap();
        poller.join().unwrap();
        assert_eq!(slot.owner.generation(), generation + 1, "nobody closed it");
    });
}

// ---- pause ----

/// A server of one worker: its word, the state of the application, and a connection that may be held.
struct Paused {
    pause: Pause,
    in_calls: AtomicU64,
    /// Stands for the state: loom reports a call and an export at once, and an export that may not see a call's change.
    state: UnsafeCell<u64>,
    owner: Ownership,
    is_held: AtomicU64,
    served: AtomicU64,
}

impl Paused {
    fn new() -> Self {
        let paused = Self {
            pause: Pause::new(),
            in_calls: AtomicU64::new(0),
            state: UnsafeCell::new(0),
            owner: Ownership::new(),
            is_held: AtomicU64::new(0),
            served: AtomicU64::new(0),
        };
        paused.pause.enable();
        paused.owner.occupy();
        paused
    }

    /// A turn with the connection, which this thread owns.
    fn serve(&self) {
        while !self.pause.begin_calls(&self.in_calls, || true) {
            // `Turn::hold`.
            self.is_held.store(1, SeqCst);
            self.owner.queue();
            if !self.pause.is_open() || self.owner.claim_queued(0).is_none() {
                return;
            }
        }
        self.state.with_mut(|_| ());
        self.served.fetch_add(1, SeqCst);
        self.pause.end_calls(&self.in_calls);
    }

    /// The restarter's part up to the export.
    fn export(&self) {
        self.pause.settle(true);
        self.pause.close();
        while self.in_calls.load(SeqCst) != 0 {
            thread::yield_now();
        }
        self.state.with(|_| ());
    }
}

/// The worker of a connection, against a restart that succeeds, or fails and is followed by another one.
fn play_pause(rounds: u64, succeeds: bool) {
    play(3, move || {
        let server = Arc::new(Paused::new());
        let worker = thread::spawn({
            let server = Arc::clone(&server);
            move || server.serve()
        });
        for round in 0..rounds {
            server.export();
            if !(succeeds && round + 1 == rounds) {
                server.pause.open();
                // `Lot::release_held`.
                let is_held = server.is_held.load(SeqCst) == 1;
                if is_held && server.owner.claim_queued(0).is_some() {
                    server.serve();
                }
            }
        }
        worker.join().unwrap();
        let is_held = server.owner.is_queued(0);
        let served = server.served.load(SeqCst);
        assert_eq!(served + u64::from(is_held), 1, "lost, or served twice");
        assert!(succeeds || served == 1, "it stays held");
    });
}

#[test]
fn no_call_overlaps_with_the_export() {
    play_pause(1, true);
}

#[test]
fn no_connection_stays_held() {
    play_pause(1, false);
    play_pause(2, false);
}

// ---- timers ----

const NEVER: u64 = u64::MAX;

/// One slot, and a wheel that is a list of the times at which it is to be looked at.
struct Expiry {
    owner: Ownership,
    deadline: AtomicU64,
    /// When the one entry that counts comes up.
    timer: AtomicU64,
    wheel: Mutex<Vec<u64>>,
}

impl Expiry {
    /// With a connection in hand whose slot has an entry in the wheel.
    fn running(entry: u64) -> Self {
        let expiry = Self {
            owner: Ownership::new(),
            deadline: AtomicU64::new(NEVER),
            timer: AtomicU64::new(entry),
            wheel: Mutex::new(vec![entry]),
        };
        expiry.owner.occupy();
        expiry
    }

    /// `Turn::park`.
    fn park(&self, due: u64) {
        self.deadline.store(due, SeqCst);
        assert_eq!(self.owner.park(false), Ok(()));
        self.set_timer(due);
    }

    /// `Lot::set_timer`.
    fn set_timer(&self, due: u64) {
        if self.timer.load(SeqCst) > due {
            let mut wheel = self.wheel.lock().unwrap();
            if self.timer.load(SeqCst) > due {
                self.timer.store(due, SeqCst);
                wheel.push(due);
            }
        }
    }

    /// `Lot::expire_slot`.
    fn expire(&self, now: u64) {
        let mut wheel = self.wheel.lock().unwrap();
        let (due, later): (Vec<u64>, Vec<u64>) = wheel.iter().partition(|&&entry| entry <= now);
        *wheel = later;
        drop(wheel);
        for entry in due {
            // An entry that another one has replaced since is none.
            if self
                .timer
                .compare_exchange(entry, NEVER, SeqCst, SeqCst)
                .is_err()
            {
                continue;
            }
            let generation = self.owner.generation();
            if !self.owner.is_parked(generation) {
                continue;
            }
            let deadline = self.deadline.load(SeqCst);
            if deadline > now {
                self.set_timer(deadline);
            } else if self.owner.claim_parked(generation).is_some() {
                // It may have got more time since that was seen.
                let deadline = self.deadline.load(SeqCst);
                if deadline > now {
                    self.park(deadline);
                } else {
                    self.owner.free();
                }
            }
        }
    }

    fn assert_remembered(&self) {
        if !self.owner.is_parked(self.owner.generation()) {
            return;
        }
        let deadline = self.deadline.load(SeqCst);
        let timer = self.timer.load(SeqCst);
        assert!(timer <= deadline, "{timer} is too late for {deadline}");
        let wheel = self.wheel.lock().unwrap();
        let counting = wheel.iter().filter(|&&entry| entry == timer).count();
        assert_eq!(counting, 1, "a timer at {timer}, in the wheel {wheel:?}");
    }
}

/// A worker parks a connection while the keeper has just taken out the slot's entry.
#[test]
fn a_parked_connection_has_a_timer() {
    play(4, || {
        let expiry = Arc::new(Expiry::running(10));
        let keeper = thread::spawn({
            let expiry = Arc::clone(&expiry);
            move || expiry.expire(10)
        });
        expiry.park(20);
        keeper.join().unwrap();
        assert!(expiry.owner.is_parked(expiry.owner.generation()));
        expiry.assert_remembered();
    });
}

/// As above, and the connection is taken, and parked with a shorter deadline, before the first worker has set the
/// timer for its longer one.
#[test]
fn a_late_timer_hides_no_earlier_one() {
    play(3, || {
        let expiry = Arc::new(Expiry::running(10));
        let generation = expiry.owner.generation();
        let other = thread::spawn({
            let expiry = Arc::clone(&expiry);
            move || {
                if expiry.owner.handle_event(generation, false) {
                    assert!(expiry.owner.claim_queued(generation).is_some());
                    expiry.park(20);
                }
            }
        });
        let keeper = thread::spawn({
            let expiry = Arc::clone(&expiry);
            move || expiry.expire(10)
        });
        expiry.deadline.store(30, SeqCst);
        if expiry.owner.park(false).is_ok() {
            expiry.set_timer(30);
        } else {
            expiry.park(20);
        }
        other.join().unwrap();
        keeper.join().unwrap();
        assert!(expiry.owner.is_parked(expiry.owner.generation()));
        expiry.assert_remembered();
    });
}

/// A connection that now waits for long and now for short leaves entries behind. They end when they come up.
#[test]
fn entries_do_not_multiply() {
    play(1, || {
        let expiry = Expiry::running(60);
        let generation = expiry.owner.generation();
        for now in (0..300).step_by(20) {
            expiry.park(now + 10);
            assert!(expiry.owner.claim_parked(generation).is_some());
            expiry.park(now + 60);
            expiry.expire(now);
            assert!(expiry.owner.claim_parked(generation).is_some());
            // No more than were put in during the longest wait.
            assert!(expiry.wheel.lock().unwrap().len() <= 5);
        }
    });
}

// ---- waking ----

/// What the poller reports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The eventfd: edge-triggered, so that it is reported once however often it was written to.
    Wake,
    Ready,
}

/// A lot's queue, as its length, and its poller.
struct Lot {
    queue: AtomicU64,
    sleepers: AtomicU64,
    wake_up_pending: AtomicU64,
    events: Mutex<Vec<Event>>,
    reported: Condvar,
}

/// The lots of a server.
struct Lots {
    lots: Vec<Lot>,
    is_closed: AtomicU64,
    /// The workers that do not rest, and how many may be.
    active: AtomicU64,
    allowed: AtomicU64,
    /// Connections that a worker has in hand, or had.
    taken: AtomicU64,
    all_taken: Notify,
}

impl Lot {
    fn new() -> Self {
        Self {
            queue: AtomicU64::new(0),
            sleepers: AtomicU64::new(0),
            wake_up_pending: AtomicU64::new(0),
            events: Mutex::new(Vec::new()),
            reported: Condvar::new(),
        }
    }

    // The poller.

    fn report(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        if event == Event::Ready || !events.contains(&Event::Wake) {
            events.push(event);
        }
        self.reported.notify_one();
    }

    fn poll(&self, most: usize) -> Vec<Event> {
        let mut events = self.events.lock().unwrap();
        while events.is_empty() {
            events = self.reported.wait(events).unwrap();
        }
        let most = most.min(events.len());
        events.drain(..most).collect()
    }

    // The queue.

    fn is_empty(&self) -> bool {
        self.queue.load(SeqCst) == 0
    }

    fn take(&self) -> bool {
        let queued = self.queue.load(SeqCst);
        let taken = |queued| {
            (self.queue)
                .compare_exchange(queued, queued - 1, SeqCst, SeqCst)
                .is_ok()
        };
        queued > 0 && (taken(queued) || self.take())
    }

    fn wake_one(&self) -> bool {
        let has_sleepers = self.sleepers.load(SeqCst) > 0;
        if has_sleepers && self.wake_up_pending.swap(1, SeqCst) == 0 {
            self.report(Event::Wake);
        }
        has_sleepers
    }
}

impl Lots {
    fn new(count: usize) -> Self {
        Self {
            lots: (0..count).map(|_| Lot::new()).collect(),
            is_closed: AtomicU64::new(0),
            active: AtomicU64::new(2),
            allowed: AtomicU64::new(2),
            taken: AtomicU64::new(0),
            all_taken: Notify::new(),
        }
    }

    /// The lots, beginning with this one.
    fn from(&self, lot: usize) -> impl Iterator<Item = &Lot> {
        let count = self.lots.len();
        (0..count).map(move |i| &self.lots[(lot + i) % count])
    }

    fn push(&self, lot: usize, count: u64) {
        if count > 0 {
            self.lots[lot].queue.fetch_add(count, SeqCst);
            self.wake_worker(lot);
        }
    }

    fn wake_worker(&self, lot: usize) {
        let _ = self.from(lot).any(Lot::wake_one);
    }

    fn wake_next(&self) {
        for lot in 0..self.lots.len() {
            self.wake_next_of(lot);
        }
    }

    fn wake_next_of(&self, lot: usize) {
        if !self.lots[lot].is_empty() {
            self.wake_worker(lot);
        }
    }

    /// True if it brings a connection to serve. The last idle worker of a lot takes all that is there.
    fn wait_for_connection(&self, home: usize) -> bool {
        let lot = &self.lots[home];
        let sleepers = lot.sleepers.fetch_add(1, SeqCst) + 1;
        let has_entries = self.from(home).any(|lot| !lot.is_empty());
        let mut events = Vec::new();
        if !has_entries && self.is_closed.load(SeqCst) == 0 {
            events = lot.poll(if sleepers == 1 { usize::MAX } else { 1 });
        }
        lot.sleepers.fetch_sub(1, SeqCst);
        lot.wake_up_pending.store(0, SeqCst);
        let ready = count_ready(&events);
        self.push(home, ready.saturating_sub(1));
        ready > 0
    }

    /// Whoever looks into the poller without waiting, a worker or the keeper.
    fn poll_to_queue(&self, lot: usize) {
        let events: Vec<Event> = self.lots[lot].events.lock().unwrap().drain(..).collect();
        self.push(lot, count_ready(&events));
        if events.contains(&Event::Wake) {
            self.pass_wake_on(lot);
        }
    }

    fn pass_wake_on(&self, lot: usize) {
        let lot = &self.lots[lot];
        lot.wake_up_pending.store(0, SeqCst);
        if lot.sleepers.load(SeqCst) > 0 {
            lot.report(Event::Wake);
        }
    }

    fn end_threads(&self) {
        self.is_closed.store(1, SeqCst);
        for lot in &self.lots {
            lot.report(Event::Wake);
        }
    }

    // The workers.

    /// The lot from which an entry was taken.
    fn take_entry(&self, home: usize) -> Option<usize> {
        let taken = self.from(home).position(Lot::take)?;
        Some((home + taken) % self.lots.len())
    }

    /// Takes one connection, from a queue or else from the poller, and has it in hand until all `total` are. `entries`
    /// counts them since the worker's last wait.
    fn serve_one_of(&self, home: usize, total: u64, entries: &mut usize) {
        let lot = loop {
            if let Some(lot) = self.take_entry(home) {
                break lot;
            }
            *entries = 0;
            if self.wait_for_connection(home) {
                break home;
            }
        };
        *entries += 1;
        if *entries == 1 || lot != home {
            self.wake_next();
        } else {
            self.wake_next_of(lot);
        }
        if self.taken.fetch_add(1, SeqCst) + 1 == total {
            self.all_taken.notify();
        }
    }

    /// Takes one connection, unless this worker rests, or the end comes.
    fn serve_or_rest(&self, home: usize) {
        loop {
            if self.rest_if_surplus() {
                return;
            }
            let is_closed = self.is_closed.load(SeqCst) == 1;
            if self.take_entry(home).is_some() {
                return self.all_taken.notify();
            }
            if is_closed {
                return self.lots[home].report(Event::Wake);
            }
            if self.wait_for_connection(home) {
                return self.all_taken.notify();
            }
        }
    }

    fn rest_if_surplus(&self) -> bool {
        if self.active.load(SeqCst) <= self.allowed.load(SeqCst) {
            return false;
        }
        self.wake_next();
        let active = self.active.load(SeqCst);
        active > self.allowed.load(SeqCst)
            && (self.active)
                .compare_exchange(active, active - 1, SeqCst, SeqCst)
                .is_ok()
    }

    /// A worker that finds nothing to do until the end.
    fn idle(&self, home: usize) {
        while self.is_closed.load(SeqCst) == 0 {
            self.wait_for_connection(home);
        }
        self.lots[home].report(Event::Wake);
    }
}

fn count_ready(events: &[Event]) -> u64 {
    events
        .iter()
        .filter(|&&event| event == Event::Ready)
        .count() as u64
}

/// Plays two connections that come, as `come` says, while two workers of these lots go to sleep. If one worker took
/// none, it would sleep for good, which loom reports as a deadlock.
fn play_two_workers(homes: [usize; 2], come: impl Fn(&Lots) + Send + Sync + 'static) {
    play(3, move || {
        let lots = Arc::new(Lots::new(homes[1] + 1));
        let workers = homes.map(|home| {
            let lots = Arc::clone(&lots);
            thread::spawn(move || lots.serve_one_of(home, 2, &mut 0))
        });
        come(&lots);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn nothing_is_queued_while_a_worker_sleeps() {
    play_two_workers([0, 0], |lots| {
        lots.push(0, 1);
        lots.push(0, 1);
    });
}

#[test]
fn nothing_is_queued_while_a_worker_sleeps_beside_the_poller() {
    play_two_workers([0, 0], |lots| {
        lots.lots[0].report(Event::Ready);
        lots.push(0, 1);
    });
}

/// One worker may take both from the poller, and passes the second on.
#[test]
fn no_batch_is_kept_from_a_worker_that_sleeps() {
    play_two_workers([0, 0], |lots| {
        lots.lots[0].report(Event::Ready);
        lots.lots[0].report(Event::Ready);
    });
}

/// Each lot has one worker. Both entries are in one lot, or one in each.
#[test]
fn nothing_is_queued_in_one_lot_while_a_worker_of_another_sleeps() {
    for second in [0, 1] {
        play_two_workers([0, 1], move |lots| {
            lots.push(0, 1);
            lots.push(second, 1);
        });
    }
}

/// The only worker of the first lot takes both from its poller, and passes the second on. If it takes only the first
/// one, the keeper of the lot polls.
#[test]
fn no_batch_is_kept_from_a_worker_of_another_lot() {
    play_two_workers([0, 1], |lots| {
        lots.lots[0].report(Event::Ready);
        lots.lots[0].report(Event::Ready);
        lots.poll_to_queue(0);
    });
}

/// The first lot has no worker that sleeps. The worker of the second lot that is woken may take the entry of either
/// lot, and the other worker the other one.
#[test]
fn no_wake_up_for_another_lot_is_lost() {
    for second in [0, 1] {
        play_two_workers([1, 1], move |lots| {
            lots.push(0, 1);
            lots.push(second, 1);
        });
    }
}

/// The worker that is woken may be one too many, and rest: the other one takes the connection, also that of another
/// lot.
#[test]
fn no_wake_up_is_lost_to_a_worker_that_rests() {
    for count in [1, 2] {
        play(3, move || {
            let lots = Arc::new(Lots::new(count));
            let workers = [(); 2].map(|()| {
                let lots = Arc::clone(&lots);
                thread::spawn(move || lots.serve_or_rest(count - 1))
            });
            lots.allowed.store(1, SeqCst);
            lots.push(0, 1);
            lots.all_taken.wait();
            lots.end_threads();
            for worker in workers {
                worker.join().unwrap();
            }
        });
    }
}

/// A busy worker looks into the poller, between two connections that it puts on the queue, and may take the wake-up out
/// that was meant for the sleeping one. Then it goes on with a handler that lasts until the other has served both.
#[test]
fn a_poll_swallows_no_wake_up() {
    play(5, || {
        let lots = Arc::new(Lots::new(1));
        let worker = thread::spawn({
            let lots = Arc::clone(&lots);
            move || {
                // It has just seen the queue empty.
                lots.wait_for_connection(0);
                let mut entries = 0;
                lots.serve_one_of(0, 2, &mut entries);
                lots.serve_one_of(0, 2, &mut entries);
            }
        });
        lots.push(0, 1);
        lots.poll_to_queue(0);
        lots.push(0, 1);
        lots.all_taken.wait();
        worker.join().unwrap();
    });
}

/// As above, and the worker that sleeps is of another lot, whose keeper polls.
#[test]
fn a_poll_of_another_lot_swallows_no_wake_up() {
    play(3, || {
        let lots = Arc::new(Lots::new(2));
        let worker = thread::spawn({
            let lots = Arc::clone(&lots);
            move || lots.serve_one_of(1, 1, &mut 0)
        });
        let keeper = thread::spawn({
            let lots = Arc::clone(&lots);
            move || lots.poll_to_queue(1)
        });
        lots.push(0, 1);
        worker.join().unwrap();
        keeper.join().unwrap();
    });
}

/// The end wakes every worker, one after the other, also while the keeper looks.
#[test]
fn the_end_wakes_every_worker() {
    play(2, || {
        let lots = Arc::new(Lots::new(1));
        let workers = [(); 2].map(|()| {
            let lots = Arc::clone(&lots);
            thread::spawn(move || lots.idle(0))
        });
        let keeper = thread::spawn({
            let lots = Arc::clone(&lots);
            move || lots.poll_to_queue(0)
        });
        lots.end_threads();
        for worker in workers {
            worker.join().unwrap();
        }
        keeper.join().unwrap();
    });
}
