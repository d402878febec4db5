//! Restarts under idle and active clients: how fast open connections move to the successor, and how long the longest
//! pause is that a client sees.
//!
//! ```text
//! cargo bench --bench moves -- [--idle 8000] [--active 32] [--think-us 0] [--restarts 10] [--scale]
//! ```
//!
//! The server is a process of its own, and so is each successor. Active clients send a line, and wait for so many
//! microseconds (`--think-us`) when they have the answer: with 0, they keep all cores busy. They do so for a while
//! without a restart, and then over the restarts. In the end each client, the idle ones too, must be answered on its first
//! connection. With `--scale`, two processes serve under a supervisor, and one of them gives its clients to the other,
//! instead of a restart.

#[cfg(target_os = "linux")]
#[path = "support/descriptors.rs"]
mod descriptors;
#[cfg(target_os = "linux")]
#[path = "support/moves.rs"]
mod moves;
#[cfg(target_os = "linux")]
#[allow(
    dead_code,
    reason = "strace and the load client are another benchmark's"
)]
#[path = "support/process.rs"]
mod process;
#[cfg(target_os = "linux")]
#[path = "support/scale.rs"]
mod scale;

/// Every failure ends the benchmark with its message; nothing here is recovered from.
#[cfg(target_os = "linux")]
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moves: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the role that the arguments name: without one, that of the benchmark which starts the others.
#[cfg(target_os = "linux")]
fn play() -> Result<()> {
    use std::time::Duration;

    use lexopt::Arg::{Long, Value};
    use lexopt::ValueExt;

    let (mut idle, mut active, mut restarts, mut role) = (None, None, None, None);
    let mut think_us = 0;
    // `cargo bench NAME` hands the name to every benchmark.
    let (mut bench, mut filtered_out) = (false, false);
    let (mut scales, mut control) = (false, None);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("idle") => idle = Some(args.value()?.parse()?),
            Long("active") => active = Some(args.value()?.parse()?),
            Long("think-us") => think_us = args.value()?.parse()?,
            Long("restarts") => restarts = Some(args.value()?.parse()?),
            Long("scale") => scales = true,
            Long("control") => control = Some(std::path::PathBuf::from(args.value()?)),
            Long("role") => role = Some(args.value()?.string()?),
            Long("bench") => bench = true,
            Value(filter) => filtered_out = !"moves".contains(&filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    // Without `--bench` it is `cargo test --benches` that runs this, which wants to know whether it works.
    let usual = if bench { (8000, 32, 10) } else { (200, 4, 2) };
    match role.as_deref() {
        None if filtered_out => Ok(()),
        None => {
            let run = if scales { scale::run } else { moves::run };
            run(
                idle.unwrap_or(usual.0),
                active.unwrap_or(usual.1),
                Duration::from_micros(think_us),
                restarts.unwrap_or(usual.2),
            )
        }
        Some("moves") => moves::serve(),
        Some("scale") => scale::serve(&control.ok_or("--control is missing")?),
        Some(other) => Err(format!("no such role: {other}").into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("moves needs Linux: connections move there only.");
}
