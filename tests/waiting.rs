//! Waiting: a fixed pool, the clients that wait for it, and those that it waits for. None of the latter may hold a
//! worker, nothing that was sent may be lost, and every wait ends.

mod support;

use std::cell::Cell;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use handover::Stream;
use handover::{Bind, BuildError, Connection, Handle, Next, Service, Setting, Stats, WorkerState};
use parking_lot::Mutex;

use support::{
    Child, Door, LIMIT, addr, answer, as_child, ask, assert_closed, assert_silent, byte_at,
    bytes_at, connect, connect_narrow, door, echo, eventually, finish, forever, is_timeout,
    keep_log, lines, logged, pause, read_pattern, reset, server, settings, start, stop, threads,
    until, wait_logged, wine_cannot,
};
#[cfg(unix)]
use support::{socket_path, unix};

/// What a test uses as a time-out that is to pass.
const SHORT: Duration = Duration::from_millis(300);

/// Answers lines; at the line `wait` only once the door has been passed.
fn guarded(door: Door) -> impl Fn(&mut Connection) -> io::Result<Next> {
    move |conn| {
        let Some(line) = conn.take_line(4096)? else {
            return Ok(if conn.at_eof() {
                Next::Close
            } else {
                Next::More
            });
        };
        if line == "wait" {
            door.pass();
        }
        writeln!(conn, "{line}")?;
        Ok(Next::Park)
    }
}

/// Serves a connection until its end in one call, as legacy code does.
fn looping(conn: &mut Connection) -> io::Result<Next> {
    let mut line = String::new();
    while conn.read_line_limited(4096, &mut line)? > 0 {
        conn.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(Next::Close)
}

fn send(client: &mut impl Write, text: &str) {
    client.write_all(text.as_bytes()).unwrap();
}

#[track_caller]
fn all_parked(handle: &Handle, count: u64) -> Stats {
    until(handle, "all are parked", |stats| {
        (stats.live, stats.parked) == (count, count)
    })
}

/// Waits until so many calls have been made, and all are over.
#[track_caller]
fn served(handle: &Handle, count: u64) {
    until(handle, "it is served", |stats| {
        (stats.served, stats.active, stats.queued) == (count, 0, 0)
    });
}

// ---- clients that wait cost nothing ----

#[test]
fn silent_clients_do_not_hang_a_small_pool() {
    let handle = start(server().workers(2), lines);
    let silent = [connect(addr(&handle)), connect(addr(&handle))];
    let mut kept = [connect(addr(&handle)), connect(addr(&handle))];
    for client in &mut kept {
        ask(client, "and now I say nothing any more");
    }
    all_parked(&handle, 4);
    for _ in 0..10 {
        ask(&mut connect(addr(&handle)), "hello");
    }
    drop((silent, kept));
    stop(&handle);
}

#[test]
fn idle_clients_need_no_threads() {
    const TEST: &str = "idle_clients_need_no_threads";
    // Other tests have threads, too.
    let Some(parent) = as_child(TEST) else {
        let mut child = Child::of(TEST);
        let at = child.hear().parse().unwrap();
        let before = child.ask("1");
        let mut clients: Vec<TcpStream> = (0..500).map(|_| connect(at)).collect();
        for client in &mut clients[..250] {
            ask(client, "hello");
        }
        ask(&mut clients[499], "hello");
        // All of them, and the one before.
        assert_eq!(child.ask("500"), before);
        drop(clients);
        return child.end();
    };
    let handle = start(server().workers(2).thread_name_prefix("few"), lines);
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    drop(client);
    until(&handle, "it has gone", |stats| stats.live == 0);
    parent.say(addr(&handle));
    let first = connect(addr(&handle));
    while let Some(count) = parent.hear() {
        if count != "1" {
            until(&handle, "all are parked", |stats| stats.parked == 501);
        }
        // The workers, the acceptor, the keeper and the main thread. Each has its name once it runs.
        eventually("five threads of the server", || threads("few") == 5);
        parent.say(threads(""));
    }
    drop(first);
    stop(&handle);
}

#[test]
fn many_slow_and_deaf_clients_do_not_delay_an_answer() {
    let answers = |conn: &mut Connection| {
        let next = lines(conn)?;
        if next == Next::Park {
            conn.write_all(&[b'x'; 60_000])?;
        }
        Ok(next)
    };
    let handle = start(server().workers(2), answers);
    let at = addr(&handle);
    let idle: Vec<TcpStream> = (0..300).map(|_| connect(at)).collect();
    let mut slow: Vec<TcpStream> = (0..50).map(|_| connect(at)).collect();
    let mut deaf: Vec<TcpStream> = (0..20).map(|_| connect_narrow(at)).collect();
    for client in &mut deaf {
        send(client, "never read\n");
    }
    for _ in 0..20 {
        for client in &mut slow {
            send(client, "x");
        }
        let mut client = connect(at);
        ask(&mut client, "hello");
        let mut rest = vec![0; 60_000];
        client.read_exact(&mut rest).unwrap();
    }
    drop((idle, slow, deaf));
    stop(&handle);
}

// ---- panics ----

/// Counts how often it builds and drops things, and has a worker state that cannot leave its thread.
#[derive(Default)]
struct Counting {
    workers: AtomicUsize,
    worker_drops: Arc<AtomicUsize>,
    session_drops: Arc<AtomicUsize>,
}

struct Own {
    calls: Rc<Cell<u64>>,
    drops: Arc<AtomicUsize>,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
    }
}

struct Session {
    lines: u64,
    drops: Arc<AtomicUsize>,
    panics: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
        if self.panics {
            panic!("the session's drop, as the test wants");
        }
    }
}

impl Service for Counting {
    type Session = Session;
    type Worker = Own;

    fn worker(&self, _: usize) -> io::Result<Own> {
        self.workers.fetch_add(1, SeqCst);
        Ok(Own {
            calls: Rc::default(),
            drops: Arc::clone(&self.worker_drops),
        })
    }

    fn session(&self, _: &mut Connection) -> io::Result<Session> {
        Ok(Session {
            lines: 0,
            drops: Arc::clone(&self.session_drops),
            panics: false,
        })
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        worker: &mut Own,
    ) -> io::Result<Next> {
        let Some(line) = conn.take_line(4096)? else {
            return Ok(if conn.at_eof() {
                Next::Close
            } else {
                Next::More
            });
        };
        session.lines += 1;
        worker.calls.set(worker.calls.get() + 1);
        match &*line {
            "panic" => panic!("the handler, as the test wants"),
            "drop" => session.panics = true,
            "both" => {
                session.panics = true;
                panic!("the handler, as the test wants")
            }
            "worker" => writeln!(conn, "{}", worker.calls.get())?,
            _ => writeln!(conn, "{}: {line}", session.lines)?,
        }
        Ok(Next::Park)
    }
}

impl Service for &'static Counting {
    type Session = Session;
    type Worker = Own;

    fn worker(&self, index: usize) -> io::Result<Own> {
        (*self).worker(index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<Session> {
        (*self).session(conn)
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Session,
        worker: &mut Own,
    ) -> io::Result<Next> {
        (*self).serve(conn, session, worker)
    }
}

fn counting() -> &'static Counting {
    forever(Counting::default())
}

#[test]
fn a_thousand_panics_cost_a_thousand_connections() {
    let counting = counting();
    let handle = start(server().workers(2).thread_name_prefix("panics"), counting);
    // Each has its name once it runs.
    eventually("five threads of the server", || threads("panics") == 5);
    let mut bystander = connect(addr(&handle));
    send(&mut bystander, "one\n");
    assert_eq!(answer(&mut bystander), "1: one");
    for _ in 0..1000 {
        let mut client = connect(addr(&handle));
        send(&mut client, "panic\n");
        assert_closed(&mut client);
    }
    let stats = until(&handle, "only one is left", |stats| stats.live == 1);
    assert_eq!(stats.panics, 1000);
    assert_eq!(threads("panics"), 5);
    send(&mut bystander, "two\n");
    assert_eq!(answer(&mut bystander), "2: two");
    drop(bystander);
    stop(&handle);
    // A worker's state is built when the worker serves, and again after each panic.
    let built = counting.workers.load(SeqCst);
    assert!((1001..=1002).contains(&built), "{built}");
    assert_eq!(counting.worker_drops.load(SeqCst), built);
    assert_eq!(counting.session_drops.load(SeqCst), 1001);
}

#[test]
fn all_workers_are_alive_after_panics() {
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| match conn.buffer() {
        b"panic" => panic!("as the test wants"),
        _ => {
            at_door.pass();
            echo(conn)
        }
    };
    let handle = start(server().workers(4), service);
    for _ in 0..50 {
        let mut client = connect(addr(&handle));
        send(&mut client, "panic");
        assert_closed(&mut client);
    }
    // Each of them holds a worker.
    let mut clients: Vec<TcpStream> = (0..4).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        send(client, "x");
        keeper.wait();
    }
    let stats = handle.stats();
    assert_eq!((stats.active, stats.panics), (4, 50));
    drop(keeper);
    drop(clients);
    stop(&handle);
}

