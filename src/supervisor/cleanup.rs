//! Ends what serving processes leave behind, as [`stragglers`](super::stragglers) decides.

use std::time::{Duration, Instant};

use super::ancestry::{self, ProcessTable};
use super::fleet::Outcome;
use super::run::{Run, send_signal, signal_group};
use super::stragglers::{CHECK_INTERVAL, Ending, Step};
use crate::clock::Deadline;
use crate::log;
use crate::sys::{self, PidFd, Signal};

impl Run {
    /// What an upgrade passes on.
    pub(super) fn restore_stragglers(
        &mut self,
        earlier_children: Vec<u32>,
        had_children: bool,
        groups: &[u32],
    ) {
        self.stragglers.earlier_children = earlier_children.into_iter().collect();
        self.stragglers.had_children = had_children;
        let now = Instant::now();
        let deadline = Deadline::after(now, self.settings.policy.stop_timeout);
        for group in groups {
            self.stragglers.end_group(*group, deadline, now);
        }
    }

    /// A process of the fleet has exited: ends what is left of its group, unless another process of
    /// the fleet is in this group.
    pub(super) fn end_group_of(&mut self, exited: u32, group: Option<u32>) {
        // A group that was not looked at in time has the process's id, if the process had one.
        let group = group.unwrap_or(exited);
        if self.settings.process_groups && self.has_own_group(group, exited) {
            let now = Instant::now();
            let deadline = Deadline::after(now, self.settings.policy.stop_timeout);
            self.stragglers.end_group(group, deadline, now);
            if let Some(guardian) = &self.guardian {
                guardian.watch(None, Some(group));
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
        let table = ProcessTable::read();
        let own = std::process::id();
        let descendants = table.trees(table.children(own), &self.stragglers.earlier_children);
        let mut groups = std::mem::take(&mut self.stragglers.groups);
        groups.retain_mut(|ending| {
            let mut members = descendants.iter().copied();
            let members = members.find(|pid| table.is_in_group(*pid, ending.group));
            // Meanwhile the group may have become that of a new process of the fleet.
            let is_free = self.has_own_group(ending.group, 0);
            let step = ending.step(members.is_some() && is_free, limit, now);
            if let Step::Send(signal) = step {
                let group = ending.group;
                log::info!("sending {signal} to what process group {group} has left behind");
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
        self.end_all(&table, limit, now);
        let is_any_left = !self.stragglers.groups.is_empty() || self.stragglers.all.is_some();
        self.stragglers.next_check = is_any_left.then(|| now + CHECK_INTERVAL);
    }

    fn end_all(&mut self, table: &ProcessTable, limit: Deadline, now: Instant) {
        let Some(mut all) = self.stragglers.all.take() else {
            return;
        };
        let children = table.children(std::process::id()).into_iter();
        let roots = children.filter(|pid| self.is_straggler(*pid)).collect();
        let left = table.trees(roots, &self.stragglers.earlier_children);
        let step = all.step(!left.is_empty(), limit, now);
        if let Step::Send(signal) = step {
            for pid in left {
                log::warn!("sending {signal} to process {pid}, which was left behind");
                let process = PidFd::open(pid);
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

    /// Whether a child of the supervisor, which is none of the fleet, descends from one of the fleet.
    /// A child that a child from before has left behind does not: without such children, all do.
    fn is_straggler(&self, pid: u32) -> bool {
        if self
            .guardian
            .as_ref()
            .is_some_and(|guardian| guardian.pid() == pid)
            || self.output_files.is_log_writer(pid)
        {
            return false;
        }
        let entry = sys::env_entry("NOTIFY_SOCKET".as_ref(), self.notify_socket.name());
        !self.stragglers.had_children || ancestry::has_env_entry(pid, entry.as_encoded_bytes())
    }

    /// The supervisor's exit code, once no straggler is left. `None` before.
    pub(super) fn end_stragglers(&mut self, outcome: Outcome) -> Option<i32> {
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
