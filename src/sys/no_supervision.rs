//! Systems on which no process can look after others yet: all of this says so.

use std::ffi::OsStr;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use socket2::Socket;

use super::{Datagram, Descriptor, Signal, Start};

/// Whether a process can look after others here.
pub(crate) const SUPERVISES: bool = false;

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "supervision is not supported on this system",
    )
}

pub(crate) fn adopt_orphans() -> io::Result<()> {
    Err(unsupported())
}

#[derive(Debug)]
pub(crate) enum SignalFd {}

impl SignalFd {
    pub(crate) fn hold() -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn next(&self) -> io::Result<Option<Signal>> {
        match *self {}
    }
}

pub(crate) fn wait_for_any<'a>(
    signals: &SignalFd,
    _sockets: &[&Socket],
    _processes: impl Iterator<Item = &'a PidFd>,
    _timeout: Option<Duration>,
) -> io::Result<()> {
    match *signals {}
}

pub(crate) fn start_child(_start: &Start<'_>) -> io::Result<u32> {
    Err(unsupported())
}

pub(crate) fn replace_program(_start: &Start<'_>) -> io::Error {
    unsupported()
}

pub(crate) fn reap() -> io::Result<Option<(u32, ExitStatus)>> {
    Err(unsupported())
}

pub(crate) fn is_child(_pid: u32) -> bool {
    false
}

#[derive(Debug)]
pub(crate) struct PidFd;

impl PidFd {
    pub(crate) fn open(_pid: u32) -> Self {
        Self
    }

    pub(crate) fn send(&self, _signal: Signal) -> io::Result<()> {
        Err(unsupported())
    }

    pub(crate) fn has_ended(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub(crate) enum NotifySocket {}

impl NotifySocket {
    pub(crate) fn bind() -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn listen(_socket: Socket) -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn name(&self) -> &OsStr {
        match *self {}
    }

    pub(crate) fn socket(&self) -> &Socket {
        match *self {}
    }

    pub(crate) fn next(&self) -> io::Result<Option<Datagram>> {
        match *self {}
    }
}

pub(crate) fn peer_uid(_socket: &Socket) -> io::Result<u32> {
    Err(unsupported())
}

pub(crate) fn own_uid() -> u32 {
    u32::MAX
}

pub(crate) fn number_of<T>(_descriptor: &T) -> i32 {
    -1
}

pub(crate) fn socket_id(_descriptor: &Descriptor) -> io::Result<(u64, u64)> {
    Err(unsupported())
}
