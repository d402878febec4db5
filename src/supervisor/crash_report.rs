//! What a process hangs in, for the log, as far as the system tells: before it is ended, and all of that is gone.

use std::fs;

/// No more threads than these are looked at.
const MOST: usize = 64;

/// A line for each thread of a process: its name, its state, and what it waits for in the kernel (proc(5)).
pub(super) fn threads(pid: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lines = tasks.flatten().take(MOST).map(|task| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let of_status = |name| {
            let line = status
                .lines()
                .find_map(|line: &str| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let (name, state) = (of_status("Name:"), of_status("State:"));
        let (wchan, syscall) = (read("wchan"), read("syscall"));
        let syscall = syscall.split(' ').next().unwrap_or_default().trim();
        // For root only.
        let stack = read("stack");
        let stack: Vec<_> = stack
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        format!(
            "thread {name}: {state}, in {wchan}, system call {syscall} {}",
            stack.join(" < ")
        )
    });
    lines.collect()
}
