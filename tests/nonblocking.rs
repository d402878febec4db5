//! The view of a connection that never waits: `Connection::nonblocking`.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[cfg(feature = "http")]
use handover::http::{self, Body, HeaderValue, Reply, Request, Response, StatusCode, header};
use handover::{Connection, Next, Service};
use tungstenite::protocol::{Role, WebSocketContext};
use tungstenite::{Error, Message, WebSocket};

use support::{
    ServerSide, addr, answer, byte_at, bytes_at, connect, connect_narrow, door, eventually, finish,
    read_pattern, server, start, stop, until,
};

/// What a read gave.
fn read_with(conn: &mut Connection, room: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = vec![0; room];
    let count = conn
        .nonblocking()
        .read(&mut bytes)
        .map_err(|error| error.kind())?;
    bytes.truncate(count);
    Ok(bytes)
}

#[test]
fn a_read_gives_what_is_buffered_then_what_has_arrived_then_would_block_and_zero_at_the_end() {
    // Reads of both sizes: through the buffer, and past it.
    for room in [100, 64 * 1024] {
        let (keeper, door) = door();
        let read = Arc::new(Mutex::new(Vec::new()));
        let results = Arc::clone(&read);
        let handle = start(server().workers(1), move |conn: &mut Connection| {
            let note = |result| results.lock().unwrap().push(result);
            note(read_with(conn, 3));
            note(read_with(conn, 0));
            note(read_with(conn, room));
            note(read_with(conn, room));
            door.pass();
            note(read_with(conn, room));
            note(read_with(conn, room));
            door.pass();
            note(read_with(conn, room));
            note(read_with(conn, room));
            Ok(Next::Close)
        });
        let mut client = connect(addr(&handle));
        let side = ServerSide::of(&client);
        client.write_all(b"hello").unwrap();
        keeper.wait();
        client.write_all(b"more").unwrap();
        side.until_unread(4);
        keeper.let_one_in();
        keeper.wait();
        finish(&client);
        side.until_unread(1);
        keeper.let_one_in();
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        let ok = |bytes: &[u8]| Ok(bytes.to_vec());
        let nothing = || Err(ErrorKind::WouldBlock);
        assert_eq!(
            *read.lock().unwrap(),
            [
                ok(b"hel"),
                ok(b""),
                ok(b"lo"),
                nothing(),
                ok(b"more"),
                nothing(),
                ok(b""),
                ok(b"")
            ]
        );
        stop(&handle);
    }
}

#[test]
fn a_flush_sends_and_does_not_wait() {
    let (keeper, door) = door();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        let bytes = conn.buffer().len();
        io::BufRead::consume(conn, bytes);
        let mut view = conn.nonblocking();
        view.write_all(b"at once\n")?;
        view.flush()?;
        door.pass();
        // Much more than the socket takes.
        let _ = conn.nonblocking().write(&vec![b'x'; 64 << 20]);
        conn.nonblocking().flush()?;
        Ok(Next::Close)
    });
    let mut client = connect_narrow(addr(&handle));
    client.write_all(b"go").unwrap();
    keeper.wait();
    assert_eq!(answer(&mut client), "at once");
    keeper.let_one_in();
    // The client reads nothing more, and the call ends.
    until(&handle, "the call has ended", |stats| {
        (stats.served, stats.active) == (1, 0)
    });
    drop(client);
    stop(&handle);
}

/// Sends a pattern of `count` bytes by writes that do not wait.
struct Pattern {
    count: usize,
    calls: AtomicUsize,
    blocked: AtomicUsize,
}

impl Service for &'static Pattern {
    type Session = usize;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<usize> {
        Ok(0)
    }

    fn serve(&self, conn: &mut Connection, sent: &mut usize, (): &mut ()) -> io::Result<Next> {
        self.calls.fetch_add(1, SeqCst);
        while *sent < self.count {
            let most = (self.count - *sent).min(10_000);
            match conn.nonblocking().write(&bytes_at(*sent, most)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked.fetch_add(1, SeqCst);
                    return Ok(Next::Again);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Next::Close)
    }
}

