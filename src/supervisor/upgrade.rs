//! The upgrade of the supervisor in place: the process keeps its id, its children and its sockets,
//! and executes the file that has the program's name then.
//!
//! Before that comes a [`DryRun`] of the new program. If it fails, the supervisor goes on unchanged.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::Settings;
use super::closer::Closer;
use super::control::{ControlSocket, set_access};
use super::dry_run::{DryRun, read_snapshot};
use super::fleet::event::Event;
use super::lanes::Lanes;
use super::listeners::{HeldListeners, Holder};
use super::output_files::{OutputFiles, log_to};
use super::run::{Run, random_seed};
use super::snapshot::{age_of, record_fleet, record_stragglers};
use super::snapshot::{restore_fleet, restore_stragglers, time_before};
use crate::listener::Listener;
use crate::log;
use crate::notify;
use crate::restart::{PidFile, Program, adopt_socket, launch_variable};
use crate::sys::supervision::{ControlStream, Guardian};
use crate::sys::{self, Descriptor, FoundFile, IfLocked, NotifySocket, SignalFd};
use crate::wire::{Launch, Record, Snapshot, SnapshotListener, WirePath};

/// How long an upgrade waits until what other processes have sent is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

impl Run {
    pub(super) fn start_dry_run(&self) -> io::Result<DryRun> {
        if !sys::supervision::SUPPORTS_UPGRADES {
            let text = "this system cannot replace the program of a process: stop the supervisor, \
                        and start the new program";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        // The dry run only reads the snapshot, so that its descriptors need not stay open.
        DryRun::start(&self.own_program, &self.take_snapshot(&mut Vec::new())?)
    }

    /// Executes the supervisor's program in this process. Returns only an error.
    pub(super) fn execute_own_program(&self) -> io::Result<Infallible> {
        self.wait_for_closers()?;
        let mut kept = Vec::new();
        let snapshot = self.take_snapshot(&mut kept)?.encode()?;
        let file: Descriptor = sys::file::create_anonymous(snapshot.as_bytes())?.into();
        let snapshot = sys::descriptor::number(&file);
        kept.push(file);
        let env_with_pid = [launch_variable(&Launch::Resume { snapshot })?];
        log::info!(
            "executing {} in this process",
            self.own_program.path().display()
        );
        notify::send_status("replacing the supervisor");
        let env = self.own_program.read_env()?;
        let options = self.own_program.spawn_options(&env, &env_with_pid, &kept);
        // What the threads of this program have not written is lost with them.
        log::flush();
        Err(sys::process::replace_program(&options))
    }

    /// The execution of a program ends the threads of this one, and would wait for a thread that
    /// waits for a close.
    fn wait_for_closers(&self) -> io::Result<()> {
        let control = self.control.iter().map(|control| &control.closer);
        let closers = || [&self.closer].into_iter().chain(control.clone());
        let end = Instant::now() + CLOSE_TIMEOUT;
        loop {
            let left: usize = closers().map(Closer::left).sum();
            let left = left + self.discarder.stuck();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                let text = format!("{left} descriptors of other processes cannot be closed");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes a snapshot. The descriptors in the snapshot are copies, which are added to `kept`: they
    /// must stay open until the snapshot is used.
    fn take_snapshot(&self, kept: &mut Vec<Descriptor>) -> io::Result<Snapshot> {
        let keep_copy = |copy: Descriptor, kept: &mut Vec<Descriptor>| -> i32 {
            let number = sys::descriptor::number(&copy);
            kept.push(copy);
            number
        };
        let keep = |socket, kept: &mut Vec<Descriptor>| -> io::Result<i32> {
            Ok(keep_copy(sys::descriptor::duplicate(socket)?, kept))
        };
        let stragglers = &self.stragglers;
        let mut snapshot = Snapshot {
            earlier_children: stragglers.earlier_children.iter().copied().collect(),
            had_children: stragglers.had_children,
            stragglers: record_stragglers(stragglers),
            age_ms: age_of(self.started_at),
            notify_socket: keep_copy(self.notify_socket.duplicate()?, kept),
            lifeline: [keep(&self.lifeline.0, kept)?, keep(&self.lifeline.1, kept)?],
            allowed_binds: self.bind_rules.allowed().to_vec(),
            fleet: record_fleet(&self.fleet),
            pid_file: self
                .pid_file
                .as_ref()
                .and_then(|file| WirePath::new(file.path())),
            ..Snapshot::default()
        };
        let outputs = &self.output_files;
        snapshot.outputs = outputs.records(|descriptor| keep_copy(descriptor, kept))?;
        snapshot.lanes = self
            .lanes
            .records(|descriptor| keep_copy(descriptor, kept))?;
        if let Some(guardian) = &self.guardian {
            let pipe = guardian.pipe().try_clone()?;
            snapshot.guardian = Some((sys::descriptor::number(&pipe), guardian.pid()));
            kept.push(pipe);
        }
        if let Some(control) = &self.control {
            if let Some(listener) = control.listener() {
                snapshot.control = Some(keep(&listener.socket, kept)?);
                snapshot.control_file = listener.file().map(|file| file.id);
            }
            for id in &self.fleet.upgrade.clients {
                if let Some(copy) = control.duplicate_client(*id) {
                    snapshot.upgrade_clients.push(keep_copy(copy?, kept));
                }
            }
        }
        for held in self.listeners.iter() {
            snapshot.listeners.push(SnapshotListener {
                descriptor: keep(&held.listener.socket, kept)?,
                kept_when_unused: held.holder.keeps_when_unused(),
                held_by_manager: held.holder == Holder::ServiceManager,
                listener: held.record.clone(),
                file: held.listener.file().map(|file| file.id),
            });
        }
        Ok(snapshot)
    }

    /// Makes what the settings of the new program name, and the snapshot has not. A setting that
    /// cannot be met must not end a service that works.
    fn apply_new_settings(&mut self, old_pid_file: Option<WirePath>) {
        self.listeners.bind_missing(&self.settings);
        if let (None, Some(path)) = (&self.control, &self.settings.control) {
            let failed = |error: &io::Error| log::error!("{error}");
            self.control = ControlSocket::bind(path, &self.settings, IfLocked::Ignore)
                .inspect_err(failed)
                .ok();
        }
        if let Some(path) = &self.settings.pid_file {
            let failed =
                |error: &io::Error| log::error!("cannot write {}: {error}", path.display());
            self.pid_file = PidFile::renew(path).inspect_err(failed).ok();
        }
        let old = old_pid_file.map(|old| PathBuf::from(sys::file::os_string(old.as_bytes())));
        if let Some(path) = old {
            // The drop removes the file, if it has another name than the new one.
            if let Err(error) = PidFile::resume(&path) {
                log::error!("cannot remove {}: {error}", path.display());
            }
        }
    }

    /// Restores the control socket, and the clients that wait for the result of the upgrade.
    fn restore_control(
        &mut self,
        listener: i32,
        file: Option<(u64, u64)>,
        clients: &[i32],
    ) -> io::Result<()> {
        let socket = adopt_socket(listener)?;
        let mut listener = Listener::for_others(socket, "control".to_owned(), true)?;
        listener.check_file(|found| Some(found.id) == file);
        listener.set_removes_file(true);
        // A socket without its file is bound again.
        if listener.file().is_some() {
            if let Err(error) = set_access(&listener, &self.settings) {
                log::error!("{error}");
            }
        }
        let control = ControlSocket::new(listener, &self.settings);
        let control = self.control.insert(control);
        for client in clients {
            let stream = ControlStream::from_socket(adopt_socket(*client)?)?;
            let id = control.adopt(stream);
            self.fleet.upgrade.clients.push(id);
        }
        Ok(())
    }
}

/// Makes the supervisor that goes on from the snapshot of the program that this process ran before,
/// with the settings of this program.
pub(super) fn resume(
    settings: Settings,
    program: Program,
    signals: SignalFd,
    snapshot: i32,
) -> io::Result<Run> {
    let snapshot = read_snapshot(snapshot)?;
    let output_files = OutputFiles::resume(snapshot.outputs, &settings)?;
    log_to(&settings, &output_files)?;
    let notify = NotifySocket::from_bound(adopt_socket(snapshot.notify_socket)?)?;
    let [own_end, process_end] = snapshot.lifeline;
    let lifeline = (adopt_socket(own_end)?, adopt_socket(process_end)?);
    let mut listeners = HeldListeners::default();
    for held in snapshot.listeners {
        let descriptor = sys::descriptor::adopt(held.descriptor)?;
        let is_own = |found: &FoundFile| Some(found.id) == held.file;
        let holder = match (held.held_by_manager, held.kept_when_unused) {
            (true, _) => Holder::ServiceManager,
            (false, true) => Holder::Settings,
            (false, false) => Holder::Process,
        };
        listeners.add_descriptor(held.listener, descriptor, holder, is_own)?;
    }
    let policy = settings.policy.clone();
    let fleet = restore_fleet(snapshot.fleet, policy, Instant::now(), random_seed());
    let mut run = Run::from_parts(
        settings, program, signals, notify, lifeline, listeners, fleet,
    )?;
    run.output_files = output_files;
    run.lanes = Lanes::resume(snapshot.lanes)?;
    run.bind_rules.extend(snapshot.allowed_binds);
    let stragglers = &mut run.stragglers;
    stragglers.earlier_children = snapshot.earlier_children.into_iter().collect();
    stragglers.had_children = snapshot.had_children;
    restore_stragglers(stragglers, snapshot.stragglers, Instant::now());
    run.watch_processes();
    run.start_guardian();
    if let Some((pipe, pid)) = snapshot.guardian {
        run.end_old_guardian(Guardian::resume(pid, pipe)?);
    }
    run.started_at = time_before(snapshot.age_ms, Instant::now());
    if let Some(listener) = snapshot.control {
        run.restore_control(listener, snapshot.control_file, &snapshot.upgrade_clients)?;
    }
    run.apply_new_settings(snapshot.pid_file);
    // The program before may have ended while the service manager did not read.
    run.listeners.store_all();
    log::info!(
        "the supervisor runs version {} now",
        env!("CARGO_PKG_VERSION")
    );
    run.handle(Event::Replaced);
    Ok(run)
}
