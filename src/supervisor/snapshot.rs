//! Writes a [`Fleet`] and [`Stragglers`] to records, and makes them from records.

use std::time::{Duration, Instant};

use super::fleet::backoff::Backoff;
use super::fleet::process::{Process, Size, Stage, Watch};
use super::fleet::slot::{Death, MAX_DEATHS, Slot};
use super::fleet::{FinishedRestart, Fleet, Policy};
use super::stragglers::{self, Ending, Stragglers};
use crate::clock::{Deadline, in_millis};
use crate::notify;
use crate::wire::{
    DeathRecord, FleetRecord, ProcessRecord, RestartRecord, SlotRecord, StageRecord,
    StragglersRecord, StragglersStage, seconds,
};

pub(super) fn age_of(since: Instant) -> u64 {
    in_millis(since.elapsed())
}

pub(super) fn time_before(age_ms: u64, now: Instant) -> Instant {
    now.checked_sub(Duration::from_millis(age_ms))
        .unwrap_or(now)
}

fn time_to(deadline: Deadline) -> Option<u64> {
    deadline.time_left(Instant::now()).map(in_millis)
}

// ---- taking a snapshot ----

/// A record of a fleet that is settled: no round is in progress, and no process has a successor.
pub(super) fn record_fleet(fleet: &Fleet) -> FleetRecord {
    let last_restart = fleet.last_restart.as_ref();
    FleetRecord {
        sent_ready: fleet.sent_ready,
        has_been_ready: fleet.has_been_ready,
        exit_code: fleet.exit_code,
        last_restart: last_restart.map(|restart| RestartRecord {
            error: restart.error.clone(),
            took_seconds: seconds(restart.took),
            age_ms: age_of(restart.ended_at),
        }),
        recycle_in_ms: time_to(fleet.recycle_not_before),
        scale: fleet.scale.wanted,
        slots: fleet.slots.iter().map(record_slot).collect(),
        processes: fleet.draining.iter().map(record_process).collect(),
    }
}

fn record_slot(slot: &Slot) -> SlotRecord {
    SlotRecord {
        generation: slot.generation,
        restarts: slot.restarts,
        failures: slot.backoff.failures,
        start_in_ms: time_to(slot.start_at),
        recycled_for_size_ms: slot.recycled_for_size.map(age_of),
        deaths: slot.deaths.iter().map(record_death).collect(),
        current: slot.current.as_ref().map(record_process),
    }
}

fn record_death(death: &Death) -> DeathRecord {
    DeathRecord {
        age_ms: age_of(death.at),
        why: notify::one_line(&death.why),
    }
}

fn record_process(process: &Process) -> ProcessRecord {
    ProcessRecord {
        slot: process.slot,
        pid: process.pid,
        generation: process.generation,
        age_ms: age_of(process.started_at),
        ready_ms: process.ready_since.map(age_of),
        stage: record_stage(process.stage),
        is_adopted: process.is_adopted,
        starts_successors: process.starts_successors,
        watchdog_ms: process.watchdog.map(in_millis),
        listeners: process.listeners.clone(),
        status: process.status.clone(),
        requests: process.requests,
        first_size: process.size.map(|size| size.first),
        has_lane: process.has_lane,
        has_left: process.has_left,
    }
}

fn record_stage(stage: Stage) -> StageRecord {
    match stage {
        Stage::Starting { ready_by } => StageRecord::Starting {
            left_ms: time_to(ready_by),
        },
        Stage::Serving { watch } => StageRecord::Serving {
            is_watched: watch != Watch::Off,
        },
        Stage::Stopping { exit_by, by_itself } => StageRecord::Stopping {
            left_ms: time_to(exit_by),
            by_itself,
        },
        Stage::Aborted { kill_at } => StageRecord::Aborted {
            left_ms: time_to(kill_at),
        },
    }
}

pub(super) fn record_stragglers(stragglers: &Stragglers) -> Vec<StragglersRecord> {
    let groups = stragglers.groups.iter().map(|one| (Some(one.group), one));
    let all = stragglers.all.iter().map(|all| (None, all));
    let record = |(group, ending): (Option<u32>, &Ending)| StragglersRecord {
        group,
        stage: match ending.stage {
            stragglers::Stage::New => StragglersStage::New,
            stragglers::Stage::Terminated => StragglersStage::Terminated,
            stragglers::Stage::Killed => StragglersStage::Killed,
        },
        left_ms: time_to(ending.deadline),
    };
    groups.chain(all).map(record).collect()
}

// ---- going on from a snapshot ----

