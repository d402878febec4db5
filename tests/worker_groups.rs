//! Groups of workers (`Builder::worker_groups`): each has a queue and a poller of its own, and serves the connections of
//! the others when it has nothing to do.

mod support;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use handover::{BuildError, Builder, Connection, Handle, Next, Overload, Setting, WorkerState};
use parking_lot::Mutex;

use support::{
    Door, addr, answer, ask, assert_closed, connect, door, eventually, forever, lines, server,
    start, stop, threads, tick, until,
};

/// Answers lines; the line `wait` only once the door has been passed.
fn guarded(door: Door) -> impl Fn(&mut Connection) -> io::Result<Next> {
    move |conn| {
        if conn.buffer() == b"wait\n" {
            door.pass();
        }
        lines(conn)
    }
}

fn send(client: &mut TcpStream, line: &str) {
    client.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Connections that were served once, and are parked.
fn parked(handle: &Handle, count: usize) -> Vec<TcpStream> {
    let before = handle.stats().parked;
    let clients = (0..count).map(|index| {
        let mut client = connect(addr(handle));
        ask(&mut client, "hello");
        let parked = before + index as u64 + 1;
        until(handle, "it is parked", |stats| stats.parked == parked);
        client
    });
    clients.collect()
}

/// Clients whose calls hold a worker each until the door is opened.
fn busy(handle: &Handle, keeper: &support::Keeper, count: usize) -> Vec<TcpStream> {
    let clients = (0..count).map(|_| {
        let mut client = connect(addr(handle));
        send(&mut client, "wait");
        keeper.wait();
        client
    });
    clients.collect()
}

#[test]
fn every_client_is_served_whatever_the_number_of_groups() {
    const ROUNDS: u64 = 200;
    for (workers, groups) in [(1, 1), (2, 2), (3, 3), (16, 3), (7, 7), (2, 1000)] {
        let handle = start(server().workers(workers).worker_groups(groups), lines);
        let at = addr(&handle);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut kept: Vec<TcpStream> = (0..16).map(|_| connect(at)).collect();
                    for _ in 0..ROUNDS {
                        kept.iter_mut().for_each(|client| send(client, "kept"));
                        ask(&mut connect(at), "new");
                        for client in &mut kept {
                            assert_eq!(answer(client), "kept");
                        }
                    }
                });
            }
        });
        let stats = until(&handle, "all have left", |stats| stats.live == 0);
        assert_eq!(stats.workers.len(), workers);
        assert_eq!((stats.active, stats.queued, stats.parked), (0, 0, 0));
        assert_eq!(stats.accepted, 2 * (16 + ROUNDS));
        assert!(stats.served >= 2 * 17 * ROUNDS, "{}", stats.served);
        assert_eq!(stats.served_for.count(), stats.served);
        stop(&handle);
    }
}

#[test]
fn each_group_has_a_keeper() {
    let handle = start(
        server()
            .workers(2)
            .worker_groups(5)
            .thread_name_prefix("grp"),
        lines,
    );
    // A thread sets its name itself.
    let keepers = || (threads("grp-keeper"), threads("grp-keeper-1"));
    eventually("there are two keepers", || keepers() == (2, 1));
    stop(&handle);
}

#[test]
fn no_group_at_all_is_an_error() {
    let error = server().worker_groups(0).build(lines).unwrap_err();
    assert!(matches!(error, BuildError::Zero(Setting::WorkerGroups)));
    assert_eq!(error.to_string(), "worker_groups must be at least 1");
}

// ---- stealing ----

/// All workers but one are stuck, so that some groups have none left: the last one serves the clients of all groups,
/// those that were parked and new ones.
#[test]
fn the_clients_of_a_group_that_is_stuck_are_served_by_the_others() {
    for (workers, groups) in [(2, 2), (3, 3), (6, 3)] {
        let (keeper, at_door) = door();
        let builder = server().workers(workers).worker_groups(groups);
        let handle = start(builder, guarded(at_door));
        let mut kept = parked(&handle, 4 * groups);
        let mut stuck = busy(&handle, &keeper, workers - 1);
        for round in 0..5 {
            for client in &mut kept {
                ask(client, &format!("kept {round}"));
            }
            for _ in 0..2 * groups {
                ask(&mut connect(addr(&handle)), "new");
            }
            // And all at once.
            kept.iter_mut().for_each(|client| send(client, "burst"));
            let mut new: Vec<_> = (0..8).map(|_| connect(addr(&handle))).collect();
            new.iter_mut().for_each(|client| send(client, "burst"));
            for client in kept.iter_mut().chain(&mut new) {
                assert_eq!(answer(client), "burst");
            }
        }
        until(&handle, "only the others are stuck", |stats| {
            let idle = |state: &&WorkerState| **state == WorkerState::Idle;
            stats.workers.iter().filter(idle).count() == 1
        });
        drop(keeper);
        for client in &mut stuck {
            assert_eq!(answer(client), "wait");
        }
        // Now all workers serve again.
        kept.iter_mut().for_each(|client| ask(client, "again"));
        drop((kept, stuck));
        stop(&handle);
    }
}

