//! Connections that wait for the server: wakers, timers, the client's end, expiry as an event, and the drain.

mod support;

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use handover::{Cause, Connection, Expiry, Next, Service, Waker};

use support::{
    QUIET, addr, answer, ask, assert_closed, assert_silent, connect, door, eventually, finish,
    lines, pause, reset, server, start, stop, until,
};

/// What the service tells the test.
#[derive(Debug)]
enum Told {
    Waker(Waker),
    /// A call while the connection waited, and what was in the buffer.
    Called(Cause, String),
    Dropped,
}

/// Answers lines. The line `wait` makes a waker, and is answered when a call comes for another cause than input.
struct Waiting {
    told: Sender<Told>,
    /// What is returned while the answer is not there: `Wait` or `Park`.
    next: Next,
}

struct WaitingSession {
    told: Sender<Told>,
    is_waiting: bool,
}

impl Drop for WaitingSession {
    fn drop(&mut self) {
        let _ = self.told.send(Told::Dropped);
    }
}

impl Service for Waiting {
    type Session = WaitingSession;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &Connection) -> io::Result<WaitingSession> {
        Ok(WaitingSession {
            told: self.told.clone(),
            is_waiting: false,
        })
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut WaitingSession,
        (): &mut (),
    ) -> io::Result<Next> {
        let cause = conn.cause();
        if session.is_waiting {
            let buffer = String::from_utf8_lossy(conn.buffer()).into_owned();
            let _ = self.told.send(Told::Called(cause, buffer));
            if cause.draining {
                conn.write_all(b"goodbye\n")?;
                return Ok(Next::Close);
            }
            if cause.ended {
                return Ok(Next::Close);
            }
            if !cause.woken && !cause.timer {
                return Ok(self.next);
            }
            session.is_waiting = false;
            conn.write_all(b"woken\n")?;
        } else if conn.buffer() == b"wait\n" || conn.buffer().starts_with(b"wait\n") {
            let _ = conn.take_line(64)?;
            let _ = self.told.send(Told::Waker(conn.waker()));
            session.is_waiting = true;
            return Ok(self.next);
        }
        match conn.buffer().is_empty() {
            true => Ok(Next::Park),
            false => lines(conn),
        }
    }
}

fn waiting(next: Next) -> (Waiting, Receiver<Told>) {
    let (told, tell) = unbounded();
    (Waiting { told, next }, tell)
}

/// Sends `wait`, and returns the waker of the connection.
#[track_caller]
fn wait(client: &mut TcpStream, told: &Receiver<Told>) -> Waker {
    client.write_all(b"wait\n").unwrap();
    match told.recv().unwrap() {
        Told::Waker(waker) => waker,
        told => panic!("{told:?}"),
    }
}

#[track_caller]
fn called(told: &Receiver<Told>) -> (Cause, String) {
    match told.recv().unwrap() {
        Told::Called(cause, buffer) => (cause, buffer),
        told => panic!("{told:?}"),
    }
}

/// `Wait` until the client leaves or the server stops.
fn until_the_end(conn: &Connection) -> Next {
    match conn.cause() {
        Cause { ended: true, .. } | Cause { draining: true, .. } => Next::Close,
        _ => Next::Wait,
    }
}

fn cause(set: impl FnOnce(&mut Cause)) -> Cause {
    let mut cause = Cause::default();
    set(&mut cause);
    cause
}

#[test]
fn a_waker_has_the_service_called() {
    for next in [Next::Wait, Next::Park] {
        let (service, told) = waiting(next);
        let handle = start(server().workers(2), service);
        let mut client = connect(addr(&handle));
        ask(&mut client, "hello");
        for _ in 0..100 {
            let waker = wait(&mut client, &told);
            assert!(waker.wake());
            assert_eq!(answer(&mut client), "woken");
            assert_eq!(
                called(&told),
                (cause(|cause| cause.woken = true), String::new())
            );
        }
        let waker = wait(&mut client, &told);
        assert_silent(&mut client);
        thread::spawn(move || waker.wake()).join().unwrap();
        assert_eq!(answer(&mut client), "woken");
        drop(client);
        stop(&handle);
    }
}

