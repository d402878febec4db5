//! What becomes of the processes: they are started, are ready, are watched, and end.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::backoff::{self, BREAKER};
use super::crash_report;
use super::notifications::Position;
use super::run::Run;
use super::slot::SupervisedProcess;
use super::spawn::{self, ProcessInputs};
use crate::clock::Deadline;
use crate::notify;
use crate::sys::Signal;

impl Run {
    // ---- starting ----

    /// Starts a process; an error is the reason why there is none.
    pub(super) fn start(&mut self, index: usize) -> Result<SupervisedProcess, String> {
        self.slots[index].generation += 1;
        let generation = self.slots[index].generation;
        let started = spawn::spawn_process(
            &self.program,
            &ProcessInputs {
                listeners: &self.listeners,
                notify: self.notify.name(),
                lifeline: &self.lifeline.1,
                watchdog: self.settings.watchdog,
                generation,
            },
        );
        let path = self.program.path().display();
        match started {
            Ok(pid) => {
                log::info!("started process {pid}, generation {generation}: {path}");
                let within = self.settings.settle.unwrap_or(self.settings.ready_timeout);
                let deadline = Deadline::after(Instant::now(), within);
                Ok(SupervisedProcess {
                    is_own: true,
                    watchdog: self.settings.watchdog,
                    ..SupervisedProcess::new(pid, generation, deadline)
                })
            }
            Err(error) => Err(format!("cannot start {path}: {error}")),
        }
    }

    fn start_in(&mut self, index: usize) {
        self.slots[index].due = Deadline::NEVER;
        match self.start(index) {
            Ok(process) => self.slots[index].main = Some(process),
            Err(why) => {
                self.slots[index].last_end = Some(why.clone());
                self.start_later(index, None, &why);
            }
        }
    }

    /// A process is gone, for this reason.
    pub(super) fn start_later(&mut self, index: usize, served: Option<Duration>, why: &str) {
        let slot = &mut self.slots[index];
        let delay = slot
            .backoff
            .died(&self.settings.backoff, served, backoff::jitter());
        slot.due = Deadline::after(Instant::now(), delay);
        slot.restarts += 1;
        let seconds = delay.as_secs_f32();
        if slot.backoff.is_open() {
            log::error!(
                "{why}; it has died {} times in a row before it was ready (the limit is {BREAKER}): the \
                 next start is in {seconds:.1} s, and no sooner from now on until one is",
                slot.backoff.before_ready
            );
        } else {
            log::warn!("{why}; starting it anew in {seconds:.2} s");
        }
        notify::status(format_args!("{why}; starting it anew in {seconds:.1} s"));
        self.fail_roll(index, why);
    }

    // ---- being ready ----

    pub(super) fn became_ready(&mut self, index: usize) {
        let Some(main) = &mut self.slots[index].main else {
            return;
        };
        let now = Instant::now();
        main.ready = Some(now);
        // A server of ours tells how it is whenever it is asked to; another program may never.
        main.heard = (main.restarts_itself || main.heard.is_some()).then_some(now);
        if !main.aborted {
            main.deadline = Deadline::NEVER;
        }
        let (pid, generation) = (main.pid, main.generation);
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.max(generation);
        log::info!("process {pid}, generation {generation}, serves");
        self.close_unwanted();
        if !self.opened && self.stop.is_none() {
            self.opened = true;
            for slot in self.slots.iter_mut().filter(|slot| slot.is_given_up()) {
                slot.due = Deadline::at(Some(now));
            }
        }
        let is_whole = self.slots.iter().all(|slot| slot.is_ready());
        if is_whole && self.rolling.is_none() && self.stop.is_none() {
            self.announced = true;
            notify::ready(None, self.summary());
        }
    }

    /// The latest of those that were started.
    pub(super) fn generation(&self) -> u64 {
        let generations = self.slots.iter().map(|slot| slot.generation);
        generations.max().unwrap_or_default()
    }

    pub(super) fn summary(&self) -> String {
        let ready = self.slots.iter().filter(|slot| slot.is_ready()).count();
        match self.slots.len() {
            1 if ready == 1 => format!("generation {} serves", self.generation()),
            all => format!("{ready} of {all} processes serve"),
        }
    }

    /// Closes the listeners that no process wants any more, if there is a process that would say so.
    pub(super) fn close_unwanted(&mut self) {
        let mains = || self.slots.iter().filter_map(|slot| slot.main.as_ref());
        let mut ready = mains().filter(|main| main.ready.is_some());
        let says = |main: &SupervisedProcess| !main.listeners.is_empty();
        if ready.next().is_some_and(says) && ready.all(says) {
            let nexts = self.slots.iter().filter_map(|slot| slot.next.as_ref());
            let all = mains().chain(nexts).chain(&self.unannounced);
            let wanted: Vec<_> = all.flat_map(|process| process.listeners.clone()).collect();
            self.listeners.keep_only(&wanted);
        }
    }

    /// Lets a process come to its end by itself. It has its own limit for that; one that says nothing has the supervisor's.
    pub(super) fn drain(&mut self, mut process: SupervisedProcess) {
        if !process.aborted {
            process.stopping = true;
            let within = Deadline::after(Instant::now(), self.settings.stop_timeout);
            process.deadline = if self.stop.is_some() {
                Deadline::NEVER
            } else {
                within
            };
        }
        self.draining.push(process);
    }

    // ---- ends ----

