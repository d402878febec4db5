//! The fields that control a request: where its body ends, and what happens to the connection.
//!
//! | field | accepted | otherwise |
//! |---|---|---|
//! | Host | once in HTTP/1.1, at most once in HTTP/1.0 | 400 |
//! | Content-Length | at most once, 1 to 18 digits | 400 |
//! | Transfer-Encoding | at most once, only `chunked`, in HTTP/1.1, without Content-Length | 400 |
//! | | a list of other codings that ends with `chunked` | 501 |
//! | Connection | any list; `close` and `keep-alive` are known | |
//! | Expect | `100-continue` | 417 |

use ::http::{HeaderName, StatusCode, Version, header};

use super::body_decoder::{BodyDecoder, is_token};
use super::rejection::{Rejection, bad_request};

/// What the control fields of one head say, as far as the head has been read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ControlFields {
    has_host: bool,
    content_length: Option<u64>,
    is_chunked: bool,
    has_close: bool,
    has_keep_alive: bool,
    pub(super) expects_continue: bool,
}

impl ControlFields {
    /// Reads one field, which may be any field.
    pub(super) fn read_field(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Rejection> {
        match *name {
            header::HOST if self.has_host => return Err(bad_request("several Host fields")),
            header::HOST => self.has_host = true,
            header::CONTENT_LENGTH if self.content_length.is_some() => {
                return Err(bad_request("several Content-Length fields"));
            }
            header::CONTENT_LENGTH => self.content_length = Some(parse_content_length(value)?),
            header::TRANSFER_ENCODING if self.is_chunked => {
                return Err(bad_request("several Transfer-Encoding fields"));
            }
            header::TRANSFER_ENCODING => {
                check_transfer_encoding(value)?;
                self.is_chunked = true;
            }
            header::CONNECTION => {
                for option in connection_options(value) {
                    self.has_close |= option.eq_ignore_ascii_case(b"close");
                    self.has_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT if value.eq_ignore_ascii_case(b"100-continue") => {
                self.expects_continue = true;
            }
            header::EXPECT => {
                return Err(Rejection::new(
                    StatusCode::EXPECTATION_FAILED,
                    "the only supported value of Expect is 100-continue",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// The decoder of the body that follows the head (RFC 9112, section 6.3).
    pub(super) fn body_decoder(&self, version: Version) -> Result<BodyDecoder, Rejection> {
        if !self.has_host && version == Version::HTTP_11 {
            return Err(bad_request("no Host field"));
        }
        match (self.is_chunked, self.content_length) {
            (true, Some(_)) => Err(bad_request("both Transfer-Encoding and Content-Length")),
            (true, None) if version == Version::HTTP_10 => {
                Err(bad_request("Transfer-Encoding in an HTTP/1.0 request"))
            }
            (true, None) => Ok(BodyDecoder::chunked()),
            (false, length) => Ok(BodyDecoder::with_length(length.unwrap_or(0))),
        }
    }

    /// Whether the client keeps the connection open after this request (RFC 9112, section 9.3).
    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.has_close && (version == Version::HTTP_11 || self.has_keep_alive)
    }
}

/// The options in the value of a Connection field.
pub(super) fn connection_options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Accepts digits only, and at most 18 of them, which cannot overflow.
fn parse_content_length(value: &[u8]) -> Result<u64, Rejection> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    match text.parse() {
        Ok(length) if text.len() <= 18 && value.iter().all(u8::is_ascii_digit) => Ok(length),
        _ => Err(bad_request("a malformed Content-Length field")),
    }
}

/// Accepts `chunked` only. A list of other codings that ends with `chunked` is well-formed, and
/// gets 501 (RFC 9112, section 6.1). `identity` is reserved and is no coding.
fn check_transfer_encoding(value: &[u8]) -> Result<(), Rejection> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let is_other = |coding: &[u8]| {
        let name = coding.split(|&byte| byte == b';').next();
        let name = name.unwrap_or_default().trim_ascii_end();
        let is_token = !name.is_empty() && name.iter().all(|&byte| is_token(byte));
        is_token && !is_chunked(name) && !name.eq_ignore_ascii_case(b"identity")
    };
    if codings.next().is_some_and(is_chunked) && codings.all(is_other) {
        return Err(Rejection::new(
            StatusCode::NOT_IMPLEMENTED,
            "the only supported transfer coding is chunked",
        ));
    }
    Err(bad_request(
        "a transfer coding that does not end with chunked",
    ))
}
