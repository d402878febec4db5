//! What the policy needs of `src/sys`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Hangup,
    Kill,
    Quit,
    Terminate,
    User1,
    /// The signal by which a replaced process ends, where the policy has one.
    Window,
}

pub(crate) mod clock {
    pub(crate) fn coarse_millis() -> u64 {
        0
    }

    pub(crate) fn monotonic_nanos() -> u64 {
        0
    }
}
