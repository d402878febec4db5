//! What the supervisor does about the notifications of processes (sd_notify(3)).
//!
//! | notification | handled by |
//! |---|---|
//! | `X_HANDOVER`: a bind request | `answer_bind_request` |
//! | `X_HANDOVER`: listeners | `hold_listeners` |
//! | `EXTEND_TIMEOUT_USEC` | `extend_deadlines` |
//! | `READY=1` | `mark_ready`, `promote_successor` or `promote_unannounced`, by the location |
//! | the rest, of a current process only | `handle_current_notification` |

use std::time::{Duration, Instant};

use super::ancestry;
use super::processes::abort_process;
use super::run::Run;
use super::slot::SupervisedProcess;
use crate::clock::Deadline;
use crate::listener::Bind;
use crate::log;
use crate::notify::{self, Notification, WatchdogMessage};
use crate::sys::{self, Datagram, Descriptor, Signal};
use crate::wire::{BindAnswer, BindRequest, ListenerRecord, Record};

/// The supervisor knows at most this many unannounced processes.
const MAX_UNANNOUNCED: usize = 16;

/// Where the supervisor keeps a process, with its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessLocation {
    /// The current process of a slot.
    Current(usize),
    /// The successor in a slot.
    Successor(usize),
    Draining(usize),
    Unannounced(usize),
}

impl Run {
    pub(super) fn location_of(&self, pid: u32) -> Option<ProcessLocation> {
        let mut locations = self.locations();
        let (location, _) = locations.find(|(_, process)| process.pid == pid)?;
        Some(location)
    }

    /// All processes that serve, are to serve, or have served, and where the supervisor keeps them.
    pub(super) fn locations(&self) -> impl Iterator<Item = (ProcessLocation, &SupervisedProcess)> {
        let slots = (0..).zip(&self.slots);
        let in_slots = slots.flat_map(|(index, slot)| {
            let current = slot
                .current
                .iter()
                .map(move |current| (ProcessLocation::Current(index), current));
            let successor = slot.successor.iter();
            current.chain(
                successor.map(move |successor| (ProcessLocation::Successor(index), successor)),
            )
        });
        let draining = (0..).map(ProcessLocation::Draining).zip(&self.draining);
        let unannounced = (0..)
            .map(ProcessLocation::Unannounced)
            .zip(&self.unannounced);
        in_slots.chain(draining).chain(unannounced)
    }

    fn process_at(&mut self, location: ProcessLocation) -> Option<&mut SupervisedProcess> {
        match location {
            ProcessLocation::Current(index) => self.slots[index].current.as_mut(),
            ProcessLocation::Successor(index) => self.slots[index].successor.as_mut(),
            ProcessLocation::Draining(index) => self.draining.get_mut(index),
            ProcessLocation::Unannounced(index) => self.unannounced.get_mut(index),
        }
    }

    // ---- notifications of any process ----

    pub(super) fn handle_notification(&mut self, datagram: Datagram) {
        let (pid, uid, text) = (datagram.pid, datagram.uid, datagram.text);
        // Every process of the system can write to the socket, whatever its user.
        let known = self.location_of(pid);
        if uid != sys::process::effective_uid() && uid != 0 && known.is_none() {
            log::debug!("ignoring a notification of process {pid}, which belongs to user {uid}");
            return;
        }
        log::debug!("notification of process {pid}: {text:?}");
        let notification = Notification::parse(&text);
        let descriptors = datagram.descriptors;
        let Some(location) = known.or_else(|| self.add_unannounced(pid, &notification)) else {
            return;
        };
        if let (Some(bind), [reply_to, ..]) =
            (notification.handover_fields.bind.clone(), &descriptors[..])
        {
            self.answer_bind_request(location, bind, reply_to);
        }
        self.hold_listeners(
            location,
            &notification.handover_fields.listeners,
            descriptors,
        );
        let Some(process) = self.process_at(location) else {
            return;
        };
        // Beside MAINPID=, the generation is that of the successor.
        if let (Some(generation), None) = (
            notification.handover_fields.generation,
            notification.main_pid,
        ) {
            process.starts_successors = true;
            process.generation = generation;
        }
        if let Some(status) = &notification.status {
            process.status = notify::one_line(status);
        }
        process.stopping |= notification.stopping;
        if let Some(time) = notification.extend {
            self.extend_deadlines(location, time);
        }
        match location {
            ProcessLocation::Current(index) => {
                self.handle_current_notification(index, notification)
            }
            ProcessLocation::Successor(index) if notification.ready => {
                self.promote_successor(index)
            }
            ProcessLocation::Unannounced(index) if notification.ready => {
                self.promote_unannounced(index)
            }
            _ => {}
        }
    }

