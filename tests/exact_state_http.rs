//! State that goes to the successor without a lost change, with clients of HTTP and real processes: each request that
//! was answered is counted once.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and procfs(5)

#[path = "support/generations.rs"]
mod generations;
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use generations::*;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

/// What clients have seen.
#[derive(Default)]
struct Seen {
    ends: AtomicBool,
    answers: AtomicU64,
    connections: AtomicU64,
    /// Connections whose last answer has said that it is the last one.
    told: AtomicU64,
}

impl Seen {
    fn wait_for(&self, more: u64) {
        let wanted = self.answers.load(SeqCst) + more;
        eventually("more answers", || self.answers.load(SeqCst) >= wanted);
    }
}

/// Ends the clients, also when a test fails.
struct EndOnDrop<'a>(&'a Seen);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.ends.store(true, SeqCst);
    }
}

/// The requests that a client sends at once.
fn requests(kind: usize) -> (Vec<u8>, usize) {
    let head = |method| format!("{method} /incr HTTP/1.1\r\nHost: test\r\n");
    match kind % 3 {
        0 => ((head("GET") + "\r\n").into_bytes(), 1),
        1 => ((head("GET") + "\r\n").repeat(4).into_bytes(), 4),
        // Arrives in parts.
        _ => {
            let head = head("POST") + "Content-Length: 300000\r\n\r\n";
            let body = [b'x'; 300_000];
            ([head.as_bytes(), &body].concat(), 1)
        }
    }
}

/// Sends requests, and connects again when the server has closed the connection between two of them.
fn ask_again_and_again(addr: SocketAddr, kind: usize, seen: &Seen) {
    let (requests, count) = requests(kind);
    let mut last = 0;
    while !seen.ends.load(SeqCst) {
        let mut client = BufReader::new(support::connect(addr));
        seen.connections.fetch_add(1, SeqCst);
        'connection: while !seen.ends.load(SeqCst) {
            if client.get_mut().write_all(&requests).is_err() {
                break;
            }
            for _ in 0..count {
                let Some((count, is_last)) = answer(&mut client) else {
                    break 'connection;
                };
                assert!(count > last, "{count} after {last}");
                last = count;
                seen.answers.fetch_add(1, SeqCst);
                if is_last {
                    seen.told.fetch_add(1, SeqCst);
                    break 'connection;
                }
            }
        }
    }
}

/// The count in the next answer, and whether the answer is the last one of the connection. `None` if the connection has
/// ended before the answer.
fn answer(client: &mut BufReader<TcpStream>) -> Option<(u64, bool)> {
    match client.fill_buf() {
        Ok([]) => return None,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
        begun => assert!(begun.is_ok(), "{begun:?}"),
    }
    let (mut length, mut is_last) = (0, false);
    for line in client.lines() {
        let line = line.unwrap();
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.parse().unwrap();
        }
        is_last |= line == "Connection: close";
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    Some((String::from_utf8(body).unwrap().parse().unwrap(), is_last))
}

/// Restarts under load. Each answer is counted once.
fn count_over_restarts(options: &[(&str, &str)], clients: usize) -> Seen {
    let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(10, |n| n.parse().unwrap());
    let options = [&[("exact", "1000 20000 127.0.0.1:0")], options].concat();
    let mut generations = Generations::start(&options);
    let addr = generations.addr();
    let seen = Seen::default();
    thread::scope(|scope| {
        for kind in 0..clients {
            let seen = &seen;
            scope.spawn(move || ask_again_and_again(addr, kind, seen));
        }
        let _ends = EndOnDrop(&seen);
        for _ in 0..restarts {
            seen.wait_for(100);
            let old = generations.who();
            generations.get("/restart-later");
            generations.until("report: ");
            assert_eq!(generations.who().generation, old.generation + 1);
        }
        seen.wait_for(100);
    });
    let answers = seen.answers.load(SeqCst);
    assert_eq!(generations.get("/count"), answers.to_string());
    println!("{answers} answers");
    generations.end();
    seen
}

#[test]
fn clients_stay_connected_and_each_answer_is_counted_once() {
    let seen = count_over_restarts(&[], 9);
    assert_eq!(seen.connections.into_inner(), 9);
    assert_eq!(seen.told.into_inner(), 0);
}

/// Parts of heads, and of a request with a small body. Nobody waits for the rest.
#[test]
fn a_part_of_a_request_moves_with_its_connection() {
    let mut generations = Generations::start(&[("exact", "0 60000 127.0.0.1:0")]);
    let connect = |_| BufReader::new(support::connect(generations.addr()));
    let mut clients: Vec<_> = (0..4).map(connect).collect();
    let whole = "GET /incr HTTP/1.1\r\nHost: test\r\n\r\n";
    let head = "POST /incr HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n";
    let requests = [
        ("GET /incr HT".to_owned(), "TP/1.1\r\nHost: test\r\n\r\n"),
        (format!("{head}\r\nbo"), "dybody"),
        (format!("{head}Expect: 100-continue\r\n\r\n"), "bodybody"),
        // Behind another request.
        (
            format!("{whole}\r\nGET"),
            " /incr HTTP/1.1\r\nHost: test\r\n\r\n",
        ),
    ];
    for (client, (part, _)) in clients.iter_mut().zip(&requests) {
        client.get_mut().write_all(part.as_bytes()).unwrap();
    }
    let mut go_on = String::new();
    while !go_on.ends_with("\r\n\r\n") {
        clients[2].read_line(&mut go_on).unwrap();
    }
    assert_eq!(go_on, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(answer(&mut clients[3]), Some((1, false)));
    let old = generations.who();
    generations.get("/restart-later");
    let report = generations.until("report: ");
    assert!(report.contains("paused_for: Some("), "{report}");
    generations.until_generation(old.generation + 1);
    assert_eq!(generations.get("/count"), "1");
    for (client, (_, rest)) in clients.iter_mut().zip(&requests) {
        client.get_mut().write_all(rest.as_bytes()).unwrap();
    }
    // The new process has asked for the body once more.
    let mut again = String::new();
    while !again.ends_with("\r\n\r\n") {
        clients[2].read_line(&mut again).unwrap();
    }
    assert_eq!(again, go_on);
    for (client, count) in clients.iter_mut().zip(1..) {
        let (_, is_last) = answer(client).unwrap();
        assert!(!is_last, "{count}");
    }
    assert_eq!(generations.get("/count"), "5");
    generations.end();
}

/// The connections end before the state is exported: behind an answer that says so, or between two requests.
#[test]
fn clients_of_processes_that_move_no_connections_connect_again() {
    let seen = count_over_restarts(&[("stay", "")], 9);
    let (connections, told) = (seen.connections.into_inner(), seen.told.into_inner());
    println!("{connections} connections, {told} ended behind an answer");
    assert!(connections > 9 && told > 0, "{connections} {told}");
}
