//! What `handover run` ends with a program, and what it leaves alone: with shells as programs, which know nothing of
//! this crate.
#![cfg(target_os = "linux")] // process groups

#[path = "support/supervised.rs"]
mod supervised;
mod support;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use supervised::{Supervised, dir_with};
use support::process::{all_pids, eventually, is_alive, signal, stat};

/// A supervisor, in whose directory each process of a test runs, and writes its id to a file.
struct Service(Supervised);

impl Deref for Service {
    type Target = Supervised;

    fn deref(&self) -> &Supervised {
        &self.0
    }
}

impl DerefMut for Service {
    fn deref_mut(&mut self) -> &mut Supervised {
        &mut self.0
    }
}

impl Service {
    /// Supervises `sh -c PROGRAM`.
    fn start(options: &[&str], program: &str) -> Self {
        Self::start_by("exec \"$@\"", options, program)
    }

    /// The same, by a shell (see [`Supervised::start_by`]).
    fn start_by(wrapper: &str, options: &[&str], program: &str) -> Self {
        let dir = dir_with(&[("program", program)]);
        let options = [&["--ready-after", "0.05"], options].concat();
        let program = ["sh", "program"];
        Self(Supervised::start_by(
            wrapper,
            dir,
            &options,
            &program,
            |_| {},
        ))
    }

    /// The process that has written its id to this file.
    #[track_caller]
    fn pid(&self, name: &str) -> i32 {
        eventually(name, || self.read(name).ends_with('\n'));
        self.read(name).trim().parse().unwrap()
    }

    /// Another process than this one has written its id.
    #[track_caller]
    fn other_pid(&self, name: &str, old: i32) -> i32 {
        eventually(name, || self.pid(name) != old);
        self.pid(name)
    }

    /// Has the supervisor execute its program again.
    #[track_caller]
    fn upgrade(&self) {
        self.signal(Signal::USR2);
        let text = "the supervisor runs version";
        eventually("the upgrade", || self.read("log").contains(text));
    }

    /// Only these are left. The guardian sees the end of the supervisor a moment later.
    #[track_caller]
    fn until_left(&self, wanted: &[i32]) {
        eventually(&format!("only {wanted:?} are left"), || {
            let left = self.processes();
            left.len() == wanted.len() && wanted.iter().all(|pid| left.contains(pid))
        });
    }
}

fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// A program with a child. Neither is told to end by anything but its process group.
const WRAPPER: &str = "sleep 1000 & echo $! > child; echo $$ > leader; wait";

#[test]
fn a_process_and_its_children_are_a_group_and_end_together() {
    let mut service = Service::start(&[], WRAPPER);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    assert_eq!(stat(leader).unwrap().group, leader);
    assert_eq!(stat(child).unwrap().group, leader);
    assert_eq!(service.stop().code(), Some(0));
    service.until_left(&[]);
}

#[test]
fn what_a_dead_process_leaves_behind_is_ended() {
    let service = Service::start(&[], WRAPPER);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    kill(leader);
    eventually("the child of the dead process has ended", || {
        !is_alive(child)
    });
    let second = service.other_pid("leader", leader);
    assert!(is_alive(second));
    assert!(is_alive(service.other_pid("child", child)));
}

#[test]
fn a_restart_ends_what_the_old_process_leaves_behind() {
    let service = Service::start(&[], WRAPPER);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    service.signal(Signal::HUP);
    let second = service.other_pid("leader", leader);
    let second_child = service.other_pid("child", child);
    eventually("the old ones have ended", || {
        !is_alive(leader) && !is_alive(child)
    });
    assert!(is_alive(second) && is_alive(second_child));
}

#[test]
fn a_straggler_that_ignores_the_stop_is_killed() {
    let program = "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.05; done' &
        echo $$ > leader; wait";
    let mut service = Service::start(&["--stop-timeout", "0.3"], program);
    service.pid("leader");
    service.pid("child");
    assert_eq!(service.stop().code(), Some(1));
    service.until_left(&[]);
}

