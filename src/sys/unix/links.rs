//! Unix: symbolic links that another user may have made.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::sys::native::calls::OPEN_DIRECTORY;
use crate::sys::native::named_file::NamedFile;

/// More links than that are a cycle, as for the kernel (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Opens a regular file for reading, as [`open_regular`](super::file::open_regular), with the
/// privileges of this process and for `user`, who may have less. So a symbolic link of this user
/// leads only to a file of this user. Each name is looked up in a directory that is held open, so
/// that what is checked is what is opened.
///
/// # Errors
///
/// `PermissionDenied` if a link of the user leads to a file of another user, and as `open_regular`.
pub(crate) fn open_regular_for(path: &Path, user: u32) -> io::Result<File> {
    let mut walk = Walk::new(path)?;
    let mut links = 0;
    let mut by_user = false;
    while let Some(name) = walk.names.pop() {
        let entry = NamedFile::open(&walk.directory, &name)?;
        let found = entry.stat()?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Error::other("too many symbolic links"));
                }
                by_user |= found.st_uid == user;
                walk.follow(&entry.read_link()?)?;
            }
            FileType::Directory => walk.directory = open_directory(&walk.directory, &name)?,
            _ if !walk.names.is_empty() => return Err(ErrorKind::NotADirectory.into()),
            _ => return walk.open_file(&name, by_user.then_some(user)),
        }
    }
    Err(not_regular())
}

/// How far a path was followed.
struct Walk {
    directory: OwnedFd,
    /// What is left of the path, in reverse order.
    names: Vec<OsString>,
}

impl Walk {
    fn new(path: &Path) -> io::Result<Self> {
        let mut walk = Self {
            directory: open_directory(CWD, Path::new("."))?,
            names: Vec::new(),
        };
        walk.follow(path)?;
        Ok(walk)
    }

    /// Goes on with a path, from the present directory, before the names that are left.
    fn follow(&mut self, path: &Path) -> io::Result<()> {
        if path.is_absolute() {
            self.directory = open_directory(CWD, Path::new("/"))?;
        }
        let names = path.components().filter_map(|component| match component {
            Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
            _ => None,
        });
        self.names
            .extend(names.collect::<Vec<_>>().into_iter().rev());
        Ok(())
    }

    /// Opens the file at the end. `owner`: the user that it has to belong to.
    fn open_file(&self, name: &OsString, owner: Option<u32>) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = openat(
            &self.directory,
            name,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = File::from(file.map_err(|error| match error {
            // What has no reader or writer, such as a socket.
            Errno::NXIO => not_regular(),
            error => error.into(),
        })?);
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(not_regular());
        }
        if owner.is_some_and(|owner| owner != found.uid()) {
            let text = "a symbolic link of the user leads to a file of another user";
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        Ok(file)
    }
}

pub(super) fn not_regular() -> Error {
    Error::new(ErrorKind::InvalidInput, "not a regular file")
}

fn open_directory(parent: impl AsFd, name: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OPEN_DIRECTORY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name.as_ref(), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    #[test]
    fn a_path_leads_where_the_kernel_says() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("a")).unwrap();
        fs::write(root.join("a/file"), "text").unwrap();
        let absolute = root.join("a/file");
        for (link, target) in [
            ("to-dir", Path::new("a")),
            ("to-file", Path::new("./to-dir//file")),
            ("absolute", &absolute),
            ("a/up", Path::new("../to-file")),
            ("cycle", Path::new("cycle")),
            ("dangling", Path::new("a/none")),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for path in [
            "a/file",
            "to-dir/file",
            "to-file",
            "absolute",
            "a/up",
            "to-dir/../a/./file",
            "a",
            "to-dir",
            "cycle",
            "dangling",
            "a/file/x",
            "none/file",
        ] {
            let path = root.join(path);
            let mut text = String::new();
            let opened = open_regular_for(&path, u32::MAX);
            let read = opened.and_then(|mut file| file.read_to_string(&mut text));
            assert_eq!(
                read.ok(),
                fs::read(&path).ok().map(|text| text.len()),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_link_of_the_user_leads_to_files_of_the_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("file"), "").unwrap();
        symlink("file", root.join("link")).unwrap();
        symlink("link", root.join("second")).unwrap();
        symlink(root, root.join("dir")).unwrap();
        let own = fs::metadata(root).unwrap().uid();
        let is_allowed = |path: &str, user| match open_regular_for(&root.join(path), user) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{path}");
                false
            }
        };
        for path in ["file", "link", "second", "dir/file"] {
            assert!(is_allowed(path, own) && is_allowed(path, own + 1), "{path}");
        }
        if own != 0 {
            return;
        }
        let user = 65534;
        for link in ["link", "dir"] {
            lchown(root.join(link), Some(user), None).unwrap();
        }
        assert!(is_allowed("file", user));
        for path in ["link", "second", "dir/file"] {
            assert!(
                !is_allowed(path, user) && is_allowed(path, user - 1),
                "{path}"
            );
        }
        lchown(root.join("file"), Some(user), None).unwrap();
        for path in ["link", "second", "dir/file"] {
            assert!(is_allowed(path, user), "{path}");
        }
    }
}
