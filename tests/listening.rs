//! Listening: addresses of every kind, what is bound and what is refused, and what happens to sockets and files.

mod support;

use std::error::Error;
#[cfg(unix)]
use std::fs;
#[cfg(target_os = "linux")]
use std::io::Read;
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
#[cfg(unix)]
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
#[cfg(target_os = "linux")]
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

#[cfg(unix)]
use handover::Addr;
use handover::{Bind, Connection, Listener, Next};
use parking_lot::Mutex;
use socket2::SockRef;
#[cfg(unix)]
use socket2::{Domain, Socket, Type};

use support::{
    LIMIT, addr, answer, as_child, ask, child_command, connect, door, keep_log, lines, server,
    settings, start, stop, wait_logged,
};
#[cfg(unix)]
use support::{socket_path, unix};

/// Says on which listener the client has come, and from where.
fn whereabouts(conn: &mut Connection) -> io::Result<Next> {
    if conn.take_line(64)?.is_none() {
        return Ok(Next::More);
    }
    let (name, local) = (
        conn.listener_name().to_owned(),
        conn.listener_addr().to_string(),
    );
    writeln!(conn, "{name} at {local}")?;
    Ok(Next::Park)
}

fn has_v6() -> bool {
    let has = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        eprintln!("SKIPPED: this machine has no IPv6");
    }
    has
}

#[test]
fn port_0_is_learned_before_and_after_the_start() {
    let built = server().build(lines).unwrap();
    let before = built.local_addrs();
    let handle = built.start().unwrap();
    assert_eq!(handle.local_addrs(), before);
    let at = addr(&handle);
    assert_eq!(at.ip(), Ipv4Addr::LOCALHOST);
    assert_ne!(at.port(), 0);
    ask(&mut connect(at), "hello");
    stop(&handle);
}

#[test]
fn an_ipv6_listener_takes_ipv4_clients_unless_it_is_only_v6() {
    if !has_v6() {
        return;
    }
    let listener = Listener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = Bind::new(format!("0.0.0.0:{port}"))
        .bind_attempts(1)
        .bind()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let handle = start(settings().listener(listener), lines);
    ask(&mut connect((Ipv6Addr::LOCALHOST, port).into()), "six");
    ask(&mut connect((Ipv4Addr::LOCALHOST, port).into()), "four");
    stop(&handle);

    // Somebody else may have the IPv4 port by chance, but not time after time.
    let both = (0..10).any(|_| {
        let six = Bind::new("[::]:0").only_v6(true).bind().unwrap();
        let port = six.local_addr().unwrap().port();
        let four = Bind::new(format!("0.0.0.0:{port}")).bind_attempts(1);
        let Ok(four) = four.bind() else { return false };
        let builder = settings().listener(four).listener(six);
        let handle = start(builder, whereabouts);
        for (host, name) in [
            (Ipv4Addr::LOCALHOST.into(), format!("0.0.0.0:{port}")),
            (Ipv6Addr::LOCALHOST.into(), format!("[::]:{port}")),
        ] {
            let mut client = connect(SocketAddr::new(host, port));
            client.write_all(b"where?\n").unwrap();
            assert_eq!(answer(&mut client), format!("{name} at {name}"));
        }
        stop(&handle);
        true
    });
    assert!(both, "an only-v6 listener keeps the IPv4 port");
}

#[test]
fn every_connection_knows_its_listener() {
    let public = Bind::new("127.0.0.1:0").name("public");
    let builder = server().listen(public);
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(Bind::new(unix(&path)).name("local"));
    let handle = start(builder, whereabouts);
    let addrs = handle.local_addrs();

    // Without a name, the address is the name.
    for (index, name) in [(0, addrs[0].to_string()), (1, "public".to_owned())] {
        let mut client = connect(addrs[index].as_ip().unwrap());
        client.write_all(b"where?\n").unwrap();
        assert_eq!(answer(&mut client), format!("{name} at {}", addrs[index]));
    }
    #[cfg(unix)]
    {
        assert_eq!(addrs[2], Addr::Unix(Some(path.clone())));
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.write_all(b"where?\n").unwrap();
        assert_eq!(answer(&mut client), format!("local at {}", unix(&path)));
    }
    stop(&handle);
}

