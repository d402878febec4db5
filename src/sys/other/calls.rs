//! Other Unix systems: what stands in for single calls of Linux.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::time::ClockId;

use crate::sys::{Identity, ThreadUsage};

/// Here poll(2) does not report that the peer has ended its side.
pub(in crate::sys) const END_OF_STREAM: PollFlags = PollFlags::empty();

pub(in crate::sys) const COARSE_CLOCK: ClockId = ClockId::Monotonic;

pub(in crate::sys) fn create_unnamed_file() -> io::Result<File> {
    // Other threads, and processes with this id in another pid namespace, make such files too.
    let number = RandomState::new().build_hasher().finish();
    let path = std::env::temp_dir().join(format!("handover-{number:016x}"));
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600);
    let file = file.open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Not known here.
pub(in crate::sys) fn is_from_kernel(_code: libc::c_int) -> bool {
    false
}

pub(in crate::sys) const OPEN_DIRECTORY: OFlags = OFlags::RDONLY;

pub(in crate::sys) fn request_signal_at_parent_end(_signal: libc::c_int) {}

pub(in crate::sys) fn become_identity(_identity: &Identity) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::sys) fn close_range(_first: RawFd, _in_exec: bool) -> bool {
    false
}

/// Not known here.
pub(crate) fn thread_usage() -> Option<ThreadUsage> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_make_unnamed_files_at_the_same_time() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| drop(create_unnamed_file().unwrap())));
            }
        });
    }
}
