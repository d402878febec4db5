//! Windows: files.

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Error, ErrorKind, Seek, Write};
use std::os::windows::ffi::OsStringExt;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{ERROR_LOCK_VIOLATION, ERROR_SHARING_VIOLATION, GENERIC_READ};
use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_ATTRIBUTE_TEMPORARY, FILE_FLAG_DELETE_ON_CLOSE, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_TYPE_DISK, GetFileType, LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY, LockFileEx,
};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::directory::{DirectoryEntry, parent_of};
use super::handle::file_id;
use super::no_unix_sockets_error;
use crate::log;
use crate::sys::IfLocked;

/// A device that is empty.
pub(crate) const NULL_DEVICE: &str = "NUL";

/// A file that holds these bytes, and that is removed when its last handle is closed, also by the
/// end of the process. No other process can open the file. Its position is at the beginning.
pub(crate) fn create_anonymous(bytes: &[u8]) -> io::Result<File> {
    let number = RandomState::new().build_hasher().finish();
    let path = std::env::temp_dir().join(format!("handover-{number:016x}"));
    let mut options = File::options();
    let options = options.read(true).write(true).create_new(true);
    // The system keeps such a file in memory while it can.
    let options = options.attributes(FILE_ATTRIBUTE_TEMPORARY);
    let options = options.custom_flags(FILE_FLAG_DELETE_ON_CLOSE);
    let mut file = options.share_mode(0).open(path)?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Moves the file's own position.
pub(crate) fn read_at(file: &File, into: &mut [u8], position: u64) -> io::Result<usize> {
    file.seek_read(into, position)
}

/// Locks a byte far behind the end of the file: here nobody else can read what is locked.
#[allow(unsafe_code)]
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    let mut place = OVERLAPPED::default();
    place.Anonymous.Anonymous.OffsetHigh = i32::MAX as u32;
    let flags = LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY;
    // SAFETY: the file is open, and the call, which waits for nothing, reads a live structure.
    if unsafe { LockFileEx(file.as_raw_handle(), flags, 0, 1, 0, &mut place) } != 0 {
        return Ok(true);
    }
    let error = Error::last_os_error();
    match error.raw_os_error() {
        Some(code) if code == ERROR_LOCK_VIOLATION as i32 => Ok(false),
        _ => Err(error),
    }
}

/// How long [`lock_directory_of`] waits for another process.
const DIRECTORY_LOCK_WAIT: Duration = Duration::from_secs(1);

