//! Datagram sockets, which a supervisor binds and holds for its program.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Bind, BindError, Listener, Origin};
use crate::addr::{Addr, SocketKind};
use crate::sys;

impl Bind {
    /// Whether the socket is of the kind that this request asks for: one that listens, or one for
    /// datagrams.
    pub(crate) fn has_kind_of(&self, socket: &Socket) -> bool {
        let is_kind = match self.kind {
            SocketKind::Stream => sys::socket::is_listening_stream(socket),
            SocketKind::Datagram => is_datagram(socket),
        };
        is_kind.unwrap_or(false)
    }

    /// Refuses a datagram socket.
    pub(crate) fn check_stream(&self) -> Result<(), BindError> {
        let (SocketKind::Datagram, Ok(addr)) = (self.kind, &self.addr) else {
            return Ok(());
        };
        let text = "a server accepts connections, which a datagram socket does not have";
        Err(BindError {
            shown: Some(self.kind.show(addr)),
            attempts: 0,
            cause: io::Error::new(io::ErrorKind::InvalidInput, text),
        })
    }

    /// Binds for other processes, also a datagram socket. They decide whether clients may send
    /// descriptors.
    pub(crate) fn bind_for_others(mut self) -> Result<Listener, BindError> {
        self.options.unix_descriptors = true;
        match self.kind {
            SocketKind::Stream => self.bind(),
            SocketKind::Datagram => self.bind_by(Self::try_bind_datagram),
        }
    }

    fn try_bind_datagram(&self, addr: &Addr) -> io::Result<Listener> {
        let lock = |path| sys::file::lock_directory_of(path, self.if_locked);
        let _lock = addr.as_path().map(lock).transpose()?;
        let (socket, path) = match addr {
            Addr::Ip(ip) => (self.bind_udp(*ip)?, None),
            Addr::Unix(path) => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                let (socket, path) = self.bind_unix(path, Type::DGRAM)?;
                (socket, Some(path))
            }
        };
        Listener::new(socket, path, self, Origin::Bound)
    }

    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(self.options.only_v6)?;
        }
        // SO_REUSEADDR would let another socket take the datagrams.
        sys::socket::set_reuse_port(&socket, self.options.reuse_port)?;
        sys::socket::bind(&socket, &addr.into())?;
        Ok(socket)
    }
}

/// Whether this is a socket for datagrams.
pub(crate) fn is_datagram(socket: &Socket) -> io::Result<bool> {
    Ok(socket.r#type()? == Type::DGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_refuses_a_datagram_socket_by_its_address() {
        for addr in ["udp:127.0.0.1:0", "unixgram:/run/none.sock"] {
            let error = Bind::new(addr).bind().unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(
                text.starts_with(&format!("cannot listen on {addr}: ")),
                "{text}"
            );
            assert_eq!(Bind::new(addr).to_request(), None);
        }
    }

    #[test]
    fn a_datagram_socket_keeps_others_from_its_address() {
        let first = Bind::new("udp:127.0.0.1:0").bind_for_others().unwrap();
        assert!(first.is_datagram());
        let again = Bind::new(first.shown_addr())
            .bind_attempts(2)
            .bind_interval(std::time::Duration::ZERO);
        let error = again.bind_for_others().unwrap_err();
        assert_eq!(
            (error.kind(), error.attempts()),
            (io::ErrorKind::AddrInUse, 2)
        );
        // TCP has addresses of its own.
        let tcp = Bind::from(first.addr().clone());
        assert!(!tcp.has_kind_of(&first.socket));
    }
}
