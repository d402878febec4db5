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
use crate::sys::unix::{console, supervised_events, unsupported_error};

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
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.interrupt(signal),
                    sent => sent,
                };
            }
            _ => return supervised_events::send(self.pid, signal),
        };
        self.terminate(code)
    }

    /// Asks a child without an event object to end.
    fn interrupt(&self, signal: Signal) -> io::Result<()> {
        if !is_child(self.pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (has_group, has_console) = (leads_group(self.pid), has_own_console(self.pid));
        match interruption(signal, has_group, has_console, console::has_delivered()) {
            Interruption::CtrlBreak => {
                // SAFETY: the call takes numbers. The child leads the group with its id.
                match unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self.pid) } {
                    0 => self.terminate(KILLED),
                    _ => Ok(()),
                }
            }
            Interruption::AlreadySent => Ok(()),
            Interruption::Kill => self.terminate(KILLED),
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

/// How a child without an event object is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interruption {
    /// By an event for the group of the child. It ends the child if the child does not handle it.
    CtrlBreak,
    /// The child has got the console event that this process has got. The stop time-out kills it.
    AlreadySent,
    /// Nothing can ask the child: an event would go to all processes of the console, or the child has
    /// another console than this process.
    Kill,
}

fn interruption(
    signal: Signal,
    leads_group: bool,
    has_own_console: bool,
    was_interrupted: bool,
) -> Interruption {
    match (leads_group, has_own_console) {
        (true, true) => Interruption::CtrlBreak,
        // SIGQUIT asks for an immediate end, and the console event only for a graceful one.
        (false, true) if was_interrupted && signal == Signal::Terminate => {
            Interruption::AlreadySent
        }
        _ => Interruption::Kill,
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
    use std::io::{BufRead, BufReader, Read, Write};

    use super::*;
    use crate::sys::descriptor::create_pipe;
    use crate::sys::unix::process::spawn_child;
    use crate::sys::unix::process::tests::{is_wine, with_program};
    use crate::sys::unix::supervision::reap_child;
    use crate::sys::{SpawnOptions, env_entry};

    const LIMIT: Duration = Duration::from_secs(60);

    /// The exit code of the child after Ctrl-Break.
    const INTERRUPTED: i32 = 7;

    const CHILD_VARIABLE: &str = "HANDOVER_TEST_CTRL_BREAK";

    /// Not a test: the child of the test below. Without its variable, this returns.
    #[test]
    fn child() {
        if std::env::var_os(CHILD_VARIABLE).is_none() {
            return;
        }
        console::watch(true, |_| std::process::exit(INTERRUPTED)).unwrap();
        println!("ready");
        io::stdout().flush().unwrap();
        // Until the parent ends, at the latest.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn a_child_without_event_objects_is_asked_by_ctrl_break_or_killed() {
        for own_group in [false, true] {
            let (stdin, _writer) = create_pipe().unwrap();
            let (reader, stdout) = create_pipe().unwrap();
            let program = std::env::current_exe().unwrap();
            let test = module_path!().split_once("::").unwrap().1;
            let args = [program.clone().into(), format!("{test}::child").into()];
            let args = args
                .into_iter()
                .chain(["--exact", "--nocapture"].map(Into::into));
            let args: Vec<_> = args.collect();
            let env = env_entry(CHILD_VARIABLE.as_ref(), "1".as_ref());
            let pid = with_program(&program, &args, &[env], |options| {
                let options = SpawnOptions {
                    stdin: Some(&stdin),
                    stdout: Some(&stdout),
                    own_group,
                    ..options
                };
                spawn_child(&options).unwrap()
            });
            drop(stdout);
            let process = ProcessWatch::open(pid);
            let mut lines = BufReader::new(std::fs::File::try_from(reader).unwrap()).lines();
            // The harness writes to the same line before.
            assert!(lines.any(|line| line.unwrap().ends_with("ready")));
            assert!(!process.has_ended());
            process.send_signal(Signal::Terminate).unwrap();
            assert!(process.wait_for_end(LIMIT));
            let code = process.exit_status().and_then(|status| status.code());
            match (own_group, is_wine()) {
                // A Ctrl-Break would have gone to this process as well.
                (false, _) => assert_eq!(code, Some(KILLED as i32)),
                (true, false) => assert_eq!(code, Some(INTERRUPTED)),
                (true, true) => {
                    let line =
                        "LEFT OUT: wine cannot: Ctrl-Break for the process group of a child\n";
                    io::stderr().write_all(line.as_bytes()).unwrap();
                }
            }
            while is_child(pid) {
                reap_child().unwrap();
            }
        }
        let other = ProcessWatch::open(std::process::id());
        let refused = other.send_signal(Signal::Terminate).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_graceful_stop_spares_a_child_that_has_got_the_console_event() {
        use Interruption::{AlreadySent, CtrlBreak, Kill};
        for (signal, leads_group, has_own_console, was_interrupted, expected) in [
            (Signal::Terminate, true, true, false, CtrlBreak),
            // Ctrl-C has not gone to its group.
            (Signal::Terminate, true, true, true, CtrlBreak),
            (Signal::Terminate, false, true, true, AlreadySent),
            (Signal::Terminate, false, true, false, Kill),
            (Signal::Terminate, true, false, true, Kill),
            (Signal::Terminate, false, false, true, Kill),
            // A stop at once, after Ctrl-C.
            (Signal::Quit, false, true, true, Kill),
            (Signal::Quit, true, true, true, CtrlBreak),
        ] {
            let chosen = interruption(signal, leads_group, has_own_console, was_interrupted);
            assert_eq!(
                chosen, expected,
                "{signal:?} {leads_group} {has_own_console} {was_interrupted}"
            );
        }
    }
}
