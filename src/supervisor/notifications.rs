//! What the supervisor does about the notifications of processes (sd_notify(3)).
//!
//! | notification | handled by |
//! |---|---|
//! | `X_HANDOVER`: a bind request | `answer_bind_request` |
//! | `X_HANDOVER`: listeners | `hold_listeners` |
//! | `EXTEND_TIMEOUT_USEC` | `extend_deadlines` |
//! | `READY=1` | `mark_ready`, `promote_successor` or `promote_unannounced`, by the position |
//! | the rest, of a main process only | `handle_main_notification` |

use std::time::{Duration, Instant};

use super::ancestry;
use super::processes::abort_process;
use super::run::Run;
use super::slot::SupervisedProcess;
use crate::clock::Deadline;
use crate::listener::Bind;
use crate::notify::{self, Notification, WatchdogMessage};
use crate::sys::{self, Datagram, Descriptor, Signal};
use crate::wire::{BindAnswer, BindRequest, ListenerRecord, Record};

/// The supervisor knows at most this many unannounced processes.
const MAX_UNANNOUNCED: usize = 16;

/// Where the supervisor keeps a process, with its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The main process of a slot.
    Main(usize),
    /// The successor in a slot.
    Successor(usize),
    Draining(usize),
    Unannounced(usize),
}

impl Run {
    pub(super) fn position_of(&self, pid: u32) -> Option<Position> {
        let mut positions = self.positions();
        let (position, _) = positions.find(|(_, process)| process.pid == pid)?;
        Some(position)
    }

    /// All processes that serve, are to serve, or have served, and where the supervisor keeps them.
    pub(super) fn positions(&self) -> impl Iterator<Item = (Position, &SupervisedProcess)> {
        let slots = (0..).zip(&self.slots);
        let in_slots = slots.flat_map(|(index, slot)| {
            let main = slot
                .main
                .iter()
                .map(move |main| (Position::Main(index), main));
            let successor = slot.successor.iter();
            main.chain(successor.map(move |successor| (Position::Successor(index), successor)))
        });
        let draining = (0..).map(Position::Draining).zip(&self.draining);
        let unannounced = (0..).map(Position::Unannounced).zip(&self.unannounced);
        in_slots.chain(draining).chain(unannounced)
    }

    fn process_at(&mut self, position: Position) -> Option<&mut SupervisedProcess> {
        match position {
            Position::Main(index) => self.slots[index].main.as_mut(),
            Position::Successor(index) => self.slots[index].successor.as_mut(),
            Position::Draining(index) => self.draining.get_mut(index),
            Position::Unannounced(index) => self.unannounced.get_mut(index),
        }
    }

    // ---- notifications of any process ----

    pub(super) fn handle_notification(&mut self, datagram: Datagram) {
        let (pid, uid, text) = (datagram.pid, datagram.uid, datagram.text);
        // Every process of the system can write to the socket, whatever its user.
        let known = self.position_of(pid);
        if uid != sys::process::effective_uid() && uid != 0 && known.is_none() {
            log::debug!("ignoring a notification of process {pid}, which belongs to user {uid}");
            return;
        }
        log::debug!("notification of process {pid}: {text:?}");
        let notification = Notification::parse(&text);
        let descriptors = datagram.descriptors;
        let Some(position) = known.or_else(|| self.add_unannounced(pid, &notification)) else {
            return;
        };
        if let (Some(bind), [reply_to, ..]) = (notification.notice.bind.clone(), &descriptors[..]) {
            self.answer_bind_request(position, bind, reply_to);
        }
        self.hold_listeners(position, &notification.notice.listeners, descriptors);
        let Some(process) = self.process_at(position) else {
            return;
        };
        // Beside MAINPID=, the generation is that of the successor.
        if let (Some(generation), None) = (notification.notice.generation, notification.main_pid) {
            process.restarts_itself = true;
            process.generation = generation;
        }
        if let Some(status) = &notification.status {
            process.status = notify::one_line(status);
        }
        process.stopping |= notification.stopping;
        if let Some(time) = notification.extend {
            self.extend_deadlines(position, time);
        }
        match position {
            Position::Main(index) => self.handle_main_notification(index, notification),
            Position::Successor(index) if notification.ready => self.promote_successor(index),
            Position::Unannounced(index) if notification.ready => self.promote_unannounced(index),
            _ => {}
        }
    }

    /// Adds the sender of a notification that no process has announced. The sender must descend
    /// from the supervisor, and name its generation, which other subprocesses of a server do not.
    fn add_unannounced(&mut self, pid: u32, notification: &Notification) -> Option<Position> {
        if notification.notice.generation.is_none() || self.unannounced.len() >= MAX_UNANNOUNCED {
            return None;
        }
        let ready_by = Deadline::after(Instant::now(), self.settings.ready_timeout);
        let process = SupervisedProcess::new(pid, 0, ready_by);
        if !ancestry::is_descendant(pid) || process.pidfd.has_ended() {
            return None;
        }
        self.unannounced.push(process);
        Some(Position::Unannounced(self.unannounced.len() - 1))
    }

    /// Sends a process the listener that it asks for, or the reason why there is none.
    fn answer_bind_request(
        &mut self,
        position: Position,
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
        if let (Ok((id, _)), Some(process)) = (found, self.process_at(position)) {
            process.listeners.push(id);
        }
    }

