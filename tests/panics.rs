//! Panics of the application's code, wherever it is called: each costs its connection at most, and nothing else.

mod support;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::panic::panic_any;
#[cfg(all(unix, feature = "signals"))]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

#[cfg(unix)]
use handover::Restart;
use handover::{Connection, Handle, Next, Service};

use support::{
    Child, Door, Keeper, addr, answer, as_child, ask, connect, door, lines, server, start, stop,
    until,
};

const WORKERS: usize = 3;

/// A value whose drop panics, with a payload whose drop panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic_any(Bomb);
    }
}

/// An error that can be neither shown nor dropped.
#[derive(Debug)]
struct ErrorBomb(#[allow(dead_code)] [u8; 1]);

impl fmt::Display for ErrorBomb {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic_any(Bomb);
    }
}

impl std::error::Error for ErrorBomb {}

impl Drop for ErrorBomb {
    fn drop(&mut self) {
        panic_any(Bomb);
    }
}

/// Does what each line says.
struct Faulty {
    door: Door,
    /// The next session, or the next worker's state, is a panic.
    session_panics: AtomicBool,
    worker_panics: AtomicBool,
    /// Its drop panics.
    _bomb: Bomb,
}

#[derive(Default)]
struct Explosive(Option<Bomb>);

impl Service for Faulty {
    type Session = Explosive;
    type Worker = Explosive;

    fn worker(&self, _: usize) -> io::Result<Explosive> {
        if self.worker_panics.swap(false, SeqCst) {
            panic_any(Bomb);
        }
        Ok(Explosive::default())
    }

    fn session(&self, _: &Connection) -> io::Result<Explosive> {
        if self.session_panics.swap(false, SeqCst) {
            panic_any(Bomb);
        }
        Ok(Explosive::default())
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut Explosive,
        worker: &mut Explosive,
    ) -> io::Result<Next> {
        match conn.buffer() {
            b"wait\n" => self.door.pass(),
            b"panic\n" => panic!("as usual"),
            b"payload\n" => panic_any(Bomb),
            b"session\n" => {
                session.0 = Some(Bomb);
                return Ok(Next::Close);
            }
            b"session and payload\n" => {
                session.0 = Some(Bomb);
                panic_any(Bomb);
            }
            b"worker\n" => {
                worker.0 = Some(Bomb);
                panic_any(Bomb);
            }
            b"no state\n" => {
                self.worker_panics.store(true, SeqCst);
                panic_any(Bomb);
            }
            b"error\n" => return Err(io::Error::other(ErrorBomb([0]))),
            b"idle session\n" => session.0 = Some(Bomb),
            b"next session\n" => {
                self.session_panics.store(true, SeqCst);
                return Ok(Next::Close);
            }
            _ => {}
        }
        lines(conn)
    }
}

/// Asserts that all workers serve: each has a client of its own at the door.
#[track_caller]
fn assert_all_workers_serve(handle: &Handle, keeper: &Keeper) {
    let mut clients: Vec<_> = (0..WORKERS).map(|_| connect(addr(handle))).collect();
    for client in &mut clients {
        client.write_all(b"wait\n").unwrap();
    }
    (0..WORKERS).for_each(|_| keeper.wait());
    (0..WORKERS).for_each(|_| keeper.let_one_in());
    for client in &mut clients {
        assert_eq!(answer(client), "wait");
    }
    drop(clients);
    until(handle, "no connection is left", |stats| stats.live == 0);
}

