//! What code for std's sockets meets here on its first day: addresses, options, a reader and a writer, a socket that is
//! taken out, errors of any type, and errors as `main` prints them.

mod support;

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, AsSocket};
use std::thread;

use crossbeam_channel::unbounded;
use handover::{Addr, Bind, Connection, Handle, Listener, Next, Server};
use socket2::SockRef;

use support::{
    LIMIT, addr, answer, ask, assert_closed, connect, finish, keep_log, lines, server, settings,
    start, stop, until, wait_logged,
};
#[cfg(unix)]
use support::{socket_path, unix};

/// Says where the client is, and where it has come to, as `TcpStream` says it.
fn whereabouts(conn: &mut Connection) -> io::Result<Next> {
    let text = match (conn.peer_addr(), conn.local_addr()) {
        (Ok(peer), Ok(local)) => format!("{}:{} at {local}", peer.ip(), peer.port()),
        (Err(peer), Err(local)) => format!("{:?} {:?}", peer.kind(), local.kind()),
        (peer, local) => format!("{peer:?} {local:?}"),
    };
    let (peer, listener) = (conn.peer().clone(), conn.listener_addr().clone());
    writeln!(conn, "{text}, {peer} at {listener}")?;
    Ok(Next::Close)
}

fn come(to: SocketAddr) -> (String, String) {
    let mut client = connect(to);
    client.write_all(b"x").unwrap();
    (
        client.local_addr().unwrap().to_string(),
        answer(&mut client),
    )
}

#[test]
fn a_connection_knows_both_addresses_and_never_a_wildcard() {
    let builder = settings().listen(("0.0.0.0", 0));
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(unix(&path));
    let handle = start(builder, whereabouts);
    let port = addr(&handle).port();
    for last in [1, 2] {
        let at = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), port));
        let (own, text) = come(at);
        assert_eq!(text, format!("{own} at {at}, {own} at 0.0.0.0:{port}"));
    }
    #[cfg(unix)]
    {
        let mut local = UnixStream::connect(&path).unwrap();
        local.write_all(b"x").unwrap();
        let text = format!("Unsupported Unsupported, unix:(unnamed) at {}", unix(&path));
        assert_eq!(answer(&mut local), text);
    }
    stop(&handle);
}

/// A client of IPv4 looks the same on a listener of both families.
#[test]
fn both_addresses_are_of_the_clients_family() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return eprintln!("SKIPPED: this machine has no IPv6");
    }
    let handle = start(settings().listen("[::]:0"), whereabouts);
    let port = addr(&handle).port();
    for at in ["127.0.0.1".parse().unwrap(), Ipv6Addr::LOCALHOST.into()] {
        let at = SocketAddr::new(at, port);
        let (own, text) = come(at);
        let ip = own.trim_matches(['[', ']']).replace("]:", ":");
        assert_eq!(text, format!("{ip} at {at}, {own} at [::]:{port}"));
    }
    stop(&handle);
}

#[test]
fn every_form_of_an_address_that_std_takes_is_listened_on() {
    let four = Ipv4Addr::LOCALHOST;
    let own = TcpListener::bind((four, 0)).unwrap();
    let own_addr = own.local_addr().unwrap();
    let binds = [
        Bind::from("localhost:0"),
        ("localhost", 0).into(),
        ("localhost".to_owned(), 0).into(),
        ("127.0.0.1", 0).into(),
        (four, 0).into(),
        (std::net::IpAddr::from(four), 0).into(),
        std::net::SocketAddrV4::new(four, 0).into(),
        "localhost:0".parse().unwrap(),
        own.into(),
    ];
    let builder = binds
        .into_iter()
        .fold(settings(), |builder, bind| builder.listen(bind));
    let handle = start(builder, lines);
    let addrs = handle.local_addrs();
    assert_eq!(addrs[8], Addr::Ip(own_addr));
    for at in addrs {
        let at = at.as_ip().unwrap();
        assert_eq!(at.ip(), four, "IPv4 comes first");
        ask(&mut connect(at), "hello");
    }
    stop(&handle);
}

#[test]
fn without_a_host_all_addresses_are_listened_on() {
    let listener = Listener::bind(":0").unwrap();
    let at = listener.local_addr().unwrap();
    assert!(at.ip().is_unspecified(), "{at}");
    let handle = start(settings().listener(listener), lines);
    ask(
        &mut connect((Ipv4Addr::LOCALHOST, at.port()).into()),
        "four",
    );
    if at.is_ipv6() && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        ask(&mut connect((Ipv6Addr::LOCALHOST, at.port()).into()), "six");
    }
    stop(&handle);
}

