//! What a person reads: the output of real programs, as they start, serve, restart, fail and stop.
//!
//! Each test has its text in `tests/golden/messages`. After a change that is meant, write them again:
//! `UPDATE_GOLDEN=1 cargo test --all-features --test messages`.
//!
//! The programs are the examples and the command `handover`. `cargo test` builds the examples; `cargo test --test` does
//! not: `cargo build --examples --all-features`.
#![cfg(target_os = "linux")] // supervisors and signals

mod program;
#[path = "../support/mod.rs"]
mod support;
mod transcript;

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use handover::{
    Addr, BuildError, Bytes, Connection, Next, SendError, Server, Servers, StopSignal, Supervisor,
};
use rustix::process::Signal;

use program::{Program, Start};
use support::{answer, connect};
use transcript::Transcript;

/// A request whose body comes later. The server has answered `100 Continue` when this returns.
fn begin_upload(program: &mut Program) -> std::net::TcpStream {
    let mut client = connect(program.addr());
    write!(
        client,
        "POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    .unwrap();
    assert_eq!(answer(&mut client).trim(), "HTTP/1.1 100 Continue");
    assert_eq!(answer(&mut client).trim(), "");
    client
}

fn finish_upload(client: &mut std::net::TcpStream) {
    client.write_all(b"hello").unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.ends_with("5 bytes\n"), "{response}");
}

/// Sends a request whose answer is not waited for.
fn send(program: &mut Program, request: &str) -> std::net::TcpStream {
    let mut client = connect(program.addr());
    write!(
        client,
        "{request} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
    )
    .unwrap();
    client
}

/// A client of the demo, whose connection stays open. When it has its answer, the server handles signals.
fn greet(program: &mut Program) -> std::net::TcpStream {
    let mut client = connect(program.addr());
    greet_again(&mut client);
    client
}

fn greet_again(client: &mut std::net::TcpStream) {
    write!(client, "GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(answer(client).trim(), "HTTP/1.1 200 OK");
    while !answer(client).trim().is_empty() {}
    let mut body = [0; 13];
    client.read_exact(&mut body).unwrap();
    assert_eq!(body, *b"Hello, World!");
}

/// `main` prints the `Debug` of the error that it returns.
#[test]
fn the_debug_of_an_error_is_its_text() {
    fn check(error: &dyn Error) {
        assert_eq!(format!("{error:?}"), error.to_string());
    }
    let server = || Server::builder().listen("127.0.0.1:0");
    let close = |_: &mut Connection| -> std::io::Result<Next> { Ok(Next::Close) };
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = Server::builder().listen(other.local_addr().unwrap());
    check(&server().workers(0).build(close).unwrap_err());
    let error = in_use.build(close).unwrap_err();
    check(&error);
    let BuildError::Bind(error) = error else {
        panic!("{error}");
    };
    check(&error);
    check(&"127.0.0.1:99999".parse::<Addr>().unwrap_err());
    check(&"NOTHING".parse::<StopSignal>().unwrap_err());
    check(&Servers::new().run().unwrap_err());
    check(&Supervisor::new().run(["/no/such/program"]).unwrap_err());
    check(&SendError::Full(Bytes::from_static(b"message")));
    let handle = server().build(close).unwrap().start().unwrap();
    check(&handle.restart().unwrap_err());
    support::stop(&handle);
}

// ---- one process ----

#[test]
fn start_and_stop() {
    let mut echo = Start::example("echo").run();
    let mut client = connect(echo.addr());
    support::ask(&mut client, "hello");
    echo.signal(Signal::TERM);
    echo.end(0);
    echo.transcript().check("start_and_stop");
}

#[test]
fn sigint() {
    let mut echo = Start::example("echo").run();
    let mut client = connect(echo.addr());
    support::ask(&mut client, "hello");
    echo.signal(Signal::INT);
    echo.end(0);
    echo.transcript().check("sigint");
}

#[test]
fn port_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    let mut echo = Start::example("echo").listen(&addr).run();
    echo.end(1);
    echo.transcript().check("port_in_use");
}

