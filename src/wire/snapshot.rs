//! The supervisor's state, for the program that replaces it in place.
//!
//! A point in time is written as an age or as the time left: an `Instant` of one program means
//! nothing to another. Descriptors stay open over the exec, under their numbers.

use serde::{Deserialize, Serialize};

use super::{ListenerRecord, Record};

/// All of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Snapshot {
    /// How long the supervisor has run.
    pub(crate) age_ms: u64,
    /// All slots have been ready, and the service manager was sent READY=1.
    pub(crate) sent_ready: bool,
    /// A process has been ready. Until then, only the first slot starts one.
    pub(crate) has_been_ready: bool,
    /// The socket for the notifications of the processes.
    pub(crate) notify_socket: i32,
    /// A socket pair. Serving processes hold the second socket, and see end-of-file when the
    /// supervisor dies.
    pub(crate) lifeline: [i32; 2],
    /// The listening control socket.
    pub(crate) control: Option<i32>,
    /// The supervisor's exit code if every slot is given up.
    pub(crate) exit_code: i32,
    /// The connections of the control clients that wait for the result of the upgrade.
    pub(crate) upgrade_clients: Vec<i32>,
    pub(crate) listeners: Vec<SnapshotListener>,
    pub(crate) slots: Vec<SlotRecord>,
    pub(crate) processes: Vec<ProcessRecord>,
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
    pub(crate) listener: ListenerRecord,
}

/// A slot for one serving process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct SlotRecord {
    /// The generation of the process that was started last.
    pub(crate) generation: u64,
    /// Number of starts because the process before had exited.
    pub(crate) restarts: u64,
    /// Failures since a process was healthy.
    pub(crate) failures: u32,
    /// Failures since a process was ready.
    pub(crate) failures_before_ready: u32,
    /// The time until a process is to be started, if one is.
    pub(crate) start_in_ms: Option<u64>,
    /// Why the slot last lost its process: the process exited or stopped without having been asked
    /// to, or could not be started.
    pub(crate) last_failure: Option<String>,
}

/// A process that serves or drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ProcessRecord {
    /// The index of the slot of which this is the current process. `None` if the process drains.
    pub(crate) slot: Option<usize>,
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    /// How long the supervisor has known the process.
    pub(crate) age_ms: u64,
    /// How long the process has been ready. `None` if it is not.
    pub(crate) ready_ms: Option<u64>,
    /// The time since the last watchdog notification, if one has come.
    pub(crate) last_watchdog_ms: Option<u64>,
    /// The supervisor started the process. Any other process was started by its predecessor.
    pub(crate) started_here: bool,
    /// The longest time between two watchdog notifications, as the process was told at its start.
    pub(crate) watchdog_ms: Option<u64>,
    /// The process stopped by itself. In the slot of this index, another one was started instead.
    pub(crate) replaced_in: Option<usize>,
    /// The process starts its successors itself.
    pub(crate) starts_successors: bool,
    /// SIGTERM was sent, or the process has notified the supervisor that it stops.
    pub(crate) stopping: bool,
    /// The time until the process must be ready, or must have exited.
    pub(crate) deadline_ms: Option<u64>,
    /// SIGABRT was sent.
    pub(crate) aborted: bool,
    /// The listeners that the process uses: the device and inode number of each socket.
    pub(crate) listeners: Vec<(u64, u64)>,
    /// The last `STATUS=` notification.
    pub(crate) status: String,
}
