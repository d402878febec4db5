//! What the policy promises, checked after each event. Each promise is a function of its name.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::{MS, Machine, State};
use super::play::Check;
use crate::fleet::event::{Effect, Event, ManagerNotice};
use crate::fleet::process::{Process, Stage};
use crate::fleet::{Fleet, KILL_TIMEOUT, Policy};
use crate::sys::Signal;

/// So many failures in a row before a process was ready open the circuit breaker.
pub(crate) const BREAKER_LIMIT: u32 = 5;

/// The fleet keeps at most so many processes that no process has announced.
const MOST_UNANNOUNCED: usize = 16;

/// Processes of the simulation ask for so much more time at once.
const LONGEST_EXTENSION: Duration = Duration::from_secs(10);

/// So long before a stall, in microseconds, the last event came at most, if something was due.
const MOST_BEFORE_STALL: u64 = 12_000 * MS;

/// The time from a recycling that has failed to the next one, and between two for the size in the
/// same slot, in microseconds.
const RECYCLING_PAUSE: u64 = 60_000 * MS;

pub(crate) struct Promises {
    policy: Policy,
    clients: Vec<Client>,
    /// Effects that were done, by process.
    aborted: Vec<u32>,
    terminated: Vec<u32>,
    left: Vec<u32>,
    /// One for each slot.
    starts: Vec<Start>,
    /// When the stop in progress must have ended, in microseconds; and whether it is immediate.
    stop_limit: Option<u64>,
    is_immediate: bool,
    /// When the processes were killed that a stop had left.
    killed_at: Option<u64>,
    /// When a stall was logged last.
    stall_logged_at: Option<u64>,
    /// The first and the last size of each process.
    sizes: BTreeMap<u32, (u64, u64)>,
    /// How many requests each process has served, as it has told last.
    requests: BTreeMap<u32, u64>,
    /// No recycling begins before, in microseconds.
    recycle_not_before: u64,
    /// The service manager was told that the service reloads, and not that it is ready again.
    is_reloading: bool,
    /// A process has exited with a code after which the program is not started again.
    pub(crate) has_given_up: bool,
    /// The dry run in progress, or the last one, began when so many clients had asked.
    clients_before_dry_run: u64,
    /// The time of all stalls, and what the fleet may add to it: it knows only when the last event
    /// came.
    stalled: u64,
}

/// What a control client has asked for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wish {
    Restart,
    Upgrade,
    /// This number of slots.
    Scale(usize),
}

/// A control client.
struct Client {
    id: u64,
    wish: Wish,
    /// The version on the disk when the client asked.
    version: u32,
    asked_at: u64,
    is_answered: bool,
}

/// A model of the back-off and the recycling in one slot: see the heads of `backoff.rs` and
/// `recycling.rs`.
#[derive(Clone, Default)]
struct Start {
    /// The last attempt has failed.
    is_given_up: bool,
    failures: u32,
    not_before: u64,
    is_pending: bool,
    /// When a process of the slot was recycled for its size.
    recycled_for_size: Option<u64>,
}

/// The fleet before an event.
pub(crate) struct Before {
    slots: Vec<SlotBefore>,
    /// Processes that were told to stop, or stop by themselves.
    ending: Vec<u32>,
    has_shutdown: bool,
    is_recycling: bool,
}

struct SlotBefore {
    current: Option<u32>,
    successor: Option<u32>,
    has_starting_successor: bool,
    /// The current process accepts, in truth.
    accepts: bool,
    /// The current process serves, as the fleet knows.
    serves: bool,
    /// No process is here, and none is to be started.
    is_down: bool,
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

impl Promises {
    pub(crate) fn new(policy: &Policy) -> Self {
        Self {
            policy: policy.clone(),
            clients: Vec::new(),
            aborted: Vec::new(),
            terminated: Vec::new(),
            left: Vec::new(),
            starts: vec![Start::default(); policy.processes],
            stop_limit: None,
            is_immediate: false,
            killed_at: None,
            stall_logged_at: None,
            sizes: BTreeMap::new(),
            requests: BTreeMap::new(),
            recycle_not_before: 0,
            is_reloading: false,
            has_given_up: false,
            clients_before_dry_run: 0,
            stalled: 0,
        }
    }

    pub(crate) fn add_client(&mut self, id: u64, wish: Wish, version: u32, asked_at: u64) {
        self.clients.push(Client {
            id,
            wish,
            version,
            asked_at,
            is_answered: false,
        });
    }

    pub(crate) fn add_stall(&mut self, time: u64) {
        self.stalled += time + MOST_BEFORE_STALL;
        self.stop_limit = self
            .stop_limit
            .map(|limit| limit + 2 * time + MOST_BEFORE_STALL);
    }

