//! Unix: sockets that keep messages apart, between a process and its successor, or its service manager.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, recv, recvmsg, sendmsg, sendmsg_addr,
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

/// Sends a message over a connection, with a descriptor if there is one.
pub(crate) fn send_message(
    socket: &Socket,
    text: &str,
    descriptor: Option<&Descriptor>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(AsFd::as_fd);
    if descriptor.is_some()
        && !control.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()))
    {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let text = [IoSlice::new(text.as_bytes())];
    retry_on_intr(|| sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The next message of a connection that carries a descriptor, or none; `None` at the end.
pub(crate) fn receive_descriptor(
    socket: &Socket,
) -> io::Result<Option<(String, Option<Descriptor>)>> {
    let mut buffer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let size = retry_on_intr(|| {
        let mut buffer = [IoSliceMut::new(&mut buffer)];
        recvmsg(socket, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.flatten().next();
    let text = String::from_utf8_lossy(&buffer[..size.bytes]).into_owned();
    Ok((size.bytes > 0).then_some((text, descriptor)))
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
