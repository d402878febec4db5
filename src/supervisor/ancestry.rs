//! Ancestry of processes: a notification may name only processes that descend from the supervisor.

use std::fs;

/// How many ancestors are looked at. Between a process and its successor is one helper process,
/// which waits until the successor has executed its program.
const MAX_DEPTH: usize = 8;

/// Whether a process descends from this one. True as well where /proc (proc(5)) is not available.
pub(super) fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    let mut ancestors = std::iter::successors(Some(pid), |pid| parent(*pid)).take(MAX_DEPTH);
    parent(own).is_none() || pid != own && ancestors.any(|ancestor| ancestor == own)
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

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands before the last ")", and may itself contain any character.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_a_descendant_and_other_processes_are_not() {
        let own = std::process::id();
        assert!(parent(own).is_none() || !is_descendant(own) && !is_descendant(1));
        if let Ok(mut child) = std::process::Command::new("sleep").arg("10").spawn() {
            assert!(is_descendant(child.id()));
            child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .unwrap_or_default();
        }
    }
}
