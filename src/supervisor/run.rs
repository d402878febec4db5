//! The supervisor's one loop, over signals, control requests, exits, notifications and deadlines.
//!
//! Each round of [`Run::run_until_stopped`] handles everything that has come, takes what is in
//! progress one step further, and waits for the next event or deadline.
//!
//! # A crash, until another process serves
//!
//! 1. `wait_for_any` returns: the process's pidfd is readable, or SIGCHLD came.
//! 2. `reap_children` collects the exit status, but first `read_notifications` handles what the
//!    process sent before its exit. Then `handle_exit` finds the process's slot.
//! 3. `handle_current_exit` takes the first of these that applies: in a stop, no process is
//!    started; a successor that is starting takes over; an exit code that forbids another start
//!    gives up the slot (`give_up_slot`); otherwise `schedule_start` asks the back-off for the
//!    delay, and sets the slot's `start_at`.
//! 4. `handle_deadlines` → `start_due_processes` → `start_in_slot` → `start_process` →
//!    `spawn_process` starts the program when `start_at` has passed, mostly in the same round.
//! 5. The new process asks for its listeners (`answer_bind_request`), then notifies READY=1:
//!    `handle_notification` → `handle_current_notification` → `mark_ready`. Until then, clients
//!    wait in the kernel's queues of the listeners, which the supervisor holds.
//!
//! A hang becomes a crash: `abort_process` sends SIGABRT when the watchdog deadline has passed
//! (`abort_hung_processes`), when the deadline to become ready has passed
//! (`handle_process_deadlines`), or when the process notifies WATCHDOG=trigger. After
//! `abort_timeout`, `handle_process_deadlines` sends SIGKILL. Step 1 follows.
//!
//! # A graceful restart
//!
//! 1. `handle_signals` (SIGHUP) or `handle_control_requests` calls `begin_rolling_restart`, which
//!    sets `rolling_restart`.
//! 2. `advance_rolling_restart` calls `request_replacement` for the first slot. A process of this
//!    crate gets SIGHUP and starts its successor itself; for any other program, `start_process`
//!    does.
//! 3. The predecessor announces the successor (`handle_announced_successor`), and names the
//!    successor in MAINPID= when the successor serves (`replace_current`). For any other program,
//!    the successor notifies READY=1, or has run for `ready_after` (`promote_successor`). Both call
//!    `mark_ready`, and the predecessor drains.
//! 4. `advance_rolling_restart` sees a new ready process in the slot, and goes on with the next
//!    slot. After the last one, `end_rolling_restart` tells the control clients that wait.
//!
//! If the successor fails, `fail_rolling_restart` notes the reason. `advance_rolling_restart` then
//! ends the restart: the predecessor and all slots that follow stay as they are.
//!
//! # A stop
//!
//! 1. `handle_signals` or `handle_control_requests` calls `stop`, which sends SIGTERM to all
//!    processes, or `stop_now`, which sends SIGQUIT. `begin_stop` sets the one deadline in
//!    `shutdown`, cancels the starts that are scheduled, and ends a restart or an upgrade.
//! 2. The processes exit: `handle_current_exit` only logs this.
//! 3. If the deadline passes, `handle_deadlines` sends SIGKILL to all.
//! 4. `is_finished` is true when no process is left: `finish` returns the exit code.

use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::Settings;
use super::ancestry;
use super::control::ControlSocket;
use super::listeners::HeldListeners;
use super::rolling_restart::RollingRestart;
use super::slot::{ProcessSlot, SupervisedProcess};
use super::upgrade::DryRun;
use crate::clock::Deadline;
use crate::log;
use crate::notify;
use crate::restart::{Inherited, PidFile, Program};
use crate::sys::{self, NotifySocket, Signal, SignalFd};
use crate::wire::Answer;

