//! The supervisor's state, for the program that replaces it in place.
//!
//! Points in time are ages or times left, as the clock of the new program has another zero.
//! Descriptors stay open over the exec, under their numbers.

use serde::{Deserialize, Serialize};

use super::{ListenerRecord, Record};

/// All of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Snapshot {
    /// How long the supervisor has run.
    pub(crate) age_ms: u64,
    /// The service manager was told that the service is ready.
    pub(crate) announced: bool,
    /// A process was ready once, so that the other slots start theirs.
    pub(crate) opened: bool,
    /// The socket for the notifications of the processes.
    pub(crate) notify: i32,
    /// The two ends of the socket pair that ends when the supervisor does.
    pub(crate) lifeline: [i32; 2],
    /// The listening control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<i32>,
    /// The exit code of the supervisor if no process is left to serve.
    pub(crate) exit_code: i32,
    /// Connections of control clients that wait for the outcome of the upgrade.
    pub(crate) waiters: Vec<i32>,
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
    /// The listener stays also when no process asks for it.
    pub(crate) pinned: bool,
    pub(crate) listener: ListenerRecord,
}

/// A place for a serving process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct SlotRecord {
    /// The generation of the process that was started last.
    pub(crate) generation: u64,
    pub(crate) restarts: u64,
    /// Deaths since a process was healthy, and how many of the last ones were before it was ready.
    pub(crate) deaths: u32,
    pub(crate) before_ready: u32,
    /// The time until a process is to be started, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) due_ms: Option<u64>,
    /// How the last process ended that was not asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_end: Option<String>,
}

/// A process that serves or drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ProcessRecord {
    /// The position of its slot; none if the process drains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<usize>,
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    pub(crate) age_ms: u64,
    /// How long ago the process was ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready_ms: Option<u64>,
    /// How long ago the process last told that it makes progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heard_ms: Option<u64>,
    /// The supervisor started the process; else its predecessor did.
    pub(crate) is_own: bool,
    /// The watchdog's limit that the process was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watchdog_ms: Option<u64>,
    /// The position of the slot in which another process was started when this one stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replaced_in: Option<usize>,
    /// The process starts its successors itself.
    pub(crate) restarts_itself: bool,
    pub(crate) stopping: bool,
    /// The time until the process is late: to be ready, or to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) aborted: bool,
    /// The listeners of the process: positions in [`Snapshot::listeners`].
    pub(crate) listeners: Vec<usize>,
    /// The last status that the process gave.
    pub(crate) status: String,
}