/// The options of the `Bind` apply to the connections of a listener that was bound before.
#[test]
fn a_listener_of_std_is_taken_with_its_queue_and_closed_with_the_server() {
    let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = own.local_addr().unwrap();
    let mut early = connect(at);
    let bind = Bind::from(own).name("mine").speaks_first(true);
    let handle = start(settings().listen(bind), |conn: &mut Connection| {
        let (name, nodelay) = (conn.listener_name().to_owned(), conn.nodelay()?);
        writeln!(conn, "{name} {nodelay}")?;
        Ok(Next::Close)
    });
    assert_eq!(answer(&mut early), "mine true");
    stop(&handle);
    assert!(
        TcpStream::connect(at).is_err(),
        "no descriptor of the listener is left"
    );
}

#[test]
fn options_are_set_by_the_connection_or_by_its_descriptor() {
    let builder = server();
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(unix(&path));
    let handle = start(builder, |conn: &mut Connection| {
        let before = conn.nodelay()?;
        conn.set_nodelay(false)?;
        #[cfg(unix)]
        let raw = conn.as_raw_fd() == conn.as_fd().as_raw_fd();
        #[cfg(windows)]
        let raw = conn.as_raw_socket() == conn.as_socket().as_raw_socket();
        let ttl = SockRef::from(&*conn).set_ttl_v4(7).is_ok();
        let after = conn.nodelay()?;
        writeln!(conn, "{before} {after} {raw} {ttl}")?;
        Ok(Next::Close)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"x").unwrap();
    assert_eq!(answer(&mut client), "true false true true");
    #[cfg(unix)]
    {
        let mut local = UnixStream::connect(&path).unwrap();
        local.write_all(b"x").unwrap();
        assert_eq!(answer(&mut local), "true true true false");
    }
    stop(&handle);
}

/// Code that peeks until there is enough, as it does with std.
#[test]
fn peek_shows_what_has_arrived_and_consumes_nothing() {
    let (peeked, was_peeked) = unbounded();
    let handle = start(server(), move |conn: &mut Connection| {
        let mut head = [0; 4];
        let mut last = 0;
        while last < 4 {
            let count = conn.peek(&mut head)?;
            if count != last {
                peeked.send(count).unwrap();
            }
            last = count;
        }
        let mut all = String::new();
        conn.read_to_string(&mut all)?;
        let at_end = conn.peek(&mut head)?;
        writeln!(conn, "{} {all} {at_end}", String::from_utf8_lossy(&head))?;
        Ok(Next::Close)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"ab").unwrap();
    assert_eq!(was_peeked.recv_timeout(LIMIT), Ok(2));
    client.write_all(b"cdef").unwrap();
    assert_eq!(was_peeked.recv_timeout(LIMIT), Ok(4));
    finish(&client);
    assert_eq!(answer(&mut client), "abcd abcdef 0");
    stop(&handle);
}

/// A legacy loop, with what the server has read ahead before and after it.
#[test]
fn a_reader_and_a_writer_serve_a_loop_and_give_back_what_they_have_not_consumed() {
    let handle = start(server(), |conn: &mut Connection| {
        let first = conn.take_line(100)?;
        let (mut reader, mut writer) = conn.split();
        writeln!(writer, "{first:?}")?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line != "end\n" {
            write!(writer, "you said: {line}")?;
            line.clear();
        }
        let mut two = [0; 2];
        reader.read_exact(&mut two)?;
        drop((reader, writer));
        let rest = conn.take_line_bytes(100)?;
        writeln!(conn, "{two:?} {rest:?}")?;
        Ok(Next::Close)
    });
    let mut client = BufReader::new(connect(addr(&handle)));
    client.get_mut().write_all(b"first\none\n").unwrap();
    assert_eq!(answer(client.get_mut()), "Some(\"first\")");
    assert_eq!(answer(client.get_mut()), "you said: one");
    client.get_mut().write_all(b"two\n").unwrap();
    assert_eq!(answer(client.get_mut()), "you said: two");
    client.get_mut().write_all(b"end\nab\xff\r\n").unwrap();
    assert_eq!(answer(client.get_mut()), "[97, 98] Some([255])");
    stop(&handle);
}

#[test]
fn a_line_as_bytes_need_not_be_text_and_has_the_same_limit() {
    let handle = start(server(), |conn: &mut Connection| {
        match conn.take_line_bytes(8)? {
            Some(line) => writeln!(conn, "{line:?}")?,
            None if conn.at_eof() => return Ok(Next::Close),
            None => return Ok(Next::More),
        }
        Ok(Next::Park)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"\xfe\r\n\n").unwrap();
    assert_eq!(answer(&mut client), "[254]");
    assert_eq!(answer(&mut client), "[]");
    client.write_all(b"12345678").unwrap();
    assert_closed(&mut client);
    until(&handle, "it is gone", |stats| stats.live == 0);
    assert_eq!(handle.stats().service_errors, 0, "the client's fault");
    stop(&handle);
}

/// Lines of any length: nothing is lost or divided that fits.
#[test]
fn a_long_line_is_taken_in_pieces_and_a_last_one_needs_no_end() {
    let handle = start(
        server().input_limit(4096),
        |conn: &mut Connection| match conn.take_up_to(b'\n', usize::MAX) {
            Some(piece) if piece == b"short\n" => {
                while let Some(piece) = conn.take_up_to(b'\n', 4) {
                    writeln!(conn, "{:?}", String::from_utf8_lossy(&piece))?;
                }
                Ok(Next::Again)
            }
            Some(piece) => {
                writeln!(conn, "{}", piece.len())?;
                Ok(Next::incomplete(conn))
            }
            None => Ok(Next::incomplete(conn)),
        },
    );
    let mut client = connect(addr(&handle));
    client.write_all(b"short\n1234\n123\n\n12345678").unwrap();
    for piece in ["1234", "\\n", "123\\n", "\\n", "1234", "5678"] {
        assert_eq!(answer(&mut client), format!("\"{piece}\""));
    }
    // Longer than what is buffered.
    client.write_all(&[b'x'; 4096]).unwrap();
    assert_eq!(answer(&mut client), "4096");
    client.write_all(b"end").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut client), "3");
    assert_closed(&mut client);
    stop(&handle);
}

/// What was read ahead comes first, and then the socket: for code that has `Read + Write` as its only interface.
#[test]
fn a_detached_socket_reads_and_writes_by_itself() {
    fn legacy(stream: &mut (impl Read + Write)) -> io::Result<()> {
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes[..3])?;
        stream.read_exact(&mut bytes[3..])?;
        stream.write_all(&bytes)?;
        stream.flush()
    }
    let builder = server();
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(unix(&path));
    let (give, given) = unbounded();
    let handle = start(builder, move |conn: &mut Connection| {
        give.send(conn.detach()?).unwrap();
        Ok(Next::Close)
    });
    let serve_one = |client: &mut dyn ReadWrite, is_tcp| {
        client.write_all(b"ahead").unwrap();
        let mut socket = given.recv_timeout(LIMIT).unwrap();
        assert_eq!(socket.tcp().is_some(), is_tcp);
        assert_eq!(socket.unread(), b"ahead");
        thread::scope(|scope| {
            let served = scope.spawn(move || legacy(&mut socket).map(|()| socket));
            client.write_all(b"later").unwrap();
            let mut bytes = [0; 10];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"aheadlater");
            let (stream, unread) = served.join().unwrap().unwrap().into_parts();
            assert!(unread.is_empty());
            drop(stream.try_clone().unwrap());
        });
    };
    serve_one(&mut connect(addr(&handle)), true);
    #[cfg(unix)]
    serve_one(&mut UnixStream::connect(&path).unwrap(), false);
    stop(&handle);
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Only errors of the application count: a client cannot fill the log with warnings by leaving.
#[test]
fn errors_of_any_type_are_counted_and_logged_but_not_those_of_the_client() {
    keep_log();
    fn serve(conn: &mut Connection) -> Result<Next, Box<dyn Error>> {
        let Some(line) = conn.take_line(11)? else {
            return Ok(Next::More);
        };
        let number: u32 = line.parse()?;
        writeln!(
            conn,
            "{}",
            number.checked_add(1).ok_or("there is no next number")?
        )?;
        match number {
            2 => std::fs::File::open("/nowhere").map(drop)?,
            3 => conn.read_exact(&mut [0])?,
            _ => {}
        }
        Ok(Next::Park)
    }
    let handle = start(server(), handover::service(serve));
    let fails = |line: &str, text: &str| {
        let mut client = connect(addr(&handle));
        client.write_all(line.as_bytes()).unwrap();
        finish(&client);
        // A reset, where input is left.
        let _ = client.read_to_end(&mut Vec::new());
        until(&handle, "it is gone", |stats| stats.live == 0);
        wait_logged(text)
    };
    let mut client = connect(addr(&handle));
    client.write_all(b"1\n").unwrap();
    assert_eq!(answer(&mut client), "2");
    drop(client);
    for (line, counted, text) in [
        (
            "4294967295\n",
            1,
            "the service failed: there is no next number",
        ),
        ("2\n", 2, "(os error 2)"),
        ("x\n", 3, "invalid digit found in string"),
        ("3\n", 3, "failed to fill whole buffer"),
        ("01234567890\n", 3, "longer than 11 bytes"),
    ] {
        let record = fails(line, text);
        let level = record.level;
        let is_warning = level == log::Level::Warn;
        assert_eq!(
            handle.stats().service_errors,
            counted,
            "{line:?} {record:?}"
        );
        assert_eq!(
            is_warning,
            line != "3\n" && !line.starts_with("01"),
            "{record:?}"
        );
    }
    stop(&handle);
}

