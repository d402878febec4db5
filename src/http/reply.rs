//! The body of a response, as a handler returns it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};

use ::http::Response;

use super::answer_race::AwaitedAnswer;
use super::body_channel::{BodySender, ChannelBody, body_channel};
use super::reader_body::BodySource;
use crate::connection::Connection;
use crate::log;
use crate::service::{Next, into_io_error};

/// The body of a response.
///
/// Texts, bytes and files of any size are sent as the client reads, and a slow client occupies no
/// worker.
///
/// `()`, texts, bytes and [`File`]s convert into a `Reply`, so that a handler whose responses are
/// all of one kind need not name this type. The Content-Type of a text is
/// `text/plain; charset=utf-8` unless the handler sets another one.
///
/// The service writes the fields that frame the body (Content-Length, Transfer-Encoding), and
/// ignores those of the handler. One exception: a response to HEAD with an empty body may set
/// Content-Length (RFC 9110, section 8.6).
pub struct Reply(pub(super) ReplyKind);

pub(super) enum ReplyKind {
    /// The Content-Type defaults to that of a text.
    Text(Cow<'static, [u8]>),
    Bytes(Cow<'static, [u8]>),
    /// A reader, and how many bytes of it are sent; `None` for all.
    Reader(BodySource, Option<u64>),
    File(File),
    Upgrade(UpgradedProtocol),
    /// Another thread gives the response.
    Later(AwaitedAnswer<Response<Reply>>),
    /// Other threads send the body.
    Channel(ChannelBody),
}

/// The code that serves a connection after an upgrade.
pub(super) type UpgradedProtocol = Box<dyn FnMut(&mut Connection) -> io::Result<Next> + Send>;

impl Reply {
    /// No body.
    pub const fn empty() -> Self {
        Self(ReplyKind::Bytes(Cow::Borrowed(&[])))
    }

    /// The next `length` bytes of `reader`. A worker reads them as the client takes them: when the
    /// client is slow, the connection waits without a worker, and another worker may go on reading.
    /// Any thread of the server may drop `reader`, also when the client leaves early. If `reader`
    /// fails, or ends before `length` bytes, the connection is closed in the middle of the body, so
    /// that the client sees that the body is incomplete.
    pub fn sized(reader: impl Read + Send + 'static, length: u64) -> Self {
        Self(ReplyKind::Reader(contain_drop(reader), Some(length)))
    }

    /// All bytes of `reader`, until its end. The bytes of each read are sent at once, as one chunk.
    /// A read of `reader` that waits holds a worker. A client that does not read holds no worker,
    /// as with [`sized`](Self::sized). If `reader` fails, the connection is closed before the last
    /// chunk. HTTP/1.0 has no chunks: there the close of the connection ends the body.
    pub fn stream(reader: impl Read + Send + 'static) -> Self {
        Self(ReplyKind::Reader(contain_drop(reader), None))
    }

    /// A body that is sent by another thread, with a [`BodySender`], while the connection waits on
    /// no thread. `capacity` bounds the bytes that are sent and not written yet, with about 10 bytes
    /// more for each piece: the frame of its chunk. HTTP/1.0 has no chunks: there the close of the
    /// connection ends the body.
    ///
    /// The server's idle time-out does not apply while the body goes on, however long the pauses
    /// are. A client that does not read is closed at the
    /// [write time-out](crate::Builder::write_timeout). A client that resets the connection or ends
    /// its side has left, as with [`Reply::later`]. If the response has no body, because the
    /// request is HEAD or by its status, the sender finds the body closed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::thread;
    /// use std::time::{Duration, Instant};
    ///
    /// use handover::http::{self, Reply, Response};
    ///
    /// let service = http::service(|_request| {
    ///     let (body, reply) = Reply::channel(64 * 1024);
    ///     thread::spawn(move || {
    ///         for line in 0..1_000_000 {
    ///             let deadline = Instant::now() + Duration::from_secs(10);
    ///             if body.send_by(format!("{line}\n"), deadline).is_err() {
    ///                 // The client has left, or reads too slowly: the body must not look complete.
    ///                 return body.abort();
    ///             }
    ///         }
    ///     });
    ///     Response::new(reply)
    /// });
    /// ```
    pub fn channel(capacity: usize) -> (BodySender, Self) {
        let (sender, body) = body_channel(capacity);
        (sender, Self(ReplyKind::Channel(body)))
    }

    /// Gives the connection away to another protocol: `protocol` is called right after the head of
    /// the response. The response is a 101 (Switching Protocols) with an Upgrade field, or a 2xx to
    /// CONNECT (RFC 9110, sections 7.8 and 9.3.6). With any other status of a response that may have
    /// a body, the head says `Connection: close`, and all that `protocol` writes is the body, up to
    /// the close (RFC 9112, section 6.3). To HEAD, only the head is sent then.
    ///
    /// From then on `protocol` serves the connection as [`Service::serve`](crate::Service::serve)
    /// does: it may loop over blocking reads and return [`Next::Close`], or return [`Next::Park`]
    /// or [`Next::More`] and be called again when the client has sent something.
    ///
    /// The connection's time-outs stay as they are. Set longer ones if the protocol has long
    /// pauses.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{BufRead, Write};
    /// use handover::http::{self, HeaderValue, Reply, Response, StatusCode, header};
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
    ///     let protocol = HeaderValue::from_static("echo");
    ///     response.headers_mut().insert(header::UPGRADE, protocol);
    ///     response
    /// });
    /// ```
    pub fn upgrade(
        protocol: impl FnMut(&mut Connection) -> io::Result<Next> + Send + 'static,
    ) -> Self {
        Self(ReplyKind::Upgrade(Box::new(protocol)))
    }

    /// As [`upgrade`](Self::upgrade), with two functions as those of
    /// [`service_with_session`](crate::service_with_session): `session` is called once, when the
    /// other protocol begins, and `protocol` gets what it has returned. An error of either closes the
    /// connection, also a `WouldBlock` of `session`, which cannot wait for its client.
    ///
    /// # Examples
    ///
    /// Other threads send to the clients:
    ///
    /// ```
    /// use std::io;
    /// use std::sync::Mutex;
    ///
    /// use handover::http::{Reply, Response, StatusCode};
    /// use handover::{Connection, Next, Outbox};
    ///
    /// static CLIENTS: Mutex<Vec<Outbox>> = Mutex::new(Vec::new());
    ///
    /// fn enter(conn: &mut Connection) -> io::Result<u64> {
    ///     CLIENTS.lock().unwrap().push(conn.outbox(64 * 1024));
    ///     Ok(0)
    /// }
    ///
    /// fn serve(conn: &mut Connection, lines: &mut u64) -> io::Result<Next> {
    ///     while let Some(_line) = conn.take_line(1024)? {
    ///         *lines += 1;
    ///     }
    ///     Ok(Next::incomplete(conn))
    /// }
    ///
    /// let mut response = Response::new(Reply::upgrade_with(enter, serve));
    /// *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    /// ```
    pub fn upgrade_with<S, E>(
        session: impl FnOnce(&mut Connection) -> Result<S, E> + Send + 'static,
        mut protocol: impl FnMut(&mut Connection, &mut S) -> Result<Next, E> + Send + 'static,
    ) -> Self
    where
        S: Send + 'static,
        E: Into<Box<dyn Error>> + 'static,
    {
        let (mut begin, mut begun) = (Some(session), None);
        Self::upgrade(move |conn| {
            if let Some(begin) = begin.take() {
                let session = begin(conn).map_err(into_io_error);
                // It can be called once only.
                begun = Some(session.inspect_err(|_| conn.forget_blocked_view())?);
            }
            match &mut begun {
                Some(session) => protocol(conn, session).map_err(into_io_error),
                None => Ok(Next::Close),
            }
        })
    }
}

/// A reader of the application whose drop may panic. The panic ends here: the drop may be a part of
/// another panic, and two panics at once would end the process.
struct ContainedDrop<R>(Option<R>);

fn contain_drop(reader: impl Read + Send + 'static) -> BodySource {
    BodySource::Reader(Box::new(ContainedDrop(Some(reader))))
}

impl<R: Read> Read for ContainedDrop<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Ok(0), |reader| reader.read(into))
    }
}

