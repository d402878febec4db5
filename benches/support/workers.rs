//! The measurements of `workers`, their tables and goals.

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod http;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use lexopt::ValueExt;

use self::http::figures::{Goals, median, millis, print_row, short, spread};
use self::http::pages::BURN_TIME;
use self::http::roles::{CommonOptions, Server, counts};
use self::http::{Kind, Load, Result, Sample, describe, measure};

/// Clients that compute, beside the others, for the handler `cpu`.
const COMPUTING_CLIENTS: usize = 8;
/// The goals for slow handlers are those of a server with this many workers.
const SLOW_GOAL_WORKERS: usize = 64;

pub(crate) fn main() -> ExitCode {
    http::main("workers", run)
}

struct Options {
    common: CommonOptions,
    workers: Vec<usize>,
    connections: Vec<usize>,
    handlers: Vec<Handler>,
    hyper: Option<PathBuf>,
    baseline: Option<PathBuf>,
}

impl Options {
    fn from_args() -> Result<Self> {
        let (mut workers, mut connections) = (None, None);
        let (mut hyper, mut baseline) = (None, None);
        let mut handlers = HANDLERS.to_vec();
        let common = CommonOptions::from_args("workers", |option, parser| {
            match option {
                "workers" => workers = Some(counts(parser)?),
                "connections" => connections = Some(counts(parser)?),
                "handlers" => handlers = parser.value()?.parse_with(Handler::parse_list)?,
                "hyper" => hyper = Some(existing_program(parser)?),
                "baseline" => baseline = Some(existing_program(parser)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (usual_workers, usual_connections) = match common.is_bench {
            true => (vec![2, 16, 64, 256], vec![64, 512]),
            false => (vec![2, 16], vec![64]),
        };
        Ok(Self {
            common,
            workers: workers.unwrap_or(usual_workers),
            connections: connections.unwrap_or(usual_connections),
            handlers,
            hyper,
            baseline,
        })
    }

    /// The number of workers that others are compared with: one for each core of the server.
    fn reference(&self) -> Result<usize> {
        match self.common.conditions.pinned {
            true => Ok(1),
            false => Ok(thread::available_parallelism()?.get()),
        }
    }

    /// The servers to measure, in the order of the table.
    fn contenders(&self) -> Result<Vec<Contender>> {
        let mut workers = self.workers.clone();
        workers.push(self.reference()?);
        workers.sort_unstable();
        workers.dedup();
        let mut contenders = Vec::new();
        let builds = [(HANDOVER, None), (BASELINE, self.baseline.as_deref())];
        for (name, program) in builds {
            if name == BASELINE && program.is_none() {
                continue;
            }
            contenders.extend(workers.iter().map(|&workers| Contender {
                name,
                workers: Some(workers),
                server: Server::Handover {
                    program: program.map(Path::to_owned),
                    workers,
                    queue: None,
                    refuses: false,
                },
            }));
        }
        contenders.push(Contender {
            name: "thread per connection",
            workers: None,
            server: Server::ThreadPerConnection,
        });
        contenders.extend(self.hyper.iter().map(|path| Contender {
            name: "hyper",
            workers: None,
            server: Server::Program(path.clone()),
        }));
        Ok(contenders)
    }
}

/// An absolute path, as `cargo bench` runs this in the directory of the package.
fn existing_program(parser: &mut lexopt::Parser) -> Result<PathBuf> {
    let path = PathBuf::from(parser.value()?);
    path.canonicalize()
        .map_err(|error| format!("{}: {error}", path.display()).into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Fast,
    Blocking,
    Mixed,
    Cpu,
}

const HANDLERS: [Handler; 4] = [
    Handler::Fast,
    Handler::Blocking,
    Handler::Mixed,
    Handler::Cpu,
];

impl Handler {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Blocking => "blocking",
            Self::Mixed => "mixed",
            Self::Cpu => "cpu",
        }
    }

    fn parse_list(list: &str) -> std::result::Result<Vec<Self>, String> {
        let handler = |name: &str| {
            let known = HANDLERS.into_iter().find(|handler| handler.name() == name);
            known.ok_or_else(|| format!("no such handler: {name}"))
        };
        list.split(',').map(handler).collect()
    }

    /// The load, whose first group is the one whose latency counts.
    fn load(self, connections: usize) -> Load {
        match self {
            Self::Fast => Load::new(&[(Kind::Fast, connections)]),
            Self::Blocking => Load::new(&[(Kind::Sleep, connections)]),
            Self::Mixed => Load::new(&[(Kind::Mixed, connections)]),
            Self::Cpu => Load::new(&[(Kind::Fast, connections), (Kind::Burn, COMPUTING_CLIENTS)]),
        }
    }
}

const HANDOVER: &str = "handover";
const BASELINE: &str = "baseline";

/// A server of the comparison.
struct Contender {
    name: &'static str,
    workers: Option<usize>,
    server: Server,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.workers {
            Some(workers) => write!(f, "{}, {workers} workers", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// All measurements under one load.
struct Cell<'a> {
    handler: Handler,
    connections: usize,
    contenders: &'a [Contender],
    /// For each contender, the samples of its rounds.
    samples: Vec<Vec<Sample>>,
}

fn run() -> Result<bool> {
    let options = Options::from_args()?;
    if options.common.is_filtered_out {
        return Ok(true);
    }
    let contenders = options.contenders()?;
    let conditions = describe(&options.common.conditions, options.common.rounds)?;
    println!("# What many workers cost\n\n{conditions}");
    if options.hyper.is_none() {
        println!("\nWithout hyper: `--hyper PATH` names the program of `benches/versus`.");
    }
    let (mut goals, mut others) = (Goals::default(), Vec::new());
    for &handler in &options.handlers {
        for &connections in &options.connections {
            let cell = Cell::measure(&options, &contenders, handler, connections)?;
            cell.print();
            cell.add_goals(&mut goals, options.reference()?);
            others.extend(cell.samples.iter().flatten().map(|sample| sample.others));
        }
    }
    let most = others.iter().copied().fold(0.0, f64::max);
    println!(
        "\nOther programs used {:.0} % of the CPUs (median of the measurements; at most {:.0} %).",
        median(others) * 100.0,
        most * 100.0
    );
    let met = goals.print();
    Ok(met || !options.common.check)
}

/// Of the tables. The last column is the rate of the requests that compute.
const HEADING: &str = "\
| server | workers | requests/s | CPU µs/request (lowest–highest) | p50 ms | p99 ms (lowest–highest) \
| p99 by time ms | max ms | threads | voluntary switches/request | involuntary | computing requests/s |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

impl<'a> Cell<'a> {
    fn measure(
        options: &Options,
        contenders: &'a [Contender],
        handler: Handler,
        connections: usize,
    ) -> Result<Self> {
        let load = handler.load(connections);
        let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
        for round in 1..=options.common.rounds {
            for (contender, samples) in contenders.iter().zip(&mut samples) {
                let title = format!("{}, {connections} clients, {contender}", handler.name());
                eprintln!("round {round}: {title}");
                let sample = measure(&contender.server, &load, &options.common.conditions)
                    .map_err(|error| format!("{title}: {error}"))?;
                let refused: u64 = sample.groups.iter().map(|group| group.refused).sum();
                if refused > 0 {
                    return Err(format!("{title}: {refused} connections were closed").into());
                }
                samples.push(sample);
            }
        }
        Ok(Self {
            handler,
            connections,
            contenders,
            samples,
        })
    }

    /// Requests whose cost and rate are reported: in `cpu` not those that compute.
    fn requests(&self, sample: &Sample) -> f64 {
        match self.handler {
            Handler::Cpu => sample.groups[0].requests as f64,
            _ => sample.requests() as f64,
        }
    }

    /// CPU time per request, in µs, without what the clients asked for.
    fn cost(&self, sample: &Sample) -> f64 {
        let asked_for = match self.handler {
            Handler::Cpu => BURN_TIME.as_secs_f64() * sample.groups[1].requests as f64,
            _ => 0.0,
        };
        (sample.cpu.as_secs_f64() - asked_for) * 1e6 / self.requests(sample)
    }

    /// Requests per second.
    fn rate(&self, sample: &Sample) -> f64 {
        self.requests(sample) / sample.took.as_secs_f64()
    }

    fn print(&self) {
        let (handler, clients) = (self.handler.name(), self.connections);
        println!("\n## `{handler}`, {clients} clients\n");
        println!("{HEADING}");
        for (contender, samples) in self.contenders.iter().zip(&self.samples) {
            let all =
                |figure: &dyn Fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<_>>();
            let middle = |figure: &dyn Fn(&Sample) -> f64| short(median(all(figure)));
            let none = || "–".to_owned();
            let computing =
                |sample: &Sample| sample.groups[1].requests as f64 / sample.took.as_secs_f64();
            print_row(&[
                contender.name.to_owned(),
                contender
                    .workers
                    .map_or_else(none, |workers| workers.to_string()),
                middle(&|sample| self.rate(sample)),
                spread(all(&|sample| self.cost(sample))),
                middle(&|sample| millis(sample.groups[0].p50)),
                spread(all(&|sample| millis(sample.groups[0].p99))),
                middle(&|sample| millis(sample.groups[0].p99_by_time)),
                middle(&|sample| millis(sample.groups[0].max)),
                middle(&|sample| sample.threads as f64),
                middle(&|sample| sample.voluntary_switches as f64 / self.requests(sample)),
                middle(&|sample| sample.involuntary_switches as f64 / self.requests(sample)),
                match self.handler {
                    Handler::Cpu => middle(&computing),
                    _ => none(),
                },
            ]);
        }
    }

    fn add_goals(&self, goals: &mut Goals, reference: usize) {
        match self.handler {
            Handler::Fast => self.add_fast_goals(goals, reference),
            Handler::Blocking => self.add_blocking_goals(goals),
            Handler::Mixed => {
                if let (Some(p99), 64) = (self.p99(SLOW_GOAL_WORKERS), self.connections) {
                    let text = format!("{}: p99 in ms ≤ 2", self.title(SLOW_GOAL_WORKERS));
                    goals.at_most(text, p99, 2.0);
                }
            }
            Handler::Cpu => {
                if let (Some(many), Some(few)) = (self.p99(SLOW_GOAL_WORKERS), self.p99(2)) {
                    let title = self.title(SLOW_GOAL_WORKERS);
                    let text = format!("{title}: p99 in ms; with 2 workers");
                    goals.report(text, format!("{}; {}", short(many), short(few)));
                }
            }
        }
    }

    /// The p99 of `handover`, in ms.
    fn p99(&self, workers: usize) -> Option<f64> {
        let samples = self.samples_of(HANDOVER, workers)?.iter();
        Some(median(samples.map(|sample| millis(sample.groups[0].p99))))
    }

    /// Any number of workers costs about what one worker per core costs.
    fn add_fast_goals(&self, goals: &mut Goals, reference: usize) {
        let Some(base) = self.samples_of(HANDOVER, reference) else {
            return;
        };
        for contender in self.contenders.iter().filter(|one| one.name == HANDOVER) {
            let workers = contender.workers.unwrap_or(reference);
            let (Some(samples), true) = (self.samples_of(HANDOVER, workers), workers != reference)
            else {
                continue;
            };
            // Within each round, because the load of the machine may differ in the next.
            let ratio = |figure: &dyn Fn(&Sample) -> f64| {
                median(
                    samples
                        .iter()
                        .zip(base)
                        .map(|(many, few)| figure(many) / figure(few)),
                )
            };
            let cost = ratio(&|sample| self.cost(sample));
            let p99 = ratio(&|sample| millis(sample.groups[0].p99));
            let by_time = ratio(&|sample| millis(sample.groups[0].p99_by_time));
            let title = self.title(workers);
            let text =
                |figure, factor| format!("{title}: {figure} ≤ {factor} × that of {reference}");
            goals.at_most(text("CPU time", "1.1"), cost, 1.1);
            goals.at_most(text("p99", "2"), p99, 2.0);
            goals.at_most(text("p99 by time", "2"), by_time, 2.0);
        }
    }

    fn add_blocking_goals(&self, goals: &mut Goals) {
        let Some(samples) = self.samples_of(HANDOVER, SLOW_GOAL_WORKERS) else {
            return;
        };
        let title = self.title(SLOW_GOAL_WORKERS);
        let cost = median(samples.iter().map(|sample| self.cost(sample)));
        goals.at_most(format!("{title}: CPU µs/request ≤ 21"), cost, 21.0);
        let text = format!("{title}: requests/s ≥ 0.98 × those of the baseline");
        match self.samples_of(BASELINE, SLOW_GOAL_WORKERS) {
            Some(base) => {
                let pairs = samples.iter().zip(base);
                let ratios = pairs.map(|(new, old)| self.rate(new) / self.rate(old));
                goals.at_least(text, median(ratios), 0.98);
            }
            None => {
                let rate = median(samples.iter().map(|sample| self.rate(sample)));
                let text = format!("{title}: requests/s (compared only with `--baseline`)");
                goals.report(text, short(rate));
            }
        }
    }

    fn samples_of(&self, name: &str, workers: usize) -> Option<&[Sample]> {
        let is_it = |one: &Contender| one.name == name && one.workers == Some(workers);
        let index = self.contenders.iter().position(is_it)?;
        Some(&self.samples[index])
    }

    fn title(&self, workers: usize) -> String {
        let (handler, clients) = (self.handler.name(), self.connections);
        format!("`{handler}`, {clients} clients, {workers} workers")
    }
}
