//! A crowd of clients that do nothing, little or harm, and one in their midst that wants an answer: how long it waits,
//! and what the crowd costs the server.
//!
//! ```text
//! cargo bench --bench crowd -- [--idle 8000] [--requests 5000]
//! ```
//!
//! The server is a process of its own with two workers, as `handover` makes them by default. Its crowd: idle clients,
//! which had one answer each and are parked; 200 that send a byte per second; 50 that asked for 64 KiB and do not
//! read. Of the time in between one client's requests, the machine's share is told by the same measurement before the
//! crowd comes. In the end every one of the crowd must get what is due to it, and the server come to rest.
//!
//! A second server has 64 file descriptors, a service that takes them all for a while, and 200 clients: what it costs
//! to have no descriptor left, and whether everybody is served afterwards.

#[cfg(target_os = "linux")]
#[path = "support/crowd.rs"]
mod crowd;
#[cfg(target_os = "linux")]
#[path = "support/descriptors.rs"]
mod descriptors;
#[cfg(target_os = "linux")]
#[path = "support/famine.rs"]
mod famine;
#[cfg(target_os = "linux")]
#[allow(
    dead_code,
    reason = "strace and the load client are another benchmark's"
)]
#[path = "support/process.rs"]
mod process;

/// Every failure ends the benchmark with its message; nothing here is recovered from.
#[cfg(target_os = "linux")]
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crowd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the role that the arguments name: without one, that of the benchmark which starts the others.
#[cfg(target_os = "linux")]
fn play() -> Result<()> {
    use lexopt::Arg::{Long, Value};
    use lexopt::ValueExt;

    let (mut idle, mut requests, mut role) = (None, None, None);
    // `cargo bench NAME` hands the name to every benchmark.
    let (mut bench, mut filtered_out) = (false, false);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("idle") => idle = Some(args.value()?.parse()?),
            Long("requests") => requests = Some(args.value()?.parse()?),
            Long("role") => role = Some(args.value()?.string()?),
            Long("bench") => bench = true,
            Value(filter) => filtered_out = !"crowd".contains(&filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    // Without `--bench` it is `cargo test --benches` that runs this, which wants to know whether it works.
    let (all_idle, all_requests) = if bench { (8000, 5000) } else { (200, 200) };
    match role.as_deref() {
        None if filtered_out => Ok(()),
        None => {
            crowd::run(idle.unwrap_or(all_idle), requests.unwrap_or(all_requests))?;
            famine::run()
        }
        Some("crowd") => crowd::serve(),
        Some("famine") => famine::serve(),
        Some(other) => Err(format!("no such role: {other}").into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("crowd needs Linux: it measures through /proc.");
}
