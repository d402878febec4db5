//! Unix: the code between fork and exec.
//!
//! A new process has one thread, and a copy of this process's memory. Where another thread held a
//! lock at the moment of the fork, such as that of the allocator, that lock is never released. So
//! [`ExecPlan::new`] allocates everything before the fork, and the new processes call only what is
//! async-signal-safe (signal-safety(7)) until they exec or exit.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use rustix::process::{Pid, getpid};

use super::limits::restore_own_descriptor_limit;
use super::{check, signal};
use crate::sys::native::calls::{become_identity, close_range, request_signal_at_parent_end};
use crate::sys::{FIRST_PASSED, Identity, PidVariable, SpawnOptions};

/// What a new process needs to become the program.
pub(super) struct ExecPlan {
    program: CString,
    dir: Option<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What `argv` and `envp` point to.
    _strings: [Vec<CString>; 2],
    /// What `envp` points to, too.
    pid_texts: Vec<PidText>,
    /// The descriptors that the program gets from [`FIRST_PASSED`] on.
    sources: Vec<RawFd>,
    stdin: RawFd,
    stdout: RawFd,
    stderr: RawFd,
    identity: Option<Identity>,
    own_group: bool,
    /// The signals that the program ignores. The others have their default action.
    pub(super) ignored: Vec<libc::c_int>,
    /// The pipe to the guardian.
    guardian: Option<RawFd>,
    /// The pipe and the limit of a start guard.
    start_guard: Option<(RawFd, Duration)>,
    /// The signals that are blocked when the program starts.
    mask: libc::sigset_t,
    /// Where a new process writes its id, and then the number of the error that ends it.
    pub(super) error_pipe: RawFd,
    /// Where the waiter writes the program's exit status.
    pub(super) waiter_socket: RawFd,
}

impl ExecPlan {
    pub(super) fn new(options: &SpawnOptions<'_>, mask: libc::sigset_t) -> io::Result<Self> {
        let to_strings = |texts: &[OsString]| -> io::Result<Vec<CString>> {
            let strings = texts.iter().map(|text| CString::new(text.as_bytes()));
            Ok(strings.collect::<Result<_, _>>()?)
        };
        let to_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let (args, env) = (to_strings(options.args)?, to_strings(options.env)?);
        let pid_texts = options.env_with_pid.iter().map(PidText::new);
        let pid_texts = pid_texts.collect::<io::Result<Vec<_>>>()?;
        let argv = args.iter().map(|arg| arg.as_ptr());
        let envp = env.iter().map(|entry| entry.as_ptr());
        // The program is not in the foreground of a terminal, which may stop it when it writes
        // (`stty tostop`).
        let stops_at_output = options.own_group && signal::has_terminal();
        let envp = envp.chain(pid_texts.iter().map(|text| text.bytes.as_ptr().cast()));
        Ok(Self {
            program: to_path(options.program)?,
            dir: options.dir.map(to_path).transpose()?,
            argv: argv.chain([ptr::null()]).collect(),
            envp: envp.chain([ptr::null()]).collect(),
            _strings: [args, env],
            pid_texts,
            sources: options.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            stdin: options.stdin.map_or(0, AsRawFd::as_raw_fd),
            stdout: options.stdout.map_or(1, AsRawFd::as_raw_fd),
            stderr: options.stderr.map_or(2, AsRawFd::as_raw_fd),
            identity: options.identity.cloned(),
            own_group: options.own_group,
            ignored: stops_at_output
                .then_some(libc::SIGTTOU)
                .into_iter()
                .collect(),
            guardian: options.guardian.map(|guardian| guardian.pipe().as_raw_fd()),
            start_guard: options
                .start_guard
                .map(|guard| (guard.pipe.as_raw_fd(), guard.limit)),
            mask,
            error_pipe: -1,
            waiter_socket: -1,
        })
    }

