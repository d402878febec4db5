//! A connection as a library without threads of its own wants it: nothing waits, and what would
//! have to wait is `WouldBlock`.

use std::io::{self, BufRead, IoSlice, Read, Write};

use super::{Connection, Filled, READ_SIZE};

/// A view of a connection whose reads and writes never wait. From
/// [`Connection::nonblocking`].
///
/// Libraries that read and write a stream themselves park over it: protocols such as WebSocket
/// (`tungstenite`), TLS (`rustls`), codecs. Where the stream says `WouldBlock`, they keep what they
/// have and return. The service then returns:
///
/// | the library | return | the service is called |
/// |---|---|---|
/// | wants to read | [`Next::Park`] or [`Next::More`] | when more has arrived |
/// | wants to write | [`Next::Again`] | when the output is written |
///
/// The library gets a new view in each call of the service, and goes on where it was. Some
/// libraries swallow the `WouldBlock` of a write while they read. So flush the library before the
/// service returns.
///
/// # Reading
///
/// Gives what is in the [`buffer`](Connection::buffer), then what has arrived by now, and 0 at the
/// end of the stream. A service that reads until `WouldBlock` must return now and then, with
/// [`Next::Again`]. Otherwise a client that sends without a pause holds the worker.
///
/// The library may keep a part of a message. Only the service can know: the connection's buffer is
/// empty. With [`Next::Park`] such a connection counts as idle. Its client has the
/// [idle time-out](crate::Builder::idle_timeout) for each part, so that one byte now and then keeps
/// the message open for ever, and a stop closes it in the middle of the message. If the library
/// tells that a message has begun, return [`Next::More`] for it. Then the
/// [read time-out](crate::Builder::read_timeout) and the
/// [minimum rate](crate::Builder::min_rate) hold, and a stop waits for the message. Otherwise
/// bound messages by a timer ([`Connection::wake_at`]), or by a ping that the client has to answer.
///
/// # Writing
///
/// Output is buffered up to the [output limit](crate::Builder::output_limit), as it is for the
/// connection itself, and leaves when the call ends. Past the limit, a write is `WouldBlock`.
/// [`flush`](Write::flush) sends what the socket takes now.
///
/// After `WouldBlock` the rest of a message is in the library. If the connection has an
/// [`Outbox`](crate::Outbox), a message of the outbox may come before that rest. So let the library
/// write messages that are surely shorter than the output limit, and close the connection of a
/// client that does not read them; or send all that the library writes by the outbox.
///
/// # Examples
///
/// A service over a codec that reads and writes a stream:
///
/// ```
/// use std::io::{self, ErrorKind, Read, Write};
///
/// use handover::{Connection, Next};
///
/// /// Answers each message. An example of code that knows nothing of this crate.
/// #[derive(Default)]
/// struct Codec {
///     unanswered: Vec<u8>,
/// }
///
/// impl Codec {
///     /// False at the end of the stream.
///     fn read(&mut self, stream: &mut impl Read) -> io::Result<bool> {
///         let mut bytes = [0; 512];
///         let count = stream.read(&mut bytes)?;
///         self.unanswered.extend_from_slice(&bytes[..count]);
///         Ok(count > 0)
///     }
///
///     fn write(&mut self, stream: &mut impl Write) -> io::Result<()> {
///         while !self.unanswered.is_empty() {
///             let count = stream.write(&self.unanswered)?;
///             self.unanswered.drain(..count);
///         }
///         Ok(())
///     }
/// }
///
/// fn serve(conn: &mut Connection, codec: &mut Codec) -> io::Result<Next> {
///     let mut stream = conn.nonblocking();
///     match codec.write(&mut stream) {
///         Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Again),
///         written => written?,
///     }
///     match codec.read(&mut stream) {
///         // The answer to what was read.
///         Ok(true) => Ok(Next::Again),
///         Ok(false) => Ok(Next::Close),
///         Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Next::Park),
///         Err(error) => Err(error),
///     }
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
    /// instead: for libraries that can be interrupted there.
    pub fn nonblocking(&mut self) -> NonBlocking<'_> {
        NonBlocking(self)
    }
}

impl Read for NonBlocking<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let NonBlocking(conn) = self;
        if into.is_empty() {
            return Ok(0);
        }
        if conn.buffer().is_empty() {
            // A large read goes past the buffer.
            let (filled, count) = match into.len() >= READ_SIZE {
                true => conn.receive(Some(&mut *into))?,
                false => (conn.try_fill()?, 0),
            };
            match filled {
                Filled::Nothing => return Err(io::ErrorKind::WouldBlock.into()),
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
        written.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Sends what the socket takes now. The rest is written as the client reads.
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
