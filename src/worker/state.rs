//! The state of a worker: built by the service, and dropped after a panic.

use std::io;

use super::recovery::delay;
use super::{Worker, Workers};
use crate::clock;
use crate::log;
use crate::panic;
use crate::service::Service;

impl<'a, S: Service> Workers<'a, S> {
    pub(super) fn build_state(&self, index: usize) -> io::Result<S::Worker> {
        panic::contain(|| self.service.worker(index)).map_err(panic_error)?
    }

    /// Builds the worker's state, if the worker has none. False if the build fails: the worker must
    /// then recover.
    #[inline]
    pub(super) fn ensure_state(&self, worker: &mut Worker<'a, S>) -> bool {
        if worker.own.is_none() && !worker.must_recover {
            match self.build_state(worker.index) {
                Ok(state) => worker.own = Some(state),
                Err(error) => {
                    worker.must_recover = true;
                    log::error!(
                        "worker {}: cannot build its state: {error}; trying again, other workers \
                         serve meanwhile",
                        worker.index
                    );
                    log::drop_contained("an error", error);
                }
            }
            worker.now = clock::nanos();
        }
        worker.own.is_some()
    }

    /// Tries to build the worker's state, with a back-off, until that succeeds or the server ends.
    /// The worker takes no connection meanwhile.
    #[cold]
    pub(super) fn recover(&self, worker: &mut Worker<'a, S>) {
        let index = worker.index;
        // A wake-up for an entry on a queue may have reached this worker.
        self.lots.wake_next();
        worker.home.begin_absence(index);
        let mut failures = 1;
        while worker.own.is_none() && worker.home.wait_absent(index, delay(failures, index)) {
            match self.build_state(index) {
                Ok(state) => {
                    log::info!("worker {index}: serves again, after {failures} failed attempts");
                    worker.own = Some(state);
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    log::debug!("worker {index}: still cannot build its state: {error}");
                    log::drop_contained("an error", error);
                }
            }
        }
        worker.must_recover = false;
        worker.entries = 0;
        worker.home.end_absence(index);
    }

    /// Drops a worker's state. The drop is the application's code.
    pub(super) fn discard_state(&self, worker: &mut Worker<'a, S>) {
        let state = worker.own.take();
        log::drop_contained(format_args!("the state of worker {}", worker.index), state);
    }
}

pub(super) fn panic_error(why: String) -> io::Error {
    io::Error::other(format!("panicked: {why}"))
}
