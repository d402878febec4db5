//! Restarts: a new process takes over, and no client notices.
//!
//! The way of it, old process on the left:
//!
//! ```text
//! start the program, with the listeners ─►  Hello
//!                                           build listeners, service, workers; be ready
//!                                       ◄─  Ready
//! Cutover                               ─►  accept
//! pause accepting                       ◄─  Accepting
//! Commit                                ─►  take the pid file and the files of Unix sockets over
//! close the listeners, drain            ◄─  Ack
//! Drained                               ─►
//! ```
//!
//! Up to `Ack` the old process can go on as if nothing had happened, and does so whatever becomes of the new one. Up
//! to `Commit` the new one ends if it is told to; if the old one dies, it serves. The listeners are the same sockets
//! all the time, so that the kernel keeps who connects meanwhile.
//!
//! [`program`] starts the new process, [`inherit`] is what it finds, [`message`] what the two say to each other, and
//! the [`upgrader`] is the thread that does it, in both.

mod bind_request;
mod error;
mod inherited;
mod link;
mod pid_file;
mod program;
mod upgrader;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::listener::{Bind, BindError, Listener};
use crate::sys::{self, Descriptor};

pub(crate) use bind_request::text_of;
pub use error::{RestartError, RestartErrorKind};
pub(crate) use inherited::{
    Inherited, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, SERVE, SUPERVISOR, fd_name, is_successor,
    role,
};
pub(crate) use link::VERSION;
pub(crate) use pid_file::PidFile;
pub(crate) use program::Program;
pub(crate) use upgrader::{Host, Upgrader, UpgraderHandle};

/// Says when the application is ready.
pub(crate) type ReadyWhen =
    Box<dyn FnOnce() -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// Restarts without losing a request, for [`Builder::restart`](crate::Builder::restart).
///
/// SIGHUP, SIGUSR2 or [`Handle::restart`](crate::Handle::restart) starts the program that is on disk by then, by the
/// name and with the arguments that this process was started with, in the directory and with the environment that it had when
/// this was made. The new
/// process gets the listeners, and takes over when it is ready; this one goes on accepting until then, finishes what
/// it has, and ends. If the new process does not come up, nothing has happened, and whoever asked hears why.
///
/// Make it early in `main`, before there are other threads, files, or subprocesses: it takes what the process was
/// started with, be it from its predecessor or from a socket activator such as systemd. Listeners that [`Builder::listen`](crate::Builder::listen)
/// asks for are found among these by name and address, and bound only where there is none; those that nobody asks for are closed.
///
/// If systemd has started the process, it is kept informed (`Type=notify-reload`, or `notify` with an `ExecReload`
/// that sends SIGHUP): see sd_notify(3).
///
/// A new process has SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGUSR2 held back until its server runs, so that none
/// of them kills it before there are handlers; threads and subprocesses that it makes before that inherit this. Until
/// it is ready its standard error is a pipe to the old process, which passes on what it reads there (if that one is
/// killed meanwhile, 64 KiB are kept, and more has to wait until the server is built). One that does not come up is
/// killed half a second after its server has ended.
///
/// While a new process starts, a copy of the old one waits for it, which shares its memory as long as neither writes.
///
/// Only one server of a process can be restarted at a time. Unix only, without Apple's systems.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use successor::{Connection, Next, Restart, Server};
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
pub struct Restart {
    program: io::Result<Program>,
    inherited: Inherited,
    ready_timeout: Duration,
    idle_grace: Duration,
    ready_when: Option<ReadyWhen>,
    passed: Vec<(String, Descriptor)>,
    pid_file: Option<PathBuf>,
    held: BlockedSignals,
}

/// A successor starts with its signals held back. Whatever comes of it, they come through in the end.
pub(crate) struct BlockedSignals(bool);

impl BlockedSignals {
    /// Lets them through. True if one that means a stop has come already.
    pub(crate) fn release(&mut self) -> bool {
        std::mem::take(&mut self.0) && sys::signal::unblock()
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        self.release();
    }
}

