//! The supervisor's one loop: what happens becomes an event of the [`Fleet`], which decides what is
//! to be done, and the loop does that.
//!
//! ```text
//! signals, control requests, notifications, exits, time
//!        │ Event                                  ▲ a process starts, or cannot be started
//!        ▼                                        │
//!      Fleet ──Effect──► start, signal, abort, reply, notify the service manager, log
//! ```
//!
//! Each turn of [`Run::run_until_stopped`] handles everything that has come, in this order:
//!
//! 1. the notifications, since a process may have sent some before it exited,
//! 2. signals and control requests, before exits: a process that exits because of a stop gets no
//!    replacement,
//! 3. the exits,
//! 4. the time: what is late now, after all of this, is late.
//!
//! Then it waits for the next event, or until the fleet's deadline.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::Settings;
use super::ancestry;
use super::bind_rules::BindRules;
use super::closer::Closer;
use super::control::ControlSocket;
use super::discarder::Discarder;
use super::disposition::survives;
use super::dry_run::DryRun;
use super::fleet::Fleet;
use super::fleet::event::{Effect, Event, Exit, ManagerNotice, Severity};
use super::fleet::process::Process;
use super::foreign_senders::ForeignSenders;
use super::lanes::Lanes;
use super::listeners::HeldListeners;
use super::output_files::{OutputFiles, log_to};
use super::spawn::ServingProcess;
use super::stragglers::Stragglers;
use super::thread_report;
use super::watched::{Watched, send_signal, signal_group};
use crate::clock::{Deadline, TimeLimit};
use crate::log;
use crate::notify;
use crate::restart::{Inherited, PidFile, Program};
use crate::sys::supervision::Guardian;
use crate::sys::{self, IfLocked, Interest, NotifySocket, ProcessWatch, Signal, SignalFd};
use crate::wire::Answer;

/// A supervisor: the fleet, and the descriptors that it needs.
pub(super) struct Run {
    // What to run.
    pub(super) settings: Settings,
    /// The program of the serving processes.
    pub(super) program: Program,
    /// The program of the supervisor, which an upgrade executes again.
    pub(super) own_program: Program,

    // Where events come from.
    pub(super) signals: SignalFd,
    pub(super) notify_socket: NotifySocket,
    pub(super) control: Option<ControlSocket>,
    pub(super) foreign_senders: ForeignSenders,

    // Where descriptors go that are not wanted.
    /// Those that the service has sent with a request or a listener.
    pub(super) closer: Closer,
    /// All others. They are not received.
    pub(super) discarder: Discarder,

    // What serving processes get.
    pub(super) listeners: HeldListeners,
    pub(super) bind_rules: BindRules,
    pub(super) output_files: OutputFiles,
    /// A socket pair. Serving processes inherit the second socket. They see end-of-file when the
    /// supervisor dies, since no other process has the first.
    pub(super) lifeline: (Socket, Socket),

    /// What is decided.
    pub(super) fleet: Fleet,
    /// The processes of the fleet, by their process ids.
    pub(super) watched: HashMap<u32, Watched>,
    /// The lanes of these processes.
    pub(super) lanes: Lanes,
    /// The process group of the supervisor.
    pub(super) own_group: Option<u32>,
    pub(super) stragglers: Stragglers,
    /// Ends what this supervisor has started if it dies. `None` if it could not be started, and
    /// where the kernel does the same: for the first process of a pid namespace (pid_namespaces(7)).
    pub(super) guardian: Option<Guardian>,
    /// When the next guardian may be started, should there be none then.
    pub(super) next_guardian: Deadline,
    pub(super) dry_run: Option<DryRun>,
    pub(super) started_at: Instant,
    /// A SIGTERM or SIGINT has been received. A second one stops at once.
    stop_signal_received: bool,

