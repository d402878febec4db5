//! The client that publishes: on a thread of its own, at a fixed rate.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::connection::{PATIENCE, connect, read_response};
use crate::figures::{Latencies, monotonic_ns};

/// What is to be published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The counter of the first message.
    pub(crate) first: u64,
    pub(crate) messages: u64,
    pub(crate) interval: Duration,
    /// The body is filled up to so many bytes.
    pub(crate) body_bytes: usize,
}

/// Starts to publish. The thread returns how long the server took to answer each `POST /publish`.
pub(crate) fn start(
    server: SocketAddr,
    plan: Plan,
) -> io::Result<JoinHandle<io::Result<Latencies>>> {
    thread::Builder::new()
        .name("publisher".to_owned())
        .spawn(move || publish(server, plan))
}

fn publish(server: SocketAddr, plan: Plan) -> io::Result<Latencies> {
    let mut connection = connect(server)?;
    let mut latencies = Latencies::default();
    let mut due = Instant::now();
    let give_up = due + plan.interval * plan.messages as u32 * 3 + PATIENCE;
    for counter in plan.first..plan.first + plan.messages {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if Instant::now() > give_up {
            return Err(io::Error::other("the server is too slow for this rate"));
        }
        due += plan.interval;
        let sent = monotonic_ns();
        let body = format!(
            "{:<width$}",
            format!("{counter} {sent} "),
            width = plan.body_bytes
        );
        let length = body.len();
        let request = format!(
            "POST /publish HTTP/1.1\r\nHost: versus\r\nContent-Type: text/plain\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        connection.write_all(request.as_bytes())?;
        read_response(&mut connection)?;
        latencies.push(monotonic_ns() - sent);
    }
    Ok(latencies)
}