#[test]
fn a_workers_state_is_built_anew_after_a_panic() {
    let handle = start(server().workers(1), counting());
    let ask_worker = || {
        let mut client = connect(addr(&handle));
        send(&mut client, "worker\n");
        answer(&mut client)
    };
    assert_eq!(ask_worker(), "1");
    assert_eq!(ask_worker(), "2");
    let mut client = connect(addr(&handle));
    send(&mut client, "panic\n");
    assert_closed(&mut client);
    assert_eq!(ask_worker(), "1");
    stop(&handle);
}

#[test]
fn a_panicking_session_costs_nothing_more() {
    let counting = counting();
    let builder = server().workers(1).idle_timeout(SHORT);
    let handle = start(builder, counting);
    for _ in 0..10 {
        // Dropped by a worker, in the course of a panic, and by the keeper.
        let mut client = connect(addr(&handle));
        send(&mut client, "drop\n");
        drop(client);
        let mut client = connect(addr(&handle));
        send(&mut client, "both\n");
        assert_closed(&mut client);
    }
    let mut idle = connect(addr(&handle));
    send(&mut idle, "drop\n");
    assert_closed(&mut idle);
    until(&handle, "all have gone", |stats| stats.live == 0);
    let mut idle = connect(addr(&handle));
    send(&mut idle, "hello\n");
    assert_eq!(answer(&mut idle), "1: hello");
    assert_closed(&mut idle);
    until(&handle, "all have gone", |stats| stats.live == 0);
    stop(&handle);
    assert_eq!(counting.session_drops.load(SeqCst), 22);
}

#[test]
fn a_panic_is_logged_with_its_message_and_its_client() {
    keep_log();
    let service = |_: &mut Connection| -> io::Result<Next> {
        panic!("the number is {}", 40 + 2);
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    let own = client.local_addr().unwrap().to_string();
    send(&mut client, "x");
    assert_closed(&mut client);
    let record = wait_logged("the number is 42");
    assert_eq!(record.level, log::Level::Error);
    assert!(record.text.contains(&own), "{}", record.text);
    stop(&handle);
}

/// A worker's state that can be built only so often.
struct Scarce(AtomicUsize);

impl Service for Scarce {
    type Session = ();
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        let left = self
            .0
            .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("no more of these")),
        }
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        if conn.buffer() == b"panic" {
            panic!("as the test wants");
        }
        echo(conn)
    }
}

impl Service for &'static Scarce {
    type Session = ();
    type Worker = ();

    fn worker(&self, index: usize) -> io::Result<()> {
        (*self).worker(index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<()> {
        (*self).session(conn)
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        (*self).serve(conn, &mut (), &mut ())
    }
}

#[test]
fn a_server_whose_workers_cannot_be_built_does_not_start() {
    let service = Scarce(AtomicUsize::new(0));
    let built = server()
        .workers(2)
        .thread_name_prefix("scarce")
        .build(service)
        .unwrap();
    let error = built.start().unwrap_err();
    assert!(error.to_string().contains("no more of these"), "{error}");
    support::eventually("its threads have ended", || threads("scarce") == 0);
}

#[test]
fn while_a_worker_cannot_be_rebuilt_its_connections_wait() {
    let service: &'static Scarce = forever(Scarce(AtomicUsize::new(1)));
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    send(&mut client, "panic");
    assert_closed(&mut client);
    let mut clients: Vec<_> = (0..3).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        send(client, "hello");
    }
    assert_silent(&mut clients[0]);
    service.0.store(1, SeqCst);
    for client in &mut clients {
        let mut echoed = [0; 5];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"hello");
    }
    drop(clients);
    stop(&handle);
}

// ---- pipelined requests ----

fn batch(count: usize) -> (String, Vec<String>) {
    let lines: Vec<String> = (0..count)
        .map(|i| format!("{i}-{}", "x".repeat(i % 7)))
        .collect();
    let mut text = lines.join("\n");
    text.push('\n');
    (text, lines)
}

#[track_caller]
fn assert_answers(client: &mut impl Read, lines: &[String]) {
    for line in lines {
        assert_eq!(&answer(client), line);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (text, expected) = batch(2000);
    for service in [lines, looping] {
        for workers in [1, 4] {
            let handle = start(server().workers(workers), service);
            let mut client = connect(addr(&handle));
            send(&mut client, &text);
            assert_answers(&mut client, &expected);
            // Also from one that was parked before, and with the end right behind.
            send(&mut client, &text);
            finish(&client);
            assert_answers(&mut client, &expected);
            assert_closed(&mut client);
            stop(&handle);
        }
    }
}

#[test]
fn requests_split_at_every_boundary_are_answered() {
    let (text, expected) = batch(6);
    for loops in [false, true] {
        let service = if loops { looping } else { lines };
        let handle = start(server().workers(2), service);
        for at in 0..=text.len() {
            let mut client = connect(addr(&handle));
            let sent = handle.stats().bytes_in;
            send(&mut client, &text[..at]);
            if !loops {
                // A handler that loops is counted only when it returns.
                until(&handle, "the first part is there", |stats| {
                    stats.bytes_in == sent + at as u64
                });
            }
            send(&mut client, &text[at..]);
            assert_answers(&mut client, &expected);
            finish(&client);
            assert_closed(&mut client);
            until(&handle, "it has gone", |stats| stats.live == 0);
        }
        stop(&handle);
    }
}

#[test]
fn requests_that_come_byte_by_byte_are_answered() {
    let (text, expected) = batch(20);
    for service in [lines, looping] {
        let handle = start(server().workers(1), service);
        let mut client = connect(addr(&handle));
        let mut answered = 0;
        for letter in text.bytes() {
            client.write_all(&[letter]).unwrap();
            if letter == b'\n' {
                assert_eq!(answer(&mut client), expected[answered]);
                answered += 1;
            }
        }
        drop(client);
        stop(&handle);
    }
}

#[test]
fn a_greedy_client_does_not_starve_others() {
    let handle = start(server().workers(1), lines);
    let at = addr(&handle);
    let answers = AtomicU64::new(0);
    let greedy = connect(at);
    thread::scope(|scope| {
        // Both end when the greedy connection does.
        let mut writing = greedy.try_clone().unwrap();
        let text = "greedy\n".repeat(1000);
        scope.spawn(move || while writing.write_all(text.as_bytes()).is_ok() {});
        let mut reading = greedy.try_clone().unwrap();
        let answers = &answers;
        scope.spawn(move || {
            let mut room = [0; 64 * 1024];
            while let Ok(count @ 1..) = reading.read(&mut room) {
                answers.fetch_add(count as u64, SeqCst);
            }
        });
        support::eventually("it is at it", || answers.load(SeqCst) > 10_000);
        let mut kept = connect(at);
        for _ in 0..20 {
            let before = answers.load(SeqCst);
            ask(&mut kept, "modest");
            ask(&mut connect(at), "modest and new");
            support::eventually("it goes on", || answers.load(SeqCst) > before);
        }
        greedy.shutdown(Shutdown::Both).unwrap();
    });
    drop(greedy);
    stop(&handle);
}

#[test]
fn connections_with_more_to_do_take_turns_with_others() {
    // Also where those with more to do fill the queue.
    for queue in [1, 1000] {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let (came, coming) = crossbeam_channel::unbounded();
        let service = move |conn: &mut Connection| {
            if conn.buffer() == b"long\n" && !is_done.load(SeqCst) {
                let _ = came.send(());
                return Ok(Next::Again);
            }
            lines(conn)
        };
        let handle = start(server().workers(1).queue(queue), service);
        let mut other = connect(addr(&handle));
        ask(&mut other, "short");
        let mut busy: Vec<TcpStream> = (0..3).map(|_| connect(addr(&handle))).collect();
        for client in &mut busy {
            ask(client, "short at first");
        }
        for client in &mut busy {
            send(client, "long\n");
        }
        for _ in 0..20 {
            coming.recv_timeout(LIMIT).unwrap();
            ask(&mut other, "short");
        }
        done.store(true, SeqCst);
        for client in &mut busy {
            assert_eq!(answer(client), "long");
        }
        drop((busy, other));
        stop(&handle);
    }
}

// ---- time-outs ----

/// Asserts that the server closed the connection because a time-out of `SHORT` had passed, and not before.
#[track_caller]
fn assert_expires(client: &mut TcpStream, since: Instant) {
    assert_closed(client);
    let took = since.elapsed();
    // The coarse clock is some milliseconds behind.
    assert!(
        took > SHORT - Duration::from_millis(20),
        "closed after {took:?}"
    );
}

#[test]
fn a_client_that_never_says_anything_is_closed() {
    let handle = start(server().workers(1).first_byte_timeout(SHORT), lines);
    let since = Instant::now();
    let mut silent = connect(addr(&handle));
    let mut talker = connect(addr(&handle));
    ask(&mut talker, "hello");
    assert_expires(&mut silent, since);
    // It has said something, so another time-out counts for it.
    ask(&mut talker, "hello");
    let stats = until(&handle, "one has gone", |stats| stats.live == 1);
    assert_eq!(stats.expired.first_byte, 1);
    assert_eq!((stats.expired.idle, stats.expired.read), (0, 0));
    drop(talker);
    stop(&handle);
}

#[test]
fn an_idle_client_is_closed() {
    let handle = start(server().workers(1).idle_timeout(SHORT), lines);
    let mut silent = connect(addr(&handle));
    let mut client = connect(addr(&handle));
    let since = Instant::now();
    ask(&mut client, "hello");
    assert_expires(&mut client, since);
    let stats = until(&handle, "it has gone", |stats| stats.live == 1);
    assert_eq!((stats.expired.idle, stats.expired.first_byte), (1, 0));
    ask(&mut silent, "hello");
    drop(silent);
    stop(&handle);
}

#[test]
fn a_connection_may_have_an_idle_time_out_of_its_own() {
    let service = |conn: &mut Connection| {
        conn.set_idle_timeout(SHORT);
        lines(conn)
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    let since = Instant::now();
    ask(&mut client, "hello");
    assert_expires(&mut client, since);
    assert_eq!(handle.stats().expired.idle, 1);
    stop(&handle);
}

#[test]
fn messages_put_the_idle_time_out_off() {
    let handle = start(server().workers(1).idle_timeout(SHORT), lines);
    let mut client = connect(addr(&handle));
    let start = Instant::now();
    while start.elapsed() < SHORT * 3 {
        ask(&mut client, "hello");
    }
    drop(client);
    stop(&handle);
}

/// Sends a byte again and again, with so long in between, until the connection is closed.
#[track_caller]
fn drip(client: &mut TcpStream, pause: Duration, mut meanwhile: impl FnMut()) -> Duration {
    let start = Instant::now();
    client.set_read_timeout(Some(pause)).unwrap();
    // Counted, and not timed, in case the whole machine stands still for a while.
    for _ in 0..LIMIT.as_millis() / pause.as_millis() {
        if client.write_all(b"x").is_err() {
            return start.elapsed();
        }
        match client.read(&mut [0; 16]) {
            Err(error) if is_timeout(&error) => meanwhile(),
            Ok(count @ 1..) => panic!("{count} bytes came"),
            Ok(0) | Err(_) => return start.elapsed(),
        }
    }
    panic!("it is never cut off");
}

#[test]
fn a_dripping_client_holds_no_worker_and_is_cut_off() {
    // Once with no rate, so that no byte buys time, and once with one that is too slow.
    for rate in [0, 1000] {
        let builder = server().workers(1).read_timeout(SHORT).min_rate(rate);
        let handle = start(builder, lines);
        let mut slow = connect(addr(&handle));
        let mut quick = connect(addr(&handle));
        let took = drip(&mut slow, Duration::from_millis(10), || {
            ask(&mut quick, "hello");
        });
        assert!(took > SHORT - Duration::from_millis(20), "{took:?}");
        let stats = until(&handle, "it has gone", |stats| stats.live == 1);
        assert_eq!((stats.expired.read, stats.expired.idle), (1, 0));
        drop(quick);
        stop(&handle);
    }
}

#[test]
fn a_dripping_client_cannot_keep_a_loop_style_handler() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        let result = looping(conn);
        tell.send(result.as_ref().map_err(io::Error::kind).copied())
            .unwrap();
        result
    };
    let builder = server().workers(1).read_timeout(SHORT).min_rate(1000);
    let handle = start(builder, service);
    let mut slow = connect(addr(&handle));
    drip(&mut slow, Duration::from_millis(10), || {});
    let kind = told.recv_timeout(LIMIT).unwrap().unwrap_err();
    assert_eq!(kind, io::ErrorKind::TimedOut);
    stop(&handle);
}

