//! Unix: names in a directory that is held open.
//!
//! A user who may write to a directory on the path to a file can change where the path leads at any
//! time. So this module changes or removes a file that was found by its path only in the directory
//! where the file was found, and only if the name still belongs to the same file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::fs::{openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::sys::native::calls::OPEN_DIRECTORY;
use crate::sys::native::named_file::NamedFile;

/// A name in a directory. The directory stays the same, even if the path to it leads elsewhere.
#[derive(Debug)]
pub(crate) struct DirectoryEntry {
    directory: OwnedFd,
    name: OsString,
}

/// A file as it was found. A symbolic link counts as a file itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// The device and inode, which tell the file from another file that takes the name later.
    pub(crate) id: (u64, u64),
    /// The user that the file belongs to.
    pub(crate) owner: u32,
    pub(crate) is_socket: bool,
    /// The file has no other name.
    has_one_name: bool,
}

impl FoundFile {
    // Other systems have other types for these numbers.
    #[allow(clippy::unnecessary_cast)]
    fn from_stat(found: &Stat) -> Self {
        Self {
            id: (found.st_dev as u64, found.st_ino as u64),
            owner: found.st_uid,
            is_socket: FileType::from_raw_mode(found.st_mode) == FileType::Socket,
            has_one_name: found.st_nlink == 1,
        }
    }
}

/// The directory that a path is in.
pub(super) fn parent_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

impl DirectoryEntry {
    /// Opens the directory that the path is in. The file need not exist.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        let flags = OPEN_DIRECTORY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, parent_of(path), flags, Mode::empty())?;
        Ok(Self { directory, name })
    }

    /// The file that has the name now.
    pub(crate) fn find(&self) -> io::Result<Option<FoundFile>> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FoundFile::from_stat(&found))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether this file has the name.
    pub(crate) fn is(&self, file: &FoundFile) -> bool {
        let found = self.find();
        found.is_ok_and(|found| found.is_some_and(|found| found.id == file.id))
    }

    /// Removes the name if this file still has it.
    pub(crate) fn remove(&self, file: &FoundFile) -> io::Result<()> {
        match self.is(file) {
            true => Ok(unlinkat(&self.directory, &self.name, AtFlags::empty())?),
            false => Ok(()),
        }
    }

    /// Takes the file that has the name now. `None` if there is none.
    pub(super) fn hold(&self) -> io::Result<Option<(FoundFile, NamedFile)>> {
        match NamedFile::open(&self.directory, &self.name) {
            Ok(file) => Ok(Some((FoundFile::from_stat(&file.stat()?), file))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the permissions of a file that this process has just made (chmod(2)). Other users may be
    /// able to replace the file by one that is not theirs, so that a file of another owner, and a
    /// file with other names, is refused.
    pub(crate) fn set_mode(&self, file: &FoundFile, mode: u32) -> io::Result<()> {
        self.hold_own(file)?.set_mode(mode)
    }

    /// Sets the group of a file that this process has just made (chown(2)), as
    /// [`set_mode`](Self::set_mode).
    pub(crate) fn set_group(&self, file: &FoundFile, group: u32) -> io::Result<()> {
        self.hold_own(file)?.set_group(group)
    }

    /// Takes a file that this process has made. What is checked here is what is changed then.
    fn hold_own(&self, file: &FoundFile) -> io::Result<NamedFile> {
        let is_own = |(found, _): &(FoundFile, _)| {
            found == file && found.owner == super::process::effective_uid() && found.has_one_name
        };
        match self.hold()?.filter(is_own) {
            Some((_, held)) => Ok(held),
            None => {
                let text = "another file has taken the place of the new one";
                Err(Error::new(ErrorKind::PermissionDenied, text))
            }
        }
    }

    /// Makes a file under another name of the same directory, for this process to write and for
    /// everybody to read. Nothing is overwritten, and no link is followed.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, whatever has the name.
    pub(crate) fn create_beside(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        Ok(openat(&self.directory, name, flags, mode)?.into())
    }

    /// Gives this name to the file that has the other name, in place of the file that has this one.
    pub(crate) fn rename_from(&self, name: &OsStr) -> io::Result<()> {
        Ok(renameat(
            &self.directory,
            name,
            &self.directory,
            &self.name,
        )?)
    }

    pub(crate) fn remove_beside(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.directory, name, AtFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_is_changed_and_removed_where_it_was_found() {
        let root = tempfile::tempdir().unwrap();
        let (dir, other) = (root.path().join("dir"), root.path().join("other"));
        for dir in [&dir, &other] {
            fs::create_dir(dir).unwrap();
            drop(UnixListener::bind(dir.join("socket")).unwrap());
        }
        let entry = DirectoryEntry::open(&dir.join("socket")).unwrap();
        let found = entry.find().unwrap().unwrap();
        assert!(found.is_socket);
        // The path leads elsewhere from now on.
        fs::rename(&dir, root.path().join("moved")).unwrap();
        symlink(&other, &dir).unwrap();
        entry.set_mode(&found, 0o612).unwrap();
        let moved = root.path().join("moved/socket");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&moved), 0o612);
        assert_ne!(mode(&other.join("socket")), 0o612);
        entry.remove(&found).unwrap();
        assert!(!moved.exists() && other.join("socket").exists());
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn what_is_checked_is_what_is_changed() {
        use std::os::unix::fs::MetadataExt;
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
        use std::thread;

        use rustix::fs::{RenameFlags, renameat_with};

        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("socket"), dir.path().join("target"));
        let _listener = UnixListener::bind(&path).unwrap();
        fs::write(&target, "").unwrap();
        // A user with one group cannot give the file another one.
        let own = fs::metadata(&path).unwrap().gid();
        let group = if crate::sys::process::effective_uid() == 0 {
            own + 1
        } else {
            own
        };
        let entry = DirectoryEntry::open(&path).unwrap();
        let found = entry.find().unwrap().unwrap();
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Another file of this user has the name again and again.
            let swapper = scope.spawn(|| {
                while !is_done.load(SeqCst) {
                    renameat_with(CWD, &path, CWD, &target, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..20_000 {
                let _ = entry.set_group(&found, group);
                let _ = entry.set_mode(&found, 0o666);
            }
            is_done.store(true, SeqCst);
            swapper.join().unwrap();
        });
        let [one, other] = [&path, &target].map(|path| fs::metadata(path).unwrap());
        let file = if one.is_file() { one } else { other };
        assert_eq!(file.gid(), own);
        assert_ne!(file.mode() & 0o777, 0o666);
    }

    #[test]
    fn a_file_that_took_the_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("socket"), dir.path().join("target"));
        let _listener = UnixListener::bind(&path).unwrap();
        fs::write(&target, "").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        let entry = DirectoryEntry::open(&path).unwrap();
        let found = entry.find().unwrap().unwrap();
        // A hard link counts as another file too: it may be that of any file of this user.
        fs::hard_link(&path, dir.path().join("link")).unwrap();
        let linked = entry.find().unwrap().unwrap();
        assert!(entry.set_mode(&linked, 0o666).is_err());
        fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        assert!(entry.set_mode(&found, 0o666).is_err());
        assert!(entry.set_group(&found, 0).is_err());
        entry.remove(&found).unwrap();
        assert!(path.is_symlink());
        assert_eq!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(entry.create_beside("socket".as_ref()).is_err());
    }
}
