//! The dry run before an upgrade: a child runs the new program up to the supervisor's first step, and
//! reads the snapshot that the supervisor would leave.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use super::spawn::child_env;
use crate::restart::{Program, launch_variable};
use crate::sys::{self, Descriptor, FIRST_PASSED};
use crate::wire::{Answer, Launch, Record, Snapshot};

/// A dry run in progress.
#[derive(Debug)]
pub(super) struct DryRun {
    pub(super) pid: u32,
    report: File,
}

impl DryRun {
    pub(super) fn start(program: &Program, snapshot: &Snapshot) -> io::Result<Self> {
        let snapshot = sys::file::create_anonymous(snapshot.encode()?.as_bytes())?;
        let report = sys::file::create_anonymous(b"")?;
        let descriptors: [Descriptor; 2] = [snapshot.into(), report.try_clone()?.into()];
        let launch = Launch::DryRun {
            snapshot: FIRST_PASSED,
            report: FIRST_PASSED + 1,
        };
        let variables = [launch_variable(&launch)?];
        let env = child_env(program.env.clone());
        let options = program.spawn_options(&env, &variables, &descriptors);
        let pid = sys::process::spawn_child(&options)?;
        Ok(Self { pid, report })
    }

    /// The result, after the process has exited. `how` is its exit status in words.
    pub(super) fn result(mut self, how: &str) -> Result<(), String> {
        let mut report = Vec::new();
        let read = self.report.rewind();
        let read = read.and_then(|()| self.report.read_to_end(&mut report));
        match read.is_ok() && Answer::decode(&report).is_ok_and(|answer| answer.ok) {
            true => Ok(()),
            false => Err(format!("the dry run failed ({how})")),
        }
    }
}

/// The part of the child: reads the snapshot, and reports that a supervisor could go on from it. The
/// child then exits.
pub(super) fn perform_dry_run(snapshot: i32, report: i32) -> io::Result<()> {
    read_snapshot(snapshot)?;
    let answer = Answer::success().encode()?;
    let mut report = sys::descriptor::into_file(sys::descriptor::adopt(report)?)?;
    report.write_all(answer.as_bytes())
}

pub(super) fn read_snapshot(descriptor: i32) -> io::Result<Snapshot> {
    let file = sys::descriptor::into_file(sys::descriptor::adopt(descriptor)?)?;
    let mut text = Vec::new();
    file.take(Snapshot::LIMIT as u64 + 1)
        .read_to_end(&mut text)?;
    Ok(Snapshot::decode(&text)?)
}