    /// Adds the sender of a notification that no process has announced. The sender must descend
    /// from the supervisor, and name its generation, which other subprocesses of a server do not.
    fn add_unannounced(
        &mut self,
        pid: u32,
        notification: &Notification,
    ) -> Option<ProcessLocation> {
        if notification.handover_fields.generation.is_none()
            || self.unannounced.len() >= MAX_UNANNOUNCED
        {
            return None;
        }
        let ready_by = Deadline::after(Instant::now(), self.settings.ready_timeout);
        let process = SupervisedProcess::new(pid, 0, ready_by);
        if !ancestry::is_descendant(pid) || process.pidfd.has_ended() {
            return None;
        }
        self.unannounced.push(process);
        Some(ProcessLocation::Unannounced(self.unannounced.len() - 1))
    }

    /// Sends a process the listener that it asks for, or the reason why there is none.
    fn answer_bind_request(
        &mut self,
        location: ProcessLocation,
        request: BindRequest,
        reply_to: &Descriptor,
    ) {
        let found = self.listeners.find_or_bind(Bind::from_request(request));
        let (answer, descriptors) = match &found {
            Ok((_, descriptor)) => (BindAnswer::Given.encode(), vec![descriptor]),
            Err(error) => (BindAnswer::from(error).encode(), Vec::new()),
        };
        let socket = reply_to.try_clone().and_then(sys::descriptor::into_socket);
        let sent = socket.and_then(|socket| sys::message::send(&socket, &answer?, &descriptors));
        if let Err(error) = sent {
            log::warn!("cannot answer a process that asked for a listener: {error}");
        }
        if let (Ok((id, _)), Some(process)) = (found, self.process_at(location)) {
            process.listeners.push(id);
        }
    }

    /// Holds the listeners that a process has sent copies of.
    fn hold_listeners(
        &mut self,
        location: ProcessLocation,
        records: &[ListenerRecord],
        descriptors: Vec<Descriptor>,
    ) {
        for (record, descriptor) in records.iter().zip(descriptors) {
            match self.listeners.hold_copy(record.clone(), descriptor) {
                Ok(id) => {
                    if let Some(process) = self.process_at(location) {
                        process.listeners.push(id);
                    }
                }
                Err(error) => log::error!("cannot hold the listener {}: {error}", record.name),
            }
        }
    }

    /// Gives a process more time, counted from now (EXTEND_TIMEOUT_USEC). Extends the deadline of
    /// the process, and those of the restart, of the stop and of the service manager that wait for
    /// the process.
    fn extend_deadlines(&mut self, location: ProcessLocation, time: Duration) {
        let until = Deadline::after(Instant::now(), time);
        if let Some(process) = self.process_at(location).filter(|process| !process.aborted) {
            process.deadline = process.deadline.later(until);
        }
        let index = match location {
            ProcessLocation::Current(index) | ProcessLocation::Successor(index) => Some(index),
            ProcessLocation::Draining(_) | ProcessLocation::Unannounced(_) => None,
        };
        let mut manager_waits = index.is_some() && !self.sent_ready;
        let restart = self.rolling_restart.as_mut();
        if let Some(restart) = restart.filter(|restart| Some(restart.index) == index) {
            restart.deadline = restart.deadline.later(until);
            manager_waits = true;
        }
        if let Some(stop) = self.shutdown.as_mut().filter(|stop| !stop.is_immediate) {
            stop.deadline = stop.deadline.later(until);
            manager_waits = true;
        }
        if manager_waits {
            notify::request_more_time(time);
        }
    }

    /// An unannounced process is ready, and its predecessor is gone. It takes the first slot that
    /// is not ready; if there is none, or in a stop, it is terminated.
    fn promote_unannounced(&mut self, index: usize) {
        let process = self.unannounced.remove(index);
        let slot = self.slots.iter().position(|slot| !slot.is_ready());
        let Some(index) = slot.filter(|_| self.shutdown.is_none()) else {
            return self.terminate(process);
        };
        if let Some(other) = self.slots[index].current.replace(process) {
            self.terminate(other);
        }
        self.slots[index].start_at = Deadline::NEVER;
        self.mark_ready(index);
    }