    /// The supervisor is told of a process, by itself or by another one.
    pub(crate) fn hears_of(&self, pid: u32, by: u32, fleet: &Fleet, machine: &mut Machine) {
        let by_current = fleet.slots.iter().any(|slot| {
            slot.current
                .as_ref()
                .is_some_and(|current| current.pid == by)
        });
        let has_room = fleet.unannounced.len() < MOST_UNANNOUNCED;
        if pid == by && has_room || by_current {
            machine.program_mut(pid).is_known = true;
        }
    }

    pub(crate) fn look(&self, fleet: &Fleet, machine: &Machine) -> Before {
        let slots = fleet.slots.iter().map(|slot| {
            let current = slot.current.as_ref();
            SlotBefore {
                current: current.map(|current| current.pid),
                successor: slot.successor.as_ref().map(|successor| successor.pid),
                has_starting_successor: slot.successor.as_ref().is_some_and(Process::is_starting),
                accepts: current.is_some_and(|current| accepts(machine, current.pid)),
                serves: slot.is_serving(),
                is_down: slot.is_down(),
            }
        });
        let is_ending = |stage| matches!(stage, Stage::Stopping { .. } | Stage::Aborted { .. });
        let ending = fleet.processes().filter(|process| is_ending(process.stage));
        Before {
            slots: slots.collect(),
            ending: ending.map(|process| process.pid).collect(),
            has_shutdown: fleet.shutdown.is_some(),
            is_recycling: fleet.round.as_ref().is_some_and(|round| round.is_recycling),
        }
    }

    /// Checks all promises after an event, before its effects are done.
    pub(crate) fn check(
        &mut self,
        before: &Before,
        event: &Event,
        effects: &[Effect],
        fleet: &Fleet,
        machine: &mut Machine,
    ) -> Check {
        self.follow(before, event, fleet, machine);
        for effect in effects {
            match effect {
                Effect::Start { slot, .. } => {
                    self.starts_are_right(*slot, fleet, machine)?;
                }
                Effect::Signal { pid, signal } => {
                    self.signals_are_right(*pid, *signal, before, fleet, machine)?;
                }
                Effect::Leave { pid, recipient, .. } => {
                    self.leaves_to_a_process_that_stays(*pid, *recipient, before, fleet, machine)?;
                    self.left.push(*pid);
                }
                Effect::Abort { pid } => {
                    aborts_only_the_faulty(*pid, machine)?;
                    self.aborted.push(*pid);
                }
                Effect::Reply { client, error, .. } => {
                    self.answers_are_true(*client, error.as_ref(), event, fleet, machine)?;
                }
                Effect::CloseListenersExcept(used) => keeps_used_listeners(used, fleet, machine)?,
                Effect::Notify(notice) => self.manager_is_told_the_truth(notice, fleet)?,
                Effect::StartDryRun => {
                    self.clients_before_dry_run = self.clients.last().map_or(0, |client| client.id);
                    self.dry_run_is_wanted_then(fleet)?;
                }
                Effect::Log(_, text) => {
                    if text.starts_with("the stop has timed out") {
                        self.killed_at = Some(machine.now);
                    }
                    self.logs_a_stall_once(text, machine)?;
                    if before.is_recycling && text.starts_with("the restart failed") {
                        self.recycle_not_before = machine.now + RECYCLING_PAUSE;
                    }
                    if text.starts_with("recycling") {
                        self.recycles_what_is_due(fleet, machine)?;
                    }
                }
                Effect::KillDryRun | Effect::ExecuteOwnProgram => {}
            }
        }
        self.takes_no_acceptor_away(before, effects, fleet, machine)?;
        each_slot_starts_one_process(fleet, machine)?;
        takes_no_dead_process(event, before, fleet)?;
        each_process_has_a_deadline(fleet)?;
        self.deadlines_are_bounded(fleet, machine)?;
        none_is_forgotten(fleet, machine)?;
        self.stop_tells_all(event, effects, before, fleet)
    }

    // ---- what is followed ----

