//! The end of a server: what is left of its connections is forced, its threads are joined, and the
//! report is made.
//!
//! Each wait here has a deadline: [`FinishDeadlines`]. Only the restarter may take longer, while it
//! has to report the result of a restart.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::clock::{self, Deadline};
use crate::restart::RestarterHandle;
use crate::server::finish_deadlines::FinishDeadlines;
use crate::server::main_thread::{Ended, MainThread, StopProgress, restarter_end};
use crate::server::report::{Forced, Generation, Report};
use crate::server::shared::RequestedStop;
use crate::service::Service;
use crate::signals::ServerCommand;

impl<S: Service> MainThread<S> {
    /// Ends the remaining connections, and the threads. The second result says whether all threads
    /// have ended.
    pub(super) fn finish(
        &self,
        stop: StopProgress,
        commands: &Receiver<ServerCommand>,
        ended: &Receiver<Ended>,
    ) -> (Report, bool) {
        let (lots, shared) = (&self.lots, &self.report.0);
        let mut report = self.end_connections(&stop);
        report.moved = lots.counters.moved.load(Relaxed) as usize;
        report.longest_move = Duration::from_nanos(lots.counters.longest_move.load(Relaxed));
        report.drain_calls = lots.counters.drain_calls.load(Relaxed) as usize;
        lots.end_threads();
        report.took = stop.since.elapsed();
        let restarter = shared.restarter.as_ref();
        let mut deadlines = FinishDeadlines::new(Instant::now(), stop.deadline, stop.is_immediate);
        shared.report_stopped(report.to_string(), deadlines.aborted_successor);
        let waits_for_servers = || restarter.is_some_and(RestarterHandle::waits_for_servers);
        let mut others_are_left = waits_for_servers();
        let (mut ended, mut restarter_end) = (ended.clone(), restarter_end(restarter));
        let (mut threads_left, mut restarter_left) = (true, restarter.is_some());
        let mut all_ended = loop {
            if !threads_left && !restarter_left {
                break true;
            }
            if others_are_left && !waits_for_servers() {
                others_are_left = false;
                deadlines.begin_restarter_grace(Instant::now());
            }
            let until = deadlines.until(restarter_left);
            match next_of_finish(commands, &ended, &restarter_end, until, restarter) {
                NextOfFinish::Ended(Ended::Worker(index)) => {
                    let mine = report.forced.iter_mut().find(|f| f.worker == index);
                    mine.into_iter().for_each(|forced| forced.ended = true);
                }
                NextOfFinish::Ended(
                    Ended::Acceptor | Ended::Keeper | Ended::Mover | Ended::Adopter,
                ) => {}
                NextOfFinish::Command(command) => {
                    if let Some(stop) = self.handle_late_command(command, restarter) {
                        deadlines.shorten(Instant::now(), stop);
                    }
                }
                NextOfFinish::TimedOut => break false,
                NextOfFinish::ThreadsEnded => {
                    ended = crossbeam_channel::never();
                    threads_left = false;
                    // The wait for other servers and the restarter is not part of this stop.
                    report.took = stop.since.elapsed();
                }
                NextOfFinish::RestarterEnded => {
                    restarter.inspect(|restarter| restarter.join());
                    restarter_end = crossbeam_channel::never();
                    restarter_left = false;
                }
            }
        };
        lots.drop_left_sessions();
        if threads_left {
            let waited_until = deadlines.workers.min(Instant::now());
            report.took = waited_until.saturating_duration_since(stop.since);
        }
        let began = Instant::now();
        all_ended &= shared.app_threads.join(deadlines.workers);
        report.took += began.elapsed();
        (report, all_ended)
    }

    /// Closes the remaining connections. Their counts are in the report.
    fn end_connections(&self, stop: &StopProgress) -> Report {
        let lots = &self.lots;
        let mut report = Report {
            finished: stop.finished,
            generation: self.generation(),
            ..Report::default()
        };
        self.gate.close_now();
        if stop.is_clean {
            // A thread that holds a lingering connection now closes it instead of parking it.
            lots.drain.mark_forced();
        }
        lots.close_lingering();
        if !stop.is_clean {
            // A server that was replaced has kept its idle connections until now. Closing idle
            // connections loses no request.
            lots.drain.mark_closing();
            lots.close_idle();
            report.finished = self.finished_since(stop);
            // Calls that wait for their clients end as soon as the drain is forced.
            report.forced = self.calls_in_progress();
            lots.drain.mark_forced();
            let left = lots.drain.in_progress();
            report.dropped = left.saturating_sub(report.forced.len());
            lots.close_all();
        }
        report
    }

