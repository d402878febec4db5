//! Windows: a handle of a process by its id.

use std::io;
use std::os::windows::io::{FromRawHandle, OwnedHandle};

use windows_sys::Win32::System::Threading::{
    OpenProcess, PROCESS_ACCESS_RIGHTS, PROCESS_QUERY_LIMITED_INFORMATION,
};

/// A handle of a process. Its id is that of no other process as long as the handle is open.
#[allow(unsafe_code)]
pub(super) fn open_process(pid: u32, access: PROCESS_ACCESS_RIGHTS) -> io::Result<OwnedHandle> {
    // SAFETY: the call takes numbers, and the handle has no other owner.
    unsafe {
        let process = OpenProcess(access, 0, pid);
        match process.is_null() {
            true => Err(io::Error::last_os_error()),
            false => Ok(OwnedHandle::from_raw_handle(process)),
        }
    }
}

/// A handle to ask with. `None`: there is no such process, or it may not be asked.
pub(super) fn query(pid: u32) -> Option<OwnedHandle> {
    open_process(pid, PROCESS_QUERY_LIMITED_INFORMATION).ok()
}
