//! The supervisor's own logger, for programs that have set none before they call the supervisor.
//!
//! The reader of standard error may stop reading, and then a write blocks. So lines go through a
//! bounded queue to a thread, which alone may block. Lines that find the queue full are dropped,
//! and a line with their number takes their place.
//!
//! The alternatives do not work, or not always:
//!
//! - O_NONBLOCK belongs to the open file description, so it would be set for the serving processes
//!   and the terminal too.
//! - To poll for POLLOUT before a write is a race with the serving processes, which write to the
//!   same pipe; and a terminal that is writable takes less than a line.
//! - A second open file description (by /proc/self/fd/2) cannot be had of a socket, as which the
//!   journal connects services, nor after a change of the user.
//!
//! The thread does no harm to the forks of the supervisor: between fork and exec, only
//! async-signal-safe functions are called.
//!
//! The crates for logging (such as env_logger) write from the thread that logs. They would add
//! their dependencies, and not the queue, which is most of this file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::{Condvar, Mutex};

use super::log_format::LogFormat;

/// The most lines that wait for the reader of standard error.
const MAX_LINES: usize = 1024;

/// How long [`Log::flush`] waits for the reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDERR: StderrLogger = StderrLogger {
    pipe: OnceLock::new(),
    format: OnceLock::new(),
    queue: Mutex::new(LineQueue::new()),
    changed: Condvar::new(),
};

/// Logs to standard error, from level "info" on, unless the program has set a logger. Only for a
/// process that runs no more code of the application, which could set its own logger later.
///
/// To be called when the signals of the supervisor are blocked: the thread of the logger must not
/// receive them.
pub(super) fn install(format: LogFormat, goes_to_file: bool) {
    if log::max_level() == LevelFilter::Off && log::set_logger(&STDERR).is_ok() {
        let resolve = || match (format, goes_to_file) {
            (LogFormat::Auto, true) => LogFormat::Plain,
            _ => format.resolve(),
        };
        STDERR.format.get_or_init(resolve);
        log::set_max_level(LevelFilter::Info);
    }
}

/// Has the lines written to a pipe from now on.
pub(super) fn write_to(pipe: File) {
    STDERR.pipe.get_or_init(|| pipe);
}

struct StderrLogger {
    /// Where lines go in place of standard error.
    pipe: OnceLock<File>,
    format: OnceLock<LogFormat>,
    queue: Mutex<LineQueue>,
    /// Notified when a line has come, and when a line was written.
    changed: Condvar,
}

/// The lines that are to be written.
#[derive(Debug, PartialEq, Eq)]
struct LineQueue {
    lines: VecDeque<QueuedLine>,
    has_writer: bool,
    /// The thread writes a line that it has taken out of the queue.
    is_writing: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum QueuedLine {
    Text(String),
    /// The number of lines that were dropped at this place.
    Dropped(u64),
}

impl Log for StderrLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = self.line(record.level(), record.target(), record.args());
        let has_writer = {
            let mut queue = self.queue.lock();
            queue.push(line);
            std::mem::replace(&mut queue.has_writer, true)
        };
        self.changed.notify_all();
        if !has_writer {
            let writer = thread::Builder::new().name("handover-log".to_owned());
            if writer.spawn(|| STDERR.write_lines()).is_err() {
                // The next record tries again. Until then, the queue holds this one.
                self.queue.lock().has_writer = false;
            }
        }
    }

    /// Waits until all lines are written, for at most a second: the reader may have stopped.
    fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let mut queue = self.queue.lock();
        while !queue.is_written() {
            if self.changed.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

impl StderrLogger {
    fn line(&self, level: Level, target: &str, message: &std::fmt::Arguments<'_>) -> String {
        let format = self.format.get().copied().unwrap_or_default();
        format.line(SystemTime::now(), level, target, message)
    }

    /// The thread's loop.
    fn write_lines(&self) {
        loop {
            let line = match self.take_line() {
                QueuedLine::Text(line) => line,
                QueuedLine::Dropped(count) => {
                    // One expression: up to Rust 1.88 the arguments do not outlive a statement.
                    self.line(
                        Level::Warn,
                        module_path!(),
                        &format_args!(
                            "{count} log lines were dropped: standard error was not read"
                        ),
                    )
                }
            };
            // One write for a whole line, since the serving processes write to the same file. A
            // failure to log can be reported nowhere.
            let _ = match self.pipe.get() {
                Some(mut pipe) => pipe.write_all(line.as_bytes()),
                None => io::stderr().write_all(line.as_bytes()),
            };
            self.queue.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn take_line(&self) -> QueuedLine {
        let mut queue = self.queue.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.is_writing = true;
                return line;
            }
            self.changed.wait(&mut queue);
        }
    }
}

impl LineQueue {
    const fn new() -> Self {
        Self {
            lines: VecDeque::new(),
            has_writer: false,
            is_writing: false,
        }
    }

    /// Adds a line, or counts it if there is no room.
    fn push(&mut self, line: String) {
        // The last place is for the count.
        let has_room = self.lines.len() + 1 < MAX_LINES;
        match self.lines.back_mut() {
            Some(QueuedLine::Dropped(count)) if !has_room => *count += 1,
            _ if !has_room => self.lines.push_back(QueuedLine::Dropped(1)),
            _ => self.lines.push_back(QueuedLine::Text(line)),
        }
    }

    fn is_written(&self) -> bool {
        self.lines.is_empty() && !self.is_writing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_dropped_lines_stands_in_their_place() {
        let mut queue = LineQueue::new();
        for number in 0..MAX_LINES + 9 {
            queue.push(number.to_string());
        }
        assert_eq!(queue.lines.len(), MAX_LINES);
        assert_eq!(queue.lines.back(), Some(&QueuedLine::Dropped(10)));
        // Two are written, and there is room for one line and one more count.
        queue.lines.drain(..2);
        for line in ["a", "b", "c"] {
            queue.push(line.to_owned());
        }
        let last: Vec<_> = queue.lines.drain(MAX_LINES - 3..).collect();
        let text = QueuedLine::Text("a".to_owned());
        assert_eq!(
            last,
            [QueuedLine::Dropped(10), text, QueuedLine::Dropped(2)]
        );
    }
}
