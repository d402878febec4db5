//! Handles: before and during `run`, the hook when a stop begins, joins with a time-out, and the drop of the last one.

mod support;

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use handover::{Connection, Next, Report, Service};

use support::{
    LIMIT, addr, answer, ask, assert_closed, assert_silent, connect, door, eventually, keep_log,
    lines, server, start, stop, until, wait_logged,
};

#[test]
fn a_handle_from_before_controls_a_server_that_runs() {
    let server = server().workers(2).build(lines).unwrap();
    let handle = server.handle();
    assert_eq!(handle.local_addrs(), server.local_addrs());
    assert_eq!((handle.stats().accepted, handle.is_stopping()), (0, false));
    assert_eq!(handle.join_timeout(Duration::ZERO), None);
    let running = thread::spawn(move || server.run().unwrap());
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_eq!(handle.stats().accepted, 1);
    assert_eq!(handle.join_timeout(Duration::from_millis(20)), None);
    handle.pause();
    let mut waits = connect(addr(&handle));
    assert_silent(&mut waits);
    handle.resume();
    ask(&mut waits, "hello");
    // Clones come and go.
    drop(handle.clone());
    handle.stop(LIMIT);
    assert!(handle.is_stopping());
    let report = running.join().unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(handle.join_timeout(LIMIT), Some(report));
    assert_closed(&mut client);
}

#[test]
fn the_drop_of_the_last_handle_beside_run_has_no_effect() {
    let server = server().workers(2).build(lines).unwrap();
    let (handle, stats) = (server.handle(), server.handle());
    let to = addr(&handle);
    let running = thread::spawn(move || server.run().unwrap());
    ask(&mut connect(to), "hello");
    drop(handle);
    // A stop would come before the answer to this.
    ask(&mut connect(to), "hello");
    assert!(!stats.is_stopping());
    stats.stop(LIMIT);
    assert!(running.join().unwrap().is_clean());
}

#[test]
fn stops_before_the_start_never_wait_and_are_not_lost() {
    let server = server().workers(2).build(lines).unwrap();
    let handle = server.handle();
    // More than any channel holds.
    for _ in 0..1000 {
        handle.stop(LIMIT);
    }
    let mut client = connect(addr(&handle));
    let report = server.run().unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(handle.stats().accepted, 0);
    assert_eq!(client.read(&mut [0; 8]).unwrap_or_default(), 0);
}

#[test]
fn a_server_that_is_paused_before_it_starts_accepts_when_it_is_resumed() {
    let server = server().workers(2).build(lines).unwrap();
    let handle = server.handle();
    handle.pause();
    let started = server.start().unwrap();
    let mut client = connect(addr(&handle));
    client.set_nodelay(true).unwrap();
    io::Write::write_all(&mut client, b"hello\n").unwrap();
    assert_silent(&mut client);
    assert_eq!(handle.stats().accepted, 0);
    handle.resume();
    assert_eq!(answer(&mut client), "hello");
    stop(&started);
}

#[test]
fn a_server_that_never_starts_has_an_empty_report() {
    let server = server().build(lines).unwrap();
    let handle = server.handle();
    let waits = handle.clone();
    let waits = thread::spawn(move || waits.join());
    assert!(!handle.is_stopping());
    drop(server);
    assert_eq!(waits.join().unwrap(), Report::default());
    assert!(handle.is_stopping());
    let error = handle.every(LIMIT, || {}).unwrap_err();
    assert_eq!(error.to_string(), "the server has stopped");
    assert!(TcpStream::connect(addr(&handle)).is_err());
}

