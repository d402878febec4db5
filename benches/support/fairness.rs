//! The measurements of `fairness`, their tables and goals.

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod http;

use std::process::ExitCode;

use self::http::clients::BATCH;
use self::http::figures::{Goals, median, millis, print_row, short};
use self::http::roles::{CommonOptions, Server, counts};
use self::http::{Figures, Kind, Load, Result, Sample, describe, measure};

const WORKERS: usize = 2;
const FRESH_CLIENTS: usize = 40;
const KEPT_CLIENTS: usize = 8;
const SINGLE_CLIENTS: usize = 16;
const BATCH_CLIENTS: usize = 2;

pub(crate) fn main() -> ExitCode {
    http::main("fairness", run)
}

struct Options {
    common: CommonOptions,
    queues: Vec<usize>,
}

impl Options {
    fn from_args() -> Result<Self> {
        let mut queues = vec![8, 64, 1024];
        let common = CommonOptions::from_args("fairness", |option, parser| {
            match option {
                "queue" => queues = counts(parser)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Self { common, queues })
    }
}

/// One server under one load, in all rounds.
struct Cell {
    title: String,
    server: Server,
    load: Load,
    samples: Vec<Sample>,
}

impl Cell {
    fn new(title: String, queue: Option<usize>, refuses: bool, load: &[(Kind, usize)]) -> Self {
        Self {
            title,
            server: Server::Handover {
                program: None,
                workers: WORKERS,
                queue,
                refuses,
            },
            load: Load::new(load),
            samples: Vec::new(),
        }
    }

    /// The median of a figure of one group.
    fn figure(&self, group: usize, figure: impl Fn(&Figures) -> f64) -> String {
        let groups = self.samples.iter().map(|sample| &sample.groups[group]);
        short(median(groups.map(figure)))
    }

    /// Requests per second of one group.
    fn rate(&self, group: usize) -> String {
        let rate =
            |sample: &Sample| sample.groups[group].requests as f64 / sample.took.as_secs_f64();
        short(median(self.samples.iter().map(rate)))
    }
}

fn run() -> Result<bool> {
    let options = Options::from_args()?;
    if options.common.is_filtered_out {
        return Ok(true);
    }
    let conditions = describe(&options.common.conditions, options.common.rounds)?;
    println!("# Who waits for how long\n\n{conditions}");

    let mut mixtures = overload_cells(&options.queues);
    let mut pipelines = pipeline_cells();
    for round in 1..=options.common.rounds {
        for cell in mixtures.iter_mut().chain(&mut pipelines) {
            eprintln!("round {round}: {}", cell.title.replace(" | ", ", "));
            let sample = measure(&cell.server, &cell.load, &options.common.conditions)
                .map_err(|error| format!("{}: {error}", cell.title))?;
            cell.samples.push(sample);
        }
    }

    let mut goals = Goals::default();
    print_overload(&mixtures, &mut goals);
    print_pipelines(&pipelines, &mut goals);
    let samples = mixtures
        .iter()
        .chain(&pipelines)
        .flat_map(|cell| &cell.samples);
    let others = median(samples.map(|sample| sample.others));
    println!(
        "\nOther programs used {:.0} % of the CPUs (median).",
        others * 100.0
    );
    let met = goals.print();
    Ok(met || !options.common.check)
}

/// New connections beside kept ones. The first group is the fresh clients.
fn overload_cells(queues: &[usize]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &queue in queues {
        for refuses in [false, true] {
            let policy = if refuses { "Refuse" } else { "Wait" };
            cells.push(Cell::new(
                format!("{queue} | {policy}"),
                Some(queue),
                refuses,
                &[(Kind::Fresh, FRESH_CLIENTS), (Kind::Sleep, KEPT_CLIENTS)],
            ));
        }
    }
    cells
}

fn print_overload(cells: &[Cell], goals: &mut Goals) {
    println!(
        "\n## {FRESH_CLIENTS} clients that connect for each request (fresh), {KEPT_CLIENTS} that keep their connection (kept)\n"
    );
    println!(
        "| queue | policy | fresh p50 ms | fresh p99 | kept p50 ms | kept p99 | fresh p50 / kept p50 \
         | fresh requests/s | kept requests/s | fresh refused | kept refused |"
    );
    println!("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for cell in cells {
        let ratios = cell.samples.iter().map(|sample| {
            let [fresh, kept] = [0, 1].map(|group| sample.groups[group].p50.as_secs_f64());
            fresh / kept
        });
        let ratio = median(ratios);
        print_row(&[
            cell.title.clone(),
            cell.figure(0, |fresh| millis(fresh.p50)),
            cell.figure(0, |fresh| millis(fresh.p99)),
            cell.figure(1, |kept| millis(kept.p50)),
            cell.figure(1, |kept| millis(kept.p99)),
            short(ratio),
            cell.rate(0),
            cell.rate(1),
            cell.figure(0, |fresh| fresh.refused as f64),
            cell.figure(1, |kept| kept.refused as f64),
        ]);
        let title = cell.title.replace(" | ", ", ");
        goals.within(
            format!("queue {title}: fresh p50 / kept p50 between 1/1.5 and 1.5"),
            ratio,
            1.5,
        );
    }
}

/// Single clients alone, and beside clients that pipeline. The first group is the single clients.
fn pipeline_cells() -> Vec<Cell> {
    let alone = format!("{SINGLE_CLIENTS} clients that send one request at a time");
    let beside = format!("the same, and {BATCH_CLIENTS} that send {BATCH} at once");
    let single = (Kind::Sleep, SINGLE_CLIENTS);
    vec![
        Cell::new(alone, None, false, &[single]),
        Cell::new(beside, None, false, &[single, (Kind::Batch, BATCH_CLIENTS)]),
    ]
}

fn print_pipelines(cells: &[Cell], goals: &mut Goals) {
    println!("\n## Clients that pipeline\n");
    println!(
        "| clients | single p50 ms | single p99 | single max | single requests/s | pipelined requests/s |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for cell in cells {
        print_row(&[
            cell.title.clone(),
            cell.figure(0, |single| millis(single.p50)),
            cell.figure(0, |single| millis(single.p99)),
            cell.figure(0, |single| millis(single.max)),
            cell.rate(0),
            match cell.load.groups.len() {
                1 => "–".to_owned(),
                _ => cell.rate(1),
            },
        ]);
    }
    let [alone, beside] = cells else { return };
    let pairs = beside.samples.iter().zip(&alone.samples);
    let ratio = median(pairs.map(|(beside, alone)| {
        beside.groups[0].p99.as_secs_f64() / alone.groups[0].p99.as_secs_f64()
    }));
    let text = "single clients beside pipelining ones: p99 ≤ 3 × that without them";
    goals.at_most(text, ratio, 3.0);
}
