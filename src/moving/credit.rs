//! The batches in flight: how many there may be, and what becomes of their connections.
//!
//! Each batch has a number, and its answer has the same number.
//!
//! | event | the batch of this number | the other batches |
//! |---|---|---|
//! | an Ack | moved, except the refused ones | stay in flight |
//! | the end of the channel | all taken back | all taken back |

use crate::wire::{Refusal, RefusedConnection};

/// How many batches may be in flight. With two, the successor has work while an answer is under way.
pub(super) const MOST_IN_FLIGHT: usize = 2;

/// The batches that were sent and not answered yet, of connections `C`.
#[derive(Debug)]
pub(super) struct Credit<C>(Vec<(u64, Vec<C>)>);

/// What an Ack says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered<C> {
    pub(super) moved: Vec<C>,
    pub(super) refused: Vec<(C, Refusal)>,
}

impl<C> Credit<C> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn may_send(&self) -> bool {
        self.0.len() < MOST_IN_FLIGHT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn note_sent(&mut self, number: u64, batch: Vec<C>) {
        self.0.push((number, batch));
    }

    /// Handles an Ack of the batch with this number. `None` if no such batch is in flight. Positions
    /// that are not in the batch, or that come twice, mean nothing.
    pub(super) fn note_ack(
        &mut self,
        number: u64,
        refused: &[RefusedConnection],
    ) -> Option<Answered<C>> {
        let sent = self.0.iter().position(|(own, _)| *own == number)?;
        let (_, batch) = self.0.remove(sent);
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
        self.0.drain(..).flat_map(|(_, batch)| batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        /// The batch gets the next number. The first one is 0.
        Send(&'static str),
        /// The number of the batch, the positions that are refused, and then the moved and the refused
        /// connections.
        Ack(u64, &'static [u32], &'static str, &'static str),
        StrayAck(u64),
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
            (&[StrayAck(0)], true),
            (&[Send("a")], true),
            (&[Send("a"), StrayAck(1)], true),
            (&[Send("a"), Send("b")], false),
            (&[Send("ab"), Send("c"), Ack(0, &[], "ab", "")], true),
            (&[Send("ab"), Ack(0, &[0], "b", "a"), StrayAck(0)], true),
            (&[Send("abc"), Ack(0, &[2, 0], "b", "ac")], true),
            (&[Send("ab"), Ack(0, &[1, 1, 7], "a", "b")], true),
            (
                &[Send("a"), Send("bc"), Ack(0, &[0], "", "a"), End("bc")],
                true,
            ),
            // In another order, and once more.
            (
                &[
                    Send("a"),
                    Send("bc"),
                    Ack(1, &[0], "c", "b"),
                    StrayAck(1),
                    Ack(0, &[], "a", ""),
                ],
                true,
            ),
            (&[Send("a"), Send("bc"), End("abc"), StrayAck(1)], true),
            (
                &[
                    Send("a"),
                    Send("b"),
                    Ack(0, &[], "a", ""),
                    Send("c"),
                    Ack(1, &[0], "", "b"),
                ],
                true,
            ),
        ];
        for (number, (steps, may_send)) in histories.iter().enumerate() {
            let (mut credit, mut next) = (Credit::new(), 0);
            for step in *steps {
                match step {
                    Send(batch) => {
                        assert!(credit.may_send(), "history {number}");
                        credit.note_sent(next, batch.chars().collect());
                        next += 1;
                    }
                    Ack(batch, positions, moved, refused) => {
                        let positions = positions.iter().map(|&index| RefusedConnection {
                            index,
                            why: Refusal::Limit,
                        });
                        let positions: Vec<_> = positions.collect();
                        let answered = credit.note_ack(*batch, &positions).unwrap();
                        let refused = refused.chars().map(|one| (one, Refusal::Limit));
                        let expected = Answered {
                            moved: moved.chars().collect(),
                            refused: refused.collect(),
                        };
                        assert_eq!(answered, expected, "history {number}");
                    }
                    StrayAck(batch) => {
                        assert_eq!(credit.note_ack(*batch, &[]), None, "history {number}");
                    }
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
