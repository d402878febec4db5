//! Ends what serving processes leave behind, as [`stragglers`](super::stragglers) decides.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use super::ancestry::{self, ProcessTable};
use super::fleet::Outcome;
use super::run::Run;
use super::stragglers::{Ending, Step};
use super::watched::{send_signal, signal_group};
use crate::clock::Deadline;
use crate::log;
use crate::sys::supervision::Guardian;
use crate::sys::{self, Guarded, ProcessWatch, Signal};

impl Run {
    /// A process of the fleet has exited: ends what is left of its group, unless another process of
    /// the fleet is in this group.
    pub(super) fn end_group_of(&mut self, exited: u32, group: Option<u32>) {
        // A group that was not looked at in time has the process's id, if the process had one.
        let group = group.unwrap_or(exited);
        let has_groups = sys::supervision::HAS_PROCESS_GROUPS && self.settings.process_groups;
        if has_groups && self.has_own_group(group, exited) {
            let now = Instant::now();
            let deadline = Deadline::after(now, self.settings.policy.stop_timeout);
            self.stragglers.end_group(group, deadline, now);
            if let Some(guardian) = &self.guardian {
                guardian.watch(Guarded::group(group));
            }
        }
    }

    /// Whether a group is neither that of the supervisor nor that of another process of the fleet
    /// than `of`.
    pub(super) fn has_own_group(&self, group: u32, of: u32) -> bool {
        let mut others = self.watched.iter().filter(|(pid, _)| **pid != of);
        Some(group) != self.own_group && !others.any(|(_, other)| other.group == Some(group))
    }

    /// Takes the next step with the stragglers, if it is due.
    pub(super) fn handle_stragglers(&mut self) {
        let now = Instant::now();
        if !self.stragglers.deadline().has_passed(now) {
            return;
        }
        let limit = self
            .fleet
            .shutdown
            .map_or(Deadline::NEVER, |stop| stop.deadline);
        let is_first = !self.stragglers.is_table_missing;
        let failed = |error: &io::Error| {
            if is_first {
                log::error!("cannot look at what processes have left behind: {error}");
            }
        };
        let table = ProcessTable::read().inspect_err(failed).ok();
        self.stragglers.is_table_missing = table.is_none();
        let descendants = table.as_ref().map(|table| {
            let children = table.children(std::process::id());
            table.trees(children, &self.stragglers.earlier_children)
        });
        let mut groups = std::mem::take(&mut self.stragglers.groups);
        groups.retain_mut(|ending| {
            let is_any_left = match (&table, &descendants) {
                (Some(table), Some(descendants)) => {
                    let mut members = descendants.iter();
                    members.any(|pid| table.is_in_group(*pid, ending.group))
                }
                _ => sys::supervision::has_group(ending.group),
            };
            // Meanwhile the group may have become that of a new process of the fleet.
            let is_free = self.has_own_group(ending.group, 0);
            let was_killed = ending.is_killed();
            let step = ending.step(is_any_left && is_free, limit, now);
            if let Step::Send(signal) = step {
                let group = ending.group;
                if !was_killed {
                    log::info!("sending {signal} to what process group {group} has left behind");
                }
                signal_group(group, signal);
                // A process that is stopped (SIGSTOP) does not act on SIGTERM.
                signal_group(group, Signal::Continue);
                self.note_signal(signal);
            }
            if let (Step::Forget, Some(guardian)) = (step, &self.guardian) {
                guardian.forget(None, Some(ending.group));
            }
            step != Step::Forget
        });
        self.stragglers.groups = groups;
        match table {
            Some(table) => self.end_all(&table, limit, now),
            // Then nothing tells what is left.
            None => self.stragglers.all = None,
        }
        self.stragglers.check_later(now);
    }

    fn end_all(&mut self, table: &ProcessTable, limit: Deadline, now: Instant) {
        let Some(mut all) = self.stragglers.all.take() else {
            return;
        };
        let children = table.children(std::process::id()).into_iter();
        let roots = children.filter(|pid| self.is_straggler(*pid)).collect();
        let mut left = table.trees(roots, &self.other_processes());
        // Waiting for one that the supervisor may not signal would only delay the stop.
        left.retain(|pid| sys::supervision::may_signal(*pid));
        let was_killed = all.is_killed();
        let step = all.step(!left.is_empty(), limit, now);
        if let Step::Send(signal) = step {
            for pid in left {
                if !was_killed {
                    log::warn!("sending {signal} to process {pid}, which was left behind");
                }
                let process = ProcessWatch::open(pid);
                send_signal(&process, pid, signal);
                send_signal(&process, pid, Signal::Continue);
                self.note_signal(signal);
            }
        }
        if step != Step::Forget {
            self.stragglers.all = Some(all);
        }
    }

    fn note_signal(&mut self, signal: Signal) {
        let is_stopping = self.fleet.shutdown.is_some();
        self.stragglers.has_killed |= signal == Signal::Kill && is_stopping;
    }

    /// The processes that are no stragglers, nor is what descends from them: those of the fleet, the
    /// supervisor's own, and the children that the supervisor had before.
    fn other_processes(&self) -> HashSet<u32> {
        let fleet = self.fleet.processes().map(|process| process.pid);
        let guardian = self.guardian.as_ref().map(Guardian::pid);
        let dry_run = self.dry_run.as_ref().map(|dry_run| dry_run.pid);
        let earlier = self.stragglers.earlier_children.iter().copied();
        fleet
            .chain(guardian)
            .chain(self.output_files.log_writer_pids())
            .chain(dry_run)
            .chain(earlier)
            .collect()
    }

    /// Whether a child of the supervisor, which is none of the fleet, descends from one of the fleet.
    /// A child that a child from before has left behind does not: without such children, all do.
    fn is_straggler(&self, pid: u32) -> bool {
        let entry = sys::env_entry("NOTIFY_SOCKET".as_ref(), self.notify_socket.name());
        !self.stragglers.had_children || ancestry::has_env_entry(pid, entry.as_encoded_bytes())
    }

    /// The supervisor's exit code, once no straggler is left. `None` before.
    pub(super) fn end_stragglers(&mut self, outcome: Outcome) -> Option<i32> {
        // The system ends the stragglers with this process.
        if !sys::supervision::HAS_PROCESS_GROUPS {
            return Some(outcome.code);
        }
        let now = Instant::now();
        if self.settings.process_groups || outcome.was_killed {
            let timeout = match outcome.was_killed {
                true => Duration::ZERO,
                false => self.settings.policy.stop_timeout,
            };
            if !self.stragglers.has_ended_all {
                self.stragglers.has_ended_all = true;
                self.stragglers.all = Some(Ending::new(0, Deadline::after(now, timeout)));
                self.stragglers.next_check = Some(now);
            }
            self.handle_stragglers();
        }
        let is_over = self.stragglers.next_check.is_none();
        let least = i32::from(self.stragglers.has_killed);
        is_over.then_some(outcome.code.max(least))
    }
}
