//! A notification as a supervisor reads it (sd_notify(3)).

use std::time::Duration;

use crate::log;
use crate::wire::{HandoverFields, Record};

/// The variables of a notification that a supervisor of this crate understands.
#[derive(Debug, Default)]
pub(crate) struct Notification {
    pub(crate) ready: bool,
    pub(crate) stopping: bool,
    pub(crate) main_pid: Option<u32>,
    pub(crate) status: Option<String>,
    pub(crate) extend: Option<Duration>,
    pub(crate) watchdog: Option<WatchdogMessage>,
    /// What only servers of this crate send.
    pub(crate) handover_fields: HandoverFields,
}

/// The value of `WATCHDOG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchdogMessage {
    /// The process makes progress.
    Alive,
    /// The process makes no progress, and is to be ended.
    Wedged,
}

impl Notification {
    /// Reads the lines of a datagram. Variables and values that are not understood are ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let mut notification = Self::default();
        let variables = text.lines().filter_map(|line| line.split_once('='));
        for variable in variables {
            match variable {
                ("READY", "1") => notification.ready = true,
                ("STOPPING", "1") => notification.stopping = true,
                ("MAINPID", pid) => notification.main_pid = pid.parse().ok(),
                ("STATUS", text) => notification.status = Some(text.to_owned()),
                ("EXTEND_TIMEOUT_USEC", micros) => {
                    notification.extend = micros.parse().ok().map(Duration::from_micros);
                }
                ("WATCHDOG", "1") => notification.watchdog = Some(WatchdogMessage::Alive),
                ("WATCHDOG", "trigger") => notification.watchdog = Some(WatchdogMessage::Wedged),
                (HandoverFields::VARIABLE, record) => {
                    match HandoverFields::decode(record.as_bytes()) {
                        Ok(handover_fields) => notification.handover_fields = handover_fields,
                        Err(error) => log::debug!("ignoring {}: {error}", HandoverFields::VARIABLE),
                    }
                }
                _ => {}
            }
        }
        notification
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_others_are_ignored() {
        let text = "READY=1\nSTATUS=a=b c\nMAINPID=12\nERRNO=2\nnonsense\n=\n";
        let notification = Notification::parse(text);
        assert!(notification.ready && !notification.stopping);
        assert_eq!(notification.status.as_deref(), Some("a=b c"));
        assert_eq!(notification.main_pid, Some(12));
        let none = format!("{:?}", Notification::default());
        for nothing in [
            "",
            "READY=0",
            "MAINPID=x",
            "WATCHDOG=2",
            "\n\n",
            "READY",
            "X_HANDOVER",
            "X_HANDOVER=",
            r#"X_HANDOVER={"generation":1}"#,
            r#"X_HANDOVER={"v":2,"generation":1}"#,
            "X_HANDOVER={\"v\":1,\n\"generation\":1}",
        ] {
            let notification = Notification::parse(nothing);
            assert_eq!(format!("{notification:?}"), none, "{nothing:?}");
        }
    }

    #[test]
    fn our_own_variable_is_read() {
        let handover_fields = HandoverFields {
            generation: Some(2),
            failed: Some("a\nb".to_owned()),
            ..HandoverFields::default()
        };
        let record = handover_fields.encode().unwrap();
        let text = format!("WATCHDOG=trigger\nX_HANDOVER={record}\nREADY=1\n");
        let notification = Notification::parse(&text);
        assert_eq!(notification.watchdog, Some(WatchdogMessage::Wedged));
        assert!(notification.ready);
        assert_eq!(notification.handover_fields, handover_fields);
    }
}
