//! The acceptor: one thread that accepts connections, or refuses them.
//!
//! The thread waits in a poller of its own, never in `accept(2)`, and no error of `accept` ends it.
//! [`admission`] decides by the limits and the [`Overload`] policy whether a connection is served.
//!
//! Where each request has a connection of its own, the wake-ups of threads are what costs most. See
//! [`accept_rate`] for those of this thread, and `Lot::add_connection` for those of the workers.
//!
//! With [`Overload::Wait`], connections are accepted while the queue is full as well: the lot's
//! poller then keeps the order in which they become ready.

mod accept_rate;
mod admission;
mod final_allowance;
mod gate;
mod listener_state;
mod per_client;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::listener::Listener;
use crate::log;
use crate::parking::{BATCH, Lots, RoomRequest};
use crate::stats::count;
use crate::sys::{self, AcceptErrorKind, Events, Interest, Poller};

use accept_rate::AcceptRate;
pub use admission::Overload;
use admission::{Admission, RoomCheck};
pub(crate) use admission::{AdmissionPolicy, MovedAdmission};
use final_allowance::FinalAllowance;
pub(crate) use gate::AcceptGate;
use gate::CLOSED;
use listener_state::{FIRST_BACKOFF, Failure, ListenerState, Watch};

/// The acceptor's loop, until the gate is closed. Dropping the listeners closes them.
pub(crate) fn run_acceptor<S>(
    lots: &Lots<S>,
    gate: &AcceptGate,
    listeners: Vec<Arc<Listener>>,
    policy: AdmissionPolicy,
) -> io::Result<()> {
    for (index, listener) in listeners.iter().enumerate() {
        if !listener.may_be_shared {
            gate.poller.add(&listener.socket, index as u64)?;
        }
    }
    let listeners = listeners.into_iter().map(ListenerState::new).collect();
    let mut acceptor = Acceptor {
        lots,
        gate,
        listeners,
        admission: Admission::new(lots, policy, Arc::clone(&gate.per_client)),
        has_requested_room: false,
        shortage: None,
        closed_before: 0,
        rate: AcceptRate::new(clock::millis()),
        may_interrupt: true,
        events: Events::with_capacity(BATCH),
    };
    acceptor.run();
    for watched in acceptor
        .listeners
        .iter()
        .filter(|it| it.watch != Watch::Off)
    {
        // Another process may share the listener, and the poller would go on reporting it.
        gate.poller.remove(&watched.listener.socket)?;
    }
    Ok(())
}

struct Acceptor<'a, S> {
    lots: &'a Lots<S>,
    gate: &'a AcceptGate,
    listeners: Vec<ListenerState>,
    admission: Admission<'a, S>,
    /// The acceptor has asked for a wake-up, and is checking for room once more, because room may
    /// have been made just before the request.
    has_requested_room: bool,
    /// The process or the system lacks descriptors or memory. While it backs off, no attempt is
    /// made at any listener, unless a connection ends.
    shortage: Option<Failure>,
    /// How many connections had been closed when the shortage's last back-off began.
    closed_before: usize,
    rate: AcceptRate,
    /// The system's scheduler lets this thread interrupt others, as by default.
    may_interrupt: bool,
    /// Room for the connections that the lot's poller reports.
    events: Events,
}

/// As many errors of single connections in a row are an error of the listener: the cause may be one
/// that stays, such as a rule of a firewall (EPERM).
const MOST_FAILED_CONNECTIONS: u32 = 1024;

/// The outcome of one call of `accept`.
enum AcceptOutcome {
    Accepted,
    /// The kernel's queue is empty.
    Empty,
    /// The listener backs off.
    Failed,
    /// The process or the system lacks descriptors or memory. The acceptor backs off.
    OutOfResources,
}

