//! Windows: named pipes. A supervisor receives notifications and the requests of the command
//! `handover` on them.
//!
//! A pipe is for the processes of this user, of administrators and of the system, see
//! [`security`](super::security), and not for other machines. A server has one instance of the pipe for
//! each client.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_PIPE_BUSY, ERROR_SEM_TIMEOUT, GENERIC_ALL,
    GENERIC_READ, GENERIC_WRITE, GetLastError, INVALID_HANDLE_VALUE, WAIT_OBJECT_0,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, OPEN_EXISTING,
    PIPE_ACCESS_DUPLEX, ReadFile, SECURITY_IDENTIFICATION, SECURITY_SQOS_PRESENT, WriteFile,
};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Pipes::{
    CreateNamedPipeW, GetNamedPipeClientProcessId, GetNamedPipeServerProcessId, PIPE_READMODE_BYTE,
    PIPE_READMODE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE, PIPE_TYPE_MESSAGE,
    PIPE_UNLIMITED_INSTANCES, PIPE_WAIT, SetNamedPipeHandleState, WaitNamedPipeW,
};
use windows_sys::Win32::System::Threading::{CreateEventW, INFINITE, WaitForSingleObject};

use super::security::OwnersOnly;

/// Where the names of pipes are.
pub(super) const FOLDER: &str = r"\\.\pipe\";

/// What a pipe holds in each direction until the other end reads, in bytes: more than the longest
/// message, so that a write of one never waits.
const BUFFER: u32 = 128 * 1024;

/// What goes through a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PipeKind {
    Messages,
    Bytes,
}

/// The name of a pipe as the system has it: a name without a backslash or a slash is in the folder
/// of all pipes.
pub(super) fn full_name(name: &Path) -> OsString {
    let text = name.to_string_lossy();
    match text.contains(['\\', '/']) {
        true => name.as_os_str().to_owned(),
        false => format!("{FOLDER}{text}").into(),
    }
}

/// A name for the system, with a null character at its end.
fn wide(name: &OsStr) -> Vec<u16> {
    name.encode_wide().chain([0]).collect()
}

/// Whether there is a pipe of this name.
pub(super) fn exists(name: &OsStr) -> bool {
    wait_for_instance(name, Duration::ZERO).is_ok()
}

/// An instance of a pipe, on which this process waits for a client. The first instance must be the
/// only one, so that no other process has taken the name.
///
/// # Errors
///
/// `PermissionDenied` if the pipe exists already.
#[allow(unsafe_code)]
pub(super) fn create_instance(
    name: &OsStr,
    kind: PipeKind,
    is_first: bool,
) -> io::Result<OwnedHandle> {
    let name = wide(name);
    let owners = OwnersOnly::new(GENERIC_ALL)?;
    let attributes = owners.attributes();
    let mode = match kind {
        PipeKind::Messages => PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE,
        PipeKind::Bytes => PIPE_TYPE_BYTE | PIPE_READMODE_BYTE,
    };
    let first = match is_first {
        true => FILE_FLAG_FIRST_PIPE_INSTANCE,
        false => 0,
    };
    // SAFETY: the name ends with a null, and the attributes are alive. The handle has no other
    // owner.
    unsafe {
        let handle = CreateNamedPipeW(
            name.as_ptr(),
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | first,
            mode | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
            PIPE_UNLIMITED_INSTANCES,
            BUFFER,
            BUFFER,
            0,
            &raw const attributes,
        );
        match handle {
            INVALID_HANDLE_VALUE => Err(io::Error::last_os_error()),
            handle => Ok(OwnedHandle::from_raw_handle(handle)),
        }
    }
}

/// The process at the other end of an instance, as the system reports it.
#[allow(unsafe_code)]
pub(super) fn client_pid(pipe: &OwnedHandle) -> io::Result<u32> {
    let mut pid = 0;
    // SAFETY: the handle is open, and the id is written to a live place.
    match unsafe { GetNamedPipeClientProcessId(pipe.as_raw_handle(), &raw mut pid) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(pid),
    }
}

/// The client's end of a pipe.
#[derive(Debug)]
pub(super) struct PipeClient {
    pipe: OwnedHandle,
    /// Signalled when the operation in progress has ended.
    event: OwnedHandle,
}

