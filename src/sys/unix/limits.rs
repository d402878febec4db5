//! Unix: the limit of open descriptors (RLIMIT_NOFILE in getrlimit(2)).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::native::calls::most_descriptors;

/// The soft limit before it was raised, and after it; both 0 if it was not raised.
static BEFORE: AtomicU64 = AtomicU64::new(0);
static RAISED_TO: AtomicU64 = AtomicU64::new(0);

/// "No limit", as a number.
const UNLIMITED: u64 = u64::MAX;

/// Raises the soft limit to the hard one, for all threads. A second call finds nothing to raise.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let limits = getrlimit(Resource::Nofile);
    let bounds = [limits.maximum, most_descriptors()];
    let current = bounds.into_iter().flatten().min();
    let Some(soft) = limits.current else {
        return Ok(());
    };
    if soft >= current.unwrap_or(UNLIMITED) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current, ..limits })?;
    BEFORE.store(soft, SeqCst);
    // The kernel may have chosen a lower limit.
    RAISED_TO.store(descriptor_limit().unwrap_or(UNLIMITED), SeqCst);
    Ok(())
}

/// How many descriptors this process may have open. `None` if there is no limit.
pub(crate) fn descriptor_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile).current;
    [limit, most_descriptors()].into_iter().flatten().min()
}

/// Makes the child process of the command have the limit as it was before it was raised.
#[allow(unsafe_code)]
pub(crate) fn restore_descriptor_limit(command: &mut Command) {
    // SAFETY: between fork and exec, the closure makes only system calls that are
    // async-signal-safe, and reads atomics. It neither allocates nor locks.
    unsafe { command.pre_exec(restore_own_descriptor_limit) };
}

/// Sets the limit of this process to what it was before it was raised, unless other code has
/// changed it since. Async-signal-safe: for a new process, between fork and exec.
pub(super) fn restore_own_descriptor_limit() -> io::Result<()> {
    let limits = getrlimit(Resource::Nofile);
    let (before, raised_to) = (BEFORE.load(SeqCst), RAISED_TO.load(SeqCst));
    if before == 0 || limits.current.unwrap_or(UNLIMITED) != raised_to {
        return Ok(());
    }
    let current = Some(before);
    setrlimit(Resource::Nofile, Rlimit { current, ..limits })?;
    Ok(())
}
