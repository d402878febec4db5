//! What the fleet does about the notifications of processes (sd_notify(3)).

use std::time::Duration;

use super::Fleet;
use super::event::{Exit, ManagerNotice, NamedProcess, Notice};
use super::process::{Process, Stage};
use super::processes::Place;
use super::round::Step;
use crate::clock::Deadline;

/// The fleet knows at most this many unannounced processes.
const MAX_UNANNOUNCED: usize = 16;

impl Fleet {
    pub(super) fn handle_notice(&mut self, pid: u32, notice: Notice) {
        let Some(place) = self
            .place_of(pid)
            .or_else(|| self.add_unannounced(pid, &notice))
        else {
            return;
        };
        let Some(process) = self.process_mut(pid) else {
            return;
        };
        // Beside MAINPID=, the generation is that of the successor.
        if let (Some(generation), None) = (notice.generation, notice.main_pid) {
            process.starts_successors = true;
            process.generation = generation;
        }
        for listener in &notice.listeners {
            if !process.listeners.contains(listener) {
                process.listeners.push(*listener);
            }
        }
        if let Some(status) = &notice.status {
            process.status.clone_from(status);
        }
        process.has_lane |= notice.has_lane;
        process.requests = notice.requests.or(process.requests);
        if let Some(time) = notice.extend {
            self.extend_deadlines(pid, place, time);
        }
        match place {
            Place::Current(index) => self.handle_current_notice(index, pid, notice),
            _ if notice.ready => {
                // The sender may have stopped, or may not be known to serve, as its successor took
                // over. Other programs may name any process.
                let is_known = |named: &NamedProcess| self.place_of(named.pid).is_some();
                match notice.main_pid.filter(is_known) {
                    // The sender finishes its requests, and nobody serves in its place.
                    Some(named) if named.has_ended && named.pid != pid => {}
                    named => self.handle_ready(named.map_or(pid, |named| named.pid)),
                }
            }
            _ => {}
        }
    }

    /// Adds the sender of a notification that no process has announced. It must name its generation,
    /// which other subprocesses of a server do not.
    fn add_unannounced(&mut self, pid: u32, notice: &Notice) -> Option<Place> {
        if notice.generation.is_none() || self.unannounced.len() >= MAX_UNANNOUNCED {
            return None;
        }
        let ready_by = Deadline::after(self.now, self.policy.ready_timeout);
        let mut process = Process {
            is_adopted: true,
            watchdog: self.policy.watchdog,
            started_at: notice.sender_started_at.unwrap_or(self.now),
            ..Process::new(pid, ready_by, self.now)
        };
        if self.shutdown.is_some() {
            self.signal(pid, self.policy.stop_signal);
            process.stage = Stage::Stopping {
                exit_by: Deadline::NEVER,
                by_itself: false,
            };
        }
        self.unannounced.push(process);
        Some(Place::Unannounced)
    }

    /// Gives a process more time, counted from now (EXTEND_TIMEOUT_USEC), and all who wait for it:
    /// the round, the stop, and the service manager.
    fn extend_deadlines(&mut self, pid: u32, place: Place, time: Duration) {
        let until = Deadline::after(self.now, time);
        if let Some(process) = self.process_mut(pid) {
            process.extend(until);
        }
        let index = match place {
            Place::Current(index) | Place::Successor(index) => Some(index),
            Place::Draining | Place::Unannounced => None,
        };
        let round_waits = self
            .round
            .as_ref()
            .is_some_and(|round| round.step == Step::WaitingForDrain);
        let mut manager_waits =
            index.is_some() && !self.sent_ready || round_waits && place == Place::Draining;
        let round = self
            .round
            .as_mut()
            .filter(|round| Some(round.index) == index);
        if let Some(round) = round {
            round.extend(until);
            manager_waits = true;
        }
        if let Some(stop) = self.shutdown.as_mut().filter(|stop| !stop.is_immediate) {
            stop.deadline = stop.deadline.later(until);
            manager_waits = true;
        }
        if manager_waits {
            self.notify(ManagerNotice::MoreTime(time));
        }
    }

    /// An unannounced process is ready, and its predecessor is gone. It takes the first slot that
    /// does not serve; if there is none, or in a stop, it is terminated.
    pub(super) fn promote_unannounced(&mut self, pid: u32) {
        let Some(at) = self
            .unannounced
            .iter()
            .position(|process| process.pid == pid)
        else {
            return;
        };
        let mut process = self.unannounced.remove(at);
        let slot = self.slots.iter().position(|slot| !slot.is_serving());
        let Some(index) = slot.filter(|_| self.shutdown.is_none() && process.is_starting()) else {
            return self.terminate(process);
        };
        process.slot = Some(index);
        let slot = &mut self.slots[index];
        // The predecessor that would end its successor is gone.
        let orphan = slot.successor.take_if(|successor| successor.is_adopted);
        let other = slot.current.replace(process);
        let others = orphan.into_iter().chain(other);
        others.for_each(|other| self.terminate(other));
        self.mark_ready(index);
    }

    // ---- a slot's current process ----

