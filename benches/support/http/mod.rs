//! What the benchmarks `workers` and `fairness` share: servers and clients as child processes, and
//! the measurement of one server under one load.
//!
//! ```text
//!  benchmark ──starts──► server (pages::serve, or another program)
//!      │                    ▲ loopback
//!      └──────starts──► client process (clients::run): all connections, one thread
//! ```

pub(crate) mod clients;
pub(crate) mod figures;
pub(crate) mod pages;
#[path = "../process.rs"]
mod process;
pub(crate) mod roles;

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use self::process::Usage;
use self::roles::Conditions;

pub(crate) use self::clients::{Figures, Kind, Load};

/// Every failure ends the benchmark with its message. No failure is recovered from.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Which of the two pollers the library was built with.
pub(crate) const POLLER: &str = if cfg!(handover_one_waiter) {
    "one waiter (polling)"
} else {
    "shared (epoll)"
};

/// Plays a child's role, if the arguments name one, or else runs the benchmark. `run` returns
/// whether every goal was met, as far as that was to be checked.
pub(crate) fn main(name: &str, run: impl FnOnce() -> Result<bool>) -> ExitCode {
    let met = match roles::play_if_child() {
        Ok(true) => Ok(true),
        Ok(false) => run(),
        Err(error) => Err(error),
    };
    match met {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{name}: a goal was missed, or none was measured");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What one server did under one load.
#[derive(Debug)]
pub(crate) struct Sample {
    /// In the order of the load's groups.
    pub(crate) groups: Vec<Figures>,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
    /// CPU time of the server.
    pub(crate) cpu: Duration,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
    /// Threads of the server at the end of the load.
    pub(crate) threads: usize,
    /// The share of all CPUs that other programs used meanwhile.
    pub(crate) others: f64,
}

impl Sample {
    pub(crate) fn requests(&self) -> u64 {
        self.groups.iter().map(|group| group.requests).sum()
    }
}

/// Up to this share of the CPUs, other programs do not count as a disturbance.
const UNDISTURBED: f64 = 0.05;

/// Measures a server, again if other programs disturb, and keeps the least disturbed sample.
pub(crate) fn measure(
    server: &roles::Server,
    load: &Load,
    conditions: &Conditions,
) -> Result<Sample> {
    let mut best = measure_once(server, load, conditions)?;
    for _ in 1..conditions.attempts {
        if best.others <= UNDISTURBED {
            break;
        }
        let sample = measure_once(server, load, conditions)?;
        if sample.others < best.others {
            best = sample;
        }
    }
    Ok(best)
}

/// Measures a server in a new process. The clients send nothing before and after the load, so the
/// CPU time and the number of requests belong together. Only pipelining clients leave unanswered
/// requests behind.
fn measure_once(server: &roles::Server, load: &Load, conditions: &Conditions) -> Result<Sample> {
    let (server, address) = server.start(conditions)?;
    let mut clients = roles::start_clients(&address, load, conditions)?;
    let before = (server.usage()?, clients.usage()?, Machine::now()?);
    let started = Instant::now();
    let (groups, took) = roles::run_load(&mut clients, load)?;
    let passed = started.elapsed();
    let after = (server.usage()?, clients.usage()?, Machine::now()?);

    let cpu = |after: &Usage, before: &Usage| after.on_cpu.saturating_sub(before.on_cpu);
    let server_cpu = cpu(&after.0, &before.0);
    let busy = after.2.busy.saturating_sub(before.2.busy);
    let others = busy.saturating_sub(server_cpu + cpu(&after.1, &before.1));
    let switches = |count: fn(&Usage) -> u64| count(&after.0).saturating_sub(count(&before.0));
    Ok(Sample {
        groups,
        took,
        cpu: server_cpu,
        voluntary_switches: switches(|usage| usage.voluntary_switches),
        involuntary_switches: switches(|usage| usage.involuntary_switches),
        threads: after.0.threads,
        others: others.as_secs_f64() / (passed.as_secs_f64() * after.2.cpus as f64),
    })
}

/// What the machine has done since its start.
struct Machine {
    busy: Duration,
    cpus: usize,
}

impl Machine {
    /// Reads `/proc/stat` (proc_stat(5)), whose unit is 10 ms.
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let cpus = |line: &&str| line.starts_with("cpu");
        let total = text.lines().next().ok_or("/proc/stat is empty")?;
        let ticks = total.split_whitespace().skip(1).map(str::parse);
        let ticks = ticks.collect::<std::result::Result<Vec<u64>, _>>()?;
        // The fields are user, nice, system, idle, iowait, irq, softirq, steal.
        let busy = [0, 1, 2, 5, 6, 7]
            .iter()
            .filter_map(|&index| ticks.get(index));
        Ok(Self {
            busy: Duration::from_millis(10 * busy.sum::<u64>()),
            cpus: text.lines().take_while(cpus).count() - 1,
        })
    }
}

/// One line about the conditions of a run, for its heading.
pub(crate) fn describe(conditions: &Conditions, rounds: usize) -> Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let place = match conditions.pinned {
        true => "server on CPU 0, clients on CPU 1",
        false => "server and clients on all CPUs",
    };
    Ok(format!(
        "Poller: {POLLER}; {place} of {}; {rounds} rounds of {:?}; load average at the start: {}.",
        thread::available_parallelism()?,
        conditions.duration,
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    ))
}
