//! What servers do on a signal, and the line that tells the operator.

use std::sync::Arc;
use std::time::Duration;

use super::ServerCommand;
use crate::clock::TimeLimit;
use crate::sys::{Signal, signal::STOP_NOW};

/// What a server does on signals.
#[derive(Clone)]
pub(crate) struct SignalSettings {
    /// Signals that ask for a restart go to this server. Of several servers with one restart, it is
    /// the first.
    pub(crate) can_restart: bool,
    /// A second SIGTERM or SIGINT does not stop at once: the same request may reach this process
    /// from the supervisor, and from a terminal or systemd. To stop at once, the supervisor sends
    /// SIGQUIT.
    pub(crate) is_supervised: bool,
    /// SIGUSR1 has something to call.
    pub(crate) has_hook: bool,
    pub(crate) drain_timeout: Duration,
    /// Whether a successor serves.
    pub(crate) has_successor: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whether a stop is in progress, or over.
    pub(crate) is_stopping: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The state of the process when a signal arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SignalState {
    /// The process ignored this signal when it started, as under `nohup`.
    pub(super) was_ignored: bool,
    /// It is a SIGTERM or SIGINT after another one.
    pub(super) is_second: bool,
    /// There is or was a server that can be restarted.
    pub(super) could_restart: bool,
}

/// What follows from a signal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reaction {
    /// For each server.
    pub(super) commands: Vec<Option<ServerCommand>>,
    /// For the log: a line for the servers that do the same.
    pub(super) texts: Vec<String>,
    /// If not, the signal has its default action, unless the process ignored it when it started.
    pub(super) is_handled: bool,
}