#[test]
fn peers_are_known_by_their_address() {
    let peer = |conn: &mut Connection| {
        let peer = conn.peer().to_string();
        conn.consume(conn.buffer().len());
        writeln!(conn, "{peer}")?;
        Ok(Next::Close)
    };
    let builder = server();
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(unix(&path));
    let handle = start(builder, peer);
    let mut client = connect(addr(&handle));
    client.write_all(b"who?").unwrap();
    let own = client.local_addr().unwrap().to_string();
    assert_eq!(answer(&mut client), own);
    #[cfg(unix)]
    {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"who?").unwrap();
        assert_eq!(answer(&mut client), "unix:(unnamed)");
    }
    stop(&handle);
}

// ---- Unix sockets' files ----

#[cfg(unix)] // Unix sockets
#[test]
fn a_stale_socket_is_replaced_and_the_file_goes_with_the_server() {
    let (_dir, path) = socket_path();
    // The standard library leaves the file behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());

    let builder = settings().listen(Bind::new(unix(&path)).unix_mode(0o620));
    let handle = start(builder, lines);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o620);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    ask(&mut client, "hello");
    drop(client);
    stop(&handle);
    assert!(!path.exists(), "the file is still there after the stop");
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_server_that_is_never_started_removes_its_file() {
    let (_dir, path) = socket_path();
    let server = settings().listen(unix(&path)).build(lines).unwrap();
    assert!(path.exists());
    drop(server);
    assert!(!path.exists());
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_live_servers_socket_is_refused_and_left_alone() {
    let (_dir, path) = socket_path();
    let handle = start(settings().listen(unix(&path)), lines);
    let bind = Bind::new(unix(&path))
        .bind_attempts(2)
        .bind_interval(Duration::from_millis(1));
    let error = bind.bind().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(error.attempts(), 2);
    assert!(error.to_string().contains(&unix(&path)), "{error}");
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    ask(&mut client, "still there");
    drop(client);
    stop(&handle);
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_live_server_whose_backlog_is_full_is_live() {
    let (_dir, path) = socket_path();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    socket.listen(0).unwrap();
    let clients: Vec<Socket> = (0..16)
        .map(|_| {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&socket2::SockAddr::unix(&path).unwrap());
            client
        })
        .collect();
    let error = Bind::new(unix(&path)).bind_attempts(1).bind().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(path.exists());
    drop(clients);
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_foreign_file_is_left_alone() {
    let (_dir, path) = socket_path();
    fs::write(&path, "precious").unwrap();
    let error = Bind::new(unix(&path)).bind().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(error.attempts(), 1, "a file does not go away by itself");
    assert!(error.source().is_some());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    // Nor is one that a link leads to.
    let link = path.with_file_name("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Bind::new(unix(&link)).bind().is_err());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_file_that_took_the_sockets_place_is_left_alone() {
    let (_dir, path) = socket_path();
    let handle = start(settings().listen(unix(&path)), lines);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    stop(&handle);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    // The same with another server's socket.
    fs::remove_file(&path).unwrap();
    let handle = start(settings().listen(unix(&path)), lines);
    fs::remove_file(&path).unwrap();
    let successor = start(settings().listen(unix(&path)), lines);
    stop(&handle);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    ask(&mut client, "hello");
    drop(client);
    stop(&successor);
    assert!(!path.exists());
}

// ---- listeners that are there already ----

#[test]
fn a_listener_from_std_is_served() {
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = own.local_addr().unwrap();
    let listener = Listener::from_std(own, "given").unwrap();
    assert_eq!(listener.name(), "given");
    assert_eq!(listener.local_addr().unwrap(), at);
    let handle = start(settings().listener(listener), whereabouts);
    let mut client = connect(at);
    client.write_all(b"where?\n").unwrap();
    assert_eq!(answer(&mut client), format!("given at {at}"));
    stop(&handle);
}

/// The options of a listening TCP socket, as far as `socket2` knows them.
#[cfg(target_os = "linux")]
fn socket_options(socket: SockRef<'_>) -> Vec<(&'static str, String)> {
    fn text(value: io::Result<impl std::fmt::Debug>) -> String {
        format!("{:?}", value.map_err(|error| error.kind()))
    }
    vec![
        ("broadcast", text(socket.broadcast())),
        ("keepalive", text(socket.keepalive())),
        ("linger", text(socket.linger())),
        ("out_of_band_inline", text(socket.out_of_band_inline())),
        ("reuse_address", text(socket.reuse_address())),
        ("reuse_port", text(socket.reuse_port())),
        ("recv_buffer_size", text(socket.recv_buffer_size())),
        ("send_buffer_size", text(socket.send_buffer_size())),
        ("read_timeout", text(socket.read_timeout())),
        ("write_timeout", text(socket.write_timeout())),
        ("tcp_keepalive_time", text(socket.tcp_keepalive_time())),
        (
            "tcp_keepalive_interval",
            text(socket.tcp_keepalive_interval()),
        ),
        (
            "tcp_keepalive_retries",
            text(socket.tcp_keepalive_retries()),
        ),
        ("tcp_nodelay", text(socket.tcp_nodelay())),
        ("tcp_user_timeout", text(socket.tcp_user_timeout())),
        ("tcp_quickack", text(socket.tcp_quickack())),
        ("tcp_mss", text(socket.tcp_mss())),
        ("ttl", text(socket.ttl_v4())),
        ("tos", text(socket.tos_v4())),
        ("mark", text(socket.mark())),
        ("priority", text(socket.priority())),
    ]
}

/// Sends whether a connection has TCP_NODELAY and keep-alive probes.
#[cfg(target_os = "linux")]
fn nodelay_and_keepalive(
    send: crossbeam_channel::Sender<(bool, bool)>,
) -> impl Fn(&mut Connection) -> io::Result<Next> {
    move |conn| {
        let detached = conn.detach()?;
        let socket = SockRef::from(detached.tcp().expect("this is a TCP server"));
        send.send((socket.tcp_nodelay()?, socket.keepalive()?))
            .unwrap();
        Ok(Next::Close)
    }
}

#[cfg(target_os = "linux")] // Linux's options
#[test]
fn the_options_of_a_given_listener_stay() {
    for (own_nodelay, wants, expected) in [
        (false, true, true),
        (false, false, false),
        (true, true, true),
        // On Linux, a connection has the options of its listener.
        (true, false, true),
    ] {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&own).set_tcp_nodelay(own_nodelay).unwrap();
        let (at, other) = (own.local_addr().unwrap(), own.try_clone().unwrap());
        let before = socket_options(SockRef::from(&other));
        let listener = Listener::from_std(own, "given").unwrap().nodelay(wants);
        let (send, received) = crossbeam_channel::unbounded();
        let handle = start(settings().listener(listener), nodelay_and_keepalive(send));
        let mut client = connect(at);
        client.write_all(b"x").unwrap();
        let nodelay = received.recv_timeout(LIMIT).unwrap().0;
        assert_eq!(nodelay, expected, "{own_nodelay} {wants}");
        assert_eq!(socket_options(SockRef::from(&other)), before);
        stop(&handle);
        assert_eq!(socket_options(SockRef::from(&other)), before);
    }
}

#[cfg(unix)] // Unix sockets
#[test]
fn the_file_of_a_given_unix_listener_stays() {
    let (_dir, path) = socket_path();
    let own = UnixListener::bind(&path).unwrap();
    let listener = Listener::from_descriptor(own, "given").unwrap();
    assert_eq!(listener.addr().as_path(), Some(&*path));
    let handle = start(settings().listener(listener), lines);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    ask(&mut client, "hello");
    drop(client);
    stop(&handle);
    assert!(path.exists(), "it was not ours to remove");
}

#[cfg(unix)] // a socket as a descriptor
#[test]
fn a_given_socket_that_does_not_listen_is_refused() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let error = Listener::from_descriptor(socket, "deaf").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    assert!(Listener::from_descriptor(socket, "datagrams").is_err());
}

#[cfg(target_os = "linux")] // procfs(5)
#[test]
fn a_given_listener_is_not_inherited_either() {
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&own).set_cloexec(false).unwrap();
    let fd = own.as_raw_fd();
    let listener = Listener::from_std(own, "given").unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    assert_ne!(flags & 0o2_000_000, 0, "O_CLOEXEC is not set: {info}");
    drop(listener);
}

