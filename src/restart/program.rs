//! The program that this process runs, as it is started again for a successor.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use socket2::Socket;

use super::inherited::{HANDOVER, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, SUPERVISOR, fd_name};
use super::link::VERSION;
use crate::sys::{self, Descriptor, PidVariable, Process, ProcessState, Start};

/// Which process a service manager's watchdog is for (sd_watchdog_enabled(3)).
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// What was recorded at the start.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<OsString>,
    pub(crate) dir: PathBuf,
    /// Somebody watches over this process, and its successor.
    is_watched: bool,
}

/// What a successor gets beside what it gets from everybody.
pub(super) struct SuccessorInputs<'a> {
    /// With their names.
    pub(super) descriptors: Vec<(String, Descriptor)>,
    /// Which of them are known by their names only.
    pub(super) by_name: Vec<usize>,
    pub(super) control: &'a Socket,
    pub(super) state: Option<Vec<u8>>,
    pub(super) generation: u64,
}

impl Program {
    /// The program of this process: by the name that it was started with, so that what stands there later is found.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let args: Vec<OsString> = env::args_os().collect();
        let dir = env::current_dir()?;
        let name = args.first().map(PathBuf::from).unwrap_or_default();
        let path = if name.components().count() > 1 || name.is_absolute() {
            Some(dir.join(&name))
        } else {
            on_path(&dir, &name)
        };
        // A name that leads nowhere is one that somebody made up.
        let path = match path.filter(|path| sys::is_program(path)) {
            Some(path) => path,
            None => env::current_exe()?,
        };
        let own = [
            LISTEN_PID,
            LISTEN_FDS,
            LISTEN_FDNAMES,
            HANDOVER,
            SUPERVISOR,
            WATCHDOG_PID,
        ];
        let watched = env::var(WATCHDOG_PID).is_ok_and(|pid| pid.parse() == Ok(process::id()));
        let env = env::vars_os()
            .filter(|(name, _)| !own.iter().any(|own| name == own))
            .map(|(name, value)| sys::env_entry(&name, &value))
            .collect();
        Ok(Self {
            path,
            args,
            env,
            dir,
            is_watched: watched,
        })
    }

    /// Another program, as this process could start it: by its path, or its name on the search path.
    pub(crate) fn other(args: Vec<OsString>) -> io::Result<Self> {
        let own = Self::of_this_process()?;
        let name = PathBuf::from(args.first().ok_or(io::ErrorKind::InvalidInput)?);
        let path = if name.components().count() > 1 || name.is_absolute() {
            own.dir.join(&name)
        } else {
            on_path(&own.dir, &name).unwrap_or(name)
        };
        Ok(Self { path, args, ..own })
    }

    /// Starts it once more.
    pub(super) fn start(&self, inputs: SuccessorInputs<'_>) -> io::Result<(Process, StderrTail)> {
        let (names, mut descriptors): (Vec<_>, Vec<_>) = inputs.descriptors.into_iter().unzip();
        let listeners = descriptors.len();
        let mut place = |descriptor: Descriptor| {
            descriptors.push(descriptor);
            (sys::FIRST_PASSED as usize + descriptors.len() - 1).to_string()
        };
        let control = place(sys::descriptor_of(inputs.control)?);
        let (mut stderr, mut pipe_end, mut writer, mut reader) = (None, None, None, None);
        // Where there is no standard error, there is none to listen to.
        if let Ok(own) = sys::stderr_copy() {
            let (reading, writing) = sys::pipe()?;
            stderr = Some(place(own));
            pipe_end = Some(place(reading.try_clone()?));
            (reader, writer) = (Some(reading), Some(writing));
        }
        let stderr_tail = StderrTail::of(reader)?;
        let none = || "-".to_owned();
        let state = match &inputs.state {
            Some(state) => place(sys::anonymous_file(state)?.into()),
            None => none(),
        };
        let names: Vec<String> = names.iter().map(|name| fd_name(name)).collect();
        let mut env = self.env.clone();
        env.push(format!("{LISTEN_FDS}={listeners}").into());
        env.push(format!("{LISTEN_FDNAMES}={}", names.join(":")).into());
        let generation = inputs.generation;
        let (stderr, pipe_end) = (stderr.unwrap_or_else(none), pipe_end.unwrap_or_else(none));
        let by_name = inputs.by_name.iter().map(usize::to_string);
        let by_name = by_name.collect::<Vec<_>>().join("+");
        let left =
            format!("{VERSION},{generation},{control},{stderr},{pipe_end},{state},{by_name}");
        let mut env_with_pid = vec![
            PidVariable::new(format!("{LISTEN_PID}="), ""),
            PidVariable::new(format!("{HANDOVER}={left},"), ""),
        ];
        if self.is_watched {
            env_with_pid.push(PidVariable::new(format!("{WATCHDOG_PID}="), ""));
        }
        let process = sys::start(&Start {
            program: &self.path,
            args: &self.args,
            env: &env,
            env_with_pid: &env_with_pid,
            dir: &self.dir,
            descriptors: &descriptors,
            stderr: writer.as_ref(),
        })?;
        Ok((process, stderr_tail))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn on_path(dir: &Path, name: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|place| dir.join(place).join(name));
    places.find(|place| sys::is_program(place))
}

/// How many lines of a successor's standard error are remembered, and how many bytes at most.
const LINES: usize = 20;
const TAIL: usize = 8 * 1024;

/// What a successor says on standard error before it is ready. It is passed on, and the last lines are remembered.
pub(super) struct StderrTail(Receiver<Vec<String>>);

impl StderrTail {
    fn of(reader: Option<Descriptor>) -> io::Result<Self> {
        let (done, said) = crossbeam_channel::bounded(1);
        if let Some(reader) = reader {
            // It ends when the successor has put its own standard error in the pipe's place, or is gone. A child of
            // the successor's may keep it longer, so that nobody waits for it.
            thread::Builder::new()
                .name("handover-stderr".to_owned())
                .spawn(move || relay(reader, &done))?;
        }
        Ok(Self(said))
    }

    /// The last lines, of a process that has ended.
    pub(super) fn take(&self) -> Vec<String> {
        self.0
            .recv_timeout(Duration::from_secs(1))
            .unwrap_or_default()
    }
}

fn relay(reader: Descriptor, done: &Sender<Vec<String>>) {
    let mut reader = sys::into_file(reader);
    let mut piece = [0; 4096];
    let mut tail = Vec::new();
    loop {
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                // Nobody can be told that standard error is gone.
                let _ = io::stderr().write_all(&piece[..count]);
                tail.extend_from_slice(&piece[..count]);
                tail.drain(..tail.len().saturating_sub(TAIL));
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
    let last = &lines[lines.len().saturating_sub(LINES)..];
    // Nobody may want to know.
    let _ = done.send(last.iter().map(|&line| line.to_owned()).collect());
}

/// Waits until a process has ended that is about to, and ends it if it does not in time. `None` if it is not known how.
pub(super) fn end_of(process: &mut Process, within: Duration) -> Option<ExitStatus> {
    let id = process.id();
    let failed = |error| log::error!("cannot wait for the end of process {id}: {error}");
    match process.wait(within) {
        Ok(ProcessState::Running) => {}
        Ok(state) => return state.exit_status(),
        Err(error) => failed(error),
    }
    if let Err(error) = process.kill() {
        log::error!("cannot end process {id}: {error}");
    }
    // Nothing holds back this signal, but the end takes its time.
    match process.wait(KILL_TIMEOUT) {
        Ok(state) => state.exit_status(),
        Err(error) => {
            failed(error);
            None
        }
    }
}

/// How long a process may take to end that was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
