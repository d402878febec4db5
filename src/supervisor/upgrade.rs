//! The supervisor replaces itself: the process stays, with its number, its children and its sockets, and runs the program
//! that is on disk by now.
//!
//! Before that, a child rehearses it: it runs the program as far as the supervisor's first step, and reads what it would
//! take over. If that fails, nothing has happened.

use std::io::{self, Read, Seek, Write};
use std::process;
use std::time::{Duration, Instant};

use super::Settings;
use super::run::Run;
use super::slot::{Slot, SupervisedProcess};
use super::snapshot::Snapshot;
use super::spawn::without_own;
use crate::clock::Deadline;
use crate::notify;
use crate::restart::{Program, SUPERVISOR, VERSION};
use crate::sys::{self, Descriptor, FIRST_PASSED, PidVariable, Signal, SignalFd, Start};
use crate::wire::Answer;

/// What the process is to be, in [`SUPERVISOR`].
pub(super) const REHEARSE: &str = "rehearse";
pub(super) const RESUME: &str = "resume";

/// How long a rehearsal may take.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a rehearsal leaves that went well.
const WELL: &[u8] = b"well";

/// A rehearsal in progress.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub(super) process: SupervisedProcess,
    /// It went well: the rest is done when nothing else is.
    went_well: bool,
    pub(super) deadline: Deadline,
    report: std::fs::File,
}

impl Run {
    /// Has the supervisor replaced, as soon as nothing else is under way.
    pub(super) fn upgrade(&mut self, waiter: Option<u64>) {
        self.upgrade_wanted = true;
        self.upgrade_waiters.extend(waiter);
        if self.stop.is_some() {
            self.end_upgrade(Err("the supervisor is being stopped".to_owned()));
        }
    }

    pub(super) fn upgrade_if_wanted(&mut self) {
        let now = Instant::now();
        if let Some(rehearsal) = &mut self.rehearsal {
            if rehearsal.went_well {
                self.rehearsal = None;
                // If something has begun meanwhile, afterwards once more.
                if self.upgrade_wanted && self.is_settled() {
                    let Err(error) = self.replace();
                    let path = self.own.path().display();
                    self.end_upgrade(Err(format!("cannot become {path}: {error}")));
                }
            } else if rehearsal.deadline.passed(now) {
                let pid = rehearsal.process.pid;
                log::error!("the rehearsal takes too long: killing process {pid}");
                rehearsal.process.send(Signal::Kill);
                rehearsal.deadline = Deadline::after(now, REHEARSAL_TIMEOUT);
            }
        }
        let is_idle = self.rehearsal.is_none() && self.is_settled();
        if self.upgrade_wanted && is_idle {
            log::info!("rehearsing: {}", self.own.path().display());
            match self.rehearse() {
                Ok(rehearsal) => self.rehearsal = Some(rehearsal),
                Err(error) => {
                    let path = self.own.path().display();
                    self.end_upgrade(Err(format!("cannot start {path}: {error}")));
                }
            }
        }
    }

    /// No process is about to take another one's place.
    fn is_settled(&self) -> bool {
        let is_settled = |slot: &Slot| slot.next.is_none();
        self.rolling.is_none() && self.unannounced.is_empty() && self.slots.iter().all(is_settled)
    }

    fn rehearse(&self) -> io::Result<Rehearsal> {
        let state = Snapshot::of(self, &mut Vec::new())?.to_string();
        let state = sys::anonymous_file(state.as_bytes())?;
        let report = sys::anonymous_file(b"")?;
        let descriptors: [Descriptor; 2] = [state.into(), report.try_clone()?.into()];
        let (state, report_number) = (FIRST_PASSED, FIRST_PASSED + 1);
        let role = format!("{SUPERVISOR}={VERSION},{REHEARSE},{state},{report_number},");
        let pid = sys::start_child(&Start {
            program: self.own.path(),
            args: &self.own.args,
            env: &without_own(&self.own),
            env_with_pid: &[PidVariable::new(role, "")],
            dir: &self.own.dir,
            descriptors: &descriptors,
            stderr: None,
        })?;
        Ok(Rehearsal {
            process: SupervisedProcess::new(pid, 0, Deadline::NEVER),
            went_well: false,
            deadline: Deadline::after(Instant::now(), REHEARSAL_TIMEOUT),
            report,
        })
    }

    /// The rehearsal is over.
    pub(super) fn rehearsed(&mut self, how: &str) {
        let Some(mut rehearsal) = self.rehearsal.take() else {
            return;
        };
        let mut report = Vec::new();
        let read = rehearsal
            .report
            .rewind()
            .and_then(|()| rehearsal.report.read_to_end(&mut report));
        if read.is_err() || report != WELL {
            return self.end_upgrade(Err(format!("the rehearsal failed ({how})")));
        }
        rehearsal.went_well = true;
        rehearsal.deadline = Deadline::NEVER;
        self.rehearsal = Some(rehearsal);
    }

    /// Becomes the program. Returns only if that fails.
    fn replace(&self) -> io::Result<std::convert::Infallible> {
        let mut kept = Vec::new();
        let state = Snapshot::of(self, &mut kept)?.to_string();
        let state: Descriptor = sys::anonymous_file(state.as_bytes())?.into();
        let number = sys::number_of(&state);
        kept.push(state);
        log::info!("becoming {}", self.own.path().display());
        notify::status("replacing the supervisor");
        Err(sys::replace_program(&Start {
            program: self.own.path(),
            args: &self.own.args,
            env: &self.own.env,
            env_with_pid: &[PidVariable::new(
                format!("{SUPERVISOR}={VERSION},{RESUME},{number},"),
                "",
            )],
            dir: &self.own.dir,
            descriptors: &kept,
            stderr: None,
        }))
    }

    pub(super) fn end_upgrade(&mut self, result: Result<(), String>) {
        self.upgrade_wanted = false;
        let result = result.map_err(|why| format!("the supervisor is not replaced: {why}"));
        if let Err(why) = &result {
            if !self.upgrade_waiters.is_empty() || self.stop.is_none() {
                log::error!("{why}");
            }
        }
        let answer = Answer::new(result);
        for waiter in std::mem::take(&mut self.upgrade_waiters) {
            self.reply(waiter, &answer);
        }
    }
}

/// The rehearsal's part: reads the state, says that it could go on from there, and ends.
pub(super) fn rehearse(words: &[&str]) -> io::Result<std::convert::Infallible> {
    let [state, report] = words[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Snapshot::parse(&read(state)?).map_err(io::Error::other)?;
    let mut report = sys::into_file(sys::adopt(number(report)?)?);
    report.write_all(WELL)?;
    process::exit(0);
}

/// Goes on where the program stopped that this process ran before.
pub(super) fn resume(
    settings: Settings,
    program: Program,
    signals: SignalFd,
    words: &[&str],
) -> io::Result<Run> {
    let [state] = words[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let state = Snapshot::parse(&read(state)?).map_err(io::Error::other)?;
    let mut run = state.restore(settings, program, signals)?;
    log::info!("replaced; version {}", env!("CARGO_PKG_VERSION"));
    run.end_upgrade(Ok(()));
    Ok(run)
}

fn number(text: &str) -> io::Result<i32> {
    text.parse().map_err(io::Error::other)
}

fn read(descriptor: &str) -> io::Result<String> {
    let mut file = sys::into_file(sys::adopt(number(descriptor)?)?);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
