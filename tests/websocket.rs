//! The example `websocket`: a chat room whose clients hold no worker.
#![cfg(feature = "http")]

mod support;
#[allow(dead_code)]
#[path = "../examples/websocket.rs"]
mod websocket;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use handover::{Builder, Handle};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message, WebSocket};

use support::{LIMIT, addr, connect, connect_narrow, server, start, stop, until};
use websocket::{Limits, Room};

type Client = WebSocket<TcpStream>;

/// A room whose clients are not pinged.
fn room(builder: Builder, limits: Limits) -> Handle {
    start(builder, websocket::service(Arc::new(Room::new(limits))))
}

const NO_PING: Limits = Limits {
    message: 64 * 1024,
    unread: 256 * 1024,
    ping: Duration::MAX,
    silence: Duration::from_secs(1),
};

/// Upgrades a connection. The client is in the room afterwards.
fn enter(stream: TcpStream) -> Client {
    let config = WebSocketConfig::default().read_buffer_size(4096);
    let opened = tungstenite::client::client_with_config("ws://localhost/", stream, Some(config));
    let (mut client, _) = opened.unwrap();
    client
        .send(Message::Ping(Bytes::from_static(b"in?")))
        .unwrap();
    assert_eq!(
        client.read().unwrap(),
        Message::Pong(Bytes::from_static(b"in?"))
    );
    client
}

fn enter_at(at: SocketAddr) -> Client {
    enter(connect(at))
}

/// Reads the close, answers it, and reads the end.
#[track_caller]
fn closed_with(client: &mut Client) -> CloseCode {
    loop {
        match client.read() {
            Ok(Message::Close(Some(frame))) => {
                assert!(matches!(client.read(), Err(Error::ConnectionClosed)));
                return frame.code;
            }
            Ok(Message::Ping(_)) => {}
            other => panic!("{other:?} instead of a close"),
        }
    }
}

#[test]
fn two_thousand_idle_clients_hold_no_worker_and_all_read_what_one_says() {
    const COUNT: usize = 2000;
    let builder = server().workers(2).raise_descriptor_limit(true);
    let handle = room(builder, NO_PING);
    let at = addr(&handle);
    let mut clients: Vec<Client> = (0..COUNT).map(|_| enter_at(at)).collect();
    until(&handle, "all are parked", |stats| {
        (stats.live, stats.parked) == (2000, 2000)
    });
    let begin = Instant::now();
    for turn in 0..5 {
        let message = Message::text(format!("turn {turn}"));
        clients[turn * 100].send(message.clone()).unwrap();
        for client in &mut clients {
            assert_eq!(client.read().unwrap(), message);
        }
    }
    println!(
        "5 messages to {COUNT} clients, each read before the next: {:?}",
        begin.elapsed()
    );
    drop(clients);
    stop(&handle);
}