#[test]
fn an_upgrade_sends_a_straggler_no_second_signal() {
    let program = "sh -c 'trap \"echo TERM >> signals; test -e exits && exit\" TERM; trap \"echo WINCH >> signals\" WINCH
            echo $$ > child; while :; do sleep 0.02; done' &
        echo $$ > leader; wait";
    let mut service = Service::start(&["--stop-timeout", "600"], program);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    kill(leader);
    eventually("the first signal", || service.read("signals") == "TERM\n");
    service.upgrade();
    // When the second answer comes, the supervisor has looked at the stragglers.
    for _ in 0..2 {
        let output = service.ask(&["status", "--timeout", "60"]);
        assert!(output.status.code().is_some());
    }
    // Of two signals that wait, a shell acts on that with the lower number first.
    signal(child, Signal::WINCH);
    let both = || service.read("signals").ends_with("WINCH\n");
    eventually("the other signal", both);
    assert_eq!(service.read("signals"), "TERM\nWINCH\n");
    fs::write(service.path("exits"), "").unwrap();
    kill(child);
    assert_eq!(service.stop().code(), Some(0));
    service.until_left(&[]);
}

#[test]
fn a_straggler_that_forks_all_the_time_is_killed_with_all_its_children() {
    let program = "
        setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while :; do sleep 100 & sleep 0.002; done' &
        echo $$ > leader; wait";
    for _ in 0..3 {
        let mut service = Service::start(&["--stop-timeout", "0.3"], program);
        service.pid("leader");
        service.pid("daemon");
        assert_eq!(service.stop().code(), Some(1));
        service.until_left(&[]);
    }
}

#[test]
fn a_group_is_ended_though_proc_is_not_available() {
    let hide = "mount -t tmpfs none /proc";
    let mut probe = Command::new("unshare");
    let probe = probe
        .args(["--mount", "sh", "-c", hide])
        .stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        return eprintln!("not run: this user may not mount");
    }
    let wrapper = format!("exec unshare --mount sh -c '{hide}; exec \"$@\"' sh \"$@\"");
    let mut service = Service::start_by(&wrapper, &[], WRAPPER);
    service.pid("leader");
    service.pid("child");
    assert_eq!(service.stop().code(), Some(0));
    service.until_left(&[]);
    assert!(service.read("log").contains("cannot look at"));
}

/// As by `pkill -9 handover`. With a guardian, the program gets one SIGTERM as well.
#[test]
fn a_supervisor_and_a_guardian_that_are_killed_leave_no_program_behind() {
    let program = "trap 'echo TERM >> signals; test -e exits && exit' TERM; echo $$ > leader
        while :; do sleep 0.02; done";
    for kills_guardian in [true, false] {
        let mut service = Service::start(&["--stop-timeout", "0.5"], program);
        service.pid("leader");
        // It may take its name after the program has begun.
        eventually("the guardian", || service.guardian().is_some());
        let guardian = service.guardian().unwrap();
        if kills_guardian {
            fs::write(service.path("exits"), "").unwrap();
            signal(guardian, Signal::STOP);
        }
        service.signal(Signal::KILL);
        if kills_guardian {
            kill(guardian);
        }
        service.wait();
        service.until_left(&[]);
        // The kernel may send the signal once more, as it counts the death of a thread as the parent's
        // while other threads live (PR_SET_PDEATHSIG(2const)).
        let signals = service.read("signals");
        assert!(!signals.is_empty() && signals.lines().all(|line| line == "TERM"));
    }
}

/// Their parents do not reap what is left to them: the guardian sees the end of a process nevertheless.
#[test]
fn a_guardian_ends_the_group_of_a_process_that_nobody_reaps() {
    let program = "sh -c 'trap \"echo TERM > term; exit\" TERM; echo $$ > child; while :; do sleep 0.02; done' &
        echo $$ > leader; wait";
    // The stop time-out is longer than the test may last.
    let mut service = Service::start(&["--stop-timeout", "600"], program);
    let (leader, _) = (service.pid("leader"), service.pid("child"));
    // This process is the parent of what the supervisor leaves behind, and reaps only the supervisor.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    service.signal(Signal::KILL);
    service.wait();
    eventually("a process that is not reaped", || !is_alive(leader));
    eventually("the end of the group", || service.path("term").exists());
    service.until_left(&[]);
}

#[test]
fn a_process_that_left_its_group_is_ended_by_the_stop() {
    let program = "setsid sh -c 'echo $$ > daemon; exec sleep 1000' & echo $$ > leader; wait";
    let mut service = Service::start(&[], program);
    let (leader, daemon) = (service.pid("leader"), service.pid("daemon"));
    // A daemon outlives the process that started it, as long as there is a service.
    kill(leader);
    service.other_pid("leader", leader);
    assert!(is_alive(daemon));
    assert_eq!(service.stop().code(), Some(0));
    service.until_left(&[]);
}

