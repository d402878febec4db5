//! Unix: files.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::sys::native::calls::create_unnamed_file;

/// An unnamed file that holds these bytes. Its position is the beginning.
pub(crate) fn create_anonymous(bytes: &[u8]) -> io::Result<File> {
    let mut file = create_unnamed_file()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
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

/// Sets the permissions of a file (chmod(2)).
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A path, or other text of the system, from its bytes.
pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
