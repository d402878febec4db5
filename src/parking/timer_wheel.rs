//! A hashed timer wheel (Varghese and Lauck, scheme 6): inserting and expiring cost O(1) per timer.
//!
//! A connection's deadline changes with each message, but its timer does not. When the timer
//! expires, the keeper looks at the deadline as it is then, and inserts the timer again if time is
//! left. So serving a message never touches the wheel, and each connection has about one timer.

/// The resolution, in milliseconds: a timer expires at most this late.
const WHEEL_RESOLUTION_MS: u64 = 32;
const BUCKETS: u64 = 1024;

/// A timer: the slot to check, and when to check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) index: u32,
    /// In the clock's milliseconds.
    pub(crate) due: u64,
}

/// The wheel. Times are in the clock's milliseconds.
pub(crate) struct TimerWheel {
    buckets: Vec<Vec<Timer>>,
    /// Every bucket before this tick is empty.
    tick: u64,
    /// No timer expires before this tick: where the search for the next one begins.
    first: u64,
    timers: usize,
}

impl TimerWheel {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            tick: now / WHEEL_RESOLUTION_MS,
            first: now / WHEEL_RESOLUTION_MS,
            timers: 0,
        }
    }

    /// Inserts a timer for the slot. A timer beyond the reach of the wheel expires early, to be
    /// inserted again.
    pub(crate) fn insert(&mut self, index: u32, due: u64) {
        let tick = (due / WHEEL_RESOLUTION_MS + 1).clamp(self.tick, self.tick + BUCKETS - 1);
        self.first = self.first.min(tick);
        self.bucket(tick).push(Timer { index, due });
        self.timers += 1;
    }

    /// Takes the expired timers out of the wheel. `now` is in the clock's milliseconds.
    pub(crate) fn take_expired(&mut self, now: u64) -> Vec<Timer> {
        let mut out = Vec::new();
        let end = now / WHEEL_RESOLUTION_MS + 1;
        let first = self.tick.max(end.saturating_sub(BUCKETS));
        for tick in first..end {
            if self.timers == out.len() {
                break;
            }
            let bucket = self.bucket(tick);
            out.append(bucket);
            bucket.shrink_to(64);
        }
        self.tick = self.tick.max(end);
        self.timers -= out.len();
        out
    }

    /// When the next timer expires, in the clock's milliseconds.
    pub(crate) fn next(&mut self) -> Option<u64> {
        if self.timers == 0 {
            return None;
        }
        self.first = (self.first.max(self.tick)..self.tick + BUCKETS)
            .find(|tick| !self.buckets[(tick % BUCKETS) as usize].is_empty())?;
        Some(self.first * WHEEL_RESOLUTION_MS)
    }

    fn bucket(&mut self, tick: u64) -> &mut Vec<Timer> {
        &mut self.buckets[(tick % BUCKETS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_expire_in_time_and_not_before() {
        let mut wheel = TimerWheel::new(1000);
        assert_eq!(wheel.next(), None);
        for due in [1000, 1500, 1010, 5000, 1500] {
            wheel.insert(0, due);
        }
        let mut now = 1000;
        let mut seen = Vec::new();
        while let Some(next) = wheel.next() {
            assert!(next >= now || next + WHEEL_RESOLUTION_MS > now);
            now = next.max(now);
            for Timer { due, .. } in wheel.take_expired(now) {
                assert!(due <= now, "{due} expired early, at {now}");
                assert!(
                    now <= due + 2 * WHEEL_RESOLUTION_MS,
                    "{due} expired late, at {now}"
                );
                seen.push(due);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [1000, 1010, 1500, 1500, 5000]);
    }

    #[test]
    fn a_timer_out_of_reach_expires_early_to_be_inserted_again() {
        let mut wheel = TimerWheel::new(0);
        let far = 10 * BUCKETS * WHEEL_RESOLUTION_MS;
        wheel.insert(1, far);
        let next = wheel.next().unwrap();
        assert!(next < far);
        assert_eq!(wheel.take_expired(next), [Timer { index: 1, due: far }]);
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut wheel = TimerWheel::new(0);
        for token in 0..100 {
            wheel.insert(token, u64::from(token) * 300);
        }
        assert_eq!(
            wheel
                .take_expired(100 * BUCKETS * WHEEL_RESOLUTION_MS)
                .len(),
            100
        );
        wheel.insert(7, 0);
        let late =
            wheel.take_expired(100 * BUCKETS * WHEEL_RESOLUTION_MS + 2 * WHEEL_RESOLUTION_MS);
        assert_eq!(late, [Timer { index: 7, due: 0 }]);
    }
}
