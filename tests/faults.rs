//! Faults stay where they are: what fails costs the connection or the listener that it belongs to, and nothing else.

mod support;

#[cfg(unix)]
use std::io::IoSlice;
use std::io::{self, BufRead, Read, Write};
#[cfg(unix)]
use std::mem::MaybeUninit;
#[cfg(unix)]
use std::net::Shutdown;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
#[cfg(unix)]
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
#[cfg(unix)]
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use handover::{Bind, Listener};
use handover::{Connection, Next, Overload, Service, Stats, WorkerState};
#[cfg(unix)]
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use socket2::SockRef;
#[cfg(unix)]
use socket2::Socket;

use support::{
    LIMIT, addr, answer, ask, assert_closed, connect, door, keep_log, lines, logged, server,
    settings, start, stop, until,
};
#[cfg(unix)]
use support::{echo, socket_path, unix, wait_logged};

// ---- reads that stop early ----

/// A handler of lines that waits at the door for the line `wait`.
fn lines_and_door(door: &support::Door) -> impl Fn(&mut Connection) -> io::Result<Next> + use<> {
    let door = door.clone();
    move |conn| {
        if conn.buffer() == b"wait\n" {
            door.pass();
        }
        lines(conn)
    }
}

/// Sends bytes of which the last is urgent (tcp(7)): the server gets the others only.
fn send_urgent(client: &TcpStream, bytes: &[u8]) {
    let sent = SockRef::from(client).send_out_of_band(bytes);
    assert_eq!(sent.unwrap(), bytes.len());
}

#[test]
fn bytes_behind_urgent_data_are_served() {
    let (keeper, door) = door();
    let handle = start(server().workers(1), lines_and_door(&door));
    let mut clients: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = connect(addr(&handle));
    for _ in 0..3 {
        // All bytes arrive while the only worker is busy, so that one event reports them.
        other.write_all(b"wait\n").unwrap();
        keeper.wait();
        for client in &mut clients {
            client.write_all(b"be").unwrap();
            send_urgent(client, b"hind!");
            client.write_all(b" it\n").unwrap();
        }
        keeper.let_one_in();
        assert_eq!(answer(&mut other), "wait");
        for client in &mut clients {
            assert_eq!(answer(client), "behind it");
        }
    }
    // Urgent data alone is no message.
    for client in &mut clients {
        send_urgent(client, b"!");
        ask(client, "after");
    }
    drop((clients, other));
    stop(&handle);
}

#[test]
fn a_stop_serves_what_has_arrived_behind_urgent_data() {
    let (keeper, door) = door();
    let handle = start(server().workers(1), lines_and_door(&door));
    let mut clients: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = connect(addr(&handle));
    other.write_all(b"wait\n").unwrap();
    keeper.wait();
    for client in &mut clients {
        send_urgent(client, b"in!");
        client.write_all(b" time\n").unwrap();
    }
    handle.stop(LIMIT);
    keeper.let_one_in();
    assert_eq!(answer(&mut other), "wait");
    for client in &mut clients {
        assert_eq!(answer(client), "in time");
    }
    assert!(handle.join().is_clean());
}

/// Sends bytes together with a descriptor.
#[cfg(unix)]
#[track_caller]
fn send_with_descriptor(client: &UnixStream, bytes: &[u8], descriptor: impl AsFd) {
    let sent = try_send_with_descriptor(client, bytes, descriptor);
    assert_eq!(sent.unwrap(), bytes.len());
}

#[cfg(unix)]
fn try_send_with_descriptor(
    client: &UnixStream,
    bytes: &[u8],
    descriptor: impl AsFd,
) -> rustix::io::Result<usize> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [IoSlice::new(bytes)];
    rustix::net::sendmsg(client, &parts, &mut control, SendFlags::empty())
}

