//! Systems other than Linux and Android: the same names as in `sys/linux`, portable or as an error.

#[cfg(unix)]
pub(super) mod calls;
#[cfg(unix)]
pub(super) mod named_file;
#[cfg(not(windows))]
pub(crate) mod poller;
#[cfg(windows)]
pub(crate) use super::unix::poller;
pub(crate) mod scheduling;
pub(super) mod socket;
pub(crate) mod supervision;
