//! A graceful restart: the processes are replaced one after another, and one that cannot be leaves all as it is.

use std::time::{Duration, Instant};

use super::run::Run;
use super::slot::Slot;
use crate::clock::Deadline;
use crate::notify;
use crate::sys::Signal;

/// A restart in progress.
#[derive(Debug)]
pub(super) struct RollingRestart {
    /// Which place is next, and the process there that is to be replaced, once that was asked for.
    pub(super) at: usize,
    asked: Option<Option<u32>>,
    /// The process there ends by itself, and another one follows.
    ends_anyway: bool,
    pub(super) deadline: Deadline,
    since: Instant,
    failed: Option<String>,
    /// Who wants to hear the outcome, by the numbers of their connections.
    waiters: Vec<u64>,
}

/// What a restart came to.
#[derive(Clone, Debug)]
pub(super) struct RestartResult {
    pub(super) took: Duration,
    pub(super) error: Option<String>,
}

/// How much longer than a new process may take to be ready the old one may take to say how it went.
const PATIENCE: Duration = Duration::from_secs(30);

impl RollingRestart {
    /// It takes longer.
    pub(super) fn extend(&mut self, until: Deadline) {
        self.deadline = self.deadline.later(until);
    }
}

impl Run {
    /// Begins a restart. HeldListener that is under way is what is wanted.
    pub(super) fn restart(&mut self, waiter: Option<u64>) {
        if self.stop.is_some() {
            let outcome = RestartResult {
                took: Duration::ZERO,
                error: Some("the supervisor is being stopped".to_owned()),
            };
            return waiter
                .into_iter()
                .for_each(|waiter| self.tell(waiter, &outcome));
        }
        if self.announced {
            notify::reloading("restarting");
        }
        let rolling = self.rolling.get_or_insert_with(|| RollingRestart {
            at: 0,
            asked: None,
            ends_anyway: false,
            deadline: Deadline::NEVER,
            since: Instant::now(),
            failed: None,
            waiters: Vec::new(),
        });
        rolling.waiters.extend(waiter);
    }

    /// Takes the restart as far as it goes now.
    pub(super) fn roll(&mut self) {
        while let Some(rolling) = &mut self.rolling {
            let (at, now) = (rolling.at, Instant::now());
            if rolling.failed.is_none() && rolling.deadline.passed(now) {
                rolling.failed = Some("nobody has said in time how the restart went".to_owned());
            }
            let Some(slot) = self.slots.get(at).filter(|_| rolling.failed.is_none()) else {
                let failed = rolling.failed.take();
                return self.end_roll(failed);
            };
            match rolling.asked {
                None => self.ask_to_replace(at),
                Some(old) if slot.is_ready() && slot.main.as_ref().map(|main| main.pid) != old => {
                    rolling.at += 1;
                    rolling.asked = None;
                    rolling.deadline = Deadline::NEVER;
                }
                Some(_) => return,
            }
        }
    }

    fn ask_to_replace(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let mut old = slot.main.as_ref().map(|main| main.pid);
        let (mut failed, mut ends_anyway) = (None, false);
        match &slot.main {
            // The process finds the program, and says how it went.
            Some(main) if main.is_fine() && main.restarts_itself => main.send(Signal::Hangup),
            Some(main) if main.is_fine() => match self.start(at) {
                Ok(next) => self.slots[at].next = Some(next),
                Err(why) => failed = Some(why),
            },
            // It is new already, or another one follows anyway.
            Some(main) if main.ready.is_none() => old = None,
            Some(_) => ends_anyway = true,
            None if slot.next.is_some() => {}
            None => slot.due = Deadline::at(Some(Instant::now())),
        }
        let within = self.settings.ready_timeout + PATIENCE;
        if let Some(rolling) = &mut self.rolling {
            rolling.asked = Some(old);
            rolling.failed = failed;
            rolling.ends_anyway = ends_anyway;
            rolling.deadline = Deadline::after(Instant::now(), within);
        }
    }

    /// The process in this place was not replaced.
    pub(super) fn fail_roll(&mut self, at: usize, why: &str) {
        match &mut self.rolling {
            Some(rolling) if rolling.at == at && rolling.ends_anyway => rolling.ends_anyway = false,
            Some(rolling) if rolling.at == at && rolling.asked.is_some() => {
                rolling.failed.get_or_insert_with(|| why.to_owned());
            }
            _ => {}
        }
    }

    pub(super) fn end_roll(&mut self, error: Option<String>) {
        let Some(rolling) = self.rolling.take() else {
            return;
        };
        let took = rolling.since.elapsed();
        match &error {
            None => log::info!("restarted within {:.3} s", took.as_secs_f32()),
            Some(why) => log::error!("no restart: {why}"),
        }
        if self.stop.is_none() {
            let summary = self.summary();
            self.announced |= self.slots.iter().all(Slot::is_ready);
            match &error {
                _ if !self.announced => notify::status(summary),
                None => notify::ready(None, summary),
                Some(why) => {
                    notify::ready(
                        None,
                        format_args!("{summary}; the last restart failed: {why}"),
                    );
                }
            }
        }
        let outcome = RestartResult { took, error };
        for waiter in rolling.waiters {
            self.tell(waiter, &outcome);
        }
        self.last_restart = Some(outcome);
    }
}
