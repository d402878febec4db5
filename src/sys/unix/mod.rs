//! Unix: sockets, waits and signals.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Interest, PathState, Ready, millis_up};

mod message;
mod process;

pub use process::Descriptor;
pub(crate) use {message::*, process::*};

/// A closed or shut down socket ends a wait by itself here, so a wait may last as long as it likes.
pub(crate) const WAIT_SLICE: Option<Duration> = None;

pub(crate) fn wait_ready(
    socket: &Socket,
    interest: Interest,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let wanted = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Write => PollFlags::OUT,
        Interest::Both => PollFlags::IN | PollFlags::OUT,
    };
    let mut fds = [PollFd::new(socket, wanted)];
    let timeout = timeout.map(|t| {
        let millis = i64::from(millis_up(t));
        Timespec {
            tv_sec: millis / 1000,
            tv_nsec: (millis % 1000) * 1_000_000,
        }
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let found = fds[0].revents();
    let broken = found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    Ok(Ready {
        readable: broken || found.contains(PollFlags::IN),
        writable: broken || found.contains(PollFlags::OUT),
    })
}

pub(crate) fn keep_from_children(socket: &Socket) -> io::Result<()> {
    socket.set_cloexec(true)
}

/// Whether a connection inherits its listener's options.
pub(crate) const ACCEPT_INHERITS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Whether the socket is one that [`accept`] works on.
pub(crate) fn is_listening_stream(socket: &Socket) -> io::Result<bool> {
    Ok(socket.is_listener()? && socket.r#type()? == Type::STREAM)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The system's monotonic clock, in nanoseconds; the same for all processes.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let (fd, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    Ok((Socket::from(fd), peer))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer.as_socket()))
}

/// Errors of `accept` that stand for the connection, not for the listener: Linux passes on what the network had
/// reported for it (accept(2), "Error handling").
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    let one = [
        E::PROTO,
        E::NETDOWN,
        E::NOPROTOOPT,
        E::HOSTDOWN,
        E::HOSTUNREACH,
        E::OPNOTSUPP,
        E::NETUNREACH,
        E::TIMEDOUT,
        E::PERM,
    ];
    E::from_io_error(error).is_some_and(|errno| one.contains(&errno))
}

pub(crate) fn recv(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = retry_on_intr(|| net::recv(socket, &mut *buffer, RecvFlags::empty()))?;
    Ok(count)
}

/// How many bytes have come and were not received.
pub(crate) fn unread(socket: &Socket) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// A peer that has gone is an error of the call, never a SIGPIPE: the host program may not ignore that signal.
#[cfg(not(target_vendor = "apple"))]
const QUIET: SendFlags = SendFlags::NOSIGNAL;
/// Here the same is an option of the socket, which socket2 sets on every socket that it makes or accepts.
#[cfg(target_vendor = "apple")]
const QUIET: SendFlags = SendFlags::empty();

pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| net::send(socket, bytes, QUIET))?)
}

pub(crate) fn send_vectored(socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
    // More slices than the kernel takes in one call (IOV_MAX) would be an error instead of a short write.
    let bytes = &bytes[..bytes.len().min(1024)];
    let mut control = SendAncillaryBuffer::default();
    Ok(retry_on_intr(|| {
        net::sendmsg(socket, bytes, &mut control, QUIET)
    })?)
}