impl Restart {
    /// Takes what this process was started with, and records how it was started.
    pub fn new() -> Self {
        let inherited = Inherited::take();
        if let Some(predecessor) = &inherited.predecessor {
            upgrader::greet(predecessor);
        }
        Self {
            held: BlockedSignals(inherited.predecessor.is_some() || inherited.broken.is_some()),
            program: Program::of_this_process(),
            inherited,
            ready_timeout: Duration::from_secs(60),
            idle_grace: Duration::from_secs(10),
            ready_when: None,
            passed: Vec::new(),
            pid_file: None,
        }
    }

    /// How long a successor may take until it is ready; then it is ended, and this process serves on. Defaults to
    /// 60 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// How long a connection that was kept open may say nothing before the process that was replaced closes it. A
    /// client that asks for something within that time is answered, and told by that answer, where the protocol has
    /// the words, not to ask here again. Longer than clients pause, or a request meets the close; at most the
    /// [`drain_timeout`](crate::Builder::drain_timeout) counts. Defaults to 10 s.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.idle_grace = grace;
        self
    }

    /// Called when everything else is ready: nobody is accepted before it has returned, so that it may warm caches, or
    /// see whether what the service needs is there. An error is that of the start; a predecessor serves on, then. It runs
    /// on a thread of its own, for which a stop does not wait.
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

    /// Passes something on to each successor under a name, such as a UDP socket. The successor gets it by
    /// [`inherited`](Self::inherited). Listeners of the server are passed on by themselves.
    pub fn pass(mut self, name: impl Into<String>, descriptor: impl Into<Descriptor>) -> Self {
        self.passed.push((name.into(), descriptor.into()));
        self
    }

    /// What was passed to this process under a name, by its predecessor's [`pass`](Self::pass) or by a socket
    /// activator; `None` the second time. A listener for [`Builder::listener`](crate::Builder::listener) has to be taken
    /// so, by its name, before another one is bound.
    pub fn inherited(&mut self, name: &str) -> Option<Descriptor> {
        self.inherited.remove(name)
    }

    /// A file that holds the serving process's id. It is another error of the start if another process that lives
    /// holds it. It changes hands before the process that was replaced ends. Where several processes serve, it is the
    /// [supervisor's](crate::Supervisor::pid_file) that makes sense. Defaults to none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// How many processes have served before this one, and one more: 1, if it is nobody's successor. A supervisor
    /// counts those as well that it has started anew.
    pub fn generation(&self) -> u64 {
        self.inherited.generation()
    }

    /// What the predecessor's [`Service::export`](crate::Service::export) has left for this process.
    pub fn state(&self) -> Option<&[u8]> {
        self.inherited.predecessor.as_ref()?.state.as_deref()
    }

    /// The inherited listeners for these.
    pub(crate) fn listeners(&mut self, binds: &[&Bind]) -> Vec<Option<Listener>> {
        self.inherited.listeners(binds)
    }

    /// Binds a listener that was not inherited.
    pub(crate) fn bind(&self, bind: Bind) -> Result<Listener, BindError> {
        match self.inherited.supervised {
            Some(_) => bind_request::bind(self.generation(), bind),
            None => bind.bind(),
        }
    }

    /// Closes what was inherited and nobody wants.
    pub(crate) fn close_rest(&mut self) {
        self.inherited.close_rest();
    }

    /// What holds signals back until they have handlers, or are not to be handled here.
    pub(crate) fn take_blocked_signals(&mut self) -> BlockedSignals {
        std::mem::replace(&mut self.held, BlockedSignals(false))
    }

    pub(crate) fn take_ready_when(&mut self) -> Option<ReadyWhen> {
        self.ready_when.take()
    }

    pub(crate) fn grace(&self) -> Duration {
        self.idle_grace
    }

    /// Whether there can be restarts at all.
    pub(crate) fn check(&self) -> io::Result<()> {
        if !sys::process::SUPPORTS_RESTARTS {
            let text = "restarts are not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if let Some(why) = &self.inherited.broken {
            return Err(io::Error::new(io::ErrorKind::Unsupported, why.clone()));
        }
        match &self.program {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = format!("cannot tell what program this is: {error}");
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
            .field("pid_file", &self.pid_file)
            .finish_non_exhaustive()
    }
}
