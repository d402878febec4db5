//! The program that this process runs, and the start of a successor from it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use socket2::Socket;

use super::environment_file;
use super::inherited::LIFELINE_NAME;
use super::launch::{is_for_one_process, launch_variable, own_launch, passing_variables};
use crate::log;
use crate::sys::{
    self, Descriptor, Login, PidVariable, Process, ProcessState, SpawnOptions, StartGuard,
};
use crate::wire::{EarlierGeneration, Launch};

/// The process that a service manager's watchdog is for (sd_watchdog_enabled(3)).
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// An environment file is shorter than this, in bytes.
const MOST_ENVIRONMENT: u64 = 1 << 20;

/// A program, and how this process was started, for processes that are started later.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// The first one is the program's name.
    args: Vec<OsString>,
    /// `NAME=value`, without the variables that were for this process only.
    pub(crate) env: Vec<OsString>,
    /// A file with further variables, which is read at each start.
    environment_file: Option<PathBuf>,
    /// The user of the processes that are started, if this process reads the file for another user.
    user: Option<u32>,
    /// The working directory, by a name that is looked up at each start. `None`: it has no name any
    /// more.
    dir: Option<PathBuf>,
    /// A service manager's watchdog is for this process, and then for its successor.
    has_watchdog: bool,
}