#[test]
fn wake_ups_before_the_connection_is_parked_become_one_call() {
    let (keeper, at_door) = door();
    let (tell, told) = unbounded();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        if conn.cause().woken {
            count.fetch_add(1, SeqCst);
            conn.write_all(b"woken\n")?;
            return Ok(Next::Wait);
        }
        if conn.take_line(64)?.is_none() {
            return Ok(until_the_end(conn));
        }
        tell.send(conn.waker()).unwrap();
        at_door.pass();
        Ok(Next::Wait)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    let waker = told.recv().unwrap();
    keeper.wait();
    (0..10).for_each(|_| assert!(waker.wake()));
    keeper.let_one_in();
    assert_eq!(answer(&mut client), "woken");
    assert_silent(&mut client);
    assert_eq!(calls.load(SeqCst), 1);
    drop(client);
    stop(&handle);
}

#[test]
fn a_waker_of_a_former_connection_does_nothing_and_says_so() {
    let (service, told) = waiting(Next::Park);
    let handle = start(server().workers(2), service);
    let mut client = connect(addr(&handle));
    let waker = wait(&mut client, &told);
    drop(client);
    until(&handle, "the connection has ended", |stats| stats.live == 0);
    assert!(!waker.wake());
    // The next connection uses the same slot.
    let mut client = connect(addr(&handle));
    let other = wait(&mut client, &told_after_drop(&told));
    assert!(!waker.wake());
    assert_silent(&mut client);
    assert!(other.wake());
    assert_eq!(answer(&mut client), "woken");
    drop(client);
    stop(&handle);
    assert!(!other.wake());
}

/// The same channel, after the message of a session's drop.
fn told_after_drop(told: &Receiver<Told>) -> Receiver<Told> {
    assert!(matches!(told.recv().unwrap(), Told::Dropped));
    told.clone()
}

#[test]
fn what_the_client_sends_while_it_waits_is_served_afterwards() {
    let (service, told) = waiting(Next::Wait);
    let handle = start(server().workers(2), service);
    let mut client = connect(addr(&handle));
    let waker = wait(&mut client, &told);
    client.write_all(b"one\ntwo\n").unwrap();
    until(&handle, "the bytes are in the buffer", |stats| {
        stats.bytes_in == 13 && stats.parked == 1
    });
    assert!(told.is_empty(), "the service was called");
    assert!(waker.wake());
    for line in ["woken", "one", "two"] {
        assert_eq!(answer(&mut client), line);
    }
    assert_eq!(called(&told).1, "one\ntwo\n");
    drop(client);
    stop(&handle);
}

#[test]
fn more_than_the_buffer_takes_waits_in_the_kernel() {
    let (service, told) = waiting(Next::Wait);
    let handle = start(server().workers(2).input_limit(1000), service);
    let mut client = connect(addr(&handle));
    let waker = wait(&mut client, &told);
    let line = "x".repeat(99) + "\n";
    client.write_all(line.repeat(100).as_bytes()).unwrap();
    until(&handle, "the buffer is full", |stats| {
        stats.bytes_in >= 1000 && stats.parked == 1
    });
    assert!(waker.wake());
    assert_eq!(answer(&mut client), "woken");
    for _ in 0..100 {
        assert_eq!(answer(&mut client), line.trim_end());
    }
    drop(client);
    stop(&handle);
}

