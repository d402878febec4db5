//! What a supervisor leaves to the program that replaces it: lines of words, with the numbers of
//! descriptors that stay open. Times are ages in milliseconds; `-` is nothing.

use std::fmt;
use std::io;
use std::str::{FromStr, Split};
use std::time::{Duration, Instant};

use super::Settings;
use super::backoff::Backoff;
use super::control::ControlSocket;
use super::listeners::{HeldListeners, ListenerId};
use super::run::Run;
use super::slot::{Slot, SupervisedProcess};
use crate::clock::{Deadline, in_millis};
use crate::listener::Listener;
use crate::notify;
use crate::restart::{PidFile, Program};
use crate::sys::{self, Descriptor, NotifySocket, Signal, SignalFd};

/// The version of these lines.
const FORMAT: u32 = 1;

/// Everything, in the form in which it is written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    age: u64,
    announced: bool,
    opened: bool,
    notify: i32,
    lifeline: (i32, i32),
    control: Option<i32>,
    exit_code: i32,
    /// Those who wait to hear how the upgrade went.
    waiters: Vec<i32>,
    listeners: Vec<ListenerLine>,
    slots: Vec<SlotLine>,
    processes: Vec<ProcessLine>,
}

#[derive(Debug, PartialEq, Eq)]
struct ListenerLine {
    number: i32,
    pinned: bool,
    about: notify::Held,
}

#[derive(Debug, PartialEq, Eq)]
struct SlotLine {
    generation: u64,
    restarts: u64,
    deaths: u32,
    before_ready: u32,
    /// In how long a process is to be started.
    due: Option<u64>,
    last_end: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct ProcessLine {
    /// Of the process that serves there; one that drains has none any more.
    slot: Option<usize>,
    pid: u32,
    generation: u64,
    age: u64,
    ready: Option<u64>,
    heard: Option<u64>,
    is_own: bool,
    watchdog: Option<u64>,
    replaced_in: Option<usize>,
    restarts_itself: bool,
    stopping: bool,
    /// In how long it is late.
    deadline: Option<u64>,
    aborted: bool,
    /// The places of its listeners among all.
    listeners: Vec<usize>,
    status: String,
}

fn age(of: Instant) -> u64 {
    in_millis(of.elapsed())
}

fn left(deadline: Deadline) -> Option<u64> {
    deadline.left(Instant::now()).map(in_millis)
}

fn ago(age: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(age)).unwrap_or(now)
}

fn in_future(left: Option<u64>) -> Deadline {
    let deadline = |left| Deadline::after(Instant::now(), Duration::from_millis(left));
    left.map_or(Deadline::NEVER, deadline)
}

impl Snapshot {
    /// Takes it, and copies of all descriptors in it, which must be open as long as it is to be of
    /// use.
    pub(super) fn of(run: &Run, kept: &mut Vec<Descriptor>) -> io::Result<Self> {
        let mut keep = |socket| -> io::Result<i32> {
            let copy = sys::descriptor::duplicate(socket)?;
            let number = sys::descriptor::number(&copy);
            kept.push(copy);
            Ok(number)
        };
        let mut snapshot = Self {
            age: age(run.started_at),
            announced: run.sent_ready,
            opened: run.first_was_ready,
            exit_code: run.exit_code,
            notify: keep(run.notify_socket.socket())?,
            lifeline: (keep(&run.lifeline.0)?, keep(&run.lifeline.1)?),
            ..Self::default()
        };
        if let Some(control) = &run.control {
            snapshot.control = Some(keep(&control.listener.socket)?);
            for id in &run.upgrade_waiters {
                if let Some(socket) = control.socket_of(*id) {
                    snapshot.waiters.push(keep(socket)?);
                }
            }
        }
        for one in run.listeners.iter() {
            snapshot.listeners.push(ListenerLine {
                number: keep(&one.listener.socket)?,
                pinned: one.pinned,
                about: one.about.clone(),
            });
        }
        let ids: Vec<ListenerId> = run.listeners.iter().map(|one| one.id).collect();
        for (index, slot) in run.slots.iter().enumerate() {
            snapshot.slots.push(SlotLine {
                generation: slot.generation,
                restarts: slot.restarts,
                deaths: slot.backoff.deaths,
                before_ready: slot.backoff.deaths_before_ready,
                due: left(slot.start_at),
                last_end: slot.last_end.as_ref().map(notify::one_line),
            });
            let main = slot
                .main
                .iter()
                .map(|main| ProcessLine::of(main, Some(index), &ids));
            snapshot.processes.extend(main);
        }
        let others = run.draining.iter().chain(&run.unannounced);
        let others = others.map(|process| ProcessLine::of(process, None, &ids));
        snapshot.processes.extend(others);
        Ok(snapshot)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut snapshot = Self::default();
        for line in text.lines() {
            snapshot
                .add(line)
                .ok_or_else(|| format!("not understood: {line:?}"))?;
        }
        match snapshot.slots.is_empty() {
            true => Err("the state is not whole".to_owned()),
            false => Ok(snapshot),
        }
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let mut words = Words(line.split(' '));
        match words.0.next()? {
            "format" if words.next::<u32>()? == FORMAT => {}
            "supervisor" => {
                self.age = words.next()?;
                self.announced = words.next()?;
                self.opened = words.next()?;
                self.notify = words.next()?;
                self.lifeline = (words.next()?, words.next()?);
                self.control = words.maybe()?;
                self.exit_code = words.next()?;
            }
            "waiter" => self.waiters.push(words.next()?),
            "listener" => self.listeners.push(ListenerLine {
                number: words.next()?,
                pinned: words.next()?,
                about: words.next()?,
            }),
            "slot" => self.slots.push(SlotLine {
                generation: words.next()?,
                restarts: words.next()?,
                deaths: words.next()?,
                before_ready: words.next()?,
                due: words.maybe()?,
                last_end: Some(words.rest()).filter(|end| !end.is_empty()),
            }),
            "process" => self.processes.push(ProcessLine {
                slot: words.maybe()?,
                pid: words.next()?,
                generation: words.next()?,
                age: words.next()?,
                ready: words.maybe()?,
                heard: words.maybe()?,
                is_own: words.next()?,
                watchdog: words.maybe()?,
                replaced_in: words.maybe()?,
                restarts_itself: words.next()?,
                stopping: words.next()?,
                deadline: words.maybe()?,
                aborted: words.next()?,
                listeners: words.0.next()?.split('+').flat_map(str::parse).collect(),
                status: words.rest(),
            }),
            _ => return None,
        }
        Some(())
    }