/// A socket whose last close waits for its peer could make a worker wait.
#[cfg(target_os = "linux")] // SO_PASSRIGHTS
#[test]
fn descriptors_are_refused_where_the_system_can_unless_they_are_wanted() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    for is_wanted in [None, Some(false), Some(true)] {
        let (_dir, path) = socket_path();
        let builder = match is_wanted {
            Some(is_wanted) => {
                settings().listen(Bind::new(unix(&path)).unix_descriptors(is_wanted))
            }
            // The options of a listener that the application has stay as they are.
            None => {
                let own = UnixListener::bind(&path).unwrap();
                settings().listener(Listener::from_descriptor(own, "own").unwrap())
            }
        };
        let handle = start(builder, lines);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let is_refused = is_wanted == Some(false) && version >= (6, 16);
        match try_send_with_descriptor(&client, b"one\n", std::io::stdin()) {
            Ok(_) => assert!(!is_refused),
            Err(error) => {
                assert!(is_refused && error == rustix::io::Errno::PERM, "{error}");
                client.write_all(b"one\n").unwrap();
            }
        }
        assert_eq!(answer(&mut client), "one");
        drop(client);
        stop(&handle);
    }
}

#[cfg(unix)] // Unix sockets
#[test]
fn bytes_behind_a_descriptor_are_served_and_the_descriptor_is_closed() {
    let (keeper, door) = door();
    let (_dir, path) = socket_path();
    let builder = settings().listen(Bind::new(unix(&path)).unix_descriptors(true));
    let handle = start(builder.workers(1), lines_and_door(&door));
    let client = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..10).map(|_| client()).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = client();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for _ in 0..3 {
        other.write_all(b"wait\n").unwrap();
        keeper.wait();
        for client in &mut clients {
            send_with_descriptor(client, b"be", &writer);
            send_with_descriptor(client, b"hind", &writer);
            client.write_all(b" it\n").unwrap();
        }
        keeper.let_one_in();
        assert_eq!(answer(&mut other), "wait");
        for client in &mut clients {
            assert_eq!(answer(client), "behind it");
        }
    }
    // The pipe has no writer left.
    drop(writer);
    let mut reader = std::fs::File::from(reader);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    drop((clients, other));
    stop(&handle);
}

#[cfg(unix)] // Unix sockets
#[test]
fn all_bytes_arrive_once_through_reads_that_stop_early() {
    let (_dir, path) = socket_path();
    let local = Bind::new(unix(&path)).unix_descriptors(true);
    let builder = settings().listen("127.0.0.1:0").listen(local);
    let handle = start(builder.workers(2), echo);
    let mut tcp: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    let mut local: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let file = std::fs::File::open("/dev/null").unwrap();
    for round in 0..100 {
        let part = [round as u8; 100];
        for client in &mut tcp {
            client.write_all(&part).unwrap();
            send_urgent(client, b"!");
            client.write_all(&part).unwrap();
        }
        for client in &mut local {
            client.write_all(&part).unwrap();
            send_with_descriptor(client, &part[..50], &file);
            client.write_all(&part[50..]).unwrap();
        }
        let mut all = [0; 200];
        for client in &mut tcp {
            client.read_exact(&mut all).unwrap();
            assert_eq!(all, [round as u8; 200]);
        }
        for client in &mut local {
            client.set_read_timeout(Some(LIMIT)).unwrap();
            client.read_exact(&mut all).unwrap();
            assert_eq!(all, [round as u8; 200]);
        }
    }
    drop((tcp, local));
    stop(&handle);
}

// ---- workers whose state cannot be built ----

/// Lines, by workers whose state can be built or not, as the test says.
#[derive(Clone)]
struct Stateful {
    door: support::Door,
    /// The workers from this index on fail.
    failing_from: Arc<AtomicUsize>,
    attempts: Arc<AtomicUsize>,
    /// Failures are panics.
    panics: bool,
    /// The text of the errors.
    why: &'static str,
}

impl Stateful {
    fn new() -> (support::Keeper, Self) {
        let (keeper, door) = door();
        let service = Self {
            door,
            failing_from: Arc::new(AtomicUsize::new(usize::MAX)),
            attempts: Arc::default(),
            panics: false,
            why: "the test wants it so",
        };
        (keeper, service)
    }

    fn fail_from(&self, worker: usize) {
        self.failing_from.store(worker, SeqCst);
    }

    fn attempts(&self) -> usize {
        self.attempts.load(SeqCst)
    }
}

impl Service for Stateful {
    type Session = ();
    type Worker = ();

    fn worker(&self, index: usize) -> io::Result<()> {
        if index < self.failing_from.load(SeqCst) {
            return Ok(());
        }
        self.attempts.fetch_add(1, SeqCst);
        match self.panics {
            true => panic!("no state"),
            false => Err(io::Error::other(self.why)),
        }
    }

