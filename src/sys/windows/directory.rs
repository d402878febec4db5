//! Windows: names in a directory that is held open, so that it can neither be renamed nor removed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::ERROR_SHARING_VIOLATION;
use windows_sys::Win32::Storage::FileSystem::{
    DELETE, FILE_DISPOSITION_FLAG_DELETE, FILE_DISPOSITION_FLAG_POSIX_SEMANTICS,
    FILE_DISPOSITION_INFO, FILE_DISPOSITION_INFO_EX, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_OPEN_REPARSE_POINT, FILE_INFO_BY_HANDLE_CLASS, FILE_LIST_DIRECTORY,
    FILE_READ_ATTRIBUTES, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_TRAVERSE, FileDispositionInfo,
    FileDispositionInfoEx, SetFileInformationByHandle,
};

use super::handle::{check, file_id};
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

/// How long an open is tried again while another program, such as a virus scanner, has the file or the
/// directory open and does not share it.
const SHARING_LIMIT: Duration = Duration::from_millis(200);
const SHARING_PAUSE: Duration = Duration::from_millis(10);

fn open_when_shared(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let end = Instant::now() + SHARING_LIMIT;
    loop {
        let opened = options.open(path);
        let code = opened.as_ref().err().and_then(io::Error::raw_os_error);
        if code != Some(ERROR_SHARING_VIOLATION as i32) || Instant::now() >= end {
            return opened;
        }
        thread::sleep(SHARING_PAUSE);
    }
}

impl DirectoryEntry {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        // Links on the way are followed here, and not again.
        let directory = fs::canonicalize(parent_of(path))?;
        // Only a handle with a right to read, write, traverse or delete keeps others from a rename or
        // a removal. A user may have the right to traverse a directory but not to list it, or the
        // reverse.
        let hold = |right| {
            let mut options = options(right | FILE_READ_ATTRIBUTES);
            options.share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE);
            open_when_shared(&options, &directory)
        };
        let held = hold(FILE_TRAVERSE).or_else(|error| match error.kind() {
            ErrorKind::PermissionDenied => hold(FILE_LIST_DIRECTORY),
            _ => Err(error),
        })?;
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
        let file = match open_when_shared(&options(access), &self.path()) {
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

    /// What is checked is what is removed. The name is free at once, also while another process has the
    /// file open. Where the file system cannot do so (FAT), the name is free when the last handle is
    /// closed.
    ///
    /// # Errors
    ///
    /// Another process has the file open, and does not share its removal (FILE_SHARE_DELETE).
    pub(crate) fn remove(&self, file: &FoundFile) -> io::Result<()> {
        let held = self.hold(DELETE | FILE_READ_ATTRIBUTES)?;
        let Some((_, held)) = held.filter(|(found, _)| found.id == file.id) else {
            return Ok(());
        };
        let at_once = FILE_DISPOSITION_INFO_EX {
            Flags: FILE_DISPOSITION_FLAG_DELETE | FILE_DISPOSITION_FLAG_POSIX_SEMANTICS,
        };
        let when_closed = FILE_DISPOSITION_INFO { DeleteFile: true };
        set_information(&held, FileDispositionInfoEx, &at_once)
            .or_else(|_| set_information(&held, FileDispositionInfo, &when_closed))
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

/// `information` is of the type that belongs to the class.
#[allow(unsafe_code)]
fn set_information<T>(
    file: &File,
    class: FILE_INFO_BY_HANDLE_CLASS,
    information: &T,
) -> io::Result<()> {
    // SAFETY: the file is open, and the call reads a live structure of this size.
    check(unsafe {
        let (place, size) = (ptr::from_ref(information).cast(), size_of::<T>() as u32);
        SetFileInformationByHandle(file.as_raw_handle(), class, place, size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_where_it_is_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let (held, other) = (dir.path().join("held"), dir.path().join("other"));
        fs::create_dir(&held).unwrap();
        let entry = DirectoryEntry::open(&held.join("file")).unwrap();
        fs::rename(&held, &other).unwrap_err();
        fs::remove_dir(&held).unwrap_err();
        fs::write(held.join("file"), "").unwrap();
        let found = entry.find().unwrap().unwrap();
        entry.remove(&found).unwrap();
        drop(entry);
        fs::rename(&held, &other).unwrap();
        fs::remove_dir(&other).unwrap();
    }

    #[test]
    fn the_name_of_a_removed_file_is_free_while_the_file_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let entry = DirectoryEntry::open(&path).unwrap();
        fs::write(&path, "old").unwrap();
        let reader = File::open(&path).unwrap();
        let found = entry.find().unwrap().unwrap();
        entry.remove(&found).unwrap();
        assert_eq!(entry.find().unwrap(), None);
        drop(entry.create_beside(OsStr::new("file")).unwrap());
        let new = entry.find().unwrap().unwrap();
        assert_ne!(new.id, found.id);
        assert_eq!(io::read_to_string(&reader).unwrap(), "old");
    }

    #[test]
    fn a_file_that_another_program_does_not_share_for_a_moment_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let entry = DirectoryEntry::open(&path).unwrap();
        let found = entry.find().unwrap().unwrap();
        let mut options = File::options();
        let keep = options.read(true).share_mode(0).open(&path).unwrap();
        let error = entry.remove(&found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ERROR_SHARING_VIOLATION as i32));
        let remover = thread::spawn(move || {
            // As often as a busy machine needs to try while the file is shared.
            while entry.remove(&found).is_err() {}
            entry.find().unwrap()
        });
        drop(keep);
        assert_eq!(remover.join().unwrap(), None);
    }

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
