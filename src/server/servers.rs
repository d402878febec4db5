//! Several servers in one process.

use std::fmt;

use crate::server::Server;
use crate::server::group::{StartableMember, start_all};
use crate::server::handle::Handle;
use crate::server::report::Report;
use crate::service::Service;
use crate::start_error::StartError;

/// Several servers in one process, such as a public and an administrative one, or HTTP and a line
/// protocol. They serve together, stop together, are restarted together, and are supervised
/// together.
///
/// - They become ready when all of them can serve, and then accept at the same time. If one of them
///   cannot start, the others are stopped.
/// - The stop of one server, for whatever reason, stops all: a signal, a handle, a fault. A stop by
///   a [`Handle`] has the same deadline for all. Other stops give each server its own
///   [`drain_timeout`](crate::Builder::drain_timeout).
/// - With clones of one [`Restart`](crate::Restart), a restart replaces all: one successor gets all
///   listeners, and takes over all at once. [`Handle::join`] returns when all have stopped. If one
///   server has the `Restart`, all must have it. Several listeners on any free port (`:0`) are
///   matched in the order of the builds; give them names ([`Bind::name`](crate::Bind::name)) where
///   the next version may have another order.
/// - A supervisor's or systemd's watchdog is notified as long as all of them make progress.
///
/// Each server has its own threads, settings, [`Handle`], counters and [`Report`]. If two servers
/// have the same [`thread_name_prefix`](crate::Builder::thread_name_prefix), the second server's is
/// numbered: `handover2-0`.
/// [`Handle::pause`] pauses one server.
///
/// # Examples
///
/// ```no_run
/// use std::io::{self, Write};
///
/// use handover::{Connection, Next, Restart, Server, Servers};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let restart = Restart::inherit()?;
/// let public = Server::builder()
///     .listen("0.0.0.0:7000")
///     .restart(restart.clone())
///     .build(|_: &mut Connection| Ok(Next::Close))?;
/// let counters = public.handle();
/// let admin = Server::builder()
///     .listen("127.0.0.1:7001")
///     .workers(2)
///     .restart(restart)
///     .build(move |conn: &mut Connection| -> io::Result<Next> {
///         writeln!(conn, "{:?}", counters.stats())?;
///         Ok(Next::Close)
///     })?;
/// for report in Servers::new().with(public).with(admin).run()? {
///     println!("{report}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "servers do nothing before they are run"]
pub struct Servers {
    members: Vec<Box<dyn StartableMember>>,
    handles: Vec<Handle>,
}

impl Servers {
    /// No servers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a server.
    pub fn with<S: Service + 'static>(mut self, server: Server<S>) -> Self {
        let Server { mut main, handle } = server;
        let taken = self.members.iter_mut();
        let taken = taken.map(|other| other.as_member().settings().thread_name_prefix.clone());
        let taken: Vec<_> = taken.collect();
        let own = &mut main.settings.thread_name_prefix;
        *own = distinct_prefix(own, &taken);
        handle.shared().app_threads.set_name_prefix(own.clone());
        self.members.push(Box::new(main));
        self.handles.push(handle);
        self
    }

    /// Runs the servers until a signal, a handle or a successor stops them, as [`Server::run`], and
    /// returns their reports, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no server, if only some have the [`Restart`](crate::Restart), or
    /// if another server was built with it; else as [`Server::run`].
    pub fn run(self) -> Result<Vec<Report>, StartError> {
        let _signals = start_all(self.members, &self.handles, true)?;
        Ok(self.handles.iter().map(Handle::join).collect())
    }

    /// Starts the servers on threads of their own, as [`Server::start`], and returns their handles,
    /// in the order in which they were added. The drop of the last handle of all servers stops
    /// them.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn start(self) -> Result<Vec<Handle>, StartError> {
        let _no_signals = start_all(self.members, &self.handles, false)?;
        Ok(self.handles)
    }
}

/// The prefix, or the first with a number behind it that no other server has.
fn distinct_prefix(prefix: &str, taken: &[String]) -> String {
    let is_free = |wanted: &String| !taken.contains(wanted);
    let numbered = (2..=taken.len() + 1).map(|number| format!("{prefix}{number}"));
    let mut wanted = std::iter::once(prefix.to_owned()).chain(numbered);
    wanted.find(is_free).unwrap_or_else(|| prefix.to_owned())
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.handles).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_servers_have_threads_of_the_same_name() {
        let mut taken = Vec::new();
        for (prefix, expected) in [
            ("handover", "handover"),
            ("handover", "handover2"),
            ("admin", "admin"),
            ("handover", "handover3"),
            ("handover3", "handover32"),
        ] {
            let distinct = distinct_prefix(prefix, &taken);
            assert_eq!(distinct, expected);
            taken.push(distinct);
        }
    }
}
