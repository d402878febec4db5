//! The supervisor restarts processes that crash or hang.
//!
//! The first process of a service becomes the supervisor, and keeps its process id. It holds the
//! listeners, starts the processes that serve, and starts them again when they exit, hang, or do
//! not become ready. A serving process sees in the supervisor what it sees in systemd: a socket
//! activator that passes listeners (sd_listen_fds(3)) and takes notifications (sd_notify(3)). So
//! any program that speaks these two protocols can be supervised.
//!
//! | file | what it does |
//! |---|---|
//! | [`fleet`] | the policy, as a value: when processes are started, restarted, stopped, given up |
//! | [`run`] | the loop: turns what happens into events of the fleet, and does what it decides |
//! | [`notifications`] | the notifications of processes |
//! | [`control`], [`status`] | the control socket: requests, and the answers in JSON |
//! | [`listeners`] | holds the listeners |
//! | [`spawn`] | the environment and the descriptors of a new process |
//! | [`ancestry`] | whether a process descends from the supervisor |
//! | [`stragglers`], [`cleanup`] | end what a process leaves behind |
//! | [`thread_report`] | what the threads of a hung process wait for |
//! | [`upgrade`], [`dry_run`] | the supervisor replaces itself, after a dry run |
//! | [`snapshot`] | the fleet, as the upgrade passes it on |
//! | [`logger`] | logs to standard error if the program has set no logger |

mod ancestry;
mod cleanup;
mod control;
mod dry_run;
mod fleet;
mod listeners;
mod logger;
mod notifications;
mod run;
mod snapshot;
mod spawn;
mod status;
mod stragglers;
mod thread_report;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use crate::listener::Bind;
use crate::restart::{Program, Restart, own_launch};
use crate::sys::{self, SignalFd};
use crate::wire::Launch;

use dry_run::perform_dry_run;
use fleet::Policy;
use fleet::backoff::BackoffSettings;
use run::Run;
use upgrade::resume;

/// Supervises this program with the default settings, see [`Supervisor`].
///
/// # Errors
///
/// As [`Supervisor::supervise`].
pub fn supervise() -> io::Result<Restart> {
    Supervisor::new().supervise()
}

