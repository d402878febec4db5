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
//! | [`bind_rules`] | what is bound for processes of other users |
//! | [`spawn`] | the environment and the descriptors of a new process |
//! | [`ancestry`] | whether a process descends from the supervisor |
//! | [`disposition`] | whether a process survives a signal |
//! | [`stragglers`], [`cleanup`] | end what a process leaves behind |
//! | [`thread_report`] | what the threads of a hung process wait for |
//! | [`upgrade`], [`dry_run`] | the supervisor replaces itself, after a dry run |
//! | [`stop_signal`] | the signal that has a process finish its requests and exit |
//! | [`snapshot`] | the fleet, as the upgrade passes it on |
//! | [`logger`], [`log_format`] | the log, if the program has set no logger |

mod ancestry;
mod bind_rules;
mod cleanup;
mod control;
mod disposition;
mod dry_run;
mod fleet;
mod listeners;
mod log_format;
mod logger;
mod notifications;
mod run;
mod snapshot;
mod spawn;
mod status;
mod stop_signal;
mod stragglers;
mod thread_report;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use crate::listener::Bind;
use crate::log;
use crate::restart::{Program, Restart, own_launch};
use crate::sys::{self, Identity, Signal, SignalFd};
use crate::wire::Launch;

use dry_run::perform_dry_run;
use fleet::Policy;
use fleet::backoff::BackoffSettings;
use fleet::recycling::RecyclingSettings;
use run::Run;
use upgrade::resume;

pub use log_format::LogFormat;
pub use stop_signal::{StopSignal, StopSignalError};

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
/// Linux only.
///
/// # Log
///
/// The supervisor logs with the logger that the program has set before the call. Such a logger must
/// not block, or the supervisor blocks with it. If there is none, records of level "info" and above
/// are lines on standard error, see [`log_format`](Self::log_format). If nobody reads them, 1023
/// lines are kept, and further ones are dropped and counted: the supervisor does not wait. At its
/// end and before an upgrade, it waits for up to a second until the lines are read.
///
/// # Signals
///
/// | signal | effect |
/// |---|---|
/// | SIGTERM, SIGINT | stop when all requests are finished, at most after [`stop_timeout`] |
/// | SIGQUIT, second SIGTERM or SIGINT | stop at once: requests are cut off; SIGKILL after 5 s |
/// | SIGHUP | graceful restart of the serving processes, one after another |
/// | SIGUSR1 | reopen log files: SIGUSR1 is sent to each serving process that it does not end |
/// | SIGUSR2 | upgrade: the supervisor executes its program again, in the same process |
/// | SIGTSTP (Ctrl-Z) | the supervisor stops, and its processes with it, until SIGCONT (`fg`) |
/// | SIGHUP of a terminal that is closed | as SIGTERM; nothing, if SIGHUP was ignored at the start |
///
/// The supervisor handles these signals whatever the process that started it ignored, and the
/// processes that it starts ignore and block none. So a service that was started with `nohup` is
/// restarted by `kill -HUP`, and goes on when its terminal is closed.
///
/// SIGUSR1 ends a process that has no handler for SIGUSR1. So the supervisor sends SIGUSR1 only to
/// a process that has been ready and that handles, ignores or blocks SIGUSR1 according to /proc.
/// For another process that has been ready, the supervisor logs a warning.
///
/// An upgrade leaves the serving processes alone. The supervisor then has the settings of the new
/// program, with these exceptions: the control socket and the listeners stay where they are,
/// processes that serve already keep their watchdog limit, as do their successors, and a number of
/// processes that was asked for at run time (`handover scale`) stays until the supervisor ends.
///
/// # Process groups
///
/// Each process that the supervisor or a predecessor starts is the leader of a process group of its
/// own. As with systemd's `KillMode=mixed`, a stop or a restart sends its signal to this process
/// only, so that it can let its children finish their work. When it has exited, however that came,
/// what is left of its group gets SIGTERM, and SIGKILL after [`stop_timeout`]. SIGKILL goes to the
/// whole group. When the last process has exited in a stop, everything else that descends from it gets the
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
/// | 69 | when all slots are given up: see [`give_up_after`] |
/// | 78 | when all processes have exited with this code: see [`no_restart`] |
///
/// [`give_up_after`]: Self::give_up_after
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

