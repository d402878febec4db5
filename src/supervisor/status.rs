//! What the control socket answers: how everything is, and what became of a request.

use std::fmt::Write;
use std::time::Instant;

use super::control::Request;
use super::rolling_restart::RestartResult;
use super::run::Run;
use super::slot::Slot;

impl Run {
    pub(super) fn obey_control(&mut self) {
        let requests = self.control.as_mut().map(|control| control.requests());
        for (id, request) in requests.into_iter().flatten() {
            log::debug!("control client {id}: {request:?}");
            match request {
                Request::Status => {
                    let status = self.status();
                    self.reply(id, &status);
                }
                Request::Restart { waits } => {
                    self.restart(waits.then_some(id));
                    self.done_unless(waits, id);
                }
                Request::Upgrade { waits } => {
                    self.upgrade(waits.then_some(id));
                    self.done_unless(waits, id);
                }
                Request::Stop => {
                    self.stop();
                    self.reply(id, r#"{"ok":true}"#);
                }
            }
        }
    }

    fn done_unless(&mut self, waits: bool, id: u64) {
        match waits {
            true => {}
            false if self.shutdown.is_some() => {
                self.reply(
                    id,
                    r#"{"ok":false,"error":"the supervisor is being stopped"}"#,
                );
            }
            false => self.reply(id, r#"{"ok":true}"#),
        }
    }

    pub(super) fn reply(&mut self, id: u64, json: &str) {
        if let Some(control) = &mut self.control {
            control.reply(id, json);
        }
    }

    pub(super) fn tell(&mut self, waiter: u64, outcome: &RestartResult) {
        let json = outcome.to_json();
        self.reply(waiter, &json);
    }

    fn status(&self) -> String {
        let ready = self.slots.iter().filter(|slot| slot.is_ready()).count();
        let state = match () {
            () if self.shutdown.is_some() => "stopping",
            () if self.rolling_restart.is_some() => "restarting",
            () if ready == self.slots.len() => "serving",
            () if ready > 0 => "degraded",
            () if self.slots.iter().any(|slot| slot.main.is_some()) => "starting",
            () => "down",
        };
        let processes: Vec<String> = self.slots.iter().map(of_slot).collect();
        let draining = self.draining.iter().map(|process| process.pid.to_string());
        let draining: Vec<String> = draining.collect();
        let listeners = self.listeners.iter().map(|one| {
            let (name, addr) = (
                quoted(&one.about.name),
                one.listener.local_addr().to_string(),
            );
            format!(r#"{{"name":{name},"address":{}}}"#, quoted(&addr))
        });
        let listeners: Vec<String> = listeners.collect();
        let last = self.last_restart.as_ref().map(RestartResult::to_json);
        format!(
            r#"{{"ok":true,"pid":{},"version":{},"program":{},"state":"{state}","uptime_seconds":{:.3},"processes":[{}],"draining":[{}],"listeners":[{}],"last_restart":{}}}"#,
            std::process::id(),
            quoted(env!("CARGO_PKG_VERSION")),
            quoted(&self.program.path().to_string_lossy()),
            self.started_at.elapsed().as_secs_f64(),
            processes.join(","),
            draining.join(","),
            listeners.join(","),
            last.as_deref().unwrap_or("null"),
        )
    }
}

fn of_slot(slot: &Slot) -> String {
    let now = Instant::now();
    let mut json = String::from("{");
    let state = match &slot.main {
        Some(main) if main.aborted => "aborting",
        Some(main) if main.ready_since.is_some() && slot.successor.is_some() => "restarting",
        Some(main) if main.ready_since.is_some() => "serving",
        Some(_) => "starting",
        None if slot.successor.is_some() => "starting",
        None if slot.start_at.instant().is_some() => "waiting",
        None => "down",
    };
    // Writing to a string cannot fail.
    let _ = write!(json, r#""state":"{state}","restarts":{}"#, slot.restarts);
    if let Some(main) = &slot.main {
        let _ = write!(
            json,
            r#","pid":{},"generation":{},"uptime_seconds":{:.3},"status":{}"#,
            main.pid,
            main.generation,
            main.started_at.elapsed().as_secs_f64(),
            quoted(&main.status)
        );
    } else if let Some(left) = slot.start_at.left(now) {
        let _ = write!(json, r#","starts_in_seconds":{:.3}"#, left.as_secs_f64());
    }
    if let Some(end) = &slot.last_end {
        let _ = write!(json, r#","last_end":{}"#, quoted(end));
    }
    json + "}"
}

impl RestartResult {
    fn to_json(&self) -> String {
        let took = self.took.as_secs_f64();
        match &self.error {
            None => format!(r#"{{"ok":true,"took_seconds":{took:.3}}}"#),
            Some(why) => {
                let why = quoted(why);
                format!(r#"{{"ok":false,"error":{why},"took_seconds":{took:.3}}}"#)
            }
        }
    }
}

/// A string of JSON (RFC 8259, section 7).
pub(super) fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for char in text.chars() {
        let _ = match char {
            '"' => write!(json, "\\\""),
            '\\' => write!(json, "\\\\"),
            char if char.is_control() => write!(json, "\\u{:04x}", u32::from(char)),
            char => write!(json, "{char}"),
        };
    }
    json + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_within_its_quotes() {
        assert_eq!(quoted("a\"b\\c\n\u{85}ä"), "\"a\\\"b\\\\c\\u000a\\u0085ä\"");
    }
}
