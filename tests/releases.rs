//! Restarts of a program in a release directory, and with an environment file, with real processes.
#![cfg(all(target_os = "linux", feature = "signals", feature = "http"))] // signals and symbolic links

#[path = "support/generations.rs"]
mod generations;
#[path = "support/releases.rs"]
mod releases;
mod support;

use std::fs;
use std::os::unix::process::CommandExt;

use generations::*;
use releases::Releases;

/// The server that the tests start; not a test.
#[test]
fn child() {
    generations::serve_if_child();
}

#[test]
fn a_restart_runs_the_release_that_is_current_then() {
    let releases = Releases::new();
    let generations = Generations::start_with(&[], |command| releases.prepare(command, "./server"));
    for number in 1..=3 {
        if number > 1 {
            releases.install(number);
            generations.restart();
        }
        let place = generations.get("/place");
        assert_eq!(place.trim(), releases.release(number).display().to_string());
    }
}

/// The process that starts another one chooses the name freely, as `exec -a` does.
#[test]
fn another_program_on_the_search_path_with_the_name_of_this_one_is_not_run() {
    let generations = Generations::start_with(&[], |command| {
        command.arg0("sh");
    });
    generations.restart();
    generations.end();
}

#[test]
fn a_program_on_the_search_path_is_found_there_at_each_restart() {
    let releases = Releases::new();
    let current = releases.path("current");
    let generations = Generations::start_with(&[("by-handle", "")], |command| {
        releases.prepare(command, current.join("server"));
        command.arg0("server").env("PATH", &current);
    });
    releases.install(2);
    generations.get("/restart-later");
    let second = generations.until_generation(2);
    fs::remove_file(releases.release(2).join("server")).unwrap();
    let report = generations.get("/restart");
    let place = format!("cannot start {}: ", current.join("server").display());
    assert!(report.contains(&place), "{report}");
    assert_eq!(generations.who(), second);
}

#[test]
fn the_environment_file_is_read_at_each_restart_and_a_bad_one_changes_nothing() {
    let generations = Generations::start(&[("by-handle", ""), ("environment", "TOLD=first\n")]);
    let told = || {
        generations
            .get("/place")
            .rsplit_once(' ')
            .unwrap()
            .1
            .to_owned()
    };
    // The first process was not started by this crate.
    assert_eq!(told(), "");
    for (text, expected) in [
        ("TOLD=second\n", "second"),
        ("# comment\nTOLD='third'\n", "third"),
        ("OTHER=1\n", "third"),
        // systemd ignores the lines that are no variables.
        ("export TOLD=x\nTOLD\nTOLD=fourth\n1=2\n", "fourth"),
    ] {
        generations.option("environment", text);
        let next = generations.who().generation + 1;
        generations.get("/restart-later");
        generations.until_generation(next);
        assert_eq!(told(), expected);
    }
    let pid = generations.who().pid;
    generations.option("environment", "TOLD=x\nTOLD='y\n");
    let report = generations.get("/restart");
    assert!(report.contains("environment: line 2: "), "{report}");
    fs::remove_file(generations.dir.path().join("environment")).unwrap();
    let report = generations.get("/restart");
    assert!(
        report.contains("environment file ") && report.contains("os error 2"),
        "{report}"
    );
    assert_eq!(generations.who().pid, pid);
}
