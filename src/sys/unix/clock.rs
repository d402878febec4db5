//! Unix: monotonic clocks.

use rustix::time::{ClockId, clock_gettime};

use crate::sys::native::calls::COARSE_CLOCK;
pub(crate) use crate::sys::native::calls::thread_usage;

/// A monotonic clock in milliseconds that costs next to nothing.
pub(crate) fn coarse_millis() -> u64 {
    let now = clock_gettime(COARSE_CLOCK);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The system's monotonic clock in nanoseconds, the same for all processes.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
