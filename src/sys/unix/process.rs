//! Unix: starting a program with an exact set of descriptors, and what a program finds when it was started so.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use socket2::Socket;

/// What a process can pass on: a socket, a pipe, a file.
pub type Descriptor = OwnedFd;

/// Whether a process can be replaced by a successor here.
pub(crate) const RESTARTS: bool = true;

/// How a program is to be started.
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    /// The first one is the program's name.
    pub(crate) args: &'a [OsString],
    /// `NAME=value`.
    pub(crate) env: &'a [OsString],
    /// The same; the new process's id is appended to each.
    pub(crate) env_with_pid: &'a [OsString],
    pub(crate) dir: &'a Path,
    /// They become its descriptors 3, 4, and so on; it gets no others but standard input and output.
    pub(crate) descriptors: &'a [Descriptor],
    /// Its standard error; the present one if there is none.
    pub(crate) stderr: Option<&'a Descriptor>,
}

/// The first descriptor that is passed on, as systemd has it (sd_listen_fds(3)).
pub(crate) const FIRST_PASSED: i32 = 3;

/// The signals that are held back while a program starts that will handle them, so that none of them ends it.
const HELD: [libc::c_int; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// A child process. It is not ended by a drop.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// Once it was waited for, its id may be another's.
    ended: Option<Option<ExitStatus>>,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has ended. Its status is unknown if somebody else in this process has waited for it.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<Option<ExitStatus>>> {
        if self.ended.is_none() {
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) | Err(Errno::INTR) => {}
                Ok(Some((_, status))) => {
                    self.ended = Some(Some(ExitStatus::from_raw(status.as_raw())));
                }
                Err(Errno::CHILD) => self.ended = Some(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.ended)
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match self.ended {
            Some(_) => Ok(()),
            None => Ok(kill_process(self.pid, Signal::KILL)?),
        }
    }
}

/// Starts a program in a process of its own. [`HELD`] signals are blocked in it.
///
/// An error is that of the process that was to become the program: no descriptors, no such directory or program.
pub(crate) fn start(start: &Start<'_>) -> io::Result<Process> {
    // Nothing may be allocated between fork and exec, so that all is made here.
    let mut plan = Plan::new(start)?;
    let (report, write_end) = pipe()?;
    plan.report = write_end.as_raw_fd();
    let pid = plan.fork()?;
    drop(write_end);
    let mut process = Process { pid, ended: None };
    let mut failure = Vec::new();
    let read = File::from(report).read_to_end(&mut failure);
    if failure.is_empty() && read.is_ok() {
        return Ok(process);
    }
    while process.ended.is_none() {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            _ => process.ended = Some(None),
        }
    }
    read?;
    let number = failure
        .first_chunk()
        .map_or(0, |raw| i32::from_ne_bytes(*raw));
    Err(io::Error::from_raw_os_error(number))
}

/// What the new process needs until it is the program.
struct Plan {
    program: CString,
    dir: CString,
    /// What the pointers point to.
    _strings: Vec<CString>,
    with_pid: Vec<Vec<u8>>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    sources: Vec<RawFd>,
    stderr: RawFd,
    report: RawFd,
}

/// A process's id has so many digits at most.
const DIGITS: usize = 10;

impl Plan {
    fn new(start: &Start<'_>) -> io::Result<Self> {
        let mut strings = Vec::new();
        let mut pointers = |texts: &[OsString]| -> io::Result<Vec<*const libc::c_char>> {
            let mut pointers = Vec::new();
            for text in texts {
                let text = CString::new(text.as_bytes())?;
                pointers.push(text.as_ptr());
                strings.push(text);
            }
            Ok(pointers)
        };
        let mut argv = pointers(start.args)?;
        argv.push(ptr::null());
        let mut envp = pointers(start.env)?;
        let mut with_pid = Vec::new();
        for text in start.env_with_pid {
            let mut text = CString::new(text.as_bytes())?.into_bytes();
            text.resize(text.len() + DIGITS + 1, 0);
            envp.push(text.as_ptr().cast());
            with_pid.push(text);
        }
        envp.push(ptr::null());
        Ok(Self {
            program: CString::new(start.program.as_os_str().as_bytes())?,
            dir: CString::new(start.dir.as_os_str().as_bytes())?,
            _strings: strings,
            with_pid,
            argv,
            envp,
            sources: start.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            stderr: start.stderr.map_or(2, |stderr| stderr.as_raw_fd()),
            report: -1,
        })
    }

