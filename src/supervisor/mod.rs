//! The supervisor: what faults comes back by itself.
//!
//! The first process of a service stays, keeps its number, and holds the listeners; it starts the processes that serve,
//! and starts them anew when they end, hang, or do not come up. To them it is what systemd is: it passes listeners on
//! (sd_listen_fds(3)) and hears how they are (sd_notify(3)), so that any program that speaks these can be supervised.
//!
//! [`run`] is its one loop; the other modules are what this loop does: [`processes`] and their [`slot`]s, [`hearing`] what they
//! say, the [`rolling`] restart, its own [`upgrade`], and the [`control`] socket.

mod ancestry;
mod backoff;
mod control;
mod crash_report;
mod listeners;
mod logger;
mod notifications;
mod processes;
mod rolling_restart;
mod run;
mod slot;
mod snapshot;
mod spawn;
mod status;
mod upgrade;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use crate::listener::Bind;
use crate::restart::{Program, Restart, own_launch};
use crate::sys::{self, SignalFd};
use crate::wire::Launch;

use backoff::BackoffSettings;
use run::Run;
use upgrade::{rehearse, resume};

/// Supervises this program with the default settings, see [`Supervisor`].
///
/// # Errors
///
/// As [`Supervisor::supervise`].
pub fn supervise() -> io::Result<Restart> {
    Supervisor::new().supervise()
}

/// Keeps a service running, whatever becomes of the process that serves.
///
/// The process in which [`supervise`](Self::supervise) is called becomes the supervisor, runs no more of the program's code, and
/// starts the program again for each process that is to serve; there the call returns, with the [`Restart`] that the server is to be built with.
/// So make it the first thing in `main`.
///
/// - **A process that ends is started anew**: whether it crashed, was killed, or ended with success without having been
///   asked to. At once the first time, then after 0.1 s, and each time twice as long, up to 30 s; one that has served for a minute is
///   healthy again. The supervisor binds and holds the listeners, so that clients wait in the kernel's queue meanwhile, and nobody is
///   refused; the processes that serve need no privileges for them.
/// - **HeldListener that hangs is ended and started anew**: the watchdog wants to hear that the acceptor and the keeper
///   react, and that the workers make progress, see [`Builder::stuck_after`](crate::Builder::stuck_after).
/// - **SIGHUP restarts gracefully**, as it does without a supervisor; SIGUSR2 has the supervisor replace itself, in place;
///   SIGUSR1 is passed on; SIGTERM and the first SIGINT stop everything when it has finished what it has, SIGQUIT and the second SIGINT at once.
/// - **It is a good init**: as process 1 of a container it buries the processes that nobody waits for.
///
/// A supervisor that replaces itself goes by the settings of its new program. Only what is there already stays: the control
/// socket and listeners where they are, and the watchdog's limit for the processes that serve and their successors.
///
/// The supervisor logs by the logger that is set by then, or to standard error. When it dies itself, the processes that serve
/// finish what they have, and end.
///
/// Linux only.
///
/// # Examples
///
/// ```no_run
/// use handover::{Connection, Next, Server, Supervisor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let restart = Supervisor::new()
///     .control_socket("/run/app.sock")
///     .supervise()?;
/// // From here on, this is a process that serves.
/// let report = Server::builder()
///     .listen("127.0.0.1:7000")
///     .restart(restart)
///     .build(|_: &mut Connection| Ok(Next::Close))?
///     .run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is supervised before `supervise` or `run` is called"]
pub struct Supervisor(Settings);

/// What can be set.
#[derive(Clone, Debug)]
struct Settings {
    processes: usize,
    ready_timeout: Duration,
    /// Programs that do not say when they are ready are when they have lived for so long.
    settle: Option<Duration>,
    stop_timeout: Duration,
    watchdog: Option<Duration>,
    abort_timeout: Duration,
    backoff: BackoffSettings,
    restart_after_success: bool,
    no_restart: Option<i32>,
    control: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    listen: Vec<Bind>,
    /// The program is another one, which may expect its listeners as other activators pass them.
    foreign: bool,
}

/// The exit code of a program whose configuration is wrong (EX_CONFIG in sysexits.h(3head)).
const EX_CONFIG: i32 = 78;

impl Supervisor {
    /// A supervisor with the default settings.
    pub fn new() -> Self {
        Self(Settings {
            processes: 1,
            ready_timeout: Duration::from_secs(60),
            settle: None,
            stop_timeout: Duration::from_secs(60),
            watchdog: Some(Duration::from_secs(60)),
            abort_timeout: Duration::from_secs(5),
            backoff: BackoffSettings {
                first: Duration::from_millis(100),
                longest: Duration::from_secs(30),
                healthy_after: Duration::from_secs(60),
            },
            restart_after_success: true,
            no_restart: Some(EX_CONFIG),
            control: None,
            pid_file: None,
            listen: Vec::new(),
            foreign: false,
        })
    }

    /// How many processes serve, on the same listeners. A crash costs the clients of one of them; a graceful restart
    /// replaces one after another. At least 1. Defaults to 1.
    pub fn processes(mut self, count: usize) -> Self {
        self.0.processes = count.max(1);
        self
    }

