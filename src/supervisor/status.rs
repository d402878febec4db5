//! The requests on the control socket, and their answers: the status, and the result of a request.

use std::process;
use std::time::Instant;

use super::run::Run;
use super::slot::ProcessSlot;
use crate::log;
use crate::wire::{
    Answer, ControlRequest, ListenerStatus, Record, ServiceState, SlotState, SlotStatus, Status,
    seconds,
};

impl Run {
    pub(super) fn handle_control_requests(&mut self) {
        let requests = self.control.as_mut().map(|control| control.requests());
        for (id, request) in requests.into_iter().flatten() {
            log::debug!("control client {id}: {request:?}");
            match ControlRequest::parse(&request) {
                Some(ControlRequest::Status) => {
                    let status = self.status();
                    self.reply(id, &status);
                }
                Some(ControlRequest::Restart { waits }) => {
                    self.begin_rolling_restart(waits.then_some(id));
                    self.reply_unless(waits, id);
                }
                Some(ControlRequest::Upgrade { waits }) => {
                    self.upgrade(waits.then_some(id));
                    self.reply_unless(waits, id);
                }
                Some(ControlRequest::Stop) => {
                    self.stop();
                    self.reply(id, &Answer::success());
                }
                None => {
                    let why = "unknown request: use status, restart, restart wait, stop, upgrade or \
                               upgrade wait";
                    self.reply(id, &Answer::failure(why));
                }
            }
        }
    }

    /// Tells a client that does not wait for the result whether its request was accepted.
    fn reply_unless(&mut self, waits: bool, id: u64) {
        if !waits {
            let answer = match self.shutdown {
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
        let ready = self.slots.iter().filter(|slot| slot.is_ready()).count();
        let state = if self.shutdown.is_some() {
            ServiceState::Stopping
        } else if self.rolling_restart.is_some() {
            ServiceState::Restarting
        } else if ready == self.slots.len() {
            ServiceState::Serving
        } else if ready > 0 {
            ServiceState::Degraded
        } else if self.slots.iter().any(|slot| slot.current.is_some()) {
            ServiceState::Starting
        } else {
            ServiceState::Down
        };
        let listeners = self.listeners.iter().map(|held| ListenerStatus {
            name: held.record.name.clone(),
            address: held.listener.local_addr().to_string(),
        });
        Status {
            ok: true,
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: self.program.path().to_string_lossy().into_owned(),
            state,
            uptime_seconds: seconds(self.started_at.elapsed()),
            processes: self.slots.iter().map(slot_status).collect(),
            draining: self.draining.iter().map(|process| process.pid).collect(),
            listeners: listeners.collect(),
            last_restart: self.last_restart.clone(),
        }
    }
}

fn slot_status(slot: &ProcessSlot) -> SlotStatus {
    let state = match &slot.current {
        Some(current) if current.aborted => SlotState::Aborting,
        Some(current) if current.ready_since.is_some() && slot.successor.is_some() => {
            SlotState::Restarting
        }
        Some(current) if current.ready_since.is_some() => SlotState::Serving,
        Some(_) => SlotState::Starting,
        None if slot.successor.is_some() => SlotState::Starting,
        None if slot.start_at.instant().is_some() => SlotState::Waiting,
        None => SlotState::Down,
    };
    let current = slot.current.as_ref();
    let starts_in = slot.start_at.time_left(Instant::now());
    SlotStatus {
        state,
        restarts: slot.restarts,
        pid: current.map(|current| current.pid),
        generation: current.map(|current| current.generation),
        uptime_seconds: current.map(|current| seconds(current.started_at.elapsed())),
        status: current.map(|current| current.status.clone()),
        starts_in_seconds: starts_in.filter(|_| current.is_none()).map(seconds),
        last_end: slot.last_failure.clone(),
    }
}