    fn session(&self, _: &Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        match conn.buffer() {
            b"wait\n" => self.door.pass(),
            b"panic\n" => panic!("the worker's state is lost"),
            _ => {}
        }
        lines(conn)
    }
}

fn failing_workers(stats: &Stats) -> usize {
    let is_failing = |worker: &&WorkerState| matches!(worker, WorkerState::Failing { .. });
    stats.workers.iter().filter(is_failing).count()
}

/// Makes a worker lose its state.
fn panic_once(at: SocketAddr) {
    let mut client = connect(at);
    client.write_all(b"panic\n").unwrap();
    assert_closed(&mut client);
}

#[test]
fn a_worker_without_state_leaves_its_connections_to_the_others() {
    keep_log();
    for workers in [2, 5] {
        let (keeper, mut service) = Stateful::new();
        service.why = "this test only";
        service.fail_from(1);
        let handle = start(
            server().workers(workers).max_per_client(50),
            service.clone(),
        );
        // While the first worker is busy, the others are asked.
        let mut busy = connect(addr(&handle));
        busy.write_all(b"wait\n").unwrap();
        keeper.wait();
        let mut clients: Vec<_> = (0..20).map(|_| connect(addr(&handle))).collect();
        for client in &mut clients {
            client.write_all(b"hello\n").unwrap();
        }
        until(&handle, "all others have tried", |stats| {
            failing_workers(stats) == workers - 1
        });
        keeper.let_one_in();
        assert_eq!(answer(&mut busy), "wait");
        for client in &mut clients {
            assert_eq!(answer(client), "hello");
        }
        // The failing ones take no connection now, however many come.
        let begin = Instant::now();
        for round in 0..300 {
            ask(&mut clients[round % 20], "again");
        }
        let tries = service.attempts();
        // At first after 100 ms, and then more and more rarely.
        let most = (workers - 1) * (3 + begin.elapsed().as_millis() as usize / 75);
        assert!(
            (workers - 1..=most).contains(&tries),
            "{tries} of at most {most}"
        );
        service.fail_from(usize::MAX);
        until(&handle, "all serve again", |stats| {
            failing_workers(stats) == 0
        });
        let mut all: Vec<_> = (0..workers).map(|_| connect(addr(&handle))).collect();
        for client in &mut all {
            client.write_all(b"wait\n").unwrap();
        }
        (0..workers).for_each(|_| keeper.wait());
        drop(keeper);
        drop((busy, clients, all));
        stop(&handle);
    }
    // Each episode is told once.
    assert_eq!(
        logged("worker 1: cannot build its state: this test only").len(),
        2
    );
    assert_eq!(
        logged("worker 4: cannot build its state: this test only").len(),
        1
    );
    assert!(!logged("worker 4: serves again").is_empty());
}

#[test]
fn while_no_worker_has_a_state_clients_wait() {
    for panics in [false, true] {
        let (_keeper, mut service) = Stateful::new();
        service.panics = panics;
        let handle = start(server().workers(2), service.clone());
        let at = addr(&handle);
        let mut parked = connect(at);
        ask(&mut parked, "hello");
        let mut partial = connect(at);
        partial.write_all(b"in two ").unwrap();
        until(&handle, "the first part has been seen", |stats| {
            stats.served == 2
        });
        until(&handle, "both are parked", |stats| stats.parked == 2);
        service.fail_from(0);
        // Each worker may have had a state.
        while failing_workers(&handle.stats()) < 2 {
            let mut client = connect(at);
            client.write_all(b"panic\n").unwrap();
            client
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            let _ = client.read(&mut [0; 1]);
        }
        partial.write_all(b"parts\n").unwrap();
        parked.write_all(b"later\n").unwrap();
        let mut clients: Vec<_> = (0..300).map(|_| connect(at)).collect();
        for client in &mut clients {
            client.write_all(b"patience\n").unwrap();
        }
        let attempts = service.attempts();
        until(&handle, "the workers try again", |_| {
            service.attempts() >= attempts + 2
        });
        let left = clients.pop().unwrap();
        drop(left);
        service.fail_from(usize::MAX);
        assert_eq!(answer(&mut partial), "in two parts");
        assert_eq!(answer(&mut parked), "later");
        for client in &mut clients {
            assert_eq!(answer(client), "patience");
        }
        drop((partial, parked, clients));
        stop(&handle);
    }
}

