//! What a server's handles, its main thread and the other servers of its group share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use crate::acceptor::AcceptGate;
use crate::addr::Addr;
use crate::clock::Deadline;
use crate::notify;
use crate::restart::RestarterHandle;
use crate::server::app_threads::AppThreads;
use crate::server::move_channels::MoveChannels;
use crate::server::report::Report;
use crate::server::thread_mark::is_thread_of;
use crate::signals::ServerCommand;
use crate::stats::Stats;

/// What handles and the server's main thread share.
pub(super) struct ServerShared {
    pub(super) commands: Sender<ServerCommand>,
    pub(super) stop: StopRequest,
    pub(super) drain_timeout: Duration,
    pub(super) gate: Arc<AcceptGate>,
    pub(super) addrs: Vec<Addr>,
    /// Tells this server from others in the process.
    pub(super) server_id: Arc<AtomicUsize>,
    pub(super) app_threads: AppThreads,
    pub(super) stats: Box<dyn Fn() -> Stats + Send + Sync>,
    pub(super) report: ReportCell,
    pub(super) move_channels: MoveChannels,
    /// `Some` if the server can be restarted.
    pub(super) restarter: Option<RestarterHandle>,
    /// The restarter runs, and was not told that this server has stopped.
    pub(super) is_restartable: AtomicBool,
    /// Set when the server starts.
    pub(super) group: OnceLock<GroupPlace>,
}

/// The stop that handles have asked for. Asking never waits, not even for a server that has not
/// started.
#[derive(Default)]
pub(super) struct StopRequest {
    requested: Mutex<Option<RequestedStop>>,
    /// A stop was requested, or has begun.
    is_stopping: AtomicBool,
}

/// A stop that a server is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestedStop {
    pub(super) deadline: Deadline,
    /// The stop is to wait for nothing.
    pub(super) is_immediate: bool,
}

impl RequestedStop {
    pub(super) fn by(deadline: Deadline) -> Self {
        let is_immediate = false;
        Self {
            deadline,
            is_immediate,
        }
    }

    pub(super) fn now() -> Self {
        Self {
            deadline: Deadline::at(Some(Instant::now())),
            is_immediate: true,
        }
    }

    /// Both stops as one.
    fn and(self, other: Self) -> Self {
        Self {
            deadline: self.deadline.earlier(other.deadline),
            is_immediate: self.is_immediate || other.is_immediate,
        }
    }
}

impl StopRequest {
    /// The requested stop, once.
    pub(super) fn take(&self) -> Option<RequestedStop> {
        self.requested.lock().take()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    pub(super) fn mark_stopping(&self) {
        self.is_stopping.store(true, SeqCst);
    }
}

/// The report, once there is one, and whether all threads have ended.
#[derive(Default)]
pub(super) struct ReportCell {
    report: Mutex<Option<(Report, bool)>>,
    is_set: Condvar,
}

impl ReportCell {
    pub(super) fn set(&self, report: Report, all_ended: bool) {
        *self.report.lock() = Some((report, all_ended));
        self.is_set.notify_all();
    }

    /// Leaves an empty report if there is none.
    pub(super) fn set_if_missing(&self) {
        self.report
            .lock()
            .get_or_insert_with(|| (Report::default(), true));
        self.is_set.notify_all();
    }

    /// Waits for the report; `None` if the deadline passes before.
    pub(super) fn wait(&self, deadline: Deadline) -> Option<(Report, bool)> {
        let mut report = self.report.lock();
        loop {
            if let Some(report) = &*report {
                return Some(report.clone());
            }
            match deadline.instant() {
                None => self.is_set.wait(&mut report),
                Some(at) => {
                    if self.is_set.wait_until(&mut report, at).timed_out() {
                        return report.clone();
                    }
                }
            }
        }
    }
}

impl ServerShared {
    /// Asks for a stop.
    pub(super) fn request_stop(&self, stop: RequestedStop) {
        self.stop.mark_stopping();
        {
            let mut requested = self.stop.requested.lock();
            *requested = Some(requested.map_or(stop, |own| own.and(stop)));
        }
        self.wake();
    }