#[test]
fn the_client_s_leaving_is_noticed_while_it_waits() {
    let (service, told) = waiting(Next::Wait);
    let handle = start(server().workers(2), service);
    let mut client = connect(addr(&handle));
    let waker = wait(&mut client, &told);
    client.write_all(b"more\n").unwrap();
    finish(&client);
    let (was, buffer) = called(&told);
    assert!(was.ended && was.readable && !was.woken, "{was:?}");
    assert_eq!(buffer, "more\n");
    assert_closed(&mut client);
    assert!(matches!(told.recv().unwrap(), Told::Dropped));
    assert!(!waker.wake());

    let mut client = connect(addr(&handle));
    let waker = wait(&mut client, &told);
    until(&handle, "it is parked", |stats| stats.parked == 1);
    reset(client);
    loop {
        match told.recv().unwrap() {
            Told::Dropped => break,
            told => assert!(
                matches!(told, Told::Called(Cause { ended: true, .. }, _)),
                "{told:?}"
            ),
        }
    }
    eventually("the connection has ended", || !waker.wake());
    stop(&handle);
}

/// The client leaves, and has sent more than the buffer takes: the end is behind what is not read.
// A poller that reports once is not asked again while the buffer is full.
#[cfg(all(target_os = "linux", not(handover_one_waiter)))]
#[test]
fn the_client_s_leaving_is_noticed_though_the_buffer_is_full() {
    let (service, told) = waiting(Next::Wait);
    let handle = start(server().workers(2).input_limit(1000), service);
    let mut client = connect(addr(&handle));
    wait(&mut client, &told);
    client.write_all(&[b'x'; 3000]).unwrap();
    until(&handle, "the buffer is full", |stats| {
        stats.bytes_in >= 1000 && stats.parked == 1
    });
    finish(&client);
    assert!(called(&told).0.ended);
    assert!(matches!(told.recv().unwrap(), Told::Dropped));
    stop(&handle);
}

/// A service that goes on waiting after the client's end is not called again and again for it.
#[test]
fn the_client_s_end_is_told_once() {
    let (tell, told) = unbounded();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        count.fetch_add(1, SeqCst);
        let _ = conn.take_line(64)?;
        let cause = conn.cause();
        tell.send((cause, conn.waker())).unwrap();
        if cause.woken {
            conn.write_all(b"late answer\n")?;
            return Ok(Next::Close);
        }
        Ok(Next::Wait)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    let (_, waker) = told.recv().unwrap();
    finish(&client);
    assert!(told.recv().unwrap().0.ended);
    pause(QUIET);
    assert_eq!(calls.load(SeqCst), 2);
    assert!(waker.wake());
    assert_eq!(answer(&mut client), "late answer");
    assert_closed(&mut client);
    stop(&handle);
}

/// As above, and no answer comes: the wait ends like that of any other client.
#[test]
fn a_client_that_has_ended_its_side_does_not_wait_for_ever() {
    let builder = server().workers(1).idle_timeout(Duration::from_millis(200));
    let handle = start(builder, |conn: &mut Connection| {
        let _ = conn.take_line(64)?;
        Ok(Next::Wait)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    finish(&client);
    assert_closed(&mut client);
    assert_eq!(handle.stats().expired.idle, 1);
    stop(&handle);
}

/// One connection is woken again during each of its calls.
#[test]
fn a_connection_that_is_always_woken_takes_turns_with_others() {
    let handle = start(server().workers(1), |conn: &mut Connection| {
        let waker = conn.waker();
        match conn.take_line(64)? {
            Some(line) if line == "again" => conn.set_idle_timeout(Duration::MAX),
            Some(line) => {
                writeln!(conn, "{line}")?;
                return Ok(Next::Park);
            }
            None if conn.cause().draining || conn.cause().ended => return Ok(Next::Close),
            None => {}
        }
        waker.wake();
        Ok(Next::Wait)
    });
    let mut busy = connect(addr(&handle));
    busy.write_all(b"again\n").unwrap();
    until(&handle, "it is called again", |stats| stats.served > 100);
    let mut client = connect(addr(&handle));
    for _ in 0..100 {
        ask(&mut client, "hello");
    }
    drop((client, busy));
    stop(&handle);
}

// ---- timers ----

#[test]
fn a_timer_has_the_service_called_once_and_not_early() {
    let (tell, told) = unbounded();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        if conn.cause().timer {
            tell.send(Instant::now()).unwrap();
            conn.write_all(b"timer\n")?;
            return Ok(Next::Park);
        }
        let Some(line) = conn.take_line(64)? else {
            return Ok(Next::More);
        };
        let now = Instant::now();
        match line.parse() {
            Ok(millis) => {
                // The later call replaces the earlier one.
                conn.wake_at(now);
                conn.wake_at(now + Duration::from_millis(millis));
                tell.send(now + Duration::from_millis(millis)).unwrap();
            }
            Err(_) => conn.wake_at(None),
        }
        writeln!(conn, "set")?;
        Ok(Next::Park)
    });
    let mut client = connect(addr(&handle));
    for millis in [0, 1, 20, 50] {
        client.write_all(format!("{millis}\n").as_bytes()).unwrap();
        assert_eq!(answer(&mut client), "set");
        assert_eq!(answer(&mut client), "timer");
        let (due, came) = (told.recv().unwrap(), told.recv().unwrap());
        assert!(came >= due, "{:?} early", due - came);
    }
    client.write_all(b"20\nnone\n").unwrap();
    assert_eq!(answer(&mut client), "set");
    assert_eq!(answer(&mut client), "set");
    assert_silent(&mut client);
    drop(client);
    stop(&handle);
}

