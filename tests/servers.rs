//! Several servers in one process: they start, stop, restart and are supervised together.

mod support;

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crossbeam_channel::unbounded;
use handover::{Connection, Handle, Next, Server, Servers, Service};

use support::{
    LIMIT, addr, answer, ask, assert_closed, connect, door, eventually, lines, server, settings,
};

/// A line protocol with a state for each worker, and so another type of service.
struct Shout;

impl Service for Shout {
    type Session = ();
    type Worker = String;

    fn worker(&self, _: usize) -> io::Result<String> {
        Ok("!".to_owned())
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), mark: &mut String) -> io::Result<Next> {
        match conn.take_line(4096)? {
            Some(line) => writeln!(conn, "{line}{mark}")?,
            None if conn.at_eof() => return Ok(Next::Close),
            None => return Ok(Next::More),
        }
        Ok(Next::Park)
    }
}

fn start_pair() -> [Handle; 2] {
    let plain = server().workers(2).build(lines).unwrap();
    let shout = server().workers(2).build(Shout).unwrap();
    let servers = Servers::new().with(plain).with(shout);
    servers.start().unwrap().try_into().unwrap()
}

fn line(to: &mut TcpStream, text: &str) -> String {
    writeln!(to, "{text}").unwrap();
    answer(to)
}

#[test]
fn servers_of_different_services_serve_and_report_each_for_itself() {
    let [plain, shout] = start_pair();
    let mut clients = [connect(addr(&plain)), connect(addr(&shout))];
    assert_eq!(line(&mut clients[0], "a"), "a");
    assert_eq!(line(&mut clients[1], "b"), "b!");
    assert_eq!(line(&mut connect(addr(&shout)), "c"), "c!");
    assert_eq!((plain.stats().accepted, shout.stats().accepted), (1, 2));
    // One is paused, and not the other.
    shout.pause();
    ask(&mut connect(addr(&plain)), "d");
    shout.resume();
    assert_eq!(line(&mut connect(addr(&shout)), "e"), "e!");
    plain.stop(LIMIT);
    assert!(plain.is_stopping() && shout.is_stopping());
    for handle in [&plain, &shout] {
        let report = handle.join();
        assert!(report.is_clean(), "{report}");
    }
    for mut client in clients {
        assert_closed(&mut client);
    }
}

/// For whatever reason: here the drop of the last handle, and a call that panics no thread.
#[test]
fn the_stop_of_one_is_a_drain_of_the_others_with_their_own_time_out() {
    let (keeper, door) = door();
    let plain = server()
        .workers(2)
        .drain_timeout(Duration::ZERO)
        .build(lines);
    let busy = server().workers(1).drain_timeout(LIMIT);
    let busy = busy.build(move |conn: &mut Connection| {
        door.pass();
        lines(conn)
    });
    let servers = Servers::new().with(plain.unwrap()).with(busy.unwrap());
    let [plain, busy]: [Handle; 2] = servers.start().unwrap().try_into().unwrap();
    let mut client = connect(addr(&busy));
    client.write_all(b"hello\n").unwrap();
    keeper.wait();
    let (to, watch) = (addr(&plain), plain.stats());
    assert_eq!(watch.live, 0);
    // The other handle keeps both alive.
    drop(plain);
    ask(&mut connect(to), "hello");
    assert!(!busy.is_stopping());
    drop(busy);
    eventually("the first one has stopped", || {
        TcpStream::connect(to).is_err()
    });
    keeper.let_one_in();
    assert_eq!(answer(&mut client), "hello");
    drop(keeper);
    assert_closed(&mut client);
}

#[test]
fn a_stop_by_a_handle_has_the_same_deadline_for_all() {
    let (keeper, door) = door();
    let plain = server().workers(1).build(lines).unwrap();
    let stuck = server().workers(1).drain_timeout(LIMIT);
    let stuck = stuck.build(move |conn: &mut Connection| {
        door.pass();
        lines(conn)
    });
    let servers = Servers::new().with(plain).with(stuck.unwrap());
    let [plain, stuck]: [Handle; 2] = servers.start().unwrap().try_into().unwrap();
    let mut client = connect(addr(&stuck));
    client.write_all(b"hello\n").unwrap();
    keeper.wait();
    plain.stop_now();
    assert_closed(&mut client);
    drop(keeper);
    assert_eq!(stuck.join().forced.len(), 1);
    assert!(plain.join().is_clean());
}

/// Also if it is later than their own time-outs.
#[test]
fn a_stop_by_a_handle_is_not_cut_short_by_the_time_out_of_another_server() {
    for stopped in 0..2 {
        let (keeper, door) = door();
        let plain = server().workers(1).drain_timeout(Duration::ZERO);
        let busy = server().workers(1).drain_timeout(Duration::ZERO);
        let busy = busy.build(move |conn: &mut Connection| {
            door.pass();
            lines(conn)
        });
        let servers = Servers::new().with(plain.build(lines).unwrap());
        let handles = servers.with(busy.unwrap()).start().unwrap();
        let mut client = connect(addr(&handles[1]));
        client.write_all(b"hello\n").unwrap();
        keeper.wait();
        handles[stopped].stop(LIMIT);
        eventually("the other one has stopped", || {
            TcpStream::connect(addr(&handles[0])).is_err()
        });
        keeper.let_one_in();
        assert_eq!(answer(&mut client), "hello");
        drop(keeper);
        for handle in &handles {
            assert!(handle.join().is_clean());
        }
    }
}

