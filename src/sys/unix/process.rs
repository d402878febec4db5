//! Unix: starts programs, and waits for their end.
//!
//! # The waiter
//!
//! A successor outlives the process that starts it. So [`spawn`] puts a small process between the
//! two, the waiter, which does nothing but wait:
//!
//! ```text
//!  this process                 waiter                     program
//!
//!  fork ----------------------> fork --------------------> write the id to the error pipe
//!       :                                                  set descriptors, directory, signals
//!  read the error pipe <---------------------------------- exec, which closes the pipe,
//!       :                                                  or write the error's number and exit
//!       :                       waitid <------------------ exit
//!  read the status <----------- write the exit status
//!  close the socket ----------> read: end of file
//!                               reap the program, exit
//! ```
//!
//! - While the waiter lives, the program's id cannot become another process's: the waiter reaps the
//!   program only after this process has closed the socket. So [`Process::kill`] is safe.
//! - No other code of the host program can reap the program by `wait()`.
//! - [`Process::detach`] ends the waiter. The program becomes a child of init or of the service
//!   manager, which is told of the end of its own children only.
//! - If this process dies, the program lives on, unless it hangs in its start: the waiter exits when
//!   the program has started, and kills the program if it has not started in time ([`StartGuard`]).
//! - If another process kills the waiter, the program can still be killed, but its exit status is not
//!   known (on Linux).
//!
//! [`StartGuard`]: crate::sys::StartGuard
//!
//! [`spawn_child`] has no waiter: the caller reaps its children itself.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::descriptor::create_pipe;
use super::exec_plan::ExecPlan;
use super::signal;
use crate::sys::{Descriptor, ProcessState, ProcessWatch, SpawnOptions};

/// Whether a successor can replace this process.
pub(crate) const SUPPORTS_RESTARTS: bool = true;

