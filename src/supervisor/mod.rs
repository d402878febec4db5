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
//! | [`settings`] | the settings: defaults, setters, checks |
//! | [`run`] | the loop: turns what happens into events of the fleet, and does what it decides |
//! | [`notifications`] | the notifications of processes |
//! | [`control`], [`status`] | the control socket: requests, and the answers in JSON |
//! | [`listeners`] | holds the listeners |
//! | [`lanes`] | tells a process which other process gets its connections |
//! | [`bind_rules`] | what is bound for processes of other users |
//! | [`output_files`] | the files of the standard output and error of processes |
//! | [`spawn`] | the environment and the descriptors of a new process |
//! | [`ancestry`] | whether a process descends from the supervisor |
//! | [`disposition`] | whether a process survives a signal |
//! | [`stragglers`], [`cleanup`] | end what a process leaves behind |
//! | [`watched`] | the handles and groups of processes, and the guardian |
//! | [`thread_report`] | what the threads of a hung process wait for |
//! | [`upgrade`], [`dry_run`] | the supervisor replaces itself, after a dry run |
//! | [`stop_signal`] | the signal that has a process finish its requests and exit |
//! | [`snapshot`] | the fleet, as the upgrade passes it on |
//! | [`logger`], [`log_format`] | the log, if the program has set no logger |

mod ancestry;
mod bind_rules;
mod cleanup;
mod closer;
mod control;
mod discarder;
mod disposition;
mod dry_run;
mod fleet;
mod foreign_senders;
mod lanes;
mod listeners;
mod log_format;
mod logger;
mod notifications;
mod output_files;
mod run;
mod settings;
mod snapshot;
mod spawn;
mod status;
mod stop_signal;
mod stragglers;
mod thread_report;
mod upgrade;
mod watch;
mod watched;

use std::ffi::OsString;
use std::io;
use std::process;

use crate::log;
use crate::restart::{Program, Restart, own_launch};
use crate::start_error::StartError;
use crate::sys::{self, SignalFd};
use crate::wire::Launch;

use dry_run::perform_dry_run;
use run::Run;
use settings::Settings;
use upgrade::resume;

pub use log_format::LogFormat;
pub use settings::NotifyAccess;
pub use stop_signal::{StopSignal, StopSignalError};

/// Supervises this program with the default settings, see [`Supervisor`].
///
/// # Errors
///
/// As [`Supervisor::supervise`].
pub fn supervise() -> Result<Restart, StartError> {
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
/// Linux and Windows. What differs on Windows is [below](Self#windows).
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
/// | SIGUSR1 | reopen log files: those of the [output](Self::stderr_file), and SIGUSR1 is sent to each serving process that it does not end |
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
/// whole group. When the last process has exited in a stop, everything else that descends from it
/// gets the same, daemons as well that have left the group. If a process has to be killed for this,
/// the exit code is 1. This needs /proc (proc(5)).
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
/// (su(1), a set-user-ID bit), for which the kernel's PR_SET_PDEATHSIG does nothing. The guardian
/// leaves the SIGTERM for a process with the user and the groups of its start to the kernel. If such
/// a process has cancelled that signal, by prctl(2) or by being another user for a while, it gets
/// SIGKILL without SIGTERM. Process 1 of a container has no guardian: the kernel ends the others
/// with it.
///
/// # Windows
///
/// | elsewhere | on Windows |
/// |---|---|
/// | the control socket | a named pipe: `\\.\pipe\app`, or the name `app` alone. Only the user of the supervisor, administrators and the system can open it, from this machine only; programs of integrity level medium cannot if the supervisor has a higher one |
/// | NOTIFY_SOCKET | the name of a pipe, with the same protection; a program opens the pipe, and writes all lines of a notification in one call |
/// | listeners by number (sd_listen_fds(3)) | in a table that only servers of this crate read: other programs get no listeners |
/// | SIGTERM, SIGQUIT, SIGHUP and SIGUSR1 for a process | event objects that a server of this crate makes. Another program gets Ctrl-Break; a program to which Ctrl-Break cannot be sent alone, as in a service or without [`process_groups`], is killed. After Ctrl-C in the console has reached such a program, a graceful stop kills it only at the stop time-out, and a stop now at once |
/// | signals to the supervisor | event objects, see [`event_prefix`](Self::event_prefix), and the events of its console |
/// | SIGABRT, SIGKILL | TerminateProcess, with the exit codes 3 and 1 |
/// | the guardian | a job object: when the supervisor dies, all processes that it or its processes have started end at that moment, with their requests |
/// | process groups | for Ctrl-Break only: what a process leaves behind ends with the supervisor |
/// | [`user`], [`group`], [`control_mode`], [`control_group`], [`stdout_file`], [`stderr_file`] | errors of the start |
/// | an upgrade | refused: stop the supervisor, and start the new program |
/// | SIGTSTP | none |
///
/// [`process_groups`]: Self::process_groups
/// [`user`]: Self::user
/// [`group`]: Self::group
/// [`control_mode`]: Self::control_mode
/// [`control_group`]: Self::control_group
/// [`stdout_file`]: Self::stdout_file
/// [`stderr_file`]: Self::stderr_file
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

impl Supervisor {
    /// A supervisor with the default settings.
    pub fn new() -> Self {
        Self(Settings::default())
    }

    /// Supervises this program. Returns only in the serving processes. In the supervisor, it ends
    /// the process, see [Exit codes](Self#exit-codes).
    ///
    /// Call it early in `main`, on the main thread, before there are other threads.
    ///
    /// # Errors
    ///
    /// When the supervisor cannot start: a setting is not valid, its sockets or files cannot be
    /// made, or the system has no supervisor.
    pub fn supervise(self) -> Result<Restart, StartError> {
        match own_launch() {
            Ok(Some(Launch::Successor { .. } | Launch::Serve { .. })) => {}
            // The restart fails, for this reason.
            Err(error) if error.by_predecessor => {}
            launch => {
                let launch = launch.map_err(|error| io::Error::other(error.text))?;
                let code = self.be_supervisor(Program::of_this_process()?, launch)?;
                #[cfg(feature = "windows-service")]
                crate::service_manager::report_end(code as u32);
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
    pub fn run(
        mut self,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Result<i32, StartError> {
        let program = Program::find(args.into_iter().map(Into::into).collect())?;
        if !sys::file::is_executable(program.path()) {
            let text = format!("there is no program {}", program.path().display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text).into());
        }
        self.0.runs_other_program = true;
        self.0.policy.starts_all = true;
        let launch = own_launch().map_err(|error| io::Error::other(error.text))?;
        Ok(self.be_supervisor(program, launch)?)
    }

    fn be_supervisor(mut self, mut program: Program, launch: Option<Launch>) -> io::Result<i32> {
        if !sys::supervision::IS_SUPPORTED {
            let text = "supervision is not supported on this system: start the server itself, or by \
                        the system's service manager";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        self.0.check()?;
        self.0.find_identity()?;
        if let Some(login) = self.0.identity.as_ref().and_then(|own| own.login.as_ref()) {
            program.set_login(login);
        }
        if let Some(uid) = self.0.user_id() {
            program.set_user(uid);
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
        let signals = SignalFd::open(self.0.parsed_event_prefix().as_ref())?;
        logger::install(self.0.log_format, self.0.log_to_file);
        if let Some(names) = signals.event_names() {
            log::info!("the names of the event objects begin with {names}");
        }
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
