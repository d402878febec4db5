//! The builder: every setting and its default.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::acceptor::{AdmissionPolicy, Overload};
use crate::connection::Limits;
use crate::listener::{Bind, BindError, Listener};
use crate::restart::Restart;
use crate::server::Server;
use crate::server::build_error::{BuildError, Setting};
use crate::service::{BufferLimits, Service};
#[cfg(feature = "signals")]
use crate::sys::EventPrefix;
use crate::worker::Hook;

/// Settings for a [`Server`], from [`Server::builder`].
///
/// Every setting has a default that is safe on an open network. Time-outs and limits are finite.
/// `Duration::MAX` and `usize::MAX` are no limit, where a setting does not say otherwise. A value
/// that has no meaning is an error of [`build`](Self::build), with the name of the setting.
///
/// The settings are in groups: listening, limits, time-outs, overload, life.
/// [`guide::sizing`](crate::guide::sizing) says which to change, and why.
///
/// # Examples
///
/// A line protocol on an open network, whose handlers ask a database:
///
/// ```no_run
/// use std::time::Duration;
///
/// use handover::{Bind, Connection, Next, Overload, Restart, Server};
///
/// # fn serve(_: &mut Connection) -> std::io::Result<Next> { Ok(Next::Close) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder()
///     // Listening
///     .listen(Bind::new(":7000").name("public").backlog(4096))
///     .listen("unix:/run/app.sock")
///     // Limits
///     .workers(64)
///     .max_connections(20_000)
///     .max_per_client(100)
///     .input_limit(64 * 1024)
///     // Time-outs
///     .idle_timeout(Duration::from_secs(300))
///     .read_timeout(Duration::from_secs(10))
///     .min_rate(4096)
///     // Overload
///     .overload(Overload::Refuse(b"busy, try again later\n".to_vec()))
///     .queue_timeout(Duration::from_secs(5))
///     // Life
///     .drain_timeout(Duration::from_secs(20))
///     .restart(Restart::inherit()?)
///     .on_stop(|| eprintln!("stopping"))
///     .build(serve)?;
/// println!("{}", server.run()?);
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing before `build` is called"]
pub struct Builder {
    pub(super) listeners: Vec<Source>,
    pub(super) workers: usize,
    pub(super) worker_groups: usize,
    pub(super) queue: usize,
    pub(super) stack_size: Option<usize>,
    pub(super) thread_name_prefix: String,
    pub(super) admission: AdmissionPolicy,
    pub(super) is_max_connections_set: bool,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) limits: Limits,
    pub(super) drain_timeout: Duration,
    /// `None`: the default, which depends on how the server is run.
    pub(super) raises_descriptor_limit: Option<bool>,
    /// `None`: the default, which depends on how the server is run.
    pub(super) signals: Option<bool>,
    #[cfg(feature = "signals")]
    pub(super) event_prefix: Option<String>,
    pub(super) on_start: Option<Hook>,
    pub(super) on_exit: Option<Hook>,
    pub(super) on_user_signal: Option<Box<dyn Fn() + Send + Sync>>,
    pub(super) on_stop: Option<Arc<dyn Fn() + Send + Sync>>,
    pub(super) restart: Option<Restart>,
    pub(super) stuck_after: Option<Duration>,
}

/// The largest number of workers. Systems do not run more threads in one process.
const MOST_WORKERS: usize = 32_768;

/// Smaller stacks overflow in the code of the server itself, in debug builds, and while a panic is
/// reported.
const LEAST_STACK: usize = 128 * 1024;
/// The address space of a process has room for a few of these: 16 TiB, or 1 GiB with 32 bits.
const MOST_STACK: usize = usize::MAX >> if usize::BITS == 64 { 20 } else { 2 };

/// Enough for handlers that wait for disks or other servers. Workers that are not needed rest.
fn default_workers() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores * 8).max(16)
}

/// The most cores for which the workers share one queue and one poller.
const CORES_PER_GROUP: usize = 32;

fn default_worker_groups() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / CORES_PER_GROUP).max(1)
}

