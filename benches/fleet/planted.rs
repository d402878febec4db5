//! Copies of the policy with one fault each. Every fault must be found.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// A fault: its name, the file, the text that is replaced, and what replaces it.
type Fault = (&'static str, &'static str, &'static str, &'static str);

/// How many histories are played at most to find a fault.
const HISTORIES: &str = "1000000";

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    ("a reply is sent twice", "restarts.rs",
        "self.reply(round.clients, &error, Some(took));",
        "self.reply(round.clients.clone(), &error, Some(took)); self.reply(round.clients, &error, Some(took));"),
    ("a client of the next round joins the round in progress", "restarts.rs",
        "self.next_round.get_or_insert_default().extend(client);",
        "match &mut self.round { Some(round) => round.clients.extend(client), None => self.next_round.get_or_insert_default().extend(client) }"),
    ("the clients of the next round are forgotten by a stop", "restarts.rs",
        "self.reply(clients, &Some(why.to_owned()), Some(Duration::ZERO));",
        "drop(clients);"),
    ("the back-off is skipped", "processes.rs",
        "slot.start_at = Deadline::after(self.now, delay);",
        "slot.start_at = Deadline::at(Some(self.now));"),
    ("the back-off does not grow", "backoff.rs",
        "self.failures = self.failures.saturating_add(1);",
        "self.failures = 1;"),
    ("a successor serves as soon as it starts", "notices.rs",
        "_ if notice.ready => {",
        "_ if notice.ready || notice.generation.is_some() => {"),
    ("a starting process counts as serving", "process.rs",
        "matches!(self.stage, Stage::Serving { .. })\n    }\n\n    pub(crate) fn is_aborted",
        "matches!(self.stage, Stage::Serving { .. } | Stage::Starting { .. })\n    }\n\n    pub(crate) fn is_aborted"),
    ("a successor is promoted, and the old process goes on", "processes.rs",
        "if let Some(old) = std::mem::replace(&mut slot.current, successor) {\n            self.end_replaced(old, recipient);",
        "if let Some(old) = std::mem::replace(&mut slot.current, successor) {\n            self.drain(old, false);"),
    ("a successor is promoted, and the old process is forgotten", "processes.rs",
        "if let Some(old) = std::mem::replace(&mut slot.current, successor) {\n            self.end_replaced(old, recipient);",
        "if let Some(old) = std::mem::replace(&mut slot.current, successor) {\n            self.signal(old.pid, Signal::Terminate);"),
    ("the limit of draining processes is ignored", "restarts.rs",
        "Some(_) if self.drains(index) >= self.policy.max_draining => {",
        "Some(_) if self.drains(index) >= self.policy.max_draining + 1 => {"),
    ("a stop forgets processes that drain", "mod.rs",
        "let in_slots = self.slots.iter().flat_map(Slot::processes);\n        in_slots.chain(&self.draining).chain(&self.unannounced)",
        "let in_slots = self.slots.iter().flat_map(Slot::processes);\n        in_slots.chain(&self.unannounced)"),
    ("a stop at once tells only those that are not told", "mod.rs",
        "!is_immediate && process.is_ending()",
        "process.is_ending()"),
    ("a stop sends a second SIGTERM", "mod.rs",
        "!is_immediate && process.is_ending()",
        "signal == Signal::Kill && process.is_ending()"),
    ("a stop does not tell processes that leave their connections", "mod.rs",
        " && !process.has_left;", ";"),
    ("a process leaves its connections to a surplus process", "scale.rs",
        "self.slots.iter().take(wanted).enumerate();", "self.slots.iter().take(wanted + 1).enumerate();"),
    ("a process leaves its connections to one without a lane", "scale.rs",
        "filter(|current| current.can_leave())?;", "filter(|current| current.is_serving())?;"),
    ("a successor without a lane gets connections", "processes.rs",
        ".filter(|successor| successor.has_lane);", ".filter(|_| true);"),
    ("a process without a lane leaves its connections", "process.rs",
        "self.is_serving() && self.has_lane", "self.is_serving()"),
    ("a process that leaves its connections gets a signal", "processes.rs",
        "process.has_left = true;\n            }", "process.has_left = true;\n                self.signal(pid, signal);\n            }"),
    ("a process that cannot be told stays", "processes.rs",
        "process.has_left = false;\n            self.signal(pid, signal);", "process.has_left = false;\n            let _ = signal;"),
    ("a stop sends the signal of a restart", "mod.rs",
        "self.begin_stop(timeout, false, self.policy.stop_signal);",
        "self.begin_stop(timeout, false, self.policy.restart_signal.unwrap_or(Signal::Terminate));"),
    ("one attempt too many", "processes.rs",
        "|limit| failures >= limit",
        "|limit| failures > limit"),
    ("a stop leaves a start that is due", "mod.rs",
        "for slot in &mut self.slots {\n            slot.start_at = Deadline::NEVER;",
        "for slot in &mut self.slots[..0] {\n            slot.start_at = Deadline::NEVER;"),
    ("a stop does not kill what is left", "mod.rs",
        "self.signal_each(pids, Signal::Kill);",
        "self.signal_each(pids, Signal::Terminate);"),
    ("a stall is not forgiven", "mod.rs",
        "< STALL) {", "< STALL * 1000) {"),
    ("only the time after the deadline is forgiven", "mod.rs",
        "let stall = now.saturating_duration_since(last_event);",
        "let stall = due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due)); let _ = last_event;"),
    ("a stall is forgiven once for each event", "mod.rs",
        "self.next_event_by = self.deadline().later(Deadline::at(Some(now)));",
        "self.next_event_by = self.deadline();"),
    ("a stall is not noticed while the loop waits for long", "mod.rs",
        "is_needed.then(||", "(is_needed && false).then(||"),
    ("a late watchdog has no second chance", "mod.rs",
        "let until = Deadline::after(now, (limit / 4).max(SECOND_CHANCE));",
        "let until = Deadline::after(now, limit / 100_000);"),
    ("the second chance is short", "mod.rs",
        "(limit / 4).max(SECOND_CHANCE)", "(limit / 4).min(SECOND_CHANCE * 100)"),
    ("the watchdog is not renewed", "process.rs",
        "let until = Deadline::after(now, limit);\n            *watch",
        "let until = self_or(*watch, Deadline::after(now, limit));\n            fn self_or(watch: Watch, other: Deadline) -> Deadline { match watch { Watch::OnTime { until } => until, _ => other } }\n            *watch"),
    ("a round is completed by a process of an older round", "restarts.rs",
        "if current.round == Some(round.number) =>",
        "if current.round.is_some() =>"),
    ("a round succeeds although a slot is down", "restarts.rs",
        "self.end_round(error.filter(|_| !is_recycling));", "self.end_round(None);"),
    ("a round succeeds with an older process", "restarts.rs",
        "current.is_serving() && current.started_at >= begin;",
        "current.is_serving() && (current.started_at >= begin || true);"),
    ("a successor is as young as the notification that names it", "notices.rs",
        "let pid = named.pid;\n        let mut process",
        "let (pid, named) = (named.pid, NamedProcess { started_at: self.now, ..named });\n        let mut process"),
    ("the successor of a dead process goes on beside another one", "notices.rs",
        "let orphan = slot.successor.take_if(|successor| successor.is_adopted);",
        "let orphan: Option<Process> = None;"),
    ("a process that has ended takes a slot", "notices.rs",
        "if !named.has_ended {\n            return", "if true {\n            return"),
    ("a pending start is ignored", "processes.rs",
        "if !slot.is_start_pending {", "if true {"),
    ("a process is started although the successor warms up", "processes.rs",
        "Some(mut successor) if successor.is_starting() => {",
        "Some(mut successor) if successor.is_aborted() => {"),
    ("the successor of a dead process has no deadline", "processes.rs",
        "*deadline = deadline.earlier(ready_by);", "let _ = ready_by;"),
    ("a successor that is ready late is not aborted", "mod.rs",
        "Stage::Starting { .. } => self.abort(pid, \"was not ready in time\"),",
        "Stage::Starting { .. } => {}"),
    ("an unannounced process is forgotten", "notices.rs",
        "self.unannounced.push(process);\n        Some(Place::Unannounced)",
        "drop(process);\n        Some(Place::Unannounced)"),
    ("a process that its predecessor leaves is forgotten", "notices.rs",
        "successor.slot = None;\n                self.unannounced.push(successor);",
        "successor.slot = None;\n                drop(successor);"),
    ("a successor that nothing ends is not told to stop", "notices.rs",
        "Some(former) => self.terminate(former),\n                    None",
        "Some(former) => self.drain(former, false),\n                    None"),
    ("a process that ends gets another deadline", "processes.rs",
        "if !process.is_ending() {\n            let exit_by = match",
        "if !process.is_aborted() {\n            let exit_by = match"),
    ("an exit code takes the process away that serves instead", "processes.rs",
        ".is_some_and(|slot| !slot.is_serving())\n        };", ".is_some()\n        };"),
    ("an upgrade does not wait for a restart", "upgrade.rs",
        "            && self.round.is_none()\n", ""),
    ("an upgrade forgets the clients of a scale", "upgrade.rs",
        "let is_answered = !self.scale.has_client();", "let is_answered = true;"),
    ("a scale is answered before all slots serve", "scale.rs",
        "has_client() && is_complete && self.slots.iter().all(Slot::is_serving)", "has_client() && is_complete"),
    ("a scale ends the processes that serve during a restart", "scale.rs",
        "let is_needed = missing > 0 && slot.is_serving();", "let is_needed = false;"),
    ("a scale keeps what is surplus", "scale.rs",
        "if self.shutdown.is_none() && self.remove_surplus() {", "if false {"),
    ("a process that was large from the beginning is recycled", "recycling.rs",
        "true => size.first.saturating_mul(2),", "true => limit,"),
    ("recyclings for the size follow each other at once", "recycling.rs",
        "(true, Some(before)) => Deadline::after(before, PAUSE),", "(true, Some(before)) => Deadline::at(Some(before)),"),
    ("a recycling that has failed is repeated at once", "restarts.rs",
        "self.recycle_not_before = Deadline::after(self.now, PAUSE);", ""),
    ("a process is recycled for the requests of its predecessor", "notices.rs",
        "process.requests = notice.requests.or(process.requests);",
        "if notice.requests.is_some() { self.processes_mut().for_each(|process| process.requests = notice.requests); }"),
    ("a process is recycled too early for its requests", "recycling.rs",
        "u128::from(self.jitter()) / 10_240;", "u128::from(self.jitter()) / 4_000;"),
    ("processes are recycled too early", "recycling.rs",
        "let jitter = limit / 10_240 * self.jitter();", "let jitter = limit / 5_120 * self.jitter();"),
    ("a recycling begins as the supervisor is replaced", "upgrade.rs",
        "Ok(()) => self.upgrade.is_checked = true,",
        "Ok(()) if self.is_settled() => self.effects.push(Effect::ExecuteOwnProgram), Ok(()) => self.upgrade.is_wanted = true,"),
    ("a scale starts nothing before the first process was ready", "scale.rs",
        "let startable = match self.has_been_ready {\n                true => self.slots.len(),\n                false => 1,",
        "let startable = match self.has_been_ready {\n                true => self.slots.len(),\n                false => 0,"),
    ("a stop forgets the clients of a scale", "mod.rs",
        "self.end_scale(Some(IS_STOPPING.to_owned()));", ""),
    ("a recycling ends the process before its successor serves", "restarts.rs",
        "let serving = slot.current.as_ref().filter(|current| current.is_serving());\n        let (pid",
        "let ends = self.round.as_ref().is_some_and(|round| round.is_recycling);\n        let serving = slot.current.as_ref().filter(|current| current.is_serving() && !ends);\n        let (pid"),
    ("a dry run is used that is older than the request", "upgrade.rs",
        "_ if self.shutdown.is_some() || self.upgrade.is_wanted => {}",
        "_ if self.shutdown.is_some() => {}"),
    ("a dry run that hangs is not killed", "upgrade.rs",
        "self.effects.push(Effect::KillDryRun);", ""),
    ("listeners of a successor are closed", "processes.rs",
        ".flat_map(Slot::processes)\n                .chain(&self.unannounced);",
        ".filter_map(|slot| slot.current.as_ref());"),
    ("SIGUSR1 reaches a process that starts", "mod.rs",
        ".filter(|process| process.ready_since.is_some());", ".filter(|_| true);"),
    ("READY=1 does not follow a failed restart", "restarts.rs",
        "            self.notify(notice);\n        }\n        self.reply",
        "            if error.is_none() { self.notify(notice); }\n        }\n        self.reply"),
    ("a killed process is not waited for", "mod.rs",
        "let is_over = gives_up ||", "let is_over = self.shutdown.is_some_and(|stop| stop.was_killed) || gives_up ||"),
];

