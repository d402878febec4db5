//! Restarts: a new process takes over, and no client notices.
//!
//! The handshake, with the predecessor on the left and the successor on the right:
//!
//! ```text
//! start the program, with the listeners ─►  Hello
//!                                           build listeners, service, workers; be ready
//!                                       ◄─  Ready
//! Cutover                               ─►  accept
//! pause accepting                       ◄─  Accepting
//! Commit                                ─►  take over the pid file and the files of Unix sockets
//! close the listeners, drain            ◄─  Ack
//! Drained                               ─►
//! ```
//!
//! Until `Ack`, the predecessor can go on as if nothing had happened, and does so however the
//! successor fails. Until `Commit`, the successor ends if it is told to abort; if the predecessor
//! dies, the successor serves. Both have the same sockets, so the kernel keeps clients that connect
//! meanwhile in its queue.
//!
//! [`program`] starts the successor, [`launch`] and [`inherited`] are what the successor finds,
//! [`link`] carries the messages, and the [`restarter`] is the thread that follows the handshake in
//! both processes.

mod bind_request;
mod environment_file;
mod error;
mod inherited;
mod launch;
mod link;
mod pid_file;
mod program;
mod restarter;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::listener::{Bind, BindError, Listener};
use crate::sys::{self, Descriptor};
use crate::wire::HandshakeMessage;

use link::send_message;

pub use error::{RestartError, RestartErrorKind};
pub(crate) use inherited::{Inherited, adopt_socket};
pub(crate) use launch::{launch_variable, own_launch, passing_variables};
pub(crate) use pid_file::PidFile;
pub(crate) use program::Program;
pub(crate) use restarter::{RestartableServer, Restarter, RestarterHandle};

/// Returns when the application is ready.
pub(crate) type ReadyWhen =
    Box<dyn FnOnce() -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// Restarts without losing a request, for [`Builder::restart`](crate::Builder::restart).
///
/// On SIGHUP, SIGUSR2 or [`Handle::restart`](crate::Handle::restart), this process starts its
/// program again: the file that has the program's name by then, with the arguments of this process,
/// and with the directory and the environment that it had when [`new`](Self::new) was called. The
/// new process gets the listeners, and takes over when it is ready. This process goes on accepting
/// until then, finishes its connections, and ends. If the new process fails, this process goes on
/// serving, and [`RestartError`] says why.
///
/// A request for a restart that comes while another one runs, and has executed its program, starts
/// another round: see [`Handle::restart`](crate::Handle::restart). A process that has been replaced
/// passes the request on to its successor, so a signal to an old process id is not lost as long as
/// that process drains and its successor runs.
///
/// Call [`new`](Self::new) early in `main`, before the program has other threads, files, or
/// subprocesses: the call takes the descriptors that the process was started with, from its
/// predecessor or from a socket activator such as systemd. An address of
/// [`Builder::listen`](crate::Builder::listen) gets the inherited listener with its name or
/// address, and is bound only if there is none. Inherited listeners that nothing asks for are
/// closed.
///
/// systemd is told of restarts (sd_notify(3)): use `Type=notify-reload`, or `Type=notify` with an
/// `ExecReload=` that sends SIGHUP.
///
/// In a new process, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGUSR2 are blocked until
/// [`new`](Self::new) is called, and then recorded until its server runs, so that none of them kills
/// the process before the server can handle them. Threads and subprocesses that the process starts
/// after the call have the usual signals. Until the new process is ready, its standard error is a
/// pipe to the old process, which relays it. A subprocess that was started meanwhile keeps the pipe;
/// when the old process has ended, the new process relays what comes. If the old process dies before
/// the new one is ready, the pipe holds 64 KiB; further writes to standard error wait until the
/// server is built. A new process that fails is killed half a second after its server has ended. A
/// new process that hangs in its start is killed after `ready_timeout`, also if the old process has
/// died meanwhile.
///
/// While a new process starts, it has a parent that waits for it: a copy of the old process, which
/// shares the old one's memory until either writes to it.
///
/// A process has one server at a time that can be restarted. Unix only, without Apple's systems.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use handover::{Connection, Next, Restart, Server};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let restart = Restart::new()
///     .ready_timeout(Duration::from_secs(20))
///     .pid_file("/run/app.pid");
/// eprintln!("generation {}", restart.generation());
/// let report = Server::builder()
///     .listen("127.0.0.1:7000")
///     .restart(restart)
///     .build(|_: &mut Connection| Ok(Next::Close))?
///     .run()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a Restart has no effect before it is given to Builder::restart"]
pub struct Restart {
    program: io::Result<Program>,
    pub(crate) inherited: Inherited,
    pub(crate) ready_timeout: Duration,
    pub(crate) idle_grace: Duration,
    max_draining: usize,
    pub(crate) ready_when: Option<ReadyWhen>,
    passed: Vec<(String, Descriptor)>,
    pid_file: Option<PathBuf>,
    /// `None` once the server has taken them.
    pub(crate) recorded_signals: Option<RecordedSignals>,
}

