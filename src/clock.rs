//! Time: a coarse clock that is cheap to read, and deadlines on the precise clock.

use std::fmt;
use std::time::{Duration, Instant};

/// Milliseconds since a fixed point. The clock is coarse by a few milliseconds, and several times
/// cheaper to read than `Instant::now`. Code that compares times of this clock takes the time as an
/// argument, so that a test can choose it.
pub(crate) fn millis() -> u64 {
    crate::sys::clock::coarse_millis()
}

/// Nanoseconds since the same fixed point, precise, for what [`millis`] is too coarse for.
pub(crate) fn nanos() -> u64 {
    crate::sys::clock::monotonic_nanos()
}

/// The first value of [`millis`] that is not before `instant`.
pub(crate) fn millis_at(instant: Instant) -> u64 {
    let left = instant.saturating_duration_since(Instant::now());
    let at = u128::from(nanos()) + left.as_nanos();
    u64::try_from(at.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A duration in milliseconds, at most `u64::MAX`.
pub(crate) fn in_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A point in time by which something must be over, or `NEVER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) fn at(instant: Option<Instant>) -> Self {
        Self(instant)
    }

    /// `duration` after `start`. `NEVER` if the clock cannot express that.
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

    /// The later of the two. `NEVER` is the latest.
    pub(crate) fn later(self, other: Self) -> Self {
        Self(self.0.and_then(|at| Some(at.max(other.0?))))
    }

    /// This deadline, moved by this much.
    pub(crate) fn postponed(self, by: Duration) -> Self {
        self.0.map_or(Self::NEVER, |at| Self::after(at, by))
    }

    /// Whether the deadline is `now` or earlier.
    pub(crate) fn has_passed(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }

    /// The time until the deadline. Zero: the deadline has passed. `None`: there is no deadline.
    pub(crate) fn time_left(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
    }
}

/// How long something may take, for people: `at most 10 s`. More than a year is no limit.
pub(crate) struct TimeLimit(pub(crate) Duration);

impl TimeLimit {
    /// A year or less. What is longer is meant as no limit.
    pub(crate) fn is_some(&self) -> bool {
        self.0 <= Duration::from_secs(365 * 24 * 3600)
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_some() {
            true => write!(f, "at most {} s", self.0.as_secs_f64()),
            false => f.write_str("without a time limit"),
        }
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
        assert!(!deadline.has_passed(now));
        let later = now + Duration::from_secs(61);
        assert!(deadline.has_passed(later));
        assert_eq!(deadline.time_left(later), Some(Duration::ZERO));
    }
}
