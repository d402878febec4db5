//! The adopter: the thread that takes the connections of a predecessor. It exists as long as the
//! predecessor may send some, and this process is not replaced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::credit::MOST_IN_FLIGHT;
use super::{EndRequest, WarnOnce, rearm};
use crate::acceptor::MovedAdmission;
use crate::addr::Addr;
use crate::clock::Deadline;
use crate::drain::Pause;
use crate::listener::ListenerInfo;
use crate::log;
use crate::panic;
use crate::parking::{Lots, Turn};
use crate::service::Service;
use crate::stats::count;
use crate::sys::{self, Events, Interest, Poller};
use crate::wire::{
    BATCH_LEN, ConnectionRecord, ListenerId, MoveMessage, Record, Refusal, RefusedConnection,
    UnknownBatch,
};

/// How long an answer may wait for room. The predecessor has room for several.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the adopter looks whether a pause of the service has ended.
const PAUSE_CHECK: Duration = Duration::from_millis(1);

/// Descriptors that the connections of a predecessor leave free: so many, but an eighth of the
/// limit at most. The server goes on to accept, and handlers go on to open files.
const RESERVE: u64 = 64;

/// See the head of this file.
pub(crate) struct Adopter<'a, S: Service> {
    service: &'a S,
    lots: &'a Lots<S::Session>,
    admission: MovedAdmission<'a, S::Session>,
    listeners: &'a [Arc<ListenerInfo>],
    listener_ids: Vec<ListenerId>,
    channel: Socket,
    poller: Arc<Poller>,
    end: EndRequest,
    /// About connections that this process refuses, and about what it does not understand.
    refusal_log: WarnOnce,
    unknown_log: WarnOnce,
}

