//! The processes: they are started, become ready, are watched, and exit.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::backoff::{self, BREAKER_LIMIT};
use super::notifications::ProcessLocation;
use super::run::Run;
use super::slot::{ProcessSlot, SupervisedProcess};
use super::thread_report;
use crate::clock::Deadline;
use crate::log;
use crate::notify;
use crate::sys::Signal;

impl Run {
    // ---- starting ----

    /// Starts a process for the slot at `index`, but does not put it there. The error is the reason
    /// in words.
    pub(super) fn start_process(&mut self, index: usize) -> Result<SupervisedProcess, String> {
        self.slots[index].generation += 1;
        let generation = self.slots[index].generation;
        let path = self.program.path().display();
        let spawned = self.spawn_process(generation);
        let pid = spawned.map_err(|error| format!("cannot start {path}: {error}"))?;
        log::info!("started process {pid}, generation {generation}: {path}");
        let ready_after = self.settings.ready_after;
        let timeout = ready_after.unwrap_or(self.settings.ready_timeout);
        let ready_by = Deadline::after(Instant::now(), timeout);
        Ok(SupervisedProcess {
            started_here: true,
            watchdog: self.settings.watchdog,
            ..SupervisedProcess::new(pid, generation, ready_by)
        })
    }

    fn start_in_slot(&mut self, index: usize) {
        self.slots[index].start_at = Deadline::NEVER;
        match self.start_process(index) {
            Ok(process) => self.slots[index].current = Some(process),
            Err(why) => {
                self.slots[index].last_failure = Some(why.clone());
                self.schedule_start(index, None, &why);
            }
        }
    }

    /// Starts a process in this slot after the back-off. `served` is how long the process
    /// before was ready, and `why` is why there is none now.
    pub(super) fn schedule_start(&mut self, index: usize, served: Option<Duration>, why: &str) {
        let slot = &mut self.slots[index];
        let jitter = backoff::random_jitter();
        let delay = slot
            .backoff
            .record_failure(&self.settings.backoff, served, jitter);
        slot.start_at = Deadline::after(Instant::now(), delay);
        slot.restarts += 1;
        let seconds = delay.as_secs_f32();
        if slot.backoff.is_breaker_open() {
            log::error!(
                "{why}; {} processes in a row have failed before they were ready (the limit is \
                 {BREAKER_LIMIT}): the next start is in {seconds:.1} s, and each further start waits \
                 as long until a process is ready",
                slot.backoff.failures_before_ready
            );
        } else {
            log::warn!("{why}; starting another process in {seconds:.2} s");
        }
        notify::send_status(format_args!(
            "{why}; starting another process in {seconds:.1} s"
        ));
        self.fail_rolling_restart(index, why);
    }

    // ---- being ready ----

    /// The current process of this slot serves from now on.
    pub(super) fn mark_ready(&mut self, index: usize) {
        let Some(current) = &mut self.slots[index].current else {
            return;
        };
        let now = Instant::now();
        current.ready_since = Some(now);
        // A server of this crate sends watchdog notifications from now on. Another program may send
        // none, and is not watched before it has sent one.
        current.last_watchdog =
            (current.starts_successors || current.last_watchdog.is_some()).then_some(now);
        if !current.aborted {
            current.deadline = Deadline::NEVER;
        }
        let (pid, generation) = (current.pid, current.generation);
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.max(generation);
        log::info!("process {pid}, generation {generation}, serves");
        self.close_unused_listeners();
        if !self.has_been_ready && self.shutdown.is_none() {
            self.has_been_ready = true;
            for slot in self.slots.iter_mut().filter(|slot| slot.is_down()) {
                slot.start_at = Deadline::at(Some(now));
            }
        }
        let all_ready = self.slots.iter().all(ProcessSlot::is_ready);
        if all_ready && self.rolling_restart.is_none() && self.shutdown.is_none() {
            self.sent_ready = true;
            notify::send_ready(None, self.summary());
        }
    }

    /// The successor in this slot serves from now on, and the process before it drains.
    pub(super) fn promote_successor(&mut self, index: usize) {
        if let Some(old) = self.slots[index].current.take() {
            self.terminate(old);
        }
        self.slots[index].current = self.slots[index].successor.take();
        self.slots[index].start_at = Deadline::NEVER;
        self.mark_ready(index);
    }

