//! The mover: the thread that sends connections to the successor. It exists from the moment at
//! which the successor serves until this process ends.
//!
//! One loop: answers come in, batches go out as far as the credit allows, and then the thread waits
//! for answers, for connections that workers bring, and for the end.
//!
//! How the loop ends, and what becomes of the connections that have not moved:
//!
//! | because | in flight | others |
//! |---|---|---|
//! | the successor has closed the channel | taken back | drain, as without a mover |
//! | the channel fails | left to the successor | drain, as without a mover |
//! | this server stops | answers are waited for, up to a limit, then given up to the successor | as the stop says |
//! | this server has stopped | given up to the successor | as the stop says |

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::credit::{Answered, Credit};
use super::{EndRequest, WarnOnce, rearm};
use crate::clock::{self, Deadline};
use crate::log;
use crate::panic;
use crate::parking::{Lots, MoverQueue, Turn, Walk};
use crate::service::Service;
use crate::stats::count;
use crate::sys::{self, Events};
use crate::wire::{Batch, ConnectionRecord, MoveMessage, Pushed, Record};

/// How long a stop waits for answers to batches in flight.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before another attempt to send, if no answer makes room, and for how long attempts are
/// made. No process serves the connections meanwhile.
const SEND_PAUSE: Duration = Duration::from_millis(2);
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a batch collects connections, which are not served meanwhile. A pack in progress may
/// outlast this time.
const COLLECT_TIME: Duration = Duration::from_millis(5);

/// A connection on its way.
struct Moving<'a, T> {
    turn: Turn<'a, T>,
    /// No process has served the connection since then, in the clock's nanoseconds.
    since: u64,
}

/// A batch that is to be sent.
struct Unsent<'a, T> {
    number: u64,
    text: String,
    connections: Vec<Moving<'a, T>>,
}

/// How the mover's loop has ended.
enum LoopEnd {
    ChannelClosed,
    ChannelFailed,
    Stop,
}

/// See the head of this file.
pub(crate) struct Mover<'a, S: Service> {
    service: &'a S,
    lots: &'a Lots<S::Session>,
    queue: Arc<MoverQueue>,
    channel: Socket,
    idle_grace: Duration,
    end: EndRequest,
    /// The connections that were parked when the move began, or that had no place on the queue.
    walk: Option<Walk>,
    /// A connection that had no place in the last batch.
    left_over: Option<(ConnectionRecord, Moving<'a, S::Session>)>,
    /// A batch that could not be sent at once.
    unsent: Option<Unsent<'a, S::Session>>,
    /// The number of the next batch.
    next_batch: u64,
    credit: Credit<Moving<'a, S::Session>>,
    buffer: Vec<u8>,
    /// About what this process does not understand, and about batches that cannot be sent.
    unknown_log: WarnOnce,
    send_log: WarnOnce,
}

impl<'a, S: Service> Mover<'a, S> {
    /// `queue` is the one that the connections go to, and `channel` leads to the successor.
    ///
    /// # Errors
    ///
    /// Errors of the poller.
    pub(crate) fn new(
        service: &'a S,
        lots: &'a Lots<S::Session>,
        queue: Arc<MoverQueue>,
        channel: Socket,
        idle_grace: Duration,
    ) -> io::Result<Self> {
        queue.poller.add(&channel, 0)?;
        Ok(Self {
            service,
            lots,
            end: EndRequest::new(Arc::clone(&queue.poller)),
            queue,
            channel,
            idle_grace,
            walk: Some(Walk::default()),
            left_over: None,
            unsent: None,
            next_batch: 0,
            credit: Credit::new(),
            buffer: vec![0; MoveMessage::LIMIT],
            unknown_log: WarnOnce::default(),
            send_log: WarnOnce::default(),
        })
    }

