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

fn exits(after: u64) -> Fate {
    Fate {
        build: Build::Exits(after, 1),
        ..Fate::default()
    }
}

fn check(policy: Policy, decisions: Vec<Decision>) {
    let failure = play_history(History {
        seed: 0,
        policy,
        is_foreign: false,
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
    let upgrade = Act::Upgrade {
        for_client: true,
        dry_run: DryRunFate::Succeeds(0),
        slots: 2,
    };
    let scale = Act::Scale {
        for_client: true,
        slots: 2,
    };
    for resize in [upgrade, scale] {
        let decisions = vec![
            // The next process of slot 0 fails, and then the successor of the process that has
            // come from slot 2.
            fate(3, exits(300)),
            fate(4, exits(300)),
            act(250, Act::End(0, Ending::Crashes)),
            act(800, resize),
            act(900, Act::SelfRestart(1)),
            act(950, Act::End(1, Ending::Crashes)),
        ];
        check(policy.clone(), decisions);
    }
}
