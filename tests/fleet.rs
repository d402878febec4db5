//! The simulation of the supervisor's policy, `src/supervisor/fleet`: see [`simulation`]. The
//! benchmark `fleet` plays more histories.

use std::time::{Duration, Instant};

use fleet::backoff::BREAKER_LIMIT;
use fleet::event::{Effect, Event, Notice};
use fleet::{Fleet, Policy};

#[path = "../src/clock.rs"]
#[allow(dead_code)] // The policy needs deadlines only.
mod clock;
#[path = "../src/supervisor/fleet/mod.rs"]
#[allow(dead_code)] // The status and the snapshot read more of the fleet than the simulation.
mod fleet;
#[path = "fleet/rules.rs"]
mod rules;
#[path = "fleet/shapes.rs"]
mod shapes;
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

/// The supervisor waits until a process that it starts executes its program. It does run meanwhile.
#[test]
fn a_slow_start_is_not_said_to_be_a_stall() {
    let policy = Policy {
        processes: 2,
        ..rules::policy()
    };
    let begin = Instant::now();
    let second = Duration::from_secs(1);
    // What an event leads to, and what is logged of the time that has passed.
    let play = |fleet: &mut Fleet, event, at| {
        let effects = fleet.handle(event, at);
        let logged = effects.iter().filter_map(|effect| match effect {
            Effect::Log(_, text) if text.contains("more time") => Some(text.clone()),
            _ => None,
        });
        let starts = effects.iter().filter_map(|effect| match effect {
            Effect::Start { slot, .. } => Some(*slot),
            _ => None,
        });
        (starts.collect::<Vec<_>>(), logged.collect::<Vec<_>>())
    };
    let mut fleet = Fleet::new(policy, begin, 1);
    assert_eq!(play(&mut fleet, Event::Tick, begin).0, [0]);
    let started = |slot, pid| Event::Started { slot, pid };
    assert_eq!(play(&mut fleet, started(0, 10), begin).1, [""; 0]);
    let notice = Notice {
        ready: true,
        generation: Some(1),
        ..Notice::default()
    };
    play(&mut fleet, Event::Notified { pid: 10, notice }, begin);
    assert_eq!(play(&mut fleet, Event::Tick, begin).0, [1]);
    play(&mut fleet, started(1, 11), begin);
    // The first process ends, while the second one starts and has a deadline.
    let exit = fleet::event::Exit {
        code: None,
        how: "signal: 9".to_owned(),
    };
    play(&mut fleet, Event::Exited { pid: 10, exit }, begin);
    let begin = begin + second / 2;
    assert_eq!(play(&mut fleet, Event::Tick, begin).0, [0]);
    let slow = begin + 2 * second;
    assert_eq!(
        play(&mut fleet, started(0, 12), slow).1,
        ["the supervisor was busy starting a process for 2.0 s: the processes have more time"]
    );
    assert_eq!(
        play(&mut fleet, Event::Tick, slow + 3 * second).1,
        ["the supervisor has not run for 3.0 s: the processes have more time"]
    );
}
