//! The comparison: rounds of the two servers in turn, and the table of what they cost.

use std::time::Duration;

use super::Result;
use super::options::Options;
use super::process::{Actor, Strace};

/// The limit first, then what is compared with it.
const SERVERS: [&str; 2] = ["epoll", "handover"];

pub(super) fn run(options: &Options) -> Result<()> {
    let mut results = Vec::new();
    for &connections in &options.connections {
        let rounds = (0..options.rounds).map(|_| round(options, connections));
        results.push(rounds.collect::<Result<Vec<_>>>()?);
    }

    println!(
        "server CPU µs per request: median of the rounds (lowest to highest); rounds: {}, of {:?} for each server",
        options.rounds, options.duration
    );
    println!(
        "connections  limit                   handover                ratio                   limit req/s  handover req/s"
    );
    for (connections, rounds) in options.connections.iter().zip(&results) {
        let [limit, handover] = [0, 1].map(|server| spread(rounds, |round| round[server].cost()));
        // Within each round, since the machine is another one in the next.
        let ratio = spread(rounds, |round| round[1].cost() / round[0].cost());
        println!(
            "{connections:>11}  {limit:<22}  {handover:<22}  {ratio:<22}  {:>11.0}  {:>14.0}",
            median(rounds, |round| round[0].rate()),
            median(rounds, |round| round[1].rate()),
        );
    }

    // The limit and the client have one thread each on a CPU of their own: only strangers make them wait for it.
    let disturbance = results
        .iter()
        .map(|rounds| median(rounds, |round| round[0].disturbance()))
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
                    system_calls(options, server, connections)?
                );
            }
        }
    }
    Ok(())
}

/// In how many stretches a round's load comes.
const STRETCHES: u32 = 20;

/// What each of the servers did in one round. They are started for this alone, so that no luck in their memory's layout
/// lasts for all rounds, and take turns so often that the machine's moods, which can change within a second, are the
/// same for both.
fn round(options: &Options, connections: usize) -> Result<[Sample; 2]> {
    let mut servers = SERVERS
        .iter()
        .map(|server| {
            Bout::start(
                server,
                options.workers,
                connections,
                options.duration / STRETCHES,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..STRETCHES {
        for server in &mut servers {
            server.stretch()?;
        }
    }
    let samples = servers.into_iter().map(|server| server.sample);
    Ok(samples.collect::<Vec<_>>().try_into().expect("two servers"))
}

/// A server and its client.
struct Bout {
    server: Actor,
    client: Actor,
    sample: Sample,
}

impl Bout {
    fn start(
        server: &str,
        workers: Option<usize>,
        connections: usize,
        stretch: Duration,
    ) -> Result<Self> {
        let (server, address) = Actor::server(server, workers)?;
        let client = Actor::client(&address, connections, stretch)?;
        Ok(Self {
            server,
            client,
            sample: Sample::default(),
        })
    }

    fn stretch(&mut self) -> Result<()> {
        let before = [self.server.usage()?, self.client.usage()?];
        let (round_trips, took) = self.client.perform()?;
        let after = [self.server.usage()?, self.client.usage()?];
        let sample = &mut self.sample;
        sample.round_trips += round_trips;
        sample.took += took;
        sample.server_cpu += after[0].on_cpu - before[0].on_cpu;
        sample.waited += after[0].waited + after[1].waited - before[0].waited - before[1].waited;
        Ok(())
    }
}

/// What a server did in a round.
#[derive(Debug, Default)]
struct Sample {
    round_trips: u64,
    took: Duration,
    server_cpu: Duration,
    /// How long the server or the client could have run and did not, because another thread had its CPU.
    waited: Duration,
}

impl Sample {
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

fn sorted<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let figures = sorted(rounds, figure);
    (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0
}

fn spread<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> String {
    let figures = sorted(rounds, &figure);
    format!(
        "{:.2} ({:.2} to {:.2})",
        median(rounds, figure),
        figures[0],
        figures[figures.len() - 1]
    )
}

/// The total per request, and what it is made of.
fn system_calls(options: &Options, server: &str, connections: usize) -> Result<String> {
    let (server, address) = Actor::server(server, options.workers)?;
    let mut client = Actor::client(&address, connections, options.duration)?;
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
