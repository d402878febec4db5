//! The builder: every setting, its default, and what is refused.

use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use crate::acceptor::{Admission, Overload};
use crate::connection::Limits;
use crate::listener::{Bind, BindError, Listener};
use crate::restart::Restart;
use crate::server::Server;
use crate::service::Service;
use crate::worker::Hook;

/// Settings for a [`Server`], from [`Server::builder`].
///
/// Every setting has a default that is safe on an open network; time-outs and limits are finite.
pub struct Builder {
    pub(super) listeners: Vec<Source>,
    pub(super) workers: Option<usize>,
    pub(super) queue: usize,
    pub(super) stack_size: Option<usize>,
    pub(super) thread_name_prefix: String,
    pub(super) admission: Admission,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) limits: Limits,
    pub(super) drain_timeout: Duration,
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    pub(super) signals: bool,
    pub(super) on_start: Option<Hook>,
    pub(super) on_exit: Option<Hook>,
    pub(super) on_hook: Option<Box<dyn Fn() + Send + Sync>>,
    pub(super) restart: Option<Restart>,
    pub(super) stuck_after: Option<Duration>,
}

/// A listener that is there, or is to be made.
pub(super) enum Source {
    Bind(Bind),
    Bound(Listener),
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            listeners: Vec::new(),
            workers: None,
            queue: 1024,
            stack_size: None,
            thread_name_prefix: "handover".to_owned(),
            admission: Admission {
                max_connections: 65_536,
                max_per_client: None,
                overload: Overload::default(),
            },
            queue_timeout: None,
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            signals: true,
            on_start: None,
            on_exit: None,
            on_hook: None,
            restart: None,
            stuck_after: None,
        }
    }

    /// Listens on an address: text, a `SocketAddr`, or a [`Bind`] with options. May be called several times; the
    /// addresses are bound by [`build`](Self::build), in this order.
    pub fn listen(mut self, addr: impl Into<Bind>) -> Self {
        self.listeners.push(Source::Bind(addr.into()));
        self
    }

    /// Serves a listener that is bound already. May be called several times. A successor finds it by
    /// [`Restart::inherited`].
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listeners.push(Source::Bound(listener));
        self
    }

    /// The number of worker threads, which is the number of calls of the service at the same time. Defaults to
    /// `std::thread::available_parallelism()`; a service that waits for disks or other servers wants more.
    pub fn workers(mut self, threads: usize) -> Self {
        self.workers = Some(threads);
        self
    }

    /// How many connections that are ready may wait for a worker. Defaults to 1024. See
    /// [`overload`](Self::overload) for what happens to more.
    pub fn queue(mut self, connections: usize) -> Self {
        self.queue = connections;
        self
    }

    /// The stack size of the worker threads, in bytes. Defaults to that of `std::thread`.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// What the names of the server's threads begin with. Defaults to `handover`.
    pub fn thread_name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.thread_name_prefix = prefix.into();
        self
    }

    /// How many connections may be open at the same time, waiting ones included. Defaults to 65,536.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.admission.max_connections = connections;
        self
    }

    /// How many connections one client's IP address may have open. More are refused whatever the policy, for they
    /// must not hold up others. Defaults to no limit.
    pub fn max_per_client(mut self, connections: usize) -> Self {
        self.admission.max_per_client = Some(connections);
        self
    }

    /// What happens to new connections when the server is full. Defaults to [`Overload::Wait`].
    pub fn overload(mut self, policy: Overload) -> Self {
        self.admission.overload = policy;
        self
    }

    /// How long a connection that is ready may wait for a worker; one that has waited longer is closed rather than
    /// served late. Defaults to no limit.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = Some(timeout);
        self
    }

    /// How long a new connection may say nothing. Defaults to 30 s.
    pub fn first_byte_timeout(mut self, timeout: Duration) -> Self {
        self.limits.first_byte_timeout = timeout;
        self
    }

    /// How long a connection may wait for its client's next message. Defaults to 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout;
        self
    }

    /// How long a stretch of reading may take in total, see [`Connection`](crate::Connection). Defaults to 30 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.limits.read_timeout = timeout;
        self
    }

    /// How long a stretch of writing may take in total, see [`Connection`](crate::Connection). Defaults to 30 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.limits.write_timeout = timeout;
        self
    }

    /// The minimum rate, in bytes per second, at which what is moved extends the read and the write time-out. With
    /// 0 nothing extends them. Defaults to 1024.
    pub fn min_rate(mut self, bytes_per_second: u32) -> Self {
        self.limits.min_rate = bytes_per_second;
        self
    }

    /// How many bytes of input may be buffered for a connection: the longest message that a service can have whole
    /// in the buffer. Defaults to 1 MiB.
    pub fn input_limit(mut self, bytes: usize) -> Self {
        self.limits.input_limit = bytes;
        self
    }

    /// How many bytes of output may be buffered for a connection whose client does not read. 0 makes writes wait.
    /// Defaults to 64 KiB.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.limits.output_limit = bytes;
        self
    }

    /// How long a stop by a signal, or by dropping the last [`Handle`](crate::Handle), lets work in progress go on.
    /// Defaults to 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Whether [`Server::run`] reacts to signals; [`Server::start`] never does. Defaults to true. A program that handles signals by itself says
    /// false, and calls the handle. Needs the feature `signals`.
    ///
    /// SIGTERM and the first SIGINT (Ctrl-C) drain, SIGQUIT and the second SIGINT stop at once, SIGUSR1 calls
    /// [`on_user_signal`](Self::on_user_signal), and SIGHUP and SIGUSR2 restart if [`restart`](Self::restart) is on. When no server runs any more they do what they do by default.
    #[cfg(feature = "signals")]
    pub fn signals(mut self, on: bool) -> Self {
        self.signals = on;
        self
    }

    /// What SIGUSR1 does, such as reopening a log file. It runs on the server's main thread, which also says to a watchdog that
    /// the server lives: so it must not take long. Defaults to nothing.
    #[cfg(feature = "signals")]
    pub fn on_user_signal(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_hook = Some(Box::new(hook));
        self
    }

    /// Lets a new process take over on SIGHUP and SIGUSR2 (by [`Server::run`], with the feature `signals`), or when
    /// [`Handle::restart`](crate::Handle::restart) says so. Defaults to off.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = Some(restart);
        self
    }

    /// How long every worker may be in the same call of the service, without moving a byte for its client or waiting for
    /// it, until the process counts as wedged. Where somebody watches over it (a [`Supervisor`](crate::Supervisor), or
    /// systemd with `WatchdogSec=`), it is ended then, and started anew; elsewhere this means nothing. Longer than the longest calls take.
    /// Defaults to the limit of whoever watches.
    pub fn stuck_after(mut self, limit: Duration) -> Self {
        self.stuck_after = Some(limit);
        self
    }

    /// Called on each worker thread with its index before it does anything else.
    pub fn on_worker_start(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_start = Some(Box::new(hook));
        self
    }

    /// Called on each worker thread with its index before it ends.
    pub fn on_worker_exit(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_exit = Some(Box::new(hook));
        self
    }

    /// Binds the listeners and makes the server. Nothing is accepted before it is started.
    ///
    /// # Errors
    ///
    /// [`BuildError`] says which setting makes no sense, or which address cannot be listened on.
    pub fn build<S: Service>(mut self, service: S) -> Result<Server<S>, BuildError> {
        if self.workers.is_none() {
            self.workers = Some(thread::available_parallelism().map_or(1, usize::from));
        }
        let positive = [
            (self.workers.unwrap_or_default(), "workers"),
            (self.queue, "queue"),
            (self.admission.max_connections, "max_connections"),
            (self.admission.max_per_client.unwrap_or(1), "max_per_client"),
            (self.limits.input_limit, "input_limit"),
            (self.listeners.len(), "the number of listeners"),
        ];
        if let Some((_, name)) = positive.into_iter().find(|(value, _)| *value == 0) {
            return Err(BuildError::Zero(name));
        }
        let mut inherited = Vec::new();
        if let Some(restart) = &mut self.restart {
            restart.check().map_err(BuildError::Restart)?;
            let binds = self.listeners.iter().filter_map(|source| match source {
                Source::Bind(bind) => Some(bind),
                Source::Bound(_) => None,
            });
            inherited = restart.listeners(&binds.collect::<Vec<_>>());
            restart.close_rest();
        }
        let mut inherited = inherited.into_iter();
        let bound: Result<Vec<_>, _> = std::mem::take(&mut self.listeners)
            .into_iter()
            .map(|source| match source {
                Source::Bind(bind) => match inherited.next().flatten() {
                    Some(listener) => Ok(listener),
                    None => match &self.restart {
                        Some(restart) => restart.bind(bind),
                        None => bind.bind(),
                    },
                },
                Source::Bound(listener) => Ok(listener),
            })
            .collect();
        let listeners = bound.map_err(BuildError::Bind)?;
        Ok(Server {
            service,
            listeners,
            settings: self,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.workers)
            .field("queue", &self.queue)
            .field("admission", &self.admission)
            .field("queue_timeout", &self.queue_timeout)
            .field("limits", &self.limits)
            .field("drain_timeout", &self.drain_timeout)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}

/// Why a server could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// This setting must not be 0.
    Zero(&'static str),
    /// An address cannot be listened on.
    Bind(BindError),
    /// There can be no restarts: not on this system, or because nobody can tell what program this is.
    Restart(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero(name) => write!(f, "{name} must be at least 1"),
            Self::Bind(error) => error.fmt(f),
            Self::Restart(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Zero(_) => None,
            Self::Bind(error) => error.source(),
            Self::Restart(error) => Some(error),
        }
    }
}

impl From<BuildError> for io::Error {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Zero(_) => Self::new(io::ErrorKind::InvalidInput, error),
            BuildError::Bind(error) => error.into(),
            BuildError::Restart(error) => error,
        }
    }
}
