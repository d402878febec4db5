//! Turns: which connection is served next, and how many workers serve at the same time.
//!
//! Handlers wait at doors, which the tests open. Time only bounds the tests.

mod support;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use handover::{Connection, Handle, Histogram, Next, Overload, Service};
use parking_lot::Mutex;

use support::{
    Door, ServerSide, addr, answer, ask, connect, door, eventually, forever, lines, pause, server,
    start, stop, until, wine_cannot,
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

/// Sends a line that the server does not read now, and waits until the kernel has it for the server.
#[track_caller]
fn send_unread(client: &mut TcpStream, line: &str) {
    send(client, line);
    ServerSide::of(client).until_unread(line.len() + 1);
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

// ---- the order in which connections are served ----

/// The lines that were served, in this order.
type Served = Mutex<Vec<String>>;

/// As [`guarded`], and records every line.
fn recording(served: &'static Served, door: Door) -> impl Fn(&mut Connection) -> io::Result<Next> {
    let guarded = guarded(door);
    move |conn| {
        if let Some(line) = conn.buffer().strip_suffix(b"\n") {
            served.lock().push(String::from_utf8_lossy(line).into());
        }
        guarded(conn)
    }
}

#[test]
fn connections_are_served_in_the_order_in_which_they_became_ready() {
    // There the thread that asked for readiness has to run before the completion port hears of it.
    if wine_cannot("report readiness in the order in which data arrives") {
        return;
    }
    // In the first two the queue is full, in the last one it has room for all.
    serve_in_order(1, 1, Overload::Wait);
    serve_in_order(2, 2, Overload::ShedIdle);
    serve_in_order(1000, 2, Overload::Wait);
}

/// Queues `first` connections, and then has kept-alive and new ones become ready by turns. Both of the two workers are
/// busy meanwhile.
fn serve_in_order(queue: usize, first: usize, policy: Overload) {
    const PAIRS: usize = 6;
    let served: &Served = forever(Mutex::default());
    let (keeper, at_door) = door();
    let builder = server().workers(2).queue(queue).overload(policy);
    let handle = start(builder, recording(served, at_door));
    let mut kept: Vec<TcpStream> = (0..PAIRS).map(|_| connect(addr(&handle))).collect();
    kept.iter_mut().for_each(|client| ask(client, "hello"));
    until(&handle, "all are parked", |stats| {
        stats.parked == PAIRS as u64
    });
    let mut busy = [(); 2].map(|()| {
        let mut client = connect(addr(&handle));
        send(&mut client, "wait");
        keeper.wait();
        client
    });
    served.lock().clear();
    let (mut new, mut silent, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..first {
        let mut client = connect(addr(&handle));
        expected.push(format!("first {index}"));
        send_unread(&mut client, &expected[index]);
        new.push(client);
        until(&handle, "it is queued", |stats| {
            stats.queued == index as u64 + 1
        });
    }
    let mut accepted = handle.stats().accepted;
    for (index, kept) in kept.iter_mut().enumerate() {
        let lines = [format!("kept {index}"), format!("new {index}")];
        send_unread(kept, &lines[0]);
        let mut client = connect(addr(&handle));
        send_unread(&mut client, &lines[1]);
        new.push(client);
        expected.extend(lines);
        // The connection has its place when the one behind it has been accepted.
        silent.push(connect(addr(&handle)));
        accepted += 2;
        until(&handle, "it is accepted", |stats| {
            stats.accepted == accepted
        });
    }
    // One worker stays busy, so that the other one serves all.
    keeper.let_one_in();
    for client in kept.iter_mut().chain(&mut new) {
        answer(client);
    }
    assert_eq!(*served.lock(), expected, "queue {queue}");
    drop(keeper);
    for client in &mut busy {
        assert_eq!(answer(client), "wait");
    }
    drop((kept, new, silent, busy));
    stop(&handle);
}

#[test]
fn new_connections_are_accepted_beyond_a_full_queue_and_served_in_their_order() {
    const MANY: usize = 50;
    for queue in [1, 2] {
        let served: &Served = forever(Mutex::default());
        let (keeper, at_door) = door();
        let builder = server().workers(2).queue(queue);
        let handle = start(builder, recording(served, at_door));
        let mut busy = [(); 2].map(|()| {
            let mut client = connect(addr(&handle));
            send(&mut client, "wait");
            keeper.wait();
            client
        });
        served.lock().clear();
        let mut clients: Vec<TcpStream> = (0..MANY)
            .map(|index| {
                let mut client = connect(addr(&handle));
                send_unread(&mut client, &index.to_string());
                client
            })
            .collect();
        until(&handle, "all are accepted", |stats| {
            stats.accepted == MANY as u64 + 2
        });
        keeper.let_one_in();
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(answer(client), index.to_string());
        }
        let expected: Vec<String> = (0..MANY).map(|index| index.to_string()).collect();
        assert_eq!(*served.lock(), expected);
        drop(keeper);
        busy.iter_mut().for_each(|client| drop(answer(client)));
        drop((clients, busy));
        stop(&handle);
    }
}

// ---- how long connections wait, and calls last ----

/// How many durations of 50 ms or more there are, as far as the buckets tell: some may be 33 ms.
fn long_ones(histogram: &Histogram) -> u64 {
    histogram.buckets()[16..].iter().sum()
}

#[test]
fn waits_and_calls_are_counted_by_how_long_they_were() {
    const LONG: Duration = Duration::from_millis(50);
    let (keeper, at_door) = door();
    let handle = start(server().workers(1), guarded(at_door));
    let mut kept = connect(addr(&handle));
    ask(&mut kept, "hello");
    let mut busy = connect(addr(&handle));
    send(&mut busy, "wait");
    keeper.wait();
    // One that was parked, and one that is new.
    send_unread(&mut kept, "hello");
    let mut new = connect(addr(&handle));
    send_unread(&mut new, "hello");
    until(&handle, "all are accepted", |stats| stats.accepted == 3);
    // Time that passes is what is counted.
    pause(LONG);
    drop(keeper);
    for (client, line) in [
        (&mut busy, "wait"),
        (&mut kept, "hello"),
        (&mut new, "hello"),
    ] {
        assert_eq!(answer(client), line);
    }
    let stats = until(&handle, "all calls are over", |stats| {
        stats.served_for.count() == 4 && stats.active == 0
    });
    assert_eq!((stats.served, stats.waited.count()), (4, 4));
    assert_eq!(long_ones(&stats.served_for), 1, "{:?}", stats.served_for);
    assert_eq!(long_ones(&stats.waited), 2, "{:?}", stats.waited);
    assert!(stats.waited.quantile(1.0).unwrap() >= LONG);
    assert!(stats.served_for.quantile(1.0).unwrap() >= LONG);
    drop((kept, busy, new));
    stop(&handle);
}

// ---- how many workers serve ----

/// Counts the calls of each worker. A line `wait` waits at the door.
struct PerWorker {
    calls: Vec<AtomicU64>,
    door: Door,
}

impl PerWorker {
    fn new(workers: usize, door: Door) -> &'static Self {
        let calls = (0..workers).map(|_| AtomicU64::new(0)).collect();
        forever(Self { calls, door })
    }

    /// How many workers were called since this was last asked.
    fn take(&self) -> usize {
        let calls = self.calls.iter();
        calls.filter(|calls| calls.swap(0, SeqCst) > 0).count()
    }
}

impl Service for &'static PerWorker {
    type Session = ();
    type Worker = usize;

    fn worker(&self, index: usize) -> io::Result<usize> {
        Ok(index)
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), index: &mut usize) -> io::Result<Next> {
        self.calls[*index].fetch_add(1, Relaxed);
        if conn.buffer() == b"wait\n" {
            self.door.pass();
        }
        lines(conn)
    }
}

