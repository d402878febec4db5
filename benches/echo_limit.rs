//! How far `handover` is from the limit: the CPU time that an echo server spends on one request, against a
//! single-thread epoll loop written by hand, which has no queue, no deadlines and no workers to pay for.
//!
//! ```text
//! cargo bench --bench echo_limit -- [--rounds 5] [--seconds 2] [--connections 64,512] [--workers N] [--strace]
//! ```
//!
//! The program runs itself again in the roles of the two servers and of their clients. A server has CPU 0 and a client
//! CPU 1, each server is a process of its own, and the two take turns every tenth of a second, so that a machine which
//! becomes slower or faster meanwhile does so for both. CPU time is what is compared, because it stays meaningful where the
//! client is the slower one; the requests per second are there to show that both servers had the same work.
//!
//! `--strace` counts the system calls of further rounds, whose times are not used: strace slows the server down, so
//! that its waits return larger batches than they otherwise do.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    match support::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_limit: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("echo_limit needs Linux: it measures against epoll, through /proc.");
}