/// `fn main() -> Result<(), Box<dyn Error>>` prints `{:?}` of the error.
#[test]
fn errors_are_printed_as_sentences() {
    let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = own.local_addr().unwrap();
    let build = |bind: Bind| {
        let built = Server::builder().listen(bind.bind_attempts(1)).build(lines);
        Box::<dyn Error>::from(built.map(drop).unwrap_err())
    };
    // EADDRINUSE, and WSAEADDRINUSE.
    let taken = io::Error::from_raw_os_error(if cfg!(windows) { 10048 } else { 98 });
    for (error, text) in [
        (build(at.into()), format!("cannot listen on {at}: {taken}")),
        (
            build("localhost".into()),
            "bad address \"localhost\": a port is missing, as in 127.0.0.1:8080".to_owned(),
        ),
        (
            Server::builder().build(lines).map(drop).unwrap_err().into(),
            "the server has no address to listen on".to_owned(),
        ),
        (
            Server::builder()
                .workers(0)
                .build(lines)
                .map(drop)
                .unwrap_err()
                .into(),
            "workers must be at least 1".to_owned(),
        ),
        (
            Bind::from(at)
                .bind_attempts(1)
                .bind()
                .map(drop)
                .unwrap_err()
                .into(),
            format!("cannot listen on {at}: {taken}"),
        ),
    ] {
        assert_eq!(format!("{error:?}"), text);
        assert_eq!(error.to_string(), text);
    }
    let handle: Handle = start(server(), lines);
    let error = handle.restart().unwrap_err();
    assert_eq!(format!("{error:?}"), error.to_string());
    stop(&handle);
}

