//! Unix: sockets that keep messages apart, between a process and its successor, or its service manager.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, recv,
    sendmsg_addr,
};
use socket2::{Domain, Socket, Type};

use super::Descriptor;

/// Two ends of a connection that keeps messages apart; neither waits.
pub(crate) fn message_pair() -> io::Result<(Socket, Socket)> {
    let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    one.set_nonblocking(true)?;
    other.set_nonblocking(true)?;
    Ok((one, other))
}

/// The next message; nothing of it at the end. One that does not fit is an error.
pub(crate) fn receive_message(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let room = buffer.len();
    let (_, size) = retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::TRUNC))?;
    if size > room {
        let text = format!("a message of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(size)
}

/// So many descriptors go with a message at most (unix(7), SCM_MAX_FD).
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Sends the service manager a message, with descriptors if there are some (sd_notify(3)).
pub(crate) fn notify(manager: &OsStr, text: &str, descriptors: &[&Descriptor]) -> io::Result<()> {
    let path = manager.as_bytes();
    let addr = match path.strip_prefix(b"@") {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        _ => SocketAddrUnix::new(path)?,
    };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let text = [IoSlice::new(text.as_bytes())];
    retry_on_intr(|| {
        sendmsg_addr(
            socket.as_fd(),
            &addr,
            &text,
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}
