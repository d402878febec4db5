//! The simulation of the supervisor's policy, `src/supervisor/fleet`: see [`simulation`]. The
//! benchmark `fleet` plays more histories.

use fleet::backoff::BREAKER_LIMIT;

#[path = "../src/clock.rs"]
#[allow(dead_code)] // The policy needs deadlines only.
mod clock;
#[path = "../src/supervisor/fleet/mod.rs"]
#[allow(dead_code)] // The status and the snapshot read more of the fleet than the simulation.
mod fleet;
#[path = "fleet/rules.rs"]
mod rules;
#[path = "fleet/mod.rs"]
mod simulation;
#[path = "fleet/sys.rs"]
mod sys;

/// How many histories a test run plays.
const HISTORIES: u64 = 10_000;

#[test]
fn the_policy_keeps_its_promises_in_all_histories() {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let failures = std::thread::scope(|scope| {
        let play = |first| {
            (first..HISTORIES)
                .step_by(threads as usize)
                .find_map(simulation::check)
        };
        let threads: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || play(first)))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .map(|result| result.expect("the simulation itself has failed"))
            .collect::<Vec<_>>()
    });
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The model of the back-off in the simulation is as strict as the policy.
#[test]
fn the_simulation_knows_the_settings_of_the_back_off() {
    assert_eq!(BREAKER_LIMIT, simulation::BREAKER_LIMIT);
}
