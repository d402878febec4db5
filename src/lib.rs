//! A synchronous, thread-pool server framework that never drops a connection.
//!
//! Blocking code keeps its shape: a handler reads from and writes to a [`Connection`] as from a socket, on one of a
//! fixed number of threads. What is different from a thread per connection is everything around it: a client that
//! waits, is slow, or says nothing occupies no thread; every wait has a total deadline; a panic costs one
//! connection; a stop answers what was asked before it ends; a restart hands over to a new process without losing a
//! request; and a process that crashes or hangs is replaced while its clients wait. There is no async runtime.
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
//! - The **acceptor** thread waits on all listeners, applies the limits and the [`Overload`] policy, and puts new
//!   connections on the queue.
//! - A **worker** takes a connection from the queue, calls the [`Service`] if the client has sent something, and does
//!   what [`Next`] says. When the queue is empty, it waits in the parking lot's poller itself, so that nobody stands
//!   between a waiting client and its worker.
//! - The **parking lot** holds connections that wait for their client. The **keeper** thread closes those whose
//!   time is over, and writes buffered answers while every worker is busy.
//! - The **main** thread starts the others, and obeys the [`Handle`] and signals until a drain is over.
//! - The **upgrader** thread, where there is a [`Restart`], has a new process take over, and took over itself from the
//!   one before.
//!
//! With [`supervise`], all of this is in processes that a first one starts, and starts anew when they end or hang: the
//! **supervisor**, which holds the listeners, and runs no code of the service. See [`Supervisor`].
//!
//! A service comes in two shapes. The better one is called for each message, takes it from
//! [`Connection::buffer`] or one of the `take` methods, and returns [`Next::Park`] or [`Next::More`]: its waiting
//! clients are free. The other one loops over blocking reads until the end of the stream, as legacy code does; it
//! works as well, and holds a worker meanwhile.
//!
//! # Limitations
//!
//! - As many calls of the service run at the same time as there are workers: a handler that waits for something else
//!   than its client holds one. Give such a service more workers.
//! - With `panic = "abort"` a panic ends the process; nothing can be done about that here.
//! - Threads are never killed. A handler that neither returns nor touches its connection outlives a stop; the
//!   [`Report`] names it.
//! - Where the platform has no poller that threads can share (anything but Linux and Android), the keeper brings ready connections to
//!   the workers, which costs a thread switch per message. Windows has no Unix sockets here.
//! - Restarts need Unix, and the supervisor Linux. TLS is not here yet.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `signals` | yes | [`Server::run`] reacts to SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 and Ctrl-C |
//! | `http` | no | HTTP/1.1 for handlers from request to response: the module `http` |
//! | `cli` | no | the command `handover`, which supervises programs, and speaks to a [`Supervisor`] |

mod sys;
mod wire;

mod addr;
mod clock;
mod pool;

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

mod server;

pub use acceptor::Overload;
pub use addr::{Addr, AddrError};
pub use connection::{Connection, Detached};
pub use listener::{Bind, BindError, Listener};
pub use restart::{Restart, RestartError, RestartErrorKind};
pub use server::{BuildError, Builder, Forced, Generation, Handle, Report, RestartReport, Server};
pub use service::{Next, Service};
pub use stats::{Expired, Refused, Stats, WorkerState};
pub use supervisor::{Supervisor, supervise};
pub use sys::{Descriptor, Stream};

/// The README's programs must compile.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../README.md")]
struct Readme;
