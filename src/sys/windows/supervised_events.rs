//! Windows: the event objects by which a supervisor asks its processes to stop or to restart.
//!
//! A process makes these event objects beside those with its own prefix. Their prefix is `Local\`
//! and the name of the supervisor's notification pipe, which only the supervisor and its processes
//! know.

use std::ffi::OsStr;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::sync::OnceLock;

use windows_sys::Win32::System::Threading::{EVENT_MODIFY_STATE, OpenEventW, SetEvent};

use super::events::suffix_of;
use super::pipe::FOLDER;
use super::unsupported_error;
use crate::sys::Signal;

/// How the names of a supervisor's notification pipes begin.
pub(super) const PIPE_PREFIX: &str = "handover-";

/// The prefix of the processes of this supervisor.
static OF_THIS_SUPERVISOR: OnceLock<String> = OnceLock::new();

/// `manager` is the value of NOTIFY_SOCKET. `None` if that is no pipe of a supervisor.
pub(super) fn prefix_of(manager: &OsStr) -> Option<String> {
    let name = manager.to_str()?.strip_prefix(FOLDER)?;
    let is_ours = name.starts_with(PIPE_PREFIX) && !name.contains(['\\', '/']);
    is_ours.then(|| format!(r"Local\{name}"))
}

/// This process is a supervisor, with this notification pipe.
pub(super) fn record_supervisor(pipe: &OsStr) {
    if let Some(prefix) = prefix_of(pipe) {
        OF_THIS_SUPERVISOR.get_or_init(|| prefix);
    }
}

/// Sets the event object of a process of this supervisor that stands for the signal.
///
/// # Errors
///
/// `NotFound` if the process has made none.
#[allow(unsafe_code)]
pub(super) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let prefix = OF_THIS_SUPERVISOR.get().ok_or(io::ErrorKind::NotFound)?;
    let suffix = suffix_of(signal)
        .ok_or_else(|| unsupported_error("no event object stands for this signal"))?;
    let name = super::wide(&format!("{prefix}.{pid}.{suffix}"));
    // SAFETY: the name ends with a null, and the handle, which has no other owner, is open.
    unsafe {
        let event = OpenEventW(EVENT_MODIFY_STATE, 0, name.as_ptr());
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        let event = OwnedHandle::from_raw_handle(event);
        match SetEvent(event.as_raw_handle()) {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pipe_of_a_supervisor_names_event_objects() {
        for (manager, prefix) in [
            (r"\\.\pipe\handover-7-00ff", Some(r"Local\handover-7-00ff")),
            (r"\\.\pipe\other", None),
            (r"\\.\pipe\handover-7\x", None),
            ("/run/systemd/notify", None),
            ("", None),
        ] {
            assert_eq!(prefix_of(manager.as_ref()).as_deref(), prefix);
        }
    }
}
