//! The settings: their defaults, and their extremes. A table names every setter that takes a number or a time, and what
//! becomes of a server with each extreme value: it serves a request and stops, or it is refused with the setting's name.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use handover::{Bind, Builder, Connection, Next, Overload, Restart, Server};

use support::{Child, as_child, connect};

/// A balancer that keeps idle connections for 60 s, as most do by default, has to close them first.
#[test]
fn the_default_idle_timeout_outlasts_what_balancers_keep() {
    let server = Server::builder().listen("127.0.0.1:0").build(lines);
    let text = format!("{:?}", server.unwrap());
    assert!(text.contains("idle_timeout: 75s"), "{text}");
}

/// What a case changes.
enum Change {
    Builder(fn(Builder) -> Builder),
    Bind(fn(Bind) -> Bind),
    Restart(fn(Restart) -> Restart),
    Connection(fn(&mut Connection)),
    #[cfg(feature = "http")]
    Http(fn(HttpService) -> HttpService),
}

/// What becomes of a server.
enum Outcome {
    Serves,
    /// The error of the build is this.
    Refused(&'static str),
}

use Change::{Bind as B, Builder as S, Connection as C, Restart as R};
use Outcome::{Refused, Serves};

const MAX: Duration = Duration::MAX;
const ZERO: Duration = Duration::ZERO;
/// Nearly as long as a time can be: sums with it overflow in other places.
const AGES: Duration = Duration::from_millis(u64::MAX - 1);

/// The error for a time that must not be zero.
macro_rules! no_time {
    ($name:literal) => {
        Refused(concat!(
            $name,
            " must be more than zero (Duration::MAX is no limit)"
        ))
    };
}

fn cases() -> Vec<(&'static str, Change, Outcome)> {
    #[cfg_attr(not(feature = "http"), allow(unused_mut))]
    let mut cases = vec![
        (
            "Builder::workers",
            S(|b| b.workers(0)),
            Refused("workers must be at least 1"),
        ),
        ("Builder::workers", S(|b| b.workers(1)), Serves),
        (
            "Builder::workers",
            S(|b| b.workers(32_769)),
            Refused("workers must be at most 32768"),
        ),
        (
            "Builder::workers",
            S(|b| b.workers(usize::MAX)),
            Refused("workers must be at most 32768"),
        ),
        (
            "Builder::worker_groups",
            S(|b| b.worker_groups(0)),
            Refused("worker_groups must be at least 1"),
        ),
        ("Builder::worker_groups", S(|b| b.worker_groups(1)), Serves),
        (
            "Builder::worker_groups",
            S(|b| b.worker_groups(usize::MAX)),
            Serves,
        ),
        (
            "Builder::queue",
            S(|b| b.queue(0)),
            Refused("queue must be at least 1"),
        ),
        ("Builder::queue", S(|b| b.queue(1)), Serves),
        ("Builder::queue", S(|b| b.queue(usize::MAX)), Serves),
        (
            "Builder::queue",
            S(|b| b.queue(usize::MAX).overload(Overload::Refuse(Vec::new()))),
            Serves,
        ),
        ("Builder::queue", S(|b| b.queue(usize::MAX / 2 - 1)), Serves),
        (
            "Builder::stack_size",
            S(|b| b.stack_size(0)),
            Refused("stack_size must be at least 131072"),
        ),
        (
            "Builder::stack_size",
            S(|b| b.stack_size(1)),
            Refused("stack_size must be at least 131072"),
        ),
        ("Builder::stack_size", S(|b| b.stack_size(131_072)), Serves),
        #[cfg(target_pointer_width = "64")]
        (
            "Builder::stack_size",
            S(|b| b.stack_size(usize::MAX)),
            Refused("stack_size must be at most 17592186044415"),
        ),
        (
            "Builder::max_connections",
            S(|b| b.max_connections(0)),
            Refused("max_connections must be at least 1"),
        ),
        (
            "Builder::max_connections",
            S(|b| b.max_connections(1)),
            Serves,
        ),
        (
            "Builder::max_connections",
            S(|b| b.max_connections(usize::MAX)),
            Serves,
        ),
        (
            "Builder::max_connections",
            S(|b| b.max_connections(usize::MAX).overload(Overload::ShedIdle)),
            Serves,
        ),
        (
            "Builder::max_per_client",
            S(|b| b.max_per_client(0)),
            Refused("max_per_client must be at least 1"),
        ),
        (
            "Builder::max_per_client",
            S(|b| b.max_per_client(1)),
            Serves,
        ),
        (
            "Builder::max_per_client",
            S(|b| b.max_per_client(usize::MAX)),
            Serves,
        ),
        (
            "Builder::queue_timeout",
            S(|b| b.queue_timeout(ZERO)),
            no_time!("queue_timeout"),
        ),
        (
            "Builder::queue_timeout",
            S(|b| b.queue_timeout(AGES)),
            Serves,
        ),
        (
            "Builder::queue_timeout",
            S(|b| b.queue_timeout(MAX)),
            Serves,
        ),
        (
            "Builder::first_byte_timeout",
            S(|b| b.first_byte_timeout(ZERO)),
            no_time!("first_byte_timeout"),
        ),
        (
            "Builder::first_byte_timeout",
            S(|b| b.first_byte_timeout(AGES)),
            Serves,
        ),
        (
            "Builder::first_byte_timeout",
            S(|b| b.first_byte_timeout(MAX)),
            Serves,
        ),
        (
            "Builder::idle_timeout",
            S(|b| b.idle_timeout(ZERO)),
            no_time!("idle_timeout"),
        ),
        ("Builder::idle_timeout", S(|b| b.idle_timeout(AGES)), Serves),
        ("Builder::idle_timeout", S(|b| b.idle_timeout(MAX)), Serves),
        (
            "Builder::read_timeout",
            S(|b| b.read_timeout(ZERO)),
            no_time!("read_timeout"),
        ),
        ("Builder::read_timeout", S(|b| b.read_timeout(AGES)), Serves),
        ("Builder::read_timeout", S(|b| b.read_timeout(MAX)), Serves),
        (
            "Builder::write_timeout",
            S(|b| b.write_timeout(ZERO)),
            no_time!("write_timeout"),
        ),
        (
            "Builder::write_timeout",
            S(|b| b.write_timeout(AGES)),
            Serves,
        ),
        (
            "Builder::write_timeout",
            S(|b| b.write_timeout(MAX)),
            Serves,
        ),
        ("Builder::min_rate", S(|b| b.min_rate(0)), Serves),
        ("Builder::min_rate", S(|b| b.min_rate(u32::MAX)), Serves),
        (
            "Builder::input_limit",
            S(|b| b.input_limit(0)),
            Refused("input_limit must be at least 1"),
        ),
        (
            "Builder::input_limit",
            S(|b| b.input_limit(usize::MAX)),
            Serves,
        ),
        ("Builder::output_limit", S(|b| b.output_limit(0)), Serves),
        (
            "Builder::output_limit",
            S(|b| b.output_limit(usize::MAX)),
            Serves,
        ),
        (
            "Builder::drain_timeout",
            S(|b| b.drain_timeout(ZERO)),
            Serves,
        ),
        (
            "Builder::drain_timeout",
            S(|b| b.drain_timeout(AGES)),
            Serves,
        ),
        (
            "Builder::drain_timeout",
            S(|b| b.drain_timeout(MAX)),
            Serves,
        ),
        (
            "Builder::stuck_after",
            S(|b| b.stuck_after(ZERO)),
            no_time!("stuck_after"),
        ),
        ("Builder::stuck_after", S(|b| b.stuck_after(MAX)), Serves),
        ("Bind::backlog", B(|b| b.backlog(0)), Serves),
        ("Bind::backlog", B(|b| b.backlog(u32::MAX)), Serves),
        ("Bind::keepalive", B(|b| b.keepalive(ZERO)), Serves),
        ("Bind::keepalive", B(|b| b.keepalive(MAX)), Serves),
        ("Bind::fast_open", B(|b| b.fast_open(0)), Serves),
        ("Bind::fast_open", B(|b| b.fast_open(u32::MAX)), Serves),
        ("Bind::bind_attempts", B(|b| b.bind_attempts(0)), Serves),
        (
            "Bind::bind_attempts",
            B(|b| b.bind_attempts(u32::MAX)),
            Serves,
        ),
        ("Bind::bind_interval", B(|b| b.bind_interval(ZERO)), Serves),
        ("Bind::bind_interval", B(|b| b.bind_interval(MAX)), Serves),
        ("Bind::unix_mode", B(|b| b.unix_mode(0)), Serves),
        ("Bind::unix_mode", B(|b| b.unix_mode(u32::MAX)), Serves),
        (
            "Restart::ready_timeout",
            R(|r| r.ready_timeout(ZERO)),
            no_time!("ready_timeout"),
        ),
        (
            "Restart::ready_timeout",
            R(|r| r.ready_timeout(MAX)),
            Serves,
        ),
        (
            "Restart::pause_limit",
            R(|r| r.pause_limit(ZERO)),
            no_time!("pause_limit"),
        ),
        ("Restart::pause_limit", R(|r| r.pause_limit(MAX)), Serves),
        ("Restart::idle_grace", R(|r| r.idle_grace(ZERO)), Serves),
        ("Restart::idle_grace", R(|r| r.idle_grace(MAX)), Serves),
        ("Restart::max_draining", R(|r| r.max_draining(0)), Serves),
        (
            "Restart::max_draining",
            R(|r| r.max_draining(usize::MAX)),
            Serves,
        ),
        // With zero, what has not arrived is too late; the message of the test arrives in one piece.
        (
            "Connection::set_read_timeout",
            C(|c| c.set_read_timeout(MAX)),
            Serves,
        ),
        (
            "Connection::set_write_timeout",
            C(|c| c.set_write_timeout(ZERO)),
            Serves,
        ),
        (
            "Connection::set_write_timeout",
            C(|c| c.set_write_timeout(MAX)),
            Serves,
        ),
        (
            "Connection::set_idle_timeout",
            C(|c| c.set_idle_timeout(ZERO)),
            Serves,
        ),
        (
            "Connection::set_idle_timeout",
            C(|c| c.set_idle_timeout(AGES)),
            Serves,
        ),
        (
            "Connection::set_idle_timeout",
            C(|c| c.set_idle_timeout(MAX)),
            Serves,
        ),
        ("Connection::set_min_rate", C(|c| c.set_min_rate(0)), Serves),
        (
            "Connection::set_min_rate",
            C(|c| c.set_min_rate(u32::MAX)),
            Serves,
        ),
        (
            "Connection::set_read_deadline",
            C(|c| c.set_read_deadline(None)),
            Serves,
        ),
        (
            "Connection::set_read_deadline",
            C(|c| c.set_read_deadline(Some(far_away()))),
            Serves,
        ),
        (
            "Connection::set_write_deadline",
            C(|c| c.set_write_deadline(Some(Instant::now()))),
            Serves,
        ),
        (
            "Connection::set_write_deadline",
            C(|c| c.set_write_deadline(Some(far_away()))),
            Serves,
        ),
        (
            "Connection::set_output_limit",
            C(|c| c.set_output_limit(0)),
            Serves,
        ),
        (
            "Connection::set_output_limit",
            C(|c| c.set_output_limit(usize::MAX)),
            Serves,
        ),
    ];
    #[cfg(feature = "http")]
    cases.extend(http_cases());
    cases
}

/// The last instant that this system can express, to the second.
fn far_away() -> Instant {
    let now = Instant::now();
    let seconds = (0..64).rev().fold(0, |seconds: u64, bit| {
        let longer = seconds | 1 << bit;
        now.checked_add(Duration::from_secs(longer))
            .map_or(seconds, |_| longer)
    });
    now + Duration::from_secs(seconds)
}

#[cfg(feature = "http")]
use handover::http::{self, Body, Http, Request, Response};

#[cfg(feature = "http")]
type HttpService = Http<fn(&mut Request<Body<'_>>) -> Response<Vec<u8>>>;

#[cfg(feature = "http")]
fn http_cases() -> Vec<(&'static str, Change, Outcome)> {
    use Change::Http as H;
    let above = |text| Refused(text);
    vec![
        ("Http::small_body", H(|h| h.small_body(0)), Serves),
        ("Http::small_body", H(|h| h.small_body(usize::MAX)), Serves),
        ("Http::max_spooled", H(|h| h.max_spooled(0)), Serves),
        ("Http::max_spooled", H(|h| h.max_spooled(u64::MAX)), Serves),
        ("Http::max_body", H(|h| h.max_body(8)), Serves),
        ("Http::max_body", H(|h| h.max_body(u64::MAX)), Serves),
        (
            "Http::max_request_line",
            H(|h| h.max_request_line(0)),
            Refused("max_request_line must be at least 1"),
        ),
        (
            "Http::max_request_line",
            H(|h| h.max_request_line(usize::MAX)),
            Serves,
        ),
        (
            "Http::max_head",
            H(|h| h.max_head(0)),
            Refused("max_head must be at least 1"),
        ),
        ("Http::max_head", H(|h| h.max_head(1 << 20)), Serves),
        #[cfg(target_pointer_width = "64")]
        (
            "Http::max_head",
            H(|h| h.max_head(usize::MAX)),
            above("max_head (18446744073709551615) must not be above input_limit (1048576)"),
        ),
        ("Http::max_fields", H(|h| h.max_fields(usize::MAX)), Serves),
        (
            "Http::abandoned_after",
            H(|h| h.abandoned_after(ZERO)),
            Serves,
        ),
        (
            "Http::abandoned_after",
            H(|h| h.abandoned_after(MAX)),
            Serves,
        ),
    ]
}

/// Answers a line with its length, by the reads that take a limit.
fn lines(conn: &mut Connection) -> io::Result<Next> {
    let mut line = String::new();
    match conn.buffer().starts_with(b"wait") {
        true => drop(conn.read_line_limited(usize::MAX, &mut line)?),
        false => match conn.take_line(usize::MAX)? {
            Some(taken) => line = taken,
            None => {
                return Ok(if conn.at_eof() {
                    Next::Close
                } else {
                    Next::More
                });
            }
        },
    }
    writeln!(conn, "{}", line.trim_end().len())?;
    Ok(Next::Park)
}

/// Builds a server with the change, and has it serve clients and stop.
fn outcome_of(change: &Change) -> Result<(), String> {
    let mut bind = Bind::new("127.0.0.1:0");
    if let B(change) = change {
        bind = change(bind);
    }
    let mut builder = Server::builder().workers(2).listen(bind);
    match change {
        S(change) => builder = change(builder),
        // A successor is not started: tests/supervisor and tests/restart do that.
        R(change) if cfg!(target_os = "linux") => {
            builder = builder.restart(change(Restart::inherit().unwrap()));
        }
        _ => {}
    }
    #[cfg(feature = "http")]
    if let Change::Http(change) = change {
        let handler: fn(&mut Request<Body<'_>>) -> Response<Vec<u8>> =
            |request| Response::new(request.body_mut().read_all(usize::MAX).unwrap());
        let service = change(http::service(handler));
        let handle = builder.build(service).map_err(|error| error.to_string())?;
        let request = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
        return serve_and_stop(handle.start().unwrap(), request, "\r\n\r\nhello");
    }
    let set = match change {
        C(set) => *set,
        _ => |_: &mut Connection| {},
    };
    let service = move |conn: &mut Connection| {
        set(conn);
        lines(conn)
    };
    let server = builder.build(service).map_err(|error| error.to_string())?;
    serve_and_stop(server.start().unwrap(), "hello\n", "5\n")
}

fn serve_and_stop(handle: handover::Handle, request: &str, answer: &str) -> Result<(), String> {
    let addr = handle.local_addrs()[0].as_ip().unwrap();
    let read = |from: &mut dyn Read| {
        let mut read = Vec::new();
        while !read.ends_with(answer.as_bytes()) {
            let mut byte = [0];
            let count = from
                .read(&mut byte)
                .unwrap_or_else(|error| panic!("only {read:?}: {error}"));
            assert_eq!(count, 1, "only {read:?}");
            read.extend(byte);
        }
    };
    let mut client = connect(addr);
    client.write_all(request.as_bytes()).unwrap();
    read(&mut client);
    // Some cases allow one connection only, or close a connection that is idle.
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    // In two pieces, and open while the server stops: the limit of what a drain reads counts, too.
    let mut client = connect(addr);
    client
        .write_all(&request.as_bytes()[..request.len() - 1])
        .unwrap();
    support::until(&handle, "the second client is accepted", |stats| {
        stats.accepted == 2
    });
    client
        .write_all(&request.as_bytes()[request.len() - 1..])
        .unwrap();
    read(&mut client);
    handle.stop(Duration::MAX);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    Ok(())
}

#[test]
fn every_extreme_serves_or_is_refused_by_name() {
    for (index, (name, change, outcome)) in cases().iter().enumerate() {
        // Restarts are for Unix.
        if cfg!(windows) && matches!(change, R(_)) {
            continue;
        }
        println!("{name}, case {index}");
        let found = match change {
            R(_) => outcome_in_a_process(index),
            _ => outcome_of(change),
        };
        let expected = match outcome {
            Serves => Ok(()),
            Refused(error) => Err((*error).to_owned()),
        };
        assert_eq!(found, expected, "{name}, case {index}");
    }
}

/// A process has one `Restart`.
fn outcome_in_a_process(case: usize) -> Result<(), String> {
    let mut child = Child::of("child");
    let outcome = child.ask(&case.to_string());
    child.end();
    match outcome.strip_prefix("refused: ") {
        Some(error) => Err(error.to_owned()),
        None => Ok(()),
    }
}

/// Not a test: a server with a `Restart`, when the test above has started it.
#[test]
fn child() {
    let Some(parent) = as_child("child") else {
        return;
    };
    let case: usize = parent.hear().unwrap().parse().unwrap();
    match outcome_of(&cases()[case].1) {
        Ok(()) => parent.say("serves"),
        Err(error) => parent.say(format!("refused: {error}")),
    }
}

/// An error of the system names the setting as well.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[cfg(feature = "signals")]
#[test]
fn an_event_prefix_that_is_not_valid_is_named() {
    for prefix in ["", r"Local\", r"Session\shop", r"Global\a\b"] {
        let builder = handover::Server::builder()
            .listen("127.0.0.1:0")
            .event_prefix(prefix);
        let error = builder.build(lines).unwrap_err().to_string();
        assert!(
            error.starts_with("event_prefix must be a name without a backslash"),
            "{error}"
        );
        assert!(error.ends_with(&format!("{prefix:?}")), "{error}");
    }
    let builder = handover::Server::builder().listen("127.0.0.1:0");
    builder.event_prefix(r"Global\shop").build(lines).unwrap();
}

#[test]
fn a_stack_that_the_system_refuses_is_named() {
    let builder = support::server().workers(16).stack_size((1 << 44) - 1);
    let error = builder.build(lines).unwrap().start().unwrap_err();
    assert!(
        error.to_string().contains("stack_size of 17592186044415"),
        "{error}"
    );
}

/// A bind that is never repeated too often, and never waits too long.
#[test]
fn an_address_in_use_is_tried_as_often_as_the_extremes_say() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = || Bind::from(other.local_addr().unwrap());
    let once = bind()
        .bind_attempts(0)
        .bind_interval(MAX)
        .bind()
        .unwrap_err();
    assert_eq!(once.attempts(), 1);
    let often = bind()
        .bind_attempts(100)
        .bind_interval(ZERO)
        .bind()
        .unwrap_err();
    assert_eq!(often.attempts(), 100);
}

// ---- the table is complete ----

/// The setters that take a number or a time, as `Type::name`, in all files below `dir`.
fn setters(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            setters(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            setters_of(&fs::read_to_string(&path).unwrap(), found);
        }
    }
}

fn setters_of(text: &str, found: &mut BTreeSet<String>) {
    const NUMBERS: [&str; 8] = [
        "usize", "u64", "u32", "u16", "u8", "i32", "Duration", "Instant",
    ];
    let mut of = "";
    for (start, line) in text.lines().scan(0, |at, line| {
        *at += line.len() + 1;
        Some((*at - line.len() - 1, line))
    }) {
        if let Some(rest) = line.strip_prefix("impl") {
            of = type_of(rest);
        }
        let Some(rest) = line.trim_start().strip_prefix("pub fn ") else {
            continue;
        };
        let name = rest.split(['(', '<']).next().unwrap();
        let signature = text[start..].split(['{', ';']).next().unwrap();
        let parameters = signature.split("->").next().unwrap();
        let is_by_value = parameters.contains("self,") && !parameters.contains('&');
        let is_setter = is_by_value && signature.contains("-> Self")
            || name.starts_with("set_") && parameters.contains("&mut self,");
        let is_hook = parameters.contains("Fn(");
        if is_setter && !is_hook && NUMBERS.iter().any(|number| parameters.contains(number)) {
            found.insert(format!("{of}::{name}"));
        }
    }
}

/// The name of the type in the line of an `impl`, behind that word.
fn type_of(rest: &str) -> &str {
    let mut depth = 0;
    let generics_end = rest.char_indices().find(|(_, char)| {
        depth += i32::from(*char == '<') - i32::from(*char == '>');
        depth == 0
    });
    let rest = &rest[generics_end.map_or(0, |(at, char)| at + char.len_utf8())..];
    let name = rest.split(" for ").last().unwrap().trim_start();
    name.split(|char: char| !char.is_alphanumeric())
        .next()
        .unwrap()
}

#[test]
fn the_table_names_every_setter_of_a_number() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = BTreeSet::new();
    setters(&root.join("src"), &mut all);
    // The text of an event, which is no setting of a server: tests/http_push.rs.
    all.remove("Event::retry");
    let (of_supervisor, others): (BTreeSet<_>, BTreeSet<_>) = all
        .into_iter()
        .partition(|name| name.starts_with("Supervisor::"));
    let listed: BTreeSet<_> = cases().iter().map(|case| case.0.to_owned()).collect();
    let others: BTreeSet<_> = others
        .into_iter()
        .filter(|name| cfg!(feature = "http") || !name.starts_with("Http::"))
        .collect();
    assert_eq!(others, listed, "left: setters in src, right: the table");
    // A supervisor needs a process of its own: tests/supervisor has one with all extremes.
    let helper = fs::read_to_string(root.join("tests/support/generations.rs")).unwrap();
    assert!(of_supervisor.len() >= 9, "{of_supervisor:?}");
    for name in of_supervisor {
        let call = format!("supervisor.{}(", name.trim_start_matches("Supervisor::"));
        assert!(helper.contains(&call), "no trial sets {name}");
    }
}

#[test]
fn setters_are_found_in_source_text() {
    let text = "impl<H> Http<H> {\n    pub fn a(mut self, n: usize) -> Self {}\n    pub fn no(mut self, on: bool) -> Self {}\n}\n\
        impl Connection {\n    pub fn set_b(\n        &mut self,\n        time: Duration,\n    ) {}\n    pub fn take(&mut self, n: usize) {}\n}\n\
        impl Default for Supervisor {}\nimpl Supervisor {\n    pub fn c(mut self, t: impl Into<Option<Duration>>) -> Self {}\n}\n\
        impl<'a, T: Clone> From<T> for Own<'a, T> {\n    pub fn d(mut self, n: u8) -> Self {}\n}\n";
    let mut found = BTreeSet::new();
    setters_of(text, &mut found);
    let expected = ["Connection::set_b", "Http::a", "Own::d", "Supervisor::c"];
    assert_eq!(found, expected.map(String::from).into());
}
