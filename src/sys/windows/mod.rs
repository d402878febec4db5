//! Windows: every module of the contract but the poller and supervision. A process cannot have a
//! successor here yet, and there are no Unix sockets, so that much of it is an error.

use std::io;

pub(crate) mod clock;
mod console;
pub(crate) mod descriptor;
pub(crate) mod directory;
mod events;
pub(crate) mod file;
pub(crate) mod limits;
pub(crate) mod message;
pub(crate) mod process;
mod security;
#[cfg(feature = "windows-service")]
pub(crate) mod service;
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

/// A text for the system: UTF-16, with a null character at its end.
fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
