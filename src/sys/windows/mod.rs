//! Windows: every module of the contract but scheduling.

use std::io;

pub(in crate::sys) mod ancillary;
pub(crate) mod clock;
mod command_line;
pub(in crate::sys) mod console;
pub(crate) mod control_client;
pub(crate) mod descriptor;
pub(crate) mod directory;
mod events;
pub(crate) mod file;
pub(in crate::sys) mod handle;
mod job;
pub(crate) mod limits;
mod loopback_pair;
pub(crate) mod message;
mod notify_client;
mod passing_table;
mod pipe;
pub(crate) mod poller;
pub(crate) mod process;
mod security;
#[cfg(feature = "windows-service")]
pub(crate) mod service;
pub(crate) mod signal;
pub(crate) mod socket;
mod socket_message;
mod start_guard;
mod supervised_events;
pub(crate) mod supervision;

fn unsupported_error(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn no_unix_sockets_error() -> io::Error {
    unsupported_error("Unix sockets are not supported on Windows")
}

/// A text for the system: UTF-16, with a null character at its end.
fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
