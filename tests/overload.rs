//! Overload: what happens to clients that are too many, and that nobody is lost who is not.

mod support;

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Bind, Builder, Connection, Handle, Next, Overload, Service, Stats};

use parking_lot::Mutex;
use support::ServerSide;
use support::{
    Door, addr, answer, ask, assert_closed, assert_silent, bytes_at, connect, connect_from,
    connect_narrow, door, echo, lines, pause, read_pattern, read_pattern_from, server, settings,
    start, stop, tick, until,
};

const BUSY: &[u8] = b"sorry, too many of you\n";

fn refuse() -> Overload {
    Overload::Refuse(BUSY.to_vec())
}

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

fn send(client: &mut TcpStream, line: &str) {
    client.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// All that comes until the end.
#[track_caller]
fn rest(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = client.read_to_end(&mut bytes) {
        panic!("{error} after {} bytes", bytes.len());
    }
    bytes
}

/// A client whose connection is parked, after an exchange.
#[track_caller]
fn parked(handle: &Handle) -> TcpStream {
    let mut client = connect(addr(handle));
    ask(&mut client, "hello");
    // The answer is sent before the connection is parked.
    until(handle, "all are parked", |stats| {
        stats.parked == stats.live && stats.active == 0
    });
    client
}

// ---- too many connections ----

#[test]
fn wait_serves_the_next_client_as_soon_as_one_leaves() {
    let handle = start(server().workers(2).max_connections(2), lines);
    let mut inside = vec![parked(&handle), parked(&handle)];
    let mut outside: Vec<TcpStream> = (0..10)
        .map(|index| {
            let mut client = connect(addr(&handle));
            send(&mut client, &index.to_string());
            client
        })
        .collect();
    assert_silent(&mut outside[0]);
    assert_eq!(handle.stats().accepted, 2);
    for (index, mut next) in outside.into_iter().enumerate() {
        ask(&mut inside[0], "still served");
        drop(inside.remove(0));
        assert_eq!(answer(&mut next), index.to_string());
        inside.push(next);
    }
    assert_eq!(handle.stats().accepted, 12);
    drop(inside);
    stop(&handle);
}

#[test]
fn every_way_to_end_makes_room() {
    let (keeper, at_door) = door();
    drop(keeper);
    let service = move |conn: &mut Connection| match &*conn.buffer().to_vec() {
        b"panic" => panic!("as the test wants"),
        b"error" => Err(io::Error::other("as the test wants")),
        b"close" => Ok(Next::Close),
        b"detach" => {
            conn.detach()?;
            Ok(Next::Close)
        }
        _ => guarded(at_door.clone())(conn),
    };
    let handle = start(server().workers(1).max_connections(1), service);
    for round in 0..100 {
        let end = ["panic", "error", "close", "detach", "vanish", "finish"][round % 6];
        let mut client = connect(addr(&handle));
        match end {
            "vanish" => support::reset(client),
            "finish" => {
                support::finish(&client);
                assert_closed(&mut client);
            }
            end => {
                client.write_all(end.as_bytes()).unwrap();
                assert_closed(&mut client);
                // What is closed with unread input lingers for a while, if its client does.
                drop(client);
            }
        }
        // The one and only place is free again.
        ask(&mut connect(addr(&handle)), end);
    }
    stop(&handle);
}

#[test]
fn refuse_tells_the_client_and_closes() {
    let builder = server().workers(1).max_connections(1).overload(refuse());
    let handle = start(builder, lines);
    let mut inside = parked(&handle);
    // Clients that have sent nothing, a request, and a long one.
    for sent in [0, 10, 60_000] {
        let mut client = connect(addr(&handle));
        if let Err(error) = client.write_all(&vec![b'x'; sent]) {
            // It may have been refused and closed in the middle of it.
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        let mut told = Vec::new();
        let ended = client.read_to_end(&mut told);
        assert_eq!(told, BUSY, "{ended:?}, {sent} bytes sent");
        if sent < 4096 {
            ended.unwrap();
        }
    }
    assert_eq!(handle.stats().refused.max_connections, 3);
    ask(&mut inside, "still served");
    drop(inside);
    until(&handle, "there is room", |stats| stats.live == 0);
    ask(&mut connect(addr(&handle)), "let in");
    stop(&handle);
}

#[test]
fn a_long_refusal_arrives_complete() {
    let long: Vec<u8> = support::bytes_at(0, 60_000);
    let builder = server()
        .workers(1)
        .max_connections(1)
        .overload(Overload::Refuse(long.clone()));
    let handle = start(builder, lines);
    let inside = parked(&handle);
    for _ in 0..20 {
        let mut client = connect(addr(&handle));
        send(&mut client, "GET /");
        assert!(rest(&mut client) == long);
    }
    drop(inside);
    stop(&handle);
}

#[test]
fn shed_idle_closes_the_longest_parked() {
    let builder = server()
        .workers(2)
        .max_connections(3)
        .overload(Overload::ShedIdle);
    let handle = start(builder, lines);
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| {
            tick();
            parked(&handle)
        })
        .collect();
    tick();
    // So the second has been idle for longest.
    ask(&mut clients[0], "not idle");
    until(&handle, "all are parked", |stats| stats.active == 0);
    tick();
    let mut fourth = parked(&handle);
    assert_closed(&mut clients[1]);
    ask(&mut fourth, "hello");
    ask(&mut clients[0], "still there");
    ask(&mut clients[2], "still there");
    let stats = until(&handle, "one is gone", |stats| stats.live == 3);
    assert_eq!((stats.shed, stats.accepted), (1, 4));
    // Many more than are looked up at a time.
    for _ in 0..100 {
        ask(&mut connect(addr(&handle)), "hello");
    }
    drop((clients, fourth));
    stop(&handle);
}

#[test]
fn shed_idle_waits_until_somebody_is_idle() {
    let (keeper, at_door) = door();
    let builder = server()
        .workers(2)
        .max_connections(1)
        .overload(Overload::ShedIdle);
    let handle = start(builder, guarded(at_door));
    let mut first = connect(addr(&handle));
    send(&mut first, "wait");
    keeper.wait();
    // Nobody can be shed for this one now.
    let mut second = connect(addr(&handle));
    send(&mut second, "hello");
    assert_silent(&mut second);
    // When the first is parked, it has to go.
    keeper.let_one_in();
    assert_eq!(answer(&mut first), "wait");
    assert_eq!(answer(&mut second), "hello");
    assert_closed(&mut first);
    assert_eq!(handle.stats().shed, 1);
    drop((first, second));
    stop(&handle);
}

#[test]
fn shed_idle_finds_the_only_idle_one_among_many() {
    const CLIENTS: usize = 300;
    let builder = server()
        .workers(1)
        .max_connections(CLIENTS)
        .overload(Overload::ShedIdle);
    let handle = start(builder, lines);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        client.write_all(b"half a ").unwrap();
    }
    let is_parked =
        |stats: &Stats| stats.served == CLIENTS as u64 && stats.parked == CLIENTS as u64;
    until(&handle, "all are in the middle of a message", is_parked);
    for index in [200, 5, 299] {
        let mut new = connect(addr(&handle));
        new.write_all(b"half a ").unwrap();
        assert_silent(&mut new);
        // It ends its message, and is idle. The others go on, and are not.
        for (other, client) in clients.iter_mut().enumerate() {
            let more: &[u8] = if other == index { b"line\n" } else { b"." };
            client.write_all(more).unwrap();
        }
        let mut shed = std::mem::replace(&mut clients[index], new);
        assert_eq!(answer(&mut shed).replace('.', ""), "half a line");
        assert_closed(&mut shed);
    }
    assert_eq!(handle.stats().shed, 3);
    drop(clients);
    stop(&handle);
}

