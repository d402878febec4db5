//! The thread report: what the threads of a process wait for, logged before the process is aborted.

use std::fs;

/// A report has at most this many threads.
const MAX_THREADS: usize = 64;

/// A line for each thread: its name, its state, and the kernel function and the system call in
/// which it waits (proc(5)). Empty if /proc does not tell.
pub(super) fn describe_threads(pid: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lines = tasks.flatten().take(MAX_THREADS).map(|task| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let status_field = |name| {
            let value = status
                .lines()
                .find_map(|line: &str| line.strip_prefix(name));
            value.unwrap_or_default().trim().to_owned()
        };
        let (name, state) = (status_field("Name:"), status_field("State:"));
        let (wchan, syscall) = (read("wchan"), read("syscall"));
        let syscall = syscall.split(' ').next().unwrap_or_default().trim();
        // Only root can read the kernel stack.
        let stack = read("stack");
        let functions: Vec<_> = stack
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        format!(
            "thread {name}: {state}, in {wchan}, system call {syscall} {}",
            functions.join(" < ")
        )
    });
    lines.collect()
}
