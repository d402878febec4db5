//! Greetings and goodbyes: what a client reads when its session begins, and when the server ends its connection.
#![cfg(target_os = "linux")]

mod support;

use std::io::{self, Read, Write};
use std::time::Duration;

use handover::{Bind, Builder, Connection, Expiry, Handle, Next, Service};

use support::{
    addr, answer, ask, assert_closed, connect, door, lines, server, settings, start, stop, until,
};

/// What a test uses as a time-out that is to pass.
const SHORT: Duration = Duration::from_millis(100);

fn greet(conn: &mut Connection) -> io::Result<u64> {
    conn.set_goodbye("421 goodbye\n");
    writeln!(conn, "220 ready")?;
    Ok(0)
}

/// Numbers the lines. `mail` begins a message of several lines.
fn count(conn: &mut Connection, count: &mut u64) -> io::Result<Next> {
    while let Some(line) = conn.take_line(100)? {
        match line.as_str() {
            "mail" => return Ok(Next::More),
            "quit" => return Ok(Next::Close),
            "wait" => return Ok(Next::Wait),
            _ => {
                *count += 1;
                writeln!(conn, "{count} {line}")?;
            }
        }
    }
    Ok(Next::incomplete(conn))
}

fn polite(builder: Builder) -> Handle {
    let listener = Bind::new("127.0.0.1:0").speaks_first(true);
    let service = handover::service_with_session(greet, count);
    start(builder.listen(listener).workers(2), service)
}

#[test]
fn a_client_is_greeted_when_its_session_begins() {
    let handle = polite(settings());
    let mut client = connect(addr(&handle));
    assert_eq!(answer(&mut client), "220 ready");
    client.write_all(b"a\nb\n").unwrap();
    assert_eq!(answer(&mut client), "1 a");
    assert_eq!(answer(&mut client), "2 b");
    // The service ends the connection, and says what it likes.
    client.write_all(b"quit\n").unwrap();
    assert_closed(&mut client);
    stop(&handle);
}

#[test]
fn a_session_that_cannot_begin_closes_its_connection() {
    let service = handover::service_with_session(
        |conn: &mut Connection| match conn.peer_addr()?.is_ipv4() {
            true => Err("no session".into()),
            false => Ok(()),
        },
        |conn, ()| -> Result<Next, Box<dyn std::error::Error>> { Ok(lines(conn)?) },
    );
    let handle = start(server(), service);
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    assert_closed(&mut client);
    until(&handle, "it is counted", |stats| stats.service_errors == 1);
    stop(&handle);
}

#[test]
fn a_client_that_is_too_slow_reads_the_goodbye() {
    let handle = polite(settings().idle_timeout(SHORT).read_timeout(SHORT));
    // Silent from the beginning, after a line, in a line, in a message, and while it waits.
    for text in ["", "a\n", "par", "mail\n", "wait\n"] {
        let mut client = connect(addr(&handle));
        assert_eq!(answer(&mut client), "220 ready");
        client.write_all(text.as_bytes()).unwrap();
        if text == "a\n" {
            assert_eq!(answer(&mut client), "1 a");
        }
        assert_eq!(answer(&mut client), "421 goodbye", "after {text:?}");
        assert_closed(&mut client);
    }
    let expired = handle.stats().expired;
    assert_eq!((expired.idle, expired.read), (3, 2));
    stop(&handle);
}

#[test]
fn a_stop_says_goodbye_to_those_that_are_idle_and_to_others_after_their_message() {
    let handle = polite(settings());
    let mut idle = [(); 20].map(|()| connect(addr(&handle)));
    let mut in_message = connect(addr(&handle));
    for client in idle.iter_mut().chain([&mut in_message]) {
        assert_eq!(answer(client), "220 ready");
    }
    in_message.write_all(b"par").unwrap();
    until(&handle, "all are parked", |stats| {
        (stats.parked, stats.bytes_in) == (21, 3)
    });
    handle.stop(support::LIMIT);
    for client in &mut idle {
        assert_eq!(answer(client), "421 goodbye");
        assert_closed(client);
    }
    in_message.write_all(b"t\n").unwrap();
    assert_eq!(answer(&mut in_message), "1 part");
    assert_eq!(answer(&mut in_message), "421 goodbye");
    assert_closed(&mut in_message);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 21);
}

/// A connection that a worker serves when the stop begins.
#[test]
fn a_stop_says_goodbye_after_the_answer_of_a_call() {
    let (keeper, door) = door();
    let service =
        handover::service_with_session(greet, move |conn: &mut Connection, _: &mut u64| {
            door.pass();
            lines(conn)
        });
    let handle = start(server().workers(1), service);
    let mut client = connect(addr(&handle));
    client.write_all(b"hello\n").unwrap();
    keeper.wait();
    handle.stop(support::LIMIT);
    keeper.let_one_in();
    for line in ["220 ready", "hello", "421 goodbye"] {
        assert_eq!(answer(&mut client), line);
    }
    assert_closed(&mut client);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn without_a_goodbye_nothing_is_sent() {
    let handle = start(server().idle_timeout(SHORT), lines);
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_closed(&mut client);
    stop(&handle);
}

/// Another thread may have a message for the client at any time.
#[test]
fn no_message_follows_the_goodbye() {
    let (tell, told) = crossbeam_channel::unbounded();
    let begin = move |conn: &mut Connection| {
        tell.send(conn.outbox(1000)).unwrap();
        greet(conn)
    };
    let listener = Bind::new("127.0.0.1:0").speaks_first(true);
    let service = handover::service_with_session(begin, count);
    let handle = start(settings().listen(listener).workers(2), service);
    let mut client = connect(addr(&handle));
    let outbox = told.recv().unwrap();
    outbox.send("news\n").unwrap();
    // In either order: the session has begun when the outbox is there.
    let mut lines = [answer(&mut client), answer(&mut client)];
    lines.sort();
    assert_eq!(lines, ["220 ready", "news"]);
    handle.stop(support::LIMIT);
    assert_eq!(answer(&mut client), "421 goodbye");
    let refused = outbox.send("late\n");
    assert_closed(&mut client);
    assert!(refused.is_err(), "{refused:?}");
    assert!(outbox.is_closed());
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

/// A library that reads in the call for an expiry finds nothing, and its error is no failure.
#[test]
fn an_expiry_whose_call_would_wait_closes_the_connection() {
    struct Reads;

    impl Service for Reads {
        type Session = ();
        type Worker = ();

        fn worker(&self, _index: usize) -> io::Result<()> {
            Ok(())
        }

        fn session(&self, _conn: &mut Connection) -> io::Result<()> {
            Ok(())
        }

        fn serve(&self, conn: &mut Connection, (): &mut (), (): &mut ()) -> io::Result<Next> {
            lines(conn)
        }

        fn handles_expiry(&self) -> bool {
            true
        }

        fn expired(&self, conn: &mut Connection, (): &mut (), _: Expiry) -> io::Result<Next> {
            conn.write_all(b"too late\n")?;
            conn.nonblocking().read_exact(&mut [0])?;
            Ok(Next::Park)
        }
    }

    let handle = start(server().idle_timeout(SHORT), Reads);
    let mut client = connect(addr(&handle));
    ask(&mut client, "hello");
    assert_eq!(answer(&mut client), "too late");
    assert_closed(&mut client);
    until(&handle, "it is gone", |stats| stats.live == 0);
    assert_eq!(handle.stats().service_errors, 0);
    stop(&handle);
}
