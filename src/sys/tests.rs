//! The contract of the poller, which each platform's poller has to keep.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{Event, Events, Interest, Poller};

/// How long anything may take that should happen at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough to see what should not happen.
const QUIET: Duration = Duration::from_millis(50);

/// The two ends of a connection. The first is non-blocking.
fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (server.into(), client)
}

struct Waiter<'a> {
    poller: &'a Poller,
    events: Events,
}

impl<'a> Waiter<'a> {
    fn new(poller: &'a Poller) -> Self {
        let events = Events::with_capacity(16);
        Self { poller, events }
    }

    fn wait(&mut self, timeout: Duration) -> Vec<Event> {
        let waited = self.poller.wait(&mut self.events, 16, Some(timeout));
        waited.unwrap();
        self.events.iter().collect()
    }

    /// Waits until something is reported.
    #[track_caller]
    fn report(&mut self) -> Event {
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = self.wait(QUIET);
            if let [event] = found[..] {
                return event;
            }
            assert!(found.is_empty(), "{found:?}");
            assert!(Instant::now() < deadline, "nothing is reported");
        }
    }

    #[track_caller]
    fn assert_silent(&mut self) {
        let deadline = Instant::now() + QUIET;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let found = self.wait(left);
            assert!(found.is_empty(), "{found:?}");
        }
    }
}

fn take_byte(socket: &Socket) {
    assert_eq!((&*socket).read(&mut [0]).unwrap(), 1);
}

#[test]
fn an_add_and_a_rearm_report_what_is_ready_already() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let (socket, mut client) = pair();
    client.write_all(b"x").unwrap();
    poller.add(&socket, 7).unwrap();
    for _ in 0..3 {
        let event = waiter.report();
        assert_eq!((event.token, Poller::SHARED && event.hangup), (7, false));
        waiter.assert_silent();
        poller.rearm(&socket, 7, Interest::Read).unwrap();
    }
    waiter.report();
    take_byte(&socket);
    poller.rearm(&socket, 7, Interest::Read).unwrap();
    waiter.assert_silent();
    client.write_all(b"y").unwrap();
    waiter.report();
    poller.remove(&socket).unwrap();
}

#[test]
fn an_event_disarms_a_socket_where_the_poller_reports_once() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let (socket, mut client) = pair();
    poller.add(&socket, 7).unwrap();
    waiter.assert_silent();
    client.write_all(b"x").unwrap();
    waiter.report();
    take_byte(&socket);
    client.write_all(b"y").unwrap();
    match Poller::REPORTS_ONCE {
        true => waiter.assert_silent(),
        false => _ = waiter.report(),
    }
    poller.rearm(&socket, 8, Interest::Read).unwrap();
    assert_eq!(waiter.report().token, 8);
    poller.remove(&socket).unwrap();
}

#[test]
fn the_interest_may_change_while_the_socket_is_watched() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let (socket, mut client) = pair();
    poller.add(&socket, 1).unwrap();
    waiter.assert_silent();
    for _ in 0..100 {
        poller.rearm(&socket, 2, Interest::Write).unwrap();
        assert_eq!(waiter.report().token, 2);
        poller.rearm(&socket, 3, Interest::Read).unwrap();
    }
    waiter.assert_silent();
    poller.rearm(&socket, 4, Interest::Both).unwrap();
    assert_eq!(waiter.report().token, 4);
    poller.rearm(&socket, 5, Interest::Read).unwrap();
    client.write_all(b"x").unwrap();
    assert_eq!(waiter.report().token, 5);
    poller.remove(&socket).unwrap();
}

#[test]
fn a_removed_socket_is_not_reported() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let pairs: Vec<_> = (0..100).map(|_| pair()).collect();
    for (token, (socket, client)) in pairs.iter().enumerate() {
        poller.add(socket, token as u64).unwrap();
        { client }.write_all(b"x").unwrap();
    }
    for (socket, _) in &pairs[1..] {
        poller.remove(socket).unwrap();
    }
    assert_eq!(waiter.report().token, 0);
    waiter.assert_silent();
    assert!(poller.remove(&pairs[1].0).is_err());
    // It may be added again.
    poller.add(&pairs[1].0, 200).unwrap();
    assert_eq!(waiter.report().token, 200);
    poller.remove(&pairs[0].0).unwrap();
    poller.remove(&pairs[1].0).unwrap();
}

#[test]
fn the_end_of_a_stream_and_a_reset_are_reported() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    for is_reset in [false, true] {
        let (socket, client) = pair();
        poller.add(&socket, 7).unwrap();
        let client = Socket::from(client);
        if is_reset {
            client.set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        let event = waiter.report();
        assert_eq!((event.token, event.hangup), (7, true));
        assert_eq!((&socket).read(&mut [0]).is_err(), is_reset);
        poller.remove(&socket).unwrap();
    }
}