/// A listener, or the address to bind one to.
pub(super) enum Source {
    Bind(Bind),
    Bound(Listener),
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            listeners: Vec::new(),
            workers: default_workers(),
            worker_groups: default_worker_groups(),
            queue: 1024,
            stack_size: None,
            thread_name_prefix: "handover".to_owned(),
            is_max_connections_set: false,
            admission: AdmissionPolicy {
                max_connections: 65_536,
                max_per_client: None,
                overload: Overload::default(),
            },
            queue_timeout: None,
            limits: Limits::default(),
            drain_timeout: Duration::from_secs(30),
            raises_descriptor_limit: None,
            signals: None,
            #[cfg(feature = "signals")]
            event_prefix: None,
            on_start: None,
            on_exit: None,
            on_user_signal: None,
            on_stop: None,
            restart: None,
            stuck_after: None,
        }
    }
}

/// # Listening
///
/// Addresses and listeners, served by the same workers.
impl Builder {
    /// Listens on an address, such as `"localhost:8080"` or `":8080"`, or a [`Bind`] with options;
    /// [`Bind`] has the table of all forms. May be called several times; the addresses are bound by
    /// [`build`](Self::build), in this order.
    pub fn listen(mut self, addr: impl Into<Bind>) -> Self {
        self.listeners.push(Source::Bind(addr.into()));
        self
    }

    /// Serves a listener that is bound already. May be called several times. A successor takes it
    /// by [`Restart::inherited`].
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listeners.push(Source::Bound(listener));
        self
    }
}

/// # Limits
///
/// How much of the machine the server takes. [`guide::sizing`](crate::guide::sizing) has what
/// happens at each limit.
impl Builder {
    /// Sets the number of worker threads: the most calls of the service at the same time. As long
    /// as calls do not block, no more workers are active than there are cores, so a large number
    /// costs a fast service next to nothing. From 1 to 32,768. Defaults to 8 times
    /// `std::thread::available_parallelism()`, at least 16.
    pub fn workers(mut self, threads: usize) -> Self {
        self.workers = threads;
        self
    }

    /// Sets the number of groups that the workers are split into. The workers of a group share one
    /// queue, one poller and one keeper thread, and so the memory that each request writes. On a
    /// machine with very many cores, several groups carry more fast requests than one. A connection
    /// belongs to one group. A worker whose group has nothing to do serves the connections of other
    /// groups, so no client waits for a busy group while another group is idle. Within a group,
    /// connections are served in the order in which they became ready; across groups, about in this
    /// order. All limits apply to the groups together. At least 1. A number above 128, or above the
    /// number of workers, counts as the lower of the two. Defaults to one group per 32 cores
    /// (`std::thread::available_parallelism()`), at least 1: a machine with fewer than 64 cores has
    /// one group.
    pub fn worker_groups(mut self, groups: usize) -> Self {
        self.worker_groups = groups;
        self
    }

    /// Sets the stack size of the worker threads, in bytes. At least 128 KiB. Defaults to that of
    /// `std::thread`.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Sets how many connections may be open at the same time, idle ones included. Defaults to
    /// 65,536. At least 1.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.admission.max_connections = connections;
        self.is_max_connections_set = true;
        self
    }

    /// Sets how many connections one client's IP address may have open. Further connections are
    /// refused, with every overload policy. At least 1. Defaults to no limit.
    pub fn max_per_client(mut self, connections: usize) -> Self {
        self.admission.max_per_client = Some(connections);
        self
    }

    /// Sets how many bytes of input may be buffered for a connection: the longest message that a
    /// service can have whole in the buffer. At least 1. Defaults to 1 MiB.
    pub fn input_limit(mut self, bytes: usize) -> Self {
        self.limits.input_limit = bytes;
        self
    }

    /// Sets how many bytes of a service's writes may be buffered for a connection whose client does
    /// not read. With 0, writes wait. Bytes and files that the connection owns do not count
    /// ([`Connection::write_owned`](crate::Connection::write_owned)). Defaults to 64 KiB.
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.limits.output_limit = bytes;
        self
    }

    /// Sets whether the start of the server raises the process's limit of open descriptors: the
    /// soft limit of RLIMIT_NOFILE (getrlimit(2)) to the hard one, for all threads and for good. A
    /// successor, and the processes of a supervisor, start with the limit as it was. The other
    /// child processes of this process inherit the raised limit: call
    /// [`restore_descriptor_limit`](crate::restore_descriptor_limit) for their commands. Has no
    /// effect on Windows.
    ///
    /// Whether the limit is raised or not, a limit that is too low for
    /// [`max_connections`](Self::max_connections) is logged: as a warning, or at level info if that
    /// was not set.
    ///
    /// Defaults to true for [`Server::run`], and to false for [`Server::start`] and
    /// [`Server::run_scoped`], as the process is then that of a larger program.
    pub fn raise_descriptor_limit(mut self, on: bool) -> Self {
        self.raises_descriptor_limit = Some(on);
        self
    }
}