/// Neither by not reading what was written before: an attempt to write it is no progress.
#[test]
fn a_dripping_client_that_does_not_read_cannot_either() {
    if wine_cannot("close a connection whose peer does not read") {
        return;
    }
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        conn.write_all(&bytes_at(0, BIG))?;
        let result = looping(conn);
        tell.send(result.as_ref().map_err(io::Error::kind).copied())
            .unwrap();
        result
    };
    let builder = server().workers(1).output_limit(BIG);
    let builder = builder.read_timeout(SHORT).min_rate(1000);
    let handle = start(builder, service);
    let mut slow = connect_narrow(addr(&handle));
    let dripping = thread::spawn(move || {
        while slow.write_all(b"x").is_ok() {
            pause(Duration::from_millis(10));
        }
    });
    let kind = told.recv_timeout(LIMIT).unwrap().unwrap_err();
    assert_eq!(kind, io::ErrorKind::TimedOut);
    dripping.join().unwrap();
    stop(&handle);
}

#[test]
fn a_steady_client_may_take_longer_than_the_read_time_out() {
    let take = |conn: &mut Connection| match conn.take_until(b'\n', 16 << 20)? {
        Some(message) => {
            writeln!(conn, "{}", message.len())?;
            Ok(Next::Park)
        }
        None => Ok(Next::More),
    };
    let builder = server()
        .workers(1)
        .read_timeout(Duration::from_secs(1))
        .min_rate(1000)
        .input_limit(64 << 20);
    let handle = start(builder, take);
    // A client that the machine did not let be steady has proved nothing.
    let steady = (0..20).any(|_| {
        let mut client = connect(addr(&handle));
        client
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < Duration::from_secs(2) {
            let before = Instant::now();
            let written = client.write_all(&[b'x'; 4000]);
            sent += 4000;
            let read = client.read(&mut [0; 16]);
            if before.elapsed() > Duration::from_millis(300) {
                return false;
            }
            written.unwrap();
            match read {
                Err(error) if is_timeout(&error) => {}
                other => panic!("{other:?} after {sent} bytes"),
            }
        }
        client.set_read_timeout(Some(LIMIT)).unwrap();
        send(&mut client, "\n");
        assert_eq!(answer(&mut client), (sent + 1).to_string());
        true
    });
    assert!(steady, "this machine stands still all the time");
    stop(&handle);
}

#[test]
fn what_came_in_time_is_served_however_late_a_worker_is() {
    const TIME: Duration = Duration::from_secs(2);
    let in_time = (0..10).any(|_| {
        let (keeper, at_door) = door();
        let builder = server()
            .workers(1)
            .first_byte_timeout(TIME)
            .idle_timeout(TIME)
            .read_timeout(TIME);
        let handle = start(builder, guarded(at_door));
        let start = Instant::now();
        let mut clients = [(); 3].map(|()| connect(addr(&handle)));
        let [silent, idle, halting] = &mut clients;
        send(halting, "hal");
        until(&handle, "it has halted", |stats| stats.bytes_in == 3);
        ask(idle, "hello");
        let mut busy = connect(addr(&handle));
        send(&mut busy, "wait\n");
        keeper.wait();
        // All are parked, and nobody has time for what they send now.
        send(silent, "hello\n");
        send(idle, "hello again\n");
        send(halting, "ting\n");
        if start.elapsed() > TIME / 2 {
            return false;
        }
        pause(TIME + TIME / 2);
        drop(keeper);
        assert_eq!(answer(&mut busy), "wait");
        assert_eq!(answer(silent), "hello");
        assert_eq!(answer(idle), "hello again");
        assert_eq!(answer(halting), "halting");
        drop((clients, busy));
        stop(&handle);
        true
    });
    assert!(in_time, "this machine stands still all the time");
}

/// Also when more of them come due at once than there are places in the queue.
#[test]
fn many_that_came_in_time_are_served_however_late_a_worker_is() {
    const TIME: Duration = Duration::from_secs(if cfg!(windows) { 20 } else { 4 });
    const MANY: usize = 900;
    support::raise_descriptor_limit();
    let in_time = (0..5).any(|_| {
        let (keeper, at_door) = door();
        let builder = server().workers(1).queue(1);
        let handle = start(builder.first_byte_timeout(TIME), guarded(at_door));
        let start = Instant::now();
        let mut clients: Vec<_> = (0..MANY).map(|_| connect(addr(&handle))).collect();
        all_parked(&handle, MANY as u64);
        let mut busy = connect(addr(&handle));
        send(&mut busy, "wait\n");
        keeper.wait();
        for client in &mut clients {
            send(client, "hello\n");
        }
        if start.elapsed() > TIME / 2 {
            return false;
        }
        pause(TIME + TIME / 4);
        drop(keeper);
        for client in &mut clients {
            assert_eq!(answer(client), "hello");
        }
        assert_eq!(answer(&mut busy), "wait");
        drop((clients, busy));
        stop(&handle);
        true
    });
    assert!(in_time, "this machine stands still all the time");
}

