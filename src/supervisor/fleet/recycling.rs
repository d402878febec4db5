//! Recycling: a process that has served for long or many requests, or has become large, is replaced
//! gracefully.
//!
//! A recycling is a round of one slot, and proceeds as a restart: the successor serves before the
//! old process stops, and one process is replaced at a time. A recycling begins only while no round
//! is in progress, and a requested restart waits for the recycling. If a recycling fails, the old
//! process goes on serving, and the next recycling of any process begins after [`PAUSE`].
//!
//! Servers of this crate tell how many requests they have served. For other programs the limit of the
//! requests has no effect, which is logged once.
//!
//! A limit of the size that is too low must not replace processes for ever:
//!
//! - If a process is above the limit already when it begins to serve, so would be its successor. This
//!   is logged as an error, once. Such a process is recycled when it has doubled.
//! - A process that grows above the limit is recycled at once. If the process before it in its slot
//!   was recycled for its size too, [`PAUSE`] passes from one such recycling to the next.

use std::fmt;
use std::time::{Duration, Instant};

use super::Fleet;
use super::event::Severity;
use super::process::{Process, Size};
use super::slot::Slot;
use crate::clock::Deadline;

/// When processes are recycled. `Supervisor` has a setter of the same name for each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RecyclingSettings {
    pub(crate) recycle_after: Option<Duration>,
    pub(crate) recycle_after_requests: Option<u64>,
    /// In bytes.
    pub(crate) recycle_above: Option<u64>,
}

/// The time from a recycling that has failed to the next one, and between two recyclings for the
/// size in the same slot. uWSGI's `min-worker-lifetime` has the same default.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);

/// A server tells how many requests it has served soon after it is ready. When no process has told
/// anything for this long, this is logged.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a process is recycled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    Age(Duration),
    Requests(u64),
    Size(u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Age(age) => write!(f, "it has served for {:.1} min", age.as_secs_f64() / 60.0),
            Self::Requests(count) => write!(f, "it has served {count} requests"),
            Self::Size(bytes) => write!(f, "it occupies {:.1} MiB", in_mib(*bytes)),
        }
    }
}

fn in_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Process {
    /// By how much the limits of this process are shortened, so that processes that were started
    /// together are not replaced together: 10,240th parts, up to a tenth. They depend on the process
    /// alone, so that an upgrade does not change them.
    fn jitter(&self) -> u32 {
        self.pid.wrapping_mul(0x9e37_79b9) >> 22
    }

    /// When the process has served for long.
    fn recycle_at(&self, settings: &RecyclingSettings) -> Deadline {
        let (Some(since), Some(limit)) = (self.ready_since, settings.recycle_after) else {
            return Deadline::NEVER;
        };
        let jitter = limit / 10_240 * self.jitter();
        Deadline::after(since, limit.saturating_sub(jitter))
    }

    /// Whether the process has served many requests.
    fn has_served_many(&self, settings: &RecyclingSettings) -> bool {
        let (Some(served), Some(limit)) = (self.requests, settings.recycle_after_requests) else {
            return false;
        };
        let jitter = u128::from(limit) * u128::from(self.jitter()) / 10_240;
        u128::from(served) >= u128::from(limit) - jitter
    }

    /// Whether the process has become large. A process that was large from the beginning has become
    /// larger when it has doubled.
    fn has_grown(&self, settings: &RecyclingSettings) -> bool {
        let (Some(size), Some(limit)) = (self.size, settings.recycle_above) else {
            return false;
        };
        let limit = match size.first > limit {
            true => size.first.saturating_mul(2),
            false => limit,
        };
        size.now > limit
    }
}

