//! Systems other than Linux and Android: the same names as in `sys/linux`, portable or as an error.

#[cfg(unix)]
pub(super) mod calls;
pub(crate) mod linux_only;
#[cfg(unix)]
pub(super) mod named_file;
pub(super) mod packet;
#[cfg(not(windows))]
pub(crate) mod poller;
#[cfg(windows)]
pub(crate) use super::unix::poller;
pub(crate) mod scheduling;
pub(super) mod socket;
#[cfg(not(windows))]
pub(crate) mod supervision;
#[cfg(windows)]
pub(crate) use super::unix::supervision;

pub(super) use packet as peer_packet;
