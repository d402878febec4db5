//! How many connections a stop accepts: those that the kernel had queued when the stop began. Where the
//! length of a queue is unknown, clients that go on connecting could keep the stop from its end. So the
//! number and the time are bounded there, for all listeners together. The length is known for TCP on
//! Linux, and unknown for Unix sockets and on other systems.

use std::time::Duration;

/// The most connections from queues of unknown length.
const MOST_CONNECTIONS: u32 = 4096;

/// How long a stop accepts from queues of unknown length, with the waits for room in the server.
const MOST_TIME: Duration = Duration::from_secs(2);

/// The most that one step counts for. A step takes longer only if the process did not run meanwhile,
/// which must not cost the queued clients their answers.
const LONGEST_STEP: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct FinalAllowance {
    /// What is left of the queue of the present listener, if its length was known.
    queued: Option<u32>,
    /// What is left for all queues of unknown length.
    connections: u32,
    time: Duration,
}

impl FinalAllowance {
    pub(super) fn new() -> Self {
        Self {
            queued: None,
            connections: MOST_CONNECTIONS,
            time: MOST_TIME,
        }
    }

    /// Begins with the next listener. `queued` is the length of its queue, if that is known.
    pub(super) fn begin_listener(&mut self, queued: Option<u32>) {
        self.queued = queued;
    }

    pub(super) fn is_used_up(&self) -> bool {
        match self.queued {
            Some(left) => left == 0,
            None => self.connections == 0 || self.time.is_zero(),
        }
    }

    /// A connection was accepted.
    pub(super) fn note_accept(&mut self) {
        let left = self.queued.as_mut().unwrap_or(&mut self.connections);
        *left = left.saturating_sub(1);
    }

    /// A step has ended: an attempt to accept, with the wait for room after it.
    pub(super) fn note_step(&mut self, took: Duration) {
        if self.queued.is_none() {
            self.time = self.time.saturating_sub(took.min(LONGEST_STEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many steps are left for a listener, and how many connections they accept.
    fn use_up(
        allowance: &mut FinalAllowance,
        queued: Option<u32>,
        took: Duration,
        has_room: bool,
    ) -> (u32, u32) {
        allowance.begin_listener(queued);
        let (mut steps, mut accepted) = (0, 0);
        while !allowance.is_used_up() {
            if has_room {
                allowance.note_accept();
                accepted += 1;
            }
            allowance.note_step(took);
            steps += 1;
        }
        (steps, accepted)
    }

    #[test]
    fn a_known_queue_is_accepted_whole_and_an_unknown_one_is_bounded() {
        let slow = Duration::from_millis(10);
        for (queued, took, has_room, expected) in [
            (Some(0), slow, true, (0, 0)),
            (Some(10_000), slow, true, (10_000, 10_000)),
            (None, Duration::ZERO, true, (4096, 4096)),
            (None, slow, true, (200, 200)),
            // The waits for room count.
            (None, slow, false, (200, 0)),
            // A pause of the process costs little of the time.
            (None, Duration::MAX, true, (40, 40)),
        ] {
            let mut allowance = FinalAllowance::new();
            let used = use_up(&mut allowance, queued, took, has_room);
            assert_eq!(used, expected, "{queued:?}, {took:?}, {has_room}");
        }
    }

    #[test]
    fn all_unknown_queues_have_one_bound_and_a_known_one_is_none_of_them() {
        let slow = Duration::from_millis(10);
        let mut allowance = FinalAllowance::new();
        assert_eq!(use_up(&mut allowance, None, slow, true).0, 200);
        assert_eq!(use_up(&mut allowance, None, slow, true).0, 0);
        assert_eq!(use_up(&mut allowance, Some(300), slow, true).0, 300);
    }
}
