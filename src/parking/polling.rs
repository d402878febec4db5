//! Polling: a thread takes what the poller reports, and brings it to the workers. An idle worker
//! waits in the poller; busy workers, the acceptor and the keeper poll without waiting.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::{Lot, Token};
use crate::clock;
use crate::log;
use crate::stats::ThreadCounters;
use crate::sys::{Events, Poller};

/// How much output of other connections a thread writes before it goes on, in bytes. The last
/// connection may go beyond it.
const OUTPUT_BUDGET: u64 = 256 * 1024;

impl<S> Lot<S> {
    /// Waits as an idle worker, in the poller or on the queue. Returns a connection to serve.
    /// `None`: the worker has to check the queues again.
    pub(crate) fn wait_for_connection(
        &self,
        events: &mut Events,
        counters: &ThreadCounters,
    ) -> Option<Token> {
        let sleepers = self.queue.begin_sleep();
        // The count is incremented before this check of the queues. A thread that sends reads the
        // count after it has sent.
        let has_entries = Poller::SHARED && !self.queue.is_empty() || self.others_have_entries();
        let sleeps = !has_entries && !self.queue.is_closed();
        let mut received = None;
        match sleeps {
            true if Poller::SHARED => {
                let limit = if sleepers == 1 { self.queue.batch() } else { 1 };
                self.poll(events, limit, None);
            }
            true => received = self.queue.receive(),
            false => {}
        }
        self.leave_poller();
        self.queue.end_wake_up();
        if !Poller::SHARED || !sleeps {
            return received;
        }
        let mut reported = self.queue_reported(events);
        let first = reported.next()?;
        self.push_reported(reported, counters);
        Some(first)
    }

    /// Puts reported connections on the queue, if they need a worker. Their output is written at
    /// once, since every worker may be in a slow handler.
    pub(super) fn push_reported(
        &self,
        tokens: impl Iterator<Item = Token>,
        counters: &ThreadCounters,
    ) {
        if self.unwritten.load(SeqCst) == 0 {
            return self.push(tokens, counters);
        }
        let (mut tokens, before) = (tokens, counters.bytes_out());
        while counters.bytes_out() - before < OUTPUT_BUDGET {
            let Some(token) = tokens.next() else { return };
            if let Some(turn) = self.claim_queued(token, counters) {
                turn.advance();
            }
        }
        // Workers write the rest, in turn with the other connections.
        self.push(tokens, counters);
    }

    pub(super) fn leave_poller(&self) {
        if self.queue.end_sleep() == 0 {
            self.concurrency.ensure_scanning();
            if Poller::SHARED && !self.keeper.is_polling() {
                self.keeper.start_polling();
            }
        }
    }

    /// Puts the connections that the poller reports at the end of the queue, behind the connections
    /// that became ready earlier. Polls at most once in a tick of the coarse clock, unless
    /// `is_due`. Called by a worker while the queue is not empty, and by the acceptor.
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
        self.poll(events, self.queue.batch(), Some(Duration::ZERO));
        self.push_reported(self.queue_reported(events), counters);
        self.pass_wake_on(events);
    }

    /// Returns one connection that the poller reports, if the queue has no room: the queue may be
    /// full of connections that always have more to do.
    pub(crate) fn poll_past_queue(&self, events: &mut Events) -> Option<Token> {
        if !Poller::SHARED || !self.queue.may_poll_past() {
            return None;
        }
        self.poll(events, 1, Some(Duration::ZERO));
        let first = self.queue_reported(events).next();
        self.pass_wake_on(events);
        first
    }

    /// Called by a thread that has polled without sleeping: it may have received the wake-up of a
    /// worker that sleeps.
    pub(super) fn pass_wake_on(&self, events: &Events) {
        if Poller::SHARED && events.was_woken() {
            self.queue.repeat_wake_up();
        }
    }

    pub(super) fn poll(&self, events: &mut Events, limit: usize, timeout: Option<Duration>) {
        if let Err(error) = self.poller.wait(events, limit, timeout) {
            log::error!("cannot wait in the poller: {error}");
        }
    }

    /// Changes the reported connections from PARKED to QUEUED, and returns them. The caller has to
    /// bring them to a worker.
    pub(super) fn queue_reported<'a>(
        &'a self,
        events: &'a Events,
    ) -> impl Iterator<Item = Token> + 'a {
        let now = clock::nanos();
        events.iter().filter_map(move |event| {
            let token = Token::from_u64(event.token);
            let slot = self.slots.get(token.slot())?;
            let is_queued = slot.owner.handle_event(token.generation, event.hangup);
            is_queued.then(|| {
                slot.set_ready(now);
                token
            })
        })
    }
}
