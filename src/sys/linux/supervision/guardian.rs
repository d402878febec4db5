//! Linux: the guardian, a small process that ends what the supervisor has started when the supervisor
//! has died.
//!
//! The kernel does this as well (PR_SET_PDEATHSIG), but not for a program that changes its user, by a
//! set-user-ID bit or by itself, nor for the children of a program. A program that can take two
//! requests to stop for a request to stop at once gets one only: the guardian sends SIGTERM to the
//! processes that the kernel does not tell. The kernel tells those that have the credentials with
//! which they were started, also when one `kill` ended the guardian, too. The guardian reads from a
//! pipe which processes there are. The pipe's end-of-file is the end of the supervisor. Then the
//! guardian does what the supervisor would have done in a stop: SIGTERM for each process; SIGTERM
//! for what is left of its group, when it has exited; SIGKILL for those that are left after the
//! limit. Servers of this crate get no SIGKILL: they see the supervisor's end as well, and have a
//! limit of their own.
//!
//! The guardian has a session of its own, so that neither a terminal nor a signal to the supervisor's
//! group reaches it. It blocks all signals, and has no descriptor but the pipe. Its memory is a copy
//! of the supervisor's, which the kernel shares as long as neither process writes to it.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::unix::exec_plan::{
    GUARDIAN_FORGET, GUARDIAN_WATCH, GUARDIAN_WATCH_CHILD, close_descriptors, write_record,
};
use crate::sys::unix::{check, clock, descriptor, signal};
use crate::sys::{Descriptor, Guarded, Identity};

/// The guardian of the processes that this process starts. It goes on when this is dropped, and ends
/// them: there is one as long as the supervisor lives.
#[derive(Debug)]
pub(crate) struct Guardian {
    pid: u32,
    /// The writing end.
    pipe: Descriptor,
}

/// More entries than there are processes: at most 1024 serve, each with a few that drain.
const MAX_ENTRIES: usize = 16 * 1024;

/// The time between two looks at the processes that are being ended.
const INTERVAL: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

impl Guardian {
    /// Servers of this crate see end-of-file on the lifeline when their supervisor dies.
    pub(crate) const NEEDS_EACH_CHILD: bool = false;

    /// Starts a guardian, which knows of these processes and groups from the beginning, as with
    /// [`watch`](Self::watch). Processes are started with `identity`. `limit` is how long processes
    /// may take to exit after SIGTERM. With `kills_all`, this is so for the processes themselves,
    /// too, and not only for what they leave behind.
    ///
    /// # Errors
    ///
    /// No memory, no descriptors.
    #[allow(unsafe_code)]
    pub(crate) fn start(
        limit: Duration,
        kills_all: bool,
        identity: Option<&Identity>,
        known: impl Iterator<Item = Guarded>,
    ) -> io::Result<Self> {
        let (reader, pipe) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let mut entries = Vec::with_capacity(MAX_ENTRIES);
        for guarded in known {
            record(&mut entries, numbers(guarded));
        }
        let credentials = Credentials::of_new_process(identity);
        let reader_number = reader.as_raw_fd();
        let mask = signal::block_all();
        // SAFETY: the new process calls `run` only, which is async-signal-safe and does not return.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            run(
                reader_number,
                Limit {
                    nanos: limit,
                    kills_all,
                },
                credentials,
                &mut entries,
            );
        }
        let pid = check(pid);
        signal::change_mask(libc::SIG_SETMASK, &mask);
        Ok(Self {
            pid: pid?.unsigned_abs(),
            pipe,
        })
    }

    /// The guardian that this process started before it executed its present program, with the number
    /// of the pipe.
    ///
    /// # Errors
    ///
    /// No such descriptor is open.
    pub(crate) fn resume(pid: u32, pipe: i32) -> io::Result<Self> {
        let pipe = descriptor::adopt(pipe)?;
        Ok(Self { pid, pipe })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the guardian, which ends nothing. For a child of this process.
    #[allow(unsafe_code)]
    pub(crate) fn end(self) {
        let pid = self.pid as i32;
        // SAFETY: the calls take numbers, and no pointer that is used. The guardian is a child that is
        // not reaped yet, so that no other process has its id.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, ptr::null_mut(), 0);
        }
    }

    pub(crate) fn pipe(&self) -> &Descriptor {
        &self.pipe
    }

    /// A process, or what is left of its group, is to be ended with the supervisor. False if the
    /// guardian was not told.
    pub(crate) fn watch(&self, guarded: Guarded) -> bool {
        write_record(self.pipe.as_raw_fd(), &numbers(guarded))
    }

    pub(crate) fn forget(&self, process: Option<u32>, group: Option<u32>) -> bool {
        let record = [GUARDIAN_FORGET, number(process), number(group)];
        write_record(self.pipe.as_raw_fd(), &record)
    }
}

/// A record for the guardian.
fn numbers(guarded: Guarded) -> [i32; 3] {
    let what = match guarded.is_own_child {
        true => GUARDIAN_WATCH_CHILD,
        false => GUARDIAN_WATCH,
    };
    [what, number(guarded.process), number(guarded.group)]
}