/// Keeps a service running: holds its listeners, and restarts processes that crash or hang.
///
/// The process that calls [`supervise`](Self::supervise) becomes the supervisor. It runs no more
/// code of the program, and starts the program again for each process that is to serve. In these,
/// the call returns the [`Restart`] for the server. So make it the first call in `main`.
///
/// - **A process that exits is restarted**, whether it crashed, was killed, or exited with success
///   without having been asked to: immediately if it has served, and else after growing delays, see
///   [`backoff`](Self::backoff). The supervisor holds the listeners:
///   clients wait in the kernel's queue meanwhile, and none is refused. Serving processes need no
///   privileges to listen.
/// - **A process that hangs is aborted and restarted**, by default after 60 s, see
///   [`watchdog`](Self::watchdog). The acceptor and the keeper have to react, and the workers have
///   to make progress, see [`Builder::stuck_after`](crate::Builder::stuck_after).
/// - **It can be process 1 of a container**: it reaps all processes that lose their parent.
///
/// It logs with the logger that the program has set, or to standard error if there is none. Linux
/// only.
///
/// # Signals
///
/// | signal | effect |
/// |---|---|
/// | SIGTERM, SIGINT | stop when all requests are finished, at most after [`stop_timeout`] |
/// | SIGQUIT, second SIGINT | stop at once: requests are cut off; processes are killed after 5 s |
/// | SIGHUP | graceful restart of the serving processes, one after another |
/// | SIGUSR1 | passed on to the serving processes |
/// | SIGUSR2 | upgrade: the supervisor executes its program again, in the same process |
/// | SIGTSTP (Ctrl-Z) | the supervisor stops, and its processes with it, until SIGCONT (`fg`) |
/// | SIGHUP of a terminal that is closed | as SIGTERM; nothing, if SIGHUP was ignored at the start |
///
/// The supervisor handles these signals whatever the process that started it ignored, and the
/// processes that it starts ignore and block none. So a service that was started with `nohup` is
/// restarted by `kill -HUP`, and goes on when its terminal is closed.
///
/// An upgrade leaves the serving processes alone. The supervisor then has the settings of the new
/// program, with these exceptions: the control socket and the listeners stay where they are, and
/// processes that serve already keep their watchdog limit, as do their successors.
///
/// # Process groups
///
/// Each process that the supervisor or a predecessor starts is the leader of a process group of its
/// own. As with systemd's `KillMode=mixed`, a stop or a restart sends SIGTERM to this process only,
/// so that it can let its children finish their work. When it has exited, however that came, what is
/// left of its group gets SIGTERM, and SIGKILL after [`stop_timeout`]. SIGKILL goes to the whole
/// group. When the last process has exited in a stop, everything else that descends from it gets the
/// same, daemons as well that have left the group. If a process has to be killed for this, the exit
/// code is 1. This needs /proc (proc(5)).
///
/// Children that the process had before it became the supervisor are left alone, such as that of a
/// script that does `sidecar & exec handover run …`, and so are their children.
///
/// [`process_groups(false)`](Self::process_groups) turns all of this off: the processes are then in
/// the supervisor's group, which a terminal's signals reach as a whole, and only the processes
/// themselves are ended.
///
/// # In a terminal
///
/// | event | effect |
/// |---|---|
/// | Ctrl-C, Ctrl-\ | SIGINT or SIGQUIT for the supervisor alone, which sends its processes SIGTERM or SIGQUIT: once |
/// | Ctrl-Z, `fg`, `bg` | the supervisor and its processes stop and go on; no watchdog aborts them for it |
/// | the terminal is closed | a stop |
/// | a process reads standard input | end-of-file: if this is the terminal, the processes get /dev/null instead |
///
/// # If the supervisor dies
///
/// A server of this crate sees the end of the supervisor, finishes its requests within its
/// [`drain_timeout`](crate::Builder::drain_timeout), and exits. Other programs, and what a process
/// leaves behind, are ended by the guardian, a small process that the supervisor starts first
/// (`handover-guard` in ps(1)): SIGTERM for each process and then for the rest of its group, and
/// SIGKILL after [`stop_timeout`]. It does so for programs as well that have changed their user
/// (su(1), a set-user-ID bit), for which the kernel's PR_SET_PDEATHSIG does nothing. Process 1 of a
/// container has no guardian: the kernel ends the others with it.
///
/// # Exit codes
///
/// | code | the supervisor exits with it |
/// |---|---|
/// | 0 | after a stop, or when all processes have succeeded: see [`restart_after_success`] |
/// | 1 | after a stop in which processes, or what they left behind, had to be killed |
/// | 78 | when all processes have exited with this code: see [`no_restart`] |
///
/// [`no_restart`]: Self::no_restart
/// [`restart_after_success`]: Self::restart_after_success
/// [`stop_timeout`]: Self::stop_timeout
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

/// The settings, each as the setter of the same name says if not said here.
#[derive(Clone, Debug)]
struct Settings {
    policy: Policy,
    /// The path of the control socket.
    control: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    working_directory: Option<PathBuf>,
    environment_file: Option<PathBuf>,
    listen: Vec<Bind>,
    process_groups: bool,
    /// The program is not this one (`Supervisor::run`), and may expect blocking listeners.
    runs_other_program: bool,
}

impl Settings {
    fn check(&self) -> io::Result<()> {
        let problem = match &self.policy {
            Policy { processes, .. } if *processes > MOST_PROCESSES => {
                format!("processes must be at most {MOST_PROCESSES}")
            }
            Policy { ready_timeout, .. } if ready_timeout.is_zero() => {
                "ready_timeout must be more than zero (Duration::MAX is no limit)".to_owned()
            }
            _ => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }
}

/// The largest number of serving processes. More processes do not accept faster from one listener.
const MOST_PROCESSES: usize = 1024;

/// The exit code of a program whose configuration is wrong (EX_CONFIG in sysexits.h(3head)).
const EX_CONFIG: i32 = 78;

impl Supervisor {
    /// A supervisor with the default settings.
    pub fn new() -> Self {
        Self(Settings {
            policy: Policy {
                processes: 1,
                ready_timeout: Duration::from_secs(60),
                ready_after: None,
                stop_timeout: Duration::from_secs(60),
                watchdog: Some(Duration::from_secs(60)),
                abort_timeout: Duration::from_secs(5),
                backoff: BackoffSettings {
                    first: Duration::from_millis(100),
                    longest: Duration::from_secs(30),
                },
                max_draining: 4,
                restart_after_success: true,
                no_restart_code: Some(EX_CONFIG),
                starts_all: false,
            },
            control: None,
            pid_file: None,
            working_directory: None,
            environment_file: None,
            listen: Vec::new(),
            process_groups: true,
            runs_other_program: false,
        })
    }

