//! Periodic calls of the application: `Handle::every`.

mod support;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Connection, Next};

use support::{
    LIMIT, addr, ask, connect, door, eventually, keep_log, lines, server, start, stop, threads,
    until, wait_logged,
};

const OFTEN: Duration = Duration::from_millis(1);
const AN_HOUR: Duration = Duration::from_secs(3600);

/// Counts its calls, and says when it is dropped.
#[derive(Clone, Default)]
struct Calls(Arc<AtomicUsize>);

impl Calls {
    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }

    fn is_dropped(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn add(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    #[track_caller]
    fn until_more(&self) {
        let count = self.count();
        eventually("it is called again", || self.count() > count + 1);
    }
}

#[test]
fn calls_come_on_a_thread_with_the_servers_prefix_until_the_stop() {
    let handle = start(server().workers(1).thread_name_prefix("tick"), lines);
    let calls = Calls::default();
    let counted = calls.clone();
    let begin = Instant::now();
    let interval = Duration::from_millis(20);
    handle
        .every(interval, move || {
            let name = thread::current().name().unwrap_or_default().to_owned();
            assert_eq!(name, "tick-every");
            counted.add();
        })
        .unwrap();
    eventually("it is called", || calls.count() >= 10);
    assert!(begin.elapsed() >= 10 * interval, "{:?}", begin.elapsed());
    assert_eq!(threads("tick-every"), 1);
    stop(&handle);
    assert!(calls.is_dropped());
    assert_eq!(threads("tick-every"), 0);
}

#[test]
fn calls_that_are_set_before_the_start_begin_with_it() {
    let server = server().workers(1).build(lines).unwrap();
    let error = server.handle().every(Duration::ZERO, || {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let calls = Calls::default();
    for _ in 0..2 {
        let counted = calls.clone();
        server.handle().every(OFTEN, move || counted.add()).unwrap();
    }
    assert_eq!(calls.count(), 0);
    let handle = server.start().unwrap();
    calls.until_more();
    stop(&handle);
    assert!(calls.is_dropped());
}

#[test]
fn a_panic_is_logged_and_the_calls_go_on() {
    keep_log();
    let handle = start(server().workers(1), lines);
    let calls = Calls::default();
    let counted = calls.clone();
    handle
        .every(OFTEN, move || {
            counted.add();
            assert!(counted.count() > 1, "the first tick fails");
        })
        .unwrap();
    calls.until_more();
    let logged = wait_logged("the first tick fails");
    assert_eq!(logged.level, log::Level::Error);
    ask(&mut connect(addr(&handle)), "hello");
    stop(&handle);
}

#[test]
fn an_interval_of_zero_and_a_stopped_server_are_errors() {
    let handle = start(server().workers(1), lines);
    let error = handle.every(Duration::ZERO, || {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // One that never comes is no error.
    handle.every(Duration::MAX, || {}).unwrap();
    stop(&handle);
    let error = handle.every(OFTEN, || {}).unwrap_err();
    assert_eq!(error.to_string(), "the server has stopped");
}

#[test]
fn a_stop_does_not_wait_for_the_interval() {
    let handle = start(server().workers(1), lines);
    let calls = Calls::default();
    for _ in 0..10 {
        let counted = calls.clone();
        handle.every(AN_HOUR, move || counted.add()).unwrap();
    }
    stop(&handle);
    assert_eq!(calls.count(), 0);
    assert!(calls.is_dropped());
}

#[test]
fn a_stop_waits_for_a_call_in_progress() {
    let handle = start(server().workers(1), lines);
    let calls = Calls::default();
    let (keeper, door) = door();
    let counted = calls.clone();
    handle
        .every(OFTEN, move || {
            door.pass();
            counted.add();
        })
        .unwrap();
    keeper.wait();
    handle.stop(LIMIT);
    let joined = handle.clone();
    let joining = thread::spawn(move || joined.join());
    eventually("it accepts no more", || {
        TcpStream::connect(addr(&handle)).is_err()
    });
    assert!(!joining.is_finished());
    // The drain may not be over yet: then other calls follow.
    drop(keeper);
    let report = joining.join().unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(calls.count() >= 1 && calls.is_dropped());
}

#[test]
fn a_call_that_does_not_end_does_not_hold_the_stop_past_its_deadline() {
    keep_log();
    let handle = start(server().workers(1).thread_name_prefix("stuck"), lines);
    let (keeper, door) = door();
    handle.every(OFTEN, move || door.pass()).unwrap();
    keeper.wait();
    handle.stop_now();
    handle.join();
    wait_logged("stuck-every: a call of the application goes on after the stop");
    drop(keeper);
}

#[test]
fn calls_go_on_while_the_server_drains() {
    let (keeper, door) = door();
    let service = move |conn: &mut Connection| {
        let _ = conn.take_line(100)?;
        door.pass();
        writeln!(conn, "done")?;
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), service);
    let calls = Calls::default();
    let counted = calls.clone();
    handle.every(OFTEN, move || counted.add()).unwrap();
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    keeper.wait();
    handle.stop(LIMIT);
    calls.until_more();
    keeper.let_one_in();
    assert_eq!(support::answer(&mut client), "done");
    assert!(handle.join().is_clean());
    assert!(calls.is_dropped());
}

#[test]
fn a_scoped_server_joins_them_as_well() {
    let calls = Calls::default();
    let counted = calls.clone();
    let server = server().workers(1).build(lines).unwrap();
    let ((), report) = server
        .run_scoped(|handle| {
            handle.every(OFTEN, move || counted.add()).unwrap();
            calls.until_more();
        })
        .unwrap();
    assert!(report.is_clean() && calls.is_dropped());
}

/// The server runs until another stop, as with a service that keeps a handle.
#[test]
fn a_call_may_keep_the_last_handle_and_stop_the_server() {
    let handle = start(server().workers(1), lines);
    let calls = Calls::default();
    let (counted, kept) = (calls.clone(), handle.clone());
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    until(&handle, "it is parked", |stats| stats.parked == 1);
    handle
        .every(Duration::from_millis(20), move || {
            counted.add();
            if counted.count() == 3 {
                kept.stop(LIMIT);
            }
        })
        .unwrap();
    // This is not the last one.
    drop(handle);
    support::assert_closed(&mut client);
    eventually("the call is dropped", || calls.is_dropped());
}
