//! The back-off of a worker whose state cannot be built.

use std::time::Duration;

/// The time from the first failure to the next attempt.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest time between two attempts.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// How long a worker waits after this many failed attempts in a row: twice as long after each. The
/// time is shortened by up to a quarter, by the worker's index: what all workers fail to reach must
/// not be tried by all of them at once.
pub(super) fn delay(failures: u32, worker: usize) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let delay = (FIRST_DELAY * 2u32.pow(doublings)).min(LONGEST_DELAY);
    delay - delay / 32 * (worker % 9) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_limit_and_differs_between_workers() {
        for (failures, worker, millis) in [
            (0, 0, 100.0),
            (1, 0, 100.0),
            (2, 0, 200.0),
            (3, 0, 400.0),
            (7, 0, 6400.0),
            (8, 0, 10_000.0),
            (u32::MAX, 0, 10_000.0),
            (1, 1, 96.875),
            (1, 8, 75.0),
            (1, 9, 100.0),
            (8, 8, 7500.0),
            (
                8,
                usize::MAX,
                10_000.0 - 10_000.0 / 32.0 * (usize::MAX % 9) as f64,
            ),
        ] {
            let delay = delay(failures, worker).as_secs_f64() * 1000.0;
            assert!(
                (delay - millis).abs() < 0.001,
                "{failures}, {worker}: {delay}"
            );
        }
    }
}
