//! The order in which connections have become idle, kept by the one thread that asks for it.
//!
//! A connection becomes idle with every message, and must not pay for an order that is needed only
//! when the server is full. So the order consists of two heaps of slots with keys that are lower
//! bounds: the connection of a slot has not become idle earlier than the slot's key says. One heap has the slots whose connections were idle then, the other one has the rest. A
//! search looks at the slots with the least keys, and updates these keys. The search ends when a
//! connection was found that became idle before all remaining keys.
//!
//! The caller bounds how many slots a search looks at, so the cost of a search does not grow with the
//! number of connections. A search that reaches this bound returns the connection that has been
//! idle for longest among the connections that this search and the searches before have looked at.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The pass of a slot that no search has looked at.
const NO_PASS: u64 = u64::MAX;

/// What a search sees in a slot. Times have the unit of `ConnectionSlot::since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A connection that has been idle since then.
    Idle(u64),
    /// A connection that is parked in the middle of a message since then.
    MidMessage(u64),
    /// No connection, or one that is not parked.
    Other,
}

/// A connection that a search has found: when it was parked, and its slot.
pub(super) type Found = (u64, u32);

/// The slots, ordered by when their connections may have become idle.
#[derive(Default)]
pub(super) struct IdleOrder {
    /// The slots whose connections were idle when they were looked at.
    idle: BinaryHeap<Reverse<Entry>>,
    others: BinaryHeap<Reverse<Entry>>,
    /// The present pass over the slots, see [`begin_pass`](Self::begin_pass).
    pass: u64,
    /// How many slots the present pass has not looked at.
    left: usize,
    /// Room for the entries of one search: the idle ones, and the others.
    looked_at: [Vec<Reverse<Entry>>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The connection has not become idle earlier.
    key: u64,
    slot: u32,
    /// The last pass that has looked at the slot.
    pass: u64,
}

impl IdleOrder {
    /// Begins a pass: it is over when searches have looked at each slot.
    pub(super) fn begin_pass(&mut self) {
        self.pass += 1;
        self.left = self.len();
    }

    pub(super) fn is_pass_over(&self) -> bool {
        self.left == 0
    }

    /// Searches for the connection that has been idle for longest, in at most `most` slots.
    /// `slots` is the number of slots, which only grows. The second result is the connection that
    /// has been parked for longest in the middle of a message, as far as no idle one was found.
    pub(super) fn search(
        &mut self,
        slots: u32,
        now: u64,
        most: usize,
        look: impl Fn(u32) -> Seen,
    ) -> (Option<Found>, Option<Found>) {
        for slot in self.len() as u32..slots {
            let (key, pass) = (0, NO_PASS);
            self.others.push(Reverse(Entry { key, slot, pass }));
            self.left += 1;
        }
        let (mut idle, mut mid_message): (Option<Found>, Option<Found>) = (None, None);
        let mut looks = 0;
        for (heap, most) in [(&mut self.idle, most / 2), (&mut self.others, most)] {
            while looks < most {
                let next = heap.peek().filter(|Reverse(next)| {
                    // Otherwise nothing in this heap has been idle for longer.
                    idle.is_none_or(|(since, _)| next.key < since)
                });
                if next.is_none() {
                    break;
                }
                let Some(Reverse(mut entry)) = heap.pop() else {
                    break;
                };
                looks += 1;
                if entry.pass != self.pass {
                    entry.pass = self.pass;
                    self.left -= 1;
                }
                let seen = look(entry.slot);
                entry.key = now;
                match seen {
                    Seen::Idle(since) => {
                        idle = earlier(idle, (since, entry.slot));
                        entry.key = since;
                    }
                    Seen::MidMessage(since) => {
                        mid_message = earlier(mid_message, (since, entry.slot));
                    }
                    Seen::Other => {}
                }
                // Put back only after the search, which looks at each slot once.
                let is_other = !matches!(seen, Seen::Idle(_));
                self.looked_at[usize::from(is_other)].push(Reverse(entry));
            }
        }
        let [now_idle, now_other] = &mut self.looked_at;
        self.idle.extend(now_idle.drain(..));
        self.others.extend(now_other.drain(..));
        (idle, mid_message.filter(|_| idle.is_none()))
    }

