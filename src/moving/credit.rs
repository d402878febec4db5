//! The batches in flight: how many there may be, and what becomes of their connections.
//!
//! | event | the oldest batch | the other batches |
//! |---|---|---|
//! | an Ack | moved, except the refused ones | stay in flight |
//! | the end of the channel | all taken back | all taken back |

use std::collections::VecDeque;

use crate::wire::{Refusal, RefusedConnection};

/// How many batches may be in flight. With two, the successor has work while an answer is under way.
const MOST_IN_FLIGHT: usize = 2;

/// The batches that were sent and not answered yet, of connections `C`.
#[derive(Debug)]
pub(super) struct Credit<C>(VecDeque<Vec<C>>);

/// What an Ack says of the oldest batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered<C> {
    pub(super) moved: Vec<C>,
    pub(super) refused: Vec<(C, Refusal)>,
}

impl<C> Credit<C> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn may_send(&self) -> bool {
        self.0.len() < MOST_IN_FLIGHT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn note_sent(&mut self, batch: Vec<C>) {
        self.0.push_back(batch);
    }

    /// Handles an Ack. `None` if nothing is in flight. Positions that are not in the batch, or that
    /// come twice, mean nothing.
    pub(super) fn note_ack(&mut self, refused: &[RefusedConnection]) -> Option<Answered<C>> {
        let batch = self.0.pop_front()?;
        let mut answered = Answered {
            moved: Vec::new(),
            refused: Vec::new(),
        };
        for (index, connection) in (0..).zip(batch) {
            match refused.iter().find(|refused| refused.index == index) {
                Some(refused) => answered.refused.push((connection, refused.why)),
                None => answered.moved.push(connection),
            }
        }
        Some(answered)
    }

    /// Takes all connections out.
    pub(super) fn take_all(&mut self) -> Vec<C> {
        self.0.drain(..).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Send(&'static str),
        /// The positions that are refused, and then the moved and the refused connections.
        Ack(&'static [u32], &'static str, &'static str),
        StrayAck,
        /// The connections that are taken back.
        End(&'static str),
    }
    use Step::{Ack, End, Send, StrayAck};

    /// Each history, and whether another batch may be sent after it.
    #[test]
    fn each_connection_is_moved_or_taken_back_once() {
        let histories: &[(&[Step], bool)] = &[
            (&[], true),
            (&[End("")], true),
            (&[StrayAck], true),
            (&[Send("a")], true),
            (&[Send("a"), Send("b")], false),
            (&[Send("ab"), Send("c"), Ack(&[], "ab", "")], true),
            (&[Send("ab"), Ack(&[0], "b", "a"), StrayAck], true),
            (&[Send("abc"), Ack(&[2, 0], "b", "ac")], true),
            (&[Send("ab"), Ack(&[1, 1, 7], "a", "b")], true),
            (
                &[Send("a"), Send("bc"), Ack(&[0], "", "a"), End("bc")],
                true,
            ),
            (&[Send("a"), Send("bc"), End("abc"), StrayAck], true),
            (
                &[
                    Send("a"),
                    Send("b"),
                    Ack(&[], "a", ""),
                    Send("c"),
                    Ack(&[0], "", "b"),
                ],
                true,
            ),
        ];
        for (number, (steps, may_send)) in histories.iter().enumerate() {
            let mut credit = Credit::new();
            for step in *steps {
                match step {
                    Send(batch) => {
                        assert!(credit.may_send(), "history {number}");
                        credit.note_sent(batch.chars().collect());
                    }
                    Ack(positions, moved, refused) => {
                        let positions = positions.iter().map(|&index| RefusedConnection {
                            index,
                            why: Refusal::Limit,
                        });
                        let positions: Vec<_> = positions.collect();
                        let answered = credit.note_ack(&positions).unwrap();
                        let refused = refused.chars().map(|one| (one, Refusal::Limit));
                        let expected = Answered {
                            moved: moved.chars().collect(),
                            refused: refused.collect(),
                        };
                        assert_eq!(answered, expected, "history {number}");
                    }
                    StrayAck => assert_eq!(credit.note_ack(&[]), None, "history {number}"),
                    End(left) => {
                        let left: Vec<char> = left.chars().collect();
                        assert_eq!(credit.take_all(), left, "history {number}");
                        assert!(credit.is_empty());
                    }
                }
            }
            assert_eq!(credit.may_send(), *may_send, "history {number}");
        }
    }
}
