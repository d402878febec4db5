//! The end of a server: closes connections, and ends the threads.

use std::sync::atomic::Ordering::SeqCst;

use super::{Lot, MID_MESSAGE, RoomRequest, Stage};
use crate::sys;

impl<S> Lot<S> {
    /// Closes the connections that wait for a message, once the drain has begun. A connection whose
    /// message has arrived is brought to a worker, and so is one whose service has to be told of the
    /// drain. A connection in the middle of a message stays.
    pub(crate) fn close_idle(&self) {
        let counters = &self.counters.main_thread;
        for (token, _) in self.tokens() {
            let Some(mut turn) = self.claim_parked(token, counters) else {
                continue;
            };
            if !turn.is_between_messages() || turn.needs_drain_call() {
                turn.park_again();
            } else if turn.read_new_input() {
                turn.bring_to_worker();
            }
        }
    }

    /// Closes the connections that linger.
    pub(crate) fn close_lingering(&self) {
        for (token, slot) in self.tokens() {
            // A connection between two messages does not linger.
            if slot.since.load(SeqCst) & MID_MESSAGE == 0 {
                continue;
            }
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

    /// Whether the workers have to end.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Ends the workers and the keeper. The drain is forced already.
    pub(crate) fn end_threads(&self) {
        self.queue.close();
        self.concurrency.close();
        self.keeper.end();
        self.poller.wake();
    }

    /// Called by a worker that ends: wakes the next worker, so that the next worker ends as well.
    pub(crate) fn worker_ended(&self) {
        self.queue.worker_ended();
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
                    let _ = sys::socket::end(&info.socket);
                    drop(info);
                    self.room.notify(RoomRequest::End);
                }
            }
        }
    }
}