    /// A process has ended; how is not always known.
    pub(super) fn ended(&mut self, pid: u32, status: Option<ExitStatus>) {
        let how = status.map_or_else(
            || "nobody knows how".to_owned(),
            |status| status.to_string(),
        );
        if self
            .rehearsal
            .as_ref()
            .is_some_and(|rehearsal| rehearsal.process.pid == pid)
        {
            return self.rehearsed(&how);
        }
        match self.place(pid) {
            Some(Position::Main(index)) => {
                let main = self.slots[index].main.take();
                let served = main
                    .and_then(|main| main.ready)
                    .map(|ready| ready.elapsed());
                self.main_ended(index, pid, served, status, &how);
            }
            Some(Position::Next(index)) => {
                let next = self.slots[index].next.take();
                let why = format!("process {pid} ended before it was ready ({how})");
                if self.slots[index].main.is_none() {
                    self.main_ended(index, pid, None, status, &how);
                } else if next.is_some_and(|next| !next.restarts_itself) {
                    self.fail_roll(index, &why);
                }
            }
            Some(Position::Draining(index)) => {
                let process = self.draining.remove(index);
                log::info!("process {pid} has ended ({how})");
                if let (Some(index), Some(code)) = (process.replaced_in, self.final_code(status)) {
                    self.give_up(index, code, &format!("process {pid} has ended ({how})"));
                }
            }
            Some(Position::Unannounced(index)) => {
                self.unannounced.remove(index);
            }
            None => log::debug!("process {pid}, which nobody waited for, has ended ({how})"),
        }
    }

    fn main_ended(
        &mut self,
        index: usize,
        pid: u32,
        served: Option<Duration>,
        status: Option<ExitStatus>,
        how: &str,
    ) {
        let served_for = match served {
            Some(served) => format!("after it had served for {:.1} s", served.as_secs_f32()),
            None => "before it was ready".to_owned(),
        };
        let why = format!("process {pid} ended {served_for} ({how})");
        let slot = &mut self.slots[index];
        slot.last_end = Some(why.clone());
        if self.stop.is_some() {
            log::info!("{why}");
        } else if let Some(next) = &mut slot.next {
            log::warn!("{why}; the one that it has started may serve");
            let latest = Deadline::after(Instant::now(), self.settings.ready_timeout);
            next.deadline = next.deadline.earlier(latest);
            self.fail_roll(index, &why);
        } else if let Some(code) = self.final_code(status) {
            self.give_up(index, code, &why);
        } else {
            self.start_later(index, served, &why);
        }
    }

    /// The code by which a process says that it is not to be started again, if it does.
    fn final_code(&self, status: Option<ExitStatus>) -> Option<i32> {
        let code = status?.code()?;
        let is_final = match code {
            0 => !self.settings.restart_after_success,
            code => self.settings.no_restart == Some(code),
        };
        is_final.then_some(code)
    }

    fn give_up(&mut self, index: usize, code: i32, why: &str) {
        log::error!("{why}: by this it says that it is not to be started again");
        self.exit_code = code;
        self.slots[index].due = Deadline::NEVER;
        if let Some(other) = self.slots[index].main.take() {
            other.send(Signal::Terminate);
            self.drain(other);
        }
        self.fail_roll(index, why);
    }

    // ---- time ----

    /// When it is too late for a serving process to say that it makes progress.
    pub(super) fn beat_deadline(&self, main: &SupervisedProcess) -> Deadline {
        match main.watchdog {
            Some(limit) if main.is_fine() && self.stop.is_none() => {
                let late = |heard| Deadline::after(heard, limit);
                main.heard.map_or(Deadline::NEVER, late)
            }
            _ => Deadline::NEVER,
        }
    }

    pub(super) fn look_at_processes(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            if self.slots[index].due.passed(now) && self.stop.is_none() {
                self.start_in(index);
            }
            let settles = self.settings.settle.is_some() && self.stop.is_none();
            let is_late = |process: &Option<SupervisedProcess>| {
                process
                    .as_ref()
                    .is_some_and(|p| p.deadline.passed(now) && !p.aborted && p.ready.is_none())
            };
            if settles && is_late(&self.slots[index].next) {
                // It has lived for as long as it was asked to.
                self.promote_next(index);
            } else if settles && is_late(&self.slots[index].main) {
                self.became_ready(index);
            }
            let wedged = self.slots[index].main.as_ref();
            let wedged = wedged.is_some_and(|main| self.beat_deadline(main).passed(now));
            let limit = self.settings.abort_timeout;
            if let (true, Some(main)) = (wedged, &mut self.slots[index].main) {
                abort(main, "has not said in time that it makes progress", limit);
            }
        }
        let limit = self.settings.abort_timeout;
        let late = self
            .live_mut()
            .filter(|process| process.deadline.passed(now));
        for process in late {
            if process.aborted {
                log::error!("process {} does not end: killing it", process.pid);
                process.send(Signal::Kill);
                process.deadline = Deadline::after(now, limit);
            } else {
                let what = match process.stopping {
                    true => "has not ended in time",
                    false => "was not ready in time",
                };
                abort(process, what, limit);
            }
        }
    }
}

/// Ends a process such that something is left to learn from: its core, and what its threads do.
pub(super) fn abort(process: &mut SupervisedProcess, why: &str, limit: Duration) {
    if process.aborted {
        return;
    }
    log::error!("process {} {why}: aborting it", process.pid);
    for line in crash_report::threads(process.pid) {
        log::error!("process {}: {line}", process.pid);
    }
    process.send(Signal::Abort);
    process.aborted = true;
    process.deadline = Deadline::after(Instant::now(), limit);
}