/// # Time-outs
///
/// How long a client may take. The connection can change some of them for itself, see
/// [`Connection`](crate::Connection#deadlines).
impl Builder {
    /// Sets how long a new connection may send nothing. More than zero. Defaults to 30 s.
    pub fn first_byte_timeout(mut self, timeout: Duration) -> Self {
        self.limits.first_byte_timeout = timeout;
        self
    }

    /// Sets how long a connection may wait for its client's next message. More than zero. Defaults
    /// to 75 s.
    ///
    /// Behind a balancer or a reverse proxy, choose a longer time than the one for which the
    /// balancer keeps an idle connection to its servers. Then the balancer closes first. Otherwise
    /// it may send a request on a connection that this server is closing at that moment, and answer
    /// its client with 502 (Bad Gateway). AWS' Application Load Balancer and nginx keep idle
    /// connections for 60 s by default, which the default here outlasts.
    /// [`guide::sizing`](crate::guide::sizing#behind-a-balancer) has a table.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.idle_timeout = timeout;
        self
    }

    /// Sets how long a stretch of reading may take in total, see [`Connection`](crate::Connection).
    /// More than zero. Defaults to 30 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.limits.read_timeout = timeout;
        self
    }

    /// Sets how long a stretch of writing may take in total, see [`Connection`](crate::Connection).
    /// More than zero. Defaults to 30 s.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.limits.write_timeout = timeout;
        self
    }

    /// Sets the minimum rate, in bytes per second, at which moved bytes extend the read and the
    /// write time-out. With 0 nothing extends them. Defaults to 1024.
    pub fn min_rate(mut self, bytes_per_second: u32) -> Self {
        self.limits.min_rate = bytes_per_second;
        self
    }
}

/// # Overload
///
/// What happens when more comes than the workers serve.
impl Builder {
    /// Sets how many connections that are ready may wait on the queue for a worker. Further ones
    /// wait in the poller, in their order. See [`overload`](Self::overload) for what happens to new
    /// connections when this many of them wait. At least 1; more than 1,048,576 count as
    /// 1,048,576. Defaults to 1024.
    pub fn queue(mut self, connections: usize) -> Self {
        self.queue = connections;
        self
    }

    /// Sets how long a connection that is ready may wait for a worker. A connection that has waited
    /// longer is closed instead of being served late. More than zero. Defaults to no limit.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.queue_timeout = Some(timeout);
        self
    }

    /// Sets what happens to new connections when the server is full. Defaults to
    /// [`Overload::Wait`].
    pub fn overload(mut self, policy: Overload) -> Self {
        self.admission.overload = policy;
        self
    }
}

