//! The Date field, formatted once a second.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

/// The Content-Type line of a text.
pub(super) const TEXT_LINE: &[u8] = b"Content-Type: text/plain; charset=utf-8\r\n";

/// A worker's `Date: …` line (RFC 9110, section 6.6.1).
#[derive(Debug, Default)]
pub(super) struct Date {
    /// [`OK_LINE`], the Date line and [`TEXT_LINE`]: most responses begin with all three, or the
    /// first two.
    lines: Vec<u8>,
    /// The end of the second that `lines` is for, in the clock's milliseconds.
    valid_until: u64,
}

impl Date {
    /// Formats the line again if its second is over. `now` is in the clock's milliseconds.
    #[inline]
    pub(super) fn refresh(&mut self, now: u64) {
        if now >= self.valid_until {
            self.refresh_at(now, SystemTime::now());
        }
    }

    #[cold]
    fn refresh_at(&mut self, now: u64, wall: SystemTime) {
        let since_epoch = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.valid_until = now + u64::from(1000 - since_epoch.subsec_millis());
        self.lines.clear();
        self.lines.extend_from_slice(OK_LINE);
        // Writing to a vector cannot fail.
        let _ = write!(self.lines, "Date: {}\r\n", httpdate::HttpDate::from(wall));
        self.lines.extend_from_slice(TEXT_LINE);
    }

    pub(super) fn date_line(&self) -> &[u8] {
        &self.ok_and_date_lines()[OK_LINE.len()..]
    }

    /// The status line of a 200 response, and the Date line.
    #[inline]
    pub(super) fn ok_and_date_lines(&self) -> &[u8] {
        &self.lines[..self.lines.len() - TEXT_LINE.len()]
    }

    /// The status line of a 200 response, the Date line, and [`TEXT_LINE`].
    #[inline]
    pub(super) fn ok_date_and_text_lines(&self) -> &[u8] {
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
        let lines = [OK_LINE, date.date_line(), TEXT_LINE].concat();
        assert_eq!(date.ok_date_and_text_lines(), lines);
        assert!(lines.starts_with(date.ok_and_date_lines()));
    }
}