#[test]
fn shed_idle_spares_those_who_have_asked_something() {
    let (keeper, at_door) = door();
    let builder = server()
        .workers(1)
        .max_connections(3)
        .overload(Overload::ShedIdle);
    let handle = start(builder, guarded(at_door));
    let mut asking = parked(&handle);
    tick();
    let mut idle = parked(&handle);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    // It is parked, and has been for longest; but it waits for a worker now.
    send(&mut asking, "asked");
    let mut fourth = connect(addr(&handle));
    assert_closed(&mut idle);
    send(&mut fourth, "hello");
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    assert_eq!(answer(&mut asking), "asked");
    assert_eq!(answer(&mut fourth), "hello");
    assert_eq!(handle.stats().shed, 1);
    drop((asking, idle, busy, fourth));
    stop(&handle);
}

// ---- too many of one client ----

#[test]
fn one_client_has_so_many_connections_and_others_are_not_held_up() {
    let handle = start(server().workers(1).max_per_client(2), lines);
    let mut first = vec![parked(&handle), parked(&handle)];
    let mut third = connect(addr(&handle));
    assert_closed(&mut third);
    assert_eq!(handle.stats().refused.max_per_client, 1);
    ask(&mut connect_from(2, addr(&handle)), "another client");
    ask(&mut first[0], "still served");
    drop(first.pop());
    until(&handle, "one has gone", |stats| stats.live == 1);
    ask(&mut connect(addr(&handle)), "let in");
    drop(first);
    stop(&handle);
}