/// # Life
///
/// Stops, restarts, signals, hooks, and the names of threads.
impl Builder {
    /// Sets how long a stop by a signal, or by dropping the last [`Handle`](crate::Handle), lets
    /// work in progress go on. Zero cuts it off at once. Defaults to 30 s.
    ///
    /// A process that was replaced stays for up to 6 s even if this is shorter: until the service
    /// manager knows of its successor.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Lets a successor take over on SIGHUP and SIGUSR2 (if the server handles
    /// signals), or on [`Handle::restart`](crate::Handle::restart). Servers of the same process get
    /// clones of the same `Restart`, and [`Servers`](crate::Servers) run them. Defaults to off.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = Some(restart);
        self
    }

    /// Sets whether the server handles the signals of the process, until it has stopped. A program
    /// that handles signals itself says false, and calls the [`Handle`](crate::Handle). Needs the
    /// feature `signals`. Defaults to true for [`Server::run`], and to false for
    /// [`Server::start`] and [`Server::run_scoped`], as the process is then that of a larger
    /// program.
    ///
    /// | signal | action |
    /// |---|---|
    /// | the first SIGTERM or SIGINT (Ctrl-C) | drain |
    /// | a second SIGTERM or SIGINT, SIGQUIT | stop now |
    /// | SIGUSR1 | call [`on_user_signal`](Self::on_user_signal) |
    /// | SIGHUP, SIGUSR2 | restart, if [`restart`](Self::restart) is on; drain, if not |
    /// | SIGHUP of a terminal that is closed | drain; nothing, if SIGHUP was ignored at the start |
    ///
    /// A SIGHUP is that of a terminal if the kernel sent it, or if the terminal's shell did after the
    /// terminal was closed. So a server in the foreground ends with its terminal, a server that was
    /// started with `nohup` goes on, and `kill -HUP` restarts both. Ctrl-Z and `fg` stop and continue
    /// the process, as by default; time-outs of clients that pass meanwhile are not extended.
    ///
    /// The process handles these signals even if its parent ignored them. Exception: a SIGHUP or
    /// SIGUSR2 for which there is no restart stays ignored.
    ///
    /// Each signal is a line in the log (level info) that says what follows, such as `SIGTERM:
    /// draining, at most 30 s; once more stops now`.
    ///
    /// When no server runs any more, signals have their default action; a SIGHUP or SIGUSR2 that
    /// comes too late for a restart has no effect. In a supervised process a second SIGTERM or
    /// SIGINT changes nothing: the supervisor handles it, and sends SIGQUIT.
    ///
    /// On Windows, [event objects](Self::event_prefix) and console events stand for signals:
    ///
    /// | event | action |
    /// |---|---|
    /// | the first stop event, Ctrl-C or Ctrl-Break | drain |
    /// | a second one of these; the stop-now event | stop now |
    /// | the user1 event | call [`on_user_signal`](Self::on_user_signal) |
    /// | the restart event | restart, if [`restart`](Self::restart) is on; drain, if not |
    /// | the console is closed; the user logs off; shutdown | drain for at most 4 s, as Windows ends the process after 5 s |
    ///
    /// Ctrl-Break drains, as it is the only console event that a program can send to another
    /// program's process group (GenerateConsoleCtrlEvent). In session 0, where services run, the
    /// logoff of a user has no effect. When no server runs any more, the stop, the stop-now and the
    /// console events end the process, and the others have no effect.
    #[cfg(feature = "signals")]
    pub fn signals(mut self, on: bool) -> Self {
        self.signals = Some(on);
        self
    }

    /// Sets the prefix of the names of the event objects by which other processes control this
    /// process on Windows: `Local\` for processes of the same session or `Global\` for all, and a
    /// name. Has no effect on other systems, where signals do the same. The process id and the
    /// request follow the prefix. With `Global\shop`, a process 4711 that handles
    /// [signals](Self::signals) has these event objects:
    ///
    /// | event object | as the signal |
    /// |---|---|
    /// | `Global\shop.4711.stop` | SIGTERM: drain; stop now the second time |
    /// | `Global\shop.4711.stop-now` | SIGQUIT: stop now |
    /// | `Global\shop.4711.restart` | SIGHUP: restart; drain without [`restart`](Self::restart) |
    /// | `Global\shop.4711.user1` | SIGUSR1: call [`on_user_signal`](Self::on_user_signal) |
    ///
    /// Only the user of the process, administrators and the system may set them. If the process has a
    /// higher integrity level than medium, as a service or a program with administrator rights has,
    /// only programs with such a level may. In PowerShell:
    ///
    /// ```text
    /// [System.Threading.EventWaitHandle]::OpenExisting('Global\shop.4711.stop').Set()
    /// ```
    ///
    /// The start of the server fails if another program has made an object of such a name already.
    /// Any user of the machine can do so with `Global\` names, and with the `Local\` names of session
    /// 0, where services run: there, both are the same. Where you do not trust all users, give a
    /// service a prefix that nobody can guess, and another one at each start: users can list the names
    /// that exist.
    ///
    /// All servers of a process have the same event objects, which exist until the process ends.
    ///
    /// The prefix is at most 200 UTF-16 units long, and its name has no backslash. A name alone
    /// gets `Local\`. Defaults to `Local\` and the name of the program's file without its
    /// extension.
    #[cfg(feature = "signals")]
    pub fn event_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.event_prefix = Some(prefix.into());
        self
    }

    /// Sets what SIGUSR1 does, or the user1 event on Windows, such as reopening a log file. The
    /// hook runs on the server's main thread, which also notifies the watchdog, so it must not take
    /// long. Defaults to nothing.
    #[cfg(feature = "signals")]
    pub fn on_user_signal(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_user_signal = Some(Box::new(hook));
        self
    }

    /// Sets a hook that is called once, when the server begins to stop: a stop was requested, or a
    /// successor serves. Threads of the application can end by it, see also
    /// [`Handle::is_stopping`](crate::Handle::is_stopping), which is true by then. The hook runs on a
    /// thread of its own, beside the drain, and the stop waits for its end within the deadline. A
    /// panic is logged. A server that could not start calls no hook. Defaults to nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::thread;
    ///
    /// use handover::{Connection, Next, Server};
    ///
    /// let (stop, stopped) = mpsc::channel();
    /// let cleaner = thread::spawn(move || while stopped.recv().is_ok() {});
    /// let server = Server::builder()
    ///     .listen("127.0.0.1:0")
    ///     .on_stop(move || drop(stop.send(())))
    ///     .build(|_: &mut Connection| Ok(Next::Close))?;
    /// # let handle = server.handle();
    /// # handle.stop_now();
    /// server.run()?;
    /// # drop(handle);
    /// cleaner.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_stop = Some(Arc::new(hook));
        self
    }

    /// Sets after how long a worker counts as stuck: it is in the same call of the service, and has
    /// neither moved bytes for its client nor waited for the client. (A call that has
    /// [detached](crate::Connection::detach) its connection waits for the client as long as all
    /// that the client has sent is read.) A process whose workers are all stuck counts as hung. A
    /// [`Supervisor`](crate::Supervisor), or systemd with `WatchdogSec=`, then ends the process and
    /// starts it again. Without either, this has no effect. Choose a time longer than the longest
    /// call of the service, and more than zero. Defaults to the watchdog's limit.
    pub fn stuck_after(mut self, limit: Duration) -> Self {
        self.stuck_after = Some(limit);
        self
    }

    /// Sets a hook that each worker thread calls first, with its index. Defaults to nothing.
    pub fn on_worker_start(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_start = Some(Box::new(hook));
        self
    }

    /// Sets a hook that each worker thread calls last, with its index. Defaults to nothing.
    pub fn on_worker_exit(mut self, hook: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_exit = Some(Box::new(hook));
        self
    }

    /// Sets the prefix of the names of the server's threads. Defaults to `handover`. If two
    /// [`Servers`](crate::Servers) have the same prefix, the second server's is numbered:
    /// `handover2-0`.
    pub fn thread_name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.thread_name_prefix = prefix.into();
        self
    }
}

