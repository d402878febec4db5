//! Accepting: who gets in and when, what silent clients cost, and what happens when the system runs out of something.

mod support;

#[cfg(unix)]
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
#[cfg(unix)]
use std::time::{Duration, Instant};

use handover::{Bind, Builder, Connection, Handle, Listener, Next, Overload};
#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[cfg(unix)]
use support::{
    Child, Parent, as_child, cpu_time, descriptors, door, keep_log, logged, socket_path, unix,
    wait_logged,
};
use support::{
    LIMIT, QUIET, addr, answer, ask, assert_silent, connect, is_timeout, lines, reset, server,
    settings, start, stop, until,
};

// ---- silent clients ----

#[test]
fn a_silent_client_holds_no_worker() {
    let handle = start(server().workers(1), lines);
    let silent = connect(addr(&handle));
    until(&handle, "the silent one is there", |stats| stats.live == 1);
    for _ in 0..10 {
        ask(&mut connect(addr(&handle)), "hello");
    }
    drop(silent);
    stop(&handle);
}

// With the other poller, workers sleep on the queue.
#[cfg(all(target_os = "linux", not(handover_one_waiter)))] // epoll, and how often a thread has slept
#[test]
fn a_connection_wakes_no_worker_before_its_client_sends() {
    const CONNECTIONS: usize = 200;
    let handle = start(server().workers(2).thread_name_prefix("early"), lines);
    let is_worker = |name: &str| name.trim_end().ends_with(['0', '1']);
    ask(&mut connect(addr(&handle)), "hello");
    until(&handle, "the workers are idle", |stats| stats.live == 0);
    let before = sleeps("early", is_worker);
    let silent: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|index| {
            let silent = connect(addr(&handle));
            until(&handle, "it is parked", |stats| {
                stats.parked == index as u64 + 1
            });
            silent
        })
        .collect();
    let slept = sleeps("early", is_worker) - before;
    assert!(
        slept < CONNECTIONS / 4,
        "{slept} wake-ups for {CONNECTIONS} silent clients"
    );
    drop(silent);
    stop(&handle);
}

#[test]
fn a_loop_style_handler_is_not_called_for_a_silent_client() {
    let looping = |conn: &mut Connection| {
        let mut line = String::new();
        while conn.read_line_limited(100, &mut line)? > 0 {
            conn.write_all(line.as_bytes())?;
            line.clear();
        }
        Ok(Next::Close)
    };
    let handle = start(server().workers(1), looping);
    let mut first = connect(addr(&handle));
    let mut second = connect(addr(&handle));
    ask(&mut second, "second");
    drop(second);
    ask(&mut first, "first");
    drop(first);
    stop(&handle);
}

#[test]
fn slow_first_bytes_cost_no_worker() {
    // As the first record of a handshake comes from a client far away.
    let handle = start(server().workers(1), lines);
    let mut slow: Vec<TcpStream> = (0..20).map(|_| connect(addr(&handle))).collect();
    let mut quick = connect(addr(&handle));
    for letter in "hello\n".chars() {
        for client in &mut slow {
            client.write_all(&[letter as u8]).unwrap();
        }
        ask(&mut quick, "quick");
    }
    for client in &mut slow {
        assert_eq!(answer(client), "hello");
    }
    drop((slow, quick));
    stop(&handle);
}

#[test]
fn a_client_that_comes_and_goes_without_a_word_is_nobodys_business() {
    let handle = start(server().workers(1), lines);
    for index in 0..100 {
        let client = connect(addr(&handle));
        if index % 2 == 0 {
            reset(client);
        }
    }
    ask(&mut connect(addr(&handle)), "hello");
    let stats = until(&handle, "they are gone", |stats| stats.live == 0);
    assert_eq!((stats.accepted, stats.served), (101, 1));
    assert_eq!(stats.accept_errors, 0);
    stop(&handle);
}

// ---- who speaks first ----

fn greet(conn: &mut Connection) -> io::Result<Next> {
    if conn.buffer().is_empty() {
        conn.write_all(b"welcome\n")?;
        return Ok(Next::Park);
    }
    lines(conn)
}