    fn follow(&mut self, before: &Before, event: &Event, fleet: &Fleet, machine: &mut Machine) {
        match event {
            Event::LeaveFailed { pid, .. } => self.left.retain(|left| left != pid),
            Event::Started { slot, pid } => {
                self.starts[*slot].is_pending = false;
                self.starts[*slot].is_given_up = false;
                machine.program_mut(*pid).was_added = true;
            }
            Event::StartFailed { slot, .. } => {
                self.starts[*slot].is_pending = false;
                if before.slots[*slot].current.is_none() && !before.has_shutdown {
                    self.record_failure(*slot, None, machine);
                }
            }
            Event::Exited { pid, exit } => {
                let is_final = exit.code.is_some_and(|code| match code {
                    0 => !self.policy.restart_after_success,
                    code => self.policy.no_restart_code == Some(code),
                });
                self.has_given_up |= is_final;
                let of_slot = before.slots.iter().position(|slot| match slot.current {
                    Some(current) => current == *pid && !slot.has_starting_successor,
                    None => slot.successor == Some(*pid),
                });
                if let Some(slot) = of_slot.filter(|_| !is_final) {
                    self.record_failure(slot, Some(*pid), machine);
                }
            }
            Event::Notified { pid, notice } => {
                let of_slot = before
                    .slots
                    .iter()
                    .position(|slot| slot.current == Some(*pid));
                let slot = of_slot.and_then(|slot| Some((slot, fleet.slots.get(slot)?)));
                if let Some((slot, after)) = slot.filter(|_| notice.stopping) {
                    let stays = after.current.as_ref();
                    let has_successor = after.successor.is_some();
                    if stays.is_none_or(|current| current.pid != *pid) && !has_successor {
                        self.record_failure(slot, Some(*pid), machine);
                    }
                }
                if let Some(count) = notice.requests {
                    self.requests.insert(*pid, count);
                }
                let ended = notice.main_pid.filter(|named| named.has_ended);
                if let (Some((slot, after)), Some(ended)) = (slot, ended) {
                    // The successor took the slot, and has left it already.
                    if after.current.is_none() && !before.has_shutdown {
                        let now = machine.now;
                        machine.program_mut(ended.pid).known_ready = Some(now);
                        self.record_failure(slot, Some(ended.pid), machine);
                    }
                }
                if let (Some(limit), Some(time)) = (self.stop_limit, notice.extend) {
                    let until = machine.now + micros(time) + micros(KILL_TIMEOUT);
                    if !self.is_immediate {
                        self.stop_limit = Some(limit.max(until));
                    }
                }
            }
            Event::Measured { pid, bytes } => {
                self.sizes.entry(*pid).or_insert((*bytes, *bytes)).1 = *bytes;
            }
            Event::Stop if self.stop_limit.is_none() => {
                let time = self.policy.stop_timeout + KILL_TIMEOUT;
                self.stop_limit = Some(machine.now + micros(time));
            }
            Event::StopNow => {
                let limit = machine.now + 2 * micros(KILL_TIMEOUT);
                self.is_immediate = true;
                self.stop_limit = Some(self.stop_limit.unwrap_or(limit).min(limit));
            }
            _ => {}
        }
        let is_resized = matches!(event, Event::Scale { .. } | Event::Replaced);
        if is_resized || fleet.slots.len() != before.slots.len() {
            self.follow_resize(before, event, fleet);
        }
        let now = machine.now;
        for (slot, start) in fleet.slots.iter().zip(&mut self.starts) {
            let current = slot.current.as_ref();
            if let Some(current) = current.filter(|current| current.is_serving()) {
                let program = machine.program_mut(current.pid);
                program.known_ready.get_or_insert(now);
                // A successor whose predecessor is gone may take a slot that was given up.
                start.is_given_up = false;
                start.failures = 0;
            }
        }
    }

    /// The number of slots may have changed: a slot that gets the process of a surplus slot gets the
    /// back-off of that slot too. A scale starts processes in the slots where none was to be started.
    fn follow_resize(&mut self, before: &Before, event: &Event, fleet: &Fleet) {
        let old = std::mem::take(&mut self.starts);
        let is_scale = matches!(event, Event::Scale { .. });
        let starts = fleet.slots.iter().enumerate().map(|(index, slot)| {
            let current = slot.current.as_ref().map(|current| current.pid);
            let had_it = |old: &SlotBefore| current.is_some() && old.current == current;
            let origin = before.slots.iter().position(had_it).unwrap_or(index);
            let start = old.get(origin).cloned().unwrap_or_default();
            let was_down = before.slots.get(origin).is_some_and(|slot| slot.is_down);
            match is_scale && was_down {
                true => Start {
                    is_given_up: false,
                    not_before: 0,
                    ..start
                },
                false => start,
            }
        });
        self.starts = starts.collect();
    }

    /// A slot has lost its process, or could not start one.
    fn record_failure(&mut self, slot: usize, pid: Option<u32>, machine: &Machine) {
        let (first, longest) = (self.policy.backoff.first, self.policy.backoff.longest);
        let ready = pid.and_then(|pid| machine.program(pid)?.known_ready);
        let start = &mut self.starts[slot];
        let delay = match ready.map(|since| machine.now - since) {
            Some(served) => {
                start.failures = 0;
                if served < micros(first) {
                    served.min(micros(longest))
                } else {
                    0
                }
            }
            None => {
                start.failures += 1;
                let limit = self.policy.give_up_after;
                if limit.is_some_and(|limit| start.failures >= limit) {
                    start.failures = 0;
                    start.is_given_up = true;
                    self.has_given_up = true;
                    return;
                }
                let doubled = micros(first) << start.failures.min(BREAKER_LIMIT).saturating_sub(1);
                let longest = micros(longest);
                let most = match start.failures >= BREAKER_LIMIT {
                    true => longest,
                    false => doubled.min(longest),
                };
                // The jitter shortens a wait by up to a fifth.
                most * 4 / 5
            }
        };
        start.not_before = machine.now + delay;
    }

