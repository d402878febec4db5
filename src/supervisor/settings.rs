//! The settings of a supervisor: their defaults, their setters, and what is no valid setting.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Supervisor;
use super::fleet::Policy;
use super::fleet::backoff::BackoffSettings;
use super::fleet::recycling::RecyclingSettings;
use super::log_format::LogFormat;
use super::stop_signal::StopSignal;
use crate::listener::Bind;
use crate::sys::{self, EventPrefix, Identity, Signal};

/// The settings, each as the setter of the same name says if not said here.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) policy: Policy,
    /// The path of the control socket.
    pub(super) control: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) event_prefix: Option<String>,
    pub(super) working_directory: Option<PathBuf>,
    pub(super) environment_file: Option<PathBuf>,
    pub(super) listen: Vec<Bind>,
    /// What processes of other users can have bound.
    pub(super) allowed_binds: Vec<Bind>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) no_new_privileges: bool,
    /// What `user` and `group` mean on this system; `None` if neither is set.
    pub(super) identity: Option<Identity>,
    pub(super) control_mode: Option<u32>,
    pub(super) control_group: Option<String>,
    pub(super) log_format: LogFormat,
    pub(super) stdout: Option<PathBuf>,
    pub(super) stderr: Option<PathBuf>,
    pub(super) log_to_file: bool,
    pub(super) notify_access: NotifyAccess,
    pub(super) process_groups: bool,
    /// The program is not this one (`Supervisor::run`), and may expect blocking listeners.
    pub(super) runs_other_program: bool,
}

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

/// The largest number of serving processes. More processes do not accept faster from one listener.
pub(super) const MOST_PROCESSES: usize = 1024;

/// The exit code of a program whose configuration is wrong (EX_CONFIG in sysexits.h(3head)).
const EX_CONFIG: i32 = 78;

