//! Outboxes: what other threads send to a connection.

mod support;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use handover::{Builder, Connection, Handle, Next, Outbox, SendError, Service, WhenFull};

use support::{
    LIMIT, QUIET, addr, answer, ask, assert_closed, assert_silent, connect, connect_narrow, door,
    eventually, lines, pause, server, start, stop, until,
};

/// A server that answers lines. The line `subscribe` makes an outbox with this limit.
fn subscribers(builder: Builder, limit: usize) -> (Handle, Receiver<Outbox>) {
    let (tell, told) = unbounded();
    let service = move |conn: &mut Connection| {
        if conn.cause().draining {
            return Ok(Next::Close);
        }
        match conn.buffer() == b"subscribe\n" {
            true => {
                let _ = conn.take_line(64)?;
                tell.send(conn.outbox(limit)).unwrap();
                Ok(Next::Park)
            }
            false => lines(conn),
        }
    };
    (start(builder, service), told)
}

fn subscribe(client: &mut TcpStream, told: &Receiver<Outbox>) -> Outbox {
    client.write_all(b"subscribe\n").unwrap();
    told.recv().unwrap()
}

#[test]
fn messages_arrive_in_order_without_a_call_of_the_service() {
    let (handle, told) = subscribers(server().workers(2), 1 << 20);
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    until(&handle, "it is parked", |stats| stats.parked == 1);
    let served = handle.stats().served;
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let outbox = outbox.clone();
            thread::spawn(move || {
                for number in 0..1000 {
                    let message = format!("{thread} {number}\n");
                    outbox.send_by(message, Instant::now() + LIMIT).unwrap();
                }
            })
        })
        .collect();
    let mut next = [0; 4];
    let mut reader = io::BufReader::new(&client);
    for _ in 0..4000 {
        let line = answer(&mut reader);
        let (thread, number) = line.split_once(' ').unwrap();
        let thread: usize = thread.parse().unwrap();
        assert_eq!(number, next[thread].to_string());
        next[thread] += 1;
    }
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    // Bytes that a client has read are counted as sent a moment later, perhaps by another thread.
    eventually("all is sent", || outbox.unsent() == 0);
    let stats = until(&handle, "all is counted", |stats| {
        stats.bytes_out > 4000 * 4
    });
    assert_eq!(stats.served, served);
    // The connection goes on as before.
    ask(&mut client, "hello");
    outbox.send("bye\n").unwrap();
    assert_eq!(answer(&mut client), "bye");
    drop(client);
    stop(&handle);
    assert_eq!(outbox.send("x"), Err(SendError::Closed("x".into())));
    assert!(outbox.is_closed());
}

/// All workers are busy, and the message comes all the same.
#[test]
fn a_message_needs_no_worker() {
    let (keeper, at_door) = door();
    let (tell, told) = unbounded();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        if conn.take_line(64)?.as_deref() == Some("subscribe") {
            tell.send(conn.outbox(1000)).unwrap();
        } else {
            at_door.pass();
        }
        Ok(Next::Park)
    });
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    let mut busy = connect(addr(&handle));
    busy.write_all(b"busy\n").unwrap();
    keeper.wait();
    outbox.send("news\n").unwrap();
    assert_eq!(answer(&mut client), "news");
    drop((keeper, client, busy));
    stop(&handle);
}

#[test]
fn what_a_call_writes_is_not_torn_apart() {
    let (keeper, at_door) = door();
    let (tell, told) = unbounded();
    let handle = start(server().workers(1), move |conn: &mut Connection| {
        if conn.take_line(64)?.is_none() {
            return Ok(Next::Close);
        }
        let outbox = conn.outbox(1 << 20);
        conn.write_all(b"<")?;
        // More than is gathered, so that a part leaves before the call returns.
        conn.write_all(&[b'x'; 40_000])?;
        conn.flush()?;
        tell.send(outbox).unwrap();
        at_door.pass();
        conn.write_all(b">\n")?;
        Ok(Next::Park)
    });
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    keeper.wait();
    outbox.send("message\n").unwrap();
    keeper.let_one_in();
    let line = answer(&mut client);
    assert_eq!(line, format!("<{}>", "x".repeat(40_000)));
    assert_eq!(answer(&mut client), "message");
    drop(client);
    stop(&handle);
}

/// Fills the socket and the outbox of a client that does not read, until the kernel takes no more.
/// Returns how many messages of 1,000 bytes were sent.
fn fill(outbox: &Outbox) -> usize {
    let message = bytes::Bytes::from(vec![b'x'; 1000]);
    let mut sent = 0;
    loop {
        match outbox.send_by(message.clone(), Instant::now() + QUIET) {
            Ok(()) => sent += 1,
            Err(_) => return sent,
        }
        assert!(sent < 100_000);
    }
}