    // ---- the promises, which effects can break ----

    /// No start before its back-off has passed, except by a restart that was asked for. No start
    /// in a stop, no second start before the first has its answer, and no start beside a process
    /// that serves but by a restart, which waits while `max_draining` processes drain.
    fn starts_are_right(&mut self, slot: usize, fleet: &Fleet, machine: &Machine) -> Check {
        let is_restart = fleet
            .round
            .as_ref()
            .is_some_and(|round| round.index == slot);
        let start = &mut self.starts[slot];
        let broken = |name, text: &str| Err((name, format!("slot {slot}: {text}")));
        if fleet.shutdown.is_some() {
            return broken("stop_starts_none", "a process is started in a stop");
        }
        if std::mem::replace(&mut start.is_pending, true) {
            return broken("one_start_at_once", "two starts at once");
        }
        // A restart gives the slot all its attempts again.
        start.is_given_up &= !is_restart;
        if start.is_given_up {
            return broken("given_up_slots_stay_down", "a start after the last attempt");
        }
        if !is_restart && machine.now < start.not_before {
            return broken("no_start_before_its_back_off", "a start comes too early");
        }
        let serves = fleet.slots[slot].is_serving();
        if serves && !is_restart {
            return broken("one_start_at_once", "a start beside a process that serves");
        }
        if serves && drains(fleet, slot) >= self.policy.max_draining {
            return broken("restarts_wait_for_draining", "too many processes drain");
        }
        Ok(())
    }

    /// A restart takes no acceptor away before its successor is ready, and a scale leaves as many as
    /// are wanted. Processes may end by themselves: only what the fleet does counts.
    fn takes_no_acceptor_away(
        &self,
        before: &Before,
        effects: &[Effect],
        fleet: &Fleet,
        machine: &Machine,
    ) -> Check {
        if fleet.shutdown.is_some() {
            return Ok(());
        }
        let is_ended = |pid: u32| {
            effects.iter().any(|effect| match effect {
                Effect::Signal { pid: of, signal } => {
                    *of == pid && !matches!(signal, Signal::Hangup | Signal::User1)
                }
                Effect::Abort { pid: of } | Effect::Leave { pid: of, .. } => *of == pid,
                _ => false,
            })
        };
        // What has ended a moment ago counts: the fleet was not told. With `ready_after`, it cannot
        // know.
        let seems_to_accept = |pid| {
            machine
                .program(pid)
                .is_some_and(|program| match program.state {
                    State::Building => self.policy.ready_after.is_some(),
                    State::Accepting | State::Serving | State::Stopping => true,
                    State::Replaced => {
                        program.is_misleading || machine.mail.iter().any(|(from, _)| *from == pid)
                    }
                    State::Dead => machine.ended.contains(&pid),
                })
        };
        let current = fleet.slots.iter().filter_map(|slot| slot.current.as_ref());
        let current = current.filter(|current| seems_to_accept(current.pid));
        let after = current.filter(|current| !is_ended(current.pid)).count();
        let was = before
            .slots
            .iter()
            .filter(|slot| slot.accepts && slot.serves)
            .count();
        match after < was.min(wanted_slots(fleet)) {
            true => {
                let text = format!("{was} processes accepted, {after} are left");
                Err(("takes_no_acceptor_away", text))
            }
            false => Ok(()),
        }
    }