// ---- failures ----

#[test]
fn a_bind_error_says_where_how_often_and_why() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap();
    let bind = |attempts| {
        Bind::from(at)
            .bind_attempts(attempts)
            .bind_interval(Duration::from_millis(1))
    };
    let error = bind(3).bind().unwrap_err();
    assert_eq!(error.attempts(), 3);
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let text = error.to_string();
    let cause = error.source().unwrap().to_string();
    for part in [&*at.to_string(), "tried 3 times", &cause] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let cause = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);

    // The builder passes it on, and a single attempt is not worth a word.
    let error = settings().listen(bind(1)).build(lines).unwrap_err();
    assert!(error.to_string().contains(&at.to_string()), "{error}");
    assert!(!error.to_string().contains("times"), "{error}");
}

#[test]
fn a_port_that_gets_free_meanwhile_is_taken() {
    keep_log();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap();
    std::thread::scope(|scope| {
        let bind = Bind::from(at)
            .bind_attempts(10_000)
            .bind_interval(Duration::from_millis(1));
        let binding = scope.spawn(move || bind.bind());
        wait_logged(&format!("{at} is in use, attempt 2"));
        drop(other);
        let listener = binding.join().unwrap().unwrap();
        assert_eq!(listener.local_addr().unwrap(), at);
    });
}