#[test]
fn one_client_too_many_is_told_why() {
    let builder = server().workers(1).max_per_client(1).overload(refuse());
    let handle = start(builder, lines);
    let inside = parked(&handle);
    assert_eq!(rest(&mut connect(addr(&handle))), BUSY);
    drop(inside);
    stop(&handle);
}

#[test]
fn panics_give_a_clients_places_back() {
    let service = |conn: &mut Connection| match conn.buffer() {
        b"panic" => panic!("as the test wants"),
        _ => lines(conn),
    };
    let handle = start(server().workers(1).max_per_client(1), service);
    for _ in 0..50 {
        let mut client = connect(addr(&handle));
        client.write_all(b"panic").unwrap();
        assert_closed(&mut client);
        until(&handle, "it has gone", |stats| stats.live == 0);
    }
    assert_eq!(handle.stats().refused.max_per_client, 0);
    ask(&mut connect(addr(&handle)), "hello");
    stop(&handle);
}

#[test]
fn a_client_with_too_many_connections_sheds_nobody() {
    let builder = server()
        .workers(1)
        .max_connections(2)
        .max_per_client(1)
        .overload(Overload::ShedIdle);
    let handle = start(builder, lines);
    let mut other = connect_from(2, addr(&handle));
    ask(&mut other, "hello");
    until(&handle, "it is parked", |stats| stats.active == 0);
    tick();
    let mut own = parked(&handle);
    assert_closed(&mut connect(addr(&handle)));
    let stats = handle.stats();
    assert_eq!((stats.shed, stats.refused.max_per_client), (0, 1));
    ask(&mut other, "still there");
    ask(&mut own, "still there");
    drop((other, own));
    stop(&handle);
}

// ---- too many in the queue ----

/// A server with one worker, which is busy, and a queue that is full.
fn full(builder: Builder, door: Door, keeper: &support::Keeper) -> (Handle, Vec<TcpStream>) {
    let handle = start(builder.workers(1).queue(1), guarded(door));
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    let mut queued = connect(addr(&handle));
    send(&mut queued, "queued");
    until(&handle, "one is queued", |stats| stats.queued == 1);
    (handle, vec![busy, queued])
}

#[test]
fn refuse_turns_clients_away_when_the_queue_is_full() {
    let (keeper, at_door) = door();
    let (handle, mut inside) = full(server().overload(refuse()), at_door, &keeper);
    let mut third = connect(addr(&handle));
    send(&mut third, "third");
    assert_eq!(rest(&mut third), BUSY);
    assert_eq!(handle.stats().refused.queue_full, 1);
    keeper.let_one_in();
    assert_eq!(answer(&mut inside[0]), "wait");
    assert_eq!(answer(&mut inside[1]), "queued");
    ask(&mut connect(addr(&handle)), "let in");
    drop(inside);
    stop(&handle);
}

