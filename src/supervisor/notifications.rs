//! The notifications of processes (sd_notify(3)): the listeners and lanes in them are handled
//! here, and the rest becomes a [`Notice`] for the fleet.

use std::io;
use std::time::Instant;

use super::NotifyAccess;
use super::ancestry;
use super::bind_rules::Sender;
use super::fleet::event::{Event, ListenerId, NamedProcess, Notice};
use super::lanes::Lane;
use super::run::Run;
use crate::listener::Bind;
use crate::log;
use crate::notify::{self, Notification, WatchdogMessage};
use crate::sys::supervision::TakenNotification;
use crate::sys::{self, Datagram, Descriptor, ProcessWatch};
use crate::wire::{BindAnswer, BindRequest, ListenerRecord, Record};

impl Run {
    /// Handles the next notification, and takes it from the queue. Every process of the system can
    /// write to the socket, whatever its user. What is cheap comes first: an unknown process has to
    /// descend from the supervisor before its text is read. Only what sends listeners, or asks for
    /// one, gets its descriptors received.
    pub(super) fn handle_datagram(&mut self, datagram: Datagram) {
        let (pid, sender) = (datagram.pid, Sender { uid: datagram.uid });
        let is_known = self.fleet.processes().any(|process| process.pid == pid);
        let ancestors = match is_known {
            true => Vec::new(),
            false => match self.ancestors_of_descendant(pid, sender) {
                Some(ancestors) => ancestors,
                None => {
                    self.discard(&datagram);
                    return;
                }
            },
        };
        let text = &datagram.text;
        log::debug!("notification of process {pid}: {text:?}");
        let notification = Notification::parse(text);
        let fields = &notification.handover_fields;
        // Of the processes that the fleet does not know, only servers of this crate speak for
        // themselves, which name their generation.
        let is_server = || {
            let is_running = !ProcessWatch::open(pid).has_ended();
            fields.generation.is_some() && is_running && self.has_user_of_service(sender)
        };
        if !is_known && !is_server() {
            if !self.discard(&datagram) {
                return;
            }
            if let Some(process) = self.represented_process(&ancestors) {
                let notice = notice_of_descendant(notification, sender);
                self.handle(Event::Notified {
                    pid: process,
                    notice,
                });
            }
            return;
        }
        let bind = fields.bind.clone();
        let mut taken = match bind.is_some() || !fields.listeners.is_empty() || fields.lane {
            true => match self.notify_socket.take() {
                Ok(taken) => taken,
                Err(error) => return log::error!("a notification of process {pid}: {error}"),
            },
            false if !self.discard(&datagram) => return,
            false => TakenNotification::default(),
        };
        let lane = match fields.lane {
            true => self.take_lane(&mut taken, sender),
            false => None,
        };
        let notice = Notice {
            has_lane: lane.is_some(),
            listeners: self.take_listeners(bind, &fields.listeners, taken, sender),
            sender_started_at: match is_known {
                true => None,
                false => ancestry::start_time(pid),
            },
            ..notice(notification, sender)
        };
        self.handle(Event::Notified { pid, notice });
        if let Some(lane) = lane {
            let is_known = self.fleet.processes().any(|process| process.pid == pid);
            let unwanted = match is_known {
                true => self.lanes.insert(pid, lane),
                false => Some(lane.descriptor),
            };
            self.closer.close(unwanted);
        }
    }

    /// Takes a notification from the queue, without its descriptors. False if that is to be tried
    /// again: nothing may be done about the notification yet.
    fn discard(&mut self, datagram: &Datagram) -> bool {
        if datagram.has_descriptors {
            return self.discarder.discard(&self.notify_socket);
        }
        if let Err(error) = self.notify_socket.discard() {
            log::error!("cannot receive a notification: {error}");
        }
        true
    }

    /// The sender, its parent, and so on, if it descends from the supervisor. Its user does not
    /// matter: a wrapper may start its server as another one.
    fn ancestors_of_descendant(&mut self, pid: u32, sender: Sender) -> Option<Vec<u32>> {
        let now = Instant::now();
        if !self.foreign_senders.may_look_at(pid, sender.uid, now) {
            return None;
        }
        let line: Vec<u32> = ancestry::ancestors(pid).collect();
        // Else the sender has ended, and another process has its id.
        let is_user = |users: [u32; 3]| users.contains(&sender.uid);
        if ancestry::is_line_of_descendant(&line) && ancestry::users(pid).is_none_or(is_user) {
            return Some(line);
        }
        let uid = sender.uid;
        log::debug!("ignoring process {pid}, user {uid}, which is not of the service");
        self.foreign_senders.add(pid, uid);
        None
    }

    /// Whether the sender has the user of the supervisor or of a process that is supervised. A
    /// server that has changed its user itself starts successors of that user.
    fn has_user_of_service(&self, sender: Sender) -> bool {
        let identity = self.settings.identity.as_ref();
        let credentials = identity.and_then(|identity| identity.credentials.as_ref());
        let mut processes = self.fleet.processes();
        sender.is_privileged()
            || credentials.is_some_and(|own| own.uid == sender.uid)
            || processes.any(|process| ancestry::user(process.pid) == Some(sender.uid))
    }

    /// The process for which a notification of its descendant counts, if the settings allow that,
    /// such as a wrapper script whose server notifies. A server of this crate sends its own
    /// notifications, which count for that server.
    fn represented_process(&self, ancestors: &[u32]) -> Option<u32> {
        let find = |pid: &u32| self.fleet.processes().find(|process| process.pid == *pid);
        let process = ancestors.iter().find_map(find)?;
        let is_accepted = self.settings.notify_access == NotifyAccess::All;
        let speaks = is_accepted && !process.starts_successors;
        speaks.then_some(process.pid)
    }

