//! A synchronous, thread-pool server framework: a stop or a restart cuts off no connection before
//! the deadline of the stop.
//!
//! Handlers are blocking code: a handler reads from and writes to a [`Connection`] as if it were a
//! socket, on one of a fixed number of threads. This crate adds what one thread per connection does
//! not have:
//!
//! - A connection that waits for its client occupies no thread.
//! - Every wait for a client has a total deadline.
//! - A panic closes one connection.
//! - A stop answers the requests that the server has received.
//! - A restart hands the listening sockets and the open connections to a new process. Clients stay
//!   connected, and none is refused.
//! - A process that crashes or hangs is replaced while its new clients wait.
//!
//! There is no async runtime.
//!
//! ```no_run
//! use std::io::{self, BufRead, Write};
//!
//! use handover::{Connection, Next, Server};
//!
//! fn echo(conn: &mut Connection) -> io::Result<Next> {
//!     let bytes = conn.buffer().to_vec();
//!     conn.write_all(&bytes)?;
//!     conn.consume(bytes.len());
//!     Ok(Next::Park)
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let report = Server::builder().listen("127.0.0.1:7000").build(echo)?.run()?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! # Anatomy
//!
//! ```text
//!            ┌────────────────────────────────────────────────────────────────────┐
//! clients ─► │ acceptor ──► bounded queue ──► workers (fixed, named) ──► closed   │
//!            │                   ▲                │ Next::Park    ▲ readable      │
//!            │                   └────────────────┤               │               │
//!            │                              parking lot (poller), and its keeper  │
//!            └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! - The **acceptor** thread waits on all listeners, applies the limits and the [`Overload`]
//!   policy, and puts new connections on the queue, or parks them while the queue is full.
//! - A **worker** thread takes a connection from the queue, calls the [`Service`] if the client has
//!   sent something, and does what [`Next`] says. When the queue is empty, the worker waits in the
//!   poller of the parking lot itself, so no other thread stands between a client and its worker.
//!   Connections are served in the order in which they became ready. No more workers are active
//!   than the cores carry; the others rest.
//! - The **parking lot** holds the connections that wait for their client. The **keeper** thread
//!   closes them at their deadlines, and writes buffered output while all workers are busy. On a
//!   machine with 64 cores or more, there are several groups of workers with a queue, a lot and a
//!   keeper each ([`Builder::worker_groups`]).
//! - The **main** thread starts the other threads. It executes the commands of the [`Handle`] and
//!   of signals, and runs a drain to its end.
//! - The **restarter** thread exists with a [`Restart`]. It takes over from the predecessor
//!   process, and later starts the successor process and hands over to it. Once the successor
//!   serves, the **mover** thread of the old process sends it the open connections, and the **adopter**
//!   thread of the new process takes them.
//! - With the feature `signals`, [`Server::run`] adds threads that turn signals into commands.
//!
//! With [`supervise`], the first process is the **supervisor**. It holds the listeners, runs no
//! code of the service, and starts processes that contain all of the above. When a process
//! ends or hangs, the supervisor starts another process, see [`Supervisor`].
//!
//! A service has one of two forms. In the first form it is called for each message, takes the
//! message from [`Connection::buffer`] or by one of the `take` methods, and returns [`Next::Park`]
//! or [`Next::More`]. Its waiting clients occupy no thread. In the second form it loops over
//! blocking reads until the end of the stream, as code for one thread per connection does. It then
//! holds a worker until its client disconnects.
//!
//! # Where next
//!
//! | to … | read |
//! |---|---|
//! | set limits, time-outs and the number of workers | [`Builder`] |
//! | start, run and embed a server | [`Server`] |
//! | stop it, restart it, read its counters | [`Handle`], [`Report`], [`Stats`] |
//! | write a service with state per connection or per worker | [`Service`], [`Next`] |
//! | port a server with one thread per connection | [`guide::porting`], [`guide::from_std`] |
//! | know what may block, and what a panic costs | [`guide::threads`] |
//! | read and write, under deadlines | [`Connection`] |
//! | use a library that needs non-blocking reads and writes | [`Connection::nonblocking`] |
//! | choose listener options, or use a listener that exists already | [`Bind`], [`Listener`] |
//! | say what happens when the server is full | [`guide::sizing`], [`Overload`] |
//! | run several servers in one process | [`Servers`] |
//! | restart without refusing a client, pass state on | [`guide::restarting`], [`Restart`] |
//! | restart after crashes and hangs | [`supervise`], [`Supervisor`] |
//! | deploy: systemd, containers, exit codes, signals | [`guide::deploying`], [`guide::operating`] |
//! | count, log, check and alert | [`guide::observing`] |
//! | send to clients that wait, answer from another thread, set timers | [`guide::push`], [`Waker`], [`Outbox`] |
//! | take a socket out of the server | [`Connection::detach`], [`Detached`] |
//! | speak HTTP/1.1 | the module `http` (feature `http`) |
//!
//! # Logs
//!
//! The crate logs through the `log` crate. The targets are module paths, so a filter such as
//! `handover::restart=debug` selects one part. The targets with the most records are:
//!
//! | target | records |
//! |---|---|
//! | `handover::access` | HTTP requests, with `Http::access_log` (info) |
//! | `handover::acceptor` | refused clients (debug), errors of `accept` (warn, error) |
//! | `handover::parking` | connections closed at a deadline (debug) |
//! | `handover::http` | rejected requests (debug), bodies not stored (warn) or not read (error) |
//! | `handover::listener` | attempts to bind an address in use (info) |
//! | `handover::moving` | connections that stay in a restart (warn, debug) |
//! | `handover::notify` | a service manager that cannot be reached (warn) |
//! | `handover::restart` | the steps of a restart (info), and why one failed (error) |
//! | `handover::server` | stops (info), their reports (debug), threads that failed (error) |
//! | `handover::signals` | signals received, and what follows (info) |
//! | `handover::supervisor` | processes started, ready and ended (info), crashes (warn, error) |
//! | `handover::worker` | errors of reading and writing (debug), other errors of a service (warn), panics (error) |
//!
//! A supervisor without a logger writes its records to standard error, from level info on, as
//! lines with times, for systemd's journal, or in JSON ([`LogFormat`]). No record makes it wait.
//! The other threads of the crate call the logger of the program, and wait for it if it blocks.
//!
//! # Limitations
//!
//! - The server makes as many calls of the service at the same time as it has workers. A handler
//!   that waits for something other than its client holds a worker, unless the service returns
//!   [`Next::Wait`] and is woken ([`Waker`]). The default is 8 workers per core, at least 16.
//! - A service whose writes exceed the output limit (64 KiB) because its client reads slowly, or
//!   that reads a large message from a client that sends slowly, holds a worker meanwhile. Such a
//!   wait ends at the write or read time-out, which progress at the minimum rate extends. Bytes and
//!   files that the connection owns, and HTTP responses, hold none.
//! - [`Restart::pass_state`] is a snapshot: what changes after a restart has begun is not in it.
//!   [`Restart::exact_state`] loses no change, and has clients wait for some milliseconds. It needs
//!   Linux.
//! - At a restart, a connection that has a waker, an outbox or a timer, was upgraded, or has a
//!   session that the service does not pack, stays with the old process, and is shut down at the end
//!   of the drain time-out. On systems other than Linux, all connections stay.
//!   See [`Restart::move_connections`].
//! - With `panic = "abort"`, a panic ends the process.
//! - Threads are never killed. A handler that neither returns nor touches its connection outlives a
//!   stop; the [`Report`] names it.
//! - Without epoll or a completion port (on systems other than Linux, Android and Windows) the
//!   keeper waits in the poller, and brings ready connections to the workers, which costs a thread
//!   switch per message.
//! - On Windows, this crate has no Unix sockets. A handler that waits for its client may wait for
//!   0.1 s more after a forced stop, because a shutdown does not end the wait there. The address of
//!   a server that has stopped can be bound again when all its connections have ended
//!   (SO_EXCLUSIVEADDRUSE). How often a worker was blocked is not measured, so more workers join
//!   only when ready connections have waited.
//! - Restarts need Unix or Windows, and the supervisor needs Linux or Windows.
//!   [Platforms](guide::deploying#platforms) says what works where, and how far that was tested.
//! - TLS and HTTP/2 are not implemented.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `signals` | yes | [`Server::run`] reacts to signals and Ctrl-C, on Windows to event objects and console events, see `Builder::signals` |
//! | `http` | no | HTTP/1.1 for handlers from request to response: the module `http` |
//! | `windows-service` | no | a service of Windows: `WindowsService`; on other systems, it only calls the program |
//! | `cli` | no | the command `handover`: supervises programs, and controls a [`Supervisor`] |

