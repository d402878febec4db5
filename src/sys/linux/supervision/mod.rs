//! Linux: what a supervisor needs. One wait reports the ends of processes, signals and
//! notifications.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::os::unix::thread::JoinHandleExt;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::param;
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process_group, set_child_subreaper,
    test_kill_process, test_kill_process_group, wait, waitid,
};
use rustix::time::{ClockId, clock_gettime};

pub(crate) use crate::sys::unix::control::{ControlPipe, ControlStream, Source, source_of};
use crate::sys::{Interest, Signal, signal};

mod guardian;
mod identity;
mod log_writer;
mod notify_socket;
mod process_watch;
mod signal_fd;

pub(crate) use guardian::Guardian;
pub(crate) use identity::{find_group, find_identity};
pub(crate) use log_writer::{LogWriter, open_log_file, prepare_log_pipe};
pub(crate) use notify_socket::{NotifySocket, TakenNotification};
pub(crate) use process_watch::ProcessWatch;
pub(crate) use signal_fd::SignalFd;

/// Whether this system has what a supervisor needs.
pub(crate) const IS_SUPPORTED: bool = true;

/// Whether the supervisor can execute another program in its process.
pub(crate) const SUPPORTS_UPGRADES: bool = true;

/// Whether the processes of a process group can be found and signalled.
pub(crate) const HAS_PROCESS_GROUPS: bool = true;

/// Whether a signal ends a process that has no handler for it.
pub(crate) const SIGNALS_ARE_FATAL: bool = true;

/// The settings that this system does not support, by the names of their setters.
pub(crate) const UNSUPPORTED_SETTINGS: &[&str] = &[];

/// Makes descendants that lose their parent children of this process, which is then told of their
/// ends (PR_SET_CHILD_SUBREAPER).
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Waits for a signal, for a source that is ready or can accept, for the end of a process, or for
/// the time-out.
pub(crate) fn wait_for_any<'a>(
    signals: &SignalFd,
    sources: &[(Source<'_>, Interest)],
    processes: impl Iterator<Item = &'a ProcessWatch>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let sources = sources.iter().map(|(socket, interest)| {
        let wanted = match interest {
            Interest::Read => PollFlags::IN,
            Interest::Write => PollFlags::OUT,
            Interest::Both => PollFlags::IN | PollFlags::OUT,
        };
        PollFd::from_borrowed_fd(socket.as_fd(), wanted)
    });
    let processes = processes.filter_map(|process| Some(process.fd.as_ref()?.as_fd()));
    let others = processes.chain([signals.0.as_fd()]);
    let others = others.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut fds: Vec<PollFd<'_>> = sources.chain(others).collect();
    // A time-out too long for the call is none.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reaps a child that has ended. `None` if there is none.
pub(crate) fn reap_child() -> io::Result<Option<(u32, ExitStatus)>> {
    match retry_on_intr(|| wait(WaitOptions::NOHANG)) {
        Ok(Some((pid, status))) => Ok(Some((
            pid.as_raw_nonzero().get().unsigned_abs(),
            ExitStatus::from_raw(status.as_raw()),
        ))),
        Ok(None) | Err(Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process is a child of this one, running or not reaped yet.
pub(crate) fn is_child(pid: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    kernel_pid(pid).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

/// False if the process is another user's whose processes this one may not send signals (kill(2)).
pub(crate) fn may_signal(pid: u32) -> bool {
    kernel_pid(pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::PERM))
}

/// Whether the process descends from this one. `None`: the caller finds out from /proc.
pub(crate) fn is_descendant(_pid: u32) -> Option<bool> {
    None
}

/// The parent of a process. `None`: the caller finds out from /proc.
pub(crate) fn parent_of(_pid: u32) -> Option<u32> {
    None
}

/// How long ago a process was started. `None`: the caller finds out from /proc.
pub(crate) fn age_of(_pid: u32) -> Option<Duration> {
    None
}

/// The resident size of a process in bytes. `None`: the caller finds out from /proc.
pub(crate) fn resident_size(_pid: u32) -> Option<u64> {
    None
}

/// How long ago something was that /proc dates in clock ticks since the boot (`starttime` in
/// proc_pid_stat(5)). The result may be a tick too short, 10 ms, and never too long.
pub(crate) fn time_since_tick(ticks: u64) -> Duration {
    let now = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    let end_of_tick =
        ticks.saturating_add(1) as f64 / param::clock_ticks_per_second().max(1) as f64;
    let then = Duration::try_from_secs_f64(end_of_tick).unwrap_or(Duration::MAX);
    now.saturating_sub(then)
}

/// The signal that interrupts a thread. By default it does nothing, and nobody sends it to a
/// supervisor.
const INTERRUPT: libc::c_int = libc::SIGURG;

/// Lets [`interrupt`] end waits of this thread.
pub(crate) fn allow_interrupts() {
    signal::interrupt_waits_by(INTERRUPT);
    signal::change_mask(libc::SIG_UNBLOCK, &signal::set_of([INTERRUPT]));
}

/// Ends the wait of a thread, if it waits where a signal can end that.
#[allow(unsafe_code, clippy::unnecessary_cast)]
pub(crate) fn interrupt(thread: &JoinHandle<()>) {
    // SAFETY: the thread was not joined, so that the handle is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, INTERRUPT) };
}

/// The bit of a signal in the masks of /proc/PID/status (`SigCgt` in proc_pid_status(5)).
pub(crate) fn mask_bit(signal: Signal) -> u64 {
    1 << (signal::number(signal) - 1)
}

pub(crate) fn page_size() -> u64 {
    param::page_size() as u64
}

/// Stops this process as the terminal's stop character does by default (SIGTSTP). Returns when the
/// process goes on. To be called while SIGTSTP is blocked.
#[allow(unsafe_code)]
pub(crate) fn suspend() {
    let set = signal::set_of([libc::SIGTSTP]);
    // SAFETY: the calls take numbers only.
    unsafe {
        libc::signal(libc::SIGTSTP, libc::SIG_DFL);
        libc::raise(libc::SIGTSTP);
    }
    // The kernel ignores the signal where no shell would continue this process: if its process group
    // is orphaned.
    signal::change_mask(libc::SIG_UNBLOCK, &set);
    signal::change_mask(libc::SIG_BLOCK, &set);
}

/// The process group of a process that has not been reaped. `None` for a group from outside of this
/// process's pid namespace.
#[allow(unsafe_code)]
pub(crate) fn group_of(pid: u32) -> Option<u32> {
    // rustix takes no group 0, which is one from outside.
    // SAFETY: the call takes a number.
    let group = unsafe { libc::getpgid(i32::try_from(pid).ok()?) };
    u32::try_from(group).ok().filter(|group| *group != 0)
}

/// Whether a process of this group is left, perhaps one that is not reaped yet.
pub(crate) fn has_group(group: u32) -> bool {
    kernel_pid(group).is_some_and(|group| test_kill_process_group(group).is_ok())
}

/// Sends a signal to all processes of a group. A process of the group must not be reaped yet.
pub(crate) fn signal_group(group: u32, signal: Signal) -> io::Result<()> {
    let group = kernel_pid(group).ok_or(io::ErrorKind::NotFound)?;
    Ok(kill_process_group(group, signal::to_kernel(signal))?)
}

fn kernel_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