/// The client's connection has ended, one way or the other.
#[track_caller]
fn until_closed(mut client: TcpStream) {
    let mut rest = Vec::new();
    match client.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

fn panics_of_a_service() {
    let (keeper, door) = door();
    let service = Faulty {
        door,
        session_panics: AtomicBool::new(false),
        worker_panics: AtomicBool::new(false),
        _bomb: Bomb,
    };
    let builder = server().workers(WORKERS).max_per_client(WORKERS);
    let handle = start(builder.on_worker_exit(|_| panic_any(Bomb)), service);
    for line in [
        "panic",
        "payload",
        "session",
        "session and payload",
        "worker",
        "no state",
        "error",
        "next session",
    ] {
        // More often than there are workers, and places for the client.
        for _ in 0..2 * WORKERS {
            let mut client = connect(addr(&handle));
            writeln!(client, "{line}").unwrap();
            until_closed(client);
            if line == "next session" {
                let mut client = connect(addr(&handle));
                writeln!(client, "hello").unwrap();
                until_closed(client);
            }
            until(&handle, line, |stats| stats.live == 0);
        }
        assert_all_workers_serve(&handle, &keeper);
    }
    // The client leaves; its session is dropped by a worker.
    let mut client = connect(addr(&handle));
    ask(&mut client, "idle session");
    drop(client);
    until(&handle, "it has left", |stats| stats.live == 0);
    assert_all_workers_serve(&handle, &keeper);
    // The server leaves; the session is dropped by the main thread.
    let mut client = connect(addr(&handle));
    ask(&mut client, "idle session");
    stop(&handle);
    assert_eq!(handle.stats().live, 0);
}

fn panic_of_a_session_that_expires() {
    let (keeper, door) = door();
    let service = Faulty {
        door,
        session_panics: AtomicBool::new(false),
        worker_panics: AtomicBool::new(false),
        _bomb: Bomb,
    };
    let builder = server().idle_timeout(std::time::Duration::from_millis(100));
    let handle = start(builder.workers(WORKERS), service);
    for _ in 0..3 {
        let mut client = connect(addr(&handle));
        ask(&mut client, "idle session");
        until_closed(client);
        until(&handle, "it has expired", |stats| stats.live == 0);
    }
    assert_eq!(handle.stats().expired.idle, 3);
    assert_all_workers_serve(&handle, &keeper);
    stop(&handle);
}

fn panic_of_a_session_that_is_shed() {
    let (_keeper, door) = door();
    let service = Faulty {
        door,
        session_panics: AtomicBool::new(false),
        worker_panics: AtomicBool::new(false),
        _bomb: Bomb,
    };
    let builder = server()
        .max_connections(1)
        .overload(handover::Overload::ShedIdle);
    let handle = start(builder.workers(WORKERS), service);
    let mut last = connect(addr(&handle));
    ask(&mut last, "idle session");
    for _ in 0..3 {
        let mut client = connect(addr(&handle));
        ask(&mut client, "idle session");
        until_closed(std::mem::replace(&mut last, client));
    }
    assert_eq!(handle.stats().shed, 3);
    drop(last);
    stop(&handle);
}

#[cfg(unix)] // restarts
fn panic_of_ready_when() {
    let builder = server().restart(
        Restart::inherit()
            .unwrap()
            .ready_when(|| -> Result<(), io::Error> { panic_any(Bomb) }),
    );
    let error = builder.build(lines).unwrap().start().unwrap_err();
    assert!(error.to_string().contains("ready_when panicked"), "{error}");
}

fn panic_of_the_first_worker() {
    let (_keeper, door) = door();
    let service = Faulty {
        door,
        session_panics: AtomicBool::new(false),
        worker_panics: AtomicBool::new(true),
        _bomb: Bomb,
    };
    let error = server().build(service).unwrap().start().unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}

fn panic_of_a_scoped_service() {
    let (keeper, door) = door();
    let service = Faulty {
        door,
        session_panics: AtomicBool::new(false),
        worker_panics: AtomicBool::new(false),
        _bomb: Bomb,
    };
    let server = server().workers(WORKERS).build(service).unwrap();
    let ((), report) = server
        .run_scoped(|handle| assert_all_workers_serve(handle, &keeper))
        .unwrap();
    assert!(report.is_clean(), "{report}");
}

#[cfg(feature = "http")]
mod http {
    use handover::http::{self, Body, Reply, Request, Response};

    use super::*;

    /// A reader that panics: when it is read, when it is dropped, or both.
    struct Reader {
        read: bool,
        _drop: Option<Bomb>,
    }

    impl Read for Reader {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match self.read {
                true => panic_any(Bomb),
                false => Ok(0),
            }
        }
    }

    /// A body whose conversion panics.
    struct Unconvertible(Reply, bool);

    impl From<Unconvertible> for Reply {
        fn from(body: Unconvertible) -> Self {
            if body.1 {
                panic_any(Bomb);
            }
            body.0
        }
    }

    pub(super) fn panics() {
        let (keeper, door) = door();
        let handler = move |request: &mut Request<Body<'_>>| {
            let reader = |read, drop: bool| Reader {
                read,
                _drop: drop.then_some(Bomb),
            };
            let (reply, converts) = match request.uri().path() {
                "/read" => (Reply::stream(reader(true, false)), false),
                "/drop" => (Reply::stream(reader(false, true)), false),
                "/both" => (Reply::stream(reader(true, true)), false),
                "/sized" => (Reply::sized(reader(true, true), 100), false),
                "/unsendable" => {
                    let mut response =
                        Response::new(Unconvertible(Reply::stream(reader(true, true)), false));
                    *response.status_mut() = http::StatusCode::CONTINUE;
                    return response;
                }
                "/convert" => (Reply::empty(), true),
                "/payload" => panic_any(Bomb),
                "/wait" => {
                    door.pass();
                    (Reply::empty(), false)
                }
                _ => (Reply::empty(), false),
            };
            Response::new(Unconvertible(reply, converts))
        };
        let service = http::service(handler);
        let handle = start(server().workers(WORKERS).max_per_client(WORKERS), service);
        for path in [
            "/read",
            "/drop",
            "/both",
            "/sized",
            "/unsendable",
            "/convert",
            "/payload",
        ] {
            for method in ["GET", "HEAD"] {
                for _ in 0..2 * WORKERS {
                    let mut client = connect(addr(&handle));
                    let head =
                        format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    client.write_all(head.as_bytes()).unwrap();
                    until_closed(client);
                    until(&handle, path, |stats| stats.live == 0);
                }
            }
            let mut clients: Vec<_> = (0..WORKERS).map(|_| connect(addr(&handle))).collect();
            for client in &mut clients {
                client
                    .write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    .unwrap();
            }
            (0..WORKERS).for_each(|_| keeper.wait());
            (0..WORKERS).for_each(|_| keeper.let_one_in());
            clients.into_iter().for_each(until_closed);
            until(&handle, "no connection is left", |stats| stats.live == 0);
        }
        stop(&handle);
    }
}

