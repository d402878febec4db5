//! Release directories: `current -> releases/N`, with the program in each release.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::generations::DIR;

/// A directory of releases. Paths in it are without symbolic links but `current`.
pub(crate) struct Releases(TempDir);

impl Releases {
    pub(crate) fn new() -> Self {
        let releases = Self(TempDir::new().unwrap());
        releases.install(1);
        releases
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn release(&self, number: u64) -> PathBuf {
        self.path("releases").join(number.to_string())
    }

    /// Installs a release, and deletes those before.
    pub(crate) fn install(&self, number: u64) {
        let release = self.release(number);
        fs::create_dir_all(&release).unwrap();
        symlink(std::env::current_exe().unwrap(), release.join("server")).unwrap();
        let link = self.path("link");
        symlink(&release, &link).unwrap();
        fs::rename(&link, self.path("current")).unwrap();
        for older in 1..number {
            let _ = fs::remove_dir_all(self.release(older));
        }
    }

    /// Makes a command that runs a program, as a shell in the current release would.
    pub(crate) fn prepare(&self, command: &mut Command, program: impl AsRef<OsStr>) {
        let dir: Vec<_> = command
            .get_envs()
            .filter(|(name, _)| *name == DIR)
            .collect();
        let dir = Path::new(dir[0].1.unwrap()).to_owned();
        let current = self.path("current");
        *command = Command::new(program);
        command
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env("PWD", &current)
            .current_dir(current)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
    }
}
