//! The acceptor: one thread that takes connections in, or keeps them out.
//!
//! It waits in a poller of its own, never in `accept`, and no error of `accept` ends it. Whether a connection may come
//! in is decided here, by the limits and the [`Overload`] policy.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::Socket;

use crate::addr::Addr;
use crate::connection::{Activity, ConnectionInfo};
use crate::listener::Listener;
use crate::parking::{Idle, Lot};
use crate::stats::count;
use crate::sys::{self, Events, Interest, Poller};

/// What happens to new connections when the server is full: when it has
/// [`max_connections`](crate::Builder::max_connections), or its queue is full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overload {
    /// They wait in the kernel's queue until there is room. The default: nobody is turned away, and clients see a
    /// slow server.
    #[default]
    Wait,
    /// They are sent these bytes, as far as the socket takes them at once, and closed.
    Refuse(Vec<u8>),
    /// The connection that has waited for its client for longest is closed for each new one. Where none waits, or
    /// it is the queue that is full, as [`Wait`](Self::Wait).
    ShedIdle,
}

impl Overload {
    /// What a client is told that is refused.
    pub(crate) fn refusal(&self) -> &[u8] {
        match self {
            Self::Refuse(bytes) => bytes,
            Self::Wait | Self::ShedIdle => &[],
        }
    }
}

/// What the limits are.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) max_connections: usize,
    pub(crate) max_per_client: Option<usize>,
    pub(crate) overload: Overload,
}

/// What the acceptor is told from outside.
pub(crate) struct AcceptGate {
    poller: Arc<Poller>,
    state: AtomicU8,
    /// What is queued for these listeners is another process's.
    kept: Mutex<Vec<u32>>,
    /// How often the acceptor has looked around.
    turns: AtomicU64,
}

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const CLOSING: u8 = 2;
const CLOSED: u8 = 3;
/// It was not open yet.
const WAITING: u8 = 4;

impl AcceptGate {
    /// A gate that is to be opened.
    pub(crate) fn new() -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let state = AtomicU8::new(WAITING);
        let kept = Mutex::default();
        Ok(Self {
            poller,
            state,
            kept,
            turns: AtomicU64::new(0),
        })
    }

    pub(crate) fn open(&self) {
        self.change(WAITING, OPEN);
    }

    /// Connections stay in the kernel's queue until `resume`. False if that is so already.
    pub(crate) fn pause(&self) -> bool {
        self.change(OPEN, PAUSED)
    }

    pub(crate) fn resume(&self) {
        self.change(PAUSED, OPEN);
    }

    /// Takes in what the kernel has queued already, then closes the listeners. What is queued for a server that has
    /// never accepted is not its own.
    pub(crate) fn close(&self) {
        self.change(OPEN, CLOSING);
        self.change(PAUSED, CLOSING);
        self.change(WAITING, CLOSED);
    }

    /// What is queued for these listeners is not to be taken in by `close`: another process serves them.
    pub(crate) fn leave_to_others(&self, kept: &[u32]) {
        *self.kept.lock() = kept.to_vec();
    }

    /// Closes the listeners at once.
    pub(crate) fn close_now(&self) {
        self.state.store(CLOSED, SeqCst);
        self.poller.wake();
    }

    /// Has the acceptor look around.
    pub(crate) fn wake(&self) {
        self.poller.wake();
    }

    /// How often the acceptor has looked around.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(SeqCst)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let changed = self.state.compare_exchange(from, to, SeqCst, SeqCst);
        if changed.is_ok() {
            self.poller.wake();
        }
        changed.is_ok()
    }

    /// Nobody is to be accepted for now.
    fn is_shut(&self) -> bool {
        self.is(PAUSED) || self.is(WAITING)
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(SeqCst) == state
    }
}

