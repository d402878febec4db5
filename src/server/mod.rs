//! The server: the only place where the parts are put together.

mod builder;
mod handle;
mod main_thread;
mod report;
mod watchdog;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::acceptor::AcceptGate;
use crate::addr::Addr;
use crate::clock;
use crate::listener::Listener;
use crate::parking::{Lot, LotOptions};
use crate::restart::{BlockedSignals, ReadyWhen, Restart, Upgrader, UpgraderHandle};
use crate::service::Service;
use crate::signals::Command;
use crate::stats::{Counters, Stats, WorkerState};

pub use builder::{BuildError, Builder};
pub use handle::Handle;
use handle::{ReportCell, ServerShared};
use main_thread::MainThread;
pub use report::{Forced, Generation, Report, RestartReport};

/// A server that is bound, and waits to be started.
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
}

impl Server<()> {
    /// Settings for a server.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl<S: Service> Server<S> {
    /// Where it listens, in the order of the builder, with real ports.
    pub fn local_addrs(&self) -> Vec<Addr> {
        let addrs = self.listeners.iter().map(Listener::local_addr);
        addrs.cloned().collect()
    }

    /// Runs the server for as long as the closure does, then drains it. The service may borrow from the caller.
    ///
    /// Since threads that borrow cannot be left behind, this returns only when every call of the service has ended,
    /// also those that a deadline could not end.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or the service cannot build a worker's state. The closure is not called then.
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
        let (parts, control, mut startup) = self.prepare()?;
        startup.release_signals();
        let drain_timeout = parts.settings.drain_timeout;
        thread::scope(|scope| {
            let (ready, started) = crossbeam_channel::bounded(1);
            let shared = Arc::clone(&control);
            thread::Builder::new()
                .name(parts.thread_name("main"))
                .spawn_scoped(scope, move || parts.serve(&shared, &ready))?;
            started.recv().unwrap_or_else(|_| Err(no_start()))?;
            let handle = Handle::new(control, None);
            let stop = StopOnDrop(&handle, drain_timeout);
            startup.open()?;
            let result = body(&handle);
            drop(stop);
            Ok((result, handle.join()))
        })
    }

    /// Puts the parts together; nothing runs yet.
    fn prepare(self) -> io::Result<(MainThread<S>, Arc<ServerShared>, Startup)> {
        static SERVERS: AtomicUsize = AtomicUsize::new(1);
        let addrs = self.local_addrs();
        let listeners: Vec<_> = self.listeners.into_iter().map(Arc::new).collect();
        let mut settings = self.settings;
        let idle_grace = settings.restart.as_ref().map(Restart::grace);
        let workers = settings.workers.unwrap_or(1);
        let (lot, queue) = Lot::new(LotOptions {
            workers,
            queue_limit: settings.queue,
            queue_timeout: settings.queue_timeout,
            limits: settings.limits.clone(),
            refusal: settings.admission.overload.refusal().to_vec(),
            drain: Arc::default(),
            counters: Arc::new(Counters::new(workers)),
        })?;
        let lot = Arc::new(lot);
        let gate = Arc::new(AcceptGate::new()?);
        let (sender, commands) = crossbeam_channel::bounded(64);

        let look = sender.clone();
        lot.drain.on_empty(move || {
            // If the channel is full, the main thread looks around anyway.
            let _ = look.try_send(Command::Look);
        });
        let room = Arc::clone(&gate);
        lot.on_room(move || room.wake());

        let (goes_on, stopped) = crossbeam_channel::bounded(0);
        let mut startup = Startup {
            stopped,
            ready_thread: format!("{}-ready", settings.thread_name_prefix),
            gate: Arc::clone(&gate),
            remote: None,
            ready_when: None,
            held: None,
            obeys_signals: false,
            is_to_stop: false,
        };
        let mut upgrader = None;
        if let Some(mut restart) = settings.restart.take() {
            startup.ready_when = restart.take_ready_when();
            startup.held = Some(restart.take_blocked_signals());
            let shared = listeners.iter().map(Arc::downgrade).collect();
            let (own, remote) = Upgrader::new(restart, shared, settings.drain_timeout)?;
            upgrader = Some(own);
            startup.remote = Some(remote);
        }

        let watched = Arc::clone(&lot);
        let control = Arc::new(ServerShared {
            commands: sender,
            addrs,
            server: SERVERS.fetch_add(1, SeqCst),
            stats: Box::new(move || stats(&watched)),
            outcome: ReportCell::default(),
            restart: startup.remote.clone(),
        });
        let parts = MainThread {
            service: self.service,
            listeners,
            upgrader,
            idle_grace: idle_grace.unwrap_or_default(),
            goes_on: Some(goes_on),
            settings,
            lot,
            gate,
            queue,
            commands,
            server: control.server,
        };
        Ok((parts, control, startup))
    }
}

