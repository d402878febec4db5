//! Unix: the paths of Unix stream sockets.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::PathState;

/// `None` if the address is not one of a Unix socket, or has no name.
pub(crate) fn from_addr(addr: &SockAddr) -> Option<PathBuf> {
    addr.as_pathname().map(Path::to_owned).or_else(|| {
        // An abstract name (unix(7)) has no file. It is shown with an @, as netstat shows it.
        let name = addr.as_abstract_namespace()?;
        Some(PathBuf::from(OsStr::from_bytes(&[b"@", name].concat())))
    })
}

/// What is at the path. Never blocks.
pub(crate) fn state(path: &Path) -> io::Result<PathState> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(PathState::Free),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Ok(PathState::Foreign);
    }
    // Only a connect tells a socket in use from the file of a server that has died.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(PathState::Stale),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(PathState::Free),
        // A full queue is EAGAIN. A datagram or seqpacket socket is EPROTOTYPE: it is in use too.
        Ok(()) | Err(_) => Ok(PathState::Live),
    }
}
