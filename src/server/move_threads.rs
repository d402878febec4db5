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
use crate::server::move_channels::MoveChannels;
use crate::service::Service;
use crate::sys::Poller;

/// How long the end of a server waits for these threads, in total.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The most threads that adopt connections at once: one for each predecessor.
pub(super) const MOST_ADOPTERS: usize = 4;

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
}

impl<'scope, 'env: 'scope, S: Service> MoveThreads<'scope, 'env, S> {
    pub(super) fn new(parts: MoveParts<'env, S>, spawn: Spawn<'scope>) -> Self {
        Self {
            parts,
            spawn,
            mover: None,
            adopters: Vec::new(),
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
            self.adopters.retain(MoveThread::runs);
            if self.adopters.len() == MOST_ADOPTERS {
                log::warn!("connections of a predecessor stay there: others are being adopted");
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
        self.start(MoveThreadKind::Adopter, end, || adopter.run())
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