#[test]
fn a_server_may_speak_first() {
    let builder = settings()
        .listen(Bind::new("127.0.0.1:0").speaks_first(true))
        .listen("127.0.0.1:0")
        .workers(1);
    let handle = start(builder, greet);
    let addrs = handle.local_addrs();
    let mut client = connect(addrs[0].as_ip().unwrap());
    assert_eq!(answer(&mut client), "welcome");
    ask(&mut client, "thanks");

    // On the other listener, the first word is the client's.
    let mut silent = connect(addrs[1].as_ip().unwrap());
    assert_silent(&mut silent);
    ask(&mut silent, "me first");
    drop((client, silent));
    stop(&handle);
}

#[test]
fn a_given_listener_may_speak_first() {
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = handover::Listener::from_std(own, "given").unwrap();
    let listener = listener.speaks_first(true);
    assert_eq!(listener.name(), "given");
    let handle = start(settings().listener(listener), greet);
    assert_eq!(answer(&mut connect(addr(&handle))), "welcome");
    stop(&handle);
}

// ---- pause and resume ----

/// Has the server pause, and returns the clients that came after it did.
fn pause(handle: &Handle) -> Vec<TcpStream> {
    handle.pause();
    // The pause is not there with the return of the call. When it is, a client is not answered.
    for _ in 0..100 {
        let accepted = handle.stats().accepted;
        let mut client = connect(addr(handle));
        client.write_all(b"knock\n").unwrap();
        client.set_read_timeout(Some(QUIET)).unwrap();
        match client.read(&mut [0; 16]) {
            Ok(_) => continue,
            Err(error) => assert!(is_timeout(&error), "{error}"),
        }
        client.set_read_timeout(Some(LIMIT)).unwrap();
        if handle.stats().accepted == accepted {
            return vec![client];
        }
    }
    panic!("the server does not pause");
}

#[test]
fn a_pause_keeps_clients_waiting_and_loses_none() {
    let handle = start(server().workers(1), lines);
    let mut old = connect(addr(&handle));
    ask(&mut old, "before");
    let mut waiting = pause(&handle);
    for _ in 0..20 {
        let mut client = connect(addr(&handle));
        client.write_all(b"knock\n").unwrap();
        waiting.push(client);
    }
    // Who is in already is served on.
    ask(&mut old, "meanwhile");
    let accepted = handle.stats().accepted;
    handle.resume();
    for client in &mut waiting {
        assert_eq!(answer(client), "knock");
    }
    assert_eq!(
        handle.stats().accepted - accepted,
        21,
        "somebody got in meanwhile"
    );
    drop((old, waiting));
    stop(&handle);
}

#[test]
fn a_paused_server_stops() {
    let handle = start(server(), lines);
    let waiting = pause(&handle);
    // Those that the kernel has queued are served before the end.
    handle.stop(LIMIT);
    for mut client in waiting {
        assert_eq!(answer(&mut client), "knock");
    }
    assert!(handle.join().is_clean());
}

#[test]
fn clients_that_reset_before_they_are_accepted_do_not_end_the_server() {
    let handle = start(server().workers(1), lines);
    let waiting = pause(&handle);
    for _ in 0..100 {
        reset(connect(addr(&handle)));
    }
    handle.resume();
    for mut client in waiting {
        assert_eq!(answer(&mut client), "knock");
    }
    ask(&mut connect(addr(&handle)), "still there");
    until(&handle, "they are gone", |stats| stats.live == 0);
    stop(&handle);
}

#[test]
fn all_listeners_are_accepted_from() {
    let mut builder = server().workers(1);
    for _ in 0..20 {
        builder = builder.listen("127.0.0.1:0");
    }
    let handle = start(builder, lines);
    let addrs = handle.local_addrs();
    let mut clients: Vec<TcpStream> = (0..3)
        .flat_map(|_| &addrs)
        .map(|at| connect(at.as_ip().unwrap()))
        .collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    drop(clients);
    stop(&handle);
}

// ---- a listener that several servers share ----

/// Servers that accept from one listener, as the processes of a supervisor do.
fn sharing(servers: usize, builder: impl Fn(usize) -> Builder) -> (SocketAddr, Vec<Handle>) {
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = own.local_addr().unwrap();
    let handles = (0..servers).map(|index| {
        let listener = Listener::from_std(own.try_clone().unwrap(), "shared").unwrap();
        start(builder(index).listener(listener), lines)
    });
    (at, handles.collect())
}

