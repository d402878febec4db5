//! Signals, with real processes: each test runs this file again as a server in a process of its own, and signals it.
#![cfg(all(unix, feature = "signals"))] // signals

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use handover::{Connection, Next};
use listening::until_refused;
use rustix::process::{Pid, Signal, kill_process};
use server_process::{Client, ServerProcess, builder, say, serve_with};
use signal_hook::consts;

#[path = "support/listening.rs"]
mod listening;
#[path = "support/server_process.rs"]
mod server_process;

#[test]
fn term_and_int_drain() {
    for signal in [Signal::TERM, Signal::INT] {
        assert_drains(signal);
    }
}

#[test]
fn a_second_term_or_int_stops_now() {
    let both = [Signal::TERM, Signal::INT];
    for (first, second) in both.into_iter().flat_map(|first| both.map(|s| (first, s))) {
        let mut server = start("run");
        let mut client = server.client();
        client.hold();
        send(&server, first);
        until_refused(server.addr);
        send(&server, second);
        assert_eq!(client.rest(), "", "{first:?}, {second:?}");
        let (status, output) = server.end();
        assert!(status.success(), "{first:?}, {second:?}: {status}");
        assert!(output.contains("1 forced"), "{output}");
    }
}

#[test]
fn quit_stops_now() {
    let mut server = start("run");
    let mut client = server.client();
    client.hold();
    send(&server, Signal::QUIT);
    assert_eq!(client.rest(), "");
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert!(output.contains("1 forced"), "{output}");
}

#[test]
fn usr1_calls_the_hook() {
    let mut server = start("run");
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    for _ in 0..3 {
        send(&server, Signal::USR1);
        server.until("hook");
        client.send("still there\n");
        assert_eq!(client.line(), "still there\n");
    }
    send(&server, Signal::TERM);
    assert!(server.end().0.success());
}

#[test]
fn without_signals_the_programs_own_handling_stays() {
    let mut server = start("own");
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    for _ in 0..3 {
        send(&server, Signal::TERM);
        server.until("the program's own");
        client.send("still there\n");
        assert_eq!(client.line(), "still there\n");
    }
    // What the program does not handle does what it does by default.
    send(&server, Signal::INT);
    let (status, _) = server.end();
    assert_eq!(status.signal(), Some(consts::SIGINT), "{status}");
}

/// Their default action would end the process in the middle of an answer.
#[test]
fn a_signal_for_a_restart_drains_a_server_that_has_none() {
    // A server that starts with SIGHUP ignored, as all do that these tests start under `nohup`, goes on ignoring it.
    let signals = match is_hangup_ignored() {
        true => &[Signal::USR2][..],
        false => &[Signal::HUP, Signal::USR2],
    };
    for &signal in signals {
        assert_drains(signal);
    }
}

/// The signal lets a request in progress end, and then the server.
#[track_caller]
fn assert_drains(signal: Signal) {
    let mut server = start("run");
    let mut client = server.client();
    client.hold();
    send(&server, signal);
    until_refused(server.addr);
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let (status, output) = server.end();
    assert!(status.success(), "{signal:?}: {status}");
    assert!(output.contains("0 forced, 0 dropped"), "{output}");
}

/// By the field SigIgn of proc_pid_status(5).
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn after_the_end_signals_have_their_default_actions() {
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let mut server = start("linger");
        server.client().hold();
        send(&server, Signal::TERM);
        server.until("returned");
        send(&server, signal);
        let (status, _) = server.end();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    }
}

#[test]
fn a_later_server_reacts_to_signals_anew() {
    let mut server = start("twice");
    for _ in 0..2 {
        let mut client = server.client();
        client.hold();
        // The first one for each of them, so that it drains.
        send(&server, Signal::INT);
        until_refused(server.addr);
        client.send("go on\n");
        assert_eq!(client.rest(), "go on\n");
        server.until("0 forced, 0 dropped");
        server.addr = server.listening();
    }
    server.client().hold();
    send(&server, Signal::TERM);
    assert!(server.end().0.success());
}

#[test]
fn all_servers_of_a_process_react() {
    let mut server = start("pair");
    let first = server.addr;
    let second = server.listening();
    let mut clients = [first, second].map(|addr| {
        let mut client = Client::new(addr);
        client.hold();
        client
    });
    send(&server, Signal::TERM);
    until_refused(first);
    until_refused(second);
    for client in &mut clients {
        client.send("go on\n");
        assert_eq!(client.rest(), "go on\n");
    }
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert_eq!(output.matches("0 forced, 0 dropped").count(), 2, "{output}");
}