struct NoWorker(Arc<AtomicBool>);

impl Service for NoWorker {
    type Session = ();
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        self.0.store(true, SeqCst);
        Err(io::Error::other("no database"))
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, _: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
        Ok(Next::Close)
    }
}

#[test]
fn a_server_that_cannot_start_stops_the_others() {
    for fails in 0..3 {
        let tried = Arc::new(AtomicBool::new(false));
        let mut servers = Servers::new();
        let mut handles = Vec::new();
        for index in 0..3 {
            if index == fails {
                let bad = server().workers(1).build(NoWorker(Arc::clone(&tried)));
                let bad = bad.unwrap();
                handles.push(bad.handle());
                servers = servers.with(bad);
            } else {
                let good = server().workers(1).build(lines).unwrap();
                handles.push(good.handle());
                servers = servers.with(good);
            }
        }
        let error = servers.run().unwrap_err();
        assert_eq!(error.to_string(), "no database");
        assert!(tried.load(SeqCst));
        for handle in handles {
            handle.join_timeout(LIMIT).unwrap();
            assert_eq!(handle.stats().accepted, 0);
            assert!(TcpStream::connect(addr(&handle)).is_err());
        }
    }
    let error = Servers::new().run().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// With one worker each, so that the calls are those of the other server's only worker.
#[test]
fn a_thread_of_one_server_cannot_wait_for_another_one_of_its_group() {
    let (given, other) = unbounded::<Handle>();
    let plain = server().workers(1).build(lines).unwrap();
    let waits = server().workers(1).build(move |conn: &mut Connection| {
        other.recv().unwrap().join();
        lines(conn)
    });
    let handle = plain.handle();
    let servers = Servers::new().with(plain).with(waits.unwrap());
    let handles = servers.start().unwrap();
    given.send(handle).unwrap();
    let mut client = connect(addr(&handles[1]));
    client.write_all(b"hello\n").unwrap();
    assert_closed(&mut client);
    assert_eq!(handles[1].stats().panics, 1);
    handles[1].stop(LIMIT);
    assert!(handles[0].join().is_clean());
}

#[test]
fn hooks_of_all_servers_are_called_and_a_shared_service_serves_both() {
    let (called, calls) = unbounded();
    let shared = Arc::new(Shout);
    let mut servers = Servers::new();
    for index in 0..2 {
        let called = called.clone();
        let builder = settings().listen("127.0.0.1:0").workers(1);
        let builder = builder.on_stop(move || called.send(index).unwrap());
        servers = servers.with(builder.build(Arc::clone(&shared)).unwrap());
    }
    let handles = servers.start().unwrap();
    for handle in &handles {
        assert_eq!(line(&mut connect(addr(handle)), "a"), "a!");
    }
    handles[0].stop(LIMIT);
    for handle in &handles {
        assert!(handle.join().is_clean());
    }
    let mut seen = [(); 2].map(|()| calls.recv_timeout(LIMIT).unwrap());
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
}

/// Errors come where a mistake is made. A process has one `Restart`, so this runs in one of its own.
#[cfg(target_os = "linux")]
#[test]
fn mistakes_with_a_restart_are_errors_at_once() {
    use handover::{BuildError, Restart};

    const NAME: &str = "mistakes_with_a_restart_are_errors_at_once";
    let Some(_parent) = support::as_child(NAME) else {
        return support::Child::of(NAME).end();
    };
    let restart = Restart::inherit().unwrap();
    let error = Restart::inherit().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("one Restart"), "{error}");

    let with = |restart: &Restart| server().workers(1).restart(restart.clone());
    let (one, other) = (with(&restart).build(lines), with(&restart).build(Shout));
    let (one, other) = (one.unwrap(), other.unwrap());
    // The other one would be left out.
    let error = one.start().unwrap_err();
    assert!(error.to_string().contains("with Servers"), "{error}");
    drop(other);

    // One with, and one without.
    let (one, other) = (with(&restart).build(lines), server().build(lines));
    let servers = Servers::new().with(one.unwrap()).with(other.unwrap());
    let error = servers.start().unwrap_err();
    assert!(error.to_string().contains("one Restart"), "{error}");

    // Nothing of this has used it up.
    let (one, other) = (with(&restart).build(lines), with(&restart).build(Shout));
    let servers = Servers::new().with(one.unwrap()).with(other.unwrap());
    let handles = servers.start().unwrap();
    ask(&mut connect(addr(&handles[0])), "hello");
    let error = with(&restart).build(lines).unwrap_err();
    assert!(matches!(error, BuildError::Restart(_)), "{error:?}");
    assert!(error.to_string().contains("run already"), "{error}");
    assert_eq!(restart.inherited_state(), None);
    handles[1].stop(LIMIT);
    for handle in &handles {
        assert!(handle.join().is_clean());
    }
}

/// The handle of a server that is never started does not keep `join` waiting, in a group as well.
#[test]
fn a_group_that_is_dropped_has_stopped() {
    let server = Server::builder().listen("127.0.0.1:0").build(lines);
    let server = server.unwrap();
    let handle = server.handle();
    let waits = thread::spawn(move || handle.join());
    drop(Servers::new().with(server));
    assert!(waits.join().unwrap().is_clean());
}