/// A file that one process at a time can open, and that is removed when this is dropped.
pub(crate) struct DirectoryLock(#[allow(dead_code)] File);

/// Locks a file in the directory, since a directory itself cannot be locked here.
pub(crate) fn lock_directory_of(
    path: &Path,
    if_locked: IfLocked,
) -> io::Result<Option<DirectoryLock>> {
    let directory = parent_of(path);
    let wait = match if_locked {
        IfLocked::Wait => DIRECTORY_LOCK_WAIT,
        IfLocked::Ignore | IfLocked::Fail => Duration::ZERO,
    };
    let give_up_at = Instant::now() + wait;
    let mut options = File::options();
    let options = options.access_mode(GENERIC_READ | DELETE).share_mode(0);
    let options = options
        .create(true)
        .write(true)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE);
    let path = directory.join(".handover-lock");
    let error = loop {
        match options.open(&path) {
            Ok(file) => return Ok(Some(DirectoryLock(file))),
            Err(error) if !is_in_use(&error) => break error,
            Err(_) if Instant::now() >= give_up_at => {
                let text = "another process has locked the directory";
                break Error::new(ErrorKind::WouldBlock, text);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    if if_locked == IfLocked::Fail && error.kind() == ErrorKind::WouldBlock {
        return Err(error);
    }
    let shown = directory.display();
    log::debug!("cannot lock the directory {shown}, continuing without the lock: {error}");
    Ok(None)
}

/// Another process has the file open. A file that is about to be removed refuses access.
fn is_in_use(error: &Error) -> bool {
    error.raw_os_error() == Some(ERROR_SHARING_VIOLATION as i32)
        || error.kind() == ErrorKind::PermissionDenied
}

pub(crate) fn is_executable(path: &Path) -> bool {
    path.is_file()
}

/// The extensions of files that Windows starts as programs, without the help of another one.
const EXTENSIONS: [&str; 2] = ["exe", "com"];

/// The file of a program that was named so, mostly without its extension. `None` if there is none.
/// PATHEXT also names files that a shell runs, such as batch files. The shell is the program then.
pub(crate) fn find_program_file(named: PathBuf) -> Option<PathBuf> {
    let with_extension = |extension: &str| {
        let mut path = named.clone().into_os_string();
        path.push(".");
        path.push(extension);
        PathBuf::from(path)
    };
    if named.extension().is_some() && named.is_file() {
        return Some(named);
    }
    let mut paths = EXTENSIONS.into_iter().map(with_extension);
    paths.find(|path| path.is_file())
}

pub(crate) fn is_own_program(path: &Path) -> bool {
    let own = std::env::current_exe().and_then(std::fs::canonicalize);
    own.map_or(true, |own| {
        std::fs::canonicalize(path).is_ok_and(|path| path == own)
    })
}

/// Refuses pipes and devices, whose names are paths too.
#[allow(unsafe_code)]
pub(crate) fn open_regular(path: &Path, follows_link: bool) -> io::Result<File> {
    let no_follow = if follows_link {
        0
    } else {
        FILE_FLAG_OPEN_REPARSE_POINT
    };
    let file = File::options()
        .read(true)
        .custom_flags(no_follow)
        .open(path)?;
    // SAFETY: the file is open.
    let kind = unsafe { GetFileType(file.as_raw_handle()) };
    match kind == FILE_TYPE_DISK && file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(
            ErrorKind::InvalidInput,
            "this is not a regular file",
        )),
    }
}

/// Every process here has the rights of its own user, so there is no other user to check for.
pub(crate) fn open_regular_for(path: &Path, _user: u32) -> io::Result<File> {
    open_regular(path, true)
}

/// The volume, and the file's index in it.
pub(crate) fn inode(file: &File) -> io::Result<(u64, u64)> {
    file_id(file)
}

pub(crate) fn free_socket_path(
    _entry: &DirectoryEntry,
    _path: &Path,
    _user: Option<u32>,
) -> io::Result<()> {
    Err(no_unix_sockets_error())
}

/// A path, or other text of the system, from bytes in the form of `as_encoded_bytes`: UTF-8, in
/// which a surrogate that stands alone has three bytes.
pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    let mut units = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = std::str::from_utf8(rest).map_or_else(|error| error.valid_up_to(), str::len);
        let (text, invalid) = rest.split_at(valid);
        units.extend(String::from_utf8_lossy(text).encode_utf16());
        rest = match invalid {
            [0xed, high @ 0xa0..=0xbf, low @ 0x80..=0xbf, rest @ ..] => {
                units.push(0xd000 | u16::from(high & 0x3f) << 6 | u16::from(low & 0x3f));
                rest
            }
            [_, rest @ ..] => {
                units.push(0xfffd);
                rest
            }
            [] => &[],
        };
    }
    OsString::from_wide(&units)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_anonymous_file_holds_its_bytes_and_goes_when_it_is_closed() {
        let named = || {
            let dir = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
            let names = dir.map(|entry| entry.file_name().into_string().unwrap_or_default());
            names
                .filter(|name| name.starts_with("handover-"))
                .collect::<Vec<_>>()
        };
        let before = named();
        let mut file = create_anonymous(b"text").unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        let new = named()
            .into_iter()
            .find(|name| !before.contains(name))
            .unwrap();
        drop(file);
        assert!(!std::env::temp_dir().join(new).exists());
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_closed_and_lets_them_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let [first, second] = [(); 2].map(|()| File::open(&path).unwrap());
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        drop(first);
        assert!(try_lock(&second).unwrap());
    }

    #[test]
    fn a_directory_has_one_lock_which_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let lock = lock_directory_of(&path, IfLocked::Fail).unwrap();
        assert!(lock.is_some());
        let error = lock_directory_of(&path, IfLocked::Fail).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(
            lock_directory_of(&path, IfLocked::Ignore)
                .unwrap()
                .is_none()
        );
        drop(lock);
        assert!(lock_directory_of(&path, IfLocked::Fail).unwrap().is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_is_no_unicode_survives() {
        for units in [
            &[0x61, 0xe4, 0xd834, 0xdd1e][..],
            &[0xd800, 0x62, 0xdfff],
            &[],
        ] {
            let name = OsString::from_wide(units);
            assert_eq!(os_string(name.as_encoded_bytes()), name);
        }
        assert_eq!(os_string(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(open_regular(&path, false).is_ok());
        assert!(open_regular(Path::new("NUL"), true).is_err());
        let missing = open_regular(&dir.path().join("missing"), false);
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
