//! Windows: no process exchanges messages with a successor or a service manager yet.

use std::ffi::OsStr;
use std::io;

use socket2::Socket;

use super::no_restarts_error;
use crate::sys::Descriptor;

pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    Err(no_restarts_error())
}

pub(crate) fn receive(_: &Socket, _: &mut [u8]) -> io::Result<(usize, Option<Descriptor>)> {
    Err(no_restarts_error())
}

pub(crate) fn receive_all(_: &Socket, _: &mut [u8]) -> io::Result<(usize, Vec<Descriptor>)> {
    Err(no_restarts_error())
}

pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn send<S>(_: &S, _text: &str, _: &[&Descriptor]) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

pub(crate) fn connect_to_manager(_manager: &OsStr) -> io::Result<Socket> {
    Err(no_restarts_error())
}