    /// Forks a process that calls `run` with the id of this process.
    #[allow(unsafe_code)]
    pub(super) fn fork(&mut self, run: fn(&mut Self, Pid) -> !) -> io::Result<Pid> {
        let parent = getpid();
        // A signal handler that ran in the new process could write to a descriptor that both
        // processes have, such as the pipe by which a handler wakes its thread.
        let mask = signal::block_all();
        // SAFETY: the new process calls `run` only, which is async-signal-safe and does not return.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            run(self, parent);
        }
        let error = io::Error::last_os_error();
        signal::change_mask(libc::SIG_SETMASK, &mask);
        let pid = (pid > 0).then_some(pid).and_then(Pid::from_raw);
        pid.ok_or(error)
    }

    /// Becomes the program.
    pub(super) fn run_child(&mut self, parent: Pid) -> ! {
        end_with_parent(parent, libc::SIGTERM);
        let own = write_own_id(self.error_pipe);
        let group = if self.own_group { own } else { 0 };
        if let Some(guardian) = self.guardian {
            write_record(guardian, &[GUARDIAN_WATCH_CHILD, own, group]);
        }
        let Err(error) = self.exec(Some(parent));
        if let Some(guardian) = self.guardian {
            write_record(guardian, &[GUARDIAN_FORGET, own, group]);
        }
        exit_with_error(self.error_pipe, &error)
    }

    /// Starts the program, and waits for its end: see "The waiter" in [`process`](super::process).
    #[allow(unsafe_code)]
    pub(super) fn run_waiter(&mut self, parent: Pid) -> ! {
        // The end of the parent, or of the program, interrupts a wait.
        end_with_parent(parent, libc::SIGCHLD);
        signal::interrupt_waits_by_sigchld();
        let started_at = super::clock::monotonic_nanos();
        // SAFETY: all calls are async-signal-safe, and the pointers are to live memory.
        unsafe {
            let program = libc::fork();
            if program <= 0 {
                // Not by the waiter, which may be killed at any time.
                write_own_id(self.error_pipe);
                let Err(error) = check(program).and_then(|_| self.exec(None));
                exit_with_error(self.error_pipe, &error);
            }
            // A client's connection that is open here would stay open when the parent closes it.
            libc::dup2(self.waiter_socket, SOCKET);
            match self.start_guard {
                Some((pipe, _)) => libc::dup2(pipe, START_PIPE),
                None => libc::close(START_PIPE),
            };
            close_descriptors(START_PIPE + 1);
            let limit = self.start_guard.map(|(_, limit)| limit.as_nanos());
            let limit = limit.and_then(|limit| started_at.checked_add(u64::try_from(limit).ok()?));
            self.wait_for_program(program, parent, limit)
        }
    }

    /// `start_by` is the time of the monotonic clock by which the program must have started, if its
    /// parent has died.
    #[allow(unsafe_code)]
    fn wait_for_program(&self, program: libc::pid_t, parent: Pid, start_by: Option<u64>) -> ! {
        let mut state = WaiterState {
            has_started: self.start_guard.is_none(),
            ..WaiterState::default()
        };
        let group = if self.own_group { -program } else { program };
        loop {
            if let (false, Some(status)) = (state.has_ended, ended_status(program)) {
                state.has_ended = true;
                write_word(SOCKET, status);
            }
            // SAFETY: all calls are async-signal-safe and take numbers only. The program is not
            // reaped before the waiter exits, so that its id is still its own.
            unsafe {
                state.is_orphan = libc::getppid() != parent.as_raw_nonzero().get();
                let now = super::clock::monotonic_nanos();
                state.is_late = start_by.is_some_and(|start_by| now >= start_by);
                match state.step() {
                    WaiterStep::Wait => {}
                    WaiterStep::Leave => libc::_exit(0),
                    WaiterStep::Reap => {
                        if self.own_group {
                            libc::kill(group, libc::SIGTERM);
                        }
                        libc::waitpid(program, ptr::null_mut(), 0);
                        libc::_exit(0)
                    }
                    WaiterStep::Kill => {
                        libc::kill(program, libc::SIGKILL);
                        libc::kill(group, libc::SIGKILL);
                        libc::waitpid(program, ptr::null_mut(), 0);
                        libc::_exit(0)
                    }
                }
                let time_left = start_by.map(|start_by| start_by.saturating_sub(now));
                // Where no signal tells of the parent's death, the end of the socket does. It may
                // come before the waiter has another parent.
                let is_bounded = |left: &u64| state.is_orphan || (state.is_released && *left > 0);
                let timeout = time_left.filter(is_bounded);
                wait_for_input(&mut state, timeout);
            }
        }
    }

    /// Becomes the program, in a new process. Returns only an error. The process ends with the
    /// parent, if one is given.
    #[allow(unsafe_code)]
    fn exec(&mut self, parent: Option<Pid>) -> io::Result<Infallible> {
        let first_free = FIRST_PASSED + self.sources.len() as i32;
        let kept = [
            &mut self.stdin,
            &mut self.stdout,
            &mut self.stderr,
            &mut self.error_pipe,
        ];
        let kept = kept.into_iter().chain(&mut self.guardian);
        // SAFETY: all calls are async-signal-safe, and take numbers and strings that end with null.
        unsafe {
            if self.own_group {
                check(libc::setpgid(0, 0))?;
            }
            // First move all out of the way of the numbers that the sources get.
            for fd in self.sources.iter_mut().chain(kept) {
                *fd = match check(libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, first_free)) {
                    // Standard input, output and error may be closed.
                    Err(_) if matches!(*fd, 0..=2) => -1,
                    copy => copy?,
                };
            }
            for (target, source) in (FIRST_PASSED..).zip(&self.sources) {
                check(libc::dup2(*source, target))?;
            }
            for (target, source) in [(0, self.stdin), (1, self.stdout), (2, self.stderr)] {
                if source >= 0 {
                    check(libc::dup2(source, target))?;
                }
            }
            // Other code of this process may have opened descriptors without CLOEXEC.
            close_range(first_free, true);
            if let Some(dir) = &self.dir {
                check(libc::chdir(dir.as_ptr()))?;
            }
        }
        signal::reset_dispositions(&self.ignored);
        // The program raises the limit itself, or is one that must not have it raised.
        restore_own_descriptor_limit()?;
        // The last step that needs privileges: the directory may be one that only root can enter.
        if let Some(identity) = &self.identity {
            become_identity(identity)?;
            // A change of the user cancels the signal at the parent's end.
            if let Some(parent) = parent {
                end_with_parent(parent, libc::SIGTERM);
            }
        }
        signal::change_mask(libc::SIG_SETMASK, &self.mask);
        self.execve()
    }

    /// Becomes the program, in this process. Returns only on an error, and then undoes its changes.
    #[allow(unsafe_code)]
    pub(super) fn exec_in_place(mut self) -> io::Error {
        let set_flags = |sources: &[RawFd], flags: libc::c_int| {
            for number in sources {
                // SAFETY: the call takes numbers of open descriptors.
                unsafe { libc::fcntl(*number, libc::F_SETFD, flags) };
            }
        };
        set_flags(&self.sources, 0);
        // SAFETY: the call takes numbers only.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let Err(error) = self.execve();
        // SAFETY: as above. Every Rust program ignores SIGPIPE.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        set_flags(&self.sources, libc::FD_CLOEXEC);
        error
    }

    /// Returns only an error.
    #[allow(unsafe_code)]
    fn execve(&mut self) -> io::Result<Infallible> {
        // SAFETY: the call takes nothing.
        let pid = unsafe { libc::getpid() };
        for text in &mut self.pid_texts {
            text.write_pid(pid.unsigned_abs());
        }
        let (program, argv, envp) = (&self.program, &self.argv, &self.envp);
        // SAFETY: the strings, and the arrays of pointers to them, end with null and are alive.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

/// The waiter's end of its socket.
const SOCKET: RawFd = 0;
/// The reading end of a start guard's pipe.
const START_PIPE: RawFd = 1;

/// What the waiter knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WaiterState {
    /// The program has ended.
    has_ended: bool,
    /// The parent has closed its end of the socket.
    is_released: bool,
    /// The parent has died.
    is_orphan: bool,
    /// The program has written to the start guard's pipe or closed it, or has none. Both count: a
    /// subprocess of the program may hold the pipe, too, and a program may close it unwritten.
    has_started: bool,
    /// The program should have started by now.
    is_late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterStep {
    Wait,
    /// Exit, and let the program go on.
    Leave,
    Reap,
    Kill,
}

impl WaiterState {
    fn step(self) -> WaiterStep {
        let is_unwanted = self.is_orphan || self.is_released;
        match self {
            Self {
                has_ended: true, ..
            } if is_unwanted => WaiterStep::Reap,
            Self {
                has_ended: true, ..
            } => WaiterStep::Wait,
            // A parent that is alive kills the waiter.
            Self {
                is_orphan: false, ..
            } => WaiterStep::Wait,
            Self {
                has_started: true, ..
            } => WaiterStep::Leave,
            Self { is_late: true, .. } => WaiterStep::Kill,
            _ => WaiterStep::Wait,
        }
    }
}

/// The status of the program, if it has ended, as wait(2) encodes it. Leaves the program unreaped, so
/// that no other process gets its id.
#[allow(unsafe_code)]
fn ended_status(program: libc::pid_t) -> Option<u32> {
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    // SAFETY: the structure is valid when it is zeroed, and alive. It stays zeroed while the program
    // runs.
    unsafe {
        let mut info = mem::zeroed::<libc::siginfo_t>();
        let result = libc::waitid(libc::P_PID, program as libc::id_t, &mut info, options);
        (result < 0 || info.si_pid() != 0).then(|| raw_status(&info))
    }
}

/// Waits for the end of the socket, for input on the start guard's pipe or its end, for SIGCHLD, or
/// until `timeout`, in nanoseconds, has passed. Async-signal-safe.
#[allow(unsafe_code)]
fn wait_for_input(state: &mut WaiterState, timeout: Option<u64>) {
    // SAFETY: the sets and the time are alive, and the descriptors are below FD_SETSIZE.
    unsafe {
        let mut read = mem::zeroed::<libc::fd_set>();
        for (number, is_wanted) in [
            (SOCKET, !state.is_released),
            (START_PIPE, !state.has_started),
        ] {
            if is_wanted {
                libc::FD_SET(number, &mut read);
            }
        }
        let time = timeout.map(|nanos| libc::timespec {
            tv_sec: (nanos / 1_000_000_000) as _,
            tv_nsec: (nanos % 1_000_000_000) as _,
        });
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        let mask = signal::all_but_sigchld();
        let (none, count) = (ptr::null_mut(), START_PIPE + 1);
        if libc::pselect(count, &mut read, none, none, time, &mask) <= 0 {
            return;
        }
        let is_ready = |number| libc::FD_ISSET(number, &read);
        let mut byte = 0_u8;
        let mut is_at_end = |number| libc::read(number, (&raw mut byte).cast(), 1) == 0;
        state.is_released |= is_ready(SOCKET) && is_at_end(SOCKET);
        state.has_started |= is_ready(START_PIPE);
    }
}

/// Closes every descriptor from `first` on. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn close_descriptors(first: RawFd) {
    if close_range(first, false) {
        return;
    }
    // SAFETY: the calls take numbers. The owners of these descriptors are in another process, of
    // which this process is a copy that uses none of them.
    unsafe {
        for number in first..libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20) as RawFd {
            libc::close(number);
        }
    }
}