    fn signals_are_right(
        &mut self,
        pid: u32,
        signal: Signal,
        before: &Before,
        fleet: &Fleet,
        machine: &Machine,
    ) -> Check {
        let Some(program) = machine.program(pid) else {
            return Err((
                "signals_name_processes",
                format!("there is no process {pid}"),
            ));
        };
        let broken = |name, text: &str| Err((name, format!("process {pid}: {text}")));
        match signal {
            Signal::Hangup => {
                // A scale or an upgrade may have moved the process to another slot.
                let is_it = |current: &Process| current.pid == pid;
                let mut slots = fleet.slots.iter();
                let slot = slots.position(|slot| slot.current.as_ref().is_some_and(is_it));
                if fleet.shutdown.is_some() {
                    return broken("stop_starts_none", "a restart in a stop");
                }
                if slot.is_some_and(|slot| drains(fleet, slot) >= self.policy.max_draining) {
                    return broken("restarts_wait_for_draining", "too many processes drain");
                }
            }
            Signal::Terminate | Signal::Window => {
                let slot = before
                    .slots
                    .iter()
                    .position(|slot| slot.current == Some(pid));
                let slot = slot.and_then(|slot| fleet.slots.get(slot));
                let is_replaced = slot.is_some_and(|slot| slot.is_serving());
                if signal == Signal::Window && (!is_replaced || fleet.shutdown.is_some()) {
                    return broken("restart_signal_in_restarts_only", "it is not replaced");
                }
                if self.left.contains(&pid) && fleet.shutdown.is_none() {
                    return broken("left_processes_get_no_signal", "it leaves its connections");
                }
                if self.terminated.contains(&pid) && program.is_alive() {
                    return broken("no_second_terminate", "a second SIGTERM stops it at once");
                }
                self.terminated.push(pid);
            }
            Signal::Kill => {
                let was_killed = fleet.outcome().is_some_and(|outcome| outcome.was_killed);
                let is_late = self.aborted.contains(&pid);
                if !is_late && fleet.shutdown.is_none() && !was_killed {
                    return broken("kills_after_abort_only", "it is killed without SIGABRT");
                }
            }
            Signal::User1 => {
                if program.state == State::Building && self.policy.ready_after.is_none() {
                    return broken("no_early_user_signal", "SIGUSR1 kills it: it starts");
                }
            }
            Signal::Quit => {}
        }
        Ok(())
    }

    /// A process of a surplus slot, or that was replaced, leaves its connections to a process that serves
    /// in a slot that stays, before it is told anything else. Both have lanes. None leaves in a stop.
    fn leaves_to_a_process_that_stays(
        &self,
        pid: u32,
        recipient: u32,
        before: &Before,
        fleet: &Fleet,
        machine: &Machine,
    ) -> Check {
        const NAME: &str = "leaves_to_a_process_that_stays";
        let broken = |text: &str| Err((NAME, format!("process {pid} to {recipient}: {text}")));
        let has_lane = |pid| machine.program(pid).is_some_and(|one| one.has_lane());
        let is_current = |process: &Process| process.is_serving() && process.pid == recipient;
        let mut slots_before = before.slots.iter();
        let origin = slots_before.position(|slot| slot.current == Some(pid) && slot.serves);
        // That of the process itself stays if the recipient has replaced it.
        let stays =
            |(index, _): &(usize, _)| *index < wanted_slots(fleet) || origin == Some(*index);
        let mut staying = fleet.slots.iter().enumerate().filter(stays);
        if fleet.shutdown.is_some() {
            return broken("it leaves in a stop");
        }
        if self.left.contains(&pid) || self.terminated.contains(&pid) {
            return broken("it was told before");
        }
        if !has_lane(pid) || !has_lane(recipient) {
            return broken("one of them has no lane");
        }
        if origin.is_none() {
            return broken("it did not serve");
        }
        match staying.any(|(_, slot)| slot.current.as_ref().is_some_and(is_current)) {
            true => Ok(()),
            false => broken("the recipient does not serve in a slot that stays"),
        }
    }

    /// Each client is answered once. A success is true: each slot serves with a version that is not
    /// older than what was on the disk when the client asked. (A process that was started at the very
    /// moment of the request may be of either: times are all that the supervisor can compare.)
    fn answers_are_true(
        &mut self,
        client: u64,
        error: Option<&String>,
        event: &Event,
        fleet: &Fleet,
        machine: &Machine,
    ) -> Check {
        const NAME: &str = "answers_are_true";
        let Some(client) = self.clients.iter_mut().find(|one| one.id == client) else {
            return Err((NAME, format!("there is no client {client}")));
        };
        let broken = |text: String| Err((NAME, format!("client {}: {text}", client.id)));
        if std::mem::replace(&mut client.is_answered, true) {
            return broken("it is answered twice".to_owned());
        }
        if error.is_some() {
            return Ok(());
        }
        match (client.wish, event) {
            (Wish::Upgrade, Event::Replaced) | (Wish::Restart, _) => {}
            (Wish::Scale(slots), _) if fleet.slots.len() == slots => {}
            (Wish::Upgrade, _) => return broken("the supervisor was not replaced".to_owned()),
            (Wish::Scale(_), _) => return broken("another number of slots".to_owned()),
        }
        if client.wish == Wish::Upgrade {
            return Ok(());
        }
        for (index, slot) in fleet.slots.iter().enumerate() {
            let current = slot.current.as_ref().filter(|current| current.is_serving());
            let Some(program) = current.and_then(|current| machine.program(current.pid)) else {
                return broken(format!("success, but slot {index} does not serve"));
            };
            let is_old = program.version < client.version && program.started < client.asked_at;
            if client.wish == Wish::Restart && is_old {
                return broken(format!("success, but slot {index} serves an old version"));
            }
        }
        Ok(())
    }

