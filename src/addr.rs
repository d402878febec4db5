//! Addresses of listeners and clients, and their text form.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::SockAddr;

use crate::sys;

/// The address of a listener or of a client.
///
/// As text: `127.0.0.1:8080`, `[::1]:8080`, or `unix:/run/app.sock`. Host names are not resolved: a
/// name may stand for another address later.
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

    /// The path, if this is the address of a Unix socket with a path.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => path.as_deref(),
        }
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
        let bad = |why| AddrError {
            text: text.to_owned(),
            why,
        };
        if let Some(addr) = text.strip_prefix(UDP) {
            return match addr.parse() {
                Ok(addr @ Addr::Ip(_)) => Ok((Self::Datagram, addr)),
                Ok(Addr::Unix(_)) => Err(bad("an IP address must follow udp:")),
                Err(AddrError { why, .. }) => Err(bad(why)),
            };
        }
        match text.strip_prefix(UNIX_DATAGRAM) {
            Some(path) => match format!("unix:{path}").parse() {
                Ok(addr) => Ok((Self::Datagram, addr)),
                Err(_) => Err(bad("a path must follow unixgram:, and cannot contain NUL")),
            },
            None => text.parse().map(|addr| (Self::Stream, addr)),
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
        let bad = |why| AddrError {
            text: text.to_owned(),
            why,
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
            Some(_) => "the host must be an IP address (names are not resolved)",
        }))
    }
}

/// The error of parsing an [`Addr`]. It quotes the text and says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddrError {
    text: String,
    why: &'static str,
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
    fn a_bad_address_says_what_is_wrong() {
        for (text, part) in [
            ("", "port is missing"),
            ("127.0.0.1", "port is missing"),
            ("127.0.0.1:", "0 to 65535"),
            ("127.0.0.1:65536", "0 to 65535"),
            ("::1:80", "brackets"),
            ("localhost:80", "not resolved"),
            ("unix:", "path must follow"),
            ("udp:", "port is missing"),
            ("udp:127.0.0.1:65536", "0 to 65535"),
            ("udp:localhost:80", "not resolved"),
            ("udp:unix:/a", "IP address must follow"),
            ("udp://127.0.0.1:53", "not resolved"),
            ("unixgram:", "path must follow"),
        ] {
            let error = SocketKind::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
