//! Unix: waits and calls on one socket.

use std::ffi::OsStr;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::native::calls::{END_OF_STREAM, SEND_MORE};
use crate::sys::native::socket::is_listener;
pub(crate) use crate::sys::native::socket::{
    ACCEPT_INHERITS_OPTIONS, accept, hold_last_segment, peer_uid, queued_connections,
    release_last_segment, send_file, set_accept_options,
};
use crate::sys::{AcceptErrorKind, Interest, PeerState, Ready};

/// The longest that one wait may last. There is no limit, because a shutdown of the socket ends a
/// wait here.
pub(crate) const MAX_WAIT: Option<Duration> = None;

/// Some systems refuse a longer time-out.
const MAX_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// The path of a Unix socket. `None` if the address is not one of a Unix socket, or has no name.
pub(crate) fn unix_path(addr: &SockAddr) -> Option<PathBuf> {
    addr.as_pathname().map(Path::to_owned).or_else(|| {
        // An abstract name (unix(7)) has no file. It is shown with an @, as netstat shows it.
        let name = addr.as_abstract_namespace()?;
        Some(PathBuf::from(OsStr::from_bytes(&[b"@", name].concat())))
    })
}

/// Waits until a socket is ready. Returns with nothing ready after the time-out or a signal.
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
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout.min(MAX_TIMEOUT)).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let found = fds[0].revents();
    let broken = found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    Ok(Ready {
        readable: broken || found.contains(PollFlags::IN),
        writable: broken || found.contains(PollFlags::OUT),
    })
}

/// Children do not inherit the socket. For sockets that were not made here.
pub(crate) fn set_cloexec(socket: &Socket) -> io::Result<()> {
    socket.set_cloexec(true)
}

/// Whether [`accept`] works on the socket.
pub(crate) fn is_listening_stream(socket: &Socket) -> io::Result<bool> {
    Ok(socket.r#type()? == Type::STREAM && is_listener(socket)?)
}

/// Whether the socket is a Unix socket that keeps messages apart.
pub(crate) fn is_unix_packet(socket: &Socket) -> io::Result<bool> {
    let is_packet = socket.r#type()? == Type::SEQPACKET;
    Ok(is_packet && socket.local_addr()?.domain() == Domain::UNIX)
}

/// What an error of [`accept`] concerns. Linux reports pending network errors of the new connection
/// (accept(2), "Error handling").
pub(crate) fn accept_error_kind(error: &io::Error) -> AcceptErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::WOULDBLOCK) => AcceptErrorKind::Empty,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
            AcceptErrorKind::Shortage
        }
        Some(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::TIMEDOUT
            | Errno::PERM,
        ) => AcceptErrorKind::Connection,
        None if error.kind() == io::ErrorKind::ConnectionAborted => AcceptErrorKind::Connection,
        _ => AcceptErrorKind::Listener,
    }
}

pub(crate) fn recv(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let (count, _) = retry_on_intr(|| net::recv(socket, &mut *buffer, RecvFlags::empty()))?;
    Ok(count)
}

/// The number of bytes that have arrived and were not received yet.
pub(crate) fn unread_len(socket: &Socket) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// A send to a closed connection is an error, and no SIGPIPE: the host program may not ignore
/// that signal. On Apple's systems this is an option of the socket, which socket2 sets.
#[cfg(not(target_vendor = "apple"))]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::empty();

pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| net::send(socket, bytes, SEND_FLAGS))?)
}

/// Whether the bytes of [`send_last`] wait for the end of the stream.
pub(crate) const HOLDS_LAST: bool = !SEND_MORE.is_empty();

/// Sends the last bytes of a connection. Where the system can, they wait for the end of the stream,
/// for 0.2 s at most, and leave together with it (MSG_MORE in send(2)).
pub(crate) fn send_last(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    let flags = SEND_FLAGS.union(SEND_MORE);
    Ok(retry_on_intr(|| net::send(socket, bytes, flags))?)
}

pub(crate) fn send_vectored(socket: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    // The kernel refuses more parts than IOV_MAX, and does not send a part of them.
    let parts = &parts[..parts.len().min(1024)];
    let mut control = SendAncillaryBuffer::default();
    Ok(retry_on_intr(|| {
        net::sendmsg(socket, parts, &mut control, SEND_FLAGS)
    })?)
}

