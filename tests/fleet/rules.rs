//! Rules of the policy, one by one: events, and the effects that follow.

use std::time::{Duration, Instant};

use crate::fleet::backoff::BackoffSettings;
use crate::fleet::event::{Effect, Event, Exit, NamedProcess, Notice, Severity};
use crate::fleet::recycling::RecyclingSettings;
use crate::fleet::{Fleet, Policy};
use crate::sys::Signal;

/// A fleet and its clock. The processes of slot 0 have the ids 100, 101 and so on, those of slot 1
/// 200, 201 and so on.
struct Played {
    fleet: Fleet,
    now: Instant,
    started: Vec<u32>,
}

pub(crate) fn policy() -> Policy {
    Policy {
        processes: 1,
        ready_timeout: Duration::from_secs(60),
        ready_after: None,
        stop_timeout: Duration::from_secs(60),
        watchdog: None,
        abort_timeout: Duration::from_secs(5),
        backoff: BackoffSettings {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(30),
        },
        max_draining: 4,
        recycling: RecyclingSettings::default(),
        restart_after_success: true,
        no_restart_code: Some(78),
        give_up_after: None,
        stop_signal: Signal::Terminate,
        restart_signal: None,
        starts_all: false,
    }
}

impl Played {
    /// All slots serve. The processes are servers of this crate if not `starts_all`.
    fn serving(policy: Policy) -> Self {
        let now = Instant::now();
        let is_server = !policy.starts_all;
        let mut played = Self {
            started: vec![0; 1024],
            fleet: Fleet::new(policy, now, 1),
            now,
        };
        played.tick(0);
        for slot in 0..played.fleet.slots.len() {
            played.ready(100 * (slot as u32 + 1), is_server.then_some(1));
            played.tick(1);
        }
        played
    }

    /// Handles an event. Returns its effects in words; each start succeeds at once.
    fn handle(&mut self, event: Event) -> Vec<String> {
        let mut words = Vec::new();
        for effect in self.fleet.handle(event, self.now) {
            match effect {
                Effect::Start { slot, .. } => {
                    let pid = 100 * (slot as u32 + 1) + self.started[slot];
                    self.started[slot] += 1;
                    words.push(format!("start {pid}"));
                    words.extend(self.handle(Event::Started { slot, pid }));
                }
                Effect::Signal { pid, signal } => words.push(format!("{signal:?} {pid}")),
                Effect::Leave {
                    pid,
                    recipient,
                    signal,
                } => {
                    let instead = match signal {
                        Signal::Terminate => String::new(),
                        other => format!(" or {other:?}"),
                    };
                    words.push(format!("leave {pid} -> {recipient}{instead}"));
                }
                Effect::Abort { pid } => words.push(format!("abort {pid}")),
                Effect::Reply { error, .. } => {
                    words.push(format!("reply {}", error.unwrap_or("ok".to_owned())));
                }
                Effect::Log(Severity::Error, text) => words.push(format!("error {text}")),
                Effect::Log(_, text) if text.contains("requests") => words.push(text),
                _ => {}
            }
        }
        words
    }

    fn tick(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.handle(Event::Tick)
    }

    fn notify(&mut self, pid: u32, notice: Notice) -> Vec<String> {
        self.handle(Event::Notified { pid, notice })
    }

    fn lane(&mut self, pid: u32) {
        let notice = Notice {
            generation: Some(1),
            has_lane: true,
            ..Notice::default()
        };
        assert!(self.notify(pid, notice).is_empty());
    }

    fn ready(&mut self, pid: u32, generation: Option<u64>) -> Vec<String> {
        let notice = Notice {
            ready: true,
            generation,
            ..Notice::default()
        };
        self.notify(pid, notice)
    }
}

#[test]
fn a_main_pid_completes_a_restart_if_its_process_is_new_and_lives() {
    let second = Duration::from_secs(1);
    for (started_after, has_ended, expected) in [
        (second, false, vec!["reply ok"]),
        // The restart goes on with a process that is older.
        (Duration::ZERO, false, vec!["Hangup 150"]),
        (second, true, vec!["error", "reply process 150 exited"]),
        // The restart waits for the process that is started next.
        (Duration::ZERO, true, vec![]),
    ] {
        let mut played = Played::serving(policy());
        let before = played.now;
        played.tick(1);
        let client = Some(1);
        assert_eq!(played.handle(Event::Restart { client }), ["Hangup 100"]);
        played.now += second;
        let named = NamedProcess {
            pid: 150,
            started_at: before + started_after,
            has_ended,
        };
        let notice = Notice {
            ready: true,
            generation: Some(2),
            main_pid: Some(named),
            ..Notice::default()
        };
        let effects = played.notify(100, notice);
        let is_expected = |(effect, start): (&String, &&str)| effect.starts_with(start);
        assert!(
            effects.len() == expected.len() && effects.iter().zip(&expected).all(is_expected),
            "{started_after:?}, {has_ended}: {effects:?}"
        );
        if expected.is_empty() {
            assert_eq!(played.tick(0), ["start 101"]);
            assert_eq!(played.ready(101, Some(3)), ["reply ok"]);
        }
    }
}

