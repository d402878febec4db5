//! Stopping: what was asked is answered, the deadline holds whatever a handler does, and nothing is left behind.
//!
//! What a test waits for is an event. `LONG` only bounds a test that would hang otherwise.

#[path = "support/listening.rs"]
mod listening;
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use handover::{Addr, Builder, Connection, Handle, Next, Server, Service};
use listening::until_refused;
use parking_lot::Mutex;

const LONG: Duration = Duration::from_secs(60);

/// Under wine, where each system call asks another process, everything takes ten times as long.
const fn rounds(count: usize) -> usize {
    if cfg!(windows) { count / 5 } else { count }
}

/// What a stop may take beyond its deadline.
const SLACK: Duration = Duration::from_secs(if cfg!(windows) { 10 } else { 1 });

// ---- what was asked is answered ----

#[test]
fn requests_of_kept_connections_are_answered() {
    for _ in 0..rounds(10) {
        stop_under_load(4, |addr, load| load.keep_alive(addr, 1));
    }
}

#[test]
fn requests_of_kept_connections_are_answered_by_a_single_worker() {
    for _ in 0..rounds(5) {
        stop_under_load(1, |addr, load| load.keep_alive(addr, 1));
    }
}

#[test]
fn pipelined_requests_are_answered() {
    for _ in 0..rounds(5) {
        stop_under_load(4, |addr, load| load.keep_alive(addr, 7));
    }
}

#[test]
fn requests_of_new_connections_are_answered() {
    for _ in 0..rounds(10) {
        stop_under_load(4, |addr, load| load.connect_each_time(addr));
    }
}

/// What the clients of [`stop_under_load`] share.
struct Load {
    /// Set just before the server is told to stop: a write that had returned while it was not set came before.
    stopping: AtomicBool,
    warm: Sender<()>,
}

impl Load {
    const CLIENTS: usize = 64;
    const WARM: usize = 25;

    /// Sends requests on one connection until it ends; returns how many that were received had no answer.
    fn keep_alive(&self, addr: SocketAddr, at_once: usize) -> usize {
        let mut client = Client::new(addr);
        for turn in 0.. {
            let requests: Vec<String> = (0..at_once).map(|n| format!("{turn}-{n}\n")).collect();
            let sent = client.try_send(&requests.concat());
            let in_time = sent.is_ok() && !self.stopping.load(SeqCst);
            for (n, request) in requests.iter().enumerate() {
                match client.try_line() {
                    Ok(answer) if answer == *request => {}
                    _ if in_time => return requests.len() - n,
                    _ => return 0,
                }
            }
            if turn == Self::WARM {
                self.warm.send(()).unwrap();
            }
        }
        unreachable!()
    }

    /// Sends each request on a connection of its own.
    fn connect_each_time(&self, addr: SocketAddr) -> usize {
        for turn in 0.. {
            let Ok(stream) = TcpStream::connect(addr) else {
                return 0;
            };
            let mut client = Client::with(stream);
            let request = format!("{turn}\n");
            let sent = client.try_send(&request);
            let in_time = sent.is_ok() && !self.stopping.load(SeqCst);
            let answer = client.try_line();
            if answer.as_ref().ok() != Some(&request) {
                return usize::from(in_time);
            }
            if turn == Self::WARM {
                self.warm.send(()).unwrap();
            }
        }
        unreachable!()
    }
}

/// Held by a test while 64 clients ask without a pause: two such loads at once would show how a busy machine divides its
/// time, and where one thread waits for all workers, that thread would get little of it.
static ONE_LOAD: Mutex<()> = Mutex::new(());

fn stop_under_load(workers: usize, client: impl Fn(SocketAddr, &Load) -> usize + Sync) {
    let _alone = ONE_LOAD.lock();
    let handle = builder(workers).build(echo_line).unwrap().start().unwrap();
    let addr = addr_of(&handle);
    let (warm, warmed) = bounded(Load::CLIENTS);
    let stopping = AtomicBool::new(false);
    let load = Load { stopping, warm };
    let lost: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..Load::CLIENTS)
            .map(|_| scope.spawn(|| client(addr, &load)))
            .collect();
        for _ in 0..Load::CLIENTS {
            warmed.recv_timeout(LONG).unwrap();
        }
        load.stopping.store(true, SeqCst);
        handle.stop(LONG);
        let report = handle.join();
        println!("64 clients, {workers} workers: {report}");
        assert!(report.is_clean(), "{report}");
        assert!(report.took < 10 * SLACK, "{report}");
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(lost, 0, "requests were received and not answered");
}

