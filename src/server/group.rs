//! The servers of a process that run together: one server, or those of [`Servers`](super::Servers).
//!
//! They start together, stop together, and have one restarter. Each has its own main thread, handle
//! and report. What one has to tell the others goes through cells and atomics, so that no main
//! thread waits for another one.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::time::Duration;

use socket2::Socket;

use crate::acceptor::AcceptGate;
use crate::drain::Drain;
use crate::listener::Listener;
use crate::log;
use crate::parking::HeldConnections;
use crate::restart::{Restart, RestartableServer, Restarter};
use crate::server::builder::Builder;
use crate::server::descriptor_limit::prepare_descriptor_limit;
use crate::server::handle::Handle;
use crate::server::shared::{GroupPlace, Heartbeat, ServerShared};
use crate::server::startup::{KeptSignals, Startup};
use crate::server::thread_mark::mark_thread;
use crate::signals::ServerCommand;
#[cfg(feature = "signals")]
use crate::signals::{SignalSettings, Subscription};
use crate::stats::Counters;
#[cfg(feature = "signals")]
use crate::sys::EventPrefix;
use crate::wire::{ListenerId, ServerId};

/// A server, as the group sees it before it starts.
pub(super) trait Member {
    fn shared(&self) -> &Arc<ServerShared>;
    fn settings(&self) -> &Builder;
    fn listeners(&self) -> &[Arc<Listener>];
    fn drain(&self) -> &Arc<Drain>;
    fn counters(&self) -> &Arc<Counters>;
    fn set_idle_grace(&mut self, grace: Duration);
    /// Whether open connections can move to another process, and come from one.
    fn packs_sessions(&self) -> bool;
    fn held_connections(&self) -> Weak<dyn HeldConnections>;
    #[cfg(feature = "signals")]
    fn set_subscription(&mut self, subscription: Subscription);
}

/// A server that a thread of its own can run.
pub(super) trait StartableMember: Member + Send {
    fn as_member(&mut self) -> &mut dyn Member;

    /// Starts the main thread, and waits until all of the server's threads run.
    fn start(self: Box<Self>, handle: &Handle) -> io::Result<()>;
}

/// Starts servers, and waits until they serve. If one of them cannot start, the others are stopped.
pub(super) fn start_all(
    mut members: Vec<Box<dyn StartableMember>>,
    handles: &[Handle],
    owns_process: bool,
) -> io::Result<KeptSignals> {
    let mut all: Vec<&mut dyn Member> = Vec::new();
    for member in &mut members {
        all.push(member.as_member());
    }
    let mut startup = prepare(&mut all, owns_process)?;
    let signals = std::mem::take(&mut startup.signals);
    Handle::share_life(handles);
    let mut members = members.into_iter().zip(handles);
    let started = members.try_for_each(|(member, handle)| member.start(handle));
    let started = started.and_then(|()| startup.finish());
    // Those that have not started.
    members.for_each(drop);
    let started = started.inspect_err(|_| {
        for handle in handles {
            handle.shared().request_drain();
        }
        for handle in handles {
            handle.join();
        }
    });
    started.map(|()| signals)
}