    fn handle_current_notice(&mut self, index: usize, pid: u32, notice: Notice) {
        // Some programs name themselves in MAINPID=.
        let is_other = |other: &NamedProcess| other.pid != pid;
        if let Some(successor) = notice.successor.filter(is_other) {
            if let Some(process) = self.adopt(index, successor) {
                match self.slots[index].successor.replace(process) {
                    Some(former) if former.is_adopted => self.drain(former, false),
                    Some(former) => self.terminate(former),
                    None => {}
                }
            }
        }
        // The sender does not control a successor that the supervisor has started.
        let is_own = |successor: &Process| !successor.is_adopted;
        let has_own = self.slots[index].successor.as_ref().is_some_and(is_own);
        if let Some(why) = notice.failed.filter(|_| !has_own) {
            // The predecessor ends the successor, or has ended it.
            let successor = self.slots[index].successor.take();
            successor
                .into_iter()
                .for_each(|successor| self.drain(successor, false));
            self.close_unused_listeners();
            self.fail_round(self.round_of(index), index, &why);
        }
        if let Some(successor) = notice.main_pid.filter(is_other) {
            return self.replace_current(index, successor, notice.generation);
        }
        if notice.stopping && self.shutdown.is_none() {
            return self.handle_stopping_current(index);
        }
        if notice.ready {
            self.mark_ready(index);
        }
        let now = self.now;
        match notice.is_alive {
            Some(true) => {
                if let Some(current) = &mut self.slots[index].current {
                    current.sends_watchdog = true;
                    current.renew_watchdog(now);
                }
            }
            Some(false) if self.slots[index].is_serving() => {
                self.abort(pid, "reports that it makes no progress");
            }
            _ => {}
        }
    }

    /// The successor serves in place of the current process (MAINPID=), which drains. A successor
    /// that has ended since has replaced the current process all the same.
    fn replace_current(&mut self, index: usize, named: NamedProcess, generation: Option<u64>) {
        let known = self.slots[index].successor.take();
        let successor = match known {
            Some(successor) if successor.pid == named.pid => Some(successor),
            other => {
                other.into_iter().for_each(|other| self.terminate(other));
                self.adopt(index, named)
            }
        };
        let Some(mut successor) = successor else {
            return;
        };
        successor.generation = generation.unwrap_or(successor.generation);
        match self.slots[index].current.replace(successor) {
            // A server of this crate, which names a generation, drains by itself.
            Some(mut old) if generation.is_some() => {
                old.status.clear();
                self.drain(old, false);
            }
            Some(old) => self.end_replaced(old, None),
            None => {}
        }
        if !named.has_ended {
            return self.mark_ready(index);
        }
        if let Some(current) = &mut self.slots[index].current {
            current.ready_since = Some(self.now);
        }
        let how = "exit status unknown".to_owned();
        self.handle_exit(named.pid, &Exit { code: None, how });
    }

    /// The current process of this slot stops without having been asked to.
    fn handle_stopping_current(&mut self, index: usize) {
        let exit_by = Deadline::after(self.now, self.policy.stop_timeout);
        let ready_by = Deadline::after(self.now, self.ready_limit());
        let slot = &mut self.slots[index];
        if !self.policy.restart_after_success {
            // Perhaps no other process is to be started: its exit code tells.
            if let Some(current) = slot
                .current
                .as_mut()
                .filter(|current| !current.is_aborted())
            {
                current.stage = Stage::Stopping {
                    exit_by,
                    by_itself: true,
                };
            }
            return;
        }
        let Some(current) = slot.current.take() else {
            return;
        };
        let mut ending = None;
        match slot.successor.take() {
            // The supervisor has started it: it takes the slot.
            Some(own) if !own.is_adopted && own.is_starting() => slot.successor = Some(own),
            Some(own) if !own.is_adopted => ending = Some(own),
            // The current process ends a successor that does not serve yet. A successor that serves
            // notifies the supervisor.
            Some(mut successor) => {
                if let Stage::Starting { ready_by: deadline } = &mut successor.stage {
                    *deadline = ready_by;
                }
                successor.slot = None;
                self.unannounced.push(successor);
            }
            None => {}
        }
        let has_successor = slot.successor.is_some();
        ending
            .into_iter()
            .for_each(|ending| self.drain(ending, false));
        let served = current.served(self.now);
        let why = format!("process {} stops without having been asked to", current.pid);
        self.slots[index].record_death(self.now, &why);
        let round = current.round;
        self.drain(current, true);
        if !has_successor {
            self.schedule_start(index, served, &why);
        }
        self.fail_round(round, index, &why);
    }

    /// The process that the current process of this slot has started as its successor. It may be
    /// among the unannounced processes, if its own notifications came first. `None`: the fleet has
    /// this process in another place.
    fn adopt(&mut self, index: usize, named: NamedProcess) -> Option<Process> {
        let pid = named.pid;
        let mut process = match self.place_of(pid) {
            None => Process::new(pid, Deadline::NEVER, self.now),
            Some(Place::Unannounced) => {
                let at = self
                    .unannounced
                    .iter()
                    .position(|process| process.pid == pid)?;
                self.unannounced.remove(at)
            }
            Some(_) => return None,
        };
        let slot = &self.slots[index];
        process.slot = Some(index);
        process.generation = slot.generation + 1;
        process.watchdog = slot.current.as_ref().and_then(|current| current.watchdog);
        process.started_at = named.started_at;
        // A notification may be late: it may name a process that is older than the restart.
        let round = self.round.as_ref().filter(|round| round.replaces(index));
        let round = round.filter(|round| named.started_at >= round.started_at);
        process.round = round.map(|round| round.number);
        process.is_adopted = true;
        process.starts_successors = true;
        // The predecessor ends a successor that is not ready in time.
        if let Stage::Starting { ready_by } = &mut process.stage {
            *ready_by = Deadline::NEVER;
        }
        if self.shutdown.is_some() && process.is_starting() && !named.has_ended {
            self.signal(pid, self.policy.stop_signal);
            process.stage = Stage::Stopping {
                exit_by: Deadline::NEVER,
                by_itself: false,
            };
        }
        Some(process)
    }
}
