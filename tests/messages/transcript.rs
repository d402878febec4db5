//! The output of programs, without what differs from one run to the next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The output of one program, or of several.
#[derive(Default)]
pub(crate) struct Transcript(String);

/// What a program has written, and what to replace in it.
pub(crate) struct Output<'a> {
    /// The command, as one would type it.
    pub(crate) command: String,
    pub(crate) stdout: &'a [String],
    pub(crate) stderr: &'a [String],
    /// Texts and their placeholders.
    pub(crate) replaced: Vec<(String, String)>,
    /// The process that the test has started.
    pub(crate) pid: u32,
    /// `None` if the test has killed it.
    pub(crate) exit_code: Option<i32>,
}

impl Transcript {
    pub(crate) fn add(&mut self, other: Self) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0 += &other.0;
    }

    /// Standard output in its order, and what each process has logged in its order. How the lines of several processes
    /// and of the two streams are mixed differs from run to run.
    pub(crate) fn of(output: &Output<'_>) -> Self {
        // What the first process says of others is in the order of their starts; process ids may begin again.
        let is_of_first = |line: &&String| {
            without_time(line).is_some() || logger(line).is_some_and(|(pid, _)| pid == output.pid)
        };
        let of_first = output.stderr.iter().filter(is_of_first);
        let all = of_first.chain(output.stdout).chain(output.stderr);
        let mut order = vec![output.pid];
        for pid in all.flat_map(|line| pids_in(line)) {
            if !order.contains(&pid) {
                order.push(pid);
            }
        }
        let name = |pid: u32| {
            let place = order.iter().position(|other| *other == pid);
            place.map(|place| format!("PID{}", place + 1))
        };
        let masked = |line: &str| mask(line, &output.replaced, &name);
        let mut text = format!("$ {}\n", masked(&output.command));
        for line in output.stdout {
            text += &format!("{}\n", masked(line));
        }
        let mut by_process: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
        for line in output
            .stderr
            .iter()
            .filter(|line| !depends_on_the_machine(line))
        {
            let (place, who, line) = match (logger(line), without_time(line)) {
                (Some((pid, rest)), _) => {
                    let place = order.iter().position(|other| *other == pid);
                    let who = name(pid).unwrap_or_default();
                    (
                        1 + place.unwrap_or_default(),
                        format!("logged by {who}"),
                        rest,
                    )
                }
                (None, Some(rest)) => (1, "logged by the supervisor".to_owned(), rest),
                (None, None) => (0, "standard error".to_owned(), &**line),
            };
            by_process
                .entry((place, who))
                .or_default()
                .push(masked(line));
        }
        for ((_, who), lines) in by_process {
            text += &format!("-- {who}\n{}\n", lines.join("\n"));
        }
        if let Some(code) = output.exit_code {
            text += &format!("-- exit code {code}\n");
        }
        Self(text)
    }

    /// Compares with the golden text, or rewrites the golden text.
    #[track_caller]
    pub(crate) fn check(&self, name: &str) {
        let golden = golden(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(golden.parent().unwrap()).unwrap();
            fs::write(&golden, &self.0).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            self.0 == expected,
            "{} has\n\n{expected}\nand this is what a person reads now:\n\n{}\nIf that is meant: UPDATE_GOLDEN=1 cargo \
             test --all-features --test messages",
            golden.display(),
            self.0
        );
    }
}

fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/messages")
        .join(name)
        .with_extension("txt")
}

/// Lines about the limits of the machine, about what the kernel tells of threads, and about a supervisor that got no CPU.
fn depends_on_the_machine(line: &str) -> bool {
    let texts = [
        "max_connections",
        ": thread ",
        "the processes have more time",
    ];
    texts.iter().any(|text| line.contains(text))
}

/// The process id and the text of a line of an example's logger: `[4711] info: text`.
fn logger(line: &str) -> Option<(u32, &str)> {
    let (pid, rest) = line.strip_prefix('[')?.split_once("] ")?;
    Some((pid.parse().ok()?, rest))
}

/// A line of a supervisor's logger without its time: `2026-11-28T09:30:00.123Z INFO  target: text`.
fn without_time(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once("Z ")?;
    let is_time = time.len() == 23 && time.bytes().all(|byte| b"0123456789-:.T".contains(&byte));
    is_time.then_some(rest)
}

/// The processes that a line names.
fn pids_in(line: &str) -> Vec<u32> {
    let after = line.split("process ").skip(1);
    let named = after.filter_map(|rest| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    });
    named.chain(logger(line).map(|(pid, _)| pid)).collect()
}

fn mask(line: &str, replaced: &[(String, String)], name: &dyn Fn(u32) -> Option<String>) -> String {
    let mut line = line.to_owned();
    for (text, placeholder) in replaced {
        line = line.replace(text, placeholder);
    }
    let mut masked = String::new();
    let mut rest = &*line;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        masked += before;
        let end = number
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(number.len());
        let end = number[..end].trim_end_matches('.').len();
        let (number, behind) = number.split_at(end);
        masked += &mask_number(&masked, number, behind, name);
        rest = behind;
    }
    masked += rest;
    // Newer versions of Rust write the thread's number in the message of a panic. A process dumps core also with a
    // limit of 0 if the kernel pipes the dump to a program (core(5)).
    masked
        .replace("' (N) panicked", "' panicked")
        .replace(" (core dumped)", "")
}

/// What comes before the ports of help texts and of errors. Elsewhere any port may be the one that was free.
const FIXED_PORTS: [&str; 2] = ["as in 127.0.0.1:", "it listens on 127.0.0.1:"];

/// The number, or a placeholder if it differs from run to run.
fn mask_number(
    before: &str,
    number: &str,
    behind: &str,
    name: &dyn Fn(u32) -> Option<String>,
) -> String {
    let is_time = number.contains('.') && behind.starts_with(" s") || behind.starts_with(" ms");
    let is_fixed = number == "99999" || FIXED_PORTS.iter().any(|text| before.ends_with(text));
    let is_port = before.ends_with("127.0.0.1:") && !is_fixed;
    let varies = ["worker ", "handover-", "' ("];
    let is_place = before.ends_with(".rs:") || before.ends_with(".rs:N:");
    if is_time || is_place || is_port || varies.iter().any(|text| before.ends_with(text)) {
        return "N".to_owned();
    }
    let is_pid = before.ends_with("process ") || before.ends_with('[');
    let pid = number.parse().ok().filter(|_| is_pid);
    pid.and_then(name).unwrap_or_else(|| number.to_owned())
}
