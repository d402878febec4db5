//! A history: the policy, and the list of what goes wrong and what is asked for. Each decision can
//! be taken away, and the rest can still be played: what nothing decides about goes well.

use std::time::Duration;

use crate::fleet::Policy;
use crate::fleet::backoff::BackoffSettings;
use crate::fleet::recycling::RecyclingSettings;
use crate::sys::Signal;

#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    /// The program is not of this crate: it does not start its successors.
    pub(crate) is_foreign: bool,
    /// Processes of a program that is not of this crate send WATCHDOG=1.
    pub(crate) sends_watchdog: bool,
    pub(crate) decisions: Vec<Decision>,
}

#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// What becomes of the process that is started as the `nth`, from 0.
    Fate { nth: usize, fate: Fate },
    /// What happens at this time, in milliseconds.
    Act { at: u64, act: Act },
}

/// What becomes of a process. Times are in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Fate {
    pub(crate) build: Build,
    /// From being ready to the end of the handover.
    pub(crate) handover: u64,
    pub(crate) ending: Option<(u64, Ending)>,
    /// How long the process finishes requests before it exits; `None`: for ever.
    pub(crate) drain: Option<u64>,
    /// How often the process asks for 10 s more while it starts or drains, every 5 s.
    pub(crate) extensions: u32,
    pub(crate) ignores_terminate: bool,
    pub(crate) ignores_abort: bool,
    pub(crate) ignores_hangup: bool,
    /// How long the process takes to end after SIGKILL.
    pub(crate) kill_takes: u64,
    pub(crate) lost: Option<Lost>,
    /// How large the process is when it begins to serve. The limit is 1.
    pub(crate) size: u64,
    /// Notifications of this process arrive so much later.
    pub(crate) lateness: u64,
    /// The process leaves a lane.
    pub(crate) has_lane: bool,
    /// The process cannot be told over its lane.
    pub(crate) leave_fails: bool,
    /// READY=1 comes with MAINPID of the sender itself, and comes twice.
    pub(crate) names_itself: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Build {
    CannotStart,
    Ready(u64),
    Never,
    Exits(u64, i32),
}

/// How a process ends that serves, if not as it is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Exits(i32),
    Crashes,
    /// The process stops without having been asked to, and exits with this code.
    Stops(i32),
    Hangs,
    /// WATCHDOG=trigger.
    Triggers,
}

/// A notification that is not sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lost {
    Hello,
    Ready,
    Announcement,
    MainPid,
    Failure,
    Stopping,
}

