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
    stderr: RawFd,
    identity: Option<Identity>,
    /// The signals that are blocked when the program starts.
    mask: libc::sigset_t,
    /// Where a new process writes the number of the error that ends it.
    pub(super) error_pipe: RawFd,
    /// Where the waiter writes the program's id, and then its exit status.
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
        let envp = envp.chain(pid_texts.iter().map(|text| text.bytes.as_ptr().cast()));
        Ok(Self {
            program: to_path(options.program)?,
            dir: options.dir.map(to_path).transpose()?,
            argv: argv.chain([ptr::null()]).collect(),
            envp: envp.chain([ptr::null()]).collect(),
            _strings: [args, env],
            pid_texts,
            sources: options.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            stderr: options.stderr.map_or(2, AsRawFd::as_raw_fd),
            identity: options.identity.cloned(),
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
        let Err(error) = self.exec(Some(parent));
        exit_with_error(self.error_pipe, &error)
    }

    /// Starts the program, and waits for its end: see "The waiter" in [`process`](super::process).
    #[allow(unsafe_code)]
    pub(super) fn run_waiter(&mut self, parent: Pid) -> ! {
        end_with_parent(parent, libc::SIGKILL);
        // SAFETY: all calls are async-signal-safe, and the pointers are to live memory.
        unsafe {
            let program = libc::fork();
            if program <= 0 {
                let Err(error) = check(program).and_then(|_| self.exec(None));
                exit_with_error(self.error_pipe, &error);
            }
            // A client's connection that is open here would stay open when the parent closes it.
            libc::dup2(self.waiter_socket, 0);
            close_descriptors(1);
            write_word(0, program as u32);
            let mut info = mem::zeroed::<libc::siginfo_t>();
            // WNOWAIT leaves the program unreaped, so that no other process gets its id.
            let options = libc::WEXITED | libc::WNOWAIT;
            let id = program as libc::id_t;
            while libc::waitid(libc::P_PID, id, &mut info, options) < 0 && is_interrupted() {}
            write_word(0, raw_status(&info));
            // Ends when the parent closes its end.
            while libc::read(0, (&raw mut info).cast(), 1) < 0 && is_interrupted() {}
            libc::waitpid(program, ptr::null_mut(), 0);
            libc::_exit(0)
        }
    }

    /// Becomes the program, in a new process. Returns only an error. The process ends with the
    /// parent, if one is given.
    #[allow(unsafe_code)]
    fn exec(&mut self, parent: Option<Pid>) -> io::Result<Infallible> {
        let first_free = FIRST_PASSED + self.sources.len() as i32;
        let kept = [&mut self.stderr, &mut self.error_pipe];
        // SAFETY: all calls are async-signal-safe, and take numbers and strings that end with null.
        unsafe {
            // First move all out of the way of the numbers that the sources get.
            for fd in self.sources.iter_mut().chain(kept) {
                *fd = match check(libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, first_free)) {
                    // Standard error may be closed.
                    Err(_) if *fd == 2 => -1,
                    copy => copy?,
                };
            }
            for (target, source) in (FIRST_PASSED..).zip(&self.sources) {
                check(libc::dup2(*source, target))?;
            }
            if self.stderr >= 0 {
                check(libc::dup2(self.stderr, 2))?;
            }
            // Other code of this process may have opened descriptors without CLOEXEC.
            close_range(first_free, true);
            if let Some(dir) = &self.dir {
                check(libc::chdir(dir.as_ptr()))?;
            }
            // Rust programs ignore SIGPIPE, and the program would inherit this.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
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

/// Whether a signal has interrupted the last call, which failed. Does not allocate.
fn is_interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

/// Closes every descriptor from `first` on.
#[allow(unsafe_code)]
fn close_descriptors(first: RawFd) {
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
    fn a_text_with_a_null_is_refused() {
        assert!(PidText::new(&PidVariable::new("A=\0", "")).is_err());
        assert!(PidText::new(&PidVariable::new("A=", "\0")).is_err());
    }
}
