//! The supervisor's loop over a simulated machine, as `src/supervisor/run.rs` has it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::history::{Act, Decision, DryRunFate, History};
use super::machine::{MS, Machine, Program, Step};
use super::promises::{Promises, Wish, wanted_slots};
use crate::clock::Deadline;
use crate::fleet::event::{Effect, Event, Exit, NamedProcess, Notice};
use crate::fleet::process::{Process, Stage, Watch};
use crate::fleet::slot::Slot;
use crate::fleet::{Fleet, Policy};

pub(crate) struct Play<'a> {
    history: &'a History,
    pub(crate) machine: Machine<'a>,
    pub(crate) fleet: Fleet,
    promises: Promises,
    /// Signals and control requests that the supervisor has not read.
    requests: VecDeque<Event>,
    clients: u64,
    stalled_until: u64,
    /// The plan of the upgrade that was asked for last: its dry run, and its number of slots.
    upgrade: (DryRunFate, usize),
    /// The dry run in progress, by its number.
    dry_run: Option<u64>,
    dry_runs: u64,
    dry_run_result: Option<Result<(), String>>,
    stop_received: bool,
    acts_left: usize,
    last_act: u64,
    events: u64,
    trace: Option<Vec<String>>,
}

/// A broken promise.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The function that checks the promise.
    pub(crate) name: &'static str,
    pub(crate) promise: String,
    pub(crate) trace: Vec<String>,
}