    /// Holds the listeners that a process has sent copies of.
    fn hold_listeners(
        &mut self,
        position: Position,
        records: &[ListenerRecord],
        descriptors: Vec<Descriptor>,
    ) {
        for (record, descriptor) in records.iter().zip(descriptors) {
            match self.listeners.hold_copy(record.clone(), descriptor) {
                Ok(id) => {
                    if let Some(process) = self.process_at(position) {
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
    fn extend_deadlines(&mut self, position: Position, time: Duration) {
        let until = Deadline::after(Instant::now(), time);
        if let Some(process) = self.process_at(position).filter(|process| !process.aborted) {
            process.deadline = process.deadline.later(until);
        }
        let index = match position {
            Position::Main(index) | Position::Successor(index) => Some(index),
            Position::Draining(_) | Position::Unannounced(_) => None,
        };
        let mut manager_waits = index.is_some() && !self.sent_ready;
        let restart = self.rolling_restart.as_mut();
        if let Some(restart) = restart.filter(|restart| Some(restart.index) == index) {
            restart.deadline = restart.deadline.later(until);
            manager_waits = true;
        }
        if let Some(stop) = self.shutdown.as_mut().filter(|stop| !stop.at_once) {
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
        if let Some(other) = self.slots[index].main.replace(process) {
            self.terminate(other);
        }
        self.slots[index].start_at = Deadline::NEVER;
        self.mark_ready(index);
    }

    // ---- notifications of a slot's main process ----

    fn handle_main_notification(&mut self, index: usize, notification: Notification) {
        let own_pid = self.slots[index].main_pid();
        // Some programs name themselves in MAINPID=. Other processes must be descendants.
        let is_successor = |pid: &u32| Some(*pid) != own_pid && ancestry::is_descendant(*pid);
        if let Some(pid) = notification.notice.successor.filter(is_successor) {
            self.handle_announced_successor(index, pid);
        }
        if let Some(why) = notification.notice.failed {
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
            return self.replace_main(index, pid, notification.notice.generation);
        }
        if notification.stopping && self.shutdown.is_none() {
            if self.settings.restart_after_success {
                return self.replace_stopping_main(index);
            }
            let exited_by = Deadline::after(Instant::now(), self.settings.stop_timeout);
            if let Some(main) = self.slots[index].main.as_mut().filter(|main| !main.aborted) {
                main.deadline = exited_by;
            }
        }
        let abort_timeout = self.settings.abort_timeout;
        let Some(main) = &mut self.slots[index].main else {
            return;
        };
        match notification.watchdog {
            Some(WatchdogMessage::Alive) => main.last_watchdog = Some(Instant::now()),
            Some(WatchdogMessage::Wedged) if !main.stopping => {
                abort_process(main, "reports that it makes no progress", abort_timeout);
            }
            _ => {}
        }
        if notification.ready && main.ready_since.is_none() {
            self.mark_ready(index);
        }
    }

    /// The main process has started a successor (`successor` in X_HANDOVER).
    fn handle_announced_successor(&mut self, index: usize, pid: u32) {
        let successor = self.adopt_successor(index, pid);
        if let Some(former) = self.slots[index].successor.replace(successor) {
            self.drain(former);
        }
    }

    /// The successor serves in place of the main process (MAINPID=), which drains.
    fn replace_main(&mut self, index: usize, pid: u32, generation: Option<u64>) {
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
        if let Some(old) = self.slots[index].main.replace(successor) {
            self.drain(old);
        }
        self.mark_ready(index);
    }

    /// The main process stops by itself. Another process serves while it finishes its requests.
    fn replace_stopping_main(&mut self, index: usize) {
        let Some(mut main) = self.slots[index].main.take() else {
            return;
        };
        main.replaced_in = Some(index);
        // The main process ends a successor that does not serve yet. One that serves notifies us.
        if let Some(mut successor) = self.slots[index].successor.take() {
            successor.deadline = Deadline::after(Instant::now(), self.settings.ready_timeout);
            self.unannounced.push(successor);
        }
        let served = main.ready_since.map(|since| since.elapsed());
        let why = format!("process {} stops without having been asked to", main.pid);
        self.drain(main);
        self.slots[index].last_failure = Some(why.clone());
        self.schedule_start(index, served, &why);
    }

    /// The successor that the main process of this slot has started. The successor may be among the
    /// unannounced processes, if its own notifications came first.
    fn adopt_successor(&mut self, index: usize, pid: u32) -> SupervisedProcess {
        let slot = &self.slots[index];
        let watchdog = slot.main.as_ref().and_then(|main| main.watchdog);
        let known = self.unannounced.iter().position(|known| known.pid == pid);
        let mut process = match known {
            Some(index) => self.unannounced.remove(index),
            None => SupervisedProcess::new(pid, slot.generation + 1, Deadline::NEVER),
        };
        // The predecessor ends a successor that is not ready in time.
        process.deadline = Deadline::NEVER;
        process.restarts_itself = true;
        process.watchdog = watchdog;
        if self.shutdown.is_some() {
            process.send(Signal::Terminate);
        }
        process
    }
}
