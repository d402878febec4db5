//! Linux: messages between processes over sockets that keep messages apart (SOCK_SEQPACKET in
//! unix(7)).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
use socket2::{Domain, Socket, Type};

use crate::sys::Descriptor;
use crate::sys::unix::ancillary::{self, CLOSE_ON_EXEC, descriptors_of};

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
