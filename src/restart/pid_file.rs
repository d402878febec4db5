//! The pid file: which process serves, for those who want to send it a signal.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::sys;

/// A file that holds this process's id. Dropping it removes the file, unless it is another process's by now.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// What tells it from another one that takes its place.
    id: Option<(u64, u64)>,
    /// Locked as long as it is open.
    _file: File,
}

impl PidFile {
    /// Writes it, if no other process that lives has.
    pub(crate) fn claim(path: &Path) -> io::Result<Self> {
        match File::open(path) {
            // What a dead process has left is not locked. The lock lasts until the new file has taken its place.
            Ok(found) if !sys::file::try_lock(&found)? => {
                let pid = fs::read_to_string(path).unwrap_or_default();
                let text = format!("{} is that of process {}", path.display(), pid.trim());
                Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
            }
            Ok(_found) => Self::replace(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::replace(path),
            Err(error) => Err(error),
        }
    }

    /// Writes it in the place of the predecessor's.
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
        match written {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                id: sys::file::inode(path),
                _file: file,
            }),
            Err(error) => {
                // It may not even be there.
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // It is a successor's by now, or this process's next one.
        if self.id.is_some() && self.id == sys::file::inode(&self.path) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}