#[test]
fn a_write_is_buffered_up_to_the_limit_and_goes_on_when_the_client_has_read() {
    const COUNT: usize = 8 << 20;
    for limit in [0, 1, 4096, 1 << 20] {
        let pattern = support::forever(Pattern {
            count: COUNT,
            calls: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
        });
        let handle = start(server().workers(1).output_limit(limit), pattern);
        let mut client = connect_narrow(addr(&handle));
        client.write_all(b"go").unwrap();
        until(&handle, "it waits for its client", |stats| {
            stats.served >= 1 && (stats.active, stats.queued) == (0, 0)
        });
        // A client that does not read leads to no calls, and holds no worker.
        let calls = pattern.calls.load(SeqCst);
        eventually("a write was refused", || pattern.blocked.load(SeqCst) >= 1);
        let mut other = connect(addr(&handle));
        other.write_all(b"go").unwrap();
        assert_eq!(read_one(&mut other), byte_at(0));
        drop(other);
        until(&handle, "the other one has gone", |stats| stats.live == 1);
        assert!(calls <= 3, "{calls} calls for a client that does not read");
        read_pattern(&mut client, COUNT);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        stop(&handle);
    }
}

fn read_one(client: &mut impl Read) -> u8 {
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    byte[0]
}

/// A WebSocket without a handshake, that echoes.
struct Echo;

impl Service for Echo {
    type Session = WebSocketContext;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<WebSocketContext> {
        Ok(WebSocketContext::new(Role::Server, None))
    }

    fn serve(
        &self,
        conn: &mut Connection,
        socket: &mut WebSocketContext,
        (): &mut (),
    ) -> io::Result<Next> {
        let view = &mut conn.nonblocking();
        loop {
            socket.flush(view).map_err(io::Error::other)?;
            match socket.read(view) {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    socket.write(view, message).map_err(io::Error::other)?;
                }
                Err(Error::ConnectionClosed) => return Ok(Next::Close),
                other => drop(other.map_err(io::Error::other)?),
            }
        }
    }
}

#[test]
fn a_library_parks_over_it_in_the_middle_of_a_message() {
    let handle = start(server().workers(1), Echo);
    // A masked frame with "hello".
    let frame = *b"\x81\x85\x00\x00\x00\x00hello";
    let mut halves: Vec<_> = (0..frame.len()).map(|_| connect(addr(&handle))).collect();
    for (client, cut) in halves.iter_mut().zip(1..) {
        client.write_all(&frame[..cut]).unwrap();
    }
    let count = halves.len() as u64;
    until(&handle, "all are parked", |stats| {
        (stats.served, stats.parked) == (count, count)
    });
    for (client, cut) in halves.iter_mut().zip(1..) {
        client.write_all(&frame[cut..]).unwrap();
        let mut echoed = [0; 7];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"\x81\x05hello");
    }
    drop(halves);
    stop(&handle);
}

#[test]
fn a_library_writes_more_than_the_limit_to_a_client_that_reads_late() {
    let handle = start(server().workers(1), Echo);
    let stream = connect_narrow(addr(&handle));
    let mut late = WebSocket::from_raw_socket(stream, Role::Client, None);
    let message = Message::binary(bytes_at(0, 4 << 20));
    late.send(message.clone()).unwrap();
    until(&handle, "its answer waits for it", |stats| {
        stats.bytes_in > 4 << 20 && (stats.active, stats.queued) == (0, 0)
    });
    let mut other = WebSocket::from_raw_socket(connect(addr(&handle)), Role::Client, None);
    other.send(Message::text("hello")).unwrap();
    assert_eq!(other.read().unwrap(), Message::text("hello"));
    assert_eq!(late.read().unwrap(), message);
    other.close(None).unwrap();
    assert!(matches!(other.read(), Ok(Message::Close(None))));
    assert!(matches!(other.read(), Err(Error::ConnectionClosed)));
    drop(late);
    stop(&handle);
}

// ---- errors of a view ----

/// Echoes until the view would have to wait.
fn echo_view(conn: &mut Connection) -> io::Result<Next> {
    let view = &mut conn.nonblocking();
    let mut bytes = [0; 16 * 1024];
    loop {
        match view.read(&mut bytes)? {
            0 => return Ok(Next::Close),
            count => view.write_all(&bytes[..count])?,
        }
    }
}

#[test]
fn the_would_block_of_a_view_waits_also_inside_another_error() {
    type Wrap = fn(io::Error) -> io::Error;
    let wraps: [Wrap; 4] = [
        |error| error,
        io::Error::other,
        |error| io::Error::other(Error::Io(error)),
        |error| io::Error::other(io::Error::other(Error::Io(error))),
    ];
    for wrap in wraps {
        let handle = start(server().workers(1), move |conn: &mut Connection| {
            echo_view(conn).map_err(wrap)
        });
        let mut clients = [(); 3].map(|()| connect(addr(&handle)));
        for text in ["a\n", "b\n"] {
            for client in &mut clients {
                client.write_all(text.as_bytes()).unwrap();
                assert_eq!(answer(client), text.trim());
            }
            until(&handle, "all are parked", |stats| stats.parked == 3);
        }
        drop(clients);
        let stats = until(&handle, "all have left", |stats| stats.live == 0);
        assert_eq!(stats.service_errors, 0);
        stop(&handle);
    }
}