impl<'a, S: Service> Adopter<'a, S> {
    /// `channel` leads to the predecessor.
    ///
    /// # Errors
    ///
    /// Errors of the poller.
    pub(crate) fn new(
        service: &'a S,
        lots: &'a Lots<S::Session>,
        admission: MovedAdmission<'a, S::Session>,
        listeners: &'a [Arc<ListenerInfo>],
        channel: Socket,
    ) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        poller.add(&channel, 0)?;
        Ok(Self {
            service,
            lots,
            admission,
            listeners,
            listener_ids: listeners.iter().map(|own| own.id()).collect(),
            channel,
            end: EndRequest::new(Arc::clone(&poller)),
            poller,
            refusal_log: WarnOnce::default(),
            unknown_log: WarnOnce::default(),
        })
    }

    pub(crate) fn end_request(&self) -> EndRequest {
        self.end.clone()
    }

    /// Adopts connections until the predecessor closes the channel, this server stops, or the channel
    /// is [asked for](EndRequest::ask_for_channel). Returns the channel if it is asked for. Otherwise
    /// its drop tells the predecessor that this process takes no more.
    pub(crate) fn run(self) -> Option<Socket> {
        let is_left = self.adopt_batches();
        // A poller would report the channel as long as any process has it.
        if let Err(error) = self.poller.remove(&self.channel) {
            log::debug!("cannot remove the channel from the poller: {error}");
        }
        is_left.then_some(self.channel)
    }

    /// True if the channel is asked for.
    fn adopt_batches(&self) -> bool {
        let mut buffer = vec![0; MoveMessage::LIMIT];
        let mut events = Events::with_capacity(4);
        // When the channel is asked for, the batches that have arrived are adopted first: the channel
        // may find no new owner. There are no more, unless the predecessor goes on sending. During a
        // pause none is adopted, and the batches stay in the channel.
        let mut batches_left = MOST_IN_FLIGHT;
        loop {
            let leaves_channel = self.end.asks_for_channel();
            let Some(calls) = self.begin_calls() else {
                if leaves_channel || self.stops() {
                    return leaves_channel;
                }
                thread::sleep(PAUSE_CHECK);
                continue;
            };
            match sys::message::receive_sockets(&self.channel, &mut buffer, most_descriptors()) {
                Ok((0, _)) => return false,
                Ok((size, sockets)) => {
                    if let Err(error) = self.adopt_batch(&buffer[..size], sockets, calls) {
                        log::error!("cannot answer the predecessor: {error}");
                        return false;
                    }
                    batches_left = batches_left.saturating_sub(leaves_channel.into());
                    if batches_left == 0 {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(calls);
                    if leaves_channel || self.stops() {
                        return leaves_channel;
                    }
                    let armed = rearm(&self.poller, &self.channel);
                    let waited = armed.and_then(|()| self.poller.wait(&mut events, 4, None));
                    if let Err(error) = waited {
                        log::error!("the adopter cannot wait for events: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    log::error!("cannot receive the connections of another process: {error}");
                    return false;
                }
            }
        }
    }

    /// Begins calls of the service. `None` while a restart with an exact state pauses them: what a
    /// session changes would be lost.
    fn begin_calls(&self) -> Option<UnpackGuard<'a>> {
        let (pause, word) = (&self.lots.drain.pause, &self.lots.counters.adopter.in_calls);
        let begins = pause.begin_shared_calls(word);
        begins.then_some(UnpackGuard { pause, word })
    }

    fn stops(&self) -> bool {
        self.end.is_made() || self.lots.drain.is_closing()
    }

    /// Adopts what fits, answers, and then serves it.
    fn adopt_batch(
        &self,
        message: &[u8],
        sockets: Vec<Socket>,
        calls: UnpackGuard<'_>,
    ) -> io::Result<()> {
        let (batch, records) = match MoveMessage::decode_batch(message) {
            Ok(batch) => batch,
            Err(unknown) => {
                drop(calls);
                return self.refuse_unknown(sockets, &unknown);
            }
        };
        let (mut refused, mut adopted) = (Vec::new(), Vec::new());
        let mut sockets = sockets.into_iter();
        for (index, record) in (0..).zip(records) {
            let result = match sockets.next() {
                Some(socket) => self.adopt(record, socket),
                None => Err(Refusal::Descriptors),
            };
            match result {
                Ok(turn) => adopted.push(turn),
                Err(why) => refused.push(RefusedConnection { index, why }),
            }
        }
        drop(calls);
        if self.stops() {
            // The service may have taken long to unpack.
            drop(adopted);
            return self.refuse_all(batch, Refusal::Stopping);
        }
        if let Some(first) = refused.first() {
            let (count, why) = (refused.len(), first.why);
            self.refusal_log.write(format_args!(
                "{count} connections stay with the other process: {why}"
            ));
        }
        // An error drops the connections, without a shutdown.
        self.answer(batch, refused)?;
        for turn in adopted {
            count(&self.lots.counters.adopted);
            turn.begin_adopted();
        }
        Ok(())
    }

    fn refuse_all(&self, batch: u64, why: Refusal) -> io::Result<()> {
        // The predecessor ignores positions that its batch does not have.
        let all = (0..BATCH_LEN as u32).map(|index| RefusedConnection { index, why });
        self.answer(batch, all.collect())
    }

    /// A predecessor of another version may send other records, or other kinds of messages.
    fn refuse_unknown(&self, sockets: Vec<Socket>, unknown: &UnknownBatch) -> io::Result<()> {
        let UnknownBatch { number, why } = unknown;
        self.unknown_log.write(format_args!(
            "connections stay with the other process: {why}"
        ));
        drop(sockets);
        let Some(number) = *number else {
            return Ok(());
        };
        self.refuse_all(number, Refusal::Version)
    }

    fn adopt(
        &self,
        record: ConnectionRecord,
        socket: Socket,
    ) -> Result<Turn<'a, S::Session>, Refusal> {
        if self.stops() {
            return Err(Refusal::Stopping);
        }
        if !record.is_consistent() {
            return Err(Refusal::Record);
        }
        let position = record.listener.position_in(&self.listener_ids);
        let listener = position.and_then(|position| self.listeners.get(position));
        let listener = Arc::clone(listener.ok_or(Refusal::Listener)?);
        let peer = Addr::from_wire(&record.peer);
        let mut record = record;
        let session = record.session.take();
        let info = self.admission.admit(socket, peer, listener);
        let info = info.ok_or(Refusal::Limit)?;
        let mut turn = self.lots.adopt(info, record).ok_or(Refusal::Limit)?;
        if let (Some(packed), Some(occupant)) = (session, turn.occupant()) {
            let conn = &mut occupant.conn;
            let unpacked = panic::contain(|| self.service.unpack(conn, packed.0));
            let client = conn.info();
            occupant.session = match unpacked {
                Ok(Ok(session)) => Some(session),
                Ok(Err(error)) => {
                    log::debug!("{client}: cannot unpack the session: {error}");
                    return Err(Refusal::Session);
                }
                Err(why) => {
                    log::error!("{client}: the unpack of its session panicked: {why}");
                    return Err(Refusal::Session);
                }
            };
        }
        Ok(turn)
    }

    /// Sends the Ack. The connections are this process's from then on.
    fn answer(&self, batch: u64, refused: Vec<RefusedConnection>) -> io::Result<()> {
        let text = MoveMessage::Ack { batch, refused }.encode()?;
        let mut deadline = None;
        loop {
            match sys::message::send_sockets(&self.channel, &text, &[]) {
                Ok(()) => return Ok(()),
                // The predecessor has died, or left these connections to this process.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let now = Instant::now();
                    let deadline = deadline.get_or_insert(Deadline::after(now, ANSWER_TIMEOUT));
                    if self.stops() || deadline.has_passed(now) {
                        return Err(error);
                    }
                    self.wait_for_room(deadline.time_left(now))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A stop interrupts the wait.
    fn wait_for_room(&self, limit: Option<Duration>) -> io::Result<()> {
        self.poller.rearm(&self.channel, 0, Interest::Write)?;
        let waited = self.poller.wait(&mut Events::with_capacity(4), 4, limit);
        self.poller.rearm(&self.channel, 0, Interest::Read)?;
        waited
    }
}

/// Calls of the service in progress, which a pause waits for.
struct UnpackGuard<'a> {
    pause: &'a Pause,
    word: &'a AtomicU64,
}

impl Drop for UnpackGuard<'_> {
    fn drop(&mut self) {
        self.pause.end_shared_calls(self.word);
    }
}

/// How many descriptors this process may have with those of adopted connections.
fn most_descriptors() -> u64 {
    let limit = sys::limits::descriptor_limit().unwrap_or(u64::MAX);
    limit - RESERVE.min(limit / 8)
}
