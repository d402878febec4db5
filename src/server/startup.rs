//! The last steps of a start, once all threads of the servers run.

use std::io;
use std::sync::Arc;
use std::thread;

use crate::acceptor::AcceptGate;
use crate::panic;
use crate::restart::{ReadyWhen, RecordedSignals, RestarterHandle};
use crate::server::shared::ServerShared;
#[cfg(feature = "signals")]
use crate::signals::Subscription;

/// The process's signals go to the servers until this is dropped. Empty where the servers handle
/// signals only until they have stopped.
#[derive(Default)]
#[must_use = "a drop gives the signals their default actions"]
pub(super) struct KeptSignals {
    #[cfg(feature = "signals")]
    pub(super) subscriptions: Vec<Subscription>,
}

/// Signals are handled, `ready_when` is called, and the acceptors begin.
pub(super) struct Startup {
    /// The first of the servers. They stop together.
    first: Arc<ServerShared>,
    ready_thread: String,
    gates: Vec<Arc<AcceptGate>>,
    pub(super) restarter: Option<RestarterHandle>,
    pub(super) ready_when: Option<ReadyWhen>,
    pub(super) recorded_signals: Option<RecordedSignals>,
    pub(super) handles_signals: bool,
    pub(super) signals: KeptSignals,
    /// A signal that stops the servers has arrived already.
    is_stopped: bool,
}

impl Startup {
    pub(super) fn new(
        first: &Arc<ServerShared>,
        gates: Vec<Arc<AcceptGate>>,
        ready_thread: String,
    ) -> Self {
        Self {
            first: Arc::clone(first),
            ready_thread,
            gates,
            restarter: None,
            ready_when: None,
            recorded_signals: None,
            handles_signals: false,
            signals: KeptSignals::default(),
            is_stopped: false,
        }
    }

    /// Has the signals handled that were recorded until there are handlers for them.
    pub(super) fn release_signals(&mut self) {
        if let Some(mut recorded) = self.recorded_signals.take() {
            self.is_stopped = recorded.release() && self.handles_signals;
        }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        // A stop that was requested before the start: nothing is to be accepted.
        if self.is_stopped || self.first.is_stopping_group() {
            return Ok(());
        }
        if let Some(ready_when) = self.ready_when {
            let (done, ready) = crossbeam_channel::bounded(1);
            // A thread of its own, since a stop does not wait for it.
            thread::Builder::new()
                .name(self.ready_thread)
                .spawn(move || drop(done.send(panic::contain(ready_when))))?;
            crossbeam_channel::select! {
                recv(ready) -> result => {
                    let result = result.unwrap_or_else(|_| Err("its thread has ended".to_owned()));
                    let panicked = |why| io::Error::other(format!("ready_when panicked: {why}"));
                    result.map_err(panicked)?.map_err(io::Error::other)?;
                }
                recv(self.first.app_threads.stopped()) -> _ => return Ok(()),
            }
        }
        match self.restarter {
            Some(restarter) => restarter.announce_ready().map_err(io::Error::other),
            None => {
                for gate in &self.gates {
                    gate.start();
                }
                #[cfg(feature = "windows-service")]
                crate::service_manager::report_ready();
                Ok(())
            }
        }
    }
}
