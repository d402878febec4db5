//! Handed over: what the process does that is to be replaced by its successor.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::predecessor::is_among;
use super::{Host, Phase, Replacement, SUCCESSOR, Upgrader, answer, stopping};
use crate::clock::Deadline;
use crate::listener::Listener;
use crate::notify;
use crate::restart::error::{RestartError, RestartErrorKind};
use crate::restart::inherited::LIFELINE;
use crate::restart::link::{Incoming, Link, Message};
use crate::restart::program::{StderrTail, SuccessorInputs, end_of};
use crate::sys::{self, Process};

/// A process that is to take over, or has.
pub(super) struct Successor {
    pub(super) process: Process,
    pub(super) link: Link,
    stderr_tail: StderrTail,
    started: Instant,
    /// When it is too late for the next step.
    pub(super) deadline: Deadline,
    pub(super) step: SuccessorStage,
    /// There from the moment when this process has stopped accepting.
    handing: Option<Handed>,
}

/// What is to be undone if the successor does not take over in the end.
pub(super) struct Handed {
    /// The places of the descriptors that the successor has taken.
    kept: Vec<u32>,
    /// This process did accept before.
    paused: bool,
    /// The files that are the successor's now.
    own_paths: Vec<PathBuf>,
}

/// The last step of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuccessorStage {
    Started,
    /// It runs, and speaks this protocol.
    Greeted,
    /// It may accept by now.
    Ready {
        after: Duration,
    },
    /// This process does not accept any more, see [`Handed`].
    Accepting {
        after: Duration,
        gap: Duration,
    },
    /// It has taken over.
    Serving,
    /// It accepted, was told to end, and finishes what it has accepted.
    Aborted,
}

/// How long a successor that accepts may take until it has taken over.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process may take to end that has closed its control socket.
const END_TIMEOUT: Duration = Duration::from_millis(500);

impl Upgrader {
    pub(super) fn restart_if_wanted(&mut self, host: &dyn Host) {
        if !self.wanted {
            return;
        }
        match self.phase {
            // As soon as this process serves alone.
            Phase::Building | Phase::Asking(_) | Phase::Opened => {}
            Phase::Serving => match &self.successor {
                // The one that is under way is what is wanted.
                Some(successor) if successor.step != SuccessorStage::Aborted => {
                    self.wanted = false;
                    // Who asks now may not take what was said before for an answer.
                    notify::reloading(format_args!("starting generation {}", self.generation + 1));
                }
                Some(_) => {}
                None => self.start(host),
            },
            Phase::Left => {
                let why = "another process has taken over already";
                self.refuse(&RestartError::new(RestartErrorKind::Replaced, why));
            }
            Phase::Stopping => self.refuse(&stopping()),
        }
    }

    fn start(&mut self, host: &dyn Host) {
        self.wanted = false;
        let next = self.generation + 1;
        log::info!(
            "starting generation {next}: {}",
            self.program.path().display()
        );
        notify::reloading(format_args!("starting generation {next}"));
        self.extended = Instant::now();
        match self.try_start(host) {
            Ok(successor) => {
                if self.supervisor.is_some() {
                    notify::successor(successor.process.id());
                }
                self.successor = Some(successor);
            }
            Err(error) => {
                let program = self.program.path().display();
                let why = format!("cannot start {program}: {error}");
                self.fail(&RestartError::new(RestartErrorKind::Start, why));
            }
        }
    }