    /// How many processes serve, on the same listeners. If one crashes, only its clients are
    /// affected; a graceful restart replaces one after another. From 1 to 1024. Defaults to 1.
    pub fn processes(mut self, count: usize) -> Self {
        self.0.policy.processes = count.max(1);
        self
    }

    /// How long a new process may take to become ready. A process that takes longer is aborted, and
    /// another one is started. (In a graceful restart of a server of this crate,
    /// [`Restart::ready_timeout`] applies.) More than zero. Defaults to 60 s.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.0.policy.ready_timeout = timeout;
        self
    }

    /// For programs that do not notify READY=1 (sd_notify(3)): a process is ready when it has run
    /// for this long. Replaces [`ready_timeout`](Self::ready_timeout). Defaults to `None`: a
    /// process is ready when it notifies READY=1.
    pub fn ready_after(mut self, running_for: impl Into<Option<Duration>>) -> Self {
        self.0.policy.ready_after = running_for.into();
        self
    }

    /// How long processes may take to exit when they are stopped; then they are killed. A process
    /// can extend this by EXTEND_TIMEOUT_USEC (sd_notify(3)), as a server does for its own
    /// [`drain_timeout`](crate::Builder::drain_timeout). Defaults to 60 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.0.policy.stop_timeout = timeout;
        self
    }

    /// How long a serving process may make no progress, and a quarter longer, since a process and
    /// the supervisor may have been stopped together (SIGSTOP, a frozen container). Then what its
    /// threads wait for is logged, and it is aborted (SIGABRT, which leaves a core dump where these
    /// are enabled) and restarted. `None` or zero: for ever. Defaults to 60 s.
    pub fn watchdog(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.0.policy.watchdog = limit.into().filter(|limit| !limit.is_zero());
        self
    }

    /// How long an aborted process may take to exit; then it is killed. At least 10 ms. Defaults to
    /// 5 s.
    pub fn abort_timeout(mut self, timeout: Duration) -> Self {
        // Zero would leave no time to reap the process.
        self.0.policy.abort_timeout = timeout.max(Duration::from_millis(10));
        self
    }

    /// The delays before a process is started again. After a process that served, the start is
    /// immediate; if the process served for less than `first`, the start waits as long as the process
    /// served. After a process that was never ready, the start waits for `first`, and each further
    /// start twice as long as the one before, up to `longest`, each shortened by a random part of up
    /// to 20 %. After five such processes in a row, the delay is `longest`. Defaults to 0.1 s and
    /// 30 s.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.0.policy.backoff.first = first;
        self.0.policy.backoff.longest = longest;
        self
    }

    /// How many processes of one slot may finish their requests at the same time, after others have
    /// replaced them. A restart beyond that waits until one of them has exited, at most for
    /// [`stop_timeout`](Self::stop_timeout). At least 1. Defaults to 4.
    pub fn max_draining(mut self, processes: usize) -> Self {
        self.0.policy.max_draining = processes.max(1);
        self
    }

    /// Whether a process that exits with code 0, without having been asked to, is started again. If
    /// not, the supervisor exits with code 0 when no process is left. Defaults to true.
    pub fn restart_after_success(mut self, on: bool) -> Self {
        self.0.policy.restart_after_success = on;
        self
    }

    /// The exit code of a process that must not be restarted. When no process is left, the
    /// supervisor exits with this code. `None`: there is no such code. Defaults to 78, EX_CONFIG:
    /// the configuration is wrong.
    pub fn no_restart(mut self, code: impl Into<Option<i32>>) -> Self {
        self.0.policy.no_restart_code = code.into();
        self
    }

    /// The path of the control socket, through which the command `handover` reaches the supervisor:
    /// a Unix socket for the supervisor's user and root only. A request is one of the lines
    /// `status`, `restart`, `restart wait`, `stop`, `upgrade` and `upgrade wait`; the answer is a
    /// line of JSON. Defaults to none.
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.control = Some(path.into());
        self
    }

    /// A file that holds the supervisor's process id, which an upgrade does not change. Defaults to
    /// none.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.pid_file = Some(path.into());
        self
    }

    /// The working directory of serving processes, looked up at each start. Defaults to that of the
    /// supervisor when it was started, by the name in `PWD` if that names this directory: if `PWD` is
    /// `/srv/app/current`, a symbolic link, a process is started where the link leads by then, and so
    /// is a program that was started by a relative path. If there is no such directory, an error is
    /// logged, and the process gets the directory of the supervisor.
    pub fn working_directory(mut self, dir: impl Into<PathBuf>) -> Self {
        self.0.working_directory = Some(dir.into());
        self
    }

    /// A file with environment variables for serving processes, read at each start. They replace
    /// those of the same names. The format is that of systemd's `EnvironmentFile=`
    /// (systemd.exec(5)). If the file cannot be read, or a line is not understood, the start fails
    /// with this reason. Defaults to none.
    pub fn environment_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.environment_file = Some(path.into());
        self
    }

    /// Adds a listener for a program that binds none itself ([`run`](Self::run)). The listeners of
    /// a server need not be named here: the supervisor binds and holds what a process asks for by
    /// [`Builder::listen`](crate::Builder::listen). Defaults to none.
    pub fn listen(mut self, addr: impl Into<Bind>) -> Self {
        self.0.listen.push(addr.into());
        self
    }

    /// Whether each process that the supervisor starts is in a process group of its own, which is
    /// ended with it. Defaults to true. See [Process groups](Self#process-groups).
    pub fn process_groups(mut self, on: bool) -> Self {
        self.0.process_groups = on;
        self
    }

    /// Supervises this program. Returns only in the serving processes. In the supervisor, it ends
    /// the process, see [Exit codes](Self#exit-codes).
    ///
    /// Call it early in `main`, on the main thread, before there are other threads.
    ///
    /// # Errors
    ///
    /// When the supervisor cannot start: a setting is not valid, its sockets or files cannot be
    /// made, or the system is not Linux.
    pub fn supervise(self) -> io::Result<Restart> {
        match own_launch() {
            Ok(Some(Launch::Successor { .. } | Launch::Serve { .. })) => {}
            // The restart fails, for this reason.
            Err(error) if error.by_predecessor => {}
            launch => {
                let launch = launch.map_err(|error| io::Error::other(error.text))?;
                let code = self.be_supervisor(Program::of_this_process()?, launch)?;
                process::exit(code);
            }
        }
        let mut restart = Restart::new().max_draining(self.0.policy.max_draining);
        if let Some(dir) = self.0.working_directory {
            restart = restart.working_directory(dir);
        }
        if let Some(path) = self.0.environment_file {
            restart = restart.environment_file(path);
        }
        Ok(restart)
    }

    /// Supervises another program, which takes its listeners as systemd passes them
    /// (sd_listen_fds(3)). The first argument is the program: a path, or a name on the search path.
    /// Returns the exit code, see [Exit codes](Self#exit-codes).
    ///
    /// # Errors
    ///
    /// As [`supervise`](Self::supervise), and when there is no such program.
    pub fn run(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> io::Result<i32> {
        let program = Program::find(args.into_iter().map(Into::into).collect())?;
        if !sys::file::is_executable(program.path()) {
            let text = format!("there is no program {}", program.path().display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        self.0.runs_other_program = true;
        self.0.policy.starts_all = true;
        let launch = own_launch().map_err(|error| io::Error::other(error.text))?;
        self.be_supervisor(program, launch)
    }

    fn be_supervisor(self, mut program: Program, launch: Option<Launch>) -> io::Result<i32> {
        if !sys::supervision::IS_SUPPORTED {
            let text = "supervision is not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        self.0.check()?;
        logger::install();
        if let Some(dir) = &self.0.working_directory {
            program.set_working_directory(dir);
        }
        if let Some(path) = &self.0.environment_file {
            program.set_environment_file(path.clone());
        }
        let run = match launch {
            // A supervisor that runs another program may be supervised itself.
            None | Some(Launch::Successor { .. } | Launch::Serve { .. }) => {
                Run::new(self.0, program, SignalFd::open()?)?
            }
            Some(Launch::Resume { snapshot }) => {
                resume(self.0, program, SignalFd::open()?, snapshot)?
            }
            Some(Launch::DryRun { snapshot, report }) => {
                perform_dry_run(snapshot, report)?;
                process::exit(0);
            }
        };
        Ok(run.run_until_stopped())
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}
