//! The supervisor's own logger, for programs that have set none before they call the supervisor.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

/// Logs to standard error, from level "info" on, unless the program has set a logger. Only for a
/// process that runs no more code of the application, which could set its own logger later.
pub(super) fn install() {
    if log::max_level() == LevelFilter::Off && log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("supervisor: {}: {}\n", record.level(), record.args());
        // One write for a whole line, since the serving processes write to the same file. A failure
        // to log can be reported nowhere.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
