//! Windows: no process exchanges messages with a successor yet.

use std::io;

use socket2::Socket;

use super::no_restarts;
use crate::sys::Descriptor;

pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    Err(no_restarts())
}

pub(crate) fn receive(_socket: &Socket, _buffer: &mut [u8]) -> io::Result<usize> {
    Err(no_restarts())
}

pub(crate) fn send(
    _socket: &Socket,
    _text: &str,
    _descriptor: Option<&Descriptor>,
) -> io::Result<()> {
    Err(no_restarts())
}

pub(crate) fn receive_with_descriptor(
    _socket: &Socket,
) -> io::Result<Option<(String, Option<Descriptor>)>> {
    Err(no_restarts())
}
