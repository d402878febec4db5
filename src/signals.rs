//! Commands to a server, and the signals of the process as such commands.

/// A command to a server's main thread, from a handle, a signal, or one of the server's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerCommand {
    /// Finish what is in progress within the server's drain time-out, then end.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Drain,
    /// End now.
    StopNow,
    /// SIGTERM has come a second time: end now, unless a successor serves.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    TerminateAgain,
    /// Start a successor.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Restart,
    /// A successor has taken over: finish what is in progress, then end.
    Replaced,
    /// Call the application's hook for SIGUSR1.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    UserSignal,
    /// Check whether the drain is over, or a handle has asked for a stop.
    Check,
}

#[cfg(feature = "signals")]
pub(crate) use watch::{Subscription, subscribe};

#[cfg(feature = "signals")]
mod watch {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use crossbeam_channel::Sender;
    use parking_lot::Mutex;

    use super::ServerCommand;
    use crate::log;
    use crate::sys::{self, Signal};

    /// The servers that handle signals. While there are none, signals have their default action; for
    /// those that ask for a restart, see [`COULD_RESTART`].
    static SERVERS: Mutex<Vec<Subscriber>> = Mutex::new(Vec::new());
    /// A SIGTERM or SIGINT has arrived since there are servers. A second signal stops at once.
    static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);

    /// A server that handles signals.
    #[derive(Clone)]
    struct Subscriber {
        id: u64,
        server: Sender<ServerCommand>,
        can_restart: bool,
        /// A second SIGTERM or SIGINT does not stop at once: the same request may reach this
        /// process from the supervisor, and from a terminal or systemd. To stop at once, the
        /// supervisor sends SIGQUIT.
        is_supervised: bool,
    }

    /// Sends the process's signals to a server, as commands, until the subscription is dropped.
    /// Signals that ask for a restart are sent only if the server `can_restart`.
    pub(crate) fn subscribe(
        server: Sender<ServerCommand>,
        can_restart: bool,
        is_supervised: bool,
    ) -> io::Result<Subscription> {
        static WATCH: OnceLock<Result<(), (io::ErrorKind, String)>> = OnceLock::new();
        // A handler stays once it is installed: neither ctrlc nor the kernel can remove it without
        // losing a signal.
        let watch = WATCH.get_or_init(|| {
            sys::signal::install_handlers(deliver)
                .map_err(|error| (error.kind(), error.to_string()))
        });
        if let Err((kind, text)) = watch {
            return Err(io::Error::new(
                *kind,
                format!("cannot install signal handlers: {text}"),
            ));
        }
        COULD_RESTART.fetch_or(can_restart, SeqCst);
        let mut servers = SERVERS.lock();
        if servers.is_empty() {
            STOP_REQUESTED.store(false, SeqCst);
        }
        let id = servers.last().map_or(0, |last| last.id + 1);
        servers.push(Subscriber {
            id,
            server,
            can_restart,
            is_supervised,
        });
        Ok(Subscription(id))
    }

    /// A server with a restart has handled signals. From then on, a signal that asks for a restart
    /// does not have its default action, the death of the process: it may have been sent before the
    /// signal that has stopped the server, and arrive after it.
    static COULD_RESTART: AtomicBool = AtomicBool::new(false);

    #[derive(Debug)]
    pub(crate) struct Subscription(u64);

    impl Drop for Subscription {
        fn drop(&mut self) {
            SERVERS.lock().retain(|subscriber| subscriber.id != self.0);
        }
    }

    /// Sends a signal to the servers. False if no server handles it.
    fn deliver(signal: Signal) -> bool {
        let stops = matches!(signal, Signal::Terminate | Signal::Interrupt);
        let is_second = stops && STOP_REQUESTED.swap(true, SeqCst);
        let servers = SERVERS.lock().clone();
        let mut logged = Vec::new();
        for subscriber in &servers {
            let command = match signal {
                Signal::Terminate | Signal::Interrupt => {
                    match (is_second && !subscriber.is_supervised, signal) {
                        (true, Signal::Terminate) => ServerCommand::TerminateAgain,
                        (true, _) => ServerCommand::StopNow,
                        (false, _) => ServerCommand::Drain,
                    }
                }
                Signal::TerminalClosed => ServerCommand::Drain,
                Signal::Quit => ServerCommand::StopNow,
                Signal::User1 => ServerCommand::UserSignal,
                Signal::Hangup | Signal::User2 if subscriber.can_restart => ServerCommand::Restart,
                // The process handles no other signals.
                _ => continue,
            };
            // Once for the servers that do the same.
            if !logged.contains(&command) {
                log::info!("received {signal}: {}", action(command));
                logged.push(command);
            }
            // A server that has ended meanwhile needs no command.
            let _ = subscriber.server.send(command);
        }
        let restarts = matches!(signal, Signal::Hangup | Signal::User2);
        if logged.is_empty() && restarts && COULD_RESTART.load(SeqCst) {
            log::warn!("received {signal}: too late for a restart, the server has stopped");
            return true;
        }
        !logged.is_empty()
    }

    /// What a server does on a command, for the log.
    fn action(command: ServerCommand) -> &'static str {
        match command {
            ServerCommand::StopNow => "stopping now",
            ServerCommand::TerminateAgain => "stopping now, unless a successor serves",
            ServerCommand::UserSignal => "calling the hook",
            ServerCommand::Restart => "restarting",
            _ => "stopping",
        }
    }
}