/// Clients that stay connected do not keep new ones out, however long the queue is. Nor do clients
/// that have sent nothing: they do not wait for a worker.
#[test]
fn refuse_counts_only_new_clients() {
    let (keeper, at_door) = door();
    let builder = server().workers(1).queue(2).overload(refuse());
    let handle = start(builder, guarded(at_door));
    let mut kept: Vec<TcpStream> = (0..10).map(|_| parked(&handle)).collect();
    let mut silent = Vec::new();
    for parked in 11..=15 {
        silent.push(connect(addr(&handle)));
        until(&handle, "it is parked", |stats| stats.parked == parked);
    }
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    for client in &mut kept {
        send(client, "kept");
    }
    until(&handle, "they are queued", |stats| stats.queued == 10);
    let mut new: Vec<TcpStream> = (0..2).map(|_| connect(addr(&handle))).collect();
    until(&handle, "they are accepted", |stats| stats.accepted == 18);
    assert_eq!(rest(&mut connect(addr(&handle))), BUSY);
    keeper.let_one_in();
    assert_eq!(answer(&mut busy), "wait");
    for client in &mut kept {
        assert_eq!(answer(client), "kept");
    }
    for client in &mut new {
        ask(client, "new");
    }
    assert_eq!(handle.stats().refused.queue_full, 1);
    drop((busy, kept, new, silent));
    stop(&handle);
}

/// Connections that the server begins are served, even if more of them come at once than the queue
/// takes.
#[test]
fn a_server_that_speaks_first_greets_all() {
    let (keeper, at_door) = door();
    let builder = settings()
        .workers(1)
        .queue(1)
        .listen(Bind::new("127.0.0.1:0").speaks_first(true));
    let handle = start(builder, move |conn: &mut Connection| {
        at_door.pass();
        conn.write_all(b"hello\n")?;
        Ok(Next::Close)
    });
    let mut clients: Vec<TcpStream> = (0..1000).map(|_| connect(addr(&handle))).collect();
    until(&handle, "all are accepted", |stats| stats.accepted == 1000);
    drop(keeper);
    for client in &mut clients {
        assert_eq!(rest(client), b"hello\n");
    }
    stop(&handle);
}

#[test]
fn the_other_policies_wait_when_the_queue_is_full() {
    for policy in [Overload::Wait, Overload::ShedIdle] {
        let (keeper, at_door) = door();
        let (handle, mut inside) = full(server().overload(policy), at_door, &keeper);
        let mut others: Vec<TcpStream> = (0..20)
            .map(|index| {
                let mut client = connect(addr(&handle));
                send(&mut client, &index.to_string());
                client
            })
            .collect();
        // They are accepted, and wait in the order in which they came.
        until(&handle, "all are accepted, and wait", |stats| {
            (stats.accepted, stats.queued) == (22, 21)
        });
        assert_silent(&mut others[0]);
        keeper.let_one_in();
        assert_eq!(answer(&mut inside[0]), "wait");
        assert_eq!(answer(&mut inside[1]), "queued");
        for (index, client) in others.iter_mut().enumerate() {
            assert_eq!(answer(client), index.to_string());
        }
        assert_eq!(handle.stats().shed, 0);
        drop((inside, others));
        stop(&handle);
    }
}

/// Needs a hundred turns for each message, and keeps its count in its session.
struct Laborious(Door);

impl Service for Laborious {
    type Session = usize;
    type Worker = ();