/// The signals that are recorded in a successor, if they are. A drop releases them.
pub(crate) struct RecordedSignals(bool);

impl RecordedSignals {
    /// Has the signals handled that have come, and those that will come. True if one that means a
    /// stop has come already.
    pub(crate) fn release(&mut self) -> bool {
        std::mem::take(&mut self.0) && sys::signal::release()
    }
}

impl Drop for RecordedSignals {
    fn drop(&mut self) {
        self.release();
    }
}

impl Restart {
    /// Takes what this process was started with, and records how it was started.
    pub fn new() -> Self {
        let inherited = Inherited::take();
        if let Some(predecessor) = &inherited.predecessor {
            send_message(&predecessor.handshake, &HandshakeMessage::Hello);
        }
        let is_successor = inherited.predecessor.is_some() || inherited.predecessor_error.is_some();
        if is_successor {
            sys::signal::record();
        }
        Self {
            recorded_signals: Some(RecordedSignals(is_successor)),
            program: Program::of_this_process(),
            inherited,
            ready_timeout: Duration::from_secs(60),
            idle_grace: Duration::from_secs(10),
            max_draining: 4,
            ready_when: None,
            passed: Vec::new(),
            pid_file: None,
        }
    }

    /// The working directory of successors, looked up at each restart. Defaults to that of this
    /// process when it was started, by the name in `PWD` if that names this directory: if `PWD` is
    /// `/srv/app/current`, a symbolic link, a successor is started where the link leads by then, and
    /// so is a program that was started by a relative path. If there is no such directory, an error
    /// is logged, and the successor gets the directory of this process.
    pub fn working_directory(mut self, dir: impl Into<PathBuf>) -> Self {
        if let Ok(program) = &mut self.program {
            program.set_working_directory(&dir.into());
        }
        self
    }

    /// A file with environment variables for successors, read at each restart. They replace those
    /// of the same names; a variable that is removed from the file stays set. The format is that of
    /// systemd's `EnvironmentFile=` (systemd.exec(5)). As systemd does, a line that is not
    /// `NAME=VALUE`, such as `export NAME=VALUE`, is ignored, and a warning names the file and the
    /// line. If the file cannot be read, is not UTF-8, has a null character, or has a quote that is
    /// not closed, the restart fails with this reason. Defaults to none.
    pub fn environment_file(mut self, path: impl Into<PathBuf>) -> Self {
        if let Ok(program) = &mut self.program {
            program.set_environment_file(path.into());
        }
        self
    }

