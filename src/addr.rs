//! Addresses: of listeners, of peers, and as text.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::SockAddr;

/// Where a server listens, or who its peer is.
///
/// As text: `127.0.0.1:8080`, `[::1]:8080`, or `unix:/run/app.sock`. Host names are not resolved: a server
/// that listens on what a name happens to mean today is a server that listens elsewhere tomorrow.
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
    /// A Unix socket's path; `None` for a peer that has none, as most clients of a Unix socket.
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

    /// The path, if this is the address of a Unix socket that has one.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => path.as_deref(),
        }
    }

    /// What the kernel says. An address of neither family is an unnamed one.
    pub(crate) fn from_kernel(addr: &SockAddr) -> Self {
        match addr.as_socket() {
            Some(ip) => Self::Ip(ip),
            None => Self::Unix(crate::sys::unix_path::from_addr(addr)),
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

/// A text that is no address, and why.
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
    fn text_goes_there_and_back() {
        for text in ["127.0.0.1:0", "[::1]:80", "0.0.0.0:65535", "unix:/a b/c"] {
            assert_eq!(text.parse::<Addr>().unwrap().to_string(), text);
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
        ] {
            let error = text.parse::<Addr>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
