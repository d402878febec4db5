//! The machine that the supervisor runs on: its clock, its processes, and the notifications that
//! they send. Servers of this crate follow `src/restart/restarter`; other programs are simpler.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::history::{Act, Build, Ending, Fate, History, Lost};
use crate::fleet::event::{ListenerId, NamedProcess, Notice};
use crate::sys::Signal;

/// Times are in microseconds since the beginning.
pub(crate) struct Machine<'a> {
    history: &'a History,
    base: Instant,
    pub(crate) now: u64,
    steps: BinaryHeap<Reverse<(u64, u64, Step)>>,
    steps_so_far: u64,
    pub(crate) programs: Vec<Program>,
    starts: usize,
    /// The version of the program on the disk.
    pub(crate) version: u32,
    /// Notifications in the supervisor's socket.
    pub(crate) mail: VecDeque<(u32, Notice)>,
    late_mail: Vec<(u32, Notice)>,
    /// Processes that have ended, which the supervisor was not told.
    pub(crate) ended: Vec<u32>,
    /// All that is started from now on goes well.
    pub(crate) is_quiet: bool,
}

/// What happens on the machine at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The decision with this index.
    Act(usize),
    /// The dry run ends.
    DryRun(u64),
    Hello(u32),
    Built(u32),
    HandedOver(u32),
    /// The successor was not ready in time for its predecessor.
    LateForPredecessor(u32),
    Ending(u32),
    Watchdog(u32),
    Extend(u32),
    Exit(u32),
    Deliver(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) pid: u32,
    fate: Fate,
    pub(crate) state: State,
    pub(crate) version: u32,
    pub(crate) started: u64,
    generation: u64,
    /// The slot that the process, or its first predecessor, was started for.
    pub(crate) slot: usize,
    pub(crate) predecessor: Option<u32>,
    successor: Option<u32>,
    was_terminated: bool,
    exit_code: i32,
    is_hung: bool,
    /// The process sends WATCHDOG=trigger, or notifications of it or its predecessor are lost or
    /// late: the supervisor cannot know well how it does.
    pub(crate) is_misleading: bool,
    /// The process may be aborted: it is not ready in time, hangs, does not exit in time, or its
    /// notifications are lost or late.
    pub(crate) is_faulty: bool,
    restart_requested: bool,
    extensions: u32,
    /// How the process has ended. `None`: by a signal, or its predecessor has reaped it.
    pub(crate) code: Option<i32>,
    /// The supervisor reaps the process.
    pub(crate) is_child: bool,
    /// The supervisor has started the process, or was told of it.
    pub(crate) is_known: bool,
    /// The fleet was told of the start.
    pub(crate) was_added: bool,
    /// When the supervisor was first told that the process serves.
    pub(crate) known_ready: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Building,
    /// Accepts; the predecessor still counts as the process that serves.
    Accepting,
    Serving,
    /// The successor serves: the process drains.
    Replaced,
    Stopping,
    Dead,
}

impl Program {
    pub(crate) fn is_alive(&self) -> bool {
        self.state != State::Dead
    }

    /// The process serves new clients, and the supervisor can know that.
    pub(crate) fn accepts(&self) -> bool {
        let accepts = matches!(self.state, State::Accepting | State::Serving);
        accepts && !self.is_hung && !self.is_misleading
    }

    /// When it begins to serve.
    pub(crate) fn size(&self) -> u64 {
        self.fate.size
    }

    pub(crate) fn has_lane(&self) -> bool {
        self.fate.has_lane
    }

    pub(crate) fn listeners(&self) -> Vec<ListenerId> {
        vec![(1, 0), (1, u64::from(self.version / 2))]
    }
}

const FIRST_PID: u32 = 100;
pub(crate) const MS: u64 = 1_000;