/// A program that [`spawn`] has started. Dropping this does not end the program, but the waiter.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    state: ProcessState,
    /// Tells of the program's end even if another process has killed the waiter.
    watch: ProcessWatch,
    /// `None` after [`detach`](Self::detach).
    waiter: Option<Pid>,
    /// Its other end is the waiter's.
    socket: UnixStream,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Waits up to `timeout` for the end of the program. After [`detach`](Self::detach), returns
    /// what was known before.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<ProcessState> {
        if let (ProcessState::Running, Some(_)) = (self.state, self.waiter) {
            let (began_at, limit) = (Instant::now(), timeout);
            // The standard library refuses a time-out of zero.
            let timeout = timeout.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(timeout))?;
            match self.read_status() {
                Ok(status) => self.state = ProcessState::Ended(status),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Another process has killed the waiter.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let time_left = limit.saturating_sub(began_at.elapsed());
                    if self.watch.wait_for_end(time_left) {
                        self.state = ProcessState::Unknown;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.state)
    }

    /// Reads the exit status, which the waiter writes.
    fn read_status(&mut self) -> io::Result<ExitStatus> {
        let mut word = [0; 4];
        self.socket.read_exact(&mut word)?;
        Ok(ExitStatus::from_raw(i32::from_ne_bytes(word)))
    }

    /// Sends SIGKILL, unless the program has ended or is detached.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match (self.waiter, self.state) {
            (Some(_), ProcessState::Running) => self.watch.send_signal(crate::sys::Signal::Kill),
            _ => Ok(()),
        }
    }

    /// Lets the program go on without this process, and without the waiter.
    pub(crate) fn detach(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        // A child of this process may hold a copy, so that a close is not enough.
        let _ = self.socket.shutdown(Shutdown::Both);
        if !matches!(self.state, ProcessState::Ended(_)) {
            // The id is still the waiter's, as this process has not reaped it.
            let _ = kill_process(waiter, Signal::KILL);
        }
        // Other code of this process may have reaped the waiter.
        let _ = retry_on_intr(|| waitpid(Some(waiter), WaitOptions::empty()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Starts a program that may outlive this process, with the handled signals blocked (see
/// [`record`](signal::record)). To be called from a thread that lives until the program ends or is
/// detached, because the waiter takes the end of that thread for the end of this process.
///
/// # Errors
///
/// No memory, no descriptors, no such directory or program.
pub(crate) fn spawn(options: &SpawnOptions<'_>) -> io::Result<Process> {
    let mut plan = ExecPlan::new(options, signal::handled_set())?;
    if signal::was_hangup_ignored() {
        plan.ignored.push(libc::SIGHUP);
    }
    let (error_pipe, error_pipe_end) = create_pipe()?;
    let (socket, socket_end) = UnixStream::pair()?;
    plan.error_pipe = error_pipe_end.as_raw_fd();
    plan.waiter_socket = socket_end.as_raw_fd();
    let mut process = Process {
        pid: 0,
        state: ProcessState::Running,
        watch: ProcessWatch::open(0),
        waiter: Some(plan.fork(ExecPlan::run_waiter)?),
        socket,
    };
    drop((error_pipe_end, socket_end));
    match read_exec_result(error_pipe)? {
        Ok(pid) => {
            process.pid = pid;
            process.watch = ProcessWatch::open(pid);
            Ok(process)
        }
        Err(error) => {
            // Makes the waiter reap the process, if there is one. The error of the exec says more.
            let _ = process.wait(Duration::MAX);
            Err(error)
        }
    }
}

/// Starts a program as a child that the caller reaps, and returns the program's id. No signal is
/// blocked in the program. On Linux and FreeBSD the program gets SIGTERM when this thread ends, or
/// is ended by the guardian in the options.
///
/// # Errors
///
/// Those of [`spawn`].
pub(crate) fn spawn_child(options: &SpawnOptions<'_>) -> io::Result<u32> {
    let mut plan = ExecPlan::new(options, signal::set_of([]))?;
    // A terminal that is closed sends SIGHUP to its foreground group.
    if !options.own_group && signal::was_hangup_ignored() {
        plan.ignored.push(libc::SIGHUP);
    }
    let (error_pipe, error_pipe_end) = create_pipe()?;
    plan.error_pipe = error_pipe_end.as_raw_fd();
    let pid = plan.fork(ExecPlan::run_child)?;
    drop(error_pipe_end);
    let result = read_exec_result(error_pipe)?;
    if result.is_err() {
        retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
    }
    result
}

/// Waits until a new process has become the program, which closes the pipe, or has failed. Returns the
/// id of the process, or why it is not the program.
fn read_exec_result(pipe: Descriptor) -> io::Result<io::Result<u32>> {
    let mut bytes = Vec::new();
    File::from(pipe).read_to_end(&mut bytes)?;
    let word = |at: usize| {
        bytes
            .get(at..)?
            .first_chunk()
            .copied()
            .map(u32::from_ne_bytes)
    };
    Ok(match (word(0), word(4)) {
        (Some(pid), None) => Ok(pid),
        (Some(_), Some(number)) => Err(io::Error::from_raw_os_error(number as i32)),
        (None, _) => Err(io::Error::other(
            "the process has ended before it ran the program",
        )),
    })
}

/// Runs another program in this process, which keeps its id, its children and its blocked signals.
/// The descriptors keep their numbers. Returns only on an error; then the process is as it was.
pub(crate) fn replace_program(options: &SpawnOptions<'_>) -> io::Error {
    match ExecPlan::new(options, signal::set_of([])) {
        Ok(plan) => plan.exec_in_place(),
        Err(error) => error,
    }
}

/// The variable that holds the name of the working directory, as the shell gave it.
pub(crate) const WORKING_DIR_VARIABLE: Option<&str> = Some("PWD");

/// Reads a variable that is for this process only, and not for the programs that it starts.
pub(crate) fn own_variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Whether an entry `NAME=value` of an environment is that of the variable `name`.
pub(crate) fn is_entry_of(entry: &OsStr, name: &OsStr) -> bool {
    let rest = entry.as_bytes().strip_prefix(name.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"="))
}

/// This process begins its start. The waiter watches it: see "The waiter" above.
pub(crate) fn begin_start() {}

/// This process has started. `pipe` is what it was passed for this. To close the pipe is not
/// enough, since a subprocess may hold it, too.
pub(crate) fn end_start(pipe: Descriptor) {
    // An error says that the waiter has ended, which then waits for nothing.
    let _ = File::from(pipe).write_all(&[1]);
}

/// The number that another process can make an exit status of, by [`exit_status`].
pub(crate) fn raw_exit_status(status: ExitStatus) -> Option<i32> {
    Some(status.into_raw())
}

/// The exit status with this number.
pub(crate) fn exit_status(raw: i32) -> Option<ExitStatus> {
    Some(ExitStatus::from_raw(raw))
}

/// Whether the id of this process is that of its process group.
#[allow(unsafe_code)]
pub(crate) fn is_group_leader() -> bool {
    // SAFETY: the calls take nothing.
    unsafe { libc::getpgrp() == libc::getpid() }
}

/// The group as which this process acts.
pub(crate) fn effective_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// The user as which this process acts.
pub(crate) fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