/// All processes are down, and the supervisor waits for the end of a straggler when it is told to start again.
#[test]
fn a_process_that_is_started_while_stragglers_end_is_left_alone_and_ended_by_the_stop() {
    let program = "
        test -e again && { setsid sleep 1000 & echo $$ > leader2; exec sleep 1000; }
        : > again
        setsid sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.05; done' &
        while ! test -s child; do sleep 0.01; done
        echo $$ > leader";
    let options = ["--restart", "on-failure", "--stop-timeout", "1"];
    let mut service = Service::start(&options, program);
    service.pid("leader");
    let text = format!("sending SIGTERM to process {}", service.pid("child"));
    eventually("the straggler is ended", || {
        service.read("log").contains(&text)
    });
    service.signal(Signal::HUP);
    let second = service.pid("leader2");
    // Longer than the stop time-out.
    thread::sleep(Duration::from_millis(1500));
    assert!(is_alive(second));
    service.stop();
    service.until_left(&[]);
}

#[test]
fn children_that_the_supervisor_had_before_are_left_alone() {
    let sidecar = "sleep 1000 & echo $! > sidecar; ";
    // This one leaves a child of its own to the supervisor, while the supervisor runs.
    let parent =
        "sh -c 'sleep 1000 & echo $! > orphan; while ! test -e go; do sleep 0.01; done' & ";
    let stubborn = "trap '' TERM; echo $$ > leader; while :; do sleep 0.05; done";
    for (program, upgrades) in [(WRAPPER, false), (stubborn, false), (WRAPPER, true)] {
        let wrapper = format!("{sidecar}{parent}exec \"$@\"");
        let mut service = Service::start_by(&wrapper, &["--stop-timeout", "0.3"], program);
        service.pid("leader");
        let (sidecar, orphan) = (service.pid("sidecar"), service.pid("orphan"));
        fs::write(service.path("go"), "").unwrap();
        let supervisor = service.0.pid();
        eventually("the orphan is the supervisor's", || {
            stat(orphan).is_some_and(|stat| stat.parent == supervisor)
        });
        if upgrades {
            service.upgrade();
        }
        service.stop();
        service.until_left(&[sidecar, orphan]);
        assert!(is_alive(sidecar) && is_alive(orphan), "{program}");
    }
}

#[test]
fn the_exit_of_a_child_from_before_is_not_that_of_a_process() {
    let wrapper = "sleep 1000 & echo $! > sidecar; exec \"$@\"";
    let mut service = Service::start_by(wrapper, &[], WRAPPER);
    let leader = service.pid("leader");
    let sidecar = service.pid("sidecar");
    kill(sidecar);
    eventually("it is reaped", || stat(sidecar).is_none());
    assert_eq!(service.stop().code(), Some(0));
    assert_eq!(service.pid("leader"), leader);
}

#[test]
fn without_process_groups_all_are_in_that_of_the_supervisor() {
    let mut service = Service::start(&["--no-process-groups"], WRAPPER);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    let group = service.0.pid();
    assert_eq!(stat(leader).unwrap().group, group);
    assert_eq!(service.stop().code(), Some(0));
    service.until_left(&[child]);
}

#[test]
fn a_supervisor_that_is_killed_leaves_nothing_behind() {
    // The third is in the hands of another user, and the kernel does not tell it of the supervisor's death.
    let may_change_user = rustix::process::geteuid().is_root();
    let other_user = "exec setpriv --reuid 65534 --clear-groups sh -c 'exec sleep 1000'";
    let programs = [
        WRAPPER.to_owned(),
        "trap '' TERM; echo $$ > leader; while :; do sleep 0.05; done".to_owned(),
        format!("echo $$ > leader; {other_user}"),
    ];
    for program in &programs[..if may_change_user { 3 } else { 2 }] {
        let mut service = Service::start(&["--stop-timeout", "0.5"], program);
        service.pid("leader");
        if program == WRAPPER {
            service.upgrade();
        }
        service.signal(Signal::KILL);
        service.wait();
        eventually("the end of all processes", || {
            service.processes().is_empty()
        });
    }
}

