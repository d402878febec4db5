//! How many connections a stop accepts from a listener: those that the kernel had queued when the stop
//! began. The length of that queue is known for TCP on Linux, and unknown for Unix sockets and on other
//! systems. There, clients that go on connecting could keep the stop from its end, so that the number and
//! the time are bounded. A wait for room in the server is bounded by the deadline of the stop alone.

use std::time::Duration;

/// The most connections from a queue of unknown length.
const MOST_CONNECTIONS: u32 = 4096;

/// How long a stop accepts from a queue of unknown length, without the waits for room in the server.
const MOST_TIME: Duration = Duration::from_secs(2);

/// The most that an accept counts for. It takes longer only if the process did not run meanwhile, which
/// must not cost the queued clients their answers.
const LONGEST_ACCEPT: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct FinalAllowance {
    connections: u32,
    /// `None` if the length of the queue is known.
    time: Option<Duration>,
}

impl FinalAllowance {
    /// `queued` is the length of the queue, if it is known.
    pub(super) fn new(queued: Option<u32>) -> Self {
        Self {
            connections: queued.unwrap_or(MOST_CONNECTIONS),
            time: queued.is_none().then_some(MOST_TIME),
        }
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.connections == 0 || self.time.is_some_and(|left| left.is_zero())
    }

    /// A connection was accepted, which took this long.
    pub(super) fn use_one(&mut self, took: Duration) {
        self.connections = self.connections.saturating_sub(1);
        let took = took.min(LONGEST_ACCEPT);
        self.time = self.time.map(|left| left.saturating_sub(took));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses_of(mut allowance: FinalAllowance, took: Duration) -> u32 {
        let mut uses = 0;
        while !allowance.is_used_up() {
            allowance.use_one(took);
            uses += 1;
        }
        uses
    }

    #[test]
    fn a_known_queue_is_accepted_whole_and_an_unknown_one_is_bounded() {
        let slow = Duration::from_millis(10);
        for (queued, took, uses) in [
            (Some(0), slow, 0),
            (Some(10_000), slow, 10_000),
            (None, Duration::ZERO, MOST_CONNECTIONS),
            (None, slow, 200),
            // A pause of the process costs little of the time.
            (None, Duration::MAX, 40),
        ] {
            let allowance = FinalAllowance::new(queued);
            assert_eq!(uses_of(allowance, took), uses, "{queued:?}, {took:?}");
        }
    }
}