#[test]
fn while_no_worker_has_a_state_the_queue_time_out_and_the_stop_work() {
    let (_keeper, service) = Stateful::new();
    let builder = server()
        .workers(1)
        .queue_timeout(Duration::from_millis(200));
    let handle = start(
        builder.overload(Overload::Refuse(b"busy\n".to_vec())),
        service.clone(),
    );
    service.fail_from(0);
    panic_once(addr(&handle));
    for round in 1..=3 {
        let mut client = connect(addr(&handle));
        client.write_all(b"hello\n").unwrap();
        assert_eq!(answer(&mut client), "busy");
        assert_closed(&mut client);
        assert_eq!(handle.stats().refused.queue_timeout, round);
    }
    stop(&handle);

    // A stop serves what has arrived, if a worker recovers in time.
    let (_keeper, service) = Stateful::new();
    let handle = start(server().workers(2), service.clone());
    service.fail_from(0);
    panic_once(addr(&handle));
    let mut client = connect(addr(&handle));
    client.write_all(b"in time\n").unwrap();
    until(&handle, "all workers fail", |stats| {
        failing_workers(stats) == 2
    });
    handle.stop(LIMIT);
    service.fail_from(usize::MAX);
    assert_eq!(answer(&mut client), "in time");
    assert!(handle.join().is_clean());

    // Otherwise the deadline ends it.
    let (_keeper, service) = Stateful::new();
    let handle = start(server().workers(2), service.clone());
    service.fail_from(0);
    panic_once(addr(&handle));
    let mut client = connect(addr(&handle));
    client.write_all(b"too late\n").unwrap();
    until(&handle, "all workers fail", |stats| {
        failing_workers(stats) == 2
    });
    handle.stop(Duration::from_millis(100));
    let report = handle.join();
    assert_eq!(report.dropped, 1, "{report}");
    assert!(report.took < Duration::from_secs(30), "{report}");
    assert_closed(&mut client);
}

// ---- listeners ----

#[cfg(unix)] // a listener that was shut down; Windows refuses that
#[test]
fn a_listener_that_fails_is_the_only_one_that_fails() {
    keep_log();
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Socket::from(own.try_clone().unwrap());
    let broken = Listener::from_std(own, "the broken one").unwrap();
    let builder = settings().listener(broken).listen("127.0.0.1:0").workers(2);
    let handle = start(builder, lines);
    let addrs: Vec<SocketAddr> = handle
        .local_addrs()
        .iter()
        .map(|at| at.as_ip().unwrap())
        .collect();
    let mut parked = connect(addrs[1]);
    let mut from_broken = connect(addrs[0]);
    ask(&mut parked, "hello");
    ask(&mut from_broken, "hello");

    // From here on, `accept` is EINVAL on this listener.
    socket.shutdown(Shutdown::Read).unwrap();
    wait_logged("the broken one: cannot accept");
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        ask(&mut connect(addrs[1]), "still accepted");
    }
    let slowest = (0..20).map(|_| {
        let before = Instant::now();
        ask(&mut connect(addrs[1]), "at once");
        before.elapsed()
    });
    // A back-off of all listeners would last for half a second by now.
    assert!(slowest.min() < Some(Duration::from_millis(200)));
    ask(&mut parked, "still parked");
    ask(&mut from_broken, "still parked");
    let stats = handle.stats();
    assert_eq!(stats.shed, 0);
    assert!(
        (2..30).contains(&stats.accept_errors),
        "{}",
        stats.accept_errors
    );
    assert_eq!(logged("the broken one: cannot accept").len(), 1);
    drop((parked, from_broken));
    stop(&handle);
}

