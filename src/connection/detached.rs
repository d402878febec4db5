//! A socket that was taken out of the server, with what the server had read ahead.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;

use crate::sys::Stream;

/// A socket that [`Connection::detach`](crate::Connection::detach) has taken out: it blocks, and
/// has no time-outs.
///
/// Reading gives the bytes that the server had received and not consumed, then those of the socket.
/// Writing goes to the socket at once.
///
/// # Examples
///
/// A library that wants a stream, on a thread of its own:
///
/// ```
/// use std::io::{self, Read, Write};
/// use std::thread;
/// use std::time::Duration;
///
/// use handover::{Connection, Next};
///
/// fn serve(conn: &mut Connection) -> io::Result<Next> {
///     let mut client = conn.detach()?;
///     if let Some(tcp) = client.tcp() {
///         tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
///     }
///     thread::Builder::new().name("legacy".into()).spawn(move || legacy(&mut client))?;
///     Ok(Next::Close)
/// }
///
/// fn legacy(stream: &mut (impl Read + Write)) -> io::Result<()> {
///     let mut bytes = [0; 512];
///     let count = stream.read(&mut bytes)?;
///     stream.write_all(&bytes[..count])
/// }
/// ```
#[derive(Debug)]
pub struct Detached {
    stream: Stream,
    unread: Vec<u8>,
    /// How many of the unread bytes were read from here.
    read: usize,
}

impl Detached {
    pub(super) fn new(stream: Stream, unread: Vec<u8>) -> Self {
        let read = 0;
        Self {
            stream,
            unread,
            read,
        }
    }

    /// The bytes that the server had received and not consumed, without those that were read from
    /// here. They come before what the socket gives.
    pub fn unread(&self) -> &[u8] {
        &self.unread[self.read..]
    }

    /// The socket. Reads from it come after [`unread`](Self::unread).
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The socket, if it is a TCP socket. As [`stream`](Self::stream).
    pub fn tcp(&self) -> Option<&TcpStream> {
        self.stream.tcp()
    }

    /// The socket, and the bytes that come before what the socket gives.
    pub fn into_parts(mut self) -> (Stream, Vec<u8>) {
        self.unread.drain(..self.read);
        (self.stream, self.unread)
    }
}

impl Read for Detached {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.unread().is_empty() {
            self.unread = Vec::new();
            self.read = 0;
            return self.stream.read(into);
        }
        let count = self.unread().read(into)?;
        self.read += count;
        Ok(count)
    }
}

impl Write for Detached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
