//! Who descends from whom: a process may speak of its own only.

use std::fs;

/// How many generations are looked at: between a process and its successor is one that waits.
const DEPTH: usize = 8;

/// Whether a process is a child of this one, or of one that is. Where the system does not tell (proc(5)), it may be.
pub(super) fn descends(pid: u32) -> bool {
    let own = std::process::id();
    let mut ancestors = std::iter::successors(Some(pid), |pid| parent(*pid)).take(DEPTH);
    parent(own).is_none() || pid != own && ancestors.any(|ancestor| ancestor == own)
}

/// The children of this process.
pub(super) fn children() -> Vec<u32> {
    let own = std::process::id();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| parent(*pid) == Some(own)).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_descends_and_others_do_not() {
        let own = std::process::id();
        assert!(parent(own).is_none() || !descends(own) && !descends(1));
        if let Ok(mut child) = std::process::Command::new("sleep").arg("10").spawn() {
            assert!(descends(child.id()));
            child
                .kill()
                .and_then(|()| child.wait())
                .map(drop)
                .unwrap_or_default();
        }
    }
}
