//! Unix: starting a program with an exact set of descriptors, and what a program finds when it was started so.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use socket2::Socket;

use crate::sys::{FIRST_PASSED, PidVariable, ProcessState, Start};

/// What a process can pass on: a socket, a pipe, a file.
pub type Descriptor = OwnedFd;

/// Whether a process can be replaced by a successor here. Apple's systems have no sockets that keep messages apart.
pub(crate) const RESTARTS: bool = cfg!(not(target_vendor = "apple"));

/// The signals that are held back while a program starts that will handle them, so that none of them ends it.
const HELD: [libc::c_int; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// A process that was started. A drop leaves it alone.
///
/// Its parent is a process that does nothing but wait for it, and keeps its id from being another's. When that one is
/// gone, it is init's child, or the service manager's: a manager notices the end of its own children only.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    parent: Option<Parent>,
    state: ProcessState,
}

/// The process that waits. Dropping this ends it.
#[derive(Debug)]
struct Parent {
    pid: Pid,
    /// It writes the id of its child there, and in the end the status; then it waits for this to be closed.
    news: Option<UnixStream>,
    child_has_ended: bool,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, unless it was let go, for so long at most. The status is unknown if nobody is left who knows.
    pub(crate) fn wait(&mut self, within: Duration) -> io::Result<ProcessState> {
        if let (ProcessState::Running, Some(parent)) = (self.state, &mut self.parent) {
            match parent.read(Some(within)) {
                Ok(raw) => {
                    parent.child_has_ended = true;
                    self.state = ProcessState::Ended(ExitStatus::from_raw(raw as i32));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Somebody has ended the process that waits.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.state = ProcessState::Unknown;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.state)
    }

    /// Ends it at once, unless it was let go.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        match (&self.parent, self.state, pid) {
            (Some(_), ProcessState::Running, Some(pid)) => Ok(kill_process(pid, Signal::KILL)?),
            _ => Ok(()),
        }
    }

    /// From now on it is nobody's here.
    pub(crate) fn let_go(&mut self) {
        self.parent = None;
    }
}

impl Parent {
    fn read(&self, within: Option<Duration>) -> io::Result<u32> {
        let mut word = [0; 4];
        let mut news = self.news.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
        // No time at all would mean for ever.
        news.set_read_timeout(within.map(|within| within.max(Duration::from_millis(1))))?;
        news.read_exact(&mut word)?;
        Ok(u32::from_ne_bytes(word))
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // Others may have a copy of it.
        if let Some(news) = self.news.take() {
            let _ = news.shutdown(Shutdown::Both);
        }
        if !self.child_has_ended {
            // It is there until it is waited for, so that this reaches nobody else.
            let _ = kill_process(self.pid, Signal::KILL);
        }
        // Somebody else in this process may have waited for it.
        let _ = retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

/// Starts a program in a process of its own. [`HELD`] signals are blocked in it.
///
/// An error is that of the process that was to become the program: no descriptors, no such directory or program. To be
/// called from a thread that lives as long as the process is of interest.
pub(crate) fn start(start: &Start<'_>) -> io::Result<Process> {
    // Nothing may be allocated between fork and exec, so that all is made here.
    let mut plan = Plan::new(start)?;
    let (report, report_end) = pipe()?;
    let (news, news_end) = UnixStream::pair()?;
    plan.report = report_end.as_raw_fd();
    plan.news = news_end.as_raw_fd();
    let mut parent = Parent {
        pid: plan.fork()?,
        news: Some(news),
        child_has_ended: false,
    };
    drop((report_end, news_end));
    let mut failure = Vec::new();
    // Until the program runs, whose descriptors are others.
    File::from(report).read_to_end(&mut failure)?;
    if let Some(number) = failure.first_chunk() {
        // It says who it is, and how it ends, unless there was no memory for it.
        parent.child_has_ended = parent.read(None).and_then(|_| parent.read(None)).is_ok();
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*number)));
    }
    let pid = parent.read(None)?;
    Ok(Process {
        pid,
        parent: Some(parent),
        state: ProcessState::Running,
    })
}