/// The state of a supervisor.
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

    // What serving processes get.
    pub(super) listeners: HeldListeners,
    /// A socket pair. Serving processes inherit the second socket. They see end-of-file when the
    /// supervisor dies, since no other process has the first.
    pub(super) lifeline: (Socket, Socket),

    // The processes.
    pub(super) slots: Vec<ProcessSlot>,
    /// Processes that have left their slot, and exit when they have finished their requests.
    pub(super) draining: Vec<SupervisedProcess>,
    /// Processes that notified us before their predecessor announced them, because the predecessor
    /// died or stopped while it started them.
    pub(super) unannounced: Vec<SupervisedProcess>,

    // What is in progress.
    pub(super) rolling_restart: Option<RollingRestart>,
    /// The result of the last restart that a signal or a control client requested.
    pub(super) last_restart: Option<Answer>,
    /// An upgrade of the supervisor was requested, and begins when no restart is in progress.
    pub(super) upgrade_wanted: bool,
    /// The control clients that wait for the result of the upgrade.
    pub(super) upgrade_clients: Vec<u64>,
    pub(super) dry_run: Option<DryRun>,
    pub(super) shutdown: Option<Shutdown>,

    // What has happened so far.
    pub(super) started_at: Instant,
    /// A process has been ready. Until then, only the first slot starts one.
    pub(super) has_been_ready: bool,
    /// All slots have been ready, and the service manager was sent READY=1.
    pub(super) sent_ready: bool,
    /// A SIGTERM or SIGINT has been received. A second one stops at once.
    stop_signal_received: bool,
    /// The supervisor's exit code if every slot is given up.
    pub(super) exit_code: i32,

    // What the supervisor itself is watched and found by.
    /// The time between two watchdog notifications of the supervisor itself: half of what the
    /// service manager allows.
    watchdog_interval: Option<Duration>,
    /// When the next one is due.
    next_watchdog: Deadline,
    pub(super) pid_file: Option<PidFile>,
}

/// A stop in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shutdown {
    /// When processes that have not exited are killed. After that, when the supervisor exits
    /// without waiting for them.
    pub(super) deadline: Deadline,
    /// Processes cannot extend the deadline.
    pub(super) is_immediate: bool,
    /// SIGKILL was sent to all processes.
    pub(super) killed: bool,
}

/// How long processes may take to exit after SIGKILL, and after SIGQUIT before SIGKILL follows.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// At most this many notifications are handled in one round, so that other events get their turn.
const MAX_NOTIFICATIONS: usize = 1024;

/// The pause after an error of the wait itself, so that the loop does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

impl Run {
    /// Takes or makes what the first process needs: listeners, sockets, files.
    pub(super) fn new(settings: Settings, program: Program, signals: SignalFd) -> io::Result<Self> {
        let listeners = HeldListeners::inherit_or_bind(Inherited::take(), &settings)?;
        let notify = NotifySocket::bind()?;
        let lifeline = sys::message::create_pair()?;
        let mut run = Self::from_parts(settings, program, signals, notify, lifeline, listeners)?;
        let (control, pid_file) = (&run.settings.control, &run.settings.pid_file);
        run.control = control.as_deref().map(ControlSocket::bind).transpose()?;
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
    ) -> io::Result<Self> {
        sys::supervision::become_subreaper()?;
        let now = Instant::now();
        let watchdog_interval = notify::watchdog_limit().map(|limit| limit / 2);
        let first = ProcessSlot::new(Deadline::at(Some(now)));
        let others = (1..settings.processes).map(|_| ProcessSlot::new(Deadline::NEVER));
        Ok(Self {
            slots: std::iter::once(first).chain(others).collect(),
            settings,
            program,
            own_program: Program::of_this_process()?,
            signals,
            notify_socket,
            control: None,
            listeners,
            lifeline,
            draining: Vec::new(),
            unannounced: Vec::new(),
            rolling_restart: None,
            last_restart: None,
            upgrade_wanted: false,
            upgrade_clients: Vec::new(),
            dry_run: None,
            shutdown: None,
            started_at: now,
            has_been_ready: false,
            sent_ready: false,
            stop_signal_received: false,
            exit_code: 0,
            watchdog_interval,
            next_watchdog: Deadline::at(watchdog_interval.map(|_| now)),
            pid_file: None,
        })
    }

