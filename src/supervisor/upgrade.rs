//! The upgrade of the supervisor in place: the process keeps its id, its children and its sockets,
//! and executes the file that has the program's name then.
//!
//! First, a child rehearses the upgrade: the child runs the new program up to the supervisor's
//! first step, and reads the snapshot that the supervisor would leave. If the rehearsal fails, the
//! supervisor goes on unchanged.

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
use crate::notify;
use crate::restart::{Program, launch_variable};
use crate::sys::{self, Descriptor, FIRST_PASSED, Signal, SignalFd};
use crate::wire::{Answer, Launch, Record, Snapshot};

/// How long a rehearsal may take.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A rehearsal in progress.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub(super) process: SupervisedProcess,
    /// The rehearsal succeeded; the upgrade follows when nothing else is in progress.
    succeeded: bool,
    report: File,
}

impl Run {
    /// Requests an upgrade, which begins when nothing else is in progress. The control client
    /// `waiter` gets the result.
    pub(super) fn upgrade(&mut self, waiter: Option<u64>) {
        self.upgrade_wanted = true;
        self.upgrade_waiters.extend(waiter);
        if self.shutdown.is_some() {
            self.end_upgrade(Some("the supervisor is being stopped".to_owned()));
        }
    }

    pub(super) fn upgrade_if_wanted(&mut self) {
        let now = Instant::now();
        if let Some(rehearsal) = &mut self.rehearsal {
            if rehearsal.succeeded {
                self.rehearsal = None;
                // If a restart has begun meanwhile, another rehearsal follows it.
                if self.upgrade_wanted && self.is_settled() {
                    let Err(error) = self.execute_own_program();
                    let path = self.own_program.path().display();
                    self.end_upgrade(Some(format!("cannot become {path}: {error}")));
                }
            } else if rehearsal.process.deadline.has_passed(now) {
                let process = &mut rehearsal.process;
                let pid = process.pid;
                log::error!("the rehearsal takes too long: killing process {pid}");
                process.send(Signal::Kill);
                process.deadline = Deadline::after(now, REHEARSAL_TIMEOUT);
            }
        }
        let is_idle = self.rehearsal.is_none() && self.is_settled();
        if self.upgrade_wanted && is_idle {
            log::info!("rehearsing: {}", self.own_program.path().display());
            match self.start_rehearsal() {
                Ok(rehearsal) => self.rehearsal = Some(rehearsal),
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

    fn start_rehearsal(&self) -> io::Result<Rehearsal> {
        // The rehearsal only reads the snapshot, so that its descriptors need not stay open.
        let snapshot = take_snapshot(self, &mut Vec::new())?.encode()?;
        let snapshot = sys::file::create_anonymous(snapshot.as_bytes())?;
        let report = sys::file::create_anonymous(b"")?;
        let descriptors: [Descriptor; 2] = [snapshot.into(), report.try_clone()?.into()];
        let launch = Launch::Rehearse {
            snapshot: FIRST_PASSED,
            report: FIRST_PASSED + 1,
        };
        let pid = sys::process::spawn_child(&self.own_program.spawn_options(
            &child_env(&self.own_program),
            &[launch_variable(&launch)?],
            &descriptors,
        ))?;
        let deadline = Deadline::after(Instant::now(), REHEARSAL_TIMEOUT);
        Ok(Rehearsal {
            process: SupervisedProcess::new(pid, 0, deadline),
            succeeded: false,
            report,
        })
    }

    /// The process that rehearsed has exited. `how` is its exit status in words.
    pub(super) fn finish_rehearsal(&mut self, how: &str) {
        let Some(mut rehearsal) = self.rehearsal.take() else {
            return;
        };
        let mut report = Vec::new();
        let read = rehearsal.report.rewind();
        let read = read.and_then(|()| rehearsal.report.read_to_end(&mut report));
        if read.is_err() || !Answer::decode(&report).is_ok_and(|answer| answer.ok) {
            return self.end_upgrade(Some(format!("the rehearsal failed ({how})")));
        }
        rehearsal.succeeded = true;
        rehearsal.process.deadline = Deadline::NEVER;
        self.rehearsal = Some(rehearsal);
    }

    /// Executes the supervisor's program in this process. Returns only an error.
    fn execute_own_program(&self) -> io::Result<Infallible> {
        let mut kept = Vec::new();
        let snapshot = take_snapshot(self, &mut kept)?.encode()?;
        let file: Descriptor = sys::file::create_anonymous(snapshot.as_bytes())?.into();
        let snapshot = sys::descriptor::number(&file);
        kept.push(file);
        let env_with_pid = [launch_variable(&Launch::Resume { snapshot })?];
        log::info!("becoming {}", self.own_program.path().display());
        notify::status("replacing the supervisor");
        let env = &self.own_program.env;
        let options = self.own_program.spawn_options(env, &env_with_pid, &kept);
        Err(sys::process::replace_program(&options))
    }

    /// Ends the upgrade: it has succeeded, or has failed with this error.
    pub(super) fn end_upgrade(&mut self, error: Option<String>) {
        self.upgrade_wanted = false;
        let error = error.map(|why| format!("the supervisor is not replaced: {why}"));
        if !self.upgrade_waiters.is_empty() || self.shutdown.is_none() {
            error.iter().for_each(|why| log::error!("{why}"));
        }
        let answer = Answer::new(error, None);
        for waiter in std::mem::take(&mut self.upgrade_waiters) {
            self.reply(waiter, &answer);
        }
    }
}

/// The part of the process that rehearses, which exits then: reads the snapshot, and reports that a
/// supervisor could go on from the snapshot.
pub(super) fn rehearse(snapshot: i32, report: i32) -> io::Result<()> {
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
    log::info!("replaced; version {}", env!("CARGO_PKG_VERSION"));
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
