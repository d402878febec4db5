//! The server: connects the other modules.

mod builder;
mod descriptor_limit;
mod finish_deadlines;
mod handle;
mod main_thread;
mod periodic;
mod report;
mod watchdog;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::acceptor::AcceptGate;
use crate::addr::Addr;
use crate::clock;
use crate::listener::Listener;
use crate::panic;
use crate::parking::{Lots, LotsOptions, MOST_LOTS};
use crate::restart::{ReadyWhen, RecordedSignals, Restarter, RestarterHandle};
use crate::service::Service;
use crate::signals::ServerCommand;
use crate::stats::{Stats, WorkerState};

pub use builder::{BuildError, Builder, Setting};
use descriptor_limit::prepare_descriptor_limit;
pub use descriptor_limit::restore_descriptor_limit;
pub use handle::Handle;
use handle::{ReportCell, ServerShared};
use main_thread::MainThread;
use periodic::{PeriodicCall, PeriodicThreads};
pub use report::{Forced, Generation, Report, RestartReport};

/// A server that is bound and not started yet.
///
/// # Examples
///
/// ```
/// use std::io::{self, BufRead, Write};
/// use std::time::Duration;
///
/// use handover::{Connection, Next, Server};
///
/// fn echo(conn: &mut Connection) -> io::Result<Next> {
///     let bytes = conn.buffer().to_vec();
///     conn.write_all(&bytes)?;
///     conn.consume(bytes.len());
///     Ok(Next::Park)
/// }
///
/// let handle = Server::builder().listen("127.0.0.1:0").build(echo)?.start()?;
/// println!("listening on {}", handle.local_addrs()[0]);
/// handle.stop(Duration::from_secs(10));
/// println!("{}", handle.join());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server<S> {
    service: S,
    listeners: Vec<Listener>,
    settings: Builder,
    /// The periodic calls, which begin when the server has started.
    periodic: Vec<PeriodicCall>,
}

