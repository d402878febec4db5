//! The back-off: when a process that has ended is started again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How long to wait before a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackoffSettings {
    /// Before the second restart; each further one waits twice as long.
    pub(super) first: Duration,
    pub(super) longest: Duration,
    /// What has served for so long was healthy: the count begins anew.
    pub(super) healthy_after: Duration,
}

/// After so many deaths in a row before it was ready, a program is not expected to come up.
pub(super) const BREAKER: u32 = 5;

/// What has gone wrong in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Deaths since it was healthy.
    pub(super) deaths: u32,
    /// Those of them, the last ones, before the process was ready.
    pub(super) before_ready: u32,
}

impl Backoff {
    /// Takes note of a death, of a process that had served for so long, or never. Returns how long to wait. `jitter` is
    /// between 0 and 1: processes that died together do not come back together.
    pub(super) fn died(
        &mut self,
        backoff: &BackoffSettings,
        served: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        match served {
            Some(served) if served >= backoff.healthy_after => *self = Self::default(),
            Some(_) => self.before_ready = 0,
            None => self.before_ready = self.before_ready.saturating_add(1),
        }
        let delay = match self.deaths {
            0 => Duration::ZERO,
            _ if self.is_open() => backoff.longest,
            deaths => {
                let factor = 1u32.checked_shl(deaths - 1).unwrap_or(u32::MAX);
                backoff.first.saturating_mul(factor).min(backoff.longest)
            }
        };
        self.deaths = self.deaths.saturating_add(1);
        delay.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
    }

    /// Whether the circuit breaker is open.
    pub(super) fn is_open(&self) -> bool {
        self.before_ready >= BREAKER
    }
}

/// A number between 0 and 1 that is another one each time.
pub(super) fn jitter() -> f64 {
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
    fn the_first_restart_is_at_once_and_each_further_one_waits_longer() {
        let mut backoff = Backoff::default();
        let mut delay = || {
            let delay = backoff.died(&SETTINGS, Some(Duration::from_secs(1)), 0.0);
            delay.as_millis()
        };
        assert_eq!([delay(), delay(), delay(), delay()], [0, 100, 200, 400]);
        for _ in 0..5 {
            delay();
        }
        assert_eq!([delay(), delay(), delay()], [25_600, 30_000, 30_000]);
    }

    #[test]
    fn five_deaths_before_it_was_ready_open_the_breaker_and_serving_closes_it() {
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            assert!(backoff.died(&SETTINGS, None, 0.0) < Duration::from_secs(1));
        }
        assert!(!backoff.is_open());
        assert_eq!(backoff.died(&SETTINGS, None, 0.0), SETTINGS.longest);
        assert!(backoff.is_open());
        assert!(backoff.died(&SETTINGS, Some(Duration::from_secs(1)), 0.0) < SETTINGS.longest);
        assert!(!backoff.is_open());
    }

    #[test]
    fn health_resets_it() {
        let mut backoff = Backoff::default();
        for _ in 0..40 {
            backoff.died(&SETTINGS, None, 0.5);
        }
        assert_eq!(
            backoff.died(&SETTINGS, Some(SETTINGS.healthy_after), 0.5),
            Duration::ZERO
        );
    }

    #[test]
    fn luck_shortens_a_wait_by_a_fifth_at_most() {
        for jitter in [0.0, 0.5, 1.0, jitter()] {
            let mut backoff = Backoff {
                deaths: 1,
                before_ready: 0,
            };
            let delay = backoff.died(&SETTINGS, None, jitter);
            assert!((80..=100).contains(&delay.as_millis()), "{delay:?}");
        }
    }
}
