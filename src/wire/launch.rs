//! The launch record: the role of a process that we start, and the numbers of its descriptors.

use serde::{Deserialize, Serialize};

use super::{Header, Record, VERSION, WireError};

/// What a process is started as. `matched_by_name` lists the listeners that a bind request matches
/// by name, even if the address differs: positions in `LISTEN_FDS`. Other numbers are descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum Launch {
    /// The successor of the process that started it.
    Successor {
        generation: u64,
        /// The socket for [`HandshakeMessage`](super::HandshakeMessage)s.
        handshake: i32,
        /// The predecessor's standard error. The successor's own is a pipe until the successor is
        /// ready. The second descriptor is the reading end of this pipe, so that writing is no
        /// error when the predecessor dies.
        stderr: Option<(i32, i32)>,
        /// A file with the state that the predecessor passes.
        state: Option<i32>,
        matched_by_name: Vec<u32>,
        /// The predecessor, and the earlier generations that still drain.
        #[serde(default)]
        earlier: Vec<EarlierGeneration>,
        /// The writing end of a pipe that is closed when the successor can serve. Then it does not
        /// hang in its start.
        #[serde(default)]
        start_pipe: Option<i32>,
    },
    /// A serving process of the supervisor that started it.
    Serve {
        generation: u64,
        /// A socket on which the process sees end-of-file when the supervisor dies.
        lifeline: i32,
        matched_by_name: Vec<u32>,
    },
    /// A process that reads a supervisor's snapshot, reports the result, and exits.
    DryRun {
        /// A file with a [`Snapshot`](super::Snapshot).
        snapshot: i32,
        /// An empty file, for an [`Answer`](super::Answer).
        report: i32,
    },
    /// The supervisor itself, replaced in place by this program.
    Resume { snapshot: i32 },
}

/// A generation that drains, or will when its successor has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct EarlierGeneration {
    pub(crate) generation: u64,
    /// A socket on which a process sees end-of-file when this generation has drained.
    pub(crate) socket: i32,
    /// When the drain is over at the latest, by the system's monotonic clock, in nanoseconds.
    /// `None`: the generation serves still, or drains without a limit.
    pub(crate) drains_until: Option<u64>,
}

impl Record for Launch {
    const LIMIT: usize = 64 * 1024;
}

impl Launch {
    /// The name of the environment variable.
    pub(crate) const VARIABLE: &'static str = "HANDOVER";

    /// The encoding with a last field `pid`, the process that the record is for: what stands
    /// before and behind the id, which only the new process knows.
    ///
    /// # Errors
    ///
    /// As [`Record::encode`].
    pub(crate) fn encode_around_pid(&self) -> Result<(String, &'static str), WireError> {
        let mut text = self.encode()?;
        text.pop();
        Ok((text + ",\"pid\":", "}"))
    }

    /// Reads the variable of the process `pid`. `None` if the variable is no record for this
    /// process: a record that its parent was started with, or anything else.
    ///
    /// # Errors
    ///
    /// [`LaunchError`] if the record is for this process, and cannot be understood.
    pub(crate) fn read(text: &str, pid: u32) -> Result<Option<Self>, LaunchError> {
        let header = Header::decode(text.as_bytes());
        let Some(header) = header.ok().filter(|header| header.pid == Some(pid)) else {
            return Ok(None);
        };
        let by_predecessor = header.kind.as_deref() == Some("successor");
        let launch = Self::decode(text.as_bytes()).map(Some);
        launch.map_err(|cause| {
            let starter = match by_predecessor {
                true => "predecessor",
                false => "supervisor",
            };
            let text = match cause {
                WireError::Version(found) => format!(
                    "the {starter} uses version {found} of the protocol, but this process uses \
                     version {VERSION}"
                ),
                cause => format!("cannot read {} of the {starter}: {cause}", Self::VARIABLE),
            };
            LaunchError {
                by_predecessor,
                text,
            }
        })
    }
}

/// Why a launch record that is for this process cannot be read.
#[derive(Debug)]
pub(crate) struct LaunchError {
    /// The predecessor started the process. If false, a supervisor started it.
    pub(crate) by_predecessor: bool,
    /// The reason in words, with the writer of the record.
    pub(crate) text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_record_is_for_one_process() {
        let record =
            r#"{"v":1,"type":"serve","generation":3,"lifeline":4,"matched_by_name":[1],"pid":77 }"#;
        let launch = Launch::read(record, 77).unwrap();
        assert!(matches!(launch, Some(Launch::Serve { generation: 3, .. })));
        for nothing in ["", "1", "{}", "1,2,3,4,-,1", r#"{"pid":77}"#, &record[..70]] {
            assert!(matches!(Launch::read(nothing, 77), Ok(None)), "{nothing}");
        }
        assert!(matches!(Launch::read(record, 78), Ok(None)));
    }

    #[test]
    fn a_launch_record_that_is_not_understood_says_who_wrote_it() {
        for (record, text) in [
            (
                r#"{"v":2,"type":"successor","pid":77}"#,
                "the predecessor uses version 2 of the protocol, but this process uses version 1",
            ),
            (
                r#"{"v":2,"type":"serve","pid":77}"#,
                "the supervisor uses version 2 of the protocol, but this process uses version 1",
            ),
            (
                r#"{"v":1,"type":"successor","generation":2,"pid":77}"#,
                "cannot read HANDOVER of the predecessor: the record is malformed: missing field",
            ),
            (
                r#"{"v":1,"type":"else","pid":77}"#,
                "cannot read HANDOVER of the supervisor: the record is malformed: unknown variant `else`",
            ),
        ] {
            let error = Launch::read(record, 77).unwrap_err().text;
            assert!(error.starts_with(text), "{error}");
            assert!(matches!(Launch::read(record, 78), Ok(None)));
        }
    }
}
