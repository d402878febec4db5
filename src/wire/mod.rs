//! What crosses a process boundary: typed records in one format.
//!
//! A record is one JSON object (RFC 8259) on one line, in UTF-8, so that strace shows what two
//! processes told each other.
//!
//! - The first field, `v`, is the version of the format: [`VERSION`]. A record of another version
//!   is an error that names the version.
//! - Where records of several kinds use one channel, the second field, `type`, names the kind. A
//!   record of an unknown kind is an error.
//! - Unknown fields are ignored, and a field without a value is null, or left out: a later release
//!   may add fields. A field that goes, or changes its meaning, takes a new version. `v`, `type`
//!   and `pid` keep their meaning in every version.
//! - Each record type states its longest encoding, which holds for writing and for reading.
//! - A path is a string, or an array of its bytes if it is not UTF-8 ([`WirePath`]).
//! - Fields whose names end in `_ms` or `_seconds` are durations. Descriptors are numbers.
//!
//! | record | channel | encoding at most |
//! |---|---|---|
//! | [`Launch`] | environment variable `HANDOVER` of a process that we start | 64 KiB |
//! | [`HandshakeMessage`] | socket pair between a process and its successor; lane of a process | 64 KiB |
//! | [`MoveMessage`] | socket pair for connections, which comes with a `HandshakeMessage` | 128 KiB |
//! | [`HandoverFields`] | variable `X_HANDOVER` in an sd_notify(3) datagram | 24 KiB |
//! | [`BindAnswer`] | socket that came with the bind request in `HandoverFields` | 1 KiB |
//! | [`Snapshot`] | file that the supervisor leaves to the program that replaces it | 16 MiB |
//! | [`Status`], [`Answer`] | control socket, one line | 1 MiB |
//! | [`Answer`] | file that the dry run of an upgrade writes | 1 MiB |
//!
//! systemd's own variables (sd_notify(3), sd_listen_fds(3)) are systemd's format. The requests on
//! the control socket are plain text ([`ControlRequest`]). The name under which systemd stores a
//! listener for us is no JSON, as systemd limits the characters: see
//! [`ListenerRecord::to_stored_name`].
//!
//! # Examples
//!
//! Records that are too long for a line here are wrapped and indented.
//!
//! [`Launch`], with spaces that fill the room for the process id:
//!
//! ```text
//! {"v":1,"type":"successor","generation":2,"handshake":4,"stderr":[5,6],"state":7,
//!   "matched_by_name":[0],"earlier":[{"generation":1,"socket":8,"drains_until":null}],
//!   "start_pipe":9,"pid":4711      }
//! {"v":1,"type":"serve","generation":3,"lifeline":4,"matched_by_name":[],"pid":4711      }
//! {"v":1,"type":"dry_run","snapshot":3,"report":4,"pid":4711      }
//! {"v":1,"type":"resume","snapshot":9,"pid":4711      }
//! ```
//!
//! [`HandshakeMessage`]:
//!
//! ```text
//! {"v":1,"type":"hello"}
//! {"v":1,"type":"ready","adopts":true,"imports":false}
//! {"v":1,"type":"cutover","has_state":false}
//! {"v":1,"type":"accepting","taken":[0,2]}
//! {"v":1,"type":"commit","paths":["/run/app.sock",[47,114,117,110,47,255]],
//!   "drain_millis":30000}
//! {"v":1,"type":"ack"}
//! {"v":1,"type":"proceed"}
//! {"v":1,"type":"connections","listeners":[{"name":"web","addr":{"tcp":"0.0.0.0:80"}}],
//!   "position":0}
//! {"v":1,"type":"recipient"}
//! {"v":1,"type":"leave"}
//! {"v":1,"type":"abort","reason":"the server is being stopped"}
//! {"v":1,"type":"restart_again"}
//! {"v":1,"type":"restarted","pid":4712,"generation":3,"ready_after_nanos":4711000,
//!   "paused_for_nanos":null}
//! {"v":1,"type":"restart_failed","kind":"timed_out","reason":"the successor was not ready",
//!   "errno":null,"status":9,"stderr":["no configuration"]}
//! {"v":1,"type":"drained",
//!   "report":"generation 1 (process 4711) stopped in 0.02 s: 3 finished, 0 forced, 0 dropped"}
//! ```
//!
//! [`MoveMessage`]:
//!
//! ```text
//! {"v":1,"type":"connections","version":2,"batch":0,"records":[
//!   {"listener":{"name":"web","addr":{"tcp":"0.0.0.0:80"}},
//!   "peer":{"tcp":"192.0.2.7:50112"},"idle_left_ms":75000,"bytes_in":48,"bytes_out":1212,
//!   "settings":{"idle_timeout_ms":600000},"unread":"GET / HTTP/1.1\r\n","session":{"hex":"ff00"}},
//!   {"listener":{"name":"local","addr":{"unix":"/run/app.sock"}},"peer":{"unix":null},"is_new":true,"bytes_in":0,"bytes_out":0}]}
//! {"v":1,"type":"ack","batch":0,"refused":[{"index":1,"why":"listener"}]}
//! ```
//!
//! [`HandoverFields`], with one or more of its fields:
//!
//! ```text
//! {"v":1,"generation":2,"listeners":[{"name":"127.0.0.1_80","matches_by_name":false,
//!   "removes_file":false}],"bind":null,"successor":null,"failed":null}
//! {"v":1,"generation":2,"listeners":[],"bind":{"addr":{"tcp":"127.0.0.1:80"},"name":null,
//!   "backlog":1024,"fast_open":null,"unix_mode":null,"defer_accept":false,"reuse_port":false,
//!   "only_v6":false,"nodelay":true,"unix_descriptors":false},"successor":null,"failed":null}
//! {"v":1,"generation":null,"listeners":[],"bind":null,"successor":4712,"failed":null}
//! {"v":1,"generation":2,"listeners":[],"bind":null,"successor":null,
//!   "failed":"the successor exited before it was ready"}
//! {"v":1,"generation":null,"listeners":[],"bind":null,"successor":null,"failed":null,
//!   "requests":48151}
//! {"v":1,"generation":2,"listeners":[],"bind":null,"successor":null,"failed":null,"lane":true}
//! ```
//!
//! [`BindAnswer`]; the listener goes with the first one:
//!
//! ```text
//! {"v":1,"type":"given"}
//! {"v":1,"type":"refused","in_use":false,"errno":13,"text":"Permission denied (os error 13)",
//!   "is_forbidden":false}
//! ```
//!
//! [`Snapshot`]:
//!
//! ```text
//! {"v":1,"age_ms":81204,"notify_socket":7,"lifeline":[8,9],"control":10,
//!   "control_file":[25,311],"pid_file":"/run/app.pid","upgrade_clients":[11],
//!   "listeners":[{"descriptor":12,"kept_when_unused":true,"held_by_manager":false,
//!   "listener":{"name":"web","matches_by_name":true,"removes_file":false},"file":null}],
//!   "allowed_binds":[{"tcp":"0.0.0.0:80"}],"fleet":{"sent_ready":true,
//!   "has_been_ready":true,"exit_code":0,"last_restart":{"error":null,
//!   "took_seconds":0.125,"age_ms":4000},"recycle_in_ms":0,"scale":null,
//!   "slots":[{"generation":2,"restarts":1,"failures":0,
//!   "start_in_ms":null,"recycled_for_size_ms":null,
//!   "deaths":[{"age_ms":9000,"why":"process 4709 exited after serving for 3.0 s (exit status: 1)"}],
//!   "current":{"slot":0,"pid":4711,"generation":2,"age_ms":4000,"ready_ms":3900,
//!   "stage":{"serving":{"is_watched":true}},"is_adopted":true,"starts_successors":true,
//!   "watchdog_ms":60000,"listeners":[[8,48151]],"status":"generation 2 serves",
//!   "requests":48151,"first_size":null,"has_lane":true,"has_left":false}}],
//!   "processes":[]},"guardian":[13,4705],"earlier_children":[4690],"had_children":true,
//!   "stragglers":[{"group":4702,"stage":"terminated","left_ms":26000}],
//!   "outputs":[{"path":"/var/log/app.log","stdout":false,"stderr":true,
//!   "reader":14,"writer":15,"log_writer":[16,4706]}],
//!   "lanes":[{"pid":4711,"uid":1000,"descriptor":17}]}
//! ```
//!
//! [`Status`] and [`Answer`]:
//!
//! ```text
//! {"v":1,"ok":true,"schema":1,"pid":4700,"version":"0.1.0","program":"/srv/app",
//!   "event_objects":null,"state":"serving","uptime_seconds":81.204,"processes":[{"state":"serving","restarts":1,
//!   "pid":4711,"generation":2,"uptime_seconds":4.0,"status":"generation 2 serves",
//!   "requests":48151,"last_deaths":[{"reason":"process 4709 exited after serving for 3.0 s (exit status: 1)",
//!   "seconds_ago":9.0}]}],"draining":[{"pid":4710,"generation":1,"state":"draining",
//!   "uptime_seconds":13.0,"status":"2 connections left"}],
//!   "listeners":[{"name":"web","address":"127.0.0.1:80"}],"last_restart":{"ok":true,
//!   "took_seconds":0.125,"seconds_ago":4.0}}
//! {"v":1,"ok":true}
//! {"v":1,"ok":false,"error":"the supervisor is being stopped","took_seconds":0.0}
//! ```

