//! The pause of a restart with an exact state, in the predecessor and in the successor.
//!
//! ```text
//! predecessor                                             successor
//! accept no more; begin no message; close what
//! cannot move                                             (ready)
//! begin no call; wait for those in progress
//! export                                             ─►   Cutover, with the state: import
//!                                                    ◄─   Accepting
//! Commit                                             ─►   take over the files
//!                                                    ◄─   Ack
//! Proceed: no service is called here any more        ─►   accept
//! ```
//!
//! Until `Proceed`, no service is called in the successor, so a restart that fails loses no change
//! there: the successor is killed, and the predecessor calls services again. All of it takes the
//! limit of the pause at most:
//!
//! | step | limit | when it has passed |
//! |---|---|---|
//! | messages that services have consumed in part come to their end | half of the limit | the pause goes on: these messages get no call any more |
//! | calls in progress come to their end | the limit | the restart fails |
//! | export, import, and the takeover | the limit | the restart fails |
//!
//! Up to `Commit`, a stop of either process ends the restart. A predecessor that is told to stop after
//! `Commit` closes its connections, and leaves the clients that wait in the kernel to the successor. A
//! successor that is told to stop after `Ack` waits for `Proceed`, and accepts these clients before it
//! closes its listeners.

use std::io;
use std::time::{Duration, Instant};

use super::{RestartableServer, Restarter};
use crate::clock::Deadline;
use crate::log;
use crate::panic;
use crate::restart::error::RestartErrorKind;
use crate::restart::inherited::read_state;
use crate::restart::link::send_with;
use crate::sys::{self, Descriptor};
use crate::wire::HandshakeMessage;

/// How often the restarter looks how far the servers have come.
const CHECK_EVERY: Duration = Duration::from_millis(1);

/// A pause in progress.
pub(super) struct PauseProgress {
    pub(super) since: Instant,
    pub(super) deadline: Deadline,
    step: PauseStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PauseStep {
    /// Messages come to their end, until the time.
    Settling(Deadline),
    /// Calls come to their end.
    Closing,
    /// The state is the successor's, once it has answered.
    Exported,
}

impl PauseProgress {
    /// When the restarter has to look again.
    pub(super) fn next_check(&self) -> Deadline {
        match self.step {
            PauseStep::Exported => self.deadline,
            _ => Deadline::after(Instant::now(), CHECK_EVERY).earlier(self.deadline),
        }
    }
}

impl Restarter {
    // ---- the predecessor ----

    /// The successor is ready: pauses for it.
    pub(super) fn begin_pause(
        &mut self,
        server: &dyn RestartableServer,
        imports: bool,
        adopts: bool,
    ) {
        if !imports {
            let why = "the successor does not take an exact state: its program has to call \
                       Restart::exact_state, with a version of handover that has it";
            return self.abort_restart(server, RestartErrorKind::State, why.to_owned());
        }
        let since = Instant::now();
        let limit = self.pause_limit;
        log::debug!("pausing for the state");
        server.settle(self.moves_connections && adopts);
        self.pause = Some(PauseProgress {
            since,
            deadline: Deadline::after(since, limit),
            step: PauseStep::Settling(Deadline::after(since, limit / 2)),
        });
    }

    /// Goes on with the pause, or fails the restart if the pause has become too long.
    pub(super) fn advance_pause(&mut self, server: &dyn RestartableServer) {
        let Some(pause) = &mut self.pause else {
            return;
        };
        let now = Instant::now();
        let is_late = pause.deadline.has_passed(now);
        if let PauseStep::Settling(until) = pause.step {
            if server.is_settled() || until.has_passed(now) {
                server.close_calls();
                pause.step = PauseStep::Closing;
            }
        }
        let step = pause.step;
        let limit = self.pause_limit.as_secs_f32();
        match step {
            PauseStep::Closing if !server.has_calls() => self.hand_state_over(server),
            _ if !is_late => {}
            PauseStep::Settling(_) | PauseStep::Closing => {
                let why =
                    format!("a handler ran for longer than the limit of the pause, {limit} s");
                self.abort_restart(server, RestartErrorKind::State, why);
            }
            PauseStep::Exported => {
                let why = format!(
                    "the export and the import of the state took longer than the limit of the \
                     pause, {limit} s"
                );
                self.abort_restart(server, RestartErrorKind::State, why);
            }
        }
    }

    /// No call is in progress: exports the state, and sends it.
    fn hand_state_over(&mut self, server: &dyn RestartableServer) {
        let (Some(exact), Some(pause)) = (&self.exact_state, &mut self.pause) else {
            return;
        };
        pause.step = PauseStep::Exported;
        let exported = panic::contain(&exact.export)
            .map_err(|why| format!("the export of the state panicked: {why}"));
        let sent = exported.and_then(|state| {
            log::debug!("the state has {} bytes", state.len());
            let successor = self.successor.as_ref().ok_or("the successor has ended")?;
            let file = sys::file::create_anonymous(&state);
            let file = file.map_err(|error| format!("cannot write the state: {error}"))?;
            let message = HandshakeMessage::Cutover { has_state: true };
            let sent = send_with(successor.link.socket(), &message, &file.into());
            sent.map_err(|error| format!("cannot send the state to the successor: {error}"))
        });
        if let Err(why) = sent {
            self.abort_restart(server, RestartErrorKind::State, why);
        }
    }

    /// When the acknowledgement of the successor is due, and after which time that is.
    pub(super) fn takeover_deadline(&self, timeout: Duration) -> Deadline {
        match &self.pause {
            Some(pause) => pause.deadline,
            None => Deadline::after(Instant::now(), timeout),
        }
    }

    // ---- the successor ----

    /// Gives the application the state: that which came with `Cutover`, or else what the predecessor
    /// has left at the start.
    pub(super) fn import_state(&mut self, state: Option<Option<Descriptor>>) -> Result<(), String> {
        let inherited = self.inherited_state.take();
        let Some(import) = self.exact_state.as_mut().and_then(|own| own.import.take()) else {
            return Ok(());
        };
        let state = match state {
            None => inherited,
            Some(file) => {
                let read = file.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
                let read = read.and_then(read_state);
                Some(read.map_err(|error| format!("cannot read the state: {error}"))?)
            }
        };
        let Some(state) = state else {
            return Ok(());
        };
        match panic::contain(|| import(state)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the successor cannot import the state: {error}")),
            Err(why) => Err(format!("the import of the state panicked: {why}")),
        }
    }
}