/// Also for root, which may listen anywhere: the program runs as another user.
#[test]
fn no_permission() {
    let start = Start::example("echo").without_privileges();
    let closed = start.dir().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let addr = format!("unix:{}/socket", closed.display());
    let mut echo = start.listen(&addr).run();
    echo.end(1);
    echo.transcript().check("no_permission");
}

#[test]
fn bad_address() {
    let mut all = Transcript::default();
    for addr in ["127.0.0.1:99999", "127.0.0.1", "unix:"] {
        let mut echo = Start::example("echo").listen(addr).run();
        echo.end(1);
        all.add(echo.transcript());
    }
    all.check("bad_address");
}

#[test]
fn wrong_options() {
    let mut all = Transcript::default();
    for args in [
        &["--bogus"][..],
        &["--workers", "many"],
        &["--drain"],
        &["7000"],
        &["--supervised"],
    ] {
        let mut echo = Start::example("echo").args(args).run();
        echo.end(2);
        all.add(echo.transcript());
    }
    all.check("wrong_options");
}

#[test]
fn help_of_the_examples() {
    let mut all = Transcript::default();
    for name in [
        "chat",
        "demo",
        "echo",
        "embed",
        "git_daemon",
        "kv",
        "resp",
        "two_servers",
        "websocket",
        "windows_service",
    ] {
        let mut example = Start::example(name).args(&["--help"]).run();
        example.end(0);
        all.add(example.transcript());
    }
    all.check("help_of_the_examples");
}

#[test]
fn sigterm_with_work() {
    let mut demo = Start::example("demo").run();
    let mut client = begin_upload(&mut demo);
    demo.signal(Signal::TERM);
    demo.until("1 connection is open");
    finish_upload(&mut client);
    demo.end(0);
    demo.transcript().check("sigterm_with_work");
}

#[test]
fn second_sigterm() {
    let mut demo = Start::example("demo").run();
    let _client = begin_upload(&mut demo);
    demo.signal(Signal::TERM);
    demo.until("1 connection is open");
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("second_sigterm");
}

#[test]
fn hang_and_stop() {
    let mut demo = Start::example("demo").args(&["--drain", "1"]).run();
    let _wedged = send(&mut demo, "POST /wedge");
    // Connections are served in the order in which they became ready.
    let mut client = greet(&mut demo);
    for _ in 0..8 {
        greet_again(&mut client);
    }
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("hang_and_stop");
}

#[test]
fn sighup_without_restart() {
    let mut resp = Start::example("resp").run();
    let mut client = connect(resp.addr());
    // The beginning of the second request arrives with the first.
    let ping = "*1\r\n$4\r\nPING\r\n";
    let (begin, end) = ping.split_at(9);
    write!(client, "{ping}{begin}").unwrap();
    assert_eq!(answer(&mut client).trim(), "+PONG");
    resp.signal(Signal::HUP);
    resp.until("1 connection is open");
    write!(client, "{end}").unwrap();
    assert_eq!(answer(&mut client).trim(), "+PONG");
    resp.end(0);
    resp.transcript().check("sighup_without_restart");
}

#[test]
fn panic_in_a_handler() {
    let mut demo = Start::example("demo").run();
    let mut client = send(&mut demo, "GET /panic");
    client.read_to_string(&mut String::new()).unwrap();
    demo.until("panicked on worker");
    demo.kill();
    demo.transcript().check("panic_in_a_handler");
}

// ---- restarts ----

#[test]
fn restart() {
    let mut demo = Start::example("demo").run();
    let mut client = greet(&mut demo);
    demo.signal(Signal::HUP);
    demo.end(0);
    let successor = demo.successor();
    greet_again(&mut client);
    program::signal(successor, Signal::TERM);
    demo.until_closed();
    demo.transcript().check("restart");
}