    /// Makes a supervisor of it, with the settings of this program.
    pub(super) fn restore(
        self,
        settings: Settings,
        program: Program,
        signals: SignalFd,
    ) -> io::Result<Run> {
        let socket = |number| sys::descriptor::adopt(number).and_then(sys::descriptor::into_socket);
        let notify = NotifySocket::from_bound(socket(self.notify)?)?;
        let lifeline = (socket(self.lifeline.0)?, socket(self.lifeline.1)?);
        let mut control = None;
        let mut waiters = Vec::new();
        if let Some(number) = self.control {
            let socket = socket(number)?;
            let listener = Listener::for_others(socket, "control".to_owned(), true)?;
            listener.set_own_path(true);
            control = Some(ControlSocket::new(listener));
        }
        for number in self.waiters {
            let socket = socket(number)?;
            waiters.extend(
                control
                    .as_mut()
                    .map(|control| control.adopt(socket, Deadline::NEVER)),
            );
        }
        let (mut listeners, mut ids) = (HeldListeners::default(), Vec::new());
        for line in self.listeners {
            ids.push(listeners.add_descriptor(
                line.about,
                sys::descriptor::adopt(line.number)?,
                line.pinned,
            )?);
        }
        // From here on, nothing of what was asked for may end a service that works.
        listeners.bind_missing(&settings.listen, settings.foreign);
        if let (None, Some(path)) = (&control, &settings.control) {
            match ControlSocket::bind(path) {
                Ok(bound) => control = Some(bound),
                Err(error) => log::error!("{error}"),
            }
        }
        let mut pid_file = None;
        if let Some(path) = &settings.pid_file {
            match PidFile::replace(path) {
                Ok(file) => pid_file = Some(file),
                Err(error) => log::error!("cannot write {}: {error}", path.display()),
            }
        }
        let wanted = settings.processes;
        let mut run = Run::from_parts(
            settings, program, signals, notify, lifeline, control, listeners,
        )?;
        run.pid_file = pid_file;
        run.started_at = ago(self.age);
        run.sent_ready = self.announced;
        run.first_was_ready = self.opened;
        run.exit_code = self.exit_code;
        run.upgrade_waiters = waiters;
        run.slots = self.slots.into_iter().map(SlotLine::restore).collect();
        for line in self.processes {
            let (slot, process) = (line.slot, line.restore(&ids));
            match slot.and_then(|slot| run.slots.get_mut(slot)) {
                Some(slot) => slot.main = Some(process),
                None => run.draining.push(process),
            }
        }
        let now = Deadline::at(Some(Instant::now()));
        while run.slots.len() < wanted {
            run.slots
                .push(Slot::new(if self.opened { now } else { Deadline::NEVER }));
        }
        for surplus in run.slots.split_off(wanted) {
            if let Some(main) = surplus.main {
                main.send(Signal::Terminate);
                run.drain(main);
            }
        }
        Ok(run)
    }
}

impl SlotLine {
    fn restore(self) -> Slot {
        Slot {
            generation: self.generation,
            restarts: self.restarts,
            backoff: Backoff {
                deaths: self.deaths,
                deaths_before_ready: self.before_ready,
            },
            last_end: self.last_end,
            ..Slot::new(in_future(self.due))
        }
    }
}