/// The acceptor's life: until the gate closes. Dropping the listeners closes them.
pub(crate) fn accept<S>(
    lot: &Lot<S>,
    gate: &AcceptGate,
    listeners: Vec<Arc<Listener>>,
    admission: Admission,
) -> io::Result<()> {
    for (index, listener) in listeners.iter().enumerate() {
        gate.poller.add(&listener.socket, index as u64)?;
    }
    let mut acceptor = Acceptor {
        lot,
        gate,
        ready: vec![true; listeners.len()],
        listeners,
        admission,
        per_client: Arc::default(),
        to_shed: VecDeque::new(),
        famine: None,
    };
    acceptor.run();
    for listener in &acceptor.listeners {
        // Other processes may share it, and then it would be reported for ever.
        gate.poller.remove(&listener.socket)?;
    }
    Ok(())
}

struct Acceptor<'a, S> {
    lot: &'a Lot<S>,
    gate: &'a AcceptGate,
    listeners: Vec<Arc<Listener>>,
    /// Which of them may have something.
    ready: Vec<bool>,
    admission: Admission,
    per_client: Arc<PerClient>,
    /// Candidates for being closed, the longest idle first; found a few at a time.
    to_shed: VecDeque<Idle>,
    famine: Option<Famine>,
}

/// A time without descriptors or memory.
struct Famine {
    since: Instant,
    /// When something was lacking for the last time.
    last: Instant,
    pause: Duration,
}

/// How long the system is left alone after an error, at first; and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A famine is over when nothing was lacking for so long. One that comes back before is the same one.
const RECOVERY: Duration = Duration::from_secs(1);

/// What one attempt to accept came to.
enum AcceptOutcome {
    Accepted,
    /// Nobody is waiting.
    Empty,
    /// The system is out of something; not now.
    Starved,
}

