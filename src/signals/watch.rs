//! The signals of the process, as commands to its servers.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::ServerCommand;
use super::reaction::{SignalSettings, SignalState, react};
use crate::log;
use crate::sys::{self, EventPrefix, Signal};

/// The servers that handle signals. While no server runs, signals have their default action. For
/// SIGHUP and SIGUSR2 see [`COULD_RESTART`].
static SERVERS: Mutex<Vec<Subscriber>> = Mutex::new(Vec::new());
/// A SIGTERM or SIGINT has arrived since there are servers. A second signal stops at once.
static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);

/// A server that handles signals.
#[derive(Clone)]
struct Subscriber {
    id: u64,
    server: Sender<ServerCommand>,
    settings: SignalSettings,
}

/// Sends the process's signals to a server, as commands, until the subscription is dropped.
/// `event_prefix` is the prefix of the names of this process's event objects, on Windows.
pub(crate) fn subscribe(
    server: Sender<ServerCommand>,
    settings: SignalSettings,
    event_prefix: Option<&EventPrefix>,
) -> io::Result<Subscription> {
    static WATCH: OnceLock<Result<Option<EventPrefix>, (io::ErrorKind, String)>> = OnceLock::new();
    // A handler stays once it is installed: neither ctrlc nor the kernel can remove it without
    // losing a signal.
    let watch = WATCH.get_or_init(|| {
        let installed = sys::signal::install_handlers(event_prefix, deliver);
        let installed = installed.map(|()| event_prefix.cloned());
        installed.map_err(|error| (error.kind(), error.to_string()))
    });
    match watch {
        Err((kind, text)) => {
            let text = format!("cannot install signal handlers: {text}");
            return Err(io::Error::new(*kind, text));
        }
        // The names stay as long as the process lives.
        Ok(first)
            if sys::signal::HAS_EVENT_OBJECTS
                && event_prefix.is_some()
                && event_prefix != first.as_ref() =>
        {
            let text = "another server of this process had another event_prefix, or none: the names \
                        of the event objects stay";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(_) => {}
    }
    COULD_RESTART.fetch_or(settings.can_restart, SeqCst);
    let mut servers = SERVERS.lock();
    if servers.is_empty() {
        STOP_REQUESTED.store(false, SeqCst);
    }
    let id = servers.last().map_or(0, |last| last.id + 1);
    servers.push(Subscriber {
        id,
        server,
        settings,
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

/// Sends a signal to the servers. False if no server handles it. `was_ignored`: the process
/// ignored it when it started.
fn deliver(signal: Signal, was_ignored: bool) -> bool {
    let stops = matches!(signal, Signal::Terminate | Signal::Interrupt);
    let servers = SERVERS.lock().clone();
    let state = SignalState {
        was_ignored,
        is_second: stops && STOP_REQUESTED.swap(true, SeqCst),
        could_restart: COULD_RESTART.load(SeqCst),
    };
    let settings: Vec<_> = servers.iter().map(|server| &server.settings).collect();
    let reaction = react(signal, state, &settings);
    for text in &reaction.texts {
        log::info!("{text}");
    }
    for (subscriber, command) in servers.iter().zip(&reaction.commands) {
        // A server that has ended meanwhile needs no command.
        let _ = command.map(|command| subscriber.server.send(command));
    }
    reaction.is_handled
}