/// What a hook sees, once for each call.
#[test]
fn the_hook_is_called_once_when_a_stop_begins() {
    let (keeper, door) = door();
    let (called, calls) = unbounded();
    let builder = server().workers(2).on_stop(move || {
        let name = thread::current().name().unwrap_or_default().to_owned();
        called.send(name).unwrap();
    });
    let handle = start(builder, move |conn: &mut Connection| {
        door.pass();
        lines(conn)
    });
    let mut client = connect(addr(&handle));
    io::Write::write_all(&mut client, b"hello\n").unwrap();
    keeper.wait();
    assert!(calls.is_empty());
    handle.stop(LIMIT);
    handle.stop(LIMIT);
    assert!(calls.recv_timeout(LIMIT).unwrap().ends_with("-on_stop"));
    assert!(handle.is_stopping());
    // The drain goes on meanwhile.
    assert_eq!(handle.join_timeout(Duration::from_millis(20)), None);
    keeper.let_one_in();
    assert_eq!(answer(&mut client), "hello");
    drop(keeper);
    assert!(handle.join().is_clean());
    assert!(calls.is_empty(), "called again");
}

#[test]
fn a_thread_of_the_application_ends_by_the_hook() {
    let (stop, stopped) = unbounded::<()>();
    let ticks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ticks);
    let background = thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(1)).is_err() {
            counted.fetch_add(1, SeqCst);
        }
    });
    let builder = server().workers(1).on_stop(move || stop.send(()).unwrap());
    let handle = start(builder, lines);
    eventually("it ticks", || ticks.load(SeqCst) > 1);
    handle.stop(LIMIT);
    background.join().unwrap();
    assert!(handle.join().is_clean());
}

#[test]
fn a_hook_that_panics_or_takes_too_long_does_not_hold_up_the_stop() {
    keep_log();
    let builder = server().workers(1);
    let handle = start(builder.on_stop(|| panic!("the hook's fault")), lines);
    stop(&handle);
    wait_logged("the hook on_stop panicked: the hook's fault");

    let (keeper, door) = door();
    let builder = server().workers(1).thread_name_prefix("late-hook");
    let handle = start(builder.on_stop(move || door.pass()), lines);
    handle.stop_now();
    keeper.wait();
    assert!(handle.join_timeout(LIMIT).is_some());
    wait_logged("late-hook-on_stop: a call of the application goes on after the stop");
}

struct NoWorker;

impl Service for NoWorker {
    type Session = ();
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
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
fn a_server_that_cannot_start_calls_no_hook_and_has_stopped() {
    let builder = server().workers(1).on_stop(|| panic!("called"));
    let server = builder.build(NoWorker).unwrap();
    let handle = server.handle();
    let error = server.start().unwrap_err();
    assert_eq!(error.to_string(), "no database");
    assert!(handle.is_stopping());
    assert!(handle.join_timeout(LIMIT).is_some());
}

/// Nothing waits in the drop, and the server still answers what it has received.
#[test]
fn the_drop_of_the_last_handle_begins_a_drain_and_returns_at_once() {
    keep_log();
    let (keeper, door) = door();
    let (ended, ends) = unbounded();
    let builder = server().workers(1).drain_timeout(LIMIT);
    let builder = builder.on_worker_exit(move |_| ended.send(()).unwrap());
    let handle = start(builder, move |conn: &mut Connection| {
        door.pass();
        lines(conn)
    });
    let mut client = connect(addr(&handle));
    io::Write::write_all(&mut client, b"hello\n").unwrap();
    keeper.wait();
    let clone = handle.clone();
    drop(handle);
    assert!(!clone.is_stopping());
    let begin = Instant::now();
    drop(clone);
    assert!(begin.elapsed() < LIMIT / 4, "{:?}", begin.elapsed());
    assert!(ends.is_empty());
    wait_logged("the last handle was dropped: stopping");
    keeper.let_one_in();
    assert_eq!(answer(&mut client), "hello");
    drop(keeper);
    assert_closed(&mut client);
    ends.recv_timeout(LIMIT).unwrap();
}

#[test]
fn a_join_with_a_time_out_changes_nothing() {
    let handle = start(server().workers(1), lines);
    until(&handle, "it runs", |stats| stats.live == 0);
    for _ in 0..3 {
        assert_eq!(handle.join_timeout(Duration::from_millis(1)), None);
        ask(&mut connect(addr(&handle)), "hello");
    }
    assert_eq!(handle.join_timeout(Duration::ZERO), None);
    handle.stop(LIMIT);
    assert!(handle.join_timeout(Duration::MAX).unwrap().is_clean());
}