#[test]
fn a_client_that_never_pauses_does_not_hold_up_the_drain() {
    // Answers all that has come, and says that the next request has begun.
    let echo_all = |conn: &mut Connection| {
        while let Some(line) = conn.take_line(1024)? {
            writeln!(conn, "{line}")?;
        }
        Ok(Next::More)
    };
    // The socket always has a next request, or the beginning of one.
    for (workers, answers_all) in [(1, false), (4, false), (2, true)] {
        let service = move |conn: &mut Connection| match answers_all {
            true => echo_all(conn),
            false => echo_line(conn),
        };
        // What had come before is answered, and that is as much as may be buffered.
        let server = builder(workers).input_limit(64 * 1024).build(service);
        let handle = server.unwrap().start().unwrap();
        let addr = addr_of(&handle);
        let (warm, warmed) = bounded(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                let mut reader = Client::new(addr);
                let mut writer = reader.0.get_ref().try_clone().unwrap();
                let requests = "a request\n".repeat(100);
                scope.spawn(move || while writer.write_all(requests.as_bytes()).is_ok() {});
                let warm = warm.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        assert_eq!(reader.line(), "a request\n");
                    }
                    warm.send(()).unwrap();
                    while reader.try_line().is_ok_and(|line| !line.is_empty()) {}
                    // So that the writer ends as well.
                    let _ = reader.0.get_ref().shutdown(std::net::Shutdown::Both);
                });
            }
            for _ in 0..4 {
                warmed.recv_timeout(LONG).unwrap();
            }
            handle.stop(LONG);
            let report = handle.join();
            println!("4 clients that never pause, {workers} workers: {report}");
            assert!(report.is_clean(), "{report}");
            assert!(report.took < 10 * SLACK, "{report}");
        });
    }
}

#[test]
fn what_waits_for_a_worker_is_served() {
    // One worker that is busy, a queue of one, and a request of each connection, of parked ones and of new ones: more
    // than the queue takes in any case.
    let (service, gate) = held_service();
    let handle = builder(1).queue(1).build(service).unwrap().start().unwrap();
    let addr = addr_of(&handle);
    let mut clients: Vec<Client> = (0..400).map(|_| Client::new(addr)).collect();
    for client in &mut clients {
        client.send("first\n");
        assert_eq!(client.line(), "first\n");
    }
    let mut holder = Client::new(addr);
    holder.send("hold\n");
    gate.reached();
    clients.extend((0..16).map(|_| Client::new(addr)));
    for client in &mut clients {
        client.send("second\n");
    }
    // What waits in the kernel's queue at a stop is accepted when there is room, which there is not before the gate is
    // open.
    support::until(&handle, "all are accepted", |stats| stats.accepted == 417);
    handle.stop(LONG);
    // The stop has looked at the idle ones by then, most likely. Where the length of the kernel's queue is unknown, the
    // listener accepts until there is room.
    if cfg!(all(target_os = "linux", not(handover_one_waiter))) {
        until_refused(addr);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.line(), "second\n");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(holder.line(), "held\n");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 417, "{report}");
}

#[test]
fn all_that_one_client_has_sent_is_answered() {
    // Much more than may be buffered at a time.
    let (service, gate) = held_service();
    let builder = builder(1).input_limit(4096);
    let handle = builder.build(service).unwrap().start().unwrap();
    let addr = addr_of(&handle);
    let mut holder = Client::new(addr);
    holder.send("hold\n");
    gate.reached();
    let mut client = Client::new(addr);
    let requests: Vec<String> = (0..5000).map(|n| format!("request {n}\n")).collect();
    client.send(&requests.concat());
    handle.stop(LONG);
    gate.open();
    for request in &requests {
        assert_eq!(client.line(), *request);
    }
    assert_eq!(client.rest(), "");
    assert!(handle.join().is_clean());
}

#[test]
fn the_backlog_is_drained_and_then_the_listener_refuses() {
    let (service, gate) = held_service();
    let server = builder(1).max_connections(1).build(service).unwrap();
    let handle = server.start().unwrap();
    let addr = addr_of(&handle);
    let mut holder = Client::new(addr);
    holder.send("hold\n");
    gate.reached();
    // With one connection the server is full, so these wait in the kernel's queue.
    let mut queued: Vec<Client> = (0..8).map(|_| Client::new(addr)).collect();
    for client in &mut queued {
        client.send("queued\n");
    }
    assert_eq!(handle.stats().accepted, 1);
    handle.stop(LONG);
    gate.open();
    for client in &mut queued {
        assert_eq!(client.line(), "queued\n");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(holder.line(), "held\n");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 9);
    let refused = TcpStream::connect(addr).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_full_server_refuses_while_it_drains() {
    let (service, gate) = held_service();
    let server = builder(1).max_connections(1).build(service).unwrap();
    let handle = server.start().unwrap();
    let addr = addr_of(&handle);
    let mut holder = Client::new(addr);
    holder.send("hold\n");
    gate.reached();
    let mut queued: Vec<Client> = (0..8).map(|_| Client::new(addr)).collect();
    for client in &mut queued {
        client.send("queued\n");
    }
    handle.stop(LONG);
    // The worker is busy all the time, and all that was queued has been accepted.
    until_refused(addr);
    gate.open();
    for client in &mut queued {
        assert_eq!(client.line(), "queued\n");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(holder.line(), "held\n");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn clients_that_go_on_connecting_do_not_keep_a_full_server() {
    // 64 clients reconnect, and the server serves 200 of them a second.
    let service = |conn: &mut Connection| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(10) {
            thread::park_timeout(Duration::from_millis(10));
        }
        echo_line(conn)?;
        Ok(Next::Close)
    };
    let server = builder(2).queue(8).build(service).unwrap();
    let handle = server.start().unwrap();
    let addr = addr_of(&handle);
    let (warm, warmed) = bounded(Load::CLIENTS);
    let stopping = AtomicBool::new(false);
    let load = Load { stopping, warm };
    let lost: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..Load::CLIENTS)
            .map(|_| scope.spawn(|| load.connect_each_time(addr)))
            .collect();
        warmed.recv_timeout(LONG).unwrap();
        load.stopping.store(true, SeqCst);
        handle.stop(LONG);
        let report = handle.join();
        println!("64 clients that go on connecting: {report}");
        assert!(report.is_clean(), "{report}");
        assert!(report.took < 10 * SLACK, "{report}");
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(lost, 0, "requests were received and not answered");
}

/// Answers, and closes with what the client has sent unread, so that the connection lingers.
fn answer_and_linger(conn: &mut Connection) -> io::Result<Next> {
    conn.write_all(b"the answer\n")?;
    Ok(Next::Close)
}

#[test]
fn a_connection_that_lingers_has_finished() {
    let handle = builder(2)
        .build(answer_and_linger)
        .unwrap()
        .start()
        .unwrap();
    let mut clients = [(); 8].map(|()| {
        let mut client = Client::new(addr_of(&handle));
        client.send("unread");
        client
    });
    for client in &mut clients {
        assert_eq!(client.rest(), "the answer\n");
    }
    // They are open, since their clients have not closed them.
    assert_eq!(handle.stats().live, 8);
    handle.stop(LONG);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 8);
    assert!(report.took < SLACK, "{report}");
    assert_eq!(handle.stats().live, 0);
}

