//! Unix: socket pairs that keep messages apart, between a process and its successor or supervisor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, recv, recvmsg, sendmsg,
};
use socket2::{Domain, Socket, Type};

use super::socket::SEND_FLAGS;
use crate::sys::Descriptor;

/// Two connected, non-blocking sockets.
pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    let pair = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    pair.0.set_nonblocking(true)?;
    pair.1.set_nonblocking(true)?;
    Ok(pair)
}

/// Receives a message. Returns its length; 0 when the peer has closed its end.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer. The message is lost then.
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let room = buffer.len();
    let (_, size) = retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::TRUNC))?;
    if size > room {
        let text = format!("a message of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(size)
}

/// Sends a message, and a descriptor with it.
pub(crate) fn send(socket: &Socket, text: &str, descriptor: Option<&Descriptor>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(AsFd::as_fd);
    if descriptor.is_some()
        && !control.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()))
    {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let text = [IoSlice::new(text.as_bytes())];
    retry_on_intr(|| sendmsg(socket, &text, &mut control, SEND_FLAGS))?;
    Ok(())
}

/// The longest message with a descriptor, in bytes.
const MAX_TEXT: usize = 1024;

/// Receives a message of up to 1024 bytes, and the descriptor that came with it. `None` when the
/// peer has closed its end.
///
/// # Errors
///
/// `InvalidData` if the message is longer, or has more than one descriptor. The message is lost
/// then.
pub(crate) fn receive_with_descriptor(
    socket: &Socket,
) -> io::Result<Option<(String, Option<Descriptor>)>> {
    let mut buffer = [0; MAX_TEXT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let size = retry_on_intr(|| {
        let mut buffer = [IoSliceMut::new(&mut buffer)];
        recvmsg(socket, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if size
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        let text = "a message that is too long, or has too many descriptors";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.flatten().next();
    let text = String::from_utf8_lossy(&buffer[..size.bytes]).into_owned();
    Ok((size.bytes > 0).then_some((text, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_is_an_error() {
        let Ok((own, other)) = create_pair() else {
            return;
        };
        send(&own, &"x".repeat(MAX_TEXT), None).unwrap();
        let (text, _) = receive_with_descriptor(&other).unwrap().unwrap();
        assert_eq!(text.len(), MAX_TEXT);
        send(&own, &"x".repeat(MAX_TEXT + 1), None).unwrap();
        let error = receive_with_descriptor(&other).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn more_descriptors_than_one_message_may_have_are_an_error() {
        let Ok((own, other)) = create_pair() else {
            return;
        };
        let descriptors = [own.as_fd(); 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(10))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let text = [IoSlice::new(b"x")];
        sendmsg(&own, &text, &mut control, SEND_FLAGS).unwrap();
        let error = receive_with_descriptor(&other).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
