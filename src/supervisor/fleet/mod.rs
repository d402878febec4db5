//! The supervisor's policy as a value: `(event, now) → effects`.
//!
//! A [`Fleet`] decides when processes are started, signalled, aborted and given up, and what the
//! operators and the service manager are told. It knows no descriptor, no clock and no process: the
//! loop in [`run`](super::run) turns what happens into events, and does the effects. So a simulator
//! can play any history against the fleet: `tests/fleet.rs` does, and checks the promises below
//! after each event.
//!
//! | file | what it holds |
//! |---|---|
//! | [`event`] | the events and the effects |
//! | [`process`] | a process, and its stages |
//! | [`slot`] | the place of one process that is to serve |
//! | [`backoff`] | how long to wait before another process is started |
//! | [`round`] | a round of restarts |
//! | [`processes`] | starts, readiness and exits |
//! | [`notices`] | the notifications of processes |
//! | [`restarts`] | graceful restarts |
//! | [`recycling`] | processes that have served for long or many requests, or are large, are replaced |
//! | [`scale`] | the number of slots, which may change at run time |
//! | [`upgrade`] | the upgrade of the supervisor |
//!
//! # Promises
//!
//! 1. A restart takes no acceptor away before its successor is ready.
//! 2. At most one round of restarts is in progress, and each slot has at most one process that
//!    starts beside the one that serves.
//! 3. Each client that waits gets one answer, and the answer is true: after a success, all slots
//!    serve with processes that were started after the client asked.
//! 4. Each process that was started serves, is on its way there with a deadline, or is on its way
//!    out with a deadline.
//! 5. No process is started before its back-off has passed, except by a restart that was asked for.
//! 6. A stop ends all processes within its deadline, and starts none.
//! 7. No process is aborted because the supervisor, or the supervisor and all processes, did not run
//!    for a while.
//!
//! # A process dies while its successor warms up, and a stop arrives
//!
//! 1. *The restart.* `Restart` begins a round. A process of this crate is sent SIGHUP and starts its
//!    successor itself; for any other program the fleet wants the successor started. The old process
//!    is the slot's `current`, and serves on; the new process is its `successor`.
//! 2. *The death.* `Exited` takes `current` out of its slot. Since there is a successor, nothing is
//!    started: the successor gets `ready_timeout` from now on, and the round goes on. Until the
//!    successor is ready, clients wait in the kernel's queues of the listeners, which the supervisor
//!    holds.
//!    - If the successor is ready in time, it becomes `current`, the slot is complete, and the round
//!      goes on with the next slot. After the last one the clients get their answer.
//!    - If it exits before, the round fails with this reason, and the fleet starts another process
//!      after the back-off. If it is not ready in time, it is aborted, and its exit follows.
//! 3. *The stop.* `Stop` sends SIGTERM to all processes, the successor among them, and puts one
//!    deadline in place of all of theirs. The round ends: its clients, and those of the round that
//!    waits, are told that the supervisor is being stopped. Starts that were due are forgotten.
//!    READY=1 of the successor changes nothing any more.
//! 4. *The end.* Each `Exited` only takes its process away. When none is left, the outcome is there.
//!    If the deadline passes before, all are sent SIGKILL; 5 s later the supervisor exits without
//!    those that are left.
//!
//! If the stop arrives first and the death follows, step 2 is left out: a death during a stop is an
//! exit like all others.

pub(crate) mod backoff;
pub(crate) mod event;
pub(crate) mod notices;
pub(crate) mod process;
pub(crate) mod processes;
pub(crate) mod recycling;
pub(crate) mod restarts;
pub(crate) mod round;
pub(crate) mod scale;
pub(crate) mod slot;
pub(crate) mod upgrade;

use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::sys::Signal;

use backoff::BackoffSettings;
use event::{Effect, Event, ManagerNotice, Severity};
use process::{Process, Stage, Watch};
use recycling::RecyclingSettings;
use round::Round;
use scale::Scale;
use slot::Slot;
use upgrade::Upgrade;

