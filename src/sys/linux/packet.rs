//! Linux: messages between processes over sockets that keep messages apart (SOCK_SEQPACKET in
//! unix(7)).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
use socket2::{Domain, Socket, Type};

use crate::sys::Descriptor;
use crate::sys::unix::ancillary::{self, CLOSE_ON_EXEC, MAX_DESCRIPTORS, descriptors_of};

/// Two connected, non-blocking sockets, which keep messages apart.
pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    let pair = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    pair.0.set_nonblocking(true)?;
    pair.1.set_nonblocking(true)?;
    Ok(pair)
}

/// Sends a message to the other end of a pair, and up to 253 descriptors with it, without waiting.
/// A message of no bytes would be taken for the end.
pub(crate) fn send_packet(
    socket: &Socket,
    message: &str,
    descriptors: &[&Descriptor],
) -> io::Result<()> {
    ancillary::send(socket, message.as_bytes(), descriptors).map(drop)
}

/// Receives a message from the other end of a pair, and the descriptor that came with it. Returns
/// the message's length; 0 when the peer has closed its end.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer, or has more descriptors than there is
/// room for. The message is lost then.
pub(crate) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = CLOSE_ON_EXEC | RecvFlags::TRUNC;
    let message =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let size = message.bytes;
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if message.flags.intersects(cut) {
        let text = format!("a message of {size} bytes, which is cut");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok((size, descriptors_of(control)?.into_iter().next()))
}

/// Whether [`create_channel`], [`send_sockets`] and [`receive_sockets`] work.
pub(crate) const PASSES_CONNECTIONS: bool = true;

/// Two connected, non-blocking sockets for [`send_sockets`] and [`receive_sockets`].
pub(crate) fn create_channel() -> io::Result<(Socket, Socket)> {
    create_pair()
}

/// Sends a message to the other end of a channel, and up to 253 connected sockets with it, without
/// waiting. This process keeps the sockets open.
pub(crate) fn send_sockets(to: &Socket, message: &str, sockets: &[&Socket]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(|one| one.as_fd()).collect();
    ancillary::send_borrowed(to, message.as_bytes(), &sockets).map(drop)
}

/// Receives a message from the other end of a channel, and the sockets that came with it. Returns the
/// message's length; 0 when the peer has closed its end. If this process has no descriptors left,
/// the last sockets are missing.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer. The message and its sockets are lost
/// then.
pub(crate) fn receive_sockets(
    from: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<Socket>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = CLOSE_ON_EXEC | RecvFlags::TRUNC;
    let message =
        retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let (size, is_cut) = (message.bytes, message.flags.contains(ReturnFlags::TRUNC));
    let sockets = descriptors_of(control)?.into_iter().map(Socket::from);
    let sockets = sockets.collect();
    match is_cut {
        true => {
            let text = format!("a message of {size} bytes, which is cut");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        // The kernel cuts the list of descriptors behind those that have found a number.
        false => Ok((size, sockets)),
    }
}
