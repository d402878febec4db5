//! Restarts that work, with real processes: nothing is lost, and everything goes from hand to hand.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use generations::*;
use load::{Kind, Load, To};

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

/// Clients of every kind, for a TCP and a Unix listener.
fn every_kind(tcp: SocketAddr, unix: &Path, delayed: Option<SocketAddr>) -> Vec<(To, Kind)> {
    let kinds = [
        Kind::KeepAlive,
        Kind::Idle(Duration::from_millis(20)),
        Kind::PerRequest,
        Kind::Echo(0),
        Kind::Echo(16 << 10),
        Kind::Echo(1 << 20),
        Kind::Pipelined(8),
    ];
    let mut all = Vec::new();
    for kind in kinds {
        all.push((To::Tcp(tcp), kind));
        all.push((To::Unix(unix.to_owned()), kind));
        all.extend(delayed.map(|addr| (To::Tcp(addr), kind)));
    }
    all
}

#[test]
fn no_request_is_lost_by_restarts_under_load() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let mut generations = Generations::start(&[("listen", &listen)]);
    let delayed = load::delayed(generations.addr(), Duration::from_millis(2));
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(12, |n| n.parse().unwrap());
    let first = settled(generations.restart().pid);
    let clients = std::env::var("HANDOVER_TEST_CLIENTS").map_or(2, |n| n.parse().unwrap());
    let kinds = every_kind(generations.addr(), &path, Some(delayed));
    let load = Load::start(&kinds, clients);
    let mut times = Vec::new();
    for _ in 1..restarts {
        load.wait_for(200);
        let old = generations.who();
        let start = Instant::now();
        signal(old.pid, Signal::HUP);
        generations.until_generation(old.generation + 1);
        times.push(start.elapsed());
        eventually("the old process ends", || !is_alive(old.pid));
    }
    load.wait_for(200);
    let connections = load.seen.connections.load(SeqCst);
    let answers = load.end();
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!(
        "{answers} answers on {connections} connections, {restarts} restarts, median {median:?}"
    );

    // One more that has had no clients, as the first one.
    let who = generations.restart();
    assert_eq!(who.generation, restarts + 2);
    let last = settled(who.pid);
    println!("after the first restart {first:?}, after the last one {last:?}");
    assert_eq!(first.descriptors, last.descriptors);
    assert_eq!(first.listening, last.listening);
    assert_eq!(first.threads, last.threads);
    let environment = first.environment.abs_diff(last.environment);
    assert!(environment < 8, "only the digits of numbers may change");
    assert!(last.rss_kib < first.rss_kib * 3 / 2);
    // The first process is a child of this test, which waits for it in the end; init waits for the others.
    eventually("no zombie but the first process", || {
        generations.processes().1 <= 1
    });
    signal(who.pid, Signal::TERM);
    generations.wait();
    assert!(!path.exists(), "the last one removes the file");
}

#[test]
fn many_triggers_are_few_restarts_and_one_at_a_time() {
    let generations = Generations::start(&[]);
    let first = generations.who().pid;
    let load = Load::start(&[(To::Tcp(generations.addr()), Kind::KeepAlive)], 4);
    load.wait_for(20);
    for _ in 0..20 {
        // Those that come when it has ended reach nobody.
        let _ = kill_process(Pid::from_raw(first).unwrap(), Signal::HUP);
        let _ = kill_process(Pid::from_raw(first).unwrap(), Signal::USR2);
    }
    eventually("the old process ends", || {
        let (live, _) = generations.processes();
        // Four that drain, the one that serves, its successor, and a process that waits for that.
        assert!(live.len() <= 7, "a storm: {live:?}");
        !is_alive(first)
    });
    load.end();
    let output = generations.end();
    let ends = output.matches("\ngeneration ").count();
    // The signals that came when the program had been executed have shared another restart. For those that were handled
    // after the process had been replaced, its successor was asked for more, and has put together what it could.
    assert!((2..=6).contains(&ends), "{output}");
}

/// One that a new version does not listen on any more.
#[test]
fn what_is_queued_for_a_listener_that_is_given_up_is_served() {
    // Who comes between the last look at the queue and the close is reset, and no system has a way to prevent that. On
    // a busy machine the process may be interrupted there.
    let mut resets = Vec::new();
    for _ in 0..5 {
        resets = resets_of_a_listener_that_is_given_up();
        if resets.len() <= 2 {
            return;
        }
    }
    panic!("{resets:?}");
}

