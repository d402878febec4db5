//! Windows: no process exchanges messages with a successor or a service manager yet.

use std::ffi::OsStr;
use std::io;

use socket2::Socket;

pub(crate) use super::ancillary::receive_all;
pub(crate) use crate::sys::native::peer_packet::{receive, send_packet};

use super::no_restarts_error;
use crate::sys::Descriptor;

pub(crate) fn create_pair() -> io::Result<(Socket, Socket)> {
    Err(no_restarts_error())
}

pub(crate) fn allow_descriptors(_: &Socket, _on: bool) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn send<S>(_: &S, _text: &str, _: &[&Descriptor]) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn send_answer(_: &Descriptor, _text: &str, _: &[&Descriptor]) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn is_temporary(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

pub(crate) fn connect_to_manager(_manager: &OsStr) -> io::Result<Socket> {
    Err(no_restarts_error())
}
