//! How long a client may take: a total deadline that moved bytes extend, at a minimum rate.

use std::time::{Duration, Instant};

use crate::clock::Deadline;

/// The deadline of a stretch of reading or writing.
///
/// The stretch starts with its first wait, and the deadline is `timeout` later. With a minimum
/// rate, each moved byte adds the time that it may take at that rate, but the deadline is never
/// more than `timeout` from now. So a client that stalls has `timeout`. A client below the minimum
/// rate is cut off when the added time is used up. A client at or above the minimum rate may take
/// as long as it needs. Pauses, in which no thread waits for the client, do not count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) timeout: Duration,
    /// Bytes per second. With 0 the time-out is total, however many bytes are moved.
    pub(crate) min_rate: u32,
    /// The application's own deadline for this stretch and all later ones. Nothing extends it.
    pub(crate) hard: Deadline,
    /// The deadline at the last wait, and the connection's count of moved bytes at that time.
    /// `None` until a wait starts the stretch, so that a message that needs no wait costs nothing
    /// here.
    soft: Option<(Deadline, u64)>,
    /// Since when no thread waits for the client, within the stretch.
    paused: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(timeout: Duration, min_rate: u32) -> Self {
        Self {
            timeout,
            min_rate,
            hard: Deadline::NEVER,
            soft: None,
            paused: None,
        }
    }

    /// Ends the stretch.
    pub(crate) fn reset(&mut self) {
        self.soft = None;
    }

    /// Begins a pause, which lasts until the deadline is asked for again.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    /// The deadline of the stretch, which starts now if it has not started. `moved` is the
    /// connection's count of moved bytes.
    pub(crate) fn deadline(&mut self, now: Instant, moved: u64) -> Deadline {
        let most = Deadline::after(now, self.timeout);
        let pause = self.paused.take();
        let soft = match self.soft {
            None => most,
            Some((soft, before)) => {
                let pause = pause.map_or(Duration::ZERO, |since| now - since);
                self.extended(soft, pause, moved - before).earlier(most)
            }
        };
        self.soft = Some((soft, moved));
        soft.earlier(self.hard)
    }

    fn extended(&self, soft: Deadline, pause: Duration, bytes: u64) -> Deadline {
        let Some(at) = soft.instant() else {
            return soft;
        };
        let millis = match self.min_rate {
            0 => 0,
            rate => bytes.saturating_mul(1000) / u64::from(rate),
        };
        Deadline::after(at, pause.saturating_add(Duration::from_millis(millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn without_a_rate_the_deadline_is_total() {
        let start = Instant::now();
        let mut pace = Pace::new(10 * SECOND, 0);
        let first = pace.deadline(start, 0);
        assert_eq!(pace.deadline(start + 5 * SECOND, 1 << 30), first);
    }

    #[test]
    fn one_byte_per_second_is_cut_off() {
        let start = Instant::now();
        let mut pace = Pace::new(10 * SECOND, 1000);
        let (mut now, mut moved) = (start, 0);
        while !pace.deadline(now, moved).has_passed(now) {
            now += SECOND;
            moved += 1;
        }
        assert!(now <= start + 11 * SECOND);
    }

    #[test]
    fn a_steady_peer_goes_on_and_a_burst_buys_no_more_than_the_timeout() {
        let (mut now, mut moved) = (Instant::now(), 0);
        let mut pace = Pace::new(10 * SECOND, 1000);
        for _ in 0..1000 {
            assert!(!pace.deadline(now, moved).has_passed(now));
            now += SECOND;
            moved += 1000;
        }
        let after = Deadline::after(now, 10 * SECOND);
        assert_eq!(pace.deadline(now, moved + (1 << 30)), after);
    }

    #[test]
    fn a_pause_is_not_the_peers() {
        let start = Instant::now();
        let mut pace = Pace::new(10 * SECOND, 0);
        pace.deadline(start, 0);
        pace.pause(start + 4 * SECOND);
        pace.pause(start + 5 * SECOND);
        let until = Deadline::after(start, 70 * SECOND);
        assert_eq!(pace.deadline(start + 64 * SECOND, 1), until);
        assert_eq!(pace.deadline(start + 65 * SECOND, 1), until);
        // One that was before the stretch is none of it.
        pace.pause(start + 66 * SECOND);
        pace.reset();
        let until = Deadline::after(start, 80 * SECOND);
        assert_eq!(pace.deadline(start + 70 * SECOND, 1), until);
    }

    #[test]
    fn nothing_extends_the_users_own_deadline() {
        let start = Instant::now();
        let mut pace = Pace::new(10 * SECOND, 1);
        pace.hard = Deadline::after(start, SECOND);
        assert_eq!(pace.deadline(start, 1 << 20), pace.hard);
    }
}