/// Builds and plays each faulty policy, or the one with this name.
pub(crate) fn find_all(only: Option<String>) -> ExitCode {
    let faults = FAULTS.iter();
    let faults = faults.filter(|fault| only.as_ref().is_none_or(|only| fault.0.contains(only)));
    let mut all_found = true;
    for fault in faults {
        let begin = Instant::now();
        let dir = env::temp_dir().join(format!("handover-planted-{}", std::process::id()));
        let found = find(fault, &dir);
        let found = found.and_then(|found| fs::remove_dir_all(&dir).map(|()| found));
        match found {
            Ok(found) => println!(
                "{}: {found}, {:.1} s with the build",
                fault.0,
                begin.elapsed().as_secs_f32()
            ),
            Err(error) => {
                all_found = false;
                println!("{}: NOT FOUND: {error}", fault.0);
            }
        }
    }
    match all_found {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn find((_, file, text, replacement): &Fault, dir: &Path) -> io::Result<String> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in ["src/supervisor/fleet", "tests/fleet", "benches/fleet"] {
        copy_files(&crate_dir.join(part), &dir.join(part))?;
    }
    for part in ["src/clock.rs", "benches/fleet.rs"] {
        fs::copy(crate_dir.join(part), dir.join(part))?;
    }
    let path = dir.join("src/supervisor/fleet").join(file);
    let source = fs::read_to_string(&path)?;
    if source.matches(text).count() != 1 {
        let matches = source.matches(text).count();
        return Err(io::Error::other(format!(
            "{file} has the text {matches} times"
        )));
    }
    fs::write(&path, source.replace(text, replacement))?;
    let program = dir.join("fleet");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut build = Command::new(rustc);
    build.args(["--edition", "2024", "-O", "-A", "warnings"]);
    build.env("CARGO_MANIFEST_DIR", crate_dir);
    run(build
        .arg("-o")
        .arg(&program)
        .arg(dir.join("benches/fleet.rs")))?;
    let output = Command::new(&program)
        .args(["--histories", HISTORIES])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let (played, promise) = (lines.next().unwrap_or_default(), lines.next());
    let played = played.split(':').next().unwrap_or_default();
    match promise.filter(|_| !output.status.success()) {
        Some(promise) => {
            let promise = promise.split(':').next().unwrap_or_default();
            Ok(format!("found by {promise} after {played}"))
        }
        None => Err(io::Error::other(format!("{played}, {}", output.status))),
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}
