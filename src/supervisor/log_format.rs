//! The lines of the supervisor's log: one line for each record, whatever the record contains.

use std::env;
use std::fmt;
use std::time::SystemTime;

use log::Level;
use serde::Serialize;

use crate::sys;

/// The format of the lines that a supervisor logs to standard error, see
/// [`Supervisor::log_format`](crate::Supervisor::log_format).
///
/// Each record is one line of at most 4096 bytes: control characters are escaped, and a longer
/// message is cut, which "…" shows. Times are in UTC (RFC 3339).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// [`Journal`](Self::Journal) if standard error is connected to systemd's journal
    /// (`JOURNAL_STREAM` in systemd.exec(5)), and [`Plain`](Self::Plain) if not.
    #[default]
    Auto,
    /// `2026-11-28T09:30:00.123Z INFO  handover::supervisor::run: the supervisor exits`.
    Plain,
    /// `<6>handover::supervisor::run: the supervisor exits`: the level as sd-daemon(3) defines the
    /// prefix, and no time, since the journal adds it.
    Journal,
    /// A JSON object with the strings `time`, `level` (`error`, `warn`, `info`, `debug` or
    /// `trace`), `target` and `message`.
    Json,
}

/// The longest line, in bytes. A pipe takes a line of this length in one piece (PIPE_BUF in
/// pipe(7)), so that the lines of processes that share the pipe do not mix.
pub(super) const MAX_LINE: usize = 4096;

/// What shows that a message was cut.
const CUT: &str = "…";

impl LogFormat {
    /// Replaces [`Auto`](Self::Auto) by the format that suits standard error.
    pub(super) fn resolve(self) -> Self {
        match self {
            Self::Auto if is_journal(env::var("JOURNAL_STREAM").ok().as_deref()) => Self::Journal,
            Self::Auto => Self::Plain,
            chosen => chosen,
        }
    }

    /// The line of a record, with its end.
    pub(super) fn line(
        self,
        time: SystemTime,
        level: Level,
        target: &str,
        message: &fmt::Arguments<'_>,
    ) -> String {
        let mut message = message.to_string();
        if self != Self::Json {
            message = escape_controls(&message);
        }
        let line = self.encode(time, level, target, &message);
        let Some(excess) = line
            .len()
            .checked_sub(MAX_LINE)
            .filter(|&excess| excess > 0)
        else {
            return line;
        };
        // A byte of the message takes at least a byte of the line.
        let mut room = message.len().saturating_sub(excess + CUT.len());
        while !message.is_char_boundary(room) {
            room -= 1;
        }
        message.truncate(room);
        self.encode(time, level, target, &(message + CUT))
    }

    fn encode(self, time: SystemTime, level: Level, target: &str, message: &str) -> String {
        match self {
            Self::Journal => format!("<{}>{target}: {message}\n", priority(level)),
            Self::Json => {
                let line = JsonLine {
                    time: rfc3339(time),
                    level: level.as_str().to_ascii_lowercase(),
                    target,
                    message,
                };
                // Strings alone are always JSON.
                serde_json::to_string(&line).unwrap_or_default() + "\n"
            }
            Self::Plain | Self::Auto => {
                format!("{} {level:<5} {target}: {message}\n", rfc3339(time))
            }
        }
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    level: String,
    target: &'a str,
    message: &'a str,
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// The level in numbers of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is what `JOURNAL_STREAM` names by its device and inode. The variable is
/// inherited by processes whose standard error was redirected since.
fn is_journal(journal_stream: Option<&str>) -> bool {
    let named = journal_stream.and_then(|stream| {
        let (device, inode) = stream.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    let own = || sys::descriptor::inode(&sys::descriptor::duplicate_stderr().ok()?).ok();
    named.is_some_and(|named: (u64, u64)| own() == Some(named))
}

fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_control() {
            true => escaped.extend(char.escape_default()),
            false => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn line(format: LogFormat, level: Level, message: &str) -> String {
        let time = UNIX_EPOCH + Duration::from_millis(1_795_858_200_007);
        format.line(time, level, "a::b", &format_args!("{message}"))
    }

    #[test]
    fn each_format_has_its_line() {
        for (format, level, expected) in [
            (
                LogFormat::Plain,
                Level::Info,
                "2026-11-28T09:30:00.007Z INFO  a::b: x\\ny\\u{1b}[1m ä\n",
            ),
            (
                LogFormat::Journal,
                Level::Error,
                "<3>a::b: x\\ny\\u{1b}[1m ä\n",
            ),
            (
                LogFormat::Journal,
                Level::Warn,
                "<4>a::b: x\\ny\\u{1b}[1m ä\n",
            ),
            (
                LogFormat::Json,
                Level::Warn,
                "{\"time\":\"2026-11-28T09:30:00.007Z\",\"level\":\"warn\",\"target\":\"a::b\",\
                 \"message\":\"x\\ny\\u001b[1m ä\"}\n",
            ),
        ] {
            assert_eq!(line(format, level, "x\ny\u{1b}[1m ä"), expected);
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        for format in [LogFormat::Plain, LogFormat::Journal, LogFormat::Json] {
            for message in ["ä".repeat(9000), "\n".repeat(9000), "a".repeat(9000)] {
                let line = line(format, Level::Info, &message);
                assert!(line.len() <= MAX_LINE && line.contains(CUT), "{line}");
                assert_eq!(line.matches('\n').count(), 1, "{line}");
                let is_json = serde_json::from_str::<serde_json::Value>(&line).is_ok();
                assert_eq!(is_json, format == LogFormat::Json, "{line}");
            }
        }
    }

    #[test]
    fn only_the_journals_own_socket_is_the_journal() {
        let stderr = sys::descriptor::duplicate_stderr();
        let Ok((device, inode)) = stderr.and_then(|stderr| sys::descriptor::inode(&stderr)) else {
            return;
        };
        assert!(is_journal(Some(&format!("{device}:{inode}"))));
        for other in [
            None,
            Some(""),
            Some("x:y"),
            Some(&*format!("{device}:{}", inode + 1)),
        ] {
            assert!(!is_journal(other), "{other:?}");
        }
    }
}
