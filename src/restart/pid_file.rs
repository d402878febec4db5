//! The pid file: the id of the serving process, for programs that send it signals.
//!
//! The process that the file names holds a lock on it. A new file is written under another name,
//! locked, and renamed, so that there is no moment without a locked file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::log;
use crate::sys;

/// A file that holds this process's id. Its drop removes the file, unless another file is in its
/// place.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// Identifies the file that this process wrote.
    id: Option<(u64, u64)>,
    /// The lock lasts until this is closed.
    _file: File,
}

impl PidFile {
    /// Writes the file.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if a living process holds it, and errors of the system.
    pub(crate) fn claim(path: &Path) -> io::Result<Self> {
        // Another process must not replace the file between the check and the rename.
        let _lock = sys::file::lock_directory_of(path);
        match File::open(path) {
            // A dead process holds no lock. Our lock on its file lasts until the new file is there.
            Ok(found) if !sys::file::try_lock(&found)? => {
                let pid = fs::read_to_string(path).unwrap_or_default();
                let text = format!(
                    "{} belongs to process {}, which is running",
                    path.display(),
                    pid.trim()
                );
                Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _found => Self::replace(path),
        }
    }

    /// Writes the file in place of the predecessor's.
    pub(crate) fn replace(path: &Path) -> io::Result<Self> {
        let mut temporary = path.to_owned().into_os_string();
        temporary.push(format!(".{}", process::id()));
        let temporary = PathBuf::from(temporary);
        let written = File::create(&temporary).and_then(|mut file| {
            sys::file::try_lock(&file)?;
            writeln!(file, "{}", process::id())?;
            fs::rename(&temporary, path)?;
            Ok(file)
        });
        // After an error, the temporary file may not exist.
        let file = written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        Ok(Self {
            path: path.to_owned(),
            id: sys::file::inode(path),
            _file: file,
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _lock = sys::file::lock_directory_of(&self.path);
        // A successor may have replaced the file, or this process itself.
        if self.id.is_some() && self.id == sys::file::inode(&self.path) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}