#[cfg(unix)] // a listener that was shut down; Windows refuses that
#[test]
fn a_listener_that_works_again_is_accepted_from_again() {
    keep_log();
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = own.local_addr().unwrap();
    let socket = Socket::from(own.try_clone().unwrap());
    let listener = Listener::from_std(own, "the one that recovers").unwrap();
    let handle = start(settings().listener(listener).workers(1), lines);
    ask(&mut connect(at), "before");
    socket.shutdown(Shutdown::Read).unwrap();
    wait_logged("the one that recovers: cannot accept");
    // The kernel has given the port away meanwhile.
    socket.listen(16).unwrap();
    let mut client = connect(socket.local_addr().unwrap().as_socket().unwrap());
    ask(&mut client, "after");
    drop(client);
    stop(&handle);
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_the_same_client() {
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let builder = settings()
        .listen(dual)
        .listen("127.0.0.1:0")
        .max_per_client(2);
    let handle = start(builder, tell_peer);
    let port = |index: usize| handle.local_addrs()[index].as_ip().unwrap().port();
    let mut mapped = connect(([127, 0, 0, 1], port(0)).into());
    let mut plain = connect(([127, 0, 0, 1], port(1)).into());
    for client in [&mut mapped, &mut plain] {
        client.write_all(b"who?\n").unwrap();
        assert_eq!(answer(client), client.local_addr().unwrap().to_string());
    }
    for index in [0, 1] {
        assert_closed(&mut connect(([127, 0, 0, 1], port(index)).into()));
    }
    assert_eq!(handle.stats().refused.max_per_client, 2);
    // Another client has its own places.
    let mut other = connect((Ipv6Addr::LOCALHOST, port(0)).into());
    other.write_all(b"who?\n").unwrap();
    assert_eq!(answer(&mut other), other.local_addr().unwrap().to_string());
    drop((mapped, plain, other));
    until(&handle, "all have gone", |stats| stats.live == 0);
    stop(&handle);
}

#[cfg(unix)] // Unix sockets
#[test]
fn of_servers_that_start_over_one_stale_path_exactly_one_gets_it() {
    const STARTS: usize = 4;
    let (dir, path) = socket_path();
    let barrier = Barrier::new(STARTS);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..STARTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut starts = Vec::new();
                    for round in 0..1000 {
                        if barrier.wait().is_leader() && round % 2 == 0 {
                            // The file of a server that has died.
                            drop(UnixListener::bind(&path).unwrap());
                        }
                        barrier.wait();
                        let listener = Bind::new(unix(&path)).bind_attempts(1).bind();
                        barrier.wait();
                        // The one that has the path can be connected to.
                        let is_served = UnixStream::connect(&path).is_ok();
                        barrier.wait();
                        starts.push((is_served, listener.err()));
                    }
                    starts
                })
            })
            .collect();
        // No thread may leave the others at the barrier, so the results are checked here.
        let starts: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        for round in 0..starts[0].len() {
            let results: Vec<_> = starts.iter().map(|starts| &starts[round]).collect();
            let winners = results.iter().filter(|(_, error)| error.is_none()).count();
            assert_eq!(winners, 1, "round {round}");
            assert!(
                results.iter().all(|(is_served, _)| *is_served),
                "round {round}"
            );
            for error in results.iter().filter_map(|(_, error)| error.as_ref()) {
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
                let text = error.to_string();
                assert!(text.contains("another process listens"), "{text}");
            }
        }
    });
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "files are left");
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_server_that_ends_removes_no_file_of_the_next_one() {
    let (_dir, path) = socket_path();
    let bind = || {
        Bind::new(unix(&path))
            .bind_interval(Duration::from_millis(1))
            .bind_attempts(u32::MAX)
    };
    let mut listener = bind().bind().unwrap();
    for round in 0..300 {
        // The next server starts while this one ends.
        let next = thread::scope(|scope| {
            let next = scope.spawn(|| bind().bind().unwrap());
            drop(listener);
            next.join().unwrap()
        });
        assert!(UnixStream::connect(&path).is_ok(), "round {round}");
        listener = next;
    }
    drop(listener);
    assert!(!path.exists());
}

#[cfg(unix)] // Unix sockets
#[test]
fn a_directory_that_another_process_keeps_locked_delays_a_start_only() {
    let (dir, path) = socket_path();
    let directory = std::fs::File::open(dir.path()).unwrap();
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let listener = Bind::new(unix(&path)).bind().unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    drop(listener);
    assert!(!path.exists());
}

/// Tells each client its address.
fn tell_peer(conn: &mut Connection) -> io::Result<Next> {
    let len = conn.buffer().len();
    conn.consume(len);
    let peer = conn.peer().clone();
    writeln!(conn, "{peer}")?;
    Ok(Next::Park)
}
