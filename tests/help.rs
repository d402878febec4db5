//! The help texts of the command `handover`, its manual pages, its completions and the guide say the
//! same.
//!
//! The help texts are in `tests/golden/help.txt`. After a change that is meant, write them again:
//! `UPDATE_GOLDEN=1 cargo test --features cli --test help`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const COMMANDS: [&str; 9] = [
    "status",
    "restart",
    "scale",
    "reopen",
    "stop",
    "upgrade",
    "run",
    "completions",
    "man",
];

/// What the command prints.
#[track_caller]
fn handover(args: &[&str]) -> String {
    let mut handover = Command::new(env!("CARGO_BIN_EXE_handover"));
    handover.args(args).stdin(Stdio::null());
    let output = handover.env_remove("HANDOVER_SOCKET").output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    // Windows has line ends of its own, and a program name with an extension.
    text.replace("\r\n", "\n")
        .replace("handover.exe", "handover")
}

fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The options in a text, such as `--listen`.
fn options(text: &str) -> BTreeSet<String> {
    let is_part = |char: char| char.is_ascii_lowercase() || char == '-';
    let words = text.split(|char| !is_part(char));
    words
        .filter(|word| {
            word.strip_prefix("--")
                .is_some_and(|name| name.starts_with(char::is_alphabetic))
        })
        .map(|word| word.trim_end_matches('-').to_owned())
        .collect()
}

/// The help texts of all commands, each behind the command that prints it.
fn help_texts() -> String {
    let mut all = format!("$ handover --help\n{}", handover(&["--help"]));
    for command in COMMANDS {
        all += &format!("\n$ handover {command} --help\n");
        all += &handover(&[command, "--help"]);
    }
    all
}

#[test]
fn the_help_texts_are_the_golden_ones() {
    let golden = in_crate("tests/golden/help.txt");
    let text = help_texts();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    let differs = text
        .lines()
        .zip(expected.lines())
        .find(|(now, then)| now != then);
    assert!(
        text == expected.replace("\r\n", "\n"),
        "the help texts have changed: {differs:?}. If that is meant: \
         UPDATE_GOLDEN=1 cargo test --features cli --test help"
    );
}

#[test]
fn the_help_names_every_command() {
    let help = handover(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<_> = names.filter(|name| *name != "help").collect();
    assert_eq!(names, BTreeSet::from(COMMANDS));
}

#[test]
fn the_guide_names_every_option_and_no_other() {
    let guide = fs::read_to_string(in_crate("src/guide/operating.md")).unwrap();
    for command in COMMANDS {
        assert!(
            guide.contains(&format!("`handover {command}`")),
            "{command}"
        );
    }
    let mut options_of_help = options(&help_texts());
    for of_clap in ["--help", "--version"] {
        options_of_help.remove(of_clap);
    }
    assert_eq!(
        options(&guide),
        options_of_help,
        "left: the guide, right: the help"
    );
    // The options of `run` have a row each in the table of the settings.
    for option in options(&handover(&["run", "--help"])) {
        let row = format!("\n| `{option}` | [`");
        assert!(
            option == "--help" || guide.contains(&row),
            "no row of {option}"
        );
    }
}

#[test]
fn the_manual_pages_name_every_option() {
    let plain = |page: String| page.replace(r"\-", "-");
    let main = plain(handover(&["man"]));
    assert!(main.contains(".TH handover 1"), "{main}");
    for command in COMMANDS {
        assert!(main.contains(&format!("handover-{command}(1)")), "{main}");
        let page = plain(handover(&["man", command]));
        assert!(
            page.contains(&format!(".TH handover-{command} 1")),
            "{page}"
        );
        let help = handover(&[command, "--help"]);
        let missing: Vec<_> = options(&help)
            .difference(&options(&page))
            .cloned()
            .collect();
        assert!(missing.is_empty(), "{command}: {missing:?}");
    }
}

#[test]
fn the_completions_of_each_shell_name_every_option_of_run() {
    let help = handover(&["run", "--help"]);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = handover(&["completions", shell]);
        for option in options(&help) {
            let name = option.trim_start_matches("--");
            assert!(script.contains(name), "{shell}: {option}");
        }
    }
}
