//! Other systems: they cannot run a supervisor yet, so that every function is an error.

use std::ffi::OsStr;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use socket2::Socket;

pub(crate) use super::linux_only::*;
pub(crate) use crate::sys::unix::control::{ControlPipe, ControlStream, Source, source_of};
use crate::sys::{Datagram, Descriptor, EventPrefix, Guarded, Identity, Interest, Signal};

pub(crate) const IS_SUPPORTED: bool = false;
pub(crate) const HAS_PROCESS_GROUPS: bool = true;
pub(crate) const SIGNALS_ARE_FATAL: bool = true;
pub(crate) const UNSUPPORTED_SETTINGS: &[&str] = &[];

fn unsupported<T>() -> io::Result<T> {
    let text = "supervision is not supported on this system";
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

pub(crate) fn become_subreaper() -> io::Result<()> {
    unsupported()
}

pub(crate) fn wait_for_any<'a>(
    signals: &SignalFd,
    _sources: &[(Source<'_>, Interest)],
    _processes: impl Iterator<Item = &'a ProcessWatch>,
    _timeout: Option<Duration>,
) -> io::Result<()> {
    match *signals {}
}

pub(crate) fn reap_child() -> io::Result<Option<(u32, ExitStatus)>> {
    unsupported()
}

pub(crate) fn is_child(_pid: u32) -> bool {
    false
}

pub(crate) fn is_descendant(_pid: u32) -> Option<bool> {
    None
}

pub(crate) fn parent_of(_pid: u32) -> Option<u32> {
    None
}

pub(crate) fn age_of(_pid: u32) -> Option<Duration> {
    None
}

pub(crate) fn resident_size(_pid: u32) -> Option<u64> {
    None
}

#[derive(Debug)]
pub(crate) enum Guardian {}

impl Guardian {
    pub(crate) const NEEDS_EACH_CHILD: bool = false;

    pub(crate) fn start(
        _limit: Duration,
        _kills_all: bool,
        _identity: Option<&Identity>,
        _known: impl Iterator<Item = Guarded>,
    ) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn resume(_pid: u32, _pipe: i32) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn end(self) {
        match self {}
    }

    pub(crate) fn pipe(&self) -> &Descriptor {
        match *self {}
    }

    pub(crate) fn watch(&self, _guarded: Guarded) -> bool {
        match *self {}
    }

    pub(crate) fn forget(&self, _process: Option<u32>, _group: Option<u32>) -> bool {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum SignalFd {}

impl SignalFd {
    pub(crate) fn open(_event_prefix: Option<&EventPrefix>) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn event_names(&self) -> Option<String> {
        match *self {}
    }

    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        match *self {}
    }
}

/// Only the id tells the process.
#[derive(Debug)]
pub(crate) struct ProcessWatch(u32);

impl ProcessWatch {
    pub(crate) fn open(pid: u32) -> Self {
        Self(pid)
    }

    pub(crate) fn send_signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.0).ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::kill_process(
            pid,
            crate::sys::signal::to_kernel(signal),
        )?)
    }

    /// Nothing tells of the end of a process that is no child.
    pub(crate) fn wait_for_end(&self, _timeout: Duration) -> bool {
        true
    }

    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        None
    }

    pub(crate) fn has_ended(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub(crate) enum NotifySocket {}

impl NotifySocket {
    pub(crate) fn bind() -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn from_bound(_socket: Socket) -> io::Result<Self> {
        unsupported()
    }

    pub(crate) fn name(&self) -> &OsStr {
        match *self {}
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match *self {}
    }

    pub(crate) fn duplicate(&self) -> io::Result<Descriptor> {
        match *self {}
    }

    pub(crate) fn peek(&self) -> io::Result<Option<Datagram>> {
        match *self {}
    }

    pub(crate) fn take(&self) -> io::Result<TakenNotification> {
        match *self {}
    }

    pub(crate) fn discard(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn discarder(&self) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        Ok(unsupported)
    }
}

#[derive(Debug, Default)]
pub(crate) struct TakenNotification {
    pub(crate) descriptors: Vec<Descriptor>,
}

impl TakenNotification {
    pub(crate) fn wants_answer(&self) -> bool {
        false
    }

    pub(crate) fn answer(&self, _text: &str, _descriptors: &[&Descriptor]) -> io::Result<()> {
        unsupported()
    }
}