/// Whose notifications count for a process that is supervised, as `NotifyAccess=` of
/// systemd.service(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotifyAccess {
    /// Those of the process that the supervisor has started, and of servers of this crate.
    Main,
    /// Also those of the descendants of that process, for example of a server that a wrapper script
    /// has started. A descendant can notify that the process is ready, needs more time or makes
    /// progress (READY, EXTEND_TIMEOUT_USEC, WATCHDOG, STATUS). MAINPID and STOPPING of a
    /// descendant are ignored: signals go to the process that the supervisor has started, and the
    /// exit of that process counts. A descendant must run until the supervisor has read its
    /// notification, as systemd-notify(1) does.
    #[default]
    All,
}

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
    /// What processes of other users can have bound.
    allowed_binds: Vec<Bind>,
    user: Option<String>,
    group: Option<String>,
    no_new_privileges: bool,
    /// What `user` and `group` mean on this system; `None` if neither is set.
    identity: Option<Identity>,
    control_mode: Option<u32>,
    control_group: Option<String>,
    log_format: LogFormat,
    notify_access: NotifyAccess,
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
            _ => {
                let binds = self.allowed_binds.iter();
                let mut bad = binds.filter(|bind| bind.to_request().is_none());
                match bad.next() {
                    Some(bind) => format!("allow_bind: no address that can be bound: {bind:?}"),
                    None => return Ok(()),
                }
            }
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    /// Looks up the names of users and groups.
    fn find_identity(&mut self) -> io::Result<()> {
        if let Some(group) = &self.control_group {
            sys::supervision::find_group(group)?;
        }
        let (user, group) = (self.user.as_deref(), self.group.as_deref());
        if user.is_some() || group.is_some() {
            let identity = sys::supervision::find_identity(user, group, self.no_new_privileges)?;
            self.identity = Some(identity);
        }
        Ok(())
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
                recycling: RecyclingSettings::default(),
                restart_after_success: true,
                no_restart_code: Some(EX_CONFIG),
                give_up_after: None,
                stop_signal: Signal::Terminate,
                restart_signal: None,
                starts_all: false,
            },
            control: None,
            pid_file: None,
            working_directory: None,
            environment_file: None,
            listen: Vec::new(),
            allowed_binds: Vec::new(),
            user: None,
            group: None,
            no_new_privileges: true,
            identity: None,
            control_mode: None,
            control_group: None,
            log_format: LogFormat::Auto,
            notify_access: NotifyAccess::default(),
            process_groups: true,
            runs_other_program: false,
        })
    }

    /// How many processes serve, on the same listeners. If one crashes, only its clients are
    /// affected; a graceful restart replaces one after another. From 1 to 1024. The command
    /// `handover scale` changes the number at run time. Defaults to 1.
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

    /// After how many failures in a row the supervisor gives up a slot. A failure is a process that
    /// exits before it is ready, or that cannot be started. In a slot that was given up, only a
    /// graceful restart or `handover scale` starts a process, with the same number of attempts.
    /// When no process is left, the supervisor exits with code 69 (EX_UNAVAILABLE in
    /// sysexits.h(3head)), so that the service manager can react. At least 1. `None`: no limit.
    /// Defaults to `None`.
    pub fn give_up_after(mut self, processes: impl Into<Option<u32>>) -> Self {
        self.0.policy.give_up_after = processes.into().map(|count| count.max(1));
        self
    }

    /// The signal that has a process finish its requests and exit, for programs of other kinds
    /// ([`run`](Self::run)): SIGQUIT for Unicorn, SIGWINCH for Apache httpd. To stop a process at
    /// once, the supervisor sends SIGQUIT if `stop_signal` is SIGTERM, and SIGTERM if not. A server
    /// of this crate needs SIGTERM. Defaults to SIGTERM.
    pub fn stop_signal(mut self, signal: StopSignal) -> Self {
        self.0.policy.stop_signal = signal.0;
        self
    }

    /// The signal that has a process finish its requests and exit when another one has replaced it in
    /// a graceful restart, for programs which distinguish this from a stop. As systemd's
    /// `RestartKillSignal=`. Servers of this crate, which start their successors themselves, get
    /// none. Defaults to `None`: [`stop_signal`](Self::stop_signal).
    pub fn restart_signal(mut self, signal: impl Into<Option<StopSignal>>) -> Self {
        self.0.policy.restart_signal = signal.into().map(|signal| signal.0);
        self
    }

    /// How many processes of one slot may finish their requests at the same time, after others have
    /// replaced them. A restart beyond that waits until one of them has exited, at most for
    /// [`stop_timeout`](Self::stop_timeout). At least 1. Defaults to 4.
    pub fn max_draining(mut self, processes: usize) -> Self {
        self.0.policy.max_draining = processes.max(1);
        self
    }

    /// How long a process serves before it is replaced gracefully, as in a restart: the successor
    /// serves before the old process stops. Processes are replaced one at a time. The time is
    /// shortened by up to a tenth, so that processes that were started together are not replaced
    /// together. If the replacement fails, the old process goes on serving, and another attempt
    /// follows after 60 s. `None` or zero: no limit. Defaults to `None`.
    pub fn recycle_after(mut self, serving_for: impl Into<Option<Duration>>) -> Self {
        let limit = serving_for.into().filter(|limit| !limit.is_zero());
        self.0.policy.recycling.recycle_after = limit;
        self
    }

    /// How many bytes of memory a serving process may occupy before it is replaced, as by
    /// [`recycle_after`](Self::recycle_after). The supervisor reads the resident size in
    /// /proc/PID/statm every 5 s. That size includes pages that are shared with other processes.
    /// (smaps_rollup separates shared pages, but halts a large process for milliseconds.) `None` or
    /// zero: no limit. Defaults to `None`.
    pub fn recycle_above(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.0.policy.recycling.recycle_above = bytes.into().filter(|bytes| *bytes > 0);
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
    /// a Unix socket, by default for the supervisor's user and root only. If its file is removed or
    /// replaced, the socket is bound again within 5 s, unless the path is in use. A request is one
    /// of the lines `status`, `restart`, `restart wait`, `scale N`, `scale N wait`, `reopen`,
    /// `stop`, `upgrade` and `upgrade wait`; the answer is a line of JSON. Defaults to none.
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.control = Some(path.into());
        self
    }

    /// The mode of the control socket's file, such as `0o660`. Who may write to the file can stop the
    /// service. Defaults to `0o600`, and to `0o660` with a [`control_group`](Self::control_group).
    pub fn control_mode(mut self, mode: u32) -> Self {
        self.0.control_mode = Some(mode);
        self
    }

    /// The group of the control socket's file, a name or a number: its members can send requests,
    /// and stop the service. A group that does not exist is an error of the start. Defaults to the
    /// supervisor's own group, which has no permission.
    pub fn control_group(mut self, group: impl Into<String>) -> Self {
        self.0.control_group = Some(group.into());
        self
    }

    /// The user as which the serving processes run, a name or a number. Only root's supervisor can
    /// set another user. The supervisor keeps its own user and binds the listeners. Each new
    /// process gives up the privileges before it executes the program. So the program needs no
    /// privileges for port 80, neither at its first start nor after a crash, a restart or an
    /// upgrade.
    ///
    /// The process has the group and the supplementary groups of the user (initgroups(3)), none of
    /// root's capabilities (capabilities(7)), and HOME, LOGNAME, SHELL and USER of the user
    /// database, which [`environment_file`](Self::environment_file) can replace. It must be able to
    /// read and execute the program. See [`no_new_privileges`](Self::no_new_privileges) and
    /// [`allow_bind`](Self::allow_bind). Defaults to the supervisor's own user.
    ///
    /// [`supervise`](Self::supervise) and [`run`](Self::run) fail if there is no such user, or if
    /// only root may set it. A number without an entry in the user database needs a
    /// [`group`](Self::group).
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.0.user = Some(user.into());
        self
    }

    /// The group as which the serving processes run, a name or a number. Without a
    /// [`user`](Self::user), they are in no other group. A group that does not exist is an error, as
    /// with `user`. Defaults to the group of the user.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.0.group = Some(group.into());
        self
    }

    /// With a [`user`](Self::user) or a [`group`](Self::group): whether no program that a serving
    /// process starts gets more privileges than the process has, such as by a set-user-ID bit
    /// (PR_SET_NO_NEW_PRIVS in prctl(2)). Turn this off for programs that use `sudo` or `ping`.
    /// Defaults to true.
    pub fn no_new_privileges(mut self, on: bool) -> Self {
        self.0.no_new_privileges = on;
        self
    }

    /// Adds an address that the supervisor binds for a serving process of another user, see
    /// [`user`](Self::user). Without this setting, the supervisor binds the addresses of
    /// [`listen`](Self::listen), the addresses that a process of the supervisor's user asks for,
    /// and the addresses that the program asks for before it is ready for the first time. So this
    /// setting is needed only for an address that a later version of the program adds. The
    /// supervisor refuses to bind other addresses; the process then tries to bind with its own
    /// privileges. Defaults to none.
    pub fn allow_bind(mut self, addr: impl Into<Bind>) -> Self {
        self.0.allowed_binds.push(addr.into());
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
    /// (systemd.exec(5)). As systemd does, a line that is not `NAME=VALUE` is ignored, and a warning
    /// names the file and the line. If the file cannot be read, has 1 MiB or more, is not UTF-8, has a
    /// null character, or has a quote that is not closed, the start fails with this reason. Defaults
    /// to none.
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

    /// The format of the [log](Self#log), if the program has set no logger. Defaults to
    /// [`LogFormat::Auto`]: with the prefixes of systemd's journal if standard error leads there,
    /// and with times if not.
    pub fn log_format(mut self, format: LogFormat) -> Self {
        self.0.log_format = format;
        self
    }

    /// Whose notifications (sd_notify(3)) count: those of a process alone, or also those of its
    /// descendants. Defaults to [`NotifyAccess::All`].
    pub fn notify_access(mut self, access: NotifyAccess) -> Self {
        self.0.notify_access = access;
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
        let mut restart = Restart::inherit()?.max_draining(self.0.policy.max_draining);
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

    fn be_supervisor(mut self, mut program: Program, launch: Option<Launch>) -> io::Result<i32> {
        if !sys::supervision::IS_SUPPORTED {
            let text = "supervision is not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        self.0.check()?;
        self.0.find_identity()?;
        if let Some(login) = self.0.identity.as_ref().and_then(|own| own.login.as_ref()) {
            program.set_login(login);
        }
        if let Some(dir) = &self.0.working_directory {
            program.set_working_directory(dir);
        }
        if let Some(path) = &self.0.environment_file {
            program.set_environment_file(path.clone());
        }
        if let Some(Launch::DryRun { snapshot, report }) = launch {
            perform_dry_run(snapshot, report)?;
            process::exit(0);
        }
        let signals = SignalFd::open()?;
        logger::install(self.0.log_format);
        let run = match launch {
            Some(Launch::Resume { snapshot }) => resume(self.0, program, signals, snapshot),
            // A supervisor that runs another program may be supervised itself.
            _ => Run::new(self.0, program, signals),
        };
        let code = run.map(Run::run_until_stopped);
        log::flush();
        code
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::fleet::Fleet;
    use super::fleet::event::{Effect, Event};
    use super::*;

    #[test]
    fn a_stop_and_a_stop_at_once_have_the_signals_that_the_settings_say() {
        for (stop_signal, stop, stop_at_once) in [
            (None, Signal::Terminate, Signal::Quit),
            (Some(Signal::Quit), Signal::Quit, Signal::Terminate),
            (Some(Signal::User2), Signal::User2, Signal::Terminate),
        ] {
            let mut supervisor = Supervisor::new();
            if let Some(signal) = stop_signal {
                supervisor = supervisor.stop_signal(StopSignal(signal));
            }
            for (event, signal) in [(Event::Stop, stop), (Event::StopNow, stop_at_once)] {
                let now = Instant::now();
                let mut fleet = Fleet::new(supervisor.0.policy.clone(), now, 0);
                fleet.handle(Event::Tick, now);
                fleet.handle(Event::Started { slot: 0, pid: 7 }, now);
                let effects = fleet.handle(event, now);
                let expected = Effect::Signal { pid: 7, signal };
                assert!(effects.contains(&expected), "{stop_signal:?}: {effects:?}");
            }
        }
    }
}
