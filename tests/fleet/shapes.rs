//! Histories that have found a fault once, in the policy or in the simulation. The generator finds
//! such a history only among many thousands.

use std::time::Duration;

use super::rules;
use crate::fleet::Policy;
use crate::simulation::{Act, Build, Decision, DryRunFate, Ending, Fate, History, play_history};

fn fate(nth: usize, fate: Fate) -> Decision {
    Decision::Fate { nth, fate }
}

fn act(at: u64, act: Act) -> Decision {
    Decision::Act { at, act }
}

fn exits(after: u64, code: i32) -> Fate {
    Fate {
        build: Build::Exits(after, code),
        ..Fate::default()
    }
}

fn upgrade(dry_run: DryRunFate, slots: usize) -> Act {
    Act::Upgrade {
        for_client: true,
        dry_run,
        slots,
    }
}

fn scale(slots: usize) -> Act {
    Act::Scale {
        for_client: true,
        slots,
    }
}

fn check(policy: &Policy, is_foreign: bool, decisions: Vec<Decision>) {
    let failure = play_history(History {
        seed: 0,
        policy: policy.clone(),
        is_foreign,
        sends_watchdog: false,
        decisions,
    });
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

/// Slot 0 waits after a failed start, and gets the process of a surplus slot in an upgrade: with
/// the process comes the back-off of its slot, which has seen no failure.
#[test]
fn the_back_off_of_a_slot_goes_where_its_process_goes() {
    let mut policy = rules::policy();
    policy.processes = 3;
    policy.backoff.first = Duration::from_secs(1);
    policy.backoff.longest = Duration::from_secs(10);
    for resize in [upgrade(DryRunFate::Succeeds(0), 2), scale(2)] {
        let decisions = vec![
            // The next process of slot 0 fails, and then the successor of the process that has
            // come from slot 2.
            fate(3, exits(300, 1)),
            fate(4, exits(300, 1)),
            act(250, Act::End(0, Ending::Crashes)),
            act(800, resize),
            act(900, Act::SelfRestart(1)),
            act(950, Act::End(1, Ending::Crashes)),
        ];
        check(&policy, false, decisions);
    }
}

/// The dry run ends, and a process is due to be recycled at the same time: the upgrade waits.
#[test]
fn no_process_is_recycled_as_the_supervisor_is_replaced() {
    let mut policy = rules::policy();
    policy.recycling.recycle_after = Some(Duration::from_secs(20));
    let decisions = vec![
        act(16_999, upgrade(DryRunFate::Succeeds(300), 4)),
        act(17_043, Act::StallSupervisor(12_000)),
    ];
    check(&policy, true, decisions);
}

/// No process has been ready yet, and the first slot was given up. A dry run lets the supervisor
/// wait: a scale has the first slot start a process again, as it says.
#[test]
fn a_scale_starts_the_first_process_again() {
    let mut policy = rules::policy();
    policy.processes = 3;
    let decisions = vec![
        fate(0, exits(30, 78)),
        act(10, upgrade(DryRunFate::ExecFails(200), 3)),
        act(100, scale(2)),
    ];
    check(&policy, false, decisions);
}

/// A successor that nobody has announced serves in a slot that was given up. When it crashes,
/// another process is started at once.
#[test]
fn a_slot_that_was_given_up_serves_again() {
    let mut policy = rules::policy();
    policy.processes = 2;
    policy.give_up_after = Some(1);
    let late = Fate {
        lateness: 800,
        ..Fate::default()
    };
    let decisions = vec![
        fate(0, late),
        fate(1, exits(100, 1)),
        act(3_000, Act::SelfRestart(0)),
        act(5_000, Act::End(0, Ending::Crashes)),
    ];
    check(&policy, false, decisions);
}

/// In one step, a start is due in a slot, and a restart ends, after which the surplus processes of a
/// scale go to other slots: none goes to a slot in which a process is being started.
#[test]
fn no_process_moves_to_a_slot_in_which_one_starts() {
    let mut policy = rules::policy();
    policy.processes = 4;
    policy.ready_after = Some(Duration::from_millis(300));
    policy.restart_after_success = false;
    policy.backoff.first = Duration::from_secs(1);
    let never_ready = Fate {
        ending: Some((40, Ending::Crashes)),
        ..Fate::default()
    };
    let decisions = vec![
        fate(1, never_ready),
        fate(5, exits(390, 0)),
        act(4_627, Act::RestartForClient),
        act(5_079, Act::StallSupervisor(260)),
        act(5_132, scale(2)),
    ];
    check(&policy, true, decisions);
}

/// A start fails, then two processes serve, of which the second ends while its successor starts. The
/// failure of that one is the first in a row, not the second.
#[test]
fn failures_before_a_process_served_do_not_count() {
    let mut policy = rules::policy();
    policy.ready_timeout = Duration::from_secs(1);
    policy.stop_timeout = Duration::from_secs(2);
    policy.backoff.longest = Duration::from_millis(50);
    policy.max_draining = 1;
    policy.restart_after_success = false;
    policy.give_up_after = Some(2);
    policy.starts_all = true;
    let stays = Fate {
        drain: None,
        ..Fate::default()
    };
    let ends_at_once = Fate {
        build: Build::Ready(500),
        ending: Some((0, Ending::Stops(0))),
        ..Fate::default()
    };
    let never_ready = Fate {
        build: Build::Never,
        ..Fate::default()
    };
    let decisions = vec![
        fate(0, exits(259, 1)),
        fate(1, stays),
        fate(3, ends_at_once),
        fate(4, never_ready),
        act(4_741, Act::Restart),
        act(4_764, Act::Restart),
        act(4_765, Act::EndBuilding(0)),
        act(4_765, Act::SelfRestart(2)),
        act(6_094, upgrade(DryRunFate::Succeeds(300), 3)),
    ];
    check(&policy, false, decisions);
}
