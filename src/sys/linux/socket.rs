//! Linux: what it does with sockets that other systems do not.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::Socket;

use crate::sys::unix::check;

/// Whether a connection has the options of its listener.
pub(crate) const ACCEPT_INHERITS_OPTIONS: bool = true;

/// Accepts a connection: non-blocking, and with the client's address unless it is a Unix socket's.
pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    let (fd, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    Ok((Socket::from(fd), peer))
}

/// Sets TCP_DEFER_ACCEPT, to 30 seconds, and TCP_FASTOPEN, to the length of its queue (tcp(7)).
pub(crate) fn set_accept_options(
    socket: &Socket,
    defer_accept: bool,
    fast_open: Option<u32>,
) -> io::Result<()> {
    if defer_accept {
        set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, 30)?;
    }
    if let Some(queue) = fast_open {
        let queue = i32::try_from(queue).unwrap_or(i32::MAX);
        set_tcp_option(socket, libc::TCP_FASTOPEN, queue)?;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the call reads as many bytes as a live `c_int` has.
    check(unsafe {
        let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
        libc::setsockopt(fd, libc::IPPROTO_TCP, option, value, size)
    })?;
    Ok(())
}

/// Makes the kernel hold back the last segment of a TCP connection that is not full, for 0.2 s at
/// most, unless the end of the stream follows (TCP_CORK in tcp(7)). False if it cannot.
pub(crate) fn hold_last_segment(socket: &Socket) -> bool {
    set_tcp_option(socket, libc::TCP_CORK, 1).is_ok()
}

/// Sends what [`hold_last_segment`] has held back, and holds nothing back any more.
pub(crate) fn release_last_segment(socket: &Socket) {
    // This fails only if the connection has failed, which the next call reports.
    let _ = set_tcp_option(socket, libc::TCP_CORK, 0);
}

/// Whether the socket listens (SO_ACCEPTCONN in socket(7)).
pub(crate) fn is_listener(socket: &Socket) -> io::Result<bool> {
    socket.is_listener()
}

/// Sends up to `count` bytes of a file, from the offset `position` on, without a copy
/// (sendfile(2)). `None` where the file cannot be mapped, or a SIGPIPE would end this process.
pub(crate) fn send_file(
    socket: &Socket,
    file: &File,
    mut position: u64,
    count: usize,
) -> io::Result<Option<usize>> {
    if !ignores_sigpipe() {
        return Ok(None);
    }
    match retry_on_intr(|| rustix::fs::sendfile(socket, file, Some(&mut position), count)) {
        Ok(sent) => Ok(Some(sent)),
        Err(Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `sendfile` has no flag against SIGPIPE. Rust programs ignore that signal, but a host program in
/// another language may not.
#[allow(unsafe_code)]
fn ignores_sigpipe() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call only fills the live structure, whose fields may be 0.
    let action = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// The user of the process at the other end of a Unix socket's connection.
#[allow(unsafe_code)]
pub(crate) fn peer_uid(socket: &Socket) -> io::Result<u32> {
    let mut peer = MaybeUninit::<libc::ucred>::zeroed();
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // rustix has a function for this, but the id of a process outside of this process's pid
    // namespace is 0, which its type does not allow.
    // SAFETY: the call writes at most `size` bytes to live credentials, and any bits are valid.
    unsafe {
        let (fd, buffer, size) = (socket.as_raw_fd(), peer.as_mut_ptr().cast(), &raw mut size);
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        check(libc::getsockopt(fd, level, option, buffer, size))?;
        Ok(peer.assume_init().uid)
    }
}

/// Sets whether descriptors can be sent to a Unix socket, and to those that a listener accepts
/// (SO_PASSRIGHTS, since Linux 6.16). If so, the close of what a process sends may be left to the
/// receiver, even if the receiver does not ask for descriptors.
///
/// # Errors
///
/// An older system.
#[allow(unsafe_code)]
pub(crate) fn allow_descriptors(socket: &Socket, on: bool) -> io::Result<()> {
    // The C library's headers do not name the option yet; some systems number their options
    // differently.
    const SO_PASSRIGHTS: libc::c_int = 83;
    if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let (on, size) = (
        libc::c_int::from(on),
        size_of::<libc::c_int>() as libc::socklen_t,
    );
    // SAFETY: the descriptor is open, and the call reads as many bytes as a live `c_int` has.
    check(unsafe {
        let value = (&raw const on).cast();
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, value, size)
    })?;
    Ok(())
}

/// How many connections wait in the queue of a listener to be accepted. `None` if that is unknown:
/// the kernel tells it for TCP only (tcp(7), TCP_INFO: `tcpi_unacked` of a listener).
#[allow(unsafe_code)]
pub(crate) fn queued_connections(listener: &Socket) -> Option<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the call writes at most `size` bytes to a live structure, for which any bits will do.
    let info = unsafe {
        let (fd, info_ptr) = (listener.as_raw_fd(), info.as_mut_ptr().cast());
        match libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info_ptr,
            &raw mut size,
        ) {
            0 => info.assume_init(),
            _ => return None,
        }
    };
    Some(info.tcpi_unacked)
}
