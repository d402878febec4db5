//! Plays histories of the supervisor's policy, as the test `fleet` does, but millions.
//!
//! ```text
//! cargo bench --bench fleet -- [--histories 10000000] [--first 0] [--all] [--planted [NAME]]
//! ```
//!
//! `--test` plays a few histories only. `--all` goes on after a failure, and counts the failures of
//! each promise. `--planted` makes copies of the policy with one fault each, and measures how many
//! histories it takes to find the fault.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

#[path = "../src/clock.rs"]
#[allow(dead_code, unused_imports)] // The policy needs deadlines only; the tests are elsewhere.
mod clock;
#[path = "../src/supervisor/fleet/mod.rs"]
#[allow(dead_code, unused_imports)] // The status and the snapshot read more of the fleet.
mod fleet;
#[path = "fleet/planted.rs"]
mod planted;
#[path = "../tests/fleet/mod.rs"]
mod simulation;
#[path = "../tests/fleet/sys.rs"]
mod sys;

const USAGE: &str =
    "cargo bench --bench fleet -- [--histories N] [--first N] [--all] [--planted [NAME]]";

/// A thread takes this many histories at once.
const CHUNK: u64 = 256;

fn main() -> ExitCode {
    match run(&mut std::env::args().skip(1)) {
        Some(code) => code,
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// `None` if the arguments are wrong.
fn run(args: &mut impl Iterator<Item = String>) -> Option<ExitCode> {
    let (mut histories, mut first, mut all) = (10_000_000, 0, false);
    while let Some(arg) = args.next() {
        let mut number = || args.next()?.parse().ok();
        match arg.as_str() {
            "--histories" => histories = number()?,
            "--first" => first = number()?,
            "--test" => histories = 1_000,
            "--planted" => {
                let name = args.next().filter(|arg| arg != "--bench");
                return Some(planted::find_all(name));
            }
            "--all" => all = true,
            // cargo adds this.
            "--bench" => {}
            _ => return None,
        }
    }
    Some(play(histories, first, all))
}

fn play(histories: u64, first: u64, all: bool) -> ExitCode {
    let begin = Instant::now();
    let (next, played, events) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (has_failed, failures) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    let work = || {
        while all || !has_failed.load(Relaxed) {
            let from = next.fetch_add(CHUNK, Relaxed);
            if from >= histories {
                return;
            }
            for seed in first + from..first + (from + CHUNK).min(histories) {
                played.fetch_add(1, Relaxed);
                match simulation::count_events(seed) {
                    Ok(count) => {
                        events.fetch_add(count, Relaxed);
                    }
                    Err(name) => {
                        has_failed.store(true, Relaxed);
                        let mut failures = failures.lock().expect("no thread panics");
                        let (count, _) = failures.entry(name).or_insert((0_u64, seed));
                        *count += 1;
                        if !all {
                            return;
                        }
                    }
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let seconds = begin.elapsed().as_secs_f64();
    let (played, events) = (played.into_inner(), events.into_inner());
    println!(
        "{played} histories, {events} events in {seconds:.1} s: {:.0} histories/s, {:.0} events/s",
        played as f64 / seconds,
        events as f64 / seconds
    );
    let failures = failures.into_inner().expect("no thread panics");
    for (name, (count, seed)) in &failures {
        println!("{name}: {count} histories, the first is of seed {seed}");
        println!("{}", simulation::check(*seed).unwrap_or_default());
    }
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