    #[allow(unsafe_code)]
    fn fork(&mut self) -> io::Result<Pid> {
        // A handler that ran in the new process would write to what it shares with this one.
        let before = block_all();
        // SAFETY: the new process calls only what is async-signal-safe until it is another program, or ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let number = self.become_program();
            // SAFETY: the call reads four bytes from a live array; `_exit` ends the process.
            unsafe {
                libc::write(self.report, number.to_ne_bytes().as_ptr().cast(), 4);
                libc::_exit(127);
            }
        }
        let error = io::Error::last_os_error();
        set_mask(libc::SIG_SETMASK, &before);
        Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
    }

    /// Returns only the number of an error. Runs in the new process, which may not allocate.
    #[allow(unsafe_code)]
    fn become_program(&mut self) -> i32 {
        let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let above = FIRST_PASSED + self.sources.len() as i32;
        // SAFETY: calls with numbers of descriptors and pointers to what `self` owns; all are async-signal-safe. The
        // arrays of pointers end with null, and so do the strings, also those that the id is written to.
        unsafe {
            // First out of the way of the numbers that they are to get.
            for fd in self
                .sources
                .iter_mut()
                .chain([&mut self.stderr, &mut self.report])
            {
                let copy = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above);
                // Standard error may be closed.
                if copy < 0 && *fd != 2 {
                    return errno();
                }
                *fd = copy;
            }
            for (target, source) in (FIRST_PASSED..).zip(&self.sources) {
                if libc::dup2(*source, target) < 0 {
                    return errno();
                }
            }
            if self.stderr >= 0 && libc::dup2(self.stderr, 2) < 0 {
                return errno();
            }
            if libc::chdir(self.dir.as_ptr()) < 0 {
                return errno();
            }
            // Rust programs ignore it, and so would this one's children.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            set_mask(libc::SIG_SETMASK, &held());
            let pid = libc::getpid();
            for text in &mut self.with_pid {
                let at = text.len() - DIGITS - 1;
                write_number(pid.unsigned_abs(), &mut text[at..]);
            }
            libc::execve(
                self.program.as_ptr(),
                self.argv.as_ptr(),
                self.envp.as_ptr(),
            );
        }
        errno()
    }
}

fn write_number(mut number: u32, into: &mut [u8]) {
    let mut digits = [0; DIGITS];
    let mut count = 0;
    while number > 0 || count == 0 {
        digits[count] = b'0' + (number % 10) as u8;
        number /= 10;
        count += 1;
    }
    for (place, digit) in into.iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
}

#[allow(unsafe_code)]
fn held() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised before anything is added, and the signals' numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in HELD {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

#[allow(unsafe_code)]
fn block_all() -> libc::sigset_t {
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised by the call.
    let all = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    };
    set_mask(libc::SIG_SETMASK, &all)
}

/// Changes this thread's mask, and returns what it was.
#[allow(unsafe_code)]
fn set_mask(how: libc::c_int, set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets live for the length of the call, which cannot fail with these arguments; any bits are a set.
    unsafe {
        libc::pthread_sigmask(how, set, before.as_mut_ptr());
        before.assume_init()
    }
}

/// Lets the signals through, on this thread and those that it starts from now on, that [`start`] has held back. True if
/// one of those that came means a stop.
#[allow(unsafe_code)]
pub(crate) fn release_signals() -> bool {
    let mut pending = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call fills a set that lives for as long, and any bits are a set.
    let pending = unsafe {
        libc::sigpending(pending.as_mut_ptr());
        pending.assume_init()
    };
    set_mask(libc::SIG_UNBLOCK, &held());
    let stops = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
    // SAFETY: a valid set and valid numbers.
    stops
        .iter()
        .any(|signal| unsafe { libc::sigismember(&pending, *signal) } == 1)
}

/// Makes a descriptor that the process was started with its own; its children do not inherit it. An error if there is
/// none. To be called once for each.
#[allow(unsafe_code)]
pub(crate) fn adopt(number: i32) -> io::Result<Descriptor> {
    // SAFETY: only a number goes in.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and whoever started this process says that it is meant to be taken.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A second descriptor of a socket.
pub(crate) fn descriptor_of(socket: &Socket) -> io::Result<Descriptor> {
    Ok(socket.try_clone()?.into())
}

/// A descriptor that may be a socket's, as one.
pub(crate) fn into_socket(descriptor: Descriptor) -> io::Result<Socket> {
    Ok(Socket::from(descriptor))
}

pub(crate) fn into_file(descriptor: Descriptor) -> File {
    File::from(descriptor)
}

/// A pipe that children do not inherit: its reading and its writing end.
pub(crate) fn pipe() -> io::Result<(Descriptor, Descriptor)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// A second descriptor of standard error.
pub(crate) fn stderr_copy() -> io::Result<Descriptor> {
    io::stderr().as_fd().try_clone_to_owned()
}

/// Makes this the standard error.
#[allow(unsafe_code)]
pub(crate) fn set_stderr(to: Descriptor) -> io::Result<()> {
    // SAFETY: numbers of open descriptors.
    if unsafe { libc::dup2(to.as_raw_fd(), 2) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A file without a name that holds these bytes, to be read from its beginning.
pub(crate) fn anonymous_file(bytes: &[u8]) -> io::Result<File> {
    use std::io::{Seek, Write};
    let mut file = unnamed()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn unnamed() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(memfd_create("handover", MemfdFlags::CLOEXEC)?.into())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn unnamed() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let name = format!("handover-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600);
    let file = file.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// `NAME=value`, as a program is started with it.
pub(crate) fn env_entry(name: &OsString, value: &OsString) -> OsString {
    OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat())
}

/// Text of the system's that came as bytes.
pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// May this file be run?
pub(crate) fn is_program(path: &Path) -> bool {
    let runs = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    runs && path.is_file()
}

/// Locks a file until it is closed; false if another process has locked it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