/// # The server
impl Builder {
    /// Binds the listeners and makes the server. No connection is accepted before the server is
    /// started.
    ///
    /// The service is a function `fn(&mut Connection) -> io::Result<Next>`, or a value of a type
    /// that implements [`Service`]. [`service`](crate::service) makes one of a function with other
    /// errors, and [`service_with`](crate::service_with) one of functions with a session and a
    /// state of the worker.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setting that is not valid, or the address that cannot be listened
    /// on.
    pub fn build<S: Service>(mut self, service: S) -> Result<Server<S>, BuildError> {
        self.check_ranges()?;
        if self.listeners.is_empty() {
            return Err(BuildError::NoListener);
        }
        let buffers = BufferLimits {
            input_limit: self.limits.input_limit,
            output_limit: self.limits.output_limit,
        };
        service.check(&buffers).map_err(BuildError::Service)?;
        let listeners = self.bind_listeners().map_err(BuildError::Bind)?;
        Server::new(service, listeners, self)
    }
}

impl Builder {
    /// Binds what is not bound or inherited.
    fn bind_listeners(&mut self) -> Result<Vec<Listener>, BindError> {
        let sources = std::mem::take(&mut self.listeners);
        let Some(restart) = &self.restart else {
            let bound = sources.into_iter().map(|source| match source {
                Source::Bind(bind) => bind.bind(),
                Source::Bound(listener) => Ok(listener),
            });
            return bound.collect();
        };
        let binds = sources.iter().filter_map(|source| match source {
            Source::Bind(bind) => Some(bind.clone()),
            Source::Bound(_) => None,
        });
        let mut taken = restart.take_listeners(binds.collect())?.into_iter();
        let all = sources.into_iter().filter_map(|source| match source {
            Source::Bind(_) => taken.next(),
            Source::Bound(listener) => Some(listener),
        });
        Ok(all.collect())
    }

