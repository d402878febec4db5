//! The threads of a server that move its open connections to a successor, or adopt those of a
//! predecessor.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use socket2::Socket;

use crate::acceptor::{AcceptGate, AdmissionPolicy, MovedAdmission};
use crate::listener::ListenerInfo;
use crate::log;
use crate::moving::{Adopter, EndRequest, Mover};
use crate::parking::{Lots, MoverQueue};
use crate::restart::RestarterHandle;
use crate::server::move_channels::MoveChannels;
use crate::service::Service;
use crate::sys::Poller;
use crate::wire::ServerId;

/// How long the end of a server waits for these threads, in total.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The most threads that adopt connections at once: one for each predecessor that drains. By default,
/// [`max_draining`](crate::Restart::max_draining) is 4.
pub(super) const MOST_ADOPTERS: usize = 16;

/// A mover or an adopter.
struct MoveThread {
    end: EndRequest,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl MoveThread {
    fn runs(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }
}

/// What the threads work with, of their server.
pub(super) struct MoveParts<'env, S: Service> {
    pub(super) service: &'env S,
    pub(super) lots: &'env Lots<S::Session>,
    pub(super) idle_grace: Duration,
    pub(super) admission: &'env AdmissionPolicy,
    pub(super) gate: &'env AcceptGate,
    pub(super) channels: &'env MoveChannels,
    pub(super) listeners: &'env [Arc<ListenerInfo>],
    /// The position among the servers of the process.
    pub(super) position: usize,
    pub(super) restarter: Option<&'env RestarterHandle>,
}

impl<S: Service> MoveParts<'_, S> {
    fn id(&self) -> ServerId {
        ServerId {
            listeners: self.listeners.iter().map(|own| own.id()).collect(),
            position: u32::try_from(self.position).unwrap_or(u32::MAX),
        }
    }
}

/// The kind of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) enum MoveThreadKind {
    Mover,
    Adopter,
}

/// Starts a thread of the server.
type Spawn<'scope> =
    Box<dyn Fn(MoveThreadKind, Box<dyn FnOnce() + Send + 'scope>) -> io::Result<()> + 'scope>;

/// The movers and adopters of a server. Its main thread starts and ends them.
pub(super) struct MoveThreads<'scope, 'env: 'scope, S: Service> {
    parts: MoveParts<'env, S>,
    spawn: Spawn<'scope>,
    mover: Option<(MoveThread, Arc<MoverQueue>)>,
    adopters: Vec<MoveThread>,
    /// This process was replaced: channels of predecessors are passed on.
    is_replaced: bool,
}

