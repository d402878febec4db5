//! Windows: files.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::windows::fs::FileExt;
use std::path::Path;

use super::directory::DirectoryEntry;
use super::{no_restarts_error, no_unix_sockets_error};
use crate::sys::IfLocked;

pub(crate) fn create_anonymous(_bytes: &[u8]) -> io::Result<File> {
    Err(no_restarts_error())
}

/// Moves the file's own position.
pub(crate) fn read_at(file: &File, into: &mut [u8], position: u64) -> io::Result<usize> {
    file.seek_read(into, position)
}

pub(crate) fn try_lock(_file: &File) -> io::Result<bool> {
    Err(no_restarts_error())
}

/// Never made: Unix sockets and restarts, which need it, are not supported.
pub(crate) struct DirectoryLock(());

pub(crate) fn lock_directory_of(
    _path: &Path,
    _if_locked: IfLocked,
) -> io::Result<Option<DirectoryLock>> {
    Ok(None)
}

pub(crate) fn is_executable(path: &Path) -> bool {
    path.is_file()
}

pub(crate) fn is_own_program(path: &Path) -> bool {
    let own = std::env::current_exe().and_then(std::fs::canonicalize);
    own.map_or(true, |own| {
        std::fs::canonicalize(path).is_ok_and(|path| path == own)
    })
}

/// Nothing is opened here that could wait.
pub(crate) fn open_regular(path: &Path, _follows_link: bool) -> io::Result<File> {
    File::open(path)
}

pub(crate) fn open_regular_for(path: &Path, _user: u32) -> io::Result<File> {
    File::open(path)
}

pub(crate) fn inode(_file: &File) -> io::Result<(u64, u64)> {
    Err(no_restarts_error())
}

pub(crate) fn free_socket_path(
    _entry: &DirectoryEntry,
    _path: &Path,
    _user: Option<u32>,
) -> io::Result<()> {
    Err(no_unix_sockets_error())
}

pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    String::from_utf8_lossy(bytes).into_owned().into()
}
