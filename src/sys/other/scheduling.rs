//! Systems other than Linux: the scheduler is left alone.

/// Changes nothing here.
pub(crate) fn set_interrupts(_on: bool) -> bool {
    false
}
