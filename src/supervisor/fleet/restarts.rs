//! Graceful restarts: rounds in which the processes are replaced slot by slot.
//!
//! A restart that is asked for while a round waits to begin joins that round. While a round is in
//! progress, some process may have executed the program before the restart was asked for: so another
//! round follows, and the client waits for that second round. If a process cannot be replaced, it serves
//! on, and so do the processes of the slots that follow.

use std::time::{Duration, Instant};

use super::event::{ManagerNotice, Severity};
use super::process::Process;
use super::recycling::{PAUSE, Reason};
use super::round::{Round, Step};
use super::slot::Slot;
use super::{FinishedRestart, Fleet, IS_STOPPING};
use crate::clock::Deadline;
use crate::sys::Signal;

/// Added to `ready_timeout`: the time for the predecessor to report how the replacement went.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

impl Fleet {
    pub(super) fn request_round(&mut self, client: Option<u64>) {
        if self.shutdown.is_some() {
            let error = Some(IS_STOPPING.to_owned());
            return self.reply(client.into_iter().collect(), &error, Some(Duration::ZERO));
        }
        self.next_round.get_or_insert_default().extend(client);
    }

    /// The number of the round in which the process of this slot is being replaced.
    pub(super) fn round_of(&self, index: usize) -> Option<u64> {
        let round = self.round.as_ref().filter(|round| round.replaces(index));
        round.map(|round| round.number)
    }

    /// Takes the rounds as far as possible without waiting.
    pub(super) fn advance_round(&mut self) {
        loop {
            let wanted = self.wanted_slots();
            let Some(round) = &mut self.round else {
                // Processes move to other slots only between two rounds.
                self.advance_scale();
                match (self.next_round.take(), self.recyclable_slot()) {
                    (Some(clients), _) => self.begin_round(clients, None),
                    (None, Some(recycled)) => self.begin_round(Vec::new(), Some(recycled)),
                    (None, None) => return,
                }
                continue;
            };
            let slot = self.slots.get(round.index);
            let Some(slot) = slot.filter(|_| round.index < wanted) else {
                let (begin, is_recycling) = (round.started_at, round.is_recycling);
                let error = self.why_incomplete(begin);
                // The slot of a recycling may have become surplus meanwhile.
                self.end_round(error.filter(|_| !is_recycling));
                continue;
            };
            let current = slot.current.as_ref().filter(|current| current.is_serving());
            match (round.step, current) {
                (Step::Replacing { .. }, Some(current))
                    if current.round == Some(round.number) && round.is_recycling =>
                {
                    self.end_round(None);
                }
                (Step::Replacing { .. }, Some(current)) if current.round == Some(round.number) => {
                    round.index += 1;
                    round.step = Step::Next;
                }
                (Step::Replacing { old, .. }, Some(current)) if old != Some(current.pid) => {
                    round.step = Step::Next;
                }
                (Step::Replacing { .. }, _) => return,
                (before, _) => {
                    let index = round.index;
                    let step = self.replace(index, before);
                    if let Some(round) = &mut self.round {
                        round.step = step;
                    }
                    return;
                }
            }
        }
    }

    /// Why the round has not succeeded, although each slot had its turn: meanwhile, a process that
    /// was started for this round may have exited, and an older one may have taken its place.
    fn why_incomplete(&self, begin: Instant) -> Option<String> {
        let is_new = |current: &Process| current.is_serving() && current.started_at >= begin;
        let is_complete = |slot: &Slot| slot.current.as_ref().is_some_and(is_new);
        let mut slots = self.slots.iter().take(self.wanted_slots());
        let slot = slots.find(|slot| !is_complete(slot))?;
        let why = slot.deaths.back().map(|death| death.why.as_str());
        Some(why.unwrap_or("not all processes were replaced").to_owned())
    }

    /// Begins a round of all slots, or of the slot whose process is to be recycled.
    fn begin_round(&mut self, clients: Vec<u64>, recycled: Option<(usize, Reason)>) {
        if let Some((index, reason)) = recycled {
            let text = format!("recycling the process of slot {index}: {reason}");
            self.log(Severity::Info, text);
            if let Reason::Size(_) = reason {
                self.slots[index].recycled_for_size = Some(self.now);
            }
        }
        if self.sent_ready {
            self.notify(ManagerNotice::Reloading);
        }
        self.rounds += 1;
        self.round = Some(Round {
            number: self.rounds,
            index: recycled.map_or(0, |(index, _)| index),
            is_recycling: recycled.is_some(),
            step: Step::Next,
            started_at: self.now,
            clients,
        });
    }

