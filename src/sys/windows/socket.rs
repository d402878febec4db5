//! Windows: waits and calls on one socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::windows::io::AsRawSocket;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockAddr, Socket, Type};
use windows_sys::Win32::Networking::WinSock::{
    FD_SET, FIONREAD, MSG_PEEK, POLLERR, POLLHUP, POLLNVAL, POLLRDNORM, SO_EXCLUSIVEADDRUSE,
    SOCKET, SOCKET_ERROR, SOL_SOCKET, TIMEVAL, WSA_NOT_ENOUGH_MEMORY, WSAEACCES, WSAECONNABORTED,
    WSAECONNRESET, WSAEINTR, WSAEMFILE, WSAENOBUFS, WSAESHUTDOWN, WSAEWOULDBLOCK, WSAPOLLFD,
    WSAPoll, ioctlsocket, recv as ws_recv, select, setsockopt,
};
use windows_sys::Win32::System::IO::CancelIoEx;

use super::unsupported_error;
// TransmitFile is not used: it waits until the client has taken all, also on a non-blocking socket,
// or completes where no poll sees it. And on workstations, only two calls run at a time.
pub(crate) use crate::sys::native::socket::{
    ACCEPT_INHERITS_OPTIONS, accept, hold_last_segment, queued_connections, release_last_segment,
    send_file, set_accept_options,
};
use crate::sys::{AcceptErrorKind, Interest, PeerState, Ready};

/// The longest that one wait may last, because a shutdown of the socket does not end a wait here.
pub(crate) const MAX_WAIT: Option<Duration> = Some(Duration::from_millis(100));

pub(crate) fn unix_path(_addr: &SockAddr) -> Option<PathBuf> {
    None
}

/// By select(WinSock), because WSAPoll ends a wait for room at once, and again and again, after the
/// peer has ended its side.
#[allow(unsafe_code)]
pub(crate) fn wait_ready(
    socket: &Socket,
    interest: Interest,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let mut wanted = FD_SET {
        fd_count: 1,
        ..FD_SET::default()
    };
    wanted.fd_array[0] = socket.as_raw_socket() as SOCKET;
    let (mut readable, mut writable) = (wanted, wanted);
    let no_set = std::ptr::null_mut();
    let (reads, writes) = match interest {
        Interest::Read => (&raw mut readable, no_set),
        Interest::Write => (no_set, &raw mut writable),
        Interest::Both => (&raw mut readable, &raw mut writable),
    };
    let timeout = timeout.map(|timeout| TIMEVAL {
        tv_sec: i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX),
        // Rounded up, so that no wait ends early.
        tv_usec: timeout.subsec_nanos().div_ceil(1000) as i32,
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the sets and the time-out are alive, and the socket in the sets is open.
    if unsafe { select(0, reads, writes, no_set, timeout) } == SOCKET_ERROR {
        return Err(io::Error::last_os_error());
    }
    Ok(Ready {
        readable: interest != Interest::Write && readable.fd_count > 0,
        writable: interest != Interest::Read && writable.fd_count > 0,
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
        None if error.kind() == io::ErrorKind::ConnectionAborted => AcceptErrorKind::Connection,
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

/// The most bytes of one send. While a socket has room for one byte, the system takes a send of any
/// size into memory of the kernel.
const MOST_SENT: usize = 256 * 1024;

pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    let sent = socket.send(&bytes[..bytes.len().min(MOST_SENT)]);
    sent.map_err(name_shutdown)
}

/// Gives WSAESHUTDOWN, which has no kind in std, the kind `BrokenPipe`, as EPIPE has elsewhere: this
/// process has shut down the socket.
fn name_shutdown(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(WSAESHUTDOWN) => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ => error,
    }
}

/// Nothing waits for the end of the stream.
pub(crate) const HOLDS_LAST: bool = false;

/// The last bytes of a connection.
pub(crate) fn send_last(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    send(socket, bytes)
}

pub(crate) fn send_vectored(socket: &Socket, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut left = MOST_SENT;
    let fits = |part: &&IoSlice<'_>| {
        let fits = part.len() <= left;
        left = left.saturating_sub(part.len());
        fits
    };
    match parts.iter().take_while(fits).count() {
        0 => send(socket, parts.first().map_or(&[], |part| &**part)),
        count => (socket.send_vectored(&parts[..count])).map_err(name_shutdown),
    }
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

/// A shutdown does not end a call that waits already, such as that of code that has taken the
/// socket out of the connection. CancelIoEx does.
#[allow(unsafe_code)]
pub(crate) fn end(socket: &Socket) -> io::Result<()> {
    let ended = socket.shutdown(Shutdown::Both);
    // SAFETY: the socket is open. An error says that no call waits.
    unsafe { CancelIoEx(socket.as_raw_socket() as _, std::ptr::null()) };
    ended
}

/// Windows reports an address that another process has for itself (SO_EXCLUSIVEADDRUSE) as
/// WSAEACCES.
pub(crate) fn bind(socket: &Socket, addr: &SockAddr) -> io::Result<()> {
    socket
        .bind(addr)
        .map_err(|error| match error.raw_os_error() {
            Some(WSAEACCES) => io::Error::new(io::ErrorKind::AddrInUse, error),
            _ => error,
        })
}

pub(crate) const RESET_DISCARDS: bool = true;

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

#[allow(unsafe_code)]
pub(crate) fn peer_state(socket: &Socket) -> PeerState {
    let raw = socket.as_raw_socket() as SOCKET;
    let mut fd = WSAPOLLFD {
        fd: raw,
        events: POLLRDNORM,
        revents: 0,
    };
    // SAFETY: `fd` is one live structure, as the count says, and its socket is open.
    let polled = unsafe { WSAPoll(&mut fd, 1, 0) };
    if polled == SOCKET_ERROR || fd.revents & (POLLERR | POLLHUP | POLLNVAL) == 0 {
        return PeerState::Open;
    }
    // POLLHUP is both an end and a reset. After a reset, nothing more can be received.
    let mut byte = 0;
    // SAFETY: the socket is open and non-blocking, and the buffer is one live byte.
    let received = unsafe { ws_recv(raw, &raw mut byte, 1, MSG_PEEK) };
    match received == SOCKET_ERROR && !is_would_block(&io::Error::last_os_error()) {
        true => PeerState::Reset,
        false => PeerState::Ended,
    }
}

fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[cfg(test)]
mod tests {
    use windows_sys::Win32::Networking::WinSock::{
        WSAEINVAL, WSAENETDOWN, WSAENOTSOCK, WSAEOPNOTSUPP,
    };

    use super::*;

    #[test]
    fn only_a_lack_of_handles_or_memory_is_a_shortage() {
        use AcceptErrorKind::{Connection, Empty, Listener, Shortage};
        for (code, kind) in [
            (WSAEWOULDBLOCK, Empty),
            (WSAEINTR, Connection),
            (WSAECONNABORTED, Connection),
            (WSAECONNRESET, Connection),
            (WSAEMFILE, Shortage),
            (WSAENOBUFS, Shortage),
            (WSA_NOT_ENOUGH_MEMORY, Shortage),
            (WSAEINVAL, Listener),
            (WSAENOTSOCK, Listener),
            (WSAEOPNOTSUPP, Listener),
            (WSAEACCES, Listener),
            (WSAENETDOWN, Listener),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(accept_error_kind(&error), kind, "{error}");
        }
        assert_eq!(accept_error_kind(&io::Error::other("text")), Listener);
        let aborted = io::Error::new(io::ErrorKind::ConnectionAborted, "its options");
        assert_eq!(accept_error_kind(&aborted), Connection);
    }
}