    /// How long a successor may take until it is ready; then it is ended, and this process goes on
    /// serving. A successor that fails after it has begun to accept may finish its requests for
    /// this time, or for the [`drain_timeout`](crate::Builder::drain_timeout) if that is shorter.
    /// Another restart waits until this successor has ended. More than zero. Defaults to 60 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// How long a connection that was kept open may be idle before the process that was replaced
    /// closes it. A request that comes within that time is answered, and the answer tells the
    /// client, if the protocol can, to use another connection. Choose a time longer than clients
    /// pause, as a later request meets the close. The
    /// [`drain_timeout`](crate::Builder::drain_timeout) ends the grace early. Defaults to 10 s.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.idle_grace = grace;
        self
    }

    /// How many earlier generations may drain at once. A restart beyond that begins when one of them
    /// has finished its requests, or its [`drain_timeout`](crate::Builder::drain_timeout) has
    /// passed: no restart cuts off the requests of an earlier one. At least 1. Defaults to 4.
    pub fn max_draining(mut self, generations: usize) -> Self {
        self.max_draining = generations.max(1);
        self
    }

    /// Sets a check that runs last, before the first connection is accepted. `ready` may fill
    /// caches, or check that what the service needs is there. An error of `ready` makes the start
    /// fail, and the predecessor goes on serving. `ready` runs on a thread of its own; a stop does
    /// not wait for it. Defaults to nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::TcpStream;
    ///
    /// use handover::Restart;
    ///
    /// // A new version that cannot reach the database does not replace the old one.
    /// let restart = Restart::new().ready_when(|| TcpStream::connect("db:5432").map(drop));
    /// ```
    pub fn ready_when<E>(
        mut self,
        ready: impl FnOnce() -> Result<(), E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.ready_when = Some(Box::new(|| ready().map_err(Into::into)));
        self
    }

    /// Passes a descriptor to each successor under a name, such as a UDP socket. The successor
    /// takes it by [`inherited`](Self::inherited). The listeners of the server are passed without
    /// this call.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(unix)]
    /// # fn main() -> std::io::Result<()> {
    /// use std::net::UdpSocket;
    ///
    /// use handover::Restart;
    ///
    /// let mut restart = Restart::new();
    /// let datagrams = match restart.inherited("datagrams") {
    ///     Some(descriptor) => UdpSocket::from(descriptor),
    ///     None => UdpSocket::bind("127.0.0.1:5300")?,
    /// };
    /// let restart = restart.pass("datagrams", datagrams.try_clone()?);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(unix))]
    /// # fn main() {}
    /// ```
    pub fn pass(mut self, name: impl Into<String>, descriptor: impl Into<Descriptor>) -> Self {
        self.passed.push((name.into(), descriptor.into()));
        self
    }

    /// Takes the descriptor that was passed to this process under a name, by the predecessor's
    /// [`pass`](Self::pass) or by a socket activator; `None` the second time. Take a listener for
    /// [`Builder::listener`](crate::Builder::listener) so, before you bind another one. See
    /// [`pass`](Self::pass) for an example.
    pub fn inherited(&mut self, name: &str) -> Option<Descriptor> {
        self.inherited.remove(name)
    }

    /// A file that holds the serving process's id. The start fails if the file is that of another
    /// living process. At a restart, the file is the successor's before the old process ends.
    /// Where several processes serve, use the [supervisor's](crate::Supervisor::pid_file) instead.
    /// Defaults to none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// The number of this process among all that have served, from 1: one more than that of its
    /// predecessor. A supervisor also counts the processes that it has restarted after an end.
    pub fn generation(&self) -> u64 {
        self.inherited.generation()
    }

    /// What the predecessor's [`Service::export`](crate::Service::export) has left for this
    /// process; `None` if there is no predecessor, or it has left nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io;
    /// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    ///
    /// use handover::{Connection, Next, Restart, Server, Service};
    ///
    /// /// Counts calls, over restarts as well.
    /// struct Counting(AtomicU64);
    ///
    /// impl Service for Counting {
    ///     type Session = ();
    ///     type Worker = ();
    ///
    ///     fn worker(&self, _index: usize) -> io::Result<()> {
    ///         Ok(())
    ///     }
    ///
    ///     fn session(&self, _: &Connection) -> io::Result<()> {
    ///         Ok(())
    ///     }
    ///
    ///     fn serve(&self, _: &mut Connection, _: &mut (), _: &mut ()) -> io::Result<Next> {
    ///         self.0.fetch_add(1, Relaxed);
    ///         Ok(Next::Close)
    ///     }
    ///
    ///     fn export(&self) -> Option<Vec<u8>> {
    ///         Some(self.0.load(Relaxed).to_le_bytes().to_vec())
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let restart = Restart::new();
    /// let state = restart.state().and_then(|state| state.try_into().ok());
    /// let count = state.map_or(0, u64::from_le_bytes);
    /// let server = Server::builder().listen("127.0.0.1:7000").restart(restart);
    /// server.build(Counting(count.into()))?.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn state(&self) -> Option<&[u8]> {
        self.inherited.predecessor.as_ref()?.state.as_deref()
    }

    /// Whether a supervisor has started this process or its predecessors.
    pub(crate) fn is_supervised(&self) -> bool {
        self.inherited.lifeline.is_some()
    }

    /// Binds a listener that was not inherited, or has the supervisor bind it.
    pub(crate) fn bind(&self, bind: Bind) -> Result<Listener, BindError> {
        match self.inherited.lifeline {
            Some(_) => bind_request::bind(self.generation(), bind),
            None => bind.bind(),
        }
    }

    /// Checks that there can be restarts at all.
    pub(crate) fn check(&self) -> io::Result<()> {
        if !sys::process::SUPPORTS_RESTARTS {
            let text = "restarts are not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if let Some(why) = &self.inherited.predecessor_error {
            return Err(io::Error::new(io::ErrorKind::Unsupported, why.clone()));
        }
        match &self.program {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = format!("cannot find the program file of this process: {error}");
                Err(io::Error::new(error.kind(), text))
            }
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restart")
            .field("program", &self.program)
            .field("generation", &self.generation())
            .field("ready_timeout", &self.ready_timeout)
            .field("idle_grace", &self.idle_grace)
            .field("max_draining", &self.max_draining)
            .field("pid_file", &self.pid_file)
            .finish_non_exhaustive()
    }
}
