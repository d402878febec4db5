//! Linux: single calls that other Unix systems lack.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use rustix::time::ClockId;

use crate::sys::unix::check;
use crate::sys::{Credentials, Identity, ThreadUsage};

/// The flag for bytes that others follow at once (MSG_MORE in send(2)).
pub(in crate::sys) const SEND_MORE: SendFlags = SendFlags::MORE;

/// What poll(2) has to be asked for to report that the peer has ended its side.
pub(in crate::sys) const END_OF_STREAM: PollFlags = PollFlags::RDHUP;

/// The clock that costs least. Its resolution is that of the kernel's tick, 1 to 10 ms.
pub(in crate::sys) const COARSE_CLOCK: ClockId = ClockId::MonotonicCoarse;

/// A file in memory, without a name.
pub(in crate::sys) fn create_unnamed_file() -> io::Result<File> {
    Ok(memfd_create("handover", MemfdFlags::CLOEXEC)?.into())
}

/// A pipe that children do not inherit.
pub(in crate::sys) fn create_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// The most descriptors that the system lets a process have open, whatever the process's limit
/// says. `None`: only the limit counts.
pub(in crate::sys) fn most_descriptors() -> Option<u64> {
    None
}

/// Whether the kernel sent a signal by itself, given the field `si_code` (sigaction(2)).
pub(in crate::sys) fn is_from_kernel(code: libc::c_int) -> bool {
    code > 0
}

/// How a directory is opened for what is done in it. Permission to read it is not needed.
pub(in crate::sys) const OPEN_DIRECTORY: OFlags = OFlags::PATH;

/// Makes the kernel send this process a signal when the thread that forked it ends
/// (PR_SET_PDEATHSIG).
#[allow(unsafe_code)]
pub(in crate::sys) fn request_signal_at_parent_end(signal: libc::c_int) {
    // SAFETY: the call takes numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal);
    }
}

/// Changes the user and the groups of this process, which has one thread, for good. Of root's
/// capabilities (capabilities(7)), another user keeps none: the change of the user clears the
/// permitted, effective and ambient ones, and the last call the inheritable ones. Async-signal-safe.
#[allow(unsafe_code)]
pub(in crate::sys) fn become_identity(identity: &Identity) -> io::Result<()> {
    if let Some(Credentials { uid, gid, groups }) = &identity.credentials {
        // SAFETY: the calls take numbers, and the length and address of a live list.
        unsafe {
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setresgid(*gid, *gid, *gid))?;
            check(libc::setresuid(*uid, *uid, *uid))?;
        }
        if *uid != 0 {
            let none = CapabilitySet::empty();
            let sets = CapabilitySets {
                effective: none,
                permitted: none,
                inheritable: none,
            };
            set_capabilities(None, sets)?;
        }
    }
    if identity.no_new_privileges {
        set_no_new_privs(true)?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on (close_range(2)): at once, or in an exec. False if the
/// kernel cannot do this (before 5.9 and 5.11). Not on Android, which kills a process for a system
/// call that its filter does not list.
#[allow(unsafe_code)]
pub(in crate::sys) fn close_range(first: RawFd, in_exec: bool) -> bool {
    /// CLOSE_RANGE_CLOEXEC, which libc lacks for Android.
    const CLOEXEC: libc::c_uint = 1 << 2;
    let flags = if in_exec { CLOEXEC } else { 0 };
    // SAFETY: the call takes numbers. The owners of these descriptors are in another process, of
    // which this process is a copy that uses none of them.
    cfg!(target_os = "linux")
        && unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) } == 0
}

/// The CPU time of this thread in nanoseconds, and how often it has given up its CPU by itself
/// (getrusage(2), RUSAGE_THREAD). A preemption does not count.
#[allow(unsafe_code)]
pub(crate) fn thread_usage() -> Option<ThreadUsage> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure, which lives as long; any bits are a valid one.
    let usage = unsafe {
        match libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) {
            0 => usage.assume_init(),
            _ => return None,
        }
    };
    let nanos =
        |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Some(ThreadUsage {
        cpu: nanos(usage.ru_utime) + nanos(usage.ru_stime),
        waits: usage.ru_nvcsw as u64,
    })
}