#[test]
fn a_scale_is_answered_when_so_many_processes_serve() {
    let mut played = Played::serving(policy());
    let scale = |processes, client| Event::Scale {
        processes,
        client: Some(client),
    };
    assert!(played.handle(scale(3, 1)).is_empty());
    assert_eq!(played.tick(0), ["start 200", "start 300"]);
    assert!(played.ready(200, Some(1)).is_empty());
    assert_eq!(played.ready(300, Some(1)), ["reply ok"]);
    // The surplus processes finish their requests.
    assert_eq!(
        played.handle(scale(1, 2)),
        ["Terminate 200", "Terminate 300", "reply ok"]
    );
    // A newer request, a process that fails, and a stop end the wait.
    assert!(played.handle(scale(2, 3)).is_empty());
    let effects = played.handle(scale(3, 4));
    assert_eq!(effects, ["reply another request asks for 3 processes"]);
    assert_eq!(played.tick(0), ["start 201", "start 301"]);
    let exit = Exit {
        code: Some(1),
        how: "exit code 1".to_owned(),
    };
    let effects = played.handle(Event::Exited { pid: 201, exit });
    assert_eq!(
        effects,
        ["reply process 201 exited before it was ready (exit code 1)"]
    );
    assert!(played.handle(scale(3, 5)).is_empty());
    let effects = played.handle(Event::Stop);
    assert!(effects.contains(&"reply the supervisor is being stopped".to_owned()));
    let effects = played.handle(scale(3, 6));
    assert_eq!(effects, ["reply the supervisor is being stopped"]);
}

#[test]
fn surplus_processes_leave_their_connections_to_those_that_stay_in_turn() {
    let mut played = Played::serving(Policy {
        processes: 6,
        ..policy()
    });
    let scale = |processes| Event::Scale {
        processes,
        client: None,
    };
    // Process 500 has no lane, and process 200 is no recipient.
    for pid in [100, 300, 400, 600] {
        played.lane(pid);
    }
    assert_eq!(
        played.handle(scale(3)),
        ["leave 400 -> 100", "Terminate 500", "leave 600 -> 300"]
    );
    assert_eq!(played.handle(scale(2)), ["leave 300 -> 100"]);
    // Process 400 cannot be told.
    let failed = Event::LeaveFailed {
        pid: 400,
        signal: Signal::Terminate,
    };
    assert_eq!(played.handle(failed), ["Terminate 400"]);
    // A stop tells those that were sent no signal.
    assert_eq!(
        played.handle(Event::Stop),
        [
            "Terminate 100",
            "Terminate 200",
            "Terminate 600",
            "Terminate 300"
        ]
    );
}

/// The supervisor starts the successors, as of any other program.
#[test]
fn a_replaced_process_leaves_its_connections_to_its_successor() {
    let mut played = Played::serving(Policy {
        starts_all: true,
        restart_signal: Some(Signal::Quit),
        ..policy()
    });
    played.lane(100);
    let restart = |client| Event::Restart {
        client: Some(client),
    };
    assert_eq!(played.handle(restart(1)), ["start 101"]);
    played.lane(101);
    let effects = played.ready(101, Some(1));
    assert_eq!(effects, ["leave 100 -> 101 or Quit", "reply ok"]);
    // The next version keeps its connections.
    assert_eq!(played.handle(restart(2)), ["start 102"]);
    let effects = played.ready(102, Some(1));
    assert_eq!(effects, ["Quit 101", "reply ok"]);
}

#[test]
fn a_surplus_process_that_is_being_replaced_stops() {
    let mut played = Played::serving(Policy {
        processes: 2,
        ..policy()
    });
    for pid in [100, 200] {
        played.lane(pid);
    }
    let notice = Notice {
        successor: Some(NamedProcess {
            pid: 250,
            started_at: played.now,
            has_ended: false,
        }),
        ..Notice::default()
    };
    assert!(played.notify(200, notice).is_empty());
    let scale = Event::Scale {
        processes: 1,
        client: None,
    };
    assert_eq!(played.handle(scale), ["Terminate 200", "Terminate 250"]);
}

#[test]
fn a_scale_to_the_same_number_joins() {
    let mut played = Played::serving(policy());
    for client in [1, 2] {
        let client = Some(client);
        let scale = Event::Scale {
            processes: 2,
            client,
        };
        assert!(played.handle(scale).is_empty());
    }
    assert_eq!(played.tick(0), ["start 200"]);
    assert_eq!(played.ready(200, Some(1)), ["reply ok", "reply ok"]);
}