    fn len(&self) -> usize {
        self.idle.len() + self.others.len()
    }
}

fn earlier(found: Option<Found>, other: Found) -> Option<Found> {
    Some(found.map_or(other, |found| found.min(other)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use Seen::{Idle, MidMessage, Other};

    #[test]
    fn the_longest_idle_is_found_first() {
        for (what, seen, found) in [
            ("nothing", vec![], (None, None)),
            ("free slots", vec![Other, Other], (None, None)),
            ("one", vec![Idle(5)], (Some((5, 0)), None)),
            ("two", vec![Idle(7), Idle(6)], (Some((6, 1)), None)),
            ("equal ones", vec![Idle(7), Idle(7)], (Some((7, 0)), None)),
            (
                "idle ones before others",
                vec![MidMessage(1), Other, Idle(50), Idle(40)],
                (Some((40, 3)), None),
            ),
            (
                "none is idle",
                vec![MidMessage(9), Other, MidMessage(8)],
                (None, Some((8, 2))),
            ),
        ] {
            let mut order = IdleOrder::default();
            let slots = seen.len() as u32;
            let look = |slot| seen[slot as usize];
            for _ in 0..3 {
                assert_eq!(order.search(slots, 100, usize::MAX, look), found, "{what}");
            }
        }
    }

    #[test]
    fn a_search_is_exact_and_cheap_while_few_connections_are_active() {
        const SLOTS: u32 = 10_000;
        let mut seen: Vec<Seen> = (0..u64::from(SLOTS))
            .map(|slot| Idle(slot * 7919 % 10_007))
            .collect();
        let mut order = IdleOrder::default();
        let mut looks = 0;
        for round in 0..1000 {
            let now = 20_000 + round;
            // One connection ends, and others are active.
            for slot in 0..5 {
                seen[((round * 5 + slot) * 31 % u64::from(SLOTS)) as usize] = Idle(now);
            }
            let count = Cell::new(0);
            let look = |slot: u32| {
                count.set(count.get() + 1);
                seen[slot as usize]
            };
            let (found, _) = order.search(SLOTS, now, usize::MAX, look);
            let since = |seen: &Seen| match seen {
                Idle(since) => *since,
                _ => u64::MAX,
            };
            let (oldest, slot) = found.unwrap();
            assert_eq!(oldest, seen.iter().map(since).min().unwrap());
            seen[slot as usize] = Other;
            looks += if round == 0 { 0 } else { count.get() };
        }
        assert!(looks < 20_000, "{looks} looks for 999 connections");
    }

    #[test]
    fn a_search_looks_at_a_bounded_number_of_slots_and_a_pass_at_all() {
        const SLOTS: u32 = 1000;
        let idle_one = Cell::new(None);
        let count = Cell::new(0);
        let look = |slot| {
            count.set(count.get() + 1);
            match idle_one.get() == Some(slot) {
                true => Idle(500),
                false => MidMessage(1),
            }
        };
        let mut order = IdleOrder::default();
        for round in 0..10 {
            // The first pass has begun already.
            if round > 0 {
                order.begin_pass();
            }
            let mut searches = 0;
            while !order.is_pass_over() || searches == 0 {
                count.set(0);
                let (found, _) = order.search(SLOTS, 1000 + round, 64, look);
                assert_eq!((found, count.get() <= 64), (None, true));
                searches += 1;
            }
            assert_eq!(searches, SLOTS.div_ceil(64), "round {round}");
        }
        // One that becomes idle is found within a pass.
        idle_one.set(Some(777));
        order.begin_pass();
        let mut found = None;
        while found.is_none() {
            assert!(!order.is_pass_over());
            found = order.search(SLOTS, 2000, 64, look).0;
        }
        assert_eq!(found, Some((500, 777)));
    }

    #[test]
    fn searches_after_all_were_active_close_in_on_the_longest_idle() {
        const SLOTS: u32 = 1000;
        let mut order = IdleOrder::default();
        let active = |_| Other;
        for _ in 0..20 {
            assert_eq!(order.search(SLOTS, 10, 64, active), (None, None));
        }
        // The last slot became idle first.
        let idle = |slot: u32| Idle(u64::from(2000 - slot));
        let mut before = u64::MAX;
        for round in 1.. {
            let (since, slot) = order.search(SLOTS, 3000, 64, idle).0.unwrap();
            assert!(since <= before, "what is known is not forgotten");
            before = since;
            if slot == SLOTS - 1 {
                assert!(round <= SLOTS / 60, "{round} searches");
                break;
            }
        }
    }

    #[test]
    fn a_slot_that_is_new_or_used_again_is_searched() {
        let mut order = IdleOrder::default();
        assert_eq!(order.search(1, 10, 64, |_| Other), (None, None));
        assert_eq!(order.search(1, 20, 64, |_| Idle(15)).0, Some((15, 0)));
        let look = |slot| if slot == 1 { Idle(12) } else { Idle(15) };
        assert_eq!(order.search(2, 20, 64, look).0, Some((12, 1)));
        order.begin_pass();
        assert!(!order.is_pass_over());
    }
}