impl Slot {
    /// When the process of this slot is to be recycled, and why.
    fn recycle_at(&self, settings: &RecyclingSettings, now: Instant) -> (Deadline, Option<Reason>) {
        let is_settled = self.successor.is_none() && !self.is_start_pending;
        let current = self.current.as_ref();
        let Some(current) = current.filter(|current| is_settled && current.is_serving()) else {
            return (Deadline::NEVER, None);
        };
        let of_age = current.recycle_at(settings);
        let of_size = match (current.has_grown(settings), self.recycled_for_size) {
            (true, Some(before)) => Deadline::after(before, PAUSE),
            (true, None) => Deadline::at(Some(now)),
            (false, _) => Deadline::NEVER,
        };
        let of_requests = Deadline::at(current.has_served_many(settings).then_some(now));
        let age = current.served(now).unwrap_or_default();
        let size = current.size.map_or(0, |size| size.now);
        match of_age.earlier(of_requests).earlier(of_size) {
            Deadline::NEVER => (Deadline::NEVER, None),
            first if first == of_age => (first, Some(Reason::Age(age))),
            first if first == of_requests => {
                (first, Some(Reason::Requests(current.requests.unwrap_or(0))))
            }
            first => (first, Some(Reason::Size(size))),
        }
    }
}

impl Fleet {
    /// The size of a process that serves was measured, in bytes.
    pub(super) fn handle_size(&mut self, pid: u32, bytes: u64) {
        let Some(process) = self.process_mut(pid) else {
            return;
        };
        if let Some(size) = &mut process.size {
            size.now = bytes;
            return;
        }
        process.size = Some(Size {
            first: bytes,
            now: bytes,
        });
        let Some(limit) = self.policy.recycling.recycle_above else {
            return;
        };
        let is_low = bytes > limit;
        if is_low && !self.has_low_limit {
            let (size, limit) = (in_mib(bytes), in_mib(limit));
            let text = format!(
                "process {pid} occupies {size:.1} MiB as it begins to serve, more than \
                 recycle_above allows ({limit:.1} MiB): such a process is recycled when it has doubled"
            );
            self.log(Severity::Error, text);
        }
        self.has_low_limit = is_low;
    }

    /// A process is ready, which may tell how many requests it has served.
    pub(super) fn expect_request_report(&mut self) {
        if self.policy.recycling.recycle_after_requests.is_some() && !self.has_checked_reports {
            self.check_reports_at = Deadline::after(self.now, REPORT_TIMEOUT);
            self.has_checked_reports = true;
        }
    }

    /// Logs it if a process does not tell how many requests it has served.
    pub(super) fn handle_report_deadline(&mut self) {
        if !self.check_reports_at.has_passed(self.now) {
            return;
        }
        self.check_reports_at = Deadline::NEVER;
        let is_silent = |process: &&Process| process.is_serving() && process.requests.is_none();
        let silent = self.processes().find(is_silent);
        if let Some(pid) = silent.map(|process| process.pid) {
            let text = format!(
                "process {pid} does not tell how many requests it has served, as servers of the \
                 crate handover do: recycle_after_requests has no effect on such a program"
            );
            self.log(Severity::Warn, text);
        }
    }

    /// The slot whose process is to be recycled next, and why.
    pub(super) fn recyclable_slot(&self) -> Option<(usize, Reason)> {
        if self.shutdown.is_some() || !self.recycle_not_before.has_passed(self.now) {
            return None;
        }
        let settings = &self.policy.recycling;
        let mut slots = self.slots.iter().enumerate();
        slots.find_map(|(index, slot)| {
            let (at, reason) = slot.recycle_at(settings, self.now);
            let reason = reason.filter(|_| at.has_passed(self.now))?;
            Some((index, reason))
        })
    }

    /// When the next process is to be recycled, if nothing happens before.
    pub(super) fn recycling_deadline(&self) -> Deadline {
        if self.shutdown.is_some() || self.round.is_some() {
            return Deadline::NEVER;
        }
        let settings = &self.policy.recycling;
        let slots = self.slots.iter();
        let due = slots.map(|slot| slot.recycle_at(settings, self.now).0);
        match due.fold(Deadline::NEVER, Deadline::earlier) {
            Deadline::NEVER => Deadline::NEVER,
            first => first.later(self.recycle_not_before),
        }
    }
}