#[test]
fn a_supervisor_that_is_killed_leaves_no_process_of_its_user_behind() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not run: only root can start processes of another user");
    }
    // The second is ended together with its child, which ignores the first signal.
    let stubborn = "sh -c 'trap : TERM; echo $$ > child; while :; do sleep 0.05; done' &
        echo $$ > leader; wait";
    for program in ["echo $$ > leader; exec sleep 1000", stubborn] {
        let options = ["--stop-timeout", "0.5", "--user", "65534"];
        let mut service = Service::start_by("chmod 777 . && exec \"$@\"", &options, program);
        let leader = service.pid("leader");
        assert_eq!(
            fs::metadata(format!("/proc/{leader}")).unwrap().uid(),
            65534
        );
        service.signal(Signal::KILL);
        service.wait();
        service.until_left(&[]);
    }
}

impl Service {
    fn guardian(&self) -> Option<i32> {
        let supervisor = self.0.pid();
        all_pids().find(|pid| {
            stat(*pid).is_some_and(|stat| stat.parent == supervisor && stat.state != 'Z')
                && fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name == "handover-guard\n")
        })
    }

    /// Kills the guardian. Returns when the supervisor knows.
    #[track_caller]
    fn kill_guardian(&self) -> i32 {
        eventually("the guardian", || self.guardian().is_some());
        let guardian = self.guardian().unwrap();
        kill(guardian);
        let text = format!("the guardian, process {guardian}, exited");
        eventually("the end of the guardian", || {
            self.read("log").contains(&text)
        });
        guardian
    }
}

#[test]
fn the_next_guardian_knows_of_all_processes_and_of_what_is_being_ended() {
    // The child ends at the second SIGTERM: the supervisor sends the first one, and the guardian another.
    let program = "
        test -e again && { echo $$ > leader2; exec sleep 1000; }
        : > again
        sh -c 'trap \"test -e term && exit; : > term\" TERM; echo $$ > child; while :; do sleep 0.02; done' &
        echo $$ > leader
        wait";
    let mut service = Service::start(&[], program);
    let (leader, child) = (service.pid("leader"), service.pid("child"));
    let first = service.kill_guardian();
    kill(leader);
    service.pid("leader2");
    eventually("the first signal", || service.path("term").exists());
    eventually("the second guardian", || service.guardian().is_some());
    assert_ne!(service.guardian(), Some(first));
    assert!(is_alive(child));
    service.signal(Signal::KILL);
    service.wait();
    service.until_left(&[]);
}

#[test]
fn a_guardian_is_replaced_although_no_process_starts() {
    let mut service = Service::start(&[], WRAPPER);
    service.pid("leader");
    service.pid("child");
    // Each is replaced, also those that did not last.
    for _ in 0..3 {
        let first = service.kill_guardian();
        eventually("the next guardian", || service.guardian().is_some());
        assert_ne!(service.guardian(), Some(first));
    }
    service.signal(Signal::KILL);
    service.wait();
    service.until_left(&[]);
}

/// The old one has the settings of the program before, and keeps its file in use.
#[test]
fn an_upgraded_supervisor_has_a_guardian_of_its_own() {
    let mut service = Service::start(&[], WRAPPER);
    service.pid("leader");
    service.pid("child");
    eventually("the first guardian", || service.guardian().is_some());
    let first = service.guardian();
    service.upgrade();
    eventually("the second guardian", || {
        service
            .guardian()
            .is_some_and(|second| Some(second) != first)
    });
    assert_eq!(first.and_then(stat), None);
    service.signal(Signal::KILL);
    service.wait();
    service.until_left(&[]);
}

#[test]
fn no_signal_is_ignored_or_blocked_by_accident() {
    let program = "grep -E 'Sig(Ign|Blk)' /proc/self/status > new; mv new signals; echo $$ > leader; exec sleep 1000";
    // As `nohup`, a shell's `&` without job control, and some daemons do.
    let wrapper = "trap '' HUP INT QUIT PIPE CHLD USR1 TSTP; exec \"$@\"";
    let mut service = Service::start_by(wrapper, &[], program);
    service.pid("leader");
    let signals = service.read("signals");
    for line in signals.lines() {
        let set = line.split_whitespace().nth(1).unwrap();
        let set = u64::from_str_radix(set, 16).unwrap();
        // The C library keeps the signals 32 and 33 for itself, and resets neither. SIGTTOU (22) is ignored on purpose
        // where this test runs in a terminal.
        assert_eq!(set & !(3 << 31 | 1 << 21), 0, "{signals}");
    }
    assert_eq!(signals.lines().count(), 2);
    // The supervisor itself reacts to the signals that it documents.
    service.signal(Signal::INT);
    assert_eq!(service.wait().code(), Some(0));
}
