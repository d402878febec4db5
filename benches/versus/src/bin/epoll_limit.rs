//! The limit that a server on epoll can reach: it parses nothing, and knows a request by its empty line.
//!
//! One thread per CPU, each with a listener and an epoll instance of its own. Whatever one read brings is
//! answered by one write. A connection owes its client so many bytes of one endlessly repeated response, so
//! that what a full socket did not take needs neither a buffer nor a copy.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use versus::Arguments;

const LISTENER: u64 = u64::MAX;
const BACKLOG: i32 = 4096;
const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["--listen", "--workers", "--body-bytes", "--keep-alive"]);
    let body = arguments
        .value("--body-bytes")
        .map_or(versus::HELLO.to_owned(), versus::big_body);
    let keep_alive = arguments.value("--keep-alive").unwrap_or(true);
    // Several responses in a row let one write answer a batch of requests.
    let response = response(&body, keep_alive);
    let copies = (64 * 1024 / response.len()).max(1);
    let answers = Answers {
        length: response.len(),
        bytes: response.repeat(copies),
        keep_alive,
    };

    let listen = arguments.listen();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.workers().unwrap_or_else(versus::cpus))
            .map(|_| scope.spawn(|| serve(listen, &answers)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a thread panicked"))
    })
}

fn response(body: &str, keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive {
        ""
    } else {
        "Connection: close\r\n"
    };
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n{connection}\r\n{body}")
        .into_bytes()
}

struct Answers {
    /// Of one response.
    length: usize,
    /// The response, several times in a row.
    bytes: Vec<u8>,
    keep_alive: bool,
}

struct Connection {
    socket: OwnedFd,
    /// How many bytes of the empty line the input so far has ended in.
    matched: usize,
    /// Where in the response the next write starts.
    offset: usize,
    owed: usize,
    waits_for_room: bool,
}

fn serve(listen: SocketAddr, answers: &Answers) -> io::Result<()> {
    let listener = bind(listen)?;
    let poller = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &poller,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;

    // Indexed by descriptor.
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Vec::with_capacity(512);
    let mut input = vec![0; 16 * 1024];
    loop {
        match epoll::wait(&poller, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == LISTENER {
                accept_all(&listener, &poller, &mut connections);
                continue;
            }
            let slot = &mut connections[token as usize];
            let Some(connection) = slot else { continue };
            if connection.turn(&poller, answers, &mut input).is_err() {
                *slot = None;
            }
        }
    }
}

fn bind(listen: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if listen.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let listener = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    net::bind(&listener, &listen)?;
    net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn accept_all(listener: &OwnedFd, poller: &OwnedFd, connections: &mut Vec<Option<Connection>>) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    while let Ok(socket) = net::accept_with(listener, flags) {
        let index = socket.as_raw_fd() as usize;
        if epoll::add(
            poller,
            &socket,
            EventData::new_u64(index as u64),
            EventFlags::IN,
        )
        .is_err()
        {
            continue;
        }
        if connections.len() <= index {
            connections.resize_with(index + 1, || None);
        }
        connections[index] = Some(Connection {
            socket,
            matched: 0,
            offset: 0,
            owed: 0,
            waits_for_room: false,
        });
    }
}

impl Connection {
    /// Handles one event. An error means that the connection is over.
    fn turn(
        &mut self,
        poller: &OwnedFd,
        answers: &Answers,
        input: &mut [u8],
    ) -> rustix::io::Result<()> {
        // While the client does not take what it asked for, it is not asked for more.
        if self.owed == 0 {
            match net::recv(&self.socket, &mut *input, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((read, _)) => self.owed = self.count_requests(&input[..read]) * answers.length,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.owed == 0 {
                return Ok(());
            }
        }
        self.pay(answers)?;
        self.watch(poller)?;
        let asked_to_close = !answers.keep_alive && self.owed == 0;
        if asked_to_close {
            Err(Errno::CONNRESET)
        } else {
            Ok(())
        }
    }

    fn count_requests(&mut self, input: &[u8]) -> usize {
        let mut requests = 0;
        for &byte in input {
            if byte == END_OF_HEAD[self.matched] {
                self.matched += 1;
            } else {
                self.matched = usize::from(byte == b'\r');
            }
            if self.matched == END_OF_HEAD.len() {
                self.matched = 0;
                requests += 1;
            }
        }
        requests
    }

    fn pay(&mut self, answers: &Answers) -> rustix::io::Result<()> {
        while self.owed > 0 {
            let end = (self.offset + self.owed).min(answers.bytes.len());
            match net::send(
                &self.socket,
                &answers.bytes[self.offset..end],
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    self.owed -= sent;
                    self.offset = (self.offset + sent) % answers.length;
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Changes what epoll waits for, where that has changed.
    fn watch(&mut self, poller: &OwnedFd) -> rustix::io::Result<()> {
        let wait_for_room = self.owed > 0;
        if wait_for_room != self.waits_for_room {
            self.waits_for_room = wait_for_room;
            let flags = if wait_for_room {
                EventFlags::OUT
            } else {
                EventFlags::IN
            };
            let index = self.socket.as_raw_fd() as u64;
            epoll::modify(
                poller,
                self.socket.as_fd(),
                EventData::new_u64(index),
                flags,
            )?;
        }
        Ok(())
    }
}