#[test]
fn handlers_with_other_errors_wait_too() {
    let boxed = |conn: &mut Connection| -> Result<Next, Box<dyn std::error::Error>> {
        Ok(echo_view(conn)?)
    };
    let library = |conn: &mut Connection, (): &mut ()| echo_view(conn).map_err(Error::Io);
    let alone = |conn: &mut Connection| echo_view(conn).map_err(Error::Io);
    let with_worker =
        |conn: &mut Connection, (): &mut (), (): &mut ()| echo_view(conn).map_err(Error::Io);
    // A library may make the error anew.
    let anew =
        |conn: &mut Connection| echo_view(conn).map_err(|error| Error::Io(error.kind().into()));
    let handles = [
        start(server(), handover::service(boxed)),
        start(server(), handover::service(alone)),
        start(server(), handover::service(anew)),
        start(
            server(),
            handover::service_with(|_| Ok(()), |_conn| Ok(()), with_worker),
        ),
        start(
            server(),
            handover::service_with_session(|_conn| Ok(()), library),
        ),
    ];
    for handle in handles {
        let mut client = connect(addr(&handle));
        for text in ["a\n", "b\n"] {
            client.write_all(text.as_bytes()).unwrap();
            assert_eq!(answer(&mut client), text.trim());
        }
        drop(client);
        stop(&handle);
    }
}

#[test]
fn any_other_would_block_is_a_failure() {
    let service = |conn: &mut Connection| -> io::Result<Next> {
        match conn.buffer() {
            // The view has met no end.
            b"own" => Err(ErrorKind::WouldBlock.into()),
            // Another error, after the view would have had to wait.
            _ => {
                let _ = conn.nonblocking().read(&mut [0; 64]);
                let blocked = conn.nonblocking().read(&mut [0; 64]);
                assert!(blocked.is_err());
                Err(io::Error::other("a fault"))
            }
        }
    };
    let handle = start(server().workers(1), service);
    for (text, count) in [("own", 1), ("other", 2)] {
        let mut client = connect(addr(&handle));
        client.write_all(text.as_bytes()).unwrap();
        support::assert_closed(&mut client);
        until(&handle, "it is counted", |stats| {
            stats.service_errors == count
        });
    }
    stop(&handle);
}

/// A service that has handled the `WouldBlock` of its view, and meets a time-out of another stream.
#[test]
fn the_would_block_of_another_socket_is_a_failure() {
    type Wrap = fn(io::Error) -> Box<dyn std::error::Error>;
    let wraps: [Wrap; 3] = [
        |error| error.into(),
        |error| Error::Io(error).into(),
        |error| io::Error::other(Error::Io(error)).into(),
    ];
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend_addr = backend.local_addr().unwrap();
    for wrap in wraps {
        let service = move |conn: &mut Connection| -> Result<Next, Box<dyn std::error::Error>> {
            while conn.nonblocking().read(&mut [0; 64]).is_ok() {}
            let mut stream = TcpStream::connect(backend_addr)?;
            stream.set_nonblocking(true)?;
            stream.read(&mut [0; 8]).map_err(wrap)?;
            Ok(Next::Park)
        };
        let handle = start(server().workers(1), handover::service(service));
        let mut client = connect(addr(&handle));
        client.write_all(b"hello").unwrap();
        support::assert_closed(&mut client);
        until(&handle, "it is counted", |stats| stats.service_errors == 1);
        stop(&handle);
    }
}

/// The first function of an upgrade is called once, and cannot wait.
#[cfg(feature = "http")]
#[test]
fn a_session_after_an_upgrade_that_would_wait_is_a_failure() {
    let service = http::service(|_: &mut Request<Body<'_>>| {
        let begin = |conn: &mut Connection| conn.nonblocking().read(&mut [0; 8]);
        let serve = |_: &mut Connection, _: &mut usize| -> io::Result<Next> { Ok(Next::Park) };
        let mut response = Response::new(Reply::upgrade_with(begin, serve));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let protocol = HeaderValue::from_static("test");
        response.headers_mut().insert(header::UPGRADE, protocol);
        response
    });
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    until(&handle, "it is counted", |stats| stats.service_errors == 1);
    stop(&handle);
}

