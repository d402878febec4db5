//! `handover run`: its options, and the supervisor that they make.
//!
//! An option is a field of [`RunArgs`], and a line in [`RunArgs::supervisor`].

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use clap::{Args, value_parser};

use handover::{Bind, LogFormat, NotifyAccess, StopSignal, Supervisor};

use super::CommandResult;
use super::values::{
    NoRestartCode, RestartWhen, delays, listener, log_format, minutes, notify_access, octal,
    seconds,
};

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// An address to listen on, such as 127.0.0.1:8080 or web=unix:/run/web.sock, or for datagrams,
    /// such as dns=udp:0.0.0.0:53 or unixgram:/run/log.sock. May be given several times
    #[arg(long, value_name = "[NAME=]ADDR", value_parser = listener)]
    listen: Vec<Bind>,
    /// Number of serving processes
    #[arg(long, value_name = "N", default_value = "1")]
    processes: NonZeroUsize,
    /// The path of the supervisor's control socket, which is created
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The mode of the control socket, in octal. Defaults to 600, or to 660 with --control-group
    #[arg(long, value_name = "MODE", value_parser = octal, requires = "control")]
    control_mode: Option<u32>,
    /// A group whose members can send requests to the supervisor, and stop the service
    #[arg(long, value_name = "GROUP", requires = "control")]
    control_group: Option<String>,
    /// The user of the program, a name or a number. The supervisor itself stays root
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The group of the program, a name or a number. Defaults to the user's
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// With --user or --group: let the program start others that get more privileges, such as sudo
    #[arg(long)]
    allow_new_privileges: bool,
    /// An address that the supervisor binds for a program that runs as another user, besides the
    /// addresses that the program asks for at its first start. May be given several times
    #[arg(long, value_name = "[NAME=]ADDR", value_parser = listener)]
    allow_bind: Vec<Bind>,
    /// The path of a file to create with the supervisor's process id
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// The prefix of the names of the event objects that stop and restart the supervisor on Windows,
    /// such as Global\shop. Has no effect on other systems. Defaults to Local\ and the name of this
    /// program
    #[arg(long, value_name = "PREFIX")]
    event_prefix: Option<String>,
    /// The working directory of the program. Defaults to the present one, by the name in PWD: if
    /// that leads through a symbolic link, the link is followed at each start
    #[arg(long, value_name = "PATH")]
    working_directory: Option<PathBuf>,
    /// A file with environment variables for the program, as systemd's EnvironmentFile=. It is read
    /// at each start
    #[arg(long, value_name = "PATH")]
    environment_file: Option<PathBuf>,
    /// How many replaced processes may finish their requests at once; a restart beyond that waits
    #[arg(long, value_name = "N", default_value = "4")]
    max_draining: NonZeroUsize,
    /// Replace a process gracefully when it has served for this many minutes, shortened by up to a
    /// tenth. Defaults to no limit
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    recycle_after: Option<Duration>,
    /// Replace a process gracefully when it has served this many requests, shortened by up to a
    /// tenth. Only servers of the crate handover tell how many they have served: there is no effect
    /// on other programs. Defaults to no limit
    #[arg(long, value_name = "N")]
    recycle_after_requests: Option<NonZeroU64>,
    /// Replace a process gracefully when it occupies more than this many MiB of memory (RSS),
    /// looked at every 5 s, and at most once a minute. A process that is larger from the beginning
    /// is replaced when it has doubled. Defaults to no limit
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(1..1 << 40))]
    recycle_above: Option<u64>,
    /// Abort a process that sends no WATCHDOG=1 for this long. Applies after the first WATCHDOG=1.
    /// Defaults to no limit
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    watchdog: Option<Duration>,
    /// A process is ready only when it sends READY=1, see sd_notify(3)
    #[arg(long, conflicts_with = "ready_after")]
    notify: bool,
    /// Whose notifications count: only those of the process that the supervisor starts (main), or
    /// also those of its descendants (all), such as a server that a wrapper script starts
    #[arg(long, value_name = "main|all", value_parser = notify_access, default_value = "all")]
    notify_access: NotifyAccess,
    /// A process is ready when it has run for this long, or sends READY=1 before
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    ready_after: Duration,
    /// With --notify: how long a process may take to send READY=1
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    #[arg(requires = "notify")]
    ready_timeout: Duration,
    /// How long the processes may take to exit in a stop before they are killed
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    stop_timeout: Duration,
    /// The signal by which a process finishes its requests and exits: a name such as QUIT, or a
    /// number. Defaults to TERM
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<StopSignal>,
    /// The signal by which a process finishes its requests and exits when another process has
    /// replaced it in a restart. Defaults to the stop signal
    #[arg(long, value_name = "SIGNAL")]
    restart_signal: Option<StopSignal>,
    /// How long an aborted process may take to exit before it is killed
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    abort_timeout: Duration,
    /// Which processes are started again after an exit without a request to stop: all processes, or
    /// only those that fail
    #[arg(long, value_name = "WHEN", default_value = "always")]
    restart: RestartWhen,
    /// The exit code after which the program is not started again, or "none"
    #[arg(long, value_name = "CODE", default_value = "78")]
    no_restart_code: NoRestartCode,
    /// The shortest and the longest delay before the program is started again, in seconds, if it has
    /// not become ready
    #[arg(long, value_name = "FIRST..LONGEST", value_parser = delays, default_value = "0.1..30")]
    backoff: (Duration, Duration),
    /// Give up when N processes in a row have not become ready: the exit code is 69 if no process
    /// is left. Defaults to never
    #[arg(long, value_name = "N")]
    give_up_after: Option<NonZeroU32>,
    /// The format of the log, on standard error. With "auto", that of systemd's journal if standard
    /// error leads there, and else plain lines with times
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = log_format())]
    log_format: LogFormat,
    /// A file to which the standard error of the program is appended. "handover reopen" opens it
    /// again after a rotation. Defaults to the standard error of the supervisor
    #[arg(long, value_name = "FILE")]
    stderr: Option<PathBuf>,
    /// A file to which the standard output of the program is appended, as with --stderr. It may be
    /// the same file. Defaults to the standard output of the supervisor
    #[arg(long, value_name = "FILE")]
    stdout: Option<PathBuf>,
    /// Append the log of the supervisor to the file of --stderr, too
    #[arg(long, requires = "stderr")]
    log_to_file: bool,
    /// Leave the program in the process group of the supervisor, and leave alone what it leaves
    /// behind. By default, each process is the leader of a process group of its own, whose other
    /// processes are ended when it has exited
    #[arg(long)]
    no_process_groups: bool,
    /// The program, a path or a name on the search path, and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl RunArgs {
    pub(super) fn execute(mut self) -> CommandResult {
        let program = std::mem::take(&mut self.program);
        process::exit(self.supervisor().run(program)?);
    }

    fn supervisor(self) -> Supervisor {
        Supervisor::new()
            .processes(self.processes.get())
            .watchdog(self.watchdog)
            .notify_access(self.notify_access)
            .recycle_after(self.recycle_after)
            .recycle_after_requests(self.recycle_after_requests.map(NonZeroU64::get))
            .recycle_above(self.recycle_above.map(|mib| mib << 20))
            .ready_after((!self.notify).then_some(self.ready_after))
            .ready_timeout(self.ready_timeout)
            .stop_timeout(self.stop_timeout)
            .max_draining(self.max_draining.get())
            .each(self.stop_signal, Supervisor::stop_signal)
            .restart_signal(self.restart_signal)
            .abort_timeout(self.abort_timeout)
            .restart_after_success(self.restart == RestartWhen::Always)
            .no_restart(self.no_restart_code.0)
            .backoff(self.backoff.0, self.backoff.1)
            .give_up_after(self.give_up_after.map(NonZeroU32::get))
            .log_format(self.log_format)
            .process_groups(!self.no_process_groups)
            .each(self.listen, Supervisor::listen)
            .each(self.control, Supervisor::control_socket)
            .each(self.control_mode, Supervisor::control_mode)
            .each(self.control_group, Supervisor::control_group)
            .each(self.user, Supervisor::user)
            .each(self.group, Supervisor::group)
            .no_new_privileges(!self.allow_new_privileges)
            .each(self.allow_bind, Supervisor::allow_bind)
            .each(self.pid_file, Supervisor::pid_file)
            .each(self.event_prefix, Supervisor::event_prefix)
            .each(self.working_directory, Supervisor::working_directory)
            .each(self.environment_file, Supervisor::environment_file)
            .each(self.stderr, Supervisor::stderr_file)
            .each(self.stdout, Supervisor::stdout_file)
            .log_to_file(self.log_to_file)
    }
}

/// Options that may be absent, or be given several times.
trait Each: Sized {
    /// Calls the setter with each value.
    fn each<T>(
        self,
        values: impl IntoIterator<Item = T>,
        setter: impl Fn(Self, T) -> Self,
    ) -> Self {
        values.into_iter().fold(self, setter)
    }
}

impl Each for Supervisor {}