/// How often the threads with this prefix have slept whose name meets the condition.
#[cfg(all(target_os = "linux", not(handover_one_waiter)))] // epoll, and how often a thread has slept
fn sleeps(prefix: &str, condition: impl Fn(&str) -> bool) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let sleeps = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let is_meant = name.starts_with(prefix) && condition(&name);
        is_meant.then(|| count.trim().parse::<usize>().unwrap())
    });
    sleeps.sum()
}

// Only epoll can do this.
#[cfg(all(target_os = "linux", not(handover_one_waiter)))] // epoll, and how often a thread has slept
#[test]
fn a_connection_wakes_one_of_the_servers_that_share_a_listener() {
    const CONNECTIONS: usize = 400;
    let (at, handles) = sharing(4, |_| settings().workers(1).thread_name_prefix("herd"));
    // The first connections come while the acceptors start.
    (0..50).for_each(|_| ask(&mut connect(at), "hello"));
    let is_acceptor = |name: &str| name.contains("accept");
    let before = sleeps("herd", is_acceptor);
    for _ in 0..CONNECTIONS {
        ask(&mut connect(at), "hello");
    }
    let slept = sleeps("herd", is_acceptor) - before;
    assert!(
        slept < 2 * CONNECTIONS,
        "{slept} wake-ups for {CONNECTIONS} connections"
    );
    // All have a share.
    for handle in &handles {
        let accepted = handle.stats().accepted;
        assert!(accepted > 40, "{accepted} of {CONNECTIONS}");
    }
    handles.iter().for_each(stop);
}

#[test]
fn a_server_that_does_not_accept_keeps_no_connection_from_the_others() {
    for overload in [Overload::Wait, Overload::ShedIdle] {
        // The first ones are full soon, the last one never.
        let (at, handles) = sharing(4, |index| {
            let most = if index == 3 { 10_000 } else { index + 1 };
            settings()
                .workers(1)
                .max_connections(most)
                .overload(overload.clone())
        });
        let mut kept = Vec::new();
        for _ in 0..200 {
            let mut client = connect(at);
            // In the middle of a message, so that none can be closed for the next one.
            client.write_all(b"line\nhalf a ").unwrap();
            assert_eq!(answer(&mut client), "line");
            kept.push(client);
        }
        for (index, handle) in handles.iter().enumerate().take(3) {
            assert!(
                handle.stats().live as usize <= index + 2,
                "{:?}",
                handle.stats()
            );
        }
        // The places that become free are taken again.
        for client in &mut kept {
            client.write_all(b"line\n").unwrap();
            assert_eq!(answer(client), "half a line");
        }
        handles[3].pause();
        drop(kept);
        for _ in 0..200 {
            ask(&mut connect(at), "hello");
        }
        handles.iter().for_each(stop);
    }
}

#[test]
fn pauses_of_servers_that_share_a_listener_strand_no_connection() {
    let (at, handles) = sharing(3, |_| settings().workers(1));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // One of them accepts at any time.
        scope.spawn(|| {
            for round in (0..3).cycle() {
                if is_over.load(SeqCst) {
                    break;
                }
                handles[round].resume();
                handles[(round + 1) % 3].pause();
                thread::yield_now();
            }
        });
        let mut stranded = 0;
        for _ in 0..2000 {
            let mut client = connect(at);
            client.write_all(b"hello\n").unwrap();
            stranded += usize::from(client.read(&mut [0; 16]).is_err());
        }
        is_over.store(true, SeqCst);
        assert_eq!(stranded, 0);
    });
    handles.iter().for_each(stop);
}

#[test]
fn a_server_that_stops_strands_no_connection_of_a_shared_listener() {
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = own.local_addr().unwrap();
    let next = || {
        let listener = Listener::from_std(own.try_clone().unwrap(), "shared").unwrap();
        start(settings().workers(1).listener(listener), lines)
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = next();
            while !is_over.load(SeqCst) {
                let handle = next();
                stop(&std::mem::replace(&mut last, handle));
            }
            // The last one serves until the end.
            stop(&last);
        });
        let mut stranded = 0;
        for _ in 0..500 {
            let mut client = connect(at);
            // A server that stops may close the connection before the line has arrived.
            let sent = client.write_all(b"hello\n");
            let answer = sent.and_then(|()| client.read(&mut [0; 16]));
            stranded += usize::from(answer.is_err_and(|error| is_timeout(&error)));
        }
        is_over.store(true, SeqCst);
        assert_eq!(stranded, 0);
    });
}