impl Default for Settings {
    fn default() -> Self {
        Self {
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
            event_prefix: None,
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
            stdout: None,
            stderr: None,
            log_to_file: false,
            notify_access: NotifyAccess::default(),
            process_groups: true,
            runs_other_program: false,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_support()?;
        let problem = match &self.policy {
            Policy { processes, .. } if *processes > MOST_PROCESSES => {
                format!("processes must be at most {MOST_PROCESSES}")
            }
            Policy { ready_timeout, .. } if ready_timeout.is_zero() => {
                "ready_timeout must be more than zero (Duration::MAX is no limit)".to_owned()
            }
            _ if self.event_prefix.is_some() && self.parsed_event_prefix().is_none() => {
                let given = self.event_prefix.as_deref().unwrap_or_default();
                format!(
                    "event_prefix must be {}, and is {given:?}",
                    EventPrefix::RULE
                )
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

    /// The prefix of the names of the supervisor's event objects, if it is set and valid.
    pub(super) fn parsed_event_prefix(&self) -> Option<EventPrefix> {
        EventPrefix::parse(self.event_prefix.as_deref()?)
    }

    /// Refuses what this system does not support.
    fn check_support(&self) -> io::Result<()> {
        let given = [
            ("user", self.user.is_some()),
            ("group", self.group.is_some()),
            ("control_mode", self.control_mode.is_some()),
            ("control_group", self.control_group.is_some()),
            ("stderr_file", self.stderr.is_some()),
            ("stdout_file", self.stdout.is_some()),
        ];
        let unsupported = sys::supervision::UNSUPPORTED_SETTINGS;
        let mut given = given.iter().filter(|(_, is_given)| *is_given);
        match given.find(|(name, _)| unsupported.contains(name)) {
            Some((name, _)) => {
                let text = format!("the setting {name} is not supported on this system");
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
            None => Ok(()),
        }
    }

    /// The user of the serving processes, if it is not that of the supervisor.
    pub(super) fn user_id(&self) -> Option<u32> {
        let identity = self.identity.as_ref()?.credentials.as_ref();
        identity.map(|credentials| credentials.uid)
    }

    /// Looks up the names of users and groups.
    pub(super) fn find_identity(&mut self) -> io::Result<()> {
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

impl Supervisor {
    /// How many processes serve, on the same listeners. If one crashes, only its clients are
    /// affected; a graceful restart replaces one after another. From 1 to 1024. The command
    /// `handover scale` changes the number at run time: the open connections of surplus processes
    /// [move](crate::guide::operating#fewer-processes) to the others. Defaults to 1.
    pub fn processes(mut self, count: usize) -> Self {
        self.0.policy.processes = count.max(1);
        self
    }

    /// How long a new process may take to become ready. A process that takes longer is aborted, and
    /// another one is started. (In a graceful restart of a server of this crate,
    /// [`Restart::ready_timeout`](crate::Restart::ready_timeout) applies.) More than zero. Defaults
    /// to 60 s.
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

    /// How many requests a process serves before it is replaced, as by
    /// [`recycle_after`](Self::recycle_after): shortened by up to a tenth, and one process at a time.
    /// A process goes on serving until its successor does, so that it serves a few more. Requests
    /// are calls of the service ([`Stats::served`](crate::Stats::served)), which a server of this
    /// crate with [`Builder::restart`](crate::Builder::restart) tells the supervisor once a second;
    /// those of several servers ([`Servers`](crate::Servers)) count together.
    /// Other programs do not tell, and are not replaced for this; a warning in the log says so.
    /// `None` or zero: no limit. Defaults to `None`.
    pub fn recycle_after_requests(mut self, requests: impl Into<Option<u64>>) -> Self {
        let limit = requests.into().filter(|limit| *limit > 0);
        self.0.policy.recycling.recycle_after_requests = limit;
        self
    }

    /// How many bytes of memory a serving process may occupy before it is replaced, as by
    /// [`recycle_after`](Self::recycle_after). The supervisor reads the resident size in
    /// /proc/PID/statm every 5 s. That size includes pages that are shared with other processes.
    /// (smaps_rollup separates shared pages, but halts a large process for milliseconds.) If a process
    /// is larger already when it begins to serve, the limit is too low: this is logged as an error,
    /// and such a process is replaced when it has doubled. From one replacement of a process for its
    /// size to that of its successor, at least 60 s pass. `None` or zero: no limit. Defaults to
    /// `None`.
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
    /// `stop`, `upgrade` and `upgrade wait`; the answer is a line of JSON. On Windows, the path is
    /// the name of a pipe: `\\.\pipe\app`, or `app` for the same. Defaults to none.
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

    /// The prefix of the names of the event objects by which other processes control the supervisor
    /// on Windows: `Local\` or `Global\` and a name, or a name alone, which gets `Local\`. With
    /// `Global\shop`, the stop event of supervisor 4711 is `Global\shop.4711.stop`; the others are
    /// `stop-now`, `restart` and `user1`. `handover status` shows how the names begin.
    /// `Builder::event_prefix` says who can take a name before the supervisor does. The first supervisor
    /// of a process sets the prefix for all later ones of that process. Has no effect on other systems.
    /// Defaults to `Local\` and the name of the supervisor's program file without its extension.
    ///
    /// [`supervise`](Self::supervise) and [`run`](Self::run) fail if a name is taken already.
    pub fn event_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.event_prefix = Some(prefix.into());
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
    /// null character, or has a quote that is not closed, the start fails with this reason.
    ///
    /// As systemd, the supervisor reads the file with its own privileges, so that the file can be
    /// for root only. With another [`user`](Self::user), a symbolic link that belongs to this user
    /// leads only to a file that belongs to this user as well (systemd follows each link): the
    /// start fails otherwise. For a restart, a server of this crate reads the file itself, as this
    /// user. Defaults to none.
    pub fn environment_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.environment_file = Some(path.into());
        self
    }

    /// Adds a listener for a program that binds none itself ([`run`](Self::run)). The listeners of
    /// a server need not be named here: the supervisor binds and holds what a process asks for by
    /// [`Builder::listen`](crate::Builder::listen). Defaults to none.
    ///
    /// `udp:0.0.0.0:53` and `unixgram:/run/app.sock` are datagram sockets, which processes get in the
    /// order of the settings and with their names, as from systemd's `ListenDatagram=`. While no
    /// process serves, datagrams wait in the receive buffer of the socket (SO_RCVBUF in socket(7)),
    /// and the kernel drops those that do not fit. A server of this crate closes such a socket with a
    /// warning, unless the program takes it by [`Restart::inherited`](crate::Restart::inherited); to
    /// give it to a successor, the program passes it on ([`Restart::pass`](crate::Restart::pass)).
    /// Name, file mode, SO_REUSEPORT, IPV6_V6ONLY and the number of attempts are as [`Bind`] says;
    /// its other options have no effect.
    ///
    /// [`supervise`](Self::supervise) and [`run`](Self::run) fail if an address cannot be bound.
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

    /// A file to which the standard error of the serving processes is appended, as systemd's
    /// `StandardError=append:` does. It is created with mode 0640, by the supervisor's user. It is a
    /// regular file or a character device; in a directory to which others than root and the
    /// supervisor's user can write, no link is followed. Defaults to the supervisor's own standard
    /// error.
    ///
    /// SIGUSR1, or `handover reopen`, opens the file again after a rotation, for the processes that
    /// run too: they write to a pipe, and a small process copies (`handover-log` in ps(1)). It goes
    /// on when the supervisor is killed or upgraded, until the last process has ended, and the
    /// supervisor replaces it if it is killed. Lines of up to 4096 bytes are never mixed (PIPE_BUF in
    /// pipe(7)), and no line is divided between the old and the new file, unless its rest takes
    /// longer than a second. If the file cannot be opened again, the file before is used. Lines that
    /// the disk does not take are lost; their number is in the file, and in the log of the
    /// supervisor.
    ///
    /// [`supervise`](Self::supervise) and [`run`](Self::run) fail if the file cannot be opened.
    pub fn stderr_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.stderr = Some(path.into());
        self
    }

    /// As [`stderr_file`](Self::stderr_file), for the standard output. It may be the same file.
    /// Defaults to the supervisor's own standard output.
    pub fn stdout_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.stdout = Some(path.into());
        self
    }

    /// Whether the [log](Self#log) of the supervisor goes to the [`stderr_file`](Self::stderr_file),
    /// too, if there is one and the program has set no logger. If not, it goes to the supervisor's
    /// own standard error, as what the supervisor says before it starts does in any case. Defaults
    /// to false.
    pub fn log_to_file(mut self, on: bool) -> Self {
        self.0.log_to_file = on;
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
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::supervisor::fleet::Fleet;
    use crate::supervisor::fleet::event::{Effect, Event};

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
