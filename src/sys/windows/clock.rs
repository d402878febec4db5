//! Windows: monotonic clocks.

use std::sync::OnceLock;

use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::SystemInformation::GetTickCount64;

use crate::sys::ThreadUsage;

/// Its resolution is 10 to 16 ms.
#[allow(unsafe_code)]
pub(crate) fn coarse_millis() -> u64 {
    // SAFETY: the call takes nothing and returns a number.
    unsafe { GetTickCount64() }
}

/// The performance counter, which is the same for all processes.
#[allow(unsafe_code)]
pub(crate) fn monotonic_nanos() -> u64 {
    // In 1/s, and fixed when the system starts.
    static FREQUENCY: OnceLock<i64> = OnceLock::new();
    let frequency = *FREQUENCY.get_or_init(|| {
        let mut frequency = 0;
        // SAFETY: the call fills a live number. It does not fail since Windows XP.
        unsafe { QueryPerformanceFrequency(&mut frequency) };
        frequency.max(1)
    });
    let mut count = 0;
    // SAFETY: as above.
    unsafe { QueryPerformanceCounter(&mut count) };
    (count as u128 * 1_000_000_000 / frequency as u128) as u64
}

/// Not known here. Windows counts the CPU time of a thread, but has no cheap count of the thread's
/// waits, without which a wait cannot be told from a preemption.
pub(crate) fn thread_usage() -> Option<ThreadUsage> {
    None
}
