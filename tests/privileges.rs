//! Privileges: what processes of another user can have root's supervisor do, what a process keeps of root's rights, and
//! files in directories that others write to.
//!
//! Most of it needs root, and is skipped without. A supervisor has to be on a process's main thread, which the usual
//! harness keeps for itself; this one does not.

#[cfg(target_os = "linux")]
#[path = "support/generations.rs"]
mod generations;
#[cfg(target_os = "linux")]
mod support;
#[cfg(target_os = "linux")]
#[path = "privileges/trials.rs"]
mod trials;

#[cfg(target_os = "linux")]
fn main() {
    generations::serve_if_child();
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, trials::all()).exit();
}

#[cfg(not(target_os = "linux"))]
fn main() {}