mod bind;
mod connection;
mod control;
mod handover_fields;
mod handshake;
mod launch;
mod path;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

pub(crate) use bind::{BindAddr, BindAnswer, BindOptions, BindRequest};
pub(crate) use connection::{
    BATCH_LEN, Batch, ConnectionRecord, ConnectionSettings, ListenerId, MoveMessage, Pushed,
    Refusal, RefusedConnection, UnknownBatch, WireAddr, WireBytes,
};
pub(crate) use control::{
    Answer, ControlRequest, DeathStatus, ListenerStatus, ProcessState, ProcessStatus,
    RestartStatus, SCHEMA, ServiceState, SlotState, SlotStatus, Status, seconds,
};
pub(crate) use handover_fields::{HandoverFields, ListenerRecord, to_fd_name};
pub(crate) use handshake::{HandshakeMessage, RestartFailure, ServerId};
pub(crate) use launch::{EarlierGeneration, Launch, LaunchError};
pub(crate) use path::WirePath;
pub(crate) use snapshot::{
    DeathRecord, FleetRecord, LaneRecord, OutputRecord, ProcessRecord, RestartRecord, SlotRecord,
    Snapshot, SnapshotListener, StageRecord, StragglersRecord, StragglersStage,
};

/// The version of the format that this process writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;