/// Makes the kernel send this process a signal when its parent ends, where the kernel can. Exits if
/// the parent has ended already.
#[allow(unsafe_code)]
fn end_with_parent(parent: Pid, signal: libc::c_int) {
    request_signal_at_parent_end(signal);
    // SAFETY: the calls take numbers only.
    unsafe {
        if libc::getppid() != parent.as_raw_nonzero().get() {
            libc::_exit(0);
        }
    }
}

#[allow(unsafe_code)]
fn exit_with_error(error_pipe: RawFd, error: &io::Error) -> ! {
    write_word(error_pipe, error.raw_os_error().unwrap_or(0) as u32);
    // SAFETY: the call takes a number, and ends the process.
    unsafe { libc::_exit(127) }
}

/// The first number of a record for the guardian: a process and its group are to be ended with the
/// supervisor.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(in crate::sys) const GUARDIAN_WATCH: i32 = 1;
/// The same for a child of the supervisor, which the kernel tells as well.
pub(in crate::sys) const GUARDIAN_WATCH_CHILD: i32 = 2;
/// The process, or what was left of its group, has ended.
pub(in crate::sys) const GUARDIAN_FORGET: i32 = 0;

/// Writes a record for the guardian. A pipe takes this many bytes at once. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn write_record(to: RawFd, record: &[i32; 3]) -> bool {
    // SAFETY: the call reads the length of a live array.
    unsafe {
        libc::write(to, record.as_ptr().cast(), size_of_val(record)) == size_of_val(record) as isize
    }
}

