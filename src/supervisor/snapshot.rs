//! Writes the supervisor's state to a [`Snapshot`], and makes a supervisor from one.

use std::io;
use std::time::{Duration, Instant};

use super::Settings;
use super::backoff::Backoff;
use super::control::ControlSocket;
use super::listeners::HeldListeners;
use super::run::Run;
use super::slot::{ProcessSlot, SupervisedProcess};
use crate::clock::{Deadline, in_millis};
use crate::listener::Listener;
use crate::log;
use crate::notify;
use crate::restart::{PidFile, Program, adopt_socket};
use crate::sys::{self, Descriptor, NotifySocket, Signal, SignalFd};
use crate::wire::{ProcessRecord, SlotRecord, Snapshot, SnapshotListener};

fn age_of(since: Instant) -> u64 {
    in_millis(since.elapsed())
}

fn time_to(deadline: Deadline) -> Option<u64> {
    deadline.time_left(Instant::now()).map(in_millis)
}

fn time_before(age_ms: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(age_ms))
        .unwrap_or(now)
}

fn deadline_in(time_ms: Option<u64>) -> Deadline {
    let deadline = |ms| Deadline::after(Instant::now(), Duration::from_millis(ms));
    time_ms.map_or(Deadline::NEVER, deadline)
}

// ---- taking a snapshot ----

/// Takes a snapshot. The descriptors in the snapshot are copies, which are added to `kept`: they
/// must stay open until the snapshot is used.
pub(super) fn take_snapshot(run: &Run, kept: &mut Vec<Descriptor>) -> io::Result<Snapshot> {
    let mut keep = |socket| -> io::Result<i32> {
        let copy = sys::descriptor::duplicate(socket)?;
        let number = sys::descriptor::number(&copy);
        kept.push(copy);
        Ok(number)
    };
    let mut snapshot = Snapshot {
        age_ms: age_of(run.started_at),
        sent_ready: run.sent_ready,
        has_been_ready: run.has_been_ready,
        exit_code: run.exit_code,
        notify_socket: keep(run.notify_socket.socket())?,
        lifeline: [keep(&run.lifeline.0)?, keep(&run.lifeline.1)?],
        ..Snapshot::default()
    };
    if let Some(control) = &run.control {
        snapshot.control = Some(keep(&control.listener.socket)?);
        for id in &run.upgrade_clients {
            if let Some(socket) = control.socket_of(*id) {
                snapshot.upgrade_clients.push(keep(socket)?);
            }
        }
    }
    for held in run.listeners.iter() {
        snapshot.listeners.push(SnapshotListener {
            descriptor: keep(&held.listener.socket)?,
            kept_when_unused: held.kept_when_unused,
            listener: held.record.clone(),
        });
    }
    for (index, slot) in run.slots.iter().enumerate() {
        snapshot.slots.push(SlotRecord {
            generation: slot.generation,
            restarts: slot.restarts,
            failures: slot.backoff.failures,
            failures_before_ready: slot.backoff.failures_before_ready,
            start_in_ms: time_to(slot.start_at),
            last_failure: slot.last_failure.as_ref().map(notify::one_line),
        });
        let record = |current| record_process(current, Some(index));
        snapshot.processes.extend(slot.current.as_ref().map(record));
    }
    let others = run.draining.iter().chain(&run.unannounced);
    let record = |process| record_process(process, None);
    snapshot.processes.extend(others.map(record));
    Ok(snapshot)
}

fn record_process(process: &SupervisedProcess, slot: Option<usize>) -> ProcessRecord {
    ProcessRecord {
        slot,
        pid: process.pid,
        generation: process.generation,
        age_ms: age_of(process.started_at),
        ready_ms: process.ready_since.map(age_of),
        last_watchdog_ms: process.last_watchdog.map(age_of),
        started_here: process.started_here,
        watchdog_ms: process.watchdog.map(in_millis),
        replaced_in: process.replaced_in,
        starts_successors: process.starts_successors,
        stopping: process.stopping,
        deadline_ms: time_to(process.deadline),
        aborted: process.aborted,
        listeners: process.listeners.clone(),
        status: process.status.clone(),
    }
}

// ---- going on from a snapshot ----

