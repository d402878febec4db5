//! What happens to a [`Fleet`](super::Fleet), and what the fleet wants done.

use std::time::{Duration, Instant};

use crate::sys::Signal;

/// Something that has happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Answer to [`Effect::Start`]: the process runs the program.
    Started { slot: usize, pid: u32 },
    /// Answer to [`Effect::Start`]: there is no process.
    StartFailed { slot: usize, why: String },
    /// A process has exited.
    Exited { pid: u32, exit: Exit },
    /// A process has notified the supervisor (sd_notify(3)).
    Notified { pid: u32, notice: Notice },
    /// Answer to [`Effect::Leave`]: the process could not be told, and gets the signal in its place.
    LeaveFailed { pid: u32, signal: Signal },
    /// A graceful restart is wanted. The client gets the result.
    Restart { client: Option<u64> },
    /// This number of serving processes is wanted. The client gets the result.
    Scale {
        processes: usize,
        client: Option<u64>,
    },
    /// An upgrade of the supervisor is wanted. The client gets the result.
    Upgrade { client: Option<u64> },
    /// Answer to [`Effect::StartDryRun`]: the process of the dry run has ended, or did not start.
    DryRunEnded(Result<(), String>),
    /// Answer to [`Effect::ExecuteOwnProgram`]: the supervisor was not replaced.
    NotReplaced { why: String },
    /// The supervisor was replaced: the fleet was made from a snapshot.
    Replaced,
    /// The processes are to finish their requests and exit.
    Stop,
    /// The processes are to exit at once.
    StopNow,
    /// The processes that serve are to be sent SIGUSR1.
    User1,
    /// The resident size of a process that serves: as soon as it serves, and at intervals.
    Measured { pid: u32, bytes: u64 },
    /// All events until now were handled: what is late now is late.
    Tick,
}

/// How a process has exited.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    /// `None` if a signal ended the process, or if another process has reaped it.
    pub(crate) code: Option<i32>,
    /// In words.
    pub(crate) how: String,
}

/// The device and inode numbers of a socket. Copies of its descriptor have the same.
pub(crate) type ListenerId = (u64, u64);

/// A process that a notification names: a descendant of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamedProcess {
    pub(crate) pid: u32,
    pub(crate) started_at: Instant,
    /// The process has ended already. Its exit is no event any more.
    pub(crate) has_ended: bool,
}

/// A notification. Lines of text have no line breaks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notice {
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    /// When the sender was started. `None`: the fleet knows the sender.
    pub(crate) sender_started_at: Option<Instant>,
    /// The sender's successor serves in its place, or has served there before it ended.
    pub(crate) main_pid: Option<NamedProcess>,
    /// The generation of the process that `main_pid` names, or else of the sender. Only servers of
    /// this crate name a generation.
    pub(crate) generation: Option<u64>,
    /// The sender has started this process as its successor.
    pub(crate) successor: Option<NamedProcess>,
    /// Why the restart of the sender failed.
    pub(crate) failed: Option<String>,
    pub(crate) status: Option<String>,
    /// The sender needs this much more time, counted from now.
    pub(crate) extend: Option<Duration>,
    /// Listeners that the sender uses, of those that the supervisor holds.
    pub(crate) listeners: Vec<ListenerId>,
    /// The sender has left its lane.
    pub(crate) has_lane: bool,
    /// The sender makes progress (true), or makes none and is to be aborted (false).
    pub(crate) is_alive: Option<bool>,
    /// How many requests the sender has served.
    pub(crate) requests: Option<u64>,
}

/// Something that is to be done, in the order of the effects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    /// Start the program for this slot. [`Event::Started`] or [`Event::StartFailed`] must be the
    /// next event for the slot.
    Start {
        slot: usize,
        generation: u64,
    },
    Signal {
        pid: u32,
        signal: Signal,
    },
    /// In place of this signal, tell this process to leave its connections to the process `recipient`,
    /// and to exit. If it cannot be told, [`Event::LeaveFailed`] must be the next event.
    Leave {
        pid: u32,
        recipient: u32,
        signal: Signal,
    },
    /// Log what the threads of this process wait for, then send SIGABRT.
    Abort {
        pid: u32,
    },
    /// Close the listeners that are not among these, and that the settings do not name.
    CloseListenersExcept(Vec<ListenerId>),
    /// Tell a control client the result of its request, which took this long.
    Reply {
        client: u64,
        error: Option<String>,
        took: Option<Duration>,
    },
    /// Tell the supervisor's own service manager (sd_notify(3)).
    Notify(ManagerNotice),
    /// Check that the supervisor's program can go on from a snapshot.
    StartDryRun,
    KillDryRun,
    /// Replace the supervisor by its program, in this process.
    ExecuteOwnProgram,
    Log(Severity, String),
}

/// A message to the service manager of the supervisor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ManagerNotice {
    /// `READY=1` with this status.
    Ready(String),
    Reloading,
    Stopping(&'static str),
    Status(String),
    /// The start, the restart or the stop takes this much longer, counted from now.
    MoreTime(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Info,
    Warn,
    Error,
}