#[test]
fn a_connection_that_lingers_from_the_stop_on_has_finished() {
    let (service, gate) = held_service();
    let service = move |conn: &mut Connection| {
        service(conn)?;
        answer_and_linger(conn)
    };
    let handle = builder(1).build(service).unwrap().start().unwrap();
    let mut holder = Client::new(addr_of(&handle));
    holder.send("hold\n");
    gate.reached();
    holder.send("unread");
    handle.stop(LONG);
    gate.draining();
    let opened = Instant::now();
    gate.open();
    assert_eq!(holder.rest(), "held\nthe answer\n");
    let report = handle.join();
    assert!(opened.elapsed() < SLACK, "{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 1);
}

#[test]
fn no_connection_that_lingers_is_left_behind() {
    for _ in 0..100 {
        let handle = builder(2)
            .build(answer_and_linger)
            .unwrap()
            .start()
            .unwrap();
        let mut client = Client::new(addr_of(&handle));
        client.send("unread");
        assert_eq!(client.line(), "the answer\n");
        // The client goes on, so that some thread may hold the connection just when the stop closes it.
        let mut writer = client.0.get_ref().try_clone().unwrap();
        let writer = thread::spawn(move || while writer.write_all(b"more").is_ok() {});
        handle.stop(LONG);
        let report = handle.join();
        assert!(report.is_clean(), "{report}");
        assert_eq!(handle.stats().live, 0);
        writer.join().unwrap();
    }
}

#[test]
fn who_waits_for_a_paused_server_is_served_at_the_stop() {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    handle.pause();
    // The pause takes effect at some time; whoever is not answered for a while comes after that, and if it was only
    // slow, what follows holds as well.
    let mut waiting = loop {
        let mut client = Client::new(addr_of(&handle));
        client.send("one\n");
        client.patience(Duration::from_millis(50));
        if client.try_line().is_err() {
            client.patience(LONG);
            break client;
        }
    };
    handle.stop(LONG);
    assert_eq!(waiting.line(), "one\n");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    until_refused(addr_of(&handle));
}

#[test]
fn a_paused_server_stops() {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("served\n");
    assert_eq!(client.line(), "served\n");
    handle.pause();
    handle.stop(LONG);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 1);
    assert!(report.took < SLACK, "{report}");
    until_refused(addr_of(&handle));
}

#[test]
fn the_rest_of_a_message_is_awaited() {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("first\nsec");
    assert_eq!(client.line(), "first\n");
    handle.stop(LONG);
    until_refused(addr_of(&handle));
    client.send("ond\n");
    assert_eq!(client.line(), "second\n");
    assert_eq!(client.rest(), "");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

/// A service that takes a long message in parts has none of it in the buffer.
#[test]
fn the_rest_of_a_long_message_in_parts_is_awaited() {
    let receive = |conn: &mut Connection, count: &mut usize| -> io::Result<Next> {
        while let Some(part) = conn.take_up_to(b'\n', 1000) {
            *count += part.len();
            if part.ends_with(b"\n") {
                writeln!(conn, "{count}")?;
                return Ok(Next::Park);
            }
        }
        Ok(Next::More)
    };
    let service = handover::service_with_session(|_| Ok(0), receive);
    let builder = builder(1).input_limit(4096);
    let handle = builder.build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("begin");
    while handle.stats().bytes_in < 5 || handle.stats().parked < 1 {
        thread::yield_now();
    }
    handle.stop(LONG);
    until_refused(addr_of(&handle));
    client.send(&"x".repeat(1 << 20));
    client.send("\n");
    assert_eq!(client.line(), format!("{}\n", 5 + (1 << 20) + 1));
    assert_eq!(client.rest(), "");
    assert!(handle.join().is_clean());
}

#[test]
fn the_rest_of_a_message_is_not_awaited_past_the_deadline() {
    let (asked_for_more, more) = unbounded();
    let service = move |conn: &mut Connection| {
        let next = echo_line(conn)?;
        if next == Next::More {
            asked_for_more.send(()).unwrap();
        }
        Ok(next)
    };
    let handle = builder(2).build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("hal");
    more.recv_timeout(LONG).unwrap();
    let within = Duration::from_millis(300);
    let begin = Instant::now();
    let report = timed_stop(&handle, within);
    assert!(begin.elapsed() >= within, "{report}");
    assert_eq!((report.forced.len(), report.dropped), (0, 1), "{report}");
    assert_eq!(client.rest(), "");
}

#[test]
fn idle_connections_are_closed_at_once() {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::new(addr_of(&handle))).collect();
    for client in clients.iter_mut().take(50) {
        client.send("hello\n");
        assert_eq!(client.line(), "hello\n");
    }
    handle.stop(LONG);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 100);
    assert!(report.took < SLACK, "{report}");
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
}

