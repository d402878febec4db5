//! How long a peer may take: a total deadline that progress extends, but only at a minimum rate.

use std::time::{Duration, Instant};

use crate::clock::Deadline;

/// The deadline of one stretch of reading or writing.
///
/// It starts with the stretch's first wait, `timeout` away. With a minimum rate, each byte moves it on by what the
/// byte may take at that rate, yet never further than `timeout` from now. So a peer that stalls has `timeout`, a peer
/// that drips is cut off when its credit is used up, and a peer that is merely slow goes on for as long as it takes. The
/// time in which nobody waits for it is not the peer's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) timeout: Duration,
    /// Bytes per second; 0 makes the time-out total, however much is moved.
    pub(crate) min_rate: u32,
    /// Set by the user for this stretch and all after it; nothing extends it.
    pub(crate) hard: Deadline,
    /// The deadline as it was found last, and the connection's count of moved bytes at that time. `None` until a wait
    /// starts the stretch, so that a message that needs no wait touches none of this.
    soft: Option<(Deadline, u64)>,
    /// Since when the peer is not waited for, within the stretch.
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

    /// Nobody waits for the peer from now on, until the deadline is asked for again.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    /// Starts the stretch now, if it has not started, or goes on with it. `moved` is how many bytes the connection has moved since ever.
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
        while !pace.deadline(now, moved).passed(now) {
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
            assert!(!pace.deadline(now, moved).passed(now));
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
