//! Linux: the log writer, a small process that copies what other processes write to a pipe into a
//! file.
//!
//! The pipe is the standard error of the processes, for as long as they run. So the file can be
//! opened again under their feet (after a rotation), which would not be possible if they held the
//! file itself. The log writer is a process of its own, as runit's svlogd is:
//!
//! - It lives until nobody can write to the pipe any more. When the supervisor is killed, or replaced
//!   in place, the others go on writing, and nothing is lost. A thread of the supervisor would end
//!   with the supervisor, and then a write to the pipe would be an error (EPIPE).
//! - It alone waits for the disk. The supervisor never opens or writes the file once it has started.
//! - When it is killed itself, the supervisor, which keeps the pipe open, starts another.
//!
//! What the disk does not take is dropped and counted, up to the end of the line, so that the
//! processes go on. The count is written to the file when it takes bytes again, and is reported.
//!
//! As the guardian, the log writer has a session of its own, blocks all signals, and calls only what
//! is async-signal-safe.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Gid, Uid, fchown};
use rustix::pipe::fcntl_setpipe_size;
use socket2::Socket;

use super::Source;
use crate::sys::native::packet;
use crate::sys::unix::exec_plan::close_descriptors;
use crate::sys::unix::{check, clock, descriptor, signal};
use crate::sys::{Credentials, Descriptor, LogReport};

/// A log writer that this process has started. It goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct LogWriter {
    pid: u32,
    /// Requests to the log writer, and its reports.
    socket: Socket,
}

/// The longest path, with the null character at its end (PATH_MAX).
const MAX_PATH: usize = 4096;

/// How much a pipe holds, in bytes.
const PIPE_ROOM: usize = 256 * 1024;

/// What is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The file is opened again when the line that is being written is complete, or after this time.
const LINE_TIMEOUT_NANOS: u64 = 1_000_000_000;

/// The time between two reports of lost lines.
const REPORT_INTERVAL_NANOS: u64 = 10_000_000_000;

// The formats of requests and reports must stay as they are: a supervisor that was upgraded has the
// log writer of the program before.

/// The first byte of a request to open the file again; its path follows.
const REOPEN: u8 = b'o';
/// A request to write what is in the pipe.
const DRAIN: u8 = b'd';

/// What a report is about, its first number. Two more follow.
const REOPENED: i64 = 1;
const NOT_REOPENED: i64 = 2;
const LOST: i64 = 3;
const DRAINED: i64 = 4;

