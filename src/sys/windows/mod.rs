//! Windows: every module of the contract but the poller and supervision. A process cannot have a
//! successor here yet, and there are no Unix sockets, so that much of it is an error.

use std::io;

pub(crate) mod clock;
pub(crate) mod descriptor;
pub(crate) mod directory;
pub(crate) mod file;
pub(crate) mod limits;
pub(crate) mod message;
pub(crate) mod poller;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod socket;

fn unsupported_error(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn no_restarts_error() -> io::Error {
    unsupported_error("restarts are not supported on Windows")
}

fn no_unix_sockets_error() -> io::Error {
    unsupported_error("Unix sockets are not supported on Windows")
}