/// The policy of signals, for the servers of a process.
pub(super) fn react(signal: Signal, state: SignalState, servers: &[&SignalSettings]) -> Reaction {
    let can_restart = servers.iter().any(|server| server.can_restart);
    let asks_for_restart = matches!(signal, Signal::Hangup | Signal::User2);
    let all_stop = servers.iter().all(|server| (server.is_stopping)());
    if asks_for_restart && !can_restart && state.could_restart && all_stop {
        let what = match servers {
            [] => "has stopped",
            _ => "is stopping",
        };
        return Reaction {
            commands: vec![None; servers.len()],
            texts: vec![format!(
                "{signal}: too late for a restart, the server {what}"
            )],
            is_handled: true,
        };
    }
    let command = |server: &&SignalSettings| match signal {
        Signal::Terminate | Signal::Interrupt if state.is_second && !server.is_supervised => {
            Some(match signal {
                Signal::Terminate => ServerCommand::TerminateAgain,
                _ => ServerCommand::StopNow,
            })
        }
        Signal::Terminate
        | Signal::Interrupt
        | Signal::TerminalClosed
        | Signal::ServiceStop
        | Signal::Shutdown(_) => Some(match signal.time_left() {
            Some(limit) => ServerCommand::DrainWithin(limit),
            None => ServerCommand::Drain,
        }),
        Signal::Quit => Some(ServerCommand::StopNow),
        Signal::User1 => Some(ServerCommand::UserSignal),
        Signal::Hangup | Signal::User2 if can_restart => {
            server.can_restart.then_some(ServerCommand::Restart)
        }
        // The default action would end the process in the middle of an answer.
        Signal::Hangup | Signal::User2 if !state.was_ignored => Some(ServerCommand::Drain),
        // The process handles no other signals.
        _ => None,
    };
    let commands: Vec<_> = servers.iter().map(command).collect();
    let mut texts = Vec::new();
    for command in commands.iter().flatten() {
        let same = || servers.iter().zip(&commands);
        let same = || same().filter(|(_, own)| own.as_ref() == Some(command));
        let text = describe(signal, *command, state, same().map(|(server, _)| *server));
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let is_handled = !texts.is_empty();
    Reaction {
        commands,
        texts,
        is_handled,
    }
}

/// The line of the log: the signal, and what these servers do.
fn describe<'a>(
    signal: Signal,
    command: ServerCommand,
    state: SignalState,
    servers: impl Iterator<Item = &'a SignalSettings> + Clone,
) -> String {
    let any = |holds: fn(&SignalSettings) -> bool| servers.clone().any(holds);
    let has_successor = any(|server| (server.has_successor)());
    let is_stopping = !any(|server| !(server.is_stopping)());
    // A second SIGTERM does not stop at once a server that was replaced; a second SIGINT does.
    let counts = match signal {
        Signal::Terminate => !has_successor,
        Signal::Interrupt => true,
        _ => false,
    };
    let next = match counts && !any(|server| server.is_supervised) {
        true => "once more",
        false => STOP_NOW,
    };
    let again = if state.is_second { " again" } else { "" };
    let what = match command {
        ServerCommand::Restart if is_stopping && !has_successor => {
            "too late for a restart, the server is stopping".to_owned()
        }
        ServerCommand::Restart => "restarting".to_owned(),
        ServerCommand::UserSignal if any(|server| server.has_hook) => "calling the hook".to_owned(),
        ServerCommand::UserSignal => "there is no hook to call".to_owned(),
        ServerCommand::TerminateAgain if has_successor => {
            format!(
                "a successor serves, requests in progress are still finished; {STOP_NOW} stops now"
            )
        }
        ServerCommand::StopNow | ServerCommand::TerminateAgain => "stopping now".to_owned(),
        // The stop in progress may have an earlier deadline.
        _ if state.is_second || is_stopping => format!("draining goes on; {next} stops now"),
        _ => {
            let why = match signal {
                Signal::Hangup | Signal::User2 => ", as this server cannot restart",
                _ => "",
            };
            let begin = servers.clone().filter(|server| !(server.is_stopping)());
            let limit = begin.map(|server| server.drain_timeout).max();
            let limit = limit.unwrap_or_default();
            match signal.time_left().map_or(limit, |left| left.min(limit)) {
                Duration::ZERO => format!("stopping now{why}"),
                limit => format!("draining, {}{why}; {next} stops now", TimeLimit(limit)),
            }
        }
    };
    format!("{signal}{again}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(drain: u64) -> SignalSettings {
        SignalSettings {
            can_restart: false,
            is_supervised: false,
            has_hook: false,
            drain_timeout: Duration::from_secs(drain),
            has_successor: Arc::new(|| false),
            is_stopping: Arc::new(|| false),
        }
    }

    fn stopping(server: SignalSettings) -> SignalSettings {
        SignalSettings {
            is_stopping: Arc::new(|| true),
            ..server
        }
    }

    fn restartable() -> SignalSettings {
        let can_restart = true;
        let has_successor: Arc<dyn Fn() -> bool + Send + Sync> = Arc::new(|| true);
        SignalSettings {
            can_restart,
            has_hook: true,
            has_successor,
            ..server(10)
        }
    }

    fn supervised() -> SignalSettings {
        SignalSettings {
            is_supervised: true,
            ..restartable()
        }
    }

    fn second() -> SignalState {
        SignalState {
            is_second: true,
            ..SignalState::default()
        }
    }

    /// Replaces the signals in the text by what stands for them on this system.
    fn localized(text: &str) -> String {
        let names = [
            ("SIGQUIT stops", format!("{STOP_NOW} stops")),
            (
                "SIGHUP, as the terminal was closed",
                Signal::TerminalClosed.to_string(),
            ),
            ("SIGHUP", Signal::Hangup.to_string()),
            ("SIGINT", Signal::Interrupt.to_string()),
            ("SIGQUIT", Signal::Quit.to_string()),
            ("SIGTERM", Signal::Terminate.to_string()),
            ("SIGUSR1", Signal::User1.to_string()),
        ];
        let names = names.iter();
        names.fold(text.to_owned(), |text, (name, local)| {
            text.replace(name, local)
        })
    }

    /// What one server does, and the line for the operator.
    #[test]
    fn each_signal_has_its_reaction_and_its_line() {
        use ServerCommand::{Drain, DrainWithin, Restart, StopNow, TerminateAgain, UserSignal};
        let first = SignalState::default();
        for (signal, state, server, command, text) in [
            (
                Signal::Terminate,
                first,
                server(10),
                Drain,
                "SIGTERM: draining, at most 10 s; once more stops now",
            ),
            (
                Signal::Interrupt,
                first,
                SignalSettings {
                    drain_timeout: Duration::MAX,
                    ..server(0)
                },
                Drain,
                "SIGINT: draining, without a time limit; once more stops now",
            ),
            (
                Signal::Terminate,
                first,
                supervised(),
                Drain,
                "SIGTERM: draining, at most 10 s; SIGQUIT stops now",
            ),
            (
                Signal::Terminate,
                second(),
                supervised(),
                Drain,
                "SIGTERM again: draining goes on; SIGQUIT stops now",
            ),
            (
                Signal::Terminate,
                second(),
                server(10),
                TerminateAgain,
                "SIGTERM again: stopping now",
            ),
            (
                Signal::Terminate,
                second(),
                restartable(),
                TerminateAgain,
                "SIGTERM again: a successor serves, requests in progress are still finished; \
                 SIGQUIT stops now",
            ),
            (
                Signal::Terminate,
                first,
                stopping(restartable()),
                Drain,
                "SIGTERM: draining goes on; SIGQUIT stops now",
            ),
            (
                Signal::Interrupt,
                first,
                stopping(restartable()),
                Drain,
                "SIGINT: draining goes on; once more stops now",
            ),
            (
                Signal::Terminate,
                first,
                stopping(server(10)),
                Drain,
                "SIGTERM: draining goes on; once more stops now",
            ),
            (
                Signal::Terminate,
                first,
                server(0),
                Drain,
                "SIGTERM: stopping now",
            ),
            (
                Signal::Hangup,
                first,
                server(0),
                Drain,
                "SIGHUP: stopping now, as this server cannot restart",
            ),
            (
                Signal::Interrupt,
                second(),
                server(10),
                StopNow,
                "SIGINT again: stopping now",
            ),
            (
                Signal::Quit,
                first,
                server(10),
                StopNow,
                "SIGQUIT: stopping now",
            ),
            (
                Signal::TerminalClosed,
                first,
                SignalSettings {
                    drain_timeout: Duration::from_secs(3),
                    ..restartable()
                },
                Signal::TerminalClosed
                    .time_left()
                    .map_or(Drain, DrainWithin),
                "SIGHUP, as the terminal was closed: draining, at most 3 s; SIGQUIT stops now",
            ),
            (
                Signal::ServiceStop,
                first,
                server(10),
                Drain,
                "service stop: draining, at most 10 s; SIGQUIT stops now",
            ),
            (
                Signal::Shutdown(Duration::from_secs(4)),
                first,
                server(10),
                DrainWithin(Duration::from_secs(4)),
                "system shutdown: draining, at most 4 s; SIGQUIT stops now",
            ),
            (
                Signal::Shutdown(Duration::from_secs(4)),
                first,
                server(2),
                DrainWithin(Duration::from_secs(4)),
                "system shutdown: draining, at most 2 s; SIGQUIT stops now",
            ),
            (
                Signal::Hangup,
                first,
                restartable(),
                Restart,
                "SIGHUP: restarting",
            ),
            // The successor gets the request.
            (
                Signal::Hangup,
                first,
                stopping(restartable()),
                Restart,
                "SIGHUP: restarting",
            ),
            (
                Signal::Hangup,
                first,
                stopping(SignalSettings {
                    has_successor: Arc::new(|| false),
                    ..restartable()
                }),
                Restart,
                "SIGHUP: too late for a restart, the server is stopping",
            ),
            (
                Signal::User2,
                first,
                server(2),
                Drain,
                "SIGUSR2: draining, at most 2 s, as this server cannot restart; SIGQUIT stops now",
            ),
            (
                Signal::User1,
                first,
                restartable(),
                UserSignal,
                "SIGUSR1: calling the hook",
            ),
            (
                Signal::User1,
                first,
                server(10),
                UserSignal,
                "SIGUSR1: there is no hook to call",
            ),
        ] {
            let expected = Reaction {
                commands: vec![Some(command)],
                texts: vec![localized(text)],
                is_handled: true,
            };
            assert_eq!(react(signal, state, &[&server]), expected);
        }
    }

    #[test]
    fn one_server_restarts_all_and_the_line_has_the_longest_drain() {
        let (first, other) = (restartable(), server(30));
        let both = [&first, &other];
        let state = SignalState {
            could_restart: true,
            ..SignalState::default()
        };
        let restart = react(Signal::Hangup, state, &both);
        assert_eq!(restart.commands, [Some(ServerCommand::Restart), None]);
        let stop = react(Signal::Terminate, state, &both);
        assert_eq!(stop.commands, [Some(ServerCommand::Drain); 2]);
        assert_eq!(
            stop.texts,
            [localized(
                "SIGTERM: draining, at most 30 s; SIGQUIT stops now"
            )]
        );
        let stop = react(Signal::Interrupt, state, &[&first, &stopping(server(30))]);
        assert_eq!(
            stop.texts,
            [localized(
                "SIGINT: draining, at most 10 s; once more stops now"
            )]
        );
    }

    #[test]
    fn a_request_for_a_restart_that_is_late_or_was_ignored_stops_nothing() {
        let late = SignalState {
            could_restart: true,
            ..SignalState::default()
        };
        for servers in [&[][..], &[&stopping(server(10))]] {
            let reaction = react(Signal::Hangup, late, servers);
            assert!(reaction.is_handled && reaction.commands.iter().all(Option::is_none));
        }
        // Another server with a restart has ended: this one goes by its own settings.
        let reaction = react(Signal::Hangup, late, &[&server(10)]);
        assert_eq!(reaction.commands, [Some(ServerCommand::Drain)]);
        let ignored = SignalState {
            was_ignored: true,
            ..SignalState::default()
        };
        let reaction = react(Signal::Hangup, ignored, &[&server(10)]);
        assert!(
            !reaction.is_handled && reaction.texts.is_empty(),
            "{reaction:?}"
        );
        assert!(!react(Signal::Hangup, SignalState::default(), &[]).is_handled);
    }
}
