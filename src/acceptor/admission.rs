//! Admission: which connections are accepted, and which of these are served, by the limits and the
//! [`Overload`] policy.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::gate::AcceptGate;
use super::per_client::{ClientPlace, PerClient, TooMany};
use crate::addr::Addr;
use crate::connection::{Activity, ConnectionInfo, EarlyOutput};
use crate::listener::ListenerInfo;
use crate::log;
use crate::parking::{IdleConnection, Lots, RoomRequest};
use crate::stats::count;
use crate::sys;

/// What happens to new connections when the server is full: when it has
/// [`max_connections`](crate::Builder::max_connections) open, or when as many new connections as
/// the [`queue`](crate::Builder::queue) takes wait for a worker. Connections that were served
/// before do not count as new: clients that stay connected do not keep others out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overload {
    /// The default: new connections are accepted up to
    /// [`max_connections`](crate::Builder::max_connections), and wait for a worker in the order in
    /// which they became ready. Further connections wait in the kernel's queue. No client is
    /// refused, and clients see a slow server.
    #[default]
    Wait,
    /// A new connection is sent these bytes, as many as the socket takes at once, and closed.
    Refuse(Vec<u8>),
    /// As [`Wait`](Self::Wait) up to [`max_connections`](crate::Builder::max_connections). For each
    /// further connection, the connection that has been idle for longest is closed. If no
    /// connection is idle, or if the queue is full, further connections wait in the kernel's queue.
    ShedIdle,
}

impl Overload {
    /// The bytes that a refused client is sent.
    pub(crate) fn refusal(&self) -> &[u8] {
        match self {
            Self::Refuse(bytes) => bytes,
            Self::Wait | Self::ShedIdle => &[],
        }
    }
}

/// The limits for new connections, and the policy beyond them.
#[derive(Clone, Debug)]
pub(crate) struct AdmissionPolicy {
    pub(crate) max_connections: usize,
    pub(crate) max_per_client: Option<usize>,
    pub(crate) overload: Overload,
}

/// The state of the policy.
pub(super) struct Admission<'a, S> {
    lots: &'a Lots<S>,
    policy: AdmissionPolicy,
    per_client: Arc<PerClient>,
    /// The connection to close next, if one was found.
    to_shed: Option<IdleConnection>,
    /// Sockets of refused clients, and since when they linger.
    lingering: VecDeque<(Instant, Socket)>,
}

/// Whether a connection may be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoomCheck {
    Available,
    /// Not before this event.
    Exhausted(RoomRequest),
    /// The search for an idle connection has not looked at all connections.
    Unknown,
}

/// How many slots one search for an idle connection looks at.
const SEARCH_SLOTS: usize = 64;

/// How many refused clients linger, and for how long unless no other client is refused.
const MOST_LINGERING: usize = 64;
const LINGER: Duration = Duration::from_secs(2);

impl<'a, S> Admission<'a, S> {
    pub(super) fn new(
        lots: &'a Lots<S>,
        policy: AdmissionPolicy,
        per_client: Arc<PerClient>,
    ) -> Self {
        Self {
            lots,
            policy,
            per_client,
            to_shed: None,
            lingering: VecDeque::new(),
        }
    }

    /// Whether a connection may be accepted now. With the policy `Refuse` it may always be
    /// accepted, and is then refused.
    pub(super) fn room(&mut self) -> RoomCheck {
        match self.policy.overload {
            Overload::Refuse(_) => RoomCheck::Available,
            _ if !self.is_full() => RoomCheck::Available,
            Overload::Wait => RoomCheck::Exhausted(RoomRequest::End),
            Overload::ShedIdle => self.room_by_shedding(),
        }
    }