impl ProcessLine {
    fn of(process: &SupervisedProcess, slot: Option<usize>, ids: &[ListenerId]) -> Self {
        let listeners = process.listeners.iter();
        Self {
            slot,
            pid: process.pid,
            generation: process.generation,
            age: age(process.started_at),
            ready: process.ready_since.map(age),
            heard: process.last_watchdog.map(age),
            is_own: process.started_here,
            watchdog: process.watchdog.map(in_millis),
            replaced_in: process.replaced_in,
            restarts_itself: process.restarts_itself,
            stopping: process.stopping,
            deadline: left(process.deadline),
            aborted: process.aborted,
            listeners: listeners
                .flat_map(|id| ids.iter().position(|known| known == id))
                .collect(),
            status: process.status.clone(),
        }
    }

    fn restore(self, ids: &[ListenerId]) -> SupervisedProcess {
        SupervisedProcess {
            started_at: ago(self.age),
            ready_since: self.ready.map(ago),
            last_watchdog: self.heard.map(ago),
            watchdog: self.watchdog.map(Duration::from_millis),
            replaced_in: self.replaced_in,
            started_here: self.is_own && sys::supervision::is_child(self.pid),
            restarts_itself: self.restarts_itself,
            stopping: self.stopping,
            aborted: self.aborted,
            status: self.status,
            listeners: self
                .listeners
                .iter()
                .filter_map(|at| ids.get(*at).copied())
                .collect(),
            ..SupervisedProcess::new(self.pid, self.generation, in_future(self.deadline))
        }
    }
}

struct Words<'a>(Split<'a, char>);

impl Words<'_> {
    fn next<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }

    fn maybe<T: FromStr>(&mut self) -> Option<Option<T>> {
        match self.0.next()? {
            "-" => Some(None),
            word => Some(Some(word.parse().ok()?)),
        }
    }

    fn rest(self) -> String {
        self.0.collect::<Vec<_>>().join(" ")
    }
}

/// A word that may be missing.
struct Maybe<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (notify, lifeline, control) = (self.notify, self.lifeline, Maybe(self.control));
        let (age, announced, opened) = (self.age, self.announced, self.opened);
        writeln!(f, "format {FORMAT}")?;
        writeln!(
            f,
            "supervisor {age} {announced} {opened} {notify} {} {} {control} {}",
            lifeline.0, lifeline.1, self.exit_code
        )?;
        for waiter in &self.waiters {
            writeln!(f, "waiter {waiter}")?;
        }
        for line in &self.listeners {
            writeln!(f, "listener {} {} {}", line.number, line.pinned, line.about)?;
        }
        for line in &self.slots {
            writeln!(
                f,
                "slot {} {} {} {} {} {}",
                line.generation,
                line.restarts,
                line.deaths,
                line.before_ready,
                Maybe(line.due),
                line.last_end.as_deref().unwrap_or_default()
            )?;
        }
        for line in &self.processes {
            let listeners = line.listeners.iter().map(usize::to_string);
            writeln!(
                f,
                "process {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
                Maybe(line.slot),
                line.pid,
                line.generation,
                line.age,
                Maybe(line.ready),
                Maybe(line.heard),
                line.is_own,
                Maybe(line.watchdog),
                Maybe(line.replaced_in),
                line.restarts_itself,
                line.stopping,
                Maybe(line.deadline),
                line.aborted,
                listeners.collect::<Vec<_>>().join("+"),
                line.status
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_survives_as_text() {
        let snapshot = Snapshot {
            age: 12,
            announced: true,
            notify: 4,
            lifeline: (5, 6),
            control: Some(7),
            exit_code: 78,
            waiters: vec![8, 9],
            listeners: vec![ListenerLine {
                number: 10,
                pinned: true,
                about: "3127.0.0.1_80".parse().unwrap(),
            }],
            slots: vec![
                SlotLine {
                    generation: 3,
                    restarts: 2,
                    deaths: 1,
                    before_ready: 0,
                    due: Some(100),
                    last_end: Some("process 1 ended (signal: 6)".to_owned()),
                },
                SlotLine {
                    generation: 0,
                    restarts: 0,
                    deaths: 0,
                    before_ready: 0,
                    due: None,
                    last_end: None,
                },
            ],
            processes: vec![ProcessLine {
                slot: None,
                pid: 77,
                generation: 2,
                age: 1000,
                ready: Some(900),
                heard: Some(10),
                is_own: false,
                watchdog: Some(60_000),
                replaced_in: None,
                restarts_itself: true,
                stopping: false,
                deadline: None,
                aborted: false,
                listeners: vec![0, 1],
                status: "generation 2 serves".to_owned(),
            }],
            ..Snapshot::default()
        };
        assert_eq!(
            Snapshot::parse(&snapshot.to_string()).as_ref(),
            Ok(&snapshot)
        );
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in ["", "format 1", "format 2\nslot 1 1 1 1 - ", "slot 1", "x"] {
            assert!(Snapshot::parse(text).is_err(), "{text:?}");
        }
    }
}