/// More than the kernel takes for a client that does not read.
const MUCH: usize = 16 << 20;

#[test]
fn buffered_output_is_delivered() {
    // Wine queues what the kernel does not take, and drops it at the close.
    let much =
        match support::wine_cannot("deliver 16 MB after the server has closed the connection") {
            true => 20_000,
            false => MUCH,
        };
    for after in [Next::Park, Next::Close] {
        let (service, gate) = held_service();
        let service = move |conn: &mut Connection| {
            if conn.buffer() != b"much\n" {
                return service(conn);
            }
            conn.consume(5);
            conn.write_all(&vec![b'x'; much])?;
            Ok(after)
        };
        let server = builder(1).output_limit(2 * much).build(service).unwrap();
        let handle = server.start().unwrap();
        let mut reader = Client::new(addr_of(&handle));
        reader.send("much\n");
        // The first byte is there when the handler has begun; when the other one holds the only worker it has ended.
        let mut first = [0];
        reader.0.read_exact(&mut first).unwrap();
        let mut holder = Client::new(addr_of(&handle));
        holder.send("hold\n");
        gate.reached();
        handle.stop(LONG);
        gate.draining();
        // All of it comes while no worker is free.
        let mut rest = vec![0; much - 1];
        reader.0.read_exact(&mut rest).unwrap();
        assert!(rest.iter().all(|&byte| byte == b'x'));
        if after == Next::Close {
            assert_eq!(reader.rest(), "");
        }
        gate.open();
        assert_eq!(reader.rest(), "");
        assert_eq!(holder.line(), "held\n");
        let report = handle.join();
        assert!(report.is_clean(), "{after:?}: {report}");
    }
}

