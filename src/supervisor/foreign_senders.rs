//! Processes that send notifications and do not belong to the service.
//!
//! Every process of the system can send to the supervisor. Whether a process descends from the
//! supervisor is read from /proc, which costs more than the process spends on its datagram. So a
//! process that does not is ignored for a second without another look, and of one user, only so many
//! processes are looked at in a second. The processes of one user do not take the looks of another
//! user's.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::log;

/// How long a process is ignored, and a user that has sent too many.
const WINDOW: Duration = Duration::from_secs(1);

/// The most processes of one user that are looked at in a window and found not to be of the service.
const MAX_OF_USER: usize = 100;

/// The most users that are told apart. Further ones count as one.
const MAX_USERS: usize = 64;

/// The processes that have sent notifications and are not of the service.
#[derive(Debug, Default)]
pub(super) struct ForeignSenders {
    /// The processes that were found in this window, by their users.
    found: HashMap<Option<u32>, HashSet<u32>>,
    window_end: Option<Instant>,
    /// How many notifications were ignored without a look, since the flood began.
    ignored: u64,
    /// When the flood is over, if none is ignored until then.
    flood_end: Deadline,
}

impl ForeignSenders {
    /// Whether to look where this process comes from.
    pub(super) fn may_look_at(&mut self, pid: u32, uid: u32, now: Instant) -> bool {
        if self.window_end.is_none_or(|end| end <= now) {
            self.found.clear();
            self.window_end = Some(now + WINDOW);
        }
        let found = self.found.get(&self.user(uid));
        let is_foreign = |found: &HashSet<u32>| found.contains(&pid) || found.len() >= MAX_OF_USER;
        if !found.is_some_and(is_foreign) {
            return true;
        }
        if self.ignored == 0 {
            log::warn!(
                "ignoring notifications of process {pid}, user {uid}, which is not of the service \
                 and sends many"
            );
        }
        self.ignored += 1;
        self.flood_end = Deadline::after(now, WINDOW);
        false
    }

    /// The process does not belong to the service.
    pub(super) fn add(&mut self, pid: u32, uid: u32) {
        let user = self.user(uid);
        self.found.entry(user).or_default().insert(pid);
    }

    /// The user's entry. `None`: that of the users that are not told apart.
    fn user(&self, uid: u32) -> Option<u32> {
        let has_room = self.found.len() < MAX_USERS || self.found.contains_key(&Some(uid));
        has_room.then_some(uid)
    }

    /// When [`end_flood`](Self::end_flood) is to be called.
    pub(super) fn deadline(&self) -> Deadline {
        self.flood_end
    }

    /// How many notifications were ignored, if the flood is over.
    pub(super) fn end_flood(&mut self, now: Instant) -> Option<u64> {
        if !self.flood_end.has_passed(now) {
            return None;
        }
        self.flood_end = Deadline::NEVER;
        Some(std::mem::take(&mut self.ignored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handles a notification of a process that is not of the service. True if it was looked at.
    fn receive(senders: &mut ForeignSenders, pid: u32, uid: u32, now: Instant) -> bool {
        let looks = senders.may_look_at(pid, uid, now);
        if looks {
            senders.add(pid, uid);
        }
        looks
    }

    #[test]
    fn each_process_is_looked_at_once_in_a_window() {
        let mut senders = ForeignSenders::default();
        let now = Instant::now();
        assert!(receive(&mut senders, 1, 7, now));
        for _ in 0..1000 {
            assert!(!receive(&mut senders, 1, 7, now));
        }
        assert!(receive(&mut senders, 2, 7, now) && receive(&mut senders, 1, 8, now));
        // A process of the service is not added, and so always looked at.
        assert!((0..1000).all(|_| senders.may_look_at(3, 7, now)));
        assert_eq!(senders.end_flood(now), None);
        assert_eq!(senders.deadline(), Deadline::after(now, WINDOW));
        let later = now + WINDOW;
        assert_eq!(senders.end_flood(later), Some(1000));
        assert_eq!(senders.end_flood(later), None);
        assert_eq!(senders.deadline(), Deadline::NEVER);
        assert!(receive(&mut senders, 1, 7, later));
    }

    #[test]
    fn a_user_with_many_processes_takes_nothing_from_others() {
        let mut senders = ForeignSenders::default();
        let now = Instant::now();
        let looks = (0..1000).filter(|pid| receive(&mut senders, *pid, 7, now));
        assert_eq!(looks.count(), MAX_OF_USER);
        assert!(senders.may_look_at(2000, 8, now) && !senders.may_look_at(2000, 7, now));
        // Users beyond a number share what one has.
        let looks = (100..10_000).filter(|uid| receive(&mut senders, 1, *uid, now));
        assert!(looks.count() <= MAX_USERS + 1);
        assert!(senders.found.len() <= MAX_USERS + 1);
    }
}
