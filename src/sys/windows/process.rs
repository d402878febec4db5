//! Windows: starts programs, and waits for their end.
//!
//! A new process is suspended at first. Then it gets its [passing table](super::passing_table), and is
//! resumed. It inherits three standard handles and the section of its table, and nothing else. It is in
//! its jobs when it is created, so that the jobs end it if this process ends before it is resumed.
//!
//! No other process gets the id of a process while a handle of that process is open. [`Process`] has
//! such a handle. So has the list of the children that [`spawn_child`] has started: its callers know
//! children by their ids. [`reap_child`] takes a child that has ended off the list.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, OwnedHandle};
use std::os::windows::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::Console::{
    GetConsoleCP, STD_ERROR_HANDLE, STD_INPUT_HANDLE, STD_OUTPUT_HANDLE,
};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, CREATE_SUSPENDED, CREATE_UNICODE_ENVIRONMENT,
    CreateProcessW, DeleteProcThreadAttributeList, EXTENDED_STARTUPINFO_PRESENT,
    GetExitCodeProcess, InitializeProcThreadAttributeList, LPPROC_THREAD_ATTRIBUTE_LIST,
    PROC_THREAD_ATTRIBUTE_HANDLE_LIST, PROC_THREAD_ATTRIBUTE_JOB_LIST, PROCESS_INFORMATION,
    ResumeThread, STARTF_USESTDHANDLES, STARTUPINFOEXW, STARTUPINFOW, TerminateProcess,
    UpdateProcThreadAttribute,
};

use super::command_line::{command_line, environment_block, wide};
use super::descriptor::standard_handle;
use super::handle::{self, check, wait_for};
use super::passing_table::{self, Section};
use super::start_guard::{self, StartJob};
use super::unsupported_error;
use crate::log;
use crate::sys::{Descriptor, ProcessState, SpawnOptions};

/// Whether a successor can replace this process.
pub(crate) const SUPPORTS_RESTARTS: bool = true;

/// The variable that holds the name of the working directory, as the shell gave it. Windows itself
/// keeps the name.
pub(crate) const WORKING_DIR_VARIABLE: Option<&str> = None;