fn resets_of_a_listener_that_is_given_up() -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 127.0.0.1:0 unix:{}", path.display());
    let generations = Generations::start(&[("listen", &listen)]);
    let first = generations.who();
    let kept = generations.addrs[0].clone();
    let given_up: SocketAddr = generations.addrs[1].parse().unwrap();
    generations.option("listen", &kept);
    let load = Load::start(&[(To::Tcp(given_up), Kind::PerRequest)], 8);
    load.wait_for(100);
    signal(first.pid, Signal::HUP);
    generations.until_generation(2);
    eventually("nobody listens there", || {
        TcpStream::connect(given_up).is_err()
    });
    let (_, mut failures) = load.finish();
    eventually("nobody needs the file any more", || !path.exists());
    failures.retain(|failure| !failure.contains("refused"));
    generations.end();
    failures
}

#[test]
fn the_handle_reports_what_a_restart_came_to() {
    let mut generations = Generations::start(&[("by-handle", "")]);
    let mut slow = support::connect(generations.addr());
    let request = b"GET /slow?200 HTTP/1.1\r\nHost: test\r\n\r\n";
    slow.write_all(request).unwrap();
    let first = generations.who();
    generations.get("/restart-later");
    let second = generations.until_generation(2);
    let answer = one_answer(&mut slow);
    assert!(
        answer.contains(&format!("\r\n\r\n{} 1 ", first.pid)),
        "{answer}"
    );
    let report = generations.until("report: ");
    for part in [
        "forced: [], dropped: 0",
        &format!("old: Generation {{ number: 1, pid: {} }}", first.pid),
        &format!("new: Generation {{ number: 2, pid: {} }}", second.pid),
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    signal(second.pid, Signal::KILL);
}

#[test]
fn state_and_descriptors_are_passed_on() {
    let generations = Generations::start(&[]);
    let first = generations.who();
    assert_eq!(first.state, "");
    let second = generations.restart();
    let third = generations.restart();
    assert_eq!((&*second.state, &*third.state), ("1,", "1,2,"));
    assert_eq!((second.udp, third.udp), (first.udp, first.udp));
    generations.end();
}

/// So systemd does when it stops a service, and the main process ends first.
#[test]
fn a_replaced_process_that_is_told_twice_to_stop_finishes_its_requests() {
    let mut generations = Generations::start(&[("grace", "3600000"), ("stay", "")]);
    let first = generations.who();
    let mut busy = support::connect(generations.addr());
    busy.write_all(b"GET /hold?go HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .unwrap();
    // Accepted later, so that the request before is in progress by then.
    let mut idle = support::connect(generations.addr());
    idle.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    idle.read_exact(&mut [0; 64]).unwrap();
    generations.restart();
    signal(first.pid, Signal::TERM);
    // The first signal was handled when idle connections are closed.
    idle.read_to_end(&mut Vec::new()).unwrap();
    signal(first.pid, Signal::TERM);
    support::assert_silent(&mut busy);
    fs::write(generations.dir.path().join("go"), "").unwrap();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).unwrap();
    assert!(
        answer.ends_with(&format!("\r\n\r\n{} 1 {} ", first.pid, first.udp)),
        "{answer}"
    );
    signal(generations.who().pid, Signal::TERM);
    generations.wait();
}

#[test]
fn a_unix_socket_and_the_pid_file_go_from_hand_to_hand() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listen = format!("127.0.0.1:0 unix:{}", path.display());
    let mut generations = Generations::start(&[("listen", &listen), ("pid-file", "")]);
    let pid_file = generations.dir.path().join("pid");
    let pid = || {
        fs::read_to_string(&pid_file)
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
    };
    let first = generations.who();
    assert_eq!(pid(), first.pid);
    // Nobody else may take it.
    let other = Generations::start_expecting_failure(&pid_file);
    assert!(
        other.contains(&format!(
            "belongs to process {}, which is running",
            first.pid
        )),
        "{other}"
    );
    let second = generations.restart();
    assert_eq!(pid(), second.pid);
    eventually("the old process ends", || !is_alive(first.pid));
    assert_eq!(pid(), second.pid);
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(Who::parse(&get(&mut client, "/who")), second);
    signal(second.pid, Signal::TERM);
    generations.wait();
    assert!(!path.exists() && !pid_file.exists());
}

