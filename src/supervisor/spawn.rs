//! How a serving process is started: what it gets, and what it is told.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use socket2::Socket;

use super::listeners::HeldListeners;
use crate::restart::{LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, Program, SERVE, SUPERVISOR, VERSION};
use crate::sys::{self, FIRST_PASSED, PidVariable, Start};

/// What the supervisor's own manager has given it, which is not for others.
const OWN: [&str; 3] = ["NOTIFY_SOCKET=", "WATCHDOG_USEC=", "FDSTORE="];

/// What a serving process gets.
pub(super) struct ProcessInputs<'a> {
    pub(super) listeners: &'a HeldListeners,
    pub(super) notify: &'a std::ffi::OsStr,
    /// The process's end of what ends with the supervisor.
    pub(super) lifeline: &'a Socket,
    pub(super) watchdog: Option<Duration>,
    pub(super) generation: u64,
}

/// Starts the program as a serving process.
pub(super) fn spawn_process(program: &Program, inputs: &ProcessInputs<'_>) -> io::Result<u32> {
    let (mut names, mut by_name, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
    for (place, one) in inputs.listeners.iter().enumerate() {
        names.push(one.about.name.as_str());
        if one.about.by_name {
            by_name.push(place.to_string());
        }
        descriptors.push(sys::descriptor_of(&one.listener.socket)?);
    }
    let lifeline = FIRST_PASSED as usize + descriptors.len();
    let mut env = without_own(program);
    env.push(format!("{LISTEN_FDS}={}", descriptors.len()).into());
    env.push(format!("{LISTEN_FDNAMES}={}", names.join(":")).into());
    descriptors.push(sys::descriptor_of(inputs.lifeline)?);
    env.push(sys::env_entry(
        &"NOTIFY_SOCKET".into(),
        &inputs.notify.into(),
    ));
    if let Some(limit) = inputs.watchdog {
        env.push(format!("WATCHDOG_USEC={}", limit.as_micros()).into());
    }
    let (generation, by_name) = (inputs.generation, by_name.join("+"));
    let role = format!("{VERSION},{SERVE},{generation},{lifeline},{by_name}");
    sys::start_child(&Start {
        program: program.path(),
        args: &program.args,
        env: &env,
        env_with_pid: &[
            PidVariable::new(format!("{LISTEN_PID}="), ""),
            PidVariable::new(format!("{SUPERVISOR}={role},"), ""),
        ],
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
    program
        .env
        .iter()
        .filter(|entry| !is_own(entry))
        .cloned()
        .collect()
}
