//! The supervisor's state, for the program that replaces it in place.
//!
//! A point in time is written as an age or as the time left: an `Instant` of one program means
//! nothing to another. Descriptors stay open over the exec, under their numbers.

use serde::{Deserialize, Serialize};

use super::{BindAddr, ListenerRecord, Record, WirePath};

/// All of the state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Snapshot {
    /// How long the supervisor has run.
    pub(crate) age_ms: u64,
    /// The socket for the notifications of the processes.
    pub(crate) notify_socket: i32,
    /// A socket pair. Serving processes hold the second socket, and see end-of-file when the
    /// supervisor dies.
    pub(crate) lifeline: [i32; 2],
    /// The listening control socket.
    pub(crate) control: Option<i32>,
    /// The device and inode of the control socket's file.
    #[serde(default)]
    pub(crate) control_file: Option<(u64, u64)>,
    /// The pid file that the supervisor has written.
    #[serde(default)]
    pub(crate) pid_file: Option<WirePath>,
    /// The connections of the control clients that wait for the result of the upgrade.
    pub(crate) upgrade_clients: Vec<i32>,
    pub(crate) listeners: Vec<SnapshotListener>,
    /// What the supervisor binds for processes of other users.
    #[serde(default)]
    pub(crate) allowed_binds: Vec<BindAddr>,
    pub(crate) fleet: FleetRecord,
    /// The guardian: its pipe, and its process id.
    #[serde(default)]
    pub(crate) guardian: Option<(i32, u32)>,
    /// Children that the process had before it became the supervisor.
    #[serde(default)]
    pub(crate) earlier_children: Vec<u32>,
    /// There were such children.
    #[serde(default)]
    pub(crate) had_children: bool,
    /// What processes have left behind, and is being ended.
    #[serde(default)]
    pub(crate) stragglers: Vec<StragglersRecord>,
    /// The files to which the output of the processes goes.
    #[serde(default)]
    pub(crate) outputs: Vec<OutputRecord>,
    /// The lanes of processes.
    #[serde(default)]
    pub(crate) lanes: Vec<LaneRecord>,
}

impl Record for Snapshot {
    const LIMIT: usize = 16 * 1024 * 1024;
}

/// A listener that the supervisor holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct SnapshotListener {
    pub(crate) descriptor: i32,
    /// The listener is held even if no process uses it.
    pub(crate) kept_when_unused: bool,
    /// The service manager passed the listener, and holds it.
    #[serde(default)]
    pub(crate) held_by_manager: bool,
    pub(crate) listener: ListenerRecord,
    /// The device and inode of a Unix socket's file.
    #[serde(default)]
    pub(crate) file: Option<(u64, u64)>,
}

/// Processes that are being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct StragglersRecord {
    /// Their process group. `None`: all that descend from the supervisor.
    pub(crate) group: Option<u32>,
    pub(crate) stage: StragglersStage,
    /// The time until the next stage, if there is a limit.
    pub(crate) left_ms: Option<u64>,
}

/// What was done with stragglers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum StragglersStage {
    New,
    /// SIGTERM was sent.
    Terminated,
    /// SIGKILL was sent.
    Killed,
}

/// A file to which the output of processes goes, by a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct OutputRecord {
    pub(crate) path: WirePath,
    /// New processes get the pipe as their standard output.
    pub(crate) stdout: bool,
    /// New processes get the pipe as their standard error.
    pub(crate) stderr: bool,
    /// The pipe.
    pub(crate) reader: i32,
    pub(crate) writer: i32,
    /// The process that copies from the pipe to the file: its socket, and its process id.
    pub(crate) log_writer: Option<(i32, u32)>,
}

/// The lane of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct LaneRecord {
    pub(crate) pid: u32,
    /// The user of the process when it left the lane.
    pub(crate) uid: u32,
    pub(crate) descriptor: i32,
}

