//! The supervisor's life: one loop over signals, what processes say, how they end, what the control socket asks for, and
//! the time.

use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::Settings;
use super::ancestry;
use super::control::ControlSocket;
use super::listeners::HeldListeners;
use super::rolling_restart::{RestartResult, RollingRestart};
use super::slot::{Slot, SupervisedProcess};
use super::upgrade::Rehearsal;
use crate::clock::Deadline;
use crate::notify;
use crate::restart::{Inherited, PidFile, Program};
use crate::sys::{self, NotifySocket, Signal, SignalFd};

/// See the module `supervisor`.
pub(super) struct Run {
    pub(super) settings: Settings,
    /// The one that serves.
    pub(super) program: Program,
    /// The one that this process runs.
    pub(super) own: Program,
    pub(super) signals: SignalFd,
    pub(super) notify: NotifySocket,
    /// Its end tells serving processes of the supervisor's: this one's end, and theirs.
    pub(super) lifeline: (Socket, Socket),
    pub(super) control: Option<ControlSocket>,
    pub(super) listeners: HeldListeners,
    pub(super) slots: Vec<Slot>,
    /// Those that come to their end by themselves.
    pub(super) draining: Vec<SupervisedProcess>,
    /// Those that speak, and that nobody has spoken of: a process died as it started a successor.
    pub(super) unannounced: Vec<SupervisedProcess>,
    pub(super) rolling: Option<RollingRestart>,
    pub(super) last_restart: Option<RestartResult>,
    pub(super) rehearsal: Option<Rehearsal>,
    /// Who wants the supervisor itself to be replaced, as soon as nothing else is under way.
    pub(super) upgrade_wanted: bool,
    pub(super) upgrade_waiters: Vec<u64>,
    pub(super) stop: Option<Shutdown>,
    pub(super) since: Instant,
    /// All processes have been ready once.
    pub(super) announced: bool,
    /// Some process has been: the others may start.
    pub(super) opened: bool,
    interrupted: bool,
    /// If nobody is left to serve.
    pub(super) exit_code: i32,
    pub(super) pid_file: Option<PidFile>,
    own_beat: OwnBeat,
}

/// A stop in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shutdown {
    pub(super) deadline: Deadline,
    /// Nobody gets more time.
    pub(super) at_once: bool,
    /// Those that were there have been killed.
    pub(super) killed: bool,
}

/// How long what was killed may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How many notifications are read before anything else is looked at again.
const AT_ONCE: usize = 1024;

/// How long the system is left alone that does not even let the supervisor wait.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The beat that the service manager wants from the supervisor itself.
struct OwnBeat {
    every: Option<Duration>,
    next: Instant,
}

