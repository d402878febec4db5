//! The server: connects the other modules.

mod app_threads;
mod build_error;
mod builder;
mod descriptor_limit;
mod finish;
mod finish_deadlines;
mod group;
mod handle;
mod main_thread;
mod move_channels;
mod move_threads;
mod report;
mod servers;
mod shared;
mod startup;
mod thread_mark;
mod watchdog;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::acceptor::AcceptGate;
use crate::addr::Addr;
use crate::clock;
use crate::connection::Connection;
use crate::listener::Listener;
use crate::parking::{Lots, LotsOptions, MOST_LOTS};
use crate::service::{Next, Service};
use crate::signals::ServerCommand;
use crate::start_error::StartError;
use crate::stats::{Stats, WorkerState};

use app_threads::AppThreads;
pub use build_error::{BuildError, Setting};
pub use builder::Builder;
pub use descriptor_limit::restore_descriptor_limit;
use group::{prepare, start_all};
pub use handle::Handle;
use main_thread::{MainThread, ReportOnDrop};
use move_channels::MoveChannels;
pub use report::{Forced, Generation, Report, RestartReport};
pub use servers::Servers;
use shared::{ReportCell, ServerShared, StopRequest};
use startup::KeptSignals;

/// A server that is bound and not started yet.
///
/// It is run in one of three ways:
///
/// | | [`run`](Self::run) | [`start`](Self::start) | [`run_scoped`](Self::run_scoped) |
/// |---|---|---|---|
/// | for | a program that is the server | a program that does more, tests | a service that borrows |
/// | returns | the report, when the server has stopped | a [`Handle`], when it serves | what the closure returned, and the report |
/// | signals, by default ([`Builder::signals`]) | handled | left to the program | left to the program |
/// | the handle | [`handle`](Self::handle), before | the result; `handle`, before | given to the closure; `handle`, before |
/// | ends | by a signal, a handle, a successor | by a handle, a successor; when the last handle is dropped | when the closure returns |
/// | raises the limit of descriptors, by default | yes | no | no |
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
pub struct Server<S: Service> {
    main: MainThread<S>,
    handle: Handle,
}

impl Server<fn(&mut Connection) -> io::Result<Next>> {
    /// Settings for a server, of any service.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl<S: Service> Server<S> {
    /// Connects the modules. Starts no thread.
    fn new(service: S, listeners: Vec<Listener>, settings: Builder) -> Result<Self, BuildError> {
        let server_token = match &settings.restart {
            Some(restart) => Some(restart.add_server().map_err(BuildError::Restart)?),
            None => None,
        };
        let server_id = next_server_id();
        let addrs = listeners.iter().map(Listener::addr).cloned();
        let addrs = addrs.collect();
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        let lots = new_lots(&settings, service.handles_expiry()).map_err(BuildError::System)?;
        let gate = Arc::new(AcceptGate::new().map_err(BuildError::System)?);
        let (sender, commands) = crossbeam_channel::bounded(64);
        connect_calls(&lots, &gate, &sender);

        let (runs, stopped) = crossbeam_channel::bounded(0);
        let prefix = settings.thread_name_prefix.clone();
        let stats_lots = Arc::clone(&lots);
        let shared = Arc::new(ServerShared {
            commands: sender,
            stop: StopRequest::default(),
            drain_timeout: settings.drain_timeout,
            gate: Arc::clone(&gate),
            addrs,
            app_threads: AppThreads::new(prefix, Arc::clone(&server_id), stopped),
            server_id,
            stats: Box::new(move || stats(&stats_lots)),
            report: ReportCell::default(),
            move_channels: MoveChannels::default(),
            restarter: settings.restart.as_ref().map(|own| own.handle().clone()),
            is_restartable: AtomicBool::new(false),
            group: OnceLock::new(),
        });
        let main = MainThread {
            service,
            listeners,
            _server_token: server_token,
            idle_grace: Duration::ZERO,
            runs: Some(runs),
            settings,
            #[cfg(feature = "signals")]
            subscription: None,
            lots,
            gate,
            commands,
            report: ReportOnDrop(Arc::clone(&shared)),
        };
        let handle = Handle::new(shared);
        Ok(Self { main, handle })
    }

    /// The addresses that the server listens on, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        self.handle.local_addrs()
    }

    /// Controls the server, before it runs and while it does. The handle may be given to other
    /// threads, and to the service.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// use handover::{Connection, Next, Server};
    ///
    /// let server = Server::builder()
    ///     .listen("127.0.0.1:0")
    ///     .build(|_: &mut Connection| Ok(Next::Close))?;
    /// let handle = server.handle();
    /// let console = thread::spawn(move || {
    ///     println!("{:?}", handle.stats());
    ///     handle.stop(Duration::from_secs(10));
    /// });
    /// println!("{}", server.run()?);
    /// console.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handle(&self) -> Handle {
        self.handle.clone()
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
    pub fn run_scoped<R>(self, body: impl FnOnce(&Handle) -> R) -> Result<(R, Report), StartError> {
        let Self { mut main, handle } = self;
        let startup = prepare(&mut [&mut main], false)?;
        thread::scope(|scope| {
            let (sender, started) = crossbeam_channel::bounded(1);
            thread::Builder::new()
                .name(main.thread_name("main"))
                .spawn_scoped(scope, move || main.run(&sender))?;
            started.recv().unwrap_or_else(|_| Err(start_error()))?;
            let stop = DrainOnDrop(&handle);
            startup.finish()?;
            let result = body(&handle);
            drop(stop);
            Ok((result, handle.join()))
        })
    }
}

/// A number for each server of the process, from 1.
fn next_server_id() -> Arc<AtomicUsize> {
    static SERVERS: AtomicUsize = AtomicUsize::new(1);
    Arc::new(AtomicUsize::new(SERVERS.fetch_add(1, SeqCst)))
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
    /// Runs the server until a signal, a [`handle`](Self::handle) or a successor stops it, see
    /// [`Builder::signals`], and returns the report.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, when the service cannot build a worker's state, or when the
    /// process's signals cannot be handled: another part of the program may have installed a Ctrl-C
    /// handler.
    pub fn run(self) -> Result<Report, StartError> {
        let (handle, _signals) = self.start_in_process(true)?;
        Ok(handle.join())
    }

    /// Starts the server on threads of its own. The caller stops the server by the handle. Signals
    /// are left to the program, unless [`Builder::signals`] is called with true.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or the service cannot build a worker's state; with signals,
    /// also as [`run`](Self::run).
    pub fn start(self) -> Result<Handle, StartError> {
        let (handle, _no_signals) = self.start_in_process(false)?;
        Ok(handle)
    }

    fn start_in_process(self, owns_process: bool) -> io::Result<(Handle, KeptSignals)> {
        let handles = [self.handle];
        let signals = start_all(vec![Box::new(self.main)], &handles, owns_process)?;
        let [handle] = handles;
        Ok((handle, signals))
    }
}

impl<S: Service> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("listeners", &self.main.listeners)
            .field("settings", &self.main.settings)
            .finish_non_exhaustive()
    }
}

fn start_error() -> io::Error {
    io::Error::other("the server's main thread ended before it served")
}

/// Drains a scoped server when its closure returns or panics.
struct DrainOnDrop<'a>(&'a Handle);

impl Drop for DrainOnDrop<'_> {
    fn drop(&mut self) {
        self.0.shared().request_drain();
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
