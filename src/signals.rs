//! Commands to a server, and the signals of the process as such commands.

use crate::clock::Deadline;

/// A command to a server's main thread, from a handle, a signal, or one of the server's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Finish what is in progress within the server's drain time-out, then end.
    Drain,
    /// Finish what is in progress before this deadline, then end.
    StopBy(Deadline),
    /// End now.
    StopNow,
    /// Start a successor.
    Restart,
    /// A successor has taken over: finish what is in progress, then end.
    Replaced,
    /// Call the application's hook for SIGUSR1.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Hook,
    /// Accept no connection until `Resume`.
    Pause,
    Resume,
    /// Check whether the drain is over.
    Check,
}

#[cfg(feature = "signals")]
pub(crate) use watch::subscribe;

#[cfg(feature = "signals")]
mod watch {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use crossbeam_channel::Sender;
    use parking_lot::Mutex;

    use super::Command;
    use crate::sys::{self, Signal};

    /// The servers that handle signals. While there are none, signals have their default action.
    static SERVERS: Mutex<Vec<Subscriber>> = Mutex::new(Vec::new());
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);

    /// A server that handles signals.
    #[derive(Clone)]
    struct Subscriber {
        id: u64,
        server: Sender<Command>,
        can_restart: bool,
    }

    /// Sends the process's signals to a server until the subscription is dropped. Those that ask
    /// for a restart are sent only if the server `can_restart`.
    pub(crate) fn subscribe(
        server: Sender<Command>,
        can_restart: bool,
    ) -> io::Result<Subscription> {
        static WATCH: OnceLock<Result<(), (io::ErrorKind, String)>> = OnceLock::new();
        // A handler stays once it is installed: neither ctrlc nor the kernel can remove it without
        // losing a signal.
        let watch = WATCH.get_or_init(|| {
            sys::signal::watch(deliver).map_err(|error| (error.kind(), error.to_string()))
        });
        if let Err((kind, text)) = watch {
            return Err(io::Error::new(
                *kind,
                format!("cannot watch signals: {text}"),
            ));
        }
        let mut servers = SERVERS.lock();
        if servers.is_empty() {
            INTERRUPTED.store(false, SeqCst);
        }
        let id = servers.last().map_or(0, |last| last.id + 1);
        servers.push(Subscriber {
            id,
            server,
            can_restart,
        });
        Ok(Subscription(id))
    }

    pub(crate) struct Subscription(u64);

    impl Drop for Subscription {
        fn drop(&mut self) {
            SERVERS.lock().retain(|subscriber| subscriber.id != self.0);
        }
    }

    /// Sends a signal to the servers. False if there is none.
    fn deliver(signal: Signal) -> bool {
        let command = match signal {
            Signal::Terminate => Command::Drain,
            // The second Ctrl-C: the user does not want to wait.
            Signal::Interrupt if INTERRUPTED.swap(true, SeqCst) => Command::StopNow,
            Signal::Interrupt => Command::Drain,
            Signal::Quit => Command::StopNow,
            Signal::User1 => Command::Hook,
            Signal::Hangup | Signal::User2 => Command::Restart,
            // The process can neither catch nor ask for these.
            Signal::Abort | Signal::Kill => return false,
        };
        log::info!("{signal}: {command:?}");
        let mut servers = SERVERS.lock().clone();
        servers.retain(|subscriber| subscriber.can_restart || command != Command::Restart);
        for subscriber in &servers {
            // A server that has ended meanwhile needs no command.
            let _ = subscriber.server.send(command);
        }
        !servers.is_empty()
    }
}
