//! Windows: ends a program that is still starting when its parent has died.
//!
//! The parent starts the program in a job, which ends the program when the parent's handle of the
//! job is closed. So a program that hangs before it calls [`take_over`], early in its `main`, ends
//! with its parent. In that call, the program starts a thread that ends the process if its parent
//! has died and the start takes too long. Then it takes the limit of the job away, so that it
//! outlives its parent.
//!
//! Programs that the program starts are not in the job: otherwise each generation would be in the
//! jobs of all generations before it.

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use windows_sys::Win32::Foundation::{DUPLICATE_SAME_ACCESS, DuplicateHandle, HANDLE};
use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, PROCESS_DUP_HANDLE, PROCESS_SYNCHRONIZE, TerminateProcess,
};

use super::handle::{check, duplicate_into, wait_for};
use super::job::{create_job, set_limits};
use super::passing_table::{self, StartLimit};
use crate::log;

// ---- the parent's side ----

/// The parent's handle of the job.
#[derive(Debug)]
pub(super) struct StartJob(OwnedHandle);

impl StartJob {
    pub(super) fn new() -> io::Result<Self> {
        let ends = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        create_job(ends | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK).map(Self)
    }

    pub(super) fn handle(&self) -> BorrowedHandle<'_> {
        self.0.as_handle()
    }

    /// What a process in the job, which does not run yet, is told of this.
    pub(super) fn limit_for(
        &self,
        process: BorrowedHandle<'_>,
        limit: Duration,
    ) -> io::Result<StartLimit> {
        let access = PROCESS_DUP_HANDLE | PROCESS_SYNCHRONIZE;
        Ok(StartLimit {
            millis: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1),
            parent: duplicate_into(process, own_process(), Some(access))?,
            job: self.0.as_raw_handle() as u64,
        })
    }

    /// Lets the program go on when this process ends.
    pub(super) fn release(&self) {
        if let Err(error) = set_limits(&self.0, JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK) {
            log::error!("cannot let a started program outlive this process: {error}");
        }
    }
}

/// The handle by which this process names itself.
#[allow(unsafe_code)]
fn own_process() -> BorrowedHandle<'static> {
    // SAFETY: this handle is a constant, which is valid as long as the process lives.
    unsafe { BorrowedHandle::borrow_raw(GetCurrentProcess()) }
}

// ---- the program's side ----

/// Its drop ends the thread that watches the start.
static STARTING: Mutex<Option<Sender<()>>> = Mutex::new(None);

/// Makes this process outlive its parent, and end itself if it is still starting when its parent
/// has died and the time for the start has passed. Without a parent that has bounded the start,
/// nothing happens.
pub(super) fn take_over() {
    let Some(limit) = passing_table::take_start_limit() else {
        return;
    };
    let parent = passing_table::own_passed(limit.parent);
    let job = parents_handle(&parent, limit.job);
    let (starting, started) = crossbeam_channel::bounded(0);
    let limit = Duration::from_millis(limit.millis);
    let watch = move || end_if_late(&parent, limit, &started);
    let thread = thread::Builder::new().name("handover-start".to_owned());
    let watching = thread.spawn(watch);
    let result = watching.and_then(|_| set_limits(&job?, JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK));
    *STARTING.lock() = Some(starting);
    if let Err(error) = result {
        log::warn!("this process may end with its predecessor while it starts: {error}");
    }
}

/// This process has started.
pub(super) fn end() {
    drop(STARTING.lock().take());
}

/// A handle of this process for what the parent names by a handle of its own.
#[allow(unsafe_code)]
fn parents_handle(parent: &OwnedHandle, number: u64) -> io::Result<OwnedHandle> {
    let mut copy = ptr::null_mut();
    // SAFETY: the handles of both processes are open, and `copy` is alive. If the call succeeds,
    // nothing else owns the handle that it has made.
    unsafe {
        check(DuplicateHandle(
            parent.as_raw_handle(),
            number as usize as HANDLE,
            GetCurrentProcess(),
            &mut copy,
            0,
            0,
            DUPLICATE_SAME_ACCESS,
        ))?;
        Ok(OwnedHandle::from_raw_handle(copy))
    }
}

/// How often a process that is late looks whether its parent has died. A parent that lives ends it.
const LATE_INTERVAL: Duration = Duration::from_secs(1);

fn end_if_late(parent: &OwnedHandle, limit: Duration, started: &Receiver<()>) {
    let began_at = Instant::now();
    loop {
        let left = limit.saturating_sub(began_at.elapsed());
        match started.recv_timeout(left.max(LATE_INTERVAL)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        match wait_for(parent.as_handle(), Duration::ZERO) {
            Ok(false) => {}
            Ok(true) => break,
            Err(error) => return log::error!("cannot watch the predecessor: {error}"),
        }
    }
    log::error!("the predecessor has died, and the start takes longer than {limit:?}: ending");
    end_now();
}

#[allow(unsafe_code)]
fn end_now() {
    // SAFETY: the handle is that of this process, which is not to run any further.
    unsafe { TerminateProcess(GetCurrentProcess(), 1) };
}
