//! The file of a Unix socket, which is removed with its listener.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::log;
use crate::sys::{self, DirectoryEntry, FoundFile, IfLocked};

/// The file of a Unix socket.
#[derive(Debug)]
pub(super) struct UnixPath {
    path: PathBuf,
    /// `None` if there was no socket at the path.
    file: Option<(DirectoryEntry, FoundFile)>,
    /// The file is removed on drop: this process has made it, or has taken it over.
    is_own: AtomicBool,
}

impl UnixPath {
    pub(super) fn of(path: &Path, is_own: bool) -> Self {
        match DirectoryEntry::open(path) {
            Ok(entry) => Self::in_directory(path, entry, is_own),
            Err(_) => Self {
                path: path.to_owned(),
                file: None,
                is_own: AtomicBool::new(is_own),
            },
        }
    }

    pub(super) fn in_directory(path: &Path, entry: DirectoryEntry, is_own: bool) -> Self {
        let found = entry.find().ok().flatten();
        let socket = found.filter(|found| found.is_socket);
        Self {
            path: path.to_owned(),
            file: socket.map(|socket| (entry, socket)),
            is_own: AtomicBool::new(is_own),
        }
    }

    /// The path, if the file is removed on drop.
    pub(super) fn removed(&self) -> Option<&Path> {
        self.is_own.load(SeqCst).then_some(&self.path)
    }

    pub(super) fn set_removes(&self, removes: bool) {
        self.is_own.store(removes, SeqCst);
    }

    pub(super) fn file(&self) -> Option<&FoundFile> {
        self.file.as_ref().map(|(_, file)| file)
    }

    /// Forgets the file unless it is the socket's.
    pub(super) fn check(&mut self, is_own: impl FnOnce(&FoundFile) -> bool) {
        self.file.take_if(|(_, file)| !is_own(file));
    }

    /// Whether the file is still at its path, whose directory may be another one by now.
    pub(super) fn is_there(&self) -> bool {
        let there = DirectoryEntry::open(&self.path).ok();
        let file = self.file();
        file.is_some_and(|file| there.is_some_and(|there| there.is(file)))
    }

    pub(super) fn set_access(&self, group: Option<u32>, mode: u32) -> io::Result<()> {
        let (entry, file) = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // The mode comes last: until then, the file is for its owner only.
        group.map_or(Ok(()), |group| entry.set_group(file, group))?;
        entry.set_mode(file, mode)
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        let is_own = self.is_own.load(SeqCst);
        let Some((entry, file)) = self.file.as_ref().filter(|_| is_own) else {
            return;
        };
        // A server that listens is not taken for a dead one, whoever has the lock.
        let _lock = sys::file::lock_directory_of(&self.path, IfLocked::Ignore);
        // The path may be the file of another listener now, which is left alone.
        if let Err(error) = entry.remove(file) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