    /// A stall is noticed by one event only.
    fn logs_a_stall_once(&mut self, text: &str, machine: &Machine) -> Check {
        let is_stall = text.contains("has not run");
        if is_stall && self.stall_logged_at.replace(machine.now) == Some(machine.now) {
            return Err(("logs_a_stall_once", "a stall is logged twice".to_owned()));
        }
        Ok(())
    }

    /// A process is recycled that has served for long or many requests, or has grown, and not soon after another one.
    fn recycles_what_is_due(&mut self, fleet: &Fleet, machine: &Machine) -> Check {
        let broken = |text: String| Err(("recycles_what_is_due", text));
        let round = fleet.round.as_ref().filter(|round| round.is_recycling);
        // The slot of a recycling may be gone already.
        let Some(index) = round.map(|round| round.index) else {
            return Ok(());
        };
        if machine.now < self.recycle_not_before {
            return broken("a recycling follows one that has failed too soon".to_owned());
        }
        let current = fleet.slots[index].current.as_ref();
        let Some(pid) = current.map(|current| current.pid) else {
            return broken(format!("slot {index} has no process"));
        };
        let settings = &self.policy.recycling;
        let ready = machine.program(pid).and_then(|one| one.known_ready);
        let served = machine.now - ready.unwrap_or(machine.now);
        // The jitter shortens the time by up to a tenth.
        let is_old = settings
            .recycle_after
            .is_some_and(|limit| served >= micros(limit) / 10 * 9);
        let requests = self.requests.get(&pid).copied().unwrap_or(0);
        let has_served_many = settings
            .recycle_after_requests
            .is_some_and(|limit| requests * 10 >= limit * 9);
        if is_old || has_served_many {
            return Ok(());
        }
        let has_grown = settings.recycle_above.is_some_and(|limit| {
            let (first, last) = self.sizes.get(&pid).copied().unwrap_or_default();
            last > if first > limit { 2 * first } else { limit }
        });
        let before = self.starts[index].recycled_for_size.replace(machine.now);
        match before {
            _ if !has_grown => broken(format!("process {pid} is recycled, which is not due")),
            Some(before) if machine.now < before + RECYCLING_PAUSE => broken(format!(
                "slot {index}: two processes are recycled for their sizes"
            )),
            _ => Ok(()),
        }
    }

    /// READY=1 for the first time when all slots serve, and again after each RELOADING=1.
    fn manager_is_told_the_truth(&mut self, notice: &ManagerNotice, fleet: &Fleet) -> Check {
        match notice {
            ManagerNotice::Ready(_) if !fleet.sent_ready => {
                return Err(("manager_is_told_the_truth", "READY=1 too early".to_owned()));
            }
            ManagerNotice::Ready(_) | ManagerNotice::Stopping(_) => self.is_reloading = false,
            ManagerNotice::Reloading => self.is_reloading = true,
            ManagerNotice::Status(_) | ManagerNotice::MoreTime(_) => {}
        }
        Ok(())
    }

    fn dry_run_is_wanted_then(&self, fleet: &Fleet) -> Check {
        match fleet.shutdown {
            Some(_) => Err((
                "stop_starts_none",
                "a dry run is started in a stop".to_owned(),
            )),
            None => Ok(()),
        }
    }

    /// An upgrade forgets nothing: no restart is in progress, no client waits for one, and the dry
    /// run began after the last client had asked for the upgrade.
    pub(crate) fn can_be_replaced(&self, fleet: &Fleet) -> Check {
        const NAME: &str = "upgrade_forgets_nothing";
        let broken = |text: &str| Err((NAME, text.to_owned()));
        let waits = |client: &&Client| !client.is_answered;
        if self
            .clients
            .iter()
            .filter(waits)
            .any(|client| client.wish != Wish::Upgrade)
        {
            // A request that the supervisor has not read yet waits in its socket.
            let scales = fleet.scale.has_client();
            if fleet.round.is_some() || fleet.next_round.is_some() || scales {
                return broken("a client waits for a restart");
            }
        }
        let checked = |client: &u64| *client <= self.clients_before_dry_run;
        if !fleet.upgrade.clients.iter().all(checked) {
            return broken("a client asked after the dry run had begun");
        }
        let is_settled = fleet
            .slots
            .iter()
            .all(|slot| slot.successor.is_none() && !slot.is_start_pending);
        match is_settled && fleet.unannounced.is_empty() && fleet.round.is_none() {
            true => Ok(()),
            false => broken("a process is being replaced"),
        }
    }

