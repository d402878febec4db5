//! The process's limit of open descriptors: raised at the start, and checked against the settings.
//!
//! The soft limit is 1024 on most systems, because of programs that call select(2), which fails
//! with larger numbers. A server needs a descriptor for each connection, and this crate never calls
//! select. Go's runtime raises the limit for the same reason, and restores the limit in child
//! processes. The standard library of Rust has no hook for all child processes. So this crate
//! restores the limit in the processes that this crate starts, and a handler calls
//! [`restore_descriptor_limit`] for the processes that the handler starts.

use std::process::Command;

use crate::log;
use crate::sys;

/// Descriptors beside those of connections: listeners, pollers, logs, and what handlers open.
const RESERVE: u64 = 64;

/// Gives the child process of a command the limit of open descriptors (the soft limit of
/// RLIMIT_NOFILE, see getrlimit(2)) that this process had before the server raised it, see
/// [`Builder::raise_descriptor_limit`](crate::Builder::raise_descriptor_limit).
///
/// Programs that call select(2) fail with descriptors above 1023, and some programs close every
/// descriptor up to the limit when they start. Has no effect if the limit was not raised, or on
/// Windows. A successor, and the processes of a supervisor, get the limit without this call.
///
/// # Examples
///
/// ```
/// use std::process::Command;
///
/// let mut command = Command::new("echo");
/// handover::restore_descriptor_limit(command.arg("hello")).status()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn restore_descriptor_limit(command: &mut Command) -> &mut Command {
    sys::limits::restore_descriptor_limit(command);
    command
}

/// Raises the limit, if that is wanted, and says so if it is too low for the connections: as a warning
/// if the application has set their number.
pub(super) fn prepare_descriptor_limit(raises: bool, max_connections: usize, is_set: bool) {
    if raises {
        if let Err(error) = sys::limits::raise_descriptor_limit() {
            log::warn!("cannot raise the limit of open descriptors: {error}");
        }
    }
    if let Some(warning) = warning(max_connections, sys::limits::descriptor_limit()) {
        match is_set {
            true => log::warn!("{warning}"),
            false => log::info!("{warning}"),
        }
    }
}

/// The warning about more connections than descriptors. `limit` is `None` if there is no limit.
fn warning(max_connections: usize, limit: Option<u64>) -> Option<String> {
    let limit = limit?;
    let needed = u64::try_from(max_connections).ok()?.saturating_add(RESERVE);
    (needed > limit).then(|| {
        format!(
            "max_connections is {max_connections}, but this process may open only {limit} \
             descriptors (ulimit -n): when they are used up, new clients wait"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_descriptors_are_warned_of() {
        for (connections, limit, warns) in [
            (960, Some(1024), false),
            (961, Some(1024), true),
            (65_536, Some(65_536), true),
            (usize::MAX, Some(u64::MAX), false),
            (usize::MAX, Some(1 << 20), true),
            (usize::MAX, None, false),
        ] {
            let text = warning(connections, limit);
            assert_eq!(text.is_some(), warns, "{connections} {limit:?}");
            let names = |text: String| text.contains("max_connections") && text.contains("ulimit");
            assert!(text.is_none_or(names));
        }
    }
}
