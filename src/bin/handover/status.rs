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
    /// Print the supervisor's answer itself, a line of JSON
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
    line("uptime", format_duration(&status["uptime_seconds"]));
    for listener in list(&status["listeners"]) {
        let [name, address] = ["name", "address"].map(|field| format_value(&listener[field]));
        line("listener", format!("{address} ({name})"));
    }
    let draining: Vec<String> = list(&status["draining"]).map(format_value).collect();
    if !draining.is_empty() {
        line("draining", draining.join(", "));
    }
    let last = &status["last_restart"];
    if let Some(took) = last["took_seconds"].as_f64() {
        let result = match last["error"].as_str() {
            None => format!("succeeded in {took:.3} s"),
            Some(why) => format!("failed after {took:.3} s: {}", escape_controls(why)),
        };
        line("last restart", result);
    }
    let head = ["PID", "GENERATION", "STATE", "UPTIME", "RESTARTS", ""];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(list(&status["processes"]).map(process_row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    text += "\n";
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    text
}

fn process_row(process: &Value) -> [String; 6] {
    let mut notes = Vec::new();
    if let Some(seconds) = process["starts_in_seconds"].as_f64() {
        notes.push(format!("starts in {seconds:.1} s"));
    }
    if let Some(status) = process["status"].as_str().filter(|text| !text.is_empty()) {
        notes.push(escape_controls(status));
    }
    if let Some(end) = process["last_end"].as_str() {
        notes.push(format!("last end: {}", escape_controls(end)));
    }
    [
        format_value(&process["pid"]),
        format_value(&process["generation"]),
        format_value(&process["state"]),
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
            r#"{"ok":true,"pid":7,"version":"0.1.0","program":"/srv/app","state":"degraded",
            "uptime_seconds":3725.5,
            "processes":[{"state":"serving","restarts":0,"pid":8,"generation":12,"uptime_seconds":62.0,
            "status":"fine\u001b[2J"},{"state":"waiting","restarts":3,"starts_in_seconds":0.25,
            "last_end":"process 9 ended"}],
            "draining":[4,5],"listeners":[{"name":"web","address":"127.0.0.1:80"}],
            "last_restart":{"ok":false,"error":"it is ill","took_seconds":1.5}}"#,
        );
        let expected = r"
state         degraded
pid           7
version       0.1.0
program       /srv/app
uptime        1 h 2 min
listener      127.0.0.1:80 (web)
draining      4, 5
last restart  failed after 1.500 s: it is ill

PID  GENERATION  STATE    UPTIME     RESTARTS
8    12          serving  1 min 2 s  0         fine\u{1b}[2J
-    -           waiting  -          3         starts in 0.2 s; last end: process 9 ended
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
