//! What the policy needs of `src/sys`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Hangup,
    Kill,
    Quit,
    Terminate,
    User1,
}

pub(crate) mod clock {
    pub(crate) fn coarse_millis() -> u64 {
        0
    }

    pub(crate) fn monotonic_nanos() -> u64 {
        0
    }
}
