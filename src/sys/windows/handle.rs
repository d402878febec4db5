//! Windows: what every call on a handle needs.

use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle, OwnedSocket};
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE, WAIT_FAILED, WAIT_OBJECT_0,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, GetFileInformationByHandle,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, INFINITE, OpenProcess, PROCESS_ACCESS_RIGHTS,
    PROCESS_QUERY_LIMITED_INFORMATION, WaitForSingleObject,
};
use windows_sys::core::BOOL;

/// What a process passes on: Winsock passes sockets in another way than the kernel passes handles.
#[derive(Debug)]
pub(super) enum Kind {
    Socket(OwnedSocket),
    Handle(OwnedHandle),
}

/// The result of a call that returns 0 for an error.
pub(in crate::sys) fn check(result: BOOL) -> io::Result<()> {
    match result {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The handle from a call that returns null for an error.
///
/// # Safety
///
/// A handle that is not null is open, and nothing else owns it.
#[allow(unsafe_code)]
pub(in crate::sys) unsafe fn own(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller says that the handle is open, and that nothing else owns it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// A second handle of an object in this process, which every program that this process starts with
/// inheritance gets, if `is_inheritable`.
#[allow(unsafe_code)]
pub(in crate::sys) fn duplicate(
    handle: BorrowedHandle<'_>,
    is_inheritable: bool,
) -> io::Result<OwnedHandle> {
    let mut copy = ptr::null_mut();
    // SAFETY: the handles of this process and of the object are open, and `copy` is alive.
    unsafe {
        check(DuplicateHandle(
            GetCurrentProcess(),
            handle.as_raw_handle(),
            GetCurrentProcess(),
            &mut copy,
            0,
            is_inheritable.into(),
            DUPLICATE_SAME_ACCESS,
        ))?;
        own(copy)
    }
}

/// Makes a handle of another process, which owns it, for an object of this process. The programs
/// that the other process starts do not inherit the handle. `access`: the rights of the handle, as
/// far as this process has them; `None` for those of `handle`.
#[allow(unsafe_code)]
pub(super) fn duplicate_into(
    process: BorrowedHandle<'_>,
    handle: BorrowedHandle<'_>,
    access: Option<u32>,
) -> io::Result<u64> {
    let mut copy = ptr::null_mut();
    let options = if access.is_none() {
        DUPLICATE_SAME_ACCESS
    } else {
        0
    };
    // SAFETY: the handles of both processes and of the object are open, and `copy` is alive.
    check(unsafe {
        DuplicateHandle(
            GetCurrentProcess(),
            handle.as_raw_handle(),
            process.as_raw_handle(),
            &mut copy,
            access.unwrap_or_default(),
            0,
            options,
        )
    })?;
    Ok(copy as u64)
}

/// A handle of a process. Its id is that of no other process as long as the handle is open.
#[allow(unsafe_code)]
pub(in crate::sys) fn open_process(
    pid: u32,
    access: PROCESS_ACCESS_RIGHTS,
) -> io::Result<OwnedHandle> {
    // SAFETY: the call takes numbers, and the handle has no other owner.
    unsafe { own(OpenProcess(access, 0, pid)) }
}

/// A handle to ask with. `None`: there is no such process, or it may not be asked.
pub(in crate::sys) fn query_process(pid: u32) -> Option<OwnedHandle> {
    open_process(pid, PROCESS_QUERY_LIMITED_INFORMATION).ok()
}

/// Waits until an object is signalled: until a process has ended, for example. False if that has
/// not happened in time.
#[allow(unsafe_code)]
pub(in crate::sys) fn wait_for(handle: BorrowedHandle<'_>, timeout: Duration) -> io::Result<bool> {
    // Rounded up, so that no wait ends early.
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    let millis = u32::try_from(millis).unwrap_or(INFINITE);
    // SAFETY: the handle is open.
    match unsafe { WaitForSingleObject(handle.as_raw_handle(), millis) } {
        WAIT_OBJECT_0 => Ok(true),
        WAIT_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(false),
    }
}

/// The volume and the number of an open file, which tell it from every other one.
#[allow(unsafe_code)]
pub(super) fn file_id(file: &impl AsRawHandle) -> io::Result<(u64, u64)> {
    let mut found = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open, and `found` is alive.
    check(unsafe { GetFileInformationByHandle(file.as_raw_handle(), &mut found) })?;
    let index = u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow);
    Ok((found.dwVolumeSerialNumber.into(), index))
}
