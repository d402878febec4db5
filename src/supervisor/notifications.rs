//! What the supervisor makes of what processes say.

use std::time::{Duration, Instant};

use super::ancestry;
use super::processes::abort;
use super::run::Run;
use super::slot::SupervisedProcess;
use crate::clock::Deadline;
use crate::listener::Bind;
use crate::notify::{self, Notification, WatchdogMessage};
use crate::sys::{self, Datagram, Descriptor, Signal};
use crate::wire::{BindAnswer, BindRequest, Record};

/// No more processes than these are listened to that nobody has spoken of.
const MAX_UNANNOUNCED: usize = 16;

/// Who a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Main(usize),
    Next(usize),
    Draining(usize),
    Unannounced(usize),
}

impl Run {
    pub(super) fn place(&self, pid: u32) -> Option<Position> {
        let is =
            |process: &Option<SupervisedProcess>| process.as_ref().is_some_and(|p| p.pid == pid);
        for (index, slot) in self.slots.iter().enumerate() {
            match slot {
                _ if is(&slot.main) => return Some(Position::Main(index)),
                _ if is(&slot.next) => return Some(Position::Next(index)),
                _ => {}
            }
        }
        let among = |all: &[SupervisedProcess]| all.iter().position(|process| process.pid == pid);
        let draining = among(&self.draining).map(Position::Draining);
        draining.or_else(|| among(&self.unannounced).map(Position::Unannounced))
    }

    fn process(&mut self, place: Position) -> Option<&mut SupervisedProcess> {
        match place {
            Position::Main(index) => self.slots[index].main.as_mut(),
            Position::Next(index) => self.slots[index].next.as_mut(),
            Position::Draining(index) => self.draining.get_mut(index),
            Position::Unannounced(index) => self.unannounced.get_mut(index),
        }
    }

    /// Takes note of what a process has said.
    pub(super) fn handle_notification(&mut self, datagram: Datagram) {
        let Datagram {
            pid,
            uid,
            text,
            descriptors,
        } = datagram;
        // Anybody may write to the socket.
        if uid != sys::process::effective_uid() && uid != 0 && self.place(pid).is_none() {
            log::debug!("ignoring what process {pid} of user {uid} says");
            return;
        }
        log::debug!("process {pid}: {text:?}");
        let said = Notification::parse(&text);
        let place = match self.place(pid) {
            Some(place) => place,
            // Nobody has spoken of it yet, but by this it is one of ours.
            None if said.notice.generation.is_some()
                && self.unannounced.len() < MAX_UNANNOUNCED =>
            {
                let deadline = Deadline::after(Instant::now(), self.settings.ready_timeout);
                let stranger = SupervisedProcess::new(pid, 0, deadline);
                if !ancestry::descends(pid) || stranger.handle.has_ended() {
                    return;
                }
                self.unannounced.push(stranger);
                Position::Unannounced(self.unannounced.len() - 1)
            }
            None => return,
        };
        if let (Some(bind), [answer, ..]) = (said.notice.bind.clone(), &descriptors[..]) {
            self.give(place, bind, answer);
        }
        for (about, descriptor) in said.notice.listeners.iter().zip(descriptors) {
            match self.listeners.hold(about.clone(), descriptor) {
                Ok(id) => {
                    if let Some(process) = self.process(place) {
                        process.listeners.push(id);
                    }
                }
                Err(error) => log::error!("cannot hold the listener {}: {error}", about.name),
            }
        }
        let Some(process) = self.process(place) else {
            return;
        };
        if let Some(generation) = said.notice.generation.filter(|_| said.main_pid.is_none()) {
            process.restarts_itself = true;
            process.generation = generation;
        }
        if let Some(status) = &said.status {
            process.status = notify::one_line(status);
        }
        process.stopping |= said.stopping;
        if let Some(more) = said.extend {
            self.extend(place, more);
        }
        match place {
            Position::Main(index) => self.handle_main(index, said),
            Position::Next(index) if said.ready => {
                self.promote_next(index);
            }
            Position::Unannounced(stranger) if said.ready => self.settle_stranger(stranger),
            _ => {}
        }
    }

    /// Gives a process the listener that it asks for.
    fn give(&mut self, place: Position, bind: BindRequest, answer: &Descriptor) {
        let given = self.listeners.give(Bind::from_request(bind));
        let (text, descriptor) = match &given {
            Ok((_, descriptor)) => (BindAnswer::Given.encode(), Some(descriptor)),
            Err(error) => (BindAnswer::from(error).encode(), None),
        };
        let sent = answer.try_clone().and_then(sys::descriptor::into_socket);
        let sent = sent.and_then(|answer| sys::message::send(&answer, &text?, descriptor));
        if let Err(error) = sent {
            log::warn!("a process has not got the listener that it asked for: {error}");
        }
        if let (Ok((id, _)), Some(process)) = (given, self.process(place)) {
            process.listeners.push(id);
        }
    }