impl Server<()> {
    /// Settings for a server.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl<S: Service> Server<S> {
    /// The addresses that the server listens on, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        let addrs = self.listeners.iter().map(Listener::addr);
        addrs.cloned().collect()
    }

    /// Runs the server as long as the closure runs, then drains it. The service may borrow from the
    /// caller.
    ///
    /// Threads that borrow cannot be left behind. So this returns only when every call of the
    /// service has ended, also the calls that the deadline could not end.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or the service cannot build a worker's state. The closure
    /// is not called then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    ///
    /// use handover::{Connection, Next, Server};
    ///
    /// let served = AtomicUsize::new(0);
    /// let server = Server::builder().listen("127.0.0.1:0").build(|_: &mut Connection| {
    ///     served.fetch_add(1, Relaxed);
    ///     Ok(Next::Close)
    /// })?;
    /// let (addrs, report) = server.run_scoped(|handle| handle.local_addrs())?;
    /// assert!(report.is_clean());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run_scoped<R>(self, body: impl FnOnce(&Handle) -> R) -> io::Result<(R, Report)> {
        let (main, shared, mut startup) = self.prepare(false)?;
        startup.release_signals();
        let drain_timeout = main.settings.drain_timeout;
        thread::scope(|scope| {
            let (sender, started) = crossbeam_channel::bounded(1);
            let for_main = Arc::clone(&shared);
            thread::Builder::new()
                .name(main.thread_name("main"))
                .spawn_scoped(scope, move || main.run(&for_main, &sender))?;
            started.recv().unwrap_or_else(|_| Err(start_error()))?;
            let handle = Handle::new(shared, None);
            let stop = StopOnDrop(&handle, drain_timeout);
            startup.finish()?;
            let result = body(&handle);
            drop(stop);
            Ok((result, handle.join()))
        })
    }

    /// As [`Handle::every`], for a server that has not started: makes the calls from its start on,
    /// also under [`run`](Self::run), which gives no handle.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the interval is zero. A thread that cannot be started is an error of the
    /// server's start.
    pub fn every(
        &mut self,
        interval: Duration,
        call: impl FnMut() + Send + 'static,
    ) -> io::Result<()> {
        self.periodic.push(PeriodicCall::new(interval, call)?);
        Ok(())
    }

    /// Connects the modules. Starts no thread. `owns_process`: the process exists for this server.
    fn prepare(
        mut self,
        owns_process: bool,
    ) -> io::Result<(MainThread<S>, Arc<ServerShared>, Startup)> {
        static SERVERS: AtomicUsize = AtomicUsize::new(1);
        let raises_limit = self
            .settings
            .raises_descriptor_limit
            .unwrap_or(owns_process);
        prepare_descriptor_limit(raises_limit, self.settings.admission.max_connections);
        let server_id = SERVERS.fetch_add(1, SeqCst);
        let restart = self.settings.restart.take();
        let idle_grace = restart
            .as_ref()
            .map(|restart| restart.idle_grace)
            .unwrap_or_default();
        let addrs = self.local_addrs();
        let listeners: Vec<_> = self.listeners.into_iter().map(Arc::new).collect();
        let lots = new_lots(&self.settings, self.service.handles_expiry())?;
        let gate = Arc::new(AcceptGate::new()?);
        let (sender, commands) = crossbeam_channel::bounded(64);
        connect_calls(&lots, &gate, &sender);

        let (runs, stopped) = crossbeam_channel::bounded(0);
        let periodic = PeriodicThreads::new(stopped.clone());
        let mut startup = Startup {
            stopped,
            ready_thread: format!("{}-ready", self.settings.thread_name_prefix),
            gate: Arc::clone(&gate),
            restarter: None,
            ready_when: None,
            recorded_signals: None,
            handles_signals: false,
            is_supervised: restart
                .as_ref()
                .is_some_and(|restart| restart.is_supervised()),
            is_stopped: false,
        };
        let mut restarter = None;
        if let Some(mut restart) = restart {
            startup.ready_when = restart.ready_when.take();
            startup.recorded_signals = restart.recorded_signals.take();
            let listeners = listeners.iter().map(Arc::downgrade).collect();
            let drain_timeout = self.settings.drain_timeout;
            let (thread, handle) = Restarter::new(restart, listeners, drain_timeout)?;
            restarter = Some(thread);
            startup.restarter = Some(handle);
        }
        let stats_lots = Arc::clone(&lots);
        let shared = Arc::new(ServerShared {
            commands: sender,
            addrs,
            server_id,
            thread_name_prefix: self.settings.thread_name_prefix.clone(),
            periodic,
            stats: Box::new(move || stats(&stats_lots)),
            report: ReportCell::default(),
            restarter: startup.restarter.clone(),
        });
        let main = MainThread {
            service: self.service,
            listeners,
            restarter,
            idle_grace,
            runs: Some(runs),
            settings: self.settings,
            periodic: self.periodic.into(),
            lots,
            gate,
            commands,
            server_id,
        };
        Ok((main, shared, startup))
    }
}

/// The memory of the queue is allocated when the server starts. Further connections wait in the
/// poller, in the same order.
const MOST_QUEUED: usize = 1 << 20;

fn new_lots<T: Send + 'static>(
    settings: &Builder,
    handles_expiry: bool,
) -> io::Result<Arc<Lots<T>>> {
    Lots::new(LotsOptions {
        lots: settings
            .worker_groups
            .clamp(1, settings.workers.min(MOST_LOTS)),
        workers: settings.workers,
        cores: thread::available_parallelism().map_or(1, usize::from),
        queue_limit: settings.queue.min(MOST_QUEUED),
        queue_timeout: settings.queue_timeout,
        limits: settings.limits.clone(),
        refusal: settings.admission.overload.refusal().to_vec(),
        handles_expiry,
    })
}

/// Connects the drain with the main thread, and the lots with the acceptor.
fn connect_calls<T>(lots: &Lots<T>, gate: &Arc<AcceptGate>, commands: &Sender<ServerCommand>) {
    let commands = commands.clone();
    lots.drain.on_empty(move || {
        // If the channel is full, the main thread checks anyway.
        let _ = commands.try_send(ServerCommand::Check);
    });
    let gate = Arc::clone(gate);
    lots.room.on_room(move || gate.wake());
}