#[allow(unsafe_code)]
impl PipeClient {
    /// # Errors
    ///
    /// `NotFound` if there is no such pipe, and `WouldBlock` if all of its instances have a client.
    pub(super) fn open(name: &OsStr, kind: PipeKind) -> io::Result<Self> {
        let name = wide(name);
        // The server may find out who this process is, but may not act as its user.
        let flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION;
        // SAFETY: the name ends with a null. The handles have no other owners.
        unsafe {
            let handle = CreateFileW(
                name.as_ptr(),
                GENERIC_READ | GENERIC_WRITE,
                0,
                ptr::null(),
                OPEN_EXISTING,
                flags,
                ptr::null_mut(),
            );
            if handle == INVALID_HANDLE_VALUE {
                let error = io::Error::last_os_error();
                return match error.raw_os_error().map(|code| code as u32) {
                    Some(ERROR_PIPE_BUSY) => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Err(error),
                };
            }
            let pipe = OwnedHandle::from_raw_handle(handle);
            let event = CreateEventW(ptr::null(), 1, 0, ptr::null());
            if event.is_null() {
                return Err(io::Error::last_os_error());
            }
            let event = OwnedHandle::from_raw_handle(event);
            let client = Self { pipe, event };
            if kind == PipeKind::Messages {
                let mode = PIPE_READMODE_MESSAGE;
                let (none, handle) = (ptr::null(), client.pipe.as_raw_handle());
                if SetNamedPipeHandleState(handle, &raw const mode, none, none) == 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(client)
        }
    }

    /// As [`open`](Self::open), but waits while all instances have a client.
    pub(super) fn open_by(
        name: &OsStr,
        kind: PipeKind,
        deadline: Option<Instant>,
    ) -> io::Result<Self> {
        loop {
            match Self::open(name, kind) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                opened => return opened,
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait_for_instance(name, left.unwrap_or(Duration::from_secs(60)))?;
        }
    }

    /// The process that has made the pipe.
    pub(super) fn server_pid(&self) -> io::Result<u32> {
        let mut pid = 0;
        // SAFETY: the handle is open, and the id is written to a live place.
        match unsafe { GetNamedPipeServerProcessId(self.pipe.as_raw_handle(), &raw mut pid) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(pid),
        }
    }

    /// Writes a message, or a part of the bytes.
    ///
    /// # Errors
    ///
    /// `TimedOut`: nothing was written.
    pub(super) fn write(&self, bytes: &[u8], limit: Option<Duration>) -> io::Result<usize> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.perform(limit, |handle, overlapped| {
            // SAFETY: the bytes live until the operation has ended, as `perform` says.
            unsafe { WriteFile(handle, bytes.as_ptr(), length, ptr::null_mut(), overlapped) }
        })
    }

    /// Reads a message, or what has come. 0 is the end.
    ///
    /// # Errors
    ///
    /// `TimedOut`: nothing has come. `InvalidData`: the message is longer than the buffer.
    pub(super) fn read(&self, into: &mut [u8], limit: Option<Duration>) -> io::Result<usize> {
        let length = u32::try_from(into.len()).map_err(io::Error::other)?;
        let read = self.perform(limit, |handle, overlapped| {
            // SAFETY: the buffer lives until the operation has ended, as `perform` says.
            unsafe {
                ReadFile(
                    handle,
                    into.as_mut_ptr(),
                    length,
                    ptr::null_mut(),
                    overlapped,
                )
            }
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            Err(error) if error.raw_os_error() == Some(ERROR_MORE_DATA as i32) => {
                Err(io::ErrorKind::InvalidData.into())
            }
            read => read,
        }
    }

    /// Starts an operation and waits for its end, or ends it after the limit. The operation has
    /// ended when this returns.
    fn perform(
        &self,
        limit: Option<Duration>,
        start: impl FnOnce(std::os::windows::io::RawHandle, *mut OVERLAPPED) -> i32,
    ) -> io::Result<usize> {
        let handle = self.pipe.as_raw_handle();
        let mut count = 0;
        // SAFETY: the structure lives until the operation has ended: this waits for its end, also
        // after it was cancelled. The handles are open.
        unsafe {
            let mut overlapped: OVERLAPPED = std::mem::zeroed();
            overlapped.hEvent = self.event.as_raw_handle();
            if start(handle, &raw mut overlapped) == 0 && GetLastError() != ERROR_IO_PENDING {
                return Err(io::Error::last_os_error());
            }
            let limit = limit.map_or(INFINITE, to_millis);
            let is_late = WaitForSingleObject(self.event.as_raw_handle(), limit) != WAIT_OBJECT_0;
            if is_late {
                CancelIoEx(handle, &raw const overlapped);
            }
            match GetOverlappedResult(handle, &raw const overlapped, &raw mut count, 1) {
                0 if is_late => Err(io::ErrorKind::TimedOut.into()),
                0 => Err(io::Error::last_os_error()),
                _ => Ok(count as usize),
            }
        }
    }
}

/// Rounded up, so that no wait ends early; less than "for ever".
pub(super) fn to_millis(time: Duration) -> u32 {
    let millis = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(millis).map_or(u32::MAX - 1, |millis| millis.min(u32::MAX - 1))
}

/// Waits until an instance of the pipe may be free, for at most this long.
#[allow(unsafe_code)]
pub(super) fn wait_for_instance(name: &OsStr, limit: Duration) -> io::Result<()> {
    let name = wide(name);
    // Zero would be the time-out that the server has set.
    let millis = to_millis(limit).max(1);
    // SAFETY: the name ends with a null.
    if unsafe { WaitNamedPipeW(name.as_ptr(), millis) } != 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(code) if code == ERROR_SEM_TIMEOUT as i32 => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_in_the_folder_of_all_pipes() {
        for (name, full) in [
            ("app", r"\\.\pipe\app"),
            (r"\\.\pipe\app", r"\\.\pipe\app"),
            (r"\\other\pipe\app", r"\\other\pipe\app"),
            ("//./pipe/app", "//./pipe/app"),
        ] {
            assert_eq!(full_name(name.as_ref()), full);
        }
    }
}
