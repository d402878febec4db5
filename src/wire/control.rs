//! Requests and answers on the supervisor's control socket. The client sends a line, and the
//! supervisor answers with a line and closes the connection.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Record;

/// A request: a line of plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlRequest {
    /// `status`: answered with a [`Status`].
    Status,
    /// `restart`, or `restart wait` for an answer when the restart is over.
    Restart { waits: bool },
    /// `scale N`, or `scale N wait` for an answer when N processes serve.
    Scale { processes: usize, waits: bool },
    /// `reopen`: log files are opened again.
    Reopen,
    /// `stop`.
    Stop,
    /// `upgrade`, or `upgrade wait` for an answer when the upgrade is over.
    Upgrade { waits: bool },
}

impl ControlRequest {
    /// Reads a line. White space at its end is ignored. `None`: there is no such request.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        Some(match line.trim_end() {
            "status" => Self::Status,
            "restart" => Self::Restart { waits: false },
            "restart wait" => Self::Restart { waits: true },
            "reopen" => Self::Reopen,
            "stop" => Self::Stop,
            "upgrade" => Self::Upgrade { waits: false },
            "upgrade wait" => Self::Upgrade { waits: true },
            line => {
                let number = line.strip_prefix("scale ")?;
                let waiting = number.strip_suffix(" wait");
                Self::Scale {
                    processes: waiting.unwrap_or(number).parse().ok()?,
                    waits: waiting.is_some(),
                }
            }
        })
    }
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Answer {
    /// The request succeeded, or has begun if the client does not wait for the result.
    pub(crate) ok: bool,
    /// Why the request failed; there if `ok` is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// How long a restart took; there if the client waited for the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, arbitrary(with = super::tests::any_optional_seconds))]
    pub(crate) took_seconds: Option<f64>,
}

impl Answer {
    pub(crate) fn new(error: Option<String>, took: Option<Duration>) -> Self {
        Self {
            ok: error.is_none(),
            error,
            took_seconds: took.map(seconds),
        }
    }

    pub(crate) fn success() -> Self {
        Self::new(None, None)
    }

    pub(crate) fn failure(why: impl Into<String>) -> Self {
        Self::new(Some(why.into()), None)
    }
}

impl Record for Answer {
    const LIMIT: usize = Status::LIMIT;
}

/// The supervisor and its processes, as the answer to `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct Status {
    /// Always true: there is an answer.
    pub(crate) ok: bool,
    /// The version of this answer: [`SCHEMA`].
    pub(crate) schema: u32,
    /// Of the supervisor.
    pub(crate) pid: u32,
    /// The version of this crate in the supervisor.
    pub(crate) version: String,
    /// The path of the program that serves.
    pub(crate) program: String,
    /// How the names of the supervisor's event objects begin; null on systems with signals.
    pub(crate) event_objects: Option<String>,
    pub(crate) state: ServiceState,
    /// Since the supervisor was started; an upgrade does not count as a start.
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) uptime_seconds: f64,
    /// One for each slot.
    pub(crate) processes: Vec<SlotStatus>,
    /// The processes that were replaced, and finish their requests.
    pub(crate) draining: Vec<ProcessStatus>,
    /// The listeners that the supervisor holds.
    pub(crate) listeners: Vec<ListenerStatus>,
    /// The last restart that was requested; null if there was none.
    pub(crate) last_restart: Option<RestartStatus>,
}

/// The version of [`Status`] for the programs that read it. Fields may be added to a version; a field
/// that goes, or changes its meaning, takes a new version.
pub(crate) const SCHEMA: u32 = 1;

impl Record for Status {
    /// The command `handover` reads at most this many bytes.
    const LIMIT: usize = 1024 * 1024;
}

/// The state of the service; the first of these that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum ServiceState {
    /// The supervisor was told to stop.
    Stopping,
    /// A restart that was requested is in progress.
    Restarting,
    /// All processes serve.
    Serving,
    /// Some processes serve.
    Degraded,
    /// No process serves, and at least one starts.
    Starting,
    /// There is no process. The supervisor may be waiting to start one.
    Down,
}

/// A slot for one serving process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct SlotStatus {
    pub(crate) state: SlotState,
    /// How many times a process was started because the process before had exited.
    pub(crate) restarts: u64,
    /// The process; absent, with its other fields, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    /// Since the process was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, arbitrary(with = super::tests::any_optional_seconds))]
    pub(crate) uptime_seconds: Option<f64>,
    /// The last status that the process gave (STATUS= in sd_notify(3)); may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    /// How many requests the process has served; absent if it does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<u64>,
    /// The time until a process is started; absent if there is one, or none is to be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, arbitrary(with = super::tests::any_optional_seconds))]
    pub(crate) starts_in_seconds: Option<f64>,
    /// The process that starts, and is to replace this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<ProcessStatus>,
    /// The last five times that the slot lost its process: the process exited or stopped without
    /// having been asked to, or could not be started. The newest is the last.
    #[serde(default)]
    pub(crate) last_deaths: Vec<DeathStatus>,
}

/// A process that is to serve, or has served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ProcessStatus {
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    pub(crate) state: ProcessState,
    /// Since the process was started.
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) uptime_seconds: f64,
    /// As in [`SlotStatus`].
    pub(crate) status: String,
}

/// The state of a process that is not in a slot, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum ProcessState {
    /// The process is not ready yet.
    Starting,
    /// The process finishes its requests, and exits.
    Draining,
    /// The process was sent SIGABRT.
    Aborting,
}

/// The loss of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct DeathStatus {
    pub(crate) reason: String,
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) seconds_ago: f64,
}

/// The last restart that was requested.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct RestartStatus {
    /// The restart succeeded.
    pub(crate) ok: bool,
    /// Why the restart failed; there if `ok` is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) took_seconds: f64,
    /// Since the end of the restart.
    #[cfg_attr(test, arbitrary(with = super::tests::any_seconds))]
    pub(crate) seconds_ago: f64,
}

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum SlotState {
    /// The process was sent SIGABRT: the process missed a deadline, or made no progress.
    Aborting,
    /// The process serves, and its successor starts.
    Restarting,
    Serving,
    /// The process is not ready yet.
    Starting,
    /// The process stops: it was asked to, or does so by itself.
    Stopping,
    /// There is no process, and one is to be started.
    Waiting,
    /// There is no process, and none is to be started.
    Down,
}

/// A listener that the supervisor holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    /// As [`Addr`](crate::Addr) is written.
    pub(crate) address: String,
}

/// A duration in seconds, rounded to milliseconds.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_requests_are_exact() {
        let restart = ControlRequest::Restart { waits: true };
        assert_eq!(ControlRequest::parse("restart wait\r\n"), Some(restart));
        let scale = |processes, waits| Some(ControlRequest::Scale { processes, waits });
        assert_eq!(ControlRequest::parse("scale 3"), scale(3, false));
        assert_eq!(ControlRequest::parse("scale 12 wait\n"), scale(12, true));
        for line in [
            "",
            "restart  wait",
            "Status",
            "stop now",
            "scale",
            "scale -1",
            "scale  1",
            "scale 1 now",
            "scale wait",
            "scale 99999999999999999999",
            "\u{fffd}",
        ] {
            assert_eq!(ControlRequest::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn seconds_are_rounded_to_milliseconds() {
        let duration = std::time::Duration::from_nanos(1_234_567_890);
        assert_eq!(serde_json::to_string(&seconds(duration)).unwrap(), "1.235");
    }
}