impl<S> Acceptor<'_, S> {
    fn run(&mut self) {
        let mut events = Events::with_capacity(16);
        let mut told = false;
        // The system is to be left alone until then, unless there is room again.
        let mut not_before = None;
        while !self.gate.is(CLOSED) {
            count(&self.gate.turns);
            let closing = self.gate.is(CLOSING);
            if closing && !told {
                // What came last may not have been reported yet.
                let kept = self.gate.kept.lock().clone();
                for (ready, index) in self.ready.iter_mut().zip(0..) {
                    *ready = !kept.contains(&index);
                }
                told = true;
            }
            if closing && !self.ready.contains(&true) {
                break;
            }
            if !self.lot.wants_room() {
                not_before = None;
            }
            let pause = not_before.map(|at: Instant| at.saturating_duration_since(Instant::now()));
            let pause = pause.filter(|pause| !pause.is_zero());
            if pause.is_some() || self.gate.is_shut() || !self.ready.contains(&true) {
                // Nothing to do until then, or until an event.
            } else if !self.has_room() {
                self.lot.want_room();
                // It may just have been made, before anybody knew that it is wanted.
                if self.has_room() {
                    continue;
                }
            } else {
                match self.accept_round() {
                    None => {}
                    Some(pause) => not_before = Some(Instant::now() + pause),
                }
                continue;
            }
            if let Err(error) = self.gate.poller.wait(&mut events, 16, pause) {
                log::error!("the acceptor cannot wait: {error}");
            }
            for event in events.iter() {
                if let Some(ready) = self.ready.get_mut(event.token as usize) {
                    *ready = true;
                }
            }
        }
    }

    /// Accepts one connection from each listener that may have one. `Some` says how long to leave the system alone.
    fn accept_round(&mut self) -> Option<Duration> {
        for index in 0..self.listeners.len() {
            if !self.ready[index] {
                continue;
            }
            if !self.has_room() {
                return None;
            }
            match self.accept_one(index) {
                AcceptOutcome::Accepted => {}
                AcceptOutcome::Empty => {
                    self.ready[index] = false;
                    self.end_famine();
                    self.rearm(index);
                }
                AcceptOutcome::Starved => return Some(self.starve()),
            }
        }
        None
    }

    fn rearm(&self, index: usize) {
        if !Poller::SHARED {
            let socket = &self.listeners[index].socket;
            if let Err(error) = self.gate.poller.rearm(socket, index as u64, Interest::Read) {
                log::error!("cannot watch the listener: {error}");
            }
        }
    }

    /// May a connection be taken in now? One that is to be refused may.
    fn has_room(&mut self) -> bool {
        match self.admission.overload {
            Overload::Refuse(_) => true,
            Overload::Wait => !self.is_full() && self.lot.queue_has_room(),
            Overload::ShedIdle => {
                self.lot.queue_has_room() && (!self.is_full() || self.may_shed(false))
            }
        }
    }

    fn is_full(&self) -> bool {
        self.lot.drain.live() >= self.admission.max_connections
    }

    /// Is there, as far as is known, an idle connection to close? Or, at the worst, a parked one that is busy.
    fn may_shed(&mut self, busy_too: bool) -> bool {
        let lot = self.lot;
        while self.to_shed.front().is_some_and(|idle| !lot.is_idle(idle)) {
            self.to_shed.pop_front();
        }
        if self.to_shed.is_empty() {
            self.to_shed = lot.longest_idle(SHED_AHEAD, busy_too).into();
        }
        !self.to_shed.is_empty()
    }

    /// Closes the connection that has been idle for longest, if there is one.
    fn shed(&mut self, busy_too: bool) -> bool {
        // A candidate that turns out to have asked for something goes there instead.
        while self.lot.queue_has_room() && self.may_shed(busy_too) {
            let idle = self.to_shed.pop_front();
            if idle.is_some_and(|idle| self.lot.shed(&idle)) {
                return true;
            }
        }
        false
    }

    fn accept_one(&mut self, index: usize) -> AcceptOutcome {
        let listener = &self.listeners[index];
        let (socket, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => return self.accept_error(&error, index),
        };
        count(&self.lot.counters.accepted);
        if let Some(famine) = &mut self.famine {
            famine.pause = FIRST_PAUSE;
        }
        let listener = Arc::clone(&self.listeners[index].info);
        let name = &listener.name;
        let counters = &self.lot.counters;
        let Some(ticket) = self.ticket(&peer) else {
            count(&counters.refused_max_per_client);
            log::debug!("{peer} on {name}: refused, it has too many connections");
            self.refuse(&socket);
            return AcceptOutcome::Accepted;
        };
        let sheds = self.admission.overload == Overload::ShedIdle;
        if sheds && self.is_full() && !self.shed(false) {
            log::debug!("{peer} on {name}: one too many, but nobody is idle any more");
        }
        if let Some((counter, why)) = self.refusal() {
            count(counter);
            log::debug!("{peer} on {name}: refused, {why}");
            self.refuse(&socket);
            return AcceptOutcome::Accepted;
        }
        log::trace!("{peer} on {name}: accepted");
        self.lot.enter(ConnectionInfo {
            socket,
            peer,
            listener,
            in_flight: self.lot.drain.enter(),
            activity: Activity::default(),
            _ticket: ticket,
        });
        AcceptOutcome::Accepted
    }

    /// Why a connection is turned away. With any other policy there was room before it was accepted; if others have
    /// filled the queue since then, it has a place beyond its limit.
    fn refusal(&self) -> Option<(&AtomicU64, &'static str)> {
        let counters = &self.lot.counters;
        match self.admission.overload {
            Overload::Refuse(_) if self.is_full() => {
                Some((&counters.refused_max_connections, "the server is full"))
            }
            Overload::Refuse(_) if !self.lot.queue_has_room() => {
                Some((&counters.refused_queue_full, "the queue is full"))
            }
            _ => None,
        }
    }

    /// An error of `accept` concerns one connection, or all; never the listener.
    fn accept_error(&mut self, error: &io::Error, index: usize) -> AcceptOutcome {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
        match error.kind() {
            WouldBlock => AcceptOutcome::Empty,
            // The client has gone already.
            Interrupted | ConnectionAborted | ConnectionReset => AcceptOutcome::Accepted,
            _ if sys::socket::is_connection_error(error) => AcceptOutcome::Accepted,
            _ => {
                count(&self.lot.counters.accept_errors);
                if self.famine.is_none() {
                    let name = &self.listeners[index].info.name;
                    log::warn!("{name}: cannot accept: {error}; making room and trying again");
                }
                AcceptOutcome::Starved
            }
        }
    }

    /// Makes room, and says how long to wait before the next attempt: 5 ms, and twice as long after each failure in
    /// a row, up to 1 s.
    fn starve(&mut self) -> Duration {
        self.shed(true);
        // What is left of the candidates may be busy ones.
        self.to_shed.clear();
        // A connection that ends brings the next attempt forward; not the one that was closed just now, or a server
        // whose clients all come back would spin.
        self.lot.want_room();
        let now = Instant::now();
        let famine = self.famine.get_or_insert(Famine {
            since: now,
            last: now,
            pause: FIRST_PAUSE,
        });
        famine.last = now;
        let pause = famine.pause;
        famine.pause = (pause * 2).min(LAST_PAUSE);
        pause
    }

    /// All who waited were accepted.
    fn end_famine(&mut self) {
        if self
            .famine
            .as_ref()
            .is_some_and(|famine| famine.last.elapsed() > RECOVERY)
        {
            if let Some(famine) = self.famine.take() {
                let seconds = (famine.last - famine.since).as_secs_f32();
                log::info!("accepting again, after {seconds:.1} s");
            }
        }
    }

    /// Tells a client that it is not welcome, as far as that costs no time.
    fn refuse(&self, socket: &Socket) {
        let answer = self.admission.overload.refusal();
        if !answer.is_empty() {
            let told =
                sys::socket::send(socket, answer).and_then(|_| socket.shutdown(Shutdown::Write));
            // A close with unread input would reset the connection, and take the answer with it.
            let read = told.and_then(|()| sys::socket::recv(socket, &mut [0; 4096]));
            if let Err(error) = read {
                log::trace!("a refused client has gone: {error}");
            }
        }
    }

    fn ticket(&self, peer: &Addr) -> Option<Option<Box<dyn Send + Sync>>> {
        let (Some(most), Some(ip)) = (self.admission.max_per_client, peer.as_ip()) else {
            return Some(None);
        };
        let ticket = PerClient::enter(&self.per_client, ip.ip(), most)?;
        Some(Some(Box::new(ticket)))
    }
}

