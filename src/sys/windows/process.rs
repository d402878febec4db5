//! Windows: a process has no successor here yet, so that all of this says so.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::windows::io::OwnedHandle;
use std::path::Path;
use std::time::Duration;

use socket2::Socket;

use crate::sys::{ProcessState, Start};

/// What a process can pass on.
pub type Descriptor = OwnedHandle;

/// Whether a process can be replaced by a successor here.
pub(crate) const RESTARTS: bool = false;

/// A child process; there is none here.
#[derive(Debug)]
pub(crate) enum Process {}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn wait(&mut self, _within: Duration) -> io::Result<ProcessState> {
        match *self {}
    }

    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn let_go(&mut self) {
        match *self {}
    }
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "restarts are not supported on Windows",
    )
}

pub(crate) fn start(_start: &Start<'_>) -> io::Result<Process> {
    Err(unsupported())
}

pub(crate) fn release_signals() -> bool {
    false
}

pub(crate) fn adopt(_number: i32) -> io::Result<Descriptor> {
    Err(unsupported())
}

pub(crate) fn descriptor_of(_socket: &Socket) -> io::Result<Descriptor> {
    Err(unsupported())
}

pub(crate) fn into_socket(_descriptor: Descriptor) -> io::Result<Socket> {
    Err(unsupported())
}

pub(crate) fn into_file(descriptor: Descriptor) -> File {
    File::from(descriptor)
}

pub(crate) fn pipe() -> io::Result<(Descriptor, Descriptor)> {
    Err(unsupported())
}

pub(crate) fn stderr_copy() -> io::Result<Descriptor> {
    Err(unsupported())
}

pub(crate) fn set_stderr(_to: &Descriptor) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn anonymous_file(_bytes: &[u8]) -> io::Result<File> {
    Err(unsupported())
}

pub(crate) fn env_entry(name: &OsString, value: &OsString) -> OsString {
    let mut entry = name.clone();
    entry.push("=");
    entry.push(value);
    entry
}

pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    String::from_utf8_lossy(bytes).into_owned().into()
}

pub(crate) fn is_program(path: &Path) -> bool {
    path.is_file()
}

pub(crate) fn try_lock(_file: &File) -> io::Result<bool> {
    Err(unsupported())
}

pub(crate) fn message_pair() -> io::Result<(Socket, Socket)> {
    Err(unsupported())
}

pub(crate) fn receive_message(_socket: &Socket, _buffer: &mut [u8]) -> io::Result<usize> {
    Err(unsupported())
}

pub(crate) fn send_message(
    _socket: &Socket,
    _text: &str,
    _descriptor: Option<&Descriptor>,
) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn receive_descriptor(
    _socket: &Socket,
) -> io::Result<Option<(String, Option<Descriptor>)>> {
    Err(unsupported())
}

pub(crate) fn notify(
    _manager: &OsStr,
    _text: &str,
    _descriptors: &[&Descriptor],
) -> io::Result<()> {
    Err(unsupported())
}
