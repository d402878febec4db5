//! The limit of open descriptors, with real processes: the start of a server raises the limit, and child processes get
//! the old one back.

#![cfg(all(target_os = "linux", feature = "http", feature = "signals"))] // RLIMIT_NOFILE

#[path = "support/generations.rs"]
mod generations;
mod support;

use std::io::{self, Write};
use std::process::Command;
use std::thread;

use handover::{Builder, Connection, Next, Server, restore_descriptor_limit};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use generations::{Generations, signal};
use support::{Child, Parent, answer, as_child, connect, keep_log, logged, wait_logged};

/// The soft limit that the processes here start with.
const SOFT: u64 = 300;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

/// Sets the soft limit of this process, which its children inherit. Returns the hard limit.
fn lower_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(SOFT);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    maximum.expect("the tests run with a hard limit")
}

/// Answers a line with the limit of this process, or of a child of its own.
fn limits(conn: &mut Connection) -> io::Result<Next> {
    let Some(line) = conn.take_line(100)? else {
        return Ok(Next::More);
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn"]);
    let limit = match &*line {
        "own" => getrlimit(Resource::Nofile).current.unwrap().to_string(),
        "child" => String::from_utf8_lossy(&shell.output()?.stdout)
            .trim()
            .to_owned(),
        "restored child" => {
            let output = restore_descriptor_limit(&mut shell).output()?;
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        // As an application that knows what it needs.
        "lower" => {
            lower_limit();
            String::new()
        }
        other => panic!("what is {other}?"),
    };
    writeln!(conn, "{limit}")?;
    Ok(Next::Park)
}

/// The builder of a server in a process of its own, with the soft limit lowered.
fn builder() -> Builder {
    keep_log();
    lower_limit();
    Server::builder().listen("127.0.0.1:0")
}

/// In the child: runs a server until its parent says no more, and asks it for the limits.
fn run(parent: &Parent, builder: Builder) {
    let server = builder.build(limits).unwrap();
    let addr = server.local_addrs()[0].as_ip().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run().unwrap());
        let mut client = connect(addr);
        while let Some(wish) = parent.hear() {
            writeln!(client, "{wish}").unwrap();
            parent.say(answer(&mut client));
        }
        drop(client);
        signal(std::process::id() as i32, Signal::TERM);
        assert!(running.join().unwrap().is_clean());
    });
}

fn hard_limit() -> String {
    getrlimit(Resource::Nofile).maximum.unwrap().to_string()
}

#[test]
fn a_run_raises_the_limit_and_its_commands_can_have_the_old_one() {
    const TEST: &str = "a_run_raises_the_limit_and_its_commands_can_have_the_old_one";
    if let Some(parent) = as_child(TEST) {
        return run(&parent, builder());
    }
    let mut child = Child::of(TEST);
    assert_eq!(child.ask("own"), hard_limit());
    assert_eq!(child.ask("child"), hard_limit());
    assert_eq!(child.ask("restored child"), SOFT.to_string());
    assert_eq!(child.ask("own"), hard_limit());
    // What other code has set since then is not undone.
    child.ask("lower");
    assert_eq!(child.ask("restored child"), SOFT.to_string());
    child.end();
}

#[test]
fn a_run_can_leave_the_limit_alone() {
    const TEST: &str = "a_run_can_leave_the_limit_alone";
    if let Some(parent) = as_child(TEST) {
        return run(&parent, builder().raise_descriptor_limit(false));
    }
    let mut child = Child::of(TEST);
    for wish in ["own", "child", "restored child"] {
        assert_eq!(child.ask(wish), SOFT.to_string(), "{wish}");
    }
    child.end();
}

#[test]
fn an_embedded_server_raises_the_limit_only_if_it_is_told_to() {
    const TEST: &str = "an_embedded_server_raises_the_limit_only_if_it_is_told_to";
    let Some(parent) = as_child(TEST) else {
        let child = Child::of(TEST);
        assert_eq!(child.hear(), SOFT.to_string());
        assert_eq!(child.hear(), SOFT.to_string());
        assert_eq!(child.hear(), hard_limit());
        return child.end();
    };
    let own = || getrlimit(Resource::Nofile).current.unwrap();
    let handle = support::start(builder().max_connections(100), limits);
    parent.say(own());
    support::stop(&handle);
    assert!(logged("max_connections is").is_empty());
    let scoped = builder().build(limits).unwrap();
    scoped.run_scoped(|_| parent.say(own())).unwrap();
    // There are more connections than descriptors now. This is a warning if the application has set their number.
    let built = builder().max_connections(70_000).build(limits).unwrap();
    built.run_scoped(|_| ()).unwrap();
    for (start, level) in [
        ("max_connections is 65536", log::Level::Info),
        ("max_connections is 70000", log::Level::Warn),
    ] {
        let record = wait_logged(start);
        let text = "may open only 300 descriptors";
        assert!(
            record.level == level && record.text.contains(text),
            "{record:?}"
        );
    }
    let handle = support::start(builder().raise_descriptor_limit(true), limits);
    parent.say(own());
    support::stop(&handle);
}

/// A successor raises the limit itself, from where its predecessor had found it.
#[test]
fn every_generation_starts_with_the_old_limit() {
    let expected = format!("{SOFT} {}", hard_limit());
    let generations = Generations::start(&[("soft-limit", &SOFT.to_string())]);
    for _ in 0..2 {
        assert_eq!(generations.get("/descriptors"), expected);
        generations.restart();
    }
    assert_eq!(generations.get("/descriptors"), expected);
}