/// Makes a fleet of a record. If the new policy has fewer slots, the processes in the others drain;
/// if more, the slots that are new start processes. A number that was asked for at run time stays.
pub(super) fn restore_fleet(record: FleetRecord, policy: Policy, now: Instant, seed: u64) -> Fleet {
    let mut fleet = Fleet::new(policy, now, seed);
    fleet.sent_ready = record.sent_ready;
    fleet.has_been_ready = record.has_been_ready;
    fleet.exit_code = record.exit_code;
    fleet.scale.wanted = record.scale;
    if record.recycle_in_ms.is_some() {
        fleet.recycle_not_before = deadline_in(record.recycle_in_ms, now);
    }
    fleet.last_restart = record.last_restart.map(|restart| FinishedRestart {
        error: restart.error,
        took: Duration::try_from_secs_f64(restart.took_seconds).unwrap_or_default(),
        ended_at: time_before(restart.age_ms, now),
    });
    let processes = record.processes.into_iter();
    fleet.draining = processes
        .map(|process| restore_process(process, now))
        .collect();
    let slots = record.slots.into_iter();
    fleet.slots = slots.map(|slot| restore_slot(slot, now)).collect();
    fleet
}

/// Goes on to end what the program before has begun to end.
pub(super) fn restore_stragglers(
    stragglers: &mut Stragglers,
    records: Vec<StragglersRecord>,
    now: Instant,
) {
    for record in records {
        let ending = Ending {
            group: record.group.unwrap_or_default(),
            stage: match record.stage {
                StragglersStage::New => stragglers::Stage::New,
                StragglersStage::Terminated => stragglers::Stage::Terminated,
                StragglersStage::Killed => stragglers::Stage::Killed,
            },
            deadline: deadline_in(record.left_ms, now),
        };
        match record.group {
            Some(_) => stragglers.groups.push(ending),
            None => (stragglers.all, stragglers.has_ended_all) = (Some(ending), true),
        }
        stragglers.next_check = Some(now);
    }
}

fn restore_slot(record: SlotRecord, now: Instant) -> Slot {
    let deaths = record.deaths.into_iter().map(|death| Death {
        at: time_before(death.age_ms, now),
        why: death.why,
    });
    Slot {
        generation: record.generation,
        restarts: record.restarts,
        backoff: Backoff {
            failures: record.failures,
        },
        recycled_for_size: record.recycled_for_size_ms.map(|age| time_before(age, now)),
        deaths: deaths.take(MAX_DEATHS).collect(),
        current: record.current.map(|process| restore_process(process, now)),
        ..Slot::new(deadline_in(record.start_in_ms, now))
    }
}

fn restore_process(record: ProcessRecord, now: Instant) -> Process {
    let watchdog = record.watchdog_ms.map(Duration::from_millis);
    let ready_since = record.ready_ms.map(|age| time_before(age, now));
    Process {
        slot: record.slot,
        generation: record.generation,
        started_at: time_before(record.age_ms, now),
        ready_since,
        stage: restore_stage(record.stage, watchdog, now),
        is_adopted: record.is_adopted,
        starts_successors: record.starts_successors,
        watchdog,
        status: record.status,
        requests: record.requests,
        size: record.first_size.map(|first| Size { first, now: first }),
        listeners: record.listeners,
        has_lane: record.has_lane,
        has_left: record.has_left,
        ..Process::new(record.pid, Deadline::NEVER, now)
    }
}

fn restore_stage(record: StageRecord, watchdog: Option<Duration>, now: Instant) -> Stage {
    match record {
        StageRecord::Starting { left_ms } => Stage::Starting {
            ready_by: deadline_in(left_ms, now),
        },
        StageRecord::Serving { is_watched } => Stage::Serving {
            watch: match watchdog.filter(|_| is_watched) {
                Some(limit) => Watch::OnTime {
                    until: Deadline::after(now, limit),
                },
                None => Watch::Off,
            },
        },
        StageRecord::Stopping { left_ms, by_itself } => Stage::Stopping {
            exit_by: deadline_in(left_ms, now),
            by_itself,
        },
        StageRecord::Aborted { left_ms } => Stage::Aborted {
            kill_at: deadline_in(left_ms, now),
        },
    }
}