/// A client that waits for a worker does not use its own time.
#[test]
fn a_part_that_came_in_time_leaves_the_rest_of_the_time_for_the_rest() {
    const TIME: Duration = Duration::from_millis(1500);
    // In the second round the queue is full.
    for queue in [1000, 1] {
        let in_time = (0..20).any(|_| {
            let (keeper, at_door) = door();
            let builder = server().workers(1).queue(queue);
            let handle = start(builder.read_timeout(TIME).min_rate(0), guarded(at_door));
            let mut halting = [(); 2].map(|()| connect(addr(&handle)));
            let begin = Instant::now();
            halting.iter_mut().for_each(|client| send(client, "h"));
            until(&handle, "they have halted", |stats| {
                (stats.bytes_in, stats.parked) == (2, 2)
            });
            let mut busy = connect(addr(&handle));
            send(&mut busy, "wait\n");
            keeper.wait();
            let mut queued = connect(addr(&handle));
            send(&mut queued, "queued\n");
            until(&handle, "it is queued", |stats| stats.queued == 1);
            // Each of them has used three tenths of its time.
            pause((TIME * 3 / 10).saturating_sub(begin.elapsed()));
            halting.iter_mut().for_each(|client| send(client, "al"));
            if begin.elapsed() > TIME / 2 {
                return false;
            }
            pause((TIME * 22 / 10).saturating_sub(begin.elapsed()));
            let released = Instant::now();
            drop(keeper);
            assert_eq!(answer(&mut busy), "wait");
            assert_eq!(answer(&mut queued), "queued");
            let stats = until(&handle, "the parts are read", |stats| stats.bytes_in == 18);
            if released.elapsed() > TIME / 10 {
                return false;
            }
            assert_eq!(stats.expired.read, 0, "queue {queue}");
            // The rest of one follows after some of the time that is left, that of the other one never.
            pause((TIME * 3 / 10).saturating_sub(released.elapsed()));
            send(&mut halting[0], "f\n");
            if released.elapsed() > TIME * 4 / 10 {
                return false;
            }
            assert_eq!(answer(&mut halting[0]), "half");
            assert_closed(&mut halting[1]);
            let took = released.elapsed();
            assert!(took > TIME / 2, "queue {queue}: after {took:?}");
            assert_eq!(handle.stats().expired.read, 1);
            drop((halting, busy, queued));
            stop(&handle);
            true
        });
        assert!(in_time, "this machine stands still all the time");
    }
}

#[test]
fn a_message_that_ended_with_the_stream_in_time_is_served_however_late_a_worker_is() {
    for (first, rest) in [("hal", ""), ("ha", "l"), ("", "hal")] {
        let in_time = (0..20).any(|_| {
            let (keeper, at_door) = door();
            let lines = guarded(at_door);
            // A message ends with its line, or with the stream.
            let service = move |conn: &mut Connection| {
                let held = conn.buffer().to_vec();
                if held.is_empty() || held.ends_with(b"\n") || !conn.at_eof() {
                    return lines(conn);
                }
                conn.consume(held.len());
                writeln!(conn, "{} at the end", String::from_utf8_lossy(&held))?;
                Ok(Next::Park)
            };
            let builder = server()
                .workers(1)
                .first_byte_timeout(SHORT)
                .read_timeout(SHORT)
                .min_rate(0);
            let handle = start(builder, service);
            let begin = Instant::now();
            let mut client = connect(addr(&handle));
            send(&mut client, first);
            until(&handle, "it has halted", |stats| {
                (stats.bytes_in, stats.parked) == (first.len() as u64, 1)
            });
            let mut busy = connect(addr(&handle));
            send(&mut busy, "wait\n");
            keeper.wait();
            send(&mut client, rest);
            finish(&client);
            if begin.elapsed() > SHORT / 2 {
                return false;
            }
            pause(SHORT * 2);
            drop(keeper);
            assert_eq!(answer(&mut busy), "wait");
            assert_eq!(answer(&mut client), "hal at the end", "{first}, {rest}");
            assert_closed(&mut client);
            drop(busy);
            stop(&handle);
            true
        });
        assert!(in_time, "this machine stands still all the time");
    }
}