/// A program that [`spawn`] has started. Dropping this does not end the program.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    state: ProcessState,
    /// `None` after [`detach`](Self::detach).
    handle: Option<OwnedHandle>,
    /// See [`StartGuard`](crate::sys::StartGuard).
    start_job: Option<StartJob>,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Waits up to `timeout` for the end of the program. After [`detach`](Self::detach), returns
    /// what was known before.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<ProcessState> {
        if let (ProcessState::Running, Some(handle)) = (self.state, &self.handle) {
            if wait_for(handle.as_handle(), timeout)? {
                self.state = ProcessState::Ended(end_of(handle)?);
            }
        }
        Ok(self.state)
    }

    /// Ends the program with the exit code 1, unless it has ended or is detached.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match (&self.handle, self.state) {
            (Some(handle), ProcessState::Running) => terminate(handle.as_handle()),
            _ => Ok(()),
        }
    }

    /// Lets the program go on without this process.
    pub(crate) fn detach(&mut self) {
        if let (Some(job), ProcessState::Running) = (self.start_job.take(), self.state) {
            job.release();
        }
        self.handle = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Starts a program that may outlive this process.
///
/// # Errors
///
/// No memory, no such directory or program. `InvalidInput` for what no command line can hold, and
/// for a batch file.
pub(crate) fn spawn(options: &SpawnOptions<'_>) -> io::Result<Process> {
    let guard = options.start_guard.as_ref();
    let start_job = guard.map(|_| StartJob::new()).transpose()?;
    let (pid, handle) = start(options, start_job.as_ref())?;
    Ok(Process {
        pid,
        state: ProcessState::Running,
        handle: Some(handle),
        start_job,
    })
}

/// The children of this process that were not reaped.
static CHILDREN: LazyLock<Mutex<HashMap<u32, Child>>> = LazyLock::new(Mutex::default);

struct Child {
    handle: OwnedHandle,
    leads_group: bool,
}

/// Starts a program as a child that the caller reaps, by [`reap_child`], and returns the program's
/// id. The child is in the job of the guardian in the options.
///
/// # Errors
///
/// Those of [`spawn`].
pub(crate) fn spawn_child(options: &SpawnOptions<'_>) -> io::Result<u32> {
    let (pid, handle) = start(options, None)?;
    let leads_group = options.own_group;
    let child = Child {
        handle,
        leads_group,
    };
    CHILDREN.lock().insert(pid, child);
    Ok(pid)
}

/// Whether this is a child that was not reaped.
pub(in crate::sys) fn is_child(pid: u32) -> bool {
    CHILDREN.lock().contains_key(&pid)
}

/// Whether this is a child that was not reaped, and has a console process group of its own.
pub(in crate::sys) fn leads_group(pid: u32) -> bool {
    let children = CHILDREN.lock();
    children.get(&pid).is_some_and(|child| child.leads_group)
}

/// A child that has ended. From now on its id may be that of another process, unless another handle
/// of it is open.
pub(in crate::sys) fn reap_child() -> io::Result<Option<(u32, ExitStatus)>> {
    let mut children = CHILDREN.lock();
    for (&pid, child) in children.iter() {
        if wait_for(child.handle.as_handle(), Duration::ZERO)? {
            let status = end_of(&child.handle)?;
            children.remove(&pid);
            return Ok(Some((pid, status)));
        }
    }
    Ok(None)
}

/// Makes the process, and lets it run.
fn start(
    options: &SpawnOptions<'_>,
    start_job: Option<&StartJob>,
) -> io::Result<(u32, OwnedHandle)> {
    if options.identity.is_some() {
        return Err(unsupported_error("no program gets another user on Windows"));
    }
    let section = Section::new(options.env_with_pid, options.descriptors.len())?;
    let guardian_job = options.guardian.map(|guardian| guardian.pipe().as_handle());
    let jobs = guardian_job.transpose()?.into_iter();
    let jobs = jobs.chain(start_job.map(StartJob::handle));
    let created = create_suspended(options, &section, jobs)?;
    let process = created.process.as_handle();
    let limit = match (start_job, &options.start_guard) {
        (Some(job), Some(guard)) => Some(job.limit_for(process, guard.limit)?),
        _ => None,
    };
    let descriptors = options.descriptors.iter().map(|passed| &passed.0);
    let (pid, variables) = (created.pid, options.env_with_pid);
    section.fill(
        pid,
        process,
        limit,
        variables,
        &descriptors.collect::<Vec<_>>(),
    )?;
    created.run()
}

/// A process that does not run yet. Its drop ends it.
struct Suspended {
    pid: u32,
    process: OwnedHandle,
    thread: OwnedHandle,
    runs: bool,
}

impl Suspended {
    #[allow(unsafe_code)]
    fn run(mut self) -> io::Result<(u32, OwnedHandle)> {
        let process = self.process.try_clone()?;
        // SAFETY: the handle is open.
        if unsafe { ResumeThread(self.thread.as_raw_handle()) } == u32::MAX {
            return Err(io::Error::last_os_error());
        }
        self.runs = true;
        Ok((self.pid, process))
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if !self.runs {
            if let Err(error) = terminate(self.process.as_handle()) {
                log::error!("cannot end process {}, which never ran: {error}", self.pid);
            }
        }
    }
}

#[allow(unsafe_code)]
fn create_suspended<'a>(
    options: &SpawnOptions<'_>,
    section: &Section,
    jobs: impl Iterator<Item = BorrowedHandle<'a>>,
) -> io::Result<Suspended> {
    let program = program_path(options.program)?;
    let mut line = command_line(options.args)?;
    let entries = options.env.iter().cloned().chain([section.variable()]);
    let env = environment_block(&entries.collect::<Vec<_>>())?;
    let dir = options.dir.map(|dir| wide(dir.as_os_str())).transpose()?;
    let [stdin, stdout, stderr] = [
        (options.stdin, STD_INPUT_HANDLE),
        (options.stdout, STD_OUTPUT_HANDLE),
        (options.stderr, STD_ERROR_HANDLE),
    ]
    .map(|(given, own)| inheritable(given, own));
    let standard = [stdin?, stdout?, stderr?];
    let raw = |handle: &Option<OwnedHandle>| match handle {
        Some(handle) => handle.as_raw_handle(),
        None => ptr::null_mut(),
    };
    let inherited = standard.iter().flatten().map(AsRawHandle::as_raw_handle);
    let inherited = inherited.chain([section.handle().as_raw_handle()]);
    let jobs = jobs.map(|job| job.as_raw_handle());
    let attributes = Attributes::new(inherited.collect(), jobs.collect())?;
    let startup = STARTUPINFOEXW {
        StartupInfo: STARTUPINFOW {
            cb: size_of::<STARTUPINFOEXW>() as u32,
            dwFlags: STARTF_USESTDHANDLES,
            hStdInput: raw(&standard[0]),
            hStdOutput: raw(&standard[1]),
            hStdError: raw(&standard[2]),
            ..STARTUPINFOW::default()
        },
        lpAttributeList: attributes.pointer,
    };
    let mut flags = CREATE_SUSPENDED | CREATE_UNICODE_ENVIRONMENT | EXTENDED_STARTUPINFO_PRESENT;
    if options.own_group {
        flags |= CREATE_NEW_PROCESS_GROUP;
    }
    let mut created = PROCESS_INFORMATION::default();
    // SAFETY: the texts end with a NUL, the structures have the sizes that they say, all of them
    // and the handles in them are alive, and the command line may be changed. If the call succeeds,
    // it has made two handles, which nothing else owns.
    unsafe {
        if GetConsoleCP() == 0 {
            // Otherwise a program of a service, which has no console, would open a window.
            flags |= CREATE_NO_WINDOW;
        }
        check(CreateProcessW(
            program.as_ptr(),
            line.as_mut_ptr(),
            ptr::null(),
            ptr::null(),
            1,
            flags,
            env.as_ptr().cast(),
            dir.as_ref().map_or(ptr::null(), |dir| dir.as_ptr()),
            &startup.StartupInfo,
            &mut created,
        ))?;
        Ok(Suspended {
            pid: created.dwProcessId,
            process: handle::own(created.hProcess)?,
            thread: handle::own(created.hThread)?,
            runs: false,
        })
    }
}

