//! The main thread: starts the others, obeys commands until a drain is over, and ends what is left.

use std::io;
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::acceptor::{self, AcceptGate};
use crate::clock::{self, Deadline};
use crate::listener::Listener;
use crate::parking::{self, Lot, Token};
use crate::pool;
use crate::restart::{Host, Upgrader, UpgraderHandle};
use crate::server::builder::Builder;
use crate::server::handle::{ServerShared, belong_to};
use crate::server::no_start;
use crate::server::report::{Forced, Report};
use crate::server::watchdog::Watchdog;
use crate::service::Service;
use crate::signals::Command;
use crate::worker::Workers;

/// How soon a drain tries again to queue parked connections whose message has come, when the queue was full.
const CLEAR_AGAIN: Duration = Duration::from_millis(10);

/// How long a stop waits, once the time is over and sockets are shut down, for handlers to take note.
const GRACE: Duration = Duration::from_millis(500);

/// Everything that a server's main thread needs.
pub(super) struct MainThread<S: Service> {
    pub(super) service: S,
    pub(super) listeners: Vec<Arc<Listener>>,
    /// There until it has a thread, if the server can be restarted.
    pub(super) upgrader: Option<Upgrader>,
    pub(super) idle_grace: Duration,
    /// There until the server stops.
    pub(super) goes_on: Option<Sender<()>>,
    pub(super) settings: Builder,
    pub(super) lot: Arc<Lot<S::Session>>,
    pub(super) gate: Arc<AcceptGate>,
    pub(super) queue: Receiver<Token>,
    pub(super) commands: Receiver<Command>,
    pub(super) server: usize,
}

/// Which thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Acceptor,
    Keeper,
    Worker(usize),
    Upgrader,
}

/// Tells that a thread has ended, however it does.
struct Tell(Sender<Ended>, Ended);

impl Drop for Tell {
    fn drop(&mut self) {
        // The channel has room for every thread, and is closed by the last one.
        let _ = self.0.try_send(self.1);
    }
}

impl<S: Service> MainThread<S> {
    /// The main thread's life. Says through `ready` whether the server serves, and leaves the report in the end.
    pub(super) fn serve(mut self, control: &ServerShared, ready: &Sender<io::Result<()>>) {
        belong_to(self.server);
        let listeners = std::mem::take(&mut self.listeners);
        let upgrader = self.upgrader.take();
        let goes_on = self.goes_on.take();
        let commands = std::mem::replace(&mut self.commands, crossbeam_channel::never());
        let workers = self.settings.workers.unwrap_or(1);
        let (tell, ended) = crossbeam_channel::bounded(workers + 3);
        let jobs = Workers {
            service: &self.service,
            lot: &*self.lot,
            on_start: self.settings.on_start.as_ref(),
            on_exit: self.settings.on_exit.as_ref(),
        };
        let host = ServerHost {
            parts: &self,
            commands: &control.commands,
        };
        thread::scope(|scope| {
            // It is there first: a predecessor may have something to say while the workers are built.
            let started = match upgrader {
                Some(upgrader) => self.start_upgrader(scope, &host, upgrader, tell.clone()),
                None => Ok(()),
            };
            let started = started.and_then(|()| self.start_threads(scope, &jobs, listeners, &tell));
            drop(tell);
            let failed = started.is_err();
            // Whoever started the server waits for this.
            let _ = ready.send(started);
            let stop = if failed {
                StopProgress::at_once()
            } else {
                self.obey(&commands, &ended, control.restart.as_ref())
            };
            drop(goes_on);
            let (report, all_ended) = self.finish(stop, &ended, control.restart.as_ref());
            log::info!("{report}");
            // Nobody is obeyed any more, so that nobody need wait to be heard.
            drop(commands);
            control.outcome.set(report, all_ended);
        });
    }