/// However long a handler is busy otherwise, its client has all of its time left.
#[test]
fn the_time_that_a_handler_takes_is_not_its_clients() {
    const TIME: Duration = Duration::from_secs(2);
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        let mut lines = String::new();
        conn.read_line_limited(100, &mut lines)?;
        at_door.pass();
        conn.read_line_limited(100, &mut lines)?;
        for _ in 0..2 {
            conn.write_all(&bytes_at(0, BIG))?;
            at_door.pass();
        }
        Ok(Next::Close)
    };
    let builder = server()
        .workers(1)
        .read_timeout(TIME)
        .write_timeout(TIME)
        .min_rate(0)
        .output_limit(1000);
    let handle = start(builder, service);
    let mut client = connect(addr(&handle));
    send(&mut client, "fi");
    until(&handle, "it is waited for", |stats| stats.active == 1);
    send(&mut client, "rst\n");
    let busy_otherwise = || {
        keeper.wait();
        pause(TIME + TIME / 4);
        keeper.let_one_in();
    };
    busy_otherwise();
    send(&mut client, "second\n");
    read_pattern(&mut client, BIG);
    busy_otherwise();
    read_pattern(&mut client, BIG);
    drop(keeper);
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn a_deaf_client_is_closed() {
    const BIG: usize = 8 << 20;
    let service = |conn: &mut Connection| {
        conn.write_all(&bytes_at(0, BIG))?;
        Ok(Next::Close)
    };
    let builder = server().workers(1).write_timeout(SHORT).output_limit(BIG);
    let handle = start(builder, service);
    let mut deaf = connect_narrow(addr(&handle));
    let since = Instant::now();
    send(&mut deaf, "x");
    until(&handle, "its time is over", |stats| {
        stats.expired.write == 1
    });
    assert!(since.elapsed() > SHORT - Duration::from_millis(20));
    until(&handle, "it is closed", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn a_client_may_still_send_for_a_while_after_the_close_but_not_for_ever() {
    let hang_up = |_: &mut Connection| Ok(Next::Close);
    let handle = start(server().workers(1), hang_up);
    let mut client = connect(addr(&handle));
    send(&mut client, "unread");
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    let start = Instant::now();
    // One byte at a time, which nobody wants any more.
    while handle.stats().live > 0 {
        assert!(start.elapsed() < LIMIT, "it lingers for ever");
        pause(Duration::from_millis(50));
        let _ = client.write_all(b"x");
    }
    stop(&handle);
}

// ---- services that make no progress ----

#[test]
fn a_service_that_parks_with_the_same_bytes_is_called_again_only_for_more() {
    keep_log();
    let calls: &Mutex<Vec<(usize, bool)>> = forever(Mutex::default());
    let service = |conn: &mut Connection| {
        calls.lock().push((conn.buffer().len(), conn.at_eof()));
        Ok(Next::Park)
    };
    let listener = Bind::new("127.0.0.1:0").name("stubborn");
    let handle = start(settings().listen(listener).workers(2), service);
    let mut client = connect(addr(&handle));
    let mut expected = Vec::new();
    for (length, text) in [(3, "abc"), (4, "d"), (6, "ef")] {
        send(&mut client, text);
        // Once for what has come, and once more for what is taken as the next message.
        expected.extend([(length, false); 2]);
        support::eventually("it is called", || *calls.lock() == expected);
        assert_silent(&mut client);
        assert_eq!(*calls.lock(), expected);
    }
    finish(&client);
    assert_closed(&mut client);
    expected.push((6, true));
    assert_eq!(*calls.lock(), expected);
    // It is warned of once.
    let mut another = connect(addr(&handle));
    send(&mut another, "x");
    finish(&another);
    assert_closed(&mut another);
    assert_eq!(
        logged("on stubborn: the service returned Park twice").len(),
        1
    );
    stop(&handle);
}

/// A message of several lines, each taken by a call of its own. The lines may arrive together.
#[test]
fn a_service_that_takes_parts_of_a_message_is_called_for_all_that_have_arrived() {
    let calls: &AtomicUsize = forever(AtomicUsize::new(0));
    let service = |conn: &mut Connection| {
        calls.fetch_add(1, SeqCst);
        let Some(line) = conn.take_line(64)? else {
            return Ok(Next::More);
        };
        writeln!(conn, "got {line}")?;
        Ok(if line == "." { Next::Park } else { Next::More })
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    let mut answers = io::BufReader::new(client.try_clone().unwrap());
    let mut next = || answer(&mut answers);
    send(&mut client, "a\nb\n.\nc\nd");
    let got: Vec<_> = (0..4).map(|_| next()).collect();
    assert_eq!(got, ["got a", "got b", "got .", "got c"]);
    // Once for each line, and once for the part of a line.
    served(&handle, 5);
    assert_eq!(calls.load(SeqCst), 5);
    // The rest and the end of the stream arrive together.
    send(&mut client, "\ne\nf\n");
    finish(&client);
    let got: Vec<_> = (0..3).map(|_| next()).collect();
    assert_eq!(got, ["got d", "got e", "got f"]);
    assert_closed(&mut client);
    stop(&handle);
}

/// After a greeting or a wake-up no message has begun, so a stop waits for none.
#[test]
fn a_service_that_is_called_without_input_says_so() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = handover::service_with(
        |_index| Ok(()),
        |_conn| Ok(false),
        move |conn: &mut Connection, is_greeted: &mut bool, (): &mut ()| -> io::Result<Next> {
            if !std::mem::replace(is_greeted, true) {
                conn.write_all(b"hello\n")?;
                tell.send(conn.waker()).unwrap();
            }
            if conn.cause().woken {
                conn.write_all(b"news\n")?;
            }
            match conn.buffer() {
                b"" => Ok(Next::incomplete(conn)),
                _ => lines(conn),
            }
        },
    );
    let listener = Bind::new("127.0.0.1:0").speaks_first(true);
    let handle = start(settings().listen(listener).workers(1), service);
    let mut clients = [(); 2].map(|()| connect(addr(&handle)));
    for client in &mut clients {
        assert_eq!(answer(client), "hello");
    }
    ask(&mut clients[0], "a line");
    for _ in 0..2 {
        assert!(told.recv_timeout(LIMIT).unwrap().wake());
    }
    for client in &mut clients {
        assert_eq!(answer(client), "news");
    }
    all_parked(&handle, 2);
    stop(&handle);
    clients.iter_mut().for_each(assert_closed);
}

#[test]
fn a_service_that_parks_until_it_has_enough_gets_it() {
    // It should return `More`.
    let service = |conn: &mut Connection| match conn.buffer().len() {
        10.. => echo(conn),
        _ => Ok(Next::Park),
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    for round in 0..10 {
        for index in 0..10 {
            client.write_all(&[index]).unwrap();
            until(&handle, "it is read", |stats| {
                stats.bytes_in == round * 10 + u64::from(index) + 1
            });
        }
        let mut echoed = [0; 10];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
    drop(client);
    stop(&handle);
}

#[test]
fn a_service_that_parks_with_the_same_bytes_has_a_read_time_out() {
    let service = |_: &mut Connection| Ok(Next::Park);
    let handle = start(server().workers(1).read_timeout(SHORT), service);
    let mut client = connect(addr(&handle));
    let since = Instant::now();
    send(&mut client, "x");
    assert_expires(&mut client, since);
    let stats = until(&handle, "it is gone", |stats| stats.live == 0);
    assert_eq!((stats.expired.read, stats.expired.idle), (1, 0));
    stop(&handle);
}

// ---- output ----

/// Sends a pattern as long as the number that was asked for, in pieces.
fn pattern(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(64)? else {
        return Ok(if conn.at_eof() {
            Next::Close
        } else {
            Next::More
        });
    };
    let count: usize = line.parse().map_err(io::Error::other)?;
    let mut place = 0;
    while place < count {
        let piece = (place % 5000 + 1).min(count - place);
        conn.write_all(&bytes_at(place, piece))?;
        place += piece;
    }
    Ok(Next::Park)
}

const BIG: usize = 6 << 20;

#[test]
fn a_client_that_does_not_read_holds_no_worker_and_misses_nothing() {
    let handle = start(server().workers(1).output_limit(BIG), pattern);
    let mut deaf: Vec<TcpStream> = (0..3).map(|_| connect_narrow(addr(&handle))).collect();
    for client in &mut deaf {
        send(client, &format!("{BIG}\n"));
    }
    all_parked(&handle, 3);
    let mut other = connect(addr(&handle));
    for _ in 0..10 {
        send(&mut other, "1000\n");
        read_pattern(&mut other, 1000);
    }
    for client in &mut deaf {
        read_pattern(client, BIG);
    }
    // And they are served on.
    for client in &mut deaf {
        send(client, "10\n");
        read_pattern(client, 10);
    }
    drop((deaf, other));
    stop(&handle);
}

#[test]
fn clients_that_pipeline_and_do_not_read_hold_no_worker() {
    // With the limit that is there by default.
    let handle = start(server().workers(1), pattern);
    let mut deaf: Vec<TcpStream> = (0..3).map(|_| connect_narrow(addr(&handle))).collect();
    for client in &mut deaf {
        send(client, &"65536\n".repeat(200));
    }
    all_parked(&handle, 3);
    let mut other = connect(addr(&handle));
    send(&mut other, "1000\n");
    read_pattern(&mut other, 1000);
    for client in &mut deaf {
        for _ in 0..200 {
            read_pattern(client, 65536);
        }
    }
    drop((deaf, other));
    stop(&handle);
}

#[test]
fn output_is_written_while_every_worker_is_busy() {
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"wait\n" {
            at_door.pass();
            return lines(conn);
        }
        pattern(conn)
    };
    let handle = start(server().workers(1).output_limit(BIG), service);
    let mut deaf = connect_narrow(addr(&handle));
    // More than once: what was counted up must be counted down.
    for _ in 0..4 {
        let before = handle.stats().served;
        send(&mut deaf, &format!("{BIG}\n"));
        served(&handle, before + 1);
        let mut busy = connect(addr(&handle));
        send(&mut busy, "wait\n");
        keeper.wait();
        read_pattern(&mut deaf, BIG);
        keeper.let_one_in();
        assert_eq!(answer(&mut busy), "wait");
        send(&mut deaf, "10\n");
        read_pattern(&mut deaf, 10);
    }
    drop(deaf);
    stop(&handle);
}

#[test]
fn output_is_written_while_every_worker_is_busy_and_clients_connect() {
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"wait\n" {
            at_door.pass();
            return lines(conn);
        }
        pattern(conn)
    };
    let handle = start(server().workers(1).output_limit(BIG), service);
    let mut deaf = connect_narrow(addr(&handle));
    send(&mut deaf, &format!("{BIG}\n"));
    served(&handle, 1);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait\n");
    keeper.wait();
    thread::scope(|scope| {
        // As many as there are places in the queue.
        scope.spawn(|| (0..1000).for_each(|_| drop(connect(addr(&handle)))));
        read_pattern(&mut deaf, BIG);
    });
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    drop((deaf, busy));
    stop(&handle);
}

/// More connections are ready than the queue takes. The output of others is written all the same.
#[test]
fn output_is_written_while_the_queue_is_full() {
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"wait\n" {
            at_door.pass();
            return lines(conn);
        }
        pattern(conn)
    };
    let handle = start(server().workers(1).queue(1).output_limit(BIG), service);
    // The second one has sent another request behind the first.
    let requests = [format!("{BIG}\n"), format!("{BIG}\n10\n")];
    let mut deaf = requests.map(|request| {
        let mut client = connect_narrow(addr(&handle));
        send(&mut client, &request);
        client
    });
    all_parked(&handle, 2);
    let mut others: Vec<TcpStream> = (0..400).map(|_| connect(addr(&handle))).collect();
    all_parked(&handle, 402);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait\n");
    keeper.wait();
    for client in &mut others {
        send(client, "10\n");
    }
    until(&handle, "the queue is full", |stats| stats.queued >= 257);
    for client in &mut deaf {
        read_pattern(client, BIG);
    }
    send(&mut deaf[0], "10\n");
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    for client in others.iter_mut().chain(&mut deaf) {
        read_pattern(client, 10);
    }
    drop((deaf, others, busy));
    stop(&handle);
}

#[cfg(target_os = "linux")] // how often a thread has slept
#[test]
fn the_keeper_sleeps_when_nothing_is_to_be_written() {
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"wait\n" {
            at_door.pass();
            return lines(conn);
        }
        pattern(conn)
    };
    let builder = server()
        .workers(1)
        .output_limit(BIG)
        .first_byte_timeout(SHORT)
        .thread_name_prefix("sleepy");
    let handle = start(builder, service);
    let mut deaf = connect_narrow(addr(&handle));
    send(&mut deaf, &format!("{BIG}\n"));
    served(&handle, 1);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait\n");
    keeper.wait();
    read_pattern(&mut deaf, BIG);
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    send(&mut deaf, "10\n");
    read_pattern(&mut deaf, 10);
    // It has had something to do after that, so that it has gone to sleep anew.
    assert_closed(&mut connect(addr(&handle)));
    all_parked(&handle, 2);

    let switches = || -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let read = |task: &std::path::Path, file: &str| {
            std::fs::read_to_string(task.join(file)).unwrap_or_default()
        };
        let paths = tasks.map(|task| task.unwrap().path());
        let own = paths.filter(|task| read(task, "comm").starts_with("sleepy"));
        own.map(|task| {
            let status = read(&task, "status");
            let line = status.lines().find(|line| line.starts_with("voluntary"));
            let count = line.and_then(|line| line.rsplit_once('\t')?.1.parse().ok());
            count.unwrap_or(0)
        })
        .sum()
    };
    let before = switches();
    pause(Duration::from_secs(1));
    let more = switches() - before;
    assert!(
        more < 20,
        "the idle server woke up {more} times in a second"
    );
    drop((deaf, busy));
    stop(&handle);
}

