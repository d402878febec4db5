//! Guides: how to build, run and understand a service, with examples. This module has no code.
//!
//! | to … | read |
//! |---|---|
//! | port a server with one thread per connection | [`porting`], and the table of std's methods in [`from_std`] |
//! | know which thread runs what, what may block, and what a panic costs | [`threads`] |
//! | choose workers, limits, time-outs and the overload policy | [`sizing`] |
//! | send to clients that wait, answer from another thread, set timers | [`push`] |
//! | choose between systemd, a container and a supervisor; exit codes, signals | [`deploying`] |
//! | operate the command `handover` | [`operating`] |
//! | pass state to the next version of the program | [`restarting`] |
//! | count, log, check and alert | [`observing`] |
//! | change this crate | [`internals`] |

/// Push: connections that wait for the server.
///
/// A connection that waits occupies no thread, whether it waits for its client or for the server.
/// This page shows the idioms, and says which code runs on which thread.
///
/// # The means
///
/// | means | what it does | choose it if |
/// |---|---|---|
/// | [`Waker`](crate::Waker) | has the service called, on a worker | the service has to decide what to do |
/// | [`Outbox`](crate::Outbox) | sends bytes to the client | the bytes are ready: a broadcast, an event |
/// | [`wake_at`](crate::Connection::wake_at) | has the service called at a time | heartbeats, game ticks, time-outs of the protocol |
/// | [`Handle::every`](crate::Handle::every) | calls a closure at intervals | the application's own periodic work |
/// | [`Service::expired`](crate::Service::expired) | has the service called when a time-out expires | the protocol has a reply for it, such as SMTP's 421 |
/// | `Reply::later` | an HTTP response from another thread | a request starts a job |
/// | `Reply::channel`, `Events` | an HTTP body from other threads | streams, server-sent events |
///
/// While a connection waits, the service has returned [`Next::Park`](crate::Next::Park) or
/// [`Next::Wait`](crate::Next::Wait). After `Park`, what the client sends leads to a call: the
/// client and the server may both speak at any time. After `Wait`, what the client sends stays in
/// the buffer until the answer is there: requests are answered in order.
///
/// # Which thread runs what
///
/// | code | thread |
/// |---|---|
/// | `serve` and `expired` | a worker |
/// | [`Waker::wake`](crate::Waker::wake) | the caller's; never blocks, at most one system call |
/// | [`Outbox::send`](crate::Outbox::send) | the caller's; writes what the socket takes at once, never blocks |
/// | the rest of what was sent | a worker or the keeper, as the client reads |
/// | the drop of a session | a worker, the keeper, or the main thread; never a thread that wakes or sends |
/// | the closure of [`Handle::every`](crate::Handle::every) | a thread of its own |
/// | the callback of `Responder::on_close` | as the drop of a session; the caller's, if already closed |
///
/// So sending under a lock cannot deadlock with a session's drop. It still is I/O under the lock.
///
/// # Subscribers
///
/// Each connection that subscribes puts its outbox into a list. To publish is to send one message
/// to each. The message is not copied: the clones of [`Bytes`](crate::Bytes) share their memory.
///
/// ```
/// use std::io;
/// use std::sync::Mutex;
///
/// use handover::{Bytes, Connection, Next, Outbox, WhenFull};
///
/// static SUBSCRIBERS: Mutex<Vec<Outbox>> = Mutex::new(Vec::new());
///
/// fn serve(conn: &mut Connection) -> io::Result<Next> {
///     if conn.is_draining() && conn.buffer().is_empty() {
///         conn.close_outbox();
///         conn.write_owned("the server stops or restarts\n".as_bytes())?;
///         return Ok(Next::Close);
///     }
///     match conn.take_line(1024)?.as_deref() {
///         Some("subscribe") => {
///             // At most 64 KiB for a client that reads slowly. It is closed beyond that.
///             let outbox = conn.outbox(64 * 1024);
///             outbox.set_when_full(WhenFull::CloseConnection);
///             let mut subscribers = SUBSCRIBERS.lock().unwrap();
///             subscribers.retain(|other| !other.is_closed());
///             subscribers.push(outbox);
///             // A subscriber need not say anything.
///             conn.set_idle_timeout(std::time::Duration::MAX);
///         }
///         Some(text) => publish(format!("{text}\n").into()),
///         None => return Ok(Next::More),
///     }
///     Ok(Next::Park)
/// }
///
/// fn publish(message: Bytes) {
///     let mut subscribers = SUBSCRIBERS.lock().unwrap();
///     subscribers.retain(|outbox| outbox.send(message.clone()).is_ok());
/// }
/// ```
///
/// A thread that sends to thousands at once takes the CPU from the workers meanwhile: a send takes
/// some 5 µs, most of it in the kernel. Call `std::thread::yield_now` after each 16 messages or so.
/// It costs next to nothing, and a request waits for 0.1 ms and not for the whole broadcast.
///
/// The [write time-out](crate::Builder::write_timeout) closes a subscriber that does not read,
/// whatever the bound of its outbox is.
///
/// What the service itself writes goes past the outbox, and what others have sent before may follow it.
/// Where an answer has to be the last, such as that to `quit`, the service takes the client off the
/// list, and calls [`close_outbox`](crate::Connection::close_outbox) before it writes the answer:
///
/// ```
/// # use std::io::{self, Write};
/// # use handover::{Connection, Next};
/// # fn quit(conn: &mut Connection) -> io::Result<Next> {
/// conn.close_outbox();
/// writeln!(conn, "goodbye")?;
/// Ok(Next::Close)
/// # }
/// ```
///
/// **At a restart**, each process has its own list, and the subscribers of the old one meet no new ones.
/// The service above ends each connection at once, when it has published what has arrived. A service
/// that must not lose what its clients send at that moment ends a connection behind its next message:
/// while the server [drains](crate::Connection::is_draining), it handles the message, calls
/// `close_outbox`, writes its goodbye, and returns `Close`. With an
/// [`idle_grace`](crate::Restart::idle_grace) of one second, clients that are silent follow.
///
/// # A job and its answer
///
/// The service gives the job and a waker to another thread, and returns `Wait`. When the answer is
/// there, the other thread wakes the connection: the example at [`Waker`](crate::Waker). With a
/// time limit, the service sets [`wake_at`](crate::Connection::wake_at) as well; then
/// [`cause`](crate::Connection::cause) says whether the answer or the limit came first. Whether the
/// client has ended its side is `cause().ended`.
///
/// For HTTP, `Reply::later` does all of this: exactly one of the answer, the limit and the client's
/// leaving wins, and the thread with the answer learns which.
///
/// # A waiting list
///
/// Where threads waited on a `Condvar`, connections wait in a set of wakers. In this queue, the
/// line `get` waits for an item for a minute at most, and every other line is an item:
///
/// ```
/// use std::collections::{HashSet, VecDeque};
/// use std::io::{self, Write};
/// use std::sync::{LazyLock, Mutex};
/// use std::time::{Duration, Instant};
///
/// use handover::{Connection, Next, Waker};
///
/// static QUEUE: LazyLock<Mutex<Queue>> = LazyLock::new(Mutex::default);
///
/// #[derive(Default)]
/// struct Queue {
///     items: VecDeque<String>,
///     waiting: HashSet<Waker>,
/// }
///
/// /// `until`: the end of the time of a `get` that was not answered yet.
/// fn serve(conn: &mut Connection, until: &mut Option<Instant>) -> io::Result<Next> {
///     if until.is_none() {
///         match conn.take_line(1024)?.as_deref() {
///             Some("get") => *until = Some(Instant::now() + Duration::from_secs(60)),
///             Some(item) => {
///                 let mut queue = QUEUE.lock().unwrap();
///                 queue.items.push_back(item.to_owned());
///                 // As `notify_all`.
///                 for waker in queue.waiting.drain() {
///                     waker.wake();
///                 }
///                 return Ok(Next::Park);
///             }
///             None => return Ok(Next::incomplete(conn)),
///         }
///     }
///     let mut queue = QUEUE.lock().unwrap();
///     queue.waiting.remove(&conn.waker());
///     let answer = match queue.items.pop_front() {
///         // The client has left, or the server stops.
///         None if conn.cause().ended || conn.is_draining() => "none".to_owned(),
///         None if *until <= Some(Instant::now()) => "none".to_owned(),
///         None => {
///             queue.waiting.insert(conn.waker());
///             conn.wake_at(*until);
///             return Ok(Next::Wait);
///         }
///         Some(item) => item,
///     };
///     drop(queue);
///     *until = None;
///     writeln!(conn, "{answer}")?;
///     Ok(Next::Park)
/// }
///
/// let service = handover::service_with_session(|_conn| Ok(None), serve);
/// # fn is_service(_: impl handover::Service) {}
/// # is_service(service);
/// ```
///
/// As after `Condvar::wait`, a waiter that was woken looks at the queue again, and may wait again.
/// The timer of [`wake_at`](crate::Connection::wake_at) ends the wait; without a timer,
/// [`Next::Wait`](crate::Next::Wait) expires after [`idle_timeout`](crate::Builder::idle_timeout)
/// (75 s). Waking under the lock is safe. With thousands of waiters, wake one at a time, as the
/// example `resp` does. A connection that was woken may end before its call: then the drop of its
/// session has to wake the next waiter. The items are in memory, and without a limit: a program
/// refuses more than it has room for, and hands them over at a restart
/// ([`exact_state`](crate::Restart::exact_state)).
///
/// # Heartbeats
///
/// ```
/// use std::io::{self, Write};
/// use std::time::{Duration, Instant};
///
/// use handover::{Connection, Next};
///
/// const HEARTBEAT: Duration = Duration::from_secs(15);
///
/// fn serve(conn: &mut Connection) -> io::Result<Next> {
///     if conn.cause().timer {
///         writeln!(conn, "ping")?;
///     }
///     while let Some(_line) = conn.take_line(1024)? {
///         // …
///     }
///     conn.wake_at(Instant::now() + HEARTBEAT);
///     Ok(Next::incomplete(conn))
/// }
/// ```
///
/// A timer does not extend the idle time-out: a client that does not answer the heartbeats is
/// closed after [`idle_timeout`](crate::Builder::idle_timeout). A connection with a timer does not move
/// to a successor.
///
/// # Stops and restarts
///
/// A connection that has a waker, an outbox or a timer is called once when the server begins to
/// drain ([`cause().draining`](crate::Cause::draining)). After `Wait` the connection goes on until
/// the drain's deadline, so that an answer can still come. After `Park` it is closed as idle
/// connections are. [`Report::drain_calls`](crate::Report::drain_calls) counts these calls.
///
/// Other connections are not told. A stop closes an idle one without a call. A restart
/// [moves](restarting#open-connections-move) it to the successor (Linux). A connection that has ever had
/// a waker, an outbox or a timer stays, as others do that cannot move: it is closed when its client was
/// silent for [`idle_grace`](crate::Restart::idle_grace) (10 s), and
/// [`Service::expired`](crate::Service::expired) is called before, if the service handles expiry.
///
/// **Goodbyes.** [`Connection::set_goodbye`](crate::Connection::set_goodbye), once for each
/// connection, is all that most protocols need: these bytes leave whenever the server ends a
/// connection, after a stop, a restart or a time-out. A client that sends something after a restart
/// reads them [behind its answer](restarting#open-connections-that-stay), unless the connection has an outbox.
/// With an `idle_grace` of one second, the others are told after a second of silence.
///
/// What a client sends at the moment of the close crosses the close, and is lost. A service that
/// wants to tell its clients at once, and to serve what crosses the goodbye, says goodbye when the
/// drain begins, and closes when the client has been silent for a second:
///
/// ```
/// use std::io::{self, Write};
/// use std::time::{Duration, Instant};
///
/// use handover::{Connection, Next};
///
/// const SILENCE: Duration = Duration::from_secs(1);
///
/// fn serve(conn: &mut Connection) -> io::Result<Next> {
///     if conn.cause().draining {
///         writeln!(conn, "the server stops or restarts")?;
///     }
///     let mut is_silent = conn.cause().timer;
///     while let Some(line) = conn.take_line(1024)? {
///         is_silent = false;
///         writeln!(conn, "{line}")?;
///     }
///     if !conn.is_draining() {
///         // The timer is what makes the server call at a drain.
///         conn.wake_at(Instant::now() + Duration::from_secs(3600));
///         return Ok(Next::incomplete(conn));
///     }
///     if is_silent && conn.buffer().is_empty() {
///         return Ok(Next::Close);
///     }
///     conn.wake_at(Instant::now() + SILENCE);
///     Ok(Next::More)
/// }
/// # fn is_service(_: impl handover::Service) {}
/// # is_service(serve);
/// ```
///
/// While the service waits for silence, it returns `More`, and not `Park`: a stop closes a
/// connection in `Park` at once. Only what takes longer than a second to arrive is lost. In
/// WebSocket no message may follow a close frame: the example `websocket` sends the close frame
/// behind the next answer, or after the silence.
pub mod push {}

#[doc = include_str!("guide/porting.md")]
pub mod porting {}

#[doc = include_str!("guide/from_std.md")]
pub mod from_std {}

#[doc = include_str!("guide/threads.md")]
pub mod threads {}

#[doc = include_str!("guide/sizing.md")]
pub mod sizing {}

#[doc = include_str!("guide/deploying.md")]
pub mod deploying {}

#[doc = include_str!("guide/operating.md")]
pub mod operating {}

#[doc = include_str!("guide/restarting.md")]
pub mod restarting {}

#[doc = include_str!("guide/observing.md")]
pub mod observing {}

#[doc = include_str!("guide/internals.md")]
pub mod internals {}
