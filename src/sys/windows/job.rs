//! Windows: job objects.

use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, IsProcessInJob, JOB_OBJECT_LIMIT, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, SetInformationJobObject,
};

use super::handle::{self, check};

/// Makes a job without a name, with these limits (JOB_OBJECT_LIMIT).
#[allow(unsafe_code)]
pub(in crate::sys) fn create_job(limits: JOB_OBJECT_LIMIT) -> io::Result<OwnedHandle> {
    // SAFETY: no structure is given; nothing else owns the handle.
    let job = unsafe { handle::own(CreateJobObjectW(ptr::null(), ptr::null()))? };
    set_limits(&job, limits)?;
    Ok(job)
}

#[allow(unsafe_code)]
pub(in crate::sys) fn set_limits(job: &OwnedHandle, limits: JOB_OBJECT_LIMIT) -> io::Result<()> {
    let mut information = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    information.BasicLimitInformation.LimitFlags = limits;
    // SAFETY: the handle is open, and `information` is a live structure of the class and the size
    // that the call is told.
    check(unsafe {
        SetInformationJobObject(
            job.as_raw_handle(),
            JobObjectExtendedLimitInformation,
            (&raw const information).cast(),
            size_of_val(&information) as u32,
        )
    })
}

#[allow(unsafe_code)]
pub(in crate::sys) fn is_in_job(
    process: BorrowedHandle<'_>,
    job: BorrowedHandle<'_>,
) -> io::Result<bool> {
    let mut is_in = 0;
    // SAFETY: both handles are open, and the result is written to a live place.
    check(unsafe { IsProcessInJob(process.as_raw_handle(), job.as_raw_handle(), &mut is_in) })?;
    Ok(is_in != 0)
}