/// The settings of a [`Fleet`]. `Supervisor` has a setter of the same name for each, where nothing
/// else is said.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The number of slots, unless another one was asked for at run time.
    pub(crate) processes: usize,
    pub(crate) ready_timeout: Duration,
    pub(crate) ready_after: Option<Duration>,
    pub(crate) stop_timeout: Duration,
    pub(crate) watchdog: Option<Duration>,
    pub(crate) abort_timeout: Duration,
    pub(crate) backoff: BackoffSettings,
    pub(crate) max_draining: usize,
    pub(crate) recycling: RecyclingSettings,
    pub(crate) restart_after_success: bool,
    /// Failures in a row before a process was ready. Never, if `None`.
    pub(crate) give_up_after: Option<u32>,
    pub(crate) no_restart_code: Option<i32>,
    /// Has a process finish its requests and exit.
    pub(crate) stop_signal: Signal,
    /// The same, for a process that another one has replaced; `stop_signal` if `None`.
    pub(crate) restart_signal: Option<Signal>,
    /// Successors are always started by the supervisor, even if a process could start its own. So a
    /// wrapper script is run again at each restart.
    pub(crate) starts_all: bool,
}

/// The slots and all processes, and what is in progress. See the head of this file.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) policy: Policy,
    pub(crate) slots: Vec<Slot>,
    /// Processes that have left their slot, and exit when they have finished their requests.
    pub(crate) draining: Vec<Process>,
    /// Processes that notified us before their predecessor announced them, because the predecessor
    /// died or stopped while it started them.
    pub(crate) unannounced: Vec<Process>,
    pub(crate) round: Option<Round>,
    /// The clients of the round that follows, if one was asked for while a round was in progress.
    pub(crate) next_round: Option<Vec<u64>>,
    /// The number of rounds so far.
    pub(crate) rounds: u64,
    /// The result of the last round, and how long it took.
    pub(crate) last_restart: Option<FinishedRestart>,
    /// After a recycling that has failed: when the next one may begin.
    pub(crate) recycle_not_before: Deadline,
    /// The process that began to serve last was larger than the limit already, and this was logged.
    has_low_limit: bool,
    /// When processes must have told how many requests they have served, and whether this was set.
    check_reports_at: Deadline,
    has_checked_reports: bool,
    pub(crate) scale: Scale,
    pub(crate) upgrade: Upgrade,
    pub(crate) shutdown: Option<Shutdown>,
    /// A process has been ready. Until then, only the first slot starts one.
    pub(crate) has_been_ready: bool,
    /// All slots have been ready, and the service manager was told.
    pub(crate) sent_ready: bool,
    /// The exit code if every slot is given up.
    pub(crate) exit_code: i32,
    /// The state of the random numbers for the jitter.
    random: u64,
    /// The time of the event in hand.
    now: Instant,
    /// When the next event comes at the latest, as the loop was told.
    next_event_by: Deadline,
    /// What this event has led to so far.
    effects: Vec<Effect>,
}

/// A stop in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shutdown {
    /// When processes that have not exited are killed. After that, when the supervisor exits
    /// without waiting for them.
    pub(crate) deadline: Deadline,
    /// Processes cannot extend the deadline.
    is_immediate: bool,
    /// SIGKILL was sent to all processes.
    was_killed: bool,
}

/// The last restart that was requested.
#[derive(Clone, Debug)]
pub(crate) struct FinishedRestart {
    /// Why the restart failed; `None` if it succeeded.
    pub(crate) error: Option<String>,
    pub(crate) took: Duration,
    pub(crate) ended_at: Instant,
}

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    /// Processes had to be killed, and may have left children behind.
    pub(crate) was_killed: bool,
}

/// How long processes may take to exit after SIGKILL, and after SIGQUIT before SIGKILL follows.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// When an event comes this much later than the loop was to wait, the supervisor has not run: it
/// was stopped (SIGSTOP), or the machine was.
pub(crate) const STALL: Duration = Duration::from_millis(250);

/// A stall that is longer than this and [`STALL`] is always noticed while a process has a deadline.
pub(crate) const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

const IS_STOPPING: &str = "the supervisor is being stopped";

impl Policy {
    /// Whether this signal has a process finish its requests and exit.
    pub(crate) fn stops_by(&self, signal: Signal) -> bool {
        self.stop_signal == signal || self.restart_signal == Some(signal)
    }
}

