//! Windows: handles, which no process passes to a successor yet.

use std::io;
use std::os::windows::io::OwnedHandle;

use socket2::Socket;

use super::no_restarts_error;

/// What a process can pass on.
pub type Descriptor = OwnedHandle;

pub(crate) fn adopt(_number: i32) -> io::Result<Descriptor> {
    Err(no_restarts_error())
}

pub(crate) fn number<T>(_descriptor: &T) -> i32 {
    -1
}

pub(crate) fn inode(_descriptor: &Descriptor) -> io::Result<(u64, u64)> {
    Err(no_restarts_error())
}

pub(crate) fn duplicate(_socket: &Socket) -> io::Result<Descriptor> {
    Err(no_restarts_error())
}

pub(crate) fn into_socket(_descriptor: Descriptor) -> io::Result<Socket> {
    Err(no_restarts_error())
}

pub(crate) fn from_socket(_socket: Socket) -> io::Result<Descriptor> {
    Err(no_restarts_error())
}

pub(crate) fn is_listener(_descriptor: &Descriptor) -> bool {
    false
}

pub(crate) fn discard(_descriptor: Descriptor) {}

pub(crate) fn create_pipe() -> io::Result<(Descriptor, Descriptor)> {
    Err(no_restarts_error())
}

pub(crate) fn duplicate_stderr() -> io::Result<Descriptor> {
    Err(no_restarts_error())
}

pub(crate) fn replace_stderr(_to: &Descriptor) -> io::Result<()> {
    Err(no_restarts_error())
}
