//! How many requests this process has served, for the supervisor.

use std::time::{Duration, Instant};

use crate::clock::Deadline;

/// How often the count is looked at. Only a change is reported.
const INTERVAL: Duration = Duration::from_secs(1);

/// When the count is due, and which one was reported last.
#[derive(Debug, Default)]
pub(super) struct RequestReport {
    due: Deadline,
    reported: Option<u64>,
}

impl RequestReport {
    /// To be called when the process serves under a supervisor, and again from then on.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.due == Deadline::NEVER {
            self.due = Deadline::at(Some(now));
        }
    }

    /// The process no longer serves.
    pub(super) fn end(&mut self) {
        self.due = Deadline::NEVER;
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.due
    }

    /// The count to report now, if there is one.
    pub(super) fn report(&mut self, now: Instant, count: impl Fn() -> u64) -> Option<u64> {
        if !self.due.has_passed(now) {
            return None;
        }
        self.due = Deadline::after(now, INTERVAL);
        let count = count();
        (self.reported.replace(count) != Some(count)).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once_a_second_while_the_process_serves() {
        let (start, mut report) = (Instant::now(), RequestReport::default());
        assert_eq!(report.report(start, || 1), None);
        report.begin(start);
        let mut at = |millis, count| {
            let now = start + Duration::from_millis(millis);
            report.begin(now);
            report.report(now, || count)
        };
        assert_eq!(at(0, 0), Some(0));
        assert_eq!(at(999, 1), None);
        assert_eq!(at(1_000, 2), Some(2));
        assert_eq!(at(2_000, 2), None);
        assert_eq!(at(3_000, 3), Some(3));
        report.end();
        assert_eq!(report.deadline(), Deadline::NEVER);
    }
}