/// Many more workers than the cores need: 64 on two cores.
fn many() -> usize {
    32 * cores()
}

/// Sends 64 requests at a time on as many connections, and that so often.
fn load(handle: &Handle, rounds: usize) {
    let at = addr(handle);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut clients: Vec<TcpStream> = (0..32).map(|_| connect(at)).collect();
                for _ in 0..rounds {
                    for client in &mut clients {
                        client.write_all(b"x\n").unwrap();
                    }
                    for client in &mut clients {
                        client.read_exact(&mut [0; 2]).unwrap();
                    }
                }
            });
        }
    });
}

/// A machine that lets the workers stand still in the middle of their calls makes fast handlers look slow for a while,
/// so the load comes again until a few workers have served all of it.
#[track_caller]
fn until_few_serve(handle: &Handle, per_worker: &PerWorker) {
    let few = many() / 4;
    let counts: Vec<usize> = (0..50)
        .map(|_| {
            per_worker.take();
            load(handle, 100);
            per_worker.take()
        })
        .take_while(|count| *count > few)
        .collect();
    assert!(counts.len() < 50, "always too many workers: {counts:?}");
}

#[test]
fn a_fast_handler_is_served_by_few_of_many_workers() {
    if wine_cannot("serve a request without waits for another process") {
        return;
    }
    let (keeper, at_door) = door();
    let per_worker = PerWorker::new(many(), at_door);
    let handle = start(server().workers(many()), per_worker);
    until_few_serve(&handle, per_worker);
    // Also after all of them were needed.
    let mut clients: Vec<TcpStream> = (0..many()).map(|_| connect(addr(&handle))).collect();
    clients.iter_mut().for_each(|client| send(client, "wait"));
    (0..many()).for_each(|_| keeper.wait());
    drop(keeper);
    for client in &mut clients {
        assert_eq!(answer(client), "wait");
    }
    until_few_serve(&handle, per_worker);
    drop(clients);
    stop(&handle);
}

