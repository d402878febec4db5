//! Ancestry, age and size of processes, from /proc: a notification may name only processes that
//! descend from the supervisor, the supervisor ends only such processes, and a process that is older
//! than a restart does not complete the restart.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::time::Instant;

use crate::sys;

/// How many ancestors are looked at. Between a process and its successor is one helper process,
/// which waits until the successor has executed its program.
const MAX_DEPTH: usize = 8;

/// Whether a process descends from this one. True as well where /proc (proc(5)) is not available.
pub(super) fn is_descendant(pid: u32) -> bool {
    is_line_of_descendant(&ancestors(pid).collect::<Vec<_>>())
}

/// As [`is_descendant`], of a process and its [`ancestors`].
pub(super) fn is_line_of_descendant(line: &[u32]) -> bool {
    let own = std::process::id();
    let has_own = || line.iter().skip(1).any(|pid| *pid == own) || parent(own).is_none();
    let first = line.first();
    let known = first.and_then(|pid| sys::supervision::is_descendant(*pid));
    known.unwrap_or_else(has_own)
}

/// The process, its parent, and so on, at most [`MAX_DEPTH`] processes.
pub(super) fn ancestors(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(pid), |pid| parent(*pid)).take(MAX_DEPTH)
}

/// The effective user of a process. `None` if there is no such process.
pub(super) fn user(pid: u32) -> Option<u32> {
    users(pid).map(|[_, effective, _]| effective)
}

/// The real, the effective and the saved user of a process. `None` if there is no such process.
pub(super) fn users(pid: u32) -> Option<[u32; 3]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut uids = uids.split_whitespace().map_while(|uid| uid.parse().ok());
    Some([uids.next()?, uids.next()?, uids.next()?])
}

fn parent(pid: u32) -> Option<u32> {
    sys::supervision::parent_of(pid).or_else(|| read_stat(pid).map(|stat| stat.parent))
}

/// When a process was started. The result may be up to 10 ms too late, and is never too early.
/// `None`: there is no such process, or /proc is not available.
pub(super) fn start_time(pid: u32) -> Option<Instant> {
    let own = || {
        Some(sys::supervision::time_since_tick(
            read_stat(pid)?.started_at,
        ))
    };
    let age = sys::supervision::age_of(pid).or_else(own)?;
    Instant::now().checked_sub(age)
}

/// The resident size of a process in bytes (`statm` in proc_pid_statm(5)).
pub(super) fn resident_size(pid: u32) -> Option<u64> {
    if let Some(bytes) = sys::supervision::resident_size(pid) {
        return Some(bytes);
    }
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(sys::supervision::page_size()))
}

/// Whether the environment with which a process executed its program has this entry. False if it
/// cannot be read.
pub(super) fn has_env_entry(pid: u32, entry: &[u8]) -> bool {
    let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    env.split(|byte| *byte == 0).any(|own| own == entry)
}

/// What is known of a process (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: u32,
    group: u32,
    /// Not reaped yet, or about to vanish.
    has_ended: bool,
    /// In clock ticks since the boot.
    started_at: u64,
}

/// All processes at one moment.
#[derive(Debug, Default)]
pub(super) struct ProcessTable(HashMap<u32, Stat>);

impl ProcessTable {
    /// # Errors
    ///
    /// /proc is not available, or no descriptor is free.
    pub(super) fn read() -> io::Result<Self> {
        let entries = fs::read_dir("/proc")?.flatten();
        // Another /proc, or none, may be mounted there, or this descriptor be the last free one.
        fs::read(format!("/proc/{}/stat", std::process::id()))?;
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let stats = pids.filter_map(|pid| Some((pid, read_stat(pid)?)));
        Ok(Self(stats.collect()))
    }

    /// The children of a process, in any state.
    pub(super) fn children(&self, of: u32) -> Vec<u32> {
        let children = self.0.iter().filter(|(_, stat)| stat.parent == of);
        children.map(|(pid, _)| *pid).collect()
    }

    /// These processes and their descendants, without those that have ended. The processes in
    /// `others`, and what descends from them, are left out.
    pub(super) fn trees(&self, roots: Vec<u32>, others: &HashSet<u32>) -> Vec<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, stat) in &self.0 {
            children.entry(stat.parent).or_default().push(*pid);
        }
        let (mut found, mut queue) = (Vec::new(), roots);
        while let Some(pid) = queue.pop() {
            if others.contains(&pid) {
                continue;
            }
            queue.extend(children.remove(&pid).unwrap_or_default());
            if self.0.get(&pid).is_some_and(|stat| !stat.has_ended) {
                found.push(pid);
            }
        }
        found
    }

    pub(super) fn is_in_group(&self, pid: u32, group: u32) -> bool {
        self.0.get(&pid).is_some_and(|stat| stat.group == group)
    }
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<Stat> {
    // The command's name stands before the last ")", and may itself contain any character.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some(Stat {
        has_ended: matches!(fields.next()?, "Z" | "X" | "x"),
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        // The 22nd field of the line.
        started_at: fields.nth(16)?.parse().ok()?,
    })
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

    #[test]
    fn a_tree_has_no_process_of_others_and_none_that_has_ended() {
        // Each line: id, state, parent, group.
        let processes = [
            (1, "S 0 1 1"),
            (10, "S 1 10 10"),
            (20, "S 10 20 10"),
            (21, "S 20 20 10"),
            (22, "Z 20 20 10"),
            (23, "R 22 23 23"),
            (30, "S 10 10 10"),
            (31, "S 30 10 10"),
        ];
        let stat = |(pid, rest)| {
            Some((
                pid,
                parse_stat(&format!("{pid} (a) b) {rest} 0 {}", "7 ".repeat(20)))?,
            ))
        };
        let table = ProcessTable(processes.into_iter().filter_map(stat).collect());
        for (others, wanted) in [
            (vec![], vec![20, 21, 23, 30, 31]),
            (vec![30], vec![20, 21, 23]),
            (vec![20, 31], vec![30]),
        ] {
            let mut tree = table.trees(table.children(10), &others.into_iter().collect());
            tree.sort_unstable();
            assert_eq!(tree, wanted);
        }
        assert!(table.is_in_group(21, 20) && !table.is_in_group(23, 20));
        assert!(!table.is_in_group(99, 20));
    }
}
