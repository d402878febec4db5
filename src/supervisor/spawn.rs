//! The start of a serving process: its descriptors and its environment.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use socket2::Socket;

use super::listeners::HeldListeners;
use crate::restart::{Program, launch_variable, passing_variables};
use crate::sys::{self, FIRST_PASSED, SpawnOptions};
use crate::wire::Launch;

/// What the supervisor's own service manager has set for the supervisor alone.
const OWN: [&str; 3] = ["NOTIFY_SOCKET=", "WATCHDOG_USEC=", "FDSTORE="];

/// What a serving process gets.
pub(super) struct ProcessInputs<'a> {
    pub(super) listeners: &'a HeldListeners,
    /// The name of the supervisor's socket for notifications.
    pub(super) notify: &'a OsStr,
    /// The end of the lifeline that the process watches.
    pub(super) lifeline: &'a Socket,
    pub(super) watchdog: Option<Duration>,
    pub(super) generation: u64,
}

/// Starts the program as a serving process, and returns the process id.
pub(super) fn spawn_process(program: &Program, inputs: &ProcessInputs<'_>) -> io::Result<u32> {
    let (mut names, mut by_name, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
    for (position, held) in (0..).zip(inputs.listeners.iter()) {
        names.push(held.about.name.clone());
        if held.about.by_name {
            by_name.push(position);
        }
        descriptors.push(sys::descriptor::duplicate(&held.listener.socket)?);
    }
    let launch = Launch::Serve {
        generation: inputs.generation,
        lifeline: FIRST_PASSED + descriptors.len() as i32,
        by_name,
    };
    descriptors.push(sys::descriptor::duplicate(inputs.lifeline)?);
    let (variables, listen_pid) = passing_variables(&names);
    let mut env = without_own(program);
    env.extend(variables);
    let notify = sys::env_entry(&"NOTIFY_SOCKET".into(), &inputs.notify.into());
    env.push(notify);
    if let Some(limit) = inputs.watchdog {
        env.push(format!("WATCHDOG_USEC={}", limit.as_micros()).into());
    }
    sys::process::spawn_child(&SpawnOptions {
        program: program.path(),
        args: &program.args,
        env: &env,
        env_with_pid: &[listen_pid, launch_variable(&launch)?],
        dir: &program.dir,
        descriptors: &descriptors,
        stderr: None,
    })
}

/// The environment of a process that is not the supervisor.
pub(super) fn without_own(program: &Program) -> Vec<OsString> {
    let is_own = |entry: &&OsString| {
        let entry = entry.as_encoded_bytes();
        OWN.iter().any(|own| entry.starts_with(own.as_bytes()))
    };
    let env = program.env.iter().filter(|entry| !is_own(entry));
    env.cloned().collect()
}