#[test]
fn sigusr1_reopens_nothing_if_it_stops_processes() {
    let mut played = Played::serving(policy());
    assert_eq!(played.handle(Event::User1), ["User1 100"]);
    for (stop_signal, restart_signal) in [
        (Signal::User1, None),
        (Signal::Terminate, Some(Signal::User1)),
    ] {
        let mut played = Played::serving(Policy {
            stop_signal,
            restart_signal,
            ..policy()
        });
        assert!(played.handle(Event::User1).is_empty());
    }
}

#[test]
fn fewer_slots_keep_the_processes_that_serve() {
    let mut played = Played::serving(Policy {
        processes: 3,
        ..policy()
    });
    let exit = Exit {
        code: Some(78),
        how: "exit code 78".to_owned(),
    };
    played.handle(Event::Exited { pid: 100, exit });
    let client = Some(1);
    let processes = 1;
    // Slot 0 was given up, and gets the process of slot 1.
    let effects = played.handle(Event::Scale { processes, client });
    assert_eq!(effects, ["Terminate 300", "reply ok"]);
    // The number stays when the supervisor is replaced.
    played.fleet.policy.processes = 3;
    played.handle(Event::Replaced);
    assert_eq!(played.fleet.slots.len(), 1);
}

/// During a restart, the slot that is being replaced has lost its process when the number of slots
/// becomes smaller: a surplus process serves until the successor does.
#[test]
fn fewer_slots_during_a_restart_keep_a_process_that_serves() {
    let mut played = Played::serving(Policy {
        processes: 4,
        ..policy()
    });
    played.tick(1);
    let restart = Event::Restart { client: Some(1) };
    assert_eq!(played.handle(restart), ["Hangup 100"]);
    let named = NamedProcess {
        pid: 150,
        started_at: played.now,
        has_ended: false,
    };
    let notice = Notice {
        successor: Some(named),
        ..Notice::default()
    };
    assert!(played.notify(100, notice).is_empty());
    let exit = Exit {
        code: None,
        how: "signal: 9".to_owned(),
    };
    assert!(played.handle(Event::Exited { pid: 100, exit }).is_empty());
    let scale = |processes, client| Event::Scale {
        processes,
        client: Some(client),
    };
    assert_eq!(played.handle(scale(2, 2)), ["Terminate 400"]);
    assert_eq!(
        played.handle(scale(1, 3)),
        [
            "reply another request asks for 1 processes",
            "Terminate 300"
        ]
    );
    assert_eq!(played.fleet.slots.len(), 2);
    assert_eq!(
        played.ready(150, Some(2)),
        ["reply ok", "Terminate 200", "reply ok"]
    );
    assert_eq!(played.fleet.slots.len(), 1);
}

/// As above, but the restart fails: the surplus process takes the slot that stays.
#[test]
fn a_failed_restart_leaves_the_process_that_serves() {
    let mut played = Played::serving(Policy {
        processes: 2,
        starts_all: true,
        ..policy()
    });
    let exit = |code| Exit {
        code,
        how: "it exits".to_owned(),
    };
    let restart = Event::Restart { client: Some(1) };
    assert_eq!(played.handle(restart), ["start 101"]);
    let exited = |pid, code| Event::Exited {
        pid,
        exit: exit(code),
    };
    assert!(played.handle(exited(100, None)).is_empty());
    let scale = Event::Scale {
        processes: 1,
        client: Some(2),
    };
    assert!(played.handle(scale).is_empty());
    let effects = played.handle(exited(101, Some(1)));
    assert!(
        effects.contains(&"reply process 101 exited before it was ready (it exits)".to_owned())
    );
    assert!(!effects.iter().any(|effect| effect.starts_with("Terminate")));
    let current = played.fleet.slots[0].current.as_ref();
    assert_eq!(current.map(|current| current.pid), Some(200));
    assert_eq!(played.fleet.slots.len(), 1);
}