    pub(super) fn summary(&self) -> String {
        let ready = self.slots.iter().filter(|slot| slot.is_ready()).count();
        let generations = self.slots.iter().map(|slot| slot.generation);
        match self.slots.len() {
            1 if ready == 1 => format!("generation {} serves", generations.max().unwrap_or(0)),
            all => format!("{ready} of {all} processes serve"),
        }
    }

    /// Closes the held listeners that no process uses. Does nothing unless every ready process has
    /// told which listeners it uses.
    pub(super) fn close_unused_listeners(&mut self) {
        let current_processes = || self.slots.iter().filter_map(|slot| slot.current.as_ref());
        let mut ready = current_processes().filter(|current| current.ready_since.is_some());
        let has_told = |current: &SupervisedProcess| !current.listeners.is_empty();
        if ready.next().is_some_and(has_told) && ready.all(has_told) {
            let successors = self.slots.iter().filter_map(|slot| slot.successor.as_ref());
            let processes = current_processes()
                .chain(successors)
                .chain(&self.unannounced);
            let used: Vec<_> = processes
                .flat_map(|process| process.listeners.clone())
                .collect();
            self.listeners.close_unused(&used);
        }
    }

    // ---- exits ----

    /// Makes a process that has left its slot finish its requests and exit.
    pub(super) fn terminate(&mut self, process: SupervisedProcess) {
        process.send(Signal::Terminate);
        self.drain(process);
    }

    /// As [`terminate`](Self::terminate), for a process that stops already. It may take
    /// `stop_timeout`, or longer if it extends this (EXTEND_TIMEOUT_USEC).
    pub(super) fn drain(&mut self, mut process: SupervisedProcess) {
        if !process.aborted {
            process.stopping = true;
            process.deadline = match self.shutdown {
                Some(_) => Deadline::NEVER,
                None => Deadline::after(Instant::now(), self.settings.stop_timeout),
            };
        }
        self.draining.push(process);
    }

    /// A process has exited. Its status is unknown if another process has reaped it.
    pub(super) fn handle_exit(&mut self, pid: u32, status: Option<ExitStatus>) {
        let how = status.map_or("exit status unknown".to_owned(), |status| {
            status.to_string()
        });
        let dry_run = self.dry_run.as_ref().map(|dry_run| &dry_run.process);
        if dry_run.is_some_and(|process| process.pid == pid) {
            return self.finish_dry_run(&how);
        }
        match self.location_of(pid) {
            Some(ProcessLocation::Current(index)) => {
                let current = self.slots[index].current.take();
                let ready_since = current.and_then(|current| current.ready_since);
                let served = ready_since.map(|since| since.elapsed());
                self.handle_current_exit(index, pid, served, status, &how);
            }
            Some(ProcessLocation::Successor(index)) => {
                let successor = self.slots[index].successor.take();
                if self.slots[index].current.is_none() {
                    self.handle_current_exit(index, pid, None, status, &how);
                } else if successor.is_some_and(|successor| !successor.starts_successors) {
                    let why = format!("process {pid} exited before it was ready ({how})");
                    self.fail_rolling_restart(index, &why);
                }
            }
            Some(ProcessLocation::Draining(index)) => {
                let process = self.draining.remove(index);
                let why = format!("process {pid} exited ({how})");
                log::info!("{why}");
                if let (Some(index), Some(code)) =
                    (process.replaced_in, self.final_exit_code(status))
                {
                    self.give_up_slot(index, code, &why);
                }
            }
            Some(ProcessLocation::Unannounced(index)) => {
                self.unannounced.remove(index);
            }
            None => log::debug!("process {pid}, which is not supervised, exited ({how})"),
        }
    }

    /// The current process of a slot has exited, or its successor after it: another process serves
    /// in its place, the slot is given up, or, in a stop, nothing follows.
    fn handle_current_exit(
        &mut self,
        index: usize,
        pid: u32,
        served: Option<Duration>,
        status: Option<ExitStatus>,
        how: &str,
    ) {
        let when = match served {
            Some(served) => format!("after serving for {:.1} s", served.as_secs_f32()),
            None => "before it was ready".to_owned(),
        };
        let why = format!("process {pid} exited {when} ({how})");
        let slot = &mut self.slots[index];
        slot.last_failure = Some(why.clone());
        if self.shutdown.is_some() {
            log::info!("{why}");
        } else if let Some(successor) = &mut slot.successor {
            log::warn!(
                "{why}; waiting for its successor, process {}",
                successor.pid
            );
            let ready_by = Deadline::after(Instant::now(), self.settings.ready_timeout);
            successor.deadline = successor.deadline.earlier(ready_by);
            self.fail_rolling_restart(index, &why);
        } else if let Some(code) = self.final_exit_code(status) {
            self.give_up_slot(index, code, &why);
        } else {
            self.schedule_start(index, served, &why);
        }
    }

