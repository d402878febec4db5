//! What many workers cost: CPU time, latency and context switches of an HTTP server with 2 to 256
//! workers, beside a server with a thread per connection and, as an option, hyper.
//!
//! ```text
//! cargo bench --bench workers --features http -- [--pinned] [--check] [--rounds 3] [--seconds 3]
//!     [--attempts 1] [--workers 2,16,64,256] [--connections 64,512]
//!     [--handlers fast,blocking,mixed,cpu] [--hyper PATH] [--baseline PATH]
//! ```
//!
//! | handler | what the clients request | latency of |
//! |---|---|---|
//! | `fast` | `GET /` | all requests |
//! | `blocking` | `GET /sleep?ms=5`, which sleeps for 5 ms | all requests |
//! | `mixed` | `GET /` nine times, then `GET /sleep?ms=5` | the nine |
//! | `cpu` | `GET /`; 8 more clients `GET /burn?ms=20`, which uses 20 ms of CPU time | `GET /` |
//!
//! Each client keeps its connection and sends the next request when it has the answer. All clients
//! are one process with one thread. A round measures every server under the same load, each in a
//! new process, before the next round begins. The table has the medians of the rounds.
//!
//! In "p99 by time" each request counts in proportion to its latency. While a server lets a few
//! clients starve, the others send more requests, so that the starving ones are too few for the
//! usual p99. This one shows them.
//!
//! - `--pinned`: the server has CPU 0, and the clients have CPU 1.
//! - `--hyper`: the program `hyper` of `benches/versus`, built there with `cargo build --release
//!   --bin hyper`.
//! - `--baseline`: this benchmark's executable, built from another commit. Its servers are measured
//!   in the same rounds, and the goal for the throughput of `blocking` compares with it.
//! - `--attempts`: measures again, up to so many times, while other programs use more than 5 % of
//!   the CPUs, and keeps the least disturbed measurement. Defaults to 1.
//! - `--check`: the exit code is 1 if a goal is missed. The goals are the last table.
//!
//! CPU time is the time that all threads of the server have run, user and system (the first field of
//! `/proc/PID/task/TID/schedstat`). In `cpu`, the time that the 8 clients asked for is subtracted.

#[cfg(target_os = "linux")]
#[path = "support/workers.rs"]
mod workers;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    workers::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("workers needs Linux: it measures through /proc.");
}
