//! The supervisor's log, where the application has set up none by the time when it is asked to supervise: standard error.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

/// Writes the records to standard error, unless there is a logger. Only for a process that runs no code of the
/// application's from now on.
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
        // In one piece, as others write there too. Nobody can be told that it is gone.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