/// Starts a program as a child of this process, which is to wait for it ([`reap`](super::reap)). No signal is blocked in
/// it; it gets SIGTERM when this thread ends. Errors are those of [`start`].
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn start_child(start: &Start<'_>) -> io::Result<u32> {
    let mut plan = Plan::new(start)?;
    plan.mask = no_signals();
    let (report, report_end) = pipe()?;
    plan.report = report_end.as_raw_fd();
    let pid = plan.fork_child()?;
    drop(report_end);
    let mut failure = Vec::new();
    File::from(report).read_to_end(&mut failure)?;
    if let Some(number) = failure.first_chunk() {
        retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
        return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*number)));
    }
    Ok(pid.as_raw_nonzero().get().unsigned_abs())
}

/// Has this process run another program, which keeps its id, its children, its blocked signals, and these descriptors by
/// their numbers. Returns only if that fails, and then all is as it was.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
pub(crate) fn replace_program(start: &Start<'_>) -> io::Error {
    let mut plan = match Plan::new(start) {
        Ok(plan) => plan,
        Err(error) => return error,
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for text in &mut plan.with_pid {
        text.write_pid(own.unsigned_abs());
    }
    let inherit = |flags: libc::c_int| {
        for number in &plan.sources {
            // SAFETY: numbers of open descriptors.
            unsafe { libc::fcntl(*number, libc::F_SETFD, flags) };
        }
    };
    inherit(0);
    // SAFETY: the strings, and the arrays of pointers to them, end with null, and live until the call is over.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(
            plan.program.as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
        );
    }
    let error = io::Error::last_os_error();
    inherit(libc::FD_CLOEXEC);
    // SAFETY: as it was, for every Rust program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    error
}