/// Writes the id of this process to the error pipe, and returns it.
fn write_own_id(error_pipe: RawFd) -> libc::pid_t {
    let own = getpid().as_raw_nonzero().get();
    write_word(error_pipe, own.unsigned_abs());
    own
}

/// A pipe or socket takes four bytes at once. An error means that the reader has ended.
#[allow(unsafe_code)]
fn write_word(to: RawFd, word: u32) {
    let bytes = word.to_ne_bytes();
    // SAFETY: the call reads the length of a live array.
    unsafe {
        libc::write(to, bytes.as_ptr().cast(), bytes.len());
    }
}

/// The status of a process that has ended, as wait(2) encodes it.
#[allow(unsafe_code)]
fn raw_status(info: &libc::siginfo_t) -> u32 {
    // SAFETY: `waitid` has filled the structure for a child that has ended.
    let status = unsafe { info.si_status() } as u32;
    match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    }
}

/// The most decimal digits of a process's id.
const DIGITS: usize = 10;

/// The text of a [`PidVariable`], with room for the digits that are written after the fork.
struct PidText {
    bytes: Vec<u8>,
    digits_at: usize,
}

impl PidText {
    fn new(variable: &PidVariable) -> io::Result<Self> {
        let mut bytes = CString::new(variable.prefix.as_bytes())?.into_bytes();
        let suffix = CString::new(variable.suffix.as_bytes())?;
        let digits_at = bytes.len();
        let filler = if suffix.is_empty() { 0 } else { b' ' };
        bytes.resize(digits_at + DIGITS, filler);
        bytes.extend_from_slice(suffix.as_bytes_with_nul());
        Ok(Self { bytes, digits_at })
    }

