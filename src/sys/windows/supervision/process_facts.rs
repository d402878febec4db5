//! Windows: what is known of other processes.

use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::{FILETIME, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW, TH32CS_SNAPPROCESS,
};
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::SystemInformation::GetSystemTimeAsFileTime;
use windows_sys::Win32::System::Threading::GetProcessTimes;

use super::guardian;
use crate::sys::unix::handle::query_process;

/// How many processes are looked at on the way from a process to one of the service.
const MAX_DEPTH: usize = 8;

/// Whether the process is one of the service, or one of them has started it. On Windows, a
/// process that has lost its parent gets no other parent.
pub(crate) fn is_descendant(pid: u32) -> Option<bool> {
    let line = std::iter::successors(Some(pid), |pid| parent_of(*pid)).take(MAX_DEPTH);
    let own = std::process::id();
    let mut line = line.skip_while(|pid| *pid != own && !guardian::contains(*pid));
    Some(line.next().is_some_and(|found| found != own || pid != own))
}

/// How long ago a process was started.
pub(crate) fn age_of(pid: u32) -> Option<Duration> {
    let started_at = creation_time(&query_process(pid)?)?;
    let mut now = FILETIME::default();
    // SAFETY: the call writes to a live structure.
    #[allow(unsafe_code)]
    unsafe {
        GetSystemTimeAsFileTime(&raw mut now);
    }
    Some(Duration::from_nanos(
        ticks(now).saturating_sub(started_at).saturating_mul(100),
    ))
}

/// In units of 100 ns.
#[allow(unsafe_code)]
fn creation_time(process: &OwnedHandle) -> Option<u64> {
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: the handle is open, and the call writes to live structures.
    let done = unsafe { GetProcessTimes(process.as_raw_handle(), created, exited, kernel, user) };
    (done != 0).then(|| ticks(*created))
}

fn ticks(time: FILETIME) -> u64 {
    u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime)
}

/// The resident size of a process in bytes: its working set.
#[allow(unsafe_code)]
pub(crate) fn resident_size(pid: u32) -> Option<u64> {
    let process = query_process(pid)?;
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let size = size_of_val(&counters) as u32;
    // SAFETY: the handle is open, and the structure is alive and has this size.
    let done = unsafe {
        K32GetProcessMemoryInfo(process.as_raw_handle(), ptr::from_mut(&mut counters), size)
    };
    (done != 0).then_some(counters.WorkingSetSize as u64)
}

/// The process that has started this one, if it has not ended. Its id may have become that of a
/// younger process, which is no parent.
#[allow(unsafe_code)]
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    // SAFETY: the call takes numbers, and the handle has no other owner.
    let snapshot = unsafe {
        let snapshot = CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0);
        if snapshot == INVALID_HANDLE_VALUE {
            return None;
        }
        OwnedHandle::from_raw_handle(snapshot)
    };
    let mut entry = PROCESSENTRY32W {
        dwSize: size_of::<PROCESSENTRY32W>() as u32,
        ..PROCESSENTRY32W::default()
    };
    // SAFETY: the handle is open, and the structure is alive and says its size.
    let mut has_entry = unsafe { Process32FirstW(snapshot.as_raw_handle(), &raw mut entry) };
    while has_entry != 0 {
        if entry.th32ProcessID == pid {
            let parent = entry.th32ParentProcessID;
            let is_older =
                creation_time(&query_process(parent)?)? <= creation_time(&query_process(pid)?)?;
            return is_older.then_some(parent);
        }
        // SAFETY: as above.
        has_entry = unsafe { Process32NextW(snapshot.as_raw_handle(), &raw mut entry) };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};

    use super::*;

    #[test]
    fn a_child_has_a_parent_an_age_and_a_size() {
        // Waits for its input, which is a pipe.
        let mut command = Command::new("cmd.exe");
        let command = command.stdin(process::Stdio::piped());
        let mut child = command.stdout(process::Stdio::null()).spawn().unwrap();
        assert_eq!(parent_of(child.id()), Some(process::id()));
        assert!(age_of(child.id()).unwrap() < Duration::from_secs(60));
        assert!(resident_size(child.id()).unwrap() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent_of(u32::MAX - 3), None);
        assert_eq!(is_descendant(u32::MAX - 3), Some(false));
    }
}