impl LogWriter {
    /// Starts a log writer. Without a file, the log writer opens one by the first request, and reads
    /// nothing before.
    ///
    /// # Errors
    ///
    /// No memory, no descriptors.
    #[allow(unsafe_code)]
    pub(crate) fn start(input: &Descriptor, file: Option<&File>) -> io::Result<Self> {
        let (socket, other) = packet::create_pair()?;
        let mut numbers = [input.as_raw_fd(), other.as_raw_fd(), -1];
        numbers[2] = file.map_or(-1, AsRawFd::as_raw_fd);
        let mut piece = vec![0; PIECE];
        let mask = signal::block_all();
        // SAFETY: the new process calls `run` only, which is async-signal-safe and does not return.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            run(numbers, &mut piece);
        }
        let pid = check(pid);
        signal::change_mask(libc::SIG_SETMASK, &mask);
        let pid = pid?.unsigned_abs();
        Ok(Self { pid, socket })
    }

    /// The log writer that this process started before it executed its present program, with the
    /// number of the socket.
    ///
    /// # Errors
    ///
    /// No such descriptor is open.
    pub(crate) fn resume(pid: u32, socket: i32) -> io::Result<Self> {
        let socket = descriptor::adopt(socket).and_then(descriptor::into_socket)?;
        Ok(Self { pid, socket })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The source that is ready when there is a report.
    pub(crate) fn source(&self) -> Source<'_> {
        &self.socket
    }

    /// Has the file opened again. A report follows.
    pub(crate) fn reopen(&self, path: &Path) -> io::Result<()> {
        self.request(REOPEN, path.as_os_str())
    }

    /// Has everything written that is in the pipe. A report follows.
    pub(crate) fn drain(&self) -> io::Result<()> {
        self.request(DRAIN, OsStr::new(""))
    }

    fn request(&self, what: u8, path: &OsStr) -> io::Result<()> {
        let request = [&[what], path.as_bytes()].concat();
        self.socket.send_with_flags(&request, libc::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// The next report. `None`: there is none yet, or the log writer has ended.
    pub(crate) fn receive(&self) -> Option<LogReport> {
        let mut report = [0; size_of::<[i64; 3]>()];
        let (size, _) = packet::receive(&self.socket, &mut report).ok()?;
        if size < report.len() {
            return None;
        }
        let number = |index: usize| {
            let bytes = report[8 * index..].first_chunk().copied();
            i64::from_ne_bytes(bytes.unwrap_or_default())
        };
        let error = || open_error(number(2) as i32);
        Some(match number(0) {
            REOPENED => LogReport::Reopened(Ok(())),
            NOT_REOPENED => LogReport::Reopened(Err(error())),
            LOST => LogReport::Lost {
                lines: number(1).unsigned_abs(),
                error: error(),
            },
            _ => LogReport::Drained,
        })
    }
}

/// Prepares the pipe of a log writer: room for bursts, and the owner. Without the latter, a program
/// of another user could not open /dev/stderr.
pub(crate) fn prepare_log_pipe(writer: &Descriptor, owner: Option<&Credentials>) -> io::Result<()> {
    // Where the limits of the user do not allow this, the pipe keeps its size.
    let _ = fcntl_setpipe_size(writer, PIPE_ROOM);
    if let Some(owner) = owner {
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(writer, Some(user), Some(group))?;
    }
    Ok(())
}

// ---- the process ----

#[allow(unsafe_code)]
fn run([input, socket, file]: [RawFd; 3], piece: &mut [u8]) -> ! {
    const FIRST_FREE: RawFd = 3;
    // SAFETY: the calls take numbers, and pointers to live memory. First all descriptors move out of
    // the way of the numbers that they get.
    unsafe {
        libc::setsid();
        // A working directory would keep its file system from being unmounted.
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"handover-log".as_ptr());
        let away = |number| libc::fcntl(number, libc::F_DUPFD, FIRST_FREE);
        let [input, socket, file] = [away(input), away(socket), away(file)];
        libc::dup2(input, 0);
        libc::dup2(socket, 1);
        match file {
            0.. => libc::dup2(file, 2),
            _ => libc::close(2),
        };
    }
    close_descriptors(FIRST_FREE);
    let mut copy = Copy {
        output: Output::new(if file >= 0 { 2 } else { -1 }),
        next: None,
        reports: Reports::default(),
        has_supervisor: true,
        is_draining: false,
    };
    while copy.step(piece) {}
    // SAFETY: the call takes a number, and ends the process.
    unsafe { libc::_exit(0) }
}

/// The standard input of the process is the pipe, and its standard output the socket.
const INPUT: RawFd = 0;
const SOCKET: RawFd = 1;

struct Copy {
    output: Output,
    /// The file that takes the place of the present one when the line is complete, and the time by
    /// which it does so in any case.
    next: Option<(RawFd, u64)>,
    reports: Reports,
    /// Requests may come.
    has_supervisor: bool,
    is_draining: bool,
}

impl Copy {
    /// Waits for one event, and handles it. False at the end of the pipe.
    #[allow(unsafe_code)]
    fn step(&mut self, piece: &mut [u8]) -> bool {
        if !self.output.has_file() && !self.has_supervisor {
            return false;
        }
        let watched = |fd, is_watched| libc::pollfd {
            fd: if is_watched { fd } else { -1 },
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [
            watched(INPUT, self.output.has_file()),
            watched(SOCKET, self.has_supervisor),
        ];
        // SAFETY: the array is alive, and has this length.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, self.timeout()) };
        let now = clock::monotonic_nanos();
        let [has_input, has_request] = fds.map(|fd| fd.revents != 0);
        if has_request {
            self.handle_request(now);
        }
        if has_input {
            // SAFETY: the buffer is alive, and has this length.
            let count = unsafe { libc::read(INPUT, piece.as_mut_ptr().cast(), piece.len()) };
            if count == 0 {
                return false;
            }
            let bytes = &piece[..usize::try_from(count).unwrap_or(0)];
            self.write(bytes);
        } else if self.is_draining {
            self.is_draining = false;
            self.reports.send(&mut self.output.lost, now);
            report([DRAINED, 0, 0]);
        }
        if let Some((_, switch_by)) = self.next {
            if self.output.is_between_lines() || now >= switch_by {
                self.switch();
            }
        }
        self.reports.send_due(&mut self.output.lost, now);
        true
    }

    /// The timeout of poll(2), in milliseconds.
    fn timeout(&self) -> libc::c_int {
        let until = match self.next {
            _ if self.is_draining => Some(0),
            Some((_, switch_by)) => Some(switch_by),
            None => self.reports.due_at(&self.output.lost),
        };
        until.map_or(-1, |until| {
            let nanos = until.saturating_sub(clock::monotonic_nanos());
            i32::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i32::MAX)
        })
    }

