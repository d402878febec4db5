//! Other Unix systems: what stands in for single calls of Linux.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::net::SendFlags;
use rustix::time::ClockId;

use crate::sys::{Identity, ThreadUsage};

/// This flag is not used here.
pub(in crate::sys) const SEND_MORE: SendFlags = SendFlags::empty();

/// What poll(2) has to be asked for to report that the peer has ended its side, where it can.
/// On Apple's systems, poll(2) does not report the end of both sides either, unless asked to.
pub(in crate::sys) const END_OF_STREAM: PollFlags = {
    #[cfg(target_vendor = "apple")]
    let wanted = PollFlags::HUP;
    #[cfg(target_os = "freebsd")]
    let wanted = PollFlags::RDHUP;
    #[cfg(not(any(target_vendor = "apple", target_os = "freebsd")))]
    let wanted = PollFlags::empty();
    wanted
};

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

/// A pipe that children do not inherit. On Apple's systems, a program that another thread starts at
/// the same moment may.
pub(in crate::sys) fn create_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    #[cfg(target_vendor = "apple")]
    {
        let pipe = rustix::pipe::pipe()?;
        for end in [&pipe.0, &pipe.1] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(pipe)
    }
    #[cfg(not(target_vendor = "apple"))]
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// The most descriptors that a process may have open, whatever its limit says. Apple's kernel
/// refuses a limit of "unlimited", or ignores what is above this number.
pub(in crate::sys) fn most_descriptors() -> Option<u64> {
    #[cfg(target_vendor = "apple")]
    {
        let mut most: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>();
        // SAFETY: the name ends with null, and the call writes at most `size` bytes to a live
        // number.
        #[allow(unsafe_code)]
        let result = unsafe {
            let (name, value) = (c"kern.maxfilesperproc".as_ptr(), (&raw mut most).cast());
            libc::sysctlbyname(name, value, &raw mut size, std::ptr::null_mut(), 0)
        };
        (result == 0).then_some(u64::try_from(most).ok()?)
    }
    #[cfg(not(target_vendor = "apple"))]
    None
}

/// Not known here.
pub(in crate::sys) fn is_from_kernel(_code: libc::c_int) -> bool {
    false
}

pub(in crate::sys) const OPEN_DIRECTORY: OFlags = OFlags::RDONLY;

/// Makes the kernel send this process a signal when its parent ends (procctl(2)), where it can.
#[allow(unsafe_code)]
pub(in crate::sys) fn request_signal_at_parent_end(_signal: libc::c_int) {
    #[cfg(target_os = "freebsd")]
    // SAFETY: 0 is this process, and the call reads a live number.
    unsafe {
        let mut signal = _signal;
        let signal = (&raw mut signal).cast();
        libc::procctl(libc::P_PID, 0, libc::PROC_PDEATHSIG_CTL, signal);
    }
}

pub(in crate::sys) fn become_identity(_identity: &Identity) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Closes every descriptor from `first` on: at once, or in an exec. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn close_range(first: RawFd, in_exec: bool) -> bool {
    #[cfg(target_os = "freebsd")]
    {
        let flags = if in_exec {
            libc::CLOSE_RANGE_CLOEXEC
        } else {
            0
        };
        // SAFETY: as below. Versions before 14 do not know the flag.
        let result = unsafe { libc::close_range(first as _, libc::c_uint::MAX, flags as _) };
        if result == 0 {
            return true;
        }
    }
    // SAFETY: the calls take numbers. The owners of these descriptors are in another process, of
    // which this process is a copy that uses none of them.
    unsafe {
        for number in first..libc::getdtablesize().clamp(1024, 1 << 20) {
            match in_exec {
                true => libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC),
                false => libc::close(number),
            };
        }
    }
    true
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
