//! The example `chat`: a chat room with a line protocol.

#[allow(dead_code)]
#[path = "../examples/chat.rs"]
mod chat;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use handover::{Bind, Handle};

use support::{LIMIT, addr, answer, connect, connect_narrow, settings, start, stop, until};

fn room() -> Handle {
    let first = Bind::new("127.0.0.1:0").speaks_first(true);
    start(settings().listen(first).workers(2), chat::Chat::default())
}

/// A client that is in the room.
fn enter(handle: &Handle, stream: TcpStream) -> (String, TcpStream) {
    let mut client = stream;
    let own = client.local_addr().unwrap().to_string();
    assert_eq!(answer(&mut client), format!("you are {own}"));
    assert!(handle.stats().live > 0);
    (own, client)
}

fn say(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).unwrap();
}

#[test]
fn all_read_what_one_says_and_no_silent_client_holds_a_worker() {
    let handle = room();
    let mut clients: Vec<_> = (0..100)
        .map(|_| enter(&handle, connect(addr(&handle))))
        .collect();
    until(&handle, "all are parked", |stats| stats.parked == 100);
    for turn in 0..10 {
        let (name, client) = &mut clients[turn * 7];
        let line = format!("{name}: turn {turn}");
        // In two pieces.
        say(client, "tu");
        say(client, &format!("rn {turn}\n"));
        for (_, client) in &mut clients {
            assert_eq!(answer(client), line);
        }
    }
    drop(clients);
    stop(&handle);
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let handle = room();
    let (_, slow) = enter(&handle, connect_narrow(addr(&handle)));
    let (name, mut client) = enter(&handle, connect(addr(&handle)));
    let text = "x".repeat(1000);
    let mut turns = 0;
    while handle.stats().live == 2 {
        assert!(turns < 100_000, "it is never dropped");
        say(&mut client, &format!("{text}\n"));
        // In one piece: byte by byte, this takes minutes where a system call takes long.
        let mut line = vec![0; name.len() + 2 + text.len() + 1];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line.last(), Some(&b'\n'));
        turns += 1;
    }
    drop((slow, client));
    stop(&handle);
}

#[test]
fn a_stop_says_goodbye() {
    let handle = room();
    let mut clients: Vec<_> = (0..10)
        .map(|_| enter(&handle, connect(addr(&handle))))
        .collect();
    until(&handle, "all are parked", |stats| stats.parked == 10);
    handle.stop(LIMIT);
    for (_, client) in &mut clients {
        assert_eq!(answer(client), "goodbye");
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    }
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}
