//! The processes of the fleet: they are started, become ready, and exit.

use std::time::Duration;

use super::Fleet;
use super::backoff::{BREAKER_LIMIT, Backoff};
use super::event::{Effect, Exit, ManagerNotice, Severity};
use super::process::{Process, Stage, Watch};
use super::slot::Slot;
use crate::clock::Deadline;
use crate::sys::Signal;

/// The exit code of the supervisor after [`Policy::give_up_after`](super::Policy::give_up_after): the
/// service is unavailable (sysexits.h(3head)).
const EX_UNAVAILABLE: i32 = 69;

/// Where the fleet keeps a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The current process of this slot.
    Current(usize),
    /// The successor in this slot.
    Successor(usize),
    Draining,
    Unannounced,
}

impl Fleet {
    pub(super) fn place_of(&self, pid: u32) -> Option<Place> {
        let is_it = |process: &Process| process.pid == pid;
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.current.as_ref().is_some_and(is_it) {
                return Some(Place::Current(index));
            }
            if slot.successor.as_ref().is_some_and(is_it) {
                return Some(Place::Successor(index));
            }
        }
        if self.draining.iter().any(is_it) {
            return Some(Place::Draining);
        }
        self.unannounced
            .iter()
            .any(is_it)
            .then_some(Place::Unannounced)
    }

    // ---- starts ----

    /// Wants a process started in this slot.
    pub(super) fn start(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.start_at = Deadline::NEVER;
        if !slot.is_start_pending {
            slot.is_start_pending = true;
            slot.generation += 1;
            let generation = slot.generation;
            self.effects.push(Effect::Start {
                slot: index,
                generation,
            });
        }
    }

    pub(super) fn add_started(&mut self, index: usize, pid: u32) {
        let (now, policy) = (self.now, &self.policy);
        let (ready_by, watchdog) = (Deadline::after(now, self.ready_limit()), policy.watchdog);
        let round = self.round_of(index);
        let slot = &mut self.slots[index];
        slot.is_start_pending = false;
        let process = Process {
            slot: Some(index),
            generation: slot.generation,
            watchdog,
            round,
            ..Process::new(pid, ready_by, now)
        };
        if self.shutdown.is_some() {
            return self.terminate(process);
        }
        match slot.current {
            Some(_) => slot.successor = Some(process),
            None => slot.current = Some(process),
        }
    }

    pub(super) fn handle_failed_start(&mut self, index: usize, why: String) {
        let round = self.round_of(index);
        let slot = &mut self.slots[index];
        slot.is_start_pending = false;
        // Without a current process, the start was due, or is repeated after the back-off.
        if slot.current.is_none() && self.shutdown.is_none() {
            slot.record_death(self.now, &why);
            self.end_scale(Some(why.clone()));
            self.schedule_start(index, None, &why);
        }
        self.fail_round(round, index, &why);
    }

    /// Has a process started in this slot after the back-off, or gives the slot up. `served` is how
    /// long the last process of the slot was ready, and `why` is why the slot has no process now.
    pub(super) fn schedule_start(&mut self, index: usize, served: Option<Duration>, why: &str) {
        let jitter = self.next_jitter();
        let slot = &mut self.slots[index];
        let delay = slot
            .backoff
            .record_failure(&self.policy.backoff, served, jitter);
        let failures = slot.backoff.failures;
        if self
            .policy
            .give_up_after
            .is_some_and(|limit| failures >= limit)
        {
            // A restart that an operator asks for has all attempts again.
            slot.backoff = Backoff::default();
            let text = format!(
                "{why}; {failures} processes in a row have failed before they were ready: no \
                 further process is started"
            );
            return self.give_up_slot(index, EX_UNAVAILABLE, text);
        }
        slot.start_at = Deadline::after(self.now, delay);
        slot.restarts += 1;
        let seconds = delay.as_secs_f32();
        match slot.backoff.is_breaker_open() {
            true => self.log(
                Severity::Error,
                format!(
                    "{why}; {failures} processes in a row have failed before they were ready (the \
                     limit is {BREAKER_LIMIT}): the next start is in {seconds:.1} s, and each \
                     further start waits as long until a process is ready"
                ),
            ),
            false => self.log(
                Severity::Warn,
                format!("{why}; starting another process in {seconds:.2} s"),
            ),
        }
        let status = format!("{why}; starting another process in {seconds:.1} s");
        self.notify(ManagerNotice::Status(status));
    }

    /// The next random number between 0 and 1 (splitmix64).
    fn next_jitter(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }

    // ---- being ready ----

    /// A process that is to serve is ready.
    pub(super) fn handle_ready(&mut self, pid: u32) {
        match self.place_of(pid) {
            Some(Place::Current(index)) => self.mark_ready(index),
            Some(Place::Successor(index)) => self.promote_successor(index),
            Some(Place::Unannounced) => self.promote_unannounced(pid),
            Some(Place::Draining) | None => {}
        }
    }

    /// The current process of this slot serves from now on, if it was starting.
    pub(super) fn mark_ready(&mut self, index: usize) {
        let now = self.now;
        let slot = &mut self.slots[index];
        let Some(current) = slot
            .current
            .as_mut()
            .filter(|current| current.is_starting())
        else {
            return;
        };
        current.ready_since = Some(now);
        current.stage = Stage::Serving { watch: Watch::Off };
        // Any other program may send no watchdog notification, and is not watched before it does.
        if current.starts_successors || current.sends_watchdog {
            current.renew_watchdog(now);
        }
        slot.generation = slot.generation.max(current.generation);
        slot.start_at = Deadline::NEVER;
        slot.backoff = Backoff::default();
        let (pid, generation) = (current.pid, current.generation);
        self.log(
            Severity::Info,
            format!("process {pid}, generation {generation}, serves"),
        );
        self.close_unused_listeners();
        self.expect_request_report();
        if !self.has_been_ready {
            self.has_been_ready = true;
            for slot in self.slots.iter_mut().filter(|slot| slot.is_down()) {
                slot.start_at = Deadline::at(Some(now));
            }
        }
        if self.slots.iter().all(Slot::is_serving) && self.round.is_none() {
            self.sent_ready = true;
            let summary = self.summary();
            self.notify(ManagerNotice::Ready(summary));
        }
    }

    /// The successor in this slot serves from now on, and the process before it drains.
    fn promote_successor(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        // A successor that is aborted or stops does not serve, whatever it says.
        if !slot.successor.as_ref().is_some_and(Process::is_starting) {
            return;
        }
        let successor = slot.successor.take();
        let recipient = successor.as_ref().filter(|successor| successor.has_lane);
        let recipient = recipient.map(|recipient| recipient.pid);
        if let Some(old) = std::mem::replace(&mut slot.current, successor) {
            self.end_replaced(old, recipient);
        }
        self.mark_ready(index);
    }

    /// Has the listeners closed that no process uses. Does nothing unless every process that serves
    /// has told which listeners it uses.
    pub(super) fn close_unused_listeners(&mut self) {
        let current = self.slots.iter().filter_map(|slot| slot.current.as_ref());
        let mut serving = current.filter(|current| current.is_serving());
        let has_told = |current: &Process| !current.listeners.is_empty();
        if serving.next().is_some_and(has_told) && serving.all(has_told) {
            let processes = self
                .slots
                .iter()
                .flat_map(Slot::processes)
                .chain(&self.unannounced);
            let used = processes.flat_map(|process| process.listeners.iter().copied());
            let used = used.collect();
            self.effects.push(Effect::CloseListenersExcept(used));
        }
    }

    // ---- the way out ----

    /// Has a process that has left its slot finish its requests and exit.
    pub(super) fn terminate(&mut self, process: Process) {
        self.end_surplus(process, None);
    }

    /// As [`terminate`](Self::terminate), for a process that another one has replaced, which adopts its
    /// connections if there is a `recipient`.
    pub(super) fn end_replaced(&mut self, mut process: Process, recipient: Option<u32>) {
        process.status.clear();
        let signal = self.policy.restart_signal;
        self.end(
            process,
            recipient,
            signal.unwrap_or(self.policy.stop_signal),
        );
    }

    /// As [`terminate`](Self::terminate). The process leaves its connections to the `recipient`, if it can
    /// and there is one.
    pub(super) fn end_surplus(&mut self, process: Process, recipient: Option<u32>) {
        self.end(process, recipient, self.policy.stop_signal);
    }

    /// Tells the process to leave its connections to the `recipient`, if it can, or else sends the signal.
    fn end(&mut self, mut process: Process, recipient: Option<u32>, signal: Signal) {
        let pid = process.pid;
        match recipient.filter(|_| process.can_leave()) {
            Some(recipient) => {
                self.effects.push(Effect::Leave {
                    pid,
                    recipient,
                    signal,
                });
                process.has_left = true;
            }
            // A second SIGTERM would end a process at once that finishes its requests.
            None if process.is_ending() => {}
            None => self.signal(pid, signal),
        }
        self.drain(process, false);
    }

    /// A process could not be told to leave its connections to another one: it gets the signal.
    pub(super) fn handle_failed_leave(&mut self, pid: u32, signal: Signal) {
        if let Some(process) = self.process_mut(pid) {
            process.has_left = false;
            self.signal(pid, signal);
        }
    }

    /// As [`terminate`](Self::terminate), for a process that stops already. It may take
    /// `stop_timeout`, or longer if it extends this (EXTEND_TIMEOUT_USEC).
    pub(super) fn drain(&mut self, mut process: Process, by_itself: bool) {
        // What ends already keeps its deadline.
        if !process.is_ending() {
            let exit_by = match self.shutdown {
                Some(_) => Deadline::NEVER,
                None => Deadline::after(self.now, self.policy.stop_timeout),
            };
            process.stage = Stage::Stopping { exit_by, by_itself };
        }
        self.draining.push(process);
    }

    /// Sends SIGABRT, which leaves a core dump where these are enabled. The process is killed if it
    /// has not exited after `abort_timeout`.
    pub(super) fn abort(&mut self, pid: u32, why: &str) {
        let kill_at = Deadline::after(self.now, self.policy.abort_timeout);
        let Some(process) = self
            .process_mut(pid)
            .filter(|process| !process.is_aborted())
        else {
            return;
        };
        let was_starting = process.is_starting();
        let (slot, round) = (process.slot, process.round);
        process.stage = Stage::Aborted { kill_at };
        let why = format!("process {pid} {why}");
        self.log(Severity::Error, format!("{why}: aborting it"));
        self.effects.push(Effect::Abort { pid });
        if let (true, Some(index)) = (was_starting, slot) {
            self.fail_round(round, index, &why);
        }
    }

    pub(super) fn handle_exit(&mut self, pid: u32, exit: &Exit) {
        match self.place_of(pid) {
            Some(Place::Current(index)) => {
                if let Some(current) = self.slots[index].current.take() {
                    self.handle_current_exit(index, &current, exit);
                }
            }
            Some(Place::Successor(index)) => {
                let Some(successor) = self.slots[index].successor.take() else {
                    return;
                };
                if self.slots[index].current.is_none() {
                    self.handle_current_exit(index, &successor, exit);
                } else if !successor.is_adopted {
                    // The predecessor of an adopted process tells why the restart failed.
                    let how = &exit.how;
                    let why = format!("process {pid} exited before it was ready ({how})");
                    self.fail_round(successor.round, index, &why);
                }
            }
            Some(Place::Draining) => {
                let index = self.draining.iter().position(|process| process.pid == pid);
                if let Some(process) = index.map(|index| self.draining.remove(index)) {
                    self.handle_drained(&process, exit);
                }
            }
            Some(Place::Unannounced) => self.unannounced.retain(|process| process.pid != pid),
            None => {}
        }
    }

    fn handle_drained(&mut self, process: &Process, exit: &Exit) {
        let why = format!("process {} exited ({})", process.pid, exit.how);
        self.log(Severity::Info, why.clone());
        let stopped_by_itself = matches!(
            process.stage,
            Stage::Stopping {
                by_itself: true,
                ..
            }
        );
        // If the process in its place serves, the program can be started.
        let is_down = |index: &usize| {
            self.slots
                .get(*index)
                .is_some_and(|slot| !slot.is_serving())
        };
        let slot = process.slot.filter(is_down);
        if let (true, Some(index), Some(code)) =
            (stopped_by_itself, slot, self.final_exit_code(exit))
        {
            self.give_up_slot(index, code, must_not_restart(&why, code));
        }
    }

    /// The current process of a slot has exited, or its successor after it: another process serves
    /// in its place, the slot is given up, or, in a stop, nothing follows.
    fn handle_current_exit(&mut self, index: usize, process: &Process, exit: &Exit) {
        let served = process.served(self.now);
        let when = match served {
            Some(served) => format!("after serving for {:.1} s", served.as_secs_f32()),
            None => "before it was ready".to_owned(),
        };
        let why = format!("process {} exited {when} ({})", process.pid, exit.how);
        let ready_by = Deadline::after(self.now, self.ready_limit());
        let slot = &mut self.slots[index];
        slot.record_death(self.now, &why);
        if self.shutdown.is_some() {
            return self.log(Severity::Info, why);
        }
        match slot.successor.take() {
            Some(mut successor) if successor.is_starting() => {
                if let Stage::Starting { ready_by: deadline } = &mut successor.stage {
                    *deadline = deadline.earlier(ready_by);
                }
                let pid = successor.pid;
                slot.successor = Some(successor);
                let text = format!("{why}; waiting for its successor, process {pid}");
                return self.log(Severity::Warn, text);
            }
            // It ends already.
            Some(successor) => self.drain(successor, false),
            None => {}
        }
        if served.is_none() {
            self.end_scale(Some(why.clone()));
        }
        if let Some(code) = self.final_exit_code(exit) {
            return self.give_up_slot(index, code, must_not_restart(&why, code));
        }
        self.schedule_start(index, served, &why);
        self.fail_round(process.round, index, &why);
    }

    /// The exit code, if it means that the program must not be started again.
    fn final_exit_code(&self, exit: &Exit) -> Option<i32> {
        let code = exit.code?;
        let is_final = match code {
            0 => !self.policy.restart_after_success,
            code => self.policy.no_restart_code == Some(code),
        };
        (is_final && self.shutdown.is_none()).then_some(code)
    }

    /// Starts no more processes in this slot, but by a restart that is asked for. If no slot is left,
    /// the supervisor exits with this code.
    fn give_up_slot(&mut self, index: usize, code: i32, why: String) {
        self.log(Severity::Error, why.clone());
        self.exit_code = code;
        self.end_scale(Some(why.to_owned()));
        let slot = &mut self.slots[index];
        slot.start_at = Deadline::NEVER;
        let processes = [slot.current.take(), slot.successor.take()];
        processes
            .into_iter()
            .flatten()
            .for_each(|process| self.terminate(process));
        self.fail_round(self.round_of(index), index, &why);
    }
}

fn must_not_restart(why: &str, code: i32) -> String {
    format!("{why}; exit code {code}: the program must not be started again")
}