#[test]
fn an_endless_answer_sees_the_drain() {
    let service = |conn: &mut Connection| {
        let held = conn.buffer().len();
        conn.consume(held);
        while !conn.is_draining() {
            writeln!(conn, "news")?;
        }
        writeln!(conn, "the end")?;
        Ok(Next::Close)
    };
    let handle = builder(2).build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("subscribe\n");
    assert_eq!(client.line(), "news\n");
    handle.stop(LONG);
    let text = client.rest();
    let news = text.strip_suffix("the end\n").unwrap();
    assert!(news.lines().all(|line| line == "news"));
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_detached_socket_counts_until_its_handler_returns() {
    let (detached, is_detached) = unbounded();
    let service = move |conn: &mut Connection| {
        let (stream, unread) = conn.detach()?.into_parts();
        detached.send(()).unwrap();
        #[cfg_attr(windows, allow(irrefutable_let_patterns))]
        let handover::Stream::Tcp(mut stream) = stream else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let mut word = [0; 5];
        stream.read_exact(&mut word)?;
        stream.write_all(&unread)?;
        stream.write_all(&word)?;
        Ok(Next::Close)
    };
    let handle = builder(2).build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("unread ");
    is_detached.recv_timeout(LONG).unwrap();
    let mut silent = Client::new(addr_of(&handle));
    silent.send("silent");
    is_detached.recv_timeout(LONG).unwrap();
    handle.stop(Duration::from_millis(500));
    client.send("later");
    assert_eq!(client.rest(), "unread later");
    assert_eq!(silent.rest(), "");
    let report = handle.join();
    assert_eq!(report.forced.len(), 1, "{report}");
    assert!(report.forced[0].ended, "{report}");
    assert_eq!(report.forced[0].peer, silent.addr());
}

// ---- the deadline ----

#[test]
fn stuck_handlers_are_forced_and_named() {
    stop_with_stuck_handlers(Server::builder());
}

#[cfg(unix)]
#[test]
fn stuck_handlers_do_not_keep_a_server_with_restarts() {
    stop_with_stuck_handlers(Server::builder().restart(handover::Restart::inherit().unwrap()));
}

fn stop_with_stuck_handlers(builder: handover::Builder) {
    let (reached, arrivals) = unbounded();
    let (release, gate) = bounded::<()>(0);
    let service = move |conn: &mut Connection| {
        let what = conn.take_line(64)?.unwrap_or_default();
        reached.send(()).unwrap();
        match what.as_str() {
            "read" => conn.read_exact(&mut [0])?,
            "write" => loop {
                conn.write_all(&[0; 65_536])?;
            },
            _ => drop(gate.recv()),
        }
        Ok(Next::Close)
    };
    let listener = handover::Bind::new("127.0.0.1:0").name("front");
    let server = builder.listen(listener).workers(4).build(service);
    let handle = server.unwrap().start().unwrap();
    let clients = ["read", "write", "sleep"].map(|what| {
        let mut client = Client::new(addr_of(&handle));
        client.send(&format!("{what}\n"));
        arrivals.recv_timeout(LONG).unwrap();
        client
    });
    let within = Duration::from_millis(400);
    let report = timed_stop(&handle, within);
    println!("stuck in a read, a write and a sleep, deadline {within:?}: {report}");
    assert_eq!(report.dropped, 0, "{report}");
    assert_eq!(report.forced.len(), 3, "{report}");
    for (client, ended) in clients.iter().zip([true, true, false]) {
        let mut forced = report.forced.iter();
        let forced = forced.find(|forced| forced.peer == client.addr()).unwrap();
        assert_eq!(forced.listener, "front");
        assert_eq!(forced.ended, ended, "{report}");
        assert!(forced.worker < 4);
        // By a clock that is coarse by some milliseconds.
        assert!(
            forced.served_for + Duration::from_millis(50) >= within,
            "{report}"
        );
        assert!(forced.served_for < within + LONG, "{report}");
        let text = format!("worker {} had served {}", forced.worker, forced.peer);
        assert!(report.to_string().contains(&text), "{report}");
    }
    let mut workers: Vec<_> = report.forced.iter().map(|forced| forced.worker).collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(workers.len(), 3, "{report}");
    drop(release);
}

#[test]
fn all_workers_share_one_deadline() {
    for what in ["read", "sleep"] {
        let (reached, arrivals) = unbounded();
        let (release, gate) = bounded::<()>(0);
        let service = move |conn: &mut Connection| {
            let what = conn.take_line(64)?.unwrap_or_default();
            reached.send(()).unwrap();
            match what.as_str() {
                "read" => conn.read_exact(&mut [0])?,
                _ => drop(gate.recv()),
            }
            Ok(Next::Close)
        };
        let handle = builder(8).build(service).unwrap().start().unwrap();
        let clients = [(); 8].map(|()| {
            let mut client = Client::new(addr_of(&handle));
            client.send(&format!("{what}\n"));
            arrivals.recv_timeout(LONG).unwrap();
            client
        });
        let report = timed_stop(&handle, Duration::from_millis(300));
        println!(
            "8 workers stuck in a {what}, deadline 300 ms: {:?}",
            report.took
        );
        assert_eq!(report.forced.len(), 8, "{report}");
        let ended = report.forced.iter().filter(|forced| forced.ended).count();
        assert_eq!(ended, if what == "read" { 8 } else { 0 }, "{report}");
        drop((clients, release));
    }
}

#[test]
fn stop_now_lets_nothing_finish() {
    let (reached, arrivals) = unbounded();
    let service = move |conn: &mut Connection| {
        reached.send(()).unwrap();
        conn.fill_buf()?;
        let held = conn.buffer().len();
        conn.consume(held);
        conn.read_exact(&mut [0])?;
        Ok(Next::Close)
    };
    let handle = builder(2).build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("x");
    arrivals.recv_timeout(LONG).unwrap();
    let begin = Instant::now();
    handle.stop_now();
    let report = handle.join();
    assert!(begin.elapsed() < SLACK, "{report}");
    assert_eq!(report.forced.len(), 1, "{report}");
    assert!(report.forced[0].ended, "{report}");
    assert_eq!(client.rest(), "");
}

#[test]
fn the_earlier_deadline_wins() {
    let short = Duration::from_millis(300);
    for deadlines in [[short, LONG], [LONG, short]] {
        let (service, gate) = held_service();
        let handle = builder(2).build(service).unwrap().start().unwrap();
        let mut client = Client::new(addr_of(&handle));
        client.send("hold\n");
        gate.reached();
        let begin = Instant::now();
        for deadline in deadlines {
            handle.stop(deadline);
        }
        let report = handle.join();
        assert!(begin.elapsed() < LONG / 2, "{report}");
        assert_eq!(report.forced.len(), 1, "{report}");
        gate.open();
    }
}

#[test]
fn more_work_without_the_client_ends_at_the_deadline() {
    let (called, calls) = unbounded();
    let service = move |conn: &mut Connection| {
        let held = conn.buffer().len();
        conn.consume(held);
        if held > 0 {
            called.send(()).unwrap();
        }
        Ok(Next::Again)
    };
    let handle = builder(2).build(service).unwrap().start().unwrap();
    let mut clients = [(); 8].map(|()| {
        let mut client = Client::new(addr_of(&handle));
        client.send("x");
        calls.recv_timeout(LONG).unwrap();
        client
    });
    let report = timed_stop(&handle, Duration::from_millis(300));
    // Which of them a worker had in hand just then is a matter of chance, but each is one or the other.
    assert_eq!(report.forced.len() + report.dropped, 8, "{report}");
    for client in &mut clients {
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn a_forced_connection_is_gone_whatever_its_handler_returns() {
    for (workers, next) in [1, 2].into_iter().flat_map(|workers| {
        let all = [Next::Park, Next::More, Next::Again, Next::Close];
        all.map(|next| (workers, next))
    }) {
        let (reached, arrivals) = unbounded();
        let (gone, is_gone) = unbounded();
        let service = Sessions {
            session: gone,
            serve: move |conn: &mut Connection| {
                reached.send(()).unwrap();
                while conn.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
                    let held = conn.buffer().len();
                    conn.consume(held);
                }
                Ok(next)
            },
        };
        let handle = builder(workers).build(service).unwrap().start().unwrap();
        let mut client = Client::new(addr_of(&handle));
        client.send("x");
        arrivals.recv_timeout(LONG).unwrap();
        handle.stop_now();
        let report = handle.join();
        assert_eq!(report.forced.len(), 1, "{next:?}: {report}");
        assert!(report.forced[0].ended, "{next:?}: {report}");
        assert_eq!(client.rest(), "");
        // The session goes with the connection and its descriptor, also while somebody still has the handle.
        let gone = is_gone.recv_timeout(Duration::from_secs(5));
        assert!(gone.is_ok(), "{next:?}: the connection is still there");
        assert_eq!(handle.stats().live, 0, "{next:?}");
    }
}

/// A service that tells when a session ends.
struct Sessions<F> {
    session: Sender<()>,
    serve: F,
}

struct Told(Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl<F: Fn(&mut Connection) -> io::Result<Next> + Send + Sync> Service for Sessions<F> {
    type Session = Told;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<Told> {
        Ok(Told(self.session.clone()))
    }

    fn serve(&self, conn: &mut Connection, _: &mut Told, (): &mut ()) -> io::Result<Next> {
        (self.serve)(conn)
    }
}

// ---- when, how often, and from where ----

#[test]
fn stop_at_once() {
    for now in [false, true] {
        for _ in 0..50 {
            let handle = builder(2).build(echo_line).unwrap().start().unwrap();
            if now {
                handle.stop_now();
            } else {
                handle.stop(LONG);
            }
            let report = handle.join();
            assert!(report.is_clean(), "{report}");
            assert!(report.took < SLACK, "{report}");
        }
    }
}

#[test]
fn a_stop_wins_over_pauses_and_resumes() {
    for _ in 0..200 {
        let handle = builder(1).build(echo_line).unwrap().start().unwrap();
        let ends = AtomicBool::new(false);
        let (turn, turns) = unbounded();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(SeqCst) {
                    handle.pause();
                    handle.resume();
                    turn.send(()).unwrap();
                }
            });
            for _ in 0..3 {
                turns.recv_timeout(LONG).unwrap();
            }
            handle.stop(LONG);
            let report = handle.join();
            ends.store(true, SeqCst);
            assert!(report.is_clean(), "{report}");
            assert!(report.took < LONG / 2, "{report}");
        });
    }
}

