//! A listener that the acceptor watches, and the back-off after errors of `accept(2)`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::listener::Listener;

/// How the poller watches a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    Off,
    On,
    /// What the poller reports is reported to no other process, so this process has to accept it.
    /// Only for listeners that other processes may watch, and only while there is room.
    Exclusive,
}

/// A listener, as the acceptor sees it.
pub(super) struct ListenerState {
    pub(super) listener: Arc<Listener>,
    /// The listener may have a connection to accept.
    pub(super) is_ready: bool,
    pub(super) watch: Watch,
    /// How many reports the poller has made since it watches the listener.
    pub(super) reports: u32,
    /// The listener itself fails. While it backs off, the other listeners are accepted from.
    pub(super) failure: Option<Failure>,
    /// How many errors of single connections `accept` has reported since its last success.
    pub(super) failed_connections: u32,
}

impl ListenerState {
    pub(super) fn new(listener: Arc<Listener>) -> Self {
        Self {
            watch: match listener.may_be_shared {
                true => Watch::Off,
                false => Watch::On,
            },
            listener,
            is_ready: true,
            reports: 0,
            failure: None,
            failed_connections: 0,
        }
    }

    /// Whether the listener is to be tried now.
    pub(super) fn is_due(&self) -> bool {
        self.is_ready && !self.backs_off()
    }

    pub(super) fn backs_off(&self) -> bool {
        let failure = self.failure.as_ref();
        failure.is_some_and(|failure| failure.retry_at > Instant::now())
    }

    /// Whether the poller is to watch the listener as soon as there is room.
    pub(super) fn is_to_be_watched(&self) -> bool {
        self.watch == Watch::Off && !self.backs_off()
    }
}

/// A time in which `accept` fails again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    since: Instant,
    last_error: Instant,
    /// No attempt is made before this time.
    pub(super) retry_at: Instant,
    /// The time from the next error to the attempt that follows it.
    pub(super) backoff: Duration,
}

impl Failure {
    /// Notes an error at `now`: backs off for 5 ms, then for twice as long after each error in a
    /// row, up to 1 s. True if the failure begins.
    pub(super) fn note_error(failure: &mut Option<Self>, now: Instant) -> bool {
        let begins = failure.is_none();
        let failure = failure.get_or_insert(Self {
            since: now,
            last_error: now,
            retry_at: now,
            backoff: FIRST_BACKOFF,
        });
        failure.last_error = now;
        failure.retry_at = now + failure.backoff;
        failure.backoff = (failure.backoff * 2).min(LONGEST_BACKOFF);
        begins
    }

    /// Ends the failure if no error has followed for a while. Returns how long it lasted.
    pub(super) fn end_if_over(failure: &mut Option<Self>, now: Instant) -> Option<Duration> {
        let ended = failure.take_if(|failure| now - failure.last_error > RECOVERY)?;
        Some(ended.last_error - ended.since)
    }
}

/// How long no attempt is made after an error: after the first error, and at most.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// A failure is over this long after its last error.
const RECOVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_backs_off_and_is_told_once_until_it_is_over() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut failure = None;
        // The time of the error, whether the failure begins, and the milliseconds to the next
        // attempt.
        for (time, begins, backoff) in [
            (0, true, 5),
            (5, false, 10),
            (15, false, 20),
            (35, false, 40),
            (75, false, 80),
            (155, false, 160),
            (315, false, 320),
            (635, false, 640),
            (1275, false, 1000),
            (2275, false, 1000),
        ] {
            let now = at(time);
            assert_eq!(Failure::note_error(&mut failure, now), begins, "{time}");
            let left = failure.unwrap().retry_at - now;
            assert_eq!(left, Duration::from_millis(backoff), "{time}");
        }
        assert_eq!(Failure::end_if_over(&mut failure, at(3275)), None);
        let lasted = Failure::end_if_over(&mut failure, at(3276));
        assert_eq!(lasted, Some(Duration::from_millis(2275)));
        assert!(Failure::note_error(&mut failure, at(4000)));
    }
}