    fn start_threads<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        jobs: &'scope Workers<'scope, S>,
        listeners: Vec<Arc<Listener>>,
        tell: &Sender<Ended>,
    ) -> io::Result<()> {
        let workers = self.settings.workers.unwrap_or(1);
        let (ready, built) = crossbeam_channel::bounded(workers);
        for index in 0..workers {
            let mut thread = thread::Builder::new().name(self.thread_name(&index.to_string()));
            if let Some(bytes) = self.settings.stack_size {
                thread = thread.stack_size(bytes);
            }
            let (tell, ready) = (tell.clone(), ready.clone());
            thread.spawn_scoped(scope, move || {
                let _tell = Tell(tell, Ended::Worker(index));
                belong_to(self.server);
                pool::work(jobs, index, &self.queue, |result| drop(ready.send(result)));
            })?;
        }
        for _ in 0..workers {
            built.recv().unwrap_or_else(|_| Err(no_start()))?;
        }

        let keeper = tell.clone();
        thread::Builder::new()
            .name(self.thread_name("keeper"))
            .spawn_scoped(scope, move || {
                let _tell = Tell(keeper, Ended::Keeper);
                belong_to(self.server);
                parking::keep(&self.lot);
            })?;
        thread::Builder::new()
            .name(self.thread_name("accept"))
            .spawn_scoped(scope, {
                let tell = tell.clone();
                move || {
                    let _tell = Tell(tell, Ended::Acceptor);
                    belong_to(self.server);
                    let admission = self.settings.admission.clone();
                    if let Err(error) =
                        acceptor::accept(&self.lot, &self.gate, listeners, admission)
                    {
                        log::error!("the acceptor has failed: {error}");
                    }
                }
            })?;
        Ok(())
    }

    fn start_upgrader<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        host: &'scope ServerHost<'scope, S>,
        upgrader: Upgrader,
        tell: Sender<Ended>,
    ) -> io::Result<()> {
        thread::Builder::new()
            .name(self.thread_name("upgrade"))
            .spawn_scoped(scope, move || {
                let _tell = Tell(tell, Ended::Upgrader);
                belong_to(self.server);
                upgrader.run(host);
            })?;
        Ok(())
    }

    /// The main thread's loop: obeys commands until a drain is over, or its time is.
    fn obey(
        &self,
        commands: &Receiver<Command>,
        ended: &Receiver<Ended>,
        restart: Option<&UpgraderHandle>,
    ) -> StopProgress {
        let (lot, gate) = (&self.lot, &self.gate);
        let mut stop: Option<StopProgress> = None;
        let mut accepting = true;
        let mut watchdog = Watchdog::new(lot, gate, self.settings.stuck_after);
        loop {
            let mut next = Deadline::NEVER;
            if let Some(watchdog) = &mut watchdog {
                watchdog.look(stop.is_some());
                next = Deadline::at(Some(watchdog.next()));
            }
            if let Some(stop) = &mut stop {
                stop.finished = lot.drain.ended() - stop.ended_before;
                stop.is_clean = !accepting && lot.drain.live() == 0;
                if stop.is_clean || stop.deadline.passed(Instant::now()) {
                    return *stop;
                }
                // Who leaves lets its clients end by themselves.
                let clears = lot.drain.is_closing() && !stop.is_cleared;
                stop.is_cleared = stop.is_cleared || clears && lot.clear();
                let retry = (clears && !stop.is_cleared).then(|| Instant::now() + CLEAR_AGAIN);
                next = next.earlier(stop.deadline).earlier(Deadline::at(retry));
            }
            let never = crossbeam_channel::never();
            let timer = next.instant().map_or(never, crossbeam_channel::at);
            let command = crossbeam_channel::select! {
                recv(commands) -> command => command.unwrap_or(Command::StopNow),
                recv(ended) -> thread => match thread {
                    Ok(Ended::Acceptor) => {
                        accepting = false;
                        match stop {
                            Some(_) => Command::Look,
                            // A server that accepts nobody is better ended, and started anew.
                            None => Command::StopNow,
                        }
                    }
                    Ok(Ended::Upgrader) => {
                        log::error!("the upgrader has failed: there are no restarts any more");
                        continue;
                    }
                    // No other thread ends by itself.
                    _ => Command::StopNow,
                },
                recv(timer) -> _ => Command::Look,
            };
            let deadline = match command {
                Command::Look => continue,
                Command::Pause => {
                    gate.pause();
                    continue;
                }
                Command::Resume => {
                    gate.resume();
                    continue;
                }
                Command::Hook => {
                    self.call_hook();
                    continue;
                }
                Command::Restart => {
                    match restart {
                        Some(restart) => restart.request_restart(),
                        None => log::warn!("the server was built without restarts"),
                    }
                    continue;
                }
                Command::Leave if stop.is_some() => continue,
                Command::Drain | Command::Leave => {
                    Deadline::after(Instant::now(), self.settings.drain_timeout)
                }
                Command::StopBy(deadline) => deadline,
                Command::StopNow => Deadline::at(Some(Instant::now())),
            };
            let stop = stop.get_or_insert_with(|| {
                log::info!("stopping, {} connections are open", lot.drain.live());
                StopProgress::begin(lot.drain.ended())
            });
            if command == Command::Leave {
                lot.drain.leave(self.idle_grace);
                gate.close();
                lot.shorten_idle();
            } else {
                if let Some(restart) = restart {
                    restart.report_stopping();
                }
                // From here on no worker parks an idle connection, so that `clear` meets them all.
                lot.drain.begin();
                gate.close();
            }
            stop.deadline = stop.deadline.earlier(deadline);
        }
    }

    fn call_hook(&self) {
        if let Some(hook) = &self.settings.on_hook {
            let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(hook));
            if let Err(panic) = called {
                log::error!("the signal hook panicked: {}", pool::message(&*panic));
            }
        }
    }

    /// Ends what is left, and the threads. Also says whether all of them have ended.
    fn finish(
        &self,
        stop: StopProgress,
        ended: &Receiver<Ended>,
        restart: Option<&UpgraderHandle>,
    ) -> (Report, bool) {
        let lot = &self.lot;
        let mut report = Report {
            finished: stop.finished,
            ..Report::default()
        };
        self.gate.close_now();
        if !stop.is_clean {
            // Who left has kept the idle ones until now; they lose nothing.
            lot.drain.begin();
            lot.clear();
            report.finished = lot.drain.ended() - stop.ended_before;
            lot.drain.force();
            let left = lot.drain.live();
            report.forced = self.stragglers();
            report.dropped = left.saturating_sub(report.forced.len());
            lot.force();
        }
        lot.end();
        report.took = stop.since.elapsed();
        if let Some(restart) = restart {
            restart.report_stopped(report.to_string());
        }
        let until = Instant::now() + GRACE;
        let until = stop.deadline.instant().map_or(until, |at| at.max(until));
        let all_ended = loop {
            match ended.recv_deadline(until) {
                Ok(Ended::Worker(index)) => {
                    let mine = report.forced.iter_mut().find(|f| f.worker == index);
                    mine.into_iter().for_each(|forced| forced.ended = true);
                }
                Ok(Ended::Acceptor | Ended::Keeper | Ended::Upgrader) => {}
                Err(RecvTimeoutError::Timeout) => break false,
                Err(RecvTimeoutError::Disconnected) => break true,
            }
        };
        report.took = stop.since.elapsed();
        (report, all_ended)
    }

    /// Who is still served.
    fn stragglers(&self) -> Vec<Forced> {
        let now = clock::millis();
        let workers = self.lot.counters.of_workers().enumerate();
        let forced = workers.filter_map(|(worker, counters)| {
            let (token, since) = counters.serving()?;
            self.lot.with_info(token, |info| Forced {
                worker,
                peer: info.peer.clone(),
                listener: info.listener.name.clone(),
                served_for: Duration::from_millis(now.saturating_sub(since)),
                ended: false,
            })
        });
        forced.collect()
    }

    pub(super) fn thread_name(&self, what: &str) -> String {
        format!("{}-{what}", self.settings.thread_name_prefix)
    }
}