    pub(crate) fn end_request(&self) -> EndRequest {
        self.end.clone()
    }

    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(4);
        let end = loop {
            match self.receive_answers() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    break LoopEnd::ChannelClosed;
                }
                Err(error) => {
                    log::error!("the mover cannot receive answers: {error}");
                    break LoopEnd::ChannelFailed;
                }
            }
            if self.stops() {
                break LoopEnd::Stop;
            }
            self.send_batches();
            self.wait(&mut events);
        };
        match end {
            LoopEnd::ChannelClosed => self.drain_here(),
            LoopEnd::ChannelFailed => {
                // The successor may serve them: two processes must not.
                self.leave_in_flight();
                self.drain_here();
            }
            LoopEnd::Stop => self.finish(&mut events),
        }
    }

    fn stops(&self) -> bool {
        self.end.is_made() || self.lots.drain.is_closing()
    }

    // ---- what comes in ----

    /// Handles the answers that have come.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the successor has closed the channel; errors of receiving.
    fn receive_answers(&mut self) -> io::Result<()> {
        loop {
            match sys::message::receive_sockets(&self.channel, &mut self.buffer, 0) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((size, _)) => match MoveMessage::decode(&self.buffer[..size]) {
                    Ok(MoveMessage::Ack { batch, refused }) => {
                        if let Some(answered) = self.credit.note_ack(batch, &refused) {
                            self.handle_answer(answered);
                        }
                    }
                    Ok(MoveMessage::Connections(_)) => self.log_unknown(&"not an answer"),
                    Err(error) => self.log_unknown(&error),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return rearm(&self.queue.poller, &self.channel);
                }
                // The successor has died with unread batches. Its answers are still to be received.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A later version may send other kinds of messages.
    fn log_unknown(&self, why: &dyn fmt::Display) {
        self.unknown_log
            .write(format_args!("ignoring what the successor sends: {why}"));
    }

    fn handle_answer(&self, answered: Answered<Moving<'a, S::Session>>) {
        let now = clock::nanos();
        for Moving { turn, since } in answered.moved {
            let counters = &self.lots.counters;
            let unserved_for = now.saturating_sub(since);
            counters.longest_move.fetch_max(unserved_for, Relaxed);
            count(&counters.moved);
            // Closes this process's copy of the socket.
            drop(turn);
        }
        for (Moving { turn, .. }, why) in answered.refused {
            if let Some(client) = turn.info() {
                log::debug!("{client}: stays, the other process refuses it: {why}");
            }
            turn.stay();
        }
    }

    // ---- what goes out ----

    fn send_batches(&mut self) {
        if let Some(batch) = self.unsent.take() {
            self.send(batch);
        }
        if self.unsent.is_none() && self.credit.may_send() {
            // Busy connections come to the queue again, and need no walk.
            self.queue.set_blocked(false);
        }
        while self.unsent.is_none() && self.credit.may_send() {
            let batch = self.collect();
            if batch.connections.is_empty() {
                return;
            }
            self.send(batch);
        }
    }

    fn send(&mut self, batch: Unsent<'a, S::Session>) {
        let connections = &batch.connections;
        let infos = connections.iter().filter_map(|moving| moving.turn.info());
        let sockets: Vec<&Socket> = infos.map(|info| &info.socket).collect();
        match sys::message::send_sockets(&self.channel, &batch.text, &sockets) {
            Ok(()) => self.credit.note_sent(batch.number, batch.connections),
            Err(error) if sys::message::is_temporary(&error) && !is_late(connections) => {
                self.unsent = Some(batch);
            }
            Err(error) => {
                let count = connections.len();
                self.send_log.write(format_args!(
                    "{count} connections stay, they cannot be sent: {error}"
                ));
                let connections = batch.connections.into_iter();
                connections.for_each(|moving| moving.turn.stay());
            }
        }
    }

    /// Collects a batch, of what has come so far. Empty if nothing is left, or this server stops.
    fn collect(&mut self) -> Unsent<'a, S::Session> {
        let deadline = Deadline::after(Instant::now(), COLLECT_TIME);
        let (mut batch, mut connections) = (Batch::default(), Vec::new());
        while !self.stops() {
            // A service may take long to pack its sessions.
            if !connections.is_empty() && deadline.has_passed(Instant::now()) {
                break;
            }
            let packed = match self.left_over.take() {
                None => match self.next_turn() {
                    None => break,
                    Some(turn) => self.pack(turn),
                },
                left_over => left_over,
            };
            let Some((record, moving)) = packed else {
                if deadline.has_passed(Instant::now()) {
                    // Answers come first. Another walk finds the others.
                    self.queue.note_missed();
                    break;
                }
                continue;
            };
            match batch.push(&record) {
                Pushed::Open => connections.push(moving),
                Pushed::Full => {
                    connections.push(moving);
                    break;
                }
                Pushed::Later => {
                    self.left_over = Some((record, moving));
                    break;
                }
                Pushed::Never => moving.turn.stay(),
            }
        }
        let number = self.next_batch;
        self.next_batch = number.wrapping_add(1);
        Unsent {
            number,
            text: batch.into_text(number),
            connections,
        }
    }

    /// `None`: the connection stays.
    fn pack(
        &self,
        mut turn: Turn<'a, S::Session>,
    ) -> Option<(ConnectionRecord, Moving<'a, S::Session>)> {
        let since = turn.unserved_since();
        let service = self.service;
        let record = turn.pack(|conn, session| {
            let packed = panic::contain(|| service.pack(conn, session));
            packed.unwrap_or_else(|why| {
                log::error!(
                    "{}: stays, the pack of its session panicked: {why}",
                    conn.info()
                );
                None
            })
        });
        match record {
            Some(record) => Some((record, Moving { turn, since })),
            None => {
                turn.stay();
                None
            }
        }
    }

    fn next_turn(&mut self) -> Option<Turn<'a, S::Session>> {
        let lots = self.lots;
        while let Some(turn) = lots.take_movable(&self.queue) {
            match turn.can_move_now() {
                true => return Some(turn),
                false => turn.go_on(),
            }
        }
        // A walk goes to its end first: it passes over many slots.
        if self.walk.is_none() && self.queue.take_missed() {
            self.walk = Some(Walk::default());
        }
        let turn = self.walk.as_mut().and_then(|walk| lots.claim_movable(walk));
        if turn.is_none() {
            self.walk = None;
        }
        turn
    }

    fn wait(&mut self, events: &mut Events) {
        let is_blocked = self.unsent.is_some();
        let may_take = self.credit.may_send() && !is_blocked;
        self.queue.set_blocked(!may_take);
        if !may_take {
            self.serve_here();
        } else if !self.queue.begin_sleep() {
            return;
        }
        let timeout = is_blocked.then_some(SEND_PAUSE);
        if let Err(error) = self.queue.poller.wait(events, 4, timeout) {
            log::error!("the mover cannot wait for events: {error}");
        }
        self.queue.end_sleep();
    }

    /// The successor is slow: the connections that wait for it are served here until the next walk.
    fn serve_here(&mut self) {
        if let Some((_, moving)) = self.left_over.take() {
            self.queue.note_missed();
            moving.turn.take_back();
        }
        while let Some(turn) = self.lots.take_movable(&self.queue) {
            self.queue.note_missed();
            turn.go_on();
        }
    }

    // ---- the end ----

    /// The successor takes no more: what is here drains.
    fn drain_here(&mut self) {
        self.lots.drain.mark_replaced(self.idle_grace);
        let in_flight = self.credit.take_all();
        if !in_flight.is_empty() {
            log::warn!(
                "the successor has not answered: {} connections are taken back",
                in_flight.len()
            );
        }
        in_flight.into_iter().for_each(|moving| moving.turn.stay());
        self.keep_unsent();
        self.lots.shorten_idle();
    }

    /// This server stops, or has no connection left.
    fn finish(&mut self, events: &mut Events) {
        self.keep_unsent();
        let deadline = Deadline::after(Instant::now(), ANSWER_TIMEOUT);
        while !self.credit.is_empty() {
            match self.receive_answers() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let left = self.credit.take_all();
                    return left.into_iter().for_each(|moving| moving.turn.stay());
                }
                Err(_) => return self.leave_in_flight(),
            }
            let now = Instant::now();
            if self.credit.is_empty() {
                return;
            }
            if self.end.is_made() || deadline.has_passed(now) {
                log::warn!("the successor has not answered in time");
                return self.leave_in_flight();
            }
            let timeout = deadline.time_left(now);
            if let Err(error) = self.queue.poller.wait(events, 4, timeout) {
                log::error!("the mover cannot wait for events: {error}");
            }
        }
    }

    /// The successor has the sockets, and serves them when it runs again.
    fn leave_in_flight(&mut self) {
        let left = self.credit.take_all();
        if !left.is_empty() {
            log::warn!("{} connections are left to the successor", left.len());
        }
        for Moving { turn, .. } in left {
            count(&self.lots.counters.moved);
            drop(turn);
        }
    }

    /// Gives the connections that were not sent to the lot.
    fn keep_unsent(&mut self) {
        self.lots.end_moving(&self.queue);
        let unsent = self.unsent.take().map(|batch| batch.connections);
        let left_over = self.left_over.take().map(|(_, moving)| moving);
        let kept = unsent.into_iter().flatten().chain(left_over);
        kept.for_each(|moving| moving.turn.stay());
    }
}

/// Whether attempts to send the batch are made for too long.
fn is_late<T>(batch: &[Moving<'_, T>]) -> bool {
    let first = batch.iter().map(|moving| moving.since).min();
    let elapsed = |since| Duration::from_nanos(clock::nanos().saturating_sub(since));
    first.is_some_and(|since| elapsed(since) > SEND_TIMEOUT)
}

impl<S: Service> Drop for Mover<'_, S> {
    fn drop(&mut self) {
        if let Err(error) = self.queue.poller.remove(&self.channel) {
            log::debug!("cannot remove the channel from the poller: {error}");
        }
    }
}
