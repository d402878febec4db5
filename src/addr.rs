//! Addresses of listeners and clients, and their text form.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys;
use crate::wire::{WireAddr, WirePath};

/// The address of a listener or of a client.
///
/// As text: `127.0.0.1:8080`, `[::1]:8080`, or `unix:/run/app.sock`. Host names are not addresses: a
/// name may stand for another address later. [`Bind`](crate::Bind) resolves them.
///
/// # Examples
///
/// ```
/// use handover::Addr;
///
/// let addr: Addr = "127.0.0.1:8080".parse()?;
/// assert_eq!(addr.to_string(), "127.0.0.1:8080");
/// let addr: Addr = "unix:/run/app.sock".parse()?;
/// assert_eq!(addr.to_string(), "unix:/run/app.sock");
/// assert!("localhost".parse::<Addr>().is_err());
/// # Ok::<(), handover::AddrError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    /// A TCP address.
    Ip(SocketAddr),
    /// The path of a Unix socket. `None` if the socket has no path, as those of most clients.
    Unix(Option<PathBuf>),
}

impl Addr {
    /// The IP address and port, if this is a TCP address.
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }

    /// As [`as_ip`](Self::as_ip), as the standard library's sockets give it.
    pub(crate) fn to_ip(&self) -> io::Result<SocketAddr> {
        let text = "a Unix socket has no IP address";
        self.as_ip()
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// The path, if this is the address of a Unix socket with a path.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => path.as_deref(),
        }
    }

    /// As another process gets it.
    pub(crate) fn to_wire(&self) -> WireAddr {
        match self {
            Self::Ip(addr) => WireAddr::Tcp(*addr),
            Self::Unix(path) => WireAddr::Unix(path.as_deref().and_then(WirePath::new)),
        }
    }

    /// As another process has sent it.
    pub(crate) fn from_wire(addr: &WireAddr) -> Self {
        match addr {
            WireAddr::Tcp(addr) => Self::Ip(*addr),
            WireAddr::Unix(path) => {
                let path = path
                    .as_ref()
                    .map(|path| sys::file::os_string(path.as_bytes()));
                Self::Unix(path.map(Into::into))
            }
        }
    }

    /// The address to listen on that a text names: as [`Addr`], or `host:port` with a host name, or
    /// without a host for all addresses.
    pub(crate) fn resolve(text: &str) -> Result<Self, AddrError> {
        text.parse().or_else(|error| match text.rsplit_once(':') {
            Some((host, port)) if is_name(host) => match port.parse() {
                Ok(port) => Self::resolve_host(host, port),
                Err(_) => Err(error),
            },
            _ => Err(error),
        })
    }

    /// As [`resolve`](Self::resolve), for a host, which may be an IP address, and a port. Of several
    /// addresses of a name, the first IPv4 address is taken, else the first: on most systems
    /// `localhost` is `::1` first, where clients of 127.0.0.1 would not be heard.
    pub(crate) fn resolve_host(host: &str, port: u16) -> Result<Self, AddrError> {
        if host.is_empty() {
            return Ok(any_address(port));
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port).into());
        }
        let failed = |why: String| AddrError {
            text: format!("{host}:{port}"),
            why: why.into(),
        };
        let found = (host, port).to_socket_addrs();
        let found = found.map_err(|error| failed(format!("cannot resolve the host: {error}")))?;
        let found: Vec<SocketAddr> = found.collect();
        let best = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
        let best = best.ok_or_else(|| failed("the host has no address".to_owned()))?;
        Ok((*best).into())
    }

    /// Converts the kernel's address. An address of another family becomes a Unix address without a
    /// path.
    pub(crate) fn from_kernel(addr: &SockAddr) -> Self {
        match addr.as_socket() {
            Some(ip) => Self::Ip(ip),
            None => Self::Unix(sys::socket::unix_path(addr)),
        }
    }
}

/// Whether a socket has connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    /// TCP, and Unix stream sockets.
    Stream,
    /// UDP, and Unix datagram sockets.
    Datagram,
}

/// What stands before the address of a datagram socket, as text.
const UDP: &str = "udp:";
const UNIX_DATAGRAM: &str = "unixgram:";