    fn room_by_shedding(&mut self) -> RoomCheck {
        if !self.lots.has_room_for_batch() {
            RoomCheck::Exhausted(RoomRequest::Queue)
        } else if self.find_idle(SEARCH_SLOTS, false) {
            RoomCheck::Available
        } else if self.lots.is_idle_pass_over() {
            RoomCheck::Exhausted(RoomRequest::Idle)
        } else {
            RoomCheck::Unknown
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lots.drain.open_connections() >= self.policy.max_connections
    }

    /// Whether there is an idle connection to close, as far as a search in `most` slots finds one.
    /// With `mid_message_too`, parked connections in the middle of a message count as idle.
    fn find_idle(&mut self, most: usize, mid_message_too: bool) -> bool {
        let lots = self.lots;
        if !self
            .to_shed
            .as_ref()
            .is_some_and(|idle| lots.is_still_idle(idle))
        {
            self.to_shed = lots.longest_idle(most, mid_message_too);
        }
        self.to_shed.is_some()
    }

    /// Closes the connection that has been idle for longest. False if no connection was closed.
    pub(super) fn shed(&mut self, most: usize, mid_message_too: bool) -> bool {
        // `Lot::shed` queues a candidate whose client has sent something.
        while self.lots.has_room_for_batch() && self.find_idle(most, mid_message_too) {
            let idle = self.to_shed.take();
            if idle.is_some_and(|idle| self.lots.shed(&idle)) {
                return true;
            }
        }
        false
    }

    /// Decides about an accepted connection. `None`: the client was refused, and the connection is
    /// closed.
    pub(super) fn admit(
        &mut self,
        socket: Socket,
        peer: Addr,
        listener: Arc<ListenerInfo>,
    ) -> Option<ConnectionInfo> {
        let name = &listener.name;
        let counters = &self.lots.counters;
        let Ok(place) = count_for_client(&self.per_client, &self.policy, &peer) else {
            count(&counters.refused_max_per_client);
            log::debug!("{peer} on {name}: refused, it has too many connections");
            self.refuse(socket);
            return None;
        };
        if self.sheds() && self.is_full() && !self.shed(SEARCH_SLOTS, false) {
            log::debug!(
                "{peer} on {name}: accepted beyond the limit, no connection is idle any more"
            );
        }
        if let Some((counter, why)) = self.refusal() {
            count(counter);
            log::debug!("{peer} on {name}: refused, {why}");
            self.refuse(socket);
            return None;
        }
        log::trace!("{peer} on {name}: accepted");
        Some(new_info(self.lots, socket, peer, listener, place))
    }

    /// Whether idle connections are closed to make room.
    pub(super) fn sheds(&self) -> bool {
        self.policy.overload == Overload::ShedIdle
    }

    /// Why the policy `Refuse` refuses a connection: the counter, and the text for the log. With
    /// the other policies there was room before the accept.
    fn refusal(&self) -> Option<(&AtomicU64, &'static str)> {
        let counters = &self.lots.counters;
        match self.policy.overload {
            Overload::Refuse(_) if self.is_full() => {
                Some((&counters.refused_max_connections, "the server is full"))
            }
            Overload::Refuse(_) if !self.lots.has_room_for_newcomer() => {
                Some((&counters.refused_queue_full, "the queue is full"))
            }
            _ => None,
        }
    }

    /// Sends the refusal, as much as the socket takes at once.
    fn refuse(&mut self, socket: Socket) {
        let refusal = self.policy.overload.refusal();
        if refusal.is_empty() {
            return;
        }
        let sent =
            sys::socket::send(&socket, refusal).and_then(|_| socket.shutdown(Shutdown::Write));
        // Closing a socket with unread input resets the connection, and the reset may overtake
        // the refusal.
        match sent.and_then(|()| sys::socket::recv(&socket, &mut [0; 4096])) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::trace!("a refused client has left: {error}");
            }
            _ if sys::socket::RESET_DISCARDS => self.linger(socket),
            _ => {}
        }
    }

    /// Keeps the socket of a refused client open for a while: what the client sends meanwhile would
    /// lead to a reset, which would discard the refusal.
    fn linger(&mut self, socket: Socket) {
        let now = Instant::now();
        self.lingering.push_back((now, socket));
        let is_over = |(since, _): &(Instant, Socket)| now - *since > LINGER;
        while self.lingering.len() > MOST_LINGERING || self.lingering.front().is_some_and(is_over) {
            self.lingering.pop_front();
        }
    }
}

/// Counts the connection for its client. `None` if connections per client are not limited. An error:
/// the client has too many connections.
fn count_for_client(
    counts: &Arc<PerClient>,
    policy: &AdmissionPolicy,
    peer: &Addr,
) -> Result<Option<ClientPlace>, TooMany> {
    let (Some(limit), Some(ip)) = (policy.max_per_client, peer.as_ip()) else {
        return Ok(None);
    };
    PerClient::count_connection(counts, ip.ip(), limit).map(Some)
}

fn new_info<S>(
    lots: &Lots<S>,
    socket: Socket,
    peer: Addr,
    listener: Arc<ListenerInfo>,
    place: Option<ClientPlace>,
) -> ConnectionInfo {
    ConnectionInfo {
        socket,
        peer,
        listener,
        open_connection: lots.drain.count_connection(),
        activity: Activity::default(),
        early_output: EarlyOutput::default(),
        _client_place: place.map(|place| Box::new(place) as _),
    }
}

/// Decides about connections that the predecessor has accepted. They are neither refused nor shed
/// here: those beyond a limit stay with the predecessor.
pub(crate) struct MovedAdmission<'a, S> {
    lots: &'a Lots<S>,
    policy: &'a AdmissionPolicy,
    per_client: Arc<PerClient>,
}

impl<'a, S> MovedAdmission<'a, S> {
    pub(crate) fn new(lots: &'a Lots<S>, policy: &'a AdmissionPolicy, gate: &AcceptGate) -> Self {
        let per_client = Arc::clone(&gate.per_client);
        Self {
            lots,
            policy,
            per_client,
        }
    }

    /// `None` if the connection is beyond a limit.
    pub(crate) fn admit(
        &self,
        socket: Socket,
        peer: Addr,
        listener: Arc<ListenerInfo>,
    ) -> Option<ConnectionInfo> {
        if self.lots.drain.open_connections() >= self.policy.max_connections {
            return None;
        }
        let place = count_for_client(&self.per_client, self.policy, &peer).ok()?;
        Some(new_info(self.lots, socket, peer, listener, place))
    }
}
