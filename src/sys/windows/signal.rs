//! Windows: Ctrl-C.

use crate::sys::Signal;

/// Calls `deliver` for each Ctrl-C, from a thread of its own, until the process ends. Where
/// `deliver` returns false the process ends, as by default. To be called once.
#[cfg(feature = "signals")]
pub(crate) fn install_handlers(
    deliver: impl Fn(Signal, bool) -> bool + Clone + Send + 'static,
) -> std::io::Result<()> {
    /// STATUS_CONTROL_C_EXIT, the exit code of a program that Ctrl-C has ended.
    const CONTROL_C_EXIT: i32 = 0xC000_013A_u32 as i32;
    ctrlc::set_handler(move || {
        if !deliver(Signal::Interrupt, false) {
            std::process::exit(CONTROL_C_EXIT);
        }
    })
    .map_err(std::io::Error::other)
}

/// No program is told to end by a signal.
pub(crate) fn from_name(_name: &str) -> Option<Signal> {
    None
}

/// No program is told to end by a signal.
pub(crate) fn from_any_number(_number: i32) -> Option<Signal> {
    None
}

pub(in crate::sys) fn name_of(_number: i32) -> Option<&'static str> {
    None
}

/// No program starts with blocked signals.
pub(crate) fn record() {}

pub(crate) fn release() -> bool {
    false
}
