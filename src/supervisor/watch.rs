//! How the supervisor watches its processes. The guardian knows of the same processes.

use std::io;
use std::time::{Duration, Instant};

use super::run::Run;
use super::watched::{Watched, signal_group};
use crate::clock::Deadline;
use crate::log;
use crate::sys::supervision::Guardian;
use crate::sys::{Guarded, Signal};

/// The shortest time between the starts of two guardians: whatever ended one may end the next one,
/// too.
const MIN_GUARDIAN_AGE: Duration = Duration::from_secs(1);

/// The time before another attempt when no guardian could be started.
const GUARDIAN_RETRY: Duration = Duration::from_secs(10);

impl Run {
    /// Opens the processes that have joined the fleet, and closes those that have left.
    pub(super) fn watch_processes(&mut self) {
        let pids = self.fleet.processes().map(|process| process.pid);
        let pids: Vec<_> = pids.collect();
        self.watched.retain(|pid, _| pids.contains(pid));
        let lanes = self.lanes.remove_others(&pids);
        self.closer.close(lanes);
        for pid in pids {
            self.watch(pid);
        }
    }

    /// Opens a process, and tells the guardian of it, if this was not done before.
    pub(super) fn watch(&mut self, pid: u32) -> &Watched {
        if !self.watched.contains_key(&pid) {
            let watched = Watched::open(pid);
            self.tell_guardian(pid, watched.group);
            self.watched.insert(pid, watched);
        }
        &self.watched[&pid]
    }

    /// Tells the guardian of a process and its group.
    fn tell_guardian(&self, pid: u32, group: Option<u32>) {
        let Some(guardian) = &self.guardian else {
            return;
        };
        if !guardian.watch(self.guarded(pid, group)) {
            log::error!("the guardian does not know of process {pid}");
        }
    }

    /// A process, and its group if the group is to be ended with the process.
    fn guarded(&self, pid: u32, group: Option<u32>) -> Guarded {
        let has_groups = self.settings.process_groups;
        let mut processes = self.fleet.processes();
        Guarded {
            process: Some(pid),
            group: group.filter(|group| has_groups && Some(*group) != self.own_group),
            is_own_child: processes.any(|process| process.pid == pid && !process.is_adopted),
        }
    }

    /// Starts a guardian, which knows of all processes and of what is being ended.
    pub(super) fn start_guardian(&mut self) {
        const FIRST_PROCESS: u32 = 1;
        if std::process::id() == FIRST_PROCESS {
            return;
        }
        let watched = self.watched.iter();
        let processes = watched.map(|(pid, watched)| self.guarded(*pid, watched.group));
        let ending = self.stragglers.groups().map(Guarded::group);
        let (limit, kills_all) = (
            self.settings.policy.stop_timeout,
            self.settings.runs_other_program,
        );
        let failed = |error: &io::Error| log::error!("cannot start the guardian: {error}");
        let identity = self.settings.identity.as_ref();
        let guardian = Guardian::start(limit, kills_all, identity, processes.chain(ending));
        self.guardian = guardian.inspect_err(failed).ok();
        let now = Instant::now();
        self.next_guardian = match self.guardian {
            Some(_) => Deadline::after(now, MIN_GUARDIAN_AGE),
            None => Deadline::after(now, GUARDIAN_RETRY),
        };
    }

    /// Ends the guardian of the program that this process ran before an upgrade, which has the settings
    /// of that program and keeps its file in use. The old guardian stays if there is no new one.
    pub(super) fn end_old_guardian(&mut self, old: Guardian) {
        match self.guardian {
            Some(_) => old.end(),
            None => self.guardian = Some(old),
        }
    }

    /// When another guardian is to be started.
    pub(super) fn guardian_deadline(&self) -> Deadline {
        match self.guardian {
            Some(_) => Deadline::NEVER,
            None => self.next_guardian,
        }
    }

    pub(super) fn start_due_guardian(&mut self, now: Instant) {
        if self.guardian_deadline().has_passed(now) {
            self.start_guardian();
        }
    }

    pub(super) fn signal_own_groups(&mut self, signal: Signal) {
        self.watch_processes();
        let groups = self.watched.values().filter_map(|watched| watched.group);
        let own = |group: &u32| self.settings.process_groups && Some(*group) != self.own_group;
        groups
            .filter(own)
            .for_each(|group| signal_group(group, signal));
    }
}
