//! What converts into a [`Bind`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::str::FromStr;
use std::sync::Arc;

use super::Bind;
use crate::addr::{Addr, AddrError, SocketKind};

impl FromStr for Bind {
    type Err = AddrError;

    /// As [`Bind::new`], with the error of a bad address.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let (kind, addr) = SocketKind::parse(text)?;
        let stream = Self::with(Ok(addr));
        Ok(Self { kind, ..stream })
    }
}

impl From<&str> for Bind {
    fn from(addr: &str) -> Self {
        Self::new(addr)
    }
}

impl From<String> for Bind {
    fn from(addr: String) -> Self {
        Self::new(addr)
    }
}

impl From<&String> for Bind {
    fn from(addr: &String) -> Self {
        Self::new(addr)
    }
}

impl From<SocketAddr> for Bind {
    fn from(addr: SocketAddr) -> Self {
        Self::with(Ok(addr.into()))
    }
}

impl From<Addr> for Bind {
    fn from(addr: Addr) -> Self {
        Self::with(Ok(addr))
    }
}

impl From<SocketAddrV4> for Bind {
    fn from(addr: SocketAddrV4) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<SocketAddrV6> for Bind {
    fn from(addr: SocketAddrV6) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<(&str, u16)> for Bind {
    fn from((host, port): (&str, u16)) -> Self {
        Self::with(Addr::resolve_host(host, port))
    }
}

impl From<(String, u16)> for Bind {
    fn from((host, port): (String, u16)) -> Self {
        (&*host, port).into()
    }
}

impl From<(IpAddr, u16)> for Bind {
    fn from(addr: (IpAddr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<(Ipv4Addr, u16)> for Bind {
    fn from(addr: (Ipv4Addr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<(Ipv6Addr, u16)> for Bind {
    fn from(addr: (Ipv6Addr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

/// A listener that the application has bound, as with
/// [`Listener::from_std`](crate::Listener::from_std). A successor that a
/// [`Restart`](crate::Restart) starts cannot bind its address again: give the address instead.
impl From<TcpListener> for Bind {
    fn from(listener: TcpListener) -> Self {
        let addr = listener.local_addr().map_or(Addr::Unix(None), Addr::Ip);
        Self {
            given: Some(Arc::new(listener)),
            ..Self::with(Ok(addr))
        }
    }
}