/// The path of a program. The rules by which cmd.exe reads the arguments of a batch file are not
/// those of a command line, so that no argument could be quoted safely.
fn program_path(path: &Path) -> io::Result<Vec<u16>> {
    // The system takes dots and spaces off the end of a name.
    let name = path.as_os_str().to_string_lossy().to_ascii_lowercase();
    let name = name.trim_end_matches(['.', ' ']);
    if name.ends_with(".bat") || name.ends_with(".cmd") {
        let text = "a batch file: give cmd.exe as the program, and the file as its argument";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    wide(path.as_os_str())
}

/// A handle that the program inherits as a standard handle: the given one, or that of this process.
fn inheritable(given: Option<&Descriptor>, own: u32) -> io::Result<Option<OwnedHandle>> {
    match given {
        Some(given) => handle::duplicate(given.as_handle()?, true).map(Some),
        // A standard handle that was closed is none.
        None => match standard_handle(own) {
            Ok(Some(own)) => handle::duplicate(own.as_handle(), true).map(Some),
            Ok(None) | Err(_) => Ok(None),
        },
    }
}

/// The handles that a new process inherits, and the jobs that it is in.
struct Attributes {
    pointer: LPPROC_THREAD_ATTRIBUTE_LIST,
    /// What `pointer` points to: words, because the list has to be aligned.
    _list: Vec<usize>,
    /// What the list points to.
    handles: Box<[HANDLE]>,
    jobs: Box<[HANDLE]>,
}

impl Attributes {
    #[allow(unsafe_code)]
    fn new(handles: Vec<HANDLE>, jobs: Vec<HANDLE>) -> io::Result<Self> {
        const MOST: u32 = 2;
        let mut size = 0;
        // SAFETY: without a list, the call only tells the size.
        unsafe { InitializeProcThreadAttributeList(ptr::null_mut(), MOST, 0, &mut size) };
        let mut list = vec![0usize; size.div_ceil(size_of::<usize>())];
        let pointer = list.as_mut_ptr().cast();
        // SAFETY: the memory is as large as the first call has said.
        check(unsafe { InitializeProcThreadAttributeList(pointer, MOST, 0, &mut size) })?;
        let attributes = Self {
            pointer,
            _list: list,
            handles: handles.into_boxed_slice(),
            jobs: jobs.into_boxed_slice(),
        };
        attributes.set(PROC_THREAD_ATTRIBUTE_HANDLE_LIST, &attributes.handles)?;
        // An empty list is an error.
        if !attributes.jobs.is_empty() {
            attributes.set(PROC_THREAD_ATTRIBUTE_JOB_LIST, &attributes.jobs)?;
        }
        Ok(attributes)
    }

    /// `handles` live as long as the list.
    #[allow(unsafe_code)]
    fn set(&self, attribute: u32, handles: &[HANDLE]) -> io::Result<()> {
        // SAFETY: the list is initialised, and has room. The handles are those of this value, which
        // live as long as the list.
        check(unsafe {
            UpdateProcThreadAttribute(
                self.pointer,
                0,
                attribute as usize,
                handles.as_ptr().cast(),
                size_of_val(handles),
                ptr::null_mut(),
                ptr::null(),
            )
        })
    }
}

impl Drop for Attributes {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the list is initialised.
        unsafe { DeleteProcThreadAttributeList(self.pointer) }
    }
}

