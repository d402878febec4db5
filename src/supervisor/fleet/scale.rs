//! The number of slots, which operators may change at run time.
//!
//! New slots start processes as at the start of the supervisor. The surplus slots are the slots
//! with the highest numbers: their processes finish their requests and exit. First, a slot that
//! stays and does not serve gets the process of a surplus slot that serves. During a round of
//! restarts, which goes by the numbers of the slots, no process moves: instead, as many surplus slots
//! keep their processes as slots that stay do not serve, until these serve or the round has ended.
//! So a scale never leaves fewer processes that serve than the requested number, if there were so many.
//!
//! A surplus process that can do so leaves its connections to a process that goes on serving
//! ([`Effect::Leave`](super::event::Effect::Leave)); several surplus processes leave them to different ones in turn. The number of
//! connections does not count: new clients even it out.
//!
//! The requested number is kept until the supervisor ends, also over an upgrade: a service that was
//! scaled up for its load must not lose processes when a new program is installed.

use std::time::Instant;

use super::Fleet;
use super::IS_STOPPING;
use super::event::Severity;
use super::slot::Slot;
use crate::clock::Deadline;

/// What was asked for at run time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scale {
    /// The number of slots. `None`: the setting counts.
    pub(crate) wanted: Option<usize>,
    /// The slot whose process got the connections of a surplus process last.
    last_recipient: Option<usize>,
    /// The control clients that wait until all slots serve, and since when.
    clients: Vec<(u64, Instant)>,
}

impl Scale {
    pub(crate) fn has_client(&self) -> bool {
        !self.clients.is_empty()
    }
}

impl Fleet {
    pub(super) fn request_scale(&mut self, wanted: usize, client: Option<u64>) {
        if self.shutdown.is_none() {
            // A request for the same number joins those that wait.
            if self.scale.wanted != Some(wanted) {
                self.end_scale(Some(format!("another request asks for {wanted} processes")));
            }
            let text = format!(
                "processes that are to serve: {wanted}, before {}",
                self.slots.len()
            );
            self.log(Severity::Info, text);
            self.scale.wanted = Some(wanted);
            self.scale.clients.extend(client.map(|id| (id, self.now)));
            self.resize();
            // Slots that were given up are wanted again.
            let startable = match self.has_been_ready {
                true => self.slots.len(),
                false => 1,
            };
            let startable = self.slots.iter_mut().take(startable);
            for slot in startable.filter(|slot| slot.is_down()) {
                slot.start_at = Deadline::at(Some(self.now));
            }
            return self.notify_state();
        }
        self.scale.clients.extend(client.map(|id| (id, self.now)));
        self.end_scale(Some(IS_STOPPING.to_owned()));
    }

    /// The number of slots that stay. There are more while a round of restarts needs them.
    pub(super) fn wanted_slots(&self) -> usize {
        self.scale.wanted.unwrap_or(self.policy.processes)
    }

    /// Moves processes that serve from surplus slots to slots that stay and do not serve, unless a
    /// round is in progress. The answer to a start names its slot, so that this slot stays in place.
    fn keep_serving(&mut self, wanted: usize) {
        for surplus in wanted..self.slots.len() {
            let is_idle = |slot: &Slot| !slot.is_serving() && !slot.is_start_pending;
            let idle = self.slots.iter().position(is_idle);
            let idle = idle.filter(|idle| *idle < wanted && self.round.is_none());
            if let Some(idle) = idle.filter(|_| self.slots[surplus].is_serving()) {
                self.slots.swap(idle, surplus);
                let slots = self.slots.iter_mut();
                let of_slots = slots.flat_map(|slot| [&mut slot.current, &mut slot.successor]);
                for process in of_slots.flatten().chain(&mut self.draining) {
                    process.slot = match process.slot {
                        Some(slot) if slot == idle => Some(surplus),
                        Some(slot) if slot == surplus => Some(idle),
                        slot => slot,
                    };
                }
            }
        }
    }

    /// Adds slots, or removes those with the highest numbers, until their number is what is wanted.
    pub(super) fn resize(&mut self) {
        let start_at = Deadline::at(self.has_been_ready.then_some(self.now));
        while self.slots.len() < self.wanted_slots() {
            self.slots.push(Slot::new(start_at));
        }
        self.remove_surplus();
    }

    /// Removes the surplus slots, but for those whose processes serve in place of slots that stay.
    /// Returns whether slots were removed.
    pub(super) fn remove_surplus(&mut self) -> bool {
        let wanted = self.wanted_slots();
        if self.slots.len() <= wanted {
            return false;
        }
        self.keep_serving(wanted);
        let (stay, surplus) = self.slots.split_at(wanted);
        let mut missing = stay.iter().filter(|slot| !slot.is_serving()).count();
        let mut kept = 0;
        for (index, slot) in surplus.iter().enumerate() {
            let is_needed = missing > 0 && slot.is_serving();
            missing -= usize::from(is_needed);
            if is_needed || slot.is_start_pending {
                kept = index + 1;
            }
        }
        let removed = self.slots.split_off(wanted + kept);
        let has_removed = !removed.is_empty();
        for surplus in removed {
            match (surplus.current, surplus.successor) {
                (Some(current), None) => {
                    let recipient = current.can_leave().then(|| self.next_recipient());
                    self.end_surplus(current, recipient.flatten());
                }
                (current, successor) => {
                    let processes = current.into_iter().chain(successor);
                    processes.for_each(|process| self.terminate(process));
                }
            }
        }
        has_removed
    }

    /// A process that serves in a slot that stays, and adopts connections. Each time another one, as
    /// far as there are others.
    fn next_recipient(&mut self) -> Option<u32> {
        let wanted = self.wanted_slots();
        let slots = self.slots.iter().take(wanted).enumerate();
        let candidates = slots.filter_map(|(index, slot)| {
            let current = slot
                .current
                .as_ref()
                .filter(|current| current.can_adopt())?;
            Some((index, current.pid))
        });
        // Those behind the last one come first.
        let last = self.scale.last_recipient;
        let (index, pid) = candidates.min_by_key(|(index, _)| (Some(*index) <= last, *index))?;
        self.scale.last_recipient = Some(index);
        Some(pid)
    }

    /// Removes what has become surplus, and answers the clients if all slots serve.
    pub(super) fn advance_scale(&mut self) {
        if self.shutdown.is_none() && self.remove_surplus() {
            self.notify_state();
        }
        let is_complete = self.slots.len() == self.wanted_slots();
        if self.scale.has_client() && is_complete && self.slots.iter().all(Slot::is_serving) {
            self.end_scale(None);
        }
    }

    /// Tells the clients that all slots serve, or why they do not. The number of slots stays, and
    /// processes that fail are started again.
    pub(super) fn end_scale(&mut self, error: Option<String>) {
        for (client, since) in std::mem::take(&mut self.scale.clients) {
            let took = self.now.saturating_duration_since(since);
            self.reply(vec![client], &error, Some(took));
        }
    }
}