    /// Handles a command to a server that has drained. Returns the stop that it asks for.
    fn handle_late_command(
        &self,
        command: ServerCommand,
        restarter: Option<&RestarterHandle>,
    ) -> Option<RequestedStop> {
        let stop = match command {
            ServerCommand::Drain => Some(self.drain_request()),
            ServerCommand::DrainWithin(limit) => Some(self.drain_request_within(limit)),
            // A handle may have asked for a stop.
            ServerCommand::Check => self.report.0.stop.take(),
            ServerCommand::StopNow | ServerCommand::TerminateAgain => Some(RequestedStop::now()),
            ServerCommand::Restart => {
                restarter.inspect(|restarter| restarter.request_restart());
                None
            }
            ServerCommand::UserSignal => {
                self.call_user_signal_hook();
                None
            }
            ServerCommand::Replaced | ServerCommand::Adopt => None,
        };
        // The callers of a restart that was passed on wait no longer.
        let restarter = restarter.filter(|_| stop.is_some());
        restarter.inspect(|restarter| restarter.report_stopping());
        stop
    }

    /// This process, if the operator has to tell it from others of the service.
    fn generation(&self) -> Option<Generation> {
        let restart = self.settings.restart.as_ref()?;
        let number = restart.generation();
        let has_others = number > 1 || restart.is_supervised() || self.lots.drain.has_successor();
        has_others.then(|| Generation {
            number,
            pid: std::process::id(),
        })
    }

    fn calls_in_progress(&self) -> Vec<Forced> {
        let now = clock::millis();
        let workers = self.lots.counters.workers.iter().enumerate();
        let forced = workers.filter_map(|(worker, counters)| {
            let (token, began) = counters.call()?;
            self.lots.with_info(token, |info| Forced {
                worker,
                peer: info.peer.clone(),
                listener: info.listener.name.clone(),
                served_for: Duration::from_millis(now.saturating_sub(began)),
                ended: false,
            })
        });
        forced.collect()
    }
}

/// What comes next while a server ends.
enum NextOfFinish {
    Ended(Ended),
    Command(ServerCommand),
    /// All threads of the server have ended.
    ThreadsEnded,
    RestarterEnded,
    TimedOut,
}

/// Waits for the next event until this point in time. While the restarter has to report the result
/// of a restart, or other servers have not stopped, the wait has no limit: the restarter ends then.
fn next_of_finish(
    commands: &Receiver<ServerCommand>,
    ended: &Receiver<Ended>,
    restarter_end: &Receiver<()>,
    until: Deadline,
    restarter: Option<&RestarterHandle>,
) -> NextOfFinish {
    let thread =
        |thread: Result<Ended, _>| thread.map_or(NextOfFinish::ThreadsEnded, NextOfFinish::Ended);
    // `ServerShared` has a sender of commands, so that the channel is open.
    let command = |command: Result<ServerCommand, _>| {
        NextOfFinish::Command(command.unwrap_or(ServerCommand::StopNow))
    };
    let timer = until.instant();
    let timer = timer.map_or(crossbeam_channel::never(), crossbeam_channel::at);
    crossbeam_channel::select_biased! {
        recv(ended) -> next => return thread(next),
        recv(restarter_end) -> _ => return NextOfFinish::RestarterEnded,
        recv(commands) -> next => return command(next),
        recv(timer) -> _ => {}
    }
    if !restarter.is_some_and(RestarterHandle::stays) {
        return NextOfFinish::TimedOut;
    }
    crossbeam_channel::select_biased! {
        recv(ended) -> next => thread(next),
        recv(restarter_end) -> _ => NextOfFinish::RestarterEnded,
        recv(commands) -> next => command(next),
    }
}