impl Generations {
    /// Starts a server that cannot have its pid file, and returns what it says.
    fn start_expecting_failure(pid_file: &Path) -> String {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("listen"), "127.0.0.1:0").unwrap();
        fs::write(dir.path().join("pid-file"), "").unwrap();
        fs::hard_link(pid_file, dir.path().join("pid")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
        let output = support::output_of(command.env(DIR, dir.path()));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[test]
fn idle_clients_have_their_grace_and_then_the_end() {
    let generations = Generations::start(&[("grace", "3000"), ("stay", "")]);
    let first = generations.who();
    let mut asking = support::connect(generations.addr());
    let mut silent = support::connect(generations.addr());
    for client in [&mut asking, &mut silent] {
        client
            .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
            .unwrap();
        let answer = one_answer(client);
        assert!(!answer.contains("Connection: close"), "{answer}");
    }
    let restarted = Instant::now();
    generations.restart();
    // Who asks within the grace is answered, by the old process, and told not to ask again.
    asking
        .write_all(b"GET /who HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let answer = one_answer(&mut asking);
    let in_time = restarted.elapsed() < Duration::from_millis(2000);
    if in_time {
        assert!(answer.contains("Connection: close"), "{answer}");
        assert!(
            answer.contains(&format!("\r\n\r\n{} 1 ", first.pid)),
            "{answer}"
        );
        assert_eq!(asking.read(&mut [0; 8]).unwrap(), 0);
    }
    assert_eq!(
        silent.read(&mut [0; 8]).unwrap(),
        0,
        "closed without a word"
    );
    assert!(restarted.elapsed() >= Duration::from_millis(2000));
    eventually("the old process ends", || !is_alive(first.pid));
    generations.end();
}

#[test]
fn standard_error_comes_back_to_the_successor() {
    let mut generations = Generations::start_with(&[], |command| {
        command.stderr(Stdio::piped());
    });
    let mut stderr = BufReader::new(generations.first.stderr.take().unwrap());
    let first = generations.who();
    let own = fs::read_link(format!("/proc/{}/fd/2", first.pid)).unwrap();
    let second = generations.restart();
    assert_eq!(
        fs::read_link(format!("/proc/{}/fd/2", second.pid)).unwrap(),
        own
    );
    // What a failing one says is passed on.
    generations.mode("exit 3");
    signal(second.pid, Signal::HUP);
    let mut line = String::new();
    while !line.contains("no configuration") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
    }
    generations.mode("");
    generations.end();
}

/// The program of the example, if it was built.
fn demo() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let demo = test.parent().and_then(Path::parent).unwrap();
    let demo = demo.join("examples/demo");
    if !demo.exists() {
        let path = demo.display();
        eprintln!("SKIPPED: {path} is not there; `cargo build --examples --all-features` makes it");
        return None;
    }
    Some(demo)
}

/// The example, as a user has it: replaced by another build of it.
#[test]
fn the_demo_is_replaced_by_what_is_on_disk() {
    let Some(demo) = demo() else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("demo");
    fs::copy(&demo, &program).unwrap();
    let mut first = Command::new(&program)
        .args(["--listen", "127.0.0.1:0", "--ready-timeout", "50"])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _group = support::ProcessGroup::of(&first);
    let mut line = String::new();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let addr: SocketAddr = line.trim().rsplit_once('/').unwrap().1.parse().unwrap();
    let whoami = || get(&mut support::connect(addr), "/whoami");
    let said = whoami();
    let version = |version: &str| format!(r#""version":"{version}"}}"#);
    assert!(
        said.contains(r#""generation":1,"#) && said.ends_with(&version(env!("CARGO_PKG_VERSION"))),
        "{said}"
    );
    // Another build is one with another version in it.
    let mut bytes = fs::read(&demo).unwrap();
    let (own, other) = (env!("CARGO_PKG_VERSION").as_bytes(), b"9.8.7");
    assert_eq!(own.len(), other.len());
    let places: Vec<usize> = (0..bytes.len() - own.len())
        .filter(|&at| bytes[at..].starts_with(own))
        .collect();
    for at in places {
        bytes[at..at + other.len()].copy_from_slice(other);
    }
    let new = dir.path().join("demo.new");
    put(&new, &bytes, 0o755);
    fs::rename(new, &program).unwrap();
    signal(Pid::from_child(&first).as_raw_nonzero().get(), Signal::HUP);
    // Both processes accept for a moment.
    let mut said = String::new();
    eventually("the next generation", || {
        said = whoami();
        said.contains(r#""generation":2,"#)
    });
    assert!(said.ends_with(&version("9.8.7")), "{said}");
    let pid = said
        .trim_start_matches(r#"{"pid":"#)
        .split(',')
        .next()
        .unwrap();
    first.wait().unwrap();
    signal(pid.parse().unwrap(), Signal::TERM);
    output.read_to_string(&mut line).unwrap();
    assert_eq!(line.matches("0 forced, 0 dropped").count(), 2, "{line}");
}

/// The demo's pages that other threads send.
#[test]
fn event_streams_end_and_go_on_at_the_successor_and_a_later_response_is_awaited() {
    let Some(demo) = demo() else {
        return;
    };
    let mut first = Command::new(demo)
        .args(["--listen", "127.0.0.1:0"])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _group = support::ProcessGroup::of(&first);
    let mut line = String::new();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let addr: SocketAddr = line.trim().rsplit_once('/').unwrap().1.parse().unwrap();
    let ask = |client: &mut BufReader<TcpStream>, path: &str, fields: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
        client.get_mut().write_all(request.as_bytes()).unwrap();
    };
    let open = |path: &str| {
        let mut client = BufReader::new(support::connect(addr));
        ask(&mut client, path, "");
        client
    };
    fn until_line(client: &mut BufReader<TcpStream>, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            assert_ne!(client.read_line(&mut text).unwrap(), 0, "{text}");
        }
        text
    }
    // One stream with an event from time to time, and one that is silent.
    let mut events = open("/events?every=10");
    until_line(&mut events, "data: 3\n");
    let mut silent = open("/subscribe");
    let begin = until_line(&mut silent, "retry: 1000\n");
    let (_, id) = begin.rsplit_once("id: ").unwrap();
    let id = id.lines().next().unwrap();
    let mut later = open("/later?ms=1000");
    // The request has arrived.
    get(&mut support::connect(addr), "/whoami");
    signal(Pid::from_child(&first).as_raw_nonzero().get(), Signal::HUP);
    // The streams end. Their connections move.
    let rest = until_line(&mut events, "\r\n0\r\n\r\n");
    let last = rest
        .rsplit_once("data: ")
        .map_or("3", |(_, last)| last.lines().next().unwrap());
    let last: u64 = last.parse().unwrap();
    let rest = until_line(&mut silent, "\r\n0\r\n\r\n");
    assert_eq!(rest, "\n\r\n0\r\n\r\n");

    let said = get(&mut support::connect(addr), "/whoami");
    assert!(said.contains(r#""generation":2,"#), "{said}");
    ask(
        &mut events,
        "/events?every=10",
        &format!("Last-Event-ID: {last}\r\n"),
    );
    until_line(&mut events, &format!("data: {}\n", last + 1));
    // Published while the client of the silent stream was away.
    let mut publish = support::connect(addr);
    publish
        .write_all(b"POST /publish HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnews")
        .unwrap();
    let mut rest = String::new();
    publish.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 202 "), "{rest}");
    ask(
        &mut silent,
        "/subscribe",
        &format!("Last-Event-ID: {id}\r\n"),
    );
    until_line(&mut silent, "data: news\n");
    let answer = one_answer(later.get_mut());
    assert!(answer.ends_with("\r\n\r\nlater 1000"), "{answer}");
    assert!(!answer.contains("Connection: close\r\n"), "{answer}");
    assert_eq!(get(later.get_mut(), "/whoami"), said);
    first.wait().unwrap();
    let pid = said.trim_start_matches(r#"{"pid":"#).split(',').next();
    signal(pid.unwrap().parse().unwrap(), Signal::TERM);
    rest.clear();
    events.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "{rest}");
    output.read_to_string(&mut line).unwrap();
    assert_eq!(line.matches("0 forced, 0 dropped").count(), 2, "{line}");
}

/// Publishes, on a new connection if there is none. The status, if a whole response came.
fn publish(client: &mut Option<BufReader<TcpStream>>, addr: SocketAddr, text: &str) -> Option<u16> {
    let mut stream = client
        .take()
        .unwrap_or_else(|| BufReader::new(support::connect(addr)));
    let length = text.len();
    let request =
        format!("POST /publish HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{text}");
    stream.get_mut().write_all(request.as_bytes()).ok()?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let fields = head.to_ascii_lowercase();
    let length = fields.split_once("content-length: ").unwrap().1;
    let length: usize = length.lines().next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).ok()?;
    let status = head[9..12].parse().unwrap();
    assert_eq!(
        status == 503,
        fields.contains("retry-after: 1\r\n"),
        "{head}"
    );
    if !fields.contains("connection: close\r\n") {
        *client = Some(stream);
    }
    Some(status)
}

/// A message that was accepted reaches a subscriber that comes back. Any other is refused.
#[test]
fn what_is_published_during_a_restart_is_sent_or_refused() {
    let Some(demo) = demo() else {
        return;
    };
    let mut first = Command::new(demo)
        .args(["--listen", "127.0.0.1:0", "--workers", "2"])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let group = support::ProcessGroup::of(&first);
    let mut line = String::new();
    let mut output = BufReader::new(first.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let addr: SocketAddr = line.trim().rsplit_once('/').unwrap().1.parse().unwrap();

    let subscribe = |last: &str| {
        let mut stream = BufReader::new(support::connect(addr));
        let request =
            format!("GET /subscribe HTTP/1.1\r\nHost: test\r\nLast-Event-ID: {last}\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        stream
    };
    // A connection to the first process whose client is idle.
    let mut idle = None;
    assert_eq!(publish(&mut idle, addr, "first"), Some(202));
    let mut stream = subscribe("0");
    let (mut last, mut got, mut accepted, mut refused) = (String::new(), Vec::new(), 0, 0);
    let mut late = None;
    // Reads one line. False at the end of the stream, which the last chunk is: its connection moves to the
    // successor, and stays open.
    let mut read = |stream: &mut BufReader<TcpStream>, got: &mut Vec<String>, last: &mut String| {
        line.clear();
        let count = stream.read_line(&mut line).unwrap();
        if let Some(text) = line.strip_prefix("data: ") {
            got.push(text.trim().to_owned());
        } else if let Some(id) = line.strip_prefix("id: ") {
            *last = id.trim().to_owned();
        }
        count > 0 && line != "0\r\n"
    };
    while got.is_empty() {
        assert!(read(&mut stream, &mut got, &mut last));
    }
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut client = None;
            let (mut sent, mut refused) = (Vec::new(), 0);
            for number in 0..600 {
                let text = format!("message {number}");
                if number == 200 {
                    signal(Pid::from_child(&first).as_raw_nonzero().get(), Signal::HUP);
                }
                loop {
                    match publish(&mut client, addr, &text) {
                        Some(202) => break,
                        status => {
                            assert!(matches!(status, None | Some(503)), "{status:?}");
                            refused += 1;
                        }
                    }
                }
                sent.push(text);
            }
            (sent, refused)
        });
        while got.last().is_none_or(|text| text != "message 599") {
            if !read(&mut stream, &mut got, &mut last) {
                if idle.is_some() {
                    late = publish(&mut idle, addr, "late");
                    idle = None;
                }
                stream = subscribe(&last);
            }
        }
        let (sent, count) = publisher.join().unwrap();
        (accepted, refused) = (sent.len(), count);
        for text in &sent {
            assert!(got.contains(text), "{text:?} was accepted, and is lost");
        }
    });
    println!("{accepted} accepted, {refused} refused or cut off");
    assert!(matches!(late, None | Some(202 | 503)), "{late:?}");
    assert_eq!(got.contains(&"late".to_owned()), late == Some(202));
    drop(stream);
    drop(group);
    first.wait().unwrap();
}