#[test]
fn stop_twice_and_join_by_many() {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    handle.stop(LONG);
    handle.stop(LONG);
    let reports = thread::scope(|scope| {
        let joins = [(); 4].map(|()| scope.spawn(|| handle.join()));
        joins.map(|join| join.join().unwrap())
    });
    assert!(reports.iter().all(|report| *report == reports[0]));
    handle.stop(LONG);
    handle.stop_now();
    assert_eq!(handle.join(), reports[0]);
}

#[test]
fn a_server_that_has_given_up_can_be_told_to_stop_for_ever() {
    let (service, gate) = held_service();
    let handle = builder(1).build(service).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("hold\n");
    gate.reached();
    handle.stop_now();
    let report = handle.join();
    assert!(!report.forced[0].ended, "{report}");
    // The server's main thread is still there, waiting for the handler's thread, but obeys nobody any more.
    let (done, is_done) = bounded(1);
    let caller = handle.clone();
    let caller = thread::spawn(move || {
        for _ in 0..1000 {
            caller.stop(LONG);
        }
        done.send(()).unwrap();
    });
    let done = is_done.recv_timeout(Duration::from_secs(10));
    gate.open();
    caller.join().unwrap();
    assert!(done.is_ok(), "a stop did not return at once");
}

#[test]
fn a_handler_can_stop_its_server() {
    let own = Arc::new(OnceLock::<Handle>::new());
    let service = {
        let own = Arc::clone(&own);
        move |conn: &mut Connection| {
            own.get().unwrap().stop(LONG);
            echo_line(conn)
        }
    };
    let handle = builder(1).build(service).unwrap().start().unwrap();
    own.set(handle.clone()).unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("the last one\n");
    assert_eq!(client.line(), "the last one\n");
    assert_eq!(client.rest(), "");
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_join_in_a_handler_costs_its_connection_only() {
    let own = Arc::new(OnceLock::<Handle>::new());
    let service = {
        let own = Arc::clone(&own);
        move |conn: &mut Connection| {
            if conn.buffer() == b"join\n" {
                own.get().unwrap().join();
            }
            echo_line(conn)
        }
    };
    let handle = builder(1).build(service).unwrap().start().unwrap();
    own.set(handle.clone()).unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("join\n");
    assert_eq!(client.rest(), "");
    let mut client = Client::new(addr_of(&handle));
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    assert_eq!(handle.stats().panics, 1);
    handle.stop(LONG);
    assert!(handle.join().is_clean());
}

#[test]
fn a_drop_of_the_last_handle_drains() {
    let (reached, arrivals) = unbounded();
    let service = move |conn: &mut Connection| {
        let line = conn.take_line(64)?.unwrap_or_default();
        reached.send(()).unwrap();
        while !conn.is_draining() {
            thread::yield_now();
        }
        writeln!(conn, "{line}")?;
        Ok(Next::Park)
    };
    let (exited, exits) = unbounded();
    let server = builder(2)
        .on_worker_exit(move |index| exited.send(index).unwrap())
        .build(service);
    let handle = server.unwrap().start().unwrap();
    let addr = addr_of(&handle);
    let mut client = Client::new(addr);
    client.send("in progress\n");
    arrivals.recv_timeout(LONG).unwrap();
    let other = handle.clone();
    drop(handle);
    assert!(exits.is_empty(), "a clone was dropped, not the last handle");
    drop(other);
    let mut exits = [(); 2].map(|()| exits.recv_timeout(LONG).unwrap());
    exits.sort_unstable();
    assert_eq!(exits, [0, 1]);
    assert_eq!(client.rest(), "in progress\n");
    until_refused(addr);
}

#[test]
fn dropping_the_last_handle_in_a_handler_stops_the_server() {
    let own = Arc::new(Mutex::new(None::<Handle>));
    let service = {
        let own = Arc::clone(&own);
        move |conn: &mut Connection| {
            drop(own.lock().take());
            echo_line(conn)
        }
    };
    let (exited, exits) = unbounded();
    let server = builder(2)
        .on_worker_exit(move |index| exited.send(index).unwrap())
        .build(service);
    let handle = server.unwrap().start().unwrap();
    let addr = addr_of(&handle);
    *own.lock() = Some(handle);
    let mut client = Client::new(addr);
    client.send("bye\n");
    assert_eq!(client.line(), "bye\n");
    assert_eq!(client.rest(), "");
    for _ in 0..2 {
        exits.recv_timeout(LONG).unwrap();
    }
    until_refused(addr);
}

/// A service that keeps the only handle of its own server.
struct Keeps {
    own: Arc<OnceLock<Handle>>,
    /// Dropped after the handle: says whether that panicked.
    panicked: Panicked,
}

struct Panicked(Sender<bool>);

impl Drop for Panicked {
    fn drop(&mut self) {
        let _ = self.0.send(thread::panicking());
    }
}

impl Service for Keeps {
    type Session = ();
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        assert!(!self.panicked.0.is_full());
        self.own.get().unwrap().stop(LONG);
        echo_line(conn)
    }
}