#[test]
fn as_many_handlers_block_at_the_same_time_as_there_are_workers() {
    let (keeper, at_door) = door();
    let handle = start(server().workers(many()), guarded(at_door));
    let mut clients: Vec<TcpStream> = (0..many()).map(|_| connect(addr(&handle))).collect();
    for _ in 0..3 {
        clients.iter_mut().for_each(|client| send(client, "wait"));
        (0..many()).for_each(|_| keeper.wait());
        assert_eq!(handle.stats().active, many() as u64);
        (0..many()).for_each(|_| keeper.let_one_in());
        for client in &mut clients {
            assert_eq!(answer(client), "wait");
        }
    }
    // And at a stop.
    clients.iter_mut().for_each(|client| send(client, "wait"));
    (0..many()).for_each(|_| keeper.wait());
    handle.stop(support::LIMIT);
    drop(keeper);
    for client in &mut clients {
        assert_eq!(answer(client), "wait");
    }
    stop(&handle);
}

#[test]
fn handlers_that_block_do_not_hold_up_other_clients() {
    let (keeper, at_door) = door();
    let handle = start(server().workers(16), guarded(at_door));
    let mut kept = connect(addr(&handle));
    let mut clients: Vec<TcpStream> = (0..8).map(|_| connect(addr(&handle))).collect();
    for round in 0..50 {
        for client in &mut clients {
            send(client, "wait");
            // In every other round they come one after another.
            if round % 2 == 0 {
                keeper.wait();
                ask(&mut kept, "kept");
            }
        }
        if round % 2 == 1 {
            (0..8).for_each(|_| keeper.wait());
        }
        for _ in 0..10 {
            ask(&mut kept, "kept");
            ask(&mut connect(addr(&handle)), "new");
        }
        (0..8).for_each(|_| keeper.let_one_in());
        for client in &mut clients {
            assert_eq!(answer(client), "wait");
        }
    }
    drop((kept, clients));
    stop(&handle);
}

