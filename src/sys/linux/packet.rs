//! Linux: messages between processes over sockets that keep messages apart (SOCK_SEQPACKET in
//! unix(7)).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
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

/// How many descriptors this process may still get at most, if it may have those with lower numbers
/// than `most`. The kernel gives each descriptor the lowest number that is free. `any` is a descriptor.
fn descriptors_left(any: &Socket, most: u64) -> io::Result<usize> {
    if most == 0 {
        return Ok(0);
    }
    let in_use = match fcntl_dupfd_cloexec(any, 0) {
        Ok(lowest) => number(&lowest),
        Err(Errno::MFILE) => u64::MAX,
        Err(error) => return Err(error.into()),
    };
    let left = most.saturating_sub(in_use);
    Ok(usize::try_from(left).unwrap_or(usize::MAX))
}

fn number(descriptor: &impl AsRawFd) -> u64 {
    u64::try_from(descriptor.as_raw_fd()).unwrap_or(u64::MAX)
}

/// Receives a message from the other end of a channel, and the sockets that came with it. Returns the
/// message's length; 0 when the peer has closed its end. The last sockets are missing if this process
/// has as many descriptors as it may have, or all with lower numbers than `most`.
///
/// # Errors
///
/// `InvalidData` if the message is longer than the buffer. The message and its sockets are lost
/// then.
pub(crate) fn receive_sockets(
    from: &Socket,
    buffer: &mut [u8],
    most: u64,
) -> io::Result<(usize, Vec<Socket>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    // So that other threads find descriptors also at this moment.
    let room = descriptors_left(from, most)?.min(MAX_DESCRIPTORS);
    let space = match room {
        0 => &mut [],
        room => &mut space[..rustix::cmsg_space!(ScmRights(room))],
    };
    let mut control = RecvAncillaryBuffer::new(space);
    let flags = CLOSE_ON_EXEC | RecvFlags::TRUNC;
    let message =
        retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let (size, is_cut) = (message.bytes, message.flags.contains(ReturnFlags::TRUNC));
    let descriptors = descriptors_of(control)?.into_iter();
    let sockets = descriptors.take_while(|own| number(own) < most);
    let sockets = sockets.map(Socket::from).collect();
    match is_cut {
        true => {
            let text = format!("a message of {size} bytes, which is cut");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        // The kernel cuts the list of descriptors behind those that have found a number, and room.
        false => Ok((size, sockets)),
    }
}
