//! The main thread: starts the other threads, handles commands until a drain is over, and ends the
//! remaining connections and threads.
//!
//! ```text
//! start threads ──► loop: commands, ends of threads, watchdog, drain ──► finish: force, join, report
//! ```
//!
//! A stop has these steps, under one deadline:
//!
//! 1. Accept no more, and mark the drain as closing ([`Drain`](crate::drain::Drain)).
//! 2. Close the idle connections.
//! 3. Wait until no connection is in progress, or the deadline has passed.
//! 4. Force the remaining connections.
//! 5. Close the queues, and wait for the threads. The workers and the restarter have deadlines of
//!    their own: [`FinishDeadlines`](super::finish_deadlines::FinishDeadlines).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::acceptor::{self, AcceptGate};
use crate::addr::Addr;
use crate::clock::Deadline;
use crate::drain::Drain;
use crate::listener::{Listener, ListenerInfo};
use crate::log;
use crate::notify;
use crate::panic;
use crate::parking::{self, HeldConnections, Lots};
use crate::restart::RestarterHandle;
use crate::server::builder::Builder;
use crate::server::group::{Member, StartableMember};
use crate::server::handle::Handle;
use crate::server::move_threads::{MOST_ADOPTERS, MoveParts, MoveThreadKind, MoveThreads};
use crate::server::shared::{RequestedStop, ServerShared};
use crate::server::start_error;
use crate::server::thread_mark::mark_thread;
use crate::server::watchdog::Watchdog;
use crate::service::Service;
use crate::signals::ServerCommand;
#[cfg(feature = "signals")]
use crate::signals::Subscription;
use crate::stats::Counters;
use crate::worker::Workers;

/// What a server's main thread needs.
pub(super) struct MainThread<S: Service> {
    pub(super) service: S,
    pub(super) listeners: Vec<Arc<Listener>>,
    /// Counts this server as built with its [`Restart`](crate::Restart).
    pub(super) _server_token: Option<Arc<()>>,
    pub(super) idle_grace: Duration,
    /// Dropped when the server stops.
    pub(super) runs: Option<Sender<()>>,
    pub(super) settings: Builder,
    /// Handles the process's signals until the server has stopped, unless
    /// [`KeptSignals`](super::startup::KeptSignals) do.
    #[cfg(feature = "signals")]
    pub(super) subscription: Option<Subscription>,
    pub(super) lots: Arc<Lots<S::Session>>,
    pub(super) gate: Arc<AcceptGate>,
    pub(super) commands: Receiver<ServerCommand>,
    /// Dropped last.
    pub(super) report: ReportOnDrop,
}

/// Leaves an empty report if there is none in the end: the server was dropped before it started, or
/// its main thread has panicked. So no caller of [`Handle::join`](super::Handle::join) waits for
/// ever.
pub(super) struct ReportOnDrop(pub(super) Arc<ServerShared>);

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        self.0.stop.mark_stopping();
        let now = Deadline::at(Some(Instant::now()));
        self.0.report_stopped("not started".to_owned(), now);
        // Nothing waits here: the threads that there may be have been joined.
        self.0.app_threads.join(Instant::now());
        self.0.report.set_if_missing();
    }
}

/// A thread of the server that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Acceptor,
    Keeper,
    Worker(usize),
    Mover,
    Adopter,
}

/// Reports the end of its thread when it is dropped, also after a panic.
struct EndGuard(Sender<Ended>, Ended);

impl Drop for EndGuard {
    fn drop(&mut self) {
        // The channel has room for every thread, and is closed by the last one.
        let _ = self.0.try_send(self.1);
    }
}

