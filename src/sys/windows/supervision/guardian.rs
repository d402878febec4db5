//! Windows: the job object of a supervisor. Its processes, and all that these start, are in the
//! job. When the supervisor ends, for whatever reason, the system closes the last handle of the
//! job, and ends all of them at that moment: no process is left that holds a port.

use std::collections::BTreeMap;
use std::io;
use std::os::windows::io::{AsHandle, OwnedHandle};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use windows_sys::Win32::System::JobObjects::JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;

use crate::sys::unix::handle::query_process;
use crate::sys::unix::job::{create_job, is_in_job};
use crate::sys::unix::unsupported_error;
use crate::sys::{Descriptor, Guarded, Identity};

/// The job of this process. The processes of the service are in it as long as this process lives.
static JOB: OnceLock<Descriptor> = OnceLock::new();

/// The processes of the service that are not in the job, with their ids. On Windows there are none:
/// a program that has started leaves only the job in which its predecessor watched the start. Under
/// Wine the program leaves all jobs.
static OTHERS: Mutex<BTreeMap<u32, OwnedHandle>> = Mutex::new(BTreeMap::new());

/// The job of a supervisor, see above.
#[derive(Debug)]
pub(crate) struct Guardian(&'static Descriptor);

impl Guardian {
    /// Every child is started in the job.
    pub(crate) const NEEDS_EACH_CHILD: bool = true;

    pub(crate) fn start(
        _limit: Duration,
        _kills_all: bool,
        _identity: Option<&Identity>,
        _known: impl Iterator<Item = Guarded>,
    ) -> io::Result<Self> {
        if let Some(job) = JOB.get() {
            return Ok(Self(job));
        }
        let job = create_job(JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)?;
        // Only the supervisor's thread makes one.
        Ok(Self(JOB.get_or_init(|| job.into())))
    }

    pub(crate) fn resume(_pid: u32, _pipe: i32) -> io::Result<Self> {
        Err(unsupported_error("a job object cannot be passed on"))
    }

    /// No process has this id.
    pub(crate) fn pid(&self) -> u32 {
        0
    }

    /// What is left of the processes ends with this process.
    pub(crate) fn end(self) {}

    /// The job, for the start of a process.
    pub(crate) fn pipe(&self) -> &Descriptor {
        self.0
    }

    /// The processes of the service are in the job from their start, except `OTHERS`.
    pub(crate) fn watch(&self, guarded: Guarded) -> bool {
        if let Some((pid, process)) = guarded
            .process
            .and_then(|pid| Some((pid, query_process(pid)?)))
        {
            if !is_in_own_job(&process) {
                OTHERS.lock().insert(pid, process);
            }
        }
        true
    }

    pub(crate) fn forget(&self, process: Option<u32>, _group: Option<u32>) -> bool {
        if let Some(pid) = process {
            OTHERS.lock().remove(&pid);
        }
        true
    }
}

/// Whether a process is one of the service.
pub(super) fn contains(pid: u32) -> bool {
    query_process(pid).is_some_and(|process| is_in_own_job(&process))
        || OTHERS.lock().contains_key(&pid)
}

fn is_in_own_job(process: &OwnedHandle) -> bool {
    let Some(Ok(job)) = JOB.get().map(Descriptor::as_handle) else {
        return false;
    };
    is_in_job(process.as_handle(), job).unwrap_or(false)
}
