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

pub(crate) fn send(_: &Socket, _text: &str, _: &[&Descriptor]) -> io::Result<()> {
    Err(no_restarts_error())
}

pub(crate) fn is_temporary(_: &io::Error) -> bool {
    false
}

pub(crate) fn connect_to_manager(_manager: &OsStr) -> io::Result<Socket> {
    Err(no_restarts_error())
}
