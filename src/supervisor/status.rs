//! The requests on the control socket, and their answers: the status, and the result of a request.

use std::process;
use std::time::Instant;

use super::control::ControlSocket;
use super::fleet::Fleet;
use super::fleet::event::Event;
use super::fleet::process::{Process, Stage};
use super::fleet::slot::{Death, Slot};
use super::run::Run;
use super::settings::MOST_PROCESSES;
use crate::log;
use crate::notify;
use crate::wire::{
    Answer, ControlRequest, DeathStatus, ListenerStatus, ProcessState, ProcessStatus, Record,
    RestartStatus, SCHEMA, ServiceState, SlotState, SlotStatus, Status, seconds,
};

impl Run {
    pub(super) fn handle_control_requests(&mut self) {
        let requests = self.control.as_mut().map(|control| control.requests());
        for (id, request) in requests.into_iter().flatten() {
            let parsed = ControlRequest::parse(&request);
            if parsed.is_some_and(|request| request != ControlRequest::Status) {
                log::info!("received {request:?} on the control socket");
            }
            match parsed {
                Some(ControlRequest::Status) => {
                    let status = self.status();
                    self.reply(id, &status);
                }
                Some(
                    ControlRequest::Restart { waits: true }
                    | ControlRequest::Upgrade { waits: true }
                    | ControlRequest::Reopen,
                ) if !self.control.as_ref().is_some_and(ControlSocket::may_wait) => {
                    let why = "too many clients wait for a result already";
                    self.reply(id, &Answer::failure(why));
                }
                Some(ControlRequest::Restart { waits }) => {
                    let client = waits.then_some(id);
                    self.handle(Event::Restart { client });
                    self.reply_unless(waits, id);
                }
                Some(ControlRequest::Upgrade { waits }) => {
                    let client = waits.then_some(id);
                    self.handle(Event::Upgrade { client });
                    self.reply_unless(waits, id);
                }
                Some(ControlRequest::Scale { processes, .. })
                    if !(1..=MOST_PROCESSES).contains(&processes) =>
                {
                    let why = format!("the number of processes is from 1 to {MOST_PROCESSES}");
                    self.reply(id, &Answer::failure(why));
                }
                Some(ControlRequest::Scale { processes, waits }) => {
                    let client = waits.then_some(id);
                    self.handle(Event::Scale { processes, client });
                    self.reply_unless(waits, id);
                }
                Some(ControlRequest::Reopen) => {
                    self.handle(Event::User1);
                    self.output_files.reopen(Some(id));
                }
                Some(ControlRequest::Stop) => {
                    self.handle(Event::Stop);
                    self.reply(id, &Answer::success());
                }
                None => {
                    let why = "unknown request: use status, restart, restart wait, scale N, \
                               scale N wait, reopen, stop, upgrade or upgrade wait";
                    self.reply(id, &Answer::failure(why));
                }
            }
        }
    }

    /// Tells a client that does not wait for the result whether its request was accepted.
    fn reply_unless(&mut self, waits: bool, id: u64) {
        if !waits {
            let answer = match self.fleet.shutdown {
                Some(_) => Answer::failure("the supervisor is being stopped"),
                None => Answer::success(),
            };
            self.reply(id, &answer);
        }
    }

    pub(super) fn reply(&mut self, id: u64, answer: &impl Record) {
        if let Some(control) = &mut self.control {
            control.reply(id, answer);
        }
    }

    fn status(&self) -> Status {
        let fleet = &self.fleet;
        let listeners = self.listeners.iter().map(|held| ListenerStatus {
            name: held.record.name.clone(),
            // A process of another user may have chosen the path, and a terminal show it.
            address: notify::one_line(held.listener.shown_addr()),
        });
        let last_restart = fleet.last_restart.as_ref();
        Status {
            ok: true,
            schema: SCHEMA,
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: self.program.path().to_string_lossy().into_owned(),
            event_objects: self.signals.event_names(),
            state: service_state(fleet),
            uptime_seconds: seconds(self.started_at.elapsed()),
            processes: fleet.slots.iter().map(slot_status).collect(),
            draining: fleet.draining.iter().map(process_status).collect(),
            listeners: listeners.collect(),
            last_restart: last_restart.map(|restart| RestartStatus {
                ok: restart.error.is_none(),
                error: restart.error.clone(),
                took_seconds: seconds(restart.took),
                seconds_ago: seconds(restart.ended_at.elapsed()),
            }),
        }
    }
}

fn service_state(fleet: &Fleet) -> ServiceState {
    let serving = fleet.serving();
    if fleet.shutdown.is_some() {
        ServiceState::Stopping
    } else if fleet.round.is_some() {
        ServiceState::Restarting
    } else if serving == fleet.slots.len() {
        ServiceState::Serving
    } else if serving > 0 {
        ServiceState::Degraded
    } else if fleet.slots.iter().any(|slot| slot.current.is_some()) {
        ServiceState::Starting
    } else {
        ServiceState::Down
    }
}

fn slot_status(slot: &Slot) -> SlotStatus {
    let current = slot.current.as_ref();
    let state = match current.map(|current| current.stage) {
        Some(Stage::Aborted { .. }) => SlotState::Aborting,
        Some(Stage::Serving { .. }) if slot.successor.is_some() => SlotState::Restarting,
        Some(Stage::Serving { .. }) => SlotState::Serving,
        Some(Stage::Stopping { .. }) => SlotState::Stopping,
        Some(Stage::Starting { .. }) => SlotState::Starting,
        None if slot.successor.is_some() => SlotState::Starting,
        None if slot.start_at.instant().is_some() => SlotState::Waiting,
        None => SlotState::Down,
    };
    let starts_in = slot.start_at.time_left(Instant::now());
    SlotStatus {
        state,
        restarts: slot.restarts,
        pid: current.map(|current| current.pid),
        generation: current.map(|current| current.generation),
        uptime_seconds: current.map(|current| seconds(current.started_at.elapsed())),
        status: current.map(|current| current.status.clone()),
        requests: current.and_then(|current| current.requests),
        starts_in_seconds: starts_in.filter(|_| current.is_none()).map(seconds),
        successor: slot.successor.as_ref().map(process_status),
        last_deaths: slot.deaths.iter().map(death_status).collect(),
    }
}

fn process_status(process: &Process) -> ProcessStatus {
    let state = match process.stage {
        Stage::Aborted { .. } => ProcessState::Aborting,
        Stage::Starting { .. } => ProcessState::Starting,
        Stage::Serving { .. } | Stage::Stopping { .. } => ProcessState::Draining,
    };
    ProcessStatus {
        pid: process.pid,
        generation: process.generation,
        state,
        uptime_seconds: seconds(process.started_at.elapsed()),
        status: process.status.clone(),
    }
}

fn death_status(death: &Death) -> DeathStatus {
    DeathStatus {
        reason: death.why.clone(),
        seconds_ago: seconds(death.at.elapsed()),
    }
}
