//! Windows: names in a directory that is held open, so that it can neither be renamed nor removed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};

use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_DISPOSITION_INFO, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_READ_ATTRIBUTES, FILE_SHARE_READ, FILE_SHARE_WRITE, FileDispositionInfo,
    SetFileInformationByHandle,
};

use super::handle::file_id;
use super::no_unix_sockets_error;

#[derive(Debug)]
pub(crate) struct DirectoryEntry {
    directory: PathBuf,
    name: OsString,
    /// While this is open, others can read and write the directory, but not remove or rename it.
    _held: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    pub(crate) id: (u64, u64),
    /// That of [`effective_uid`](super::process::effective_uid): the permissions decide here.
    pub(crate) owner: u32,
    pub(crate) is_socket: bool,
}

pub(super) fn parent_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Options to open the named object itself: a file, a directory or a link.
fn options(access: u32) -> OpenOptions {
    let mut options = File::options();
    options.access_mode(access);
    options.custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

impl DirectoryEntry {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        // Links on the way are followed here, and not again.
        let directory = fs::canonicalize(parent_of(path))?;
        let mut options = options(FILE_READ_ATTRIBUTES);
        let held = options
            .share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE)
            .open(&directory)?;
        match held.metadata()?.is_dir() {
            true => Ok(Self {
                directory,
                name,
                _held: held,
            }),
            false => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    fn hold(&self, access: u32) -> io::Result<Option<(FoundFile, File)>> {
        let file = match options(access).open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = FoundFile {
            id: file_id(&file)?,
            owner: super::process::effective_uid(),
            is_socket: false,
        };
        Ok(Some((found, file)))
    }

    pub(crate) fn find(&self) -> io::Result<Option<FoundFile>> {
        Ok(self.hold(FILE_READ_ATTRIBUTES)?.map(|(found, _)| found))
    }

    pub(crate) fn is(&self, file: &FoundFile) -> bool {
        let found = self.find();
        found.is_ok_and(|found| found.is_some_and(|found| found.id == file.id))
    }

    /// What is checked is what is removed. The name is free when the last handle is closed.
    #[allow(unsafe_code)]
    pub(crate) fn remove(&self, file: &FoundFile) -> io::Result<()> {
        let held = self.hold(DELETE | FILE_READ_ATTRIBUTES)?;
        let Some((_, held)) = held.filter(|(found, _)| found.id == file.id) else {
            return Ok(());
        };
        let removed = FILE_DISPOSITION_INFO { DeleteFile: true };
        // SAFETY: the file is open, and the call reads a live structure of this size.
        let result = unsafe {
            let (information, size) = ((&raw const removed).cast(), size_of_val(&removed) as u32);
            SetFileInformationByHandle(held.as_raw_handle(), FileDispositionInfo, information, size)
        };
        match result {
            0 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_mode(&self, _file: &FoundFile, _mode: u32) -> io::Result<()> {
        Err(no_unix_sockets_error())
    }

    pub(crate) fn set_group(&self, _file: &FoundFile, _group: u32) -> io::Result<()> {
        Err(no_unix_sockets_error())
    }

    pub(crate) fn create_beside(&self, name: &OsStr) -> io::Result<File> {
        let mut options = File::options();
        options
            .write(true)
            .create_new(true)
            .open(self.directory.join(name))
    }

    pub(crate) fn rename_from(&self, name: &OsStr) -> io::Result<()> {
        fs::rename(self.directory.join(name), self.path())
    }

    pub(crate) fn remove_beside(&self, name: &OsStr) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_removed_only_while_it_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let entry = DirectoryEntry::open(&path).unwrap();
        assert_eq!(entry.find().unwrap(), None);
        fs::write(&path, "old").unwrap();
        let old = entry.find().unwrap().unwrap();
        assert!(entry.is(&old));
        drop(entry.create_beside(OsStr::new("other")).unwrap());
        assert!(entry.create_beside(OsStr::new("other")).is_err());
        entry.rename_from(OsStr::new("other")).unwrap();
        assert!(!entry.is(&old));
        entry.remove(&old).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let new = entry.find().unwrap().unwrap();
        entry.remove(&new).unwrap();
        assert_eq!(entry.find().unwrap(), None);
        assert!(!path.exists());
    }
}