impl<'a> Machine<'a> {
    pub(crate) fn new(history: &'a History, base: Instant) -> Self {
        Self {
            history,
            base,
            now: 0,
            steps: BinaryHeap::new(),
            steps_so_far: 0,
            programs: Vec::new(),
            starts: 0,
            version: 1,
            mail: VecDeque::new(),
            late_mail: Vec::new(),
            ended: Vec::new(),
            is_quiet: false,
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    pub(crate) fn micros_of(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.base);
        since.as_nanos().div_ceil(1_000) as u64
    }

    pub(crate) fn program(&self, pid: u32) -> Option<&Program> {
        self.programs.get(pid.checked_sub(FIRST_PID)? as usize)
    }

    pub(crate) fn program_mut(&mut self, pid: u32) -> &mut Program {
        &mut self.programs[(pid - FIRST_PID) as usize]
    }

    /// A process as the supervisor finds it now.
    pub(crate) fn named(&self, pid: u32) -> NamedProcess {
        let program = self.program(pid);
        let started = program.map_or(self.now, |program| program.started);
        NamedProcess {
            pid,
            started_at: self.base + Duration::from_micros(started),
            has_ended: !program.is_some_and(Program::is_alive),
        }
    }

    fn state(&self, pid: u32) -> State {
        self.program(pid)
            .map_or(State::Dead, |program| program.state)
    }

    // ---- time ----

    pub(crate) fn schedule(&mut self, delay: u64, step: Step) {
        self.steps_so_far += 1;
        let entry = (self.now + delay, self.steps_so_far, step);
        self.steps.push(Reverse(entry));
    }

    pub(crate) fn next_step_at(&self) -> Option<u64> {
        self.steps.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn next_step(&mut self) -> Option<Step> {
        let Reverse((at, _, step)) = self.steps.pop()?;
        self.now = self.now.max(at);
        Some(step)
    }

    /// All processes stop for so long. What comes from outside does not.
    pub(crate) fn stall(&mut self, time: u64) {
        let steps = std::mem::take(&mut self.steps).into_iter();
        let delayed = steps.map(|Reverse((at, number, step))| match step {
            Step::Act(_) => Reverse((at, number, step)),
            _ => Reverse((at + time, number, step)),
        });
        self.steps = delayed.collect();
        // The supervisor may not notice a stall that is shorter, and the processes have less time.
        if time < 1_250 * MS {
            let serves = |program: &&mut Program| program.state == State::Serving;
            let others = self.programs.iter_mut().filter(|program| !serves(program));
            others.for_each(|program| program.is_faulty = true);
        }
    }

    // ---- starts ----

    /// Starts a process. `None`: the program cannot be executed.
    pub(crate) fn start(
        &mut self,
        slot: usize,
        generation: u64,
        predecessor: Option<u32>,
    ) -> Option<u32> {
        let fate = match self.is_quiet {
            true => Fate::default(),
            false => self.history.fate(self.starts),
        };
        self.starts += 1;
        if fate.build == Build::CannotStart {
            return None;
        }
        let pid = FIRST_PID + self.programs.len() as u32;
        let before = predecessor.and_then(|pid| self.program(pid));
        let is_misleading = fate.lost.is_some()
            || fate.lateness > 0
            || before.is_some_and(|before| before.is_misleading);
        let is_faulty = self.is_faulty(&fate) || is_misleading;
        let ready_at = match fate.build {
            Build::Ready(after) => Some(after),
            Build::Exits(after, _) => {
                self.schedule(after * MS, Step::Exit(pid));
                None
            }
            Build::Never | Build::CannotStart => None,
        };
        let exit_code = match fate.build {
            Build::Exits(_, code) => code,
            _ => 0,
        };
        let extensions = fate.extensions;
        self.programs.push(Program {
            pid,
            fate,
            state: State::Building,
            version: self.version,
            started: self.now,
            generation,
            slot,
            predecessor,
            successor: None,
            was_terminated: false,
            exit_code,
            is_hung: false,
            is_misleading,
            is_faulty,
            restart_requested: false,
            extensions,
            code: None,
            is_child: false,
            is_known: predecessor.is_none(),
            was_added: false,
            known_ready: None,
        });
        self.schedule(ready_at.unwrap_or(20).min(20) * MS, Step::Hello(pid));
        if let Some(after) = ready_at {
            self.schedule(after * MS, Step::Built(pid));
        }
        Some(pid)
    }

    fn is_faulty(&self, fate: &Fate) -> bool {
        let policy = &self.history.policy;
        let is_late = match fate.build {
            Build::Ready(after) => {
                Duration::from_millis(after + fate.handover) >= policy.ready_timeout
            }
            _ => true,
        };
        let stops_late = fate.drain.is_none_or(|drain| {
            let extended = match u64::from(fate.extensions) {
                0 => 0,
                count => 5_000 * (count - 1) + 10_000,
            };
            Duration::from_millis(drain) >= policy.stop_timeout.max(Duration::from_millis(extended))
        });
        is_late || stops_late || fate.ignores_terminate || fate.ignores_abort || fate.ignores_hangup
    }

    /// The process starts its successor, as SIGHUP says.
    fn restart(&mut self, pid: u32) {
        let program = self.program_mut(pid);
        if program.state == State::Building || program.state == State::Accepting {
            program.restart_requested = true;
            return;
        }
        if program.state != State::Serving || program.successor.is_some() || program.is_hung {
            return;
        }
        program.restart_requested = false;
        let (slot, generation) = (program.slot, program.generation + 1);
        match self.start(slot, generation, Some(pid)) {
            Some(successor) => {
                self.program_mut(pid).successor = Some(successor);
                let notice = Notice {
                    successor: Some(self.named(successor)),
                    ..Notice::default()
                };
                self.send(pid, Some(Lost::Announcement), notice);
                let timeout = self.history.policy.ready_timeout.as_micros() as u64;
                self.schedule(timeout, Step::LateForPredecessor(successor));
            }
            None => self.report_failure(pid, true, "cannot start"),
        }
    }

    fn report_failure(&mut self, pid: u32, serves: bool, why: &str) {
        let notice = Notice {
            ready: serves,
            failed: Some(why.to_owned()),
            generation: Some(self.program_mut(pid).generation),
            ..Notice::default()
        };
        self.send(pid, Some(Lost::Failure), notice);
    }

    // ---- notifications ----

    fn send(&mut self, pid: u32, kind: Option<Lost>, notice: Notice) {
        let fate = &self.program_mut(pid).fate;
        if kind.is_some() && fate.lost == kind {
            return;
        }
        match fate.lateness {
            0 => self.mail.push_back((pid, notice)),
            lateness => {
                self.late_mail.push((pid, notice));
                let step = Step::Deliver(self.late_mail.len() - 1);
                self.schedule(lateness * MS, step);
            }
        }
    }

    fn send_ready(&mut self, pid: u32) {
        let is_server = !self.history.is_foreign;
        let program = self.program_mut(pid);
        let notice = Notice {
            ready: true,
            generation: is_server.then_some(program.generation),
            status: Some("serves".to_owned()),
            ..Notice::default()
        };
        let names_itself = program.fate.names_itself;
        let notice = Notice {
            main_pid: (names_itself && !is_server).then(|| self.named(pid)),
            ..notice
        };
        if names_itself {
            self.send(pid, Some(Lost::Ready), notice.clone());
        }
        self.send(pid, Some(Lost::Ready), notice);
    }

    // ---- steps ----

    pub(crate) fn perform(&mut self, step: Step) {
        match step {
            Step::Act(_) | Step::DryRun(_) => {}
            Step::Hello(pid) => self.say_hello(pid),
            Step::Built(pid) if self.state(pid) == State::Building => self.finish_build(pid),
            Step::HandedOver(pid) if self.state(pid) == State::Accepting => self.take_over(pid),
            Step::LateForPredecessor(pid)
                if self.state(pid) == State::Building && self.living_predecessor(pid).is_some() =>
            {
                self.exit(pid, None);
            }
            Step::Ending(pid) if self.state(pid) == State::Serving => {
                if let Some((_, ending)) = self.program_mut(pid).fate.ending {
                    self.end(pid, ending);
                }
            }
            Step::Watchdog(pid) if self.state(pid) == State::Serving => self.send_alive(pid),
            Step::Extend(pid) => self.extend(pid),
            Step::Exit(pid) if self.state(pid) != State::Dead => {
                let code = self.program_mut(pid).exit_code;
                self.exit(pid, Some(code));
            }
            Step::Deliver(index) => {
                let mail = self.late_mail[index].clone();
                self.mail.push_back(mail);
            }
            _ => {}
        }
    }

    fn say_hello(&mut self, pid: u32) {
        if self.state(pid) != State::Building {
            return;
        }
        if !self.history.is_foreign {
            let program = self.program_mut(pid);
            let notice = Notice {
                generation: Some(program.generation),
                listeners: program.listeners(),
                has_lane: program.has_lane(),
                ..Notice::default()
            };
            self.send(pid, Some(Lost::Hello), notice);
        }
        if self.program_mut(pid).extensions > 0 {
            self.send_extension(pid);
        }
    }

    fn send_extension(&mut self, pid: u32) {
        let notice = Notice {
            extend: Some(Duration::from_secs(10)),
            ..Notice::default()
        };
        self.send(pid, None, notice);
    }

    fn extend(&mut self, pid: u32) {
        let program = self.program_mut(pid);
        let drains = matches!(program.state, State::Replaced | State::Stopping);
        if drains && program.extensions > 0 {
            program.extensions -= 1;
            self.send_extension(pid);
            self.schedule(5_000 * MS, Step::Extend(pid));
        }
    }

    fn living_predecessor(&self, pid: u32) -> Option<u32> {
        let predecessor = self.program(pid)?.predecessor?;
        let is_alive = self.program(predecessor)?.is_alive();
        is_alive.then_some(predecessor)
    }

    fn finish_build(&mut self, pid: u32) {
        if self.program_mut(pid).was_terminated {
            // The signals were blocked until now.
            return self.exit(pid, Some(0));
        }
        match self.living_predecessor(pid) {
            Some(_) => {
                let program = self.program_mut(pid);
                program.state = State::Accepting;
                let handover = program.fate.handover;
                self.schedule(handover * MS, Step::HandedOver(pid));
            }
            None => self.serve(pid, true),
        }
    }

    fn serve(&mut self, pid: u32, notifies: bool) {
        let policy = &self.history.policy;
        let sends_ready = notifies && (policy.ready_after.is_none() || !self.history.is_foreign);
        let is_watched =
            policy.watchdog.is_some() && (!self.history.is_foreign || self.history.sends_watchdog);
        let program = self.program_mut(pid);
        program.state = State::Serving;
        let ending = program.fate.ending;
        let requested = program.restart_requested;
        if sends_ready {
            self.send_ready(pid);
        }
        if let Some((after, _)) = ending {
            self.schedule(after * MS, Step::Ending(pid));
        }
        if is_watched {
            self.send_alive(pid);
        }
        if requested {
            self.restart(pid);
        }
    }

    fn send_alive(&mut self, pid: u32) {
        if self.program_mut(pid).is_hung {
            return;
        }
        let notice = Notice {
            is_alive: Some(true),
            ..Notice::default()
        };
        self.send(pid, None, notice);
        let limit = self.history.policy.watchdog.unwrap_or_default();
        self.schedule(limit.as_micros() as u64 / 4, Step::Watchdog(pid));
    }

    /// The predecessor learns that this process serves.
    fn take_over(&mut self, pid: u32) {
        let Some(predecessor) = self.living_predecessor(pid) else {
            return;
        };
        self.serve(pid, false);
        let generation = self.program_mut(pid).generation;
        let notice = Notice {
            ready: true,
            main_pid: Some(self.named(pid)),
            generation: Some(generation),
            ..Notice::default()
        };
        self.send(predecessor, Some(Lost::MainPid), notice);
        if self.state(predecessor) == State::Serving {
            self.drain(predecessor, State::Replaced);
        }
    }

    fn drain(&mut self, pid: u32, state: State) {
        let program = self.program_mut(pid);
        program.state = state;
        let drain = program.fate.drain;
        if let Some(drain) = drain {
            self.schedule(drain * MS, Step::Exit(pid));
        }
        self.extend(pid);
    }

    // ---- ends ----

    pub(crate) fn end(&mut self, pid: u32, ending: Ending) {
        match ending {
            Ending::Exits(code) => self.exit(pid, Some(code)),
            Ending::Crashes => self.exit(pid, None),
            Ending::Stops(code) if self.state(pid) == State::Serving => {
                // Other programs do not tell that they stop.
                let is_misleading = self.history.is_foreign;
                let program = self.program_mut(pid);
                program.exit_code = code;
                program.is_faulty |= is_misleading;
                program.is_misleading |= is_misleading;
                self.stop(pid);
            }
            Ending::Hangs => {
                let program = self.program_mut(pid);
                program.is_hung = true;
                program.is_faulty = true;
            }
            Ending::Triggers if self.state(pid) == State::Serving => {
                let program = self.program_mut(pid);
                program.is_faulty = true;
                program.is_misleading = true;
                let notice = Notice {
                    is_alive: Some(false),
                    ..Notice::default()
                };
                self.send(pid, None, notice);
            }
            Ending::Stops(_) | Ending::Triggers => {}
        }
    }

    /// The process finishes its requests, whether it was told to or not.
    fn stop(&mut self, pid: u32) {
        if !self.history.is_foreign {
            let notice = Notice {
                stopping: true,
                ..Notice::default()
            };
            self.send(pid, Some(Lost::Stopping), notice);
        }
        self.drain(pid, State::Stopping);
        let successor = self.program_mut(pid).successor;
        if let Some(successor) = successor.filter(|pid| self.state(*pid) == State::Building) {
            self.exit(successor, None);
        }
    }

    pub(crate) fn exit(&mut self, pid: u32, code: Option<i32>) {
        let predecessor = self.living_predecessor(pid);
        let program = self.program_mut(pid);
        if program.state == State::Dead {
            return;
        }
        let state_before = std::mem::replace(&mut program.state, State::Dead);
        program.is_child = predecessor.is_none();
        program.code = code.filter(|_| predecessor.is_none());
        let successor = program.successor;
        self.ended.push(pid);
        if let Some(predecessor) = predecessor {
            if matches!(state_before, State::Building | State::Accepting) {
                self.program_mut(predecessor).successor = None;
                match self.state(predecessor) {
                    State::Serving => self.report_failure(predecessor, true, "successor exited"),
                    State::Stopping => self.report_failure(predecessor, false, "stopping"),
                    _ => {}
                }
            }
        }
        match successor.map(|successor| (successor, self.state(successor))) {
            Some((successor, State::Accepting)) => self.serve(successor, true),
            Some((successor, State::Serving)) => self.send_ready(successor),
            _ => {}
        }
    }

    // ---- signals ----

    pub(crate) fn signal(&mut self, pid: u32, signal: Signal) {
        let is_foreign = self.history.is_foreign;
        let program = self.program_mut(pid);
        let (state, is_hung) = (program.state, program.is_hung);
        let signal = match signal {
            Signal::Window => Signal::Terminate,
            other => other,
        };
        match (signal, state) {
            (_, State::Dead) => {}
            (Signal::Kill, _) if program.fate.kill_takes > 0 => {
                let after = program.fate.kill_takes;
                program.is_hung = true;
                program.is_faulty = true;
                self.schedule(after * MS, Step::Exit(pid));
            }
            (Signal::Kill, _) => self.exit(pid, None),
            (Signal::Hangup, _) if !program.fate.ignores_hangup => self.restart(pid),
            (Signal::Quit, State::Building) if !is_foreign => program.was_terminated = true,
            (Signal::Quit, _) if !is_hung => self.exit(pid, None),
            (Signal::Terminate, _) if program.fate.ignores_terminate || is_hung => {}
            (Signal::Terminate, State::Building) if is_foreign => self.exit(pid, None),
            (Signal::Terminate, State::Building) => {
                program.was_terminated = true;
                program.is_faulty = true;
            }
            // A second SIGTERM stops a server of this crate at once.
            (Signal::Terminate, State::Stopping) if !is_foreign && program.was_terminated => {
                self.exit(pid, Some(0));
            }
            (Signal::Terminate, State::Stopping) => program.was_terminated = true,
            (Signal::Terminate, State::Accepting) => {
                program.was_terminated = true;
                self.drain(pid, State::Stopping);
                if let Some(predecessor) = self.living_predecessor(pid) {
                    self.program_mut(predecessor).successor = None;
                    self.report_failure(predecessor, true, "the successor was stopped");
                }
            }
            (Signal::Terminate, State::Serving) => {
                program.was_terminated = true;
                self.stop(pid);
            }
            _ => {}
        }
    }

    /// The process leaves its connections to another one. False if it cannot be told.
    pub(crate) fn leave(&mut self, pid: u32) -> bool {
        let program = self.program_mut(pid);
        let successor = program.successor;
        match program.state {
            State::Dead => return false,
            _ if program.fate.leave_fails => return false,
            // It reads nothing, as a process that does not handle SIGTERM.
            _ if program.fate.ignores_terminate || program.is_hung => {}
            State::Serving => match successor.map(|successor| self.state(successor)) {
                None | Some(State::Dead) => self.drain(pid, State::Replaced),
                Some(_) => self.stop(pid),
            },
            _ => {}
        }
        true
    }

    pub(crate) fn abort(&mut self, pid: u32) {
        if !self.program_mut(pid).fate.ignores_abort {
            self.exit(pid, None);
        }
    }

    /// Does what an act asks of the processes.
    pub(crate) fn act(&mut self, act: Act) {
        let chosen = |machine: &Self, nth: u32, wanted: &[State]| {
            let living = machine.programs.iter();
            let living = living.filter(|program| wanted.contains(&program.state));
            let pids: Vec<_> = living.map(|program| program.pid).collect();
            let nth = nth as usize % pids.len().max(1);
            pids.get(nth).copied()
        };
        let serving = [State::Serving, State::Accepting];
        match act {
            Act::Install => self.version += 1,
            Act::End(nth, ending) => {
                let all = [State::Serving, State::Accepting, State::Replaced];
                if let Some(pid) = chosen(self, nth, &all) {
                    self.end(pid, ending);
                }
            }
            Act::Serve(nth, count) if !self.history.is_foreign => {
                if let Some(pid) = chosen(self, nth, &serving) {
                    let notice = Notice {
                        requests: Some(count),
                        ..Notice::default()
                    };
                    self.send(pid, None, notice);
                }
            }
            Act::EndBuilding(nth) => {
                if let Some(pid) = chosen(self, nth, &[State::Building]) {
                    self.exit(pid, None);
                }
            }
            Act::SelfRestart(nth) if !self.history.is_foreign => {
                if let Some(pid) = chosen(self, nth, &serving) {
                    self.restart(pid);
                }
            }
            _ => {}
        }
    }
}
