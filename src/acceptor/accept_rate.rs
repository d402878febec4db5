//! How many connections are accepted per second, and whether the acceptor should be patient.
//!
//! When a connection arrives, the kernel wakes the acceptor. If all CPUs are busy, the acceptor
//! interrupts another thread, which mostly is a worker of this server. The switches of threads are
//! a sixth of what a connection with one request costs in total. A *patient* acceptor does not
//! interrupt: when a CPU is free, or when the other thread's time slice is over, it accepts all
//! connections that have arrived by then. Where a CPU is free, nothing changes.
//!
//! Patience has a price where other programs keep all CPUs busy: there a connection waits for some
//! milliseconds. So the acceptor is patient only while many connections arrive.

/// The acceptor becomes patient at this many connections per second, and stays patient as long as
/// there are half as many.
const PATIENT_FROM: u64 = 5_000;

/// How long connections are counted before the rate is known, in milliseconds.
const INTERVAL_MS: u64 = 64;

/// The rate of accepted connections. Times are in the clock's milliseconds.
#[derive(Debug)]
pub(super) struct AcceptRate {
    /// When the counting began.
    since: u64,
    /// The number of connections accepted since then.
    count: u64,
    is_patient: bool,
}

impl AcceptRate {
    pub(super) fn new(now: u64) -> Self {
        Self {
            since: now,
            count: 0,
            is_patient: false,
        }
    }

    /// Counts a connection accepted at `now`. `Some` if it is known now that the acceptor should
    /// begin or cease to be patient.
    pub(super) fn count_accept(&mut self, now: u64) -> Option<bool> {
        self.count += 1;
        let elapsed = now.saturating_sub(self.since);
        if elapsed < INTERVAL_MS {
            return None;
        }
        let per_second = self.count.saturating_mul(1000) / elapsed;
        (self.since, self.count) = (now, 0);
        let limit = match self.is_patient {
            true => PATIENT_FROM / 2,
            false => PATIENT_FROM,
        };
        let is_patient = per_second >= limit;
        let has_changed = is_patient != std::mem::replace(&mut self.is_patient, is_patient);
        has_changed.then_some(is_patient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The changes while `per_second` connections are accepted for `millis` from `now` on.
    fn accept(rate: &mut AcceptRate, now: &mut u64, per_second: u64, millis: u64) -> Vec<bool> {
        let begin = *now;
        *now += millis;
        let accepts = 1..=per_second * millis / 1000;
        let times = accepts.map(|index| begin + index * 1000 / per_second);
        times.filter_map(|time| rate.count_accept(time)).collect()
    }

    #[test]
    fn the_acceptor_is_patient_while_many_connections_arrive() {
        let mut now = 1_000_000;
        let mut rate = AcceptRate::new(now);
        for (per_second, millis, changes) in [
            (100, 1000, &[][..]),
            (4_900, 1000, &[]),
            (5_100, 1000, &[true]),
            (50_000, 1000, &[]),
            (2_600, 1000, &[]),
            (2_400, 1000, &[false]),
            (4_900, 1000, &[]),
            (100, 1000, &[]),
            // A burst that is too short.
            (10_000, 20, &[]),
            (100, 1000, &[]),
            (20_000, 500, &[true]),
        ] {
            let found = accept(&mut rate, &mut now, per_second, millis);
            assert_eq!(found, changes, "{per_second} for {millis} ms");
        }
        // After a pause, the first connection ends the patience.
        assert_eq!(rate.count_accept(now + 10_000), Some(false));
    }
}