fn number(pid: Option<u32>) -> i32 {
    pid.unwrap_or(0) as i32
}

/// What makes the kernel cancel the signal at the parent's end when it changes
/// (PR_SET_PDEATHSIG(2const)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Credentials {
    uids: [u32; 4],
    gids: [u32; 4],
    capabilities: u64,
}

impl Credentials {
    /// Those with which a process is started. `None` if /proc is not available.
    fn of_new_process(identity: Option<&Identity>) -> Option<Self> {
        let own = Self::parse(&std::fs::read("/proc/self/status").ok()?)?;
        let changed = identity.and_then(|identity| identity.credentials.as_ref());
        Some(changed.map_or(own, |new| Self {
            uids: [new.uid; 4],
            gids: [new.gid; 4],
            capabilities: if new.uid == 0 { own.capabilities } else { 0 },
        }))
    }

    /// Async-signal-safe.
    #[allow(unsafe_code)]
    fn of(process: i32) -> Option<Self> {
        let (mut path, mut text) = ([0_u8; 32], [0_u8; 4096]);
        write!(&mut path[..31], "/proc/{process}/status").ok()?;
        // SAFETY: the path ends with null, and the calls write to a live array of this length.
        let size = unsafe {
            let file = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
            let size = libc::read(file, text.as_mut_ptr().cast(), text.len());
            libc::close(file);
            size
        };
        Self::parse(text.get(..usize::try_from(size).ok()?)?)
    }

    /// Reads /proc/PID/status (proc_pid_status(5)). Does not allocate.
    fn parse(status: &[u8]) -> Option<Self> {
        let line = |name: &[u8]| {
            let mut lines = status.split(|byte| *byte == b'\n');
            std::str::from_utf8(lines.find_map(|line| line.strip_prefix(name))?).ok()
        };
        let ids = |name| {
            let mut ids = line(name)?.split_ascii_whitespace();
            let mut next = || ids.next()?.parse().ok();
            Some([next()?, next()?, next()?, next()?])
        };
        Some(Self {
            uids: ids(b"Uid:")?,
            gids: ids(b"Gid:")?,
            capabilities: u64::from_str_radix(line(b"CapPrm:")?.trim(), 16).ok()?,
        })
    }
}

/// A process and its group, or a group alone. Zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    process: i32,
    group: i32,
    /// See [`Guarded::is_own_child`].
    is_own_child: bool,
    /// A handle of the process (pidfd_open(2)), once the supervisor has died. Negative before Linux
    /// 5.3 and without descriptors: then the id alone tells the process.
    pidfd: RawFd,
    stage: Stage,
    /// When the last SIGTERM was sent, by the monotonic clock in nanoseconds.
    terminated_at: u64,
}

#[derive(Clone, Copy)]
struct Limit {
    nanos: u64,
    kills_all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    /// SIGTERM was sent to the process.
    Terminated,
    /// SIGTERM was sent to the group.
    GroupTerminated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Terminate,
    TerminateGroup,
    Kill,
    Forget,
}

/// The policy.
fn next_step(stage: Stage, is_running: bool, has_group: bool, is_late: bool) -> Step {
    match (is_running, has_group, stage) {
        (false, false, _) => Step::Forget,
        (true, _, Stage::New) => Step::Terminate,
        (false, true, Stage::New | Stage::Terminated) => Step::TerminateGroup,
        _ if is_late => Step::Kill,
        _ => Step::Wait,
    }
}

/// Records one entry. Does not allocate, since there is room for all.
fn record(entries: &mut Vec<Entry>, [what, process, group]: [i32; 3]) {
    let is_same = |entry: &Entry| match process {
        0 => entry.process == 0 && entry.group == group,
        process => entry.process == process,
    };
    entries.retain(|entry| !is_same(entry));
    if what != GUARDIAN_FORGET && entries.len() < entries.capacity() {
        entries.push(Entry {
            process,
            group,
            is_own_child: what == GUARDIAN_WATCH_CHILD,
            pidfd: -1,
            stage: Stage::New,
            terminated_at: 0,
        });
    }
}

/// The guardian. Async-signal-safe.
#[allow(unsafe_code)]
fn run(pipe: RawFd, limit: Limit, credentials: Option<Credentials>, entries: &mut Vec<Entry>) -> ! {
    // SAFETY: the calls take numbers, and pointers to live memory.
    unsafe {
        libc::setsid();
        // A working directory would keep its file system from being unmounted.
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"handover-guard".as_ptr());
        libc::dup2(pipe, 0);
        close_descriptors(1);
        libc::fcntl(0, libc::F_SETFL, 0);
        loop {
            let mut numbers = [0_i32; 3];
            match libc::read(0, numbers.as_mut_ptr().cast(), size_of_val(&numbers)) {
                0 => break,
                size if size == size_of_val(&numbers) as isize => record(entries, numbers),
                _ => {}
            }
        }
        let now = clock::monotonic_nanos();
        let each = entries.iter_mut();
        each.for_each(|entry| entry.open(credentials, now));
        while !entries.is_empty() {
            let now = clock::monotonic_nanos();
            entries.retain_mut(|entry| end(entry, limit, now));
            libc::nanosleep(&INTERVAL, ptr::null_mut());
        }
        libc::_exit(0)
    }
}

