//! Restarts: a new process takes over, and no client notices.
//!
//! The handshake, with the predecessor on the left and the successor on the right:
//!
//! ```text
//! start the program, with the listeners ─►  Hello
//!                                           build listeners, service, workers; be ready
//!                                       ◄─  Ready
//! Cutover                               ─►  accept
//! pause accepting                       ◄─  Accepting
//! Commit                                ─►  take over the pid file and the files of Unix sockets
//! close the listeners, drain            ◄─  Ack
//! Connections                           ─►  adopt the open connections that come over this socket
//! Drained                               ─►
//! ```
//!
//! With an exact state, `Cutover` comes after a pause, and with the state, and the successor accepts
//! after `Proceed`: see `restarter/pause.rs`.
//!
//! Until `Ack`, the predecessor can go on as if nothing had happened, and does so however the
//! successor fails. Until `Commit`, the successor ends if it is told to abort; if the predecessor
//! dies, the successor serves. Both have the same sockets, so the kernel keeps clients that connect
//! meanwhile in its queue.
//!
//! [`program`] starts the successor, [`launch`] and [`inherited`] are what the successor finds,
//! [`link`] carries the messages, and the [`restarter`] is the thread that follows the handshake in
//! both processes.

mod bind_request;
mod environment_file;
mod error;
mod inherited;
mod launch;
mod link;
mod pid_file;
mod program;
mod restarter;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::listener::{Bind, BindError, Listener};
use crate::log;
use crate::start_error::StartError;
use crate::sys::{self, Descriptor};
use crate::wire::HandshakeMessage;

use link::send_message;

pub use error::{RestartError, RestartErrorKind};
pub(crate) use inherited::{Inherited, adopt_socket};
pub(crate) use launch::{launch_variable, own_launch, passing_variables};
pub(crate) use pid_file::PidFile;
pub(crate) use program::Program;
use restarter::RestarterEnd;
pub(crate) use restarter::{RestartableServer, Restarter, RestarterHandle};

/// Returns when the application is ready.
pub(crate) type ReadyWhen =
    Box<dyn FnOnce() -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// Restarts without losing a request, for [`Builder::restart`](crate::Builder::restart).
