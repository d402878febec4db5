//! The Date field, formatted once a second.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock;

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

/// A worker's `Date: …` line (RFC 9110, section 6.6.1).
#[derive(Debug, Default)]
pub(super) struct Date {
    /// [`OK_LINE`] and the Date line behind it: most responses begin with both.
    lines: Vec<u8>,
    /// The end of the second that `lines` is for, in the clock's milliseconds.
    valid_until: u64,
}

impl Date {
    /// Formats the line again if its second is over.
    pub(super) fn refresh(&mut self) {
        let now = clock::millis();
        if now >= self.valid_until {
            self.refresh_at(now, SystemTime::now());
        }
    }

    fn refresh_at(&mut self, now: u64, wall: SystemTime) {
        let since_epoch = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.valid_until = now + u64::from(1000 - since_epoch.subsec_millis());
        self.lines.clear();
        self.lines.extend_from_slice(OK_LINE);
        // Writing to a vector cannot fail.
        let _ = write!(self.lines, "Date: {}\r\n", httpdate::HttpDate::from(wall));
    }

    pub(super) fn date_line(&self) -> &[u8] {
        &self.lines[OK_LINE.len()..]
    }

    /// The status line of a 200 response, and the Date line.
    pub(super) fn ok_and_date_lines(&self) -> &[u8] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_line_is_valid_until_its_second_is_over() {
        let mut date = Date::default();
        date.refresh_at(5000, UNIX_EPOCH + Duration::from_millis(784_111_777_250));
        assert_eq!(date.date_line(), b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        assert_eq!(date.valid_until, 5750);
    }
}