/// A type that is encoded as the head of this module says.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The length of the longest encoding, in bytes.
    const LIMIT: usize;

    /// The record as one line of JSON, without the end of the line.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLong`] if the encoding is longer than [`LIMIT`](Self::LIMIT).
    fn encode(&self) -> Result<String, WireError> {
        let (v, record) = (VERSION, self);
        let text = serde_json::to_string(&Envelope { v, record }).map_err(WireError::Malformed)?;
        match text.len() <= Self::LIMIT {
            true => Ok(text),
            false => Err(WireError::TooLong(Self::LIMIT)),
        }
    }

    /// Reads what [`encode`](Self::encode) has written, here or in a process of another release.
    ///
    /// # Errors
    ///
    /// [`WireError`] says why the bytes are no record of this type.
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > Self::LIMIT {
            return Err(WireError::TooLong(Self::LIMIT));
        }
        let header = Header::decode(bytes)?;
        if header.v != VERSION {
            return Err(WireError::Version(header.v));
        }
        serde_json::from_slice(bytes).map_err(WireError::Malformed)
    }
}

#[derive(Serialize)]
struct Envelope<'a, R> {
    v: u32,
    #[serde(flatten)]
    record: &'a R,
}

/// The fields that mean the same in every version.
#[derive(Deserialize)]
struct Header {
    v: u32,
    #[serde(rename = "type")]
    kind: Option<String>,
    pid: Option<u32>,
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        serde_json::from_slice(bytes).map_err(WireError::Malformed)
    }
}

/// Why a value has no encoding, or bytes are no record.
#[derive(Debug)]
pub(crate) enum WireError {
    /// The encoding is longer than this many bytes.
    TooLong(usize),
    /// The record is of this version of the format.
    Version(u32),
    /// The bytes are not JSON, the kind is unknown, or a field is missing or has an invalid value.
    Malformed(serde_json::Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(limit) => write!(f, "the record is longer than {limit} bytes"),
            Self::Version(found) => write!(
                f,
                "the record is of version {found}, this process reads version {VERSION}"
            ),
            Self::Malformed(error) => write!(f, "the record is malformed: {error}"),
        }
    }
}

impl std::error::Error for WireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed(error) => Some(error),
            _ => None,
        }
    }
}

impl From<WireError> for io::Error {
    fn from(error: WireError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Writes at most `LIMIT` bytes of a text, so that no text makes its record too long.
fn shortened<const LIMIT: usize, S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    let ends = (0..=LIMIT.min(text.len())).rev();
    let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
    to.serialize_str(&text[..end.unwrap_or_default()])
}
