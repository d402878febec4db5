//! The request of a serving process for a listener, and the supervisor's answer.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Record, WirePath, shortened};

/// A request for a listener, which the supervisor binds unless it holds the listener already. Part
/// of a [`HandoverFields`](super::HandoverFields).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct BindRequest {
    pub(crate) addr: BindAddr,
    #[serde(flatten)]
    pub(crate) options: BindOptions,
}

/// The options that are set on the listener. The process that accepts sets the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct BindOptions {
    pub(crate) name: Option<String>,
    pub(crate) backlog: u32,
    /// The length of the queue (TCP_FASTOPEN).
    pub(crate) fast_open: Option<u32>,
    /// The mode of a Unix socket's file.
    pub(crate) unix_mode: Option<u32>,
    pub(crate) defer_accept: bool,
    pub(crate) reuse_port: bool,
    pub(crate) only_v6: bool,
    /// Whether the listener has TCP_NODELAY, which its connections inherit on Linux. A request of
    /// an earlier version lacks this field: that process sets TCP_NODELAY on the listener itself.
    #[serde(default)]
    pub(crate) nodelay: bool,
    /// The clients of a Unix socket may send descriptors. A request of an earlier version lacks this
    /// field: that process may expect some. Later ones set the option themselves.
    #[serde(default = "yes")]
    pub(crate) unix_descriptors: bool,
}

fn yes() -> bool {
    true
}

/// An address to bind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum BindAddr {
    Tcp(#[cfg_attr(test, arbitrary(with = super::tests::any_socket_addr))] SocketAddr),
    /// An absolute path: the supervisor may work in another directory.
    Unix(WirePath),
}

impl fmt::Display for BindAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", String::from_utf8_lossy(path.as_bytes())),
        }
    }
}

/// The answer to a [`BindRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) enum BindAnswer {
    /// The listener goes with the answer.
    Given,
    /// There is no listener.
    Refused {
        /// The address is in use, so that the process that asked may try again.
        in_use: bool,
        /// The system's number of the error.
        errno: Option<i32>,
        #[serde(serialize_with = "shortened::<128, _>")]
        text: String,
        /// The supervisor does not bind this address for the user of the process, which may try
        /// with its own privileges.
        #[serde(default)]
        is_forbidden: bool,
    },
}

impl Record for BindAnswer {
    /// The receiver's buffer has this size.
    const LIMIT: usize = 1024;
}

impl From<&io::Error> for BindAnswer {
    fn from(error: &io::Error) -> Self {
        Self::Refused {
            in_use: error.kind() == io::ErrorKind::AddrInUse,
            errno: error.raw_os_error(),
            text: error.to_string(),
            is_forbidden: false,
        }
    }
}

impl BindAnswer {
    /// The supervisor does not bind this address for the user of the process.
    pub(crate) fn forbidden() -> Self {
        Self::Refused {
            in_use: false,
            errno: None,
            text: "the supervisor does not bind this address for this user".to_owned(),
            is_forbidden: true,
        }
    }

    /// The error of a refusal.
    pub(crate) fn into_result(self) -> io::Result<()> {
        match self {
            Self::Given => Ok(()),
            Self::Refused {
                errno: Some(number),
                ..
            } => Err(io::Error::from_raw_os_error(number)),
            Self::Refused { in_use, text, .. } => {
                let kind = match in_use {
                    true => io::ErrorKind::AddrInUse,
                    false => io::ErrorKind::Other,
                };
                Err(io::Error::new(kind, text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_an_earlier_version_passes_descriptors_and_has_no_nodelay() {
        let text = r#"{"addr":{"unix":"/run/a"},"name":null,"backlog":7,"fast_open":null,
            "unix_mode":null,"defer_accept":false,"reuse_port":false,"only_v6":false}"#;
        let request: BindRequest = serde_json::from_str(text).unwrap();
        let options = request.options;
        assert!(options.unix_descriptors && !options.nodelay);
    }

    #[test]
    fn errors_survive() {
        for error in [
            io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens on this socket",
            ),
            io::Error::from_raw_os_error(13),
            io::Error::other("no"),
            io::Error::other(""),
        ] {
            let back = BindAnswer::from(&error).into_result().unwrap_err();
            assert_eq!(
                (back.kind(), back.to_string()),
                (error.kind(), error.to_string())
            );
        }
    }
}