pub mod guide;

mod panic;

mod log;

mod sys;
mod wire;

mod addr;
mod clock;
#[cfg(feature = "windows-service")]
mod service_manager;
mod start_error;

mod drain;
mod listener;
mod notify;
mod signals;
mod stats;

mod connection;

mod parking;
mod restart;
mod service;

mod acceptor;
#[cfg(feature = "http")]
pub mod http;
mod supervisor;
mod worker;

mod moving;

mod server;

pub use acceptor::Overload;
pub use addr::{Addr, AddrError};
pub use bytes::Bytes;
pub use connection::{
    Cause, Connection, Detached, Expiry, NonBlocking, Outbox, ReadHalf, SendError, Waker, WhenFull,
    WriteHalf,
};
pub use listener::{Bind, BindError, Listener};
pub use restart::{Restart, RestartError, RestartErrorKind};
pub use server::{
    BuildError, Builder, Forced, Generation, Handle, Report, RestartReport, Server, Servers,
    Setting, restore_descriptor_limit,
};
pub use service::{
    BufferLimits, Next, Service, pack_sessions, service, service_with, service_with_session,
};
#[cfg(feature = "windows-service")]
pub use service_manager::WindowsService;
pub use start_error::StartError;
pub use stats::{Expired, Histogram, Refused, Stats, WorkerState};
pub use supervisor::{LogFormat, NotifyAccess, StopSignal, StopSignalError, Supervisor, supervise};
#[doc(hidden)]
pub use sys::ControlClient;
pub use sys::{Descriptor, Stream};

/// Compiles the programs in README.md as tests.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