impl<S: Service + 'static> Server<S> {
    /// Runs the server until it is stopped by a signal, see [`Builder::signals`], and says how the stop went.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, the service cannot build a worker's state, or the process's signals cannot be
    /// watched: another part of the program may have installed a Ctrl-C handler.
    pub fn run(self) -> io::Result<Report> {
        let (parts, control, mut startup) = self.prepare()?;
        startup.obeys_signals = parts.settings.signals;
        // Before anything is served, so that no signal that comes once there is a server is missed.
        #[cfg(feature = "signals")]
        let _watched = match parts.settings.signals {
            true => {
                let (server, restarts) = (control.commands.clone(), control.restart.is_some());
                Some(crate::signals::subscribe(server, restarts)?)
            }
            false => None,
        };
        Ok(launch(parts, control, startup)?.join())
    }

    /// Starts the server on threads of its own. It touches no signal: how it is stopped is the caller's affair.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or the service cannot build a worker's state.
    pub fn start(self) -> io::Result<Handle> {
        let (parts, control, startup) = self.prepare()?;
        launch(parts, control, startup)
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

/// What is to be done before the first connection is accepted, once everything else is there.
struct Startup {
    /// Closed when the server has stopped.
    stopped: Receiver<()>,
    ready_thread: String,
    gate: Arc<AcceptGate>,
    remote: Option<UpgraderHandle>,
    ready_when: Option<ReadyWhen>,
    held: Option<BlockedSignals>,
    obeys_signals: bool,
    /// A signal has come already that stops the server as soon as it looks.
    is_to_stop: bool,
}

impl Startup {
    /// Lets signals through that were held back until they are handled, if they are to be.
    fn release_signals(&mut self) {
        if let Some(mut held) = self.held.take() {
            self.is_to_stop = held.release() && self.obeys_signals;
        }
    }

    fn open(self) -> io::Result<()> {
        if self.is_to_stop {
            return Ok(());
        }
        if let Some(ready_when) = self.ready_when {
            let (done, ready) = crossbeam_channel::bounded(1);
            // It may take its time, and a stop does not wait for it.
            thread::Builder::new()
                .name(self.ready_thread)
                .spawn(move || drop(done.send(ready_when())))?;
            let panicked = || Err("ready_when panicked".into());
            crossbeam_channel::select! {
                recv(ready) -> result => {
                    result.unwrap_or_else(|_| panicked()).map_err(io::Error::other)?;
                }
                recv(self.stopped) -> _ => return Ok(()),
            }
        }
        match self.remote {
            Some(remote) => remote.announce_ready().map_err(io::Error::other),
            None => {
                self.gate.open();
                Ok(())
            }
        }
    }
}

/// Starts the main thread, and waits until it serves.
fn launch<S: Service + 'static>(
    parts: MainThread<S>,
    control: Arc<ServerShared>,
    mut startup: Startup,
) -> io::Result<Handle> {
    startup.release_signals();
    let (ready, started) = crossbeam_channel::bounded(1);
    let shared = Arc::clone(&control);
    let thread = thread::Builder::new()
        .name(parts.thread_name("main"))
        .spawn(move || parts.serve(&shared, &ready))?;
    started.recv().unwrap_or_else(|_| Err(no_start()))?;
    let handle = Handle::new(control, Some(thread));
    startup.open()?;
    Ok(handle)
}

fn no_start() -> io::Error {
    io::Error::other("the server's main thread ended before it served")
}

/// Stops a scoped server when its body is over, and also when that panics.
struct StopOnDrop<'a>(&'a Handle, Duration);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop(self.1);
    }
}

fn stats<T>(lot: &Lot<T>) -> Stats {
    let now = clock::millis();
    let workers = lot.counters.of_workers().map(|worker| {
        let serving = worker.serving().and_then(|(token, since)| {
            let peer = lot.with_info(token, |info| info.peer.clone())?;
            let served_for = Duration::from_millis(now.saturating_sub(since));
            Some(WorkerState::Serving { peer, served_for })
        });
        serving.unwrap_or(WorkerState::Idle)
    });
    let workers: Vec<_> = workers.collect();
    let idle = workers
        .iter()
        .filter(|worker| **worker == WorkerState::Idle);
    let active = (workers.len() - idle.count()) as u64;
    let live = lot.drain.live() as u64;
    let queued = lot.queued() as u64;
    Stats {
        live,
        active,
        queued,
        parked: live.saturating_sub(active + queued),
        workers,
        ..lot.counters.snapshot()
    }
}
