//! The program that this process runs, and the start of a successor from it.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use socket2::Socket;

use super::launch::{LAUNCH_VARIABLES, launch_variable, passing_variables};
use crate::log;
use crate::sys::{self, Descriptor, PidVariable, Process, ProcessState, SpawnOptions};
use crate::wire::{EarlierGeneration, Launch};

/// The process that a service manager's watchdog is for (sd_watchdog_enabled(3)).
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// A program, and how this process was started, for processes that are started later.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// The first one is the program's name.
    args: Vec<OsString>,
    /// `NAME=value`, without the variables that were for this process only.
    pub(crate) env: Vec<OsString>,
    dir: PathBuf,
    /// A service manager's watchdog is for this process, and then for its successor.
    has_watchdog: bool,
}

impl Program {
    /// The program of this process, by the name that the process was started with: a later start
    /// runs the file that has this name then.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let args: Vec<OsString> = env::args_os().collect();
        let dir = env::current_dir()?;
        let name = args.first().map(PathBuf::from).unwrap_or_default();
        let path = find_program(&dir, &name).filter(|path| sys::file::is_executable(path));
        // The name need not be a program's: the process that starts another chooses it freely.
        let path = path.map_or_else(env::current_exe, Ok)?;
        let is_own = |name: &OsString| {
            let mut own = LAUNCH_VARIABLES.iter().chain([&WATCHDOG_PID]);
            own.any(|own| name == own)
        };
        let has_watchdog = env::var(WATCHDOG_PID).is_ok_and(|pid| pid.parse() == Ok(process::id()));
        let env = env::vars_os()
            .filter(|(name, _)| !is_own(name))
            .map(|(name, value)| sys::env_entry(&name, &value))
            .collect();
        Ok(Self {
            path,
            args,
            env,
            dir,
            has_watchdog,
        })
    }

    /// Another program, in the directory and environment of this process. The first argument is a
    /// path, or a name on the search path.
    pub(crate) fn find(args: Vec<OsString>) -> io::Result<Self> {
        let own = Self::of_this_process()?;
        let name = PathBuf::from(args.first().ok_or(io::ErrorKind::InvalidInput)?);
        let path = find_program(&own.dir, &name).unwrap_or(name);
        Ok(Self { path, args, ..own })
    }

    /// How to start the program in its directory, with its arguments.
    pub(crate) fn spawn_options<'a>(
        &'a self,
        env: &'a [OsString],
        env_with_pid: &'a [PidVariable],
        descriptors: &'a [Descriptor],
    ) -> SpawnOptions<'a> {
        SpawnOptions {
            program: &self.path,
            args: &self.args,
            env,
            env_with_pid,
            dir: &self.dir,
            descriptors,
            stderr: None,
        }
    }

    /// Starts the program as a successor.
    ///
    /// `descriptors` are listeners and others, with their names. `matched_by_name` has the
    /// positions of the listeners that a bind request matches by name. `handshake` is the
    /// successor's end of the handshake socket. `state` is what the service exported. `earlier` are
    /// the generations before the successor, with the sockets that tell their ends.
    pub(super) fn spawn_as_successor(
        &self,
        descriptors: Vec<(String, Descriptor)>,
        matched_by_name: Vec<u32>,
        handshake: &Socket,
        state: Option<Vec<u8>>,
        generation: u64,
        earlier: Vec<(u64, Descriptor, Option<u64>)>,
    ) -> io::Result<(Process, StderrTail)> {
        let (names, mut descriptors): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let mut pass = |descriptor: Descriptor| {
            descriptors.push(descriptor);
            sys::FIRST_PASSED + descriptors.len() as i32 - 1
        };
        let handshake = pass(sys::descriptor::duplicate(handshake)?);
        let (mut stderr, mut writer, mut reader) = (None, None, None);
        // A process without standard error has none to pass on.
        if let Ok(own) = sys::descriptor::duplicate_stderr() {
            let (reading, writing) = sys::descriptor::create_pipe()?;
            stderr = Some((pass(own), pass(reading.try_clone()?)));
            (reader, writer) = (Some(reading), Some(writing));
        }
        let stderr_tail = StderrTail::read(reader)?;
        let state = state.map(|state| sys::file::create_anonymous(&state));
        let state = state.transpose()?.map(|file| pass(file.into()));
        let earlier = earlier.into_iter();
        let earlier = earlier.map(|(generation, socket, drains_until)| EarlierGeneration {
            generation,
            socket: pass(socket),
            drains_until,
        });
        let earlier = earlier.collect();
        let launch = Launch::Successor {
            generation,
            handshake,
            stderr,
            state,
            matched_by_name,
            earlier,
        };
        let (variables, listen_pid) = passing_variables(&names);
        let mut env = self.env.clone();
        env.extend(variables);
        let mut env_with_pid = vec![listen_pid, launch_variable(&launch)?];
        if self.has_watchdog {
            env_with_pid.push(PidVariable::new(format!("{WATCHDOG_PID}="), ""));
        }
        let process = sys::process::spawn(&SpawnOptions {
            stderr: writer.as_ref(),
            ..self.spawn_options(&env, &env_with_pid, &descriptors)
        })?;
        Ok((process, stderr_tail))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of a program: relative to the directory, or on the search path if it is only a name.
fn find_program(dir: &Path, name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 || name.is_absolute() {
        return Some(dir.join(name));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|place| dir.join(place).join(name));
    places.find(|place| sys::file::is_executable(place))
}

/// How much of a successor's standard error is kept: lines, and bytes.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 8 * 1024;

/// How long to wait for the tail of a process that has ended.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// The last lines that a successor writes to standard error before it is ready. A thread relays
/// everything that it writes to this process's standard error.
pub(super) struct StderrTail(Receiver<Vec<String>>);

impl StderrTail {
    fn read(pipe: Option<Descriptor>) -> io::Result<Self> {
        let (done, tail) = crossbeam_channel::bounded(1);
        if let Some(pipe) = pipe {
            // The thread ends when the successor restores its standard error, or ends. A child of
            // the successor may keep the pipe open for longer, so the thread is never joined.
            thread::Builder::new()
                .name("handover-stderr".to_owned())
                .spawn(move || relay_stderr(pipe, &done))?;
        }
        Ok(Self(tail))
    }

    /// The last lines of a process that has ended.
    pub(super) fn take(&self) -> Vec<String> {
        self.0.recv_timeout(TAIL_TIMEOUT).unwrap_or_default()
    }
}

fn relay_stderr(pipe: Descriptor, done: &Sender<Vec<String>>) {
    let mut pipe = std::fs::File::from(pipe);
    let mut piece = [0; 4096];
    let mut tail = Vec::new();
    loop {
        match pipe.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                // A closed standard error is no reason to stop.
                let _ = io::stderr().write_all(&piece[..count]);
                tail.extend_from_slice(&piece[..count]);
                tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::warn!("cannot read the successor's standard error: {error}");
                break;
            }
        }
    }
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    // If the restart succeeded, the tail is not needed.
    let _ = done.send(last.iter().map(|&line| line.to_owned()).collect());
}

/// How long a process may take to end that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for the end of a process, and kills it if it does not end in time. `None` if its exit
/// status is not known.
pub(super) fn wait_or_kill(process: &mut Process, within: Duration) -> Option<ExitStatus> {
    let id = process.id();
    let failed = |error: &io::Error| {
        log::error!("cannot wait for the end of process {id}: {error}");
    };
    match process.wait(within).inspect_err(failed) {
        Ok(ProcessState::Running) | Err(_) => {}
        Ok(state) => return state.exit_status(),
    }
    if let Err(error) = process.kill() {
        log::error!("cannot kill process {id}: {error}");
    }
    let state = process.wait(KILL_TIMEOUT).inspect_err(failed);
    state.ok()?.exit_status()
}
