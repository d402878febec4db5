//! The back-off: how long to wait before another process is started.
//!
//! The first start after a failure is immediate. Each further start waits twice as long as the
//! start before: `first`, `2 * first`, and so on up to `longest`. A process that has served for
//! `healthy_after` resets this. [`BREAKER_LIMIT`] processes in a row that fail before they are
//! ready open the circuit breaker: each start then waits `longest`, until a process has been ready.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The settings of the back-off, see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackoffSettings {
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) healthy_after: Duration,
}

/// This many failures in a row before a process was ready open the circuit breaker.
pub(super) const BREAKER_LIMIT: u32 = 5;

/// The failures in one slot. A process fails when it exits or stops without having been asked to,
/// or cannot be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Failures since a process was healthy.
    pub(super) failures: u32,
    /// Failures since a process was ready.
    pub(super) failures_before_ready: u32,
}

impl Backoff {
    /// Counts a failure, and returns how long to wait before the next start. `served` is how long
    /// the process was ready, `None` if it never was. `jitter`, between 0 and 1, shortens the wait
    /// by up to a fifth, so that processes that failed together are not started together.
    pub(super) fn record_failure(
        &mut self,
        settings: &BackoffSettings,
        served: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        match served {
            Some(served) if served >= settings.healthy_after => *self = Self::default(),
            Some(_) => self.failures_before_ready = 0,
            None => self.failures_before_ready = self.failures_before_ready.saturating_add(1),
        }
        let delay = match self.failures {
            0 => Duration::ZERO,
            _ if self.is_breaker_open() => settings.longest,
            failures => {
                let factor = 1u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
                settings.first.saturating_mul(factor).min(settings.longest)
            }
        };
        self.failures = self.failures.saturating_add(1);
        // `Duration::MAX` times 1.0 would overflow.
        delay.saturating_sub(delay.mul_f64(0.2 * jitter.clamp(0.0, 1.0)))
    }

    pub(super) fn is_breaker_open(&self) -> bool {
        self.failures_before_ready >= BREAKER_LIMIT
    }
}

/// A random number between 0 and 1.
pub(super) fn random_jitter() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BackoffSettings = BackoffSettings {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(30),
        healthy_after: Duration::from_secs(60),
    };

    #[test]
    fn the_first_restart_is_immediate_and_each_further_one_waits_longer() {
        let mut backoff = Backoff::default();
        let mut delay = || {
            let delay = backoff.record_failure(&SETTINGS, Some(Duration::from_secs(1)), 0.0);
            delay.as_millis()
        };
        assert_eq!([delay(), delay(), delay(), delay()], [0, 100, 200, 400]);
        for _ in 0..5 {
            delay();
        }
        assert_eq!([delay(), delay(), delay()], [25_600, 30_000, 30_000]);
    }

    #[test]
    fn five_failures_before_ready_open_the_breaker_and_serving_closes_it() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            assert!(backoff.record_failure(&SETTINGS, None, 0.0) < Duration::from_secs(1));
        }
        assert!(!backoff.is_breaker_open());
        assert_eq!(
            backoff.record_failure(&SETTINGS, None, 0.0),
            SETTINGS.longest
        );
        assert!(backoff.is_breaker_open());
        assert!(
            backoff.record_failure(&SETTINGS, Some(Duration::from_secs(1)), 0.0) < SETTINGS.longest
        );
        assert!(!backoff.is_breaker_open());
    }

    #[test]
    fn a_healthy_process_resets_the_backoff() {
        let mut backoff = Backoff::default();
        for _ in 0..40 {
            backoff.record_failure(&SETTINGS, None, 0.5);
        }
        assert_eq!(
            backoff.record_failure(&SETTINGS, Some(SETTINGS.healthy_after), 0.5),
            Duration::ZERO
        );
    }

    #[test]
    fn delays_may_be_as_long_as_a_time_can_be() {
        let settings = BackoffSettings {
            first: Duration::MAX,
            longest: Duration::MAX,
            healthy_after: Duration::MAX,
        };
        let mut backoff = Backoff::default();
        backoff.record_failure(&settings, None, 0.0);
        for jitter in [0.0, 1e-20, 0.5, 1.0] {
            let served = Some(Duration::from_secs(u64::MAX));
            assert!(backoff.record_failure(&settings, served, jitter) >= Duration::MAX / 5 * 4);
        }
    }

    #[test]
    fn jitter_shortens_a_wait_by_at_most_a_fifth() {
        for jitter in [0.0, 0.5, 1.0, random_jitter()] {
            let mut backoff = Backoff {
                failures: 1,
                failures_before_ready: 0,
            };
            let delay = backoff.record_failure(&SETTINGS, None, jitter);
            assert!((80..=100).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
