//! Unix: every module of the contract but the poller and supervision.

use std::io;

pub(in crate::sys) mod ancillary;
pub(crate) mod clock;
pub(crate) mod control;
pub(crate) mod control_client;
pub(crate) mod descriptor;
pub(crate) mod directory;
pub(in crate::sys) mod exec_plan;
pub(crate) mod file;
pub(crate) mod limits;
mod links;
pub(crate) mod message;
pub(crate) mod process;
#[cfg(feature = "windows-service")]
pub(crate) mod service;
pub(crate) mod signal;
pub(crate) mod socket;

/// The result of a call of libc, of which -1 is the error in `errno`. Async-signal-safe.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