#[test]
fn ten_thousand_timers_are_kept() {
    const CLIENTS: usize = 500;
    const TICKS: usize = 20;
    let handle = start(server().workers(2), move |conn: &mut Connection| {
        if conn.cause().timer {
            conn.write_all(b"tick\n")?;
        }
        let _ = conn.take_line(64)?;
        conn.wake_at(Instant::now() + Duration::from_millis(10));
        Ok(Next::Park)
    });
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        client.write_all(b"go\n").unwrap();
    }
    for client in &mut clients {
        (0..TICKS).for_each(|_| assert_eq!(answer(client), "tick"));
    }
    drop(clients);
    stop(&handle);
}

// ---- expiry ----

/// Says goodbye when a time-out expires. After `stay`, stays instead.
struct Polite {
    handles: bool,
    door: Option<support::Door>,
}

impl Service for Polite {
    type Session = ();
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        if conn.buffer() == b"wait\n" {
            let _ = conn.take_line(64)?;
            return Ok(Next::Wait);
        }
        lines(conn)
    }

    fn handles_expiry(&self) -> bool {
        self.handles
    }

    fn expired(&self, conn: &mut Connection, (): &mut (), expiry: Expiry) -> io::Result<Next> {
        if let Some(door) = &self.door {
            door.pass();
        }
        writeln!(conn, "421 {expiry:?}")?;
        match conn.buffer() == b"stay" {
            true => Ok(Next::More),
            false => Ok(Next::Close),
        }
    }
}

fn polite(handles: bool) -> Polite {
    Polite {
        handles,
        door: None,
    }
}

