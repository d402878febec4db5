//! Linux and Android: the poller, supervision, and what only these systems have of the rest.
//!
//! `sys/other` has the same names for all other systems.

pub(super) mod calls;
pub(super) mod named_file;
#[cfg_attr(handover_one_waiter, allow(dead_code))]
pub(super) mod packet;
// With `--cfg handover_one_waiter`, the tests on Linux use the poller of other systems, and their
// messages between a process and its successor.
#[cfg_attr(handover_one_waiter, path = "../other/poller.rs")]
pub(crate) mod poller;
pub(crate) mod scheduling;
pub(super) mod socket;
pub(crate) mod supervision;
// What stands in for these calls on other systems is tested here too.
#[path = "../other/calls.rs"]
#[allow(dead_code)]
#[cfg(test)]
mod portable_calls;
#[path = "../other/packet.rs"]
#[allow(dead_code)]
#[cfg(any(test, handover_one_waiter))]
pub(super) mod portable_packet;

#[cfg(not(handover_one_waiter))]
pub(super) use packet as peer_packet;
#[cfg(handover_one_waiter)]
pub(super) use portable_packet as peer_packet;
