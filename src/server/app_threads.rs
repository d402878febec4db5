//! Threads on which the application is called beside the workers: one for each periodic call, from
//! [`Handle::every`](super::Handle::every), and one for the hook of
//! [`Builder::on_stop`](super::Builder::on_stop). They start and end with the server.
//!
//! Periodic calls go on while the server drains. When the drain is over, a channel that all these
//! threads wait on is disconnected, so that none of them delays the end by its interval.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::clock::Deadline;
use crate::log;
use crate::panic;
use crate::server::thread_mark::mark_thread;

/// The threads of one server on which the application is called.
pub(super) struct AppThreads {
    name_prefix: Mutex<String>,
    server_id: Arc<AtomicUsize>,
    /// Disconnected when the server's drain is over.
    stopped: Receiver<()>,
    /// `None` once the server joins the threads.
    running: Mutex<Option<Running>>,
}

struct Running {
    /// Each thread has a clone, so that the channel is disconnected when all have ended.
    alive: Sender<()>,
    ended: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
    /// The calls that begin when the server starts; `None` once it has.
    waiting: Option<Vec<PeriodicCall>>,
}

/// A call that is to be made at intervals.
pub(super) struct PeriodicCall {
    interval: Duration,
    call: Box<dyn FnMut() + Send>,
}

impl PeriodicCall {
    pub(super) fn new(interval: Duration, call: impl FnMut() + Send + 'static) -> io::Result<Self> {
        if interval.is_zero() {
            let text = "the interval of a periodic call is zero";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let call = Box::new(call);
        Ok(Self { interval, call })
    }
}

impl AppThreads {
    pub(super) fn new(
        name_prefix: String,
        server_id: Arc<AtomicUsize>,
        stopped: Receiver<()>,
    ) -> Self {
        let (alive, ended) = crossbeam_channel::bounded(0);
        Self {
            name_prefix: Mutex::new(name_prefix),
            server_id,
            stopped,
            running: Mutex::new(Some(Running {
                alive,
                ended,
                threads: Vec::new(),
                waiting: Some(Vec::new()),
            })),
        }
    }

    /// For the threads that are started from now on.
    pub(super) fn set_name_prefix(&self, prefix: String) {
        *self.name_prefix.lock() = prefix;
    }

    /// Disconnected when the server's drain is over.
    pub(super) fn stopped(&self) -> &Receiver<()> {
        &self.stopped
    }

    /// Starts a thread that makes the calls, now or when the server starts.
    pub(super) fn add(&self, call: PeriodicCall) -> io::Result<()> {
        let mut running = self.running.lock();
        let running = running.as_mut().ok_or_else(stopped_error)?;
        match &mut running.waiting {
            Some(waiting) => {
                waiting.push(call);
                Ok(())
            }
            None => self.start_calls(running, call),
        }
    }

    /// Starts the threads that wait for the start of the server.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut running = self.running.lock();
        let running = running.as_mut().ok_or_else(stopped_error)?;
        let mut waiting = running.waiting.take().unwrap_or_default().into_iter();
        waiting.try_for_each(|call| self.start_calls(running, call))
    }

    fn start_calls(
        &self,
        running: &mut Running,
        PeriodicCall { interval, call }: PeriodicCall,
    ) -> io::Result<()> {
        let stopped = self.stopped.clone();
        self.spawn(running, "every", move || {
            call_every(interval, call, &stopped);
        })
    }

    /// Calls a hook, on a thread of its own.
    pub(super) fn run_hook(&self, name: &'static str, hook: Arc<dyn Fn() + Send + Sync>) {
        let mut running = self.running.lock();
        let started = running.as_mut().ok_or_else(stopped_error);
        let started = started.and_then(|running| {
            self.spawn(running, name, move || {
                if let Err(why) = panic::contain(|| hook()) {
                    log::error!("the hook {name} panicked: {why}");
                }
            })
        });
        if let Err(error) = started {
            log::error!("cannot call the hook {name}: {error}");
        }
    }

    fn spawn(
        &self,
        running: &mut Running,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let name = format!("{}-{name}", self.name_prefix.lock());
        let (alive, server_id) = (running.alive.clone(), Arc::clone(&self.server_id));
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _alive = alive;
            mark_thread(server_id.load(SeqCst));
            run();
        })?;
        running.threads.push(thread);
        Ok(())
    }

    /// Waits until all threads have ended, at most until `until`. False if one has not: its call
    /// takes too long. No further thread can be started.
    pub(super) fn join(&self, until: Instant) -> bool {
        let running = self.running.lock().take();
        let Some(Running {
            alive,
            ended,
            threads,
            waiting,
        }) = running
        else {
            return true;
        };
        drop(alive);
        log::drop_contained("the calls of a server that has not started", waiting);
        if let Err(RecvTimeoutError::Timeout) = ended.recv_deadline(until) {
            let late = threads.iter().filter(|thread| !thread.is_finished());
            for thread in late {
                let name = thread.thread().name().unwrap_or_default();
                log::warn!("{name}: a call of the application goes on after the stop");
            }
            return false;
        }
        // A thread has nothing left to do but end. All panics are contained.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        true
    }
}

fn stopped_error() -> io::Error {
    io::Error::other("the server has stopped")
}

fn call_every(interval: Duration, mut call: impl FnMut(), stopped: &Receiver<()>) {
    let mut next = Deadline::after(Instant::now(), interval);
    loop {
        let wait = match next.instant() {
            Some(at) => stopped.recv_deadline(at),
            None => stopped.recv().map_err(RecvTimeoutError::from),
        };
        if wait != Err(RecvTimeoutError::Timeout) {
            break;
        }
        if let Err(why) = panic::contain(&mut call) {
            log::error!("{}: a periodic call panicked: {why}", thread_name());
        }
        if let Some(due) = next.instant() {
            next = next_call(due, interval, Instant::now());
        }
    }
    // The drop is the application's code.
    log::drop_contained(format_args!("a call of {}", thread_name()), call);
}

/// The first time after `now` that is a whole number of intervals after `due`, so that the calls do
/// not drift, and those that were missed are skipped.
fn next_call(due: Instant, interval: Duration, now: Instant) -> Deadline {
    let late = now.saturating_duration_since(due).as_nanos();
    let past = late % interval.as_nanos();
    // At most the time that this process has run, which is far below 584 years.
    let past = Duration::from_nanos(u64::try_from(past).unwrap_or(u64::MAX));
    Deadline::after(now.max(due) - past, interval)
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_do_not_drift_and_missed_ones_are_skipped() {
        let due = Instant::now();
        let millis = Duration::from_millis;
        // The interval, how late the last call ended, and when the next one is, after `due`.
        let table = [
            (10, 0, 10),
            (10, 1, 10),
            (10, 9, 10),
            (10, 10, 20),
            (10, 11, 20),
            (10, 35, 40),
            (1, 1_000_000, 1_000_001),
            (1_000_000, 1, 1_000_000),
        ];
        for (interval, late, next) in table {
            let found = next_call(due, millis(interval), due + millis(late));
            assert_eq!(
                found.instant(),
                Some(due + millis(next)),
                "{interval} {late}"
            );
        }
        assert_eq!(
            next_call(due, Duration::MAX, due + millis(1)),
            Deadline::NEVER
        );
        // The wait has ended early.
        let found = next_call(due + millis(1), millis(10), due);
        assert_eq!(found.instant(), Some(due + millis(11)));
    }
}