#[test]
fn the_service_may_answer_an_expired_time_out() {
    let builder = || {
        server()
            .workers(2)
            .idle_timeout(Duration::from_millis(50))
            .read_timeout(Duration::from_millis(50))
            .first_byte_timeout(Duration::from_millis(50))
    };
    let handle = start(builder(), polite(true));
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_eq!(answer(&mut client), "421 Idle");
    assert_closed(&mut client);
    let mut client = connect(addr(&handle));
    client.write_all(b"wait\n").unwrap();
    assert_eq!(answer(&mut client), "421 Idle");
    assert_closed(&mut client);
    let mut client = connect(addr(&handle));
    client.write_all(b"a part").unwrap();
    assert_eq!(answer(&mut client), "421 Read");
    assert_closed(&mut client);
    // A service that goes on gets as much time again.
    let mut client = connect(addr(&handle));
    client.write_all(b"stay").unwrap();
    assert_eq!(answer(&mut client), "421 Read");
    assert_eq!(answer(&mut client), "421 Read");
    client.write_all(b"\n").unwrap();
    while answer(&mut client) != "stay" {}
    // A client that has sent nothing is not worth a call.
    let mut silent = connect(addr(&handle));
    assert_closed(&mut silent);
    let stats = handle.stats();
    assert_eq!(stats.expired.first_byte, 1);
    assert!(
        stats.expired.idle >= 2 && stats.expired.read >= 3,
        "{stats:?}"
    );
    stop(&handle);

    let handle = start(builder(), polite(false));
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn expiries_occupy_a_share_of_the_workers() {
    let (keeper, at_door) = door();
    let builder = server().workers(4).idle_timeout(Duration::from_millis(50));
    let service = Polite {
        handles: true,
        door: Some(at_door),
    };
    let handle = start(builder, service);
    let mut clients: Vec<_> = (0..20).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    // One call waits at the door. The others are closed without one.
    keeper.wait();
    until(&handle, "the others are closed", |stats| stats.live == 1);
    assert_eq!(handle.stats().expired.idle, 20);
    ask(&mut connect(addr(&handle)), "hello");
    drop(keeper);
    let mut told = 0;
    for mut client in clients {
        let mut text = String::new();
        io::Read::read_to_string(&mut client, &mut text).unwrap();
        told += usize::from(text == "421 Idle\n");
    }
    assert_eq!(told, 1);
    stop(&handle);
}

#[test]
fn a_wake_up_extends_a_wait_and_no_idle_time() {
    for (next, lasts) in [(Next::Wait, true), (Next::Park, false)] {
        let (tell, told) = unbounded();
        let idle = Duration::from_millis(400);
        let handle = start(
            server().workers(1).idle_timeout(idle),
            move |conn: &mut Connection| {
                let _ = conn.take_line(64)?;
                tell.send(conn.waker()).unwrap();
                match until_the_end(conn) {
                    Next::Wait => Ok(next),
                    next => Ok(next),
                }
            },
        );
        let mut client = connect(addr(&handle));
        client.write_all(b"hello\n").unwrap();
        let waker = told.recv().unwrap();
        let mut is_open = true;
        let since = Instant::now();
        while is_open && since.elapsed() < 3 * idle {
            pause(idle / 10);
            is_open = waker.wake();
        }
        assert_eq!(is_open, lasts, "{next:?}");
        drop(client);
        stop(&handle);
    }
}

// ---- many at once ----

/// More connections are woken than the queue takes, while all workers are busy.
#[test]
fn wake_ups_beyond_the_queue_are_kept() {
    const CLIENTS: usize = 600;
    let (keeper, at_door) = door();
    let (tell, told) = unbounded();
    let builder = server().workers(2).queue(1);
    let handle = start(builder, move |conn: &mut Connection| {
        match conn.take_line(64)?.as_deref() {
            Some("busy") => at_door.pass(),
            Some(_) => {
                tell.send(conn.waker()).unwrap();
                return Ok(Next::Wait);
            }
            None if conn.cause().woken => conn.write_all(b"woken\n")?,
            None => {}
        }
        Ok(Next::Park)
    });
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(addr(&handle))).collect();
    let mut wakers = Vec::new();
    for client in &mut clients {
        client.write_all(b"wait\n").unwrap();
        wakers.push(told.recv().unwrap());
    }
    until(&handle, "all wait", |stats| stats.parked == CLIENTS as u64);
    let busy = [(); 2].map(|()| {
        let mut client = connect(addr(&handle));
        client.write_all(b"busy\n").unwrap();
        keeper.wait();
        client
    });
    for waker in wakers.iter().chain(&wakers) {
        assert!(waker.wake());
    }
    drop(keeper);
    for client in &mut clients {
        assert_eq!(answer(client), "woken");
    }
    drop((clients, busy));
    stop(&handle);
}