impl Program {
    /// The program of this process, by the name that the process was started with: a later start
    /// runs the file that has this name then.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let args: Vec<OsString> = env::args_os().collect();
        let dir = named_working_dir();
        let name = args.first().map(PathBuf::from).unwrap_or_default();
        let path = find_program(dir.as_deref(), &name);
        // The name need not be a program's: the process that starts another chooses it freely, and
        // on the search path there may be another program with the name.
        let path = path.filter(|path| !is_bare(&name) || sys::file::is_own_program(path));
        let path = path.map_or_else(|| env::current_exe().map(without_deletion_mark), Ok)?;
        let watched = sys::process::own_variable(WATCHDOG_PID);
        let has_watchdog = watched.is_some_and(|pid| pid == *process::id().to_string());
        let env = env::vars_os()
            .filter(|(name, _)| !is_for_one_process(name))
            .map(|(name, value)| sys::env_entry(&name, &value))
            .collect();
        Ok(Self {
            path,
            args,
            env,
            environment_file: None,
            user: None,
            dir,
            has_watchdog,
        })
    }

    /// Another program, in the directory and environment of this process. The first argument is a
    /// path, or a name on the search path.
    pub(crate) fn find(args: Vec<OsString>) -> io::Result<Self> {
        let own = Self::of_this_process()?;
        let name = PathBuf::from(args.first().ok_or(io::ErrorKind::InvalidInput)?);
        let dir = own.dir.as_deref();
        let path = find_program(dir, &name).unwrap_or_else(|| match dir {
            Some(dir) if !is_bare(&name) => dir.join(&name),
            _ => name,
        });
        Ok(Self { path, args, ..own })
    }

    /// Sets the working directory of the processes that are started. A program that was started by
    /// a relative path is looked up there, if it is there.
    pub(crate) fn set_working_directory(&mut self, dir: &Path) {
        let dir = self
            .dir
            .as_deref()
            .map_or(dir.to_owned(), |own| own.join(dir));
        let name = self
            .args
            .first()
            .map(Path::new)
            .filter(|name| name.is_relative());
        let path = name
            .filter(|name| name.components().count() > 1)
            .map(|name| dir.join(name));
        if let Some(path) = path.and_then(sys::file::find_program_file) {
            self.path = path;
        }
        self.dir = Some(dir);
    }

    /// Sets the variables that name the user of the processes that are started: HOME, LOGNAME, SHELL
    /// and USER.
    pub(crate) fn set_login(&mut self, login: &Login) {
        let (name, home, shell) = (login.name.as_ref(), &login.home, &login.shell);
        for (variable, value) in [
            ("HOME", home.as_os_str()),
            ("LOGNAME", name),
            ("SHELL", shell.as_os_str()),
            ("USER", name),
        ] {
            set_variable(&mut self.env, variable, value);
        }
    }

    /// Sets the user of the processes that are started.
    pub(crate) fn set_user(&mut self, uid: u32) {
        self.user = Some(uid).filter(|uid| *uid != sys::process::effective_uid());
    }

    /// Sets a file with environment variables.
    pub(crate) fn set_environment_file(&mut self, path: PathBuf) {
        self.environment_file = Some(path);
    }

    /// The environment of a process that is started now: that of this process, `PWD`, and what the
    /// environment file says. The last two replace variables of the same names.
    pub(crate) fn read_env(&self) -> io::Result<Vec<OsString>> {
        let mut env = self.env.clone();
        let mut set = |name: &str, value: &OsStr| set_variable(&mut env, name, value);
        if let (Some(dir), Some(variable)) = (&self.dir, sys::process::WORKING_DIR_VARIABLE) {
            set(variable, dir.as_os_str());
        }
        if let Some(path) = &self.environment_file {
            let failed = |why: &dyn fmt::Display| {
                io::Error::other(format!("environment file {}: {why}", path.display()))
            };
            // A relative path begins in the directory of the process that is started.
            let path = match &self.dir {
                Some(dir) => &dir.join(path),
                None => path,
            };
            // Another kind of file could make this process wait, as an idle FIFO does.
            let file = match self.user {
                // A link that this user has made must not give the user a file of root's.
                Some(user) => sys::file::open_regular_for(path, user),
                None => sys::file::open_regular(path, true),
            };
            let text = file.and_then(|file| io::read_to_string(file.take(MOST_ENVIRONMENT)));
            let text = text.map_err(|error| failed(&error))?;
            if text.len() as u64 >= MOST_ENVIRONMENT {
                return Err(failed(&"1 MiB or longer"));
            }
            let file = environment_file::parse(&text).map_err(|error| failed(&error))?;
            let shown = path.display();
            for fault in &file.ignored {
                log::warn!("environment file {shown}: ignoring {fault}");
            }
            for (name, value) in &file.variables {
                if is_for_one_process(name.as_ref()) {
                    log::warn!("environment file {shown}: ignoring {name}");
                    continue;
                }
                set(name, value.as_ref());
            }
        }
        Ok(env)
    }

    /// The working directory for a process that is started now. `None`: that of this process.
    fn existing_dir(&self) -> Option<&Path> {
        let dir = self.dir.as_deref()?;
        if dir.is_dir() {
            return Some(dir);
        }
        log::error!(
            "the working directory {} is gone: using that of this process",
            dir.display()
        );
        None
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
            dir: self.existing_dir(),
            descriptors,
            stdin: None,
            stdout: None,
            stderr: None,
            own_group: false,
            guardian: None,
            start_guard: None,
            identity: None,
        }
    }

    /// Starts the program as a successor.
    pub(super) fn spawn_as_successor(
        &self,
        start: SuccessorStart<'_>,
    ) -> io::Result<(Process, StderrTail)> {
        let SuccessorStart {
            descriptors,
            matched_by_name,
            handshake,
            state,
            generation,
            earlier,
            ready_timeout,
        } = start;
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
        let (start_reader, start_writer) = sys::descriptor::create_pipe()?;
        let start_pipe = Some(pass(start_writer));
        let launch = Launch::Successor {
            generation,
            handshake,
            stderr,
            state,
            matched_by_name,
            earlier,
            start_pipe,
        };
        let (variables, listen_pid) = passing_variables(&names);
        let mut env = self.read_env()?;
        env.extend(variables);
        let mut env_with_pid = vec![listen_pid, launch_variable(&launch)?];
        if self.has_watchdog {
            env_with_pid.push(PidVariable::new(format!("{WATCHDOG_PID}="), ""));
        }
        // A supervisor ends the group of a process that has exited, and must not end its successor.
        let is_supervised = names.iter().any(|name| name == LIFELINE_NAME);
        let process = sys::process::spawn(&SpawnOptions {
            stderr: writer.as_ref(),
            own_group: is_supervised && sys::process::is_group_leader(),
            start_guard: Some(StartGuard {
                pipe: &start_reader,
                limit: ready_timeout,
            }),
            ..self.spawn_options(&env, &env_with_pid, &descriptors)
        })?;
        Ok((process, stderr_tail))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What a successor is started with.
pub(super) struct SuccessorStart<'a> {
    /// Listeners and others, with their names.
    pub(super) descriptors: Vec<(String, Descriptor)>,
    /// The positions of the listeners that a bind request matches by name.
    pub(super) matched_by_name: Vec<u32>,
    /// The successor's end of the handshake socket.
    pub(super) handshake: &'a Socket,
    /// What the application passes.
    pub(super) state: Option<Vec<u8>>,
    pub(super) generation: u64,
    /// The generations before the successor, with the sockets that tell their ends.
    pub(super) earlier: Vec<(u64, Descriptor, Option<u64>)>,
    /// How long the start may take if this process dies meanwhile.
    pub(super) ready_timeout: Duration,
}