    /// Has the main thread look at what has changed.
    fn wake(&self) {
        // If the channel is full, the main thread looks after the next command. A server that has
        // ended need not look.
        let _ = self.commands.try_send(ServerCommand::Check);
    }

    /// Tells the restarter, if it runs, once, that this server has stopped.
    /// `aborted_by`: see [`RestarterHandle::report_stopped`].
    pub(super) fn report_stopped(&self, report: String, aborted_by: Deadline) {
        if let Some(restarter) = &self.restarter {
            if self.is_restartable.swap(false, SeqCst) {
                restarter.report_stopped(report, aborted_by);
                // Those that have stopped before may have waited for this.
                self.others().for_each(|other| other.wake());
            }
        }
    }

    /// Asks for a stop within the drain time-out.
    pub(super) fn request_drain(&self) {
        let deadline = Deadline::after(Instant::now(), self.drain_timeout);
        self.request_stop(RequestedStop::by(deadline));
    }

    /// Whether this thread is one of the server's. Such a thread cannot wait for the server's end.
    pub(super) fn is_own_thread(&self) -> bool {
        is_thread_of(self.server_id.load(SeqCst))
    }

    /// Asks all servers of the group for a stop.
    pub(super) fn request_stop_of_all(&self, stop: RequestedStop) {
        // All are marked first: then none of them gives another one a deadline of its own.
        self.stop.mark_stopping();
        self.others().for_each(|other| other.stop.mark_stopping());
        self.request_stop(stop);
        self.others().for_each(|other| other.request_stop(stop));
    }

    /// The stop of this server has begun: those that do not stop yet stop as well, each within its
    /// own drain time-out.
    pub(super) fn drain_others(&self) {
        let others = self.others().filter(|other| !other.stop.is_stopping());
        others.for_each(|other| other.request_drain());
    }

    /// Whether a stop of one of the servers was requested, or has begun.
    pub(super) fn is_stopping_group(&self) -> bool {
        self.stop.is_stopping() || self.others().any(|other| other.stop.is_stopping())
    }

    /// Whether the process has other servers of the same group.
    pub(super) fn has_others(&self) -> bool {
        self.group.get().is_some_and(|own| !own.others.is_empty())
    }

    fn others(&self) -> impl Iterator<Item = Arc<ServerShared>> + '_ {
        self.group.get().into_iter().flat_map(GroupPlace::others)
    }
}

/// The place of a server in its group.
pub(super) struct GroupPlace {
    pub(super) others: Vec<Weak<ServerShared>>,
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) index: usize,
}

impl GroupPlace {
    fn others(&self) -> impl Iterator<Item = Arc<ServerShared>> + '_ {
        self.others.iter().filter_map(Weak::upgrade)
    }

    /// The server makes progress.
    pub(super) fn beat(&self) {
        if self.heartbeat.mark(self.index) {
            notify::send_watchdog_alive();
        }
    }

    /// The watchdog no longer expects the server to make progress.
    pub(super) fn end_heartbeat(&self) {
        self.heartbeat.0.lock()[self.index] = None;
    }
}

/// Which servers have made progress since the watchdog was last notified. `None` for servers that
/// have stopped.
pub(super) struct Heartbeat(Mutex<Vec<Option<bool>>>);

impl Heartbeat {
    pub(super) fn of(servers: usize) -> Self {
        Self(Mutex::new(vec![Some(false); servers]))
    }

    /// Marks a server. True if all servers have made progress.
    fn mark(&self, index: usize) -> bool {
        let mut marks = self.0.lock();
        marks[index] = Some(true);
        let all = marks.iter().all(|mark| *mark != Some(false));
        if all {
            marks.iter_mut().flatten().for_each(|mark| *mark = false);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_hears_of_progress_when_all_have_made_some() {
        let heartbeat = Heartbeat::of(2);
        assert!(!heartbeat.mark(0));
        assert!(!heartbeat.mark(0));
        assert!(heartbeat.mark(1));
        assert!(!heartbeat.mark(1));
        assert!(heartbeat.mark(0));
        heartbeat.0.lock()[1] = None;
        assert!(heartbeat.mark(0));
        assert!(heartbeat.mark(0));
    }
}