    /// In a stop, each process is sent a signal at once that was not sent one before.
    fn stop_tells_all(
        &self,
        event: &Event,
        effects: &[Effect],
        before: &Before,
        fleet: &Fleet,
    ) -> Check {
        let is_told = |process: &Process| {
            let was_told = matches!(event, Event::Stop)
                && before.ending.contains(&process.pid)
                && !self.left.contains(&process.pid);
            was_told
                || effects.iter().any(|effect| match effect {
                    Effect::Signal { pid, signal } => {
                        *pid == process.pid && matches!(signal, Signal::Terminate | Signal::Quit)
                    }
                    _ => false,
                })
        };
        let is_stop = matches!(event, Event::Stop) && !before.has_shutdown;
        if is_stop || matches!(event, Event::StopNow) {
            if let Some(process) = fleet.processes().find(|process| !is_told(process)) {
                let text = format!("process {} is not told to stop", process.pid);
                return Err(("stop_tells_all", text));
            }
        }
        Ok(())
    }

    /// No process gets much more time than the policy says, an extension, and what was stalled.
    fn deadlines_are_bounded(&self, fleet: &Fleet, machine: &Machine) -> Check {
        let policy = &self.policy;
        let longest = [policy.stop_timeout, policy.abort_timeout, LONGEST_EXTENSION];
        let longest = longest.into_iter().chain(policy.watchdog).max();
        let longest = longest.unwrap_or_default().max(policy.ready_timeout);
        let limit = machine.now + micros(longest) + self.stalled;
        for process in fleet.processes() {
            let deadline = process.deadline().instant();
            if deadline.is_some_and(|at| machine.micros_of(at) > limit) {
                let text = format!("process {} has too much time", process.pid);
                return Err(("deadlines_are_bounded", text));
            }
        }
        Ok(())
    }

    // ---- the end ----

    /// Whether the supervisor exits. It does so exactly when no process is left, and in time after
    /// a stop.
    pub(crate) fn has_ended(
        &self,
        fleet: &Fleet,
        machine: &Machine,
        dry_run: Option<u64>,
    ) -> Result<bool, (&'static str, String)> {
        if self
            .stop_limit
            .is_some_and(|limit| machine.now > limit + MS)
        {
            return Err(("stop_ends_in_time", "the stop takes too long".to_owned()));
        }
        let is_left = |program: &&super::machine::Program| program.is_alive() && program.is_known;
        let left = machine.programs.iter().find(is_left);
        let is_due = fleet
            .slots
            .iter()
            .any(|slot| slot.start_at.instant().is_some());
        let has_work = left.is_some() || is_due || dry_run.is_some();
        let has_unreported = fleet.processes().next().is_some();
        let given_up_at = self.killed_at.map(|at| at + micros(KILL_TIMEOUT));
        let gives_up = given_up_at.is_some_and(|at| machine.now >= at);
        match fleet.outcome() {
            None if !has_work && !has_unreported => {
                Err(("ends_when_nothing_is_left", "it does not end".to_owned()))
            }
            Some(_) if (has_work || has_unreported) && !gives_up => {
                let text = format!("it ends, but {:?} is left", left.map(|left| left.pid));
                Err(("ends_when_nothing_is_left", text))
            }
            outcome => Ok(outcome.is_some()),
        }
    }

    pub(crate) fn has_waiting_client(&self) -> bool {
        self.clients.iter().any(|client| !client.is_answered)
    }

