//! Linux: what a process needs that looks after others. It hears of their ends, of signals and of what they say in one
//! wait, and inherits the children of those that end.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::SocketAddrUnix;
use rustix::net::sockopt::set_socket_passcred;
use rustix::process::{
    Pid, PidfdFlags, Signal as KernelSignal, WaitId, WaitIdOptions, WaitOptions, kill_process,
    pidfd_open, pidfd_send_signal, set_child_subreaper, test_kill_process, wait, waitid,
};
use socket2::{Domain, Socket, Type};

use super::{Datagram, Descriptor, Signal};

/// Whether a process can look after others here.
pub(crate) const SUPERVISES: bool = true;

/// Processes that lose their parent are this one's children from now on, so that it hears of their end.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// The signals of this process, to be asked for.
#[derive(Debug)]
pub(crate) struct SignalFd(OwnedFd);

const CAUGHT: [(libc::c_int, Option<Signal>); 7] = [
    (libc::SIGHUP, Some(Signal::Hangup)),
    (libc::SIGINT, Some(Signal::Interrupt)),
    (libc::SIGQUIT, Some(Signal::Quit)),
    (libc::SIGTERM, Some(Signal::Terminate)),
    (libc::SIGUSR1, Some(Signal::User1)),
    (libc::SIGUSR2, Some(Signal::User2)),
    (libc::SIGCHLD, None),
];

impl SignalFd {
    /// Holds them back on this thread, which must be the main one and should be the only one, so that they can be asked
    /// for.
    #[allow(unsafe_code)]
    pub(crate) fn hold() -> io::Result<Self> {
        if rustix::thread::gettid() != rustix::process::getpid() {
            let text = "a supervisor has to be on the process's main thread";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: the set is initialised before it is used, all numbers are valid, and the descriptor is new.
        unsafe {
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for (number, _) in CAUGHT {
                libc::sigaddset(&mut set, number);
            }
            // Whoever started this process may have ignored it, and then nobody could be waited for.
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(OwnedFd::from_raw_fd(fd))),
            }
        }
    }

    /// The next one that has come. That of a child's end is not told apart from a moment when there is none.
    #[allow(unsafe_code)]
    pub(crate) fn next(&self) -> io::Result<Option<Signal>> {
        loop {
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer has the size that is given, and is read only when the call has filled it.
            let number = unsafe {
                let count = libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size);
                if count < 0 {
                    match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        error if error.kind() == io::ErrorKind::Interrupted => continue,
                        error => return Err(error),
                    }
                }
                info.assume_init().ssi_signo
            };
            let caught = CAUGHT.iter().find(|caught| caught.0 as u32 == number);
            if let Some((_, Some(signal))) = caught {
                return Ok(Some(*signal));
            }
        }
    }
}