/// Makes a supervisor of a snapshot, with the settings of this program.
pub(super) fn restore_snapshot(
    snapshot: Snapshot,
    settings: Settings,
    program: Program,
    signals: SignalFd,
) -> io::Result<Run> {
    let notify = NotifySocket::from_bound(adopt_socket(snapshot.notify_socket)?)?;
    let [own_end, process_end] = snapshot.lifeline;
    let lifeline = (adopt_socket(own_end)?, adopt_socket(process_end)?);
    let mut listeners = HeldListeners::default();
    for held in snapshot.listeners {
        let descriptor = sys::descriptor::adopt(held.descriptor)?;
        listeners.add_descriptor(held.listener, descriptor, held.kept_when_unused)?;
    }
    let mut run = Run::from_parts(settings, program, signals, notify, lifeline, listeners)?;
    run.started_at = time_before(snapshot.age_ms);
    run.sent_ready = snapshot.sent_ready;
    run.has_been_ready = snapshot.has_been_ready;
    run.exit_code = snapshot.exit_code;
    if let Some(listener) = snapshot.control {
        restore_control(&mut run, listener, &snapshot.upgrade_clients)?;
    }
    restore_slots(&mut run, snapshot.slots, snapshot.processes);
    apply_new_settings(&mut run);
    Ok(run)
}

/// Makes what the settings of the new program name, and the snapshot has not. A setting that cannot
/// be met must not end a service that works.
fn apply_new_settings(run: &mut Run) {
    run.listeners.bind_missing(&run.settings);
    if let (None, Some(path)) = (&run.control, &run.settings.control) {
        let failed = |error: &io::Error| log::error!("{error}");
        run.control = ControlSocket::bind(path).inspect_err(failed).ok();
    }
    if let Some(path) = &run.settings.pid_file {
        let failed = |error: &io::Error| log::error!("cannot write {}: {error}", path.display());
        run.pid_file = PidFile::replace(path).inspect_err(failed).ok();
    }
}

/// Restores the control socket, and the clients that wait for the result of the upgrade.
fn restore_control(run: &mut Run, listener: i32, clients: &[i32]) -> io::Result<()> {
    let listener = Listener::for_others(adopt_socket(listener)?, "control".to_owned(), true)?;
    listener.set_removes_file(true);
    let control = run.control.insert(ControlSocket::new(listener));
    for client in clients {
        let id = control.adopt(adopt_socket(*client)?, Deadline::NEVER);
        run.upgrade_clients.push(id);
    }
    Ok(())
}

/// Restores the slots. If the new settings have fewer slots, the processes in the others drain; if
/// more, the slots that are new start processes.
fn restore_slots(run: &mut Run, slots: Vec<SlotRecord>, processes: Vec<ProcessRecord>) {
    run.slots = slots.into_iter().map(restore_slot).collect();
    for record in processes {
        let (slot, process) = (record.slot, restore_process(record));
        match slot.and_then(|slot| run.slots.get_mut(slot)) {
            Some(slot) => slot.current = Some(process),
            None => run.draining.push(process),
        }
    }
    let start_at = Deadline::at(run.has_been_ready.then(Instant::now));
    let wanted = run.settings.processes;
    while run.slots.len() < wanted {
        run.slots.push(ProcessSlot::new(start_at));
    }
    for surplus in run.slots.split_off(wanted) {
        if let Some(current) = surplus.current {
            current.send(Signal::Terminate);
            run.drain(current);
        }
    }
}

fn restore_slot(record: SlotRecord) -> ProcessSlot {
    ProcessSlot {
        generation: record.generation,
        restarts: record.restarts,
        backoff: Backoff {
            failures: record.failures,
            failures_before_ready: record.failures_before_ready,
        },
        last_failure: record.last_failure,
        ..ProcessSlot::new(deadline_in(record.start_in_ms))
    }
}

fn restore_process(record: ProcessRecord) -> SupervisedProcess {
    SupervisedProcess {
        started_at: time_before(record.age_ms),
        ready_since: record.ready_ms.map(time_before),
        last_watchdog: record.last_watchdog_ms.map(time_before),
        watchdog: record.watchdog_ms.map(Duration::from_millis),
        replaced_in: record.replaced_in,
        started_here: record.started_here && sys::supervision::is_child(record.pid),
        starts_successors: record.starts_successors,
        stopping: record.stopping,
        aborted: record.aborted,
        status: record.status,
        listeners: record.listeners,
        ..SupervisedProcess::new(
            record.pid,
            record.generation,
            deadline_in(record.deadline_ms),
        )
    }
}
