//! A connection as a reader and a writer, for code that reads in a loop and writes inside it.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::rc::Rc;

use super::Connection;

/// The reader of a connection, from [`Connection::split`]: `Read` and `BufRead`.
///
/// Bytes that it has not consumed are the connection's again when it is dropped.
pub struct ReadHalf<'a> {
    conn: Rc<RefCell<&'a mut Connection>>,
    /// The input that the reader has taken out of the connection. Its first `read` bytes are
    /// consumed.
    taken: Vec<u8>,
    read: usize,
}

/// The writer of a connection, from [`Connection::split`].
pub struct WriteHalf<'a>(Rc<RefCell<&'a mut Connection>>);

impl Connection {
    /// A reader and a writer for this connection, for a loop that reads lines and answers each:
    /// what two clones of a `TcpStream`, one of them in a `BufReader`, are in code for one thread
    /// per connection. Both stay on this thread. Other threads send by an
    /// [outbox](Self::outbox).
    ///
    /// The loop holds a worker until the client has left, also while the client is silent, and so
    /// shuts others out. A service that takes what has arrived
    /// ([`take_line`](Self::take_line)) and returns holds none.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, BufRead, Write};
    /// use handover::{Connection, Next};
    ///
    /// fn serve(conn: &mut Connection) -> io::Result<Next> {
    ///     let (reader, mut writer) = conn.split();
    ///     for line in reader.lines() {
    ///         writeln!(writer, "you said: {}", line?)?;
    ///     }
    ///     Ok(Next::Close)
    /// }
    /// ```
    #[doc(alias = "try_clone")]
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        let conn = Rc::new(RefCell::new(self));
        let reader = ReadHalf {
            conn: Rc::clone(&conn),
            taken: Vec::new(),
            read: 0,
        };
        (reader, WriteHalf(conn))
    }
}

impl Read for ReadHalf<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for ReadHalf<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read == self.taken.len() {
            let mut conn = self.conn.borrow_mut();
            conn.fill_buf()?;
            // A slice of the connection cannot leave the `RefCell`.
            self.taken.clear();
            self.read = 0;
            conn.input.move_to(&mut self.taken);
        }
        Ok(&self.taken[self.read..])
    }

    fn consume(&mut self, count: usize) {
        let left = self.taken.len() - self.read;
        assert!(count <= left, "consume({count}) of {left} bytes");
        self.read += count;
    }
}

impl Drop for ReadHalf<'_> {
    fn drop(&mut self) {
        self.conn
            .borrow_mut()
            .input
            .put_back(&self.taken[self.read..]);
    }
}

impl Write for WriteHalf<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.borrow_mut().write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

impl fmt::Debug for ReadHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf")
            .field("buffered", &(self.taken.len() - self.read))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for WriteHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteHalf").finish()
    }
}