    /// Answers a bind request, or holds the listeners that a process has sent copies of. Returns the
    /// listeners that the process uses.
    fn take_listeners(
        &mut self,
        bind: Option<BindRequest>,
        records: &[ListenerRecord],
        taken: TakenNotification,
        sender: Sender,
    ) -> Vec<ListenerId> {
        let mut used = Vec::new();
        if let Some(bind) = bind.filter(|_| taken.wants_answer()) {
            used.extend(self.answer_bind_request(bind, &taken, sender));
        }
        for (record, descriptor) in records.iter().zip(&taken.descriptors) {
            match self.hold_copy(record, descriptor, sender) {
                Ok(id) => used.push(id),
                Err(error) => log::error!("cannot hold the listener {}: {error}", record.name),
            }
        }
        // Also of what is held. A close here could be the last one, and wait.
        self.closer.close(taken.descriptors);
        used
    }

    /// The lane that a process has sent, if it is one.
    fn take_lane(&mut self, taken: &mut TakenNotification, sender: Sender) -> Option<Lane> {
        let Some(descriptor) = taken.descriptors.pop() else {
            log::debug!("a lane of a process of user {} has not arrived", sender.uid);
            return None;
        };
        if sys::descriptor::is_packet_socket(&descriptor) {
            let uid = sender.uid;
            return Some(Lane { descriptor, uid });
        }
        log::error!(
            "not a lane: another descriptor of a process of user {}",
            sender.uid
        );
        self.closer.close([descriptor]);
        None
    }

    /// Nothing is asked of a descriptor before it is known to be a listener: the answer could take
    /// as long as its close.
    fn hold_copy(
        &mut self,
        record: &ListenerRecord,
        descriptor: &Descriptor,
        sender: Sender,
    ) -> io::Result<ListenerId> {
        if !sys::descriptor::is_listener(descriptor) {
            return Err(io::Error::other("not a listening stream socket"));
        }
        let copy = descriptor.try_clone()?;
        self.listeners.hold_copy(record.clone(), copy, sender)
    }

    /// Sends a process the listener that it asks for, or the reason why there is none.
    fn answer_bind_request(
        &mut self,
        request: BindRequest,
        taken: &TakenNotification,
        sender: Sender,
    ) -> Option<ListenerId> {
        let (is_privileged, has_served) = (sender.is_privileged(), self.fleet.has_been_ready);
        let addr = request.addr.clone();
        let may_bind = self.bind_rules.allow(&addr, is_privileged, has_served);
        let found = self
            .listeners
            .find_or_bind(Bind::from_request(request), may_bind, sender);
        let (answer, descriptors) = match &found {
            Ok(Some((_, descriptor))) => (BindAnswer::Given.encode(), vec![descriptor]),
            Ok(None) => {
                let (addr, user) = (notify::one_line(addr), sender.uid);
                log::warn!("not binding {addr} for user {user}, see Supervisor::allow_bind");
                (BindAnswer::forbidden().encode(), Vec::new())
            }
            Err(error) => (BindAnswer::from(error).encode(), Vec::new()),
        };
        let sent = answer.map_err(io::Error::from);
        let sent = sent.and_then(|text| taken.answer(&text, &descriptors));
        if let Err(error) = sent {
            log::warn!("cannot answer a process that asked for a listener: {error}");
        }
        found.ok().flatten().map(|(id, _)| id)
    }
}

/// What a descendant may say for the process: that the process is ready, needs more time, or makes
/// progress. The process itself stays the one that is signalled and whose exit counts.
fn notice_of_descendant(notification: Notification, sender: Sender) -> Notice {
    let all = notice(notification, sender);
    Notice {
        ready: all.ready,
        status: all.status,
        extend: all.extend,
        is_alive: all.is_alive,
        ..Notice::default()
    }
}

fn notice(notification: Notification, sender: Sender) -> Notice {
    let fields = notification.handover_fields;
    // A process that cannot send signals to another one must not have the supervisor do so.
    let may_signal = |named: &NamedProcess| {
        let user = ancestry::user(named.pid);
        sender.is_privileged() || user.is_none_or(|user| user == sender.uid)
    };
    let named_process = |pid| named_process(pid).filter(may_signal);
    let is_server = fields.generation.is_some();
    Notice {
        ready: notification.ready,
        stopping: notification.stopping,
        sender_started_at: None,
        // A server tells the truth, but its successor may have ended since.
        main_pid: notification
            .main_pid
            .and_then(named_process)
            .filter(|named| is_server || !named.has_ended),
        generation: fields.generation,
        successor: fields
            .successor
            .and_then(named_process)
            .filter(|named| !named.has_ended),
        failed: fields.failed.map(notify::one_line),
        status: notification.status.map(notify::one_line),
        extend: notification.extend,
        listeners: Vec::new(),
        has_lane: false,
        is_alive: notification
            .watchdog
            .map(|message| message == WatchdogMessage::Alive),
        requests: fields.requests,
    }
}

/// The process of this id: a descendant of the supervisor, or one that has ended.
fn named_process(pid: u32) -> Option<NamedProcess> {
    // The order counts: what has not ended after its ancestors were looked at is what they were.
    let is_descendant = ancestry::is_descendant(pid);
    let started_at = ancestry::start_time(pid);
    let has_ended = ProcessWatch::open(pid).has_ended();
    (is_descendant || has_ended).then(|| NamedProcess {
        pid,
        started_at: started_at.unwrap_or_else(Instant::now),
        has_ended,
    })
}
