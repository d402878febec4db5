//! Windows: the completion port of a supervisor. The ends of operations on pipes are reported
//! there, and other threads post an empty packet to wake the supervisor's loop.
//!
//! The port is one queue, so that operations end in the order in which they were completed: a
//! notification that a process has sent after another one is also received after it.
//!
//! One thread takes packets from the port and delivers them: that of the supervisor.
//!
//! The kernel owns an [`Operation`] from its start until its packet is taken from the port.

use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::sys::unix::pipe::to_millis;
use windows_sys::Win32::Foundation::{
    ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_NO_DATA, ERROR_PIPE_CONNECTED, GetLastError, HANDLE,
    INVALID_HANDLE_VALUE, STATUS_BUFFER_OVERFLOW, STATUS_SUCCESS, WAIT_TIMEOUT,
};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{
    CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Pipes::ConnectNamedPipe;
use windows_sys::Win32::System::Threading::INFINITE;

/// The receiver of the end of an operation.
pub(super) trait Target: Send + Sync {
    fn complete(&self, done: Done);
}

/// An operation that has ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) kind: OperationKind,
    pub(super) outcome: Outcome,
    /// The bytes that were read, or the buffer of a write.
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperationKind {
    Connect,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This many bytes.
    Done(usize),
    /// The message is longer than the buffer.
    TooLong,
    /// The other process has closed its end, or this one has.
    Failed,
}

/// What the kernel works with.
#[repr(C)]
struct Operation {
    /// The first field: a packet of the port points to it.
    overlapped: OVERLAPPED,
    kind: OperationKind,
    target: Arc<dyn Target>,
    buffer: Vec<u8>,
}

static PORT: OnceLock<OwnedHandle> = OnceLock::new();

/// The most packets that one call takes.
const BATCH: usize = 64;

#[allow(unsafe_code)]
fn port() -> io::Result<&'static OwnedHandle> {
    if let Some(port) = PORT.get() {
        return Ok(port);
    }
    // SAFETY: without a file, the call makes a port, whose handle has no other owner.
    let handle = unsafe {
        let handle = CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 1);
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        OwnedHandle::from_raw_handle(handle)
    };
    // Another thread may have been faster.
    Ok(PORT.get_or_init(|| handle))
}

