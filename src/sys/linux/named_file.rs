//! Linux: a file that was found by its name, and what is done to this file and no other.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, chmod, chownat, fstat, openat, readlinkat};
use rustix::io::Errno;
use socket2::{SockAddr, Socket};

/// A file that is held without the right to read or write it (O_PATH in open(2)). It stays the same
/// when another file takes its name.
pub(in crate::sys) struct NamedFile(OwnedFd);

impl NamedFile {
    /// Takes what has the name. A symbolic link is taken itself.
    pub(in crate::sys) fn open(directory: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(openat(directory, name, flags, Mode::empty())?))
    }

    pub(in crate::sys) fn stat(&self) -> io::Result<Stat> {
        Ok(fstat(&self.0)?)
    }

    /// chmod(2). fchmod(2) refuses such a descriptor, and a name may have been taken by another file.
    /// Linux before 6.6 needs /proc for this.
    pub(in crate::sys) fn set_mode(&self, mode: u32) -> io::Result<()> {
        match chmod(self.proc_path(), Mode::from_raw_mode(mode)) {
            Err(Errno::NOENT) => self.set_mode_without_proc(mode),
            result => Ok(result?),
        }
    }

    #[allow(unsafe_code)]
    fn set_mode_without_proc(&self, mode: u32) -> io::Result<()> {
        // Its number is the same on all architectures that std supports; libc does not name it on all.
        const FCHMODAT2: libc::c_long = 452;
        let (fd, flags) = (self.0.as_raw_fd(), libc::AT_EMPTY_PATH);
        // SAFETY: the descriptor is open, and the path is a C string that outlives the call.
        let result = unsafe { libc::syscall(FCHMODAT2, fd, c"".as_ptr(), mode, flags) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        let text = format!("cannot set the mode, and /proc is not mounted: {error}");
        Err(io::Error::new(error.kind(), text))
    }

    /// chown(2).
    pub(in crate::sys) fn set_group(&self, group: u32) -> io::Result<()> {
        let group = Some(Gid::from_raw(group));
        Ok(chownat(&self.0, "", None, group, AtFlags::EMPTY_PATH)?)
    }

    /// Where this symbolic link leads (readlink(2)).
    pub(in crate::sys) fn read_link(&self) -> io::Result<PathBuf> {
        let target = readlinkat(&self.0, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// Connects to this Unix socket. `path` leads there if nobody has changed it since, and is used
    /// where /proc is not mounted.
    pub(in crate::sys) fn connect(&self, socket: &Socket, path: &Path) -> io::Result<()> {
        match socket.connect(&SockAddr::unix(self.proc_path())?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                socket.connect(&SockAddr::unix(path)?)
            }
            result => result,
        }
    }

    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