impl<S: Service> MainThread<S> {
    /// Runs the server. `started` receives one message: whether the server could be started. The
    /// report is left in `shared`.
    pub(super) fn run(mut self, started: &Sender<io::Result<()>>) {
        let shared = Arc::clone(&self.report.0);
        mark_thread(self.server_id());
        let listeners = std::mem::take(&mut self.listeners);
        let runs = self.runs.take();
        #[cfg(feature = "signals")]
        let subscription = self.subscription.take();
        let commands = std::mem::replace(&mut self.commands, crossbeam_channel::never());
        let threads = self.settings.workers + self.lots.len() + 2;
        let (ends, ended) = crossbeam_channel::bounded(threads + MOST_ADOPTERS);
        let listener_infos = listeners.iter().map(|listener| Arc::clone(&listener.info));
        let listener_infos: Vec<_> = listener_infos.collect();
        let workers = Workers {
            service: &self.service,
            lots: &self.lots,
            on_start: self.settings.on_start.as_ref(),
            on_exit: self.settings.on_exit.as_ref(),
            has_warned: AtomicBool::new(false),
        };
        let restarter = shared.restarter.as_ref();
        let own = &self;
        thread::scope(|scope| {
            let result = self.start_threads(scope, &workers, listeners, &ends);
            let result = result.and_then(|()| shared.app_threads.start());
            let failed = result.is_err();
            // `Startup` waits for this message.
            let _ = started.send(result);
            let parts = self.move_parts(&listener_infos);
            let spawn = move |kind, run: Box<dyn FnOnce() + Send>| {
                let (name, ended) = match kind {
                    MoveThreadKind::Mover => ("move", Ended::Mover),
                    MoveThreadKind::Adopter => ("adopt", Ended::Adopter),
                };
                own.spawn(scope, name, ended, &ends, run)
            };
            let mut moves = MoveThreads::new(parts, Box::new(spawn));
            let stop = match failed {
                true => {
                    shared.stop.mark_stopping();
                    StopProgress::failed_start()
                }
                false => self.handle_commands(&commands, &ended, restarter, &mut moves),
            };
            // Before the connections that are left are shut down.
            moves.end();
            drop(runs);
            let (report, all_ended) = self.finish(stop, &commands, &ended);
            // The caller that waits for the stop gets the report. Not every program shows it.
            match report.is_clean() {
                true => log::debug!("{report}"),
                false => log::warn!("{report}"),
            }
            #[cfg(feature = "signals")]
            drop(subscription);
            // A handle that sends a command from now on must not block.
            drop(commands);
            shared.report.set(report, all_ended);
        });
        // The drop of the service and of the hooks is the application's code.
        log::drop_contained("the service", self);
    }

    fn move_parts<'env>(&'env self, listeners: &'env [Arc<ListenerInfo>]) -> MoveParts<'env, S> {
        MoveParts {
            service: &self.service,
            lots: &self.lots,
            idle_grace: self.idle_grace,
            admission: &self.settings.admission,
            gate: &self.gate,
            channels: &self.report.0.move_channels,
            listeners,
            position: self.report.0.group.get().map_or(0, |group| group.index),
            restarter: self.report.0.restarter.as_ref(),
        }
    }

