//! Windows: monotonic clocks.

use windows_sys::Win32::System::SystemInformation::GetTickCount64;

use crate::sys::ThreadUsage;

/// Its resolution is 10 to 16 ms.
#[allow(unsafe_code)]
pub(crate) fn coarse_millis() -> u64 {
    // SAFETY: the call takes nothing and returns a number.
    unsafe { GetTickCount64() }
}

/// Precise to a millisecond at best, as nothing here needs more.
pub(crate) fn monotonic_nanos() -> u64 {
    coarse_millis() * 1_000_000
}

/// Not known here.
pub(crate) fn thread_usage() -> Option<ThreadUsage> {
    None
}
