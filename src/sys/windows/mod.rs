//! Windows: sockets, waits and signals.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::windows::io::AsRawSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockAddr, Socket};
use windows_sys::Win32::Networking::WinSock::{
    FIONREAD, POLLERR, POLLHUP, POLLNVAL, POLLRDNORM, POLLWRNORM, SO_EXCLUSIVEADDRUSE,
    SOCKET_ERROR, SOL_SOCKET, WSAPOLLFD, WSAPoll, ioctlsocket, setsockopt,
};

use super::{Interest, PathState, Ready};

mod process;

pub use process::Descriptor;
pub(crate) use process::*;

/// Shutting a socket down does not wake a thread that waits for it here, so no wait is longer than this.
pub(crate) const WAIT_SLICE: Option<Duration> = Some(Duration::from_millis(100));

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
    let timeout = timeout.map_or(-1, super::millis_up);
    // SAFETY: `fd` is one live structure, as the count says, and its socket is open for the length of the call.
    if unsafe { WSAPoll(&mut fd, 1, timeout) } == SOCKET_ERROR {
        return Err(io::Error::last_os_error());
    }
    let broken = fd.revents & (POLLERR | POLLHUP | POLLNVAL) != 0;
    Ok(Ready {
        readable: broken || fd.revents & POLLRDNORM != 0,
        writable: broken || fd.revents & POLLWRNORM != 0,
    })
}

pub(crate) fn keep_from_children(socket: &Socket) -> io::Result<()> {
    socket.set_no_inherit(true)
}

/// Whether a connection inherits its listener's options.
pub(crate) const ACCEPT_INHERITS: bool = false;

/// Whether the socket is one that [`accept`] works on; a connected one is found out by the first accept here.
pub(crate) fn is_listening_stream(socket: &Socket) -> io::Result<bool> {
    Ok(socket.r#type()? == socket2::Type::STREAM)
}

#[allow(unsafe_code)]
pub(crate) fn coarse_millis() -> u64 {
    // SAFETY: takes nothing and gives a number.
    unsafe { windows_sys::Win32::System::SystemInformation::GetTickCount64() }
}

/// The system's monotonic clock, in nanoseconds; the same for all processes.
pub(crate) fn monotonic_nanos() -> u64 {
    coarse_millis() * 1_000_000
}

pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer.as_socket()))
}

/// Errors of `accept` that stand for the connection, not for the listener.
pub(crate) fn is_of_one_connection(_error: &io::Error) -> bool {
    false
}

pub(crate) fn recv(mut socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    socket.read(buffer)
}

/// How many bytes have come and were not received.
#[allow(unsafe_code)]
pub(crate) fn unread(socket: &Socket) -> io::Result<u64> {
    let mut count = 0;
    // SAFETY: the socket is open as long as it is borrowed, and `count` outlives the call.
    match unsafe { ioctlsocket(socket.as_raw_socket() as usize, FIONREAD, &mut count) } {
        0 => Ok(count.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    socket.send(bytes)
}

pub(crate) fn send_vectored(socket: &Socket, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_vectored(bytes)
}

#[cfg_attr(not(feature = "http"), allow(dead_code))]
pub(crate) fn send_file(_: &Socket, _: &File, _: usize) -> io::Result<Option<usize>> {
    Ok(None)
}

pub(crate) fn prepare_listener(
    _socket: &Socket,
    reuse_port: bool,
    defer_accept: bool,
    fast_open: Option<u32>,
) -> io::Result<()> {
    if reuse_port {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "reuse_port is not to be had on Windows",
        ));
    }
    if defer_accept || fast_open.is_some() {
        // Both only save time, so a server that runs everywhere may ask for them everywhere.
        log::debug!("defer_accept and fast_open are not to be had on this platform");
    }
    Ok(())
}

/// SO_EXCLUSIVEADDRUSE: what is called SO_REUSEADDR here would let any other process take the port over.
#[allow(unsafe_code)]
pub(crate) fn own_address(socket: &Socket) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the socket is open for the length of the call, which reads `size_of::<i32>()` bytes from a live i32.
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

fn no_unix_sockets() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "Unix sockets are not supported on Windows",
    )
}

pub(crate) fn unix_addr(_path: &Path) -> io::Result<SockAddr> {
    Err(no_unix_sockets())
}

pub(crate) fn unix_path_of(_addr: &SockAddr) -> Option<PathBuf> {
    None
}

pub(crate) fn unix_path_state(_path: &Path) -> io::Result<PathState> {
    Err(no_unix_sockets())
}

pub(crate) fn file_id(_path: &Path) -> Option<(u64, u64)> {
    None
}

pub(crate) fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
    Err(no_unix_sockets())
}

/// The standard library's socket inside a connection, as [`Connection::detach`](crate::Connection::detach) gives it.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
}

/// A second handle of the connection (not inherited), in blocking mode.
pub(crate) fn into_stream(socket: &Socket) -> io::Result<Stream> {
    let copy = socket.try_clone()?;
    copy.set_nonblocking(false)?;
    Ok(Stream::Tcp(copy.into()))
}

/// Calls `on` for each Ctrl-C, from a thread of its own, for the rest of the process's life. Where `on` returns
/// false the process ends, as it would without us. To be called once.
#[cfg(feature = "signals")]
pub(crate) fn watch_signals(
    on: impl Fn(super::Signal) -> bool + Clone + Send + 'static,
) -> io::Result<()> {
    /// STATUS_CONTROL_C_EXIT, the exit code of a program that Ctrl-C ended.
    const ENDED_BY_CTRL_C: i32 = 0xC000_013A_u32 as i32;
    ctrlc::set_handler(move || {
        if !on(super::Signal::Interrupt) {
            std::process::exit(ENDED_BY_CTRL_C);
        }
    })
    .map_err(io::Error::other)
}