    /// Starts a thread of this server. Its end is sent to `ends`.
    fn spawn<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        name: &str,
        ended: Ended,
        ends: &Sender<Ended>,
        run: impl FnOnce() + Send + 'scope,
    ) -> io::Result<()> {
        let mut thread = thread::Builder::new().name(self.thread_name(name));
        if let (Ended::Worker(_), Some(bytes)) = (ended, self.settings.stack_size) {
            thread = thread.stack_size(bytes);
        }
        let guard = EndGuard(ends.clone(), ended);
        let server_id = self.server_id();
        let spawned = thread.spawn_scoped(scope, move || {
            let _guard = guard;
            mark_thread(server_id);
            run();
        });
        let failed = |error: io::Error| {
            let text = match (ended, self.settings.stack_size) {
                (Ended::Worker(index), Some(bytes)) => {
                    format!(
                        "cannot start worker {index} with a stack_size of {bytes} bytes: {error}"
                    )
                }
                _ => format!(
                    "cannot start the thread {}: {error}",
                    self.thread_name(name)
                ),
            };
            io::Error::new(error.kind(), text)
        };
        spawned.map(drop).map_err(failed)
    }

    fn start_threads<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        workers: &'env Workers<'env, S>,
        listeners: Vec<Arc<Listener>>,
        ends: &Sender<Ended>,
    ) -> io::Result<()> {
        let count = self.settings.workers;
        let (built, results) = crossbeam_channel::bounded(count);
        for index in 0..count {
            let built = built.clone();
            self.spawn(
                scope,
                &index.to_string(),
                Ended::Worker(index),
                ends,
                move || {
                    workers.run(index, |result| drop(built.send(result)));
                },
            )?;
        }
        for _ in 0..count {
            results.recv().unwrap_or_else(|_| Err(start_error()))?;
        }
        for (index, lot) in self.lots.iter().enumerate() {
            let name = match index {
                0 => "keeper".to_owned(),
                _ => format!("keeper-{index}"),
            };
            self.spawn(scope, &name, Ended::Keeper, ends, || {
                parking::run_keeper(lot)
            })?;
        }
        self.spawn(scope, "accept", Ended::Acceptor, ends, || {
            let admission = self.settings.admission.clone();
            if let Err(error) = acceptor::run_acceptor(&self.lots, &self.gate, listeners, admission)
            {
                log::error!("the acceptor has failed: {error}");
            }
        })
    }

    /// The main thread's loop: handles commands until a drain is over, or its deadline has passed.
    fn handle_commands(
        &self,
        commands: &Receiver<ServerCommand>,
        ended: &Receiver<Ended>,
        restarter: Option<&RestarterHandle>,
        moves: &mut MoveThreads<'_, '_, S>,
    ) -> StopProgress {
        let mut stop: Option<StopProgress> = None;
        let mut accepting = true;
        let mut is_replaced = false;
        let group = self.report.0.group.get();
        let mut watchdog = Watchdog::new(&self.lots, &self.gate, self.settings.stuck_after, group);
        let mut restarter_end = restarter_end(restarter);
        loop {
            let mut wake_at = Deadline::NEVER;
            if let Some(watchdog) = &mut watchdog {
                watchdog.check(stop.is_some());
                notify::retry();
                wake_at = Deadline::at(Some(watchdog.next_check())).earlier(notify::retry_at());
            }
            if let Some(requested) = self.report.0.stop.take() {
                self.stop_by(requested, &mut stop, restarter);
                moves.wake();
            }
            if let Some(stop) = &mut stop {
                self.update_progress(stop, accepting || moves.is_adopting());
                if stop.is_over() {
                    return *stop;
                }
                wake_at = wake_at.earlier(stop.deadline);
            }
            let timer = wake_at.instant();
            let timer = timer.map_or(crossbeam_channel::never(), crossbeam_channel::at);
            let command = crossbeam_channel::select! {
                recv(commands) -> command => command.unwrap_or(ServerCommand::StopNow),
                recv(ended) -> thread => match thread {
                    Ok(Ended::Acceptor) => {
                        accepting = false;
                        match stop {
                            Some(_) => ServerCommand::Check,
                            // A server that accepts no connection has to be started again.
                            None => ServerCommand::StopNow,
                        }
                    }
                    Ok(Ended::Mover) => {
                        moves.note_mover_end();
                        ServerCommand::Check
                    }
                    Ok(Ended::Adopter) => ServerCommand::Check,
                    // No other thread ends before the queues are closed.
                    _ => ServerCommand::StopNow,
                },
                recv(restarter_end) -> _ => {
                    log::error!("the restart thread has failed: this server can no longer be restarted");
                    restarter_end = crossbeam_channel::never();
                    ServerCommand::Check
                }
                recv(timer) -> _ => ServerCommand::Check,
            };
            match command {
                ServerCommand::Check => {}
                ServerCommand::UserSignal => self.call_user_signal_hook(),
                ServerCommand::Restart => match restarter {
                    Some(restarter) => restarter.request_restart(),
                    None => log::warn!("the server was built without Builder::restart"),
                },
                ServerCommand::Replaced => {
                    is_replaced = true;
                    moves.pass_channels_on();
                    if stop.is_none() {
                        stop = Some(self.begin_stop(self.drain_deadline()));
                        self.drain_after_replacement(moves);
                    } else {
                        // The connections stay: the stop closes them.
                        drop(self.report.0.move_channels.take_outgoing());
                        if self.lots.drain.pause.is_closed() {
                            self.lots.drain.mark_replaced(self.idle_grace);
                        }
                    }
                    if self.lots.drain.pause.is_closed() {
                        self.lots.end_held();
                    }
                    // The gate is closed, and the successor serves the clients that wait.
                    self.gate.end_handover();
                }
                ServerCommand::Adopt => moves.start_adopters(),
                // systemd sends SIGTERM to all processes of a service. When the main process has
                // ended, systemd sends SIGTERM again to the processes that are left. These still
                // finish their requests.
                ServerCommand::TerminateAgain if is_replaced => {
                    self.stop_by(self.drain_request(), &mut stop, restarter);
                }
                ServerCommand::Drain => self.stop_by(self.drain_request(), &mut stop, restarter),
                ServerCommand::DrainWithin(limit) => {
                    self.stop_by(self.drain_request_within(limit), &mut stop, restarter);
                }
                ServerCommand::StopNow | ServerCommand::TerminateAgain => {
                    self.stop_by(RequestedStop::now(), &mut stop, restarter);
                }
            }
            if stop.is_some() {
                moves.wake();
            }
        }
    }

    fn drain_deadline(&self) -> Deadline {
        Deadline::after(Instant::now(), self.settings.drain_timeout)
    }

    pub(super) fn drain_request(&self) -> RequestedStop {
        RequestedStop::by(self.drain_deadline())
    }

    pub(super) fn drain_request_within(&self, limit: Duration) -> RequestedStop {
        let limit = Deadline::after(Instant::now(), limit);
        RequestedStop::by(self.drain_deadline().earlier(limit))
    }

    fn begin_stop(&self, deadline: Deadline) -> StopProgress {
        let open = match self.lots.drain.open_connections() {
            0 => "no connection is open".to_owned(),
            1 => "1 connection is open".to_owned(),
            open => format!("{open} connections are open"),
        };
        match self.report.0.has_others() {
            true => {
                let addrs = self.report.0.addrs.iter().map(Addr::to_string);
                log::info!("{}: stopping, {open}", addrs.collect::<Vec<_>>().join(", "));
            }
            false => log::info!("stopping, {open}"),
        }
        self.report.0.stop.mark_stopping();
        #[cfg(feature = "windows-service")]
        crate::service_manager::report_stopping();
        if let Some(hook) = &self.settings.on_stop {
            self.report
                .0
                .app_threads
                .run_hook("on_stop", Arc::clone(hook));
        }
        StopProgress::begin(self.lots.drain.closed_connections(), deadline)
    }

    /// Begins a stop, or gives the one in progress an earlier deadline.
    fn stop_by(
        &self,
        requested: RequestedStop,
        stop: &mut Option<StopProgress>,
        restarter: Option<&RestarterHandle>,
    ) {
        if stop.is_none() {
            self.report.0.drain_others();
        }
        let stop = stop.get_or_insert_with(|| self.begin_stop(requested.deadline));
        stop.deadline = stop.deadline.earlier(requested.deadline);
        stop.is_immediate |= requested.is_immediate;
        if let Some(restarter) = restarter {
            restarter.report_stopping();
        }
        // No worker parks an idle connection from here on, so that `close_idle` finds all of them.
        self.lots.drain.mark_closing();
        self.gate.close();
        if !std::mem::replace(&mut stop.idle_closed, true) {
            self.lots.close_idle();
        }
    }

    /// A successor serves: stops accepting, and moves the open connections to the successor, or lets
    /// idle ones end within the grace.
    fn drain_after_replacement(&self, moves: &mut MoveThreads<'_, '_, S>) {
        let channel = self.report.0.move_channels.take_outgoing();
        let failed = |error: &io::Error| log::error!("open connections stay: {error}");
        let started = channel.map(|channel| moves.start_mover(channel).inspect_err(failed));
        self.gate.close();
        if !matches!(started, Some(Ok(()))) {
            self.lots.drain.mark_replaced(self.idle_grace);
            self.lots.shorten_idle();
        }
    }

    /// Updates the progress of a stop by the counts of the drain. `accepting`: connections may still
    /// come.
    fn update_progress(&self, stop: &mut StopProgress, accepting: bool) {
        stop.finished = self.finished_since(stop);
        stop.is_clean = !accepting && self.lots.drain.in_progress() == 0;
    }

    /// How many connections have finished in this process since a stop began.
    pub(super) fn finished_since(&self, stop: &StopProgress) -> usize {
        let finished = self.lots.drain.finished_connections() - stop.closed_before;
        finished.saturating_sub(self.lots.counters.moved.load(Relaxed) as usize)
    }

    pub(super) fn call_user_signal_hook(&self) {
        if let Some(hook) = &self.settings.on_user_signal {
            if let Err(why) = panic::contain(hook) {
                log::error!("the signal hook panicked: {why}");
            }
        }
    }

    fn server_id(&self) -> usize {
        self.report.0.server_id.load(SeqCst)
    }

    pub(super) fn thread_name(&self, what: &str) -> String {
        format!("{}-{what}", self.settings.thread_name_prefix)
    }
}

