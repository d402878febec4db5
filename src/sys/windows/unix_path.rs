//! Windows: there are no Unix sockets here.

use std::io;
use std::path::{Path, PathBuf};

use socket2::SockAddr;

use super::no_unix_sockets;
use crate::sys::PathState;

pub(crate) fn from_addr(_addr: &SockAddr) -> Option<PathBuf> {
    None
}

pub(crate) fn state(_path: &Path) -> io::Result<PathState> {
    Err(no_unix_sockets())
}
