//! The supervisor, with real processes and clients: crashes, hangs, bad versions, restarts and stops.
//!
//! A supervisor has to be on a process's main thread, which the usual harness keeps for itself; this one does not.

#[cfg(target_os = "linux")]
#[path = "../support/generations.rs"]
mod generations;
#[cfg(target_os = "linux")]
#[path = "../support/load.rs"]
mod load;
#[cfg(target_os = "linux")]
#[path = "../support/releases.rs"]
mod releases;
#[cfg(target_os = "linux")]
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod trials;

#[cfg(target_os = "linux")]
fn main() {
    generations::serve_if_child();
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, trials::all()).exit();
}

#[cfg(not(target_os = "linux"))]
fn main() {}