#[test]
fn an_embedded_server_touches_no_signal() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::USR1] {
        let mut server = start("embedded");
        server.client().hold();
        send(&server, signal);
        let (status, _) = server.end();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
    }
}

#[test]
fn an_embedded_server_handles_signals_by_choice_until_it_has_stopped() {
    let mut server = start("embedded by choice");
    let mut client = server.client();
    client.hold();
    send(&server, Signal::USR1);
    server.until("hook");
    send(&server, Signal::TERM);
    until_refused(server.addr);
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let line = server.until("stopped in");
    assert!(line.contains("0 forced, 0 dropped"), "{line}");
    // They have their default actions again.
    send(&server, Signal::TERM);
    let (status, _) = server.end();
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
}

#[test]
fn clients_that_disappear_do_not_kill_a_program_that_dies_of_sigpipe() {
    let mut server = start("pipe");
    for what in ["write\n", "vectored\n", "park\n"] {
        let mut client = server.client();
        client.send(what);
        assert_eq!(client.line(), "here it comes\n");
        // With input unread, so that the server is told of it by a reset.
        drop(client);
        server.until("gone");
    }
    let mut client = server.client();
    client.send("hello\n");
    assert_eq!(client.line(), "hello\n");
    send(&server, Signal::TERM);
    let (status, output) = server.end();
    assert!(status.success(), "{status}: {output}");
}

// ---- the servers ----

/// Not a test: a server, when one of the tests has started it.
#[test]
fn child() {
    let Some(role) = server_process::role() else {
        return;
    };
    match role.as_str() {
        "run" => run(builder()),
        "own" => {
            let mut signals = signal_hook::iterator::Signals::new([consts::SIGTERM]).unwrap();
            thread::spawn(move || signals.forever().for_each(|_| say("the program's own")));
            run(builder().signals(false));
        }
        "linger" => {
            run(builder().drain_timeout(Duration::ZERO));
            say("returned");
            loop {
                thread::park();
            }
        }
        "twice" => (0..3).for_each(|_| run(builder())),
        "pair" => {
            let servers = [(); 2].map(|()| thread::spawn(|| run(builder())));
            servers
                .into_iter()
                .for_each(|server| server.join().unwrap());
        }
        "embedded" => {
            let handle = builder().build(serve).unwrap().start().unwrap();
            say(&format!("listening on {}", handle.local_addrs()[0]));
            loop {
                thread::park();
            }
        }
        "embedded by choice" => {
            let server = builder().signals(true).build(serve).unwrap();
            let handle = server.start().unwrap();
            say(&format!("listening on {}", handle.local_addrs()[0]));
            say(&handle.join().to_string());
            loop {
                thread::park();
            }
        }
        "pipe" => {
            let yes = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_default(consts::SIGPIPE, yes).unwrap();
            run(builder());
        }
        other => panic!("there is no server {other}"),
    }
}

fn run(builder: handover::Builder) {
    server_process::run(builder, serve);
}

/// Sends each line back, but writes until the client has gone after some.
fn serve(conn: &mut Connection) -> io::Result<Next> {
    serve_with(conn, write_for_ever)
}

fn write_for_ever(conn: &mut Connection, line: &str) -> io::Result<bool> {
    let bytes = [b'x'; 64 * 1024];
    match line {
        "write" | "vectored" => {
            conn.write_all(b"here it comes\n")?;
            let error = loop {
                let slices = [io::IoSlice::new(&bytes), io::IoSlice::new(&bytes)];
                let written = match line {
                    "write" => conn.write_all(&bytes),
                    _ => conn.write_vectored(&slices).map(drop),
                };
                if let Err(error) = written {
                    break error;
                }
            };
            say(&format!("gone: {error}"));
            // A further write finds the pipe broken, if the first error was the reset.
            for _ in 0..2 {
                let _ = conn.write_all(&bytes);
            }
            Err(error)
        }
        "park" => {
            conn.write_all(b"here it comes\n")?;
            conn.set_output_limit(64 << 20);
            conn.write_all(&vec![b'x'; 32 << 20])?;
            say("gone, or soon");
            Ok(true)
        }
        _ => Ok(false),
    }
}

// ---- the tests' side ----

fn start(role: &str) -> ServerProcess {
    ServerProcess::start(role, |_| {})
}

fn send(server: &ServerProcess, signal: Signal) {
    let pid = i32::try_from(server.pid).ok().and_then(Pid::from_raw);
    kill_process(pid.unwrap(), signal).unwrap();
}
