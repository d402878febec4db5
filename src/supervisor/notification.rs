//! What a process has said, of the variables that the supervisor understands (sd_notify(3)).

use std::time::Duration;

use crate::listener::Bind;
use crate::notify::{self, Held};

/// The variables of one notification.
#[derive(Debug, Default)]
pub(super) struct Notification {
    pub(super) ready: bool,
    pub(super) stopping: bool,
    pub(super) main_pid: Option<u32>,
    pub(super) status: Option<String>,
    pub(super) extend: Option<Duration>,
    pub(super) watchdog: Option<WatchdogMessage>,
    pub(super) generation: Option<u64>,
    pub(super) listeners: Vec<Held>,
    /// A listener that the process wants, see [`Bind::to_words`].
    pub(super) bind: Option<Bind>,
    pub(super) successor: Option<u32>,
    pub(super) failed: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchdogMessage {
    Alive,
    Wedged,
}

impl Notification {
    /// Reads a notification. What is not understood is ignored.
    pub(super) fn parse(text: &str) -> Self {
        let mut said = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            match (name, value) {
                ("READY", "1") => said.ready = true,
                ("STOPPING", "1") => said.stopping = true,
                ("MAINPID", pid) => said.main_pid = pid.parse().ok(),
                ("STATUS", text) => said.status = Some(text.to_owned()),
                ("EXTEND_TIMEOUT_USEC", micros) => {
                    said.extend = micros.parse().ok().map(Duration::from_micros);
                }
                ("WATCHDOG", "1") => said.watchdog = Some(WatchdogMessage::Alive),
                ("WATCHDOG", "trigger") => said.watchdog = Some(WatchdogMessage::Wedged),
                (notify::GENERATION, number) => said.generation = number.parse().ok(),
                (notify::LISTENERS, list) => {
                    said.listeners = list.split(':').flat_map(str::parse).collect();
                }
                (notify::BIND, words) => said.bind = Bind::from_words(words),
                (notify::SUCCESSOR, pid) => said.successor = pid.parse().ok(),
                (notify::FAILED, why) => said.failed = Some(why.to_owned()),
                _ => {}
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_the_rest_ignored() {
        let said = Notification::parse("READY=1\nSTATUS=a=b c\nMAINPID=12\nERRNO=2\nnonsense\n=\n");
        assert!(said.ready && !said.stopping);
        assert_eq!(
            (said.status.as_deref(), said.main_pid),
            (Some("a=b c"), Some(12))
        );
        for nothing in ["", "READY=0", "MAINPID=x", "WATCHDOG=2", "\n\n", "READY"] {
            let (said, none) = (Notification::parse(nothing), Notification::default());
            assert_eq!(format!("{said:?}"), format!("{none:?}"), "{nothing:?}");
        }
        let said = Notification::parse("WATCHDOG=trigger\nX_HANDOVER_LISTENERS=1a:2b_c:x:");
        assert_eq!(said.watchdog, Some(WatchdogMessage::Wedged));
        let names: Vec<_> = said
            .listeners
            .iter()
            .map(|held| held.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b_c"]);
        assert!(said.listeners[0].by_name && said.listeners[1].own_path);
    }
}
