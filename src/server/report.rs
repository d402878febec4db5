//! Reports: the outcome of a stop, and of a restart.

use std::fmt;
use std::time::Duration;

use crate::addr::Addr;

/// What became of the connections that were open when a stop began, from
/// [`Handle::join`](crate::Handle::join).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Connections that moved to the successor after a restart, see
    /// [`Restart::move_connections`](crate::Restart::move_connections).
    pub moved: usize,
    /// The longest time for which a connection that moved was served by neither process.
    pub longest_move: Duration,
    /// Connections that ended before the deadline: their requests were finished, or they were idle.
    pub finished: usize,
    /// Connections that a handler was still serving at the deadline. Their sockets were shut down.
    pub forced: Vec<Forced>,
    /// Connections that were in progress at the deadline, but not in a handler: they waited for a
    /// worker, for the rest of a message, or for their client to read.
    pub dropped: usize,
    /// Connections that waited for more than their client, with a waker, an outbox or a timer, and
    /// whose service was called because of the drain. The other fields count them too.
    pub drain_calls: usize,
    /// How long the stop took, from the request to the end of the server's last thread. Threads that
    /// do not end are waited for until half a second after the deadline. The process may wait
    /// longer, which is not part of this time: for its other servers, and for a restart that is not
    /// complete, for 6 s or until the deadline, unless the stop is an immediate one.
    pub took: Duration,
    /// The process, if other processes serve the same listeners: it was replaced, has replaced
    /// another one, or has a supervisor. The text of the report begins with it.
    pub generation: Option<Generation>,
}

impl Report {
    /// Whether no connection was cut off.
    pub fn is_clean(&self) -> bool {
        self.forced.is_empty() && self.dropped == 0
    }

    /// The text without the process.
    fn fmt_outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (finished, dropped) = (self.finished, self.dropped);
        let seconds = self.took.as_secs_f32();
        let forced = self.forced.len();
        write!(f, "stopped in {seconds:.2} s: ")?;
        if self.moved > 0 {
            let millis = self.longest_move.as_secs_f64() * 1000.0;
            write!(f, "{} moved within {millis:.1} ms, ", self.moved)?;
        }
        write!(f, "{finished} finished, {forced} forced, {dropped} dropped")?;
        self.forced
            .iter()
            .try_for_each(|forced| write!(f, "; {forced}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(generation) = &self.generation {
            write!(f, "{generation} ")?;
        }
        self.fmt_outcome(f)
    }
}

/// The outcome of a restart, from [`Handle::restart`](crate::Handle::restart) in the process that
/// was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestartReport {
    /// The time from the start of the new process until it was ready to serve.
    pub ready_after: Duration,
    /// How long no service was called in either process, for an exact state
    /// ([`Restart::exact_state`](crate::Restart::exact_state)): from the moment at which the old process
    /// began no message any more until it knew that the new one serves. `None` without such a state.
    pub paused_for: Option<Duration>,
    /// What became of the connections of the old process.
    pub drained: Report,
    /// The process that was replaced.
    pub old: Generation,
    /// The process that serves.
    pub new: Generation,
}

/// A process, in the row of processes that replace each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generation {
    /// 1 for the first process.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} (process {})", self.number, self.pid)
    }
}

impl fmt::Display for RestartReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready_after = self.ready_after.as_secs_f32();
        write!(f, "{} was ready after {ready_after:.3} s, ", self.new)?;
        if let Some(pause) = self.paused_for {
            let millis = pause.as_secs_f64() * 1000.0;
            write!(f, "clients waited for the state for {millis:.1} ms, ")?;
        }
        write!(f, "{} ", self.old)?;
        self.drained.fmt_outcome(f)
    }
}

/// A connection that a handler was still serving at the deadline of a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forced {
    /// The index of the worker.
    pub worker: usize,
    /// The client.
    pub peer: Addr,
    /// The name of the listener.
    pub listener: String,
    /// How long the call of the service had lasted.
    pub served_for: Duration,
    /// Whether the call ended once the socket was shut down. If not, its thread is still running:
    /// threads are never killed.
    pub ended: bool,
}

impl fmt::Display for Forced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "worker {} had served {} on {} for {:.1} s",
            self.worker,
            self.peer,
            self.listener,
            self.served_for.as_secs_f32()
        )?;
        if !self.ended {
            f.write_str(" and is still running")?;
        }
        Ok(())
    }
}
