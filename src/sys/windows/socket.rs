//! Windows: waits and calls on one socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::windows::io::AsRawSocket;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockAddr, Socket, Type};
use windows_sys::Win32::Networking::WinSock::{
    FIONREAD, POLLERR, POLLHUP, POLLNVAL, POLLRDNORM, POLLWRNORM, SO_EXCLUSIVEADDRUSE,
    SOCKET_ERROR, SOL_SOCKET, WSA_NOT_ENOUGH_MEMORY, WSAECONNABORTED, WSAECONNRESET, WSAEINTR,
    WSAEMFILE, WSAENOBUFS, WSAEWOULDBLOCK, WSAPOLLFD, WSAPoll, ioctlsocket, setsockopt,
};

use super::unsupported_error;
pub(crate) use crate::sys::native::socket::{
    ACCEPT_INHERITS_OPTIONS, accept, queued_connections, send_file, set_accept_options,
};
use crate::sys::{AcceptErrorKind, Interest, PeerState, Ready};

/// The longest that one wait may last, because a shutdown of the socket does not end a wait here.
pub(crate) const MAX_WAIT: Option<Duration> = Some(Duration::from_millis(100));

pub(crate) fn unix_path(_addr: &SockAddr) -> Option<PathBuf> {
    None
}

#[allow(unsafe_code)]
pub(crate) fn wait_ready(
    socket: &Socket,
    interest: Interest,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let events = match interest {
        Interest::Read => POLLRDNORM,
        Interest::Write => POLLWRNORM,
        Interest::Both => POLLRDNORM | POLLWRNORM,
    };
    let mut fd = WSAPOLLFD {
        fd: socket.as_raw_socket() as _,
        events,
        revents: 0,
    };
    let timeout = timeout.map_or(-1, |timeout| {
        // Rounded up, so that no wait ends early.
        i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: `fd` is one live structure, as the count says, and its socket is open.
    if unsafe { WSAPoll(&mut fd, 1, timeout) } == SOCKET_ERROR {
        return Err(io::Error::last_os_error());
    }
    let broken = fd.revents & (POLLERR | POLLHUP | POLLNVAL) != 0;
    Ok(Ready {
        readable: broken || fd.revents & POLLRDNORM != 0,
        writable: broken || fd.revents & POLLWRNORM != 0,
    })
}

pub(crate) fn set_cloexec(socket: &Socket) -> io::Result<()> {
    socket.set_no_inherit(true)
}

/// True for a connected socket too, which only the first accept finds out.
pub(crate) fn is_listening_stream(socket: &Socket) -> io::Result<bool> {
    Ok(socket.r#type()? == Type::STREAM)
}

/// What an error of [`accept`] concerns (accept, WinSock).
pub(crate) fn accept_error_kind(error: &io::Error) -> AcceptErrorKind {
    match error.raw_os_error() {
        Some(WSAEWOULDBLOCK) => AcceptErrorKind::Empty,
        Some(WSAEMFILE | WSAENOBUFS | WSA_NOT_ENOUGH_MEMORY) => AcceptErrorKind::Shortage,
        Some(WSAECONNRESET | WSAECONNABORTED | WSAEINTR) => AcceptErrorKind::Connection,
        _ => AcceptErrorKind::Listener,
    }
}

pub(crate) fn recv(mut socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    socket.read(buffer)
}

#[allow(unsafe_code)]
pub(crate) fn unread_len(socket: &Socket) -> io::Result<u64> {
    let mut count = 0;
    // SAFETY: the socket is open, and `count` is alive.
    match unsafe { ioctlsocket(socket.as_raw_socket() as usize, FIONREAD, &mut count) } {
        0 => Ok(count.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    socket.send(bytes)
}

pub(crate) fn send_vectored(socket: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_vectored(parts)
}

/// SO_EXCLUSIVEADDRUSE: with SO_REUSEADDR, any other process could take the port here.
#[allow(unsafe_code)]
pub(crate) fn allow_rebind(socket: &Socket) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the socket is open, and the call reads `size_of::<i32>()` bytes of a live i32.
    let result = unsafe {
        setsockopt(
            socket.as_raw_socket() as _,
            SOL_SOCKET,
            SO_EXCLUSIVEADDRUSE,
            (&raw const on).cast(),
            size_of::<i32>() as i32,
        )
    };
    if result == SOCKET_ERROR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn set_reuse_port(_socket: &Socket, on: bool) -> io::Result<()> {
    if on {
        return Err(unsupported_error("reuse_port is not supported on Windows"));
    }
    Ok(())
}

/// The standard library's socket inside a connection, as
/// [`Connection::detach`](crate::Connection::detach) returns it.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
}

impl Stream {
    /// The socket, if it is a TCP socket.
    pub fn tcp(&self) -> Option<&TcpStream> {
        let Self::Tcp(stream) = self;
        Some(stream)
    }

    /// A second handle of the same socket, so that one thread can read and another one write.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn try_clone(&self) -> io::Result<Self> {
        let Self::Tcp(stream) = self;
        Ok(Self::Tcp(stream.try_clone()?))
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Self::Tcp(stream) = self;
        stream.read(into)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Tcp(stream) = self;
        stream.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Self::Tcp(stream) = self;
        stream.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        let Self::Tcp(stream) = self;
        stream.flush()
    }
}

/// Gives a type with a method `socket` the traits by which other code reaches its socket.
macro_rules! impl_descriptor_traits {
    ($(#[$doc:meta])* $type:ty) => {
        $(#[$doc])*
        impl std::os::windows::io::AsSocket for $type {
            fn as_socket(&self) -> std::os::windows::io::BorrowedSocket<'_> {
                std::os::windows::io::AsSocket::as_socket(self.socket())
            }
        }

        impl std::os::windows::io::AsRawSocket for $type {
            fn as_raw_socket(&self) -> std::os::windows::io::RawSocket {
                std::os::windows::io::AsRawSocket::as_raw_socket(self.socket())
            }
        }
    };
}

pub(crate) use impl_descriptor_traits;

/// A second handle of a connection, in blocking mode.
pub(crate) fn duplicate_stream(socket: &Socket) -> io::Result<Stream> {
    let copy = socket.try_clone()?;
    copy.set_nonblocking(false)?;
    Ok(Stream::Tcp(copy.into()))
}

/// Not known here without reading.
pub(crate) fn peer_state(_: &Socket) -> PeerState {
    PeerState::Open
}
