//! A connection as a library without threads of its own wants it: nothing waits, and what would
//! have to wait is `WouldBlock`.

use std::io::{self, BufRead, IoSlice, Read, Write};

use super::{Connection, Filled, READ_SIZE};

/// How many bytes the views of one call read before other connections have their turn.
const READ_TURN: u64 = 256 * 1024;

/// Why a view could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// No input has arrived.
    Input,
    /// The output limit is reached: the client has to read first.
    Output,
    /// The call has read [`READ_TURN`] bytes.
    Turn,
}

/// A view of a connection whose reads and writes never wait. From
/// [`Connection::nonblocking`].
///
/// Libraries that read and write a stream themselves run over this view, and their clients park:
/// protocols such as WebSocket (`tungstenite`), TLS (`rustls`), codecs. Where the library would
/// have to wait, the view fails with `WouldBlock`; the library keeps what it has, and returns this
/// error. **The service passes the error on with `?`**: a call that ends with the `WouldBlock` of
/// its view is no failure.
///
/// | the view | is the same as | the service is called |
/// |---|---|---|
/// | has no input | [`Next::Park`] | when more has arrived |
/// | has as much unwritten output as the [output limit](crate::Builder::output_limit), or has read 256 KiB in this call | [`Next::Again`] | when the output is written, and others had their turn |
///
/// The error may be the [`source`](std::error::Error::source) of an error of the library, or one that
/// the library has made in its place. A `WouldBlock` with a code of the system
/// ([`raw_os_error`](io::Error::raw_os_error)) is that of another socket, such as a time-out of
/// reading from a backend: it is a failure. The library gets a new view in each call of the service, and continues where it was interrupted.
///
/// # Reading
///
/// Gives what is in the [`buffer`](Connection::buffer), then what has arrived by now, and 0 at the
/// end of the stream.
///
/// The library may keep a part of a message. Only the service can know: the connection's buffer is
/// empty. With [`Next::Park`] such a connection counts as idle. Its client has the
/// [idle time-out](crate::Builder::idle_timeout) for each part, so that one byte now and then keeps
/// the message open for ever, and a stop closes it in the middle of the message. If the service can
/// tell that a message has begun, and the library [needs input](Self::needs_input), it returns
/// [`Next::More`] in place of the error. Then the
/// [read time-out](crate::Builder::read_timeout) and the
/// [minimum rate](crate::Builder::min_rate) hold, and a stop waits for the message. Otherwise
/// bound messages by a timer ([`Connection::wake_at`]), or by a ping that the client has to answer.
///
/// # Writing
///
/// A write takes all of its bytes, and never waits. Output leaves when the call ends;
/// [`flush`](Write::flush) sends what the socket takes now. While the output that waits for the
/// client has reached the limit, writes fail with `WouldBlock`, and so do reads: a service that
/// answers what it reads is called again when the client has read its answers. So a write fails
/// only in a long sequence of writes without a read.
///
/// # Examples
///
/// A service over a codec that reads and writes a stream:
///
/// ```
/// use std::io::{self, Read, Write};
///
/// use handover::{Connection, Next};
///
/// /// An example of code that knows nothing of this crate: messages end with a zero.
/// #[derive(Default)]
/// struct Codec {
///     received: Vec<u8>,
/// }
///
/// impl Codec {
///     /// The next message. `None` at the end of the stream.
///     fn read(&mut self, stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
///         loop {
///             if let Some(end) = self.received.iter().position(|&byte| byte == 0) {
///                 return Ok(Some(self.received.drain(..=end).collect()));
///             }
///             let mut bytes = [0; 512];
///             let count = stream.read(&mut bytes)?;
///             if count == 0 {
///                 return Ok(None);
///             }
///             self.received.extend_from_slice(&bytes[..count]);
///         }
///     }
/// }
///
/// fn serve(conn: &mut Connection, codec: &mut Codec) -> io::Result<Next> {
///     let mut stream = conn.nonblocking();
///     // As in a program with a thread for each connection. `?` waits for the client.
///     while let Some(message) = codec.read(&mut stream)? {
///         stream.write_all(&message)?;
///     }
///     Ok(Next::Close)
/// }
/// ```
///
/// [`Next::Park`]: crate::Next::Park
/// [`Next::More`]: crate::Next::More
/// [`Next::Again`]: crate::Next::Again
#[derive(Debug)]
pub struct NonBlocking<'a>(&'a mut Connection);

impl Connection {
    /// A view of this connection whose reads and writes never wait, and fail with `WouldBlock`
    /// instead: for libraries that can be interrupted by this error. The service passes the error
    /// on.
    pub fn nonblocking(&mut self) -> NonBlocking<'_> {
        NonBlocking(self)
    }

    /// Why a view could not go on in the present call, if one could not.
    pub(crate) fn blocked_view(&self) -> Option<Blocked> {
        self.blocked_view
    }

    /// An error of the service is a failure, even if its view could not go on.
    pub(crate) fn forget_blocked_view(&mut self) {
        self.blocked_view = None;
    }

    fn block_view(&mut self, why: Blocked) -> io::Error {
        // A library may go on to read after a write that could not go on: it still has the bytes.
        if self.blocked_view != Some(Blocked::Output) {
            self.blocked_view = Some(why);
        }
        io::ErrorKind::WouldBlock.into()
    }
}

impl NonBlocking<'_> {
    /// Whether a read of this call has found no input, so that the `WouldBlock` of the library means
    /// that it waits for the client. Otherwise the error means that the client has to read, or that
    /// other connections have their turn: the service passes it on in any case.
    ///
    /// A service asks this before it returns [`Next::More`] or [`Next::Park`] in place of the error.
    ///
    /// [`Next::More`]: crate::Next::More
    /// [`Next::Park`]: crate::Next::Park
    pub fn needs_input(&self) -> bool {
        self.0.blocked_view == Some(Blocked::Input)
    }
}

impl Read for NonBlocking<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let NonBlocking(conn) = self;
        if into.is_empty() {
            return Ok(0);
        }
        if conn.buffer().is_empty() && !conn.at_eof() {
            if !conn.has_output_room()? {
                return Err(conn.block_view(Blocked::Output));
            }
            if conn.bytes_in - conn.call_began_at >= READ_TURN {
                return Err(conn.block_view(Blocked::Turn));
            }
            // A large read goes past the buffer.
            let (filled, count) = match into.len() >= READ_SIZE {
                true => conn.receive(Some(&mut *into))?,
                false => (conn.try_fill()?, 0),
            };
            match filled {
                Filled::Nothing => return Err(conn.block_view(Blocked::Input)),
                Filled::Bytes if count > 0 => return Ok(count),
                Filled::Bytes | Filled::Eof => {}
            }
        }
        let count = conn.buffer().len().min(into.len());
        into[..count].copy_from_slice(&conn.buffer()[..count]);
        conn.consume(count);
        Ok(count)
    }
}

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.0.try_write(parts)?;
        written.ok_or_else(|| self.0.block_view(Blocked::Output))
    }

    /// Sends what the socket takes now. The rest is written as the client reads.
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
