//! The socket of a connection: its addresses and its options, as the standard library's sockets
//! have them, and the ways to other code that needs the socket itself.

use std::io::{self, BufRead};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;

use socket2::Socket;

use super::receive_state::ReceiveState;
use super::{Connection, Detached};
use crate::addr::Addr;
use crate::sys;

impl Connection {
    /// The client's address, as `TcpStream::peer_addr` gives it. No system call: the address also
    /// of a client that has left. [`peer`](Self::peer) has no error, and names the clients of Unix
    /// sockets too.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a client of a Unix socket, which has no IP address.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{self, Write};
    /// use handover::{Connection, Next};
    ///
    /// fn greet(conn: &mut Connection) -> io::Result<Next> {
    ///     let (client, here) = (conn.peer_addr()?, conn.local_addr()?);
    ///     writeln!(conn, "{} on port {}", client.ip(), here.port())?;
    ///     Ok(Next::Close)
    /// }
    /// ```
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.info.peer.to_ip()
    }

    /// The address that the client connected to, as `TcpStream::local_addr` gives it: never a
    /// wildcard. One system call. [`listener_addr`](Self::listener_addr) is the address that the
    /// server listens on.
    ///
    /// # Errors
    ///
    /// The system's error; `Unsupported` for a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let local = Addr::from_kernel(&self.info.socket.local_addr()?).to_ip()?;
        // The same family as the client's address has.
        Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    /// The client, as in logs: its address, or `unix:(unnamed)`.
    pub fn peer(&self) -> &Addr {
        &self.info.peer
    }

    /// The address of the listener that the client connected to. For a listener on a wildcard
    /// address this is the wildcard.
    pub fn listener_addr(&self) -> &Addr {
        &self.info.listener.local
    }

    /// Sets whether small responses leave at once (TCP_NODELAY). Connections begin as
    /// [`Bind::nodelay`](crate::Bind::nodelay) says, with true by default. Without effect on Unix
    /// sockets.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match self.info.peer {
            Addr::Ip(_) => self.info.socket.set_tcp_nodelay(on),
            Addr::Unix(_) => Ok(()),
        }
    }

    /// Whether small responses leave at once (TCP_NODELAY). True for Unix sockets.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn nodelay(&self) -> io::Result<bool> {
        match self.info.peer {
            Addr::Ip(_) => self.info.socket.tcp_nodelay(),
            Addr::Unix(_) => Ok(true),
        }
    }

    /// Copies bytes that have arrived, and does not consume them. Waits if none has arrived, and
    /// gives 0 at the end of the stream, as `TcpStream::peek` does.
    /// [`buffer`](Self::buffer) shows them without a copy and without waiting.
    ///
    /// # Errors
    ///
    /// Errors of reading.
    pub fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            self.fill_buf()?;
        } else if self.input.len() < into.len() && !self.is_input_full() {
            // A caller that peeks until there is enough must see what comes.
            self.receive.on_event(false);
            self.try_fill()?;
        }
        let bytes = self.input.bytes();
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// Shuts down one or both directions, after the kernel has taken all that was written.
    ///
    /// # Errors
    ///
    /// Errors of writing, and those of `shutdown(2)`.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.flush_all()?;
        }
        self.info.socket.shutdown(how)
    }

    /// Takes the socket out, as a socket of the standard library in blocking mode, together with
    /// the bytes that had been read ahead. The socket's other options stay as they are, such as
    /// TCP_NODELAY ([`set_nodelay`](Self::set_nodelay)). All output that was written is handed
    /// to the kernel first. Afterwards
    /// this connection gives the end of the stream. The service returns
    /// [`Next::Close`](crate::Next::Close) when it is done with the socket, or at once if another
    /// thread goes on with it: the socket stays open as long as that thread has it. Until then, a
    /// stop counts the connection as in progress.
    ///
    /// # Errors
    ///
    /// Errors of writing, and those of duplicating the descriptor.
    pub fn detach(&mut self) -> io::Result<Detached> {
        self.close_outbox();
        self.flush_all()?;
        self.unwatch();
        let stream = sys::socket::duplicate_stream(&self.info.socket)?;
        self.receive = ReceiveState::Detached;
        self.info.activity.is_detached.store(true, Relaxed);
        Ok(Detached::new(stream, self.input.take()))
    }

    fn socket(&self) -> &Socket {
        &self.info.socket
    }
}

sys::socket::impl_descriptor_traits!(
    /// For options and queries of the socket (setsockopt(2)). The socket is non-blocking and must
    /// stay so. A read or write past the connection misses what the connection has buffered.
    Connection
);
