//! Linux: what a process needs that looks after others. It hears of their ends, of signals and of what they say in one
//! wait, and inherits the children of those that end.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{set_socket_passcred, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketAddrUnix, recvmsg,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, wait};
use socket2::{Domain, Socket, Type};

use super::unix::MOST_DESCRIPTORS;
use super::{Descriptor, Notification, Posix};

/// Whether a process can look after others here.
pub(crate) const SUPERVISES: bool = true;

/// Processes that lose their parent are this one's children from now on, so that it hears of their end.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// The signals of this process, to be asked for.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

const CAUGHT: [(libc::c_int, Option<Posix>); 7] = [
    (libc::SIGHUP, Some(Posix::Hangup)),
    (libc::SIGINT, Some(Posix::Interrupt)),
    (libc::SIGQUIT, Some(Posix::Quit)),
    (libc::SIGTERM, Some(Posix::Terminate)),
    (libc::SIGUSR1, Some(Posix::User1)),
    (libc::SIGUSR2, Some(Posix::User2)),
    (libc::SIGCHLD, None),
];

impl Signals {
    /// Holds them back on this thread, which must be the only one, so that they can be asked for.
    #[allow(unsafe_code)]
    pub(crate) fn hold() -> io::Result<Self> {
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
    pub(crate) fn next(&self) -> io::Result<Option<Posix>> {
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

/// Waits until there is a signal, or something to read or accept on one of the sockets, or the time is over.
pub(crate) fn wait_for_any(
    signals: &Signals,
    sockets: &[&Socket],
    timeout: Option<Duration>,
) -> io::Result<()> {
    let mut fds = vec![PollFd::new(&signals.0, PollFlags::IN)];
    fds.extend(
        sockets
            .iter()
            .map(|socket| PollFd::new(*socket, PollFlags::IN)),
    );
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

/// Sends a signal to a child of this process, which is there until it is reaped.
pub(crate) fn send_signal(pid: u32, signal: Posix) -> io::Result<()> {
    let signal = match signal {
        Posix::Abort => Signal::ABORT,
        Posix::Hangup => Signal::HUP,
        Posix::Interrupt => Signal::INT,
        Posix::Kill => Signal::KILL,
        Posix::Quit => Signal::QUIT,
        Posix::Terminate => Signal::TERM,
        Posix::User1 => Signal::USR1,
        Posix::User2 => Signal::USR2,
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(kill_process(pid.ok_or(io::ErrorKind::NotFound)?, signal)?)
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
    pub(crate) fn next(&self) -> io::Result<Option<Notification>> {
        let mut buffer = [0; MOST];
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut buffer = [IoSliceMut::new(&mut buffer)];
            recvmsg(
                &self.socket,
                &mut buffer,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let cut = received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let text = if cut {
            &[][..]
        } else {
            &buffer[..received.bytes]
        };
        let mut notification = Notification {
            pid: 0,
            uid: u32::MAX,
            text: String::from_utf8_lossy(text).into_owned(),
            descriptors: Vec::new(),
        };
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(descriptors) => {
                    notification.descriptors.extend(descriptors);
                }
                RecvAncillaryMessage::ScmCredentials(who) => {
                    notification.pid = who.pid.as_raw_nonzero().get().unsigned_abs();
                    notification.uid = who.uid.as_raw();
                }
                _ => {}
            }
        }
        Ok(Some(notification))
    }
}

/// Whose process is at the other end of a Unix socket's connection.
pub(crate) fn peer_uid(socket: &Socket) -> io::Result<u32> {
    Ok(socket_peercred(socket)?.uid.as_raw())
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
