//! Systems other than Linux: what a supervisor can do only on Linux, which is to run programs as
//! other users, to send signals to process groups, and to write the output of programs to files. A
//! function that must do such a thing fails, and a query has the answer of a system without it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use super::supervision::Source;
use crate::sys::{Credentials, Descriptor, Identity, LogReport, Signal};

pub(crate) const SUPPORTS_UPGRADES: bool = false;

fn unsupported<T>(what: &str) -> io::Result<T> {
    let text = format!("{what} not supported on this system");
    Err(io::Error::new(io::ErrorKind::Unsupported, text))
}

const USERS: &str = "other users for programs are";
const GROUPS: &str = "process groups are";
const OUTPUT_FILES: &str = "files for the output of programs are";

pub(crate) fn find_identity(
    _user: Option<&str>,
    _group: Option<&str>,
    _no_new_privileges: bool,
) -> io::Result<Identity> {
    unsupported(USERS)
}

pub(crate) fn find_group(_group: &str) -> io::Result<u32> {
    unsupported(USERS)
}

pub(crate) fn has_group(_group: u32) -> bool {
    false
}

pub(crate) fn may_signal(_pid: u32) -> bool {
    false
}

pub(crate) fn group_of(_pid: u32) -> Option<u32> {
    None
}

pub(crate) fn signal_group(_group: u32, _signal: Signal) -> io::Result<()> {
    unsupported(GROUPS)
}

pub(crate) fn page_size() -> u64 {
    1
}

pub(crate) fn mask_bit(_signal: Signal) -> u64 {
    0
}

pub(crate) fn time_since_tick(_ticks: u64) -> Duration {
    Duration::ZERO
}

pub(crate) fn suspend() {}

pub(crate) fn allow_interrupts() {}

pub(crate) fn interrupt(_thread: &JoinHandle<()>) {}

pub(crate) fn open_log_file(_path: &Path) -> io::Result<File> {
    unsupported(OUTPUT_FILES)
}

pub(crate) fn prepare_log_pipe(
    _writer: &Descriptor,
    _owner: Option<&Credentials>,
) -> io::Result<()> {
    unsupported(OUTPUT_FILES)
}

#[derive(Debug)]
pub(crate) enum LogWriter {}

impl LogWriter {
    pub(crate) fn start(_input: &Descriptor, _file: Option<&File>) -> io::Result<Self> {
        unsupported(OUTPUT_FILES)
    }

    pub(crate) fn resume(_pid: u32, _socket: i32) -> io::Result<Self> {
        unsupported(OUTPUT_FILES)
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn socket(&self) -> &Socket {
        match *self {}
    }

    pub(crate) fn source(&self) -> Source<'_> {
        match *self {}
    }

    pub(crate) fn reopen(&self, _path: &Path) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn drain(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn receive(&self) -> Option<LogReport> {
        match *self {}
    }
}
