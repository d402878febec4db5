//! Unix: files, also those of Unix sockets.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Error, ErrorKind, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::directory::{DirectoryEntry, parent_of};
use super::links::not_regular;
pub(crate) use super::links::open_regular_for;
use crate::log;
use crate::sys::IfLocked;
use crate::sys::native::calls::create_unnamed_file;

/// A device that is empty.
pub(crate) const NULL_DEVICE: &str = "/dev/null";

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

/// How long [`lock_directory_of`] waits for another process.
const DIRECTORY_LOCK_WAIT: Duration = Duration::from_secs(1);

/// A lock on a directory, until it is dropped. Processes that replace or remove files by their
/// names take it, so that they do so one after another. It leaves no file behind.
pub(crate) struct DirectoryLock(File);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Not by the close alone: a process that is being started may have a copy of the
        // descriptor. An error leaves that to the close.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the directory that a path is in (flock(2)). `None` if the directory cannot be read or
/// locked. Everybody who may read the directory can take the lock, and must not be able to prevent
/// the start of a server, nor to make a supervisor wait: `if_locked` says what to do then.
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
    let options = options.read(true).custom_flags(libc::O_DIRECTORY);
    let locked = options.open(directory).and_then(|file| {
        while !try_lock(&file)? {
            if Instant::now() >= give_up_at {
                let text = "another process has locked the directory";
                return Err(Error::new(ErrorKind::WouldBlock, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(DirectoryLock(file))
    });
    match locked {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if if_locked == IfLocked::Fail && error.kind() == ErrorKind::WouldBlock => {
            Err(error)
        }
        Err(error) => {
            let shown = directory.display();
            log::debug!("cannot lock the directory {shown}, continuing without the lock: {error}");
            Ok(None)
        }
    }
}

/// Opens a regular file for reading. Never waits, as the open of an idle FIFO would. If
/// `follows_link`, the path may be a symbolic link.
///
/// # Errors
///
/// `InvalidInput` if there is something other than a regular file.
pub(crate) fn open_regular(path: &Path, follows_link: bool) -> io::Result<File> {
    let no_follow = if follows_link { 0 } else { libc::O_NOFOLLOW };
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | no_follow;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = match opened.map_err(|error| (error.raw_os_error(), error)) {
        Ok(file) if file.metadata()?.is_file() => return Ok(file),
        Ok(_) | Err((Some(libc::ENXIO), _)) => None,
        Err((Some(libc::ELOOP), _)) if !follows_link => None,
        Err((_, error)) => Some(error),
    };
    Err(file.unwrap_or_else(not_regular))
}

/// Whether this process may run the file as a program.
pub(crate) fn is_executable(path: &Path) -> bool {
    access(path, Access::EXEC_OK).is_ok() && path.is_file()
}

/// The file of a program that was named so. `None` if there is none that this process may run.
pub(crate) fn find_program_file(named: PathBuf) -> Option<PathBuf> {
    Some(named).filter(|named| is_executable(named))
}

/// Whether a path leads to the file of the program that this process runs, as far as the system
/// tells.
pub(crate) fn is_own_program(path: &Path) -> bool {
    // On Linux, this name leads to the file even after the file was deleted (proc(5)).
    let own = fs::metadata("/proc/self/exe").or_else(|_| fs::metadata(std::env::current_exe()?));
    let identity = |file: fs::Metadata| (file.dev(), file.ino());
    own.map_or(true, |own| {
        fs::metadata(path).is_ok_and(|file| identity(file) == identity(own))
    })
}

/// The device and inode of an open file, which tell it from another file that takes its path later.
pub(crate) fn inode(file: &File) -> io::Result<(u64, u64)> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Makes a path free for a Unix socket: removes the file of one on which no process listens any
/// more. Never blocks. `entry` is the path, whose directory stays the same from here on. The caller
/// holds the [lock](lock_directory_of) of the directory until it listens itself: to others, its
/// socket looks like one of a dead process until then.
///
/// Root could remove what belongs to others. So root removes only files of its own, and those of
/// `user`, for which the socket is. For other users, the permissions of the directory decide.
///
/// # Errors
///
/// `AddrInUse` if a process listens there, `AlreadyExists` for a file that is not a socket, and for
/// one of another user. All of these are left alone.
pub(crate) fn free_socket_path(
    entry: &DirectoryEntry,
    path: &Path,
    user: Option<u32>,
) -> io::Result<()> {
    let Some((found, file)) = entry.hold()? else {
        return Ok(());
    };
    if !found.is_socket {
        let text = "the path is a file that is not a socket; the file was not removed";
        return Err(Error::new(ErrorKind::AlreadyExists, text));
    }
    // Only a connect tells a socket in use from the file of a server that has died.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    let connected = file.connect(&probe, path);
    match connected.map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) if may_remove(found.owner, user) => entry.remove(&found),
        Err(ErrorKind::ConnectionRefused) => {
            let owner = found.owner;
            let text = format!(
                "no process listens on the socket, but its file belongs to user {owner}; the file \
                 was not removed"
            );
            Err(Error::new(ErrorKind::AlreadyExists, text))
        }
        Err(ErrorKind::NotFound) => Ok(()),
        // A full queue is EAGAIN. A datagram or seqpacket socket is EPROTOTYPE: it is in use too.
        Ok(()) | Err(_) => {
            let text = "another process listens on this socket";
            Err(Error::new(ErrorKind::AddrInUse, text))
        }
    }
}

fn may_remove(owner: u32, user: Option<u32>) -> bool {
    let own = super::process::effective_uid();
    own != 0 || owner == own || Some(owner) == user
}

/// A path, or other text of the system, from its bytes.
pub(crate) fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A directory that the path led to before it led to another one.
    #[test]
    fn a_socket_is_looked_at_and_removed_in_the_same_directory() {
        for is_live in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let [dir, moved, other] = ["dir", "moved", "other"].map(|name| root.path().join(name));
            fs::create_dir(&dir).unwrap();
            fs::create_dir(&other).unwrap();
            let path = dir.join("socket");
            let first = UnixListener::bind(&path).unwrap();
            let second = UnixListener::bind(other.join("socket")).unwrap();
            // One of them is dead.
            drop(if is_live { second } else { first });
            let entry = DirectoryEntry::open(&path).unwrap();
            fs::rename(&dir, &moved).unwrap();
            symlink(&other, &dir).unwrap();
            let freed = free_socket_path(&entry, &path, None);
            let error = freed.err().map(|error| error.kind());
            assert_eq!(error, is_live.then_some(ErrorKind::AddrInUse));
            assert_eq!(moved.join("socket").exists(), is_live);
            assert!(other.join("socket").exists());
        }
    }
}