/// What a check finds: the name of the promise, and what is wrong.
pub(crate) type Check = Result<(), (&'static str, String)>;

/// More events than this are an endless loop.
const MOST_EVENTS: u64 = 100_000;

impl<'a> Play<'a> {
    /// Plays a history. Returns the number of events.
    pub(crate) fn play(history: &'a History, with_trace: bool) -> Result<u64, Failure> {
        let base = Instant::now();
        let machine = Machine::new(history, base);
        let mut play = Self {
            history,
            fleet: Fleet::new(history.policy.clone(), base, history.seed),
            machine,
            promises: Promises::new(&history.policy),
            requests: VecDeque::new(),
            clients: 0,
            stalled_until: 0,
            upgrade: (DryRunFate::Succeeds(20), history.policy.processes),
            dry_run: None,
            dry_runs: 0,
            dry_run_result: None,
            stop_received: false,
            acts_left: 0,
            last_act: 0,
            events: 0,
            trace: with_trace.then(Vec::new),
        };
        // A panic of the policy is a broken promise too.
        let result = catch_unwind(AssertUnwindSafe(|| play.run()));
        let result = result.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(("no_panic", text.unwrap_or_default()))
        });
        match result {
            Ok(()) => Ok(play.events),
            Err((name, promise)) => Err(Failure {
                name,
                promise,
                trace: play.trace.unwrap_or_default(),
            }),
        }
    }

    fn run(&mut self) -> Check {
        for (index, decision) in self.history.decisions.iter().enumerate() {
            if let Decision::Act { at, .. } = decision {
                self.machine.schedule(at * MS, Step::Act(index));
                self.acts_left += 1;
            }
        }
        let mut turns_at_once = 0;
        loop {
            let wake = self.wake_at().max(self.stalled_until);
            match self.machine.next_step_at() {
                Some(at) if at <= wake => {
                    turns_at_once = 0;
                    self.take_step();
                }
                _ if wake == u64::MAX => return self.promises.settles(self.state_left()),
                _ => {
                    turns_at_once = match wake <= self.machine.now {
                        true => turns_at_once + 1,
                        false => 0,
                    };
                    self.machine.now = self.machine.now.max(wake);
                    self.take_turn()?;
                    if self
                        .promises
                        .has_ended(&self.fleet, &self.machine, self.dry_run)?
                    {
                        return self.promises.answers_all();
                    }
                    Promises::does_not_spin(turns_at_once)?;
                }
            }
            if self.acts_left == 0 && self.machine.now >= self.last_act + 3_000 * MS {
                self.machine.is_quiet = true;
                let state = self.state_left();
                if state.is_none() {
                    return self.promises.answers_all();
                }
                if self.machine.now >= self.last_act + self.promises.time_to_settle() {
                    return self.promises.settles(state);
                }
            }
            if self.events > MOST_EVENTS {
                return Err(("ends", "there is no end of events".to_owned()));
            }
        }
    }

    /// What is left to be done, if anything is.
    fn state_left(&self) -> Option<String> {
        let fleet = &self.fleet;
        let replacing = fleet.slots.iter().any(|slot| slot.successor.is_some());
        let is_settled =
            |slot: &Slot| slot.is_serving() || self.promises.has_given_up && slot.is_down();
        let down = fleet.slots.iter().position(|slot| !is_settled(slot));
        if !self.requests.is_empty() {
            Some("a request is not read".to_owned())
        } else if fleet.shutdown.is_some() {
            Some("the stop has not ended".to_owned())
        } else if let Some(index) = down {
            Some(format!("slot {index} does not serve"))
        } else if fleet.slots.len() != wanted_slots(fleet) {
            Some("a surplus slot is left".to_owned())
        } else if fleet.round.is_some() {
            Some("a round is in progress".to_owned())
        } else if replacing {
            Some("a process is being replaced".to_owned())
        } else if self.promises.has_waiting_client() {
            Some("a client waits".to_owned())
        } else if self.dry_run.is_some() {
            Some("a dry run is in progress".to_owned())
        } else {
            let mut left = fleet.draining.iter().chain(&fleet.unannounced);
            left.next()
                .map(|process| format!("process {} is left", process.pid))
        }
    }

    // ---- the machine ----

    /// When the supervisor wakes up.
    fn wake_at(&self) -> u64 {
        let has_ended = |pid: &u32| {
            let is_child = self.machine.program(*pid).is_some_and(|one| one.is_child);
            is_child || self.fleet.processes().any(|process| process.pid == *pid)
        };
        let has_event = !self.machine.mail.is_empty()
            || !self.requests.is_empty()
            || self.dry_run_result.is_some()
            || self.machine.ended.iter().any(has_ended);
        match self.fleet.deadline().instant() {
            _ if has_event => self.machine.now,
            Some(at) => self.machine.micros_of(at),
            None => u64::MAX,
        }
    }

    fn take_step(&mut self) {
        let Some(step) = self.machine.next_step() else {
            return;
        };
        match step {
            Step::Act(index) => {
                self.acts_left -= 1;
                self.last_act = self.machine.now;
                if let Some(Decision::Act { act, .. }) = self.history.decisions.get(index) {
                    self.note(|| format!("── {act:?}"));
                    self.act(*act);
                }
            }
            Step::DryRun(number) if self.dry_run == Some(number) => {
                self.dry_run_result = Some(match self.upgrade.0 {
                    DryRunFate::Fails(_) => Err("it fails".to_owned()),
                    _ => Ok(()),
                });
            }
            step => {
                if !matches!(step, Step::Watchdog(_)) {
                    self.note(|| format!("   {step:?}"));
                }
                self.machine.perform(step);
            }
        }
    }

    fn act(&mut self, act: Act) {
        let now = self.machine.now;
        match act {
            Act::Restart => self.requests.push_back(Event::Restart { client: None }),
            Act::RestartForClient => {
                let client = Some(self.new_client(Wish::Restart));
                self.requests.push_back(Event::Restart { client });
            }
            Act::Upgrade {
                for_client,
                dry_run,
                slots,
            } => {
                self.upgrade = (dry_run, slots);
                let client = for_client.then(|| self.new_client(Wish::Upgrade));
                self.requests.push_back(Event::Upgrade { client });
            }
            Act::Scale { for_client, slots } => {
                let client = for_client.then(|| self.new_client(Wish::Scale(slots)));
                let processes = slots;
                self.requests.push_back(Event::Scale { processes, client });
            }
            Act::Stop if self.stop_received => self.requests.push_back(Event::StopNow),
            Act::Stop => {
                self.stop_received = true;
                self.requests.push_back(Event::Stop);
            }
            Act::StopNow => self.requests.push_back(Event::StopNow),
            Act::Grow(nth, bytes) => {
                let serving = self.fleet.processes().filter(|one| one.is_serving());
                let pids: Vec<_> = serving.map(|process| process.pid).collect();
                if let Some(pid) = pids.get(nth as usize % pids.len().max(1)).copied() {
                    self.requests.push_back(Event::Measured { pid, bytes });
                }
            }
            Act::User1 => self.requests.push_back(Event::User1),
            Act::StallSupervisor(time) => self.stall_supervisor(now + time * MS),
            Act::StallAll(time) => {
                self.machine.stall(time * MS);
                self.stall_supervisor(now + time * MS);
            }
            _ => self.machine.act(act),
        }
    }

    fn stall_supervisor(&mut self, until: u64) {
        self.promises.add_stall(until - self.machine.now);
        self.stalled_until = self.stalled_until.max(until);
    }

    fn new_client(&mut self, wish: Wish) -> u64 {
        self.clients += 1;
        let version = self.machine.version;
        let now = self.machine.now;
        self.promises.add_client(self.clients, wish, version, now);
        self.clients
    }

    // ---- the supervisor ----

    fn take_turn(&mut self) -> Check {
        self.read_mail()?;
        while let Some(request) = self.requests.pop_front() {
            self.handle(request)?;
        }
        self.read_mail()?;
        if let Some(result) = self.dry_run_result.take() {
            self.dry_run = None;
            self.handle(Event::DryRunEnded(result))?;
        }
        self.report_exits()?;
        self.handle(Event::Tick)?;
        self.measure_processes()
    }

    /// Tells the fleet how large the processes are that serve now.
    fn measure_processes(&mut self) -> Check {
        if self.history.policy.recycling.recycle_above.is_none() {
            return Ok(());
        }
        let processes = self.fleet.processes();
        let new = processes.filter(|process| process.is_serving() && process.size.is_none());
        let pids: Vec<_> = new.map(|process| process.pid).collect();
        for pid in pids {
            let bytes = self.machine.program(pid).map_or(1, Program::size);
            self.handle(Event::Measured { pid, bytes })?;
        }
        Ok(())
    }

    fn read_mail(&mut self) -> Check {
        while let Some((pid, notice)) = self.machine.mail.pop_front() {
            let is_alive = |pid: &u32| self.machine.program(*pid).is_some_and(|one| one.is_alive());
            let is_known = self.fleet.processes().any(|process| process.pid == pid);
            let is_server = notice.generation.is_some();
            if !(is_known || is_server && is_alive(&pid)) {
                continue;
            }
            let named = |named: NamedProcess| self.machine.named(named.pid);
            let notice = Notice {
                sender_started_at: (!is_known).then(|| self.machine.named(pid).started_at),
                successor: notice.successor.map(named).filter(|one| !one.has_ended),
                main_pid: notice
                    .main_pid
                    .map(named)
                    .filter(|one| is_server || !one.has_ended),
                ..notice
            };
            let named = [notice.main_pid, notice.successor];
            let named = named.into_iter().flatten().map(|named| named.pid);
            for known in named.chain([pid]) {
                self.promises
                    .hears_of(known, pid, &self.fleet, &mut self.machine);
            }
            self.handle(Event::Notified { pid, notice })?;
        }
        Ok(())
    }

    fn report_exits(&mut self) -> Check {
        let ended = std::mem::take(&mut self.machine.ended);
        for pid in ended {
            let program = self.machine.program_mut(pid);
            let (is_child, code) = (program.is_child, program.code);
            let is_known = self.fleet.processes().any(|process| process.pid == pid);
            if !is_child && !is_known {
                self.machine.ended.push(pid);
                continue;
            }
            let how = code.map_or("no exit code".to_owned(), |code| {
                format!("exit code {code}")
            });
            let exit = Exit { code, how };
            self.handle(Event::Exited { pid, exit })?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Check {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            self.events += 1;
            let is_alive = |notice: &Notice| notice.is_alive == Some(true);
            let is_dull = match &event {
                Event::Tick => true,
                Event::Notified { notice, .. } => is_alive(notice),
                _ => false,
            };
            if !is_dull {
                self.note(|| format!("   {}", describe(&event)));
            }
            let before = self.promises.look(&self.fleet, &self.machine);
            let effects = self.fleet.handle(event.clone(), self.machine.instant());
            for effect in &effects {
                self.note(|| format!("      → {effect:?}"));
            }
            let (fleet, machine) = (&self.fleet, &mut self.machine);
            self.promises
                .check(&before, &event, &effects, fleet, machine)?;
            for effect in effects {
                events.extend(self.perform(effect)?);
            }
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<Option<Event>, (&'static str, String)> {
        match effect {
            Effect::Start { slot, generation } => {
                let event = match self.machine.start(slot, generation, None) {
                    Some(pid) => Event::Started { slot, pid },
                    None => Event::StartFailed {
                        slot,
                        why: "cannot start the program".to_owned(),
                    },
                };
                return Ok(Some(event));
            }
            Effect::Signal { pid, signal } => self.machine.signal(pid, signal),
            Effect::Leave { pid, signal, .. } => {
                let is_told = self.machine.leave(pid);
                return Ok((!is_told).then_some(Event::LeaveFailed { pid, signal }));
            }
            Effect::Abort { pid } => self.machine.abort(pid),
            Effect::StartDryRun => return Ok(self.start_dry_run()),
            Effect::KillDryRun => {
                if self.dry_run.is_some() {
                    self.dry_run_result = Some(Err("it was killed".to_owned()));
                }
            }
            Effect::ExecuteOwnProgram => return self.execute_own_program().map(Some),
            Effect::CloseListenersExcept(_)
            | Effect::Reply { .. }
            | Effect::Notify(_)
            | Effect::Log(..) => {}
        }
        Ok(None)
    }

    fn start_dry_run(&mut self) -> Option<Event> {
        let delay = match self.upgrade.0 {
            DryRunFate::CannotStart => {
                return Some(Event::DryRunEnded(Err("cannot start it".to_owned())));
            }
            DryRunFate::Succeeds(after)
            | DryRunFate::Fails(after)
            | DryRunFate::ExecFails(after) => Some(after),
            DryRunFate::Hangs => None,
        };
        self.dry_runs += 1;
        self.dry_run = Some(self.dry_runs);
        if let Some(delay) = delay {
            self.machine
                .schedule(delay * MS, Step::DryRun(self.dry_runs));
        }
        None
    }

    fn execute_own_program(&mut self) -> Result<Event, (&'static str, String)> {
        self.promises.can_be_replaced(&self.fleet)?;
        if let (DryRunFate::ExecFails(_), _) = self.upgrade {
            let why = "cannot execute it".to_owned();
            return Ok(Event::NotReplaced { why });
        }
        let policy = Policy {
            processes: self.upgrade.1,
            ..self.history.policy.clone()
        };
        self.stop_received = false;
        self.fleet = restored(&self.fleet, policy, self.machine.instant(), self.events);
        Ok(Event::Replaced)
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let seconds = self.machine.now as f64 / 1e6;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{seconds:9.3} s {}", text()));
        }
    }
}

/// The fleet that an upgrade makes of this one, as `src/supervisor/snapshot.rs` does.
fn restored(old: &Fleet, policy: Policy, now: Instant, seed: u64) -> Fleet {
    let mut fleet = Fleet::new(policy, now, seed);
    fleet.sent_ready = old.sent_ready;
    fleet.has_been_ready = old.has_been_ready;
    fleet.exit_code = old.exit_code;
    fleet.scale.wanted = old.scale.wanted;
    fleet.recycle_not_before = old.recycle_not_before;
    fleet.last_restart.clone_from(&old.last_restart);
    fleet.draining = old
        .draining
        .iter()
        .map(|old| restored_process(old, now))
        .collect();
    let slots = old.slots.iter().map(|old| Slot {
        current: old.current.as_ref().map(|old| restored_process(old, now)),
        start_at: old.start_at,
        backoff: old.backoff,
        generation: old.generation,
        restarts: old.restarts,
        deaths: old.deaths.clone(),
        recycled_for_size: old.recycled_for_size,
        ..Slot::default()
    });
    fleet.slots = slots.collect();
    fleet.upgrade.clients.clone_from(&old.upgrade.clients);
    fleet
}

fn restored_process(old: &Process, now: Instant) -> Process {
    let stage = match (old.stage, old.watchdog) {
        (Stage::Serving { watch }, Some(limit)) if watch != Watch::Off => Stage::Serving {
            watch: Watch::OnTime {
                until: Deadline::after(now, limit),
            },
        },
        (Stage::Serving { .. }, _) => Stage::Serving { watch: Watch::Off },
        (stage, _) => stage,
    };
    Process {
        stage,
        round: None,
        ..old.clone()
    }
}

/// An event in one line, without what it does not say.
fn describe(event: &Event) -> String {
    let Event::Notified { pid, notice } = event else {
        return format!("{event:?}");
    };
    let mut words = Vec::new();
    let flags = [
        (notice.ready, "ready"),
        (notice.stopping, "stopping"),
        (notice.has_lane, "lane"),
    ];
    let flags = flags.iter().filter(|(is_set, _)| *is_set);
    words.extend(flags.map(|(_, name)| (*name).to_owned()));
    let mut add = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("{name}={value}")));
    };
    let name = |named: NamedProcess| match named.has_ended {
        true => format!("{}, which has ended", named.pid),
        false => named.pid.to_string(),
    };
    add("main_pid", notice.main_pid.map(name));
    add("generation", notice.generation.map(|one| one.to_string()));
    add("successor", notice.successor.map(name));
    add("failed", notice.failed.clone());
    add("requests", notice.requests.map(|one| one.to_string()));
    add("extend", notice.extend.map(|time| format!("{time:?}")));
    add("is_alive", notice.is_alive.map(|alive| alive.to_string()));
    format!("Notified by {pid}: {}", words.join(" "))
}