    /// The exit code, if it means that the program must not be started again.
    fn final_exit_code(&self, status: Option<ExitStatus>) -> Option<i32> {
        let code = status?.code()?;
        let is_final = match code {
            0 => !self.settings.restart_after_success,
            code => self.settings.no_restart_code == Some(code),
        };
        is_final.then_some(code)
    }

    /// Starts no more processes in this slot.
    fn give_up_slot(&mut self, index: usize, code: i32, why: &str) {
        log::error!("{why}; exit code {code} means that the program must not be started again");
        self.exit_code = code;
        self.slots[index].start_at = Deadline::NEVER;
        if let Some(current) = self.slots[index].current.take() {
            self.terminate(current);
        }
        self.fail_rolling_restart(index, why);
    }

    // ---- deadlines ----

    /// When the current process of this slot counts as hung, unless a watchdog notification comes.
    pub(super) fn watchdog_deadline(&self, slot: &ProcessSlot) -> Deadline {
        let current = slot.current.as_ref().filter(|current| current.is_serving());
        match current.map(|current| (current.watchdog, current.last_watchdog)) {
            Some((Some(limit), Some(last))) if self.shutdown.is_none() => {
                Deadline::after(last, limit)
            }
            _ => Deadline::NEVER,
        }
    }

    /// Starts the processes that are due.
    pub(super) fn start_due_processes(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            if self.slots[index].start_at.has_passed(now) && self.shutdown.is_none() {
                self.start_in_slot(index);
            }
        }
    }

    /// With `ready_after`: a process that has run for this long is ready.
    pub(super) fn mark_due_ready(&mut self, now: Instant) {
        if self.settings.ready_after.is_none() || self.shutdown.is_some() {
            return;
        }
        let is_due = |process: &Option<SupervisedProcess>| {
            let mut starting = process.iter().filter(|p| p.ready_since.is_none());
            starting.any(|p| !p.aborted && p.deadline.has_passed(now))
        };
        for index in 0..self.slots.len() {
            if is_due(&self.slots[index].successor) {
                self.promote_successor(index);
            } else if is_due(&self.slots[index].current) {
                self.mark_ready(index);
            }
        }
    }

    /// Aborts the processes whose watchdog notifications are late.
    pub(super) fn abort_hung_processes(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let is_hung = self.watchdog_deadline(&self.slots[index]).has_passed(now);
            if let (true, Some(current)) = (is_hung, &mut self.slots[index].current) {
                let timeout = self.settings.abort_timeout;
                abort_process(current, "has not sent WATCHDOG=1 in time", timeout);
            }
        }
    }

    /// Aborts the processes whose deadline has passed, and kills those that are aborted already.
    pub(super) fn handle_process_deadlines(&mut self, now: Instant) {
        let abort_timeout = self.settings.abort_timeout;
        for process in self.processes_mut().filter(|p| p.deadline.has_passed(now)) {
            if process.aborted {
                log::error!("process {} does not exit: killing it", process.pid);
                process.send(Signal::Kill);
                process.deadline = Deadline::after(now, abort_timeout);
            } else {
                let why = match process.stopping {
                    true => "has not exited in time",
                    false => "was not ready in time",
                };
                abort_process(process, why, abort_timeout);
            }
        }
    }
}

/// Sends SIGABRT, which leaves a core dump where these are enabled, after the thread report was
/// logged. The process is killed if it has not exited after `timeout`.
pub(super) fn abort_process(process: &mut SupervisedProcess, why: &str, timeout: Duration) {
    if process.aborted {
        return;
    }
    log::error!("process {} {why}: aborting it", process.pid);
    for line in thread_report::describe_threads(process.pid) {
        log::error!("process {}: {line}", process.pid);
    }
    process.send(Signal::Abort);
    process.aborted = true;
    process.deadline = Deadline::after(Instant::now(), timeout);
}