// ---- out of descriptors ----

/// The server's side of a test in which it has 64 descriptors; its parent has the clients.
#[cfg(unix)]
struct Starving {
    parent: Parent,
    handle: Handle,
    hoard: Vec<File>,
}

#[cfg(unix)]
impl Starving {
    fn run(parent: Parent) {
        keep_log();
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = Some(64);
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
        let handle = start(server().workers(2), lines);
        parent.say(addr(&handle));
        let mut child = Self {
            parent,
            handle,
            hoard: Vec::new(),
        };
        while let Some(wish) = child.parent.hear() {
            let answer = child.fulfil(&wish);
            child.parent.say(answer);
        }
        stop(&child.handle);
    }

    fn fulfil(&mut self, wish: &str) -> String {
        match wish {
            "descriptors" => {
                until(&self.handle, "all have gone", |stats| stats.live == 0);
                descriptors().to_string()
            }
            // All descriptors are taken by something else than connections.
            "hoard" => {
                self.hoard
                    .extend((0..64).map_while(|_| File::open("/dev/null").ok()));
                self.hoard.len().to_string()
            }
            "share" => {
                self.hoard.clear();
                String::new()
            }
            "wait for famine" => wait_logged("cannot accept").text,
            "famines" => logged("cannot accept").len().to_string(),
            "warnings" => {
                let all = logged("");
                let loud = all.iter().filter(|record| record.level <= log::Level::Warn);
                // At the start, the server says once that 64 are few.
                let loud = loud.filter(|record| !record.text.contains("max_connections is"));
                loud.count().to_string()
            }
            // How much of a core the process uses, in percent.
            "load" => {
                let (start, before) = (Instant::now(), cpu_time());
                while start.elapsed() < Duration::from_secs(2) {
                    thread::park_timeout(Duration::from_secs(2));
                }
                let used = cpu_time() - before;
                let percent = used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
                format!("{percent:.1}")
            }
            "recoveries" => logged("accepting again").len().to_string(),
            "accept errors" => self.handle.stats().accept_errors.to_string(),
            "shed" => self.handle.stats().shed.to_string(),
            other => panic!("what is {other}?"),
        }
    }
}

#[cfg(unix)] // Windows has no limit of handles
#[test]
fn without_descriptors_the_server_waits_quietly_and_recovers() {
    const TEST: &str = "without_descriptors_the_server_waits_quietly_and_recovers";
    if let Some(parent) = as_child(TEST) {
        return Starving::run(parent);
    }
    let mut child = Child::of(TEST);
    let at = child.hear().parse().unwrap();
    ask(&mut connect(at), "before");
    let before = child.ask("descriptors");

    for episode in 1..=2 {
        // Nothing can be closed to make room: it is the rest of the program that has the descriptors.
        assert_ne!(child.ask("hoard"), "0");
        let mut clients: Vec<TcpStream> = (0..200).map(|_| connect(at)).collect();
        for client in &mut clients {
            client.write_all(b"hello\n").unwrap();
        }
        child.ask("wait for famine");
        let load: f64 = child.ask("load").parse().unwrap();
        assert!(load < 5.0, "{load} % of a core while starved");
        assert_ne!(child.ask("accept errors"), "0");
        assert_eq!(child.ask("famines"), episode.to_string());
        assert_eq!(child.ask("warnings"), episode.to_string());
        child.ask("share");
        // Those whom there is no room for yet come when others have gone.
        for mut client in clients {
            assert_eq!(answer(&mut client), "hello");
        }
        // It is over when nothing has been lacking for a while, so that one that flickers is told once.
        let recovered = episode.to_string();
        let deadline = Instant::now() + LIMIT;
        while child.ask("recoveries") != recovered {
            assert!(Instant::now() < deadline, "the famine is never over");
            ask(&mut connect(at), "after");
        }
        assert_eq!(child.ask("descriptors"), before, "of so many descriptors");
    }
    child.end();
}

