//! Other systems: portable substitutes for what Linux does with sockets.

use std::fs::File;
use std::io;
use std::net::SocketAddr;

use socket2::Socket;

use crate::log;

pub(crate) const ACCEPT_INHERITS_OPTIONS: bool = false;

pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    let (socket, peer) = listener.accept()?;
    // A failure concerns this connection, which has left the queue.
    let failed = |error| io::Error::new(io::ErrorKind::ConnectionAborted, error);
    socket.set_nonblocking(true).map_err(failed)?;
    Ok((socket, peer.as_socket()))
}

pub(crate) fn set_accept_options(
    _socket: &Socket,
    defer_accept: bool,
    fast_open: Option<u32>,
) -> io::Result<()> {
    if defer_accept || fast_open.is_some() {
        // Both only save time, so a server that runs everywhere may ask for them everywhere.
        log::debug!("defer_accept and fast_open have no effect on this system");
    }
    Ok(())
}

pub(crate) fn send_file(_: &Socket, _: &File, _: u64, _: usize) -> io::Result<Option<usize>> {
    Ok(None)
}

/// Whether the stream socket listens. Most systems do not tell: there, a socket with an address and
/// without a peer counts as a listener.
#[cfg(unix)]
pub(crate) fn is_listener(socket: &Socket) -> io::Result<bool> {
    #[cfg(target_os = "freebsd")]
    return socket.is_listener();
    #[cfg(not(target_os = "freebsd"))]
    {
        let addr = socket.local_addr()?;
        let is_bound = match addr.as_socket() {
            Some(addr) => addr.port() != 0,
            None => addr.as_pathname().is_some(),
        };
        Ok(is_bound && socket.peer_addr().is_err())
    }
}

/// The user of the process at the other end of a Unix socket's connection (getpeereid(3)).
#[cfg(any(
    target_vendor = "apple",
    target_os = "dragonfly",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd"
))]
#[allow(unsafe_code)]
pub(crate) fn peer_uid(socket: &Socket) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is open, and the call writes to two live numbers.
    let result = unsafe { libc::getpeereid(socket.as_raw_fd(), &raw mut uid, &raw mut gid) };
    crate::sys::unix::check(result).map(|_| uid)
}

#[cfg(all(
    unix,
    not(any(
        target_vendor = "apple",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "openbsd"
    ))
))]
pub(crate) fn peer_uid(_socket: &Socket) -> io::Result<u32> {
    let text = "a peer's user is not reported on this system";
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

#[cfg(unix)]
pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not known here.
pub(crate) fn queued_connections(_: &Socket) -> Option<u32> {
    None
}

/// This system cannot.
pub(crate) fn hold_last_segment(_socket: &Socket) -> bool {
    false
}

/// Nothing is held back.
pub(crate) fn release_last_segment(_socket: &Socket) {}