/// Waits until there is a signal, something to read or accept on one of the sockets, one of the processes has ended, or
/// the time is over.
pub(crate) fn wait_for_any<'a>(
    signals: &SignalFd,
    sockets: &[&Socket],
    processes: impl Iterator<Item = &'a PidFd>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut fds = vec![PollFd::new(&signals.0, PollFlags::IN)];
    fds.extend(
        sockets
            .iter()
            .map(|socket| PollFd::new(*socket, PollFlags::IN)),
    );
    let processes = processes.filter_map(|process| process.fd.as_ref());
    fds.extend(processes.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A child of this process that has ended, and how.
pub(crate) fn reap() -> io::Result<Option<(u32, ExitStatus)>> {
    match retry_on_intr(|| wait(WaitOptions::NOHANG)) {
        Ok(Some((pid, status))) => Ok(Some((
            pid.as_raw_nonzero().get().unsigned_abs(),
            ExitStatus::from_raw(status.as_raw()),
        ))),
        Ok(None) | Err(Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is this process that hears of the end of another one.
pub(crate) fn is_child(pid: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    raw(pid).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

/// A process, even if its number is another one's by now (pidfd_open(2)).
#[derive(Debug)]
pub(crate) struct PidFd {
    pid: u32,
    /// Missing on systems before Linux 5.3.
    fd: Option<OwnedFd>,
}

impl PidFd {
    /// Of a process that has not been buried.
    pub(crate) fn open(pid: u32) -> Self {
        let fd = raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { pid, fd }
    }

    pub(crate) fn send(&self, signal: Signal) -> io::Result<()> {
        let signal = match signal {
            Signal::Abort => KernelSignal::ABORT,
            Signal::Hangup => KernelSignal::HUP,
            Signal::Interrupt => KernelSignal::INT,
            Signal::Kill => KernelSignal::KILL,
            Signal::Quit => KernelSignal::QUIT,
            Signal::Terminate => KernelSignal::TERM,
            Signal::User1 => KernelSignal::USR1,
            Signal::User2 => KernelSignal::USR2,
        };
        match (&self.fd, raw(self.pid)) {
            (Some(fd), _) => Ok(pidfd_send_signal(fd, signal)?),
            (None, Some(pid)) => Ok(kill_process(pid, signal)?),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.fd {
            Some(fd) => {
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
            }
            None => raw(self.pid).is_none_or(|pid| test_kill_process(pid).is_err()),
        }
    }
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The socket to which other processes say how they are (sd_notify(3)). Its name is in the abstract namespace, so that
/// no file stays behind. Anybody may write to it: the kernel says who it was.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: Socket,
    name: OsString,
}

/// No notification is longer: names of listeners take the most.
const MOST: usize = 32 * 1024;

/// Room for as many descriptors as there can be, and for who it was.
const CONTROL: usize = 2048;

impl NotifySocket {
    pub(crate) fn bind() -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        let number = RandomState::new().build_hasher().finish();
        let name = format!("handover/{}/{number:016x}", std::process::id());
        rustix::net::bind(
            &socket,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )?;
        Self::listen(socket)
    }

    /// One that is bound already.
    pub(crate) fn listen(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        set_socket_passcred(&socket, true)?;
        let addr = SocketAddrUnix::try_from(rustix::net::getsockname(&socket)?)?;
        let name = addr.abstract_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut text = OsString::from("@");
        text.push(OsStr::from_bytes(name));
        Ok(Self { socket, name: text })
    }

    /// As it stands in NOTIFY_SOCKET.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// What has been said next, if there is something.
    // With musl, lengths are of another type.
    #[allow(unsafe_code, clippy::unnecessary_cast)]
    pub(crate) fn next(&self) -> io::Result<Option<Datagram>> {
        let mut buffer = [0u8; MOST];
        let mut control = [0u64; CONTROL / size_of::<u64>()];
        let mut slice = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: any bits are a header; its pointers are to live buffers of the lengths that it names, aligned as control
        // messages are. The kernel fills them, and gives away descriptors that are this process's alone.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut slice;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            let fd = self.socket.as_raw_fd();
            let size = loop {
                match libc::recvmsg(fd, &raw mut header, libc::MSG_CMSG_CLOEXEC) {
                    -1 => match io::Error::last_os_error() {
                        error if error.kind() == io::ErrorKind::Interrupted => {}
                        error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        error => return Err(error),
                    },
                    size => break size.unsigned_abs(),
                }
            };
            let (mut pid, mut uid, mut descriptors) = (0, u32::MAX, Vec::new());
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while let Some(one) = message.as_ref() {
                let data = libc::CMSG_DATA(message);
                let length = (one.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                match (one.cmsg_level, one.cmsg_type) {
                    (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                        for at in 0..length / size_of::<libc::c_int>() {
                            let number = data.cast::<libc::c_int>().add(at).read_unaligned();
                            descriptors.push(OwnedFd::from_raw_fd(number));
                        }
                    }
                    (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                        // By hand: who is in another namespace of processes has the number 0 here.
                        let who = data.cast::<libc::ucred>().read_unaligned();
                        (pid, uid) = (who.pid.unsigned_abs(), who.uid);
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
            let cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
            let text = if cut { &[][..] } else { &buffer[..size] };
            Ok(Some(Datagram {
                pid,
                uid,
                text: String::from_utf8_lossy(text).into_owned(),
                descriptors,
            }))
        }
    }
}

/// Whose process is at the other end of a Unix socket's connection.
#[allow(unsafe_code)]
pub(crate) fn peer_uid(socket: &Socket) -> io::Result<u32> {
    let mut who = MaybeUninit::<libc::ucred>::zeroed();
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // By hand, as above: somebody from outside a container has no number here.
    // SAFETY: the buffer has the size that is given, and any bits are credentials.
    unsafe {
        let fd = socket.as_raw_fd();
        let (buffer, size) = (who.as_mut_ptr().cast(), &raw mut size);
        match libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, buffer, size) {
            0 => Ok(who.assume_init().uid),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Who this process acts as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The number by which a program that is started with it finds a descriptor.
pub(crate) fn number_of(descriptor: &impl AsFd) -> i32 {
    descriptor.as_fd().as_raw_fd()
}

/// What tells one open socket from another.
pub(crate) fn socket_id(descriptor: &Descriptor) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(descriptor)?;
    Ok((stat.st_dev, stat.st_ino))
}