#[test]
fn a_bad_address_is_named() {
    for bad in ["web=localhost:80", "127.0.0.1", "::1:80", "unix:", ""] {
        let error = settings().listen(bad).build(lines).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("{bad:?}")), "{bad}: {text}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }
    let error = Bind::new("unix:/no/such/directory/socket").bind();
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_failed_bind_leaves_none_of_the_listeners() {
    let (_dir, path) = socket_path();
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = first.local_addr().unwrap();
    drop(first);
    let built = settings()
        .listen(at)
        .listen(unix(&path))
        .listen("nonsense")
        .build(lines);
    assert!(built.is_err());
    assert!(!path.exists());
    Bind::from(at).bind().unwrap();
}

// ---- options ----

#[test]
fn the_options_reach_the_sockets() {
    let (send, received) = crossbeam_channel::unbounded();
    let options = move |conn: &mut Connection| {
        let detached = conn.detach()?;
        let socket = SockRef::from(detached.tcp().expect("this is a TCP server"));
        // socket2 does not tell the time on Windows.
        #[cfg(unix)]
        let idle = || socket.tcp_keepalive_time().unwrap();
        #[cfg(windows)]
        let idle = || Duration::from_secs(77);
        let idle = socket.keepalive()?.then(idle);
        send.send((socket.tcp_nodelay()?, idle)).unwrap();
        Ok(Next::Close)
    };
    let all = Bind::new("127.0.0.1:0")
        .nodelay(false)
        .keepalive(Duration::from_secs(77))
        .backlog(5)
        .fast_open(16);
    let handle = start(server().listen(all), options);
    let expected = [(true, None), (false, Some(Duration::from_secs(77)))];
    for (at, expected) in handle.local_addrs().iter().zip(expected) {
        let mut client = connect(at.as_ip().unwrap());
        client.write_all(b"x").unwrap();
        assert_eq!(received.recv_timeout(LIMIT).unwrap(), expected);
    }
    stop(&handle);
}

#[cfg(target_os = "linux")] // TCP_DEFER_ACCEPT
#[test]
fn accept_is_deferred_until_bytes_come() {
    let bind = Bind::new("127.0.0.1:0").defer_accept(true);
    let handle = start(settings().listen(bind), lines);
    let silent = connect(addr(&handle));
    ask(&mut connect(addr(&handle)), "hello");
    // Had both been accepted, the first would have been the first.
    assert_eq!(handle.stats().accepted, 1);
    drop(silent);
    stop(&handle);
}

#[cfg(unix)] // SO_REUSEPORT
#[test]
fn a_port_is_shared_only_by_those_who_say_so() {
    let shared = |at: SocketAddr| Bind::from(at).reuse_port(true).bind_attempts(1).bind();
    let first = shared("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = first.local_addr().unwrap();
    let second = shared(at).unwrap();
    assert!(Bind::from(at).bind_attempts(1).bind().is_err());
    drop((first, second));
}

#[test]
fn a_restarted_server_gets_its_port_back_at_once() {
    // The side that closes first is left with TIME_WAIT, which must not keep the port.
    let hang_up = |_: &mut Connection| Ok(Next::Close);
    let handle = start(server(), hang_up);
    let at = addr(&handle);
    for _ in 0..10 {
        let mut client = connect(at);
        client.write_all(b"x").unwrap();
        support::assert_closed(&mut client);
    }
    stop(&handle);
    // A subprocess that another test is just starting may have the old listener until it calls exec, so that the
    // first attempt may fail; but TIME_WAIT would outlast them all.
    let handle = start(settings().listen(at), lines);
    ask(&mut connect(at), "again");
    stop(&handle);
}

// ---- what subprocesses inherit ----

#[cfg(target_os = "linux")] // procfs(5)
#[test]
fn a_handlers_subprocess_inherits_nothing() {
    // In a process of its own, for other tests have sockets too.
    const TEST: &str = "a_handlers_subprocess_inherits_nothing";
    let Some(parent) = as_child(TEST) else {
        let child = support::Child::of(TEST);
        assert_eq!(child.hear(), "done");
        return child.end();
    };
    let (_dir, path) = socket_path();
    // Whoever runs the tests may have left some to this process, and so to its children.
    let before = listed_by_a_subprocess().unwrap();
    let list = |conn: &mut Connection| {
        conn.write_all(listed_by_a_subprocess()?.as_bytes())?;
        Ok(Next::Close)
    };
    let handle = start(server().listen(unix(&path)), list);
    // One that is parked, and one on the other listener.
    let parked = connect(addr(&handle));
    let local = UnixStream::connect(&path).unwrap();
    support::until(&handle, "both are parked", |stats| stats.parked == 2);
    let mut client = connect(addr(&handle));
    client.write_all(b"list").unwrap();
    let mut listed = String::new();
    client.read_to_string(&mut listed).unwrap();
    assert!(listed.contains("fd/0 "), "{listed}");
    for line in listed.lines() {
        let inherited = line.contains("socket:") || line.contains("anon_inode");
        assert!(!inherited || before.contains(line), "{line}");
    }
    drop((parked, local, client));
    stop(&handle);
    parent.say("done");
}

#[cfg(target_os = "linux")]
fn listed_by_a_subprocess() -> io::Result<String> {
    let script = r#"for fd in /proc/self/fd/*; do echo "$fd $(readlink $fd)"; done"#;
    let shell = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&shell.stdout).into_owned())
}

