//! Faults stay where they are: what fails costs the connection or the listener that it belongs to, and nothing else.
#![cfg(target_os = "linux")]

mod support;

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use handover::{Connection, Next};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use support::{
    LIMIT, addr, answer, ask, connect, door, echo, lines, server, settings, socket_path, start,
    stop, unix,
};

// ---- reads that stop early ----

/// A handler of lines that waits at the door for the line `wait`.
fn lines_and_door(door: &support::Door) -> impl Fn(&mut Connection) -> io::Result<Next> + use<> {
    let door = door.clone();
    move |conn| {
        if conn.buffer() == b"wait\n" {
            door.pass();
        }
        lines(conn)
    }
}

/// Sends bytes of which the last is urgent (tcp(7)): the server gets the others only.
fn send_urgent(client: &TcpStream, bytes: &[u8]) {
    assert_eq!(
        rustix::net::send(client, bytes, SendFlags::OOB).unwrap(),
        bytes.len()
    );
}

#[test]
fn bytes_behind_urgent_data_are_served() {
    let (keeper, door) = door();
    let handle = start(server().workers(1), lines_and_door(&door));
    let mut clients: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = connect(addr(&handle));
    for _ in 0..3 {
        // All bytes arrive while the only worker is busy, so that one event reports them.
        other.write_all(b"wait\n").unwrap();
        keeper.wait();
        for client in &mut clients {
            client.write_all(b"be").unwrap();
            send_urgent(client, b"hind!");
            client.write_all(b" it\n").unwrap();
        }
        keeper.let_one_in();
        assert_eq!(answer(&mut other), "wait");
        for client in &mut clients {
            assert_eq!(answer(client), "behind it");
        }
    }
    // Urgent data alone is no message.
    for client in &mut clients {
        send_urgent(client, b"!");
        ask(client, "after");
    }
    drop((clients, other));
    stop(&handle);
}

#[test]
fn a_stop_serves_what_has_arrived_behind_urgent_data() {
    let (keeper, door) = door();
    let handle = start(server().workers(1), lines_and_door(&door));
    let mut clients: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = connect(addr(&handle));
    other.write_all(b"wait\n").unwrap();
    keeper.wait();
    for client in &mut clients {
        send_urgent(client, b"in!");
        client.write_all(b" time\n").unwrap();
    }
    handle.stop(LIMIT);
    keeper.let_one_in();
    assert_eq!(answer(&mut other), "wait");
    for client in &mut clients {
        assert_eq!(answer(client), "in time");
    }
    assert!(handle.join().is_clean());
}

/// Sends bytes together with a descriptor.
fn send_with_descriptor(client: &UnixStream, bytes: &[u8], descriptor: impl AsFd) {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(client, &parts, &mut control, SendFlags::empty());
    assert_eq!(sent.unwrap(), bytes.len());
}

#[test]
fn bytes_behind_a_descriptor_are_served_and_the_descriptor_is_closed() {
    let (keeper, door) = door();
    let (_dir, path) = socket_path();
    let builder = settings().listen(unix(&path)).workers(1);
    let handle = start(builder, lines_and_door(&door));
    let client = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..10).map(|_| client()).collect();
    for client in &mut clients {
        ask(client, "hello");
    }
    let mut other = client();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for _ in 0..3 {
        other.write_all(b"wait\n").unwrap();
        keeper.wait();
        for client in &mut clients {
            send_with_descriptor(client, b"be", &writer);
            send_with_descriptor(client, b"hind", &writer);
            client.write_all(b" it\n").unwrap();
        }
        keeper.let_one_in();
        assert_eq!(answer(&mut other), "wait");
        for client in &mut clients {
            assert_eq!(answer(client), "behind it");
        }
    }
    // The pipe has no writer left.
    drop(writer);
    let mut reader = std::fs::File::from(reader);
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    drop((clients, other));
    stop(&handle);
}

#[test]
fn all_bytes_arrive_once_through_reads_that_stop_early() {
    let (_dir, path) = socket_path();
    let builder = settings().listen("127.0.0.1:0").listen(unix(&path));
    let handle = start(builder.workers(2), echo);
    let mut tcp: Vec<_> = (0..10).map(|_| connect(addr(&handle))).collect();
    let mut local: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let file = std::fs::File::open("/dev/null").unwrap();
    for round in 0..100 {
        let part = [round as u8; 100];
        for client in &mut tcp {
            client.write_all(&part).unwrap();
            send_urgent(client, b"!");
            client.write_all(&part).unwrap();
        }
        for client in &mut local {
            client.write_all(&part).unwrap();
            send_with_descriptor(client, &part[..50], &file);
            client.write_all(&part[50..]).unwrap();
        }
        let mut all = [0; 200];
        for client in &mut tcp {
            client.read_exact(&mut all).unwrap();
            assert_eq!(all, [round as u8; 200]);
        }
        for client in &mut local {
            client.set_read_timeout(Some(LIMIT)).unwrap();
            client.read_exact(&mut all).unwrap();
            assert_eq!(all, [round as u8; 200]);
        }
    }
    drop((tcp, local));
    stop(&handle);
}