    /// Writes to the present file what ends its line, and the rest to the next one.
    fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.next.is_some() && !self.output.is_between_lines() {
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let (line, behind) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.output.write(line);
            rest = behind;
        }
        if self.next.is_some() && self.output.is_between_lines() {
            self.switch();
        }
        self.output.write(rest);
    }

    #[allow(unsafe_code)]
    fn switch(&mut self) {
        if let Some((file, _)) = self.next.take() {
            // SAFETY: the call takes a number, of a descriptor that only this process uses.
            unsafe { libc::close(self.output.file) };
            self.output.file = file;
            self.output.is_line_complete = true;
            report([REOPENED, 0, 0]);
        }
    }

    #[allow(unsafe_code)]
    fn handle_request(&mut self, now: u64) {
        let mut request = [0_u8; MAX_PATH + 1];
        // SAFETY: the buffer is alive, and longer than this.
        let size = unsafe { libc::recv(SOCKET, request.as_mut_ptr().cast(), MAX_PATH, 0) };
        match (size, request[0]) {
            (0, _) => self.has_supervisor = false,
            (1.., DRAIN) => self.is_draining = true,
            (1.., REOPEN) => {
                // A request before this one is done by then.
                self.switch();
                match open(&mut request[1..]) {
                    Ok(file) => self.next = Some((file, now + LINE_TIMEOUT_NANOS)),
                    Err(code) => {
                        report([NOT_REOPENED, 0, code.into()]);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Sends a report to the supervisor. False if the supervisor is dead, or does not read.
#[allow(unsafe_code)]
fn report(numbers: [i64; 3]) -> bool {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the array is alive, and has this length.
    unsafe {
        libc::send(
            SOCKET,
            numbers.as_ptr().cast(),
            size_of_val(&numbers),
            flags,
        ) >= 0
    }
}

/// The file, and what it did not take.
struct Output {
    /// Negative: none is open.
    file: RawFd,
    /// The last byte that the file took is the end of a line.
    is_line_complete: bool,
    /// The rest of a line is dropped, since its beginning was.
    drops_line: bool,
    /// Lines that were lost since the last note in the file.
    noted: u64,
    lost: Lost,
}

/// Lines that were lost and are not reported.
#[derive(Default)]
struct Lost {
    lines: u64,
    errno: i32,
}

impl Output {
    fn new(file: RawFd) -> Self {
        Self {
            file,
            is_line_complete: true,
            drops_line: false,
            noted: 0,
            lost: Lost::default(),
        }
    }

    fn has_file(&self) -> bool {
        self.file >= 0
    }

    /// Whether nothing more belongs to the line that was written last.
    fn is_between_lines(&self) -> bool {
        self.is_line_complete || self.noted > 0
    }

    fn write(&mut self, mut bytes: &[u8]) {
        if self.drops_line {
            let end = bytes.iter().position(|&byte| byte == b'\n');
            bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
            self.drops_line = end.is_none();
        }
        if bytes.is_empty() {
            return;
        }
        if self.noted > 0 {
            self.write_note();
        }
        let result = match self.noted {
            0 => self.put(bytes),
            _ => Err((0, self.lost.errno)),
        };
        if let Err((taken, errno)) = result {
            let dropped = &bytes[taken..];
            let ends = dropped.iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.drops_line = !dropped.ends_with(b"\n");
            let lines = ends + u64::from(self.drops_line);
            self.noted += lines;
            self.lost.lines += lines;
            self.lost.errno = errno;
        }
    }

    /// Writes the number of the lines that were lost in the place of the note.
    fn write_note(&mut self) {
        let mut note = [0; 160];
        let mut rest = &mut note[..];
        let start = if self.is_line_complete { "" } else { "\n" };
        let why = reason(self.lost.errno);
        // The note is shorter than the buffer.
        let _ = writeln!(
            rest,
            "{start}handover: {} lines were lost: {why}",
            self.noted
        );
        let left = rest.len();
        let size = note.len() - left;
        match self.put(&note[..size]) {
            Ok(()) => self.noted = 0,
            Err((_, errno)) => self.lost.errno = errno,
        }
    }

    /// Writes all of the bytes. The error has how many of them the file took, and errno.
    #[allow(unsafe_code)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), (usize, i32)> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            // SAFETY: the bytes are alive, and have this length.
            let count = unsafe { libc::write(self.file, rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(count) {
                Ok(count) => taken += count,
                Err(_) if errno() == libc::EINTR => continue,
                Err(_) => return Err((taken, errno())),
            }
            self.is_line_complete = bytes[..taken].ends_with(b"\n");
        }
        Ok(())
    }
}

/// When lost lines are reported: at once, then each [`REPORT_INTERVAL_NANOS`], and in the end.
#[derive(Default)]
struct Reports {
    last: Option<u64>,
}

impl Reports {
    fn due_at(&self, lost: &Lost) -> Option<u64> {
        let due = self.last.map_or(0, |last| last + REPORT_INTERVAL_NANOS);
        (lost.lines > 0).then_some(due)
    }

    fn send_due(&mut self, lost: &mut Lost, now: u64) {
        if self.due_at(lost).is_some_and(|due| now >= due) {
            self.send(lost, now);
        }
    }

    fn send(&mut self, lost: &mut Lost, now: u64) {
        self.last = Some(now);
        if lost.lines > 0 && report([LOST, lost.lines as i64, lost.errno.into()]) {
            lost.lines = 0;
        }
    }
}

fn reason(errno: i32) -> &'static str {
    match errno {
        libc::ENOSPC => "no space was left on the device",
        libc::EDQUOT => "the disk quota was used up",
        libc::EFBIG => "the file was too large",
        libc::EIO => "there was an input/output error",
        _ => "the file could not be written",
    }
}

#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: the address is that of a number of this thread.
    unsafe { *libc::__errno_location() }
}

// ---- the open ----

/// What is wrong with a file, beside what the system says (errno, which is positive).
const NOT_A_LOG: i32 = -1;
const IS_LINK: i32 = -2;

fn open_error(code: i32) -> io::Error {
    let text = match code {
        NOT_A_LOG => "neither a regular file nor a character device",
        IS_LINK => "a link, in a directory to which other users can write",
        errno => return io::Error::from_raw_os_error(errno),
    };
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Opens a file to which a log is appended, and creates it with mode 0640 if it is not there. Does
/// not wait for the reader of a FIFO. The path is absolute.
///
/// # Errors
///
/// The system's; `InvalidInput` for something other than a regular file or a character device, and
/// for a link in a directory to which others than root and the user of this process can write: they
/// could make this process write to any file.
#[allow(unsafe_code)]
pub(crate) fn open_log_file(path: &Path) -> io::Result<File> {
    let mut path = path.as_os_str().as_bytes().to_vec();
    if path.len() >= MAX_PATH || path.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    path.push(0);
    match open(&mut path) {
        // SAFETY: the descriptor has just been opened, and nothing else owns it.
        Ok(file) => Ok(unsafe { File::from_raw_fd(file) }),
        Err(code) => Err(open_error(code)),
    }
}

/// Opens the file at a path that ends with a null character. Async-signal-safe.
#[allow(unsafe_code)]
fn open(path: &mut [u8]) -> Result<RawFd, i32> {
    let slash = path.iter().take_while(|&&byte| byte != 0);
    let slash = slash.enumerate().filter(|(_, byte)| **byte == b'/').last();
    let (directory, name) = match slash.map(|(at, _)| at) {
        None => return Err(libc::EINVAL),
        Some(0) => (c"/".as_ptr(), path[1..].as_ptr().cast()),
        Some(at) => {
            path[at] = 0;
            (path.as_ptr().cast(), path[at + 1..].as_ptr().cast())
        }
    };
    // SAFETY: the strings end with null and are alive. The descriptors are those of this function.
    unsafe {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let directory = number_or_errno(libc::open(directory, flags))?;
        let file = open_in(directory, name);
        libc::close(directory);
        file
    }
}

/// Opens the file with this name in a directory.
///
/// # Safety
///
/// The name is a string that ends with null.
#[allow(unsafe_code)]
unsafe fn open_in(directory: RawFd, name: *const libc::c_char) -> Result<RawFd, i32> {
    // SAFETY: the name is a string that ends with null, and the structure is alive.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        number_or_errno(libc::fstat(directory, &mut found))?;
        let is_own = found.st_uid == 0 || found.st_uid == libc::geteuid();
        let is_shared = found.st_mode & 0o022 != 0 || !is_own;
        let no_follow = if is_shared { libc::O_NOFOLLOW } else { 0 };
        let flags = libc::O_WRONLY
            | libc::O_APPEND
            | libc::O_CREAT
            | libc::O_CLOEXEC
            | libc::O_NOCTTY
            | libc::O_NONBLOCK;
        let opened = libc::openat(directory, name, flags | no_follow, 0o640);
        let file = number_or_errno(opened).map_err(|errno| match errno {
            // A FIFO that nobody reads, or a socket.
            libc::ENXIO => NOT_A_LOG,
            libc::ELOOP if is_shared => IS_LINK,
            errno => errno,
        })?;
        let checked = number_or_errno(libc::fstat(file, &mut found)).and_then(|_| {
            match found.st_mode & libc::S_IFMT {
                libc::S_IFREG if is_shared && found.st_nlink != 1 => Err(IS_LINK),
                // From here on, a write may wait.
                libc::S_IFREG | libc::S_IFCHR => {
                    number_or_errno(libc::fcntl(file, libc::F_SETFL, libc::O_APPEND))
                }
                _ => Err(NOT_A_LOG),
            }
        });
        checked.map(|_| file).inspect_err(|_| {
            libc::close(file);
        })
    }
}

fn number_or_errno(result: libc::c_int) -> Result<libc::c_int, i32> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_a_file_does_not_take_is_counted_by_lines() {
        let dir = tempfile::tempdir().unwrap();
        let full = open_log_file(Path::new("/dev/full")).unwrap();
        let file = open_log_file(&dir.path().join("log")).unwrap();
        let mut output = Output::new(full.as_raw_fd());
        output.write(b"one\ntwo\nthr");
        output.write(b"ee");
        assert_eq!((output.lost.lines, output.lost.errno), (3, libc::ENOSPC));
        output.file = file.as_raw_fd();
        output.write(b"e\nfour\nfi");
        output.write(b"ve\n");
        let text = fs::read_to_string(dir.path().join("log")).unwrap();
        let note = "handover: 3 lines were lost: no space was left on the device\n";
        assert_eq!(text, format!("{note}four\nfive\n"));
        assert_eq!(output.noted, 0);
    }

    #[test]
    fn a_log_file_is_no_fifo_and_no_link_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        drop(UnixListener::bind(path("socket")).unwrap());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        fs::write(path("target"), "").unwrap();
        symlink("target", path("link")).unwrap();
        fs::hard_link(path("target"), path("second")).unwrap();
        let opens = |name: &str| open_log_file(&path(name)).map_err(|error| error.kind());
        let refused = io::ErrorKind::InvalidInput;
        for name in ["fifo", "socket"] {
            assert_eq!(opens(name).unwrap_err(), refused, "{name}");
        }
        for (mode, is_allowed) in [(0o755, true), (0o1777, false), (0o775, false)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            for name in ["link", "second", "target"] {
                assert_eq!(opens(name).is_ok(), is_allowed, "{name} {mode:o}");
            }
            assert!(opens("new").is_ok());
        }
        assert_eq!(opens("none/log").unwrap_err(), io::ErrorKind::NotFound);
        assert!(open_log_file(Path::new("/dev/null")).is_ok());
        assert!(open_log_file(dir.path()).is_err());
    }
}
