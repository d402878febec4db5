//! `handover status`: the answer as a table.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::CommandResult;
use super::output::{escape_controls, format_duration, format_value, list, print};
use super::request::{Target, parse_answer};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    supervisor: Target,
    /// Print the supervisor's answer itself, a line of JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The exit code of `handover status` if not all processes serve.
const NOT_SERVING: u8 = 3;

impl StatusArgs {
    pub(super) fn execute(&self) -> CommandResult {
        let supervisor = &self.supervisor;
        let line = supervisor.send("status", supervisor.deadline(false))?;
        let status = parse_answer(&line)?;
        match self.json {
            true => print(&line)?,
            false => print(&format_status(&status))?,
        }
        match status["state"].as_str() {
            Some("serving" | "restarting") => Ok(ExitCode::SUCCESS),
            _ => Ok(NOT_SERVING.into()),
        }
    }
}

/// The status for people: a line for each property of the service, then a table of the processes.
fn format_status(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{value}\n");
    for name in ["state", "pid", "version", "program"] {
        line(name, format_value(&status[name]));
    }
    if let Some(names) = status["event_objects"].as_str() {
        line(
            "event objects",
            format!("{}.stop, stop-now, restart, user1", escape_controls(names)),
        );
    }
    line("uptime", format_duration(&status["uptime_seconds"]));
    for listener in list(&status["listeners"]) {
        let [name, address] = ["name", "address"].map(|field| format_value(&listener[field]));
        line("listener", format!("{address} ({name})"));
    }
    let last = &status["last_restart"];
    if let Some(took) = last["took_seconds"].as_f64() {
        let ago = format_duration(&last["seconds_ago"]);
        let result = match last["error"].as_str() {
            None => format!("succeeded in {took:.3} s, {ago} ago"),
            Some(why) => format!(
                "failed after {took:.3} s, {ago} ago: {}",
                escape_controls(why)
            ),
        };
        line("last restart", result);
    }
    let head = ["PID", "GENERATION", "STATE", "UPTIME", "RESTARTS", ""];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(all_processes(status).map(process_row));
    text += "\n";
    text += &format_table(&rows);
    let deaths: Vec<_> = list(&status["processes"])
        .flat_map(|process| list(&process["last_deaths"]))
        .map(|death| {
            let ago = format_duration(&death["seconds_ago"]);
            [format!("{ago} ago"), format_value(&death["reason"])]
        })
        .collect();
    if !deaths.is_empty() {
        text += "\nLAST DEATHS\n";
        text += &format_table(&deaths);
    }
    text
}

fn format_table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS).filter_map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}

/// The processes of a status: of each slot the one that serves and its successor, then those that
/// drain.
pub(super) fn all_processes(status: &Value) -> impl Iterator<Item = &Value> {
    let in_slots = list(&status["processes"]).flat_map(|process| {
        let successor = Some(&process["successor"]).filter(|successor| successor.is_object());
        std::iter::once(process).chain(successor)
    });
    in_slots.chain(list(&status["draining"]))
}

/// What a process does. A process that starts is "warming up" when it has sent a status.
pub(super) fn stage(process: &Value) -> String {
    let has_status = process["status"]
        .as_str()
        .is_some_and(|text| !text.is_empty());
    match process["state"].as_str() {
        Some("starting") if has_status => "warming up".to_owned(),
        // The successor, which starts, has a row of its own.
        Some("restarting") => "serving".to_owned(),
        _ => format_value(&process["state"]),
    }
}

fn process_row(process: &Value) -> [String; 6] {
    let mut notes = Vec::new();
    if let Some(seconds) = process["starts_in_seconds"].as_f64() {
        notes.push(format!("starts in {seconds:.1} s"));
    }
    if let Some(count) = process["requests"].as_u64() {
        notes.push(format!("{count} requests"));
    }
    if let Some(status) = process["status"].as_str().filter(|text| !text.is_empty()) {
        notes.push(escape_controls(status));
    }
    [
        format_value(&process["pid"]),
        format_value(&process["generation"]),
        stage(process),
        format_duration(&process["uptime_seconds"]),
        format_value(&process["restarts"]),
        notes.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_formatted_line_by_line() {
        let status = parse_answer(
            r#"{"ok":true,"pid":7,"version":"0.1.0","program":"/srv/app","event_objects":"Local\\shop.7","state":"degraded",
            "uptime_seconds":3725.5,
            "processes":[{"state":"restarting","restarts":0,"pid":8,"generation":12,"uptime_seconds":62.0,
            "status":"fine\u001b[2J","successor":{"pid":10,"generation":13,"state":"starting",
            "uptime_seconds":0.5,"status":"reading the cache"}},
            {"state":"waiting","restarts":3,"starts_in_seconds":0.25,
            "last_deaths":[{"reason":"process 9 ended","seconds_ago":61.0}]}],
            "draining":[{"pid":4,"generation":11,"state":"draining","uptime_seconds":90.0,
            "status":"2 connections left"}],
            "listeners":[{"name":"web","address":"127.0.0.1:80"}],
            "last_restart":{"ok":false,"error":"it is ill","took_seconds":1.5,"seconds_ago":7.0}}"#,
        );
        let expected = r"
state         degraded
pid           7
version       0.1.0
program       /srv/app
event objects Local\shop.7.stop, stop-now, restart, user1
uptime        1 h 2 min
listener      127.0.0.1:80 (web)
last restart  failed after 1.500 s, 7.0 s ago: it is ill

PID  GENERATION  STATE       UPTIME      RESTARTS
8    12          serving     1 min 2 s   0         fine\u{1b}[2J
10   13          warming up  0.5 s       -         reading the cache
-    -           waiting     -           3         starts in 0.2 s
4    11          draining    1 min 30 s  -         2 connections left

LAST DEATHS
1 min 1 s ago  process 9 ended
";
        assert_eq!(format_status(&status.unwrap()), expected.trim_start());
    }

    #[test]
    fn a_missing_value_is_a_dash_and_a_bad_answer_an_error() {
        assert!(format_status(&Value::Null).starts_with("state         -\n"));
        assert!(parse_answer("{}").is_err());
        assert!(parse_answer("").is_err());
    }
}
