//! Time: a clock that costs next to nothing, and deadlines on the precise one.

use std::time::{Duration, Instant};

/// Milliseconds since some fixed point, coarse by a few of them, and several times cheaper than `Instant::now`. What
/// expires by this clock is told the time by its caller, so that a test can name any.
pub(crate) fn millis() -> u64 {
    crate::sys::clock::coarse_millis()
}

/// So many milliseconds, of which there are never too many.
pub(crate) fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A point in time that something must not outlast; or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) fn at(instant: Option<Instant>) -> Self {
        Self(instant)
    }

    /// `duration` after `start`; never, where that is past the end of the clock.
    pub(crate) fn after(start: Instant, duration: Duration) -> Self {
        Self(start.checked_add(duration))
    }

    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    pub(crate) fn earlier(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    /// The later of the two; never is the latest.
    pub(crate) fn later(self, other: Self) -> Self {
        Self(self.0.and_then(|at| Some(at.max(other.0?))))
    }

    pub(crate) fn passed(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }

    /// What is left: `None` means for ever, zero means that it has passed.
    pub(crate) fn left(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_wins_and_never_loses() {
        let now = Instant::now();
        let (soon, late) = (
            Deadline::after(now, Duration::from_secs(1)),
            Deadline::after(now, Duration::from_secs(2)),
        );
        assert_eq!(soon.earlier(late), soon);
        assert_eq!(Deadline::NEVER.earlier(late), late);
        assert_eq!(late.earlier(Deadline::NEVER), late);
        assert_eq!(Deadline::after(now, Duration::MAX), Deadline::NEVER);
    }

    #[test]
    fn a_deadline_passes() {
        let now = Instant::now();
        let deadline = Deadline::after(now, Duration::from_secs(60));
        assert!(!deadline.passed(now));
        let later = now + Duration::from_secs(61);
        assert!(deadline.passed(later));
        assert_eq!(deadline.left(later), Some(Duration::ZERO));
    }
}
