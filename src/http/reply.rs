//! What a handler answers with: the body of a response, in all its kinds.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};

use crate::connection::Connection;
use crate::service::Next;

/// The body of a response.
///
/// `()`, texts, bytes and [`File`]s turn into one by `into`, so that a handler that has only one kind of answer need
/// not name this type. A text is sent as `text/plain; charset=utf-8` unless the handler sets a Content-Type.
///
/// The fields that frame a message (Content-Length, Transfer-Encoding) are the service's: it writes those that are
/// right for the body, and ignores a handler's. Only a response to HEAD with an empty body may set Content-Length.
pub struct Reply {
    pub(super) kind: Kind,
    /// It is text, and says so by default.
    pub(super) is_text: bool,
}

pub(super) enum Kind {
    Static(&'static [u8]),
    Bytes(Vec<u8>),
    Sized(Box<dyn Read>, u64),
    Stream(Box<dyn Read>),
    File(File),
    Upgrade(Protocol),
}

/// What goes on with a connection after an upgrade.
pub(super) type Protocol = Box<dyn FnMut(&mut Connection) -> io::Result<Next> + Send>;

impl Reply {
    /// No body.
    pub const fn empty() -> Self {
        Self::from_kind(Kind::Static(&[]))
    }

    /// The next `length` bytes of `reader`. If it gives fewer, or fails, the connection is closed in the middle of
    /// the body, so that the client sees that it is not whole.
    pub fn sized(reader: impl Read + 'static, length: u64) -> Self {
        Self::from_kind(Kind::Sized(Box::new(reader), length))
    }

    /// All that `reader` gives. What each of its reads returns is sent at once, as a chunk of its own. To a client
    /// that speaks HTTP/1.0 it is sent without chunks, and the close of the connection is its end. If `reader`
    /// fails, the connection is closed before the last chunk.
    pub fn stream(reader: impl Read + 'static) -> Self {
        Self::from_kind(Kind::Stream(Box::new(reader)))
    }

    /// Gives the connection away: `protocol` is called right after the head of the response, which must be 101
    /// (Switching Protocols) with an Upgrade field, or 2xx to CONNECT. From then on it is what a
    /// [`Service`](crate::Service) is to the connection: it may loop over blocking reads and return [`Next::Close`],
    /// or return [`Next::Park`] or [`Next::More`] and be called again when the client has sent something.
    ///
    /// The connection's time-outs stay as they are; change them if the protocol is one of long silences.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{BufRead, Write};
    /// use handover::http::{self, Reply, Response, StatusCode, header};
    /// use handover::Next;
    ///
    /// let service = http::service(|_request| {
    ///     let mut response = Response::new(Reply::upgrade(|conn| {
    ///         let bytes = conn.buffer().to_vec();
    ///         conn.write_all(&bytes)?;
    ///         conn.consume(bytes.len());
    ///         Ok(Next::Park)
    ///     }));
    ///     *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    ///     response.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("echo"));
    ///     response
    /// });
    /// ```
    pub fn upgrade(
        protocol: impl FnMut(&mut Connection) -> io::Result<Next> + Send + 'static,
    ) -> Self {
        Self::from_kind(Kind::Upgrade(Box::new(protocol)))
    }

    const fn from_kind(kind: Kind) -> Self {
        Self {
            kind,
            is_text: false,
        }
    }

    const fn text(kind: Kind) -> Self {
        Self {
            kind,
            is_text: true,
        }
    }
}

impl Kind {
    /// How long the body is; `None` if nobody knows. A file is sent from its present position to its end.
    pub(super) fn length(&mut self) -> io::Result<Option<u64>> {
        Ok(match self {
            Self::Static(bytes) => Some(bytes.len() as u64),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Sized(_, length) => Some(*length),
            Self::File(file) => {
                let found = file.metadata()?;
                if !found.is_file() {
                    let text = "only the contents of regular files can be sent";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                Some(found.len().saturating_sub(file.stream_position()?))
            }
            Self::Stream(_) | Self::Upgrade(_) => None,
        })
    }
}

impl Default for Reply {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl From<&'static str> for Reply {
    fn from(text: &'static str) -> Self {
        Self::text(Kind::Static(text.as_bytes()))
    }
}

impl From<String> for Reply {
    fn from(text: String) -> Self {
        Self::text(Kind::Bytes(text.into_bytes()))
    }
}

impl From<&'static [u8]> for Reply {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from_kind(Kind::Static(bytes))
    }
}

impl From<Vec<u8>> for Reply {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_kind(Kind::Bytes(bytes))
    }
}

/// The file from its present position to its end, without a copy through the program where the system can do that.
impl From<File> for Reply {
    fn from(file: File) -> Self {
        Self::from_kind(Kind::File(file))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, length) = match &self.kind {
            Kind::Static(bytes) => ("Static", Some(bytes.len() as u64)),
            Kind::Bytes(bytes) => ("Bytes", Some(bytes.len() as u64)),
            Kind::Sized(_, length) => ("Sized", Some(*length)),
            Kind::Stream(_) => ("Stream", None),
            Kind::File(_) => ("File", None),
            Kind::Upgrade(_) => ("Upgrade", None),
        };
        f.debug_struct("Reply")
            .field("kind", &name)
            .field("length", &length)
            .finish_non_exhaustive()
    }
}