    /// How long a process that was started anew may take until it is ready; then it is ended, and that counts as a
    /// death. (For a graceful restart it is [`Restart::ready_timeout`] that counts.) Defaults to 60 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.0.ready_timeout = timeout;
        self
    }

    /// For programs that do not say when they are ready (sd_notify(3)): one that has lived for so long is. Defaults to off.
    pub fn ready_after(mut self, lived: impl Into<Option<Duration>>) -> Self {
        self.0.settle = lived.into();
        self
    }

    /// How long processes may take to stop; then they are killed. A server says, by EXTEND_TIMEOUT_USEC (sd_notify(3)), that
    /// it still has its own [`drain_timeout`](crate::Builder::drain_timeout), and is given that. Defaults to 60 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.0.stop_timeout = timeout;
        self
    }

    /// How long a process that serves may make no progress until it is aborted (SIGABRT, which leaves a core where
    /// cores are on; what its threads wait for is logged) and started anew. `None` is for ever. Defaults to 60 s.
    pub fn watchdog(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.0.watchdog = limit.into().filter(|limit| !limit.is_zero());
        self
    }

    /// How long a process may take to end that was aborted, until it is killed. Defaults to 5 s.
    pub fn abort_timeout(mut self, timeout: Duration) -> Self {
        // At once would leave no time to note that it has ended.
        self.0.abort_timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// How long to wait before a process is started anew for the second time; each further time it is twice as long,
    /// up to `longest`, less up to a fifth by chance. When five in a row have died before they were ready, it is `longest`. Defaults to 0.1 s
    /// and 30 s.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.0.backoff.first = first;
        self.0.backoff.longest = longest;
        self
    }

    /// A process that has served for so long was healthy: if it ends, the next one is started at once. Defaults to 60 s.
    pub fn healthy_after(mut self, served: Duration) -> Self {
        self.0.backoff.healthy_after = served;
        self
    }

    /// Whether a process is started anew that has ended with exit code 0 without having been asked to. If not, and none is left, the
    /// supervisor ends as well. Defaults to true.
    pub fn restart_after_success(mut self, on: bool) -> Self {
        self.0.restart_after_success = on;
        self
    }

    /// The exit code by which a process says that it is of no use to start it again. When none is left, the supervisor ends with this
    /// code. `None` if there is no such code. Defaults to 78, EX_CONFIG: the configuration is wrong.
    pub fn no_restart(mut self, code: impl Into<Option<i32>>) -> Self {
        self.0.no_restart = code.into();
        self
    }

    /// Where the command `handover` and others reach the supervisor: a Unix socket for its own user and root only. It takes a line, `status`,
    /// `restart`, `restart wait`, `stop`, `upgrade` or `upgrade wait`, and answers with a line of JSON. Defaults to none.
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.control = Some(path.into());
        self
    }

    /// A file that holds the supervisor's process id, which stays the same. Defaults to none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.pid_file = Some(path.into());
        self
    }

    /// A listener for programs that only take what they are given. A server's own need not be named here: the supervisor
    /// binds and holds what a process asks for by [`Builder::listen`](crate::Builder::listen). May be called several times.
    pub fn listen(mut self, addr: impl Into<Bind>) -> Self {
        self.0.listen.push(addr.into());
        self
    }

    /// Supervises this program. Returns only in the processes that serve; in the supervisor it ends the process when it
    /// is over, with code 0 after a stop, 1 if something had to be killed for that, or what the last process ended with if none is
    /// to be started again.
    ///
    /// To be called early in `main`, before there are other threads.
    ///
    /// # Errors
    ///
    /// When there can be no supervisor: its sockets or files cannot be made, or the system is not Linux.
    pub fn supervise(self) -> io::Result<Restart> {
        match own_launch() {
            Ok(Some(Launch::Successor { .. } | Launch::Serve { .. })) => {}
            // The restart fails, for this reason.
            Err(error) if error.by_predecessor => {}
            launch => {
                let launch = launch.map_err(io::Error::other)?;
                let code = self.be_supervisor(Program::of_this_process()?, launch)?;
                process::exit(code);
            }
        }
        Ok(Restart::new())
    }

    /// Supervises another program, one that takes its listeners as systemd passes them (sd_listen_fds(3)). The first argument is
    /// the program: a path, or a name on the search path. Returns the exit code when it is over, as [`supervise`](Self::supervise)
    /// has it.
    ///
    /// # Errors
    ///
    /// As [`supervise`](Self::supervise).
    pub fn run(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> io::Result<i32> {
        let program = Program::find(args.into_iter().map(Into::into).collect())?;
        if !sys::file::is_executable(program.path()) {
            let text = format!("there is no program {}", program.path().display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        self.0.foreign = true;
        let launch = own_launch().map_err(io::Error::other)?;
        self.be_supervisor(program, launch)
    }

    fn be_supervisor(self, program: Program, launch: Option<Launch>) -> io::Result<i32> {
        if !sys::supervision::IS_SUPPORTED {
            let text = "supervision is not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        logger::install();
        let run = match launch {
            // A supervisor that runs another program may be supervised itself.
            None | Some(Launch::Successor { .. } | Launch::Serve { .. }) => {
                Run::new(self.0, program, SignalFd::open()?)?
            }
            Some(Launch::Resume { snapshot }) => {
                resume(self.0, program, SignalFd::open()?, snapshot)?
            }
            Some(Launch::Rehearse { snapshot, report }) => {
                let never: Infallible = rehearse(snapshot, report)?;
                match never {}
            }
        };
        Ok(run.run())
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}