/// From the file's position on. A file that cannot be mapped, and a process that a signal would kill, get `None`.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) fn send_file(socket: &Socket, file: &File, count: usize) -> io::Result<Option<usize>> {
    use rustix::io::Errno;
    if !ignores_sigpipe() {
        return Ok(None);
    }
    loop {
        match rustix::fs::sendfile(socket, file, None, count) {
            Ok(sent) => return Ok(Some(sent)),
            Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// `sendfile` has no flag against SIGPIPE. Rust programs ignore that signal, but a host in another language may not.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
fn ignores_sigpipe() -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action the call only fills the structure, which lives for as long; all of its fields may
    // be zero.
    let now = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) fn send_file(_: &Socket, _: &File, _: usize) -> io::Result<Option<usize>> {
    Ok(None)
}

/// Sets what only some systems have: `defer_accept` in seconds, `fast_open` as the length of its queue.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn prepare_listener(
    socket: &Socket,
    reuse_port: bool,
    defer_accept: bool,
    fast_open: Option<u32>,
) -> io::Result<()> {
    socket.set_reuse_port(reuse_port)?;
    if defer_accept {
        set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, 30)?;
    }
    if let Some(queue) = fast_open {
        let queue = i32::try_from(queue).unwrap_or(i32::MAX);
        set_tcp_option(socket, libc::TCP_FASTOPEN, queue)?;
    }
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the length of the call, and the kernel reads `size_of::<c_int>()` bytes
    // from a live `c_int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn prepare_listener(
    socket: &Socket,
    reuse_port: bool,
    defer_accept: bool,
    fast_open: Option<u32>,
) -> io::Result<()> {
    socket.set_reuse_port(reuse_port)?;
    if defer_accept || fast_open.is_some() {
        // Both only save time, so a server that runs everywhere may ask for them everywhere.
        log::debug!("defer_accept and fast_open are not to be had on this platform");
    }
    Ok(())
}

/// SO_REUSEADDR: a restarted server may bind while connections of the old one are in TIME_WAIT.
pub(crate) fn own_address(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

pub(crate) fn unix_addr(path: &Path) -> io::Result<SockAddr> {
    SockAddr::unix(path)
}

pub(crate) fn unix_path_of(addr: &SockAddr) -> Option<PathBuf> {
    addr.as_pathname().map(Path::to_owned).or_else(|| {
        // Linux's abstract names have no file; they are shown with an @ as netstat does.
        let name = addr.as_abstract_namespace()?;
        let text = [b"@", name].concat();
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(&text)))
    })
}

pub(crate) fn unix_path_state(path: &Path) -> io::Result<PathState> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PathState::Free),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Ok(PathState::Foreign);
    }
    // Only a connect tells a live server from a dead one's file. It never blocks: a full queue is an answer too.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(PathState::Stale),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PathState::Free),
        // EPROTOTYPE: a datagram or seqpacket socket; it is in use, and it is not ours.
        Ok(()) | Err(_) => Ok(PathState::Live),
    }
}

/// What tells a file from another one that takes its path later.
pub(crate) fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The standard library's socket inside a connection, as [`Connection::detach`](crate::Connection::detach) gives it.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection of a Unix socket (Unix only).
    Unix(UnixStream),
}

impl From<Stream> for std::os::fd::OwnedFd {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Tcp(stream) => stream.into(),
            Stream::Unix(stream) => stream.into(),
        }
    }
}

/// A second descriptor of the connection (CLOEXEC), in blocking mode.
pub(crate) fn into_stream(socket: &Socket) -> io::Result<Stream> {
    let copy = socket.try_clone()?;
    copy.set_nonblocking(false)?;
    Ok(if copy.domain()? == Domain::UNIX {
        Stream::Unix(copy.into())
    } else {
        Stream::Tcp(copy.into())
    })
}

/// Calls `on` for each signal, from a thread of its own, for the rest of the process's life. Where `on` returns
/// false the signal's default action follows. To be called once.
#[cfg(feature = "signals")]
pub(crate) fn watch_signals(
    on: impl Fn(super::Signal) -> bool + Clone + Send + 'static,
) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    use signal_hook::low_level::emulate_default_handler;

    fn deliver(on: impl Fn(super::Signal) -> bool, signal: super::Signal, number: i32) {
        if !on(signal) {
            if let Err(error) = emulate_default_handler(number) {
                log::error!("cannot take the default action of signal {number}: {error}");
            }
        }
    }

    let ctrl_c = on.clone();
    ctrlc::set_handler(move || deliver(&ctrl_c, super::Signal::Interrupt, SIGINT))
        .map_err(io::Error::other)?;
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGQUIT, SIGUSR1, SIGHUP, SIGUSR2])?;
    std::thread::Builder::new()
        .name("handover-signal".to_owned())
        .spawn(move || {
            for number in signals.forever() {
                let signal = match number {
                    SIGTERM => super::Signal::Terminate,
                    SIGQUIT => super::Signal::Quit,
                    SIGHUP => super::Signal::Hangup,
                    SIGUSR2 => super::Signal::User2,
                    _ => super::Signal::User1,
                };
                deliver(&on, signal, number);
            }
        })?;
    Ok(())
}
