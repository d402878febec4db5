//! Very many requests whose answer the server gives at a later time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::connection::{PATIENCE, connect_many, response_length};
use crate::figures::{Latencies, monotonic_ns};

/// Connections that have not been used yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    poller: OwnedFd,
    /// Each with the time of its request, and with what has come of its response.
    connections: Vec<(TcpStream, u64, Vec<u8>)>,
}

impl Waiting {
    pub(crate) fn open(server: SocketAddr, number: usize) -> io::Result<Waiting> {
        let poller = epoll::create(CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(number);
        for index in 0..number {
            let connection = connect_many(server, index, false)?;
            let token = EventData::new_u64(index as u64);
            epoll::add(&poller, &connection, token, EventFlags::IN)?;
            connections.push((connection, 0, Vec::new()));
        }
        Ok(Waiting {
            poller,
            connections,
        })
    }

    /// Sends `GET /later?ms=…` on all of them at once, and returns how long after its request each answer came. The
    /// connections stay open.
    pub(crate) fn ask(&mut self, ms: u32) -> io::Result<Latencies> {
        let number = self.connections.len();
        let request = format!("GET /later?ms={ms} HTTP/1.1\r\nHost: versus\r\n\r\n");
        for (connection, sent, _) in &mut self.connections {
            *sent = monotonic_ns();
            connection.write_all(request.as_bytes())?;
        }

        let mut latencies = Latencies::default();
        let mut answered = 0;
        let deadline = Instant::now() + Duration::from_millis(ms.into()) + PATIENCE;
        let mut input = [0; 4096];
        while answered < number && Instant::now() < deadline {
            let mut events = Vec::with_capacity(512);
            let timeout = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            epoll::wait(&self.poller, spare_capacity(&mut events), Some(&timeout))?;
            for event in events {
                let (connection, sent, answer) = &mut self.connections[event.data.u64() as usize];
                let bytes = connection.read(&mut input)?;
                if bytes == 0 {
                    return Err(io::Error::other(
                        "the server closed a connection that waits",
                    ));
                }
                answer.extend_from_slice(&input[..bytes]);
                if response_length(answer)?.is_some_and(|length| answer.len() >= length) {
                    latencies.push(monotonic_ns() - *sent);
                    answered += 1;
                }
            }
        }
        if answered < number {
            return Err(io::Error::other(format!(
                "{answered} of {number} were answered"
            )));
        }
        Ok(latencies)
    }
}
