//! Unix: bytes, and the descriptors that are sent with them (SCM_RIGHTS in unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::Socket;

use super::socket::SEND_FLAGS;
use crate::sys::Descriptor;

/// The most descriptors that go with one message (SCM_MAX_FD).
pub(in crate::sys) const MAX_DESCRIPTORS: usize = 253;

/// Makes children inherit no descriptor that is received. Apple's systems have no such flag.
#[cfg(not(target_vendor = "apple"))]
pub(in crate::sys) const CLOSE_ON_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(target_vendor = "apple")]
pub(in crate::sys) const CLOSE_ON_EXEC: RecvFlags = RecvFlags::empty();

/// Sends bytes, and up to 253 descriptors with them. Does not wait, even if another process has
/// made the socket a blocking one. Returns how many of the bytes were sent.
pub(in crate::sys) fn send(
    socket: &impl AsFd,
    bytes: &[u8],
    descriptors: &[&Descriptor],
) -> io::Result<usize> {
    let descriptors: Vec<_> = descriptors.iter().map(|one| one.as_fd()).collect();
    send_borrowed(socket, bytes, &descriptors)
}

/// As [`send`], for descriptors of any type.
pub(in crate::sys) fn send_borrowed(
    socket: &impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let bytes = [IoSlice::new(bytes)];
    let flags = SEND_FLAGS | SendFlags::DONTWAIT;
    let sent = retry_on_intr(|| sendmsg(socket, &bytes, &mut control, flags));
    Ok(sent?)
}

/// Receives bytes of a stream, and all descriptors that came with them.
pub(crate) fn receive_all(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<Descriptor>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        let mut buffer = [IoSliceMut::new(buffer)];
        recvmsg(socket, &mut buffer, &mut control, CLOSE_ON_EXEC)
    })?;
    Ok((message.bytes, descriptors_of(control)?))
}

/// The descriptors that came with a message. Children do not inherit them.
pub(in crate::sys) fn descriptors_of(
    mut control: RecvAncillaryBuffer<'_>,
) -> io::Result<Vec<Descriptor>> {
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<Descriptor> = descriptors.flatten().collect();
    if CLOSE_ON_EXEC.is_empty() {
        for descriptor in &descriptors {
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
    }
    Ok(descriptors)
}