/// Closed when the restarter has ended; never without one.
pub(super) fn restarter_end(restarter: Option<&RestarterHandle>) -> Receiver<()> {
    restarter.map_or_else(crossbeam_channel::never, |own| own.ended().clone())
}

impl<S: Service> Member for MainThread<S> {
    fn shared(&self) -> &Arc<ServerShared> {
        &self.report.0
    }

    fn settings(&self) -> &Builder {
        &self.settings
    }

    fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners
    }

    fn drain(&self) -> &Arc<Drain> {
        &self.lots.drain
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.lots.counters
    }

    fn packs_sessions(&self) -> bool {
        self.service.packs_sessions()
    }

    fn held_connections(&self) -> Weak<dyn HeldConnections> {
        Arc::downgrade(&self.lots) as _
    }

    fn set_idle_grace(&mut self, grace: Duration) {
        self.idle_grace = grace;
    }

    #[cfg(feature = "signals")]
    fn set_subscription(&mut self, subscription: Subscription) {
        self.subscription = Some(subscription);
    }
}

impl<S: Service + 'static> StartableMember for MainThread<S> {
    fn as_member(&mut self) -> &mut dyn Member {
        self
    }

    fn start(self: Box<Self>, handle: &Handle) -> io::Result<()> {
        let (sender, started) = crossbeam_channel::bounded(1);
        let thread = thread::Builder::new()
            .name(self.thread_name("main"))
            .spawn(move || self.run(&sender))?;
        handle.set_thread(thread);
        started.recv().unwrap_or_else(|_| Err(start_error()))
    }
}