/// Lets a restarted server bind while connections of the old one are in TIME_WAIT, and lets no
/// other server take the address (SO_REUSEADDR).
pub(crate) fn allow_rebind(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Ends a connection for every thread, also for one that waits in a call on the socket.
pub(crate) fn end(socket: &Socket) -> io::Result<()> {
    socket.shutdown(Shutdown::Both)
}

/// Binds an internet address. `AddrInUse` if a socket of another process has it.
pub(crate) fn bind(socket: &Socket, addr: &SockAddr) -> io::Result<()> {
    socket.bind(addr)
}

/// Whether a reset of the connection discards what the peer has not read yet.
pub(crate) const RESET_DISCARDS: bool = false;

/// Lets several sockets bind one address, among which the kernel distributes the connections.
pub(crate) fn set_reuse_port(socket: &Socket, on: bool) -> io::Result<()> {
    socket.set_reuse_port(on)
}

/// The standard library's socket inside a connection, as
/// [`Connection::detach`](crate::Connection::detach) returns it.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection of a Unix socket (Unix only).
    Unix(UnixStream),
}

impl Stream {
    /// The socket, if it is a TCP socket.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Unix(_) => None,
        }
    }

    /// A second handle of the same socket, so that one thread can read and another one write.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(parts),
            Self::Unix(stream) => stream.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Gives a type with a method `socket` the traits by which other code reaches its socket.
macro_rules! impl_descriptor_traits {
    ($(#[$doc:meta])* $type:ty) => {
        $(#[$doc])*
        impl std::os::fd::AsFd for $type {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd(self.socket())
            }
        }

        impl std::os::fd::AsRawFd for $type {
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                std::os::fd::AsRawFd::as_raw_fd(self.socket())
            }
        }
    };
}

pub(crate) use impl_descriptor_traits;

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Tcp(stream) => stream.into(),
            Stream::Unix(stream) => stream.into(),
        }
    }
}

/// A second descriptor of a connection, in blocking mode.
pub(crate) fn duplicate_stream(socket: &Socket) -> io::Result<Stream> {
    let copy = socket.try_clone()?;
    copy.set_nonblocking(false)?;
    Ok(if copy.local_addr()?.is_unix() {
        Stream::Unix(copy.into())
    } else {
        Stream::Tcp(copy.into())
    })
}

/// What the peer of a connection has done, whatever is left to read. Only POLLERR is a reset: a
/// Unix socket also reports POLLHUP after its peer has closed, and then the peer's data can still
/// be read (poll(2)).
pub(crate) fn peer_state(socket: &Socket) -> PeerState {
    let mut fds = [PollFd::new(socket, END_OF_STREAM)];
    if poll(&mut fds, Some(&Timespec::default())).is_err() {
        return PeerState::Open;
    }
    let found = fds[0].revents();
    if found.intersects(PollFlags::ERR) {
        PeerState::Reset
    } else if found.intersects(END_OF_STREAM | PollFlags::HUP) {
        PeerState::Ended
    } else {
        PeerState::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_peer_is_known() {
        let pair = UnixStream::pair().unwrap();
        let uid = peer_uid(&Socket::from(pair.0)).unwrap();
        assert_eq!(uid, crate::sys::process::effective_uid());
    }

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for (socket, is_one) in [
            (Socket::from(listener), true),
            (client.into(), false),
            (datagrams.into(), false),
            (UnixStream::pair().unwrap().0.into(), false),
            (
                Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap(),
                false,
            ),
        ] {
            assert_eq!(is_listening_stream(&socket).unwrap(), is_one, "{socket:?}");
        }
    }

    #[test]
    fn only_a_lack_of_descriptors_or_memory_is_a_shortage() {
        use AcceptErrorKind::{Connection, Empty, Listener, Shortage};
        for (errno, kind) in [
            (Errno::AGAIN, Empty),
            (Errno::INTR, Connection),
            (Errno::CONNABORTED, Connection),
            (Errno::CONNRESET, Connection),
            (Errno::PROTO, Connection),
            (Errno::PERM, Connection),
            (Errno::NETDOWN, Connection),
            (Errno::NETUNREACH, Connection),
            (Errno::HOSTDOWN, Connection),
            (Errno::HOSTUNREACH, Connection),
            (Errno::TIMEDOUT, Connection),
            (Errno::MFILE, Shortage),
            (Errno::NFILE, Shortage),
            (Errno::NOBUFS, Shortage),
            (Errno::NOMEM, Shortage),
            (Errno::INVAL, Listener),
            (Errno::BADF, Listener),
            (Errno::NOTSOCK, Listener),
            (Errno::ACCESS, Listener),
            (Errno::IO, Listener),
        ] {
            assert_eq!(accept_error_kind(&errno.into()), kind, "{errno}");
        }
        assert_eq!(accept_error_kind(&io::Error::other("text")), Listener);
        let aborted = io::Error::new(io::ErrorKind::ConnectionAborted, "its options");
        assert_eq!(accept_error_kind(&aborted), Connection);
    }
}
