//! Recycling: a process that has served for long, or has become large, is replaced gracefully.
//!
//! A recycling is a round of one slot, and proceeds as a restart: the successor serves before the
//! old process stops, and one process is replaced at a time. A recycling begins only while no round
//! is in progress, and a requested restart waits for the recycling. If a recycling fails, the old
//! process goes on serving, and the next recycling of any process begins after [`PAUSE`].
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
use super::process::Process;
use super::slot::Slot;
use crate::clock::Deadline;

/// When processes are recycled. `Supervisor` has a setter of the same name for each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RecyclingSettings {
    pub(crate) recycle_after: Option<Duration>,
    /// In bytes.
    pub(crate) recycle_above: Option<u64>,
}

/// The time from a recycling that has failed to the next one, and between two recyclings for the
/// size in the same slot. uWSGI's `min-worker-lifetime` has the same default.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);

/// The size of a process in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// When the process began to serve.
    pub(crate) first: u64,
    pub(crate) now: u64,
}

/// Why a process is recycled.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    Age(Duration),
    Size(u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Age(age) => write!(f, "it has served for {:.1} min", age.as_secs_f64() / 60.0),
            Self::Size(bytes) => write!(f, "it occupies {:.1} MiB", in_mib(*bytes)),
        }
    }
}

fn in_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Process {
    /// When the process has served for long: after `recycle_after`, shortened by up to a tenth, so
    /// that processes that were started together are not replaced together. The part depends on the
    /// process alone, so that an upgrade does not change it.
    fn recycle_at(&self, settings: &RecyclingSettings) -> Deadline {
        let (Some(since), Some(limit)) = (self.ready_since, settings.recycle_after) else {
            return Deadline::NEVER;
        };
        let part = self.pid.wrapping_mul(0x9e37_79b9) >> 22;
        // A tenth of 1023 / 1024 at most.
        let jitter = limit / 10_240 * part;
        Deadline::after(since, limit.saturating_sub(jitter))
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
        let age = current.served(now).unwrap_or_default();
        let size = current.size.map_or(0, |size| size.now);
        match of_age.earlier(of_size) {
            Deadline::NEVER => (Deadline::NEVER, None),
            first if first == of_age => (first, Some(Reason::Age(age))),
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