    // What the supervisor itself is watched and found by.
    /// The time between two watchdog notifications of the supervisor itself: half of what the
    /// service manager allows.
    watchdog_interval: Option<Duration>,
    /// When the next one is due.
    next_watchdog: Deadline,
    pub(super) pid_file: Option<PidFile>,
    /// When the sizes of the processes are looked at next. Never, if no setting limits them.
    next_measurement: Deadline,
}

/// The time between two looks at the sizes of the processes.
const MEASUREMENT_INTERVAL: Duration = Duration::from_secs(5);

/// At most this many notifications are handled in one turn, so that other events get theirs.
const MAX_NOTIFICATIONS: usize = 1024;

/// Notifications are handled for this long in one turn, unless processes have exited.
const NOTIFICATION_TIME: Duration = Duration::from_millis(100);

/// The pause after an error of the wait itself, so that the loop does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

impl Run {
    /// Takes or makes what the first process needs: listeners, sockets, files.
    pub(super) fn new(settings: Settings, program: Program, signals: SignalFd) -> io::Result<Self> {
        // These are no children from before.
        let stragglers = Stragglers::with_earlier_children();
        let output_files = OutputFiles::open(&settings)?;
        log_to(&settings, &output_files)?;
        let listeners = HeldListeners::inherit_or_bind(Inherited::take()?, &settings)?;
        let notify = NotifySocket::bind()?;
        let lifeline = sys::message::create_pair()?;
        let fleet = Fleet::new(settings.policy.clone(), Instant::now(), random_seed());
        let mut run = Self::from_parts(
            settings, program, signals, notify, lifeline, listeners, fleet,
        )?;
        (run.stragglers, run.output_files) = (stragglers, output_files);
        run.start_guardian();
        let (control, pid_file) = (&run.settings.control, &run.settings.pid_file);
        let bind = |path| ControlSocket::bind(path, &run.settings, IfLocked::Wait);
        run.control = control.as_deref().map(bind).transpose()?;
        run.pid_file = pid_file.as_deref().map(PidFile::claim).transpose()?;
        Ok(run)
    }

    pub(super) fn from_parts(
        settings: Settings,
        program: Program,
        signals: SignalFd,
        notify_socket: NotifySocket,
        lifeline: (Socket, Socket),
        listeners: HeldListeners,
        fleet: Fleet,
    ) -> io::Result<Self> {
        sys::supervision::become_subreaper()?;
        let now = Instant::now();
        let watchdog_interval = notify::watchdog_limit().map(|limit| limit / 2);
        let has_limit = settings.policy.recycling.recycle_above.is_some();
        Ok(Self {
            bind_rules: BindRules::new(&settings),
            next_measurement: Deadline::at(has_limit.then_some(now)),
            settings,
            program,
            own_program: Program::of_this_process()?,
            signals,
            notify_socket,
            control: None,
            foreign_senders: ForeignSenders::default(),
            closer: Closer::new("close").started(),
            discarder: Discarder::default(),
            listeners,
            output_files: OutputFiles::default(),
            lifeline,
            fleet,
            watched: HashMap::new(),
            lanes: Lanes::default(),
            own_group: sys::supervision::group_of(std::process::id()),
            stragglers: Stragglers::default(),
            guardian: None,
            next_guardian: Deadline::NEVER,
            dry_run: None,
            started_at: now,
            stop_signal_received: false,
            watchdog_interval,
            next_watchdog: Deadline::at(watchdog_interval.map(|_| now)),
            pid_file: None,
        })
    }

    /// Supervises until no process is left and none is to be started. Returns the exit code.
    pub(super) fn run_until_stopped(mut self) -> i32 {
        loop {
            let end = Deadline::after(Instant::now(), NOTIFICATION_TIME);
            self.read_notifications(end);
            self.handle_signals();
            self.handle_control_requests();
            self.reap_children();
            self.handle_output_reports();
            self.handle_time();
            let outcome = self.fleet.outcome();
            if outcome.is_none() {
                self.stragglers.keep_rest();
            }
            self.handle_stragglers();
            if let Some(code) = outcome.and_then(|outcome| self.end_stragglers(outcome)) {
                return self.finish(code);
            }
            self.wait();
        }
    }

