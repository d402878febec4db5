//! Who waits for how long under overload: clients that connect for each request, beside clients
//! that keep their connection; and clients that pipeline, beside clients that do not.
//!
//! ```text
//! cargo bench --bench fairness --features http -- [--pinned] [--check] [--rounds 3] [--seconds 3]
//!     [--attempts 1] [--queue 8,64,1024]
//! ```
//!
//! The server has two workers, and each request is a `GET /sleep?ms=5`, whose handler sleeps for
//! 5 ms. So the server answers 400 requests per second, and every load here asks for more.
//!
//! 1. 40 clients connect for each request, and 8 keep their connections, with queues of several
//!    lengths and the overload policies Wait and Refuse. A client that is refused tries again after
//!    20 ms. The latency of a request is counted from its connect. Only answered requests count.
//! 2. 16 clients keep their connections, with and without two more that send 500 requests at once,
//!    and the next 500 when they have all the answers.
//!
//! Each cell has a new server process. A round measures all cells before the next round begins, and
//! the tables have the medians of the rounds. The poller is the one that the benchmark was built
//! with: `RUSTFLAGS="--cfg handover_one_waiter"` builds it with the other one.
//!
//! With `--pinned` the server has CPU 0, and the clients have CPU 1. With `--check` the exit code
//! is 1 if a goal is missed. The goals are the last table. `--attempts N` measures again, up to N
//! times, while other programs use more than 5 % of the CPUs.

#[cfg(target_os = "linux")]
#[path = "support/fairness.rs"]
mod fairness;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    fairness::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("fairness needs Linux: it measures through /proc.");
}
