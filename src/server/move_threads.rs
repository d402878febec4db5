//! The threads of a server that move its open connections to a successor, or adopt those of a
//! predecessor.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use socket2::Socket;

use crate::acceptor::{AcceptGate, AdmissionPolicy, MovedAdmission};
use crate::listener::ListenerInfo;
use crate::log;
use crate::moving::{Adopter, EndRequest, Mover};
use crate::parking::{Lots, MoverQueue};
use crate::restart::RestarterHandle;
use crate::server::move_channels::MoveChannels;
use crate::service::Service;
use crate::sys::Poller;
use crate::wire::ServerId;

/// How long the end of a server waits for these threads, in total.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The most threads that adopt connections at once: one for each process that gives some to this one.
/// By default, [`max_draining`](crate::Restart::max_draining) is 4.
pub(super) const MOST_ADOPTERS: usize = 16;

/// A mover or an adopter.
struct MoveThread {
    end: EndRequest,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl MoveThread {
    fn runs(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }
}

/// What the threads work with, of their server.
pub(super) struct MoveParts<'env, S: Service> {
    pub(super) service: &'env S,
    pub(super) lots: &'env Lots<S::Session>,
    pub(super) idle_grace: Duration,
    pub(super) admission: &'env AdmissionPolicy,
    pub(super) gate: &'env AcceptGate,
    pub(super) channels: &'env MoveChannels,
    pub(super) listeners: &'env [Arc<ListenerInfo>],
    /// The position among the servers of the process.
    pub(super) position: usize,
    pub(super) restarter: Option<&'env RestarterHandle>,
}

impl<S: Service> MoveParts<'_, S> {
    fn id(&self) -> ServerId {
        ServerId {
            listeners: self.listeners.iter().map(|own| own.id()).collect(),
            position: u32::try_from(self.position).unwrap_or(u32::MAX),
        }
    }
}

/// The kind of a thread.
#[derive(Clone, Copy, Debug)]
pub(super) enum MoveThreadKind {
    Mover,
    Adopter,
}

/// Starts a thread of the server.
type Spawn<'scope> =
    Box<dyn Fn(MoveThreadKind, Box<dyn FnOnce() + Send + 'scope>) -> io::Result<()> + 'scope>;

/// The movers and adopters of a server. Its main thread starts and ends them.
pub(super) struct MoveThreads<'scope, 'env: 'scope, S: Service> {
    parts: MoveParts<'env, S>,
    spawn: Spawn<'scope>,
    mover: Option<(MoveThread, Arc<MoverQueue>)>,
    adopters: Vec<MoveThread>,
    /// This process was replaced: channels of predecessors are passed on.
    is_replaced: bool,
}

impl<'scope, 'env: 'scope, S: Service> MoveThreads<'scope, 'env, S> {
    pub(super) fn new(parts: MoveParts<'env, S>, spawn: Spawn<'scope>) -> Self {
        Self {
            parts,
            spawn,
            mover: None,
            adopters: Vec::new(),
            is_replaced: false,
        }
    }

    /// Begins to move connections to the successor, over this channel.
    ///
    /// # Errors
    ///
    /// Errors of the system. No connection moves then.
    pub(super) fn start_mover(&mut self, channel: Socket) -> io::Result<()> {
        let (service, lots) = (self.parts.service, self.parts.lots);
        let idle_grace = self.parts.idle_grace;
        let queue = Arc::new(MoverQueue::new(Arc::new(Poller::new()?)));
        let to_mover = Arc::clone(&queue);
        let mover = Mover::new(service, lots, to_mover, channel, idle_grace)?;
        let end = mover.end_request();
        lots.begin_moving(Arc::clone(&queue), idle_grace);
        let started = self.start(MoveThreadKind::Mover, end, || mover.run());
        let thread = started.inspect_err(|_| lots.end_moving(&queue))?;
        self.mover = Some((thread, queue));
        Ok(())
    }

    /// The mover has ended, perhaps by a panic: no connection may be left on its queue.
    pub(super) fn note_mover_end(&self) {
        let lots = self.parts.lots;
        lots.drain.mark_replaced(self.parts.idle_grace);
        if let Some((_, queue)) = &self.mover {
            lots.end_moving(queue);
        }
        lots.shorten_idle();
    }

    /// Adopts the connections of predecessors, over channels that the restarter has left.
    pub(super) fn start_adopters(&mut self) {
        while let Some(channel) = self.parts.channels.take_incoming() {
            if self.is_replaced {
                pass_on(self.parts.restarter, self.parts.id(), channel);
                continue;
            }
            self.adopters.retain(MoveThread::runs);
            if self.adopters.len() == MOST_ADOPTERS {
                log::warn!("connections of another process stay there: others are being adopted");
                continue;
            }
            match self.start_adopter(channel) {
                Ok(adopter) => self.adopters.push(adopter),
                Err(error) => log::error!("cannot adopt open connections: {error}"),
            }
        }
    }

    fn start_adopter(&self, channel: Socket) -> io::Result<MoveThread> {
        let parts = &self.parts;
        let admission = MovedAdmission::new(parts.lots, parts.admission, parts.gate);
        let (service, lots, listeners) = (parts.service, parts.lots, parts.listeners);
        let adopter = Adopter::new(service, lots, admission, listeners, channel)?;
        let end = adopter.end_request();
        let (restarter, id) = (parts.restarter, parts.id());
        let run = move || {
            if let Some(channel) = adopter.run() {
                pass_on(restarter, id, channel);
            }
        };
        self.start(MoveThreadKind::Adopter, end, run)
    }

    /// This process was replaced: connections of predecessors go to the successor.
    pub(super) fn pass_channels_on(&mut self) {
        self.is_replaced = true;
        let adopters = self.adopters.iter();
        adopters.for_each(|adopter| adopter.end.ask_for_channel());
        self.start_adopters();
    }

    fn start(
        &self,
        kind: MoveThreadKind,
        end: EndRequest,
        run: impl FnOnce() + Send + 'scope,
    ) -> io::Result<MoveThread> {
        let (runs, has_ended) = crossbeam_channel::bounded::<()>(0);
        let run = move || {
            run();
            drop(runs);
        };
        (self.spawn)(kind, Box::new(run))?;
        Ok(MoveThread {
            end,
            ended: has_ended,
        })
    }

    /// Whether connections of a predecessor may still come.
    pub(super) fn is_adopting(&self) -> bool {
        self.adopters.iter().any(MoveThread::runs)
    }

    /// The stage of the drain has changed.
    pub(super) fn wake(&self) {
        self.iter().for_each(|thread| thread.end.wake());
    }

    /// Ends the threads. From then on, no connection of this server is on its way to or from another
    /// process.
    pub(super) fn end(self) {
        self.parts.channels.close();
        self.iter().for_each(|thread| thread.end.make());
        let deadline = Instant::now() + END_TIMEOUT;
        for thread in self.iter() {
            // Closed, or late.
            let _ = thread.ended.recv_deadline(deadline);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &MoveThread> {
        let mover = self.mover.iter().map(|(thread, _)| thread);
        mover.chain(&self.adopters)
    }
}

/// Passes the channel of a predecessor on to the successor of this server.
fn pass_on(restarter: Option<&RestarterHandle>, id: ServerId, channel: Socket) {
    if let Some(restarter) = restarter {
        restarter.pass_on_channel(id, channel);
    }
}

#[cfg(test)]
mod tests;