///
/// On SIGHUP, SIGUSR2 or [`Handle::restart`](crate::Handle::restart), this process starts its
/// program again: the file that has the program's name by then, with the arguments of this process,
/// and with the directory and the environment that it had when [`inherit`](Self::inherit) was
/// called. The new process gets the listeners, and takes over when it is ready. This process goes on
/// accepting until then, finishes its connections, and ends. If the new process fails, this process
/// goes on serving, and [`RestartError`] says why.
///
/// A request for a restart that comes while another one runs, and has executed its program, starts
/// another round: see [`Handle::restart`](crate::Handle::restart). A process that has been replaced
/// passes the request on to its successor, so a signal to an old process id is not lost as long as
/// that process drains and its successor runs.
///
/// # One for a process
///
/// A process has one `Restart`: clones are the same one, and it is given to all servers of the
/// process, which [`Servers`](crate::Servers) run together. Call [`inherit`](Self::inherit) early in
/// `main`, before the program has other threads, files, or subprocesses: the call takes the
/// descriptors that the process was started with, from its predecessor or from a socket activator
/// such as systemd. An address of [`Builder::listen`](crate::Builder::listen) gets the inherited
/// listener with its name or address, and is bound only if there is none. Inherited listeners that
/// nothing has asked for are closed when the servers start. Settings count until then.
///
/// systemd is told of restarts (sd_notify(3)): use `Type=notify-reload`, or `Type=notify` with an
/// `ExecReload=` that sends SIGHUP.
///
/// # What goes to the successor
///
/// | what | given by | taken by |
/// |---|---|---|
/// | the servers' listeners | [`Builder::listen`](crate::Builder::listen), [`Builder::listener`](crate::Builder::listener) | the same |
/// | other sockets and files | [`pass`](Self::pass) | [`inherited`](Self::inherited) |
/// | state, as bytes, from the begin of the restart | [`pass_state`](Self::pass_state) | [`inherited_state`](Self::inherited_state) |
/// | state without a lost change | [`exact_state`](Self::exact_state) | the same |
/// | open connections, see [`move_connections`](Self::move_connections) | [`Service::pack`](crate::Service::pack) | [`Service::unpack`](crate::Service::unpack) |
///
/// # The start of a new process
///
/// In a new process, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGUSR2 are blocked until
/// [`inherit`](Self::inherit) is called, and then recorded until its server runs, so that none of
/// them kills the process before the server can handle them. Threads and subprocesses that the
/// process starts after the call have the usual signals. Until the new process is ready, its
/// standard error is a pipe to the old process, which relays it. If the old process dies before the
/// new one is ready, the pipe holds 64 KiB; further writes to standard error wait until the server
/// is built. Give a subprocess that is started meanwhile, such as a sidecar, the
/// [`standard_error`](Self::standard_error). Otherwise the subprocess keeps the pipe, which the new
/// process relays when the old process has ended, and which breaks when the new process ends.
///
/// A new process that fails is killed half a second after its server has ended. A new process that
/// hangs in its start is killed after `ready_timeout`, also if the old process has died meanwhile.
///
/// On Unix, a new process has a parent that waits for it while it starts: a copy of the old
/// process, which shares the old one's memory until either writes to it.
///
/// # On Windows
///
/// | | on Windows |
/// |---|---|
/// | what asks for a restart | [`Handle::restart`](crate::Handle::restart), or the restart event of the process, see `Builder::event_prefix` |
/// | the program on disk | the file of a program that runs can be neither overwritten nor removed. Rename it, and put the new program in its place; a restart between the two fails, and this process goes on. Remove the old file when its process has ended |
/// | what is passed | TCP listeners, UDP sockets, files and pipes: see [`Descriptor`] |
/// | a batch file | is refused: start `cmd.exe` with it |
/// | a start that hangs before [`inherit`](Self::inherit) | also ends when the old process dies; a start that hangs later may last for `ready_timeout`, as elsewhere |
/// | standard error | a C library that was loaded before the server is built goes on writing to the pipe, which the old process relays, and the new one after it |
/// | memory | no copy of the old process is made |
///
/// See [Platforms](crate::guide::deploying#platforms) for other systems.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use handover::{Connection, Next, Restart, Server};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let restart = Restart::inherit()?
///     .ready_timeout(Duration::from_secs(20))
///     .pid_file("/run/app.pid");
/// eprintln!("generation {}", restart.generation());
/// let report = Server::builder()
///     .listen("127.0.0.1:7000")
///     .restart(restart)
///     .build(|_: &mut Connection| Ok(Next::Close))?
///     .run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a Restart has no effect before it is given to Builder::restart"]
pub struct Restart(Arc<SharedRestart>);

/// What all clones share.
struct SharedRestart {
    generation: u64,
    is_supervised: bool,
    handle: RestarterHandle,
    /// The standard error of this process, while a pipe to the predecessor is in its place.
    own_stderr: Weak<Descriptor>,
    /// Each server that was built with this has a clone, as long as it exists.
    server_token: Arc<()>,
    /// `None` once the servers have started.
    parts: Mutex<Option<RestartParts>>,
}

/// What a restarter is made of.
pub(crate) struct RestartParts {
    program: Program,
    inherited: Inherited,
    restarter_end: RestarterEnd,
    ready_timeout: Duration,
    pub(crate) idle_grace: Duration,
    max_draining: usize,
    moves_connections: bool,
    pub(crate) ready_when: Option<ReadyWhen>,
    passed: Vec<(String, Descriptor)>,
    state: Option<StateSource>,
    exact_state: Option<ExactState>,
    pause_limit: Duration,
    pid_file: Option<PathBuf>,
    /// `None` once the server has taken them.
    pub(crate) recorded_signals: Option<RecordedSignals>,
}