#[test]
fn processes_are_recycled_one_at_a_time_and_each_serves_until_its_successor_does() {
    let limit = Duration::from_secs(100);
    let mut played = Played::serving(Policy {
        processes: 2,
        starts_all: true,
        recycling: RecyclingSettings {
            recycle_after: Some(limit),
            recycle_above: Some(1000),
            ..RecyclingSettings::default()
        },
        ..policy()
    });
    // The jitter shortens by a tenth at most. Process 100 is a second older than process 200.
    assert!(played.tick(88).is_empty());
    assert_eq!(played.tick(12), ["start 101"]);
    assert!(played.tick(5).is_empty());
    assert_eq!(played.ready(101, None), ["Terminate 100", "start 201"]);
    // A restart waits for the recycling, and follows it.
    let client = Some(1);
    assert!(played.handle(Event::Restart { client }).is_empty());
    assert_eq!(played.ready(201, None), ["Terminate 200", "start 102"]);
    assert_eq!(played.ready(102, None), ["Terminate 101", "start 202"]);
    assert_eq!(played.ready(202, None), ["Terminate 201", "reply ok"]);
    let measured = |pid, bytes| Event::Measured { pid, bytes };
    assert!(played.handle(measured(102, 1000)).is_empty());
    assert!(played.handle(measured(202, 1000)).is_empty());
    assert_eq!(played.handle(measured(202, 1001)), ["start 203"]);
    // The process serves on if the recycling fails. The next one begins after a pause.
    let exit = Exit {
        code: Some(1),
        how: "exit code 1".to_owned(),
    };
    let effects = played.handle(Event::Exited { pid: 203, exit });
    assert!(effects.iter().all(|effect| effect.starts_with("error ")));
    assert!(played.tick(59).is_empty());
    assert_eq!(played.tick(1), ["start 204"]);
    assert_eq!(played.ready(204, None), ["Terminate 202"]);
    let client = Some(2);
    assert_eq!(played.handle(Event::Restart { client }), ["start 103"]);
}

/// The next process would be as large as this one: without the rule, it would be replaced for ever.
#[test]
fn a_process_that_is_large_from_the_beginning_is_recycled_when_it_has_doubled() {
    let mut played = Played::serving(Policy {
        starts_all: true,
        recycling: RecyclingSettings {
            recycle_above: Some(1 << 20),
            ..RecyclingSettings::default()
        },
        ..policy()
    });
    let measured = |pid, mib: u64| Event::Measured {
        pid,
        bytes: mib << 20,
    };
    assert_eq!(
        played.handle(measured(100, 3)),
        [
            "error process 100 occupies 3.0 MiB as it begins to serve, more than recycle_above allows \
          (1.0 MiB): such a process is recycled when it has doubled"
        ]
    );
    assert!(played.tick(100).is_empty());
    assert!(played.handle(measured(100, 6)).is_empty());
    assert_eq!(played.handle(measured(100, 7)), ["start 101"]);
    assert_eq!(played.ready(101, None), ["Terminate 100"]);
    // It is logged once.
    assert!(played.handle(measured(101, 3)).is_empty());
    // The next recycling for the size is a minute after the last one.
    assert!(played.handle(measured(101, 7)).is_empty());
    assert!(played.tick(59).is_empty());
    assert_eq!(played.tick(1), ["start 102"]);
}

#[test]
fn processes_are_recycled_when_they_have_told_of_many_requests() {
    let settings = RecyclingSettings {
        recycle_after_requests: Some(1_000),
        ..RecyclingSettings::default()
    };
    let mut played = Played::serving(Policy {
        processes: 2,
        recycling: settings,
        ..policy()
    });
    let told = |count| Notice {
        requests: Some(count),
        ..Notice::default()
    };
    // The jitter shortens by a tenth at most.
    assert!(played.notify(100, told(899)).is_empty());
    assert!(played.notify(200, told(0)).is_empty());
    let effects = played.notify(100, told(1_000));
    let text = "recycling the process of slot 0: it has served 1000 requests";
    assert_eq!(effects, [text, "Hangup 100"]);
    // One process at a time.
    assert!(played.notify(200, told(2_000)).is_empty());
    assert!(played.tick(60).is_empty());
    let notice = Notice {
        ready: true,
        generation: Some(2),
        main_pid: Some(NamedProcess {
            pid: 150,
            started_at: played.now,
            has_ended: false,
        }),
        ..Notice::default()
    };
    let text = "recycling the process of slot 1: it has served 2000 requests";
    assert_eq!(played.notify(100, notice), [text, "Hangup 200"]);
}

#[test]
fn a_program_that_does_not_tell_of_its_requests_is_named_once() {
    let mut played = Played::serving(Policy {
        starts_all: true,
        recycling: RecyclingSettings {
            recycle_after_requests: Some(1_000),
            ..RecyclingSettings::default()
        },
        ..policy()
    });
    assert!(played.tick(8).is_empty());
    let text = "process 100 does not tell how many requests it has served, as servers of the crate \
                handover do: recycle_after_requests has no effect on such a program";
    assert_eq!(played.tick(1), [text]);
    let client = Some(1);
    assert_eq!(played.handle(Event::Restart { client }), ["start 101"]);
    let effects = played.ready(101, None);
    assert_eq!(effects, ["Terminate 100", "reply ok"]);
    assert!(played.tick(100).is_empty());
}