#[allow(unsafe_code)]
impl Entry {
    /// Opens the process. The supervisor has died a moment ago, so that no other process has the id.
    fn open(&mut self, credentials: Option<Credentials>, now: u64) {
        if self.process == 0 {
            return;
        }
        // SAFETY: the call takes numbers only.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.process, 0) };
        self.pidfd = RawFd::try_from(pidfd).unwrap_or(-1);
        if self.is_own_child
            && credentials.is_some()
            && Credentials::of(self.process) == credentials
        {
            (self.stage, self.terminated_at) = (Stage::Terminated, now);
            // A process that is stopped does not act on SIGTERM.
            self.signal_process(libc::SIGCONT);
        }
    }

    /// Whether the process has not ended. One that has, and that its parent does not reap, could still
    /// be sent signals.
    fn is_running(&self) -> bool {
        if self.pidfd < 0 {
            return self.signal_process(0);
        }
        let mut fd = libc::pollfd {
            fd: self.pidfd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the call takes one live structure.
        unsafe { libc::poll(&mut fd, 1, 0) != 1 }
    }

    /// False if there is no such process.
    fn signal_process(&self, signal: libc::c_int) -> bool {
        let (pidfd, none) = (self.pidfd, ptr::null::<libc::siginfo_t>());
        // SAFETY: the calls take numbers, and no pointer that is used. Without a handle, this guardian
        // has seen the process less than INTERVAL ago.
        unsafe {
            match pidfd {
                0.. => libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, none, 0) == 0,
                _ => self.process != 0 && libc::kill(self.process, signal) == 0,
            }
        }
    }

    /// False if there is no such group.
    fn signal_group(&self, signal: libc::c_int) -> bool {
        // SAFETY: the call takes numbers only. This guardian has seen the group less than INTERVAL ago.
        self.group != 0 && unsafe { libc::kill(-self.group, signal) == 0 }
    }
}

/// Takes the next step with an entry. False if there is nothing more to be done.
fn end(entry: &mut Entry, limit: Limit, now: u64) -> bool {
    let (is_running, has_group) = (entry.is_running(), entry.signal_group(0));
    let has_passed = now.saturating_sub(entry.terminated_at) >= limit.nanos;
    let is_late = has_passed && (limit.kills_all || !is_running);
    match next_step(entry.stage, is_running, has_group, is_late) {
        Step::Wait => {}
        Step::Terminate => {
            entry.signal_process(libc::SIGTERM);
            // A process that is stopped does not act on SIGTERM.
            entry.signal_process(libc::SIGCONT);
            (entry.stage, entry.terminated_at) = (Stage::Terminated, now);
        }
        Step::TerminateGroup => {
            entry.signal_group(libc::SIGTERM);
            entry.signal_group(libc::SIGCONT);
            (entry.stage, entry.terminated_at) = (Stage::GroupTerminated, now);
        }
        Step::Kill => {
            entry.signal_process(libc::SIGKILL);
            entry.signal_group(libc::SIGKILL);
            return false;
        }
        Step::Forget => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ended_before_what_it_leaves_behind() {
        use Stage::{GroupTerminated, New, Terminated};
        for (stage, is_running, has_group, is_late, wanted) in [
            (New, true, true, false, Step::Terminate),
            (New, true, false, false, Step::Terminate),
            (Terminated, true, true, false, Step::Wait),
            (Terminated, false, true, false, Step::TerminateGroup),
            (New, false, true, false, Step::TerminateGroup),
            (GroupTerminated, false, true, false, Step::Wait),
            (GroupTerminated, false, false, false, Step::Forget),
            (Terminated, false, false, true, Step::Forget),
            // The limit begins again for what the process leaves behind.
            (Terminated, false, true, true, Step::TerminateGroup),
            (Terminated, true, false, true, Step::Kill),
            (GroupTerminated, false, true, true, Step::Kill),
        ] {
            let step = next_step(stage, is_running, has_group, is_late);
            assert_eq!(step, wanted, "{stage:?} {is_running} {has_group} {is_late}");
        }
    }

    #[test]
    fn a_process_is_recorded_once_and_its_group_may_outlive_it() {
        let mut entries = Vec::with_capacity(2);
        let numbers = |entries: &[Entry]| -> Vec<_> {
            entries
                .iter()
                .map(|entry| (entry.process, entry.group))
                .collect()
        };
        record(&mut entries, [1, 7, 0]);
        record(&mut entries, [1, 7, 7]);
        record(&mut entries, [1, 0, 7]);
        record(&mut entries, [1, 8, 8]);
        assert_eq!(numbers(&entries), [(7, 7), (0, 7)]);
        record(&mut entries, [0, 7, 0]);
        assert_eq!(numbers(&entries), [(0, 7)]);
        record(&mut entries, [0, 0, 7]);
        assert_eq!(numbers(&entries), []);
    }
}