#[test]
fn past_the_limit_a_write_waits_and_completes() {
    let handle = start(server().workers(2).output_limit(1000), pattern);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, &format!("{BIG}\n"));
    until(&handle, "a worker waits", |stats| stats.active == 1);
    read_pattern(&mut client, BIG);
    drop(client);
    stop(&handle);
}

#[test]
fn past_the_limit_a_write_ends_at_its_deadline() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        let start = Instant::now();
        let result = pattern(conn);
        let kind = result.as_ref().map_err(io::Error::kind).copied();
        tell.send((kind, start.elapsed())).unwrap();
        result
    };
    let builder = server().workers(1).write_timeout(SHORT);
    let handle = start(builder, service);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, &format!("{}\n", 8 * BIG));
    let (result, took) = told.recv_timeout(LIMIT).unwrap();
    assert_eq!(result, Err(io::ErrorKind::TimedOut));
    assert!(took >= SHORT, "after {took:?}");
    until(&handle, "it is closed", |stats| stats.live == 0);
    ask_pattern(&handle);
    stop(&handle);
}

#[track_caller]
fn ask_pattern(handle: &Handle) {
    let mut client = connect(addr(handle));
    send(&mut client, "10\n");
    read_pattern(&mut client, 10);
}

/// Reads so many bytes at a time, 20 times a second, for as long as `goes_on`; checks them, and says how many they were.
#[track_caller]
fn read_slowly(client: &mut TcpStream, step: usize, goes_on: impl Fn() -> bool) -> usize {
    let start = Instant::now();
    let mut place = 0;
    let mut room = vec![0; step];
    while goes_on() {
        assert!(start.elapsed() < LIMIT, "it goes on for ever");
        client.read_exact(&mut room).unwrap();
        assert!(room == bytes_at(place, step), "wrong bytes after {place}");
        place += step;
        pause(Duration::from_millis(50));
    }
    place
}

#[test]
fn a_reader_that_is_too_slow_is_cut_off_in_the_end() {
    let builder = server()
        .workers(1)
        .write_timeout(SHORT)
        .min_rate(10_000_000)
        .output_limit(BIG);
    let handle = start(builder, pattern);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, &format!("{BIG}\n"));
    // The end comes later, after what the kernel holds.
    let place = read_slowly(&mut client, 1000, || handle.stats().expired.write == 0);
    assert!(place < BIG);
    until(&handle, "it is closed", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn a_reader_that_is_merely_slow_is_not_cut_off() {
    if wine_cannot("write to a socket that Linux does not report as writable yet") {
        return;
    }
    // The kernel reports a socket as writable only when a third of its buffer is free, which takes such a client
    // longer than the write time-out: it has to be asked. Both parked, and in a handler that waits.
    for limit in [BIG, 1000] {
        let builder = server()
            .workers(1)
            .write_timeout(Duration::from_secs(1))
            .min_rate(1000)
            .output_limit(limit);
        let handle = start(builder, pattern);
        let mut client = connect_narrow(addr(&handle));
        send(&mut client, &format!("{BIG}\n"));
        let start = Instant::now();
        let mut first = read_slowly(&mut client, 10_000, || {
            start.elapsed() < Duration::from_secs(4)
        });
        let mut room = vec![0; 1 << 16];
        while first < BIG {
            let count = client.read(&mut room).unwrap();
            assert_ne!(count, 0, "cut off after {first} bytes");
            assert!(room[..count] == bytes_at(first, count)[..]);
            first += count;
        }
        drop(client);
        stop(&handle);
    }
}

#[test]
fn a_handler_that_waits_for_input_writes_its_output_meanwhile() {
    let service = |conn: &mut Connection| {
        conn.write_all(&bytes_at(0, BIG))?;
        let mut word = String::new();
        conn.read_line_limited(100, &mut word)?;
        conn.read_line_limited(100, &mut word)?;
        conn.write_all(word.as_bytes())?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1).output_limit(BIG), service);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, "first\n");
    // It sends its second line only when it has read all.
    read_pattern(&mut client, BIG);
    send(&mut client, "second\n");
    assert_eq!(answer(&mut client), "first");
    assert_eq!(answer(&mut client), "second");
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn vectored_writes_arrive_in_order() {
    let service = |conn: &mut Connection| {
        let parts: Vec<Vec<u8>> = (0..3000).map(|i| bytes_at(i * 1000, 1000)).collect();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        while !slices.is_empty() {
            let count = conn.write_vectored(slices)?;
            assert!(count > 0);
            IoSlice::advance_slices(&mut slices, count);
        }
        Ok(Next::Close)
    };
    for limit in [0, 1, 1500, 64 * 1024, 4 << 20] {
        let handle = start(server().workers(1).output_limit(limit), service);
        let mut client = connect_narrow(addr(&handle));
        send(&mut client, "x");
        read_pattern(&mut client, 3_000_000);
        assert_closed(&mut client);
        drop(client);
        stop(&handle);
    }
}

#[test]
fn all_that_was_written_arrives_before_the_close() {
    let service = |conn: &mut Connection| {
        conn.write_all(&bytes_at(0, BIG))?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1).output_limit(BIG), service);
    for unread in [1, 100_000] {
        // What the client sends and nobody reads must not take the answer with it.
        let mut client = connect_narrow(addr(&handle));
        client.write_all(&vec![b'x'; unread]).unwrap();
        read_pattern(&mut client, BIG);
        assert_closed(&mut client);
    }
    stop(&handle);
}

// ---- the ends of streams ----

/// Nor is it cut off by what the client sent meanwhile and nobody read.
#[test]
fn an_answer_arrives_though_more_was_sent_while_it_was_made() {
    const SIZE: usize = 60_000;
    let (keeper, at_door) = door();
    let service = move |conn: &mut Connection| {
        at_door.pass();
        conn.write_all(&bytes_at(0, SIZE))?;
        let held = conn.buffer().len();
        conn.consume(held);
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, "first\n");
    keeper.wait();
    send(&mut client, "late\n");
    keeper.let_one_in();
    // All of the answer is with the kernel, and the client has read nothing of it.
    until(&handle, "it is written", |stats| {
        stats.bytes_out == SIZE as u64
    });
    read_pattern(&mut client, SIZE);
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    for service in [lines, looping] {
        let handle = start(server().workers(2), service);
        for _ in 0..200 {
            let mut client = connect(addr(&handle));
            send(&mut client, "hello\n");
            finish(&client);
            assert_eq!(answer(&mut client), "hello");
            // And the end is noticed, long before the idle time-out.
            assert_closed(&mut client);
        }
        until(&handle, "all have gone", |stats| stats.live == 0);
        stop(&handle);
    }
}

#[test]
fn the_end_of_a_parked_connection_is_noticed() {
    let handle = start(server().workers(2), lines);
    for round in 0..200 {
        let mut client = connect(addr(&handle));
        ask(&mut client, "hello");
        if round % 2 == 0 {
            all_parked(&handle, 1);
        }
        match round % 3 {
            0 => reset(client),
            1 => {
                send(&mut client, "the last\n");
                finish(&client);
                assert_eq!(answer(&mut client), "the last");
                assert_closed(&mut client);
            }
            _ => drop(client),
        }
        until(&handle, "it has gone", |stats| stats.live == 0);
    }
    assert_eq!(handle.stats().expired.idle, 0);
    stop(&handle);
}