#[test]
fn handlers_that_compute_do_not_hold_up_other_clients() {
    struct Spinning {
        count: AtomicUsize,
        ends: AtomicBool,
    }
    let spinning: &Spinning = forever(Spinning {
        count: AtomicUsize::new(0),
        ends: AtomicBool::new(false),
    });
    let service = |conn: &mut Connection| {
        if conn.buffer() == b"spin\n" {
            spinning.count.fetch_add(1, SeqCst);
            while !spinning.ends.load(SeqCst) {
                std::hint::spin_loop();
            }
        }
        lines(conn)
    };
    let handle = start(server().workers(16), service);
    let mut kept = connect(addr(&handle));
    ask(&mut kept, "kept");
    let mut clients: Vec<TcpStream> = (0..8).map(|_| connect(addr(&handle))).collect();
    clients.iter_mut().for_each(|client| send(client, "spin"));
    eventually("all of them compute", || spinning.count.load(SeqCst) == 8);
    for _ in 0..10 {
        ask(&mut kept, "kept");
        ask(&mut connect(addr(&handle)), "new");
    }
    spinning.ends.store(true, SeqCst);
    for client in &mut clients {
        assert_eq!(answer(client), "spin");
    }
    drop((kept, clients));
    stop(&handle);
}

#[test]
fn the_default_is_eight_workers_for_each_core_and_at_least_sixteen() {
    let handle = start(server(), lines);
    assert_eq!(handle.stats().workers.len(), (8 * cores()).max(16));
    stop(&handle);
}

// ---- the state of a worker ----

/// A worker's state takes until the door is passed, except that of the first worker, which is built at the start.
struct SlowState {
    built: Mutex<BTreeSet<usize>>,
    served: Mutex<BTreeSet<usize>>,
    building: Door,
    serving: Door,
}

impl Service for &'static SlowState {
    type Session = ();
    type Worker = usize;

    fn worker(&self, index: usize) -> io::Result<usize> {
        if index > 0 {
            self.building.pass();
        }
        assert!(self.built.lock().insert(index), "built twice: {index}");
        Ok(index)
    }

    fn session(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn serve(&self, conn: &mut Connection, (): &mut (), worker: &mut usize) -> io::Result<Next> {
        self.served.lock().insert(*worker);
        if conn.buffer() == b"wait\n" {
            self.serving.pass();
        }
        lines(conn)
    }
}

fn slow_state() -> (&'static SlowState, [support::Keeper; 2]) {
    let (building_keeper, building) = door();
    let (serving_keeper, serving) = door();
    let service: &SlowState = forever(SlowState {
        built: Mutex::default(),
        served: Mutex::default(),
        building,
        serving,
    });
    (service, [building_keeper, serving_keeper])
}

#[test]
fn a_workers_state_is_built_when_the_worker_first_serves() {
    let (service, [building, serving]) = slow_state();
    drop(building);
    let handle = start(server().workers(8), service);
    assert_eq!(*service.built.lock(), BTreeSet::from([0]));
    // A client that has sent nothing needs no state, whichever worker looks after its connection.
    let silent: Vec<_> = (0..8).map(|_| connect(addr(&handle))).collect();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = connect(addr(&handle));
        send(&mut client, "wait");
        serving.wait();
        clients.push(client);
        let mut expected = service.served.lock().clone();
        expected.insert(0);
        assert_eq!(*service.built.lock(), expected);
    }
    drop(serving);
    clients.iter_mut().for_each(|client| drop(answer(client)));
    drop((clients, silent));
    stop(&handle);
}

#[test]
fn workers_that_build_their_state_do_not_hold_up_the_others() {
    let (service, [building, serving]) = slow_state();
    let handle = start(server().workers(8), service);
    // All eight workers are needed, and seven of them take long to become ready.
    let mut clients: Vec<TcpStream> = (0..8).map(|_| connect(addr(&handle))).collect();
    clients.iter_mut().for_each(|client| send(client, "wait"));
    (0..7).for_each(|_| building.wait());
    serving.wait();
    // The eighth one serves others meanwhile.
    serving.let_one_in();
    for _ in 0..10 {
        ask(&mut connect(addr(&handle)), "hello");
    }
    drop((building, serving));
    for client in &mut clients {
        assert_eq!(answer(client), "wait");
    }
    drop(clients);
    stop(&handle);
}
