//! The two echo servers. Both announce their address on the standard output and serve until they are killed.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use handover::{Bind, Connection, Next, Server};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Result;
use super::process::announce;

/// The limit: what the kernel charges for an echo, and next to nothing on top of it.
pub(super) fn epoll() -> Result<()> {
    const LISTENER: u64 = u64::MAX;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    announce(listener.local_addr()?);

    // A stream's token is its descriptor, which is its place in this table too.
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(1024);
    let mut bytes = [0; 4096];
    loop {
        events.clear();
        // strace interrupts the wait when it attaches.
        retry_on_intr(|| epoll::wait(&epoll, spare_capacity(&mut events), None))?;
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let place = stream.as_raw_fd() as usize;
                // Edge-triggered: a level would make the kernel ask each socket again at the wait that follows.
                let interest = EventFlags::IN | EventFlags::ET;
                epoll::add(&epoll, &stream, EventData::new_u64(place as u64), interest)?;
                if streams.len() <= place {
                    streams.resize_with(place + 1, || None);
                }
                streams[place] = Some(stream);
                continue;
            }
            let slot = &mut streams[token as usize];
            if slot
                .as_ref()
                .is_some_and(|stream| !echo_all(stream, &mut bytes))
            {
                *slot = None;
            }
        }
    }
}

/// Echoes all that has arrived; false when the connection is over. A client that lets its answers pile up is dropped:
/// buffering for it would be the first step away from the limit.
fn echo_all(stream: &TcpStream, bytes: &mut [u8]) -> bool {
    loop {
        match rustix::io::read(stream, &mut *bytes) {
            Ok(0) => return false,
            Ok(count) => {
                if rustix::io::write(stream, &bytes[..count]) != Ok(count) {
                    return false;
                }
                // A short read has emptied the socket (epoll(7)), which saves the read that would find nothing.
                if count < bytes.len() {
                    return true;
                }
            }
            Err(error) => return error == Errno::WOULDBLOCK,
        }
    }
}

/// `handover`, with as many workers as it chooses where nobody else does, which is one on a single CPU.
pub(super) fn handover(workers: Option<usize>) -> Result<()> {
    let mut builder = Server::builder().listen(Bind::new("127.0.0.1:0").nodelay(true));
    if let Some(workers) = workers {
        builder = builder.workers(workers);
    }
    let server = builder.build(echo)?;
    announce(&server.local_addrs()[0]);
    server.start()?.join();
    Ok(())
}

fn echo(conn: &mut Connection) -> io::Result<Next> {
    let mut bytes = [0; 512];
    let count = conn.read(&mut bytes)?;
    conn.write_all(&bytes[..count])?;
    Ok(Next::Park)
}