    pub(crate) fn answers_all(&self) -> Check {
        if let Some(client) = self.clients.iter().find(|client| !client.is_answered) {
            let text = format!("client {} gets no answer", client.id);
            return Err(("answers_are_true", text));
        }
        match self.is_reloading {
            true => Err((
                "manager_is_told_the_truth",
                "no READY=1 follows RELOADING=1".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// A service that can serve does so again in bounded time.
    pub(crate) fn settles(&self, left: Option<String>) -> Check {
        left.map_or(Ok(()), |left| Err(("settles", left)))
    }

    /// How long that takes at most, in microseconds.
    pub(crate) fn time_to_settle(&self) -> u64 {
        let policy = &self.policy;
        let slot = 3 * (policy.ready_timeout + policy.stop_timeout + policy.backoff.longest)
            + 4 * policy.abort_timeout
            + Duration::from_secs(60);
        micros(slot) * 6 + self.stalled
    }

    /// The loop waits: it does not find deadlines that have passed again and again.
    pub(crate) fn does_not_spin(turns_at_once: u32) -> Check {
        match turns_at_once > 50 {
            true => Err(("does_not_spin", "a deadline in the past stays".to_owned())),
            false => Ok(()),
        }
    }
}

/// How many processes are to serve.
pub(crate) fn wanted_slots(fleet: &Fleet) -> usize {
    fleet.scale.wanted.unwrap_or(fleet.policy.processes)
}

fn accepts(machine: &Machine, pid: u32) -> bool {
    machine
        .program(pid)
        .is_some_and(|program| program.accepts())
}

fn drains(fleet: &Fleet, index: usize) -> usize {
    let of_slot = fleet
        .draining
        .iter()
        .filter(|process| process.slot == Some(index));
    of_slot.filter(|process| !process.is_aborted()).count()
}

/// A process that starts beside another one that starts was not asked for.
fn each_slot_starts_one_process(fleet: &Fleet, machine: &Machine) -> Check {
    for (index, slot) in fleet.slots.iter().enumerate() {
        let is_clear = |pid| machine.program(pid).is_some_and(|one| !one.is_misleading);
        let starting = slot.processes().filter(|process| process.is_starting());
        let starting = starting.filter(|process| is_clear(process.pid));
        if starting.count() > 1 {
            let text = format!("slot {index}: two processes start");
            return Err(("each_slot_starts_one_process", text));
        }
    }
    Ok(())
}

/// A process that is named when it has ended takes no slot, so that no restart succeeds with it.
fn takes_no_dead_process(event: &Event, before: &Before, fleet: &Fleet) -> Check {
    let Event::Notified { notice, .. } = event else {
        return Ok(());
    };
    let ended = notice.main_pid.filter(|named| named.has_ended);
    let Some(ended) = ended.map(|named| Some(named.pid)) else {
        return Ok(());
    };
    let mut slots = fleet.slots.iter().zip(&before.slots);
    let pid = |current: &Process| current.pid;
    match slots.any(|(slot, old)| slot.current.as_ref().map(pid) == ended && old.current != ended) {
        true => {
            let text = format!("process {ended:?} has ended, and takes a slot");
            Err(("takes_no_dead_process", text))
        }
        false => Ok(()),
    }
}

/// Each process serves, or has a deadline of its own or one by the stop. A predecessor that lives
/// sees to its successor.
fn each_process_has_a_deadline(fleet: &Fleet) -> Check {
    const NAME: &str = "each_process_has_a_deadline";
    let has_stop = fleet
        .shutdown
        .is_some_and(|stop| stop.deadline.instant().is_some());
    for process in fleet.processes() {
        let has_deadline = process.deadline().instant().is_some();
        let is_watched_by_predecessor = || {
            let of = |pid: Option<&Process>| pid.is_some_and(|one| one.pid == process.pid);
            let slots = &mut fleet.slots.iter();
            slots.any(|slot| of(slot.successor.as_ref()) && slot.current.is_some())
        };
        let is_right = match process.stage {
            Stage::Serving { .. } => true,
            Stage::Starting { .. } => has_deadline || is_watched_by_predecessor(),
            Stage::Stopping { .. } => has_deadline || has_stop,
            Stage::Aborted { .. } => has_deadline,
        };
        if !is_right || fleet.shutdown.is_some() && !has_stop {
            return Err((NAME, format!("process {} has none", process.pid)));
        }
    }
    Ok(())
}

/// Each process that the supervisor has started or was told of is in the fleet until it has ended.
fn none_is_forgotten(fleet: &Fleet, machine: &Machine) -> Check {
    for program in &machine.programs {
        let pid = program.pid;
        let is_there = fleet
            .processes()
            .filter(|process| process.pid == pid)
            .count();
        if is_there > 1 {
            return Err(("none_is_forgotten", format!("process {pid} is there twice")));
        }
        // A process that was started is added by the next event.
        let is_told = program.is_known && program.predecessor.is_some() || program.was_added;
        if program.is_alive() && is_told && is_there == 0 {
            return Err(("none_is_forgotten", format!("process {pid} is forgotten")));
        }
    }
    Ok(())
}

/// Only a process is aborted that is not ready in time, hangs, or does not exit in time. So neither
/// a stall of the supervisor nor a stall of all ends a process that does well.
fn aborts_only_the_faulty(pid: u32, machine: &Machine) -> Check {
    match machine.program(pid) {
        Some(program) if program.is_alive() && !program.is_faulty => {
            let text = format!("process {pid} is aborted, which does well");
            Err(("aborts_only_the_faulty", text))
        }
        _ => Ok(()),
    }
}

/// Listeners stay open that a process uses, unless it drains.
fn keeps_used_listeners(
    used: &[crate::fleet::event::ListenerId],
    fleet: &Fleet,
    machine: &Machine,
) -> Check {
    for process in fleet.processes() {
        let Some(program) = machine.program(process.pid) else {
            continue;
        };
        let uses = matches!(
            program.state,
            State::Building | State::Accepting | State::Serving
        );
        let may_serve = process.is_starting() || process.is_serving();
        let listeners = program.listeners();
        let has_told = listeners.iter().all(|id| process.listeners.contains(id));
        if uses && may_serve && has_told && !listeners.iter().all(|id| used.contains(id)) {
            let text = format!("a listener of process {} is closed", process.pid);
            return Err(("keeps_used_listeners", text));
        }
    }
    Ok(())
}