/// Prepares the process and the servers for the start. `owns_process`: the process exists for these
/// servers.
///
/// # Errors
///
/// `InvalidInput` if the servers do not have the same [`Restart`], or are not all that have it;
/// errors of the system.
pub(super) fn prepare(members: &mut [&mut dyn Member], owns_process: bool) -> io::Result<Startup> {
    let Some(first) = members.first() else {
        let text = "there is no server to start";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let prefix = first.settings().thread_name_prefix.clone();
    let restart = common_restart(members)?;
    check_service(restart.as_ref())?;
    let settings = || members.iter().map(|member| member.settings());
    let raises_limit = settings().any(|own| own.raises_descriptor_limit.unwrap_or(owns_process));
    let connections = settings().map(|own| own.admission.max_connections);
    let connections = connections.fold(0, usize::saturating_add);
    let is_set = settings().any(|own| own.is_max_connections_set);
    prepare_descriptor_limit(raises_limit, connections, is_set);
    connect(members);
    let gates = members.iter().map(|member| &member.shared().gate);
    let gates = gates.map(Arc::clone).collect();
    let mut startup = Startup::new(first.shared(), gates, format!("{prefix}-ready"));
    if let Some(restart) = &restart {
        let thread_name = format!("{prefix}-restart");
        start_restarter(members, owns_process, restart, &mut startup, thread_name)?;
    }
    let mut all = members.iter();
    startup.handles_signals = all.any(|member| handles_signals(&**member, owns_process));
    // Subscribed before the servers serve, so that no signal to a serving process is missed.
    #[cfg(feature = "signals")]
    subscribe(
        members,
        owns_process,
        restart.as_ref(),
        &mut startup.signals,
    )?;
    startup.release_signals();
    Ok(startup)
}

fn handles_signals(member: &dyn Member, owns_process: bool) -> bool {
    member.settings().signals.unwrap_or(owns_process)
}

/// The one [`Restart`] that all servers have, if they have one.
fn common_restart(members: &[&mut dyn Member]) -> io::Result<Option<Restart>> {
    let mut all = members.iter().map(|member| &member.settings().restart);
    let Some(first) = all.next() else {
        return Ok(None);
    };
    let is_first = |own: &Option<Restart>| match (first, own) {
        (Some(first), Some(own)) => first.is_same_as(own),
        (first, own) => first.is_none() && own.is_none(),
    };
    if !all.all(is_first) {
        let text = "some of the servers can be restarted, and others not: give clones of one \
                    Restart to all of them";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(first.clone())
}

/// A service of Windows has no successor, unless it is supervised.
fn check_service(restart: Option<&Restart>) -> io::Result<()> {
    #[cfg(feature = "windows-service")]
    if restart.is_some_and(|own| !own.is_supervised()) && crate::service_manager::is_service() {
        let text = "a service of Windows cannot be replaced by a successor, because the service \
                    control manager watches the process that it has started: start a supervisor \
                    (Supervisor::supervise), or build the server without a Restart";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let _ = restart;
    Ok(())
}

/// Starts the restarter. A predecessor may send messages while the workers are built.
fn start_restarter(
    members: &mut [&mut dyn Member],
    owns_process: bool,
    restart: &Restart,
    startup: &mut Startup,
    thread_name: String,
) -> io::Result<()> {
    let mut parts = restart.take_parts(members.len())?;
    startup.ready_when = parts.ready_when.take();
    startup.recorded_signals = parts.recorded_signals.take();
    startup.restarter = Some(restart.handle().clone());
    let (mut listeners, mut drain_timeout) = (Vec::new(), Duration::ZERO);
    for member in &mut *members {
        let passes_exact_state = parts.passes_exact_state();
        if passes_exact_state {
            member.drain().pause.enable();
        }
        // With an exact state, the old process serves no connection that it keeps.
        let grace = match passes_exact_state {
            true => Duration::ZERO,
            false => parts.idle_grace,
        };
        member.set_idle_grace(grace);
        listeners.extend(member.listeners().iter().map(Arc::downgrade));
        drain_timeout = drain_timeout.max(member.settings().drain_timeout);
    }
    let restarter = Restarter::new(parts, members.len(), listeners, drain_timeout)?;
    for member in &*members {
        member.shared().is_restartable.store(true, SeqCst);
    }
    // The threads of one server are those of all.
    let server_id = Arc::clone(&members[0].shared().server_id);
    let begin = move || mark_thread(server_id.load(SeqCst));
    restarter.start(thread_name, begin, RestartGroup::of(members, owns_process))
}

/// Has each server that handles signals get those of the process. If the process exists for these
/// servers, they get its signals until it is about to end: one that was sent while they served may
/// arrive when they have stopped, and its default action would be the death of the process.
#[cfg(feature = "signals")]
fn subscribe(
    members: &mut [&mut dyn Member],
    owns_process: bool,
    restart: Option<&Restart>,
    kept: &mut KeptSignals,
) -> io::Result<()> {
    // One of the servers asks for a restart of all.
    let mut can_restart = restart.is_some();
    let is_supervised = restart.is_some_and(Restart::is_supervised);
    // The event objects are those of the process.
    let mut settings = members.iter().map(|member| member.settings());
    let event_prefix = settings.find_map(|own| EventPrefix::parse(own.event_prefix.as_deref()?));
    for member in members {
        if handles_signals(&**member, owns_process) {
            let commands = member.shared().commands.clone();
            let drain = Arc::clone(member.drain());
            let shared = Arc::downgrade(member.shared());
            let is_stopping = move || shared.upgrade().is_none_or(|own| own.stop.is_stopping());
            let settings = SignalSettings {
                can_restart: std::mem::take(&mut can_restart),
                is_supervised,
                has_hook: member.settings().on_user_signal.is_some(),
                drain_timeout: member.settings().drain_timeout,
                has_successor: Arc::new(move || drain.has_successor()),
                is_stopping: Arc::new(is_stopping),
            };
            let subscription =
                crate::signals::subscribe(commands, settings, event_prefix.as_ref())?;
            match owns_process {
                true => kept.subscriptions.push(subscription),
                false => member.set_subscription(subscription),
            }
        }
    }
    Ok(())
}

/// Makes servers those of one group.
fn connect(members: &[&mut dyn Member]) {
    let all = || members.iter().map(|member| member.shared());
    let heartbeat = Arc::new(Heartbeat::of(members.len()));
    for (index, shared) in all().enumerate() {
        // The threads of each server are those of all: none of them can wait for the end.
        let first = members[0].shared().server_id.load(SeqCst);
        shared.server_id.store(first, SeqCst);
        let others = all().filter(|other| !Arc::ptr_eq(other, shared));
        let place = GroupPlace {
            others: others.map(Arc::downgrade).collect(),
            heartbeat: Arc::clone(&heartbeat),
            index,
        };
        let _ = shared.group.set(place);
    }
}

/// All servers of the process, as the restarter sees them.
struct RestartGroup(Vec<RestartMember>);

struct RestartMember {
    shared: Arc<ServerShared>,
    gate: Arc<AcceptGate>,
    drain: Arc<Drain>,
    counters: Arc<Counters>,
    listeners: u32,
    listener_ids: Vec<ListenerId>,
    packs_sessions: bool,
    handles_signals: bool,
    connections: Weak<dyn HeldConnections>,
}

impl RestartGroup {
    fn of(members: &[&mut dyn Member], owns_process: bool) -> Self {
        let members = members.iter().map(|member| RestartMember {
            shared: Arc::clone(member.shared()),
            gate: Arc::clone(&member.shared().gate),
            drain: Arc::clone(member.drain()),
            counters: Arc::clone(member.counters()),
            // The positions of descriptors are such numbers.
            listeners: u32::try_from(member.listeners().len()).unwrap_or(u32::MAX),
            listener_ids: (member.listeners().iter())
                .map(|listener| listener.info.id())
                .collect(),
            packs_sessions: member.packs_sessions(),
            handles_signals: handles_signals(&**member, owns_process),
            connections: member.held_connections(),
        });
        Self(members.collect())
    }

    fn connections(&self) -> impl Iterator<Item = Arc<dyn HeldConnections>> + '_ {
        self.0.iter().filter_map(RestartMember::connections)
    }
}

impl RestartMember {
    /// `None` once the server has ended.
    fn connections(&self) -> Option<Arc<dyn HeldConnections>> {
        self.connections.upgrade()
    }
}

impl RestartableServer for RestartGroup {
    fn start_accepting(&self) {
        for member in &self.0 {
            member.gate.start();
        }
    }

    fn start_paused(&self) -> bool {
        self.pause();
        let has_started = self.0.iter().all(|member| member.gate.start());
        if !has_started {
            // This process stops, and the clients that wait are the predecessor's.
            self.0.iter().for_each(|member| member.gate.close_now());
        }
        has_started
    }

    fn pause(&self) {
        let members = self.0.iter();
        members.for_each(|member| member.gate.begin_handover());
    }

    fn settle(&self, moves: bool) {
        self.pause();
        for member in &self.0 {
            member.drain.pause.settle(moves && member.packs_sessions);
        }
        self.connections().for_each(|own| own.close_unmovable());
    }

    fn is_settled(&self) -> bool {
        self.connections().all(|own| own.is_settled())
    }

    fn close_calls(&self) {
        let members = self.0.iter();
        members.for_each(|member| member.drain.pause.close());
    }

    fn has_calls(&self) -> bool {
        self.0.iter().any(|member| member.counters.has_calls())
    }

    fn resume(&self) {
        for member in &self.0 {
            if !member.drain.pause.is_open() {
                member.drain.pause.open();
                if let Some(connections) = member.connections() {
                    connections.release();
                }
            }
            member.gate.end_handover();
        }
    }

    fn drain_after_replacement(
        &self,
        taken: &[u32],
        open_channel: &mut dyn FnMut(ServerId) -> Option<Socket>,
    ) {
        let mut first = 0;
        for (position, member) in (0..).zip(&self.0) {
            let own = own_positions(taken, first, member.listeners);
            first = first.saturating_add(member.listeners);
            member.gate.set_served_elsewhere(&own);
            if member.packs_sessions {
                let listeners = member.listener_ids.clone();
                let channel = open_channel(ServerId {
                    listeners,
                    position,
                });
                member.shared.move_channels.set_outgoing(channel);
            }
            // A server that has ended needs no command.
            let _ = member.shared.commands.send(ServerCommand::Replaced);
        }
    }

    fn can_adopt(&self) -> bool {
        self.0.iter().any(|member| member.packs_sessions)
    }

    fn handle_signals(&self) -> bool {
        self.0.iter().any(|member| member.handles_signals)
    }

    fn adopt_connections(&self, server_id: &ServerId, channel: Socket) {
        let ids = self.0.iter().map(|member| match member.packs_sessions {
            true => &*member.listener_ids,
            false => &[],
        });
        let position = server_id.position_in(&ids.collect::<Vec<_>>());
        match position.and_then(|position| self.0.get(position)) {
            Some(member) => {
                member.shared.move_channels.add_incoming(channel);
                // A server that has ended needs no command.
                let _ = member.shared.commands.send(ServerCommand::Adopt);
            }
            None => log::info!(
                "connections of another process stay there: no server has one of the listeners {}",
                (server_id
                    .listeners
                    .iter()
                    .map(|id| &*id.name)
                    .collect::<Vec<_>>())
                .join(", ")
            ),
        }
    }

    fn connections_left(&self) -> usize {
        let left = self.0.iter().map(|member| member.drain.in_progress());
        left.sum()
    }

    fn requests(&self) -> u64 {
        let served = self.0.iter().map(|member| member.counters.served());
        served.sum()
    }

    fn stop_in_drain_timeout(&self) {
        let members = self.0.iter();
        members.for_each(|member| member.shared.request_drain());
    }
}

/// The positions among all listeners, as positions among those of one server.
fn own_positions(taken: &[u32], first: u32, count: u32) -> Vec<u32> {
    let own = taken.iter().filter_map(|position| {
        let own = position.checked_sub(first)?;
        (own < count).then_some(own)
    });
    own.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_split_by_servers() {
        for (taken, first, count, wanted) in [
            (&[0, 1, 2, 3][..], 0, 2, &[0, 1][..]),
            (&[0, 1, 2, 3], 2, 2, &[0, 1]),
            (&[3, 1], 2, 2, &[1]),
            (&[3, 1], 0, 1, &[]),
            (&[], 0, 4, &[]),
            (&[9], 0, 2, &[]),
        ] {
            assert_eq!(own_positions(taken, first, count), wanted, "{taken:?}");
        }
    }
}