    fn wait(&mut self) {
        self.watch_processes();
        let receives = self.may_receive();
        if let Some(control) = &mut self.control {
            control.closer.may_receive();
        }
        let control = self.control.as_ref();
        let control_deadline = control.map_or(Deadline::NEVER, ControlSocket::deadline);
        let deadline = self
            .fleet
            .deadline()
            .earlier(self.next_watchdog)
            .earlier(self.stragglers.deadline())
            .earlier(self.guardian_deadline())
            .earlier(notify::retry_at())
            .earlier(self.output_files.deadline())
            .earlier(self.next_measurement)
            .earlier(self.foreign_senders.deadline())
            .earlier(self.closer.deadline())
            .earlier(self.discarder.deadline())
            .earlier(self.listeners.next_attempt())
            .earlier(control_deadline);
        let timeout = deadline.time_left(Instant::now());
        let mut sources = Vec::new();
        if receives {
            sources.push((self.notify_socket.source(), Interest::Read));
        }
        sources.extend(control.into_iter().flat_map(ControlSocket::sources));
        sources.extend(self.output_files.sources());
        let watches = self.watched.values().map(|watched| &watched.process);
        let waited = sys::supervision::wait_for_any(&self.signals, &sources, watches, timeout);
        if let Err(error) = waited {
            log::error!("cannot wait for events: {error}");
            std::thread::sleep(ERROR_PAUSE);
        }
    }

    fn finish(mut self, code: i32) -> i32 {
        if notify::has_store() {
            self.listeners.keep_socket_files();
        }
        if let Some(guardian) = self.guardian {
            guardian.end();
        }
        log::info!("the supervisor exits with code {code}");
        log::flush();
        self.output_files.drain();
        code
    }

    // ---- events ----