    fn check_ranges(&self) -> Result<(), BuildError> {
        let (limits, admission) = (&self.limits, &self.admission);
        let (ready_timeout, pause_limit) = self
            .restart
            .as_ref()
            .map_or((None, None), Restart::time_settings);
        let numbers = [
            (self.workers, 1, MOST_WORKERS, Setting::Workers),
            (self.worker_groups, 1, usize::MAX, Setting::WorkerGroups),
            (self.queue, 1, usize::MAX, Setting::Queue),
            (
                admission.max_connections,
                1,
                usize::MAX,
                Setting::MaxConnections,
            ),
            (
                admission.max_per_client.unwrap_or(1),
                1,
                usize::MAX,
                Setting::MaxPerClient,
            ),
            (limits.input_limit, 1, usize::MAX, Setting::InputLimit),
            (
                self.stack_size.unwrap_or(LEAST_STACK),
                LEAST_STACK,
                MOST_STACK,
                Setting::StackSize,
            ),
        ];
        for (value, least, most, setting) in numbers {
            match value {
                0 if least == 1 => return Err(BuildError::Zero(setting)),
                value if value < least => return Err(BuildError::TooSmall { setting, least }),
                value if value > most => return Err(BuildError::TooLarge { setting, most }),
                _ => {}
            }
        }
        let times = [
            (self.queue_timeout, Setting::QueueTimeout),
            (Some(limits.first_byte_timeout), Setting::FirstByteTimeout),
            (Some(limits.idle_timeout), Setting::IdleTimeout),
            (Some(limits.read_timeout), Setting::ReadTimeout),
            (Some(limits.write_timeout), Setting::WriteTimeout),
            (self.stuck_after, Setting::StuckAfter),
            (ready_timeout, Setting::ReadyTimeout),
            (pause_limit, Setting::PauseLimit),
        ];
        match times
            .into_iter()
            .find(|(time, _)| *time == Some(Duration::ZERO))
        {
            Some((_, setting)) => Err(BuildError::Zero(setting)),
            None => self.check_event_prefix(),
        }
    }

    fn check_event_prefix(&self) -> Result<(), BuildError> {
        #[cfg(feature = "signals")]
        if let Some(prefix) = &self.event_prefix {
            if EventPrefix::parse(prefix).is_none() {
                return Err(BuildError::EventPrefix(prefix.clone()));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workers", &self.workers)
            .field("worker_groups", &self.worker_groups)
            .field("queue", &self.queue)
            .field("admission", &self.admission)
            .field("queue_timeout", &self.queue_timeout)
            .field("limits", &self.limits)
            .field("drain_timeout", &self.drain_timeout)
            .field("restart", &self.restart)
            .finish_non_exhaustive()
    }
}
