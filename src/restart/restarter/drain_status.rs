//! How many connections are left, for the status of a process that drains.

use std::time::{Duration, Instant};

use crate::clock::Deadline;

/// A drain that is over before then is not reported.
const FIRST: Duration = Duration::from_millis(200);

/// How often the count is looked at. Only a change is reported.
const INTERVAL: Duration = Duration::from_millis(500);

/// When the count is due, and which one was reported last.
#[derive(Debug, Default)]
pub(super) struct DrainStatus {
    due: Deadline,
    reported: Option<usize>,
}

impl DrainStatus {
    /// To be called when the process drains, and again from then on.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.due == Deadline::NEVER {
            self.due = Deadline::after(now, FIRST);
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.due
    }

    /// The text to report now, if there is one.
    pub(super) fn report(&mut self, now: Instant, count: impl Fn() -> usize) -> Option<String> {
        if !self.due.has_passed(now) {
            return None;
        }
        self.due = Deadline::after(now, INTERVAL);
        let count = count();
        if self.reported.replace(count) == Some(count) {
            return None;
        }
        Some(match count {
            1 => "1 connection left".to_owned(),
            count => format!("{count} connections left"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_count_is_reported_and_a_short_drain_is_not() {
        let (start, mut status) = (Instant::now(), DrainStatus::default());
        assert_eq!(status.report(start, || 3), None);
        assert_eq!(status.deadline(), Deadline::NEVER);
        status.begin(start);
        let mut at = |millis, count| {
            let now = start + Duration::from_millis(millis);
            status.begin(now);
            status.report(now, || count)
        };
        assert_eq!(at(199, 3), None);
        assert_eq!(at(200, 3).as_deref(), Some("3 connections left"));
        assert_eq!(at(300, 2), None);
        assert_eq!(at(700, 3), None);
        assert_eq!(at(1200, 1).as_deref(), Some("1 connection left"));
    }
}