/// Has the ends of operations on a pipe reported to the port.
#[allow(unsafe_code)]
pub(super) fn associate(file: &OwnedHandle) -> io::Result<()> {
    let port = port()?.as_raw_handle();
    // SAFETY: both handles are open.
    match unsafe { CreateIoCompletionPort(file.as_raw_handle(), port, 0, 0) }.is_null() {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

/// Ends the present or the next [`wait`].
#[allow(unsafe_code)]
pub(super) fn wake() {
    if let Ok(port) = port() {
        // SAFETY: the port is open, and the packet has no operation.
        unsafe { PostQueuedCompletionStatus(port.as_raw_handle(), 0, 0, ptr::null()) };
    }
}

/// Delivers what has ended, without waiting.
pub(super) fn deliver() -> io::Result<()> {
    wait(Some(Duration::ZERO)).map(drop)
}

/// Waits until an operation ends, or [`wake`] is called, and delivers all that has ended. False
/// after the time-out.
#[allow(unsafe_code)]
pub(super) fn wait(timeout: Option<Duration>) -> io::Result<bool> {
    let port = port()?;
    let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut has_any = false;
    loop {
        // What else has ended is taken without waiting.
        let left = match (has_any, end) {
            (true, _) => 0,
            (false, Some(end)) => to_millis(end.saturating_duration_since(Instant::now())),
            (false, None) => INFINITE,
        };
        // SAFETY: any bits are entries.
        let mut entries: [OVERLAPPED_ENTRY; BATCH] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: the port is open, and the call writes at most `BATCH` live entries.
        let done = unsafe {
            GetQueuedCompletionStatusEx(
                port.as_raw_handle(),
                entries.as_mut_ptr(),
                BATCH as u32,
                &raw mut count,
                left,
                0,
            )
        };
        if done == 0 {
            // SAFETY: the call takes nothing.
            match unsafe { GetLastError() } {
                WAIT_TIMEOUT if left == 0 => return Ok(has_any),
                // A long time-out is waited for in parts.
                WAIT_TIMEOUT => continue,
                error => return Err(io::Error::from_raw_os_error(error as i32)),
            }
        }
        has_any = true;
        for entry in entries.iter().take(count as usize) {
            if !entry.lpOverlapped.is_null() {
                // SAFETY: only operations of this file are started on the port, each is a box that
                // was leaked at the start, and each has one packet.
                unsafe { end_operation(entry.lpOverlapped) };
            }
        }
    }
}

/// # Safety
///
/// To be called once with the pointer of a packet.
#[allow(unsafe_code)]
unsafe fn end_operation(overlapped: *mut OVERLAPPED) {
    // SAFETY: the pointer is that of the first field of a leaked box.
    let operation = unsafe { Box::from_raw(overlapped.cast::<Operation>()) };
    let Operation {
        overlapped,
        kind,
        target,
        mut buffer,
    } = *operation;
    let outcome = match overlapped.Internal as u32 as i32 {
        STATUS_SUCCESS => Outcome::Done(overlapped.InternalHigh),
        STATUS_BUFFER_OVERFLOW => Outcome::TooLong,
        _ => Outcome::Failed,
    };
    if let (OperationKind::Read, Outcome::Done(count)) = (kind, outcome) {
        buffer.truncate(count);
    }
    target.complete(Done {
        kind,
        outcome,
        bytes: buffer,
    });
}

/// Starts to wait for a client of this instance of a pipe.
pub(super) fn begin_connect(pipe: BorrowedHandle<'_>, target: Arc<dyn Target>) -> io::Result<()> {
    begin(OperationKind::Connect, Vec::new(), target, pipe)
}

/// Starts to read a message, or what has come of a stream, of at most this length.
pub(super) fn begin_read(
    pipe: BorrowedHandle<'_>,
    length: usize,
    target: Arc<dyn Target>,
) -> io::Result<()> {
    begin(OperationKind::Read, vec![0; length], target, pipe)
}

/// Starts to write.
pub(super) fn begin_write(
    pipe: BorrowedHandle<'_>,
    bytes: Vec<u8>,
    target: Arc<dyn Target>,
) -> io::Result<()> {
    begin(OperationKind::Write, bytes, target, pipe)
}

#[allow(unsafe_code)]
fn begin(
    kind: OperationKind,
    buffer: Vec<u8>,
    target: Arc<dyn Target>,
    pipe: BorrowedHandle<'_>,
) -> io::Result<()> {
    let port = port()?.as_raw_handle();
    let operation = Box::new(Operation {
        // SAFETY: zeros are a structure for a new operation.
        overlapped: unsafe { std::mem::zeroed() },
        kind,
        target,
        buffer,
    });
    let pipe: HANDLE = pipe.as_raw_handle();
    let operation = Box::into_raw(operation);
    // SAFETY: the operation and its buffer stay where they are until its packet is taken, and the
    // kernel alone uses them.
    unsafe {
        let overlapped = operation.cast::<OVERLAPPED>();
        let (buffer, length) = ((*operation).buffer.as_mut_ptr(), (*operation).buffer.len());
        let done = match kind {
            OperationKind::Connect => ConnectNamedPipe(pipe, overlapped),
            OperationKind::Read => {
                ReadFile(pipe, buffer, length as u32, ptr::null_mut(), overlapped)
            }
            OperationKind::Write => {
                WriteFile(pipe, buffer, length as u32, ptr::null_mut(), overlapped)
            }
        };
        if done != 0 {
            return Ok(());
        }
        match (GetLastError(), kind) {
            (ERROR_IO_PENDING, _) => Ok(()),
            // The message is longer than the buffer, which its packet tells.
            (ERROR_MORE_DATA, OperationKind::Read) => Ok(()),
            // The client was there before, or is gone already: what it has written can be read. No
            // packet comes, so that one is posted, behind those of earlier clients.
            (ERROR_PIPE_CONNECTED | ERROR_NO_DATA, OperationKind::Connect) => {
                (*overlapped).Internal = STATUS_SUCCESS as usize;
                if PostQueuedCompletionStatus(port, 0, 0, overlapped) != 0 {
                    return Ok(());
                }
                let error = io::Error::last_os_error();
                drop(Box::from_raw(operation));
                Err(error)
            }
            (error, _) => {
                drop(Box::from_raw(operation));
                Err(io::Error::from_raw_os_error(error as i32))
            }
        }
    }
}

/// Tests that use the port run one after another.
#[cfg(test)]
pub(super) static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
