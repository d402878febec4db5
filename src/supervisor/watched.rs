//! A process that the supervisor watches: a handle and its process group, and signals to both.

use crate::log;
use crate::sys::{self, ProcessWatch, Signal};

/// A process of the fleet.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) process: ProcessWatch,
    /// Its process group.
    pub(super) group: Option<u32>,
}

impl Watched {
    pub(super) fn open(pid: u32) -> Self {
        Self {
            process: ProcessWatch::open(pid),
            group: sys::supervision::group_of(pid),
        }
    }
}

pub(super) fn signal_group(group: u32, signal: Signal) {
    if let Err(error) = sys::supervision::signal_group(group, signal) {
        log::debug!("cannot send {signal} to process group {group}: {error}");
    }
}

pub(super) fn send_signal(process: &ProcessWatch, pid: u32, signal: Signal) {
    if let Err(error) = process.send_signal(signal) {
        log::debug!("cannot send {signal} to process {pid}: {error}");
    }
}