    /// Supervises until no process is left and none is to be started. Returns the exit code.
    pub(super) fn run_until_stopped(mut self) -> i32 {
        loop {
            // Requests come before exits: a process that exits because of a stop gets no
            // replacement.
            self.handle_signals();
            self.handle_control_requests();
            self.reap_children();
            self.handle_deadlines();
            self.advance_rolling_restart();
            self.advance_upgrade();
            if self.is_finished() {
                return self.finish();
            }
            let timeout = self.next_deadline().time_left(Instant::now());
            let mut sockets = vec![self.notify_socket.socket()];
            if let Some(control) = &self.control {
                sockets.extend(control.sockets());
            }
            let processes = self.processes().map(|process| &process.pidfd);
            if let Err(error) =
                sys::supervision::wait_for_any(&self.signals, &sockets, processes, timeout)
            {
                log::error!("cannot wait for events: {error}");
                std::thread::sleep(ERROR_PAUSE);
            }
        }
    }

    fn is_finished(&self) -> bool {
        let gives_up = self
            .shutdown
            .is_some_and(|stop| stop.killed && stop.deadline.has_passed(Instant::now()));
        let has_process = self.processes().next().is_some() || self.dry_run.is_some();
        gives_up || !has_process && self.slots.iter().all(ProcessSlot::is_down)
    }

    fn finish(self) -> i32 {
        if notify::has_store() {
            self.listeners.keep_socket_files();
        }
        if self.shutdown.is_some_and(|stop| stop.killed) {
            // Processes that were killed may have left children behind.
            for orphan in ancestry::children() {
                log::warn!("killing process {orphan}, which a killed process has left behind");
                SupervisedProcess::new(orphan, 0, Deadline::NEVER).send(Signal::Kill);
            }
        }
        log::info!("the supervisor exits");
        match self.shutdown {
            Some(stop) if stop.killed => 1,
            Some(_) => 0,
            None => self.exit_code,
        }
    }

    /// All processes that serve, are to serve, or have served.
    pub(super) fn processes(&self) -> impl Iterator<Item = &SupervisedProcess> {
        self.locations().map(|(_, process)| process)
    }

    pub(super) fn processes_mut(&mut self) -> impl Iterator<Item = &mut SupervisedProcess> {
        let slots = self.slots.iter_mut();
        slots
            .flat_map(|slot| [&mut slot.current, &mut slot.successor])
            .flatten()
            .chain(&mut self.draining)
            .chain(&mut self.unannounced)
    }

    // ---- signals and stops ----

    fn handle_signals(&mut self) {
        let failed = |error: &io::Error| log::error!("cannot read signals: {error}");
        while let Ok(Some(signal)) = self.signals.read().inspect_err(failed) {
            log::info!("received {signal}");
            match signal {
                Signal::Hangup => self.begin_rolling_restart(None),
                Signal::User2 => self.upgrade(None),
                Signal::User1 => {
                    // SIGUSR1 kills a process that has not installed its handler yet.
                    self.processes()
                        .filter(|process| process.ready_since.is_some())
                        .for_each(|process| process.send(Signal::User1));
                }
                Signal::Interrupt | Signal::Terminate if self.stop_signal_received => {
                    self.stop_now();
                }
                Signal::Interrupt | Signal::Terminate => {
                    self.stop_signal_received = true;
                    self.stop();
                }
                Signal::Quit => self.stop_now(),
                Signal::Abort | Signal::Kill => {}
            }
        }
    }

    fn send_signal_to_all(&self, signal: Signal) {
        self.processes().for_each(|process| process.send(signal));
    }

    /// Makes all processes finish their requests and exit.
    pub(super) fn stop(&mut self) {
        if self.shutdown.is_some() {
            return;
        }
        let timeout = self.settings.stop_timeout;
        notify::send_stopping("stopping");
        notify::request_more_time(timeout.saturating_add(KILL_TIMEOUT));
        self.begin_stop(timeout, false);
        self.send_signal_to_all(Signal::Terminate);
    }

    /// Makes all processes exit without finishing their requests.
    fn stop_now(&mut self) {
        notify::send_stopping("stopping at once");
        self.begin_stop(KILL_TIMEOUT, true);
        self.send_signal_to_all(Signal::Quit);
    }