#[test]
fn a_service_that_keeps_the_last_handle_ends_in_peace() {
    let (panicked, has_panicked) = unbounded();
    let own = Arc::new(OnceLock::new());
    let service = Keeps {
        own: Arc::clone(&own),
        panicked: Panicked(panicked),
    };
    let handle = builder(1).build(service).unwrap().start().unwrap();
    let addr = addr_of(&handle);
    own.set(handle).unwrap();
    drop(own);
    let mut client = Client::new(addr);
    client.send("stop\n");
    assert_eq!(client.line(), "stop\n");
    let panicked = has_panicked.recv_timeout(LONG).unwrap();
    assert!(
        !panicked,
        "the server's main thread panicked when it dropped the service"
    );
}

#[test]
fn a_handler_can_stop_and_join_another_server() {
    let other = builder(1).build(echo_line).unwrap().start().unwrap();
    let other_addr = addr_of(&other);
    let service = move |conn: &mut Connection| {
        other.stop(LONG);
        assert!(other.join().is_clean());
        echo_line(conn)
    };
    let handle = builder(1).build(service).unwrap().start().unwrap();
    let mut idle = Client::new(other_addr);
    idle.send("idle\n");
    assert_eq!(idle.line(), "idle\n");
    for _ in 0..2 {
        let mut client = Client::new(addr_of(&handle));
        client.send("go\n");
        assert_eq!(client.line(), "go\n");
    }
    assert_eq!(idle.rest(), "");
    until_refused(other_addr);
    handle.stop(LONG);
    assert!(handle.join().is_clean());
}

#[test]
fn a_scoped_server_stops_also_when_its_caller_panics() {
    let served = AtomicBool::new(false);
    let mut addr = None;
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let server = builder(2).build(|conn: &mut Connection| {
            served.store(true, SeqCst);
            echo_line(conn)
        });
        server.unwrap().run_scoped(|handle| {
            addr = Some(addr_of(handle));
            let mut client = Client::new(addr_of(handle));
            client.send("hello\n");
            assert_eq!(client.line(), "hello\n");
            panic!("the caller's fault");
        })
    }));
    assert!(panic.is_err());
    assert!(served.load(SeqCst));
    until_refused(addr.unwrap());
}

#[test]
fn a_server_that_cannot_start_leaves_its_address() {
    struct NoWorker;
    impl Service for NoWorker {
        type Session = ();
        type Worker = ();
        fn worker(&self, index: usize) -> io::Result<()> {
            match index {
                0 => Err(io::Error::other("no database for worker 0")),
                _ => Ok(()),
            }
        }
        fn session(&self, _: &mut Connection) -> io::Result<()> {
            Ok(())
        }
        fn serve(&self, _: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
            Ok(Next::Close)
        }
    }
    let server = builder(4).build(NoWorker).unwrap();
    let addr = server.local_addrs()[0].as_ip().unwrap();
    let error = server.start().unwrap_err();
    assert!(error.to_string().contains("no database"), "{error}");
    until_refused(addr);
}

