//! The notifications of processes (sd_notify(3)): the listeners in them are handled here, and the
//! rest becomes a [`Notice`] for the fleet.

use std::time::Instant;

use super::NotifyAccess;
use super::ancestry;
use super::fleet::event::{Event, ListenerId, NamedProcess, Notice};
use super::run::Run;
use crate::listener::Bind;
use crate::log;
use crate::notify::{self, Notification, WatchdogMessage};
use crate::sys::{self, Datagram, Descriptor, PidFd};
use crate::wire::{BindAnswer, BindRequest, ListenerRecord, Record};

impl Run {
    pub(super) fn handle_datagram(&mut self, datagram: Datagram) {
        let (pid, uid, text) = (datagram.pid, datagram.uid, datagram.text);
        // Every process of the system can write to the socket, whatever its user.
        let is_known = self.fleet.processes().any(|process| process.pid == pid);
        if uid != sys::process::effective_uid() && uid != 0 && !is_known {
            log::debug!("ignoring a notification of process {pid}, which belongs to user {uid}");
            return;
        }
        log::debug!("notification of process {pid}: {text:?}");
        let notification = Notification::parse(&text);
        let fields = &notification.handover_fields;
        // Of the processes that the fleet does not know, only servers of this crate matter, which
        // name their generation. They must descend from the supervisor.
        let is_server = || {
            let is_running = !PidFd::open(pid).has_ended();
            fields.generation.is_some() && ancestry::is_descendant(pid) && is_running
        };
        if !is_known && !is_server() {
            if let Some(process) = self.represented_process(pid) {
                let notice = notice_of_descendant(notification);
                self.handle(Event::Notified {
                    pid: process,
                    notice,
                });
            }
            return;
        }
        let bind = fields.bind.clone();
        let notice = Notice {
            listeners: self.take_listeners(bind, &fields.listeners, datagram.descriptors),
            sender_started_at: match is_known {
                true => None,
                false => ancestry::start_time(pid),
            },
            ..notice(notification)
        };
        self.handle(Event::Notified { pid, notice });
    }

    /// The process that a descendant of it speaks for, such as a wrapper script for which its server
    /// notifies, if the settings allow that. A server of this crate speaks for itself.
    fn represented_process(&self, sender: u32) -> Option<u32> {
        let find = |pid: u32| self.fleet.processes().find(|process| process.pid == pid);
        let process = ancestry::ancestors(sender).find_map(find)?;
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
        descriptors: Vec<Descriptor>,
    ) -> Vec<ListenerId> {
        let mut used = Vec::new();
        if let (Some(bind), [reply_to, ..]) = (bind, &descriptors[..]) {
            used.extend(self.answer_bind_request(bind, reply_to));
        }
        for (record, descriptor) in records.iter().zip(descriptors) {
            match self.listeners.hold_copy(record.clone(), descriptor) {
                Ok(id) => used.push(id),
                Err(error) => log::error!("cannot hold the listener {}: {error}", record.name),
            }
        }
        used
    }

    /// Sends a process the listener that it asks for, or the reason why there is none.
    fn answer_bind_request(
        &mut self,
        request: BindRequest,
        reply_to: &Descriptor,
    ) -> Option<ListenerId> {
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
        found.ok().map(|(id, _)| id)
    }
}

/// What a descendant may say for the process: that the process is ready, needs more time, or makes
/// progress. The process itself stays the one that is signalled and whose exit counts.
fn notice_of_descendant(notification: Notification) -> Notice {
    let all = notice(notification);
    Notice {
        ready: all.ready,
        status: all.status,
        extend: all.extend,
        is_alive: all.is_alive,
        ..Notice::default()
    }
}

fn notice(notification: Notification) -> Notice {
    let fields = notification.handover_fields;
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
        is_alive: notification
            .watchdog
            .map(|message| message == WatchdogMessage::Alive),
    }
}

/// The process of this id: a descendant of the supervisor, or one that has ended.
fn named_process(pid: u32) -> Option<NamedProcess> {
    // The order counts: what has not ended after its ancestors were looked at is what they were.
    let is_descendant = ancestry::is_descendant(pid);
    let started_at = ancestry::start_time(pid);
    let has_ended = PidFd::open(pid).has_ended();
    (is_descendant || has_ended).then(|| NamedProcess {
        pid,
        started_at: started_at.unwrap_or_else(Instant::now),
        has_ended,
    })
}
