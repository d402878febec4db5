//! The macros of the `log` crate, without the panics of the application's logger.
//!
//! A logger, and the `Display` of an error that is logged, are the application's code. Records are
//! written between the steps of a change of state, where a panic would leave a connection without
//! an owner. So a panic ends here, and the record is lost.

use std::fmt;
use std::panic::AssertUnwindSafe;

use ::log::{Level, STATIC_MAX_LEVEL, max_level};

use crate::panic;

/// Whether records of this level are written.
#[inline]
pub(crate) fn is_on(level: Level) -> bool {
    level <= STATIC_MAX_LEVEL && level <= max_level()
}

/// Calls the logger.
#[cold]
pub(crate) fn write(call: impl FnOnce()) {
    // There is no place to tell of a logger that fails.
    let _ = panic::contain(AssertUnwindSafe(call));
}

/// Waits until the logger has written its records, as long as the logger likes to.
pub(crate) fn flush() {
    let _ = panic::contain(AssertUnwindSafe(|| ::log::logger().flush()));
}

macro_rules! log_error {
    ($($arg:tt)+) => {
        if $crate::log::is_on(::log::Level::Error) {
            $crate::log::write(|| ::log::error!($($arg)+));
        }
    };
}

macro_rules! log_warn {
    ($($arg:tt)+) => {
        if $crate::log::is_on(::log::Level::Warn) {
            $crate::log::write(|| ::log::warn!($($arg)+));
        }
    };
}

macro_rules! log_info {
    ($($arg:tt)+) => {
        if $crate::log::is_on(::log::Level::Info) {
            $crate::log::write(|| ::log::info!($($arg)+));
        }
    };
}

macro_rules! log_debug {
    ($($arg:tt)+) => {
        if $crate::log::is_on(::log::Level::Debug) {
            $crate::log::write(|| ::log::debug!($($arg)+));
        }
    };
}

macro_rules! log_trace {
    ($($arg:tt)+) => {
        if $crate::log::is_on(::log::Level::Trace) {
            $crate::log::write(|| ::log::trace!($($arg)+));
        }
    };
}

/// Drops a value of the application's, whose drop may panic. The panic is logged, with `what` was
/// dropped.
pub(crate) fn drop_contained<T>(what: impl fmt::Display, value: T) {
    if let Err(why) = panic::contain(|| drop(value)) {
        log_error!("dropping {what} panicked: {why}");
    }
}

pub(crate) use {
    log_debug as debug, log_error as error, log_info as info, log_trace as trace, log_warn as warn,
};