/// A count of bytes on a line, then the bytes: as a program with a thread for each connection reads it.
fn parse(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(count) = line.strip_suffix('\n') else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let mut body = vec![0; count.parse().map_err(io::Error::other)?];
    reader.read_exact(&mut body)?;
    Ok(body)
}

#[test]
fn a_parser_that_reads_takes_whole_messages_only() {
    let handle = start(server().workers(1), |conn: &mut Connection| {
        while let Some(body) = conn.take_with(|reader| parse(reader))? {
            writeln!(conn, "{}", String::from_utf8_lossy(&body))?;
        }
        Ok(Next::incomplete(conn))
    });
    let mut client = connect(addr(&handle));
    let mut read = 0;
    // Two messages and a part of the next, then its rest in pieces.
    for (text, answers) in [
        ("5\nhello0\n11\nhello", vec!["hello", ""]),
        (" wor", vec![]),
        ("ld2", vec!["hello world"]),
        ("\nok", vec!["ok"]),
    ] {
        client.write_all(text.as_bytes()).unwrap();
        read += text.len() as u64;
        for expected in answers {
            assert_eq!(answer(&mut client), expected);
        }
        until(&handle, "it is served", |stats| {
            (stats.bytes_in, stats.active, stats.queued) == (read, 0, 0)
        });
    }
    // What is no message ends the connection. It is the client's fault.
    client.write_all(b"x\n").unwrap();
    assert_closed(&mut client);
    assert_eq!(handle.stats().service_errors, 0);
    stop(&handle);
}
