//! Windows: the job object of a supervisor. Its processes, and all that these start, are in the
//! job. When the supervisor ends, for whatever reason, the system closes the last handle of the
//! job, and ends all of them at that moment: no process is left that holds a port.

use std::collections::BTreeMap;
use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, IsProcessInJob, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation,
    SetInformationJobObject,
};

use crate::sys::unix::handle::query_process;
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
    /// Every child is put into the job.
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
        let job = create_job()?;
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
            if !is_in_job(&process) {
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

#[allow(unsafe_code)]
fn create_job() -> io::Result<OwnedHandle> {
    // SAFETY: a job without a name and with the default attributes. The handle has no other owner.
    let job = unsafe {
        let job = CreateJobObjectW(ptr::null(), ptr::null());
        if job.is_null() {
            return Err(io::Error::last_os_error());
        }
        OwnedHandle::from_raw_handle(job)
    };
    let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    // SAFETY: the handle is open, and `limits` is a live structure of the class and the size that
    // the call is told.
    let done = unsafe {
        SetInformationJobObject(
            job.as_raw_handle(),
            JobObjectExtendedLimitInformation,
            (&raw const limits).cast(),
            size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
        )
    };
    match done {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(job),
    }
}

/// Whether a process is one of the service.
pub(super) fn contains(pid: u32) -> bool {
    query_process(pid).is_some_and(|process| is_in_job(&process))
        || OTHERS.lock().contains_key(&pid)
}

#[allow(unsafe_code)]
fn is_in_job(process: &OwnedHandle) -> bool {
    let Some(Ok(job)) = JOB.get().map(Descriptor::as_handle) else {
        return false;
    };
    let mut is_in = 0;
    // SAFETY: both handles are open, and the result is written to a live place.
    let done = unsafe {
        let (process, job) = (process.as_raw_handle(), job.as_raw_handle());
        IsProcessInJob(process, job, &raw mut is_in)
    };
    done != 0 && is_in != 0
}
