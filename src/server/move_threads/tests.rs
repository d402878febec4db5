//! What the threads that move connections do with batches, answers and the ends of servers.

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
    fn start(service: impl Service + 'static, prepare: impl FnOnce(&Arc<Drain>)) -> Option<Self> {
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
    fn serve(&self, conn: &mut Connection, session: &mut String, (): &mut ()) -> io::Result<Next> {
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
        let received = sys::message::receive_sockets(&self.channel, &mut buffer, u64::MAX).unwrap();
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
