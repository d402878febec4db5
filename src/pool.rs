//! A fixed pool of named threads over a bounded channel. It knows no sockets.
//!
//! A worker empties the queue first, and lets its [`Job`] wait when there is nothing in it. A panic of the job
//! costs the item that caused it, never the worker. The pool ends when the queue's last sender is dropped.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, TryRecvError};

/// What the workers of a pool do. Every method runs on the worker's thread.
pub(crate) trait Job: Sync {
    /// What travels through the queue.
    type Item;
    /// What one worker has of its own; built, used and dropped on its thread.
    type State;

    /// A worker starts.
    fn started(&self, worker: usize);

    /// Builds a worker's state: at its start, and again after each panic.
    fn prepare(&self, worker: usize) -> io::Result<Self::State>;

    /// Waits until there may be something to do. Called when the queue is empty; may return an item of its own.
    fn wait(&self, state: &mut Self::State, queue: &Receiver<Self::Item>) -> Option<Self::Item>;

    /// Does the work of one item.
    fn run(&self, state: &mut Self::State, item: Self::Item);

    /// Gives an item up, because there is no state to run it with.
    fn lost(&self, item: Self::Item);

    /// Something of the job's panicked, or a state could not be built.
    fn failed(&self, worker: usize, why: &str);

    /// The worker ends.
    fn ended(&self, worker: usize);
}

/// One worker's life. `ready` is told once whether the first state could be built; without it the worker ends.
pub(crate) fn work<J: Job>(
    job: &J,
    worker: usize,
    queue: &Receiver<J::Item>,
    ready: impl FnOnce(io::Result<()>),
) {
    let first = contained(|| {
        job.started(worker);
        job.prepare(worker)
    });
    let mut state = match first {
        Ok(state) => Some(state),
        Err(error) => return ready(Err(error)),
    };
    ready(Ok(()));
    loop {
        let Some(current) = &mut state else {
            // A panic took the state. If no other can be built that costs an item too, or the worker would spin.
            match contained(|| job.prepare(worker)) {
                Ok(built) => state = Some(built),
                Err(error) => {
                    job.failed(worker, &format!("no state for the worker: {error}"));
                    match queue.recv() {
                        Ok(item) => job.lost(item),
                        Err(_) => break,
                    }
                }
            }
            continue;
        };
        let item = match queue.try_recv() {
            Ok(item) => Some(item),
            Err(TryRecvError::Empty) => job.wait(current, queue),
            Err(TryRecvError::Disconnected) => break,
        };
        let Some(item) = item else { continue };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job.run(current, item))) {
            job.failed(worker, message(&*panic));
            discard(job, worker, state.take());
        }
    }
    discard(job, worker, state);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job.ended(worker))) {
        job.failed(worker, message(&*panic));
    }
}

/// Drops a state, which may panic as well.
fn discard<J: Job>(job: &J, worker: usize, state: Option<J::State>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(state))) {
        job.failed(worker, message(&*panic));
    }
}

/// Runs the user's code that may fail or panic; a panic is an error like any other.
fn contained<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(io::Error::other(format!("panicked: {}", message(&*panic)))))
}

/// The text of a panic, as `panic!` and friends leave it.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "a panic without a text"
    }
}