/// How many candidates for being closed are looked up at a time.
const SHED_AHEAD: usize = 32;

/// How many connections each client has.
#[derive(Default)]
struct PerClient(Mutex<HashMap<IpAddr, usize>>);

impl PerClient {
    fn enter(counts: &Arc<Self>, client: IpAddr, most: usize) -> Option<Ticket> {
        let mut map = counts.0.lock();
        let count = map.entry(client).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Ticket {
            counts: Arc::clone(counts),
            client,
        })
    }
}

/// Counts a connection for its client until it is dropped.
struct Ticket {
    counts: Arc<PerClient>,
    client: IpAddr,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut map = self.counts.0.lock();
        if let Some(count) = map.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                map.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_and_gets_them_back() {
        let counts = Arc::new(PerClient::default());
        let (a, b) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        let first = PerClient::enter(&counts, a, 2);
        let second = PerClient::enter(&counts, a, 2);
        assert!(first.is_some() && second.is_some());
        assert!(PerClient::enter(&counts, a, 2).is_none());
        let other = PerClient::enter(&counts, b, 2);
        assert!(other.is_some());
        drop(first);
        let third = PerClient::enter(&counts, a, 2);
        assert!(third.is_some());
        drop((second, third, other));
        assert!(counts.0.lock().is_empty());
    }
}
