//! Recycling: a process that has served for long, or has become large, is replaced gracefully.
//!
//! A recycling is a round of one slot, and proceeds as a restart: the successor serves before the
//! old process stops, and one process is replaced at a time. A recycling begins only while no round
//! is in progress, and a requested restart waits for the recycling. If a recycling fails, the old
//! process goes on serving, and the next recycling of any process begins after [`PAUSE`].

use std::time::Duration;

use super::Fleet;
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

/// The time from a recycling that has failed to the next one.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);

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
}

impl Fleet {
    /// The size of a process in memory was measured, in bytes.
    pub(super) fn handle_size(&mut self, pid: u32, bytes: u64) {
        let limit = self.policy.recycling.recycle_above;
        if let Some(process) = self.process_mut(pid) {
            process.is_large = limit.is_some_and(|limit| bytes > limit);
        }
    }

    /// The slot whose process is to be recycled next.
    pub(super) fn recyclable_slot(&self) -> Option<usize> {
        if self.shutdown.is_some() || !self.recycle_not_before.has_passed(self.now) {
            return None;
        }
        let settings = &self.policy.recycling;
        let is_due = |process: &Process| {
            let is_old = process.recycle_at(settings).has_passed(self.now);
            process.is_serving() && (is_old || process.is_large)
        };
        let is_settled = |slot: &Slot| slot.successor.is_none() && !slot.is_start_pending;
        let mut slots = self.slots.iter();
        slots.position(|slot| is_settled(slot) && slot.current.as_ref().is_some_and(is_due))
    }

    /// When the next process is to be recycled, if nothing happens before.
    pub(super) fn recycling_deadline(&self) -> Deadline {
        if self.shutdown.is_some() || self.round.is_some() {
            return Deadline::NEVER;
        }
        let settings = &self.policy.recycling;
        let settled = self.slots.iter().filter(|slot| slot.successor.is_none());
        let serving = settled.filter_map(|slot| slot.current.as_ref());
        let serving = serving.filter(|current| current.is_serving());
        let due = serving.map(|current| match current.is_large {
            true => Deadline::at(Some(self.now)),
            false => current.recycle_at(settings),
        });
        let first = due.fold(Deadline::NEVER, Deadline::earlier);
        match first == Deadline::NEVER {
            true => first,
            false => first.later(self.recycle_not_before),
        }
    }
}
