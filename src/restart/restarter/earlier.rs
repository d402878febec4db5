//! The earlier generations that still drain.
//!
//! A process can be replaced while generations before it have not finished their requests. At most
//! [`max_draining`](crate::Restart::max_draining) generations drain at once: a restart beyond that
//! waits, so that no restart cuts off the requests of an earlier one.
//!
//! The end of a generation is an end-of-file. Each process holds one end of a socket pair for as
//! long as it serves or drains, and passes the other end to its successor, with those of the
//! generations before it. So a process still sees the end of each generation when the generations
//! in between have ended.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{EARLIER, Restarter, ServerStage};
use crate::clock::Deadline;
use crate::log;
use crate::notify;
use crate::restart::inherited::PassedGeneration;
use crate::restart::link::{Incoming, Link};
use crate::sys::{self, Descriptor, Poller};

/// A generation before this one, which serves or drains.
pub(super) struct Earlier {
    generation: u64,
    /// Its end-of-file is the end of the generation.
    link: Link,
    /// When the drain is over at the latest, by the system's monotonic clock in nanoseconds. `None`
    /// for the predecessor until it has handed over, and for a drain without a limit.
    drains_until: Option<u64>,
}

impl Earlier {
    pub(super) fn watch(passed: PassedGeneration, poller: &Arc<Poller>) -> io::Result<Self> {
        let PassedGeneration {
            generation,
            socket,
            drains_until,
        } = passed;
        let link = Link::new(socket, poller, EARLIER.saturating_add(generation))?;
        Ok(Self {
            generation,
            link,
            drains_until,
        })
    }

    fn deadline(&self, now: Instant) -> Deadline {
        let Some(until) = self.drains_until else {
            return Deadline::NEVER;
        };
        let left = until.saturating_sub(sys::clock::monotonic_nanos());
        Deadline::after(now, Duration::from_nanos(left))
    }

    fn has_ended(&self) -> bool {
        while let Some(incoming) = self.link.receive() {
            if let Incoming::End = incoming {
                return true;
            }
        }
        false
    }
}

/// The record of an earlier generation for a successor: the number, the socket, and the deadline of
/// the drain.
pub(super) type ToPass = (u64, Descriptor, Option<u64>);

impl Restarter {
    /// Forgets the generations that have ended.
    pub(super) fn watch_earlier_generations(&mut self) {
        self.earlier.retain(|earlier| {
            let has_ended = earlier.has_ended();
            if has_ended {
                log::debug!("generation {} has ended", earlier.generation);
            }
            !has_ended
        });
    }

    /// The predecessor drains from now on.
    pub(super) fn note_drain_of_predecessor(&mut self, limit: Option<Duration>) {
        let predecessor = self.generation.saturating_sub(1);
        let own = self.earlier.iter_mut();
        for earlier in own.filter(|earlier| earlier.generation == predecessor) {
            let nanos = limit.and_then(|limit| u64::try_from(limit.as_nanos()).ok());
            earlier.drains_until =
                nanos.and_then(|nanos| sys::clock::monotonic_nanos().checked_add(nanos));
        }
    }

    /// The predecessor has drained. Its process may have to stay, to report a restart.
    pub(super) fn forget_predecessor(&mut self) {
        let predecessor = self.generation.saturating_sub(1);
        self.earlier
            .retain(|earlier| earlier.generation != predecessor);
    }

    /// When fewer generations than allowed drain. `None`: now.
    pub(super) fn restart_may_begin(&self, now: Instant) -> Option<Deadline> {
        let deadlines = self.earlier.iter().map(|earlier| earlier.deadline(now));
        time_of_room(deadlines.collect(), self.max_draining, now)
    }

    /// Says once that the requested restart waits.
    pub(super) fn announce_wait_for_drains(&mut self) {
        if std::mem::replace(&mut self.waits_for_drains, true) {
            return;
        }
        let generations = self.earlier.iter().map(|earlier| earlier.generation);
        let mut generations: Vec<u64> = generations.collect();
        generations.sort_unstable();
        let generations: Vec<String> = generations.iter().map(u64::to_string).collect();
        let generations = generations.join(", ");
        log::warn!(
            "the restart waits: generations {generations} still drain, and at most {} may",
            self.max_draining
        );
        self.last_extension = Instant::now();
        notify::send_reloading(format_args!(
            "{}; a restart waits until one of the generations {generations} has drained",
            self.status()
        ));
    }

    /// When the requested restart can begin, if it waits.
    pub(super) fn drain_deadline(&self) -> Deadline {
        let waits = self.waits_for_drains && matches!(self.stage, ServerStage::Serving);
        let deadline = waits.then(|| self.restart_may_begin(Instant::now()));
        deadline.flatten().unwrap_or(Deadline::NEVER)
    }

    /// What a successor is passed of the generations before it, and the end of a pair that this
    /// process holds until it has drained.
    pub(super) fn pass_generations(&self) -> io::Result<(Socket, Vec<ToPass>)> {
        let (own_end, other_end) = sys::message::create_pair()?;
        let own = sys::descriptor::duplicate(&other_end)?;
        let mut passed = vec![(self.generation, own, None)];
        for earlier in &self.earlier {
            let descriptor = sys::descriptor::duplicate(earlier.link.socket())?;
            passed.push((earlier.generation, descriptor, earlier.drains_until));
        }
        Ok((own_end, passed))
    }
}

/// When fewer than `max` drains are left, given the deadlines of those in progress. `None`: now.
fn time_of_room(mut deadlines: Vec<Deadline>, max: usize, now: Instant) -> Option<Deadline> {
    deadlines.retain(|deadline| !deadline.has_passed(now));
    // A deadline of never comes last.
    deadlines.sort_by_key(|deadline| (deadline.instant().is_none(), deadline.instant()));
    let before = deadlines.len().checked_sub(max.max(1))?;
    deadlines.get(before).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_waits_for_the_drain_that_makes_room() {
        let now = Instant::now();
        let at = |seconds| Deadline::after(now, Duration::from_secs(seconds));
        let never = Deadline::NEVER;
        for (deadlines, max, wanted) in [
            (vec![], 1, None),
            (vec![at(5)], 2, None),
            (vec![at(5)], 1, Some(at(5))),
            (vec![at(0)], 1, None),
            (vec![at(7), at(5)], 2, Some(at(5))),
            (vec![at(7), at(5)], 1, Some(at(7))),
            (vec![never, at(5)], 2, Some(at(5))),
            (vec![at(5), never], 1, Some(never)),
            (vec![never], 0, Some(never)),
            (vec![at(0), at(9), at(8), at(7)], 4, None),
        ] {
            let shown = format!("{deadlines:?}, {max}");
            assert_eq!(time_of_room(deadlines, max, now), wanted, "{shown}");
        }
    }
}