#[test]
fn client_that_stays_connected() {
    let mut kv = Start::example("kv").run();
    let mut client = connect(kv.addr());
    let mut ask = |request: &str| {
        writeln!(client, "{request}").unwrap();
        answer(&mut client)
    };
    assert_eq!(ask("USE other"), "OK");
    assert_eq!(ask("SET colour dark green"), "OK");
    kv.signal(Signal::HUP);
    kv.end(0);
    let successor = kv.successor();
    assert_eq!(ask("GET colour"), "VALUE dark green");
    assert_eq!(ask("STATS"), "STATS namespace=other requests=4");
    program::signal(successor, Signal::TERM);
    kv.until_closed();
    kv.transcript().check("client_that_stays_connected");
}

#[test]
fn bad_successor() {
    let mut demo = Start::example("demo").copied().run();
    let mut client = greet(&mut demo);
    demo.break_program();
    demo.signal(Signal::HUP);
    demo.until("the restart failed");
    greet_again(&mut client);
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("bad_successor");
}

// ---- a supervisor ----

#[test]
fn hang_under_a_supervisor() {
    let args = ["--watchdog", "10", "--workers", "1"];
    let mut demo = Start::example("demo").args(&args).run();
    demo.until_count(", serves", 1);
    let _wedged = send(&mut demo, "POST /wedge");
    demo.until_count(", serves", 2);
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("hang_under_a_supervisor");
}

/// The options of `handover run`, with the demo as the program.
fn supervised() -> Start {
    Start::example("demo").copied().under(&["--notify"])
}

#[test]
fn crash_under_a_supervisor() {
    let mut demo = supervised().run();
    demo.until_count(", serves", 1);
    let mut client = send(&mut demo, "POST /crash");
    let _ = client.read_to_string(&mut String::new());
    demo.until_count(", serves", 2);
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("crash_under_a_supervisor");
}

#[test]
fn restart_under_a_supervisor() {
    let mut demo = supervised().run();
    demo.until_count(", serves", 1);
    demo.signal(Signal::HUP);
    demo.until("restarted in");
    demo.until_count("exited (", 1);
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("restart_under_a_supervisor");
}

#[test]
fn bad_successor_under_a_supervisor() {
    let mut demo = supervised().run();
    demo.until_count(", serves", 1);
    demo.break_program();
    demo.signal(Signal::HUP);
    demo.until("the restart failed");
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("bad_successor_under_a_supervisor");
}

#[test]
fn giving_up_under_a_supervisor() {
    let under = ["--notify", "--give-up-after", "2", "--backoff", "0.1..0.1"];
    let start = Start::example("demo").copied().under(&under);
    start.break_program();
    let mut demo = start.run();
    demo.end(69);
    demo.transcript().check("giving_up_under_a_supervisor");
}

#[test]
fn second_sigterm_under_a_supervisor() {
    let mut demo = supervised().run();
    demo.until_count(", serves", 1);
    let _client = begin_upload(&mut demo);
    demo.signal(Signal::TERM);
    demo.until("1 connection is open");
    demo.signal(Signal::HUP);
    demo.until("SIGHUP: too late");
    demo.signal(Signal::TERM);
    demo.end(0);
    demo.transcript().check("second_sigterm_under_a_supervisor");
}

/// The supervisor itself does not start.
#[test]
fn supervisor_that_cannot_start() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    let mut all = Transcript::default();
    for under in [&["--listen", &*addr][..], &["--control", "/proc/control"]] {
        let mut demo = Start::example("demo").under(under).run();
        demo.end(1);
        all.add(demo.transcript());
    }
    let mut demo = Start::example("demo")
        .args(&["--control", "/proc/control"])
        .run();
    demo.end(1);
    all.add(demo.transcript());
    all.check("supervisor_that_cannot_start");
}
