//! Windows: bytes of a stream. No descriptors are sent with them.

use std::io;

use socket2::Socket;

use crate::sys::Descriptor;

/// Sends bytes. Returns how many of them were sent.
pub(in crate::sys) fn send(
    socket: &Socket,
    bytes: &[u8],
    descriptors: &[&Descriptor],
) -> io::Result<usize> {
    match descriptors.is_empty() {
        true => super::socket::send(socket, bytes),
        false => Err(super::unsupported_error(
            "no descriptors come with a message on Windows",
        )),
    }
}

/// Receives bytes.
pub(crate) fn receive_all(
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<Descriptor>)> {
    Ok((super::socket::recv(socket, buffer)?, Vec::new()))
}
