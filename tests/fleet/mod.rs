//! A simulator of the supervisor's processes, against the policy.
//!
//! | file | what it holds |
//! |---|---|
//! | [`history`] | what goes wrong and what is asked for, as a list that a seed generates |
//! | [`machine`] | the clock, the processes and their notifications |
//! | [`play`] | the supervisor's loop, as `src/supervisor/run.rs` has it |
//! | [`promises`] | what is checked after each event |
//! | [`shrink`] | the smallest list of decisions that still fails |
//!
//! Not simulated: descriptors, the text of notifications and of control messages, the snapshot
//! that an upgrade writes (the fleet is copied as `snapshot.rs` would restore it), process ids that
//! are used again, and other subprocesses that notify.

mod history;
mod machine;
mod play;
mod promises;
mod shrink;

use play::Play;

#[allow(unused_imports)] // For the test.
pub(crate) use history::{Act, Build, Decision, DryRunFate, Ending, Fate, History};

#[allow(unused_imports)] // For the test.
pub(crate) use promises::BREAKER_LIMIT;

/// Plays the history of this seed. Returns the smallest history that fails, as text, if it fails.
pub(crate) fn check(seed: u64) -> Option<String> {
    let history = History::generate(seed);
    play_history(history)
}

/// Plays a history, as [`check`] does.
pub(crate) fn play_history(history: History) -> Option<String> {
    Play::play(&history, false).err()?;
    Some(shrink::describe_smallest(history))
}

/// Plays the history of this seed, and returns the number of its events; or the name of the broken
/// promise.
#[allow(dead_code)] // For the benchmark.
pub(crate) fn count_events(seed: u64) -> Result<u64, &'static str> {
    let played = Play::play(&History::generate(seed), false);
    played.map_err(|failure| failure.name)
}