#[allow(unsafe_code)]
fn terminate(process: BorrowedHandle<'_>) -> io::Result<()> {
    // SAFETY: the handle is open.
    let ended = check(unsafe { TerminateProcess(process.as_raw_handle(), 1) });
    ended.or_else(|error| match wait_for(process, Duration::ZERO) {
        // It has ended by itself.
        Ok(true) => Ok(()),
        _ => Err(error),
    })
}

/// How a process has ended.
#[allow(unsafe_code)]
fn end_of(process: &OwnedHandle) -> io::Result<ExitStatus> {
    let mut code = 0;
    // SAFETY: the handle is open, and `code` is alive.
    check(unsafe { GetExitCodeProcess(process.as_raw_handle(), &mut code) })?;
    Ok(ExitStatus::from_raw(code))
}

/// No process can run another program in its place.
pub(crate) fn replace_program(_options: &SpawnOptions<'_>) -> io::Error {
    unsupported_error("no process can change its program on Windows")
}

/// Reads a variable that is for this process only, and not for the programs that it starts.
pub(crate) fn own_variable(name: &str) -> Option<std::ffi::OsString> {
    passing_table::own_variable(name)
}

/// Whether an entry `NAME=value` is that of the variable `name`.
pub(crate) fn is_entry_of(entry: &OsStr, name: &OsStr) -> bool {
    super::command_line::is_entry_of(entry, name)
}

/// This process begins its start: see [`StartGuard`](crate::sys::StartGuard).
pub(crate) fn begin_start() {
    start_guard::take_over();
}

/// This process has started. `pipe` is what it was passed for this.
pub(crate) fn end_start(pipe: Descriptor) {
    start_guard::end();
    drop(pipe);
}

/// The number from which another process makes the exit status, by [`exit_status`].
pub(crate) fn raw_exit_status(status: ExitStatus) -> Option<i32> {
    status.code()
}

/// The exit status with this number.
pub(crate) fn exit_status(raw: i32) -> Option<ExitStatus> {
    Some(ExitStatus::from_raw(raw as u32))
}

/// Nothing tells here whether this process leads a process group of its console.
pub(crate) fn is_group_leader() -> bool {
    false
}

/// There are no group ids here.
pub(crate) fn effective_gid() -> u32 {
    u32::MAX
}

/// There are no user ids here.
pub(crate) fn effective_uid() -> u32 {
    u32::MAX
}

#[cfg(test)]
pub(in crate::sys) mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
    use windows_sys::core::w;

    use super::*;
    use crate::sys::descriptor::create_pipe;
    use crate::sys::env_entry;
    use crate::sys::unix::job::is_in_job;

    /// Calls `start` with options that the test completes: those of a program with the environment
    /// of this process and these variables.
    pub(in crate::sys) fn with_program<T>(
        program: &Path,
        args: &[OsString],
        variables: &[OsString],
        start: impl FnOnce(SpawnOptions<'_>) -> T,
    ) -> T {
        let own = std::env::vars_os().map(|(name, value)| env_entry(&name, &value));
        let env: Vec<_> = own.chain(variables.iter().cloned()).collect();
        start(SpawnOptions {
            program,
            args,
            env: &env,
            env_with_pid: &[],
            dir: None,
            descriptors: &[],
            stdin: None,
            stdout: None,
            stderr: None,
            identity: None,
            own_group: false,
            guardian: None,
            start_guard: None,
        })
    }

    /// Whether this system is Wine.
    #[allow(unsafe_code)]
    pub(in crate::sys) fn is_wine() -> bool {
        // SAFETY: the names end with a null character, and the module is never unloaded.
        unsafe {
            let module = GetModuleHandleW(w!("ntdll.dll"));
            GetProcAddress(module, c"wine_get_version".as_ptr().cast()).is_some()
        }
    }

    #[test]
    fn a_process_is_in_its_jobs_before_it_runs_and_ends_with_them() {
        let [first, second] = [(); 2].map(|()| StartJob::new().unwrap());
        let (stdin, _writer) = create_pipe().unwrap();
        let section = Section::new(&[], 0).unwrap();
        let jobs = [&first, &second].map(StartJob::handle).into_iter();
        let program = PathBuf::from(std::env::var_os("COMSPEC").unwrap());
        let args = [program.clone().into_os_string()];
        let created = with_program(&program, &args, &[], |options| {
            let options = SpawnOptions {
                stdin: Some(&stdin),
                ..options
            };
            create_suspended(&options, &section, jobs).unwrap()
        });
        for job in [&first, &second] {
            assert!(is_in_job(created.process.as_handle(), job.handle()).unwrap());
        }
        let process = created.process.try_clone().unwrap();
        // This process ends before it lets the other one run.
        std::mem::forget(created);
        drop(first);
        assert!(wait_for(process.as_handle(), Duration::from_secs(60)).unwrap());
    }
}