#[test]
fn a_half_closed_client_gets_all_of_a_long_answer() {
    let handle = start(server().workers(1).output_limit(BIG), pattern);
    let mut client = connect_narrow(addr(&handle));
    send(&mut client, &format!("{BIG}\n"));
    finish(&client);
    all_parked(&handle, 1);
    read_pattern(&mut client, BIG);
    assert_closed(&mut client);
    until(&handle, "it has gone", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn the_end_in_the_middle_of_a_message_is_told_to_the_service() {
    let service = |conn: &mut Connection| match conn.take_line(100)? {
        Some(line) => {
            writeln!(conn, "{line}")?;
            Ok(Next::Park)
        }
        None if conn.at_eof() => {
            let rest = conn.buffer().len();
            writeln!(conn, "{rest} bytes and no end of line")?;
            Ok(Next::Close)
        }
        None => Ok(Next::More),
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    send(&mut client, "whole\nhal");
    assert_eq!(answer(&mut client), "whole");
    send(&mut client, "f");
    finish(&client);
    assert_eq!(answer(&mut client), "4 bytes and no end of line");
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn a_server_may_half_close() {
    let service = |conn: &mut Connection| {
        let Some(line) = conn.take_line(100)? else {
            return Ok(Next::More);
        };
        writeln!(conn, "{line}, and nothing more")?;
        conn.shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        conn.read_to_end(&mut rest)?;
        assert_eq!(rest, b"I still talk");
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    send(&mut client, "hello\n");
    assert_eq!(answer(&mut client), "hello, and nothing more");
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    send(&mut client, "I still talk");
    finish(&client);
    until(&handle, "it has gone", |stats| stats.live == 0);
    assert_eq!(handle.stats().panics, 0);
    stop(&handle);
}

// ---- reading ----

#[test]
fn a_handler_may_loop_until_the_end() {
    let handle = start(server().workers(2), looping);
    let mut clients = [connect(addr(&handle)), connect(addr(&handle))];
    for round in 0..100 {
        for client in &mut clients {
            ask(client, &round.to_string());
        }
    }
    assert_eq!(handle.stats().served, 2);
    drop(clients);
    stop(&handle);
}

#[test]
fn large_and_small_reads_give_every_byte_once() {
    let service = |conn: &mut Connection| {
        let (mut place, mut size) = (0, 1);
        let mut room = vec![0; 100_000];
        loop {
            size = size * 7 % 100_000 + 1;
            let count = conn.read(&mut room[..size])?;
            if count == 0 {
                break;
            }
            assert!(room[..count] == bytes_at(place, count)[..]);
            place += count;
            // Now and then by the other door.
            let bytes = conn.fill_buf()?;
            if !bytes.is_empty() && place % 3 == 0 {
                assert_eq!(bytes[0], byte_at(place));
                conn.consume(1);
                place += 1;
            }
        }
        writeln!(conn, "{place}")?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    client.write_all(&bytes_at(0, BIG)).unwrap();
    finish(&client);
    assert_eq!(answer(&mut client), BIG.to_string());
    stop(&handle);
}

#[test]
fn lines_have_a_limit() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        let mut line = String::new();
        let mut results = Vec::new();
        loop {
            match conn.read_line_limited(8, &mut line) {
                Ok(0) => break,
                Ok(count) => results.push(Ok(count)),
                Err(error) => {
                    results.push(Err(error.kind()));
                    break;
                }
            }
        }
        tell.send((results, line)).unwrap();
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    let too_long = Err(io::ErrorKind::InvalidData);
    for (sent, results, text) in [
        ("1234567\n", vec![Ok(8)], "1234567\n"),
        ("12345678\n", vec![too_long], ""),
        ("a\r\nb", vec![Ok(3), Ok(1)], "a\r\nb"),
        ("\n\n", vec![Ok(1), Ok(1)], "\n\n"),
        ("a\n12345678901234567890", vec![Ok(2), too_long], "a\n"),
    ] {
        let mut client = connect(addr(&handle));
        send(&mut client, sent);
        finish(&client);
        let expected = (results, text.to_owned());
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), expected, "{sent:?}");
    }
    let mut client = connect(addr(&handle));
    client.write_all(b"\xff\n").unwrap();
    assert_eq!(told.recv_timeout(LIMIT).unwrap().0, [too_long]);
    stop(&handle);
}

#[test]
fn lines_that_are_taken_have_a_limit() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        match conn.take_line(8) {
            Ok(None) if !conn.at_eof() => return Ok(Next::More),
            Ok(None) => {}
            Ok(Some(line)) => {
                tell.send(Ok(line)).unwrap();
                return Ok(Next::Park);
            }
            Err(error) => tell.send(Err(error.kind())).unwrap(),
        }
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    for (sent, expected) in [
        ("1234567\n", Ok("1234567")),
        ("\r\n", Ok("")),
        ("a\rb\r\n", Ok("a\rb")),
        ("12345678\n", Err(io::ErrorKind::InvalidData)),
        ("12345678901234567890", Err(io::ErrorKind::InvalidData)),
    ] {
        let mut client = connect(addr(&handle));
        send(&mut client, sent);
        let expected = expected.map(str::to_owned);
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), expected, "{sent:?}");
    }
    stop(&handle);
}

#[test]
fn a_message_may_be_as_long_as_the_input_limit_and_no_longer() {
    const INPUT: usize = 40_000;
    let handle = start(
        server().workers(1).input_limit(INPUT),
        |conn: &mut Connection| match conn.take_until(b'\n', usize::MAX)? {
            Some(message) => {
                writeln!(conn, "{}", message.len())?;
                Ok(Next::Park)
            }
            None => Ok(Next::More),
        },
    );
    let mut client = connect(addr(&handle));
    let mut message = vec![b'x'; INPUT - 1];
    message.push(b'\n');
    client.write_all(&message).unwrap();
    assert_eq!(answer(&mut client), INPUT.to_string());
    let _ = client.write_all(&vec![b'x'; INPUT + 1]);
    assert_closed(&mut client);
    until(&handle, "it is closed", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn a_small_input_limit_is_kept_exactly_and_the_service_learns_of_it() {
    const INPUT: usize = 10;
    let calls: &Mutex<Vec<(usize, bool)>> = forever(Mutex::default());
    let service = |conn: &mut Connection| {
        calls
            .lock()
            .push((conn.buffer().len(), conn.is_input_full()));
        if let Some(message) = conn.take_until(b'\n', usize::MAX)? {
            writeln!(conn, "{}", message.len())?;
            return Ok(Next::Park);
        }
        if conn.is_input_full() {
            writeln!(conn, "too long")?;
        }
        Ok(Next::More)
    };
    let handle = start(server().workers(1).input_limit(INPUT), service);
    let message = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
    // As long as may be, one after another and at once.
    let mut client = connect(addr(&handle));
    for count in [1, 1, 3] {
        client.write_all(&message(INPUT).repeat(count)).unwrap();
        (0..count).for_each(|_| assert_eq!(answer(&mut client), "10"));
    }
    assert_eq!(handle.stats().too_long, 0);
    for (index, length) in [INPUT + 1, INPUT + 2, 50, 100_000].into_iter().enumerate() {
        let mut client = connect(addr(&handle));
        // The server may close before it has read all.
        let _ = client.write_all(&message(length));
        assert_eq!(answer(&mut client), "too long", "{length}");
        assert_closed(&mut client);
        assert_eq!(handle.stats().too_long, index as u64 + 1);
    }
    let calls = calls.lock();
    for (length, is_full) in &*calls {
        assert!(
            *length <= INPUT && *is_full == (*length == INPUT),
            "{calls:?}"
        );
    }
    drop(client);
    stop(&handle);
}

#[test]
fn deadlines_can_be_set_for_one_connection() {
    let (tell, told) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        let which = conn.take_line(100)?.unwrap_or_default();
        let start = Instant::now();
        let result = match &*which {
            "read time-out" => {
                conn.set_read_timeout(SHORT);
                conn.fill_buf().map(drop)
            }
            "read deadline" => {
                conn.set_read_deadline(Some(start + SHORT));
                conn.fill_buf().map(drop)
            }
            "write time-out" => {
                conn.set_write_timeout(SHORT);
                conn.write_all(&vec![0; 32 << 20])
            }
            "write deadline" => {
                conn.set_write_deadline(Some(start + SHORT));
                conn.write_all(&vec![0; 32 << 20])
            }
            _ => {
                conn.set_write_timeout(SHORT);
                conn.set_output_limit(32 << 20);
                conn.write_all(&vec![0; 32 << 20]).unwrap();
                conn.flush_all()
            }
        };
        let kind = result.map_err(|error| error.kind());
        tell.send((kind, start.elapsed())).unwrap();
        Ok(Next::Close)
    };
    let builder = server().workers(1).write_timeout(SHORT);
    let handle = start(builder, service);
    for which in [
        "read time-out",
        "read deadline",
        "write time-out",
        "write deadline",
        "flush",
    ] {
        let mut client = connect_narrow(addr(&handle));
        send(&mut client, &format!("{which}\n"));
        let (result, took) = told.recv_timeout(LIMIT).unwrap();
        assert_eq!(result, Err(io::ErrorKind::TimedOut), "{which}");
        assert!(took >= SHORT, "{which}: after {took:?}");
    }
    stop(&handle);
}

// ---- detach ----

#[test]
fn a_detached_socket_comes_with_what_was_not_read() {
    let (give, given) = crossbeam_channel::unbounded();
    let service = move |conn: &mut Connection| {
        let Some(line) = conn.take_line(100)? else {
            return Ok(Next::More);
        };
        if line != "upgrade" {
            writeln!(conn, "{line}")?;
            return Ok(Next::Park);
        }
        conn.write_all(b"switching\n")?;
        let detached = conn.detach()?;
        assert_eq!(conn.read(&mut [0; 8])?, 0);
        assert!(conn.write(b"x").is_err());
        give.send(detached).unwrap();
        Ok(Next::Close)
    };
    let builder = server().workers(1);
    #[cfg(unix)]
    let (_dir, path) = socket_path();
    #[cfg(unix)]
    let builder = builder.listen(unix(&path));
    let handle = start(builder, service);

    let mut client = connect(addr(&handle));
    ask(&mut client, "parked once before");
    send(&mut client, "upgrade\nrest");
    let detached = given.recv_timeout(LIMIT).unwrap();
    assert_eq!(detached.unread(), b"rest");
    assert_eq!(answer(&mut client), "switching");
    until(&handle, "the server has none left", |stats| stats.live == 0);
    // It outlives the server, and blocks.
    let (mut stream, _) = detached.into_parts();
    assert!(stream.tcp().is_some());
    #[cfg(unix)]
    let mut local = UnixStream::connect(&path).unwrap();
    #[cfg(unix)]
    let mut local_stream = {
        send(&mut local, "upgrade\n");
        match given.recv_timeout(LIMIT).unwrap().into_parts() {
            (Stream::Unix(stream), _) => stream,
            (other, _) => panic!("it is a Unix connection, not {other:?}"),
        }
    };
    stop(&handle);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut word = [0; 5];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        });
        send(&mut client, "later");
        let mut word = [0; 5];
        client.read_exact(&mut word).unwrap();
        assert_eq!(word, *b"later");
        reading.join().unwrap();
    });
    drop(stream);
    assert_closed(&mut client);
    #[cfg(unix)]
    {
        assert_eq!(answer(&mut local), "switching");
        send(&mut local_stream, "hello\n");
        assert_eq!(answer(&mut local), "hello");
    }
}