    /// Has the fleet handle an event, and does what the fleet decides. That may lead to more events.
    pub(super) fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.fleet.handle(event, Instant::now()) {
                events.extend(self.perform(effect));
            }
        }
    }

    fn handle_signals(&mut self) {
        let failed = |error: &io::Error| log::error!("cannot read signals: {error}");
        while let Ok(Some(signal)) = self.signals.read().inspect_err(failed) {
            log::info!("{}", self.describe_signal(signal));
            if signal == Signal::User1 {
                self.output_files.reopen(None);
            }
            let event = match signal {
                Signal::Hangup => Event::Restart { client: None },
                Signal::User2 => Event::Upgrade { client: None },
                Signal::User1 => Event::User1,
                Signal::Interrupt | Signal::Terminate if self.stop_signal_received => {
                    Event::StopNow
                }
                Signal::Interrupt | Signal::Terminate => {
                    self.stop_signal_received = true;
                    Event::Stop
                }
                Signal::TerminalClosed | Signal::ServiceStop | Signal::Shutdown(_) => Event::Stop,
                Signal::Quit => Event::StopNow,
                Signal::Suspend => {
                    self.suspend();
                    continue;
                }
                // The supervisor handles no other signals.
                _ => continue,
            };
            self.handle(event);
        }
    }

    /// The signal and what follows, for the log.
    fn describe_signal(&self, signal: Signal) -> String {
        let is_stopping = self.fleet.shutdown.is_some();
        let timeout = self.settings.policy.stop_timeout;
        let stop = |next| match (is_stopping, TimeLimit(timeout)) {
            (true, _) => format!("the stop goes on; {next} stops now"),
            // Processes ask for it with EXTEND_TIMEOUT_USEC.
            (false, limit) if limit.is_some() => {
                format!("stopping, {limit} unless a process asks for more; {next} stops now")
            }
            (false, limit) => format!("stopping, {limit}; {next} stops now"),
        };
        let what = match signal {
            Signal::Hangup | Signal::User2 if is_stopping => {
                "too late, the supervisor is stopping".to_owned()
            }
            Signal::Hangup => "restarting".to_owned(),
            Signal::User2 => "replacing the supervisor".to_owned(),
            Signal::User1 => {
                "reopening the log files, and telling the processes to reopen theirs".to_owned()
            }
            Signal::Interrupt | Signal::Terminate if self.stop_signal_received => {
                return format!("{signal} again: stopping now");
            }
            Signal::Interrupt | Signal::Terminate => stop("once more"),
            Signal::TerminalClosed | Signal::ServiceStop | Signal::Shutdown(_) => {
                stop(sys::signal::STOP_NOW)
            }
            Signal::Quit => "stopping now".to_owned(),
            Signal::Suspend => "the processes are stopped until SIGCONT".to_owned(),
            _ => "ignored".to_owned(),
        };
        format!("{signal}: {what}")
    }

    /// Stops this process, as a terminal's stop character asks for (Ctrl-Z), and with it those of its
    /// processes that the terminal does not reach.
    fn suspend(&mut self) {
        self.signal_own_groups(Signal::Stop);
        sys::supervision::suspend();
        log::info!("the supervisor goes on");
        self.signal_own_groups(Signal::Continue);
    }

    fn read_notifications(&mut self, end: Deadline) {
        for _ in 0..MAX_NOTIFICATIONS {
            if !self.may_receive() || end.has_passed(Instant::now()) {
                return;
            }
            match self.notify_socket.peek() {
                Ok(Some(datagram)) => self.handle_datagram(datagram),
                Ok(None) => return,
                Err(error) => return log::error!("cannot read notifications: {error}"),
            }
        }
    }

    /// Whether there is room for the descriptors of another notification.
    fn may_receive(&mut self) -> bool {
        self.closer.may_receive() && self.discarder.may_receive()
    }

    /// Handles exits, but first the notifications: a process may have sent some before its exit.
    fn reap_children(&mut self) {
        let failed = |error: &io::Error| log::error!("cannot reap child processes: {error}");
        let reap_child = || sys::supervision::reap_child().inspect_err(failed).ok()?;
        let exits: Vec<_> = std::iter::from_fn(reap_child).collect();
        if !exits.is_empty() {
            self.stragglers.check_now(Instant::now());
        }
        // However long the notifications take that are not of the service.
        self.read_notifications(Deadline::NEVER);
        // The end of a dry run comes last: the upgrade that follows ends this program.
        let dry_run = self.dry_run.as_ref().map(|dry_run| dry_run.pid);
        let (last, exits): (Vec<_>, Vec<_>) = exits
            .into_iter()
            .partition(|(pid, _)| Some(*pid) == dry_run);
        for (pid, status) in exits {
            self.handle_exit(pid, Some(status));
        }
        // Successors are reaped by their predecessors, so that their exit status is not known here.
        // Once its predecessor has exited, a successor is a child of the supervisor.
        self.watch_processes();
        let watched = self.watched.iter();
        let ended = watched.filter(|(_, watched)| watched.process.has_ended());
        let ended = ended.map(|(pid, watched)| (*pid, watched.process.exit_status()));
        let reaped: Vec<_> = ended
            .filter(|(pid, _)| !sys::supervision::is_child(*pid))
            .collect();
        reaped
            .into_iter()
            .for_each(|(pid, status)| self.handle_exit(pid, status));
        for (pid, status) in last {
            self.handle_exit(pid, Some(status));
        }
    }

    /// A process has exited. Its status is unknown if another process has reaped it.
    fn handle_exit(&mut self, pid: u32, status: Option<ExitStatus>) {
        let how = status.map_or("exit status unknown".to_owned(), |status| {
            status.to_string()
        });
        if let Some(dry_run) = self.dry_run.take_if(|dry_run| dry_run.pid == pid) {
            return self.handle(Event::DryRunEnded(dry_run.result(&how)));
        }
        log::debug!("process {pid} exited ({how})");
        if self.guardian.as_ref().is_some_and(|own| own.pid() == pid) {
            log::warn!("the guardian, process {pid}, exited ({how})");
            self.guardian = None;
        }
        self.output_files.handle_exit(pid, &how, Instant::now());
        // Another process may get this id.
        let watched = self.watched.remove(&pid);
        self.stragglers.earlier_children.remove(&pid);
        if self.fleet.processes().any(|process| process.pid == pid) {
            if let Some(guardian) = &self.guardian {
                guardian.forget(Some(pid), None);
            }
            self.end_group_of(pid, watched.and_then(|watched| watched.group));
        }
        let code = status.and_then(|status| status.code());
        let exit = Exit { code, how };
        self.handle(Event::Exited { pid, exit });
    }

    /// Tells the clients that have asked for it that the files of the output are opened again.
    fn handle_output_reports(&mut self) {
        if let Some(result) = self.output_files.handle_reports(Instant::now()) {
            let answer = Answer::new(result.error, None);
            for client in result.clients {
                self.reply(client, &answer);
            }
        }
    }

    fn handle_time(&mut self) {
        let now = Instant::now();
        let is_due = self.next_watchdog.has_passed(now);
        if let Some(interval) = self.watchdog_interval.filter(|_| is_due) {
            self.next_watchdog = Deadline::after(now, interval);
            notify::send_watchdog_alive();
        }
        notify::retry();
        if let Some(count) = self.foreign_senders.end_flood(now) {
            log::warn!("ignored {count} notifications of processes that are not of the service");
        }
        self.start_due_guardian(now);
        if self.listeners.next_attempt().has_passed(now) {
            self.listeners.retry_missing(&self.settings);
        }
        if let Some(control) = &mut self.control {
            control.expire(now);
            control.restore_file(now, &self.settings);
        }
        if self.next_measurement.has_passed(now) {
            self.next_measurement = Deadline::after(now, MEASUREMENT_INTERVAL);
            self.measure_processes(|_| true);
        }
        self.handle(Event::Tick);
        if self.next_measurement != Deadline::NEVER {
            self.measure_processes(|process| process.size.is_none());
        }
    }

    /// Tells the fleet how large these processes are, if they serve.
    fn measure_processes(&mut self, is_wanted: impl Fn(&Process) -> bool) {
        let serving = self
            .fleet
            .processes()
            .filter(|process| process.is_serving() && is_wanted(process));
        let pids: Vec<_> = serving.map(|process| process.pid).collect();
        for pid in pids {
            if let Some(bytes) = ancestry::resident_size(pid) {
                self.handle(Event::Measured { pid, bytes });
            }
        }
    }

    // ---- effects ----

    /// Does what the fleet has decided. Returns the answer to an effect that has one.
    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Start { slot, generation } => return Some(self.start(slot, generation)),
            Effect::Signal { pid, signal } => self.send(pid, signal),
            Effect::Leave {
                pid,
                recipient,
                signal,
            } => return self.tell_to_leave(pid, recipient, signal),
            Effect::Abort { pid } => {
                for line in thread_report::describe_threads(pid) {
                    log::error!("process {pid}: {line}");
                }
                self.send(pid, Signal::Abort);
            }
            Effect::CloseListenersExcept(used) => {
                let last = self.listeners.close_unused(&used);
                self.closer.close(last);
            }
            Effect::Reply {
                client,
                error,
                took,
            } => {
                if let Some(control) = &mut self.control {
                    control.reply(client, &Answer::new(error, took));
                }
            }
            Effect::Notify(notice) => notify_manager(notice),
            Effect::StartDryRun => return self.begin_dry_run(),
            Effect::KillDryRun => {
                if let Some(dry_run) = &self.dry_run {
                    send_signal(&ProcessWatch::open(dry_run.pid), dry_run.pid, Signal::Kill);
                }
            }
            Effect::ExecuteOwnProgram => {
                let Err(error) = self.execute_own_program();
                let path = self.own_program.path().display();
                let why = format!("cannot execute {path}: {error}");
                return Some(Event::NotReplaced { why });
            }
            Effect::Log(Severity::Info, text) => log::info!("{text}"),
            Effect::Log(Severity::Warn, text) => log::warn!("{text}"),
            Effect::Log(Severity::Error, text) => log::error!("{text}"),
        }
        None
    }

    fn start(&mut self, slot: usize, generation: u64) -> Event {
        if self.guardian.is_none() {
            self.start_guardian();
        }
        // Another program gets what is held when it starts, and nothing later.
        self.listeners.retry_missing(&self.settings);
        let mut path = self.program.path().display().to_string();
        let identity = self.settings.identity.as_ref();
        if let Some(login) = identity.and_then(|identity| identity.login.as_ref()) {
            path += &format!(" as user {}", login.name);
        }
        let process = ServingProcess {
            program: &self.program,
            generation,
            listeners: &self.listeners,
            lifeline: &self.lifeline.1,
            notify_socket: &self.notify_socket,
            output_files: &self.output_files,
            watchdog: self.settings.policy.watchdog,
            identity,
            own_group: self.settings.process_groups,
            guardian: self
                .guardian
                .as_ref()
                .filter(|_| self.settings.runs_other_program || Guardian::NEEDS_EACH_CHILD),
        };
        match process.spawn() {
            Ok(pid) => {
                log::info!("started process {pid}, generation {generation}: {path}");
                Event::Started { slot, pid }
            }
            Err(error) => Event::StartFailed {
                slot,
                why: format!("cannot start {path}: {error}"),
            },
        }
    }

    fn tell_to_leave(&mut self, pid: u32, recipient: u32, signal: Signal) -> Option<Event> {
        match self.lanes.tell_to_leave(pid, recipient) {
            Ok(()) => {
                log::info!("process {pid} leaves its connections to process {recipient}, and ends");
                // A process that is stopped (SIGSTOP) reads no message.
                self.send(pid, Signal::Continue);
                None
            }
            Err(error) => {
                log::warn!("process {pid} cannot leave its connections to another one: {error}");
                Some(Event::LeaveFailed { pid, signal })
            }
        }
    }

    fn begin_dry_run(&mut self) -> Option<Event> {
        let path = self.own_program.path().display();
        log::info!("checking the new supervisor program {path}");
        match self.start_dry_run() {
            Ok(dry_run) => {
                self.dry_run = Some(dry_run);
                None
            }
            Err(error) => Some(Event::DryRunEnded(Err(format!(
                "cannot start {path}: {error}"
            )))),
        }
    }

    fn send(&mut self, pid: u32, signal: Signal) {
        let stops = self.settings.policy.stops_by(signal);
        if signal == Signal::User1 && !stops && !survives(pid, signal) {
            return log::warn!("{signal} is not sent to process {pid}, which would die of it");
        }
        let watched = self.watch(pid);
        let is_running = !watched.process.has_ended();
        send_signal(&watched.process, pid, signal);
        // A process that is stopped (SIGSTOP, or SIGTTOU of a terminal) acts on no other signal.
        if stops || matches!(signal, Signal::Abort | Signal::Quit) {
            send_signal(&watched.process, pid, Signal::Continue);
        }
        let group = watched.group;
        // When a process has exited, its group is ended: see `stragglers`.
        if signal == Signal::Kill && is_running && self.settings.process_groups {
            if let Some(group) = group.filter(|group| self.has_own_group(*group, pid)) {
                signal_group(group, signal);
            }
        }
    }
}

fn notify_manager(notice: ManagerNotice) {
    match notice {
        ManagerNotice::Ready(status) => notify::send_ready(None, status),
        ManagerNotice::Reloading => notify::send_reloading("restarting"),
        ManagerNotice::Stopping(status) => notify::send_stopping(status),
        ManagerNotice::Status(status) => notify::send_status(status),
        ManagerNotice::MoreTime(time) => notify::request_more_time(time),
    }
}

/// A seed for the jitter of the back-off.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