impl SocketKind {
    /// Reads an address as text, and the kind of its socket.
    pub(crate) fn parse(text: &str) -> Result<(Self, Addr), AddrError> {
        let bad = |why: Cow<'static, str>| AddrError {
            text: text.to_owned(),
            why,
        };
        if let Some(addr) = text.strip_prefix(UDP) {
            return match Addr::resolve(addr) {
                Ok(addr @ Addr::Ip(_)) => Ok((Self::Datagram, addr)),
                Ok(Addr::Unix(_)) => Err(bad("an IP address must follow udp:".into())),
                Err(AddrError { why, .. }) => Err(bad(why)),
            };
        }
        match text.strip_prefix(UNIX_DATAGRAM) {
            Some(path) => match format!("unix:{path}").parse() {
                Ok(addr) => Ok((Self::Datagram, addr)),
                Err(_) => Err(bad(
                    "a path must follow unixgram:, and cannot contain NUL".into()
                )),
            },
            None => Addr::resolve(text).map(|addr| (Self::Stream, addr)),
        }
    }

    /// The text of an address of a socket of this kind.
    pub(crate) fn show(self, addr: &Addr) -> String {
        match (self, addr) {
            (Self::Stream, addr) => addr.to_string(),
            (Self::Datagram, Addr::Ip(addr)) => format!("{UDP}{addr}"),
            (Self::Datagram, Addr::Unix(Some(path))) => {
                format!("{UNIX_DATAGRAM}{}", path.display())
            }
            (Self::Datagram, Addr::Unix(None)) => format!("{UNIX_DATAGRAM}(unnamed)"),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => f.write_str("unix:(unnamed)"),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl FromStr for Addr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let bad = |why: &'static str| AddrError {
            text: text.to_owned(),
            why: why.into(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(bad("a path must follow unix:")),
                _ if path.contains('\0') => Err(bad("a path cannot contain NUL")),
                _ => Ok(Self::Unix(Some(path.into()))),
            };
        }
        if let Ok(addr) = text.parse() {
            return Ok(Self::Ip(addr));
        }
        Err(bad(match text.rsplit_once(':') {
            None => "a port is missing, as in 127.0.0.1:8080",
            Some((_, port)) if port.parse::<u16>().is_err() => "the port must be 0 to 65535",
            Some((host, _)) if host.contains(':') && !host.starts_with('[') => {
                "an IPv6 address goes in brackets, as in [::1]:8080"
            }
            Some(_) => "the host must be an IP address",
        }))
    }
}

/// What a host name may consist of. Empty for all addresses.
fn is_name(host: &str) -> bool {
    host.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// All addresses of this machine: those of IPv4 as well, unless there is no IPv6.
fn any_address(port: u16) -> Addr {
    let has_v6 = Socket::new(Domain::IPV6, Type::STREAM, None).is_ok();
    let any = match has_v6 {
        true => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, port).into()
}

/// The error of parsing an [`Addr`], or of resolving a host. It quotes the text and says what is
/// wrong.
#[derive(Clone, PartialEq, Eq)]
pub struct AddrError {
    text: String,
    why: Cow<'static, str>,
}

/// The text of the error, as `main` prints it.
impl fmt::Debug for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad address {:?}: {}", self.text, self.why)
    }
}

impl std::error::Error for AddrError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_parsing_and_formatting() {
        for text in ["127.0.0.1:0", "[::1]:80", "0.0.0.0:65535", "unix:/a b/c"] {
            assert_eq!(text.parse::<Addr>().unwrap().to_string(), text);
        }
        for text in ["127.0.0.1:0", "unix:/a", "udp:[::1]:80", "unixgram:/a b/c"] {
            let (kind, addr) = SocketKind::parse(text).unwrap();
            assert_eq!(kind.show(&addr), text);
        }
    }

    #[test]
    fn hosts_and_ports_are_resolved() {
        let any: Addr = match Socket::new(Domain::IPV6, Type::STREAM, None) {
            Ok(_) => "[::]:80".parse().unwrap(),
            Err(_) => "0.0.0.0:80".parse().unwrap(),
        };
        for (text, expected) in [
            ("localhost:80", "127.0.0.1:80".parse().unwrap()),
            (":80", any),
            ("[::1]:80", "[::1]:80".parse().unwrap()),
            ("unix:/a b/c:80", "unix:/a b/c:80".parse().unwrap()),
        ] {
            assert_eq!(Addr::resolve(text), Ok(expected), "{text}");
        }
        let host = Addr::resolve_host("::1", 80).unwrap();
        assert_eq!(host.to_string(), "[::1]:80");
        for (text, part) in [
            ("no.such.host.invalid:80", "cannot resolve the host"),
            ("localhost", "port is missing"),
            ("localhost:http", "0 to 65535"),
            ("web=localhost:80", "must be an IP address"),
            ("::1:80", "brackets"),
        ] {
            let error = Addr::resolve(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(format!("{error:?}"), error.to_string());
        }
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        for (text, part) in [
            ("", "port is missing"),
            ("127.0.0.1", "port is missing"),
            ("127.0.0.1:", "0 to 65535"),
            ("127.0.0.1:65536", "0 to 65535"),
            ("::1:80", "brackets"),
            ("localhost:80", "must be an IP address"),
            ("unix:", "path must follow"),
        ] {
            let error = text.parse::<Addr>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(text), "{text}: {error}");
        }
        for (text, part) in [
            ("udp:", "port is missing"),
            ("udp:127.0.0.1:65536", "0 to 65535"),
            ("udp:unix:/a", "IP address must follow"),
            ("udp://127.0.0.1:53", "must be an IP address"),
            ("unixgram:", "path must follow"),
        ] {
            let error = SocketKind::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
