//! The comparison: rounds of the two servers in turn, and the table of what they cost.

use std::time::Duration;

use super::Result;
use super::options::Options;
use super::process::{Actor, Strace};

/// The limit first, then what is compared with it.
const SERVERS: [&str; 2] = ["epoll", "handover"];

pub(super) fn run(options: &Options) -> Result<()> {
    let mut results: Vec<[Vec<Sample>; 2]> = options
        .connections
        .iter()
        .map(|_| Default::default())
        .collect();
    for _ in 0..options.rounds {
        for (&connections, results) in options.connections.iter().zip(&mut results) {
            for (server, samples) in SERVERS.iter().zip(results) {
                samples.push(Sample::take(server, connections, options.duration)?);
            }
        }
    }

    println!(
        "server CPU µs per request: median of the rounds (lowest to highest); rounds: {}, of {:?}",
        options.rounds, options.duration
    );
    println!(
        "connections  limit                   handover                ratio  limit req/s  handover req/s"
    );
    for (connections, [limit, handover]) in options.connections.iter().zip(&results) {
        let ratio = median(handover, Sample::cost) / median(limit, Sample::cost);
        println!(
            "{connections:>11}  {:<22}  {:<22}  {ratio:>5.2}  {:>11.0}  {:>14.0}",
            spread(limit),
            spread(handover),
            median(limit, Sample::rate),
            median(handover, Sample::rate),
        );
    }

    // The limit and the client have one thread each on a CPU of their own: only strangers make them wait for it.
    let disturbance = results
        .iter()
        .map(|[limit, _]| median(limit, Sample::disturbance))
        .fold(0.0, f64::max);
    if disturbance > 0.01 {
        let percent = disturbance * 100.0;
        println!(
            "The machine was not quiet: other programs had the CPUs for {percent:.0} % of the time."
        );
    }

    if options.strace {
        println!("\nsystem calls per request, while strace slows the server down");
        for &connections in &options.connections {
            for server in SERVERS {
                println!(
                    "{connections:>11}  {server:<8}  {}",
                    system_calls(server, connections, options.duration)?
                );
            }
        }
    }
    Ok(())
}

/// One server's round.
struct Sample {
    round_trips: u64,
    took: Duration,
    server_cpu: Duration,
    /// How long the server or the client could have run and did not, because another thread had its CPU.
    waited: Duration,
}

impl Sample {
    /// Measures a server that is started for this alone, so that no luck in its memory's layout lasts for all rounds.
    fn take(server: &str, connections: usize, duration: Duration) -> Result<Self> {
        let (server, address) = Actor::server(server)?;
        let mut client = Actor::client(&address, connections, duration)?;
        let before = [server.usage()?, client.usage()?];
        let (round_trips, took) = client.perform()?;
        let after = [server.usage()?, client.usage()?];
        Ok(Self {
            round_trips,
            took,
            server_cpu: after[0].on_cpu - before[0].on_cpu,
            waited: after[0].waited + after[1].waited - before[0].waited - before[1].waited,
        })
    }

    /// Server CPU, in µs per request.
    fn cost(&self) -> f64 {
        self.server_cpu.as_secs_f64() * 1e6 / self.round_trips as f64
    }

    /// The share of the time that was lost to waiting for a CPU.
    fn disturbance(&self) -> f64 {
        self.waited.as_secs_f64() / self.took.as_secs_f64()
    }

    /// Requests per second.
    fn rate(&self) -> f64 {
        self.round_trips as f64 / self.took.as_secs_f64()
    }
}

fn sorted(samples: &[Sample], figure: fn(&Sample) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(samples: &[Sample], figure: fn(&Sample) -> f64) -> f64 {
    let figures = sorted(samples, figure);
    (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0
}

fn spread(samples: &[Sample]) -> String {
    let costs = sorted(samples, Sample::cost);
    format!(
        "{:.2} ({:.2} to {:.2})",
        median(samples, Sample::cost),
        costs[0],
        costs[costs.len() - 1]
    )
}

/// The total per request, and what it is made of.
fn system_calls(server: &str, connections: usize, duration: Duration) -> Result<String> {
    let (server, address) = Actor::server(server)?;
    let mut client = Actor::client(&address, connections, duration)?;
    let Some(strace) = Strace::attach(&server)? else {
        return Ok("strace is not installed".to_owned());
    };
    let (round_trips, _) = client.perform()?;
    let counts = strace.finish()?;

    let per_request = |calls: u64| calls as f64 / round_trips as f64;
    let total = per_request(counts.iter().map(|(_, calls)| calls).sum());
    let parts: Vec<String> = counts
        .iter()
        .map(|(name, calls)| format!("{name} {:.3}", per_request(*calls)))
        .collect();
    Ok(format!("{total:.3} = {}", parts.join(" + ")))
}