/// Returns the state for a successor.
type StateSource = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// Takes the state of a predecessor.
type StateSink = Box<dyn FnOnce(Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// A state that goes to the successor while no service is called.
struct ExactState {
    export: StateSource,
    /// `None` once it was called.
    import: Option<StateSink>,
}

impl RestartParts {
    pub(crate) fn passes_exact_state(&self) -> bool {
        self.exact_state.is_some()
    }
}

/// The signals that are recorded in a successor, if they are. A drop releases them.
pub(crate) struct RecordedSignals(bool);

impl RecordedSignals {
    /// Has the signals handled that have come, and those that will come. True if one that means a
    /// stop has come already.
    pub(crate) fn release(&mut self) -> bool {
        std::mem::take(&mut self.0) && sys::signal::release()
    }
}

impl Drop for RecordedSignals {
    fn drop(&mut self) {
        self.release();
    }
}

impl Restart {
    /// Takes what this process was started with, and records how it was started. To be called once
    /// in a process.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the process has a `Restart` already, or had one: give clones of the first
    /// one to all servers. `Unsupported` if the predecessor speaks
    /// a version of the protocol that this process does not know. Errors of the system if the
    /// program of this process cannot be found, or there are no descriptors left.
    pub fn inherit() -> Result<Self, StartError> {
        if !sys::process::SUPPORTS_RESTARTS {
            let text = "restarts are not supported on this system";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text).into());
        }
        let inherited = Inherited::take()?;
        if let Some(predecessor) = &inherited.predecessor {
            send_message(&predecessor.handshake, &HandshakeMessage::Hello);
        }
        if let Some(why) = &inherited.predecessor_error {
            return Err(io::Error::new(io::ErrorKind::Unsupported, why.clone()).into());
        }
        let is_successor = inherited.predecessor.is_some();
        if is_successor {
            sys::signal::record();
            sys::process::begin_start();
        }
        let recorded_signals = RecordedSignals(is_successor);
        let program = Program::of_this_process().map_err(|error| {
            let text = format!("cannot find the program file of this process: {error}");
            io::Error::new(error.kind(), text)
        })?;
        let (handle, restarter_end) = restarter::connect()?;
        let predecessor = inherited.predecessor.as_ref();
        let own_stderr = predecessor.and_then(|predecessor| predecessor.stderr.as_ref());
        Ok(Self(Arc::new(SharedRestart {
            generation: inherited.generation(),
            is_supervised: inherited.lifeline.is_some(),
            handle,
            own_stderr: own_stderr.map_or_else(Weak::new, |stderr| Arc::downgrade(&stderr.own)),
            server_token: Arc::default(),
            parts: Mutex::new(Some(RestartParts {
                program,
                inherited,
                restarter_end,
                ready_timeout: Duration::from_secs(60),
                idle_grace: Duration::from_secs(10),
                max_draining: 4,
                moves_connections: true,
                ready_when: None,
                passed: Vec::new(),
                state: None,
                exact_state: None,
                pause_limit: Duration::from_secs(1),
                pid_file: None,
                recorded_signals: Some(recorded_signals),
            })),
        })))
    }

    /// Changes a setting, unless the servers have started.
    fn set(self, change: impl FnOnce(&mut RestartParts)) -> Self {
        match &mut *self.0.parts.lock() {
            Some(parts) => change(parts),
            None => log::warn!("a setting of a Restart has no effect once its servers run"),
        }
        self
    }

    /// The working directory of successors, looked up at each restart. Defaults to that of this
    /// process when it was started, by the name in `PWD` if that names this directory: if `PWD` is
    /// `/srv/app/current`, a symbolic link, a successor is started where the link leads by then, and
    /// so is a program that was started by a relative path. If there is no such directory, an error
    /// is logged, and the successor gets the directory of this process.
    pub fn working_directory(self, dir: impl Into<PathBuf>) -> Self {
        self.set(|parts| parts.program.set_working_directory(&dir.into()))
    }

    /// A file with environment variables for successors, read at each restart. They replace those
    /// of the same names; a variable that is removed from the file stays set. The format is that of
    /// systemd's `EnvironmentFile=` (systemd.exec(5)). As systemd does, a line that is not
    /// `NAME=VALUE`, such as `export NAME=VALUE`, is ignored, and a warning names the file and the
    /// line. If the file cannot be read, is not UTF-8, has a null character, or has a quote that is
    /// not closed, the restart fails with this reason. Defaults to none.
    pub fn environment_file(self, path: impl Into<PathBuf>) -> Self {
        self.set(|parts| parts.program.set_environment_file(path.into()))
    }

    /// How long a successor may take until it is ready; then it is ended, and this process goes on
    /// serving. A successor that fails after it has begun to accept may finish its requests for
    /// this time, or for the [`drain_timeout`](crate::Builder::drain_timeout) if that is shorter.
    /// Another restart waits until this successor has ended. More than zero. Defaults to 60 s.
    pub fn ready_timeout(self, timeout: Duration) -> Self {
        self.set(|parts| parts.ready_timeout = timeout)
    }

    /// How long a connection that was kept open, and does not [move](Self::move_connections), may be
    /// idle before the process that was replaced closes it. A request that comes within that time is answered, and the answer tells the
    /// client, if the protocol can, to use another connection. Choose a time longer than clients
    /// pause, as a later request meets the close. A service that
    /// [handles expiry](crate::Service::handles_expiry) is called before the close, with
    /// [`Expiry::Idle`](crate::Expiry::Idle). The
    /// [`drain_timeout`](crate::Builder::drain_timeout) ends the grace early. Defaults to 10 s.
    pub fn idle_grace(self, grace: Duration) -> Self {
        self.set(|parts| parts.idle_grace = grace)
    }

    /// How many earlier generations may drain at once. A restart beyond that begins when one of them
    /// has finished its requests, or its [`drain_timeout`](crate::Builder::drain_timeout) has
    /// passed: no restart cuts off the requests of an earlier one. At least 1. Defaults to 4.
    pub fn max_draining(self, generations: usize) -> Self {
        self.set(|parts| parts.max_draining = generations.max(1))
    }

    /// Whether open connections move to the successor, and from the predecessor to this process, where
    /// both have this set. A connection moves when it is between two messages: its client notices
    /// nothing, and the new process answers its next message. Input that has arrived moves with it,
    /// and so do its time-outs, the settings of the [`Connection`](crate::Connection), and its
    /// session, if the service [packs](crate::Service::packs_sessions) it. Handlers of HTTP, and
    /// functions without a session or with the session `()`, need no code for this.
    ///
    /// Connections also move between processes of one supervisor that did not start each other: when
    /// `handover scale` reduces their number, and when the supervisor starts the successor itself
    /// (`handover run`). There must be neither a [`pass_state`](Self::pass_state) nor an
    /// [`exact_state`](Self::exact_state).
    ///
    /// A connection stays, and drains as the other settings say, if its service does not pack
    /// sessions, or if it has a waker, an outbox or a timer, was upgraded or taken out of the server;
    /// if the successor has no listener with the same address, no descriptor left, or as many
    /// connections as it may have; or if the drain time-out has passed before it was between two
    /// messages. All stay on systems other than Linux. Defaults to true.
    pub fn move_connections(self, moves: bool) -> Self {
        self.set(|parts| parts.moves_connections = moves)
    }

    /// Sets a check that runs last, before the first connection is accepted. `ready` may fill
    /// caches, or check that what the service needs is there. An error of `ready` makes the start
    /// fail, and the predecessor goes on serving. `ready` runs on a thread of its own; a stop does
    /// not wait for it. Defaults to nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::TcpStream;
    ///
    /// use handover::Restart;
    ///
    /// // A new version that cannot reach the database does not replace the old one.
    /// # fn main() -> std::io::Result<()> {
    /// let restart = Restart::inherit()?.ready_when(|| TcpStream::connect("db:5432").map(drop));
    /// # Ok(())
    /// # }
    /// ```
    pub fn ready_when<E>(
        self,
        ready: impl FnOnce() -> Result<(), E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.set(|parts| parts.ready_when = Some(Box::new(|| ready().map_err(Into::into))))
    }

    /// Passes a descriptor to each successor under a name, such as a UDP socket. The successor
    /// takes it by [`inherited`](Self::inherited). The listeners of the server are passed without
    /// this call.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::net::UdpSocket;
    ///
    /// use handover::Restart;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let restart = Restart::inherit()?;
    /// let datagrams = match restart.inherited("datagrams") {
    ///     // On Unix, `UdpSocket::from` does as well.
    ///     Some(descriptor) => UdpSocket::try_from(descriptor)?,
    ///     None => UdpSocket::bind("127.0.0.1:5300")?,
    /// };
    /// let restart = restart.pass("datagrams", datagrams.try_clone()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pass(self, name: impl Into<String>, descriptor: impl Into<Descriptor>) -> Self {
        let passed = (name.into(), descriptor.into());
        self.set(|parts| parts.passed.push(passed))
    }

    /// Takes the descriptor that was passed to this process under a name, by the predecessor's
    /// [`pass`](Self::pass) or by a socket activator; `None` the second time, and once the servers
    /// run. Take a listener for [`Builder::listener`](crate::Builder::listener) so
    /// ([`Listener::from_descriptor`]), before you bind another one. See [`pass`](Self::pass) for an
    /// example.
    pub fn inherited(&self, name: &str) -> Option<Descriptor> {
        self.0.parts.lock().as_mut()?.inherited.remove(name)
    }

    /// A file that holds the serving process's id. The start fails if the file is that of another
    /// living process. At a restart, the file is the successor's before the old process ends.
    /// Where several processes serve, use the [supervisor's](crate::Supervisor::pid_file) instead.
    /// Defaults to none.
    pub fn pid_file(self, path: impl Into<PathBuf>) -> Self {
        self.set(|parts| parts.pid_file = Some(path.into()))
    }

    /// The number of this process among all that have served, from 1: one more than that of its
    /// predecessor. A supervisor also counts the processes that it has restarted after an end.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// Sets the function that gives state to each successor, such as counts or sessions: of all
    /// servers of the process together. The successor takes the bytes by
    /// [`inherited_state`](Self::inherited_state), and its version of the program must understand
    /// them. Called when a restart begins, while this process goes on serving: what changes
    /// afterwards is not in it, in particular what the connections change that are busy then. They
    /// may go on until the end of the drain, beside the successor. For state of which no change may be
    /// lost, use [`exact_state`](Self::exact_state). A panic is logged, and passes nothing. Defaults
    /// to nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    ///
    /// use handover::{Connection, Next, Restart, Server};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let restart = Restart::inherit()?;
    /// // Counts calls, over restarts as well.
    /// let state = restart.inherited_state().and_then(|state| state.try_into().ok());
    /// let count = Arc::new(AtomicU64::new(state.map_or(0, u64::from_le_bytes)));
    /// let counted = Arc::clone(&count);
    /// let restart = restart.pass_state(move || counted.load(Relaxed).to_le_bytes().into());
    /// let server = Server::builder()
    ///     .listen("127.0.0.1:7000")
    ///     .restart(restart)
    ///     .build(move |_: &mut Connection| {
    ///         count.fetch_add(1, Relaxed);
    ///         Ok(Next::Close)
    ///     })?;
    /// server.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn pass_state(self, state: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.set(|parts| parts.state = Some(Box::new(state)))
    }

    /// Takes the state that the predecessor's [`pass_state`](Self::pass_state) has left for this
    /// process. `None` if there is no predecessor, or it has left nothing; also the second time, and
    /// once the servers run.
    pub fn inherited_state(&self) -> Option<Vec<u8>> {
        let mut parts = self.0.parts.lock();
        parts.as_mut()?.inherited.predecessor.as_mut()?.state.take()
    }

    /// Sets the functions that hand state to each successor without a lost change. From the last
    /// call of a handler in the old process to the first one in the new process, no handler runs in
    /// either: the old process calls `export`, the new one calls `import` with the same bytes, and
    /// then serves. So each change that a client was told of is in the state, and none is made twice.
    /// Both are of all servers of the process together.
    ///
    /// Meanwhile clients wait, for [`pause_limit`](Self::pause_limit) at most:
    ///
    /// 1. When the successor is ready, the old process accepts no more connections and begins no more
    ///    messages. What its clients send waits in the kernel. Messages of which the service has consumed
    ///    a part are served to their end, for half of the limit.
    /// 2. A connection that cannot [move](Self::move_connections) is closed when it is between two
    ///    messages, as in a drain: [`Connection::is_draining`](crate::Connection::is_draining) is true,
    ///    HTTP says `Connection: close`, and an idle client reads the
    ///    [goodbye](crate::Connection::set_goodbye). If a message that was consumed in part has not come
    ///    to its end by then, its connection is closed once the successor serves. A message of which
    ///    nothing was consumed moves with its connection, and the successor gets it from its beginning.
    /// 3. When no handler runs, `export` is called. The other connections move to the successor once it
    ///    has imported the state. Those that it refuses are closed.
    ///
    /// If a handler runs for longer, if `export` panics, or if `import` fails, panics or takes too long,
    /// the restart fails with [`RestartErrorKind::State`] or [`RestartErrorKind::Ended`], and the old
    /// process goes on, with all changes. A service that holds its worker until its client disconnects
    /// makes each restart fail.
    ///
    /// The successor must call this function too, with a version of its program that understands the
    /// bytes: if it does not, the restart fails. `import` is called once, after
    /// [`ready_when`](Self::ready_when), and before a service is called. It is not called in the first
    /// process, or if the predecessor has died. If the predecessor has only
    /// [`pass_state`](Self::pass_state), `import` gets those bytes, unless
    /// [`inherited_state`](Self::inherited_state) has taken them.
    ///
    /// Handlers are [`serve`](crate::Service::serve), [`expired`](crate::Service::expired),
    /// [`session`](crate::Service::session) and [`unpack`](crate::Service::unpack). Threads of the
    /// application, periodic calls ([`Handle::every`](crate::Handle::every)) and the producers of HTTP
    /// bodies are not handlers: what they change between `export` and the end of the old process is lost.
    /// [`pack`](crate::Service::pack) and the drop of a session come after `export`, and must not change
    /// the state.
    ///
    /// Where several processes serve ([`Supervisor::processes`](crate::Supervisor::processes)), each has a
    /// state of its own, which goes to the successor that it starts.
    ///
    /// Needs Linux: on other systems, each restart fails. Defaults to nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io::Write;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    ///
    /// use handover::{Connection, Next, Restart, Server};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Each line gets a number. No number is given twice, over restarts as well.
    /// let count = Arc::new(AtomicU64::new(0));
    /// let (exported, imported) = (Arc::clone(&count), Arc::clone(&count));
    /// let restart = Restart::inherit()?.exact_state(
    ///     move || exported.load(SeqCst).to_le_bytes().into(),
    ///     move |state: Vec<u8>| {
    ///         let state = state.try_into().map_err(|_| "not a number")?;
    ///         imported.store(u64::from_le_bytes(state), SeqCst);
    ///         Ok::<(), &str>(())
    ///     },
    /// );
    /// let serve = move |conn: &mut Connection| match conn.take_line(1024)? {
    ///     Some(_) => {
    ///         writeln!(conn, "{}", count.fetch_add(1, SeqCst) + 1)?;
    ///         Ok(Next::Park)
    ///     }
    ///     None => Ok(Next::incomplete(conn)),
    /// };
    /// Server::builder().listen("127.0.0.1:7000").restart(restart).build(serve)?.run()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn exact_state<E>(
        self,
        export: impl Fn() -> Vec<u8> + Send + Sync + 'static,
        import: impl FnOnce(Vec<u8>) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let import: StateSink = Box::new(|state| import(state).map_err(Into::into));
        let exact_state = ExactState {
            export: Box::new(export),
            import: Some(import),
        };
        self.set(|parts| parts.exact_state = Some(exact_state))
    }

    /// How long clients may wait for an [`exact_state`](Self::exact_state) to reach the successor. A
    /// restart that takes longer fails, and this process goes on serving. More than zero. Defaults to
    /// 1 s.
    pub fn pause_limit(self, limit: Duration) -> Self {
        self.set(|parts| parts.pause_limit = limit)
    }

    /// The standard error that this process has while its server runs, for a subprocess that is
    /// started before. Until the server is built, the standard error of a successor is a pipe to
    /// its predecessor, which does not last, see [above](Self#the-start-of-a-new-process). In other
    /// processes, and later, this is a copy of the standard error of this process.
    ///
    /// # Errors
    ///
    /// The system's error if standard error is closed, or no descriptor is free.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// use handover::Restart;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let restart = Restart::inherit()?;
    /// let exporter = Command::new("metrics-exporter")
    ///     .stderr(restart.standard_error()?)
    ///     .spawn()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn standard_error(&self) -> io::Result<Descriptor> {
        match self.0.own_stderr.upgrade() {
            Some(own) => own.try_clone(),
            None => sys::descriptor::duplicate_stderr(),
        }
    }

    // ---- for the rest of the crate ----

    /// Whether a supervisor has started this process or its predecessors.
    pub(crate) fn is_supervised(&self) -> bool {
        self.0.is_supervised
    }

    pub(crate) fn handle(&self) -> &RestarterHandle {
        &self.0.handle
    }

    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The settings `ready_timeout` and `pause_limit`; `None` once the servers have started.
    pub(crate) fn time_settings(&self) -> (Option<Duration>, Option<Duration>) {
        let parts = self.0.parts.lock();
        let times = |parts: &RestartParts| (parts.ready_timeout, parts.pause_limit);
        parts.as_ref().map(times).unzip()
    }

    /// The listeners for these addresses, in their order: inherited ones, or new ones, which the
    /// supervisor binds if there is one.
    pub(crate) fn take_listeners(&self, binds: Vec<Bind>) -> Result<Vec<Listener>, BindError> {
        binds.iter().try_for_each(Bind::check_stream)?;
        let refs: Vec<_> = binds.iter().collect();
        let found = match &mut *self.0.parts.lock() {
            Some(parts) => parts.inherited.take_listeners(&refs),
            None => Vec::new(),
        };
        let found = found.into_iter().chain(std::iter::repeat_with(|| None));
        let listeners = binds
            .into_iter()
            .zip(found)
            .map(|(bind, found)| match found {
                Some(listener) => Ok(listener),
                None if self.is_supervised() => bind_request::bind(self.generation(), bind),
                None => bind.bind(),
            });
        listeners.collect()
    }

    /// Counts a server as built with this, until the token is dropped.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the servers of this process have started.
    pub(crate) fn add_server(&self) -> io::Result<Arc<()>> {
        match &*self.0.parts.lock() {
            Some(_) => Ok(Arc::clone(&self.0.server_token)),
            None => Err(started_error()),
        }
    }

    /// Takes all that the restarter of this number of servers needs.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if servers with this have started already, and `InvalidInput` if others were
    /// built with this, and are not among these.
    pub(crate) fn take_parts(&self, servers: usize) -> io::Result<RestartParts> {
        let built = Arc::strong_count(&self.0.server_token) - 1;
        if built != servers {
            let text = format!(
                "{built} servers were built with this Restart, and {servers} of them started: \
                 start all of them together, with Servers"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut parts = self.0.parts.lock().take().ok_or_else(started_error)?;
        parts.inherited.close_rest();
        Ok(parts)
    }
}

fn started_error() -> io::Error {
    let text = "the servers of this Restart run already: build all of them first, and start them \
                together, with Servers";
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

impl fmt::Debug for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Restart");
        text.field("generation", &self.generation());
        if let Some(parts) = &*self.0.parts.lock() {
            text.field("program", &parts.program)
                .field("ready_timeout", &parts.ready_timeout)
                .field("idle_grace", &parts.idle_grace)
                .field("max_draining", &parts.max_draining)
                .field("moves_connections", &parts.moves_connections)
                .field("exact_state", &parts.exact_state.is_some())
                .field("pause_limit", &parts.pause_limit)
                .field("pid_file", &parts.pid_file);
        }
        text.finish_non_exhaustive()
    }
}