impl<S> Acceptor<'_, S> {
    fn run(&mut self) {
        let mut events = Events::with_capacity(16);
        let mut has_begun = false;
        while !self.gate.is(CLOSED) {
            count(&self.gate.loops);
            if self.gate.accepts_last() {
                return self.accept_queued(&mut events);
            }
            let backs_off = self.is_backing_off();
            let mut can_accept = !self.gate.leaves_clients_queued() && !backs_off;
            if can_accept && !has_begun {
                has_begun = true;
                let listeners = self.listeners.iter().map(|state| &state.listener);
                listeners.for_each(|listener| listener.begin_accepting());
            }
            let is_due = self.listeners.iter().any(ListenerState::is_due);
            if can_accept && (is_due || self.listeners.iter().any(ListenerState::is_to_be_watched))
            {
                match self.admission.room() {
                    RoomCheck::Available => {
                        self.has_requested_room = false;
                        if is_due {
                            self.accept_round();
                            continue;
                        }
                    }
                    // Room may have been made just before the request.
                    RoomCheck::Exhausted(request) if !self.has_requested_room => {
                        self.request_room(request);
                        continue;
                    }
                    RoomCheck::Exhausted(request) if self.lots.room.is_requested(request) => {
                        can_accept = false;
                    }
                    RoomCheck::Exhausted(_) => {
                        self.has_requested_room = false;
                        continue;
                    }
                    RoomCheck::Unknown => {
                        self.watch_shared(false);
                        self.wait(&mut events, Some(SEARCH_PAUSE));
                        continue;
                    }
                }
            }
            self.watch_shared(can_accept);
            let retry_in = self.time_to_retry(can_accept, backs_off);
            self.wait(&mut events, retry_in);
        }
    }

    /// Sets how the poller watches the listeners that other processes may watch.
    fn watch_shared(&mut self, can_accept: bool) {
        let watch = match can_accept {
            false => Watch::Off,
            // There is room only by closing a connection that may not be idle by then.
            true if self.admission.is_full() => Watch::On,
            true => Watch::Exclusive,
        };
        let poller = &self.gate.poller;
        let shared = self.listeners.iter_mut().enumerate();
        for (index, state) in shared.filter(|(_, state)| state.listener.may_be_shared) {
            let socket = &state.listener.socket;
            let wanted = match state.backs_off() {
                true => Watch::Off,
                false => watch,
            };
            let is_turn_over = state.reports >= REPORTS_PER_TURN;
            if state.watch != Watch::Off && (state.watch != wanted || is_turn_over) {
                state.watch = Watch::Off;
                if let Err(error) = poller.remove(socket) {
                    log::error!("cannot stop watching a listener: {error}");
                }
            }
            if state.watch != Watch::Off || wanted == Watch::Off {
                continue;
            }
            state.reports = 0;
            // Reports at once if a connection is there already.
            let added = match wanted {
                Watch::Exclusive => poller.add_shared(socket, index as u64),
                Watch::On | Watch::Off => poller.add(socket, index as u64),
            };
            match added {
                Ok(()) => state.watch = wanted,
                Err(error) => {
                    if Failure::note_error(&mut state.failure, Instant::now()) {
                        let name = &state.listener.info.name;
                        log::error!("{name}: cannot watch: {error}; trying again");
                    }
                }
            }
        }
    }

    /// Asks for a wake-up when there may be room, and begins the check for room again.
    fn request_room(&mut self, request: RoomRequest) {
        self.has_requested_room = true;
        self.lots.room.request(request);
        self.lots.begin_idle_pass();
    }

    /// Accepts the connections that the kernel had queued when the gate was closed, and no more:
    /// clients that go on connecting must not prolong the stop. See [`final_allowance`]. If another
    /// process serves a listener as well, its queued connections are left to that process.
    fn accept_queued(&mut self, events: &mut Events) {
        self.watch_shared(false);
        let served_elsewhere = self.gate.served_elsewhere.lock().clone();
        for index in 0..self.listeners.len() {
            let socket = &self.listeners[index].listener.socket;
            let queued = match served_elsewhere.contains(&(index as u32)) {
                true => Some(0),
                false => sys::socket::queued_connections(socket),
            };
            let mut allowance = FinalAllowance::new(queued);
            while !allowance.is_used_up() && !self.gate.is(CLOSED) {
                // Before the attempt: the end of the last connection makes room.
                let is_empty = self.lots.drain.open_connections() == 0;
                if self.lots.has_room_for_batch() {
                    let began_at = Instant::now();
                    match self.accept_one(index) {
                        AcceptOutcome::Accepted => {
                            allowance.use_one(began_at.elapsed());
                            continue;
                        }
                        AcceptOutcome::Empty | AcceptOutcome::Failed => break,
                        AcceptOutcome::OutOfResources => {}
                    }
                }
                if is_empty {
                    // No connection is left that could make room by its end.
                    break;
                }
                self.lots.room.request(RoomRequest::Queue);
                self.wait(events, Some(FIRST_BACKOFF));
            }
        }
    }

    /// Whether no listener is to be tried now, for lack of descriptors or memory. Only the end of a
    /// connection gives some back: it ends the back-off.
    fn is_backing_off(&mut self) -> bool {
        let Some(shortage) = &mut self.shortage else {
            return false;
        };
        let now = Instant::now();
        if shortage.retry_at <= now {
            return false;
        }
        self.lots.room.request(RoomRequest::End);
        if self.lots.drain.closed_connections() != self.closed_before {
            shortage.retry_at = now;
            return false;
        }
        true
    }

    /// The time until the next attempt that no event announces. An attempt that has become due since
    /// `can_accept` and `backs_off` were found counts, too.
    fn time_to_retry(&self, can_accept: bool, backs_off: bool) -> Option<Duration> {
        let left = |failure: &Failure| {
            let now = Instant::now();
            failure.retry_at.saturating_duration_since(now)
        };
        let is_to_be_tried =
            |watched: &&ListenerState| watched.is_ready || watched.watch == Watch::Off;
        let failing = self.listeners.iter().filter(is_to_be_tried);
        let failures = failing.filter_map(|watched| watched.failure.as_ref());
        let failures = failures
            .map(left)
            .filter(|left| can_accept || !left.is_zero());
        let shortage = self.shortage.as_ref().map(left);
        let shortage = shortage.filter(|left| backs_off || !left.is_zero());
        failures.chain(shortage).min()
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) {
        if let Err(error) = self.gate.poller.wait(events, 16, timeout) {
            log::error!("the acceptor cannot wait: {error}");
        }
        for event in events.iter() {
            let index = event.token as usize;
            let Some(watched) = self.listeners.get_mut(index) else {
                continue;
            };
            watched.is_ready = true;
            if watched.watch == Watch::Exclusive {
                watched.reports += 1;
                // Also if the acceptor was paused meanwhile, or is full now because of another
                // listener: no other process was woken for this connection.
                self.accept_next(index);
            }
        }
    }

    /// Accepts one connection from each listener that may have one.
    fn accept_round(&mut self) {
        for index in 0..self.listeners.len() {
            if !self.listeners[index].is_due() {
                continue;
            }
            if self.admission.room() != RoomCheck::Available {
                return;
            }
            if !self.accept_next(index) {
                return;
            }
        }
    }

    /// Accepts one connection from a listener. False if the acceptor backs off now.
    fn accept_next(&mut self, index: usize) -> bool {
        match self.accept_one(index) {
            AcceptOutcome::Accepted if self.has_queued(index) => {}
            AcceptOutcome::Failed => {}
            AcceptOutcome::Accepted | AcceptOutcome::Empty => {
                self.listeners[index].is_ready = false;
                self.end_failures(index);
                self.rearm(index);
            }
            AcceptOutcome::OutOfResources => {
                self.make_room();
                return false;
            }
        }
        true
    }

    /// Whether the kernel may have queued another connection. An `accept` that finds none costs
    /// ten times as much as this check: the kernel makes the new socket before it looks.
    fn has_queued(&self, index: usize) -> bool {
        let socket = &self.listeners[index].listener.socket;
        let ready = sys::socket::wait_ready(socket, Interest::Read, Some(Duration::ZERO));
        !ready.is_ok_and(|ready| !ready.readable)
    }

    fn rearm(&self, index: usize) {
        if Poller::REPORTS_ONCE && self.listeners[index].watch != Watch::Off {
            let socket = &self.listeners[index].listener.socket;
            if let Err(error) = self.gate.poller.rearm(socket, index as u64, Interest::Read) {
                log::error!("cannot watch the listener: {error}");
            }
        }
    }

    fn accept_one(&mut self, index: usize) -> AcceptOutcome {
        let (socket, peer) = match self.listeners[index].listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => return self.handle_accept_error(&error, index),
        };
        count(&self.lots.counters.accepted);
        if let Some(is_patient) = self.rate.count_accept(clock::millis()) {
            self.set_patient(is_patient);
        }
        let watched = &mut self.listeners[index];
        watched.failed_connections = 0;
        for failure in watched.failure.iter_mut().chain(&mut self.shortage) {
            failure.backoff = FIRST_BACKOFF;
        }
        let listener = Arc::clone(&watched.listener.info);
        let Some(info) = self.admission.admit(socket, peer, listener) else {
            return AcceptOutcome::Accepted;
        };
        // A parked connection is one to shed, also if its first message is about to be read.
        let may_park = !self.admission.sheds();
        self.lots.add_connection(info, may_park, &mut self.events);
        AcceptOutcome::Accepted
    }

    /// Sets whether a wake-up of this thread waits for a free CPU. See [`accept_rate`].
    fn set_patient(&mut self, is_patient: bool) {
        // The default comes back only where it was changed here.
        if is_patient == self.may_interrupt && sys::scheduling::set_interrupts(!is_patient) {
            self.may_interrupt = !is_patient;
        }
    }

    /// Handles an error of `accept`. No error ends the acceptor, and an error of one listener keeps
    /// no other listener from being accepted from.
    fn handle_accept_error(&mut self, error: &io::Error, index: usize) -> AcceptOutcome {
        let ListenerState {
            listener,
            failure,
            failed_connections,
            ..
        } = &mut self.listeners[index];
        let name = &listener.info.name;
        let kind = match sys::socket::accept_error_kind(error) {
            AcceptErrorKind::Connection if *failed_connections >= MOST_FAILED_CONNECTIONS => {
                AcceptErrorKind::Listener
            }
            kind => kind,
        };
        match kind {
            AcceptErrorKind::Empty => AcceptOutcome::Empty,
            // The client has left already.
            AcceptErrorKind::Connection => {
                *failed_connections += 1;
                AcceptOutcome::Accepted
            }
            AcceptErrorKind::Shortage => {
                count(&self.lots.counters.accept_errors);
                if self.shortage.is_none() {
                    log::warn!("{name}: cannot accept: {error}; making room and trying again");
                }
                AcceptOutcome::OutOfResources
            }
            AcceptErrorKind::Listener => {
                count(&self.lots.counters.accept_errors);
                *failed_connections = 0;
                if Failure::note_error(failure, Instant::now()) {
                    log::error!("{name}: cannot accept: {error}; trying again after 5 ms to 1 s");
                }
                AcceptOutcome::Failed
            }
        }
    }

    /// Closes a parked connection to make room, and backs off: if all clients reconnected at once,
    /// the acceptor would never pause. A connection that ends later makes the next attempt earlier.
    fn make_room(&mut self) {
        self.admission.shed(usize::MAX, true);
        self.closed_before = self.lots.drain.closed_connections();
        Failure::note_error(&mut self.shortage, Instant::now());
    }

    /// Ends the failures that are over. Called when the queue of a listener is empty.
    fn end_failures(&mut self, index: usize) {
        let ListenerState {
            listener, failure, ..
        } = &mut self.listeners[index];
        if failure.is_none() && self.shortage.is_none() {
            return;
        }
        let now = Instant::now();
        let name = &listener.info.name;
        if let Some(lasted) = Failure::end_if_over(failure, now) {
            log::info!(
                "{name}: accepting again, after {:.1} s",
                lasted.as_secs_f32()
            );
        }
        if let Some(lasted) = Failure::end_if_over(&mut self.shortage, now) {
            log::info!("accepting again, after {:.1} s", lasted.as_secs_f32());
        }
    }
}

/// After this many reports, a listener that other processes may watch is removed from the poller
/// and added again. Of the threads that wait for a listener, the kernel wakes the one whose poller
/// has watched the listener for longest.
const REPORTS_PER_TURN: u32 = 16;

/// The pause before the next search for an idle connection, if one has found none. With it, the
/// only idle one of 64,000 connections is found within a second.
const SEARCH_PAUSE: Duration = Duration::from_millis(1);
