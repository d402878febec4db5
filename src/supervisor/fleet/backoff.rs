//! The back-off: how long to wait before another process is started.
//!
//! - After a process that served, the start is immediate. If the process served for less than
//!   `first`, the start waits as long as the process served: so the back-off never costs more than
//!   half of the time.
//! - After a process that was never ready, the start waits for `first`, and each further start twice
//!   as long as the start before, up to `longest`. Each wait is shortened by a random part of up to
//!   a fifth, so that processes that failed together are not started together. [`BREAKER_LIMIT`] such
//!   processes in a row open the circuit breaker: each start then waits `longest`, until a process
//!   has been ready.

use std::time::Duration;

/// The settings of the back-off, see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackoffSettings {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

/// This many failures in a row before a process was ready open the circuit breaker.
pub(crate) const BREAKER_LIMIT: u32 = 5;

/// The failures in one slot since a process was ready. A process fails when it exits or stops
/// without having been asked to, or cannot be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) failures: u32,
}

impl Backoff {
    /// Counts a failure, and returns how long to wait before the next start. `served` is how long
    /// the process was ready, `None` if it never was. `jitter` is between 0 and 1.
    pub(crate) fn record_failure(
        &mut self,
        settings: &BackoffSettings,
        served: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        if let Some(served) = served {
            self.failures = 0;
            return match served < settings.first {
                true => served.min(settings.longest),
                false => Duration::ZERO,
            };
        }
        self.failures = self.failures.saturating_add(1);
        let delay = match self.is_breaker_open() {
            true => settings.longest,
            false => settings.first.saturating_mul(1 << (self.failures - 1)),
        };
        let delay = delay.min(settings.longest);
        // `Duration::MAX` times 1.0 would overflow.
        delay.saturating_sub(delay.mul_f64(0.2 * jitter.clamp(0.0, 1.0)))
    }

    pub(crate) fn is_breaker_open(&self) -> bool {
        self.failures >= BREAKER_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BackoffSettings = BackoffSettings {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(30),
    };

    #[test]
    fn after_a_process_that_served_a_start_waits_at_most_as_long_as_it_served() {
        for failures in 0..=BREAKER_LIMIT {
            for (served, expected) in [(0, 0), (1, 1), (99, 99), (100, 0), (1_000, 0)] {
                let mut backoff = Backoff { failures };
                let served = Some(Duration::from_millis(served));
                let delay = backoff.record_failure(&SETTINGS, served, 0.5);
                assert_eq!(delay, Duration::from_millis(expected));
                assert!(!backoff.is_breaker_open());
            }
        }
    }

    #[test]
    fn five_failures_before_ready_open_the_breaker_and_serving_closes_it() {
        let mut backoff = Backoff::default();
        let mut delay = |served| backoff.record_failure(&SETTINGS, served, 0.0).as_millis();
        let delays = [(); 4].map(|()| delay(None));
        assert_eq!(delays, [100, 200, 400, 800]);
        assert_eq!([delay(None), delay(None)], [30_000, 30_000]);
        assert_eq!(delay(Some(Duration::from_secs(1))), 0);
        assert_eq!([delay(None), delay(None)], [100, 200]);
    }

    #[test]
    fn delays_may_be_as_long_as_a_time_can_be() {
        let settings = BackoffSettings {
            first: Duration::MAX,
            longest: Duration::MAX,
        };
        for jitter in [0.0, 1e-20, 0.5, 1.0] {
            for failures in [0, 1, BREAKER_LIMIT, u32::MAX] {
                let mut backoff = Backoff { failures };
                let delay = backoff.record_failure(&settings, None, jitter);
                assert!(delay > Duration::MAX / 4 * 3);
            }
        }
    }

    #[test]
    fn jitter_shortens_a_wait_by_at_most_a_fifth() {
        for jitter in [0.0, 0.5, 1.0] {
            let mut backoff = Backoff::default();
            let delay = backoff.record_failure(&SETTINGS, None, jitter);
            assert!((80..=100).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