    /// Does not allocate.
    fn write_pid(&mut self, pid: u32) {
        // The places are enough for every number.
        let _ = write!(&mut self.bytes[self.digits_at..], "{pid}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(prefix: &str, pid: u32, suffix: &str, wanted: &str) {
        let mut text = PidText::new(&PidVariable::new(prefix, suffix)).unwrap();
        text.write_pid(pid);
        let read = std::ffi::CStr::from_bytes_until_nul(&text.bytes).unwrap();
        assert_eq!(read.to_str(), Ok(wanted));
    }

    #[test]
    fn a_pid_ends_the_text_unless_a_suffix_follows() {
        check_text("LISTEN_PID=", 1234, "", "LISTEN_PID=1234");
        check_text("LISTEN_PID=", u32::MAX, "", "LISTEN_PID=4294967295");
        check_text("A={\"pid\":", 1234, "}", "A={\"pid\":1234      }");
        check_text("A={\"pid\":", u32::MAX, "}", "A={\"pid\":4294967295}");
    }

    #[test]
    fn the_waiter_ends_a_start_only_when_the_parent_has_died() {
        let running = WaiterState::default();
        let orphan = WaiterState {
            is_orphan: true,
            ..running
        };
        let late = WaiterState {
            is_late: true,
            ..orphan
        };
        for (state, wanted) in [
            (running, WaiterStep::Wait),
            // The parent bounds the start itself.
            (
                WaiterState {
                    is_orphan: false,
                    ..late
                },
                WaiterStep::Wait,
            ),
            (
                WaiterState {
                    is_released: true,
                    ..running
                },
                WaiterStep::Wait,
            ),
            (
                WaiterState {
                    has_ended: true,
                    ..running
                },
                WaiterStep::Wait,
            ),
            (
                WaiterState {
                    has_ended: true,
                    is_released: true,
                    ..running
                },
                WaiterStep::Reap,
            ),
            (
                WaiterState {
                    has_ended: true,
                    ..late
                },
                WaiterStep::Reap,
            ),
            (orphan, WaiterStep::Wait),
            (
                WaiterState {
                    has_started: true,
                    ..late
                },
                WaiterStep::Leave,
            ),
            (late, WaiterStep::Kill),
        ] {
            assert_eq!(state.step(), wanted, "{state:?}");
        }
    }

    #[test]
    fn a_text_with_a_null_is_refused() {
        assert!(PidText::new(&PidVariable::new("A=\0", "")).is_err());
        assert!(PidText::new(&PidVariable::new("A=", "\0")).is_err());
    }
}