#[test]
fn a_peer_that_has_ended_its_side_does_not_end_a_wait_for_room() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let (socket, client) = pair();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    poller.add(&socket, 7).unwrap();
    waiter.report();
    while (&socket).write(&[0; 64 * 1024]).is_ok() {}
    poller.rearm(&socket, 7, Interest::Write).unwrap();
    waiter.assert_silent();
    let quiet = Some(QUIET);
    let ready = super::socket::wait_ready(&socket, Interest::Write, quiet).unwrap();
    assert!(!ready.writable);
    let mut room = vec![0; 64 * 1024];
    let deadline = Instant::now() + LIMIT;
    while waiter.wait(Duration::ZERO).is_empty() {
        assert!(Instant::now() < deadline, "nothing is reported");
        let _ = { &client }.read(&mut room).unwrap();
    }
    poller.remove(&socket).unwrap();
}

#[test]
fn a_listener_is_reported_while_connections_wait() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let listener = Socket::from(listener);
    poller.add_shared(&listener, 7).unwrap();
    for _ in 0..3 {
        let _clients = [(); 2].map(|()| TcpStream::connect(addr).unwrap());
        assert_eq!(waiter.report().token, 7);
        // Another report may be on its way.
        while !waiter.wait(QUIET).is_empty() {}
        super::socket::accept(&listener).unwrap();
        if Poller::REPORTS_ONCE {
            poller.rearm(&listener, 7, Interest::Read).unwrap();
            assert_eq!(waiter.report().token, 7);
        }
        super::socket::accept(&listener).unwrap();
        if Poller::REPORTS_ONCE {
            poller.rearm(&listener, 7, Interest::Read).unwrap();
        }
    }
    poller.remove(&listener).unwrap();
}

#[test]
fn a_wake_up_ends_the_present_wait_or_the_next_one() {
    let poller = Poller::new().unwrap();
    let mut waiter = Waiter::new(&poller);
    poller.wake();
    assert!(waiter.wait(LIMIT).is_empty());
    assert!(waiter.events.was_woken());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Waiter::new(&poller).wait(LIMIT));
        poller.wake();
        assert!(waiting.join().unwrap().is_empty());
    });
}

#[test]
fn an_event_reaches_one_of_the_threads_that_wait() {
    const THREADS: usize = 4;
    let pairs: Vec<_> = (0..100).map(|_| pair()).collect();
    let poller = Poller::new().unwrap();
    for (token, (socket, _)) in pairs.iter().enumerate() {
        poller.add(socket, token as u64).unwrap();
    }
    let reported: Vec<_> = pairs.iter().map(|_| AtomicUsize::new(0)).collect();
    let all = AtomicUsize::new(0);
    let wait_for_all = || {
        let mut waiter = Waiter::new(&poller);
        let deadline = Instant::now() + LIMIT;
        while all.load(SeqCst) < pairs.len() {
            assert!(Instant::now() < deadline, "an event is lost");
            for event in waiter.wait(QUIET) {
                reported[event.token as usize].fetch_add(1, SeqCst);
                all.fetch_add(1, SeqCst);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..if Poller::SHARED { THREADS } else { 1 } {
            scope.spawn(wait_for_all);
        }
        for (_, client) in &pairs {
            { client }.write_all(b"x").unwrap();
        }
    });
    assert!(reported.iter().all(|count| count.load(SeqCst) == 1));
    pairs
        .iter()
        .for_each(|(socket, _)| poller.remove(socket).unwrap());
}

/// A rearm that another thread makes just before a wait begins.
#[test]
fn no_rearm_is_lost_to_a_thread_that_begins_to_wait() {
    const ROUNDS: usize = 2000;
    let poller = Poller::new().unwrap();
    let (socket, mut client) = pair();
    poller.add(&socket, 7).unwrap();
    std::thread::scope(|scope| {
        let (report, reports) = crossbeam_channel::bounded(0);
        let poller = &poller;
        scope.spawn(move || {
            let mut waiter = Waiter::new(poller);
            for _ in 0..ROUNDS {
                let deadline = Instant::now() + LIMIT;
                // No other event ends the wait that the rearm races with.
                while waiter.wait(LIMIT).is_empty() {
                    assert!(Instant::now() < deadline, "a rearm is lost");
                }
                report.send(()).unwrap();
            }
        });
        for _ in 0..ROUNDS {
            client.write_all(b"x").unwrap();
            reports.recv().unwrap();
            take_byte(&socket);
            poller.rearm(&socket, 7, Interest::Read).unwrap();
        }
    });
    poller.remove(&socket).unwrap();
}