/// What the supervisor has decided so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct FleetRecord {
    /// All slots have been ready, and the service manager was sent READY=1.
    pub(crate) sent_ready: bool,
    /// A process has been ready. Until then, only the first slot starts one.
    pub(crate) has_been_ready: bool,
    /// The supervisor's exit code if every slot is given up.
    pub(crate) exit_code: i32,
    /// The result of the last restart that was requested.
    pub(crate) last_restart: Option<RestartRecord>,
    /// The time until a process may be recycled, after a recycling that has failed.
    #[serde(default)]
    pub(crate) recycle_in_ms: Option<u64>,
    /// The number of slots that was asked for at run time.
    #[serde(default)]
    pub(crate) scale: Option<usize>,
    pub(crate) slots: Vec<SlotRecord>,
    /// The processes that drain.
    pub(crate) processes: Vec<ProcessRecord>,
}

/// The last restart that was requested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct RestartRecord {
    /// Why the restart failed; null if it succeeded.
    pub(crate) error: Option<String>,
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) took_seconds: f64,
    /// Since the end of the restart.
    pub(crate) age_ms: u64,
}

/// The loss of a slot's process: the process exited or stopped without having been asked to, or
/// could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct DeathRecord {
    pub(crate) age_ms: u64,
    /// Why, in words.
    pub(crate) why: String,
}

/// A slot for one serving process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct SlotRecord {
    /// The generation of the process that was started last.
    pub(crate) generation: u64,
    /// Number of starts because the process before had exited.
    pub(crate) restarts: u64,
    /// Failures since a process was ready.
    pub(crate) failures: u32,
    /// The time until a process is to be started, if one is.
    pub(crate) start_in_ms: Option<u64>,
    /// The time since a process of the slot was recycled for its size.
    #[serde(default)]
    pub(crate) recycled_for_size_ms: Option<u64>,
    /// The last losses of a process, the newest last.
    #[serde(default)]
    pub(crate) deaths: Vec<DeathRecord>,
    /// The process that serves, or that is being started to serve.
    pub(crate) current: Option<ProcessRecord>,
}

/// A process that serves or drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ProcessRecord {
    /// The index of the slot that the process is in, or has left.
    pub(crate) slot: Option<usize>,
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    /// How long the supervisor has known the process.
    pub(crate) age_ms: u64,
    /// How long the process has been ready. `None` if it never was.
    pub(crate) ready_ms: Option<u64>,
    pub(crate) stage: StageRecord,
    /// The process was started by its predecessor.
    pub(crate) is_adopted: bool,
    /// The process starts its successors itself.
    pub(crate) starts_successors: bool,
    /// The longest time between two watchdog notifications, as the process was told at its start.
    pub(crate) watchdog_ms: Option<u64>,
    /// The listeners that the process uses: the device and inode number of each socket.
    pub(crate) listeners: Vec<(u64, u64)>,
    /// The last `STATUS=` notification.
    pub(crate) status: String,
    /// How many requests the process has served, as it has told.
    #[serde(default)]
    pub(crate) requests: Option<u64>,
    /// The size in memory when the process began to serve, in bytes.
    #[serde(default)]
    pub(crate) first_size: Option<u64>,
    /// The process has left a lane with the supervisor.
    #[serde(default)]
    pub(crate) has_lane: bool,
    /// The process was told to leave its connections to another one, and was sent no signal.
    #[serde(default)]
    pub(crate) has_left: bool,
}

/// What a process does. `left_ms` is the time that it has left for that, if there is a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum StageRecord {
    Starting {
        left_ms: Option<u64>,
    },
    Serving {
        /// The process sends watchdog notifications.
        is_watched: bool,
    },
    Stopping {
        left_ms: Option<u64>,
        /// The process was not asked to stop.
        by_itself: bool,
    },
    /// The process was sent SIGABRT.
    Aborted {
        left_ms: Option<u64>,
    },
}
