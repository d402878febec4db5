//! Clients that others have written, each where it is installed: curl, and slowhttptest as the enemy.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use handover::Handle;
use handover::http::{Body, Reply, Request, Response};

use support::{LIMIT, addr, bytes_at, server, stop};
use web::{Client, serve};

static PAGE: [u8; 48 * 1024] = [b'x'; 48 * 1024];

fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match request.uri().path() {
        "/echo" => match request.body_mut().read_all(1 << 24) {
            Ok(body) => Response::new(body.into()),
            Err(error) => Response::new(error.to_string().into()),
        },
        "/noread" => Response::new("not read".into()),
        "/big" => Response::new(bytes_at(0, 3 << 20).into()),
        // Within the bound up to which an answer needs no worker once it is there.
        "/page" => Response::new(PAGE.as_slice().into()),
        "/stream" => Response::new(Reply::stream(&b"in a chunk"[..])),
        path => Response::new(path.to_owned().into()),
    }
}

/// Says so if a program is not there.
fn is_there(program: &str, version: &str) -> bool {
    let mut command = Command::new(program);
    let command = command.arg(version).stdin(Stdio::null());
    let found = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("skipped: there is no {program} here");
    }
    found.is_ok()
}

/// What curl prints for these options, given this on its standard input.
#[track_caller]
fn curl(options: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--noproxy",
            "*",
        ])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = thread::spawn(move || {
        // It need not take it all.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {options:?}: {complaint}");
    output.stdout
}

#[test]
fn curl_is_served() {
    if !is_there("curl", "--version") {
        return;
    }
    let handle = serve(server(), answer);
    let url = |path: &str| format!("http://{}{path}", addr(&handle));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert_eq!(curl(&[&url("/a?b")], b""), b"/a");
    assert_eq!(curl(&["--http1.0", &url("/old")], b""), b"/old");
    assert_eq!(curl(&["--http1.0", &url("/stream")], b""), b"in a chunk");
    assert_eq!(curl(&[&url("/stream")], b""), b"in a chunk");
    assert!(curl(&[&url("/big")], b"") == bytes_at(0, 3 << 20));
    assert!(curl(&["--limit-rate", "20M", &url("/big")], b"") == bytes_at(0, 3 << 20));
    // It asks for HTTP/2 by an upgrade, which nobody has to grant.
    assert_eq!(curl(&["--http2", &url("/two")], b""), b"/two");

    let head = text(curl(&["-I", &url("/head")], b""));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Length: 5\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"));

    // Of known and of unknown length, small and large, with and without waiting for 100 Continue.
    for size in [0, 5, 3000, 70_000, 3 << 20] {
        let body = bytes_at(0, size);
        for options in [
            &["--data-binary", "@-"][..],
            &["--data-binary", "@-", "--http1.0"],
            &["-X", "POST", "-T", "-"],
            &["-X", "POST", "-T", "-", "-H", "Expect:"],
            &["--data-binary", "@-", "-H", "Expect: 100-continue"],
            &["--data-binary", "@-", "-H", "Transfer-Encoding: chunked"],
        ] {
            let echo = url("/echo");
            let options = [options, &[&echo]].concat();
            assert!(
                curl(&options, &body) == body,
                "{size} bytes with {options:?}"
            );
        }
        let noread = url("/noread");
        let answer = curl(&["-X", "POST", "-T", "-", &noread], &body);
        assert_eq!(answer, b"not read", "{size} bytes");
    }

    // It waits for the interim answer as long as one likes, so it must have come.
    let waits = ["--expect100-timeout", "50", "-H", "Expect: 100-continue"];
    let (before, echo) = (Instant::now(), url("/echo"));
    let options = [&waits[..], &["--data-binary", "hello", &echo]].concat();
    assert_eq!(curl(&options, b""), b"hello");
    assert!(before.elapsed() < Duration::from_secs(40));

    // One connection for several URLs.
    let accepted = handle.stats().accepted;
    let both = curl(
        &[&url("/one"), &url("/two"), &url("/stream"), &url("/three")],
        b"",
    );
    assert_eq!(both, b"/one/twoin a chunk/three");
    assert_eq!(handle.stats().accepted, accepted + 1);
    let three = [
        "-d",
        "a",
        &url("/echo"),
        "--next",
        "-s",
        "-I",
        &url("/b"),
        "--next",
        "-s",
        &url("/c"),
    ];
    let accepted = handle.stats().accepted;
    assert!(text(curl(&three, b"")).ends_with("\r\n\r\n/c"));
    assert_eq!(handle.stats().accepted, accepted + 1);
    stop(&handle);
}

/// Runs slowhttptest with these options, and asserts that all the while good clients are served at once.
fn besieged(options: &[&str]) {
    // No clean-up here needs it, and it would kill what it still holds in vain.
    struct Enemy(Child);
    impl Drop for Enemy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    if !is_there("slowhttptest", "-h") {
        return;
    }
    let handle = serve(server().workers(2), answer);
    let url = format!("http://{}/page", addr(&handle));
    let dir = tempfile::tempdir().unwrap();
    let enemy = Command::new("slowhttptest")
        .args(["-c", "300", "-r", "300", "-l", "6", "-p", "3", "-u", &url])
        .args(options)
        .current_dir(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut enemy = Enemy(enemy);
    let started = Instant::now();
    let mut kept = Client::to(&handle);
    let (mut count, mut slowest, mut most) = (0, Duration::ZERO, 0);
    while enemy.0.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < 2 * LIMIT, "slowhttptest does not end");
        let before = Instant::now();
        kept.get("/kept").is(200, "/kept");
        Client::to(&handle).get("/new").is(200, "/new");
        slowest = slowest.max(before.elapsed());
        most = most.max(handle.stats().live);
        count += 2;
    }
    println!("{options:?}: {count} requests beside {most} connections, slowest pair {slowest:?}");
    assert!(
        most > 200,
        "slowhttptest did not attack: {most} connections"
    );
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    end(handle);
}

fn end(handle: Handle) {
    // What the enemy left open has nothing to say.
    handle.stop(Duration::from_secs(1));
    handle.join();
}

#[test]
fn slow_heads_leave_others_served() {
    besieged(&["-H", "-i", "1"]);
}

#[test]
fn slow_bodies_leave_others_served() {
    besieged(&["-B", "-i", "1", "-s", "8192"]);
}

#[test]
fn slow_readers_leave_others_served() {
    besieged(&[
        "-X", "-k", "5", "-w", "256", "-y", "512", "-n", "1", "-z", "32",
    ]);
}
