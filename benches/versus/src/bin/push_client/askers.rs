//! Kept-alive clients that ask for `/` at a fixed rate: what the push costs the others.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::connection::{connect, read_response};
use crate::figures::{Latencies, monotonic_ns};

/// Each client asks this often, so that all of them use a small share of the CPU.
const INTERVAL: Duration = Duration::from_millis(10);

/// The clients, each on a thread.
#[derive(Debug)]
pub(crate) struct Askers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<Latencies>>>,
}

impl Askers {
    pub(crate) fn start(server: SocketAddr, number: u32) -> io::Result<Askers> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..number)
            .map(|index| {
                let stop = Arc::clone(&stop);
                // Spread over the interval.
                let first = Instant::now() + INTERVAL * index / number;
                thread::Builder::new()
                    .name(format!("asker-{index}"))
                    .spawn(move || ask(server, first, &stop))
            })
            .collect::<io::Result<_>>()?;
        Ok(Askers { stop, threads })
    }

    /// Ends the clients, and returns how long their answers took.
    pub(crate) fn stop(self) -> io::Result<Latencies> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Latencies::default();
        for thread in self.threads {
            all.extend(thread.join().expect("an asker panicked")?);
        }
        Ok(all)
    }
}

fn ask(server: SocketAddr, first: Instant, stop: &AtomicBool) -> io::Result<Latencies> {
    let mut connection = connect(server)?;
    let mut latencies = Latencies::default();
    let mut due = first;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = monotonic_ns();
        connection.write_all(b"GET / HTTP/1.1\r\nHost: versus\r\n\r\n")?;
        read_response(&mut connection)?;
        latencies.push(monotonic_ns() - sent);
        // A client that was kept waiting goes on from here, and does not send a burst.
        due = (due + INTERVAL).max(Instant::now());
    }
    Ok(latencies)
}
