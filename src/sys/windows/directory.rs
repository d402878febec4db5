//! Windows: names in a directory. Unix sockets and restarts, which need them, are not supported.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;

use super::no_unix_sockets_error;

#[derive(Debug)]
pub(crate) enum DirectoryEntry {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    pub(crate) id: (u64, u64),
    pub(crate) owner: u32,
    pub(crate) is_socket: bool,
}

impl DirectoryEntry {
    pub(crate) fn open(_path: &Path) -> io::Result<Self> {
        Err(no_unix_sockets_error())
    }

    pub(crate) fn find(&self) -> io::Result<Option<FoundFile>> {
        match *self {}
    }

    pub(crate) fn is(&self, _file: &FoundFile) -> bool {
        match *self {}
    }

    pub(crate) fn remove(&self, _file: &FoundFile) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_mode(&self, _file: &FoundFile, _mode: u32) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_group(&self, _file: &FoundFile, _group: u32) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn create_beside(&self, _name: &OsStr) -> io::Result<File> {
        match *self {}
    }

    pub(crate) fn rename_from(&self, _name: &OsStr) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn remove_beside(&self, _name: &OsStr) -> io::Result<()> {
        match *self {}
    }
}