fn deadline_in(left_ms: Option<u64>, now: Instant) -> Deadline {
    let deadline = |ms| Deadline::after(now, Duration::from_millis(ms));
    left_ms.map_or(Deadline::NEVER, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Supervisor;
    use crate::supervisor::fleet::event::{Effect, Event, Exit, Notice};
    use crate::sys::Signal;
    use crate::wire::{Record, Snapshot};

    /// A fleet of one process, whose recycling has failed 30 s ago.
    fn fleet_after_a_failed_recycling(policy: &Policy) -> Fleet {
        let begin = Instant::now() - Duration::from_secs(130);
        let mut fleet = Fleet::new(policy.clone(), begin, 1);
        let ready = Notice {
            ready: true,
            ..Notice::default()
        };
        let exit = Exit {
            code: Some(1),
            how: "exit status: 1".to_owned(),
        };
        for (at, event) in [
            (0, Event::Tick),
            (0, Event::Started { slot: 0, pid: 100 }),
            (
                0,
                Event::Notified {
                    pid: 100,
                    notice: ready,
                },
            ),
            (
                0,
                Event::Measured {
                    pid: 100,
                    bytes: 1000,
                },
            ),
            (100, Event::Tick),
            (100, Event::Started { slot: 0, pid: 101 }),
            (100, Event::Exited { pid: 101, exit }),
        ] {
            fleet.handle(event, begin + Duration::from_secs(at));
        }
        fleet
    }

    /// The exec of an upgrade takes the fleet through these bytes.
    fn upgraded(fleet: &Fleet, policy: Policy) -> Fleet {
        let record = Snapshot {
            fleet: record_fleet(fleet),
            ..Snapshot::default()
        };
        let bytes = record.encode().unwrap();
        let record = Snapshot::decode(bytes.as_bytes()).unwrap();
        let mut fleet = restore_fleet(record.fleet, policy, Instant::now(), 1);
        fleet.handle(Event::Replaced, Instant::now());
        fleet
    }

    #[test]
    fn a_recycling_that_has_failed_is_not_repeated_at_once_after_an_upgrade() {
        let Supervisor(mut settings) = Supervisor::new();
        settings.policy.recycling.recycle_after = Some(Duration::from_secs(100));
        settings.policy.recycling.recycle_above = Some(1000);
        let fleet = fleet_after_a_failed_recycling(&settings.policy);
        let mut fleet = upgraded(&fleet, settings.policy);
        let mut starts_after = |seconds| {
            let at = Instant::now() + Duration::from_secs(seconds);
            let effects = fleet.handle(Event::Tick, at);
            let is_start = |effect: &Effect| matches!(effect, Effect::Start { .. });
            effects.iter().any(is_start)
        };
        assert!(!starts_after(0));
        assert!(!starts_after(29));
        assert!(starts_after(31));
    }

    #[test]
    fn stragglers_have_the_time_that_is_left_after_an_upgrade() {
        use stragglers::Step;
        let (now, whole) = (Instant::now(), Duration::from_secs(60));
        let (never, stop) = (Deadline::NEVER, Deadline::after(now, whole));
        let ending = |group, stage| Ending {
            group,
            stage,
            deadline: stop,
        };
        let before = Stragglers {
            groups: vec![
                ending(7, stragglers::Stage::New),
                ending(8, stragglers::Stage::Terminated),
            ],
            all: Some(ending(0, stragglers::Stage::Killed)),
            ..Stragglers::default()
        };
        let record = Snapshot {
            stragglers: record_stragglers(&before),
            ..Snapshot::default()
        };
        let bytes = record.encode().unwrap();
        let record = Snapshot::decode(bytes.as_bytes()).unwrap();
        let mut after = Stragglers::default();
        restore_stragglers(&mut after, record.stragglers, now);
        assert_eq!(after.groups().collect::<Vec<_>>(), [7, 8]);
        assert!(after.has_ended_all && after.next_check == Some(now));
        let mut endings: Vec<Ending> = after.groups.into_iter().chain(after.all).collect();
        let mut steps = |at: Instant| -> Vec<Step> {
            let each = endings.iter_mut();
            each.map(|ending| ending.step(true, never, at)).collect()
        };
        let (term, kill) = (Step::Send(Signal::Terminate), Step::Send(Signal::Kill));
        assert_eq!(steps(now), [term, Step::Wait, kill]);
        assert_eq!(steps(now + whole), [kill, kill, Step::Forget]);
    }

    #[test]
    fn the_size_of_a_fresh_process_is_known_after_an_upgrade() {
        let Supervisor(mut settings) = Supervisor::new();
        settings.policy.recycling.recycle_after = Some(Duration::from_secs(100));
        settings.policy.recycling.recycle_above = Some(1000);
        let fleet = fleet_after_a_failed_recycling(&settings.policy);
        settings.policy.recycling.recycle_after = None;
        let mut fleet = upgraded(&fleet, settings.policy);
        let (pid, bytes) = (100, 1001);
        let at = Instant::now() + Duration::from_secs(31);
        let effects = fleet.handle(Event::Measured { pid, bytes }, at);
        let is_start = |effect: &Effect| matches!(effect, Effect::Start { .. });
        assert!(effects.iter().any(is_start), "{effects:?}");
    }
}