#[test]
fn an_outbox_that_is_full_says_so_and_its_bytes_are_bounded() {
    let (handle, told) = subscribers(server().workers(1), 64_000);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    let sent = fill(&outbox);
    assert!(outbox.unsent() <= 64_000, "{}", outbox.unsent());
    assert!(matches!(
        outbox.send("y".repeat(1000)),
        Err(SendError::Full(_))
    ));
    assert!(matches!(
        outbox.send("y".repeat(64_001)),
        Err(SendError::Full(_))
    ));
    let soon = Instant::now() + Duration::from_millis(20);
    assert!(matches!(
        outbox.send_by("y".repeat(1000), soon),
        Err(SendError::Full(_))
    ));
    // A sender that waits goes on as soon as the client reads.
    let waiting = {
        let outbox = outbox.clone();
        thread::spawn(move || outbox.send_by("z".repeat(1000), Instant::now() + LIMIT))
    };
    let mut bytes = vec![0; sent * 1000 + 1000];
    client.read_exact(&mut bytes).unwrap();
    waiting.join().unwrap().unwrap();
    assert!(bytes[..sent * 1000].iter().all(|&byte| byte == b'x'));
    assert!(bytes[sent * 1000..].iter().all(|&byte| byte == b'z'));
    eventually("all is written", || outbox.unsent() == 0);
    drop(client);
    stop(&handle);
}

#[test]
fn the_oldest_messages_may_be_dropped() {
    let (handle, told) = subscribers(server().workers(1), 64_000);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    outbox.set_when_full(WhenFull::DropOldest);
    // Some 16 messages are on their way to the socket already, and are not dropped.
    for number in 0..50_000 {
        outbox.send(format!("{number:0999}\n")).unwrap();
        assert!(outbox.unsent() <= 64_000);
    }
    assert!(outbox.dropped() > 40_000);
    let mut reader = io::BufReader::new(&client);
    let (mut received, mut last) = (0, None);
    while last != Some(49_999) {
        let number: u64 = answer(&mut reader).parse().unwrap();
        assert!(last < Some(number));
        last = Some(number);
        received += 1;
    }
    assert_eq!(received + outbox.dropped(), 50_000);
    // A message that can never fit costs no other.
    let dropped = outbox.dropped();
    outbox.send("kept\n").unwrap();
    assert!(matches!(
        outbox.send("y".repeat(64_001)),
        Err(SendError::Full(_))
    ));
    assert_eq!(answer(&mut reader), "kept");
    assert_eq!(outbox.dropped(), dropped);
    drop(client);
    stop(&handle);
}

#[test]
fn a_client_that_reads_too_slowly_may_be_dropped() {
    let (handle, told) = subscribers(server().workers(1), 64_000);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    outbox.set_when_full(WhenFull::CloseConnection);
    fill(&outbox);
    assert!(outbox.is_closed());
    until(&handle, "the connection is closed", |stats| stats.live == 0);
    assert!(matches!(outbox.send("y"), Err(SendError::Closed(_))));
    stop(&handle);
}

#[test]
fn a_client_that_does_not_read_is_closed_by_the_write_time_out() {
    let builder = server()
        .workers(1)
        .write_timeout(Duration::from_millis(100));
    let (handle, told) = subscribers(builder, 64_000);
    let mut deaf = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut deaf, &told);
    let mut other = connect(addr(&handle));
    let other_outbox = subscribe(&mut other, &told);
    fill(&outbox);
    until(&handle, "it is closed", |stats| {
        stats.expired.write == 1 && stats.live == 1
    });
    assert!(outbox.is_closed() && outbox.unsent() == 0);
    other_outbox.send("still here\n").unwrap();
    assert_eq!(answer(&mut other), "still here");
    drop((deaf, other));
    stop(&handle);
}

#[test]
fn closing_writes_what_was_sent_before() {
    let (handle, told) = subscribers(server().workers(1), 1 << 20);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    let message = "x".repeat(900_000) + "\n";
    outbox.send(message.clone()).unwrap();
    outbox.send("bye\n").unwrap();
    outbox.close_connection();
    assert!(matches!(outbox.send("late"), Err(SendError::Closed(_))));
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, message + "bye\n");
    until(&handle, "it is closed", |stats| stats.live == 0);
    // A connection with nothing to write is closed at once.
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    outbox.close_connection();
    assert_closed(&mut client);
    stop(&handle);
}

/// More than one turn writes, in messages that leave in whole batches.
#[test]
fn many_messages_reach_a_client_that_stalled() {
    const COUNT: usize = 24 * 1024;
    let (handle, told) = subscribers(server().workers(1), COUNT * 1024);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    let message = bytes::Bytes::from(vec![b'x'; 1024]);
    for _ in 0..COUNT {
        outbox.send(message.clone()).unwrap();
    }
    let mut bytes = vec![0; COUNT * 1024];
    client.read_exact(&mut bytes).unwrap();
    eventually("all is written", || outbox.unsent() == 0);
    drop(client);
    stop(&handle);
}