    /// Something takes longer, as a process says.
    fn extend(&mut self, place: Position, more: Duration) {
        let until = Deadline::after(Instant::now(), more);
        if let Some(process) = self.process(place).filter(|process| !process.aborted) {
            process.extend(until);
        }
        let index = match place {
            Position::Main(index) | Position::Next(index) => Some(index),
            Position::Draining(_) | Position::Unannounced(_) => None,
        };
        let mut is_awaited = index.is_some() && !self.announced;
        if let Some(rolling) = self
            .rolling
            .as_mut()
            .filter(|rolling| Some(rolling.at) == index)
        {
            rolling.extend(until);
            is_awaited = true;
        }
        if let Some(stop) = self.stop.as_mut().filter(|stop| !stop.at_once) {
            stop.deadline = stop.deadline.later(until);
            is_awaited = true;
        }
        if is_awaited {
            notify::extend(more);
        }
    }

    /// The next process serves; the one before comes to its end.
    pub(super) fn promote_next(&mut self, index: usize) {
        if let Some(old) = self.slots[index].main.take() {
            old.send(Signal::Terminate);
            self.drain(old);
        }
        self.slots[index].main = self.slots[index].next.take();
        self.slots[index].due = Deadline::NEVER;
        self.became_ready(index);
    }

    fn handle_main(&mut self, index: usize, said: Notification) {
        let own = self.slots[index].main.as_ref().map(|main| main.pid);
        if let Some(pid) = said
            .notice
            .successor
            .filter(|pid| Some(*pid) != own && ancestry::descends(*pid))
        {
            let next = self.stranger(index, pid);
            if let Some(former) = self.slots[index].next.replace(next) {
                self.drain(former);
            }
        }
        if let Some(why) = said.notice.failed {
            if let Some(next) = self.slots[index].next.take() {
                // Its predecessor ends it, or has.
                self.drain(next);
            }
            self.close_unwanted();
            self.fail_roll(index, &why);
        }
        // Some say their own number; others may name their own only.
        if let Some(pid) = said
            .main_pid
            .filter(|pid| Some(*pid) != own && ancestry::descends(*pid))
        {
            let next = self.slots[index].next.take();
            let mut next = match next {
                Some(next) if next.pid == pid => next,
                other => {
                    if let Some(other) = other {
                        other.send(Signal::Terminate);
                        self.drain(other);
                    }
                    self.stranger(index, pid)
                }
            };
            next.generation = said.notice.generation.unwrap_or(next.generation);
            if let Some(old) = self.slots[index].main.replace(next) {
                self.drain(old);
            }
            return self.became_ready(index);
        }
        if said.stopping && self.stop.is_none() {
            if self.settings.restart_after_success {
                return self.replace_stopping(index);
            }
            let within = Deadline::after(Instant::now(), self.settings.stop_timeout);
            if let Some(main) = self.slots[index].main.as_mut().filter(|main| !main.aborted) {
                main.deadline = within;
            }
        }
        let limit = self.settings.abort_timeout;
        let Some(main) = &mut self.slots[index].main else {
            return;
        };
        match said.watchdog {
            Some(WatchdogMessage::Alive) => main.heard = Some(Instant::now()),
            Some(WatchdogMessage::Wedged) if !main.stopping => {
                abort(main, "makes no progress, as it says itself", limit);
            }
            _ => {}
        }
        if said.ready && main.ready.is_none() {
            self.became_ready(index);
        }
    }

    /// A process stops that nobody here has asked to: another one serves while it finishes what it has.
    fn replace_stopping(&mut self, index: usize) {
        let Some(mut main) = self.slots[index].main.take() else {
            return;
        };
        main.replaced_in = Some(index);
        // It ends the one that it has started, if that does not serve already.
        if let Some(mut next) = self.slots[index].next.take() {
            next.deadline = Deadline::after(Instant::now(), self.settings.ready_timeout);
            self.unannounced.push(next);
        }
        let served = main.ready.map(|ready| ready.elapsed());
        let why = format!("process {} stops, and was not asked to", main.pid);
        self.drain(main);
        self.slots[index].last_end = Some(why.clone());
        self.start_later(index, served, &why);
    }

    /// A process that may have spoken already, before it was spoken of.
    fn stranger(&mut self, index: usize, pid: u32) -> SupervisedProcess {
        let generation = self.slots[index].generation + 1;
        let main = self.slots[index].main.as_ref();
        let watchdog = main.and_then(|main| main.watchdog);
        let known = self.unannounced.iter().position(|known| known.pid == pid);
        let mut process = match known {
            Some(at) => self.unannounced.remove(at),
            None => SupervisedProcess::new(pid, generation, Deadline::NEVER),
        };
        // Its predecessor sees to it that it is ready in time.
        process.deadline = Deadline::NEVER;
        process.restarts_itself = true;
        process.watchdog = watchdog;
        if self.stop.is_some() {
            process.send(Signal::Terminate);
        }
        process
    }

    /// A process serves that nobody has spoken of: its predecessor has died. Its place may not be free any more.
    fn settle_stranger(&mut self, stranger: usize) {
        let process = self.unannounced.remove(stranger);
        let place = self.slots.iter().position(|slot| !slot.is_ready());
        match place.filter(|_| self.stop.is_none()) {
            Some(index) => {
                if let Some(other) = self.slots[index].main.replace(process) {
                    other.send(Signal::Terminate);
                    self.drain(other);
                }
                self.slots[index].due = Deadline::NEVER;
                self.became_ready(index);
            }
            None => {
                process.send(Signal::Terminate);
                self.drain(process);
            }
        }
    }
}
