//! The start of a serving process: its descriptors and its environment.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::time::Duration;

use socket2::Socket;

use super::listeners::HeldListeners;
use super::output_files::OutputFiles;
use crate::restart::{Program, launch_variable, passing_variables};
use crate::sys::supervision::Guardian;
use crate::sys::{self, Descriptor, FIRST_PASSED, Identity, NotifySocket, SpawnOptions};
use crate::wire::Launch;

/// The variables that the supervisor's own service manager has set for the supervisor alone.
const SUPERVISOR_ONLY: [&str; 3] = ["NOTIFY_SOCKET=", "WATCHDOG_USEC=", "FDSTORE="];

/// What a serving process is started with.
#[derive(Debug)]
pub(super) struct ServingProcess<'a> {
    pub(super) program: &'a Program,
    pub(super) generation: u64,
    pub(super) listeners: &'a HeldListeners,
    /// The end of the socket pair that serving processes hold.
    pub(super) lifeline: &'a Socket,
    pub(super) notify_socket: &'a NotifySocket,
    /// Where its standard output and its standard error go.
    pub(super) output_files: &'a OutputFiles,
    pub(super) watchdog: Option<Duration>,
    /// The user and the groups. `None` if the process has those of the supervisor.
    pub(super) identity: Option<&'a Identity>,
    /// The process gets a process group of its own.
    pub(super) own_group: bool,
    /// Ends the process when the supervisor dies. `None` for a program that sees this by the
    /// lifeline.
    pub(super) guardian: Option<&'a Guardian>,
}

impl ServingProcess<'_> {
    /// Starts the process, and returns its id.
    pub(super) fn spawn(&self) -> io::Result<u32> {
        let (mut names, mut matched_by_name, mut descriptors) =
            (Vec::new(), Vec::new(), Vec::new());
        for (position, held) in (0..).zip(self.listeners.iter()) {
            names.push(held.record.name.clone());
            if held.record.matches_by_name {
                matched_by_name.push(position);
            }
            descriptors.push(sys::descriptor::duplicate(&held.listener.socket)?);
        }
        let launch = Launch::Serve {
            generation: self.generation,
            lifeline: FIRST_PASSED + descriptors.len() as i32,
            matched_by_name,
        };
        descriptors.push(sys::descriptor::duplicate(self.lifeline)?);
        let (variables, listen_pid) = passing_variables(&names);
        let mut env = child_env(self.program.read_env()?);
        env.extend(variables);
        let notify = self.notify_socket.name();
        env.push(sys::env_entry("NOTIFY_SOCKET".as_ref(), notify));
        // The largest number of microseconds means that there is no limit (sd_watchdog_enabled(3)).
        let watchdog = self.watchdog.map(|limit| limit.as_micros());
        if let Some(micros) = watchdog.filter(|micros| *micros < u128::from(u64::MAX)) {
            env.push(format!("WATCHDOG_USEC={micros}").into());
        }
        let env_with_pid = [listen_pid, launch_variable(&launch)?];
        // A process that is not in the terminal's foreground group is stopped when it reads from the
        // terminal (SIGTTIN).
        let is_terminal = self.own_group && io::stdin().is_terminal();
        let null = is_terminal.then(open_null).transpose()?;
        let options = self
            .program
            .spawn_options(&env, &env_with_pid, &descriptors);
        let (stdout, stderr) = self.output_files.of_new_process();
        sys::process::spawn_child(&SpawnOptions {
            identity: self.identity,
            stdin: null.as_ref(),
            stdout,
            stderr,
            own_group: self.own_group,
            guardian: self.guardian,
            ..options
        })
    }
}

/// Standard input that is at its end: /dev/null, or the same where there is none, as in a root
/// directory of its own without /dev.
fn open_null() -> io::Result<Descriptor> {
    match File::open(sys::file::NULL_DEVICE) {
        Ok(null) => Ok(null.into()),
        Err(_) => sys::descriptor::create_pipe().map(|(reader, _)| reader),
    }
}

/// The environment of a child process: this one without [`SUPERVISOR_ONLY`].
pub(super) fn child_env(mut env: Vec<OsString>) -> Vec<OsString> {
    env.retain(|entry| {
        let entry = entry.as_encoded_bytes();
        let mut names = SUPERVISOR_ONLY.iter();
        !names.any(|name| entry.starts_with(name.as_bytes()))
    });
    env
}