/// What the new processes need until one of them is the program.
struct Plan {
    program: CString,
    dir: CString,
    /// What the pointers point to.
    _strings: Vec<CString>,
    with_pid: Vec<PidText>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    sources: Vec<RawFd>,
    stderr: RawFd,
    report: RawFd,
    news: RawFd,
    /// The signals that the program starts with blocked.
    mask: libc::sigset_t,
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
        for variable in start.env_with_pid {
            let text = PidText::new(variable)?;
            envp.push(text.bytes.as_ptr().cast());
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
            news: -1,
            mask: held(),
        })
    }

    /// Forks the process that waits, and that one the program.
    #[allow(unsafe_code)]
    fn fork(&mut self) -> io::Result<Pid> {
        let own = rustix::process::getpid();
        // A handler that ran in a new process would write to what it shares with this one.
        let before = block_all();
        // SAFETY: the new processes call only what is async-signal-safe until they are another program, or end.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            self.wait_for_program(own);
        }
        let error = io::Error::last_os_error();
        set_mask(libc::SIG_SETMASK, &before);
        Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
    }

    /// Forks the program.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[allow(unsafe_code)]
    fn fork_child(&mut self) -> io::Result<Pid> {
        let own = rustix::process::getpid();
        let before = block_all();
        // SAFETY: as in `fork`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            end_with_parent(own, libc::SIGTERM);
            let number = self.become_program();
            write_word(self.report, number as u32);
            // SAFETY: ends the process.
            unsafe { libc::_exit(127) }
        }
        let error = io::Error::last_os_error();
        set_mask(libc::SIG_SETMASK, &before);
        Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
    }

    /// The life of the process that waits. It may not allocate.
    #[allow(unsafe_code)]
    fn wait_for_program(&mut self, parent: Pid) -> ! {
        // SAFETY: all calls are async-signal-safe, with live arguments; `_exit` ends the process.
        unsafe {
            end_with_parent(parent, libc::SIGKILL);
            let program = libc::fork();
            if program <= 0 {
                let number = match program {
                    0 => self.become_program(),
                    _ => errno(),
                };
                write_word(self.report, number as u32);
                libc::_exit(127);
            }
            // What is open here would stay open when the others close it, clients' connections above all.
            libc::dup2(self.news, 0);
            close_from_1();
            write_word(0, program as u32);
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            // It is not reaped yet, so that nobody else gets its id as long as somebody here may signal it.
            let flags = libc::WEXITED | libc::WNOWAIT;
            while libc::waitid(libc::P_PID, program as libc::id_t, &mut info, flags) < 0
                && errno() == libc::EINTR
            {}
            let status = info.si_status() as u32;
            write_word(
                0,
                match info.si_code {
                    libc::CLD_EXITED => (status & 0xff) << 8,
                    libc::CLD_DUMPED => status | 0x80,
                    _ => status,
                },
            );
            while libc::read(0, (&raw mut info).cast(), 1) < 0 && errno() == libc::EINTR {}
            libc::waitpid(program, std::ptr::null_mut(), 0);
            libc::_exit(0);
        }
    }

    /// Returns only the number of an error. Runs in the new process, which may not allocate.
    #[allow(unsafe_code)]
    fn become_program(&mut self) -> i32 {
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
            #[cfg(target_os = "linux")]
            {
                // Not all that is open here need be closed by the exec: others in this process may not care. Where
                // there is no such call yet, nothing can be done about that.
                let flag = libc::CLOSE_RANGE_CLOEXEC;
                libc::syscall(libc::SYS_close_range, above, libc::c_uint::MAX, flag);
            }
            if libc::chdir(self.dir.as_ptr()) < 0 {
                return errno();
            }
            // Rust programs ignore it, and so would this one's children.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            set_mask(libc::SIG_SETMASK, &self.mask);
            let pid = libc::getpid();
            for text in &mut self.with_pid {
                text.write_pid(pid.unsigned_abs());
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

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Has this process get a signal when its parent ends, however that happens.
#[allow(unsafe_code)]
fn end_with_parent(parent: Pid, signal: libc::c_int) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: only numbers go in.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal);
    }
    // SAFETY: takes nothing; `_exit` ends the process.
    unsafe {
        if libc::getppid() != parent.as_raw_nonzero().get() {
            libc::_exit(0);
        }
    }
}

/// Closes every descriptor but 0.
#[allow(unsafe_code)]
fn close_from_1() {
    #[cfg(target_os = "linux")]
    // SAFETY: whoever owns them is another process, of which this one is a copy that uses none of them.
    if unsafe { libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    // SAFETY: as above; the call takes and gives numbers.
    unsafe {
        for number in 1..libc::sysconf(libc::_SC_OPEN_MAX).clamp(1024, 1 << 20) {
            libc::close(number as RawFd);
        }
    }
}

/// Four bytes are taken whole, or nobody is there to read them any more.
#[allow(unsafe_code)]
fn write_word(to: RawFd, word: u32) {
    let bytes = word.to_ne_bytes();
    // SAFETY: reads four bytes of a live array.
    unsafe {
        libc::write(to, bytes.as_ptr().cast(), bytes.len());
    }
}

/// The text of a [`PidVariable`], with room for the digits that are written after fork.
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
    fn write_pid(&mut self, mut pid: u32) {
        let mut digits = [0; DIGITS];
        let mut count = 0;
        while pid > 0 || count == 0 {
            digits[count] = b'0' + (pid % 10) as u8;
            pid /= 10;
            count += 1;
        }
        let places = &mut self.bytes[self.digits_at..];
        for (place, digit) in places.iter_mut().zip(digits[..count].iter().rev()) {
            *place = *digit;
        }
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

#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
fn no_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised by the call.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
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
pub(crate) fn set_stderr(to: &Descriptor) -> io::Result<()> {
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