#[test]
fn a_subprocess_that_outlives_the_server_does_not_keep_the_port() {
    const TEST: &str = "a_subprocess_that_outlives_the_server_does_not_keep_the_port";
    if let Some(parent) = as_child(TEST) {
        while parent.hear().is_some() {}
        return;
    }
    let (keeper, at_door) = door();
    let left = Arc::new(Mutex::new(Vec::new()));
    let spawned = Arc::clone(&left);
    let spawn = move |_: &mut Connection| {
        let child = child_command(TEST)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        spawned.lock().push(child);
        at_door.pass();
        Ok(Next::Close)
    };
    let handle = start(server(), spawn);
    let at = addr(&handle);
    let mut client = connect(at);
    client.write_all(b"x").unwrap();
    keeper.wait();
    keeper.let_one_in();
    support::assert_closed(&mut client);
    drop(client);
    stop(&handle);

    Bind::from(at).bind().unwrap();
    // It ends with its input.
    let mut child: std::process::Child = left.lock().pop().unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// The standard library lets a child have every handle that may be inherited.
#[cfg(windows)]
#[test]
fn a_handlers_subprocess_inherits_no_socket() {
    // In a process of its own, for other tests have sockets too.
    const TEST: &str = "a_handlers_subprocess_inherits_no_socket";
    let Some(parent) = as_child(TEST) else {
        let mut child = support::Child::of(TEST);
        assert_eq!(child.ask("serve"), "done");
        return child.end();
    };
    if parent.hear().as_deref() == Some("count") {
        return parent.say(support::sockets().len());
    }
    let inherited = || {
        let mut child = support::Child::of(TEST);
        let count = child.ask("count");
        child.end();
        count
    };
    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&given).set_no_inherit(false).unwrap();
    assert_eq!(inherited(), "1");
    let listener = Listener::from_std(given, "given").unwrap();
    let count = move |conn: &mut Connection| {
        writeln!(conn, "{}", inherited())?;
        Ok(Next::Close)
    };
    let handle = start(server().listener(listener), count);
    let parked = connect(addr(&handle));
    support::until(&handle, "it is parked", |stats| stats.parked == 1);
    let mut client = connect(addr(&handle));
    client.write_all(b"count").unwrap();
    assert_eq!(answer(&mut client), "0");
    drop((parked, client));
    stop(&handle);
    parent.say("done");
}

#[test]
fn a_server_has_no_datagram_sockets() {
    for addr in ["udp:127.0.0.1:0", "unixgram:none.sock"] {
        let service = |_: &mut Connection| Ok(Next::Close);
        let built = handover::Server::builder().listen(addr).build(service);
        let text = built.unwrap_err().to_string();
        assert!(
            text.contains(addr) && text.contains("datagram socket"),
            "{text}"
        );
    }
}
