//! The plan of a response: how the response marks its end, and what its head says about the
//! connection.
//!
//! The first row that matches decides about the body:
//!
//! | response | framing | body |
//! |---|---|---|
//! | 204, 304, an upgrade with 101, 2xx to CONNECT | none | not sent |
//! | 205 | Content-Length: 0 | not sent |
//! | an upgrade with any other status | the close of the connection | written by the protocol, except to HEAD |
//! | to HEAD, with an empty reply | the handler's Content-Length, else 0 | not sent |
//! | the length is known | Content-Length | sent, except to HEAD |
//! | to HTTP/1.1 | chunks | sent, except to HEAD |
//! | to HTTP/1.0 | the close of the connection | sent, except to HEAD |
//!
//! The connection is closed after the response if the request or the response demands it, if the
//! close ends the body, and after a 2xx to CONNECT without an upgrade.

use ::http::{HeaderMap, Response, StatusCode, Version, header};

use super::control_fields::connection_options;
use super::head::RequestHead;
use super::reply::{Reply, ReplyKind};

/// How a response marks the end of its body (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body, and no field about its length.
    NoBody,
    Length(u64),
    Chunks,
    /// The close of the connection is the end.
    Close,
}

/// The decisions about a response, made before any byte of the response is written.
pub(super) struct ResponsePlan {
    pub(super) framing: Framing,
    /// The Connection field's line; empty if the response has none.
    pub(super) connection_line: &'static [u8],
    pub(super) sends_body: bool,
    pub(super) closes: bool,
    /// The connection goes to another protocol.
    pub(super) gives_away: bool,
}

impl ResponsePlan {
    /// Makes the plan. `is_body_consumed`: no part of the request's body is left on the connection.
    /// The error says why the response is not valid.
    #[inline]
    pub(super) fn new(
        request: &RequestHead,
        is_body_consumed: bool,
        response: &Response<Reply>,
    ) -> Result<Self, String> {
        let (status, fields, Reply(reply)) =
            (response.status(), response.headers(), response.body());
        let is_tunnel = request.is_connect && status.is_success();
        let is_upgrade = matches!(reply, ReplyKind::Upgrade(_));
        let is_switch =
            status == StatusCode::SWITCHING_PROTOCOLS && request.version == Version::HTTP_11;
        // After any other final status, what the protocol writes is the body of the response.
        let is_body = is_upgrade && !status.is_informational() && !is_tunnel;
        let may_have_body = !matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
        let may_upgrade = is_body_consumed && (is_tunnel || is_switch || is_body && may_have_body);
        if is_upgrade && !may_upgrade || status.is_informational() && !is_upgrade {
            return Err(format!(
                "status {status} does not fit its body or the request"
            ));
        }
        let length = reply.length().map_err(|error| error.to_string())?;
        let framing = match (status, length) {
            (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => Framing::NoBody,
            _ if is_body => Framing::Close,
            _ if is_upgrade || is_tunnel => Framing::NoBody,
            (StatusCode::RESET_CONTENT, _) => Framing::Length(0),
            (_, Some(0)) if request.is_head => Framing::Length(promised_length(fields)),
            (_, Some(length)) => Framing::Length(length),
            (_, None) if request.version == Version::HTTP_11 => Framing::Chunks,
            (_, None) => Framing::Close,
        };
        let gives_away = is_upgrade && !(is_body && request.is_head);
        let closes = !gives_away
            && (!request.keep_alive
                || framing == Framing::Close
                || is_tunnel
                || (!fields.is_empty() && has_close_option(fields)));
        // A response that only offers an upgrade names the Upgrade field there too (RFC 9110,
        // section 7.8).
        let has_upgrade_field =
            is_upgrade && !is_body || (!fields.is_empty() && fields.contains_key(header::UPGRADE));
        let connection_line: &[u8] = match (has_upgrade_field, closes || is_body, request.version) {
            _ if is_upgrade && is_tunnel => b"",
            (true, true, _) => b"Connection: Upgrade, close\r\n",
            (true, false, Version::HTTP_10) => b"Connection: Upgrade, keep-alive\r\n",
            (true, false, _) => b"Connection: Upgrade\r\n",
            (false, true, _) => b"Connection: close\r\n",
            (false, false, Version::HTTP_10) => b"Connection: keep-alive\r\n",
            (false, false, _) => b"",
        };
        Ok(Self {
            framing,
            connection_line,
            sends_body: !request.is_head
                && framing != Framing::NoBody
                && status != StatusCode::RESET_CONTENT,
            closes,
            gives_away,
        })
    }
}

/// Whether the handler's Connection field contains `close`.
fn has_close_option(fields: &HeaderMap) -> bool {
    let values = fields.get_all(header::CONNECTION).iter();
    let mut options = values.flat_map(|value| connection_options(value.as_bytes()));
    options.any(|option| option.eq_ignore_ascii_case(b"close"))
}

/// The length of the body that a response to HEAD does not have: the handler's Content-Length.
fn promised_length(fields: &HeaderMap) -> u64 {
    let length = fields.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}
