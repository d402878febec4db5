//! Taking over: what the process does that is to replace its predecessor.

use std::path::{Path, PathBuf};
use std::sync::Weak;

use crossbeam_channel::Sender;

use super::{Host, Phase, Upgrader, answer};
use crate::notify;
use crate::restart::inherited::Predecessor;
use crate::restart::link::{Incoming, Link, Message};
use crate::restart::pid_file::PidFile;
use crate::sys;

/// Tells a predecessor that its successor runs.
pub(in crate::restart) fn greet(predecessor: &Predecessor) {
    match predecessor.control.try_clone() {
        Ok(control) => Link::new(control).send(&Message::Hello),
        Err(error) => log::error!("cannot greet the predecessor: {error}"),
    }
}

impl Upgrader {
    pub(super) fn ready(&mut self, host: &dyn Host, reply: Sender<Result<(), String>>) {
        self.restore_stderr();
        if let Some(why) = self.aborted.take() {
            answer(&reply, Err(why));
            return;
        }
        if matches!(self.phase, Phase::Stopping) {
            // Somebody was faster. It never serves, and whoever runs it hears of the stop.
            answer(&reply, Ok(()));
            return;
        }
        match &self.predecessor {
            Some(link) => {
                link.send(&Message::Ready);
                self.phase = Phase::Asking(reply);
            }
            None => {
                let result = self.serve(host);
                answer(&reply, result);
            }
        }
    }

    pub(super) fn restore_stderr(&mut self) {
        if let Some(stderr) = self.stderr.take() {
            if let Err(error) = sys::descriptor::replace_stderr(&stderr.own) {
                log::error!("cannot get standard error back: {error}");
            }
        }
    }

    /// Serves without a predecessor that would have to agree.
    pub(super) fn serve(&mut self, host: &dyn Host) -> Result<(), String> {
        if let Some(path) = &self.pid_path {
            // The predecessor has just died, and the system may not have taken note of all of it.
            let claimed = match self.generation {
                1 => PidFile::claim(path),
                _ => PidFile::replace(path),
            };
            let claimed = claimed.map_err(|error| format!("cannot write the pid file: {error}"));
            self.pid_file = Some(claimed?);
        }
        host.open();
        self.phase = Phase::Serving;
        notify::ready(self.supervised_as(), self.status());
        Ok(())
    }

    pub(super) fn hear_predecessor(&mut self, host: &dyn Host) {
        while let Some(link) = &self.predecessor {
            match link.receive() {
                Incoming::Nothing => return link.rearm(),
                Incoming::Message(message) => self.obey_predecessor(host, message),
                Incoming::End => {
                    self.predecessor = None;
                    self.lose_predecessor(host);
                }
            }
        }
    }

    fn obey_predecessor(&mut self, host: &dyn Host, message: Message) {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopping);
        self.phase = match (phase, message) {
            (Phase::Asking(reply), Message::Cutover) => {
                host.open();
                self.tell_predecessor(&Message::Accepting {
                    since: sys::clock::monotonic_nanos(),
                    kept: self.kept.clone(),
                });
                answer(&reply, Ok(()));
                Phase::Opened
            }
            (Phase::Opened, Message::Commit(paths)) => {
                self.take_over(&paths);
                self.tell_predecessor(&Message::Ack);
                Phase::Serving
            }
            (Phase::Asking(reply), Message::Abort(why)) => {
                answer(&reply, Err(why));
                Phase::Building
            }
            (Phase::Building, Message::Abort(why)) => {
                self.aborted = Some(why);
                Phase::Building
            }
            (Phase::Opened | Phase::Serving, Message::Abort(why)) => {
                log::error!("the predecessor serves on: {why}");
                for listener in self.listeners.iter().filter_map(Weak::upgrade) {
                    listener.set_own_path(false);
                }
                host.drain();
                Phase::Stopping
            }
            (phase, Message::Drained(how)) => {
                log::info!("generation {}: {how}", self.generation.saturating_sub(1));
                phase
            }
            (phase, other) => {
                log::debug!("the predecessor says {other:?} at a strange time");
                phase
            }
        };
    }

    /// The predecessor has ended. If it had not handed over yet, this process is all that there is.
    fn lose_predecessor(&mut self, host: &dyn Host) {
        self.restore_stderr();
        match std::mem::replace(&mut self.phase, Phase::Stopping) {
            Phase::Asking(reply) => {
                log::warn!("the predecessor has died; serving in its place");
                self.phase = Phase::Building;
                let result = self.serve(host);
                answer(&reply, result);
            }
            Phase::Opened => {
                log::warn!("the predecessor has died; serving in its place");
                self.take_over(&[]);
                self.phase = Phase::Serving;
                notify::ready(self.supervised_as(), self.status());
            }
            Phase::Serving => {
                self.phase = Phase::Serving;
                // It may have died before it has said so.
                if let Some(generation) = self.supervised_as() {
                    notify::ready(Some(generation), self.status());
                }
            }
            phase => self.phase = phase,
        }
    }

    /// A process without its supervisor would be restarted by nobody, and stopped by nobody.
    pub(super) fn hear_supervisor(&mut self, host: &dyn Host) {
        while let Some(link) = &self.supervisor {
            match link.receive() {
                Incoming::Nothing => return link.rearm(),
                Incoming::Message(_) => {}
                Incoming::End => {
                    self.supervisor = None;
                    self.lose_supervisor(host);
                }
            }
        }
    }

    fn lose_supervisor(&mut self, host: &dyn Host) {
        if !matches!(self.phase, Phase::Left | Phase::Stopping) {
            log::error!("the supervisor has died: finishing what is in progress, and ending");
            host.drain();
        }
    }

    /// What belongs to the serving process belongs to this one from now on.
    pub(super) fn take_over(&mut self, paths: &[PathBuf]) {
        self.own_paths(paths);
        if let Some(path) = &self.pid_path {
            match PidFile::replace(path) {
                Ok(file) => self.pid_file = Some(file),
                Err(error) => log::error!("cannot write {}: {error}", path.display()),
            }
        }
        log::info!("generation {} serves", self.generation);
    }

    /// The files of these Unix sockets are to be removed in the end.
    pub(super) fn own_paths(&self, paths: &[PathBuf]) {
        for listener in self.listeners.iter().filter_map(Weak::upgrade) {
            let path = listener.local_addr().as_path();
            if path.is_some_and(|path| is_among(path, paths)) {
                listener.set_own_path(true);
            }
        }
    }

    pub(super) fn tell_predecessor(&self, message: &Message) {
        if let Some(link) = &self.predecessor {
            link.send(message);
        }
    }
}

pub(super) fn is_among(path: &Path, paths: &[PathBuf]) -> bool {
    paths.iter().any(|own| own == path)
}