    fn worker(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn session(&self, _: &mut Connection) -> io::Result<usize> {
        Ok(0)
    }

    fn serve(&self, conn: &mut Connection, turns: &mut usize, (): &mut ()) -> io::Result<Next> {
        *turns += 1;
        if conn.buffer() == b"wait" {
            self.0.pass();
        } else if *turns < 100 {
            return Ok(Next::Again);
        }
        *turns = 0;
        echo(conn)
    }
}

#[test]
fn nobody_is_lost_when_more_are_ready_than_the_queue_holds() {
    let (keeper, at_door) = door();
    let handle = start(server().workers(1).queue(1), Laborious(at_door));
    let mut clients: Vec<TcpStream> = (0..400).map(|_| connect(addr(&handle))).collect();
    until(&handle, "all are parked", |stats| {
        (stats.accepted, stats.parked) == (400, 400)
    });
    let mut busy = connect(addr(&handle));
    busy.write_all(b"wait").unwrap();
    keeper.wait();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    drop(keeper);
    for client in &mut clients {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
    }
    drop((clients, busy));
    stop(&handle);
}

// ---- too long in the queue ----

#[test]
fn who_has_waited_for_a_worker_too_long_is_refused() {
    for policy in [refuse(), Overload::Wait] {
        let told: &[u8] = match policy {
            Overload::Refuse(_) => BUSY,
            _ => b"",
        };
        let (keeper, at_door) = door();
        let builder = server()
            .workers(1)
            .queue_timeout(Duration::from_secs(1))
            .overload(policy);
        let handle = start(builder, guarded(at_door));
        let mut old = parked(&handle);
        let mut busy = connect(addr(&handle));
        send(&mut busy, "wait");
        keeper.wait();
        // One that is new, and one that was parked.
        let mut new = connect(addr(&handle));
        send(&mut new, "new");
        let mut old_and_new = [&mut new, &mut old];
        send(old_and_new[1], "old");
        for client in &mut old_and_new {
            match told {
                b"" => assert_closed(client),
                told => assert_eq!(rest(client), told),
            }
        }
        let stats = handle.stats();
        assert_eq!(stats.refused.queue_timeout, 2);
        assert_eq!(stats.served, 2, "one of them was served");
        drop(keeper);
        assert_eq!(answer(&mut busy), "wait");
        ask(&mut connect(addr(&handle)), "served in time");
        drop(busy);
        stop(&handle);
    }
}

#[test]
fn those_that_were_refused_leave_the_queue() {
    let (keeper, at_door) = door();
    let builder = server()
        .workers(1)
        .queue(2)
        .queue_timeout(Duration::from_millis(500));
    let handle = start(builder, guarded(at_door));
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    // More than fit at once: those who are refused make room for the others.
    let mut clients: Vec<_> = (0..6).map(|_| connect(addr(&handle))).collect();
    clients.iter_mut().for_each(|client| send(client, "hello"));
    clients.iter_mut().for_each(assert_closed);
    let stats = until(&handle, "only one client is left", |stats| stats.live == 1);
    assert_eq!(stats.refused.queue_timeout, 6);
    assert_eq!((stats.live, stats.active, stats.parked), (1, 1, 0));
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    drop(busy);
    stop(&handle);
}

#[test]
fn the_time_in_which_a_client_is_served_is_not_time_in_the_queue() {
    const TIME: Duration = Duration::from_secs(1);
    // A machine that is too slow proves nothing.
    let in_time = (0..20).any(|_| {
        let ((keeper, at_door), (other_keeper, at_other_door)) = (door(), door());
        let first = guarded(at_door);
        let service = move |conn: &mut Connection| match conn.buffer() {
            b"other\n" => {
                conn.consume(6);
                writeln!(conn, "other")?;
                at_other_door.pass();
                Ok(Next::Park)
            }
            _ => first(conn),
        };
        let builder = server().workers(2).queue_timeout(TIME);
        let handle = start(builder, service);
        let mut client = parked(&handle);
        send(&mut client, "wait\nsecond");
        keeper.wait();
        // The idle worker learns of this one while the other worker serves the first.
        send(&mut client, "third");
        pause(TIME * 3 / 2);
        // The client has to go to the back of the queue, since another connection is there.
        let mut busy = connect(addr(&handle));
        send(&mut busy, "other");
        other_keeper.wait();
        let begin = Instant::now();
        let mut queued = connect(addr(&handle));
        send(&mut queued, "queued");
        until(&handle, "it is queued", |stats| stats.queued == 1);
        keeper.let_one_in();
        let in_time = begin.elapsed() < TIME / 2;
        if in_time {
            assert_eq!(answer(&mut client), "wait");
            assert_eq!(answer(&mut queued), "queued");
            assert_eq!(answer(&mut client), "second");
            assert_eq!(answer(&mut client), "third");
            assert_eq!(handle.stats().refused.queue_timeout, 0);
        }
        drop((keeper, other_keeper));
        drop((client, busy, queued));
        in_time
    });
    assert!(in_time, "this machine stands still all the time");
}

#[test]
fn connections_that_became_ready_together_are_refused_together() {
    const TIME: Duration = Duration::from_millis(500);
    const MANY: usize = 30;
    // A machine that is too slow proves nothing.
    let in_time = (0..20).any(|_| {
        let (keeper, at_door) = door();
        let builder = server().workers(1).queue_timeout(TIME);
        let handle = start(builder, guarded(at_door));
        let mut busy = connect(addr(&handle));
        send(&mut busy, "wait");
        keeper.wait();
        let begin = Instant::now();
        let mut clients: Vec<TcpStream> = (0..MANY)
            .map(|index| {
                let mut client = connect(addr(&handle));
                send(&mut client, &index.to_string());
                client
            })
            .collect();
        let sent = begin.elapsed();
        clients.iter_mut().for_each(assert_closed);
        let refused = begin.elapsed();
        assert_eq!(handle.stats().refused.queue_timeout, MANY as u64);
        drop(keeper);
        assert_eq!(answer(&mut busy), "wait");
        drop(busy);
        stop(&handle);
        // Nobody waits for the time-out twice.
        sent < TIME / 2 && refused < TIME * 3 / 2
    });
    assert!(in_time, "some wait too long, every time");
}

/// Who waits for the rest of its answer waits for no worker, though a worker may have put it on the queue.
#[test]
fn an_answer_is_not_cut_off_because_no_worker_has_time() {
    const BIG: usize = 8 << 20;
    let (keeper, at_door) = door();
    let others = guarded(at_door);
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"big\n" {
            conn.consume(4);
            conn.write_all(&bytes_at(0, BIG))?;
            return Ok(Next::Park);
        }
        others(conn)
    };
    let builder = server()
        .workers(1)
        .queue(2)
        .queue_timeout(Duration::from_secs(10))
        .output_limit(BIG)
        .overload(refuse());
    let handle = start(builder, service);
    let mut big = connect_narrow(addr(&handle));
    send(&mut big, "big");
    let sent = until(&handle, "the rest of it waits", |stats| {
        stats.bytes_out > 0 && stats.parked == 1
    });
    let mut old = parked(&handle);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    // With these the queue is full, so that it is the worker who will find the other two in the poller.
    let mut new = [(); 2].map(|()| connect(addr(&handle)));
    for client in &mut new {
        send(client, "new");
    }
    until(&handle, "they are queued", |stats| stats.queued == 2);
    send(&mut old, "wait");
    let place = sent.bytes_out as usize;
    read_pattern(&mut big, place);
    keeper.let_one_in();
    keeper.wait();
    read_pattern_from(&mut big, place, BIG);
    drop(keeper);
    assert_eq!(answer(&mut old), "wait");
    drop((big, old, busy, new));
    stop(&handle);
}

