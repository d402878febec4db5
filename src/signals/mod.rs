//! Commands to a server, and the signals of the process as such commands.

#[cfg(feature = "signals")]
mod reaction;
#[cfg(feature = "signals")]
mod watch;

use std::time::Duration;

#[cfg(feature = "signals")]
pub(crate) use reaction::SignalSettings;
#[cfg(feature = "signals")]
pub(crate) use watch::{Subscription, subscribe};

/// A command to a server's main thread, from a handle, a signal, or one of the server's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerCommand {
    /// Finish what is in progress within the server's drain time-out, then end.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Drain,
    /// As `Drain`, but the system ends the process after this time.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    DrainWithin(Duration),
    /// End now.
    StopNow,
    /// SIGTERM has come a second time: end now, unless a successor serves.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    TerminateAgain,
    /// Start a successor.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Restart,
    /// A successor has taken over: finish what is in progress, then end.
    Replaced,
    /// Adopt the open connections of a predecessor, which come over a channel that the server has
    /// got.
    Adopt,
    /// Call the application's hook for SIGUSR1.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    UserSignal,
    /// Check whether the drain is over, or a handle has asked for a stop.
    Check,
}