/// A library that reads after a write that was blocked, when its client has read meanwhile: the write comes first.
#[test]
fn a_blocked_write_is_not_forgotten_by_a_read() {
    let (keeper, door) = door();
    let calls = AtomicUsize::new(0);
    let service = move |conn: &mut Connection| -> io::Result<Next> {
        if calls.fetch_add(1, SeqCst) > 0 {
            conn.write_all(
                b"rest
",
            )?;
            return Ok(Next::Close);
        }
        io::BufRead::consume(conn, 2);
        let blocked = loop {
            if let Err(error) = conn.nonblocking().write(&[b'x'; 64 << 10]) {
                break error;
            }
        };
        assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
        door.pass();
        conn.flush_all()?;
        let count = conn.nonblocking().read(&mut [0; 8])?;
        panic!("{count} bytes were read");
    };
    let handle = start(server().workers(1).output_limit(4096), service);
    let mut client = connect_narrow(addr(&handle));
    client.write_all(b"go").unwrap();
    keeper.wait();
    keeper.let_one_in();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(
        b"xrest
"
    ));
    stop(&handle);
}

/// A service that knows that a message has begun, or is answered, says so only if its client is waited for.
#[test]
fn a_view_says_whether_it_waits_for_input() {
    let handle = start(
        server().workers(1).output_limit(4096),
        |conn: &mut Connection| {
            let mut view = conn.nonblocking();
            let mut said = vec![view.needs_input()];
            let mut byte = [0];
            while view.read(&mut byte)? > 0 && byte != *b"\n" {}
            said.push(view.needs_input());
            let waits =
                |result: io::Result<usize>| result.unwrap_err().kind() == ErrorKind::WouldBlock;
            assert!(waits(view.read(&mut byte)));
            said.push(view.needs_input());
            // The client does not read yet: its answer has to wait.
            while view.write(&[b'x'; 64 * 1024]).is_ok() {}
            assert!(waits(view.read(&mut byte)));
            said.push(view.needs_input());
            conn.write_owned(format!("{said:?}\n").into_bytes())?;
            Ok(Next::Close)
        },
    );
    let mut client = connect_narrow(addr(&handle));
    client.write_all(b"go\n").unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all.trim_start_matches('x'), "[false, false, true, false]\n");
    stop(&handle);
}

/// Reads stop while the output limit is reached, so that a client that only sends costs no memory.
#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    const COUNT: usize = 16 << 20;
    let handle = start(server().workers(1).output_limit(4096), echo_view);
    let mut client = connect_narrow(addr(&handle));
    let mut writer = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for place in (0..COUNT).step_by(1 << 16) {
            writer.write_all(&bytes_at(place, 1 << 16)).unwrap();
        }
        finish(&writer);
    });
    until(&handle, "it waits for its client", |stats| {
        stats.bytes_in > 0 && (stats.active, stats.queued) == (0, 0)
    });
    let mut other = connect(addr(&handle));
    other.write_all(b"hello\n").unwrap();
    assert_eq!(answer(&mut other), "hello");
    drop(other);
    assert!(handle.stats().bytes_in < COUNT as u64);
    read_pattern(&mut client, COUNT);
    sender.join().unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    stop(&handle);
}

/// A client that sends without a pause has turns, as all others have.
#[test]
fn a_loop_until_would_block_takes_turns() {
    const COUNT: usize = 4 << 20;
    let most = Arc::new(AtomicUsize::new(0));
    let read = Arc::clone(&most);
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        let (mut bytes, mut total) = (vec![0; 64 * 1024], 0);
        loop {
            // The socket is never empty when it is read.
            eventually("something has arrived", || {
                let socket = socket2::SockRef::from(&*conn);
                let has_arrived = socket.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok();
                has_arrived || !conn.buffer().is_empty()
            });
            let count = conn.nonblocking().read(&mut bytes)?;
            total += count;
            read.fetch_max(total, SeqCst);
            if count == 0 {
                return Ok(Next::Close);
            }
        }
    });
    let mut client = connect(addr(&handle));
    for place in (0..COUNT).step_by(1 << 16) {
        client.write_all(&bytes_at(place, 1 << 16)).unwrap();
    }
    finish(&client);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(handle.stats().bytes_in, COUNT as u64);
    let most = most.load(SeqCst);
    assert!(most <= 384 << 10, "{most} bytes in one call");
    stop(&handle);
}