// ---- sessions, hooks, and the rest ----

#[test]
fn sessions_survive_parking() {
    let counting = counting();
    let handle = start(server().workers(4), counting);
    let mut clients: Vec<TcpStream> = (0..20).map(|_| connect(addr(&handle))).collect();
    for round in 1..=20 {
        for (index, client) in clients.iter_mut().enumerate() {
            send(client, &format!("{index}\n"));
        }
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(answer(client), format!("{round}: {index}"));
        }
        all_parked(&handle, 20);
    }
    drop(clients);
    stop(&handle);
    assert_eq!(counting.session_drops.load(SeqCst), 20);
    let built = counting.workers.load(SeqCst);
    assert!((1..=4).contains(&built), "{built}");
}

#[test]
fn hooks_run_on_every_workers_thread() {
    let calls: &'static Mutex<Vec<(&str, usize, String)>> = forever(Mutex::default());
    let note = move |what: &'static str| {
        move |index| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            calls.lock().push((what, index, name));
        }
    };
    let builder = server()
        .workers(3)
        .thread_name_prefix("hooked")
        .on_worker_start(note("start"))
        .on_worker_exit(note("exit"));
    let handle = start(builder, lines);
    // All of them have started when `start` returns.
    assert_eq!(calls.lock().len(), 3);
    ask(&mut connect(addr(&handle)), "hello");
    stop(&handle);
    let mut calls = calls.lock();
    calls.sort();
    let expected: Vec<(&str, usize, String)> = ["exit", "start"]
        .iter()
        .flat_map(|what| (0..3).map(move |index| (*what, index, format!("hooked-{index}"))))
        .collect();
    assert_eq!(*calls, expected);
}

#[test]
fn workers_have_the_stack_that_they_are_given() {
    const TEST: &str = "workers_have_the_stack_that_they_are_given";
    // An overflow ends the process.
    let Some(parent) = as_child(TEST) else {
        let child = Child::of(TEST);
        assert_eq!(child.hear(), "done");
        return child.end();
    };
    let deep = |conn: &mut Connection| {
        let room = std::hint::black_box([1_u8; 12 << 20]);
        let sum: u64 = room.iter().map(|&byte| u64::from(byte)).sum();
        writeln!(conn, "{sum}")?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1).stack_size(32 << 20), deep);
    let mut client = connect(addr(&handle));
    send(&mut client, "x");
    assert_eq!(answer(&mut client), (12 << 20).to_string());
    drop(client);
    stop(&handle);
    parent.say("done");
}

#[test]
fn nothing_of_nothing_is_an_error_and_not_a_panic() {
    let zero = |builder: handover::Builder, setting: Setting, name: &str| {
        let error = builder.build(lines).unwrap_err();
        assert!(matches!(error, BuildError::Zero(found) if found == setting));
        assert_eq!(error.to_string(), format!("{name} must be at least 1"));
    };
    zero(server().workers(0), Setting::Workers, "workers");
    zero(server().queue(0), Setting::Queue, "queue");
    let (connections, per_client) = (Setting::MaxConnections, Setting::MaxPerClient);
    zero(server().max_connections(0), connections, "max_connections");
    zero(server().max_per_client(0), per_client, "max_per_client");
    zero(server().input_limit(0), Setting::InputLimit, "input_limit");
    let error = settings().build(lines).unwrap_err();
    assert!(matches!(error, BuildError::NoListener), "{error}");
}

#[cfg(unix)] // Unix sockets
#[test]
fn unix_sockets_are_served_alike() {
    let (_dir, path) = socket_path();
    let builder = settings().listen(unix(&path)).workers(1).output_limit(BIG);
    let handle = start(builder, pattern);
    let open = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    };
    let silent = open();
    let mut deaf = open();
    send(&mut deaf, &format!("{BIG}\n"));
    let mut client = open();
    for _ in 0..100 {
        send(&mut client, "1000\n");
        read_pattern(&mut client, 1000);
    }
    send(&mut client, &"100\n".repeat(100));
    for _ in 0..100 {
        read_pattern(&mut client, 100);
    }
    read_pattern(&mut deaf, BIG);
    client.shutdown(Shutdown::Write).unwrap();
    assert_closed(&mut client);
    drop((silent, deaf));
    until(&handle, "all have gone", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn a_scoped_server_borrows_from_its_caller() {
    let served = AtomicUsize::new(0);
    let greeting = String::from("hello");
    let service = |conn: &mut Connection| {
        served.fetch_add(1, SeqCst);
        writeln!(conn, "{greeting}")?;
        Ok(Next::Close)
    };
    let server = server()
        .workers(2)
        .thread_name_prefix("scoped")
        .build(service)
        .unwrap();
    let (value, report) = server
        .run_scoped(|handle| {
            for _ in 0..10 {
                let mut client = connect(addr(handle));
                send(&mut client, "x");
                assert_eq!(answer(&mut client), greeting);
            }
            served.load(SeqCst)
        })
        .unwrap();
    assert_eq!(value, 10);
    assert!(report.is_clean(), "{report}");
    // They have ended, as far as the standard library can tell; the kernel may take a moment more.
    support::eventually("its threads are gone", || threads("scoped") == 0);
}

#[test]
fn stats_say_what_happens() {
    let (keeper, at_door) = door();
    let handle = start(server().workers(2), guarded(at_door));
    let mut client = connect(addr(&handle));
    let own = client.local_addr().unwrap();
    ask(&mut client, "hello");
    // Bytes are counted when the connection is parked.
    let stats = until(&handle, "it is counted", |stats| stats.bytes_out == 6);
    assert_eq!((stats.accepted, stats.served, stats.bytes_in), (1, 1, 6));
    assert_eq!((stats.live, stats.parked), (1, 1));
    assert_eq!(stats.workers, [WorkerState::Idle, WorkerState::Idle]);
    send(&mut client, "wait\n");
    keeper.wait();
    let stats = handle.stats();
    assert_eq!((stats.active, stats.parked, stats.queued), (1, 0, 0));
    let serving = stats.workers.iter().find_map(|worker| match worker {
        WorkerState::Serving { peer, .. } => peer.as_ip(),
        _ => None,
    });
    assert_eq!(serving, Some(own));
    drop(keeper);
    assert_eq!(answer(&mut client), "wait");
    drop(client);
    stop(&handle);
    let stats = handle.stats();
    assert_eq!((stats.live, stats.bytes_in, stats.bytes_out), (0, 11, 11));
}

#[test]
fn a_silent_time_costs_no_bytes() {
    // A parked client hears nothing until it asks.
    let handle = start(server().workers(1), lines);
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_silent(&mut client);
    drop(client);
    stop(&handle);
}