#[cfg(unix)] // Windows has no limit of handles
#[test]
fn idle_clients_are_closed_when_descriptors_run_out() {
    const TEST: &str = "idle_clients_are_closed_when_descriptors_run_out";
    if let Some(parent) = as_child(TEST) {
        return Starving::run(parent);
    }
    let mut child = Child::of(TEST);
    let at = child.hear().parse().unwrap();
    ask(&mut connect(at), "before");
    let before = child.ask("descriptors");

    // They would keep all descriptors for as long as they like.
    let silent: Vec<TcpStream> = (0..200).map(|_| connect(at)).collect();
    for _ in 0..20 {
        ask(&mut connect(at), "hello");
    }
    assert_ne!(child.ask("shed"), "0");
    let load: f64 = child.ask("load").parse().unwrap();
    assert!(load < 5.0, "{load} % of a core with all that are left idle");
    let famines: usize = child.ask("famines").parse().unwrap();
    let warnings: usize = child.ask("warnings").parse().unwrap();
    assert_eq!(warnings, famines);
    // It comes and goes with each of the clients, and is one all the same.
    assert!((1..=5).contains(&famines), "{famines} famines");
    drop(silent);
    ask(&mut connect(at), "after");
    assert_eq!(child.ask("descriptors"), before, "of so many descriptors");
    child.end();
}

/// The stop accepts from a Unix socket, whose queue has no known length, for a short time only. It waits for room for
/// as long as that takes, up to its deadline.
#[cfg(unix)]
#[test]
fn a_client_that_waits_for_a_descriptor_is_served_after_a_stop() {
    const TEST: &str = "a_client_that_waits_for_a_descriptor_is_served_after_a_stop";
    if let Some(parent) = as_child(TEST) {
        return stop_without_descriptors(&parent);
    }
    let mut child = Child::of(TEST);
    let path = child.hear();
    let connect = || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.write_all(b"a line\n").unwrap();
        client
    };
    let mut served = connect();
    child.ask("hoard");
    let mut queued = connect();
    child.ask("stop");
    child.ask("answer");
    for client in [&mut served, &mut queued] {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "a line\n");
    }
    assert_eq!(child.hear(), "clean");
}

/// The server's side.
#[cfg(unix)]
fn stop_without_descriptors(parent: &Parent) {
    keep_log();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(64);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let (_dir, path) = socket_path();
    let (keeper, door) = door();
    let service = move |conn: &mut Connection| {
        door.pass();
        lines(conn)
    };
    let builder = settings().listen(unix(&path)).workers(1);
    let handle = start(builder, service);
    parent.say(path.display());
    assert_eq!(parent.hear().unwrap(), "hoard");
    keeper.wait();
    let hoard: Vec<_> = (0..64)
        .map_while(|_| File::open("/dev/null").ok())
        .collect();
    parent.say(hoard.len());
    assert_eq!(parent.hear().unwrap(), "stop");
    wait_logged("cannot accept");
    handle.stop(2 * LIMIT);
    parent.say("stopping");
    assert_eq!(parent.hear().unwrap(), "answer");
    drop(keeper);
    parent.say("answering");
    let report = handle.join();
    parent.say(if report.is_clean() {
        "clean".to_owned()
    } else {
        report.to_string()
    });
}

#[cfg(unix)] // Windows has no limit of handles
#[test]
fn a_famine_ends_as_soon_as_a_connection_does() {
    const TEST: &str = "a_famine_ends_as_soon_as_a_connection_does";
    if let Some(parent) = as_child(TEST) {
        return Starving::run(parent);
    }
    let mut child = Child::of(TEST);
    let at = child.hear().parse().unwrap();
    // One connection at a time for each of these, for there is one descriptor left.
    let mut only = connect(at);
    ask(&mut only, "before");
    child.ask("hoard");
    let mut next = connect(at);
    next.write_all(b"hello\n").unwrap();
    // Its connection is the longest parked one, so it goes for the next.
    assert_eq!(answer(&mut next), "hello");
    support::assert_closed(&mut only);
    child.ask("share");
    drop((only, next));
    child.end();
}
