//! The environment variables that say what a process is started as, written and read.
//!
//! `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` are systemd's (sd_listen_fds(3)), and `HANDOVER`
//! is a [`Launch`] record. Both name the process that they are for: a child of that process
//! inherits the variables, but not the descriptors.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process;

use crate::log;
use crate::sys::{self, PidVariable};
use crate::wire::{Launch, LaunchError, to_fd_name};

const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The prefixes of variables that are for one process, and that its children must not inherit: the
/// variables above, MAINPID, and what systemd adds to these (LISTEN_PIDFDID and MAINPIDFDID, since
/// systemd 258); and the variables in which systemd names the process that they are for
/// (systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager"). Variables
/// for the whole service are kept, such as CREDENTIALS_DIRECTORY, INVOCATION_ID and
/// MEMORY_PRESSURE_WATCH.
const FOR_ONE_PROCESS: [&str; 5] = [
    LISTEN_PID,
    "LISTEN_FD",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
];

/// Whether the variable is for the process that has it, and not for its children.
pub(super) fn is_for_one_process(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let mut beginnings = FOR_ONE_PROCESS.iter();
    name == Launch::VARIABLE.as_bytes()
        || beginnings.any(|beginning| name.starts_with(beginning.as_bytes()))
}

/// More descriptors than any starter passes.
const MAX_PASSED: i32 = 4096;

/// The variables for a process that gets descriptors with these names, from
/// [`FIRST_PASSED`](crate::sys::FIRST_PASSED) on. The second part contains its process id.
pub(crate) fn passing_variables(names: &[String]) -> ([OsString; 2], PidVariable) {
    let list: Vec<String> = names.iter().map(|name| to_fd_name(name)).collect();
    let fds = format!("{LISTEN_FDS}={}", list.len()).into();
    let names = format!("{LISTEN_FDNAMES}={}", list.join(":")).into();
    let pid = PidVariable::new(format!("{LISTEN_PID}="), "");
    ([fds, names], pid)
}

/// The variable for a process that is started as this.
pub(crate) fn launch_variable(launch: &Launch) -> io::Result<PidVariable> {
    let (before, behind) = launch.encode_around_pid()?;
    let before = format!("{}={before}", Launch::VARIABLE);
    Ok(PidVariable::new(before, behind))
}

/// What this process was started as, if a supervisor or a predecessor started it.
///
/// # Errors
///
/// [`LaunchError`] if this process cannot understand what its starter wrote.
pub(crate) fn own_launch() -> Result<Option<Launch>, LaunchError> {
    Launch::read(&own_text(Launch::VARIABLE), process::id())
}

/// The names of the descriptors that were passed to this process.
pub(super) fn passed_names() -> Vec<String> {
    let variable = |name| env::var(name).unwrap_or_default();
    names_for_process(
        &own_text(LISTEN_PID),
        &variable(LISTEN_FDS),
        &variable(LISTEN_FDNAMES),
    )
}

/// A variable that is for this process only; empty if there is none.
fn own_text(name: &str) -> String {
    let value = sys::process::own_variable(name);
    value
        .and_then(|value| value.into_string().ok())
        .unwrap_or_default()
}

fn names_for_process(pid: &str, count: &str, names: &str) -> Vec<String> {
    if pid.parse() != Ok(process::id()) {
        return Vec::new();
    }
    let Ok(count @ 0..=MAX_PASSED) = count.parse() else {
        log::error!("{LISTEN_FDS} is not a number from 0 to {MAX_PASSED}: {count:?}");
        return Vec::new();
    };
    let mut given = names.split(':').filter(|_| !names.is_empty());
    let names = (0..count).map(|_| given.next().unwrap_or("unknown").to_owned());
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_for_one_process_are_known_by_their_beginning() {
        for (name, is_for_one) in [
            ("LISTEN_PID", true),
            ("LISTEN_PIDFDID", true),
            ("LISTEN_FDS", true),
            ("LISTEN_FDNAMES", true),
            ("MAINPID", true),
            ("MAINPIDFDID", true),
            ("WATCHDOG_PID", true),
            ("WATCHDOG_PIDFDID", true),
            ("SYSTEMD_EXEC_PID", true),
            ("HANDOVER", true),
            // These are the application's, or the whole service's.
            ("HANDOVER_SOCKET", false),
            ("LISTEN_ADDR", false),
            ("LISTEN_PORT", false),
            ("MY_LISTEN_PID", false),
            ("WATCHDOG_USEC", false),
            ("NOTIFY_SOCKET", false),
            ("MANAGERPID", false),
            ("CREDENTIALS_DIRECTORY", false),
            ("MEMORY_PRESSURE_WATCH", false),
            ("INVOCATION_ID", false),
            ("PATH", false),
        ] {
            assert_eq!(is_for_one_process(name.as_ref()), is_for_one, "{name}");
        }
    }

    #[test]
    fn descriptors_for_another_process_have_no_names() {
        let own = process::id().to_string();
        for pid in ["", "1", "x", "-1"] {
            assert!(names_for_process(pid, "1", "a").is_empty(), "{pid}");
        }
        for count in ["", "-1", "x", "100000"] {
            assert!(names_for_process(&own, count, "").is_empty(), "{count}");
        }
        assert_eq!(names_for_process(&own, "2", "a"), ["a", "unknown"]);
        assert_eq!(names_for_process(&own, "2", "a:b:c"), ["a", "b"]);
        assert_eq!(names_for_process(&own, "1", ""), ["unknown"]);
    }
}