#[test]
fn a_silent_client_does_not_wait_for_a_worker() {
    // It has a place in the queue when it is new, but what it waits for is itself.
    let builder = server()
        .workers(1)
        .queue_timeout(Duration::from_millis(100));
    let handle = start(builder, lines);
    let mut silent = connect(addr(&handle));
    assert_silent(&mut silent);
    ask(&mut silent, "hello");
    assert_silent(&mut silent);
    ask(&mut silent, "hello again");
    assert_eq!(handle.stats().refused.queue_timeout, 0);
    drop(silent);
    stop(&handle);
}

#[test]
fn the_time_before_a_client_asks_is_not_time_in_the_queue() {
    const TIME: Duration = Duration::from_secs(2);
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let service = move |conn: &mut Connection| {
        if conn.buffer() == b"long\n" && !is_done.load(SeqCst) {
            return Ok(Next::Again);
        }
        lines(conn)
    };
    let handle = start(server().workers(1).queue_timeout(TIME), service);
    let mut idle = parked(&handle);
    let mut busy = connect(addr(&handle));
    send(&mut busy, "long");
    // A worker that always has something to do takes those who ask from the poller on its way.
    let start = Instant::now();
    while start.elapsed() < TIME * 5 / 4 {
        thread::park_timeout(TIME);
    }
    ask(&mut idle, "hello");
    done.store(true, SeqCst);
    assert_eq!(answer(&mut busy), "long");
    assert_eq!(handle.stats().refused.queue_timeout, 0);
    drop((idle, busy));
    stop(&handle);
}

// ---- clients that have left ----

/// Longer than a connection may wait before the server checks whether its client is still there.
const LONGER: Duration = Duration::from_millis(50);