fn set_variable(env: &mut Vec<OsString>, name: &str, value: &OsStr) {
    env.retain(|entry| !sys::process::is_entry_of(entry, name.as_ref()));
    env.push(sys::env_entry(name.as_ref(), value));
}

/// The working directory, by the name that the shell gave it (`PWD`), if that is one: the name may
/// lead through symbolic links that lead elsewhere later, such as `current -> releases/2`.
fn named_working_dir() -> Option<PathBuf> {
    let own = env::current_dir().ok();
    let named = sys::process::WORKING_DIR_VARIABLE
        .and_then(env::var_os)
        .map(PathBuf::from)
        .filter(|named| named.is_absolute());
    // A supervisor that was upgraded stays in its directory, since paths that it was given begin
    // there. What it starts goes by the name.
    let is_upgraded = matches!(own_launch(), Ok(Some(Launch::Resume { .. })));
    let is_own = |named: &PathBuf| {
        let (named, own) = (fs::canonicalize(named).ok(), own.as_ref());
        named.is_some() && named == own.and_then(|own| fs::canonicalize(own).ok())
    };
    // A directory that was deleted has no other name.
    named
        .filter(|named| own.is_none() || is_upgraded || is_own(named))
        .or(own)
}

/// Whether a program has only a name, which is looked up on the search path.
fn is_bare(name: &Path) -> bool {
    name.components().count() <= 1 && !name.is_absolute()
}

/// What Linux adds to the path of a running program whose file was deleted or replaced (proc(5)).
const DELETION_MARK: &str = " (deleted)";

/// The path that the file of a running program had before it was deleted: a later start runs the
/// file that has this path then.
fn without_deletion_mark(path: PathBuf) -> PathBuf {
    let before = path
        .to_str()
        .and_then(|path| path.strip_suffix(DELETION_MARK));
    match before {
        Some(before) if !path.exists() => before.into(),
        _ => path,
    }
}

/// The file of a program: relative to the directory, or on the search path if it is only a name.
fn find_program(dir: Option<&Path>, name: &Path) -> Option<PathBuf> {
    let absolute = |path: PathBuf| match path.is_absolute() {
        true => Some(path),
        false => Some(dir?.join(path)),
    };
    if !is_bare(name) {
        return absolute(name.to_owned()).and_then(sys::file::find_program_file);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).filter_map(|place| absolute(place.join(name)));
    places.find_map(sys::file::find_program_file)
}

/// How much of a successor's standard error is kept: lines, and bytes.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: usize = 8 * 1024;

/// How long to wait until the lines of a successor that is ready are relayed.
const RELAY_TIMEOUT: Duration = Duration::from_millis(50);

/// How long to wait for the tail of a process that has ended.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// The last lines that a successor writes to standard error before it is ready. A thread relays
/// everything that it writes to this process's standard error.
pub(super) struct StderrTail {
    end: Receiver<Vec<String>>,
    /// Set when the end of the pipe was reached.
    lines: Option<Vec<String>>,
}

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
        Ok(Self {
            end: tail,
            lines: None,
        })
    }

    /// Waits until everything is relayed that the successor has written to the pipe, so that the
    /// lines that follow come after it. The successor does not write to the pipe any more. A child
    /// of the successor may, so the wait has a bound.
    pub(super) fn wait_until_relayed(&mut self) {
        self.wait(RELAY_TIMEOUT);
    }

    /// The last lines of a process that has ended.
    pub(super) fn take(&mut self) -> Vec<String> {
        self.wait(TAIL_TIMEOUT);
        self.lines.take().unwrap_or_default()
    }

    fn wait(&mut self, within: Duration) {
        if self.lines.is_none() {
            self.lines = self.end.recv_timeout(within).ok();
        }
    }
}

/// Relays what subprocesses write to a pipe that was the standard error of this process, until they
/// have ended. A thread does this, and is never joined.
pub(super) fn relay_subprocesses(pipe: Descriptor) -> io::Result<()> {
    StderrTail::read(Some(pipe)).map(drop)
}

fn relay_stderr(pipe: Descriptor, done: &Sender<Vec<String>>) {
    let mut pipe = match sys::descriptor::into_file(pipe) {
        Ok(pipe) => pipe,
        Err(error) => return log::error!("cannot read the successor's standard error: {error}"),
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_deleted_program_is_that_of_its_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("app (deleted)");
        assert_eq!(without_deletion_mark(gone.clone()), dir.path().join("app"));
        // A file may have this name.
        fs::write(&gone, "").unwrap();
        assert_eq!(without_deletion_mark(gone.clone()), gone);
        let other = dir.path().join("app");
        assert_eq!(without_deletion_mark(other.clone()), other);
    }
}