impl Fleet {
    /// A fleet that is to start its first process now. `seed` is for the jitter of the back-off.
    pub(crate) fn new(policy: Policy, now: Instant, seed: u64) -> Self {
        let first = Slot::new(Deadline::at(Some(now)));
        let others = (1..policy.processes).map(|_| Slot::new(Deadline::NEVER));
        Self {
            slots: std::iter::once(first).chain(others).collect(),
            policy,
            draining: Vec::new(),
            unannounced: Vec::new(),
            round: None,
            next_round: None,
            rounds: 0,
            last_restart: None,
            recycle_not_before: Deadline::at(Some(now)),
            has_low_limit: false,
            check_reports_at: Deadline::NEVER,
            has_checked_reports: false,
            scale: Scale::default(),
            upgrade: Upgrade::default(),
            shutdown: None,
            has_been_ready: false,
            sent_ready: false,
            exit_code: 0,
            random: seed,
            now,
            next_event_by: Deadline::NEVER,
            effects: Vec::new(),
        }
    }

    /// Handles an event, and returns what is to be done, in this order. Deadlines are looked at with
    /// [`Event::Tick`] only, which must come after all other events that are there already.
    pub(crate) fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let last_event = std::mem::replace(&mut self.now, now);
        let is_start = matches!(event, Event::Started { .. } | Event::StartFailed { .. });
        self.forgive_stall(last_event, is_start);
        match event {
            Event::Started { slot, pid } => self.add_started(slot, pid),
            Event::StartFailed { slot, why } => self.handle_failed_start(slot, why),
            Event::Exited { pid, exit } => self.handle_exit(pid, &exit),
            Event::Notified { pid, notice } => self.handle_notice(pid, notice),
            Event::LeaveFailed { pid, signal } => self.handle_failed_leave(pid, signal),
            Event::Restart { client } => self.request_round(client),
            Event::Scale { processes, client } => self.request_scale(processes, client),
            Event::Upgrade { client } => self.request_upgrade(client),
            Event::DryRunEnded(result) => self.finish_dry_run(result),
            Event::NotReplaced { why } => {
                self.end_upgrade(Some(why));
                self.notify_state();
            }
            Event::Replaced => self.resume(),
            Event::Stop => self.stop(),
            Event::StopNow => self.stop_now(),
            Event::User1 if self.policy.stops_by(Signal::User1) => {
                let text = "SIGUSR1 is not passed on: it is the signal that stops processes";
                self.log(Severity::Warn, text.to_owned());
            }
            Event::User1 => {
                // SIGUSR1 kills a process that has not installed its handler yet.
                let ready = self
                    .processes()
                    .filter(|process| process.ready_since.is_some());
                let pids = ready.map(|process| process.pid).collect();
                self.signal_each(pids, Signal::User1);
            }
            Event::Measured { pid, bytes } => self.handle_size(pid, bytes),
            Event::Tick => self.handle_deadlines(),
        }
        self.advance_round();
        self.advance_scale();
        self.advance_upgrade();
        // What is due already is no sign of a stall.
        self.next_event_by = self.deadline().later(Deadline::at(Some(now)));
        std::mem::take(&mut self.effects)
    }

    /// When the next [`Event::Tick`] must come.
    pub(crate) fn deadline(&self) -> Deadline {
        let slots = self.slots.iter().map(|slot| slot.start_at);
        let processes = self.processes().map(Process::deadline);
        let others = [
            self.shutdown.map_or(Deadline::NEVER, |stop| stop.deadline),
            self.round.as_ref().map_or(Deadline::NEVER, Round::deadline),
            self.upgrade.deadline(),
            self.recycling_deadline(),
            self.check_reports_at,
        ];
        slots
            .chain(processes)
            .chain(others)
            .chain(self.next_stall_check())
            .fold(Deadline::NEVER, Deadline::earlier)
    }

    /// While a process has a deadline, events come often enough for a stall to be noticed. Processes
    /// that serve need no such check: theirs is [`Watch::Late`].
    fn next_stall_check(&self) -> Option<Deadline> {
        let has_deadline =
            |process: &Process| !process.is_serving() && process.deadline() != Deadline::NEVER;
        let is_needed = self.processes().any(has_deadline);
        is_needed.then(|| Deadline::after(self.now, STALL_CHECK_INTERVAL))
    }

    /// How the supervisor ends; `None` as long as it goes on.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        let gives_up = self
            .shutdown
            .is_some_and(|stop| stop.was_killed && stop.deadline.has_passed(self.now));
        let has_process = self.processes().next().is_some() || self.upgrade.has_dry_run();
        let is_over = gives_up || !has_process && self.slots.iter().all(Slot::is_down);
        is_over.then(|| match self.shutdown {
            Some(stop) => Outcome {
                code: i32::from(stop.was_killed),
                was_killed: stop.was_killed,
            },
            None => Outcome {
                code: self.exit_code,
                was_killed: false,
            },
        })
    }

    /// All processes that serve, are to serve, or have served.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        let in_slots = self.slots.iter().flat_map(Slot::processes);
        in_slots.chain(&self.draining).chain(&self.unannounced)
    }

    fn processes_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        let in_slots = self.slots.iter_mut();
        let in_slots = in_slots.flat_map(|slot| [&mut slot.current, &mut slot.successor]);
        in_slots
            .flatten()
            .chain(&mut self.draining)
            .chain(&mut self.unannounced)
    }

    fn process_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.processes_mut().find(|process| process.pid == pid)
    }

    /// How many slots serve.
    pub(crate) fn serving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_serving()).count()
    }

    /// The state of the service, in words.
    pub(crate) fn summary(&self) -> String {
        match (&self.slots[..], self.serving()) {
            ([slot], 1) => {
                let generation = slot
                    .current
                    .as_ref()
                    .map_or(0, |current| current.generation);
                format!("generation {generation} serves")
            }
            (slots, serving) => format!("{serving} of {} processes serve", slots.len()),
        }
    }

    /// How long a process may take to become ready.
    fn ready_limit(&self) -> Duration {
        self.policy.ready_after.unwrap_or(self.policy.ready_timeout)
    }

    // ---- effects ----

    fn signal(&mut self, pid: u32, signal: Signal) {
        self.effects.push(Effect::Signal { pid, signal });
    }

    fn notify(&mut self, notice: ManagerNotice) {
        self.effects.push(Effect::Notify(notice));
    }

    /// Tells the service manager how many processes serve.
    fn notify_state(&mut self) {
        let summary = self.summary();
        self.sent_ready |= self.slots.iter().all(Slot::is_serving);
        self.notify(match self.sent_ready {
            true => ManagerNotice::Ready(summary),
            false => ManagerNotice::Status(summary),
        });
    }

    fn log(&mut self, severity: Severity, text: String) {
        self.effects.push(Effect::Log(severity, text));
    }

    fn reply(&mut self, clients: Vec<u64>, error: &Option<String>, took: Option<Duration>) {
        for client in clients {
            let error = error.clone();
            self.effects.push(Effect::Reply {
                client,
                error,
                took,
            });
        }
    }

    // ---- the stop ----

    fn stop(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        let timeout = self.policy.stop_timeout;
        self.notify(ManagerNotice::Stopping("stopping"));
        self.notify(ManagerNotice::MoreTime(
            timeout.saturating_add(KILL_TIMEOUT),
        ));
        self.begin_stop(timeout, false, self.policy.stop_signal);
    }

    fn stop_now(&mut self) {
        self.notify(ManagerNotice::Stopping("stopping at once"));
        // Programs that are to finish their requests on another signal stop at once on SIGTERM.
        let signal = match self.policy.stop_signal {
            Signal::Terminate => Signal::Quit,
            _ => Signal::Terminate,
        };
        self.begin_stop(KILL_TIMEOUT, true, signal);
    }

    fn begin_stop(&mut self, timeout: Duration, is_immediate: bool, signal: Signal) {
        let deadline = Deadline::after(self.now, timeout);
        let before = self.shutdown.map_or(Deadline::NEVER, |stop| stop.deadline);
        self.shutdown = Some(Shutdown {
            deadline: deadline.earlier(before),
            is_immediate,
            was_killed: self.shutdown.is_some_and(|stop| stop.was_killed),
        });
        for slot in &mut self.slots {
            slot.start_at = Deadline::NEVER;
        }
        // A second SIGTERM would end a process at once that finishes its requests.
        let is_told = |process: &Process| !is_immediate && process.is_ending() && !process.has_left;
        let untold = self.processes().filter(|process| !is_told(process));
        let pids: Vec<_> = untold.map(|process| process.pid).collect();
        self.signal_each(pids, signal);
        for process in self.processes_mut().filter(|process| !process.is_aborted()) {
            process.stage = Stage::Stopping {
                exit_by: Deadline::NEVER,
                by_itself: false,
            };
        }
        self.end_all_rounds(IS_STOPPING);
        self.end_scale(Some(IS_STOPPING.to_owned()));
        self.end_upgrade(Some(IS_STOPPING.to_owned()));
    }

    fn signal_each(&mut self, pids: Vec<u32>, signal: Signal) {
        pids.into_iter().for_each(|pid| self.signal(pid, signal));
    }

    // ---- time ----

    /// If the supervisor has not run for a while, gives every process the time that has passed since
    /// the last event: the stall may have begun then. Before the answer to a start, the supervisor
    /// waits for the new process to execute the program.
    fn forgive_stall(&mut self, last_event: Instant, is_start: bool) {
        let now = self.now;
        let due = self.next_event_by.instant();
        if due.is_none_or(|due| now.saturating_duration_since(due) < STALL) {
            return;
        }
        let stall = now.saturating_duration_since(last_event);
        let what = match is_start {
            true => "the supervisor was busy starting a process",
            false => "the supervisor has not run",
        };
        let seconds = stall.as_secs_f32();
        let text = format!("{what} for {seconds:.1} s: the processes have more time");
        self.log(Severity::Warn, text);
        if let Some(round) = &mut self.round {
            round.forgive(stall);
        }
        if let Some(stop) = self.shutdown.as_mut().filter(|stop| !stop.was_killed) {
            stop.deadline = stop.deadline.postponed(stall);
        }
        self.processes_mut()
            .for_each(|process| process.forgive(stall, now));
    }

    fn handle_deadlines(&mut self) {
        let now = self.now;
        if self.shutdown.is_none() {
            for index in 0..self.slots.len() {
                if self.slots[index].start_at.has_passed(now) {
                    self.start(index);
                }
            }
        }
        let due = self
            .processes()
            .filter(|process| process.deadline().has_passed(now));
        let due: Vec<_> = due.map(|process| process.pid).collect();
        due.into_iter()
            .for_each(|pid| self.handle_process_deadline(pid));
        if self
            .round
            .as_ref()
            .is_some_and(|round| round.deadline().has_passed(now))
        {
            self.end_round(Some("the restart timed out".to_owned()));
        }
        if let Some(stop) = self.shutdown.filter(|stop| !stop.was_killed) {
            if stop.deadline.has_passed(now) {
                let text = "the stop has timed out: killing the processes that are left";
                self.log(Severity::Error, text.to_owned());
                self.shutdown = Some(Shutdown {
                    deadline: Deadline::after(now, KILL_TIMEOUT),
                    is_immediate: true,
                    was_killed: true,
                });
                let pids = self.processes().map(|process| process.pid).collect();
                self.signal_each(pids, Signal::Kill);
            }
        }
        self.handle_dry_run_deadline();
        self.handle_report_deadline();
    }

    fn handle_process_deadline(&mut self, pid: u32) {
        let (now, policy) = (self.now, &self.policy);
        let (ready_after, abort_timeout) = (policy.ready_after, policy.abort_timeout);
        let is_late = |process: &&mut Process| process.deadline().has_passed(now);
        let Some(process) = self.process_mut(pid).filter(is_late) else {
            return;
        };
        match process.stage {
            Stage::Starting { .. } if ready_after.is_some() && !process.is_adopted => {
                self.handle_ready(pid)
            }
            Stage::Starting { .. } => self.abort(pid, "was not ready in time"),
            Stage::Stopping { .. } => self.abort(pid, "has not exited in time"),
            Stage::Serving {
                watch: Watch::Late { .. },
            } => self.abort(pid, "has not sent WATCHDOG=1 in time"),
            Stage::Serving { .. } => {
                let limit = process.watchdog.unwrap_or_default();
                let until = Deadline::after(now, (limit / 4).max(SECOND_CHANCE));
                process.stage = Stage::Serving {
                    watch: Watch::Late { until },
                };
            }
            Stage::Aborted { .. } => {
                process.stage = Stage::Aborted {
                    kill_at: Deadline::after(now, abort_timeout),
                };
                self.log(
                    Severity::Error,
                    format!("process {pid} does not exit: killing it"),
                );
                self.signal(pid, Signal::Kill);
            }
        }
    }
}

/// How much longer a process may take at least whose watchdog notification is late. It may take a
/// quarter of the limit, in which a process of this crate sends the next one. A process and a
/// supervisor need that if they were stopped together until shortly after the notification was due.
const SECOND_CHANCE: Duration = Duration::from_millis(10);