impl<'scope, 'env: 'scope, S: Service> MoveThreads<'scope, 'env, S> {
    pub(super) fn new(parts: MoveParts<'env, S>, spawn: Spawn<'scope>) -> Self {
        Self {
            parts,
            spawn,
            mover: None,
            adopters: Vec::new(),
            is_replaced: false,
        }
    }

    /// Begins to move connections to the successor, over this channel.
    ///
    /// # Errors
    ///
    /// Errors of the system. No connection moves then.
    pub(super) fn start_mover(&mut self, channel: Socket) -> io::Result<()> {
        let (service, lots) = (self.parts.service, self.parts.lots);
        let idle_grace = self.parts.idle_grace;
        let queue = Arc::new(MoverQueue::new(Arc::new(Poller::new()?)));
        let to_mover = Arc::clone(&queue);
        let mover = Mover::new(service, lots, to_mover, channel, idle_grace)?;
        let end = mover.end_request();
        lots.begin_moving(Arc::clone(&queue), idle_grace);
        let started = self.start(MoveThreadKind::Mover, end, || mover.run());
        let thread = started.inspect_err(|_| lots.end_moving(&queue))?;
        self.mover = Some((thread, queue));
        Ok(())
    }

    /// The mover has ended, perhaps by a panic: no connection may be left on its queue.
    pub(super) fn note_mover_end(&self) {
        let lots = self.parts.lots;
        lots.drain.mark_replaced(self.parts.idle_grace);
        if let Some((_, queue)) = &self.mover {
            lots.end_moving(queue);
        }
        lots.shorten_idle();
    }

    /// Adopts the connections of predecessors, over channels that the restarter has left.
    pub(super) fn start_adopters(&mut self) {
        while let Some(channel) = self.parts.channels.take_incoming() {
            if self.is_replaced {
                pass_on(self.parts.restarter, self.parts.id(), channel);
                continue;
            }
            self.adopters.retain(MoveThread::runs);
            if self.adopters.len() == MOST_ADOPTERS {
                log::warn!("connections of a predecessor stay there: others are being adopted");
                continue;
            }
            match self.start_adopter(channel) {
                Ok(adopter) => self.adopters.push(adopter),
                Err(error) => log::error!("cannot adopt open connections: {error}"),
            }
        }
    }

    fn start_adopter(&self, channel: Socket) -> io::Result<MoveThread> {
        let parts = &self.parts;
        let admission = MovedAdmission::new(parts.lots, parts.admission, parts.gate);
        let (service, lots, listeners) = (parts.service, parts.lots, parts.listeners);
        let adopter = Adopter::new(service, lots, admission, listeners, channel)?;
        let end = adopter.end_request();
        let (restarter, id) = (parts.restarter, parts.id());
        let run = move || {
            if let Some(channel) = adopter.run() {
                pass_on(restarter, id, channel);
            }
        };
        self.start(MoveThreadKind::Adopter, end, run)
    }

    /// This process was replaced: connections of predecessors go to the successor.
    pub(super) fn pass_channels_on(&mut self) {
        self.is_replaced = true;
        let adopters = self.adopters.iter();
        adopters.for_each(|adopter| adopter.end.ask_for_channel());
        self.start_adopters();
    }

    fn start(
        &self,
        kind: MoveThreadKind,
        end: EndRequest,
        run: impl FnOnce() + Send + 'scope,
    ) -> io::Result<MoveThread> {
        let (runs, has_ended) = crossbeam_channel::bounded::<()>(0);
        let run = move || {
            run();
            drop(runs);
        };
        (self.spawn)(kind, Box::new(run))?;
        Ok(MoveThread {
            end,
            ended: has_ended,
        })
    }

    /// Whether connections of a predecessor may still come.
    pub(super) fn is_adopting(&self) -> bool {
        self.adopters.iter().any(MoveThread::runs)
    }

    /// The stage of the drain has changed.
    pub(super) fn wake(&self) {
        self.iter().for_each(|thread| thread.end.wake());
    }

    /// Ends the threads. From then on, no connection of this server is on its way to or from another
    /// process.
    pub(super) fn end(self) {
        self.parts.channels.close();
        self.iter().for_each(|thread| thread.end.make());
        let deadline = Instant::now() + END_TIMEOUT;
        for thread in self.iter() {
            // Closed, or late.
            let _ = thread.ended.recv_deadline(deadline);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &MoveThread> {
        let mover = self.mover.iter().map(|(thread, _)| thread);
        mover.chain(&self.adopters)
    }
}

/// Passes the channel of a predecessor on to the successor of this server.
fn pass_on(restarter: Option<&RestarterHandle>, id: ServerId, channel: Socket) {
    if let Some(restarter) = restarter {
        restarter.pass_on_channel(id, channel);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::addr::Addr;
    use crate::connection::Connection;
    use crate::drain::Drain;
    use crate::listener::Bind;
    use crate::server::group::Member;
    use crate::server::{Handle, Server};
    use crate::service::Next;
    use crate::signals::ServerCommand;
    use crate::sys::{self, Interest};
    use crate::wire::{
        Batch, ConnectionRecord, ConnectionSettings, ListenerId, MoveMessage, Record, Refusal,
        WireAddr, WireBytes,
    };

    const LIMIT: Duration = Duration::from_secs(60);

    /// A server that answers each line with itself and the listener's address, and the predecessor's end of a channel to it.
    struct Adopting {
        handle: Handle,
        channel: Socket,
    }

    /// `None` on a system without such channels.
    fn adopting() -> Option<Adopting> {
        let service = |conn: &mut Connection| {
            let local = conn.info().listener.local.clone();
            if let Some(line) = conn.take_line(100)? {
                writeln!(conn, "{line} {local}")?;
            }
            Ok(Next::Park)
        };
        Adopting::start(service, |_| {})
    }

    impl Adopting {
        fn start(
            service: impl Service + 'static,
            prepare: impl FnOnce(&Arc<Drain>),
        ) -> Option<Self> {
            let (channel, other_end) = sys::message::create_channel().ok()?;
            let bind = || Bind::new("127.0.0.1:0").name("test");
            let server = Server::builder().listen(bind()).listen(bind());
            let server = server.workers(1).build(service).unwrap();
            prepare(server.main.drain());
            let handle = server.start().unwrap();
            handle.shared().move_channels.add_incoming(other_end);
            let commands = &handle.shared().commands;
            commands.send(ServerCommand::Adopt).unwrap();
            Some(Self { handle, channel })
        }

        fn listener(&self, position: usize) -> ListenerId {
            let addr = self.handle.local_addrs()[position].to_wire();
            let name = "test".to_owned();
            ListenerId { name, addr }
        }

        fn record(&self, listener: usize) -> ConnectionRecord {
            ConnectionRecord {
                listener: self.listener(listener),
                peer: WireAddr::Tcp("192.0.2.1:1".parse().unwrap()),
                is_new: false,
                idle_left_ms: None,
                bytes_in: 0,
                bytes_out: 0,
                settings: ConnectionSettings::default(),
                unread: WireBytes::default(),
                session: None,
            }
        }

        fn send(&self, text: &str, sockets: &[&Socket]) {
            sys::message::send_sockets(&self.channel, text, sockets).unwrap();
        }

        /// Sends a batch with this number. Returns the ends of the clients.
        fn send_batch(&self, number: u64, records: &[ConnectionRecord]) -> Vec<TcpStream> {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut batch = Batch::default();
            let pairs = records.iter().map(|record| {
                batch.push(record);
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                client.set_read_timeout(Some(LIMIT)).unwrap();
                let socket = Socket::from(listener.accept().unwrap().0);
                socket.set_nonblocking(true).unwrap();
                (client, socket)
            });
            let (clients, sockets): (Vec<_>, Vec<_>) = pairs.unzip();
            let sockets: Vec<&Socket> = sockets.iter().collect();
            self.send(&batch.into_text(number), &sockets);
            clients
        }

        /// The number of the next answer, and what it refuses.
        fn answer(&self) -> (u64, Vec<(u32, Refusal)>) {
            let mut buffer = vec![0; MoveMessage::LIMIT];
            sys::socket::wait_ready(&self.channel, Interest::Read, Some(LIMIT)).unwrap();
            let (size, _) = sys::message::receive_sockets(&self.channel, &mut buffer, 0).unwrap();
            let message = MoveMessage::decode(&buffer[..size]).unwrap();
            let MoveMessage::Ack { batch, refused } = message else {
                panic!("{message:?}");
            };
            let refused = refused.iter().map(|refused| (refused.index, refused.why));
            (batch, refused.collect())
        }
    }

    #[track_caller]
    fn assert_is_served(client: &mut TcpStream, listener: &Addr) {
        client.write_all(b"line\n").unwrap();
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        assert_eq!(answer, format!("line {listener}\n"));
    }

    #[test]
    fn what_a_later_version_sends_does_not_confuse_the_answers() {
        let Some(adopting) = adopting() else { return };
        adopting.send(r#"{"v":1,"type":"later"}"#, &[]);
        adopting.send(r#"{"v":1,"type":"later","batch":7}"#, &[]);
        let mut clients = adopting.send_batch(9, &[adopting.record(0)]);
        let (batch, refused) = adopting.answer();
        assert_eq!((batch, refused[0]), (7, (0, Refusal::Version)));
        assert_eq!(adopting.answer(), (9, Vec::new()));
        assert_is_served(&mut clients[0], &adopting.handle.local_addrs()[0]);
        adopting.handle.stop_now();
    }

    #[test]
    fn listeners_of_the_same_name_are_told_apart() {
        let Some(adopting) = adopting() else { return };
        let addrs = adopting.handle.local_addrs();
        let mut given_up = adopting.record(0);
        given_up.listener.addr = WireAddr::Tcp("192.0.2.1:80".parse().unwrap());
        let records = [given_up, adopting.record(1), adopting.record(0)];
        let mut clients = adopting.send_batch(0, &records);
        assert_eq!(adopting.answer(), (0, vec![(0, Refusal::Listener)]));
        assert_is_served(&mut clients[1], &addrs[1]);
        assert_is_served(&mut clients[2], &addrs[0]);
        adopting.handle.stop_now();
    }

    /// A service whose session is the last line. Calls `pack` to pack it, and `before_unpack` before each
    /// unpack.
    struct Packing<P, U> {
        pack: P,
        before_unpack: U,
    }

    impl<P, U> Service for Packing<P, U>
    where
        P: Fn(&str) -> Option<Vec<u8>> + Send + Sync,
        U: Fn() + Send + Sync,
    {
        type Session = String;
        type Worker = ();

        fn worker(&self, _index: usize) -> io::Result<()> {
            Ok(())
        }

        fn session(&self, _conn: &mut Connection) -> io::Result<String> {
            Ok(String::new())
        }

        /// Answers a line once there is another one.
        fn serve(
            &self,
            conn: &mut Connection,
            session: &mut String,
            (): &mut (),
        ) -> io::Result<Next> {
            let Some(line) = conn.take_line(100)? else {
                return Ok(Next::Park);
            };
            if line == "answer" {
                writeln!(conn, "{session}")?;
                return Ok(Next::Park);
            }
            *session = line;
            writeln!(conn, "more")?;
            Ok(Next::More)
        }

        fn packs_sessions(&self) -> bool {
            true
        }

        fn pack(&self, _conn: &Connection, session: &String) -> Option<Vec<u8>> {
            (self.pack)(session)
        }

        fn unpack(&self, _conn: &mut Connection, packed: Vec<u8>) -> io::Result<String> {
            (self.before_unpack)();
            String::from_utf8(packed).map_err(io::Error::other)
        }
    }

    /// A server of lines that moves its connections, and the successor's end of the channel.
    struct MovingServer {
        handle: Handle,
        channel: Socket,
        clients: Vec<BufReader<TcpStream>>,
    }

    impl MovingServer {
        /// Each of the clients has sent its line. `None` on a system without such channels.
        fn start(
            lines: &[&str],
            pack: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static,
        ) -> Option<Self> {
            let (own_end, channel) = sys::message::create_channel().ok()?;
            let server = Server::builder().listen("127.0.0.1:0").workers(1);
            let service = Packing {
                pack,
                before_unpack: || {},
            };
            let handle = server.build(service).unwrap().start().unwrap();
            let connect = |line: &&str| {
                let addr = handle.local_addrs()[0].as_ip().unwrap();
                let mut client = BufReader::new(TcpStream::connect(addr).unwrap());
                client.get_ref().set_read_timeout(Some(LIMIT)).unwrap();
                writeln!(client.get_mut(), "{line}").unwrap();
                client.read_line(&mut String::new()).unwrap();
                client
            };
            let clients = lines.iter().map(connect).collect();
            handle.shared().move_channels.set_outgoing(Some(own_end));
            Some(Self {
                handle,
                channel,
                clients,
            })
        }

        fn begin_moves(&self) {
            let commands = &self.handle.shared().commands;
            commands.send(ServerCommand::Replaced).unwrap();
        }

        fn ask(&mut self, client: usize) -> String {
            let client = &mut self.clients[client];
            client.get_mut().write_all(b"answer\n").unwrap();
            let mut answer = String::new();
            client.read_line(&mut answer).unwrap();
            answer
        }

        /// The number and the length of the next batch. Its sockets are closed.
        fn receive_batch(&self) -> (u64, usize) {
            let mut buffer = vec![0; MoveMessage::LIMIT];
            sys::socket::wait_ready(&self.channel, Interest::Read, Some(LIMIT)).unwrap();
            let received =
                sys::message::receive_sockets(&self.channel, &mut buffer, u64::MAX).unwrap();
            let (batch, records) = MoveMessage::decode_batch(&buffer[..received.0]).unwrap();
            assert_eq!(records.len(), received.1.len());
            (batch, records.len())
        }

        fn acknowledge(&self, batch: u64) {
            let refused = Vec::new();
            let ack = MoveMessage::Ack { batch, refused }.encode().unwrap();
            sys::message::send_sockets(&self.channel, &ack, &[]).unwrap();
        }
    }

    /// Nobody serves a connection that is on the mover's queue.
    #[test]
    fn the_time_of_a_move_includes_the_wait_for_the_mover() {
        let (begins, has_begun) = crossbeam_channel::bounded(1);
        let (end, may_end) = crossbeam_channel::bounded(1);
        // In a message, so that they do not move at once.
        let moving = MovingServer::start(&["a", "b"], move |session| {
            if session == "a" {
                begins.send(()).unwrap();
                may_end.recv_timeout(LIMIT).unwrap();
                return None;
            }
            Some(Vec::new())
        });
        let Some(mut moving) = moving else { return };
        moving.begin_moves();
        assert_eq!(moving.ask(0), "a\n");
        has_begun.recv_timeout(LIMIT).unwrap();
        assert_eq!(moving.ask(1), "b\n");
        let wait = Duration::from_millis(200);
        std::thread::sleep(wait);
        end.send(()).unwrap();
        let (batch, count) = moving.receive_batch();
        assert_eq!(count, 1);
        moving.acknowledge(batch);
        moving.clients.clear();
        let report = moving.handle.join();
        assert_eq!(report.moved, 1, "{report}");
        assert!(report.longest_move > wait / 2, "{report}");
    }

    /// Connections that are packed are not served.
    #[test]
    fn a_batch_does_not_wait_for_many_slow_packs() {
        for stays in [false, true] {
            let (go, may_go) = crossbeam_channel::bounded(1);
            let pack = move |session: &str| {
                std::thread::sleep(Duration::from_millis(50));
                if session == "b" {
                    may_go.recv_timeout(LIMIT).unwrap();
                }
                (session == "a" || !stays).then(Vec::new)
            };
            let Some(mut moving) = MovingServer::start(&["a", "b", "c"], pack) else {
                return;
            };
            for client in 0..3 {
                assert_eq!(moving.ask(client), ["a\n", "b\n", "c\n"][client]);
            }
            moving.begin_moves();
            let (mut batch, count) = moving.receive_batch();
            assert_eq!(count, 1);
            go.send(()).unwrap();
            for _ in 0..if stays { 0 } else { 2 } {
                moving.acknowledge(batch);
                let next = moving.receive_batch();
                assert_eq!(next.1, 1);
                batch = next.0;
            }
            moving.acknowledge(batch);
            moving.clients.clear();
            let report = moving.handle.join();
            assert_eq!(report.moved, if stays { 1 } else { 3 }, "{report}");
        }
    }

    #[test]
    fn a_connection_that_waits_for_a_slow_successor_is_served() {
        let pack = |session: &str| {
            let size = if session == "small" { 60_000 } else { 100_000 };
            Some(vec![b'x'; size])
        };
        // The first "large" fills a batch. "small" leaves no room in its batch for the second "large".
        let Some(mut moving) = MovingServer::start(&["large", "small", "large"], pack) else {
            return;
        };
        // The worker may park the last one only after its answer: that one comes first or last.
        for client in [1, 2, 0] {
            moving.ask(client);
        }
        moving.begin_moves();
        let batches = [moving.receive_batch(), moving.receive_batch()];
        assert_eq!(batches.map(|(_, count)| count), [1, 1]);
        assert_eq!(moving.ask(2), "large\n");
        for (batch, _) in batches {
            moving.acknowledge(batch);
        }
        let (batch, count) = moving.receive_batch();
        assert_eq!(count, 1);
        moving.acknowledge(batch);
        let report = moving.handle.join();
        assert_eq!(report.moved, 3, "{report}");
    }

    #[test]
    fn no_session_is_unpacked_while_calls_are_paused() {
        let mut drain = None;
        let service = Packing {
            pack: |_: &str| None,
            before_unpack: || {},
        };
        let adopting = Adopting::start(service, |own| {
            own.pause.enable();
            own.pause.settle(true);
            own.pause.close();
            drain = Some(Arc::clone(own));
        });
        let Some(adopting) = adopting else { return };
        let drain = drain.unwrap();
        let record = ConnectionRecord {
            session: Some(WireBytes(b"line".to_vec())),
            ..adopting.record(0)
        };
        let _clients = adopting.send_batch(0, &[record]);
        let moment = Some(Duration::from_millis(200));
        let waited = sys::socket::wait_ready(&adopting.channel, Interest::Read, moment);
        assert!(!waited.is_ok_and(|ready| ready.readable));
        drain.pause.open();
        assert_eq!(adopting.answer(), (0, Vec::new()));
        adopting.handle.stop_now();
    }

    /// The channel may find no new owner, and the predecessor may have left the connections to this
    /// process.
    #[test]
    fn batches_that_have_arrived_are_adopted_before_the_channel_is_left() {
        let (begins, has_begun) = crossbeam_channel::bounded(1);
        let (go, may_go) = crossbeam_channel::bounded(2);
        let before_unpack = move || {
            let _ = begins.try_send(());
            may_go.recv_timeout(LIMIT).unwrap();
        };
        let mut drain = None;
        let service = Packing {
            pack: |_: &str| None,
            before_unpack,
        };
        let adopting = Adopting::start(service, |own| drain = Some(Arc::clone(own)));
        let Some(adopting) = adopting else { return };
        let drain = drain.unwrap();
        let record = || ConnectionRecord {
            session: Some(WireBytes::default()),
            ..adopting.record(0)
        };
        let _first = adopting.send_batch(0, &[record()]);
        has_begun.recv_timeout(LIMIT).unwrap();
        let _second = adopting.send_batch(1, &[record()]);
        let commands = &adopting.handle.shared().commands;
        commands.send(ServerCommand::Replaced).unwrap();
        let limit = Instant::now() + LIMIT;
        while !drain.has_successor() {
            assert!(Instant::now() < limit);
            std::thread::yield_now();
        }
        go.send(()).unwrap();
        assert_eq!(adopting.answer(), (0, Vec::new()));
        go.send(()).unwrap();
        assert_eq!(adopting.answer(), (1, Vec::new()));
        adopting.handle.stop_now();
    }

    #[test]
    fn a_stop_does_not_wait_for_a_successor_that_hangs() {
        let Ok((channel, other_end)) = sys::message::create_channel() else {
            return;
        };
        let server = Server::builder().listen("127.0.0.1:0").workers(1);
        let server = server.build(|_: &mut Connection| Ok(Next::Park));
        let handle = server.unwrap().start().unwrap();
        let _client = TcpStream::connect(handle.local_addrs()[0].as_ip().unwrap()).unwrap();
        handle.shared().move_channels.set_outgoing(Some(channel));
        let commands = &handle.shared().commands;
        commands.send(ServerCommand::Replaced).unwrap();
        // A batch has come, and is not answered.
        sys::socket::wait_ready(&other_end, Interest::Read, Some(LIMIT)).unwrap();
        let began = Instant::now();
        handle.stop_now();
        let report = handle.join();
        assert!(began.elapsed() < Duration::from_secs(1), "{report}");
        assert_eq!(report.moved, 1, "{report}");
    }

    #[test]
    fn a_stop_does_not_wait_for_a_predecessor_that_hangs() {
        let Some(adopting) = adopting() else { return };
        // The answers are not read. Without room for them, the adopter does not read either.
        let moment = Some(Duration::from_millis(200));
        while sys::socket::wait_ready(&adopting.channel, Interest::Write, moment)
            .is_ok_and(|ready| ready.writable)
        {
            let text = r#"{"v":1,"type":"later","batch":7}"#;
            match sys::message::send_sockets(&adopting.channel, text, &[]) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
                _ => {}
            }
        }
        let began = Instant::now();
        adopting.handle.stop_now();
        adopting.handle.join();
        assert!(began.elapsed() < END_TIMEOUT);
    }

    /// The arithmetic of the connection would overflow.
    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let Some(adopting) = adopting() else { return };
        let too_much = ConnectionRecord {
            unread: WireBytes(b"line".to_vec()),
            ..adopting.record(0)
        };
        let mut clients = adopting.send_batch(0, &[too_much, adopting.record(0)]);
        assert_eq!(adopting.answer(), (0, vec![(0, Refusal::Record)]));
        assert_is_served(&mut clients[1], &adopting.handle.local_addrs()[0]);
        adopting.handle.stop_now();
    }
}
