//! Other Unix systems: a file by its directory and name. Another file may take the name between two
//! calls.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Stat, chmodat, chownat, readlinkat, statat};
use socket2::{SockAddr, Socket};

pub(in crate::sys) struct NamedFile {
    directory: OwnedFd,
    name: OsString,
}

// A symbolic link is changed itself.
const FLAGS: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

impl NamedFile {
    pub(in crate::sys) fn open(directory: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let file = Self {
            directory: directory.try_clone()?,
            name: name.to_owned(),
        };
        file.stat().map(|_| file)
    }

    pub(in crate::sys) fn stat(&self) -> io::Result<Stat> {
        Ok(statat(&self.directory, &self.name, FLAGS)?)
    }

    pub(in crate::sys) fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode as _);
        Ok(chmodat(&self.directory, &self.name, mode, FLAGS)?)
    }

    pub(in crate::sys) fn set_group(&self, group: u32) -> io::Result<()> {
        let group = Some(Gid::from_raw(group));
        Ok(chownat(&self.directory, &self.name, None, group, FLAGS)?)
    }

    pub(in crate::sys) fn read_link(&self) -> io::Result<PathBuf> {
        let target = readlinkat(&self.directory, &self.name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    pub(in crate::sys) fn connect(&self, socket: &Socket, path: &Path) -> io::Result<()> {
        socket.connect(&SockAddr::unix(path)?)
    }
}
