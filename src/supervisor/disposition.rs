//! Whether a process survives a signal, as /proc tells. SIGUSR1 ends a process that has no handler
//! for it, and many programs have none.

use std::fs;

use crate::sys::{self, Signal};

/// Whether the process has a handler for the signal, ignores it, or all its threads block it, as a
/// program does that reads it from a descriptor (signalfd(2)). False if /proc does not tell.
pub(super) fn survives(pid: u32, signal: Signal) -> bool {
    if !sys::supervision::SIGNALS_ARE_FATAL {
        return true;
    }
    let bit = sys::supervision::mask_bit(signal);
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let statuses = tasks.flatten();
    let mut statuses = statuses.map(|task| fs::read_to_string(task.path().join("status")));
    let mut has_thread = false;
    // A thread that has ended meanwhile says nothing.
    let all = statuses.all(|status| match status {
        Ok(status) => {
            has_thread = true;
            is_harmless(&status, bit)
        }
        Err(_) => true,
    });
    has_thread && all
}

/// Whether a thread with this status (proc_pid_status(5)) handles, ignores or blocks the signal.
fn is_harmless(status: &str, bit: u64) -> bool {
    let mask = |name| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(mask.unwrap_or_default().trim(), 16).unwrap_or(0)
    };
    (mask("SigCgt:") | mask("SigIgn:") | mask("SigBlk:")) & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_harmless_if_it_is_caught_ignored_or_blocked() {
        for (status, expected) in [
            (
                "SigPnd:\t0200\nSigBlk:\t0000\nSigIgn:\t0000\nSigCgt:\t0200\n",
                true,
            ),
            ("SigBlk:\t0000\nSigIgn:\t0200\nSigCgt:\t0000\n", true),
            ("SigBlk:\t0200\nSigIgn:\t0000\nSigCgt:\t0000\n", true),
            (
                "SigBlk:\tfdff\nSigIgn:\tfdff\nSigCgt:\tfffffffffffffdff\n",
                false,
            ),
            ("SigPnd:\t0200\nShdPnd:\t0200\n", false),
            ("SigCgt:\tx\n", false),
            ("", false),
        ] {
            assert_eq!(is_harmless(status, 0x200), expected, "{status:?}");
        }
        let is_fatal = sys::supervision::SIGNALS_ARE_FATAL;
        assert_eq!(survives(u32::MAX, Signal::User1), !is_fatal);
    }
}