/// The client has begun a message, and other threads send to it meanwhile.
#[test]
fn messages_give_a_client_no_more_time_for_its_own() {
    let builder = server().workers(1).read_timeout(Duration::from_millis(300));
    let (handle, told) = subscribers(builder, 1 << 20);
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    client.write_all(b"a part").unwrap();
    until(&handle, "the time is over", |stats| {
        pause(Duration::from_millis(1));
        let _ = outbox.send("tick\n");
        stats.expired.read == 1
    });
    stop(&handle);
}

#[test]
fn a_second_outbox_closes_the_first() {
    let (handle, told) = subscribers(server().workers(1), 1000);
    let mut client = connect(addr(&handle));
    let first = subscribe(&mut client, &told);
    first.send("one\n").unwrap();
    let second = subscribe(&mut client, &told);
    assert!(matches!(first.send("lost\n"), Err(SendError::Closed(_))));
    second.send("two\n").unwrap();
    assert_eq!(answer(&mut client), "one");
    assert_eq!(answer(&mut client), "two");
    drop(client);
    stop(&handle);
}

/// The session takes the lock that the sender holds: a list of subscribers, say.
#[test]
fn a_sender_runs_no_drop_of_a_session() {
    type List = Arc<Mutex<Vec<Outbox>>>;
    struct Subscribed(List);
    impl Drop for Subscribed {
        fn drop(&mut self) {
            self.0.lock().unwrap().retain(|outbox| !outbox.is_closed());
        }
    }
    struct Subscribing(List);
    impl Service for Subscribing {
        type Session = Subscribed;
        type Worker = ();
        fn worker(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn session(&self, _: &Connection) -> io::Result<Subscribed> {
            Ok(Subscribed(Arc::clone(&self.0)))
        }
        fn serve(
            &self,
            conn: &mut Connection,
            _: &mut Subscribed,
            (): &mut (),
        ) -> io::Result<Next> {
            let _ = conn.take_line(64)?;
            let outbox = conn.outbox(10_000);
            outbox.set_when_full(WhenFull::CloseConnection);
            self.0.lock().unwrap().push(outbox);
            Ok(Next::Park)
        }
    }
    let list = List::default();
    let handle = start(server().workers(2), Subscribing(Arc::clone(&list)));
    let mut clients: Vec<_> = (0..20).map(|_| connect_narrow(addr(&handle))).collect();
    for client in &mut clients {
        client.write_all(b"subscribe\n").unwrap();
    }
    eventually("all have subscribed", || list.lock().unwrap().len() == 20);
    // Some have left, and the others do not read.
    clients.truncate(10);
    eventually("none is left", || {
        let list = list.lock().unwrap();
        for outbox in &*list {
            let _ = outbox.send(vec![b'x'; 9_000]);
        }
        list.is_empty()
    });
    stop(&handle);
}

#[test]
fn messages_race_with_the_owner_and_the_end() {
    let rounds = std::env::var("HANDOVER_ROUNDS").map_or(20_000, |rounds| rounds.parse().unwrap());
    let (handle, told) = subscribers(server().workers(2), 1 << 20);
    let mut client = connect(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    let sender = thread::spawn(move || {
        for number in 0..rounds {
            outbox
                .send_by(format!("m{number}\n"), Instant::now() + LIMIT)
                .unwrap();
        }
    });
    // The client's own messages have calls in between.
    let mut asking = client.try_clone().unwrap();
    let asker = thread::spawn(move || {
        for number in 0..rounds {
            asking.write_all(format!("a{number}\n").as_bytes()).unwrap();
        }
    });
    let mut reader = io::BufReader::new(&client);
    let (mut messages, mut answers) = (0, 0);
    while messages < rounds || answers < rounds {
        let line = answer(&mut reader);
        let (expected, count) = match line.starts_with('m') {
            true => (format!("m{messages}"), &mut messages),
            false => (format!("a{answers}"), &mut answers),
        };
        assert_eq!(line, expected);
        *count += 1;
    }
    sender.join().unwrap();
    asker.join().unwrap();
    drop(reader);
    drop(client);
    stop(&handle);

    // Connections end while they are sent to.
    let (handle, told) = subscribers(server().workers(2), 1000);
    for _ in 0..rounds / 100 {
        let mut client = connect(addr(&handle));
        let outbox = subscribe(&mut client, &told);
        let sender = thread::spawn(move || while outbox.send("x").is_ok() {});
        drop(client);
        sender.join().unwrap();
    }
    stop(&handle);
}

#[test]
fn a_forced_stop_ends_senders() {
    let (handle, told) = subscribers(server().workers(1), 64_000);
    let mut client = connect_narrow(addr(&handle));
    let outbox = subscribe(&mut client, &told);
    fill(&outbox);
    let waiting = {
        let outbox = outbox.clone();
        thread::spawn(move || outbox.send_by("y".repeat(1000), Instant::now() + LIMIT))
    };
    pause(Duration::from_millis(20));
    handle.stop_now();
    handle.join();
    assert!(matches!(waiting.join().unwrap(), Err(SendError::Closed(_))));
    let _ = assert_silent;
}
