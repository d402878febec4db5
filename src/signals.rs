//! Signals and Ctrl-C, as commands to the servers that asked for them.

use crate::clock::Deadline;

/// What a server can be told, by whomever: a handle, a signal, or its own threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Finish what is in progress within the server's drain time-out, then end.
    Drain,
    /// Finish by then, and end.
    StopBy(Deadline),
    /// End now.
    StopNow,
    /// Have another process take over.
    Restart,
    /// Another process has taken over: finish what is in progress, and end.
    Leave,
    /// Call the application's hook.
    #[cfg_attr(not(feature = "signals"), allow(dead_code))]
    Hook,
    /// Accept nothing until told otherwise.
    Pause,
    Resume,
    /// Something has changed that may be the end of the drain.
    Look,
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

    /// The servers that react to signals now. While there are none, signals do what they do by default.
    static SERVERS: Mutex<Vec<Watching>> = Mutex::new(Vec::new());
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);

    /// A server that reacts to signals.
    #[derive(Clone)]
    struct Watching {
        id: u64,
        server: Sender<Command>,
        restarts: bool,
    }

    /// Sends the process's signals to a server until the subscription is dropped; those that mean a restart only if it
    /// `restarts`.
    pub(crate) fn subscribe(server: Sender<Command>, restarts: bool) -> io::Result<Subscription> {
        static WATCH: OnceLock<Result<(), (io::ErrorKind, String)>> = OnceLock::new();
        // A handler, once there, stays: neither ctrlc nor the kernel has a way back that loses no signal.
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
        servers.push(Watching {
            id,
            server,
            restarts,
        });
        Ok(Subscription(id))
    }

    pub(crate) struct Subscription(u64);

    impl Drop for Subscription {
        fn drop(&mut self) {
            SERVERS.lock().retain(|watching| watching.id != self.0);
        }
    }

    /// False if nobody is there to take it.
    fn deliver(signal: Signal) -> bool {
        let command = match signal {
            Signal::Terminate => Command::Drain,
            // Whoever presses Ctrl-C twice does not want to wait.
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
        servers.retain(|watching| watching.restarts || command != Command::Restart);
        for watching in &servers {
            // A server that has ended meanwhile does not listen any more, which is what was asked of it.
            let _ = watching.server.send(command);
        }
        !servers.is_empty()
    }
}
