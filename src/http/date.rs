//! The Date field, formatted once a second.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";

/// A worker's `Date: …` line (RFC 9110, section 6.6.1).
#[derive(Debug, Default)]
pub(super) struct Date {
    /// Behind [`OK`].
    line: Vec<u8>,
    /// Until when it is right, in the clock's milliseconds.
    until: u64,
}

impl Date {
    /// Sees to it that the line is right now.
    pub(super) fn renew(&mut self) {
        let now = clock::millis();
        if now >= self.until {
            self.renew_at(now, SystemTime::now());
        }
    }

    fn renew_at(&mut self, now: u64, wall: SystemTime) {
        let past_second = wall
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.subsec_millis());
        self.until = now + u64::from(1000 - past_second);
        self.line.clear();
        self.line.extend_from_slice(OK);
        // Writing to a vector cannot fail.
        let _ = write!(self.line, "Date: {}\r\n", httpdate::HttpDate::from(wall));
    }

    pub(super) fn line(&self) -> &[u8] {
        &self.line[OK.len()..]
    }

    /// The line behind the status line that it follows nearly always.
    pub(super) fn after_ok(&self) -> &[u8] {
        &self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_line_lasts_until_the_second_is_over() {
        let mut date = Date::default();
        date.renew_at(5000, UNIX_EPOCH + Duration::from_millis(784_111_777_250));
        assert_eq!(date.line(), b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        assert_eq!(date.until, 5750);
    }
}