    fn begin_stop(&mut self, timeout: Duration, is_immediate: bool) {
        let deadline = Deadline::after(Instant::now(), timeout);
        let before = self.shutdown.map_or(Deadline::NEVER, |stop| stop.deadline);
        self.shutdown = Some(Shutdown {
            deadline: deadline.earlier(before),
            is_immediate,
            killed: self.shutdown.is_some_and(|stop| stop.killed),
        });
        if let Some(dry_run) = &self.dry_run {
            dry_run.process.send(Signal::Kill);
        }
        for slot in &mut self.slots {
            slot.start_at = Deadline::NEVER;
        }
        // The deadline of the stop replaces those of the processes.
        for process in self.processes_mut().filter(|process| !process.aborted) {
            process.deadline = Deadline::NEVER;
        }
        self.end_rolling_restart(Some("the supervisor is being stopped".to_owned()));
        self.end_upgrade(Some("the supervisor is being stopped".to_owned()));
    }

    // ---- exits and notifications ----

    /// Handles exits, but first the notifications: a process may have sent some before its exit.
    fn reap_children(&mut self) {
        let failed = |error: &io::Error| log::error!("cannot reap child processes: {error}");
        let reap_child = || sys::supervision::reap_child().inspect_err(failed).ok()?;
        let exits: Vec<_> = std::iter::from_fn(reap_child).collect();
        self.read_notifications();
        for (pid, status) in exits {
            self.handle_exit(pid, Some(status));
        }
        // Successors are reaped by their predecessors, so that their exit status is not known here.
        // Once its predecessor has exited, a successor is a child of the supervisor.
        let others = self.processes().filter(|process| !process.started_here);
        let exited = others.filter(|process| process.pidfd.has_ended());
        let pids = exited.map(|process| process.pid);
        let pids: Vec<_> = pids
            .filter(|pid| !sys::supervision::is_child(*pid))
            .collect();
        for pid in pids {
            self.handle_exit(pid, None);
        }
    }

    fn read_notifications(&mut self) {
        for _ in 0..MAX_NOTIFICATIONS {
            match self.notify_socket.receive() {
                Ok(Some(datagram)) => self.handle_notification(datagram),
                Ok(None) => return,
                Err(error) => return log::error!("cannot read notifications: {error}"),
            }
        }
    }

    // ---- deadlines ----

    fn handle_deadlines(&mut self) {
        let now = Instant::now();
        let is_due = self.next_watchdog.has_passed(now);
        if let Some(interval) = self.watchdog_interval.filter(|_| is_due) {
            self.next_watchdog = Deadline::after(now, interval);
            notify::send_watchdog_alive();
        }
        self.start_due_processes(now);
        self.mark_due_ready(now);
        self.abort_hung_processes(now);
        self.handle_process_deadlines(now);
        if let Some(stop) = &mut self.shutdown {
            if stop.deadline.has_passed(now) && !stop.killed {
                log::error!("the stop has timed out: killing the processes that are left");
                *stop = Shutdown {
                    deadline: Deadline::after(now, KILL_TIMEOUT),
                    is_immediate: true,
                    killed: true,
                };
                self.send_signal_to_all(Signal::Kill);
            }
        }
        if let Some(control) = &mut self.control {
            control.expire(now);
        }
    }

    fn next_deadline(&self) -> Deadline {
        let slots = self.slots.iter();
        let slots = slots.flat_map(|slot| [slot.start_at, self.watchdog_deadline(slot)]);
        let dry_run = self.dry_run.iter().map(|dry_run| &dry_run.process);
        let processes = self.processes().chain(dry_run);
        let restart = self.rolling_restart.as_ref();
        let others = [
            self.shutdown.map(|stop| stop.deadline),
            restart.map(|restart| restart.deadline),
            self.control.as_ref().map(ControlSocket::deadline),
        ];
        slots
            .chain(processes.map(|process| process.deadline))
            .chain(others.into_iter().flatten())
            .fold(self.next_watchdog, Deadline::earlier)
    }
}