    fn try_start(&self, host: &dyn Host) -> std::io::Result<Successor> {
        let (ours, theirs) = sys::message::create_pair()?;
        let (mut descriptors, mut by_name) = (Vec::new(), Vec::new());
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            let name = listener.name().to_owned();
            if listener.by_name {
                by_name.push(descriptors.len());
            }
            descriptors.push((name, sys::descriptor::duplicate(&listener.socket)?));
        }
        if let Some(link) = &self.supervisor {
            descriptors.push((
                LIFELINE.to_owned(),
                sys::descriptor::duplicate(link.socket())?,
            ));
        }
        for (name, descriptor) in &self.passed {
            descriptors.push((name.clone(), descriptor.try_clone()?));
        }
        let started = Instant::now();
        let mut link = Link::new(ours);
        link.watch(&self.poller, SUCCESSOR)?;
        let (process, stderr_tail) = self.program.start(SuccessorInputs {
            descriptors,
            by_name,
            control: &theirs,
            state: host.export(),
            generation: self.generation + 1,
        })?;
        Ok(Successor {
            process,
            link,
            stderr_tail,
            started,
            deadline: Deadline::after(started, self.ready_timeout),
            step: SuccessorStage::Started,
            handing: None,
        })
    }

    pub(super) fn hear_successor(&mut self, host: &dyn Host) {
        while let Some(successor) = &mut self.successor {
            match successor.link.receive() {
                Incoming::Nothing => return successor.link.rearm(),
                Incoming::Message(message) => self.obey_successor(host, message),
                Incoming::End => self.lose_successor(host),
            }
        }
    }

    fn obey_successor(&mut self, host: &dyn Host, message: Message) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        match (successor.step, message) {
            (SuccessorStage::Started, Message::Hello) => successor.step = SuccessorStage::Greeted,
            (SuccessorStage::Greeted, Message::Ready) => {
                let after = successor.started.elapsed();
                successor.step = SuccessorStage::Ready { after };
                successor.link.send(&Message::Cutover);
            }
            // A stop is faster; see `watch_successor`.
            (SuccessorStage::Ready { .. }, Message::Accepting { .. })
                if matches!(self.phase, Phase::Stopping) => {}
            (SuccessorStage::Ready { after }, Message::Accepting { since, kept }) => {
                let paused = host.pause();
                let gap = Duration::from_nanos(since.saturating_sub(sys::clock::monotonic_nanos()));
                let own_paths = disown_paths(&self.listeners);
                successor.deadline = Deadline::after(Instant::now(), ACK_TIMEOUT);
                successor.link.send(&Message::Commit(own_paths.clone()));
                successor.handing = Some(Handed {
                    kept,
                    paused,
                    own_paths,
                });
                successor.step = SuccessorStage::Accepting { after, gap };
            }
            (
                SuccessorStage::Ready { .. } | SuccessorStage::Accepting { .. },
                Message::Abort(why),
            ) => {
                self.give_up(host, RestartError::new(RestartErrorKind::Ended, why));
            }
            (SuccessorStage::Accepting { after, gap }, Message::Ack) => {
                successor.step = SuccessorStage::Serving;
                successor.deadline = Deadline::NEVER;
                successor.process.detach();
                let replacement = Replacement {
                    ready_after: after,
                    accept_gap: gap,
                    pid: successor.process.id(),
                    generation: self.generation,
                };
                self.leave(host, replacement);
            }
            (SuccessorStage::Serving, Message::Superseded) => {
                self.tell_predecessor(&Message::Force)
            }
            (SuccessorStage::Serving, Message::Force) => {
                log::warn!("two later generations drain already: stopping now");
                host.end();
            }
            (step, other) => log::debug!("the successor says {other:?} when it is {step:?}"),
        }
    }

    /// The successor serves.
    fn leave(&mut self, host: &dyn Host, replacement: Replacement) {
        let (pid, next) = (replacement.pid, self.generation + 1);
        let millis = replacement.ready_after.as_millis();
        log::info!("generation {next}, process {pid}, serves; it was ready after {millis} ms");
        if !matches!(self.phase, Phase::Stopping) {
            self.phase = Phase::Left;
        }
        let handing = self.successor.as_mut().and_then(|s| s.handing.take());
        if let Some(handing) = handing {
            // Nobody else removes the files of listeners that the successor does not want.
            let abandoned = self.listeners.iter().zip(0..);
            let abandoned = abandoned.filter(|(_, place)| !handing.kept.contains(place));
            for listener in abandoned.filter_map(|(listener, _)| listener.upgrade()) {
                let path = listener.local_addr().as_path();
                listener.set_own_path(path.is_some_and(|path| is_among(path, &handing.own_paths)));
            }
            host.leave(&handing.kept);
        }
        self.tell_predecessor(&Message::Superseded);
        let own = self.supervisor.as_ref().map(|_| next);
        notify::replaced_by(pid, own, format_args!("generation {next} serves"));
        for waiter in self.waiters.drain(..) {
            answer(&waiter, Ok(replacement));
        }
    }

    /// The successor's end of the control socket is closed.
    fn lose_successor(&mut self, host: &dyn Host) {
        let Some(mut successor) = self.successor.take() else {
            return;
        };
        if successor.step == SuccessorStage::Serving {
            log::warn!(
                "the successor, process {}, has ended",
                successor.process.id()
            );
            return;
        }
        self.take_back(host, successor.handing.take());
        let status = end_of(&mut successor.process, END_TIMEOUT);
        if successor.step == SuccessorStage::Aborted {
            return;
        }
        let why = match successor.step {
            SuccessorStage::Started => "the successor ended before it had begun",
            SuccessorStage::Greeted => "the successor ended before it was ready",
            _ => "the successor ended before it had taken over",
        };
        let stderr_tail = successor.stderr_tail.take();
        // Whoever hears of it finds nothing left of it.
        drop(successor);
        let error = RestartError::new(RestartErrorKind::Ended, why);
        self.fail(&error.with(status, stderr_tail));
    }

    /// Gives a successor up that is there still.
    fn abort(&mut self, host: &dyn Host, kind: RestartErrorKind, why: String) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        successor.link.send(&Message::Abort(why.clone()));
        let error = RestartError::new(kind, why);
        match successor.step {
            SuccessorStage::Started | SuccessorStage::Greeted => {
                // It has no clients, so that nothing is lost by its end.
                let status = end_of(&mut successor.process, Duration::ZERO);
                let stderr_tail = successor.stderr_tail.take();
                self.successor = None;
                self.fail(&error.with(status, stderr_tail));
            }
            _ => self.give_up(host, error),
        }
    }

    /// Serves on beside a successor that may have clients, and ends by itself.
    fn give_up(&mut self, host: &dyn Host, error: RestartError) {
        let Some(successor) = &mut self.successor else {
            return;
        };
        successor.step = SuccessorStage::Aborted;
        successor.deadline = Deadline::after(Instant::now(), self.drain_timeout);
        let handing = successor.handing.take();
        self.take_back(host, handing);
        self.fail(&error);
    }

    /// What was handed over is this process's again.
    fn take_back(&mut self, host: &dyn Host, handing: Option<Handed>) {
        let Some(handing) = handing else { return };
        if handing.paused {
            host.resume();
        }
        match self.phase {
            Phase::Serving => self.take_over(&handing.own_paths),
            _ => self.own_paths(&handing.own_paths),
        }
    }

    /// There was no restart.
    fn fail(&mut self, error: &RestartError) {
        log::error!("no restart: {error}");
        let own = self.supervised_as();
        match self.phase {
            Phase::Serving => {
                let status = format!("{}; the last restart failed: {error}", self.status());
                notify::failed(own, true, status, error);
            }
            // Systemd does not wait for it then.
            Phase::Stopping if own.is_some() => notify::failed(own, false, "stopping", error),
            _ => {}
        }
        self.refuse(error);
    }

    pub(super) fn refuse(&mut self, error: &RestartError) {
        self.wanted = false;
        for waiter in self.waiters.drain(..) {
            answer(&waiter, Err(error.clone()));
        }
    }

    /// Sees to it that a successor does not take longer than it may.
    pub(super) fn watch_successor(&mut self, host: &dyn Host, now: Instant) {
        let stops = matches!(self.phase, Phase::Stopping);
        if let Some(successor) = &mut self.successor {
            let is_late = successor.deadline.passed(now);
            match successor.step {
                SuccessorStage::Serving => {}
                SuccessorStage::Aborted if is_late => {
                    log::error!("ending the successor, which has not ended by itself");
                    end_of(&mut successor.process, Duration::ZERO);
                    self.successor = None;
                }
                SuccessorStage::Started
                | SuccessorStage::Greeted
                | SuccessorStage::Ready { .. }
                    if stops =>
                {
                    let why = "the server is being stopped".to_owned();
                    self.abort(host, RestartErrorKind::Stopping, why);
                }
                SuccessorStage::Started if is_late => {
                    let seconds = self.ready_timeout.as_secs_f32();
                    let why = format!("the successor has not greeted within {seconds} s");
                    self.abort(host, RestartErrorKind::TimedOut, why);
                }
                SuccessorStage::Accepting { .. } if is_late => {
                    let seconds = ACK_TIMEOUT.as_secs();
                    let why = format!("the successor has not taken over within {seconds} s");
                    self.abort(host, RestartErrorKind::TimedOut, why);
                }
                SuccessorStage::Greeted | SuccessorStage::Ready { .. } if is_late => {
                    let seconds = self.ready_timeout.as_secs_f32();
                    let why = format!("the successor was not ready within {seconds} s");
                    self.abort(host, RestartErrorKind::TimedOut, why);
                }
                _ => {}
            }
        }
    }
}

/// The files of Unix sockets that this process would have removed in the end, and does not any more.
fn disown_paths(listeners: &[Weak<Listener>]) -> Vec<PathBuf> {
    let listeners = listeners.iter().filter_map(Weak::upgrade);
    let paths = listeners.filter_map(|listener| {
        let path = listener.own_path()?.to_owned();
        listener.set_own_path(false);
        Some(path)
    });
    paths.collect()
}