    // ---- notifications of a slot's current process ----

    fn handle_current_notification(&mut self, index: usize, notification: Notification) {
        let own_pid = self.slots[index].current_pid();
        // Some programs name themselves in MAINPID=. Other processes must be descendants.
        let is_successor = |pid: &u32| Some(*pid) != own_pid && ancestry::is_descendant(*pid);
        if let Some(pid) = notification.handover_fields.successor.filter(is_successor) {
            self.handle_announced_successor(index, pid);
        }
        if let Some(why) = notification.handover_fields.failed {
            // The process may have sent anything.
            let why = notify::one_line(why);
            if let Some(successor) = self.slots[index].successor.take() {
                // The predecessor ends the successor, or has ended it.
                self.drain(successor);
            }
            self.close_unused_listeners();
            self.fail_rolling_restart(index, &why);
        }
        if let Some(pid) = notification.main_pid.filter(is_successor) {
            return self.replace_current(index, pid, notification.handover_fields.generation);
        }
        if notification.stopping && self.shutdown.is_none() {
            if self.settings.restart_after_success {
                return self.replace_stopping_current(index);
            }
            let exited_by = Deadline::after(Instant::now(), self.settings.stop_timeout);
            if let Some(current) = self.slots[index]
                .current
                .as_mut()
                .filter(|current| !current.aborted)
            {
                current.deadline = exited_by;
            }
        }
        let abort_timeout = self.settings.abort_timeout;
        let Some(current) = &mut self.slots[index].current else {
            return;
        };
        match notification.watchdog {
            Some(WatchdogMessage::Alive) => current.last_watchdog = Some(Instant::now()),
            Some(WatchdogMessage::Wedged) if !current.stopping => {
                abort_process(current, "reports that it makes no progress", abort_timeout);
            }
            _ => {}
        }
        if notification.ready && current.ready_since.is_none() {
            self.mark_ready(index);
        }
    }

    /// The current process has started a successor (`successor` in X_HANDOVER).
    fn handle_announced_successor(&mut self, index: usize, pid: u32) {
        let successor = self.adopt_successor(index, pid);
        if let Some(former) = self.slots[index].successor.replace(successor) {
            self.drain(former);
        }
    }

    /// The successor serves in place of the current process (MAINPID=), which drains.
    fn replace_current(&mut self, index: usize, pid: u32, generation: Option<u64>) {
        let mut successor = match self.slots[index].successor.take() {
            Some(successor) if successor.pid == pid => successor,
            other => {
                if let Some(other) = other {
                    self.terminate(other);
                }
                self.adopt_successor(index, pid)
            }
        };
        successor.generation = generation.unwrap_or(successor.generation);
        if let Some(old) = self.slots[index].current.replace(successor) {
            self.drain(old);
        }
        self.mark_ready(index);
    }

    /// The current process stops by itself. Another process serves while it finishes its requests.
    fn replace_stopping_current(&mut self, index: usize) {
        let Some(mut current) = self.slots[index].current.take() else {
            return;
        };
        current.replaced_in = Some(index);
        // The current process ends a successor that does not serve yet. A successor that serves
        // notifies the supervisor.
        if let Some(mut successor) = self.slots[index].successor.take() {
            successor.deadline = Deadline::after(Instant::now(), self.settings.ready_timeout);
            self.unannounced.push(successor);
        }
        let served = current.ready_since.map(|since| since.elapsed());
        let why = format!("process {} stops without having been asked to", current.pid);
        self.drain(current);
        self.slots[index].last_failure = Some(why.clone());
        self.schedule_start(index, served, &why);
    }

    /// The successor that the current process of this slot has started. The successor may be among
    /// the unannounced processes, if its own notifications came first.
    fn adopt_successor(&mut self, index: usize, pid: u32) -> SupervisedProcess {
        let slot = &self.slots[index];
        let watchdog = slot.current.as_ref().and_then(|current| current.watchdog);
        let known = self.unannounced.iter().position(|known| known.pid == pid);
        let mut process = match known {
            Some(index) => self.unannounced.remove(index),
            None => SupervisedProcess::new(pid, slot.generation + 1, Deadline::NEVER),
        };
        // The predecessor ends a successor that is not ready in time.
        process.deadline = Deadline::NEVER;
        process.starts_successors = true;
        process.watchdog = watchdog;
        if self.shutdown.is_some() {
            process.send(Signal::Terminate);
        }
        process
    }
}