/// Counts threads and descriptors, so it runs in a process of its own.
#[test]
fn five_hundred_cycles_leave_nothing_behind() {
    const ALONE: &str = "HANDOVER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["five_hundred_cycles_leave_nothing_behind", "--exact"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ALONE, "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let count = || (support::threads(""), support::descriptors());
    // A thread that has been joined may be listed for a moment longer, so they are counted before there was one.
    let threads = count().0;
    for turn in 0..10 {
        cycle(turn);
    }
    let before = (threads, count().1);
    let begin = Instant::now();
    for turn in 0..rounds(500) {
        cycle(turn);
    }
    println!(
        "500 cycles in {:?}, {before:?} threads and fds",
        begin.elapsed()
    );
    let until = Instant::now() + Duration::from_secs(10);
    // What the first cycles left may have been closed since.
    let has_more = || {
        let (threads, descriptors) = count();
        threads > before.0 || descriptors > before.1
    };
    while has_more() && Instant::now() < until {
        thread::yield_now();
    }
    assert!(!has_more(), "{:?} threads and descriptors", count());
}

fn cycle(turn: usize) {
    let handle = builder(2).build(echo_line).unwrap().start().unwrap();
    let mut client = Client::new(addr_of(&handle));
    client.send("hello\nhal");
    assert_eq!(client.line(), "hello\n");
    match turn % 3 {
        0 => {
            client.send("f\n");
            handle.stop(LONG);
            assert!(handle.join().is_clean());
            assert_eq!(client.rest(), "half\n");
        }
        1 => {
            handle.stop_now();
            handle.join();
        }
        _ => {
            drop(client);
            drop(handle);
        }
    }
}

// ---- what the tests are made of ----

fn builder(workers: usize) -> Builder {
    let builder = Server::builder().listen("127.0.0.1:0");
    builder.workers(workers).drain_timeout(LONG)
}

fn addr_of(handle: &Handle) -> SocketAddr {
    handle.local_addrs()[0].as_ip().unwrap()
}

/// Sends each line back.
fn echo_line(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(1024)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    writeln!(conn, "{line}")?;
    Ok(Next::Park)
}

/// A service that sends each line back, but for "hold" waits until the gate is open.
fn held_service() -> (impl Fn(&mut Connection) -> io::Result<Next>, Gate) {
    let (reached, arrivals) = unbounded();
    let (drains, drain) = bounded(1);
    let (open, closed) = bounded::<()>(0);
    let service = move |conn: &mut Connection| {
        if conn.buffer() != b"hold\n" {
            return echo_line(conn);
        }
        conn.consume(5);
        reached.send(()).unwrap();
        let mut told = false;
        while closed.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
            if conn.is_draining() && !told {
                told = drains.send(()).is_ok();
            }
        }
        writeln!(conn, "held")?;
        Ok(Next::Park)
    };
    let gate = Gate {
        arrivals,
        drain,
        open,
    };
    (service, gate)
}

struct Gate {
    arrivals: Receiver<()>,
    drain: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    /// Waits until a handler waits.
    fn reached(&self) {
        self.arrivals.recv_timeout(LONG).unwrap();
    }

    /// Waits until a waiting handler sees that the server drains.
    fn draining(&self) {
        self.drain.recv_timeout(LONG).unwrap();
    }

    fn open(self) {
        drop(self.open);
    }
}

/// Stops a server that cannot be clean, and sees that this is over in time.
fn timed_stop(handle: &Handle, within: Duration) -> handover::Report {
    let begin = Instant::now();
    // A thread that only sleeps shows by how much this machine is late.
    let sleeper = thread::spawn(move || {
        let time = within + SLACK / 2;
        thread::sleep(time);
        begin.elapsed() - time
    });
    handle.stop(within);
    let report = handle.join();
    let took = begin.elapsed();
    let late = sleeper.join().unwrap();
    assert!(took < within + late + SLACK, "{took:?}, {late:?}: {report}");
    assert!(report.took <= took, "{took:?}: {report}");
    report
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(addr: SocketAddr) -> Self {
        Self::with(TcpStream::connect(addr).unwrap())
    }

    fn with(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let mut client = Self(BufReader::new(stream));
        client.patience(LONG);
        client
    }

    fn patience(&mut self, time: Duration) {
        self.0.get_ref().set_read_timeout(Some(time)).unwrap();
    }

    fn addr(&self) -> Addr {
        self.0.get_ref().local_addr().unwrap().into()
    }

    fn try_send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    fn send(&mut self, text: &str) {
        self.try_send(text).unwrap();
    }

    fn try_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line)
    }

    fn line(&mut self) -> String {
        self.try_line().unwrap()
    }

    /// Everything up to the end of the stream. A reset is an end as well.
    fn rest(&mut self) -> String {
        let mut text = Vec::new();
        match self.0.read_to_end(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            read => drop(read.unwrap()),
        }
        String::from_utf8(text).unwrap()
    }
}