impl<S: Service + 'static> Server<S> {
    /// Runs the server until a signal stops it, see [`Builder::signals`], and returns the report.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, when the service cannot build a worker's state, or when the
    /// process's signals cannot be handled: another part of the program may have installed a Ctrl-C
    /// handler.
    pub fn run(self) -> io::Result<Report> {
        let (main, shared, mut startup) = self.prepare(true)?;
        startup.handles_signals = main.settings.signals;
        // Subscribed before the server serves, so that no signal to a serving process is missed.
        #[cfg(feature = "signals")]
        let _subscription = match main.settings.signals {
            true => {
                let (commands, can_restart) = (shared.commands.clone(), shared.restarter.is_some());
                let is_supervised = startup.is_supervised;
                Some(crate::signals::subscribe(
                    commands,
                    can_restart,
                    is_supervised,
                )?)
            }
            false => None,
        };
        Ok(start_main_thread(main, shared, startup)?.join())
    }

    /// Starts the server on threads of its own, and handles no signals: the caller stops the server
    /// by the handle.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or the service cannot build a worker's state.
    pub fn start(self) -> io::Result<Handle> {
        let (main, shared, startup) = self.prepare(false)?;
        start_main_thread(main, shared, startup)
    }
}

impl<S> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("listeners", &self.listeners)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The last steps of a start, once all threads run: signals are handled, `ready_when` is called,
/// and the acceptor begins.
struct Startup {
    /// Disconnected when the server has stopped.
    stopped: Receiver<()>,
    ready_thread: String,
    gate: Arc<AcceptGate>,
    restarter: Option<RestarterHandle>,
    ready_when: Option<ReadyWhen>,
    recorded_signals: Option<RecordedSignals>,
    handles_signals: bool,
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    is_supervised: bool,
    /// A signal that stops the server has arrived already.
    is_stopped: bool,
}

impl Startup {
    /// Has the signals handled that were recorded until there are handlers for them.
    fn release_signals(&mut self) {
        if let Some(mut recorded) = self.recorded_signals.take() {
            self.is_stopped = recorded.release() && self.handles_signals;
        }
    }

    fn finish(self) -> io::Result<()> {
        if self.is_stopped {
            return Ok(());
        }
        if let Some(ready_when) = self.ready_when {
            let (done, ready) = crossbeam_channel::bounded(1);
            // A thread of its own, since a stop does not wait for it.
            thread::Builder::new()
                .name(self.ready_thread)
                .spawn(move || drop(done.send(panic::contain(ready_when))))?;
            crossbeam_channel::select! {
                recv(ready) -> result => {
                    let result = result.unwrap_or_else(|_| Err("its thread has ended".to_owned()));
                    let panicked = |why| io::Error::other(format!("ready_when panicked: {why}"));
                    result.map_err(panicked)?.map_err(io::Error::other)?;
                }
                recv(self.stopped) -> _ => return Ok(()),
            }
        }
        match self.restarter {
            Some(restarter) => restarter.announce_ready().map_err(io::Error::other),
            None => {
                self.gate.start();
                Ok(())
            }
        }
    }
}

/// Starts the main thread, and waits until the server serves.
fn start_main_thread<S: Service + 'static>(
    main: MainThread<S>,
    shared: Arc<ServerShared>,
    mut startup: Startup,
) -> io::Result<Handle> {
    startup.release_signals();
    let (sender, started) = crossbeam_channel::bounded(1);
    let for_main = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name(main.thread_name("main"))
        .spawn(move || main.run(&for_main, &sender))?;
    started.recv().unwrap_or_else(|_| Err(start_error()))?;
    let handle = Handle::new(shared, Some(thread));
    startup.finish()?;
    Ok(handle)
}

fn start_error() -> io::Error {
    io::Error::other("the server's main thread ended before it served")
}

/// Stops a scoped server when its closure returns or panics.
struct StopOnDrop<'a>(&'a Handle, Duration);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop(self.1);
    }
}

fn stats<T>(lots: &Lots<T>) -> Stats {
    let now = clock::millis();
    let workers = lots.counters.workers.iter().map(|worker| {
        if let Some(since) = worker.failing_since() {
            let failing_for = Duration::from_millis(now.saturating_sub(since));
            return WorkerState::Failing { failing_for };
        }
        let serving = worker.call().and_then(|(token, began)| {
            let peer = lots.with_info(token, |info| info.peer.clone())?;
            let served_for = Duration::from_millis(now.saturating_sub(began));
            Some(WorkerState::Serving { peer, served_for })
        });
        serving.unwrap_or(WorkerState::Idle)
    });
    let workers: Vec<_> = workers.collect();
    let is_active = |worker: &&WorkerState| matches!(worker, WorkerState::Serving { .. });
    let active = workers.iter().filter(is_active).count() as u64;
    let live = lots.drain.open_connections() as u64;
    let queued = lots.queue_len() as u64;
    Stats {
        live,
        active,
        queued,
        parked: live.saturating_sub(active + queued),
        workers,
        ..lots.counters.snapshot()
    }
}