/// Workers that rest come back for the clients of other groups, too.
#[test]
fn as_many_calls_block_at_once_as_there_are_workers() {
    const WORKERS: usize = 24;
    for groups in [2, 3] {
        let (keeper, at_door) = door();
        let builder = server().workers(WORKERS).worker_groups(groups);
        let handle = start(builder, guarded(at_door));
        let mut clients = parked(&handle, WORKERS);
        // First the clients of all groups, then such as are likely to be in one.
        for step in [1, groups] {
            let mut asked: Vec<_> = clients.iter_mut().step_by(step).collect();
            let count = asked.len();
            for _ in 0..3 {
                asked.iter_mut().for_each(|client| send(client, "wait"));
                (0..count).for_each(|_| keeper.wait());
                // A worker may have answered, and not have ended its call before this.
                until(&handle, "they block", |stats| stats.active == count as u64);
                (0..count).for_each(|_| keeper.let_one_in());
                for client in &mut asked {
                    assert_eq!(answer(client), "wait");
                }
            }
        }
        drop(clients);
        stop(&handle);
    }
}

/// Clients of all groups become ready by turns, while every worker is busy. Then one worker serves all of them.
#[test]
fn connections_are_served_in_their_order_across_the_groups() {
    const ROUNDS: usize = 10;
    for groups in [2, 3] {
        let served: &Mutex<Vec<usize>> = forever(Mutex::default());
        let (keeper, at_door) = door();
        let guarded = guarded(at_door);
        let service = move |conn: &mut Connection| {
            let line = String::from_utf8_lossy(conn.buffer()).into_owned();
            if let Ok(round) = line.trim_end().parse() {
                served.lock().push(round);
            }
            guarded(conn)
        };
        let handle = start(server().workers(groups).worker_groups(groups), service);
        let mut kept = parked(&handle, ROUNDS * groups);
        let stuck = busy(&handle, &keeper, groups);
        for (round, clients) in kept.chunks_mut(groups).enumerate() {
            for client in clients {
                send(client, &round.to_string());
            }
            let queued = ((round + 1) * groups) as u64;
            until(&handle, "they wait", |stats| stats.queued == queued);
            // The next ones are ready later by the coarse clock, too.
            tick();
        }
        keeper.let_one_in();
        for client in &mut kept {
            answer(client);
        }
        let served = served.lock().clone();
        // Each of the other groups may be ahead by one connection, and the order within a round is open.
        for (place, round) in served.iter().enumerate() {
            let overtakes = |other: &&usize| **other > round + 1;
            let overtaken = served[..place].iter().filter(overtakes).count();
            assert!(overtaken < groups, "{groups} groups: {served:?}");
        }
        drop((keeper, kept, stuck));
        stop(&handle);
    }
}

// ---- limits ----

fn refuse() -> Overload {
    Overload::Refuse(b"busy\n".to_vec())
}

fn three_groups() -> Builder {
    server().workers(3).worker_groups(3)
}

#[test]
fn the_queue_has_one_limit_for_all_groups() {
    for queue in [1, 2, 4, 7] {
        let (keeper, at_door) = door();
        let builder = three_groups().queue(queue).overload(refuse());
        let handle = start(builder, guarded(at_door));
        let mut stuck = busy(&handle, &keeper, 3);
        let mut waiting: Vec<_> = (0..queue).map(|_| connect(addr(&handle))).collect();
        waiting.iter_mut().for_each(|client| send(client, "new"));
        until(&handle, "all are accepted", |stats| {
            stats.accepted == queue as u64 + 3
        });
        for _ in 0..3 {
            let mut refused = connect(addr(&handle));
            assert_eq!(answer(&mut refused), "busy");
            assert_closed(&mut refused);
        }
        assert_eq!(handle.stats().refused.queue_full, 3);
        drop(keeper);
        for client in &mut waiting {
            assert_eq!(answer(client), "new");
        }
        for client in &mut stuck {
            assert_eq!(answer(client), "wait");
        }
        drop((waiting, stuck));
        stop(&handle);
    }
}