    /// Begins to replace the process of this slot, unless something else has to end first. Returns
    /// the round's next step.
    fn replace(&mut self, index: usize, before: Step) -> Step {
        let timeout = self.ready_limit().saturating_add(REPORT_TIMEOUT);
        let deadline = Deadline::after(self.now, timeout);
        let slot = &self.slots[index];
        let serving = slot.current.as_ref().filter(|current| current.is_serving());
        let (pid, starts_successors) = match serving {
            Some(_) if slot.successor.is_some() => {
                return match before {
                    Step::WaitingForOther { .. } => before,
                    _ => Step::WaitingForOther { deadline },
                };
            }
            Some(_) if self.drains(index) >= self.policy.max_draining => {
                if before != Step::WaitingForDrain {
                    let text = format!(
                        "the restart waits: {} processes that were replaced still finish their \
                         requests",
                        self.drains(index)
                    );
                    self.notify(ManagerNotice::MoreTime(self.policy.stop_timeout));
                    self.notify(ManagerNotice::Status(text.clone()));
                    self.log(Severity::Warn, text);
                }
                return Step::WaitingForDrain;
            }
            Some(current) => (
                Some(current.pid),
                current.starts_successors && !self.policy.starts_all,
            ),
            None => (None, false),
        };
        // What is not ready was perhaps started before the restart was asked for.
        if pid.is_none() {
            let slot = &mut self.slots[index];
            let processes = [slot.current.take(), slot.successor.take()];
            processes
                .into_iter()
                .flatten()
                .for_each(|process| self.terminate(process));
        }
        match pid {
            Some(pid) if starts_successors => self.signal(pid, Signal::Hangup),
            _ => self.start(index),
        }
        Step::Replacing { old: pid, deadline }
    }

    /// How many processes of this slot drain. Processes that are aborted do not count.
    fn drains(&self, index: usize) -> usize {
        let of_slot = self
            .draining
            .iter()
            .filter(|process| process.slot == Some(index));
        of_slot.filter(|process| !process.is_aborted()).count()
    }

    /// The process of this slot cannot be replaced in this round. Ends the round, if it is the one
    /// in progress.
    pub(super) fn fail_round(&mut self, round: Option<u64>, index: usize, why: &str) {
        if round.is_some() && round == self.round_of(index) {
            self.end_round(Some(why.to_owned()));
        }
    }

    /// Ends the round: it has succeeded, or has failed with this error. Tells the service manager
    /// and the control clients that wait.
    pub(super) fn end_round(&mut self, error: Option<String>) {
        let Some(round) = self.round.take() else {
            return;
        };
        let took = self.now.saturating_duration_since(round.started_at);
        if round.is_recycling && error.is_some() {
            self.recycle_not_before = Deadline::after(self.now, PAUSE);
        }
        match &error {
            None => self.log(
                Severity::Info,
                format!("restarted in {:.3} s", took.as_secs_f32()),
            ),
            // No process is to serve any more.
            Some(why) if self.shutdown.is_some() => {
                self.log(Severity::Warn, format!("the restart failed: {why}"));
            }
            Some(why) => {
                let summary = self.summary();
                let text = format!("the restart failed: {why}; {summary}");
                self.log(Severity::Error, text);
            }
        }
        if self.shutdown.is_none() {
            let summary = self.summary();
            self.sent_ready |= self.slots.iter().all(Slot::is_serving);
            let notice = match &error {
                _ if !self.sent_ready => ManagerNotice::Status(summary),
                None => ManagerNotice::Ready(summary),
                Some(why) => {
                    ManagerNotice::Ready(format!("{summary}; the last restart failed: {why}"))
                }
            };
            self.notify(notice);
        }
        self.reply(round.clients, &error, Some(took));
        if !round.is_recycling {
            self.last_restart = Some(FinishedRestart {
                error,
                took,
                ended_at: self.now,
            });
        }
    }

    /// The supervisor stops: ends the round in progress, and the one that waits.
    pub(super) fn end_all_rounds(&mut self, why: &str) {
        self.end_round(Some(why.to_owned()));
        let clients = self.next_round.take().unwrap_or_default();
        self.reply(clients, &Some(why.to_owned()), Some(Duration::ZERO));
    }
}
