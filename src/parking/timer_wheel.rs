//! Expiry in O(1): a hashed timer wheel whose entries are reminders, not truths.
//!
//! A connection's deadline changes with each message, its entry does not: when the entry comes up, its owner looks at
//! the deadline as it is then, and puts the entry back if there is time left. So the path of a request never
//! touches the wheel, and each connection has about one entry.

/// How coarse it is: an entry comes up at most so many milliseconds late.
const TICK: u64 = 32;
const BUCKETS: u64 = 1024;

/// An entry: the slot to look at, and the time that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) index: u32,
    pub(crate) due: u64,
}

/// The wheel. Times are the clock's milliseconds.
pub(crate) struct TimerWheel {
    buckets: Vec<Vec<Timer>>,
    /// Every bucket before this tick is empty.
    tick: u64,
    entries: usize,
}

impl TimerWheel {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            tick: now / TICK,
            entries: 0,
        }
    }

    /// Has the slot come up at `due` or soon after; or earlier, when that is further away than the wheel reaches.
    pub(crate) fn insert(&mut self, index: u32, due: u64) {
        let tick = (due / TICK + 1).clamp(self.tick, self.tick + BUCKETS - 1);
        self.bucket(tick).push(Timer { index, due });
        self.entries += 1;
    }

    /// Takes out what has come up.
    pub(crate) fn expired(&mut self, now: u64) -> Vec<Timer> {
        let mut out = Vec::new();
        let end = now / TICK + 1;
        let first = self.tick.max(end.saturating_sub(BUCKETS));
        for tick in first..end {
            if self.entries == out.len() {
                break;
            }
            let bucket = self.bucket(tick);
            out.append(bucket);
            bucket.shrink_to(64);
        }
        self.tick = self.tick.max(end);
        self.entries -= out.len();
        out
    }

    /// When the next entry comes up.
    pub(crate) fn next(&self) -> Option<u64> {
        if self.entries == 0 {
            return None;
        }
        (self.tick..self.tick + BUCKETS)
            .find(|tick| !self.buckets[(tick % BUCKETS) as usize].is_empty())
            .map(|tick| tick * TICK)
    }

    fn bucket(&mut self, tick: u64) -> &mut Vec<Timer> {
        &mut self.buckets[(tick % BUCKETS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_up_in_time_and_not_before() {
        let mut wheel = TimerWheel::new(1000);
        assert_eq!(wheel.next(), None);
        for due in [1000, 1500, 1010, 5000, 1500] {
            wheel.insert(0, due);
        }
        let mut now = 1000;
        let mut seen = Vec::new();
        while let Some(next) = wheel.next() {
            assert!(next >= now || next + TICK > now);
            now = next.max(now);
            for Timer { due, .. } in wheel.expired(now) {
                assert!(due <= now, "{due} came up early, at {now}");
                assert!(now <= due + 2 * TICK, "{due} came up late, at {now}");
                seen.push(due);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [1000, 1010, 1500, 1500, 5000]);
    }

    #[test]
    fn what_is_out_of_reach_comes_up_early_to_be_put_back() {
        let mut wheel = TimerWheel::new(0);
        let far = 10 * BUCKETS * TICK;
        wheel.insert(1, far);
        let next = wheel.next().unwrap();
        assert!(next < far);
        assert_eq!(wheel.expired(next), [Timer { index: 1, due: far }]);
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut wheel = TimerWheel::new(0);
        for token in 0..100 {
            wheel.insert(token, u64::from(token) * 300);
        }
        assert_eq!(wheel.expired(100 * BUCKETS * TICK).len(), 100);
        wheel.insert(7, 0);
        let late = wheel.expired(100 * BUCKETS * TICK + 2 * TICK);
        assert_eq!(late, [Timer { index: 7, due: 0 }]);
    }
}
