//! Unix: files, also those of Unix sockets.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Error, ErrorKind, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::native::calls::create_unnamed_file;

/// An unnamed file that holds these bytes. Its position is the beginning.
pub(crate) fn create_anonymous(bytes: &[u8]) -> io::Result<File> {
    let mut file = create_unnamed_file()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Reads from the offset `position` on. The file's own position is not used.
pub(crate) fn read_at(file: &File, into: &mut [u8], position: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, position) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Locks a file until it is closed. False if another process has locked it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether this process may run the file as a program.
pub(crate) fn is_executable(path: &Path) -> bool {
    access(path, Access::EXEC_OK).is_ok() && path.is_file()
}

/// The device and inode of the file at a path, which tell it from another file that takes the path
/// later. `None` if there is no file.
pub(crate) fn inode(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Makes a path free for a Unix socket: removes the file of one on which no process listens any
/// more. Never blocks.
///
/// # Errors
///
/// `AddrInUse` if a process listens there, `AlreadyExists` for a file that is not a socket. Both
/// are left alone.
pub(crate) fn free_socket_path(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let text = "the path is a file that is not a socket; the file was not removed";
        return Err(Error::new(ErrorKind::AlreadyExists, text));
    }
    // Only a connect tells a socket in use from the file of a server that has died.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    let connected = probe.connect(&SockAddr::unix(path)?);
    match connected.map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) => fs::remove_file(path),
        Err(ErrorKind::NotFound) => Ok(()),
        // A full queue is EAGAIN. A datagram or seqpacket socket is EPROTOTYPE: it is in use too.
        Ok(()) | Err(_) => {
            let text = "another process listens on this socket";
            Err(Error::new(ErrorKind::AddrInUse, text))
        }
    }
}

/// Sets the permissions of a file (chmod(2)).
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A path, or other text of the system, from its bytes.
pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
