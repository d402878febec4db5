//! Windows: a handle of a process.

use std::ffi::c_void;
use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::os::windows::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent, GetConsoleProcessList,
};
use windows_sys::Win32::System::Threading::{
    GetExitCodeProcess, INFINITE, PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE,
    PROCESS_TERMINATE, RegisterWaitForSingleObject, TerminateProcess, UnregisterWaitEx,
    WT_EXECUTEINWAITTHREAD, WT_EXECUTEONLYONCE, WaitForSingleObject,
};

use super::port;
use crate::log;
use crate::sys::Signal;
use crate::sys::unix::handle::open_process;
use crate::sys::unix::pipe::to_millis;
use crate::sys::unix::process::{is_child, leads_group};
use crate::sys::unix::{supervised_events, unsupported_error};

/// The exit code of a process that was aborted: that of the C library's `abort`.
const ABORTED: u32 = 3;

/// The exit code of a process that was killed.
const KILLED: u32 = 1;

/// A process: as long as this lives, no other process gets its id.
#[derive(Debug)]
pub(crate) struct ProcessWatch {
    pid: u32,
    /// Dropped before the handle.
    end_report: OnceLock<EndReport>,
    /// `None` if there was no such process.
    handle: Option<OwnedHandle>,
}

#[allow(unsafe_code)]
impl ProcessWatch {
    pub(crate) fn open(pid: u32) -> Self {
        let access = PROCESS_QUERY_LIMITED_INFORMATION | PROCESS_SYNCHRONIZE | PROCESS_TERMINATE;
        Self {
            pid,
            end_report: OnceLock::new(),
            handle: open_process(pid, access).ok(),
        }
    }

    /// Kills or aborts the process, or sets the event object that stands for the signal.
    pub(crate) fn send_signal(&self, signal: Signal) -> io::Result<()> {
        let code = match signal {
            Signal::Kill => KILLED,
            Signal::Abort => ABORTED,
            // A process cannot be stopped here, so there is nothing to continue.
            Signal::Continue => return Ok(()),
            Signal::Stop | Signal::Suspend => {
                return Err(unsupported_error("no process can be stopped on Windows"));
            }
            Signal::Terminate | Signal::Quit => {
                return match supervised_events::send(self.pid, signal) {
                    // A program of another kind, or one that has just begun.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.interrupt(),
                    sent => sent,
                };
            }
            _ => return supervised_events::send(self.pid, signal),
        };
        self.terminate(code)
    }

    /// Sends Ctrl-Break to a child, which ends the child if nothing handles Ctrl-Break. A child is
    /// killed if nothing can ask it to end: it has no process group of its own, so that all processes
    /// of the console would get the event, or it has another console than this process.
    fn interrupt(&self) -> io::Result<()> {
        if !is_child(self.pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !leads_group(self.pid) || !has_own_console(self.pid) {
            return self.terminate(KILLED);
        }
        // SAFETY: the call takes numbers. The child leads the group with its id.
        match unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self.pid) } {
            0 => self.terminate(KILLED),
            _ => Ok(()),
        }
    }

    fn terminate(&self, code: u32) -> io::Result<()> {
        let handle = self.handle.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: the handle is open.
        match unsafe { TerminateProcess(handle.as_raw_handle(), code) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// False for a process of which only the id is known.
    pub(super) fn is_known_to_have_ended(&self) -> bool {
        self.handle.is_some() && self.has_ended()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.wait_for_end(Duration::ZERO)
    }

    /// Waits for the end of the process. False if it has not ended in time.
    pub(crate) fn wait_for_end(&self, timeout: Duration) -> bool {
        let Some(handle) = &self.handle else {
            return true;
        };
        // SAFETY: the handle is open.
        let waited = unsafe { WaitForSingleObject(handle.as_raw_handle(), to_millis(timeout)) };
        waited == WAIT_OBJECT_0
    }

    /// How the process has ended. `None` if it has not, or is not known.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        let handle = self.handle.as_ref().filter(|_| self.has_ended())?;
        let mut code = 0;
        // SAFETY: the handle is open, and the code is written to a live place.
        let done = unsafe { GetExitCodeProcess(handle.as_raw_handle(), &raw mut code) };
        (done != 0).then(|| ExitStatus::from_raw(code))
    }

    /// Has the end of the process wake the supervisor.
    pub(super) fn report_end(&self) {
        if let (Some(handle), None) = (&self.handle, self.end_report.get()) {
            match EndReport::begin(handle) {
                Ok(report) => drop(self.end_report.set(report)),
                // The supervisor is awake, and tries again.
                Err(error) => {
                    log::error!("cannot wait for process {}: {error}", self.pid);
                    port::wake();
                }
            }
        }
    }
}

/// Whether a process has the console of this one. False if this process has none, as in a service.
#[allow(unsafe_code)]
fn has_own_console(pid: u32) -> bool {
    let mut pids = vec![0; 64];
    loop {
        let room = pids.len() as u32;
        // SAFETY: the call writes to at most `room` live numbers. It writes none if there are more.
        let count = unsafe { GetConsoleProcessList(pids.as_mut_ptr(), room) };
        if count <= room {
            return pids.iter().take(count as usize).any(|found| *found == pid);
        }
        pids.resize(count as usize, 0);
    }
}

/// A wait of the system's thread pool, whose threads wait for many handles each.
#[derive(Debug)]
struct EndReport(HANDLE);

#[allow(unsafe_code)]
// SAFETY: the handle of a wait is a number that every thread may use.
unsafe impl Send for EndReport {}
#[allow(unsafe_code)]
// SAFETY: the same; only the drop uses it.
unsafe impl Sync for EndReport {}

#[allow(unsafe_code)]
impl EndReport {
    fn begin(process: &OwnedHandle) -> io::Result<Self> {
        let mut wait = ptr::null_mut();
        let flags = WT_EXECUTEONLYONCE | WT_EXECUTEINWAITTHREAD;
        // SAFETY: the handle is open, and stays so until the drop has ended the wait. The function
        // uses no context.
        let done = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                process.as_raw_handle(),
                Some(wake),
                ptr::null(),
                INFINITE,
                flags,
            )
        };
        match done {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(Self(wait)),
        }
    }
}

#[allow(unsafe_code)]
impl Drop for EndReport {
    fn drop(&mut self) {
        // SAFETY: the wait has begun and was not ended. The call waits until the function has
        // returned, which does not block.
        unsafe { UnregisterWaitEx(self.0, INVALID_HANDLE_VALUE) };
    }
}

#[allow(unsafe_code)]
unsafe extern "system" fn wake(_context: *mut c_void, _is_timeout: bool) {
    port::wake();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::descriptor::create_pipe;
    use crate::sys::unix::process::spawn_child;
    use crate::sys::unix::process::tests::with_waiting_program;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_that_has_no_event_object_ends_and_this_process_goes_on() {
        for own_group in [false, true] {
            let (stdin, _writer) = create_pipe().unwrap();
            let pid = with_waiting_program(&stdin, own_group, spawn_child).unwrap();
            let process = ProcessWatch::open(pid);
            assert!(!process.has_ended());
            process.send_signal(Signal::Terminate).unwrap();
            assert!(process.wait_for_end(LIMIT));
            let code = process.exit_status().and_then(|status| status.code());
            if !own_group {
                // A Ctrl-Break would have gone to this process as well.
                assert_eq!(code, Some(KILLED as i32));
            }
        }
        let other = ProcessWatch::open(std::process::id());
        let refused = other.send_signal(Signal::Terminate).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }
}