impl<R> Drop for ContainedDrop<R> {
    fn drop(&mut self) {
        let reader = self.0.take();
        log::drop_contained("the reader of a response", reader);
    }
}

impl ReplyKind {
    /// The body's length in bytes; `None` if it is unknown. A file is sent from its present
    /// position to its end.
    #[inline]
    pub(super) fn length(&self) -> io::Result<Option<u64>> {
        Ok(match self {
            Self::Text(bytes) | Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Reader(_, length) => *length,
            Self::File(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    let text = "only the contents of regular files can be sent";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                Some(metadata.len().saturating_sub((&*file).stream_position()?))
            }
            Self::Upgrade(_) | Self::Later(_) | Self::Channel(_) => None,
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
        Self(ReplyKind::Text(text.as_bytes().into()))
    }
}

impl From<String> for Reply {
    fn from(text: String) -> Self {
        Self(ReplyKind::Text(text.into_bytes().into()))
    }
}

impl From<&'static [u8]> for Reply {
    fn from(bytes: &'static [u8]) -> Self {
        Self(ReplyKind::Bytes(bytes.into()))
    }
}

impl From<Vec<u8>> for Reply {
    fn from(bytes: Vec<u8>) -> Self {
        Self(ReplyKind::Bytes(bytes.into()))
    }
}

/// The file from its present position to its end. Where the system can send files (`sendfile`), the
/// contents are not copied through the program.
impl From<File> for Reply {
    fn from(file: File) -> Self {
        Self(ReplyKind::File(file))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, length) = match &self.0 {
            ReplyKind::Text(bytes) | ReplyKind::Bytes(bytes) => ("Bytes", Some(bytes.len() as u64)),
            ReplyKind::Reader(_, length) => ("Reader", *length),
            ReplyKind::File(_) => ("File", None),
            ReplyKind::Upgrade(_) => ("Upgrade", None),
            ReplyKind::Later(_) => ("Later", None),
            ReplyKind::Channel(_) => ("Channel", None),
        };
        f.debug_struct("Reply")
            .field("kind", &name)
            .field("length", &length)
            .finish_non_exhaustive()
    }
}
