//! The access log: one line for each response, see [`Http::access_log`](super::Http::access_log).

use std::time::Instant;

use ::http::StatusCode;
use ::http::request::Parts;

use crate::connection::Connection;

/// A line of the access log, from the request until its response.
pub(super) struct AccessLogEntry {
    request_line: String,
    /// `None` for a request without a valid head.
    started_at: Option<Instant>,
}

impl AccessLogEntry {
    pub(super) fn new(request: &Parts) -> Self {
        let (method, uri, version) = (&request.method, &request.uri, request.version);
        Self {
            request_line: format!("{method} {uri} {version:?}"),
            started_at: Some(Instant::now()),
        }
    }

    /// The line for a request that was rejected without a valid head.
    pub(super) fn without_request() -> Self {
        Self {
            request_line: "-".to_owned(),
            started_at: None,
        }
    }

    /// Writes the line. `body_len` is in bytes.
    pub(super) fn write(&self, conn: &Connection, status: StatusCode, body_len: u64) {
        let (peer, line, status) = (conn.peer_addr(), &self.request_line, status.as_u16());
        let millis = self.started_at.map_or(0, |at| at.elapsed().as_millis());
        log::info!(target: "handover::access", "{peer} \"{line}\" {status} {body_len} {millis}");
    }
}
