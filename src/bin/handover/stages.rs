//! What each process does during a restart, as it goes.
//!
//! On a terminal, a line for each process is written again when something changes. Elsewhere, such
//! as in the log of a deployment, each change of a stage is a line, without control characters.

use std::collections::BTreeMap;
use std::io;

use serde_json::Value;

use super::output::{escape_controls, format_value, print};
use super::status::{all_processes, stage};

/// The processes as they were shown last.
#[derive(Debug, Default)]
pub(super) struct Stages {
    is_terminal: bool,
    /// The text on the terminal.
    painted: String,
    /// The stage of each process, by its id. `None` before the first status.
    last: Option<BTreeMap<u64, Line>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    stage: String,
    /// The process and its stage, in words.
    text: String,
}

impl Stages {
    pub(super) fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            ..Self::default()
        }
    }

    /// Shows what has changed since the last status.
    pub(super) fn show(&mut self, status: &Value) -> io::Result<()> {
        let text = match self.is_terminal {
            true => self.paint(status),
            false => self.describe_changes(status),
        };
        print(&text)
    }

    /// Writes over the lines of the last call.
    fn paint(&mut self, status: &Value) -> String {
        let lines = all_processes(status).filter_map(line_of);
        let text: String = lines.map(|(_, line)| line.text + "\n").collect();
        if text == self.painted {
            return String::new();
        }
        let up = match self.painted.lines().count() {
            0 => String::new(),
            count => format!("\x1b[{count}A"),
        };
        self.painted = text;
        // A line that wraps would be two: wrapping is off meanwhile. What is below is erased.
        format!("\x1b[?7l{up}\r\x1b[J{}\x1b[?7h", self.painted)
    }

    /// A line for each process that has another stage than before. The first call has none.
    fn describe_changes(&mut self, status: &Value) -> String {
        let now: BTreeMap<_, _> = all_processes(status).filter_map(line_of).collect();
        let Some(before) = self.last.replace(now.clone()) else {
            return String::new();
        };
        let is_new = |pid: &u64, line: &Line| {
            let before = before.get(pid);
            // What drains says how many requests are left.
            before.is_none_or(|before| {
                before.stage != line.stage || line.stage == "draining" && before != line
            })
        };
        let changed = now.iter().filter(|(pid, line)| is_new(pid, line));
        let mut text: String = changed
            .map(|(_, line)| format!("{}\n", line.text))
            .collect();
        for pid in before.keys().filter(|pid| !now.contains_key(*pid)) {
            text += &format!("process {pid}: exited\n");
        }
        text
    }
}

fn line_of(process: &Value) -> Option<(u64, Line)> {
    let pid = process["pid"].as_u64()?;
    let stage = stage(process);
    let generation = format_value(&process["generation"]);
    let mut text = format!("process {pid}, generation {generation}: {stage}");
    let status = process["status"].as_str().unwrap_or_default();
    if !status.is_empty() && stage != "serving" {
        text += &format!(": {}", escape_controls(status));
    }
    Some((pid, Line { stage, text }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn statuses() -> [Value; 4] {
        let old = json!({"pid": 8, "generation": 1, "state": "serving", "status": "fine"});
        let mut replaced = old.clone();
        replaced["state"] = "restarting".into();
        replaced["successor"] =
            json!({"pid": 9, "generation": 2, "state": "starting", "status": "a\u{1b}b"});
        let new = json!({"pid": 9, "generation": 2, "state": "serving", "status": "fine"});
        let left = json!({"pid": 8, "generation": 1, "state": "draining",
            "status": "2 connections left"});
        [
            json!({"processes": [old], "draining": []}),
            json!({"processes": [replaced], "draining": []}),
            json!({"processes": [new], "draining": [left]}),
            json!({"processes": [new], "draining": []}),
        ]
    }

    #[test]
    fn elsewhere_each_change_is_a_line_without_control_characters() {
        let mut stages = Stages::new(false);
        let shown = statuses().map(|status| stages.describe_changes(&status));
        let expected = [
            "",
            "process 9, generation 2: warming up: a\\u{1b}b\n",
            "process 8, generation 1: draining: 2 connections left\n\
             process 9, generation 2: serving\n",
            "process 8: exited\n",
        ];
        assert_eq!(shown, expected);
        let [.., last] = statuses();
        assert_eq!(stages.describe_changes(&last), "");
    }

    #[test]
    fn on_a_terminal_the_lines_are_written_over() {
        let mut stages = Stages::new(true);
        let [first, second, ..] = statuses();
        let shown = stages.paint(&first);
        let line = "process 8, generation 1: serving\n";
        assert_eq!(shown, format!("\x1b[?7l\r\x1b[J{line}\x1b[?7h"));
        assert_eq!(stages.paint(&first), "");
        let shown = stages.paint(&second);
        assert!(
            shown.starts_with("\x1b[?7l\x1b[1A\r\x1b[Jprocess 8"),
            "{shown:?}"
        );
        assert!(shown.contains("warming up: a\\u{1b}b\n"), "{shown:?}");
    }
}