#[test]
fn no_wake_up_is_lost_between_threads() {
    // With 1,000,000 for a long test.
    let rounds = std::env::var("HANDOVER_ROUNDS").map_or(20_000, |rounds| rounds.parse().unwrap());
    let (tell, told) = unbounded();
    let handle = start(server().workers(2), move |conn: &mut Connection| {
        let _ = conn.take_line(64)?;
        tell.send((conn.waker(), conn.cause().woken)).unwrap();
        Ok(until_the_end(conn))
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"wait\n").unwrap();
    let (waker, _) = told.recv().unwrap();
    for _ in 0..rounds {
        // The call may still be running, or be parking.
        assert!(waker.wake());
        assert!(told.recv().unwrap().1);
    }
    drop(client);
    stop(&handle);
}

/// Connections end while other threads wake them, and their slots get other connections.
#[test]
fn wake_ups_race_with_the_end_of_connections() {
    let rounds = std::env::var("HANDOVER_ROUNDS")
        .map_or(2_000, |rounds| rounds.parse::<usize>().unwrap() / 10);
    let (tell, told) = unbounded::<Waker>();
    let handle = start(server().workers(2), move |conn: &mut Connection| {
        let line = conn.take_line(64)?;
        if line.is_some() {
            tell.send(conn.waker()).unwrap();
            conn.write_all(b"ready\n")?;
        }
        Ok(until_the_end(conn))
    });
    let threads = [(); 2].map(|()| {
        let told = told.clone();
        thread::spawn(move || {
            for waker in told {
                while waker.wake() {
                    thread::yield_now();
                }
                assert!(!waker.wake());
            }
        })
    });
    for round in 0..rounds {
        let mut client = connect(addr(&handle));
        client.write_all(b"wait\n").unwrap();
        assert_eq!(answer(&mut client), "ready");
        match round % 2 {
            0 => reset(client),
            _ => finish(&client),
        }
    }
    drop(told);
    handle.stop(Duration::from_secs(10));
    handle.join();
    for thread in threads {
        thread.join().unwrap();
    }
}

// ---- drain ----

#[test]
fn waiting_connections_are_told_of_a_drain_once() {
    // More than the queue takes.
    const COUNT: usize = 700;
    for next in [Next::Wait, Next::Park] {
        let (service, told) = waiting(next);
        let handle = start(server().workers(2).queue(1), service);
        let mut waiting: Vec<_> = (0..COUNT).map(|_| connect(addr(&handle))).collect();
        for client in &mut waiting {
            wait(client, &told);
        }
        let mut idle = connect(addr(&handle));
        ask(&mut idle, "hello");
        until(&handle, "all are parked", |stats| {
            stats.parked == COUNT as u64 + 1
        });
        stop(&handle);
        assert_eq!(handle.join().drain_calls, COUNT);
        for mut client in waiting {
            assert_eq!(answer(&mut client), "goodbye");
            assert_closed(&mut client);
        }
        assert_closed(&mut idle);
        let calls = told
            .try_iter()
            .filter(|told| matches!(told, Told::Called(cause, _) if cause.draining));
        assert_eq!(calls.count(), COUNT);
    }
}

/// A connection that waits on is in progress: the stop waits for its answer, as long as its deadline allows.
#[test]
fn a_drain_waits_for_those_that_wait_on() {
    let (tell, told) = unbounded();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        let _ = conn.take_line(64)?;
        let cause = conn.cause();
        tell.send((cause, conn.waker())).unwrap();
        if cause.woken {
            conn.write_all(b"answer\n")?;
            return Ok(Next::Park);
        }
        Ok(Next::Wait)
    });
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    let (_, waker) = told.recv().unwrap();
    until(&handle, "it waits", |stats| stats.parked == 1);
    handle.stop(Duration::from_secs(10));
    assert!(told.recv().unwrap().0.draining);
    assert!(waker.wake());
    assert_eq!(answer(&mut client), "answer");
    assert_closed(&mut client);
    let report = handle.join();
    assert!(report.is_clean() && report.finished == 1, "{report}");
}
