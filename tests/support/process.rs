//! Processes, as /proc shows them (proc(5)), and waits for what they do.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The time between two looks at what another process does.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

/// Waits until something holds. Other processes need the time more than this one.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    super::eventually(what, || {
        let holds = holds();
        if !holds {
            thread::park_timeout(PAUSE);
        }
        holds
    });
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// What proc_pid_stat(5) says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
}

/// `None` if there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Stat {
        state,
        parent: number()?,
        group: number()?,
    })
}

/// Whether a process runs: it has not ended, reaped or not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

pub(crate) fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// All processes that run in this directory.
pub(crate) fn processes_in(dir: &Path) -> Vec<i32> {
    let own = fs::canonicalize(dir).unwrap();
    let is_here = |pid: &i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        cwd.is_ok_and(|cwd| cwd == own) && is_alive(*pid)
    };
    all_pids().filter(is_here).collect()
}