impl Run {
    /// Everything that is there before the first process: listeners, sockets, files.
    pub(super) fn new(settings: Settings, program: Program, signals: SignalFd) -> io::Result<Self> {
        let listeners = HeldListeners::open(Inherited::take(), &settings.listen, settings.foreign)?;
        let control = settings
            .control
            .as_deref()
            .map(ControlSocket::bind)
            .transpose()?;
        let notify = NotifySocket::bind()?;
        let lifeline = sys::message::create_pair()?;
        let mut run = Self::with(
            settings, program, signals, notify, lifeline, control, listeners,
        )?;
        let pid_file = run.settings.pid_file.as_deref();
        run.pid_file = pid_file.map(PidFile::claim).transpose()?;
        Ok(run)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn with(
        settings: Settings,
        program: Program,
        signals: SignalFd,
        notify: NotifySocket,
        lifeline: (Socket, Socket),
        control: Option<ControlSocket>,
        listeners: HeldListeners,
    ) -> io::Result<Self> {
        sys::supervision::become_subreaper()?;
        let now = Instant::now();
        let first = Slot::new(Deadline::at(Some(now)));
        let others = (1..settings.processes).map(|_| Slot::new(Deadline::NEVER));
        Ok(Self {
            slots: std::iter::once(first).chain(others).collect(),
            settings,
            program,
            own: Program::of_this_process()?,
            signals,
            notify,
            lifeline,
            control,
            listeners,
            draining: Vec::new(),
            unannounced: Vec::new(),
            rolling: None,
            last_restart: None,
            rehearsal: None,
            upgrade_wanted: false,
            upgrade_waiters: Vec::new(),
            stop: None,
            since: now,
            announced: false,
            opened: false,
            interrupted: false,
            exit_code: 0,
            pid_file: None,
            own_beat: OwnBeat {
                every: notify::watchdog_limit().map(|limit| limit / 2),
                next: now,
            },
        })
    }

    /// Until nobody is left to look after. Returns the exit code.
    pub(super) fn run(mut self) -> i32 {
        loop {
            // First why, then what came of it: a process that was told to end is not started again.
            self.obey_signals();
            self.obey_control();
            self.reap_children();
            self.look_at_clock();
            self.roll();
            self.upgrade_if_wanted();
            if self.is_over() {
                return self.end();
            }
            let timeout = self.next().left(Instant::now());
            let mut sockets = vec![self.notify.socket()];
            if let Some(control) = &self.control {
                sockets.extend(control.sockets());
            }
            let processes = self.live().map(|process| &process.handle);
            if let Err(error) =
                sys::supervision::wait_for_any(&self.signals, &sockets, processes, timeout)
            {
                log::error!("cannot wait: {error}");
                std::thread::sleep(AFTER_ERROR);
            }
        }
    }

    fn is_over(&self) -> bool {
        let live = self.live().count() + usize::from(self.rehearsal.is_some());
        let is_late = self
            .stop
            .is_some_and(|stop| stop.killed && stop.deadline.passed(Instant::now()));
        is_late || live == 0 && self.slots.iter().all(Slot::is_given_up)
    }

    fn end(self) -> i32 {
        if notify::has_store() {
            self.listeners.leave_files();
        }
        if self.stop.is_some_and(|stop| stop.killed) {
            // What those have left that were killed.
            for orphan in ancestry::children() {
                log::warn!("killing process {orphan}, which a process has left that was killed");
                SupervisedProcess::new(orphan, 0, Deadline::NEVER).send(Signal::Kill);
            }
        }
        log::info!("ending");
        match self.stop {
            Some(stop) if stop.killed => 1,
            Some(_) => 0,
            None => self.exit_code,
        }
    }

    /// See [`live`](Self::live).
    pub(super) fn live_mut(&mut self) -> impl Iterator<Item = &mut SupervisedProcess> {
        let slots = self.slots.iter_mut();
        let slots = slots.flat_map(|slot| [&mut slot.main, &mut slot.next]);
        slots
            .flatten()
            .chain(&mut self.draining)
            .chain(&mut self.unannounced)
    }

    /// All processes that serve, or have or are to.
    pub(super) fn live(&self) -> impl Iterator<Item = &SupervisedProcess> {
        let slots = self.slots.iter().flat_map(|slot| [&slot.main, &slot.next]);
        slots
            .flatten()
            .chain(&self.draining)
            .chain(&self.unannounced)
    }

    // ---- signals ----

    fn obey_signals(&mut self) {
        loop {
            let signal = match self.signals.read() {
                Ok(Some(signal)) => signal,
                Ok(None) => return,
                Err(error) => {
                    log::error!("cannot read signals: {error}");
                    return;
                }
            };
            log::info!("{signal}");
            match signal {
                Signal::Hangup => self.restart(None),
                Signal::User2 => self.upgrade(None),
                Signal::User1 => {
                    // It would end a process that does not handle it yet.
                    let ready = self.live().filter(|process| process.ready.is_some());
                    ready.for_each(|process| process.send(Signal::User1));
                }
                Signal::Interrupt if self.interrupted => self.stop_now(),
                Signal::Interrupt => {
                    self.interrupted = true;
                    self.stop();
                }
                Signal::Terminate => self.stop(),
                Signal::Quit => self.stop_now(),
                Signal::Abort | Signal::Kill => {}
            }
        }
    }

    fn signal_all(&self, signal: Signal) {
        self.live().for_each(|process| process.send(signal));
    }

    /// Has all processes finish what they have, and ends.
    pub(super) fn stop(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let within = self.settings.stop_timeout;
        notify::stopping("stopping");
        notify::extend(within + KILL_TIMEOUT);
        self.begin_stop(within, false);
        self.signal_all(Signal::Terminate);
    }

    fn stop_now(&mut self) {
        notify::stopping("stopping at once");
        self.begin_stop(KILL_TIMEOUT, true);
        self.signal_all(Signal::Quit);
    }

    fn begin_stop(&mut self, within: Duration, at_once: bool) {
        let deadline = Deadline::after(Instant::now(), within);
        let before = self.stop.map_or(Deadline::NEVER, |stop| stop.deadline);
        self.stop = Some(Shutdown {
            deadline: deadline.earlier(before),
            at_once,
            killed: self.stop.is_some_and(|stop| stop.killed),
        });
        if let Some(rehearsal) = &self.rehearsal {
            rehearsal.process.send(Signal::Kill);
        }
        for slot in &mut self.slots {
            slot.due = Deadline::NEVER;
        }
        // They have this one deadline now.
        for process in self.live_mut().filter(|process| !process.aborted) {
            process.deadline = Deadline::NEVER;
        }
        self.end_roll(Some("the supervisor is being stopped".to_owned()));
        self.end_upgrade(Err("the supervisor is being stopped".to_owned()));
    }

    // ---- ends ----

    /// Takes note of what processes have said, and of their ends: what one has said before its end comes first.
    fn reap_children(&mut self) {
        let mut ends = Vec::new();
        loop {
            match sys::supervision::reap_child() {
                Ok(Some(end)) => ends.push(end),
                Ok(None) => break,
                Err(error) => {
                    log::error!("cannot wait for processes: {error}");
                    break;
                }
            }
        }
        self.hear();
        for (pid, status) in ends {
            self.ended(pid, Some(status));
        }
        // The others are their predecessors' to reap_children as long as these live, and nobody says how they have ended.
        let others = self
            .live()
            .filter(|process| !process.is_own && process.handle.has_ended());
        let others: Vec<u32> = others.map(|process| process.pid).collect();
        for pid in others
            .into_iter()
            .filter(|pid| !sys::supervision::is_child(*pid))
        {
            self.ended(pid, None);
        }
    }

    // ---- what is said ----

    fn hear(&mut self) {
        for _ in 0..AT_ONCE {
            match self.notify.receive() {
                Ok(Some(notification)) => self.handle_notification(notification),
                Ok(None) => return,
                Err(error) => return log::error!("cannot read what processes say: {error}"),
            }
        }
    }

    // ---- time ----

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if let Some(every) = self.own_beat.every.filter(|_| now >= self.own_beat.next) {
            self.own_beat.next = now + every;
            notify::watchdog_alive();
        }
        self.look_at_processes(now);
        if let Some(stop) = &mut self.stop {
            if stop.deadline.passed(now) && !stop.killed {
                log::error!("ending what has not ended by itself");
                *stop = Shutdown {
                    deadline: Deadline::after(now, KILL_TIMEOUT),
                    at_once: true,
                    killed: true,
                };
                self.signal_all(Signal::Kill);
            }
        }
        if let Some(control) = &mut self.control {
            control.expire(now);
        }
    }

    fn next(&self) -> Deadline {
        let mut next = self.stop.map_or(Deadline::NEVER, |stop| stop.deadline);
        for slot in &self.slots {
            next = next.earlier(slot.due);
            if let Some(main) = &slot.main {
                next = next.earlier(self.beat_deadline(main));
            }
        }
        for process in self.live() {
            next = next.earlier(process.deadline);
        }
        let rehearsal = self.rehearsal.as_ref().map(|rehearsal| rehearsal.deadline);
        let rolling = self.rolling.as_ref().map(|rolling| rolling.deadline);
        let control = self.control.as_ref().map(ControlSocket::deadline);
        let beat = self.own_beat.every.map(|_| self.own_beat.next);
        [rehearsal, rolling, control, Some(Deadline::at(beat))]
            .into_iter()
            .flatten()
            .fold(next, Deadline::earlier)
    }
}