/// As [`guarded`], and records every line.
fn recording(
    served: &'static Mutex<Vec<String>>,
    door: Door,
) -> impl Fn(&mut Connection) -> io::Result<Next> {
    let guarded = guarded(door);
    move |conn| {
        served
            .lock()
            .push(String::from_utf8_lossy(conn.buffer()).into());
        guarded(conn)
    }
}

#[test]
fn clients_that_have_reset_their_connections_are_not_served() {
    const MANY: usize = 8;
    // The queue has room for them, or they wait in the poller.
    for (queue, kept) in [(1000, false), (1, false), (1000, true), (1, true)] {
        let served = support::forever(Mutex::default());
        let (keeper, at_door) = door();
        let builder = server().workers(1).queue(queue);
        let handle = start(builder, recording(served, at_door));
        let mut busy = connect(addr(&handle));
        let mut clients: Vec<TcpStream> = match kept {
            true => (0..MANY).map(|_| parked(&handle)).collect(),
            false => Vec::new(),
        };
        send(&mut busy, "wait");
        keeper.wait();
        clients.resize_with(MANY, || connect(addr(&handle)));
        until(&handle, "all are accepted", |stats| {
            stats.accepted == MANY as u64 + 1
        });
        served.lock().clear();
        for mut client in clients {
            let side = ServerSide::of(&client);
            send(&mut client, "gone");
            side.until_unread(5);
            support::reset(client);
            side.until_reset();
        }
        let mut patient = connect(addr(&handle));
        send(&mut patient, "still there");
        // The time in the queue is what the check depends on.
        pause(LONGER);
        drop(keeper);
        assert_eq!(answer(&mut busy), "wait");
        assert_eq!(answer(&mut patient), "still there");
        let stats = until(&handle, "the others are gone", |stats| stats.live == 2);
        // On Windows a reset discards what was sent before, and the first read tells of it.
        let counted = if cfg!(windows) { 0 } else { MANY };
        assert_eq!(stats.abandoned, counted as u64, "{queue}, {kept}");
        assert_eq!(*served.lock(), ["still there\n"], "{queue}, {kept}");
        drop((busy, patient));
        stop(&handle);
    }
}

/// A client that sends and closes has not taken back what it has sent.
#[cfg(unix)] // Unix sockets
#[test]
fn a_message_is_served_whose_client_has_closed_in_the_meantime() {
    use std::os::unix::net::UnixStream;
    let served = support::forever(Mutex::default());
    let (keeper, at_door) = door();
    let (_dir, path) = support::socket_path();
    let builder = server().listen(support::unix(&path)).workers(1);
    let handle = start(builder, recording(served, at_door));
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    let mut tcp = connect(addr(&handle));
    send(&mut tcp, "TCP");
    drop(tcp);
    until(&handle, "it is accepted", |stats| stats.accepted == 2);
    let mut local = UnixStream::connect(&path).unwrap();
    local.write_all(b"Unix\n").unwrap();
    drop(local);
    until(&handle, "all are accepted", |stats| stats.accepted == 3);
    pause(LONGER);
    drop(keeper);
    assert_eq!(answer(&mut busy), "wait");
    drop(busy);
    let stats = until(&handle, "all are gone", |stats| stats.live == 0);
    assert_eq!(stats.abandoned, 0);
    assert_eq!(*served.lock(), ["wait\n", "TCP\n", "Unix\n"]);
    stop(&handle);
}

#[test]
fn a_refused_client_that_never_reads_holds_nobody_up() {
    let builder = server()
        .workers(1)
        .max_connections(1)
        .overload(Overload::Refuse(vec![b'x'; 16 << 20]));
    let handle = start(builder, lines);
    let mut inside = parked(&handle);
    let deaf: Vec<TcpStream> = (0..20).map(|_| connect(addr(&handle))).collect();
    until(&handle, "all are refused", |stats| {
        stats.refused.max_connections == 20
    });
    ask(&mut inside, "still served");
    inside.shutdown(Shutdown::Both).unwrap();
    until(&handle, "all have gone", |stats| stats.live == 0);
    drop(deaf);
    stop(&handle);
}