/// Those that name a process choose the nth of those that live, modulo their number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    /// A newer version of the program is on the disk.
    Install,
    Restart,
    RestartForClient,
    Upgrade {
        for_client: bool,
        dry_run: DryRunFate,
        slots: usize,
    },
    Scale {
        for_client: bool,
        slots: usize,
    },
    Stop,
    StopNow,
    User1,
    /// A process becomes this large.
    Grow(u32, u64),
    /// A process tells that it has served this many requests. The limit is 1000.
    Serve(u32, u64),
    End(u32, Ending),
    EndBuilding(u32),
    SelfRestart(u32),
    StallSupervisor(u64),
    StallAll(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DryRunFate {
    Succeeds(u64),
    Fails(u64),
    Hangs,
    CannotStart,
    /// It succeeds, but then the program cannot be executed.
    ExecFails(u64),
}

impl Default for Fate {
    fn default() -> Self {
        Self {
            build: Build::Ready(100),
            handover: 2,
            ending: None,
            drain: Some(50),
            extensions: 0,
            ignores_terminate: false,
            ignores_abort: false,
            ignores_hangup: false,
            kill_takes: 0,
            lost: None,
            size: 1,
            lateness: 0,
            has_lane: true,
            leave_fails: false,
            names_itself: false,
        }
    }
}

impl History {
    pub(crate) fn generate(seed: u64) -> Self {
        let mut random = Random(seed);
        let is_foreign = random.one_in(4);
        let policy = random_policy(&mut random, is_foreign);
        let mut decisions = Vec::new();
        let trouble = random.pick(&[2, 3, 6]);
        for nth in 0..24 {
            if random.one_in(trouble) {
                let fate = random_fate(&mut random, &policy);
                decisions.push(Decision::Fate { nth, fate });
            }
        }
        let mut at = random.below(1_000);
        let mut next_stall = 0;
        for _ in 0..random.below(16) {
            at += match random.below(4) {
                0 => random.below(3),
                1 => random.below(60),
                2 => random.below(700),
                _ => random.below(4_000),
            };
            let act = random_act(&mut random, &policy);
            if let Act::StallAll(time) | Act::StallSupervisor(time) = act {
                // Between two stalls there is time for watchdog notifications.
                if at < next_stall {
                    continue;
                }
                next_stall = at + time + 2_000;
            }
            decisions.push(Decision::Act { at, act });
        }
        let sends_watchdog = random.one_in(2);
        if !is_foreign && random.one_in(16) {
            add_lost_successor(&mut random, &policy, &mut decisions);
        }
        if policy.recycling.recycle_after.is_some() && random.one_in(4) {
            add_upgrade_at_recycling(&mut random, &policy, &mut decisions);
        }
        Self {
            seed,
            policy,
            is_foreign,
            sends_watchdog,
            decisions,
        }
    }

    pub(crate) fn fate(&self, process: usize) -> Fate {
        let mut fates = self
            .decisions
            .iter()
            .rev()
            .filter_map(|decision| match decision {
                Decision::Fate { nth, fate } if *nth == process => Some(fate.clone()),
                _ => None,
            });
        fates.next().unwrap_or_default()
    }
}

fn random_policy(random: &mut Random, is_foreign: bool) -> Policy {
    let millis = Duration::from_millis;
    Policy {
        processes: random.pick(&[1, 1, 2, 2, 3, 4]),
        ready_timeout: millis(random.pick(&[1_000, 3_000, 10_000])),
        ready_after: (is_foreign && random.one_in(2)).then_some(millis(300)),
        stop_timeout: millis(random.pick(&[500, 2_000, 8_000])),
        watchdog: random
            .pick(&[None, None, Some(300), Some(2_000), Some(6_000)])
            .map(millis),
        abort_timeout: millis(random.pick(&[10, 500, 5_000])),
        backoff: BackoffSettings {
            first: millis(random.pick(&[100, 1_000])),
            longest: millis(random.pick(&[50, 2_000, 10_000])),
        },
        max_draining: random.pick(&[1, 2, 4]),
        restart_after_success: !random.one_in(3),
        no_restart_code: (!random.one_in(3)).then_some(78),
        starts_all: random.one_in(4),
        give_up_after: random.pick(&[None, None, None, Some(2), Some(6)]),
        stop_signal: Signal::Terminate,
        restart_signal: (is_foreign && random.one_in(2)).then_some(Signal::Window),
        recycling: RecyclingSettings {
            recycle_after_requests: random.one_in(2).then_some(1_000),
            recycle_after: random.one_in(6).then_some(millis(20_000)),
            recycle_above: random.one_in(2).then_some(1),
        },
    }
}

fn random_fate(random: &mut Random, policy: &Policy) -> Fate {
    let mut fate = Fate::default();
    let ready = policy.ready_timeout.as_millis() as u64;
    let stop = policy.stop_timeout.as_millis() as u64;
    for _ in 0..=random.below(2) {
        match random.below(19) {
            18 => fate.has_lane = false,
            17 => fate.leave_fails = true,
            16 => fate.size = 3,
            0 => fate.build = Build::CannotStart,
            1 => fate.build = Build::Ready(random.pick(&[0, 1, ready / 2, ready * 3 / 4])),
            2 => fate.build = random.pick(&[Build::Never, Build::Ready(ready + ready / 2)]),
            3 | 4 => fate.build = Build::Exits(random.below(400), random.exit_code()),
            5 => fate.handover = random.pick(&[0, 50, 500, 2_000]),
            6..=8 => fate.ending = Some((random.pick(&[0, 1, 40, 300, 2_000]), random.ending())),
            9 => fate.drain = random.pick(&[Some(0), Some(stop / 2), Some(stop * 2), None]),
            10 => {
                fate.extensions = 1 + random.below(3) as u32;
                fate.drain = Some(random.pick(&[1_000, 9_000, 14_000]));
            }
            11 => fate.ignores_terminate = true,
            12 => {
                fate.ignores_abort = true;
                fate.kill_takes = random.pick(&[0, 0, 7_000]);
                fate.drain = None;
            }
            13 => fate.ignores_hangup = true,
            14 => {
                fate.lost = Some(random.pick(&[
                    Lost::Hello,
                    Lost::Ready,
                    Lost::Announcement,
                    Lost::MainPid,
                    Lost::Failure,
                    Lost::Stopping,
                ]));
            }
            _ if random.one_in(2) => fate.lateness = random.pick(&[1, 20, 800]),
            _ => fate.names_itself = true,
        }
    }
    if fate.lost == Some(Lost::MainPid) {
        // The supervisor hears of the successor when the process exits.
        fate.drain = fate.drain.or(Some(50));
    }
    fate
}

fn random_act(random: &mut Random, policy: &Policy) -> Act {
    let any = random.below(8) as u32;
    match random.below(24) {
        0 | 1 => Act::Install,
        2 => Act::Restart,
        3 => Act::Scale {
            for_client: random.one_in(2),
            slots: 1 + random.below(4) as usize,
        },
        4..=8 => Act::RestartForClient,
        9..=11 => Act::Upgrade {
            for_client: random.one_in(2),
            dry_run: match random.below(8) {
                0 => DryRunFate::Fails(random.below(300)),
                1 => DryRunFate::Hangs,
                2 => DryRunFate::CannotStart,
                3 => DryRunFate::ExecFails(random.below(300)),
                _ => DryRunFate::Succeeds(random.pick(&[0, 20, 300, 3_000])),
            },
            slots: match random.one_in(2) {
                true => policy.processes,
                false => 1 + random.below(4) as usize,
            },
        },
        12 if random.one_in(2) => Act::Stop,
        12 if random.one_in(2) => Act::StopNow,
        13 if random.one_in(2) => Act::User1,
        13 if random.one_in(2) => Act::Serve(any, random.pick(&[800, 950, 1_000])),
        13 => Act::Grow(any, random.pick(&[2, 7])),
        14..=17 => Act::End(any, random.ending()),
        18 => Act::EndBuilding(any),
        19 | 20 => Act::SelfRestart(any),
        21 => Act::StallSupervisor(random.pick(&[30, 240, 260, 6_100, 12_000])),
        22 | 23 => Act::StallAll(random.pick(&[30, 240, 249, 260, 1_300, 6_100, 12_000])),
        _ => Act::RestartForClient,
    }
}

/// A process replaces itself, but the supervisor is not told, or is told late: because the process
/// crashes, or because its notifications are late. Before the supervisor hears of the successor, a
/// restart is asked for, so that the successor is older than the restart. Meanwhile other processes
/// crash, whose slots it may get. Acts by themselves hardly ever come together like this.
fn add_lost_successor(random: &mut Random, policy: &Policy, decisions: &mut Vec<Decision>) {
    let slots = policy.processes;
    let nth = random.below(slots as u64) as usize;
    let mut add = |at, act| decisions.push(Decision::Act { at, act });
    let begin = 1_000;
    add(begin, Act::SelfRestart(nth as u32));
    add(begin + 40 + random.below(100), Act::Install);
    add(begin + 140 + random.below(60), Act::RestartForClient);
    let (mut fate, mut successor) = (Fate::default(), Fate::default());
    if random.one_in(2) {
        fate.lateness = random.pick(&[200, 400, 800]);
        fate.drain = Some(2_000);
    } else {
        fate.lost = Some(Lost::Announcement);
        successor.build = Build::Ready(random.pick(&[300, 600, 900]));
        add(begin + 30, Act::End(nth as u32, Ending::Crashes));
        for _ in 0..1 + random.below(3) {
            let any = random.below(8) as u32;
            add(
                begin + 250 + random.below(600),
                Act::End(any, Ending::Crashes),
            );
        }
    }
    let of_restart = Fate {
        build: Build::Ready(random.pick(&[100, 900, 2_000])),
        ..Fate::default()
    };
    for (nth, fate) in [(nth, fate), (slots, successor), (slots + 2, of_restart)] {
        decisions.push(Decision::Fate { nth, fate });
    }
}

/// A stall of the supervisor, in which a dry run ends and a process becomes due for its recycling:
/// the supervisor learns of both at once.
fn add_upgrade_at_recycling(random: &mut Random, policy: &Policy, decisions: &mut Vec<Decision>) {
    let is_stall = |decision: &Decision| {
        let Decision::Act { act, .. } = decision else {
            return false;
        };
        matches!(act, Act::StallSupervisor(_) | Act::StallAll(_))
    };
    decisions.retain(|decision| !is_stall(decision));
    let begin = 12_000 + random.below(8_000);
    let upgrade = Act::Upgrade {
        for_client: random.one_in(2),
        dry_run: DryRunFate::Succeeds(300),
        slots: policy.processes,
    };
    for (at, act) in [(begin, upgrade), (begin + 40, Act::StallSupervisor(12_000))] {
        decisions.push(Decision::Act { at, act });
    }
}

/// Random numbers (xorshift, after splitmix64 of the seed).
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    fn exit_code(&mut self) -> i32 {
        self.pick(&[0, 1, 1, 78])
    }

    fn ending(&mut self) -> Ending {
        match self.below(8) {
            0..=2 => Ending::Crashes,
            3 => Ending::Exits(self.exit_code()),
            4 | 5 => Ending::Stops(self.exit_code()),
            6 => Ending::Hangs,
            _ => Ending::Triggers,
        }
    }
}
