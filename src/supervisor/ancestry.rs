//! Ancestry, age and size of processes, from /proc: a notification may name only processes that
//! descend from the supervisor, and a process that is older than a restart does not complete the
//! restart.

use std::fs;
use std::str::FromStr;
use std::time::Instant;

use crate::sys;

/// How many ancestors are looked at. Between a process and its successor is one helper process,
/// which waits until the successor has executed its program.
const MAX_DEPTH: usize = 8;

/// Whether a process descends from this one. True as well where /proc (proc(5)) is not available.
pub(super) fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    parent(own).is_none() || pid != own && ancestors(pid).any(|ancestor| ancestor == own)
}

/// The process, its parent, and so on, at most [`MAX_DEPTH`] processes.
pub(super) fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pid), |pid| parent(*pid)).take(MAX_DEPTH)
}

/// The effective user of a process. `None` if there is no such process.
pub(super) fn user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // The real one comes first.
    uids.split_whitespace().nth(1)?.parse().ok()
}

/// The children of this process, in any state.
pub(super) fn children() -> Vec<u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(*pid) == Some(own)).collect()
}

/// When a process was started. The result may be up to 10 ms too late, and is never too early.
/// `None`: there is no such process, or /proc is not available.
pub(super) fn start_time(pid: u32) -> Option<Instant> {
    let age = sys::supervision::time_since_tick(stat_field(pid, 22)?);
    Instant::now().checked_sub(age)
}

/// The resident size of a process in bytes (`statm` in proc_pid_statm(5)).
pub(super) fn resident_size(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(sys::supervision::page_size()))
}

fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, 4)
}

/// A field of /proc/PID/stat by its number (proc_pid_stat(5)), from the third on.
fn stat_field<T: FromStr>(pid: u32, number: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands before the last ")", and may itself contain any character.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    fields.nth(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_child_is_a_descendant_and_other_processes_are_not() {
        let (own, before) = (std::process::id(), Instant::now());
        assert!(parent(own).is_none() || !is_descendant(own) && !is_descendant(1));
        if let Ok(mut child) = std::process::Command::new("sleep").arg("10").spawn() {
            assert!(is_descendant(child.id()));
            let started = start_time(child.id()).map(|at| at.saturating_duration_since(before));
            assert!(started.is_none_or(|after| after < Duration::from_secs(5)));
            assert!(start_time(own).is_none_or(|at| at <= Instant::now()));
            child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .unwrap_or_default();
        }
    }
}