#[test]
fn messages_arrive_in_the_senders_order_as_text_and_as_bytes() {
    let handle = room(server().workers(2), NO_PING);
    let mut clients: Vec<Client> = (0..3).map(|_| enter_at(addr(&handle))).collect();
    for turn in 0..200 {
        let text = Message::text(format!("{turn} {}", "ü".repeat(turn)));
        clients[0].send(text).unwrap();
        clients[0]
            .send(Message::binary(vec![turn as u8; turn]))
            .unwrap();
    }
    for client in &mut clients {
        for turn in 0..200 {
            let text = format!("{turn} {}", "ü".repeat(turn));
            assert_eq!(client.read().unwrap(), Message::text(text));
            assert_eq!(
                client.read().unwrap(),
                Message::binary(vec![turn as u8; turn])
            );
        }
    }
    drop(clients);
    stop(&handle);
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_the_others_do_not_notice() {
    let handle = room(server().workers(2), NO_PING);
    let at = addr(&handle);
    let mut slow = enter(connect_narrow(at));
    let (mut speaker, mut listener) = (enter_at(at), enter_at(at));
    // Much more than the kernel and the outbox hold.
    let mut sent = 0;
    while handle.stats().live == 3 {
        assert!(sent < 10_000, "it is never dropped");
        let message = Message::binary(vec![sent as u8; 60 * 1024]);
        speaker.send(message.clone()).unwrap();
        assert_eq!(speaker.read().unwrap(), message);
        assert_eq!(listener.read().unwrap(), message);
        sent += 1;
    }
    println!("dropped after {sent} messages of 60 KiB");
    // What the kernel has is read, then the end or a reset comes.
    let end = loop {
        match slow.read() {
            Ok(Message::Binary(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "{end:?}");
    listener.send(Message::text("still here")).unwrap();
    assert_eq!(speaker.read().unwrap(), Message::text("still here"));
    assert_eq!(handle.stats().live, 2);
    drop((speaker, listener));
    stop(&handle);
}

#[test]
fn a_client_that_answers_no_ping_is_dropped_and_one_that_does_stays() {
    let ping = Duration::from_millis(300);
    let handle = room(server().workers(2), Limits { ping, ..NO_PING });
    let at = addr(&handle);
    let mut alive = enter_at(at);
    let mut dead = enter_at(at);
    let entered = Instant::now();
    let dead = std::thread::spawn(move || {
        let mut ping = [0; 2];
        dead.get_mut().read_exact(&mut ping).unwrap();
        assert_eq!(ping, [0x89, 0], "a ping");
        assert_eq!(dead.get_mut().read(&mut [0; 8]).unwrap(), 0);
        entered.elapsed()
    });
    for _ in 0..5 {
        // The answer leaves with the next read.
        assert_eq!(alive.read().unwrap(), Message::Ping(Bytes::new()));
    }
    alive.send(Message::text("still here")).unwrap();
    loop {
        match alive.read().unwrap() {
            Message::Ping(_) => {}
            message => break assert_eq!(message, Message::text("still here")),
        }
    }
    let after = dead.join().unwrap();
    assert!(after >= ping, "{after:?}");
    until(&handle, "one is left", |stats| stats.live == 1);
    alive.close(None).unwrap();
    stop(&handle);
}

#[test]
fn a_client_that_leaves_gets_its_close_back() {
    let handle = room(server().workers(2), NO_PING);
    let (mut leaves, mut stays) = (enter_at(addr(&handle)), enter_at(addr(&handle)));
    let frame = CloseFrame {
        code: CloseCode::Normal,
        reason: "bye".into(),
    };
    leaves.close(Some(frame.clone())).unwrap();
    assert_eq!(leaves.read().unwrap(), Message::Close(Some(frame)));
    assert!(matches!(leaves.read(), Err(Error::ConnectionClosed)));
    stays.send(Message::text("alone")).unwrap();
    assert_eq!(stays.read().unwrap(), Message::text("alone"));
    until(&handle, "it has left", |stats| stats.live == 1);
    drop(stays);
    stop(&handle);
}

#[test]
fn a_stop_says_1001_and_waits_for_the_answers() {
    let handle = room(server().workers(2), NO_PING);
    let mut clients: Vec<Client> = (0..50).map(|_| enter_at(addr(&handle))).collect();
    // One is in the middle of a message.
    clients[0].get_mut().write_all(&[0x81]).unwrap();
    until(&handle, "it is served", |stats| {
        (stats.active, stats.queued) == (0, 0)
    });
    handle.stop(LIMIT);
    for client in clients.iter_mut().skip(1) {
        assert_eq!(closed_with(client), CloseCode::Away);
    }
    // The rest of the message, then the answer.
    clients[0].get_mut().write_all(&[0x80, 0, 0, 0, 0]).unwrap();
    assert_eq!(closed_with(&mut clients[0]), CloseCode::Away);
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.finished, 50);
}

/// A client that has sent a message before it knows of the stop.
#[test]
fn a_message_after_the_stop_is_answered_before_the_close() {
    let silence = Duration::MAX;
    let handle = room(server().workers(2), Limits { silence, ..NO_PING });
    let mut clients = [(); 2].map(|()| enter_at(addr(&handle)));
    let before = until(&handle, "both are parked", |stats| {
        (stats.parked, stats.active) == (2, 0)
    });
    handle.stop(LIMIT);
    until(&handle, "both were called", |stats| {
        stats.served >= before.served + 2 && stats.active == 0
    });
    for speaker in 0..2 {
        let message = Message::text(format!("{speaker}"));
        clients[speaker].send(message.clone()).unwrap();
        // The first speaker has left when the second one speaks.
        for client in &mut clients[speaker..] {
            assert_eq!(client.read().unwrap(), message);
        }
        assert_eq!(closed_with(&mut clients[speaker]), CloseCode::Away);
    }
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn fragments_are_put_together_and_too_long_messages_are_refused() {
    let handle = room(server().workers(2), NO_PING);
    let (mut sender, mut reader) = (enter_at(addr(&handle)), enter_at(addr(&handle)));
    let frame = |data: &[u8], kind, is_last| {
        let data = Bytes::copy_from_slice(data);
        Message::Frame(Frame::message(data, OpCode::Data(kind), is_last))
    };
    sender.send(frame(b"one ", Data::Text, false)).unwrap();
    // A control frame may come in between (RFC 6455, section 5.4).
    sender
        .send(Message::Ping(Bytes::from_static(b"p")))
        .unwrap();
    assert_eq!(
        sender.read().unwrap(),
        Message::Pong(Bytes::from_static(b"p"))
    );
    sender.send(frame(b"two ", Data::Continue, false)).unwrap();
    sender.send(frame(b"three", Data::Continue, true)).unwrap();
    assert_eq!(reader.read().unwrap(), Message::text("one two three"));
    let longest = Message::binary(vec![7; NO_PING.message]);
    sender.send(longest.clone()).unwrap();
    assert_eq!(reader.read().unwrap(), longest);

    // Too long in one frame, and in several.
    let mut other = enter_at(addr(&handle));
    let longer = vec![7; NO_PING.message + 1];
    other.send(Message::binary(longer)).unwrap();
    assert_eq!(closed_with(&mut other), CloseCode::Size);
    let mut other = enter_at(addr(&handle));
    other
        .send(frame(&[7; 40 * 1024], Data::Binary, false))
        .unwrap();
    other
        .send(frame(&[7; 40 * 1024], Data::Continue, true))
        .unwrap();
    assert_eq!(closed_with(&mut other), CloseCode::Size);
    drop((sender, reader));
    stop(&handle);
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_why() {
    let handle = room(server().workers(2), NO_PING);
    let faults: [(&[u8], CloseCode); 3] = [
        // Not masked.
        (b"\x81\x02hi", CloseCode::Protocol),
        // A reserved opcode.
        (b"\x83\x80\x00\x00\x00\x00", CloseCode::Protocol),
        // Not UTF-8.
        (b"\x81\x81\x00\x00\x00\x00\xff", CloseCode::Invalid),
    ];
    for (bytes, code) in faults {
        let mut client = enter_at(addr(&handle));
        client.get_mut().write_all(bytes).unwrap();
        assert_eq!(closed_with(&mut client), code);
    }
    stop(&handle);
}

#[test]
fn a_request_without_an_upgrade_gets_the_page() {
    let handle = room(server().workers(2), NO_PING);
    let ask = |request: &str| {
        let mut client = connect(addr(&handle));
        client.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        response
    };
    let page = ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("new WebSocket"),
        "{page}"
    );
    let upgrade = "Connection: close, upgrade\r\nUpgrade: websocket\r\n";
    let refused = ask(&format!("GET / HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n"));
    assert!(refused.starts_with("HTTP/1.1 426 "), "{refused}");
    assert!(
        refused
            .to_ascii_lowercase()
            .contains("sec-websocket-version: 13\r\n"),
        "{refused}"
    );
    stop(&handle);
}

/// A restart of the program: its clients hear 1012, and find the successor.
#[test]
#[cfg(all(target_os = "linux", feature = "signals"))]
fn a_restart_says_1012_and_the_clients_come_back() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process, kill_process_group};

    let test = std::env::current_exe().unwrap();
    let example = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/websocket");
    if !example.exists() {
        let path = example.display();
        eprintln!("SKIPPED: {path} is not there; `cargo build --examples --all-features` makes it");
        return;
    }
    let mut first = Command::new(example)
        .args(["--listen", "127.0.0.1:0", "--workers", "2"])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let group = Pid::from_child(&first);
    let _killed_at_last = support::ProcessGroup::of(&first);
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let at: SocketAddr = lines
        .next()
        .unwrap()
        .unwrap()
        .rsplit_once('/')
        .unwrap()
        .1
        .parse()
        .unwrap();
    let mut clients: Vec<Client> = (0..20).map(|_| enter_at(at)).collect();
    kill_process(group, Signal::HUP).unwrap();
    for client in &mut clients {
        assert_eq!(closed_with(client), CloseCode::Restart);
    }
    assert!(first.wait().unwrap().success());
    let mut clients: Vec<Client> = (0..20).map(|_| enter_at(at)).collect();
    clients[0].send(Message::text("again")).unwrap();
    for client in &mut clients {
        assert_eq!(client.read().unwrap(), Message::text("again"));
    }
    // The successor is the only process of the group that is left.
    kill_process_group(group, Signal::TERM).unwrap();
    for client in &mut clients {
        assert_eq!(closed_with(client), CloseCode::Away);
    }
    let output: Vec<String> = lines.map(Result::unwrap).collect();
    let clean = output
        .iter()
        .filter(|line| line.contains("0 forced, 0 dropped"));
    assert_eq!(clean.count(), 2, "{output:?}");
}
