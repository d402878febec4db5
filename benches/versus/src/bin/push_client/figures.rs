//! Latencies, and what /proc says of the server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock that the publisher and the subscribers share, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Samples in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<u64>);

impl Latencies {
    pub(crate) fn push(&mut self, nanoseconds: u64) {
        self.0.push(nanoseconds);
    }

    pub(crate) fn extend(&mut self, others: Latencies) {
        self.0.extend(others.0);
    }

    /// An object of JSON.
    pub(crate) fn json(mut self) -> String {
        self.0.sort_unstable();
        let ms = |share: f64| match self.0.len() {
            0 => "null".to_owned(),
            count => {
                let index = ((count as f64 * share) as usize).min(count - 1);
                format!("{:.3}", self.0[index] as f64 / 1e6)
            }
        };
        format!(
            r#"{{"count": {}, "min_ms": {}, "p50_ms": {}, "p99_ms": {}, "max_ms": {}}}"#,
            self.0.len(),
            ms(0.0),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        )
    }
}

/// A process of this machine.
#[derive(Debug)]
pub(crate) struct Server(PathBuf);

impl Server {
    pub(crate) fn new(pid: u32) -> Server {
        Server(PathBuf::from(format!("/proc/{pid}")))
    }

    /// The user and system time of all its threads, also of those that have ended.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let stat = std::fs::read_to_string(self.0.join("stat"))?;
        // The second field is the name, which may hold spaces; utime and stime are the fields 14 and 15.
        let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }

    pub(crate) fn rss_bytes(&self) -> io::Result<u64> {
        self.status("VmRSS:").map(|kib| kib * 1024)
    }

    pub(crate) fn threads(&self) -> io::Result<u64> {
        self.status("Threads:")
    }

    pub(crate) fn descriptors(&self) -> io::Result<usize> {
        Ok(std::fs::read_dir(self.0.join("fd"))?.count())
    }

    fn status(&self, name: &str) -> io::Result<u64> {
        let status = std::fs::read_to_string(self.0.join("status"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no {name} in /proc")))
    }
}