#[test]
fn the_connections_have_one_limit_for_all_groups() {
    let handle = start(three_groups().max_connections(7).overload(refuse()), lines);
    let mut kept = parked(&handle, 7);
    let mut refused = connect(addr(&handle));
    assert_eq!(answer(&mut refused), "busy");
    assert_eq!(handle.stats().refused.max_connections, 1);
    drop(kept.pop());
    until(&handle, "one has left", |stats| stats.live == 6);
    ask(&mut connect(addr(&handle)), "let in");
    drop(kept);
    stop(&handle);
}

#[test]
fn the_connection_that_is_closed_to_make_room_is_the_longest_idle_of_all_groups() {
    let builder = three_groups()
        .max_connections(7)
        .overload(Overload::ShedIdle);
    let handle = start(builder, lines);
    let kept = (0..7).map(|_| {
        tick();
        parked(&handle, 1).remove(0)
    });
    let mut kept: Vec<TcpStream> = kept.collect();
    for index in 0..kept.len() {
        tick();
        kept.push(parked_instead(&handle));
        assert_closed(&mut kept[index]);
        assert_eq!(handle.stats().shed, index as u64 + 1);
    }
    drop(kept);
    stop(&handle);
}

/// A connection for which another one was closed.
fn parked_instead(handle: &Handle) -> TcpStream {
    let mut client = connect(addr(handle));
    ask(&mut client, "instead");
    until(handle, "it is parked", |stats| stats.parked == 7);
    client
}

// ---- stopping ----

#[test]
fn a_stop_answers_what_has_arrived_in_every_group() {
    let (keeper, at_door) = door();
    let handle = start(three_groups().queue(4), guarded(at_door));
    let mut idle = parked(&handle, 6);
    let mut ready = parked(&handle, 30);
    let mut stuck = busy(&handle, &keeper, 3);
    for client in &mut ready {
        send(client, "ready");
    }
    until(&handle, "they wait", |stats| stats.queued == 30);
    handle.stop(support::LIMIT);
    drop(keeper);
    idle.iter_mut().for_each(assert_closed);
    for client in &mut ready {
        assert_eq!(answer(client), "ready");
        assert_closed(client);
    }
    for client in &mut stuck {
        assert_eq!(answer(client), "wait");
        assert_closed(client);
    }
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 39);
}

#[test]
fn a_stop_closes_idle_connections_with_fewer_queue_places_than_groups() {
    let handle = start(server().workers(3).worker_groups(3).queue(1), lines);
    let clients = parked(&handle, 6);
    handle.stop(support::LIMIT);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert!(report.took < support::LIMIT / 2, "{report}");
    drop(clients);
}

#[test]
fn a_stop_under_load_loses_nothing_and_ends_every_thread() {
    for groups in [2, 3] {
        let handle = start(server().workers(6).worker_groups(groups), lines);
        let (at, answered) = (addr(&handle), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = connect(at);
                    loop {
                        // A request that the server has read is answered.
                        if client.write_all(b"x\n").is_err() {
                            return;
                        }
                        if client.read_exact(&mut [0; 2]).is_err() {
                            return;
                        }
                        answered.fetch_add(1, SeqCst);
                    }
                });
            }
            eventually("the load runs", || answered.load(SeqCst) > 1000);
            stop(&handle);
        });
        assert_eq!(handle.stats().served, answered.load(SeqCst) as u64);
    }
}

#[test]
fn a_forced_stop_names_the_workers_of_every_group() {
    let (keeper, at_door) = door();
    let handle = start(three_groups(), guarded(at_door));
    let _idle = parked(&handle, 6);
    let mut stuck = busy(&handle, &keeper, 3);
    let mut peers: Vec<String> = stuck
        .iter()
        .map(|client| client.local_addr().unwrap().to_string())
        .collect();
    let stats = handle.stats();
    assert_eq!(stats.active, 3);
    let mut serving: Vec<String> = stats
        .workers
        .iter()
        .map(|state| match state {
            WorkerState::Serving { peer, .. } => peer.to_string(),
            state => panic!("{state}"),
        })
        .collect();
    peers.sort_unstable();
    serving.sort_unstable();
    assert_eq!(serving, peers);
    handle.stop(Duration::ZERO);
    // The sockets are shut down, so the report is made.
    stuck.iter_mut().for_each(assert_closed);
    drop(keeper);
    let report = handle.join();
    let mut forced: Vec<usize> = report.forced.iter().map(|forced| forced.worker).collect();
    forced.sort_unstable();
    assert_eq!(forced, [0, 1, 2], "{report}");
}
