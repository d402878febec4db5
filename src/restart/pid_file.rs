//! The pid file: the id of the serving process, for programs that send it signals.
//!
//! The process that the file names holds a lock on it. A new file is written under another name,
//! locked, and renamed, so that there is no moment without a locked file, and the old file stays if
//! the new one cannot be written.
//!
//! Other users may be able to write to the directory, such as /tmp. So no link is followed, nothing
//! is overwritten, and an existing file is opened without waiting.

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::log;
use crate::sys::{self, DirectoryEntry, FoundFile, IfLocked};

/// A file that holds this process's id. Its drop removes the file, unless another file is in its
/// place.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    entry: DirectoryEntry,
    /// The file that this process wrote.
    found: Option<FoundFile>,
    /// The lock lasts until this is closed.
    _file: File,
}

impl PidFile {
    /// Writes the file.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if a living process holds it, `InvalidInput` if there is something other than
    /// a regular file, and errors of the system.
    pub(crate) fn claim(path: &Path) -> io::Result<Self> {
        // Another process must not replace the file between the check and the rename.
        let _lock = sys::file::lock_directory_of(path, IfLocked::Wait);
        match open(path)? {
            // A dead process holds no lock. Our lock on its file lasts until the new file is there.
            Some(found) if !sys::file::try_lock(&found)? => {
                let owner = read_pid(&found).map_or("another process".to_owned(), |pid| {
                    format!("process {pid}, which is running")
                });
                let text = format!("{} belongs to {owner}", path.display());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
            }
            _found => write(path),
        }
    }

    /// Takes the file that this process has written before it executed another program. If that
    /// file is gone, writes a new one.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn renew(path: &Path) -> io::Result<Self> {
        Self::resume(path)?.map_or_else(|| Self::replace(path), Ok)
    }

    /// Takes the file that this process has written before it executed another program. `None` if
    /// that file is gone, or is held already.
    pub(crate) fn resume(path: &Path) -> io::Result<Option<Self>> {
        let own = open(path)?.filter(|file| read_pid(file) == Some(process::id()));
        let Some(file) = own else {
            return Ok(None);
        };
        let entry = DirectoryEntry::open(path)?;
        match sys::file::try_lock(&file)? && is_own(&entry, &file)? {
            true => PidFile::hold(path, entry, file).map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn hold(path: &Path, entry: DirectoryEntry, file: File) -> io::Result<Self> {
        let id = sys::file::inode(&file)?;
        let found = entry.find()?.filter(|found| found.id == id);
        Ok(Self {
            path: path.to_owned(),
            entry,
            found,
            _file: file,
        })
    }

    /// Writes the file in place of the predecessor's.
    ///
    /// # Errors
    ///
    /// As [`claim`](Self::claim), but a process that holds the file is no error.
    pub(crate) fn replace(path: &Path) -> io::Result<Self> {
        // The predecessor removes its file under this lock.
        let _lock = sys::file::lock_directory_of(path, IfLocked::Ignore);
        match open(path) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
            _ => write(path),
        }
    }
}

/// The file that is there, if there is one.
fn open(path: &Path) -> io::Result<Option<File>> {
    match sys::file::open_regular(path, false) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let text = format!("{}: {error}", path.display());
            Err(io::Error::new(error.kind(), text))
        }
    }
}

/// The process that a pid file names. Whoever made the file chose what is in it.
fn read_pid(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write(path: &Path) -> io::Result<PidFile> {
    let entry = DirectoryEntry::open(path)?;
    // A name that others cannot foresee: a file that is there already is an error.
    let number = RandomState::new().build_hasher().finish();
    let mut temporary = path.file_name().map(OsString::from).unwrap_or_default();
    temporary.push(format!(".{}.{number:016x}", process::id()));
    let written = entry.create_beside(&temporary).and_then(|mut file| {
        sys::file::try_lock(&file)?;
        writeln!(file, "{}", process::id())?;
        entry.rename_from(&temporary)?;
        Ok(file)
    });
    // After an error, the temporary file may not exist.
    let file = written.inspect_err(|_| drop(entry.remove_beside(&temporary)))?;
    PidFile::hold(path, entry, file)
}

/// Whether the open file has the name, and belongs to the user of this process.
fn is_own(entry: &DirectoryEntry, file: &File) -> io::Result<bool> {
    let id = sys::file::inode(file)?;
    let is_own = |found: FoundFile| found.id == id && found.owner == sys::process::effective_uid();
    Ok(entry.find()?.is_some_and(is_own))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _lock = sys::file::lock_directory_of(&self.path, IfLocked::Ignore);
        // A successor may have replaced the file, or this process itself.
        if let Some(found) = &self.found {
            if let Err(error) = self.entry.remove(found) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}