/// A server, as its upgrader sees it.
struct ServerHost<'a, S: Service> {
    parts: &'a MainThread<S>,
    commands: &'a Sender<Command>,
}

impl<S: Service> ServerHost<'_, S> {
    fn command(&self, command: Command) {
        // A server that has ended does not listen any more, and needs not.
        let _ = self.commands.send(command);
    }
}

impl<S: Service> Host for ServerHost<'_, S> {
    fn export(&self) -> Option<Vec<u8>> {
        let service = std::panic::AssertUnwindSafe(&self.parts.service);
        std::panic::catch_unwind(|| service.export()).unwrap_or_else(|panic| {
            log::error!("the export panicked: {}", pool::message(&*panic));
            None
        })
    }

    fn start_accepting(&self) {
        self.parts.gate.open();
    }

    fn pause(&self) -> bool {
        self.parts.gate.pause()
    }

    fn resume(&self) {
        self.parts.gate.resume();
    }

    fn leave(&self, taken: &[u32]) {
        self.parts.gate.leave_to_others(taken);
        self.command(Command::Leave);
    }

    fn drain(&self) {
        self.command(Command::Drain);
    }

    fn stop_now(&self) {
        self.command(Command::StopNow);
    }
}

/// A stop in progress.
#[derive(Clone, Copy)]
struct StopProgress {
    since: Instant,
    deadline: Deadline,
    /// How many connections had ended before, and have ended since.
    ended_before: usize,
    finished: usize,
    /// The connections that wait for a message have been closed, or put on the queue.
    is_cleared: bool,
    /// Nothing is left, and nothing comes.
    is_clean: bool,
}

impl StopProgress {
    fn begin(ended_before: usize) -> Self {
        Self {
            since: Instant::now(),
            deadline: Deadline::NEVER,
            ended_before,
            finished: 0,
            is_cleared: false,
            is_clean: false,
        }
    }

    /// For a server that never served.
    fn at_once() -> Self {
        let mut stop = Self::begin(0);
        stop.deadline = Deadline::at(Some(stop.since));
        stop
    }
}