/// A stop in progress.
#[derive(Clone, Copy)]
pub(super) struct StopProgress {
    pub(super) since: Instant,
    pub(super) deadline: Deadline,
    /// How many connections had finished before the stop, and how many have finished since then.
    pub(super) closed_before: usize,
    pub(super) finished: usize,
    /// The connections that waited for a message are closed, or on the queue.
    pub(super) idle_closed: bool,
    /// No connection is in progress, and none can be accepted.
    pub(super) is_clean: bool,
    /// The stop is to wait for nothing.
    pub(super) is_immediate: bool,
}

impl StopProgress {
    fn begin(closed_before: usize, deadline: Deadline) -> Self {
        Self {
            since: Instant::now(),
            deadline,
            closed_before,
            finished: 0,
            idle_closed: false,
            is_clean: false,
            is_immediate: false,
        }
    }

    /// The stop of a server that could not be started.
    fn failed_start() -> Self {
        Self::begin(0, Deadline::at(Some(Instant::now())))
    }

    /// Whether the drain is over, or its deadline has passed.
    fn is_over(&self) -> bool {
        self.is_clean || self.deadline.has_passed(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::net::TcpStream;

    use crate::connection::Connection;
    use crate::server::Server;
    use crate::service::Next;

    use super::*;

    /// Of the drain time-out and the time that the system leaves, the shorter one counts.
    #[test]
    fn a_drain_ends_before_the_system_ends_the_process() {
        const AGES: Duration = Duration::from_secs(3600);
        let moment = Duration::from_millis(50);
        for (drain_timeout, left) in [(AGES, moment), (moment, AGES), (Duration::MAX, moment)] {
            let (came, coming) = crossbeam_channel::bounded(1);
            let server = Server::builder()
                .listen("127.0.0.1:0")
                .workers(1)
                .drain_timeout(drain_timeout)
                .read_timeout(AGES)
                .build(move |conn: &mut Connection| {
                    conn.consume(1);
                    let _ = came.send(());
                    // Until the server cuts the connection off.
                    conn.fill_buf()?;
                    Ok(Next::Close)
                });
            let handle = server.unwrap().start().unwrap();
            let addr = handle.local_addrs()[0].as_ip().unwrap();
            let mut client = TcpStream::connect(addr).unwrap();
            client.write_all(b"x").unwrap();
            coming.recv_timeout(Duration::from_secs(60)).unwrap();
            let commands = &handle.shared().commands;
            commands.send(ServerCommand::DrainWithin(left)).unwrap();
            let report = handle.join();
            assert_eq!(report.forced.len(), 1, "{report}");
            assert!(report.took >= moment, "{report}");
        }
    }
}
