//! The upgrade of the supervisor in place: the process keeps its id, its children and its sockets,
//! and executes the file that has the program's name then.
//!
//! Before that comes a dry run: a child runs the new program up to the supervisor's first step, and
//! reads the snapshot that the supervisor would leave. If the dry run fails, the supervisor goes on
//! unchanged.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::{Duration, Instant};

use super::Settings;
use super::run::Run;
use super::slot::SupervisedProcess;
use super::snapshot::{restore_snapshot, take_snapshot};
use super::spawn::child_env;
use crate::clock::Deadline;
use crate::log;
use crate::notify;
use crate::restart::{Program, launch_variable};
use crate::sys::{self, Descriptor, FIRST_PASSED, Signal, SignalFd};
use crate::wire::{Answer, Launch, Record, Snapshot};

/// How long a dry run may take.
const DRY_RUN_TIMEOUT: Duration = Duration::from_secs(10);

/// A dry run in progress.
#[derive(Debug)]
pub(super) struct DryRun {
    pub(super) process: SupervisedProcess,
    /// The dry run succeeded; the upgrade follows when nothing else is in progress.
    succeeded: bool,
    report: File,
}

impl Run {
    /// Requests an upgrade, which begins when nothing else is in progress. The control client
    /// `client` gets the result.
    pub(super) fn upgrade(&mut self, client: Option<u64>) {
        self.upgrade_wanted = true;
        self.upgrade_clients.extend(client);
        if self.shutdown.is_some() {
            self.end_upgrade(Some("the supervisor is being stopped".to_owned()));
        }
    }

    /// Takes a requested upgrade as far as possible without waiting.
    pub(super) fn advance_upgrade(&mut self) {
        let now = Instant::now();
        if let Some(dry_run) = &mut self.dry_run {
            if dry_run.succeeded {
                self.dry_run = None;
                // If a restart has begun meanwhile, another dry run follows the restart.
                if self.upgrade_wanted && self.is_settled() {
                    let Err(error) = self.execute_own_program();
                    let path = self.own_program.path().display();
                    self.end_upgrade(Some(format!("cannot execute {path}: {error}")));
                }
            } else if dry_run.process.deadline.has_passed(now) {
                let process = &mut dry_run.process;
                let pid = process.pid;
                log::error!("the dry run takes too long: killing process {pid}");
                process.send(Signal::Kill);
                process.deadline = Deadline::after(now, DRY_RUN_TIMEOUT);
            }
        }
        let is_idle = self.dry_run.is_none() && self.is_settled();
        if self.upgrade_wanted && is_idle {
            log::info!(
                "checking the new supervisor program {}",
                self.own_program.path().display()
            );
            match self.start_dry_run() {
                Ok(dry_run) => self.dry_run = Some(dry_run),
                Err(error) => {
                    let path = self.own_program.path().display();
                    self.end_upgrade(Some(format!("cannot start {path}: {error}")));
                }
            }
        }
    }

    /// Whether no process is about to replace another one.
    fn is_settled(&self) -> bool {
        self.rolling_restart.is_none()
            && self.unannounced.is_empty()
            && self.slots.iter().all(|slot| slot.successor.is_none())
    }

    fn start_dry_run(&self) -> io::Result<DryRun> {
        // The dry run only reads the snapshot, so that its descriptors need not stay open.
        let snapshot = take_snapshot(self, &mut Vec::new())?.encode()?;
        let snapshot = sys::file::create_anonymous(snapshot.as_bytes())?;
        let report = sys::file::create_anonymous(b"")?;
        let descriptors: [Descriptor; 2] = [snapshot.into(), report.try_clone()?.into()];
        let launch = Launch::DryRun {
            snapshot: FIRST_PASSED,
            report: FIRST_PASSED + 1,
        };
        let pid = sys::process::spawn_child(&self.own_program.spawn_options(
            &child_env(&self.own_program),
            &[launch_variable(&launch)?],
            &descriptors,
        ))?;
        let deadline = Deadline::after(Instant::now(), DRY_RUN_TIMEOUT);
        Ok(DryRun {
            process: SupervisedProcess::new(pid, 0, deadline),
            succeeded: false,
            report,
        })
    }

    /// The process of the dry run has exited. `how` is its exit status in words.
    pub(super) fn finish_dry_run(&mut self, how: &str) {
        let Some(mut dry_run) = self.dry_run.take() else {
            return;
        };
        let mut report = Vec::new();
        let read = dry_run.report.rewind();
        let read = read.and_then(|()| dry_run.report.read_to_end(&mut report));
        if read.is_err() || !Answer::decode(&report).is_ok_and(|answer| answer.ok) {
            return self.end_upgrade(Some(format!("the dry run failed ({how})")));
        }
        dry_run.succeeded = true;
        dry_run.process.deadline = Deadline::NEVER;
        self.dry_run = Some(dry_run);
    }

    /// Executes the supervisor's program in this process. Returns only an error.
    fn execute_own_program(&self) -> io::Result<Infallible> {
        let mut kept = Vec::new();
        let snapshot = take_snapshot(self, &mut kept)?.encode()?;
        let file: Descriptor = sys::file::create_anonymous(snapshot.as_bytes())?.into();
        let snapshot = sys::descriptor::number(&file);
        kept.push(file);
        let env_with_pid = [launch_variable(&Launch::Resume { snapshot })?];
        log::info!(
            "executing {} in this process",
            self.own_program.path().display()
        );
        notify::send_status("replacing the supervisor");
        let env = &self.own_program.env;
        let options = self.own_program.spawn_options(env, &env_with_pid, &kept);
        Err(sys::process::replace_program(&options))
    }

    /// Ends the upgrade: it has succeeded, or has failed with this error.
    pub(super) fn end_upgrade(&mut self, error: Option<String>) {
        self.upgrade_wanted = false;
        let error = error.map(|why| format!("the supervisor is not replaced: {why}"));
        if !self.upgrade_clients.is_empty() || self.shutdown.is_none() {
            error.iter().for_each(|why| log::error!("{why}"));
        }
        let answer = Answer::new(error, None);
        for client in std::mem::take(&mut self.upgrade_clients) {
            self.reply(client, &answer);
        }
    }
}

/// The part of the child in a dry run: reads the snapshot, and reports that a supervisor could go
/// on from the snapshot. The child then exits.
pub(super) fn perform_dry_run(snapshot: i32, report: i32) -> io::Result<()> {
    read_snapshot(snapshot)?;
    let answer = Answer::success().encode()?;
    let mut report = File::from(sys::descriptor::adopt(report)?);
    report.write_all(answer.as_bytes())
}

/// Makes the supervisor that goes on from the snapshot of the program that this process ran before.
pub(super) fn resume(
    settings: Settings,
    program: Program,
    signals: SignalFd,
    snapshot: i32,
) -> io::Result<Run> {
    let snapshot = read_snapshot(snapshot)?;
    let mut run = restore_snapshot(snapshot, settings, program, signals)?;
    log::info!(
        "the supervisor runs version {} now",
        env!("CARGO_PKG_VERSION")
    );
    run.end_upgrade(None);
    Ok(run)
}

fn read_snapshot(descriptor: i32) -> io::Result<Snapshot> {
    let file = File::from(sys::descriptor::adopt(descriptor)?);
    let mut text = Vec::new();
    file.take(Snapshot::LIMIT as u64 + 1)
        .read_to_end(&mut text)?;
    Ok(Snapshot::decode(&text)?)
}
