//! Linux and Android: the poller, supervision, and what only these systems have of the rest.
//!
//! `sys/other` has the same names for all other systems.

pub(super) mod calls;
pub(super) mod named_file;
// With `--cfg handover_one_waiter`, the tests on Linux use the messages and the poller of other systems.
#[cfg_attr(handover_one_waiter, path = "../other/packet.rs")]
pub(super) mod packet;
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
#[cfg(all(test, not(handover_one_waiter)))]
mod portable_packet;