/// All of them, one after another.
fn all() {
    panics_of_a_service();
    panic_of_a_session_that_expires();
    panic_of_a_session_that_is_shed();
    #[cfg(unix)]
    panic_of_ready_when();
    panic_of_the_first_worker();
    panic_of_a_scoped_service();
    #[cfg(feature = "http")]
    http::panics();
}

/// A logger that is no help.
struct Panicking;

impl log::Log for Panicking {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The text is made first, as every logger does.
        drop(record.args().to_string());
        panic_any(Bomb);
    }

    fn flush(&self) {}
}

#[test]
fn a_panic_costs_its_connection_and_nothing_else() {
    const TEST: &str = "a_panic_costs_its_connection_and_nothing_else";
    if as_child(TEST).is_some() {
        std::panic::set_hook(Box::new(|_| {}));
        return all();
    }
    // In a process of its own, which a panic too many would abort.
    Child::of(TEST).end();
}

#[test]
fn a_panicking_logger_costs_nothing() {
    const TEST: &str = "a_panicking_logger_costs_nothing";
    if as_child(TEST).is_some() {
        std::panic::set_hook(Box::new(|_| {}));
        log::set_logger(&Panicking).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        return all();
    }
    Child::of(TEST).end();
}

#[cfg(all(unix, feature = "signals"))] // SIGUSR1
#[test]
fn a_panicking_signal_hook_costs_nothing() {
    const TEST: &str = "a_panicking_signal_hook_costs_nothing";
    if let Some(parent) = as_child(TEST) {
        std::panic::set_hook(Box::new(|_| {}));
        let called = Arc::new(AtomicBool::new(false));
        let in_hook = Arc::clone(&called);
        let builder = server().on_user_signal(move || {
            in_hook.store(true, SeqCst);
            panic_any(Bomb);
        });
        let server = builder.build(lines).unwrap();
        parent.say(&server.local_addrs()[0]);
        let run = std::thread::spawn(|| server.run().unwrap());
        while parent.hear().is_some() {
            called.store(false, SeqCst);
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::USR1).unwrap();
            support::eventually("the hook is called", || called.load(SeqCst));
            parent.say("called");
        }
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::TERM).unwrap();
        assert!(run.join().unwrap().is_clean());
        return;
    }
    let mut child = Child::of(TEST);
    let at = child.hear().parse().unwrap();
    for _ in 0..3 {
        ask(&mut connect(at), "hello");
        child.ask("signal");
    }
    ask(&mut connect(at), "hello");
    child.end();
}
